//! The page table of one CPU.
//!
//! Text is executable and not writable, everything else is not executable. Of the region, the areas and handover pages of
//! all CPUs and the boot page table are left out; this CPU's own area appears at [`crate::cpu::PRIVATE_BASE`], with
//! unmapped pages between its stacks. Besides: the stub page and this CPU's handover page where Linux has them, and the
//! local APIC.

use gaol_abi::handover::LaunchParameters;
use gaol_abi::image::LINK_BASE;

use crate::cpu::window::Windows;
use crate::cpu::{PRIVATE_BASE, area, private};
use crate::error::Failure;
use crate::memory::address::{HostPhysical, HostVirtual, Range};
use crate::memory::memory_types::MemoryType;
use crate::memory::page_table::{
    Access, Attributes, Host, LeafSize, Limits, PageTable, TableMemory,
};
use crate::processor::{cr4, read_cr4};
use crate::region;
use crate::system::PoolTables;
use crate::virt;
use crate::virt::contract::Virtualization;

/// Where the local APIC's registers are (Gaol refuses machines that moved them).
pub const APIC_PHYSICAL: u64 = 0xfee0_0000;

const TEXT: Attributes =
    Attributes::new(Access::READ.union(Access::EXECUTE), MemoryType::WriteBack);
const READ_ONLY: Attributes = Attributes::new(Access::READ, MemoryType::WriteBack);
const DATA: Attributes = Attributes::new(Access::READ.union(Access::WRITE), MemoryType::WriteBack);
const DEVICE: Attributes =
    Attributes::new(Access::READ.union(Access::WRITE), MemoryType::Uncacheable);

/// A CPU's page table, built.
#[derive(Clone, Copy, Debug)]
pub struct PrivateTable {
    /// CR3.
    pub root: HostPhysical,
    /// The windows in it.
    pub windows: Windows,
}

/// Host-physical address of page `page` of CPU `cpu`'s area.
#[must_use]
pub fn area_page(parameters: &LaunchParameters, cpu: u32, page: u64) -> HostPhysical {
    let area = u64::from(cpu).wrapping_mul(area::SIZE);
    region::at(
        parameters
            .cpu_areas
            .wrapping_add(area)
            .wrapping_add(page << 12),
    )
}

fn map(
    table: &mut PageTable<Host>,
    tables: &mut PoolTables<'_>,
    at: u64,
    physical: HostPhysical,
    size: u64,
    attributes: Attributes,
) -> Result<(), Failure> {
    let Some(range) = Range::new(HostVirtual::new(at), size) else {
        return Err(Failure::out_of_frames());
    };
    if range.is_empty() {
        return Ok(());
    }
    // Nobody uses the table yet.
    table
        .map(tables, range, physical, attributes)
        .map_err(crate::system::map_failure)?
        .ignore();
    Ok(())
}

/// The table that entry `index` of `table` leads to.
fn below(table: HostPhysical, address: u64, level: u32) -> HostPhysical {
    let index = (address >> level.wrapping_mul(9).wrapping_add(3)) & 0x1ff;
    let entry = region::LinearTables
        .entries(table)
        .get(index as usize)
        .map_or(0, |entry| entry.load(core::sync::atomic::Ordering::Relaxed));
    HostPhysical::new(entry & 0x000f_ffff_ffff_f000)
}

/// Builds the page table of CPU `cpu`.
pub fn build(
    parameters: &LaunchParameters,
    tables: &mut PoolTables<'_>,
    cpu: u32,
) -> Result<PrivateTable, Failure> {
    let levels = if read_cr4() & cr4::LA57 != 0 { 5 } else { 4 };
    let limits = Limits::all(LeafSize::Page2M);
    let mut table =
        PageTable::<Host>::new(tables, levels, limits).map_err(|_| Failure::out_of_frames())?;
    let image = super::parameters::image();
    let page = 4096;
    let linear = [
        (image.text, image.text_size, TEXT),
        (image.rodata, image.rodata_size, READ_ONLY),
        (image.data, image.data_size, DATA),
        (image.memory_size, page, DATA),
        (parameters.public, parameters.public_size, DATA),
        (
            parameters.config,
            (parameters.config_size.wrapping_add(page - 1)) & !(page - 1),
            READ_ONLY,
        ),
        (
            parameters.pool,
            parameters.region_size.wrapping_sub(parameters.pool),
            DATA,
        ),
    ];
    for (offset, size, attributes) in linear {
        map(
            &mut table,
            tables,
            LINK_BASE.wrapping_add(offset),
            region::at(offset),
            size,
            attributes,
        )?;
    }
    let own = [
        (PRIVATE_BASE, area::PER_CPU, 1),
        (private::NMI_STACK_END - page, area::NMI_STACK, 1),
        (
            private::DOUBLE_FAULT_STACK_END - page,
            area::DOUBLE_FAULT_STACK,
            1,
        ),
        (
            private::MACHINE_CHECK_STACK_END - page,
            area::MACHINE_CHECK_STACK,
            1,
        ),
        (
            private::STACK_END - (area::STACK_PAGES << 12),
            area::STACK,
            area::STACK_PAGES,
        ),
    ];
    for (at, first, pages) in own {
        map(
            &mut table,
            tables,
            at,
            area_page(parameters, cpu, first),
            pages << 12,
            DATA,
        )?;
    }
    if virt::Current::CONTROL_BLOCK_IS_MEMORY {
        let control_block = area_page(parameters, cpu, area::CONTROL_BLOCK);
        let at = private::CONTROL_BLOCK;
        map(&mut table, tables, at, control_block, page, DATA)?;
    }
    map(
        &mut table,
        tables,
        private::APIC,
        HostPhysical::new(APIC_PHYSICAL),
        page,
        DEVICE,
    )?;
    map(
        &mut table,
        tables,
        parameters.stub_virtual,
        HostPhysical::new(parameters.stub_physical),
        page,
        TEXT,
    )?;
    let handover = u64::from(cpu) << 12;
    map(
        &mut table,
        tables,
        parameters.handover_virtual.wrapping_add(handover),
        region::at(parameters.handover.wrapping_add(handover)),
        page,
        DATA,
    )?;
    let mut directory = table.root();
    for level in (3..=levels).rev() {
        directory = below(directory, PRIVATE_BASE, level);
    }
    let page_table = below(directory, PRIVATE_BASE, 2);
    Ok(PrivateTable {
        root: table.root(),
        windows: Windows::new(page_table, directory),
    })
}
