//! What people read of a machine that the system file describes, message for message; and that no configuration whatever
//! makes the ledger or its explanations panic.

use std::collections::BTreeSet;

use gaol_abi::config::{
    AssignedDevice, Interrupt, MEMORY_ALL_FLAGS, MEMORY_COMMUNICATION, MEMORY_CONTINUED,
    MEMORY_DEVICE, MEMORY_READ, MEMORY_SHARED, MEMORY_WIDTH_8, MEMORY_WIDTH_32, MEMORY_WRITE,
    MSR_ALL_FLAGS, MachineBar, MachineCpu, MachineDevice, MachineRange, MemoryRegion, MsrAccess,
    SYSTEM_DESCRIBES_MACHINE, SYSTEM_STRICT_ROOT,
};
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::check::{any_machine, check, with_system};
use crate::compile::System;
use crate::encode;
use crate::ledger::{Placement, system_faults, unsupported};
use crate::region_fault::{RegionFault, region_fault};
use crate::transcript::{compare, render, transcript};

const SYSTEM: &str = r#"[hypervisor]
address = 0x3a000000

[console]
uart = { port = 0x2f8 }

[machine]
l3-ways = 8
cpus = [
  { apic-id = 0, core = 0 },
  { apic-id = 2, core = 1 },
  { apic-id = 4, core = 2 },
  { apic-id = 6, core = 3 },
]
ram = [
  { at = 0x1000, size = "636 KiB" },
  { at = 0x100000, size = "1023 MiB" },
]
io-apics = [{ at = 0xfd000000, first = 0 }]
pci-configuration = [{ at = 0xe0000000, last-bus = 255 }]
iommus = [{ at = 0xfd100000, size = "4 KiB" }]
reserved-dma = [{ at = 0x3f000000, size = "64 KiB" }]

[[machine.devices]]
address = "0000:00:00.0"
id = "8086:29c0"
group = 0
bridge = true

[[machine.devices]]
address = "0000:00:03.0"
id = "8086:100e"
group = 1
msi = 1
msi-x = 4
bars = [
  { number = 0, kind = "memory", at = 0xf0000000, size = "16 KiB" },
  { number = 1, kind = "ports", at = 0xc000, size = 32 },
]

[[machine.devices]]
address = "0000:00:04.0"
id = "8086:10d3"
group = 2
msi = 8

[[machine.devices]]
address = "0000:00:04.1"
id = "8086:10d4"
group = 2
msi-x = 300

[[machine.devices]]
address = "0000:00:1f.0"
id = "8086:2918"
group = 3
bridge = true

[[machine.devices]]
address = "0000:00:1f.3"
id = "8086:2930"
group = 3

[[machine.devices]]
address = "0000:05:01.0"
id = "1131:7146"
group = 4
shares-requester-id = true
"#;

fn system() -> System {
    System::from_toml("system.toml", SYSTEM)
        .unwrap_or_else(|problem| panic!("{}", render(&problem)))
}

/// A cell file with keys and tables added to it.
fn cell_on(
    system: &System,
    name: &str,
    cpus: &str,
    physical: u64,
    keys: &str,
    tables: &str,
) -> Cell {
    let accepted = match keys.contains("unprotected-dma") {
        true => "",
        false => "unprotected-dma = true\n",
    };
    let text = format!(
        "name = \"{name}\"\ncpus = {cpus}\n{accepted}{keys}\n\n[[memory]]\nname = \"ram\"\nat = 0x0\n\
         physical = {physical:#x}\nsize = \"1 MiB\"\naccess = \"rwx\"\n\n{tables}"
    );
    Cell::compile(&format!("{name}.toml"), &text, Some(system))
        .unwrap_or_else(|problems| panic!("{}", render(&problems[0])))
}

/// The problems of a cell beside a neighbour that has some of everything.
fn problems_of(keys: &str, tables: &str) -> Vec<Problem> {
    problems_on(&system(), keys, tables)
}

