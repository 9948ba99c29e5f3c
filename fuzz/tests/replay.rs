//! The fuzz targets over the committed corpus, and over mutations of it.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use gaol_fuzz::mutation::{Random, mutated};
use gaol_fuzz::{TARGETS, Target};

/// Seeds of a target, by file name, so that each run has the same order.
fn seeds(target: &Target) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let mut paths: Vec<_> = fs::read_dir(directory.join(target.name))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

fn replay(name: &str, mutations: usize) {
    let target = TARGETS.iter().find(|target| target.name == name).unwrap();
    let seeds = seeds(target);
    assert!(seeds.len() >= 2, "{name} has too few seeds");
    for seed in &seeds {
        (target.run)(seed);
    }
    let threads = 2;
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= mutations {
                        break;
                    }
                    let seed = (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                    let mut random = Random::new(seed);
                    let one = &seeds[random.below(seeds.len())];
                    let other = &seeds[random.below(seeds.len())];
                    let bytes = mutated(&mut random, one, other);
                    let result = std::panic::catch_unwind(|| (target.run)(&bytes));
                    assert!(
                        result.is_ok(),
                        "{name}: mutation {number}: \"{}\"",
                        bytes.escape_ascii()
                    );
                }
            });
        }
    });
}

#[test]
fn acpi_tables() {
    replay("acpi_tables", 100_000);
}

#[test]
fn apic_filter() {
    replay("apic_filter", 50_000);
}

#[test]
fn configuration_binary() {
    replay("configuration_binary", 50_000);
}

#[test]
fn configuration_toml() {
    replay("configuration_toml", 10_000);
}

#[test]
fn hypercall() {
    replay("hypercall", 20_000);
}

#[test]
fn instruction_decoder() {
    replay("instruction_decoder", 100_000);
}

#[test]
fn jailhouse_import() {
    replay("jailhouse_import", 10_000);
}

#[test]
fn vtd_tables() {
    replay("vtd_tables", 500);
}

#[test]
fn machine_collection() {
    replay("machine_collection", 10_000);
}

#[test]
fn pci_configuration_space() {
    replay("pci_configuration_space", 20_000);
}

#[test]
fn pci_filter() {
    replay("pci_filter", 10_000);
}

#[test]
fn every_target_has_a_program_and_a_corpus() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut programs: Vec<String> = fs::read_dir(directory.join("fuzz_targets"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    programs.sort();
    let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
    assert_eq!(programs, names);
    for target in TARGETS {
        assert!(!seeds(target).is_empty());
    }
}
