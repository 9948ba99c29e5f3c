//! The decoder against `iced-x86`, on random and on all opcodes.

extern crate std;
use std::vec::Vec;

use iced_x86::{Code, Encoder, Instruction as Theirs, MemoryOperand, Register};

use super::super::random::Random;
use super::*;
use oracle::{ENOUGH, MODES, check_decode, check_ends, check_length};

mod decoder {
    pub(super) use crate::guest::decode::*;
}

#[path = "decode_oracle.rs"]
mod oracle;

impl Random {
    fn pick(&mut self, from: &[u8]) -> u8 {
        from[self.below(from.len())]
    }

    fn bytes(&mut self) -> [u8; ENOUGH] {
        let mut bytes = [0; ENOUGH];
        for part in bytes.chunks_mut(8) {
            part.copy_from_slice(&self.next().to_le_bytes()[..part.len()]);
        }
        bytes
    }

    /// Random bytes behind up to five prefixes and an opcode of those that the decoder understands, or of any.
    fn instruction(&mut self) -> [u8; ENOUGH] {
        let mut bytes = self.bytes();
        let mut next = 0;
        for _ in 0..[0, 0, 0, 1, 1, 2, 2, 3, 5][self.below(9)] {
            bytes[next] = if self.below(3) == 0 {
                0x40 | self.next() as u8 & 15
            } else {
                self.pick(&PREFIXES)
            };
            next += 1;
        }
        let map = self.below(8);
        if map < 3 {
            bytes[next] = 0x0f;
            next += 1;
        }
        match map {
            0 => bytes[next] = self.pick(&[0x38, 0x3a]),
            1 => bytes[next] = self.pick(&EXTENSIONS),
            3..=6 => bytes[next] = self.pick(&OPCODES),
            _ => {}
        }
        if map == 0 {
            bytes[next + 1] = self.pick(&[0xf0, 0xf1, bytes[next + 1]]);
        }
        bytes
    }
}

const PREFIXES: [u8; 11] = [
    0x66, 0x67, 0xf2, 0xf3, 0xf0, 0x2e, 0x36, 0x3e, 0x26, 0x64, 0x65,
];

/// Those of the one-byte map that the decoder understands.
const OPCODES: [u8; 64] = {
    let others = [
        0x63, 0x80, 0x81, 0x82, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8a, 0x8b, 0xa0, 0xa1,
        0xa2, 0xa3, 0xa4, 0xa5, 0xaa, 0xab, 0xac, 0xad, 0xc6, 0xc7, 0xf6, 0xf7, 0xfe, 0xff, 0x8c,
        0x8e, 0x8f,
    ];
    let mut all = [0; 64];
    let mut index = 0;
    while index < 32 {
        // The arithmetic operations: four opcodes each.
        all[index] = (index as u8 >> 2) << 3 | index as u8 & 3;
        all[index + 32] = others[index];
        index += 1;
    }
    all
};

/// Those of the two-byte map.
const EXTENSIONS: [u8; 51] = {
    let others = [
        0xa3, 0xab, 0xb0, 0xb1, 0xb3, 0xb6, 0xb7, 0xba, 0xba, 0xba, 0xbb, 0xbe, 0xbf, 0xc0, 0xc1,
        0xc3, 0xc3, 0xc7, 0xb8,
    ];
    let mut all = [0; 51];
    let mut index = 0;
    while index < 51 {
        all[index] = match index {
            0..=15 => 0x40 + index as u8,
            16..=31 => 0x80 + index as u8,
            _ => others[index - 32],
        };
        index += 1;
    }
    all
};

/// `count` random instructions, each in all modes. Returns how many were understood.
fn random_instructions(seed: u64, count: u32) -> u32 {
    let mut random = Random(seed);
    let mut understood = 0;
    for _ in 0..count {
        let bytes = random.instruction();
        for (mode, bits) in MODES {
            understood += u32::from(check_decode(&bytes, mode, bits));
            check_length(&bytes, mode, bits);
        }
    }
    understood
}

#[test]
fn agrees_on_random_instructions() {
    let understood = random_instructions(0x0123_4567_89ab_cdef, 300_000);
    assert!(understood > 300_000, "{understood}");
}

/// Run by `cargo xtask test` in a release build: ten million instructions, on all processors.
#[test]
#[ignore = "takes minutes without optimization"]
fn agrees_on_ten_million_random_instructions() {
    let threads = 4;
    let understood: u32 = std::thread::scope(|scope| {
        let workers: Vec<_> = (1..=threads)
            .map(|seed| {
                let seed = 0x9e37_79b9_7f4a_7c15u64.wrapping_mul(seed);
                scope.spawn(move || random_instructions(seed, 2_500_000))
            })
            .collect();
        workers
            .into_iter()
            .map(|worker| worker.join().unwrap())
            .sum()
    });
    std::println!("10000000 instructions in 3 modes each, {understood} understood");
    assert!(understood > 10_000_000, "{understood}");
}

