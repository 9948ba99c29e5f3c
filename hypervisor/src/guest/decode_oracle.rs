//! What the decoder must say of an instruction, by `iced-x86`. Compiled into the tests and into the fuzz target; the
//! module around it says where `decoder` is.

use iced_x86::{
    Code, ConditionCode, Decoder, DecoderOptions, EncodingKind, Instruction as Theirs, Mnemonic,
    OpCodeTableKind, OpKind, Register,
};

use super::decoder::{
    Address, DecodeError, Instruction, MAX_LENGTH, Mode, Operand, Operation, decode, length, mask,
};

/// The modes, and the number of bits that iced calls them by.
pub const MODES: [(Mode, u32); 3] = [(Mode::Bits16, 16), (Mode::Bits32, 32), (Mode::Bits64, 64)];

/// Bytes that have to be there so that no instruction is cut off.
pub const ENOUGH: usize = MAX_LENGTH + 3;

fn operation_of(mnemonic: Mnemonic) -> Operation {
    match mnemonic {
        Mnemonic::Add => Operation::ADD,
        Mnemonic::Or => Operation::OR,
        Mnemonic::Adc => Operation::ADC,
        Mnemonic::Sbb => Operation::SBB,
        Mnemonic::And => Operation::AND,
        Mnemonic::Sub => Operation::SUB,
        Mnemonic::Xor => Operation::XOR,
        Mnemonic::Cmp => Operation::CMP,
        Mnemonic::Test => Operation::TEST,
        Mnemonic::Not => Operation::NOT,
        Mnemonic::Neg => Operation::NEG,
        Mnemonic::Inc => Operation::INC,
        Mnemonic::Dec => Operation::DEC,
        Mnemonic::Mov | Mnemonic::Movzx | Mnemonic::Movnti => Operation::MOVE,
        Mnemonic::Movsx | Mnemonic::Movsxd => Operation::MOVE_SIGNED,
        Mnemonic::Movbe => Operation::MOVE_SWAPPED,
        Mnemonic::Xchg => Operation::XCHG,
        Mnemonic::Xadd => Operation::XADD,
        Mnemonic::Cmpxchg => Operation::CMPXCHG,
        Mnemonic::Bt => Operation::BT,
        Mnemonic::Bts => Operation::BTS,
        Mnemonic::Btr => Operation::BTR,
        Mnemonic::Btc => Operation::BTC,
        Mnemonic::Stosb | Mnemonic::Stosw | Mnemonic::Stosd | Mnemonic::Stosq => Operation::STOS,
        Mnemonic::Lodsb | Mnemonic::Lodsw | Mnemonic::Lodsd | Mnemonic::Lodsq => Operation::LODS,
        Mnemonic::Movsb | Mnemonic::Movsw | Mnemonic::Movsd | Mnemonic::Movsq => Operation::MOVS,
        _ => Operation::NONE,
    }
}

/// The operation that the decoder must understand; [`Operation::NONE`]: it must refuse the instruction.
fn expected(theirs: &Theirs, bits: u32) -> Operation {
    let kinds = [theirs.op0_kind(), theirs.op1_kind()];
    let registers = [theirs.op0_register(), theirs.op1_register()];
    let is_string = theirs.is_string_instruction();
    let has_segment = registers
        .iter()
        .any(|register| register.is_segment_register());
    if theirs.is_invalid() || !(is_string || kinds.contains(&OpKind::Memory)) || has_segment {
        return Operation::NONE;
    }
    let has_condition = theirs.condition_code() != ConditionCode::None;
    let operation = match theirs.op_count() {
        _ if theirs.op_code().encoding() != EncodingKind::Legacy => Operation::NONE,
        1 if has_condition => Operation::SET,
        2 if has_condition => Operation::MOVE_IF,
        _ => operation_of(theirs.mnemonic()),
    };
    let by_register = [
        Operation::BT,
        Operation::BTS,
        Operation::BTR,
        Operation::BTC,
    ];
    // Of BT and its kin with a register: the number of the bit leads to other words. MOVSD is SSE's as well.
    if by_register.contains(&operation) && kinds[1] == OpKind::Register
        || operation == Operation::MOVS && !is_string
        // Its operand has four bytes there, which is an exception that nobody needs.
        || theirs.mnemonic() == Mnemonic::Movnti && bits == 16
    {
        return Operation::NONE;
    }
    operation
}

