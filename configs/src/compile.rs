//! The compiler: from TOML to the binary form.
//!
//! Invariant: what comes out is accepted by [`crate::binary`], and each value in it that stood in the file keeps its
//! place, so that what the ledger says of it later can be shown there.

use core::ops::Range;

use gaol_abi::config::{
    CELL_CONSOLE, CELL_IGNORE_UNASSIGNED_PORTS, CELL_PASSIVE, CELL_SIGNATURE, CONSOLE_UART_PORT,
    MAX_MEMORY_REGIONS, MAX_PORT_RANGES, MEMORY_COMMUNICATION, MEMORY_DEVICE, MEMORY_DMA,
    MEMORY_EXECUTE, MEMORY_LOADABLE, MEMORY_READ, MEMORY_ROOT_SHARED, MEMORY_WRITE, MemoryRegion,
    PortRange, SYSTEM_SIGNATURE,
};
use gaol_abi::outcome::Reason;
use gaol_abi::{MAX_CPUS, NAME_LENGTH, PAGE_SIZE};
use toml::Spanned;

use crate::binary::{
    CellView, HYPERVISOR_ALIGNMENT, MAX_HYPERVISOR_SIZE, MAX_MILLISECONDS, Refusal, SystemView,
    UART_PORTS, name_text,
};
use crate::cpu_set::CpuSet;
use crate::encode::{self, Binary};
use crate::problem::{Place, Problem, Source};
use crate::quantity::{Milliseconds, Number, Size};
use crate::schema::{CellFile, Kind, MemoryTable, PortsTable, SystemFile, UartTable, UnassignedIo};
use crate::toml_problem;

/// Bytes of the hypervisor's memory when the file does not say: enough for the image and four CPUs many times over.
pub const DEFAULT_HYPERVISOR_SIZE: u64 = 4 << 20;
/// Name of the root cell when the file does not say.
pub const DEFAULT_ROOT_NAME: &str = "root";
/// The rate of a 16550 whose divisor is 1.
const UART_BASE_BAUD: u64 = 115_200;

/// A system configuration in both forms.
#[derive(Clone, Debug)]
pub struct System {
    /// Where it comes from.
    pub source: Source,
    binary: Binary,
}

impl System {
    /// Compiles a TOML file.
    ///
    /// # Errors
    /// The first problem of the file.
    pub fn from_toml(name: &str, text: &str) -> Result<Self, Problem> {
        let source = source(name, text);
        let file: SystemFile =
            toml::from_str(text).map_err(|error| toml_problem::explain(&source, &error))?;
        let binary = system_binary(&source, &file)?;
        Self::checked(source, binary)
    }

    /// Reads a binary file.
    ///
    /// # Errors
    /// Why the file is none.
    pub fn from_binary(name: &str, bytes: &[u8]) -> Result<Self, Problem> {
        Self::checked(source(name, ""), Binary::new(bytes))
    }

    /// The configuration that is used when there is no file: 4 MiB from Linux, no console but the ring.
    ///
    /// # Panics
    /// Never: it is a constant in all but name.
    #[must_use]
    pub fn built_in() -> Self {
        Self::from_toml("built-in configuration", "").expect("the empty file is a configuration")
    }

