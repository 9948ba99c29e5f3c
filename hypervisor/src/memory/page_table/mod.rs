//! One engine for all page tables: the hypervisor's own and those that translate guests' memory.
//!
//! A [`PageTable`] maps ranges with the largest leaves that fit, splits larger leaves, and merges tables back into one
//! leaf where their entries have become alike, so that undoing a change gives back the frames that it took.
//!
//! Invariants:
//! - Processors may walk the table while it changes. Each live entry changes by one 64-bit store, and a table is complete
//!   before an entry leads to it; what a change does not name translates the same all the while.
//! - A change takes all frames that it needs before it moves anything. When they are not to be had it changes nothing.
//! - **The way back needs no frames.** [`PageTable::map_hole`] and [`PageTable::map_keeping_tables`] never remove a table
//!   and never merge. So after `map_hole` of a range, [`PageTable::map`] of the same range with what it held before (or
//!   [`PageTable::unmap`] where it held nothing) finds each table that it needs: a table on the way there can only have
//!   gone by a merge, and no table merges while it holds a hole. This holds whatever else was mapped or became a hole
//!   outside the range meanwhile. After `map_keeping_tables` the next `map_hole` needs no frames either.
//! - A *hole* is memory that reads as one shared page and can't be written or executed. Large holes are entries to
//!   *shared tables*, which never change; they are marked by a software bit, and count as leaves here: splitting one
//!   copies it into a table of its own, replacing one overwrites the entry.
#![forbid(unsafe_code)]

mod far;
mod format;
mod redirect;
mod tables;
#[cfg(test)]
mod tests;
mod update;

use core::marker::PhantomData;

pub use far::{Far, FarReserve};
pub use format::{Access, Attributes, Ept, Format, Host, LARGE, Npt};
pub use redirect::Scratch;
pub use tables::{ENTRIES, Entries, TableMemory, Tables};

use self::format::{ADDRESS_MASK, HOLE};
use self::tables::{fill, read};
use self::update::{Content, Merge, Update, index, is_present, retire_tables, span};
use super::address::{Address, HostPhysical, PAGE_SIZE, PhysicalRange, Range};
use super::frames::OutOfFrames;
use super::memory_types::MemoryType;

/// Bits of an address that pick an entry of one table.
const LEVEL_BITS: u32 = 9;
/// The most levels of any format.
const MAX_LEVELS: u32 = 5;

/// Size of what a leaf maps.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum LeafSize {
    /// 4 KiB.
    Page4K = 1,
    /// 2 MiB.
    Page2M = 2,
    /// 1 GiB.
    Page1G = 3,
}

impl LeafSize {
    /// Bytes of the page.
    #[inline]
    #[must_use]
    pub const fn bytes(self) -> u64 {
        span(self.level())
    }

    #[inline]
    const fn level(self) -> u32 {
        self as u32
    }
}

/// The largest leaves that a page table may have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Largest leaf of memory that is not executable.
    pub largest: LeafSize,
    /// Largest leaf of executable memory. Processors with the erratum on machine checks from instruction fetches (IA32_ARCH_CAPABILITIES
    /// without `IF_PSCHANGE_MC_NO`) need 4 KiB where the guest is not trusted.
    pub largest_executable: LeafSize,
}

impl Limits {
    /// The same limit for all memory.
    #[must_use]
    pub const fn all(largest: LeafSize) -> Self {
        Self {
            largest,
            largest_executable: largest,
        }
    }

    #[inline]
    fn of<F: Format>(self, bits: u64) -> u32 {
        if F::attributes(bits).access.contains(Access::EXECUTE) {
            self.largest_executable.level()
        } else {
            self.largest.level()
        }
    }
}

/// Why nothing was changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MapError {
    /// The pool has fewer free frames than the change needs.
    OutOfFrames,
    /// An address or the size is not a multiple of 4096.
    Misaligned,
    /// The range exceeds what the tables translate, or the physical address space.
    OutOfReach,
    /// The page table has no hole page.
    NoHolePage,
}

impl From<OutOfFrames> for MapError {
    fn from(_: OutOfFrames) -> Self {
        Self::OutOfFrames
    }
}

/// Whether processors must drop translations after a change.
#[must_use = "processors may go on with the old translations"]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flush {
    /// No processor can know anything that has changed.
    Nothing,
    /// Processors that use the page table must flush its translations, and only then may retired frames be reused.
    Needed,
}

impl Flush {
    /// What two changes need together.
    pub const fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Nothing, Self::Nothing) => Self::Nothing,
            _ => Self::Needed,
        }
    }

    /// Whether a flush is needed.
    #[must_use]
    pub const fn is_needed(self) -> bool {
        matches!(self, Self::Needed)
    }

    /// States that no processor uses the page table yet, or any more.
    pub const fn ignore(self) {}
}

/// What an address leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Translation {
    /// Physical address of the byte.
    pub physical: HostPhysical,
    /// Rights and type.
    pub attributes: Attributes,
    /// Size of the leaf; of a hole, the size of the hole that one entry makes.
    pub size: LeafSize,
    /// Whether this is the hole page.
    pub is_hole: bool,
}

