//! What happens at an exit, behind the vendor's first look.
//!
//! The frequent exits are served at the first look and go straight back ([`done`]); [`exit_slow`] serves everything else,
//! and the events that other CPUs have posted. Both are bounded, allocate nothing, format no text and take no lock.

use core::sync::atomic::Ordering;

use gaol_abi::exit::{COUNTER_DROPPED_NMIS, COUNTER_GUEST_NMIS, COUNTER_KICKS};
use gaol_abi::handover::LaunchStep;
use gaol_abi::outcome::Reason;
use gaol_abi::public::{CpuState, Pause};

use super::contract::{Exit, GuestState, Trapped, Virtualization};
use super::entry::Frame;
use crate::cpu::mailbox::Nmis;
use crate::cpu::recovery::Stage;
use crate::cpu::{Activity, PerCpu, events};
use crate::error::Failure;
use crate::guest::vectoring::{self, Combined, Event, Exception};
use crate::guest::{Verdict, control_register, cpuid, fault, memory, msr, port, root_failure};
use crate::processor::{self, halt_for_ever};
use crate::trace::{console, public};
use crate::{hypercall, launch, virt};

/// Result of a first look: back to the guest.
const RESUME: u32 = 0;
/// Result of a first look: the exit is still to be served.
pub const SLOW: u32 = 1;
/// Result of a first look: served, but there are events, or an NMI that may be delivered now.
pub const EVENTS: u32 = 2;

/// Ends an exit at the first look: behind the instruction, and a look into the mailbox.
#[inline(always)]
#[must_use]
pub fn done(cpu: &PerCpu, past: Trapped) -> u32 {
    cpu.guest.advance(past);
    finish(cpu)
}

/// Ends an exit at the first look whose instruction was skipped already.
#[inline(always)]
#[must_use]
pub fn finish(cpu: &PerCpu) -> u32 {
    if cpu.guest.rflags() & vectoring::TRAP_FLAG != 0 {
        cpu.guest.end_instruction();
        // The flag may be the hypervisor's, and an NMI wait for this instruction's end.
        return EVENTS;
    }
    if cpu.shared.has_events() {
        EVENTS
    } else {
        RESUME
    }
}

/// XSETBV, with the processor as the judge.
#[inline(never)]
pub extern "sysv64" fn xsetbv(cpu: &mut PerCpu, frame: &mut Frame) -> u32 {
    let (low, high) = (frame.rax as u32, frame.rdx as u32);
    match processor::fixup::set_extended_control(frame.rcx as u32, low, high) {
        Some(()) => done(cpu, Trapped::Xsetbv),
        None => SLOW,
    }
}

/// Moves the guest behind an instruction of so many bytes that was done for it.
pub fn step_over(guest: impl GuestState, length: u64) {
    let next = vectoring::behind(guest.rip(), length, guest.is_64_bit());
    guest.set_rip(next);
    guest.end_instruction();
}

/// Moves the guest behind the instruction that has exited. `false`: its length is not known, since its memory can't be
/// read any more; the guest does it again then.
pub fn step_over_exit(cpu: &PerCpu) -> bool {
    let length = cpu.guest.instruction_length();
    let length = length.or_else(|| memory::instruction_length(cpu));
    if let Some(length) = length {
        step_over(cpu.guest, length);
    }
    length.is_some()
}

/// Serves what the first look did not. Returns how the guest is entered: [`Virtualization::next_entry`].
pub extern "sysv64" fn exit_slow(cpu: &mut PerCpu, frame: &mut Frame, why: u32) -> u32 {
    if why == SLOW {
        cpu.stage.set(Stage::SERVING);
        let interrupted = cpu.guest.interrupted_event();
        let verdict = serve(cpu, frame);
        carry_out(cpu, frame, verdict, interrupted);
    }
    cpu.stage.set(Stage::EVENTS);
    go_on(cpu, frame)
}

