//! What there is one of in the machine: the management state, behind one lock, and the root cell's EPT.
//!
//! Management is done by the root's CPUs in hypercalls, one at a time: who finds the lock taken is refused at once
//! ([`Reason::InProgress`]) and never waits. The exit path takes no lock.

use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use gaol_abi::MAX_CELLS;
use gaol_abi::config::MAX_CELL_SIZE;
use gaol_abi::hypercall::Errno;
use gaol_abi::outcome::Reason;
use gaol_config::ledger::{Ledger, Machine};
use spin::mutex::SpinMutex;

use crate::cell::Cell;
use crate::cell::root::RootShare;
use crate::error::Failure;
use crate::memory::address::HostPhysical;
use crate::memory::frames::{Frame, FramePool, OutOfFrames};
use crate::memory::memory_types::{MemoryType, MemoryTypes};
use crate::memory::page_table::{
    Access, Attributes, Entries, FarReserve, Limits, MapError, PageTable, Scratch, TableMemory,
    Tables,
};
use crate::processor::own_table;
use crate::region::{self, LinearTables};
use crate::set_once::SetOnce;
use crate::trace::public;
use crate::virt::NestedFormat;

/// What exists from the launch on.
#[derive(Debug)]
pub struct Machinery {
    /// Free frames.
    pub pool: FramePool<'static>,
    /// The machine as the ledger must know it.
    pub machine: Machine<'static>,
    /// The root cell's EPT.
    pub root_ept: PageTable<NestedFormat>,
    /// The root cell's port bitmaps.
    pub root_ports: HostPhysical,
    /// Memory types of the machine.
    pub memory_types: MemoryTypes,
    /// What cells' EPTs may have as leaves.
    pub cell_limits: Limits,
}

/// Room for a configuration, aligned as its structures are.
#[repr(C, align(8))]
#[derive(Debug)]
pub struct ConfigBuffer(pub [u8; MAX_CELL_SIZE as usize]);

/// Everything that management changes. Large, so it is built in place.
#[derive(Debug)]
pub struct Management {
    /// `None` until the launch has prepared it.
    pub machinery: Option<Machinery>,
    /// Who owns what.
    pub ledger: Ledger,
    /// The cells other than the root, by id.
    pub cells: [Option<Cell>; MAX_CELLS],
    /// The cell that is being created or taken apart: too large for the stack.
    pub draft: Option<Cell>,
    /// Copy of the configuration that is being looked at.
    pub config: ConfigBuffer,
    /// What was on the borrowed low page.
    pub low_page: [u8; 4096],
}

impl Management {
    /// The machinery; there is one from the launch on.
    pub fn machinery(&mut self) -> Result<&mut Machinery, Failure> {
        self.machinery
            .as_mut()
            .ok_or(Failure::gaol(Reason::LaunchParameters, 0))
    }
}

static MANAGEMENT: SpinMutex<Management> = SpinMutex::new(Management {
    machinery: None,
    ledger: Ledger::new(),
    cells: [const { None }; MAX_CELLS],
    draft: None,
    config: ConfigBuffer([0; MAX_CELL_SIZE as usize]),
    low_page: [0; 4096],
});

/// CR3 of the CPU that has the lock, 0 for none: each CPU has a page table of its own.
static HOLDER: AtomicU64 = AtomicU64::new(0);
/// A CPU has failed in the middle of an operation: nobody knows what is done and what is not.
static BROKEN: AtomicBool = AtomicBool::new(false);

/// The lock's guard.
#[derive(Debug)]
pub struct Guard(spin::mutex::SpinMutexGuard<'static, Management>);

impl Guard {
    fn new(guard: spin::mutex::SpinMutexGuard<'static, Management>) -> Self {
        HOLDER.store(own_table(), Ordering::Release);
        Self(guard)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        HOLDER.store(0, Ordering::Release);
    }
}

impl core::ops::Deref for Guard {
    type Target = Management;

    fn deref(&self) -> &Management {
        &self.0
    }
}

impl core::ops::DerefMut for Guard {
    fn deref_mut(&mut self) -> &mut Management {
        &mut self.0
    }
}

/// Takes the management lock, or refuses.
pub fn try_manage() -> Result<Guard, Failure> {
    if BROKEN.load(Ordering::Acquire) {
        return Err(Failure::gaol(Reason::HypervisorFault, 0));
    }
    MANAGEMENT.try_lock().map(Guard::new).ok_or(Failure::caller(
        Errno::InProgress,
        Reason::InProgress,
        0,
    ))
}

/// The code that ran with the page table `cr3` is abandoned: if it was in the middle of a management operation, there is
/// no other one until the next launch, and each is told why.
pub fn abandon(cr3: u64) {
    if HOLDER.load(Ordering::Acquire) == cr3 {
        BROKEN.store(true, Ordering::Release);
    }
}

/// Takes the management lock at launch, when its holders are CPUs that are launched and hold it for a moment each.
pub fn manage_at_launch() -> Guard {
    Guard::new(MANAGEMENT.lock())
}

/// The pool as the page-table engine wants it.
#[derive(Debug)]
pub struct PoolTables<'a>(pub &'a mut FramePool<'static>);

impl TableMemory for PoolTables<'_> {
    #[inline]
    fn entries(&self, table: HostPhysical) -> &Entries {
        // The tables are static: they live as long as the region.
        static TABLES: LinearTables = LinearTables;
        TABLES.entries(table)
    }
}

