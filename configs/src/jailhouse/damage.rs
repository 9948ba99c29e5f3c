//! What can be wrong with a binary configuration of Jailhouse.
//!
//! Invariant: each damage names the field, as Jailhouse's sources do, and the place in the file.

use core::fmt;

use gaol_abi::outcome::Reason;

use super::layout::{ARCHITECTURE_ARM, ARCHITECTURE_ARM64};
use crate::problem::{Problem, Source};

/// Why a file can not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The field, as it is called in Jailhouse's C sources.
    pub field: String,
    /// Where the field begins: bytes from the beginning of the file.
    pub offset: usize,
    /// What is wrong with it.
    pub fault: Fault,
}

/// What is wrong with a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The file ends in it.
    Truncated {
        /// Bytes that it has.
        needed: usize,
        /// Bytes of it that are in the file.
        available: usize,
    },
    /// The file is larger than any configuration.
    TooLarge {
        /// Most bytes that a file can have.
        most: usize,
    },
    /// The file does not begin as Jailhouse's configurations do.
    WrongSignature {
        /// What it begins with.
        found: [u8; 8],
    },
    /// The signature is that of another revision.
    SignatureOfOtherRevision {
        /// What the revision is said to be.
        revision: u16,
    },
    /// The layout of this revision is not known.
    UnsupportedRevision {
        /// The revision.
        revision: u16,
    },
    /// The configuration is for another kind of processor.
    UnsupportedArchitecture {
        /// Its number.
        architecture: u8,
    },
    /// The field only has this value on Arm.
    OnlyOnArm {
        /// The value.
        value: u64,
    },
    /// More entries than there can be.
    TooMany {
        /// Entries.
        count: u64,
        /// Most entries.
        most: u64,
    },
    /// Refers to entries that are not there.
    BeyondEnd {
        /// First entry that is meant.
        first: u64,
        /// Entries that are meant.
        count: u64,
        /// Entries that there are.
        entries: u64,
    },
    /// A value that has no meaning.
    UnknownValue {
        /// The value.
        value: u64,
    },
}

impl Damage {
    /// Why the file is refused, for programs.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self.fault {
            Fault::UnsupportedRevision { .. } => Reason::ConfigurationRevision,
            Fault::TooLarge { .. } => Reason::ConfigurationTooBig,
            _ => Reason::ConfigurationInvalid,
        }
    }

    /// How to mend it.
    #[must_use]
    pub fn remedy(&self) -> String {
        match self.fault {
            Fault::WrongSignature { found } => remedy_for_signature(found).to_owned(),
            Fault::UnsupportedRevision { .. } => {
                "Build the configuration from its C source with Jailhouse's master branch, whose revision is 14."
                    .to_owned()
            }
            Fault::UnsupportedArchitecture { .. } | Fault::OnlyOnArm { .. } => {
                "Give the configuration of an x86 machine: Gaol has no other.".to_owned()
            }
            _ => "Build the .cell file anew from its C source: this one is damaged, or no configuration.".to_owned(),
        }
    }

    /// The damage as a problem of the file with this name.
    #[must_use]
    pub fn problem(&self, file: &str) -> Problem {
        let source = Source {
            name: file.to_owned(),
            text: String::new(),
        };
        Problem::new(&source, self.reason(), self.to_string(), self.remedy())
    }
}

fn remedy_for_signature(found: [u8; 8]) -> &'static str {
    match &found {
        [0x7f, b'E', b'L', b'F', ..] => {
            "This is an object file. Give the .cell file that Jailhouse's build makes of it."
        }
        [b'G', b'A', b'O', b'L', ..] => {
            "This is a configuration of Gaol already: there is nothing to import."
        }
        [b'J', b'A', b'I', b'L', ..] => {
            "This is of a Jailhouse long ago. Build the configuration with its master branch, whose revision is 14."
        }
        _ if found
            .iter()
            .all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace()) =>
        {
            "This is a text. Give the .cell file that Jailhouse's build makes of the C source."
        }
        _ => "Give a .cell file of Jailhouse, of the whole system or of one cell.",
    }
}

fn architecture_name(architecture: u8) -> &'static str {
    match architecture {
        ARCHITECTURE_ARM => "32-bit Arm",
        ARCHITECTURE_ARM64 => "64-bit Arm",
        _ => "unknown",
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (field, offset) = (&self.field, self.offset);
        match self.fault {
            Fault::Truncated { needed, available } => write!(
                formatter,
                "the file is truncated: `{field}` at offset {offset:#x} has {needed} bytes, and the file ends after \
                 {available} of them"
            ),
            Fault::TooLarge { most } => write!(
                formatter,
                "the file has more than {most} bytes, which no configuration of Jailhouse has"
            ),
            Fault::WrongSignature { found } => write!(
                formatter,
                "the file is no configuration of Jailhouse: `{field}` at offset {offset:#x} is \"{}\", and not JHSYS or \
                 JHCLL",
                found.escape_ascii()
            ),
            Fault::SignatureOfOtherRevision { revision } => write!(
                formatter,
                "`{field}` at offset {offset:#x} is not that of revision {revision}, which the file says it is of"
            ),
            Fault::UnsupportedRevision { revision } => write!(
                formatter,
                "`{field}` at offset {offset:#x} is {revision}, and only revisions 13 and 14 can be read"
            ),
            Fault::UnsupportedArchitecture { architecture } => write!(
                formatter,
                "the configuration is not for x86: `{field}` at offset {offset:#x} is {architecture} ({})",
                architecture_name(architecture)
            ),
            Fault::OnlyOnArm { value } => write!(
                formatter,
                "the configuration is not for x86: `{field}` at offset {offset:#x} is {value:#x}, which only Arm has"
            ),
            Fault::TooMany { count, most } => write!(
                formatter,
                "`{field}` at offset {offset:#x} is {count}, and there can be {most} at most"
            ),
            Fault::BeyondEnd {
                first,
                count,
                entries,
            } => write!(
                formatter,
                "`{field}` at offset {offset:#x} means {count} entries from number {first} on, and there are {entries}"
            ),
            Fault::UnknownValue { value } => write!(
                formatter,
                "`{field}` at offset {offset:#x} is {value:#x}, which has no meaning"
            ),
        }
    }
}

impl core::error::Error for Damage {}
