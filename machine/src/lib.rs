//! What a machine has: processors, memory, interrupt controllers, PCI functions, IOMMUs.
//!
//! Everything is read through one source: the running machine, a directory, or a tar file that was collected on another
//! one. Invariant: whatever a source holds, reading it ends with facts or with an error that names the table or file.
#![forbid(unsafe_code)]

pub mod acpi;
pub mod collect;
pub mod hardware;
pub mod iommu;
pub mod linux;
pub mod machine;
pub mod memory;
pub mod pci;
pub mod problem;
pub mod processors;
pub mod resources;
pub mod source;
pub mod span;
pub mod summary;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use machine::Machine;
pub use problem::{Kind, Problem};
pub use source::Source;
pub use span::Span;
