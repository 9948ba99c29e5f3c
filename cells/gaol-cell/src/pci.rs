//! PCI functions of the cell: finding them, their base address registers and capabilities, and how they interrupt.
//!
//! PCI Local Bus Specification 3.0, chapter "Configuration Space", and its appendix on message signalled interrupts.
//! Invariant: nothing here touches hardware; lists that a device could make endless are followed for a bounded number of steps.
//! Each access to configuration space is a VM exit, so all of this is for the start of a cell.
#![forbid(unsafe_code)]

use core::fmt;

use bitflags::bitflags;

use crate::device::Registers;
use crate::registers::Vector;

/// A function: bus, device and function number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Function(u16);

impl Function {
    /// The function with this number: bus in bits 15 to 8, device in 7 to 3, function in 2 to 0.
    pub const fn new(number: u16) -> Self {
        Self(number)
    }

    /// The number.
    pub const fn number(self) -> u16 {
        self.0
    }

    /// Reads "00:02.0"; a segment in front of that must be 0, "0000:00:02.0".
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.strip_prefix("0000:").unwrap_or(text);
        let (bus, rest) = text.split_once(':')?;
        let (device, function) = rest.split_once('.')?;
        let hexadecimal = |text: &str, below: u16| {
            let short = (1..=2).contains(&text.len()) && !text.starts_with('+');
            let number = u16::from_str_radix(text, 16).ok()?;
            (short && number < below).then_some(number)
        };
        let number =
            hexadecimal(bus, 256)? << 8 | hexadecimal(device, 32)? << 3 | hexadecimal(function, 8)?;
        Some(Self(number))
    }
}

impl fmt::Display for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(number) = self;
        write!(
            f,
            "{:02x}:{:02x}.{}",
            number >> 8,
            number >> 3 & 0x1f,
            number & 7
        )
    }
}

/// Vendor and device id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Id {
    /// Vendor.
    pub vendor: u16,
    /// Device.
    pub device: u16,
}

/// Configuration space of all functions.
pub trait Configuration {
    /// Reads 4 bytes at an offset that is a multiple of 4; ones where there is nothing.
    fn read(&self, function: Function, offset: u16) -> u32;

    /// Writes 4 bytes at an offset that is a multiple of 4.
    fn write(&mut self, function: Function, offset: u16, value: u32);
}

bitflags! {
    /// The command register.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Command: u16 {
        /// Answers at its ports.
        const PORTS = 1 << 0;
        /// Answers at its memory.
        const MEMORY = 1 << 1;
        /// Starts accesses itself: DMA and interrupt messages.
        const BUS_MASTER = 1 << 2;
        /// Does not use its interrupt line.
        const NO_INTERRUPT_LINE = 1 << 10;
    }
}

const ID: u16 = 0;
const COMMAND: u16 = 4;
const STATUS_CAPABILITIES: u32 = 1 << 20;
const BARS: u16 = 0x10;
/// Base address registers of an ordinary function.
pub const BAR_COUNT: u16 = 6;
const CAPABILITIES: u16 = 0x34;
const INTERRUPT: u16 = 0x3c;
/// As many as fit.
const MOST_CAPABILITIES: u32 = 48;

/// Capability id of MSI.
pub const MSI: u8 = 0x05;
/// Capability id of MSI-X.
pub const MSI_X: u8 = 0x11;
/// Capability id of PCI Express.
pub const EXPRESS: u8 = 0x10;
/// Capability id of power management.
pub const POWER: u8 = 0x01;

/// What a base address register says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bar {
    /// I/O ports.
    Ports {
        /// The first one.
        first: u32,
        /// How many.
        count: u32,
    },
    /// Memory.
    Memory {
        /// Its address.
        address: u64,
        /// Bytes.
        size: u64,
        /// Whether the next register is the upper half of this one.
        wide: bool,
    },
}

/// The id of a function; `None` where there is none for this cell.
pub fn id(configuration: &impl Configuration, function: Function) -> Option<Id> {
    let id = configuration.read(function, ID);
    let (vendor, device) = (id as u16, (id >> 16) as u16);
    (vendor != 0xffff).then_some(Id { vendor, device })
}

