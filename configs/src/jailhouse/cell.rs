//! The file of a cell, from its configuration for Jailhouse.
//!
//! Invariant: CPUs, memory, ports, PCI functions and pins of the original are in the file, as entries or, with the reason,
//! as comments.

use std::collections::BTreeSet;

use gaol_abi::MAX_CPUS;
use gaol_abi::config::{MAX_DEVICES, MAX_INTERRUPTS, MAX_MEMORY_REGIONS, MAX_PORT_RANGES};

use super::draft::{Draft, Entry, Group, Note};
use super::layout::{
    CACHE_L3_CODE, CACHE_L3_DATA, CACHE_ROOTSHARED, CELL_ALL_FLAGS, CELL_PASSIVE_COMMREG,
    CELL_TEST_DEVICE, CELL_VIRTUAL_CONSOLE_ACTIVE, CELL_VIRTUAL_CONSOLE_PERMITTED, CONSOLE_NONE,
    Cache, Irqchip, PCI_TYPE_BRIDGE, PCI_TYPE_IVSHMEM, PciDevice,
};
use super::names::mended;
use super::parse::{CellBlob, Revision};
use super::{ports, regions};
use crate::explain::cpu_list;
use crate::pci::FunctionAddress;

/// Where PCs have their first IOAPIC, whose pins are the first global system interrupts.
const FIRST_IO_APIC: u64 = 0xfec0_0000;
/// Pins of most IOAPICs.
const USUAL_PINS: u32 = 24;
/// Ways that a configuration of Gaol can name.
const MAX_WAYS: u64 = 32;

/// The file, as far as it follows from the configuration alone; whether Gaol accepts all of it is still to be seen.
pub(super) fn draft(cell: &CellBlob<'_>) -> Draft {
    let mut draft = Draft {
        title: format!(
            "Imported from a cell configuration of Jailhouse, revision {}. Comments say what was dropped or changed.",
            match cell.revision {
                Revision::Thirteen => 13,
                Revision::Fourteen => 14,
            }
        ),
        ..Draft::default()
    };
    say_of_the_file(cell, &mut draft);
    name(cell, &mut draft);
    flags(cell, &mut draft);
    timeout(cell, &mut draft);
    cpus(cell, &mut draft);
    ports::enter(cell, &mut draft);
    interrupts(cell, &mut draft);
    ways(cell, &mut draft);
    memory(cell, &mut draft);
    devices(cell, &mut draft);
    for (group, most) in [
        (Group::Memory, MAX_MEMORY_REGIONS),
        (Group::Ports, MAX_PORT_RANGES),
        (Group::Interrupts, MAX_INTERRUPTS),
        (Group::Devices, MAX_DEVICES),
    ] {
        bound(&mut draft, group, most);
    }
    draft
}

/// What is to be said of files of both kinds.
pub(super) fn say_of_the_file(cell: &CellBlob<'_>, draft: &mut Draft) {
    if cell.revision == Revision::Thirteen {
        draft.say(
            "revision",
            "13 does not say for which kind of processor the file is. Nothing in it speaks against x86.",
        );
    }
    if cell.surplus != 0 {
        draft.say(
            "file",
            format!(
                "{} bytes behind the last array were not read.",
                cell.surplus
            ),
        );
    }
}

/// The cell's name as Gaol takes it, and what is to be said of it.
pub(super) fn mended_name(cell: &CellBlob<'_>, prefix: &str) -> (String, Vec<Note>) {
    let mended = mended(cell.name(), prefix);
    let mut notes = Vec::new();
    if mended.as_bytes() != cell.name() {
        let original = cell.name().escape_ascii();
        notes.push(Note::new(
            "name",
            format!("\"{original}\" is not a name in Gaol, so it became {mended:?}."),
        ));
    }
    (mended, notes)
}

fn name(cell: &CellBlob<'_>, draft: &mut Draft) {
    let (name, notes) = mended_name(cell, "cell");
    draft.set(format!("name = {name:?}"), notes);
    let address = cell.header.cpu_reset_address.get();
    if address != 0 {
        draft.set(format!("reset-address = {address:#x}"), Vec::new());
    }
}

