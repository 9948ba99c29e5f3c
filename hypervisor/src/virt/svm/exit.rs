//! The first look at an exit.

use gaol_abi::exit::COUNTER_NESTED_FAULT;

use super::codes::{self, ExitCode};
use super::guest::take;
use super::instructions::block;
use crate::cpu::PerCpu;
use crate::guest::{cpuid, memory, msr, port};
use crate::hypercall;
use crate::virt::entry::Frame;
use crate::virt::exit::{self, SLOW};

/// First look at an exit. The handlers are functions of their own and called last, so that this one saves no registers.
pub extern "sysv64" fn exit_fast(cpu: &mut PerCpu, frame: &mut Frame) -> u32 {
    let (code, info1) = (block().code(), block().exit_info1.get());
    // Of the frequent ones the number is known without the table.
    match code {
        ExitCode::Cpuid => {
            cpu.counters.count(10);
            cpuid::fast(cpu, frame)
        }
        ExitCode::Vmmcall => {
            cpu.counters.count(18);
            hypercall::fast(cpu, frame)
        }
        ExitCode::Port => {
            cpu.counters.count(30);
            port::fast(cpu, frame)
        }
        ExitCode::Msr if info1 & 1 == 0 => {
            cpu.counters.count(31);
            msr::read_fast(cpu, frame)
        }
        ExitCode::Msr => {
            cpu.counters.count(32);
            msr::write_fast(cpu, frame)
        }
        ExitCode::NestedPageFault => {
            cpu.counters.count(COUNTER_NESTED_FAULT);
            memory::fast(cpu, frame)
        }
        ExitCode::Xsetbv => {
            cpu.counters.count(55);
            exit::xsetbv(cpu, frame)
        }
        _ => {
            cpu.counters.count(codes::counter(code.0, info1));
            SLOW
        }
    }
}

/// Everything else. Returns how the guest is entered.
pub extern "sysv64" fn slow(cpu: &mut PerCpu, frame: &mut Frame, why: u32) -> u32 {
    block().settle();
    if block().code() == ExitCode::Init {
        // It waits until it is taken, as an exception (VM_CR).
        take();
    }
    exit::exit_slow(cpu, frame, why)
}
