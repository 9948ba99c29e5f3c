//! The table of attacks by devices, each with what must become of it.
//!
//! Invariant: a row means the same to the cell and to the tests, since both take it from here; a row's number is its place
//! in [`all`]. What the cell cannot see – that memory of others is unchanged, that CPUs of others get no interrupt – the tests
//! look at from the root, behind all rows.

use crate::attack::Attack;
use crate::outcome::Outcome;

/// Rows of one kind; `"name": attack => expected, "why";`.
macro_rules! rows {
    ($($name:literal: $attack:expr => $expected:expr, $why:expr;)*) => {
        &[$($crate::attacks::Row { name: $name, attack: $attack, expected: $expected, why: $why },)*]
    };
}

mod configuration;
mod leaving;
mod memory;
mod messages;
mod table;

/// What must become of an attack, as far as the cell can see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// It works: it is the cell's own.
    Works,
    /// The device gets nothing, and changes nothing.
    Blocked,
    /// So many interrupts come to the cell, and none to anybody else.
    Interrupts(u32),
    /// No interrupt comes to anybody; an emulator that lets messages without remapping through, though it remaps, shows it
    /// wrong, so that it is not attempted there.
    SilentWhereBlocked,
    /// This is read.
    Reads(u32),
    /// The device does no more harm when the cell has ended.
    Ended,
    /// The device reaches nothing any more, not even what is the cell's.
    Quarantined,
}

/// A row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// What it is, in few words; unique.
    pub name: &'static str,
    /// What is attempted.
    pub attack: Attack,
    /// What must become of it.
    pub expected: Expected,
    /// Why it is attempted, or why it ends so.
    pub why: &'static str,
}

impl Row {
    /// Whether the cell goes on behind it, and nothing in an emulator stands against it.
    pub const fn is_plain(&self) -> bool {
        !matches!(
            self.expected,
            Expected::Ended | Expected::Quarantined | Expected::SilentWhereBlocked
        )
    }

    /// Whether it is an attack, and not what shows that the device works.
    pub fn is_attack(&self) -> bool {
        !matches!(self.expected, Expected::Works | Expected::Interrupts(1))
    }

    /// Whether the outcome is right.
    pub fn is_right(&self, outcome: Outcome) -> bool {
        match (self.expected, self.attack, outcome) {
            (Expected::Works, Attack::Read(_) | Attack::Write(_), Outcome::Same)
            | (Expected::Blocked, Attack::Read(_), Outcome::Nothing)
            | (Expected::Blocked, Attack::Write(_), Outcome::Done) => true,
            (Expected::Interrupts(expected), _, Outcome::Interrupts(count)) => expected == count,
            (Expected::SilentWhereBlocked, _, Outcome::Interrupts(count)) => count == 0,
            (Expected::Reads(expected), _, Outcome::Value(value)) => expected == value,
            _ => false,
        }
    }
}

/// All rows with their numbers.
pub fn all() -> impl Iterator<Item = (usize, &'static Row)> {
    [
        memory::ROWS,
        messages::ROWS,
        table::ROWS,
        configuration::ROWS,
        leaving::ROWS,
    ]
    .into_iter()
    .flatten()
    .enumerate()
}

/// The rows that the cell attempts one after the other; `blocks` says whether the machine blocks messages without remapping.
pub fn plain(blocks: bool) -> impl Iterator<Item = (usize, &'static Row)> {
    all().filter(move |(_, row)| {
        row.is_plain() || blocks && row.expected == Expected::SilentWhereBlocked
    })
}

#[cfg(test)]
mod tests;
