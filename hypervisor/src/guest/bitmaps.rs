//! The bitmaps that say which MSR and port accesses of a guest exit.
//!
//! Layouts as VMX has them: SDM, "MSR-Bitmap Address" and "I/O-Bitmap Addresses". A set bit means an exit.
#![forbid(unsafe_code)]

use core::ops::RangeInclusive;

const PAGE_BYTES: usize = 4096;
/// Bytes for one direction of one range of MSRs.
const MSR_PART: usize = 1024;
/// MSRs of one range.
const MSRS_PER_RANGE: u32 = 0x2000;
/// First MSR of the high range.
const HIGH_MSRS: u32 = 0xc000_0000;

/// The MSR bitmap has no bit for this MSR: its accesses always exit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotCovered;

/// The bitmap of MSRs 0 to 0x1fff and 0xc0000000 to 0xc0001fff; all others exit whatever it says.
#[derive(Clone, Debug)]
#[repr(C, align(4096))]
pub struct MsrBitmap([u8; PAGE_BYTES]);

/// Whether an MSR is read or written.
#[derive(Clone, Copy)]
enum Direction {
    Read = 0,
    Write = 2,
}

impl MsrBitmap {
    /// A bitmap with which all accesses exit.
    #[must_use]
    pub const fn new() -> Self {
        Self([u8::MAX; PAGE_BYTES])
    }

    /// Makes all accesses exit.
    pub fn intercept_all(&mut self) {
        self.0.fill(u8::MAX);
    }

    /// Lets all accesses to the MSRs that the bitmap covers pass.
    pub fn allow_all(&mut self) {
        self.0.fill(0);
    }

    /// The bytes as the processor reads them.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; PAGE_BYTES] {
        &self.0
    }

    /// Lets the guest read the MSR.
    ///
    /// # Errors
    /// When the bitmap does not cover it.
    pub fn allow_read(&mut self, msr: u32) -> Result<(), NotCovered> {
        self.set(msr, Direction::Read, false)
    }

    /// Lets the guest write the MSR.
    ///
    /// # Errors
    /// When the bitmap does not cover it.
    pub fn allow_write(&mut self, msr: u32) -> Result<(), NotCovered> {
        self.set(msr, Direction::Write, false)
    }

    /// Lets the guest read all of these MSRs.
    ///
    /// # Errors
    /// When the bitmap does not cover one of them; those before it are allowed then.
    pub fn allow_reads(&mut self, msrs: RangeInclusive<u32>) -> Result<(), NotCovered> {
        msrs.into_iter().try_for_each(|msr| self.allow_read(msr))
    }

    /// Lets the guest write all of these MSRs.
    ///
    /// # Errors
    /// When the bitmap does not cover one of them; those before it are allowed then.
    pub fn allow_writes(&mut self, msrs: RangeInclusive<u32>) -> Result<(), NotCovered> {
        msrs.into_iter().try_for_each(|msr| self.allow_write(msr))
    }

    /// All MSRs that the bitmap has a bit for.
    pub fn covered() -> impl Iterator<Item = u32> {
        (0..MSRS_PER_RANGE).chain(HIGH_MSRS..HIGH_MSRS | MSRS_PER_RANGE)
    }

    /// Makes reading the MSR exit. MSRs that the bitmap does not cover exit anyway.
    pub fn intercept_read(&mut self, msr: u32) {
        let _ = self.set(msr, Direction::Read, true);
    }

    /// Makes writing the MSR exit. MSRs that the bitmap does not cover exit anyway.
    pub fn intercept_write(&mut self, msr: u32) {
        let _ = self.set(msr, Direction::Write, true);
    }

    /// Whether reading the MSR exits.
    #[must_use]
    pub fn intercepts_read(&self, msr: u32) -> bool {
        self.get(msr, Direction::Read)
    }

    /// Whether writing the MSR exits.
    #[must_use]
    pub fn intercepts_write(&self, msr: u32) -> bool {
        self.get(msr, Direction::Write)
    }

    fn set(&mut self, msr: u32, direction: Direction, exits: bool) -> Result<(), NotCovered> {
        let (index, bit) = position(msr, direction).ok_or(NotCovered)?;
        if let Some(byte) = self.0.get_mut(index) {
            *byte = if exits { *byte | bit } else { *byte & !bit };
        }
        Ok(())
    }

    fn get(&self, msr: u32, direction: Direction) -> bool {
        position(msr, direction)
            .and_then(|(index, bit)| Some(self.0.get(index)? & bit != 0))
            .unwrap_or(true)
    }
}

