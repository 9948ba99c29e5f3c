//! Jailhouse's binary configurations, read.
//!
//! [`parse()`] reads system and cell configurations of revisions 13 and 14 in place.
//!
//! Invariant: no file makes anything here panic.

pub mod damage;
pub mod layout;
pub mod parse;

#[cfg(test)]
mod build;
#[cfg(test)]
mod parse_tests;

pub use damage::{Damage, Fault};
pub use parse::{Blob, CellBlob, Revision, SystemBlob, parse};
