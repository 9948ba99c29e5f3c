//! What the builder makes is read as it was meant, and what is damaged is refused by name.

use proptest::prelude::*;

use super::build::{
    Built, CacheModel, CellModel, ConsoleModel, DeviceModel, IommuModel, IrqchipModel, SystemModel,
    any_cell, any_system, name,
};
use super::damage::{Damage, Fault};
use super::layout::{Console, Memory};
use super::parse::{Blob, CellBlob, MAX_FILE_SIZE, Revision, SystemBlob, parse};

/// Compares with the snapshot of this name.
#[track_caller]
pub(super) fn compare(name: &str, text: &str) {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("../../snapshots");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!(name, text));
}

fn memory_model(memory: &Memory) -> [u64; 4] {
    [
        memory.phys_start,
        memory.virt_start,
        memory.size,
        memory.flags,
    ]
    .map(zerocopy::little_endian::U64::get)
}

fn console_model(console: &Console) -> ConsoleModel {
    ConsoleModel {
        address: console.address.get(),
        size: console.size.get(),
        kind: console.kind.get(),
        flags: console.flags.get(),
        divider: console.divider.get(),
        gate_nr: console.gate_nr.get(),
        clock_reg: console.clock_reg.get(),
    }
}

fn cell_model(cell: &CellBlob<'_>) -> CellModel {
    let header = cell.header;
    CellModel {
        revision: match cell.revision {
            Revision::Thirteen => 13,
            Revision::Fourteen => 14,
        },
        architecture: 0,
        name: header.name,
        id: header.id.get(),
        flags: header.flags.get(),
        stream_ids: header.num_stream_ids.get(),
        vpci_irq_base: header.vpci_irq_base.get(),
        cpu_reset_address: header.cpu_reset_address.get(),
        msg_reply_timeout: header.msg_reply_timeout.get(),
        console: console_model(&header.console),
        cpu_set: cell.cpu_set.to_vec(),
        memory: cell.memory.iter().map(memory_model).collect(),
        caches: cell
            .caches
            .iter()
            .map(|cache| CacheModel {
                start: cache.start.get(),
                size: cache.size.get(),
                kind: cache.kind,
                flags: cache.flags.get(),
            })
            .collect(),
        irqchips: cell
            .irqchips
            .iter()
            .map(|chip| IrqchipModel {
                address: chip.address.get(),
                id: chip.id.get(),
                pin_base: chip.pin_base.get(),
                pin_bitmap: chip.pin_bitmap.map(zerocopy::little_endian::U32::get),
            })
            .collect(),
        ports: cell
            .ports
            .iter()
            .map(|ports| [ports.base.get(), ports.length.get()])
            .collect(),
        devices: cell
            .devices
            .iter()
            .map(|device| DeviceModel {
                kind: device.kind,
                iommu: device.iommu,
                domain: device.domain.get(),
                bdf: device.bdf.get(),
                bar_mask: device.bar_mask.map(zerocopy::little_endian::U32::get),
                caps_start: device.caps_start.get(),
                num_caps: device.num_caps.get(),
                num_msi_vectors: device.num_msi_vectors,
                msi_flags: device.msi_flags,
                num_msix_vectors: device.num_msix_vectors.get(),
                msix_region_size: device.msix_region_size.get(),
                msix_address: device.msix_address.get(),
                shmem_regions_start: device.shmem_regions_start.get(),
                shmem_dev_id: device.shmem_dev_id,
                shmem_peers: device.shmem_peers,
                shmem_protocol: device.shmem_protocol.get(),
            })
            .collect(),
        capabilities: cell
            .capabilities
            .iter()
            .map(|capability| {
                [
                    capability.id,
                    capability.start,
                    capability.len,
                    capability.flags,
                ]
                .map(zerocopy::little_endian::U16::get)
            })
            .collect(),
    }
}

