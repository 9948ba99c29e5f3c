//! What the devices of the cell `edu-dma` attack, and what must become of it: data that the cell and the tests share.
#![no_std]
#![forbid(unsafe_code)]

pub mod attack;
pub mod attacks;
pub mod outcome;
