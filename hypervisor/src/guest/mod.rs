//! What guests do: how an exit is understood and answered.
//!
//! A guest's argument is an allegation: copied, checked, then used. The answer is a [`Verdict`]; nothing here can fail in
//! any other way.

pub mod bitmaps;
pub mod control_register;
pub mod cpuid;
pub mod decode;
pub mod execute;
pub mod fault;
pub mod interrupt;
pub mod io_apic;
pub mod memory;
pub mod mmio;
pub mod msr;
pub mod mtrr;
#[cfg(test)]
mod native;
mod opcodes;
pub mod pci;
pub mod port;
#[cfg(test)]
mod random;
pub mod reset;
pub mod root_failure;
pub mod store;
mod strings;
pub mod vectoring;
pub mod walk;
pub mod x2apic;

use self::vectoring::{Event, Exception};

/// The answer to an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Done; go on behind the instruction.
    Advance,
    /// Go on where the guest is.
    Resume,
    /// The guest gets an exception.
    Inject(Exception),
    /// The guest gets an event as if there had been no exit.
    Deliver(Event),
    /// The guest gets an exception, and its deed is kept on record.
    InjectRecorded {
        /// The exception.
        exception: Exception,
        /// Guest-physical address, port or MSR.
        address: u64,
    },
    /// The guest stepped out of line: a cell is stopped; of the root it is kept on record.
    Violation {
        /// Guest-physical address, port or MSR.
        address: u64,
    },
}