#[test]
fn agrees_on_random_bytes() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut understood = 0;
    for _ in 0..200_000 {
        let bytes = random.bytes();
        for (mode, bits) in MODES {
            understood += u32::from(check_decode(&bytes, mode, bits));
            check_length(&bytes, mode, bits);
        }
    }
    assert!(understood > 10_000);
}

/// Gives an operand a random value of its kind. `false`: it is not of general registers, memory or immediates.
fn set_operand(theirs: &mut Theirs, index: u32, random: &mut Random) -> bool {
    use iced_x86::{OpCodeOperandKind as Kind, OpKind};
    let number = random.below(16) as u32;
    let wanted = theirs.code().op_code().op_kind(index);
    let mut immediate = |kind, size: u32| {
        theirs.set_op_kind(index, kind);
        let value = random.next() as i64 >> (64 - size);
        if kind == OpKind::Immediate8 {
            theirs.set_immediate8(value as u8);
        } else {
            theirs.set_immediate_i64(index, value);
        }
        true
    };
    match wanted {
        Kind::mem | Kind::r8_or_mem | Kind::r16_or_mem | Kind::r32_or_mem | Kind::r64_or_mem => {
            theirs.set_op_kind(index, OpKind::Memory);
            return true;
        }
        Kind::imm8 => return immediate(OpKind::Immediate8, 8),
        Kind::imm8sex16 => return immediate(OpKind::Immediate8to16, 8),
        Kind::imm8sex32 => return immediate(OpKind::Immediate8to32, 8),
        Kind::imm8sex64 => return immediate(OpKind::Immediate8to64, 8),
        Kind::imm16 => return immediate(OpKind::Immediate16, 16),
        Kind::imm32 => return immediate(OpKind::Immediate32, 32),
        Kind::imm32sex64 => return immediate(OpKind::Immediate32to64, 32),
        _ => {}
    }
    let register = match wanted {
        Kind::r8_reg => [Register::AL, Register::SPL, Register::R8L][number as usize % 3],
        Kind::r16_reg => Register::AX + number,
        Kind::r32_reg => Register::EAX + number,
        Kind::r64_reg => Register::RAX + number,
        _ => return false,
    };
    theirs.set_op_register(index, register);
    true
}

/// Every instruction of the kinds that the decoder knows, with random operands, as assemblers write it.
#[test]
fn agrees_on_what_iced_encodes() {
    let mut random = Random(7);
    let mut encoded = 0;
    let mut understood = 0;
    for code in Code::values().filter(|code| code.op_code().mode64()) {
        for _ in 0..300 {
            let mut theirs = Theirs::default();
            theirs.set_code(code);
            let mut operands = 0..code.op_code().op_count();
            if operands.is_empty() || !operands.all(|at| set_operand(&mut theirs, at, &mut random))
            {
                break;
            }
            let displacement = random.next() as i32 >> random.below(32);
            let memory = MemoryOperand::new(
                Register::RAX + random.below(16) as u32,
                [Register::None, Register::RAX, Register::R12][random.below(3)],
                1 << random.below(4),
                displacement.into(),
                if i8::try_from(displacement).is_ok() {
                    1
                } else {
                    8
                },
                false,
                [Register::None, Register::FS, Register::GS][random.below(3)],
            );
            theirs.set_memory_base(memory.base);
            theirs.set_memory_index(memory.index);
            theirs.set_memory_index_scale(memory.scale);
            theirs.set_memory_displacement64(memory.displacement as u64);
            theirs.set_memory_displ_size(memory.displ_size);
            theirs.set_segment_prefix(memory.segment_prefix);
            let mut encoder = Encoder::new(64);
            if encoder.encode(&theirs, 0).is_ok() {
                encoded += 1;
                let mut bytes = encoder.take_buffer();
                bytes.resize(ENOUGH, 0x90);
                understood += u32::from(check_decode(&bytes, Mode::Bits64, 64));
                check_length(&bytes, Mode::Bits64, 64);
            }
        }
    }
    assert!(understood > 30_000, "{understood} of {encoded}");
}

#[test]
fn agrees_on_every_opcode_with_every_modrm_byte() {
    let prefixes: [&[u8]; 9] = [
        &[],
        &[0x66],
        &[0x67],
        &[0xf3],
        &[0xf2],
        &[0xf0],
        &[0x48],
        &[0x45],
        &[0x66, 0x41],
    ];
    let maps: [&[u8]; 4] = [&[], &[0x0f], &[0x0f, 0x38], &[0x0f, 0x3a]];
    let mut valid = 0;
    for prefix in prefixes {
        for map in maps {
            for opcode in 0..=u8::MAX {
                for modrm in 0..=u8::MAX {
                    // The rest is a SIB byte with base 5 for every other ModRM byte.
                    let sib = if modrm & 8 == 0 { 0x25 } else { 0x91 };
                    let mut bytes: Vec<u8> = [prefix, map, &[opcode, modrm, sib]].concat();
                    bytes.resize(ENOUGH, 0x11);
                    for (mode, bits) in MODES {
                        valid += u32::from(check_length(&bytes, mode, bits));
                        check_decode(&bytes, mode, bits);
                    }
                }
            }
        }
    }
    assert!(valid > 400_000);
}

