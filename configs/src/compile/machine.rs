//! `[machine]` of a system file: CPUs, ranges of addresses, and the list of PCI functions.
//!
//! Invariant: each value is one that the binary form can hold and hardware can have. Whether the values agree with each
//! other is for the ledger to judge.

use gaol_abi::PAGE_SIZE;
use gaol_abi::config::{
    MACHINE_CPU_SMIS, MAX_MACHINE_RANGES, MachineCpu, MachineRange, RANGE_IO_APIC, RANGE_IOMMU,
    RANGE_PCI_CONFIGURATION, RANGE_RAM, RANGE_RESERVED_DMA, SYSTEM_DESCRIBES_MACHINE,
};
use toml::Spanned;

use super::cell::MAX_WAYS;
use super::functions;
use super::judge::Judge;
use super::places::{SystemPlaces, place};
use crate::encode;
use crate::problem::Place;
use crate::quantity::{Address, Number, Size};
use crate::schema::{CpuTable, IoApicTable, MachineTable, PciConfigurationTable};

/// First address beyond those that the hypervisor's page tables of four levels map.
pub(super) const PHYSICAL_END: u64 = 1 << 48;
/// Pins of an IOAPIC when the file does not say: those of the 82093AA.
const DEFAULT_PINS: u16 = 24;
/// Most pins of an IOAPIC: its redirection table ends at index 0xff.
const MAX_PINS: u64 = 240;
/// Configuration space of one bus.
const BUS_SIZE: u64 = 1 << 20;
const U16: core::ops::RangeInclusive<u64> = 0..=u16::MAX as u64;
const U32: core::ops::RangeInclusive<u64> = 0..=u32::MAX as u64;

/// Adds what the table says to `system`.
pub(super) fn machine(
    judge: &Judge<'_>,
    table: &MachineTable,
    system: &mut encode::System,
    places: &mut SystemPlaces,
) {
    system.flags |= SYSTEM_DESCRIBES_MACHINE;
    places.l3_ways = place(&table.l3_ways);
    places.l2_ways = place(&table.l2_ways);
    system.header.l3_ways = ways(judge, &table.l3_ways);
    system.header.l2_ways = ways(judge, &table.l2_ways);
    let cpus = judge.bounded(
        &table.cpus,
        gaol_abi::MAX_CPUS,
        "CPUs",
        "Gaol supports no more.",
    );
    if cpus.is_empty() {
        judge.invalid(
            places.machine.clone().unwrap_or_default(),
            "without CPUs",
            "the machine has no CPU",
            "Let `gaol config create` describe the machine, or leave [machine] out.",
        );
    }
    system.cpus = cpus
        .iter()
        .map(|table| cpu(judge, table.get_ref()))
        .collect();
    places.cpus = cpus.iter().map(Spanned::span).collect();
    same_keys(judge, cpus);
    (system.ranges, places.ranges) = ranges(judge, table).into_iter().unzip();
    if let Some(surplus) = places.ranges.get(MAX_MACHINE_RANGES) {
        judge.invalid(
            surplus.clone(),
            "one too many",
            format!("there are more than {MAX_MACHINE_RANGES} ranges of addresses"),
            "Join neighbouring ranges of RAM.",
        );
    }
    functions::functions(judge, &table.devices, system, places);
}

fn ways(judge: &Judge<'_>, ways: &Option<Spanned<Number>>) -> u16 {
    judge.number_or("the number of ways", ways, 0..=MAX_WAYS, 0)
}

fn cpu(judge: &Judge<'_>, table: &CpuTable) -> MachineCpu {
    let package = judge.number_or("the number of a package", &table.package, U16, 0);
    let core = judge.number("the number of a core", &table.core, U16);
    MachineCpu {
        apic_id: judge.number("an APIC id", &table.apic_id, U32),
        package,
        core,
        l2: judge.number_or("the number of a cache", &table.l2, U16, core),
        l3: judge.number_or("the number of a cache", &table.l3, U16, package),
        node: judge.number_or("the number of a node", &table.node, U16, 0),
        flags: if table.smis { MACHINE_CPU_SMIS } else { 0 },
    }
}

/// Numbers of caches that are given and those that are not are not from one count.
fn same_keys(judge: &Judge<'_>, cpus: &[Spanned<CpuTable>]) {
    type Key = fn(&CpuTable) -> &Option<Spanned<Number>>;
    let keys: [(&str, Key); 2] = [("l2", |cpu| &cpu.l2), ("l3", |cpu| &cpu.l3)];
    for (name, key) in keys {
        let has = |cpu: &Spanned<CpuTable>| key(cpu.get_ref()).is_some();
        let without = cpus.iter().position(|cpu| !has(cpu));
        if let Some(without) = without
            && cpus.iter().any(has)
        {
            judge.invalid(
                cpus[without].span(),
                "without it",
                format!("CPU {without} has no `{name}`, and other CPUs have one"),
                format!("Write `{name}` for each CPU, or for none."),
            );
        }
    }
}

