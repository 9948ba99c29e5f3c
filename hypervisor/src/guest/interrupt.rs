//! Interprocessor interrupts and the APIC registers that a guest may not write by itself.
//!
//! A command reaches CPUs of the sender's own cell only; what is addressed to others is dropped and counted. Fixed,
//! lowest-priority and NMI commands are sent on; INIT and startup IPIs never reach hardware: they become events.

use core::sync::atomic::Ordering;

use gaol_abi::exit::{COUNTER_DROPPED_IPIS, COUNTER_X2APIC_ICR, COUNTER_XAPIC_WRITES};

use super::Verdict;
use super::vectoring::Exception;
use crate::cpu::{self, Events, PerCpu};
use crate::device::apic::{self, register};
use crate::device::interrupt_command::{Command, DeliveryMode, Processor, Target};
use crate::device::interrupt_route::{Action, Member, route};
use crate::launch::parameters;
use crate::processor::{fixup, msr};

/// Bits that a fixed interrupt to a physical destination has clear: delivery and destination mode, the ones that are
/// reserved or read-only, and the trigger mode. An interrupt that arrives as level-triggered makes its receiver tell all
/// IOAPICs of its end, which is for pins only.
const FIXED_PHYSICAL_MASK: u32 = 0xfff3_bf00;
const ASSERT: u32 = 1 << 14;

/// A fixed interrupt to one CPU of the same cell. `false`: not that simple.
#[inline(always)]
pub fn x2apic_fast(cpu: &PerCpu, value: u64) -> bool {
    let low = value as u32;
    // Delivery mode fixed, physical destination, no shorthand, no reserved bit.
    if low & (FIXED_PHYSICAL_MASK | 0x000c_0000) != 0 || !cpu.x2apic {
        return false;
    }
    let Some(target) = cpu::by_apic_id((value >> 32) as u32) else {
        return false;
    };
    if target.cell.load(Ordering::Relaxed) != cpu.cell || !target.x2apic.load(Ordering::Relaxed) {
        return false;
    }
    cpu.counters.count(COUNTER_X2APIC_ICR);
    apic::send(true, (value >> 32) as u32, low);
    true
}

/// Any other command in x2APIC mode.
pub fn x2apic_slow(cpu: &PerCpu, value: u64) -> Verdict {
    let command = Command::from_x2apic(value);
    if command.has_reserved_bits() {
        return Verdict::Inject(Exception::GENERAL_PROTECTION);
    }
    cpu.counters.count(COUNTER_X2APIC_ICR);
    dispatch(cpu, command);
    Verdict::Advance
}

/// Other registers of the x2APIC that a guest may write after a check. `None`: it may not.
pub fn x2apic_register(is_root: bool, number: u32, value: u64) -> Option<Verdict> {
    let offset = (number.wrapping_sub(msr::X2APIC) << 4) as u16;
    let allowed = match offset {
        register::SPURIOUS | register::ERROR_STATUS => true,
        register::LVT_LINT0
        | register::LVT_LINT1
        | register::LVT_PERFORMANCE
        | register::LVT_THERMAL
        | register::LVT_ERROR
        | register::LVT_CMCI => lvt_is_harmless(is_root, value as u32),
        _ => false,
    };
    if !allowed {
        return None;
    }
    // SAFETY: a register of this CPU's own APIC, with a delivery mode that was checked.
    Some(match unsafe { fixup::write_msr(number, value) } {
        Some(()) => Verdict::Advance,
        None => Verdict::Inject(Exception::GENERAL_PROTECTION),
    })
}

const LVT_LEVEL_TRIGGERED: u32 = 1 << 15;
const LVT_MASKED: u32 = 1 << 16;

/// An LVT entry can also raise SMIs and INITs; Linux programs ExtINT at LINT0. What is masked raises nothing. A cell has
/// edges only: the end of a level-triggered interrupt is broadcast to all IOAPICs with a vector of its choice.
#[must_use]
pub fn lvt_is_harmless(is_root: bool, value: u32) -> bool {
    let external = 7;
    let mode = (value >> 8) & 7;
    let is_edge = value & LVT_LEVEL_TRIGGERED == 0;
    value & LVT_MASKED != 0
        || ((is_root || is_edge)
            && (mode == u32::from(DeliveryMode::Fixed.0) || mode == u32::from(DeliveryMode::Nmi.0)))
        || (is_root && mode == external)
}

/// A write of the root cell to the xAPIC page.
#[inline(always)]
pub fn xapic_write(cpu: &PerCpu, offset: u16, value: u32) {
    cpu.counters.count(COUNTER_XAPIC_WRITES);
    match offset {
        register::COMMAND_LOW => xapic_command(cpu, value),
        register::LOGICAL_DESTINATION => {
            cpu.shared.logical_id.store(value >> 24, Ordering::Relaxed);
            apic::write_page(offset, value);
        }
        register::DESTINATION_FORMAT => {
            apic::write_page(offset, value);
            cpu.shared.set_destination_format(apic::read_page(offset));
        }
        register::LVT_LINT0
        | register::LVT_LINT1
        | register::LVT_PERFORMANCE
        | register::LVT_THERMAL
        | register::LVT_ERROR
        | register::LVT_CMCI
            if !lvt_is_harmless(cpu.is_root, value) => {}
        _ => apic::write_page(offset, value),
    }
}

