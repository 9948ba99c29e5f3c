//! Interrupts of any vector, counted.

use core::sync::atomic::{AtomicU32, Ordering};

use gaol_cell::instructions::read_tsc;
use gaol_cell::interrupts::{Interrupt, set_handler};
use gaol_cell::registers::Vector;

static CAME: AtomicU32 = AtomicU32::new(0);

/// Cycles for which an interrupt is waited for: they come within a tenth of it.
const PATIENCE: u64 = 5_000_000;

fn count(_: Interrupt) {
    CAME.fetch_add(1, Ordering::Relaxed);
}

/// Counts all of them from now on.
pub fn count_all() {
    for vector in 32..Vector::SPURIOUS {
        set_handler(Vector::new(vector), count);
    }
}

/// How many have come.
pub fn came() -> u32 {
    CAME.load(Ordering::Relaxed)
}

/// How many come behind `provoke`.
pub fn behind(provoke: impl FnOnce()) -> u32 {
    let before = came();
    provoke();
    let start = read_tsc();
    while read_tsc().wrapping_sub(start) < PATIENCE {
        core::hint::spin_loop();
    }
    came().wrapping_sub(before)
}
