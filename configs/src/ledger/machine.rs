//! What a system configuration says of the machine and of its strict root cell, checked for itself.
//!
//! A strict root cell has what its lists name. What it needs by nature it has without naming it, moderated by the
//! hypervisor: its APICs, the IOAPICs, the IOMMUs, PCI configuration space in ports and in memory, and the memory that
//! firmware and devices reach. Of these, its list may name PCI configuration space and that memory.

use gaol_abi::config::{
    IOMMU_INCLUDES_ALL, IOMMU_SOURCE_FUNCTION, IOMMU_SOURCE_HPET, IOMMU_SOURCE_IO_APIC,
    IOMMU_SOURCE_RESERVED, IommuSource, IommuUnit, MACHINE_BAR_64, MACHINE_BAR_PORTS,
    MACHINE_BAR_PREFETCHABLE, MACHINE_CPU_SMIS, MACHINE_DEVICE_ALL_FLAGS, MachineBar,
    MachineDevice, MachineRange, RANGE_IO_APIC, RANGE_IOMMU, RANGE_PCI_CONFIGURATION, RANGE_RAM,
    RANGE_RESERVED_DMA,
};
use gaol_abi::outcome::{MachineFault, Reason};

use super::devices::function_number;
use super::memory::{INTERRUPT_CONTROLLERS, Span, check_root_region, reason_of};
use super::{Machine, msrs, ports};
use crate::binary::{Refusal, SystemView};

/// Most pins that an IOAPIC has.
const MOST_PINS: u16 = 240;
/// Configuration space of a bus in memory is two to this power.
const BUS_SHIFT: u32 = 20;
/// Base address registers of a function.
const BARS: u8 = 6;

/// Checks the system configuration of `machine`, if there is one.
///
/// # Errors
/// The first thing that is wrong with it.
pub fn check_system(machine: &Machine<'_>) -> Result<(), Refusal> {
    super::first_of(|found| system_faults(machine, found))
}

/// Visits everything that is wrong with the system configuration of `machine`.
pub fn system_faults(machine: &Machine<'_>, found: &mut dyn FnMut(Refusal)) {
    let Some(system) = machine.system else {
        return;
    };
    let mut note = |verdict: Result<(), Refusal>| {
        if let Err(refusal) = verdict {
            found(refusal);
        }
    };
    let mut judge = |fault: Option<MachineFault>, index: usize| {
        note(fault.map_or(Ok(()), |fault| Err(invalid(fault, index))));
    };
    judge(hypervisor_fault(machine), 0);
    for (index, range) in system.ranges().iter().enumerate() {
        judge(range_fault(machine, &system, range, index), index);
    }
    for (index, bar) in system.bars().iter().enumerate() {
        judge(bar_fault(machine, &system, bar), index);
    }
    for (index, cpu) in system.machine_cpus().iter().enumerate() {
        let mut before = system.machine_cpus().iter().take(index);
        let is_wrong =
            cpu.flags & !MACHINE_CPU_SMIS != 0 || before.any(|other| other.apic_id == cpu.apic_id);
        judge(is_wrong.then_some(MachineFault::Cpu), index);
    }
    for index in 0..system.iommus().len() {
        judge(iommu_fault(machine, &system, index), index);
    }
    for index in 0..system.iommu_sources().len() {
        judge(source_fault(&system, index), index);
    }
    let mut last = None;
    for (index, device) in system.devices().iter().enumerate() {
        let is_wrong = device_is_wrong(device, &mut last);
        judge(is_wrong.then_some(MachineFault::DeviceOrder), index);
    }
    root_faults(machine, &system, &mut note);
}

/// Checks the lists of a strict root cell.
fn root_faults(
    machine: &Machine<'_>,
    system: &SystemView<'_>,
    note: &mut dyn FnMut(Result<(), Refusal>),
) {
    for index in 0..system.root_memory().len() {
        note(check_root_region(machine, system.root_memory(), index));
    }
    for index in 0..system.root_ports().len() {
        let range = ports::check_list(system.root_ports(), index);
        note(range.and_then(|range| {
            let console = machine.hypervisor_ports;
            match console.is_some_and(|console| ports::ports_overlap(range, console)) {
                true => Err(Refusal::new(Reason::PortsOwned, range.first.into())),
                false => Ok(()),
            }
        }));
    }
    for index in 0..system.root_msrs().len() {
        note(msrs::check_list(system.root_msrs(), index, true).map(|_| ()));
    }
}

fn invalid(fault: MachineFault, index: usize) -> Refusal {
    let fault = u64::from(fault.0) << 32;
    Refusal::new(Reason::MachineInvalid, fault | index as u64)
}

/// The place of a piece of the machine, if it has one below `limit`.
fn place(start: u64, size: u64, limit: u64) -> Option<Span> {
    let end = start.checked_add(size)?;
    (size != 0 && end <= limit).then_some(Span::new(start, size))
}

fn hypervisor_memory(machine: &Machine<'_>) -> Option<Span> {
    let range = machine.hypervisor?;
    Some(Span::new(range.start().0, range.size()))
}

fn hypervisor_fault(machine: &Machine<'_>) -> Option<MachineFault> {
    let hypervisor = hypervisor_memory(machine)?;
    let range = machine.hypervisor?;
    let mut kept = INTERRUPT_CONTROLLERS.into_iter();
    let is_wrong = range.end().0 > machine.physical_limit
        || kept.any(|kept| kept.first_common(hypervisor).is_some());
    is_wrong.then_some(MachineFault::HypervisorPlace)
}

