//! The opcode tables of the decoder: what follows each opcode, and what it does to memory.
//!
//! A word for each opcode of the one-byte and the two-byte map, put together by the compiler. SDM volume 2, "Opcode Map".
#![forbid(unsafe_code)]

/// What an opcode means: see the constants.
pub(super) type Form = u16;

/// The bits that say what follows the ModRM byte, or the opcode if there is none; one of the next values.
pub(super) const TAIL: Form = 0xf;
/// An immediate byte.
pub(super) const BYTE: Form = 1;
/// An immediate of two bytes.
pub(super) const WORD: Form = 2;
/// An immediate of the operand's size, at most four bytes.
pub(super) const OPERAND: Form = 3;
/// An immediate of the operand's size.
pub(super) const FULL_OPERAND: Form = 4;
/// A distance: four bytes in 64-bit mode, else of the operand's size.
pub(super) const RELATIVE: Form = 5;
/// An address of the address size.
pub(super) const ADDRESS: Form = 6;
/// A far pointer.
pub(super) const FAR: Form = 7;
/// An immediate of two bytes and one of one byte.
pub(super) const WORD_BYTE: Form = 8;
/// Group 3: TEST has an immediate, the others have none.
pub(super) const TEST_OPERAND: Form = 9;
/// Not known here.
pub(super) const UNKNOWN: Form = 15;
/// A ModRM byte with what it brings.
pub(super) const MODRM: Form = 1 << 4;
/// Invalid in 64-bit mode.
pub(super) const NOT_IN_64: Form = 1 << 5;
/// The operand is a byte whatever the operand's size; with [`EXTENDS`]: the one in memory.
pub(super) const BYTE_WIDE: Form = 1 << 6;
/// The register is the destination.
pub(super) const TO_REGISTER: Form = 1 << 7;
/// The other operand is the immediate.
pub(super) const IMMEDIATE: Form = 1 << 8;
/// The register is wider than what is in memory.
pub(super) const EXTENDS: Form = 1 << 9;
/// Where the number of the operation begins; 0: nothing that the decoder understands.
const OPERATION_SHIFT: u32 = 10;

/// What an instruction does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Operation(pub u8);

#[allow(missing_docs, reason = "the names are the SDM's, but for the moves")]
impl Operation {
    /// Not understood.
    pub const NONE: Self = Self(0);
    // The eight operations of group 1, in its order.
    pub const ADD: Self = Self(1);
    pub const OR: Self = Self(2);
    pub const ADC: Self = Self(3);
    pub const SBB: Self = Self(4);
    pub const AND: Self = Self(5);
    pub const SUB: Self = Self(6);
    pub const XOR: Self = Self(7);
    pub const CMP: Self = Self(8);
    pub const TEST: Self = Self(9);
    pub const NOT: Self = Self(10);
    pub const NEG: Self = Self(11);
    pub const INC: Self = Self(12);
    pub const DEC: Self = Self(13);
    /// A move to or from memory, extended with zeroes if the register is wider.
    pub const MOVE: Self = Self(14);
    /// A move from memory, extended with the sign.
    pub const MOVE_SIGNED: Self = Self(15);
    /// MOVBE.
    pub const MOVE_SWAPPED: Self = Self(16);
    pub const XCHG: Self = Self(17);
    pub const XADD: Self = Self(18);
    pub const CMPXCHG: Self = Self(19);
    // The four operations of group 8 from its fifth on.
    pub const BT: Self = Self(20);
    pub const BTS: Self = Self(21);
    pub const BTR: Self = Self(22);
    pub const BTC: Self = Self(23);
    /// SETcc.
    pub const SET: Self = Self(24);
    /// CMOVcc.
    pub const MOVE_IF: Self = Self(25);
    pub const STOS: Self = Self(26);
    pub const LODS: Self = Self(27);
    pub const MOVS: Self = Self(28);
    /// The ModRM byte tells which of a group: SDM volume 2, "Opcode Extension Encodings".
    pub const GROUP_1: Self = Self(29);
    pub const GROUP_3: Self = Self(30);
    pub const GROUP_4: Self = Self(31);
    pub const GROUP_8: Self = Self(32);
    pub const GROUP_11: Self = Self(33);

    const fn form(self) -> Form {
        (self.0 as Form) << OPERATION_SHIFT
    }

    /// The operation in a table's word.
    #[must_use]
    pub(super) const fn of(form: Form) -> Self {
        Self((form >> OPERATION_SHIFT) as u8)
    }

