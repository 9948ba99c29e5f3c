//! What is legal in a system, and slow or doubtful.
//!
//! Invariant: a warning never keeps anybody from anything, and names the key that it would go away with.

use std::collections::BTreeSet;

use gaol_abi::config::{
    DEVICE_NO_MASTER, MACHINE_CPU_SMIS, MEMORY_COMMUNICATION, MEMORY_DMA, MEMORY_EXECUTE,
    MEMORY_ROOT_SHARED, MEMORY_SHARED, MEMORY_WIDTHS, MEMORY_WRITE, MachineCpu, MemoryRegion,
    RANGE_RAM,
};

use crate::binary::{SystemView, name_text, physical_range};
use crate::compile::{Cell, RegionPlaces, System};
use crate::explain::{cpu_list, device_text, explain};
use crate::ledger::{self, Ledger, Machine, function_number, is_unprotected};
use crate::problem::{Doubt, Place, Problem};
use crate::{CpuSet, HostPhysical, Range};

/// A large page: what one entry of the second level of page tables maps.
const LARGE_PAGE: u64 = 2 << 20;

/// What is doubtful in the cells, taken together.
#[must_use]
pub fn warnings(system: &System, cells: &[Cell]) -> Vec<Problem> {
    let view = system.view();
    let mut all = Vec::new();
    for (index, cell) in cells.iter().enumerate() {
        let writer = Writer { cell };
        let mut found = Vec::new();
        writer.memory(&mut found);
        writer.far_memory(&view, &mut found);
        writer.not_shared(cells, index, &mut found);
        writer.cores(&view, cells, index, &mut found);
        writer.smis(&view, &mut found);
        writer.caches(&view, &mut found);
        let machine = super::with_system(super::any_machine(), system);
        found.extend(unprotected(&machine, cell, false));
        let not_yet = unsupported(cell);
        found.extend(not_yet.map(|problem| problem.as_warning(Doubt::Unsupported)));
        found.sort_by_key(|problem| problem.place().map_or(0, |place| place.start));
        all.append(&mut found);
    }
    if !view.describes_machine() && !cells.is_empty() {
        all.push(Problem::warning(
            &system.source,
            Doubt::UnknownMachine,
            "the machine is not described: cells were checked against each other only".to_owned(),
            "Let `gaol config create` write a system file with [machine].".to_owned(),
        ));
    }
    all
}

/// The PCI functions of the cell whose DMA no IOMMU of the machine keeps in the cell's memory, as warnings. `is_known`: the
/// hypervisor has said that there are such functions.
#[must_use]
pub fn unprotected(machine: &Machine<'_>, cell: &Cell, is_known: bool) -> Vec<Problem> {
    let view = cell.view();
    let system = machine.system.as_ref();
    let devices = view.devices().iter();
    devices
        .filter(|device| {
            let may_master = device.flags & DEVICE_NO_MASTER == 0;
            view.accepts_unprotected_dma()
                && (is_unprotected(machine, device) || is_known && may_master)
        })
        .map(|device| {
            let name = device_text(system, function_number(device.segment, device.function));
            Problem::warning(
                &cell.source,
                Doubt::UnprotectedDma,
                format!(
                    "cell \"{}\" can read and write all memory of the machine, that of Linux and of the hypervisor included, by the DMA of PCI function {name}",
                    view.name()
                ),
                "No IOMMU is in front of it. Give it to software that you trust with the machine, or write `bus-master = false` below it.".to_owned(),
            )
            .at(cell.places.unprotected_dma.clone(), "accepted here")
        })
        .collect()
}

/// What `cell` asks for and this build of the hypervisor can't keep, as the problem that it is at creation.
#[must_use]
pub fn unsupported(cell: &Cell) -> Option<Problem> {
    let refusal = ledger::unsupported(&cell.view());
    refusal.map(|refusal| explain(refusal, cell, &Ledger::new(), &super::any_machine()))
}

/// Writes the warnings about one cell.
struct Writer<'a> {
    cell: &'a Cell,
}

