//! The cell whose devices attack: QEMU's `edu`, which does DMA on command, and the network card `e1000e`, for its table of
//! messages.
//!
//! Command line: `do=attacks`, or `do=row row=N` for one of these, or `do=leave row=N`; where others are: `root=`, `hypervisor=`, `victim=`, `victim-cpu=`; and
//! `blocks=1` where the machine blocks messages without remapping, so that these are attempted as well.
//!
//! It says what became of each row, and `edu-dma: done`.
#![no_std]
#![no_main]
#![deny(unsafe_code)]

mod interrupts;
mod leave;
mod perform;

use edu_dma_cell::attack::Attack;
use edu_dma_cell::attacks::{all, plain};
use edu_dma_cell::outcome::{Line, PREFIX};
use gaol_cell::{Cell, println};

use crate::perform::Attacker;

gaol_cell::entry!(main);

fn main(mut cell: Cell) -> ! {
    let mut attacker = Attacker::new(&mut cell);
    let arguments = cell.arguments();
    match arguments.get("do").unwrap_or("attacks") {
        "attacks" => {
            let mut count = 0;
            for (number, row) in plain(arguments.flag("blocks")) {
                let outcome = attacker.perform(row.attack);
                println!("{}", Line::Row(number, outcome));
                cell.poll();
                count += 1;
            }
            println!("{PREFIX}done, {count} rows");
            cell.serve()
        }
        "row" => {
            let wanted = arguments.number("row", u64::MAX);
            for (number, row) in plain(false).filter(|(number, _)| *number as u64 == wanted) {
                println!("{}", Line::Row(number, attacker.perform(row.attack)));
            }
            println!("{PREFIX}done");
            cell.serve()
        }
        "leave" => {
            let wanted = arguments.number("row", u64::MAX);
            let row = all().find(|(number, _)| *number as u64 == wanted);
            match row.map(|(number, row)| (number, row.attack)) {
                Some((number, Attack::Leave(what))) => {
                    leave::leave(&mut cell, attacker, number, what)
                }
                _ => panic!("row {wanted} of the table leaves no device to itself"),
            }
        }
        other => panic!("the command line says \"do={other}\", which this cell does not know"),
    }
}
