//! What the rest of the hypervisor asks of the IOMMUs: whose functions reach which memory, and which interrupts they may
//! raise.
//!
//! A function is the root's, with all the memory that is the root's; or *claimed* by a cell, and then it reaches nothing;
//! or *attached* to its cell, and then it reaches the cell's memory. What changes functions or memory is called under the
//! management lock; [`remap`], [`isolation`], [`read`], [`write()`] and [`poll`] by any CPU. Where no IOMMU is in front of a
//! function, nothing is done and nothing fails: whoever lets a function become bus master asks [`isolation`] first.
//!
//! Invariant: what a function must not reach any more is forgotten by its IOMMU when the call returns. The lock is held for
//! one change and what its unit needs to forget, which has a deadline; who has it waits for no CPU.

pub mod lines;

use core::sync::atomic::{AtomicBool, Ordering};

use gaol_abi::config::{
    IommuUnit, MEMORY_COMMUNICATION, MEMORY_DEVICE, MEMORY_DMA, MEMORY_WRITE, MemoryRegion,
    RANGE_IO_APIC, RANGE_IOMMU, RANGE_RAM,
};
use gaol_abi::hypercall::Errno;
use gaol_abi::outcome::Reason;
use gaol_config::CpuSet;
use gaol_config::binary::SystemView;
use spin::mutex::TicketMutex;

use super::vtd::fleet::{Fleet, Place, Refused};
use super::vtd::hardware::Hardware;
use super::vtd::unit::UnitError;
use crate::cell::Cell;
use crate::cell::moderated::{self, Moderated, What};
use crate::cpu::window::Windows;
use crate::device::pci::FunctionId;
use crate::device::pci::message::Message;
use crate::error::{Blame, Failure};
use crate::guest::io_apic::Processors;
use crate::launch::parameters;
use crate::memory::address::{GuestPhysical, HostPhysical, Range};
use crate::memory::frames::Frame;
use crate::memory::page_table::{PageTable, Tables};
use crate::processor::{self, time_stamp};
use crate::region::{self, LinearTables};
use crate::set_once::SetOnce;
use crate::system::{self, Machinery, PoolTables, map_failure};
use crate::trace::{events, public};
use crate::virt::NestedFormat;

/// Milliseconds that a unit has for what it is told.
const DEADLINE: u64 = 100;
const PAGE: u64 = 4096;
/// The root's domain ends at a multiple of this: larger pages take fewer frames.
const END_ALIGNMENT: u64 = 1 << 30;

static FLEET: TicketMutex<Fleet> = TicketMutex::new(Fleet::new());
/// What the configuration says of the machine.
static SYSTEM: SetOnce<SystemView<'static>> = SetOnce::new();
/// There are units, and they are the hypervisor's.
static IS_ON: AtomicBool = AtomicBool::new(false);

/// What the IOMMUs do for a function.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Isolation {
    /// It reaches the memory of its owner only.
    pub dma: bool,
    /// It raises the interrupts only that its owner may have.
    pub interrupts: bool,
}

impl Isolation {
    /// The function may become bus master in a cell without being trusted.
    #[must_use]
    pub const fn is_complete(self) -> bool {
        self.dma && self.interrupts
    }
}

/// The machine, through windows of this CPU; without them tables only.
struct Hands(Option<Windows>);

impl Hardware for Hands {
    fn read_32(&self, at: u64) -> u32 {
        let read = |windows: Windows| windows.read_device(HostPhysical::new(at), 4) as u32;
        self.0.map_or(u32::MAX, read)
    }

    fn write_32(&self, at: u64, value: u32) {
        if let Some(windows) = self.0 {
            windows.write_device(HostPhysical::new(at), 4, value.into());
        }
    }

    fn read_64(&self, at: u64) -> u64 {
        let read = |windows: Windows| windows.read_device(HostPhysical::new(at), 8);
        self.0.map_or(u64::MAX, read)
    }

    fn write_64(&self, at: u64, value: u64) {
        if let Some(windows) = self.0 {
            windows.write_device(HostPhysical::new(at), 8, value);
        }
    }

    fn flush_line(&self, at: HostPhysical) {
        if region::contains(at) {
            processor::flush_cache_line(region::address_of(at));
        }
    }

    fn now(&self) -> u64 {
        time_stamp()
    }

    fn pause(&self) {
        processor::pause();
    }

    fn read_root(&self, at: u64) -> Option<u64> {
        let windows = self.0.filter(|_| is_roots(at))?;
        Some(windows.read_u64(HostPhysical::new(at)))
    }

