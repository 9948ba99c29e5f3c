//! Interrupt controllers: the multiple APIC description table, with signature APIC.
//!
//! ACPI specification, "Multiple APIC Description Table (MADT)".

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::Table;
use super::records::{Head, Record, records};
use crate::problem::Problem;

/// Offset of the first structure, in bytes.
const STRUCTURES: usize = 44;

/// A processor, as the firmware lists it: also those that are not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalApic {
    /// The firmware's number of the processor.
    pub uid: u32,
    /// APIC id.
    pub apic_id: u32,
    /// Whether the processor is there and works.
    pub enabled: bool,
}

/// An I/O APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoApic {
    /// The firmware's number of it.
    pub id: u8,
    /// Physical address of its registers.
    pub address: u64,
    /// Global system interrupt of its first pin.
    pub gsi_base: u32,
}

/// An interrupt of ISA that arrives elsewhere or otherwise than usual.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Override {
    /// The interrupt of ISA.
    pub source: u8,
    /// The global system interrupt that it arrives at.
    pub gsi: u32,
    /// Polarity in bits 1:0, trigger mode in bits 3:2.
    pub flags: u16,
}

/// Where an NMI comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nmi {
    /// A pin of an I/O APIC.
    Pin {
        /// The global system interrupt.
        gsi: u32,
        /// As of an [`Override`].
        flags: u16,
    },
    /// A local APIC's LINT pin.
    Local {
        /// The firmware's number of the processor; none for all of them.
        uid: Option<u32>,
        /// LINT0 or LINT1.
        lint: u8,
        /// As of an [`Override`].
        flags: u16,
    },
}

/// What the table says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Madt {
    /// Physical address of the local APICs' registers.
    pub local_apic_address: u64,
    /// Whether there are two 8259 interrupt controllers as well.
    pub has_8259: bool,
    /// The processors.
    pub processors: Vec<LocalApic>,
    /// The I/O APICs, in the order of the table.
    pub io_apics: Vec<IoApic>,
    /// Interrupts of ISA that are not where they usually are.
    pub overrides: Vec<Override>,
    /// Sources of NMIs.
    pub nmis: Vec<Nmi>,
}

#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Fixed {
    address: U32,
    flags: U32,
}

#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct LocalApicLayout {
    head: [u8; 2],
    uid: u8,
    apic_id: u8,
    flags: U32,
}

#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct IoApicLayout {
    head: [u8; 2],
    id: u8,
    reserved: u8,
    address: U32,
    gsi_base: U32,
}

#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct OverrideLayout {
    head: [u8; 2],
    bus: u8,
    source: u8,
    gsi: U32,
    flags: U16,
}

#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct NmiSourceLayout {
    head: [u8; 2],
    flags: U16,
    gsi: U32,
}

#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct LocalNmiLayout {
    head: [u8; 2],
    uid: u8,
    flags: U16,
    lint: u8,
}

#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct AddressLayout {
    head: [u8; 2],
    reserved: U16,
    address: U64,
}

#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct LocalX2ApicLayout {
    head: [u8; 2],
    reserved: U16,
    apic_id: U32,
    flags: U32,
    uid: U32,
}

#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct LocalX2ApicNmiLayout {
    head: [u8; 2],
    flags: U16,
    uid: U32,
    lint: u8,
    reserved: [u8; 3],
}

impl Madt {
    /// Reads a table.
    ///
    /// # Errors
    /// When it makes no sense.
    pub fn parse(bytes: &[u8]) -> Result<Self, Problem> {
        let table = Table::new("APIC", bytes)?;
        let fixed: &Fixed = table.at(super::HEADER_SIZE)?;
        let mut madt = Self {
            local_apic_address: fixed.address.get().into(),
            has_8259: fixed.flags.get() & 1 != 0,
            ..Self::default()
        };
        for record in records(table, STRUCTURES, Head::Bytes) {
            madt.take(&record?)?;
        }
        Ok(madt)
    }

    fn take(&mut self, record: &Record<'_>) -> Result<(), Problem> {
        match record.kind {
            0 => {
                let it: &LocalApicLayout = record.layout()?;
                self.processors.push(LocalApic {
                    uid: it.uid.into(),
                    apic_id: it.apic_id.into(),
                    enabled: it.flags.get() & 1 != 0,
                });
            }
            1 => {
                let it: &IoApicLayout = record.layout()?;
                self.io_apics.push(IoApic {
                    id: it.id,
                    address: it.address.get().into(),
                    gsi_base: it.gsi_base.get(),
                });
            }
            2 => {
                let it: &OverrideLayout = record.layout()?;
                self.overrides.push(Override {
                    source: it.source,
                    gsi: it.gsi.get(),
                    flags: it.flags.get(),
                });
            }
            3 => {
                let it: &NmiSourceLayout = record.layout()?;
                self.nmis.push(Nmi::Pin {
                    gsi: it.gsi.get(),
                    flags: it.flags.get(),
                });
            }
            4 => {
                let it: &LocalNmiLayout = record.layout()?;
                self.nmis.push(Nmi::Local {
                    uid: (it.uid != u8::MAX).then_some(it.uid.into()),
                    lint: it.lint,
                    flags: it.flags.get(),
                });
            }
            5 => {
                let it: &AddressLayout = record.layout()?;
                self.local_apic_address = it.address.get();
            }
            9 => {
                let it: &LocalX2ApicLayout = record.layout()?;
                self.processors.push(LocalApic {
                    uid: it.uid.get(),
                    apic_id: it.apic_id.get(),
                    enabled: it.flags.get() & 1 != 0,
                });
            }
            10 => {
                let it: &LocalX2ApicNmiLayout = record.layout()?;
                self.nmis.push(Nmi::Local {
                    uid: (it.uid.get() != u32::MAX).then_some(it.uid.get()),
                    lint: it.lint,
                    flags: it.flags.get(),
                });
            }
            // Interrupt controllers of other architectures, and what the future brings.
            _ => (),
        }
        Ok(())
    }
}
