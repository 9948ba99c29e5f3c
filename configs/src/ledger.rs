//! The ledger: who owns each page, CPU and port.
//!
//! Invariant: no CPU, no port and no page that is not declared shared has two owners among the cells, the hypervisor and
//! the root cell, which owns what nobody else does. [`Ledger::check`] changes nothing; [`Ledger::claim`] after a
//! successful check can't fail; [`Ledger::release`] leaves the ledger as it was before the claim.
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::arithmetic_side_effects
    )
)]

use gaol_abi::config::{
    MAX_MEMORY_REGIONS, MAX_PORT_RANGES, MEMORY_COMMUNICATION, MEMORY_DEVICE, MEMORY_DMA,
    MEMORY_EXECUTE, MEMORY_LOADABLE, MEMORY_READ, MEMORY_ROOT_SHARED, MEMORY_WRITE, MemoryRegion,
    PortRange,
};
use gaol_abi::outcome::Reason;
use gaol_abi::{MAX_CELLS, NAME_LENGTH, PAGE_SIZE};

use crate::address::{GuestPhysical, HostPhysical, Range};
use crate::binary::{CellView, Refusal, SystemView, guest_range, name_text, physical_range};
use crate::cpu_set::CpuSet;

/// Where each CPU finds its APIC, in the host's and in the cells' physical memory.
pub const APIC_PAGE: u64 = 0xfee0_0000;

/// Where chipsets have their IOAPICs: 1 MiB that nobody but the hypervisor gets, wherever in it the registers are.
pub const IO_APIC_WINDOW: u64 = 0xfec0_0000;
/// Bytes of [`IO_APIC_WINDOW`].
const IO_APIC_WINDOW_SIZE: u64 = 1 << 20;

/// The first of the ports through which every cell reaches the PCI configuration space; the hypervisor moderates them.
pub const PCI_CONFIGURATION_PORTS: PortRange = PortRange {
    first: 0xcf8,
    count: 8,
};

/// Number of a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CellId(pub u32);

impl CellId {
    /// The root cell.
    pub const ROOT: Self = Self(0);
}

/// What the ledger must know of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine<'a> {
    /// CPUs that exist and that the hypervisor runs on.
    pub cpus: CpuSet,
    /// First address that no CPU can form: two to the width of physical addresses, 2^48 at the most.
    pub physical_limit: u64,
    /// The hypervisor's memory; `None` as long as its place is not known.
    pub hypervisor: Option<Range<HostPhysical>>,
    /// Ports that the hypervisor uses itself.
    pub hypervisor_ports: Option<PortRange>,
    /// The system configuration. When it describes the machine, what it does not name does not exist.
    pub system: Option<SystemView<'a>>,
}

/// Whether all memory must have its place in the machine already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// RAM with the physical address 0 will be taken from Linux later.
    Open,
    /// Everything has its place: what the hypervisor demands.
    Complete,
}

/// Memory of a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct OwnedMemory {
    range: Range<HostPhysical>,
    flags: u64,
}

impl OwnedMemory {
    fn is_shared(self) -> bool {
        self.flags & MEMORY_ROOT_SHARED != 0
    }

    /// Whether the two may be the same memory: the root cell keeps both, and they agree on what and where it is.
    fn is_same_shared(self, other: Self) -> bool {
        self.is_shared()
            && other.is_shared()
            && self.range == other.range
            && (self.flags ^ other.flags) & MEMORY_DEVICE == 0
    }
}

/// What a cell owns. A slot with an empty name is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Holding {
    name: [u8; NAME_LENGTH],
    cpus: CpuSet,
    memory: [Option<OwnedMemory>; MAX_MEMORY_REGIONS],
    ports: [PortRange; MAX_PORT_RANGES],
}

const NO_PORTS: PortRange = PortRange { first: 0, count: 0 };

impl Holding {
    const FREE: Self = Self {
        name: [0; NAME_LENGTH],
        cpus: CpuSet::EMPTY,
        memory: [None; MAX_MEMORY_REGIONS],
        ports: [NO_PORTS; MAX_PORT_RANGES],
    };

    fn is_free(&self) -> bool {
        self.name == Self::FREE.name
    }

    /// The slots are filled from the front.
    fn memory(&self) -> impl Iterator<Item = OwnedMemory> {
        self.memory.iter().map_while(|memory| *memory)
    }

    fn ports(&self) -> impl Iterator<Item = PortRange> {
        self.ports
            .iter()
            .copied()
            .take_while(|range| range.count != 0)
    }
}

/// Who owns what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ledger {
    /// By number of the cell. Of the root cell only the name is kept.
    holdings: [Holding; MAX_CELLS],
}

impl Default for Ledger {
    fn default() -> Self {
        Self::new()
    }
}

