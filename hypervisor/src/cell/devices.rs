//! PCI functions of cells: how they leave the root, what the cell gets of them, and how they come back.
//!
//! Everything here is done under the management lock. Invariant: from [`claim`] to [`release`] the root finds the functions
//! absent, whatever way it takes; between these the hypervisor alone decides on what they are told.

use gaol_abi::config::{
    AssignedDevice, DEFAULT_DEVICE_VECTORS, DEVICE_NO_MASTER, MEMORY_DEVICE, MEMORY_READ,
    MEMORY_WRITE, MemoryRegion,
};
use gaol_abi::hypercall::Errno;
use gaol_abi::outcome::Reason;
use gaol_config::binary::CellView;
use gaol_config::ledger::function_number;

use super::moderated::{self, Moderated, Table, What};
use super::{Cell, Phase, carve, parts};
use crate::cpu::PerCpu;
use crate::device::pci::assigned::{self, Slot};
use crate::device::pci::function::{Decoded, Mastering, Terms};
use crate::device::pci::handover::{Clock, Fault, Progress};
use crate::device::pci::hardware::{self, Access};
use crate::device::pci::msix::MOST_VECTORS;
use crate::device::pci::{Function, FunctionId, route};
use crate::error::{Blame, Failure};
use crate::iommu::service;
use crate::launch::parameters;
use crate::memory::address::{GuestPhysical, HostPhysical, Range};
use crate::memory::page_table::{Flush, TableMemory};
use crate::processor::time_stamp;
use crate::region::{self, LinearTables};
use crate::system::{self, Machinery, PoolTables, map_failure, zeroed_frame};
use crate::trace::{console, public};
use crate::virt::PortMap;

const PAGE: u64 = 4096;

fn id_of(device: &AssignedDevice) -> FunctionId {
    FunctionId {
        segment: device.segment,
        function: device.function,
    }
}

fn failure(fault: Fault, id: FunctionId) -> Failure {
    let number = function_number(id.segment, id.function);
    match fault {
        Fault::Absent => Failure::hardware(Reason::DeviceUnknown, number),
        Fault::Bridge => Failure::configuration(Reason::DeviceIsBridge, number),
        Fault::Changed => Failure::hardware(Reason::DeviceDiffers, number),
        Fault::Stuck => Failure::timed_out(Blame::Hardware, Reason::DeviceStuck, number),
    }
}

/// Makes the functions that a new cell names its own, and looks at them. Nothing is changed in them.
pub fn claim(
    machinery: &mut Machinery,
    cpu: &PerCpu,
    cell: u32,
    view: &CellView<'_>,
) -> Result<(), Failure> {
    for device in view.devices() {
        if let Err(reason) = claim_one(machinery, cpu, cell, view, device) {
            forget(machinery, cell);
            return Err(reason);
        }
    }
    Ok(())
}

fn claim_one(
    machinery: &mut Machinery,
    cpu: &PerCpu,
    cell: u32,
    view: &CellView<'_>,
    device: &AssignedDevice,
) -> Result<(), Failure> {
    let id = id_of(device);
    let number = function_number(id.segment, id.function);
    if device.vectors > MOST_VECTORS {
        return Err(Failure::configuration(Reason::VectorBudget, number));
    }
    let full = Failure::new(
        Blame::Configuration,
        Errno::NoMemory,
        Reason::TooManyDevices,
        number,
    );
    let slot = assigned::claim(cell, id).ok_or(full)?;
    let store = zeroed_frame(&mut machinery.pool)?;
    slot.set_places(store, hardware::page_of(id));
    let terms = Terms {
        vectors: match device.vectors {
            0 => DEFAULT_DEVICE_VECTORS,
            given => given,
        },
        has_lines: !view.interrupts().is_empty(),
        mastering: mastering(view, device)?,
    };
    static STORES: LinearTables = LinearTables;
    let access = &mut Access::new(cpu.windows);
    let is_translated = terms.mastering != Mastering::Never && service::isolation(id).dma;
    if is_translated && route::speaker(access, id).is_some() {
        return Err(Failure::configuration(
            Reason::DeviceSharesRequester,
            number,
        ));
    }
    let function = Function::inspect(access, id, terms, STORES.entries(store))
        .map_err(|fault| failure(fault, id))?;
    check_description(machinery, &function)?;
    *slot.lock() = Some(function);
    Ok(())
}

