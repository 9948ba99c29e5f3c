//! Linux fails: it panics, runs into a triple fault, or tries to reset the machine or turn it off.
//!
//! An orderly end disables the hypervisor first, so whatever comes here is none. With `on-root-failure = "continue"` and
//! a cell that runs, the CPU that tries is parked, and the cells never notice; otherwise the machine does what it does
//! without a hypervisor. A root that only hangs is not noticed.

use core::sync::atomic::{AtomicBool, Ordering};

use gaol_abi::config::{ROOT_FAILURE_CONTINUE, SystemHeader};
use gaol_abi::handover::{LaunchParameters, RESET_REGISTER_MEMORY, RESET_REGISTER_PORT};
use gaol_abi::public::{CpuState, RootFailure, RootFailureKind};

use super::reset::ResetRegisters;
use super::{Verdict, fault};
use crate::cpu::{self, Activity, PerCpu, events};
use crate::launch::parameters;
use crate::processor::{self, halt_for_ever, time_stamp};
use crate::set_once::SetOnce;
use crate::system;
use crate::trace::{console, public};
use crate::virt::contract::GuestState;
use crate::virt::entry::Frame;

const ROOT: u32 = 0;

/// What the machine has, and what it shall do.
#[derive(Debug)]
struct Guard {
    registers: ResetRegisters,
    continues: bool,
}

static GUARD: SetOnce<Guard> = SetOnce::new();
/// The next byte for the keyboard controller goes to its output port.
static OUTPUT_PORT: AtomicBool = AtomicBool::new(false);

fn port(number: u64) -> Option<u16> {
    u16::try_from(number).ok().filter(|port| *port != 0)
}

/// Takes over what the module and the configuration say, once at launch.
pub fn prepare(parameters: &LaunchParameters, header: &SystemHeader) {
    let reset = port(parameters.reset_register)
        .filter(|_| parameters.reset_register_kind == RESET_REGISTER_PORT)
        .map(|port| (port, parameters.reset_value as u8));
    let continues = header.root_failure == ROOT_FAILURE_CONTINUE;
    if continues && parameters.reset_register_kind == RESET_REGISTER_MEMORY {
        console::line()
            .text("Gaol: the reset register is in memory, and not guarded, at ")
            .hexadecimal(parameters.reset_register)
            .end();
    }
    let power_control = parameters.power_control_ports;
    GUARD.set(Guard {
        registers: ResetRegisters {
            reset,
            power_control: power_control.map(|number| port(number.into())),
        },
        continues,
    });
}

/// Whether the root's writes to a port are looked at, so that no cell may have it.
#[must_use]
pub fn guards(port: u16) -> bool {
    GUARD.get().is_some_and(|guard| guard.registers.has(port))
}

/// The ports to which the root's writes are looked at.
pub fn guarded_ports() -> impl Iterator<Item = u16> {
    GUARD
        .get()
        .into_iter()
        .flat_map(|guard| guard.registers.ports())
}

/// Whether all of an access is to registers that are looked at and are the root's.
#[must_use]
pub fn covers(port: u16, size: u32) -> bool {
    GUARD
        .get()
        .is_some_and(|guard| guard.registers.cover(port, size))
        && system::root_share().is_none_or(|share| share.has_port(port))
}

/// The root writes to a port. `Some`: this CPU does not go on.
#[must_use]
pub fn write_port(
    cpu: &mut PerCpu,
    frame: &mut Frame,
    port: u16,
    size: u32,
    value: u32,
) -> Option<Verdict> {
    let guard = GUARD.get()?;
    let mut output_port = OUTPUT_PORT.load(Ordering::Relaxed);
    let effect = guard.registers.effect(port, size, value, &mut output_port);
    OUTPUT_PORT.store(output_port, Ordering::Relaxed);
    stop(cpu, frame, effect?, port.into())
}

/// A CPU of the root has a triple fault.
pub fn triple_fault(cpu: &mut PerCpu, frame: &mut Frame) -> Verdict {
    match stop(cpu, frame, RootFailureKind::TripleFault, 0) {
        Some(verdict) => verdict,
        None => reset_machine(),
    }
}

/// Linux panics, and says so before it tries anything else.
pub fn record_panic(cpu: &PerCpu) {
    record(cpu, RootFailureKind::Panic, 0, false);
    console::line()
        .text("Gaol: CPU ")
        .number(u64::from(cpu.index))
        .text(": Linux panics")
        .end();
}

fn record(cpu: &PerCpu, kind: RootFailureKind, address: u64, parked: bool) {
    public::record_root_failure(&RootFailure {
        count: 0,
        kind,
        cpu: cpu.index,
        parked: parked.into(),
        address,
        time: time_stamp(),
    });
}

/// Whether a CPU of a cell runs.
fn a_cell_runs() -> bool {
    (0..parameters::cpu_count()).any(|index| {
        cpu::shared(index).is_some_and(|cpu| cpu.cell.load(Ordering::Acquire) != ROOT)
            && public::state(index) == CpuState::Running
    })
}

/// Parks the CPU, when the machine shall go on without it.
fn stop(
    cpu: &mut PerCpu,
    frame: &mut Frame,
    kind: RootFailureKind,
    address: u64,
) -> Option<Verdict> {
    let parks = GUARD.get().is_some_and(|guard| guard.continues) && a_cell_runs();
    record(cpu, kind, address, parks);
    // Nothing of Linux runs on this CPU any more: there is time for a line.
    let line = console::line()
        .text("Gaol: CPU ")
        .number(u64::from(cpu.index))
        .text(match kind {
            RootFailureKind::TripleFault => ": Linux has a triple fault",
            RootFailureKind::Sleep => ": Linux turns the machine off",
            _ => ": Linux resets the machine",
        });
    if !parks {
        // All that is left of it behind a reset.
        line.text(", which it may, at RIP ")
            .hexadecimal(cpu.guest.rip())
            .text(", CR0 ")
            .hexadecimal(cpu.guest.cr0())
            .text(", CR3 ")
            .hexadecimal(cpu.guest.cr3())
            .end();
        return None;
    }
    line.text(": this CPU is parked, the cells run on").end();
    fault::record(cpu, frame, address);
    events::park(cpu, frame, Activity::Failed);
    Some(Verdict::Resume)
}

/// A triple fault of Linux does what it does on bare hardware.
fn reset_machine() -> ! {
    let (reset_control, full_reset, keyboard_controller, pulse_reset) = (0xcf9, 0x06, 0x64, 0xfe);
    // SAFETY: the machine shall reset.
    unsafe {
        processor::port_write(reset_control, 1, full_reset);
        processor::port_write(keyboard_controller, 1, pulse_reset);
    }
    halt_for_ever()
}
