//! The cell that takes interrupts: of a serial port, through the IOAPIC, and of its CPUs among each other.
//!
//! Command line: `do=lines` or `do=startup`; `rounds=1000`. It says what came, and `interrupts: done`; then it goes on, and
//! says when an interrupt does not come any more.
#![no_std]
#![no_main]

mod lines;
mod startup;

use gaol_cell::{Cell, println};

gaol_cell::entry!(main);

fn main(mut cell: Cell) -> ! {
    let arguments = cell.arguments();
    let rounds = arguments.number("rounds", 1000) as u32;
    match arguments.get("do").unwrap_or_default() {
        "lines" => lines::run(&mut cell, rounds),
        "startup" => startup::run(&mut cell, rounds),
        other => panic!("the command line says \"do={other}\", which this cell does not know"),
    }
}

/// Cycles for which an interrupt is waited for.
const PATIENCE: u64 = 200_000;

/// Waits until `done`. `false`: it did not come to that.
fn comes(mut done: impl FnMut() -> bool) -> bool {
    let start = gaol_cell::instructions::read_tsc();
    while !done() {
        if gaol_cell::instructions::read_tsc().wrapping_sub(start) > PATIENCE {
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
