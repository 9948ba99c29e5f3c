//! IOMMUs: what keeps devices to the memory and the interrupts of their owner.
//!
//! [`service`] is what the rest of the hypervisor asks for; [`vtd`] is the logic of Intel's, host-tested.
#![forbid(unsafe_code)]

pub mod service;
pub mod vtd;
