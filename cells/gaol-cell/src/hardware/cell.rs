//! The cell as its `main` sees it.
//!
//! Invariant: there is one [`Cell`] value, on the first CPU, and it exists only after exceptions, console, local APIC
//! and communication region work.

use core::panic::PanicInfo;
use core::slice;
use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;

use gaol_abi::communication::{
    CellState, CommunicationRegion, DMA_OFFSET, DmaHeader, DmaRange, HEARTBEAT_OFFSET, Message,
};
use gaol_abi::config::MAX_MEMORY_REGIONS;

use super::instructions::{halt_forever, write_msr};
use super::ticker::{Ticker, Wait};
use super::{apic, console, hypercall, interrupts, start};
use crate::arguments::Arguments;
use crate::communication::{Communication, Shutdown};
use crate::dma::{DmaMemory, Pool};
use crate::field;
use crate::frequency::Frequency;
use crate::registers::{MTRR_ENABLED_WRITE_BACK, Msr};
use crate::shared::Window;
use crate::{COMMAND_LINE, COMMAND_LINE_SIZE, COMMUNICATION_REGION, println};

unsafe extern "Rust" {
    /// What `entry!` defines in the cell's own crate.
    fn gaol_cell_main(cell: Cell) -> !;
}

/// The cell: what the hypervisor and the command line tell it, and its answers to the root.
#[derive(Debug)]
pub struct Cell {
    communication: Communication,
    heartbeat: Window<u64>,
    arguments: Arguments<'static>,
    tsc: Frequency,
    apic_timer: Frequency,
    dma: Pool,
}

impl Cell {
    /// The words of the command line.
    pub fn arguments(&self) -> Arguments<'static> {
        self.arguments
    }

    /// Number of the cell's CPUs.
    pub fn cpus(&self) -> u16 {
        self.communication.cpus()
    }

    /// Frequency of the time stamp counter.
    pub fn tsc(&self) -> Frequency {
        self.tsc
    }

    /// Frequency of the APIC timer before its divider.
    pub fn apic_timer(&self) -> Frequency {
        self.apic_timer
    }

    /// Starts the cell's periodic timer.
    ///
    /// # Panics
    /// When it has been started before, or the period is zero or beyond what the timer can count.
    pub fn start_ticker(&self, period: Duration, wait: Wait) -> Ticker {
        Ticker::start(self, period, wait, apic::has_tsc_deadline())
    }

    /// Starts the cell's periodic timer without TSC-deadline mode, even where the CPU has it.
    ///
    /// # Panics
    /// See [`Cell::start_ticker`].
    pub fn start_counting_ticker(&self, period: Duration, wait: Wait) -> Ticker {
        Ticker::start(self, period, wait, false)
    }

    /// Takes memory for a device, contiguous for the cell and the device, and page-aligned for both.
    ///
    /// # Panics
    /// When the cell has none of that size any more: its configuration needs a region with `dma = true` at or above
    /// [`WINDOWS`](crate::WINDOWS), and a function that may be bus master.
    pub fn take_dma(&mut self, size: usize) -> DmaMemory {
        match self.dma.take(size) {
            Some(piece) => piece.into(),
            None => panic!(
                "the cell has no {size:#x} bytes for devices: its configuration needs memory with dma = true"
            ),
        }
    }

    /// Tells the root what state the cell is in.
    pub fn set_state(&mut self, state: CellState) {
        self.communication.set_state(state);
    }

    /// Tells the cell's watchdog, if it has one, that the cell goes on. It is a store to memory: no VM exit.
    /// [`Cell::poll`] does it, too; a cell that polls for a part of its work only calls this for the rest.
    pub fn heartbeat(&mut self) {
        self.heartbeat.count();
    }

    /// Answers the root, if it asked something, and tells the watchdog that the cell goes on. A request to shut down is
    /// approved, and then this does not return. To be called every now and then; it causes no VM exit.
    pub fn poll(&mut self) {
        self.heartbeat();
        if self.communication.poll_message() == Some(Message::ShutdownRequest) {
            interrupts::disable();
            apic::stop_timer();
            // Before the answer: once the root has it, this CPU may be taken away at any instruction.
            start::prepare_restart();
        }
        if self.communication.answer(Shutdown::Approve) == Some(Message::ShutdownRequest) {
            halt_forever();
        }
    }

    /// Answers the root as [`Cell::poll`] does, but denies to be shut down. Returns whether it was asked to.
    pub fn poll_and_deny(&mut self) -> bool {
        self.heartbeat();
        self.communication.answer(Shutdown::Deny) == Some(Message::ShutdownRequest)
    }

    /// Answers the root for ever.
    pub fn serve(&mut self) -> ! {
        loop {
            self.poll();
            core::hint::spin_loop();
        }
    }
}

