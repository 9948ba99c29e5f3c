//! The machine's configuration space: mechanism 1 for what every function has, and memory (ECAM) for the rest.
//!
//! Invariant: address and data of an access by mechanism 1 belong together, since [`ADDRESS_LOCK`] is held for both.

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use gaol_abi::config::{MachineRange, RANGE_PCI_CONFIGURATION};
use spin::mutex::TicketMutex;

use super::assigned;
use super::message::Message;
use super::space::{EXTENDED_SIZE, FunctionId, Hardware, STANDARD_SIZE};
use crate::cpu::window::Windows;
use crate::iommu::service;
use crate::memory::address::HostPhysical;
use crate::processor::{port_read, port_write};

/// Port of the address of configuration mechanism 1.
pub const CONFIG_ADDRESS: u16 = 0xcf8;
/// First of the four ports of its data.
pub const CONFIG_DATA: u16 = 0xcfc;
/// In the address: the access is one to configuration space.
pub const CONFIG_ENABLE: u32 = 1 << 31;

/// Held for the two accesses of configuration mechanism 1.
pub static ADDRESS_LOCK: TicketMutex<()> = TicketMutex::new(());

/// Most ranges of configuration space in memory: one a segment.
const MOST_RANGES: usize = 8;

/// Ranges of configuration space in memory: start, and segment << 16 | last bus << 8 | first.
static RANGES: [[AtomicU64; 2]; MOST_RANGES] =
    [const { [AtomicU64::new(0), AtomicU64::new(0)] }; MOST_RANGES];
static RANGE_COUNT: AtomicUsize = AtomicUsize::new(0);

/// A range of configuration space in memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ConfigRange {
    /// Address of the first bus' first function.
    pub start: u64,
    /// PCI segment group.
    pub segment: u16,
    /// First bus.
    pub first: u8,
    /// Last bus.
    pub last: u8,
}

impl ConfigRange {
    fn new(range: &MachineRange) -> Self {
        let [first, last] = range.extent.to_le_bytes();
        Self {
            start: range.physical,
            segment: range.number as u16,
            first,
            last,
        }
    }

    /// What begins at `start` with the first function of a bus.
    #[must_use]
    pub const fn moderated(start: u64, segment: u16, first: u8) -> Self {
        Self {
            start,
            segment,
            first,
            last: u8::MAX,
        }
    }

    /// Bytes of it.
    #[must_use]
    pub const fn size(&self) -> u64 {
        ((self.last.saturating_sub(self.first)) as u64).wrapping_add(1) << 20
    }

    /// Where a function's configuration space is, if it is here.
    #[must_use]
    pub fn page(&self, id: FunctionId) -> Option<u64> {
        let bus = (id.function >> 8) as u8;
        let is_here = id.segment == self.segment && (self.first..=self.last).contains(&bus);
        let buses = u64::from(self.first) << 20;
        let offset = (u64::from(id.function) << 12).wrapping_sub(buses);
        is_here.then_some(self.start.wrapping_add(offset))
    }

    /// The function whose configuration space is at an offset, and the offset in it.
    #[must_use]
    pub const fn function(&self, offset: u64) -> (FunctionId, u16) {
        let first = (self.first as u16) << 8;
        let id = FunctionId {
            segment: self.segment,
            function: first.wrapping_add((offset >> 12) as u16),
        };
        (id, offset as u16 & 0xfff)
    }
}

/// Makes the ranges known that the machine has, once at launch.
pub fn set_ranges(ranges: &[MachineRange]) {
    let ranges = ranges
        .iter()
        .filter(|range| range.kind == RANGE_PCI_CONFIGURATION);
    let mut count = 0usize;
    for ([start, extent], range) in RANGES.iter().zip(ranges) {
        start.store(range.physical, Ordering::Relaxed);
        let value = u64::from(range.number as u16) << 16 | u64::from(range.extent);
        extent.store(value, Ordering::Relaxed);
        count = count.wrapping_add(1);
    }
    RANGE_COUNT.store(count, Ordering::Release);
}

/// The ranges of configuration space in memory.
pub fn ranges() -> impl Iterator<Item = ConfigRange> {
    let count = RANGE_COUNT.load(Ordering::Acquire);
    RANGES.iter().take(count).map(|[start, extent]| {
        let extent = extent.load(Ordering::Relaxed);
        ConfigRange::new(&MachineRange {
            physical: start.load(Ordering::Relaxed),
            size: 0,
            kind: RANGE_PCI_CONFIGURATION,
            extent: extent as u16,
            number: (extent >> 16) as u32,
        })
    })
}

/// Where a function's configuration space is in the machine's memory, if it is.
#[must_use]
pub fn page_of(id: FunctionId) -> Option<HostPhysical> {
    ranges()
        .find_map(|range| range.page(id))
        .map(HostPhysical::new)
}

/// Configuration space and registers of the machine, through a CPU's windows.
#[derive(Debug)]
pub struct Access {
    windows: Windows,
}

impl Access {
    /// By the CPU whose windows these are.
    #[must_use]
    pub const fn new(windows: Windows) -> Self {
        Self { windows }
    }

    /// Where the access goes by memory; `None`: it goes by ports, or nowhere.
    fn place(id: FunctionId, offset: u16) -> Option<HostPhysical> {
        let page = page_of(id).filter(|_| offset < EXTENDED_SIZE)?;
        Some(HostPhysical::new(page.as_u64() | u64::from(offset)))
    }

