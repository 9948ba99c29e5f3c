//! What the primary CPU prepares for all: the frame pool, the root cell, the public pages.

use gaol_abi::config::CONSOLE_UART_PORT;
use gaol_abi::handover::LaunchParameters;
use gaol_abi::image::LINK_BASE;
use gaol_abi::outcome::Reason;
use gaol_config::CpuSet;
use gaol_config::binary::{Refusal, SystemView};
use gaol_config::ledger::Machine;

use super::private_table::APIC_PHYSICAL;
use crate::cell::root::RootShare;
use crate::cell::{confinement, lifecycle, parts, published};
use crate::device::pci::hardware;
use crate::error::Failure;
use crate::guest::{io_apic, root_failure};
use crate::iommu::service;
use crate::memory::address::{GuestPhysical, HostPhysical, Range};
use crate::memory::frames::FramePool;
use crate::memory::memory_types::{MemoryType, MemoryTypes, Mtrrs};
use crate::memory::page_table::{
    Access, Attributes, FarReserve, LeafSize, Limits, PageTable, Scratch,
};
use crate::processor::{cpuid, msr, physical_bits, read_msr};
use crate::region::{self, LinearTables};
use crate::system::{self, Far, Machinery, PoolTables, everything, map_failure};
use crate::trace::{console, public};
use crate::virt::contract::{Capabilities as _, Virtualization};
use crate::virt::{self, Capabilities, MsrMap, NestedFormat, PortMap};

/// Frames set aside for the root's far windows.
const FAR_FRAMES: u32 = 8;

const PAGE: u64 = 4096;

fn refused(refusal: Refusal) -> Failure {
    Failure::configuration(refusal.reason, refusal.detail)
}

/// Prepares everything that there is one of.
pub fn prepare(parameters: &LaunchParameters) -> Result<(), Failure> {
    let config = config(parameters)?;
    let view = SystemView::parse(config).map_err(refused)?;
    let header = view.header();
    if header.console_kind == CONSOLE_UART_PORT
        && let Some(port) = view.console_port()
    {
        console::use_uart(port, header.console_divisor as u16);
    }
    let image = super::parameters::image();
    console::line()
        .text("Gaol: taking over ")
        .number(u64::from(parameters.cpu_count))
        .text(" CPUs")
        .end();
    let mut pool = pool(parameters)?;
    let memory_types = memory_types()?;
    let capabilities = Capabilities::detect(cpuid, read_msr)?;
    let share = RootShare::new(view);
    system::set_root_share(share);
    hardware::set_ranges(view.ranges());
    let mut root_ept = root_ept(parameters, &mut pool, &memory_types, &capabilities, &share)?;
    io_apic::prepare(&view, &mut root_ept, &mut PoolTables(&mut pool))?;
    service::prepare(&view, &mut root_ept, &mut PoolTables(&mut pool))?;
    root_failure::prepare(parameters, header);
    let root_ports = root_bitmaps(&mut pool, &root_ept, &view, &share)?;
    let mut guard = system::manage_at_launch();
    guard.ledger.name_root(&header.name);
    let machine = machine(parameters, &view)?;
    let large_executable = {
        let [_, _, _, features] = cpuid(7, 0);
        let no_erratum = 1 << 6;
        features & (1 << 29) != 0 && read_msr(msr::ARCH_CAPABILITIES) & no_erratum != 0
    };
    let largest = if capabilities.maps_1g() {
        LeafSize::Page1G
    } else {
        LeafSize::Page2M
    };
    let cell_limits = Limits {
        largest,
        largest_executable: if large_executable {
            largest
        } else {
            LeafSize::Page4K
        },
    };
    set_far(&mut pool, &root_ept, &memory_types)?;
    public::set_cpu_count(parameters.cpu_count);
    public::set_tsc_khz(parameters.tsc_khz);
    public::set_image_bytes([image.text_size, image.rodata_size, image.data_size]);
    public::set_cells(1);
    system::publish_pool(&pool);
    guard.machinery = Some(Machinery {
        pool,
        machine,
        root_ept,
        root_ports,
        memory_types,
        cell_limits,
    });
    lifecycle::update_foreign(&guard.cells, None)
}