/// The low half of the interrupt command in xAPIC mode: sends.
#[inline(always)]
fn xapic_command(cpu: &PerCpu, low: u32) {
    // A fixed interrupt to the sender itself.
    if low & (FIXED_PHYSICAL_MASK | 0x000c_0000) == 0x0004_0000 {
        apic::write_page(register::COMMAND_LOW, low);
        return;
    }
    let high = apic::read_page(register::COMMAND_HIGH);
    // The one frequent form: fixed or NMI, to one APIC id, of an own CPU.
    let one_cpu = low & (FIXED_PHYSICAL_MASK & !0x400 | 0x000c_0000) == 0;
    if one_cpu
        && let Some(target) = cpu::by_apic_id(high >> 24)
        && target.cell.load(Ordering::Relaxed) == cpu.cell
    {
        apic::write_page(register::COMMAND_LOW, low);
        return;
    }
    dispatch(cpu, Command::from_xapic(low, high));
}

/// A CPU as commands and messages of devices meet it.
pub fn member(number: u32, cpu: &cpu::CpuShared) -> Member {
    Member {
        processor: Processor {
            number,
            apic_id: cpu.apic_id.load(Ordering::Relaxed),
            logical_id: cpu.logical_id.load(Ordering::Relaxed) as u8,
            cluster_model: cpu.cluster_model.load(Ordering::Relaxed),
            x2apic: cpu.x2apic.load(Ordering::Relaxed),
        },
        cell: cpu.cell.load(Ordering::Relaxed),
        waits: cpu.waits_for_startup.load(Ordering::Relaxed),
    }
}

/// Unrolls a command to the CPUs of the sender's cell.
#[inline(never)]
fn dispatch(cpu: &PerCpu, command: Command) {
    if command.target() == Target::Own && command.bits.delivery_mode() == DeliveryMode::Fixed {
        apic::send_self(cpu.x2apic, command.bits.vector().into());
        return;
    }
    let mut members = (0..parameters::cpu_count())
        .filter_map(|number| Some(member(number, cpu::shared(number)?)));
    // A cell's CPUs address each other as in x2APIC mode, also where the processor has none.
    let members = core::iter::from_fn(|| {
        let mut member = members.next()?;
        member.processor.x2apic |= !cpu.is_root && member.cell == cpu.cell;
        Some(member)
    });
    let dropped = route(command, cpu.index, cpu.cell, members, |target, action| {
        deliver(cpu, &target.processor, action);
    });
    for _ in 0..dropped {
        cpu.counters.count(COUNTER_DROPPED_IPIS);
    }
}

fn deliver(cpu: &PerCpu, target: &Processor, action: Action) {
    match action {
        // The APIC notes an error of its own and sends nothing.
        Action::IllegalVector(vector) => apic::send_self(cpu.x2apic, vector.into()),
        Action::Interrupt(vector) if target.number == cpu.index => {
            apic::send_self(cpu.x2apic, vector.into());
        }
        Action::Interrupt(vector) => {
            apic::send(cpu.x2apic, target.apic_id, ASSERT | u32::from(vector));
        }
        // An NMI of the root's own, not a kick: the receiver finds no mark in its mailbox. It needs one to be virtualized
        // if it hits the hypervisor, which the receiver's NMI handler sees to.
        Action::Nmi if cpu.is_root => apic::kick(cpu, target.apic_id),
        // To a cell's CPU anybody's NMI may come; that this one is its own is said in the mailbox.
        Action::Nmi => post(cpu, target, Events::NMI),
        Action::Init => post(cpu, target, Events::INIT),
        Action::StartUp(vector) => {
            if let Some(shared) = cpu::shared(target.number) {
                shared
                    .startup_vector
                    .store(u32::from(vector), Ordering::Release);
            }
            post(cpu, target, Events::STARTUP);
        }
    }
}

fn post(cpu: &PerCpu, target: &Processor, events: Events) {
    if cpu::shared(target.number).is_some_and(|shared| shared.post(events)) {
        apic::kick(cpu, target.apic_id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SDM, "Local Vector Table": 0 fixed, 2 SMI, 4 NMI, 5 INIT, 7 ExtINT, the others reserved; bit 15 the trigger mode of
    /// the pins, bit 16 the mask.
    #[test]
    fn local_vectors_raise_fixed_and_nmi_only_and_external_in_the_root() {
        let all_bits = 0..1u32 << 19;
        for value in all_bits {
            let mode = value / 256 % 8;
            let is_masked = value / 0x1_0000 % 2 == 1;
            let is_level = value / 0x8000 % 2 == 1;
            for other in [0, 0xfff8_0000] {
                let is_one_of = |allowed: &[u32]| allowed.contains(&mode);
                assert_eq!(
                    lvt_is_harmless(true, value | other),
                    is_masked || is_one_of(&[0, 4, 7]),
                    "{value:#x}"
                );
                assert_eq!(
                    lvt_is_harmless(false, value | other),
                    is_masked || (is_one_of(&[0, 4]) && !is_level),
                    "{value:#x}"
                );
            }
        }
    }

    /// What the short way sends as it is goes to one CPU, as a fixed and edge-triggered interrupt.
    #[test]
    fn the_short_way_is_for_plain_commands() {
        for low in (0..1u64 << 32).step_by(0x100).map(|low| low as u32 | 0x40) {
            if low & (FIXED_PHYSICAL_MASK | 0x000c_0000) == 0 {
                assert_eq!(low & !ASSERT, 0x40, "{low:#x}");
            }
        }
    }
}
