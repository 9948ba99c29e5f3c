//! Faults of the hypervisor on request, to test what becomes of them ([`super::recovery`]): for guests of a launch that was
//! asked for with this permission ([`FAULT_BY_HYPERCALL`]), and refused otherwise.

use core::arch::asm;

use gaol_abi::handover::FAULT_BY_HYPERCALL;
use gaol_abi::hypercall::InjectedFault;

use super::recovery;
use crate::launch::parameters;
use crate::system;

/// May guests ask for faults?
#[must_use]
pub fn is_permitted() -> bool {
    parameters::fault_step() == FAULT_BY_HYPERCALL
}

/// Fails as `kind` says; returns when there is no such kind, or when the fault did not happen.
pub fn fail(kind: InjectedFault) {
    match kind {
        InjectedFault::Panic => recovery::panicked(file!(), line!()),
        InjectedFault::PanicInManagement => {
            let _guard = system::try_manage();
            recovery::panicked(file!(), line!())
        }
        _ => raise(kind),
    }
}

/// Raises an exception, in a frame of its own so that a trace of the stack shows who wanted it.
#[inline(never)]
fn raise(kind: InjectedFault) {
    let (nowhere, not_canonical) = (0x10u64, 1u64 << 63);
    // SAFETY: each of these ends in an exception before it changes memory, but for the stack's own below its present end,
    // and nothing that runs now goes on after an exception.
    unsafe {
        match kind {
            InjectedFault::PageFault => {
                asm!("mov byte ptr [{}], 0", in(reg) nowhere, options(nostack));
            }
            InjectedFault::GeneralProtection => {
                asm!("mov byte ptr [{}], 0", in(reg) not_canonical, options(nostack));
            }
            InjectedFault::InvalidOpcode => asm!("ud2", options(nomem, nostack)),
            InjectedFault::DivideError => {
                asm!("xor edx, edx", "div {0:e}", in(reg) 0u32, inout("eax") 1u32 => _, out("edx") _);
            }
            InjectedFault::StackOverflow => asm!("2:", "push rax", "jmp 2b"),
            _ => {}
        }
    }
}
