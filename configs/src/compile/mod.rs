//! The compiler: from TOML to the binary form.
//!
//! Invariant: what comes out is accepted by [`crate::binary`], and each value in it that stood in the file keeps its
//! place, so that what the ledger says of it later can be shown there.

mod cell;
mod devices;
mod functions;
mod judge;
mod machine;
mod memory;
mod places;
mod registers;
mod system;

use gaol_abi::config::{CELL_SIGNATURE, SYSTEM_SIGNATURE};
use gaol_abi::outcome::Reason;
use serde::de::DeserializeOwned;

use crate::binary::{CellView, Refusal, SystemView};
use crate::encode::Binary;
use crate::problem::{Problem, Source};
use crate::schema::{CellFile, SystemFile};
use crate::toml_problem;
use judge::Judge;

pub use places::{CellPlaces, DevicePlaces, MsrPlaces, RegionPlaces, SystemPlaces};

/// Bytes of the hypervisor's memory when the file does not say: enough for the image and four CPUs many times over.
pub const DEFAULT_HYPERVISOR_SIZE: u64 = 4 << 20;
/// Name of the root cell when the file does not say.
pub const DEFAULT_ROOT_NAME: &str = "root";

/// A system configuration in both forms.
#[derive(Clone, Debug)]
pub struct System {
    /// Where it comes from.
    pub source: Source,
    /// Where its values stand.
    pub places: SystemPlaces,
    binary: Binary,
}

impl System {
    /// Compiles a TOML file. What is wrong with the system for itself is found as well.
    ///
    /// # Errors
    /// The first problem of the file.
    pub fn from_toml(name: &str, text: &str) -> Result<Self, Problem> {
        let system = Self::compile(name, text).map_err(first)?;
        system.check_alone()?;
        Ok(system)
    }

    fn check_alone(&self) -> Result<(), Problem> {
        let problems = crate::check::system_problems(crate::check::any_machine(), self);
        problems.into_iter().next().map_or(Ok(()), Err)
    }

    /// Compiles a TOML file, and finds what is wrong with its values; how they fit together is for [`crate::check`].
    ///
    /// # Errors
    /// All problems of the file.
    pub fn compile(name: &str, text: &str) -> Result<Self, Vec<Problem>> {
        let source = source(name, text);
        let file: SystemFile = read_toml(&source)?;
        let judge = Judge::new(&source);
        let (system, places) = system::system(&judge, &file);
        judge.verdict()?;
        Self::checked(source.clone(), places, system.encode()).map_err(|problem| vec![problem])
    }

    /// Reads a binary file.
    ///
    /// # Errors
    /// Why the file is none.
    pub fn from_binary(name: &str, bytes: &[u8]) -> Result<Self, Problem> {
        let places = SystemPlaces::default();
        Self::checked(source(name, ""), places, Binary::new(bytes))
    }

    /// The configuration that is used when there is no file: 4 MiB from Linux, no console but the ring.
    ///
    /// # Panics
    /// Never: it is a constant in all but name.
    #[must_use]
    pub fn built_in() -> Self {
        Self::from_toml("built-in configuration", "").expect("the empty file is a configuration")
    }

    fn checked(source: Source, places: SystemPlaces, binary: Binary) -> Result<Self, Problem> {
        match SystemView::parse(binary.bytes()) {
            Ok(_) => Ok(Self {
                source,
                places,
                binary,
            }),
            Err(refusal) => Err(binary_problem(&source, "system", refusal)),
        }
    }

    /// The binary form.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.binary.bytes()
    }

    /// The binary form, read.
    ///
    /// # Panics
    /// Never: the bytes were read before.
    #[must_use]
    pub fn view(&self) -> SystemView<'_> {
        SystemView::parse(self.binary.bytes()).expect("read when it was made")
    }
}

/// The configuration of a cell in both forms.
#[derive(Clone, Debug)]
pub struct Cell {
    /// Where it comes from.
    pub source: Source,
    /// Where its values stand.
    pub places: CellPlaces,
    binary: Binary,
}

impl Cell {
    /// Compiles a TOML file. What is wrong with the cell for itself, whatever the machine, is found as well. PCI
    /// functions must be given by address: only a system file knows the others.
    ///
    /// # Errors
    /// The first problem of the file.
    pub fn from_toml(name: &str, text: &str) -> Result<Self, Problem> {
        let cell = Self::compile(name, text, None).map_err(first)?;
        crate::check::check_alone(&cell, None)?;
        Ok(cell)
    }

    /// Compiles a TOML file for the machine and the hypervisor that `system` describes. What is wrong with the cell
    /// there is found as well, as if it were the only one.
    ///
    /// # Errors
    /// The first problem of the file.
    pub fn from_toml_on(name: &str, text: &str, system: &System) -> Result<Self, Problem> {
        let cell = Self::compile(name, text, Some(system)).map_err(first)?;
        crate::check::check_alone(&cell, Some(system))?;
        Ok(cell)
    }

    /// Compiles a TOML file, and finds what is wrong with its values; how they fit together is for [`crate::check`].
    ///
    /// # Errors
    /// All problems of the file.
    pub fn compile(name: &str, text: &str, system: Option<&System>) -> Result<Self, Vec<Problem>> {
        let source = source(name, text);
        let file: CellFile = read_toml(&source)?;
        let judge = Judge::new(&source);
        let cell = cell::cell(&judge, &file, system);
        judge.verdict()?;
        Self::checked(source.clone(), CellPlaces::of(&file), cell.encode())
            .map_err(|problem| vec![problem])
    }

