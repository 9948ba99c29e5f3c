//! The decoder for instructions that have accessed memory which needs the hypervisor's help.
//!
//! [`decode`] understands the integer instructions with an operand in memory that compilers emit for it, and
//! [`super::execute`] knows what they do. [`length`] knows where almost any instruction of the one-byte, two-byte and
//! three-byte maps ends, so that it can be stepped over; VEX, EVEX and XOP encodings it does not. Both take bytes that a
//! guest may change at any time, and an error is an answer: nothing here can fail otherwise.
//!
//! Tables and rules: SDM volume 2, "Instruction Format" and "Opcode Map".
#![forbid(unsafe_code)]

pub mod control;

pub use super::opcodes::Operation;
use super::opcodes::{
    ADDRESS, BYTE, BYTE_WIDE, EXTENDS, FAR, FULL_OPERAND, Form, IMMEDIATE, MODRM, Map, NOT_IN_64,
    OPERAND, RELATIVE, TAIL, TEST_OPERAND, TO_REGISTER, UNKNOWN, WORD, WORD_BYTE,
};

/// The longest instruction, in bytes.
pub const MAX_LENGTH: usize = 15;

/// Default size of operands and addresses in the code segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Real mode, virtual-8086 mode, and 16-bit code segments.
    Bits16,
    /// 32-bit code segments.
    Bits32,
    /// 64-bit mode.
    Bits64,
}

/// Why there is no answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DecodeError {
    /// The bytes end before the instruction does.
    Truncated,
    /// The instruction would be longer than [`MAX_LENGTH`].
    TooLong,
    /// The instruction is not one that is known here, or its operand is not in memory.
    Unknown,
}

/// The side of an instruction that is not memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operand {
    /// A general register in the processor's numbering (0: RAX, 1: RCX, …, 15: R15).
    Register(u8),
    /// Bits 15 to 8 of register 0 to 3 (AH, CH, DH, BH).
    HighByte(u8),
    /// An immediate, sign-extended; 0 where there is no other side.
    Immediate(u64),
}

/// Numbers of segment registers, as instructions have them.
#[allow(missing_docs, reason = "the names are the registers'")]
pub mod segment {
    pub const ES: u8 = 0;
    pub const CS: u8 = 1;
    pub const SS: u8 = 2;
    pub const DS: u8 = 3;
    pub const FS: u8 = 4;
    pub const GS: u8 = 5;
}

/// How the address of the operand in memory comes about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Address {
    /// One of [`segment`].
    pub segment: u8,
    /// Bytes that the sum is cut to: 2, 4 or 8.
    pub size: u8,
    /// A general register that is added.
    pub base: Option<u8>,
    /// A general register that is added after it was shifted.
    pub index: Option<u8>,
    /// By how many bits to the left.
    pub shift: u8,
    /// The address of the next instruction is added.
    pub after_instruction: bool,
    /// What is added, sign-extended.
    pub displacement: u64,
}

impl Address {
    /// The offset in the segment. `next`: address of the next instruction.
    #[must_use]
    pub fn offset(&self, register: impl Fn(u8) -> u64, next: u64) -> u64 {
        let base = self.base.map_or(0, &register);
        let index = self.index.map_or(0, register);
        let next = if self.after_instruction { next } else { 0 };
        let sum = self
            .displacement
            .wrapping_add(base)
            .wrapping_add(index.wrapping_shl(u32::from(self.shift)))
            .wrapping_add(next);
        sum & mask(self.size)
    }
}

/// The low `bytes` bytes of a number.
#[inline]
#[must_use]
pub const fn mask(bytes: u8) -> u64 {
    match bytes {
        1 => 0xff,
        2 => 0xffff,
        4 => 0xffff_ffff,
        _ => u64::MAX,
    }
}

/// An instruction with one operand in memory; MOVS has two.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Instruction {
    /// Bytes of the instruction.
    pub length: u8,
    /// What it does.
    pub operation: Operation,
    /// Bytes of an access to memory: 1, 2, 4 or 8.
    pub width: u8,
    /// The other side.
    pub operand: Operand,
    /// Bytes of the register: `width`, or more when a read extends.
    pub register_width: u8,
    /// The register is the first operand, and where the result goes if there is one.
    pub to_register: bool,
    /// What SETcc and CMOVcc look for: the low half of the opcode.
    pub condition: u8,
    /// A string instruction with a repeat prefix.
    pub is_repeated: bool,
    /// Where the operand in memory is. Of MOVS: the source; the destination is at ES:RDI.
    pub address: Address,
}

impl Instruction {
    /// Whether it reads memory before anything else.
    #[must_use]
    pub const fn reads(&self) -> bool {
        match self.operation {
            Operation::MOVE | Operation::MOVE_SWAPPED => self.to_register,
            Operation::SET | Operation::STOS => false,
            _ => true,
        }
    }

