//! `[root]` with `policy = "strict"`: what Linux needs of the machine, so that it runs on.
//!
//! Invariants: no two entries of a list overlap; the lists have no more entries than the binary form can hold, at the
//! price of addresses between two devices that nobody uses; what the hypervisor moderates for the root cell in any case –
//! interrupt controllers, PCI configuration space, IOMMUs – is not in them.

use gaol_abi::PAGE_SIZE;
use gaol_abi::config::{MAX_MEMORY_REGIONS, MAX_PORT_RANGES};
use gaol_machine::acpi::fadt::{Place, Register};
use gaol_machine::pci::BarKind;
use gaol_machine::resources::Resource;
use gaol_machine::span::merged;
use gaol_machine::{Machine, Span};

use super::console_ports;
use super::describe::whole_pages;
use super::text::Text;
use crate::ledger::{self, APIC_PAGE, PCI_CONFIGURATION_PORTS};
use crate::quantity::Size;

/// Ranges below 1 MiB that every PC has: RAM with the firmware's data, the display, ROMs.
const LOW_MEMORY: (u64, u64) = (0, 0x9_ffff);
const LOW_DISPLAY: (u64, u64) = (0xa_0000, 0xb_ffff);
const LOW_ROMS: (u64, u64) = (0xc_0000, 0xf_ffff);
/// Where chipsets have their IOAPICs.
const IO_APIC_WINDOW: (u64, u64) = (ledger::IO_APIC_WINDOW, ledger::IO_APIC_WINDOW + 0xf_ffff);
/// Ports of the mainboard: DMA, interrupt controllers, timer, keyboard, clock, power. Some are in no list of Linux'.
const MAINBOARD_PORTS: (u64, u64) = (0, 0xff);
/// Trigger modes of the two 8259 interrupt controllers.
const TRIGGER_MODE_PORTS: (u64, u64) = (0x4d0, 0x4d1);

/// Registers that Linux writes to while it runs, besides those that every cell may write: number, name, and whether each
/// logical processor has its own (SDM, "Model-Specific Registers (MSRs)"). Reading needs no entry.
const INTEL: [(u32, &str, bool); 30] = [
    (0x3b, "IA32_TSC_ADJUST", true),
    (0x49, "IA32_PRED_CMD", true),
    (0x8b, "IA32_BIOS_SIGN_ID", true),
    (0xc1, "IA32_PMC0", true),
    (0xe1, "IA32_UMWAIT_CONTROL", true),
    (0x10b, "IA32_FLUSH_CMD", true),
    (0x122, "IA32_TSX_CTRL", true),
    (0x123, "IA32_MCU_OPT_CTRL", true),
    (0x140, "MISC_FEATURE_ENABLES", true),
    (0x17a, "IA32_MCG_STATUS", true),
    (0x186, "IA32_PERFEVTSEL0", true),
    (0x199, "IA32_PERF_CTL", false),
    (0x19a, "IA32_CLOCK_MODULATION", false),
    (0x19b, "IA32_THERM_INTERRUPT", false),
    (0x19c, "IA32_THERM_STATUS", false),
    (0x1a0, "IA32_MISC_ENABLE", false),
    (0x1b0, "IA32_ENERGY_PERF_BIAS", false),
    (0x1b1, "IA32_PACKAGE_THERM_STATUS", false),
    (0x1b2, "IA32_PACKAGE_THERM_INTERRUPT", false),
    (0x1c4, "IA32_XFD", true),
    (0x1c5, "IA32_XFD_ERR", true),
    (0x1d9, "IA32_DEBUGCTL", true),
    (0x38d, "IA32_FIXED_CTR_CTRL", true),
    (0x38f, "IA32_PERF_GLOBAL_CTRL", true),
    (0x390, "IA32_PERF_GLOBAL_OVF_CTRL", true),
    (0x6a0, "IA32_U_CET", true),
    (0x6a2, "IA32_S_CET", true),
    (0x770, "IA32_PM_ENABLE", false),
    (0x774, "IA32_HWP_REQUEST", true),
    (0xda0, "IA32_XSS", true),
];

/// Registers of which there are several, as for [`INTEL`]: first number, how many, distance, name, whether each logical
/// processor has its own. Linux stops the machine when it can't clear a machine check bank; there are 20 at the most
/// on the processors that are known.
const SEVERAL: [(u32, u32, u32, &str, bool); 6] = [
    (0xc2, 7, 1, "IA32_PMC", true),
    (0x187, 7, 1, "IA32_PERFEVTSEL", true),
    (0x280, 20, 1, "IA32_MC_CTL2", false),
    (0x309, 4, 1, "IA32_FIXED_CTR", true),
    (0x400, 20, 4, "IA32_MC_CTL", false),
    (0x401, 20, 4, "IA32_MC_STATUS", false),
];

