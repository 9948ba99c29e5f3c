//! Which interrupts a device may raise, and where they go: the interrupt remapping table.
#![forbid(unsafe_code)]

use core::sync::atomic::Ordering;

use super::Invalidation;
use super::definitions::{InterruptHigh, InterruptLow, SourceId, delivery};
use crate::memory::address::HostPhysical;
use crate::memory::page_table::TableMemory;

/// Entries in one page of the table.
pub const ENTRIES_PER_PAGE: u32 = 256;
/// The most entries of a table.
pub const MOST_ENTRIES: u32 = 1 << 16;

/// Vectors below are refused by local APICs.
const LOWEST_VECTOR: u8 = 16;
/// All bits of the source id are compared.
const WHOLE_SOURCE: u8 = 1;

/// Why nothing was changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InterruptError {
    /// The table has no such entry.
    NoSuchEntry,
    /// The entry is in use.
    InUse,
    /// The entry is not in use, or another device's.
    NotInUse,
    /// The vector is one that no APIC takes.
    Vector,
    /// The destination is no CPU of the device's owner.
    Destination,
    /// The destination needs more bits than there are without x2APIC mode.
    Range,
}

/// An interrupt of a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Interrupt {
    /// The device.
    pub source: SourceId,
    /// The vector at the CPU.
    pub vector: u8,
    /// Id of the CPU's APIC.
    pub destination: u32,
    /// Level-triggered: of an IOAPIC.
    pub level_triggered: bool,
    /// A non-maskable interrupt, which needs no vector.
    pub nmi: bool,
}

/// An interrupt remapping table: pages that its owner has cleared, and that lie one behind the other.
#[derive(Debug)]
pub struct Interrupts {
    base: HostPhysical,
    entries: u32,
    x2apic: bool,
}

impl Interrupts {
    /// The table at `base` with `entries` entries, a power of two of at least one page's; `None`: there is no such table.
    #[must_use]
    pub const fn new(base: HostPhysical, entries: u32, x2apic: bool) -> Option<Self> {
        let bytes = (entries as u64).wrapping_mul(16);
        let fits =
            entries.is_power_of_two() && entries >= ENTRIES_PER_PAGE && entries <= MOST_ENTRIES;
        if fits && base.is_aligned(4096) && base.checked_add(bytes).is_some() {
            Some(Self {
                base,
                entries,
                x2apic,
            })
        } else {
            None
        }
    }

    /// Value of the register that tells the IOMMU where the table is.
    #[must_use]
    pub const fn address_register(&self) -> u64 {
        let size = self.entries.trailing_zeros().wrapping_sub(1);
        let extended = if self.x2apic { 1 << 11 } else { 0 };
        self.base.as_u64() | extended | size as u64
    }

    /// The page that has the entry, and its first word there.
    fn place(&self, index: u16) -> Option<(HostPhysical, usize)> {
        if u32::from(index) >= self.entries {
            return None;
        }
        let page = u64::from(index) >> 8;
        let table = self.base.checked_add(page << 12)?;
        Some((table, usize::from(index & 0xff).wrapping_mul(2)))
    }

    fn words<M: TableMemory>(&self, memory: &M, index: u16) -> Option<[u64; 2]> {
        let (table, at) = self.place(index)?;
        let entries = memory.entries(table);
        let word = |at: usize| entries.get(at).map(|slot| slot.load(Ordering::Acquire));
        Some([word(at)?, word(at.wrapping_add(1))?])
    }

    fn store<M: TableMemory>(&self, memory: &M, index: u16, half: usize, value: u64) {
        if let Some((table, at)) = self.place(index)
            && let Some(slot) = memory.entries(table).get(at.wrapping_add(half))
        {
            slot.store(value, Ordering::Release);
            memory.written(table, at.wrapping_add(half));
        }
    }

    /// How many entries it has.
    #[must_use]
    pub const fn entries(&self) -> u32 {
        self.entries
    }

