//! Back to Linux, outside VMX operation, right where the guest is.

use core::sync::atomic::Ordering;

use gaol_abi::handover::{HandoverPage, LinuxState, TableRegister};

use super::parameters;
use super::saved::Saved;
use crate::cpu::PerCpu;
use crate::processor::cr4;
use crate::virt::vmx::entry::Frame;
use crate::virt::vmx::fields::{Field, SEGMENTS};
use crate::virt::vmx::instructions::read;
use crate::virt::vmx::operation;

/// Jumps to the stub's way back.
///
/// # Safety
/// The state in the handover page at `handover` is whole, the MSRs that the stub does not restore are Linux', and the
/// CPU is outside VMX operation.
pub unsafe fn jump(handover: u64) -> ! {
    // SAFETY: the stub page is mapped at the same address in this page table and in Linux'; the caller's promise.
    unsafe {
        core::arch::asm!("jmp {}", in(reg) parameters::stub_leave(), in("rdi") handover, options(noreturn));
    }
}

/// The descriptor of an available 64-bit TSS.
fn task_descriptor(base: u64, limit: u64) -> [u64; 2] {
    let available_tss = 0x89u64 << 40;
    let low = (limit & 0xffff)
        | ((base & 0xff_ffff) << 16)
        | available_tss
        | ((limit & 0xf_0000) << 32)
        | ((base & 0xff00_0000) << 32);
    [low, base >> 32]
}

fn guest_state(frame: &Frame) -> (LinuxState, Saved) {
    let mut state = LinuxState::default();
    let registers = &mut state.registers;
    registers.rax = frame.rax;
    registers.rcx = frame.rcx;
    registers.rdx = frame.rdx;
    registers.rbx = frame.rbx;
    registers.rsi = frame.rsi;
    registers.rdi = frame.rdi;
    registers.rbp = frame.rbp;
    registers.r8 = frame.r8;
    registers.r9 = frame.r9;
    registers.r10 = frame.r10;
    registers.r11 = frame.r11;
    registers.r12 = frame.r12;
    registers.r13 = frame.r13;
    registers.r14 = frame.r14;
    registers.r15 = frame.r15;
    registers.rsp = read(Field::GuestRsp);
    state.rip = read(Field::GuestRip);
    state.rflags = read(Field::GuestRflags);
    state.cr3 = read(Field::GuestCr3);
    // As Linux wrote it; VMXE, if it did, was for the shadow only.
    let mask = read(Field::Cr4Mask);
    let visible = (read(Field::GuestCr4) & !mask) | (read(Field::Cr4ReadShadow) & mask);
    state.cr4 = visible & !cr4::VMXE;
    state.gdtr = TableRegister {
        reserved: [0; 3],
        limit: read(Field::GuestGdtrLimit) as u16,
        base: read(Field::GuestGdtrBase),
    };
    state.idtr = TableRegister {
        reserved: [0; 3],
        limit: read(Field::GuestIdtrLimit) as u16,
        base: read(Field::GuestIdtrBase),
    };
    for (selector, fields) in state.selectors.iter_mut().zip(SEGMENTS) {
        *selector = read(fields.selector) as u16;
    }
    state.task_descriptor = task_descriptor(read(Field::GuestTrBase), read(Field::GuestTrLimit));
    let saved = Saved {
        cr0: read(Field::GuestCr0),
        dr7: read(Field::GuestDr7),
        efer: read(Field::GuestEfer),
        pat: read(Field::GuestPat),
        debugctl: read(Field::GuestDebugctl),
        sysenter: [
            read(Field::GuestSysenterCs),
            read(Field::GuestSysenterEsp),
            read(Field::GuestSysenterEip),
        ],
        fs_base: read(Field::GuestFsBase),
        gs_base: read(Field::GuestGsBase),
    };
    (state, saved)
}

/// Leaves the NMIs and machine checks that hit the hypervisor, and were not delivered yet, to the module.
pub fn hand_back_interrupts(cpu: &PerCpu) {
    let count = cpu.nmi_count.swap(0, Ordering::Relaxed);
    let kicks = u32::from(count != 0 && cpu.shared.nmi_was_kick());
    let own = count
        .saturating_sub(kicks)
        .saturating_add(u32::from(cpu.pending_nmi));
    let checks = cpu.machine_checks.swap(0, Ordering::Relaxed);
    let page = cpu.handover as *mut HandoverPage;
    // SAFETY: this CPU's own handover page, which the emergency handlers are not using yet.
    unsafe {
        (*page).nmi_count = (*page).nmi_count.saturating_add(own);
        (*page).machine_check_count = (*page).machine_check_count.saturating_add(checks);
    }
}

/// Leaves the hypervisor for good: the guest goes on natively with its present state.
pub fn leave(cpu: &mut PerCpu, frame: &Frame) -> ! {
    let (mut state, saved) = guest_state(frame);
    operation::leave(cpu);
    hand_back_interrupts(cpu);
    let page = cpu.handover as *mut HandoverPage;
    // SAFETY: this CPU's own handover page; the state is whole, and `restore` writes the MSRs that the stub does not.
    unsafe {
        saved.restore(&mut state);
        (*page).state = state;
        (*page).result = 0;
        jump(cpu.handover)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::processor::descriptor::segment;

    proptest! {
        /// What launch would read from the descriptor is what was left.
        #[test]
        fn the_task_descriptor_reads_as_it_was(base: u64, limit in 0u64..1 << 20) {
            let selector = 0x40u16;
            let mut table = vec![0; usize::from(selector)];
            for half in task_descriptor(base, limit) {
                table.extend(half.to_le_bytes());
            }
            let task = segment(&table, selector).unwrap();
            prop_assert_eq!(task.base, base);
            prop_assert_eq!(u64::from(task.limit), limit);
            // Present, of the system, available 64-bit TSS: one that LTR takes.
            prop_assert_eq!(task.access_rights, 0x89);
        }
    }
}