impl Ledger {
    /// A ledger in which everything is the root cell's.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            holdings: [Holding::FREE; MAX_CELLS],
        }
    }

    /// Gives the root cell its name, so that no other cell takes it.
    pub fn name_root(&mut self, name: &[u8; NAME_LENGTH]) {
        if let Some(root) = self.holdings.first_mut() {
            root.name = *name;
        }
    }

    /// The cells other than the root cell.
    fn cells(&self) -> impl Iterator<Item = (CellId, &Holding)> {
        self.numbered().skip(1)
    }

    /// Everyone with a name.
    fn numbered(&self) -> impl Iterator<Item = (CellId, &Holding)> {
        (0u32..).map(CellId).zip(&self.holdings)
    }

    /// The lowest number that no cell has, if there is one.
    #[must_use]
    pub fn free_id(&self) -> Option<CellId> {
        let mut cells = self.cells();
        cells
            .find(|(_, holding)| holding.is_free())
            .map(|(id, _)| id)
    }

    /// Number of cells, the root cell included.
    #[must_use]
    pub fn cell_count(&self) -> usize {
        let cells = self.cells().filter(|(_, holding)| !holding.is_free());
        cells.count().saturating_add(1)
    }

    /// The cell of this name.
    #[must_use]
    pub fn find(&self, name: &[u8; NAME_LENGTH]) -> Option<CellId> {
        let mut taken = self.numbered().filter(|(_, holding)| !holding.is_free());
        taken
            .find(|(_, holding)| holding.name == *name)
            .map(|(id, _)| id)
    }

    /// Name of a cell, if there is one of that number.
    #[must_use]
    pub fn name_of(&self, id: CellId) -> Option<&str> {
        name_text(&self.holding(id)?.name).ok()
    }

    fn holding(&self, id: CellId) -> Option<&Holding> {
        self.holdings.get(usize::try_from(id.0).ok()?)
    }

    /// The cell that a CPU belongs to.
    #[must_use]
    pub fn owner_of_cpu(&self, cpu: u32) -> CellId {
        self.owner(|holding| holding.cpus.contains(cpu))
    }

    /// The cell that an address belongs to. Shared memory is the root cell's.
    #[must_use]
    pub fn owner_of_memory(&self, address: HostPhysical) -> CellId {
        self.owner(|holding| {
            let mut own = holding.memory().filter(|memory| !memory.is_shared());
            own.any(|memory| memory.range.contains(address))
        })
    }

    /// A cell that has `range` or a part of it among its memory, shared memory included.
    #[must_use]
    pub fn user_of_memory(&self, range: Range<HostPhysical>) -> Option<CellId> {
        let uses = |holding: &Holding| holding.memory().any(|memory| memory.range.overlaps(range));
        let mut cells = self.cells();
        cells.find(|(_, holding)| uses(holding)).map(|(id, _)| id)
    }

    /// The cell that a port belongs to.
    #[must_use]
    pub fn owner_of_port(&self, port: u16) -> CellId {
        let wanted = PortRange {
            first: port,
            count: 1,
        };
        self.owner(|holding| holding.ports().any(|range| ports_overlap(range, wanted)))
    }

    fn owner(&self, mut owns: impl FnMut(&Holding) -> bool) -> CellId {
        let mut cells = self.cells();
        cells
            .find(|(_, holding)| owns(holding))
            .map_or(CellId::ROOT, |(id, _)| id)
    }

    /// Checks whether `cell` could be created now, with all of its memory in its place.
    ///
    /// # Errors
    /// The first thing that speaks against it.
    pub fn check(&self, machine: &Machine<'_>, cell: &CellView<'_>) -> Result<(), Refusal> {
        self.check_with(machine, cell, Placement::Complete)
    }

    /// Checks whether `cell` could be created now.
    ///
    /// # Errors
    /// The first thing that speaks against it.
    pub fn check_with(
        &self,
        machine: &Machine<'_>,
        cell: &CellView<'_>,
        placement: Placement,
    ) -> Result<(), Refusal> {
        if let Some(id) = self.find(&cell.header().name) {
            return Err(Refusal::new(Reason::CellExists, u64::from(id.0)));
        }
        if self.free_id().is_none() {
            return Err(Refusal::new(Reason::TooManyCells, 0));
        }
        self.check_cpus(machine, cell.cpus())?;
        check_regions(machine, cell.memory(), placement)?;
        self.check_memory_owners(machine, cell.memory())?;
        self.check_ports(machine, cell.ports())?;
        check_reset_address(cell)
    }

    /// Visits everything that speaks against creating `cell` now, the first what [`Ledger::check_with`] returns.
    pub fn faults(
        &self,
        machine: &Machine<'_>,
        cell: &CellView<'_>,
        placement: Placement,
        found: &mut dyn FnMut(Refusal),
    ) {
        if let Err(refusal) = self.check_with(machine, cell, placement) {
            found(refusal);
        }
    }

    fn check_cpus(&self, machine: &Machine<'_>, cpus: CpuSet) -> Result<(), Refusal> {
        if cpus.is_empty() {
            return Err(Refusal::new(Reason::NoCpu, 0));
        }
        for cpu in cpus.iter() {
            let reason = if !machine.cpus.contains(cpu) {
                Reason::CpuUnknown
            } else if cpu == 0 {
                Reason::CpuZero
            } else if self.owner_of_cpu(cpu) != CellId::ROOT {
                Reason::CpuOwned
            } else {
                continue;
            };
            return Err(Refusal::new(reason, u64::from(cpu)));
        }
        Ok(())
    }

    fn check_memory_owners(
        &self,
        machine: &Machine<'_>,
        regions: &[MemoryRegion],
    ) -> Result<(), Refusal> {
        for region in regions {
            let Some(range) = physical_range(region) else {
                continue;
            };
            let wanted = OwnedMemory {
                range,
                flags: region.flags,
            };
            check_hypervisors_memory(machine, range)?;
            for held in self.cells().flat_map(|(_, holding)| holding.memory()) {
                if let Some(address) = range.first_common(held.range)
                    && !wanted.is_same_shared(held)
                {
                    return Err(Refusal::new(Reason::MemoryOwned, address.0));
                }
            }
        }
        Ok(())
    }

    fn check_ports(&self, machine: &Machine<'_>, ranges: &[PortRange]) -> Result<(), Refusal> {
        let mut earlier: &[PortRange] = &[];
        for (index, range) in ranges.iter().enumerate() {
            let refuse = |reason| Err(Refusal::new(reason, u64::from(range.first)));
            let end = u32::from(range.first).saturating_add(u32::from(range.count));
            if range.count == 0
                || end > 0x1_0000
                || earlier.iter().any(|other| ports_overlap(*range, *other))
            {
                return refuse(Reason::PortsInvalid);
            }
            let moderated = [Some(PCI_CONFIGURATION_PORTS), machine.hypervisor_ports];
            let mut taken = self
                .cells()
                .flat_map(|(_, holding)| holding.ports())
                .chain(moderated.into_iter().flatten());
            if taken.any(|other| ports_overlap(*range, other)) {
                return refuse(Reason::PortsOwned);
            }
            earlier = ranges.get(..=index).unwrap_or(ranges);
        }
        Ok(())
    }

    /// Enters a cell that [`Ledger::check`] has just accepted.
    ///
    /// # Errors
    /// [`Reason::NoSuchCell`] and [`Reason::CellExists`] when `id` is not one that [`Ledger::free_id`] could have given;
    /// nothing has changed then.
    pub fn claim(&mut self, id: CellId, cell: &CellView<'_>) -> Result<(), Refusal> {
        let holding = self.cell_mut(id)?;
        if !holding.is_free() {
            return Err(Refusal::new(Reason::CellExists, u64::from(id.0)));
        }
        holding.name = cell.header().name;
        holding.cpus = cell.cpus();
        let memory = cell.memory().iter().filter_map(|region| {
            Some(OwnedMemory {
                range: physical_range(region)?,
                flags: region.flags,
            })
        });
        for (slot, memory) in holding.memory.iter_mut().zip(memory) {
            *slot = Some(memory);
        }
        for (slot, range) in holding.ports.iter_mut().zip(cell.ports()) {
            *slot = *range;
        }
        Ok(())
    }

    /// Gives everything that a cell owns back to the root cell.
    ///
    /// # Errors
    /// [`Reason::RootCell`] for the root cell, [`Reason::NoSuchCell`] when there is no cell of that number.
    pub fn release(&mut self, id: CellId) -> Result<(), Refusal> {
        let holding = self.cell_mut(id)?;
        if holding.is_free() {
            return Err(Refusal::new(Reason::NoSuchCell, u64::from(id.0)));
        }
        *holding = Holding::FREE;
        Ok(())
    }

    fn cell_mut(&mut self, id: CellId) -> Result<&mut Holding, Refusal> {
        let number = u64::from(id.0);
        if id == CellId::ROOT {
            return Err(Refusal::new(Reason::RootCell, number));
        }
        usize::try_from(id.0)
            .ok()
            .and_then(|index| self.holdings.get_mut(index))
            .ok_or(Refusal::new(Reason::NoSuchCell, number))
    }
}