fn number(register: Register) -> Option<u8> {
    match register {
        Register::None | Register::RIP | Register::EIP => None,
        other => Some(other.full_register().number() as u8),
    }
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

fn other_side(theirs: &Theirs) -> Operand {
    let is_memory = |kind| {
        matches!(
            kind,
            OpKind::Memory
                | OpKind::MemoryESDI
                | OpKind::MemoryESEDI
                | OpKind::MemoryESRDI
                | OpKind::MemorySegSI
                | OpKind::MemorySegESI
                | OpKind::MemorySegRSI
        )
    };
    let mut others = (0..theirs.op_count()).filter(|index| !is_memory(theirs.op_kind(*index)));
    match others.next_back() {
        None => Operand::Immediate(0),
        Some(index) if theirs.op_kind(index) == OpKind::Register => {
            operand(theirs.op_register(index))
        }
        Some(index) => Operand::Immediate(theirs.immediate(index)),
    }
}

/// Immediates count as far as the operation looks at them.
fn cut(operand: Operand, theirs: &Theirs, width: u8) -> Operand {
    let is_bit = matches!(
        theirs.mnemonic(),
        Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc
    );
    match operand {
        Operand::Immediate(value) => {
            Operand::Immediate(value & mask(if is_bit { 1 } else { width }))
        }
        other => other,
    }
}

fn place(theirs: &Theirs, ours: &Address, bits: u32) -> Address {
    let sizes = |kind: OpKind| match kind {
        OpKind::MemorySegSI | OpKind::MemoryESDI => Some(2),
        OpKind::MemorySegESI | OpKind::MemoryESEDI => Some(4),
        OpKind::MemorySegRSI | OpKind::MemoryESRDI => Some(8),
        _ => None,
    };
    // A source that is not in memory is no place.
    let string = sizes(theirs.op1_kind()).map(|size| (size, 6, theirs.memory_segment()));
    let string = string.or_else(|| sizes(theirs.op0_kind()).map(|size| (size, 7, Register::ES)));
    if let Some((size, base, segment)) = string {
        return Address {
            segment: segment.number() as u8,
            size,
            base: Some(base),
            index: None,
            shift: 0,
            after_instruction: false,
            displacement: 0,
        };
    }
    let registers = [theirs.memory_base(), theirs.memory_index()];
    let known = registers
        .into_iter()
        .find(|register| *register != Register::None);
    let size = match (known, theirs.memory_displ_size()) {
        (Some(register), _) => register.size() as u8,
        // An address alone: its size cannot be seen when it is one of eight bytes that is kept in four.
        (None, 8) => 8,
        (None, 2) => 2,
        (None, _) if bits == 64 => ours.size,
        (None, _) => 4,
    };
    let is_relative = matches!(theirs.memory_base(), Register::RIP | Register::EIP);
    let next = if is_relative { theirs.len() as u64 } else { 0 };
    Address {
        segment: theirs.memory_segment().number() as u8,
        size,
        base: number(theirs.memory_base()),
        index: number(theirs.memory_index()),
        shift: if theirs.memory_index() == Register::None {
            ours.shift
        } else {
            theirs.memory_index_scale().trailing_zeros() as u8
        },
        after_instruction: is_relative,
        displacement: theirs.memory_displacement64().wrapping_sub(next),
    }
}

fn compare(ours: &Instruction, theirs: &Theirs, bits: u32) {
    let what = || format!("{bits} bits: {:?}, {ours:x?}", theirs.code());
    assert_eq!(usize::from(ours.length), theirs.len(), "{}", what());
    let width = theirs.memory_size().size();
    assert_eq!(usize::from(ours.width), width, "{}", what());
    let other = cut(other_side(theirs), theirs, ours.width);
    assert_eq!(cut(ours.operand, theirs, ours.width), other, "{}", what());
    let to_register = theirs.op0_kind() == OpKind::Register
        // XCHG has no order; TEST is written with the memory first.
        && !matches!(theirs.mnemonic(), Mnemonic::Xchg | Mnemonic::Test);
    assert_eq!(ours.to_register, to_register, "{}", what());
    let register_width = match theirs.op0_kind() {
        OpKind::Register => theirs.op0_register().size(),
        _ => width,
    };
    assert_eq!(
        usize::from(ours.register_width),
        register_width,
        "{}",
        what()
    );
    let is_repeated = theirs.has_rep_prefix() || theirs.has_repne_prefix();
    if ours.is_string() {
        assert_eq!(ours.is_repeated, is_repeated, "{}", what());
    }
    if theirs.condition_code() != ConditionCode::None {
        // iced counts from 1 on, in the order of the opcodes.
        let condition = theirs.condition_code() as u8 - 1;
        assert_eq!(ours.condition, condition, "{}", what());
    }
    let place = place(theirs, &ours.address, bits);
    let sum = |address: &Address| address.displacement & mask(address.size);
    assert_eq!(sum(&ours.address), sum(&place), "{}", what());
    // In 64-bit mode the first four have no effect; iced tells which one was named all the same.
    let has_no_effect = bits == 64 && ours.address.segment < 4 && place.segment < 4;
    let ours_there = Address {
        displacement: place.displacement,
        segment: if has_no_effect {
            place.segment
        } else {
            ours.address.segment
        },
        ..ours.address
    };
    assert_eq!(ours_there, place, "{}", what());
}

/// Compares what `decode` says of an instruction. Returns whether it understood it.
pub fn check_decode(bytes: &[u8], mode: Mode, bits: u32) -> bool {
    let theirs = Decoder::new(bits, bytes, DecoderOptions::NONE).decode();
    let expected = expected(&theirs, bits);
    let Ok(ours) = decode(bytes, mode) else {
        let code = theirs.code();
        assert_eq!(
            expected,
            Operation::NONE,
            "{bytes:02x?} in {bits} bits: {code:?}"
        );
        return false;
    };
    let code = theirs.code();
    assert_eq!(
        ours.operation, expected,
        "{bytes:02x?} in {bits} bits: {code:?}"
    );
    compare(&ours, &theirs, bits);
    assert_eq!(
        length(bytes, mode),
        Ok(ours.length),
        "{bytes:02x?} in {bits} bits"
    );
    true
}

/// What is cut off is not understood, and nothing behind the instruction counts.
pub fn check_ends(bytes: &[u8], mode: Mode) {
    let Ok(ours) = decode(bytes, mode) else {
        return;
    };
    let end = usize::from(ours.length);
    for cut in 0..end {
        assert_eq!(decode(&bytes[..cut], mode), Err(DecodeError::Truncated));
    }
    assert_eq!(decode(&bytes[..end], mode), Ok(ours));
}

/// Encodings that `length` leaves out.
fn is_left_out(instruction: &Theirs) -> bool {
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

/// Compares what `length` says of an instruction. Returns whether it is one.
pub fn check_length(bytes: &[u8], mode: Mode, bits: u32) -> bool {
    let theirs = Decoder::new(bits, bytes, DecoderOptions::NONE).decode();
    if theirs.code() == Code::INVALID {
        return false;
    }
    let what = || format!("{bytes:02x?} in {bits} bits: {:?}", theirs.code());
    match length(bytes, mode) {
        Ok(ours) => assert_eq!(usize::from(ours), theirs.len(), "{}", what()),
        Err(error) => assert!(is_left_out(&theirs), "{error:?}: {}", what()),
    }
    true
}
