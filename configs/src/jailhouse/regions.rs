//! Memory regions: from Jailhouse's flags to the keys of `[[memory]]`.
//!
//! Invariant: a region that goes into the file has the addresses, the size and the accesses of the original, but for what
//! a note says.

use core::fmt::Write;

use gaol_abi::PAGE_SIZE;

use super::draft::{Entry, Group, Note};
use super::layout::{
    IVSHMEM_COMMON_REGIONS, MEMORY_ALL_FLAGS, MEMORY_COMM_REGION, MEMORY_DMA, MEMORY_EXECUTE,
    MEMORY_IO, MEMORY_IO_UNALIGNED, MEMORY_IO_WIDTH_SHIFT, MEMORY_IO_WIDTHS, MEMORY_LOADABLE,
    MEMORY_NO_HUGEPAGES, MEMORY_READ, MEMORY_ROOTSHARED, MEMORY_WRITE, Memory, PCI_TYPE_DEVICE,
    PCI_TYPE_IVSHMEM,
};
use super::names::unique;
use super::parse::CellBlob;
use crate::quantity::Size;

/// Sizes of access in bits, by the bit of the width flags.
const WIDTHS: [u32; 4] = [8, 16, 32, 64];

/// The entries of `[[memory]]`, and how many regions of the original are not used.
pub(super) fn entries(cell: &CellBlob<'_>) -> (Vec<Entry>, usize) {
    let mut names = Vec::new();
    let mut entries = Vec::new();
    let mut unused = 0usize;
    for (index, memory) in cell.memory.iter().enumerate() {
        if memory.size.get() == 0 {
            unused = unused.saturating_add(1);
            continue;
        }
        let mut region = Region::new(index, memory, is_of_shared_memory(cell, index));
        if !has_function(cell) {
            // Jailhouse's own examples have the flag everywhere.
            region.flags &= !MEMORY_DMA;
        }
        let pieces = region.pieces().into_iter();
        entries.extend(pieces.map(|piece| piece.entry(&mut names)));
    }
    (entries, unused)
}

/// Whether the cell has a PCI function, which could reach memory.
pub(super) fn has_function(cell: &CellBlob<'_>) -> bool {
    let mut devices = cell.devices.iter();
    devices.any(|device| device.kind == PCI_TYPE_DEVICE)
}

/// Whether any memory is open to DMA.
pub(super) fn has_dma(cell: &CellBlob<'_>) -> bool {
    let mut used = cell.memory.iter().filter(|memory| memory.size.get() != 0);
    used.any(|memory| memory.flags.get() & MEMORY_DMA != 0)
}

/// Whether a region belongs to an ivshmem device.
fn is_of_shared_memory(cell: &CellBlob<'_>, index: usize) -> bool {
    let index = index as u64;
    let mut devices = cell
        .devices
        .iter()
        .filter(|device| device.kind == PCI_TYPE_IVSHMEM);
    devices.any(|device| {
        let first = u64::from(device.shmem_regions_start.get());
        let count = IVSHMEM_COMMON_REGIONS + u64::from(device.shmem_peers);
        (first..first + count).contains(&index)
    })
}

/// What a region is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Communication,
    /// Registers of a device, whole pages.
    Registers,
    /// Registers of a device that share a page with others.
    PartOfPage,
    /// A section of an ivshmem device.
    Section,
    /// Memory that others have as well.
    Shared,
    Ram,
}

#[derive(Clone)]
struct Region {
    about: String,
    physical: u64,
    guest: u64,
    size: u64,
    flags: u64,
    role: Role,
    notes: Vec<String>,
}

impl Region {
    fn new(index: usize, memory: &Memory, is_section: bool) -> Self {
        let mut region = Self {
            about: format!("mem_regions[{index}]"),
            physical: memory.phys_start.get(),
            guest: memory.virt_start.get(),
            size: memory.size.get(),
            flags: memory.flags.get(),
            role: Role::Ram,
            notes: Vec::new(),
        };
        region.role = region.find_role(is_section);
        region.mend();
        region
    }

    fn has(&self, flags: u64) -> bool {
        self.flags & flags != 0
    }

