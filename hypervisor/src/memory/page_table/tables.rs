//! The memory that page tables live in, and frames set aside before a change.
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU64, Ordering};

use crate::memory::address::HostPhysical;
use crate::memory::frames::OutOfFrames;

/// Entries of a table, in every format and at every level.
pub const ENTRIES: usize = 512;

/// The entries of one table. They are atomic because processors walk the tables while they are changed.
pub type Entries = [AtomicU64; ENTRIES];

/// Access to tables by their physical address.
pub trait TableMemory {
    /// The entries of the table at `table`, which is the address of a root, a frame that [`Tables::allocate`] gave, or
    /// one of a [`super::FarReserve`].
    fn entries(&self, table: HostPhysical) -> &Entries;

    /// The entry `index` of a table was written, or, of a new table, the eight from there on. Whoever walks tables without
    /// looking into the processor's caches must be shown it.
    #[inline]
    fn written(&self, table: HostPhysical, index: usize) {
        let _ = (table, index);
    }
}

/// Frames for new tables.
pub trait Tables: TableMemory {
    /// Takes a frame, whatever it holds.
    ///
    /// # Errors
    /// When no frame is free.
    fn allocate(&mut self) -> Result<HostPhysical, OutOfFrames>;
    /// Gives back a frame that was never part of a table that a processor could walk.
    fn free(&mut self, frame: HostPhysical);
    /// Gives back a frame that processors may still walk until they have flushed their translations.
    fn retire(&mut self, frame: HostPhysical);
}

#[inline]
pub(super) fn read<M: TableMemory>(memory: &M, table: HostPhysical, index: usize) -> u64 {
    memory
        .entries(table)
        .get(index % ENTRIES)
        .map_or(0, |entry| entry.load(Ordering::Acquire))
}

/// One 64-bit store: a processor that walks the table sees the old entry or the new one. What the new one leads to is
/// seen whole because x86 keeps stores in order, and the compiler does because of `Release`.
#[inline]
pub(super) fn write<M: TableMemory>(memory: &M, table: HostPhysical, index: usize, entry: u64) {
    if let Some(slot) = memory.entries(table).get(index % ENTRIES) {
        slot.store(entry, Ordering::Release);
        memory.written(table, index % ENTRIES);
    }
}

/// Writes `first`, `first + step`, … to all entries of a table that is not linked yet.
#[inline]
pub(super) fn fill<M: TableMemory>(memory: &M, table: HostPhysical, first: u64, step: u64) {
    let mut entry = first;
    // In groups, which the compiler unrolls: this is most of the work of a new table.
    let (groups, _) = memory.entries(table).as_chunks::<8>();
    for (number, group) in groups.iter().enumerate() {
        for slot in group {
            slot.store(entry, Ordering::Relaxed);
            entry = entry.wrapping_add(step);
        }
        memory.written(table, number.wrapping_mul(8));
    }
}

/// Frames set aside, so that a change that has begun can't run out of them. They are chained through their first words.
#[derive(Debug)]
pub(super) struct Reserve {
    head: Option<HostPhysical>,
}

impl Reserve {
    /// Sets `count` frames aside, or none.
    pub(super) fn take<T: Tables>(tables: &mut T, count: usize) -> Result<Self, OutOfFrames> {
        let mut reserve = Self { head: None };
        for _ in 0..count {
            match tables.allocate() {
                Ok(frame) => {
                    // No frame is at address 0: the chain's end.
                    let next = reserve.head.unwrap_or(HostPhysical::ZERO);
                    write(tables, frame, 0, next.as_u64());
                    reserve.head = Some(frame);
                }
                Err(error) => {
                    reserve.give_back(tables);
                    return Err(error);
                }
            }
        }
        Ok(reserve)
    }

    /// Takes one of the frames.
    #[inline]
    pub(super) fn pop<T: Tables>(&mut self, tables: &T) -> Result<HostPhysical, OutOfFrames> {
        let frame = self.head.ok_or(OutOfFrames)?;
        let next = HostPhysical::new(read(tables, frame, 0));
        self.head = (next != HostPhysical::ZERO).then_some(next);
        Ok(frame)
    }

    /// Gives back what is left.
    pub(super) fn give_back<T: Tables>(mut self, tables: &mut T) {
        while let Ok(frame) = self.pop(tables) {
            tables.free(frame);
        }
    }
}
