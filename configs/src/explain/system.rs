//! What is wrong with a system file: the description of the machine, and the lists of a strict root cell.

use gaol_abi::config::{
    MACHINE_CPU_SMIS, MEMORY_COMMUNICATION, MEMORY_LOADABLE, MEMORY_ROOT_SHARED, MEMORY_SHARED,
    MemoryRegion,
};
use gaol_abi::outcome::{MachineFault, Reason};

use super::hardware::msr_fault;
use super::memory::overlap_words;
use super::{Words, region_name, words};
use crate::binary::{Refusal, guest_range};
use crate::compile::System;
use crate::ledger::{Machine, msr_is_sound, ports_overlap, regions_overlap};
use crate::pci::{FunctionAddress, FunctionId};
use crate::problem::{Place, Problem};
use crate::region_fault::region_fault;

/// How to have a description that fits the machine.
const CREATE_ANEW: &str = "Mend the entry, or let the machine describe itself: gaol config create";

/// A refusal of [`crate::ledger::check_system`] as a problem of the system's file.
#[must_use]
pub fn explain_system(refusal: Refusal, system: &System, machine: &Machine<'_>) -> Problem {
    let explainer = Explainer {
        refusal,
        system,
        machine,
    };
    let (place, (message, label, remedy)) = explainer.place_and_words();
    Problem::new(&system.source, refusal.reason, message, remedy).at(place, label)
}

struct Explainer<'a> {
    refusal: Refusal,
    system: &'a System,
    machine: &'a Machine<'a>,
}

