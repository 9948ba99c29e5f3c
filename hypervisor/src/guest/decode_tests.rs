//! The decoder against `iced-x86`.

extern crate std;
use std::vec::Vec;

use iced_x86::{
    Code, Decoder, DecoderOptions, EncodingKind, Mnemonic, OpCodeTableKind, OpKind, Register,
};

use super::*;

const MODES: [(Mode, u32); 3] = [(Mode::Bits16, 16), (Mode::Bits32, 32), (Mode::Bits64, 64)];

/// xorshift64*, so that every run tries the same bytes.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn byte(&mut self) -> u8 {
        (self.next() >> 56) as u8
    }

    fn pick(&mut self, from: &[u8]) -> u8 {
        from[(self.next() >> 33) as usize % from.len()]
    }

    fn bytes(&mut self) -> [u8; 18] {
        let mut bytes = [0; 18];
        for byte in &mut bytes {
            *byte = self.byte();
        }
        bytes
    }
}

fn iced(bytes: &[u8], bits: u32) -> iced_x86::Instruction {
    Decoder::new(bits, bytes, DecoderOptions::NONE).decode()
}

/// The register in the numbering of [`Operand`].
fn operand(register: Register) -> Operand {
    match register {
        Register::AH => Operand::HighByte(0),
        Register::CH => Operand::HighByte(1),
        Register::DH => Operand::HighByte(2),
        Register::BH => Operand::HighByte(3),
        other => Operand::Register(other.full_register().number() as u8),
    }
}

fn is_memory(kind: OpKind) -> bool {
    matches!(kind, OpKind::Memory)
}

/// Whether iced's instruction is one of those that `decode` must understand.
fn is_ours(instruction: &iced_x86::Instruction) -> bool {
    let memory = is_memory(instruction.op0_kind()) || is_memory(instruction.op1_kind());
    match instruction.mnemonic() {
        Mnemonic::Mov => {
            let segment = |register: Register| register.is_segment_register();
            memory && !segment(instruction.op0_register()) && !segment(instruction.op1_register())
        }
        Mnemonic::Movzx | Mnemonic::Movsx | Mnemonic::Movsxd | Mnemonic::Xchg => memory,
        Mnemonic::Stosb | Mnemonic::Stosw | Mnemonic::Stosd | Mnemonic::Stosq => true,
        Mnemonic::Movsb | Mnemonic::Movsw | Mnemonic::Movsq => true,
        Mnemonic::Movsd => instruction.code() == Code::Movsd_m32_m32,
        _ => false,
    }
}

fn compare_decode(bytes: &[u8], mode: Mode, bits: u32) -> bool {
    let theirs = iced(bytes, bits);
    let Ok(ours) = decode(bytes, mode) else {
        assert!(
            theirs.is_invalid() || !is_ours(&theirs),
            "unknown: {bytes:02x?} in {bits} bits: {:?}",
            theirs.code()
        );
        return false;
    };
    let what = || std::format!("{bytes:02x?} in {bits} bits: {:?}, {ours:?}", theirs.code());
    assert!(!theirs.is_invalid() && is_ours(&theirs), "{}", what());
    match ours {
        Instruction::Access(access) => {
            assert_eq!(usize::from(access.length), theirs.len(), "{}", what());
            let width = theirs.memory_size().size();
            assert_eq!(usize::from(access.width), width, "{}", what());
            let to_memory = is_memory(theirs.op0_kind());
            let (direction, other) = match theirs.mnemonic() {
                Mnemonic::Xchg if to_memory => (Direction::Exchange, 1),
                Mnemonic::Xchg => (Direction::Exchange, 0),
                _ if to_memory => (Direction::Write, 1),
                _ => (Direction::Read, 0),
            };
            assert_eq!(access.direction, direction, "{}", what());
            if theirs.op_kind(other) == OpKind::Register {
                let register = theirs.op_register(other);
                assert_eq!(access.operand, operand(register), "{}", what());
                assert_eq!(
                    usize::from(access.register_width),
                    register.size(),
                    "{}",
                    what()
                );
            } else {
                let Operand::Immediate(value) = access.operand else {
                    panic!("{}", what());
                };
                let mask = mask(access.width);
                assert_eq!(value & mask, theirs.immediate(other) & mask, "{}", what());
            }
            let signed = matches!(theirs.mnemonic(), Mnemonic::Movsx | Mnemonic::Movsxd);
            assert_eq!(access.sign_extend, signed, "{}", what());
        }
        Instruction::String(string) => {
            assert_eq!(usize::from(string.length), theirs.len(), "{}", what());
            let width = theirs.memory_size().size();
            assert_eq!(usize::from(string.width), width, "{}", what());
            assert_eq!(
                string.is_repeated,
                theirs.has_rep_prefix() || theirs.has_repne_prefix(),
                "{}",
                what()
            );
            let copy = theirs.op1_kind() != OpKind::Register;
            assert_eq!(string.is_copy, copy, "{}", what());
        }
    }
    assert_eq!(length(bytes, mode), Ok(theirs.len() as u8), "{}", what());
    true
}

