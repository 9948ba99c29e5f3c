//! Where the code behind an exit finds the guest's general registers, and the two changes of stack that both vendors share.

use core::arch::naked_asm;

use gaol_abi::handover::GeneralRegisters;

use super::contract::GuestState;
use crate::cpu::{PRIVATE_BASE, private};

/// General registers of a guest, on the hypervisor's stack. At the first look at an exit the last five are not there yet.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs, reason = "the names are the registers'")]
pub struct Frame {
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rbx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub rbp: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
}

const _: () = assert!(size_of::<Frame>() == 120);

/// What RSP is at an exit: with the frame pushed, a call leaves the stack aligned as functions expect it.
pub const HOST_STACK: u64 = private::STACK_END - 8;

/// Assembly of both vendors: pushes the registers of a frame between RAX and the last five.
macro_rules! push_behind_rax {
    () => {
        concat!(
            "push r11\n",
            "push r10\n",
            "push r9\n",
            "push r8\n",
            "push rdi\n",
            "push rsi\n",
            "push rbx\n",
            "push rdx\n",
            "push rcx\n",
        )
    };
}
/// Assembly of both vendors: takes back what [`push_behind_rax`] has pushed.
macro_rules! pop_behind_rax {
    () => {
        concat!(
            "pop rcx\n",
            "pop rdx\n",
            "pop rbx\n",
            "pop rsi\n",
            "pop rdi\n",
            "pop r8\n",
            "pop r9\n",
            "pop r10\n",
            "pop r11\n",
        )
    };
}
/// Assembly of both vendors: adds the last five registers to a frame at RSP.
macro_rules! save_last_five {
    () => {
        concat!(
            "mov [rsp + 80], rbp\n",
            "mov [rsp + 88], r12\n",
            "mov [rsp + 96], r13\n",
            "mov [rsp + 104], r14\n",
            "mov [rsp + 112], r15\n",
        )
    };
}
/// Assembly of both vendors: pops the last five registers of a frame.
macro_rules! pop_last_five {
    () => {
        concat!(
            "pop rbp\n",
            "pop r12\n",
            "pop r13\n",
            "pop r14\n",
            "pop r15\n",
        )
    };
}
pub(super) use {pop_behind_rax, pop_last_five, push_behind_rax, save_last_five};

/// Gives up whatever runs on this CPU, with its stack down to the frame of the last exit, and goes on in
/// [`crate::cpu::recovery::resume`] and from there into the guest.
#[unsafe(naked)]
pub extern "sysv64" fn abandon() -> ! {
    naked_asm!(
        "cld",
        "mov rsp, {frame}",
        "mov rdi, {private}",
        "mov rsi, rsp",
        "call {resume}",
        "ud2",
        frame = const (HOST_STACK - size_of::<Frame>() as u64) as i64,
        private = const PRIVATE_BASE as i64,
        resume = sym crate::cpu::recovery::resume,
    )
}

/// Loads the page table `cr3` and goes on in `code` with the stack at `stack`; nothing of the old stack is used again.
///
/// # Safety
/// `cr3` maps this code and `stack`, which is the end of a stack of this CPU; `code` never returns.
#[unsafe(naked)]
pub unsafe extern "sysv64" fn switch_stack(
    cr3: u64,
    stack: u64,
    code: extern "sysv64" fn(u64) -> !,
) -> ! {
    naked_asm!(
        "mov cr3, rdi",
        "mov rsp, rsi",
        "xor ebp, ebp",
        "call rdx",
        "ud2"
    )
}

impl Frame {
    /// All general registers; the frame has no RSP.
    #[must_use]
    pub const fn registers(&self, rsp: u64) -> GeneralRegisters {
        GeneralRegisters {
            rax: self.rax,
            rcx: self.rcx,
            rdx: self.rdx,
            rbx: self.rbx,
            rsp,
            rbp: self.rbp,
            rsi: self.rsi,
            rdi: self.rdi,
            r8: self.r8,
            r9: self.r9,
            r10: self.r10,
            r11: self.r11,
            r12: self.r12,
            r13: self.r13,
            r14: self.r14,
            r15: self.r15,
        }
    }

    /// General register `number`, as instructions number them. RSP is not in the frame: `guest` has it.
    #[inline]
    #[must_use]
    pub fn register(&self, guest: impl GuestState, number: u8) -> u64 {
        match number & 0xf {
            0 => self.rax,
            1 => self.rcx,
            2 => self.rdx,
            3 => self.rbx,
            4 => guest.rsp(),
            5 => self.rbp,
            6 => self.rsi,
            7 => self.rdi,
            8 => self.r8,
            9 => self.r9,
            10 => self.r10,
            11 => self.r11,
            12 => self.r12,
            13 => self.r13,
            14 => self.r14,
            _ => self.r15,
        }
    }

