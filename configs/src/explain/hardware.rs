//! What a refusal for PCI functions, interrupt lines, cache ways and registers means.

use gaol_abi::config::{MACHINE_DEVICE_BRIDGE, MSR_WRITE, MsrAccess};
use gaol_abi::outcome::{Reason, Unsupported};

use super::{Explainer, Words, device_text, words};
use crate::compile::DevicePlaces;
use crate::ledger::{
    CellId, Level, VECTORS_PER_CPU, find_device, function_number, is_denied, vectors_of,
    vectors_wanted,
};
use crate::problem::Place;

/// Where the machine's list comes from.
const DESCRIBE_ANEW: &str = "What the machine has stands in the system file: gaol config create";

impl Explainer<'_> {
    fn device_places(&self, detail: u64) -> Option<&DevicePlaces> {
        let view = self.cell.view();
        let number = |index: &usize| {
            let device = view.devices().get(*index);
            device.is_some_and(|device| function_number(device.segment, device.function) == detail)
        };
        // Of a function that is named twice, the second is meant.
        let is_twice = self.refusal.reason == Reason::DeviceOwned;
        let mut all = (0..view.devices().len()).filter(number);
        let index = if is_twice {
            all.next_back()
        } else {
            all.next()
        };
        self.cell.places.devices.get(index?)
    }

    pub(super) fn device(&self) -> (Option<Place>, Words) {
        let detail = self.refusal.detail;
        let system = self.machine.system.as_ref();
        let device = device_text(system, detail);
        let places = self.device_places(detail);
        let mut place = places.map(|places| places.function.clone());
        let words = match self.refusal.reason {
            Reason::DeviceUnknown => words(
                format!("there is no PCI function {device} in the machine"),
                "no such function",
                DESCRIBE_ANEW,
            ),
            Reason::DeviceIsBridge => words(
                format!("PCI function {device} is a bridge"),
                "stays with the root cell",
                "Name the functions behind it: the root cell keeps the bridges.",
            ),
            Reason::UnprotectedDma => words(
                format!(
                    "no IOMMU keeps PCI function {device} in the memory of the cell: its DMA can reach all of the machine"
                ),
                "reaches all memory",
                "Write `bus-master = false` below it if the cell uses its registers only, or `unprotected-dma = true` for the cell if you trust it with the whole machine.",
            ),
            Reason::DeviceSharesRequester => words(
                format!(
                    "PCI function {device} is behind a bridge to conventional PCI, or has the address of an IOAPIC or HPET: no IOMMU can tell it from others"
                ),
                "not told apart",
                "Put a card into a slot of PCI Express, or write `bus-master = false` below it if the cell uses its registers only.",
            ),
            Reason::VectorBudget => {
                place = places.and_then(|places| places.vectors.clone()).or(place);
                self.vectors(&device)
            }
            _ => match self.ledger.owner_of_device(detail) {
                CellId::ROOT => words(
                    format!("PCI function {device} is named twice"),
                    "named before",
                    "Take one of the two out.",
                ),
                owner => words(
                    format!("PCI function {device} belongs to {}", self.name_of(owner)),
                    "taken",
                    "A PCI function belongs to one cell: take it out of one of the two.",
                ),
            },
        };
        (place, words)
    }

    fn vectors(&self, device: &str) -> Words {
        let view = self.cell.view();
        let detail = self.refusal.detail;
        let mut devices = view.devices().iter();
        let asked = devices
            .find(|device| function_number(device.segment, device.function) == detail)
            .map_or(0, |device| device.vectors);
        let system = self.machine.description();
        let known = system.and_then(|system| find_device(&system, detail));
        if let Some(has) = known.map(vectors_of)
            && asked > has
        {
            return words(
                format!("PCI function {device} has {has} interrupt vectors, not {asked}"),
                "more than it has",
                format!("Write at most {has}, or leave `vectors` out."),
            );
        }
        let wanted: u32 = view
            .devices()
            .iter()
            .map(|device| vectors_wanted(self.machine, device))
            .sum();
        let (lines, cpus) = (view.interrupts().len(), view.cpus().len());
        words(
            format!(
                "the cell's PCI functions take {wanted} interrupt vectors and its interrupt lines {lines}; its CPUs have {}",
                u64::from(cpus) * u64::from(VECTORS_PER_CPU)
            ),
            "beyond the last vector",
            format!(
                "Give its functions fewer `vectors`, or the cell more CPUs: each has {VECTORS_PER_CPU}."
            ),
        )
    }

    /// The refusal names the function that is missing.
    pub(super) fn split_group(&self) -> (Option<Place>, Words) {
        let missing = self.refusal.detail;
        let view = self.cell.view();
        let system = self.machine.system.as_ref();
        let group = system
            .and_then(|system| find_device(system, missing))
            .map(|device| device.group);
        let own = view.devices().iter().find_map(|device| {
            let number = function_number(device.segment, device.function);
            let known = system.and_then(|system| find_device(system, number))?;
            (Some(known.group) == group).then_some(number)
        });
        let place = own
            .and_then(|own| self.device_places(own))
            .map(|places| places.function.clone());
        let is_bridge = system
            .and_then(|system| find_device(system, missing))
            .is_some_and(|device| device.flags & MACHINE_DEVICE_BRIDGE != 0);
        let own = own.map_or_else(String::new, |own| device_text(system, own));
        let missing = device_text(system, missing);
        let remedy = if is_bridge {
            "Choose a function of another group: this one is part of a device with a bridge, and bridges stay with the root cell.".to_owned()
        } else {
            format!(
                "Give the cell {missing} as well: functions that reach each other without the IOMMU belong to one cell."
            )
        };
        (
            place,
            words(
                format!(
                    "PCI function {own} can't be kept from reaching {missing}, which is not the cell's"
                ),
                "its group is split",
                remedy,
            ),
        )
    }

    pub(super) fn interrupt(&self) -> (Option<Place>, Words) {
        let line = u32::try_from(self.refusal.detail).unwrap_or(u32::MAX);
        let view = self.cell.view();
        let is_owned = self.refusal.reason == Reason::InterruptOwned;
        let owner = self.ledger.owner_of_interrupt(line);
        let mut all = (0..view.interrupts().len()).filter(|index| {
            let other = view.interrupts().get(*index);
            other.is_some_and(|other| other.number == line)
        });
        let index = if is_owned && owner == CellId::ROOT {
            all.next_back()
        } else {
            all.next()
        };
        let place = index.and_then(|index| self.cell.places.interrupts.get(index).cloned());
        let words = match (is_owned, owner) {
            (false, _) if self.refusal.reason == Reason::InterruptInUse => words(
                format!("Linux uses interrupt line {line}"),
                "in use",
                "Make its driver let go of it (`cat /proc/interrupts` names it), or take another line.",
            ),
            (false, _) => words(
                format!("no IOAPIC of the machine has an interrupt line {line}"),
                "no such line",
                DESCRIBE_ANEW,
            ),
            (true, CellId::ROOT) => words(
                format!("interrupt line {line} is named twice"),
                "named before",
                "Take one of the two out.",
            ),
            (true, owner) => words(
                format!("interrupt line {line} belongs to {}", self.name_of(owner)),
                "taken",
                "An interrupt line belongs to one cell: take it out of one of the two.",
            ),
        };
        (place, words)
    }

    pub(super) fn cache_ways(&self) -> (Option<Place>, Words) {
        let (number, ways) = (self.refusal.detail >> 32, self.refusal.detail as u32);
        let (level, place) = match number {
            2 => (Level::L2, &self.cell.places.l2_ways),
            _ => (Level::L3, &self.cell.places.l3_ways),
        };
        let cache = format!("level-{number} cache");
        let all = level.all_ways(self.machine);
        let cpus = self.cell.view().cpus();
        let owner = self.ledger.owner_of_ways(self.machine, level, cpus, ways);
        let words = if self.refusal.reason == Reason::CacheWaysInvalid {
            match all {
                Some(0) => words(
                    format!("the ways of the {cache} can't be given away on this machine"),
                    "no such allocation",
                    "Leave the key out.",
                ),
                Some(all) if ways & !all != 0 => words(
                    format!(
                        "the {cache} has no way {}",
                        31 - (ways & !all).leading_zeros()
                    ),
                    "no such way",
                    format!("Its ways are 0 to {}.", all.count_ones().saturating_sub(1)),
                ),
                _ => words(
                    format!("the ways of the {cache} are not adjacent"),
                    "not one piece",
                    "Write neighbouring ways, for instance `[0, 1, 2]`: the processor allots them in one piece.",
                ),
            }
        } else if owner == CellId::ROOT {
            words(
                format!("no way of the {cache} would be left for the root cell"),
                "too many",
                "Leave at least one way out.",
            )
        } else {
            words(
                format!("ways of the {cache} belong to {}", self.name_of(owner)),
                "taken",
                "Cells on CPUs with the same cache need different ways of it.",
            )
        };
        (place.clone(), words)
    }

    pub(super) fn msr(&self) -> (Option<Place>, Words) {
        let view = self.cell.view();
        let is_owned = self.refusal.reason == Reason::MsrOwned;
        let same: Vec<usize> = (0..view.msrs().len())
            .filter(|index| u64::from(view.msrs()[*index].msr) == self.refusal.detail)
            .collect();
        let faulty = same
            .iter()
            .find(|index| is_owned || !crate::ledger::msr_is_sound(&view.msrs()[**index], false));
        let is_twice = is_owned && same.len() > 1;
        let index = if is_twice { same.last() } else { faulty };
        let Some(index) = index.copied() else {
            return (None, words("a register can't be given to the cell", "", ""));
        };
        let access = view.msrs()[index];
        let places = self.cell.places.msrs.get(index);
        if !is_owned {
            let (on_mask, words) = msr_fault(&access, false);
            let place = places.map(|places| match &places.write_mask {
                Some(mask) if on_mask => mask.clone(),
                _ => places.index.clone(),
            });
            return (place, words);
        }
        let place = places.map(|places| places.index.clone());
        let register = format!("register {:#x}", access.msr);
        let words = match self.ledger.owner_of_msr(&access) {
            CellId::ROOT => words(
                format!("{register} is named twice"),
                "named before",
                "Take one of the two out.",
            ),
            owner => words(
                format!("{register} belongs to {}", self.name_of(owner)),
                "taken",
                "Several cells have a register when none writes to it, or when it is `per-cpu = true` in all of them.",
            ),
        };
        (place, words)
    }

    pub(super) fn unsupported(&self) -> (Option<Place>, Words) {
        const NEWER: &str = "Take the key out, or use a newer hypervisor: `gaol config check` accepts what it can't do yet.";
        let places = &self.cell.places;
        let (place, message, remedy) = match Unsupported(self.refusal.detail) {
            Unsupported::RemappedInterrupts => (
                places.interrupts.first().cloned(),
                "Linux has an IOMMU remap interrupts, and the firmware does not say which one these lines' IOAPIC is behind",
                "Boot Linux with `intremap=off`.",
            ),
            Unsupported::CacheWays => (
                places.l3_ways.clone().or_else(|| places.l2_ways.clone()),
                "this hypervisor can't give cache ways to a cell yet",
                NEWER,
            ),
            _ => (
                None,
                "this hypervisor can't give something of this to a cell yet",
                NEWER,
            ),
        };
        let message = message.to_owned();
        (place, words(message, "not supported", remedy))
    }
}

