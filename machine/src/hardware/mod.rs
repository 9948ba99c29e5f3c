//! What a machine has and lacks for Gaol, a row for each thing.
//!
//! [`Facts::read`] reads, [`check`] judges; the judgement is a function of the facts alone. Invariants: whatever the facts
//! are, there is an answer, and what could not be read is `unknown` with the name of what is to blame; a row is `missing`
//! only when Gaol cannot run without the thing.

mod cache;
mod control_bits;
mod facts;
mod interrupts;
mod iommu;
mod latency;
mod linux;
mod linux_facts;
mod memory;
mod parse;
mod processor;
pub mod requirements;
mod row;
mod svm;
mod table;
mod time;
mod vmx;

pub use facts::{Cpu, Facts, Reading, Smi, SmiCount};
pub use iommu::{Iommu, Remapping, Unit};
pub use linux_facts::{IdleState, Linux, Loaded};
pub use row::{Group, Row, Status, Verdict, verdict};
pub use table::{count, table};

use facts::Extension;

/// Judges the machine.
#[must_use]
pub fn check(facts: &Facts) -> Vec<Row> {
    let mut rows = Vec::new();
    processor::count(facts, &mut rows);
    processor::nesting(facts, &mut rows);
    linux::gaol(facts, &mut rows);
    match facts.extension() {
        _ if facts.linux.gaol_is_enabled() => {}
        Ok(Some(Extension::Vmx)) => vmx::rows(facts, &mut rows),
        Ok(Some(Extension::Svm)) => svm::rows(facts, &mut rows),
        Ok(None) => processor::foreign(facts, &mut rows),
        Err(problem) => processor::unreadable(&problem, &mut rows),
    }
    processor::rows(facts, &mut rows);
    control_bits::rows(facts, &mut rows);
    interrupts::rows(facts, &mut rows);
    iommu::rows(facts, &mut rows);
    cache::rows(facts, &mut rows);
    time::rows(facts, &mut rows);
    linux::rows(facts, &mut rows);
    memory::rows(facts, &mut rows);
    latency::rows(facts, &mut rows);
    rows
}

#[cfg(test)]
mod tests;
