//! Creating a cell: a transaction. All of it is checked and all frames are taken before anything moves; what fails
//! later is undone, and the pool is as it was.

use gaol_abi::MAX_CELLS;
use gaol_abi::config::{
    CELL_SIGNATURE, CellHeader, MAX_CELL_SIZE, MAX_MEMORY_REGIONS, MAX_PORT_RANGES,
    MEMORY_COMMUNICATION, MEMORY_DEVICE, MEMORY_EXECUTE, MEMORY_TYPE_MASK, MEMORY_TYPE_UNCACHEABLE,
    MEMORY_TYPE_WRITE_COMBINING, MEMORY_TYPE_WRITE_PROTECTED, MEMORY_TYPE_WRITE_THROUGH,
    MEMORY_WRITE, MemoryRegion, PortRange,
};
use gaol_abi::hypercall::Errno;
use gaol_abi::outcome::Reason;
use gaol_config::CpuSet;
use gaol_config::binary::{CellView, Refusal};
use gaol_config::ledger::CellId;

use super::carve::{carve, return_memory, set_root_ports, used_by_others};
use super::communication::Communication;
use super::lifecycle::{self, ROOT};
use super::processors::{flush_root, move_cpus};
use super::watchdog::Watchdog;
use super::{Cell, Phase, Scrub, confinement, devices, parts, published};
use crate::cpu::PerCpu;
use crate::error::{Blame, Failure};
use crate::guest::{io_apic, root_failure};
use crate::launch::parameters;
use crate::memory::address::{GuestPhysical, HostPhysical, Range};
use crate::memory::frames::FramePool;
use crate::memory::memory_types::MemoryType;
use crate::memory::page_table::{Access, Attributes, PageTable};
use crate::region;
use crate::system::{self, Machinery, Management, PoolTables, map_failure, release, zeroed_frame};
use crate::trace::public;
use crate::virt::contract::Virtualization;
use crate::virt::{self, MsrMap, NestedFormat, PortMap};

/// Time to answer a shutdown request where the configuration names none.
const DEFAULT_SHUTDOWN_MILLISECONDS: u32 = 1000;

fn refused(refusal: Refusal) -> Failure {
    let errno = match refusal.reason {
        Reason::CellExists => Errno::Exists,
        Reason::CpuOwned | Reason::MemoryOwned | Reason::PortsOwned => Errno::Busy,
        Reason::TooManyCells => Errno::NoMemory,
        _ => Errno::Invalid,
    };
    Failure::new(Blame::Configuration, errno, refusal.reason, refusal.detail)
}

/// Copies the configuration at the root's guest-physical address into the buffer. Returns its length, which the
/// configuration itself tells, and which is at most the buffer's.
fn copy_config(
    cpu: &PerCpu,
    buffer: &mut [u8; MAX_CELL_SIZE as usize],
    address: u64,
) -> Result<usize, Failure> {
    copy_config_from(buffer, address, |at, target| {
        if !system::is_roots(at) || at >= parameters::physical_end() {
            return None;
        }
        Some(cpu.windows.read(HostPhysical::new(at), target))
    })
}

/// The same from any memory: `read` fills a part of what it is given, from its start, and returns the bytes; `None`: there
/// is nothing of the root's.
///
/// # Errors
/// Why there is no configuration there.
pub fn copy_config_from(
    buffer: &mut [u8; MAX_CELL_SIZE as usize],
    address: u64,
    mut read: impl FnMut(u64, &mut [u8]) -> Option<usize>,
) -> Result<usize, Failure> {
    let invalid = |bytes| Failure::configuration(Reason::ConfigurationInvalid, bytes);
    let mut copied = 0usize;
    let mut wanted = size_of::<CellHeader>();
    while copied < wanted {
        let at = address.checked_add(copied as u64).ok_or(invalid(0))?;
        let target = buffer
            .get_mut(copied..wanted)
            .ok_or(invalid(copied as u64))?;
        let bytes = read(at, target).ok_or(invalid(copied as u64))?;
        copied = copied.saturating_add(bytes);
        if wanted == size_of::<CellHeader>() && copied >= wanted {
            wanted = total_size(buffer)?;
        }
    }
    Ok(wanted)
}

