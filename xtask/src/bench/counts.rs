//! What the counting module says: cycles of one operation, measured alone and in bulk.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde::Serialize;

/// The readings of one operation, in cycles.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Reading {
    /// How often it was done.
    pub rounds: u64,
    /// Shortest time of one, the time stamp counter's reads included.
    pub min: u64,
    /// Median.
    pub median: u64,
    /// Longest.
    pub max: u64,
    /// Average of all rounds in one loop, the loop included.
    pub bulk: f64,
}

/// Reads the module's lines, "name rounds min median max bulk".
///
/// # Errors
/// When a line is of another form.
pub fn parse(text: &str) -> Result<BTreeMap<String, Reading>> {
    text.lines()
        .filter(|line| !line.starts_with('#') && !line.trim().is_empty())
        .map(|line| reading(line).with_context(|| format!("the module says `{line}`")))
        .collect()
}

fn reading(line: &str) -> Result<(String, Reading)> {
    let (name, rest) = line.split_once(' ').context("there is no number")?;
    let numbers = rest
        .split_whitespace()
        .map(str::parse)
        .collect::<Result<Vec<u64>, _>>()?;
    let [rounds, min, median, max, bulk] = numbers[..] else {
        anyhow::bail!("there are {} numbers", numbers.len());
    };
    let reading = Reading {
        rounds,
        min,
        median,
        max,
        bulk: bulk as f64 / rounds as f64,
    };
    Ok((name.to_owned(), reading))
}

/// An operation with and without the hypervisor.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// Without; of what only a hypervisor answers, the same loop with a NOP in its place.
    pub native: Reading,
    /// With it.
    pub hypervisor: Reading,
    /// What the hypervisor adds: the difference of the averages.
    pub cost: f64,
}

/// What has a reading of its own without a hypervisor, and what stands in for the others.
fn native_name(name: &str) -> &str {
    match name {
        "vmcall" | "vmmcall" => "no_vmcall",
        _ => name,
    }
}

/// Rounded to tenths, without a negative zero.
fn tenths(value: f64) -> f64 {
    (value * 10.0).round() / 10.0 + 0.0
}

/// Puts the readings of both sides together.
pub fn compare(
    native: &BTreeMap<String, Reading>,
    hypervisor: &BTreeMap<String, Reading>,
) -> BTreeMap<String, Comparison> {
    hypervisor
        .iter()
        .filter(|(name, _)| !matches!(name.as_str(), "empty" | "no_vmcall"))
        .filter_map(|(name, reading)| {
            let native = *native.get(native_name(name))?;
            let comparison = Comparison {
                native,
                hypervisor: *reading,
                cost: tenths(reading.bulk - native.bulk),
            };
            Some((name.clone(), comparison))
        })
        .collect()
}

/// What a cell says of its own operations, "bench NAME mean M min N max X": the average without the one cycle that the
/// instruction itself takes.
pub fn of_cell(console: &str) -> BTreeMap<String, f64> {
    console
        .lines()
        .filter_map(|line| {
            let (_, rest) = line.split_once("bench ")?;
            let (name, rest) = rest.split_once(" mean ")?;
            let mean: f64 = rest.split_whitespace().next()?.parse().ok()?;
            Some((
                format!("cell_{}", name.replace('-', "_")),
                tenths(mean - 1.0),
            ))
        })
        .filter(|(name, _)| name != "cell_nothing")
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cells_lines_are_read() {
        let text = "x\nbench nothing mean 1.00 min 1.00 max 1.00\n[cell] bench x2apic-icr mean 181.50 min 180.00 max 182.00\n";
        assert_eq!(
            of_cell(text),
            BTreeMap::from([("cell_x2apic_icr".to_owned(), 180.5)])
        );
    }

    #[test]
    fn readings_are_compared() {
        let native = parse("# cpu 0\ncpuid 1000 5 5 10 7000\nno_vmcall 1000 5 5 5 5000\n").unwrap();
        let hypervisor =
            parse("cpuid 1000 80 80 85 85000\nvmcall 1000 1 1 1 105005\nempty 1000 0 0 0 1\n")
                .unwrap();
        let found = compare(&native, &hypervisor);
        assert_eq!(found["cpuid"].cost, 78.0);
        assert_eq!(found["vmcall"].cost, 100.0);
        assert_eq!(found.len(), 2);
    }

    #[test]
    fn a_damaged_line_is_an_error() {
        assert!(parse("cpuid 1000 5 5 10").is_err());
        assert!(parse("cpuid 1000 5 x 10 3").is_err());
        assert!(parse("cpuid").is_err());
    }
}
