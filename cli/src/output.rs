//! What commands answer, for people and for programs, and the files that they write.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::Path;

use serde_json::Value;

use crate::failure::{Failure, Result};

/// An answer.
#[derive(Debug)]
pub struct Report {
    /// For people; ends with a line feed, or is empty.
    pub text: String,
    /// For programs: one object.
    pub json: Value,
}

/// Opens a file that is not there yet, or may be overwritten.
///
/// # Errors
/// [`ErrorKind::AlreadyExists`] when it may not, and what else the system says.
pub fn open_new(path: &Path, force: bool) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true);
    match force {
        true => options.create(true).truncate(true),
        false => options.create_new(true),
    };
    options.open(path)
}

/// What is said when a file could not be written; `another` is what `-o` takes: "file with -o FILE".
#[must_use]
pub fn not_written(path: &Path, error: &io::Error, another: &str) -> Failure {
    let remedy = match error.kind() {
        ErrorKind::AlreadyExists => {
            format!("Give another {another}, or --force to overwrite this one.")
        }
        _ => format!("Give another {another}."),
    };
    Failure::file("write", path, error, &remedy)
}

/// Writes a file that is not there yet, or may be overwritten.
///
/// # Errors
/// As [`not_written`] says it.
pub fn write_new(path: &Path, force: bool, text: &str, another: &str) -> Result<()> {
    open_new(path, force)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|error| not_written(path, &error, another))
}

/// A number with its thousands apart: 1,234,567.
#[must_use]
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index != 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Which side the cells of a column stand at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// Rows of equal length, the first with the headings, as aligned columns two spaces apart.
#[must_use]
pub fn table(sides: &[Side], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..sides.len()).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).zip(sides);
        let cells: Vec<String> = cells
            .map(|((cell, width), side)| match side {
                Side::Left => format!("{cell:<width$}"),
                Side::Right => format!("{cell:>width$}"),
            })
            .collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_apart() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (1_234_567, "1,234,567"),
            (u64::MAX, "18,446,744,073,709,551,615"),
        ] {
            assert_eq!(grouped(number), text);
        }
    }

    #[test]
    fn columns_are_aligned() {
        let rows = [["NAME", "N"], ["a", "1,000"], ["longer", "5"]];
        let rows = rows.map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(
            table(&[Side::Left, Side::Right], &rows),
            "NAME        N\na       1,000\nlonger      5\n"
        );
    }
}
