//! Memory that a device of the cell reads and writes by itself (DMA).
//!
//! Where it is, and at which addresses the devices find it, is told in the communication region
//! ([`gaol_abi::communication::DmaHeader`]). [`Pool`] hands out pieces of it, each contiguous for the cell and for the
//! device.
//!
//! Invariant: what a device may write to is never memory of Rust's: it lies above `WINDOWS`, is accessed with
//! volatile reads and writes only, and is copied before anybody relies on it, since a device may change it at any time.

use core::fmt;

use gaol_abi::PAGE_SIZE;
use gaol_abi::communication::DmaRange;
use gaol_abi::config::MAX_MEMORY_REGIONS;

use crate::shared::GuestAddress;
use crate::{MAPPED_END, WINDOWS};

/// An address as a device uses it. With an IOMMU it is the cell's guest-physical address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeviceAddress(u64);

impl DeviceAddress {
    /// The address `address`.
    pub const fn new(address: u64) -> Self {
        Self(address)
    }

    /// The number.
    pub const fn number(self) -> u64 {
        self.0
    }
}

impl fmt::Display for DeviceAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// Memory that a driver shares with its device. Offsets count bytes.
///
/// All methods panic when an offset leaves the memory: that is an error of the driver, which has to check what the device
/// says before it uses it.
pub trait Memory {
    /// Bytes.
    fn size(&self) -> usize;

    /// Where the device finds this offset.
    fn device_address(&self, offset: usize) -> DeviceAddress;

    /// Reads 8 bytes at once; the offset is a multiple of 8.
    fn read(&self, offset: usize) -> u64;

    /// Writes 8 bytes at once; the offset is a multiple of 8.
    fn write(&mut self, offset: usize, value: u64);

    /// Copies out of the memory.
    fn copy_out(&self, offset: usize, to: &mut [u8]);

    /// Copies into the memory.
    fn copy_in(&mut self, offset: usize, from: &[u8]);
}

/// A piece of memory as the cell and a device see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// For the cell.
    pub guest: GuestAddress,
    /// For the device.
    pub device: DeviceAddress,
    /// Bytes.
    pub size: usize,
}

/// What there is for devices.
#[derive(Debug)]
pub struct Pool {
    free: [Piece; MAX_MEMORY_REGIONS],
    count: usize,
}

impl Pool {
    /// Takes the ranges that the hypervisor names, but for those that are not whole pages, not mapped, or the program's own.
    pub fn new(ranges: impl IntoIterator<Item = DmaRange>) -> Self {
        let nothing = Piece {
            guest: GuestAddress::new(0),
            device: DeviceAddress::new(0),
            size: 0,
        };
        let mut pool = Self {
            free: [nothing; MAX_MEMORY_REGIONS],
            count: 0,
        };
        for piece in ranges.into_iter().filter_map(usable) {
            if let Some(place) = pool.free.get_mut(pool.count) {
                *place = piece;
                pool.count += 1;
            }
        }
        pool
    }

    /// Takes so many bytes, rounded up to pages. `None`: there is no piece that large any more.
    pub fn take(&mut self, size: usize) -> Option<Piece> {
        let size = size.checked_next_multiple_of(PAGE_SIZE as usize)?;
        let free = self.free.iter_mut().take(self.count);
        let piece = free.into_iter().find(|piece| piece.size >= size)?;
        let taken = Piece { size, ..*piece };
        *piece = Piece {
            guest: GuestAddress::new(piece.guest.number() + size as u64),
            device: DeviceAddress::new(piece.device.number() + size as u64),
            size: piece.size - size,
        };
        Some(taken)
    }
}

fn usable(range: DmaRange) -> Option<Piece> {
    let DmaRange {
        guest,
        device,
        size,
    } = range;
    let aligned = (guest | device | size).is_multiple_of(PAGE_SIZE) && size > 0;
    let end = guest.checked_add(size)?;
    device.checked_add(size)?;
    (aligned && guest >= WINDOWS.number() && end <= MAPPED_END.number()).then_some(Piece {
        guest: GuestAddress::new(guest),
        device: DeviceAddress::new(device),
        size: usize::try_from(size).ok()?,
    })
}

/// A piece of memory for devices, in use.
#[derive(Debug)]
pub struct DmaMemory {
    base: *mut u64,
    size: usize,
    device: DeviceAddress,
}

