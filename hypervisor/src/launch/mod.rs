//! From Linux to the hypervisor and back to Linux, as a guest or, when anything fails, as it was.
//!
//! Every CPU runs [`enter`]. Until the commit any CPU can call the launch off with one compare-and-swap on the launch
//! word; the others see it at their next wait, each of which also has a deadline, and go back natively in the state that
//! they came from. A CPU that comes late reads the word and obeys. After the commit nobody can fail.

pub mod leave;
mod own_registers;
pub mod parameters;
mod prepare;
pub mod private_table;
pub mod saved;

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use gaol_abi::exit::COUNTERS;
use gaol_abi::handover::{HandoverPage, LaunchParameters, LaunchStep, LaunchWord};
use gaol_abi::image::LINK_BASE;
use gaol_abi::outcome::Reason;
use gaol_abi::public::CpuState;

use self::own_registers::{Features, own_cr4};
use self::private_table::PrivateTable;
use self::saved::Saved;
use crate::cpu::{self, Activity, PRIVATE_BASE, PerCpu, TABLES_AT, area, clear, private};
use crate::device::apic;
use crate::error::{Blame, Failure};
use crate::guest::cpuid;
use crate::guest::mtrr::Mtrrs;
use crate::iommu::service;
use crate::processor::{self, cr4, time_stamp};
use crate::system::{self, PoolTables};
use crate::trace::public;
use crate::virt;
use crate::virt::contract::{Capabilities, GuestState, Regions, Virtualization};
use crate::virt::entry::{Frame, switch_stack};
use crate::virt::state::State;

/// The primary CPU has prepared what all share.
static PREPARED: AtomicBool = AtomicBool::new(false);
/// CPUs that are ready for their first VM entry.
static READY: AtomicU32 = AtomicU32::new(0);
/// CPUs that have come back from it.
static FIRST_EXITS: AtomicU32 = AtomicU32::new(0);
/// Time at which the first CPU arrived.
static STARTED: AtomicU64 = AtomicU64::new(0);

const _: () = assert!(COUNTERS >= 80);

/// A launch that was called off by another CPU: nothing to report.
const CALLED_OFF: Failure = Failure::new(
    Blame::Gaol,
    gaol_abi::hypercall::Errno::TryAgain,
    Reason::None,
    0,
);

/// Fails if a fault shall be injected here.
fn step(cpu: u32, step: LaunchStep) -> Result<(), (LaunchStep, Failure)> {
    if parameters::fault_step() == step.0 && parameters::fault_cpu() == cpu {
        return Err((
            step,
            Failure::new(
                Blame::Caller,
                gaol_abi::hypercall::Errno::InputOutput,
                Reason::FaultInjected,
                u64::from(step.0),
            ),
        ));
    }
    Ok(())
}

/// Waits until `done`, the launch is called off, or the deadline.
fn wait(done: impl Fn() -> bool) -> Result<(), Failure> {
    let start = time_stamp();
    let patience = parameters::deadline_cycles();
    loop {
        if done() {
            return Ok(());
        }
        if parameters::launch_word() == LaunchWord::Aborted {
            return Err(CALLED_OFF);
        }
        if time_stamp().wrapping_sub(start) > patience {
            return Err(Failure::timed_out(
                Blame::Hardware,
                Reason::CpuTimedOut,
                u64::from(missing_cpu()),
            ));
        }
        processor::pause();
    }
}

/// The first CPU that has not entered, or the last one.
fn missing_cpu() -> u32 {
    let count = parameters::cpu_count();
    let absent = |index: &u32| {
        cpu::shared(*index).is_none_or(|cpu| cpu.apic_id.load(Ordering::Relaxed) == u32::MAX)
    };
    (0..count).find(absent).unwrap_or(count.saturating_sub(1))
}

/// Calls the launch off. The first reason is the one that is reported.
fn call_off(cpu: u32, at: LaunchStep, failure: &Failure) {
    if parameters::decide(LaunchWord::Aborted) {
        public::set_outcome(&failure.outcome(cpu, at.0));
    }
}

/// The page through which this CPU came.
fn page(handover: u64) -> *mut HandoverPage {
    handover as *mut HandoverPage
}

/// Goes back to Linux as it was.
fn back_natively(handover: u64, saved: &Saved, at: LaunchStep, failure: &Failure) -> ! {
    let page = page(handover);
    // SAFETY: the handover page is mapped and this CPU's own; Linux does not touch it until this CPU has come back.
    unsafe {
        let mut state = (*page).state;
        state.registers.rax = failure.result() as u64;
        (*page).result = failure.result() as i32;
        (*page).failed_step = at.0;
        saved.restore(&mut state);
        (*page).state = state;
        leave::jump(handover)
    }
}

