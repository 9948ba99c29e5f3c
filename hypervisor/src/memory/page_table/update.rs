//! One change of a range: which tables it takes, and making it.
//!
//! Invariant: [`Update::count_frames`] and [`Update::apply`] take the same turns, so the frames counted are exactly those
//! that the change takes. A table is filled, and changed inside, before an entry leads to it.
#![forbid(unsafe_code)]

use core::sync::atomic::Ordering;

use super::format::{ADDRESS_MASK, Format, HOLE, LARGE};
use super::tables::{ENTRIES, Reserve, Tables, fill, read, write};
use super::{Holes, LEVEL_BITS, Limits, MAX_LEVELS};
use crate::memory::address::{HostPhysical, PAGE_SHIFT};
use crate::memory::frames::OutOfFrames;

/// Index of a table's last entry.
const LAST: usize = ENTRIES - 1;

/// What a range shall hold.
#[derive(Clone, Copy)]
pub(super) enum Content {
    /// Nothing.
    Empty,
    /// Memory: at address a lies a + `delta`.
    Leaf { delta: u64, bits: u64 },
    /// The hole page.
    Hole(Holes),
}

/// Whether tables are kept although a larger entry would do.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Merge {
    /// Tables that larger entries replace go back to the pool.
    Merge,
    /// No table that exists goes.
    KeepTables,
}

/// Number of the lowest bit of an address that picks an entry at `level`; level 1 is the lowest.
#[inline]
pub(super) const fn shift(level: u32) -> u32 {
    PAGE_SHIFT.wrapping_add(LEVEL_BITS.wrapping_mul(level.wrapping_sub(1)))
}

/// Bytes that an entry at `level` spans.
#[inline]
pub(super) const fn span(level: u32) -> u64 {
    1u64.wrapping_shl(shift(level))
}

/// Index of the entry for `address` at `level`.
#[inline]
pub(super) const fn index(address: u64, level: u32) -> usize {
    (address.wrapping_shr(shift(level)) as usize) % ENTRIES
}

#[inline]
pub(super) const fn is_present<F: Format>(entry: u64) -> bool {
    entry & F::PRESENT != 0
}

/// Whether the entry leads to a table that belongs to this page table alone.
#[inline]
pub(super) const fn is_own_table<F: Format>(entry: u64, level: u32) -> bool {
    level > 1 && is_present::<F>(entry) && entry & (LARGE | HOLE) == 0
}

/// The table that an entry leads to.
#[inline]
pub(super) const fn target(entry: u64) -> HostPhysical {
    HostPhysical::new(entry & ADDRESS_MASK)
}

/// Bit 7 as a leaf at `level` has it.
#[inline]
const fn large(level: u32) -> u64 {
    if level > 1 { LARGE } else { 0 }
}

/// A part of a range that one entry spans.
struct Slot {
    index: usize,
    first: u64,
    last: u64,
    whole: bool,
}

/// The entries of one table that the range from `first` to `last` touches.
struct Slots {
    level: u32,
    next: Option<u64>,
    last: u64,
}

impl Iterator for Slots {
    type Item = Slot;

    #[inline]
    fn next(&mut self) -> Option<Slot> {
        let first = self.next?;
        let below = span(self.level).wrapping_sub(1);
        let end = first | below;
        let last = end.min(self.last);
        self.next = if last == self.last {
            None
        } else {
            last.checked_add(1)
        };
        Some(Slot {
            index: index(first, self.level),
            first,
            last,
            whole: first & below == 0 && last == end,
        })
    }
}

/// The change of a range.
pub(super) struct Update<'t, F, T> {
    tables: &'t mut T,
    content: Content,
    merge: Merge,
    limits: Limits,
    /// The highest level at which the content fits into one entry.
    highest: u32,
    /// Whether an entry was changed that processors may know.
    pub(super) changed: bool,
    format: core::marker::PhantomData<F>,
}

impl<'t, F: Format, T: Tables> Update<'t, F, T> {
    pub(super) fn new(tables: &'t mut T, content: Content, merge: Merge, limits: Limits) -> Self {
        let highest = match content {
            Content::Empty => MAX_LEVELS,
            Content::Hole(_) => Holes::LEVELS,
            Content::Leaf { delta, bits } => {
                let mut level = limits.of::<F>(bits);
                while level > 1 && delta & span(level).wrapping_sub(1) != 0 {
                    level = level.wrapping_sub(1);
                }
                level
            }
        };
        Self {
            tables,
            content,
            merge,
            limits,
            highest,
            changed: false,
            format: core::marker::PhantomData,
        }
    }

