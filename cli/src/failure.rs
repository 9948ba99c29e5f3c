//! Why a command did not do what it should: who is to blame, what, and the remedy.

use std::io::IsTerminal;

use gaol_abi::outcome::{Outcome, Reason};
use gaol_config::Problem;
use gaol_config::check::Report;
use miette::{GraphicalReportHandler, GraphicalTheme};
use serde_json::{Map, Value, json};

/// A command's failure.
#[derive(Debug)]
pub struct Failure {
    /// A name for programs, in snake case.
    reason: String,
    message: String,
    remedy: String,
    /// What belongs to it, for programs.
    fields: Map<String, Value>,
    /// Problems of configuration files, which explain themselves.
    found: Box<Found>,
    /// What was found out all the same: for people, and what joins the object for programs.
    answer: Box<(String, Map<String, Value>)>,
}

/// What a check of configuration files found.
#[derive(Debug, Default)]
struct Found {
    problems: Vec<Problem>,
    /// `None` when there was no check of a whole system.
    warnings: Option<Vec<Problem>>,
}

/// The result of what can fail.
pub type Result<T> = std::result::Result<T, Failure>;

/// The name of a reason for programs: "no_such_cell".
#[must_use]
pub fn reason_name(reason: Reason) -> String {
    let mut name = String::new();
    for letter in format!("{reason:?}").chars() {
        if letter.is_ascii_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_lowercase());
    }
    name
}

impl Failure {
    /// A failure that the module has no number for.
    #[must_use]
    pub fn new(reason: &str, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            reason: reason.to_owned(),
            message: message.into(),
            remedy: remedy.into(),
            fields: Map::new(),
            found: Box::default(),
            answer: Box::default(),
        }
    }

    /// Adds what was found out all the same: a text for standard output, and members of the JSON object.
    #[must_use]
    pub fn with_answer(mut self, text: String, object: Map<String, Value>) -> Self {
        self.answer = Box::new((text, object));
        self
    }

    /// What was found out all the same, for standard output: often nothing.
    #[must_use]
    pub fn answer(&self) -> &str {
        &self.answer.0
    }

    /// A failure that the module or the hypervisor reported.
    #[must_use]
    pub fn reported(errno: i32, outcome: &Outcome, message: String, remedy: String) -> Self {
        let name = match outcome.reason {
            Reason::None => "system_error".to_owned(),
            reason => reason_name(reason),
        };
        let mut failure = Self::new(&name, message, remedy);
        failure.set("errno", errno);
        if outcome.reason != Reason::None {
            failure.set("detail", outcome.detail);
            failure.set("cpu", outcome.cpu);
            failure.set("step", outcome.step);
        }
        failure
    }

    /// Problems of configuration files.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn configuration(problems: Vec<Problem>) -> Self {
        let first = &problems[0];
        let reason = reason_name(first.reason());
        let mut failure = Self::new(&reason, first.to_string(), first.remedy());
        for (key, value) in problem_fields(first) {
            failure.fields.insert(key, value);
        }
        failure.found.problems = problems;
        failure
    }

    /// Problems that a check of a whole system found, and its warnings.
    ///
    /// # Panics
    /// When there is no problem.
    #[must_use]
    pub fn checked(report: Report) -> Self {
        let mut failure = Self::configuration(report.problems);
        failure.found.warnings = Some(report.warnings);
        failure
    }

    /// Something about a file or directory.
    #[must_use]
    pub fn file(what: &str, path: &std::path::Path, error: &std::io::Error, remedy: &str) -> Self {
        let message = format!("cannot {what} {}: {}", path.display(), plain(error));
        let mut failure = Self::new("file", message, remedy);
        failure.set("file", path.display().to_string());
        failure
    }

    /// Adds a value for programs.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.fields.insert(key.to_owned(), value.into());
    }

    /// The failure as one JSON object.
    #[must_use]
    pub fn json(&self) -> Value {
        let mut error = self.fields.clone();
        error.insert("reason".to_owned(), self.reason.clone().into());
        error.insert("message".to_owned(), self.message.clone().into());
        error.insert("remedy".to_owned(), self.remedy.clone().into());
        let mut object = json!({ "ok": false, "error": error });
        for (key, value) in &self.answer.1 {
            object[key] = value.clone();
        }
        let Found { problems, warnings } = &*self.found;
        if problems.len() > 1 || warnings.is_some() {
            object["problems"] = problems_json(problems);
        }
        if let Some(warnings) = warnings {
            object["warnings"] = problems_json(warnings);
        }
        object
    }

    /// The failure for people.
    #[must_use]
    pub fn text(&self) -> String {
        if self.found.problems.is_empty() {
            return match self.remedy.is_empty() {
                true => format!("gaol: {}\n", self.message),
                false => format!("gaol: {}\n  {}\n", self.message, self.remedy),
            };
        }
        let warnings = self.found.warnings.iter().flatten();
        let is_terminal = std::io::stderr().is_terminal();
        let all = self.found.problems.iter().chain(warnings);
        all.map(|problem| render(problem, is_terminal)).collect()
    }
}