    /// General register `number`, of those that a frame holds at the first look at an exit.
    #[inline(always)]
    #[must_use]
    pub fn low_register(&self, number: u8) -> Option<u64> {
        Some(match number {
            0 => self.rax,
            1 => self.rcx,
            2 => self.rdx,
            3 => self.rbx,
            6 => self.rsi,
            7 => self.rdi,
            8 => self.r8,
            9 => self.r9,
            10 => self.r10,
            11 => self.r11,
            _ => return None,
        })
    }

    /// Changes general register `number`.
    pub fn set_register(&mut self, guest: impl GuestState, number: u8, value: u64) {
        let slot = match number & 0xf {
            0 => &mut self.rax,
            1 => &mut self.rcx,
            2 => &mut self.rdx,
            3 => &mut self.rbx,
            4 => {
                guest.set_rsp(value);
                return;
            }
            5 => &mut self.rbp,
            6 => &mut self.rsi,
            7 => &mut self.rdi,
            8 => &mut self.r8,
            9 => &mut self.r9,
            10 => &mut self.r10,
            11 => &mut self.r11,
            12 => &mut self.r12,
            13 => &mut self.r13,
            14 => &mut self.r14,
            _ => &mut self.r15,
        };
        *slot = value;
    }
}

#[cfg(test)]
pub(super) mod tests {
    use core::mem::offset_of;

    use iced_x86::{Decoder, DecoderOptions, Mnemonic, OpKind, Register};
    use proptest::prelude::*;

    use super::*;
    use crate::virt;
    use crate::virt::contract::Virtualization;

    /// The registers as instructions number them, and their places in the frame. RSP has none.
    pub const PLACES: [(u8, Register, usize); 15] = [
        (0, Register::RAX, offset_of!(Frame, rax)),
        (1, Register::RCX, offset_of!(Frame, rcx)),
        (2, Register::RDX, offset_of!(Frame, rdx)),
        (3, Register::RBX, offset_of!(Frame, rbx)),
        (5, Register::RBP, offset_of!(Frame, rbp)),
        (6, Register::RSI, offset_of!(Frame, rsi)),
        (7, Register::RDI, offset_of!(Frame, rdi)),
        (8, Register::R8, offset_of!(Frame, r8)),
        (9, Register::R9, offset_of!(Frame, r9)),
        (10, Register::R10, offset_of!(Frame, r10)),
        (11, Register::R11, offset_of!(Frame, r11)),
        (12, Register::R12, offset_of!(Frame, r12)),
        (13, Register::R13, offset_of!(Frame, r13)),
        (14, Register::R14, offset_of!(Frame, r14)),
        (15, Register::R15, offset_of!(Frame, r15)),
    ];

    pub fn place(register: Register) -> usize {
        let found = PLACES.iter().find(|(_, known, _)| *known == register);
        found.unwrap_or_else(|| panic!("{register:?}")).2
    }

    proptest! {
        #[test]
        fn each_register_has_its_own_place(values: [u64; 15], changed in 0usize..15, value: u64) {
            // RSP, the only one that it is asked for, is not touched.
            let guest = virt::Current::guest();
            let mut frame = Frame::default();
            for ((number, ..), value) in PLACES.iter().zip(values) {
                frame.set_register(guest, *number, value);
            }
            let (number, ..) = PLACES[changed];
            frame.set_register(guest, number, value);
            for (index, (number, _, _)) in PLACES.iter().enumerate() {
                let expected = if index == changed { value } else { values[index] };
                prop_assert_eq!(frame.register(guest, *number), expected, "register {}", number);
                // Bits above the fourth are no part of the number.
                prop_assert_eq!(frame.register(guest, *number | 0xf0), expected);
                let low = matches!(number, 0..=3 | 6..=11).then_some(expected);
                prop_assert_eq!(frame.low_register(*number), low);
            }
            prop_assert_eq!(frame.low_register(4), None);
        }
    }

    /// Walks through the assembly from `code` to `end`, and notes where each register is saved to or loaded from, relative to
    /// the frame. RAX may be in memory.
    pub fn places(code: usize, limit: usize, first: i64, end: Mnemonic) -> Vec<(Register, i64)> {
        // SAFETY: this program's own text; the functions looked at are longer than what is read of them.
        let bytes = unsafe { core::slice::from_raw_parts(code as *const u8, limit) };
        let mut stack = first;
        let mut found = Vec::new();
        for instruction in &mut Decoder::new(64, bytes, DecoderOptions::NONE) {
            let register = match instruction.op0_kind() {
                OpKind::Memory => Register::RAX,
                _ => instruction.op0_register(),
            };
            match instruction.mnemonic() {
                mnemonic if mnemonic == end => return found,
                Mnemonic::Push => {
                    stack -= 8;
                    found.push((register, stack));
                }
                Mnemonic::Pop => {
                    found.push((register, stack));
                    stack += 8;
                }
                Mnemonic::Sub if register == Register::RSP => {
                    stack -= instruction.immediate(1) as i64;
                }
                _ => {}
            }
        }
        panic!("no {end:?}")
    }
}