fn config(parameters: &LaunchParameters) -> Result<&'static [u8], Failure> {
    let end = parameters.config.checked_add(parameters.config_size);
    if end.is_none_or(|end| end > parameters.region_size) {
        return Err(Failure::gaol(Reason::LaunchParameters, parameters.config));
    }
    let at = LINK_BASE.wrapping_add(parameters.config);
    // SAFETY: inside the region, which is mapped; the module has written it and does not touch it any more.
    Ok(unsafe { core::slice::from_raw_parts(at as *const u8, parameters.config_size as usize) })
}

fn pool(parameters: &LaunchParameters) -> Result<FramePool<'static>, Failure> {
    let frames = parameters.region_size.saturating_sub(parameters.pool) / PAGE;
    let words = FramePool::bitmap_words(frames as usize);
    let bitmap_frames = (words as u64).saturating_mul(8).div_ceil(PAGE);
    let free = frames
        .checked_sub(bitmap_frames)
        .ok_or(Failure::out_of_frames())?;
    let at = LINK_BASE.wrapping_add(parameters.pool);
    for frame in 0..bitmap_frames {
        region::fill_frame(region::at(parameters.pool.wrapping_add(frame << 12)), 0);
    }
    // SAFETY: the first frames behind `pool`, zeroed above, become the bitmap and are never given out: the pool begins
    // behind them.
    let bitmap = unsafe { core::slice::from_raw_parts_mut(at as *mut u64, words) };
    let base = region::at(parameters.pool.wrapping_add(bitmap_frames << 12));
    FramePool::new(bitmap, base, free as usize).ok_or(Failure::out_of_frames())
}

fn memory_types() -> Result<MemoryTypes, Failure> {
    let capabilities = read_msr(msr::MTRR_CAP);
    let count = ((capabilities & 0xff) as usize).min(32);
    let mut variable = [(0u64, 0u64); 32];
    for (index, pair) in variable.iter_mut().take(count).enumerate() {
        let register = msr::MTRR_VARIABLE.wrapping_add((index as u32) << 1);
        *pair = (read_msr(register), read_msr(register.wrapping_add(1)));
    }
    let mut fixed = [0u64; 11];
    let has_fixed = capabilities & (1 << 8) != 0;
    if has_fixed {
        let registers = [
            msr::MTRR_FIXED_64K,
            msr::MTRR_FIXED_16K,
            msr::MTRR_FIXED_16K + 1,
        ];
        let all = registers
            .into_iter()
            .chain(msr::MTRR_FIXED_4K..msr::MTRR_FIXED_4K + 8);
        fixed
            .iter_mut()
            .zip(all)
            .for_each(|(value, register)| *value = read_msr(register));
    }
    MemoryTypes::new(&Mtrrs {
        capabilities,
        default_type: read_msr(msr::MTRR_DEF_TYPE),
        fixed,
        variable: variable.get(..count).unwrap_or(&[]),
        physical_bits: physical_bits(),
    })
    .map_err(|unusable| Failure::hardware(Reason::Mtrr, unusable.address.as_u64()))
}

fn range(start: u64, size: u64) -> Result<Range<GuestPhysical>, Failure> {
    Range::new(GuestPhysical::new(start), size)
        .ok_or(Failure::gaol(Reason::LaunchParameters, start))
}

/// The root's nested page table: all that it may have up to the end of what Linux knows of, with the machine's memory types; the APIC's
/// page read-only; the rest and the hypervisor's memory holes, but for the public pages, which can be read.
fn root_ept(
    parameters: &LaunchParameters,
    pool: &mut FramePool<'static>,
    memory_types: &MemoryTypes,
    capabilities: &Capabilities,
    share: &RootShare<'_>,
) -> Result<PageTable<NestedFormat>, Failure> {
    let largest = if capabilities.maps_1g() {
        LeafSize::Page1G
    } else {
        LeafSize::Page2M
    };
    let tables = &mut PoolTables(pool);
    let none = |_| Failure::out_of_frames();
    let mut ept = PageTable::<NestedFormat>::new(
        tables,
        virt::Current::nested_levels(),
        Limits::all(largest),
    )
    .map_err(none)?;
    let hole = system::zeroed_frame(tables.0)?;
    region::fill_frame(hole, u64::MAX);
    ept.set_hole_page(tables, hole).map_err(none)?;
    let mut at = 0;
    while at < parameters.physical_end {
        let (kind, run) = memory_types.uniform_run(HostPhysical::new(at));
        let left = parameters.physical_end.saturating_sub(at);
        let (is_roots, length) = share.run(at, run.min(left));
        if length == 0 {
            break;
        }
        let piece = range(at, length)?;
        let done = if is_roots {
            ept.map(tables, piece, HostPhysical::new(at), everything(kind))
        } else {
            ept.map_hole(tables, piece)
        };
        // Nobody uses the table yet, here and below.
        done.map_err(map_failure)?.ignore();
        at = at.saturating_add(length);
    }
    parts::prepare_root(share, &mut ept, tables)?;
    let read_only = |kind| Attributes::new(Access::READ, kind);
    ept.map(
        tables,
        range(APIC_PHYSICAL, PAGE)?,
        HostPhysical::new(APIC_PHYSICAL),
        read_only(MemoryType::Uncacheable),
    )
    .map_err(map_failure)?
    .ignore();
    ept.map_hole(
        tables,
        range(parameters.region_physical, parameters.region_size)?,
    )
    .map_err(map_failure)?
    .ignore();
    let public = region::at(parameters.public);
    ept.map(
        tables,
        range(public.as_u64(), parameters.public_size)?,
        public,
        read_only(MemoryType::WriteBack),
    )
    .map_err(map_failure)?
    .ignore();
    Ok(ept)
}

