//! `[machine]`: CPUs, ranges of addresses, PCI functions.
//!
//! Invariant: what is written is what the machine has; what the schema can't say is left out, and a comment says so.

use std::collections::BTreeMap;

use gaol_abi::PAGE_SIZE;
use gaol_machine::Machine;
use gaol_machine::Span;
use gaol_machine::pci::{Bar, BarKind, Function, GroupsFrom, Pci};
use gaol_machine::processors::Processor;

use super::classes::{class_name, is_bridge, is_legacy_ide};
use super::text::{Text, comment};
use crate::quantity::Size;

/// Writes the table.
pub(super) fn machine(text: &mut Text, machine: &Machine, notes: &mut Vec<String>) {
    text.table("[machine]");
    cpus(text, machine);
    cache_ways(text, machine);
    ram(text, machine);
    io_apics(text, machine);
    pci_configuration(text, machine, notes);
    iommus(text, machine, notes);
    devices(text, machine, notes);
}

/// Begins a list that has a line between it and what is before.
fn list(text: &mut Text, name: &str, whence: &str, write: impl FnOnce(&mut Text)) {
    text.line("");
    text.comment(whence);
    text.line(&format!("{name} = ["));
    write(text);
    text.line("]");
}

/// An entry of a list, with a comment behind it.
fn entry(text: &mut Text, content: &str, remark: &str) {
    let line = match remark.is_empty() {
        true => format!("    {{ {content} }},"),
        false => format!("    {{ {content} }}, # {}", comment(remark)),
    };
    text.line(&line);
}

fn cpus(text: &mut Text, machine: &Machine) {
    let all = &machine.processors.all;
    // Linux numbers cores anew in each package; the lowest CPU of a core tells cores apart in the whole machine.
    let lowest = |cpu: &Processor| {
        cpu.siblings
            .iter()
            .copied()
            .min()
            .unwrap_or(cpu.id)
            .min(cpu.id)
    };
    let mut cores: BTreeMap<u32, u32> = BTreeMap::new();
    for cpu in all {
        let next = u32::try_from(cores.len()).unwrap_or(u32::MAX);
        cores.entry(lowest(cpu)).or_insert(next);
    }
    let has = |cache: fn(&Processor) -> Option<u32>| all.iter().all(|cpu| cache(cpu).is_some());
    let (has_l2, has_l3) = (has(|cpu| cpu.l2), has(|cpu| cpu.l3));
    text.comment("CPUs in the order of Linux' numbers, from CPUID and /sys/devices/system/cpu. What two CPUs share has the same number in both; caches bear the lowest number of their CPUs.");
    text.line("cpus = [");
    for cpu in all {
        let mut content = format!(
            "apic-id = {}, package = {}, core = {}",
            cpu.apic_id.unwrap_or(0),
            cpu.package,
            cores.get(&lowest(cpu)).copied().unwrap_or(0)
        );
        for (key, cache) in [
            ("l2", cpu.l2.filter(|_| has_l2)),
            ("l3", cpu.l3.filter(|_| has_l3)),
        ] {
            if let Some(cache) = cache {
                content.push_str(&format!(", {key} = {cache}"));
            }
        }
        content.push_str(&format!(", node = {}", cpu.node));
        let mut remark = format!("CPU {}", cpu.id);
        if !cpu.siblings.is_empty() {
            let siblings = gaol_machine::summary::ranges(cpu.siblings.iter().copied());
            remark.push_str(&format!(", sibling of CPU {siblings}"));
        }
        if cpu.smi_count.is_some_and(|count| count != 0) {
            content.push_str(", smis = true");
            remark.push_str(", had system management interrupts");
        }
        entry(text, &content, &remark);
    }
    text.line("]");
}

fn cache_ways(text: &mut Text, machine: &Machine) {
    let processors = &machine.processors;
    for (key, allocation) in [
        ("l3-ways", processors.l3_allocation),
        ("l2-ways", processors.l2_allocation),
    ] {
        if let Some(allocation) = allocation {
            text.line("");
            text.comment(&format!(
                "From CPUID leaf 0x10: {} classes of service; ways that devices use as well have the mask {:#x}.",
                allocation.classes, allocation.shared
            ));
            text.line(&format!("{key} = {}", allocation.ways));
        }
    }
}

