//! The machines themselves.

use super::pci::{
    DOWNSTREAM_PORT, ENDPOINT, INTEGRATED_ENDPOINT, PCI_BRIDGE, ROOT_PORT, TestFunction,
    UPSTREAM_PORT,
};
use super::{Build, Model, TestCpu, tables};

const HOST_BRIDGE: u32 = 0x06_0000;
const ISA_BRIDGE: u32 = 0x06_0100;
const BRIDGE: u32 = 0x06_0400;
const ETHERNET: u32 = 0x02_0000;
const NVME: u32 = 0x01_0802;
const DISPLAY: u32 = 0x03_0000;
const ACCELERATOR: u32 = 0x03_0200;
const SYSTEM: u32 = 0x08_8000;
const AUDIO: u32 = 0x04_0300;
const USB: u32 = 0x0c_0330;
const EHCI: u32 = 0x0c_0320;
const MULTIMEDIA: u32 = 0x04_0000;

fn function(address: &str, id: (u16, u16), class: u32) -> TestFunction {
    TestFunction::new(address, id.0, id.1, class)
}

/// A port or bridge.
fn port(address: &str, device: u16, kind: u8, buses: (u8, u8)) -> TestFunction {
    function(address, (0x8086, device), BRIDGE)
        .bridge(buses.0, buses.1)
        .power_management()
        .express(kind, false)
}

/// Two sockets with a NUMA node each, two PCI segments, four remapping units that Linux drives, cache allocation.
pub(crate) fn two_sockets() -> Build {
    let mut build = Build::default();
    let cpus: Vec<TestCpu> = (0..8)
        .map(|id| TestCpu {
            apic_id: id % 4 * 2 + id / 4 * 0x20,
            package: id / 4,
            core: id % 4,
            node: id / 4,
            l2: id,
            l3: id / 4,
        })
        .collect();
    let model = Model {
        vendor: b"GenuineIntel",
        has_vmx: true,
        has_svm: false,
        physical_address_bits: 46,
        l3_allocation: Some((11, 16)),
        smi_count: Some(0),
    };
    build
        .cpus(model, &cpus)
        .blocks(0, [0, 2, 3, 4])
        .blocks(1, 5..9);
    build.text("/proc/iomem", TWO_SOCKETS_MEMORY);
    build.text(
        "/proc/ioports",
        "0000-0cf7 : PCI Bus 0000:00\n  03f8-03ff : serial\n0cf8-0cff : PCI conf1\n",
    );
    build.linux(
        "console=ttyS0,115200 intel_iommu=on",
        "ttyS0                -W- (EC p a)    4:64\n",
        "0: uart:16550A port:000003F8 irq:4 tx:40 rx:0 RTS|CTS|DTR\n",
    );
    two_sockets_tables(&mut build, &cpus);
    two_sockets_pci(&mut build);
    for (number, address) in [0xd37f_c000, 0xe0ff_c000, 0xf0ff_c000, 0xf1ff_c000]
        .into_iter()
        .enumerate()
    {
        let number = u32::try_from(number).unwrap();
        build.linux_iommu(number, address, 0x8d2_078c_106f_0466, 0xf0_20df);
    }
    build
}

const TWO_SOCKETS_MEMORY: &str = "\
00000000-00000fff : Reserved
00001000-0009ffff : System RAM
000a0000-000fffff : Reserved
00100000-6fffffff : System RAM
  01000000-02ffffff : Kernel code
70000000-7fffffff : Reserved
80000000-8fffffff : PCI MMCONFIG 0000 [bus 00-ff]
90000000-9fffffff : PCI MMCONFIG 0001 [bus 00-ff]
a0000000-d37fbfff : PCI Bus 0000:00
d37fc000-d37fcfff : dmar0
fec00000-fec003ff : IOAPIC 0
fec01000-fec013ff : IOAPIC 1
fec40000-fec403ff : IOAPIC 2
fee00000-fee00fff : Local APIC
100000000-47fffffff : System RAM
";

