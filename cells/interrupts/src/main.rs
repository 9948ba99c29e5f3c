//! The cell that takes interrupts: of a serial port, through the IOAPIC, and of its CPUs among each other.
//!
//! Command line: `do=lines` or `do=startup`; `rounds=1000`; `patience=200000`, the cycles for which an interrupt is waited for;
//! `illegal=1` (0: no vector is sent that an APIC does not take, as an emulated one does). It says what came, and `interrupts: done`; then it goes on, and
//! says when an interrupt does not come any more.
#![no_std]
#![no_main]

mod lines;
mod startup;

use core::sync::atomic::{AtomicU64, Ordering};

use gaol_cell::{Cell, println};

gaol_cell::entry!(main);

fn main(mut cell: Cell) -> ! {
    let arguments = cell.arguments();
    let rounds = arguments.number("rounds", 1000) as u32;
    PATIENCE.store(arguments.number("patience", 200_000), Ordering::Relaxed);
    match arguments.get("do").unwrap_or_default() {
        "lines" => lines::run(&mut cell, rounds),
        "startup" => startup::run(&mut cell, rounds),
        other => panic!("the command line says \"do={other}\", which this cell does not know"),
    }
}

/// Cycles for which an interrupt is waited for.
static PATIENCE: AtomicU64 = AtomicU64::new(0);

/// Waits until `done`. `false`: it did not come to that.
fn comes(mut done: impl FnMut() -> bool) -> bool {
    let patience = PATIENCE.load(Ordering::Relaxed);
    let start = gaol_cell::instructions::read_tsc();
    while !done() {
        if gaol_cell::instructions::read_tsc().wrapping_sub(start) > patience {
            return false;
        }
        core::hint::spin_loop();
    }
    true
}

/// Says a line of what came.
fn said(what: &str, came: u32, of: u32) {
    println!("interrupts: {what}: {came} of {of}");
}
