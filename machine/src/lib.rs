//! What a machine has: processors, memory, interrupt controllers, PCI functions, IOMMUs.
//!
//! Everything is read through one source: the running machine, a directory, or a tar file that was collected on another
//! one. Invariant: whatever a source holds, reading it ends with facts or with an error that names the table or file.
#![forbid(unsafe_code)]

pub mod problem;
pub mod source;

pub use problem::{Kind, Problem};
pub use source::Source;
