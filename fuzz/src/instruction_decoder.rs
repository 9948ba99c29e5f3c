//! The hypervisor's decoder of guests' instructions, against `iced-x86`.

use gaol_hypervisor::guest::decode::{
    DecodeError, Direction, Instruction, MAX_LENGTH, Mode, decode, length,
};
use iced_x86::{Decoder, DecoderOptions, EncodingKind, Mnemonic, OpCodeTableKind, OpKind};

const MODES: [(Mode, u32); 3] = [(Mode::Bits16, 16), (Mode::Bits32, 32), (Mode::Bits64, 64)];

/// Bytes that are always there behind the instruction, so that none is cut off.
const ENOUGH: usize = MAX_LENGTH + 3;

/// Encodings that [`length`] leaves out.
fn is_left_out(instruction: &iced_x86::Instruction) -> bool {
    let code = instruction.op_code();
    let registers = [instruction.op0_register(), instruction.op1_register()];
    !matches!(code.encoding(), EncodingKind::Legacy | EncodingKind::D3NOW)
        || matches!(instruction.mnemonic(), Mnemonic::Extrq | Mnemonic::Insertq)
        || registers
            .iter()
            .any(|register| register.is_cr() || register.is_dr() || register.is_tr())
        // VIA's instructions with opcode 0F A6 or 0F A7.
        || code.table() == OpCodeTableKind::T0F && matches!(code.op_code() >> 8, 0xa6 | 0xa7)
}

/// What both say of an instruction that the hypervisor would emulate.
fn compare(ours: Instruction, theirs: &iced_x86::Instruction) {
    assert!(!theirs.is_invalid(), "{ours:?}");
    let (length, width) = match ours {
        Instruction::Access(access) => (access.length, access.width),
        Instruction::String(string) => (string.length, string.width),
    };
    assert_eq!(usize::from(length), theirs.len(), "{ours:?}");
    let their_width = theirs.memory_size().size();
    assert_eq!(usize::from(width), their_width, "{ours:?}");
    match ours {
        Instruction::Access(access) => {
            let direction = match theirs.mnemonic() {
                Mnemonic::Xchg => Direction::Exchange,
                _ if theirs.op0_kind() == OpKind::Memory => Direction::Write,
                _ => Direction::Read,
            };
            assert_eq!(access.direction, direction, "{ours:?}");
            let signed = matches!(theirs.mnemonic(), Mnemonic::Movsx | Mnemonic::Movsxd);
            assert_eq!(access.sign_extend, signed, "{ours:?}");
            // Whatever the register held, what is stored and loaded keeps to the widths.
            assert!(width == 8 || access.stored(u64::MAX) >> (8 * u32::from(width)) == 0);
            let _ = access.loaded(u64::MAX, 0);
        }
        Instruction::String(string) => {
            let is_repeated = theirs.has_rep_prefix() || theirs.has_repne_prefix();
            assert_eq!(string.is_repeated, is_repeated, "{ours:?}");
        }
    }
}

/// The bytes as an instruction in each mode.
pub fn run(bytes: &[u8]) {
    for (mode, _) in MODES {
        let _ = (decode(bytes, mode), length(bytes, mode));
    }
    let mut bytes = bytes.to_vec();
    bytes.resize(bytes.len().max(ENOUGH), 0);
    for (mode, bits) in MODES {
        let theirs = Decoder::new(bits, &bytes, DecoderOptions::NONE).decode();
        let whole = length(&bytes, mode);
        if !theirs.is_invalid() {
            match whole {
                Ok(ours) => assert_eq!(usize::from(ours), theirs.len(), "{bytes:02x?}"),
                Err(error) => assert!(is_left_out(&theirs), "{error:?} {bytes:02x?}"),
            }
        }
        if let Ok(instruction) = decode(&bytes, mode) {
            compare(instruction, &theirs);
            assert_eq!(whole.map(usize::from), Ok(theirs.len()), "{bytes:02x?}");
            let cut = &bytes[..theirs.len() - 1];
            assert_eq!(decode(cut, mode), Err(DecodeError::Truncated));
        }
    }
}
