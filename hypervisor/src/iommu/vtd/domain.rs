//! A domain: the memory that devices with one owner reach, in second-level tables on the common engine.
#![forbid(unsafe_code)]

use super::Invalidation;
use super::definitions::{
    Capability, DomainId, SECOND_LEVEL_ACCESSED, SECOND_LEVEL_DIRTY, SECOND_LEVEL_READ,
    SECOND_LEVEL_WRITE,
};
use crate::memory::address::{Address, GuestPhysical, GuestRange, HostPhysical};
use crate::memory::frames::OutOfFrames;
use crate::memory::memory_types::MemoryType;
use crate::memory::page_table::{
    Access, Attributes, Flush, Format, LeafSize, Limits, MapError, PageTable, Tables, Translation,
};

/// Second-level tables: "Second-Level Paging Entries". They know neither execution nor memory types.
#[derive(Clone, Copy, Debug)]
pub struct SecondLevel;

impl Format for SecondLevel {
    type Input = GuestPhysical;
    const PRESENT: u64 = SECOND_LEVEL_READ | SECOND_LEVEL_WRITE;
    const TABLE: u64 = SECOND_LEVEL_READ | SECOND_LEVEL_WRITE;
    const HARDWARE_BITS: u64 = SECOND_LEVEL_ACCESSED | SECOND_LEVEL_DIRTY;

    fn leaf(attributes: Attributes) -> u64 {
        if attributes.access.contains(Access::WRITE) {
            SECOND_LEVEL_READ | SECOND_LEVEL_WRITE
        } else {
            SECOND_LEVEL_READ
        }
    }

    fn attributes(entry: u64) -> Attributes {
        let mut access = Access::READ;
        access.set(Access::WRITE, entry & SECOND_LEVEL_WRITE != 0);
        Attributes::new(access, MemoryType::WriteBack)
    }

    fn reaches(input: GuestPhysical, bits: u32) -> bool {
        input
            .number()
            .checked_shr(bits)
            .is_none_or(|rest| rest == 0)
    }
}

/// Levels of second-level tables.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Width {
    /// 39 bits.
    ThreeLevels = 3,
    /// 48 bits.
    FourLevels = 4,
}

impl Width {
    /// The widest that the IOMMU has, of these two.
    #[must_use]
    pub const fn of(capability: Capability) -> Option<Self> {
        match capability.widths() {
            widths if widths & (1 << 2) != 0 => Some(Self::FourLevels),
            widths if widths & (1 << 1) != 0 => Some(Self::ThreeLevels),
            _ => None,
        }
    }

    /// Its number in a context entry.
    #[must_use]
    pub const fn field(self) -> u8 {
        (self as u8).wrapping_sub(2)
    }
}

/// What an IOMMU can do with second-level tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Abilities {
    /// Levels of the tables.
    pub width: Width,
    /// The largest leaves.
    pub largest: LeafSize,
    /// It remembers entries that are not present, too, and must be told of new ones.
    pub caching_mode: bool,
}

impl Abilities {
    /// What a unit with this capability and one with those abilities both can do. Tables of three levels are only chosen
    /// where the first has no others; whether the second has them is for [`Self::fits`] to say.
    #[must_use]
    pub fn common(first: Capability, second: Self) -> Option<Self> {
        let own = Self::of(first)?;
        let has_width = first.widths() & 1 << (second.width as u8).wrapping_sub(2) != 0;
        let width = if has_width {
            second.width
        } else {
            own.width.min(second.width)
        };
        Some(Self {
            width,
            largest: own.largest.min(second.largest),
            caching_mode: own.caching_mode || second.caching_mode,
        })
    }

    /// Whether a unit with this capability can walk such tables.
    #[must_use]
    pub const fn fits(&self, capability: Capability) -> bool {
        capability.widths() & 1 << (self.width as u8).wrapping_sub(2) != 0
    }

    /// The first address that tables do not reach.
    #[must_use]
    pub const fn end(&self) -> u64 {
        match self.width {
            Width::ThreeLevels => 1 << 39,
            Width::FourLevels => 1 << 48,
        }
    }