impl Default for MsrBitmap {
    fn default() -> Self {
        Self::new()
    }
}

/// Index of the byte and the bit of an MSR.
fn position(msr: u32, direction: Direction) -> Option<(usize, u8)> {
    let (number, high) = if msr < MSRS_PER_RANGE {
        (msr, 0)
    } else {
        let number = msr.checked_sub(HIGH_MSRS)?;
        (number < MSRS_PER_RANGE).then_some((number, 1))?
    };
    let part = (direction as usize) | high;
    let index = part.wrapping_mul(MSR_PART) | (number >> 3) as usize;
    Some((index, 1u8.wrapping_shl(number & 7)))
}

/// Number of I/O ports.
const PORTS: u32 = 1 << 16;
const PORT_BYTES: usize = 2 * PAGE_BYTES;

/// The bitmaps of I/O ports: page A is that of ports 0 to 0x7fff, page B that of the others.
#[derive(Clone, Debug)]
#[repr(C, align(4096))]
pub struct PortBitmaps([u8; PORT_BYTES]);

impl PortBitmaps {
    /// Bytes from the start to bitmap B.
    pub const BITMAP_B: usize = PAGE_BYTES;

    /// Bitmaps with which all accesses exit.
    #[must_use]
    pub const fn new() -> Self {
        Self([u8::MAX; PORT_BYTES])
    }

    /// Makes all accesses exit.
    pub fn intercept_all(&mut self) {
        self.0.fill(u8::MAX);
    }

    /// Lets the guest access all ports.
    pub fn allow_all(&mut self) {
        self.0.fill(0);
    }

    /// The bytes as the processor reads them.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; PORT_BYTES] {
        &self.0
    }

    /// Lets the guest access the `count` ports from `first` on, as far as there are ports.
    pub fn allow(&mut self, first: u16, count: u16) {
        self.set(first, count, false);
    }

    /// Makes accesses to the `count` ports from `first` on exit, as far as there are ports.
    pub fn intercept(&mut self, first: u16, count: u16) {
        self.set(first, count, true);
    }

    /// Whether an access to `width` (1, 2 or 4) ports from `port` on exits: it does when any of them is intercepted, or
    /// when it wraps around the end of the port space.
    #[must_use]
    pub fn intercepts(&self, port: u16, width: u8) -> bool {
        (0..u32::from(width)).any(|offset| {
            let port = u32::from(port).wrapping_add(offset);
            self.0
                .get((port >> 3) as usize)
                .is_none_or(|byte| byte & 1u8.wrapping_shl(port & 7) != 0)
        })
    }

    fn set(&mut self, first: u16, count: u16, exits: bool) {
        let mut port = u32::from(first);
        let end = port.wrapping_add(u32::from(count)).min(PORTS);
        while port < end {
            // Bits of one byte at a time.
            let next = (port | 7).wrapping_add(1).min(end);
            let from = 0xffu8.wrapping_shl(port & 7);
            let up_to = 0xffu8.wrapping_shr(7u32.wrapping_sub(next.wrapping_sub(1) & 7));
            if let Some(byte) = self.0.get_mut((port >> 3) as usize) {
                let bits = from & up_to;
                *byte = if exits { *byte | bits } else { *byte & !bits };
            }
            port = next;
        }
    }
}

impl Default for PortBitmaps {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::boxed::Box;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    /// As the processor finds the bit of an MSR, written down a second time from the manual's list of the four parts.
    fn processor_exits(bitmap: &MsrBitmap, msr: u32, write: bool) -> bool {
        let parts = match (msr, write) {
            (0x0000_0000..=0x0000_1fff, false) => bitmap.0.get(0..1024),
            (0xc000_0000..=0xc000_1fff, false) => bitmap.0.get(1024..2048),
            (0x0000_0000..=0x0000_1fff, true) => bitmap.0.get(2048..3072),
            (0xc000_0000..=0xc000_1fff, true) => bitmap.0.get(3072..4096),
            _ => None,
        };
        parts.is_none_or(|part| {
            let number = (msr & 0x1fff) as usize;
            part[number / 8] >> (number % 8) & 1 != 0
        })
    }

    fn set_bits(bytes: &[u8]) -> u32 {
        bytes.iter().map(|byte| byte.count_ones()).sum()
    }

