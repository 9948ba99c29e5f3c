//! A row of the answer, and what all of them come to.

use std::fmt;

use crate::problem::Problem;

use super::parse::ranges;

/// How it stands with a thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// As it should be.
    Ok,
    /// Gaol runs, but something is worse than it could be.
    Warning,
    /// Gaol cannot run.
    Missing,
    /// It could not be found out.
    Unknown,
}

impl Status {
    /// Its name, for people and for programs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Missing => "missing",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

/// What a row is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// VMX or SVM.
    Virtualization,
    /// The CPUs and their features.
    Processor,
    /// Interrupt controllers and IOMMUs.
    Devices,
    /// What Linux was told and does.
    Linux,
    /// What delays a real-time cell.
    RealTime,
}

impl Group {
    /// Its name for programs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Virtualization => "virtualization",
            Self::Processor => "processor",
            Self::Devices => "devices",
            Self::Linux => "linux",
            Self::RealTime => "real_time",
        }
    }
}

/// What is asked for, whatever the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Question {
    pub key: &'static str,
    pub name: &'static str,
    pub group: Group,
    pub is_needed: bool,
    pub reason: &'static str,
}

impl Group {
    /// A question of this group whose answer decides whether Gaol can run.
    pub(super) const fn needed(
        self,
        key: &'static str,
        name: &'static str,
        reason: &'static str,
    ) -> Question {
        Question {
            key,
            name,
            group: self,
            is_needed: true,
            reason,
        }
    }

    /// A question of this group whose answer is only worth knowing.
    pub(super) const fn wanted(
        self,
        key: &'static str,
        name: &'static str,
        reason: &'static str,
    ) -> Question {
        Question {
            is_needed: false,
            ..self.needed(key, name, reason)
        }
    }
}

/// A thing that the machine has or lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its name for programs, which stays.
    pub key: &'static str,
    /// Its name for people.
    pub name: &'static str,
    /// What it belongs to.
    pub group: Group,
    /// Whether Gaol cannot run without, so that it has to be known.
    pub is_needed: bool,
    /// How it stands.
    pub status: Status,
    /// What was found: a phrase without a full stop.
    pub finding: String,
    /// Why it matters: a sentence.
    pub reason: String,
    /// What to do: a sentence; empty when nothing is to be done.
    pub remedy: String,
}

impl Question {
    fn row(&self, status: Status, finding: String, remedy: String) -> Row {
        Row {
            key: self.key,
            name: self.name,
            group: self.group,
            is_needed: self.is_needed || status == Status::Missing,
            status,
            finding,
            reason: self.reason.to_owned(),
            remedy,
        }
    }

    /// All is well.
    pub fn ok(&self, finding: impl Into<String>) -> Row {
        self.row(Status::Ok, finding.into(), String::new())
    }

    /// It is not as it should be: `missing` where Gaol needs it, else a warning.
    pub fn bad(&self, finding: impl Into<String>, remedy: impl Into<String>) -> Row {
        let status = match self.is_needed {
            true => Status::Missing,
            false => Status::Warning,
        };
        self.row(status, finding.into(), remedy.into())
    }

    /// Gaol cannot run with it as it is, though it need not be known.
    pub fn missing(&self, finding: impl Into<String>, remedy: impl Into<String>) -> Row {
        self.row(Status::Missing, finding.into(), remedy.into())
    }

    /// It could be better, though what is needed is there.
    pub fn warning(&self, finding: impl Into<String>, remedy: impl Into<String>) -> Row {
        self.row(Status::Warning, finding.into(), remedy.into())
    }

    /// It could not be read.
    pub fn unknown(&self, problem: &Problem) -> Row {
        self.row(
            Status::Unknown,
            format!("not known: {problem}"),
            problem.remedy().to_owned(),
        )
    }

    /// It cannot be known, for this reason.
    pub fn undecided(&self, finding: impl Into<String>, remedy: impl Into<String>) -> Row {
        self.row(Status::Unknown, finding.into(), remedy.into())
    }

    /// What all CPUs are to have.
    pub fn on_all(&self, census: &Census, remedy: &str) -> Row {
        match census {
            Census::All(number) => self.ok(on_all(*number)),
            Census::Not { lacking, all } => self.bad(not_on(lacking, *all), remedy),
            Census::Unknown(problem) => self.unknown(problem),
        }
    }
}

/// "on all 4 CPUs".
pub(super) fn on_all(number: usize) -> String {
    match number {
        1 => "on the only CPU".to_owned(),
        number => format!("on all {number} CPUs"),
    }
}

/// "CPU 3", "CPUs 2-3".
pub(super) fn cpus(numbers: &[u32]) -> String {
    match numbers {
        [number] => format!("CPU {number}"),
        numbers => format!("CPUs {}", ranges(numbers)),
    }
}

fn not_on(lacking: &[u32], all: usize) -> String {
    match lacking.len() == all {
        true => "on no CPU".to_owned(),
        false => format!("not on {}", cpus(lacking)),
    }
}

/// Which CPUs have something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Census {
    /// All of them, so many.
    All(usize),
    /// These don't, of so many.
    Not { lacking: Vec<u32>, all: usize },
    /// At least one does not tell, and none is known to lack it.
    Unknown(Problem),
}

/// What all rows come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Gaol can run.
    Runs,
    /// Something that it needs is missing.
    Lacks,
    /// Whether something that it needs is there could not be found out.
    Undecided,
}

impl Verdict {
    /// Its name for programs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Runs => "runs",
            Self::Lacks => "lacks",
            Self::Undecided => "undecided",
        }
    }
}

/// What the rows come to.
#[must_use]
pub fn verdict(rows: &[Row]) -> Verdict {
    let any = |status| rows.iter().any(|row| row.status == status && row.is_needed);
    if any(Status::Missing) {
        Verdict::Lacks
    } else if any(Status::Unknown) {
        Verdict::Undecided
    } else {
        Verdict::Runs
    }
}
