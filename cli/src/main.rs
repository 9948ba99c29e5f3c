//! The command that people use.
//!
//! Invariant: exit status 0 when it was done, 1 when it was refused or failed, 2 when the command line was wrong; with
//! `--json` there is exactly one JSON object on standard output in each of these cases (`--help` and `--version` apart).
#![deny(unsafe_code)]

mod arguments;
mod commands;
mod device;
mod disks;
#[allow(unsafe_code)]
mod driver;
mod explain;
mod failure;
mod host;
mod interrupts;
mod memory;
mod output;
mod symbols;
mod sysfs;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use crate::arguments::Arguments;
use crate::failure::Failure;
use crate::host::Host;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    if let Some(status) = memory::run_helper(&arguments) {
        return ExitCode::from(status);
    }
    let status = run(
        arguments,
        Host::real,
        &mut std::io::stdout(),
        &mut std::io::stderr(),
    );
    ExitCode::from(status)
}

/// Runs the command line; returns the exit status. Readers that went away don't matter: there is no one to tell.
fn run(
    arguments: Vec<OsString>,
    host: impl FnOnce() -> Host,
    output: &mut dyn Write,
    errors: &mut dyn Write,
) -> u8 {
    let wants_json = arguments.iter().any(|argument| argument == "--json");
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => return usage(&error, wants_json, output, errors),
    };
    let mut asides = Vec::new();
    let mut host = host();
    let result = commands::run(&arguments.command, &mut host, output, &mut asides);
    for note in memory::give_back(&mut host) {
        let _ = writeln!(errors, "gaol: {note}");
    }
    match result {
        Ok(report) => {
            if !arguments.json {
                let _ = errors.write_all(&asides);
            }
            let _ = match arguments.json {
                true => writeln!(output, "{}", report.json),
                false => write!(output, "{}", report.text),
            };
            0
        }
        Err(failure) => {
            let _ = match arguments.json {
                true => writeln!(output, "{}", failure.json()),
                false => write!(output, "{}", failure.answer())
                    .and_then(|()| write!(errors, "{}", failure.text())),
            };
            1
        }
    }
}

/// What clap has to say: help and version on standard output, everything else is wrong usage.
fn usage(
    error: &clap::Error,
    wants_json: bool,
    output: &mut dyn Write,
    errors: &mut dyn Write,
) -> u8 {
    if matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
    ) {
        // Clap knows whether standard output has colours.
        let _ = match output_is_terminal() {
            true => error.print(),
            false => write!(output, "{}", error.render()),
        };
        return 0;
    }
    let rendered = error.render().to_string();
    if wants_json {
        let lines = rendered.lines().take_while(|line| !line.is_empty());
        let message = lines.map(str::trim).collect::<Vec<_>>().join(" ");
        let message = message.trim_start_matches("error: ");
        let failure = Failure::new("usage", message, "See `gaol --help`.");
        let _ = writeln!(output, "{}", failure.json());
    } else {
        let _ = write!(errors, "{rendered}");
    }
    2
}

fn output_is_terminal() -> bool {
    use std::io::IsTerminal;
    !cfg!(test) && std::io::stdout().is_terminal()
}

#[cfg(test)]
mod tests;
