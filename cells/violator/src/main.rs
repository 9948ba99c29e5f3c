//! To come.
#![no_std]
#![no_main]
gaol_cell::entry!(main);
fn main(mut cell: gaol_cell::Cell) -> ! { cell.serve() }
