//! The IOAPICs of the machine, shared out pin by pin.
//!
//! Each guest sees an IOAPIC's registers with its own pins; pins of others look masked, and writing to them has no effect.
//! What a guest writes to a pin of its own is kept as it was written, and hardware gets what may be ([`judge`]); where
//! nothing may be, the pin stays masked, and reads so.
//!
//! Where an IOMMU remaps interrupts, a cell's pin has an entry in the IOMMU's table for as long as it is the cell's: there
//! stands what was judged, and the pin's own entry in hardware names it.
//!
//! Invariant: a pin's entry in hardware, and the IOMMU's that it names, was judged for its present owner. A pin that changes
//! hands is masked, with nothing left in service.
#![forbid(unsafe_code)]

mod change;
pub mod entry;
pub mod judge;

use entry::{Entry, STATUS, mode};
use judge::{ROOT, Receivers, Remapping};

use crate::error::Failure;

/// Most IOAPICs. Further ones stay as Linux has them.
pub const MAX_UNITS: usize = 32;
/// Most pins of one: those whose entries the index register reaches.
const MAX_UNIT_PINS: u8 = 120;
/// Most pins of all IOAPICs together.
pub const MAX_PINS: usize = 512;

/// Offsets of the registers that there are in memory.
pub mod offset {
    /// Number of the register that [`DATA`] leads to.
    pub const INDEX: u64 = 0x00;
    /// That register.
    pub const DATA: u64 = 0x10;
    /// End of interrupt, from version 0x20 on.
    pub const END_OF_INTERRUPT: u64 = 0x40;
    /// Bytes in which they are.
    pub const SIZE: u64 = 0x400;
}

const ID: u8 = 0;
const VERSION: u8 = 1;
const ARBITRATION: u8 = 2;
const BOOT: u8 = 3;
/// The first half of the first pin's entry.
const FIRST_ENTRY: u8 = 0x10;
/// The first version with an end-of-interrupt register.
const HAS_END_OF_INTERRUPT: u8 = 0x20;

/// Registers of the IOAPICs, by the address where an IOAPIC has them, and entries of the IOMMUs that they are behind.
pub trait Chip {
    /// Reads a register.
    fn read(&mut self, base: u64, register: u8) -> u32;
    /// Writes a register.
    fn write(&mut self, base: u64, register: u8, value: u32);
    /// Ends the interrupt of this vector. Only of an IOAPIC that has the register.
    fn end_of_interrupt(&mut self, base: u64, vector: u8);
    /// By whose table the messages are remapped.
    fn remapping(&mut self, base: u64) -> Remapping;
    /// Takes an entry of the IOMMU's, which sends nothing. Only where the table is [`Remapping::Own`], as all below.
    ///
    /// # Errors
    /// When there is none left, or the IOMMU does not answer.
    fn take_entry(&mut self, base: u64) -> Result<u16, Failure>;
    /// Has an entry that was taken send what this entry of `owner`'s says. Whether it does from now on; else it sends
    /// nothing new.
    fn send(
        &mut self,
        base: u64,
        handle: u16,
        entry: Entry,
        owner: u32,
        receivers: &impl Receivers,
    ) -> bool;
    /// Has an entry that was taken send nothing.
    fn block(&mut self, base: u64, handle: u16);
    /// Gives back an entry that was taken; it sends nothing.
    fn give_entry(&mut self, base: u64, handle: u16);
}

/// An IOAPIC.
#[derive(Clone, Copy, Debug)]
struct Unit {
    base: u64,
    first_line: u32,
    /// Most pins that it can have by the machine's description, then those that it has.
    pins: u8,
    version: u8,
    /// Where its pins are in [`IoApics::pins`].
    first_pin: usize,
    remapping: Remapping,
}

/// A pin.
#[derive(Clone, Copy, Debug)]
struct Pin {
    owner: u32,
    /// What its owner wrote.
    written: Entry,
    /// What hardware has, without its status.
    hardware: Entry,
    /// What the root wrote, while it is a cell's.
    of_root: Entry,
    /// The IOMMU's entry that a cell's pin has, and what it sends: nothing if that is masked.
    handle: Option<u16>,
    sent: Entry,
}