/// Whether the function may be bus master. The ledger has refused what is not accepted; this looks again.
fn mastering(view: &CellView<'_>, device: &AssignedDevice) -> Result<Mastering, Failure> {
    if device.flags & DEVICE_NO_MASTER != 0 {
        return Ok(Mastering::Never);
    }
    if service::isolation(id_of(device)).is_complete() {
        return Ok(Mastering::Confined);
    }
    let number = function_number(device.segment, device.function);
    if view.accepts_unprotected_dma() {
        return Ok(Mastering::Unprotected);
    }
    Err(Failure::configuration(Reason::UnprotectedDma, number))
}

/// Says on the console and in the public pages which functions of the new cell no IOMMU holds.
pub fn tell(id: u32) {
    let mut has_any = false;
    for slot in assigned::of_cell(id) {
        let guard = slot.lock();
        let unprotected = guard
            .iter()
            .find(|function| function.mastering() == Mastering::Unprotected);
        if let Some(function) = unprotected {
            has_any = true;
            console::line()
                .text("WARNING: cell ")
                .number(id.into())
                .text(" reaches all memory of the machine by DMA of PCI function ")
                .hexadecimal(function.id().number().into())
                .end();
        }
    }
    public::set_unprotected(id, has_any);
}

/// How PCI functions of the cell find its memory; `None`: none of them may be bus master. Where one of them has no IOMMU
/// in front of it, all of them use the machine's addresses.
#[must_use]
pub fn dma(id: u32) -> Option<Mastering> {
    let all = assigned::of_cell(id).filter_map(|slot| {
        let guard = slot.lock();
        guard.as_ref().map(Function::mastering)
    });
    all.fold(None, |found, one| match (found, one) {
        (_, Mastering::Unprotected) | (Some(Mastering::Unprotected), _) => {
            Some(Mastering::Unprotected)
        }
        (found, Mastering::Never) => found,
        (_, Mastering::Confined) => Some(Mastering::Confined),
    })
}

/// What the ledger has checked are the addresses of the description; these must be the function's.
fn check_description(machinery: &Machinery, function: &Function<'_>) -> Result<(), Failure> {
    let Some(system) = machinery.machine.description() else {
        return Ok(());
    };
    let id = function.id();
    let index = system
        .devices()
        .iter()
        .position(|device| (device.segment, device.function) == (id.segment, id.function));
    let described = |found: &Decoded| {
        system.bars().iter().any(|bar| {
            Some(usize::from(bar.device)) == index
                && (bar.number, bar.address) == (found.number, found.address)
        })
    };
    if function.decoded().all(|found| described(&found)) {
        return Ok(());
    }
    Err(failure(Fault::Changed, id))
}

/// A range of the machine's memory as a region that the root has lost.
fn root_region(physical: u64, size: u64) -> MemoryRegion {
    MemoryRegion {
        name: [0; gaol_abi::NAME_LENGTH],
        physical,
        guest: physical,
        size,
        flags: MEMORY_DEVICE | MEMORY_READ | MEMORY_WRITE,
    }
}

/// Memory that the root must not reach as long as the cell has the function: its configuration space, and, when `of` is a
/// cell, those of its registers that are whole pages and that the cell has no say in.
fn kept_from_root(slot: &Slot, of: &Cell, mut visit: impl FnMut(MemoryRegion)) {
    if let Some(page) = slot.page() {
        visit(root_region(page.as_u64(), PAGE));
    }
    let guard = slot.lock();
    for bar in guard.iter().flat_map(Function::decoded) {
        let is_pages = bar.size != 0 && (bar.address | bar.size) & (PAGE - 1) == 0;
        let end = bar.address.saturating_add(bar.size);
        let is_moderated = of.regions().any(|region| {
            let touches =
                region.physical < end && region.physical.saturating_add(region.size) > bar.address;
            touches && (parts::has_widths(region) || !carve::taken_from_root(region))
        });
        if !bar.is_ports && is_pages && !is_moderated {
            visit(root_region(bar.address, bar.size));
        }
    }
}

/// Takes configuration space and registers of the cell's functions from the root. What is taken already stays so.
pub fn carve(machinery: &mut Machinery, id: u32, cell: &Cell) -> Result<Flush, Failure> {
    let mut flush = Flush::Nothing;
    let mut done = Ok(());
    for slot in assigned::of_cell(id) {
        kept_from_root(slot, cell, |region| {
            if done.is_err() {
                return;
            }
            let taken = service::take_from_root(machinery, &region);
            let hole = taken
                .and_then(|()| carve::root_range(&region))
                .and_then(|range| {
                    let tables = &mut PoolTables(&mut machinery.pool);
                    let root = &mut machinery.root_ept;
                    root.map_hole(tables, range).map_err(map_failure)
                });
            match hole {
                Ok(more) => flush = flush.and(more),
                Err(failure) => done = Err(failure),
            }
        });
    }
    set_root_ports(machinery, id, true);
    done.map(|()| flush)
}

