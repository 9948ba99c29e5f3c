//! The figures that are promised, and the ones that were reached last.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use gaol_tests::artefacts;
use gaol_tests::machine::Platform;

/// What a figure may be at the most, and what Jailhouse's is on the same machine, measured the same way.
pub struct Limit {
    /// Name of the figure.
    pub name: &'static str,
    /// Largest value that keeps the promise.
    pub limit: f64,
    /// Jailhouse's value, 0 where it has none.
    pub jailhouse: f64,
}

const fn limit(name: &'static str, limit: f64, jailhouse: f64) -> Limit {
    Limit {
        name,
        limit,
        jailhouse,
    }
}

/// The promises on Bochs, with VMX. Costs are emulated instructions with the native ones subtracted.
const BOCHS: &[Limit] = &[
    limit("cpuid", 80.0, 109.0),
    limit("vmcall", 110.0, 143.0),
    limit("rdmsr_pat", 85.0, 100.0),
    limit("rdmsr_mtrr_def_type", 85.0, 100.0),
    limit("xsetbv", 95.0, 106.0),
    limit("in_cf8", 115.0, 146.0),
    limit("out_cf8", 115.0, 146.0),
    limit("in_cfc", 210.0, 268.0),
    limit("apic_read", 0.0, 2814.0),
    limit("apic_write_eoi", 400.0, 2834.0),
    limit("apic_write_icr_self", 400.0, 3031.0),
    limit("cell_x2apic_icr", 250.0, 0.0),
    limit("cell_x2apic_eoi", 0.0, 137.0),
    limit("cell_tsc_deadline", 0.0, 0.0),
    limit("enable", 1_900_000.0, 1_950_000.0),
    limit("create", 350_000.0, 382_000.0),
    limit("start", 240_000.0, 250_000.0),
    limit("destroy", 500_000.0, 592_000.0),
    limit("longest_pause", 500_000.0, 0.0),
    limit("disable", 20_000.0, 20_600.0),
    limit("text_and_rodata_bytes", 208.0 * 1024.0, 64.0 * 1024.0),
    limit(
        "memory_bytes",
        1.125 * 1024.0 * 1024.0,
        2.5 * 1024.0 * 1024.0,
    ),
];

/// The promises on QEMU, with SVM.
const QEMU: &[Limit] = &[
    limit("cpuid", 95.0, 122.0),
    limit("vmmcall", 125.0, 160.0),
    limit("in_cf8", 120.0, 149.0),
    limit("out_cf8", 120.0, 149.0),
    limit("apic_read", 0.0, 0.0),
    limit("apic_write_tpr", 450.0, 2955.0),
    limit("apic_write_eoi", 450.0, 2955.0),
    limit("apic_write_icr_self", 450.0, 3114.0),
    limit("enable", 4_000_000.0, 23_800_000.0),
    limit("create", 380_000.0, 405_215.0),
    limit("start", 240_000.0, 248_000.0),
    limit("destroy", 520_000.0, 610_000.0),
    limit("text_and_rodata_bytes", 208.0 * 1024.0, 0.0),
    limit("memory_bytes", 1.25 * 1024.0 * 1024.0, 0.0),
];

/// The promises on a machine.
pub fn limits(machine: Platform) -> &'static [Limit] {
    match machine {
        Platform::Qemu => QEMU,
        Platform::Bochs | Platform::Kvm => BOCHS,
    }
}

/// How much a figure may exceed the baseline, and how much more counts as noise of small numbers.
const TOLERANCE: f64 = 1.05;
const NOISE: f64 = 0.5;

/// Figures by their names.
pub type Figures = BTreeMap<String, f64>;

/// The promise for a figure, if there is one.
pub fn find_limit(machine: Platform, name: &str) -> Option<&'static Limit> {
    limits(machine).iter().find(|limit| limit.name == name)
}

fn baseline_path() -> PathBuf {
    artefacts::workspace_root().join("tests/bench-baseline.json")
}

/// The figures that were accepted last, by machine; empty when there are none yet.
///
/// # Errors
/// When the file is damaged.
pub fn baseline() -> Result<BTreeMap<String, Figures>> {
    let path = baseline_path();
    match fs::read_to_string(&path) {
        Ok(text) => serde_json::from_str(&text).with_context(|| {
            format!(
                "{} is damaged: take it from version control",
                artefacts::display(&path)
            )
        }),
        Err(_) => Ok(BTreeMap::new()),
    }
}

/// Makes these the figures of the machine to compare with; those of the others stay.
///
/// # Errors
/// When the file is damaged or cannot be written.
pub fn accept(machine: Platform, figures: &Figures) -> Result<()> {
    let mut all = baseline()?;
    all.insert(machine.name().to_owned(), figures.clone());
    let path = baseline_path();
    fs::write(&path, serde_json::to_string_pretty(&all)? + "\n")
        .with_context(|| format!("cannot write {}", path.display()))
}

/// What is worse than the baseline by more than the tolerance, or missing.
pub fn regressions(figures: &Figures, baseline: &Figures) -> Vec<String> {
    baseline
        .iter()
        .filter_map(|(name, old)| match figures.get(name) {
            None => Some(format!("{name}: was {old}, is not measured any more")),
            Some(new) if *new > old * TOLERANCE + NOISE => Some(format!(
                "{name}: was {old}, is {new} ({:+.1} %)",
                (new / old - 1.0) * 100.0
            )),
            Some(_) => None,
        })
        .collect()
}

/// What breaks a promise.
pub fn broken_promises(machine: Platform, figures: &Figures) -> Vec<String> {
    limits(machine)
        .iter()
        .filter_map(|limit| match figures.get(limit.name) {
            None => Some(format!("{}: not measured", limit.name)),
            Some(value) if *value > limit.limit + NOISE => Some(format!(
                "{}: {value}, promised are {} at the most",
                limit.name, limit.limit
            )),
            Some(_) => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(list: &[(&str, f64)]) -> Figures {
        list.iter()
            .map(|(name, value)| ((*name).to_owned(), *value))
            .collect()
    }

    #[test]
    fn five_percent_are_tolerated() {
        let baseline = figures(&[("a", 100.0), ("b", 100.0), ("c", 0.0)]);
        let now = figures(&[("a", 105.0), ("b", 105.6), ("c", 0.4)]);
        let found = regressions(&now, &baseline);
        assert_eq!(found.len(), 1);
        assert!(found[0].starts_with("b: was 100, is 105.6"), "{found:?}");
    }

    #[test]
    fn a_figure_that_vanishes_is_a_regression() {
        assert_eq!(regressions(&figures(&[]), &figures(&[("a", 1.0)])).len(), 1);
    }

    #[test]
    fn promises_are_held_against_the_figures() {
        for machine in [Platform::Bochs, Platform::Qemu] {
            let mut all: Figures = limits(machine)
                .iter()
                .map(|limit| (limit.name.to_owned(), limit.limit))
                .collect();
            assert!(broken_promises(machine, &all).is_empty());
            all.insert("apic_read".to_owned(), 1.0);
            all.remove("cpuid");
            assert_eq!(broken_promises(machine, &all).len(), 2);
        }
    }
}
