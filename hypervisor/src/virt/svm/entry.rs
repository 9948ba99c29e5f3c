//! VMRUN, exits and the handler of NMIs in assembly.
//!
//! An exit saves the nine registers besides RAX that Rust code may change or that are guests' arguments, and calls
//! [`super::exit::exit_fast`]; most exits end there and go straight back. Only when it says so the other five are added to the
//! frame and [`super::exit::slow`] is called.
//!
//! From an exit to the next VMRUN the global interrupt flag is 0: NMIs and machine checks wait, so there is no race between the
//! last look into the mailbox and the entry. VMRUN leaves FS, GS, TR, LDTR and the registers of SYSCALL, SYSENTER and SWAPGS as
//! they are. The hypervisor uses none but TR, and that only where something is taken from another stack: so the first look
//! works with the guest's, what comes behind it saves them (VMSAVE) and loads its own TR, and the way back loads them (VMLOAD).

use core::arch::naked_asm;
use core::mem::offset_of;

use super::Svm;
use super::control_block::{Clean, ControlBlock};
use super::instructions::{HALT_OFFSET, wait};
use crate::cpu::{PRIVATE_BASE, PerCpu, TABLES_AT, private};
use crate::processor::tables::{DescriptorTables, TASK_SELECTOR};
use crate::virt::entry::{
    Frame, HOST_STACK, pop_behind_rax, pop_last_five, push_behind_rax, save_last_five,
};
use crate::virt::exit::EVENTS;

const BLOCK: i64 = private::CONTROL_BLOCK as i64;
const RAX: usize = offset_of!(ControlBlock, rax);
/// The control block's physical address in [`PerCpu`].
const PHYSICAL: usize = offset_of!(PerCpu, virtualization) + offset_of!(Svm, control_block);
/// The byte of the own TSS' descriptor that says whether it is busy.
const TASK_TYPE: i64 = DescriptorTables::gdt_base(TABLES_AT) as i64 + TASK_SELECTOR as i64 + 5;

/// Behind VMRUN: every exit comes here, with RSP as it was before.
#[unsafe(naked)]
pub extern "sysv64" fn vm_exit() {
    naked_asm!(
        push_behind_rax!(),
        "push qword ptr [{block} + {rax}]",
        "mov rdi, {private}",
        "mov rsi, rsp",
        "call {fast}",
        "test eax, eax",
        "jnz 2f",
        "pop qword ptr [{block} + {rax}]",
        pop_behind_rax!(),
        "mov rax, qword ptr [{private} + {physical}]",
        "vmrun rax",
        "jmp {vm_exit}",
        "2:",
        "mov edx, eax",
        "mov rax, qword ptr [{private} + {physical}]",
        "vmsave rax",
        // LTR wants a TSS that is not busy.
        "and byte ptr [{task_type}], 0xfd",
        "mov ecx, {task}",
        "ltr cx",
        save_last_five!(),
        "mov rdi, {private}",
        "mov rsi, rsp",
        "call {slow}",
        "mov rdi, rsp",
        "mov esi, eax",
        "jmp {enter}",
        block = const BLOCK,
        rax = const RAX,
        private = const PRIVATE_BASE as i64,
        physical = const PHYSICAL,
        task_type = const TASK_TYPE,
        task = const TASK_SELECTOR,
        vm_exit = sym vm_exit,
        fast = sym super::exit::exit_fast,
        slow = sym super::exit::slow,
        enter = sym enter,
    )
}

/// Enters the guest with the registers of the frame; one that is parked (`parked` is not 0) is waited for instead.
///
/// # Safety
/// The frame lies at the end of this CPU's stack and below it nothing is needed any more; the CPU is in operation and its
/// control block is filled.
#[unsafe(naked)]
pub unsafe extern "sysv64" fn enter(frame: *const Frame, parked: u32) -> ! {
    naked_asm!(
        "clgi",
        "mov rsp, rdi",
        "test esi, esi",
        "jnz 2f",
        "pop qword ptr [{block} + {rax}]",
        pop_behind_rax!(),
        pop_last_five!(),
        // An exit finds the stack as it is here, with room for the five that the first look leaves out.
        "mov rsp, {stack}",
        "mov rax, qword ptr [{private} + {physical}]",
        "vmload rax",
        "vmrun rax",
        // What was to be flushed is, and what was read need not be read again.
        "mov dword ptr [{block} + {flush}], 0",
        "mov dword ptr [{block} + {clean}], {all}",
        "jmp {vm_exit}",
        "2:",
        "mov rsp, {frame}",
        "call {wait}",
        "mov rdi, {private}",
        "mov rsi, rsp",
        "mov edx, {events}",
        "call {slow}",
        "mov rdi, rsp",
        "mov esi, eax",
        "jmp {enter}",
        block = const BLOCK,
        rax = const RAX,
        private = const PRIVATE_BASE as i64,
        physical = const PHYSICAL,
        stack = const HOST_STACK as i64 - 40,
        frame = const HOST_STACK as i64 - size_of::<Frame>() as i64,
        flush = const offset_of!(ControlBlock, tlb_control),
        clean = const offset_of!(ControlBlock, clean),
        all = const Clean::all().bits(),
        events = const EVENTS,
        vm_exit = sym vm_exit,
        wait = sym wait,
        slow = sym crate::virt::exit::exit_slow,
        enter = sym enter,
    )
}

/// An NMI that hits the hypervisor is counted, whoever has sent it. One that comes as [`wait`] is about to halt makes it go on.
#[unsafe(naked)]
pub extern "C" fn nmi() {
    naked_asm!(
        "push rax",
        "lock inc dword ptr [{private} + {count}]",
        "lea rax, [rip + {wait} + {halt}]",
        "cmp rax, [rsp + 8]",
        "jne 2f",
        "inc qword ptr [rsp + 8]",
        "2:",
        "pop rax",
        "iretq",
        private = const PRIVATE_BASE as i64,
        count = const offset_of!(PerCpu, nmi_count),
        wait = sym wait,
        halt = const HALT_OFFSET,
    )
}

#[cfg(test)]
mod tests {
    use iced_x86::Mnemonic;

    use super::*;
    use crate::virt::entry::tests::{PLACES, place, places};

    #[test]
    fn the_assembly_saves_and_loads_what_the_frame_says() {
        // VMRUN is reached with room left for five registers.
        let size = size_of::<Frame>() as i64;
        let saved = places(vm_exit as *const () as usize, 64, size - 40, Mnemonic::Call);
        let entered = places(enter as *const () as usize, 96, 0, Mnemonic::Vmrun);
        assert_eq!((saved.len(), entered.len()), (10, PLACES.len()));
        for (register, at) in saved.into_iter().chain(entered) {
            assert_eq!(at, place(register) as i64, "{register:?}");
        }
    }

    /// The handler of NMIs finds HLT where it is said to be, and steps over the one byte that it has.
    #[test]
    fn the_halt_is_where_the_handler_looks_for_it() {
        let at = wait as *const () as usize;
        // SAFETY: this program's own text, which is longer.
        let bytes = unsafe { core::slice::from_raw_parts(at as *const u8, 7) };
        let (stgi, hlt, clgi) = ([0x0f, 0x01, 0xdc], [0xf4], [0x0f, 0x01, 0xdd]);
        assert_eq!(bytes, [&stgi[..], &hlt, &clgi].concat());
        assert_eq!(HALT_OFFSET, stgi.len());
    }
}
