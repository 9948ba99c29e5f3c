//! Loading, starting, stopping, clearing and destroying cells, and moving CPUs between them.
//!
//! Whoever waits for another CPU has a deadline. A cell that is asked to end is not waited for: the caller is told to
//! come again (`-EAGAIN`), so that no CPU of Linux is away for long.

use gaol_abi::MAX_CELLS;
use gaol_abi::communication::{CellState, Message, Reply};
use gaol_abi::config::{
    MEMORY_COMMUNICATION, MEMORY_DEVICE, MEMORY_LOADABLE, MEMORY_ROOT_SHARED, MemoryRegion,
};
use gaol_abi::hypercall::WatchdogAnswer;
use gaol_abi::hypercall::{Errno, SCRUB_CHUNK};
use gaol_abi::outcome::Reason;
use gaol_abi::public::CpuState;
use gaol_config::CpuSet;
use gaol_config::ledger::CellId;

use super::carve::{
    map_to_root, return_memory, root_range, set_root_ports, taken_from_root, used_by_others,
};
use super::communication::Facts;
use super::create::{dismantle, settle};
use super::decision::{self, Asked, Destroy, Situation, StartRefusal, Stop, StopRefusal};
use super::processors::{flush_root, has_joined, move_cpu, move_cpus, request};
use super::watchdog::{Look, Policy};
use super::{Cell, Phase, Scrub, devices};
use crate::cpu::{Events, PerCpu, events};
use crate::error::{Blame, Failure};
use crate::guest::io_apic;
use crate::launch::parameters;
use crate::memory::address::HostPhysical;
use crate::memory::page_table::Flush;
use crate::processor::time_stamp;
use crate::system::{self, Machinery, Management, PoolTables, map_failure};
use crate::trace::{console, public};

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

/// A cell that runs locked: it wants the set of cells to stay.
pub fn locked(cells: &[Option<Cell>; MAX_CELLS]) -> Option<u32> {
    let is_locked = |cell: &Option<Cell>| {
        cell.as_ref()
            .is_some_and(|cell| state_of(cell) == CellState::RunningLocked)
    };
    cells.iter().position(is_locked).map(|id| id as u32)
}

/// The refusal for the sake of a locked cell.
pub fn locked_by(id: u32) -> Failure {
    Failure::new(
        Blame::Cell,
        Errno::NotPermitted,
        Reason::CellLocked,
        u64::from(id),
    )
}

