//! DMA and interrupt remapping: the table DMAR.
//!
//! Intel Virtualization Technology for Directed I/O specification, "BIOS Considerations".

use std::fmt;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::Table;
use super::records::{Head, Record, records};
use crate::problem::Problem;
use crate::span::Span;

/// Offset of the first remapping structure, in bytes.
const STRUCTURES: usize = 48;
const PAGE_SIZE: u64 = 4096;

/// What a device scope names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScopeKind {
    /// One PCI function.
    Endpoint,
    /// A PCI bridge and all that is behind it.
    Bridge,
    /// An I/O APIC, by the id that the MADT gives it.
    IoApic,
    /// A timer of the HPET, by its number.
    Hpet,
    /// A device of the ACPI namespace, by the number of its ANDD structure.
    Namespace,
    /// What later specifications have added.
    Unknown(u8),
}

/// A device or part of the PCI hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// What it names.
    pub kind: ScopeKind,
    /// Number of the I/O APIC, HPET timer or ACPI device.
    pub enumeration_id: u8,
    /// The bus that the path begins on.
    pub start_bus: u8,
    /// Device and function, first on the start bus, then behind the bridge before. Never empty.
    pub path: Vec<(u8, u8)>,
}

impl fmt::Display for Scope {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            ScopeKind::Endpoint => write!(formatter, "endpoint ")?,
            ScopeKind::Bridge => write!(formatter, "bridge ")?,
            ScopeKind::IoApic => write!(formatter, "I/O APIC {} at ", self.enumeration_id)?,
            ScopeKind::Hpet => write!(formatter, "HPET {} at ", self.enumeration_id)?,
            ScopeKind::Namespace => write!(formatter, "ACPI {} at ", self.enumeration_id)?,
            ScopeKind::Unknown(kind) => write!(formatter, "type {kind} at ")?,
        }
        write!(formatter, "{:02x}:", self.start_bus)?;
        for (index, (device, function)) in self.path.iter().enumerate() {
            let separator = if index == 0 { "" } else { "/" };
            write!(formatter, "{separator}{device:02x}.{function}")?;
        }
        Ok(())
    }
}

/// A remapping unit (DRHD).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// PCI segment of the devices behind it.
    pub segment: u16,
    /// Its registers.
    pub registers: Span,
    /// Whether it has all devices of the segment that no other unit has.
    pub includes_all: bool,
    /// Devices behind it.
    pub scopes: Vec<Scope>,
}

/// Memory that the firmware lets devices use (RMRR).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReservedMemory {
    /// PCI segment of the devices.
    pub segment: u16,
    /// The memory: whole pages.
    pub span: Span,
    /// The devices.
    pub scopes: Vec<Scope>,
}

/// Root ports whose devices may ask for translations (ATSR).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AtsPorts {
    /// PCI segment of the ports.
    pub segment: u16,
    /// All ports of the segment.
    pub all: bool,
    /// The ports.
    pub scopes: Vec<Scope>,
}

/// What the table says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dmar {
    /// Width of the addresses that devices can use, in bits.
    pub address_bits: u16,
    /// The platform supports interrupt remapping.
    pub interrupt_remapping: bool,
    /// The firmware asks not to turn x2APIC mode on.
    pub x2apic_opt_out: bool,
    /// The remapping units, in the order of the table.
    pub units: Vec<Unit>,
    /// Memory that devices use whoever owns them.
    pub reserved: Vec<ReservedMemory>,
    /// Ports with address translation services.
    pub ats: Vec<AtsPorts>,
    /// Proximity domain (of the SRAT) by the address of a unit's registers.
    pub proximity: Vec<(u64, u32)>,
    /// Devices of the ACPI namespace: their numbers and names.
    pub namespace: Vec<(u8, String)>,
}

#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Fixed {
    host_address_width: u8,
    flags: u8,
    reserved: [u8; 10],
}

#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct UnitLayout {
    head: [U16; 2],
    flags: u8,
    size: u8,
    segment: U16,
    address: U64,
}

#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct ReservedLayout {
    head: [U16; 2],
    reserved: U16,
    segment: U16,
    base: U64,
    limit: U64,
}

#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct AtsLayout {
    head: [U16; 2],
    flags: u8,
    reserved: u8,
    segment: U16,
}

#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct AffinityLayout {
    head: [U16; 2],
    reserved: U32,
    address: U64,
    proximity: U32,
}

#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct NamespaceLayout {
    head: [U16; 2],
    reserved: [u8; 3],
    number: u8,
}

#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct ScopeLayout {
    head: [u8; 2],
    flags: U16,
    enumeration_id: u8,
    start_bus: u8,
}

