//! Where the bits of MSRs and ports are: AMD64 Architecture Programmer's Manual, volume 2, "MSR Intercepts" and "IOIO
//! Intercepts".
#![forbid(unsafe_code)]

use core::ops::RangeInclusive;

use crate::guest::bitmaps::{Direction, MsrLayout, PortLayout};
use crate::processor::msr;

/// Bytes of the part of one range of MSRs.
const PART: usize = 2048;
/// MSRs of one range.
const MSRS_PER_RANGE: u32 = 0x2000;
/// First MSR of each range, in the order of their parts.
const RANGES: [u32; 3] = [0, 0xc000_0000, 0xc001_0000];

/// Two pages: three ranges, two bits a register, the lower one for reads. The last part is reserved.
#[derive(Clone, Copy, Debug)]
pub struct MsrPermissions;

impl MsrLayout for MsrPermissions {
    type Bytes = [u8; 8192];
    const INTERCEPT_ALL: Self::Bytes = [u8::MAX; 8192];
    const KEPT: &'static [u32] = &[msr::EFER, msr::PAT];
    const COVERED: &'static [RangeInclusive<u32>] = &[
        0..=0x1fff,
        0xc000_0000..=0xc000_1fff,
        0xc001_0000..=0xc001_1fff,
    ];

    fn position(msr: u32, direction: Direction) -> Option<(usize, u8)> {
        let (part, first) = RANGES
            .into_iter()
            .enumerate()
            .find(|(_, first)| msr.wrapping_sub(*first) < MSRS_PER_RANGE)?;
        let bit = msr
            .wrapping_sub(first)
            .wrapping_mul(2)
            .wrapping_add(match direction {
                Direction::Read => 0,
                Direction::Write => 1,
            });
        let index = PART.wrapping_mul(part).wrapping_add((bit >> 3) as usize);
        Some((index, 1u8.wrapping_shl(bit & 7)))
    }
}

/// Three pages: one bit a port, and a few behind the last one, for accesses that wrap around.
#[derive(Clone, Copy, Debug)]
pub struct PortPermissions;

impl PortLayout for PortPermissions {
    type Bytes = [u8; 12288];
    const INTERCEPT_ALL: Self::Bytes = [u8::MAX; 12288];
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::bitmaps::{MsrMap, PortMap};

    /// As the processor finds the bit of an MSR, written down a second time from the manual's table of offsets.
    fn processor_exits(bytes: &[u8], msr: u32, write: bool) -> bool {
        let part = match msr {
            0x0000_0000..=0x0000_1fff => &bytes[0x000..0x800],
            0xc000_0000..=0xc000_1fff => &bytes[0x800..0x1000],
            0xc001_0000..=0xc001_1fff => &bytes[0x1000..0x1800],
            _ => return true,
        };
        let bit = (msr & 0x1fff) as usize * 2 + usize::from(write);
        part[bit / 8] >> (bit % 8) & 1 != 0
    }

    fn set_bits(bytes: &[u8]) -> u32 {
        bytes.iter().map(|byte| byte.count_ones()).sum()
    }

    #[test]
    fn every_msr_has_its_own_two_bits() {
        let mut map = Box::new(MsrMap::<MsrPermissions>::new());
        assert_eq!(MsrMap::<MsrPermissions>::FRAMES, 2);
        let mut count = 0;
        for msr in MsrMap::<MsrPermissions>::covered() {
            count += 1;
            map.allow_read(msr).unwrap();
            assert!(!processor_exits(map.as_bytes(), msr, false));
            assert!(processor_exits(map.as_bytes(), msr, true));
            assert!(!map.intercepts_read(msr) && map.intercepts_write(msr));
            map.intercept_read(msr);
            map.allow_write(msr).unwrap();
            assert!(processor_exits(map.as_bytes(), msr, false));
            assert!(!processor_exits(map.as_bytes(), msr, true));
            assert!(map.intercepts_read(msr) && !map.intercepts_write(msr));
            map.intercept_write(msr);
        }
        assert_eq!(count, 3 * 0x2000);
        assert_eq!(set_bits(map.as_bytes()), 8192 * 8);
        for msr in [
            0x2000,
            0xbfff_ffff,
            0xc000_2000,
            0xc000_ffff,
            0xc001_2000,
            u32::MAX,
        ] {
            assert!(map.allow_read(msr).is_err() && map.allow_write(msr).is_err());
            assert!(map.intercepts_read(msr) && map.intercepts_write(msr));
        }
    }

    #[test]
    fn every_port_has_its_own_bit_and_those_behind_stay_set() {
        let mut map = Box::new(PortMap::<PortPermissions>::new());
        assert_eq!(PortMap::<PortPermissions>::FRAMES, 3);
        for port in 0..=u16::MAX {
            map.allow(port, 1);
            let index = usize::from(port / 8);
            assert_eq!(map.as_bytes()[index] >> (port % 8) & 1, 0);
            assert!(!map.intercepts(port, 1) && map.intercepts(port, 2));
            map.intercept(port, 1);
        }
        map.allow_all();
        // "IOIO Intercepts": bits behind the last port are looked at when an access wraps around.
        assert!(map.as_bytes()[8192..].iter().all(|byte| *byte == u8::MAX));
        assert!(!map.intercepts(0xffff, 1) && map.intercepts(0xffff, 2));
        assert!(!map.intercepts(0xfffc, 4) && map.intercepts(0xfffd, 4));
    }
}