fn system_model(system: &SystemBlob<'_>) -> SystemModel {
    let header = system.header;
    let platform = &header.platform_info;
    SystemModel {
        flags: header.flags.get(),
        hypervisor_memory: memory_model(&header.hypervisor_memory),
        debug_console: console_model(&header.debug_console),
        pci_mmconfig_base: platform.pci_mmconfig_base.get(),
        pci_mmconfig_end_bus: platform.pci_mmconfig_end_bus,
        pci_is_virtual: platform.pci_is_virtual,
        pci_domain: platform.pci_domain.get(),
        iommu_units: platform.iommu_units.map(|unit| IommuModel {
            kind: unit.kind.get(),
            base: unit.base.get(),
            size: unit.size.get(),
            details: unit.details,
        }),
        pm_timer_address: platform.pm_timer_address.get(),
        apic_mode: platform.apic_mode,
        vtd_interrupt_limit: platform.vtd_interrupt_limit.get(),
        tsc_khz: platform.tsc_khz.get(),
        apic_khz: platform.apic_khz.get(),
        beyond_x86: platform.beyond_x86,
        root: cell_model(&system.root),
    }
}

fn read_cell(bytes: &[u8]) -> CellBlob<'_> {
    match parse(bytes) {
        Ok(Blob::Cell(cell)) => cell,
        other => panic!("{other:?}"),
    }
}

fn read_system(bytes: &[u8]) -> SystemBlob<'_> {
    match parse(bytes) {
        Ok(Blob::System(system)) => system,
        other => panic!("{other:?}"),
    }
}

/// The part that holds the byte at `place`, or the signature that all files begin with.
fn part_at(built: &Built, place: usize) -> (&'static str, usize) {
    if place < 8 {
        return ("signature", 0);
    }
    *built
        .parts
        .iter()
        .rev()
        .find(|(_, start)| *start <= place)
        .unwrap()
}

