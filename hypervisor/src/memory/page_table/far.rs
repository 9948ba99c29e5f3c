//! Far windows: mappings that a processor adds by itself, at the moment that a guest touches the address.
//!
//! Invariant: nothing that exists changes. An empty entry becomes a window or a table by one compare-and-swap, so any
//! number of processors may do this at once and without locks; the frames come from a reserve that was set aside before,
//! never from the pool. Ranges that [`PageTable::map`] and its like change must not share an entry of any level below
//! the top with far windows.
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU64, Ordering};

use super::format::{Format, LARGE};
use super::tables::{TableMemory, fill, read};
use super::update::{index, is_own_table, is_present, target};
use super::{Attributes, LeafSize, PageTable};
use crate::memory::address::{Address, HostPhysical, PAGE_SHIFT};
use crate::memory::frames::OutOfFrames;

/// What became of a far window.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Far {
    /// The window is there now.
    Installed,
    /// Something was mapped at the address already, perhaps by another processor at the same time.
    Present,
}

/// Frames for the tables of far windows.
#[derive(Debug)]
pub struct FarReserve {
    first: HostPhysical,
    /// A set bit: the frame of that number is free, and filled with zero.
    free: AtomicU64,
}

impl FarReserve {
    /// The most frames of a reserve.
    pub const MAX_FRAMES: u32 = u64::BITS;

    /// A reserve of the `count` frames (at most [`Self::MAX_FRAMES`]) from `first` on, which are nobody else's.
    #[must_use]
    pub fn new<M: TableMemory>(memory: &M, first: HostPhysical, count: u32) -> Self {
        let count = count.min(Self::MAX_FRAMES);
        for number in 0..count {
            fill(memory, frame(first, number), 0, 0);
        }
        Self {
            first,
            free: AtomicU64::new(
                u64::MAX
                    .checked_shr(u64::BITS.wrapping_sub(count))
                    .unwrap_or(0),
            ),
        }
    }

    /// Number of frames that are left.
    #[must_use]
    pub fn available(&self) -> u32 {
        self.free.load(Ordering::Relaxed).count_ones()
    }

    fn take(&self) -> Result<(u32, HostPhysical), OutOfFrames> {
        // Each round that fails means that another processor took a frame, so there are at most as many as frames.
        for _ in 0..Self::MAX_FRAMES {
            let free = self.free.load(Ordering::Relaxed);
            if free == 0 {
                break;
            }
            let number = free.trailing_zeros();
            let bit = 1u64.wrapping_shl(number);
            if self.free.fetch_and(!bit, Ordering::Acquire) & bit != 0 {
                return Ok((number, frame(self.first, number)));
            }
        }
        Err(OutOfFrames)
    }

    fn put_back(&self, number: u32) {
        self.free
            .fetch_or(1u64.wrapping_shl(number), Ordering::Release);
    }
}

fn frame(first: HostPhysical, number: u32) -> HostPhysical {
    HostPhysical::new(first.as_u64().wrapping_add(u64::from(number) << PAGE_SHIFT))
}

impl<F: Format> PageTable<F> {
    /// Maps the window of `size` bytes around `address` to the same-sized one around `physical`, if it is empty.
    ///
    /// No flush is needed: processors do not remember that an entry led nowhere. `size` must be one that the processor
    /// and the limits of this page table permit.
    ///
    /// # Errors
    /// When the reserve has no frame left.
    pub fn install_far<M: TableMemory>(
        &self,
        memory: &M,
        reserve: &FarReserve,
        address: F::Input,
        physical: HostPhysical,
        size: LeafSize,
        attributes: Attributes,
    ) -> Result<Far, OutOfFrames> {
        if !F::reaches(address, self.address_bits()) {
            return Ok(Far::Present);
        }
        let mut table = self.root;
        let mut level = self.levels;
        while level > size.level() {
            let slot = index(address.number(), level);
            let mut entry = read(memory, table, slot);
            if !is_present::<F>(entry) {
                let (number, child) = reserve.take()?;
                let link = child.as_u64() | F::TABLE;
                entry = match exchange(memory, table, slot, link) {
                    Ok(()) => link,
                    Err(other) => {
                        reserve.put_back(number);
                        other
                    }
                };
            }
            if !is_own_table::<F>(entry, level) {
                return Ok(Far::Present);
            }
            table = target(entry);
            level = level.wrapping_sub(1);
        }
        let large = if level > 1 { LARGE } else { 0 };
        let leaf = physical.align_down(size.bytes()).as_u64() | F::leaf(attributes) | large;
        match exchange(memory, table, index(address.number(), level), leaf) {
            Ok(()) => Ok(Far::Installed),
            Err(_) => Ok(Far::Present),
        }
    }
}

/// Puts `entry` into an empty slot, or tells what is there.
fn exchange<M: TableMemory>(
    memory: &M,
    table: HostPhysical,
    slot: usize,
    entry: u64,
) -> Result<(), u64> {
    match memory.entries(table).get(slot) {
        Some(slot) => slot
            .compare_exchange(0, entry, Ordering::AcqRel, Ordering::Acquire)
            .map(|_| ()),
        None => Err(0),
    }
}
