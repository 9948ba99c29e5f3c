//! The console: a ring that the root reads, and a 16550.
//!
//! Characters go into the ring without a lock: a writer takes the next place and then fills it, so no guest can delay
//! another by printing. Text is formatted at launch and in the management path only.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU16, AtomicU64, Ordering};

use gaol_abi::public::{RING_OFFSET, RING_TEXT, RING_TEXT_OFFSET};
use uart_16550::backend::PioBackend;
use uart_16550::{Config, Uart16550};

use crate::launch::parameters;

/// First port of the UART, 0 for none.
static UART: AtomicU16 = AtomicU16::new(0);

/// How often the UART is asked whether it takes a character, before the character is given up: a few milliseconds, more
/// than 16 characters take at 115200 baud.
const UART_PATIENCE: u32 = 100_000;

/// Ports that a 16550 has.
pub const UART_PORTS: u16 = 8;

/// Sets the UART up at `port` (8n1).
pub fn use_uart(port: u16, baud: u32) {
    // SAFETY: the configuration gives these ports to the hypervisor; the root's port bitmap keeps Linux off them.
    let Ok(mut uart) = (unsafe { Uart16550::new_port(port) }) else {
        return;
    };
    let baud_rate = uart_16550::BaudRate::from_integer(baud);
    if uart
        .init(Config {
            baud_rate,
            ..Config::default()
        })
        .is_ok()
    {
        UART.store(port, Ordering::Relaxed);
    }
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
    // SAFETY: as in `use_uart`; a second handle is no state but the port.
    let Ok(mut uart): Result<Uart16550<PioBackend>, _> = (unsafe { Uart16550::new_port(port) })
    else {
        return;
    };
    for _ in 0..UART_PATIENCE {
        if uart.try_send_byte(byte).is_ok() {
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
