//! `gaol trace`: the last events that somebody may want to know of afterwards, in their order.
//!
//! The hypervisor keeps them in a ring that it publishes; reading it costs no exit and stops no CPU. Before it is read, the
//! module is asked for the state of the cells: then the hypervisor takes what IOMMUs have recorded.

use std::io::Write;
use std::thread::sleep;
use std::time::Duration;

use gaol_abi::public::{
    DEVICE_FAULT_READ, FaultRecord, RootFailure, RootFailureKind, SystemPublic, TraceEvent,
    TraceKind, TraceRing,
};
use gaol_config::pci::FunctionAddress;
use serde_json::{Value, json};
use zerocopy::FromZeros;

use super::{device_faults, list};
use crate::failure::{Failure, Result};
use crate::host::Host;
use crate::output::Report;
use crate::sysfs::PublicPages;

/// Time between two looks of `--follow`.
const PERIOD: Duration = Duration::from_millis(250);

/// What a look has found that those before it had not.
struct Found {
    /// In their order.
    events: Vec<TraceEvent>,
    /// Events that are not among them: they were overwritten.
    overwritten: u64,
    /// The number of the last event; where the next look goes on.
    last: u64,
}

/// The events behind number `after` that are in the ring whole.
fn behind(ring: &TraceRing, after: u64) -> Found {
    let mut events: Vec<TraceEvent> = ring
        .events
        .iter()
        .filter(|event| event.begin == event.end && event.begin > after)
        .copied()
        .collect();
    events.sort_by_key(|event| event.begin);
    let last = events.last().map_or(after, |event| event.begin);
    let told = events.len() as u64;
    Found {
        overwritten: last.saturating_sub(after).saturating_sub(told),
        events,
        last,
    }
}

/// What is published, and how cells are called.
struct Look {
    public: PublicPages,
    cells: Vec<(u32, String)>,
}

impl Look {
    fn new(host: &Host) -> Result<Self> {
        if !host.sysfs.is_enabled()? {
            return Err(Failure::new(
                "not_enabled",
                "Gaol is not enabled, so there is no trace",
                "Enable it first: gaol enable SYSTEM.toml",
            ));
        }
        let cells = host.sysfs.cells()?;
        Ok(Self {
            cells: cells.into_iter().map(|cell| (cell.id, cell.name)).collect(),
            public: host.sysfs.public()?,
        })
    }

    fn system(&self) -> Option<&SystemPublic> {
        self.public.system()
    }

    /// What is new since the event of number `after`.
    fn behind(&self, after: u64) -> Option<Found> {
        self.public.trace().map(|ring| behind(ring, after))
    }

    /// The cell's name, if it is still there.
    fn name(&self, id: u32) -> Option<&str> {
        let mut cells = self.cells.iter();
        cells
            .find(|(own, _)| *own == id)
            .map(|(_, name)| name.as_str())
    }

    fn cell(&self, id: u32) -> String {
        match self.name(id) {
            Some(name) => format!("cell \"{name}\""),
            None => format!("cell {id}"),
        }
    }

    /// Seconds since the time stamp counter was 0, which is when the machine was started.
    fn seconds(&self, event: &TraceEvent) -> f64 {
        let khz = self.system().map_or(0, |system| system.tsc_khz).max(1);
        event.time as f64 / (f64::from(khz) * 1000.0)
    }

    fn words(&self, host: &Host, event: &TraceEvent) -> String {
        let cell = self.cell(event.cell);
        match event.kind {
            TraceKind::DeviceFault => format!(
                "PCI function {} of {cell}: {} was stopped by its IOMMU (reason {:#x})",
                function(event),
                device_faults::attempt(event.address, event.reason, is_read(event)),
                event.reason
            ),
            TraceKind::Violation => format!(
                "CPU {} of {cell}: {}",
                event.source,
                list::describe(&fault(event), host.vendor)
            ),
            TraceKind::Watchdog => format!("the heartbeat of {cell} has not changed in time"),
            TraceKind::RootFailure => list::root_failure_words(&RootFailure {
                kind: RootFailureKind(event.reason),
                cpu: event.source,
                address: event.address,
                ..RootFailure::new_zeroed()
            })
            .map_or_else(String::new, |words| {
                words.trim_end_matches(['.', '\n']).to_owned()
            }),
            TraceKind::HypervisorFault => format!(
                "the hypervisor failed on CPU {}, in {cell} (`gaol cell list` tells more)",
                event.source
            ),
            TraceKind(other) => format!("an event of the unknown kind {other}, of {cell}"),
        }
    }

    fn line(&self, host: &Host, event: &TraceEvent) -> String {
        let seconds = self.seconds(event);
        format!("{seconds:>14.6}  {}\n", self.words(host, event))
    }

    fn json(&self, host: &Host, event: &TraceEvent) -> Value {
        let mut value = json!({
            "number": event.begin,
            "time": event.time,
            "seconds": self.seconds(event),
            "kind": kind_name(event.kind),
            "cell": event.cell,
            "cell_name": self.name(event.cell),
            "text": self.words(host, event),
        });
        match event.kind {
            TraceKind::DeviceFault => {
                value["function"] = function(event).to_string().into();
                value["address"] = event.address.into();
                value["reason"] = event.reason.into();
                value["read"] = is_read(event).into();
            }
            TraceKind::Violation => {
                value["cpu"] = event.source.into();
                value["address"] = event.address.into();
                value["exit_reason"] = list::exit_name(event.reason, host.vendor).into();
                value["qualification"] = event.qualification.into();
                value["rip"] = event.place.into();
            }
            TraceKind::RootFailure | TraceKind::HypervisorFault => {
                value["cpu"] = event.source.into();
                value["address"] = event.address.into();
                value["reason"] = event.reason.into();
            }
            _ => {}
        }
        value
    }
}

