//! Every key of both files, right and wrong.

use gaol_abi::config::{
    AssignedDevice, CELL_CONSOLE, CELL_IGNORE_UNASSIGNED_PORTS, CELL_PASSIVE, Interrupt,
    MACHINE_BAR_64, MACHINE_BAR_PORTS, MACHINE_BAR_PREFETCHABLE, MACHINE_CPU_SMIS,
    MACHINE_DEVICE_BRIDGE, MEMORY_DEVICE, MEMORY_DMA, MEMORY_READ, MEMORY_SHARED,
    MEMORY_TYPE_WRITE_COMBINING, MEMORY_WIDTH_8, MEMORY_WIDTH_32, MEMORY_WRITE, MSR_PER_CPU,
    MSR_READ, MSR_WRITE, MachineBar, MachineCpu, MachineDevice, MachineRange, MsrAccess, PortRange,
    RANGE_IO_APIC, RANGE_IOMMU, RANGE_PCI_CONFIGURATION, RANGE_RAM, RANGE_RESERVED_DMA,
    ROOT_FAILURE_CONTINUE, ROOT_FAILURE_RESET, WATCHDOG_HALT, WATCHDOG_RECORD, WATCHDOG_RESTART,
};

use super::*;
use crate::transcript::{compare, transcript};

const SYSTEM: &str = r#"name = "linux"
deadline = "5 s"

[hypervisor]
memory = "6 MiB"
address = 0x3a000000

[console]
uart = { port = 0x2f8, baud = 57600 }

[root]
policy = "strict"
ports = [{ first = 0x60, count = 5 }]
msrs = [{ index = 0x1a0, access = "rw", write-mask = 0x40000 }]

[[root.memory]]
name = "ram"
at = 0x0
size = "1 GiB"
access = "rwx"
dma = true

[machine]
l3-ways = 11
l2-ways = 8
cpus = [
    { apic-id = 0, core = 0, l3 = 0 },
    { apic-id = 1, core = 0, l3 = 0, smis = true },
    { apic-id = 64, package = 1, core = 8, l3 = 1, node = 1 },
]
ram = [
    { at = 0x1000, size = "636 KiB" },
    { at = 0x100000000, size = "2 GiB", node = 1 },
]
io-apics = [
    { at = 0xfec00000, first = 0 },
    { at = 0xfec01000, first = 24, pins = 120 },
]
pci-configuration = [{ at = 0xb0000000, last-bus = 255 }]
iommus = [{ at = 0xfed90000, size = "4 KiB" }, { at = 0xfed91000, size = "4 KiB" }]
reserved-dma = [{ at = 0x7b000000, size = "8 MiB" }]

[[machine.devices]]
address = "0000:00:1c.0"
id = "8086:a110"
group = 9
bridge = true

[[machine.devices]]
address = "0000:00:03.0"
id = "8086:100e"
group = 3
msi = 4
msi-x = 40
bars = [
    { number = 4, kind = "memory64", at = 0x2000000000, size = "64 MiB", prefetchable = true },
    { number = 0, kind = "memory", at = 0xfeb80000, size = "128 KiB" },
    { number = 1, kind = "ports", at = 0xc040, size = 64 },
]

[[machine.devices]]
address = "0001:02:00.1"
id = "15b3:1017"
group = 12
msi = 1
"#;

const CELL: &str = r#"name = "network"
cpus = [2, 3]
reset-address = 0x1000
console = true
passive = true
unassigned-io = "ignore"
on-violation = "park-cell"
shutdown-timeout = "1500 ms"
ports = [{ first = 0x3f8, count = 8 }]
interrupts = [4, 11]
cache-ways = { l3 = [2, 3], l2 = [0] }

[[memory]]
name = "ram"
at = 0x0
size = "1 MiB"
access = "rwx"
loadable = true

[[memory]]
name = "ring"
at = 0x400000
size = "2 MiB"
shared = true
dma = true

[[memory]]
name = "frame"
kind = "device"
at = 0x800000
physical = 0xe0000000
size = "1 MiB"
cache = "write-combining"

[[memory]]
name = "gpio"
kind = "device"
at = 0xd00000
physical = 0xfed00000
size = "4 KiB"
widths = [8, 32]

