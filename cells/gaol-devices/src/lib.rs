//! Drivers for the devices of bare-metal cells.
//!
//! Invariant: a device is no friend. Whatever it writes – a status, a length, an index – is an allegation: it is checked
//! before it is used, it never makes a loop longer than its ring, and never makes a driver touch memory that is not the
//! device's. The cell's IOMMU keeps it out of all other memory.
#![cfg_attr(not(any(test, feature = "models")), no_std)]
#![forbid(unsafe_code)]

pub mod e1000;
pub mod edu;