    /// Those that the capability register tells; `None`: it has no tables that this engine builds.
    #[must_use]
    pub const fn of(capability: Capability) -> Option<Self> {
        let Some(width) = Width::of(capability) else {
            return None;
        };
        Some(Self {
            width,
            largest: match capability.large_pages() & 3 {
                3 => LeafSize::Page1G,
                1 => LeafSize::Page2M,
                _ => LeafSize::Page4K,
            },
            caching_mode: capability.caching_mode(),
        })
    }
}

/// Devices with one owner, and the memory that they reach. What a device calls an address is the guest-physical address
/// of its owner.
#[derive(Debug)]
pub struct Domain {
    id: DomainId,
    abilities: Abilities,
    table: PageTable<SecondLevel>,
}

impl Domain {
    /// A domain whose devices reach nothing.
    ///
    /// # Errors
    /// When there is no frame for its root.
    pub fn new<T: Tables>(
        tables: &mut T,
        id: DomainId,
        abilities: Abilities,
    ) -> Result<Self, OutOfFrames> {
        let limits = Limits::all(abilities.largest);
        let table = PageTable::new(tables, abilities.width as u32, limits)?;
        Ok(Self {
            id,
            abilities,
            table,
        })
    }

    /// Its number.
    #[must_use]
    pub const fn id(&self) -> DomainId {
        self.id
    }

    /// What the units that walk its tables can do.
    #[must_use]
    pub const fn abilities(&self) -> Abilities {
        self.abilities
    }

    /// Its levels.
    #[must_use]
    pub const fn width(&self) -> Width {
        self.abilities.width
    }

    /// Root of its tables.
    #[must_use]
    pub const fn root(&self) -> HostPhysical {
        self.table.root()
    }

    const fn invalidation(&self, flush: Flush) -> Invalidation {
        if flush.is_needed() {
            Invalidation::Domain(self.id)
        } else {
            Invalidation::Nothing
        }
    }

    /// Lets the devices read `range`, and write where `is_writable`: it leads to the memory from `physical` on.
    ///
    /// # Errors
    /// See [`MapError`]; then nothing has changed.
    pub fn map<T: Tables>(
        &mut self,
        tables: &mut T,
        range: GuestRange,
        physical: HostPhysical,
        is_writable: bool,
    ) -> Result<Invalidation, MapError> {
        let mut access = Access::READ;
        access.set(Access::WRITE, is_writable);
        let attributes = Attributes::new(access, MemoryType::WriteBack);
        let flush = self.table.map(tables, range, physical, attributes)?;
        if self.abilities.caching_mode && !range.is_empty() {
            return Ok(Invalidation::Domain(self.id));
        }
        Ok(self.invalidation(flush))
    }

    /// Makes `range` lead nowhere.
    ///
    /// # Errors
    /// See [`MapError`]; then nothing has changed.
    pub fn unmap<T: Tables>(
        &mut self,
        tables: &mut T,
        range: GuestRange,
    ) -> Result<Invalidation, MapError> {
        let flush = self.table.unmap(tables, range)?;
        Ok(self.invalidation(flush))
    }

    /// The same, so that the way back needs no frames.
    ///
    /// # Errors
    /// See [`MapError`]; then nothing has changed.
    pub fn unmap_keeping_tables<T: Tables>(
        &mut self,
        tables: &mut T,
        range: GuestRange,
    ) -> Result<Invalidation, MapError> {
        let flush = self.table.unmap_keeping_tables(tables, range)?;
        Ok(self.invalidation(flush))
    }

    /// Where `address` leads to.
    #[must_use]
    pub fn lookup<T: Tables>(&self, tables: &T, address: GuestPhysical) -> Option<Translation> {
        self.table.lookup(tables, address)
    }

    /// Gives back its frames. No device is attached to it any more.
    pub fn destroy<T: Tables>(self, tables: &mut T) -> Invalidation {
        self.table.destroy(tables);
        Invalidation::Domain(self.id)
    }
}
