//! The files that come with Gaol are right.

use std::fs;
use std::path::Path;

use gaol_abi::outcome::Reason;

use crate::check::{any_machine, check};
use crate::compile::{Cell, Configuration, System};
use crate::cpu_set::CpuSet;
use crate::ledger::Machine;

/// Name and text of each configuration, the crate's own manifest apart.
fn files() -> Vec<(String, String)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files: Vec<(String, String)> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "toml")
        })
        .filter(|path| !path.ends_with("Cargo.toml"))
        .map(|path| {
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            (name, fs::read_to_string(path).unwrap())
        })
        .collect();
    files.sort();
    files
}

/// The configurations of machines; the others are cells.
const SYSTEMS: [&str; 2] = ["bochs", "qemu"];

/// The cells whose devices an IOMMU keeps in their memory.
const NEED_AN_IOMMU: [&str; 2] = ["net", "edu-dma"];

/// The machine that has not the devices of this cell.
fn other_machine(cell: &str) -> Option<&'static str> {
    match cell {
        "net" | "edu-dma" => Some("bochs"),
        "net-bochs" => Some("qemu"),
        _ => None,
    }
}

#[test]
fn each_cell_fits_the_emulated_machines() {
    let machine = |cpus| Machine {
        cpus: CpuSet::first(cpus),
        ..any_machine()
    };
    let (systems, cells): (Vec<_>, Vec<_>) = files()
        .into_iter()
        .partition(|(name, _)| SYSTEMS.contains(&&**name));
    assert_eq!(systems.len(), SYSTEMS.len());
    assert!(cells.len() >= 4);
    for (machine_name, system) in &systems {
        let system = System::from_toml(machine_name, system).unwrap();
        assert_eq!(system.view().console_port(), Some(0x2f8));
        for (name, text) in &cells {
            let cell = Cell::from_toml(name, text).unwrap_or_else(|problem| panic!("{problem}"));
            assert_eq!(cell.view().name(), name);
            // Its machine has a CPU more than the others, and is not described.
            let (cpus, system) = match name.as_str() {
                "hostile-smp" => (5, &System::built_in()),
                _ => (4, &system),
            };
            if other_machine(name).is_some_and(|other| other == machine_name) {
                continue;
            }
            let mut problems = check(machine(cpus), system, &[cell]);
            // Whether the machine's IOMMU is driven is not the configuration's to say.
            if NEED_AN_IOMMU.contains(&name.as_str()) {
                problems.retain(|problem| problem.reason() != Reason::UnprotectedDma);
            }
            assert!(problems.is_empty(), "{problems:?}");
        }
    }
}

#[test]
fn hello_and_latency_run_together() {
    let files = files();
    let cell = |wanted: &str| {
        let (name, text) = files.iter().find(|(name, _)| name == wanted).unwrap();
        Cell::from_toml(name, text).unwrap()
    };
    let cells = [cell("hello"), cell("latency")];
    assert!(check(any_machine(), &System::built_in(), &cells).is_empty());
}

#[test]
fn the_kind_of_a_file_is_found_by_what_it_says() {
    let read = |text: &str| Configuration::read("file", text.as_bytes());
    assert!(matches!(read(""), Ok(Configuration::System(_))));
    assert!(matches!(read("[console]"), Ok(Configuration::System(_))));
    for (name, text) in files() {
        let configuration = read(&text).unwrap();
        let (is_system, binary) = match &configuration {
            Configuration::System(system) => (true, system.bytes()),
            Configuration::Cell(cell) => (false, cell.bytes()),
        };
        assert_eq!(is_system, SYSTEMS.contains(&&*name));
        match Configuration::read("file", binary).unwrap() {
            Configuration::System(system) => assert_eq!(system.bytes(), binary),
            Configuration::Cell(cell) => assert_eq!(cell.bytes(), binary),
        }
    }
    let problem = Configuration::read("file", &[0xff, 0xfe]).unwrap_err();
    assert_eq!(
        problem.to_string(),
        "file: the file is neither TOML nor a binary configuration"
    );
}
