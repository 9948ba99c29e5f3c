//! Watching a cell's heartbeat.
//!
//! The root looks a few times in each timeout, by a hypercall; the cell does nothing but write to memory, so that it is
//! watched without an exit. The hypervisor keeps the time, and trusts neither the root's timers nor the cell's values:
//! any change of the word is a beat.
#![forbid(unsafe_code)]

use gaol_abi::config::{WATCHDOG_HALT, WATCHDOG_RESTART};

/// What happens to a cell that stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// It is kept on record.
    Record,
    /// The root restarts it.
    Restart,
    /// Its CPUs are parked.
    Halt,
}

/// What a look has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// The heartbeat has changed, or there is time left.
    Alive,
    /// The heartbeat has not changed for the whole timeout.
    Expired,
}

/// A watchdog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watchdog {
    policy: Policy,
    /// In cycles.
    timeout: u64,
    heartbeat: u64,
    /// When the heartbeat was seen to change last, or the cell was started.
    since: u64,
}

impl Watchdog {
    /// The watchdog of a configuration, if it has one.
    #[must_use]
    pub fn new(milliseconds: u32, policy: u32, tsc_khz: u32) -> Option<Self> {
        (milliseconds != 0).then(|| Self {
            policy: match policy {
                WATCHDOG_RESTART => Policy::Restart,
                WATCHDOG_HALT => Policy::Halt,
                _ => Policy::Record,
            },
            timeout: u64::from(milliseconds).saturating_mul(u64::from(tsc_khz)),
            heartbeat: 0,
            since: 0,
        })
    }

    /// What happens when it expires.
    #[must_use]
    pub fn policy(&self) -> Policy {
        self.policy
    }

    /// The cell starts, with a heartbeat of 0.
    pub fn start(&mut self, now: u64) {
        self.heartbeat = 0;
        self.since = now;
    }

    /// Looks at the heartbeat. After it has expired the cell has the whole timeout again.
    pub fn look(&mut self, heartbeat: u64, now: u64) -> Look {
        let expired = heartbeat == self.heartbeat && now.wrapping_sub(self.since) > self.timeout;
        if expired || heartbeat != self.heartbeat {
            self.heartbeat = heartbeat;
            self.since = now;
        }
        if expired { Look::Expired } else { Look::Alive }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn watchdog(milliseconds: u32) -> Watchdog {
        Watchdog::new(milliseconds, WATCHDOG_HALT, 1000).unwrap()
    }

    #[test]
    fn no_timeout_is_no_watchdog() {
        assert_eq!(Watchdog::new(0, WATCHDOG_HALT, 1000), None);
        for (number, policy) in [(0, Policy::Record), (1, Policy::Restart), (2, Policy::Halt)] {
            assert_eq!(Watchdog::new(1, number, 1).unwrap().policy(), policy);
        }
    }

    #[test]
    fn a_cell_that_never_beats_expires_from_its_start_on() {
        let mut watchdog = watchdog(10);
        watchdog.start(5);
        assert_eq!(watchdog.look(0, 10_005), Look::Alive);
        assert_eq!(watchdog.look(0, 10_006), Look::Expired);
        assert_eq!(watchdog.look(0, 10_007), Look::Alive);
        assert_eq!(watchdog.look(0, 20_007), Look::Expired);
    }

    #[test]
    fn any_change_is_a_beat_and_the_clock_may_wrap() {
        let mut watchdog = watchdog(10);
        let mut now = u64::MAX - 15_000;
        watchdog.start(now);
        for heartbeat in [1, 0, u64::MAX, 7] {
            now = now.wrapping_add(10_000);
            assert_eq!(watchdog.look(heartbeat, now), Look::Alive);
        }
        assert_eq!(watchdog.look(7, now.wrapping_add(10_001)), Look::Expired);
    }

    proptest! {
        /// Looking a quarter of the timeout after the other finds a cell that stands still after one and a quarter of it at
        /// the latest, and never one that beats in time.
        #[test]
        fn who_stands_still_is_found_in_time_and_nobody_else(
            timeout in 4u32..1000,
            beats in prop::collection::vec(1u64..1_000_000, 0..20),
        ) {
            let cycles = u64::from(timeout) * 1000;
            let quarter = cycles / 4;
            let mut watchdog = watchdog(timeout);
            watchdog.start(0);
            let (mut now, mut heartbeat, mut next_beat) = (0u64, 0u64, 0u64);
            let mut gaps = beats.iter().map(|gap| gap % (cycles - quarter));
            let mut last_beat = 0;
            let mut is_still = false;
            loop {
                now += quarter;
                while !is_still && next_beat <= now {
                    heartbeat += 1;
                    last_beat = next_beat;
                    match gaps.next() {
                        Some(gap) => next_beat += gap.max(1),
                        None => is_still = true,
                    }
                }
                match watchdog.look(heartbeat, now) {
                    Look::Alive => prop_assert!(now - last_beat <= cycles + 2 * quarter + 4),
                    Look::Expired => {
                        prop_assert!(is_still && now - last_beat > cycles);
                        break;
                    }
                }
            }
        }
    }
}
