//! What cells take of the root's memory and ports, and how it goes back.
//!
//! Invariant: giving back never needs a frame, and what is taken twice, because cells share it, goes back with the last of
//! them.

use gaol_abi::MAX_CELLS;
use gaol_abi::config::{MEMORY_COMMUNICATION, MEMORY_ROOT_SHARED, MEMORY_SHARED, MemoryRegion};
use gaol_abi::outcome::Reason;

use super::processors::flush_root;
use super::{Cell, parts};
use crate::cpu::PerCpu;
use crate::error::Failure;
use crate::guest::root_failure;
use crate::iommu::service;
use crate::memory::address::{GuestPhysical, HostPhysical, Range};
use crate::memory::page_table::{Access, Attributes, Flush};
use crate::region;
use crate::system::{self, Machinery, PoolTables, map_failure};
use crate::virt::PortMap;

/// Memory that leaves the root with this cell.
pub fn taken_from_root(region: &MemoryRegion) -> bool {
    region.flags & (MEMORY_COMMUNICATION | MEMORY_ROOT_SHARED) == 0
}

/// Takes the cell's memory and ports from the root.
pub fn carve(machinery: &mut Machinery, cpu: &PerCpu, cell: &mut Cell) -> Result<(), Failure> {
    let mut flush = Flush::Nothing;
    for (index, region) in cell.regions().enumerate() {
        if !taken_from_root(region) || cell.is_in_use(index) {
            continue;
        }
        match carve_region(machinery, region) {
            Ok(more) => flush = flush.and(more),
            Err(failure) => {
                flush = flush.and(return_memory(machinery, cell, index)?);
                if flush.is_needed() {
                    flush_root(cpu)?;
                }
                return Err(failure);
            }
        }
    }
    if flush.is_needed()
        && let Err(failure) = flush_root(cpu)
    {
        return_memory(machinery, cell, cell.memory_count)?.ignore();
        return Err(failure);
    }
    set_root_ports(machinery, cell, true);
    Ok(())
}

fn carve_region(machinery: &mut Machinery, region: &MemoryRegion) -> Result<Flush, Failure> {
    service::take_from_root(machinery, region)?;
    let taken = if parts::is_part(region) {
        parts::take(machinery, region)
    } else {
        let range = root_range(region)?;
        machinery
            .root_ept
            .map_hole(&mut PoolTables(&mut machinery.pool), range)
            .map_err(map_failure)
    };
    if taken.is_err() {
        service::give_to_root(machinery, region)?;
    }
    taken
}

/// A region as a range of the root's guest-physical memory, which is host-physical.
pub fn root_range(region: &MemoryRegion) -> Result<Range<GuestPhysical>, Failure> {
    Range::new(GuestPhysical::new(region.physical), region.size)
        .ok_or(Failure::configuration(Reason::RegionInvalid, 0))
}

/// Maps the first `count` regions of the cell back to the root with the types they had, run by run, but for those that
/// another cell has as well. Never needs a frame.
pub fn return_memory(
    machinery: &mut Machinery,
    cell: &Cell,
    count: usize,
) -> Result<Flush, Failure> {
    let mut flush = Flush::Nothing;
    for (index, region) in cell.regions().enumerate().take(count) {
        if !taken_from_root(region) || cell.is_in_use(index) {
            continue;
        }
        service::give_to_root(machinery, region)?;
        flush = flush.and(if parts::is_part(region) {
            parts::give(machinery, region)?
        } else {
            map_to_root(machinery, region, false)?
        });
    }
    Ok(flush)
}

/// Maps one region to the root as it was before; `keep_tables`: for a while.
pub fn map_to_root(
    machinery: &mut Machinery,
    region: &MemoryRegion,
    keep_tables: bool,
) -> Result<Flush, Failure> {
    let mut flush = Flush::Nothing;
    let end = region.physical.saturating_add(region.size);
    let mut at = region.physical;
    while at < end {
        let (kind, run) = machinery.memory_types.uniform_run(HostPhysical::new(at));
        let most = run.min(end.saturating_sub(at));
        let (is_roots, run) =
            system::root_share().map_or((true, most), |share| share.run(at, most));
        let length = run & !0xfff;
        if length == 0 {
            break;
        }
        if !is_roots && !keep_tables {
            at = at.saturating_add(length);
            continue;
        }
        let range = Range::new(GuestPhysical::new(at), length)
            .ok_or(Failure::configuration(Reason::RegionInvalid, 0))?;
        let all = Attributes::new(Access::READ | Access::WRITE | Access::EXECUTE, kind);
        let tables = &mut PoolTables(&mut machinery.pool);
        let done = if keep_tables {
            machinery
                .root_ept
                .map_keeping_tables(tables, range, HostPhysical::new(at), all)
        } else {
            machinery
                .root_ept
                .map(tables, range, HostPhysical::new(at), all)
        };
        flush = flush.and(done.map_err(map_failure)?);
        at = at.saturating_add(length);
    }
    if keep_tables {
        return Ok(flush);
    }
    Ok(flush.and(parts::return_moderated(machinery, region.physical, end)?))
}

/// Takes the cell's ports from the root, or gives them back. The processor reads the bitmap at each access.
pub fn set_root_ports(machinery: &Machinery, cell: &Cell, taken: bool) {
    // SAFETY: the root's bitmaps, two frames that are kept for ever; changed under the management lock, and processors read
    // single bytes of them at any time.
    let bitmaps = unsafe { &mut *(region::address_of(machinery.root_ports) as *mut PortMap) };
    for range in cell.ports.iter().take(cell.port_count) {
        if taken {
            bitmaps.intercept(range.first, range.count);
        } else {
            let ports = (range.first..=u16::MAX).take(usize::from(range.count));
            ports
                .filter(|port| system::root_share().is_none_or(|share| share.has_port(*port)))
                .filter(|port| !root_failure::guards(*port))
                .for_each(|port| bitmaps.allow(port, 1));
        }
    }
}

/// Bit n: region n of `cell`, which has the number `id`, is one that another cell has as well, or is in a page that another
/// cell has a part of as well.
pub fn used_by_others(cells: &[Option<Cell>; MAX_CELLS], id: usize, cell: &Cell) -> u64 {
    let is_shared =
        |region: &MemoryRegion| region.flags & (MEMORY_ROOT_SHARED | MEMORY_SHARED) != 0;
    let mut bits = 0u64;
    for (index, region) in cell
        .regions()
        .enumerate()
        .filter(|(_, region)| is_shared(region) || parts::is_part(region))
    {
        let others = cells.iter().enumerate().filter(|(other, _)| *other != id);
        let mut regions = others
            .filter_map(|(_, cell)| cell.as_ref())
            .flat_map(Cell::regions);
        let is_same = |other: &MemoryRegion| {
            is_shared(other) && is_shared(region) && other.physical == region.physical
        };
        if regions.any(|other| is_same(other) || parts::are_in_one_page(other, region)) {
            bits |= 1u64.checked_shl(index as u32).unwrap_or(0);
        }
    }
    bits
}
