//! Writes those seeds of the corpus that are not text: `cargo run --package gaol-fuzz --example seeds`.
//!
//! To be run again when a layout changes. The tables are made up.
#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use gaol_config::compile::{Cell, System};
use gaol_fuzz::{configuration_toml, machine_collection, vtd_tables};
use gaol_machine::source::Tree;

fn corpus(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target)
}

fn write(target: &str, name: &str, bytes: &[u8]) -> io::Result<()> {
    fs::write(corpus(target).join(name), bytes)
}

/// Bytes one after the other, little-endian.
#[derive(Default)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn u8(mut self, values: &[u8]) -> Self {
        self.0.extend_from_slice(values);
        self
    }

    fn u16(self, values: &[u16]) -> Self {
        values
            .iter()
            .fold(self, |bytes, value| bytes.u8(&value.to_le_bytes()))
    }

    fn u32(self, values: &[u32]) -> Self {
        values
            .iter()
            .fold(self, |bytes, value| bytes.u8(&value.to_le_bytes()))
    }

    fn u64(self, values: &[u64]) -> Self {
        values
            .iter()
            .fold(self, |bytes, value| bytes.u8(&value.to_le_bytes()))
    }

    fn zeros(mut self, count: usize) -> Self {
        self.0.resize(self.0.len() + count, 0);
        self
    }

    fn put(mut self, offset: usize, values: &[u8]) -> Self {
        self.0[offset..offset + values.len()].copy_from_slice(values);
        self
    }
}

/// The TOML seeds that compile, compiled.
fn configurations() -> io::Result<()> {
    for name in ["shipped", "system", "strict", "conflict"] {
        let text = fs::read_to_string(corpus("configuration_toml").join(format!("{name}.toml")))?;
        let separator = String::from_utf8_lossy(configuration_toml::SEPARATOR).into_owned();
        let mut bytes = Vec::new();
        let mut system = System::built_in();
        for (index, file) in text.split(&separator).enumerate() {
            match (index, System::from_toml("system", file)) {
                (0, Ok(first)) => {
                    bytes.extend_from_slice(first.bytes());
                    system = first;
                }
                _ => {
                    let cell = Cell::compile("cell", file, Some(&system));
                    let cell = cell.map_err(|problems| {
                        io::Error::other(format!("{name}.toml: {problems:?}"))
                    })?;
                    bytes.extend_from_slice(cell.bytes());
                }
            }
        }
        write("configuration_binary", &format!("{name}.bin"), &bytes)?;
    }
    Ok(())
}

/// A table of ACPI with its header; length and checksum are right.
fn table(signature: &[u8; 4], body: &[u8]) -> Vec<u8> {
    let length = 36 + body.len() as u32;
    let header = Bytes::default()
        .u8(signature)
        .u32(&[length])
        .u8(&[5, 0])
        .u8(b"MADEUP")
        .u8(b"MADEUP  ")
        .u32(&[1, 1, 1]);
    let mut table = header.u8(body).0;
    let sum = table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    table[9] = sum.wrapping_neg();
    table
}

fn madt() -> Vec<u8> {
    let body = Bytes::default()
        .u32(&[0xfee0_0000, 1])
        // Local APICs 0 and 1, an x2APIC.
        .u8(&[0, 8, 0, 0, 1, 0, 0, 0])
        .u8(&[0, 8, 1, 1, 1, 0, 0, 0])
        .u8(&[9, 16, 0, 0])
        .u32(&[256, 1, 2])
        // An IOAPIC, an override, an NMI.
        .u8(&[1, 12, 2, 0])
        .u32(&[0xfec0_0000, 0])
        .u8(&[2, 10, 0, 0])
        .u32(&[2])
        .u16(&[0])
        .u8(&[4, 6, 0xff, 0, 0, 1]);
    table(b"APIC", &body.0)
}

fn mcfg() -> Vec<u8> {
    let body = Bytes::default()
        .u64(&[0, 0xe000_0000])
        .u16(&[0])
        .u8(&[0, 255])
        .u32(&[0]);
    table(b"MCFG", &body.0)
}