fn flags(cell: &CellBlob<'_>, draft: &mut Draft) {
    let flags = cell.header.flags.get();
    let console = &cell.header.console;
    let mut notes = Vec::new();
    if console.kind.get() != CONSOLE_NONE {
        notes.push(Note::new(
            "console",
            format!(
                "the cell is not told of its UART at {:#x}: Gaol only tells it to print by hypercall.",
                console.address.get()
            ),
        ));
    } else if flags & (CELL_VIRTUAL_CONSOLE_PERMITTED | CELL_VIRTUAL_CONSOLE_ACTIVE)
        == CELL_VIRTUAL_CONSOLE_PERMITTED
    {
        notes.push(Note::new(
            "flags",
            "the cell was permitted to print by hypercall; now it is also told to.",
        ));
    }
    if flags & (CELL_VIRTUAL_CONSOLE_PERMITTED | CELL_VIRTUAL_CONSOLE_ACTIVE) != 0
        || !notes.is_empty()
    {
        draft.set("console = true", notes);
    }
    if flags & CELL_PASSIVE_COMMREG != 0 {
        draft.set("passive = true", Vec::new());
    }
    if flags & CELL_TEST_DEVICE != 0 {
        draft.say(
            "flags",
            "JAILHOUSE_CELL_TEST_DEVICE is dropped: Gaol has no test device.",
        );
    }
    if flags & !CELL_ALL_FLAGS != 0 {
        let unknown = flags & !CELL_ALL_FLAGS;
        draft.say(
            "flags",
            format!("{unknown:#x} has no meaning, and is dropped."),
        );
    }
    if cell.header.vpci_irq_base.get() != 0 {
        draft.say("vpci_irq_base", "dropped: it means nothing on x86.");
    }
}

fn timeout(cell: &CellBlob<'_>, draft: &mut Draft) {
    let is_passive = cell.header.flags.get() & CELL_PASSIVE_COMMREG != 0;
    match cell.header.msg_reply_timeout.get() {
        0 if is_passive => {}
        0 => draft.say(
            "msg_reply_timeout",
            "Jailhouse waits without end for the cell's answer to a request; Gaol waits 1 s, or as long as \
             `shutdown-timeout` says.",
        ),
        turns => draft.say(
            "msg_reply_timeout",
            format!(
                "{turns} turns of a loop can not be told in time: Gaol waits 1 s for the cell's answer to a request, or \
                 as long as `shutdown-timeout` says."
            ),
        ),
    }
}

fn cpus(cell: &CellBlob<'_>, draft: &mut Draft) {
    let (possible, beyond): (Vec<u32>, Vec<u32>) =
        cell.cpus().partition(|cpu| (*cpu as usize) < MAX_CPUS);
    let entry = |cpu: u32| element(Group::Cpus, "cpus", cpu.to_string());
    draft.entries.extend(possible.into_iter().map(entry));
    if !beyond.is_empty() {
        let text = format!(
            "{} CPUs from {MAX_CPUS} on are left out: Gaol supports CPUs 0 to {}.",
            beyond.len(),
            MAX_CPUS - 1
        );
        draft.say_of(Group::Cpus, "cpus", text);
    }
}

fn element(group: Group, about: impl Into<String>, text: String) -> Entry {
    Entry {
        group,
        about: about.into(),
        text,
        notes: Vec::new(),
        refused: None,
    }
}

fn interrupts(cell: &CellBlob<'_>, draft: &mut Draft) {
    let mut named = BTreeSet::new();
    for (index, chip) in cell.irqchips.iter().enumerate() {
        let about = format!("irqchips[{index}]");
        let address = chip.address.get();
        if address != FIRST_IO_APIC {
            let pins = cpu_list(chip.pins().collect());
            if !pins.is_empty() {
                let text = format!(
                    "pins of the IOAPIC at {address:#x} are left out ({pins}): the file does not tell its first global \
                     system interrupt. Find that in the kernel's log (GSI), add the numbers of the pins, and enter \
                     the sums."
                );
                draft.say_of(Group::Interrupts, &about, text);
            }
            continue;
        }
        let pins = chip.pins().filter(|pin| named.insert(*pin));
        let mut pins: Vec<Entry> = pins
            .map(|pin| element(Group::Interrupts, about.clone(), pin.to_string()))
            .collect();
        if let Some(first) = pins.first_mut() {
            first.notes.push(Note::new(&about, first_chip_text(chip)));
        }
        draft.entries.extend(pins);
    }
}

fn first_chip_text(chip: &Irqchip) -> String {
    let mut text =
        "the pins of the first IOAPIC are global system interrupts of the same number.".to_owned();
    if chip.pins().any(|pin| pin >= USUAL_PINS) {
        text.push_str(
            " Most have 24 pins: if this one has, those from 24 on are pins of the next.",
        );
    }
    text
}

