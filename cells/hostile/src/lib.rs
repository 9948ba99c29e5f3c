//! What the hostile cell attempts: the table of violations, the generator of random ones, and the words in which the cell
//! tells what became of them. The cell and the system tests read the same.
//!
//! Invariant: everything here is plain data and logic; the cell's program (`main.rs`) alone carries an attempt out.
#![no_std]
#![forbid(unsafe_code)]

pub mod attempt;
pub mod outcome;
pub mod random;
pub mod violations;
