//! The cell's end of the communication region.
//!
//! Invariant: a message is taken off before it is answered, so an answer always belongs to one message; and a cell that
//! finds a revision it does not know says so and writes nothing else.
#![cfg_attr(not(test), forbid(unsafe_code))]

use gaol_abi::communication::{
    CellState, CommunicationRegion, FLAG_DEBUG_PUTC_PERMITTED, Message, REVISION, Reply, SIGNATURE,
};

use crate::field;
use crate::frequency::Frequency;
use crate::shared::Window;

/// What a cell thinks of being shut down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// It agrees, and stops at once.
    Approve,
    /// It runs on. (The root can still end it by force.)
    Deny,
}

/// The communication region of this cell.
#[derive(Debug)]
pub struct Communication {
    region: Window<CommunicationRegion>,
}

/// The communication region has a signature or a revision that this runtime does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownRevision(
    /// The revision that is there.
    pub u16,
);

impl Communication {
    /// Takes the region into use.
    ///
    /// # Errors
    /// When it is of an unknown revision. The state of the cell then is [`CellState::FailedRevision`].
    pub fn new(mut region: Window<CommunicationRegion>) -> Result<Self, UnknownRevision> {
        let signature = region.read(field!(CommunicationRegion, signature));
        let revision = region.read(field!(CommunicationRegion, revision));
        if (signature, revision) != (SIGNATURE, REVISION) {
            let failed = CellState::FailedRevision.0;
            region.write(field!(CommunicationRegion, cell_state), failed);
            return Err(UnknownRevision(revision));
        }
        Ok(Self { region })
    }

    /// CPUs of the cell.
    pub fn cpus(&self) -> u16 {
        self.region.read(field!(CommunicationRegion, num_cpus))
    }

    /// Frequency of the time stamp counter, where the hypervisor knows it.
    pub fn tsc(&self) -> Option<Frequency> {
        Frequency::from_khz(self.region.read(field!(CommunicationRegion, tsc_khz)))
    }

    /// Frequency of the APIC timer before its divider, where the hypervisor knows it.
    pub fn apic_timer(&self) -> Option<Frequency> {
        Frequency::from_khz(self.region.read(field!(CommunicationRegion, apic_khz)))
    }

    /// Whether the cell may print on the hypervisor's console.
    pub fn console_permitted(&self) -> bool {
        self.region.read(field!(CommunicationRegion, flags)) & FLAG_DEBUG_PUTC_PERMITTED != 0
    }

    /// Tells the root the state of the cell.
    pub fn set_state(&mut self, state: CellState) {
        self.region
            .write(field!(CommunicationRegion, cell_state), state.0);
    }

    /// The state that the cell told last.
    pub fn state(&self) -> CellState {
        CellState(self.region.read(field!(CommunicationRegion, cell_state)))
    }

    /// The message that waits for an answer.
    pub fn poll_message(&self) -> Option<Message> {
        let message = Message(self.region.read(field!(CommunicationRegion, msg_to_cell)));
        (message != Message::None).then_some(message)
    }

    /// Answers the message that waits.
    pub fn reply(&mut self, reply: Reply) {
        self.region
            .write(field!(CommunicationRegion, msg_to_cell), Message::None.0);
        self.region
            .write(field!(CommunicationRegion, reply_from_cell), reply.0);
    }

    /// Answers the message that waits, if there is one, and tells which it was. After an approved
    /// [`Message::ShutdownRequest`] the state is [`CellState::ShutDown`], and the cell must not do anything any more.
    pub fn answer(&mut self, shutdown: Shutdown) -> Option<Message> {
        let message = self.poll_message()?;
        match (message, shutdown) {
            (Message::ShutdownRequest, Shutdown::Approve) => {
                self.set_state(CellState::ShutDown);
                self.reply(Reply::RequestApproved);
            }
            (Message::ShutdownRequest, Shutdown::Deny) => self.reply(Reply::RequestDenied),
            (Message::ReconfigCompleted, _) => self.reply(Reply::Received),
            _ => self.reply(Reply::Unknown),
        }
        Some(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromZeros;

    fn region() -> CommunicationRegion {
        CommunicationRegion {
            signature: SIGNATURE,
            revision: REVISION,
            num_cpus: 2,
            tsc_khz: 50_000,
            flags: FLAG_DEBUG_PUTC_PERMITTED,
            ..CommunicationRegion::new_zeroed()
        }
    }

    fn communication(region: CommunicationRegion) -> Communication {
        Communication::new(Window::over(Box::leak(Box::new(region)))).unwrap()
    }

    #[test]
    fn the_region_tells_about_the_machine() {
        let communication = communication(region());
        assert_eq!(communication.cpus(), 2);
        assert_eq!(communication.tsc().unwrap().khz(), 50_000);
        assert_eq!(communication.apic_timer(), None);
        assert!(communication.console_permitted());
        assert_eq!(communication.poll_message(), None);
    }

    #[test]
    fn an_unknown_revision_is_reported_and_nothing_else_written() {
        for (signature, revision) in [(SIGNATURE, 3), (*b"JHCOMx", REVISION)] {
            let unknown = CommunicationRegion {
                signature,
                revision,
                ..region()
            };
            let memory = Box::into_raw(Box::new(unknown));
            // SAFETY: The memory is a region's, and nobody else looks at it before the window is gone.
            let window = unsafe { Window::from_pointer(memory) };
            let result = Communication::new(window);
            assert_eq!(result.err(), Some(UnknownRevision(revision)));
            let expected = CommunicationRegion {
                cell_state: CellState::FailedRevision.0,
                ..unknown
            };
            // SAFETY: It came from a box.
            assert_eq!(unsafe { *Box::from_raw(memory) }, expected);
        }
    }

    #[test]
    fn messages_are_answered() {
        use CellState as State;
        use Message as Asked;
        use Shutdown::{Approve, Deny};
        for (message, shutdown, reply, state) in [
            (
                Asked::ShutdownRequest,
                Approve,
                Reply::RequestApproved,
                State::ShutDown,
            ),
            (
                Asked::ShutdownRequest,
                Deny,
                Reply::RequestDenied,
                State::Running,
            ),
            (
                Asked::ReconfigCompleted,
                Approve,
                Reply::Received,
                State::Running,
            ),
            (Message(77), Approve, Reply::Unknown, State::Running),
            (Message(77), Deny, Reply::Unknown, State::Running),
        ] {
            let mut communication = communication(CommunicationRegion {
                msg_to_cell: message.0,
                ..region()
            });
            assert_eq!(communication.answer(shutdown), Some(message));
            assert_eq!(communication.answer(shutdown), None);
            assert_eq!(communication.state(), state);
            let expected = CommunicationRegion {
                reply_from_cell: reply.0,
                cell_state: state.0,
                ..region()
            };
            assert_eq!(communication.region.snapshot(), expected);
        }
    }

    #[test]
    fn states_are_told() {
        let mut communication = communication(region());
        communication.set_state(CellState::RunningLocked);
        let told = communication.region.snapshot().cell_state;
        assert_eq!(told, CellState::RunningLocked.0);
    }
}
