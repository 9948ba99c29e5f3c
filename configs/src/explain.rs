//! What the ledger's refusal of a cell means: the other party, the place in the file, the remedy.

mod hardware;
mod memory;
mod system;

use gaol_abi::config::{MACHINE_BAR_PORTS, PortRange};
use gaol_abi::outcome::Reason;

use crate::binary::{Refusal, SystemView};
use crate::compile::Cell;
use crate::cpu_set::CpuSet;
use crate::ledger::{
    CellId, Ledger, Machine, PCI_CONFIGURATION_PORTS, RESET_PORTS, find_device, function_number,
    ports_overlap,
};
use crate::pci::{FunctionAddress, FunctionId};
use crate::problem::{Place, Problem};

pub(crate) use memory::region_name;
pub use system::explain_system;

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
            Reason::MemoryIsPciConfiguration
            | Reason::MemoryIsIommus
            | Reason::MemoryIsReservedDma
            | Reason::MemoryIsDevices => self.kept_memory(),
            Reason::SharedRegionDiffers => self.differing_region(),
            Reason::DmaOutsideMemory | Reason::MemoryUnknown => self.unknown_memory(),
            Reason::PortsOwned | Reason::PortsInvalid => self.ports(),
            Reason::DeviceUnknown
            | Reason::DeviceOwned
            | Reason::DeviceIsBridge
            | Reason::UnprotectedDma
            | Reason::DeviceSharesRequester
            | Reason::VectorBudget => self.device(),
            Reason::DeviceGroupSplit => self.split_group(),
            Reason::InterruptUnknown | Reason::InterruptOwned | Reason::InterruptInUse => {
                self.interrupt()
            }
            Reason::CacheWaysInvalid | Reason::CacheWaysOwned => self.cache_ways(),
            Reason::MsrInvalid | Reason::MsrOwned => self.msr(),
            Reason::Unsupported => self.unsupported(),
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

    /// A PCI function that has some of the ports, and is not the cell's.
    fn device_with_ports(&self, range: PortRange) -> Option<String> {
        let system = self.machine.system?;
        let reach = |bar: &&gaol_abi::config::MachineBar| {
            let ports = bar.address..bar.address.saturating_add(bar.size);
            let end = u64::from(range.first) + u64::from(range.count);
            bar.flags & MACHINE_BAR_PORTS != 0
                && bar.address != 0
                && ports.start < end
                && u64::from(range.first) < ports.end
        };
        let owners = system.bars().iter().filter(reach).filter_map(|bar| {
            let device = system.devices().get(usize::from(bar.device))?;
            Some(function_number(device.segment, device.function))
        });
        let view = self.cell.view();
        let mut others = owners.filter(|device| !crate::ledger::has_device(&view, *device));
        others
            .next()
            .map(|device| device_text(Some(&system), device))
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
        if RESET_PORTS
            .into_iter()
            .any(|port| ports_overlap(range, port))
        {
            return words(
                format!("{ports} {reach} through which a PC is reset: 0x60, 0x64 and 0x92"),
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
        if let Some(device) = self.device_with_ports(range) {
            return words(
                format!("{ports} {reach} of PCI function {device}, which is not the cell's"),
                "registers of a device",
                "Leave them out, or give the cell the function under `devices`.",
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

/// A PCI function as people name it.
pub(crate) fn device_text(system: Option<&SystemView<'_>>, detail: u64) -> String {
    let address = FunctionAddress::from_detail(detail);
    match system.and_then(|system| find_device(system, detail)) {
        Some(device) => format!("{address} ({})", FunctionId::from(device)),
        None => address.to_string(),
    }
}

/// The PCI function with registers at an address in memory.
fn device_at(system: &SystemView<'_>, address: u64) -> Option<u64> {
    let mut bars = system.bars().iter();
    let bar = bars.find(|bar| {
        bar.flags & MACHINE_BAR_PORTS == 0
            && bar.address != 0
            && address
                .checked_sub(bar.address)
                .is_some_and(|into| into < bar.size)
    })?;
    let device = system.devices().get(usize::from(bar.device))?;
    Some(function_number(device.segment, device.function))
}

#[cfg(test)]
mod hardware_tests;
#[cfg(test)]
#[path = "explain_tests.rs"]
mod tests;
