//! What an instruction with an operand in memory does, as a function of what it finds there.
//!
//! The flags are those that the processor leaves; where the SDM leaves one undefined, it is what processors of Intel
//! make of it: the auxiliary carry is 0 after logic, and BT and its kin change the carry only.
#![forbid(unsafe_code)]

use super::decode::{Instruction, Operand, Operation, mask};

/// Bits of RFLAGS.
mod flag {
    pub const CARRY: u64 = 1;
    pub const PARITY: u64 = 1 << 2;
    pub const AUXILIARY: u64 = 1 << 4;
    pub const ZERO: u64 = 1 << 6;
    pub const SIGN: u64 = 1 << 7;
    pub const OVERFLOW: u64 = 1 << 11;
    pub const STATUS: u64 = CARRY | PARITY | AUXILIARY | ZERO | SIGN | OVERFLOW;
}

/// What an instruction leaves behind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// What it writes to memory.
    pub memory: Option<u64>,
    /// The register that it changes, and all of its content.
    pub register: Option<(u8, u64)>,
    /// RFLAGS.
    pub flags: u64,
}

/// What `instruction` does when memory holds `data` (which only counts if it reads memory), the general registers are as
/// `register` tells, and RFLAGS are `flags`. Of string instructions: one element; counting and stepping is left out.
#[must_use]
pub fn execute(
    instruction: &Instruction,
    data: u64,
    register: impl Fn(u8) -> u64,
    flags: u64,
) -> Outcome {
    let width = instruction.width;
    let data = data & mask(width);
    let (number, before) = match instruction.operand {
        Operand::Register(number) | Operand::HighByte(number) => (number, register(number)),
        Operand::Immediate(_) => (0, 0),
    };
    let source = match instruction.operand {
        Operand::Register(_) => before,
        Operand::HighByte(_) => before >> 8,
        Operand::Immediate(value) => value,
    } & mask(instruction.register_width);
    let into_register = |value| {
        let is_high = matches!(instruction.operand, Operand::HighByte(_));
        Some((
            number,
            put(before, value, instruction.register_width, is_high),
        ))
    };
    let mut outcome = Outcome {
        memory: None,
        register: None,
        flags,
    };
    // Where results go: that is the first operand.
    let (first, second) = if instruction.to_register {
        (source, data)
    } else {
        (data, source)
    };
    let result = match instruction.operation {
        Operation::SET | Operation::MOVE_IF => {
            let holds = condition(instruction.condition, flags);
            match instruction.operation {
                Operation::SET => u64::from(holds),
                _ if holds => data,
                _ => source,
            }
        }
        // Moves end where their first operand is.
        Operation::MOVE | Operation::STOS | Operation::LODS => second,
        Operation::MOVS => data,
        Operation::MOVE_SIGNED => sign_extend(data, width),
        Operation::MOVE_SWAPPED => swap(second, width),
        Operation::XCHG => {
            outcome.register = into_register(data);
            source
        }
        Operation::CMPXCHG => {
            let accumulator = register(0);
            outcome.flags = arithmetic(Operation::CMP, accumulator, data, width, flags).1;
            if outcome.flags & flag::ZERO != 0 {
                source
            } else {
                outcome.register = Some((0, put(accumulator, data, width, false)));
                // Memory is written in any case.
                data
            }
        }
        Operation::BT | Operation::BTS | Operation::BTR | Operation::BTC => {
            // The lowest bits of the number count: as many as the operand has places for.
            let places = u32::from(width).wrapping_mul(8).wrapping_sub(1);
            let bit = 1u64.wrapping_shl(source as u32 & places);
            outcome.flags = flags & !flag::CARRY | u64::from(data & bit != 0);
            match instruction.operation {
                Operation::BTS => data | bit,
                Operation::BTR => data & !bit,
                _ => data ^ bit,
            }
        }
        operation => {
            if operation == Operation::XADD {
                outcome.register = into_register(data);
            }
            let (result, flags) = arithmetic(operation, first, second, width, flags);
            outcome.flags = flags;
            result
        }
    };
    if instruction.writes() {
        outcome.memory = Some(result & mask(width));
    } else if instruction.to_register && instruction.operation != Operation::CMP {
        outcome.register = into_register(result);
    }
    outcome
}