fn two_sockets_tables(build: &mut Build, cpus: &[TestCpu]) {
    let mut structures: Vec<Vec<u8>> = (0..)
        .zip(cpus)
        .map(|(uid, cpu)| tables::local_apic(uid, u8::try_from(cpu.apic_id).unwrap(), true))
        .collect();
    // Sockets' worth of processors that are not there.
    structures.extend((8..12).map(|uid| tables::local_apic(uid, 0xff, false)));
    structures.extend([
        tables::io_apic(8, 0xfec0_0000, 0),
        tables::io_apic(9, 0xfec0_1000, 24),
        tables::io_apic(10, 0xfec4_0000, 32),
        tables::interrupt_override(0, 2, 0),
        tables::interrupt_override(9, 9, 0xd),
        tables::local_nmi(0xff, 5, 1),
    ]);
    build.table("APIC", tables::madt(&structures));
    build.table("FACP", tables::fadt(276, 0x500));
    build.table(
        "MCFG",
        tables::mcfg(&[(0x8000_0000, 0, 0, 0xff), (0x9000_0000, 1, 0, 0xff)]),
    );
    build.table(
        "DMAR",
        tables::dmar(
            46,
            1,
            &[
                tables::drhd(
                    false,
                    0,
                    0,
                    0xd37f_c000,
                    &[
                        tables::scope(2, 0, 0x80, &[(1, 0)]),
                        tables::scope(1, 0, 0x80, &[(5, 0)]),
                        tables::scope(3, 10, 0x80, &[(5, 4)]),
                    ],
                ),
                // Endpoint behind root port, switch and its second port.
                tables::drhd(
                    false,
                    1,
                    1,
                    0xe0ff_c000,
                    &[tables::scope(1, 0, 0, &[(0, 0), (0, 0), (1, 0), (0, 0)])],
                ),
                tables::drhd(true, 0, 1, 0xf0ff_c000, &[]),
                tables::drhd(
                    true,
                    0,
                    0,
                    0xf1ff_c000,
                    &[
                        tables::scope(3, 8, 0, &[(0x1e, 7)]),
                        tables::scope(3, 9, 0, &[(5, 4)]),
                        tables::scope(4, 0, 0, &[(0x1e, 6)]),
                    ],
                ),
                tables::atsr(false, 0, &[tables::scope(2, 0, 0x80, &[(1, 0)])]),
                tables::atsr(true, 1, &[]),
                tables::rhsa(0xd37f_c000, 1),
                tables::rhsa(0xe0ff_c000, 1),
                tables::rhsa(0xf0ff_c000, 1),
                tables::rhsa(0xf1ff_c000, 0),
                tables::andd(1, "\\_SB.PCI0.I2C0"),
            ],
        ),
    );
}

fn two_sockets_pci(build: &mut Build) {
    let endpoint = |address, id, class, node| {
        function(address, id, class)
            .power_management()
            .express(ENDPOINT, true)
            .node(node)
    };
    build.pci(vec![
        function("0000:00:00.0", (0x8086, 0x2020), HOST_BRIDGE)
            .group(0)
            .node(0),
        port("0000:00:01.0", 0x2030, ROOT_PORT, (1, 1))
            .acs(true)
            .driver("pcieport")
            .group(1)
            .node(0),
        function("0000:00:1f.0", (0x8086, 0xa1c1), ISA_BRIDGE)
            .multifunction()
            .group(2)
            .node(0),
        function("0000:00:1f.4", (0x8086, 0xa1a3), 0x0c_0500)
            .multifunction()
            .ports(4, 0x780, 32)
            .group(2)
            .node(0),
        endpoint("0000:01:00.0", (0x8086, 0x1572), ETHERNET, 0)
            .multifunction()
            .memory64(0, 0xa000_0000, 16 << 20)
            .memory64(3, 0xa100_0000, 32 << 10)
            .rom(0xa200_0000, 512 << 10)
            .msi(0)
            .msi_x(129, 3, 0)
            .serial_number()
            .acs(false)
            .extended(0x0010, &[0; 60])
            .driver("i40e")
            .group(3),
        endpoint("0000:01:00.1", (0x8086, 0x1572), ETHERNET, 0)
            .multifunction()
            .memory64(0, 0xa300_0000, 16 << 20)
            .memory64(3, 0xa400_0000, 32 << 10)
            .msi_x(129, 3, 0)
            .acs(false)
            .driver("i40e")
            .group(4),
        port("0000:80:01.0", 0x2031, ROOT_PORT, (0x81, 0x81))
            .acs(true)
            .driver("pcieport")
            .group(5)
            .node(1),
        function("0000:80:05.0", (0x8086, 0x2024), SYSTEM)
            .express(INTEGRATED_ENDPOINT, false)
            .group(6)
            .node(1),
        endpoint("0000:81:00.0", (0x144d, 0xa808), NVME, 1)
            .memory64(0, 0xc000_0000, 16 << 10)
            .msi_x(33, 0, 0x3000)
            .driver("nvme")
            .group(7),
        port("0001:00:00.0", 0x2032, ROOT_PORT, (1, 4))
            .acs(true)
            .driver("pcieport")
            .group(8)
            .node(1),
        port("0001:01:00.0", 0x8747, UPSTREAM_PORT, (2, 4))
            .driver("pcieport")
            .group(9)
            .node(1),
        port("0001:02:00.0", 0x8747, DOWNSTREAM_PORT, (3, 3))
            .acs(true)
            .driver("pcieport")
            .group(10)
            .node(1),
        port("0001:02:01.0", 0x8747, DOWNSTREAM_PORT, (4, 4))
            .acs(true)
            .driver("pcieport")
            .group(11)
            .node(1),
        endpoint("0001:03:00.0", (0x10de, 0x20b0), ACCELERATOR, 1)
            .memory64(0, 0x3800_0000_0000, 32 << 30)
            .msi_x(6, 0, 0xb9_0000)
            .group(12),
        endpoint("0001:04:00.0", (0x10de, 0x20b0), ACCELERATOR, 1)
            .memory64(0, 0x3900_0000_0000, 32 << 30)
            .msi_x(6, 0, 0xb9_0000)
            .group(13),
    ]);
}

