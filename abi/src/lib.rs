//! Every layout and number that two parts of Gaol share.
//!
//! The hypervisor, the Linux module, the command line tool and the cells are built apart and meet only here: the image
//! header, the handover from Linux, the binary configuration, hypercalls, the communication region, the pages that the
//! root cell may read, and the module's ioctls. The C header of the module is generated from this crate
//! ([`c_header::generate`]), so no number is written down twice.
//!
//! Invariant: every structure is `repr(C)`, little endian, free of padding, and bears a revision or belongs to one that
//! does. Whoever changes a layout raises [`ABI_REVISION`].
#![no_std]
#![forbid(unsafe_code)]

#[cfg(feature = "c-header")]
extern crate alloc;

#[cfg(feature = "c-header")]
pub mod c_header;
pub mod checksum;
pub mod communication;
pub mod config;
pub mod driver;
pub mod exit;
pub mod handover;
pub mod hypercall;
pub mod image;
pub mod latency;
pub mod network;
pub mod outcome;
pub mod public;

/// Revision of everything in this crate that the management side uses: image, handover, configuration, ioctls, public
/// pages. Parts of different revisions refuse to work together. (The guest side has Jailhouse's own revision:
/// [`communication::REVISION`].)
pub const ABI_REVISION: u32 = 6;

/// Bytes of a page, and the unit of every offset that this crate calls page-aligned.
pub const PAGE_SIZE: u64 = 4096;

/// Length of a name of a cell or a memory region, padded with zero bytes.
pub const NAME_LENGTH: usize = 32;

/// The most cells that exist at one time, the root cell included.
pub const MAX_CELLS: usize = 16;

/// The most logical CPUs of a machine.
pub const MAX_CPUS: usize = 256;
