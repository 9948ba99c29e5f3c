//! Accesses of guests to PCI configuration space, and of cells to pages with an MSI-X table.
//!
//! Invariant: a cell reaches the functions that it has, by either mechanism, and only as [`Function`] permits; the root
//! reaches those that no cell has. Functions of others are absent: reads find ones, writes have no effect.

use core::sync::atomic::Ordering;

use super::mmio::{Refused, Registers};
use crate::cpu::{self, PerCpu};
use crate::device::pci::hardware::{Access, CONFIG_ENABLE, ConfigRange};
use crate::device::pci::{Function, FunctionId, assigned};

/// Whether an APIC id is that of a CPU of the cell.
fn is_own(cell: u32, apic_id: u32) -> bool {
    cpu::by_apic_id(apic_id).is_some_and(|other| {
        other.apic_id.load(Ordering::Relaxed) == apic_id
            && other.cell.load(Ordering::Acquire) == cell
    })
}

/// Lets `run` use a function that the cell has. `None`: it does not have it.
fn with_function<R>(
    cell: u32,
    id: FunctionId,
    run: impl FnOnce(&mut Function<'static>) -> R,
) -> Option<R> {
    let slot = assigned::of(cell, id)?;
    slot.lock().as_mut().map(run)
}

fn read(cpu: u32, access: &mut Access, id: FunctionId, offset: u16, width: u8) -> u64 {
    with_function(cpu, id, |function| function.read(access, offset, width)).unwrap_or(u64::MAX)
}

fn write(cell: u32, access: &mut Access, id: FunctionId, offset: u16, (width, value): (u8, u64)) {
    with_function(cell, id, |function| {
        let own = |apic_id| is_own(cell, apic_id);
        function.write(access, offset, width, value, &own);
    });
}

/// An access of a cell by mechanism 1 to the data's byte `byte`: `value` is what it writes; `None`: it reads.
pub fn cell_access(cpu: &PerCpu, byte: u16, width: u32, value: Option<u32>) -> u32 {
    let address = cpu.pci_address;
    let is_inside = u32::from(byte).wrapping_add(width) <= 4;
    if address & CONFIG_ENABLE == 0 || !is_inside {
        return u32::MAX;
    }
    let id = FunctionId {
        segment: 0,
        function: (address >> 8) as u16,
    };
    let offset = address as u16 & 0xfc | byte;
    let access = &mut Access::new(cpu.windows);
    match value {
        Some(value) => {
            write(cpu.cell, access, id, offset, (width as u8, value.into()));
            0
        }
        None => read(cpu.cell, access, id, offset, width as u8) as u32,
    }
}

/// Configuration space in memory, as a cell finds it.
pub struct Configuration {
    cell: u32,
    access: Access,
    range: ConfigRange,
}

impl Configuration {
    /// The range of that segment and first bus, for the cell of this CPU.
    #[must_use]
    pub fn new(cpu: &PerCpu, range: ConfigRange) -> Self {
        Self {
            cell: cpu.cell,
            access: Access::new(cpu.windows),
            range,
        }
    }
}

impl Registers for Configuration {
    fn read(&mut self, offset: u64, width: u8) -> Result<u64, Refused> {
        let (id, at) = self.range.function(offset);
        Ok(read(self.cell, &mut self.access, id, at, width))
    }

    fn write(&mut self, offset: u64, width: u8, value: u64) -> Result<(), Refused> {
        let (id, at) = self.range.function(offset);
        write(self.cell, &mut self.access, id, at, (width, value));
        Ok(())
    }
}

/// A page with a function's MSI-X table, or a part of it, as its cell finds it.
pub struct TablePage {
    cell: u32,
    access: Access,
    id: FunctionId,
    physical: u64,
    size: u64,
    writable: bool,
}

impl TablePage {
    /// What begins at `physical`.
    #[must_use]
    pub fn new(cpu: &PerCpu, id: FunctionId, (physical, size): (u64, u64), writable: bool) -> Self {
        Self {
            cell: cpu.cell,
            access: Access::new(cpu.windows),
            id,
            physical,
            size,
            writable,
        }
    }

    fn place(&self, offset: u64, width: u8) -> Result<u64, Refused> {
        let end = offset.checked_add(width.into()).ok_or(Refused)?;
        let at = self.physical.checked_add(offset).ok_or(Refused)?;
        (end <= self.size).then_some(at).ok_or(Refused)
    }
}

impl Registers for TablePage {
    fn read(&mut self, offset: u64, width: u8) -> Result<u64, Refused> {
        let at = self.place(offset, width)?;
        let access = &mut self.access;
        with_function(self.cell, self.id, |function| {
            function.read_table(access, at, width)
        })
        .and_then(Result::ok)
        .ok_or(Refused)
    }

    fn write(&mut self, offset: u64, width: u8, value: u64) -> Result<(), Refused> {
        let at = self.place(offset, width)?;
        let (cell, access) = (self.cell, &mut self.access);
        if !self.writable {
            return Err(Refused);
        }
        with_function(cell, self.id, |function| {
            let own = |apic_id| is_own(cell, apic_id);
            function.write_table(access, at, width, value, &own)
        })
        .and_then(Result::ok)
        .ok_or(Refused)
    }
}
