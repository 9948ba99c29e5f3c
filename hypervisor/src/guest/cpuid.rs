//! CPUID.
//!
//! The processor's own answer, but for: VMX (nobody has it below Gaol), bits that mirror CR4 (the hypervisor's would
//! show), the hypervisor bit (cells see it, Linux does not) and the leaves by which a cell finds out where it is.

use gaol_abi::hypercall::{CPUID_FEATURES_LEAF, CPUID_SIGNATURE, CPUID_SIGNATURE_LEAF};

use super::Verdict;
use crate::cpu::PerCpu;
use crate::processor::{self, cr4};
use crate::virt::vmx::entry::Frame;
use crate::virt::vmx::exit::{SLOW, done};
use crate::virt::vmx::fields::Field;
use crate::virt::vmx::instructions::read;

const FEATURES: u32 = 1;
const EXTENDED_FEATURES: u32 = 7;
const VMX: u32 = 1 << 5;
const OSXSAVE: u32 = 1 << 27;
const HYPERVISOR: u32 = 1 << 31;
const OSPKE: u32 = 1 << 4;

/// Leaves that need nothing but the processor's answer.
#[inline(never)]
pub extern "sysv64" fn fast(cpu: &mut PerCpu, frame: &mut Frame) -> u32 {
    let leaf = frame.rax as u32;
    if leaf == FEATURES || leaf == EXTENDED_FEATURES || leaf & 0xf000_0000 == CPUID_SIGNATURE_LEAF {
        return SLOW;
    }
    put(frame, processor::cpuid(leaf, frame.rcx as u32));
    done(cpu)
}

#[inline(always)]
fn put(frame: &mut Frame, [eax, ebx, ecx, edx]: [u32; 4]) {
    frame.rax = u64::from(eax);
    frame.rbx = u64::from(ebx);
    frame.rcx = u64::from(ecx);
    frame.rdx = u64::from(edx);
}

fn set(value: u32, bit: u32, on: bool) -> u32 {
    if on { value | bit } else { value & !bit }
}

/// The other leaves.
pub fn slow(cpu: &PerCpu, frame: &mut Frame) -> Verdict {
    let leaf = frame.rax as u32;
    let mut answer = processor::cpuid(leaf, frame.rcx as u32);
    match leaf {
        FEATURES => {
            let guest_cr4 = read(Field::GuestCr4);
            answer[2] = set(answer[2], VMX, false);
            answer[2] = set(answer[2], OSXSAVE, guest_cr4 & cr4::OSXSAVE != 0);
            answer[2] = set(answer[2], HYPERVISOR, !cpu.is_root);
        }
        EXTENDED_FEATURES if frame.rcx as u32 == 0 => {
            answer[2] = set(answer[2], OSPKE, read(Field::GuestCr4) & cr4::PKE != 0);
        }
        CPUID_SIGNATURE_LEAF => {
            let word = |n: usize| {
                CPUID_SIGNATURE
                    .get(n..)
                    .and_then(|rest| rest.first_chunk())
                    .map_or(0, |bytes| u32::from_le_bytes(*bytes))
            };
            answer = [CPUID_FEATURES_LEAF, word(0), word(4), word(8)];
        }
        CPUID_FEATURES_LEAF => answer = [0; 4],
        _ => {}
    }
    put(frame, answer);
    Verdict::Advance
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn one_bit_is_set_and_the_others_stay(value: u32, number in 0u32..32, on: bool) {
            let bit = 1 << number;
            let result = set(value, bit, on);
            prop_assert_eq!(result & bit != 0, on);
            prop_assert_eq!(result & !bit, value & !bit);
        }

        #[test]
        fn the_answer_replaces_whole_registers(registers: [u64; 15], answer: [u32; 4]) {
            let mut frame = Frame::default();
            let numbers = (0u8..16).filter(|number| *number != 4);
            for (number, value) in numbers.clone().zip(registers) {
                frame.set_register(number, value);
            }
            put(&mut frame, answer);
            for (number, value) in numbers.zip(registers) {
                // EAX, EBX, ECX and EDX are registers 0, 3, 1 and 2.
                let expected = match number {
                    0 => u64::from(answer[0]),
                    3 => u64::from(answer[1]),
                    1 => u64::from(answer[2]),
                    2 => u64::from(answer[3]),
                    _ => value,
                };
                prop_assert_eq!(frame.register(number), expected, "register {}", number);
            }
        }
    }
}
