//! The TOML files, as their keys are named: the file of a cell, and what both kinds of files have in common.
//!
//! Invariant: every key is written down here or in [`crate::schema_system`], in kebab case; a key that is not is refused.
//! Each value keeps its place in the file, so that an error can point at it. The JSON Schema for editors is made of the
//! same types ([`crate::json_schema`]).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use toml::Spanned;

use crate::quantity::{Address, Mask, Milliseconds, Number, Size};

pub use crate::schema_system::*;

/// A cell file.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[schemars(title = "Gaol cell")]
pub struct CellFile {
    /// Name of the cell.
    #[schemars(with = "String")]
    pub name: Spanned<String>,
    /// The cell's CPUs by Linux' numbers.
    #[schemars(with = "Vec<Number>")]
    pub cpus: Spanned<Vec<Spanned<Number>>>,
    /// Guest-physical address at which its CPUs start, in real mode; 0 by default.
    #[schemars(with = "Option<Address>")]
    pub reset_address: Option<Spanned<Address>>,
    /// Whether the cell prints on the hypervisor's console.
    #[serde(default)]
    pub console: bool,
    /// Whether the cell is stopped without being asked, because it does not read its communication region.
    #[serde(default)]
    pub passive: bool,
    /// What happens at an access to a port that is not the cell's.
    #[serde(default)]
    pub unassigned_io: UnassignedIo,
    /// What happens to the cell when one of its CPUs does what it must not.
    #[serde(default)]
    pub on_violation: OnViolation,
    /// Time that the cell has to answer a shutdown request; 1 s by default.
    #[schemars(with = "Option<Milliseconds>")]
    pub shutdown_timeout: Option<Spanned<Milliseconds>>,
    /// Whether the cell is watched, and what happens when it stands still.
    #[schemars(with = "Option<WatchdogTable>")]
    pub watchdog: Option<Spanned<WatchdogTable>>,
    /// The cell's memory.
    #[serde(default)]
    #[schemars(with = "Vec<MemoryTable>")]
    pub memory: Vec<Spanned<MemoryTable>>,
    /// The cell's I/O ports.
    #[serde(default)]
    #[schemars(with = "Vec<PortsTable>")]
    pub ports: Vec<Spanned<PortsTable>>,
    /// The cell's PCI functions.
    #[serde(default)]
    #[schemars(with = "Vec<DeviceTable>")]
    pub devices: Vec<Spanned<DeviceTable>>,
    /// Whether the cell's PCI functions may do DMA on a machine where no IOMMU keeps them in the cell's memory. They can then
    /// read and write all memory of the machine, and interrupt every CPU.
    #[schemars(with = "Option<bool>")]
    pub unprotected_dma: Option<Spanned<bool>>,
    /// The cell's interrupt lines: pins of the IOAPICs, counted on through all of them (global system interrupts). Linux must
    /// not use them. The cell gives level-triggered ones vectors from 0xf0 to 0xff.
    #[serde(default)]
    #[schemars(with = "Vec<Number>")]
    pub interrupts: Vec<Spanned<Number>>,
    /// Ways of the caches that are the cell's alone.
    pub cache_ways: Option<CacheWaysTable>,
    /// Model-specific registers that the cell gets besides those that all cells have.
    #[serde(default)]
    #[schemars(with = "Vec<MsrTable>")]
    pub msrs: Vec<Spanned<MsrTable>>,
}

/// `unassigned-io`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum UnassignedIo {
    /// The CPU is stopped.
    #[default]
    Stop,
    /// It reads ones, and a write does nothing.
    Ignore,
}

/// `on-violation`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OnViolation {
    /// The CPU is parked, with a record of what it did; the cell's other CPUs run on.
    #[default]
    ParkCpu,
    /// All CPUs of the cell are parked.
    ParkCell,
}

/// `[watchdog]`: the cell changes its heartbeat, a word in its communication region.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct WatchdogTable {
    /// Time in which the heartbeat changes at least once, from the start of the cell on.
    #[schemars(with = "Milliseconds")]
    pub timeout: Spanned<Milliseconds>,
    /// What happens when it does not.
    #[serde(default)]
    pub policy: WatchdogPolicy,
}

/// `policy` of a watchdog.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum WatchdogPolicy {
    /// It is counted, and the cell runs on.
    #[default]
    Record,
    /// The cell is stopped, loaded again with what it was loaded with, and started.
    Restart,
    /// All CPUs of the cell are parked.
    Halt,
}

