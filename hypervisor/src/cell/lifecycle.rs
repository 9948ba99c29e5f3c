//! Loading, starting, stopping, clearing and destroying cells, and moving CPUs between them.
//!
//! Whoever waits for another CPU has a deadline. A cell that is asked to end is not waited for: the caller is told to
//! come again (`-EAGAIN`), so that no CPU of Linux is away for long.

use core::sync::atomic::Ordering;

use gaol_abi::MAX_CELLS;
use gaol_abi::communication::{CellState, Message, Reply};
use gaol_abi::config::{
    MEMORY_COMMUNICATION, MEMORY_DEVICE, MEMORY_LOADABLE, MEMORY_ROOT_SHARED, MemoryRegion,
};
use gaol_abi::hypercall::{Errno, SCRUB_CHUNK};
use gaol_abi::outcome::Reason;
use gaol_abi::public::CpuState;
use gaol_config::CpuSet;
use gaol_config::ledger::CellId;

use super::communication::Facts;
use super::create::{
    dismantle, map_to_root, return_memory, root_range, set_root_ports, settle, taken_from_root,
    used_by_others,
};
use super::{Cell, Phase, Scrub, restart};
use crate::cpu::{self, Events, PerCpu, events};
use crate::device::apic;
use crate::error::{Blame, Failure};
use crate::guest::io_apic;
use crate::launch::parameters;
use crate::memory::address::HostPhysical;
use crate::memory::page_table::Flush;
use crate::processor::{pause, time_stamp};
use crate::system::{self, Machinery, Management, PoolTables, map_failure};
use crate::trace::public;
use crate::virt::vmx::instructions::invalidate_ept;

/// Id of the root cell.
pub const ROOT: u32 = 0;

const AGAIN: Failure = Failure::caller(Errno::TryAgain, Reason::None, 0);

fn no_such_cell(id: u64) -> Failure {
    if id == u64::from(ROOT) {
        Failure::caller(Errno::Invalid, Reason::RootCell, 0)
    } else {
        Failure::caller(Errno::NoEntry, Reason::NoSuchCell, id)
    }
}

fn cell_of(cells: &mut [Option<Cell>; MAX_CELLS], id: u64) -> Result<&mut Cell, Failure> {
    usize::try_from(id)
        .ok()
        .and_then(|index| cells.get_mut(index))
        .and_then(Option::as_mut)
        .ok_or(no_such_cell(id))
}

/// A cell that runs locked forbids changes to the set of cells.
pub fn refuse_if_locked(cells: &[Option<Cell>; MAX_CELLS]) -> Result<(), Failure> {
    for (id, cell) in cells.iter().enumerate() {
        if let Some(cell) = cell
            && state_of(cell) == CellState::RunningLocked
        {
            return Err(Failure::new(
                Blame::Cell,
                Errno::NotPermitted,
                Reason::CellLocked,
                id as u64,
            ));
        }
    }
    Ok(())
}

fn has_failed(cell: &Cell) -> bool {
    !cell.cpus.is_empty()
        && cell
            .cpus
            .iter()
            .all(|cpu| public::state(cpu) == CpuState::Failed)
}

/// The state of a cell as the root is told.
pub fn state_of(cell: &Cell) -> CellState {
    if cell.phase != Phase::Running {
        return CellState::ShutDown;
    }
    if has_failed(cell) {
        return CellState::Failed;
    }
    match &cell.communication {
        None => CellState::Running,
        Some(communication) => communication.state(),
    }
}

/// Hypercall 6.
pub fn get_state(id: u64) -> Result<i64, Failure> {
    if id == u64::from(ROOT) {
        return Ok(i64::from(CellState::Running.0));
    }
    let mut guard = system::try_manage()?;
    cell_of(&mut guard.cells, id).map(|cell| i64::from(state_of(cell).0))
}