fn communication_region() -> Window<CommunicationRegion> {
    let region = COMMUNICATION_REGION.number() as *mut CommunicationRegion;
    // SAFETY: The linker script keeps Rust's memory below it, windows begin above it, and the hypervisor provides it.
    unsafe { Window::from_pointer(region) }
}

fn heartbeat_word() -> Window<u64> {
    let word = COMMUNICATION_REGION.number() as *mut u8;
    // SAFETY: As in communication_region; the word is aligned and lies in the same page.
    unsafe { Window::from_pointer(word.add(HEARTBEAT_OFFSET).cast()) }
}

/// What the communication region says about memory for devices.
fn dma_pool() -> Pool {
    let page = COMMUNICATION_REGION.number() as *mut u8;
    // SAFETY: As in communication_region; the header is aligned, and with its ranges lies in the same page.
    let header: Window<DmaHeader> = unsafe { Window::from_pointer(page.add(DMA_OFFSET).cast()) };
    // SAFETY: As before.
    let ranges: Window<[DmaRange; MAX_MEMORY_REGIONS]> =
        unsafe { Window::from_pointer(page.add(DMA_OFFSET + size_of::<DmaHeader>()).cast()) };
    let count = header.read(field!(DmaHeader, count)) as usize;
    Pool::new(ranges.snapshot().into_iter().take(count))
}

/// Where the start code leaves the first CPU of the cell.
pub(super) extern "C" fn first_cpu() -> ! {
    interrupts::fill_table();
    interrupts::load_table();
    hypercall::detect();
    let Ok(communication) = Communication::new(communication_region()) else {
        halt_forever();
    };
    console::permit(communication.console_permitted());
    // After a reset all memory is uncached until MTRRs are enabled.
    // SAFETY: The memory type changes speed, not contents; the caches hold nothing yet.
    unsafe { write_msr(Msr::MtrrDefaultType, MTRR_ENABLED_WRITE_BACK) };
    apic::enable();
    let tsc = communication
        .tsc()
        .expect("the communication region does not say the frequency of the time stamp counter");
    let apic_timer = communication
        .apic_timer()
        .or_else(|| apic::measure_timer(tsc))
        .expect("the APIC timer does not count");
    // SAFETY: The linker script keeps the page free for the command line, which is there before the cell starts and does
    // not change any more.
    let command_line =
        unsafe { slice::from_raw_parts(COMMAND_LINE.number() as *const u8, COMMAND_LINE_SIZE) };
    let cell = Cell {
        communication,
        heartbeat: heartbeat_word(),
        arguments: Arguments::from_bytes(command_line),
        tsc,
        apic_timer,
        dma: dma_pool(),
    };
    interrupts::enable();
    // SAFETY: `entry!` defines it with this type.
    unsafe { gaol_cell_main(cell) }
}

/// Prints what happened, tells the root that the cell has failed, and stops this CPU.
#[panic_handler]
fn panic(information: &PanicInfo<'_>) -> ! {
    static PANICKING: AtomicBool = AtomicBool::new(false);
    interrupts::disable();
    if !PANICKING.swap(true, Ordering::Relaxed) {
        println!("cell failed: {}", information.message());
        if let Some(location) = information.location() {
            println!("  in {}:{}", location.file(), location.line());
        }
        if let Ok(mut communication) = Communication::new(communication_region()) {
            communication.set_state(CellState::Failed);
        }
    }
    halt_forever()
}
