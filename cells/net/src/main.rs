//! The cell that answers on a network card of its own: ARP, ping, UDP echo, and its figures to whoever asks.
//!
//! Command line: `mode=poll` (or `msi`, `msix`, `intx`), `address=10.0.2.15/24`, `device=00:02.0` (the first card that the cell
//! has), `line=18` (with `intx`: the pin of the IOAPIC, since a cell does not see what the firmware has written
//! down).
//!
//! Invariant: from `net: ready` on nothing here causes a VM exit but the end of an interrupt, where the CPU has no x2APIC, and
//! the hypercall that a question for figures takes. No line is printed, and no port or configuration space is used.
#![no_std]
#![no_main]
#![deny(unsafe_code)]

use core::sync::atomic::{AtomicU64, Ordering};

use gaol_abi::network::{NOT_COUNTED, NetworkStatistics, SIGNATURE};
use gaol_cell::configuration::Ports;
use gaol_cell::device::Registers;
use gaol_cell::dma::DmaMemory;
use gaol_cell::frequency::Frequency;
use gaol_cell::hypercall::ExitCounter;
use gaol_cell::instructions::read_tsc;
use gaol_cell::interrupts::{self, Interrupt, set_handler};
use gaol_cell::io_apic::{self, LEVEL};
use gaol_cell::mmio::Mmio;
use gaol_cell::once::Once;
use gaol_cell::pci::{self, Bar, Command, Function, Message, MsiX};
use gaol_cell::registers::Vector;
use gaol_cell::shared::GuestAddress;
use gaol_cell::{Cell, apic, println};
use gaol_devices::e1000::driver::acknowledge;
use gaol_devices::e1000::registers::offset;
use gaol_devices::e1000::{Controller, MEMORY_SIZE, Model};
use net_cell::plan::{Mode, Plan};
use net_cell::server::{Place, Server, Storage};
use smoltcp::time::Instant;

gaol_cell::entry!(main);

type Card = Controller<Mmio, DmaMemory>;

const VECTOR: Vector = Vector::new(0x61);
/// Level-triggered lines of cells have vectors from 0xf0 on.
const LINE_VECTOR: Vector = Vector::new(0xf4);
/// Buses on which the card is looked for.
const BUSES: u16 = 8;

static STORAGE: Once<Storage<'static>> = Once::new(Storage::new());

/// Where the handler finds the card's registers.
static REGISTERS: AtomicU64 = AtomicU64::new(0);
/// Interrupts that have come.
static INTERRUPTS: AtomicU64 = AtomicU64::new(0);

fn main(mut cell: Cell) -> ! {
    let plan = Plan::read(cell.arguments());
    let mut ports = Ports::take();
    let (function, model) = find(&ports, plan.function);
    let registers = memory(&mut ports, function, 0);
    assert!(
        registers.1 >= offset::END,
        "the card has {:#x} bytes of registers",
        registers.1
    );
    REGISTERS.store(registers.0.number(), Ordering::Relaxed);
    pci::set_command(
        &mut ports,
        function,
        Command::MEMORY | Command::BUS_MASTER,
        Command::empty(),
    );
    // Before there are any.
    let figures = Figures::new();
    set_up_interrupts(&cell, &mut ports, function, plan.mode);

    let dma = cell.take_dma(MEMORY_SIZE);
    let registers = Mmio::at(registers.0, offset::END);
    let card = Controller::start(registers, dma, model, plan.mode.interrupts())
        .unwrap_or_else(|problem| panic!("{problem}"));
    let hardware = card.address();
    let link = if card.link_is_up() { "up" } else { "down" };
    let [a, b, c, d, e, f] = hardware;
    println!(
        "net: {model:?} at {function}, {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}, {}, {}, link {link}",
        plan.address,
        plan.mode.name()
    );
    let place = Place {
        hardware,
        address: plan.address,
        prefix: plan.prefix,
        seed: read_tsc(),
    };
    let server = Server::new(card, place, STORAGE.take());
    println!("net: ready");
    run(&mut cell, server, figures, plan.mode)
}

fn run(cell: &mut Cell, mut server: Server<'static, Card>, mut figures: Figures, mode: Mode) -> ! {
    let clock = Clock {
        start: read_tsc(),
        frequency: cell.tsc(),
    };
    loop {
        let seen = INTERRUPTS.load(Ordering::Acquire);
        while server.poll(clock.now(), &mut |card| figures.take(card)) {
            cell.poll();
        }
        cell.poll();
        if mode == Mode::Poll {
            core::hint::spin_loop();
            continue;
        }
        // What came since the last look interrupts now, if it has not yet.
        server.card().permit();
        while INTERRUPTS.load(Ordering::Acquire) == seen {
            cell.poll();
            core::hint::spin_loop();
        }
    }
}