fn kind_name(kind: TraceKind) -> &'static str {
    match kind {
        TraceKind::DeviceFault => "device_fault",
        TraceKind::Violation => "violation",
        TraceKind::Watchdog => "watchdog",
        TraceKind::RootFailure => "root_failure",
        TraceKind::HypervisorFault => "hypervisor_fault",
        _ => "unknown",
    }
}

fn function(event: &TraceEvent) -> FunctionAddress {
    FunctionAddress::from_detail(event.source.into())
}

fn is_read(event: &TraceEvent) -> bool {
    event.qualification & u64::from(DEVICE_FAULT_READ) != 0
}

/// A violation as the list of cells tells it.
fn fault(event: &TraceEvent) -> FaultRecord {
    FaultRecord {
        exit_reason: event.reason,
        qualification: event.qualification,
        address: event.address,
        rip: event.place,
        ..FaultRecord::new_zeroed()
    }
}

fn overwritten_words(count: u64) -> String {
    match count {
        0 => String::new(),
        1 => "(1 event was overwritten)\n".to_owned(),
        count => format!("({count} events were overwritten)\n"),
    }
}

/// What never came to the trace.
fn lost_words(left_out: u64, system: &SystemPublic) -> String {
    let mut text = String::new();
    if left_out != 0 {
        text.push_str(&format!(
            "({left_out} faults of devices were left out, since there were too many at once)\n"
        ));
    }
    if system.iommus.lost != 0 {
        text.push_str(&format!(
            "(IOMMUs had more faults than they could record, {} times)\n",
            system.iommus.lost
        ));
    }
    text
}

/// `gaol trace`: the events that are still there.
///
/// # Errors
/// When Gaol is not enabled, or the module does not tell.
pub fn trace(host: &Host) -> Result<Report> {
    let look = Look::new(host)?;
    let (Some(found), Some(ring), Some(system)) =
        (look.behind(0), look.public.trace(), look.system())
    else {
        return Err(no_ring());
    };
    let mut text = overwritten_words(found.overwritten);
    for event in &found.events {
        text.push_str(&look.line(host, event));
    }
    text.push_str(&lost_words(ring.left_out, system));
    if text.is_empty() {
        text.push_str("Nothing has happened so far.\n");
    }
    let events: Vec<Value> = found.events.iter().map(|it| look.json(host, it)).collect();
    Ok(Report {
        text,
        json: json!({
            "ok": true,
            "events": events,
            "overwritten": found.overwritten,
            "left_out": ring.left_out,
            "lost_by_iommus": system.iommus.lost,
        }),
    })
}

fn no_ring() -> Failure {
    Failure::new(
        "module_mismatch",
        "the module publishes no trace",
        "Install module and command of one version.",
    )
}

/// `gaol trace --follow`: the same, and what comes, until Gaol is disabled or `output` takes no more.
///
/// # Errors
/// When Gaol is not enabled at first, or the module does not tell.
pub fn follow(host: &Host, output: &mut dyn Write) -> Result<Report> {
    let mut last = 0;
    let mut look = Look::new(host)?;
    loop {
        let found = look.behind(last).ok_or_else(no_ring)?;
        let mut text = overwritten_words(found.overwritten);
        for event in &found.events {
            text.push_str(&look.line(host, event));
        }
        let written = output.write_all(text.as_bytes());
        if written.and_then(|()| output.flush()).is_err() {
            break;
        }
        last = found.last;
        sleep(PERIOD);
        look = match Look::new(host) {
            Ok(look) => look,
            // It was disabled meanwhile: the trace has an end.
            Err(_) if !host.sysfs.is_enabled().unwrap_or(false) => break,
            Err(failure) => return Err(failure),
        };
    }
    Ok(Report {
        text: String::new(),
        json: json!({ "ok": true }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(numbers: impl Iterator<Item = u64>) -> TraceRing {
        let mut ring = TraceRing::new_zeroed();
        for number in numbers {
            let slot = (number - 1) as usize % ring.events.len();
            ring.events[slot].begin = number;
            ring.events[slot].end = number;
            ring.written = number;
        }
        ring
    }

    #[test]
    fn events_are_told_once_and_in_order() {
        let numbers =
            |found: &Found| -> Vec<u64> { found.events.iter().map(|event| event.begin).collect() };
        let found = behind(&ring(1..=5), 0);
        assert_eq!(numbers(&found), [1, 2, 3, 4, 5]);
        assert_eq!((found.overwritten, found.last), (0, 5));
        let found = behind(&ring(1..=70), 5);
        let last: Vec<u64> = (8..=70).collect();
        assert_eq!(numbers(&found), last);
        assert_eq!((found.overwritten, found.last), (2, 70));
        let found = behind(&ring(1..=70), 70);
        assert_eq!(
            (found.events.len(), found.overwritten, found.last),
            (0, 0, 70)
        );
    }

    #[test]
    fn what_is_being_written_is_not_told() {
        let mut ring = ring(1..=5);
        ring.events[4].end = 68;
        let found = behind(&ring, 3);
        assert_eq!((found.events.len(), found.last), (1, 4));
    }
}
