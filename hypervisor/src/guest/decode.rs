//! The decoder for instructions that have accessed memory which needs the hypervisor's help.
//!
//! [`decode`] understands the moves that device drivers use. [`length`] knows where almost any instruction of the
//! one-byte, two-byte and three-byte maps ends, so that it can be stepped over; VEX, EVEX and XOP encodings it does not.
//! Both take bytes that a guest may change at any time, and an error is an answer: nothing here can fail otherwise.
//!
//! Tables and rules: SDM volume 2, "Instruction Format" and "Opcode Map".
#![forbid(unsafe_code)]

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

/// Which way data goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// From memory.
    Read,
    /// To memory.
    Write,
    /// Memory and register exchange what they hold (XCHG), always atomically.
    Exchange,
}

/// The side of an access that is not memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operand {
    /// A general register in the processor's numbering (0: RAX, 1: RCX, …, 15: R15).
    Register(u8),
    /// Bits 15 to 8 of register 0 to 3 (AH, CH, DH, BH).
    HighByte(u8),
    /// An immediate, sign-extended.
    Immediate(u64),
}

/// A move between memory and a register, or of an immediate to memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Access {
    /// Bytes of the instruction.
    pub length: u8,
    /// Which way data goes.
    pub direction: Direction,
    /// Bytes in memory: 1, 2, 4 or 8.
    pub width: u8,
    /// The other side.
    pub operand: Operand,
    /// Bytes of the register that a read writes: `width`, or more when it extends.
    pub register_width: u8,
    /// Whether a read that extends does so with the sign.
    pub sign_extend: bool,
}

impl Access {
    /// What the instruction writes to memory, when its register (if it has one) holds `register`.
    #[inline]
    #[must_use]
    pub const fn stored(&self, register: u64) -> u64 {
        let value = match self.operand {
            Operand::Register(_) => register,
            Operand::HighByte(_) => register >> 8,
            Operand::Immediate(value) => value,
        };
        value & mask(self.width)
    }

    /// What the instruction's register holds after `data` was read from memory, when it held `register` before.
    #[inline]
    #[must_use]
    pub const fn loaded(&self, register: u64, data: u64) -> u64 {
        let width = mask(self.width);
        let sign = width ^ width >> 1;
        let value = if self.sign_extend && data & sign != 0 {
            data | !width
        } else {
            data & width
        };
        if let Operand::HighByte(_) = self.operand {
            return register & !0xff00 | (value & 0xff) << 8;
        }
        match self.register_width {
            // 32-bit results clear the upper half, smaller ones leave the rest.
            4 => value & mask(4),
            bytes => register & !mask(bytes) | value & mask(bytes),
        }
    }
}

/// The low `bytes` bytes of a number.
#[inline]
const fn mask(bytes: u8) -> u64 {
    match bytes {
        1 => 0xff,
        2 => 0xffff,
        4 => 0xffff_ffff,
        _ => u64::MAX,
    }
}

/// A string instruction that writes memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StringInstruction {
    /// Bytes of the instruction.
    pub length: u8,
    /// Bytes of one element.
    pub width: u8,
    /// Whether it reads memory as well (MOVS), or stores RAX (STOS).
    pub is_copy: bool,
    /// Whether it repeats RCX times.
    pub is_repeated: bool,
}

/// What [`decode`] understands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Instruction {
    /// A move.
    Access(Access),
    /// STOS or MOVS.
    String(StringInstruction),
}

/// Decodes the instruction at the start of `bytes`.
///
/// # Errors
/// See [`DecodeError`].
#[inline]
pub fn decode(bytes: &[u8], mode: Mode) -> Result<Instruction, DecodeError> {
    if mode == Mode::Bits64
        && let Some(access) = plain_store(bytes)
    {
        return Ok(Instruction::Access(access));
    }
    decode_any(bytes, mode)
}

