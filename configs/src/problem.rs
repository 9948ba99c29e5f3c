//! What is wrong with a configuration, told so that it can be mended: the place in the file, the reason, the remedy.

use core::fmt;
use core::ops::Range;

use gaol_abi::outcome::Reason;
use miette::{Diagnostic, LabeledSpan, NamedSource, Severity, SourceCode};

/// Bytes of a file.
pub type Place = Range<usize>;

/// A file that a configuration was read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Name of the file.
    pub name: String,
    /// Its text; empty for a binary one.
    pub text: String,
}

/// What is doubtful in a configuration that can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// Memory that large pages can't map.
    SmallPages,
    /// Hyper-threads of one core in two cells.
    SharedCore,
    /// System management interrupts were seen on a cell's CPU.
    Smis,
    /// Memory on another node than the CPUs.
    FarMemory,
    /// A cache that a cell shares and could have ways of for itself.
    SharedCache,
    /// Memory that is executed, and that devices can write to.
    CodeInReachOfDevices,
    /// PCI functions whose DMA no IOMMU holds.
    UnprotectedDma,
    /// Shared memory that nobody shares.
    NotShared,
    /// Nothing is known of the machine.
    UnknownMachine,
    /// This build of the hypervisor can't keep what the file asks for.
    Unsupported,
}

impl Doubt {
    /// Its name for programs, in snake case.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::SmallPages => "small_pages",
            Self::SharedCore => "shared_core",
            Self::Smis => "smis",
            Self::FarMemory => "far_memory",
            Self::SharedCache => "shared_cache",
            Self::CodeInReachOfDevices => "code_in_reach_of_devices",
            Self::UnprotectedDma => "unprotected_dma",
            Self::NotShared => "not_shared",
            Self::UnknownMachine => "unknown_machine",
            Self::Unsupported => "unsupported",
        }
    }
}

/// Something wrong or doubtful in a configuration.
#[derive(Debug)]
pub struct Problem {
    doubt: Option<Doubt>,
    message: String,
    remedy: String,
    label: Option<(Place, String)>,
    reason: Reason,
    text: Box<NamedSource<String>>,
}

impl Problem {
    /// A problem of the file as a whole.
    #[must_use]
    pub fn new(source: &Source, reason: Reason, message: String, remedy: String) -> Self {
        Self {
            doubt: None,
            message,
            remedy,
            label: None,
            reason,
            text: Box::new(NamedSource::new(&source.name, source.text.clone())),
        }
    }

    /// A warning about the file as a whole.
    #[must_use]
    pub fn warning(source: &Source, doubt: Doubt, message: String, remedy: String) -> Self {
        Self {
            doubt: Some(doubt),
            ..Self::new(source, Reason::None, message, remedy)
        }
    }

    /// The same with who is behind it.
    #[must_use]
    pub fn because(mut self, who: &str) -> Self {
        self.message = format!("{} ({who})", self.message);
        self
    }

    /// The same said as a warning.
    #[must_use]
    pub fn as_warning(self, doubt: Doubt) -> Self {
        Self {
            doubt: Some(doubt),
            ..self
        }
    }

    /// What is doubtful; `None` for what is wrong.
    #[must_use]
    pub fn doubt(&self) -> Option<Doubt> {
        self.doubt
    }

    /// The same problem, with a place of the file underlined, and what is to be said of it there.
    #[must_use]
    pub fn at(mut self, place: Option<Place>, label: impl Into<String>) -> Self {
        self.label = place.map(|place| (place, label.into()));
        self
    }

    /// What is wrong, in one sentence.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// How to mend it.
    #[must_use]
    pub fn remedy(&self) -> &str {
        &self.remedy
    }

    /// The reason that the hypervisor would give; [`Reason::None`] for what it would never see.
    #[must_use]
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// The bytes of the file that are underlined.
    #[must_use]
    pub fn place(&self) -> Option<&Place> {
        self.label.as_ref().map(|(place, _)| place)
    }

    /// Name of the file.
    #[must_use]
    pub fn file(&self) -> &str {
        self.text.name()
    }

    /// Line and column of the place, both counted from 1.
    #[must_use]
    pub fn line_and_column(&self) -> Option<(usize, usize)> {
        let (place, _) = self.label.as_ref()?;
        let before = self.text.inner().get(..place.start)?;
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next()?.chars().count() + 1;
        Some((line, column))
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The excerpt names the file; without one the sentence has to.
        match self.label {
            Some(_) => formatter.write_str(&self.message),
            None => write!(formatter, "{}: {}", self.file(), self.message),
        }
    }
}

impl core::error::Error for Problem {}

impl Diagnostic for Problem {
    fn severity(&self) -> Option<Severity> {
        Some(match self.doubt {
            None => Severity::Error,
            Some(Doubt::UnknownMachine) => Severity::Advice,
            Some(_) => Severity::Warning,
        })
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        Some(Box::new(&self.remedy))
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.label.as_ref().map(|_| &*self.text as &dyn SourceCode)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let (place, label) = self.label.as_ref()?;
        let label = LabeledSpan::new(Some(label.clone()), place.start, place.len());
        Some(Box::new(core::iter::once(label)))
    }
}
