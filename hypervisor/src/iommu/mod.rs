//! IOMMUs: what keeps devices to the memory and the interrupts of their owner.
//!
//! Today there is the logic of Intel's only, and no code yet that programs one: no image links it.
#![forbid(unsafe_code)]

pub mod vtd;