fn dmar() -> Vec<u8> {
    let body = Bytes::default()
        .u8(&[38, 1])
        .zeros(10)
        // A unit for a function and an IOAPIC, one for all others.
        .u16(&[0, 32])
        .u8(&[0, 0])
        .u16(&[0])
        .u64(&[0xfed9_0000])
        .u8(&[1, 8, 0, 0, 0, 0, 2, 0])
        .u8(&[3, 8, 0, 0, 2, 0, 0x1f, 7])
        .u16(&[0, 16])
        .u8(&[1, 0])
        .u16(&[0])
        .u64(&[0xfed9_1000])
        // Reserved memory of a function, the root ports with ATS.
        .u16(&[1, 32, 0, 0])
        .u64(&[0x7f00_0000, 0x7f0f_ffff])
        .u8(&[1, 8, 0, 0, 0, 0, 2, 0])
        .u16(&[2, 16])
        .u8(&[0, 0])
        .u16(&[0])
        .u8(&[2, 8, 0, 0, 0, 0, 1, 0]);
    table(b"DMAR", &body.0)
}

fn fadt() -> Vec<u8> {
    let body = Bytes::default().zeros(240);
    let body = body
        .put(40, &0xb008u32.to_le_bytes())
        .put(55, &[4])
        .put(76, &(1u32 << 8 | 1 << 10).to_le_bytes())
        .put(172, &[1, 32, 0, 3])
        .put(176, &0xb008u64.to_le_bytes());
    table(b"FACP", &body.0)
}

fn tables() -> io::Result<()> {
    for (name, bytes) in [
        ("madt", madt()),
        ("mcfg", mcfg()),
        ("dmar", dmar()),
        ("fadt", fadt()),
    ] {
        write("acpi_tables", name, &bytes)?;
    }
    Ok(())
}

/// Configuration space of a network adapter with power management, MSI, MSI-X and PCI Express.
fn adapter() -> Bytes {
    Bytes::default()
        .zeros(4096)
        .put(0, &[0x86, 0x80, 0x0e, 0x10, 7, 0, 0x10, 0])
        .put(8, &[3, 0, 0, 2])
        .put(0x0e, &[0x80])
        .put(0x2c, &[0x86, 0x80, 1, 0])
        .put(0x34, &[0x40])
        .put(0x40, &[1, 0x50, 3, 0])
        .put(0x50, &[5, 0x70, 0x84, 0x01])
        .put(0x70, &[0x11, 0xa0, 4, 0, 3, 0, 0, 0, 3, 0x20, 0, 0])
        .put(0xa0, &[0x10, 0, 2, 0])
        .put(0x100, &[0x0d, 0, 1, 0x15, 0x1f, 0, 0x1d, 0])
        .put(0x150, &[0x10, 0, 1, 0, 0, 0, 0, 0])
}

/// Configuration space of a bridge from bus 0 to bus 1.
fn bridge() -> Bytes {
    Bytes::default()
        .zeros(256)
        .put(0, &[0x86, 0x80, 0x20, 0x34, 7, 0, 0x10, 0])
        .put(8, &[2, 0, 4, 6])
        .put(0x0e, &[1])
        .put(0x18, &[0, 1, 1])
        .put(0x34, &[0x40])
        .put(0x40, &[0x10, 0, 0x42, 0])
}

fn functions() -> io::Result<()> {
    let alone = Bytes::default().u8(&[0, 3 << 3, 1]).u8(&adapter().0);
    let alone = alone.u8(&[3, 2, 0xfe, 17, 1, 0xc0, 6, 0x14, 0x80, 16]);
    let behind = Bytes::default()
        .u8(&[0, 1 << 3, 0])
        .u8(&bridge().0)
        .u8(&[0])
        .u8(&[1, 0, 0x32 | 1])
        .u8(&adapter().0)
        .u8(&[0])
        .u8(&[1, 1, 0x32 | 4])
        .u8(&adapter().0[..256]);
    write("pci_configuration_space", "adapter", &alone.0)?;
    write("pci_configuration_space", "behind-a-bridge", &behind.0)
}

