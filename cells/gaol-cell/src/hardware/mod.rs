//! What touches hardware; only on the target `x86_64-unknown-none`.
//!
//! Invariant: code outside of this module needs no `unsafe` for what a well-behaved cell does.

pub mod apic;
mod cell;
pub mod configuration;
pub mod console;
pub mod cpus;
pub mod exceptions;
pub mod hypercall;
pub mod instructions;
pub mod interrupts;
pub mod io_apic;
pub mod mmio;
mod start;
pub mod ticker;

pub use cell::Cell;