fn problems_on(system: &System, keys: &str, tables: &str) -> Vec<Problem> {
    let neighbour = cell_on(
        system,
        "neighbour",
        "[2]",
        0x2000_0000,
        "interrupts = [10]\ncache-ways = { l3 = [0, 1] }",
        "[[devices]]\naddress = \"00:03.0\"\n\n[[msrs]]\nindex = 0x199\naccess = \"rw\"\n\n\
         [[memory]]\nname = \"mailbox\"\nat = 0x200000\nphysical = 0x28000000\nsize = \"8 KiB\"\nshared = true\n",
    );
    let cell = cell_on(system, "cell", "[3]", 0x3000_0000, keys, tables);
    check(any_machine(), system, &[neighbour, cell])
}

fn with_table(table: &str) -> Vec<Problem> {
    problems_of("", table)
}

fn with_region(region: &str) -> Vec<Problem> {
    problems_of(
        "",
        &format!("[[memory]]\nname = \"second\"\nat = 0x800000\n{region}\n"),
    )
}

#[test]
fn the_memory_of_a_described_machine() {
    let device = |more| with_region(&format!("kind = \"device\"\n{more}"));
    compare(
        "the-memory-of-a-described-machine",
        &transcript([
            (
                "PCI configuration",
                device("physical = 0xe0000000\nsize = 4096"),
            ),
            ("IOAPIC", device("physical = 0xfd000000\nsize = 4096")),
            ("IOMMU", device("physical = 0xfd100000\nsize = 4096")),
            (
                "reserved",
                with_region("physical = 0x3effe000\nsize = \"16 KiB\""),
            ),
            (
                "device of the neighbour",
                device("physical = 0xf0003000\nsize = 4096"),
            ),
            (
                "no memory",
                with_region("physical = 0x40000000\nsize = 4096"),
            ),
            (
                "no memory for DMA",
                with_region("physical = 0xd0000000\nsize = 4096\ndma = true"),
            ),
            (
                "shared otherwise",
                with_table(
                    "[[memory]]\nname = \"mailbox\"\nat = 0x200000\nphysical = 0x28000000\nsize = \"4 KiB\"\nshared = true",
                ),
            ),
            (
                "shared under another name",
                with_region("physical = 0x28000000\nsize = \"8 KiB\"\nshared = true"),
            ),
            (
                "loadable and shared",
                with_region("size = 4096\nloadable = true\nshared = true"),
            ),
            (
                "cached device",
                device("physical = 0xd0000000\nsize = 4096\ncache = \"write-back\""),
            ),
            ("widths of RAM", with_region("size = 4096\nwidths = [8]")),
            (
                "cached widths",
                device(
                    "physical = 0xd0000000\nsize = 4096\nwidths = [8]\ncache = \"write-combining\"",
                ),
            ),
            (
                "odd size",
                device("physical = 0xd0000000\nsize = 6\nwidths = [32]"),
            ),
            (
                "odd offset",
                device("physical = 0xd0000010\nsize = 16\nwidths = [32]"),
            ),
            (
                "over the end of a page",
                with_table(
                    "[[memory]]\nname = \"second\"\nkind = \"device\"\nat = 0x800ff0\nphysical = 0xd0000ff0\nsize = 32\nwidths = [32]",
                ),
            ),
        ]),
    );
}

