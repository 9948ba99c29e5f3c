//! Hypercalls: [`gaol_abi::hypercall`] says what each does and who may call it; [`request`] reads what is asked for.

pub mod request;

use core::sync::atomic::{AtomicU32, Ordering};

use gaol_abi::exit::{COUNTER_X2APIC_ICR, FIRST_DERIVED_COUNTER};
use gaol_abi::hypercall::{
    CPU_FAILED, CPU_RUNNING, CpuInfoType, Errno, Hypercall, InfoType, JAILHOUSE_COUNTERS,
};
use gaol_abi::outcome::{Outcome, Reason};
use gaol_abi::public::{CpuState, Pause};

use self::request::{Caller, Request, error, result};
use crate::cell::{create, lifecycle, published};
use crate::cpu::{self, Events, PerCpu, injection};
use crate::device::apic;
use crate::error::{Blame, Failure};
use crate::guest::{Verdict, root_failure};
use crate::iommu::service;
use crate::launch::{self, leave, parameters};
use crate::processor::{pause, time_stamp};
use crate::trace::{console, public};
use crate::virt::contract::{GuestState, Trapped};
use crate::virt::entry::Frame;
use crate::virt::exit::{SLOW, done};

const ROOT: u32 = 0;

/// Hypercall 5, and nothing else.
#[inline(never)]
pub extern "sysv64" fn fast(cpu: &mut PerCpu, frame: &mut Frame) -> u32 {
    if frame.rax as u32 != Hypercall::GetInfo.0 || cpu.guest.privilege_level() != 0 {
        return SLOW;
    }
    // In 64-bit mode arguments are 64 bits wide, else 32.
    let wide = cpu.guest.is_long_mode();
    let kind = if wide {
        frame.rdi
    } else {
        frame.rdi & 0xffff_ffff
    };
    frame.rax = result(get_info(InfoType(kind)), wide);
    done(cpu, Trapped::Hypercall)
}

#[inline(always)]
fn get_info(kind: InfoType) -> i64 {
    match kind {
        InfoType::PoolSize => public::frames_total() as i64,
        InfoType::PoolUsed => public::frames_used() as i64,
        InfoType::RemapPoolSize | InfoType::RemapPoolUsed => 0,
        InfoType::Cells => public::cells() as i64,
        _ => error(Errno::Invalid),
    }
}

/// Any other hypercall.
pub fn slow(cpu: &mut PerCpu, frame: &mut Frame) -> Verdict {
    if !cpu.committed {
        *frame = launch::commit(cpu);
        return Verdict::Resume;
    }
    let caller = Caller {
        is_root: cpu.is_root,
        privilege_level: cpu.guest.privilege_level(),
        is_wide: cpu.guest.is_long_mode(),
    };
    let value = match request::decode(caller, frame.rax, frame.rdi, frame.rsi) {
        Err(errno) => error(errno),
        Ok(Request::Disable(callers)) => disable(cpu, frame, callers),
        Ok(request) if request.is_management() => timed(cpu, request),
        Ok(request) => answer(cpu, request),
    };
    frame.rax = result(value, caller.is_wide);
    Verdict::Advance
}

/// Does what the root asks for, and keeps how long its CPU was away.
fn timed(cpu: &PerCpu, request: Request) -> i64 {
    let pause = match request {
        Request::Create { .. } => Pause::Create,
        Request::Start(_) => Pause::Start,
        Request::SetLoadable { .. } => Pause::SetLoadable,
        Request::Destroy { .. } => Pause::Destroy,
        Request::Scrub(_) => Pause::Scrub,
        _ => Pause::Look,
    };
    let start = time_stamp();
    let value = answer(cpu, request);
    public::note_pause(pause, time_stamp().wrapping_sub(start));
    value
}