/// Whether two port ranges have a port in common.
#[must_use]
pub fn ports_overlap(first: PortRange, second: PortRange) -> bool {
    let range = |ports: PortRange| Range::new(HostPhysical(ports.first.into()), ports.count.into());
    match (range(first), range(second)) {
        (Some(first), Some(second)) => first.overlaps(second),
        _ => false,
    }
}

fn check_hypervisors_memory(
    machine: &Machine<'_>,
    range: Range<HostPhysical>,
) -> Result<(), Refusal> {
    if let Some(address) = machine
        .hypervisor
        .and_then(|hypervisor| range.first_common(hypervisor))
    {
        return Err(Refusal::new(Reason::MemoryIsHypervisors, address.0));
    }
    let fixed = [
        Range::new(HostPhysical(APIC_PAGE), PAGE_SIZE),
        Range::new(HostPhysical(IO_APIC_WINDOW), IO_APIC_WINDOW_SIZE),
    ];
    for registers in fixed {
        if let Some(address) = registers.and_then(|registers| range.first_common(registers)) {
            return Err(Refusal::new(Reason::MemoryIsInterruptController, address.0));
        }
    }
    Ok(())
}

/// Checks each region, and all of them against each other.
fn check_regions(
    machine: &Machine<'_>,
    regions: &[MemoryRegion],
    placement: Placement,
) -> Result<(), Refusal> {
    let apic = Range::new(GuestPhysical(APIC_PAGE), PAGE_SIZE);
    let mut earlier: &[MemoryRegion] = &[];
    let mut has_communication = false;
    for (index, region) in regions.iter().enumerate() {
        let refuse = |reason| Err(Refusal::new(reason, index as u64));
        let is_communication = region.flags & MEMORY_COMMUNICATION != 0;
        let sound = flags_are_sound(region.flags)
            && place_is_sound(machine, region, placement)
            && !(is_communication && has_communication)
            && earlier.iter().all(|other| other.name != region.name);
        let Some(range) = guest_range(region).filter(|_| sound) else {
            return refuse(Reason::RegionInvalid);
        };
        has_communication |= is_communication;
        if earlier.iter().any(|other| overlap(region, other)) {
            return refuse(Reason::RegionOverlap);
        }
        if apic.is_some_and(|apic| range.overlaps(apic)) {
            return Err(Refusal::new(Reason::MemoryIsInterruptController, APIC_PAGE));
        }
        earlier = regions.get(..=index).unwrap_or(regions);
    }
    Ok(())
}

