//! What people read, message for message. Each group of cases is one snapshot in `snapshots/`.

use super::*;
use crate::check::{any_machine, check};
use crate::compile::System;
use crate::transcript::{compare, render, transcript};

fn cell_problems(file: &str) -> Vec<Problem> {
    Vec::from_iter(Cell::from_toml("cell.toml", file).err())
}

fn system_problems(file: &str) -> Vec<Problem> {
    Vec::from_iter(System::from_toml("system.toml", file).err())
}

/// A good cell file with one piece of text replaced.
fn with(old: &str, new: &str) -> Vec<Problem> {
    const GOOD: &str = r#"name = "latency"
cpus = [2, 3]
shutdown-timeout = "1 s"
ports = [{ first = 0x3f8, count = 8 }]

[[memory]]
name = "ram"
at = 0x0
size = "1 MiB"
access = "rwx"
loadable = true

[[memory]]
name = "comm"
kind = "communication"
at = 0x100000
"#;
    assert!(Cell::from_toml("cell.toml", GOOD).is_ok());
    assert_eq!(GOOD.matches(old).count(), 1, "{old}");
    cell_problems(&GOOD.replace(old, new))
}

/// As [`with`], with a region added.
fn with_region(region: &str) -> Vec<Problem> {
    with(
        "at = 0x100000\n",
        &format!("at = 0x100000\n\n[[memory]]\n{region}"),
    )
}

#[test]
fn the_text_of_the_file() {
    compare(
        "the-text-of-the-file",
        &transcript([
            ("syntax", with("cpus = [2, 3]", "cpus = [2, 3")),
            ("no value", with("cpus = [2, 3]", "cpus =")),
            (
                "key twice",
                with("cpus = [2, 3]", "cpus = [2, 3]\ncpus = [1]"),
            ),
            ("key misspelt", with("shutdown-timeout", "shutdown-time")),
            (
                "key unknown",
                with("shutdown-timeout = \"1 s\"", "vendor = 1"),
            ),
            ("key of memory misspelt", with("loadable", "loadabel")),
            ("key missing", with("cpus = [2, 3]\n", "")),
            ("address missing", with("at = 0x0\n", "")),
            ("size missing", with("size = \"1 MiB\"\n", "")),
            ("variant", with("\"communication\"", "\"comm\"")),
            ("size without a unit", with("1 MiB", "1 M")),
            ("negative size", with("\"1 MiB\"", "-1")),
            ("address as a string", with("0x0", "\"0x0\"")),
            ("negative CPU", with("[2, 3]", "[-1]")),
            ("CPU as a string", with("[2, 3]", "\"2-3\"")),
            ("time as a number", with("\"1 s\"", "1")),
            ("flag as a number", with("loadable = true", "loadable = 1")),
        ]),
    );
}

#[test]
fn the_values_of_a_cell() {
    let regions = |count: usize| -> String {
        (0..count)
            .map(|index| {
                format!(
                    "name = \"r{index}\"\nat = {:#x}\nsize = 4096\n\n[[memory]]\n",
                    (index + 1) << 24
                )
            })
            .collect()
    };
    let ports: Vec<String> = (0..65)
        .map(|index| format!("{{ first = {}, count = 1 }}", 0x1000 + index))
        .collect();
    compare(
        "the-values-of-a-cell",
        &transcript([
            ("empty name", with("latency", "")),
            ("name with a space", with("latency", "my cell")),
            ("name too long", with("latency", &"x".repeat(32))),
            ("name is a number", with("latency", "12")),
            ("CPU beyond all", with("[2, 3]", "[2, 256]")),
            ("CPU twice", with("[2, 3]", "[2, 2]")),
            ("no CPU", with("[2, 3]", "[]")),
            ("CPU 0", with("[2, 3]", "[0, 3]")),
            ("timeout zero", with("1 s", "0 s")),
            ("timeout too long", with("1 s", "11 min")),
            (
                "watchdog without a heartbeat",
                with(
                    "kind = \"communication\"\nat = 0x100000\n",
                    "at = 0x100000\nsize = \"4 KiB\"\n\n[watchdog]\ntimeout = \"1 s\"\n",
                ),
            ),
            ("access without reading", with("rwx", "wx")),
            ("access misspelt", with("rwx", "rwxd")),
            (
                "physical address zero",
                with("at = 0x0\n", "at = 0x0\nphysical = 0\n"),
            ),
            (
                "reset address",
                with("cpus", "reset-address = 0x100000\ncpus"),
            ),
            ("no code", with("rwx", "rw")),
            ("no ports", with("count = 8", "count = 0")),
            ("ports too high", with("0x3f8", "0xfffe")),
            (
                "ports twice",
                with("}]", "}, { first = 0x3ff, count = 1 }]"),
            ),
            ("PCI ports", with("0x3f8", "0xcf4")),
            ("ports that reset", with("0x3f8", "0x60")),
            (
                "too many ports",
                with("{ first = 0x3f8, count = 8 }", &ports.join(",\n")),
            ),
            (
                "too many regions",
                with_region(&(regions(62) + "name = \"last\"\nat = 0\nsize = 4096\n")),
            ),
        ]),
    );
}

