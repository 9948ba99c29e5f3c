//! The cell that attempts whatever is forbidden.
//!
//! Command line: `do=` and what belongs to it; numbers in C's notation.
//!
//! * `do=list`: the rows of the table that are survived, each with a line.
//! * `do=end expect=stopped from=N` (or `expect=endless`): CPU n of the cell attempts the row of that kind with the number
//!   N + n among them.
//! * `do=random seed=N count=N`: random attempts.
//! * `do=region`: garbage into the communication region and the shared memory, for ever.
//! * `do=all seed=N count=N`: all of it at once, on all CPUs of the cell.
//!
//! `qemu=1`: what QEMU's processors do not refuse as others do is left out.
//! `hypervisor=` and `victim=` are host-physical addresses of memory that is attacked.
#![no_std]
#![no_main]

mod all;
mod ending;
mod list;
mod perform;
mod region;
mod say;
mod storm;
mod user;

use gaol_cell::exceptions::set_nmi_handler;
use gaol_cell::interrupts::{self, Interrupt};
use gaol_cell::registers::Vector;
use gaol_cell::{Cell, cpus};
use hostile_cell::attempt::FOREIGN;
use hostile_cell::violations::Expected;

use perform::Attacker;
use say::say;

gaol_cell::entry!(main);

fn main(mut cell: Cell) -> ! {
    let arguments = cell.arguments();
    let action = arguments.get("do").unwrap_or_default();
    let seed = arguments.number("seed", storm::SEED);
    let count = arguments.number("count", 1_000_000);
    perform::set_targets(
        arguments.number("hypervisor", FOREIGN),
        arguments.number("victim", FOREIGN),
    );
    if arguments.number("qemu", 0) != 0 {
        perform::spare_qemu();
    }
    // What comes of its own interrupts is not looked at; it must only do no harm.
    interrupts::disable();
    set_nmi_handler(|| ());
    for vector in 32..Vector::SPURIOUS {
        interrupts::set_handler(Vector::new(vector), |_: Interrupt| ());
    }
    say!("do {action}");
    match action {
        "list" => list::aloud(&Attacker::new(0)),
        "end" => {
            let expected = match arguments.get("expect") {
                Some("endless") => Expected::Endless,
                _ => Expected::Stopped,
            };
            ending::set(expected, arguments.number("from", 0) as usize);
            cpus::start_others(ending::run);
            ending::run(0)
        }
        "random" => storm::aloud(&Attacker::new(0), seed, count),
        "region" => region::attack_for_ever(seed),
        "all" => all::run(cell.cpus(), seed, count),
        _ => panic!("the command line says \"do={action}\", which is not hostile"),
    }
    cell.serve()
}
