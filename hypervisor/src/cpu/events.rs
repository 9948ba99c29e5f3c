//! Serving the events of a CPU's mailbox, on that CPU, between two VM entries.

use core::sync::atomic::{AtomicU32, Ordering};

use gaol_abi::public::CpuState;

use super::{Activity, Events, PerCpu, clear};
use crate::cell::{Published, published};
use crate::device::apic::{self, register};
use crate::guest::cpuid;
use crate::guest::mtrr::Mtrrs;
use crate::launch::{leave, parameters};
use crate::processor::{self, fixup, halt_for_ever, msr, pause, read_msr, time_stamp, write_msr};
use crate::trace::public;
use crate::virt;
use crate::virt::contract::{GuestState, Virtualization};
use crate::virt::entry::Frame;
use crate::virt::exit::go_on;
use crate::virt::state::{PAT_RESET, Start, State};

const ROOT: u32 = 0;

/// Serves events in the order that [`Events`] gives.
pub fn serve(cpu: &mut PerCpu, frame: &mut Frame, mut events: Events) {
    if events.intersects(Events::STOP.union(Events::JOIN)) {
        // What the cell's own CPUs have sent, and a start that was given up, must not revive it.
        events.remove(
            Events::INIT
                .union(Events::STARTUP)
                .union(Events::NMI)
                .union(Events::RESET)
                .union(Events::FAIL),
        );
    }
    if events.contains(Events::FLUSH) {
        cpu.guest.flush();
        cpu.shared.acknowledge(Events::FLUSH);
    }
    if events.contains(Events::STOP) {
        park(cpu, frame, Activity::Stopped);
        cpu.shared.acknowledge(Events::STOP);
    }
    if events.contains(Events::JOIN) {
        join(cpu, frame);
    }
    if events.contains(Events::RESET) {
        let address = published(cpu.cell).map_or(0, |cell| cell.reset_address()) as u32;
        cpu.counters.clear();
        public::clear_fault(cpu.index);
        // The cell starts as it did the first time.
        clear::registers();
        give_back_msrs(cpu);
        cpu.mtrrs = Mtrrs::cleared(read_msr, processor::physical_bits());
        cpu.pci_address = 0;
        run(cpu, frame, Start::Address(address));
        cpu.shared.acknowledge(Events::RESET);
    }
    if events.contains(Events::FAIL)
        && matches!(cpu.activity, Activity::Running | Activity::Waiting)
    {
        park(cpu, frame, Activity::Failed);
    }
    let may_start = matches!(cpu.activity, Activity::Running | Activity::Waiting);
    if events.contains(Events::INIT) && may_start {
        park(cpu, frame, Activity::Waiting);
        cpu.shared.waits_for_startup.store(true, Ordering::Release);
    }
    if events.contains(Events::STARTUP)
        && cpu.shared.waits_for_startup.swap(false, Ordering::AcqRel)
    {
        let vector = cpu.shared.startup_vector.load(Ordering::Acquire) as u8;
        run(cpu, frame, Start::Vector(vector));
    }
    if events.contains(Events::NMI) && cpu.activity == Activity::Running {
        cpu.pending_nmi = true;
    }
    if events.contains(Events::LEAVE) {
        cpu.shared.acknowledge(Events::LEAVE);
        leave::leave(cpu, frame);
    }
}

/// Puts the guest into the state after INIT. Returns its general registers.
fn reset(cpu: &mut PerCpu, start: Start) -> Frame {
    cpu.virtualization.load(&State::after_init(start));
    cpu.guest.set_nmi_window(false);
    let [signature, ..] = processor::cpuid(1, 0);
    Frame {
        rdx: u64::from(signature),
        ..Frame::default()
    }
}

fn run(cpu: &mut PerCpu, frame: &mut Frame, start: Start) {
    *frame = reset(cpu, start);
    cpu.guest.flush();
    cpu.pending_nmi = false;
    cpu.activity = Activity::Running;
    public::set_state(cpu.index, CpuState::Running, cpu.cell);
}

/// Stops the guest: it halts with interrupts off, and only events wake it.
pub fn park(cpu: &mut PerCpu, frame: &mut Frame, activity: Activity) {
    *frame = reset(cpu, Start::Parked);
    cpu.pending_nmi = false;
    cpu.activity = activity;
    cpu.shared.waits_for_startup.store(false, Ordering::Release);
    if !cpu.is_root {
        apic::reset(cpu);
    }
    let state = if activity == Activity::Failed {
        CpuState::Failed
    } else {
        CpuState::Waiting
    };
    public::set_state(cpu.index, state, cpu.cell);
}

