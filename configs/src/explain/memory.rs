//! What a refusal for a cell's memory means.

use gaol_abi::PAGE_SIZE;
use gaol_abi::config::{MEMORY_ROOT_SHARED, MEMORY_SHARED, MemoryRegion};
use gaol_abi::outcome::Reason;

use super::{Explainer, LET_LINUX_CHOOSE, Words, device_at, words};
use crate::address::{Address, HostPhysical, Range};
use crate::binary::{guest_range, name_text, physical_range};
use crate::compile::RegionPlaces;
use crate::ledger::{APIC_PAGE, memory_end, regions_overlap};
use crate::problem::Place;
use crate::region_fault::region_fault;

impl Explainer<'_> {
    pub(super) fn region_places(&self, index: usize) -> Option<&RegionPlaces> {
        self.cell.places.memory.get(index)
    }

    pub(super) fn invalid_region(&self) -> (Option<Place>, Words) {
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

    pub(super) fn overlapping_regions(&self) -> (Option<Place>, Words) {
        let view = self.cell.view();
        let index = usize::try_from(self.refusal.detail).unwrap_or(usize::MAX);
        let places = self.region_places(index);
        let Some(region) = view.memory().get(index) else {
            return (None, words("two memory regions overlap", "", ""));
        };
        for other in &view.memory()[..index] {
            let names = (region_name(region), region_name(other));
            let (in_guest, in_physical) = regions_overlap(region, other);
            if let (true, Some(range)) = (in_guest, guest_range(other)) {
                let place = places.map(|places| places.at.clone());
                let words = overlap_words(names, range, "in the cell's memory", "at");
                return (place, words);
            }
            if let (true, Some(range)) = (in_physical, physical_range(other)) {
                let place = places.and_then(|places| places.physical.clone());
                let words = overlap_words(names, range, "in physical memory", "physical");
                return (place, words);
            }
        }
        (None, words("two memory regions overlap", "", ""))
    }

    /// The region that contains the physical address of the refusal.
    pub(super) fn region_at_detail(&self) -> Option<(usize, &MemoryRegion, Range<HostPhysical>)> {
        let address = HostPhysical(self.refusal.detail);
        let mut regions = self.cell.view().memory().iter().enumerate();
        regions.find_map(|(index, region)| {
            // The view borrows from the cell, which lives as long as the explainer.
            let range = physical_range(region).filter(|range| range.contains(address))?;
            Some((index, region, range))
        })
    }

    pub(super) fn owned_memory(&self) -> (Option<Place>, Words) {
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
        } else if region.flags & MEMORY_SHARED != 0 && !is_hypervisors {
            "Memory that cells share has the same name, address, size and kind and `shared = true` in each of them."
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

    /// Where the value stands that has put a region at its place, or its name.
    fn place_of_physical(&self, index: usize) -> Option<Place> {
        let places = self.region_places(index)?;
        let given = places.physical.clone();
        Some(given.unwrap_or_else(|| places.name.clone()))
    }

    /// A region on what the hypervisor keeps, or on registers of others.
    pub(super) fn kept_memory(&self) -> (Option<Place>, Words) {
        let address = self.refusal.detail;
        let (place, name) = match self.region_at_detail() {
            Some((index, region, _)) => (self.place_of_physical(index), region_name(region)),
            None => (None, String::new()),
        };
        let (what, label, remedy) = match self.refusal.reason {
            Reason::MemoryIsPciConfiguration => (
                "PCI configuration space".to_owned(),
                "kept by the hypervisor",
                "Leave it out: a cell reaches the configuration space of its functions without naming it.",
            ),
            Reason::MemoryIsIommus => (
                "registers of an IOMMU".to_owned(),
                "kept by the hypervisor",
                "Leave them out: cells don't program IOMMUs.",
            ),
            Reason::MemoryIsReservedDma => (
                "memory that firmware or a device reaches by DMA at any time (RMRR)".to_owned(),
                "reserved by the firmware",
                LET_LINUX_CHOOSE,
            ),
            _ => {
                let system = self.machine.system.as_ref();
                let device = system.and_then(|system| device_at(system, address));
                let device = device.map_or("a PCI function".to_owned(), |device| {
                    format!("PCI function {}", super::device_text(system, device))
                });
                (
                    format!("registers of {device}, which is not the cell's,"),
                    "registers of a device",
                    "Leave them out, or give the cell the function under `devices`.",
                )
            }
        };
        let message = format!("memory region {name:?} covers {what} from {address:#x} on");
        (place, words(message, label, remedy))
    }

    /// RAM, or a target of DMA, where there is no memory.
    pub(super) fn unknown_memory(&self) -> (Option<Place>, Words) {
        let view = self.cell.view();
        let index = usize::try_from(self.refusal.detail).unwrap_or(usize::MAX);
        let Some(region) = view.memory().get(index) else {
            return (None, words("a memory region is not in memory", "", ""));
        };
        let name = region_name(region);
        let message = match self.refusal.reason {
            Reason::DmaOutsideMemory => format!(
                "devices would reach memory region {name:?} by DMA, and there is no memory at {:#x}",
                region.physical
            ),
            _ => format!(
                "memory region {name:?} is RAM at {:#x}, where the machine has no memory",
                region.physical
            ),
        };
        let end = memory_end(self.machine, region.physical).unwrap_or(0);
        let remedy = match end {
            0 => LET_LINUX_CHOOSE.to_owned(),
            _ => format!("{LET_LINUX_CHOOSE} By the system file memory ends at {end:#x} there."),
        };
        (
            self.place_of_physical(index),
            words(message, "no memory", remedy),
        )
    }

    /// A shared region that is another one elsewhere.
    pub(super) fn differing_region(&self) -> (Option<Place>, Words) {
        let view = self.cell.view();
        let index = usize::try_from(self.refusal.detail).unwrap_or(usize::MAX);
        let Some(region) = view.memory().get(index) else {
            return (None, words("a shared memory region differs", "", ""));
        };
        let other = self.ledger.sharer_of(region);
        let other = other.map_or("another cell".to_owned(), |id| self.name_of(id));
        (
            self.region_places(index).map(|places| places.name.clone()),
            words(
                format!(
                    "shared memory region {:?} is not the same here as in {other}",
                    region_name(region)
                ),
                "differs",
                "Shared memory has the same size, kind, `physical`, `cache`, `widths` and `shared-with-root` in all cells.",
            ),
        )
    }

    pub(super) fn interrupt_controller(&self) -> (Option<Place>, Words) {
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
}

pub(crate) fn region_name(region: &MemoryRegion) -> String {
    name_text(&region.name).unwrap_or_default().to_owned()
}

pub(super) fn overlap_words<A: Address>(
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
