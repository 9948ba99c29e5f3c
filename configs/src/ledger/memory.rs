//! Memory: which regions are possible, and whose they are.
//!
//! A region with access widths owns its bytes, and shares its page with other such regions; any other region owns whole
//! pages. Registers that the hypervisor keeps are kept in whole pages, too; those of PCI functions to the byte.
//!
//! Where a machine is described, RAM is at addresses that touch no registers and lie below the end of the machine's
//! highest RAM, on the same side of 4 GiB (below which devices have a window behind the RAM). Memory that was taken from
//! Linux at boot is not among the RAM of the description, and is to be accepted between it: the ends decide.

use gaol_abi::config::{
    MACHINE_BAR_PORTS, MEMORY_COMMUNICATION, MEMORY_CONTINUED, MEMORY_DEVICE, MEMORY_DMA,
    MEMORY_EXECUTE, MEMORY_LOADABLE, MEMORY_READ, MEMORY_ROOT_SHARED, MEMORY_SHARED,
    MEMORY_TYPE_MASK, MEMORY_TYPE_UNCACHEABLE, MEMORY_TYPE_WRITE_BACK, MEMORY_TYPE_WRITE_COMBINING,
    MEMORY_WIDTHS, MEMORY_WRITE, MachineRange, MemoryRegion, RANGE_IO_APIC, RANGE_IOMMU,
    RANGE_PCI_CONFIGURATION, RANGE_RAM, RANGE_RESERVED_DMA,
};
use gaol_abi::outcome::Reason;
use gaol_abi::{PAGE_SIZE, checksum::crc32_with_hole};

use super::devices::{function_number, has_device};
use super::{
    APIC_PAGE, CellId, Holding, IO_APIC_WINDOW, IO_APIC_WINDOW_SIZE, Ledger, Machine, Placement,
};
use crate::address::{HostPhysical, Range};
use crate::binary::{CellView, Refusal, guest_range, is_same_name};

/// Where 32-bit addresses end.
const FOUR_GIB: u64 = 1 << 32;
/// Where PCs have the memory of the display and ROMs, whatever RAM there is around.
const LEGACY: Span = Span::new(0xa_0000, 0x6_0000);
/// What all cells that share memory must say of it alike.
const SAME_IN_ALL: u32 =
    (MEMORY_DEVICE | MEMORY_ROOT_SHARED | MEMORY_SHARED | MEMORY_TYPE_MASK | MEMORY_WIDTHS) as u32;

/// Addresses of any kind, from `start` to before `end`; may be empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    start: u64,
    end: u64,
}

impl Span {
    pub(super) const fn new(start: u64, size: u64) -> Self {
        Self {
            start,
            end: start.saturating_add(size),
        }
    }

    /// The whole pages that it touches.
    pub(super) const fn pages(self) -> Self {
        Self {
            start: self.start & !(PAGE_SIZE - 1),
            end: self.end.saturating_add(PAGE_SIZE - 1) & !(PAGE_SIZE - 1),
        }
    }

    /// The lowest address of this that is in `other`, too.
    pub(super) fn first_common(self, other: Self) -> Option<u64> {
        let start = self.start.max(other.start);
        (start < self.end.min(other.end)).then_some(start)
    }
}

/// Memory of a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OwnedMemory {
    /// 0 as long as it has no place.
    start: u64,
    size: u64,
    flags: u32,
    /// Checksum of the name: two names with the same one are taken for the same when memory is shared by name.
    name: u32,
}

impl OwnedMemory {
    pub(super) const NONE: Self = Self {
        start: 0,
        size: 0,
        flags: 0,
        name: 0,
    };

    pub(super) fn new(region: &MemoryRegion) -> Self {
        Self {
            start: region.physical,
            size: region.size,
            flags: region.flags as u32,
            name: crc32_with_hole(&region.name, region.name.len()),
        }
    }

    fn has(self, flag: u64) -> bool {
        u64::from(self.flags) & flag != 0
    }

    /// Its place in the machine, if it has one.
    fn physical(self) -> Option<Span> {
        (self.start != 0).then(|| Span::new(self.start, self.size))
    }

    /// The first address that both own.
    fn first_common(self, other: Self) -> Option<u64> {
        common(self.physical()?, self.flags, other.physical()?, other.flags)
    }

    fn is_called(self, name: u32) -> bool {
        self.has(MEMORY_SHARED) && self.name == name
    }