impl Writer<'_> {
    fn warning(
        &self,
        doubt: Doubt,
        place: Option<Place>,
        label: &str,
        message: String,
        remedy: impl Into<String>,
    ) -> Problem {
        Problem::warning(&self.cell.source, doubt, message, remedy.into()).at(place, label)
    }

    /// The regions with their places.
    fn regions(&self) -> impl Iterator<Item = (&MemoryRegion, Option<&RegionPlaces>)> {
        let places = &self.cell.places.memory;
        let regions = self.cell.view().memory().iter().enumerate();
        regions.map(|(index, region)| (region, places.get(index)))
    }

    fn place_of_cpu(&self, wanted: u32) -> Option<Place> {
        let places = &self.cell.places;
        let mut cpus = places.each_cpu.iter();
        cpus.find(|(cpu, _)| *cpu == u64::from(wanted))
            .map(|(_, place)| place.clone())
            .or_else(|| places.cpus.clone())
    }

    fn memory(&self, found: &mut Vec<Problem>) {
        for (region, places) in self.regions() {
            found.extend(self.small_pages(region, places));
            found.extend(self.code_in_reach_of_devices(region, places));
        }
    }

    fn small_pages(&self, region: &MemoryRegion, places: Option<&RegionPlaces>) -> Option<Problem> {
        if region.size < LARGE_PAGE || region.flags & (MEMORY_COMMUNICATION | MEMORY_WIDTHS) != 0 {
            return None;
        }
        let offset = region.guest.wrapping_sub(region.physical) % LARGE_PAGE;
        if offset == 0 {
            return None;
        }
        let name = name_text(&region.name).unwrap_or_default();
        // Memory that Linux gives begins at a large page.
        let is_placed = region.physical != 0;
        let place = places.map(|places| match (is_placed, &places.physical) {
            (true, Some(physical)) => physical.clone(),
            _ => places.at.clone(),
        });
        let remedy = match is_placed {
            true => format!(
                "The next `physical` with which 2 MiB pages fit is {:#x}.",
                region.physical.saturating_add(offset)
            ),
            false => format!(
                "Set `at` to a multiple of 0x200000, for instance {:#x}.",
                region.guest.saturating_add(LARGE_PAGE - offset)
            ),
        };
        Some(self.warning(
            Doubt::SmallPages,
            place,
            "breaks large pages",
            format!(
                "memory region {name:?} is mapped in 4 KiB pages: `at` and `physical` are not equally far from a multiple of 2 MiB"
            ),
            remedy,
        ))
    }

    fn code_in_reach_of_devices(
        &self,
        region: &MemoryRegion,
        places: Option<&RegionPlaces>,
    ) -> Option<Problem> {
        let all = MEMORY_EXECUTE | MEMORY_WRITE | MEMORY_DMA;
        let name = name_text(&region.name).unwrap_or_default();
        (region.flags & all == all).then(|| {
            self.warning(
                Doubt::CodeInReachOfDevices,
                places.and_then(|places| places.dma.clone()),
                "devices can write code here",
                format!(
                    "memory region {name:?} holds code, and the cell's devices can write to it"
                ),
                "Give the devices a region of their own, with `dma = true` and access \"rw\".",
            )
        })
    }

    /// Memory on a node that none of the cell's CPUs is on.
    fn far_memory(&self, view: &SystemView<'_>, found: &mut Vec<Problem>) {
        let cpus = self.cell.view().cpus();
        let nodes: BTreeSet<u16> = cpus
            .iter()
            .filter_map(|cpu| machine_cpu(view, cpu))
            .map(|cpu| cpu.node)
            .collect();
        for (region, places) in self.regions() {
            let node = physical_range(region).and_then(|range| node_of(view, range));
            let Some(node) = node.filter(|node| !nodes.is_empty() && !nodes.contains(node)) else {
                continue;
            };
            let name = name_text(&region.name).unwrap_or_default();
            let near: Vec<String> = nodes.iter().map(u16::to_string).collect();
            found.push(self.warning(
                Doubt::FarMemory,
                places.and_then(|places| places.physical.clone()),
                "far from the CPUs",
                format!(
                    "memory region {name:?} is on node {node}, and the cell's CPUs are on node {}",
                    near.join(" and ")
                ),
                "Take memory or CPUs of the same node.",
            ));
        }
    }

    /// Shared memory that none of the other cells has, nor the root cell.
    fn not_shared(&self, cells: &[Cell], index: usize, found: &mut Vec<Problem>) {
        let has = |cell: &Cell, name| {
            let view = cell.view();
            let mut regions = view.memory().iter();
            regions.any(|other| other.flags & MEMORY_SHARED != 0 && other.name == name)
        };
        for (region, places) in self.regions() {
            let is_shared = region.flags & (MEMORY_SHARED | MEMORY_ROOT_SHARED) == MEMORY_SHARED;
            let mut others = cells
                .iter()
                .enumerate()
                .filter(|(other, _)| *other != index);
            if !is_shared || others.any(|(_, other)| has(other, region.name)) {
                continue;
            }
            let name = name_text(&region.name).unwrap_or_default();
            found.push(self.warning(
                Doubt::NotShared,
                places.and_then(|places| places.shared.clone()),
                "with nobody",
                format!("no other cell here has the shared memory region {name:?}"),
                "Name the files of all cells that share it, or take `shared` out.",
            ));
        }
    }

    /// Hyper-threads of the cell's cores that others have.
    fn cores(&self, view: &SystemView<'_>, cells: &[Cell], index: usize, found: &mut Vec<Problem>) {
        let own = self.cell.view().cpus();
        for cpu in own.iter() {
            let Some(core) = machine_cpu(view, cpu).map(|cpu| cpu.core) else {
                continue;
            };
            let is_first = !own.iter().any(|other| {
                other < cpu && machine_cpu(view, other).is_some_and(|other| other.core == core)
            });
            let siblings = (0u32..)
                .zip(view.machine_cpus())
                .filter(|(_, other)| other.core == core)
                .map(|(number, _)| number)
                .filter(|number| !own.contains(*number));
            let siblings: CpuSet = siblings.collect();
            if is_first && !siblings.is_empty() {
                found.extend(self.core(cpu, siblings, cells, index));
            }
        }
    }

    /// The owners of a CPU's hyper-threads; of two cells the later one is warned.
    fn core(
        &self,
        cpu: u32,
        siblings: CpuSet,
        cells: &[Cell],
        index: usize,
    ) -> impl Iterator<Item = Problem> {
        let of = |cell: &Cell| -> CpuSet {
            let cpus = cell.view().cpus();
            siblings.iter().filter(|cpu| cpus.contains(*cpu)).collect()
        };
        let mut owners: Vec<(String, CpuSet)> = Vec::new();
        let mut rest = siblings;
        for (other, cell) in cells.iter().enumerate() {
            let theirs = of(cell);
            theirs.iter().for_each(|cpu| rest.remove(cpu));
            if other < index && !theirs.is_empty() {
                owners.push((format!("cell \"{}\"", cell.view().name()), theirs));
            }
        }
        if !rest.is_empty() {
            owners.push(("the root cell".to_owned(), rest));
        }
        owners.into_iter().map(move |(owner, theirs)| {
            let noun = if theirs.len() == 1 { "CPU" } else { "CPUs" };
            let theirs = cpu_list(theirs);
            self.warning(
                Doubt::SharedCore,
                self.place_of_cpu(cpu),
                "half a core",
                format!("CPU {cpu} is one core with {noun} {theirs} of {owner}, which slows it down at times"),
                format!("Name {noun} {theirs} in `cpus` of this cell as well, even if only to be idle there."),
            )
        })
    }

    fn smis(&self, view: &SystemView<'_>, found: &mut Vec<Problem>) {
        for cpu in self.cell.view().cpus().iter() {
            let has_smis = |cpu: &MachineCpu| cpu.flags & MACHINE_CPU_SMIS != 0;
            if machine_cpu(view, cpu).is_some_and(has_smis) {
                found.push(self.warning(
                    Doubt::Smis,
                    self.place_of_cpu(cpu),
                    "not always the cell's",
                    format!("the firmware was seen to interrupt CPU {cpu} (SMIs), for longer than real time can bear"),
                    "Switch off what causes them in the firmware's setup (USB legacy support, power capping), or name another CPU.",
                ));
            }
        }
    }

    /// A cache that could be divided and is not.
    fn caches(&self, view: &SystemView<'_>, found: &mut Vec<Problem>) {
        type Cache = fn(&MachineCpu) -> u16;
        let header = view.header();
        let own = self.cell.view();
        let levels: [(u32, u16, u32, Cache); 2] = [
            (3, header.l3_ways, own.header().l3_ways, |cpu| cpu.l3),
            (2, header.l2_ways, own.header().l2_ways, |cpu| cpu.l2),
        ];
        for (level, ways, owned, cache) in levels {
            if ways == 0 || owned != 0 {
                continue;
            }
            let caches: BTreeSet<u16> = own
                .cpus()
                .iter()
                .filter_map(|cpu| machine_cpu(view, cpu).map(cache))
                .collect();
            let is_alone = (0u32..)
                .zip(view.machine_cpus())
                .filter(|(_, cpu)| caches.contains(&cache(cpu)))
                .all(|(number, _)| own.cpus().contains(number));
            if !is_alone {
                found.push(self.warning(
                    Doubt::SharedCache,
                    self.cell.places.cpus.clone(),
                    "share their cache with others",
                    format!("other CPUs can push the cell's data out of the level-{level} cache"),
                    format!("Give the cell some of its {ways} ways: `cache-ways = {{ l{level} = [0, 1] }}`."),
                ));
            }
        }
    }
}

fn machine_cpu<'a>(view: &SystemView<'a>, cpu: u32) -> Option<&'a MachineCpu> {
    view.machine_cpus().get(usize::try_from(cpu).ok()?)
}

/// The node that the range begins on, if it is RAM.
fn node_of(view: &SystemView<'_>, range: Range<HostPhysical>) -> Option<u16> {
    let mut ram = view.ranges().iter().filter(|ram| ram.kind == RANGE_RAM);
    let ram = ram.find(|ram| {
        Range::new(HostPhysical(ram.physical), ram.size)
            .is_some_and(|ram| ram.contains(range.start()))
    })?;
    u16::try_from(ram.number).ok()
}
