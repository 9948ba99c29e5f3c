//! `gaol config build` and `gaol config check`.

use std::fs;
use std::path::{Path, PathBuf};

use gaol_config::check::{any_machine, check as check_system};
use gaol_config::explain::cpu_list;
use gaol_config::{Cell, Configuration, CpuSet, Machine};
use serde_json::{Value, json};

use crate::failure::{Failure, Result};
use crate::host::read_configuration;
use crate::output::{Report, Side, table};

/// `gaol config build`.
///
/// # Errors
/// Why nothing was written.
pub fn build(file: &Path, output: &Path) -> Result<Report> {
    let configuration = read_configuration(file)?;
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

/// `gaol config check`.
///
/// # Errors
/// What is wrong.
pub fn check(system_path: &Path, cell_paths: &[PathBuf], cpus: Option<u32>) -> Result<Report> {
    let system = match read_configuration(system_path)? {
        Configuration::System(system) => system,
        Configuration::Cell(_) => {
            return Err(wrong_kind(system_path, "a cell", "a system"));
        }
    };
    let mut cells: Vec<Cell> = Vec::new();
    for path in cell_paths {
        match read_configuration(path)? {
            Configuration::Cell(cell) => cells.push(cell),
            Configuration::System(_) => return Err(wrong_kind(path, "a system", "a cell")),
        }
    }
    let machine = Machine {
        cpus: cpus.map_or(any_machine().cpus, CpuSet::first),
        ..any_machine()
    };
    let problems = check_system(machine, &system, &cells);
    if !problems.is_empty() {
        return Err(Failure::configuration(problems));
    }
    Ok(Report {
        text: good_text(system_path, &cells),
        json: json!({
            "ok": true,
            "system": system_path.display().to_string(),
            "cells": cells.iter().map(cell_json).collect::<Vec<Value>>(),
        }),
    })
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