/// The same for AMD (APM, volume 2, "MSR Cross-Reference").
const AMD: [(u32, &str, bool); 7] = [
    (0x49, "PRED_CMD", true),
    (0x8b, "PATCH_LEVEL", true),
    (0x17a, "MCG_STATUS", true),
    (0x1d9, "DBG_CTL_MSR", true),
    (0x6a0, "U_CET", true),
    (0x6a2, "S_CET", true),
    (0xda0, "XSS", true),
];

/// What iomem calls memory that firmware fills or keeps.
const FIRMWARE: [&str; 9] = [
    "Reserved",
    "ACPI Tables",
    "ACPI Non-volatile Storage",
    "System ROM",
    "Video ROM",
    "Adapter ROM",
    "Extension ROM",
    "Unknown E820 type",
    "Soft Reserved",
];

/// What a region is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Ram,
    Firmware,
    Device,
}

fn span((first, last): (u64, u64)) -> Option<Span> {
    Span::inclusive(first, last)
}

/// Writes the table. `console` is the first port of the hypervisor's own console.
pub(super) fn root(
    text: &mut Text,
    machine: &Machine,
    console: Option<u16>,
    notes: &mut Vec<String>,
) {
    text.table("[root]");
    text.comment("The root cell, which is Linux, owns what is listed here and nothing else. What the hypervisor moderates for it need not be: local APICs, PCI configuration space, and the IOAPICs, IOMMUs and reserved memory of [machine].");
    text.line("policy = \"strict\"");
    ports(text, machine, console, notes);
    registers(text, machine);
    memory(text, machine, notes);
}

/// What is in `spans` and not in `others`; both are sorted and don't overlap.
fn without(spans: &[Span], others: &[Span]) -> Vec<Span> {
    let mut left = Vec::new();
    for span in spans {
        // None when everything up to the last address is dealt with.
        let mut next = Some(span.start());
        for other in others {
            let Some(start) = next else { break };
            if other.last() < start || other.start() > span.last() {
                continue;
            }
            if let Some(before) = other.start().checked_sub(1) {
                left.extend(Span::inclusive(start, before));
            }
            next = other.last().checked_add(1);
        }
        left.extend(next.and_then(|start| Span::inclusive(start, span.last())));
    }
    left
}

/// Visits what Linux uses: windows of bridges count only for what is in them.
fn used<'a>(resources: &'a [Resource], visit: &mut dyn FnMut(&'a Resource)) {
    for resource in resources {
        match resource.name.starts_with("PCI Bus") {
            true => used(&resource.inside, visit),
            false => visit(resource),
        }
    }
}

/// The blocks of registers of power management.
fn power_registers(machine: &Machine) -> Vec<Register> {
    let Some(fadt) = &machine.power else {
        return Vec::new();
    };
    let single = [
        fadt.pm_timer,
        fadt.pm1a_event,
        fadt.pm1b_event,
        fadt.pm1a_control,
        fadt.pm1b_control,
        fadt.sleep_control,
        fadt.sleep_status,
        fadt.smi_command,
        fadt.reset,
    ];
    let mut all: Vec<Register> = single.into_iter().flatten().collect();
    all.extend(&fadt.general_events);
    all
}

/// Joins the two neighbours with the smallest gap until there are no more than `most`. Gaps that touch `keep_out` stay.
/// Returns whether it had to.
fn join(spans: &mut Vec<Span>, most: usize, keep_out: &[Span]) -> bool {
    let mut joined = false;
    while spans.len() > most {
        let gap = |pair: &[Span]| Span::inclusive(pair[0].last() + 1, pair[1].start() - 1);
        let is_free = |gap: &Span| keep_out.iter().all(|it| it.intersection(gap).is_none());
        let gaps = spans.windows(2).enumerate();
        let gaps =
            gaps.filter_map(|(index, pair)| Some((gap(pair).filter(is_free)?.size(), index)));
        let Some((_, index)) = gaps.min() else {
            break;
        };
        let last = spans.remove(index + 1).last();
        if let Some(whole) = Span::inclusive(spans[index].start(), last) {
            spans[index] = whole;
        }
        joined = true;
    }
    joined
}