/// The short way for what Linux writes to its APIC with in 64-bit mode: a register or an immediate of four bytes or
/// eight, with no prefix but REX.
#[inline]
fn plain_store(bytes: &[u8]) -> Option<Access> {
    let (rex, rest, prefixes) = match *bytes {
        [rex @ 0x40..=0x4f, ref rest @ ..] => (rex, rest, 1u8),
        _ => (0, bytes, 0),
    };
    let [opcode @ (0x89 | 0xc7), modrm, sib, ..] = *rest else {
        return None;
    };
    if modrm >= REGISTER_FORM {
        return None;
    }
    let mut length = address_bytes(modrm, sib).wrapping_add(2);
    let operand = if opcode == 0x89 {
        if rest.len() < usize::from(length) {
            return None;
        }
        Operand::Register(modrm >> 3 & 7 | (rex & REX_R) << 1)
    } else {
        if modrm >> 3 & 7 != 0 {
            return None;
        }
        let immediate = rest.get(usize::from(length)..)?.first_chunk()?;
        length = length.wrapping_add(4);
        Operand::Immediate(i64::from(i32::from_le_bytes(*immediate)) as u64)
    };
    let width = if rex & REX_W != 0 { 8 } else { 4 };
    Some(Access {
        length: length.wrapping_add(prefixes),
        direction: Direction::Write,
        width,
        operand,
        register_width: width,
        sign_extend: false,
    })
}

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
        modrm = cursor.modrm(head.address_size)?;
        if !head.knows_group_member(modrm) {
            return Err(DecodeError::Unknown);
        }
    }
    cursor.skip(head.immediate_bytes(form, modrm))?;
    cursor.length()
}

/// From this value on a ModRM byte names a register instead of memory.
const REGISTER_FORM: u8 = 0xc0;

fn decode_any(bytes: &[u8], mode: Mode) -> Result<Instruction, DecodeError> {
    let mut cursor = Cursor { bytes, position: 0 };
    let head = Head::parse(&mut cursor, mode)?;
    let size = head.operand_size;
    // Most opcodes come in pairs: the even one moves bytes.
    let byte_or_size = if head.opcode & 1 == 0 { 1 } else { size };
    let (direction, width, register_width, sign_extend) = match (head.map, head.opcode) {
        (Map::OneByte, 0x86 | 0x87) => (Direction::Exchange, byte_or_size, byte_or_size, false),
        (Map::OneByte, 0x88 | 0x89 | 0xa2 | 0xa3 | 0xc6 | 0xc7) => {
            (Direction::Write, byte_or_size, byte_or_size, false)
        }
        (Map::OneByte, 0x8a | 0x8b | 0xa0 | 0xa1) => {
            (Direction::Read, byte_or_size, byte_or_size, false)
        }
        (Map::OneByte, 0x63) if mode == Mode::Bits64 => (Direction::Read, size.min(4), size, true),
        (Map::TwoByte, 0xb6 | 0xb7 | 0xbe | 0xbf) => {
            let width = if head.opcode & 1 == 0 { 1 } else { 2 };
            (Direction::Read, width, size, head.opcode >= 0xbe)
        }
        (Map::OneByte, 0xa4 | 0xa5 | 0xaa | 0xab) if !head.lock => {
            return Ok(Instruction::String(StringInstruction {
                length: cursor.length()?,
                width: byte_or_size,
                is_copy: head.opcode < 0xaa,
                is_repeated: head.repeat,
            }));
        }
        _ => return Err(DecodeError::Unknown),
    };
    if head.lock && direction != Direction::Exchange {
        return Err(DecodeError::Unknown);
    }
    let operand = match head.opcode {
        // Moves between the accumulator and an address in the instruction.
        0xa0..=0xa3 => {
            cursor.skip(head.address_size)?;
            Operand::Register(0)
        }
        opcode => {
            let modrm = cursor.modrm(head.address_size)?;
            let register = modrm >> 3 & 7;
            if modrm >= REGISTER_FORM {
                return Err(DecodeError::Unknown);
            }
            if head.map == Map::OneByte && opcode >= 0xc6 {
                if register != 0 {
                    return Err(DecodeError::Unknown);
                }
                Operand::Immediate(cursor.immediate(byte_or_size.min(4))?)
            } else if register_width == 1 && head.rex == 0 && register >= 4 {
                Operand::HighByte(register & 3)
            } else {
                Operand::Register(register | (head.rex & REX_R) << 1)
            }
        }
    };
    Ok(Instruction::Access(Access {
        length: cursor.length()?,
        direction,
        width,
        operand,
        register_width,
        sign_extend,
    }))
}

/// Extends the register field of ModRM.
const REX_R: u8 = 1 << 2;
/// Operands of eight bytes.
const REX_W: u8 = 1 << 3;

/// Bytes that follow the ModRM byte of a memory operand with 32-bit or 64-bit addresses: SIB and displacement.
#[inline]
const fn address_bytes(modrm: u8, sib: u8) -> u8 {
    let has_sib = modrm & 7 == 4;
    let base = if has_sib { sib & 7 } else { modrm & 7 };
    let displacement: u8 = match modrm >> 6 {
        0 if base == 5 => 4,
        0 => 0,
        1 => 1,
        _ => 4,
    };
    displacement.wrapping_add(has_sib as u8)
}

