//! The record of what a guest did wrong.

use gaol_abi::exit::COUNTER_ROOT_VIOLATIONS;
use gaol_abi::handover::GeneralRegisters;
use gaol_abi::public::FaultRecord;

use super::memory::fetch;
use crate::cpu::PerCpu;
use crate::processor::time_stamp;
use crate::trace::public;
use crate::virt::vmx::entry::Frame;
use crate::virt::vmx::fields::Field;
use crate::virt::vmx::instructions::read;

/// Keeps the guest's present state as its last fault. `address`: the guest-physical address, port or MSR.
pub fn record(cpu: &PerCpu, frame: &Frame, address: u64) {
    if cpu.is_root {
        cpu.counters.count(COUNTER_ROOT_VIOLATIONS);
    }
    let mut instruction = [0; 16];
    let instruction_length = fetch(cpu, &mut instruction).unwrap_or(0) as u32;
    cpu.windows.close();
    public::record_fault(
        cpu.index,
        &FaultRecord {
            count: 0,
            cell: cpu.cell,
            exit_reason: read(Field::ExitReason) as u32,
            instruction_length,
            qualification: read(Field::ExitQualification),
            address,
            rip: read(Field::GuestRip),
            rflags: read(Field::GuestRflags),
            cr0: read(Field::GuestCr0),
            cr3: read(Field::GuestCr3),
            cr4: read(Field::GuestCr4),
            cs_base: read(Field::GuestCsBase),
            time: time_stamp(),
            registers: GeneralRegisters {
                rax: frame.rax,
                rcx: frame.rcx,
                rdx: frame.rdx,
                rbx: frame.rbx,
                rsi: frame.rsi,
                rdi: frame.rdi,
                rbp: frame.rbp,
                r8: frame.r8,
                r9: frame.r9,
                r10: frame.r10,
                r11: frame.r11,
                r12: frame.r12,
                r13: frame.r13,
                r14: frame.r14,
                r15: frame.r15,
                rsp: read(Field::GuestRsp),
            },
            instruction,
        },
    );
}
