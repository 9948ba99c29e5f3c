//! Frequencies, and the way between durations and counts of cycles.
//!
//! Invariant: the arithmetic is exact but for one rounding to the nearest cycle, and saturates instead of wrapping.
#![forbid(unsafe_code)]

use core::fmt;
use core::time::Duration;

/// The frequency of a counter, in kHz; never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Frequency {
    khz: u32,
}

impl Frequency {
    /// A frequency; `None` for 0, which is how an unknown one is written down.
    pub const fn from_khz(khz: u32) -> Option<Self> {
        match khz {
            0 => None,
            khz => Some(Self { khz }),
        }
    }

    /// In kHz.
    pub const fn khz(self) -> u32 {
        self.khz
    }

    /// Cycles in `duration`.
    pub fn cycles(self, duration: Duration) -> u64 {
        scale(duration.as_nanos(), self.khz.into(), 1_000_000)
    }

    /// The duration of `cycles`.
    pub fn duration(self, cycles: u64) -> Duration {
        Duration::from_nanos(scale(cycles.into(), 1_000_000, self.khz.into()))
    }

    /// Cycles of this counter while `other` makes `cycles`.
    pub fn convert(self, cycles: u64, other: Frequency) -> u64 {
        scale(cycles.into(), self.khz.into(), other.khz.into())
    }

    /// The frequency of a counter that made `cycles` while this one made `reference`. `None` when that is less than
    /// 1 kHz, or more than can be written down.
    pub fn measured(self, cycles: u64, reference: u64) -> Option<Self> {
        if reference == 0 {
            return None;
        }
        let khz = scale(cycles.into(), self.khz.into(), reference.into());
        u32::try_from(khz).ok().and_then(Self::from_khz)
    }
}

impl fmt::Display for Frequency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} kHz", self.khz)
    }
}

fn scale(value: u128, numerator: u128, denominator: u128) -> u64 {
    let scaled = (value.saturating_mul(numerator)).saturating_add(denominator / 2) / denominator;
    u64::try_from(scaled).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn khz(khz: u32) -> Frequency {
        Frequency::from_khz(khz).unwrap()
    }

    #[test]
    fn an_unknown_frequency_is_none() {
        assert_eq!(Frequency::from_khz(0), None);
    }

    #[test]
    fn durations_become_cycles() {
        assert_eq!(khz(50_000).cycles(Duration::from_micros(500)), 25_000);
        assert_eq!(khz(2_893_202).cycles(Duration::from_secs(1)), 2_893_202_000);
        assert_eq!(khz(1_500_000).cycles(Duration::from_nanos(1)), 2);
        assert_eq!(khz(u32::MAX).cycles(Duration::MAX), u64::MAX);
    }

    #[test]
    fn counters_are_measured_against_each_other() {
        assert_eq!(
            khz(50_000).measured(1_000, 500),
            Frequency::from_khz(100_000)
        );
        assert_eq!(khz(50_000).measured(0, 500), None);
        assert_eq!(khz(50_000).measured(1, 0), None);
        assert_eq!(khz(50_000).measured(u64::MAX, 1), None);
        assert_eq!(khz(50_000).convert(200, khz(100_000)), 100);
    }

    proptest! {
        // The largest rate and twice this time are more cycles than 64 bits hold: there the arithmetic saturates.
        #[test]
        fn there_and_back_is_less_than_a_cycle_off(rate in 1u32.., nanoseconds in 0u64..1 << 51) {
            let duration = Duration::from_nanos(nanoseconds);
            let back = khz(rate).duration(khz(rate).cycles(duration));
            let cycle = Duration::from_nanos(1_000_000 / u64::from(rate) + 1);
            prop_assert!(back.abs_diff(duration) <= cycle);
        }
    }
}
