//! The IOMMUs of the machine at hand, as a system configuration carries them to the hypervisor.
//!
//! Nobody writes them down: what is behind which unit changes with every card, and a wrong line would let a device reach
//! everything. `gaol enable` reads them from the firmware's table each time, and adds them to whatever configuration it
//! was given. The hypervisor checks them again as it checks everything.

use gaol_abi::PAGE_SIZE;
use gaol_abi::config::{
    IOMMU_INCLUDES_ALL, IOMMU_SOURCE_FUNCTION, IOMMU_SOURCE_HPET, IOMMU_SOURCE_IO_APIC,
    IOMMU_SOURCE_RESERVED, IommuSource, IommuUnit, MAX_IOMMU_SOURCES, MAX_IOMMUS,
    MAX_MACHINE_RANGES, MachineRange, RANGE_IOMMU, RANGE_RESERVED_DMA,
};
use gaol_machine::acpi::dmar::ScopeKind;
use gaol_machine::iommu::{Iommu, ScopedDevice};
use gaol_machine::machine::IoApic;
use gaol_machine::pci::Address;

use crate::binary::SystemView;
use crate::encode::{Binary, System};

/// The configuration with the IOMMUs of a machine with these IOAPICs, in place of those that it may have. What does not
/// fit is told in `notes`: then no IOMMU is added, and no function is isolated.
#[must_use]
pub fn with_iommus(
    view: &SystemView<'_>,
    iommu: Option<&Iommu>,
    io_apics: &[IoApic],
    notes: &mut Vec<String>,
) -> Binary {
    let mut system = System::from(view);
    system.iommus.clear();
    system.iommu_sources.clear();
    let Some(iommu) = iommu else {
        return system.encode();
    };
    let without = system.clone();
    for (number, unit) in (0u16..).zip(&iommu.units) {
        system.iommus.push(IommuUnit {
            registers: unit.registers.start(),
            size: u32::try_from(unit.registers.size()).unwrap_or(0),
            segment: unit.segment,
            flags: if unit.includes_all {
                IOMMU_INCLUDES_ALL
            } else {
                0
            },
        });
        add_range(
            &mut system,
            RANGE_IOMMU,
            unit.registers.start(),
            unit.registers.size(),
        );
        let functions = unit.functions.iter().filter(|_| !unit.includes_all);
        for function in functions {
            let source = source(number, IOMMU_SOURCE_FUNCTION, *function);
            system.iommu_sources.push(source);
        }
        for device in &unit.devices {
            if let Some(source) = controller(number, unit.segment, device, io_apics) {
                system.iommu_sources.push(source);
            }
        }
    }
    for reserved in &iommu.reserved {
        let (start, size) = (reserved.span.start(), reserved.span.size());
        add_range(&mut system, RANGE_RESERVED_DMA, start, size);
        for address in reserved.devices.iter().filter_map(|device| device.address) {
            system.iommu_sources.push(IommuSource {
                address: start,
                ..source(0, IOMMU_SOURCE_RESERVED, address)
            });
        }
    }
    let fits = system.iommus.len() <= MAX_IOMMUS
        && system.iommu_sources.len() <= MAX_IOMMU_SOURCES
        && system.ranges.len() <= MAX_MACHINE_RANGES;
    if !fits {
        notes.push(format!(
            "The machine has more IOMMUs, or devices behind them, than Gaol knows of ({MAX_IOMMUS} and {MAX_IOMMU_SOURCES}); none is used."
        ));
        return without.encode();
    }
    system.encode()
}

fn source(unit: u16, kind: u16, address: Address) -> IommuSource {
    IommuSource {
        address: 0,
        unit,
        kind,
        segment: address.segment,
        source: address.requester_id(),
    }
}

/// An IOAPIC or HPET, whose requests come from where the firmware says.
fn controller(
    unit: u16,
    segment: u16,
    device: &ScopedDevice,
    io_apics: &[IoApic],
) -> Option<IommuSource> {
    // Without a bridge on the way it is where the path says, whether or not there is a function.
    let address = device.address.or_else(|| {
        let [(number, function)] = device.scope.path[..] else {
            return None;
        };
        Some(Address {
            segment,
            bus: device.scope.start_bus,
            device: number,
            function,
        })
    })?;
    match device.scope.kind {
        ScopeKind::IoApic => {
            let mut known = io_apics.iter();
            let io_apic = known.find(|io_apic| io_apic.id == device.scope.enumeration_id)?;
            Some(IommuSource {
                address: io_apic.address,
                ..source(unit, IOMMU_SOURCE_IO_APIC, address)
            })
        }
        ScopeKind::Hpet => Some(source(unit, IOMMU_SOURCE_HPET, address)),
        _ => None,
    }
}

