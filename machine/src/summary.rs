//! A machine in a few lines a subject, for people.

use std::collections::BTreeMap;
use std::fmt::{self, Write};

use crate::acpi::fadt::{Fadt, Place, Register};
use crate::acpi::madt::Nmi;
use crate::iommu::{Iommu, ScopedDevice};
use crate::machine::Machine;
use crate::pci::{Bar, BarKind, Function, PortKind};
use crate::processors::{CacheAllocation, Processor};

impl fmt::Display for Machine {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        processors(self, formatter)?;
        memory(self, formatter)?;
        interrupts(self, formatter)?;
        for ecam in &self.ecam {
            writeln!(
                formatter,
                "ECAM of segment {:04x}, buses {:02x}-{:02x}: {}",
                ecam.segment, ecam.first_bus, ecam.last_bus, ecam.span
            )?;
        }
        if let Some(iommu) = &self.iommu {
            iommus(iommu, formatter)?;
        }
        if self.has_amd_iommu {
            writeln!(formatter, "IOMMU of AMD's: its table is not read")?;
        }
        for function in &self.pci.functions {
            pci(function, formatter)?;
        }
        writeln!(formatter, "PCI groups from {:?}", self.pci.groups_from)?;
        for port in &self.serial_ports {
            let console = if port.is_linux_console {
                ", console of Linux"
            } else {
                ""
            };
            let number = port.number;
            writeln!(
                formatter,
                "serial port ttyS{number}: {} at {}, interrupt {:?}{console}",
                port.kind,
                place(port.place),
                port.interrupt
            )?;
        }
        if let Some(fadt) = &self.power {
            power(fadt, formatter)?;
        }
        writeln!(
            formatter,
            "parameters of Linux: {}",
            self.linux_parameters.join(" ")
        )?;
        self.notes
            .iter()
            .try_for_each(|note| writeln!(formatter, "note: {note}"))
    }
}

/// "0-3,5" for consecutive numbers.
#[must_use]
pub fn ranges(numbers: impl IntoIterator<Item = u32>) -> String {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for number in numbers {
        match ranges.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(number) => *last = number,
            _ => ranges.push((number, number)),
        }
    }
    let texts = ranges.iter().map(|(first, last)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    });
    texts.collect::<Vec<_>>().join(",")
}

fn processors(machine: &Machine, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
    let all = &machine.processors;
    writeln!(
        formatter,
        "{} processors of {}, {:?}, physical addresses of {} bits, x2APIC: {}",
        all.all.len(),
        all.vendor,
        all.virtualization,
        all.physical_address_bits,
        all.has_x2apic
    )?;
    for (level, allocation) in [(3, all.l3_allocation), (2, all.l2_allocation)] {
        if let Some(CacheAllocation {
            ways,
            classes,
            shared,
            code_and_data,
        }) = allocation
        {
            writeln!(
                formatter,
                "  L{level} allocation: {ways} ways, {classes} classes, shared {shared:#x}, code and data: {code_and_data}"
            )?;
        }
    }
    // A line for each core.
    let mut cores: BTreeMap<u32, Vec<&Processor>> = BTreeMap::new();
    for processor in &all.all {
        let lowest = processor.siblings.first().copied();
        let lowest = lowest.unwrap_or(processor.id).min(processor.id);
        cores.entry(lowest).or_default().push(processor);
    }
    for threads in cores.values() {
        let Some(first) = threads.first() else {
            continue;
        };
        let list = |what: fn(&Processor) -> String| {
            threads
                .iter()
                .map(|it| what(it))
                .collect::<Vec<_>>()
                .join(", ")
        };
        let number = |value: Option<u32>| value.map_or("-".to_owned(), |value| value.to_string());
        writeln!(
            formatter,
            "  CPU {}: APIC id {}, package {} core {} node {}, L2 of {}, L3 of {}, SMIs {}",
            ranges(threads.iter().map(|it| it.id)),
            list(|it| it.apic_id.map_or("-".to_owned(), |id| format!("{id:#x}"))),
            first.package,
            first.core,
            first.node,
            number(first.l2),
            number(first.l3),
            list(|it| it
                .smi_count
                .map_or("-".to_owned(), |count| count.to_string())),
        )?;
    }
    Ok(())
}

fn memory(machine: &Machine, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
    for node in &machine.nodes {
        writeln!(
            formatter,
            "node {}: CPUs {}, {} MiB",
            node.id,
            ranges(node.cpus.iter().copied()),
            node.memory >> 20
        )?;
    }
    for ram in &machine.ram {
        writeln!(formatter, "RAM of node {}: {}", ram.node, ram.span)?;
    }
    for resource in machine
        .iomem
        .iter()
        .filter(|it| !it.name.starts_with("System RAM"))
    {
        writeln!(formatter, "addresses {}: {}", resource.span, resource.name)?;
    }
    Ok(())
}

fn interrupts(machine: &Machine, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
    let interrupts = &machine.interrupts;
    writeln!(
        formatter,
        "local APIC at {:#x}, 8259: {}",
        interrupts.local_apic, interrupts.has_8259
    )?;
    for io_apic in &interrupts.io_apics {
        writeln!(
            formatter,
            "I/O APIC {} at {:#x}: interrupts {}-{}",
            io_apic.id,
            io_apic.address,
            io_apic.gsi_base,
            u64::from(io_apic.gsi_base) + u64::from(io_apic.pins).saturating_sub(1)
        )?;
    }
    for it in &interrupts.overrides {
        writeln!(
            formatter,
            "ISA interrupt {}: {}, flags {:#x}",
            it.source, it.gsi, it.flags
        )?;
    }
    for nmi in &interrupts.nmis {
        match nmi {
            Nmi::Pin { gsi, flags } => {
                writeln!(formatter, "NMI: interrupt {gsi}, flags {flags:#x}")?
            }
            Nmi::Local { uid, lint, flags } => {
                let whose = uid.map_or("all processors".to_owned(), |uid| {
                    format!("processor {uid}")
                });
                writeln!(formatter, "NMI: LINT{lint} of {whose}, flags {flags:#x}")?;
            }
        }
    }
    Ok(())
}