    /// Whether it writes to memory.
    #[must_use]
    pub const fn writes(&self) -> bool {
        match self.operation {
            Operation::CMP | Operation::TEST | Operation::BT => false,
            _ => !self.to_register,
        }
    }

    /// STOS, LODS or MOVS.
    #[must_use]
    pub const fn is_string(&self) -> bool {
        matches!(
            self.operation,
            Operation::STOS | Operation::LODS | Operation::MOVS
        )
    }
}

/// Decodes the instruction at the start of `bytes`.
///
/// # Errors
/// See [`DecodeError`].
pub fn decode(bytes: &[u8], mode: Mode) -> Result<Instruction, DecodeError> {
    let mut cursor = Cursor { bytes, position: 0 };
    let head = Head::parse(&mut cursor, mode)?;
    let form = head.form()?;
    let mut modrm = 0;
    let mut address = head.address(segment::DS);
    if form & MODRM != 0 {
        modrm = cursor.modrm(&head, &mut address)?;
        if modrm >= REGISTER_FORM {
            return Err(DecodeError::Unknown);
        }
    } else if form & TAIL == ADDRESS {
        address.displacement = cursor.number(head.address_size)?;
    }
    let operation = Operation::of(form).member(modrm >> 3 & 7);
    match operation {
        Operation::STOS => {
            address.base = Some(DESTINATION_INDEX);
            address.segment = segment::ES;
        }
        Operation::LODS | Operation::MOVS => address.base = Some(SOURCE_INDEX),
        _ => {}
    }
    let has = |bit: Form| form & bit != 0;
    let register_width = match head.operand_size {
        _ if has(BYTE_WIDE) && !has(EXTENDS) => 1,
        size => size,
    };
    let width = match head.map {
        _ if !has(EXTENDS) => register_width,
        _ if has(BYTE_WIDE) => 1,
        Map::OneByte => register_width.min(4),
        _ => 2,
    };
    let operand = if has(IMMEDIATE) {
        Operand::Immediate(signed(
            cursor.number(head.tail_bytes(form, modrm))?,
            head.tail_bytes(form, modrm),
        ))
    } else if operation.has_register() {
        head.register(form, modrm, register_width)
    } else {
        Operand::Immediate(0)
    };
    let instruction = Instruction {
        length: cursor.length()?,
        operation,
        width,
        operand,
        register_width,
        to_register: has(TO_REGISTER),
        condition: head.opcode & 0xf,
        is_repeated: head.repeat,
        address,
    };
    if operation == Operation::NONE || !head.permits(&instruction) {
        return Err(DecodeError::Unknown);
    }
    Ok(instruction)
}

impl Operation {
    /// Whether the ModRM byte, or the instruction by itself, names a register that is the other side.
    const fn has_register(self) -> bool {
        !matches!(
            self,
            Self::NONE | Self::NOT | Self::NEG | Self::INC | Self::DEC | Self::SET | Self::MOVS
        )
    }
}

/// RSI.
pub(super) const SOURCE_INDEX: u8 = 6;
/// RDI.
pub(super) const DESTINATION_INDEX: u8 = 7;

/// Bytes of the instruction at the start of `bytes`, which must be one that the processor knows: invalid encodings may
/// get an answer, too.
///
/// # Errors
/// See [`DecodeError`].
pub fn length(bytes: &[u8], mode: Mode) -> Result<u8, DecodeError> {
    let mut cursor = Cursor { bytes, position: 0 };
    let head = Head::parse(&mut cursor, mode)?;
    let form = head.form()?;
    let mut modrm = 0;
    if form & MODRM != 0 {
        modrm = cursor.modrm(&head, &mut head.address(segment::DS))?;
        if !head.knows_group_member(modrm) {
            return Err(DecodeError::Unknown);
        }
    }
    cursor.skip(head.tail_bytes(form, modrm))?;
    cursor.length()
}

/// From this value on a ModRM byte names a register instead of memory.
const REGISTER_FORM: u8 = 0xc0;

/// Extends the number of a base register.
const REX_B: u8 = 1 << 0;
/// Extends the number of an index register.
const REX_X: u8 = 1 << 1;
/// Extends the register field of ModRM.
const REX_R: u8 = 1 << 2;
/// Operands of eight bytes.
const REX_W: u8 = 1 << 3;

/// A number of so many bytes, with its sign.
const fn signed(value: u64, bytes: u8) -> u64 {
    let unused = 64u32.wrapping_sub((bytes as u32).wrapping_mul(8));
    (value.wrapping_shl(unused) as i64).wrapping_shr(unused) as u64
}