/// `[[memory]]`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct MemoryTable {
    /// Name of the region.
    #[schemars(with = "String")]
    pub name: Spanned<String>,
    /// Guest-physical address.
    #[schemars(with = "Address")]
    pub at: Spanned<Address>,
    /// Bytes; one page by default for `kind = "communication"`.
    #[schemars(with = "Option<Size>")]
    pub size: Option<Spanned<Size>>,
    /// Host-physical address; by default Linux gives the memory at run time.
    #[schemars(with = "Option<Address>")]
    pub physical: Option<Spanned<Address>>,
    /// Letters of "rwx"; "rw" by default.
    #[schemars(with = "Option<String>")]
    pub access: Option<Spanned<String>>,
    /// What the region is; RAM by default.
    #[schemars(with = "Option<Kind>")]
    pub kind: Option<Spanned<Kind>>,
    /// How the processor caches it; "write-back" by default for RAM, "uncacheable" for device registers.
    #[schemars(with = "Option<Cache>")]
    pub cache: Option<Spanned<Cache>>,
    /// Of registers that share a page with others: the sizes of access that the hypervisor lets through.
    #[schemars(with = "Option<Vec<Number>>")]
    pub widths: Option<Spanned<Vec<Spanned<Number>>>>,
    /// Whether the root cell may write to it while the cell is loaded.
    #[schemars(with = "Option<bool>")]
    pub loadable: Option<Spanned<bool>>,
    /// Whether all cells that have a shared region of this name have the same memory there.
    #[schemars(with = "Option<bool>")]
    pub shared: Option<Spanned<bool>>,
    /// Whether the root cell sees it all the time.
    #[schemars(with = "Option<bool>")]
    pub shared_with_root: Option<Spanned<bool>>,
    /// Whether devices of the cell may access it.
    #[schemars(with = "Option<bool>")]
    pub dma: Option<Spanned<bool>>,
}

/// `kind` of a memory region.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// RAM.
    #[default]
    Ram,
    /// Registers of a device.
    Device,
    /// The page through which hypervisor and cell talk.
    Communication,
}

/// `cache` of a memory region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Cache {
    /// Not cached, and in the order of the program.
    Uncacheable,
    /// Not cached, writes are gathered.
    WriteCombining,
    /// Reads are cached, writes go through.
    WriteThrough,
    /// Reads are cached, writes go to memory and out of all caches.
    WriteProtected,
    /// Cached.
    WriteBack,
}

/// An entry of `ports`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct PortsTable {
    /// First port.
    #[schemars(with = "Number")]
    pub first: Spanned<Number>,
    /// Number of ports.
    #[schemars(with = "Number")]
    pub count: Spanned<Number>,
}

/// `[[devices]]`: a PCI function by `address` or by `id`. Its base address registers, interrupts and capabilities are
/// those that the system file has of it.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct DeviceTable {
    /// Address, "0000:00:03.0" or "00:03.0".
    #[schemars(with = "Option<String>")]
    pub address: Option<Spanned<String>>,
    /// Vendor and device id, "8086:100e"; there must be one such function.
    #[schemars(with = "Option<String>")]
    pub id: Option<Spanned<String>>,
    /// Interrupt vectors (MSI or MSI-X) that it may use; by default as many as it has, up to 32.
    #[schemars(with = "Option<Number>")]
    pub vectors: Option<Spanned<Number>>,
    /// Whether the cell may make it bus master; true by default. Without, it neither does DMA nor sends interrupt messages.
    #[schemars(with = "Option<bool>", extend("default" = true))]
    pub bus_master: Option<Spanned<bool>>,
}

/// `[cache-ways]`: numbers of ways, which must be adjacent.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct CacheWaysTable {
    /// Ways of the level-3 cache.
    #[schemars(with = "Option<Vec<Number>>")]
    pub l3: Option<Spanned<Vec<Spanned<Number>>>>,
    /// Ways of the level-2 cache.
    #[schemars(with = "Option<Vec<Number>>")]
    pub l2: Option<Spanned<Vec<Spanned<Number>>>>,
}

/// `[[msrs]]`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct MsrTable {
    /// Number of the register.
    #[schemars(with = "Number")]
    pub index: Spanned<Number>,
    /// "r", "w" or "rw"; "r" by default.
    #[schemars(with = "Option<String>")]
    pub access: Option<Spanned<String>>,
    /// Bits that a write may change; all by default. A mask with bit 63 is written as a string: "0x8000000000000000".
    #[schemars(with = "Option<Mask>")]
    pub write_mask: Option<Spanned<Mask>>,
    /// Whether each logical processor has a register of its own, so that several cells may write to theirs.
    #[serde(default)]
    pub per_cpu: bool,
}
