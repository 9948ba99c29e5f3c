//! AMD SVM: definitions ([`control_block`], [`maps`]), logic ([`capabilities`], [`codes`], [`registers`]) and hardware (the rest).

pub mod capabilities;
pub mod codes;
pub mod control_block;
pub mod entry;
pub mod exit;
pub mod guest;
pub mod instructions;
pub mod maps;
pub mod operation;
pub mod registers;

use self::capabilities::Features;
use crate::memory::address::HostPhysical;

/// One CPU's use of SVM.
#[repr(C)]
#[derive(Debug)]
pub struct Svm {
    /// The control block (VMCB). Known to assembly.
    control_block: HostPhysical,
    /// Where VMRUN saves the host.
    host: HostPhysical,
    /// VM_CR as it was before.
    vm_cr: u64,
    is_in_operation: bool,
    features: Features,
}
