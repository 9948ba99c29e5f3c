//! Builds, tests, demonstrates and measures Gaol.

#![forbid(unsafe_code)]

mod bench;
mod boot;
mod build;
mod demo;
mod flatten;
mod fuzz;
mod image;
mod place;
mod process;
mod progress;
mod setup;
mod table;
mod test;
mod toolchain;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::progress::Progress;

/// Builds, tests, demonstrates and measures Gaol.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version)]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what is missing: Debian packages (as root) and the bare-metal Rust target
    Setup,
    /// Build the hypervisor, the cells, the module and the command into target/gaol
    Build {
        /// Build only these
        parts: Vec<build::Part>,
    },
    /// Host tests, lints and system tests; ends with `N passed, N failed`
    Test(test::Arguments),
    /// Show Gaol at work: Linux, a real-time cell, and the machine given back
    Demo(demo::Arguments),
    /// Count what Gaol costs, exactly, and compare with the baseline
    Bench(bench::Arguments),
    /// Fuzz everything that reads bytes from outside; ends with `N targets, N executions, N findings`
    Fuzz(fuzz::Arguments),
    /// Boot the stock kernel on an emulated machine and run commands in it
    #[command(hide = true)]
    Boot(boot::Arguments),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Task::Setup => with_progress(1, |progress| setup::run(progress).map(|_| ())),
        Task::Build { parts } => {
            let parts = if parts.is_empty() {
                build::PARTS.to_vec()
            } else {
                parts
            };
            with_progress(parts.len() as u64, |progress| {
                let toolchain = setup::run(progress)?;
                build::run(progress, &toolchain, &parts)
            })
        }
        Task::Demo(arguments) => demo::run(&arguments),
        Task::Bench(arguments) => bench::run(&arguments),
        Task::Test(arguments) => test::run(&arguments),
        Task::Fuzz(arguments) => fuzz::run(&arguments),
        Task::Boot(arguments) => boot::run(&arguments),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs a task of about `stages` stages that fails or succeeds as a whole.
fn with_progress(stages: u64, task: impl FnOnce(&Progress) -> Result<()>) -> Result<ExitCode> {
    let progress = Progress::new(stages);
    task(&progress)?;
    progress.finish();
    eprintln!("done in {:.1} s", progress.elapsed().as_secs_f64());
    Ok(ExitCode::SUCCESS)
}
