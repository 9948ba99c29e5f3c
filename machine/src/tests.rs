//! Tests of whole machines: what a collection holds, in words, and what becomes of damaged ones.

use std::path::{Path, PathBuf};

use proptest::prelude::*;

use crate::acpi::fadt::Place;
use crate::collect::collect;
use crate::machine::Machine;
use crate::problem::{Kind, Problem};
use crate::processors::Virtualization;
use crate::source::{Source, Tree};
use crate::testing::{Build, many_cpus, old_board, two_sockets};

/// Set to write the collections of the machines that are made up.
const WRITE: &str = "GAOL_WRITE_COLLECTIONS";

fn collection(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("collections")
        .join(format!("{name}.tar.gz"))
}

fn read(tree: Tree) -> Machine {
    Machine::read(&Source::tree(tree)).unwrap()
}

fn problems(tree: Tree) -> Vec<Problem> {
    Machine::read(&Source::tree(tree)).unwrap_err()
}

/// Compares the collection in the repository with the snapshot of what it says.
fn check(name: &str) -> Machine {
    let source = Source::open(&collection(name)).unwrap();
    let machine = Machine::read(&source).unwrap();
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("../snapshots");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!(name, machine.to_string()));
    machine
}

/// The same for a machine that is made up: the collection is what the builder makes.
fn check_made_up(name: &str, build: Build) -> Machine {
    let collected = collect(Source::tree(build.tree), |_| ()).unwrap();
    assert_eq!(collected.problems, []);
    if std::env::var_os(WRITE).is_some() {
        let mut bytes = Vec::new();
        collected.write(&mut bytes, true).unwrap();
        std::fs::write(collection(name), bytes).unwrap();
    }
    let file = std::fs::File::open(collection(name)).unwrap();
    let committed = Tree::read_tar(name, file).unwrap();
    assert!(
        committed == collected.tree,
        "{name} is not what its builder makes: run this test with {WRITE}=1"
    );
    let machine = check(name);
    // What is collected of a collection is the collection.
    let again = collect(Source::tree(committed.clone()), |_| ()).unwrap();
    assert!(again.tree == committed);
    machine
}

#[test]
fn bochs_is_read() {
    let machine = check("bochs-i440fx");
    assert_eq!(machine.processors.virtualization, Some(Virtualization::Vmx));
    assert_eq!((machine.ecam.len(), machine.iommu), (0, None));
    let timer = machine.power.unwrap().pm_timer.unwrap();
    assert_eq!(timer.place, Place::Port(0xb008));
}

#[test]
fn qemu_is_read() {
    let machine = check("qemu-q35");
    assert_eq!(machine.processors.virtualization, Some(Virtualization::Svm));
    let iommu = machine.iommu.as_ref().unwrap();
    assert_eq!(iommu.units.len(), 1);
    assert_eq!(iommu.units[0].remaps_interrupts(), Some(true));
    // The two devices that tests give to cells: DMA on command, and a network card.
    for id in ["1234:11e8", "8086:10d3"] {
        let device = machine
            .pci
            .functions
            .iter()
            .find(|it| it.id() == id)
            .unwrap();
        assert_eq!(machine.pci.group(device.group).count(), 1);
        assert!(iommu.unit_of(device.address).is_some());
        assert!(device.capabilities.msi.is_some());
    }
}

fn groups(machine: &Machine) -> Vec<Vec<String>> {
    let mut numbers: Vec<u32> = machine.pci.functions.iter().map(|it| it.group).collect();
    numbers.sort_unstable();
    numbers.dedup();
    let members = |&group: &u32| {
        machine
            .pci
            .group(group)
            .map(|it| it.address.to_string())
            .collect()
    };
    numbers.iter().map(members).collect()
}

#[test]
fn two_sockets_are_read() {
    let machine = check_made_up("two-sockets", two_sockets());
    let iommu = machine.iommu.as_ref().unwrap();
    let unit = |address: &str| {
        let unit = iommu.unit_of(address.parse().unwrap()).unwrap();
        unit.registers.start()
    };
    // The path of four hops, its neighbour, a bridge's device, and what no unit names.
    assert_eq!(unit("0001:04:00.0"), 0xe0ff_c000);
    assert_eq!(unit("0001:03:00.0"), 0xf0ff_c000);
    assert_eq!(unit("0000:81:00.0"), 0xd37f_c000);
    assert_eq!(unit("0000:01:00.1"), 0xf1ff_c000);
    assert_eq!(iommu.units[1].registers.size(), 0x2000);
    let nodes: Vec<u64> = machine.nodes.iter().map(|node| node.memory >> 30).collect();
    assert_eq!(nodes, [7, 8]);
    assert_eq!(machine.interrupts.pin(31).unwrap().0.id, 9);
    assert!(machine.interrupts.pin(32 + 24).is_none());
}

