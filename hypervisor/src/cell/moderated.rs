//! Moderated ranges: guest-physical addresses at which nothing is mapped, so that the hypervisor makes each access itself.
//!
//! One table for each cell, the root included. Tables are changed under the management lock and read by exit paths
//! without one. Invariant: a reader finds an entry whole, as it was before a change or as it is after it, or learns that
//! it is changing at this moment ([`Lookup::Changing`]); then the guest does its instruction again.
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};

use gaol_abi::MAX_CELLS;

use crate::device::pci::FunctionId;
use crate::memory::address::HostPhysical;

/// Most moderated ranges of a cell.
pub const MAX_RANGES: usize = 64;

/// What a guest reaches through the hypervisor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum What {
    /// Registers of a device, or a part of them.
    Registers {
        /// Where they are in the machine.
        physical: HostPhysical,
        /// Sizes of access that are let through: the sum of their bytes (1, 2, 4, 8).
        widths: u8,
        /// Whether writes are let through.
        writable: bool,
    },
    /// A page of the root's of which cells own parts: guest-physical addresses are host-physical ones, and what is a
    /// cell's is looked up at each access.
    Remainder,
    /// The IOAPIC of this number.
    IoApic(u8),
    /// Registers of the IOMMU of this number.
    Iommu(u8),
    /// PCI configuration space, from the first function of a bus on.
    PciConfiguration {
        /// PCI segment group.
        segment: u16,
        /// The first bus.
        first: u8,
    },
    /// Registers of a PCI function with its MSI-X table among them.
    MsixTable {
        /// The function.
        function: FunctionId,
        /// Where they are in the machine.
        physical: HostPhysical,
        /// Whether writes are let through.
        writable: bool,
    },
}

const KIND_REGISTERS: u64 = 1;
const KIND_REMAINDER: u64 = 2;
const KIND_IO_APIC: u64 = 3;
const KIND_PCI_CONFIGURATION: u64 = 4;
const KIND_MSIX_TABLE: u64 = 5;
const KIND_IOMMU: u64 = 6;

impl What {
    /// As two words. The lowest byte of the first one is the kind, and never 0.
    const fn encode(self) -> [u64; 2] {
        match self {
            Self::Registers {
                physical,
                widths,
                writable,
            } => [
                KIND_REGISTERS | (widths as u64) << 8 | (writable as u64) << 16,
                physical.as_u64(),
            ],
            Self::Remainder => [KIND_REMAINDER, 0],
            Self::IoApic(unit) => [KIND_IO_APIC, unit as u64],
            Self::Iommu(unit) => [KIND_IOMMU, unit as u64],
            Self::PciConfiguration { segment, first } => [
                KIND_PCI_CONFIGURATION | (first as u64) << 8 | (segment as u64) << 16,
                0,
            ],
            Self::MsixTable {
                function,
                physical,
                writable,
            } => [
                KIND_MSIX_TABLE | (writable as u64) << 8 | (function.number() as u64) << 16,
                physical.as_u64(),
            ],
        }
    }

    const fn decode([first, second]: [u64; 2]) -> Option<Self> {
        match first & 0xff {
            KIND_REGISTERS => Some(Self::Registers {
                physical: HostPhysical::new(second),
                widths: (first >> 8) as u8,
                writable: first >> 16 & 1 != 0,
            }),
            KIND_REMAINDER => Some(Self::Remainder),
            KIND_IO_APIC => Some(Self::IoApic(second as u8)),
            KIND_IOMMU => Some(Self::Iommu(second as u8)),
            KIND_PCI_CONFIGURATION => Some(Self::PciConfiguration {
                segment: (first >> 16) as u16,
                first: (first >> 8) as u8,
            }),
            KIND_MSIX_TABLE => Some(Self::MsixTable {
                function: FunctionId {
                    segment: (first >> 32) as u16,
                    function: (first >> 16) as u16,
                },
                physical: HostPhysical::new(second),
                writable: first >> 8 & 1 != 0,
            }),
            _ => None,
        }
    }
}

/// A moderated range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Moderated {
    /// Guest-physical address.
    pub start: u64,
    /// Bytes; below 2^48, and not 0.
    pub size: u64,
    /// What is there.
    pub what: What,
}

/// Answer to a look for an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lookup {
    /// The address is in no moderated range.
    Nothing,
    /// The address is in this one.
    Found(Moderated),
    /// The table changes at this moment: look again.
    Changing,
}

/// All slots are taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TableFull;

/// Bits of [`Slot::state`] that count its changes; above them is the size, 0 of a free slot.
const CHANGES: u64 = 0xffff;

#[derive(Debug)]
struct Slot {
    state: AtomicU64,
    start: AtomicU64,
    what: [AtomicU64; 2],
}

