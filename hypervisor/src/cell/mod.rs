//! Cells: what they are made of, their life cycle, and what they may do.
//!
//! A [`Cell`] is changed under the management lock only. What a CPU must know when it joins a cell is [`Published`]
//! beforehand, in atomics, so that no CPU waits for the lock.

pub mod carve;
pub mod communication;
pub mod confinement;
pub mod create;
pub mod decision;
pub mod devices;
pub mod lifecycle;
pub mod moderated;
pub mod parts;
pub mod processors;
pub mod restart;
pub mod root;
pub mod watchdog;

use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use gaol_abi::MAX_CELLS;
use gaol_abi::config::{MAX_MEMORY_REGIONS, MAX_MSRS, MSR_WRITE, MemoryRegion, MsrAccess};
use gaol_config::CpuSet;

use self::communication::Communication;
use crate::memory::address::HostPhysical;
use crate::memory::page_table::PageTable;
use crate::virt::NestedFormat;
use crate::virt::contract::Confinement;

/// Where a cell is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Its memory is not yet cleared of what was in it before.
    Fresh,
    /// Its CPUs wait.
    Stopped,
    /// Its CPUs run, or are parked after a violation.
    Running,
    /// Its CPUs wait, and its memory is being cleared before the root gets it back.
    Dying,
}

/// How far the clearing of a cell's memory has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scrub {
    /// Index of the region.
    pub region: usize,
    /// Bytes of it that are done.
    pub offset: u64,
}

/// A cell other than the root.
#[derive(Debug)]
pub struct Cell {
    /// Its EPT.
    pub ept: PageTable<NestedFormat>,
    /// MSR bitmap.
    pub msr_bitmap: HostPhysical,
    /// First of the two frames of its port bitmap.
    pub port_bitmaps: HostPhysical,
    /// Its communication region, if it has one.
    pub communication: Option<Communication>,
    /// Its CPUs.
    pub cpus: CpuSet,
    /// Its memory.
    pub memory: [MemoryRegion; MAX_MEMORY_REGIONS],
    /// How many entries of `memory` count.
    pub memory_count: usize,
    /// Its port ranges.
    pub ports: [gaol_abi::config::PortRange; gaol_abi::config::MAX_PORT_RANGES],
    /// How many entries of `ports` count.
    pub port_count: usize,
    /// Where it is in its life.
    pub phase: Phase,
    /// Its loadable memory is visible to the root.
    pub loadable: bool,
    /// It is never asked before it is stopped.
    pub passive: bool,
    /// It may print.
    pub console: bool,
    /// Its watchdog, if it has one.
    pub watchdog: Option<watchdog::Watchdog>,
    /// Time that it has to answer, in cycles.
    pub patience: u64,
    /// It was asked to end; the time by which it must have answered.
    pub asked: Option<u64>,
    /// Bit n: region n is another cell's as well, so it is neither cleared nor given to the root. As it was when this cell
    /// was created; looked at again when it ends.
    pub in_use: u64,
    /// What is cleared so far.
    pub scrub: Scrub,
}

impl Cell {
    /// Its memory.
    pub fn regions(&self) -> impl Iterator<Item = &MemoryRegion> {
        self.memory.iter().take(self.memory_count)
    }

    /// Whether another cell has the region as well.
    pub fn is_in_use(&self, index: usize) -> bool {
        let bits = self.in_use.checked_shr(index as u32);
        bits.is_some_and(|bits| bits & 1 != 0)
    }
}

/// A register that the cell gets besides those that all cells have.
#[derive(Debug)]
struct PublishedMsr {
    /// Number, and `MSR_…` flags << 32.
    register: AtomicU64,
    write_mask: AtomicU64,
}

/// What a CPU must know to join a cell.
#[derive(Debug)]
pub struct Published {
    ept_root: AtomicU64,
    msr_bitmap: AtomicU64,
    port_bitmaps: AtomicU64,
    reset_address: AtomicU64,
    ignore_ports: AtomicBool,
    console: AtomicBool,
    parks_whole: AtomicBool,
    id: u16,
    msr_count: AtomicUsize,
    msrs: [PublishedMsr; MAX_MSRS],
}

