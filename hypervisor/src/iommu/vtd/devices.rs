//! Which device is in which domain: the root table and its context tables, one a bus, which come and go with their first
//! and last device.
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

/// The root table of an IOMMU.
#[derive(Debug)]
pub struct Devices {
    root: HostPhysical,
}

fn read<M: TableMemory>(memory: &M, table: HostPhysical, word: usize) -> u64 {
    let slot = memory.entries(table).get(word);
    slot.map_or(0, |slot| slot.load(Ordering::Acquire))
}

fn write<M: TableMemory>(memory: &M, table: HostPhysical, word: usize, value: u64) {
    if let Some(slot) = memory.entries(table).get(word) {
        slot.store(value, Ordering::Release);
    }
}

fn clear<M: TableMemory>(memory: &M, table: HostPhysical) {
    for slot in memory.entries(table) {
        slot.store(0, Ordering::Relaxed);
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

impl Devices {
    /// A root table that leads nowhere: no device may do DMA.
    ///
    /// # Errors
    /// When there is no frame for it.
    pub fn new<T: Tables>(tables: &mut T) -> Result<Self, OutOfFrames> {
        let root = tables.allocate()?;
        clear(tables, root);
        Ok(Self { root })
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

    /// The domain that a device is in.
    #[must_use]
    pub fn domain_of<M: TableMemory>(&self, memory: &M, source: SourceId) -> Option<Attached> {
        let table = self.context_table(memory, source.bus())?;
        let at = word(source.device_function());
        let low = ContextLow::from_bits(read(memory, table, at));
        let high = ContextHigh::from_bits(read(memory, table, at.wrapping_add(1)));
        low.present().then(|| Attached {
            domain: high.domain(),
            root: from_page(low.table()),
        })
    }

    /// Puts a device that is in no domain into `domain`.
    ///
    /// # Errors
    /// See [`AttachError`].
    pub fn attach<T: Tables>(
        &mut self,
        tables: &mut T,
        source: SourceId,
        domain: &Domain,
    ) -> Result<Invalidation, AttachError> {
        let table = match self.context_table(tables, source.bus()) {
            Some(table) => table,
            None => {
                let table = tables.allocate()?;
                clear(tables, table);
                let entry = RootEntry::new().with_present(true).with_table(page(table));
                write(tables, self.root, word(source.bus()), entry.into_bits());
                table
            }
        };
        let at = word(source.device_function());
        if ContextLow::from_bits(read(tables, table, at)).present() {
            return Err(AttachError::Attached);
        }
        let high = ContextHigh::new()
            .with_width(domain.width().field())
            .with_domain(domain.id().number());
        let low = ContextLow::new()
            .with_present(true)
            .with_table(page(domain.root()));
        write(tables, table, at.wrapping_add(1), high.into_bits());
        write(tables, table, at, low.into_bits());
        // In caching mode an entry that was not present may be known as such.
        Ok(Invalidation::Function {
            source,
            domain: domain.id(),
        })
    }

    /// Takes a device out of its domain, which has the number `domain`.
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
        let bus = source.bus();
        let Some(table) = self.context_table(tables, bus) else {
            return Err(AttachError::NotAttached);
        };
        let at = word(source.device_function());
        write(tables, table, at, 0);
        write(tables, table, at.wrapping_add(1), 0);
        let is_empty = (0..=u8::MAX).all(|number| read(tables, table, word(number)) == 0);
        if is_empty {
            write(tables, self.root, word(bus), 0);
            tables.retire(table);
        }
        Ok(Invalidation::Function { source, domain })
    }

    /// Gives back all tables. The IOMMU is off.
    pub fn destroy<T: Tables>(self, tables: &mut T) {
        for bus in 0..=u8::MAX {
            if let Some(table) = self.context_table(tables, bus) {
                tables.retire(table);
            }
        }
        tables.retire(self.root);
    }
}
