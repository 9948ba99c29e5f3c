//! `print!` and `println!`.
//!
//! What is printed goes, character by character, to the hypervisor's console, if the cell's configuration permits that;
//! each character is a VM exit. With the feature `serial-console` it goes to COM1 where there is no hypervisor.
//!
//! Invariant: printing never fails and never waits for a lock, so that it works in handlers and after a panic.

use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};

use gaol_abi::hypercall::Hypercall;

use super::hypercall;

/// Whether the communication region permits hypercall 8.
static PERMITTED: AtomicBool = AtomicBool::new(false);

pub(super) fn permit(permitted: bool) {
    PERMITTED.store(permitted, Ordering::Relaxed);
}

struct Console;

impl fmt::Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if PERMITTED.load(Ordering::Relaxed) && hypercall::available() {
            for byte in text.bytes() {
                // An answer other than 0 leaves nothing to be done about it.
                let _ = hypercall::call(Hypercall::DebugConsolePutc, byte.into(), 0);
            }
        } else if cfg!(feature = "serial-console") && !hypercall::available() {
            text.bytes().for_each(write_serial);
        }
        Ok(())
    }
}

fn write_serial(byte: u8) {
    use super::instructions::{read_port, write_port};
    const COM1: u16 = 0x3f8;
    const LINE_CONTROL: u16 = COM1 + 3;
    const EIGHT_BITS: u8 = 3;
    const LINE_STATUS: u16 = COM1 + 5;
    const TRANSMITTER_EMPTY: u8 = 0x20;
    // SAFETY: A UART changes no memory.
    unsafe {
        write_port(LINE_CONTROL, EIGHT_BITS);
        while read_port(LINE_STATUS) & TRANSMITTER_EMPTY == 0 {}
        write_port(COM1, byte);
    }
}

#[doc(hidden)]
pub fn print(arguments: fmt::Arguments<'_>) {
    // Console's write_str never fails.
    let _ = fmt::Write::write_fmt(&mut Console, arguments);
}

/// Prints on the console of the hypervisor.
#[macro_export]
macro_rules! print {
    ($($argument:tt)*) => { $crate::console::print(::core::format_args!($($argument)*)) };
}

/// Prints a line on the console of the hypervisor.
#[macro_export]
macro_rules! println {
    () => { $crate::print!("\n") };
    ($format:literal $($argument:tt)*) => { $crate::print!("{}\n", ::core::format_args!($format $($argument)*)) };
}