/// The hypervisor's first Rust code on a CPU: on the boot page table, on the stack of the CPU's area.
///
/// # Safety
/// Called once per CPU and launch by the image's entry point, with the virtual address of the CPU's handover page.
pub unsafe extern "sysv64" fn enter(handover: u64) -> ! {
    let saved = Saved::read();
    // SAFETY: the module filled the page before it sent this CPU here.
    let (cpu, apic_id) = unsafe { ((*page(handover)).cpu, (*page(handover)).apic_id) };
    match first_half(handover, cpu, apic_id, &saved) {
        Ok(cr3) => {
            // SAFETY: the private table maps the image, this CPU's stack at its private address and the handover page.
            unsafe { switch_stack(cr3, private::STACK_END, second_half) }
        }
        Err((at, failure)) => {
            call_off(cpu, at, &failure);
            back_natively(handover, &saved, at, &failure)
        }
    }
}

/// Up to the private table. Returns its CR3.
fn first_half(
    handover: u64,
    cpu: u32,
    apic_id: u32,
    saved: &Saved,
) -> Result<u64, (LaunchStep, Failure)> {
    let parameters = parameters::get();
    let in_step = |at| move |failure| (at, failure);
    parameters::check(&parameters).map_err(in_step(LaunchStep::Arrive))?;
    if cpu >= parameters.cpu_count {
        return Err((
            LaunchStep::Arrive,
            Failure::gaol(Reason::LaunchParameters, u64::from(cpu)),
        ));
    }
    crate::region::set(
        crate::memory::address::HostPhysical::new(parameters.region_physical),
        parameters.region_size,
    );
    let is_primary = parameters::arrived().fetch_add(1, Ordering::AcqRel) == 0;
    if is_primary {
        STARTED.store(time_stamp(), Ordering::Relaxed);
    }
    cpu::register(cpu, apic_id);
    step(cpu, LaunchStep::Arrive)?;
    wait(|| parameters::arrived().load(Ordering::Acquire) >= parameters.cpu_count)
        .map_err(in_step(LaunchStep::Arrive))?;
    step(cpu, LaunchStep::Prepare)?;
    if is_primary {
        prepare::prepare(&parameters).map_err(in_step(LaunchStep::Prepare))?;
        PREPARED.store(true, Ordering::Release);
    } else {
        wait(|| PREPARED.load(Ordering::Acquire)).map_err(in_step(LaunchStep::Prepare))?;
    }
    step(cpu, LaunchStep::PrivateTables)?;
    let table = build_tables(&parameters, cpu).map_err(in_step(LaunchStep::PrivateTables))?;
    fill_per_cpu(&parameters, &table, handover, cpu, apic_id, saved)
        .map_err(in_step(LaunchStep::PrivateTables))?;
    Ok(table.root.as_u64())
}

fn build_tables(parameters: &LaunchParameters, cpu: u32) -> Result<PrivateTable, Failure> {
    let mut guard = system::manage_at_launch();
    let machinery = guard.machinery()?;
    private_table::build(parameters, &mut PoolTables(&mut machinery.pool), cpu)
}

/// Fills the CPU's private data while its area is still reachable in the boot page table.
fn fill_per_cpu(
    parameters: &LaunchParameters,
    table: &PrivateTable,
    handover: u64,
    cpu: u32,
    apic_id: u32,
    saved: &Saved,
) -> Result<(), Failure> {
    let capabilities = virt::Capabilities::detect(processor::cpuid, processor::read_msr)?;
    let shared = cpu::shared(cpu).ok_or(Failure::gaol(Reason::LaunchParameters, u64::from(cpu)))?;
    let area = LINK_BASE
        .wrapping_add(parameters.cpu_areas)
        .wrapping_add(u64::from(cpu).wrapping_mul(area::SIZE))
        .wrapping_add(area::PER_CPU << 12);
    let mut tables = crate::processor::tables::DescriptorTables::empty();
    tables.fill(TABLES_AT);
    let fresh = PerCpu {
        nmi_count: AtomicU32::new(0),
        machine_checks: AtomicU32::new(0),
        counters: public::counters(cpu),
        shared,
        is_root: true,
        x2apic: apic::is_x2apic(),
        committed: false,
        ignore_ports: true,
        pending_nmi: false,
        recovering: false,
        moderated_leaves: cpuid::ROOT_LEAVES,
        activity: Activity::Waiting,
        stage: cpu::recovery::Stage::new(),
        msrs_before: [0; gaol_abi::config::MAX_MSRS],
        index: cpu,
        cell: 0,
        apic_id,
        pci_address: 0,
        io_apic_index: [0; crate::device::io_apic::MAX_UNITS],
        mtrrs: Mtrrs::of_the_processor(processor::read_msr, processor::physical_bits()),
        windows: table.windows,
        saved: *saved,
        handover,
        private_cr3: table.root.as_u64(),
        guest: virt::Current::guest(),
        virtualization: virt::Current::new(
            capabilities,
            Regions {
                host: private_table::area_page(parameters, cpu, area::HOST_STATE),
                control_block: private_table::area_page(parameters, cpu, area::CONTROL_BLOCK),
            },
        ),
        tables,
    };
    // SAFETY: the first page of this CPU's area, which the boot page table maps writable and nobody else uses.
    unsafe { (area as *mut PerCpu).write(fresh) };
    shared
        .private_root
        .store(table.root.as_u64(), Ordering::Release);
    shared.x2apic.store(apic::is_x2apic(), Ordering::Release);
    Ok(())
}

