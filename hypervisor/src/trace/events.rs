//! The trace: the last events, whichever CPU they were on, in a ring that the root reads.
//!
//! Invariant: a writer takes the next place and waits for nobody. Of an event the last word is written first and the first
//! word last, both its number: who reads them in ascending order and finds them alike has read one event whole.

use core::sync::atomic::{AtomicU64, Ordering};

use gaol_abi::public::{
    FaultRecord, HypervisorFault, RootFailure, TRACE_EVENTS, TRACE_OFFSET, TRACE_WORDS, TraceEvent,
    TraceKind,
};

use crate::iommu::vtd::faults::Traced;
use crate::launch::parameters;

/// Words of the ring with its header, which is as long as an event.
const RING_WORDS: usize = (TRACE_EVENTS + 1) * TRACE_WORDS;

type Ring = [AtomicU64; RING_WORDS];

/// An event of a kind at a time, with nothing said of it.
const fn event(kind: TraceKind, time: u64, cell: u32, source: u32) -> TraceEvent {
    TraceEvent {
        begin: 0,
        time,
        kind,
        cell,
        source,
        reason: 0,
        address: 0,
        place: 0,
        qualification: 0,
        end: 0,
    }
}

fn ring() -> &'static Ring {
    let at = parameters::public_base().wrapping_add(TRACE_OFFSET);
    // SAFETY: a whole page of the public pages, which is mapped, zeroed at first, never freed while the hypervisor runs, and
    // only accessed with atomics.
    unsafe { &*(at as *const Ring) }
}

/// Adds an event to a ring, in place of the oldest.
fn add(ring: &Ring, event: &TraceEvent) {
    let [written, ..] = ring;
    let number = written.fetch_add(1, Ordering::AcqRel).wrapping_add(1);
    let slot = number
        .wrapping_sub(1)
        .checked_rem(TRACE_EVENTS as u64)
        .unwrap_or(0) as usize;
    let first = slot.wrapping_add(1).wrapping_mul(TRACE_WORDS);
    let words = TraceEvent {
        begin: number,
        end: number,
        ..*event
    }
    .words();
    let Some(places) = ring.get(first..first.wrapping_add(TRACE_WORDS)) else {
        return;
    };
    // From the last to the first; each store is seen after those before it.
    for (place, word) in places.iter().zip(&words).rev() {
        place.store(*word, Ordering::Release);
    }
}

/// What a guest did that its CPU was stopped for.
pub fn violation(cpu: u32, fault: &FaultRecord) {
    let event = TraceEvent {
        reason: fault.exit_reason,
        address: fault.address,
        place: fault.rip,
        qualification: fault.qualification,
        ..event(TraceKind::Violation, fault.time, fault.cell, cpu)
    };
    add(ring(), &event);
}

/// How the hypervisor itself has failed.
pub fn hypervisor_fault(cpu: u32, fault: &HypervisorFault) {
    let event = TraceEvent {
        reason: fault.vector,
        address: fault.address,
        place: fault.rip,
        qualification: fault.error_code,
        ..event(TraceKind::HypervisorFault, fault.time, fault.cell, cpu)
    };
    add(ring(), &event);
}

/// How Linux has failed.
pub fn root_failure(failure: &RootFailure) {
    let event = TraceEvent {
        reason: failure.kind.0,
        address: failure.address,
        ..event(TraceKind::RootFailure, failure.time, 0, failure.cpu)
    };
    add(ring(), &event);
}

/// A cell's heartbeat has not changed in time.
pub fn expiry(cell: u32, heartbeat: u64, time: u64) {
    let event = TraceEvent {
        qualification: heartbeat,
        ..event(TraceKind::Watchdog, time, cell, 0)
    };
    add(ring(), &event);
}

/// What an IOMMU has stopped of a device.
pub fn device_fault(fault: &Traced) {
    let event = TraceEvent {
        reason: fault.reason,
        address: fault.address,
        qualification: fault.flags.into(),
        ..event(TraceKind::DeviceFault, fault.time, fault.cell, fault.source)
    };
    add(ring(), &event);
}

/// Counts events that are not in the trace since there were too many at once.
pub fn left_out(count: u64) {
    let [_, left_out, ..] = ring();
    left_out.fetch_add(count, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_events_are_in_the_ring_whole() {
        let ring: Box<Ring> = Box::new([const { AtomicU64::new(0) }; RING_WORDS]);
        let one = |number: u32| TraceEvent {
            address: u64::from(number) << 12,
            ..event(TraceKind::DeviceFault, number.into(), 3, number)
        };
        for number in 1..=200 {
            add(&ring, &one(number));
        }
        let words: Vec<u64> = ring
            .iter()
            .map(|word| word.load(Ordering::Relaxed))
            .collect();
        let (header, events) = words.split_at(TRACE_WORDS);
        assert_eq!(header, [200, 0, 0, 0, 0, 0, 0, 0]);
        for (slot, words) in events.chunks(TRACE_WORDS).enumerate() {
            // The last event that has this place.
            let number =
                (138..=200).find(|number| (number - 1) % TRACE_EVENTS as u32 == slot as u32);
            let number = number.unwrap();
            let wanted = TraceEvent {
                begin: number.into(),
                end: number.into(),
                ..one(number)
            };
            assert_eq!(words, wanted.words(), "{number}");
        }
    }
}