    #[test]
    fn every_msr_has_its_own_two_bits() {
        let mut bitmap = Box::new(MsrBitmap::new());
        for msr in MsrBitmap::covered() {
            bitmap.allow_read(msr).unwrap();
            assert!(!processor_exits(&bitmap, msr, false) && processor_exits(&bitmap, msr, true));
            assert!(!bitmap.intercepts_read(msr) && bitmap.intercepts_write(msr));
            assert_eq!(set_bits(&bitmap.0), 4096 * 8 - 1);
            bitmap.intercept_read(msr);
            bitmap.allow_write(msr).unwrap();
            assert!(processor_exits(&bitmap, msr, false) && !processor_exits(&bitmap, msr, true));
            assert!(bitmap.intercepts_read(msr) && !bitmap.intercepts_write(msr));
            assert_eq!(set_bits(&bitmap.0), 4096 * 8 - 1);
            bitmap.intercept_write(msr);
            assert_eq!(set_bits(&bitmap.0), 4096 * 8);
        }
    }

    #[test]
    fn msrs_outside_always_exit() {
        let mut bitmap = MsrBitmap([0; PAGE_BYTES]);
        for msr in [
            0x2000,
            0xbfff_ffff,
            0xc000_2000,
            0xc001_0117,
            0x4000_0000,
            u32::MAX,
        ] {
            assert!(bitmap.intercepts_read(msr) && bitmap.intercepts_write(msr));
            assert_eq!(bitmap.allow_read(msr), Err(NotCovered));
            assert_eq!(bitmap.allow_write(msr), Err(NotCovered));
            bitmap.intercept_read(msr);
            bitmap.intercept_write(msr);
            assert_eq!(set_bits(&bitmap.0), 0);
        }
        assert_eq!(bitmap.allow_reads(0x1ffe..=0x2001), Err(NotCovered));
        bitmap.intercept_all();
        assert_eq!(bitmap.allow_reads(0x800..=0x83f), Ok(()));
        assert_eq!(bitmap.allow_writes(0x802..=0x803), Ok(()));
        assert_eq!(set_bits(bitmap.as_bytes()), 4096 * 8 - 64 - 2);
    }

    #[test]
    fn every_port_has_its_own_bit() {
        let mut bitmaps = Box::new(PortBitmaps::new());
        for port in 0..=u16::MAX {
            bitmaps.allow(port, 1);
            let (page, number) = (usize::from(port >> 15), usize::from(port & 0x7fff));
            assert_eq!(
                bitmaps.0[page * PortBitmaps::BITMAP_B + number / 8] >> (number % 8) & 1,
                0
            );
            assert!(!bitmaps.intercepts(port, 1));
            assert!(bitmaps.intercepts(port, 2) && bitmaps.intercepts(port, 4));
            assert_eq!(set_bits(&bitmaps.0[(usize::from(port) / 8)..][..1]), 7);
            bitmaps.intercept(port, 1);
            assert!(bitmaps.intercepts(port, 1));
        }
        assert_eq!(set_bits(bitmaps.as_bytes()), PORTS);
        bitmaps.allow_all();
        assert_eq!(set_bits(bitmaps.as_bytes()), 0);
        // Accesses that wrap around exit whatever the bitmaps say.
        assert!(!bitmaps.intercepts(0xffff, 1) && bitmaps.intercepts(0xffff, 2));
        assert!(!bitmaps.intercepts(0xfffc, 4) && bitmaps.intercepts(0xfffd, 4));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn port_ranges_are_sets(ranges in prop::collection::vec(
            (any::<u16>(), prop_oneof![0u16..40, any::<u16>()], any::<bool>()), 1..6,
        )) {
            let mut bitmaps = PortBitmaps::new();
            let mut model: Vec<bool> = std::vec![true; PORTS as usize];
            for (first, count, exits) in ranges {
                if exits { bitmaps.intercept(first, count) } else { bitmaps.allow(first, count) }
                for bit in model.iter_mut().skip(first.into()).take(count.into()) {
                    *bit = exits;
                }
            }
            for port in 0..=u16::MAX {
                for width in [1, 2, 4] {
                    let expected = (0..width).any(|offset| {
                        model.get(usize::from(port) + offset).copied().unwrap_or(true)
                    });
                    prop_assert_eq!(bitmaps.intercepts(port, width as u8), expected);
                }
            }
        }
    }
}
