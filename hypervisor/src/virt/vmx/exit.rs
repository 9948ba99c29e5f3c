//! What happens at a VM exit.
//!
//! [`exit_fast`] serves the frequent reasons and goes straight back; [`exit_slow`] everything else, and the events that
//! other CPUs have posted. Both are bounded, allocate nothing, format no text and take no lock.

use gaol_abi::exit::{COUNTER_DROPPED_NMIS, COUNTER_GUEST_NMIS, COUNTER_KICKS};
use gaol_abi::handover::LaunchStep;
use gaol_abi::outcome::Reason;
use gaol_abi::public::{CpuState, Pause};

use super::control::{self, Exception, inject};
use super::entry::Frame;
use super::fields::{
    BLOCKING_BY_MOV_SS, BLOCKING_BY_NMI, BLOCKING_BY_STI, EXIT_ENTRY_FAILURE, ExitReason, Field,
    INTERRUPTION_NMI, INTERRUPTION_TYPE, INTERRUPTION_VALID, UNBLOCKED_BY_IRET,
};
use super::instructions::{read, write};
use crate::cpu::recovery::Stage;
use crate::cpu::{Activity, PerCpu, events};
use crate::error::Failure;
use crate::guest::vectoring::{self, Combined, Event};
use crate::guest::{Verdict, control_register, cpuid, fault, memory, msr, port, root_failure};
use crate::processor::{self, efer, halt_for_ever};
use crate::trace::{console, public};
use crate::{hypercall, launch};

/// Result of [`exit_fast`]: back to the guest.
const RESUME: u32 = 0;
/// Result of [`exit_fast`]: the exit is still to be served.
pub const SLOW: u32 = 1;
/// Result of [`exit_fast`]: served, but there are events.
const EVENTS: u32 = 2;

/// Moves the guest behind the instruction that exited.
///
/// Where the pointer would wrap around outside 64-bit mode VM entry refuses it, and `entry_failure` mends it: that
/// costs the frequent exits nothing.
#[inline(always)]
pub fn advance() {
    write(
        Field::GuestRip,
        read(Field::GuestRip).wrapping_add(read(Field::ExitInstructionLength)),
    );
}

/// Moves the guest behind an instruction of so many bytes that was done for it.
pub fn step_over(length: u64) {
    let next = vectoring::behind(read(Field::GuestRip), length, is_64_bit());
    write(Field::GuestRip, next);
    end_instruction();
}

/// What ends with an instruction that was done for the guest: the blocking by the one before, the flag that resumes behind
/// a breakpoint, and a single step.
#[inline(never)]
fn end_instruction() {
    write(
        Field::GuestInterruptibility,
        read(Field::GuestInterruptibility) & !(BLOCKING_BY_STI | BLOCKING_BY_MOV_SS),
    );
    let flags = read(Field::GuestRflags);
    write(Field::GuestRflags, flags & !vectoring::RESUME_FLAG);
    let pending = vectoring::pending_behind_instruction(
        read(Field::GuestPendingDebugExceptions),
        flags,
        read(Field::GuestDebugctl),
    );
    write(Field::GuestPendingDebugExceptions, pending);
}

fn is_64_bit() -> bool {
    let long_code = 1 << 13;
    read(Field::GuestCsAccessRights) & long_code != 0 && read(Field::GuestEfer) & efer::LMA != 0
}

/// Ends a fast exit: behind the instruction, and a look into the mailbox.
#[inline(always)]
#[must_use]
pub fn done(cpu: &PerCpu) -> u32 {
    advance();
    finish(cpu)
}

/// Ends a fast exit whose instruction was skipped already.
#[inline(always)]
#[must_use]
pub fn finish(cpu: &PerCpu) -> u32 {
    if read(Field::GuestRflags) & vectoring::TRAP_FLAG != 0 {
        end_instruction();
    }
    if cpu.shared.has_events() {
        EVENTS
    } else {
        RESUME
    }
}

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
        ExitReason::Xsetbv => xsetbv(cpu, frame),
        _ => SLOW,
    }
}

#[inline(never)]
extern "sysv64" fn xsetbv(cpu: &mut PerCpu, frame: &mut Frame) -> u32 {
    let (low, high) = (frame.rax as u32, frame.rdx as u32);
    match processor::fixup::set_extended_control(frame.rcx as u32, low, high) {
        Some(()) => done(cpu),
        None => SLOW,
    }
}

