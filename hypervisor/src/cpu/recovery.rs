//! What becomes of a CPU on which the hypervisor itself has failed: by an exception, or by a panic.
//!
//! What happened is kept in the CPU's public page, the code that failed is abandoned with all that is on its stack, and the
//! CPU goes on from a stack that is empty but for its guest's registers: a cell's CPU is parked as after a violation, so
//! that the root can destroy the cell and have the CPU back; a CPU of the root goes on with Linux where that is possible.
//! The others go on in any case.
//!
//! Invariant: it is tried once. A second failure before the next VM entry, and one outside of operation, stop the CPU
//! for good.
//!
//! What the abandoned code leaves behind: the lock of the management, which is told so ([`crate::system::abandon`]); those
//! of PCI functions, which are opened; and requests that nobody answers, which end at their deadline. The ticket lock of ports 0xcf8 and 0xcfc is held for IN and
//! OUT only, which raise no exception at privilege level 0.

use core::ops::Range;
use core::sync::atomic::{AtomicU32, Ordering};

use gaol_abi::handover::LaunchStep;
use gaol_abi::image::LINK_BASE;
use gaol_abi::outcome::Reason;
use gaol_abi::public::{
    CpuState, FAULT_FILE, FAULT_TRACE, HypervisorFault, HypervisorFaultKind as Kind,
};

use super::{Activity, PRIVATE_BASE, PerCpu, TABLES_AT, area, events, private};
use crate::device::pci::assigned;
use crate::error::Failure;
use crate::guest::vectoring::Exception;
use crate::hypercall;
use crate::launch::{self, parameters};
use crate::processor::tables::ExceptionFrame;
use crate::processor::{self, halt_for_ever, time_stamp};
use crate::system;
use crate::trace::{console, public};
use crate::virt::contract::{Exit, GuestState, Virtualization};
use crate::virt::entry::{Frame, abandon};
use crate::virt::{self, exit};

/// What the exit path is about, for the one who has to go on after it.
#[derive(Debug, Default)]
pub struct Stage(AtomicU32);

impl Stage {
    /// The first look at an exit: five of the guest's registers are not saved.
    pub const FAST: u32 = 0;
    /// The guest is being served what it has asked for.
    pub const SERVING: u32 = 1;
    /// The guest was served; what others have asked for is done.
    pub const EVENTS: u32 = 2;

    /// The first look.
    #[must_use]
    pub const fn new() -> Self {
        Self(AtomicU32::new(Self::FAST))
    }

    /// Tells where the exit path is. An atomic store, so that it stays where it stands.
    #[inline(always)]
    pub fn set(&self, stage: u32) {
        self.0.store(stage, Ordering::Relaxed);
    }

