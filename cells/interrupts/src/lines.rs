//! Interrupts of a 16550, whose transmitter asks for work each time that it is allowed to.

use core::sync::atomic::{AtomicU32, Ordering};

use gaol_cell::instructions::{read_port, write_port};
use gaol_cell::interrupts::{Interrupt, halt_until, set_handler};
use gaol_cell::io_apic::{self, LEVEL, MASKED};
use gaol_cell::registers::Vector;
use gaol_cell::{Cell, apic, cpus, println};

use crate::{comes, said};

const LINE: u8 = 3;
const UART: u16 = 0x2e8;
const ENABLE: u16 = UART + 1;
const IDENTIFICATION: u16 = UART + 2;
const LINE_CONTROL: u16 = UART + 3;
const MODEM_CONTROL: u16 = UART + 4;
/// Its interrupts reach the line.
const OUT_2: u8 = 8;
const TRANSMITTER_EMPTY: u8 = 2;

const EDGE_VECTOR: Vector = Vector::new(0x51);
const LEVEL_VECTOR: Vector = Vector::new(0xf3);

/// Bit of an entry: it names one of an IOMMU's, where one remaps interrupts.
const NAMES_ENTRY: u64 = 1 << 48;
/// Of the entries that can be named so, each of this number is tried.
const STEP: usize = 251;

/// APIC ids of the cell's CPUs, as its configuration has them.
const OWN: core::ops::Range<u32> = 1..4;

/// Pins of Linux' and pins that nobody uses.
const FOREIGN: [u8; 6] = [0, 1, 2, 4, 9, 14];

static CAME: AtomicU32 = AtomicU32::new(0);

fn read(port: u16) -> u8 {
    // SAFETY: A port of the serial port, which knows nothing of memory.
    unsafe { read_port(port) }
}

fn write(port: u16, value: u8) {
    // SAFETY: See `read`.
    unsafe { write_port(port, value) };
}

fn on_line(_: Interrupt) {
    // Reading takes the reason away.
    read(IDENTIFICATION);
    CAME.fetch_add(1, Ordering::Relaxed);
}

/// Lets the device interrupt once. Whether the interrupt came.
fn provoke() -> bool {
    let before = CAME.load(Ordering::Relaxed);
    write(ENABLE, 0);
    write(ENABLE, TRANSMITTER_EMPTY);
    let came = comes(|| CAME.load(Ordering::Relaxed) != before);
    if !came {
        read(IDENTIFICATION);
    }
    write(ENABLE, 0);
    came
}

/// Sets the line's entry, and lets come what has waited behind the mask: there are IOAPICs that remember edges.
fn set(entry: u64) {
    io_apic::set_entry(LINE, entry);
    comes(|| false);
}

/// How many interrupts come in so many rounds with this entry.
fn count(entry: u64, rounds: u32) -> u32 {
    set(entry);
    let before = CAME.load(Ordering::Relaxed);
    for _ in 0..rounds {
        provoke();
    }
    CAME.load(Ordering::Relaxed) - before
}

/// The entry that would have an IOMMU send what stands in its table at `handle`.
fn naming(handle: u64, vector: u8) -> u64 {
    (handle & 0x7fff) << 49 | NAMES_ENTRY | handle >> 15 << 11 | u64::from(vector)
}

/// Names entries of an IOMMU's table, Linux' and others'. A cell's entry is always taken for one that names a processor:
/// returns how many were kept masked or not as that processor is, of how many.
fn name_entries(vector: u8) -> (u32, u32) {
    let (mut right, mut all) = (0, 0);
    for handle in (0..1u64 << 15).step_by(STEP) {
        io_apic::set_entry(LINE, naming(handle, vector));
        let destination = (handle >> 7) as u32;
        let is_own = OWN.contains(&destination) || destination == 0xff;
        let entry = io_apic::entry_of(LINE);
        if (entry & MASKED == 0) == is_own {
            right += 1;
        } else {
            println!("interrupts: handle {handle:#x}: {entry:#x}");
        }
        all += 1;
    }
    (right, all)
}

fn wait(_number: u32) -> ! {
    halt_until(|| false);
    cpus::halt()
}

pub fn run(cell: &mut Cell, rounds: u32) -> ! {
    set_handler(EDGE_VECTOR, on_line);
    set_handler(LEVEL_VECTOR, on_line);
    // An interrupt for everyone may come to any of them.
    cpus::start_others(wait);
    write(LINE_CONTROL, 3);
    write(MODEM_CONTROL, OUT_2);
    let own = apic::id();
    let (edge, level) = (EDGE_VECTOR.number(), LEVEL_VECTOR.number());
    let good = io_apic::entry(edge, own);
    said("edges", count(good, rounds), rounds);
    let good_level = io_apic::entry(level, own) | LEVEL;
    set(good_level);
    // A line that is active interrupts again when somebody else's does, on some IOAPICs.
    let came = (0..rounds).filter(|_| provoke()).count() as u32;
    said("levels", came, rounds);
    let logical = io_apic::entry(edge, 1 << own) | 1 << 11;
    said("logical", count(logical, 10), 10);
    said("everyone", count(io_apic::entry(edge, 0xff), 10), 10);
    said("masked", count(good | MASKED, 1), 1);

    let (smi, nmi_reserved, init, external) = (2 << 8, 3 << 8, 5 << 8, 7 << 8);
    for (what, entry) in [
        ("CPU 0", io_apic::entry(edge, 0)),
        ("a CPU that does not exist", io_apic::entry(edge, 77)),
        ("SMI", good | smi),
        ("a reserved mode", good | nmi_reserved),
        ("INIT", good | init),
        ("ExtINT", good | external),
        ("an exception's vector", io_apic::entry(14, own)),
        ("a vector of Linux' level", good | LEVEL),
    ] {
        let came = count(entry, 1);
        let is_masked = io_apic::entry_of(LINE) & MASKED != 0;
        println!("interrupts: refused {what}: masked {is_masked}, {came} came");
    }
    let (right, all) = name_entries(edge);
    said("entries of an IOMMU named", right, all);
    said("in that format", count(good | NAMES_ENTRY, 10), 10);
    let mut masked = 0;
    for pin in FOREIGN {
        io_apic::set_entry(pin, good);
        masked += u32::from(io_apic::entry_of(pin) == MASKED);
    }
    said("foreign pins masked", masked, FOREIGN.len() as u32);
    said("again", count(good, 10), 10);
    println!("interrupts: done");
    let mut more = 0;
    loop {
        if !provoke() {
            println!("interrupts: one is missing");
        }
        more += 1;
        if more % 10_000 == 0 {
            println!("interrupts: {} thousand more", more / 1000);
        }
        cell.poll();
    }
}