[[devices]]
id = "8086:100e"

[[devices]]
address = "0001:02:00.1"
vectors = 1

[[msrs]]
index = 0x1a4

[[msrs]]
index = 0x38f
access = "rw"
write-mask = "0x8000000000000001"
per-cpu = true
"#;

fn system() -> System {
    System::compile("system.toml", SYSTEM).unwrap_or_else(|problems| panic!("{problems:#?}"))
}

fn problems_of_system(text: &str) -> Vec<Problem> {
    System::compile("system.toml", text)
        .err()
        .unwrap_or_default()
}

fn problems_of_cell(text: &str) -> Vec<Problem> {
    Cell::compile("cell.toml", text, Some(&system()))
        .err()
        .unwrap_or_default()
}

/// The system file with one piece of text replaced.
fn system_with(old: &str, new: &str) -> Vec<Problem> {
    assert_eq!(SYSTEM.matches(old).count(), 1, "{old}");
    problems_of_system(&SYSTEM.replace(old, new))
}

/// The cell file with one piece of text replaced.
fn cell_with(old: &str, new: &str) -> Vec<Problem> {
    assert_eq!(CELL.matches(old).count(), 1, "{old}");
    problems_of_cell(&CELL.replace(old, new))
}

#[test]
fn a_system_says_what_its_file_says() {
    let system = system();
    let view = system.view();
    let header = view.header();
    assert_eq!((view.name(), header.deadline_milliseconds), ("linux", 5000));
    assert!(view.is_strict() && view.describes_machine());
    assert_eq!(header.hypervisor_size, 6 << 20);
    assert_eq!(header.hypervisor_physical, 0x3a00_0000);
    assert_eq!((header.console_address, header.console_divisor), (0x2f8, 2));
    assert_eq!((header.l3_ways, header.l2_ways), (11, 8));
    let [root] = view.root_memory() else { panic!() };
    assert_eq!((root.physical, root.guest, root.size), (0, 0, 1 << 30));
    assert_eq!(
        view.root_ports(),
        [PortRange {
            first: 0x60,
            count: 5
        }]
    );
    assert_eq!(
        view.root_msrs(),
        [MsrAccess {
            msr: 0x1a0,
            flags: MSR_READ | MSR_WRITE,
            write_mask: 0x40000
        }]
    );
    let cpu = |apic_id, package, core, l3, node, flags| MachineCpu {
        apic_id,
        package,
        core,
        l2: core,
        l3,
        node,
        flags,
    };
    assert_eq!(
        view.machine_cpus(),
        [
            cpu(0, 0, 0, 0, 0, 0),
            cpu(1, 0, 0, 0, 0, MACHINE_CPU_SMIS),
            cpu(64, 1, 8, 1, 1, 0)
        ]
    );
    let range = |physical, size, kind, extent, number| MachineRange {
        physical,
        size,
        kind,
        extent,
        number,
    };
    assert_eq!(
        view.ranges(),
        [
            range(0x1000, 636 << 10, RANGE_RAM, 0, 0),
            range(1 << 32, 2 << 30, RANGE_RAM, 0, 1),
            range(0xfec0_0000, 4096, RANGE_IO_APIC, 24, 0),
            range(0xfec0_1000, 4096, RANGE_IO_APIC, 120, 24),
            range(0xb000_0000, 256 << 20, RANGE_PCI_CONFIGURATION, 0xff00, 0),
            range(0xfed9_0000, 4096, RANGE_IOMMU, 0, 0),
            range(0xfed9_1000, 4096, RANGE_IOMMU, 0, 1),
            range(0x7b00_0000, 8 << 20, RANGE_RESERVED_DMA, 0, 0),
        ]
    );
    let device =
        |segment, function, group, flags, id: (u16, u16), vectors: (u16, u16)| MachineDevice {
            segment,
            function,
            group,
            flags,
            vendor: id.0,
            device: id.1,
            msi_vectors: vectors.0,
            msix_vectors: vectors.1,
        };
    assert_eq!(
        view.devices(),
        [
            device(0, 0x18, 3, 0, (0x8086, 0x100e), (4, 40)),
            device(0, 0xe0, 9, MACHINE_DEVICE_BRIDGE, (0x8086, 0xa110), (0, 0)),
            device(1, 0x201, 12, 0, (0x15b3, 0x1017), (1, 0)),
        ]
    );
    let bar = |address, size, number, flags| MachineBar {
        address,
        size,
        device: 0,
        number,
        flags,
        reserved: 0,
    };
    assert_eq!(
        view.bars(),
        [
            bar(0xfeb8_0000, 128 << 10, 0, 0),
            bar(0xc040, 64, 1, MACHINE_BAR_PORTS),
            bar(
                0x20_0000_0000,
                64 << 20,
                4,
                MACHINE_BAR_64 | MACHINE_BAR_PREFETCHABLE
            ),
        ]
    );
}