/// Parks the CPU after a violation, and its cell's other CPUs where the configuration wants that. Waits for nobody.
pub fn fail(cpu: &mut PerCpu, frame: &mut Frame) {
    park(cpu, frame, Activity::Failed);
    if published(cpu.cell).is_some_and(Published::parks_whole) {
        fail_all(cpu, cpu.cell);
    }
}

/// Parks all CPUs of a cell but this one. Waits for nobody.
pub fn fail_all(cpu: &PerCpu, cell: u32) {
    for index in (0..parameters::cpu_count()).filter(|index| *index != cpu.index) {
        if let Some(target) = super::shared(index)
            && target.cell.load(Ordering::Acquire) == cell
            && target.post(Events::FAIL)
        {
            apic::kick(cpu, target.apic_id.load(Ordering::Relaxed));
        }
    }
}

/// Leaves the present cell for `next_cell`: the APIC, then all state that the next owner could see.
fn join(cpu: &mut PerCpu, frame: &mut Frame) {
    let next = cpu.shared.next_cell.load(Ordering::Acquire);
    park(cpu, frame, Activity::Stopped);
    cpu.is_root = next == ROOT;
    if next == ROOT && !cpu.x2apic && cpu.cell == ROOT {
        // It never got as far as the cell.
    } else if next == ROOT {
        apic::reset(cpu);
        // Linux' own mode is that of the CPU that never leaves it.
        let linux_has_x2apic =
            super::shared(0).is_some_and(|first| first.x2apic.load(Ordering::Acquire));
        if cpu.x2apic && !linux_has_x2apic && !apic::enter_xapic(cpu) {
            wait_for_restart(cpu);
        }
    } else if apic::has_x2apic() && !apic::enter_x2apic(cpu) {
        cpu.is_root = cpu.cell == ROOT;
        cpu.activity = Activity::Waiting;
        cpu.shared.join_failed.store(true, Ordering::Release);
        cpu.shared.acknowledge(Events::JOIN);
        return;
    } else {
        apic::reset(cpu);
    }
    finish_join(cpu, next);
    if next != ROOT {
        // Behind the answer: the root's CPU does not wait for it.
        measure_apic_timer(cpu.x2apic);
    }
}

/// The second half of joining, the same after a restart.
fn finish_join(cpu: &mut PerCpu, next: u32) {
    clear::registers();
    exchange_msrs(cpu, next);
    cpu.cell = next;
    cpu.pci_address = 0;
    cpu.io_apic_index.fill(0);
    // Logical ids of xAPIC mode are as after a reset, until Linux writes them.
    let logical_id = apic::logical_id(cpu);
    cpu.shared.logical_id.store(logical_id, Ordering::Relaxed);
    cpu.shared.cluster_model.store(false, Ordering::Relaxed);
    let physical_bits = processor::physical_bits();
    (cpu.mtrrs, cpu.moderated_leaves) = if next == ROOT {
        let registers = Mtrrs::of_the_processor(read_msr, physical_bits);
        (registers, cpuid::ROOT_LEAVES)
    } else {
        (Mtrrs::cleared(read_msr, physical_bits), cpuid::CELL_LEAVES)
    };
    if let Some(cell) = published(next) {
        cpu.virtualization.confine(&cell.confinement());
        cpu.virtualization.set_counter_reads(next == ROOT);
        cpu.ignore_ports = cell.ignores_ports();
    }
    cpu.activity = if next == ROOT {
        Activity::Waiting
    } else {
        Activity::Stopped
    };
    cpu.counters.clear();
    public::clear_fault(cpu.index);
    public::set_state(cpu.index, CpuState::Waiting, next);
    cpu.shared
        .waits_for_startup
        .store(next == ROOT, Ordering::Release);
    cpu.shared.cell.store(next, Ordering::Release);
    cpu.shared.acknowledge(Events::JOIN);
}

/// Registers that a cell may write to besides those that all cells have are as they were before it when it leaves.
fn exchange_msrs(cpu: &mut PerCpu, next: u32) {
    if cpu.cell != ROOT {
        give_back_msrs(cpu);
    }
    if next != ROOT
        && let Some(cell) = published(next)
    {
        for ((register, _), value) in cell.writable_msrs().zip(&mut cpu.msrs_before) {
            *value = fixup::read_msr(register).unwrap_or(0);
        }
    }
}

