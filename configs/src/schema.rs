//! The TOML files, as their keys are named.
//!
//! Invariant: every key is written down here, in kebab case; a key that is not is refused. Each value keeps its place in
//! the file, so that an error can point at it.

use serde::Deserialize;
use toml::Spanned;

use crate::quantity::{Address, Milliseconds, Number, Size};

/// A system file: the hypervisor and the root cell.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct SystemFile {
    /// Name of the root cell; "root" by default.
    pub name: Option<Spanned<String>>,
    /// Longest time that CPUs wait for each other at enable and disable; 10 s by default.
    pub deadline: Option<Spanned<Milliseconds>>,
    /// The hypervisor's memory.
    #[serde(default)]
    pub hypervisor: HypervisorTable,
    /// The hypervisor's console.
    #[serde(default)]
    pub console: ConsoleTable,
}

/// `[hypervisor]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct HypervisorTable {
    /// Bytes of the hypervisor's memory, a multiple of 2 MiB; 4 MiB by default.
    pub memory: Option<Spanned<Size>>,
    /// Where that memory is, when it was reserved with `memmap=`; by default Linux gives it at run time.
    pub address: Option<Spanned<Address>>,
}

/// `[console]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ConsoleTable {
    /// A serial interface; by default the console is only kept in memory (`gaol console`).
    pub uart: Option<UartTable>,
}

/// A 16550 at I/O ports that Linux does not use.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct UartTable {
    /// First port.
    pub port: Spanned<Number>,
    /// Bits a second; 115200 by default.
    pub baud: Option<Spanned<Number>>,
}

/// A cell file.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct CellFile {
    /// Name of the cell.
    pub name: Spanned<String>,
    /// The cell's CPUs by Linux' numbers.
    pub cpus: Spanned<Vec<Spanned<Number>>>,
    /// Guest-physical address at which its CPUs start, in real mode; 0 by default.
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
    /// Time that the cell has to answer a shutdown request; 1 s by default.
    pub shutdown_timeout: Option<Spanned<Milliseconds>>,
    /// The cell's memory.
    #[serde(default)]
    pub memory: Vec<Spanned<MemoryTable>>,
    /// The cell's I/O ports.
    #[serde(default)]
    pub ports: Vec<Spanned<PortsTable>>,
}

/// `unassigned-io`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UnassignedIo {
    /// The CPU is stopped.
    #[default]
    Stop,
    /// It reads ones, and a write does nothing.
    Ignore,
}

/// `[[memory]]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct MemoryTable {
    /// Name of the region.
    pub name: Spanned<String>,
    /// Guest-physical address.
    pub at: Spanned<Address>,
    /// Bytes; one page by default for `kind = "communication"`.
    pub size: Option<Spanned<Size>>,
    /// Host-physical address; by default Linux gives the memory at run time.
    pub physical: Option<Spanned<Address>>,
    /// Letters of "rwx"; "rw" by default.
    pub access: Option<Spanned<String>>,
    /// What the region is; RAM by default.
    pub kind: Option<Spanned<Kind>>,
    /// Whether the root cell may write to it while the cell is loaded.
    pub loadable: Option<Spanned<bool>>,
    /// Whether the root cell sees it all the time.
    pub shared_with_root: Option<Spanned<bool>>,
    /// Whether devices of the cell may access it.
    pub dma: Option<Spanned<bool>>,
}

/// `kind` of a memory region.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
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

/// An entry of `ports`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct PortsTable {
    /// First port.
    pub first: Spanned<Number>,
    /// Number of ports.
    pub count: Spanned<Number>,
}
