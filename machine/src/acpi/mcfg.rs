//! Configuration space of PCI in memory: the table MCFG.
//!
//! PCI Firmware specification, "MCFG Table Description".

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::Table;
use crate::problem::Problem;
use crate::span::Span;

/// Offset of the first entry, in bytes.
const ENTRIES: usize = 44;
/// Configuration space of one bus, in bytes: 32 devices, 8 functions, 4 KiB each.
const BUS_SIZE: u64 = 1 << 20;

/// The configuration space of some buses of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ecam {
    /// PCI segment.
    pub segment: u16,
    /// The first bus.
    pub first_bus: u8,
    /// The last bus.
    pub last_bus: u8,
    /// Where the configuration space of these buses is: 1 MiB each.
    pub span: Span,
}

impl Ecam {
    /// Where the configuration space of bus 0 is or would be: what the table and configurations call its base.
    #[must_use]
    pub fn base(&self) -> u64 {
        let before = u64::from(self.first_bus) * BUS_SIZE;
        self.span.start().wrapping_sub(before)
    }
}

/// What the table says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mcfg {
    /// The regions, in the order of the table.
    pub regions: Vec<Ecam>,
}

#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Entry {
    base: U64,
    segment: U16,
    first_bus: u8,
    last_bus: u8,
    reserved: U32,
}

impl Mcfg {
    /// Reads a table.
    ///
    /// # Errors
    /// When it makes no sense.
    pub fn parse(bytes: &[u8]) -> Result<Self, Problem> {
        let table = Table::new("MCFG", bytes)?;
        let entries = table.bytes.get(ENTRIES..).unwrap_or_default();
        let (entries, rest) = match <[Entry]>::ref_from_prefix_with_elems(
            entries,
            entries.len() / size_of::<Entry>(),
        ) {
            Ok(parts) => parts,
            Err(_) => return Err(table.garbage("it ends within an entry")),
        };
        if !rest.is_empty() || table.bytes.len() < ENTRIES {
            return Err(table.garbage("it ends within an entry"));
        }
        let regions = entries.iter().enumerate().map(|(index, entry)| {
            region(entry).ok_or_else(|| table.garbage(format!("entry {index} makes no sense")))
        });
        Ok(Self {
            regions: regions.collect::<Result<_, _>>()?,
        })
    }
}

fn region(entry: &Entry) -> Option<Ecam> {
    let buses = u64::from(entry.last_bus.checked_sub(entry.first_bus)?) + 1;
    let base = entry.base.get();
    let first = base.checked_add(u64::from(entry.first_bus) * BUS_SIZE)?;
    let span = Span::sized(first, buses * BUS_SIZE)?;
    (base != 0 && base.is_multiple_of(BUS_SIZE)).then_some(Ecam {
        segment: entry.segment.get(),
        first_bus: entry.first_bus,
        last_bus: entry.last_bus,
        span,
    })
}