/// Bitmaps of the root; publishes what its CPUs are confined to. Returns the first of the port bitmaps.
fn root_bitmaps(
    pool: &mut FramePool<'static>,
    ept: &PageTable<NestedFormat>,
    view: &SystemView<'_>,
    share: &RootShare<'_>,
) -> Result<HostPhysical, Failure> {
    let none = |_| Failure::out_of_frames();
    let msrs = pool
        .allocate_contiguous(MsrMap::FRAMES, 1)
        .map_err(none)?
        .address();
    let ports = pool
        .allocate_contiguous(PortMap::FRAMES, 1)
        .map_err(none)?
        .address();
    // SAFETY: frames of the pool that are kept for ever, page-aligned, of the bitmaps' size; any content is valid.
    let (msr_bitmap, port_bitmaps) = unsafe {
        (
            &mut *(region::address_of(msrs) as *mut MsrMap),
            &mut *(region::address_of(ports) as *mut PortMap),
        )
    };
    confinement::fill_root_msrs(msr_bitmap, share);
    confinement::fill_root_ports(
        port_bitmaps,
        share,
        view.hypervisor_ports(),
        root_failure::guarded_ports(),
    );
    if let Some(root) = published(lifecycle::ROOT) {
        root.publish(ept.root(), msrs, ports);
        root.publish_behaviour(0, true, false, false);
    }
    Ok(ports)
}

fn set_far(
    pool: &mut FramePool<'static>,
    ept: &PageTable<NestedFormat>,
    memory_types: &MemoryTypes,
) -> Result<(), Failure> {
    let none = |_| Failure::out_of_frames();
    let frames = pool
        .allocate_contiguous(FAR_FRAMES as usize, 1)
        .map_err(none)?
        .address();
    let reserve = FarReserve::new(&LinearTables, frames, FAR_FRAMES);
    let scratch = Scratch::new::<NestedFormat, _>(&mut PoolTables(pool)).map_err(none)?;
    system::set_far(Far {
        table: ept.alias(),
        reserve,
        memory_types: memory_types.clone(),
        scratch,
    });
    Ok(())
}

/// The machine as the ledger must know it; the configuration makes sense, and is of this machine.
fn machine(
    parameters: &LaunchParameters,
    view: &SystemView<'static>,
) -> Result<Machine<'static>, Failure> {
    if view.describes_machine()
        && view.machine_cpus().len() as u64 != u64::from(parameters.cpu_count)
    {
        let cpus = view.machine_cpus().len() as u64;
        return Err(Failure::configuration(Reason::OtherMachine, cpus));
    }
    let machine = Machine {
        cpus: CpuSet::first(parameters.cpu_count),
        physical_limit: 1u64.checked_shl(physical_bits().min(48)).unwrap_or(1 << 48),
        hypervisor: gaol_config::address::Range::new(
            gaol_config::address::HostPhysical(parameters.region_physical),
            parameters.region_size,
        ),
        hypervisor_ports: view.hypervisor_ports(),
        system: Some(*view),
    };
    gaol_config::ledger::check_system(&machine).map_err(refused)?;
    Ok(machine)
}
