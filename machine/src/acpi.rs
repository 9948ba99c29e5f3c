//! The firmware's tables (ACPI specification, "ACPI System Description Tables"), as Linux shows them.
//!
//! Invariant: a table is read no further than the length it declares, and only after its checksum was found right.

pub mod dmar;
pub mod fadt;
pub mod madt;
pub mod mcfg;
mod records;

#[cfg(test)]
mod tests;

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use crate::problem::{Problem, optional};
use crate::source::Source;

pub use dmar::Dmar;
pub use fadt::Fadt;
pub use madt::Madt;
pub use mcfg::Mcfg;

const DIRECTORY: &str = "/sys/firmware/acpi/tables";

/// Length of what every table begins with, in bytes.
const HEADER_SIZE: usize = 36;

/// What every table begins with (ACPI specification, "System Description Table Header").
#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    signature: [u8; 4],
    length: U32,
    revision: u8,
    checksum: u8,
    oem_id: [u8; 6],
    oem_table_id: U64,
    oem_revision: U32,
    creator_id: U32,
    creator_revision: U32,
}

const _: () = assert!(size_of::<Header>() == HEADER_SIZE);

/// A table whose header was found right.
#[derive(Clone, Copy, Debug)]
pub struct Table<'a> {
    signature: &'a str,
    /// Everything, the header included.
    bytes: &'a [u8],
}

impl<'a> Table<'a> {
    /// Checks signature, length and checksum of a table.
    ///
    /// # Errors
    /// When one of them is wrong.
    pub fn new(signature: &'a str, bytes: &'a [u8]) -> Result<Self, Problem> {
        let garbage = |what: String| Err(Problem::garbage(subject(signature), what));
        let Ok((header, _)) = Header::ref_from_prefix(bytes) else {
            return garbage(format!("{} bytes are no table", bytes.len()));
        };
        if header.signature != *signature.as_bytes() {
            let found = header.signature.escape_ascii();
            return garbage(format!("its signature is \"{found}\""));
        }
        let length = usize::try_from(header.length.get()).unwrap_or(usize::MAX);
        let Some(bytes) = bytes.get(..length).filter(|_| length >= HEADER_SIZE) else {
            let have = bytes.len();
            return garbage(format!("it claims {length} bytes, and has {have}"));
        };
        let sum = bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
        match sum {
            0 => Ok(Self { signature, bytes }),
            _ => garbage(format!("its bytes add up to {sum:#x} instead of 0")),
        }
    }

    /// A structure at an offset from the table's start.
    fn at<T: FromBytes + Immutable + KnownLayout + Unaligned>(
        &self,
        offset: usize,
    ) -> Result<&'a T, Problem> {
        self.find(offset)
            .ok_or_else(|| self.garbage(format!("it ends within the field at offset {offset}")))
    }

    /// The same; none where the table is too short for it.
    fn find<T: FromBytes + Immutable + KnownLayout + Unaligned>(
        &self,
        offset: usize,
    ) -> Option<&'a T> {
        let (value, _) = T::ref_from_prefix(self.bytes.get(offset..)?).ok()?;
        Some(value)
    }

    /// What is wrong with the table's content.
    fn garbage(&self, what: impl Into<String>) -> Problem {
        Problem::garbage(subject(self.signature), what)
    }
}

fn subject(signature: &str) -> String {
    format!("ACPI table {signature}")
}

/// The bytes of a table, unchecked; none when the machine has no such table.
fn read(source: &Source, signature: &str) -> Result<Option<Vec<u8>>, Problem> {
    optional(source.read(&format!("{DIRECTORY}/{signature}")))
}

/// All tables that are read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// Interrupt controllers; none without this table.
    pub madt: Option<Madt>,
    /// Configuration space of PCI in memory.
    pub mcfg: Option<Mcfg>,
    /// DMA and interrupt remapping of Intel's.
    pub dmar: Option<Dmar>,
    /// Whether there is a table of AMD's IOMMU.
    pub has_ivrs: bool,
    /// Registers of power management.
    pub fadt: Option<Fadt>,
}

impl Tables {
    /// Reads all of them; what is wrong with one is added to `problems`, and does not keep others from being read.
    pub fn read(source: &Source, problems: &mut Vec<Problem>) -> Self {
        Self {
            madt: parsed(source, "APIC", Madt::parse, problems),
            mcfg: parsed(source, "MCFG", Mcfg::parse, problems),
            dmar: parsed(source, "DMAR", Dmar::parse, problems),
            has_ivrs: source.exists(&format!("{DIRECTORY}/IVRS")),
            fadt: parsed(source, "FACP", Fadt::parse, problems),
        }
    }
}

fn parsed<T>(
    source: &Source,
    signature: &str,
    parse: impl Fn(&[u8]) -> Result<T, Problem>,
    problems: &mut Vec<Problem>,
) -> Option<T> {
    let bytes = match read(source, signature) {
        Ok(bytes) => bytes?,
        Err(problem) => {
            problems.push(problem);
            return None;
        }
    };
    match parse(&bytes) {
        Ok(table) => Some(table),
        Err(problem) => {
            problems.push(problem);
            None
        }
    }
}
