//! The rows of the table that are survived.

use gaol_cell::println;
use hostile_cell::outcome::Line;
use hostile_cell::violations::survived;

use crate::perform::Attacker;
use crate::say::{alone, say};

/// Attempts all and tells what became of each.
pub fn aloud(attacker: &Attacker) {
    let mut count = 0;
    for (number, row) in survived(attacker.vendor()) {
        if !attacker.attempts(row.attempt) {
            continue;
        }
        let outcome = attacker.perform(row.attempt);
        alone(|| println!("{}", Line::Row(number, outcome)));
        count += 1;
    }
    say!("list done, {count} rows");
}

/// Attempts all and tells only what was wrong. Returns how many were.
pub fn quietly(attacker: &Attacker) -> u32 {
    let mut wrong = 0;
    for (number, row) in survived(attacker.vendor()) {
        if !attacker.attempts(row.attempt) {
            continue;
        }
        let outcome = attacker.perform(row.attempt);
        if !row.is_right(outcome) {
            alone(|| println!("{}", Line::Row(number, outcome)));
            wrong += 1;
        }
    }
    wrong
}