#[test]
fn the_hardware_of_a_cell() {
    let iommu = "iommus = [{ at = 0xfd100000, size = \"4 KiB\" }]\n";
    let without_iommu = System::from_toml("system.toml", &SYSTEM.replace(iommu, "")).unwrap();
    compare(
        "the-hardware-of-a-cell",
        &transcript([
            (
                "function unknown",
                with_table("[[devices]]\naddress = \"00:07.0\""),
            ),
            (
                "function of another",
                with_table("[[devices]]\naddress = \"00:03.0\""),
            ),
            ("bridge", with_table("[[devices]]\naddress = \"00:00.0\"")),
            (
                "group split",
                with_table("[[devices]]\naddress = \"00:04.0\""),
            ),
            (
                "group split from a bridge",
                with_table("[[devices]]\naddress = \"00:1f.3\""),
            ),
            (
                "function twice",
                with_table(
                    "[[devices]]\naddress = \"00:04.0\"\n\n[[devices]]\naddress = \"00:04.1\"\n\n[[devices]]\nid = \"8086:10d3\"",
                ),
            ),
            (
                "more vectors than it has",
                with_table(
                    "[[devices]]\naddress = \"00:04.0\"\nvectors = 9\n\n[[devices]]\naddress = \"00:04.1\"",
                ),
            ),
            (
                "more vectors than the CPUs have",
                problems_of(
                    "interrupts = [1, 2]",
                    "[[devices]]\naddress = \"00:04.0\"\n\n[[devices]]\naddress = \"00:04.1\"\nvectors = 183",
                ),
            ),
            (
                "no IOMMU in front of it",
                problems_on(
                    &without_iommu,
                    "unprotected-dma = false",
                    "[[devices]]\naddress = \"00:04.0\"\n\n[[devices]]\naddress = \"00:04.1\"\nbus-master = false",
                ),
            ),
            (
                "a bridge speaks for it",
                with_table("[[devices]]\naddress = \"05:01.0\""),
            ),
            (
                "ports of a function",
                problems_of("ports = [{ first = 0xbff8, count = 16 }]", ""),
            ),
            ("line unknown", problems_of("interrupts = [24]", "")),
            ("line of another", problems_of("interrupts = [9, 10]", "")),
            ("line twice", problems_of("interrupts = [9, 9]", "")),
            (
                "ways apart",
                problems_of("cache-ways = { l3 = [2, 4] }", ""),
            ),
            (
                "no such way",
                problems_of("cache-ways = { l3 = [7, 8] }", ""),
            ),
            ("no ways", problems_of("cache-ways = { l2 = [0] }", "")),
            (
                "ways of another",
                problems_of("cache-ways = { l3 = [1, 2] }", ""),
            ),
            (
                "no way left",
                problems_of("cache-ways = { l3 = [2, 3, 4, 5, 6, 7] }", ""),
            ),
            ("register kept", with_table("[[msrs]]\nindex = 0x480")),
            (
                "register not written",
                with_table("[[msrs]]\nindex = 0x10\naccess = \"rw\""),
            ),
            (
                "register out of reach",
                with_table("[[msrs]]\nindex = 0x4000"),
            ),
            ("register of another", with_table("[[msrs]]\nindex = 0x199")),
            (
                "register twice",
                with_table("[[msrs]]\nindex = 0x198\n\n[[msrs]]\nindex = 0x198"),
            ),
        ]),
    );
}

#[test]
fn all_problems_of_a_cell_at_once() {
    let problems = problems_of(
        "interrupts = [10]\nports = [{ first = 0xcf8, count = 1 }]\nreset-address = 0x200000",
        "[[devices]]\naddress = \"00:03.0\"\n\n[[msrs]]\nindex = 0x1b",
    );
    compare(
        "all-problems-of-a-cell-at-once",
        &transcript([("all at once", problems)]),
    );
}

#[test]
fn what_the_hypervisor_can_not_do_yet() {
    let refused = |keys: &str| {
        let system = system();
        let cell = cell_on(&system, "cell", "[3]", 0x3000_0000, keys, "");
        let refusal = unsupported(&cell.view()).unwrap();
        vec![explain(refusal, &cell, &Ledger::new(), &any_machine())]
    };
    let told = |keys: &str, reason: Reason, detail: u64| {
        let cell = cell_on(&system(), "cell", "[3]", 0x3000_0000, keys, "");
        let refusal = Refusal::new(reason, detail);
        vec![explain(refusal, &cell, &Ledger::new(), &any_machine())]
    };
    compare(
        "what-the-hypervisor-can-not-do-yet",
        &transcript([
            (
                "remapped interrupts",
                told(
                    "interrupts = [9]",
                    Reason::Unsupported,
                    gaol_abi::outcome::Unsupported::RemappedInterrupts.0,
                ),
            ),
            (
                "interrupts of Linux",
                told("interrupts = [8, 9]", Reason::InterruptInUse, 9),
            ),
            ("cache ways", refused("cache-ways = { l3 = [1] }")),
        ]),
    );
}