    /// Which of a group the `member` (of the ModRM byte) is; what is of no group stays as it is.
    #[must_use]
    pub(super) const fn member(self, member: u8) -> Self {
        match (self, member) {
            (Self::GROUP_1, _) => Self(Self::ADD.0.wrapping_add(member)),
            (Self::GROUP_3, 0 | 1) => Self::TEST,
            (Self::GROUP_3, 2) => Self::NOT,
            (Self::GROUP_3, 3) => Self::NEG,
            (Self::GROUP_4, 0) => Self::INC,
            (Self::GROUP_4, 1) => Self::DEC,
            (Self::GROUP_8, 4..) => Self(Self::BT.0.wrapping_add(member & 3)),
            (Self::GROUP_11, 0) => Self::MOVE,
            (Self::GROUP_3 | Self::GROUP_4 | Self::GROUP_8 | Self::GROUP_11, _) => Self::NONE,
            _ => self,
        }
    }
}

/// A pair of opcodes that differ in size only: the even one is of bytes.
const fn pair(opcode: u8, form: Form) -> Form {
    if opcode & 1 == 0 {
        form | BYTE_WIDE
    } else {
        form
    }
}

const fn one_byte_form(opcode: u8) -> Form {
    let immediate = MODRM | IMMEDIATE;
    match opcode {
        // The eight arithmetic operations.
        0x00..=0x3f => {
            let operation = Operation(Operation::ADD.0.wrapping_add(opcode >> 3)).form();
            match opcode & 7 {
                0 | 1 => pair(opcode, MODRM | operation),
                2 | 3 => pair(opcode, MODRM | TO_REGISTER | operation),
                4 => BYTE,
                5 => OPERAND,
                _ => NOT_IN_64,
            }
        }
        0x40..=0x5f => 0,
        0x60 | 0x61 => NOT_IN_64,
        0x62 => MODRM | NOT_IN_64,
        // Outside 64-bit mode it is ARPL.
        0x63 => MODRM | TO_REGISTER | EXTENDS | Operation::MOVE_SIGNED.form(),
        0x64..=0x67 => UNKNOWN,
        0x68 => OPERAND,
        0x69 => MODRM | OPERAND,
        0x6a => BYTE,
        0x6b => MODRM | BYTE,
        0x6c..=0x6f => 0,
        0x70..=0x7f => BYTE,
        0x80 => immediate | BYTE | BYTE_WIDE | Operation::GROUP_1.form(),
        0x81 => immediate | OPERAND | Operation::GROUP_1.form(),
        0x82 => immediate | BYTE | BYTE_WIDE | NOT_IN_64 | Operation::GROUP_1.form(),
        0x83 => immediate | BYTE | Operation::GROUP_1.form(),
        0x84 | 0x85 => pair(opcode, MODRM | Operation::TEST.form()),
        0x86 | 0x87 => pair(opcode, MODRM | Operation::XCHG.form()),
        0x88 | 0x89 => pair(opcode, MODRM | Operation::MOVE.form()),
        0x8a | 0x8b => pair(opcode, MODRM | TO_REGISTER | Operation::MOVE.form()),
        0x8c..=0x8f => MODRM,
        0x90..=0x99 => 0,
        0x9a => FAR | NOT_IN_64,
        0x9b..=0x9f => 0,
        0xa0 | 0xa1 => pair(opcode, ADDRESS | TO_REGISTER | Operation::MOVE.form()),
        0xa2 | 0xa3 => pair(opcode, ADDRESS | Operation::MOVE.form()),
        0xa4 | 0xa5 => pair(opcode, Operation::MOVS.form()),
        0xa6 | 0xa7 => 0,
        0xa8 => BYTE,
        0xa9 => OPERAND,
        0xaa | 0xab => pair(opcode, Operation::STOS.form()),
        0xac | 0xad => pair(opcode, TO_REGISTER | Operation::LODS.form()),
        0xae | 0xaf => 0,
        0xb0..=0xb7 => BYTE,
        0xb8..=0xbf => FULL_OPERAND,
        0xc0 | 0xc1 => MODRM | BYTE,
        0xc2 => WORD,
        0xc3 => 0,
        0xc4 | 0xc5 => MODRM | NOT_IN_64,
        0xc6 => immediate | BYTE | BYTE_WIDE | Operation::GROUP_11.form(),
        0xc7 => immediate | OPERAND | Operation::GROUP_11.form(),
        0xc8 => WORD_BYTE,
        0xc9 => 0,
        0xca => WORD,
        0xcb | 0xcc => 0,
        0xcd => BYTE,
        0xce => NOT_IN_64,
        0xcf => 0,
        0xd0..=0xd3 => MODRM,
        0xd4 | 0xd5 => BYTE | NOT_IN_64,
        0xd6 => NOT_IN_64,
        0xd7 => 0,
        0xd8..=0xdf => MODRM,
        0xe0..=0xe7 => BYTE,
        0xe8 | 0xe9 => RELATIVE,
        0xea => FAR | NOT_IN_64,
        0xeb => BYTE,
        0xec..=0xef => 0,
        0xf1 => 0,
        0xf0 | 0xf2 | 0xf3 => UNKNOWN,
        0xf4 | 0xf5 => 0,
        0xf6 | 0xf7 => pair(opcode, immediate | TEST_OPERAND | Operation::GROUP_3.form()),
        0xf8..=0xfd => 0,
        0xfe | 0xff => pair(opcode, MODRM | Operation::GROUP_4.form()),
    }
}