impl DmaMemory {
    /// The memory at `base`.
    ///
    /// # Safety
    /// As long as this is used, `base` must be valid for volatile reads and writes of `size` bytes, and no reference may point
    /// there.
    ///
    /// # Panics
    /// When `base` or `size` is no multiple of 8.
    pub unsafe fn from_pointer(base: *mut u64, size: usize, device: DeviceAddress) -> Self {
        assert!(base.is_aligned() && size.is_multiple_of(8));
        Self { base, size, device }
    }

    /// Memory that is given away for ever; for tests.
    pub fn over(memory: &'static mut [u64], device: DeviceAddress) -> Self {
        Self {
            size: size_of_val(memory),
            base: memory.as_mut_ptr(),
            device,
        }
    }

    #[track_caller]
    fn check(&self, offset: usize, length: usize) {
        assert!(
            offset <= self.size && length <= self.size - offset,
            "{length} bytes at {offset:#x} are not in {:#x} bytes for devices",
            self.size
        );
    }
}

#[cfg(target_os = "none")]
impl From<Piece> for DmaMemory {
    /// Takes the piece into use. Whether the configuration maps anything there shows when it is used.
    fn from(piece: Piece) -> Self {
        let base = piece.guest.number() as *mut u64;
        // SAFETY: `Pool` hands out each piece once, and only above what is Rust's, where everything is mapped.
        unsafe { Self::from_pointer(base, piece.size, piece.device) }
    }
}

impl Memory for DmaMemory {
    fn size(&self) -> usize {
        self.size
    }

    fn device_address(&self, offset: usize) -> DeviceAddress {
        self.check(offset, 0);
        DeviceAddress(self.device.0 + offset as u64)
    }

    fn read(&self, offset: usize) -> u64 {
        self.check(offset, 8);
        assert!(offset.is_multiple_of(8), "{offset:#x} is unaligned");
        // SAFETY: It is inside (check), aligned, and readable (from_pointer).
        unsafe { self.base.byte_add(offset).read_volatile() }
    }

    fn write(&mut self, offset: usize, value: u64) {
        self.check(offset, 8);
        assert!(offset.is_multiple_of(8), "{offset:#x} is unaligned");
        // SAFETY: It is inside (check), aligned, and writable (from_pointer).
        unsafe { self.base.byte_add(offset).write_volatile(value) };
    }

    fn copy_out(&self, offset: usize, to: &mut [u8]) {
        self.check(offset, to.len());
        let mut from = self.base.cast_const().cast::<u8>().wrapping_add(offset);
        let mut words = to.chunks_exact_mut(8);
        for word in &mut words {
            // SAFETY: It is inside (check) and readable (from_pointer); an unaligned read is split by nobody but the CPU.
            let value = unsafe { read_word(from) };
            word.copy_from_slice(&value.to_ne_bytes());
            from = from.wrapping_add(8);
        }
        for byte in words.into_remainder() {
            // SAFETY: As before.
            *byte = unsafe { from.read_volatile() };
            from = from.wrapping_add(1);
        }
    }

    fn copy_in(&mut self, offset: usize, from: &[u8]) {
        self.check(offset, from.len());
        let mut to = self.base.cast::<u8>().wrapping_add(offset);
        for byte in from {
            // SAFETY: It is inside (check) and writable (from_pointer).
            unsafe { to.write_volatile(*byte) };
            to = to.wrapping_add(1);
        }
    }
}