fn answer(cpu: &PerCpu, request: Request) -> i64 {
    let outcome = match request {
        Request::Info(kind) => return get_info(kind),
        Request::CpuInfo { cpu: index, kind } => return cpu_get_info(cpu, index, kind),
        Request::Print(character) => {
            if !published(cpu.cell).is_some_and(|cell| cell.may_print()) {
                return error(Errno::NotPermitted);
            }
            console::put(cpu.cell, character);
            return 0;
        }
        // Not reported: the answer to a look must not go over the reason of a failure that is still to be read.
        Request::State(id) => {
            service::poll(cpu.windows);
            return lifecycle::get_state(id).unwrap_or_else(|failure| failure.result());
        }
        Request::Watch(id) => {
            service::poll(cpu.windows);
            return lifecycle::watch(cpu, id).unwrap_or_else(|failure| failure.result());
        }
        Request::Fail(kind) => {
            if injection::is_permitted() {
                injection::fail(kind);
            }
            return error(Errno::NoSystemCall);
        }
        Request::RootFailed => {
            root_failure::record_panic(cpu);
            return 0;
        }
        Request::Disable(_) => return error(Errno::Invalid),
        Request::Create { address, force } => create::create(cpu, address, force),
        Request::Start(id) => lifecycle::start(cpu, id),
        Request::SetLoadable { id, force } => lifecycle::set_loadable(cpu, id, force),
        Request::Destroy { id, force } => lifecycle::destroy(cpu, id, force),
        Request::Scrub(id) => lifecycle::scrub(cpu, id),
    };
    reported(cpu, outcome)
}

/// The hypercall that the root's CPU was in is refused, since the hypervisor has failed in it.
pub fn refuse_for_fault(cpu: &PerCpu, frame: &mut Frame) {
    public::set_outcome(&Failure::gaol(Reason::HypervisorFault, 0).outcome(0, 0));
    frame.rax = result(error(Errno::InputOutput), cpu.guest.is_long_mode());
    cpu.guest.advance(Trapped::Hypercall);
}

/// Tells the root why a management operation failed.
fn reported(cpu: &PerCpu, outcome: Result<i64, Failure>) -> i64 {
    match outcome {
        Ok(value) => {
            public::set_outcome(&Outcome {
                reason: Reason::None,
                cpu: 0,
                step: 0,
                reserved: 0,
                detail: 0,
            });
            value
        }
        Err(failure) => {
            public::set_outcome(&failure.outcome(cpu.index, 0));
            failure.result()
        }
    }
}

/// Indices of [`gaol_abi::public::CpuPublic::exits`] that make up Jailhouse's counters.
fn jailhouse_counter(cpu: u32, number: u64) -> Option<i64> {
    let counters = public::counters(cpu);
    let sum = |indices: &[usize]| {
        indices
            .iter()
            .map(|index| counters.get(*index))
            .fold(0u64, u64::wrapping_add)
    };
    let total = || {
        (0..FIRST_DERIVED_COUNTER)
            .map(|index| counters.get(index))
            .fold(0u64, u64::wrapping_add)
    };
    let value = match number {
        0 => total(),
        1 => sum(&[48]),
        2 => sum(&[52, gaol_abi::exit::COUNTER_KICKS]),
        3 => sum(&[18]),
        4 => sum(&[30]),
        5 => sum(&[gaol_abi::exit::COUNTER_XAPIC_WRITES]),
        6 => sum(&[28]),
        7 => sum(&[10]),
        8 => sum(&[55]),
        9 => sum(&[0]).wrapping_sub(sum(&[gaol_abi::exit::COUNTER_KICKS])),
        10 => sum(&[31, 32]).wrapping_sub(sum(&[COUNTER_X2APIC_ICR])),
        11 => sum(&[COUNTER_X2APIC_ICR]),
        _ => return None,
    };
    // Jailhouse's counters are 31 bits wide.
    Some((value & 0x7fff_ffff) as i64)
}

const _: () = assert!(JAILHOUSE_COUNTERS == 12);

fn cpu_get_info(cpu: &PerCpu, index: u64, kind: u64) -> i64 {
    let Some(target) = u32::try_from(index)
        .ok()
        .filter(|index| *index < parameters::cpu_count())
    else {
        return error(Errno::Invalid);
    };
    let own =
        cpu::shared(target).is_some_and(|other| other.cell.load(Ordering::Acquire) == cpu.cell);
    if !cpu.is_root && !own {
        return error(Errno::NotPermitted);
    }
    match request::counter_number(kind) {
        Some(number) => jailhouse_counter(target, number).unwrap_or(error(Errno::Invalid)),
        None if kind == CpuInfoType::State.0 => {
            if public::state(target) == CpuState::Failed {
                CPU_FAILED
            } else {
                CPU_RUNNING
            }
        }
        None => error(Errno::Invalid),
    }
}