/// Tells CPUs to do something and waits until each has.
fn request(
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

/// Makes all CPUs of the root drop what they know of its EPT.
pub fn flush_root(cpu: &PerCpu) -> Result<(), Failure> {
    invalidate_ept();
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
    for index in cell.cpus.iter() {
        let Some(target) = cpu::shared(index) else {
            continue;
        };
        // A CPU that was told to join another cell and has not done so yet may still do it.
        if target.cell.load(Ordering::Acquire) == to
            && target.next_cell.load(Ordering::Acquire) == to
        {
            continue;
        }
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
    }
    Ok(())
}

/// Makes the memory of the hypervisor and of all cells (and of `new`, not yet among them) foreign to the root.
pub fn update_foreign(
    cells: &[Option<Cell>; MAX_CELLS],
    new: Option<&Cell>,
) -> Result<(), Failure> {
    let own = core::iter::once((system_start(), crate::region::size()));
    let of_cells = cells
        .iter()
        .flatten()
        .chain(new)
        .flat_map(Cell::regions)
        .filter(|region| taken_from_root(region))
        .map(|region| (region.physical, region.size));
    if system::set_foreign(own.chain(of_cells)) {
        Ok(())
    } else {
        Err(Failure::configuration(Reason::TooManyCells, 0))
    }
}

fn system_start() -> u64 {
    crate::region::physical().as_u64()
}

fn loadable(cell: &Cell) -> impl Iterator<Item = &MemoryRegion> {
    cell.regions()
        .filter(|region| region.flags & MEMORY_LOADABLE != 0 && taken_from_root(region))
}

/// Hypercall 3: stops the cell and lets the root load it.
pub fn set_loadable(cpu: &PerCpu, id: u64, force: bool) -> Result<i64, Failure> {
    let mut guard = system::try_manage()?;
    let Management {
        machinery, cells, ..
    } = &mut *guard;
    let machinery = machinery.as_mut().ok_or(AGAIN)?;
    let cell = cell_of(cells, id)?;
    stop(cpu, id, cell, force)?;
    if cell.phase != Phase::Stopped {
        return Err(Failure::caller(Errno::Busy, Reason::NotScrubbed, 0));
    }
    if cell.loadable {
        return Ok(0);
    }
    let mut flush = Flush::Nothing;
    for region in loadable(cell) {
        flush = flush.and(map_to_root(machinery, region, true)?);
    }
    cell.loadable = true;
    if flush.is_needed() {
        flush_root(cpu)?;
        machinery.pool.reclaim();
    }
    Ok(0)
}

/// Takes loadable memory from the root again. Never needs a frame.
fn end_loading(cpu: &PerCpu, machinery: &mut Machinery, cell: &mut Cell) -> Result<(), Failure> {
    if !cell.loadable {
        return Ok(());
    }
    let mut flush = Flush::Nothing;
    for region in loadable(cell) {
        let range = root_range(region)?;
        let hole = machinery
            .root_ept
            .map_hole(&mut PoolTables(&mut machinery.pool), range);
        flush = flush.and(hole.map_err(map_failure)?);
    }
    cell.loadable = false;
    if flush.is_needed() {
        flush_root(cpu)?;
        machinery.pool.reclaim();
    }
    Ok(())
}

/// Hypercall 2.
pub fn start(cpu: &PerCpu, id: u64) -> Result<i64, Failure> {
    let mut guard = system::try_manage()?;
    let Management {
        machinery, cells, ..
    } = &mut *guard;
    let machinery = machinery.as_mut().ok_or(AGAIN)?;
    let cell = cell_of(cells, id)?;
    match cell.phase {
        Phase::Running => return Err(Failure::caller(Errno::Busy, Reason::CellRunning, id)),
        Phase::Fresh | Phase::Dying => {
            return Err(Failure::caller(Errno::Busy, Reason::NotScrubbed, id));
        }
        Phase::Stopped if !cell.loadable => {
            return Err(Failure::caller(Errno::Invalid, Reason::NotLoaded, id));
        }
        Phase::Stopped => {}
    }
    end_loading(cpu, machinery, cell)?;
    if let Some(communication) = &cell.communication {
        communication.start(&Facts {
            cpus: cell.cpus.len() as u16,
            tsc_khz: parameters::tsc_khz(),
            apic_khz: events::apic_khz(),
            pm_timer_port: parameters::pm_timer_port() as u16,
            console: cell.console,
        });
    }
    cell.asked = None;
    cell.phase = Phase::Running;
    request(cpu, cell.cpus.iter(), Events::RESET)?;
    system::publish_pool(&machinery.pool);
    Ok(0)
}

/// Stops the cell's CPUs, after asking it unless `force`.
fn stop(cpu: &PerCpu, id: u64, cell: &mut Cell, force: bool) -> Result<(), Failure> {
    if cell.phase != Phase::Running {
        return Ok(());
    }
    if !force && !cell.passive && !has_failed(cell) {
        ask(cell)?;
    }
    request(cpu, cell.cpus.iter(), Events::STOP)?;
    io_apic::reset(cpu, id as u32);
    if let Some(communication) = &cell.communication {
        communication.send(Message::None);
    }
    cell.asked = None;
    cell.phase = Phase::Stopped;
    Ok(())
}

/// Asks the cell to end, or looks for its answer. `Ok`: it may be stopped.
fn ask(cell: &mut Cell) -> Result<(), Failure> {
    let Some(communication) = cell.communication else {
        return Ok(());
    };
    match communication.state() {
        CellState::ShutDown | CellState::Failed | CellState::FailedRevision => return Ok(()),
        CellState::RunningLocked if cell.asked.is_none() => {
            return Err(Failure::new(
                Blame::Cell,
                Errno::NotPermitted,
                Reason::CellLocked,
                0,
            ));
        }
        _ => {}
    }
    let Some(deadline) = cell.asked else {
        communication.send(Message::ShutdownRequest);
        cell.asked = Some(time_stamp().wrapping_add(cell.patience));
        return Err(AGAIN);
    };
    match communication.reply() {
        Reply::RequestApproved => return Ok(()),
        Reply::None | Reply::Received => {}
        _ => {
            communication.send(Message::None);
            cell.asked = None;
            return Err(Failure::new(
                Blame::Cell,
                Errno::NotPermitted,
                Reason::ShutdownDenied,
                0,
            ));
        }
    }
    if (deadline.wrapping_sub(time_stamp()) as i64) < 0 {
        communication.send(Message::None);
        cell.asked = None;
        let milliseconds = cell
            .patience
            .checked_div(u64::from(parameters::tsc_khz()))
            .unwrap_or(0);
        return Err(Failure::timed_out(
            Blame::Cell,
            Reason::ShutdownTimedOut,
            milliseconds,
        ));
    }
    Err(AGAIN)
}

/// Hypercall 4.
pub fn destroy(cpu: &PerCpu, id: u64, force: bool) -> Result<i64, Failure> {
    let mut guard = system::try_manage()?;
    let Management {
        machinery,
        ledger,
        cells,
        draft,
        low_page,
        ..
    } = &mut *guard;
    let machinery = machinery.as_mut().ok_or(AGAIN)?;
    let cell = look_for_others(cells, id)?;
    if cell.phase == Phase::Running || cell.phase == Phase::Stopped {
        stop(cpu, id, cell, force)?;
        if !force {
            // Another cell that is locked; this one has stopped and is not in its way.
            refuse_if_locked(cells)?;
        }
        let cell = cell_of(cells, id)?;
        end_loading(cpu, machinery, cell)?;
        cell.phase = Phase::Dying;
        cell.scrub = Scrub::default();
        return Err(AGAIN);
    }
    if cell.phase == Phase::Dying && next_piece(cell).is_some() {
        return Err(AGAIN);
    }
    move_cpus(cpu, cell, ROOT, low_page, machinery)?;
    // All of this can be repeated when a flush fails, and a repetition, which changes nothing, must flush all the same.
    // Giving memory back needs no frames.
    return_memory(machinery, cell, cell.memory_count)?.ignore();
    flush_root(cpu)?;
    set_root_ports(machinery, cell, false);
    io_apic::release(cpu, id as u32);
    io_apic::revise(cpu, CpuSet::EMPTY);
    let slot = cells.get_mut(id as usize).ok_or(no_such_cell(id))?;
    core::mem::swap(slot, draft);
    *slot = None;
    update_foreign(cells, None)?;
    let _ = ledger.release(CellId(id as u32));
    dismantle(machinery, draft);
    settle(machinery);
    public::set_cells(ledger.cell_count() as u64);
    Ok(0)
}

/// The cell; when it ends, with what other cells have of its memory by now.
fn look_for_others(cells: &mut [Option<Cell>; MAX_CELLS], id: u64) -> Result<&mut Cell, Failure> {
    let index = usize::try_from(id).map_err(|_| no_such_cell(id))?;
    let in_use = cells
        .get(index)
        .and_then(Option::as_ref)
        .map(|cell| used_by_others(cells, index, cell));
    let cell = cell_of(cells, id)?;
    if cell.phase != Phase::Fresh {
        cell.in_use = in_use.unwrap_or(0);
    }
    Ok(cell)
}

/// Memory that must not keep what was in it.
fn is_scrubbed(cell: &Cell, index: usize, region: &MemoryRegion) -> bool {
    let phase = cell.phase;
    let never = MEMORY_COMMUNICATION | MEMORY_DEVICE;
    // What the root shares it may read at any time; at first it must not show the cell what Linux had there.
    !cell.is_in_use(index)
        && region.flags & never == 0
        && (phase == Phase::Fresh || region.flags & MEMORY_ROOT_SHARED == 0)
}

/// The next piece to clear: where, and how many bytes.
fn next_piece(cell: &mut Cell) -> Option<(HostPhysical, u64)> {
    while let Some(region) = cell
        .memory
        .iter()
        .take(cell.memory_count)
        .nth(cell.scrub.region)
    {
        if is_scrubbed(cell, cell.scrub.region, region) && cell.scrub.offset < region.size {
            let at = region.physical.wrapping_add(cell.scrub.offset);
            let to_boundary = 0x20_0000u64.wrapping_sub(at & 0x1f_ffff);
            let left = region.size.wrapping_sub(cell.scrub.offset);
            return Some((
                HostPhysical::new(at),
                SCRUB_CHUNK.min(left).min(to_boundary),
            ));
        }
        cell.scrub = Scrub {
            region: cell.scrub.region.wrapping_add(1),
            offset: 0,
        };
    }
    None
}

/// Hypercall 0x101: clears the next piece. Returns 0 when nothing is left, else 1.
pub fn scrub(cpu: &PerCpu, id: u64) -> Result<i64, Failure> {
    let mut guard = system::try_manage()?;
    let cell = look_for_others(&mut guard.cells, id)?;
    if cell.phase != Phase::Fresh && cell.phase != Phase::Dying {
        return Ok(0);
    }
    if let Some((at, bytes)) = next_piece(cell) {
        cpu.windows.clear(at, bytes);
        cell.scrub.offset = cell.scrub.offset.wrapping_add(bytes);
    }
    if next_piece(cell).is_some() {
        return Ok(1);
    }
    if cell.phase == Phase::Fresh {
        cell.phase = Phase::Stopped;
    }
    Ok(0)
}
