//! Configuration space and the registers of functions, as the logic sees them.
#![forbid(unsafe_code)]

use super::message::Message;
use crate::memory::address::HostPhysical;

/// Bytes of configuration space that every function has.
pub const STANDARD_SIZE: u16 = 256;
/// Bytes of configuration space that a function of PCI Express has.
pub const EXTENDED_SIZE: u16 = 4096;

/// The address of a function.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FunctionId {
    /// PCI segment group.
    pub segment: u16,
    /// Bus << 8 | device << 3 | function.
    pub function: u16,
}

impl FunctionId {
    /// Segment and function as one number.
    #[must_use]
    pub const fn number(self) -> u32 {
        (self.segment as u32) << 16 | self.function as u32
    }
}

/// The machine's PCI functions.
pub trait Hardware {
    /// Reads `width` (1, 2 or 4) bytes at `offset`, inside one aligned doubleword. Ones where there is nothing.
    fn read_config(&mut self, function: FunctionId, offset: u16, width: u8) -> u32;

    /// Writes the low `width` (1, 2 or 4) bytes of `value` at `offset`, inside one aligned doubleword.
    fn write_config(&mut self, function: FunctionId, offset: u16, width: u8, value: u32);

    /// Whether configuration space beyond the first 256 bytes can be reached.
    fn has_extended(&mut self, function: FunctionId) -> bool;

    /// Reads `width` (1, 2, 4 or 8) bytes of a device's registers at an address that is a multiple of `width`.
    fn read_registers(&mut self, at: HostPhysical, width: u8) -> u64;

    /// Writes them.
    fn write_registers(&mut self, at: HostPhysical, width: u8, value: u64);

    /// What the function has to be told to send for two to the `order` messages to arrive as `message` says, which are its
    /// interrupts from `number` on; `None`: they are not to arrive, or can't.
    fn remap(
        &mut self,
        function: FunctionId,
        number: u16,
        order: u8,
        message: Option<Message>,
    ) -> Option<Message>;
}

/// One function of the machine.
pub(super) struct Config<'a, H: ?Sized> {
    pub(super) hardware: &'a mut H,
    pub(super) id: FunctionId,
}

impl<H: Hardware + ?Sized> Config<'_, H> {
    pub(super) fn read8(&mut self, offset: u16) -> u8 {
        self.hardware.read_config(self.id, offset, 1) as u8
    }

    pub(super) fn read16(&mut self, offset: u16) -> u16 {
        self.hardware.read_config(self.id, offset, 2) as u16
    }

    pub(super) fn read32(&mut self, offset: u16) -> u32 {
        self.hardware.read_config(self.id, offset, 4)
    }

    pub(super) fn write8(&mut self, offset: u16, value: u8) {
        self.hardware.write_config(self.id, offset, 1, value.into());
    }

    pub(super) fn write16(&mut self, offset: u16, value: u16) {
        self.hardware.write_config(self.id, offset, 2, value.into());
    }

    pub(super) fn write32(&mut self, offset: u16, value: u32) {
        self.hardware.write_config(self.id, offset, 4, value);
    }
}

/// What is written into a doubleword: the bits that count, at their place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Written {
    /// Bits that are written.
    pub mask: u32,
    /// Their values; 0 elsewhere.
    pub value: u32,
}

impl Written {
    /// The low `width` bytes of `value` at byte `byte` of a doubleword, as far as they lie in it.
    #[must_use]
    pub const fn new(byte: u32, width: u32, value: u32) -> Self {
        let bits = match width {
            0 => 0,
            1..=3 => 1u32.wrapping_shl(width.wrapping_mul(8)).wrapping_sub(1),
            _ => u32::MAX,
        };
        let shift = byte.wrapping_mul(8) & 31;
        Self {
            mask: bits << shift,
            value: (value & bits) << shift,
        }
    }

    /// `old` with what is written.
    #[must_use]
    pub const fn over(self, old: u32) -> u32 {
        old & !self.mask | self.value
    }

    /// Whether one of these bits is written.
    #[must_use]
    pub const fn touches(self, bits: u32) -> bool {
        self.mask & bits != 0
    }
}

/// A part of an access: inside one aligned doubleword.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Piece {
    /// Where its doubleword is.
    pub dword: u64,
    /// Its first byte in it.
    pub byte: u32,
    /// How many bytes.
    pub width: u32,
    /// Its first byte in the access, in bits.
    pub shift: u32,
}

/// The parts of an access of `width` bytes at `offset`: at most three.
pub fn pieces(offset: u64, width: u8) -> impl Iterator<Item = Piece> {
    let mut done = 0u32;
    let total = u32::from(width.min(8));
    core::iter::from_fn(move || {
        let left = total.checked_sub(done).filter(|left| *left != 0)?;
        let at = offset.wrapping_add(u64::from(done));
        let byte = (at & 3) as u32;
        let piece = Piece {
            dword: at & !3,
            byte,
            width: left.min(4u32.wrapping_sub(byte)),
            shift: done.wrapping_mul(8),
        };
        done = done.wrapping_add(piece.width);
        Some(piece)
    })
}

impl Piece {
    /// What this part of `value` writes.
    #[must_use]
    pub const fn written(self, value: u64) -> Written {
        Written::new(self.byte, self.width, (value >> (self.shift & 63)) as u32)
    }

    /// The part of a read value that the doubleword gives.
    #[must_use]
    pub const fn read(self, dword: u32) -> u64 {
        let bits = Written::new(0, self.width, u32::MAX).mask;
        ((dword >> (self.byte.wrapping_mul(8) & 31) & bits) as u64) << (self.shift & 63)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accesses_fall_into_doublewords() {
        let memory: Vec<u8> = (0..32)
            .map(|byte: u8| byte.wrapping_mul(37) ^ 0x5a)
            .collect();
        let dword = |at: u64| {
            let at = at as usize;
            u32::from_le_bytes(memory[at..at + 4].try_into().unwrap())
        };
        for offset in 0..16u64 {
            for width in [1u8, 2, 4, 8] {
                let mut wanted = [0; 8];
                let at = offset as usize;
                wanted[..usize::from(width)].copy_from_slice(&memory[at..at + usize::from(width)]);
                let wanted = u64::from_le_bytes(wanted);
                let read = pieces(offset, width)
                    .fold(0, |value, piece| value | piece.read(dword(piece.dword)));
                assert_eq!(read, wanted);
                // What is written by pieces is what was to be written, and nothing else.
                let mut copy = vec![0xeeu8; 32];
                for piece in pieces(offset, width) {
                    let at = piece.dword as usize;
                    let old = u32::from_le_bytes(copy[at..at + 4].try_into().unwrap());
                    let new = piece.written(wanted).over(old);
                    copy[at..at + 4].copy_from_slice(&new.to_le_bytes());
                }
                let mut expected = vec![0xeeu8; 32];
                expected[at..at + usize::from(width)]
                    .copy_from_slice(&memory[at..at + usize::from(width)]);
                assert_eq!(copy, expected);
            }
        }
        assert_eq!(pieces(u64::MAX, 8).count(), 3);
    }
}