fn ports(text: &mut Text, machine: &Machine, console: Option<u16>, notes: &mut Vec<String>) {
    let mut spans = Vec::from_iter(span(MAINBOARD_PORTS));
    if machine.interrupts.has_8259 {
        spans.extend(span(TRIGGER_MODE_PORTS));
    }
    used(&machine.ioports, &mut |resource| spans.push(resource.span));
    for function in &machine.pci.functions {
        let bars = function.bars.iter().filter(|bar| bar.kind == BarKind::Io);
        spans.extend(bars.filter(|bar| bar.span.start() != 0).map(|bar| bar.span));
    }
    for register in power_registers(machine) {
        if let Place::Port(port) = register.place {
            spans.extend(Span::sized(port.into(), register.length.into()));
        }
    }
    let first = u64::from(PCI_CONFIGURATION_PORTS.first);
    let moderated = Span::sized(first, PCI_CONFIGURATION_PORTS.count.into());
    let own = console_ports(console).and_then(|(first, last)| Span::inclusive(first, last));
    let keep_out = merged(moderated.into_iter().chain(own).collect());
    let all = span((0, u16::MAX.into()));
    let spans = spans.iter().filter_map(|it| it.intersection(all.as_ref()?));
    let mut spans = without(&merged(spans.collect()), &keep_out);
    let joined = join(&mut spans, MAX_PORT_RANGES, &keep_out);
    text.line("");
    text.comment(
        "From /proc/ioports, PCI and ACPI (FACP). The hypervisor's console is not among them.",
    );
    if joined {
        let what = "Ranges of the root cell's ports were joined, since there were too many.";
        text.comment(what);
        notes.push(what.to_owned());
    }
    text.line("ports = [");
    for span in spans {
        // The whole of all ports does not fit into one entry.
        text.line(&format!(
            "    {{ first = {:#x}, count = {:#x} }},",
            span.start(),
            span.size().min(0xffff)
        ));
    }
    text.line("]");
}

fn registers(text: &mut Text, machine: &Machine) {
    let list = match machine.processors.vendor.as_str() {
        "AuthenticAMD" | "HygonGenuine" => AMD.as_slice(),
        _ => INTEL.as_slice(),
    };
    text.line("");
    text.comment("Registers that Linux writes to; it may read all, and write those that every cell may write.");
    text.line("msrs = [");
    let mut line = |index: u32, name: &str, is_per_cpu: bool| {
        let per_cpu = if is_per_cpu { ", per-cpu = true" } else { "" };
        text.line(&format!(
            "    {{ index = {index:#x}, access = \"rw\"{per_cpu} }}, # {name}"
        ));
    };
    for (index, name, is_per_cpu) in list {
        line(*index, name, *is_per_cpu);
    }
    for (first, count, step, name, is_per_cpu) in SEVERAL {
        for number in 0..count {
            line(first + number * step, name, is_per_cpu);
        }
    }
    text.line("]");
}

/// All pages that a span touches.
fn touched_pages(span: Span) -> Option<Span> {
    let start = span.start() & !(PAGE_SIZE - 1);
    Span::inclusive(start, span.last() | (PAGE_SIZE - 1))
}

/// What the root cell uses, by kind; what is two things is the first of them.
/// Also, whether some had to be joined.
fn regions(machine: &Machine) -> (Vec<(Kind, Span)>, bool) {
    let ram = machine.ram.iter().filter_map(|ram| whole_pages(ram.span));
    let ram = merged(ram.collect());
    let mut firmware: Vec<Span> = [LOW_MEMORY, LOW_ROMS]
        .into_iter()
        .filter_map(span)
        .collect();
    let mut devices = Vec::from_iter(span(LOW_DISPLAY));
    used(&machine.iomem, &mut |resource| {
        match FIRMWARE.iter().any(|name| resource.name.starts_with(name))
            // What is left of pages of RAM that begin or end with something else.
            || resource.name.starts_with("System RAM")
        {
            true => firmware.push(resource.span),
            false => devices.push(resource.span),
        }
    });
    for function in &machine.pci.functions {
        let bars = function.bars.iter().filter(|bar| bar.kind != BarKind::Io);
        devices.extend(bars.filter(|bar| bar.span.start() != 0).map(|bar| bar.span));
        devices.extend(function.rom);
    }
    for register in power_registers(machine) {
        if let Place::Memory(address) = register.place {
            devices.extend(Span::sized(address, register.length.into()));
        }
    }
    let pages = |spans: Vec<Span>| merged(spans.into_iter().filter_map(touched_pages).collect());
    let moderated = pages(moderated(machine));
    let ram = without(&ram, &moderated);
    let mut taken = pages([ram.clone(), moderated].concat());
    let mut firmware = without(&pages(firmware), &taken);
    taken = pages([taken, firmware.clone()].concat());
    let mut devices = without(&pages(devices), &taken);
    let rest = MAX_MEMORY_REGIONS.saturating_sub(ram.len() + firmware.len());
    let for_devices = rest.max(MAX_MEMORY_REGIONS / 2).saturating_sub(ram.len());
    let mut joined = join(&mut devices, for_devices.max(1), &taken);
    let others = pages([ram.clone(), devices.clone()].concat());
    let for_firmware = MAX_MEMORY_REGIONS.saturating_sub(ram.len() + devices.len());
    joined |= join(&mut firmware, for_firmware.max(1), &others);
    let kind = |kind: Kind, spans: Vec<Span>| spans.into_iter().map(move |span| (kind, span));
    let mut all: Vec<(Kind, Span)> = kind(Kind::Ram, ram)
        .chain(kind(Kind::Firmware, firmware))
        .chain(kind(Kind::Device, devices))
        .collect();
    all.sort_by_key(|(_, span)| span.start());
    (all, joined)
}

