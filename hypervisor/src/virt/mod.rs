//! The virtualization extension: what the hypervisor asks of one ([`contract`]), and the two that there are.
//!
//! An image is built for one vendor, by the Cargo feature `vmx` or `svm`, so the exit path holds no dispatch on it:
//! [`Current`] and what follows from it are names for that vendor's types. On the host both are built, for their tests, and
//! VMX is the current one unless the feature `svm` says otherwise.
//!
//! Invariant: outside of this module no code knows which vendor it runs on.

pub mod contract;
pub mod entry;
pub mod exit;
pub mod state;
#[cfg(any(feature = "svm", not(target_os = "none")))]
pub mod svm;
#[cfg(any(not(feature = "svm"), not(target_os = "none")))]
pub mod vmx;

use self::contract::Virtualization;
use crate::guest::bitmaps;

#[cfg(all(feature = "vmx", feature = "svm", target_os = "none"))]
compile_error!("an image is for one vendor: either `vmx` or `svm`");

/// One CPU's use of the vendor's extension.
#[cfg(not(feature = "svm"))]
pub type Current = vmx::Vmx;

/// One CPU's use of the vendor's extension.
#[cfg(feature = "svm")]
pub type Current = svm::Svm;

/// What the current control block says of the guest.
pub type Guest = <Current as Virtualization>::Guest;
/// What a processor offers.
pub type Capabilities = <Current as Virtualization>::Capabilities;
/// Entries of nested page tables.
pub type NestedFormat = <Current as Virtualization>::NestedFormat;
/// The map of the MSR accesses that exit.
pub type MsrMap = bitmaps::MsrMap<<Current as Virtualization>::MsrLayout>;
/// The map of the port accesses that exit.
pub type PortMap = bitmaps::PortMap<<Current as Virtualization>::PortLayout>;