#[test]
fn more_processors_than_a_word_has_bits_are_read() {
    let machine = check_made_up("many-cpus", many_cpus());
    let last = machine.processors.get(95).unwrap();
    assert_eq!(
        (last.apic_id, &*last.siblings),
        (Some(0x80 + 5 * 0x20 + 15), &[47][..])
    );
    assert!(machine.has_amd_iommu && machine.iommu.is_none());
}

#[test]
fn groups_follow_bridges_and_access_control() {
    let machine = check_made_up("old-board", old_board());
    assert_eq!(
        groups(&machine),
        [
            vec!["0000:00:00.0"],
            vec!["0000:00:02.0"],
            vec!["0000:00:14.0"],
            vec!["0000:00:1c.0"],
            // A port without access control, and all below it.
            vec!["0000:00:1c.4", "0000:03:00.0", "0000:03:00.1"],
            vec!["0000:00:1c.5"],
            vec!["0000:00:1d.0"],
            vec!["0000:00:1f.0", "0000:00:1f.3"],
            vec!["0000:02:00.0"],
            // A bridge to conventional PCI, and all behind it.
            vec!["0000:04:00.0", "0000:05:01.0", "0000:05:02.0"],
        ]
    );
    // Who speaks for whom: only what is behind the bridge to conventional PCI has the bridge speak for it.
    for function in &machine.pci.functions {
        let speaker = machine.pci.speaker(function.address);
        let speaker = speaker.map(|bridge| bridge.address.to_string());
        let is_behind = function.address.bus == 5;
        assert_eq!(
            speaker.as_deref(),
            is_behind.then_some("0000:04:00.0"),
            "{}",
            function.address
        );
    }
    let reserved = &machine.iommu.as_ref().unwrap().reserved;
    assert_eq!(
        reserved[0].devices[0].address,
        Some("00:1d.0".parse().unwrap())
    );
    assert_eq!(reserved[0].devices[2].address, None);
}

#[test]
fn groups_of_linux_and_of_the_topology_agree() {
    let with_linux = read(two_sockets().tree);
    let mut tree = two_sockets().tree;
    for function in &with_linux.pci.functions {
        tree.remove(&format!(
            "/sys/bus/pci/devices/{}/iommu_group",
            function.address
        ));
    }
    let without = read(tree.clone());
    assert_ne!(with_linux.pci.groups_from, without.pci.groups_from);
    assert_eq!(groups(&with_linux), groups(&without));
    // Functions that Linux keeps together stay so, where it does not know all of them.
    for function in ["0000:01:00.0", "0000:81:00.0"] {
        let path = format!("/sys/bus/pci/devices/{function}/iommu_group");
        tree.insert_link(&path, "../../../kernel/iommu_groups/3");
    }
    let some = read(tree);
    let together = ["0000:01:00.0", "0000:81:00.0"].map(str::to_owned).to_vec();
    assert!(groups(&some).contains(&together), "{:?}", groups(&some));
}

#[test]
fn no_serial_number_is_collected() {
    let collected = collect(Source::tree(old_board().tree), |_| ()).unwrap();
    let path = "/sys/bus/pci/devices/0000:02:00.0/config";
    let config = collected.tree.read(path).unwrap();
    assert!(!config.windows(4).any(|bytes| bytes == [0x42; 4]));
    let before = old_board().tree;
    let before = before.read(path).unwrap();
    assert!(before.windows(4).any(|bytes| bytes == [0x42; 4]));
}

#[test]
fn what_a_machine_may_lack_is_a_fact() {
    let mut tree = old_board().tree;
    for path in [
        "/sys/firmware/acpi/tables/DMAR",
        "/sys/firmware/acpi/tables/MCFG",
        "/sys/firmware/acpi/tables/FACP",
        "/sys/bus/pci",
        "/sys/class/iommu",
        "/sys/devices/system/node",
        "/sys/devices/system/memory",
        "/proc/consoles",
        "/proc/tty",
        "/gaol/cpu/2/msr",
    ] {
        tree.remove(path);
    }
    let machine = read(tree);
    assert_eq!(
        (machine.iommu, machine.ecam, machine.power),
        (None, vec![], None)
    );
    assert_eq!((machine.pci.functions, machine.nodes), (vec![], vec![]));
    assert_eq!(machine.processors.get(2).unwrap().smi_count, None);
    assert!(machine.ram.iter().all(|ram| ram.node == 0));
    assert_eq!(machine.serial_ports.len(), 2);
}

#[test]
fn what_is_needed_is_missed_by_its_name() {
    for (path, text) in [
        (
            "/sys/firmware/acpi/tables/APIC",
            "ACPI table APIC: the machine has none, so that its interrupt controllers are unknown",
        ),
        ("/proc/iomem", "/proc/iomem: No such file or directory"),
        ("/proc/ioports", "/proc/ioports: No such file or directory"),
        ("/proc/cmdline", "/proc/cmdline: No such file or directory"),
        (
            "/sys/devices/system/cpu/online",
            "/sys/devices/system/cpu/online: No such file or directory",
        ),
        (
            "/gaol/cpu/1/cpuid",
            "/gaol/cpu/1/cpuid: No such file or directory",
        ),
        (
            "/sys/bus/pci/devices/0000:00:02.0/config",
            "/sys/bus/pci/devices/0000:00:02.0/config: No such file or directory",
        ),
    ] {
        let mut tree = old_board().tree;
        tree.remove(path);
        let found: Vec<String> = problems(tree).iter().map(ToString::to_string).collect();
        assert_eq!(found, [text]);
    }
}

