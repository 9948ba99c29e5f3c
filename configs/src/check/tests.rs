//! What whole systems are warned of, and what not.

use super::*;
use crate::problem::Doubt;
use crate::transcript::{compare, transcript};

/// Two packages with two cores each and two threads a core: CPUs 0 to 3 are the first threads, 4 to 7 the second ones.
/// Of the last core only the first thread is there.
const MACHINE: &str = r#"
[machine]
l3-ways = 11
cpus = [
    { apic-id = 0, package = 0, core = 0, node = 0 },
    { apic-id = 2, package = 0, core = 1, node = 0 },
    { apic-id = 16, package = 1, core = 2, node = 1, smis = true },
    { apic-id = 18, package = 1, core = 3, node = 1 },
    { apic-id = 1, package = 0, core = 0, node = 0 },
    { apic-id = 3, package = 0, core = 1, node = 0 },
    { apic-id = 17, package = 1, core = 2, node = 1 },
]
ram = [{ at = 0x1000, size = "2097148 KiB" }, { at = 0x100000000, size = "4 GiB", node = 1 }]
devices = [{ address = "0000:00:03.0", id = "8086:100e", group = 3, msi = 1 }]
"#;

fn system() -> System {
    System::from_toml("machine.toml", MACHINE).unwrap()
}

/// A cell with nothing to be warned of on CPU 3, but for what is added.
fn cell(name: &str, cpus: &str, more: &str) -> Cell {
    let text = format!(
        "name = \"{name}\"\ncpus = {cpus}\ncache-ways = {{ l3 = [0] }}\n{more}\n\n[[memory]]\nname = \"ram\"\nat = 0x0\n\
         size = \"1 MiB\"\naccess = \"rwx\"\n"
    );
    let file = format!("{name}.toml");
    Cell::compile(&file, &text, Some(&system())).unwrap_or_else(|problems| panic!("{problems:#?}"))
}

fn cell_with_region(region: &str) -> Cell {
    cell(
        "cell",
        "[3]",
        &format!("[[memory]]\nname = \"large\"\n{region}"),
    )
}

/// The warnings, but for those of what this build can't do.
fn warned(cells: &[Cell]) -> Vec<Problem> {
    warned_on(&system(), cells)
}

fn warned_on(system: &System, cells: &[Cell]) -> Vec<Problem> {
    let mut warnings = warnings(system, cells);
    warnings.retain(|warning| warning.doubt() != Some(Doubt::Unsupported));
    warnings
}

fn doubts(cells: &[Cell]) -> Vec<Doubt> {
    warned(cells).iter().filter_map(Problem::doubt).collect()
}

#[test]
fn a_good_cell_is_not_warned_of() {
    assert_eq!(doubts(&[cell("cell", "[3]", "")]), []);
    let both_threads = cell("both", "[1, 5]", "");
    assert_eq!(doubts(&[both_threads]), []);
}

#[test]
fn large_pages_fit_where_both_addresses_are_equally_far() {
    let region = |keys: &str| doubts(&[cell_with_region(keys)]);
    for good in [
        "at = 0x400000\nsize = \"2 MiB\"",
        "at = 0x401000\nphysical = 0x100001000\nsize = \"4 MiB\"",
        "at = 0x401000\nphysical = 0x100002000\nsize = \"2044 KiB\"",
        "at = 0x401000\nsize = \"64 KiB\"",
    ] {
        assert_eq!(region(good), [], "{good}");
    }
    for bad in [
        "at = 0x401000\nsize = \"2 MiB\"",
        "at = 0x400000\nphysical = 0x100001000\nsize = \"2 MiB\"",
    ] {
        assert_eq!(region(bad), [Doubt::SmallPages], "{bad}");
    }
}

