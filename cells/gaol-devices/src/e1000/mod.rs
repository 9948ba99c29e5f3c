//! Intel's gigabit controllers 82540EM and 82574L.

pub mod driver;
#[cfg(any(test, feature = "models"))]
pub mod model;
pub mod registers;
mod ring;

pub use driver::{Controller, Interrupts, Model, Problem, Statistics};
pub use ring::{BUFFER_SIZE, MEMORY_SIZE, RING_LENGTH};

#[cfg(test)]
mod tests;