fn total_size(buffer: &[u8; MAX_CELL_SIZE as usize]) -> Result<usize, Failure> {
    if buffer.first_chunk::<8>() != Some(&CELL_SIGNATURE) {
        return Err(Failure::configuration(Reason::ConfigurationInvalid, 0));
    }
    let offset = core::mem::offset_of!(gaol_abi::config::Preamble, total_size);
    let size = buffer
        .get(offset..)
        .and_then(|rest| rest.first_chunk())
        .map_or(0, |bytes| u32::from_le_bytes(*bytes));
    if u64::from(size) > MAX_CELL_SIZE {
        return Err(Failure::new(
            Blame::Configuration,
            Errno::TooBig,
            Reason::ConfigurationTooBig,
            u64::from(size),
        ));
    }
    if (size as usize) < size_of::<CellHeader>() {
        return Err(Failure::configuration(
            Reason::ConfigurationInvalid,
            u64::from(size),
        ));
    }
    Ok(size as usize)
}

/// Creates the cell whose configuration is at `address`; `force`: although another cell runs locked. Returns its id.
pub fn create(cpu: &PerCpu, address: u64, force: bool) -> Result<i64, Failure> {
    let mut guard = system::try_manage()?;
    let Management {
        machinery,
        ledger,
        cells,
        draft,
        config,
        low_page,
    } = &mut *guard;
    let machinery = machinery
        .as_mut()
        .ok_or(Failure::gaol(Reason::LaunchParameters, 0))?;
    let size = copy_config(cpu, &mut config.0, address)?;
    let bytes = config
        .0
        .get(..size)
        .ok_or(Failure::gaol(Reason::ConfigurationInvalid, size as u64))?;
    let view = CellView::parse(bytes).map_err(refused)?;
    if let Some(other) = lifecycle::locked(cells)
        && !force
    {
        return Err(lifecycle::locked_by(other));
    }
    ledger.check(&machinery.machine, &view).map_err(refused)?;
    if let Some(refusal) = gaol_config::ledger::unsupported(&view) {
        return Err(refused(refusal));
    }
    let mut ports = view
        .ports()
        .iter()
        .flat_map(|range| (range.first..=u16::MAX).take(range.count.into()));
    if let Some(port) = ports.find(|port| root_failure::guards(*port)) {
        // With one of these the cell could reset the machine.
        return Err(refused(Refusal::new(Reason::PortsOwned, port.into())));
    }
    if view.cpus().contains(cpu.index) {
        return Err(Failure::configuration(
            Reason::CpuOwned,
            u64::from(cpu.index),
        ));
    }
    let id = ledger
        .free_id()
        .ok_or(Failure::configuration(Reason::TooManyCells, 0))?;
    devices::claim(machinery, cpu, id.0, &view)?;
    if let Err(failure) = build(machinery, &view, draft) {
        devices::release_at_once(machinery, cpu, id.0);
        return Err(failure);
    }
    let cell = draft.as_mut().ok_or(Failure::gaol(Reason::None, 0))?;
    cell.in_use = used_by_others(cells, MAX_CELLS, cell);
    let taken = io_apic::assign(cpu, id.0, view.interrupts());
    if let Err(failure) = taken.and_then(|()| carve(machinery, cpu, cell)) {
        io_apic::release(cpu, id.0);
        devices::release_at_once(machinery, cpu, id.0);
        dismantle(machinery, draft);
        if failure.reason() != Reason::CpuDidNotStop {
            settle(machinery);
        }
        return Err(failure);
    }
    // The check has passed and nothing has changed since: this can't fail.
    let claimed = ledger.claim(id, &view).map_err(refused);
    let joined = claimed.and_then(|()| {
        take_devices(machinery, cpu, id.0, cell)?;
        publish(id, cell, &view);
        devices::publish(machinery, id.0, cell)?;
        parts::publish(id.0, cell)?;
        lifecycle::update_foreign(cells, Some(cell))?;
        io_apic::revise(cpu, cell.cpus);
        move_cpus(cpu, cell, id.0, low_page, machinery)
    });
    // What Linux has written meanwhile.
    io_apic::revise(cpu, CpuSet::EMPTY);
    if let Err(failure) = joined {
        undo(machinery, cpu, (id.0, draft), low_page);
        io_apic::release(cpu, id.0);
        io_apic::revise(cpu, CpuSet::EMPTY);
        // Fewer ranges than before the creation: they fit.
        let _ = lifecycle::update_foreign(cells, None);
        let _ = ledger.release(id);
        return Err(failure);
    }
    let slot = cells
        .get_mut(id.0 as usize)
        .ok_or(Failure::gaol(Reason::TooManyCells, 0))?;
    core::mem::swap(slot, draft);
    settle(machinery);
    public::clear_watchdog(id.0);
    devices::tell(id.0);
    public::set_cells(ledger.cell_count() as u64);
    lifecycle::announce_change(cells);
    Ok(i64::from(id.0))
}

