//! Errors that say who is to blame.
//!
//! A [`Failure`] ends a launch or a management operation and is reported to the root with its [`Reason`]. What a guest
//! does wrong while it runs is not an error of the hypervisor: see [`crate::guest::Verdict`].
#![forbid(unsafe_code)]

use gaol_abi::hypercall::Errno;
use gaol_abi::outcome::{Outcome, Reason};

/// Who is to blame for a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The caller of a hypercall: a wrong argument, the wrong moment, no right to.
    Caller,
    /// The configuration.
    Configuration,
    /// The machine lacks something or did not answer.
    Hardware,
    /// Another cell: it denied, is locked or did not answer.
    Cell,
    /// The hypervisor or the module.
    Gaol,
}

/// Why an operation was refused or could not be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    blame: Blame,
    errno: Errno,
    reason: Reason,
    detail: u64,
}

impl Failure {
    /// A failure with all that is known of it.
    #[must_use]
    pub const fn new(blame: Blame, errno: Errno, reason: Reason, detail: u64) -> Self {
        Self {
            blame,
            errno,
            reason,
            detail,
        }
    }

    /// The machine lacks something.
    #[must_use]
    pub const fn hardware(reason: Reason, detail: u64) -> Self {
        Self::new(Blame::Hardware, Errno::NoDevice, reason, detail)
    }

    /// The configuration is wrong.
    #[must_use]
    pub const fn configuration(reason: Reason, detail: u64) -> Self {
        Self::new(Blame::Configuration, Errno::Invalid, reason, detail)
    }

    /// The caller asked for what can't be.
    #[must_use]
    pub const fn caller(errno: Errno, reason: Reason, detail: u64) -> Self {
        Self::new(Blame::Caller, errno, reason, detail)
    }

    /// A fault of Gaol's own parts.
    #[must_use]
    pub const fn gaol(reason: Reason, detail: u64) -> Self {
        Self::new(Blame::Gaol, Errno::InputOutput, reason, detail)
    }

    /// Something did not happen in time.
    #[must_use]
    pub const fn timed_out(blame: Blame, reason: Reason, detail: u64) -> Self {
        Self::new(blame, Errno::TimedOut, reason, detail)
    }

    /// The frame pool is empty.
    #[must_use]
    pub const fn out_of_frames() -> Self {
        Self::new(
            Blame::Configuration,
            Errno::NoMemory,
            Reason::OutOfFrames,
            0,
        )
    }

    /// Who is to blame.
    #[must_use]
    pub const fn blame(&self) -> Blame {
        self.blame
    }

    /// The reason.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        self.reason
    }

    /// The detail, see [`Reason`].
    #[must_use]
    pub const fn detail(&self) -> u64 {
        self.detail
    }

    /// Result of the hypercall.
    #[must_use]
    pub const fn result(&self) -> i64 {
        (self.errno.0 as i64).wrapping_neg()
    }

    /// As the root reads it.
    #[must_use]
    pub const fn outcome(&self, cpu: u32, step: u32) -> Outcome {
        Outcome {
            reason: self.reason,
            cpu,
            step,
            reserved: 0,
            detail: self.detail,
        }
    }
}
