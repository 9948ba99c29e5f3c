//! The configuration of Gaol: its binary form, the ledger of who owns what, and (with the feature `std`) the TOML
//! files that people write, their compiler and its explanations.
//!
//! The lower layer ([`binary`], [`ledger`]) needs no heap and no operating system: the hypervisor judges what it is
//! given with the very code that judged it in the command line tool before.
//!
//! Invariant: no input makes the lower layer panic, and what it accepts leaves every page, CPU and port with one owner.
#![cfg_attr(not(any(feature = "std", test)), no_std)]
#![forbid(unsafe_code)]

pub mod address;
pub mod binary;
#[cfg(feature = "std")]
pub mod check;
#[cfg(feature = "std")]
pub mod compile;
pub mod cpu_set;
#[cfg(feature = "std")]
pub mod create;
#[cfg(feature = "std")]
pub mod encode;
#[cfg(feature = "std")]
pub mod explain;
#[cfg(feature = "std")]
pub mod iommu;
#[cfg(feature = "std")]
pub mod jailhouse;
#[cfg(feature = "std")]
pub mod json_schema;
pub mod ledger;
pub mod msr_policy;
#[cfg(feature = "std")]
pub mod pci;
#[cfg(feature = "std")]
pub mod plan;
#[cfg(feature = "std")]
pub mod problem;
#[cfg(feature = "std")]
pub mod quantity;
#[cfg(feature = "std")]
mod region_fault;
#[cfg(feature = "std")]
pub mod schema;
#[cfg(feature = "std")]
pub mod schema_system;
#[cfg(feature = "std")]
mod toml_problem;
#[cfg(all(test, feature = "std"))]
mod transcript;

pub use address::{GuestPhysical, HostPhysical, Range};
pub use binary::{CellView, Refusal, SystemView};
#[cfg(feature = "std")]
pub use compile::{Cell, Configuration, System};
pub use cpu_set::CpuSet;
pub use ledger::{CellId, Ledger, Machine};
#[cfg(feature = "std")]
pub use problem::Problem;

#[cfg(all(test, feature = "std"))]
mod shipped_tests;
