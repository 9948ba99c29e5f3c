//! When the next tick is due, and how late the last one was.
//!
//! Invariant: deadlines are absolute. Tick n is due at start + n × period, whatever happened to the ticks before; a
//! late tick makes no other one late.
#![forbid(unsafe_code)]

/// One tick of a [`Schedule`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tick {
    /// Cycles of the time stamp counter from the expiry of the timer to the first instructions of the handler.
    pub latency: u64,
    /// The deadline of the next tick had passed before the timer could be armed for it.
    pub missed: bool,
}

/// Deadlines in cycles of the time stamp counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    deadline: u64,
    period: u64,
}

impl Schedule {
    /// The first tick is due one period after `now`.
    pub fn new(now: u64, period: u64) -> Self {
        Self {
            deadline: now.wrapping_add(period),
            period,
        }
    }

    /// When the tick is due that is waited for.
    pub fn deadline(&self) -> u64 {
        self.deadline
    }

    /// Takes note of the tick whose handler was entered at `entered`, and goes on to the next one. `now` is a moment
    /// immediately before the timer is armed for that.
    pub fn tick(&mut self, entered: u64, now: u64) -> Tick {
        let latency = entered.saturating_sub(self.deadline);
        self.deadline = self.deadline.wrapping_add(self.period);
        Tick {
            latency,
            missed: now >= self.deadline,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn latency_counts_from_the_deadline() {
        let mut schedule = Schedule::new(1_000, 100);
        assert_eq!(schedule.deadline(), 1_100);
        let tick = schedule.tick(1_104, 1_120);
        assert_eq!((tick.latency, tick.missed), (4, false));
        assert_eq!(schedule.deadline(), 1_200);
    }

    #[test]
    fn a_counter_that_steps_does_not_give_a_huge_latency() {
        let mut schedule = Schedule::new(0, 100);
        assert_eq!(schedule.tick(99, 101).latency, 0);
    }

    #[test]
    fn a_deadline_in_the_past_is_missed() {
        let mut schedule = Schedule::new(0, 100);
        assert!(schedule.tick(100, 200).missed);
        assert_eq!(schedule.deadline(), 200);
        assert!(!schedule.tick(210, 250).missed);
    }

    proptest! {
        #[test]
        fn deadlines_do_not_drift(period in 1u64..1 << 32, late in prop::collection::vec(0u64..1 << 33, 1..50)) {
            let mut schedule = Schedule::new(7, period);
            for (n, late) in (1u64..).zip(late) {
                let due = 7 + n * period;
                prop_assert_eq!(schedule.deadline(), due);
                let tick = schedule.tick(due + late, due + late + 1);
                prop_assert_eq!(tick.latency, late);
                prop_assert_eq!(tick.missed, late + 1 >= period);
            }
        }
    }
}
