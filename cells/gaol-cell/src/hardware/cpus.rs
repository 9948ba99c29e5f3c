//! The CPUs of a cell beside the first.
//!
//! All CPUs of a cell start at the same address; the first to come runs the cell, the others wait here until the cell
//! has work for them ([`start_others`]).

use core::hint::spin_loop;
use core::ptr::null_mut;
use core::sync::atomic::{AtomicPtr, Ordering};

use super::instructions::halt_forever;
use super::{apic, interrupts};

/// The most CPUs that take part; further ones stay halted.
pub const MAX_CPUS: usize = 8;

/// What a CPU beside the first runs; it is given its number, 1 and up, in the order of arrival.
pub type Entry = fn(u32) -> !;

static ENTRY: AtomicPtr<()> = AtomicPtr::new(null_mut());

/// Lets the other CPUs of the cell, those that wait already and those that are still on their way, run `entry`.
///
/// # Panics
/// When it is called again: the CPUs have left.
pub fn start_others(entry: Entry) {
    let old = ENTRY.swap(entry as *mut (), Ordering::AcqRel);
    assert!(old.is_null(), "the other CPUs have been started already");
}

/// Where the start code leaves a CPU that is not the first.
pub(super) extern "C" fn other_cpu(number: u32) -> ! {
    let entry = loop {
        let entry = ENTRY.load(Ordering::Acquire);
        if !entry.is_null() {
            break entry;
        }
        spin_loop();
    };
    // The first CPU has filled the table before it ran the cell, and with it start_others.
    interrupts::load_table();
    apic::enable();
    interrupts::enable();
    // SAFETY: Only start_others writes there, and it writes an Entry.
    let entry: Entry = unsafe { core::mem::transmute::<*mut (), Entry>(entry) };
    entry(number)
}

/// Stops this CPU until the cell ends.
pub fn halt() -> ! {
    halt_forever()
}