    /// Whether the two may be the same memory: the root cell keeps both, or they share it by name, and they agree on
    /// what and where it is.
    fn is_same_shared(self, other: Self) -> bool {
        let by_name = self.has(MEMORY_SHARED) && other.is_called(self.name);
        let by_root = self.has(MEMORY_ROOT_SHARED) && !self.has(MEMORY_SHARED);
        (by_name || by_root)
            && other.has(MEMORY_ROOT_SHARED | MEMORY_SHARED)
            && (self.start, self.size) == (other.start, other.size)
            && (self.flags ^ other.flags) & SAME_IN_ALL == 0
    }
}

/// The first address that two regions have in common: to the byte when both have access widths.
fn common(first: Span, first_flags: u32, second: Span, second_flags: u32) -> Option<u64> {
    let widths = MEMORY_WIDTHS as u32;
    if first_flags & widths != 0 && second_flags & widths != 0 {
        first.first_common(second)
    } else if first_flags & widths != 0 {
        first.first_common(second.pages())
    } else {
        first.pages().first_common(second.pages())
    }
}

/// Whether two regions of one cell have memory in common, as the cell or as the machine counts it.
#[must_use]
pub fn regions_overlap(first: &MemoryRegion, second: &MemoryRegion) -> (bool, bool) {
    let at = |start: u64, region: &MemoryRegion| Span::new(start, region.size);
    let flags = (first.flags as u32, second.flags as u32);
    let meet = |one: Span, other: Span| common(one, flags.0, other, flags.1).is_some();
    let guest = meet(at(first.guest, first), at(second.guest, second));
    let is_placed = first.physical != 0 && second.physical != 0;
    let physical = is_placed && meet(at(first.physical, first), at(second.physical, second));
    (guest, physical)
}

/// Whether the flags of a region make sense together.
#[must_use]
pub fn flags_are_sound(flags: u64) -> bool {
    // Neither EPT nor nested page tables know memory that can be written but not read, and execute-only memory is an
    // option that not all CPUs have.
    if flags & MEMORY_READ == 0 {
        return false;
    }
    if flags & MEMORY_COMMUNICATION != 0 {
        return flags == MEMORY_COMMUNICATION | MEMORY_READ | MEMORY_WRITE;
    }
    let kind = flags & MEMORY_TYPE_MASK;
    let has_both = |first: u64, second: u64| flags & first != 0 && flags & second != 0;
    // Filling a line of the cache reads 64 bytes, and writing one back writes them: registers can't have that.
    let most = match (flags & MEMORY_DEVICE, flags & MEMORY_WIDTHS) {
        (0, _) => MEMORY_TYPE_WRITE_BACK,
        (_, 0) => MEMORY_TYPE_WRITE_COMBINING,
        // The hypervisor makes these accesses itself, one by one.
        _ => MEMORY_TYPE_UNCACHEABLE,
    };
    // Shared memory is visible to others all the time: taking it away when the cell starts would break that.
    kind <= most
        && !has_both(
            MEMORY_DEVICE,
            MEMORY_EXECUTE | MEMORY_LOADABLE | MEMORY_DMA | MEMORY_CONTINUED,
        )
        && !has_both(MEMORY_LOADABLE, MEMORY_ROOT_SHARED | MEMORY_SHARED)
        && (flags & MEMORY_WIDTHS == 0 || flags & MEMORY_DEVICE != 0)
}

/// Whether address and size of a region with access widths keep to its smallest width and to one page, or are pages.
fn widths_are_sound(region: &MemoryRegion) -> bool {
    let widths = region.flags & MEMORY_WIDTHS;
    // The bits of the widths stand for 1, 2, 4 and 8 bytes.
    let smallest = (widths & widths.wrapping_neg()) >> MEMORY_WIDTHS.trailing_zeros();
    let offset = PAGE_SIZE - 1;
    let places = region.physical | region.guest | region.size;
    let in_page = (region.physical & offset).saturating_add(region.size) <= PAGE_SIZE;
    places & smallest.wrapping_sub(1) == 0
        && (region.physical ^ region.guest) & offset == 0
        && (in_page || places & offset == 0)
}