    /// Makes the change from `first` to `last` below the table `root`, or changes nothing.
    pub(super) fn run(
        &mut self,
        root: HostPhysical,
        levels: u32,
        first: u64,
        last: u64,
    ) -> Result<(), OutOfFrames> {
        let needed = self.count_frames(root, levels, first, last);
        let mut reserve = Reserve::take(self.tables, needed)?;
        let result = self.apply(&mut reserve, root, levels, first, last);
        reserve.give_back(self.tables);
        result
    }

    /// Frames that the change from `first` to `last` takes in `table`.
    pub(super) fn count_frames(
        &self,
        table: HostPhysical,
        level: u32,
        first: u64,
        last: u64,
    ) -> usize {
        let mut frames = 0usize;
        if level == 1 {
            return frames;
        }
        for slot in slots(level, first, last) {
            let old = read(self.tables, table, slot.index);
            if self.is_there(old, slot.first, level) || self.fits(&slot, old, level) {
                continue;
            }
            let below = level.wrapping_sub(1);
            frames = frames.saturating_add(if is_own_table::<F>(old, level) {
                self.count_frames(target(old), below, slot.first, slot.last)
            } else {
                self.count_fresh(below, slot.first, slot.last)
            });
        }
        frames
    }

    /// Frames of a new table at `level` and of those below it.
    fn count_fresh(&self, level: u32, first: u64, last: u64) -> usize {
        let mut frames = 1usize;
        if level > 1 {
            for slot in slots(level, first, last) {
                if !(slot.whole && level <= self.highest) {
                    let below = self.count_fresh(level.wrapping_sub(1), slot.first, slot.last);
                    frames = frames.saturating_add(below);
                }
            }
        }
        frames
    }

    fn apply(
        &mut self,
        reserve: &mut Reserve,
        table: HostPhysical,
        level: u32,
        first: u64,
        last: u64,
    ) -> Result<(), OutOfFrames> {
        if level == 1 {
            self.apply_to_pages(table, first, last);
            return Ok(());
        }
        for slot in slots(level, first, last) {
            let old = read(self.tables, table, slot.index);
            if self.is_there(old, slot.first, level) {
                continue;
            }
            if self.fits(&slot, old, level) {
                self.replace(table, slot.index, level, old, self.entry(slot.first, level));
                continue;
            }
            let below = level.wrapping_sub(1);
            if is_own_table::<F>(old, level) {
                let child = target(old);
                self.apply(reserve, child, below, slot.first, slot.last)?;
                if let Some(merged) = self.merged(child, below) {
                    self.set(table, slot.index, old, merged);
                    self.tables.retire(child);
                }
            } else {
                let child = reserve.pop(self.tables)?;
                if slot.whole && below <= self.highest {
                    // All of the table is new; had it fitted into one entry, it would be one.
                    let entry = self.entry(slot.first, below);
                    fill(self.tables, child, entry, self.step(below));
                    self.set(table, slot.index, old, child.as_u64() | F::TABLE);
                    continue;
                }
                let (entry, step) = self.parts(old, below);
                fill(self.tables, child, entry, step);
                self.apply(reserve, child, below, slot.first, slot.last)?;
                if let Some(merged) = self.merged(child, below) {
                    self.tables.free(child);
                    self.set(table, slot.index, old, merged);
                } else {
                    self.set(table, slot.index, old, child.as_u64() | F::TABLE);
                }
            }
        }
        Ok(())
    }

    /// [`Self::apply`] for a table of the lowest level, where the content always fits. Most of the work of a change is
    /// done here when pages are small.
    fn apply_to_pages(&mut self, table: HostPhysical, first: u64, last: u64) {
        let step = self.step(1);
        // A hole is one whichever page it shows.
        let compared = match self.content {
            Content::Leaf { .. } => !F::HARDWARE_BITS,
            Content::Empty => F::PRESENT,
            Content::Hole(_) => HOLE,
        };
        let mut entry = self.entry(first, 1);
        let pages = index(first, 1)..=index(last, 1);
        let mut changed = 0;
        for slot in self.tables.entries(table).get(pages).unwrap_or_default() {
            let old = slot.load(Ordering::Relaxed);
            if (old ^ entry) & compared != 0 {
                slot.store(entry, Ordering::Release);
                changed |= old;
            }
            entry = entry.wrapping_add(step);
        }
        self.changed |= is_present::<F>(changed);
    }