impl Tables for PoolTables<'_> {
    #[inline]
    fn allocate(&mut self) -> Result<HostPhysical, OutOfFrames> {
        self.0.allocate().map(Frame::address)
    }

    fn free(&mut self, frame: HostPhysical) {
        release(self.0, frame);
    }

    fn retire(&mut self, frame: HostPhysical) {
        if let Some(frame) = Frame::new(frame) {
            // A frame that is not in use here is a fault of the engine; keeping it is the harmless side.
            let _ = self.0.retire(frame);
        }
    }
}

/// Gives a frame back to the pool.
pub fn release(pool: &mut FramePool<'static>, frame: HostPhysical) {
    if let Some(frame) = Frame::new(frame) {
        // As in `retire`.
        let _ = pool.free(frame);
    }
}

/// Takes a zeroed frame.
pub fn zeroed_frame(pool: &mut FramePool<'static>) -> Result<HostPhysical, Failure> {
    let frame = pool
        .allocate()
        .map_err(|_| Failure::out_of_frames())?
        .address();
    region::fill_frame(frame, 0);
    Ok(frame)
}

/// The failure that an error of the page-table engine is to the caller.
#[must_use]
pub fn map_failure(error: MapError) -> Failure {
    match error {
        MapError::OutOfFrames => Failure::out_of_frames(),
        MapError::Misaligned | MapError::OutOfReach | MapError::NoHolePage => {
            Failure::configuration(Reason::RegionInvalid, 0)
        }
    }
}

/// Publishes the figures of the pool.
pub fn publish_pool(pool: &FramePool<'static>) {
    public::set_frames_total(pool.total() as u64);
    public::set_frames_used(pool.used() as u64);
}

/// What the root's exit path needs of its EPT, without a lock.
#[derive(Debug)]
pub struct Far {
    /// The root's EPT, for [`PageTable::install_far`] and [`PageTable::redirect_hole`] only.
    pub table: PageTable<NestedFormat>,
    /// Frames for far windows.
    pub reserve: FarReserve,
    /// Memory types of the machine.
    pub memory_types: MemoryTypes,
    /// Where writes to holes go that can't be stepped over.
    pub scratch: Scratch,
}

static FAR: SetOnce<Far> = SetOnce::new();

/// Sets what [`far`] returns, once at launch.
pub fn set_far(far: Far) {
    FAR.set(far);
}

/// See [`Far`].
#[must_use]
pub fn far() -> Option<&'static Far> {
    FAR.get()
}

static ROOT_SHARE: SetOnce<RootShare<'static>> = SetOnce::new();

/// Sets what [`root_share`] returns, once at launch.
pub fn set_root_share(share: RootShare<'static>) {
    ROOT_SHARE.set(share);
}

/// What the root may have.
#[must_use]
pub fn root_share() -> Option<&'static RootShare<'static>> {
    ROOT_SHARE.get()
}

/// Attributes of the root's own memory.
#[must_use]
pub const fn everything(kind: MemoryType) -> Attributes {
    Attributes::new(
        Access::READ.union(Access::WRITE).union(Access::EXECUTE),
        kind,
    )
}

/// Most ranges of memory that are not the root's at one time.
const FOREIGN_RANGES: usize = 256;

/// Host-physical memory that the root's CPUs must not be looked at through: the hypervisor's and the cells'. Read by the
/// root's exit path without a lock; changed under the management lock.
static FOREIGN: [[AtomicU64; 2]; FOREIGN_RANGES] =
    [const { [AtomicU64::new(0), AtomicU64::new(0)] }; FOREIGN_RANGES];
