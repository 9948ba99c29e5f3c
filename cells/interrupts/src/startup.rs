//! CPUs that are brought up by INIT and startup IPIs, although they have started already, and interrupts between them.

use core::sync::atomic::{AtomicU32, Ordering};

use gaol_cell::interrupts::{Interrupt, halt_until, set_handler};
use gaol_cell::registers::Vector;
use gaol_cell::{Cell, apic, cpus, println};

use crate::{comes, said};

const VECTOR: Vector = Vector::new(0x41);
/// APIC ids are below.
const IDS: usize = 8;
/// The cell's, as its configuration names its CPUs.
const OWN: core::ops::RangeInclusive<u32> = 1..=3;

const ASSERT: u64 = 1 << 14;
const LOWEST_PRIORITY: u64 = 1 << 8;
const INIT: u64 = 5 << 8 | ASSERT;
/// To page 0, where the code is.
const STARTUP: u64 = 6 << 8 | ASSERT;
const LOGICAL: u64 = 1 << 11;
const TO_SELF: u64 = 1 << 18;
const TO_ALL: u64 = 2 << 18;
const TO_OTHERS: u64 = 3 << 18;

static CAME: [AtomicU32; IDS] = [const { AtomicU32::new(0) }; IDS];
/// Number of the start that each CPU runs since.
static STARTED: [AtomicU32; IDS] = [const { AtomicU32::new(0) }; IDS];

fn count(_: Interrupt) {
    if let Some(came) = CAME.get(apic::id() as usize) {
        came.fetch_add(1, Ordering::Relaxed);
    }
}

/// What the other CPUs do, however they have started.
fn other(number: u32) -> ! {
    if let Some(started) = STARTED.get(apic::id() as usize) {
        started.store(number, Ordering::Release);
    }
    halt_until(|| false);
    cpus::halt()
}

fn start_of(id: u32) -> u32 {
    STARTED[id as usize].load(Ordering::Acquire)
}

/// As software does it: INIT, then twice a startup IPI. Whether the CPU came in a start of its own.
fn start_up(id: u32) -> bool {
    let (to, before) = (u64::from(id) << 32, start_of(id));
    apic::send(to | INIT);
    apic::send(to | STARTUP);
    apic::send(to | STARTUP);
    comes_late(|| start_of(id) != before)
}

/// A CPU that starts takes longer than an interrupt.
fn comes_late(mut done: impl FnMut() -> bool) -> bool {
    (0..100).any(|_| comes(&mut done))
}

fn counts() -> [u32; IDS] {
    core::array::from_fn(|id| CAME[id].load(Ordering::Relaxed))
}

/// Sends a command so many times and compares what came with what `expected` says of each CPU: how many at once.
fn send(what: &str, command: u64, rounds: u32, expected: &[u32; IDS]) {
    let before = counts();
    let mut good = 0;
    for round in 1..=rounds {
        apic::send(command);
        let all = |id: usize| before[id] + round * expected[id];
        good += u32::from(comes(|| {
            let now = counts();
            (0..IDS).all(|id| now[id] == all(id))
        }));
    }
    // Nothing comes behind them.
    let after = counts();
    let is_quiet = !comes(|| counts() != after);
    said(what, if is_quiet { good } else { 0 }, rounds);
}

/// As [`send`], to any one of the CPUs.
fn send_to_one(what: &str, command: u64, rounds: u32, among: &[u32; IDS]) {
    let mut good = 0;
    for _ in 0..rounds {
        let before = counts();
        apic::send(command);
        comes(|| counts() != before);
        let after = counts();
        let came = (0..IDS).map(|id| (after[id] - before[id]) * (1 + 1000 * (1 - among[id])));
        good += u32::from(came.sum::<u32>() == 1);
    }
    said(what, good, rounds);
}

pub fn run(cell: &mut Cell, rounds: u32) -> ! {
    let own = apic::id();
    set_handler(VECTOR, count);
    let others = || OWN.filter(|id| *id != own);
    // They have come with the cell's start, or are on their way, and wait where the runtime keeps them.
    let came = others().filter(|id| {
        let to = u64::from(*id) << 32;
        apic::send(to | INIT);
        apic::send(to | STARTUP);
        apic::send(to | STARTUP);
        true
    });
    let sent = came.count() as u32;
    cpus::start_others(other);
    let here = comes_late(|| others().all(|id| start_of(id) != 0));
    said("CPUs started up", if here { sent } else { 0 }, 2);
    let mut again = 0;
    for id in others() {
        again += u32::from(start_up(id));
    }
    said("CPUs started again", again, 2);

    let vector = ASSERT | u64::from(VECTOR.number());
    let of = |ids: &[u32]| -> [u32; IDS] {
        core::array::from_fn(|id| u32::from(ids.contains(&(id as u32))))
    };
    let all = of(&[1, 2, 3]);
    let mut rest = all;
    rest[own as usize] = 0;
    let first = others().next().unwrap_or(own);
    for id in OWN {
        send("physical", u64::from(id) << 32 | vector, rounds, &of(&[id]));
    }
    send("itself", TO_SELF | vector, rounds, &of(&[own]));
    send("all", TO_ALL | vector, rounds, &all);
    send("all others", TO_OTHERS | vector, rounds, &rest);
    send("broadcast", 0xffff_ffff << 32 | vector, rounds, &all);
    send(
        "logical broadcast",
        0xffff_ffff << 32 | LOGICAL | vector,
        rounds,
        &all,
    );
    send("a set", 0b1110 << 32 | LOGICAL | vector, rounds, &all);
    send(
        "a set with CPU 0",
        0b1111 << 32 | LOGICAL | vector,
        rounds,
        &all,
    );
    send(
        "one of a set",
        1u64 << first << 32 | LOGICAL | vector,
        rounds,
        &of(&[first]),
    );
    send_to_one(
        "lowest priority",
        0b1110 << 32 | LOGICAL | LOWEST_PRIORITY | vector,
        rounds,
        &all,
    );
    send(
        "another cluster",
        0x1_000e << 32 | LOGICAL | vector,
        1,
        &[0; IDS],
    );
    send("CPU 0", vector, 1, &[0; IDS]);
    send(
        "lowest priority of CPU 0",
        LOWEST_PRIORITY | vector,
        1,
        &[0; IDS],
    );
    if cell.arguments().number("illegal", 1) != 0 {
        send(
            "an illegal vector",
            u64::from(first) << 32 | ASSERT | 3,
            1,
            &[0; IDS],
        );
    }
    send(
        "INIT de-assert",
        u64::from(first) << 32 | 5 << 8 | 1 << 15,
        1,
        &[0; IDS],
    );
    send(
        "all to all with lowest priority",
        TO_ALL | LOWEST_PRIORITY | vector,
        1,
        &[0; IDS],
    );
    // A startup IPI without an INIT is for nobody.
    let before = start_of(first);
    apic::send(u64::from(first) << 32 | STARTUP);
    said(
        "startup without INIT",
        u32::from(comes(|| start_of(first) != before)),
        1,
    );
    send(
        "behind that",
        u64::from(first) << 32 | vector,
        rounds,
        &of(&[first]),
    );
    println!("interrupts: done");
    cell.serve()
}
