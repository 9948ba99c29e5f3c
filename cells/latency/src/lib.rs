//! What the `latency` cell keeps of its ticks, in memory that the root reads.
//!
//! Invariant: the root sees the signature only when everything else is in its first state, and a tick in `ticks_done`
//! only when it is in all the other figures.
#![no_std]
#![forbid(unsafe_code)]

use gaol_abi::latency::{CLASSES, Results, SIGNATURE};
use gaol_cell::field;
use gaol_cell::frequency::Frequency;
use gaol_cell::schedule::Tick;
use gaol_cell::shared::Window;

/// What a run is to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Ticks to measure.
    pub ticks: u64,
    /// Period in cycles of the time stamp counter.
    pub period_cycles: u64,
    /// Cycles that one class of the histogram spans; at least 1.
    pub class_cycles: u64,
    /// Frequency of the time stamp counter.
    pub tsc: Frequency,
}

/// The figures of all ticks so far; the root's copy is in the [`Window`].
#[derive(Debug)]
pub struct Recorder {
    window: Window<Results>,
    plan: Plan,
    /// Ticks measured.
    pub ticks: u64,
    /// Shortest time from expiry to handler, in cycles.
    pub min: u64,
    /// Longest time from expiry to handler, in cycles.
    pub max: u64,
    /// Sum of all times, in cycles.
    pub sum: u64,
    /// Ticks whose deadline had passed before the timer was armed.
    pub missed: u64,
}

impl Recorder {
    /// Puts the results into their first state.
    ///
    /// # Panics
    /// When the plan has classes of 0 cycles.
    pub fn new(mut window: Window<Results>, plan: Plan) -> Self {
        assert!(
            plan.class_cycles > 0,
            "a class of the histogram spans at least 1 cycle"
        );
        window.write(field!(Results, signature), [0; 8]);
        window.write(field!(Results, finished), 0);
        window.write(field!(Results, ticks_done), 0);
        window.write(field!(Results, ticks), plan.ticks);
        window.write(field!(Results, period_cycles), plan.period_cycles);
        window.write(field!(Results, tsc_khz), plan.tsc.khz().into());
        window.write(field!(Results, min_cycles), u64::MAX);
        window.write(field!(Results, max_cycles), 0);
        window.write(field!(Results, sum_cycles), 0);
        window.write(field!(Results, class_cycles), plan.class_cycles);
        window.write(field!(Results, overflow), 0);
        window.write(field!(Results, missed), 0);
        for class in 0..CLASSES {
            window.write(field!(Results, histogram).element(class), 0);
        }
        window.write(field!(Results, signature), SIGNATURE);
        Self {
            window,
            plan,
            ticks: 0,
            min: u64::MAX,
            max: 0,
            sum: 0,
            missed: 0,
        }
    }

    /// Whether ticks are left to measure.
    pub fn wants_more(&self) -> bool {
        self.ticks < self.plan.ticks
    }

    /// Adds a tick.
    pub fn record(&mut self, tick: Tick) {
        let window = &mut self.window;
        self.ticks += 1;
        self.min = self.min.min(tick.latency);
        self.max = self.max.max(tick.latency);
        self.sum = self.sum.saturating_add(tick.latency);
        self.missed += u64::from(tick.missed);
        window.write(field!(Results, min_cycles), self.min);
        window.write(field!(Results, max_cycles), self.max);
        window.write(field!(Results, sum_cycles), self.sum);
        window.write(field!(Results, missed), self.missed);

        let class = usize::try_from(tick.latency / self.plan.class_cycles).unwrap_or(CLASSES);
        let counter = if class < CLASSES {
            field!(Results, histogram).element(class)
        } else {
            field!(Results, overflow)
        };
        let count = window.read(counter);
        window.write(counter, count + 1);

        window.write(field!(Results, ticks_done), self.ticks);
    }

    /// Tells the root that no tick follows.
    pub fn finish(&mut self) {
        self.window.write(field!(Results, finished), 1);
    }

    /// The figures as the root sees them.
    pub fn results(&self) -> Results {
        self.window.snapshot()
    }

    /// Average time from expiry to handler, in tenths of a cycle, rounded down.
    pub fn average_tenths(&self) -> u64 {
        let tenths = u128::from(self.sum) * 10 / u128::from(self.ticks.max(1));
        u64::try_from(tenths).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromZeros;

    extern crate std;
    use std::boxed::Box;

    const PLAN: Plan = Plan {
        ticks: 5,
        period_cycles: 25_000,
        class_cycles: 4,
        tsc: Frequency::from_khz(50_000).unwrap(),
    };

    fn recorder(plan: Plan) -> Recorder {
        let garbage = Results {
            histogram: [99; CLASSES],
            finished: 1,
            overflow: 99,
            ..Results::new_zeroed()
        };
        Recorder::new(Window::over(Box::leak(Box::new(garbage))), plan)
    }

    #[test]
    fn the_first_state_is_published_by_the_signature() {
        let recorder = recorder(PLAN);
        assert!(recorder.wants_more());
        let expected = Results {
            signature: SIGNATURE,
            ticks: 5,
            period_cycles: 25_000,
            tsc_khz: 50_000,
            min_cycles: u64::MAX,
            class_cycles: 4,
            ..Results::new_zeroed()
        };
        assert_eq!(recorder.results(), expected);
        assert_eq!(recorder.average_tenths(), 0);
    }

    #[test]
    fn ticks_are_in_all_figures() {
        let mut recorder = recorder(PLAN);
        for latency in [10, 3, 4 * 256 - 1, 4 * 256, 30_000] {
            assert!(recorder.wants_more());
            recorder.record(Tick {
                latency,
                missed: latency > PLAN.period_cycles,
            });
        }
        assert!(!recorder.wants_more());

        let results = recorder.results();
        assert_eq!((results.min_cycles, results.max_cycles), (3, 30_000));
        assert_eq!(results.sum_cycles, 10 + 3 + 1023 + 1024 + 30_000);
        assert_eq!((results.ticks_done, results.missed), (5, 1));
        let mut histogram = [0; CLASSES];
        (histogram[0], histogram[2], histogram[255]) = (1, 1, 1);
        assert_eq!((results.histogram, results.overflow), (histogram, 2));
        assert_eq!(recorder.average_tenths(), 64_120);

        assert_eq!(results.finished, 0);
        recorder.finish();
        assert_eq!(recorder.results().finished, 1);
    }

    #[test]
    #[should_panic(expected = "at least 1 cycle")]
    fn classes_without_width_are_refused() {
        recorder(Plan {
            class_cycles: 0,
            ..PLAN
        });
    }
}
