//! `gaol cell create`, `load`, `start`, `shutdown`, `destroy`.

use std::fs;
use std::path::Path;

use gaol_abi::driver::MAX_LOAD_IMAGES;
use gaol_abi::outcome::Reason;
use gaol_config::binary::name_text;
use gaol_config::explain::{cpu_list, explain};
use gaol_config::ledger::{Ledger, Machine};
use gaol_config::pci::FunctionAddress;
use gaol_config::quantity::Size;
use gaol_config::{Cell, CellView, Configuration, CpuSet, Refusal, check, encode};
use serde_json::{Value, json};

use super::owners;
use crate::arguments::{CellName, Content, Piece, Pieces};
use crate::device::{Cost, Created, DeviceError, Load, Operation};
use crate::disks::Uses;
use crate::explain::Facts;
use crate::failure::{Failure, Result, problems_json};
use crate::host::{Host, read_bytes, read_configuration};
use crate::interrupts;
use crate::memory::{Shortage, with_blocks};
use crate::output::{Report, grouped};

/// What an operation took, for people.
fn cost_text(cost: Cost) -> String {
    match cost.scrub_cycles {
        0 => format!("{} cycles", grouped(cost.cycles)),
        scrub => format!(
            "{} cycles, and {} to clear its memory",
            grouped(cost.cycles),
            grouped(scrub)
        ),
    }
}

/// `gaol cell create`.
///
/// # Errors
/// Why there is no new cell.
pub fn create(host: &mut Host, path: &Path, force: bool) -> Result<Report> {
    let saved = super::create::saved(host);
    let configuration = match &saved {
        Some(system) => {
            let bytes = read_bytes(path)?;
            Configuration::compile(&path.display().to_string(), &bytes, Some(system))
                .map_err(Failure::configuration)?
        }
        None => read_configuration(path)?,
    };
    let cell = match configuration {
        Configuration::Cell(cell) => cell,
        Configuration::System(_) => {
            return Err(Failure::new(
                "configuration_invalid",
                format!("{} is a system configuration", path.display()),
                "Give the configuration of a cell here, and this one to `gaol enable`.",
            ));
        }
    };
    let (ledger, mut machine) = owners::known(host);
    if let Some(system) = &saved {
        let hypervisor = machine.hypervisor;
        machine = check::with_system(machine, system);
        // Where it is, rather than where it was to be.
        machine.hypervisor = hypervisor.or(machine.hypervisor);
    }
    if host.sysfs.is_enabled().unwrap_or(false) {
        let mut before = ledger.clone();
        check::add_or_all(&mut before, &machine, &cell).map_err(Failure::configuration)?;
        if let Some(problem) = check::unsupported(&cell) {
            return Err(Failure::configuration(vec![problem]));
        }
        refuse_lines_in_use(host, &cell, &ledger, &machine)?;
    }
    let view = cell.view();
    refuse_disks_in_use(host, &view)?;
    let created = create_from(host, cell.bytes(), force)
        .map_err(|error| creation_failure(host, error, &cell, &ledger, &machine))?;
    owners::keep(host, created.id, cell.bytes());
    let is_unprotected = host.sysfs.is_unprotected(created.id);
    let warnings = check::unprotected(&machine, &cell, is_unprotected);
    let mut report = created_report(created, view.name(), view.cpus());
    report.json["warnings"] = problems_json(&warnings);
    for warning in &warnings {
        let (message, remedy) = (warning.message(), warning.remedy());
        report
            .text
            .push_str(&format!("warning: {message}\n  {remedy}\n"));
    }
    Ok(report)
}

/// Refuses interrupt lines that a driver of Linux has. What can't be read is left to the hypervisor, which looks whether
/// lines are masked.
fn refuse_lines_in_use(
    host: &Host,
    cell: &Cell,
    ledger: &Ledger,
    machine: &Machine<'_>,
) -> Result<()> {
    let text = std::fs::read_to_string(&host.interrupts).unwrap_or_default();
    let view = cell.view();
    // These are taken from their drivers, which let go of their lines. Whether somebody shares them, the hypervisor sees.
    let own: Vec<u32> = view
        .devices()
        .iter()
        .filter_map(|device| {
            host.sysfs
                .line_of(&FunctionAddress::from(device).to_string())
        })
        .collect();
    for line in view.interrupts() {
        if own.contains(&line.number) {
            continue;
        }
        if let Some(user) = interrupts::user(&text, line.number) {
            let refusal = Refusal::new(Reason::InterruptInUse, line.number.into());
            let problem = explain(refusal, cell, ledger, machine).because(user);
            return Err(Failure::configuration(vec![problem]));
        }
    }
    Ok(())
}