/// Whether address and size of a region are possible, the region taken alone.
fn place_is_sound(machine: &Machine<'_>, region: &MemoryRegion, placement: Placement) -> bool {
    let is_aligned = match region.flags & MEMORY_WIDTHS {
        0 => (region.physical | region.guest | region.size) & (PAGE_SIZE - 1) == 0,
        _ => widths_are_sound(region),
    };
    let ends_below = |start: u64| {
        let end = start.checked_add(region.size);
        end.is_some_and(|end| end <= machine.physical_limit)
    };
    if !is_aligned || region.size == 0 || !ends_below(region.guest) {
        return false;
    }
    if region.flags & MEMORY_COMMUNICATION != 0 {
        return region.size == PAGE_SIZE && region.physical == 0;
    }
    match region.physical {
        0 => region.flags & MEMORY_DEVICE == 0 && placement == Placement::Open,
        start => ends_below(start),
    }
}

/// Whether a region goes on where the one before it ends, or has a name of its own.
fn name_is_sound(region: &MemoryRegion, before: &[MemoryRegion]) -> bool {
    if region.flags & MEMORY_CONTINUED == 0 {
        return before
            .iter()
            .all(|other| !is_same_name(&other.name, &region.name));
    }
    before.last().is_some_and(|last| {
        is_same_name(&last.name, &region.name)
            && guest_range(last).is_some_and(|range| range.end().0 == region.guest)
            && (last.flags ^ region.flags) & !MEMORY_CONTINUED == 0
    })
}

/// Checks the region at `index` for itself and against those before it in the list.
fn check_list(
    machine: &Machine<'_>,
    region: &MemoryRegion,
    before: &[MemoryRegion],
    index: usize,
    placement: Placement,
) -> Result<(), Refusal> {
    let refuse = |reason| Err(Refusal::new(reason, index as u64));
    let is_second = region.flags & MEMORY_COMMUNICATION != 0
        && before
            .iter()
            .any(|other| other.flags & MEMORY_COMMUNICATION != 0);
    if !flags_are_sound(region.flags)
        || !place_is_sound(machine, region, placement)
        || is_second
        || !name_is_sound(region, before)
    {
        return refuse(Reason::RegionInvalid);
    }
    check_overlap(region, before, index)
}

fn check_overlap(
    region: &MemoryRegion,
    before: &[MemoryRegion],
    index: usize,
) -> Result<(), Refusal> {
    let overlaps = |other| regions_overlap(region, other) != (false, false);
    if before.iter().any(overlaps) {
        return Err(Refusal::new(Reason::RegionOverlap, index as u64));
    }
    Ok(())
}

/// Whether a strict root cell can have a region: it is where the machine has it, and nobody has it besides.
#[must_use]
pub fn root_region_is_sound(machine: &Machine<'_>, region: &MemoryRegion) -> bool {
    let foreign = MEMORY_COMMUNICATION
        | MEMORY_LOADABLE
        | MEMORY_SHARED
        | MEMORY_ROOT_SHARED
        | MEMORY_CONTINUED;
    // The lowest page of the machine is memory as any other to the root cell.
    let placed = MemoryRegion {
        physical: match region.physical {
            0 => PAGE_SIZE,
            other => other,
        },
        ..*region
    };
    region.flags & foreign == 0
        && flags_are_sound(region.flags)
        && region.guest == region.physical
        && place_is_sound(machine, &placed, Placement::Complete)
}

/// Checks the region at `index` of a strict root cell's list.
pub(super) fn check_root_region(
    machine: &Machine<'_>,
    regions: &[MemoryRegion],
    index: usize,
) -> Result<(), Refusal> {
    let Some((region, before)) = regions.get(..=index).and_then(<[_]>::split_last) else {
        return Ok(());
    };
    if !root_region_is_sound(machine, region) || !name_is_sound(region, before) {
        return Err(Refusal::new(Reason::RegionInvalid, index as u64));
    }
    check_overlap(region, before, index)?;
    check_kept(machine, Span::new(region.physical, region.size), true)
}

/// The reason to refuse memory in a range of the machine's description; [`Reason::None`] for RAM.
pub(super) fn reason_of(range: &MachineRange) -> Reason {
    match range.kind {
        RANGE_IO_APIC => Reason::MemoryIsInterruptController,
        RANGE_PCI_CONFIGURATION => Reason::MemoryIsPciConfiguration,
        RANGE_IOMMU => Reason::MemoryIsIommus,
        RANGE_RESERVED_DMA => Reason::MemoryIsReservedDma,
        _ => Reason::None,
    }
}

/// The interrupt controllers that every machine has.
pub(super) const INTERRUPT_CONTROLLERS: [Span; 2] = [
    Span::new(APIC_PAGE, PAGE_SIZE),
    Span::new(IO_APIC_WINDOW, IO_APIC_WINDOW_SIZE),
];