impl Published {
    const fn new(id: u16) -> Self {
        Self {
            ept_root: AtomicU64::new(0),
            msr_bitmap: AtomicU64::new(0),
            port_bitmaps: AtomicU64::new(0),
            reset_address: AtomicU64::new(0),
            ignore_ports: AtomicBool::new(true),
            console: AtomicBool::new(false),
            parks_whole: AtomicBool::new(false),
            id,
            msr_count: AtomicUsize::new(0),
            msrs: [const {
                PublishedMsr {
                    register: AtomicU64::new(0),
                    write_mask: AtomicU64::new(0),
                }
            }; MAX_MSRS],
        }
    }

    /// Publishes where a cell's tables are, before any CPU is told to join it.
    pub fn publish(
        &self,
        ept_root: HostPhysical,
        msr_bitmap: HostPhysical,
        port_bitmaps: HostPhysical,
    ) {
        self.ept_root.store(ept_root.as_u64(), Ordering::Relaxed);
        self.msr_bitmap
            .store(msr_bitmap.as_u64(), Ordering::Relaxed);
        self.port_bitmaps
            .store(port_bitmaps.as_u64(), Ordering::Release);
    }

    /// Publishes how a cell's CPUs behave.
    pub fn publish_behaviour(
        &self,
        reset_address: u64,
        ignore_ports: bool,
        console: bool,
        parks_whole: bool,
    ) {
        self.reset_address.store(reset_address, Ordering::Relaxed);
        self.parks_whole.store(parks_whole, Ordering::Relaxed);
        self.ignore_ports.store(ignore_ports, Ordering::Relaxed);
        self.console.store(console, Ordering::Release);
    }

    /// Publishes the registers that the cell gets besides those that all cells have.
    pub fn publish_msrs(&self, accesses: &[MsrAccess]) {
        for (slot, access) in self.msrs.iter().zip(accesses) {
            let register = u64::from(access.msr) | u64::from(access.flags) << 32;
            slot.register.store(register, Ordering::Relaxed);
            slot.write_mask.store(access.write_mask, Ordering::Relaxed);
        }
        self.msr_count.store(accesses.len(), Ordering::Release);
    }

    /// The registers that the cell may write to besides those that all cells have, and the bits that it may change.
    pub fn writable_msrs(&self) -> impl Iterator<Item = (u32, u64)> {
        let count = self.msr_count.load(Ordering::Acquire);
        self.msrs.iter().take(count).filter_map(|slot| {
            let register = slot.register.load(Ordering::Relaxed);
            let mask = slot.write_mask.load(Ordering::Relaxed);
            ((register >> 32) as u32 & MSR_WRITE != 0).then_some((register as u32, mask))
        })
    }

    /// Whether one CPU's violation parks all of the cell's CPUs.
    #[must_use]
    pub fn parks_whole(&self) -> bool {
        self.parks_whole.load(Ordering::Acquire)
    }

    /// What a CPU of the cell is confined to. Its address space is the cell's id plus 1.
    #[must_use]
    pub fn confinement(&self) -> Confinement {
        Confinement {
            nested_root: HostPhysical::new(self.ept_root.load(Ordering::Acquire)),
            msrs: HostPhysical::new(self.msr_bitmap.load(Ordering::Acquire)),
            ports: HostPhysical::new(self.port_bitmaps.load(Ordering::Acquire)),
            address_space: self.id.wrapping_add(1),
        }
    }

    /// Where the cell's CPUs start.
    #[must_use]
    pub fn reset_address(&self) -> u64 {
        self.reset_address.load(Ordering::Acquire)
    }

    /// Ports that are not the cell's read as ones.
    #[must_use]
    pub fn ignores_ports(&self) -> bool {
        self.ignore_ports.load(Ordering::Acquire)
    }

    /// The cell may print.
    #[must_use]
    pub fn may_print(&self) -> bool {
        self.console.load(Ordering::Acquire)
    }
}

static PUBLISHED: [Published; MAX_CELLS] = {
    let mut all = [const { Published::new(0) }; MAX_CELLS];
    let mut id = 0;
    while id < MAX_CELLS {
        // Evaluated by the compiler, which would refuse an index beyond the array.
        #[allow(clippy::indexing_slicing, reason = "const: checked at compile time")]
        {
            all[id] = Published::new(id as u16);
        }
        id += 1;
    }
    all
};

/// What is published of the cell `id`.
#[must_use]
pub fn published(id: u32) -> Option<&'static Published> {
    PUBLISHED.get(id as usize)
}
