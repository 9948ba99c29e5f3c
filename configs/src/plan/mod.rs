//! `gaol plan`: from what a cell shall have to the pair of files that give it that, with the reason for each decision.
//!
//! Invariants: what is returned was checked together with the system file; what can't be had is refused with the reason
//! and what would be possible; the same machine and the same request give the same plan.

mod devices;
mod memory;
mod processors;

#[cfg(test)]
mod tests;

use gaol_abi::outcome::Reason;
use gaol_machine::Machine;
use gaol_machine::pci::Function;

use crate::check::{any_machine, report as check};
use crate::compile::Cell;
use crate::create::{Created, Refused, Text};
use crate::encode;
use crate::problem::Problem;
use crate::quantity::Size;

pub use devices::find as find_device;
pub use processors::available as available_cpus;

/// Name of the system file in a plan's directory.
pub const SYSTEM_FILE: &str = "system.toml";

/// What a cell shall have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Name of the cell.
    pub name: String,
    /// How many CPUs.
    pub cpus: u32,
    /// Bytes of memory of its own.
    pub memory: u64,
    /// PCI functions, each by address ("00:03.0") or by id ("8086:100e").
    pub devices: Vec<String>,
    /// Whether they may do DMA where no IOMMU keeps them in the cell's memory.
    pub unprotected_dma: bool,
    /// Bytes of memory that it shares with the root cell; none when 0.
    pub shared_with_root: u64,
    /// Name and bytes of the file that is loaded into it.
    pub image: Option<(String, u64)>,
}

/// A decision, and the reason for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// What was decided on: "CPUs".
    pub what: &'static str,
    /// What was chosen.
    pub value: String,
    /// Why: sentences.
    pub why: String,
}

/// A plan.
#[derive(Debug)]
pub struct Plan {
    /// The file of the cell.
    pub toml: String,
    /// The same, compiled.
    pub cell: Cell,
    /// Each decision.
    pub choices: Vec<Choice>,
    /// What is legal, and slow or doubtful.
    pub warnings: Vec<Problem>,
}

/// A refusal with its remedy.
fn refused(message: impl Into<String>, remedy: impl Into<String>) -> Refused {
    Refused::Request(message.into(), remedy.into())
}

/// Whether a cell can have this name, and its file a name made of it.
///
/// # Errors
/// What is wrong with it, and what a name is.
pub fn check_name(name: &str) -> Result<(), Refused> {
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '-' | '_');
    let is_number = name.bytes().all(|byte| byte.is_ascii_digit());
    let is_good = !name.is_empty() && name.chars().all(is_plain) && !is_number;
    if !is_good || name.starts_with('-') || encode::name(name).is_none() {
        return Err(refused(
            format!("{name:?} can't be the name of a planned cell"),
            format!(
                "A name has 1 to {} letters, digits, - and _, and is not a number.",
                gaol_abi::NAME_LENGTH - 1
            ),
        ));
    }
    if matches!(name, "root" | "system") {
        return Err(refused(
            format!("{name:?} is the name of something else"),
            "The root cell is \"root\", and the system file is system.toml: choose another name.",
        ));
    }
    Ok(())
}

/// Plans a cell on a machine, with the system file that was made for the machine.
///
/// # Errors
/// What can't be had.
pub fn plan(machine: &Machine, created: &Created, request: &Request) -> Result<Plan, Refused> {
    check_name(&request.name)?;
    let devices = devices::choose(machine, &request.devices)?;
    let near = devices
        .functions
        .iter()
        .find_map(|function| Some((function.address, function.node?)));
    let cpus = processors::choose(machine, request.cpus, near)?;
    let memory = memory::lay_out(
        machine,
        request,
        &cpus.chosen,
        !devices.functions.is_empty(),
    )?;

    let mut text = Text::default();
    text.comment(&format!(
        "The cell \"{}\", as `gaol plan` laid it out.",
        request.name
    ));
    text.line("");
    text.line(&format!("name = \"{}\"", request.name));
    text.comment(&cpus.choice.why);
    let list: Vec<String> = cpus.chosen.iter().map(u32::to_string).collect();
    text.line(&format!("cpus = [{}]", list.join(", ")));
    text.comment("It prints on the hypervisor's console.");
    text.line("console = true");
    if request.unprotected_dma {
        text.comment("Where no IOMMU is in front of its functions, their DMA reaches all memory of the machine.");
        text.line("unprotected-dma = true");
    }
    for function in &devices.functions {
        text.table("[[devices]]");
        text.comment(&devices::describe(function));
        text.line(&format!("address = \"{}\"", function.address));
    }
    memory::write(&mut text, &memory.regions);
    let toml = text.finish();

    let file = format!("{}.toml", request.name);
    let cell = Cell::from_toml_on(&file, &toml, &created.system)
        .map_err(|problem| Refused::Configuration(vec![problem]))?;
    let report = check(any_machine(), &created.system, std::slice::from_ref(&cell));
    let mut reasons = report.problems.iter().map(Problem::reason);
    if !report.problems.is_empty() && reasons.all(|reason| reason == Reason::UnprotectedDma) {
        return Err(refused(
            format!(
                "no IOMMU keeps {} in the memory of the cell",
                names(&devices.functions)
            ),
            "Plan with --unprotected-dma if you trust the cell with the whole machine.",
        ));
    }
    if !report.problems.is_empty() {
        return Err(Refused::Configuration(report.problems));
    }
    let mut choices = vec![cpus.choice];
    choices.extend(devices.choices);
    choices.extend(memory.choices);
    choices.push(hypervisor(created));
    Ok(Plan {
        toml,
        cell,
        choices,
        warnings: report.warnings,
    })
}

/// Addresses of functions, for people.
fn names(functions: &[&Function]) -> String {
    let names: Vec<String> = functions
        .iter()
        .map(|function| function.address.to_string())
        .collect();
    names.join(", ")
}

fn hypervisor(created: &Created) -> Choice {
    let view = created.system.view();
    let console = match view.console_port() {
        Some(port) => format!("Its console is the serial port at {port:#x}."),
        None => "Its console is in memory: gaol console.".to_owned(),
    };
    Choice {
        what: "hypervisor",
        value: Size(view.header().hypervisor_size).to_string(),
        why: format!("This suits the number of CPUs; Linux gives it at run time. {console}"),
    }
}

/// The commands that come next. `directory` is where the files are, as one types it.
#[must_use]
pub fn commands(request: &Request, directory: &str) -> Vec<String> {
    let name = &request.name;
    let path = |file: &str| match directory {
        "" | "." => file.to_owned(),
        directory => format!("{}/{file}", directory.trim_end_matches('/')),
    };
    let (system, cell) = (path(SYSTEM_FILE), path(&format!("{name}.toml")));
    let image = request.image.as_ref().map_or("IMAGE", |(image, _)| image);
    vec![
        format!("gaol enable {}", quoted(&system)),
        format!("gaol cell create {}", quoted(&cell)),
        format!("gaol cell load {name} {}", quoted(image)),
        format!("gaol cell start {name}"),
    ]
}

/// As a shell takes it for one word.
fn quoted(word: &str) -> String {
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "/._-+,:@%".contains(letter);
    match word.chars().all(is_plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}
