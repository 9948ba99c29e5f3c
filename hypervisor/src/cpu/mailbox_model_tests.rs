//! Every order in which kicks, NMIs that a CPU sends itself and NMIs of the platform can meet at one CPU, with the mailbox as it
//! is. The rest is a model: a processor that keeps one NMI waiting, NMIs that take their time from the mark to the arrival, and
//! the way of a CPU from an exit to the entry, as `virt/exit.rs` goes it.
//!
//! Invariant of the model: each step changes one thing that another CPU or the platform can come between.

use std::collections::HashSet;

use super::*;

/// How a CPU gets an exit of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asking {
    /// By a kick to itself.
    Kick,
    /// The same, before the NMIs that were taken are accounted for.
    KickTooEarly,
    /// By an NMI without the mark, which the handler of NMIs does not count.
    Uncounted,
}

/// Where a CPU is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Place {
    Guest,
    /// Behind an exit.
    Serving,
    /// The NMIs are accounted for next, then the mailbox is looked into.
    Accounting,
    Looking,
    /// Events are served, some of which let NMIs in.
    Events,
    /// There was nothing in the mailbox any more.
    Delivering,
}

/// How often something may still happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Budget {
    posts: u8,
    asks: u8,
    foreign: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct State {
    place: Place,
    mailbox: u32,
    /// NMIs that were taken and not accounted for.
    count: u32,
    /// An NMI waits at the processor.
    waits: bool,
    /// NMIs that were sent, or are about to be, and have not arrived.
    flying: u8,
    /// An exit was asked for, and the place where NMIs are delivered not reached since.
    asked: bool,
    /// The handler leaves the next NMI out ([`Asking::Uncounted`]).
    leaves_out: bool,
    budget: Budget,
    /// NMIs of the platform that have arrived, those that the guest gets, and those that became one with another.
    foreign: u8,
    own: u32,
    merged: u8,
}

impl State {
    const fn new(budget: Budget) -> Self {
        Self {
            place: Place::Guest,
            mailbox: 0,
            count: 0,
            waits: false,
            flying: 0,
            asked: false,
            leaves_out: false,
            budget,
            foreign: 0,
            own: 0,
            merged: 0,
        }
    }

    const fn at(self, place: Place) -> Self {
        Self { place, ..self }
    }

    /// Does something with the mailbox itself.
    fn with<T>(&mut self, action: impl FnOnce(&CpuShared) -> T) -> T {
        let shared = CpuShared::new();
        shared.mailbox.store(self.mailbox, Ordering::Relaxed);
        let result = action(&shared);
        self.mailbox = shared.mailbox.load(Ordering::Relaxed);
        result
    }

    const fn arrive(mut self) -> Self {
        self.merged += self.waits as u8;
        self.waits = true;
        self
    }

    const fn taken(mut self) -> Self {
        if self.waits && self.leaves_out {
            self.leaves_out = false;
        } else if self.waits {
            self.count += 1;
        }
        self.waits = false;
        self
    }

    fn ask(mut self, asking: Asking) -> Option<Self> {
        self.budget.asks = self.budget.asks.checked_sub(1)?;
        let must_send = match asking {
            Asking::Uncounted => !std::mem::replace(&mut self.leaves_out, true),
            Asking::Kick | Asking::KickTooEarly => self.with(CpuShared::kick_self),
        };
        self.flying += u8::from(must_send);
        self.asked = true;
        Some(self)
    }

    /// What others may do now.
    fn steps_of_others(self) -> Vec<Self> {
        let mut next = Vec::new();
        if let Some(posts) = self.budget.posts.checked_sub(1) {
            let mut state = self;
            state.budget.posts = posts;
            state.flying += u8::from(state.with(|shared| shared.post(Events::STOP)));
            next.push(state);
        }
        if let Some(flying) = self.flying.checked_sub(1) {
            next.push(Self { flying, ..self }.arrive());
        }
        if let Some(foreign) = self.budget.foreign.checked_sub(1) {
            let mut state = self.arrive();
            state.budget.foreign = foreign;
            state.foreign += 1;
            next.push(state);
        }
        next
    }

