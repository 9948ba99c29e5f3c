//! What the root has of the units: its functions' memory, its interrupts, and registers.
//!
//! Invariant: what the root writes changes its view ([`super::super::root_view`]), and the unit only as far as it may.
#![forbid(unsafe_code)]

use super::super::definitions::{DomainId, InvalidationDescriptor, register};
use super::super::hardware::{Hardware, Seen};
use super::super::root_view::Effect;
use super::driven::guard_fault_event;
use super::tables::Borrowed;
use super::{Fleet, ROOT_DOMAIN, Refused};
use crate::device::io_apic::judge::Receivers;
use crate::memory::address::HostPhysical;
use crate::memory::page_table::{TableMemory, Tables};

impl Fleet {
    /// The root loses memory, as far as the units go, or gets it back. [`Self::forget_root`] has to follow.
    ///
    /// # Errors
    /// When there are no frames, which never happens where the same range goes back.
    pub fn set_root_memory<H: Hardware, T: Tables>(
        &mut self,
        hardware: &H,
        tables: &mut T,
        (start, size): (u64, u64),
        is_roots: bool,
    ) -> Result<(), Refused> {
        let Some(range) = self.within(start, size) else {
            return Ok(());
        };
        let mut seen = Seen {
            tables: Borrowed(tables),
            hardware,
            coherent: self.coherent,
        };
        let Some(root) = &mut self.root else {
            return Ok(());
        };
        let change = if is_roots {
            root.map(&mut seen, range, HostPhysical::new(start), true)?
        } else {
            root.unmap_keeping_tables(&mut seen, range)?
        };
        // Tables may have been merged: of these the units must forget as well.
        self.root_has_changed |= change.is_needed() || is_roots;
        Ok(())
    }

    /// What the root has lost is forgotten by all units.
    ///
    /// # Errors
    /// When a unit does not answer.
    pub fn forget_root<M: TableMemory>(
        &mut self,
        hardware: &impl Hardware,
        memory: &M,
    ) -> Result<(), Refused> {
        if !self.root_has_changed {
            return Ok(());
        }
        let id = DomainId::new(ROOT_DOMAIN, u32::MAX).ok_or(Refused::Full)?;
        let what = [InvalidationDescriptor::translations_of_domain(id)];
        for driven in self.driven.iter_mut().flatten() {
            driven.forget(hardware, memory, what)?;
        }
        self.root_has_changed = false;
        Ok(())
    }

    /// Looks at all entries of the root's once more: CPUs or functions have changed hands.
    ///
    /// # Errors
    /// When a unit does not answer.
    pub fn revise<M: TableMemory, H: Hardware>(
        &mut self,
        hardware: &H,
        memory: &M,
        receivers: &impl Receivers,
    ) -> Result<(), Refused> {
        let seen = self.seen(hardware, memory);
        for unit in 0..self.driven.len() {
            self.revise_unit(hardware, &seen, unit, receivers)?;
        }
        Ok(())
    }

    pub(super) fn revise_unit<M: TableMemory>(
        &mut self,
        hardware: &impl Hardware,
        memory: &M,
        unit: usize,
        receivers: &impl Receivers,
    ) -> Result<(), Refused> {
        let Some(Some(driven)) = self.driven.get_mut(unit) else {
            return Ok(());
        };
        guard_fault_event(driven, hardware, receivers);
        let used = 0..driven.used;
        driven.copy_all(hardware, memory, used, &self.claimed, receivers)
    }

    /// Reads a register of a unit as the root sees it, `width` bytes.
    pub fn read<M: TableMemory, H: Hardware>(
        &mut self,
        hardware: &H,
        memory: &M,
        unit: usize,
        offset: u64,
        width: u8,
    ) -> u64 {
        let Some(Some(driven)) = self.driven.get(unit) else {
            return u64::MAX;
        };
        let (base, view) = (driven.unit.base(), driven.view);
        let word = |offset: u64| match view.read(offset) {
            Some(value) => value,
            None => hardware.read_32(base.wrapping_add(offset)),
        };
        let value = match (width, offset & 7) {
            (4, 0 | 4) => word(offset).into(),
            (8, 0) => u64::from(word(offset)) | u64::from(word(offset.wrapping_add(4))) << 32,
            _ => 0,
        };
        if offset == register::FAULT_STATUS {
            self.poll(hardware, memory);
        }
        value
    }

    /// Writes a register of a unit as the root may.
    pub fn write<M: TableMemory, H: Hardware>(
        &mut self,
        hardware: &H,
        memory: &M,
        unit: usize,
        (offset, width): (u64, u8),
        value: u64,
        receivers: &impl Receivers,
    ) {
        let seen = self.seen(hardware, memory);
        let Some(Some(driven)) = self.driven.get_mut(unit) else {
            return;
        };
        let effect = match (width, offset & 7) {
            (4, 0 | 4) => driven.view.write(offset, value as u32),
            (8, 0) => driven.view.write_wide(offset, value),
            _ => Effect::None,
        };
        match effect {
            Effect::None => {}
            Effect::Queue => driven.serve_queue(hardware, &seen, &self.claimed, receivers),
            Effect::InterruptTable => {
                let all = 0..driven.root_entries;
                // As for the queue.
                let _ = driven.copy_all(hardware, &seen, all, &self.claimed, receivers);
            }
            Effect::FaultEvent => guard_fault_event(driven, hardware, receivers),
            Effect::Translation => driven.overruled = driven.overruled.saturating_add(1),
        }
    }
}