/// The problems of the system file with one piece of text replaced.
fn system_with(old: &str, new: &str) -> Vec<Problem> {
    assert_eq!(SYSTEM.matches(old).count(), 1, "{old}");
    let system = match System::compile("system.toml", &SYSTEM.replace(old, new)) {
        Ok(system) => system,
        Err(problems) => return problems,
    };
    let machine = with_system(any_machine(), &system);
    let mut problems = Vec::new();
    system_faults(&machine, &mut |refusal| {
        problems.push(explain_system(refusal, &system, &machine));
    });
    problems
}

#[test]
fn the_description_of_a_machine() {
    let root = |lists: &str| {
        system_with(
            "[machine]\n",
            &format!("[root]\npolicy = \"strict\"\n{lists}\n\n[machine]\n"),
        )
    };
    let listed = |lists: &str| {
        root(&format!(
            "memory = [{{ name = \"low\", at = 0x0, size = \"64 KiB\", access = \"rwx\" }}]\n{lists}"
        ))
    };
    let memory = |at: &str, more: &str| {
        root(&format!(
            "memory = [{{ name = \"m\", at = {at}, size = \"64 KiB\", {more} }}]"
        ))
    };
    compare(
        "the-description-of-a-machine",
        &transcript([
            ("APIC id twice", system_with("apic-id = 4", "apic-id = 2")),
            (
                "range too high",
                system_with("at = 0x1000,", "at = 0xfffffffff000,"),
            ),
            (
                "too many pins",
                system_with("first = 0 }", "first = 0, pins = 257 }"),
            ),
            (
                "hypervisor on reserved memory",
                system_with("at = 0x3f000000", "at = 0x3a3f0000"),
            ),
            (
                "hypervisor on registers",
                system_with("at = 0xf0000000", "at = 0x3a000000"),
            ),
            (
                "hypervisor on an IOAPIC",
                system_with("address = 0x3a000000", "address = 0xfec00000"),
            ),
            (
                "register beyond the ports",
                system_with("at = 0xc000", "at = 0xfff0"),
            ),
            ("empty register", system_with("size = 32", "size = 0")),
            (
                "root on the hypervisor",
                memory("0x39ff8000", "access = \"rwx\""),
            ),
            (
                "root on the APIC",
                memory("0xfee00000", "kind = \"device\""),
            ),
            (
                "root on an IOMMU",
                memory("0xfd100000", "kind = \"device\""),
            ),
            (
                "root's executable registers",
                memory("0xd0000000", "kind = \"device\", access = \"rx\""),
            ),
            (
                "root's memory twice",
                root(
                    "memory = [{ name = \"a\", at = 0x100000, size = \"1 MiB\" }, { name = \"b\", at = 0x1ff000, size = \"1 MiB\" }]",
                ),
            ),
            (
                "root's ports twice",
                listed("ports = [{ first = 0x60, count = 5 }, { first = 0x64, count = 1 }]"),
            ),
            (
                "root on the console",
                listed("ports = [{ first = 0x2f0, count = 16 }]"),
            ),
            ("root's VMX", listed("msrs = [{ index = 0x480 }]")),
            (
                "root's register twice",
                listed("msrs = [{ index = 0x200 }, { index = 0x200 }]"),
            ),
        ]),
    );
    assert!(system_with("msi = 8", "msi = 4").is_empty());
}

/// Flags, in which each kind of fault can be.
fn flags_of_regions() -> Vec<u64> {
    let kinds = [
        MEMORY_READ,
        MEMORY_READ | MEMORY_WRITE | MEMORY_DEVICE,
        MEMORY_READ | MEMORY_WRITE | MEMORY_COMMUNICATION,
    ];
    let mut all: Vec<u64> = (0..256).collect();
    for kind in kinds {
        for cache in [0u64, 1, 2, 3, 5, 6, 7] {
            for widths in [
                0,
                MEMORY_WIDTH_8,
                MEMORY_WIDTH_32,
                MEMORY_WIDTH_8 | MEMORY_WIDTH_32,
            ] {
                for more in [0, MEMORY_SHARED, MEMORY_CONTINUED] {
                    all.push(kind | cache << 12 | widths | more);
                }
            }
        }
    }
    all
}

