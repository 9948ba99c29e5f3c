//! Functions of cells: claimed at creation, attached while the cell runs.
//!
//! Invariant: what fails leaves a function claimed with nothing in its reach, or the root's as it was.
#![forbid(unsafe_code)]

use gaol_abi::config::IOMMU_SOURCE_RESERVED;

use super::super::definitions::{DomainId, InterruptHigh, InvalidationDescriptor, SourceId};
use super::super::domain::Domain;
use super::super::hardware::{Hardware, Seen};
use super::super::root_entries::{self, can_use};
use super::tables::{Borrowed, range};
use super::{Fleet, ROOT_DOMAIN, Refused};
use crate::device::io_apic::judge::Receivers;
use crate::device::pci::FunctionId;
use crate::memory::address::HostPhysical;
use crate::memory::page_table::{TableMemory, Tables};

/// Interrupts that a function's MSI capability can have: they lie at a multiple of their number.
const MSI_VECTORS: u16 = 32;

/// A function of a cell.
#[derive(Clone, Copy, Debug)]
pub(super) struct Claimed {
    pub(super) function: FunctionId,
    pub(super) cell: u32,
    pub(super) unit: usize,
    /// Its interrupts: the first entry, and how many.
    pub(super) first: u16,
    pub(super) count: u16,
    pub(super) attached: bool,
    pub(super) quarantined: bool,
}

/// Interrupts of the root's that can be used by functions of cells.
pub(super) fn is_claimed(claimed: &[Option<Claimed>], segment: u16, high: InterruptHigh) -> bool {
    let mut others = claimed.iter().flatten();
    others.any(|one| {
        one.function.segment == segment && can_use(high, SourceId(one.function.function))
    })
}

impl Fleet {
    /// Gives a function to a cell, with room for `vectors` interrupts: it reaches nothing.
    ///
    /// # Errors
    /// Why not; nothing has changed then, unless a unit has failed.
    pub fn claim<H: Hardware, T: Tables>(
        &mut self,
        hardware: &H,
        tables: &mut T,
        cell: u32,
        function: FunctionId,
        vectors: u16,
        receivers: &impl Receivers,
    ) -> Result<(), Refused> {
        let Some(unit) = self.unit_of(function) else {
            return Ok(());
        };
        let is_reserved = self.sources.iter().any(|source| {
            source.kind == IOMMU_SOURCE_RESERVED
                && (source.segment, source.source) == (function.segment, function.function)
        });
        if is_reserved {
            return Err(Refused::ReservedMemory);
        }
        let slot = self.claimed.iter().position(Option::is_none);
        let slot = slot.ok_or(Refused::Full)?;
        let source = SourceId(function.function);
        let coherent = self.coherent;
        let mut seen = Seen {
            tables: Borrowed(tables),
            hardware,
            coherent,
        };
        let devices = self.devices(function.segment).ok_or(Refused::Full)?;
        devices.claim(&mut seen, source)?;
        let entries = self.take_entries(unit, vectors);
        let Some((first, count)) = entries else {
            if let Some(devices) = self.devices(function.segment) {
                devices.release(&mut seen, source);
            }
            return Err(Refused::Full);
        };
        if let Some(slot) = self.claimed.get_mut(slot) {
            *slot = Some(Claimed {
                function,
                cell,
                unit,
                first,
                count,
                attached: false,
                quarantined: false,
            });
        }
        self.forget_function(hardware, &seen, unit, source, ROOT_DOMAIN)?;
        self.revise_unit(hardware, &seen, unit, receivers)
    }

    fn take_entries(&mut self, unit: usize, vectors: u16) -> Option<(u16, u16)> {
        let driven = self.driven.get_mut(unit)?.as_mut()?;
        if driven.table.is_none() {
            return Some((0, 0));
        }
        let count = match vectors.max(1) {
            few if few <= MSI_VECTORS => few.next_power_of_two(),
            many => many,
        };
        let first = driven.take_entries(count, count.min(MSI_VECTORS))?;
        Some((first, count))
    }

    /// Makes the domain of a cell with functions, of guest-physical address, physical address, size and writability.
    ///
    /// # Errors
    /// Why not; nothing has changed then.
    pub fn prepare_domain<H: Hardware, T: Tables>(
        &mut self,
        hardware: &H,
        tables: &mut T,
        cell: u32,
        memory: impl Iterator<Item = (u64, u64, u64, bool)>,
    ) -> Result<(), Refused> {
        let mut claimed = self.claimed.iter().flatten();
        let Some(root) = &self.root else {
            return Ok(());
        };
        if !claimed.any(|one| one.cell == cell) {
            return Ok(());
        }
        let number = u16::try_from(cell).unwrap_or(u16::MAX);
        let id = DomainId::new(number.saturating_add(ROOT_DOMAIN), u32::MAX);
        let id = id.ok_or(Refused::Full)?;
        let mut seen = Seen {
            tables: Borrowed(tables),
            hardware,
            coherent: self.coherent,
        };
        let mut domain = Domain::new(&mut seen, id, root.abilities())?;
        for (guest, physical, size, is_writable) in memory {
            let done = range(guest, size).and_then(|range| {
                let physical = HostPhysical::new(physical);
                Ok(domain.map(&mut seen, range, physical, is_writable)?)
            });
            match done {
                // No function is attached to it.
                Ok(invalidation) => invalidation.ignore(),
                Err(refused) => {
                    domain.destroy(&mut seen).ignore();
                    return Err(refused);
                }
            }
        }
        if let Some(slot) = self.domains.get_mut(cell as usize) {
            *slot = Some(domain);
        }
        Ok(())
    }

