//! What becomes of a management operation on a cell: decided from the cell's phase, from what it says, and from whether
//! the caller uses force.
//!
//! Invariant: nothing here waits, and by force nothing depends on what a cell has written. What a cell says is an
//! allegation of any value.
#![forbid(unsafe_code)]

use gaol_abi::communication::{CellState, Message, Reply};

use super::Phase;

/// How far a request to end has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// The cell was not asked.
    No,
    /// It has time to answer.
    InTime,
    /// Its time is over.
    TooLate,
}

/// What there is to know of a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Situation {
    /// Where it is in its life.
    pub phase: Phase,
    /// It is never asked: it is passive, has no communication region, or all its CPUs are parked.
    pub silent: bool,
    /// The state that it claims to be in.
    pub state: CellState,
    /// The message that stands in its communication region.
    pub message: Message,
    /// Its reply.
    pub reply: Reply,
    /// Whether it was asked to end.
    pub asked: Asked,
}

/// Why a cell is not stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopRefusal {
    /// It is locked.
    Locked,
    /// It has denied.
    Denied,
    /// It has not answered.
    TimedOut,
}

/// How a cell is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// It does not run.
    Nothing,
    /// Its CPUs are stopped now.
    Now,
    /// It is asked, and gets time to answer.
    Ask,
    /// It is asked again in the time that it has: an answer to an older message went over the request.
    AskAgain,
    /// It has time left.
    Wait,
    /// It runs on, and the request is taken back.
    Refuse(StopRefusal),
}

/// Stopping a cell.
#[must_use]
pub fn stop(situation: &Situation, force: bool) -> Stop {
    if situation.phase != Phase::Running {
        return Stop::Nothing;
    }
    if force || situation.silent {
        return Stop::Now;
    }
    match (situation.state, situation.asked) {
        (CellState::ShutDown | CellState::Failed | CellState::FailedRevision, _) => {
            return Stop::Now;
        }
        (CellState::RunningLocked, Asked::No) => return Stop::Refuse(StopRefusal::Locked),
        (_, Asked::No) => return Stop::Ask,
        _ => {}
    }
    match situation.reply {
        Reply::RequestApproved => Stop::Now,
        Reply::None | Reply::Received if situation.asked == Asked::TooLate => {
            Stop::Refuse(StopRefusal::TimedOut)
        }
        Reply::Received if situation.message == Message::None => Stop::AskAgain,
        Reply::None | Reply::Received => Stop::Wait,
        _ => Stop::Refuse(StopRefusal::Denied),
    }
}

/// Why a cell is not started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartRefusal {
    /// It runs.
    Running,
    /// Its memory is not yet cleared.
    NotScrubbed,
    /// It was not loaded since it stopped.
    NotLoaded,
}

/// Starting a cell.
///
/// # Errors
/// Why not.
pub fn start(phase: Phase, loadable: bool) -> Result<(), StartRefusal> {
    match phase {
        Phase::Running => Err(StartRefusal::Running),
        Phase::Fresh | Phase::Dying => Err(StartRefusal::NotScrubbed),
        Phase::Stopped if !loadable => Err(StartRefusal::NotLoaded),
        Phase::Stopped => Ok(()),
    }
}

/// The next step in destroying a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destroy {
    /// It is stopped first; then this is decided again.
    Stop,
    /// The clearing of its memory begins, and the caller comes again.
    Clear,
    /// Its memory is being cleared: the caller comes again.
    Again,
    /// All that it has goes back.
    Free,
    /// That cell is locked and wants the set of cells to stay.
    Refuse(u32),
}

/// Destroying a cell. `locked`: another cell that runs locked; `cleared`: nothing is left to clear.
#[must_use]
pub fn destroy(phase: Phase, cleared: bool, locked: Option<u32>, force: bool) -> Destroy {
    match (phase, locked) {
        (Phase::Running, _) => Destroy::Stop,
        (Phase::Stopped | Phase::Fresh, Some(other)) if !force => Destroy::Refuse(other),
        (Phase::Stopped, _) => Destroy::Clear,
        (Phase::Dying, _) if !cleared => Destroy::Again,
        (Phase::Dying | Phase::Fresh, _) => Destroy::Free,
    }
}

#[cfg(test)]
#[path = "decision_tests.rs"]
mod tests;