/// Refuses what the hypervisor keeps. The root cell has PCI configuration space, and what firmware and devices reach.
fn check_kept(machine: &Machine<'_>, wanted: Span, is_root: bool) -> Result<(), Refusal> {
    let check = |kept: Span, reason| match wanted.first_common(kept.pages()) {
        Some(address) => Err(Refusal::new(reason, address)),
        None => Ok(()),
    };
    if let Some(hypervisor) = machine.hypervisor {
        let kept = Span::new(hypervisor.start().0, hypervisor.size());
        // What the root cell has all around it Linux gave it from: it is taken out of that.
        let is_given = is_root && wanted.start <= kept.start && kept.end <= wanted.end;
        if !is_given {
            check(kept, Reason::MemoryIsHypervisors)?;
        }
    }
    for kept in INTERRUPT_CONTROLLERS {
        check(kept, Reason::MemoryIsInterruptController)?;
    }
    let system = machine.system.iter();
    for range in system.flat_map(|system| system.ranges()) {
        let reason = reason_of(range);
        let is_roots =
            reason == Reason::MemoryIsPciConfiguration || reason == Reason::MemoryIsReservedDma;
        if reason != Reason::None && !(is_root && is_roots) {
            check(Span::new(range.physical, range.size), reason)?;
        }
    }
    Ok(())
}

/// Base address registers of memory (`kind` 0) or of ports ([`MACHINE_BAR_PORTS`]) that have an address, with whether the
/// function is the cell's.
fn bars<'a>(
    machine: &Machine<'a>,
    cell: &CellView<'a>,
    kind: u8,
) -> impl Iterator<Item = (Span, bool)> {
    let (system, cell) = (machine.system, *cell);
    system.into_iter().flat_map(move |system| {
        system
            .bars()
            .iter()
            .filter(move |bar| bar.flags & MACHINE_BAR_PORTS == kind && bar.address != 0)
            .map(move |bar| {
                let device = system.devices().get(usize::from(bar.device));
                let is_own = device.is_some_and(|device| {
                    has_device(&cell, function_number(device.segment, device.function))
                });
                (Span::new(bar.address, bar.size), is_own)
            })
    })
}

/// Base address registers of functions that are not the cell's.
pub(super) fn bars_of_others<'a>(
    machine: &Machine<'a>,
    cell: &CellView<'a>,
    kind: u8,
) -> impl Iterator<Item = Span> {
    bars(machine, cell, kind).filter_map(|(bar, is_own)| (!is_own).then_some(bar))
}

/// Where memory ends in a described machine, on the side of 4 GiB on which `address` is. `None`: the description has no
/// RAM at all, so it says nothing of it.
#[must_use]
pub fn memory_end(machine: &Machine<'_>, address: u64) -> Option<u64> {
    let is_low = address < FOUR_GIB;
    let hypervisor = machine
        .hypervisor
        .map(|range| (range.start().0, range.size()));
    let ranges = machine.description()?.ranges().iter();
    let mut ram = ranges
        .filter(|range| range.kind == RANGE_RAM)
        .map(|range| (range.physical, range.size))
        .peekable();
    ram.peek()?;
    let same_side = ram
        .chain(hypervisor)
        .filter(|(start, _)| (*start < FOUR_GIB) == is_low);
    let ends = same_side.map(|(start, size)| start.saturating_add(size));
    Some(ends.fold(0, u64::max))
}

/// Refuses RAM where a described machine has none. A function's memory can be RAM to its cell, but no target of DMA.
fn check_exists(
    machine: &Machine<'_>,
    cell: &CellView<'_>,
    region: &MemoryRegion,
    index: usize,
) -> Result<(), Refusal> {
    let wanted = Span::new(region.physical, region.size);
    let Some(end) = memory_end(machine, wanted.start) else {
        return Ok(());
    };
    let is_dma = region.flags & MEMORY_DMA != 0;
    let mut bars = bars(machine, cell, 0);
    let on_bar = bars.any(|(bar, _)| wanted.first_common(bar).is_some());
    let is_memory = wanted.end <= end && wanted.first_common(LEGACY).is_none();
    if on_bar && !is_dma || !on_bar && is_memory {
        return Ok(());
    }
    let reason = if is_dma {
        Reason::DmaOutsideMemory
    } else {
        Reason::MemoryUnknown
    };
    Err(Refusal::new(reason, index as u64))
}