/// Makes the draft: tables and pages of the cell; nothing of the root's changes.
#[inline(never)]
fn build(
    machinery: &mut Machinery,
    view: &CellView<'_>,
    draft: &mut Option<Cell>,
) -> Result<(), Failure> {
    let pool = &mut machinery.pool;
    let none = |_| Failure::out_of_frames();
    let msr_bitmap = pool.allocate_contiguous(MsrMap::FRAMES, 1).map_err(none)?;
    let msr_bitmap = msr_bitmap.address();
    let ports = match pool.allocate_contiguous(PortMap::FRAMES, 1) {
        Ok(frame) => frame.address(),
        Err(_) => {
            release_frames(pool, msr_bitmap, MsrMap::FRAMES);
            return Err(Failure::out_of_frames());
        }
    };
    let ept = match PageTable::<NestedFormat>::new(
        &mut PoolTables(pool),
        virt::Current::nested_levels(),
        machinery.cell_limits,
    ) {
        Ok(ept) => ept,
        Err(_) => {
            release_frames(pool, msr_bitmap, MsrMap::FRAMES);
            release_frames(pool, ports, PortMap::FRAMES);
            return Err(Failure::out_of_frames());
        }
    };
    let milliseconds = match view.header().shutdown_milliseconds {
        0 => DEFAULT_SHUTDOWN_MILLISECONDS,
        given => given,
    };
    let cell = draft.insert(Cell {
        ept,
        msr_bitmap,
        port_bitmaps: ports,
        communication: None,
        cpus: view.cpus(),
        memory: [NO_REGION; MAX_MEMORY_REGIONS],
        memory_count: view.memory().len().min(MAX_MEMORY_REGIONS),
        ports: [PortRange { first: 0, count: 0 }; MAX_PORT_RANGES],
        port_count: view.ports().len().min(MAX_PORT_RANGES),
        phase: Phase::Fresh,
        loadable: false,
        passive: view.is_passive(),
        console: view.has_console(),
        watchdog: Watchdog::new(
            view.header().watchdog_milliseconds,
            view.header().watchdog_policy,
            parameters::tsc_khz(),
        ),
        patience: u64::from(milliseconds).saturating_mul(u64::from(parameters::tsc_khz())),
        asked: None,
        in_use: 0,
        scrub: Scrub::default(),
    });
    cell.memory
        .iter_mut()
        .zip(view.memory())
        .for_each(|(slot, region)| *slot = *region);
    cell.ports
        .iter_mut()
        .zip(view.ports())
        .for_each(|(slot, range)| *slot = *range);
    if let Err(failure) = map_memory(machinery, cell) {
        dismantle(machinery, draft);
        settle(machinery);
        return Err(failure);
    }
    fill_bitmaps(cell, view);
    Ok(())
}

