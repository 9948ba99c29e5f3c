//! Registers of power management: the fixed ACPI description table, with signature FACP.
//!
//! ACPI specification, "Fixed ACPI Description Table (FADT)". Older tables are shorter: what they end before is absent.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::Table;
use crate::problem::Problem;

/// Where a register is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// An I/O port.
    Port(u16),
    /// A physical address.
    Memory(u64),
    /// Elsewhere, by the number of the address space: configuration space of PCI, an embedded controller.
    Other(u8, u64),
}

/// A block of registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Register {
    /// Where it begins.
    pub place: Place,
    /// Its length in bytes.
    pub length: u8,
}

/// What the table says. Registers are none where the machine has none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fadt {
    /// The power management timer, which counts at 3.579545 MHz.
    pub pm_timer: Option<Register>,
    /// Whether that timer has 32 bits; 24 otherwise.
    pub pm_timer_has_32_bits: bool,
    /// Power management events, block a.
    pub pm1a_event: Option<Register>,
    /// Power management events, block b.
    pub pm1b_event: Option<Register>,
    /// Power management control, block a: a write puts the machine to sleep or off.
    pub pm1a_control: Option<Register>,
    /// Power management control, block b.
    pub pm1b_control: Option<Register>,
    /// Sleep control of machines without the registers above: a write puts the machine to sleep or off.
    pub sleep_control: Option<Register>,
    /// Sleep status of the same.
    pub sleep_status: Option<Register>,
    /// The port that calls the firmware (SMI), and whose writes turn ACPI on and off.
    pub smi_command: Option<Register>,
    /// A write of [`Fadt::reset_value`] resets the machine.
    pub reset: Option<Register>,
    /// What resets the machine.
    pub reset_value: u8,
    /// General-purpose events, blocks 0 and 1.
    pub general_events: Vec<Register>,
    /// Interrupt of ACPI: a global system interrupt, or the 8259's where there is one.
    pub interrupt: u16,
    /// Where the real-time clock keeps the century: an index into its memory.
    pub century: Option<u8>,
    /// Whether there are no fixed registers at all ("hardware-reduced ACPI").
    pub is_hardware_reduced: bool,
}

/// ACPI specification, "Generic Address Structure".
#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct GenericAddress {
    space: u8,
    bit_width: u8,
    bit_offset: u8,
    access_size: u8,
    address: U64,
}

impl GenericAddress {
    fn register(&self, length: u8) -> Option<Register> {
        let address = self.address.get();
        let place = match (self.space, u16::try_from(address)) {
            (_, Ok(0)) => return None,
            (0, _) => Place::Memory(address),
            (1, Ok(port)) => Place::Port(port),
            (space, _) => Place::Other(space, address),
        };
        let length = match length {
            0 => self.bit_width.div_ceil(8).max(1),
            length => length,
        };
        Some(Register { place, length })
    }
}

impl Fadt {
    /// Reads a table.
    ///
    /// # Errors
    /// When it makes no sense, or is shorter than the first revision.
    pub fn parse(bytes: &[u8]) -> Result<Self, Problem> {
        let table = Table::new("FACP", bytes)?;
        // The first revision ends here.
        let flags = table.at::<U32>(112)?.get();
        let byte = |offset| table.find::<u8>(offset).copied().unwrap_or(0);
        // A 64-bit field replaces its 32-bit one where it is not zero.
        let block = |old: usize, new: Option<usize>, length: u8| {
            let new = new.and_then(|new| table.find::<GenericAddress>(new)?.register(length));
            new.or_else(|| {
                let port = u16::try_from(table.find::<U32>(old)?.get()).ok()?;
                let place = Place::Port(port);
                (port != 0 && length != 0).then_some(Register { place, length })
            })
        };
        let generic = |offset| table.find::<GenericAddress>(offset)?.register(0);
        let has_reset = flags & 1 << 10 != 0;
        let general_events = [
            block(80, Some(220), byte(92)),
            block(84, Some(232), byte(93)),
        ];
        Ok(Self {
            pm_timer: block(76, Some(208), byte(91)),
            pm_timer_has_32_bits: flags & 1 << 8 != 0,
            pm1a_event: block(56, Some(148), byte(88)),
            pm1b_event: block(60, Some(160), byte(88)),
            pm1a_control: block(64, Some(172), byte(89)),
            pm1b_control: block(68, Some(184), byte(89)),
            sleep_control: generic(244),
            sleep_status: generic(256),
            smi_command: block(48, None, 1),
            reset: generic(116).filter(|_| has_reset),
            reset_value: byte(128),
            general_events: general_events.into_iter().flatten().collect(),
            interrupt: table.at::<U16>(46)?.get(),
            century: Some(byte(108)).filter(|&index| index != 0),
            is_hardware_reduced: flags & 1 << 20 != 0,
        })
    }
}