/// A position in the instruction.
struct Cursor<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl Cursor<'_> {
    #[inline]
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

    #[inline]
    fn skip(&mut self, bytes: u8) -> Result<(), DecodeError> {
        let position = self.position.wrapping_add(usize::from(bytes));
        if position > MAX_LENGTH {
            return Err(DecodeError::TooLong);
        }
        if position > self.bytes.len() {
            return Err(DecodeError::Truncated);
        }
        self.position = position;
        Ok(())
    }

    /// An immediate of 1, 2 or 4 bytes, sign-extended.
    fn immediate(&mut self, bytes: u8) -> Result<u64, DecodeError> {
        let mut value = 0u64;
        for index in 0..u32::from(bytes) {
            value |= u64::from(self.next()?).wrapping_shl(index.wrapping_mul(8));
        }
        let unused = 64u32.wrapping_sub(u32::from(bytes).wrapping_mul(8));
        Ok((value.wrapping_shl(unused) as i64).wrapping_shr(unused) as u64)
    }

    /// Reads a ModRM byte and steps over what belongs to it.
    fn modrm(&mut self, address_size: u8) -> Result<u8, DecodeError> {
        let modrm = self.next()?;
        if modrm >= REGISTER_FORM {
            return Ok(modrm);
        }
        let bytes = if address_size == 2 {
            match (modrm >> 6, modrm & 7) {
                (0, 6) | (2, _) => 2,
                (1, _) => 1,
                _ => 0,
            }
        } else {
            let sib = if modrm & 7 == 4 {
                self.bytes.get(self.position).copied().unwrap_or(0)
            } else {
                0
            };
            address_bytes(modrm, sib)
        };
        self.skip(bytes)?;
        Ok(modrm)
    }

    #[inline]
    fn length(&self) -> Result<u8, DecodeError> {
        u8::try_from(self.position).map_err(|_| DecodeError::TooLong)
    }
}

/// The opcode maps.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Map {
    OneByte,
    /// 0F.
    TwoByte,
    /// 0F 38.
    ThreeByte38,
    /// 0F 3A.
    ThreeByte3a,
}

/// Prefixes and opcode.
struct Head {
    mode: Mode,
    rex: u8,
    lock: bool,
    repeat: bool,
    /// There is a prefix 66.
    other_operand_size: bool,
    /// Bytes of an operand that is not a byte: 2, 4 or 8.
    operand_size: u8,
    /// Bytes of an address: 2, 4 or 8.
    address_size: u8,
    map: Map,
    opcode: u8,
}

impl Head {
    #[inline]
    fn parse(cursor: &mut Cursor<'_>, mode: Mode) -> Result<Self, DecodeError> {
        let mut rex = 0;
        let mut lock = false;
        let mut repeat = false;
        let mut other_operand_size = false;
        let mut other_address_size = false;
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
                0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 => {}
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
            operand_size,
            address_size,
            map,
            opcode,
        })
    }

    /// What follows the opcode.
    fn form(&self) -> Result<u16, DecodeError> {
        let form = match self.map {
            Map::OneByte => one_byte_form(self.opcode),
            Map::TwoByte => two_byte_form(self.opcode),
            Map::ThreeByte38 => MODRM,
            Map::ThreeByte3a => MODRM | BYTE,
        };
        if form & UNKNOWN != 0 || form & NOT_IN_64 != 0 && self.mode == Mode::Bits64 {
            Err(DecodeError::Unknown)
        } else {
            Ok(form)
        }
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

    fn immediate_bytes(&self, form: u16, modrm: u8) -> u8 {
        let of_operand = self.operand_size.min(4);
        let mut bytes = 0u8;
        if form & BYTE != 0 {
            bytes = bytes.wrapping_add(1);
        }
        if form & WORD != 0 {
            bytes = bytes.wrapping_add(2);
        }
        if form & OPERAND != 0 {
            bytes = bytes.wrapping_add(of_operand);
        }
        if form & FULL_OPERAND != 0 {
            bytes = bytes.wrapping_add(self.operand_size);
        }
        if form & RELATIVE != 0 {
            let fixed = self.mode == Mode::Bits64;
            bytes = bytes.wrapping_add(if fixed { 4 } else { of_operand });
        }
        if form & ADDRESS != 0 {
            bytes = bytes.wrapping_add(self.address_size);
        }
        if form & FAR != 0 {
            bytes = bytes.wrapping_add(of_operand).wrapping_add(2);
        }
        if form & TEST != 0 && modrm >> 3 & 7 < 2 {
            let byte = self.opcode & 1 == 0;
            bytes = bytes.wrapping_add(if byte { 1 } else { of_operand });
        }
        bytes
    }
}

