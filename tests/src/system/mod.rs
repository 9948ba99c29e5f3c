//! The system tests: what each group of them shows, and what they share.
//!
//! A check leaves the machine as it found it when it passes: the module loaded, the hypervisor not enabled, no cell.

use crate::machine::Machine;
use crate::runner::Group;

mod machine;

/// All groups, the longest first, so that two machines at a time end at about the same time.
pub const GROUPS: &[Group] = &[machine::GROUP];

/// What a check works with.
pub struct Context {
    /// The machine, with everything that was built in /root.
    pub machine: Machine,
}
