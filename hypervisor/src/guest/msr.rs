//! RDMSR and WRMSR that the bitmap does not let through.
//!
//! What becomes of each register is decided in [`gaol_config::msr_policy`]: what is let through, what is answered here, and
//! what raises #GP and, in a cell, is kept on record.

use gaol_config::msr_policy::{Grant, Read, Rule, Write, policy};

use super::vectoring::Exception;
use super::{Verdict, interrupt, x2apic};
use crate::cell::published;
use crate::cpu::PerCpu;
use crate::device::apic;
use crate::processor::{fixup, msr};
use crate::system;
use crate::virt::contract::{GuestState, Trapped};
use crate::virt::entry::Frame;
use crate::virt::exit::{SLOW, done};

/// IA32_FEATURE_CONTROL: locked. All else that it could say is off.
const FEATURE_CONTROL_LOCKED: u64 = 1;
/// VM_CR: locked, SVM off.
const VM_CR_LOCKED: u64 = 1 << 3 | 1 << 4;
/// IA32_DEBUGCTL: single-stepping of branches.
const BRANCH_TRAP: u64 = 1 << 1;
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
        put(frame, cpu.mtrrs.default_type);
        return done(cpu, Trapped::Msr);
    }
    SLOW
}

/// WRMSR that needs no thought: an interprocessor interrupt in x2APIC mode, the end of an interrupt without it.
#[inline(never)]
pub extern "sysv64" fn write_fast(cpu: &mut PerCpu, frame: &mut Frame) -> u32 {
    let (register, value) = (frame.rcx as u32, value(frame));
    if register == X2APIC_COMMAND && interrupt::x2apic_fast(cpu, value)
        || x2apic::write_fast(cpu, register, value)
    {
        return done(cpu, Trapped::Msr);
    }
    SLOW
}

