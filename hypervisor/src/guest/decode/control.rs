//! The instructions that write to CR0 and CR4, for processors that do not tell what one wanted.

use super::{Address, Cursor, DecodeError, Head, Map, Mode, REGISTER_FORM, REX_B, REX_R, segment};
use crate::virt::contract::ControlAccess;

/// What the instruction wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// All of it is known.
    Access(ControlAccess),
    /// LMSW with its operand in this register.
    LoadStatusFromRegister(u8),
    /// LMSW with its operand in memory.
    LoadStatusFromMemory(Address),
}

/// Decodes MOV to or from a control register, CLTS or LMSW at the start of `bytes`. Returns its length as well.
///
/// # Errors
/// See [`DecodeError`].
pub fn control(bytes: &[u8], mode: Mode) -> Result<(Control, u8), DecodeError> {
    let mut cursor = Cursor { bytes, position: 0 };
    let head = Head::parse(&mut cursor, mode)?;
    if head.map != Map::TwoByte {
        return Err(DecodeError::Unknown);
    }
    let control = match head.opcode {
        0x06 => Control::Access(ControlAccess::ClearTaskSwitched),
        0x20 | 0x22 => {
            // Whatever the ModRM byte says, both operands are registers.
            let modrm = cursor.next()?;
            Control::Access(if head.opcode == 0x20 {
                ControlAccess::Read
            } else {
                ControlAccess::Write {
                    control: modrm >> 3 & 7 | (head.rex & REX_R) << 1 | u8::from(head.lock) << 3,
                    register: modrm & 7 | (head.rex & REX_B) << 3,
                }
            })
        }
        0x01 => {
            let mut address = head.address(segment::DS);
            let modrm = cursor.modrm(&head, &mut address)?;
            if modrm >> 3 & 7 != 6 {
                return Err(DecodeError::Unknown);
            }
            if modrm >= REGISTER_FORM {
                Control::LoadStatusFromRegister(modrm & 7 | (head.rex & REX_B) << 3)
            } else {
                Control::LoadStatusFromMemory(address)
            }
        }
        _ => return Err(DecodeError::Unknown),
    };
    Ok((control, cursor.length()?))
}

#[cfg(test)]
mod tests {
    use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Register};
    use proptest::prelude::*;

    use super::*;

    /// What the library makes of the bytes.
    fn judged(bytes: &[u8], bits: u32) -> (Instruction, usize) {
        // Processors of AMD take LOCK MOV CR0 for MOV CR8.
        let mut decoder = Decoder::new(bits, bytes, DecoderOptions::AMD);
        let instruction = decoder.decode();
        (instruction, instruction.len())
    }

    fn number(register: Register) -> u8 {
        register.number() as u8
    }

    fn check(bytes: &[u8], mode: Mode, bits: u32) -> Result<(), TestCaseError> {
        let (instruction, length) = judged(bytes, bits);
        let (first, second) = (instruction.op0_register(), instruction.op1_register());
        let expected = match instruction.code() {
            Code::Clts => Some(Control::Access(ControlAccess::ClearTaskSwitched)),
            Code::Mov_r32_cr | Code::Mov_r64_cr => Some(Control::Access(ControlAccess::Read)),
            Code::Mov_cr_r32 | Code::Mov_cr_r64 => Some(Control::Access(ControlAccess::Write {
                control: number(first),
                register: number(second),
            })),
            Code::Lmsw_rm16 | Code::Lmsw_r32m16 | Code::Lmsw_r64m16 if first != Register::None => {
                Some(Control::LoadStatusFromRegister(number(first)))
            }
            Code::Lmsw_rm16 | Code::Lmsw_r32m16 | Code::Lmsw_r64m16 => {
                let (found, found_length) = control(bytes, mode).unwrap();
                let Control::LoadStatusFromMemory(address) = found else {
                    return Err(TestCaseError::fail(format!("{found:?}")));
                };
                prop_assert_eq!(usize::from(found_length), length);
                let register = |register: u8| u64::from(register) << 32 | 0x1000;
                let offset = address.offset(register, 0x5000);
                let expected = instruction.virtual_address(0, 0, |register, _, _| {
                    Some(match register.full_register() {
                        Register::RIP => 0x5000,
                        full if full.is_gpr64() => {
                            let value = u64::from(number(full)) << 32 | 0x1000;
                            value & super::super::mask(register.size() as u8)
                        }
                        _ => 0,
                    })
                });
                let relative = instruction.is_ip_rel_memory_operand();
                prop_assert!(relative || expected == Some(offset), "{instruction:?}");
                None
            }
            _ => {
                // An encoding that is none of them; a byte sequence that has no meaning may get an answer.
                let found = control(bytes, mode);
                prop_assert!(
                    instruction.is_invalid() || found.is_err(),
                    "{instruction:?}"
                );
                None
            }
        };
        if let Some(expected) = expected {
            prop_assert_eq!(control(bytes, mode), Ok((expected, length as u8)));
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]
        #[test]
        fn the_judge_reads_the_same(
            prefixes in prop::collection::vec(
                prop_oneof![Just(0x66u8), Just(0x67), Just(0x2e), Just(0x64)], 0..2),
            rex in prop_oneof![Just(None), (0x40u8..0x50).prop_map(Some)],
            opcode in prop_oneof![Just(0x06u8), Just(0x20), Just(0x22), Just(0x01), any::<u8>()],
            tail: [u8; 9],
        ) {
            for (mode, bits) in [(Mode::Bits16, 16), (Mode::Bits32, 32), (Mode::Bits64, 64)] {
                let mut bytes = prefixes.clone();
                bytes.extend(rex.filter(|_| mode == Mode::Bits64));
                bytes.extend([0x0f, opcode]);
                bytes.extend(tail);
                bytes.truncate(15);
                check(&bytes, mode, bits)?;
            }
        }

        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..16)) {
            for mode in [Mode::Bits16, Mode::Bits32, Mode::Bits64] {
                let _ = control(&bytes, mode);
            }
        }
    }

    #[test]
    fn a_lock_prefix_means_the_task_priority() {
        let access = ControlAccess::Write {
            control: 8,
            register: 0,
        };
        let expected = Ok((Control::Access(access), 4));
        assert_eq!(control(&[0xf0, 0x0f, 0x22, 0xc0], Mode::Bits32), expected);
    }
}