/// A position in the instruction.
struct Cursor<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl Cursor<'_> {
    fn next(&mut self) -> Result<u8, DecodeError> {
        if self.position >= MAX_LENGTH {
            return Err(DecodeError::TooLong);
        }
        let byte = self
            .bytes
            .get(self.position)
            .ok_or(DecodeError::Truncated)?;
        self.position = self.position.wrapping_add(1);
        Ok(*byte)
    }

    fn skip(&mut self, bytes: u8) -> Result<(), DecodeError> {
        self.number(bytes).map(|_| ())
    }

    /// A number of so many bytes; of more than eight, its low ones.
    fn number(&mut self, bytes: u8) -> Result<u64, DecodeError> {
        let end = self.position.wrapping_add(usize::from(bytes));
        if end > MAX_LENGTH {
            return Err(DecodeError::TooLong);
        }
        let part = self.bytes.get(self.position..end);
        let mut value = 0u64;
        for byte in part.ok_or(DecodeError::Truncated)?.iter().rev() {
            value = value << 8 | u64::from(*byte);
        }
        self.position = end;
        Ok(value)
    }

    /// Reads a ModRM byte and what belongs to it.
    fn modrm(&mut self, head: &Head, address: &mut Address) -> Result<u8, DecodeError> {
        let modrm = self.next()?;
        if modrm >= REGISTER_FORM {
            return Ok(modrm);
        }
        let bytes = if head.address_size == 2 {
            short_address(modrm, address)
        } else {
            self.long_address(modrm, head, address)?
        };
        address.displacement = signed(self.number(bytes)?, bytes.max(1));
        // What is relative to the stack or frame pointer is in the stack's segment.
        if matches!(address.base, Some(4 | 5)) {
            address.segment = head.segment.unwrap_or(segment::SS);
        }
        Ok(modrm)
    }

    /// 32-bit and 64-bit addresses. Returns the bytes of the displacement.
    fn long_address(
        &mut self,
        modrm: u8,
        head: &Head,
        address: &mut Address,
    ) -> Result<u8, DecodeError> {
        let mut base = modrm & 7;
        let has_sib = base == 4;
        if has_sib {
            let sib = self.next()?;
            base = sib & 7;
            let index = sib >> 3 & 7 | (head.rex & REX_X) << 2;
            address.index = (index != 4).then_some(index);
            address.shift = sib >> 6;
        }
        if base == 5 && modrm < 0x40 {
            address.after_instruction = !has_sib && head.mode == Mode::Bits64;
        } else {
            address.base = Some(base | (head.rex & REX_B) << 3);
        }
        Ok(match modrm >> 6 {
            0 if base == 5 => 4,
            0 => 0,
            1 => 1,
            _ => 4,
        })
    }

    fn length(&self) -> Result<u8, DecodeError> {
        u8::try_from(self.position).map_err(|_| DecodeError::TooLong)
    }
}

/// 16-bit addresses: sums of BX (3) or BP (5) and SI (6) or DI (7). Returns the bytes of the displacement.
fn short_address(modrm: u8, address: &mut Address) -> u8 {
    let (base, index) = match modrm & 7 {
        0 => (Some(3), Some(6)),
        1 => (Some(3), Some(7)),
        2 => (Some(5), Some(6)),
        3 => (Some(5), Some(7)),
        4 => (Some(6), None),
        5 => (Some(7), None),
        6 if modrm < 0x40 => (None, None),
        6 => (Some(5), None),
        _ => (Some(3), None),
    };
    (address.base, address.index) = (base, index);
    match modrm >> 6 {
        0 if base.is_none() => 2,
        0 => 0,
        1 => 1,
        _ => 2,
    }
}

/// Prefixes and opcode.
struct Head {
    mode: Mode,
    rex: u8,
    lock: bool,
    repeat: bool,
    /// There is a prefix 66.
    other_operand_size: bool,
    /// The segment that a prefix names.
    segment: Option<u8>,
    /// Bytes of an operand that is not a byte: 2, 4 or 8.
    operand_size: u8,
    /// Bytes of an address: 2, 4 or 8.
    address_size: u8,
    map: Map,
    opcode: u8,
}