/// Refuses PCI functions with disks behind them that Linux uses: it would lose them without a word.
fn refuse_disks_in_use(host: &Host, cell: &CellView<'_>) -> Result<()> {
    let uses = Uses::read(&host.proc);
    for device in cell.devices() {
        let function = FunctionAddress::from(device).to_string();
        if let Some(use_of_disk) = host.sysfs.disk_in_use(&uses, &function) {
            return Err(Failure::new(
                "device_in_use",
                format!("Linux can't do without PCI function {function}: {use_of_disk}"),
                "Unmount it, or give the cell another function.",
            ));
        }
    }
    Ok(())
}

/// Creates a cell, with memory blocks where Linux' allocator does not give enough.
fn create_from(host: &mut Host, bytes: &[u8], force: bool) -> crate::device::Result<Created> {
    let binary = encode::Binary::new(bytes);
    let size_of = |region: u32| {
        let view = CellView::parse(binary.bytes()).ok()?;
        let region = view.memory().get(usize::try_from(region).ok()?)?;
        Some(region.size)
    };
    with_blocks(
        host,
        |error| Shortage::of(error, 0, size_of),
        |host, pieces| host.device.create(bytes, pieces, force),
    )
}

/// `gaol cell create --unchecked`: TOML is compiled, but nobody except module and hypervisor looks at the owners, nor at
/// a binary file at all.
///
/// # Errors
/// Why there is no new cell.
pub fn create_unchecked(host: &mut Host, path: &Path, force: bool) -> Result<Report> {
    let file = read_bytes(path)?;
    let bytes = match Configuration::read(&path.display().to_string(), &file) {
        Ok(Configuration::Cell(cell)) => cell.bytes().to_vec(),
        _ => file,
    };
    let created = create_from(host, &bytes, force).map_err(|error| {
        let action = format!("cannot create a cell from {}", path.display());
        let mut facts = host.facts(None);
        if let Ok(view) = CellView::parse(encode::Binary::new(&bytes).bytes()) {
            add_memory_facts(host, &error, &view, &mut facts);
        }
        host.failure(&action, error, &facts)
    })?;
    owners::keep(host, created.id, &bytes);
    let cell = host.sysfs.find(&CellName::Id(created.id))?;
    Ok(created_report(created, &cell.name, cell.cpus))
}

fn created_report(created: Created, name: &str, cpus: CpuSet) -> Report {
    let noun = if cpus.len() == 1 { "CPU" } else { "CPUs" };
    Report {
        text: format!(
            "Cell \"{name}\" has number {} and {noun} {}, after {}.\n",
            created.id,
            cpu_list(cpus),
            cost_text(created.cost)
        ),
        json: json!({
            "ok": true,
            "id": created.id,
            "name": name,
            "cpus": cpus.iter().collect::<Vec<u32>>(),
            "cycles": created.cost.cycles,
            "scrub_cycles": created.cost.scrub_cycles,
        }),
    }
}

/// What is to be said about the memory that the error is about.
fn add_memory_facts(host: &Host, error: &DeviceError, cell: &CellView, facts: &mut Facts) {
    let DeviceError::Refused {
        outcome, region, ..
    } = error
    else {
        return;
    };
    let mut regions = cell.memory().iter();
    let concerned = match outcome.reason {
        Reason::CellMemory => regions.nth(*region as usize),
        _ => regions.find(|region| region.physical == outcome.detail),
    };
    if let Some(region) = concerned {
        facts.memory_size = region.size;
        facts.memory_name = name_text(&region.name).ok().map(str::to_owned);
        facts.reservation = host.memory.place_for_reservation(region.size);
    }
}

/// A refusal by the hypervisor, shown in the file where it is about what the file says.
fn creation_failure(
    host: &Host,
    error: DeviceError,
    cell: &Cell,
    ledger: &Ledger,
    machine: &Machine<'_>,
) -> Failure {
    let name = cell.view().name().to_owned();
    if let DeviceError::Refused { outcome, .. } = &error {
        let is_explained = matches!(
            outcome.reason,
            Reason::CpuUnknown
                | Reason::CpuZero
                | Reason::CpuOwned
                | Reason::RegionInvalid
                | Reason::RegionOverlap
                | Reason::MemoryOwned
                | Reason::MemoryIsHypervisors
                | Reason::MemoryIsInterruptController
                | Reason::PortsOwned
                | Reason::PortsInvalid
                | Reason::ResetAddress
                | Reason::NoCpu
                | Reason::DeviceUnknown
                | Reason::DeviceOwned
                | Reason::DeviceIsBridge
                | Reason::DeviceGroupSplit
                | Reason::VectorBudget
                | Reason::UnprotectedDma
                | Reason::DeviceSharesRequester
                | Reason::InterruptUnknown
                | Reason::InterruptOwned
                | Reason::InterruptInUse
                | Reason::CacheWaysInvalid
                | Reason::CacheWaysOwned
                | Reason::MsrInvalid
                | Reason::MsrOwned
                | Reason::MemoryIsPciConfiguration
                | Reason::MemoryIsIommus
                | Reason::MemoryIsReservedDma
                | Reason::MemoryIsDevices
                | Reason::MemoryUnknown
                | Reason::DmaOutsideMemory
                | Reason::SharedRegionDiffers
                | Reason::Unsupported
        );
        if is_explained && cell.places.name.is_some() {
            let refusal = Refusal::new(outcome.reason, outcome.detail);
            return Failure::configuration(vec![explain(refusal, cell, ledger, machine)]);
        }
    }
    let action = format!("cannot create cell \"{name}\"");
    let mut facts = host.facts(Some(&CellName::Name(name)));
    add_memory_facts(host, &error, &cell.view(), &mut facts);
    host.failure(&action, error, &facts)
}

