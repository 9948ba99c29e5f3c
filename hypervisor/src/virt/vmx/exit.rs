//! The first look at a VM exit, and what is left to do when an entry fails.

use super::fields::{ExitReason, Field};
use super::instructions::read;
use crate::cpu::PerCpu;
use crate::guest::{cpuid, memory, msr, port};
use crate::hypercall;
use crate::virt::entry::Frame;
use crate::virt::exit::{self, SLOW};

/// First look at an exit. The handlers are functions of their own and called last, so that this one saves no registers.
pub extern "sysv64" fn exit_fast(cpu: &mut PerCpu, frame: &mut Frame) -> u32 {
    let reason = read(Field::ExitReason) as u32;
    if !cpu.counters.count(reason as usize) {
        return SLOW;
    }
    match ExitReason(reason as u16) {
        ExitReason::Cpuid => cpuid::fast(cpu, frame),
        ExitReason::Vmcall => hypercall::fast(cpu, frame),
        ExitReason::Port => port::fast(cpu, frame),
        ExitReason::Rdmsr => msr::read_fast(cpu, frame),
        ExitReason::Wrmsr => msr::write_fast(cpu, frame),
        ExitReason::EptViolation => memory::fast(cpu, frame),
        ExitReason::Xsetbv => exit::xsetbv(cpu, frame),
        _ => SLOW,
    }
}

/// VMLAUNCH or VMRESUME failed before it looked at the guest: a fault of the hypervisor.
pub extern "sysv64" fn entry_failed(cpu: &mut PerCpu) -> ! {
    exit::entry_failed(cpu, read(Field::InstructionError))
}