/// Every fault that a region can have is one that the ledger refuses, and the other way round.
#[test]
fn regions_are_refused_for_a_fault_that_can_be_named() {
    let machine = any_machine();
    let places = [0u64, 0x10, 0xff2, 0x3000_0000, 1 << 48, !0xfff];
    let sizes = [0u64, 0x10, 0x800, 0x1000, 0x2000, !0xfff];
    let mut seen = BTreeSet::new();
    for flags in flags_of_regions() {
        for guest in places {
            for physical in places {
                for size in sizes {
                    let region = MemoryRegion {
                        name: encode::name("region").unwrap(),
                        physical,
                        guest,
                        size,
                        flags,
                    };
                    let cell = encode::Cell {
                        name: encode::name("cell").unwrap(),
                        cpus: CpuSet::from_iter([1]),
                        memory: vec![region],
                        ..encode::Cell::default()
                    };
                    let binary = cell.encode();
                    let view = crate::CellView::parse(binary.bytes()).unwrap();
                    let verdict = Ledger::new().check(&machine, &view);
                    let is_refused =
                        verdict.is_err_and(|refusal| refusal.reason == Reason::RegionInvalid);
                    let fault = region_fault(&region, &[], machine.physical_limit);
                    let is_communication = flags & MEMORY_COMMUNICATION != 0;
                    let is_placed = physical != 0 || is_communication;
                    let has_fault = fault != RegionFault::NotPlaced || !is_placed;
                    assert_eq!(is_refused, has_fault, "{region:?} {fault:?} {verdict:?}");
                    seen.insert(format!("{fault:?}"));
                }
            }
        }
    }
    assert_eq!(seen.len(), 22, "{seen:?}");
}

fn any_number() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        Just(0),
        Just(u64::MAX),
        (0u64..64).prop_map(|page| page << 12),
        (0u64..64).prop_map(|page| 0xfec0_0000 + (page << 16)),
    ]
}

fn any_region() -> impl Strategy<Value = MemoryRegion> {
    (
        0u8..4,
        any_number(),
        any_number(),
        any_number(),
        any::<u64>(),
    )
        .prop_map(|(name, physical, guest, size, flags)| MemoryRegion {
            name: encode::name(&format!("r{name}")).unwrap(),
            physical,
            guest,
            size,
            flags: flags & MEMORY_ALL_FLAGS,
        })
}

fn any_msr() -> impl Strategy<Value = MsrAccess> {
    (any::<u32>(), 0..=MSR_ALL_FLAGS, any::<u64>(), any::<bool>()).prop_map(
        |(msr, flags, write_mask, is_low)| MsrAccess {
            msr: if is_low { msr & 0xfff } else { msr },
            flags,
            write_mask,
        },
    )
}

fn any_ports() -> impl Strategy<Value = PortRange> {
    (any::<u16>(), any::<u16>()).prop_map(|(first, count)| PortRange { first, count })
}

fn any_cell() -> impl Strategy<Value = encode::Cell> {
    let device =
        (0u16..2, 0u16..9, any::<u16>()).prop_map(|(segment, function, vectors)| AssignedDevice {
            segment,
            function,
            vectors,
            flags: 0,
        });
    let line = any::<u32>().prop_map(|number| Interrupt { number });
    (
        (
            0u8..4,
            vec(any::<u8>(), 0..4),
            any_number(),
            any::<u32>(),
            any::<u32>(),
        ),
        (
            vec(any_region(), 0..6),
            vec(any_msr(), 0..4),
            vec(line, 0..4),
            vec(device, 0..4),
            vec(any_ports(), 0..4),
        ),
    )
        .prop_map(
            |(
                (name, cpus, reset_address, l3_ways, l2_ways),
                (memory, msrs, interrupts, devices, ports),
            )| {
                encode::Cell {
                    name: encode::name(&format!("c{name}")).unwrap(),
                    cpus: cpus.into_iter().map(u32::from).collect(),
                    reset_address,
                    l3_ways,
                    l2_ways,
                    memory,
                    msrs,
                    interrupts,
                    devices,
                    ports,
                    ..encode::Cell::default()
                }
            },
        )
}

