//! The files of all collected machines: what they look like, and that the binary form says what the machine is.

use std::path::PathBuf;

use gaol_abi::config::{
    MACHINE_BAR_64, MACHINE_BAR_PORTS, MACHINE_CPU_SMIS, RANGE_IO_APIC, RANGE_IOMMU,
    RANGE_PCI_CONFIGURATION, RANGE_RAM, RANGE_RESERVED_DMA,
};
use gaol_machine::pci::BarKind;
use gaol_machine::source::Tree;

use super::*;
use crate::pci::FunctionAddress;

/// The collections, by name.
pub(crate) fn collections() -> Vec<(String, PathBuf)> {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../machine/collections");
    let entries = std::fs::read_dir(directory).unwrap();
    let mut all: Vec<(String, PathBuf)> = entries
        .map(|entry| entry.unwrap().path())
        .filter_map(|path| {
            let name = path
                .file_name()?
                .to_str()?
                .strip_suffix(".tar.gz")?
                .to_owned();
            Some((name, path))
        })
        .collect();
    all.sort();
    assert!(all.len() >= 3, "{all:?}");
    all
}

/// A machine that was collected.
pub(crate) fn collected(name: &str) -> Machine {
    let all = collections();
    let (_, path) = all.iter().find(|(it, _)| it == name).unwrap();
    let (machine, lacks) = read(&Source::open(path).unwrap()).unwrap();
    assert_eq!(lacks, []);
    machine
}

#[track_caller]
pub(crate) fn compare(name: &str, text: &str) {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("../../snapshots");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!(name, text));
}

fn options(policy: Policy) -> Options {
    Options {
        policy,
        ..Options::default()
    }
}

fn created(machine: &Machine, policy: Policy) -> Created {
    create("system.toml", machine, &[], &options(policy)).unwrap()
}

#[test]
fn the_file_of_each_collection() {
    for (name, _) in collections() {
        let machine = collected(&name);
        for (policy, suffix) in [(Policy::Leftover, "leftover"), (Policy::Strict, "strict")] {
            let created = created(&machine, policy);
            compare(&format!("create-{name}-{suffix}"), &created.toml);
            assert_eq!(created.toml, self::created(&collected(&name), policy).toml);
            assert!(created.toml.lines().all(|line| line.len() < 160));
            describes(&created.system, &machine);
        }
    }
}

/// The binary form says what was read of the machine.
fn describes(system: &System, machine: &Machine) {
    let view = system.view();
    assert!(view.describes_machine());
    let cpus = &machine.processors.all;
    assert_eq!(view.machine_cpus().len(), cpus.len());
    for (said, cpu) in view.machine_cpus().iter().zip(cpus) {
        assert_eq!(Some(said.apic_id), cpu.apic_id);
        assert_eq!(u32::from(said.package), cpu.package);
        assert_eq!(u32::from(said.node), cpu.node);
        assert_eq!(
            said.flags & MACHINE_CPU_SMIS != 0,
            cpu.smi_count.unwrap_or(0) != 0
        );
        for (other, its) in view.machine_cpus().iter().zip(cpus) {
            let is_sibling = its.id == cpu.id || cpu.siblings.contains(&its.id);
            assert_eq!(said.core == other.core, is_sibling);
            if cpus.iter().all(|cpu| cpu.l3.is_some()) {
                assert_eq!(said.l3 == other.l3, cpu.l3 == its.l3);
            }
        }
    }
    let ranges = |kind: u16| view.ranges().iter().filter(move |range| range.kind == kind);
    let ram: u64 = ranges(RANGE_RAM).map(|range| range.size).sum();
    let its: u64 = machine.ram.iter().map(|ram| ram.span.size()).sum();
    assert!(ram <= its && its - ram < machine.ram.len() as u64 * 8192);
    for (said, io_apic) in ranges(RANGE_IO_APIC).zip(&machine.interrupts.io_apics) {
        assert_eq!(
            (said.physical, said.number),
            (io_apic.address, io_apic.gsi_base)
        );
        assert_eq!(u32::from(said.extent), io_apic.pins);
    }
    let units = machine.iommu.as_ref().map_or(&[][..], |iommu| &iommu.units);
    let reserved = machine
        .iommu
        .as_ref()
        .map_or(&[][..], |iommu| &iommu.reserved);
    for (kind, count) in [
        (RANGE_IO_APIC, machine.interrupts.io_apics.len()),
        (RANGE_PCI_CONFIGURATION, machine.ecam.len()),
        (RANGE_IOMMU, units.len()),
        (RANGE_RESERVED_DMA, reserved.len()),
    ] {
        assert_eq!(ranges(kind).count(), count);
    }
    for (said, ecam) in ranges(RANGE_PCI_CONFIGURATION).zip(&machine.ecam) {
        assert_eq!(
            (said.physical, said.size),
            (ecam.span.start(), ecam.span.size())
        );
        let buses = u16::from(ecam.last_bus) << 8 | u16::from(ecam.first_bus);
        assert_eq!((said.number, said.extent), (ecam.segment.into(), buses));
    }
    let functions = &machine.pci.functions;
    assert_eq!(view.devices().len(), functions.len());
    for (index, (said, its)) in view.devices().iter().zip(functions).enumerate() {
        assert_eq!(
            FunctionAddress::from(said).to_string(),
            its.address.to_string()
        );
        assert_eq!((said.vendor, said.device), (its.vendor, its.device));
        assert_eq!(u32::from(said.group), its.group);
        let capabilities = &its.capabilities;
        assert_eq!(
            said.msi_vectors,
            capabilities.msi.map_or(0, |msi| msi.vectors.into())
        );
        assert_eq!(
            said.msix_vectors,
            capabilities.msi_x.map_or(0, |msi_x| msi_x.vectors)
        );
        for bar in view
            .bars()
            .iter()
            .filter(|bar| usize::from(bar.device) == index)
        {
            let found = its.bars.iter().find(|it| it.index == bar.number).unwrap();
            assert_eq!(
                (bar.address, bar.size),
                (found.span.start(), found.span.size())
            );
            assert_eq!(
                bar.flags & MACHINE_BAR_PORTS != 0,
                found.kind == BarKind::Io
            );
            assert_eq!(
                bar.flags & MACHINE_BAR_64 != 0,
                found.kind == BarKind::Memory64
            );
        }
    }
}