/// Encodings that `length` leaves out.
fn is_left_out(instruction: &iced_x86::Instruction) -> bool {
    let code = instruction.op_code();
    let registers = [instruction.op0_register(), instruction.op1_register()];
    !matches!(code.encoding(), EncodingKind::Legacy | EncodingKind::D3NOW)
        || matches!(
            instruction.mnemonic(),
            Mnemonic::Extrq | Mnemonic::Insertq
        )
        || registers
            .iter()
            .any(|register| register.is_cr() || register.is_dr() || register.is_tr())
        // VIA's instructions with opcode 0F A6 or 0F A7.
        || code.table() == OpCodeTableKind::T0F && matches!(code.op_code() >> 8, 0xa6 | 0xa7)
}

fn compare_length(bytes: &[u8], mode: Mode, bits: u32) -> bool {
    let theirs = iced(bytes, bits);
    if theirs.is_invalid() {
        return false;
    }
    match length(bytes, mode) {
        Ok(ours) => assert_eq!(
            usize::from(ours),
            theirs.len(),
            "{bytes:02x?} in {bits} bits: {:?}",
            theirs.code()
        ),
        Err(error) => assert!(
            is_left_out(&theirs),
            "{error:?}: {bytes:02x?} in {bits} bits: {:?}",
            theirs.code()
        ),
    }
    true
}

const PREFIXES: [u8; 11] = [
    0x66, 0x67, 0xf2, 0xf3, 0xf0, 0x2e, 0x36, 0x3e, 0x26, 0x64, 0x65,
];
const OPCODES: [u8; 17] = [
    0x63, 0x86, 0x87, 0x88, 0x89, 0x8a, 0x8b, 0xa0, 0xa1, 0xa2, 0xa3, 0xa4, 0xa5, 0xaa, 0xab, 0xc6,
    0xc7,
];
const EXTENSIONS: [u8; 4] = [0xb6, 0xb7, 0xbe, 0xbf];

#[test]
fn agrees_on_random_bytes() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut understood = 0;
    for _ in 0..400_000 {
        let bytes = random.bytes();
        for (mode, bits) in MODES {
            understood += u32::from(compare_decode(&bytes, mode, bits));
            compare_length(&bytes, mode, bits);
        }
    }
    assert!(understood > 10_000);
}

#[test]
fn agrees_on_random_prefixes_before_its_own_instructions() {
    let mut random = Random(0x0123_4567_89ab_cdef);
    let mut understood = 0;
    for _ in 0..400_000 {
        let mut bytes = random.bytes();
        let count = random.next() % 6;
        let mut next = 0;
        for _ in 0..count {
            bytes[next] = if random.next().is_multiple_of(3) {
                0x40 | random.byte() & 15
            } else {
                random.pick(&PREFIXES)
            };
            next += 1;
        }
        if random.next().is_multiple_of(4) {
            bytes[next] = 0x0f;
            bytes[next + 1] = random.pick(&EXTENSIONS);
        } else {
            bytes[next] = random.pick(&OPCODES);
        }
        for (mode, bits) in MODES {
            understood += u32::from(compare_decode(&bytes, mode, bits));
        }
    }
    assert!(understood > 300_000);
}

#[test]
fn agrees_on_every_opcode_with_every_modrm_byte() {
    let prefixes: [&[u8]; 8] = [
        &[],
        &[0x66],
        &[0x67],
        &[0xf3],
        &[0xf2],
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
                    bytes.resize(18, 0x11);
                    for (mode, bits) in MODES {
                        valid += u32::from(compare_length(&bytes, mode, bits));
                    }
                }
            }
        }
    }
    assert!(valid > 400_000);
}

