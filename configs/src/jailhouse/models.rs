//! Configurations of Jailhouse as people have them, for tests.

use proptest::prelude::*;

use super::build::{
    CacheModel, CellModel, ConsoleModel, DeviceModel, IommuModel, IrqchipModel, SystemModel, name,
};

pub const READ: u64 = 1;
pub const WRITE: u64 = 2;
pub const EXECUTE: u64 = 4;
pub const DMA: u64 = 8;
pub const IO: u64 = 16;
pub const COMMUNICATION: u64 = 32;
pub const LOADABLE: u64 = 64;
pub const ROOTSHARED: u64 = 128;
pub const IO_8: u64 = 1 << 16;
pub const IO_32: u64 = 4 << 16;

pub const PASSIVE: u32 = 1;
pub const PERMITTED: u32 = 1 << 30;
pub const ACTIVE: u32 = 1 << 31;

const RAM: u64 = READ | WRITE | EXECUTE | LOADABLE;

fn uart(address: u64) -> ConsoleModel {
    ConsoleModel {
        address,
        kind: 2,
        ..ConsoleModel::default()
    }
}

fn first_io_apic(pins: [u32; 4]) -> IrqchipModel {
    IrqchipModel {
        address: 0xfec0_0000,
        id: 0xff00,
        pin_base: 0,
        pin_bitmap: pins,
    }
}

fn communication(at: u64) -> [u64; 4] {
    [0, at, 0x1000, READ | WRITE | COMMUNICATION]
}

fn function(kind: u8, bdf: u16) -> DeviceModel {
    DeviceModel {
        kind,
        bdf,
        ..DeviceModel::default()
    }
}

/// An emulated machine with VT-d, shared memory and a serial interface.
pub fn system() -> SystemModel {
    let mut iommu_units: [IommuModel; 8] = Default::default();
    iommu_units[0] = IommuModel {
        kind: 2,
        base: 0xfed9_0000,
        size: 0x1000,
        details: [0; 12],
    };
    SystemModel {
        flags: 1,
        hypervisor_memory: [0x3a00_0000, 0, 0x60_0000, 0],
        debug_console: uart(0x3f8),
        pci_mmconfig_base: 0xb000_0000,
        pci_mmconfig_end_bus: 0xff,
        iommu_units,
        pm_timer_address: 0x608,
        vtd_interrupt_limit: 256,
        root: CellModel {
            revision: 14,
            name: name("QEMU-VM"),
            cpu_set: vec![0b1111, 0, 0, 0, 0, 0, 0, 0],
            memory: vec![
                [0x3f00_0000, 0x3f00_0000, 0x1000, READ],
                [0; 4],
                [0x3f00_1000, 0x3f00_1000, 0x1000, READ | WRITE],
                [0x3f00_2000, 0x3f00_2000, 0x1000, READ],
                [0, 0, 0x3a00_0000, READ | WRITE | EXECUTE | DMA],
            ],
            irqchips: vec![first_io_apic([u32::MAX; 4])],
            ports: vec![[0x60, 2], [0x3f8, 8]],
            devices: vec![
                function(1, 0x10),
                DeviceModel {
                    shmem_peers: 2,
                    shmem_protocol: 1,
                    ..function(3, 0x178)
                },
            ],
            capabilities: vec![[5, 0xd0, 14, 1]],
            ..CellModel::default()
        },
        ..SystemModel::default()
    }
}

/// A bare-metal demonstration.
pub fn demo() -> CellModel {
    CellModel {
        revision: 14,
        name: name("apic-demo"),
        flags: ACTIVE | PERMITTED,
        msg_reply_timeout: 1000,
        cpu_set: vec![0b1000],
        memory: vec![[0x3ef0_0000, 0, 0x10_0000, RAM], communication(0x10_0000)],
        ports: vec![[0x2f8, 8], [0xe010, 8]],
        caches: vec![CacheModel {
            start: 2,
            size: 2,
            kind: 3,
            flags: 0,
        }],
        ..CellModel::default()
    }
}

