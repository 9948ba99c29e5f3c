//! Builds, tests, demonstrates and measures Gaol.

#![forbid(unsafe_code)]

mod boot;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Builds, tests, demonstrates and measures Gaol.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version)]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Boot the stock kernel on an emulated machine and run commands in it
    #[command(hide = true)]
    Boot(boot::Arguments),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
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
