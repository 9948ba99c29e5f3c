//! What the ledger's refusal of a cell means: the other party, the place in the file, the remedy.

use gaol_abi::PAGE_SIZE;
use gaol_abi::config::{MEMORY_ROOT_SHARED, MemoryRegion, PortRange};
use gaol_abi::outcome::Reason;

use crate::address::{Address, HostPhysical, Range};
use crate::binary::{Refusal, guest_range, name_text, physical_range};
use crate::compile::{Cell, RegionPlaces};
use crate::cpu_set::CpuSet;
use crate::ledger::{APIC_PAGE, CellId, Ledger, Machine, PCI_CONFIGURATION_PORTS, ports_overlap};
use crate::problem::{Place, Problem};
use crate::region_fault::region_fault;

/// How to have memory without choosing its place.
const LET_LINUX_CHOOSE: &str =
    "Choose another address, or leave `physical` out: Linux then gives the memory.";

/// The refusal of `cell` by `ledger` as a problem of the cell's file.
#[must_use]
pub fn explain(refusal: Refusal, cell: &Cell, ledger: &Ledger, machine: &Machine<'_>) -> Problem {
    let explainer = Explainer {
        refusal,
        cell,
        ledger,
        machine,
    };
    explainer.explain()
}

/// CPUs as ranges: "0-2,5".
#[must_use]
pub fn cpu_list(cpus: CpuSet) -> String {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for cpu in cpus.iter() {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == cpu => *last = cpu,
            _ => ranges.push((cpu, cpu)),
        }
    }
    let ranges: Vec<String> = ranges
        .into_iter()
        .map(|(first, last)| match last == first {
            true => first.to_string(),
            false => format!("{first}-{last}"),
        })
        .collect();
    ranges.join(",")
}

struct Explainer<'a> {
    refusal: Refusal,
    cell: &'a Cell,
    ledger: &'a Ledger,
    machine: &'a Machine<'a>,
}

