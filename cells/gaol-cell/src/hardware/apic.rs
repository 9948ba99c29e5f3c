//! The local APIC: in x2APIC mode, in which the hypervisor starts each CPU of a cell; in xAPIC mode on a bare machine that has
//! no other.
//!
//! Timer, end of interrupt, task priority and self IPI cause no VM exits where the processor has an x2APIC. Where it has none,
//! the hypervisor answers for one, and each access is an exit.
//!
//! Invariant: all CPUs of a cell are in the same mode, which the first one found.

use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;

use super::instructions::{cpuid, fence_apic_writes, read_msr, read_tsc, write_msr};
use crate::frequency::Frequency;
use crate::registers::{
    APIC_BASE_X2APIC, APIC_ENABLE, Msr, TimerCount, TimerMode, Vector, XAPIC_PAGE, timer_entry,
    xapic_writes,
};

/// Whether the registers are in the page, not in MSRs.
static XAPIC: AtomicBool = AtomicBool::new(false);

/// Whether the local APIC is in xAPIC mode.
pub fn is_xapic() -> bool {
    XAPIC.load(Ordering::Relaxed)
}

/// Enables the local APIC of this CPU, with the timer masked.
pub(super) fn enable() {
    let is_x2apic = read_msr(Msr::ApicBase) & APIC_BASE_X2APIC != 0;
    XAPIC.store(!is_x2apic, Ordering::Relaxed);
    write(Msr::TimerEntry, timer_entry(TimerMode::OneShot, None));
    write(Msr::TaskPriority, 0);
    write(
        Msr::SpuriousInterrupt,
        APIC_ENABLE | u64::from(Vector::SPURIOUS),
    );
}

/// Writes a register of the local APIC.
///
/// # Panics
/// When there is nothing of that meaning in xAPIC mode: a destination above 255.
fn write(register: Msr, value: u64) {
    if !is_xapic() {
        // SAFETY: These registers make interrupts, for which every vector has an entry; they touch no memory.
        unsafe { write_msr(register, value) };
        return;
    }
    let Some(writes) = xapic_writes(register, value) else {
        panic!("{register:?} = {value:#x} does not exist in xAPIC mode");
    };
    let [first, last] = [writes.first, Some(writes.last)];
    for (offset, value) in first.into_iter().chain(last) {
        let at = XAPIC_PAGE + u64::from(offset);
        // SAFETY: As before; the page is the APIC's, and mapped.
        unsafe { (at as *mut u32).write_volatile(value) };
    }
}

/// Reads a register of the local APIC.
fn read(register: Msr) -> u32 {
    match register.xapic_offset().filter(|_| is_xapic()) {
        // SAFETY: Reading a register of the APIC changes nothing; the page is the APIC's, and mapped.
        Some(offset) => unsafe { ((XAPIC_PAGE + u64::from(offset)) as *const u32).read_volatile() },
        None => read_msr(register) as u32,
    }
}

/// The APIC id of this CPU.
pub fn id() -> u32 {
    let id = read(Msr::ApicId);
    if is_xapic() { id >> 24 } else { id }
}

/// Signals the end of the interrupt in service.
pub fn end_of_interrupt() {
    write(Msr::EndOfInterrupt, 0);
}

/// Sends an interrupt to this CPU.
pub fn send_self(vector: Vector) {
    write(Msr::SelfIpi, vector.number().into());
}

/// Writes the interrupt command register: sends an interrupt, or what else there is, to CPUs of the cell.
pub fn send(command: u64) {
    write(Msr::InterruptCommand, command);
}

/// Whether the timer can expire at a value of the time stamp counter.
pub fn has_tsc_deadline() -> bool {
    cpuid(1).ecx & 1 << 24 != 0
}

/// Sets the timer to expire at values of the time stamp counter, which [`set_deadline`] names one by one.
pub fn use_deadlines(vector: Vector) {
    write(
        Msr::TimerEntry,
        timer_entry(TimerMode::TscDeadline, Some(vector)),
    );
    fence_apic_writes();
}

/// The timer expires when the time stamp counter is at `deadline`; at once if it is there already.
pub fn set_deadline(deadline: u64) {
    // SAFETY: The timer makes an interrupt, which has an entry.
    unsafe { write_msr(Msr::TscDeadline, deadline) };
}

/// Starts the timer: it expires after `count`, once or over and over again.
pub fn start_timer(vector: Vector, mode: TimerMode, count: TimerCount) {
    write(Msr::TimerEntry, timer_entry(mode, Some(vector)));
    fence_apic_writes();
    write(Msr::TimerDivide, count.divide_configuration());
    write(Msr::TimerInitialCount, count.count().into());
}

/// What the timer has counted down to.
pub fn current_count() -> u32 {
    read(Msr::TimerCurrentCount)
}

/// Stops the timer, in whatever mode it is.
pub fn stop_timer() {
    write(Msr::TimerEntry, timer_entry(TimerMode::OneShot, None));
    fence_apic_writes();
    write(Msr::TimerInitialCount, 0);
}

/// Measures the frequency of the timer before its divider against the time stamp counter, for 10 ms.
pub(super) fn measure_timer(tsc: Frequency) -> Option<Frequency> {
    let longest = TimerCount::LONGEST;
    write(Msr::TimerEntry, timer_entry(TimerMode::OneShot, None));
    write(Msr::TimerDivide, longest.divide_configuration());
    fence_apic_writes();
    let start = read_tsc();
    write(Msr::TimerInitialCount, longest.count().into());
    let wait = tsc.cycles(Duration::from_millis(10));
    while read_tsc().wrapping_sub(start) < wait {
        core::hint::spin_loop();
    }
    let current = current_count();
    let passed = read_tsc().wrapping_sub(start);
    write(Msr::TimerInitialCount, 0);
    tsc.measured(longest.elapsed(current), passed)
}
