//! What came of asking.

use std::fmt;
use std::time::Duration;

/// Questions, and what became of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoundTrips {
    /// Questions asked.
    pub sent: u64,
    /// Right answers, each to a question that had none so far.
    pub received: u64,
    /// Answers that were wrong in some part.
    pub wrong: u64,
    /// Right answers that came again.
    pub repeated: u64,
    /// How long each right answer took, from before the question to behind the answer, sorted.
    times: Vec<Duration>,
}

impl RoundTrips {
    pub(crate) fn arrived(&mut self, time: Duration) {
        self.received += 1;
        let at = self.times.partition_point(|other| *other <= time);
        self.times.insert(at, time);
    }

    /// Questions without an answer.
    pub fn lost(&self) -> u64 {
        self.sent - self.received
    }

    /// Whether each question has one answer, and nothing was wrong.
    pub fn is_perfect(&self) -> bool {
        self.sent > 0 && self.lost() == 0 && self.wrong == 0 && self.repeated == 0
    }

    /// Adds what came of other questions.
    pub fn add(&mut self, other: &Self) {
        self.sent += other.sent;
        self.received += other.received;
        self.wrong += other.wrong;
        self.repeated += other.repeated;
        self.times.extend(&other.times);
        self.times.sort_unstable();
    }

    /// The shortest time.
    pub fn min(&self) -> Option<Duration> {
        self.times.first().copied()
    }

    /// The longest time.
    pub fn max(&self) -> Option<Duration> {
        self.times.last().copied()
    }

    /// The average.
    pub fn average(&self) -> Option<Duration> {
        let sum: Duration = self.times.iter().sum();
        let count = u32::try_from(self.times.len()).ok()?;
        (count > 0).then(|| sum / count)
    }

    /// The time that so many of a hundred answers did not exceed.
    pub fn percentile(&self, percent: usize) -> Option<Duration> {
        let rank = (self.times.len() * percent).div_ceil(100).max(1);
        self.times.get(rank - 1).copied()
    }
}

impl fmt::Display for RoundTrips {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} answered", self.received, self.sent)?;
        for (count, what) in [(self.wrong, "wrong"), (self.repeated, "repeated")] {
            if count > 0 {
                write!(f, ", {count} {what}")?;
            }
        }
        let times = [
            ("min", self.min()),
            ("avg", self.average()),
            ("p99", self.percentile(99)),
            ("max", self.max()),
        ];
        for (index, (name, time)) in times.into_iter().enumerate() {
            if let Some(time) = time {
                let comma = if index == 0 { ":" } else { "," };
                write!(f, "{comma} {name} {} us", time.as_micros())?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trips(microseconds: impl IntoIterator<Item = u64>) -> RoundTrips {
        let mut trips = RoundTrips::default();
        for time in microseconds {
            trips.sent += 1;
            trips.arrived(Duration::from_micros(time));
        }
        trips
    }

    #[test]
    fn times_are_sorted_and_summed_up() {
        let trips = trips((1..=200).rev());
        let times = [
            trips.min(),
            trips.percentile(50),
            trips.percentile(99),
            trips.max(),
            trips.average(),
        ];
        let microseconds = times.map(|time| time.unwrap().as_nanos());
        assert_eq!(microseconds, [1_000, 100_000, 198_000, 200_000, 100_500]);
        assert!(trips.is_perfect());
        assert_eq!(
            trips.to_string(),
            "200 of 200 answered: min 1 us, avg 100 us, p99 198 us, max 200 us"
        );
    }

    #[test]
    fn nothing_is_no_success() {
        let nothing = RoundTrips::default();
        assert!(!nothing.is_perfect());
        assert_eq!((nothing.min(), nothing.percentile(99)), (None, None));
        assert_eq!(nothing.average(), None);
        assert_eq!(nothing.to_string(), "0 of 0 answered");
    }

    #[test]
    fn what_is_lost_or_wrong_is_told() {
        let mut trips = trips([5]);
        trips.sent = 3;
        trips.wrong = 1;
        assert_eq!(trips.lost(), 2);
        assert!(!trips.is_perfect());
        assert!(trips.to_string().starts_with("1 of 3 answered, 1 wrong:"));
        let mut sum = self::trips([1, 9]);
        sum.add(&trips);
        assert_eq!((sum.sent, sum.received, sum.wrong), (5, 3, 1));
        assert_eq!(sum.percentile(50), Some(Duration::from_micros(5)));
    }
}