/// The functions of the cell on these buses.
pub fn functions(
    configuration: &impl Configuration,
    buses: core::ops::Range<u16>,
) -> impl Iterator<Item = (Function, Id)> {
    let numbers = (buses.start.min(256) as u32) << 8..(buses.end.min(256) as u32) << 8;
    numbers.filter_map(|number| {
        let function = Function(number as u16);
        Some((function, id(configuration, function)?))
    })
}

/// Switches bits of the command register on and off.
pub fn set_command(
    configuration: &mut impl Configuration,
    function: Function,
    on: Command,
    off: Command,
) {
    let command = configuration.read(function, COMMAND) as u16;
    let command = command & !off.bits() | on.bits();
    // Zeros to the status register in the upper half change nothing there.
    configuration.write(function, COMMAND, command.into());
}

/// The command register.
pub fn command(configuration: &impl Configuration, function: Function) -> Command {
    Command::from_bits_retain(configuration.read(function, COMMAND) as u16)
}

/// The base address register of this number; `None` when the function does not have it. The function must not be in use: the
/// register has another address for a moment.
pub fn bar(configuration: &mut impl Configuration, function: Function, number: u16) -> Option<Bar> {
    if number >= BAR_COUNT {
        return None;
    }
    let offset = BARS + 4 * number;
    let (low, mask) = size_mask(configuration, function, offset);
    if mask == 0 {
        return None;
    }
    if low & 1 != 0 {
        let mask = mask & !3;
        let count = (mask | if mask >> 16 == 0 { 0xffff_0000 } else { 0 }).wrapping_neg();
        return Some(Bar::Ports {
            first: low & !3,
            count,
        });
    }
    let wide = low >> 1 & 3 == 2 && number + 1 < BAR_COUNT;
    let (high, high_mask) = match wide {
        true => size_mask(configuration, function, offset + 4),
        false => (0, u32::MAX),
    };
    let mask = u64::from(high_mask) << 32 | u64::from(mask & !0xf);
    Some(Bar::Memory {
        address: u64::from(high) << 32 | u64::from(low & !0xf),
        size: mask.wrapping_neg(),
        wide,
    })
}

/// The value of a base address register, and which of its bits can be set.
fn size_mask(
    configuration: &mut impl Configuration,
    function: Function,
    offset: u16,
) -> (u32, u32) {
    let before = configuration.read(function, offset);
    configuration.write(function, offset, u32::MAX);
    let mask = configuration.read(function, offset);
    configuration.write(function, offset, before);
    (before, mask)
}

/// Where the capability with this id is.
pub fn capability(
    configuration: &impl Configuration,
    function: Function,
    wanted: u8,
) -> Option<u16> {
    if configuration.read(function, COMMAND) & STATUS_CAPABILITIES == 0 {
        return None;
    }
    let mut at = configuration.read(function, CAPABILITIES) as u16 & 0xfc;
    for _ in 0..MOST_CAPABILITIES {
        if at < 0x40 {
            return None;
        }
        let header = configuration.read(function, at);
        if header as u8 == wanted {
            return Some(at);
        }
        at = (header >> 8) as u16 & 0xfc;
    }
    None
}

/// The interrupt line that the firmware has written down. What it means is the platform's; on PCs of old it is the pin of the
/// IOAPIC.
pub fn interrupt_line(configuration: &impl Configuration, function: Function) -> u8 {
    configuration.read(function, INTERRUPT) as u8
}

/// What a function writes, and where to, when it interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// The address.
    pub address: u64,
    /// The data.
    pub data: u32,
}

impl Message {
    /// An interrupt of this vector for the CPU with this APIC id, in the format without remapping: the hypervisor makes of it
    /// what the machine needs. `None`: the format has no room for such an id.
    pub const fn to(apic_id: u32, vector: Vector) -> Option<Self> {
        if apic_id > 0xff {
            return None;
        }
        Some(Self {
            address: 0xfee0_0000 | (apic_id as u64) << 12,
            data: vector.number() as u32,
        })
    }
}

/// The function does not have what was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missing(
    /// The id of the capability.
    pub u8,
);

/// Where a capability is that has so many bytes, all of them in configuration space.
fn structure(
    configuration: &impl Configuration,
    function: Function,
    id: u8,
    size: u16,
) -> Result<u16, Missing> {
    capability(configuration, function, id)
        .filter(|at| at + size <= 0x100)
        .ok_or(Missing(id))
}