const NO_REGION: MemoryRegion = MemoryRegion {
    name: [0; gaol_abi::NAME_LENGTH],
    physical: 0,
    guest: 0,
    size: 0,
    flags: 0,
};

/// Gives frames back that lie one behind the other.
fn release_frames(pool: &mut FramePool<'static>, first: HostPhysical, count: usize) {
    for frame in 0..count as u64 {
        release(
            pool,
            HostPhysical::new(first.as_u64().wrapping_add(frame << 12)),
        );
    }
}

/// How the cell's processors cache a region.
fn memory_type(flags: u64) -> MemoryType {
    match flags & MEMORY_TYPE_MASK {
        MEMORY_TYPE_UNCACHEABLE => MemoryType::Uncacheable,
        MEMORY_TYPE_WRITE_COMBINING => MemoryType::WriteCombining,
        MEMORY_TYPE_WRITE_THROUGH => MemoryType::WriteThrough,
        MEMORY_TYPE_WRITE_PROTECTED => MemoryType::WriteProtected,
        0 if flags & MEMORY_DEVICE != 0 => MemoryType::Uncacheable,
        _ => MemoryType::WriteBack,
    }
}

fn map_memory(machinery: &mut Machinery, cell: &mut Cell) -> Result<(), Failure> {
    for (index, region) in cell.memory.iter().take(cell.memory_count).enumerate() {
        if parts::has_widths(region) {
            continue;
        }
        let physical = if region.flags & MEMORY_COMMUNICATION != 0 {
            let frame = zeroed_frame(&mut machinery.pool)?;
            cell.communication = Some(Communication::new(frame));
            frame
        } else {
            HostPhysical::new(region.physical)
        };
        let range = Range::new(GuestPhysical::new(region.guest), region.size)
            .ok_or(Failure::configuration(Reason::RegionInvalid, index as u64))?;
        let mut access = Access::READ;
        access.set(Access::WRITE, region.flags & MEMORY_WRITE != 0);
        access.set(Access::EXECUTE, region.flags & MEMORY_EXECUTE != 0);
        let kind = memory_type(region.flags);
        cell.ept
            .map(
                &mut PoolTables(&mut machinery.pool),
                range,
                physical,
                Attributes::new(access, kind),
            )
            .map_err(map_failure)?
            // No CPU uses this table yet.
            .ignore();
    }
    Ok(())
}

fn fill_bitmaps(cell: &Cell, view: &CellView<'_>) {
    // SAFETY: frames of the pool that this cell keeps, page-aligned, of the bitmaps' size, and any content is valid.
    let (msrs, ports) = unsafe {
        (
            &mut *(region::address_of(cell.msr_bitmap) as *mut MsrMap),
            &mut *(region::address_of(cell.port_bitmaps) as *mut PortMap),
        )
    };
    confinement::fill_cell_msrs(msrs, view.msrs(), crate::device::apic::has_x2apic());
    confinement::fill_cell_ports(ports, cell.ports.iter().take(cell.port_count));
}

/// Takes the cell's functions from the root in two steps: how large their registers are can be seen when the root has no
/// way to them any more.
fn take_devices(
    machinery: &mut Machinery,
    cpu: &PerCpu,
    id: u32,
    cell: &Cell,
) -> Result<(), Failure> {
    if devices::carve(machinery, id, cell)?.is_needed() {
        flush_root(cpu)?;
    }
    devices::take(machinery, cpu, id, cell)?;
    if devices::carve(machinery, id, cell)?.is_needed() {
        flush_root(cpu)?;
    }
    Ok(())
}