/// CPUs of the root that have asked to disable, and what came of it.
static DISABLE_ARRIVED: AtomicU32 = AtomicU32::new(0);
static DISABLE_WORD: AtomicU32 = AtomicU32::new(UNDECIDED);
const UNDECIDED: u32 = 0;
const GO: u32 = 1;
const REFUSED: u32 = 2;

/// Hypercall 0. Does not return when the machine is given back; a refusal is the same on all CPUs.
fn disable(cpu: &mut PerCpu, frame: &mut Frame, callers: u64) -> i64 {
    if public::cells() > 1 {
        public::set_outcome(
            &Failure::caller(
                Errno::Busy,
                Reason::CellsExist,
                public::cells().saturating_sub(1),
            )
            .outcome(cpu.index, 0),
        );
        return error(Errno::Busy);
    }
    cpu.shared.leaving.store(true, Ordering::Release);
    let arrived = DISABLE_ARRIVED
        .fetch_add(1, Ordering::AcqRel)
        .wrapping_add(1);
    if u64::from(arrived) == callers {
        match others(callers) {
            Ok(()) => decide(GO),
            Err(failure) => {
                public::set_outcome(&failure.outcome(cpu.index, 0));
                decide(REFUSED);
            }
        }
    }
    wait_for_decision();
    if DISABLE_WORD.load(Ordering::Acquire) == GO {
        if u64::from(arrived) == callers {
            send_others_back(cpu);
        }
        wait_for_iommus(u64::from(arrived) == callers, cpu);
        frame.rax = 0;
        cpu.guest.advance(Trapped::Hypercall);
        leave::leave(cpu, frame);
    }
    cpu.shared.leaving.store(false, Ordering::Release);
    // The last one to leave puts the counter back, so that the next attempt starts anew.
    if DISABLE_ARRIVED.fetch_sub(1, Ordering::AcqRel) == 1 {
        DISABLE_WORD.store(UNDECIDED, Ordering::Release);
    }
    error(Errno::Busy)
}

fn decide(decision: u32) {
    // Decided already: by a deadline.
    let _ = DISABLE_WORD.compare_exchange(UNDECIDED, decision, Ordering::AcqRel, Ordering::Acquire);
}

/// The last CPU that has called gives the IOMMUs back before any of them is in Linux.
fn wait_for_iommus(gives: bool, cpu: &PerCpu) {
    if gives {
        service::give_back(cpu.windows);
    }
    let start = time_stamp();
    while !service::are_back() && time_stamp().wrapping_sub(start) < parameters::deadline_cycles() {
        pause();
    }
}

fn wait_for_decision() {
    let start = time_stamp();
    while DISABLE_WORD.load(Ordering::Acquire) == UNDECIDED {
        if time_stamp().wrapping_sub(start) > parameters::deadline_cycles() {
            let failure = Failure::timed_out(Blame::Caller, Reason::CpuTimedOut, 0);
            public::set_outcome(&failure.outcome(0, 0));
            decide(REFUSED);
        }
        pause();
    }
}

/// CPUs of the root that did not call: Linux has them offline in a loop of its own. `Err`: one has no such place.
fn others(callers: u64) -> Result<(), Failure> {
    if callers > u64::from(parameters::cpu_count()) {
        return Err(Failure::caller(Errno::Invalid, Reason::None, callers));
    }
    for index in 0..parameters::cpu_count() {
        let Some(other) = cpu::shared(index) else {
            continue;
        };
        // One that was parked for a reset has no place in Linux to go back to either.
        if other.waits_for_startup.load(Ordering::Acquire)
            || other.cell.load(Ordering::Acquire) != ROOT
            || public::state(index) == CpuState::Failed
        {
            return Err(Failure::caller(
                Errno::Busy,
                Reason::CpuNotBack,
                u64::from(index),
            ));
        }
    }
    Ok(())
}

/// Sends the CPUs back that did not call. Those that did see the event only if they enter the guest again, which they
/// do not.
fn send_others_back(cpu: &PerCpu) {
    for index in (0..parameters::cpu_count()).filter(|index| *index != cpu.index) {
        if let Some(other) = cpu::shared(index)
            && !other.leaving.load(Ordering::Acquire)
            && other.request(Events::LEAVE)
        {
            apic::kick(cpu, other.apic_id.load(Ordering::Relaxed));
        }
    }
}
