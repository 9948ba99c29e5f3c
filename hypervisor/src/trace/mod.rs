//! What the hypervisor tells: the console ring and UART, the trace, and the pages that the root reads.

pub mod console;
pub mod events;
pub mod public;
