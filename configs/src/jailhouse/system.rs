//! The system file, from the system configuration for Jailhouse.
//!
//! Invariant: the root cell gets what is left over, so that nothing which Jailhouse's lists forget can stop Linux.

use super::cell::{mended_name, say_of_the_file, shared_memory_text};
use super::draft::{Draft, Note, wrapped};
use super::layout::{
    CONSOLE_8250, CONSOLE_EFIFB, CONSOLE_FLAG_MMIO, CONSOLE_FLAG_REGDIST_4, CONSOLE_NONE, Console,
    IOMMU_AMD, IOMMU_UNUSED, Memory, PCI_TYPE_IVSHMEM, SYSTEM_VIRTUAL_DEBUG_CONSOLE,
};
use super::parse::{Revision, SystemBlob};
use crate::binary::{HYPERVISOR_ALIGNMENT, MAX_HYPERVISOR_SIZE};
use crate::compile::{DEFAULT_HYPERVISOR_SIZE, DEFAULT_ROOT_NAME};
use crate::explain::cpu_list;
use crate::quantity::Size;

/// The rate of a UART whose divisor is 1, in bits a second.
const UART_RATE: u32 = 115_200;

/// The file.
pub(super) fn draft(system: &SystemBlob<'_>) -> Draft {
    let root = &system.root;
    let mut draft = Draft {
        title: format!(
            "Imported from a system configuration of Jailhouse, revision {}. Comments say what was dropped or changed.",
            match root.revision {
                Revision::Thirteen => 13,
                Revision::Fourteen => 14,
            }
        ),
        is_system: true,
        ..Draft::default()
    };
    say_of_the_file(root, &mut draft);
    let (name, notes) = mended_name(root, DEFAULT_ROOT_NAME);
    draft.set(format!("name = {name:?}"), notes);
    if system.header.flags.get() & !SYSTEM_VIRTUAL_DEBUG_CONSOLE != 0 {
        let unknown = system.header.flags.get() & !SYSTEM_VIRTUAL_DEBUG_CONSOLE;
        draft.say(
            "flags",
            format!("{unknown:#x} has no meaning, and is dropped."),
        );
    }
    hypervisor_memory(&system.header.hypervisor_memory, &mut draft);
    console(&system.header.debug_console, &mut draft);
    root_cell(system, &mut draft);
    machine(system, &mut draft);
    draft
}

/// The whole large pages of the hypervisor's memory: first address and bytes.
fn large_pages(memory: &Memory) -> Option<(u64, u64)> {
    let start = memory.phys_start.get();
    let end = start.checked_add(memory.size.get())?;
    let first = start.checked_next_multiple_of(HYPERVISOR_ALIGNMENT)?;
    let size = end.checked_sub(first)?;
    let size = (size - size % HYPERVISOR_ALIGNMENT).min(MAX_HYPERVISOR_SIZE);
    (first != 0 && size >= DEFAULT_HYPERVISOR_SIZE).then_some((first, size))
}

fn hypervisor_memory(memory: &Memory, draft: &mut Draft) {
    let (start, size) = (memory.phys_start.get(), memory.size.get());
    let original = format!("{} at {start:#x}", Size(size));
    let Some((first, usable)) = large_pages(memory) else {
        draft.say(
            "hypervisor_memory",
            format!(
                "{original} can not be used: Gaol needs {} in whole pages of 2 MiB. Linux gives the memory instead.",
                Size(DEFAULT_HYPERVISOR_SIZE)
            ),
        );
        return;
    };
    let mut notes = vec![Note::new(
        "hypervisor_memory",
        "as in the original, where `memmap=` on the kernel's command line reserves it. Without `address` Linux gives the \
         memory at run time, and needs no `memmap=`.",
    )];
    if (first, usable) != (start, size) {
        notes.push(Note::new(
            "hypervisor_memory",
            format!(
                "{original} became {} at {first:#x}: Gaol takes whole pages of 2 MiB, and {} at most.",
                Size(usable),
                Size(MAX_HYPERVISOR_SIZE)
            ),
        ));
    }
    draft.set(
        format!(
            "[hypervisor]\nmemory = \"{}\"\naddress = {first:#x}",
            Size(usable)
        ),
        notes,
    );
}

fn console(console: &Console, draft: &mut Draft) {
    let (address, flags) = (console.address.get(), console.flags.get());
    let about = "debug_console";
    let dropped = match console.kind.get() {
        CONSOLE_NONE => return,
        CONSOLE_8250 if flags & CONSOLE_FLAG_MMIO != 0 => {
            format!(
                "the UART with registers in memory at {address:#x} is dropped: Gaol prints to UARTs at I/O ports."
            )
        }
        CONSOLE_8250 if flags & CONSOLE_FLAG_REGDIST_4 != 0 => {
            format!(
                "the UART at port {address:#x} is dropped: its registers are four ports apart, and Gaol's are one."
            )
        }
        CONSOLE_8250 => {
            uart(console, draft);
            return;
        }
        CONSOLE_EFIFB => format!(
            "the frame buffer at {address:#x} is dropped: Gaol does not print to frame buffers."
        ),
        kind => format!("a console of type {kind} is dropped: Gaol has none like it."),
    };
    draft.say(
        about,
        format!("{dropped} `gaol console` shows what is printed."),
    );
}