/// A cell of Jailhouse behind its preamble: two CPUs, memory, cache, IOAPIC, ports, a device with a capability.
fn jailhouse_cell() -> Bytes {
    let name = Bytes::default().u8(b"demo").zeros(28);
    let memory = |physical: u64, guest: u64, size: u64, flags: u64| {
        Bytes::default().u64(&[physical, guest, size, flags]).0
    };
    Bytes::default()
        .u8(&name.0)
        .u32(&[0, 1 << 30, 8, 4, 1, 1, 2, 1, 1, 0, 0])
        .u64(&[0, 0])
        // Console: address, size, type, flags, divider, gate, clock.
        .u64(&[0x3f8])
        .u32(&[8])
        .u16(&[1, 1])
        .u32(&[1, 0])
        .u64(&[0])
        .u64(&[0b1100])
        .u8(&memory(0x3f00_0000, 0, 0x10_0000, 0x47))
        .u8(&memory(0, 0x10_0000, 0x1000, 0x23))
        .u8(&memory(0x3f10_0000, 0x20_0000, 0x1000, 0x13))
        .u8(&memory(0xfed4_0010, 0xfed4_0010, 0x10, 0x4_0003))
        .u32(&[0, 2])
        .u8(&[3, 0])
        .u16(&[0])
        .u64(&[0xfec0_0000])
        .u32(&[0xff00, 0, 1 << 4, 0, 0, 0])
        .u16(&[0x2f8, 8, 0x60, 1])
        // Device: type, IOMMU, domain, function, BAR masks, capabilities, MSI, MSI-X.
        .u8(&[1, 0])
        .u16(&[0, 3 << 3])
        .u32(&[0xfffe_0000, 0xffff_ffe0, 0, 0, 0, 0])
        .u16(&[0, 1])
        .u8(&[1, 1])
        .u16(&[0, 0])
        .u64(&[0])
        .u32(&[0])
        .u8(&[0, 0])
        .u16(&[0])
        .u16(&[5, 0x50, 0x0e, 1])
}

fn jailhouse() -> io::Result<()> {
    let cell = jailhouse_cell();
    for (name, head) in [("cell-13", b"JHCELL\x0d\0"), ("cell-14", b"JHCLL\0\x0e\0")] {
        let bytes = Bytes::default().u8(head).u8(&cell.0);
        write("jailhouse_import", name, &bytes.0)?;
    }
    let header = Bytes::default()
        .zeros(356)
        .put(0, b"JHSYS\0\x0e\0")
        .put(12, &0x3a00_0000u64.to_le_bytes())
        .put(28, &0x60_0000u64.to_le_bytes())
        .put(44, &0x2f8u64.to_le_bytes())
        .put(52, &8u32.to_le_bytes())
        .put(56, &[1, 0, 1, 0, 1])
        .put(76, &0xe000_0000u64.to_le_bytes())
        .put(84, &[255])
        .put(88, &2u32.to_le_bytes())
        .put(92, &0xfed9_0000u64.to_le_bytes())
        .put(100, &0x1000u32.to_le_bytes());
    let system = header.zeros(8).u8(&cell.0);
    write("jailhouse_import", "system-14", &system.0)
}

