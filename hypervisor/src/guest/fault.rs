//! The record of what a guest did wrong.

use gaol_abi::exit::COUNTER_ROOT_VIOLATIONS;
use gaol_abi::public::FaultRecord;

use super::memory::fetch;
use crate::cpu::PerCpu;
use crate::processor::descriptor::SegmentRegister;
use crate::processor::time_stamp;
use crate::trace::public;
use crate::virt::contract::GuestState;
use crate::virt::entry::Frame;

/// Keeps the guest's present state as its last fault. `address`: the guest-physical address, port or MSR.
pub fn record(cpu: &PerCpu, frame: &Frame, address: u64) {
    if cpu.is_root {
        cpu.counters.count(COUNTER_ROOT_VIOLATIONS);
    }
    let guest = cpu.guest;
    let mut instruction = [0; 16];
    let instruction_length = fetch(cpu, &mut instruction).unwrap_or(0) as u32;
    cpu.windows.close();
    public::record_fault(
        cpu.index,
        &FaultRecord {
            count: 0,
            cell: cpu.cell,
            exit_reason: guest.exit_number(),
            instruction_length,
            qualification: guest.exit_detail(),
            address,
            rip: guest.rip(),
            rflags: guest.rflags(),
            cr0: guest.cr0(),
            cr3: guest.cr3(),
            cr4: guest.cr4(),
            cs_base: guest.segment_base(SegmentRegister::Cs),
            time: time_stamp(),
            registers: frame.registers(guest.rsp()),
            instruction,
        },
    );
}