#[test]
fn the_places_of_a_system_are_in_the_order_of_its_arrays() {
    let system = system();
    let (view, places) = (system.view(), &system.places);
    let text = |place: &crate::problem::Place| &SYSTEM[place.clone()];
    assert_eq!(places.cpus.len(), view.machine_cpus().len());
    assert_eq!(places.ranges.len(), view.ranges().len());
    assert_eq!(places.bars.len(), view.bars().len());
    assert!(text(&places.ranges[2]).contains("0xfec00000"));
    assert!(text(&places.ranges[7]).contains("0x7b000000"));
    let addresses: Vec<&str> = places.devices.iter().map(text).collect();
    assert_eq!(
        addresses,
        ["\"0000:00:03.0\"", "\"0000:00:1c.0\"", "\"0001:02:00.1\""]
    );
    assert!(text(&places.bars[0]).contains("0xfeb80000"));
    assert_eq!(text(places.l3_ways.as_ref().unwrap()), "11");
    assert_eq!(text(&places.root_msrs[0].index), "0x1a0");
    assert_eq!(text(&places.root_memory[0].name), "\"ram\"");
}

#[test]
fn a_cell_says_what_its_file_says() {
    let cell = Cell::compile("cell.toml", CELL, Some(&system()))
        .unwrap_or_else(|problems| panic!("{problems:#?}"));
    let view = cell.view();
    let header = view.header();
    assert_eq!(
        header.preamble.flags,
        CELL_CONSOLE | CELL_PASSIVE | CELL_IGNORE_UNASSIGNED_PORTS
    );
    assert!(view.parks_whole());
    assert_eq!(view.cpus().iter().collect::<Vec<_>>(), [2, 3]);
    assert_eq!(
        (header.reset_address, header.shutdown_milliseconds),
        (0x1000, 1500)
    );
    assert_eq!((header.l3_ways, header.l2_ways), (0b1100, 1));
    let lines = [4, 11].map(|number| Interrupt { number });
    assert_eq!(view.interrupts(), lines);
    assert_eq!(
        view.ports(),
        [PortRange {
            first: 0x3f8,
            count: 8
        }]
    );
    let usual = MEMORY_READ | MEMORY_WRITE;
    let flags: Vec<u64> = view.memory().iter().map(|region| region.flags).collect();
    assert_eq!(
        flags[1..],
        [
            usual | MEMORY_SHARED | MEMORY_DMA,
            usual | MEMORY_DEVICE | MEMORY_TYPE_WRITE_COMBINING,
            usual | MEMORY_DEVICE | MEMORY_WIDTH_8 | MEMORY_WIDTH_32,
        ]
    );
    let device = |segment, function, vectors| AssignedDevice {
        segment,
        function,
        vectors,
        flags: 0,
    };
    // 40 entries of MSI-X are cut down to what a device gets that was not asked for more.
    assert_eq!(view.devices(), [device(0, 0x18, 32), device(1, 0x201, 1)]);
    let msr = |msr, flags, write_mask| MsrAccess {
        msr,
        flags,
        write_mask,
    };
    assert_eq!(
        view.msrs(),
        [
            msr(0x1a4, MSR_READ, 0),
            msr(0x38f, MSR_READ | MSR_WRITE | MSR_PER_CPU, 1 << 63 | 1),
        ]
    );
}

