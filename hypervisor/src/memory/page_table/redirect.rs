//! Redirecting a hole to a scratch page, for a write that can't be stepped over.
//!
//! Like far windows this needs no lock: one compare-and-swap replaces one entry that makes a hole by another that makes
//! one, so for the rest of the engine the hole stays a hole.
#![forbid(unsafe_code)]

use core::sync::atomic::Ordering;

use super::format::{ADDRESS_MASK, Format, HOLE};
use super::tables::{Reserve, TableMemory, Tables, fill, read};
use super::update::{index, is_own_table, is_present, target};
use super::{Access, Attributes, PageTable};
use crate::memory::address::{Address, HostPhysical};
use crate::memory::frames::OutOfFrames;
use crate::memory::memory_types::MemoryType;

/// A writable page, and tables of which every entry leads to it, as large as a hole can be.
#[derive(Clone, Copy, Debug)]
pub struct Scratch {
    pub(super) page: HostPhysical,
    table: HostPhysical,
    directory: HostPhysical,
}

impl Scratch {
    /// Takes three frames, or none.
    ///
    /// # Errors
    /// When there are none.
    pub fn new<F: Format, T: Tables>(tables: &mut T) -> Result<Self, OutOfFrames> {
        let mut frames = Reserve::take(tables, 3)?;
        let scratch = Self {
            page: frames.pop(tables)?,
            table: frames.pop(tables)?,
            directory: frames.pop(tables)?,
        };
        fill(tables, scratch.page, 0, 0);
        fill(tables, scratch.table, scratch.entry::<F>(1), 0);
        fill(tables, scratch.directory, scratch.entry::<F>(2), 0);
        Ok(scratch)
    }

    fn entry<F: Format>(self, level: u32) -> u64 {
        let writable = Attributes::new(Access::READ.union(Access::WRITE), MemoryType::WriteBack);
        HOLE | match level {
            1 => self.page.as_u64() & ADDRESS_MASK | F::leaf(writable),
            2 => self.table.as_u64() & ADDRESS_MASK | F::TABLE,
            _ => self.directory.as_u64() & ADDRESS_MASK | F::TABLE,
        }
    }
}

impl<F: Format> PageTable<F> {
    /// Makes the hole at `address` writable: what is written goes to the scratch page. `false`: there is no hole. The
    /// caller flushes its own translations; other processors that know the old entry come back here and do the same.
    pub fn redirect_hole<M: TableMemory>(
        &self,
        memory: &M,
        address: F::Input,
        scratch: Scratch,
    ) -> bool {
        if !F::reaches(address, self.address_bits()) {
            return false;
        }
        let mut table = self.root;
        let mut level = self.levels;
        while level > 0 {
            let slot = index(address.number(), level);
            let entry = read(memory, table, slot);
            if entry & HOLE != 0 {
                let Some(place) = memory.entries(table).get(slot) else {
                    return false;
                };
                // Lost against another processor: it has redirected the hole or filled it. Either way the guest tries again.
                let _ = place.compare_exchange(
                    entry,
                    scratch.entry::<F>(level),
                    Ordering::AcqRel,
                    Ordering::Acquire,
                );
                return true;
            }
            if !is_present::<F>(entry) || level == 1 || !is_own_table::<F>(entry, level) {
                return false;
            }
            table = target(entry);
            level = level.wrapping_sub(1);
        }
        false
    }

    /// The same page table once more, for the lock-free operations ([`Self::install_far`], [`Self::redirect_hole`]).
    #[must_use]
    pub const fn alias(&self) -> Self {
        Self {
            root: self.root,
            levels: self.levels,
            limits: self.limits,
            holes: self.holes,
            format: core::marker::PhantomData,
        }
    }
}
