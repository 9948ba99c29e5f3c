//! Plans for all collected machines and for made-up ones: which CPUs, why, and what is refused.

use gaol_machine::processors::Processor;

use super::*;
use crate::create::tests::{collected, collections, compare};
use crate::create::{Options, create};

fn request() -> Request {
    Request {
        name: "rt".to_owned(),
        cpus: 1,
        memory: 64 << 20,
        devices: Vec::new(),
        unprotected_dma: false,
        shared_with_root: 0,
        image: None,
    }
}

fn planned(machine: &Machine, request: &Request) -> Result<Plan, Refused> {
    let created = create("system.toml", machine, &[], &Options::default()).unwrap();
    plan(machine, &created, request)
}

fn cpus(machine: &Machine, count: u32, devices: &[&str]) -> (Vec<u32>, String) {
    let plan = planned(
        machine,
        &Request {
            cpus: count,
            devices: devices.iter().map(|it| (*it).to_owned()).collect(),
            unprotected_dma: true,
            ..request()
        },
    );
    let plan = plan.unwrap();
    let cpus = plan.cell.view().cpus().iter().collect();
    (cpus, plan.choices[0].why.clone())
}

/// Two threads a core, siblings `cores` apart, as Linux numbers them.
fn with_cores(cores: u32, threads: u32) -> Machine {
    let mut machine = collected("two-sockets");
    let first = machine.processors.all[0].clone();
    let count = cores * threads;
    machine.processors.all = (0..count)
        .map(|id| Processor {
            id,
            apic_id: Some(id),
            core: id % cores,
            siblings: (0..count)
                .filter(|it| it % cores == id % cores && *it != id)
                .collect(),
            l2: Some(id % cores),
            l3: Some(0),
            node: 0,
            package: 0,
            smi_count: Some(0),
            ..first.clone()
        })
        .collect();
    machine.nodes.clear();
    machine.linux_parameters.clear();
    machine
}

fn words(refused: &Refused) -> String {
    match refused {
        Refused::Request(message, remedy) => format!("{message}\n  {remedy}\n"),
        Refused::Configuration(problems) => {
            let lines = problems
                .iter()
                .map(|it| format!("{it}\n  {}\n", it.remedy()));
            lines.collect()
        }
        Refused::Machine(_) => panic!("{refused:?}"),
    }
}

#[test]
fn a_plan_for_each_collection() {
    let mut text = String::new();
    for (name, _) in collections() {
        let machine = collected(&name);
        let request = Request {
            shared_with_root: 100_000,
            image: Some(("rt.bin".to_owned(), 60_000)),
            ..request()
        };
        let plan = planned(&machine, &request).unwrap();
        assert!(!plan.cell.view().cpus().contains(0));
        text.push_str(&format!("# {name}\n{}\n", plan.toml));
        for choice in &plan.choices {
            text.push_str(&format!(
                "{}: {}\n  {}\n",
                choice.what, choice.value, choice.why
            ));
        }
        text.push_str(&format!(
            "{}\n\n",
            commands(&request, "plans/rt").join("\n")
        ));
    }
    compare("plan-collections", &text);
}

#[test]
fn cpus_are_near_to_the_device() {
    let machine = collected("two-sockets");
    let (near_one, why) = cpus(&machine, 2, &["81:00.0"]);
    assert!(
        near_one
            .iter()
            .all(|cpu| machine.processors.get(*cpu).unwrap().node == 1)
    );
    assert!(why.contains("Node 1 is near to 0000:81:00.0."), "{why}");
    let (near_zero, why) = cpus(&machine, 3, &["01:00.0"]);
    assert_eq!(near_zero, [1, 2, 3], "{why}");
    let (crossing, why) = cpus(&machine, 4, &["01:00.0"]);
    assert_eq!(crossing.len(), 4);
    assert!(why.contains("and CPU 7 is not"), "{why}");
    let (all, why) = cpus(&machine, 7, &[]);
    assert_eq!(all, [1, 2, 3, 4, 5, 6, 7]);
    assert!(why.contains("No node has so many: nodes 0-1."), "{why}");
}

