//! What the rest of the hypervisor asks of the IOMMUs: whose functions reach which memory, and which interrupts they may
//! raise.
//!
//! A function is the root's, with all the memory that is the root's; or *claimed* by a cell, and then it reaches nothing;
//! or *attached* to its cell, and then it reaches the cell's memory. Everything but [`remap`] and [`isolation`] is called
//! under the management lock. Where no IOMMU is in front of a function, nothing is done and nothing fails: whoever lets a
//! function become bus master asks [`isolation`] first.
//!
//! Invariant: what a function must not reach any more is forgotten by its IOMMU when the call returns.

use crate::cell::Cell;
use crate::cpu::window::Windows;
use crate::device::pci::FunctionId;
use crate::device::pci::message::Message;
use crate::error::Failure;
use crate::system::Machinery;

/// What the IOMMUs do for a function.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Isolation {
    /// It reaches the memory of its owner only.
    pub dma: bool,
    /// It raises the interrupts only that its owner may have.
    pub interrupts: bool,
}

impl Isolation {
    /// The function may become bus master in a cell without being trusted.
    #[must_use]
    pub const fn is_complete(self) -> bool {
        self.dma && self.interrupts
    }
}

/// What the IOMMUs do for the function.
#[must_use]
pub fn isolation(_function: FunctionId) -> Isolation {
    Isolation::default()
}

/// Gives the function to a cell that is being created, with room for `vectors` interrupts: it reaches nothing from now on.
///
/// # Errors
/// When there is no frame or no room; nothing has changed then.
pub fn claim(
    _machinery: &mut Machinery,
    _windows: Windows,
    _cell: u32,
    _function: FunctionId,
    _vectors: u16,
) -> Result<(), Failure> {
    Ok(())
}

/// Makes the domain of a cell that has functions: its memory that is for DMA. No function is attached to it yet.
///
/// # Errors
/// When there are no frames; nothing has changed then.
pub fn prepare_domain(
    _machinery: &mut Machinery,
    _number: u32,
    _cell: &Cell,
) -> Result<(), Failure> {
    Ok(())
}

/// The cell starts: its functions reach its memory.
///
/// # Errors
/// When an IOMMU does not answer.
pub fn attach(_windows: Windows, _cell: u32) -> Result<(), Failure> {
    Ok(())
}

/// The cell has stopped: its functions reach nothing, and have no interrupts.
///
/// # Errors
/// When an IOMMU does not answer: then its memory must not change hands.
pub fn detach(_windows: Windows, _cell: u32) -> Result<(), Failure> {
    Ok(())
}

/// Gives all functions of a cell back to the root, and its domain's frames to the pool, as retired ones.
///
/// # Errors
/// When an IOMMU does not answer: the frames stay taken then.
pub fn release(_machinery: &mut Machinery, _windows: Windows, _cell: u32) -> Result<(), Failure> {
    Ok(())
}

/// What the function has to be told to send so that two to the `order` messages arrive as `message` says, which was
/// checked against the cell's CPUs; `None`: they are blocked. `number` is the first of these interrupts of the function,
/// which counts from 0: of an MSI-X table the index of its entry, else 0.
#[must_use]
pub fn remap(
    _windows: Windows,
    _function: FunctionId,
    _number: u16,
    _order: u8,
    message: Option<Message>,
) -> Option<Message> {
    message
}