impl Dmar {
    /// Reads a table.
    ///
    /// # Errors
    /// When it makes no sense.
    pub fn parse(bytes: &[u8]) -> Result<Self, Problem> {
        let table = Table::new("DMAR", bytes)?;
        let fixed: &Fixed = table.at(super::HEADER_SIZE)?;
        let mut dmar = Self {
            address_bits: u16::from(fixed.host_address_width) + 1,
            interrupt_remapping: fixed.flags & 1 != 0,
            x2apic_opt_out: fixed.flags & 2 != 0,
            ..Self::default()
        };
        for record in records(table, STRUCTURES, Head::Words) {
            dmar.take(&record?)?;
        }
        Ok(dmar)
    }

    fn take(&mut self, record: &Record<'_>) -> Result<(), Problem> {
        match record.kind {
            0 => self.units.push(unit(record)?),
            1 => self.reserved.push(reserved(record)?),
            2 => {
                let it: &AtsLayout = record.layout()?;
                self.ats.push(AtsPorts {
                    segment: it.segment.get(),
                    all: it.flags & 1 != 0,
                    scopes: scopes(record, size_of::<AtsLayout>())?,
                });
            }
            3 => {
                let it: &AffinityLayout = record.layout()?;
                let affinity = (it.address.get(), it.proximity.get());
                self.proximity.push(affinity);
            }
            4 => {
                let it: &NamespaceLayout = record.layout()?;
                let name = record.bytes.get(size_of::<NamespaceLayout>()..);
                let name = name.unwrap_or_default().split(|&byte| byte == 0).next();
                let name = name.unwrap_or_default().escape_ascii().to_string();
                self.namespace.push((it.number, name));
            }
            // Structures of later specifications only tell of further properties.
            _ => (),
        }
        Ok(())
    }
}

fn unit(record: &Record<'_>) -> Result<Unit, Problem> {
    let it: &UnitLayout = record.layout()?;
    let address = it.address.get();
    // The size is a power of two in pages, in bits 3:0; firmware of older specifications leaves it 0.
    let registers = Span::sized(address, PAGE_SIZE << (it.size & 0xf));
    let registers = registers.filter(|_| address != 0 && address.is_multiple_of(PAGE_SIZE));
    Ok(Unit {
        segment: it.segment.get(),
        registers: registers
            .ok_or_else(|| record.garbage(format!("registers at {address:#x} can't be")))?,
        includes_all: it.flags & 1 != 0,
        scopes: scopes(record, size_of::<UnitLayout>())?,
    })
}

fn reserved(record: &Record<'_>) -> Result<ReservedMemory, Problem> {
    let it: &ReservedLayout = record.layout()?;
    let (base, limit) = (it.base.get(), it.limit.get());
    // Some firmware gives limits within a page; the pages are the device's as a whole.
    let pages = Span::inclusive(base & !(PAGE_SIZE - 1), limit | (PAGE_SIZE - 1));
    let span = pages.filter(|_| base <= limit);
    Ok(ReservedMemory {
        segment: it.segment.get(),
        span: span.ok_or_else(|| {
            record.garbage(format!("memory from {base:#x} to {limit:#x} can't be"))
        })?,
        scopes: scopes(record, size_of::<ReservedLayout>())?,
    })
}

fn scopes(record: &Record<'_>, offset: usize) -> Result<Vec<Scope>, Problem> {
    let scopes = record.inner(offset).map(|inner| {
        let inner = inner?;
        let it: &ScopeLayout = inner.layout()?;
        let path = inner.bytes.get(size_of::<ScopeLayout>()..);
        let (path, rest) = path.unwrap_or_default().as_chunks::<2>();
        if path.is_empty() || !rest.is_empty() {
            return Err(inner.garbage("its path is not pairs of device and function"));
        }
        if path
            .iter()
            .any(|[device, function]| *device > 31 || *function > 7)
        {
            return Err(inner.garbage("its path has a device or function that can't be"));
        }
        Ok(Scope {
            kind: match inner.kind {
                1 => ScopeKind::Endpoint,
                2 => ScopeKind::Bridge,
                3 => ScopeKind::IoApic,
                4 => ScopeKind::Hpet,
                5 => ScopeKind::Namespace,
                // Its head has a byte for the kind.
                kind => ScopeKind::Unknown(u8::try_from(kind).unwrap_or(u8::MAX)),
            },
            enumeration_id: it.enumeration_id,
            start_bus: it.start_bus,
            path: path
                .iter()
                .map(|&[device, function]| (device, function))
                .collect(),
        })
    });
    scopes.collect()
}