#[test]
fn what_is_cut_off_is_truncated() {
    let mut random = Random(42);
    for _ in 0..100_000 {
        let bytes = random.instruction();
        for (mode, _) in MODES {
            check_ends(&bytes, mode);
        }
    }
}

#[test]
fn nothing_is_longer_than_fifteen_bytes() {
    let mut bytes = std::vec![0x66u8; 13];
    bytes.extend([0x89, 0x00, 0x00, 0x00]);
    assert!(decode(&bytes, Mode::Bits64).is_ok());
    bytes.insert(0, 0x66);
    assert_eq!(decode(&bytes, Mode::Bits64), Err(DecodeError::TooLong));
    assert_eq!(length(&bytes, Mode::Bits64), Err(DecodeError::TooLong));
    assert_eq!(decode(&[0x66; 40], Mode::Bits32), Err(DecodeError::TooLong));
}

/// The forms in which Linux writes to its APIC.
#[test]
fn knows_the_writes_to_the_apic() {
    let known = |bytes: &[u8]| decode(bytes, Mode::Bits64).unwrap();
    let store = known(&[0x89, 0x3c, 0x25, 0xb0, 0xd0, 0x5f, 0xff]);
    assert_eq!(
        (store.length, store.width, store.operand),
        (7, 4, Operand::Register(7))
    );
    assert_eq!(
        store.address.offset(|_| 0, 0),
        0xffff_ffff_ff5f_d0b0,
        "the displacement has a sign"
    );
    let zero = known(&[
        0xc7, 0x04, 0x25, 0xb0, 0xd0, 0x5f, 0xff, 0xfe, 0xff, 0xff, 0xff,
    ]);
    assert_eq!((zero.length, zero.width), (11, 4));
    assert_eq!(zero.operand, Operand::Immediate(-2i64 as u64));
    let exchange = known(&[0x44, 0x87, 0x87, 0x00, 0xd0, 0x5f, 0xff]);
    assert_eq!(
        (exchange.length, exchange.operation, exchange.operand),
        (7, Operation::XCHG, Operand::Register(8))
    );
    assert!(exchange.reads() && exchange.writes());
}

#[test]
fn addresses_are_sums() {
    // MOV EAX, [RBX + R9 * 4 - 8]; the same with 32-bit addresses; MOV EAX, [RIP + 16].
    let registers = |number: u8| 0x1_0000_0000 + u64::from(number) * 0x100;
    let at = |bytes: &[u8]| {
        let instruction = decode(bytes, Mode::Bits64).unwrap();
        instruction.address.offset(registers, 0x5000)
    };
    let sum = 0x5_0000_0000 + 0x300 + 0x2400 - 8;
    assert_eq!(at(&[0x42, 0x8b, 0x44, 0x8b, 0xf8]), sum);
    assert_eq!(at(&[0x67, 0x42, 0x8b, 0x44, 0x8b, 0xf8]), sum & 0xffff_ffff);
    assert_eq!(at(&[0x8b, 0x05, 0x10, 0, 0, 0]), 0x5010);
}

/// A processor that does not tell the length of an instruction that has exited leaves it to be decoded.
#[test]
fn instructions_that_exit_have_a_length() {
    for (bytes, expected) in [
        (&[0x0f, 0x08][..], 2),   // INVD
        (&[0x0f, 0x09], 2),       // WBINVD
        (&[0x0f, 0x33], 2),       // RDPMC
        (&[0x0f, 0x01, 0xd1], 3), // XSETBV
        (&[0x0f, 0xa2], 2),       // CPUID
        (&[0x0f, 0x01, 0xd9], 3), // VMMCALL
        (&[0x0f, 0x01, 0xc1], 3), // VMCALL
        (&[0x0f, 0x32], 2),       // RDMSR
        (&[0x0f, 0x30], 2),       // WRMSR
        (&[0xe5, 0x71], 2),       // IN EAX, 0x71
        (&[0xef], 1),             // OUT DX, EAX
        (&[0xf3, 0x6d], 2),       // REP INSD
        (&[0x0f, 0x06], 2),       // CLTS
    ] {
        for mode in [Mode::Bits16, Mode::Bits32, Mode::Bits64] {
            let with_prefix = [&[0x66], bytes, &[0xcc; 8]].concat();
            assert_eq!(length(&with_prefix[1..], mode), Ok(expected), "{bytes:x?}");
            assert_eq!(length(&with_prefix, mode), Ok(expected + 1), "{bytes:x?}");
        }
    }
}
