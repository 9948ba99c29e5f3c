//! A periodic timer that says how late each tick was.
//!
//! With TSC-deadline mode, each tick has an absolute deadline; otherwise the APIC timer runs periodically, and the
//! lateness is what it has counted since it expired. Either way, no VM exit happens between the first tick and the last.
//!
//! Invariant: there is one ticker, on the first CPU. Its interrupt handler only writes down; all else happens in
//! [`Ticker::wait`].

use core::hint::spin_loop;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use core::time::Duration;

use super::instructions::read_tsc;
use super::interrupts::{self, Interrupt};
use super::{Cell, apic};
use crate::frequency::Frequency;
use crate::registers::{TimerCount, TimerMode, Vector};
use crate::schedule::{Schedule, Tick};

/// The vector of the ticker.
const VECTOR: Vector = Vector::new(0xec);

/// Number of expiries so far.
static EXPIRIES: AtomicU64 = AtomicU64::new(0);
/// When the handler was last entered, in cycles of the time stamp counter.
static ENTERED: AtomicU64 = AtomicU64::new(0);
/// What the periodic timer had counted down to afterwards.
static COUNT: AtomicU64 = AtomicU64::new(0);
/// When that was read, in cycles of the time stamp counter.
static COUNT_READ: AtomicU64 = AtomicU64::new(0);

/// How to wait for a tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Busy: the CPU looks all the time.
    Spin,
    /// Asleep in HLT, which no VM exit ends either.
    Halt,
}

#[derive(Debug)]
enum Source {
    Deadline(Schedule),
    Periodic {
        count: TimerCount,
        tsc: Frequency,
        apic: Frequency,
    },
}

/// The periodic timer.
#[derive(Debug)]
pub struct Ticker {
    source: Source,
    wait: Wait,
    period: u64,
    seen: u64,
}

impl Ticker {
    /// Starts the timer; the first tick is due one period from now.
    ///
    /// # Panics
    /// When there is a ticker already, or the period is zero or beyond what the timer can count.
    pub(super) fn start(cell: &Cell, period: Duration, wait: Wait, deadlines: bool) -> Self {
        static TAKEN: AtomicBool = AtomicBool::new(false);
        assert!(
            !TAKEN.swap(true, Ordering::Relaxed),
            "a cell has one ticker"
        );
        let cycles = cell.tsc().cycles(period);
        assert!(cycles > 0, "the period of the ticker is zero");
        let source = if deadlines {
            interrupts::set_handler(VECTOR, note_deadline);
            apic::use_deadlines(VECTOR);
            let schedule = Schedule::new(read_tsc(), cycles);
            apic::set_deadline(schedule.deadline());
            Source::Deadline(schedule)
        } else {
            let count = TimerCount::new(cell.apic_timer(), period)
                .unwrap_or_else(|| panic!("the APIC timer cannot count {} ns", period.as_nanos()));
            interrupts::set_handler(VECTOR, note_periodic);
            apic::start_timer(VECTOR, TimerMode::Periodic, count);
            Source::Periodic {
                count,
                tsc: cell.tsc(),
                apic: cell.apic_timer(),
            }
        };
        Self {
            source,
            wait,
            period: cycles,
            seen: 0,
        }
    }

    /// The period in cycles of the time stamp counter.
    pub fn period(&self) -> u64 {
        self.period
    }

    /// Waits for the next tick.
    pub fn wait(&mut self) -> Tick {
        match self.wait {
            Wait::Spin => {
                while EXPIRIES.load(Ordering::Acquire) == self.seen {
                    spin_loop();
                }
            }
            Wait::Halt => {
                interrupts::halt_until(|| EXPIRIES.load(Ordering::Acquire) != self.seen);
            }
        }
        match &mut self.source {
            Source::Deadline(schedule) => {
                self.seen += 1;
                let tick = schedule.tick(ENTERED.load(Ordering::Relaxed), read_tsc());
                apic::set_deadline(schedule.deadline());
                tick
            }
            Source::Periodic { count, tsc, apic } => {
                // The next expiry must not overwrite what this one wrote down while it is read.
                interrupts::disable();
                let expiries = EXPIRIES.load(Ordering::Relaxed);
                let since_expiry =
                    tsc.convert(count.elapsed(COUNT.load(Ordering::Relaxed) as u32), *apic);
                let since_entry = COUNT_READ
                    .load(Ordering::Relaxed)
                    .wrapping_sub(ENTERED.load(Ordering::Relaxed));
                interrupts::enable();
                let missed = expiries - self.seen > 1;
                self.seen = expiries;
                Tick {
                    latency: since_expiry.saturating_sub(since_entry),
                    missed,
                }
            }
        }
    }

    /// Stops the timer. No other can be started.
    pub fn stop(self) {
        apic::stop_timer();
    }
}

fn note_deadline(interrupt: Interrupt) {
    ENTERED.store(interrupt.entered, Ordering::Relaxed);
    EXPIRIES.fetch_add(1, Ordering::Release);
}

fn note_periodic(interrupt: Interrupt) {
    // In this order the time in between makes the latency look longer, never shorter.
    COUNT_READ.store(read_tsc(), Ordering::Relaxed);
    COUNT.store(apic::current_count().into(), Ordering::Relaxed);
    note_deadline(interrupt);
}