const fn two_byte_form(opcode: u8) -> Form {
    let load = MODRM | TO_REGISTER | EXTENDS;
    match opcode {
        0x00..=0x03 => MODRM,
        0x05..=0x09 | 0x0b | 0x0e => 0,
        0x0d => MODRM,
        // 3DNow!, whose opcode comes last.
        0x0f => MODRM | BYTE,
        0x10..=0x1f => MODRM,
        // Moves of control and debug registers, whose ModRM byte always names registers.
        0x20..=0x27 => UNKNOWN,
        0x28..=0x2f => MODRM,
        0x30..=0x35 | 0x37 => 0,
        0x40..=0x4f => MODRM | TO_REGISTER | Operation::MOVE_IF.form(),
        0x50..=0x6f => MODRM,
        0x70..=0x73 => MODRM | BYTE,
        0x74..=0x76 => MODRM,
        0x77 => 0,
        0x78 | 0x79 => MODRM,
        0x7c..=0x7f => MODRM,
        0x80..=0x8f => RELATIVE,
        0x90..=0x9f => MODRM | BYTE_WIDE | Operation::SET.form(),
        0xa0..=0xa2 => 0,
        0xa3 => MODRM,
        0xa4 => MODRM | BYTE,
        0xa5 => MODRM,
        0xa8..=0xaa => 0,
        0xab => MODRM,
        0xac => MODRM | BYTE,
        0xad..=0xaf => MODRM,
        0xb0 | 0xb1 => pair(opcode, MODRM | Operation::CMPXCHG.form()),
        0xb2..=0xb5 => MODRM,
        0xb6 | 0xb7 => pair(opcode, load | Operation::MOVE.form()),
        0xb8 | 0xb9 => MODRM,
        0xba => MODRM | BYTE | IMMEDIATE | Operation::GROUP_8.form(),
        0xbb..=0xbd => MODRM,
        0xbe | 0xbf => pair(opcode, load | Operation::MOVE_SIGNED.form()),
        0xc0 | 0xc1 => pair(opcode, MODRM | Operation::XADD.form()),
        0xc2 => MODRM | BYTE,
        // MOVNTI.
        0xc3 => MODRM | Operation::MOVE.form(),
        0xc4..=0xc6 => MODRM | BYTE,
        0xc7 => MODRM,
        0xc8..=0xcf => 0,
        0xd0..=0xff => MODRM,
        _ => UNKNOWN,
    }
}

/// The opcode maps.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Map {
    OneByte,
    /// 0F.
    TwoByte,
    /// 0F 38.
    ThreeByte38,
    /// 0F 3A.
    ThreeByte3a,
}

impl Map {
    /// The table's word for an opcode.
    pub(super) fn form(self, opcode: u8) -> Form {
        let table = match self {
            Self::OneByte => &ONE_BYTE,
            Self::TwoByte => &TWO_BYTES,
            // MOVBE.
            Self::ThreeByte38 if opcode & 0xfe == 0xf0 => {
                let to_register = if opcode & 1 == 0 { TO_REGISTER } else { 0 };
                return MODRM | to_register | Operation::MOVE_SWAPPED.form();
            }
            Self::ThreeByte38 => return MODRM,
            Self::ThreeByte3a => return MODRM | BYTE,
        };
        table.get(usize::from(opcode)).copied().unwrap_or(UNKNOWN)
    }
}

/// Builds the table of a map.
macro_rules! table {
    ($form:ident) => {{
        let mut table = [0; 256];
        let mut opcode = 0usize;
        while opcode < 256 {
            // Evaluated by the compiler, which would refuse an index beyond the array.
            #[allow(clippy::indexing_slicing, reason = "const: checked at compile time")]
            {
                table[opcode] = $form(opcode as u8);
            }
            opcode = opcode.wrapping_add(1);
        }
        table
    }};
}

static ONE_BYTE: [Form; 256] = table!(one_byte_form);
static TWO_BYTES: [Form; 256] = table!(two_byte_form);