    fn write_root(&self, at: u64, value: u64) {
        if let Some(windows) = self.0.filter(|_| is_roots(at)) {
            windows.write_memory(HostPhysical::new(at & !7), 8, value);
        }
    }

    fn write_root_32(&self, at: u64, value: u32) {
        if let Some(windows) = self.0.filter(|_| is_roots(at)) {
            windows.write_memory(HostPhysical::new(at & !3), 4, value.into());
        }
    }
}

/// Memory of the root's, and no registers that only the hypervisor reaches.
fn is_roots(at: u64) -> bool {
    at < parameters::physical_end() && system::is_roots(at) && !is_register(at)
}

fn is_register(at: u64) -> bool {
    let ranges = SYSTEM.get().map_or(&[][..], SystemView::ranges);
    let mut registers = ranges
        .iter()
        .filter(|range| matches!(range.kind, RANGE_IOMMU | RANGE_IO_APIC));
    registers.any(|range| at.wrapping_sub(range.physical) < range.size)
}

fn failure(refused: Refused, function: u64) -> Failure {
    match refused {
        Refused::OutOfFrames => Failure::out_of_frames(),
        Refused::Unit(base, error) => match error {
            UnitError::TranslatesForLinux => Failure::hardware(Reason::IommuInUse, base),
            UnitError::NoQueue => Failure::hardware(Reason::IommuCapability, base),
            UnitError::SourcesNotVerified => Failure::hardware(Reason::IommuSources, base),
            _ => Failure::timed_out(Blame::Hardware, Reason::IommuStuck, base),
        },
        Refused::Capability(base) => Failure::hardware(Reason::IommuCapability, base),
        Refused::ReservedMemory => Failure::configuration(Reason::DeviceHasReservedDma, function),
        Refused::Full => Failure::new(
            Blame::Configuration,
            Errno::NoMemory,
            Reason::IommuFull,
            function,
        ),
        Refused::Memory => Failure::configuration(Reason::RegionInvalid, 0),
    }
}

fn is_on() -> bool {
    IS_ON.load(Ordering::Acquire)
}

/// Runs `action` with the units, and publishes what came of it.
fn with<R>(action: impl FnOnce(&mut Fleet) -> R) -> R {
    let mut fleet = FLEET.lock();
    let result = action(&mut fleet);
    publish(&mut fleet);
    result
}

/// Runs `action`, which changes nobody's functions or memory, in an exit: publishes only when there was trouble.
fn look<R>(action: impl FnOnce(&mut Fleet) -> R) -> R {
    let mut fleet = FLEET.lock();
    let before = fleet.troubles();
    let result = action(&mut fleet);
    if fleet.troubles() != before {
        publish(&mut fleet);
    }
    result
}

fn publish(fleet: &mut Fleet) {
    let left_out = fleet.faults.take_fresh(events::device_fault);
    if left_out != 0 {
        events::left_out(left_out);
    }
    public::set_iommus(&fleet.figures(), &fleet.faults.devices);
}

const ALL: Processors = Processors(CpuSet::EMPTY);

/// At launch: takes the units' registers from the root's page table, which no CPU uses yet.
///
/// # Errors
/// When there are no frames.
pub fn prepare<T: Tables>(
    view: &SystemView<'static>,
    root: &mut PageTable<NestedFormat>,
    tables: &mut T,
) -> Result<(), Failure> {
    SYSTEM.set(*view);
    for (number, unit) in (0u8..).zip(view.iommus()) {
        let invalid = Failure::gaol(Reason::LaunchParameters, unit.registers);
        let registers = Range::new(GuestPhysical::new(unit.registers), unit.size.into());
        let registers = registers.ok_or(invalid)?;
        root.unmap(tables, registers).map_err(map_failure)?.ignore();
        let range = Moderated {
            start: unit.registers,
            size: unit.size.into(),
            what: What::Iommu(number),
        };
        moderated::table(0)
            .and_then(|table| table.add(&range).ok())
            .ok_or(invalid)?;
    }
    Ok(())
}

fn contiguous(tables: &mut PoolTables<'_>, count: usize) -> Option<HostPhysical> {
    let alignment = (count as u64).checked_mul(PAGE)?;
    let frames = tables.0.allocate_contiguous(count, alignment).ok();
    frames.map(Frame::address)
}