/// 96 processors of AMD's with two threads a core, APIC ids beyond 255, four NUMA nodes in one package.
pub(crate) fn many_cpus() -> Build {
    let mut build = Build::default();
    let cpus: Vec<TestCpu> = (0..96)
        .map(|id| {
            let (core, thread) = (id % 48, id / 48);
            TestCpu {
                // Eight cores to a block of 32 ids, of which the first begins at 0x80.
                apic_id: 0x80 + core / 8 * 0x20 + core % 8 * 2 + thread,
                package: 0,
                core,
                node: core / 12,
                l2: core,
                l3: core / 4,
            }
        })
        .collect();
    let model = Model {
        vendor: b"AuthenticAMD",
        has_vmx: false,
        has_svm: true,
        physical_address_bits: 48,
        l3_allocation: Some((16, 16)),
        smi_count: None,
    };
    build.cpus(model, &cpus);
    for node in 0..4 {
        // Node 0 has a block less: the hole below 4 GiB.
        let first = if node == 0 { 0 } else { node * 8 + 1 };
        build.blocks(
            node,
            (first..(node + 1) * 8 + 1).filter(|&block| block != 1),
        );
    }
    build.text(
        "/proc/iomem",
        "00000000-00000fff : Reserved\n\
         00001000-0009ffff : System RAM\n\
         00100000-7fffffff : System RAM\n\
         80000000-febfffff : PCI Bus 0000:00\n\
         \x20 e0000000-efffffff : PCI MMCONFIG 0000 [bus 00-ff]\n\
         fec00000-fec003ff : IOAPIC 0\n\
         100000000-107fffffff : System RAM\n",
    );
    build.text(
        "/proc/ioports",
        "0000-0cf7 : PCI Bus 0000:00\n  02f8-02ff : serial\n",
    );
    build.linux(
        "console=ttyS1,115200 isolcpus=40-47 nohz_full=40-47",
        "ttyS1                -W- (EC p a)    4:65\ntty0                 -WU (E  p  )    4:1\n",
        "0: uart:unknown port:000003F8 irq:4\n1: uart:16550A port:000002F8 irq:3 tx:9 rx:0\n",
    );
    let mut structures: Vec<Vec<u8>> = (0..)
        .zip(&cpus)
        .map(|(uid, cpu)| match u8::try_from(cpu.apic_id) {
            // Ids below 255 may stand in either kind of structure.
            Ok(apic_id) if apic_id < 0xff => {
                tables::local_apic(u8::try_from(uid).unwrap(), apic_id, true)
            }
            _ => tables::x2apic(uid, cpu.apic_id, true),
        })
        .collect();
    structures.extend((96..128).map(|uid| tables::x2apic(uid, 0x200 + uid, false)));
    structures.extend([
        tables::io_apic(240, 0xfec0_0000, 0),
        tables::io_apic(241, 0xc018_0000, 24),
        tables::interrupt_override(0, 2, 0),
        tables::nmi_source(5, 30),
        tables::local_nmi(0xff, 5, 1),
        tables::x2apic_nmi(u32::MAX, 5, 1),
        tables::local_apic_address(0xfee0_0000),
    ]);
    build.table("APIC", tables::madt(&structures));
    build.table("FACP", tables::fadt(268, 0x800));
    build.table("MCFG", tables::mcfg(&[(0xe000_0000, 0, 0, 0xff)]));
    build.table("IVRS", tables::table("IVRS", 2, &[0; 12]));
    build.pci(vec![
        function("0000:00:00.0", (0x1022, 0x1480), HOST_BRIDGE).node(0),
        function("0000:00:01.1", (0x1022, 0x1483), BRIDGE)
            .bridge(1, 1)
            .express(ROOT_PORT, false)
            .acs(true)
            .driver("pcieport")
            .node(0),
        function("0000:01:00.0", (0x15b3, 0x1017), ETHERNET)
            .express(ENDPOINT, true)
            .memory64(0, 0x200_0000_0000, 32 << 20)
            .msi_x(64, 0, 0x2000)
            .driver("mlx5_core")
            .node(0),
    ]);
    build
}