#[test]
fn length_agrees_on_random_instructions_of_the_first_two_maps() {
    let mut random = Random(0xfeed_beef_dead_cafe);
    let mut valid = 0;
    for _ in 0..400_000 {
        let mut bytes = random.bytes();
        let count = (random.next() % 4) as usize;
        for byte in bytes.iter_mut().take(count) {
            *byte = random.pick(&PREFIXES);
        }
        if random.next().is_multiple_of(2) {
            bytes[count] = 0x0f;
        }
        for (mode, bits) in MODES {
            valid += u32::from(compare_length(&bytes, mode, bits));
        }
    }
    assert!(valid > 500_000);
}

#[test]
fn what_is_cut_off_is_truncated() {
    let mut random = Random(42);
    for _ in 0..100_000 {
        let mut bytes = random.bytes();
        bytes[0] = random.pick(&OPCODES);
        for (mode, _) in MODES {
            let Ok(instruction) = decode(&bytes, mode) else {
                continue;
            };
            let whole = match instruction {
                Instruction::Access(access) => access.length,
                Instruction::String(string) => string.length,
            };
            for cut in 0..=bytes.len() {
                let expected = if cut < whole.into() {
                    Err(DecodeError::Truncated)
                } else {
                    Ok(instruction)
                };
                assert_eq!(decode(&bytes[..cut], mode), expected);
            }
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
    let access = |bytes: &[u8]| match decode(bytes, Mode::Bits64) {
        Ok(Instruction::Access(access)) => access,
        other => panic!("{other:?}"),
    };
    let store = access(&[0x89, 0x3c, 0x25, 0xb0, 0xd0, 0x5f, 0xff]);
    assert_eq!(
        (store.length, store.width, store.operand),
        (7, 4, Operand::Register(7))
    );
    assert_eq!(store.stored(0x1234_5678_9abc_def0), 0x9abc_def0);
    let zero = access(&[
        0xc7, 0x04, 0x25, 0xb0, 0xd0, 0x5f, 0xff, 0xfe, 0xff, 0xff, 0xff,
    ]);
    assert_eq!((zero.length, zero.width), (11, 4));
    assert_eq!(zero.stored(7), 0xffff_fffe);
    let exchange = access(&[0x44, 0x87, 0x87, 0x00, 0xd0, 0x5f, 0xff]);
    assert_eq!(
        (exchange.length, exchange.direction, exchange.operand),
        (7, Direction::Exchange, Operand::Register(8))
    );
}

#[test]
fn registers_take_what_was_read_as_the_processor_has_it() {
    let loaded = |bytes: &[u8], data: u64| match decode(bytes, Mode::Bits64) {
        Ok(Instruction::Access(access)) => access.loaded(0x1111_2222_3333_4444, data),
        other => panic!("{other:?}"),
    };
    // MOV of all widths: AL, AH, AX, EAX, RAX.
    assert_eq!(loaded(&[0x8a, 0x00], 0xaabb_ccdd), 0x1111_2222_3333_44dd);
    assert_eq!(loaded(&[0x8a, 0x20], 0xaabb_ccdd), 0x1111_2222_3333_dd44);
    assert_eq!(
        loaded(&[0x66, 0x8b, 0x00], 0xaabb_ccdd),
        0x1111_2222_3333_ccdd
    );
    assert_eq!(loaded(&[0x8b, 0x00], 0xaabb_ccdd), 0xaabb_ccdd);
    assert_eq!(loaded(&[0x48, 0x8b, 0x00], u64::MAX), u64::MAX);
    // MOVZX, MOVSX and MOVSXD.
    assert_eq!(loaded(&[0x0f, 0xb6, 0x00], 0xaabb_ccdd), 0xdd);
    assert_eq!(
        loaded(&[0x66, 0x0f, 0xbe, 0x00], 0x80),
        0x1111_2222_3333_ff80
    );
    assert_eq!(loaded(&[0x0f, 0xbf, 0x00], 0x8000), 0xffff_8000);
    assert_eq!(
        loaded(&[0x48, 0x0f, 0xbf, 0x00], 0x8000),
        0xffff_ffff_ffff_8000
    );
    assert_eq!(loaded(&[0x48, 0x0f, 0xbf, 0x00], 0x7fff), 0x7fff);
    assert_eq!(
        loaded(&[0x48, 0x63, 0x00], 0x8000_0000),
        0xffff_ffff_8000_0000
    );
    assert_eq!(loaded(&[0x63, 0x00], 0x8000_0000), 0x8000_0000);
    // High bytes are stored, too.
    let Ok(Instruction::Access(high)) = decode(&[0x88, 0x20], Mode::Bits64) else {
        panic!("MOV [RAX], AH");
    };
    assert_eq!(high.stored(0x1234_5678), 0x56);
}