/// From the private table to the first VM entry.
extern "sysv64" fn second_half(_: u64) -> ! {
    // SAFETY: the private table maps this CPU's own PerCpu here, filled by `fill_per_cpu`; this is the only reference
    // until the first VM exit, whose entry makes a new one when this function has ended in VM entry.
    let cpu = unsafe { &mut *(PRIVATE_BASE as *mut PerCpu) };
    match reach_guest(cpu) {
        Ok(frame) => {
            let entry = cpu.virtualization.next_entry();
            // SAFETY: the CPU is in operation, and its control block filled.
            unsafe { virt::Current::enter(&raw const frame, entry) }
        }
        Err((at, failure)) => roll_back(cpu, at, &failure),
    }
}

fn reach_guest(cpu: &mut PerCpu) -> Result<Frame, (LaunchStep, Failure)> {
    let in_step = |at| move |failure| (at, failure);
    // SAFETY: filled by `fill_per_cpu` for this address; the private table is loaded.
    unsafe { cpu.tables.load(TABLES_AT) };
    step(cpu.index, LaunchStep::CheckProcessor)?;
    check_processor(cpu).map_err(in_step(LaunchStep::CheckProcessor))?;
    step(cpu.index, LaunchStep::EnableVirtualization)?;
    set_own_registers();
    cpu.virtualization
        .enter_operation(&cpu.windows, false, cpu.index)
        .map_err(in_step(LaunchStep::EnableVirtualization))?;
    step(cpu.index, LaunchStep::FillControlBlock)?;
    fill_control_block(cpu).map_err(in_step(LaunchStep::FillControlBlock))?;
    step(cpu.index, LaunchStep::Ready)?;
    READY.fetch_add(1, Ordering::AcqRel);
    wait(|| READY.load(Ordering::Acquire) >= parameters::cpu_count())
        .map_err(in_step(LaunchStep::Ready))?;
    Ok(Frame::default())
}

fn check_processor(cpu: &PerCpu) -> Result<(), Failure> {
    // SAFETY: this CPU's own page, see `back_natively`.
    let linux_cr4 = unsafe { (*page(cpu.handover)).state.cr4 };
    let unknown = linux_cr4 & !cr4::KNOWN;
    if unknown != 0 {
        return Err(Failure::hardware(Reason::UnknownCr4, unknown));
    }
    cpu.virtualization.check_unused(linux_cr4, cpu.index)?;
    apic::check()?;
    if !cpu.x2apic {
        // Linux addresses CPUs by these, and set them long ago.
        let logical = apic::read_page(apic::register::LOGICAL_DESTINATION) >> 24;
        cpu.shared.logical_id.store(logical, Ordering::Release);
        let format = apic::read_page(apic::register::DESTINATION_FORMAT);
        cpu.shared.set_destination_format(format);
    }
    Ok(())
}

/// CR0 and CR4 as the hypervisor runs with them: no FPU use, and every protection that the processor has.
pub fn set_own_registers() {
    let [_, _, one_c, one_d] = processor::cpuid(1, 0);
    let [_, seven_b, seven_c, _] = processor::cpuid(7, 0);
    let features = Features {
        one_c,
        seven_b,
        seven_c,
    };
    let value = own_cr4(features, processor::read_cr4());
    if one_d & clear::DEBUG_STORE != 0 {
        // SAFETY: records of events would be written to Linux' linear addresses while the hypervisor runs.
        let _ = unsafe { processor::fixup::write_msr(clear::PEBS_ENABLE, 0) };
    }
    // SAFETY: paging mode stays as it is; the hypervisor has no user pages, and its image uses no extended state.
    unsafe {
        processor::write_cr4(value);
        processor::write_cr0(
            processor::cr0::PG
                | processor::cr0::PE
                | processor::cr0::WP
                | processor::cr0::NE
                | processor::cr0::ET,
        );
    }
}

