//! Which device is in which domain: the root table and its context tables.
//!
//! What nobody has claimed is in the default domain, if there is one: all buses share one context table that says so. A bus
//! has a table of its own from the first device that is not as the others to the last.
#![forbid(unsafe_code)]

use core::sync::atomic::Ordering;

use super::Invalidation;
use super::definitions::{ContextHigh, ContextLow, DomainId, RootEntry, SourceId};
use super::domain::Domain;
use crate::memory::address::{HostPhysical, PAGE_SHIFT};
use crate::memory::frames::OutOfFrames;
use crate::memory::page_table::{TableMemory, Tables};

/// Why nothing was changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AttachError {
    /// There is no frame for a context table.
    OutOfFrames,
    /// The device is in a domain.
    Attached,
    /// The device is in none.
    NotAttached,
}

impl From<OutOfFrames> for AttachError {
    fn from(_: OutOfFrames) -> Self {
        Self::OutOfFrames
    }
}

/// The domain of a device as its entry says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attached {
    /// Number of the domain.
    pub domain: u16,
    /// Root of its tables.
    pub root: HostPhysical,
}

/// The root table of the devices of a segment.
#[derive(Debug)]
pub struct Devices {
    root: HostPhysical,
    /// The context table of all buses that have none of their own.
    shared: Option<HostPhysical>,
    /// The entry of a device that nobody has claimed.
    default: [u64; 2],
}

fn read<M: TableMemory>(memory: &M, table: HostPhysical, word: usize) -> u64 {
    let slot = memory.entries(table).get(word);
    slot.map_or(0, |slot| slot.load(Ordering::Acquire))
}

fn write<M: TableMemory>(memory: &M, table: HostPhysical, word: usize, value: u64) {
    if let Some(slot) = memory.entries(table).get(word) {
        slot.store(value, Ordering::Release);
        memory.written(table, word);
    }
}

/// Fills a table that no entry leads to yet with the same entry.
fn fill<M: TableMemory>(memory: &M, table: HostPhysical, entry: [u64; 2]) {
    for (index, slots) in memory.entries(table).chunks(8).enumerate() {
        for (slot, half) in slots.iter().zip(entry.iter().cycle()) {
            slot.store(*half, Ordering::Relaxed);
        }
        memory.written(table, index.wrapping_mul(8));
    }
}

/// First word of the entry of that number: entries have two.
const fn word(number: u8) -> usize {
    (number as usize).wrapping_mul(2)
}

const fn page(address: HostPhysical) -> u64 {
    address.as_u64() >> PAGE_SHIFT
}

const fn from_page(page: u64) -> HostPhysical {
    HostPhysical::new(page << PAGE_SHIFT)
}

fn entry_of(domain: &Domain) -> [u64; 2] {
    let low = ContextLow::new()
        .with_present(true)
        .with_table(page(domain.root()));
    let high = ContextHigh::new()
        .with_width(domain.width().field())
        .with_domain(domain.id().number());
    [low.into_bits(), high.into_bits()]
}

const fn root_entry(table: HostPhysical) -> u64 {
    RootEntry::new()
        .with_present(true)
        .with_table(page(table))
        .into_bits()
}

impl Devices {
    /// A root table that leads nowhere: no device may do DMA.
    ///
    /// # Errors
    /// When there is no frame for it.
    pub fn new<T: Tables>(tables: &mut T) -> Result<Self, OutOfFrames> {
        let root = tables.allocate()?;
        fill(tables, root, [0; 2]);
        Ok(Self {
            root,
            shared: None,
            default: [0; 2],
        })
    }

    /// A root table with all devices in `domain`.
    ///
    /// # Errors
    /// When there are no frames for it.
    pub fn with_default<T: Tables>(tables: &mut T, domain: &Domain) -> Result<Self, OutOfFrames> {
        let shared = tables.allocate()?;
        let root = match tables.allocate() {
            Ok(root) => root,
            Err(error) => {
                tables.free(shared);
                return Err(error);
            }
        };
        let default = entry_of(domain);
        fill(tables, shared, default);
        fill(tables, root, [root_entry(shared), 0]);
        Ok(Self {
            root,
            shared: Some(shared),
            default,
        })
    }

    /// Address of the root table.
    #[must_use]
    pub const fn root(&self) -> HostPhysical {
        self.root
    }

    fn context_table<M: TableMemory>(&self, memory: &M, bus: u8) -> Option<HostPhysical> {
        let entry = RootEntry::from_bits(read(memory, self.root, word(bus)));
        entry.present().then(|| from_page(entry.table()))
    }

    /// The context table that is the bus' own.
    fn own_table<M: TableMemory>(&self, memory: &M, bus: u8) -> Option<HostPhysical> {
        let table = self.context_table(memory, bus);
        table.filter(|table| Some(*table) != self.shared)
    }

    /// Sees to it that the bus has a table of its own, which says what the shared one says.
    fn make_own_table<T: Tables>(
        &mut self,
        tables: &mut T,
        bus: u8,
    ) -> Result<HostPhysical, OutOfFrames> {
        if let Some(table) = self.own_table(tables, bus) {
            return Ok(table);
        }
        let table = tables.allocate()?;
        fill(tables, table, self.default);
        write(tables, self.root, word(bus), root_entry(table));
        Ok(table)
    }

