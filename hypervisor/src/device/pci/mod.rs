//! PCI functions: which guest sees which, and what a cell may do to one of its own.
//!
//! A cell reaches the configuration space of its functions through the hypervisor only, and everything that it writes
//! there goes through [`function::Function`]. Invariants, whatever the cell writes, by whichever mechanism and in
//! whatever width: the function's base address registers stay as they were found; it does not become bus master
//! unless an IOMMU keeps it in the cell's memory or the configuration accepts that none does ([`function::Mastering`]); what it is told to send as an interrupt
//! message names one of the cell's own CPUs; no register outside the write masks changes, and none of another function.
//!
//! A function that belongs to nobody's cell is the root's. For everyone else it is absent: reads find ones.

pub mod assigned;
pub mod capabilities;
pub mod express;
pub mod function;
pub mod handover;
pub mod hardware;
pub mod message;
pub mod msi;
pub mod msix;
pub mod route;
pub mod space;

pub use function::Function;
pub use space::{FunctionId, Hardware};