/// What is not there is said to be missing, and nothing else, wherever the file ends.
fn assert_truncations_are_named(built: &Built) {
    for length in 0..built.bytes.len() {
        let (field, offset) = part_at(built, length);
        let found = parse(&built.bytes[..length]).unwrap_err();
        assert_eq!(
            (found.field.as_str(), found.offset),
            (field, offset),
            "{found:?}"
        );
        match found.fault {
            Fault::Truncated { needed, available } => {
                assert_eq!(available, length - offset);
                assert!(needed > available);
            }
            fault => panic!("{fault:?}"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_cell_is_read_as_it_was_built(model in any_cell()) {
        let built = model.build();
        prop_assert_eq!(&cell_model(&read_cell(&built.bytes)), &model);
        assert_truncations_are_named(&built);
    }

    #[test]
    fn a_system_is_read_as_it_was_built(model in any_system()) {
        let built = model.build();
        prop_assert_eq!(&system_model(&read_system(&built.bytes)), &model);
        assert_truncations_are_named(&built);
    }

    #[test]
    fn bytes_behind_the_end_are_counted(model in any_cell(), surplus in 0..100usize) {
        let mut bytes = model.build().bytes;
        bytes.resize(bytes.len() + surplus, 0xff);
        prop_assert_eq!(read_cell(&bytes).surplus, surplus);
    }

    #[test]
    fn no_bytes_make_the_reader_panic(bytes: Vec<u8>, which in 0..4usize) {
        let signature: &[u8] = [b"JHSYST\x0d\0", b"JHCELL\x0d\0", b"JHSYS\0\x0e\0", b"JHCLL\0\x0e\0"][which];
        let _ = (parse(&bytes), parse(&[signature, &bytes].concat()));
    }

    #[test]
    fn changed_bytes_are_read_or_refused(
        model in any_system(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = model.build().bytes;
        for (index, value) in changes {
            let place = index.index(bytes.len());
            bytes[place] = value;
        }
        if let Err(found) = parse(&bytes) {
            prop_assert!(found.offset < bytes.len() && !found.field.is_empty(), "{:?}", found);
        }
    }
}

/// A cell with something in every array.
fn full_cell(revision: u16) -> CellModel {
    CellModel {
        revision,
        name: name("full"),
        cpu_set: vec![0b110, 0, 0x80],
        memory: vec![[0, 0, 0x1000, 0x23]; 4],
        caches: vec![CacheModel::default()],
        irqchips: vec![IrqchipModel {
            pin_bitmap: [1 << 31 | 1, 0, 1, 1 << 31],
            ..IrqchipModel::default()
        }],
        ports: vec![[0x3f8, 8]],
        devices: vec![
            DeviceModel {
                kind: 1,
                num_caps: 1,
                ..DeviceModel::default()
            },
            DeviceModel {
                kind: 3,
                shmem_regions_start: 0,
                shmem_peers: 2,
                ..DeviceModel::default()
            },
        ],
        capabilities: vec![[5, 0xd0, 14, 1]],
        ..CellModel::default()
    }
}

#[test]
fn bitmaps_are_sets_of_numbers() {
    let bytes = full_cell(14).build().bytes;
    let cell = read_cell(&bytes);
    assert_eq!(cell.cpus().collect::<Vec<_>>(), [1, 2, 23]);
    assert_eq!(
        cell.irqchips[0].pins().collect::<Vec<_>>(),
        [0, 31, 64, 127]
    );
    assert_eq!(cell.name(), b"full");
    assert_eq!(cell.surplus, 0);
}

/// The damage that a change of a model makes.
fn cell_damage(revision: u16, change: impl FnOnce(&mut CellModel)) -> Damage {
    let mut model = full_cell(revision);
    change(&mut model);
    parse(&model.build().bytes).unwrap_err()
}

fn system_damage(change: impl FnOnce(&mut SystemModel)) -> Damage {
    let mut model = SystemModel {
        root: full_cell(13),
        ..SystemModel::default()
    };
    change(&mut model);
    parse(&model.build().bytes).unwrap_err()
}

/// The damage that bytes written over a good cell make.
fn patched(revision: u16, place: usize, bytes: &[u8]) -> Damage {
    let mut file = full_cell(revision).build().bytes;
    file[place..place + bytes.len()].copy_from_slice(bytes);
    parse(&file).unwrap_err()
}

#[test]
fn every_damage_is_named() {
    let cases = [
        parse(b"").unwrap_err(),
        parse(b"JHCLL").unwrap_err(),
        parse(&vec![0; MAX_FILE_SIZE + 1]).unwrap_err(),
        parse(b"\x7fELF\x02\x01\x01\0\0\0\0\0").unwrap_err(),
        parse(b"GAOLCEL\0\x01\0\0\0").unwrap_err(),
        parse(b"JAILCELL\x05\0\0\0").unwrap_err(),
        parse(b"#include <jailhouse/types.h>").unwrap_err(),
        parse(&[0; 500]).unwrap_err(),
        patched(13, 0, b"JHCLL\0"),
        patched(14, 0, b"JHCELL"),
        patched(13, 0, b"JHCELX"),
        cell_damage(14, |cell| cell.revision = 12),
        cell_damage(14, |cell| cell.revision = 15),
        cell_damage(14, |cell| cell.architecture = 1),
        cell_damage(14, |cell| cell.architecture = 2),
        cell_damage(14, |cell| cell.architecture = 9),
        cell_damage(13, |cell| cell.flags = 4),
        cell_damage(13, |cell| cell.stream_ids = 1),
        cell_damage(13, |cell| cell.console.kind = 3),
        cell_damage(13, |cell| cell.console.kind = 11),
        cell_damage(13, |cell| cell.irqchips[0].pin_base = 32),
        cell_damage(14, |cell| cell.devices[1].kind = 0),
        cell_damage(14, |cell| cell.devices[1].kind = 4),
        cell_damage(14, |cell| cell.devices[0].caps_start = 1),
        cell_damage(14, |cell| cell.devices[1].shmem_regions_start = u32::MAX),
        cell_damage(14, |cell| cell.devices[1].shmem_peers = 255),
        patched(14, 48, &1025u32.to_le_bytes()),
        patched(14, 52, &1025u32.to_le_bytes()),
        patched(14, 56, &257u32.to_le_bytes()),
        patched(14, 60, &u32::MAX.to_le_bytes()),
        patched(14, 64, &1025u32.to_le_bytes()),
        patched(14, 68, &4097u32.to_le_bytes()),
        patched(14, 72, &65536u32.to_le_bytes()),
        system_damage(|system| system.debug_console.kind = 10),
        system_damage(|system| system.iommu_units[7].kind = 3),
        system_damage(|system| system.iommu_units[1].kind = 6),
        system_damage(|system| system.beyond_x86[27] = 0x40),
        system_damage(|system| system.root.irqchips[0].pin_base = 32),
        system_damage(|system| system.root.devices[0].num_caps = 2),
    ];
    let lines: Vec<String> = cases
        .iter()
        .map(|found| format!("{:?}: {found}\n  {}", found.reason(), found.remedy()))
        .collect();
    compare("jailhouse-damages", &lines.join("\n"));
}
