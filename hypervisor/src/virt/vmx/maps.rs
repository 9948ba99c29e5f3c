//! Where the bits of MSRs and ports are: SDM, "MSR-Bitmap Address" and "I/O-Bitmap Addresses".
#![forbid(unsafe_code)]

use core::ops::RangeInclusive;

use crate::guest::bitmaps::{Direction, MsrLayout, PORT_BYTES, PortLayout};

/// Bytes for one direction of one range of MSRs.
const MSR_PART: usize = 1024;
/// MSRs of one range.
const MSRS_PER_RANGE: u32 = 0x2000;
/// First MSR of the high range.
const HIGH_MSRS: u32 = 0xc000_0000;

/// One page: reads of the low and of the high range, then writes of the low and of the high range.
#[derive(Clone, Copy, Debug)]
pub struct MsrBitmap;

impl MsrLayout for MsrBitmap {
    type Bytes = [u8; 4096];
    const INTERCEPT_ALL: Self::Bytes = [u8::MAX; 4096];
    const KEPT: &'static [u32] = &[];
    const COVERED: &'static [RangeInclusive<u32>] = &[0..=0x1fff, 0xc000_0000..=0xc000_1fff];

    fn position(msr: u32, direction: Direction) -> Option<(usize, u8)> {
        let (number, high) = if msr < MSRS_PER_RANGE {
            (msr, 0)
        } else {
            let number = msr.checked_sub(HIGH_MSRS)?;
            (number < MSRS_PER_RANGE).then_some((number, 1))?
        };
        let part = match direction {
            Direction::Read => high,
            Direction::Write => 2 | high,
        };
        let index = MSR_PART.wrapping_mul(part) | (number >> 3) as usize;
        Some((index, 1u8.wrapping_shl(number & 7)))
    }
}

/// Two pages: bitmap A with ports 0 to 0x7fff, behind it bitmap B with the others.
#[derive(Clone, Copy, Debug)]
pub struct PortBitmaps;

impl PortLayout for PortBitmaps {
    type Bytes = [u8; PORT_BYTES];
    const INTERCEPT_ALL: Self::Bytes = [u8::MAX; PORT_BYTES];
}
