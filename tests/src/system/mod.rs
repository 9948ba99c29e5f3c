//! The system tests: what each group of them shows, and what they share.
//!
//! A check leaves the machine as it found it when it passes: the module loaded, the hypervisor not enabled, no cell.

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::console::Output;
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

impl Context {
    /// Runs `gaol` with these arguments and `--json`; it must succeed.
    ///
    /// # Errors
    /// When it fails, or says something that is no JSON.
    pub fn gaol(&mut self, arguments: &str) -> Result<Value> {
        let output = self.machine.run(&format!("gaol {arguments} --json"))?;
        ensure!(
            output.status == 0,
            "`gaol {arguments}` failed with status {}: {}",
            output.status,
            output.stdout.trim()
        );
        serde_json::from_str(output.stdout.trim())
            .with_context(|| format!("`gaol {arguments} --json` says {:?}", output.stdout))
    }

    /// Runs `gaol` with these arguments; it must refuse with status 1 and a message that contains `reason`.
    ///
    /// # Errors
    /// When it does anything else.
    pub fn refused(&mut self, arguments: &str, reason: &str) -> Result<Output> {
        let output = self.machine.run(&format!("gaol {arguments}"))?;
        if output.status != 1 {
            bail!(
                "`gaol {arguments}` should be refused, but ended with status {}: {}",
                output.status,
                output.stdout.trim()
            );
        }
        ensure!(
            output
                .stdout
                .to_lowercase()
                .contains(&reason.to_lowercase()),
            "`gaol {arguments}` was refused, but not for `{reason}`: {}",
            output.stdout.trim()
        );
        Ok(output)
    }

    /// Asserts that Linux is well: it has `cpus` CPUs online and has complained about nothing since the last time.
    ///
    /// # Errors
    /// With what it complains about.
    pub fn linux_is_well(&mut self, cpus: u32) -> Result<()> {
        let online = self.machine.check("nproc")?;
        ensure!(
            online.trim() == cpus.to_string(),
            "Linux has {} CPUs online, not {cpus}",
            online.trim()
        );
        let complaints = self.machine.run(
            "dmesg | grep -E 'BUG:|WARNING:|Oops|Call Trace|rcu:.*stall|soft lockup|hard LOCKUP|general protection|unchecked MSR'",
        )?;
        ensure!(
            complaints.stdout.trim().is_empty(),
            "Linux complains: {}",
            complaints.stdout.trim()
        );
        Ok(())
    }
}
