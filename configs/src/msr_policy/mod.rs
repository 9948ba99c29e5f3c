//! What becomes of each model-specific register when a guest touches it: the one table.
//!
//! The hypervisor fills the MSR bitmaps of cells and root from it and answers the exits by it; the ledger takes from it
//! what a configuration can give away; `docs/registers.md` is written from it. Cells have what is listed for them and
//! nothing else; the root has what is left over. Numbers and names: SDM volume 4, "Model-Specific Registers (MSRs)".
//!
//! Invariant: rows are in ascending order and do not overlap; what a cell may write is put back when its CPU changes hands,
//! or is no state at all.

mod rows;

pub use rows::{ROWS, TEXTS};

/// What RDMSR does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// The processor answers, without an exit.
    Pass,
    /// The hypervisor answers.
    Virtual,
    /// #GP.
    Refuse,
}

/// What WRMSR does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// The processor does it, without an exit.
    Pass,
    /// As [`Self::Pass`]; the register is the cell's own and is set to 0 when the CPU changes hands and when the cell starts.
    Own,
    /// As [`Self::Pass`]; VM entries and exits load and save the register, or a reset of the APIC sets it.
    Switched,
    /// The hypervisor looks at the value, and writes it if it is harmless; else #GP.
    Checked,
    /// Only these bits reach the register; the others stay.
    Masked(u64),
    /// The value is kept for the guest to read back; the register stays.
    Virtual,
    /// No effect. Of the root it is counted.
    Ignore,
    /// #GP.
    Refuse,
}

impl Write {
    /// Whether the write needs no exit.
    #[must_use]
    pub const fn passes(self) -> bool {
        matches!(self, Self::Pass | Self::Own | Self::Switched)
    }
}

/// What RDMSR and WRMSR of one guest do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// RDMSR.
    pub read: Read,
    /// WRMSR.
    pub write: Write,
}

const fn rule(read: Read, write: Write) -> Rule {
    Rule { read, write }
}

impl Rule {
    /// Neither read nor written: #GP.
    pub const REFUSED: Self = rule(Read::Refuse, Write::Refuse);
    /// Read and written without an exit.
    pub const PASS: Self = rule(Read::Pass, Write::Pass);
    const READ: Self = rule(Read::Pass, Write::Refuse);
    const OWN: Self = rule(Read::Pass, Write::Own);
    const SWITCHED: Self = rule(Read::Pass, Write::Switched);
    const CHECKED: Self = rule(Read::Pass, Write::Checked);
    const IGNORED: Self = rule(Read::Pass, Write::Ignore);
    const VIRTUAL: Self = rule(Read::Virtual, Write::Virtual);
    const LOCKED: Self = rule(Read::Virtual, Write::Refuse);
}

/// What a configuration can give of a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Grant {
    /// To nobody, the root included: the hypervisor decides on it in every cell.
    Never,
    /// Nothing to a cell.
    Nothing,
    /// Reading to a cell.
    Reads,
    /// Reading and writing to a cell.
    All,
}

/// Registers that are treated alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// The first register.
    pub first: u32,
    /// The last one.
    pub last: u32,
    /// In a cell.
    pub cell: Rule,
    /// In the root.
    pub root: Rule,
    /// What a configuration can give away.
    pub grant: Grant,
}

/// Registers that are in no row.
const OTHERS: Row = Row {
    first: 0,
    last: u32::MAX,
    cell: Rule::REFUSED,
    root: Rule::PASS,
    grant: Grant::All,
};

/// What is decided for a register. For one that is in no row: the root has it, a cell only when it is given.
#[must_use]
pub fn policy(register: u32) -> &'static Row {
    let behind = ROWS.partition_point(|row| row.first <= register);
    match behind.checked_sub(1).and_then(|index| ROWS.get(index)) {
        Some(row) if register <= row.last => row,
        _ => &OTHERS,
    }
}

/// Registers that are a cell's own and hold 0 when it starts.
pub fn own_registers() -> impl Iterator<Item = u32> {
    let own = ROWS.iter().filter(|row| row.cell.write == Write::Own);
    own.flat_map(|row| row.first..=row.last)
}

#[cfg(test)]
mod tests;
