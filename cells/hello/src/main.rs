//! The cell that says hello, and then counts the time that it is up, and the CPUs that have come.
//!
//! Command line: `every=1s` (time between two lines), `lines=0` (how many; 0: no end).
#![no_std]
#![no_main]
#![deny(unsafe_code)]

use core::sync::atomic::{AtomicU32, Ordering};
use core::time::Duration;

use gaol_cell::ticker::Wait;
use gaol_cell::{Cell, cpus, println};

gaol_cell::entry!(main);

static CPUS_HERE: AtomicU32 = AtomicU32::new(1);

/// How long the root waits for an answer at the most.
const POLL: Duration = Duration::from_millis(10);

fn main(mut cell: Cell) -> ! {
    let every = cell.arguments().duration("every", Duration::from_secs(1));
    let lines = cell.arguments().number("lines", 0);

    println!(
        "hello: a cell with {} CPU(s), TSC {}, APIC timer {}",
        cell.cpus(),
        cell.tsc(),
        cell.apic_timer()
    );

    cpus::start_others(other);
    let mut ticker = cell.start_ticker(POLL, Wait::Halt);
    let mut up = Duration::ZERO;
    let mut printed = 0;
    while lines == 0 || printed < lines {
        ticker.wait();
        up += POLL;
        if up >= every * (printed + 1) as u32 {
            let cpus = CPUS_HERE.load(Ordering::Relaxed);
            println!("hello: {up:?} up, {cpus} CPU(s) here");
            printed += 1;
        }
        cell.poll();
    }
    ticker.stop();

    println!("hello: done");
    cell.serve()
}

/// What the other CPUs of the cell do, if it has more than one.
fn other(_number: u32) -> ! {
    CPUS_HERE.fetch_add(1, Ordering::Relaxed);
    cpus::halt()
}