#[test]
fn watchdogs_compile() {
    let region = "\n[[memory]]\nname = \"c\"\nkind = \"communication\"\nat = 0x100000\n";
    let watchdog = |keys: &str| {
        let text = CELL.replace("ports =", &format!("watchdog = {{ {keys} }}\nports ="));
        let cell = Cell::compile("cell.toml", &(text + region), Some(&system())).unwrap();
        let header = *cell.view().header();
        (header.watchdog_milliseconds, header.watchdog_policy)
    };
    assert_eq!(watchdog("timeout = \"250 ms\""), (250, WATCHDOG_RECORD));
    for (policy, expected) in [
        ("record", WATCHDOG_RECORD),
        ("restart", WATCHDOG_RESTART),
        ("halt", WATCHDOG_HALT),
    ] {
        let keys = format!("timeout = \"2 s\", policy = \"{policy}\"");
        assert_eq!(watchdog(&keys), (2000, expected));
    }
}

#[test]
fn the_failure_of_the_root_compiles() {
    let policy = |line: &str| {
        let system = System::compile("system.toml", line).unwrap();
        system.view().header().root_failure
    };
    assert_eq!(policy(""), ROOT_FAILURE_CONTINUE);
    assert_eq!(
        policy("on-root-failure = \"continue\""),
        ROOT_FAILURE_CONTINUE
    );
    assert_eq!(policy("on-root-failure = \"reset\""), ROOT_FAILURE_RESET);
}

#[test]
fn addresses_compile_without_a_system() {
    let text = CELL.replace("id = \"8086:100e\"", "address = \"00:03.0\"");
    let cell = Cell::compile("cell.toml", &text, None).unwrap();
    let vectors: Vec<u16> = cell
        .view()
        .devices()
        .iter()
        .map(|device| device.vectors)
        .collect();
    assert_eq!(vectors, [0, 1]);
}

#[test]
fn cache_types_and_widths_have_a_bit_each() {
    let flags = |keys: &str| {
        let text = CELL.replace("widths = [8, 32]", keys);
        let cell = Cell::compile("cell.toml", &text, Some(&system())).unwrap();
        cell.view().memory()[3].flags & !(MEMORY_READ | MEMORY_WRITE | MEMORY_DEVICE)
    };
    let types = [
        "uncacheable",
        "write-combining",
        "write-through",
        "write-protected",
        "write-back",
    ];
    for (number, name) in (1u64..).zip(types) {
        assert_eq!(
            flags(&format!("cache = \"{name}\"")),
            number << 12,
            "{name}"
        );
    }
    for (bit, width) in [(16, 8), (17, 16), (18, 32), (19, 64)] {
        assert_eq!(flags(&format!("widths = [{width}]")), 1 << bit, "{width}");
    }
    assert_eq!(flags(""), 0);
}

#[test]
fn all_problems_of_a_file_are_found_in_its_order() {
    let text = CELL
        .replace("[2, 3]\nreset", "[2, 2, 999]\nreset")
        .replace("rwx", "wx")
        .replace("[8, 32]", "[7]")
        .replace("8086:100e", "8086")
        .replace("l2 = [0]", "l2 = [40]");
    let problems = problems_of_cell(&text);
    let lines: Vec<usize> = problems
        .iter()
        .map(|problem| problem.line_and_column().unwrap().0)
        .collect();
    assert_eq!(lines, [2, 2, 11, 17, 41, 44]);
}