/// Where a pin is: its IOAPIC, its number there, its index among all.
type Place = (Unit, u8, usize);

/// Why a line can't be given to a cell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LineRefused {
    /// No IOAPIC has it.
    Unknown,
    /// The root uses it, or another cell.
    InUse,
    /// Interrupts are remapped by an IOMMU that the hypervisor does not know.
    Remapped,
    /// An IOMMU remaps them and has no entry for it.
    Iommu(Failure),
}

/// All IOAPICs.
#[derive(Debug)]
pub struct IoApics {
    units: [Option<Unit>; MAX_UNITS],
    pins: [Pin; MAX_PINS],
    /// Pins that belong to some unit.
    used_pins: usize,
    /// Units whose registers were looked at; all or none.
    is_known: bool,
}

impl Default for IoApics {
    fn default() -> Self {
        Self::new()
    }
}

impl IoApics {
    /// No IOAPIC.
    #[must_use]
    pub const fn new() -> Self {
        const PIN: Pin = Pin {
            owner: ROOT,
            written: Entry::RESET,
            hardware: Entry::RESET,
            of_root: Entry::RESET,
            handle: None,
            sent: Entry::RESET,
        };
        Self {
            units: [None; MAX_UNITS],
            pins: [PIN; MAX_PINS],
            used_pins: 0,
            is_known: false,
        }
    }

    /// Adds an IOAPIC with at most `pins` pins, the first of which is `first_line`. Returns its number, if there is room.
    /// To be done before anything else.
    pub fn add(&mut self, base: u64, first_line: u32, pins: u8) -> Option<u8> {
        let (number, slot) = (0u8..)
            .zip(&mut self.units)
            .find(|(_, slot)| slot.is_none())?;
        *slot = Some(Unit {
            base,
            first_line,
            pins,
            version: 0,
            first_pin: 0,
            remapping: Remapping::None,
        });
        Some(number)
    }

    /// Looks at the registers of all, if that has not been done yet. All pins are the root's.
    pub fn look(&mut self, chip: &mut impl Chip) {
        if self.is_known {
            return;
        }
        self.is_known = true;
        for unit in self.units.iter_mut().flatten() {
            let version = chip.read(unit.base, VERSION);
            let there = (version >> 16) as u8;
            // Nothing answers there.
            let is_there = version != u32::MAX;
            unit.version = version as u8;
            unit.remapping = chip.remapping(unit.base);
            unit.first_pin = self.used_pins;
            let has = if is_there { there.saturating_add(1) } else { 0 };
            let mut count = 0u8;
            for (number, pin) in (0..unit.pins.min(has).min(MAX_UNIT_PINS))
                .zip(self.pins.iter_mut().skip(self.used_pins))
            {
                let low = chip.read(unit.base, low_register(number));
                let high = chip.read(unit.base, high_register(number));
                let entry = Entry::new().with_high(high).with_low(low);
                if entry.remapped() && unit.remapping == Remapping::None {
                    unit.remapping = Remapping::Foreign;
                }
                pin.written = entry;
                pin.hardware = entry;
                count = number.saturating_add(1);
            }
            unit.pins = count;
            self.used_pins = self.used_pins.saturating_add(count.into());
        }
    }

    fn unit(&self, number: u8) -> Option<Unit> {
        self.units.get(usize::from(number)).copied().flatten()
    }

    /// Where in memory an IOAPIC is.
    #[must_use]
    pub fn base(&self, number: u8) -> Option<u64> {
        self.unit(number).map(|unit| unit.base)
    }

    /// Where the pin `index` is.
    fn place(&self, index: usize) -> Option<Place> {
        self.units.iter().flatten().find_map(|unit| {
            let number = u8::try_from(index.checked_sub(unit.first_pin)?).ok()?;
            (number < unit.pins).then_some((*unit, number, index))
        })
    }

    /// Where a line's pin is.
    fn place_of(&self, line: u32) -> Option<Place> {
        self.units.iter().flatten().find_map(|unit| {
            let number = u8::try_from(line.checked_sub(unit.first_line)?).ok()?;
            let index = unit.first_pin.checked_add(number.into())?;
            (number < unit.pins).then_some((*unit, number, index))
        })
    }