fn any_system() -> impl Strategy<Value = encode::System> {
    let range = (
        any_number(),
        any_number(),
        0u16..8,
        any::<u16>(),
        any::<u32>(),
    )
        .prop_map(|(physical, size, kind, extent, number)| MachineRange {
            physical,
            size,
            kind,
            extent,
            number,
        });
    let bar = (any_number(), any_number(), 0u16..9, 0u8..8, any::<u8>()).prop_map(
        |(address, size, device, number, flags)| MachineBar {
            address,
            size,
            device,
            number,
            flags,
            reserved: 0,
        },
    );
    let cpu = (0u32..9, 0u16..4, 0u16..3).prop_map(|(apic_id, l3, flags)| MachineCpu {
        apic_id,
        package: l3,
        core: l3,
        l2: l3,
        l3,
        node: 0,
        flags,
    });
    let device = (0u16..2, 0u16..9, 0u16..4, 0u16..3, any::<u16>()).prop_map(
        |(segment, function, group, flags, vectors)| MachineDevice {
            segment,
            function,
            group,
            flags,
            vendor: 0,
            device: 0,
            msi_vectors: vectors,
            msix_vectors: 0,
        },
    );
    (
        (
            vec(range, 0..6),
            vec(bar, 0..6),
            vec(cpu, 0..9),
            vec(device, 0..6),
        ),
        (
            vec(any_region(), 0..4),
            vec(any_msr(), 0..4),
            vec(any_ports(), 0..4),
        ),
        (
            0..=(SYSTEM_STRICT_ROOT | SYSTEM_DESCRIBES_MACHINE),
            any::<u16>(),
            0u64..4,
        ),
    )
        .prop_map(
            |(
                (ranges, bars, cpus, devices),
                (root_memory, root_msrs, root_ports),
                (flags, l3_ways, place),
            )| {
                let mut system = encode::System {
                    flags,
                    ranges,
                    bars,
                    root_memory,
                    root_msrs,
                    cpus,
                    root_ports,
                    devices,
                    ..encode::System::default()
                };
                system.header.name = encode::name("root").unwrap();
                system.header.hypervisor_physical = place << 21;
                system.header.hypervisor_size = 4 << 20;
                system.header.l3_ways = l3_ways;
                system
            },
        )
}

proptest! {
    /// Whatever the configurations hold, they are judged and explained; what is accepted can be entered and taken out.
    #[test]
    fn nothing_that_configurations_hold_makes_the_ledger_panic(
        system in any_system(),
        cells in vec(any_cell(), 1..4),
    ) {
        let binary = system.encode();
        let system = System::from_binary("system.bin", binary.bytes()).unwrap();
        let machine = with_system(any_machine(), &system);
        system_faults(&machine, &mut |refusal| {
            assert!(!explain_system(refusal, &system, &machine).message().is_empty());
        });
        let mut ledger = Ledger::new();
        for cell in cells {
            let binary = cell.encode();
            let cell = Cell::from_binary("cell.bin", binary.bytes()).unwrap();
            let view = cell.view();
            for placement in [Placement::Complete, Placement::Open] {
                let mut is_good = true;
                ledger.faults(&machine, &view, placement, &mut |refusal| {
                    is_good = false;
                    assert!(!explain(refusal, &cell, &ledger, &machine).message().is_empty());
                });
                prop_assert_eq!(ledger.check_with(&machine, &view, placement).is_ok(), is_good);
                if is_good && placement == Placement::Open {
                    let before = ledger.clone();
                    let id = ledger.free_id().unwrap();
                    ledger.claim(id, &view).unwrap();
                    ledger.release(id).unwrap();
                    prop_assert_eq!(&ledger, &before);
                    ledger.claim(id, &view).unwrap();
                }
            }
        }
    }
}
