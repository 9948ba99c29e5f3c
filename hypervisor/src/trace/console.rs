//! The console: a ring that the root reads, and a 16550.
//!
//! Characters go into the ring without a lock, each with who printed it: a writer takes the next place and then fills it, so
//! no guest can delay another by printing, and whoever reads the ring puts lines together again. On the UART characters are
//! in the order in which they came. Text is put together at launch and when something is wrong, by [`Line`], which has a line
//! of its own there, too: meanwhile characters of guests wait for its turn, but never longer than a few milliseconds.

use core::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicU64, Ordering};

use gaol_abi::MAX_CELLS;
use gaol_abi::public::{
    RING_BY_HYPERVISOR, RING_ENTRIES, RING_ENTRIES_OFFSET, RING_OFFSET, RingEntry,
};

use crate::launch::parameters;
use crate::processor::{self, port_read, port_write};

/// First port of the UART, 0 for none.
static UART: AtomicU16 = AtomicU16::new(0);

/// How often the UART is asked whether it takes a character, before the character is given up: a few milliseconds, more
/// than 16 characters take at 115200 baud.
const UART_PATIENCE: u32 = 100_000;

/// Ports that a 16550 has.
pub const UART_PORTS: u16 = 8;

/// Registers of a 16550, as offsets from its first port. (Not those of the crate `uart_16550`: it calls `expect` on the
/// way of each character, and cells print in the exit path, where no panic may be reached.)
mod register {
    /// Data; the low byte of the divisor while that is selected.
    pub const DATA: u16 = 0;
    /// Interrupt enable; the high byte of the divisor.
    pub const INTERRUPT_ENABLE: u16 = 1;
    /// FIFO control.
    pub const FIFO_CONTROL: u16 = 2;
    /// Line control.
    pub const LINE_CONTROL: u16 = 3;
    /// Modem control.
    pub const MODEM_CONTROL: u16 = 4;
    /// Line status.
    pub const LINE_STATUS: u16 = 5;
}

fn write_register(port: u16, register: u16, value: u8) {
    // SAFETY: the configuration gives these ports to the hypervisor; the root's port bitmap keeps Linux off them.
    unsafe { port_write(port.wrapping_add(register), 1, u32::from(value)) };
}

/// Sets the UART up at `port` (8n1, FIFOs on, no interrupts).
pub fn use_uart(port: u16, divisor: u16) {
    let [low, high] = divisor.to_le_bytes();
    let (divisor_latch, eight_bits, fifos, ready) = (0x80, 0x03, 0x07, 0x03);
    for (register, value) in [
        (register::INTERRUPT_ENABLE, 0),
        (register::LINE_CONTROL, divisor_latch),
        (register::DATA, low),
        (register::INTERRUPT_ENABLE, high),
        (register::LINE_CONTROL, eight_bits),
        (register::FIFO_CONTROL, fifos),
        (register::MODEM_CONTROL, ready),
    ] {
        write_register(port, register, value);
    }
    UART.store(port, Ordering::Relaxed);
}

/// First port of the UART in use, if there is one.
#[must_use]
pub fn uart_port() -> Option<u16> {
    match UART.load(Ordering::Relaxed) {
        0 => None,
        port => Some(port),
    }
}

fn put_uart(byte: u8) {
    let Some(port) = uart_port() else { return };
    let holding_register_empty = 1 << 5;
    for _ in 0..UART_PATIENCE {
        // SAFETY: as in `write_register`; reading the line status drops nothing that the hypervisor looks at.
        let status = unsafe { port_read(port.wrapping_add(register::LINE_STATUS), 1) };
        if status & holding_register_empty != 0 {
            write_register(port, register::DATA, byte);
            return;
        }
    }
}

/// Puts one character of a cell's on the console.
pub fn put(cell: u32, byte: u8) {
    TURN.wait(processor::pause);
    BEGUN.note(cell, byte != b'\n');
    write_ring(cell as u8, byte);
    write_uart(byte);
}

/// Ends the line that the cell has begun, if it has: what it prints from now on is of another life.
pub fn end_line(cell: u32) {
    if BEGUN.has(cell) {
        put(cell, b'\n');
    }
}

/// Puts one character of the hypervisor's own on the console.
fn write(byte: u8) {
    write_ring(RING_BY_HYPERVISOR, byte);
    write_uart(byte);
}

fn write_ring(source: u8, character: u8) {
    let ring = parameters::public_base().wrapping_add(RING_OFFSET);
    // SAFETY: the ring's header is an aligned u64 in the public pages, only accessed atomically.
    let written = unsafe { AtomicU64::from_ptr(ring as *mut u64) };
    let place = written
        .fetch_add(1, Ordering::AcqRel)
        .checked_rem(RING_ENTRIES as u64)
        .unwrap_or(0);
    let entry = ring
        .wrapping_add(RING_ENTRIES_OFFSET)
        .wrapping_add(place.wrapping_mul(size_of::<RingEntry>() as u64));
    let value = u16::from_le_bytes([character, source]);
    // SAFETY: one of the ring's entries, aligned; the root only reads them. In one piece, so that nobody reads a character
    // as another's.
    unsafe { AtomicU16::from_ptr(entry as *mut u16) }.store(value, Ordering::Relaxed);
}

fn write_uart(byte: u8) {
    IS_LINE_BEGUN.store(byte != b'\n', Ordering::Relaxed);
    if byte == b'\n' {
        put_uart(b'\r');
    }
    put_uart(byte);
}

/// Who may write. It is free, or the hypervisor has it for a line; whoever has waited for long takes it for given up, since
/// a CPU that fails while it writes gives nothing back.
#[derive(Debug)]
struct Turn(AtomicBool);

