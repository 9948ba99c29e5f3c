//! Back to Linux, outside of operation, right where the guest is.

use core::sync::atomic::Ordering;

use gaol_abi::handover::{HandoverPage, LinuxState, TableRegister};

use super::parameters;
use super::saved::Saved;
use crate::cpu::PerCpu;
use crate::cpu::mailbox::Nmis;
use crate::processor::cr4;
use crate::processor::descriptor::SegmentRegister;
use crate::virt::contract::Virtualization;
use crate::virt::entry::Frame;
use crate::virt::state::{State, Table};

/// Jumps to the stub's way back.
///
/// # Safety
/// The state in the handover page at `handover` is whole, the MSRs that the stub does not restore are Linux', and the
/// CPU is outside of operation.
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

const fn table_register(table: Table) -> TableRegister {
    TableRegister {
        reserved: [0; 3],
        limit: table.limit as u16,
        base: table.base,
    }
}

/// The guest's state as the stub loads it.
fn linux_state(frame: &Frame, guest: &State) -> (LinuxState, Saved) {
    let task = guest.segment(SegmentRegister::Tr);
    let mut state = LinuxState {
        registers: frame.registers(guest.rsp),
        rip: guest.rip,
        rflags: guest.rflags,
        cr3: guest.cr3,
        // As Linux wrote it; VMXE, if it did, had no effect.
        cr4: guest.cr4 & !cr4::VMXE,
        gdtr: table_register(guest.gdtr),
        idtr: table_register(guest.idtr),
        task_descriptor: task_descriptor(task.base, task.limit.into()),
        ..LinuxState::default()
    };
    for (selector, segment) in state.selectors.iter_mut().zip(&guest.segments) {
        *selector = segment.selector;
    }
    let saved = Saved {
        cr0: guest.cr0,
        dr7: guest.dr7,
        efer: guest.efer,
        pat: guest.pat,
        debugctl: guest.debugctl,
        sysenter: guest.sysenter,
        fs_base: guest.segment(SegmentRegister::Fs).base,
        gs_base: guest.segment(SegmentRegister::Gs).base,
    };
    (state, saved)
}

/// Leaves the NMIs and machine checks that hit the hypervisor, and were not delivered yet, to the module.
pub fn hand_back_interrupts(cpu: &PerCpu) {
    let count = cpu.nmi_count.swap(0, Ordering::Relaxed);
    let Nmis { own, .. } = cpu.shared.account(count);
    let own = own.saturating_add(u32::from(cpu.pending_nmi));
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
    let (mut state, saved) = linux_state(frame, &cpu.virtualization.save());
    cpu.virtualization.leave_operation();
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