/// Message, label, remedy.
pub(crate) type Words = (String, &'static str, String);

pub(crate) fn words(
    message: impl Into<String>,
    label: &'static str,
    remedy: impl Into<String>,
) -> Words {
    (message.into(), label, remedy.into())
}

impl Explainer<'_> {
    fn explain(&self) -> Problem {
        let (place, (message, label, remedy)) = self.place_and_words();
        Problem::new(&self.cell.source, self.refusal.reason, message, remedy).at(place, label)
    }

    fn place_and_words(&self) -> (Option<Place>, Words) {
        let places = &self.cell.places;
        let detail = self.refusal.detail;
        match self.refusal.reason {
            Reason::CellExists => (places.name.clone(), self.name_taken()),
            Reason::TooManyCells => (
                places.name.clone(),
                words(
                    format!("there are {} cells already", gaol_abi::MAX_CELLS),
                    "one too many",
                    "Destroy a cell first: gaol cell destroy NAME",
                ),
            ),
            Reason::NoCpu => (
                places.cpus.clone(),
                words(
                    "the cell has no CPU",
                    "empty",
                    "Name at least one, for instance `cpus = [3]`. CPU 0 stays with Linux.",
                ),
            ),
            Reason::CpuUnknown | Reason::CpuZero | Reason::CpuOwned => {
                (self.place_of_cpu(), self.cpu())
            }
            Reason::RegionInvalid => self.invalid_region(),
            Reason::RegionOverlap => self.overlapping_regions(),
            Reason::MemoryOwned | Reason::MemoryIsHypervisors => self.owned_memory(),
            Reason::MemoryIsInterruptController => self.interrupt_controller(),
            Reason::PortsOwned | Reason::PortsInvalid => self.ports(),
            Reason::ResetAddress => (
                places.reset_address.clone(),
                words(
                    format!(
                        "the cell's CPUs would start at {detail:#x}, where the cell has no code"
                    ),
                    "the CPUs start here",
                    "Set `reset-address` to an address below 4 GiB in a memory region with access \"rx\" or \"rwx\".",
                ),
            ),
            reason => (
                None,
                words(
                    format!("the cell is refused: {reason:?} ({detail:#x})"),
                    "",
                    "Run `gaol config check` on all files together.",
                ),
            ),
        }
    }

    fn name_of(&self, id: CellId) -> String {
        match self.ledger.name_of(id) {
            Some(name) => format!("cell \"{name}\""),
            None => "another cell".to_owned(),
        }
    }

    fn name_taken(&self) -> Words {
        let name = self.cell.view().name().to_owned();
        match self.refusal.detail {
            0 => words(
                format!("the root cell is named {name:?}"),
                "taken",
                "Choose another name.",
            ),
            _ => words(
                format!("a cell named {name:?} exists already"),
                "taken",
                "Choose another name, or destroy the other cell first.",
            ),
        }
    }

    fn place_of_cpu(&self) -> Option<Place> {
        let mut cpus = self.cell.places.each_cpu.iter();
        let found = cpus.find(|(cpu, _)| *cpu == self.refusal.detail);
        found
            .map(|(_, place)| place.clone())
            .or_else(|| self.cell.places.cpus.clone())
    }

    fn cpu(&self) -> Words {
        let cpu = u32::try_from(self.refusal.detail).unwrap_or(u32::MAX);
        match self.refusal.reason {
            Reason::CpuZero => words(
                "CPU 0 can't be taken from Linux",
                "stays with Linux",
                "Name other CPUs.",
            ),
            Reason::CpuUnknown => words(
                format!("there is no CPU {cpu}"),
                "no such CPU",
                format!("The machine has CPUs {}.", cpu_list(self.machine.cpus)),
            ),
            _ => {
                let free = self
                    .machine
                    .cpus
                    .iter()
                    .filter(|cpu| *cpu != 0 && self.ledger.owner_of_cpu(*cpu) == CellId::ROOT);
                let free: CpuSet = free.collect();
                let remedy = if free.is_empty() {
                    "Destroy the other cell first: there is no other CPU left.".to_owned()
                } else if free.len() > 8 {
                    "Name another CPU.".to_owned()
                } else {
                    format!("CPUs that can be taken: {}.", cpu_list(free))
                };
                words(
                    format!(
                        "CPU {cpu} belongs to {}",
                        self.name_of(self.ledger.owner_of_cpu(cpu))
                    ),
                    "taken",
                    remedy,
                )
            }
        }
    }

    fn region_places(&self, index: usize) -> Option<&RegionPlaces> {
        self.cell.places.memory.get(index)
    }

    fn invalid_region(&self) -> (Option<Place>, Words) {
        let view = self.cell.view();
        let index = usize::try_from(self.refusal.detail).unwrap_or(usize::MAX);
        let Some(region) = view.memory().get(index) else {
            return (None, words("a memory region is not possible", "", ""));
        };
        let earlier = &view.memory()[..index];
        let fault = region_fault(region, earlier, self.machine.physical_limit);
        let place = self.region_places(index).map(|places| fault.place(places));
        (place, fault.words(region))
    }

    fn overlapping_regions(&self) -> (Option<Place>, Words) {
        let view = self.cell.view();
        let index = usize::try_from(self.refusal.detail).unwrap_or(usize::MAX);
        let places = self.region_places(index);
        let Some(region) = view.memory().get(index) else {
            return (None, words("two memory regions overlap", "", ""));
        };
        for other in &view.memory()[..index] {
            let names = (region_name(region), region_name(other));
            if let (Some(first), Some(second)) = (guest_range(region), guest_range(other))
                && first.overlaps(second)
            {
                let place = places.map(|places| places.at.clone());
                return (
                    place,
                    overlap_words(names, second, "in the cell's memory", "at"),
                );
            }
            if let (Some(first), Some(second)) = (physical_range(region), physical_range(other))
                && first.overlaps(second)
            {
                let place = places.and_then(|places| places.physical.clone());
                return (
                    place,
                    overlap_words(names, second, "in physical memory", "physical"),
                );
            }
        }
        (None, words("two memory regions overlap", "", ""))
    }

    /// The region that contains the physical address of the refusal.
    fn region_at_detail(&self) -> Option<(usize, &MemoryRegion, Range<HostPhysical>)> {
        let address = HostPhysical(self.refusal.detail);
        let mut regions = self.cell.view().memory().iter().enumerate();
        regions.find_map(|(index, region)| {
            // The view borrows from the cell, which lives as long as the explainer.
            let range = physical_range(region).filter(|range| range.contains(address))?;
            Some((index, region, range))
        })
    }

    fn owned_memory(&self) -> (Option<Place>, Words) {
        let address = self.refusal.detail;
        let Some((index, region, range)) = self.region_at_detail() else {
            return (
                None,
                words(
                    format!("memory at {address:#x} is taken"),
                    "",
                    LET_LINUX_CHOOSE,
                ),
            );
        };
        let place = self
            .region_places(index)
            .and_then(|places| places.physical.clone());
        let name = region_name(region);
        let is_hypervisors = self.refusal.reason == Reason::MemoryIsHypervisors;
        let owner = if is_hypervisors {
            "the hypervisor's memory".to_owned()
        } else {
            let page = Range::new(HostPhysical(address), 1).unwrap_or(range);
            let user = self.ledger.user_of_memory(page);
            let user = user.map_or("another cell".to_owned(), |id| self.name_of(id));
            format!("memory of {user}")
        };
        let remedy = if region.flags & MEMORY_ROOT_SHARED != 0 && !is_hypervisors {
            "Memory that cells share has the same address, size and kind and `shared-with-root = true` in each of them."
        } else {
            LET_LINUX_CHOOSE
        };
        (
            place,
            words(
                format!("memory region {name:?} covers {owner} from {address:#x} on"),
                "taken",
                remedy,
            ),
        )
    }

    fn interrupt_controller(&self) -> (Option<Place>, Words) {
        if let Some((index, region, _)) = self.region_at_detail() {
            let place = self
                .region_places(index)
                .and_then(|places| places.physical.clone());
            let message = format!(
                "memory region {:?} covers an interrupt controller at {:#x}, which the hypervisor keeps",
                region_name(region),
                self.refusal.detail
            );
            let remedy = "Leave that page out. Cells have their own APIC without naming it.";
            return (place, words(message, "registers of APIC or IOAPIC", remedy));
        }
        let covers_apic = |region: &MemoryRegion| {
            let apic = Range::new(Address::new(APIC_PAGE), PAGE_SIZE);
            guest_range(region)
                .zip(apic)
                .is_some_and(|(range, apic)| range.overlaps(apic))
        };
        let view = self.cell.view();
        let index = view.memory().iter().position(covers_apic).unwrap_or(0);
        let place = self.region_places(index).map(|places| places.at.clone());
        let name = view
            .memory()
            .get(index)
            .map_or_else(String::new, region_name);
        (
            place,
            words(
                format!(
                    "memory region {name:?} covers {APIC_PAGE:#x}, where the cell's CPUs have their APIC"
                ),
                "covers the APIC",
                "Let the region end below it, or begin above.",
            ),
        )
    }

    fn ports(&self) -> (Option<Place>, Words) {
        let view = self.cell.view();
        let first = self.refusal.detail;
        let mut ranges = view.ports().iter();
        // The ledger goes through the ranges in their order; of two that begin alike the second can be meant.
        let same: Vec<usize> = (0..view.ports().len())
            .filter(|index| u64::from(view.ports()[*index].first) == first)
            .collect();
        let is_invalid = self.refusal.reason == Reason::PortsInvalid;
        let index = if is_invalid {
            same.last()
        } else {
            same.first()
        };
        let place = index.and_then(|index| self.cell.places.ports.get(*index).cloned());
        let Some(range) = index.and_then(|index| ranges.nth(*index)) else {
            return (
                None,
                words(format!("port {first:#x} is not available"), "", ""),
            );
        };
        (place, self.port_words(*range, is_invalid))
    }

    fn port_words(&self, range: PortRange, is_invalid: bool) -> Words {
        let (first, last) = (
            range.first,
            u32::from(range.first) + u32::from(range.count) - 1,
        );
        let (ports, reach) = match range.count {
            1 => (format!("port {first:#x}"), "is one"),
            _ => (format!("ports {first:#x} to {last:#x}"), "reach into those"),
        };
        if is_invalid {
            return words(
                format!("{ports} {reach} of another range of the cell"),
                "named twice",
                "Name each port once.",
            );
        }
        if ports_overlap(range, PCI_CONFIGURATION_PORTS) {
            return words(
                format!("{ports} {reach} of the PCI configuration space, 0xcf8 to 0xcff"),
                "kept by the hypervisor",
                "Leave them out.",
            );
        }
        if let Some(console) = self.machine.hypervisor_ports
            && ports_overlap(range, console)
        {
            return words(
                format!(
                    "{ports} {reach} of the hypervisor's console, from {:#x} on",
                    console.first
                ),
                "kept by the hypervisor",
                "Leave them out, or move the console in the system file: `uart = { port = ... }`.",
            );
        }
        let owner = (first..=u16::try_from(last).unwrap_or(u16::MAX))
            .map(|port| self.ledger.owner_of_port(port))
            .find(|owner| *owner != CellId::ROOT)
            .map_or("another cell".to_owned(), |owner| self.name_of(owner));
        words(
            format!("{ports} {reach} of {owner}"),
            "taken",
            "A port belongs to one cell: take it out of one of the two.",
        )
    }
}

pub(crate) fn region_name(region: &MemoryRegion) -> String {
    name_text(&region.name).unwrap_or_default().to_owned()
}

fn overlap_words<A: Address>(
    (name, other): (String, String),
    range: Range<A>,
    place: &str,
    key: &str,
) -> Words {
    let (start, end) = (range.start().value(), range.end().value());
    words(
        format!("memory regions {name:?} and {other:?} overlap {place}"),
        "overlaps",
        format!("{other:?} is from {start:#x} to {end:#x}: set `{key}` to {end:#x} or beyond."),
    )
}

#[cfg(test)]
#[path = "explain_tests.rs"]
mod tests;