    fn checked(source: Source, binary: Binary) -> Result<Self, Problem> {
        match SystemView::parse(binary.bytes()) {
            Ok(_) => Ok(Self { source, binary }),
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

/// Where the values of a cell file stand; all are missing for a binary file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CellPlaces {
    /// `name`.
    pub name: Option<Place>,
    /// `cpus`, as a whole.
    pub cpus: Option<Place>,
    /// Each CPU and its place.
    pub each_cpu: Vec<(u64, Place)>,
    /// `reset-address`; else that of the name.
    pub reset_address: Option<Place>,
    /// Each memory region.
    pub memory: Vec<RegionPlaces>,
    /// Each port range.
    pub ports: Vec<Place>,
}

/// Where the values of a memory region stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionPlaces {
    /// `name`.
    pub name: Place,
    /// `at`.
    pub at: Place,
    /// `size`.
    pub size: Option<Place>,
    /// `physical`.
    pub physical: Option<Place>,
    /// `access`.
    pub access: Option<Place>,
    /// `kind`.
    pub kind: Option<Place>,
    /// `loadable`.
    pub loadable: Option<Place>,
    /// `shared-with-root`.
    pub shared_with_root: Option<Place>,
    /// `dma`.
    pub dma: Option<Place>,
}

impl Cell {
    /// Compiles a TOML file. What is wrong with the cell for itself, whatever the machine, is found as well.
    ///
    /// # Errors
    /// The first problem of the file.
    pub fn from_toml(name: &str, text: &str) -> Result<Self, Problem> {
        let source = source(name, text);
        let file: CellFile =
            toml::from_str(text).map_err(|error| toml_problem::explain(&source, &error))?;
        let places = places(&file);
        let binary = cell_binary(&source, &file)?;
        let cell = Self::checked(source, places, binary)?;
        crate::check::check_alone(&cell)?;
        Ok(cell)
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
const CELL_KEYS: [&str; 7] = [
    "cpus",
    "memory",
    "ports",
    "reset-address",
    "passive",
    "unassigned-io",
    "shutdown-timeout",
];

impl Configuration {
    /// Reads a file of either kind and either form, whatever its name.
    ///
    /// # Errors
    /// The first problem of the file.
    pub fn read(name: &str, bytes: &[u8]) -> Result<Self, Problem> {
        if bytes.starts_with(&CELL_SIGNATURE) {
            return Cell::from_binary(name, bytes).map(Self::Cell);
        }
        if bytes.starts_with(&SYSTEM_SIGNATURE) {
            return System::from_binary(name, bytes).map(Self::System);
        }
        let Ok(text) = core::str::from_utf8(bytes) else {
            return Err(Problem::new(
                &source(name, ""),
                Reason::ConfigurationInvalid,
                "the file is neither TOML nor a binary configuration".to_owned(),
                "Give a .toml file, or what `gaol config build` made of one.".to_owned(),
            ));
        };
        let keys = toml::from_str::<toml::Table>(text).unwrap_or_default();
        if CELL_KEYS.iter().any(|key| keys.contains_key(*key)) {
            return Cell::from_toml(name, text).map(Self::Cell);
        }
        System::from_toml(name, text).map(Self::System)
    }
}

fn source(name: &str, text: &str) -> Source {
    Source {
        name: name.to_owned(),
        text: text.to_owned(),
    }
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
        _ => format!("the file is not a {kind} configuration, or is truncated"),
    };
    let remedy =
        format!("Compile it again from its TOML file: gaol config build {kind}.toml -o {kind}.bin");
    Problem::new(source, refusal.reason, message, remedy)
}

/// Makes problems of one file.
struct Judge<'a> {
    source: &'a Source,
}

impl Judge<'_> {
    fn problem(
        &self,
        reason: Reason,
        place: Range<usize>,
        label: &str,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Problem {
        Problem::new(self.source, reason, message.into(), remedy.into()).at(Some(place), label)
    }

    fn invalid(
        &self,
        place: Range<usize>,
        label: &str,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Problem {
        self.problem(Reason::ConfigurationInvalid, place, label, message, remedy)
    }

    fn name(&self, what: &str, name: &Spanned<String>) -> Result<[u8; NAME_LENGTH], Problem> {
        let text = name.get_ref();
        let bytes = encode::name(text).filter(|bytes| name_text(bytes).is_ok());
        let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
        match bytes {
            Some(bytes) if !is_number => Ok(bytes),
            _ => Err(self.problem(
                Reason::NameInvalid,
                name.span(),
                "not a name",
                format!("{text:?} can't be the name of a {what}"),
                format!(
                    "A name has 1 to {} letters, digits and signs of ASCII, no spaces, and is not a number.",
                    NAME_LENGTH - 1
                ),
            )),
        }
    }

    fn time(&self, time: Option<&Spanned<Milliseconds>>) -> Result<u32, Problem> {
        let Some(time) = time else { return Ok(0) };
        let milliseconds = time.get_ref().0;
        if milliseconds == 0 || milliseconds > MAX_MILLISECONDS {
            return Err(self.invalid(
                time.span(),
                "out of range",
                "this time is not possible",
                "Write a time from \"1 ms\" to \"10 min\".",
            ));
        }
        Ok(milliseconds)
    }
}

fn system_binary(source: &Source, file: &SystemFile) -> Result<Binary, Problem> {
    let judge = Judge { source };
    let mut system = encode::System::default();
    let header = &mut system.header;
    header.name = match &file.name {
        Some(name) => judge.name("cell", name)?,
        None => encode::name(DEFAULT_ROOT_NAME).unwrap_or_default(),
    };
    header.deadline_milliseconds = judge.time(file.deadline.as_ref())?;
    header.hypervisor_size = DEFAULT_HYPERVISOR_SIZE;
    if let Some(size) = &file.hypervisor.memory {
        header.hypervisor_size = size.get_ref().0;
        if header.hypervisor_size == 0
            || !header.hypervisor_size.is_multiple_of(HYPERVISOR_ALIGNMENT)
        {
            return Err(judge.invalid(
                size.span(),
                "not whole large pages",
                "the hypervisor's memory is not a multiple of 2 MiB",
                "Write \"4 MiB\", or leave the key out.",
            ));
        }
    }
    if let Some(size) = &file.hypervisor.memory
        && header.hypervisor_size > MAX_HYPERVISOR_SIZE
    {
        return Err(judge.invalid(
            size.span(),
            "too large",
            "the hypervisor can't use that much memory",
            format!("Write at most \"{}\".", Size(MAX_HYPERVISOR_SIZE)),
        ));
    }
    if let Some(address) = &file.hypervisor.address {
        header.hypervisor_physical = address.get_ref().0;
        let is_possible = header.hypervisor_physical != 0
            && header
                .hypervisor_physical
                .is_multiple_of(HYPERVISOR_ALIGNMENT)
            && header
                .hypervisor_physical
                .checked_add(header.hypervisor_size)
                .is_some_and(|end| end <= 1 << 48);
        if !is_possible {
            return Err(judge.invalid(
                address.span(),
                "not possible",
                "the hypervisor's memory can't be at this address",
                "Write a multiple of 2 MiB (0x200000) below 2^48, or leave the key out: Linux then gives the memory.",
            ));
        }
    }
    if let Some(uart) = &file.console.uart {
        header.console_kind = CONSOLE_UART_PORT;
        (header.console_address, header.console_divisor) = uart_parameters(&judge, uart)?;
    }
    Ok(system.encode())
}

/// First port and divisor.
fn uart_parameters(judge: &Judge<'_>, uart: &UartTable) -> Result<(u64, u32), Problem> {
    let port = uart.port.get_ref().0;
    if port == 0 || port > u64::from(u16::MAX - (UART_PORTS - 1)) {
        return Err(judge.invalid(
            uart.port.span(),
            "not possible",
            format!("a UART can't be at port {port:#x}"),
            "Write the first of its eight ports, for instance 0x2f8 for the second serial interface of a PC.",
        ));
    }
    let Some(baud) = &uart.baud else {
        return Ok((port, 1));
    };
    let rate = baud.get_ref().0;
    let divisor = UART_BASE_BAUD.checked_div(rate).unwrap_or(0);
    let divisor = u32::try_from(divisor).unwrap_or(0);
    if u64::from(divisor) * rate != UART_BASE_BAUD || divisor > u32::from(u16::MAX) {
        return Err(judge.invalid(
            baud.span(),
            "not possible",
            format!("a UART can't run at {rate} baud"),
            "Write a whole fraction of 115200: 115200, 57600, 38400, 19200 or 9600.",
        ));
    }
    Ok((port, divisor))
}

fn cell_binary(source: &Source, file: &CellFile) -> Result<Binary, Problem> {
    let judge = Judge { source };
    let flag = |is_set: bool, flag: u32| if is_set { flag } else { 0 };
    let cell = encode::Cell {
        flags: flag(file.console, CELL_CONSOLE)
            | flag(file.passive, CELL_PASSIVE)
            | flag(
                file.unassigned_io == UnassignedIo::Ignore,
                CELL_IGNORE_UNASSIGNED_PORTS,
            ),
        name: judge.name("cell", &file.name)?,
        cpus: cpus(&judge, &file.cpus)?,
        reset_address: file
            .reset_address
            .as_ref()
            .map_or(0, |address| address.get_ref().0),
        shutdown_milliseconds: judge.time(file.shutdown_timeout.as_ref())?,
        memory: memory(&judge, &file.memory)?,
        ports: ports(&judge, &file.ports)?,
        ..encode::Cell::default()
    };
    Ok(cell.encode())
}

fn cpus(judge: &Judge<'_>, list: &Spanned<Vec<Spanned<Number>>>) -> Result<CpuSet, Problem> {
    let mut cpus = CpuSet::EMPTY;
    for number in list.get_ref() {
        let cpu = u32::try_from(number.get_ref().0)
            .ok()
            .filter(|cpu| (*cpu as usize) < MAX_CPUS)
            .ok_or_else(|| {
                judge.problem(
                    Reason::CpuUnknown,
                    number.span(),
                    "no such CPU",
                    format!("there can't be a CPU {}", number.get_ref().0),
                    format!("Gaol supports CPUs 0 to {}.", MAX_CPUS - 1),
                )
            })?;
        if cpus.contains(cpu) {
            return Err(judge.invalid(
                number.span(),
                "named before",
                format!("CPU {cpu} is named twice"),
                "Take one of the two out.",
            ));
        }
        cpus.insert(cpu);
    }
    Ok(cpus)
}

/// Refuses a list that is longer than the binary form permits, at the first element too many.
fn bounded<T>(
    judge: &Judge<'_>,
    list: &[Spanned<T>],
    most: usize,
    what: &str,
) -> Result<(), Problem> {
    match list.get(most) {
        Some(surplus) => Err(judge.invalid(
            surplus.span(),
            "one too many",
            format!("a cell has at most {most} {what}"),
            "Join neighbouring ones.",
        )),
        None => Ok(()),
    }
}

fn memory(
    judge: &Judge<'_>,
    tables: &[Spanned<MemoryTable>],
) -> Result<Vec<MemoryRegion>, Problem> {
    bounded(judge, tables, MAX_MEMORY_REGIONS, "memory regions")?;
    tables
        .iter()
        .map(|table| region(judge, table.get_ref()))
        .collect()
}

fn region(judge: &Judge<'_>, table: &MemoryTable) -> Result<MemoryRegion, Problem> {
    let kind = table
        .kind
        .as_ref()
        .map_or(Kind::Ram, |kind| *kind.get_ref());
    let is_set = |value: &Option<Spanned<bool>>| value.as_ref().is_some_and(|is| *is.get_ref());
    let flag = |is_set: bool, flag: u64| if is_set { flag } else { 0 };
    let flags = access(judge, table.access.as_ref())?
        | flag(kind == Kind::Device, MEMORY_DEVICE)
        | flag(kind == Kind::Communication, MEMORY_COMMUNICATION)
        | flag(is_set(&table.loadable), MEMORY_LOADABLE)
        | flag(is_set(&table.shared_with_root), MEMORY_ROOT_SHARED)
        | flag(is_set(&table.dma), MEMORY_DMA);
    let size = match (&table.size, kind) {
        (Some(size), _) => *size.get_ref(),
        (None, Kind::Communication) => Size(PAGE_SIZE),
        (None, _) => {
            return Err(judge.invalid(
                table.name.span(),
                "how large?",
                format!("memory region {:?} has no size", table.name.get_ref()),
                "Add a line such as `size = \"1 MiB\"` to its table.",
            ));
        }
    };
    if let Some(physical) = &table.physical
        && physical.get_ref().0 == 0
    {
        return Err(judge.problem(
            Reason::RegionInvalid,
            physical.span(),
            "not possible",
            format!(
                "memory region {:?} can't be at physical address 0",
                table.name.get_ref()
            ),
            "Leave the key out: Linux then gives the memory.",
        ));
    }
    Ok(MemoryRegion {
        name: judge.name("memory region", &table.name)?,
        physical: table
            .physical
            .as_ref()
            .map_or(0, |address| address.get_ref().0),
        guest: table.at.get_ref().0,
        size: size.0,
        flags,
    })
}

fn access(judge: &Judge<'_>, access: Option<&Spanned<String>>) -> Result<u64, Problem> {
    let Some(access) = access else {
        return Ok(MEMORY_READ | MEMORY_WRITE);
    };
    let mut flags = 0;
    for letter in access.get_ref().chars() {
        let flag = match letter {
            'r' => MEMORY_READ,
            'w' => MEMORY_WRITE,
            'x' => MEMORY_EXECUTE,
            _ => 0,
        };
        if flag == 0 || flags & flag != 0 {
            flags = 0;
            break;
        }
        flags |= flag;
    }
    if flags & MEMORY_READ == 0 {
        return Err(judge.invalid(
            access.span(),
            "not an access",
            format!("{:?} is not a way to access memory", access.get_ref()),
            "Write \"r\", \"rw\", \"rx\" or \"rwx\": a CPU can't write or execute what it can't read.",
        ));
    }
    Ok(flags)
}

fn ports(judge: &Judge<'_>, tables: &[Spanned<PortsTable>]) -> Result<Vec<PortRange>, Problem> {
    bounded(judge, tables, MAX_PORT_RANGES, "port ranges")?;
    let range = |entry: &Spanned<PortsTable>| {
        let table = entry.get_ref();
        let (first, count) = (table.first.get_ref().0, table.count.get_ref().0);
        let is_possible = count != 0 && first.checked_add(count).is_some_and(|end| end <= 0x1_0000);
        match (u16::try_from(first), u16::try_from(count)) {
            (Ok(first), Ok(count)) if is_possible => Ok(PortRange { first, count }),
            _ => Err(judge.problem(
                Reason::PortsInvalid,
                entry.span(),
                "not possible",
                format!("there are no {count} ports from {first:#x} on"),
                "Ports are numbered from 0 to 0xffff, and a range has at least one.",
            )),
        }
    };
    tables.iter().map(range).collect()
}

fn places(file: &CellFile) -> CellPlaces {
    fn place<T>(value: &Option<Spanned<T>>) -> Option<Place> {
        value.as_ref().map(Spanned::span)
    }
    CellPlaces {
        name: Some(file.name.span()),
        cpus: Some(file.cpus.span()),
        each_cpu: file
            .cpus
            .get_ref()
            .iter()
            .map(|cpu| (cpu.get_ref().0, cpu.span()))
            .collect(),
        reset_address: Some(place(&file.reset_address).unwrap_or_else(|| file.name.span())),
        memory: file
            .memory
            .iter()
            .map(|table| {
                let table = table.get_ref();
                RegionPlaces {
                    name: table.name.span(),
                    at: table.at.span(),
                    size: place(&table.size),
                    physical: place(&table.physical),
                    access: place(&table.access),
                    kind: place(&table.kind),
                    loadable: place(&table.loadable),
                    shared_with_root: place(&table.shared_with_root),
                    dma: place(&table.dma),
                }
            })
            .collect(),
        ports: file.ports.iter().map(Spanned::span).collect(),
    }
}
