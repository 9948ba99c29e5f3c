//! `gaol config create`, and the configuration of a machine that `gaol enable` makes for itself.
//!
//! Invariant: a file that exists is only overwritten when that was asked for, and nothing is written of a machine that
//! can't be described.

use std::fs;
use std::io::Write;
use std::path::Path;

use gaol_config::create::{self, Console, Created, Options, Refused, fits};
use gaol_config::schema::Policy;
use gaol_config::{Configuration, System};
use gaol_machine::processors::Processors;
use gaol_machine::{Kind, Machine, Problem, Source};
use serde_json::json;

use crate::arguments::{ConsoleArgument, CreateArguments, PolicyArgument};
use crate::failure::{Failure, Result};
use crate::host::Host;
use crate::output::{Report, write_new};

/// What `-o` takes.
pub const PLACE: &str = "place with -o";

/// The machine at `root`: a directory or a collection; else the one that `host` is.
///
/// # Errors
/// When there is none.
pub fn source(host: &Host, root: Option<&Path>) -> Result<Source> {
    let source = match root.or(host.machine_root.as_deref()) {
        Some(root) => Source::open(root),
        None => Source::live(),
    };
    source.map_err(|problem| failure(Refused::Machine(vec![problem])))
}

/// Reads a machine; what it lacks is told on `asides`.
///
/// # Errors
/// Why it can't be described.
pub fn read(source: &Source, asides: &mut dyn Write) -> Result<(Machine, Vec<Problem>)> {
    let (machine, lacks) = create::read(source).map_err(failure)?;
    for lack in &lacks {
        let _ = writeln!(asides, "warning: {lack}\n  {}", lack.remedy());
    }
    Ok((machine, lacks))
}

/// Why there is no system file, or no plan.
#[must_use]
pub fn failure(refused: Refused) -> Failure {
    match refused {
        Refused::Configuration(problems) => Failure::configuration(problems),
        Refused::Request(message, remedy) => Failure::new("impossible", message, remedy),
        Refused::Machine(problems) => machine_failure(&problems),
    }
}

/// All that is wrong with a machine, the first with its remedy.
fn machine_failure(problems: &[Problem]) -> Failure {
    let Some(first) = problems.first() else {
        return Failure::new("machine", "the machine can't be read", "Run gaol as root.");
    };
    let reason = match first.kind() {
        Kind::Permission => "no_permission",
        _ => "machine",
    };
    let sentences: Vec<String> = problems.iter().map(ToString::to_string).collect();
    let mut failure = Failure::new(reason, sentences.join("\n      "), first.remedy());
    failure.set("file", first.subject());
    failure.set("machine", sentences);
    failure
}

/// `gaol config create`. What is missing, assumed or left out is told on `asides`.
///
/// # Errors
/// Why there is no file.
pub fn run(host: &Host, arguments: &CreateArguments, asides: &mut dyn Write) -> Result<Report> {
    let source = source(host, arguments.root.as_deref())?;
    let (machine, lacks) = read(&source, asides)?;
    let options = Options {
        policy: match arguments.policy {
            PolicyArgument::Leftover => Policy::Leftover,
            PolicyArgument::Strict => Policy::Strict,
        },
        console: match arguments.console {
            None => Console::Spare,
            Some(ConsoleArgument::None) => Console::None,
            Some(ConsoleArgument::Port(port)) => Console::Port(port),
        },
        memory: arguments.memory,
    };
    let name = arguments
        .output
        .as_deref()
        .map_or("standard output".into(), |path| path.display().to_string());
    let created = create::create(&name, &machine, &lacks, &options).map_err(failure)?;
    for note in created.notes.iter().skip(lacks.len()) {
        let _ = writeln!(asides, "note: {note}");
    }
    if let Some(output) = &arguments.output {
        write_new(output, arguments.force, &created.toml, PLACE)?;
    }
    let view = created.system.view();
    Ok(Report {
        text: match &arguments.output {
            None => created.toml.clone(),
            Some(output) => format!(
                "{}: {} CPUs, {} PCI functions.\n",
                output.display(),
                view.machine_cpus().len(),
                view.devices().len()
            ),
        },
        json: json!({
            "ok": true,
            "output": arguments.output.as_ref().map(|output| output.display().to_string()),
            "cpus": view.machine_cpus().len(),
            "devices": view.devices().len(),
            "notes": created.notes,
            "toml": created.toml,
        }),
    })
}

