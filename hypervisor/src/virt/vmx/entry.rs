//! VM entry, VM exit and the handler of NMIs in assembly.
//!
//! An exit saves the ten registers that Rust code may change and RBX, and calls [`super::exit::exit_fast`]; most exits end there
//! and go straight back. Only when it says so the other five are added to the frame (a function preserves them, so they
//! still are the guest's) and [`crate::virt::exit::exit_slow`] is called.

use core::arch::naked_asm;
use core::mem::offset_of;

use super::control::{LOADED, PIN_WITH_TIMER};
use super::fields::Field;
use crate::cpu::{PRIVATE_BASE, PerCpu};
use crate::virt::entry::{
    Frame, HOST_STACK, pop_behind_rax, pop_last_five, push_behind_rax, save_last_five,
};

/// The host's RIP: every VM exit comes here.
#[unsafe(naked)]
pub extern "sysv64" fn vm_exit() {
    naked_asm!(
        "sub rsp, 40",
        push_behind_rax!(),
        "push rax",
        "mov rdi, {private}",
        "mov rsi, rsp",
        "call {fast}",
        "test eax, eax",
        "jnz 2f",
        "pop rax",
        pop_behind_rax!(),
        "vmresume",
        "jmp {failed}",
        "2:",
        "mov edx, eax",
        save_last_five!(),
        "mov rdi, {private}",
        "mov rsi, rsp",
        "call {slow}",
        "mov rdi, rsp",
        "mov esi, eax",
        "jmp {enter}",
        private = const PRIVATE_BASE as i64,
        fast = sym super::exit::exit_fast,
        slow = sym crate::virt::exit::exit_slow,
        enter = sym enter,
        failed = sym failed,
    )
}

/// Enters the guest with the registers of the frame: VMLAUNCH if `launch` is not 0, else VMRESUME.
///
/// # Safety
/// The frame lies on this CPU's stack and below it nothing is needed any more; the VMCS is current and its host state
/// is set.
#[unsafe(naked)]
pub unsafe extern "sysv64" fn enter(frame: *const Frame, launch: u32) -> ! {
    naked_asm!(
        "mov rsp, rdi",
        "test esi, esi",
        "pop rax",
        pop_behind_rax!(),
        pop_last_five!(),
        "jnz 2f",
        "vmresume",
        "jmp {failed}",
        "2:",
        "vmlaunch",
        "jmp {failed}",
        failed = sym failed,
    )
}

/// VMLAUNCH or VMRESUME came back: the VMCS or the order of instructions is at fault.
#[unsafe(naked)]
extern "sysv64" fn failed() {
    naked_asm!(
        "mov rsp, {stack}",
        "and rsp, -16",
        "mov rdi, {private}",
        "call {handler}",
        "ud2",
        stack = const HOST_STACK as i64,
        private = const PRIVATE_BASE as i64,
        handler = sym super::exit::entry_failed,
    )
}

/// An NMI that hits the hypervisor is counted, and has the guest exit before its first instruction. The preemption
/// timer's bit and value are written here and in [`super::Vmx`] only; the exit path clears the bit.
#[unsafe(naked)]
pub extern "C" fn nmi() {
    naked_asm!(
        "push rax",
        "push rdx",
        "lock inc dword ptr [{private} + {count}]",
        "cmp byte ptr [{private} + {loaded}], 0",
        "je 2f",
        "mov eax, {pin_field}",
        "mov edx, dword ptr [{private} + {pin}]",
        "vmwrite rax, rdx",
        "mov eax, {timer_field}",
        "xor edx, edx",
        "vmwrite rax, rdx",
        "2:",
        "pop rdx",
        "pop rax",
        "iretq",
        private = const PRIVATE_BASE as i64,
        count = const offset_of!(PerCpu, nmi_count),
        loaded = const offset_of!(PerCpu, virtualization) + LOADED,
        pin = const offset_of!(PerCpu, virtualization) + PIN_WITH_TIMER,
        pin_field = const Field::PinBasedControls.0,
        timer_field = const Field::PreemptionTimer.0,
    )
}

#[cfg(test)]
mod tests {
    use iced_x86::Mnemonic;

    use super::*;
    use crate::virt::entry::tests::{PLACES, place, places};

    #[test]
    fn the_assembly_saves_and_loads_what_the_frame_says() {
        let size = size_of::<Frame>() as i64;
        let saved = places(vm_exit as *const () as usize, 64, size, Mnemonic::Call);
        let entered = places(enter as *const () as usize, 40, 0, Mnemonic::Vmresume);
        assert_eq!((saved.len(), entered.len()), (10, PLACES.len()));
        for (register, at) in saved.into_iter().chain(entered) {
            assert_eq!(at, place(register) as i64, "{register:?}");
        }
    }
}