/// The whole pages in a span.
pub(super) fn whole_pages(span: Span) -> Option<Span> {
    let start = span.start().checked_next_multiple_of(PAGE_SIZE)?;
    let end = match span.last().checked_add(1) {
        Some(end) => end & !(PAGE_SIZE - 1),
        None => 0u64.wrapping_sub(PAGE_SIZE),
    };
    Span::sized(start, end.checked_sub(start)?)
}

fn placed(span: Span) -> String {
    format!("at = {:#x}, size = \"{}\"", span.start(), Size(span.size()))
}

fn ram(text: &mut Text, machine: &Machine) {
    let whence = match machine.nodes.len() {
        0 | 1 => "RAM, from /proc/iomem (System RAM).",
        _ => {
            "RAM, from /proc/iomem (System RAM), and its NUMA nodes from /sys/devices/system/node."
        }
    };
    list(text, "ram", whence, |text| {
        for ram in &machine.ram {
            if let Some(span) = whole_pages(ram.span) {
                entry(text, &format!("{}, node = {}", placed(span), ram.node), "");
            }
        }
    });
}

fn io_apics(text: &mut Text, machine: &Machine) {
    let whence = "IOAPICs, from the ACPI table APIC.";
    if machine.interrupts.io_apics.is_empty() {
        text.line("");
        text.comment("No IOAPIC is known: the ACPI table APIC names none, or could not be read.");
        return;
    }
    list(text, "io-apics", whence, |text| {
        for io_apic in &machine.interrupts.io_apics {
            let content = format!(
                "at = {:#x}, first = {}, pins = {}",
                io_apic.address, io_apic.gsi_base, io_apic.pins
            );
            let remark = match io_apic.pins_are_assumed {
                true => format!("number {}; its pins are assumed", io_apic.id),
                false => format!("number {}", io_apic.id),
            };
            entry(text, &content, &remark);
        }
    });
}

/// What the machine does not have, in the file and among the notes.
fn lacks(text: &mut Text, notes: &mut Vec<String>, what: &str) {
    text.line("");
    text.comment(what);
    notes.push(what.to_owned());
}

fn pci_configuration(text: &mut Text, machine: &Machine, notes: &mut Vec<String>) {
    if machine.ecam.is_empty() {
        let what = "PCI configuration space is reached by ports only: there is no ACPI table MCFG.";
        lacks(text, notes, what);
        return;
    }
    let whence = "PCI configuration space in memory, from the ACPI table MCFG.";
    list(text, "pci-configuration", whence, |text| {
        for ecam in &machine.ecam {
            let content = format!(
                "at = {:#x}, segment = {}, first-bus = {}, last-bus = {}",
                ecam.span.start(),
                ecam.segment,
                ecam.first_bus,
                ecam.last_bus
            );
            entry(text, &content, "");
        }
    });
}

fn iommus(text: &mut Text, machine: &Machine, notes: &mut Vec<String>) {
    let Some(iommu) = &machine.iommu else {
        let what = match machine.has_amd_iommu {
            true => "IOMMUs of AMD's are not described: the ACPI table IVRS is not read.",
            false => {
                "There is no IOMMU, since there is no ACPI table DMAR: nothing holds devices' DMA."
            }
        };
        lacks(text, notes, what);
        return;
    };
    list(
        text,
        "iommus",
        "Registers of IOMMUs, from the ACPI table DMAR.",
        |text| {
            for unit in &iommu.units {
                let functions = unit.functions.len();
                let remark = match unit.includes_all {
                    true => format!(
                        "segment {:04x}, all other PCI functions: {functions}",
                        unit.segment
                    ),
                    false => format!("segment {:04x}, PCI functions: {functions}", unit.segment),
                };
                entry(text, &placed(unit.registers), &remark);
            }
        },
    );
    if iommu.reserved.is_empty() {
        return;
    }
    let whence = "Memory that devices use whoever owns them (RMRR), from the ACPI table DMAR.";
    list(text, "reserved-dma", whence, |text| {
        for reserved in &iommu.reserved {
            let of: Vec<String> = reserved
                .devices
                .iter()
                .filter_map(|device| device.address.map(|address| address.to_string()))
                .collect();
            entry(
                text,
                &placed(reserved.span),
                &format!("of {}", of.join(", ")),
            );
        }
    });
}