/// `gaol cell load`.
///
/// # Errors
/// Why nothing was loaded.
pub fn load(host: &mut Host, cell: &CellName, pieces: &Pieces) -> Result<Report> {
    if pieces.0.len() > MAX_LOAD_IMAGES as usize {
        return Err(Failure::new(
            "too_many_images",
            format!(
                "{} files and strings are too many for one load",
                pieces.0.len()
            ),
            format!("Give at most {MAX_LOAD_IMAGES}."),
        ));
    }
    let loads: Vec<Load> = pieces.0.iter().map(read_piece).collect::<Result<_>>()?;
    let cost = host.device.load(cell, &loads).map_err(|error| {
        host.failure(
            &format!("cannot load cell {cell}"),
            error,
            &host.facts(Some(cell)),
        )
    })?;
    let mut text = String::new();
    let mut images: Vec<Value> = Vec::new();
    for (piece, load) in pieces.0.iter().zip(&loads) {
        let (source, size) = (source_of(piece), load.bytes.len() as u64);
        text.push_str(&format!(
            "{:#010x}  {:>9}  {source}\n",
            load.address,
            human_size(size)
        ));
        images.push(json!({ "source": source, "address": load.address, "size": size }));
    }
    text.push_str(&format!(
        "Cell {cell} is loaded, after {}.\n",
        cost_text(cost)
    ));
    Ok(Report {
        text,
        json: json!({
            "ok": true,
            "cell": cell_json(cell),
            "images": images,
            "cycles": cost.cycles,
        }),
    })
}

fn human_size(size: u64) -> String {
    match size {
        size if size < 10 << 10 => format!("{size} B"),
        size if size < 10 << 20 => Size(size.div_ceil(1 << 10) << 10).to_string(),
        size => Size(size.div_ceil(1 << 20) << 20).to_string(),
    }
}

fn cell_json(cell: &CellName) -> Value {
    match cell {
        CellName::Id(id) => (*id).into(),
        CellName::Name(name) => name.clone().into(),
    }
}

fn source_of(piece: &Piece) -> String {
    match &piece.content {
        Content::File(path) => path.display().to_string(),
        Content::Text(text) => format!("{text:?}"),
    }
}

fn read_piece(piece: &Piece) -> Result<Load> {
    let bytes = match &piece.content {
        Content::Text(text) => [text.as_bytes(), &[0]].concat(),
        Content::File(path) => fs::read(path).map_err(|error| {
            Failure::file("read", path, &error, "Give the path of an image to load.")
        })?,
    };
    if bytes.is_empty() {
        return Err(Failure::new(
            "empty_image",
            format!("{} is empty", source_of(piece)),
            "Give an image with something in it.",
        ));
    }
    Ok(Load {
        bytes,
        address: piece.address,
    })
}

/// `gaol cell start`, `shutdown` and `destroy`.
///
/// # Errors
/// Why the cell is as it was.
pub fn operate(
    host: &mut Host,
    operation: Operation,
    cell: &CellName,
    force: bool,
) -> Result<Report> {
    let (verb, done) = match operation {
        Operation::Start => ("start", "runs"),
        Operation::Shutdown => ("shut down", "is shut down"),
        Operation::Destroy => (
            "destroy",
            "is destroyed; its CPUs and memory are Linux' again",
        ),
    };
    let cost = host
        .device
        .command(operation, cell, force)
        .map_err(|error| {
            host.failure(
                &format!("cannot {verb} cell {cell}"),
                error,
                &host.facts(Some(cell)),
            )
        })?;
    Ok(Report {
        text: format!("Cell {cell} {done}, after {}.\n", cost_text(cost)),
        json: json!({
            "ok": true,
            "cell": cell_json(cell),
            "cycles": cost.cycles,
            "scrub_cycles": cost.scrub_cycles,
        }),
    })
}