#[test]
fn cores_are_not_split_as_long_as_it_can_be_helped() {
    let machine = with_cores(4, 2);
    let (two, why) = cpus(&machine, 2, &[]);
    assert_eq!(two, [3, 7]);
    assert!(why.contains("Whole cores"), "{why}");
    let (one, why) = cpus(&machine, 1, &[]);
    assert_eq!(one, [7]);
    assert!(why.contains("CPU 7 shares its core with CPU 3"), "{why}");
    let (seven, why) = cpus(&machine, 7, &[]);
    assert_eq!(seven, [1, 2, 3, 4, 5, 6, 7]);
    assert!(why.contains("CPU 4 shares its core with CPU 0"), "{why}");
    // A core without hyper-threads is better than half of one.
    let mut machine = with_cores(4, 2);
    let single = Processor {
        id: 8,
        apic_id: Some(8),
        siblings: Vec::new(),
        l2: Some(8),
        ..machine.processors.all[0].clone()
    };
    machine.processors.all.push(single);
    let (one, why) = cpus(&machine, 1, &[]);
    assert_eq!(one, [8]);
    assert!(!why.contains("shares"), "{why}");
}

#[test]
fn isolated_cpus_and_those_without_smis_come_first() {
    let mut machine = with_cores(8, 1);
    assert_eq!(cpus(&machine, 1, &[]).0, [7]);
    machine.processors.all[7].smi_count = Some(12);
    let (one, why) = cpus(&machine, 1, &[]);
    assert_eq!(one, [6]);
    assert!(
        why.contains("No system management interrupts were seen"),
        "{why}"
    );
    machine.linux_parameters = vec!["isolcpus=managed_irq,domain,2-3".to_owned()];
    let (two, why) = cpus(&machine, 2, &[]);
    assert_eq!(two, [2, 3]);
    assert!(why.contains("Linux was told to keep off"), "{why}");
    let (three, why) = cpus(&machine, 3, &[]);
    assert_eq!(three, [2, 3, 6]);
    assert!(why.contains("too few"), "{why}");
    for cpu in &mut machine.processors.all {
        cpu.smi_count = Some(1);
    }
    let (_, why) = cpus(&machine, 1, &[]);
    assert!(why.contains("which Gaol can't hold off"), "{why}");
}

#[test]
fn machines_with_many_cpus_are_planned() {
    let machine = collected("many-cpus");
    let count = machine.processors.all.len();
    assert!(count > 64);
    let most = available_cpus(&machine);
    assert_eq!(usize::try_from(most).unwrap(), count - 1);
    // Its CPUs 40 to 47 are isolated, their hyper-threads 88 to 95 are not.
    let (one, why) = cpus(&machine, 1, &[]);
    assert_eq!(one, [47]);
    assert!(
        why.contains("Linux was told to keep off (isolcpus"),
        "{why}"
    );
    for wanted in [1, 2, 63, 64, most] {
        let (chosen, _) = cpus(&machine, wanted, &[]);
        assert_eq!(chosen.len(), usize::try_from(wanted).unwrap());
        assert!(!chosen.contains(&0));
    }
}

#[test]
fn groups_go_as_a_whole() {
    let mut machine = collected("two-sockets");
    let group = machine.pci.get("01:00.0".parse().unwrap()).unwrap().group;
    for function in &mut machine.pci.functions {
        if function.address.to_string() == "0000:01:00.1" {
            function.group = group;
        }
    }
    let wanted = |devices: &[&str]| Request {
        devices: devices.iter().map(|it| (*it).to_owned()).collect(),
        unprotected_dma: true,
        ..request()
    };
    let refused = planned(&machine, &wanted(&["01:00.0"])).unwrap_err();
    assert_eq!(
        words(&refused),
        "0000:01:00.0 can't be kept apart from what Linux uses: 0000:01:00.1 (Ethernet controller, i40e)\n  \
         Give the cell the whole group, which takes them from Linux: --device 0000:01:00.1\n"
    );
    let plan = planned(&machine, &wanted(&["01:00.0", "0000:01:00.1"])).unwrap();
    assert_eq!(plan.cell.view().devices().len(), 2);
    for function in &mut machine.pci.functions {
        function.driver = None;
    }
    let plan = planned(&machine, &wanted(&["01:00.0"])).unwrap();
    assert_eq!(plan.cell.view().devices().len(), 2);
    let device = plan
        .choices
        .iter()
        .find(|choice| choice.what == "device")
        .unwrap();
    assert!(
        device.why.contains("can't be kept apart from 0000:01:00.1"),
        "{}",
        device.why
    );
}