/// All ranges of addresses with their places, in the order of the kinds.
fn ranges(judge: &Judge<'_>, table: &MachineTable) -> Vec<(MachineRange, Place)> {
    let mut ranges = Vec::new();
    for entry in &table.ram {
        let ram = entry.get_ref();
        let range = MachineRange {
            kind: RANGE_RAM,
            extent: 0,
            number: judge.number_or("the number of a node", &ram.node, U16, 0),
            ..placed(judge, "RAM", &ram.at, &ram.size)
        };
        ranges.push((range, entry.span()));
    }
    for entry in &table.io_apics {
        ranges.push((io_apic(judge, entry.get_ref()), entry.span()));
    }
    for entry in &table.pci_configuration {
        ranges.push((pci_configuration(judge, entry.get_ref()), entry.span()));
    }
    let numbered = [
        (RANGE_IOMMU, "an IOMMU", &table.iommus),
        (RANGE_RESERVED_DMA, "reserved memory", &table.reserved_dma),
    ];
    for (kind, what, entries) in numbered {
        for (number, entry) in (0u32..).zip(entries) {
            let table = entry.get_ref();
            let range = MachineRange {
                kind,
                extent: 0,
                number,
                ..placed(judge, what, &table.at, &table.size)
            };
            ranges.push((range, entry.span()));
        }
    }
    ranges
}

/// A range of whole pages, of no kind yet.
fn placed(
    judge: &Judge<'_>,
    what: &str,
    at: &Spanned<Address>,
    size: &Spanned<Size>,
) -> MachineRange {
    let (physical, bytes) = (at.get_ref().0, size.get_ref().0);
    page_aligned(judge, what, at);
    if bytes == 0 || !bytes.is_multiple_of(PAGE_SIZE) {
        judge.invalid(
            size.span(),
            "not whole pages",
            format!("the size of {what} at {physical:#x} is not a multiple of 4 KiB"),
            "Count whole pages only.",
        );
    }
    below_end(judge, what, at, bytes);
    MachineRange {
        physical,
        size: bytes,
        kind: 0,
        extent: 0,
        number: 0,
    }
}

fn page_aligned(judge: &Judge<'_>, what: &str, at: &Spanned<Address>) {
    let address = at.get_ref().0;
    if !address.is_multiple_of(PAGE_SIZE) {
        judge.invalid(
            at.span(),
            "not a multiple of 0x1000",
            format!("{what} at {address:#x} does not begin at a page"),
            format!("The page is at {:#x}.", address & !(PAGE_SIZE - 1)),
        );
    }
}

/// Reports what ends beyond all addresses.
pub(super) fn below_end(judge: &Judge<'_>, what: &str, at: &Spanned<Address>, size: u64) {
    let end = at.get_ref().0.checked_add(size);
    if end.is_none_or(|end| end > PHYSICAL_END) {
        judge.invalid(
            at.span(),
            "too high",
            format!("{what} ends beyond the addresses that Gaol can map"),
            "Gaol knows physical addresses of up to 48 bits.",
        );
    }
}

fn io_apic(judge: &Judge<'_>, table: &IoApicTable) -> MachineRange {
    page_aligned(judge, "an IOAPIC", &table.at);
    below_end(judge, "an IOAPIC", &table.at, PAGE_SIZE);
    MachineRange {
        physical: table.at.get_ref().0,
        size: PAGE_SIZE,
        kind: RANGE_IO_APIC,
        extent: judge.number_or(
            "the number of pins",
            &table.pins,
            1..=MAX_PINS,
            DEFAULT_PINS,
        ),
        number: judge.number(
            "an interrupt",
            &table.first,
            0..=u64::from(u32::MAX) - MAX_PINS,
        ),
    }
}

fn pci_configuration(judge: &Judge<'_>, table: &PciConfigurationTable) -> MachineRange {
    let bus = 0..=0xff;
    let first: u16 = judge.number_or("a bus", &table.first_bus, bus.clone(), 0);
    let last: u16 = judge.number("a bus", &table.last_bus, bus);
    let buses = last.checked_sub(first).unwrap_or_else(|| {
        judge.invalid(
            table.last_bus.span(),
            "below the first",
            format!("the last bus, {last}, is below the first, {first}"),
            "Write the buses in ascending order.",
        );
        0
    });
    let (physical, size) = (table.at.get_ref().0, (u64::from(buses) + 1) * BUS_SIZE);
    if !physical.is_multiple_of(BUS_SIZE) {
        judge.invalid(
            table.at.span(),
            "not a multiple of 0x100000",
            "PCI configuration space does not begin at a multiple of 1 MiB",
            "Each bus has 1 MiB: write the address of that of the first bus.",
        );
    }
    below_end(judge, "PCI configuration space", &table.at, size);
    MachineRange {
        physical,
        size,
        kind: RANGE_PCI_CONFIGURATION,
        extent: last << 8 | first,
        number: judge.number_or("a PCI segment", &table.segment, U16, 0),
    }
}