/// Adds a range unless the description has it already.
fn add_range(system: &mut System, kind: u16, physical: u64, size: u64) {
    let of_kind = || system.ranges.iter().filter(|range| range.kind == kind);
    let same = |range: &MachineRange| range.physical == physical && range.size == size;
    if of_kind().any(same) {
        return;
    }
    let number = u32::try_from(of_kind().count()).unwrap_or(u32::MAX);
    system.ranges.push(MachineRange {
        physical,
        size: size.next_multiple_of(PAGE_SIZE),
        kind,
        extent: 0,
        number,
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::create::tests::collected;
    use crate::{HostPhysical, Machine, Range, ledger};

    fn of(name: &str) -> (Binary, Vec<String>) {
        let machine = collected(name);
        let mut notes = Vec::new();
        let built_in = crate::System::built_in();
        let binary = with_iommus(
            &built_in.view(),
            machine.iommu.as_ref(),
            &machine.interrupts.io_apics,
            &mut notes,
        );
        (binary, notes)
    }

    fn verdict(view: SystemView<'_>) -> Result<(), crate::Refusal> {
        ledger::check_system(&Machine {
            physical_limit: 1 << 46,
            hypervisor: Range::new(HostPhysical(1 << 30), 4 << 20),
            system: Some(view),
            ..crate::check::any_machine()
        })
    }

    /// Every function of every collected machine is behind the unit that the machine's description says.
    #[test]
    fn the_units_of_collected_machines_are_taken_over_whole() {
        let mut seen = 0;
        for (name, _) in crate::create::tests::collections() {
            let machine = collected(&name);
            let (binary, notes) = of(&name);
            assert!(notes.is_empty(), "{name}: {notes:?}");
            let view = SystemView::parse(binary.bytes()).unwrap();
            assert_eq!(verdict(view), Ok(()), "{name}");
            let Some(iommu) = &machine.iommu else {
                assert!(view.iommus().is_empty());
                continue;
            };
            assert_eq!(view.iommus().len(), iommu.units.len());
            for function in &machine.pci.functions {
                let address = function.address;
                let mut sources = view.iommu_sources().iter();
                let named = sources.find(|it| {
                    it.kind == IOMMU_SOURCE_FUNCTION
                        && (it.segment, it.source) == (address.segment, address.requester_id())
                });
                let of_all = || {
                    let mut units = view.iommus().iter();
                    units.position(|unit| {
                        unit.flags & IOMMU_INCLUDES_ALL != 0 && unit.segment == address.segment
                    })
                };
                let found = named.map(|it| usize::from(it.unit)).or_else(of_all);
                let expected = iommu
                    .units
                    .iter()
                    .position(|unit| unit.functions.contains(&address));
                assert_eq!(found, expected, "{name}: {address}");
                seen += usize::from(found.is_some());
            }
            let kinds = |kind| {
                view.iommu_sources()
                    .iter()
                    .filter(move |it| it.kind == kind)
            };
            for io_apic in &machine.interrupts.io_apics {
                let of_it = kinds(IOMMU_SOURCE_IO_APIC).filter(|it| it.address == io_apic.address);
                assert_eq!(of_it.count(), 1, "{name}: {io_apic:?}");
            }
            let devices = iommu.reserved.iter().flat_map(|it| &it.devices);
            let reserved = devices.filter(|device| device.address.is_some()).count();
            assert_eq!(kinds(IOMMU_SOURCE_RESERVED).count(), reserved, "{name}");
        }
        assert!(seen > 10, "{seen} functions");
    }

    /// What the hypervisor gets is judged again, whoever made it.
    #[test]
    fn what_makes_no_sense_is_refused() {
        use gaol_abi::outcome::{MachineFault, Reason};
        let (binary, _) = of("old-board");
        let good = System::from(&SystemView::parse(binary.bytes()).unwrap());
        assert!(good.iommus.len() >= 2 && good.iommu_sources.len() >= 3);
        let fault = |change: &dyn Fn(&mut System)| {
            let mut system = good.clone();
            change(&mut system);
            let binary = system.encode();
            let refusal = verdict(SystemView::parse(binary.bytes()).unwrap()).unwrap_err();
            assert_eq!(refusal.reason, Reason::MachineInvalid);
            MachineFault((refusal.detail >> 32) as u32)
        };
        let of_unit: [&dyn Fn(&mut System); 6] = [
            &|it| it.iommus[0].flags = 2,
            &|it| it.iommus[0].registers += 8,
            &|it| it.iommus[0].size = 0,
            &|it| it.iommus[0].registers = it.iommus[1].registers,
            &|it| it.iommus.iter_mut().for_each(|unit| unit.flags = 1),
            &|it| it.ranges.retain(|range| range.kind != RANGE_IOMMU),
        ];
        for change in of_unit {
            assert_eq!(fault(change), MachineFault::Iommu);
        }
        let of_source: [&dyn Fn(&mut System); 6] = [
            &|it| it.iommu_sources[0].kind = 0,
            &|it| it.iommu_sources[0].kind = 5,
            &|it| it.iommu_sources[0].unit = 9,
            &|it| it.iommu_sources[0].segment = 3,
            &|it| it.iommu_sources.push(it.iommu_sources[0]),
            &|it| it.ranges.retain(|range| range.kind != RANGE_RESERVED_DMA),
        ];
        for change in of_source {
            assert_eq!(fault(change), MachineFault::IommuSource);
        }
        assert_eq!(
            fault(&|it| {
                let range = it.ranges.iter_mut().find(|it| it.kind == RANGE_IOMMU);
                let range = range.unwrap();
                range.physical = 1 << 30;
                it.iommus[0].registers = 1 << 30;
            }),
            MachineFault::HypervisorOnRange
        );
    }
}