    /// What the CPU may do now.
    fn own_steps(mut self, asking: Asking) -> Vec<Self> {
        match self.place {
            // The NMI that waits makes the guest exit, unless another reason comes first.
            Place::Guest => vec![self.at(Place::Serving)],
            Place::Serving => {
                let mut next = vec![
                    self.at(Place::Accounting),
                    self.taken().at(Place::Accounting),
                ];
                if !self.with(|shared| shared.has_events()) {
                    // Served at the first look.
                    next.push(self.at(Place::Guest));
                }
                if asking == Asking::KickTooEarly {
                    next.extend(self.taken().ask(asking).map(|state| state.at(Place::Guest)));
                }
                next
            }
            Place::Accounting => {
                let count = std::mem::take(&mut self.count);
                self.own += self.with(|shared| shared.account(count)).own;
                vec![self.at(Place::Looking)]
            }
            Place::Looking => {
                let events = self.with(CpuShared::take);
                let is_done = events.is_empty();
                vec![self.at(if is_done {
                    Place::Delivering
                } else {
                    Place::Events
                })]
            }
            Place::Events => vec![
                self.at(Place::Accounting),
                self.taken().at(Place::Accounting),
            ],
            Place::Delivering => {
                self.asked = false;
                let mut next = vec![self.at(Place::Guest)];
                next.extend(self.ask(asking).map(|state| state.at(Place::Guest)));
                next
            }
        }
    }

    /// What is wrong with the state.
    fn fault(mut self) -> Option<&'static str> {
        let comes = self.waits || self.flying != 0;
        if self.own > u32::from(self.foreign) {
            return Some("the guest gets an NMI that nobody has sent it");
        }
        if self.place != Place::Guest || comes {
            return None;
        }
        if self.with(|shared| shared.has_events()) {
            return Some("no NMI comes for an event");
        }
        if self.asked {
            return Some("no NMI comes for an exit that was asked for");
        }
        if self.with(|shared| !shared.post(Events::STOP)) {
            return Some("nobody will send an NMI again");
        }
        let is_settled = self.count == 0 && self.merged == 0;
        (is_settled && self.own != u32::from(self.foreign))
            .then_some("an NMI of the platform is lost")
    }
}

/// Goes through all states. The number of those that are in order, or the first fault.
fn explore(asking: Asking, budget: Budget) -> Result<usize, &'static str> {
    let start = State::new(budget);
    let mut seen = HashSet::from([start]);
    let mut left = vec![start];
    while let Some(state) = left.pop() {
        if let Some(fault) = state.fault() {
            return Err(fault);
        }
        for next in [state.steps_of_others(), state.own_steps(asking)].concat() {
            if seen.insert(next) {
                left.push(next);
            }
        }
    }
    Ok(seen.len())
}

const ALL: Budget = Budget {
    posts: 4,
    asks: 4,
    foreign: 3,
};

#[test]
fn whatever_meets_no_kick_is_lost_and_no_nmi_made_up() {
    let states = explore(Asking::Kick, ALL).unwrap();
    assert!(states > 10_000, "{states} states are not all");
}

/// The two ways that look right: an NMI that was not counted takes a kick with it, and a mark whose NMI has arrived is one that
/// none comes for.
#[test]
fn the_model_finds_what_is_wrong_with_other_ways() {
    let one = Budget {
        posts: 1,
        asks: 1,
        foreign: 0,
    };
    assert_eq!(
        explore(Asking::Uncounted, one),
        Err("nobody will send an NMI again")
    );
    assert!(explore(Asking::KickTooEarly, one).is_err());
    let unasked = Budget { asks: 0, ..ALL };
    for asking in [Asking::Uncounted, Asking::KickTooEarly] {
        assert!(explore(asking, unasked).is_ok());
    }
}