/// The card: the one that was named, or the first one.
fn find(ports: &Ports, wanted: Option<Function>) -> (Function, Model) {
    let found = match wanted {
        Some(function) => pci::id(ports, function).map(|id| (function, id)),
        None => pci::functions(ports, 0..BUSES).find(|(_, id)| Model::of(*id).is_some()),
    };
    let Some((function, id)) = found else {
        panic!("the cell has no network card: its configuration needs one in [[devices]]");
    };
    match Model::of(id) {
        Some(model) => (function, model),
        None => panic!(
            "{function} is {:04x}:{:04x}, which is no network card that this cell knows",
            id.vendor, id.device
        ),
    }
}

/// Where the memory of a base address register is, and its size.
fn memory(ports: &mut Ports, function: Function, bar: u16) -> (GuestAddress, u32) {
    match pci::bar(ports, function, bar) {
        Some(Bar::Memory { address, size, .. }) => (
            GuestAddress::new(address),
            u32::try_from(size).unwrap_or(u32::MAX),
        ),
        other => panic!("register {bar} of {function} is {other:?}, not memory"),
    }
}

fn on_interrupt(_: Interrupt) {
    let base = GuestAddress::new(REGISTERS.load(Ordering::Relaxed));
    acknowledge(&Mmio::at(base, offset::END));
    INTERRUPTS.fetch_add(1, Ordering::Release);
}

/// A message of the table is its own answer.
fn on_message(_: Interrupt) {
    INTERRUPTS.fetch_add(1, Ordering::Release);
}

fn set_up_interrupts(cell: &Cell, ports: &mut Ports, function: Function, mode: Mode) {
    let own = apic::id();
    let message = || {
        Message::to(own, VECTOR)
            .unwrap_or_else(|| panic!("no message leads to the APIC id {own:#x}"))
    };
    let missing = |what| panic!("{function} has no {what}");
    set_handler(VECTOR, on_interrupt);
    match mode {
        Mode::Poll => pci::set_command(
            ports,
            function,
            Command::NO_INTERRUPT_LINE,
            Command::empty(),
        ),
        Mode::Msi => {
            if pci::enable_msi(ports, function, message()).is_err() {
                missing("MSI");
            }
        }
        Mode::MsiX => {
            set_handler(VECTOR, on_message);
            let Ok(table) = MsiX::find(ports, function) else {
                missing("MSI-X")
            };
            let (base, size) = memory(ports, function, table.bar);
            table.set(&mut Mmio::at(base, size), 0, message());
            table.enable(ports, function);
        }
        Mode::Line => {
            let line = pci::interrupt_line(ports, function).into();
            let pin = cell.arguments().number("line", line);
            let pin = u8::try_from(pin).unwrap_or(u8::MAX);
            assert!(pin < 120, "{pin} is no pin of an IOAPIC");
            set_handler(LINE_VECTOR, on_interrupt);
            let entry = io_apic::entry(LINE_VECTOR.number(), own) | LEVEL;
            io_apic::set_entry(pin, entry);
            assert!(
                io_apic::entry_of(pin) & io_apic::MASKED == 0,
                "line {pin} is not the cell's: its configuration needs it in interrupts"
            );
            pci::set_command(
                ports,
                function,
                Command::empty(),
                Command::NO_INTERRUPT_LINE,
            );
        }
    }
}

/// Time since the start.
struct Clock {
    start: u64,
    frequency: Frequency,
}

impl Clock {
    fn now(&self) -> Instant {
        let cycles = read_tsc().wrapping_sub(self.start);
        let milliseconds = cycles / u64::from(self.frequency.khz());
        Instant::from_millis(milliseconds as i64)
    }
}

/// Takes the figures that somebody asks for.
struct Figures {
    counter: Option<ExitCounter>,
    exits: u64,
    /// VM exits of an end of interrupt, as it was found.
    end_of_interrupt: u64,
}

impl Figures {
    fn new() -> Self {
        let mut counter = ExitCounter::new();
        // With nothing in service it ends nothing.
        apic::end_of_interrupt();
        let passed = counter.as_mut().and_then(ExitCounter::passed);
        Self {
            counter,
            exits: 0,
            end_of_interrupt: passed.unwrap_or(0).into(),
        }
    }

    fn take<R: Registers>(&mut self, card: &mut Controller<R, DmaMemory>) -> NetworkStatistics {
        // An interrupt between the two would be in one of them only.
        interrupts::disable();
        let interrupts = INTERRUPTS.load(Ordering::Acquire);
        let passed = self.counter.as_mut().and_then(ExitCounter::passed);
        interrupts::enable();
        self.exits += u64::from(passed.unwrap_or(0));
        let card = card.statistics();
        NetworkStatistics {
            signature: SIGNATURE,
            received: card.received,
            bad: card.bad,
            sent: card.sent,
            refused: card.refused,
            interrupts,
            exits: passed.map_or(NOT_COUNTED, |_| self.exits),
            end_of_interrupt_exits: self.end_of_interrupt,
        }
    }
}
