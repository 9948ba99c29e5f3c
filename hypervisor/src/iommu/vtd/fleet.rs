//! All units together: who has which function, which memory and interrupts its owner gives it, and what the root sees.
//!
//! One set of second-level tables serves all units, so each has what all can do. Root and context tables are one set a
//! segment; each unit has an interrupt remapping table of its own, the front of which is a copy of the root's entries as
//! far as they may be, and the end the cells'.
//!
//! Invariant: a function is in the root's domain, or it is claimed by a cell; then it is in the cell's domain or in none,
//! and no entry of the root's can be used by it.
#![forbid(unsafe_code)]

use gaol_abi::MAX_CELLS;
use gaol_abi::config::{
    IOMMU_INCLUDES_ALL, IOMMU_SOURCE_FUNCTION, IOMMU_SOURCE_RESERVED, IommuSource, IommuUnit,
    MAX_IOMMUS,
};
use gaol_abi::public::IommuState;

use super::definitions::{
    DomainId, EXTENDED_INTERRUPT_MODE, InterruptHigh, InvalidationDescriptor, Kind, SourceId,
};
use super::devices::{AttachError, Devices};
use super::domain::{Abilities, Domain};
use super::faults::Faults;
use super::hardware::{Hardware, Seen};
use super::interrupts::{ENTRIES_PER_PAGE, Interrupt, Interrupts, MOST_ENTRIES};
use super::root_entries::{self, can_use};
use super::root_view::{Effect, RootView};
use super::unit::{Unit, UnitError};
use crate::device::io_apic::judge::Receivers;
use crate::device::pci::FunctionId;
use crate::memory::address::{GuestPhysical, GuestRange, HostPhysical};
use crate::memory::frames::OutOfFrames;
use crate::memory::page_table::{Entries, MapError, TableMemory, Tables};

/// Most functions of cells at one time.
pub const MAX_CLAIMED: usize = 64;
/// Most segments with IOMMUs.
const MAX_SEGMENTS: usize = 8;
/// Interrupt entries of a unit that are for cells.
pub const CELL_ENTRIES: u32 = 512;
/// Entries that the root has at least, and how many more than it uses at launch.
const ROOT_ROOM: u32 = 512;
/// So many entries without an interrupt are the end of those that the root uses.
const LARGEST_GAP: u32 = 4096;
/// Descriptors of the root's queue that one access has looked at.
const MOST_DESCRIPTORS: usize = 512;
/// Interrupts that a function's MSI capability can have: they lie at a multiple of their number.
const MSI_VECTORS: u16 = 32;
/// Number of the root's domain; those of cells follow.
const ROOT_DOMAIN: u16 = 1;

/// Why something is not done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// The pool is empty.
    OutOfFrames,
    /// The unit at this address does not do what it has to.
    Unit(u64, UnitError),
    /// The unit at this address has no tables that reach all memory.
    Capability(u64),
    /// The function uses memory that is kept for it.
    ReservedMemory,
    /// There are too many functions, or interrupts.
    Full,
    /// The memory is none that there can be.
    Memory,
}

impl From<OutOfFrames> for Refused {
    fn from(_: OutOfFrames) -> Self {
        Self::OutOfFrames
    }
}

impl From<MapError> for Refused {
    fn from(error: MapError) -> Self {
        match error {
            MapError::OutOfFrames => Self::OutOfFrames,
            _ => Self::Memory,
        }
    }
}

impl From<AttachError> for Refused {
    fn from(error: AttachError) -> Self {
        match error {
            AttachError::OutOfFrames => Self::OutOfFrames,
            _ => Self::Full,
        }
    }
}

/// A function of a cell.
#[derive(Clone, Copy, Debug)]
struct Claimed {
    function: FunctionId,
    cell: u32,
    unit: usize,
    /// Its interrupts: the first entry, and how many.
    first: u16,
    count: u16,
    attached: bool,
    quarantined: bool,
}

/// A unit with all that belongs to it.
#[derive(Debug)]
struct Driven {
    unit: Unit,
    view: RootView,
    segment: u16,
    includes_all: bool,
    /// None: interrupts are not remapped.
    table: Option<Interrupts>,
    /// Entries from here on are the cells'.
    root_entries: u32,
    /// The root has no interrupt behind this entry.
    used: u32,
    /// Bit n: the cells' entry n is taken.
    taken: [u64; CELL_ENTRIES as usize / 64],
    overruled: u32,
}

