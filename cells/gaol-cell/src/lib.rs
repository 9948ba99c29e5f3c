//! The runtime of bare-metal cells in Rust.
//!
//! A cell is a crate with a function that gets a `Cell` and never returns:
//!
//! ```ignore
//! #![no_std]
//! #![no_main]
//! use gaol_cell::{Cell, println};
//!
//! gaol_cell::entry!(main);
//!
//! fn main(mut cell: Cell) -> ! {
//!     println!("one of {} CPUs", cell.cpus());
//!     cell.serve()
//! }
//! ```
//!
//! What happens before: every CPU of the cell starts in real mode, as after a reset (`start`); the first one clears the
//! memory that starts as zero, sets up exceptions and the local APIC, and runs the cell, the others wait
//! (`cpus`). The modules [`arguments`], [`frequency`], [`schedule`], [`shared`], [`communication`], [`registers`], [`pci`],
//! [`device`], [`dma`] and [`once`] are plain logic, which also builds, and is tested, on the host; the rest is hardware and exists on the target
//! `x86_64-unknown-none` only.
//!
//! Where things are in guest-physical memory, which is mapped one to one up to 4 GiB:
//!
//! | address | what |
//! |---|---|
//! | 0 | start code |
//! | [`COMMAND_LINE`] | command line, ends with a zero byte |
//! | 0x2000 | code, data and stacks, up to 640 KiB |
//! | [`COMMUNICATION_REGION`] | communication region |
//! | [`WINDOWS`] and up | shared memory ([`shared::Window`]), memory for devices ([`dma::DmaMemory`]), their registers |
//!
//! Invariant: nothing of Rust's lives at or above [`COMMUNICATION_REGION`]; what is there is accessed with volatile
//! reads and writes only, because others write to it.
#![cfg_attr(not(test), no_std)]

pub mod arguments;
pub mod communication;
pub mod device;
pub mod dma;
pub mod frequency;
pub mod once;
pub mod pci;
pub mod registers;
pub mod schedule;
pub mod shared;

#[cfg(target_os = "none")]
mod hardware;
#[cfg(target_os = "none")]
pub use hardware::*;

use shared::GuestAddress;

/// Where the command line is.
pub const COMMAND_LINE: GuestAddress = GuestAddress::new(0x1000);
/// Bytes of the command line at the most, the final zero byte included.
pub const COMMAND_LINE_SIZE: usize = 0x1000;
/// Where the hypervisor puts the communication region of a cell that runs on this runtime.
pub const COMMUNICATION_REGION: GuestAddress = GuestAddress::new(0x10_0000);
/// The first address at which a cell may have shared memory.
pub const WINDOWS: GuestAddress = GuestAddress::new(0x20_0000);
/// The end of the memory that is mapped.
pub const MAPPED_END: GuestAddress = GuestAddress::new(0x1_0000_0000);

/// Names the function that the cell consists of: `fn(Cell) -> !`.
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        /// What the runtime calls when the first CPU is ready.
        #[allow(unsafe_code)]
        #[unsafe(no_mangle)]
        fn gaol_cell_main(cell: $crate::Cell) -> ! {
            let main: fn($crate::Cell) -> ! = $main;
            main(cell)
        }
    };
}