/// The entries that make holes at the lowest three levels.
#[derive(Clone, Copy, Debug)]
struct Holes {
    page: u64,
    table: u64,
    directory: u64,
}

impl Holes {
    /// Levels at which one entry can be a hole.
    const LEVELS: u32 = 3;

    #[inline]
    const fn entry(self, level: u32) -> u64 {
        match level {
            1 => self.page,
            2 => self.table,
            _ => self.directory,
        }
    }
}

/// A page table in the format `F`.
///
/// The methods that take `&mut self` are for one processor at a time.
#[derive(Debug)]
pub struct PageTable<F> {
    root: HostPhysical,
    levels: u32,
    limits: Limits,
    holes: Option<Holes>,
    format: PhantomData<F>,
}

impl<F: Format> PageTable<F> {
    /// An empty page table of `levels` levels (4 or 5).
    ///
    /// # Errors
    /// When there is no frame for the root.
    pub fn new<T: Tables>(
        tables: &mut T,
        levels: u32,
        limits: Limits,
    ) -> Result<Self, OutOfFrames> {
        let root = tables.allocate()?;
        fill(tables, root, 0, 0);
        Ok(Self {
            root,
            levels: levels.clamp(LeafSize::Page1G.level(), MAX_LEVELS),
            limits,
            holes: None,
            format: PhantomData,
        })
    }

    /// Makes `page` (page-aligned; its owner has filled it) the one that holes show, and builds the two shared tables.
    ///
    /// # Errors
    /// When there are no frames for the shared tables.
    pub fn set_hole_page<T: Tables>(
        &mut self,
        tables: &mut T,
        page: HostPhysical,
    ) -> Result<(), OutOfFrames> {
        let table = tables.allocate()?;
        let directory = match tables.allocate() {
            Ok(frame) => frame,
            Err(error) => {
                tables.free(table);
                return Err(error);
            }
        };
        let attributes = Attributes::new(Access::READ, MemoryType::WriteBack);
        let holes = Holes {
            page: page.as_u64() & ADDRESS_MASK | F::leaf(attributes) | HOLE,
            table: table.as_u64() | F::TABLE | HOLE,
            directory: directory.as_u64() | F::TABLE | HOLE,
        };
        fill(tables, table, holes.page, 0);
        fill(tables, directory, holes.table, 0);
        self.holes = Some(holes);
        Ok(())
    }

    /// Address of the topmost table.
    #[inline]
    #[must_use]
    pub const fn root(&self) -> HostPhysical {
        self.root
    }

    /// Number of levels.
    #[inline]
    #[must_use]
    pub const fn levels(&self) -> u32 {
        self.levels
    }

    /// Maps `range` to the physical memory from `physical` on, whatever it held before.
    ///
    /// # Errors
    /// See [`MapError`].
    pub fn map<T: Tables>(
        &mut self,
        tables: &mut T,
        range: Range<F::Input>,
        physical: HostPhysical,
        attributes: Attributes,
    ) -> Result<Flush, MapError> {
        let content = leaf_content::<F>(range, physical, attributes)?;
        self.change(tables, range, content, Merge::Merge)
    }

    /// As [`Self::map`], but no table goes, so that the next [`Self::map_hole`] of the range needs no frames.
    ///
    /// # Errors
    /// See [`MapError`].
    pub fn map_keeping_tables<T: Tables>(
        &mut self,
        tables: &mut T,
        range: Range<F::Input>,
        physical: HostPhysical,
        attributes: Attributes,
    ) -> Result<Flush, MapError> {
        let content = leaf_content::<F>(range, physical, attributes)?;
        self.change(tables, range, content, Merge::KeepTables)
    }

    /// Makes `range` a hole, whatever it held before. No table goes.
    ///
    /// # Errors
    /// See [`MapError`].
    pub fn map_hole<T: Tables>(
        &mut self,
        tables: &mut T,
        range: Range<F::Input>,
    ) -> Result<Flush, MapError> {
        let holes = self.holes.ok_or(MapError::NoHolePage)?;
        self.change(tables, range, Content::Hole(holes), Merge::KeepTables)
    }

    /// Makes `range` lead nowhere.
    ///
    /// # Errors
    /// See [`MapError`].
    pub fn unmap<T: Tables>(
        &mut self,
        tables: &mut T,
        range: Range<F::Input>,
    ) -> Result<Flush, MapError> {
        self.change(tables, range, Content::Empty, Merge::Merge)
    }

    /// As [`Self::unmap`], but no table goes, so that the next [`Self::map`] of the range needs no frames.
    ///
    /// # Errors
    /// See [`MapError`].
    pub fn unmap_keeping_tables<T: Tables>(
        &mut self,
        tables: &mut T,
        range: Range<F::Input>,
    ) -> Result<Flush, MapError> {
        self.change(tables, range, Content::Empty, Merge::KeepTables)
    }

