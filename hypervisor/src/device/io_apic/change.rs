//! How a pin's entry changes: in hardware, and in the table of the IOMMU that its messages pass.
//!
//! Invariant: a pin that is not masked has, and has sent, what was judged for its owner; at no time, between the two halves
//! of an entry either, is there anything else.
#![forbid(unsafe_code)]

use super::entry::Entry;
use super::judge::{self, ROOT, Receivers};
use super::{
    Chip, HAS_END_OF_INTERRUPT, IN_SERVICE, IoApics, Pin, Place, high_register, low_register,
};

impl IoApics {
    /// What hardware may get of the pin's entry as it was written. The IOMMU's entry of a cell's pin is made so before.
    pub(super) fn permitted(
        &mut self,
        chip: &mut impl Chip,
        place: &Place,
        receivers: &impl Receivers,
    ) -> Entry {
        let (unit, _, index) = place;
        let Some(pin) = self.pins.get(*index).copied() else {
            return Entry::RESET;
        };
        let judged = judge::judge(pin.written, pin.owner, unit.remapping, receivers)
            .filter(|entry| !self.is_taken(*entry, pin.owner));
        let refused = pin
            .written
            .with_masked(true)
            .with_remapped(false)
            .with_index(0);
        let Some(handle) = pin.handle else {
            return judged.unwrap_or(refused);
        };
        judged
            .filter(|entry| self.send(chip, place, *entry, receivers))
            .unwrap_or(refused)
            .through(handle)
    }

    /// Has the IOMMU send what a pin's judged entry says, with the pin masked while that changes: what the pin's entry has
    /// and what is sent belong together. Whether it does.
    fn send(
        &mut self,
        chip: &mut impl Chip,
        place: &Place,
        entry: Entry,
        receivers: &impl Receivers,
    ) -> bool {
        let (unit, _, index) = place;
        let Some(pin) = self.pins.get(*index).copied() else {
            return false;
        };
        let Some(handle) = pin.handle else {
            return false;
        };
        if entry.masked() || entry == pin.sent {
            return true;
        }
        if !pin.hardware.masked() {
            self.apply(chip, place, pin.hardware.with_masked(true), true);
        }
        let is_sent = chip.send(unit.base, handle, entry, pin.owner, receivers);
        if let Some(pin) = self.pins.get_mut(*index) {
            pin.sent = if is_sent { entry } else { Entry::RESET };
        }
        is_sent
    }

    /// Whether another cell has the level-triggered entry's vector.
    fn is_taken(&self, entry: Entry, owner: u32) -> bool {
        let is_level = |entry: Entry| entry.level() && !entry.masked();
        let mut pins = self.pins.iter().take(self.used_pins);
        owner != ROOT
            && is_level(entry)
            && pins.any(|pin| {
                pin.owner != owner
                    && is_level(pin.hardware)
                    && pin.hardware.vector() == entry.vector()
            })
    }

    /// Gives hardware an entry. Between its two halves the entry is one that was permitted, or masked.
    pub(super) fn apply(
        &mut self,
        chip: &mut impl Chip,
        (unit, number, index): &Place,
        entry: Entry,
        write_low: bool,
    ) {
        let (number, Some(pin)) = (*number, self.pins.get_mut(*index)) else {
            return;
        };
        let mut there = pin.hardware;
        if there.high() != entry.high() {
            let is_alike = there.remapped() == entry.remapped();
            let is_whole = is_alike && there.logical() == entry.logical() && !entry.masked();
            if !there.masked() && !is_whole {
                there = there.with_masked(true);
                chip.write(unit.base, low_register(number), there.low());
            }
            chip.write(unit.base, high_register(number), entry.high());
        }
        if write_low || there.low() != entry.low() {
            chip.write(unit.base, low_register(number), entry.low());
        }
        pin.hardware = entry;
    }

    /// Masks a pin and ends what is in service.
    pub(super) fn silence(&mut self, chip: &mut impl Chip, place: &Place) {
        let (unit, number, index) = place;
        let Some(Pin {
            hardware, handle, ..
        }) = self.pins.get(*index).copied()
        else {
            return;
        };
        // An edge-triggered entry has nothing in service: that ends it where the end can't be told otherwise.
        self.apply(chip, place, hardware.with_masked(true), true);
        self.apply(chip, place, Entry::RESET, true);
        if let Some(handle) = handle {
            chip.block(unit.base, handle);
        }
        if let Some(pin) = self.pins.get_mut(*index) {
            pin.sent = Entry::RESET;
        }
        let is_left = chip.read(unit.base, low_register(*number)) & IN_SERVICE != 0;
        if is_left && unit.version >= HAS_END_OF_INTERRUPT {
            chip.end_of_interrupt(unit.base, hardware.vector());
        }
    }
}
