//! PCI functions, their interrupt vectors, and interrupt lines.

use gaol_abi::config::{
    AssignedDevice, DEFAULT_DEVICE_VECTORS, DEVICE_NO_MASTER, IOMMU_SOURCE_HPET,
    IOMMU_SOURCE_IO_APIC, Interrupt, MACHINE_DEVICE_BRIDGE, MACHINE_DEVICE_SHARES_REQUESTER,
    MachineDevice, RANGE_IO_APIC,
};
use gaol_abi::outcome::Reason;

use super::{CellId, Ledger, Machine};
use crate::binary::{CellView, Refusal, SystemView};

/// Interrupt vectors of a CPU that its cell can use for devices; the rest are exceptions, and the cell's own.
pub const VECTORS_PER_CPU: u32 = 192;

/// Segment and function as one number, as details have them.
#[must_use]
pub fn function_number(segment: u16, function: u16) -> u64 {
    u64::from(segment) << 16 | u64::from(function)
}

fn number(device: &AssignedDevice) -> u64 {
    function_number(device.segment, device.function)
}

/// The PCI function of the number, as the system describes it.
#[must_use]
pub fn find_device<'a>(system: &SystemView<'a>, wanted: u64) -> Option<&'a MachineDevice> {
    let mut devices = system.devices().iter();
    devices.find(|device| function_number(device.segment, device.function) == wanted)
}

/// Whether the cell names the PCI function.
#[must_use]
pub fn has_device(cell: &CellView<'_>, wanted: u64) -> bool {
    cell.devices().iter().any(|device| number(device) == wanted)
}

/// Vectors that the function has at the most.
#[must_use]
pub fn vectors_of(device: &MachineDevice) -> u16 {
    device.msi_vectors.max(device.msix_vectors)
}

/// Vectors that the cell's device takes; none as long as nobody knows how many it has, and the cell does not say.
#[must_use]
pub fn vectors_wanted(machine: &Machine<'_>, device: &AssignedDevice) -> u32 {
    let known = machine
        .system
        .and_then(|system| find_device(&system, number(device)));
    let has = known.map_or(0, vectors_of);
    match device.vectors {
        0 => has.min(DEFAULT_DEVICE_VECTORS).into(),
        some => some.into(),
    }
}

/// Vectors that all CPUs of the cell have for devices and lines.
#[must_use]
pub fn vector_budget(cell: &CellView<'_>) -> u32 {
    cell.cpus().len().saturating_mul(VECTORS_PER_CPU)
}

/// Whether the cell may make the function bus master, and no IOMMU keeps it in the cell's memory. Of a machine of which
/// nothing is known this can't be said: no.
#[must_use]
pub fn is_unprotected(machine: &Machine<'_>, device: &AssignedDevice) -> bool {
    machine.system.is_some() && device.flags & DEVICE_NO_MASTER == 0 && !machine.confines(device)
}

/// Whether an IOMMU would take what the function does for what another does: its bridge, which is the root's, so that the
/// function would reach the root's memory, and not its cell's (VT-d specification, "Source Identifier"; PCI Express to
/// PCI/PCI-X Bridge specification, "Transaction Ownership"); or an interrupt controller, whose interrupts it could raise.
fn shares_requester(machine: &Machine<'_>, device: &AssignedDevice, known: &MachineDevice) -> bool {
    let is_behind_a_bridge = known.flags & MACHINE_DEVICE_SHARES_REQUESTER != 0;
    (is_behind_a_bridge || is_controllers_address(machine, device))
        && device.flags & DEVICE_NO_MASTER == 0
        && machine.confines(device)
}

/// Whether an IOAPIC or an HPET sends its messages under the function's address.
fn is_controllers_address(machine: &Machine<'_>, device: &AssignedDevice) -> bool {
    let sources = machine.system.map_or(&[][..], |it| it.iommu_sources());
    sources.iter().any(|source| {
        [IOMMU_SOURCE_IO_APIC, IOMMU_SOURCE_HPET].contains(&source.kind)
            && function_number(source.segment, source.source) == number(device)
    })
}