/// At launch, when all of Linux' CPUs are in the hypervisor: takes the units over.
///
/// # Errors
/// Why not; they are as Linux had them then.
pub fn start(machinery: &mut Machinery, windows: Windows) -> Result<(), Failure> {
    let Some(view) = SYSTEM.get() else {
        return Ok(());
    };
    let units: &[IommuUnit] = view.iommus();
    if units.is_empty() {
        return Ok(());
    }
    let end = parameters::physical_end();
    let millisecond = u64::from(parameters::tsc_khz());
    let place = Place {
        units,
        sources: view.iommu_sources(),
        end: end.checked_next_multiple_of(END_ALIGNMENT).unwrap_or(end),
        memory_end: view
            .ranges()
            .iter()
            .filter(|range| range.kind == RANGE_RAM)
            .map(|range| range.physical.saturating_add(range.size))
            .fold(0, u64::max),
        deadline: millisecond.saturating_mul(DEADLINE),
    };
    let own = core::iter::once((region::physical().as_u64(), region::size()));
    let registers = view
        .ranges()
        .iter()
        .filter(|range| matches!(range.kind, RANGE_IOMMU | RANGE_IO_APIC))
        .map(|range| {
            (
                range.physical & !(PAGE - 1),
                range.size.next_multiple_of(PAGE),
            )
        });
    let started = with(|fleet| {
        fleet.faults.set_second(millisecond.saturating_mul(1000));
        fleet.start(
            &Hands(Some(windows)),
            &mut PoolTables(&mut machinery.pool),
            &place,
            own.chain(registers),
            |tables, count| contiguous(tables, count).ok_or(crate::memory::frames::OutOfFrames),
            &ALL,
        )
    });
    started.map_err(|refused| failure(refused, 0))?;
    IS_ON.store(true, Ordering::Release);
    Ok(())
}

/// Gives the units back to Linux, whose CPUs are all in the hypervisor.
pub fn give_back(windows: Windows) {
    if is_on() {
        // A unit that does not answer stays as it is: Linux is told by what it finds.
        let _ = with(|fleet| fleet.give_back(&Hands(Some(windows)), &LinearTables));
        IS_ON.store(false, Ordering::Release);
    }
}

/// Whether the units are Linux'.
#[must_use]
pub fn are_back() -> bool {
    !is_on()
}

/// What the IOMMUs do for the function.
#[must_use]
pub fn isolation(function: FunctionId) -> Isolation {
    if !is_on() {
        return Isolation::default();
    }
    let (dma, interrupts) = FLEET.lock().isolation(function);
    Isolation { dma, interrupts }
}

/// Gives the function to a cell that is being created, with room for `vectors` interrupts: it reaches nothing from now on.
///
/// # Errors
/// When there is no frame or no room; nothing has changed then.
pub fn claim(
    machinery: &mut Machinery,
    windows: Windows,
    cell: u32,
    function: FunctionId,
    vectors: u16,
) -> Result<(), Failure> {
    if !is_on() {
        return Ok(());
    }
    let tables = &mut PoolTables(&mut machinery.pool);
    let claimed =
        with(|fleet| fleet.claim(&Hands(Some(windows)), tables, cell, function, vectors, &ALL));
    claimed.map_err(|refused| failure(refused, function.number().into()))
}

/// Makes the domain of a cell that has functions: its memory that is for DMA. No function is attached to it yet.
///
/// # Errors
/// When there are no frames; nothing has changed then.
pub fn prepare_domain(machinery: &mut Machinery, number: u32, cell: &Cell) -> Result<(), Failure> {
    if !is_on() {
        return Ok(());
    }
    let is_for_dma = |region: &&MemoryRegion| {
        region.flags & (MEMORY_DMA | MEMORY_COMMUNICATION | MEMORY_DEVICE) == MEMORY_DMA
    };
    let memory = cell.regions().filter(is_for_dma).map(|region| {
        let is_writable = region.flags & MEMORY_WRITE != 0;
        (region.guest, region.physical, region.size, is_writable)
    });
    let tables = &mut PoolTables(&mut machinery.pool);
    with(|fleet| fleet.prepare_domain(&Hands(None), tables, number, memory))
        .map_err(|refused| failure(refused, 0))
}

/// The cell starts: its functions reach its memory.
///
/// # Errors
/// When an IOMMU does not answer.
pub fn attach(windows: Windows, cell: u32) -> Result<(), Failure> {
    if !is_on() {
        return Ok(());
    }
    with(|fleet| fleet.attach(&Hands(Some(windows)), &LinearTables, cell))
        .map_err(|refused| failure(refused, 0))
}

/// The cell has stopped: its functions reach nothing, and have no interrupts.
///
/// # Errors
/// When an IOMMU does not answer: then its memory must not change hands.
pub fn detach(windows: Windows, cell: u32) -> Result<(), Failure> {
    if !is_on() {
        return Ok(());
    }
    with(|fleet| {
        let hands = Hands(Some(windows));
        fleet.poll(&hands, &LinearTables);
        fleet.detach(&hands, &LinearTables, cell)
    })
    .map_err(|refused| failure(refused, 0))
}