/// The files of a machine with two CPUs.
fn files() -> Vec<(&'static str, Vec<u8>)> {
    let text = |text: &str| text.as_bytes().to_vec();
    let cpuid = "00000000 00 0000000d 756e6547 6c65746e 49656e69\n\
                 00000001 00 000306c3 01040800 7ffafbff bfebfbff\n\
                 80000008 00 00003027 00000000 00000000 00000000\n";
    let iomem = "00000000-00000fff : Reserved\n\
                 00001000-0009fbff : System RAM\n\
                 00100000-1fffffff : System RAM\n  01000000-01ffffff : Kernel code\n\
                 e0000000-efffffff : PCI MMCONFIG 0000 [bus 00-ff]\n\
                 fec00000-fec003ff : IOAPIC 0\n";
    vec![
        ("/sys/devices/system/cpu/present", text("0\n")),
        ("/sys/devices/system/cpu/online", text("0\n")),
        (
            "/sys/devices/system/cpu/cpu0/topology/thread_siblings_list",
            text("0\n"),
        ),
        (
            "/sys/devices/system/cpu/cpu0/topology/physical_package_id",
            text("0\n"),
        ),
        ("/sys/devices/system/cpu/cpu0/topology/core_id", text("0\n")),
        (
            "/sys/devices/system/cpu/cpu0/cache/index3/type",
            text("Unified\n"),
        ),
        (
            "/sys/devices/system/cpu/cpu0/cache/index3/level",
            text("3\n"),
        ),
        (
            "/sys/devices/system/cpu/cpu0/cache/index3/shared_cpu_list",
            text("0\n"),
        ),
        ("/gaol/cpu/0/cpuid", text(cpuid)),
        ("/sys/devices/system/node/online", text("0\n")),
        ("/sys/devices/system/node/node0/cpulist", text("0\n")),
        ("/proc/iomem", text(iomem)),
        (
            "/proc/ioports",
            text("0000-0cf7 : PCI Bus 0000:00\n  0060-0060 : keyboard\n"),
        ),
        (
            "/proc/cmdline",
            text("root=/dev/sda1 console=ttyS0,115200 quiet\n"),
        ),
        (
            "/proc/consoles",
            text("ttyS0                -W- (EC p a)    4:64\n"),
        ),
        (
            "/proc/tty/driver/serial",
            text(
                "serinfo:1.0 driver revision:\n0: uart:16550A port:000003F8 irq:4 tx:1 rx:0 RTS|DTR\n",
            ),
        ),
        ("/sys/firmware/acpi/tables/APIC", madt()),
        ("/sys/firmware/acpi/tables/MCFG", mcfg()),
        ("/sys/firmware/acpi/tables/DMAR", dmar()),
        ("/sys/bus/pci/devices/0000:00:01.0/config", bridge().0),
        ("/sys/bus/pci/devices/0000:00:01.0/resource", text("")),
        (
            "/sys/bus/pci/devices/0000:00:02.0/config",
            adapter().0[..256].to_vec(),
        ),
        (
            "/sys/bus/pci/devices/0000:00:02.0/resource",
            text("0x00000000febc0000 0x00000000febdffff 0x0000000000040200\n"),
        ),
    ]
}

fn collections() -> io::Result<()> {
    let mut bytes = Vec::new();
    let mut tree = Tree::default();
    for (path, content) in files() {
        if !bytes.is_empty() {
            bytes.extend_from_slice(machine_collection::SEPARATOR);
        }
        bytes.extend_from_slice(path.as_bytes());
        bytes.push(b'\n');
        bytes.extend_from_slice(&content);
        tree.insert_file(path, content);
    }
    write("machine_collection", "files", &bytes)?;
    let mut small = Tree::default();
    for path in ["/proc/iomem", "/proc/cmdline"] {
        small.insert_file(path, tree.read(path).unwrap_or_default());
    }
    small.insert_link(
        "/sys/class/iommu/dmar0",
        "../../devices/virtual/iommu/dmar0",
    );
    let mut plain = Vec::new();
    small.write_tar(&mut plain)?;
    write("machine_collection", "plain.tar", &plain)?;
    let mut compressed = Vec::new();
    tree.write_compressed_tar(&mut compressed)?;
    write("machine_collection", "compressed.tar.gz", &compressed)
}

/// A call as the target reads it: number, caller, what the cell with this id writes, arguments.
fn call(bytes: Bytes, number: u32, caller: u8, says: [u8; 3], arguments: [u32; 2]) -> Bytes {
    bytes.u32(&[number]).u8(&[caller]).u8(&says).u32(&arguments)
}

/// A cell on this CPU with memory of its own.
fn small_cell(cpu: u32) -> Vec<u8> {
    let text = format!(
        "name = \"cell{cpu}\"\ncpus = [{cpu}]\n\
         [[memory]]\nname = \"ram\"\nat = 0\nphysical = {:#x}\nsize = \"1 MiB\"\naccess = \"rwx\"\n\
         [[memory]]\nname = \"comm\"\nkind = \"communication\"\nat = 0x100000\n",
        0x2000_0000 + (cpu << 20)
    );
    let cell = Cell::compile("cell.toml", &text, None).expect("a good cell");
    cell.bytes().to_vec()
}

