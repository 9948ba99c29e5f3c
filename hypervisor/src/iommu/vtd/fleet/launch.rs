//! How all units are taken over from Linux, and given back.
//!
//! Invariant: a launch that fails has given back what it took, as far as the units answer.
#![forbid(unsafe_code)]

use gaol_abi::MAX_CELLS;
use gaol_abi::config::{IOMMU_INCLUDES_ALL, IommuSource, IommuUnit};

use super::super::definitions::DomainId;
use super::super::devices::Devices;
use super::super::domain::{Abilities, Domain};
use super::super::hardware::{Hardware, Seen};
use super::super::root_view::RootView;
use super::super::unit::{Unit, UnitError};
use super::driven::{Driven, guard_fault_event, prepare_interrupts};
use super::tables::{Borrowed, range, zeroed};
use super::{CELL_ENTRIES, Fleet, ROOT_DOMAIN, Refused};
use crate::device::io_apic::judge::Receivers;
use crate::memory::address::HostPhysical;
use crate::memory::frames::OutOfFrames;
use crate::memory::page_table::{TableMemory, Tables};

/// What a launch has to say of the machine.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The units.
    pub units: &'a [IommuUnit],
    /// What is behind them.
    pub sources: &'static [IommuSource],
    /// The first address behind all that Linux knows of: registers may lie beyond what the units reach.
    pub end: u64,
    /// The first address behind all RAM, as far as it is known. The units have to reach that far.
    pub memory_end: u64,
    /// Cycles that a unit has for what it is told.
    pub deadline: u64,
}

impl Fleet {
    /// Takes all units over, with `foreign` memory kept from the root's functions. `contiguous` gives frames that follow
    /// each other, aligned to their number.
    ///
    /// # Errors
    /// Why not; the units are as Linux had them then, as far as they answer.
    pub fn start<H: Hardware, T: Tables>(
        &mut self,
        hardware: &H,
        tables: &mut T,
        place: &Place<'_>,
        foreign: impl Iterator<Item = (u64, u64)>,
        mut contiguous: impl FnMut(&mut T, usize) -> Result<HostPhysical, OutOfFrames>,
        receivers: &impl Receivers,
    ) -> Result<(), Refused> {
        if place.units.is_empty() {
            return Ok(());
        }
        let abilities = self.look(hardware, tables, place)?;
        self.sources = place.sources;
        for driven in self.driven.iter_mut().flatten() {
            prepare_interrupts(driven, hardware, tables, &mut contiguous)?;
        }
        let coherent = self.coherent;
        let mut seen = Seen {
            tables: Borrowed(tables),
            hardware,
            coherent,
        };
        self.make_root_domain(&mut seen, abilities, foreign)?;
        self.make_segments(&mut seen)?;
        for index in 0..self.driven.len() {
            if let Err(refused) = self.take_over(hardware, &seen, index, receivers) {
                // Whatever comes of it: the launch has failed, and this is what can be done.
                let _ = self.give_back(hardware, &seen);
                return Err(refused);
            }
        }
        Ok(())
    }

    /// Looks at all units, and at what they can do together.
    fn look<H: Hardware, T: Tables>(
        &mut self,
        hardware: &H,
        tables: &mut T,
        place: &Place<'_>,
    ) -> Result<Abilities, Refused> {
        let status = zeroed(tables)?;
        let mut abilities = None;
        let units = self.driven.iter_mut().zip(place.units).enumerate();
        for (index, (slot, description)) in units {
            let queue = zeroed(tables)?;
            let base = description.registers;
            let unit = Unit::look(hardware, base, queue, (status, index), place.deadline);
            unit.check().map_err(|error| Refused::Unit(base, error))?;
            let common = match abilities {
                None => Abilities::of(unit.capability),
                Some(others) => Abilities::common(unit.capability, others),
            };
            abilities = Some(common.ok_or(Refused::Capability(base))?);
            self.coherent &= unit.extended.is_coherent();
            *slot = Some(Driven {
                view: RootView::new(unit.before),
                segment: description.segment,
                includes_all: description.flags & IOMMU_INCLUDES_ALL != 0,
                table: None,
                root_entries: 0,
                used: 0,
                taken: [0; CELL_ENTRIES as usize / 64],
                overruled: 0,
                unit,
            });
        }
        let first = place.units.first().map_or(0, |unit| unit.registers);
        let abilities = abilities.ok_or(Refused::Capability(first))?;
        let mut end = place.end;
        for driven in self.driven.iter().flatten() {
            let capability = driven.unit.capability;
            let reach = 1u64
                .checked_shl(u32::from(capability.address_bits()).wrapping_add(1))
                .unwrap_or(u64::MAX);
            let is_enough = abilities.fits(capability)
                && abilities.end().min(reach) >= place.memory_end
                && capability.domain_count() > MAX_CELLS as u32;
            if !is_enough {
                return Err(Refused::Capability(driven.unit.base()));
            }
            end = end.min(abilities.end()).min(reach);
        }
        self.end = end;
        Ok(abilities)
    }

