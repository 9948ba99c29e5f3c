//! `gaol hardware check`: what a machine has and lacks for Gaol.

use std::io::IsTerminal;
use std::path::Path;
use std::time::Duration;

use gaol_machine::hardware::{Facts, Row, Status, Verdict, check as judge, count, table, verdict};
use gaol_machine::{Problem, Source};
use serde_json::{Map, Value, json};

use crate::failure::{Failure, Result};
use crate::output::Report;

/// `gaol hardware check`.
///
/// # Errors
/// When Gaol cannot run there, or that can't be found out; the rows are in the failure then. When `root` can't be read.
pub fn check(root: Option<&Path>, seconds: u64) -> Result<Report> {
    let source = match root {
        Some(root) => Source::open(root),
        None => Source::live(),
    };
    let source = source.map_err(|problem| unreadable(&problem))?;
    let mut facts = Facts::read(&source);
    facts.count_smis(&source, seconds, |second| wait(second, seconds));
    answer(&judge(&facts))
}

fn unreadable(problem: &Problem) -> Failure {
    let mut failure = Failure::new("machine", problem.to_string(), problem.remedy());
    failure.set("file", problem.subject());
    failure
}

/// Lets a second pass, and tells people on a terminal that it does.
fn wait(second: u64, seconds: u64) {
    let is_for_programs = || std::env::args_os().any(|argument| argument == "--json");
    let is_watched = !cfg!(test) && std::io::stderr().is_terminal() && !is_for_programs();
    if is_watched {
        eprint!("\rcounting system management interrupts: {second} of {seconds} s ");
    }
    std::thread::sleep(Duration::from_secs(1));
    if is_watched && second + 1 == seconds {
        eprint!("\r\u{1b}[K");
    }
}

fn answer(rows: &[Row]) -> Result<Report> {
    let verdict = verdict(rows);
    let has_colours =
        !cfg!(test) && std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let text = table(rows, has_colours);
    let mut object = Map::new();
    object.insert("verdict".to_owned(), verdict.name().into());
    let summary = [
        Status::Ok,
        Status::Warning,
        Status::Missing,
        Status::Unknown,
    ]
    .map(|status| (status.name().to_owned(), count(rows, status).into()));
    object.insert("summary".to_owned(), Value::Object(Map::from_iter(summary)));
    object.insert("rows".to_owned(), rows.iter().map(row_json).collect());
    match verdict {
        Verdict::Runs => {
            object.insert("ok".to_owned(), true.into());
            Ok(Report {
                text: format!("{text}\nGaol can run on this machine.\n"),
                json: Value::Object(object),
            })
        }
        Verdict::Lacks => Err(failure(
            rows,
            Status::Missing,
            "hardware_missing",
            "Gaol cannot run on this machine as it is",
        )
        .with_answer(text, object)),
        Verdict::Undecided => Err(failure(
            rows,
            Status::Unknown,
            "hardware_unknown",
            "whether Gaol can run on this machine is not known",
        )
        .with_answer(text, object)),
    }
}

/// What stands in the way, by name, and the first remedy.
fn failure(rows: &[Row], status: Status, reason: &str, sentence: &str) -> Failure {
    let culprits = rows
        .iter()
        .filter(|row| row.status == status && row.is_needed);
    let culprits: Vec<&Row> = culprits.collect();
    let shown: Vec<&str> = culprits.iter().take(3).map(|row| row.name).collect();
    let more = match culprits.len().saturating_sub(shown.len()) {
        0 => String::new(),
        number => format!(" and {number} more"),
    };
    let message = format!("{sentence}: {status}: {}{more}", shown.join("; "));
    let remedy = culprits.first().map_or("", |row| row.remedy.as_str());
    Failure::new(reason, message, remedy)
}

fn row_json(row: &Row) -> Value {
    json!({
        "key": row.key,
        "name": row.name,
        "group": row.group.name(),
        "needed": row.is_needed,
        "status": row.status.name(),
        "finding": row.finding,
        "reason": row.reason,
        "remedy": row.remedy,
    })
}