/// Puts the registers that the CPU's cell may write to by its configuration back to what they held before it.
fn give_back_msrs(cpu: &PerCpu) {
    let Some(cell) = published(cpu.cell) else {
        return;
    };
    for ((register, _), value) in cell.writable_msrs().zip(cpu.msrs_before) {
        // SAFETY: the register held this value before the cell had it; one that refuses it is fixed up.
        let _ = unsafe { fixup::write_msr(register, value) };
    }
}

/// Frequency of the APIC timer in kHz, 0 until it was measured.
static APIC_KHZ: AtomicU32 = AtomicU32::new(0);

/// Frequency of the APIC timer before its divider in kHz.
#[must_use]
pub fn apic_khz() -> u32 {
    APIC_KHZ.load(Ordering::Acquire)
}

/// Most time to wait for the frequency of the APIC timer, in milliseconds: measuring takes one.
const MEASURING_MILLISECONDS: u64 = 20;

/// The same, when a CPU of the cell that is about to start is still measuring it.
#[must_use]
pub fn measured_apic_khz() -> u32 {
    let start = time_stamp();
    let cycles = u64::from(parameters::tsc_khz()).saturating_mul(MEASURING_MILLISECONDS);
    while apic_khz() == 0 && time_stamp().wrapping_sub(start) < cycles {
        pause();
    }
    apic_khz()
}

/// Finds the frequency of the APIC timer, once: CPUID tells it, or it is measured against the time stamp counter for a
/// millisecond. The timer is masked.
fn measure_apic_timer(x2apic: bool) {
    if apic_khz() != 0 {
        return;
    }
    let [highest, ..] = processor::cpuid(0, 0);
    let crystal = if highest >= 0x15 {
        processor::cpuid(0x15, 0)[2]
    } else {
        0
    };
    let khz = if crystal != 0 {
        crystal / 1000
    } else {
        let divide_by_one = 0xb;
        let cycles = u64::from(crate::launch::parameters::tsc_khz());
        apic::write(x2apic, register::TIMER_DIVIDE, divide_by_one);
        apic::write(x2apic, register::TIMER_INITIAL, u32::MAX);
        let start = time_stamp();
        while time_stamp().wrapping_sub(start) < cycles {
            pause();
        }
        let counted = u32::MAX.wrapping_sub(apic::read(x2apic, register::TIMER_CURRENT));
        let elapsed = time_stamp().wrapping_sub(start);
        apic::write(x2apic, register::TIMER_INITIAL, 0);
        apic::write(x2apic, register::TIMER_DIVIDE, 0);
        u64::from(counted)
            .saturating_mul(cycles)
            .checked_div(elapsed)
            .unwrap_or(0) as u32
    };
    APIC_KHZ.store(khz, Ordering::Release);
    public::set_apic_khz(khz);
}

/// The APIC stays disabled: this CPU leaves operation and waits for a real INIT and startup IPI, which lead it
/// through [`crate::cell::restart`] to [`restarted`].
fn wait_for_restart(cpu: &mut PerCpu) -> ! {
    cpu.virtualization.leave_operation();
    cpu.shared.wants_restart.store(true, Ordering::Release);
    halt_for_ever()
}

/// Behind the trampoline: on the private table, with its stack, and nothing else of the processor as the hypervisor has
/// it.
pub extern "sysv64" fn restarted(_: u64) -> ! {
    // SAFETY: the private table maps this CPU's PerCpu; the code that held it before ended in `wait_for_restart`.
    let cpu = unsafe { &mut *(super::PRIVATE_BASE as *mut PerCpu) };
    // SAFETY: the tables were filled at launch; EFER and PAT are as they were when this CPU was launched.
    unsafe {
        cpu.tables.load(super::TABLES_AT);
        write_msr(msr::EFER, cpu.saved.efer);
        write_msr(msr::PAT, PAT_RESET);
    }
    crate::launch::set_own_registers();
    cpu.x2apic = apic::is_x2apic();
    cpu.shared.x2apic.store(cpu.x2apic, Ordering::Release);
    let entered = cpu
        .virtualization
        .enter_operation(&cpu.windows, true, cpu.index);
    if entered.is_err() || apic::check().is_err() {
        cpu.shared.join_failed.store(true, Ordering::Release);
        cpu.shared.acknowledge(Events::JOIN);
        halt_for_ever();
    }
    let mut frame = reset(cpu, Start::Parked);
    finish_join(cpu, ROOT);
    // A kick may have come since the CPU was told to join.
    let entry = go_on(cpu, &mut frame);
    // SAFETY: the control block is loaded again, with the host state that was written at launch and a reset guest.
    unsafe { virt::Current::enter(&raw const frame, entry) }
}