/// The system's words without the number that the standard library adds.
#[must_use]
pub fn plain(error: &std::io::Error) -> String {
    let text = error.to_string();
    match text.split_once(" (os error") {
        Some((words, _)) => words.to_owned(),
        None => text,
    }
}

/// Problems or warnings for programs.
#[must_use]
pub fn problems_json(problems: &[Problem]) -> Value {
    let all = problems.iter().map(problem_fields);
    all.map(Value::Object).collect()
}

fn problem_fields(problem: &Problem) -> Map<String, Value> {
    let mut fields = Map::new();
    fields.insert("file".to_owned(), problem.file().into());
    if let Some((line, column)) = problem.line_and_column() {
        fields.insert("line".to_owned(), line.into());
        fields.insert("column".to_owned(), column.into());
    }
    let reason = match problem.doubt() {
        Some(doubt) => doubt.name().to_owned(),
        None => reason_name(problem.reason()),
    };
    fields.insert("reason".to_owned(), reason.into());
    fields.insert("message".to_owned(), problem.message().into());
    fields.insert("remedy".to_owned(), problem.remedy().into());
    fields
}

/// An excerpt of the file with the place underlined: in colour on a terminal, in ASCII where letters beyond it may not
/// be shown.
#[must_use]
pub fn render(problem: &Problem, is_terminal: bool) -> String {
    let has_unicode = ["LC_ALL", "LC_CTYPE", "LANG"]
        .iter()
        .find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
        .is_some_and(|locale| locale.to_lowercase().replace('-', "").contains("utf8"));
    let has_colour = is_terminal && std::env::var_os("NO_COLOR").is_none();
    let theme = match (has_unicode, has_colour) {
        (true, true) => GraphicalTheme::unicode(),
        (true, false) => GraphicalTheme::unicode_nocolor(),
        (false, true) => GraphicalTheme {
            characters: miette::ThemeCharacters::ascii(),
            styles: miette::ThemeStyles::ansi(),
        },
        (false, false) => GraphicalTheme::none(),
    };
    let mut text = String::new();
    let handler = GraphicalReportHandler::new_themed(theme)
        .with_width(100)
        .with_links(false);
    match handler.render_report(&mut text, problem) {
        Ok(()) => text,
        Err(_) => format!("gaol: {problem}\n  {}\n", problem.remedy()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_named_in_snake_case() {
        assert_eq!(reason_name(Reason::NoSuchCell), "no_such_cell");
        assert_eq!(reason_name(Reason::UnknownCr4), "unknown_cr4");
        assert_eq!(
            reason_name(Reason::MemoryIsHypervisors),
            "memory_is_hypervisors"
        );
    }

    #[test]
    fn the_systems_words_come_without_numbers() {
        let error = std::io::Error::from_raw_os_error(2);
        assert_eq!(plain(&error), "No such file or directory");
    }
}
