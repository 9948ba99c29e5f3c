//! All units together: who has which function, which memory and interrupts its owner gives it, and what the root sees.
//!
//! One set of second-level tables serves all units, so each has what all can do. Root and context tables are one set a
//! segment; each unit has an interrupt remapping table of its own, the front of which is a copy of the root's entries as
//! far as they may be, and the end the cells'.
//!
//! Here is what the units are, and what they have in use. `launch` takes them over and gives them back, `functions` gives
//! functions to cells, `messages` their interrupts, `lines` those of IOAPICs' pins; `root` is what the root loses, gets and
//! sees, `watch` takes faults. `driven` is one unit.
//!
//! Invariant: a function is in the root's domain, or it is claimed by a cell; then it is in the cell's domain or in none,
//! and no entry of the root's can be used by it.
#![forbid(unsafe_code)]

mod driven;
mod functions;
mod launch;
mod lines;
mod messages;
mod root;
mod tables;
mod watch;

use gaol_abi::MAX_CELLS;
use gaol_abi::config::{IOMMU_SOURCE_FUNCTION, IommuSource, MAX_IOMMUS};
use gaol_abi::public::IommuState;

use super::definitions::{DomainId, InvalidationDescriptor, SourceId};
use super::devices::{AttachError, Devices};
use super::domain::Domain;
use super::faults::Faults;
use super::hardware::{Hardware, Seen};
use super::unit::UnitError;
use crate::device::pci::FunctionId;
use crate::memory::address::GuestRange;
use crate::memory::frames::OutOfFrames;
use crate::memory::page_table::{MapError, TableMemory};
use driven::Driven;
use functions::Claimed;
use tables::{NoFrames, range};

pub use launch::Place;
pub use messages::{NotRemapped, Remapped};

/// Most functions of cells at one time.
pub const MAX_CLAIMED: usize = 64;
/// Most segments with IOMMUs.
const MAX_SEGMENTS: usize = 8;
/// Interrupt entries of a unit that are for cells.
pub const CELL_ENTRIES: u32 = 512;
/// Number of the root's domain; those of cells follow.
const ROOT_DOMAIN: u16 = 1;

/// Why something is not done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// The pool is empty.
    OutOfFrames,
    /// The unit at this address does not do what it has to.
    Unit(u64, UnitError),
    /// The unit at this address has no tables that reach all memory.
    Capability(u64),
    /// The function uses memory that is kept for it.
    ReservedMemory,
    /// There are too many functions, or interrupts.
    Full,
    /// The memory is none that there can be.
    Memory,
}

impl From<OutOfFrames> for Refused {
    fn from(_: OutOfFrames) -> Self {
        Self::OutOfFrames
    }
}

impl From<MapError> for Refused {
    fn from(error: MapError) -> Self {
        match error {
            MapError::OutOfFrames => Self::OutOfFrames,
            _ => Self::Memory,
        }
    }
}

impl From<AttachError> for Refused {
    fn from(error: AttachError) -> Self {
        match error {
            AttachError::OutOfFrames => Self::OutOfFrames,
            _ => Self::Full,
        }
    }
}

/// All units.
#[derive(Debug)]
pub struct Fleet {
    driven: [Option<Driven>; MAX_IOMMUS],
    segments: [Option<(u16, Devices)>; MAX_SEGMENTS],
    root: Option<Domain>,
    domains: [Option<Domain>; MAX_CELLS],
    claimed: [Option<Claimed>; MAX_CLAIMED],
    sources: &'static [IommuSource],
    end: u64,
    coherent: bool,
    /// The root has lost memory, and the units may not know yet.
    root_has_changed: bool,
    /// What devices tried.
    pub faults: Faults,
}

impl Default for Fleet {
    fn default() -> Self {
        Self::new()
    }
}

