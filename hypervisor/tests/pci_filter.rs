//! What a cell can do to its PCI functions, on a model of the hardware: nothing that concerns others.
#![allow(missing_docs)]

#[path = "pci/filter.rs"]
mod filter;
#[path = "pci/harness.rs"]
mod harness;
#[path = "pci/model.rs"]
mod model;
