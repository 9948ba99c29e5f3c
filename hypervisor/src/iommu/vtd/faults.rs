//! What devices tried that a unit stopped: counted by device, and which of them has too many at once.
#![forbid(unsafe_code)]

use gaol_abi::public::{DEVICE_FAULT_READ, DEVICE_QUARANTINED, DeviceFaults, MAX_FAULTY_DEVICES};

use super::definitions::{END_OF_INTERRUPT_REASONS, FIRST_INTERRUPT_REASON, FaultHigh, SourceId};

/// So many faults of one device in a second are a storm.
pub const STORM: u32 = 100;
/// So many since its cell was started are one as well: units record few of them (some have one register, and leave out what
/// is like it), so that to who looks seldom a storm is a trickle.
pub const MOST: u32 = 400;

/// So many faults of one device in a second are events of the trace, so that it is not one device's alone.
const MOST_TRACED: u32 = 8;
/// Most faults between two publications that are events of the trace.
const MOST_FRESH: usize = 32;

/// A fault for the trace, in the terms of [`DeviceFaults`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Traced {
    /// The function.
    pub source: u32,
    /// Id of its cell.
    pub cell: u32,
    /// Address, or index of the interrupt entry.
    pub address: u64,
    /// Time stamp counter.
    pub time: u64,
    /// Why, as VT-d counts the reasons.
    pub reason: u32,
    /// `DEVICE_…`.
    pub flags: u32,
}

/// The faults of all devices.
#[derive(Debug)]
pub struct Faults {
    /// Faults that are to be events of the trace, in their order; then none.
    fresh: [Option<Traced>; MOST_FRESH],
    /// Those that are not to be, since there were too many at once.
    left_out: u64,
    /// By device, in the order in which they began.
    pub devices: [DeviceFaults; MAX_FAULTY_DEVICES],
    /// When the present second of each device began, its faults in it, and those since its cell was started.
    seconds: [(u64, u32, u32); MAX_FAULTY_DEVICES],
    /// All faults.
    pub count: u64,
    /// How often a unit had more faults than it could record.
    pub lost: u64,
    /// Cycles of a second.
    second: u64,
}

impl Default for Faults {
    fn default() -> Self {
        Self::new()
    }
}

const fn number(segment: u16, source: SourceId) -> u32 {
    (segment as u32) << 16 | source.0 as u32
}

impl Faults {
    /// None so far.
    #[must_use]
    pub const fn new() -> Self {
        const NONE: DeviceFaults = DeviceFaults {
            source: 0,
            cell: 0,
            count: 0,
            address: 0,
            time: 0,
            reason: 0,
            flags: 0,
        };
        Self {
            fresh: [None; MOST_FRESH],
            left_out: 0,
            devices: [NONE; MAX_FAULTY_DEVICES],
            seconds: [(0, 0, 0); MAX_FAULTY_DEVICES],
            count: 0,
            lost: 0,
            second: u64::MAX,
        }
    }

    /// Tells how many cycles a second has.
    pub const fn set_second(&mut self, cycles: u64) {
        self.second = cycles;
    }

    /// Notes a fault, as it was recorded. Whether the device has too many.
    pub fn note(
        &mut self,
        (segment, source): (u16, SourceId),
        cell: u32,
        (low, high): (u64, u64),
        now: u64,
    ) -> bool {
        self.count = self.count.saturating_add(1);
        let number = number(segment, source);
        let mut slots = self.devices.iter().zip(0usize..);
        let found = slots.find(|(one, _)| one.count == 0 || one.source == number);
        let Some((_, index)) = found else {
            self.left_out = self.left_out.saturating_add(1);
            return false;
        };
        let Some((one, second)) = self.devices.get_mut(index).zip(self.seconds.get_mut(index))
        else {
            return false;
        };
        let high = FaultHigh::from_bits(high);
        let reasons = FIRST_INTERRUPT_REASON..END_OF_INTERRUPT_REASONS;
        let is_interrupt = reasons.contains(&high.reason());
        *one = DeviceFaults {
            source: number,
            cell,
            count: one.count.saturating_add(1),
            address: if is_interrupt {
                low >> 48
            } else {
                low & !0xfff
            },
            time: now,
            reason: high.reason().into(),
            flags: one.flags & DEVICE_QUARANTINED
                | if high.is_read() && !is_interrupt {
                    DEVICE_FAULT_READ
                } else {
                    0
                },
        };
        let (start, count, all) = *second;
        let all = all.saturating_add(1);
        *second = if count == 0 || now.wrapping_sub(start) > self.second {
            (now, 1, all)
        } else {
            (start, count.saturating_add(1), all)
        };
        let (in_second, is_storm) = (second.1, second.1 >= STORM || all >= MOST);
        let traced = Traced {
            source: number,
            cell,
            address: one.address,
            time: now,
            reason: one.reason,
            flags: one.flags,
        };
        self.trace(traced, in_second);
        is_storm
    }