/// Every byte of RAM that Linux has, every register and every port of a device are a strict root's, but for what is
/// moderated.
#[test]
fn a_strict_root_has_what_linux_uses() {
    for (name, _) in collections() {
        let machine = collected(&name);
        let created = created(&machine, Policy::Strict);
        let view = created.system.view();
        let is_listed = |at: u64| {
            let mut regions = view.root_memory().iter();
            let mut ranges = view.ranges().iter().filter(|range| range.kind != RANGE_RAM);
            regions.any(|region| at.wrapping_sub(region.physical) < region.size)
                || ranges.any(|range| at.wrapping_sub(range.physical) < range.size)
                || at.wrapping_sub(crate::ledger::APIC_PAGE) < 4096
        };
        for ram in &machine.ram {
            assert!(
                is_listed(ram.span.start()) && is_listed(ram.span.last()),
                "{name}"
            );
        }
        for bar in machine
            .pci
            .functions
            .iter()
            .flat_map(|function| &function.bars)
        {
            if bar.kind != BarKind::Io && bar.span.start() != 0 {
                assert!(
                    is_listed(bar.span.start()) && is_listed(bar.span.last()),
                    "{name} {bar:?}"
                );
            }
        }
        let has_port = |port: u16| {
            let mut ports = view.root_ports().iter();
            ports.any(|range| port.wrapping_sub(range.first) < range.count)
        };
        assert!((0..=0xff).all(has_port));
        assert!(!(0xcf8..0xd00).any(has_port));
        if let Some(own) = view.hypervisor_ports() {
            assert!(!has_port(own.first), "{name}");
        }
        let mut regions = view.root_memory().to_vec();
        regions.sort_by_key(|region| region.physical);
        let mut pairs = regions.windows(2);
        assert!(pairs.all(|pair| pair[0].physical + pair[0].size <= pair[1].physical));
    }
}

fn tree(name: &str) -> Tree {
    let all = collections();
    let (_, path) = all.iter().find(|(it, _)| it == name).unwrap();
    Tree::read_tar(name, std::fs::File::open(path).unwrap()).unwrap()
}

/// What people read: the notes, or why there is no file.
fn outcome(tree: Tree) -> String {
    let lines = |problems: &[Unread]| -> String {
        let lines = problems
            .iter()
            .map(|it| format!("{it}\n  {}\n", it.remedy()));
        lines.collect()
    };
    let (machine, lacks) = match read(&Source::tree(tree)) {
        Ok(read) => read,
        Err(Refused::Machine(problems)) => return format!("refused:\n{}", lines(&problems)),
        Err(refused) => panic!("{refused:?}"),
    };
    match create("system.toml", &machine, &lacks, &Options::default()) {
        Ok(created) => {
            for note in &created.notes {
                let first = note.split_whitespace().next().unwrap();
                assert!(created.toml.contains(first), "{note}");
            }
            let notes = created
                .notes
                .iter()
                .filter(|note| !machine.notes.contains(note));
            notes.map(|note| format!("note: {note}\n")).collect()
        }
        Err(Refused::Machine(problems)) => format!("refused:\n{}", lines(&problems)),
        Err(refused) => panic!("{refused:?}"),
    }
}