static FOREIGN_COUNT: AtomicUsize = AtomicUsize::new(0);
/// Bounds around all of them: most addresses are outside, and need no further look.
static FOREIGN_LOW: AtomicU64 = AtomicU64::new(0);
static FOREIGN_HIGH: AtomicU64 = AtomicU64::new(u64::MAX);

/// Makes `ranges` (start, size) the memory that is not the root's. `false`: there are too many.
pub fn set_foreign(ranges: impl Iterator<Item = (u64, u64)>) -> bool {
    let mut count: usize = 0;
    let (mut low, mut high) = (u64::MAX, 0);
    // While the ranges change, every address is looked at.
    FOREIGN_LOW.store(0, Ordering::Release);
    FOREIGN_HIGH.store(u64::MAX, Ordering::Release);
    for (start, size) in ranges {
        low = start.min(low);
        high = start.saturating_add(size).max(high);
        let Some([slot_start, slot_size]) = FOREIGN.get(count) else {
            return false;
        };
        slot_start.store(start, Ordering::Relaxed);
        slot_size.store(size, Ordering::Relaxed);
        count = count.wrapping_add(1);
    }
    FOREIGN_COUNT.store(count, Ordering::Release);
    FOREIGN_HIGH.store(high, Ordering::Release);
    FOREIGN_LOW.store(low, Ordering::Release);
    true
}

/// May the root's memory be read at `address`?
#[inline(always)]
#[must_use]
pub fn is_roots(address: u64) -> bool {
    address < FOREIGN_LOW.load(Ordering::Acquire)
        || address >= FOREIGN_HIGH.load(Ordering::Acquire)
        || is_in_no_range(address)
}

#[inline(never)]
fn is_in_no_range(address: u64) -> bool {
    let count = FOREIGN_COUNT.load(Ordering::Acquire);
    FOREIGN.iter().take(count).all(|[start, size]| {
        address.wrapping_sub(start.load(Ordering::Relaxed)) >= size.load(Ordering::Relaxed)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::test_runner::{Config, TestRunner};

    use super::*;

    const END: u64 = 1 << 52;

    fn is_in(ranges: &[(u64, u64)], address: u64) -> bool {
        ranges
            .iter()
            .any(|(start, size)| (*start..start + size).contains(&address))
    }

    /// Ends of the ranges and their neighbours, and the ends of all addresses.
    fn samples(ranges: &[(u64, u64)]) -> Vec<u64> {
        ranges
            .iter()
            .flat_map(|(start, size)| {
                let end = start + size;
                [
                    start.saturating_sub(1),
                    *start,
                    start + size / 2,
                    end.saturating_sub(1),
                    end,
                ]
            })
            .chain([0, 4096, END, u64::MAX])
            .collect()
    }

    /// One test, since what it tests there is once only.
    #[test]
    fn memory_is_the_roots_unless_it_is_in_a_range() {
        let range = prop_oneof![
            (0u64..64, 0u64..8).prop_map(|(page, pages)| (page << 12, pages << 12)),
            (0..END, 0..END).prop_map(|(start, size)| (start, size.min(END - start))),
        ];
        let lists = (
            prop::collection::vec(range.clone(), 0..=FOREIGN_RANGES),
            prop::collection::vec(range, 1..8),
        );
        let mut runner = TestRunner::new(Config::with_cases(200));
        runner
            .run(&lists, |(ranges, more)| {
                prop_assert!(set_foreign(ranges.iter().copied()));
                for address in samples(&ranges).into_iter().chain(samples(&more)) {
                    prop_assert_eq!(
                        is_roots(address),
                        !is_in(&ranges, address),
                        "at {:#x}",
                        address
                    );
                }
                // What is added goes behind; if that is too much, what stood before is as foreign as it was.
                let both: Vec<(u64, u64)> = ranges.iter().chain(&more).copied().collect();
                let fits = both.len() <= FOREIGN_RANGES;
                prop_assert_eq!(set_foreign(both.iter().copied()), fits);
                let now = if fits { &both } else { &ranges };
                for address in samples(&both) {
                    prop_assert_eq!(is_roots(address), !is_in(now, address), "at {:#x}", address);
                }
                Ok(())
            })
            .unwrap();
        let many = (0..=FOREIGN_RANGES as u64).map(|number| (number << 21, 4096));
        assert!(set_foreign(many.clone().take(FOREIGN_RANGES)));
        assert!(!set_foreign(many));
        assert!(set_foreign(core::iter::empty()));
        assert!(is_roots(0) && is_roots(4096));
    }
}