/// Whether two regions of one cell have memory in common, as the cell or as the machine counts it.
fn overlap(first: &MemoryRegion, second: &MemoryRegion) -> bool {
    let guest = match (guest_range(first), guest_range(second)) {
        (Some(first), Some(second)) => first.overlaps(second),
        _ => false,
    };
    let physical = match (physical_range(first), physical_range(second)) {
        (Some(first), Some(second)) => first.overlaps(second),
        _ => false,
    };
    guest || physical
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
    let has_both = |first: u64, second: u64| flags & first != 0 && flags & second != 0;
    // Shared memory is visible to the root cell all the time: taking it away when the cell starts would break that.
    !has_both(MEMORY_DEVICE, MEMORY_EXECUTE | MEMORY_LOADABLE | MEMORY_DMA)
        && !has_both(MEMORY_LOADABLE, MEMORY_ROOT_SHARED)
}

/// Whether address and size of a region are possible, the region taken alone.
fn place_is_sound(machine: &Machine<'_>, region: &MemoryRegion, placement: Placement) -> bool {
    if (region.physical | region.guest | region.size) & (PAGE_SIZE - 1) != 0 {
        return false;
    }
    let Some(guest) = guest_range(region) else {
        return false;
    };
    if guest.end().0 > machine.physical_limit {
        return false;
    }
    if region.flags & MEMORY_COMMUNICATION != 0 {
        return region.size == PAGE_SIZE && region.physical == 0;
    }
    match physical_range(region) {
        Some(physical) => physical.end().0 <= machine.physical_limit,
        None => {
            region.physical == 0
                && region.flags & MEMORY_DEVICE == 0
                && placement == Placement::Open
        }
    }
}

/// CPUs start in real mode, so below 4 GiB, and at code.
fn check_reset_address(cell: &CellView<'_>) -> Result<(), Refusal> {
    let address = cell.reset_address();
    let is_code = cell.memory().iter().any(|region| {
        region.flags & MEMORY_EXECUTE != 0
            && guest_range(region).is_some_and(|range| range.contains(address))
    });
    if address.0 > u64::from(u32::MAX) || !is_code {
        return Err(Refusal::new(Reason::ResetAddress, address.0));
    }
    Ok(())
}

#[cfg(all(test, feature = "std"))]
#[path = "ledger_tests.rs"]
mod tests;