/// Reads a word that need not be aligned.
///
/// # Safety
/// All of it is readable.
unsafe fn read_word(from: *const u8) -> u64 {
    let mut bytes = [0; 8];
    if from.cast::<u64>().is_aligned() {
        // SAFETY: As the caller promises, and it is aligned.
        return unsafe { from.cast::<u64>().read_volatile() };
    }
    for (index, byte) in bytes.iter_mut().enumerate() {
        // SAFETY: As the caller promises.
        *byte = unsafe { from.wrapping_add(index).read_volatile() };
    }
    u64::from_ne_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn memory(words: usize) -> DmaMemory {
        let words = Box::leak(vec![0; words].into_boxed_slice());
        DmaMemory::over(words, DeviceAddress::new(0x7000))
    }

    fn range(guest: u64, device: u64, size: u64) -> DmaRange {
        DmaRange {
            guest,
            device,
            size,
        }
    }

    #[test]
    fn pieces_are_taken_in_pages_and_once() {
        let mut pool = Pool::new([
            range(0x20_0000, 0x123_0000, 0x2000),
            range(0x40_0000, 0x400_0000, 0x4000),
        ]);
        let first = pool.take(1).unwrap();
        assert_eq!(
            (first.guest.number(), first.device.number(), first.size),
            (0x20_0000, 0x123_0000, 0x1000)
        );
        let large = pool.take(0x1001).unwrap();
        assert_eq!(large.guest.number(), 0x40_0000);
        let rest = pool.take(0x1000).unwrap();
        assert_eq!(
            (rest.guest.number(), rest.device.number()),
            (0x20_1000, 0x123_1000)
        );
        assert_eq!(pool.take(0x3000), None);
        assert_eq!(pool.take(usize::MAX), None);
        assert!(pool.take(0x2000).is_some());
        assert_eq!(pool.take(1), None);
    }

    #[test]
    fn what_is_the_programs_own_or_makes_no_sense_is_left_alone() {
        let mut pool = Pool::new([
            range(0, 0x1000, 0x10_0000),
            range(0x1f_f000, 0x1000, 0x2000),
            range(0x20_0800, 0x1000, 0x1000),
            range(0x20_0000, 0x1080, 0x1000),
            range(0x20_0000, 0x1000, 0),
            range(0xffff_f000, 0x1000, 0x2000),
            range(u64::MAX - 0xfff, 0x1000, 0x1000),
            range(0x20_0000, u64::MAX - 0xfff, 0x1000),
        ]);
        assert_eq!(pool.take(1), None);
    }

    #[test]
    fn more_ranges_than_there_are_places_for_are_survived() {
        let ranges = (0..2 * MAX_MEMORY_REGIONS as u64)
            .map(|number| range(0x20_0000 + 0x1000 * number, 0x1000, 0x1000));
        let mut pool = Pool::new(ranges);
        let pieces = core::iter::from_fn(|| pool.take(1)).count();
        assert_eq!(pieces, MAX_MEMORY_REGIONS);
    }

    #[test]
    fn the_device_has_its_own_addresses() {
        let mut memory = memory(4);
        assert_eq!(memory.device_address(0x18).number(), 0x7018);
        memory.write(0x18, 0x0102_0304_0506_0708);
        assert_eq!(memory.read(0x18), 0x0102_0304_0506_0708);
        assert_eq!(memory.size(), 32);
    }

    #[test]
    #[should_panic(expected = "are not in 0x20 bytes")]
    fn nothing_beyond_the_end_is_read() {
        memory(4).read(0x20);
    }

    #[test]
    #[should_panic(expected = "are not in 0x20 bytes")]
    fn nothing_beyond_the_end_is_written() {
        memory(4).copy_in(0x1e, &[0; 3]);
    }

    #[test]
    #[should_panic(expected = "unaligned")]
    fn words_are_aligned() {
        memory(4).read(4);
    }

    proptest! {
        #[test]
        fn what_is_copied_in_comes_out(bytes in proptest::collection::vec(any::<u8>(), 0..100), offset in 0usize..28) {
            let mut memory = memory(16);
            memory.copy_in(offset, &bytes);
            let mut out = vec![0; bytes.len()];
            memory.copy_out(offset, &mut out);
            prop_assert_eq!(&out, &bytes);
            let mut all = vec![0; 128];
            memory.copy_out(0, &mut all);
            prop_assert!(all[..offset].iter().chain(&all[offset + bytes.len()..]).all(|byte| *byte == 0));
        }

        #[test]
        fn pieces_of_a_pool_never_touch(sizes in proptest::collection::vec(1usize..0x6000, 1..30)) {
            let mut pool = Pool::new([range(0x20_0000, 0x20_0000, 0x1_0000), range(0x80_0000, 0x100_0000, 0x8000)]);
            let mut taken: Vec<Piece> = Vec::new();
            for size in sizes {
                let Some(piece) = pool.take(size) else { continue };
                prop_assert!(piece.size >= size);
                for other in &taken {
                    let apart = |a: u64, b: u64| a + piece.size as u64 <= b || b + other.size as u64 <= a;
                    prop_assert!(apart(piece.guest.number(), other.guest.number()));
                    prop_assert!(apart(piece.device.number(), other.device.number()));
                }
                taken.push(piece);
            }
        }
    }
}