impl Head {
    fn parse(cursor: &mut Cursor<'_>, mode: Mode) -> Result<Self, DecodeError> {
        let mut rex = 0;
        let mut lock = false;
        let mut repeat = false;
        let mut other_operand_size = false;
        let mut other_address_size = false;
        let mut segment = None;
        let first = loop {
            let byte = cursor.next()?;
            match byte {
                0x40..=0x4f if mode == Mode::Bits64 => {
                    rex = byte;
                    continue;
                }
                0x66 => other_operand_size = true,
                0x67 => other_address_size = true,
                0xf0 => lock = true,
                0xf2 | 0xf3 => repeat = true,
                // In 64-bit mode these four have no effect.
                0x26 | 0x2e | 0x36 | 0x3e if mode == Mode::Bits64 => {}
                0x26 | 0x2e | 0x36 | 0x3e => segment = Some(byte >> 3 & 3),
                0x64 | 0x65 => segment = Some(byte & 7),
                _ => break byte,
            }
            // A REX prefix counts only right before the opcode.
            rex = 0;
        };
        let (map, opcode) = if first == 0x0f {
            match cursor.next()? {
                0x38 => (Map::ThreeByte38, cursor.next()?),
                0x3a => (Map::ThreeByte3a, cursor.next()?),
                opcode => (Map::TwoByte, opcode),
            }
        } else {
            (Map::OneByte, first)
        };
        let operand_size = match (mode, other_operand_size) {
            _ if rex & REX_W != 0 => 8,
            (Mode::Bits16, false) | (Mode::Bits32 | Mode::Bits64, true) => 2,
            _ => 4,
        };
        let address_size = match (mode, other_address_size) {
            (Mode::Bits64, false) => 8,
            (Mode::Bits64, true) | (Mode::Bits32, false) | (Mode::Bits16, true) => 4,
            _ => 2,
        };
        if map == Map::OneByte && matches!(opcode, 0x62 | 0xc4 | 0xc5) {
            // Outside 64-bit mode these are BOUND, LES and LDS unless their operand would be a register.
            let next = cursor.bytes.get(cursor.position).copied().unwrap_or(0);
            if mode == Mode::Bits64 || next >= REGISTER_FORM {
                return Err(DecodeError::Unknown);
            }
        }
        Ok(Self {
            mode,
            rex,
            lock,
            repeat,
            other_operand_size,
            segment,
            operand_size,
            address_size,
            map,
            opcode,
        })
    }

    /// What the opcode means.
    fn form(&self) -> Result<Form, DecodeError> {
        let form = self.map.form(self.opcode);
        if form & TAIL == UNKNOWN || form & NOT_IN_64 != 0 && self.mode == Mode::Bits64 {
            Err(DecodeError::Unknown)
        } else {
            Ok(form)
        }
    }

    /// An address with nothing in it yet; in `segment` if no prefix says otherwise.
    fn address(&self, segment: u8) -> Address {
        Address {
            segment: self.segment.unwrap_or(segment),
            size: self.address_size,
            base: None,
            index: None,
            shift: 0,
            after_instruction: false,
            displacement: 0,
        }
    }

    /// The register that is not in memory.
    fn register(&self, form: Form, modrm: u8, width: u8) -> Operand {
        let register = modrm >> 3 & 7;
        if form & MODRM == 0 {
            Operand::Register(0)
        } else if width == 1 && self.rex == 0 && register >= 4 {
            Operand::HighByte(register & 3)
        } else {
            Operand::Register(register | (self.rex & REX_R) << 1)
        }
    }

    /// Whether the prefixes, and the mode, do not turn the instruction into another one, or an invalid one.
    fn permits(&self, instruction: &Instruction) -> bool {
        let is_plain = !self.repeat && !self.other_operand_size;
        let has_mandatory_prefix = match (self.map, self.opcode) {
            (Map::OneByte, 0x63) => self.mode != Mode::Bits64,
            // With prefixes MOVNTI has no meaning, and MOVBE is CRC32 or has none.
            (Map::TwoByte, 0xc3) => !is_plain || instruction.width < 4,
            (Map::ThreeByte38, _) => self.repeat,
            _ => false,
        };
        let is_lockable = instruction.reads() && instruction.writes() && !instruction.is_string();
        !has_mandatory_prefix && (is_lockable || !self.lock)
    }

    /// Whether the ModRM byte does not turn the instruction into something else.
    fn knows_group_member(&self, modrm: u8) -> bool {
        match (self.map, self.opcode) {
            // POP; XOP otherwise.
            (Map::OneByte, 0x8f) => modrm >> 3 & 7 == 0,
            // VMREAD; with prefixes EXTRQ and INSERTQ.
            (Map::TwoByte, 0x78) => !self.repeat && !self.other_operand_size,
            _ => true,
        }
    }

    /// Bytes that follow the ModRM byte and what belongs to it.
    fn tail_bytes(&self, form: Form, modrm: u8) -> u8 {
        let of_operand = self.operand_size.min(4);
        match form & TAIL {
            BYTE => 1,
            WORD => 2,
            WORD_BYTE => 3,
            OPERAND => of_operand,
            FULL_OPERAND => self.operand_size,
            RELATIVE if self.mode == Mode::Bits64 => 4,
            RELATIVE => of_operand,
            ADDRESS => self.address_size,
            FAR => of_operand.wrapping_add(2),
            TEST_OPERAND if modrm >> 3 & 7 >= 2 => 0,
            TEST_OPERAND if form & BYTE_WIDE != 0 => 1,
            TEST_OPERAND => of_operand,
            _ => 0,
        }
    }
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;
