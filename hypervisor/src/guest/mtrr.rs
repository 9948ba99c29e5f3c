//! The memory type range registers as a guest sees them: what it wrote, and nothing behind it.
//!
//! Memory types stay as they were at the launch, since the EPT was built from them. Invariant: what is kept here is what the
//! processor itself would have taken (SDM, "Memory Type Range Registers (MTRRs)").
#![forbid(unsafe_code)]

use crate::memory::memory_types::MAX_VARIABLE;
use crate::processor::msr;

const FIXED_COUNT: usize = 11;
const VARIABLE_REGISTERS: usize = MAX_VARIABLE * 2;
/// IA32_MTRRCAP: fixed-range registers exist.
const HAS_FIXED: u64 = 1 << 8;
/// IA32_MTRR_DEF_TYPE: MTRRs and fixed-range MTRRs are in use.
const DEFAULT_FLAGS: u64 = 0b11 << 10;
/// IA32_MTRR_PHYSMASK: the pair is in use.
const MASK_VALID: u64 = 1 << 11;

/// The registers of one CPU.
#[derive(Clone, Copy, Debug)]
pub struct Mtrrs {
    /// IA32_MTRR_DEF_TYPE.
    pub default_type: u64,
    fixed: [u64; FIXED_COUNT],
    variable: [u64; VARIABLE_REGISTERS],
    /// Variable-range registers that there are, two a pair.
    variable_count: u32,
    has_fixed: bool,
    /// Bits of addresses that exist.
    address_mask: u64,
}

/// Where a register is kept.
enum Place {
    Default,
    Fixed(usize),
    Variable(usize),
}

/// The register of a fixed range, by its place in the list.
fn fixed_index(register: u32) -> Option<usize> {
    let (first, before) = match register {
        msr::MTRR_FIXED_64K => (msr::MTRR_FIXED_64K, 0),
        0x258..=0x259 => (msr::MTRR_FIXED_16K, 1),
        0x268..=0x26f => (msr::MTRR_FIXED_4K, 3),
        _ => return None,
    };
    Some((register.wrapping_sub(first) as usize).wrapping_add(before))
}

const fn is_type(value: u8) -> bool {
    matches!(value, 0 | 1 | 4 | 5 | 6)
}

impl Mtrrs {
    /// What the processor has. `read` reads one of its registers.
    #[must_use]
    pub fn of_the_processor(read: impl Fn(u32) -> u64, physical_bits: u32) -> Self {
        let mut registers = Self::cleared(&read, physical_bits);
        registers.default_type = read(msr::MTRR_DEF_TYPE);
        let variable = (msr::MTRR_VARIABLE..).take(registers.variable_count as usize);
        for (value, register) in registers.variable.iter_mut().zip(variable) {
            *value = read(register);
        }
        if registers.has_fixed {
            let fixed = [msr::MTRR_FIXED_64K, 0x258, 0x259].into_iter();
            let fixed = fixed.chain(msr::MTRR_FIXED_4K..=0x26f);
            for (value, register) in registers.fixed.iter_mut().zip(fixed) {
                *value = read(register);
            }
        }
        registers
    }

    /// As many registers as the processor has, with nothing in them, as after power-on.
    #[must_use]
    pub fn cleared(read: impl Fn(u32) -> u64, physical_bits: u32) -> Self {
        let capabilities = read(msr::MTRR_CAP);
        let pairs = (capabilities & 0xff).min(MAX_VARIABLE as u64) as u32;
        Self {
            default_type: 0,
            fixed: [0; FIXED_COUNT],
            variable: [0; VARIABLE_REGISTERS],
            variable_count: pairs.wrapping_mul(2),
            has_fixed: capabilities & HAS_FIXED != 0,
            address_mask: 1u64.wrapping_shl(physical_bits.min(52)).wrapping_sub(1) & !0xfff,
        }
    }

    fn place(&self, register: u32) -> Option<Place> {
        let variable = register.wrapping_sub(msr::MTRR_VARIABLE);
        if register == msr::MTRR_DEF_TYPE {
            Some(Place::Default)
        } else if variable < self.variable_count {
            Some(Place::Variable(variable as usize))
        } else {
            fixed_index(register)
                .filter(|_| self.has_fixed)
                .map(Place::Fixed)
        }
    }

