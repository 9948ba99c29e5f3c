//! Memory: what addresses are, which frames are free, what page tables say, and which memory type an address has.
#![forbid(unsafe_code)]

pub mod address;
pub mod frames;
pub mod memory_types;
pub mod page_table;