#[test]
fn the_memory_of_a_cell() {
    compare(
        "the-memory-of-a-cell",
        &transcript([
            ("guest unaligned", with("at = 0x0", "at = 0x10")),
            (
                "physical unaligned",
                with("at = 0x0", "at = 0x0\nphysical = 0x30000800"),
            ),
            ("size unaligned", with("1 MiB", "1000 B")),
            ("empty", with("1 MiB", "0 B")),
            ("guest too high", with("at = 0x0", "at = 0x1000000000000")),
            (
                "physical too high",
                with("at = 0x0", "at = 0x0\nphysical = 0xfffffffff000"),
            ),
            ("overlap", with("at = 0x100000", "at = 0xff000")),
            (
                "physical overlap",
                with_region(
                    "name = \"a\"\nat = 0x200000\nphysical = 0x30000000\nsize = \"8 KiB\"\n\n\
                [[memory]]\nname = \"b\"\nat = 0x300000\nphysical = 0x30001000\nsize = \"8 KiB\"\n",
                ),
            ),
            ("name twice", with("\"comm\"", "\"ram\"")),
            (
                "loadable and shared",
                with(
                    "loadable = true",
                    "loadable = true\nshared-with-root = true",
                ),
            ),
            (
                "loadable communication",
                with("kind =", "loadable = true\nkind ="),
            ),
            (
                "executable communication",
                with("kind =", "access = \"rwx\"\nkind ="),
            ),
            (
                "large communication",
                with("kind =", "size = \"8 KiB\"\nkind ="),
            ),
            (
                "placed communication",
                with("kind =", "physical = 0x30000000\nkind ="),
            ),
            (
                "two communications",
                with_region("name = \"second\"\nkind = \"communication\"\nat = 0x200000\n"),
            ),
            (
                "device without address",
                with_region("name = \"d\"\nkind = \"device\"\nat = 0x200000\nsize = 4096\n"),
            ),
            (
                "executable device",
                with_region(
                    "name = \"d\"\nkind = \"device\"\nat = 0x200000\nphysical = 0xfed00000\nsize = 4096\naccess = \"rx\"\n",
                ),
            ),
            (
                "over the APIC",
                with_region("name = \"high\"\nat = 0xfe000000\nsize = \"16 MiB\"\n"),
            ),
            (
                "the APIC itself",
                with_region(
                    "name = \"apic\"\nkind = \"device\"\nat = 0x200000\nphysical = 0xfee00000\nsize = 4096\n",
                ),
            ),
        ]),
    );
}

#[test]
fn the_values_of_a_system() {
    compare(
        "the-values-of-a-system",
        &transcript([
            ("name", system_problems("name = \"\"")),
            (
                "memory uneven",
                system_problems("[hypervisor]\nmemory = \"3 MiB\""),
            ),
            (
                "too much memory",
                system_problems("[hypervisor]\nmemory = \"1 GiB\""),
            ),
            ("no memory", system_problems("[hypervisor]\nmemory = 0")),
            (
                "address unaligned",
                system_problems("[hypervisor]\naddress = 0x3a100000"),
            ),
            (
                "address too high",
                system_problems("[hypervisor]\naddress = 0x1000000000000"),
            ),
            (
                "port",
                system_problems("[console]\nuart = { port = 0xffff }"),
            ),
            (
                "no port",
                system_problems("[console]\nuart = { baud = 9600 }"),
            ),
            (
                "baud",
                system_problems("[console]\nuart = { port = 0x2f8, baud = 100000 }"),
            ),
            (
                "no baud",
                system_problems("[console]\nuart = { port = 0x2f8, baud = 0 }"),
            ),
            ("deadline", system_problems("deadline = \"1 h\"")),
            ("cells in it", system_problems("[[cells]]\nname = \"x\"")),
        ]),
    );
}

/// A cell with some memory at a physical address.
fn cell(name: &str, cpu: u32, physical: u64, more: &str) -> Cell {
    let text = format!(
        "name = \"{name}\"\ncpus = [{cpu}]\n{more}\n\n[[memory]]\nname = \"ram\"\nat = 0x0\n\
         physical = {physical:#x}\nsize = \"1 MiB\"\naccess = \"rwx\"\n"
    );
    Cell::from_toml(&format!("{name}.toml"), &text).unwrap()
}

