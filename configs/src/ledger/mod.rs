//! The ledger: who owns each page, CPU, port, PCI function, interrupt line, register and cache way.
//!
//! Invariant: none of these that is not declared shared has two owners among the cells, the hypervisor and the root cell,
//! which owns what nobody else does. [`Ledger::check`] changes nothing; [`Ledger::claim`] after a
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

mod cache;
mod devices;
mod kept;
mod machine;
mod memory;
mod msrs;
mod ports;

use gaol_abi::config::{
    AssignedDevice, IOMMU_INCLUDES_ALL, IOMMU_SOURCE_FUNCTION, Interrupt, IommuUnit, MAX_DEVICES,
    MAX_INTERRUPTS, MAX_MEMORY_REGIONS, MAX_MSRS, MAX_PORT_RANGES, MEMORY_EXECUTE, MsrAccess,
    PortRange, RANGE_IOMMU,
};
use gaol_abi::outcome::{Reason, Unsupported};
use gaol_abi::{MAX_CELLS, NAME_LENGTH};

use crate::address::{HostPhysical, Range};
use crate::binary::{CellView, Refusal, SystemView, guest_range, is_same_name, name_text};
use crate::cpu_set::CpuSet;
use kept::Kept;
use memory::OwnedMemory;

pub use cache::Level;
pub use devices::{
    VECTORS_PER_CPU, find_device, function_number, has_device, is_unprotected, vector_budget,
    vectors_of, vectors_wanted,
};
pub use machine::{check_system, system_faults};
pub use memory::{flags_are_sound, memory_end, regions_overlap, root_region_is_sound};
pub use msrs::{is_denied, msr_is_sound};
pub use ports::ports_overlap;

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

const fn port(first: u16) -> PortRange {
    PortRange { first, count: 1 }
}

/// Ports of a PC that reset it, besides one of [`PCI_CONFIGURATION_PORTS`]: data and commands of the keyboard controller,
/// and system control port A. No cell gets them, and the hypervisor looks at what the root writes there.
pub const RESET_PORTS: [PortRange; 3] = [port(0x60), port(0x64), port(0x92)];

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

impl<'a> Machine<'a> {
    /// The system configuration, if it describes the machine.
    #[must_use]
    pub fn description(&self) -> Option<SystemView<'a>> {
        self.system.filter(SystemView::describes_machine)
    }

    /// Whether an IOMMU is in front of the PCI function. Which functions are behind which unit is known when Gaol is enabled;
    /// before, a machine that has one is taken at its word. Whether the unit can do what it takes, the hypervisor sees.
    #[must_use]
    pub fn confines(&self, device: &AssignedDevice) -> bool {
        let Some(system) = self.system else {
            return false;
        };
        if system.iommus().is_empty() {
            let mut ranges = system.ranges().iter();
            return ranges.any(|range| range.kind == RANGE_IOMMU);
        }
        let is_behind = |number: usize, unit: &IommuUnit| {
            let mut sources = system.iommu_sources().iter();
            unit.flags & IOMMU_INCLUDES_ALL != 0
                || sources.any(|source| {
                    source.kind == IOMMU_SOURCE_FUNCTION
                        && usize::from(source.unit) == number
                        && source.source == device.function
                })
        };
        let mut units = system.iommus().iter().enumerate();
        units.any(|(number, unit)| unit.segment == device.segment && is_behind(number, unit))
    }
}

/// Whether all memory must have its place in the machine already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// RAM with the physical address 0 will be taken from Linux later.
    Open,
    /// Everything has its place: what the hypervisor demands.
    Complete,
}

/// What a cell owns. A slot with an empty name is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Holding {
    name: [u8; NAME_LENGTH],
    cpus: CpuSet,
    l3_ways: u32,
    l2_ways: u32,
    memory: Kept<OwnedMemory, MAX_MEMORY_REGIONS>,
    msrs: Kept<MsrAccess, MAX_MSRS>,
    interrupts: Kept<Interrupt, MAX_INTERRUPTS>,
    devices: Kept<AssignedDevice, MAX_DEVICES>,
    ports: Kept<PortRange, MAX_PORT_RANGES>,
}