    /// Number of pins of all units.
    #[must_use]
    pub fn pin_count(&self) -> usize {
        self.used_pins
    }

    /// The pin of a unit's register, if it is one that `guest` has.
    fn own_pin(&self, unit: &Unit, register: u8, guest: u32) -> Option<(u8, usize)> {
        let number = register.checked_sub(FIRST_ENTRY)? / 2;
        if number >= unit.pins {
            return None;
        }
        let index = unit.first_pin.checked_add(number.into())?;
        let pin = self.pins.get(index)?;
        (pin.owner == guest).then_some((number, index))
    }

    /// Reads a register as `guest` sees it.
    pub fn read(&self, chip: &mut impl Chip, unit: u8, register: u8, guest: u32) -> u32 {
        let Some(unit) = self.unit(unit).filter(|unit| unit.pins != 0) else {
            return u32::MAX;
        };
        match register {
            ID | VERSION | ARBITRATION => return chip.read(unit.base, register),
            BOOT if unit.version >= HAS_END_OF_INTERRUPT => return chip.read(unit.base, register),
            _ => {}
        }
        let own = self.own_pin(&unit, register, guest);
        let pin = own.and_then(|(number, index)| Some((number, self.pins.get(index)?)));
        let Some((number, pin)) = pin else {
            // Beyond the last pin there is nothing, and what others have looks masked.
            let is_low = register & 1 == 0;
            let pin = register.checked_sub(FIRST_ENTRY).map(|entry| entry / 2);
            let is_pin = pin.is_some_and(|pin| pin < unit.pins);
            return if is_low && is_pin {
                Entry::RESET.low()
            } else {
                0
            };
        };
        if register & 1 != 0 {
            return pin.written.high();
        }
        let status = chip.read(unit.base, low_register(number)) & STATUS as u32;
        pin.written.with_masked(pin.hardware.masked()).low() | status
    }

    /// Writes a register as `guest` may.
    pub fn write(
        &mut self,
        chip: &mut impl Chip,
        unit: u8,
        register: u8,
        value: u32,
        guest: u32,
        receivers: &impl Receivers,
    ) {
        let Some(unit) = self.unit(unit).filter(|unit| unit.pins != 0) else {
            return;
        };
        let has_boot = unit.version >= HAS_END_OF_INTERRUPT;
        if guest == ROOT && (register == ID || register == BOOT && has_boot) {
            chip.write(unit.base, register, value);
            return;
        }
        let Some((number, index)) = self.own_pin(&unit, register, guest) else {
            return;
        };
        let Some(pin) = self.pins.get_mut(index) else {
            return;
        };
        let is_low = register & 1 == 0;
        pin.written = if is_low {
            pin.written.with_low(value)
        } else {
            pin.written.with_high(value)
        };
        let place = (unit, number, index);
        let wanted = self.permitted(chip, &place, receivers);
        self.apply(chip, &place, wanted, is_low);
    }

    /// Ends an interrupt in the name of `guest`, if only pins of its own have the vector.
    pub fn end_of_interrupt(&self, chip: &mut impl Chip, unit: u8, vector: u8, guest: u32) {
        let Some(unit) = self.unit(unit) else {
            return;
        };
        let pins = self.pins.iter().skip(unit.first_pin);
        let (mut own, mut foreign) = (false, false);
        for pin in pins.take(unit.pins.into()) {
            if pin.hardware.level() && pin.hardware.vector() == vector {
                own |= pin.owner == guest;
                foreign |= pin.owner != guest;
            }
        }
        if own && !foreign && unit.version >= HAS_END_OF_INTERRUPT {
            chip.end_of_interrupt(unit.base, vector);
        }
    }

    /// Whether a line could be given to a cell.
    ///
    /// # Errors
    /// When it could not.
    pub fn check(&self, line: u32) -> Result<(), LineRefused> {
        self.find(line).map(|_| ())
    }