/// Tells the cells that the set of cells has changed, and waits for no answer. A cell that is asked to end is not told.
pub fn announce_change(cells: &[Option<Cell>; MAX_CELLS]) {
    for cell in cells.iter().flatten() {
        if let Some(communication) = &cell.communication
            && cell.phase == Phase::Running
            && !cell.passive
            && cell.asked.is_none()
        {
            communication.send(Message::ReconfigCompleted);
        }
    }
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
    let ran = cell.phase == Phase::Running;
    stop(cpu, id, cell, force)?;
    if ran {
        devices::rest(cpu, id as u32, Phase::Stopped);
    }
    if cell.phase != Phase::Stopped {
        return Err(Failure::caller(Errno::Busy, Reason::NotScrubbed, 0));
    }
    devices::detach(cpu, id as u32)?;
    // Nothing is loaded as long as a function may still write.
    if devices::are_busy(id as u32) {
        return Err(AGAIN);
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
    decision::start(cell.phase, cell.loadable).map_err(|refusal| {
        let (errno, reason) = match refusal {
            StartRefusal::Running => (Errno::Busy, Reason::CellRunning),
            StartRefusal::NotScrubbed => (Errno::Busy, Reason::NotScrubbed),
            StartRefusal::NotLoaded => (Errno::Invalid, Reason::NotLoaded),
        };
        Failure::caller(errno, reason, id)
    })?;
    end_loading(cpu, machinery, cell)?;
    if let Some(communication) = &cell.communication {
        let facts = Facts {
            cpus: cell.cpus.len() as u16,
            tsc_khz: parameters::tsc_khz(),
            apic_khz: events::measured_apic_khz(),
            pm_timer_port: parameters::pm_timer_port() as u16,
            console: cell.console,
            pci_configuration: devices::configuration_base(id as u32),
            dma: devices::dma(id as u32),
        };
        communication.start(&facts, cell.regions());
    }
    devices::attach(cpu, id as u32)?;
    cell.asked = None;
    cell.phase = Phase::Running;
    console::end_line(id as u32);
    if let Some(watchdog) = &mut cell.watchdog {
        watchdog.start(time_stamp());
    }
    request(cpu, cell.cpus.iter(), Events::RESET)?;
    system::publish_pool(&machinery.pool);
    Ok(0)
}

fn situation(cell: &Cell) -> Situation {
    let says = cell.communication.as_ref();
    Situation {
        phase: cell.phase,
        silent: cell.passive || says.is_none() || has_failed(cell),
        state: says.map_or(CellState::Running, |region| region.state()),
        message: says.map_or(Message::None, |region| region.message()),
        reply: says.map_or(Reply::None, |region| region.reply()),
        asked: match cell.asked {
            None => Asked::No,
            Some(deadline) if (deadline.wrapping_sub(time_stamp()) as i64) < 0 => Asked::TooLate,
            Some(_) => Asked::InTime,
        },
    }
}

fn send(cell: &Cell, message: Message) {
    if let Some(communication) = &cell.communication {
        communication.send(message);
    }
}

/// Stops the cell's CPUs, after asking it unless `force`.
fn stop(cpu: &PerCpu, id: u64, cell: &mut Cell, force: bool) -> Result<(), Failure> {
    match decision::stop(&situation(cell), force) {
        Stop::Nothing => Ok(()),
        Stop::Now => {
            request(cpu, cell.cpus.iter(), Events::STOP)?;
            io_apic::reset(cpu, id as u32);
            send(cell, Message::None);
            cell.asked = None;
            cell.phase = Phase::Stopped;
            Ok(())
        }
        Stop::Ask => {
            send(cell, Message::ShutdownRequest);
            cell.asked = Some(time_stamp().wrapping_add(cell.patience));
            Err(AGAIN)
        }
        Stop::AskAgain => {
            send(cell, Message::ShutdownRequest);
            Err(AGAIN)
        }
        Stop::Wait => Err(AGAIN),
        Stop::Refuse(StopRefusal::Locked) => Err(locked_by(id as u32)),
        Stop::Refuse(refusal) => {
            send(cell, Message::None);
            cell.asked = None;
            Err(unanswered(cell, refusal))
        }
    }
}

fn unanswered(cell: &Cell, refusal: StopRefusal) -> Failure {
    if refusal == StopRefusal::Denied {
        let (errno, reason) = (Errno::NotPermitted, Reason::ShutdownDenied);
        return Failure::new(Blame::Cell, errno, reason, 0);
    }
    let milliseconds = cell
        .patience
        .checked_div(u64::from(parameters::tsc_khz()))
        .unwrap_or(0);
    Failure::timed_out(Blame::Cell, Reason::ShutdownTimedOut, milliseconds)
}

/// Hypercall 0x102: looks at the cell's heartbeat. Whatever follows waits for no CPU of the cell.
pub fn watch(cpu: &PerCpu, id: u64) -> Result<i64, Failure> {
    let mut guard = system::try_manage()?;
    let cell = cell_of(&mut guard.cells, id)?;
    let (runs, has_failed) = (cell.phase == Phase::Running, has_failed(cell));
    let off = Ok(i64::from(WatchdogAnswer::Off.0));
    let (Some(communication), Some(watchdog)) = (&cell.communication, &mut cell.watchdog) else {
        return off;
    };
    // A cell that has crashed stands still, and is started again.
    if !runs || (has_failed && watchdog.policy() != Policy::Restart) {
        return off;
    }
    let (heartbeat, now) = (communication.heartbeat(), time_stamp());
    if watchdog.look(heartbeat, now) == Look::Alive {
        return Ok(i64::from(WatchdogAnswer::Alive.0));
    }
    public::record_expiry(id as u32, heartbeat, now);
    if watchdog.policy() == Policy::Halt {
        events::fail_all(cpu, id as u32);
    }
    Ok(i64::from(WatchdogAnswer::Expired.0))
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
    if cell.phase == Phase::Running {
        // Even if another cell is locked: this one has stopped then, and is not in its way.
        stop(cpu, id, cell, force)?;
    }
    let cleared = cell.phase != Phase::Dying || next_piece(cell).is_none();
    let phase = cell.phase;
    match decision::destroy(phase, cleared, locked(cells), force) {
        Destroy::Refuse(other) => return Err(locked_by(other)),
        Destroy::Clear => {
            let cell = cell_of(cells, id)?;
            end_loading(cpu, machinery, cell)?;
            devices::rest(cpu, id as u32, Phase::Dying);
            devices::detach(cpu, id as u32)?;
            cell.phase = Phase::Dying;
            cell.scrub = Scrub::default();
            return Err(AGAIN);
        }
        Destroy::Stop | Destroy::Again => return Err(AGAIN),
        Destroy::Free => {}
    }
    // Of a cell that never ran, the functions may be amidst their way to it.
    devices::rest(cpu, id as u32, Phase::Dying);
    devices::detach(cpu, id as u32)?;
    if !devices::are_back(id as u32) {
        return Err(AGAIN);
    }
    let cell = cell_of(cells, id)?;
    let mut away = cell.cpus.iter().filter(|index| !has_joined(*index, ROOT));
    if let (Some(index), Some(_), Phase::Dying) = (away.next(), away.next(), cell.phase) {
        // One CPU a call: each may take a while.
        move_cpu(cpu, index, ROOT, low_page, machinery)?;
        return Err(AGAIN);
    }
    move_cpus(cpu, cell, ROOT, low_page, machinery)?;
    // All of this can be repeated when a flush fails, and a repetition, which changes nothing, must flush all the same.
    // Giving memory back needs no frames.
    return_memory(machinery, cell, cell.memory_count)?.ignore();
    devices::give(machinery, id as u32, cell)?.ignore();
    flush_root(cpu)?;
    set_root_ports(machinery, cell, false);
    io_apic::release(cpu, id as u32);
    io_apic::revise(cpu, CpuSet::EMPTY);
    devices::release(machinery, cpu, id as u32)?;
    let slot = cells.get_mut(id as usize).ok_or(no_such_cell(id))?;
    core::mem::swap(slot, draft);
    *slot = None;
    update_foreign(cells, None)?;
    let _ = ledger.release(CellId(id as u32));
    dismantle(machinery, draft);
    settle(machinery);
    public::set_cells(ledger.cell_count() as u64);
    public::set_unprotected(id as u32, false);
    announce_change(cells);
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

/// Hypercall 0x101: goes on with the hand-over of functions, then clears the next piece. Returns 0 when nothing is left,
/// else 1.
pub fn scrub(cpu: &PerCpu, id: u64) -> Result<i64, Failure> {
    let mut guard = system::try_manage()?;
    let cell = look_for_others(&mut guard.cells, id)?;
    if cell.phase == Phase::Running {
        return Ok(0);
    }
    let are_devices_busy = devices::advance(cpu, id as u32)?;
    if cell.phase == Phase::Stopped {
        return Ok(i64::from(are_devices_busy));
    }
    // What a function could still write to is not cleared yet.
    let is_quiet = devices::are_quiet(id as u32);
    if is_quiet && let Some((at, bytes)) = next_piece(cell) {
        cpu.windows.clear(at, bytes);
        cell.scrub.offset = cell.scrub.offset.wrapping_add(bytes);
    }
    if next_piece(cell).is_some() || are_devices_busy {
        return Ok(1);
    }
    if cell.phase == Phase::Fresh {
        cell.phase = Phase::Stopped;
    }
    Ok(0)
}
