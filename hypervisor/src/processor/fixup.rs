//! Instructions done on a guest's behalf that may raise #GP, with a way out.
//!
//! Each function is a leaf that touches no stack: when its instruction faults, the #GP handler moves RIP to `failed`,
//! which returns as if the function had, with the error flag set.

use core::arch::naked_asm;

/// What an instruction did.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Attempt {
    /// The value read; 0 for writes.
    pub value: u64,
    /// 0: done; 1: the instruction raised #GP.
    pub faulted: u64,
}

#[unsafe(naked)]
extern "sysv64" fn attempt_rdmsr(register: u32) -> Attempt {
    naked_asm!(
        "mov ecx, edi",
        ".globl gaol_fixup_rdmsr",
        "gaol_fixup_rdmsr:",
        "rdmsr",
        "shl rdx, 32",
        "or rax, rdx",
        "xor edx, edx",
        "ret",
    )
}

#[unsafe(naked)]
extern "sysv64" fn attempt_wrmsr(register: u32, low: u32, high: u32) -> Attempt {
    naked_asm!(
        "mov ecx, edi",
        "mov eax, esi",
        ".globl gaol_fixup_wrmsr",
        "gaol_fixup_wrmsr:",
        "wrmsr",
        "xor eax, eax",
        "xor edx, edx",
        "ret",
    )
}

#[unsafe(naked)]
extern "sysv64" fn attempt_xsetbv(register: u32, low: u32, high: u32) -> Attempt {
    naked_asm!(
        "mov ecx, edi",
        "mov eax, esi",
        ".globl gaol_fixup_xsetbv",
        "gaol_fixup_xsetbv:",
        "xsetbv",
        "xor eax, eax",
        "xor edx, edx",
        "ret",
    )
}

/// Where the #GP handler sends an instruction that faulted: returns from the leaf with the error flag.
#[unsafe(naked)]
pub extern "sysv64" fn failed() -> Attempt {
    naked_asm!("xor eax, eax", "mov edx, 1", "ret")
}

/// Reads an MSR that may not exist. `None`: #GP.
#[must_use]
pub fn read_msr(register: u32) -> Option<u64> {
    let attempt = attempt_rdmsr(register);
    (attempt.faulted == 0).then_some(attempt.value)
}

/// Writes an MSR that may not exist or may refuse the value. `None`: #GP.
///
/// # Safety
/// If the register takes the value, the hypervisor's execution and memory stay as they are.
#[must_use]
pub unsafe fn write_msr(register: u32, value: u64) -> Option<()> {
    (attempt_wrmsr(register, value as u32, (value >> 32) as u32).faulted == 0).then_some(())
}

/// XSETBV with whatever the guest put into the registers. `None`: #GP. The hypervisor uses no extended state, so no
/// value that the processor takes can hurt it.
#[must_use]
#[inline]
pub fn set_extended_control(register: u32, low: u32, high: u32) -> Option<()> {
    (attempt_xsetbv(register, low, high).faulted == 0).then_some(())
}

unsafe extern "C" {
    safe static gaol_fixup_rdmsr: u8;
    safe static gaol_fixup_wrmsr: u8;
    safe static gaol_fixup_xsetbv: u8;
}

/// Where to go on after #GP at `rip`; `None`: that one is a fault of the hypervisor.
#[must_use]
pub fn continuation(rip: u64) -> Option<u64> {
    let known = [
        &raw const gaol_fixup_rdmsr,
        &raw const gaol_fixup_wrmsr,
        &raw const gaol_fixup_xsetbv,
    ];
    known
        .iter()
        .any(|at| *at as u64 == rip)
        .then_some(failed as *const () as u64)
}