const MSI_ENABLE: u32 = 1 << 16;
const MSI_SEVERAL: u32 = 7 << 20;
const MSI_WIDE: u32 = 1 << 23;
const MSI_MASKS: u32 = 1 << 24;

/// Lets the function interrupt by this message, and by no line.
///
/// # Errors
/// When it has no MSI.
pub fn enable_msi(
    configuration: &mut impl Configuration,
    function: Function,
    message: Message,
) -> Result<(), Missing> {
    let at = structure(configuration, function, MSI, 24)?;
    let control = configuration.read(function, at) & !(MSI_ENABLE | MSI_SEVERAL);
    configuration.write(function, at, control);
    write_msi(configuration, function, at, message);
    set_command(
        configuration,
        function,
        Command::NO_INTERRUPT_LINE,
        Command::empty(),
    );
    configuration.write(function, at, control | MSI_ENABLE);
    Ok(())
}

/// Writes address and data of a capability that is at `at`.
fn write_msi(
    configuration: &mut impl Configuration,
    function: Function,
    at: u16,
    message: Message,
) {
    let control = configuration.read(function, at);
    configuration.write(function, at + 4, message.address as u32);
    let data = if control & MSI_WIDE != 0 {
        configuration.write(function, at + 8, (message.address >> 32) as u32);
        at + 12
    } else {
        at + 8
    };
    configuration.write(function, data, message.data);
    if control & MSI_MASKS != 0 {
        configuration.write(function, data + 4, 0);
    }
}

/// Switches MSI off, if the function has it.
pub fn disable_msi(configuration: &mut impl Configuration, function: Function) {
    if let Some(at) = capability(configuration, function, MSI) {
        let control = configuration.read(function, at) & !MSI_ENABLE;
        configuration.write(function, at, control);
    }
}

const MSI_X_ENABLE: u32 = 1 << 31;
const MSI_X_MASK: u32 = 1 << 30;
/// Bytes of an entry of the table.
const ENTRY_SIZE: u32 = 16;

/// The MSI-X table of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsiX {
    /// Where the capability is.
    pub at: u16,
    /// The base address register whose memory has the table.
    pub bar: u16,
    /// Where it is in there.
    pub offset: u32,
    /// Number of entries.
    pub entries: u32,
}

impl MsiX {
    /// What the function says.
    ///
    /// # Errors
    /// When it has no MSI-X, or says that its table is nowhere.
    pub fn find(configuration: &impl Configuration, function: Function) -> Result<Self, Missing> {
        let at = structure(configuration, function, MSI_X, 12)?;
        let table = configuration.read(function, at + 4);
        let bar = (table & 7) as u16;
        if bar >= BAR_COUNT {
            return Err(Missing(MSI_X));
        }
        Ok(Self {
            at,
            bar,
            offset: table & !7,
            entries: (configuration.read(function, at) >> 16 & 0x7ff) + 1,
        })
    }

    /// Fills an entry of the table, which is in these registers; the entries of others stay as they are.
    ///
    /// # Panics
    /// When there is no such entry.
    pub fn set(&self, registers: &mut impl Registers, entry: u32, message: Message) {
        assert!(entry < self.entries, "there is no entry {entry}");
        let at = self.offset + ENTRY_SIZE * entry;
        registers.write(at + 12, 1);
        registers.write(at, message.address as u32);
        registers.write(at + 4, (message.address >> 32) as u32);
        registers.write(at + 8, message.data);
        registers.write(at + 12, 0);
    }

    /// Switches MSI-X on, and the interrupt line off.
    pub fn enable(&self, configuration: &mut impl Configuration, function: Function) {
        set_command(
            configuration,
            function,
            Command::NO_INTERRUPT_LINE,
            Command::empty(),
        );
        let control = configuration.read(function, self.at) & !MSI_X_MASK;
        configuration.write(function, self.at, control | MSI_X_ENABLE);
    }

    /// Switches MSI-X off.
    pub fn disable(&self, configuration: &mut impl Configuration, function: Function) {
        let control = configuration.read(function, self.at) & !(MSI_X_ENABLE | MSI_X_MASK);
        configuration.write(function, self.at, control);
    }
}

#[cfg(test)]
#[path = "pci_tests.rs"]
mod tests;