    /// Whether the content fits into one entry that may take the place of `old`.
    #[inline]
    fn fits(&self, slot: &Slot, old: u64, level: u32) -> bool {
        slot.whole
            && level <= self.highest
            && (self.merge == Merge::Merge || !is_own_table::<F>(old, level))
    }

    /// The entry that expresses the content at `address`.
    #[inline]
    fn entry(&self, address: u64, level: u32) -> u64 {
        match self.content {
            Content::Empty => 0,
            Content::Leaf { delta, bits } => address.wrapping_add(delta) | bits | large(level),
            Content::Hole(holes) => holes.entry(level),
        }
    }

    /// What neighbouring entries of the content differ by.
    #[inline]
    fn step(&self, level: u32) -> u64 {
        match self.content {
            Content::Leaf { .. } => span(level),
            Content::Empty | Content::Hole(_) => 0,
        }
    }

    /// Whether an entry that is no table of its own says already what the content says, for all of its span.
    #[inline]
    fn is_there(&self, old: u64, address: u64, level: u32) -> bool {
        if is_own_table::<F>(old, level) {
            return false;
        }
        match self.content {
            Content::Empty => !is_present::<F>(old),
            Content::Hole(_) => old & HOLE != 0,
            Content::Leaf { .. } => {
                let start = address & !span(level).wrapping_sub(1);
                // An entry that is not aligned to `level` can't be equal to a large leaf.
                old & !F::HARDWARE_BITS == self.entry(start, level)
            }
        }
    }

    /// First entry and step of a table at `level` that says what the entry `old`, one level up, says.
    #[inline]
    fn parts(&self, old: u64, level: u32) -> (u64, u64) {
        if !is_present::<F>(old) {
            (0, 0)
        } else if old & HOLE != 0 {
            // A shared table holds what all its parts are.
            (read(self.tables, target(old), 0), 0)
        } else {
            (old & !LARGE | large(level), span(level))
        }
    }

    /// Writes an entry and gives back the tables that the old one led to.
    fn replace(&mut self, table: HostPhysical, index: usize, level: u32, old: u64, new: u64) {
        self.set(table, index, old, new);
        if is_own_table::<F>(old, level) {
            retire_tables::<F, T>(self.tables, target(old), level.wrapping_sub(1));
        }
    }

    #[inline]
    fn set(&mut self, table: HostPhysical, index: usize, old: u64, new: u64) {
        if old != new {
            write(self.tables, table, index, new);
            self.changed |= is_present::<F>(old);
        }
    }

    /// The one entry, one level up, that says what all entries of `table` say, if there is one.
    fn merged(&self, table: HostPhysical, level: u32) -> Option<u64> {
        if self.merge == Merge::KeepTables {
            return None;
        }
        let meaning = !F::HARDWARE_BITS;
        let first = read(self.tables, table, 0) & meaning;
        let (merged, step) = if !is_present::<F>(first) {
            (0, 0)
        } else if is_own_table::<F>(first, level) || first & HOLE != 0 {
            return None;
        } else {
            let up = level.wrapping_add(1);
            let unaligned = first & ADDRESS_MASK & span(up).wrapping_sub(1) != 0;
            if unaligned || up > self.limits.of::<F>(first) {
                return None;
            }
            (first | LARGE, span(level))
        };
        // The last entry tells most tables apart, since changes begin at the front.
        let end = first.wrapping_add(step.wrapping_mul(LAST as u64));
        if read(self.tables, table, LAST) & meaning != end {
            return None;
        }
        let mut expected = first;
        for slot in self.tables.entries(table) {
            if slot.load(Ordering::Relaxed) & meaning != expected {
                return None;
            }
            expected = expected.wrapping_add(step);
        }
        Some(merged)
    }
}

#[inline]
fn slots(level: u32, first: u64, last: u64) -> Slots {
    Slots {
        level,
        next: Some(first),
        last,
    }
}

/// Gives back `table` and all tables below it.
pub(super) fn retire_tables<F: Format, T: Tables>(tables: &mut T, table: HostPhysical, level: u32) {
    if level > 1 {
        for index in 0..ENTRIES {
            let entry = read(tables, table, index);
            if is_own_table::<F>(entry, level) {
                retire_tables::<F, T>(tables, target(entry), level.wrapping_sub(1));
            }
        }
    }
    tables.retire(table);
}