/// A ModRM byte with what it brings.
const MODRM: u16 = 1;
/// An immediate byte.
const BYTE: u16 = 1 << 1;
/// An immediate of two bytes.
const WORD: u16 = 1 << 2;
/// An immediate of the operand's size, at most four bytes.
const OPERAND: u16 = 1 << 3;
/// An immediate of the operand's size.
const FULL_OPERAND: u16 = 1 << 4;
/// A distance: four bytes in 64-bit mode, else of the operand's size.
const RELATIVE: u16 = 1 << 5;
/// An address of the address size.
const ADDRESS: u16 = 1 << 6;
/// A far pointer.
const FAR: u16 = 1 << 7;
/// Group 3: TEST has an immediate, the others have none.
const TEST: u16 = 1 << 8;
/// Invalid in 64-bit mode.
const NOT_IN_64: u16 = 1 << 9;
/// Not known here.
const UNKNOWN: u16 = 1 << 10;

const fn one_byte_form(opcode: u8) -> u16 {
    match opcode {
        // The eight arithmetic operations.
        0x00..=0x3f => match opcode & 7 {
            0..=3 => MODRM,
            4 => BYTE,
            5 => OPERAND,
            _ => NOT_IN_64,
        },
        0x40..=0x5f => 0,
        0x60 | 0x61 => NOT_IN_64,
        0x62 => MODRM | NOT_IN_64,
        0x63 => MODRM,
        0x64..=0x67 => UNKNOWN,
        0x68 => OPERAND,
        0x69 => MODRM | OPERAND,
        0x6a => BYTE,
        0x6b => MODRM | BYTE,
        0x6c..=0x6f => 0,
        0x70..=0x7f => BYTE,
        0x80 | 0x83 => MODRM | BYTE,
        0x81 => MODRM | OPERAND,
        0x82 => MODRM | BYTE | NOT_IN_64,
        0x84..=0x8f => MODRM,
        0x90..=0x99 => 0,
        0x9a => FAR | NOT_IN_64,
        0x9b..=0x9f => 0,
        0xa0..=0xa3 => ADDRESS,
        0xa4..=0xa7 => 0,
        0xa8 => BYTE,
        0xa9 => OPERAND,
        0xaa..=0xaf => 0,
        0xb0..=0xb7 => BYTE,
        0xb8..=0xbf => FULL_OPERAND,
        0xc0 | 0xc1 => MODRM | BYTE,
        0xc2 => WORD,
        0xc3 => 0,
        0xc4 | 0xc5 => MODRM | NOT_IN_64,
        0xc6 => MODRM | BYTE,
        0xc7 => MODRM | OPERAND,
        0xc8 => WORD | BYTE,
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
        0xf6 | 0xf7 => MODRM | TEST,
        0xf8..=0xfd => 0,
        0xfe | 0xff => MODRM,
    }
}

const fn two_byte_form(opcode: u8) -> u16 {
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
        0x40..=0x6f => MODRM,
        0x70..=0x73 => MODRM | BYTE,
        0x74..=0x76 => MODRM,
        0x77 => 0,
        0x78 | 0x79 => MODRM,
        0x7c..=0x7f => MODRM,
        0x80..=0x8f => RELATIVE,
        0x90..=0x9f => MODRM,
        0xa0..=0xa2 => 0,
        0xa3 => MODRM,
        0xa4 => MODRM | BYTE,
        0xa5 => MODRM,
        0xa8..=0xaa => 0,
        0xab => MODRM,
        0xac => MODRM | BYTE,
        0xad..=0xb9 => MODRM,
        0xba => MODRM | BYTE,
        0xbb..=0xc1 => MODRM,
        0xc2 => MODRM | BYTE,
        0xc3 => MODRM,
        0xc4..=0xc6 => MODRM | BYTE,
        0xc7 => MODRM,
        0xc8..=0xcf => 0,
        0xd0..=0xff => MODRM,
        _ => UNKNOWN,
    }
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;
