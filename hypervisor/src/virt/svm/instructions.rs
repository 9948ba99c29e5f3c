//! The instructions of SVM, and where this CPU's control block is.

use core::arch::{asm, naked_asm};

use super::control_block::ControlBlock;
use crate::cpu::private;
use crate::memory::address::HostPhysical;

/// This CPU's control block.
#[inline(always)]
#[must_use]
pub fn block() -> &'static ControlBlock {
    // SAFETY: the private table maps this CPU's control block here, a page of cells, for as long as the CPU is under the
    // hypervisor; the processor touches it at VMRUN, VMSAVE and exits only, which are in assembly.
    unsafe { &*(private::CONTROL_BLOCK as *const ControlBlock) }
}

/// Saves what VMRUN and exits leave alone: FS, GS, TR, LDTR, and the registers of SYSCALL, SYSENTER and SWAPGS.
///
/// # Safety
/// The frame is a control block of this CPU, and EFER.SVME is set.
pub unsafe fn vmsave(frame: HostPhysical) {
    // SAFETY: the caller's promise.
    unsafe { asm!("vmsave rax", in("rax") frame.as_u64(), options(nostack, preserves_flags)) };
}

/// Takes the NMIs that wait, and a redirected INIT: for a moment the global interrupt flag is 1.
///
/// # Safety
/// EFER.SVME is set, and the CPU's own descriptor tables and task register are loaded.
pub unsafe fn take_pending() {
    // SAFETY: interrupts are off, so nothing but what the caller's tables have handlers for is taken.
    unsafe { asm!("stgi", "nop", "clgi", options(nostack)) };
}

/// As [`take_pending`], and takes external interrupts.
///
/// # Safety
/// As for [`take_pending`], and the interrupt descriptor table has a handler for each vector.
pub unsafe fn interrupts_for_a_moment() {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "stgi",
            "sti",
            "nop",
            "nop",
            "nop",
            "cli",
            "clgi",
            options(nostack)
        )
    };
}

/// Sets the global interrupt flag for good.
///
/// # Safety
/// As for [`take_pending`].
pub unsafe fn stgi() {
    // SAFETY: the caller's promise.
    unsafe { asm!("stgi", options(nostack)) };
}

/// Halts until an NMI was taken. One that waits already is taken before the HLT, which the handler of NMIs then leaves out:
/// it finds its return address at [`HALT_OFFSET`].
#[unsafe(naked)]
pub extern "sysv64" fn wait() {
    naked_asm!("stgi", "hlt", "clgi", "ret")
}

/// Where HLT is in [`wait`]: behind STGI.
pub const HALT_OFFSET: usize = 3;
