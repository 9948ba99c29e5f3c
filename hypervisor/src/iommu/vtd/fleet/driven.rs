//! One unit with all that belongs to it.
//!
//! Invariant: an entry of the root's reaches the unit's table as [`root_entries::permitted`] lets it only, and the entries
//! behind [`Driven::root_entries`] are the cells'.
#![forbid(unsafe_code)]

use super::super::definitions::{EXTENDED_INTERRUPT_MODE, InvalidationDescriptor, Kind};
use super::super::hardware::Hardware;
use super::super::interrupts::{ENTRIES_PER_PAGE, Interrupts, MOST_ENTRIES};
use super::super::root_entries;
use super::super::root_view::RootView;
use super::super::unit::{Unit, UnitError};
use super::functions::{Claimed, is_claimed};
use super::{CELL_ENTRIES, Refused};
use crate::device::io_apic::judge::Receivers;
use crate::memory::address::HostPhysical;
use crate::memory::frames::OutOfFrames;
use crate::memory::page_table::{TableMemory, Tables};

/// Entries that the root has at least, and how many more than it uses at launch.
const ROOT_ROOM: u32 = 512;
/// So many entries without an interrupt are the end of those that the root uses.
const LARGEST_GAP: u32 = 4096;
/// Descriptors of the root's queue that one access has looked at.
const MOST_DESCRIPTORS: usize = 512;

/// A unit with all that belongs to it.
#[derive(Debug)]
pub(super) struct Driven {
    pub(super) unit: Unit,
    pub(super) view: RootView,
    pub(super) segment: u16,
    pub(super) includes_all: bool,
    /// None: interrupts are not remapped.
    pub(super) table: Option<Interrupts>,
    /// Entries from here on are the cells'.
    pub(super) root_entries: u32,
    /// The root has no interrupt behind this entry.
    pub(super) used: u32,
    /// Bit n: the cells' entry n is taken.
    pub(super) taken: [u64; CELL_ENTRIES as usize / 64],
    pub(super) overruled: u32,
}

impl Driven {
    pub(super) const fn refused(&self, error: UnitError) -> Refused {
        Refused::Unit(self.unit.base(), error)
    }

    pub(super) fn forget<M: TableMemory>(
        &mut self,
        hardware: &impl Hardware,
        memory: &M,
        what: impl IntoIterator<Item = InvalidationDescriptor>,
    ) -> Result<(), Refused> {
        let done = self.unit.forget(hardware, memory, what);
        done.map_err(|error| self.refused(error))
    }

    /// Copies an entry of the root's as far as it may be. Whether the unit has another one now.
    pub(super) fn copy<M: TableMemory, H: Hardware>(
        &mut self,
        hardware: &H,
        memory: &M,
        index: u32,
        claimed: &[Option<Claimed>],
        receivers: &impl Receivers,
    ) -> bool {
        let Some(table) = &mut self.table else {
            return false;
        };
        if index >= self.root_entries {
            return false;
        }
        let Some(at) = self.view.entry_address(index) else {
            return table.replace(memory, index as u16, root_entries::BLOCKED);
        };
        let words = hardware
            .read_root(at)
            .zip(hardware.read_root(at.wrapping_add(8)));
        let (low, high) = words.unwrap_or((0, 0));
        if low != 0 {
            self.used = self.used.max(index.wrapping_add(1));
        }
        let is_claimed = |high| is_claimed(claimed, self.segment, high);
        let entry = root_entries::permitted([low, high], table.is_x2apic(), is_claimed, receivers);
        if low & 1 != 0 && entry == root_entries::BLOCKED {
            self.overruled = self.overruled.saturating_add(1);
        }
        table.replace(memory, index as u16, entry)
    }

    /// Copies entries of the root's once more, and has the unit forget those that have changed.
    pub(super) fn copy_all<M: TableMemory>(
        &mut self,
        hardware: &impl Hardware,
        memory: &M,
        entries: core::ops::Range<u32>,
        claimed: &[Option<Claimed>],
        receivers: &impl Receivers,
    ) -> Result<(), Refused> {
        let mut changed = false;
        for index in entries {
            changed |= self.copy(hardware, memory, index, claimed, receivers);
        }
        if changed {
            return self.forget(hardware, memory, [InvalidationDescriptor::ALL_INTERRUPTS]);
        }
        Ok(())
    }