/// What a register that held `before` holds when its low `width` bytes (or the byte above the lowest) become `value`.
pub(super) const fn put(before: u64, value: u64, width: u8, is_high: bool) -> u64 {
    match width {
        _ if is_high => before & !0xff00 | (value & 0xff) << 8,
        // 32-bit results clear the upper half, smaller ones leave the rest.
        4 => value & mask(4),
        bytes => before & !mask(bytes) | value & mask(bytes),
    }
}

/// The highest bit of so many bytes.
const fn sign(width: u8) -> u64 {
    mask(width) ^ mask(width) >> 1
}

const fn sign_extend(value: u64, width: u8) -> u64 {
    if value & sign(width) != 0 {
        value | !mask(width)
    } else {
        value
    }
}

/// So many bytes in the other order.
const fn swap(value: u64, width: u8) -> u64 {
    let unused = 64u32.wrapping_sub((width as u32).wrapping_mul(8));
    value.swap_bytes().wrapping_shr(unused)
}

/// SDM volume 1, "EFLAGS Condition Codes".
fn condition(number: u8, flags: u64) -> bool {
    let is = |bits: u64| flags & bits != 0;
    let less = is(flag::SIGN) != is(flag::OVERFLOW);
    let holds = match number >> 1 & 7 {
        0 => is(flag::OVERFLOW),
        1 => is(flag::CARRY),
        2 => is(flag::ZERO),
        3 => is(flag::CARRY | flag::ZERO),
        4 => is(flag::SIGN),
        5 => is(flag::PARITY),
        6 => less,
        _ => less || is(flag::ZERO),
    };
    holds != (number & 1 != 0)
}

/// Result and flags of operations with one or two operands.
fn arithmetic(operation: Operation, first: u64, second: u64, width: u8, flags: u64) -> (u64, u64) {
    let mask = mask(width);
    let (first, second) = (first & mask, second & mask);
    let carry_in = flags & flag::CARRY;
    // Each is an addition, a subtraction, or done bit by bit.
    let (first, second, is_subtraction, carry) = match operation {
        Operation::ADD | Operation::XADD => (first, second, false, 0),
        Operation::ADC => (first, second, false, carry_in),
        Operation::INC => (first, 1, false, 0),
        Operation::SUB | Operation::CMP => (first, second, true, 0),
        Operation::SBB => (first, second, true, carry_in),
        Operation::DEC => (first, 1, true, 0),
        Operation::NEG => (0, first, true, 0),
        Operation::NOT => return (!first & mask, flags),
        _ => {
            let result = match operation {
                Operation::OR => first | second,
                Operation::XOR => first ^ second,
                // AND and TEST.
                _ => first & second,
            };
            return (result, of_result(result, width) | flags & !flag::STATUS);
        }
    };
    // Bits that are carried out of each position, or borrowed from the next one.
    let (result, carries) = if is_subtraction {
        let result = first.wrapping_sub(second).wrapping_sub(carry) & mask;
        (result, !first & second | (!first | second) & result)
    } else {
        let result = first.wrapping_add(second).wrapping_add(carry) & mask;
        (result, first & second | (first | second) & !result)
    };
    let mut status = of_result(result, width);
    if carries & sign(width) != 0 {
        status |= flag::CARRY;
    }
    if (carries ^ carries << 1) & sign(width) != 0 {
        status |= flag::OVERFLOW;
    }
    if carries & 8 != 0 {
        status |= flag::AUXILIARY;
    }
    let mut changed = flag::STATUS;
    if matches!(operation, Operation::INC | Operation::DEC) {
        changed &= !flag::CARRY;
    }
    (result, status & changed | flags & !changed)
}

/// The flags that tell of a result alone.
const fn of_result(result: u64, width: u8) -> u64 {
    let mut status = 0;
    if result == 0 {
        status |= flag::ZERO;
    }
    if result & sign(width) != 0 {
        status |= flag::SIGN;
    }
    if (result as u8).count_ones() & 1 == 0 {
        status |= flag::PARITY;
    }
    status
}

#[cfg(test)]
#[path = "execute_tests.rs"]
mod tests;