fn ways(cell: &CellBlob<'_>, draft: &mut Draft) {
    for (index, cache) in cell.caches.iter().enumerate() {
        let about = format!("cache_regions[{index}]");
        let first = u64::from(cache.start.get());
        let end = first + u64::from(cache.size.get());
        match unusable_ways(cache) {
            _ if first == end => {}
            Some(reason) => draft.say_of(
                Group::Ways,
                &about,
                format!(
                    "{} cache ways from {first} on are left out: {reason}",
                    end - first
                ),
            ),
            None => {
                let known = &draft.entries;
                let is_new = |way: &u64| {
                    let text = way.to_string();
                    !known
                        .iter()
                        .any(|entry| entry.group == Group::Ways && entry.text == text)
                };
                let ways = (first..end).filter(is_new);
                let ways: Vec<Entry> = ways
                    .map(|way| element(Group::Ways, &about, way.to_string()))
                    .collect();
                draft.entries.extend(ways);
            }
        }
    }
}

/// Why Gaol can't give the cell these ways, if it can't.
fn unusable_ways(cache: &Cache) -> Option<&'static str> {
    let end = u64::from(cache.start.get()) + u64::from(cache.size.get());
    if end > MAX_WAYS {
        return Some("Gaol counts to 32 of them.");
    }
    if cache.flags.get() & CACHE_ROOTSHARED != 0 {
        return Some("the root cell uses them as well, and in Gaol ways are the cell's alone.");
    }
    (cache.kind != CACHE_L3_CODE | CACHE_L3_DATA)
        .then_some("they are not for code and data of the third-level cache, and Gaol does not tell the two apart.")
}

fn memory(cell: &CellBlob<'_>, draft: &mut Draft) {
    let (mut entries, unused) = regions::entries(cell);
    if unused != 0 {
        draft.say_of(
            Group::Memory,
            "mem_regions",
            format!("{unused} without a size are not used, and left out."),
        );
    }
    if regions::has_dma(cell) && !regions::has_function(cell) {
        draft.say_of(
            Group::Memory,
            "mem_regions",
            "JAILHOUSE_MEM_DMA is dropped: the cell has no PCI function that could reach its memory.",
        );
    }
    if entries
        .iter()
        .any(|entry| entry.text.contains("\nphysical = "))
    {
        draft.say_of(Group::Memory, "mem_regions",
            "physical addresses are those of the original, where `memmap=` on the kernel's command line reserves memory \
             for Jailhouse. RAM without `physical` is taken from Linux at run time.",
        );
    }
    draft.entries.append(&mut entries);
}

/// As Linux writes it: segment:bus:device.function.
fn address(device: &PciDevice) -> String {
    let address = FunctionAddress {
        segment: device.domain.get(),
        function: device.bdf.get(),
    };
    address.to_string()
}

/// What an ivshmem device comes to.
pub(super) fn shared_memory_text(device: &PciDevice) -> String {
    format!(
        "{} is shared memory of {} peers that Jailhouse shows as a PCI function (ivshmem, protocol {:#x}). Gaol has no such \
         function: no doorbell, and nobody keeps the table of states.",
        address(device),
        device.shmem_peers,
        device.shmem_protocol.get()
    )
}

fn devices(cell: &CellBlob<'_>, draft: &mut Draft) {
    let mut named = BTreeSet::new();
    for (index, device) in cell.devices.iter().enumerate() {
        let about = format!("pci_devices[{index}]");
        let address = address(device);
        match device.kind {
            PCI_TYPE_BRIDGE => draft.say_of(
                Group::Devices,
                &about,
                format!("bridge {address} stays with the root cell."),
            ),
            PCI_TYPE_IVSHMEM => {
                let text = format!(
                    "{} The memory stays shared with the root cell.",
                    shared_memory_text(device)
                );
                draft.say_of(Group::Devices, &about, text);
            }
            _ if !named.insert(address.clone()) => {
                draft.say_of(
                    Group::Devices,
                    &about,
                    format!("{address} was named before."),
                );
            }
            _ => {
                let text = format!("[[devices]]\naddress = {address:?}\n");
                draft.entries.push(element(Group::Devices, about, text));
            }
        }
    }
    if regions::has_function(cell) {
        draft.say_of(Group::Devices, "pci_devices",
            "IOMMU, base address registers, MSI, MSI-X and capabilities are dropped: Gaol finds them in the function.",
        );
    } else if !cell.capabilities.is_empty() {
        draft.say_of(
            Group::Devices,
            "pci_caps",
            "dropped: no function of the cell has them.",
        );
    }
}

/// Leaves out what is beyond the number that a configuration of Gaol can have.
fn bound(draft: &mut Draft, group: Group, most: usize) {
    let entries = draft.entries.iter_mut();
    let taken = entries.filter(|entry| entry.group == group && entry.refused.is_none());
    for surplus in taken.skip(most) {
        surplus.refused = Some(format!("a cell of Gaol has {most} of them at most."));
    }
}
