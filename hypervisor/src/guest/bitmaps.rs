//! The maps that say which MSR and port accesses of a guest exit. A set bit means an exit.
//!
//! What each vendor's processors want is a [`MsrLayout`] and a [`PortLayout`]; the rest is the same for both.
#![forbid(unsafe_code)]

use core::fmt::Debug;
use core::marker::PhantomData;
use core::ops::RangeInclusive;

/// The MSR map has no bit for this MSR: its accesses always exit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotCovered;

/// Whether an MSR is read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// RDMSR.
    Read,
    /// WRMSR.
    Write,
}

/// Where the bits of MSRs are.
pub trait MsrLayout: Copy + Debug {
    /// Whole pages.
    type Bytes: AsRef<[u8]> + AsMut<[u8]> + Clone + Debug;
    /// All accesses exit.
    const INTERCEPT_ALL: Self::Bytes;
    /// The MSRs that have bits; all others exit whatever the map says.
    const COVERED: &'static [RangeInclusive<u32>];
    /// Registers whose accesses exit in every guest, since the processor does not switch them although the control block has
    /// them.
    const KEPT: &'static [u32];
    /// Index of the byte, and the bit. `None`: there is none.
    fn position(msr: u32, direction: Direction) -> Option<(usize, u8)>;
}

/// Where the bits of ports are: bit n of the map is that of port n, and behind the last port are bits that stay set.
pub trait PortLayout: Copy + Debug {
    /// Whole pages, [`PORT_BYTES`] or more.
    type Bytes: AsRef<[u8]> + AsMut<[u8]> + Clone + Debug;
    /// All accesses exit.
    const INTERCEPT_ALL: Self::Bytes;
}

/// The map of MSRs.
#[derive(Clone, Debug)]
#[repr(C, align(4096))]
pub struct MsrMap<L: MsrLayout>(L::Bytes, PhantomData<L>);

impl<L: MsrLayout> MsrMap<L> {
    /// 4 KiB frames of a map; they lie one behind the other.
    pub const FRAMES: usize = size_of::<Self>() / 4096;

    /// A map with which all accesses exit.
    #[must_use]
    pub const fn new() -> Self {
        Self(L::INTERCEPT_ALL, PhantomData)
    }

    /// Makes all accesses exit.
    pub fn intercept_all(&mut self) {
        self.0.as_mut().fill(u8::MAX);
    }

    /// Lets all accesses to the MSRs that the map covers pass.
    pub fn allow_all(&mut self) {
        self.0.as_mut().fill(0);
    }

    /// The bytes as the processor reads them.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_ref()
    }

    /// Lets the guest read the MSR.
    ///
    /// # Errors
    /// When the map does not cover it.
    pub fn allow_read(&mut self, msr: u32) -> Result<(), NotCovered> {
        self.set(msr, Direction::Read, false)
    }

    /// Lets the guest write the MSR.
    ///
    /// # Errors
    /// When the map does not cover it.
    pub fn allow_write(&mut self, msr: u32) -> Result<(), NotCovered> {
        self.set(msr, Direction::Write, false)
    }

    /// Lets the guest read all of these MSRs.
    ///
    /// # Errors
    /// When the map does not cover one of them; those before it are allowed then.
    pub fn allow_reads(&mut self, msrs: RangeInclusive<u32>) -> Result<(), NotCovered> {
        msrs.into_iter().try_for_each(|msr| self.allow_read(msr))
    }

    /// Lets the guest write all of these MSRs.
    ///
    /// # Errors
    /// When the map does not cover one of them; those before it are allowed then.
    pub fn allow_writes(&mut self, msrs: RangeInclusive<u32>) -> Result<(), NotCovered> {
        msrs.into_iter().try_for_each(|msr| self.allow_write(msr))
    }

    /// All MSRs that the map has a bit for.
    pub fn covered() -> impl Iterator<Item = u32> {
        L::COVERED.iter().cloned().flatten()
    }

    /// Makes reading the MSR exit. MSRs that the map does not cover exit anyway.
    pub fn intercept_read(&mut self, msr: u32) {
        let _ = self.set(msr, Direction::Read, true);
    }

    /// Makes writing the MSR exit. MSRs that the map does not cover exit anyway.
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
        let (index, bit) = L::position(msr, direction).ok_or(NotCovered)?;
        if let Some(byte) = self.0.as_mut().get_mut(index) {
            *byte = if exits { *byte | bit } else { *byte & !bit };
        }
        Ok(())
    }

    fn get(&self, msr: u32, direction: Direction) -> bool {
        L::position(msr, direction)
            .and_then(|(index, bit)| Some(self.0.as_ref().get(index)? & bit != 0))
            .unwrap_or(true)
    }
}

