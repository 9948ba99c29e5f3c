//! The commands, one function each: from arguments and a machine to an answer.

pub mod cell;
pub mod collect;
pub mod config;
pub mod console;
pub mod create;
mod device_faults;
pub mod hardware;
pub mod histogram;
mod hypervisor_faults;
pub mod import;
pub mod list;
pub mod owners;
pub mod plan;
pub mod stats;
pub mod system;
pub mod trace;

use std::io::{IsTerminal, Write};

use crate::arguments::{CellCommand, Command, ConfigCommand, HardwareCommand};
use crate::device::Operation;
use crate::failure::Result;
use crate::host::Host;
use crate::output::Report;

/// Does what was asked for. `console -f` writes to `output` as it goes, and what people should know besides the answer is
/// written to `asides`; everything else is in the answer.
///
/// # Errors
/// Why it was not done.
pub fn run(
    command: &Command,
    host: &mut Host,
    output: &mut dyn Write,
    asides: &mut dyn Write,
) -> Result<Report> {
    match command {
        Command::Enable(arguments) => system::enable(host, arguments, asides),
        Command::Disable { force } => system::disable(host, *force),
        Command::Console { follow: false } => console::show(host),
        Command::Console { follow: true } => console::follow(host, output),
        Command::Trace { follow: false } => trace::trace(host),
        Command::Trace { follow: true } => trace::follow(host, output),
        Command::Cell(command) => run_cell(command, host),
        Command::Hardware(HardwareCommand::Check { root, smi_seconds }) => {
            hardware::check(root.as_deref(), *smi_seconds)
        }
        Command::Config(ConfigCommand::Build {
            file,
            output,
            system,
        }) => config::build(file, output, system.as_deref()),
        Command::Config(ConfigCommand::Check {
            system,
            cells,
            cpus,
        }) => config::check(system, cells, *cpus),
        Command::Config(ConfigCommand::Schema { kind }) => Ok(config::schema(*kind)),
        Command::Config(ConfigCommand::Collect { output, force }) => {
            collect::run(collect::live()?, output, *force, asides)
        }
        Command::Config(ConfigCommand::Create(arguments)) => create::run(host, arguments, asides),
        Command::Plan(arguments) => {
            let mut input = std::io::stdin().lock();
            let can_ask = arguments.ask || input.is_terminal();
            let answers = can_ask.then_some(&mut input as &mut dyn std::io::BufRead);
            plan::run(host, arguments, answers, output, asides)
        }
        Command::Config(ConfigCommand::Import {
            file,
            output,
            force,
        }) => import::import(file, output.as_deref(), *force, asides),
    }
}

fn run_cell(command: &CellCommand, host: &mut Host) -> Result<Report> {
    match command {
        CellCommand::Create {
            file,
            force,
            unchecked: false,
        } => cell::create(host, file, *force),
        CellCommand::Create {
            file,
            force,
            unchecked: true,
        } => cell::create_unchecked(host, file, *force),
        CellCommand::Load { cell, pieces } => cell::load(host, cell, pieces),
        CellCommand::Start { cell } => cell::operate(host, Operation::Start, cell, false),
        CellCommand::Shutdown { cell, force } => {
            cell::operate(host, Operation::Shutdown, cell, *force)
        }
        CellCommand::Destroy { cell, force } => {
            cell::operate(host, Operation::Destroy, cell, *force)
        }
        CellCommand::List => list::list(host),
        CellCommand::Stats { cell } => stats::stats(host, cell),
        CellCommand::Histogram { cell, region } => {
            histogram::histogram(host, cell, region.as_deref())
        }
    }
}