fn devices(text: &mut Text, machine: &Machine, notes: &mut Vec<String>) {
    if machine.pci.functions.is_empty() {
        text.line("");
        text.comment("No PCI function was found in /sys/bus/pci/devices.");
        return;
    }
    let groups = match machine.pci.groups_from {
        GroupsFrom::Linux => "Groups are Linux' IOMMU groups",
        GroupsFrom::Topology => "Groups were found from buses, bridges and access control services",
    };
    let whence = format!(
        "PCI functions, from /sys/bus/pci/devices, each with what it is and Linux' driver. {groups}: the functions of one belong to one cell."
    );
    list(text, "devices", &whence, |text| {
        for it in &machine.pci.functions {
            function(text, &machine.pci, it, notes);
        }
    });
}

fn function(text: &mut Text, pci: &Pci, function: &Function, notes: &mut Vec<String>) {
    let driver = match &function.driver {
        Some(driver) => format!("driver {driver}"),
        None => "no driver".to_owned(),
    };
    let near = match function.node {
        Some(node) => format!(", node {node}"),
        None => String::new(),
    };
    text.inner(&format!("{}, {driver}{near}", class_name(function.class)));
    let mut content = format!(
        "address = \"{}\", id = \"{}\", group = {}",
        function.address,
        function.id(),
        function.group
    );
    if function.is_bridge() || is_bridge(function.class) {
        content.push_str(", bridge = true");
    }
    if pci.speaker(function.address).is_some() {
        content.push_str(", shares-requester-id = true");
    }
    if let Some(msi) = function.capabilities.msi {
        content.push_str(&format!(", msi = {}", msi.vectors));
    }
    if let Some(msi_x) = function.capabilities.msi_x {
        content.push_str(&format!(", msi-x = {}", msi_x.vectors));
    }
    let (said, left_out): (Vec<&Bar>, Vec<&Bar>) = function
        .bars
        .iter()
        .partition(|bar| is_possible(bar) && !is_legacy_ide(function.class, bar.index));
    for bar in left_out {
        let why = match is_legacy_ide(function.class, bar.index) {
            true => "the ports of an IDE channel of old",
            false => "not what a base address register can hold",
        };
        text.inner(&format!(
            "left out: register {} at {}, {why}",
            bar.index, bar.span
        ));
        if !is_legacy_ide(function.class, bar.index) {
            notes.push(format!(
                "Base address register {} of {} is left out: {} is {why}.",
                bar.index, function.address, bar.span
            ));
        }
    }
    if said.is_empty() {
        entry(text, &content, "");
        return;
    }
    text.line(&format!("    {{ {content}, bars = ["));
    for bar in said {
        text.line(&format!("        {{ {} }},", bar_content(bar)));
    }
    text.line("    ] },");
}

/// Whether hardware can decode it: sizes are powers of two, and addresses multiples of them (PCI Local Bus specification,
/// "Base Address Registers").
fn is_possible(bar: &Bar) -> bool {
    let (start, size) = (bar.span.start(), bar.span.size());
    let (least, end) = match bar.kind {
        BarKind::Io => (4, 1 << 16),
        BarKind::Memory32 => (16, 1 << 32),
        BarKind::Memory64 => (16, 1 << 52),
    };
    let last = if bar.kind == BarKind::Memory64 { 4 } else { 5 };
    bar.index <= last
        && size >= least
        && size.is_power_of_two()
        && start.is_multiple_of(size)
        && bar.span.last() < end
}

fn bar_content(bar: &Bar) -> String {
    let kind = match bar.kind {
        BarKind::Io => "ports",
        BarKind::Memory32 => "memory",
        BarKind::Memory64 => "memory64",
    };
    let size = match bar.kind {
        BarKind::Io => bar.span.size().to_string(),
        _ => format!("\"{}\"", Size(bar.span.size())),
    };
    let mut content = format!(
        "number = {}, kind = \"{kind}\", at = {:#x}, size = {size}",
        bar.index,
        bar.span.start()
    );
    if bar.prefetchable && bar.kind != BarKind::Io {
        content.push_str(", prefetchable = true");
    }
    content
}