    /// The functions of a cell reach its memory.
    ///
    /// # Errors
    /// When a unit does not answer.
    pub fn attach<M: TableMemory, H: Hardware>(
        &mut self,
        hardware: &H,
        memory: &M,
        cell: u32,
    ) -> Result<(), Refused> {
        let mut seen = self.seen(hardware, memory);
        for index in 0..self.claimed.len() {
            let Some(one) = self.claimed_of(index, cell).filter(|one| !one.attached) else {
                continue;
            };
            let source = SourceId(one.function.function);
            let domain = self.domains.get(cell as usize).and_then(Option::as_ref);
            let mut segments = self.segments.iter_mut().flatten();
            let devices = segments.find(|(number, _)| *number == one.function.segment);
            if let (Some(domain), Some((_, devices))) = (domain, devices) {
                let id = domain.id();
                devices.attach(&mut seen, source, domain)?.ignore();
                if let Some(Some(one)) = self.claimed.get_mut(index) {
                    (one.attached, one.quarantined) = (true, false);
                }
                self.faults.begin_anew(one.function.segment, source);
                self.forget_function(hardware, &seen, one.unit, source, id.number())?;
            }
        }
        Ok(())
    }

    fn claimed_of(&self, index: usize, cell: u32) -> Option<Claimed> {
        let one = self.claimed.get(index).copied().flatten();
        one.filter(|one| one.cell == cell)
    }

    /// The functions of a cell reach nothing, and have no interrupts.
    ///
    /// # Errors
    /// When a unit does not answer: the others were told all the same.
    pub fn detach<M: TableMemory, H: Hardware>(
        &mut self,
        hardware: &H,
        memory: &M,
        cell: u32,
    ) -> Result<(), Refused> {
        let seen = self.seen(hardware, memory);
        let mut done = Ok(());
        for index in 0..self.claimed.len() {
            let Some(one) = self.claimed_of(index, cell) else {
                continue;
            };
            let source = SourceId(one.function.function);
            if let Some(devices) = self.devices(one.function.segment) {
                devices.block(&seen, source);
            }
            if let Some(Some(one)) = self.claimed.get_mut(index) {
                one.attached = false;
            }
            done = done.and(self.block_interrupts(hardware, &seen, &one));
            let domain = cell.saturating_add(ROOT_DOMAIN.into()) as u16;
            let forgotten = self.forget_function(hardware, &seen, one.unit, source, domain);
            done = done.and(forgotten);
        }
        done
    }

    fn block_interrupts<M: TableMemory>(
        &mut self,
        hardware: &impl Hardware,
        memory: &M,
        one: &Claimed,
    ) -> Result<(), Refused> {
        let Some(Some(driven)) = self.driven.get_mut(one.unit) else {
            return Ok(());
        };
        let Some(table) = &mut driven.table else {
            return Ok(());
        };
        let mut changed = false;
        for index in one.first..one.first.saturating_add(one.count) {
            changed |= table.replace(memory, index, root_entries::BLOCKED);
        }
        if changed {
            return driven.forget(hardware, memory, [InvalidationDescriptor::ALL_INTERRUPTS]);
        }
        Ok(())
    }

    /// Gives the functions of a cell back to the root. Frames are retired.
    ///
    /// # Errors
    /// When a unit does not answer: frames stay taken then.
    pub fn release<H: Hardware, T: Tables>(
        &mut self,
        hardware: &H,
        tables: &mut T,
        cell: u32,
        receivers: &impl Receivers,
    ) -> Result<(), Refused> {
        self.detach(hardware, &Borrowed(tables), cell)?;
        let mut seen = Seen {
            tables: Borrowed(tables),
            hardware,
            coherent: self.coherent,
        };
        for index in 0..self.claimed.len() {
            let Some(one) = self.claimed_of(index, cell) else {
                continue;
            };
            if let Some(devices) = self.devices(one.function.segment) {
                devices.release(&mut seen, SourceId(one.function.function));
            }
            if let Some(slot) = self.claimed.get_mut(index) {
                *slot = None;
            }
            if let Some(Some(driven)) = self.driven.get_mut(one.unit) {
                let first = u32::from(one.first).saturating_sub(driven.root_entries);
                driven.mark(first, one.count.into(), false);
                // A bus' own table may have gone as well.
                let all = [
                    InvalidationDescriptor::ALL_CONTEXTS,
                    InvalidationDescriptor::ALL_TRANSLATIONS,
                ];
                driven.forget(hardware, &seen, all)?;
            }
            self.revise_unit(hardware, &seen, one.unit, receivers)?;
        }
        if let Some(domain) = self.domains.get_mut(cell as usize).and_then(Option::take) {
            // Forgotten above: no function was attached to it any more.
            domain.destroy(&mut seen).ignore();
        }
        Ok(())
    }
}
