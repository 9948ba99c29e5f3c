//! RDMSR and WRMSR that the bitmap does not let through.
//!
//! What is let through is decided in [`crate::cell::confinement`]; here is what is answered in the hypervisor. What is
//! neither raises #GP, and in a cell it is kept on record.

use super::{Verdict, interrupt};
use crate::cell::published;
use crate::cpu::PerCpu;
use crate::device::apic;
use crate::processor::{fixup, msr};
use crate::system;
use crate::virt::vmx::control::Exception;
use crate::virt::vmx::entry::Frame;
use crate::virt::vmx::exit::{SLOW, done};
use crate::virt::vmx::fields::msr as vmx_msr;

/// IA32_FEATURE_CONTROL: locked, VMX off.
const FEATURE_CONTROL_LOCKED: u64 = 1;
const X2APIC_COMMAND: u32 = msr::X2APIC + (apic::register::COMMAND_LOW as u32 >> 4);

#[inline(always)]
fn put(frame: &mut Frame, value: u64) {
    frame.rax = value & 0xffff_ffff;
    frame.rdx = value >> 32;
}

#[inline(always)]
fn value(frame: &Frame) -> u64 {
    (frame.rdx << 32) | (frame.rax & 0xffff_ffff)
}

fn refuse(register: u32) -> Verdict {
    Verdict::InjectRecorded {
        exception: Exception::GENERAL_PROTECTION,
        address: u64::from(register),
    }
}

/// RDMSR that needs no thought.
#[inline(never)]
pub extern "sysv64" fn read_fast(cpu: &mut PerCpu, frame: &mut Frame) -> u32 {
    if frame.rcx as u32 == msr::MTRR_DEF_TYPE {
        put(frame, cpu.mtrr_default_type);
        return done(cpu);
    }
    SLOW
}

/// WRMSR that needs no thought: an interprocessor interrupt in x2APIC mode.
#[inline(never)]
pub extern "sysv64" fn write_fast(cpu: &mut PerCpu, frame: &mut Frame) -> u32 {
    if frame.rcx as u32 == X2APIC_COMMAND && interrupt::x2apic_fast(cpu, value(frame)) {
        return done(cpu);
    }
    SLOW
}

/// Any other RDMSR.
pub fn read_slow(cpu: &PerCpu, frame: &mut Frame) -> Verdict {
    let register = frame.rcx as u32;
    let answer = match register {
        msr::MTRR_DEF_TYPE => Some(cpu.mtrr_default_type),
        vmx_msr::FEATURE_CONTROL => Some(FEATURE_CONTROL_LOCKED),
        // The processor that a guest sees has no VMX.
        vmx_msr::BASIC..=0x492 => None,
        // Beyond the bitmap's ranges: what the processor itself answers to Linux.
        _ if cpu.is_root => fixup::read_msr(register),
        _ => None,
    };
    match answer {
        Some(answer) => {
            put(frame, answer);
            Verdict::Advance
        }
        None if cpu.is_root => Verdict::Inject(Exception::GENERAL_PROTECTION),
        None => refuse(register),
    }
}

const fn is_mtrr(register: u32) -> bool {
    matches!(
        register,
        msr::MTRR_VARIABLE..msr::MTRR_VARIABLE_END
            | msr::MTRR_FIXED_64K
            | msr::MTRR_FIXED_16K..=0x259
            | msr::MTRR_FIXED_4K..=0x26f
    )
}

/// Any other WRMSR.
pub fn write_slow(cpu: &mut PerCpu, frame: &mut Frame) -> Verdict {
    let register = frame.rcx as u32;
    let value = value(frame);
    match register {
        X2APIC_COMMAND if cpu.x2apic => interrupt::x2apic_slow(cpu, value),
        _ if (msr::X2APIC..msr::X2APIC + 0x40).contains(&register) && cpu.x2apic => {
            interrupt::x2apic_register(cpu.is_root, register, value).unwrap_or(refuse(register))
        }
        // Memory types stay as they were at the launch: the EPT was built from them. Linux switches the MTRRs off and on
        // whenever a CPU comes up, and must find what it wrote.
        msr::MTRR_DEF_TYPE => {
            cpu.mtrr_default_type = value;
            Verdict::Advance
        }
        _ if is_mtrr(register) => {
            if fixup::read_msr(register) == Some(value) {
                return Verdict::Advance;
            }
            super::fault::record(cpu, frame, u64::from(register));
            Verdict::Advance
        }
        msr::APIC_BASE => {
            let mode = apic::BASE_ENABLED | apic::BASE_X2APIC;
            if fixup::read_msr(register)
                .is_some_and(|now| (now ^ value) & (mode | 0x000f_ffff_ffff_f000) == 0)
            {
                return Verdict::Advance;
            }
            refuse(register)
        }
        // The lock is set.
        vmx_msr::FEATURE_CONTROL | vmx_msr::BASIC..=0x492 => refuse(register),
        _ if cpu.is_root && root_may_write(register) => {
            // SAFETY: only registers beyond the bitmap's ranges, or intercepted ones handled above, come here; what the root
            // writes to the former is what it could do on bare hardware, and none of them bears on the hypervisor.
            match unsafe { fixup::write_msr(register, value) } {
                Some(()) => Verdict::Advance,
                None => Verdict::Inject(Exception::GENERAL_PROTECTION),
            }
        }
        _ => write_masked(cpu, register, value).unwrap_or(refuse(register)),
    }
}

/// Whether the root may write to all of a register that the bitmap does not let through.
fn root_may_write(register: u32) -> bool {
    system::root_share().is_none_or(|share| share.write_mask(register) == u64::MAX)
}

/// A write to a register of which a cell may change a part. `None`: there is no such.
fn write_masked(cpu: &PerCpu, register: u32, value: u64) -> Option<Verdict> {
    let mask = if cpu.is_root {
        system::root_share()?.write_mask(register)
    } else {
        let mut writable = published(cpu.cell)?.writable_msrs();
        writable.find(|(other, _)| *other == register)?.1
    };
    if mask == 0 {
        return None;
    }
    let before = fixup::read_msr(register)?;
    // SAFETY: the configuration gives the cell these bits, of a register that the hypervisor does not depend on (the
    // ledger sees to that).
    let written = unsafe { fixup::write_msr(register, (before & !mask) | (value & mask)) };
    Some(match written {
        Some(()) => Verdict::Advance,
        None => Verdict::Inject(Exception::GENERAL_PROTECTION),
    })
}
