//! Interrupts of IOAPICs: whose pins a unit remaps, and an entry of its table for each pin that a cell has.
//!
//! Invariant: an entry that a pin of a cell names can be used by that IOAPIC only, and leads to processors of the cell. That
//! no other pin of the IOAPIC names it, is for those to see to who write the pins' entries: a unit can't tell pins apart.
#![forbid(unsafe_code)]

use gaol_abi::config::IOMMU_SOURCE_IO_APIC;

use super::super::definitions::{InvalidationDescriptor, SourceId};
use super::super::hardware::Hardware;
use super::super::root_entries;
use super::super::unit::UnitError;
use super::driven::Driven;
use super::{Fleet, Refused};
use crate::device::io_apic::entry::Entry;
use crate::device::io_apic::judge::{Receivers, Remapping};
use crate::memory::page_table::TableMemory;

impl Driven {
    /// The place of an entry among the cells', if it is one that is taken.
    fn taken_entry(&self, handle: u16) -> Option<u32> {
        let number = u32::from(handle).checked_sub(self.root_entries)?;
        let word = self.taken.get((number / 64) as usize)?;
        (word & 1u64.wrapping_shl(number) != 0).then_some(number)
    }
}

impl Fleet {
    /// The unit that remaps the messages of an IOAPIC, by the address of its registers, and how the IOAPIC names itself.
    fn remapper(&mut self, io_apic: u64) -> Option<(&mut Driven, SourceId)> {
        let mut sources = self.sources.iter();
        let source = sources
            .find(|source| source.kind == IOMMU_SOURCE_IO_APIC && source.address == io_apic)?;
        let driven = self.driven.get_mut(usize::from(source.unit))?.as_mut()?;
        Some((driven, SourceId(source.source)))
    }

    /// By whose table the messages of an IOAPIC are remapped.
    pub fn remapping(&mut self, io_apic: u64) -> Remapping {
        if let Some((driven, _)) = self.remapper(io_apic) {
            let root_entries = driven.root_entries;
            return match driven.table {
                Some(_) => Remapping::Own { root_entries },
                None => Remapping::None,
            };
        }
        // Where messages are remapped, those of an IOAPIC that is behind no unit go nobody knows where.
        let mut units = self.driven.iter().flatten();
        match units.any(|driven| driven.table.is_some()) {
            true => Remapping::Foreign,
            false => Remapping::None,
        }
    }

    /// Takes an entry for a pin of the IOAPIC. It sends nothing.
    ///
    /// # Errors
    /// When there is none, or the unit does not work.
    pub fn take_line(&mut self, io_apic: u64) -> Result<u16, Refused> {
        let (driven, _) = self.remapper(io_apic).ok_or(Refused::Full)?;
        if !driven.unit.works() {
            return Err(driven.refused(UnitError::TimedOut));
        }
        driven.table.as_ref().ok_or(Refused::Full)?;
        driven.take_entries(1, 1).ok_or(Refused::Full)
    }

    /// Has an entry that was taken for a pin of the IOAPIC send what `entry` of `owner`'s says, which was judged; `None`:
    /// nothing. The unit has forgotten what the entry was.
    ///
    /// # Errors
    /// When the unit does not answer, or `entry` leads to no processor of `owner`: the entry sends nothing then, or, if the
    /// unit does not answer, perhaps what it did.
    pub fn set_line<M: TableMemory, H: Hardware>(
        &mut self,
        hardware: &H,
        memory: &M,
        (io_apic, handle): (u64, u16),
        entry: Option<(Entry, u32)>,
        receivers: &impl Receivers,
    ) -> Result<(), Refused> {
        let seen = self.seen(hardware, memory);
        let (driven, source) = self.remapper(io_apic).ok_or(Refused::Full)?;
        driven.taken_entry(handle).ok_or(Refused::Full)?;
        let table = driven.table.as_mut().ok_or(Refused::Full)?;
        let x2apic = table.is_x2apic();
        let words = entry.map(|(entry, owner)| {
            root_entries::of_pin(entry, source, x2apic, owner, receivers).ok_or(Refused::Memory)
        });
        let words = words.unwrap_or(Ok(root_entries::BLOCKED));
        if table.replace(&seen, handle, words.unwrap_or(root_entries::BLOCKED)) {
            let what = [InvalidationDescriptor::interrupt_entry(handle)];
            driven.forget(hardware, &seen, what)?;
        }
        words.map(drop)
    }

    /// Gives an entry back that was taken for a pin of the IOAPIC.
    ///
    /// # Errors
    /// When the unit does not answer: the entry stays taken then.
    pub fn release_line<M: TableMemory, H: Hardware>(
        &mut self,
        hardware: &H,
        memory: &M,
        (io_apic, handle): (u64, u16),
        receivers: &impl Receivers,
    ) -> Result<(), Refused> {
        self.set_line(hardware, memory, (io_apic, handle), None, receivers)?;
        if let Some((driven, _)) = self.remapper(io_apic)
            && let Some(number) = driven.taken_entry(handle)
        {
            driven.mark(number, 1, false);
        }
        Ok(())
    }
}
