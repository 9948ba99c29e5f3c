//! The Gaol hypervisor.
//!
//! Principles, in this order: a cell never hurts another cell, the root or the hypervisor; a running real-time cell
//! causes no VM exits; the whole is small enough to read in a day; Linux needs no patch.
//!
//! Three layers, and a module belongs to one: *definitions* (registers, tables; no unsafe code), *logic* (tested on the
//! host; no unsafe code) and *hardware* (instructions, MSRs, memory that is not Rust's; each `unsafe` with its reason).
//! The library builds on the host for its tests; the image is the same library with an entry point.
#![cfg_attr(not(test), no_std)]
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

pub mod cell;
pub mod cpu;
pub mod device;
pub mod error;
pub mod guest;
pub mod hypercall;
pub mod image;
pub mod iommu;
pub mod launch;
pub mod memory;
pub mod processor;
pub mod region;
pub mod set_once;
pub mod system;
pub mod trace;
pub mod virt;