#[test]
fn what_can_not_be_had_is_refused_with_what_could_be() {
    let machine = collected("two-sockets");
    let base = request();
    let device = |name: &str| Request {
        devices: vec![name.to_owned()],
        ..request()
    };
    let image = |size: u64, memory: u64| Request {
        image: Some(("big.bin".to_owned(), size)),
        memory,
        ..request()
    };
    let mut text = String::new();
    for (what, request) in [
        (
            "no CPU",
            Request {
                cpus: 0,
                ..base.clone()
            },
        ),
        (
            "too many CPUs",
            Request {
                cpus: 8,
                ..base.clone()
            },
        ),
        (
            "no memory",
            Request {
                memory: 0,
                ..base.clone()
            },
        ),
        (
            "too much memory",
            Request {
                memory: 1 << 40,
                ..base.clone()
            },
        ),
        (
            "all memory there could be",
            Request {
                memory: u64::MAX,
                ..base.clone()
            },
        ),
        (
            "a bad name",
            Request {
                name: "a b".to_owned(),
                ..base.clone()
            },
        ),
        (
            "a path as a name",
            Request {
                name: "../x".to_owned(),
                ..base.clone()
            },
        ),
        (
            "a number as a name",
            Request {
                name: "12".to_owned(),
                ..base.clone()
            },
        ),
        (
            "a taken name",
            Request {
                name: "root".to_owned(),
                ..base.clone()
            },
        ),
        ("no device", device("00:1d.7")),
        ("no address", device("eth0")),
        ("a bridge", device("00:01.0")),
        ("one of a group with a bridge", device("00:1f.4")),
        ("an id of two", device("8086:1572")),
        ("a large image", image(2 << 20, 64 << 20)),
        ("an image without room", image(100_000, 64 << 10)),
    ] {
        let refused = planned(&machine, &request).unwrap_err();
        text.push_str(&format!("# {what}\n{}\n", words(&refused)));
    }
    let machine = collected("old-board");
    let request = device("05:01.0");
    let refused = planned(&machine, &request).unwrap_err();
    text.push_str(&format!("# one of conventional PCI\n{}\n", words(&refused)));
    compare("plan-refusals", &text);
}

#[test]
fn memory_is_laid_out_in_whole_pages() {
    let machine = collected("two-sockets");
    for (memory, shared, regions) in [
        (1, 0, "ram 0x0 4 KiB, communication 0x100000 4 KiB"),
        (
            1 << 20,
            1,
            "ram 0x0 1 MiB, communication 0x100000 4 KiB, shared 0x200000 4 KiB",
        ),
        (
            (1 << 20) + 1,
            3 << 20,
            "ram 0x0 1 MiB, communication 0x100000 4 KiB, shared 0x200000 3 MiB, memory 0x600000 2 MiB",
        ),
        (
            5 << 30,
            0,
            "ram 0x0 1 MiB, communication 0x100000 4 KiB, memory 0x200000 3070 MiB, memory-high 0x100000000 2050 MiB",
        ),
    ] {
        let plan = planned(
            &machine,
            &Request {
                memory,
                shared_with_root: shared,
                ..request()
            },
        );
        let plan = plan.unwrap();
        let view = plan.cell.view();
        let said: Vec<String> = view
            .memory()
            .iter()
            .map(|region| {
                let name = crate::binary::name_text(&region.name).unwrap();
                format!("{name} {:#x} {}", region.guest, Size(region.size))
            })
            .collect();
        assert_eq!(said.join(", "), regions);
    }
}