fn fill_control_block(cpu: &mut PerCpu) -> Result<(), Failure> {
    cpu.virtualization.fill_host(cpu.private_cr3);
    public::set_host_registers(cpu.index, cpu.virtualization.host_registers());
    // SAFETY: this CPU's own page, in which nothing changes now but the NMI count, which is not looked at.
    let page = unsafe { &*page(cpu.handover) };
    let first_instruction = parameters::stub_first_instruction();
    let state = State::of_linux(page, &cpu.saved, first_instruction)?;
    cpu.virtualization.load(&state);
    cpu.virtualization.confine(
        &crate::cell::published(0)
            .ok_or(Failure::gaol(Reason::LaunchParameters, 0))?
            .confinement(),
    );
    Ok(())
}

/// Everything back as it was before [`enter`].
pub fn roll_back(cpu: &mut PerCpu, at: LaunchStep, failure: &Failure) -> ! {
    call_off(cpu.index, at, failure);
    if cpu.virtualization.is_in_operation() {
        cpu.virtualization.leave_operation();
    }
    leave::hand_back_interrupts(cpu);
    let saved = cpu.saved;
    back_natively(cpu.handover, &saved, at, failure)
}

/// The first exit of Linux as a guest: all CPUs meet, and the last one commits. Returns the registers with which Linux
/// goes on, or goes back natively.
#[must_use]
pub fn commit(cpu: &mut PerCpu) -> Frame {
    if let Err((at, failure)) = meet(cpu) {
        call_off(cpu.index, at, &failure);
        // This CPU may have given up in the very moment in which the last one came: then it obeys the word.
        if parameters::launch_word() != LaunchWord::Committed {
            roll_back(cpu, at, &failure);
        }
    }
    cpu.committed = true;
    cpu.activity = Activity::Running;
    cpu.counters.clear();
    public::set_state(cpu.index, CpuState::Running, 0);
    // SAFETY: this CPU's own page. The count is taken, so that a way back does not raise the NMI again.
    let state = unsafe {
        cpu.pending_nmi |= (*page(cpu.handover)).nmi_count != 0;
        (*page(cpu.handover)).nmi_count = 0;
        let checks = (*page(cpu.handover)).machine_check_count;
        cpu.machine_checks.fetch_add(checks, Ordering::Relaxed);
        (*page(cpu.handover)).machine_check_count = 0;
        (*page(cpu.handover)).state
    };
    let registers = &state.registers;
    cpu.guest.set_rip(state.rip);
    cpu.guest.set_rflags(state.rflags);
    Frame {
        rax: 0,
        rbx: registers.rbx,
        rbp: registers.rbp,
        r12: registers.r12,
        r13: registers.r13,
        r14: registers.r14,
        r15: registers.r15,
        ..Frame::default()
    }
}

fn meet(cpu: &PerCpu) -> Result<(), (LaunchStep, Failure)> {
    step(cpu.index, LaunchStep::FirstExit)?;
    let arrived = FIRST_EXITS.fetch_add(1, Ordering::AcqRel).wrapping_add(1);
    if arrived >= parameters::cpu_count() {
        // Linux does nothing meanwhile, on no CPU.
        take_iommus(cpu).map_err(|failure| (LaunchStep::FirstExit, failure))?;
        if !parameters::decide(LaunchWord::Committed) {
            service::give_back(cpu.windows);
        }
    }
    if arrived >= parameters::cpu_count() && parameters::launch_word() == LaunchWord::Committed {
        parameters::set_enable_cycles(time_stamp().wrapping_sub(STARTED.load(Ordering::Relaxed)));
        public::set_revision(gaol_abi::ABI_REVISION);
        if let Some(machinery) = &system::manage_at_launch().machinery {
            system::publish_pool(&machinery.pool);
        }
    }
    wait(|| parameters::launch_word() == LaunchWord::Committed)
        .map_err(|failure| (LaunchStep::FirstExit, failure))
}

fn take_iommus(cpu: &PerCpu) -> Result<(), Failure> {
    match &mut system::manage_at_launch().machinery {
        Some(machinery) => service::start(machinery, cpu.windows),
        None => Ok(()),
    }
}