impl<L: MsrLayout> Default for MsrMap<L> {
    fn default() -> Self {
        Self::new()
    }
}

/// Number of I/O ports.
const PORTS: u32 = 1 << 16;
/// Bytes of a port map that hold the bits of ports.
pub const PORT_BYTES: usize = 8192;

/// The map of I/O ports.
#[derive(Clone, Debug)]
#[repr(C, align(4096))]
pub struct PortMap<L: PortLayout>(L::Bytes, PhantomData<L>);

impl<L: PortLayout> PortMap<L> {
    /// 4 KiB frames of a map; they lie one behind the other.
    pub const FRAMES: usize = size_of::<Self>() / 4096;

    /// A map with which all accesses exit.
    #[must_use]
    pub const fn new() -> Self {
        Self(L::INTERCEPT_ALL, PhantomData)
    }

    /// Makes all accesses exit.
    pub fn intercept_all(&mut self) {
        self.0.as_mut().fill(u8::MAX);
    }

    /// Lets the guest access all ports.
    pub fn allow_all(&mut self) {
        self.ports().fill(0);
    }

    /// The bytes as the processor reads them.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_ref()
    }

    /// The bytes of the ports that there are.
    fn ports(&mut self) -> &mut [u8] {
        self.0.as_mut().get_mut(..PORT_BYTES).unwrap_or_default()
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
            port >= PORTS
                || self
                    .0
                    .as_ref()
                    .get((port >> 3) as usize)
                    .is_none_or(|byte| byte & 1u8.wrapping_shl(port & 7) != 0)
        })
    }

    fn set(&mut self, first: u16, count: u16, exits: bool) {
        let mut port = u32::from(first);
        let end = port.wrapping_add(u32::from(count)).min(PORTS);
        let ports = self.ports();
        while port < end {
            // Bits of one byte at a time.
            let next = (port | 7).wrapping_add(1).min(end);
            let from = 0xffu8.wrapping_shl(port & 7);
            let up_to = 0xffu8.wrapping_shr(7u32.wrapping_sub(next.wrapping_sub(1) & 7));
            if let Some(byte) = ports.get_mut((port >> 3) as usize) {
                let bits = from & up_to;
                *byte = if exits { *byte | bits } else { *byte & !bits };
            }
            port = next;
        }
    }
}

impl<L: PortLayout> Default for PortMap<L> {
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
    use crate::virt::vmx::maps::{MsrBitmap, PortBitmaps};

    /// As the processor finds the bit of an MSR, written down a second time from the manual's list of the four parts.
    fn processor_exits(bitmap: &MsrMap<MsrBitmap>, msr: u32, write: bool) -> bool {
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
        let mut bitmap = Box::new(MsrMap::<MsrBitmap>::new());
        for msr in MsrMap::<MsrBitmap>::covered() {
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
        let mut bitmap = MsrMap::<MsrBitmap>::new();
        bitmap.allow_all();
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
        let mut bitmaps = Box::new(PortMap::<PortBitmaps>::new());
        for port in 0..=u16::MAX {
            bitmaps.allow(port, 1);
            let (page, number) = (usize::from(port >> 15), usize::from(port & 0x7fff));
            assert_eq!(bitmaps.0[page * 4096 + number / 8] >> (number % 8) & 1, 0);
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
            let mut bitmaps = PortMap::<PortBitmaps>::new();
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