/// What the hypervisor moderates for the root cell.
fn moderated(machine: &Machine) -> Vec<Span> {
    let io_apics = machine.interrupts.io_apics.iter();
    let mut spans: Vec<Span> = io_apics
        .filter_map(|io_apic| Span::sized(io_apic.address, PAGE_SIZE))
        .collect();
    spans.extend(Span::sized(APIC_PAGE, PAGE_SIZE));
    spans.extend(span(IO_APIC_WINDOW));
    spans.extend(machine.ecam.iter().map(|ecam| ecam.span));
    if let Some(iommu) = &machine.iommu {
        spans.extend(iommu.units.iter().map(|unit| unit.registers));
    }
    spans
}

fn memory(text: &mut Text, machine: &Machine, notes: &mut Vec<String>) {
    text.line("");
    text.comment("From /proc/iomem, PCI and ACPI.");
    let (regions, joined) = regions(machine);
    if joined {
        let what = "Regions of the root cell's memory were joined, since there were too many.";
        text.comment(what);
        notes.push(what.to_owned());
    }
    let mut counts = [0; 3];
    for (kind, span) in regions {
        let (name, keys) = match kind {
            Kind::Ram => ("ram", "access = \"rwx\"\ndma = true"),
            Kind::Firmware => ("firmware", "access = \"rwx\""),
            Kind::Device => ("device", "kind = \"device\""),
        };
        let count = &mut counts[kind as usize];
        text.table("[[root.memory]]");
        if let Some(what) = names_of(machine, span) {
            text.comment(&what);
        }
        text.line(&format!("name = \"{name}-{count}\""));
        text.line(&format!("at = {:#x}", span.start()));
        text.line(&format!("size = \"{}\"", Size(span.size())));
        text.line(keys);
        *count += 1;
    }
}

/// What Linux calls the things in a region; none when it calls them nothing.
fn names_of(machine: &Machine, span: Span) -> Option<String> {
    const MOST: usize = 6;
    let mut names: Vec<&str> = Vec::new();
    used(&machine.iomem, &mut |resource| {
        if resource.span.intersection(&span).is_some() && !names.contains(&&*resource.name) {
            names.push(&resource.name);
        }
    });
    if names.len() > MOST {
        let more = names.len() - MOST;
        names.truncate(MOST);
        return Some(format!("{} and {more} more", names.join(", ")));
    }
    (!names.is_empty()).then(|| names.join(", "))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn spans(list: &[(u64, u64)]) -> Vec<Span> {
        merged(list.iter().copied().filter_map(span).collect())
    }

    #[test]
    fn neighbours_join_where_nobody_is_between() {
        let mut all = spans(&[(0, 9), (20, 29), (32, 39), (60, 69)]);
        assert!(join(&mut all, 2, &spans(&[(30, 31)])));
        assert_eq!(all, spans(&[(0, 29), (32, 69)]));
        assert!(!join(&mut all, 1, &spans(&[(30, 30)])));
        assert_eq!(all.len(), 2);
    }

    proptest! {
        #[test]
        fn what_is_taken_away_is_away(
            one in proptest::collection::vec((0u64..60, 0u64..9), 0..6),
            other in proptest::collection::vec((0u64..60, 0u64..9), 0..6),
        ) {
            let make = |list: &[(u64, u64)]| -> Vec<Span> {
                merged(list.iter().filter_map(|(first, size)| span((*first, first + size))).collect())
            };
            let (one, other) = (make(&one), make(&other));
            let left = without(&one, &other);
            let has = |spans: &[Span], at: u64| spans.iter().any(|it| (it.start()..=it.last()).contains(&at));
            for at in 0..80 {
                prop_assert_eq!(has(&left, at), has(&one, at) && !has(&other, at));
            }
        }
    }
}
