//! The cell that measures how long a timer interrupt takes from its expiry to its handler.
//!
//! Command line: `period=500us`, `ticks=10000`, `wait=spin` (or `halt`), `class=1` (cycles that a class of the histogram
//! spans), `at=0x200000` (where the shared memory is), `summary=1` (0: nothing is printed after the run), `exits=1`
//! (0: the hypervisor is not asked for the number of VM exits before and after the run), `timer=count` (the APIC timer
//! counts by itself, even where the CPU has TSC-deadline mode).
//!
//! Invariant: from the first tick to the last nothing here causes a VM exit. Hence no line is printed meanwhile, and the
//! root is answered through memory.
#![no_std]
#![no_main]
#![deny(unsafe_code)]

use core::time::Duration;

use gaol_cell::hypercall::ExitCounter;
use gaol_cell::shared::Window;
use gaol_cell::ticker::Wait;
use gaol_cell::{Cell, WINDOWS, println};
use latency_cell::{Plan, Recorder};

gaol_cell::entry!(main);

fn main(mut cell: Cell) -> ! {
    let arguments = cell.arguments();
    let period = arguments.duration("period", Duration::from_micros(500));
    let switch = |key| arguments.get(key).is_none() || arguments.flag(key);
    let wait = match arguments.get("wait") {
        None | Some("spin") => Wait::Spin,
        Some("halt") => Wait::Halt,
        Some(other) => {
            panic!("the command line says \"wait={other}\", but wait takes spin or halt")
        }
    };
    let plan = Plan {
        ticks: arguments.number("ticks", 10_000),
        period_cycles: cell.tsc().cycles(period),
        class_cycles: arguments.number("class", 1),
        tsc: cell.tsc(),
    };
    println!(
        "latency: {} ticks, one every {} cycles, TSC {}",
        plan.ticks, plan.period_cycles, plan.tsc
    );
    let results = Window::at(arguments.address("at", WINDOWS));
    let mut recorder = Recorder::new(results, plan);

    let mut ticker = match arguments.get("timer") {
        Some("count") => cell.start_counting_ticker(period, wait),
        _ => cell.start_ticker(period, wait),
    };
    let mut exits = switch("exits").then(ExitCounter::new).flatten();
    while recorder.wants_more() {
        recorder.record(ticker.wait());
        cell.poll();
    }
    let exits = exits.as_mut().and_then(ExitCounter::passed);
    ticker.stop();
    recorder.finish();

    if switch("summary") {
        let average = recorder.average_tenths();
        println!(
            "latency: {} ticks done, min {} avg {}.{} max {} cycles, {} missed",
            recorder.ticks,
            recorder.min,
            average / 10,
            average % 10,
            recorder.max,
            recorder.missed
        );
        if let Some(exits) = exits {
            println!("latency: {exits} VM exits from the first tick to the last");
        }
    }
    cell.serve()
}