    /// What a register holds. `None`: there is no such register.
    #[must_use]
    pub fn get(&self, register: u32) -> Option<u64> {
        match self.place(register)? {
            Place::Default => Some(self.default_type),
            Place::Fixed(index) => self.fixed.get(index).copied(),
            Place::Variable(index) => self.variable.get(index).copied(),
        }
    }

    /// Keeps a value. `None`: the processor would raise #GP.
    #[must_use]
    pub fn set(&mut self, register: u32, value: u64) -> Option<()> {
        let place = self.place(register)?;
        let (legal, slot) = match place {
            Place::Default => (
                value & !(0xff | DEFAULT_FLAGS) == 0 && is_type(value as u8),
                Some(&mut self.default_type),
            ),
            Place::Fixed(index) => (
                value.to_le_bytes().into_iter().all(is_type),
                self.fixed.get_mut(index),
            ),
            // Bases are at even places, masks at odd ones.
            Place::Variable(index) => {
                let is_legal = if index & 1 == 0 {
                    value & !(self.address_mask | 0xff) == 0 && is_type(value as u8)
                } else {
                    value & !(self.address_mask | MASK_VALID) == 0
                };
                (is_legal, self.variable.get_mut(index))
            }
        };
        if legal {
            *slot? = value;
        }
        legal.then_some(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: [u32; 11] = [
        0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f,
    ];

    /// A processor with so many pairs, whose registers hold their own number as an address.
    fn processor(pairs: u64, fixed: bool) -> Mtrrs {
        let read = |register: u32| match register {
            msr::MTRR_CAP => pairs | u64::from(fixed) << 8,
            msr::MTRR_DEF_TYPE => 0xc06,
            _ => u64::from(register) << 12,
        };
        Mtrrs::of_the_processor(read, 39)
    }

    #[test]
    fn there_are_as_many_as_the_processor_has() {
        for (pairs, fixed) in [(0, false), (8, true), (10, false), (32, true), (255, true)] {
            let mut registers = processor(pairs, fixed);
            for register in 0..0x400 {
                let is_variable = (0x200..0x200 + 2 * pairs.min(32) as u32).contains(&register);
                let exists = register == 0x2ff || is_variable || fixed && ALL.contains(&register);
                assert_eq!(registers.get(register).is_some(), exists, "{register:#x}");
                assert_eq!(registers.set(register, 0).is_some(), exists);
                assert_eq!(registers.get(register), exists.then_some(0));
            }
        }
    }

    #[test]
    fn they_hold_what_the_processor_had() {
        let registers = processor(10, true);
        for register in (0x200..0x214).chain(ALL) {
            assert_eq!(registers.get(register), Some(u64::from(register) << 12));
        }
        assert_eq!(registers.get(0x2ff), Some(0xc06));
    }

    #[test]
    fn illegal_values_are_refused_and_change_nothing() {
        let mut registers = processor(8, true);
        for value in 0..=0xffffu64 {
            let kind = value & 0xff;
            let known = [0, 1, 4, 5, 6].contains(&kind);
            assert_eq!(
                registers.set(0x2ff, value).is_some(),
                known && value & !0xcff == 0
            );
            assert_eq!(
                registers.set(0x200, value).is_some(),
                known && value & !0xf0ff == 0
            );
            assert_eq!(registers.set(0x201, value).is_some(), value & !0xf800 == 0);
            assert_eq!(
                registers.set(0x26f, value).is_some(),
                known && [0, 1, 4, 5, 6].contains(&(value >> 8))
            );
        }
        assert_eq!(registers.set(0x200, 6), Some(()));
        assert_eq!(registers.set(0x200, 1 << 39 | 6), None);
        assert_eq!(registers.get(0x200), Some(6));
        assert_eq!(registers.set(0x203, 0x7f_ffff_f800), Some(()));
        assert_eq!(registers.set(0x203, 0xff_ffff_f800), None);
        assert_eq!(registers.get(0x203), Some(0x7f_ffff_f800));
    }

    proptest! {
        #[test]
        fn what_is_taken_is_read_back_and_nothing_else_changes(
            writes in prop::collection::vec((0x1f0u32..0x310, prop_oneof![any::<u64>(), 0u64..8]), 1..40)
        ) {
            let mut registers = processor(8, true);
            for (register, value) in writes {
                let before = registers;
                let taken = registers.set(register, value).is_some();
                for other in 0x1f0..0x310 {
                    let expected = if taken && other == register { Some(value) } else { before.get(other) };
                    prop_assert_eq!(registers.get(other), expected);
                }
            }
        }
    }
}
