//! IOMMUs: which units there are, and which functions are behind each of them.

use std::collections::BTreeMap;

use crate::acpi::Dmar;
use crate::acpi::dmar::{Scope, ScopeKind};
use crate::pci::{Address, Pci};
use crate::problem::{Problem, optional};
use crate::source::Source;
use crate::span::Span;

const CLASS: &str = "/sys/class/iommu";

/// A device that a unit or a piece of reserved memory is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScopedDevice {
    /// What the firmware says.
    pub scope: Scope,
    /// Where that is; none when a bridge on the way is not there. An I/O APIC or HPET need not be a function of its own:
    /// this is what it calls itself in requests.
    pub address: Option<Address>,
}

/// A remapping unit of Intel's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IommuUnit {
    /// PCI segment of the devices behind it.
    pub segment: u16,
    /// Its registers.
    pub registers: Span,
    /// Whether it has all devices of the segment that no other unit has.
    pub includes_all: bool,
    /// Devices that the firmware names.
    pub devices: Vec<ScopedDevice>,
    /// All functions behind it, worked out.
    pub functions: Vec<Address>,
    /// The capability register; none while Linux does not drive the unit.
    pub capability: Option<u64>,
    /// The extended capability register; none while Linux does not drive the unit.
    pub extended_capability: Option<u64>,
}

impl IommuUnit {
    /// Whether it can remap interrupts (extended capability register, IR); none when that is not known.
    #[must_use]
    pub fn remaps_interrupts(&self) -> Option<bool> {
        self.extended_capability.map(|bits| bits & 1 << 3 != 0)
    }
}

/// Memory that devices use whoever owns them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReservedDma {
    /// PCI segment of the devices.
    pub segment: u16,
    /// Whole pages.
    pub span: Span,
    /// The devices.
    pub devices: Vec<ScopedDevice>,
}

/// The IOMMUs of a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Iommu {
    /// Width of the addresses that devices can use, in bits.
    pub address_bits: u16,
    /// The platform remaps interrupts.
    pub interrupt_remapping: bool,
    /// The firmware asks not to turn x2APIC mode on.
    pub x2apic_opt_out: bool,
    /// The units, in the order of the firmware.
    pub units: Vec<IommuUnit>,
    /// Memory that the firmware keeps for devices' DMA.
    pub reserved: Vec<ReservedDma>,
}

impl Iommu {
    /// The unit that a function is behind; none when no unit has it.
    #[must_use]
    pub fn unit_of(&self, address: Address) -> Option<&IommuUnit> {
        self.units
            .iter()
            .find(|unit| unit.functions.contains(&address))
    }

    /// Joins what the firmware says with the functions that are there and what Linux shows of the units.
    ///
    /// # Errors
    /// When a file can't be read or makes no sense.
    pub(crate) fn new(source: &Source, dmar: &Dmar, pci: &Pci) -> Result<Self, Problem> {
        let registers = registers(source)?;
        let mut units: Vec<IommuUnit> = Vec::new();
        for unit in &dmar.units {
            let known = registers.get(&unit.registers.start());
            units.push(IommuUnit {
                segment: unit.segment,
                registers: unit.registers,
                includes_all: unit.includes_all,
                devices: resolved(pci, unit.segment, &unit.scopes),
                functions: Vec::new(),
                capability: known.map(|(capability, _)| *capability),
                extended_capability: known.map(|(_, extended)| *extended),
            });
        }
        assign_functions(&mut units, pci);
        let reserved = dmar.reserved.iter().map(|reserved| ReservedDma {
            segment: reserved.segment,
            span: reserved.span,
            devices: resolved(pci, reserved.segment, &reserved.scopes),
        });
        Ok(Self {
            address_bits: dmar.address_bits,
            interrupt_remapping: dmar.interrupt_remapping,
            x2apic_opt_out: dmar.x2apic_opt_out,
            units,
            reserved: reserved.collect(),
        })
    }
}

fn resolved(pci: &Pci, segment: u16, scopes: &[Scope]) -> Vec<ScopedDevice> {
    let scopes = scopes.iter().map(|scope| ScopedDevice {
        address: pci.resolve(segment, scope.start_bus, &scope.path),
        scope: scope.clone(),
    });
    scopes.collect()
}

/// Gives every function to the unit that names it or the nearest bridge above it, else to the segment's unit for all.
fn assign_functions(units: &mut [IommuUnit], pci: &Pci) {
    for function in &pci.functions {
        let address = function.address;
        let named = units.iter().enumerate().filter_map(|(index, unit)| {
            // A bridge nearer to the function is on a higher bus.
            let distances = unit.devices.iter().filter_map(|device| {
                let at = device.address.filter(|at| at.segment == address.segment)?;
                let is_behind = match device.scope.kind {
                    ScopeKind::Endpoint => at == address,
                    ScopeKind::Bridge => pci.is_at_or_behind(address, at),
                    _ => false,
                };
                is_behind.then_some((at == address, at.bus))
            });
            distances.max().map(|nearness| (nearness, index))
        });
        let owner = named.max().map(|(_, index)| index).or_else(|| {
            units
                .iter()
                .position(|unit| unit.includes_all && unit.segment == address.segment)
        });
        if let Some(unit) = owner.and_then(|index| units.get_mut(index)) {
            unit.functions.push(address);
        }
    }
}

/// Capability and extended capability register by the address of a unit's registers, of those that Linux drives.
fn registers(source: &Source) -> Result<BTreeMap<u64, (u64, u64)>, Problem> {
    let mut registers = BTreeMap::new();
    for name in optional(source.list(CLASS))?.unwrap_or_default() {
        // Units of other kinds have other files.
        let read = |file: &str| {
            let path = format!("{CLASS}/{name}/intel-iommu/{file}");
            let Some(text) = optional(source.read_text(&path))? else {
                return Ok(None);
            };
            match u64::from_str_radix(text.trim(), 16) {
                Ok(value) => Ok(Some(value)),
                Err(_) => {
                    let what = format!("{:?} is not a hexadecimal number", text.trim());
                    Err(Problem::garbage(path, what))
                }
            }
        };
        if let (Some(address), Some(capability), Some(extended)) =
            (read("address")?, read("cap")?, read("ecap")?)
        {
            registers.insert(address, (capability, extended));
        }
    }
    Ok(registers)
}