/// Gives the root what [`carve()`] has taken. Never needs a frame.
pub fn give(machinery: &mut Machinery, id: u32, cell: &Cell) -> Result<Flush, Failure> {
    let mut flush = Flush::Nothing;
    let mut done = Ok(());
    for slot in assigned::of_cell(id) {
        kept_from_root(slot, cell, |region| {
            let given = service::give_to_root(machinery, &region);
            match given.and_then(|()| carve::map_to_root(machinery, &region, false)) {
                Ok(more) => flush = flush.and(more),
                Err(failure) => done = Err(failure),
            }
        });
    }
    set_root_ports(machinery, id, false);
    done.map(|()| flush)
}

/// Takes the functions' ports from the root, or gives them back.
fn set_root_ports(machinery: &Machinery, id: u32, taken: bool) {
    // SAFETY: the root's bitmaps, two frames that are kept for ever; changed under the management lock, and processors read
    // single bytes of them at any time.
    let bitmaps = unsafe { &mut *(region::address_of(machinery.root_ports) as *mut PortMap) };
    for slot in assigned::of_cell(id) {
        let guard = slot.lock();
        let ranges = guard.iter().flat_map(Function::decoded);
        for range in ranges.filter(|range| range.is_ports && range.size <= 256) {
            let first = range.address as u16;
            let ports = (first..=u16::MAX).take(range.size as usize);
            for port in ports {
                if taken {
                    bitmaps.intercept(port, 1);
                } else if system::root_share().is_none_or(|share| share.has_port(port)) {
                    bitmaps.allow(port, 1);
                }
            }
        }
    }
}

/// Takes the functions from the root, which has no way to them any more, and stops them; they reach no memory from then on
/// where an IOMMU is in front of them.
pub fn take(machinery: &mut Machinery, cpu: &PerCpu, id: u32, cell: &Cell) -> Result<(), Failure> {
    let access = &mut Access::new(cpu.windows);
    for slot in assigned::of_cell(id) {
        let mut guard = slot.lock();
        let Some(function) = guard.as_mut() else {
            continue;
        };
        let own = function.id();
        function.take(access).map_err(|fault| failure(fault, own))?;
        let vectors = function.vectors();
        drop(guard);
        service::claim(machinery, cpu.windows, id, own, vectors)?;
    }
    service::prepare_domain(machinery, id, cell)
}

/// The cell starts: where an IOMMU is in front of its functions, they reach its memory from now on.
pub fn attach(cpu: &PerCpu, id: u32) -> Result<(), Failure> {
    service::attach(cpu.windows, id)
}

/// The cell does not run: its functions, which were stopped before, reach nothing. To be repeated when it fails, before
/// memory changes hands.
pub fn detach(cpu: &PerCpu, id: u32) -> Result<(), Failure> {
    service::detach(cpu.windows, id)
}

/// Makes configuration space and MSI-X tables moderated ranges of the cell, before its CPUs run. To be done before any
/// other range is published: in tables, tables come first.
pub fn publish(machinery: &mut Machinery, id: u32, cell: &mut Cell) -> Result<(), Failure> {
    let table = moderated::table(id).ok_or(Failure::configuration(Reason::TooManyCells, 0))?;
    table.remove(|range| {
        let what = range.what;
        matches!(
            what,
            What::Registers { .. } | What::PciConfiguration { .. } | What::MsixTable { .. }
        )
    });
    if assigned::of_cell(id).next().is_none() {
        return Ok(());
    }
    for slot in assigned::of_cell(id) {
        let (function, pages, exact) = match slot.lock().as_ref() {
            Some(function) => (function.id(), function.table_pages(), function.table()),
            None => continue,
        };
        if let (Some(pages), Some(exact)) = (pages, exact) {
            publish_table(machinery, table, cell, (function, pages, exact))?;
        }
    }
    for range in hardware::ranges() {
        table.add(&Moderated {
            start: range.start,
            size: range.size(),
            what: What::PciConfiguration {
                segment: range.segment,
                first: range.first,
            },
        })?;
    }
    Ok(())
}

/// First address, and bytes.
type Place = (u64, u64);

