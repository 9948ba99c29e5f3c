//! The TOML file of the system: hypervisor, root cell, and the machine that they are on.
//!
//! Invariant: as for [`crate::schema`]. `[machine]` is written by `gaol config create`; the rest is written by people.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use toml::Spanned;

use crate::quantity::{Address, Milliseconds, Number, Size};
use crate::schema::{MemoryTable, MsrTable, PortsTable};

/// A system file: the hypervisor, the root cell and the machine.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[schemars(title = "Gaol system")]
pub struct SystemFile {
    /// Name of the root cell; "root" by default.
    #[schemars(with = "Option<String>")]
    pub name: Option<Spanned<String>>,
    /// Longest time that CPUs wait for each other at enable and disable; 10 s by default.
    #[schemars(with = "Option<Milliseconds>")]
    pub deadline: Option<Spanned<Milliseconds>>,
    /// What becomes of the machine when Linux panics or tries to reset it while a cell runs.
    #[serde(default)]
    pub on_root_failure: OnRootFailure,
    /// The hypervisor's memory.
    #[serde(default)]
    pub hypervisor: HypervisorTable,
    /// The hypervisor's console.
    #[serde(default)]
    pub console: ConsoleTable,
    /// What the root cell gets.
    #[serde(default)]
    pub root: RootTable,
    /// What the machine has. Without it cells are checked against each other only.
    #[schemars(with = "Option<MachineTable>")]
    pub machine: Option<Spanned<MachineTable>>,
}

/// `on-root-failure`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OnRootFailure {
    /// The CPU that tries is parked, and the cells run on.
    #[default]
    Continue,
    /// The machine resets.
    Reset,
}

/// `[hypervisor]`.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct HypervisorTable {
    /// Bytes of the hypervisor's memory, a multiple of 2 MiB; 4 MiB by default.
    #[schemars(with = "Option<Size>")]
    pub memory: Option<Spanned<Size>>,
    /// Where that memory is, when it was reserved with `memmap=`; by default Linux gives it at run time.
    #[schemars(with = "Option<Address>")]
    pub address: Option<Spanned<Address>>,
}

/// `[console]`.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ConsoleTable {
    /// A serial interface; by default the console is only kept in memory (`gaol console`).
    pub uart: Option<UartTable>,
}

/// A 16550 at I/O ports that Linux does not use.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct UartTable {
    /// First port.
    #[schemars(with = "Number")]
    pub port: Spanned<Number>,
    /// Bits a second; 115200 by default.
    #[schemars(with = "Option<Number>")]
    pub baud: Option<Spanned<Number>>,
}

/// `[root]`: what the root cell gets.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct RootTable {
    /// Whether it gets what is left over, or only what is listed.
    #[schemars(with = "Option<Policy>")]
    pub policy: Option<Spanned<Policy>>,
    /// With `policy = "strict"`: memory and registers; `at` is the host-physical address.
    #[serde(default)]
    #[schemars(with = "Vec<MemoryTable>")]
    pub memory: Vec<Spanned<MemoryTable>>,
    /// With `policy = "strict"`: I/O ports.
    #[serde(default)]
    #[schemars(with = "Vec<PortsTable>")]
    pub ports: Vec<Spanned<PortsTable>>,
    /// With `policy = "strict"`: model-specific registers besides those that all cells have.
    #[serde(default)]
    #[schemars(with = "Vec<MsrTable>")]
    pub msrs: Vec<Spanned<MsrTable>>,
}

/// `policy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// The root cell owns what nobody else does.
    #[default]
    Leftover,
    /// The root cell owns what its lists say.
    Strict,
}

/// `[machine]`: what the machine has.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct MachineTable {
    /// CPUs in the order of Linux' numbers.
    #[serde(default)]
    #[schemars(with = "Vec<CpuTable>")]
    pub cpus: Vec<Spanned<CpuTable>>,
    /// Ways of the level-3 cache that can be allocated; 0 by default: there is no such allocation.
    #[schemars(with = "Option<Number>")]
    pub l3_ways: Option<Spanned<Number>>,
    /// The same of the level-2 cache.
    #[schemars(with = "Option<Number>")]
    pub l2_ways: Option<Spanned<Number>>,
    /// RAM.
    #[serde(default)]
    #[schemars(with = "Vec<RamTable>")]
    pub ram: Vec<Spanned<RamTable>>,
    /// IOAPICs.
    #[serde(default)]
    #[schemars(with = "Vec<IoApicTable>")]
    pub io_apics: Vec<Spanned<IoApicTable>>,
    /// PCI configuration space in memory (ECAM, MMCONFIG).
    #[serde(default)]
    #[schemars(with = "Vec<PciConfigurationTable>")]
    pub pci_configuration: Vec<Spanned<PciConfigurationTable>>,
    /// Registers of IOMMUs.
    #[serde(default)]
    #[schemars(with = "Vec<RangeTable>")]
    pub iommus: Vec<Spanned<RangeTable>>,
    /// Memory that firmware or devices reach by DMA at any time (RMRR).
    #[serde(default)]
    #[schemars(with = "Vec<RangeTable>")]
    pub reserved_dma: Vec<Spanned<RangeTable>>,
    /// PCI functions.
    #[serde(default)]
    #[schemars(with = "Vec<FunctionTable>")]
    pub devices: Vec<Spanned<FunctionTable>>,
}