impl Explainer<'_> {
    fn place_and_words(&self) -> (Option<Place>, Words) {
        match self.refusal.reason {
            Reason::MachineInvalid => self.machine_fault(),
            Reason::RegionInvalid => self.invalid_region(),
            Reason::RegionOverlap => self.overlapping_regions(),
            Reason::MemoryIsHypervisors => self.kept("the hypervisor's memory"),
            Reason::MemoryIsInterruptController => self.kept("an interrupt controller"),
            Reason::MemoryIsIommus => self.kept("registers of an IOMMU"),
            Reason::PortsInvalid | Reason::PortsOwned => self.ports(),
            Reason::MsrInvalid | Reason::MsrOwned => self.msr(),
            reason => (
                None,
                words(
                    format!(
                        "the system is refused: {reason:?} ({:#x})",
                        self.refusal.detail
                    ),
                    "",
                    CREATE_ANEW,
                ),
            ),
        }
    }

    fn machine_fault(&self) -> (Option<Place>, Words) {
        let fault = MachineFault((self.refusal.detail >> 32) as u32);
        let index = self.refusal.detail as u32 as usize;
        let places = &self.system.places;
        let list = match fault {
            MachineFault::HypervisorPlace => {
                return (
                    places.hypervisor_address.clone(),
                    words(
                        "the hypervisor's memory lies on an interrupt controller, or ends beyond the addresses that a CPU can form",
                        "not possible",
                        "Choose another address, or leave the key out: Linux then gives the memory.",
                    ),
                );
            }
            MachineFault::Cpu => &places.cpus,
            // They stand in no file.
            MachineFault::Iommu | MachineFault::IommuSource => {
                return (None, self.machine_words(fault, index));
            }
            MachineFault::DeviceOrder => &places.devices,
            MachineFault::BarDevice | MachineFault::BarPlace | MachineFault::HypervisorOnBar => {
                &places.bars
            }
            _ => &places.ranges,
        };
        (list.get(index).cloned(), self.machine_words(fault, index))
    }

    fn machine_words(&self, fault: MachineFault, index: usize) -> Words {
        let view = self.system.view();
        let range = view.ranges().get(index);
        let at = range.map_or(0, |range| range.physical);
        let (message, label) = match fault {
            MachineFault::RangePlace => (
                format!(
                    "the range at {at:#x} is empty, or ends beyond the addresses that a CPU can form"
                ),
                "not a range",
            ),
            MachineFault::RangeKind => (
                format!("the range at {at:#x} is of an unknown kind"),
                "unknown",
            ),
            MachineFault::PciConfigurationSize => (
                format!("PCI configuration space at {at:#x} does not have 1 MiB a bus"),
                "wrong size",
            ),
            MachineFault::IoApicPins => (
                format!(
                    "the IOAPIC at {at:#x} has no pins, more than 240, or some that another has"
                ),
                "not possible",
            ),
            MachineFault::HypervisorOnRange => (
                format!("the hypervisor's memory lies on registers or reserved memory at {at:#x}"),
                "the hypervisor's memory is here",
            ),
            MachineFault::Cpu => match view.machine_cpus().get(index) {
                Some(cpu) if cpu.flags & !MACHINE_CPU_SMIS == 0 => (
                    format!(
                        "CPU {index} has APIC id {}, which another CPU has",
                        cpu.apic_id
                    ),
                    "taken",
                ),
                _ => (format!("CPU {index} has unknown flags"), "unknown"),
            },
            MachineFault::DeviceOrder => {
                let device = view.devices().get(index);
                let device = device.map_or_else(String::new, |device| {
                    format!(
                        "{} ({})",
                        FunctionAddress::from(device),
                        FunctionId::from(device)
                    )
                });
                (
                    format!("PCI function {device} is listed twice, or out of order"),
                    "named before",
                )
            }
            MachineFault::Iommu => (
                format!("IOMMU {index} of the firmware's table is not possible"),
                "not possible",
            ),
            MachineFault::IommuSource => (
                format!("device {index} of the firmware's table of IOMMUs is not possible"),
                "not possible",
            ),
            MachineFault::BarDevice => (
                format!("base address register {index} is of a PCI function that is not listed"),
                "no such function",
            ),
            _ => {
                let bar = view.bars().get(index);
                let device = bar.and_then(|bar| view.devices().get(usize::from(bar.device)));
                let device = device.map_or_else(String::new, |device| {
                    FunctionAddress::from(device).to_string()
                });
                let number = bar.map_or(0, |bar| bar.number);
                match fault {
                    MachineFault::HypervisorOnBar => (
                        format!(
                            "the hypervisor's memory lies on registers of PCI function {device}"
                        ),
                        "the hypervisor's memory is here",
                    ),
                    _ => (
                        format!(
                            "base address register {number} of PCI function {device} is not possible"
                        ),
                        "not possible",
                    ),
                }
            }
        };
        words(message, label, CREATE_ANEW)
    }

    fn invalid_region(&self) -> (Option<Place>, Words) {
        let view = self.system.view();
        let index = usize::try_from(self.refusal.detail).unwrap_or(usize::MAX);
        let Some(region) = view.root_memory().get(index) else {
            return (None, words("a memory region is not possible", "", ""));
        };
        let places = self.system.places.root_memory.get(index);
        let name = region_name(region);
        let cells = MEMORY_COMMUNICATION | MEMORY_LOADABLE | MEMORY_SHARED | MEMORY_ROOT_SHARED;
        if region.flags & cells != 0 {
            let place = places.map(|places| {
                let all = [
                    &places.loadable,
                    &places.shared,
                    &places.shared_with_root,
                    &places.kind,
                ];
                let mut given = all.into_iter().filter_map(Option::as_ref);
                given.next().unwrap_or(&places.name).clone()
            });
            return (
                place,
                words(
                    format!(
                        "memory region {name:?} is the root cell's, and has what only other cells' have"
                    ),
                    "not for the root cell",
                    "Take the underlined key out.",
                ),
            );
        }
        if region.guest != region.physical {
            let place = places.map(|places| {
                let physical = places.physical.clone();
                physical.unwrap_or_else(|| places.at.clone())
            });
            return (
                place,
                words(
                    format!(
                        "memory region {name:?} is the root cell's, and is not where the machine has it"
                    ),
                    "not the same as `at`",
                    "Leave `physical` out: the root cell has all memory at its host-physical address.",
                ),
            );
        }
        let earlier = &view.root_memory()[..index];
        let placed = MemoryRegion {
            physical: match region.physical {
                0 => gaol_abi::PAGE_SIZE,
                other => other,
            },
            ..*region
        };
        let fault = region_fault(&placed, earlier, self.machine.physical_limit);
        (
            places.map(|places| fault.place(places)),
            fault.words(region),
        )
    }

    fn overlapping_regions(&self) -> (Option<Place>, Words) {
        let view = self.system.view();
        let index = usize::try_from(self.refusal.detail).unwrap_or(usize::MAX);
        let place = self.system.places.root_memory.get(index);
        let place = place.map(|places| places.at.clone());
        let Some(region) = view.root_memory().get(index) else {
            return (None, words("two memory regions overlap", "", ""));
        };
        for other in &view.root_memory()[..index] {
            if let (true, Some(range)) = (regions_overlap(region, other).0, guest_range(other)) {
                let names = (region_name(region), region_name(other));
                return (
                    place,
                    overlap_words(names, range, "in the root cell's memory", "at"),
                );
            }
        }
        (place, words("two memory regions overlap", "overlaps", ""))
    }

    fn kept(&self, what: &str) -> (Option<Place>, Words) {
        let view = self.system.view();
        let address = self.refusal.detail;
        let index = view.root_memory().iter().position(|region| {
            let into = address.checked_sub(region.physical);
            into.is_some_and(|into| into < region.size)
        });
        let place = index.and_then(|index| self.system.places.root_memory.get(index));
        let region = index.and_then(|index| view.root_memory().get(index));
        let name = region.map_or_else(String::new, region_name);
        (
            place.map(|places| places.at.clone()),
            words(
                format!(
                    "memory region {name:?} of the root cell covers {what} from {address:#x} on"
                ),
                "kept by the hypervisor",
                "Leave that out: the hypervisor gives the root cell what it needs of it.",
            ),
        )
    }

    fn ports(&self) -> (Option<Place>, Words) {
        let view = self.system.view();
        let first = self.refusal.detail;
        let ranges = view.root_ports();
        let mut same = (0..ranges.len()).filter(|index| u64::from(ranges[*index].first) == first);
        let is_invalid = self.refusal.reason == Reason::PortsInvalid;
        let index = if is_invalid {
            same.next_back()
        } else {
            same.next()
        };
        let place = index.and_then(|index| self.system.places.root_ports.get(index).cloned());
        let console = self.machine.hypervisor_ports;
        let is_console = index.is_some_and(|index| {
            console.is_some_and(|console| ports_overlap(ranges[index], console))
        });
        if is_console && !is_invalid {
            return (
                place,
                words(
                    format!(
                        "the root cell's ports from {first:#x} on reach into those of the hypervisor's console"
                    ),
                    "kept by the hypervisor",
                    "Leave them out, or move the console: `uart = { port = ... }`.",
                ),
            );
        }
        (
            place,
            words(
                format!("the root cell's ports from {first:#x} on are no ports, or named twice"),
                "not possible",
                "Name each port once; the last one is 0xffff.",
            ),
        )
    }

    fn msr(&self) -> (Option<Place>, Words) {
        let view = self.system.view();
        let detail = self.refusal.detail;
        let is_owned = self.refusal.reason == Reason::MsrOwned;
        let mut same = (0..view.root_msrs().len()).filter(|index| {
            let access = &view.root_msrs()[*index];
            u64::from(access.msr) == detail && (is_owned || !msr_is_sound(access, true))
        });
        let index = if is_owned {
            same.next_back()
        } else {
            same.next()
        };
        let Some(index) = index else {
            return (None, words("a register can't be the root cell's", "", ""));
        };
        let places = self.system.places.root_msrs.get(index);
        let place = places.map(|places| places.index.clone());
        if is_owned {
            let message = format!("register {detail:#x} is named twice for the root cell");
            return (
                place,
                words(message, "named before", "Take one of the two out."),
            );
        }
        let (on_mask, words) = msr_fault(&view.root_msrs()[index], true);
        let mask = places.and_then(|places| places.write_mask.clone());
        (mask.filter(|_| on_mask).or(place), words)
    }
}