fn publish_table(
    machinery: &mut Machinery,
    table: &Table,
    cell: &mut Cell,
    (id, pages, exact): (FunctionId, Place, Place),
) -> Result<(), Failure> {
    let count = cell.memory_count;
    for region in cell.memory.iter().take(count) {
        let has_widths = parts::has_widths(region);
        let (first, size) = if has_widths { exact } else { pages };
        let start = first.max(region.physical);
        let end = first
            .saturating_add(size)
            .min(region.physical.saturating_add(region.size));
        let Some(size) = end.checked_sub(start).filter(|size| *size != 0) else {
            continue;
        };
        let guest = region
            .guest
            .wrapping_add(start.wrapping_sub(region.physical));
        if region.flags & gaol_abi::config::MEMORY_COMMUNICATION != 0 {
            continue;
        }
        table.add(&Moderated {
            start: guest,
            size,
            what: What::MsixTable {
                function: id,
                physical: HostPhysical::new(start),
                writable: region.flags & MEMORY_WRITE != 0,
            },
        })?;
        if !has_widths {
            let range = Range::new(GuestPhysical::new(guest), size)
                .ok_or(Failure::configuration(Reason::RegionInvalid, 0))?;
            cell.ept
                .unmap(&mut PoolTables(&mut machinery.pool), range)
                .map_err(map_failure)?
                // No CPU uses this table yet.
                .ignore();
        }
    }
    Ok(())
}

fn clock() -> Clock {
    Clock {
        now: time_stamp(),
        millisecond: parameters::tsc_khz().into(),
    }
}

/// Goes on with the hand-over of the cell's functions. Whether there is more to do.
pub fn advance(cpu: &PerCpu, id: u32) -> Result<bool, Failure> {
    let access = &mut Access::new(cpu.windows);
    let mut is_more = false;
    for slot in assigned::of_cell(id) {
        if let Some(function) = slot.lock().as_mut() {
            let progress = function.advance(access, clock());
            let progress = progress.map_err(|fault| failure(fault, function.id()))?;
            is_more |= progress == Progress::More;
        }
    }
    Ok(is_more)
}

/// The cell has stopped: its functions do so as well, and are reset. Of a cell that ends, they begin to go back.
pub fn rest(cpu: &PerCpu, id: u32, phase: Phase) {
    let access = &mut Access::new(cpu.windows);
    for slot in assigned::of_cell(id) {
        if let Some(function) = slot.lock().as_mut() {
            if phase == Phase::Stopped {
                function.rest(access);
            } else {
                function.begin_return(access);
            }
        }
    }
}

/// Whether a function of the cell is on its way.
pub fn are_busy(id: u32) -> bool {
    assigned::of_cell(id).any(|slot| slot.lock().as_ref().is_some_and(Function::is_busy))
}

/// Whether no function of the cell, which does not run, can reach memory any more.
pub fn are_quiet(id: u32) -> bool {
    assigned::of_cell(id).all(|slot| slot.lock().as_ref().is_none_or(Function::is_quiet))
}

/// Whether all functions of the cell are as the root had them.
pub fn are_back(id: u32) -> bool {
    assigned::of_cell(id).all(|slot| {
        let guard = slot.lock();
        guard.as_ref().is_none_or(Function::is_roots)
    })
}

/// Puts the root's settings back at once, where a creation is undone.
pub fn abandon(cpu: &PerCpu, id: u32) {
    let access = &mut Access::new(cpu.windows);
    for slot in assigned::of_cell(id) {
        if let Some(function) = slot.lock().as_mut() {
            function.abandon(access);
        }
    }
}

/// The functions are the root's again, and reach its memory.
///
/// # Errors
/// When an IOMMU does not answer. Nothing has changed then.
pub fn release(machinery: &mut Machinery, cpu: &PerCpu, id: u32) -> Result<(), Failure> {
    service::release(machinery, cpu.windows, id)?;
    forget(machinery, id);
    Ok(())
}

/// The same where a creation is undone: an IOMMU that does not answer keeps what it has.
pub fn release_at_once(machinery: &mut Machinery, cpu: &PerCpu, id: u32) {
    let _ = service::release(machinery, cpu.windows, id);
    forget(machinery, id);
}

fn forget(machinery: &mut Machinery, id: u32) {
    for slot in assigned::of_cell(id) {
        let store = slot.store();
        slot.release();
        if let Some(store) = store {
            system::release(&mut machinery.pool, store);
        }
    }
}

/// Address of configuration space in memory as a cell with functions is told, 0 where there is none.
#[must_use]
pub fn configuration_base(id: u32) -> u64 {
    if assigned::of_cell(id).next().is_none() {
        return 0;
    }
    hardware::ranges()
        .find(|range| range.segment == 0)
        .map_or(0, |range| {
            range.start.wrapping_sub(u64::from(range.first) << 20)
        })
}