/// An entry of `machine.cpus`. What two CPUs share bears the same number in both.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct CpuTable {
    /// APIC id.
    #[schemars(with = "Number")]
    pub apic_id: Spanned<Number>,
    /// Package; 0 by default.
    #[schemars(with = "Option<Number>")]
    pub package: Option<Spanned<Number>>,
    /// Core, numbered across all packages.
    #[schemars(with = "Number")]
    pub core: Spanned<Number>,
    /// Level-2 cache; by default the number of the core: each has its own. Given for all CPUs or for none.
    #[schemars(with = "Option<Number>")]
    pub l2: Option<Spanned<Number>>,
    /// Level-3 cache; by default the number of the package: each has its own. Given for all CPUs or for none.
    #[schemars(with = "Option<Number>")]
    pub l3: Option<Spanned<Number>>,
    /// NUMA node; 0 by default.
    #[schemars(with = "Option<Number>")]
    pub node: Option<Spanned<Number>>,
    /// Whether system management interrupts were seen.
    #[serde(default)]
    pub smis: bool,
}

/// A range of host-physical addresses.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct RangeTable {
    /// First address.
    #[schemars(with = "Address")]
    pub at: Spanned<Address>,
    /// Bytes.
    #[schemars(with = "Size")]
    pub size: Spanned<Size>,
}

/// An entry of `machine.ram`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct RamTable {
    /// First address.
    #[schemars(with = "Address")]
    pub at: Spanned<Address>,
    /// Bytes.
    #[schemars(with = "Size")]
    pub size: Spanned<Size>,
    /// NUMA node; 0 by default.
    #[schemars(with = "Option<Number>")]
    pub node: Option<Spanned<Number>>,
}

/// An entry of `machine.io-apics`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct IoApicTable {
    /// Address of its registers.
    #[schemars(with = "Address")]
    pub at: Spanned<Address>,
    /// Global system interrupt of its first pin.
    #[schemars(with = "Number")]
    pub first: Spanned<Number>,
    /// Number of its pins; 24 by default.
    #[schemars(with = "Option<Number>")]
    pub pins: Option<Spanned<Number>>,
}

/// An entry of `machine.pci-configuration`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct PciConfigurationTable {
    /// Address of the first bus' configuration space; each bus has 1 MiB.
    #[schemars(with = "Address")]
    pub at: Spanned<Address>,
    /// PCI segment group; 0 by default.
    #[schemars(with = "Option<Number>")]
    pub segment: Option<Spanned<Number>>,
    /// First bus; 0 by default.
    #[schemars(with = "Option<Number>")]
    pub first_bus: Option<Spanned<Number>>,
    /// Last bus.
    #[schemars(with = "Number")]
    pub last_bus: Spanned<Number>,
}

/// An entry of `machine.devices`: a PCI function.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct FunctionTable {
    /// Address, "0000:00:03.0".
    #[schemars(with = "String")]
    pub address: Spanned<String>,
    /// Vendor and device id, "8086:100e".
    #[schemars(with = "String")]
    pub id: Spanned<String>,
    /// Functions with the same group can't be kept from reaching each other: they belong to one cell.
    #[schemars(with = "Number")]
    pub group: Spanned<Number>,
    /// Whether it is a bridge, which stays with the root cell.
    #[serde(default)]
    pub bridge: bool,
    /// Whether a bridge to conventional PCI is on its way to the root complex, so that no IOMMU can tell it from others: no
    /// cell gets it where an IOMMU is.
    #[serde(default)]
    pub shares_requester_id: bool,
    /// Interrupt vectors of its MSI capability; none by default.
    #[schemars(with = "Option<Number>")]
    pub msi: Option<Spanned<Number>>,
    /// Entries of its MSI-X table; none by default.
    #[schemars(with = "Option<Number>")]
    pub msi_x: Option<Spanned<Number>>,
    /// Base address registers.
    #[serde(default)]
    #[schemars(with = "Vec<BarTable>")]
    pub bars: Vec<Spanned<BarTable>>,
}

/// A base address register.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct BarTable {
    /// Number of the register, 0 to 5.
    #[schemars(with = "Number")]
    pub number: Spanned<Number>,
    /// What it is.
    pub kind: BarKind,
    /// Its address or first port.
    #[schemars(with = "Address")]
    pub at: Spanned<Address>,
    /// Bytes, or ports.
    #[schemars(with = "Size")]
    pub size: Spanned<Size>,
    /// Whether the memory is prefetchable.
    #[serde(default)]
    pub prefetchable: bool,
}

/// `kind` of a base address register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum BarKind {
    /// I/O ports.
    Ports,
    /// Memory below 4 GiB.
    Memory,
    /// Memory, 64 bits wide.
    Memory64,
}
