//! Tables that are lent, or get no new frames, and ranges of addresses.
//!
//! Invariant: nothing here has frames of its own.
#![forbid(unsafe_code)]

use super::Refused;
use crate::memory::address::{GuestPhysical, GuestRange, HostPhysical};
use crate::memory::frames::OutOfFrames;
use crate::memory::page_table::{Entries, TableMemory, Tables};

/// Tables that get no new frames.
pub(super) struct NoFrames<'a, M>(pub(super) &'a M);

impl<M: TableMemory> TableMemory for NoFrames<'_, M> {
    fn entries(&self, table: HostPhysical) -> &Entries {
        self.0.entries(table)
    }

    fn written(&self, table: HostPhysical, index: usize) {
        self.0.written(table, index);
    }
}

impl<M: TableMemory> Tables for NoFrames<'_, M> {
    fn allocate(&mut self) -> Result<HostPhysical, OutOfFrames> {
        Err(OutOfFrames)
    }

    fn free(&mut self, _: HostPhysical) {}

    fn retire(&mut self, _: HostPhysical) {}
}

/// Tables that are lent.
pub(super) struct Borrowed<'a, T>(pub(super) &'a mut T);

impl<T: Tables> TableMemory for Borrowed<'_, T> {
    fn entries(&self, table: HostPhysical) -> &Entries {
        self.0.entries(table)
    }

    fn written(&self, table: HostPhysical, index: usize) {
        self.0.written(table, index);
    }
}

impl<T: Tables> Tables for Borrowed<'_, T> {
    fn allocate(&mut self) -> Result<HostPhysical, OutOfFrames> {
        self.0.allocate()
    }

    fn free(&mut self, frame: HostPhysical) {
        self.0.free(frame);
    }

    fn retire(&mut self, frame: HostPhysical) {
        self.0.retire(frame);
    }
}

pub(super) fn range(start: u64, size: u64) -> Result<GuestRange, Refused> {
    let start = GuestPhysical::try_new(start).ok_or(Refused::Memory)?;
    GuestRange::new(start, size).ok_or(Refused::Memory)
}

pub(super) fn zeroed<T: Tables>(tables: &mut T) -> Result<HostPhysical, OutOfFrames> {
    let frame = tables.allocate()?;
    for word in tables.entries(frame) {
        word.store(0, core::sync::atomic::Ordering::Relaxed);
    }
    Ok(frame)
}
