//! Whatever a file holds, there is an answer.

use proptest::prelude::*;

use super::machines::Machine;
use crate::hardware::{Facts, Status, Verdict, check, table, verdict};
use crate::source::{Source, Tree};

/// All that the check reads.
fn files() -> &'static [String] {
    static FILES: std::sync::LazyLock<Vec<String>> = std::sync::LazyLock::new(find_files);
    &FILES
}

fn find_files() -> Vec<String> {
    let mut found = Vec::new();
    for machine in [Machine::intel(), Machine::amd()] {
        let source = Source::tree(machine.collection()).recording();
        let _ = Facts::read(&source);
        collect(&source.recorded(), "", &mut found);
    }
    found.sort();
    found.dedup();
    found
}

fn collect(tree: &Tree, directory: &str, found: &mut Vec<String>) {
    let source = Source::tree(tree.clone());
    let below = source.list(if directory.is_empty() { "/" } else { directory });
    for name in below.unwrap_or_default() {
        let path = format!("{directory}/{name}");
        match source.read(&path) {
            Ok(_) => found.push(path),
            Err(_) => collect(tree, &path, found),
        }
    }
}

fn rows_with(machine: &Machine, path: &str, content: &[u8]) -> Vec<crate::hardware::Row> {
    let mut tree = machine.collection();
    tree.insert_file(path, content);
    check(&Facts::read(&Source::tree(tree)))
}

/// What a problem with this file is named after.
fn subject(path: &str) -> &str {
    path.strip_prefix("/sys/firmware/acpi/tables/")
        .unwrap_or(path)
}

#[test]
fn garbage_in_each_file_is_named_in_a_row_that_is_unknown() {
    let files = files();
    assert!(files.len() > 30, "{files:?}");
    for path in files {
        let is_named = [Machine::intel(), Machine::amd()].iter().any(|machine| {
            let rows = rows_with(machine, path, b"\xff\n\x00garbage\n");
            let _ = table(&rows, true);
            rows.iter()
                .filter(|row| row.status == Status::Unknown)
                .any(|row| row.finding.contains(subject(path)))
        });
        // Of these, Gaol only asks whether they are there; the command line is filtered; the release matters only to some.
        let only_there = ["compact_memory", "valid_zones", "cmdline", "osrelease"];
        let only_there = only_there.iter().any(|name| path.ends_with(name));
        assert!(is_named || only_there, "{path}");
    }
}

#[test]
fn a_collection_of_what_was_read_is_judged_alike() {
    for machine in [Machine::intel(), Machine::amd()] {
        let source = Source::tree(machine.collection()).recording();
        let rows = check(&Facts::read(&source));
        let again = check(&Facts::read(&Source::tree(source.recorded())));
        assert_eq!(rows, again);
        let smi = rows.iter().find(|row| row.key == "smi").unwrap();
        let is_intel = smi.finding == "not measured: this is a collection; 7 since reset";
        assert!(
            is_intel || smi.finding == "the processor does not count them",
            "{smi:?}"
        );
    }
}

#[test]
fn what_is_needed_and_not_known_leaves_it_undecided() {
    let machine = Machine::intel();
    let rows = rows_with(&machine, "/gaol/cpu/1/msr", b"garbage");
    assert_eq!(verdict(&rows), Verdict::Undecided);
    let rows = rows_with(
        &machine,
        "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor",
        b"\xff",
    );
    assert_eq!(verdict(&rows), Verdict::Runs);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]
    #[test]
    fn no_content_of_any_file_makes_the_check_panic(
        which: prop::sample::Index,
        content in prop::collection::vec(any::<u8>(), 0..300),
        text in "[ -~\n]{0,200}",
        is_text: bool,
    ) {
        let files = files();
        let path = which.get(files);
        let content = if is_text { text.into_bytes() } else { content };
        for machine in [Machine::intel(), Machine::amd()] {
            let rows = rows_with(&machine, path, &content);
            prop_assert!(!table(&rows, false).is_empty());
        }
    }

    #[test]
    fn no_registers_make_the_check_panic(values in prop::collection::vec((0u32..0x30, 0u32..4, any::<[u32; 4]>()), 0..60), msrs in prop::collection::vec(any::<u64>(), 0x20)) {
        let mut machine = Machine::intel();
        for (leaf, subleaf, entry) in values {
            machine.leaf(leaf, subleaf, entry);
            machine.leaf(leaf | 0x8000_0000, subleaf, entry);
        }
        for (register, value) in (0x480..).zip(msrs) {
            machine.msr(register, value);
            machine.msr(register - 0x480 + 0x1b, value);
        }
        prop_assert!(!table(&machine.rows(), false).is_empty());
    }
}