/// The lives of cells, and what cells may not do.
fn hypercalls() -> io::Result<()> {
    let (root, guest, narrow, user) = (3, 2, 1, 7);
    let quiet = [0; 3];
    let first = small_cell(1);
    let second_at = 0x1000 + first.len() as u32;
    let memory = |bytes: Bytes| bytes.u8(b"MEMORY").u8(&first).u8(&small_cell(2)).0;
    let life = [
        (1, root, quiet, [0x1000, 0]),
        (0x101, root, quiet, [1, 0]),
        (0x101, root, quiet, [1, 0]),
        (3, root, quiet, [1, 0]),
        (2, root, quiet, [1, 0]),
        (6, narrow, quiet, [1, 0]),
        (1, root, quiet, [second_at, 0]),
        // The first one says that it is locked.
        (4, root, [1, 0, 1], [2, 0]),
        (4, root, quiet, [2, 1]),
        (4, root, [1, 0, 0], [1, 0]),
        // It approves.
        (4, root, [1, 2, 3], [1, 0]),
        (0x101, root, quiet, [1, 0]),
        (0x101, root, quiet, [1, 0]),
        (4, root, quiet, [1, 0]),
    ];
    let refused = [
        (1, guest, quiet, [0x1000, 1]),
        (1, user, quiet, [0x1000, 1]),
        (1, root, quiet, [0x1000, 0]),
        (1, root, quiet, [0x1000, 0]),
        (4, guest, quiet, [1, 1]),
        (0x102, guest, quiet, [1, 0]),
        (0x103, user, quiet, [0, 0]),
        (5, guest, quiet, [4, 0]),
        (7, guest, quiet, [0, 1000]),
        (8, guest, quiet, [65, 0]),
        (2, root, quiet, [u32::MAX, 0]),
        (1, root, quiet, [0x8ff0, 0]),
        (1, root, quiet, [0, 0]),
    ];
    let calls = |calls: &[(u32, u8, [u8; 3], [u32; 2])]| {
        calls.iter().fold(
            Bytes::default(),
            |bytes, (number, caller, says, arguments)| {
                call(bytes, *number, *caller, *says, *arguments)
            },
        )
    };
    write("hypercall", "life.bin", &memory(calls(&life)))?;
    write("hypercall", "refused.bin", &memory(calls(&refused)))
}

/// What a cell does to a PCI function: what, width as a power of two, place, value.
type Operation = (u8, u8, u16, u64);

fn operations() -> io::Result<()> {
    // Places of the model in the hypervisor's tests.
    let (msi, msi_x) = (0x50, 0xb0);
    let seeds: [(&str, u8, &[Operation]); 3] = [
        (
            "msi.bin",
            0,
            &[
                (0, 1, 4, 7),
                (0, 2, msi + 4, 0xfee0_9000),
                (0, 1, msi + 0xc, 0x41),
                (0, 1, msi + 2, 1),
                (0, 0, msi + 5, 0x10),
                (0, 2, msi + 4, 0xfee0_f00c),
                (0, 1, msi + 2, 0x41),
                (2, 2, msi, 0),
            ],
        ),
        (
            "table.bin",
            0,
            &[
                (0, 1, 4, 3),
                (0, 1, msi_x + 2, 0x8000),
                (4, 3, 16, 0xfee0_3000),
                (4, 3, 24, 0x51),
                (4, 0, 25, 2),
                (4, 1, 24, 0x61),
                (3, 3, 20, 0),
            ],
        ),
        (
            "bars.bin",
            31,
            &[
                (0, 2, 0x10, 0xffff_ffff),
                (0, 2, 0x18, 0xffff_ffff),
                (0, 2, 0x1c, 0xffff_ffff),
                (0, 2, 0x30, 0xffff_ffff),
                (0, 2, 0x10, 0x1234_5000),
                (0, 1, 4, 0xffff),
                (0, 1, 0x78, 0x8000),
                (0, 0, 0xd4, 1),
                (0, 1, 0x44, 3),
                (1, 2, 0x148, 0xffff_ffff),
            ],
        ),
    ];
    for (name, shape, operations) in seeds {
        let bytes = Bytes::default().u8(&[shape]);
        let bytes = operations
            .iter()
            .fold(bytes, |bytes, (what, width, place, value)| {
                bytes.u8(&[*what, *width]).u16(&[*place]).u64(&[*value])
            });
        write("pci_filter", name, &bytes.0)?;
    }
    Ok(())
}

fn main() -> io::Result<()> {
    configurations()?;
    hypercalls()?;
    tables()?;
    functions()?;
    operations()?;
    jailhouse()?;
    for (name, bytes) in vtd_tables::seeds() {
        write("vtd_tables", name, &bytes)?;
    }
    collections()
}