    /// Whether destinations have 32 bits.
    #[must_use]
    pub const fn is_x2apic(&self) -> bool {
        self.x2apic
    }

    /// Makes an entry what it shall be: in one step where the device stays the same, else not present in between. Whether
    /// it has changed.
    pub fn replace<M: TableMemory>(&mut self, memory: &M, index: u16, entry: [u64; 2]) -> bool {
        let Some(before) = self.words(memory, index) else {
            return false;
        };
        if before == entry {
            return false;
        }
        let ([low, high], [_, high_before]) = (entry, before);
        if high != high_before {
            self.store(memory, index, 0, 0);
            self.store(memory, index, 1, high);
        }
        self.store(memory, index, 0, low);
        true
    }

    /// What an entry lets through.
    #[must_use]
    pub fn interrupt<M: TableMemory>(&self, memory: &M, index: u16) -> Option<Interrupt> {
        let [low, high] = self.words(memory, index)?;
        let (low, high) = (InterruptLow::from_bits(low), InterruptHigh::from_bits(high));
        low.present().then(|| Interrupt {
            source: SourceId(high.source()),
            vector: low.vector(),
            destination: if self.x2apic {
                low.destination()
            } else {
                low.destination() >> 8
            },
            level_triggered: low.level_triggered(),
            nmi: low.delivery_mode() == delivery::NMI,
        })
    }

    /// The entry that lets an interrupt through.
    ///
    /// # Errors
    /// When there is no such.
    pub fn encode(&self, interrupt: Interrupt) -> Result<[u64; 2], InterruptError> {
        if !interrupt.nmi && interrupt.vector < LOWEST_VECTOR {
            return Err(InterruptError::Vector);
        }
        let destination = if self.x2apic {
            interrupt.destination
        } else if interrupt.destination < 0xff {
            interrupt.destination << 8
        } else {
            return Err(InterruptError::Range);
        };
        let high = InterruptHigh::new()
            .with_source(interrupt.source.0)
            .with_validation(WHOLE_SOURCE);
        let low = InterruptLow::new()
            .with_present(true)
            .with_level_triggered(interrupt.level_triggered)
            .with_delivery_mode(if interrupt.nmi {
                delivery::NMI
            } else {
                delivery::FIXED
            })
            .with_vector(interrupt.vector)
            .with_destination(destination);
        Ok([low.into_bits(), high.into_bits()])
    }

    /// Lets an interrupt through by an entry that is not in use. `is_own` tells the APIC ids of the owner's CPUs.
    ///
    /// # Errors
    /// See [`InterruptError`].
    pub fn set<M: TableMemory>(
        &mut self,
        memory: &M,
        index: u16,
        interrupt: Interrupt,
        is_own: impl Fn(u32) -> bool,
    ) -> Result<Invalidation, InterruptError> {
        let [low, _] = self
            .words(memory, index)
            .ok_or(InterruptError::NoSuchEntry)?;
        if InterruptLow::from_bits(low).present() {
            return Err(InterruptError::InUse);
        }
        if !is_own(interrupt.destination) {
            return Err(InterruptError::Destination);
        }
        let [low, high] = self.encode(interrupt)?;
        self.store(memory, index, 1, high);
        self.store(memory, index, 0, low);
        Ok(Invalidation::Interrupt(index))
    }

    /// Blocks the interrupt of an entry that is this device's.
    ///
    /// # Errors
    /// See [`InterruptError`].
    pub fn clear<M: TableMemory>(
        &mut self,
        memory: &M,
        index: u16,
        source: SourceId,
    ) -> Result<Invalidation, InterruptError> {
        let present = self.interrupt(memory, index);
        if present.is_none_or(|interrupt| interrupt.source != source) {
            return Err(InterruptError::NotInUse);
        }
        self.store(memory, index, 0, 0);
        self.store(memory, index, 1, 0);
        Ok(Invalidation::Interrupt(index))
    }
}