impl Slot {
    const fn new() -> Self {
        Self {
            state: AtomicU64::new(0),
            start: AtomicU64::new(0),
            what: [AtomicU64::new(0), AtomicU64::new(0)],
        }
    }

    /// The state that follows `state`, with a new size.
    const fn next(state: u64, size: u64) -> u64 {
        size << 16 | state.wrapping_add(1) & CHANGES
    }

    /// Only by the holder of the management lock, of a free slot.
    fn fill(&self, range: &Moderated) {
        // Whoever sees one of the new fields sees that the slot had been freed: that store was before this fence.
        fence(Ordering::Release);
        self.start.store(range.start, Ordering::Relaxed);
        let [first, second] = range.what.encode();
        let [first_slot, second_slot] = &self.what;
        first_slot.store(first, Ordering::Relaxed);
        second_slot.store(second, Ordering::Relaxed);
        let state = self.state.load(Ordering::Relaxed);
        self.state
            .store(Self::next(state, range.size), Ordering::Release);
    }

    /// Only by the holder of the management lock.
    fn free(&self) {
        let state = self.state.load(Ordering::Relaxed);
        self.state.store(Self::next(state, 0), Ordering::Release);
    }

    fn is_free(&self) -> bool {
        self.state.load(Ordering::Acquire) & !CHANGES == 0
    }

    /// The content, if it is not a free slot. `Err`: it changed meanwhile.
    fn read(&self) -> Result<Option<Moderated>, ()> {
        let state = self.state.load(Ordering::Acquire);
        let size = state >> 16;
        if size == 0 {
            return Ok(None);
        }
        let start = self.start.load(Ordering::Relaxed);
        let [first, second] = &self.what;
        let words = [
            first.load(Ordering::Relaxed),
            second.load(Ordering::Relaxed),
        ];
        fence(Ordering::Acquire);
        if self.state.load(Ordering::Relaxed) != state {
            return Err(());
        }
        Ok(What::decode(words).map(|what| Moderated { start, size, what }))
    }
}

/// The moderated ranges of one cell.
#[derive(Debug)]
pub struct Table {
    slots: [Slot; MAX_RANGES],
    /// Slots from this one on were never used.
    used: AtomicUsize,
}

impl Table {
    const fn new() -> Self {
        Self {
            slots: [const { Slot::new() }; MAX_RANGES],
            used: AtomicUsize::new(0),
        }
    }

    fn slots(&self) -> impl Iterator<Item = &Slot> {
        let used = self.used.load(Ordering::Acquire);
        self.slots.iter().take(used)
    }

    /// The range that `address` is in. Ranges that overlap: the one that was added first, as long as none was removed.
    #[must_use]
    pub fn find(&self, address: u64) -> Lookup {
        for slot in self.slots() {
            match slot.read() {
                Ok(Some(range)) if address.wrapping_sub(range.start) < range.size => {
                    return Lookup::Found(range);
                }
                Ok(_) => {}
                Err(()) => return Lookup::Changing,
            }
        }
        Lookup::Nothing
    }

    /// Whether this range is in the table, as it is.
    #[must_use]
    pub fn contains(&self, range: &Moderated) -> bool {
        self.slots().any(|slot| slot.read() == Ok(Some(*range)))
    }

    /// Adds a range. Only by the holder of the management lock, or at launch.
    ///
    /// # Errors
    /// When there is no room; nothing has changed then.
    pub fn add(&self, range: &Moderated) -> Result<(), TableFull> {
        let free = self
            .slots
            .iter()
            .enumerate()
            .find(|(_, slot)| slot.is_free());
        let (index, slot) = free.ok_or(TableFull)?;
        slot.fill(range);
        self.used
            .fetch_max(index.wrapping_add(1), Ordering::Release);
        Ok(())
    }

    /// Removes the ranges that meet the condition. Only by the holder of the management lock.
    pub fn remove(&self, condition: impl Fn(&Moderated) -> bool) {
        for slot in self.slots() {
            if let Ok(Some(range)) = slot.read()
                && condition(&range)
            {
                slot.free();
            }
        }
    }
}

static TABLES: [Table; MAX_CELLS] = [const { Table::new() }; MAX_CELLS];

/// The moderated ranges of the cell `id`.
#[must_use]
pub fn table(id: u32) -> Option<&'static Table> {
    TABLES.get(id as usize)
}

/// The moderated range of the cell `id` that `address` is in.
#[must_use]
pub fn find(id: u32, address: u64) -> Lookup {
    table(id).map_or(Lookup::Nothing, |table| table.find(address))
}

#[cfg(test)]
#[path = "moderated_tests.rs"]
mod tests;