static TURN: Turn = Turn(AtomicBool::new(false));
/// Whether the last character on the UART was another than the end of a line.
static IS_LINE_BEGUN: AtomicBool = AtomicBool::new(false);

/// The cells that have begun a line and not ended it, a bit each.
#[derive(Debug)]
struct Begun(AtomicU32);

static BEGUN: Begun = Begun(AtomicU32::new(0));

const _: () = assert!(MAX_CELLS <= u32::BITS as usize);

impl Begun {
    fn has(&self, cell: u32) -> bool {
        self.0.load(Ordering::Relaxed) & 1u32.unbounded_shl(cell) != 0
    }

    fn note(&self, cell: u32, has: bool) {
        let bit = 1u32.unbounded_shl(cell);
        match (self.has(cell), has) {
            (false, true) => self.0.fetch_or(bit, Ordering::Relaxed),
            (true, false) => self.0.fetch_and(!bit, Ordering::Relaxed),
            _ => 0,
        };
    }
}

/// How often a writer looks whether the turn is free: for some ten milliseconds, more than a line takes at 115200 baud.
const TURN_PATIENCE: u32 = 1_000_000;

impl Turn {
    /// Waits until nobody has it, with `pause` between two looks.
    fn wait(&self, pause: impl Fn()) {
        for _ in 0..TURN_PATIENCE {
            if !self.0.load(Ordering::Acquire) {
                return;
            }
            pause();
        }
        self.give_back();
    }

    /// Waits until nobody has it, and takes it.
    fn take(&self, pause: impl Fn()) {
        for _ in 0..TURN_PATIENCE {
            if !self.0.swap(true, Ordering::AcqRel) {
                return;
            }
            pause();
        }
    }

    fn give_back(&self) {
        self.0.store(false, Ordering::Release);
    }
}

/// A line of text, put together piece by piece and ended by [`Self::end`].
///
/// In place of `core::fmt`, which holds calls of panic functions and calls by pointer, and is larger than all texts that
/// the hypervisor has: this can be called where no panic may be reached.
#[derive(Debug)]
#[must_use = "a line is ended by `end`"]
pub struct Line(());

/// Starts a line, on the UART behind the one that a guest may have begun.
pub fn line() -> Line {
    TURN.take(processor::pause);
    if IS_LINE_BEGUN.load(Ordering::Relaxed) {
        write_uart(b'\n');
    }
    Line(())
}

impl Line {
    /// Adds text.
    pub fn text(self, text: &str) -> Self {
        text.bytes().for_each(write);
        self
    }

    /// Adds a decimal number.
    pub fn number(self, value: u64) -> Self {
        digits(value, 10, &mut write);
        self
    }

    /// Adds a hexadecimal number with its prefix.
    pub fn hexadecimal(self, value: u64) -> Self {
        write(b'0');
        write(b'x');
        digits(value, 16, &mut write);
        self
    }

    /// Ends the line.
    pub fn end(self) {
        write(b'\n');
        TURN.give_back();
    }
}

/// The digits of `value` to the base 10 or 16, the highest first.
fn digits(value: u64, base: u64, put: &mut impl FnMut(u8)) {
    let mut reversed = [0u8; 20];
    let mut count = 0usize;
    let mut rest = value;
    for place in &mut reversed {
        let digit = rest.checked_rem(base).unwrap_or(0) as u8;
        *place = match digit {
            0..10 => digit.wrapping_add(b'0'),
            _ => digit.wrapping_sub(10).wrapping_add(b'a'),
        };
        count = count.wrapping_add(1);
        rest = rest.checked_div(base).unwrap_or(0);
        if rest == 0 {
            break;
        }
    }
    for digit in reversed.iter().take(count).rev() {
        put(*digit);
    }
}

#[cfg(test)]
mod tests {
    use core::cell::Cell;

    use proptest::prelude::*;

    use super::*;

    fn written(value: u64, base: u64) -> String {
        let mut text = String::new();
        digits(value, base, &mut |digit| text.push(char::from(digit)));
        text
    }

    #[test]
    fn a_character_waits_for_the_end_of_a_line() {
        let turn = Turn(AtomicBool::new(false));
        turn.take(|| panic!("it is free"));
        let looks = Cell::new(0);
        turn.wait(|| {
            looks.set(looks.get() + 1);
            if looks.get() == 3 {
                turn.give_back();
            }
        });
        assert_eq!(looks.get(), 3);
        turn.wait(|| panic!("it is free"));
    }

    #[test]
    fn what_a_lost_cpu_has_is_taken_for_given_up() {
        let turn = Turn(AtomicBool::new(false));
        turn.take(|| {});
        turn.wait(|| {});
        turn.take(|| panic!("it was given up"));
        // Another line does not wait for ever, either.
        turn.take(|| {});
        turn.give_back();
        turn.wait(|| panic!("it is free"));
    }

    #[test]
    fn a_line_is_begun_until_it_ends() {
        let begun = Begun(AtomicU32::new(0));
        begun.note(0, true);
        begun.note(15, true);
        begun.note(15, true);
        begun.note(7, false);
        let all = |begun: &Begun| {
            (0..=255)
                .filter(|cell| begun.has(*cell))
                .collect::<Vec<_>>()
        };
        assert_eq!(all(&begun), [0, 15]);
        begun.note(0, false);
        begun.note(255, true);
        assert_eq!(all(&begun), [15]);
    }

    proptest! {
        #[test]
        fn numbers_read_as_the_standard_library_writes_them(value: u64, shift in 0u32..64) {
            for value in [value >> shift, 0, u64::MAX] {
                prop_assert_eq!(written(value, 10), value.to_string());
                prop_assert_eq!(written(value, 16), format!("{value:x}"));
            }
        }
    }
}