    fn say(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    fn find_role(&mut self, is_section: bool) -> Role {
        let shares_page =
            !self.guest.is_multiple_of(PAGE_SIZE) || !self.size.is_multiple_of(PAGE_SIZE);
        // Jailhouse on x86 does not tell registers from RAM. RAM that is only read and written, that nothing loads, no
        // device reaches, and that is where it is in the machine, would be unusual; for registers it is the rule.
        let ram_flags = MEMORY_EXECUTE | MEMORY_LOADABLE | MEMORY_ROOTSHARED | MEMORY_DMA;
        let looks_like_registers = self.physical == self.guest && !self.has(ram_flags);
        if self.has(MEMORY_COMM_REGION) {
            Role::Communication
        } else if shares_page && !self.has(MEMORY_EXECUTE) {
            Role::PartOfPage
        } else if self.has(MEMORY_IO) {
            Role::Registers
        } else if is_section {
            Role::Section
        } else if looks_like_registers {
            self.say(
                "taken for registers of a device, because it is where it is in the machine, and neither executable nor \
                 loadable nor open to DMA. If it is RAM, take the line with `kind` out.",
            );
            Role::Registers
        } else if self.has(MEMORY_ROOTSHARED) {
            Role::Shared
        } else {
            Role::Ram
        }
    }

    /// Takes out what Gaol does not have, and says so.
    fn mend(&mut self) {
        if self.role == Role::Communication {
            self.mend_communication();
            return;
        }
        if self.has(MEMORY_WRITE | MEMORY_EXECUTE) && !self.has(MEMORY_READ) {
            self.flags |= MEMORY_READ;
            self.say("it may be read as well: no page can be written or executed and not read.");
        }
        if self.has(MEMORY_NO_HUGEPAGES) {
            self.say(
                "JAILHOUSE_MEM_NO_HUGEPAGES is dropped: Gaol uses small pages by itself for code, on processors that \
                 need them.",
            );
        }
        let is_registers = matches!(self.role, Role::Registers | Role::PartOfPage);
        if is_registers {
            self.take_out(
                MEMORY_EXECUTE,
                "JAILHOUSE_MEM_EXECUTE is dropped: it has registers, not code.",
            );
            self.take_out(
                MEMORY_LOADABLE,
                "JAILHOUSE_MEM_LOADABLE is dropped: registers can not be loaded.",
            );
            self.take_out(
                MEMORY_DMA,
                "JAILHOUSE_MEM_DMA is dropped: devices reach RAM, not registers.",
            );
        }
        if self.has(MEMORY_ROOTSHARED) {
            self.take_out(
                MEMORY_LOADABLE,
                "JAILHOUSE_MEM_LOADABLE is dropped: the root cell shares the memory, and can write to it at any time.",
            );
        }
        if self.role == Role::PartOfPage {
            self.take_out(
                MEMORY_IO_UNALIGNED,
                "JAILHOUSE_MEM_IO_UNALIGNED is dropped: Gaol lets aligned accesses through only.",
            );
        } else {
            self.take_out(
                MEMORY_IO_WIDTHS | MEMORY_IO_UNALIGNED,
                "the permitted kinds of access are dropped: whole pages are accessed directly, in Jailhouse as well.",
            );
        }
        if self.has(!MEMORY_ALL_FLAGS) {
            let unknown = self.flags & !MEMORY_ALL_FLAGS;
            self.say(format!(
                "flags {unknown:#x} have no meaning, and are dropped."
            ));
        }
    }

    fn mend_communication(&mut self) {
        if self.size != PAGE_SIZE {
            let size = Size(self.size);
            self.say(format!(
                "the communication region has one page, not {size}."
            ));
        }
        if self.flags != MEMORY_COMM_REGION | MEMORY_READ | MEMORY_WRITE {
            let flags = self.flags;
            self.say(format!("a communication region is read and written, and no more: flags {flags:#x} are changed."));
        }
    }

    fn take_out(&mut self, flags: u64, text: &str) {
        if self.has(flags) {
            self.flags &= !flags;
            self.say(text);
        }
    }

    /// What makes the region useless as it is.
    fn useless(&self) -> Option<&'static str> {
        if self.role == Role::Communication {
            return None;
        }
        if !self.has(MEMORY_READ | MEMORY_WRITE | MEMORY_EXECUTE) {
            return Some("the cell may neither read nor write nor execute it.");
        }
        (self.role == Role::PartOfPage && !self.has(MEMORY_IO_WIDTHS)).then_some(
            "it is not made of whole pages, and permits no size of access, so that Jailhouse stops the cell at the first \
             one. If it is registers, add `widths`; if it is RAM, make address and size multiples of 4 KiB.",
        )
    }

