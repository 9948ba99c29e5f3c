//! `gaol config build`, `gaol config check` and `gaol config schema`.

use std::fs;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use gaol_abi::outcome::Reason;
use gaol_config::check::{self, any_machine};
use gaol_config::explain::cpu_list;
use gaol_config::{Cell, Configuration, CpuSet, Machine, Problem, System, json_schema};
use serde_json::{Value, json};

use crate::arguments::FileKind;
use crate::failure::{Failure, Result, problems_json, render};
use crate::host::{read_bytes, read_configuration};
use crate::output::{Report, Side, table};

/// `gaol config build`.
///
/// # Errors
/// Why nothing was written.
pub fn build(file: &Path, output: &Path, system: Option<&Path>) -> Result<Report> {
    let system = system.map(read_system).transpose()?;
    let configuration = read_for(file, system.as_ref())?;
    let (kind, bytes) = match &configuration {
        Configuration::System(system) => ("system", system.bytes()),
        Configuration::Cell(cell) => ("cell", cell.bytes()),
    };
    fs::write(output, bytes).map_err(|error| {
        Failure::file("write", output, &error, "Give another file with -o FILE.")
    })?;
    Ok(Report {
        text: format!(
            "{}: a {kind} configuration of {} bytes.\n",
            output.display(),
            bytes.len()
        ),
        json: json!({
            "ok": true,
            "kind": kind,
            "file": file.display().to_string(),
            "output": output.display().to_string(),
            "size": bytes.len(),
        }),
    })
}

/// A file of either kind, a cell checked on the machine of `system`.
fn read_for(file: &Path, system: Option<&System>) -> Result<Configuration> {
    let Some(system) = system else {
        return read_configuration(file);
    };
    let bytes = read_bytes(file)?;
    let configuration = Configuration::compile(&file.display().to_string(), &bytes, Some(system))
        .map_err(Failure::configuration)?;
    if let Configuration::Cell(cell) = &configuration {
        let problems = check::check(any_machine(), system, std::slice::from_ref(cell));
        if !problems.is_empty() {
            return Err(Failure::configuration(problems));
        }
    }
    Ok(configuration)
}

fn read_system(path: &Path) -> Result<System> {
    match read_configuration(path)? {
        Configuration::System(system) => Ok(system),
        Configuration::Cell(_) => Err(wrong_kind(path, "a cell", "a system")),
    }
}

/// `gaol config schema`.
#[must_use]
pub fn schema(kind: FileKind) -> Report {
    let json = match kind {
        FileKind::System => json_schema::system(),
        FileKind::Cell => json_schema::cell(),
    };
    Report {
        text: format!("{json:#}\n"),
        json,
    }
}

/// `gaol config check`.
///
/// # Errors
/// What is wrong.
pub fn check(system_path: &Path, cell_paths: &[PathBuf], cpus: Option<u32>) -> Result<Report> {
    let mut problems = Vec::new();
    let system = match compile(system_path, None, &mut problems)? {
        Some(Configuration::System(system)) => Some(system),
        Some(Configuration::Cell(_)) => return Err(wrong_kind(system_path, "a cell", "a system")),
        None => None,
    };
    let mut cells: Vec<Cell> = Vec::new();
    for path in cell_paths {
        match compile(path, system.as_ref(), &mut problems)? {
            Some(Configuration::Cell(cell)) => cells.push(cell),
            Some(Configuration::System(_)) => return Err(wrong_kind(path, "a system", "a cell")),
            None => {}
        }
    }
    let machine = Machine {
        cpus: cpus.map_or(any_machine().cpus, CpuSet::first),
        ..any_machine()
    };
    let mut report = match &system {
        Some(system) => check::report(machine, system, &cells),
        None => {
            // Which functions there are is in the file that could not be read.
            problems.retain(|problem: &Problem| problem.reason() != Reason::DeviceUnknown);
            check::Report {
                problems: check::check(machine, &System::built_in(), &cells),
                ..check::Report::default()
            }
        }
    };
    problems.append(&mut report.problems);
    report.problems = problems;
    if !report.problems.is_empty() {
        return Err(Failure::checked(report));
    }
    Ok(good(system_path, &cells, &report.warnings))
}

/// A file of either kind; what is wrong with it joins the others' problems.
fn compile(
    path: &Path,
    system: Option<&System>,
    problems: &mut Vec<Problem>,
) -> Result<Option<Configuration>> {
    let bytes = read_bytes(path)?;
    match Configuration::compile(&path.display().to_string(), &bytes, system) {
        Ok(configuration) => Ok(Some(configuration)),
        Err(mut found) => {
            problems.append(&mut found);
            Ok(None)
        }
    }
}

fn wrong_kind(path: &Path, is: &str, wanted: &str) -> Failure {
    Failure::new(
        "configuration_invalid",
        format!(
            "{} is {is} configuration, and {wanted} configuration stands here",
            path.display()
        ),
        "Give the system file first, and the files of cells behind it.",
    )
}

fn good(system: &Path, cells: &[Cell], warnings: &[Problem]) -> Report {
    let is_terminal = std::io::stdout().is_terminal();
    let mut text: String = warnings
        .iter()
        .map(|warning| render(warning, is_terminal))
        .collect();
    if !text.is_empty() {
        text.push('\n');
    }
    text.push_str(&good_text(system, cells));
    Report {
        text,
        json: json!({
            "ok": true,
            "system": system.display().to_string(),
            "cells": cells.iter().map(cell_json).collect::<Vec<Value>>(),
            "problems": [],
            "warnings": problems_json(warnings),
        }),
    }
}

fn good_text(system: &Path, cells: &[Cell]) -> String {
    if cells.is_empty() {
        return format!("{}: nothing is wrong.\n", system.display());
    }
    let mut rows = vec![["CELL", "CPUS", "FILE"].map(str::to_owned).to_vec()];
    for cell in cells {
        let view = cell.view();
        rows.push(vec![
            view.name().to_owned(),
            cpu_list(view.cpus()),
            cell.source.name.clone(),
        ]);
    }
    let table = table(&[Side::Left; 3], &rows);
    format!("{table}Nothing is wrong: all of them can exist at the same time.\n")
}

fn cell_json(cell: &Cell) -> Value {
    let view = cell.view();
    json!({
        "file": cell.source.name,
        "name": view.name(),
        "cpus": view.cpus().iter().collect::<Vec<u32>>(),
    })
}