/// Linux in a cell, with pins, and the older revision.
pub fn linux() -> CellModel {
    CellModel {
        revision: 13,
        name: name("linux x86"),
        flags: PASSIVE | PERMITTED,
        cpu_reset_address: 0x1000,
        cpu_set: vec![0b1100, 0, 0, 0, 0, 0, 0, 0],
        memory: vec![
            [0x3a60_0000, 0, 0x10_0000, RAM | DMA],
            communication(0x10_0000),
            [0x3a70_0000, 0x20_0000, 0x470_0000, RAM | DMA | 1 << 8],
        ],
        irqchips: vec![
            first_io_apic([1 << 3 | 1 << 4, 0, 0, 0]),
            IrqchipModel {
                address: 0xfec8_0000,
                id: 0x1f0ff,
                pin_base: 0,
                pin_bitmap: [1 << 7, 0, 0, 0],
            },
        ],
        ports: vec![[0x2f8, 8], [0xfff8, 16]],
        caches: vec![CacheModel {
            start: 0,
            size: 2,
            kind: 3,
            flags: 1,
        }],
        ..CellModel::default()
    }
}

/// A cell with a network interface, registers within a page, and shared memory.
pub fn devices() -> CellModel {
    CellModel {
        revision: 14,
        name: name("nic"),
        console: uart(0x3f8),
        flags: PASSIVE | 2,
        cpu_set: vec![0, 0b10],
        memory: vec![
            [0x3f0f_0000, 0x3f0f_0000, 0x1000, READ | ROOTSHARED],
            [0; 4],
            [0x3f0f_1000, 0x3f0f_1000, 0x8000, READ | ROOTSHARED],
            [
                0x3f0f_9000,
                0x3f0f_9000,
                0x8000,
                READ | WRITE | ROOTSHARED | LOADABLE,
            ],
            [0x3ee0_0000, 0, 0x10_0000, RAM | DMA],
            communication(0x10_0000),
            [0xfebc_0000, 0xfebc_0000, 0x2_0000, READ | WRITE],
            [
                0xfed0_0100,
                0xfed0_0100,
                0x40,
                READ | WRITE | IO | IO_8 | IO_32 | 1 << 15,
            ],
        ],
        ports: vec![[0xc000, 0x40], [0xcf8, 8]],
        devices: vec![
            DeviceModel {
                num_caps: 1,
                num_msi_vectors: 1,
                msi_flags: 1,
                ..function(1, 0xc8)
            },
            function(2, 0xe0),
            DeviceModel {
                num_msix_vectors: 2,
                shmem_dev_id: 1,
                shmem_peers: 2,
                shmem_protocol: 1,
                ..function(3, 0x170)
            },
        ],
        capabilities: vec![[5, 0xd0, 14, 1]],
        ..CellModel::default()
    }
}

/// A cell with everything that Gaol can't take as it is.
pub fn faulty() -> CellModel {
    CellModel {
        revision: 14,
        name: name("3"),
        flags: 1 << 5,
        vpci_irq_base: 32,
        cpu_set: [&[0b101][..], &[0; 31], &[0b11]].concat(),
        memory: vec![
            [0, 0, 0x10_0000, RAM | 1 << 40],
            [0x3000_0000, 0x8_0000, 0x1000, READ | WRITE | EXECUTE],
            [0x3000_1000, 0x20_0000, 0x1000, 0],
            [0x3000_2000, 0x20_1000, 0x800, READ],
            [
                0x3000_3000,
                0x20_3000,
                0x1000,
                WRITE | IO | DMA | EXECUTE | LOADABLE,
            ],
            [0xfee0_0000, 0xfee0_0000, 0x1000, READ | WRITE | IO],
            [1 << 63, 1 << 63, 0x1000, READ | ROOTSHARED],
            [0, 0x10_0000, 0x2000, READ | COMMUNICATION],
        ],
        ports: vec![[0x3f8, 8], [0x3fa, 2], [0x80, 0], [0x3f0, 16], [0xcf0, 32]],
        caches: vec![
            CacheModel {
                start: 30,
                size: 3,
                kind: 3,
                flags: 0,
            },
            CacheModel {
                start: 0,
                size: 1,
                kind: 2,
                flags: 0,
            },
        ],
        irqchips: vec![first_io_apic([0, 1, 0, 0])],
        devices: vec![function(1, 0x18), function(1, 0x18)],
        ..CellModel::default()
    }
}

