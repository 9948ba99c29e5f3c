//! The console: a ring that the root reads, and a 16550.
//!
//! Characters go into the ring without a lock: a writer takes the next place and then fills it, so no guest can delay
//! another by printing. Text is formatted at launch and in the management path only.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU16, AtomicU64, Ordering};

use gaol_abi::public::{RING_OFFSET, RING_TEXT, RING_TEXT_OFFSET};

use crate::launch::parameters;
use crate::processor::{port_read, port_write};

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

/// Puts one character on the console.
pub fn put(byte: u8) {
    let ring = parameters::public_base().wrapping_add(RING_OFFSET);
    // SAFETY: the ring's header is an aligned u64 in the public pages, only accessed atomically.
    let written = unsafe { AtomicU64::from_ptr(ring as *mut u64) };
    let place = written
        .fetch_add(1, Ordering::AcqRel)
        .checked_rem(RING_TEXT as u64)
        .unwrap_or(0);
    // SAFETY: inside the ring's text, which the root only reads.
    unsafe {
        (ring.wrapping_add(RING_TEXT_OFFSET).wrapping_add(place) as *mut u8).write_volatile(byte)
    };
    if byte == b'\n' {
        put_uart(b'\r');
    }
    put_uart(byte);
}

struct Console;

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(put);
        Ok(())
    }
}

struct Logger;

impl log::Log for Logger {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Info
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            // Writing to the ring can't fail.
            let _ = writeln!(Console, "{}", record.args());
        }
    }

    fn flush(&self) {}
}

/// Reports a panic. Not by `{info}`: that would be the only use of padded strings in the image, a KiB of code.
pub fn report(info: &core::panic::PanicInfo<'_>) {
    let (file, line) = info
        .location()
        .map_or(("?", 0), |place| (place.file(), place.line()));
    let _ = Console.write_str("Gaol: panic at ");
    let _ = Console.write_str(file);
    let _ = writeln!(Console, ":{line}: {}: this CPU stops", info.message());
}

/// Sends the `log` macros to the console.
pub fn start() {
    // A second launch in one boot starts from a fresh image, so it is the first caller in each.
    let _ = log::set_logger(&Logger);
    log::set_max_level(log::LevelFilter::Info);
}
