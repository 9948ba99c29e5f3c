//! The rows of the table that end their CPU: as many at a time as the cell has CPUs.
//!
//! Each CPU says what it tries before, and the next one waits for that, so that no line is cut off.

use core::hint::spin_loop;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use gaol_cell::{cpus, println};
use hostile_cell::outcome::Line;
use hostile_cell::violations::{self, Expected};

use crate::perform::Attacker;
use crate::say::alone;

static ENDLESS: AtomicU32 = AtomicU32::new(0);
static FROM: AtomicUsize = AtomicUsize::new(0);
/// The CPU whose turn it is.
static TURN: AtomicU32 = AtomicU32::new(0);

/// Which rows are tried: of those that end so, the first CPU's.
pub fn set(expected: Expected, from: usize) {
    ENDLESS.store(u32::from(expected == Expected::Endless), Ordering::Relaxed);
    FROM.store(from, Ordering::Release);
}

/// Tries the row of CPU `number`; what is left over for a CPU when there are no more rows is to try the last one.
pub fn run(number: u32) -> ! {
    let expected = match ENDLESS.load(Ordering::Relaxed) {
        0 => Expected::Stopped,
        _ => Expected::Endless,
    };
    let wanted = FROM.load(Ordering::Acquire) + number as usize;
    let attacker = Attacker::new(number);
    let row = violations::ending(attacker.vendor(), expected)
        .take(wanted + 1)
        .last()
        .expect("there are rows of either kind");
    while TURN.load(Ordering::Acquire) != number {
        spin_loop();
    }
    alone(|| println!("{}", Line::Try(row.0)));
    TURN.store(number + 1, Ordering::Release);
    let outcome = attacker.perform(row.1.attempt);
    alone(|| println!("{}", Line::Row(row.0, outcome)));
    cpus::halt()
}