/// Any other RDMSR.
pub fn read_slow(cpu: &PerCpu, frame: &mut Frame) -> Verdict {
    let register = frame.rcx as u32;
    let kept = cpu.guest.kept_msr(register);
    let answer = match rule(cpu, register).read {
        Read::Pass if kept.is_some() => kept,
        _ if x2apic::is_virtual(cpu, register) => x2apic::read(cpu, register),
        // In a cell it is in x2APIC mode, also where the processor has none.
        Read::Pass if register == msr::APIC_BASE => apic_base(cpu),
        // Locked where the processor has it, as it must be for VMX, and nothing where it has none.
        Read::Virtual if register == msr::FEATURE_CONTROL => {
            fixup::read_msr(register).map(|value| value & FEATURE_CONTROL_LOCKED)
        }
        Read::Virtual if register == msr::VM_CR => Some(VM_CR_LOCKED),
        Read::Virtual if register == msr::MCG_CAP => Some(0),
        Read::Virtual => cpu.mtrrs.get(register),
        // Beyond the bitmap's ranges: what the processor itself answers to Linux.
        Read::Pass if cpu.is_root => fixup::read_msr(register),
        Read::Pass | Read::Refuse => None,
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

/// IA32_APIC_BASE as the guest finds it.
fn apic_base(cpu: &PerCpu) -> Option<u64> {
    let mode = if cpu.is_root { 0 } else { apic::BASE_X2APIC };
    fixup::read_msr(msr::APIC_BASE).map(|base| base | mode)
}

fn rule(cpu: &PerCpu, register: u32) -> Rule {
    let row = policy(register);
    if cpu.is_root { row.root } else { row.cell }
}

/// Any other WRMSR.
pub fn write_slow(cpu: &mut PerCpu, frame: &mut Frame) -> Verdict {
    let register = frame.rcx as u32;
    let value = value(frame);
    if x2apic::is_virtual(cpu, register) {
        return x2apic::write(cpu, register, value).unwrap_or(refuse(register));
    }
    let kept = if rule(cpu, register).write.passes() {
        cpu.guest.set_kept_msr(register, value)
    } else {
        None
    };
    match kept {
        Some(true) => return Verdict::Advance,
        Some(false) => return Verdict::Inject(Exception::GENERAL_PROTECTION),
        None => {}
    }
    let taken = match rule(cpu, register).write {
        Write::Checked => return check(cpu, register, value),
        Write::Virtual => cpu.mtrrs.set(register, value),
        Write::Ignore => {
            if cpu.is_root && fixup::read_msr(register) != Some(value) {
                super::fault::record(cpu, frame, u64::from(register));
            }
            Some(())
        }
        // Registers beyond the bitmap's ranges, and those that a strict root does not have.
        Write::Pass | Write::Own | Write::Switched if cpu.is_root => {
            write_bits(cpu, register, value, roots_mask(register))
        }
        Write::Masked(mask) if cpu.is_root => {
            write_bits(cpu, register, value, mask & roots_mask(register))
        }
        Write::Refuse if !cpu.is_root => {
            write_bits(cpu, register, value, cells_mask(cpu, register))
        }
        _ => None,
    };
    match taken {
        Some(()) => Verdict::Advance,
        None => refuse(register),
    }
}

/// A write that is done if it is harmless.
fn check(cpu: &PerCpu, register: u32, value: u64) -> Verdict {
    match register {
        X2APIC_COMMAND if cpu.x2apic => interrupt::x2apic_slow(cpu, value),
        _ if msr::X2APIC_ALL.contains(&register) && cpu.x2apic => {
            interrupt::x2apic_register(cpu.is_root, register, value).unwrap_or(refuse(register))
        }
        msr::APIC_BASE if keeps_apic(apic_base(cpu), value) => Verdict::Advance,
        msr::DEBUGCTL if value & !BRANCH_TRAP == 0 => {
            cpu.guest.set_debugctl(value);
            Verdict::Advance
        }
        // It is 0 and stays so.
        msr::XSS if value == 0 => Verdict::Advance,
        _ => refuse(register),
    }
}

/// Whether a write to IA32_APIC_BASE leaves mode, place and enable bit as they are.
fn keeps_apic(now: Option<u64>, value: u64) -> bool {
    let mode = apic::BASE_ENABLED | apic::BASE_X2APIC;
    now.is_some_and(|now| (now ^ value) & (mode | 0x000f_ffff_ffff_f000) == 0)
}

/// The bits of a register that the root's configuration leaves it to write.
fn roots_mask(register: u32) -> u64 {
    system::root_share().map_or(u64::MAX, |share| share.write_mask(register))
}

/// The bits of a register that a cell was given to write.
fn cells_mask(cpu: &PerCpu, register: u32) -> u64 {
    let given = published(cpu.cell).and_then(|cell| {
        let mut writable = cell.writable_msrs();
        writable.find(|(other, _)| *other == register)
    });
    match given {
        Some((_, mask)) if policy(register).grant == Grant::All => mask,
        _ => 0,
    }
}

/// Writes some bits of a register. `None`: not one, or the processor refuses the value.
fn write_bits(cpu: &PerCpu, register: u32, value: u64, mask: u64) -> Option<()> {
    if mask == 0 {
        return None;
    }
    if register == msr::DEBUGCTL {
        // The VM exit has put the processor's to 0.
        let before = cpu.guest.debugctl();
        cpu.guest.set_debugctl((before & !mask) | (value & mask));
        return Some(());
    }
    let before = if mask == u64::MAX {
        0
    } else {
        fixup::read_msr(register)?
    };
    // SAFETY: the table leaves the root, and the configuration gives the cell, these bits; the hypervisor depends on none
    // of them (the table says of each register why).
    unsafe { fixup::write_msr(register, (before & !mask) | (value & mask)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_apic_stays_where_it_is_and_as_it_is() {
        let now = Some(0xfee0_0900);
        assert!(keeps_apic(now, 0xfee0_0900));
        // The bootstrap processor's flag can't be written.
        assert!(keeps_apic(now, 0xfee0_0800));
        for bit in 0..52 {
            let changed = 0xfee0_0900 ^ 1u64 << bit;
            assert_eq!(keeps_apic(now, changed), bit < 10, "bit {bit}");
        }
        assert!(!keeps_apic(None, 0));
    }
}