#[test]
fn the_keys_of_a_cell() {
    let too_many = |count: usize| -> String {
        (0..count)
            .map(|index| format!("[[msrs]]\nindex = {index}\n"))
            .collect()
    };
    let no_machine = System::built_in();
    let alone = |system| {
        Cell::compile("cell.toml", CELL, system)
            .err()
            .unwrap_or_default()
    };
    let pair = System::compile("pair.toml", &SYSTEM.replace("8086:a110", "8086:100e")).unwrap();
    compare(
        "the-keys-of-a-cell",
        &transcript([
            ("violation", cell_with("park-cell", "reboot")),
            ("cache type", cell_with("write-combining", "cached")),
            ("width", cell_with("[8, 32]", "[8, 24]")),
            ("width twice", cell_with("[8, 32]", "[8, 8]")),
            ("no width", cell_with("[8, 32]", "[]")),
            ("interrupt", cell_with("[4, 11]", "[4, 0x100000000]")),
            ("no ways", cell_with("[2, 3],", "[],")),
            ("way beyond all", cell_with("[2, 3],", "[31, 32],")),
            ("way twice", cell_with("[2, 3],", "[2, 2],")),
            ("level of cache", cell_with("l2 =", "l1 =")),
            (
                "device without a name",
                cell_with("id = \"8086:100e\"", "vectors = 1"),
            ),
            (
                "device with two names",
                cell_with(
                    "id = \"8086:100e\"",
                    "id = \"8086:100e\"\naddress = \"00:03.0\"",
                ),
            ),
            ("device address", cell_with("0001:02:00.1", "02:0.1")),
            ("device id", cell_with("8086:100e", "8086:0x100e")),
            ("no vectors", cell_with("vectors = 1", "vectors = 0")),
            (
                "too many vectors",
                cell_with("vectors = 1", "vectors = 2049"),
            ),
            ("no such device", cell_with("8086:100e", "8086:10d3")),
            (
                "two such devices",
                Cell::compile("cell.toml", CELL, Some(&pair)).err().unwrap(),
            ),
            ("id without a system", alone(None)),
            ("id without a machine", alone(Some(&no_machine))),
            ("register", cell_with("0x1a4", "0x1_0000_0000")),
            (
                "register access",
                cell_with("access = \"rw\"\nwrite", "access = \"rx\"\nwrite"),
            ),
            (
                "mask without writing",
                cell_with("access = \"rw\"\nwrite", "access = \"r\"\nwrite"),
            ),
            ("empty mask", cell_with("\"0x8000000000000001\"", "0")),
            (
                "mask without meaning",
                cell_with("0x8000000000000001", "8000000000000001"),
            ),
            (
                "too many registers",
                cell_with("[[msrs]]\nindex = 0x1a4\n", &too_many(33)),
            ),
            ("key of devices", cell_with("vectors", "vector")),
        ]),
    );
}

#[test]
fn the_keys_of_a_root_cell() {
    let region = "size = \"1 GiB\"\n";
    let key = |key: &str| system_with(region, &format!("{region}{key}\n"));
    compare(
        "the-keys-of-a-root-cell",
        &transcript([
            (
                "lists without policy",
                system_with("policy = \"strict\"\n", ""),
            ),
            (
                "nothing listed",
                problems_of_system("[root]\npolicy = \"strict\"\n"),
            ),
            ("policy", system_with("\"strict\"", "\"listed\"")),
            ("physical", key("physical = 0x1000")),
            ("loadable", key("loadable = true")),
            ("shared", key("shared = true")),
            ("shared with itself", key("shared-with-root = true")),
            ("communication", key("kind = \"communication\"")),
            ("no size", system_with(region, "")),
            (
                "ports",
                system_with("first = 0x60, count = 5", "first = 0xffff, count = 2"),
            ),
            ("mask without writing", system_with("access = \"rw\", ", "")),
        ]),
    );
}