#[test]
fn what_is_legal_and_doubtful() {
    let region = |keys: &str| warned(&[cell_with_region(keys)]);
    let no_ways = Cell::compile(
        "cell.toml",
        "name = \"cell\"\ncpus = [3]\n[[memory]]\nname = \"ram\"\nat = 0\nsize = 4096\naccess = \"rx\"\n",
        None,
    )
    .unwrap();
    let plain = cell("cell", "[3]", "");
    compare(
        "what-is-legal-and-doubtful",
        &transcript([
            (
                "placed across large pages",
                region("at = 0x400000\nphysical = 0x100001000\nsize = \"2 MiB\"\n"),
            ),
            (
                "unplaced across large pages",
                region("at = 0x401000\nsize = \"2 MiB\"\n"),
            ),
            (
                "far memory",
                region("at = 0x400000\nphysical = 0x40000000\nsize = \"2 MiB\"\n"),
            ),
            (
                "code in reach of devices",
                region("at = 0x400000\nsize = \"2 MiB\"\naccess = \"rwx\"\ndma = true\n"),
            ),
            (
                "shared with nobody",
                region("at = 0x400000\nsize = \"2 MiB\"\nshared = true\n"),
            ),
            (
                "half a core of the root's",
                warned(&[cell("cell", "[1]", "")]),
            ),
            (
                "half a core of another cell's",
                warned(&[cell("first", "[1]", ""), cell("second", "[5]", "")]),
            ),
            ("SMIs", warned(&[cell("cell", "[2, 6]", "")])),
            ("a cache that could be divided", warned(&[no_ways])),
            ("unknown machine", warned_on(&System::built_in(), &[plain])),
        ]),
    );
}

#[test]
fn half_a_core_is_told_once_for_each_owner() {
    let cells = [cell("first", "[1]", ""), cell("second", "[5]", "")];
    let [warning] = &warned(&cells)[..] else {
        panic!()
    };
    assert_eq!(warning.file(), "second.toml");
    assert!(warning.message().contains("cell \"first\""), "{warning}");
}

#[test]
fn two_cells_that_share_memory_are_not_alone() {
    let shared = "[[memory]]\nname = \"ring\"\nat = 0x400000\nsize = \"2 MiB\"\nshared = true\n";
    let cells = [
        cell("first", "[3]", shared),
        cell("second", "[1, 5]", shared),
    ];
    assert_eq!(doubts(&cells), []);
    assert_eq!(doubts(&cells[..1]), [Doubt::NotShared]);
}

#[test]
fn what_this_build_can_not_do_is_told() {
    let with_ways = cell("cell", "[3]", "");
    let all = warnings(&system(), &[with_ways]);
    assert!(
        all.iter()
            .any(|warning| warning.doubt() == Some(Doubt::Unsupported))
    );
    let plain = Cell::from_toml(
        "cell.toml",
        "name = \"cell\"\ncpus = [3]\n[[memory]]\nname = \"ram\"\nat = 0\nsize = 4096\naccess = \"rx\"\n",
    );
    assert!(unsupported(&plain.unwrap()).is_none());
}

#[test]
fn warnings_are_no_problems() {
    let cells = [cell("cell", "[2]", "")];
    let found = report(any_machine(), &system(), &cells);
    assert!(found.problems.is_empty(), "{:#?}", found.problems);
    assert!(found.warnings.len() >= 2, "{:#?}", found.warnings);
    assert!(
        found
            .warnings
            .iter()
            .all(|warning| warning.doubt().is_some())
    );
}

#[test]
fn all_problems_of_all_cells_are_found() {
    let cells = [
        cell("first", "[0, 3]", "reset-address = 0x900000"),
        cell("second", "[9]", "ports = [{ first = 0xcf8, count = 1 }]"),
    ];
    let problems = check(any_machine(), &system(), &cells);
    let lines: Vec<(&str, usize)> = problems
        .iter()
        .map(|problem| (problem.file(), problem.line_and_column().unwrap().0))
        .collect();
    for expected in [
        ("first.toml", 2),
        ("first.toml", 4),
        ("second.toml", 2),
        ("second.toml", 4),
    ] {
        assert!(lines.contains(&expected), "{expected:?} in {lines:?}");
    }
    assert_eq!(lines.len(), 4, "{problems:#?}");
}
