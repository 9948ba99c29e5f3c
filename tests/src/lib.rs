//! Emulated machines that boot a stock Linux kernel, and the system tests that drive them.
//!
//! A [`machine::Machine`] is started from a [`machine::Spec`], talked to through its serial console, and ended by its
//! own handle; whatever happens, no emulator outlives the `Machine` that started it.

#![forbid(unsafe_code)]

pub mod artefacts;
pub mod bochs;
pub mod console;
pub mod disk;
pub mod gaol;
pub mod initrd;
pub mod kernel;
pub mod latency;
pub mod machine;
pub mod qemu;
pub mod runner;
#[cfg(test)]
mod specification;
pub mod system;
#[cfg(test)]
mod unsafe_budget;