#[test]
fn the_keys_of_a_machine() {
    let bar = "{ number = 0, kind = \"memory\", at = 0xfeb80000, size = \"128 KiB\" }";
    let bar_with = |new: &str| system_with(bar, new);
    compare(
        "the-keys-of-a-machine",
        &transcript([
            ("no CPU", problems_of_system("[machine]\n")),
            (
                "core missing",
                system_with(
                    "apic-id = 64, package = 1, core = 8",
                    "apic-id = 64, package = 1",
                ),
            ),
            ("package", system_with("package = 1", "package = 65536")),
            (
                "APIC id",
                system_with("apic-id = 64", "apic-id = 0x100000000"),
            ),
            ("cache of some", system_with("core = 8, l3 = 1", "core = 8")),
            ("ways", system_with("l3-ways = 11", "l3-ways = 33")),
            ("RAM unaligned", system_with("at = 0x1000,", "at = 0x1800,")),
            ("RAM of half pages", system_with("636 KiB", "639 KiB")),
            ("RAM empty", system_with("636 KiB", "0 B")),
            (
                "RAM too high",
                system_with("size = \"2 GiB\"", "size = \"4096 TiB\""),
            ),
            ("IOAPIC unaligned", system_with("0xfec01000", "0xfec01400")),
            ("no pins", system_with("pins = 120", "pins = 0")),
            (
                "buses",
                system_with("last-bus = 255", "first-bus = 16, last-bus = 15"),
            ),
            ("bus", system_with("last-bus = 255", "last-bus = 256")),
            (
                "configuration space unaligned",
                system_with("0xb0000000", "0xb0080000"),
            ),
            ("IOMMU unaligned", system_with("0xfed91000", "0xfed91100")),
            (
                "function twice",
                system_with("0000:00:1c.0", "0000:00:03.0"),
            ),
            (
                "function address",
                system_with("0000:00:1c.0", "0000:00:1c.9"),
            ),
            ("function id", system_with("15b3:1017", "15b3")),
            ("group", system_with("group = 12", "group = 70000")),
            ("MSI", system_with("msi = 4", "msi = 3")),
            ("MSI-X", system_with("msi-x = 40", "msi-x = 4096")),
            ("register number", bar_with(&bar.replace("= 0,", "= 6,"))),
            ("register twice", bar_with(&bar.replace("= 0,", "= 1,"))),
            (
                "register behind one of 64 bits",
                bar_with(&bar.replace("= 0,", "= 5,")),
            ),
            (
                "register of 64 bits at the end",
                system_with("number = 4", "number = 5"),
            ),
            ("register size", bar_with(&bar.replace("128 KiB", "96 KiB"))),
            (
                "register unaligned",
                bar_with(&bar.replace("0xfeb80000", "0xfeb90000")),
            ),
            (
                "register too high",
                bar_with(&bar.replace("0xfeb80000", "0x100000000")),
            ),
            ("ports too high", system_with("0xc040", "0x10000")),
            (
                "prefetchable ports",
                system_with("size = 64 }", "size = 64, prefetchable = true }"),
            ),
        ]),
    );
}

#[test]
fn lists_of_a_machine_have_an_end() {
    let machine = |key: &str, count: usize, entry: &dyn Fn(usize) -> String| {
        let entries: Vec<String> = (0..count).map(entry).collect();
        let cpus = match key {
            "cpus" => "",
            _ => "cpus = [{ apic-id = 0, core = 0 }]\n",
        };
        problems_of_system(&format!(
            "[machine]\n{cpus}{key} = [{}]\n",
            entries.join(",\n")
        ))
    };
    let cpu = |index| format!("{{ apic-id = {index}, core = {index} }}");
    let ram = |index| format!("{{ at = {}, size = 4096 }}", index * 8192);
    let address = |index: usize| {
        format!(
            "address = \"{:04x}:{:02x}:{:02x}.0\"",
            index >> 13,
            index >> 5 & 255,
            index & 31
        )
    };
    let function = |index| {
        format!(
            "{{ {}, id = \"8086:100e\", group = {index} }}",
            address(index)
        )
    };
    let bars = |index| {
        let bar = |number| format!("{{ number = {number}, kind = \"memory\", at = 0, size = 16 }}");
        let bars: Vec<String> = (0..6).map(bar).collect();
        format!(
            "{{ {}, id = \"8086:100e\", group = 1, bars = [{}] }}",
            address(index),
            bars.join(", ")
        )
    };
    for (key, most, entry) in [
        ("cpus", 256, &cpu as &dyn Fn(usize) -> String),
        ("ram", 256, &ram),
        ("devices", 768, &function),
    ] {
        assert!(machine(key, most, entry).is_empty(), "{key}");
        let [problem] = &machine(key, most + 1, entry)[..] else {
            panic!("{key}")
        };
        assert!(
            problem
                .message()
                .starts_with(&format!("there are more than {most} ")),
            "{problem}"
        );
    }
    assert!(machine("devices", 170, &bars).is_empty());
    let [problem] = &machine("devices", 171, &bars)[..] else {
        panic!()
    };
    assert!(
        problem.message().starts_with("there are more than 1024 "),
        "{problem}"
    );
}