impl Holding {
    const FREE: Self = Self {
        name: [0; NAME_LENGTH],
        cpus: CpuSet::EMPTY,
        l3_ways: 0,
        l2_ways: 0,
        memory: Kept::none(OwnedMemory::NONE),
        msrs: Kept::none(MsrAccess {
            msr: 0,
            flags: 0,
            write_mask: 0,
        }),
        interrupts: Kept::none(Interrupt { number: 0 }),
        devices: Kept::none(AssignedDevice {
            segment: 0,
            function: 0,
            vectors: 0,
            flags: 0,
        }),
        ports: Kept::none(PortRange { first: 0, count: 0 }),
    };

    fn is_free(&self) -> bool {
        self.name.first() == Some(&0)
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
            .find(|(_, holding)| is_same_name(&holding.name, name))
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
        first_of(|found| self.faults(machine, cell, placement, found))
    }

    /// Visits everything that speaks against creating `cell` now, the first what [`Ledger::check_with`] returns. Of each
    /// thing that the cell names, one fault is told.
    pub fn faults(
        &self,
        machine: &Machine<'_>,
        cell: &CellView<'_>,
        placement: Placement,
        found: &mut dyn FnMut(Refusal),
    ) {
        if let Some(id) = self.find(&cell.header().name) {
            return found(Refusal::new(Reason::CellExists, u64::from(id.0)));
        }
        if self.free_id().is_none() {
            return found(Refusal::new(Reason::TooManyCells, 0));
        }
        let mut note = |verdict: Result<(), Refusal>| {
            if let Err(refusal) = verdict {
                found(refusal);
            }
        };
        if cell.cpus().is_empty() {
            note(Err(Refusal::new(Reason::NoCpu, 0)));
        }
        for cpu in cell.cpus().iter() {
            note(self.check_cpu(machine, cpu));
        }
        let mut is_memory_known = true;
        for index in 0..cell.memory().len() {
            let verdict = self.check_region(machine, cell, index, placement);
            let reason = verdict.map_or_else(|refusal| refusal.reason, |()| Reason::None);
            is_memory_known &= reason != Reason::RegionInvalid;
            note(verdict);
        }
        for index in 0..cell.ports().len() {
            note(self.check_ports(machine, cell, index));
        }
        for index in 0..cell.devices().len() {
            note(self.check_device(machine, cell, index));
        }
        for index in 0..cell.interrupts().len() {
            note(self.check_interrupt(machine, cell.interrupts(), index));
        }
        for level in Level::ALL {
            note(self.check_ways(machine, cell, level));
        }
        for index in 0..cell.msrs().len() {
            note(self.check_msr(cell.msrs(), index));
        }
        // Where the code is can't be said as long as a region makes no sense.
        if is_memory_known {
            note(check_reset_address(cell));
        }
    }

    fn check_cpu(&self, machine: &Machine<'_>, cpu: u32) -> Result<(), Refusal> {
        let described = machine.description();
        let reason = if !machine.cpus.contains(cpu)
            || described.is_some_and(|system| cpu as usize >= system.machine_cpus().len())
        {
            Reason::CpuUnknown
        } else if cpu == 0 {
            Reason::CpuZero
        } else if self.owner_of_cpu(cpu) != CellId::ROOT {
            Reason::CpuOwned
        } else {
            return Ok(());
        };
        Err(Refusal::new(reason, u64::from(cpu)))
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
        holding.l3_ways = cell.header().l3_ways;
        holding.l2_ways = cell.header().l2_ways;
        holding
            .memory
            .fill(cell.memory().iter().map(OwnedMemory::new));
        holding.msrs.fill(cell.msrs().iter().copied());
        holding.interrupts.fill(cell.interrupts().iter().copied());
        holding.devices.fill(cell.devices().iter().copied());
        holding.ports.fill(cell.ports().iter().copied());
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

/// The first refusal of those that are visited.
fn first_of(visit: impl FnOnce(&mut dyn FnMut(Refusal))) -> Result<(), Refusal> {
    let mut first = Ok(());
    visit(&mut |refusal| {
        if first.is_ok() {
            first = Err(refusal);
        }
    });
    first
}

/// What this build of the hypervisor can't keep yet, so that it refuses the cell.
#[must_use]
pub fn unsupported(cell: &CellView<'_>) -> Option<Refusal> {
    let header = cell.header();
    let what = if header.l3_ways | header.l2_ways != 0 {
        Unsupported::CacheWays
    } else {
        return None;
    };
    Some(Refusal::new(Reason::Unsupported, what.0))
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
mod hardware_tests;
#[cfg(all(test, feature = "std"))]
mod tests;
