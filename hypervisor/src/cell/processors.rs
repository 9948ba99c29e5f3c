//! What a management operation has other CPUs do, and waiting for it.
//!
//! Invariant: each wait has a deadline, and ends without the help of a guest: a CPU looks into its mailbox when an NMI
//! takes it out of whatever its guest does, and a guest cannot hold an NMI up.

use core::sync::atomic::Ordering;

use gaol_abi::outcome::Reason;

use super::lifecycle::ROOT;
use super::{Cell, restart};
use crate::cpu::{self, Events, PerCpu};
use crate::device::apic;
use crate::error::{Blame, Failure};
use crate::iommu::service;
use crate::launch::parameters;
use crate::processor::{pause, time_stamp};
use crate::system::Machinery;
use crate::virt::contract::GuestState;

/// Tells CPUs to do something and waits until each has.
pub fn request(
    cpu: &PerCpu,
    cpus: impl Iterator<Item = u32> + Clone,
    events: Events,
) -> Result<(), Failure> {
    for index in cpus.clone().filter(|index| *index != cpu.index) {
        if let Some(target) = cpu::shared(index)
            && target.request(events)
        {
            apic::kick(cpu, target.apic_id.load(Ordering::Relaxed));
        }
    }
    for index in cpus.filter(|index| *index != cpu.index) {
        wait_for(index, events)?;
    }
    Ok(())
}

fn wait_for(index: u32, events: Events) -> Result<(), Failure> {
    let start = time_stamp();
    while !cpu::shared(index).is_none_or(|target| target.has_served(events)) {
        if time_stamp().wrapping_sub(start) > parameters::deadline_cycles() {
            return Err(Failure::timed_out(
                Blame::Gaol,
                Reason::CpuDidNotStop,
                u64::from(index),
            ));
        }
        pause();
    }
    Ok(())
}

/// Makes all CPUs of the root drop what they know of its nested page table.
pub fn flush_root(cpu: &PerCpu) -> Result<(), Failure> {
    service::forget_root(cpu.windows)?;
    cpu.guest.flush_nested();
    let root = (0..parameters::cpu_count()).filter(|index| {
        cpu::shared(*index).is_some_and(|cpu| cpu.cell.load(Ordering::Acquire) == ROOT)
    });
    request(cpu, root, Events::FLUSH)
}

/// Moves the cell's CPUs to the cell `to` (their own or the root), where they wait.
pub fn move_cpus(
    cpu: &PerCpu,
    cell: &Cell,
    to: u32,
    low_page: &mut [u8; 4096],
    machinery: &mut Machinery,
) -> Result<(), Failure> {
    for index in cell.cpus.iter().filter(|index| !has_joined(*index, to)) {
        move_cpu(cpu, index, to, low_page, machinery)?;
    }
    Ok(())
}

/// A CPU that was told to join another cell and has not done so yet may still do it.
#[must_use]
pub fn has_joined(index: u32, to: u32) -> bool {
    cpu::shared(index).is_none_or(|target| {
        target.cell.load(Ordering::Acquire) == to && target.next_cell.load(Ordering::Acquire) == to
    })
}

/// Moves one CPU.
pub fn move_cpu(
    cpu: &PerCpu,
    index: u32,
    to: u32,
    low_page: &mut [u8; 4096],
    machinery: &mut Machinery,
) -> Result<(), Failure> {
    let Some(target) = cpu::shared(index) else {
        return Ok(());
    };
    target.next_cell.store(to, Ordering::Release);
    target.wants_restart.store(false, Ordering::Release);
    target.join_failed.store(false, Ordering::Release);
    if target.request(Events::JOIN) {
        apic::kick(cpu, target.apic_id.load(Ordering::Relaxed));
    }
    let start = time_stamp();
    while !target.has_served(Events::JOIN) {
        if target.wants_restart.swap(false, Ordering::AcqRel) {
            restart::restart(cpu, target, index, low_page, machinery)?;
        }
        if time_stamp().wrapping_sub(start) > parameters::deadline_cycles() {
            return Err(Failure::timed_out(
                Blame::Gaol,
                Reason::CpuDidNotStop,
                u64::from(index),
            ));
        }
        pause();
    }
    if target.join_failed.load(Ordering::Acquire) {
        return Err(Failure::hardware(Reason::ApicMode, u64::from(index)));
    }
    Ok(())
}