/// Serves what [`exit_fast`] did not. Returns 1 when the next entry must be a VMLAUNCH.
pub extern "sysv64" fn exit_slow(cpu: &mut PerCpu, frame: &mut Frame, why: u32) -> u32 {
    if why == SLOW {
        cpu.stage.set(Stage::SERVING);
        let interrupted = interrupted_event();
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
    let launch = u32::from(cpu.needs_launch);
    cpu.needs_launch = false;
    cpu.stage.set(Stage::FAST);
    launch
}

fn serve(cpu: &mut PerCpu, frame: &mut Frame) -> Verdict {
    let reason = read(Field::ExitReason) as u32;
    if reason & EXIT_ENTRY_FAILURE != 0 {
        return entry_failure(cpu, reason);
    }
    match ExitReason(reason as u16) {
        ExitReason::ExceptionOrNmi => exception_or_nmi(cpu),
        ExitReason::PreemptionTimer => {
            // The NMI handler armed it; `account_nmis` sees to the NMI.
            write(Field::PinBasedControls, u64::from(cpu.pin_controls));
            Verdict::Resume
        }
        ExitReason::NmiWindow => {
            control::set_nmi_window(false);
            Verdict::Resume
        }
        ExitReason::Cpuid => cpuid::slow(cpu, frame),
        ExitReason::Vmcall => {
            let verdict = hypercall::slow(cpu, frame);
            cpu.windows.close();
            verdict
        }
        ExitReason::Port => port::slow(cpu, frame),
        ExitReason::Rdmsr => msr::read_slow(cpu, frame),
        ExitReason::Wrmsr => msr::write_slow(cpu, frame),
        ExitReason::EptViolation => {
            let verdict = memory::slow(cpu, frame);
            cpu.windows.close();
            verdict
        }
        ExitReason::ControlRegister => control_register::serve(cpu, frame),
        // Linux does WBINVD when it takes a CPU offline; done for real it would empty the caches of a real-time cell.
        ExitReason::Wbinvd | ExitReason::Invd => Verdict::Advance,
        // The value was refused by the processor.
        ExitReason::Xsetbv => Verdict::Inject(Exception::GENERAL_PROTECTION),
        // CPUID shows a cell no counters, so there is none of any number.
        ExitReason::Rdpmc => Verdict::Inject(Exception::GENERAL_PROTECTION),
        ExitReason::Getsec
        | ExitReason::Vmclear
        | ExitReason::Vmlaunch
        | ExitReason::Vmptrld
        | ExitReason::Vmptrst
        | ExitReason::Vmread
        | ExitReason::Vmresume
        | ExitReason::Vmwrite
        | ExitReason::Vmxoff
        | ExitReason::Vmxon
        | ExitReason::Invept
        | ExitReason::Invvpid
        | ExitReason::Vmfunc
        | ExitReason::Seamcall
        | ExitReason::Tdcall => Verdict::Inject(Exception::INVALID_OPCODE),
        // INIT and startup IPIs are virtual; a real one is not for the guest to see.
        ExitReason::Init | ExitReason::StartupIpi => Verdict::Resume,
        ExitReason::TripleFault if cpu.is_root => root_failure::triple_fault(cpu, frame),
        _ => Verdict::Violation { address: 0 },
    }
}

/// The event whose delivery the exit interrupted. Also puts back what an IRET has undone that will be done again.
fn interrupted_event() -> Option<Event> {
    let reason = read(Field::ExitReason) as u32;
    if reason & EXIT_ENTRY_FAILURE != 0 {
        return None;
    }
    let event = Event::read(
        read(Field::IdtVectoringInformation) as u32,
        read(Field::IdtVectoringErrorCode) as u32,
        read(Field::ExitInstructionLength) as u32,
    );
    // SDM, "NMI Unblocking Due to Event Delivery" and "Exit Qualification for EPT Violations": bit 12 of either.
    let unblocking = match ExitReason(reason as u16) {
        ExitReason::ExceptionOrNmi => read(Field::ExitInterruptionInformation),
        ExitReason::EptViolation => read(Field::ExitQualification),
        _ => 0,
    };
    if event.is_none() && unblocking & UNBLOCKED_BY_IRET != 0 {
        write(
            Field::GuestInterruptibility,
            read(Field::GuestInterruptibility) | BLOCKING_BY_NMI,
        );
    }
    event
}

fn carry_out(cpu: &mut PerCpu, frame: &mut Frame, verdict: Verdict, interrupted: Option<Event>) {
    // A guest that was parked meanwhile gets nothing any more.
    let interrupted = interrupted.filter(|_| cpu.activity == Activity::Running);
    let event = match verdict {
        Verdict::Advance => {
            step_over(read(Field::ExitInstructionLength));
            return interrupted.iter().for_each(inject);
        }
        Verdict::Resume => return interrupted.iter().for_each(inject),
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
        Combined::Deliver(event) => inject(&event),
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

fn exception_or_nmi(cpu: &mut PerCpu) -> Verdict {
    let information = read(Field::ExitInterruptionInformation) as u32;
    if information & INTERRUPTION_TYPE == INTERRUPTION_NMI {
        processor::unblock_nmis();
        cpu.nmi_count
            .fetch_add(1, core::sync::atomic::Ordering::Relaxed);
        return Verdict::Resume;
    }
    let event = Event::read(
        information | INTERRUPTION_VALID,
        read(Field::ExitInterruptionErrorCode) as u32,
        read(Field::ExitInstructionLength) as u32,
    );
    let Some(event) = event else {
        return Verdict::Resume;
    };
    // #DB or #AC: back to the guest, as if it had not exited. What the processor does besides was left to us (SDM,
    // "Debug Exceptions" under "Architectural State Before a VM Exit").
    if event.is_debug() {
        let causes = read(Field::ExitQualification);
        let status = vectoring::debug_status(processor::read_dr6(), causes);
        // SAFETY: DR6 is the guest's; it has no effect on the hypervisor.
        unsafe { processor::write_dr6(status) };
        write(Field::GuestDr7, read(Field::GuestDr7) & !(1 << 13));
        let tracing = vectoring::BRANCH_TRAP_FLAG | vectoring::LAST_BRANCH_RECORD;
        write(Field::GuestDebugctl, read(Field::GuestDebugctl) & !tracing);
    }
    Verdict::Deliver(event)
}

/// Tells kicks and the guest's own NMIs apart.
fn account_nmis(cpu: &mut PerCpu) {
    let count = cpu.nmi_count.swap(0, core::sync::atomic::Ordering::Relaxed);
    if count == 0 {
        return;
    }
    let own = if cpu.shared.nmi_was_kick() {
        cpu.counters.count(COUNTER_KICKS);
        count.wrapping_sub(1)
    } else {
        count
    };
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
    if cpu.activity == Activity::Running
        && cpu
            .machine_checks
            .swap(0, core::sync::atomic::Ordering::Relaxed)
            != 0
    {
        machine_check(cpu);
    }
    if !cpu.pending_nmi || cpu.activity != Activity::Running {
        return;
    }
    let blocked = read(Field::GuestInterruptibility)
        & (BLOCKING_BY_NMI | BLOCKING_BY_MOV_SS | BLOCKING_BY_STI)
        != 0;
    let occupied = read(Field::EntryInterruptionInformation) as u32 & INTERRUPTION_VALID != 0;
    if blocked || occupied {
        control::set_nmi_window(true);
        return;
    }
    inject(&Event::NMI);
    cpu.pending_nmi = false;
    cpu.counters.count(COUNTER_GUEST_NMIS);
}

/// Delivers a machine check that hit the hypervisor; behind another event right after that one.
fn machine_check(cpu: &PerCpu) {
    if read(Field::EntryInterruptionInformation) as u32 & INTERRUPTION_VALID == 0 {
        inject(&Exception::MACHINE_CHECK.into());
        return;
    }
    cpu.machine_checks
        .fetch_add(1, core::sync::atomic::Ordering::Relaxed);
    // As the NMI handler does it: the guest exits before its first instruction.
    write(Field::PinBasedControls, u64::from(cpu.pin_with_timer));
    write(Field::PreemptionTimer, 0);
}

/// An instruction that was done for the guest may have ended at 4 GiB, where it wraps around outside 64-bit mode. `true`:
/// so it was, and is mended.
fn wrap_instruction_pointer() -> bool {
    let rip = read(Field::GuestRip);
    let wrapped = vectoring::behind(rip, 0, is_64_bit());
    write(Field::GuestRip, wrapped);
    wrapped != rip
}

fn entry_failure(cpu: &mut PerCpu, reason: u32) -> Verdict {
    if reason as u16 == ExitReason::MachineCheckOnEntry.0 && cpu.committed {
        return Verdict::Inject(Exception::MACHINE_CHECK);
    }
    if reason as u16 == ExitReason::InvalidGuestState.0
        && cpu.committed
        && wrap_instruction_pointer()
    {
        return Verdict::Resume;
    }
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

/// VMLAUNCH or VMRESUME failed before it looked at the guest: a fault of the hypervisor.
pub extern "sysv64" fn entry_failed(cpu: &mut PerCpu) -> ! {
    let error = read(Field::InstructionError);
    if !cpu.committed {
        launch::roll_back(
            cpu,
            LaunchStep::FirstExit,
            &Failure::gaol(Reason::EntryFailed, error),
        );
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