/// Interrupts of the root's that can be used by functions of cells.
fn is_claimed(claimed: &[Option<Claimed>], segment: u16, high: InterruptHigh) -> bool {
    let mut others = claimed.iter().flatten();
    others.any(|one| {
        one.function.segment == segment && can_use(high, SourceId(one.function.function))
    })
}

impl Driven {
    const fn refused(&self, error: UnitError) -> Refused {
        Refused::Unit(self.unit.base(), error)
    }

    fn forget<M: TableMemory>(
        &mut self,
        hardware: &impl Hardware,
        memory: &M,
        what: impl IntoIterator<Item = InvalidationDescriptor>,
    ) -> Result<(), Refused> {
        let done = self.unit.forget(hardware, memory, what);
        done.map_err(|error| self.refused(error))
    }

    /// Copies an entry of the root's as far as it may be. Whether the unit has another one now.
    fn copy<M: TableMemory, H: Hardware>(
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
    fn copy_all<M: TableMemory>(
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
    fn serve_queue<M: TableMemory>(
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
    fn take_entries(&mut self, count: u16, alignment: u16) -> Option<u16> {
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

    fn mark(&mut self, first: u32, count: u32, taken: bool) {
        for index in first..first.saturating_add(count) {
            if let Some(word) = self.taken.get_mut((index / 64) as usize) {
                let bit = 1u64.wrapping_shl(index);
                *word = if taken { *word | bit } else { *word & !bit };
            }
        }
    }
}

/// Tables that get no new frames.
struct NoFrames<'a, M>(&'a M);

impl<M: TableMemory> TableMemory for NoFrames<'_, M> {
    fn entries(&self, table: HostPhysical) -> &Entries {
        self.0.entries(table)
    }

    fn written(&self, table: HostPhysical, index: usize) {
        self.0.written(table, index);
    }
}

impl<M: TableMemory> Tables for NoFrames<'_, M> {
    fn allocate(&mut self) -> Result<HostPhysical, OutOfFrames> {
        Err(OutOfFrames)
    }

    fn free(&mut self, _: HostPhysical) {}

    fn retire(&mut self, _: HostPhysical) {}
}

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

/// All units.
#[derive(Debug)]
pub struct Fleet {
    driven: [Option<Driven>; MAX_IOMMUS],
    segments: [Option<(u16, Devices)>; MAX_SEGMENTS],
    root: Option<Domain>,
    domains: [Option<Domain>; MAX_CELLS],
    claimed: [Option<Claimed>; MAX_CLAIMED],
    sources: &'static [IommuSource],
    end: u64,
    coherent: bool,
    /// The root has lost memory, and the units may not know yet.
    root_has_changed: bool,
    /// What devices tried.
    pub faults: Faults,
}

impl Default for Fleet {
    fn default() -> Self {
        Self::new()
    }
}

/// What a function has to be told to send.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Remapped {
    /// The low half of the address.
    pub address: u32,
    /// The data.
    pub data: u16,
}

