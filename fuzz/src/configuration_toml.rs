//! TOML files: each alone as a system and as a cell, and all of them together. They stand one after the other, with
//! [`SEPARATOR`] between them.

use gaol_config::check::{any_machine, check};
use gaol_config::compile::{Cell, Configuration, System};
use gaol_config::problem::Problem;
use miette::{GraphicalReportHandler, GraphicalTheme};

use crate::pieces;

/// The line that stands between two files.
pub const SEPARATOR: &[u8] = b"\n#### next file ####\n";
/// The most files that are looked at.
const MAX_FILES: usize = 6;

/// Panics unless a problem can be shown, and says what is wrong and what to do.
pub(crate) fn is_well_told(problem: &Problem) {
    assert!(!problem.message().is_empty(), "{problem:?}");
    assert!(!problem.remedy().is_empty(), "{problem:?}");
    let mut report = String::new();
    let handler = GraphicalReportHandler::new_themed(GraphicalTheme::unicode_nocolor());
    let shown = handler.render_report(&mut report, problem);
    assert!(shown.is_ok() && !report.is_empty(), "{problem:?}");
    let _ = problem.line_and_column();
}

/// What came out; what speaks against it has to be well told, and to stand somewhere in the file.
fn compiled<T>(result: Result<T, Vec<Problem>>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(problems) => {
            assert!(!problems.is_empty());
            problems.iter().for_each(is_well_told);
            None
        }
    }
}

/// The bytes as files that are used together.
pub fn run(bytes: &[u8]) {
    let pieces = pieces(bytes, SEPARATOR);
    let mut texts = Vec::new();
    for piece in pieces.into_iter().take(MAX_FILES) {
        let read = Configuration::read("fuzz.toml", piece);
        if let Err(problem) = &read {
            is_well_told(problem);
        }
        match core::str::from_utf8(piece) {
            Ok(text) => texts.push(text),
            Err(_) => assert!(read.is_err()),
        }
    }
    let mut systems = vec![System::built_in()];
    for text in &texts {
        let system = compiled(System::compile("system.toml", text));
        // It judges the machine as a whole as well.
        match System::from_toml("system.toml", text) {
            Ok(_) => assert!(system.is_some()),
            Err(problem) => is_well_told(&problem),
        }
        systems.extend(system);
    }
    for system in &systems {
        let cells: Vec<Cell> = texts
            .iter()
            .filter_map(|text| compiled(Cell::compile("cell.toml", text, Some(system))))
            .collect();
        let problems = check(any_machine(), system, &cells);
        for problem in &problems {
            is_well_told(problem);
            assert!(problem.line_and_column().is_some(), "{problem:?}");
        }
    }
}