    /// Does what the root's queue asks for.
    pub(super) fn serve_queue<M: TableMemory>(
        &mut self,
        hardware: &impl Hardware,
        memory: &M,
        claimed: &[Option<Claimed>],
        receivers: &impl Receivers,
    ) {
        for _ in 0..MOST_DESCRIPTORS {
            let Some(kind) = self.view.next(hardware) else {
                return;
            };
            // A unit that fails is counted, and the root goes on: its entries are as they were.
            let _ = match kind {
                Kind::AllInterrupts => {
                    let all = 0..self.root_entries;
                    self.copy_all(hardware, memory, all, claimed, receivers)
                }
                Kind::Interrupts { index, order } => {
                    let count = 1u32.wrapping_shl(order.min(16).into());
                    let first = u32::from(index) & !count.wrapping_sub(1);
                    let end = first.saturating_add(count).min(self.root_entries);
                    self.copy_all(hardware, memory, first..end, claimed, receivers)
                }
                Kind::Wait {
                    status: Some((data, address)),
                } => {
                    hardware.write_root_32(address, data);
                    Ok(())
                }
                _ => Ok(()),
            };
        }
    }

    /// How many entries the root uses: behind the last is a large gap.
    fn count_used(&self, hardware: &impl Hardware) -> u32 {
        let mut used = 0u32;
        for index in 0..MOST_ENTRIES {
            let Some(at) = self.view.entry_address(index) else {
                break;
            };
            if hardware.read_root(at).is_some_and(|low| low & 1 != 0) {
                used = index.wrapping_add(1);
            } else if index.wrapping_sub(used) > LARGEST_GAP {
                break;
            }
        }
        used
    }

    /// Takes `count` entries of the cells' that follow each other, the first at a multiple of `alignment`.
    pub(super) fn take_entries(&mut self, count: u16, alignment: u16) -> Option<u16> {
        let (count, step) = (u32::from(count), usize::from(alignment.max(1)));
        let last = CELL_ENTRIES.checked_sub(count)?;
        let is_free = |index: u32, taken: &[u64]| {
            let word = taken.get((index / 64) as usize);
            word.is_some_and(|word| word & 1u64.wrapping_shl(index) == 0)
        };
        let mut firsts = (0..=last).step_by(step);
        let first = firsts.find(|first| {
            let mut all = *first..first.wrapping_add(count);
            all.all(|index| is_free(index, &self.taken))
        })?;
        self.mark(first, count, true);
        u16::try_from(self.root_entries.wrapping_add(first)).ok()
    }

    pub(super) fn mark(&mut self, first: u32, count: u32, taken: bool) {
        for index in first..first.saturating_add(count) {
            if let Some(word) = self.taken.get_mut((index / 64) as usize) {
                let bit = 1u64.wrapping_shl(index);
                *word = if taken { *word | bit } else { *word & !bit };
            }
        }
    }
}

/// Makes the interrupt remapping table of a unit that remaps interrupts for Linux: empty, with room for both.
pub(super) fn prepare_interrupts<T: Tables>(
    driven: &mut Driven,
    hardware: &impl Hardware,
    tables: &mut T,
    contiguous: &mut impl FnMut(&mut T, usize) -> Result<HostPhysical, OutOfFrames>,
) -> Result<(), Refused> {
    if !driven.unit.before.remaps() {
        return Ok(());
    }
    driven.used = driven.count_used(hardware);
    let wanted = driven
        .used
        .saturating_add(ROOT_ROOM)
        .saturating_add(CELL_ENTRIES);
    let entries = wanted.next_power_of_two().min(MOST_ENTRIES);
    let pages = entries / ENTRIES_PER_PAGE;
    let base = contiguous(tables, pages as usize)?;
    for page in 0..u64::from(pages) {
        let page = HostPhysical::new(base.as_u64().wrapping_add(page << 12));
        for (index, word) in tables.entries(page).iter().enumerate() {
            word.store(0, core::sync::atomic::Ordering::Relaxed);
            if index % 8 == 7 {
                let at = page.as_u64().wrapping_add((index as u64) << 3);
                hardware.flush_line(HostPhysical::new(at));
            }
        }
    }
    let x2apic = driven.unit.before.interrupt_table & EXTENDED_INTERRUPT_MODE != 0;
    driven.table = Interrupts::new(base, entries, x2apic);
    driven.root_entries = entries.saturating_sub(CELL_ENTRIES);
    Ok(())
}

/// Lets the unit send the fault event that the root wants, if it goes to processors of the root's only.
pub(super) fn guard_fault_event(
    driven: &mut Driven,
    hardware: &impl Hardware,
    receivers: &impl Receivers,
) {
    let wide = driven.table.as_ref().is_some_and(Interrupts::is_x2apic);
    let event = root_entries::permitted_event(driven.view.now.fault_event, wide, receivers);
    driven.unit.set_fault_event(hardware, event);
}
