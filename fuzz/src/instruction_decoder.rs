//! The hypervisor's decoder of guests' instructions, against `iced-x86`, and what it makes of them, against arithmetic in
//! wide numbers.

use decoder::{Instruction, Operand, Operation, decode, length, mask};
use gaol_hypervisor::guest::execute::{Outcome, execute};
use oracle::{ENOUGH, MODES, check_decode, check_ends, check_length};

mod decoder {
    pub(super) use gaol_hypervisor::guest::decode::*;
}

#[path = "../../hypervisor/src/guest/decode_oracle.rs"]
mod oracle;

const CARRY: u64 = 1;
const ZERO: u64 = 1 << 6;
const SIGN: u64 = 1 << 7;
const OVERFLOW: u64 = 1 << 11;
/// With the parity and the auxiliary carry.
const STATUS: u64 = CARRY | 1 << 2 | 1 << 4 | ZERO | SIGN | OVERFLOW;

/// The number of `width` bytes with its sign.
fn signed(value: u64, width: u8) -> i128 {
    let unused = 64 - 8 * u32::from(width);
    ((value << unused) as i64 >> unused).into()
}

/// What sums and differences are without end, with and without signs, and what must have become of them.
fn check_arithmetic(instruction: &Instruction, operands: (u64, u64), flags: u64, outcome: Outcome) {
    let width = instruction.width;
    let (first, second) = (operands.0 & mask(width), operands.1 & mask(width));
    let carry = (flags & CARRY).into();
    let (sign, carry, second) = match instruction.operation {
        Operation::ADD | Operation::XADD => (1, 0, second),
        Operation::ADC => (1, carry, second),
        Operation::INC => (1, 0, 1),
        Operation::SUB | Operation::CMP => (-1, 0, second),
        Operation::SBB => (-1, carry, second),
        Operation::DEC => (-1, 0, 1),
        _ => return,
    };
    let whole = i128::from(first) + sign * (i128::from(second) + carry);
    let with_signs = signed(first, width) + sign * (signed(second, width) + carry);
    let result = whole as u64 & mask(width);
    let expect = |flag: u64, is_set: bool| {
        assert_eq!(
            outcome.flags & flag != 0,
            is_set,
            "{flag:#x} {instruction:?}"
        );
    };
    if !matches!(instruction.operation, Operation::INC | Operation::DEC) {
        expect(CARRY, whole != i128::from(result));
    }
    expect(OVERFLOW, with_signs != signed(result, width));
    expect(ZERO, result == 0);
    expect(SIGN, signed(result, width) < 0);
    if let Some(stored) = outcome.memory {
        assert_eq!(stored, result, "{instruction:?}");
    }
}

/// What is left behind keeps to the instruction's widths, and is right where that is easily said.
fn check_outcome(instruction: &Instruction, data: u64, registers: [u64; 16], flags: u64) {
    let outcome = execute(
        instruction,
        data,
        |number| registers[usize::from(number)],
        flags,
    );
    assert_eq!(outcome.memory.is_some(), instruction.writes());
    assert!(
        outcome
            .memory
            .is_none_or(|value| value & !mask(instruction.width) == 0)
    );
    assert_eq!(outcome.flags & !STATUS, flags & !STATUS);
    let operand = match instruction.operand {
        Operand::Register(number) => registers[usize::from(number)],
        Operand::HighByte(number) => registers[usize::from(number)] >> 8,
        Operand::Immediate(value) => value,
    };
    if let Some((number, value)) = outcome.register {
        let changed = value ^ registers[usize::from(number)];
        let reach = match instruction.register_width {
            1 => 0xffff,
            2 => 0xffff,
            _ => u64::MAX,
        };
        assert_eq!(changed & !reach, 0, "{instruction:?}");
    }
    let operands = if instruction.to_register {
        (operand, data)
    } else {
        (data, operand)
    };
    check_arithmetic(instruction, operands, flags, outcome);
}

/// The bytes as an instruction in each mode; those behind it are what it finds.
pub fn run(bytes: &[u8]) {
    for (mode, _) in MODES {
        let _ = (decode(bytes, mode), length(bytes, mode));
    }
    let mut bytes = bytes.to_vec();
    bytes.resize(bytes.len().max(ENOUGH), 0);
    for (mode, bits) in MODES {
        check_length(&bytes, mode, bits);
        if !check_decode(&bytes, mode, bits) {
            continue;
        }
        check_ends(&bytes, mode);
        let instruction = decode(&bytes, mode).unwrap();
        let mut rest = bytes[usize::from(instruction.length)..]
            .chunks(8)
            .map(|part| {
                let mut number = [0; 8];
                number[..part.len()].copy_from_slice(part);
                u64::from_le_bytes(number)
            });
        let mut next = || rest.next().unwrap_or(0x8000_0000_8000_8080);
        let (data, flags) = (next(), next());
        check_outcome(&instruction, data, std::array::from_fn(|_| next()), flags);
    }
}