    fn find(&self, line: u32) -> Result<Place, LineRefused> {
        let (unit, number, index) = self.place_of(line).ok_or(LineRefused::Unknown)?;
        let pin = self.pins.get(index).ok_or(LineRefused::Unknown)?;
        if unit.remapping == Remapping::Foreign {
            Err(LineRefused::Remapped)
        } else if pin.owner != ROOT || !pin.hardware.masked() {
            Err(LineRefused::InUse)
        } else {
            Ok((unit, number, index))
        }
    }

    /// Gives a line that the root has and does not use to a cell.
    ///
    /// # Errors
    /// When there is no such; nothing has changed then.
    pub fn assign(
        &mut self,
        chip: &mut impl Chip,
        line: u32,
        cell: u32,
    ) -> Result<(), LineRefused> {
        let place = self.find(line)?;
        let (unit, _, index) = place;
        let handle = match unit.remapping {
            Remapping::Own { .. } => Some(chip.take_entry(unit.base).map_err(LineRefused::Iommu)?),
            _ => None,
        };
        if let Some(pin) = self.pins.get_mut(index) {
            pin.of_root = pin.written;
            pin.owner = cell;
            pin.written = Entry::RESET;
            pin.handle = handle;
        }
        self.silence(chip, &place);
        Ok(())
    }

    /// Gives all lines of a cell back to the root: masked, and otherwise as the root had them.
    pub fn release(&mut self, chip: &mut impl Chip, cell: u32) {
        for index in 0..self.used_pins {
            let Some(place) = self.place(index) else {
                return;
            };
            let Some(pin) = self.pins.get_mut(index).filter(|pin| pin.owner == cell) else {
                continue;
            };
            pin.owner = ROOT;
            pin.written = pin.of_root.with_masked(true);
            let (entry, handle) = (pin.written, pin.handle);
            self.silence(chip, &place);
            self.apply(chip, &place, entry, true);
            if let Some(pin) = self.pins.get_mut(index) {
                pin.handle = None;
            }
            if let Some(handle) = handle {
                chip.give_entry(place.0.base, handle);
            }
        }
    }

    /// Masks all lines of a cell and ends what is in service: the cell starts anew, or has ended.
    pub fn reset(&mut self, chip: &mut impl Chip, cell: u32) {
        for index in 0..self.used_pins {
            let Some(place) = self.place(index) else {
                return;
            };
            let Some(pin) = self.pins.get_mut(index).filter(|pin| pin.owner == cell) else {
                continue;
            };
            pin.written = Entry::RESET;
            self.silence(chip, &place);
        }
    }

    /// Looks at the pin `index` (below [`Self::pin_count`]) once more: whom the root's entries reach changes when CPUs
    /// change hands.
    pub fn revise(&mut self, chip: &mut impl Chip, index: usize, receivers: &impl Receivers) {
        let (Some(place), Some(pin)) = (self.place(index), self.pins.get(index).copied()) else {
            return;
        };
        // What firmware has set up for itself is as it was before the launch.
        let is_firmwares = pin.hardware.delivery_mode() == mode::SMI && pin.hardware == pin.written;
        if pin.owner != ROOT || is_firmwares {
            return;
        }
        let wanted = self.permitted(chip, &place, receivers);
        if wanted != pin.hardware {
            self.apply(chip, &place, wanted, false);
        }
    }

    /// The cell that a line belongs to, if there is such a line.
    #[must_use]
    pub fn owner(&self, line: u32) -> Option<u32> {
        let (.., index) = self.place_of(line)?;
        self.pins.get(index).map(|pin| pin.owner)
    }

    /// Numbers of the IOAPICs of which the cell has a pin.
    pub fn units_of(&self, cell: u32) -> impl Iterator<Item = u8> {
        (0u8..).zip(&self.units).filter_map(move |(number, unit)| {
            let unit = (*unit)?;
            let mut pins = self.pins.iter().skip(unit.first_pin).take(unit.pins.into());
            pins.any(|pin| pin.owner == cell).then_some(number)
        })
    }
}

/// Remote IRR, in the low half of an entry.
const IN_SERVICE: u32 = 1 << 14;

const fn low_register(pin: u8) -> u8 {
    FIRST_ENTRY.wrapping_add(pin.wrapping_mul(2))
}

const fn high_register(pin: u8) -> u8 {
    low_register(pin).wrapping_add(1)
}

#[cfg(test)]
mod tests;
