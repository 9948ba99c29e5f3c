//! Interrupts for other CPUs, and for this one.

use core::sync::atomic::{AtomicU64, Ordering};

use gaol_cell::arguments::Arguments;
use gaol_cell::instructions::read_tsc;
use gaol_cell::interrupts::Interrupt;
use gaol_cell::registers::{Msr, Vector};
use gaol_cell::{apic, interrupts, println};

use crate::access::try_write_msr;
use crate::control::report;

const OWN: Vector = Vector::new(0x51);
/// What is sent to others. It comes here as well where a broadcast reaches all CPUs of the cell.
const OTHERS: Vector = Vector::new(0x41);
const FOREIGN: u64 = OTHERS.number() as u64;

const SMI: u64 = 2 << 8;
const NMI: u64 = 4 << 8;
const INIT: u64 = 5 << 8;
const STARTUP: u64 = 6 << 8;
const LOGICAL: u64 = 1 << 11;
const ASSERT: u64 = 1 << 14;
const TO_SELF: u64 = 1 << 18;
const TO_ALL: u64 = 2 << 18;
const TO_OTHERS: u64 = 3 << 18;

static RECEIVED: AtomicU64 = AtomicU64::new(0);

fn count(_: Interrupt) {
    RECEIVED.fetch_add(1, Ordering::Relaxed);
}

fn command(what: &str, target: u64, command: u64) {
    let result = try_write_msr(Msr::InterruptCommand, target << 32 | command);
    report(what, result);
}

pub fn send_all(arguments: Arguments<'_>) {
    let target = arguments.number("target", 0);
    let own = u64::from(apic::id());
    interrupts::set_handler(OWN, count);
    interrupts::set_handler(OTHERS, |_| ());

    println!("violator: from CPU {own} to CPU {target}, by x2APIC ids");
    command("fixed", target, ASSERT | FOREIGN);
    command("fixed, exception's vector", target, ASSERT | 2);
    command("logical", u64::from(u32::MAX), ASSERT | LOGICAL | FOREIGN);
    command(
        "broadcast by destination",
        u64::from(u32::MAX),
        ASSERT | FOREIGN,
    );
    command("to all others", 0, ASSERT | TO_OTHERS | FOREIGN);
    command("nmi", target, ASSERT | NMI);
    command("nmi to all others", 0, ASSERT | TO_OTHERS | NMI);
    command("init", target, ASSERT | INIT);
    command("init to all others", 0, ASSERT | TO_OTHERS | INIT);
    command("startup", target, ASSERT | STARTUP | 8);
    command("smi", target, ASSERT | SMI);
    command("reserved delivery mode", target, ASSERT | 3 << 8 | FOREIGN);

    let own_vector = u64::from(OWN.number());
    expect_own("self ipi register", || apic::send_self(OWN));
    expect_own("own id", || {
        command("fixed to itself", own, ASSERT | own_vector)
    });
    expect_own("shorthand self", || {
        command("shorthand self", 0, ASSERT | TO_SELF | own_vector);
    });
    expect_own("shorthand all", || {
        command("shorthand all", 0, ASSERT | TO_ALL | own_vector);
    });
}

/// Sends an interrupt to this CPU and says whether it came within 100,000 cycles.
fn expect_own(what: &str, send: impl FnOnce()) {
    let before = RECEIVED.load(Ordering::Relaxed);
    send();
    let start = read_tsc();
    while RECEIVED.load(Ordering::Relaxed) == before && read_tsc().wrapping_sub(start) < 100_000 {
        core::hint::spin_loop();
    }
    let received = RECEIVED.load(Ordering::Relaxed) - before;
    println!("violator: {what}: {received} received");
}