/// What is wrong with a register that can't be given, and whether it is the mask.
pub(super) fn msr_fault(access: &MsrAccess, is_root: bool) -> (bool, Words) {
    let register = format!("register {:#x}", access.msr);
    let is_written = access.flags & MSR_WRITE != 0;
    if is_denied(access, is_root) {
        let reading = MsrAccess {
            flags: access.flags & !MSR_WRITE,
            ..*access
        };
        let (verb, remedy) = match is_denied(&reading, is_root) || !is_written {
            true => (
                "given away",
                "Take it out: the hypervisor keeps it, or every cell has its own already.",
            ),
            false => (
                "written",
                "Write `access = \"r\"`: the hypervisor or other cells rely on its value.",
            ),
        };
        let message = format!("{register} can't be {verb}");
        return (false, words(message, "kept by the hypervisor", remedy));
    }
    if is_written != (access.write_mask != 0) {
        return (
            true,
            words(
                format!("the write mask of {register} does not fit its access"),
                "does not fit",
                "A register that is written has a mask of at least one bit, one that is only read has none.",
            ),
        );
    }
    (
        false,
        words(
            format!("{register} can't be given away"),
            "out of reach",
            "Registers 0 to 0x1fff and 0xc0000000 to 0xc0001fff can be given, to read or to write.",
        ),
    )
}