    const fn has_ports(id: FunctionId, offset: u16) -> bool {
        id.segment == 0 && offset < STANDARD_SIZE
    }
}

/// One access by mechanism 1. The data's port and width are those of the access, and `value` is what is written; `None`:
/// it is a read.
///
/// # Safety
/// The caller holds [`ADDRESS_LOCK`]. Nobody's memory and nothing of the hypervisor depend on what the access changes.
unsafe fn by_ports(address: u32, port: u16, width: u32, value: Option<u32>) -> u32 {
    // SAFETY: as the caller says; the lock keeps address and data together.
    unsafe {
        port_write(CONFIG_ADDRESS, 4, address);
        match value {
            Some(value) => {
                port_write(port, width, value);
                0
            }
            None => port_read(port, width),
        }
    }
}

/// An access of the root by mechanism 1. `None`: a cell has the function.
pub fn root_access(address: u32, port: u16, width: u32, value: Option<u32>) -> Option<u32> {
    if address & CONFIG_ENABLE == 0 {
        return Some(u32::MAX);
    }
    let id = FunctionId {
        segment: 0,
        function: (address >> 8) as u16,
    };
    // Looked at with the lock held: who takes a function from the root takes the lock afterwards.
    let _guard = ADDRESS_LOCK.lock();
    if assigned::owner(id).is_some() {
        return None;
    }
    // SAFETY: a configuration access to a function of the root's own, as on bare hardware.
    Some(unsafe { by_ports(address, port, width, value) })
}

const fn port_of(id: FunctionId, offset: u16) -> (u32, u16) {
    let address = CONFIG_ENABLE | (id.function as u32) << 8 | (offset & 0xfc) as u32;
    (address, CONFIG_DATA | offset & 3)
}

/// Reads or writes configuration space for the hypervisor itself, by the ports.
fn by_ports_alone(id: FunctionId, offset: u16, width: u8, value: Option<u32>) -> u32 {
    let (address, port) = port_of(id, offset);
    let _guard = ADDRESS_LOCK.lock();
    // SAFETY: the lock is held. Reading configuration space changes nothing. What is written, the logic above decides;
    // nothing of the hypervisor depends on it, since the function's addresses stay as they were, and it is no bus master
    // unless an IOMMU holds it or the configuration trusts it with the machine.
    unsafe { by_ports(address, port, width.into(), value) }
}

impl Hardware for Access {
    fn read_config(&mut self, id: FunctionId, offset: u16, width: u8) -> u32 {
        if Self::has_ports(id, offset) {
            return by_ports_alone(id, offset, width, None);
        }
        match Self::place(id, offset) {
            Some(at) => self.windows.read_device(at, width) as u32,
            None => u32::MAX,
        }
    }

    fn write_config(&mut self, id: FunctionId, offset: u16, width: u8, value: u32) {
        if Self::has_ports(id, offset) {
            by_ports_alone(id, offset, width, Some(value));
        } else if let Some(at) = Self::place(id, offset) {
            self.windows.write_device(at, width, value.into());
        }
    }

    fn has_extended(&mut self, id: FunctionId) -> bool {
        page_of(id).is_some()
    }

    fn read_registers(&mut self, at: HostPhysical, width: u8) -> u64 {
        self.windows.read_device(at, width)
    }

    fn write_registers(&mut self, at: HostPhysical, width: u8, value: u64) {
        self.windows.write_device(at, width, value);
    }

    fn remap(
        &mut self,
        function: FunctionId,
        number: u16,
        order: u8,
        message: Option<Message>,
    ) -> Option<Message> {
        service::remap(self.windows, function, number, order, message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_where_the_ranges_say() {
        let range = |number, extent, physical| MachineRange {
            physical,
            size: 0,
            kind: RANGE_PCI_CONFIGURATION,
            extent,
            number,
        };
        set_ranges(&[
            range(0, 0x3f00, 0xe000_0000),
            range(2, 0x8540, 0x10_0000_0000),
        ]);
        for segment in 0..4u16 {
            for function in 0..=u16::MAX {
                let id = FunctionId { segment, function };
                let (bus, rest) = (function >> 8, u64::from(function & 0xff) << 12);
                let expected = match (segment, bus) {
                    (0, 0..=0x3f) => Some(0xe000_0000 | u64::from(bus) << 20 | rest),
                    (2, 0x40..=0x85) => Some(0x10_0000_0000 + (u64::from(bus - 0x40) << 20) + rest),
                    _ => None,
                };
                assert_eq!(page_of(id).map(HostPhysical::as_u64), expected);
                if let Some(at) = expected {
                    let range = ranges().find(|range| range.segment == segment).unwrap();
                    assert!(at - range.start < range.size());
                    assert_eq!(range.function(at - range.start + 0x123), (id, 0x123));
                }
            }
        }
    }

    #[test]
    fn mechanism_1_addresses_doublewords() {
        let id = FunctionId {
            segment: 0,
            function: 0x1234,
        };
        assert_eq!(port_of(id, 0x56), (0x8012_3454, 0xcfe));
        assert_eq!(port_of(id, 0xff), (0x8012_34fc, 0xcff));
    }
}