    /// The region, cut where Gaol wants it: a part of a page is within one page.
    fn pieces(mut self) -> Vec<Self> {
        let offset = self.guest % PAGE_SIZE;
        let end = offset.saturating_add(self.size);
        let is_within = end <= PAGE_SIZE || (offset == 0 && end.is_multiple_of(PAGE_SIZE));
        if self.role != Role::PartOfPage || is_within || offset != self.physical % PAGE_SIZE {
            return vec![self];
        }
        self.say("cut where a page begins, because Gaol wants registers that share a page within one page.");
        let first = (PAGE_SIZE - offset) % PAGE_SIZE;
        let last = end % PAGE_SIZE;
        let sizes = [first, self.size.saturating_sub(first + last), last];
        let mut start = 0u64;
        let mut pieces = Vec::new();
        for size in sizes.into_iter().filter(|size| *size != 0) {
            let mut piece = self.clone();
            piece.physical = self.physical.saturating_add(start);
            piece.guest = self.guest.saturating_add(start);
            piece.size = size;
            start = start.saturating_add(size);
            // What is to be said is said once.
            self.notes.clear();
            pieces.push(piece);
        }
        pieces
    }

    fn name(&self, names: &[String]) -> String {
        match self.role {
            Role::Communication => "communication".to_owned(),
            // What several cells share has the same name in all of them, and what one has twice has not.
            Role::Registers | Role::PartOfPage => format!("registers-{:x}", self.physical),
            Role::Section => format!("ivshmem-{:x}", self.physical),
            Role::Shared => format!("shared-{:x}", self.physical),
            Role::Ram if !names.contains(&"ram".to_owned()) => "ram".to_owned(),
            Role::Ram => format!("ram-{:x}", self.guest),
        }
    }

    fn access(&self) -> &'static str {
        match (self.has(MEMORY_WRITE), self.has(MEMORY_EXECUTE)) {
            (false, false) => "r",
            (true, false) => "rw",
            (false, true) => "rx",
            (true, true) => "rwx",
        }
    }

    fn entry(mut self, names: &mut Vec<String>) -> Entry {
        let name = unique(self.name(names), names);
        let refused = self.useless().map(str::to_owned);
        let text = self.text(&name);
        let about = core::mem::take(&mut self.about);
        Entry {
            group: Group::Memory,
            notes: self
                .notes
                .into_iter()
                .map(|text| Note::new(&about, text))
                .collect(),
            about,
            text,
            refused,
        }
    }

    fn text(&mut self, name: &str) -> String {
        let mut text = format!("[[memory]]\nname = {name:?}\n");
        let at = self.guest;
        if self.role == Role::Communication {
            let _ = writeln!(text, "kind = \"communication\"\nat = {at:#x}");
            return text;
        }
        let is_registers = matches!(self.role, Role::Registers | Role::PartOfPage);
        if is_registers {
            text.push_str("kind = \"device\"\n");
        }
        let _ = writeln!(text, "at = {at:#x}\nsize = \"{}\"", Size(self.size));
        match self.physical {
            0 if is_registers => {}
            0 => self.say("at physical address 0 in the original: Linux gives the memory instead."),
            physical => {
                let _ = writeln!(text, "physical = {physical:#x}");
            }
        }
        let _ = writeln!(text, "access = {:?}", self.access());
        for (flag, key) in [
            (MEMORY_LOADABLE, "loadable"),
            (MEMORY_ROOTSHARED, "shared-with-root"),
            (MEMORY_DMA, "dma"),
        ] {
            if self.has(flag) {
                let _ = writeln!(text, "{key} = true");
            }
        }
        if self.role == Role::PartOfPage {
            let permitted = |bit: &usize| self.flags >> MEMORY_IO_WIDTH_SHIFT >> *bit & 1 != 0;
            let widths = (0..WIDTHS.len()).filter(permitted);
            let widths: Vec<String> = widths
                .filter_map(|bit| WIDTHS.get(bit))
                .map(u32::to_string)
                .collect();
            let _ = writeln!(text, "widths = [{}]", widths.join(", "));
        }
        text
    }
}