/// A board with memory reserved for graphics and USB, ports with and without access control services, a multi-function
/// device, a bridge to conventional PCI, and firmware that asks not to use x2APIC.
pub(crate) fn old_board() -> Build {
    let mut build = Build::default();
    let cpus: Vec<TestCpu> = (0..4)
        .map(|id| TestCpu {
            apic_id: id % 2 * 2 + id / 2,
            package: 0,
            core: id % 2,
            node: 0,
            l2: id % 2,
            l3: 0,
        })
        .collect();
    let model = Model {
        vendor: b"GenuineIntel",
        has_vmx: true,
        has_svm: false,
        physical_address_bits: 39,
        l3_allocation: None,
        smi_count: Some(1217),
    };
    build.cpus(model, &cpus);
    build.text(
        "/proc/iomem",
        "00000000-00000fff : Reserved\n\
         00001000-0009d3ff : System RAM\n\
         00100000-dc7fffff : System RAM\n\
         dc800000-dc8fffff : ACPI Tables\n\
         dd000000-df1fffff : Reserved\n\
         \x20 dd800000-df1fffff : Graphics Stolen Memory\n\
         df200000-feafffff : PCI Bus 0000:00\n\
         \x20 f8000000-fbffffff : PCI MMCONFIG 0000 [bus 00-3f]\n\
         fec00000-fec003ff : IOAPIC 0\n\
         fed90000-fed90fff : dmar0\n\
         fed91000-fed91fff : dmar1\n\
         fee00000-fee00fff : Local APIC\n\
         100000000-21fdfffff : System RAM\n",
    );
    build.text(
        "/proc/ioports",
        "0000-0cf7 : PCI Bus 0000:00\n  02f8-02ff : serial\n  03f8-03ff : serial\n1800-187f : pnp 00:01\n  1800-1803 : ACPI PM1a_EVT_BLK\n",
    );
    build.linux(
        "console=tty0 console=ttyS0",
        "tty0                 -WU (EC p  )    4:1\nttyS0                -W- (E  p a)    4:64\n",
        "0: uart:16550A port:000003F8 irq:4 tx:0 rx:0\n1: uart:16550A port:000002F8 irq:3 tx:0 rx:0\n",
    );
    let mut structures: Vec<Vec<u8>> = (0..)
        .zip(&cpus)
        .map(|(uid, cpu)| tables::local_apic(uid, u8::try_from(cpu.apic_id).unwrap(), true))
        .collect();
    structures.extend([
        tables::io_apic(2, 0xfec0_0000, 0),
        tables::interrupt_override(0, 2, 0),
        tables::interrupt_override(9, 9, 0xd),
        tables::local_nmi(0xff, 5, 1),
    ]);
    build.table("APIC", tables::madt(&structures));
    // The second revision of ACPI's.
    build.table("FACP", tables::fadt(244, 0x1800));
    build.table("MCFG", tables::mcfg(&[(0xf800_0000, 0, 0, 0x3f)]));
    build.table(
        "DMAR",
        tables::dmar(
            39,
            3,
            &[
                tables::drhd(
                    false,
                    0,
                    0,
                    0xfed9_0000,
                    &[tables::scope(1, 0, 0, &[(2, 0)])],
                ),
                tables::drhd(
                    true,
                    0,
                    0,
                    0xfed9_1000,
                    &[
                        tables::scope(3, 2, 0xf0, &[(0x1f, 0)]),
                        tables::scope(4, 0, 0xf0, &[(0xf, 0)]),
                    ],
                ),
                tables::rmrr(
                    0,
                    0xdc9f_0000,
                    0xdca1_5fff,
                    &[
                        tables::scope(1, 0, 0, &[(0x1d, 0)]),
                        tables::scope(1, 0, 0, &[(0x14, 0)]),
                        // A function that was disabled behind a bridge that is not there.
                        tables::scope(1, 0, 0, &[(0x1b, 0), (0, 0)]),
                    ],
                ),
                tables::rmrr(
                    0,
                    0xdd80_0000,
                    0xdf1f_ffff,
                    &[tables::scope(1, 0, 0, &[(2, 0)])],
                ),
            ],
        ),
    );
    old_board_pci(&mut build);
    build
}