/// The configuration that Gaol is enabled with when nobody gave one: made for this machine, or, when it can't be
/// described, the built-in one; why is told on `asides`.
pub fn for_this_machine(host: &Host, asides: &mut dyn Write) -> (System, &'static str) {
    let mut made = || -> Result<Created> {
        let (machine, lacks) = read(&source(host, None)?, asides)?;
        create::create("this machine", &machine, &lacks, &Options::default()).map_err(failure)
    };
    match made() {
        Ok(created) => (created.system, "machine"),
        Err(failure) => {
            let _ = write!(
                asides,
                "warning: this machine can't be described, and cells are checked against each other only\n{}",
                failure.text()
            );
            (System::built_in(), "built-in")
        }
    }
}

/// The configuration in binary form, with the IOMMUs of this machine; what can't be said of them is told on `asides`.
pub fn with_iommus(host: &Host, system: &System, asides: &mut dyn Write) -> Vec<u8> {
    let mut problems = Vec::new();
    // Without a table there is nothing to read, which takes a while.
    let has_table = |source: &Source| {
        let mut tables = ["DMAR", "IVRS"].into_iter();
        tables.any(|table| source.exists(&format!("/sys/firmware/acpi/tables/{table}")))
    };
    let machine = source(host, None)
        .ok()
        .filter(has_table)
        .map(|source| Machine::read_what_can_be(&source, &mut problems))
        .unwrap_or_default();
    let mut notes: Vec<String> = problems
        .iter()
        .filter(|problem| problem.subject() == "ACPI table DMAR")
        .map(|problem| format!("{problem} No IOMMU is used."))
        .collect();
    if machine.has_amd_iommu {
        notes.push(
            "Gaol drives IOMMUs of Intel's kind only, and not this machine's of AMD's: functions of cells are not isolated.".to_owned(),
        );
    }
    let iommu = machine.iommu.as_ref();
    let io_apics = &machine.interrupts.io_apics;
    let binary = gaol_config::iommu::with_iommus(&system.view(), iommu, io_apics, &mut notes);
    for note in notes {
        let _ = writeln!(asides, "note: {note}");
    }
    binary.bytes().to_vec()
}

/// Refuses a configuration that describes another machine.
///
/// # Errors
/// What differs.
pub fn check_fits(host: &Host, system: &System) -> Result<()> {
    if !system.view().describes_machine() {
        return Ok(());
    }
    // What can't be read can't be compared: the hypervisor looks again.
    let processors = source(host, None).ok();
    let processors = processors.and_then(|source| Processors::read(&source).ok());
    match processors {
        Some(processors) => {
            fits(system, &processors).map_err(|problem| Failure::configuration(vec![problem]))
        }
        None => Ok(()),
    }
}

/// Keeps the configuration that Gaol was enabled with, for `gaol cell create` to check cells with.
///
/// # Errors
/// Why it can't be kept, in a sentence.
pub fn save(host: &Host, system: &System) -> std::result::Result<(), String> {
    let path = &host.saved_system;
    // An old one would be worse than none.
    forget(host);
    let content = match system.source.text.is_empty() {
        true => system.bytes(),
        false => system.source.text.as_bytes(),
    };
    let written = match path.parent() {
        Some(directory) => fs::create_dir_all(directory),
        None => Ok(()),
    };
    written
        .and_then(|()| fs::write(path, content))
        .map_err(|error| {
            format!(
                "The configuration can't be kept in {} ({}), so that `gaol cell create` knows less of the machine.",
                path.display(),
                crate::failure::plain(&error)
            )
        })
}

/// Forgets what was kept, of cells as well.
pub fn forget(host: &Host) {
    let _ = fs::remove_file(&host.saved_system);
    super::owners::forget(host);
}

/// The configuration that Gaol was enabled with; none when it is not known.
#[must_use]
pub fn saved(host: &Host) -> Option<System> {
    if !host.sysfs.is_enabled().unwrap_or(false) {
        return None;
    }
    let bytes = fs::read(&host.saved_system).ok()?;
    match Configuration::read(&host.saved_system.display().to_string(), &bytes) {
        Ok(Configuration::System(system)) => Some(system),
        _ => None,
    }
}
