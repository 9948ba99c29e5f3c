//! What became of an attempt, and how the cell tells it.
//!
//! A line `hostile: row N OUTCOME` has the outcome of row N of the table; `hostile: try N` comes before an attempt that is
//! expected to end the CPU. No line is longer than what the console takes in one go, and all CPUs of a cell take turns.

use core::fmt;

/// What became of an attempt of a CPU that goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It went through, and there is nothing to tell.
    Done,
    /// It went through and gave a number.
    Value(u64),
    /// It raised an exception with this vector.
    Exception(u8),
    /// The hypervisor refused with this error number.
    Refused(i32),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done => f.write_str("done"),
            Self::Value(value) => write!(f, "value {value:#x}"),
            Self::Exception(vector) => write!(f, "exception {vector}"),
            Self::Refused(errno) => write!(f, "refused {errno}"),
        }
    }
}

impl Outcome {
    /// Reads what [`fmt::Display`] writes.
    pub fn parse(text: &str) -> Option<Self> {
        if text == "done" {
            return Some(Self::Done);
        }
        let (kind, number) = text.split_once(' ')?;
        match kind {
            "value" => u64::from_str_radix(number.strip_prefix("0x")?, 16)
                .ok()
                .map(Self::Value),
            "exception" => number.parse().ok().map(Self::Exception),
            "refused" => number.parse().ok().map(Self::Refused),
            _ => None,
        }
    }
}

/// What begins each line of the cell.
pub const PREFIX: &str = "hostile: ";

/// A line about a row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// The attempt of this row comes next.
    Try(usize),
    /// The attempt of this row is over.
    Row(usize, Outcome),
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Try(row) => write!(f, "{PREFIX}try {row}"),
            Self::Row(row, outcome) => write!(f, "{PREFIX}row {row} {outcome}"),
        }
    }
}

impl Line {
    /// Reads what [`fmt::Display`] writes; `None` for any other line.
    pub fn parse(text: &str) -> Option<Self> {
        let (kind, rest) = text.trim().strip_prefix(PREFIX)?.split_once(' ')?;
        match kind {
            "try" => rest.parse().ok().map(Self::Try),
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
            Line::Try(0),
            Line::Try(171),
            Line::Row(3, Outcome::Done),
            Line::Row(4, Outcome::Value(u64::MAX)),
            Line::Row(5, Outcome::Value(0)),
            Line::Row(6, Outcome::Exception(13)),
            Line::Row(7, Outcome::Refused(38)),
        ] {
            assert_eq!(Line::parse(&line.to_string()), Some(line));
        }
        for text in [
            "",
            "hostile: ",
            "hostile: row 1",
            "hostile: row 1 perhaps",
            "hostile: row x done",
            "hostile: try",
            "row 1 done",
            "hostile: row 1 value 12",
        ] {
            assert_eq!(Line::parse(text), None, "{text}");
        }
    }
}