    /// Frames that [`Self::map`] would take now.
    ///
    /// # Errors
    /// See [`MapError`].
    pub fn frames_for_map<T: Tables>(
        &self,
        tables: &mut T,
        range: Range<F::Input>,
        physical: HostPhysical,
        attributes: Attributes,
    ) -> Result<usize, MapError> {
        let content = leaf_content::<F>(range, physical, attributes)?;
        self.count(tables, range, content, Merge::Merge)
    }

    /// Frames that [`Self::map_hole`] would take now.
    ///
    /// # Errors
    /// See [`MapError`].
    pub fn frames_for_hole<T: Tables>(
        &self,
        tables: &mut T,
        range: Range<F::Input>,
    ) -> Result<usize, MapError> {
        let holes = self.holes.ok_or(MapError::NoHolePage)?;
        self.count(tables, range, Content::Hole(holes), Merge::KeepTables)
    }

    /// Where `address` leads to.
    #[must_use]
    pub fn lookup<M: TableMemory>(&self, memory: &M, address: F::Input) -> Option<Translation> {
        if !F::reaches(address, self.address_bits()) {
            return None;
        }
        let number = address.number();
        let mut table = self.root;
        let mut level = self.levels;
        let mut hole = None;
        while level > 0 {
            let entry = read(memory, table, index(number, level));
            if !is_present::<F>(entry) {
                return None;
            }
            let size = match level {
                1 => LeafSize::Page4K,
                2 => LeafSize::Page2M,
                _ => LeafSize::Page1G,
            };
            if entry & HOLE != 0 {
                hole = hole.or(Some(size));
            }
            if level == 1 || entry & LARGE != 0 {
                let offset = span(level).wrapping_sub(1);
                return Some(Translation {
                    physical: HostPhysical::new(entry & ADDRESS_MASK & !offset | number & offset),
                    attributes: F::attributes(entry),
                    size: hole.unwrap_or(size),
                    is_hole: hole.is_some(),
                });
            }
            table = HostPhysical::new(entry & ADDRESS_MASK);
            level = level.wrapping_sub(1);
        }
        None
    }

    /// Gives back all frames of the page table. No processor may use it as its page table any more; the frames are
    /// retired, because translations may still be known.
    pub fn destroy<T: Tables>(self, tables: &mut T) {
        retire_tables::<F, T>(tables, self.root, self.levels);
        if let Some(holes) = self.holes {
            tables.retire(HostPhysical::new(holes.table & ADDRESS_MASK));
            tables.retire(HostPhysical::new(holes.directory & ADDRESS_MASK));
        }
    }

    const fn address_bits(&self) -> u32 {
        update::shift(self.levels.wrapping_add(1))
    }

    fn change<T: Tables>(
        &mut self,
        tables: &mut T,
        range: Range<F::Input>,
        content: Content,
        merge: Merge,
    ) -> Result<Flush, MapError> {
        let Some((first, last)) = self.bounds(range)? else {
            return Ok(Flush::Nothing);
        };
        let mut update = Update::<F, T>::new(tables, content, merge, self.limits);
        update.run(self.root, self.levels, first, last)?;
        Ok(if update.changed {
            Flush::Needed
        } else {
            Flush::Nothing
        })
    }

    fn count<T: Tables>(
        &self,
        tables: &mut T,
        range: Range<F::Input>,
        content: Content,
        merge: Merge,
    ) -> Result<usize, MapError> {
        let Some((first, last)) = self.bounds(range)? else {
            return Ok(0);
        };
        let update = Update::<F, T>::new(tables, content, merge, self.limits);
        Ok(update.count_frames(self.root, self.levels, first, last))
    }

    /// First and last address of a range that these tables can translate; `None` of an empty one.
    fn bounds(&self, range: Range<F::Input>) -> Result<Option<(u64, u64)>, MapError> {
        if !range.is_aligned(PAGE_SIZE) {
            return Err(MapError::Misaligned);
        }
        let Some(last) = range.last() else {
            return Ok(None);
        };
        let bits = self.address_bits();
        let (first, end) = (range.start().number(), last.number());
        // A range whose ends are canonical may still span what lies between the two halves.
        let one_half = (first ^ end) >> 63 == 0;
        if one_half && F::reaches(range.start(), bits) && F::reaches(last, bits) {
            Ok(Some((first, end)))
        } else {
            Err(MapError::OutOfReach)
        }
    }
}

fn leaf_content<F: Format>(
    range: Range<F::Input>,
    physical: HostPhysical,
    attributes: Attributes,
) -> Result<Content, MapError> {
    if !physical.is_aligned(PAGE_SIZE) {
        return Err(MapError::Misaligned);
    }
    PhysicalRange::new(physical, range.size()).ok_or(MapError::OutOfReach)?;
    Ok(Content::Leaf {
        delta: physical.as_u64().wrapping_sub(range.start().number()),
        bits: F::leaf(attributes),
    })
}