#[test]
fn garbage_is_told_by_its_name() {
    for (path, content, text) in [
        (
            "/sys/firmware/acpi/tables/DMAR",
            &b"DMAR"[..],
            "ACPI table DMAR: 4 bytes are no table",
        ),
        (
            "/sys/firmware/acpi/tables/MCFG",
            &[0xff; 60],
            "ACPI table MCFG: its signature is \"\\xff\\xff\\xff\\xff\"",
        ),
        (
            "/sys/devices/system/cpu/online",
            b"0-7\n",
            "/sys/devices/system/cpu/online: it is empty, or has CPUs that are not present",
        ),
        (
            "/sys/devices/system/cpu/cpu3/topology/core_id",
            b"many\n",
            "/sys/devices/system/cpu/cpu3/topology/core_id: \"many\" is not a number",
        ),
        (
            "/sys/bus/pci/devices/0000:00:02.0/config",
            &[0xff; 256],
            "/sys/bus/pci/devices/0000:00:02.0/config: the function does not answer: all bytes of its header are 0xff",
        ),
        (
            "/sys/bus/pci/devices/0000:00:02.0/config",
            &[0; 64],
            "/sys/bus/pci/devices/0000:00:02.0/config: only 64 bytes of it are shown: the kernel hides the others from everyone but root",
        ),
        (
            "/sys/bus/pci/devices/0000:00:02.0/config",
            &[0; 100],
            "/sys/bus/pci/devices/0000:00:02.0/config: it has 100 bytes instead of 256 or 4096",
        ),
        (
            "/sys/bus/pci/devices/0000:00:02.0/resource",
            b"0x1 0x2\n",
            "/sys/bus/pci/devices/0000:00:02.0/resource: line 1: it is not three hexadecimal numbers",
        ),
        (
            "/sys/bus/pci/devices/0000:00:02.0/resource",
            b"0x2 0x1 0x200\n",
            "/sys/bus/pci/devices/0000:00:02.0/resource: line 1: it ends before it begins",
        ),
        (
            "/sys/bus/pci/devices/nonsense/config",
            b"",
            "/sys/bus/pci/devices: \"nonsense\" in it is no PCI address",
        ),
    ] {
        let mut tree = old_board().tree;
        tree.insert_file(path, content);
        let found = problems(tree);
        let texts: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert_eq!(texts, [text]);
        assert!(!found[0].remedy().is_empty());
    }
}

#[test]
fn several_things_that_are_wrong_are_told_together() {
    let mut tree = old_board().tree;
    tree.insert_file("/proc/iomem", "garbage\n");
    tree.insert_file("/sys/firmware/acpi/tables/DMAR", "garbage");
    tree.insert_file("/sys/devices/system/cpu/present", "garbage\n");
    let found = problems(tree);
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(found.iter().all(|problem| problem.kind() == Kind::Garbage));
}

#[test]
fn functions_in_domains_of_linux_are_left_out() {
    let mut tree = old_board().tree;
    tree.insert_file("/sys/bus/pci/devices/10000:00:02.0/config", [0; 256]);
    let machine = read(tree);
    assert_eq!(machine.pci.left_out, ["10000:00:02.0"]);
    assert!(
        machine
            .notes
            .iter()
            .any(|note| note.contains("10000:00:02.0"))
    );
}

#[test]
fn hidden_addresses_keep_from_collecting() {
    let mut tree = old_board().tree;
    tree.insert_file("/proc/iomem", "00000000-00000000 : System RAM\n");
    let found = collect(Source::tree(tree), |_| ()).unwrap_err();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].kind(), Kind::Permission);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_damage_to_any_file_is_read_or_refused(
        which in any::<prop::sample::Index>(),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        length in any::<prop::sample::Index>(),
    ) {
        let mut tree = two_sockets().tree;
        let files: Vec<String> = tree.paths().map(str::to_owned).collect();
        let path = which.get(&files);
        let mut content = tree.read(path).map(<[u8]>::to_vec).unwrap_or_default();
        if !content.is_empty() {
            for (place, value) in damage {
                let place = place.index(content.len());
                content[place] = value;
            }
            content.truncate(length.index(content.len() + 1));
        }
        tree.insert_file(path, content);
        match Machine::read(&Source::tree(tree)) {
            Ok(machine) => drop(machine.to_string()),
            Err(problems) => assert!(problems.iter().all(|it| !it.remedy().is_empty())),
        }
    }
}
