//! What the logic of VT-d needs of the machine: registers, a clock, cache lines, and memory of the root's.
#![forbid(unsafe_code)]

use crate::memory::address::HostPhysical;
use crate::memory::frames::OutOfFrames;
use crate::memory::page_table::{Entries, TableMemory, Tables};

/// The machine that units are in.
pub trait Hardware {
    /// Reads a register of 32 bits.
    fn read_32(&self, at: u64) -> u32;
    /// Writes a register of 32 bits.
    fn write_32(&self, at: u64, value: u32);
    /// Reads a register of 64 bits.
    fn read_64(&self, at: u64) -> u64;
    /// Writes a register of 64 bits.
    fn write_64(&self, at: u64, value: u64);
    /// Writes the cache line that holds `at`, in a frame of the pool, back to memory.
    fn flush_line(&self, at: HostPhysical);
    /// The time in cycles.
    fn now(&self) -> u64;
    /// Lets a moment pass, in a loop that waits.
    fn pause(&self);
    /// Reads the aligned 8 bytes at `at` of the root's memory; `None`: it is not the root's.
    fn read_root(&self, at: u64) -> Option<u64>;
    /// Writes the aligned 8 bytes at `at` of the root's memory, if it is that.
    fn write_root(&self, at: u64, value: u64);
    /// The same with 4 bytes.
    fn write_root_32(&self, at: u64, value: u32);
}

/// Tables that units see as soon as they are written.
#[derive(Debug)]
pub struct Seen<'a, T, H> {
    /// Where they are.
    pub tables: T,
    /// The machine.
    pub hardware: &'a H,
    /// The units look into the processor's caches.
    pub coherent: bool,
}

impl<T: TableMemory, H: Hardware> TableMemory for Seen<'_, T, H> {
    fn entries(&self, table: HostPhysical) -> &Entries {
        self.tables.entries(table)
    }

    fn written(&self, table: HostPhysical, index: usize) {
        if !self.coherent {
            let at = table.as_u64().wrapping_add((index as u64).wrapping_mul(8));
            self.hardware.flush_line(HostPhysical::new(at));
        }
    }
}

impl<T: Tables, H: Hardware> Tables for Seen<'_, T, H> {
    fn allocate(&mut self) -> Result<HostPhysical, OutOfFrames> {
        self.tables.allocate()
    }

    fn free(&mut self, frame: HostPhysical) {
        self.tables.free(frame);
    }

    fn retire(&mut self, frame: HostPhysical) {
        self.tables.retire(frame);
    }
}