    fn make_root_domain<T: Tables>(
        &mut self,
        tables: &mut T,
        abilities: Abilities,
        foreign: impl Iterator<Item = (u64, u64)>,
    ) -> Result<(), Refused> {
        let id = DomainId::new(ROOT_DOMAIN, u32::MAX).ok_or(Refused::Full)?;
        let mut domain = Domain::new(tables, id, abilities)?;
        let all = range(0, self.end)?;
        // No unit uses the tables yet.
        domain.map(tables, all, HostPhysical::ZERO, true)?.ignore();
        for (start, size) in foreign {
            if let Some(range) = self.within(start, size) {
                domain.unmap_keeping_tables(tables, range)?.ignore();
            }
        }
        self.root = Some(domain);
        Ok(())
    }

    fn make_segments<T: Tables>(&mut self, tables: &mut T) -> Result<(), Refused> {
        let root = self.root.as_ref().ok_or(Refused::Full)?;
        for driven in self.driven.iter().flatten() {
            let number = driven.segment;
            let mut known = self.segments.iter().flatten();
            if known.any(|(known, _)| *known == number) {
                continue;
            }
            let mut slots = self.segments.iter_mut();
            let slot = slots.find(|slot| slot.is_none()).ok_or(Refused::Full)?;
            *slot = Some((number, Devices::with_default(tables, root)?));
        }
        Ok(())
    }

    fn take_over<H: Hardware, M: TableMemory>(
        &mut self,
        hardware: &H,
        memory: &M,
        index: usize,
        receivers: &impl Receivers,
    ) -> Result<(), Refused> {
        let Some(Some(driven)) = self.driven.get_mut(index) else {
            return Ok(());
        };
        let base = driven.unit.base();
        let of_unit = |error| Refused::Unit(base, error);
        driven.unit.take_queue(hardware).map_err(of_unit)?;
        let used = driven.used;
        let mut passes = false;
        for entry in 0..used {
            passes |= driven.copy(hardware, memory, entry, &self.claimed, receivers);
        }
        if used != 0 && !passes {
            // Not one of Linux' interrupts would come any more.
            return Err(of_unit(UnitError::SourcesNotVerified));
        }
        if let Some(table) = &driven.table {
            let address = table.address_register();
            let unit = &mut driven.unit;
            unit.set_interrupt_table(hardware, memory, address)
                .map_err(of_unit)?;
            unit.block_compatibility(hardware).map_err(of_unit)?;
        }
        guard_fault_event(driven, hardware, receivers);
        let mut segments = self.segments.iter().flatten();
        let devices = segments.find(|(number, _)| *number == driven.segment);
        let root = devices.map(|(_, devices)| devices.root());
        let root = root.ok_or(Refused::Full)?;
        let unit = &mut driven.unit;
        unit.start_translation(hardware, memory, root)
            .map_err(of_unit)
    }

    /// Gives all units back to Linux, which has nothing under way.
    ///
    /// # Errors
    /// The first unit that does not answer; the others are given back all the same.
    pub fn give_back<M: TableMemory>(
        &mut self,
        hardware: &impl Hardware,
        memory: &M,
    ) -> Result<(), Refused> {
        let mut done = Ok(());
        for driven in self.driven.iter_mut().flatten() {
            let now = driven.view.now;
            if let Err(error) = driven.unit.give_back(hardware, memory, &now) {
                done = done.and(Err(driven.refused(error)));
            }
        }
        done
    }
}
