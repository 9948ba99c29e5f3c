//! Events from one CPU to another, and the NMI that makes a CPU look.

use core::sync::atomic::Ordering;

use bitflags::bitflags;

use super::CpuShared;

bitflags! {
    /// What a CPU is asked to do. It serves those that are there together in this order: FLUSH, STOP, JOIN, RESET, FAIL,
    /// INIT, STARTUP, NMI, LEAVE. That is also the order in which they were posted, since a later RESET or INIT removes what it
    /// would undo.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Events: u32 {
        /// Drop cached translations of the EPT.
        const FLUSH = 1 << 0;
        /// Stop the guest and wait.
        const STOP = 1 << 1;
        /// Join the cell `next_cell` and wait.
        const JOIN = 1 << 2;
        /// An INIT for the guest: wait for a startup IPI.
        const INIT = 1 << 3;
        /// A startup IPI for the guest, to `startup_vector`.
        const STARTUP = 1 << 4;
        /// Start the cell at its reset address.
        const RESET = 1 << 5;
        /// Go back to Linux, outside of operation, right where the guest is.
        const LEAVE = 1 << 6;
        /// Another CPU of the cell has stepped out of line, and all of them are parked for it.
        const FAIL = 1 << 7;
        /// An NMI that a CPU of the same cell has sent.
        const NMI = 1 << 8;
        /// An NMI is on its way because of the others.
        const KICK = 1 << 31;
    }
}

/// NMIs that were taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nmis {
    /// One of them was a kick.
    pub is_kick: bool,
    /// How many are the guest's own.
    pub own: u32,
}

impl Events {
    /// What has no effect any more when these are posted behind it: a CPU that is started or gets an INIT forgets the
    /// startup IPIs before, and one that its cell is started with everything that its cell had sent it.
    fn overtaken(self) -> Self {
        if self.contains(Self::RESET) {
            Self::INIT
                .union(Self::STARTUP)
                .union(Self::FAIL)
                .union(Self::NMI)
        } else if self.contains(Self::INIT) {
            Self::STARTUP.union(Self::NMI)
        } else {
            Self::empty()
        }
    }
}

impl CpuShared {
    /// Posts events. `true`: the caller must send the NMI; none is on its way yet.
    #[must_use]
    pub fn post(&self, events: Events) -> bool {
        let overtaken = events.overtaken();
        if !overtaken.is_empty() {
            // Whoever posts between the two steps has posted behind this one.
            self.mailbox.fetch_and(!overtaken.bits(), Ordering::AcqRel);
        }
        let before = self
            .mailbox
            .fetch_or((events | Events::KICK).bits(), Ordering::AcqRel);
        before & Events::KICK.bits() == 0
    }

    /// As [`Self::post`], for events whose end the sender waits for with [`Self::has_served`]. One sender at a time.
    #[must_use]
    pub fn request(&self, events: Events) -> bool {
        self.acknowledged
            .fetch_and(!events.bits(), Ordering::AcqRel);
        self.post(events)
    }

    /// Tells the sender that events were served.
    pub fn acknowledge(&self, events: Events) {
        self.acknowledged.fetch_or(events.bits(), Ordering::AcqRel);
    }

    /// Were all of these served since they were requested?
    #[must_use]
    pub fn has_served(&self, events: Events) -> bool {
        self.acknowledged.load(Ordering::Acquire) & events.bits() == events.bits()
    }

    /// Anything to do?
    #[inline]
    #[must_use]
    pub fn has_events(&self) -> bool {
        self.mailbox.load(Ordering::Relaxed) & !Events::KICK.bits() != 0
    }

    /// Takes all events; the mark of the NMI on its way stays.
    #[must_use]
    pub fn take(&self) -> Events {
        Events::from_bits_retain(
            self.mailbox
                .fetch_and(Events::KICK.bits(), Ordering::AcqRel),
        )
        .difference(Events::KICK)
    }

    /// Asks for an NMI to the own CPU, a kick like another CPU's: of two that wait a processor may make one, and then it does
    /// for both. `true`: the caller must send it; `false`: one is on its way. All that were taken are accounted for; the mark of
    /// one that has arrived would stand for none that comes.
    #[must_use]
    pub fn kick_self(&self) -> bool {
        self.post(Events::empty())
    }

    /// Tells NMIs that were taken apart. The mark of the kick goes with it.
    #[must_use]
    pub fn account(&self, count: u32) -> Nmis {
        let kick = Events::KICK.bits();
        let is_kick = count != 0 && self.mailbox.fetch_and(!kick, Ordering::AcqRel) & kick != 0;
        Nmis {
            is_kick,
            own: count.saturating_sub(u32::from(is_kick)),
        }
    }
}

#[cfg(test)]
#[path = "mailbox_model_tests.rs"]
mod model;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_kick_is_sent_for_any_number_of_events_until_it_arrives() {
        let cpu = CpuShared::new();
        assert!(cpu.post(Events::FLUSH));
        assert!(!cpu.post(Events::STOP));
        assert!(cpu.has_events());
        assert_eq!(cpu.take(), Events::FLUSH | Events::STOP);
        assert!(!cpu.has_events());
        // The NMI is still on its way: a new event needs no other.
        assert!(!cpu.post(Events::FLUSH));
        let none = Nmis {
            is_kick: false,
            own: 0,
        };
        assert_eq!(cpu.account(0), none);
        let kick = Nmis {
            is_kick: true,
            ..none
        };
        assert_eq!(cpu.account(1), kick);
        assert_eq!(cpu.account(1), Nmis { own: 1, ..none });
        assert!(cpu.kick_self());
        assert!(!cpu.kick_self());
        assert_eq!(cpu.account(3), Nmis { own: 2, ..kick });
        assert!(cpu.request(Events::INIT));
        assert!(!cpu.has_served(Events::INIT));
        assert_eq!(cpu.take(), Events::FLUSH | Events::INIT);
        cpu.acknowledge(Events::FLUSH | Events::INIT);
        assert!(cpu.has_served(Events::INIT));
    }

    /// Events that are taken together are those that a CPU would not have served in vain one by one.
    #[test]
    fn what_is_overtaken_is_gone() {
        let taken = |posts: &[Events]| {
            let cpu = CpuShared::new();
            for events in posts {
                let _ = cpu.post(*events);
            }
            cpu.take()
        };
        let (init, startup) = (Events::INIT, Events::STARTUP);
        let (reset, fail) = (Events::RESET, Events::FAIL);
        assert_eq!(taken(&[init, startup]), init | startup);
        assert_eq!(taken(&[init, startup, startup]), init | startup);
        assert_eq!(taken(&[startup, init]), init);
        assert_eq!(taken(&[init, startup, init]), init);
        assert_eq!(taken(&[init, startup, init, startup]), init | startup);
        // Of the time before the start nothing is left; what comes behind it counts.
        assert_eq!(taken(&[init, startup, fail, reset]), reset);
        assert_eq!(taken(&[reset, init, startup]), reset | init | startup);
        assert_eq!(taken(&[reset, fail]), reset | fail);
        // Others are left alone.
        assert_eq!(
            taken(&[Events::FLUSH, Events::STOP, init]),
            Events::FLUSH | Events::STOP | init
        );
        assert_eq!(taken(&[Events::FLUSH, reset]), Events::FLUSH | reset);
    }
}