    fn entry<M: TableMemory>(&self, memory: &M, source: SourceId) -> Option<[u64; 2]> {
        let table = self.context_table(memory, source.bus())?;
        let at = word(source.device_function());
        Some([
            read(memory, table, at),
            read(memory, table, at.wrapping_add(1)),
        ])
    }

    /// The domain that a device is in.
    #[must_use]
    pub fn domain_of<M: TableMemory>(&self, memory: &M, source: SourceId) -> Option<Attached> {
        let [low, high] = self.entry(memory, source)?;
        let (low, high) = (ContextLow::from_bits(low), ContextHigh::from_bits(high));
        low.present().then(|| Attached {
            domain: high.domain(),
            root: from_page(low.table()),
        })
    }

    /// Changes the entry of a device, which is not present at any moment in between.
    fn set<M: TableMemory>(&self, memory: &M, table: HostPhysical, source: SourceId, to: [u64; 2]) {
        let at = word(source.device_function());
        let [low, high] = to;
        let present = ContextLow::new().with_present(true).into_bits();
        write(memory, table, at, low & !present);
        write(memory, table, at.wrapping_add(1), high);
        write(memory, table, at, low);
    }

    /// Takes a device out of the default domain: it is in none.
    ///
    /// # Errors
    /// When there is no frame for a context table.
    pub fn claim<T: Tables>(
        &mut self,
        tables: &mut T,
        source: SourceId,
    ) -> Result<(), AttachError> {
        let table = self.make_own_table(tables, source.bus())?;
        self.set(tables, table, source, [0; 2]);
        Ok(())
    }

    /// Puts a device that is in no domain into `domain`. Takes no frame after [`Self::claim`].
    ///
    /// # Errors
    /// See [`AttachError`].
    pub fn attach<T: Tables>(
        &mut self,
        tables: &mut T,
        source: SourceId,
        domain: &Domain,
    ) -> Result<Invalidation, AttachError> {
        let table = self.make_own_table(tables, source.bus())?;
        let low = read(tables, table, word(source.device_function()));
        if ContextLow::from_bits(low).present() {
            return Err(AttachError::Attached);
        }
        self.set(tables, table, source, entry_of(domain));
        // In caching mode an entry that was not present may be known as such.
        Ok(Invalidation::Function {
            source,
            domain: domain.id(),
        })
    }

    /// Takes a device out of its domain, which has the number `domain`: it is in none.
    ///
    /// # Errors
    /// When it is in none, or in another.
    pub fn detach<T: Tables>(
        &mut self,
        tables: &mut T,
        source: SourceId,
        domain: DomainId,
    ) -> Result<Invalidation, AttachError> {
        let attached = self.domain_of(tables, source);
        if attached.is_none_or(|attached| attached.domain != domain.number()) {
            return Err(AttachError::NotAttached);
        }
        let Some(table) = self.own_table(tables, source.bus()) else {
            return Err(AttachError::NotAttached);
        };
        self.set(tables, table, source, [0; 2]);
        if self.shared.is_none() {
            self.drop_table(tables, source.bus(), table);
        }
        Ok(Invalidation::Function { source, domain })
    }

    /// Takes a device out of whatever domain it is in, on a bus with a table of its own.
    pub fn block<M: TableMemory>(&self, memory: &M, source: SourceId) {
        if let Some(table) = self.own_table(memory, source.bus()) {
            self.set(memory, table, source, [0; 2]);
        }
    }

    /// The same, and its faults are not recorded any more.
    pub fn silence<M: TableMemory>(&self, memory: &M, source: SourceId) {
        let quiet = ContextLow::new().with_faults_not_recorded(true).into_bits();
        if let Some(table) = self.own_table(memory, source.bus()) {
            self.set(memory, table, source, [quiet, 0]);
        }
    }

    /// Puts a device back into the default domain, or into none where there is no such.
    pub fn release<T: Tables>(&mut self, tables: &mut T, source: SourceId) {
        if let Some(table) = self.own_table(tables, source.bus()) {
            self.set(tables, table, source, self.default);
            self.drop_table(tables, source.bus(), table);
        }
    }

    /// Gives back a bus' own table when none of its devices is other than by default.
    fn drop_table<T: Tables>(&mut self, tables: &mut T, bus: u8, table: HostPhysical) {
        let [default_low, default_high] = self.default;
        let is_default = |number: u8| {
            let at = word(number);
            read(tables, table, at) == default_low
                && read(tables, table, at.wrapping_add(1)) == default_high
        };
        if (0..=u8::MAX).all(is_default) {
            let entry = self.shared.map_or(0, root_entry);
            write(tables, self.root, word(bus), entry);
            tables.retire(table);
        }
    }

    /// Gives back all tables. The IOMMU is off.
    pub fn destroy<T: Tables>(self, tables: &mut T) {
        for bus in 0..=u8::MAX {
            if let Some(table) = self.own_table(tables, bus) {
                tables.retire(table);
            }
        }
        if let Some(shared) = self.shared {
            tables.retire(shared);
        }
        tables.retire(self.root);
    }
}