impl Fleet {
    /// No unit.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            driven: [const { None }; MAX_IOMMUS],
            segments: [const { None }; MAX_SEGMENTS],
            root: None,
            domains: [const { None }; MAX_CELLS],
            claimed: [None; MAX_CLAIMED],
            sources: &[],
            end: 0,
            coherent: true,
            root_has_changed: false,
            faults: Faults::new(),
        }
    }

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

    /// The range as far as the root's domain reaches.
    fn within(&self, start: u64, size: u64) -> Option<GuestRange> {
        let end = start.checked_add(size)?.min(self.end);
        let bytes = end.checked_sub(start).filter(|bytes| *bytes != 0)?;
        range(start, bytes).ok()
    }

    /// Whether there is a unit.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.root.is_none()
    }

    /// Number of the unit that a function is behind.
    fn unit_of(&self, function: FunctionId) -> Option<usize> {
        let mut sources = self.sources.iter();
        let named = sources.find(|source| {
            source.kind == IOMMU_SOURCE_FUNCTION
                && (source.segment, source.source) == (function.segment, function.function)
        });
        let of_all = || {
            self.driven.iter().position(|driven| {
                driven
                    .as_ref()
                    .is_some_and(|it| it.includes_all && it.segment == function.segment)
            })
        };
        let unit = named
            .map(|source| usize::from(source.unit))
            .or_else(of_all)?;
        self.driven.get(unit)?.as_ref().map(|_| unit)
    }

    /// Whether DMA of a function is translated, and whether its interrupts are remapped.
    #[must_use]
    pub fn isolation(&self, function: FunctionId) -> (bool, bool) {
        let unit = self
            .unit_of(function)
            .and_then(|unit| self.driven.get(unit));
        let driven = unit.and_then(Option::as_ref);
        let driven = driven.filter(|driven| driven.unit.works());
        driven.map_or((false, false), |driven| (true, driven.table.is_some()))
    }

    fn devices(&mut self, segment: u16) -> Option<&mut Devices> {
        let mut segments = self.segments.iter_mut().flatten();
        let found = segments.find(|(number, _)| *number == segment);
        found.map(|(_, devices)| devices)
    }

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

    fn forget_function<M: TableMemory>(
        &mut self,
        hardware: &impl Hardware,
        memory: &M,
        unit: usize,
        source: SourceId,
        domain: u16,
    ) -> Result<(), Refused> {
        let id = DomainId::new(domain, u32::MAX).ok_or(Refused::Full)?;
        let Some(Some(driven)) = self.driven.get_mut(unit) else {
            return Ok(());
        };
        driven.forget(
            hardware,
            memory,
            [
                InvalidationDescriptor::context_of_function(source, id),
                InvalidationDescriptor::translations_of_domain(id),
            ],
        )
    }

    fn revise_unit<M: TableMemory>(
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

    fn seen<'a, M: TableMemory, H: Hardware>(
        &self,
        hardware: &'a H,
        memory: &'a M,
    ) -> Seen<'a, NoFrames<'a, M>, H> {
        Seen {
            tables: NoFrames(memory),
            hardware,
            coherent: self.coherent,
        }
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

    /// What the function has to send so that its interrupts `number` and on, two to the `order` of them, arrive as
    /// `interrupt` says, with vectors that follow each other. `None`: none arrives. `Err`: no unit remaps them.
    ///
    /// # Errors
    /// When no unit remaps interrupts of this function.
    pub fn remap<M: TableMemory, H: Hardware>(
        &mut self,
        hardware: &H,
        memory: &M,
        function: FunctionId,
        (number, order): (u16, u8),
        interrupt: Option<(u8, u32, bool)>,
    ) -> Result<Option<Remapped>, NotRemapped> {
        let seen = self.seen(hardware, memory);
        let mut claimed = self.claimed.iter().flatten();
        let one = claimed.find(|one| one.function == function);
        let one = one.ok_or(NotRemapped)?;
        let Some(Some(driven)) = self.driven.get_mut(one.unit) else {
            return Err(NotRemapped);
        };
        let table = driven.table.as_mut().ok_or(NotRemapped)?;
        let count = 1u16.checked_shl(order.into()).unwrap_or(u16::MAX);
        let is_inside = number
            .checked_add(count)
            .is_some_and(|end| end <= one.count);
        if !is_inside {
            return Ok(None);
        }
        let first = one.first.wrapping_add(number);
        let mut changed = false;
        for offset in 0..count {
            let index = first.wrapping_add(offset);
            let entry = interrupt.and_then(|(vector, destination, nmi)| {
                let interrupt = Interrupt {
                    source: SourceId(function.function),
                    vector: vector.checked_add(offset as u8)?,
                    destination,
                    level_triggered: false,
                    nmi,
                };
                table.encode(interrupt).ok()
            });
            let entry = entry.unwrap_or(root_entries::BLOCKED);
            changed |= table.replace(&seen, index, entry);
        }
        let all = [InvalidationDescriptor::ALL_INTERRUPTS];
        if changed && driven.forget(hardware, &seen, all).is_err() {
            return Ok(None);
        }
        Ok(interrupt.map(|_| message(first, order != 0)))
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
        if offset == super::definitions::register::FAULT_STATUS {
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

    /// Takes what the units have recorded of faults, and keeps functions of cells that have too many from all memory.
    pub fn poll<M: TableMemory, H: Hardware>(&mut self, hardware: &H, memory: &M) {
        let seen = self.seen(hardware, memory);
        for index in 0..self.driven.len() {
            let Some(Some(driven)) = self.driven.get(index) else {
                continue;
            };
            let (claimed, faults, segment) = (&self.claimed, &mut self.faults, driven.segment);
            let mut stormy = None;
            let (_, lost) = driven.unit.take_faults(hardware, 16, |low, high| {
                let source = SourceId(high as u16);
                let mut all = claimed.iter().flatten();
                let is_it = |one: &&Claimed| {
                    (one.function.segment, one.function.function) == (segment, source.0)
                };
                let cell = all.find(is_it).map_or(0, |one| one.cell);
                if faults.note((segment, source), cell, (low, high), hardware.now()) && cell != 0 {
                    stormy = Some(source);
                }
            });
            if lost {
                self.faults.lost = self.faults.lost.saturating_add(1);
            }
            if let Some(source) = stormy {
                self.quarantine(hardware, &seen, segment, source);
            }
        }
    }

    fn quarantine<M: TableMemory>(
        &mut self,
        hardware: &impl Hardware,
        memory: &M,
        segment: u16,
        source: SourceId,
    ) {
        let mut all = self.claimed.iter_mut().flatten();
        let one =
            all.find(|one| one.function.segment == segment && one.function.function == source.0);
        let Some(one) = one.filter(|one| !one.quarantined) else {
            return;
        };
        // Still attached, as far as the cell's next start goes: it is detached by then.
        one.quarantined = true;
        let (unit, domain) = (one.unit, one.cell.saturating_add(ROOT_DOMAIN.into()) as u16);
        if let Some(devices) = self.devices(segment) {
            devices.silence(memory, source);
        }
        // A unit that fails is counted.
        let _ = self.forget_function(hardware, memory, unit, source, domain);
        self.faults.mark_quarantined(segment, source);
    }

    /// What is in use, and what was stopped.
    #[must_use]
    pub fn figures(&self) -> IommuState {
        let mut figures = IommuState {
            functions: self.claimed.iter().flatten().count() as u32,
            domains: self.domains.iter().flatten().count() as u32,
            faults: self.faults.count,
            lost: self.faults.lost,
            ..IommuState::default()
        };
        for driven in self.driven.iter().flatten() {
            figures.units = figures.units.saturating_add(1);
            figures.failed = figures
                .failed
                .saturating_add(u32::from(!driven.unit.works()));
            figures.overruled = figures.overruled.saturating_add(driven.overruled);
            if driven.table.is_some() {
                figures.remapping = figures.remapping.saturating_add(1);
                figures.entries_most = figures.entries_most.saturating_add(CELL_ENTRIES);
                let taken: u32 = driven.taken.iter().map(|word| word.count_ones()).sum();
                figures.entries = figures.entries.saturating_add(taken);
            }
        }
        figures
    }
}

/// No unit remaps interrupts of the function.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotRemapped;

/// A message that names entries from `first` on; `several`: the function sets the low bits of the data itself.
const fn message(first: u16, several: bool) -> Remapped {
    const APICS: u32 = 0xfee0_0000;
    const REMAPPABLE: u32 = 1 << 4;
    const HAS_SUBHANDLE: u32 = 1 << 3;
    let handle = (first as u32 & 0x7fff) << 5 | (first as u32 >> 15) << 2;
    let several = if several { HAS_SUBHANDLE } else { 0 };
    Remapped {
        address: APICS | REMAPPABLE | handle | several,
        data: 0,
    }
}

fn range(start: u64, size: u64) -> Result<GuestRange, Refused> {
    let start = GuestPhysical::try_new(start).ok_or(Refused::Memory)?;
    GuestRange::new(start, size).ok_or(Refused::Memory)
}

fn zeroed<T: Tables>(tables: &mut T) -> Result<HostPhysical, OutOfFrames> {
    let frame = tables.allocate()?;
    for word in tables.entries(frame) {
        word.store(0, core::sync::atomic::Ordering::Relaxed);
    }
    Ok(frame)
}

/// Makes the interrupt remapping table of a unit that remaps interrupts for Linux: empty, with room for both.
fn prepare_interrupts<T: Tables>(
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
fn guard_fault_event(driven: &mut Driven, hardware: &impl Hardware, receivers: &impl Receivers) {
    let wide = driven.table.as_ref().is_some_and(Interrupts::is_x2apic);
    let event = root_entries::permitted_event(driven.view.now.fault_event, wide, receivers);
    driven.unit.set_fault_event(hardware, event);
}

/// Tables that are lent.
struct Borrowed<'a, T>(&'a mut T);

impl<T: Tables> TableMemory for Borrowed<'_, T> {
    fn entries(&self, table: HostPhysical) -> &Entries {
        self.0.entries(table)
    }

    fn written(&self, table: HostPhysical, index: usize) {
        self.0.written(table, index);
    }
}

impl<T: Tables> Tables for Borrowed<'_, T> {
    fn allocate(&mut self) -> Result<HostPhysical, OutOfFrames> {
        self.0.allocate()
    }

    fn free(&mut self, frame: HostPhysical) {
        self.0.free(frame);
    }

    fn retire(&mut self, frame: HostPhysical) {
        self.0.retire(frame);
    }
}
