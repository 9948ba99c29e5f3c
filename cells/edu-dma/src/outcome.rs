//! What became of an attack, and how the cell tells it.
//!
//! A line `edu-dma: row N OUTCOME` has the outcome of row N of the table; `edu-dma: left N` says that the device of row N is
//! left to itself now. No line is longer than what the console takes in one go.

use core::fmt;

/// What became of an attack, as far as the cell can see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is over, and there is nothing to tell.
    Done,
    /// The device has the data that is there.
    Same,
    /// The device has nothing: zeros, ones, or what it had before.
    Nothing,
    /// The device has other data, which begins so.
    Leaked(u64),
    /// So many interrupts came to the cell.
    Interrupts(u32),
    /// This number was read.
    Value(u32),
    /// The device did not come to an end.
    Stuck,
    /// The cell does not have what it takes.
    Missing,
}

/// The words, but for a number.
const WORDS: [(&str, Outcome); 5] = [
    ("done", Outcome::Done),
    ("same", Outcome::Same),
    ("nothing", Outcome::Nothing),
    ("stuck", Outcome::Stuck),
    ("missing", Outcome::Missing),
];

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Leaked(word) => write!(f, "leaked {word:x}"),
            Self::Interrupts(count) => write!(f, "interrupts {count:x}"),
            Self::Value(value) => write!(f, "value {value:x}"),
            plain => {
                let word = WORDS.iter().find(|(_, outcome)| outcome == plain);
                f.write_str(word.map_or("", |(word, _)| word))
            }
        }
    }
}

impl Outcome {
    /// Reads what [`fmt::Display`] writes.
    pub fn parse(text: &str) -> Option<Self> {
        if let Some((_, outcome)) = WORDS.iter().find(|(word, _)| *word == text) {
            return Some(*outcome);
        }
        let (kind, number) = text.split_once(' ')?;
        let number = u64::from_str_radix(number, 16).ok()?;
        match kind {
            "leaked" => Some(Self::Leaked(number)),
            "interrupts" => number.try_into().ok().map(Self::Interrupts),
            "value" => number.try_into().ok().map(Self::Value),
            _ => None,
        }
    }
}

/// What begins each line of the cell.
pub const PREFIX: &str = "edu-dma: ";

/// A line about a row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// The attack of this row is over.
    Row(usize, Outcome),
    /// The device of this row is left to itself.
    Left(usize),
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Row(row, outcome) => write!(f, "{PREFIX}row {row} {outcome}"),
            Self::Left(row) => write!(f, "{PREFIX}left {row}"),
        }
    }
}

impl Line {
    /// Reads what [`fmt::Display`] writes; `None` for any other line.
    pub fn parse(text: &str) -> Option<Self> {
        let (kind, rest) = text.trim().strip_prefix(PREFIX)?.split_once(' ')?;
        match kind {
            "left" => rest.parse().ok().map(Self::Left),
            "row" => {
                let (row, outcome) = rest.split_once(' ')?;
                Some(Self::Row(row.parse().ok()?, Outcome::parse(outcome)?))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    extern crate std;
    use std::string::ToString;

    #[test]
    fn lines_are_read_as_they_are_written() {
        for line in [
            Line::Left(3),
            Line::Row(0, Outcome::Done),
            Line::Row(1, Outcome::Same),
            Line::Row(2, Outcome::Nothing),
            Line::Row(3, Outcome::Leaked(u64::MAX)),
            Line::Row(4, Outcome::Interrupts(17)),
            Line::Row(5, Outcome::Value(0x0100_00ed)),
            Line::Row(6, Outcome::Stuck),
            Line::Row(77, Outcome::Missing),
        ] {
            let text = line.to_string();
            assert_eq!(Line::parse(&text), Some(line));
            assert!(text.len() < 60, "{text}");
        }
        for text in [
            "",
            "edu-dma: row 1",
            "edu-dma: row 1 perhaps",
            "edu-dma: row x done",
            "edu-dma: row 1 value 1ffffffff",
            "row 1 done",
        ] {
            assert_eq!(Line::parse(text), None, "{text}");
        }
    }
}
