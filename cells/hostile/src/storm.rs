//! Random attempts.

use hostile_cell::outcome::Outcome;
use hostile_cell::random::Generator;

use crate::perform::Attacker;
use crate::say::say;

/// The seed unless the command line has another.
pub const SEED: u64 = 0x6a01;

/// What became of random attempts.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Attempts that went through.
    pub done: u64,
    /// Attempts that raised an exception.
    pub exceptions: u64,
    /// Hypercalls that were refused.
    pub refused: u64,
    /// Depends on each attempt that was made.
    pub checksum: u64,
}

/// Attempts `count` random things, and calls `progress` with how many were done ten times meanwhile.
pub fn attempt(attacker: &Attacker, seed: u64, count: u64, mut progress: impl FnMut(u64)) -> Tally {
    let mut generator = Generator::new(seed);
    let mut tally = Tally::default();
    for number in 0..count {
        if number > 0 && number % (count / 10).max(1) == 0 {
            progress(number);
        }
        match attacker.perform(generator.attempt()) {
            Outcome::Done | Outcome::Value(_) => tally.done += 1,
            Outcome::Exception(_) => tally.exceptions += 1,
            Outcome::Refused(_) => tally.refused += 1,
        }
    }
    tally.checksum = generator.checksum();
    tally
}

/// Attempts `count` random things and tells how it goes.
pub fn aloud(attacker: &Attacker, seed: u64, count: u64) {
    say!("seed {seed:#x}, {count} operations");
    let tally = attempt(attacker, seed, count, |number| say!("{number} operations"));
    say!(
        "random done, {} through, {} exceptions, {} refused, checksum {:#x}",
        tally.done,
        tally.exceptions,
        tally.refused,
        tally.checksum
    );
}