/// Gives all functions of a cell back to the root, and its domain's frames to the pool, as retired ones.
///
/// # Errors
/// When an IOMMU does not answer: the frames stay taken then.
pub fn release(machinery: &mut Machinery, windows: Windows, cell: u32) -> Result<(), Failure> {
    if !is_on() {
        return Ok(());
    }
    let tables = &mut PoolTables(&mut machinery.pool);
    with(|fleet| fleet.release(&Hands(Some(windows)), tables, cell, &ALL))
        .map_err(|refused| failure(refused, 0))
}

/// The pages that a region is in.
const fn pages(region: &MemoryRegion) -> (u64, u64) {
    let start = region.physical & !(PAGE - 1);
    let end = region.physical.saturating_add(region.size);
    let end = end.saturating_add(PAGE - 1) & !(PAGE - 1);
    (start, end.saturating_sub(start))
}

fn set_root_memory(
    machinery: &mut Machinery,
    region: &MemoryRegion,
    is_roots: bool,
) -> Result<(), Failure> {
    if !is_on() {
        return Ok(());
    }
    let tables = &mut PoolTables(&mut machinery.pool);
    with(|fleet| fleet.set_root_memory(&Hands(None), tables, pages(region), is_roots))
        .map_err(|refused| failure(refused, 0))
}

/// Functions of the root reach the region no more, when [`forget_root`] has returned.
///
/// # Errors
/// When there are no frames; nothing has changed then.
pub fn take_from_root(machinery: &mut Machinery, region: &MemoryRegion) -> Result<(), Failure> {
    set_root_memory(machinery, region, false)
}

/// Functions of the root reach the region again. Never needs a frame.
///
/// # Errors
/// Never, of a region that was taken.
pub fn give_to_root(machinery: &mut Machinery, region: &MemoryRegion) -> Result<(), Failure> {
    set_root_memory(machinery, region, true)
}

/// The units forget what the root has lost.
///
/// # Errors
/// When one does not answer: memory must not change hands then.
pub fn forget_root(windows: Windows) -> Result<(), Failure> {
    if !is_on() {
        return Ok(());
    }
    with(|fleet| fleet.forget_root(&Hands(Some(windows)), &LinearTables))
        .map_err(|refused| failure(refused, 0))
}

/// Looks at all interrupts of the root's once more, `leaving` being processors that it has no longer.
pub fn revise(windows: Windows, leaving: CpuSet) {
    if is_on() {
        let receivers = Processors(leaving);
        // A unit that fails is counted, and whoever claims or detaches functions of it fails.
        let _ = with(|fleet| fleet.revise(&Hands(Some(windows)), &LinearTables, &receivers));
    }
}

/// What the function has to be told to send so that two to the `order` messages arrive as `message` says, which was
/// checked against the cell's CPUs; `None`: they are blocked. `number` is the first of these interrupts of the function,
/// which counts from 0: of an MSI-X table the index of its entry, else 0.
#[must_use]
pub fn remap(
    windows: Windows,
    function: FunctionId,
    number: u16,
    order: u8,
    message: Option<Message>,
) -> Option<Message> {
    if !is_on() {
        return message;
    }
    let interrupt = message.map(|message| message.receiver());
    let remapped = look(|fleet| {
        let hands = Hands(Some(windows));
        fleet.remap(&hands, &LinearTables, function, (number, order), interrupt)
    });
    match remapped {
        Ok(remapped) => remapped.map(|remapped| Message {
            address: remapped.address,
            data: remapped.data,
        }),
        Err(_) => message,
    }
}

/// Reads a register of a unit as the root sees it.
#[must_use]
pub fn read(windows: Windows, unit: u8, offset: u64, width: u8) -> u64 {
    look(|fleet| {
        let hands = Hands(Some(windows));
        fleet.read(&hands, &LinearTables, unit.into(), offset, width)
    })
}

/// Writes a register of a unit as the root may.
pub fn write(windows: Windows, unit: u8, at: (u64, u8), value: u64) {
    look(|fleet| {
        let hands = Hands(Some(windows));
        fleet.write(&hands, &LinearTables, unit.into(), at, value, &ALL);
    });
}

/// Takes what the units have recorded of faults.
pub fn poll(windows: Windows) {
    if is_on() {
        look(|fleet| fleet.poll(&Hands(Some(windows)), &LinearTables));
    }
}
