//! The two shapes in which compilers store to a device register, decoded without a table.
//!
//! A short cut in front of [`super::decode`] for the most frequent exit of Linux in xAPIC mode; whatever is not one of
//! the two, and whatever has a prefix but REX without W, is left to the decoder.
#![forbid(unsafe_code)]

/// A 4-byte store in 64-bit mode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Store {
    /// Bytes of the instruction.
    pub length: u8,
    /// What is stored.
    pub source: Source,
}

/// What a [`Store`] stores.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// The low half of this general register.
    Register(u8),
    /// This number.
    Immediate(u32),
}

const REX: u128 = 0x40;
const REX_W: u128 = 8;
const REX_R: u128 = 4;
const MOV_REGISTER: u128 = 0x89;
const MOV_IMMEDIATE: u128 = 0xc7;

/// Decodes the instruction at the start of `bytes` (the first byte is the lowest). `None`: not one of the two shapes.
#[inline(always)]
#[must_use]
pub fn plain_store(bytes: u128) -> Option<Store> {
    let has_rex = bytes & 0xf0 == REX;
    if has_rex && bytes & REX_W != 0 {
        return None;
    }
    let (rest, prefix, high) = if has_rex {
        (bytes >> 8, 1u8, ((bytes & REX_R) << 1) as u8)
    } else {
        (bytes, 0, 0)
    };
    let opcode = rest & 0xff;
    let modrm = (rest >> 8) as u8;
    // Displacement by mod and r/m: SDM, "ModR/M and SIB Bytes".
    let operand = match (modrm >> 6, modrm & 7) {
        (0, 4) if (rest >> 16) & 7 == 5 => 5u8,
        (0, 4) => 1,
        (0, 5) => 4,
        (0, _) => 0,
        (1, 4) => 2,
        (1, _) => 1,
        (2, 4) => 5,
        (2, _) => 4,
        _ => return None,
    };
    let length = operand.wrapping_add(prefix).wrapping_add(2);
    if opcode == MOV_REGISTER {
        let number = ((modrm >> 3) & 7) | high;
        return Some(Store {
            length,
            source: Source::Register(number),
        });
    }
    if opcode != MOV_IMMEDIATE || modrm & 0x38 != 0 {
        return None;
    }
    let value = bytes.wrapping_shr(u32::from(length).wrapping_mul(8)) as u32;
    Some(Store {
        length: length.wrapping_add(4),
        source: Source::Immediate(value),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::guest::decode::{Mode, Operand, Operation, decode};

    fn agrees(bytes: u128) {
        let Some(store) = plain_store(bytes) else {
            return;
        };
        let decoded = decode(&bytes.to_le_bytes()[..15], Mode::Bits64);
        let Ok(instruction) = decoded else {
            panic!("{bytes:#034x}: {store:?} but {decoded:?}");
        };
        assert_eq!(instruction.length, store.length, "{bytes:#034x}");
        let is_store = instruction.operation == Operation::MOVE && !instruction.to_register;
        assert_eq!((is_store, instruction.width), (true, 4), "{bytes:#034x}");
        let operand = match store.source {
            Source::Register(number) => Operand::Register(number),
            Source::Immediate(value) => Operand::Immediate(value as i32 as u64),
        };
        assert_eq!(instruction.operand, operand, "{bytes:#034x}");
    }

    #[test]
    fn every_rex_modrm_and_sib_agrees_with_the_decoder() {
        for opcode in [0x89u128, 0xc7] {
            for rex in (0x40..0x50u128).map(Some).chain([None]) {
                for tail in 0..=0xffffu128 {
                    let rest = opcode | tail << 8 | 0x1234_5678_9abc_def0_1234 << 24;
                    agrees(rex.map_or(rest, |rex| rex | rest << 8));
                }
            }
        }
    }

    #[test]
    fn the_stores_of_linux_are_known() {
        // mov %eax, 0xffffffffff5fd0b0 and movl $0, 0xffffffffff5fd0b0
        let register = plain_store(0xff_5fd0_b025_0489).unwrap();
        assert_eq!(
            register,
            Store {
                length: 7,
                source: Source::Register(0)
            }
        );
        let immediate = plain_store(0xff_5fd0_b025_04c7).unwrap();
        assert_eq!(
            immediate,
            Store {
                length: 11,
                source: Source::Immediate(0)
            }
        );
    }

    proptest! {
        #[test]
        fn any_bytes_agree_with_the_decoder(bytes in any::<u128>()) {
            agrees(bytes);
        }
    }
}