impl Ledger {
    /// The cell that a PCI function belongs to.
    #[must_use]
    pub fn owner_of_device(&self, wanted: u64) -> CellId {
        self.owner(|holding| {
            let mut devices = holding.devices.get().iter();
            devices.any(|device| number(device) == wanted)
        })
    }

    /// The cell that an interrupt line belongs to.
    #[must_use]
    pub fn owner_of_interrupt(&self, line: u32) -> CellId {
        self.owner(|holding| {
            holding
                .interrupts
                .get()
                .contains(&Interrupt { number: line })
        })
    }

    pub(super) fn check_device(
        &self,
        machine: &Machine<'_>,
        cell: &CellView<'_>,
        index: usize,
    ) -> Result<(), Refusal> {
        let Some((device, before)) = cell
            .devices()
            .get(..=index)
            .and_then(<[AssignedDevice]>::split_last)
        else {
            return Ok(());
        };
        let own = number(device);
        let refuse = |reason| Err(Refusal::new(reason, own));
        if self.owner_of_device(own) != CellId::ROOT
            || before.iter().any(|other| number(other) == own)
        {
            return refuse(Reason::DeviceOwned);
        }
        let taken = before
            .iter()
            .chain([device])
            .map(|device| vectors_wanted(machine, device))
            .fold(cell.interrupts().len() as u32, u32::saturating_add);
        let is_over = taken > vector_budget(cell);
        if let Some(system) = machine.description() {
            let Some(known) = find_device(&system, own) else {
                return refuse(Reason::DeviceUnknown);
            };
            if known.flags & MACHINE_DEVICE_BRIDGE != 0 {
                return refuse(Reason::DeviceIsBridge);
            }
            if shares_requester(machine, device, known) {
                return refuse(Reason::DeviceSharesRequester);
            }
            check_group(&system, cell, known)?;
            if device.vectors > vectors_of(known) {
                return refuse(Reason::VectorBudget);
            }
        }
        if is_over {
            return refuse(Reason::VectorBudget);
        }
        if is_unprotected(machine, device) && !cell.accepts_unprotected_dma() {
            return refuse(Reason::UnprotectedDma);
        }
        Ok(())
    }

    pub(super) fn check_interrupt(
        &self,
        machine: &Machine<'_>,
        lines: &[Interrupt],
        index: usize,
    ) -> Result<(), Refusal> {
        let Some(line) = lines.get(index) else {
            return Ok(());
        };
        let refuse = |reason| Err(Refusal::new(reason, line.number.into()));
        if let Some(system) = machine.description()
            && !has_line(&system, line.number)
        {
            return refuse(Reason::InterruptUnknown);
        }
        if self.owner_of_interrupt(line.number) != CellId::ROOT
            || lines.iter().take(index).any(|other| other == line)
        {
            return refuse(Reason::InterruptOwned);
        }
        Ok(())
    }
}

/// Checks that the cell has all functions of the group, but for the bridges that lead to it, which stay with the root cell.
/// A bridge that is a function of the same device leads elsewhere, and nothing keeps the two apart.
fn check_group(
    system: &SystemView<'_>,
    cell: &CellView<'_>,
    member: &MachineDevice,
) -> Result<(), Refusal> {
    for other in system.devices() {
        let own = function_number(other.segment, other.function);
        let is_same_device =
            other.segment == member.segment && (other.function ^ member.function) >> 3 == 0;
        let leads_to_it = other.flags & MACHINE_DEVICE_BRIDGE != 0 && !is_same_device;
        if other.group == member.group && !leads_to_it && !has_device(cell, own) {
            return Err(Refusal::new(Reason::DeviceGroupSplit, own));
        }
    }
    Ok(())
}

/// Whether an IOAPIC has the line.
fn has_line(system: &SystemView<'_>, line: u32) -> bool {
    system.ranges().iter().any(|range| {
        range.kind == RANGE_IO_APIC
            && line
                .checked_sub(range.number)
                .is_some_and(|pin| pin < u32::from(range.extent))
    })
}
