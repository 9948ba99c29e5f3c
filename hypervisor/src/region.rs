//! The linear map of the region: every page that the module gave the hypervisor appears at a fixed distance.
//!
//! Invariant: only addresses inside the region are turned into pointers, and only frames that the caller owns (its
//! page tables, bitmaps, the pages it allocated) are written through them. The private areas of other CPUs are in the
//! region but not in the linear map of the private tables: touching them faults.

use core::sync::atomic::{AtomicU64, Ordering};

use gaol_abi::image::LINK_BASE;

use crate::memory::address::HostPhysical;
use crate::memory::page_table::{ENTRIES, Entries, TableMemory};

static PHYSICAL: AtomicU64 = AtomicU64::new(0);
static SIZE: AtomicU64 = AtomicU64::new(0);

/// Tells where the region is. All CPUs write the same at launch.
pub fn set(physical: HostPhysical, size: u64) {
    PHYSICAL.store(physical.as_u64(), Ordering::Relaxed);
    SIZE.store(size, Ordering::Relaxed);
}

/// Start of the region.
#[must_use]
pub fn physical() -> HostPhysical {
    HostPhysical::new(PHYSICAL.load(Ordering::Relaxed))
}

/// Bytes of the region.
#[must_use]
pub fn size() -> u64 {
    SIZE.load(Ordering::Relaxed)
}

/// Virtual address of a physical one inside the region.
#[inline]
#[must_use]
pub fn address_of(at: HostPhysical) -> u64 {
    at.as_u64()
        .wrapping_sub(PHYSICAL.load(Ordering::Relaxed))
        .wrapping_add(LINK_BASE)
}

/// Physical address `offset` bytes into the region.
#[must_use]
pub fn at(offset: u64) -> HostPhysical {
    HostPhysical::new(PHYSICAL.load(Ordering::Relaxed).wrapping_add(offset))
}

/// Is this inside the region?
#[inline]
#[must_use]
pub fn contains(at: HostPhysical) -> bool {
    at.as_u64().wrapping_sub(PHYSICAL.load(Ordering::Relaxed)) < SIZE.load(Ordering::Relaxed)
}

/// The page tables, in their frames of the region.
#[derive(Clone, Copy, Debug)]
pub struct LinearTables;

/// Stands in for a table outside the region, which an intact page table never leads to.
static NO_TABLE: Entries = [const { AtomicU64::new(0) }; ENTRIES];

impl TableMemory for LinearTables {
    #[inline]
    fn entries(&self, table: HostPhysical) -> &Entries {
        if !contains(table) {
            return &NO_TABLE;
        }
        // SAFETY: a frame of the region, page-aligned because tables are frames; every access to tables is atomic, by this
        // type or by the processor's walk.
        unsafe { &*((address_of(table) & !0xfff) as *const Entries) }
    }
}

/// Fills the frame at `frame` with `value`, 8 bytes at a time.
pub fn fill_frame(frame: HostPhysical, value: u64) {
    if !contains(frame) {
        return;
    }
    // SAFETY: a whole frame inside the region that the caller has just allocated.
    unsafe {
        core::arch::asm!(
            "rep stosq",
            inout("rcx") 512u64 => _,
            inout("rdi") address_of(frame) & !0xfff => _,
            in("rax") value,
            options(nostack, preserves_flags)
        );
    }
}