fn devices(devices: &[ScopedDevice]) -> String {
    let texts = devices.iter().map(|device| match device.address {
        Some(address) => format!("{} ({address})", device.scope),
        None => format!("{} (not there)", device.scope),
    });
    texts.collect::<Vec<_>>().join(", ")
}

fn iommus(iommu: &Iommu, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
    writeln!(
        formatter,
        "IOMMU: addresses of {} bits, interrupt remapping: {}, x2APIC opt-out: {}",
        iommu.address_bits, iommu.interrupt_remapping, iommu.x2apic_opt_out
    )?;
    for unit in &iommu.units {
        let functions: Vec<String> = unit.functions.iter().map(ToString::to_string).collect();
        writeln!(
            formatter,
            "  unit at {} of segment {:04x}, includes all: {}, remaps interrupts: {:?}\n    named: {}\n    has: {}",
            unit.registers,
            unit.segment,
            unit.includes_all,
            unit.remaps_interrupts(),
            devices(&unit.devices),
            functions.join(" ")
        )?;
    }
    for reserved in &iommu.reserved {
        writeln!(
            formatter,
            "  reserved {} of segment {:04x}: {}",
            reserved.span,
            reserved.segment,
            devices(&reserved.devices)
        )?;
    }
    Ok(())
}

fn pci(function: &Function, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
    write!(
        formatter,
        "{} {} class {:06x} group {}",
        function.address,
        function.id(),
        function.class,
        function.group
    )?;
    if let Some(node) = function.node {
        write!(formatter, " node {node}")?;
    }
    if let Some(driver) = &function.driver {
        write!(formatter, " driver {driver}")?;
    }
    let mut properties = String::new();
    if let Some(bridge) = function.bridge {
        let _ = write!(
            properties,
            " bridge to {:02x}-{:02x}",
            bridge.secondary, bridge.subordinate
        );
    }
    let capabilities = &function.capabilities;
    if let Some(kind) = capabilities.express {
        let _ = match kind {
            PortKind::Unknown(kind) => write!(properties, " express kind {kind}"),
            kind => write!(properties, " {kind:?}"),
        };
    }
    if let Some(msi) = capabilities.msi {
        let _ = write!(properties, " MSI {}", msi.vectors);
    }
    if let Some(msi_x) = capabilities.msi_x {
        let _ = write!(
            properties,
            " MSI-X {} in BAR{}+{:#x}",
            msi_x.vectors, msi_x.table_bar, msi_x.table_offset
        );
    }
    if let Some(acs) = capabilities.acs {
        let _ = write!(properties, " ACS {:#x}/{:#x}", acs.control, acs.capability);
    }
    if capabilities.function_level_reset {
        properties.push_str(" FLR");
    }
    writeln!(formatter, "{}", properties)?;
    for bar in &function.bars {
        writeln!(formatter, "  {}", bar_text(bar))?;
    }
    if !capabilities.all.is_empty() {
        let list = capabilities.all.iter().map(|it| {
            let mark = if it.extended { "x" } else { "" };
            format!("{:02x}{mark}@{:x}+{}", it.id, it.offset, it.length)
        });
        writeln!(
            formatter,
            "  capabilities {}",
            list.collect::<Vec<_>>().join(" ")
        )?;
    }
    Ok(())
}

fn bar_text(bar: &Bar) -> String {
    let kind = match bar.kind {
        BarKind::Io => "ports",
        BarKind::Memory32 => "memory",
        BarKind::Memory64 => "64-bit memory",
    };
    let prefetchable = if bar.prefetchable {
        ", prefetchable"
    } else {
        ""
    };
    format!("BAR{}: {kind} {}{prefetchable}", bar.index, bar.span)
}

fn place(place: Place) -> String {
    match place {
        Place::Port(port) => format!("port {port:#x}"),
        Place::Memory(address) => format!("{address:#x}"),
        Place::Other(space, address) => format!("{address:#x} of space {space}"),
    }
}

fn power(fadt: &Fadt, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
    let all: [(&str, Option<Register>); 9] = [
        ("PM timer", fadt.pm_timer),
        ("PM1a event", fadt.pm1a_event),
        ("PM1b event", fadt.pm1b_event),
        ("PM1a control", fadt.pm1a_control),
        ("PM1b control", fadt.pm1b_control),
        ("sleep control", fadt.sleep_control),
        ("sleep status", fadt.sleep_status),
        ("SMI command", fadt.smi_command),
        ("reset", fadt.reset),
    ];
    let registers = all.iter().filter_map(|(name, register)| {
        let register = register.as_ref()?;
        Some(format!(
            "{name} {} ({} bytes)",
            place(register.place),
            register.length
        ))
    });
    writeln!(
        formatter,
        "power: {}",
        registers.collect::<Vec<_>>().join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::ranges;

    #[test]
    fn consecutive_numbers_are_ranges() {
        assert_eq!(ranges([0, 1, 2, 5, 7, 8]), "0-2,5,7-8");
        assert_eq!(ranges([]), "");
        assert_eq!(ranges([u32::MAX]), u32::MAX.to_string());
    }
}