#[test]
fn cells_against_each_other() {
    let system = System::from_toml(
        "system.toml",
        "[hypervisor]\naddress = 0x3a000000\n[console]\nuart = { port = 0x2f8 }",
    )
    .unwrap();
    let machine = Machine {
        cpus: CpuSet::first(4),
        ..any_machine()
    };
    let first = || {
        cell(
            "first",
            2,
            0x3000_0000,
            "ports = [{ first = 0x3f8, count = 8 }]",
        )
    };
    let shared = |name: &str, cpu, size: &str| {
        let text = format!(
            "name = \"{name}\"\ncpus = [{cpu}]\n\n[[memory]]\nname = \"ram\"\nat = 0x0\nsize = \"1 MiB\"\naccess = \"rwx\"\n\n\
             [[memory]]\nname = \"shared\"\nat = 0x200000\nphysical = 0x38000000\nsize = \"{size}\"\nshared-with-root = true\n"
        );
        Cell::from_toml(&format!("{name}.toml"), &text).unwrap()
    };
    let against = |second| check(machine, &system, &[first(), second]);
    compare(
        "cells-against-each-other",
        &transcript([
            ("name", against(cell("first", 3, 0x3100_0000, ""))),
            ("root's name", against(cell("root", 3, 0x3100_0000, ""))),
            (
                "CPU of another",
                against(cell("second", 2, 0x3100_0000, "")),
            ),
            ("CPU unknown", against(cell("second", 4, 0x3100_0000, ""))),
            (
                "memory of another",
                against(cell("second", 3, 0x300f_f000, "")),
            ),
            (
                "memory of the hypervisor",
                against(cell("second", 3, 0x39f8_0000, "")),
            ),
            (
                "ports of another",
                against(cell(
                    "second",
                    3,
                    0x3100_0000,
                    "ports = [{ first = 0x3ff, count = 1 }]",
                )),
            ),
            (
                "ports of the console",
                against(cell(
                    "second",
                    3,
                    0x3100_0000,
                    "ports = [{ first = 0x2f0, count = 16 }]",
                )),
            ),
            (
                "shared otherwise",
                check(
                    machine,
                    &system,
                    &[shared("first", 2, "8 KiB"), shared("second", 3, "4 KiB")],
                ),
            ),
        ]),
    );
    let good = [
        shared("first", 2, "8 KiB"),
        shared("second", 3, "8 KiB"),
        cell("third", 1, 0x3000_0000, ""),
    ];
    assert!(check(machine, &system, &good).is_empty());
}

#[test]
fn all_numbers_are_taken() {
    let system = System::built_in();
    let cells: Vec<Cell> = (1..=gaol_abi::MAX_CELLS as u32)
        .map(|number| {
            cell(
                &format!("cell{number}"),
                number,
                u64::from(number) << 24,
                "",
            )
        })
        .collect();
    let problems = check(any_machine(), &system, &cells);
    compare(
        "all-numbers-are-taken",
        &transcript([("too many cells", problems)]),
    );
}

#[test]
fn binary_files() {
    let good = cell("good", 3, 0x3000_0000, "");
    let system = System::built_in();
    let changed = |offset: usize, value: u8| {
        let mut bytes = good.bytes().to_vec();
        bytes[offset] = value;
        bytes
    };
    let cell = |bytes: &[u8]| Vec::from_iter(Cell::from_binary("cell.bin", bytes).err());
    compare(
        "binary-files",
        &transcript([
            ("empty", cell(&[])),
            ("truncated", cell(&good.bytes()[..100])),
            ("a system", cell(system.bytes())),
            (
                "a cell",
                Vec::from_iter(System::from_binary("system.bin", good.bytes()).err()),
            ),
            ("revision", cell(&changed(8, 9))),
            ("checksum", cell(&changed(30, 9))),
            ("too big", cell(&[0; 70_000])),
        ]),
    );
}

#[test]
fn a_binary_cell_is_explained_without_a_place() {
    let machine = any_machine();
    let text = cell("cell", 3, 0x3000_0000, "");
    let binary = Cell::from_binary("cell.bin", text.bytes()).unwrap();
    let problems = check(machine, &System::built_in(), &[text, binary]);
    compare(
        "a-binary-cell-is-explained-without-a-place",
        &transcript([("name", problems)]),
    );
}

#[test]
fn places_are_lines_and_columns() {
    let problem = &with("[2, 3]", "[2, 0]")[0];
    assert_eq!(problem.line_and_column(), Some((2, 12)));
    assert_eq!(
        (problem.file(), problem.reason()),
        ("cell.toml", Reason::CpuZero)
    );
}

#[test]
fn cpu_lists_are_as_linux_writes_them() {
    let list = |cpus: &[u32]| cpu_list(cpus.iter().copied().collect());
    assert_eq!(list(&[]), "");
    assert_eq!(list(&[3]), "3");
    assert_eq!(list(&[0, 1, 2, 5, 7, 8]), "0-2,5,7-8");
}

proptest::proptest! {
    /// Whatever is typed into a good file, it is compiled or explained.
    #[test]
    fn no_text_makes_the_compiler_panic(
        cuts in proptest::collection::vec((0usize..400, 0usize..12, "[\\PC\n\"=\\[\\]{}#x0-9.-]{0,6}"), 1..4)
    ) {
        let mut text: Vec<char> = include_str!("../latency.toml").chars().collect();
        for (start, length, new) in cuts {
            let start = start.min(text.len());
            let end = (start + length).min(text.len());
            text.splice(start..end, new.chars());
        }
        let text: String = text.into_iter().collect();
        for problem in [
            Cell::from_toml("cell.toml", &text).err(),
            System::from_toml("system.toml", &text).err(),
        ].into_iter().flatten() {
            proptest::prop_assert!(!render(&problem).is_empty());
            let _ = problem.line_and_column();
        }
    }
}