    fn get(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Words that lead into the text: return addresses, and now and then what looks like one. The nearest first.
fn return_addresses(
    words: impl Iterator<Item = u64>,
    text: &Range<u64>,
) -> ([u64; FAULT_TRACE], u32) {
    let mut trace = [0; FAULT_TRACE];
    let mut count = 0u32;
    for (slot, address) in trace
        .iter_mut()
        .zip(words.filter(|word| text.contains(word)))
    {
        *slot = address;
        count = count.wrapping_add(1);
    }
    (trace, count)
}

/// What is on this CPU's stack from `stack` on.
fn words_from(stack: u64) -> impl Iterator<Item = u64> {
    let low = const { private::STACK_END - (area::STACK_PAGES << 12) };
    let from = stack.clamp(low, private::STACK_END) & !7;
    (from..private::STACK_END).step_by(8).map(|at| {
        // SAFETY: an aligned word of this CPU's stack, which the private table maps whole; any bytes are a word.
        unsafe { (at as *const u64).read_volatile() }
    })
}

fn trace(stack: u64) -> ([u64; FAULT_TRACE], u32) {
    let text = LINK_BASE..LINK_BASE.wrapping_add(parameters::image().text_size);
    return_addresses(words_from(stack), &text)
}

/// The end of a file's name, as far as there is room.
fn file_name(file: &str) -> [u8; FAULT_FILE] {
    let mut name = [0; FAULT_FILE];
    let skipped = file.len().saturating_sub(FAULT_FILE);
    for (slot, byte) in name.iter_mut().zip(file.bytes().skip(skipped)) {
        *slot = byte;
    }
    name
}

/// An exception in the hypervisor that has no fix-up; called on whatever stack the processor had for it.
pub extern "sysv64" fn exception(frame: &ExceptionFrame, cpu: &mut PerCpu) -> ! {
    let (trace, trace_length) = trace(frame.rsp);
    fail(
        cpu,
        &HypervisorFault {
            count: 0,
            kind: Kind::Exception,
            cell: 0,
            vector: frame.vector as u32,
            error_code: frame.error_code,
            rip: frame.rip,
            address: processor::read_cr2(),
            stack: frame.rsp,
            time: time_stamp(),
            line: 0,
            trace_length,
            trace,
            file: [0; FAULT_FILE],
        },
    )
}

/// A panic. The image holds none that can be reached; if there is one all the same, it is told like an exception.
pub fn panicked(file: &str, line: u32) -> ! {
    let here = 0u8;
    let stack = &raw const here as u64;
    if !(PRIVATE_BASE..private::STACK_END).contains(&stack) {
        // On the boot page table: there is no private data yet.
        console::line()
            .text("Gaol: panic at ")
            .text(file)
            .text(":")
            .number(u64::from(line))
            .text(" in the launch: this CPU stops")
            .end();
        halt_for_ever();
    }
    let (trace, trace_length) = trace(stack);
    // SAFETY: the stack is this CPU's own, so its private table is loaded, which maps its private data; whoever holds a
    // reference to that is abandoned.
    let cpu = unsafe { &mut *(PRIVATE_BASE as *mut PerCpu) };
    fail(
        cpu,
        &HypervisorFault {
            count: 0,
            kind: Kind::Panic,
            cell: 0,
            vector: 0,
            error_code: 0,
            rip: 0,
            address: 0,
            stack,
            time: time_stamp(),
            line,
            trace_length,
            trace,
            file: file_name(file),
        },
    )
}

/// Keeps the record and abandons what runs, or stops the CPU when that was tried before.
fn fail(cpu: &mut PerCpu, fault: &HypervisorFault) -> ! {
    let fault = HypervisorFault {
        cell: cpu.cell,
        ..*fault
    };
    public::record_hypervisor_fault(cpu.index, &fault);
    let again = core::mem::replace(&mut cpu.recovering, true);
    report(cpu.index, &fault);
    if again || (cpu.committed && !cpu.virtualization.is_in_operation()) {
        stop(cpu);
    }
    abandon()
}

fn report(cpu: u32, fault: &HypervisorFault) {
    let line = console::line()
        .text("Gaol: CPU ")
        .number(u64::from(cpu))
        .text(": fault of the hypervisor: ");
    if fault.kind == Kind::Panic {
        line.text("panic in line ")
            .number(u64::from(fault.line))
            .end();
    } else {
        line.text("exception ")
            .number(u64::from(fault.vector))
            .text(" (error code ")
            .hexadecimal(fault.error_code)
            .text(") at ")
            .hexadecimal(fault.rip)
            .text(", CR2 ")
            .hexadecimal(fault.address)
            .end();
    }
}

/// Stops this CPU for good.
fn stop(cpu: &PerCpu) -> ! {
    public::set_state(cpu.index, CpuState::Failed, cpu.cell);
    console::line()
        .text("Gaol: CPU ")
        .number(u64::from(cpu.index))
        .text(" stops")
        .end();
    halt_for_ever()
}

/// What goes on with the CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// The cell's CPU is parked, as after a violation.
    Park,
    /// The root's CPU waits for a startup IPI, as before.
    WaitForStartup,
    /// Linux goes on where it is.
    GoOn,
    /// Linux is refused what it asked for.
    Refuse,
    /// Nothing does: registers of Linux are lost.
    Stop,
}

const fn way(is_root: bool, activity: Activity, stage: u32) -> Way {
    match activity {
        _ if !is_root => Way::Park,
        Activity::Waiting => Way::WaitForStartup,
        // It was on its way out of the root, and its state in Linux is gone.
        Activity::Stopped | Activity::Failed => Way::Park,
        Activity::Running => match stage {
            Stage::SERVING => Way::Refuse,
            Stage::EVENTS => Way::GoOn,
            _ => Way::Stop,
        },
    }
}

/// The CPU behind [`abandon`]: on its stack, with the guest's registers where an exit has them. Goes on in the guest.
pub extern "sysv64" fn resume(cpu: &mut PerCpu, frame: &mut Frame) -> ! {
    // SAFETY: the tables were filled at launch, and the private table is loaded.
    unsafe { cpu.tables.load(TABLES_AT) };
    processor::unblock_nmis();
    if !cpu.committed {
        let failure = Failure::gaol(Reason::HypervisorFault, u64::from(cpu.index));
        launch::roll_back(cpu, LaunchStep::FirstExit, &failure);
    }
    system::abandon(cpu.private_cr3);
    for lock in assigned::left_behind(cpu.private_cr3) {
        // SAFETY: this CPU has taken the lock, and the code that did so never goes on: its guard is gone without a drop.
        unsafe { lock.force_unlock() };
    }
    cpu.is_root = cpu.cell == crate::cell::lifecycle::ROOT;
    match way(cpu.is_root, cpu.activity, cpu.stage.get()) {
        Way::Park => events::fail(cpu, frame),
        Way::WaitForStartup => {
            events::park(cpu, frame, Activity::Waiting);
            cpu.shared.waits_for_startup.store(true, Ordering::Release);
        }
        Way::GoOn => {}
        Way::Refuse => refuse(cpu, frame),
        Way::Stop => stop(cpu),
    }
    cpu.stage.set(Stage::EVENTS);
    let entry = exit::go_on(cpu, frame);
    cpu.recovering = false;
    // SAFETY: the frame is where an exit has it, at the end of the stack; the CPU is in operation, or `fail` had stopped it.
    unsafe { virt::Current::enter(frame, entry) }
}

/// Linux gets an error from a hypercall, and #GP from an instruction that could not be carried out.
fn refuse(cpu: &PerCpu, frame: &mut Frame) {
    match cpu.guest.exit() {
        Exit::Hypercall => hypercall::refuse_for_fault(cpu, frame),
        // No instruction of the guest has led here.
        Exit::Nmi | Exit::Exception | Exit::Asked | Exit::NmiWindow | Exit::Init => {}
        _ => cpu.guest.inject(&Exception::GENERAL_PROTECTION.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn return_addresses_are_found_and_bounded() {
        let text = 0xffff_ffff_8000_0000..0xffff_ffff_8001_0000;
        let words = [0, text.start, 7, text.end, text.end - 1, u64::MAX];
        let (found, count) = return_addresses(words.into_iter(), &text);
        assert_eq!(
            (&found[..3], count),
            (&[text.start, text.end - 1, 0][..], 2)
        );
        let (found, count) = return_addresses((0..1000).map(|n| text.start + n), &text);
        assert_eq!((found.len(), count as usize), (FAULT_TRACE, FAULT_TRACE));
        assert_eq!(found[FAULT_TRACE - 1], text.start + FAULT_TRACE as u64 - 1);
    }

    #[test]
    fn the_end_of_a_files_name_is_kept() {
        let name = |file: &str| {
            let bytes = file_name(file);
            String::from_utf8(
                bytes
                    .iter()
                    .copied()
                    .take_while(|byte| *byte != 0)
                    .collect(),
            )
            .unwrap()
        };
        assert_eq!(name("src/a.rs"), "src/a.rs");
        let long = format!("{}/src/cell/create.rs", "x".repeat(100));
        assert_eq!(name(&long), long[long.len() - FAULT_FILE..]);
        assert_eq!(name(""), "");
    }

    #[test]
    fn a_cell_never_goes_on_and_the_root_does_where_its_registers_are_known() {
        let stages = [Stage::FAST, Stage::SERVING, Stage::EVENTS];
        let activities = [
            Activity::Running,
            Activity::Waiting,
            Activity::Stopped,
            Activity::Failed,
        ];
        for stage in stages {
            for activity in activities {
                assert_eq!(way(false, activity, stage), Way::Park);
            }
            assert_eq!(way(true, Activity::Waiting, stage), Way::WaitForStartup);
            assert_eq!(way(true, Activity::Stopped, stage), Way::Park);
        }
        let running = stages.map(|stage| way(true, Activity::Running, stage));
        assert_eq!(running, [Way::Stop, Way::Refuse, Way::GoOn]);
    }
}
