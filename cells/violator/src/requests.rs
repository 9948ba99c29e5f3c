//! Cells that do not answer the root as they should.

use gaol_abi::communication::{CellState, CommunicationRegion};
use gaol_cell::arguments::Arguments;
use gaol_cell::instructions::halt_forever;
use gaol_cell::registers::Msr;
use gaol_cell::{COMMUNICATION_REGION, Cell, interrupts, println};

use crate::access::try_write_msr;

/// Vectors below are refused by the APIC (SDM, "Valid Interrupt Vectors").
const LOWEST_VECTOR: u64 = 16;

/// Denies `denials=` requests, or all of them.
pub fn deny(cell: &mut Cell) {
    let denials = cell.arguments().number("denials", 0);
    if cell.arguments().flag("lock") {
        cell.set_state(CellState::RunningLocked);
        println!("violator: locked");
    }
    let mut denied = 0;
    while denials == 0 || denied < denials {
        if cell.poll_and_deny() {
            denied += 1;
            println!("violator: denied {denied}");
        }
        core::hint::spin_loop();
    }
    cell.set_state(CellState::Running);
}

/// Never answers.
///
/// With `pend=1` all vectors that an APIC takes, those of exceptions among them, are left pending in this CPU's own.
pub fn ignore(arguments: Arguments<'_>) {
    if arguments.flag("pend") {
        interrupts::disable();
        for vector in LOWEST_VECTOR..=u64::from(u8::MAX) {
            let _ = try_write_msr(Msr::SelfIpi, vector);
        }
        println!("violator: interrupts are pending");
    }
    if arguments.flag("halt") {
        halt_forever();
    }
    loop {
        core::hint::spin_loop();
    }
}

/// Fills the communication region with ones, for ever.
pub fn scribble() {
    let region = COMMUNICATION_REGION.number() as *mut u8;
    loop {
        for offset in 0..size_of::<CommunicationRegion>() {
            // SAFETY: Nobody else in the cell uses the region any more.
            unsafe { region.add(offset).write_volatile(0xff) };
        }
    }
}
