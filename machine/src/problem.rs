//! What is wrong with a file, a table or a register of a machine: which one, what, and the remedy.

use std::fmt;
use std::io;

/// What kind of problem it is, for those who treat some kinds as facts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It is not there: often a fact about the machine rather than an error.
    Missing,
    /// It may not be read by this user, or was hidden from this user.
    Permission,
    /// It is there, and what it says makes no sense.
    Garbage,
    /// It is larger than anything that is read.
    TooLarge,
    /// The system failed to read it.
    System,
}

/// Something that could not be read or understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    kind: Kind,
    subject: String,
    what: String,
    remedy: String,
}

/// What a source fails with.
pub type SourceError = Problem;

impl Problem {
    /// A problem with `subject`: a path as on the machine, or the name of a table or register.
    #[must_use]
    pub fn new(
        kind: Kind,
        subject: impl Into<String>,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            kind,
            subject: subject.into(),
            what: what.into(),
            remedy: remedy.into(),
        }
    }

    /// Content of `subject` that makes no sense; it comes from the firmware or the kernel, so the remedy is theirs.
    #[must_use]
    pub fn garbage(subject: impl Into<String>, what: impl Into<String>) -> Self {
        let subject = subject.into();
        let remedy = match subject.starts_with('/') {
            true => "Read it on the machine, as root; in a collection, collect it anew.",
            false => "Update the firmware; in a collection, collect it anew.",
        };
        Self::new(Kind::Garbage, subject, what, remedy)
    }

    /// What the system said when `subject` was read.
    #[must_use]
    pub fn from_io(subject: impl Into<String>, error: &io::Error) -> Self {
        let (kind, remedy) = match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => (
                Kind::Missing,
                "Mount /proc and /sys; in a collection, collect it anew.",
            ),
            io::ErrorKind::PermissionDenied => (Kind::Permission, "Run gaol as root."),
            _ => (Kind::System, "See `dmesg` for what the kernel says."),
        };
        let text = error.to_string();
        let words = text.split_once(" (os error").map_or(&*text, |(it, _)| it);
        Self::new(kind, subject, words, remedy)
    }

    /// The same problem with another remedy.
    #[must_use]
    pub fn with_remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = remedy.into();
        self
    }

    /// What kind of problem it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Whether the subject is not there, as opposed to unreadable or garbage.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        self.kind == Kind::Missing
    }

    /// Which file, table or register it is about.
    #[must_use]
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// What is wrong with it, without its name.
    #[must_use]
    pub fn what(&self) -> &str {
        &self.what
    }

    /// How to mend it: one sentence.
    #[must_use]
    pub fn remedy(&self) -> &str {
        &self.remedy
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.subject, self.what)
    }
}

impl std::error::Error for Problem {}

/// A thing that a machine may lack: `None` when it is missing, an error when it is there and can't be read.
///
/// # Errors
/// Every problem but a missing subject.
pub fn optional<T>(result: Result<T, Problem>) -> Result<Option<T>, Problem> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(problem) if problem.is_missing() => Ok(None),
        Err(problem) => Err(problem),
    }
}
