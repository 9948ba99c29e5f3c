//! What the `latency` cell writes to its shared memory and the root reads.
//!
//! The cell is the only writer. It publishes by [`Results::ticks_done`], which it writes last at each tick, and
//! [`Results::finished`].

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// [`Results::signature`].
pub const SIGNATURE: [u8; 8] = *b"GAOLLATE";

/// Number of classes of the histogram.
pub const CLASSES: usize = 256;

/// The results, at the start of the cell's shared region.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Results {
    /// [`SIGNATURE`], written when everything else is in its first state.
    pub signature: [u8; 8],
    /// Ticks to measure.
    pub ticks: u64,
    /// Ticks measured.
    pub ticks_done: u64,
    /// Period in cycles of the time stamp counter.
    pub period_cycles: u64,
    /// Frequency of the time stamp counter in kHz.
    pub tsc_khz: u64,
    /// Shortest time from the expiry to the handler, in cycles.
    pub min_cycles: u64,
    /// Longest time from the expiry to the handler, in cycles.
    pub max_cycles: u64,
    /// Sum of all times, in cycles: the average is `sum_cycles / ticks_done`.
    pub sum_cycles: u64,
    /// Cycles that one class of the histogram spans.
    pub class_cycles: u64,
    /// Ticks whose time was beyond the last class.
    pub overflow: u64,
    /// 1 when all ticks are done.
    pub finished: u64,
    /// Number of ticks whose deadline had passed before the timer was armed.
    pub missed: u64,
    /// Ticks by time: class n holds `n * class_cycles ..= n * class_cycles + class_cycles - 1`.
    pub histogram: [u64; CLASSES],
}
