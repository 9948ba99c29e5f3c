//! Ranges of addresses and lists of numbers, as the kernel writes them.

use std::collections::BTreeSet;
use std::fmt;

use crate::problem::Problem;

/// The largest number that is taken for a CPU, node or memory block: Linux has no configuration with more.
const MAX_NUMBER: u32 = 1 << 20;

/// A range of addresses or ports: at least one, and none beyond 2^64 - 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span {
    first: u64,
    last: u64,
}

impl Span {
    /// From the first to the last address, both in it; none when they are the wrong way round.
    #[must_use]
    pub fn inclusive(first: u64, last: u64) -> Option<Self> {
        (first <= last).then_some(Self { first, last })
    }

    /// `size` addresses from `first` on; none when there are none, or when they would wrap.
    #[must_use]
    pub fn sized(first: u64, size: u64) -> Option<Self> {
        Self::inclusive(first, first.checked_add(size.checked_sub(1)?)?)
    }

    /// The first address in it.
    #[must_use]
    pub fn start(&self) -> u64 {
        self.first
    }

    /// The last address in it.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.last
    }

    /// How many addresses: bytes or ports. All 2^64 of them are told as one less.
    #[must_use]
    pub fn size(&self) -> u64 {
        (self.last - self.first).saturating_add(1)
    }

    /// What both have.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Option<Self> {
        Self::inclusive(self.first.max(other.first), self.last.min(other.last))
    }

    /// Whether it has all of `other`.
    #[must_use]
    pub fn contains(&self, other: &Self) -> bool {
        self.first <= other.first && other.last <= self.last
    }
}

impl fmt::Display for Span {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:#x}-{:#x}", self.first, self.last)
    }
}

/// Sorts spans, and makes one of those that overlap or touch.
#[must_use]
pub fn merged(mut spans: Vec<Span>) -> Vec<Span> {
    spans.sort_unstable();
    let mut merged: Vec<Span> = Vec::new();
    for span in spans {
        match merged.last_mut() {
            Some(before) if before.last.saturating_add(1) >= span.first => {
                before.last = before.last.max(span.last);
            }
            _ => merged.push(span),
        }
    }
    merged
}

/// Parses a list such as "0-3,5", which the kernel writes for CPUs and nodes.
///
/// # Errors
/// When it is something else.
pub fn number_list(path: &str, text: &str) -> Result<BTreeSet<u32>, Problem> {
    let mut numbers = BTreeSet::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        match (first.parse::<u32>(), last.parse::<u32>()) {
            (Ok(first), Ok(last)) if first <= last && last < MAX_NUMBER => {
                numbers.extend(first..=last);
            }
            _ => {
                let what = format!("{part:?} is not a range of numbers");
                return Err(Problem::garbage(path, what));
            }
        }
    }
    Ok(numbers)
}

/// Parses one decimal number with nothing but white space around it.
///
/// # Errors
/// When it is something else.
pub fn number<T: std::str::FromStr>(path: &str, text: &str) -> Result<T, Problem> {
    text.trim()
        .parse()
        .map_err(|_| Problem::garbage(path, format!("{:?} is not a number", text.trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_never_wrap() {
        assert_eq!(Span::sized(u64::MAX, 1).unwrap().last(), u64::MAX);
        assert_eq!(Span::sized(u64::MAX, 2), None);
        assert_eq!(Span::sized(5, 0), None);
        assert_eq!(Span::inclusive(2, 1), None);
        assert_eq!(Span::inclusive(0, u64::MAX).unwrap().size(), u64::MAX);
        assert_eq!(
            Span::sized(0x1000, 0x1000).unwrap().to_string(),
            "0x1000-0x1fff"
        );
    }

    #[test]
    fn spans_merge_where_they_touch() {
        let span = |first, last| Span::inclusive(first, last).unwrap();
        assert_eq!(
            merged(vec![
                span(8, 9),
                span(0, 3),
                span(4, 5),
                span(2, 4),
                span(u64::MAX, u64::MAX)
            ]),
            [span(0, 5), span(8, 9), span(u64::MAX, u64::MAX)]
        );
    }

    #[test]
    fn lists_are_ranges() {
        let list = |text| number_list("/x", text);
        assert_eq!(list("0-2,5\n").unwrap(), [0, 1, 2, 5].into());
        assert_eq!(list("\n").unwrap(), [].into());
        for text in ["x", "1-", "3-1", "0-4294967295", "-1", "1 2"] {
            assert!(list(text).is_err(), "{text}");
        }
        assert_eq!(
            list("0-9999999").unwrap_err().to_string(),
            "/x: \"0-9999999\" is not a range of numbers"
        );
    }
}