/// From a guest that was served to its entry: NMIs, and what other CPUs have posted. Returns as [`exit_slow`] does.
pub fn go_on(cpu: &mut PerCpu, frame: &mut Frame) -> u32 {
    let mut since = None;
    loop {
        account_nmis(cpu);
        let events = cpu.shared.take();
        if events.is_empty() {
            break;
        }
        if cpu.is_root {
            since.get_or_insert_with(processor::time_stamp);
        }
        events::serve(cpu, frame, events);
    }
    if let Some(since) = since.filter(|_| cpu.is_root) {
        public::note_pause(Pause::Kick, processor::time_stamp().wrapping_sub(since));
    }
    deliver_nmi(cpu);
    cpu.stage.set(Stage::FAST);
    cpu.virtualization.next_entry()
}

fn serve(cpu: &mut PerCpu, frame: &mut Frame) -> Verdict {
    match cpu.guest.exit() {
        Exit::Nmi => {
            cpu.virtualization.take_nmi(&cpu.nmi_count);
            Verdict::Resume
        }
        // #DB or #AC: back to the guest, as if it had not exited.
        Exit::Exception => cpu
            .guest
            .take_exception()
            .map_or(Verdict::Resume, Verdict::Deliver),
        Exit::Asked => {
            // `account_nmis` sees to the NMI.
            cpu.virtualization.exited_soon();
            Verdict::Resume
        }
        Exit::NmiWindow => {
            cpu.guest.set_nmi_window(false);
            Verdict::Resume
        }
        Exit::Cpuid => cpuid::slow(cpu, frame),
        Exit::Hypercall => {
            let verdict = hypercall::slow(cpu, frame);
            cpu.windows.close();
            verdict
        }
        Exit::Port => port::slow(cpu, frame),
        Exit::ReadMsr => msr::read_slow(cpu, frame),
        Exit::WriteMsr => msr::write_slow(cpu, frame),
        Exit::NestedFault => {
            let verdict = memory::slow(cpu, frame);
            cpu.windows.close();
            verdict
        }
        Exit::ControlRegister => {
            let verdict = control_register::serve(cpu, frame);
            cpu.windows.close();
            verdict
        }
        // Linux does WBINVD when it takes a CPU offline; done for real it would empty the caches of a real-time cell.
        Exit::CacheFlush => Verdict::Advance,
        // XSETBV: the value was refused by the processor. RDPMC: CPUID shows a cell no counters, so there is none of any
        // number.
        Exit::Xsetbv | Exit::ReadCounter => Verdict::Inject(Exception::GENERAL_PROTECTION),
        Exit::NoSuchInstruction => Verdict::Inject(Exception::INVALID_OPCODE),
        // INIT and startup IPIs are virtual; a real one is not for the guest to see.
        Exit::Init => Verdict::Resume,
        Exit::TripleFault if cpu.is_root => root_failure::triple_fault(cpu, frame),
        Exit::MachineCheck if cpu.committed => Verdict::Inject(Exception::MACHINE_CHECK),
        Exit::MachineCheck => not_entered(cpu, cpu.guest.exit_number()),
        Exit::NotEntered(_) if cpu.committed && wrap_instruction_pointer(cpu.guest) => {
            Verdict::Resume
        }
        Exit::NotEntered(reason) => not_entered(cpu, reason),
        Exit::TripleFault | Exit::Unknown => Verdict::Violation { address: 0 },
    }
}

fn carry_out(cpu: &mut PerCpu, frame: &mut Frame, verdict: Verdict, interrupted: Option<Event>) {
    let guest = cpu.guest;
    // A guest that was parked meanwhile gets nothing any more.
    let interrupted = interrupted.filter(|_| cpu.activity == Activity::Running);
    let redeliver = || interrupted.iter().for_each(|event| guest.inject(event));
    let event = match verdict {
        Verdict::Advance => {
            let _ = step_over_exit(cpu);
            return redeliver();
        }
        Verdict::Resume => return redeliver(),
        Verdict::Deliver(event) => event,
        Verdict::Inject(exception) => exception.into(),
        Verdict::InjectRecorded { exception, address } => {
            fault::record(cpu, frame, address);
            exception.into()
        }
        Verdict::Violation { address } if cpu.is_root => {
            // The root is never stopped: what can't be done has no effect but this record and #GP.
            fault::record(cpu, frame, address);
            Exception::GENERAL_PROTECTION.into()
        }
        Verdict::Violation { address } => {
            fault::record(cpu, frame, address);
            return events::fail(cpu, frame);
        }
    };
    match vectoring::combine(interrupted, event) {
        Combined::Deliver(event) => guest.inject(&event),
        Combined::TripleFault if cpu.is_root => {
            // The guest is parked then, or the machine is reset.
            let _ = root_failure::triple_fault(cpu, frame);
        }
        Combined::TripleFault => {
            fault::record(cpu, frame, 0);
            events::fail(cpu, frame);
        }
    }
}