fn uart(console: &Console, draft: &mut Draft) {
    let mut notes = Vec::new();
    let rate = match console.divider.get() {
        0 => {
            notes.push(Note::new(
                "debug_console",
                format!("Jailhouse leaves the UART's rate as Linux set it; Gaol sets {UART_RATE} bits a second."),
            ));
            UART_RATE
        }
        divisor if UART_RATE.is_multiple_of(divisor) => UART_RATE / divisor,
        divisor => {
            notes.push(Note::new(
                "debug_console",
                format!(
                    "divisor {divisor} gives no whole rate; Gaol sets {UART_RATE} bits a second."
                ),
            ));
            UART_RATE
        }
    };
    draft.set(
        format!(
            "[console]\nuart = {{ port = {:#x}, baud = {rate} }}",
            console.address.get()
        ),
        notes,
    );
}

fn root_cell(system: &SystemBlob<'_>, draft: &mut Draft) {
    let root = &system.root;
    let mut notes = vec![Note::new(
        "root_cell",
        "Jailhouse gives Linux what these lists name, and stops it at anything else. Gaol gives it what nobody else owns, so \
         the lists are dropped.",
    )];
    let lists = [
        ("mem_regions", root.memory.len()),
        ("cache_regions", root.caches.len()),
        ("irqchips", root.irqchips.len()),
        ("pio_regions", root.ports.len()),
        ("pci_devices", root.devices.len()),
        ("pci_caps", root.capabilities.len()),
    ];
    for (list, length) in lists.into_iter().filter(|(_, length)| *length != 0) {
        notes.push(Note::new(list, format!("{length} dropped.")));
    }
    let numbered = root.devices.iter().enumerate();
    for (index, device) in numbered.filter(|(_, device)| device.kind == PCI_TYPE_IVSHMEM) {
        notes.push(Note::new(
            format!("pci_devices[{index}]"),
            shared_memory_text(device),
        ));
    }
    draft.set("[root]\npolicy = \"leftover\"", notes);
}

/// What the original tells of the machine is not enough to describe it, but may help to check a description.
fn machine(system: &SystemBlob<'_>, draft: &mut Draft) {
    let platform = &system.header.platform_info;
    let mut facts = Vec::new();
    facts.push(format!("CPUs {}", cpu_list(system.root.cpus().collect())));
    if platform.pci_mmconfig_base.get() != 0 {
        facts.push(format!(
            "PCI configuration space at {:#x}, segment {}, buses 0 to {}",
            platform.pci_mmconfig_base.get(),
            platform.pci_domain.get(),
            platform.pci_mmconfig_end_bus
        ));
    }
    for chip in system.root.irqchips {
        facts.push(format!(
            "IOAPIC at {:#x}, source id {:#x}",
            chip.address.get(),
            chip.id.get()
        ));
    }
    for unit in platform
        .iommu_units
        .iter()
        .filter(|unit| unit.kind.get() != IOMMU_UNUSED)
    {
        let kind = if unit.kind.get() == IOMMU_AMD {
            "AMD-Vi"
        } else {
            "VT-d"
        };
        let size = Size(unit.size.get().into());
        facts.push(format!("IOMMU ({kind}) at {:#x}, {size}", unit.base.get()));
    }
    if platform.pm_timer_address.get() != 0 {
        facts.push(format!(
            "ACPI PM timer at port {:#x}",
            platform.pm_timer_address.get()
        ));
    }
    for (what, value) in [
        (
            "entries for interrupt remapping",
            platform.vtd_interrupt_limit,
        ),
        ("kHz of the time stamp counter", platform.tsc_khz),
        ("kHz of the APIC timer", platform.apic_khz),
    ] {
        if value.get() != 0 {
            facts.push(format!("{value} {what}"));
        }
    }
    if platform.apic_mode != 0 {
        let mode = if platform.apic_mode == 1 {
            "xAPIC"
        } else {
            "x2APIC"
        };
        facts.push(format!("interrupt controllers in {mode} mode"));
    }
    let mut text = String::new();
    for fact in facts {
        wrapped("", &format!("- {fact}"), &mut text);
    }
    let note = Note::new(
        "platform_info",
        "the machine is not described here: Jailhouse does not know enough of it. `gaol config create` on the \
         machine does that. What the original tells of it:",
    );
    draft.set(text, vec![note]);
}