fn is_on_hypervisor(machine: &Machine<'_>, place: Span) -> bool {
    hypervisor_memory(machine).is_some_and(|hypervisor| place.first_common(hypervisor).is_some())
}

fn range_fault(
    machine: &Machine<'_>,
    system: &SystemView<'_>,
    range: &MachineRange,
    index: usize,
) -> Option<MachineFault> {
    if !(RANGE_RAM..=RANGE_RESERVED_DMA).contains(&range.kind) {
        return Some(MachineFault::RangeKind);
    }
    let Some(place) = place(range.physical, range.size, machine.physical_limit) else {
        return Some(MachineFault::RangePlace);
    };
    if reason_of(range) != Reason::None && is_on_hypervisor(machine, place.pages()) {
        return Some(MachineFault::HypervisorOnRange);
    }
    match range.kind {
        RANGE_PCI_CONFIGURATION => {
            let (last, first) = (range.extent >> 8, range.extent & 0xff);
            let buses = last.wrapping_sub(first).wrapping_add(1);
            let is_right = last >= first && range.size == u64::from(buses) << BUS_SHIFT;
            (!is_right).then_some(MachineFault::PciConfigurationSize)
        }
        RANGE_IO_APIC => {
            let mut before = system.ranges().iter().take(index);
            let lines = |range: &MachineRange| Span::new(range.number.into(), range.extent.into());
            let is_wrong = range.extent == 0
                || range.extent > MOST_PINS
                || range.number.checked_add(range.extent.into()).is_none()
                || before.any(|other| {
                    other.kind == RANGE_IO_APIC && lines(other).first_common(lines(range)).is_some()
                });
            is_wrong.then_some(MachineFault::IoApicPins)
        }
        _ => None,
    }
}

/// The unit's registers are among the ranges too, where [`range_fault`] judges their place.
fn iommu_fault(
    machine: &Machine<'_>,
    system: &SystemView<'_>,
    index: usize,
) -> Option<MachineFault> {
    let (unit, before) = system.iommus().get(..=index)?.split_last()?;
    let registers = |unit: &IommuUnit| Span::new(unit.registers, unit.size.into());
    let is_placed = place(unit.registers, unit.size.into(), machine.physical_limit).is_some()
        && (unit.registers | u64::from(unit.size)).is_multiple_of(gaol_abi::PAGE_SIZE);
    let is_range = system.ranges().iter().any(|range| {
        range.kind == RANGE_IOMMU
            && range.physical == unit.registers
            && range.size == u64::from(unit.size)
    });
    let is_for_all = |unit: &IommuUnit| unit.flags & IOMMU_INCLUDES_ALL != 0;
    let is_second = before.iter().any(|other| {
        registers(other).first_common(registers(unit)).is_some()
            || other.segment == unit.segment && is_for_all(other) && is_for_all(unit)
    });
    let is_wrong = unit.flags & !IOMMU_INCLUDES_ALL != 0 || !is_placed || !is_range || is_second;
    is_wrong.then_some(MachineFault::Iommu)
}

fn source_fault(system: &SystemView<'_>, index: usize) -> Option<MachineFault> {
    let (source, before) = system.iommu_sources().get(..=index)?.split_last()?;
    let unit = system.iommus().get(usize::from(source.unit));
    let is_of_segment = unit.is_some_and(|unit| unit.segment == source.segment);
    let mut same_kind = before.iter().filter(|other| other.kind == source.kind);
    let is_right = match source.kind {
        IOMMU_SOURCE_FUNCTION => {
            let own = function_number(source.segment, source.source);
            let is_own = |other: &IommuSource| function_number(other.segment, other.source) == own;
            is_of_segment && source.address == 0 && !same_kind.any(is_own)
        }
        IOMMU_SOURCE_IO_APIC => {
            is_of_segment
                && source.address != 0
                && !same_kind.any(|other| other.address == source.address)
        }
        IOMMU_SOURCE_HPET => is_of_segment && source.address == 0,
        IOMMU_SOURCE_RESERVED => {
            let mut ranges = system.ranges().iter();
            source.unit == 0
                && ranges.any(|range| {
                    range.kind == RANGE_RESERVED_DMA && range.physical == source.address
                })
        }
        _ => false,
    };
    (!is_right).then_some(MachineFault::IommuSource)
}

fn bar_fault(
    machine: &Machine<'_>,
    system: &SystemView<'_>,
    bar: &MachineBar,
) -> Option<MachineFault> {
    const FLAGS: u8 = MACHINE_BAR_PORTS | MACHINE_BAR_64 | MACHINE_BAR_PREFETCHABLE;
    if usize::from(bar.device) >= system.devices().len() {
        return Some(MachineFault::BarDevice);
    }
    let is_ports = bar.flags & MACHINE_BAR_PORTS != 0;
    let limit = if is_ports {
        1 << 16
    } else {
        machine.physical_limit
    };
    match place(bar.address, bar.size, limit) {
        Some(place) if bar.number < BARS && bar.flags & !FLAGS == 0 && bar.reserved == 0 => {
            // A register without an address is nowhere.
            let is_on = !is_ports && bar.address != 0 && is_on_hypervisor(machine, place);
            is_on.then_some(MachineFault::HypervisorOnBar)
        }
        _ => Some(MachineFault::BarPlace),
    }
}

fn device_is_wrong(device: &MachineDevice, last: &mut Option<u64>) -> bool {
    let own = function_number(device.segment, device.function);
    let is_behind = last.is_none_or(|last| last < own);
    *last = Some(own);
    !is_behind || device.flags & !MACHINE_DEVICE_ALL_FLAGS != 0
}