/// Tells kicks and the guest's own NMIs apart.
fn account_nmis(cpu: &mut PerCpu) {
    let count = cpu.nmi_count.swap(0, Ordering::Relaxed);
    if count == 0 {
        return;
    }
    let Nmis { is_kick, own } = cpu.shared.account(count);
    if is_kick {
        cpu.counters.count(COUNTER_KICKS);
    }
    if own == 0 || cpu.activity != Activity::Running {
        // A CPU that waits to be started takes none on bare hardware either.
        return;
    }
    if cpu.is_root {
        cpu.pending_nmi = true;
    } else {
        // NMIs of the platform are Linux', and a cell would not know what to do with one; those that its own CPUs send
        // come as events.
        cpu.counters.count(COUNTER_DROPPED_NMIS);
    }
}

/// Delivers a pending NMI now, or as soon as the guest can take it.
fn deliver_nmi(cpu: &mut PerCpu) {
    if cpu.activity == Activity::Running && cpu.machine_checks.swap(0, Ordering::Relaxed) != 0 {
        machine_check(cpu);
    }
    if !cpu.pending_nmi || cpu.activity != Activity::Running {
        return;
    }
    if cpu.guest.blocks_nmis() || cpu.guest.is_occupied() {
        let is_too_early = !virt::Current::WINDOW_BEHIND_EVENTS && cpu.guest.is_occupied();
        cpu.guest.set_nmi_window(!is_too_early);
        if is_too_early {
            cpu.virtualization.exit_soon(cpu.shared);
        }
        return;
    }
    cpu.guest.inject(&Event::NMI);
    cpu.pending_nmi = false;
    cpu.counters.count(COUNTER_GUEST_NMIS);
}

/// Delivers a machine check that hit the hypervisor; behind another event right after that one.
fn machine_check(cpu: &mut PerCpu) {
    if !cpu.guest.is_occupied() {
        cpu.guest.inject(&Exception::MACHINE_CHECK.into());
        return;
    }
    cpu.machine_checks.fetch_add(1, Ordering::Relaxed);
    cpu.virtualization.exit_soon(cpu.shared);
}

/// An instruction that was done for the guest may have ended at 4 GiB, where it wraps around outside 64-bit mode. `true`:
/// so it was, and is mended.
fn wrap_instruction_pointer(guest: impl GuestState) -> bool {
    let rip = guest.rip();
    let wrapped = vectoring::behind(rip, 0, guest.is_64_bit());
    guest.set_rip(wrapped);
    wrapped != rip
}

/// The processor does not enter the guest as it is.
fn not_entered(cpu: &mut PerCpu, reason: u32) -> Verdict {
    if !cpu.committed {
        let failure = Failure::gaol(Reason::EntryFailed, u64::from(reason));
        launch::roll_back(cpu, LaunchStep::FirstExit, &failure);
    }
    if cpu.is_root {
        console::line()
            .text("Gaol: CPU ")
            .number(u64::from(cpu.index))
            .text(": Linux reached a state that the processor does not enter (")
            .hexadecimal(u64::from(reason))
            .text("): it stops")
            .end();
        public::set_state(cpu.index, CpuState::Failed, cpu.cell);
        halt_for_ever();
    }
    Verdict::Violation { address: 0 }
}

/// Entry failed before the processor looked at the guest: a fault of the hypervisor. `error` is the vendor's number of it.
pub fn entry_failed(cpu: &mut PerCpu, error: u64) -> ! {
    if !cpu.committed {
        let failure = Failure::gaol(Reason::EntryFailed, error);
        launch::roll_back(cpu, LaunchStep::FirstExit, &failure);
    }
    console::line()
        .text("Gaol: CPU ")
        .number(u64::from(cpu.index))
        .text(": VM entry failed with VM-instruction error ")
        .number(error)
        .text(": it stops")
        .end();
    public::set_state(cpu.index, CpuState::Failed, cpu.cell);
    halt_for_ever()
}