impl Fleet {
    /// No unit.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            driven: [const { None }; MAX_IOMMUS],
            segments: [const { None }; MAX_SEGMENTS],
            root: None,
            domains: [const { None }; MAX_CELLS],
            claimed: [None; MAX_CLAIMED],
            sources: &[],
            end: 0,
            coherent: true,
            root_has_changed: false,
            faults: Faults::new(),
        }
    }

    /// The range as far as the root's domain reaches.
    fn within(&self, start: u64, size: u64) -> Option<GuestRange> {
        let end = start.checked_add(size)?.min(self.end);
        let bytes = end.checked_sub(start).filter(|bytes| *bytes != 0)?;
        range(start, bytes).ok()
    }

    /// Whether there is a unit.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.root.is_none()
    }

    /// Number of the unit that a function is behind.
    fn unit_of(&self, function: FunctionId) -> Option<usize> {
        let mut sources = self.sources.iter();
        let named = sources.find(|source| {
            source.kind == IOMMU_SOURCE_FUNCTION
                && (source.segment, source.source) == (function.segment, function.function)
        });
        let of_all = || {
            self.driven.iter().position(|driven| {
                driven
                    .as_ref()
                    .is_some_and(|it| it.includes_all && it.segment == function.segment)
            })
        };
        let unit = named
            .map(|source| usize::from(source.unit))
            .or_else(of_all)?;
        self.driven.get(unit)?.as_ref().map(|_| unit)
    }

    /// Whether DMA of a function is translated, and whether its interrupts are remapped.
    #[must_use]
    pub fn isolation(&self, function: FunctionId) -> (bool, bool) {
        let unit = self
            .unit_of(function)
            .and_then(|unit| self.driven.get(unit));
        let driven = unit.and_then(Option::as_ref);
        let driven = driven.filter(|driven| driven.unit.works());
        driven.map_or((false, false), |driven| (true, driven.table.is_some()))
    }

    fn devices(&mut self, segment: u16) -> Option<&mut Devices> {
        let mut segments = self.segments.iter_mut().flatten();
        let found = segments.find(|(number, _)| *number == segment);
        found.map(|(_, devices)| devices)
    }

    fn forget_function<M: TableMemory>(
        &mut self,
        hardware: &impl Hardware,
        memory: &M,
        unit: usize,
        source: SourceId,
        domain: u16,
    ) -> Result<(), Refused> {
        let id = DomainId::new(domain, u32::MAX).ok_or(Refused::Full)?;
        let Some(Some(driven)) = self.driven.get_mut(unit) else {
            return Ok(());
        };
        driven.forget(
            hardware,
            memory,
            [
                InvalidationDescriptor::context_of_function(source, id),
                InvalidationDescriptor::translations_of_domain(id),
            ],
        )
    }

    fn seen<'a, M: TableMemory, H: Hardware>(
        &self,
        hardware: &'a H,
        memory: &'a M,
    ) -> Seen<'a, NoFrames<'a, M>, H> {
        Seen {
            tables: NoFrames(memory),
            hardware,
            coherent: self.coherent,
        }
    }

    /// What grows when devices, the root or the units do what they should not: faults, those lost, what the root was
    /// overruled in, units that have failed. While it stays, so do [`Self::figures`], but for what the callers of
    /// [`Self::claim`] and its kin change.
    #[must_use]
    pub fn troubles(&self) -> [u64; 4] {
        let (mut overruled, mut failed) = (0u64, 0u64);
        for driven in self.driven.iter().flatten() {
            overruled = overruled.wrapping_add(driven.overruled.into());
            failed = failed.wrapping_add(u64::from(!driven.unit.works()));
        }
        [self.faults.count, self.faults.lost, overruled, failed]
    }

    /// What is in use, and what was stopped.
    #[must_use]
    pub fn figures(&self) -> IommuState {
        let mut figures = IommuState {
            functions: self.claimed.iter().flatten().count() as u32,
            domains: self.domains.iter().flatten().count() as u32,
            faults: self.faults.count,
            lost: self.faults.lost,
            ..IommuState::default()
        };
        for driven in self.driven.iter().flatten() {
            figures.units = figures.units.saturating_add(1);
            figures.failed = figures
                .failed
                .saturating_add(u32::from(!driven.unit.works()));
            figures.overruled = figures.overruled.saturating_add(driven.overruled);
            if driven.table.is_some() {
                figures.remapping = figures.remapping.saturating_add(1);
                figures.entries_most = figures.entries_most.saturating_add(CELL_ENTRIES);
                let taken: u32 = driven.taken.iter().map(|word| word.count_ones()).sum();
                figures.entries = figures.entries.saturating_add(taken);
            }
        }
        figures
    }
}
