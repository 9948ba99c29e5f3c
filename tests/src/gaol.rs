//! The command `gaol` inside a machine, and what it says.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::console::Output;
use crate::machine::{COMMAND_TIMEOUT, Machine};

/// What a latency cell has measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Histogram {
    /// Ticks to measure.
    pub ticks: u64,
    /// Ticks measured.
    pub ticks_done: u64,
    /// Ticks whose time had passed before the timer was set.
    pub missed: u64,
    /// Whether all are done.
    pub finished: bool,
    /// Shortest time from expiry to handler, in cycles.
    pub min_cycles: u64,
    /// Average.
    pub average_cycles: f64,
    /// Longest.
    pub max_cycles: u64,
    /// Cycles that a class spans.
    pub class_cycles: u64,
    /// Ticks that came later than the last class.
    pub overflow: u64,
    /// Ticks by class.
    pub counts: Vec<u64>,
}

/// A machine that has `gaol` in its PATH.
pub trait Gaol {
    /// Runs `gaol` with these arguments and `--json`; it must succeed.
    ///
    /// # Errors
    /// When it fails, or says something that is no JSON.
    fn gaol(&mut self, arguments: &str) -> Result<Value>;

    /// Runs `gaol` with these arguments; it must refuse with status 1 and a message that contains `reason`.
    ///
    /// # Errors
    /// When it does anything else.
    fn refused(&mut self, arguments: &str, reason: &str) -> Result<Output>;

    /// VM exits of a cell by reason, those that are 0 left out; the parts of others left out as well.
    ///
    /// # Errors
    /// When `gaol` fails.
    fn exits(&mut self, cell: &str) -> Result<BTreeMap<String, u64>>;

    /// How often `name` was counted, one of those that are a part of the exits.
    ///
    /// # Errors
    /// When `gaol` fails.
    fn part(&mut self, cell: &str, name: &str) -> Result<u64>;

    /// The longest times in cycles that a CPU of Linux was away since the hypervisor was enabled, by reason.
    ///
    /// # Errors
    /// When `gaol` fails.
    fn longest_pauses(&mut self) -> Result<BTreeMap<String, u64>>;

    /// What a latency cell has measured so far; `None` before it has begun.
    ///
    /// # Errors
    /// When `gaol` fails.
    fn histogram(&mut self, cell: &str) -> Result<Option<Histogram>>;

    /// Asserts that Linux has `cpus` CPUs online and has complained about nothing since the boot.
    ///
    /// # Errors
    /// With what it complains about.
    fn linux_is_well(&mut self, cpus: u32) -> Result<()>;
}

/// What Linux logs when something went wrong inside it.
const COMPLAINTS: &str = "BUG:|WARNING:|Oops|Call Trace|rcu:.*stall|soft lockup|hard LOCKUP|general protection|\
                          unchecked MSR|Unable to handle|NMI received for unknown reason";

impl Gaol for Machine {
    fn gaol(&mut self, arguments: &str) -> Result<Value> {
        gaol_for(self, arguments, COMMAND_TIMEOUT)
    }

    fn refused(&mut self, arguments: &str, reason: &str) -> Result<Output> {
        let output = self.run(&format!("gaol {arguments}"))?;
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
            "`gaol {arguments}` was refused, but not with `{reason}`: {}",
            output.stdout.trim()
        );
        Ok(output)
    }

    fn exits(&mut self, cell: &str) -> Result<BTreeMap<String, u64>> {
        let value = self.gaol(&format!("cell stats {cell}"))?;
        let total = value
            .get("exits")
            .and_then(Value::as_object)
            .with_context(|| format!("`gaol cell stats` says {value}"))?;
        Ok(total
            .iter()
            .filter_map(|(name, count)| Some((name.clone(), count.as_u64()?)))
            .filter(|(_, count)| *count > 0)
            .collect())
    }

    fn part(&mut self, cell: &str, name: &str) -> Result<u64> {
        let value = self.gaol(&format!("cell stats {cell}"))?;
        let parts = value
            .get("parts")
            .and_then(Value::as_object)
            .with_context(|| format!("`gaol cell stats` says {value}"))?;
        Ok(parts.get(name).and_then(Value::as_u64).unwrap_or(0))
    }

    fn longest_pauses(&mut self) -> Result<BTreeMap<String, u64>> {
        let value = self.gaol("cell stats root")?;
        let pauses = value
            .get("longest_pauses")
            .and_then(Value::as_object)
            .with_context(|| format!("`gaol cell stats` says {value}"))?;
        Ok(pauses
            .iter()
            .filter_map(|(name, cycles)| Some((name.clone(), cycles.as_u64()?)))
            .collect())
    }

    fn histogram(&mut self, cell: &str) -> Result<Option<Histogram>> {
        let output = self.run(&format!("gaol cell histogram {cell} --json"))?;
        if output.status == 1 && output.stdout.contains("no_results") {
            return Ok(None);
        }
        let value = json(&format!("cell histogram {cell}"), &output)?;
        let field = |name: &str| number(&value, name);
        Ok(Some(Histogram {
            ticks: field("ticks")?,
            ticks_done: field("ticks_done")?,
            missed: field("missed")?,
            finished: value
                .get("finished")
                .and_then(Value::as_bool)
                .context("`finished` is missing")?,
            min_cycles: field("min_cycles")?,
            average_cycles: value
                .get("avg_cycles")
                .and_then(Value::as_f64)
                .unwrap_or(0.0),
            max_cycles: field("max_cycles")?,
            class_cycles: field("class_cycles")?,
            overflow: field("overflow")?,
            counts: value
                .get("histogram")
                .and_then(Value::as_array)
                .context("`histogram` is missing")?
                .iter()
                .filter_map(Value::as_u64)
                .collect(),
        }))
    }

    fn linux_is_well(&mut self, cpus: u32) -> Result<()> {
        let online = self.check("nproc")?;
        ensure!(
            online.trim() == cpus.to_string(),
            "Linux has {} CPUs online, not {cpus}",
            online.trim()
        );
        let complaints = self.run(&format!("dmesg | grep -E '{COMPLAINTS}'"))?;
        ensure!(
            complaints.stdout.trim().is_empty(),
            "Linux complains: {}",
            complaints.stdout.trim()
        );
        Ok(())
    }
}

/// Runs `gaol` with these arguments and `--json` for at most `timeout`; it must succeed.
///
/// # Errors
/// When it fails, or says something that is no JSON.
pub fn gaol_for(machine: &mut Machine, arguments: &str, timeout: Duration) -> Result<Value> {
    let output = machine.run_for(&format!("gaol {arguments} --json"), timeout)?;
    json(arguments, &output)
}

/// What `gaol` with these arguments said on success.
fn json(arguments: &str, output: &Output) -> Result<Value> {
    ensure!(
        output.status == 0,
        "`gaol {arguments}` failed with status {}: {}",
        output.status,
        output.stdout.trim()
    );
    serde_json::from_str(output.stdout.trim())
        .with_context(|| format!("`gaol {arguments} --json` says {:?}", output.stdout))
}

/// A number of an object.
///
/// # Errors
/// When there is none of that name.
pub fn number(value: &Value, name: &str) -> Result<u64> {
    value
        .get(name)
        .and_then(Value::as_u64)
        .with_context(|| format!("the number `{name}` is missing in {value}"))
}
