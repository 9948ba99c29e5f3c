//! The table of attempted violations, each with what must become of it.
//!
//! Invariant: a row means the same to the cell and to the tests, since both take it from here; a row's number is its place
//! in [`all`].

use crate::attempt::{Attempt, Place, Use};
use crate::outcome::Outcome;

/// Rows of one kind; `"name": attempt => expected, "why";`, or `"name": attempt => expected => expected on AMD's, "why";`.
macro_rules! rows {
    ($($name:literal: $attempt:expr => $expected:expr $(=> $on_amd:expr)?, $why:expr;)*) => {
        &[$($crate::violations::Violation {
            name: $name,
            attempt: $attempt,
            expected: $expected,
            on_amd: rows!(@other $($on_amd)?),
            why: $why,
        },)*]
    };
    (@other $expected:expr) => { Some($expected) };
    (@other) => { None };
}

mod endings;
mod instructions;
mod interrupts;
mod memory;
mod ports;
mod registers;

/// Whose processor it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vendor {
    /// With VMX.
    Intel,
    /// With SVM.
    Amd,
}

impl Vendor {
    /// The vendor that CPUID leaf 0 names in EBX.
    pub const fn of_cpuid(ebx: u32) -> Self {
        match &ebx.to_le_bytes() {
            b"Auth" | b"Hygo" => Self::Amd,
            _ => Self::Intel,
        }
    }
}

/// What must become of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// An exception with this vector, and nothing else.
    Exception(u8),
    /// All ones, as where nobody answers.
    Ones,
    /// This number.
    Value(u64),
    /// Whatever number: it is the cell's to know.
    Any,
    /// It is taken and ignored.
    NoEffect,
    /// It goes through and concerns nobody but the cell.
    Permitted,
    /// The hypervisor's answer is this error number.
    Refused(i32),
    /// The CPU is stopped, and what it did is on record.
    Stopped,
    /// The CPU never comes to an end with it, and is ended by force all the same.
    Endless,
}

/// #UD.
const INVALID_OPCODE: Expected = Expected::Exception(6);
/// #GP.
const GENERAL_PROTECTION: Expected = Expected::Exception(13);
/// #PF.
const PAGE_FAULT: Expected = Expected::Exception(14);

/// A row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Violation {
    /// What it is, in few words; unique.
    pub name: &'static str,
    /// What is attempted.
    pub attempt: Attempt,
    /// What must become of it.
    pub expected: Expected,
    /// The same on AMD's processors, where it is something else.
    pub on_amd: Option<Expected>,
    /// Why it is attempted, or why it ends so.
    pub why: &'static str,
}

impl Violation {
    /// As it is on the processors of a vendor.
    const fn of(self, vendor: Vendor) -> Self {
        match (vendor, self.on_amd) {
            (Vendor::Amd, Some(expected)) => Self { expected, ..self },
            _ => self,
        }
    }

    /// Whether the cell goes on behind it. The others are attempted by CPUs that have nothing else to do, in a cell whose
    /// ports are not ignored.
    pub const fn is_survived(&self) -> bool {
        !matches!(self.expected, Expected::Stopped | Expected::Endless)
    }

    /// Whether the outcome of an attempt that was survived is right.
    pub fn is_right(&self, outcome: Outcome) -> bool {
        match (self.expected, outcome) {
            (Expected::Exception(expected), Outcome::Exception(vector)) => expected == vector,
            (Expected::Ones, Outcome::Value(value)) => Some(value) == self.ones(),
            (Expected::Value(expected), Outcome::Value(value)) => expected == value,
            (Expected::Any, Outcome::Value(_))
            | (Expected::NoEffect | Expected::Permitted, Outcome::Done) => true,
            (Expected::Refused(expected), Outcome::Refused(errno)) => expected == errno,
            _ => false,
        }
    }

    /// What a read of its width gives where nobody answers.
    const fn ones(&self) -> Option<u64> {
        match self.attempt {
            Attempt::In(_, width)
            | Attempt::ReadPci(_, width)
            | Attempt::Memory(_, Use::Read(width)) => Some(width.ones()),
            Attempt::ReadMsr(_) => Some(u64::MAX),
            _ => None,
        }
    }

    /// Whether the attempt reaches memory of the cell that the root watches.
    pub const fn touches_communication(&self) -> bool {
        matches!(self.attempt, Attempt::Memory(Place::Communication(_), _))
    }
}

/// All rows with their numbers, as they are on the processors of a vendor.
pub fn all(vendor: Vendor) -> impl Iterator<Item = (usize, Violation)> {
    [
        registers::ROWS,
        ports::ROWS,
        instructions::ROWS,
        interrupts::ROWS,
        memory::ROWS,
        endings::ROWS,
    ]
    .into_iter()
    .flatten()
    .map(move |row| row.of(vendor))
    .enumerate()
}

/// The rows behind which the cell goes on.
pub fn survived(vendor: Vendor) -> impl Iterator<Item = (usize, Violation)> {
    all(vendor).filter(|(_, row)| row.is_survived())
}

/// The rows that end their CPU so.
pub fn ending(vendor: Vendor, expected: Expected) -> impl Iterator<Item = (usize, Violation)> {
    all(vendor).filter(move |(_, row)| !row.is_survived() && row.expected == expected)
}

#[cfg(test)]
mod tests;