    /// The fault is an event, unless it is one of too many.
    fn trace(&mut self, traced: Traced, in_second: u32) {
        let mut slots = self.fresh.iter_mut();
        match slots.find(|slot| slot.is_none()) {
            Some(slot) if in_second <= MOST_TRACED => *slot = Some(traced),
            _ => self.left_out = self.left_out.saturating_add(1),
        }
    }

    /// Hands out what is to be an event of the trace, once. Returns how many more there were.
    pub fn take_fresh(&mut self, visit: impl FnMut(&Traced)) -> u64 {
        self.fresh.iter().flatten().for_each(visit);
        self.fresh = [None; MOST_FRESH];
        core::mem::take(&mut self.left_out)
    }

    /// The device is kept from all memory.
    pub fn mark_quarantined(&mut self, segment: u16, source: SourceId) {
        let number = number(segment, source);
        let mut devices = self.devices.iter_mut();
        if let Some(one) = devices.find(|one| one.count != 0 && one.source == number) {
            one.flags |= DEVICE_QUARANTINED;
        }
    }

    /// The device begins anew, with another owner or start.
    pub fn begin_anew(&mut self, segment: u16, source: SourceId) {
        let number = number(segment, source);
        let mut devices = self.devices.iter_mut().zip(&mut self.seconds);
        if let Some((one, second)) = devices.find(|(one, _)| one.count != 0 && one.source == number)
        {
            one.flags &= !DEVICE_QUARANTINED;
            *second = (0, 0, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A device of cell 1 that faults every `cycles`, with 1,000 of them in a second: after how many it is too much.
    fn too_many(faults: &mut Faults, cycles: u64) -> Option<u32> {
        (1..=2 * MOST).find(|number| {
            let now = u64::from(*number) * cycles;
            faults.note((0, SourceId(0x18)), 1, (0x5000, 5 << 32), now)
        })
    }

    #[test]
    fn a_device_with_many_faults_leaves_room_in_the_trace_for_others() {
        let mut faults = Faults::new();
        faults.set_second(1000);
        let mut note = |source, address, now| {
            faults.note((1, SourceId(source)), 2, (address, 1 << 62 | 6 << 32), now);
        };
        for number in 0..90 {
            note(0x18, 0x5000 + (number << 12), number);
        }
        note(0x20, 0x9000, 90);
        let mut seen = Vec::new();
        let left_out = faults.take_fresh(|traced| seen.push(*traced));
        assert_eq!((seen.len() as u32, left_out), (MOST_TRACED + 1, 82));
        assert_eq!(
            seen[1],
            Traced {
                source: 0x1_0018,
                cell: 2,
                address: 0x6000,
                time: 1,
                reason: 6,
                flags: DEVICE_FAULT_READ,
            }
        );
        assert_eq!(
            seen.last().map(|one| (one.source, one.address)),
            Some((0x1_0020, 0x9000))
        );
        assert_eq!(faults.take_fresh(|_| panic!("it was told before")), 0);
        // The next second it is heard again.
        faults.note((1, SourceId(0x18)), 2, (0x5000, 5 << 32), 5000);
        let mut count = 0;
        assert_eq!(faults.take_fresh(|_| count += 1), 0);
        assert_eq!(count, 1);
    }

    #[test]
    fn a_storm_is_told_from_its_rate_or_from_its_length() {
        let mut faults = Faults::new();
        faults.set_second(1000);
        assert_eq!(too_many(&mut faults, 5), Some(STORM));
        faults.begin_anew(0, SourceId(0x18));
        assert_eq!(too_many(&mut faults, 500), Some(MOST));
        faults.begin_anew(0, SourceId(0x18));
        assert_eq!(too_many(&mut faults, 500), Some(MOST));
    }
}