/// A piece of memory as a cell would have it: flags, pages, whether it is where it is in the machine.
fn any_piece() -> impl Strategy<Value = (u64, u64, bool)> {
    let flags = prop_oneof![
        Just(RAM),
        Just(RAM | DMA),
        Just(READ | WRITE | DMA),
        Just(READ | EXECUTE),
        Just(READ | ROOTSHARED),
        Just(READ | WRITE | ROOTSHARED),
        Just(READ | WRITE | IO),
        Just(READ | WRITE | IO | ROOTSHARED),
        Just(READ | WRITE),
        Just(0),
    ];
    (flags, 1..64u64, any::<bool>())
}

/// Any cell that Gaol can take as it is.
pub fn any_good_cell() -> impl Strategy<Value = CellModel> {
    let header = (13..=14u16, "[a-z][a-z0-9-]{0,30}", any::<(bool, bool)>());
    let cpus = proptest::collection::btree_set(1..256usize, 1..9);
    let pieces = proptest::collection::vec(any_piece(), 0..12);
    let ports = proptest::collection::vec((1..100u16, 1..20u16), 0..12);
    let pins = proptest::collection::btree_set(0..120usize, 0..8);
    let functions = proptest::collection::btree_set(0..=u16::MAX, 0..6);
    let ways = (0..16u32, 0..4u32);
    // Words from the middle of a page on, to the next page and beyond.
    let parts = (0..0x1000u64, 1..0xc00u64);
    let pieces = (pieces, parts);
    (header, cpus, pieces, ports, pins, functions, ways).prop_map(
        |(
            (revision, text, (passive, console)),
            cpus,
            (pieces, parts),
            gaps,
            pins,
            functions,
            ways,
        )| {
            let mut cpu_set = vec![0; 32];
            for cpu in cpus {
                cpu_set[cpu / 8] |= 1 << (cpu % 8);
            }
            let mut pin_bitmap = [0; 4];
            for pin in pins {
                pin_bitmap[pin / 32] |= 1 << (pin % 32);
            }
            // Above PCI configuration, one after the other.
            let mut next = 0x1000u16;
            let mut ports = Vec::new();
            for (gap, length) in gaps {
                ports.push([next + gap, length]);
                next += gap + length;
            }
            CellModel {
                revision,
                name: name(&text),
                flags: if passive { PASSIVE } else { 0 } | if console { ACTIVE } else { 0 },
                cpu_set,
                memory: placed(&pieces, parts),
                caches: vec![CacheModel {
                    start: ways.0,
                    size: ways.1,
                    kind: 3,
                    flags: 0,
                }],
                irqchips: vec![first_io_apic(pin_bitmap)],
                ports,
                devices: functions.into_iter().map(|bdf| function(1, bdf)).collect(),
                ..CellModel::default()
            }
        },
    )
}

/// Code at 0, the communication region, registers that share pages, and behind them the pieces, one after the other with a
/// page between them.
fn placed(pieces: &[(u64, u64, bool)], (offset, words): (u64, u64)) -> Vec<[u64; 4]> {
    let registers = 0xd000_0000 + (offset & !3);
    let size = words << 2 | 4;
    let mut memory = vec![
        [0x3000_0000, 0, 0x10_0000, RAM],
        communication(0x10_0000),
        [registers, registers, size, READ | WRITE | IO | IO_8 | IO_32],
    ];
    let mut next = 0x4000_0000;
    for (flags, pages, is_in_place) in pieces {
        let size = pages << 12;
        let guest = if *is_in_place {
            next
        } else {
            next - 0x3000_0000
        };
        memory.push([next, guest, if *flags == 0 { 0 } else { size }, *flags]);
        next += size + 0x1000;
    }
    memory
}