    /// Reads a binary file.
    ///
    /// # Errors
    /// Why the file is none.
    pub fn from_binary(name: &str, bytes: &[u8]) -> Result<Self, Problem> {
        Self::checked(source(name, ""), CellPlaces::default(), Binary::new(bytes))
    }

    fn checked(source: Source, places: CellPlaces, binary: Binary) -> Result<Self, Problem> {
        match CellView::parse(binary.bytes()) {
            Ok(_) => Ok(Self {
                source,
                places,
                binary,
            }),
            Err(refusal) => Err(binary_problem(&source, "cell", refusal)),
        }
    }

    /// The binary form.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.binary.bytes()
    }

    /// The binary form, read.
    ///
    /// # Panics
    /// Never: the bytes were read before.
    #[must_use]
    pub fn view(&self) -> CellView<'_> {
        CellView::parse(self.binary.bytes()).expect("read when it was made")
    }
}

/// A configuration of either kind.
#[derive(Clone, Debug)]
pub enum Configuration {
    /// Of the hypervisor and the root cell.
    System(System),
    /// Of another cell.
    Cell(Cell),
}

/// Keys that only cell files have.
const CELL_KEYS: [&str; 13] = [
    "cpus",
    "memory",
    "ports",
    "devices",
    "interrupts",
    "msrs",
    "cache-ways",
    "reset-address",
    "passive",
    "unassigned-io",
    "on-violation",
    "shutdown-timeout",
    "watchdog",
];

impl Configuration {
    /// Reads a file of either kind and either form, whatever its name. A TOML file is checked for itself.
    ///
    /// # Errors
    /// The first problem of the file.
    pub fn read(name: &str, bytes: &[u8]) -> Result<Self, Problem> {
        let configuration = Self::compile(name, bytes, None).map_err(first)?;
        match &configuration {
            _ if is_binary(bytes) => {}
            Self::Cell(cell) => crate::check::check_alone(cell, None)?,
            Self::System(system) => system.check_alone()?,
        }
        Ok(configuration)
    }

    /// Reads a file of either kind and either form, whatever its name; a cell is compiled for `system`, if there is one.
    /// Only values are judged.
    ///
    /// # Errors
    /// All problems of the file.
    pub fn compile(
        name: &str,
        bytes: &[u8],
        system: Option<&System>,
    ) -> Result<Self, Vec<Problem>> {
        let alone = |problem: Problem| vec![problem];
        if bytes.starts_with(&CELL_SIGNATURE) {
            let cell = Cell::from_binary(name, bytes).map_err(alone)?;
            return Ok(Self::Cell(cell));
        }
        if bytes.starts_with(&SYSTEM_SIGNATURE) {
            let system = System::from_binary(name, bytes).map_err(alone)?;
            return Ok(Self::System(system));
        }
        let Ok(text) = core::str::from_utf8(bytes) else {
            return Err(alone(Problem::new(
                &source(name, ""),
                Reason::ConfigurationInvalid,
                "the file is neither TOML nor a binary configuration".to_owned(),
                "Give a .toml file, or what `gaol config build` made of one.".to_owned(),
            )));
        };
        let keys = toml::from_str::<toml::Table>(text).unwrap_or_default();
        if CELL_KEYS.iter().any(|key| keys.contains_key(*key)) {
            return Cell::compile(name, text, system).map(Self::Cell);
        }
        System::compile(name, text).map(Self::System)
    }
}

fn is_binary(bytes: &[u8]) -> bool {
    bytes.starts_with(&CELL_SIGNATURE) || bytes.starts_with(&SYSTEM_SIGNATURE)
}

fn source(name: &str, text: &str) -> Source {
    Source {
        name: name.to_owned(),
        text: text.to_owned(),
    }
}

/// Reads TOML; the reader gives up at the first thing that is wrong.
fn read_toml<T: DeserializeOwned>(source: &Source) -> Result<T, Vec<Problem>> {
    toml::from_str(&source.text).map_err(|error| vec![toml_problem::explain(source, &error)])
}

/// The first of some problems, which there are.
fn first(problems: Vec<Problem>) -> Problem {
    let first = problems.into_iter().next();
    first.expect("a file is refused for a problem")
}

/// What the reader of binary files found.
fn binary_problem(source: &Source, kind: &str, refusal: Refusal) -> Problem {
    let ours = gaol_abi::ABI_REVISION;
    let message = match refusal.reason {
        Reason::ConfigurationTooBig => format!(
            "the file has {} bytes; a {kind} configuration has at most {}",
            refusal.detail,
            match kind {
                "cell" => gaol_abi::config::MAX_CELL_SIZE,
                _ => gaol_abi::config::MAX_SIZE,
            }
        ),
        Reason::ConfigurationRevision => format!(
            "the file is a configuration of revision {}; this is gaol of revision {ours}",
            refusal.detail
        ),
        Reason::ConfigurationChecksum => {
            "the checksum is wrong: the file was damaged or changed".to_owned()
        }
        Reason::NameInvalid => "a name in the file is empty, too long or not printable".to_owned(),
        Reason::RegionInvalid => {
            format!(
                "memory region {} of the file has flags that do not exist",
                refusal.detail
            )
        }
        Reason::MsrInvalid => {
            format!(
                "register {:#x} of the file has flags that do not exist",
                refusal.detail
            )
        }
        _ => format!("the file is not a {kind} configuration, or is truncated"),
    };
    let remedy =
        format!("Compile it again from its TOML file: gaol config build {kind}.toml -o {kind}.bin");
    Problem::new(source, refusal.reason, message, remedy)
}

#[cfg(test)]
mod property_tests;
#[cfg(test)]
mod tests;
