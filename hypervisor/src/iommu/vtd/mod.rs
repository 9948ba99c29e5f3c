//! Intel's VT-d: the tables that an IOMMU walks for each DMA and each interrupt of a device.
//!
//! A device is named by its *source id*: bus, device and function. The root table leads from the bus to a context table,
//! that from device and function to a *domain*: an id, and second-level tables that translate what the device believes to
//! be physical addresses. An interrupt names an entry of the remapping table, which says which device may use it and which
//! CPU it goes to.
//!
//! [`definitions`] are the layouts of the specification; [`domain`], [`devices`] and [`interrupts`] build the tables.
//!
//! Invariants:
//! - A device that is attached nowhere reaches nothing: its entries are not present.
//! - An entry becomes present by one 64-bit store, when all that it leads to is complete, and goes by one.
//! - What the IOMMU must forget after a change is the change's result; frames that it may still walk are retired, and free
//!   only after that.
//!
//! Tables are written through the processor's caches: an IOMMU that does not look there ([`definitions::ExtendedCapability`],
//! `is_coherent`) needs the lines flushed, which is not done yet.
#![forbid(unsafe_code)]

pub mod definitions;
pub mod devices;
pub mod domain;
pub mod faults;
pub mod fleet;
pub mod hardware;
pub mod interrupts;
#[cfg(test)]
mod model_tests;
pub mod root_entries;
pub mod root_view;
#[cfg(test)]
mod tests;
pub mod unit;

use definitions::{DomainId, InvalidationDescriptor, SourceId};

/// What the IOMMU may know of a table that has changed, and must forget before the change counts.
#[must_use = "the IOMMU may go on with the old tables"]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Invalidation {
    /// Nothing.
    Nothing,
    /// The function's context entry, and the translations of the domain that it was in.
    Function {
        /// The function.
        source: SourceId,
        /// The domain.
        domain: DomainId,
    },
    /// The domain's translations.
    Domain(DomainId),
    /// One entry of the interrupt remapping table.
    Interrupt(u16),
}

impl Invalidation {
    /// The descriptors for the invalidation queue, in their order.
    #[must_use]
    pub fn descriptors(self) -> [Option<InvalidationDescriptor>; 2] {
        match self {
            Self::Nothing => [None, None],
            Self::Function { source, domain } => [
                Some(InvalidationDescriptor::context_of_function(source, domain)),
                Some(InvalidationDescriptor::translations_of_domain(domain)),
            ],
            Self::Domain(domain) => [
                Some(InvalidationDescriptor::translations_of_domain(domain)),
                None,
            ],
            Self::Interrupt(index) => [Some(InvalidationDescriptor::interrupt_entry(index)), None],
        }
    }

    /// Whether the IOMMU must be told.
    #[must_use]
    pub const fn is_needed(self) -> bool {
        !matches!(self, Self::Nothing)
    }

    /// States that the IOMMU does not use the tables yet, or any more.
    pub const fn ignore(self) {}
}