#[test]
fn what_is_missing_is_said_and_what_is_garbage_is_refused() {
    const TABLES: &str = "/sys/firmware/acpi/tables";
    let mut text = String::new();
    for (what, path) in [
        ("no ACPI table APIC", format!("{TABLES}/APIC")),
        ("no ACPI table MCFG", format!("{TABLES}/MCFG")),
        ("no ACPI table DMAR", format!("{TABLES}/DMAR")),
        ("no ACPI at all", TABLES.to_owned()),
        ("no /proc/iomem", "/proc/iomem".to_owned()),
        ("no CPUs", "/sys/devices/system/cpu".to_owned()),
        ("no PCI", "/sys/bus/pci".to_owned()),
    ] {
        let mut tree = tree("two-sockets");
        tree.remove(&path);
        text.push_str(&format!("# {what}\n{}\n", outcome(tree)));
    }
    for (what, path, content) in [
        ("garbage in APIC", format!("{TABLES}/APIC"), "APIC garbage"),
        ("garbage in MCFG", format!("{TABLES}/MCFG"), "MCFG"),
        ("garbage in DMAR", format!("{TABLES}/DMAR"), ""),
        (
            "hidden addresses",
            "/proc/iomem".to_owned(),
            "00000000-00000000 : System RAM\n",
        ),
        ("garbage in iomem", "/proc/iomem".to_owned(), "x\n"),
        (
            "a CPU offline",
            "/sys/devices/system/cpu/online".to_owned(),
            "0-2\n",
        ),
        (
            "a CPU missing",
            "/sys/devices/system/cpu/present".to_owned(),
            "1-3\n",
        ),
    ] {
        let mut tree = tree("two-sockets");
        tree.insert_file(&path, content);
        text.push_str(&format!("# {what}\n{}\n", outcome(tree)));
    }
    compare("create-problems", &text);
}

#[test]
fn the_console_is_never_one_of_linux() {
    let mut machine = collected("two-sockets");
    let port = |number: u32, port: u16, kind: &str, is_linux_console: bool| SerialPort {
        number,
        place: Place::Port(port),
        interrupt: None,
        kind: kind.to_owned(),
        is_linux_console,
    };
    let chosen = |machine: &Machine, console: Console| {
        let options = Options {
            console,
            ..Options::default()
        };
        create("s", machine, &[], &options).map(|created| created.system.view().console_port())
    };
    machine.linux_parameters.clear();
    machine.serial_ports = vec![
        port(0, 0x3f8, "16550A", true),
        port(1, 0x2f8, "16550A", false),
    ];
    assert_eq!(chosen(&machine, Console::Spare).unwrap(), Some(0x2f8));
    assert_eq!(chosen(&machine, Console::None).unwrap(), None);
    assert_eq!(chosen(&machine, Console::Port(0x3e8)).unwrap(), Some(0x3e8));
    match chosen(&machine, Console::Port(0x3f8)) {
        Err(Refused::Request(message, _)) => assert_eq!(
            message,
            "the serial port at 0x3f8 is ttyS0, on which Linux has its console"
        ),
        other => panic!("{other:?}"),
    }
    for parameter in [
        "earlyprintk=serial,ttyS1,115200",
        "console=uart8250,io,0x2f8",
        "console=ttyS1",
    ] {
        machine.linux_parameters = vec![parameter.to_owned()];
        assert_eq!(
            chosen(&machine, Console::Spare).unwrap(),
            None,
            "{parameter}"
        );
    }
    // Nobody told which driver has it.
    machine.linux_parameters.clear();
    machine.serial_ports = vec![port(1, 0x2f8, "", false)];
    assert_eq!(chosen(&machine, Console::Spare).unwrap(), None);
}

#[test]
fn the_hypervisors_memory_grows_with_the_machine() {
    let mut machine = collected("two-sockets");
    let first = machine.processors.all[0].clone();
    let mut with = |cpus: u32| {
        machine.processors.all = (0..cpus)
            .map(|id| gaol_machine::processors::Processor {
                id,
                ..first.clone()
            })
            .collect();
        machine.ram.clear();
        machine.iomem.clear();
        hypervisor_memory(&machine)
    };
    assert_eq!(with(1), 4 << 20);
    assert_eq!(with(4), 4 << 20);
    assert_eq!(with(72), 20 << 20);
    assert_eq!(with(256), 66 << 20);
    let machine = collected("two-sockets");
    for size in [0, 3 << 20, 1 << 40] {
        let options = Options {
            memory: Some(size),
            ..Options::default()
        };
        let result = create("s", &machine, &[], &options);
        assert!(matches!(result, Err(Refused::Request(..))), "{result:?}");
    }
}
