//! The processor that runs the tests, as the judge of what instructions do.

extern crate std;
use std::vec::Vec;

use core::arch::naked_asm;

/// General registers by their numbers, and RFLAGS.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct State {
    pub registers: [u64; 16],
    pub flags: u64,
}

/// Runs the code at `code`, which ends with RET, with the registers but RSP, and the flags, of `state`.
#[unsafe(naked)]
unsafe extern "sysv64" fn run(state: *mut State, code: u64) {
    naked_asm!(
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "push rdi",
        "push rsi",
        "push qword ptr [rdi + 128]",
        "popfq",
        "mov rax, [rdi]",
        "mov rcx, [rdi + 8]",
        "mov rdx, [rdi + 16]",
        "mov rbx, [rdi + 24]",
        "mov rbp, [rdi + 40]",
        "mov rsi, [rdi + 48]",
        "mov r8, [rdi + 64]",
        "mov r9, [rdi + 72]",
        "mov r10, [rdi + 80]",
        "mov r11, [rdi + 88]",
        "mov r12, [rdi + 96]",
        "mov r13, [rdi + 104]",
        "mov r14, [rdi + 112]",
        "mov r15, [rdi + 120]",
        "mov rdi, [rdi + 56]",
        "call [rsp]",
        "xchg rdi, [rsp + 8]",
        "mov [rdi], rax",
        "mov [rdi + 8], rcx",
        "mov [rdi + 16], rdx",
        "mov [rdi + 24], rbx",
        "mov [rdi + 40], rbp",
        "mov [rdi + 48], rsi",
        "mov [rdi + 64], r8",
        "mov [rdi + 72], r9",
        "mov [rdi + 80], r10",
        "mov [rdi + 88], r11",
        "mov [rdi + 96], r12",
        "mov [rdi + 104], r13",
        "mov [rdi + 112], r14",
        "mov [rdi + 120], r15",
        "mov rax, [rsp + 8]",
        "mov [rdi + 56], rax",
        "pushfq",
        "pop qword ptr [rdi + 128]",
        "cld",
        "pop rsi",
        "pop rdi",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
    )
}

unsafe extern "C" {
    fn mmap(at: u64, size: usize, rights: i32, flags: i32, file: i32, offset: i64) -> u64;
}

/// A page below 2 GiB, whose addresses fit into an instruction: code in the first half, data in the second.
pub struct Page(u64);

impl Page {
    pub fn new() -> Self {
        let (all_rights, private_anonymous_low) = (7, 0x62);
        // SAFETY: new memory, as long as the test runs.
        let at = unsafe { mmap(0, 4096, all_rights, private_anonymous_low, -1, 0) };
        assert!(at != u64::MAX && at < 1 << 31);
        Self(at)
    }

    pub fn data(&self) -> u64 {
        self.0 + 2048
    }

    /// Runs one instruction. Returns what memory holds afterwards.
    pub fn run(&self, instruction: &[u8], state: &mut State, data: u64) -> u64 {
        let mut code = Vec::from(instruction);
        code.push(0xc3);
        // SAFETY: the page has room for both and is used by nobody else; the code is an instruction that changes the
        // eight bytes of data and registers but RSP, and RET.
        unsafe {
            core::ptr::copy_nonoverlapping(code.as_ptr(), self.0 as *mut u8, code.len());
            (self.data() as *mut u64).write_volatile(data);
            run(state, self.0);
            (self.data() as *const u64).read_volatile()
        }
    }
}
