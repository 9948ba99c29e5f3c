//! What the cell `net` does with frames, on whatever network card.
//!
//! Invariant: all memory is fixed at the start; what comes from the wire is `smoltcp`'s to judge, which answers ARP and ICMP
//! echo requests itself. A frame is copied out of the device's memory before anybody looks at it.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod adapter;
pub mod plan;
pub mod server;