impl Ledger {
    /// The cell that an address belongs to. Memory shared with the root cell is the root's; memory that cells share is
    /// the first one's.
    #[must_use]
    pub fn owner_of_memory(&self, address: HostPhysical) -> CellId {
        let page = Span::new(address.0, 1);
        self.owner(|holding| {
            let mut own = holding.memory.get().iter();
            own.any(|memory| !memory.has(MEMORY_ROOT_SHARED) && is_in(memory, page))
        })
    }

    /// A cell that has `range` or a part of it among its memory, shared memory included.
    #[must_use]
    pub fn user_of_memory(&self, range: Range<HostPhysical>) -> Option<CellId> {
        let wanted = Span::new(range.start().0, range.size());
        let uses = |holding: &Holding| {
            holding
                .memory
                .get()
                .iter()
                .any(|memory| is_in(memory, wanted))
        };
        let mut cells = self.cells();
        cells.find(|(_, holding)| uses(holding)).map(|(id, _)| id)
    }

    /// A cell that has a shared region of the name of `region`.
    #[must_use]
    pub fn sharer_of(&self, region: &MemoryRegion) -> Option<CellId> {
        let name = OwnedMemory::new(region).name;
        let shares = |holding: &Holding| holding.memory.get().iter().any(|one| one.is_called(name));
        let mut cells = self.cells();
        cells.find(|(_, holding)| shares(holding)).map(|(id, _)| id)
    }

    pub(super) fn check_region(
        &self,
        machine: &Machine<'_>,
        cell: &CellView<'_>,
        index: usize,
        placement: Placement,
    ) -> Result<(), Refusal> {
        let Some((region, before)) = cell.memory().get(..=index).and_then(<[_]>::split_last) else {
            return Ok(());
        };
        check_list(machine, region, before, index, placement)?;
        let guest = Span::new(region.guest, region.size);
        if guest
            .first_common(Span::new(APIC_PAGE, PAGE_SIZE))
            .is_some()
        {
            return Err(Refusal::new(Reason::MemoryIsInterruptController, APIC_PAGE));
        }
        if region.flags & (MEMORY_SHARED | MEMORY_CONTINUED) == MEMORY_SHARED {
            self.check_shared(cell, region, index)?;
        }
        if region.physical == 0 {
            return Ok(());
        }
        let wanted = Span::new(region.physical, region.size);
        check_kept(machine, wanted, false)?;
        for bar in bars_of_others(machine, cell, 0) {
            if let Some(address) = wanted.first_common(bar) {
                return Err(Refusal::new(Reason::MemoryIsDevices, address));
            }
        }
        let own = OwnedMemory::new(region);
        for held in self.cells().flat_map(|(_, holding)| holding.memory.get()) {
            if let Some(address) = own.first_common(*held)
                && !own.is_same_shared(*held)
            {
                return Err(Refusal::new(Reason::MemoryOwned, address));
            }
        }
        if region.flags & MEMORY_DEVICE == 0 {
            check_exists(machine, cell, region, index)?;
        }
        Ok(())
    }

    /// Checks that all cells which share a region of this name have the same: as large, of the same kind, and, as far as
    /// it has a place already, in the same pieces.
    fn check_shared(
        &self,
        cell: &CellView<'_>,
        region: &MemoryRegion,
        index: usize,
    ) -> Result<(), Refusal> {
        let first = OwnedMemory::new(region);
        let pieces = || {
            let regions = cell.memory().iter();
            regions
                .filter(|other| is_same_name(&other.name, &region.name))
                .map(|piece| (piece.physical, piece.size))
        };
        let total = pieces().fold(0, |sum: u64, (_, size)| sum.saturating_add(size));
        for (_, holding) in self.cells() {
            let theirs = || {
                holding
                    .memory
                    .get()
                    .iter()
                    .filter(|one| one.is_called(first.name))
            };
            let Some(other) = theirs().next() else {
                continue;
            };
            let their_total = theirs().fold(0, |sum: u64, one| sum.saturating_add(one.size));
            let is_open = first.start == 0 || other.start == 0;
            let is_same = total == their_total
                && (first.flags ^ other.flags) & SAME_IN_ALL == 0
                && (is_open || pieces().eq(theirs().map(|one| (one.start, one.size))));
            if !is_same {
                return Err(Refusal::new(Reason::SharedRegionDiffers, index as u64));
            }
        }
        Ok(())
    }
}

fn is_in(memory: &OwnedMemory, wanted: Span) -> bool {
    let place = memory.physical();
    place.is_some_and(|place| place.first_common(wanted).is_some())
}