fn old_board_pci(build: &mut Build) {
    build.pci(vec![
        function("0000:00:00.0", (0x8086, 0x0c00), HOST_BRIDGE),
        function("0000:00:02.0", (0x8086, 0x0412), DISPLAY)
            .memory64(0, 0xf740_0000, 4 << 20)
            .memory64(2, 0xe000_0000, 256 << 20)
            .ports(4, 0xf000, 64)
            .msi(0)
            .capability(0x13, &[6, 3, 0, 0])
            .driver("i915"),
        function("0000:00:14.0", (0x8086, 0x8c31), USB)
            .memory64(0, 0xf7f0_0000, 64 << 10)
            .power_management()
            .msi(3)
            .driver("xhci_hcd"),
        port("0000:00:1c.0", 0x8c10, ROOT_PORT, (2, 2))
            .multifunction()
            .acs(false)
            .driver("pcieport"),
        port("0000:00:1c.4", 0x8c18, ROOT_PORT, (3, 3))
            .multifunction()
            .driver("pcieport"),
        port("0000:00:1c.5", 0x8c1a, ROOT_PORT, (4, 5))
            .multifunction()
            .acs(false)
            .driver("pcieport"),
        function("0000:00:1d.0", (0x8086, 0x8c26), EHCI)
            .memory32(0, 0xf7f1_b000, 1 << 10)
            .driver("ehci-pci"),
        function("0000:00:1f.0", (0x8086, 0x8c4e), ISA_BRIDGE)
            .multifunction()
            .driver("lpc_ich"),
        function("0000:00:1f.3", (0x8086, 0x8c22), 0x0c_0500)
            .multifunction()
            .memory64(0, 0xf7f1_9000, 256)
            .ports(4, 0xf040, 32),
        function("0000:02:00.0", (0x8086, 0x1533), ETHERNET)
            .memory32(0, 0xf7b0_0000, 1 << 20)
            .ports(2, 0xd000, 32)
            .memory32(3, 0xf7c0_0000, 16 << 10)
            .power_management()
            .msi(0)
            .msi_x(5, 3, 0)
            .express(ENDPOINT, true)
            .serial_number()
            .driver("igb"),
        function("0000:03:00.0", (0x10de, 0x1287), DISPLAY)
            .multifunction()
            .memory32(0, 0xf600_0000, 16 << 20)
            .express(ENDPOINT, false)
            .msi(0),
        function("0000:03:00.1", (0x10de, 0x0e0f), AUDIO)
            .multifunction()
            .memory32(0, 0xf708_0000, 16 << 10)
            .express(ENDPOINT, false)
            .msi(0)
            .driver("snd_hda_intel"),
        port("0000:04:00.0", 0x1080, PCI_BRIDGE, (5, 5)),
        function("0000:05:01.0", (0x1131, 0x7146), MULTIMEDIA).memory32(0, 0xf7a0_0000, 512),
        function("0000:05:02.0", (0x10ec, 0x8139), ETHERNET)
            .ports(0, 0xc000, 256)
            .memory32(1, 0xf7a0_1000, 256)
            .driver("8139too"),
    ]);
}
