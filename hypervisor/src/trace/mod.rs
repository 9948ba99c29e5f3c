//! What the hypervisor tells: the console ring and UART, and the pages that the root reads.

pub mod console;
pub mod public;