fn publish(id: CellId, cell: &Cell, view: &CellView<'_>) {
    if let Some(target) = published(id.0) {
        target.publish(cell.ept.root(), cell.msr_bitmap, cell.port_bitmaps);
        target.publish_behaviour(
            view.header().reset_address,
            view.ignores_unassigned_ports(),
            view.has_console(),
            view.parks_whole(),
        );
        target.publish_msrs(view.msrs());
    }
}

/// Undoes a creation whose CPUs did not all join.
fn undo(
    machinery: &mut Machinery,
    cpu: &PerCpu,
    (id, draft): (u32, &mut Option<Cell>),
    low_page: &mut [u8; 4096],
) {
    let Some(cell) = draft else { return };
    // CPUs that joined go back; one that does not is lost until the next launch, and its cell's tables with it.
    let back = move_cpus(cpu, cell, ROOT, low_page, machinery);
    devices::abandon(cpu, id);
    let given = return_memory(machinery, cell, cell.memory_count)
        .and_then(|flush| Ok(flush.and(devices::give(machinery, id, cell)?)));
    set_root_ports(machinery, cell, false);
    devices::release_at_once(machinery, cpu, id);
    if back.is_ok() {
        dismantle(machinery, draft);
    }
    *draft = None;
    if given.is_ok() && flush_root(cpu).is_ok() {
        settle(machinery);
    }
}

/// Makes retired frames free and publishes the pool's figures. Every CPU has flushed since the last change.
pub fn settle(machinery: &mut Machinery) {
    machinery.pool.reclaim();
    parts::settle(machinery);
    system::publish_pool(&machinery.pool);
}

/// Gives all frames of a cell back. No CPU belongs to it any more.
#[inline(never)]
pub fn dismantle(machinery: &mut Machinery, draft: &mut Option<Cell>) {
    let Some(cell) = draft.take() else { return };
    let pool = &mut machinery.pool;
    release_frames(pool, cell.msr_bitmap, MsrMap::FRAMES);
    release_frames(pool, cell.port_bitmaps, PortMap::FRAMES);
    if let Some(communication) = cell.communication {
        release(pool, communication.frame());
    }
    cell.ept.destroy(&mut PoolTables(pool));
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: usize = MAX_CELL_SIZE as usize;

    /// A configuration of this kind that says that it is `size` bytes long, in the midst of ones.
    fn buffer(signature: [u8; 8], size: u32) -> [u8; BYTES] {
        let mut buffer = [0xff; BYTES];
        buffer[..8].copy_from_slice(&signature);
        // Behind the signature and the revision.
        buffer[12..16].copy_from_slice(&size.to_le_bytes());
        buffer
    }

    #[test]
    fn sizes_from_the_header_to_the_buffer_are_taken() {
        let header = size_of::<CellHeader>();
        for size in 0..=MAX_CELL_SIZE as u32 {
            let expected = if (size as usize) < header {
                Err(Reason::ConfigurationInvalid)
            } else {
                Ok(size as usize)
            };
            let found = total_size(&buffer(CELL_SIGNATURE, size));
            assert_eq!(
                found.map_err(|failure| failure.reason()),
                expected,
                "{size}"
            );
        }
        for size in [MAX_CELL_SIZE as u32 + 1, 1 << 31, u32::MAX] {
            let failure = total_size(&buffer(CELL_SIGNATURE, size)).unwrap_err();
            assert_eq!(failure.reason(), Reason::ConfigurationTooBig);
            assert_eq!(failure.detail(), u64::from(size));
        }
    }

    #[test]
    fn every_byte_of_the_signature_counts() {
        for bit in 0..64 {
            let mut signature = CELL_SIGNATURE;
            signature[bit / 8] ^= 1 << (bit % 8);
            let failure = total_size(&buffer(signature, 4096)).unwrap_err();
            assert_eq!(failure.reason(), Reason::ConfigurationInvalid);
        }
    }
}
