//! What a cell may have of a machine that the system configuration describes.

use gaol_abi::config::{
    CELL_UNPROTECTED_DMA, DEVICE_NO_MASTER, IOMMU_INCLUDES_ALL, IOMMU_SOURCE_FUNCTION,
    IOMMU_SOURCE_HPET, IOMMU_SOURCE_IO_APIC, IommuSource, IommuUnit, MACHINE_BAR_PORTS,
    MACHINE_DEVICE_BRIDGE, MACHINE_DEVICE_SHARES_REQUESTER, MEMORY_COMMUNICATION, MEMORY_CONTINUED,
    MEMORY_DEVICE, MEMORY_DMA, MEMORY_EXECUTE, MEMORY_LOADABLE, MEMORY_READ, MEMORY_ROOT_SHARED,
    MEMORY_SHARED, MEMORY_TYPE_UNCACHEABLE, MEMORY_TYPE_WRITE_BACK, MEMORY_TYPE_WRITE_COMBINING,
    MEMORY_TYPE_WRITE_PROTECTED, MEMORY_TYPE_WRITE_THROUGH, MEMORY_WIDTH_8, MEMORY_WIDTH_32,
    MEMORY_WRITE, MSR_PER_CPU, MSR_READ, MSR_WRITE, MachineBar, MachineCpu, MachineDevice,
    MachineRange, MemoryRegion, RANGE_IO_APIC, RANGE_IOMMU, RANGE_PCI_CONFIGURATION, RANGE_RAM,
    RANGE_RESERVED_DMA, SYSTEM_DESCRIBES_MACHINE,
};
use gaol_abi::outcome::MachineFault;

use super::*;
use crate::encode::{self, Cell, System};

const RAM: u64 = MEMORY_READ | MEMORY_WRITE | MEMORY_EXECUTE;
const DATA: u64 = MEMORY_READ | MEMORY_WRITE;
const REGISTERS: u64 = DATA | MEMORY_DEVICE;
type Verdict = Result<(), (Reason, u64)>;

fn range(kind: u16, physical: u64, size: u64, number: u32, extent: u16) -> MachineRange {
    MachineRange {
        physical,
        size,
        kind,
        extent,
        number,
    }
}

fn function(function: u16, group: u16, flags: u16, msi: u16, msix: u16) -> MachineDevice {
    MachineDevice {
        segment: 0,
        function,
        group,
        flags,
        vendor: 0x8086,
        device: 0x1000 | function,
        msi_vectors: msi,
        msix_vectors: msix,
    }
}

fn bar(device: u16, address: u64, size: u64, flags: u8) -> MachineBar {
    MachineBar {
        address,
        size,
        device,
        number: 0,
        flags,
        reserved: 0,
    }
}

/// Two sockets, 2 GiB on both sides of 4 GiB, two IOAPICs, a few functions.
fn system() -> System {
    let mut system = System {
        flags: SYSTEM_DESCRIBES_MACHINE,
        ranges: vec![
            range(RANGE_RAM, 0x1000, 0x9_f000, 0, 0),
            range(RANGE_RAM, 0x10_0000, 0x3ff0_0000, 0, 0),
            range(RANGE_RAM, 1 << 32, 1 << 30, 1, 0),
            range(RANGE_IO_APIC, 0xfec0_0000, 0x1000, 0, 24),
            range(RANGE_IO_APIC, 0xfd00_0000, 0x100, 24, 8),
            range(RANGE_PCI_CONFIGURATION, 0xe000_0000, 1 << 28, 0, 0xff00),
            range(RANGE_IOMMU, 0xfd10_0000, 0x1000, 0, 0),
            range(RANGE_RESERVED_DMA, 0x3f00_0000, 0x1_0000, 0, 0),
        ],
        cpus: (0..8)
            .map(|cpu| MachineCpu {
                apic_id: u32::from(cpu) * 2,
                package: cpu / 4,
                core: cpu,
                l2: cpu / 2,
                l3: cpu / 4,
                node: cpu / 4,
                flags: 0,
            })
            .collect(),
        devices: vec![
            function(0x00, 0, MACHINE_DEVICE_BRIDGE, 0, 0),
            function(0x18, 1, 0, 1, 4),
            function(0x20, 2, 0, 8, 0),
            function(0x21, 2, 0, 8, 0),
            // A bridge that leads to device 4 and another that is a function of device 6.
            function(0x28, 2, MACHINE_DEVICE_BRIDGE, 0, 0),
            function(0x30, 4, MACHINE_DEVICE_BRIDGE, 0, 0),
            function(0x31, 4, 0, 0, 0),
            function(0x100, 3, 0, 0, 300),
            function(0x200, 5, MACHINE_DEVICE_SHARES_REQUESTER, 0, 0),
            function(0x208, 5, MACHINE_DEVICE_SHARES_REQUESTER, 0, 0),
        ],
        bars: vec![
            bar(1, 0xf000_0000, 0x4000, 0),
            bar(1, 0xc000, 32, MACHINE_BAR_PORTS),
            bar(2, 0xf001_0000, 0x100, 0),
            bar(3, 0xf001_0100, 0x100, 0),
            bar(3, 0, 0x100, 0),
        ],
        ..System::default()
    };
    system.header.name = encode::name("root").unwrap();
    system.header.hypervisor_size = 4 << 20;
    system.header.l3_ways = 8;
    system
}

fn machine<'a>(view: SystemView<'a>) -> Machine<'a> {
    Machine {
        cpus: CpuSet::first(64),
        physical_limit: 1 << 40,
        hypervisor: Range::new(HostPhysical(0x3a00_0000), 4 << 20),
        hypervisor_ports: Some(PortRange {
            first: 0x2f8,
            count: 8,
        }),
        system: Some(view),
    }
}

fn region(name: &str, physical: u64, guest: u64, size: u64, flags: u64) -> MemoryRegion {
    MemoryRegion {
        name: encode::name(name).unwrap(),
        physical,
        guest,
        size,
        flags,
    }
}

fn device(function: u16) -> AssignedDevice {
    AssignedDevice {
        segment: 0,
        function,
        vectors: 0,
        flags: DEVICE_NO_MASTER,
    }
}

fn cell(name: &str, cpu: u32, physical: u64) -> Cell {
    Cell {
        name: encode::name(name).unwrap(),
        cpus: CpuSet::from_iter([cpu]),
        memory: vec![region("ram", physical, 0, 0x10_0000, RAM)],
        ..Cell::default()
    }
}

fn all_faults(system: &System, cells: &[Cell], placement: Placement) -> Vec<(Reason, u64)> {
    let binary = system.encode();
    let view = SystemView::parse(binary.bytes()).unwrap();
    let mut ledger = Ledger::new();
    let mut faults = Vec::new();
    for cell in cells {
        assert!(faults.is_empty(), "an earlier cell is refused: {faults:?}");
        let binary = cell.encode();
        let cell = CellView::parse(binary.bytes()).unwrap();
        ledger.faults(&machine(view), &cell, placement, &mut |refusal| {
            faults.push((refusal.reason, refusal.detail));
        });
        let first = ledger.check_with(&machine(view), &cell, placement);
        let first = first.map_err(|refusal| (refusal.reason, refusal.detail));
        assert_eq!(first.err(), faults.first().copied());
        if faults.is_empty() {
            ledger.claim(ledger.free_id().unwrap(), &cell).unwrap();
        }
    }
    faults
}

fn first(faults: Vec<(Reason, u64)>) -> Verdict {
    faults.first().map_or(Ok(()), |fault| Err(*fault))
}

/// What is said of the usual cell with one change, in the usual machine.
fn verdict(change: impl FnOnce(&mut Cell)) -> Verdict {
    beside(|_| (), change)
}

/// The same, beside a cell that was changed as well.
fn beside(neighbours: impl FnOnce(&mut Cell), change: impl FnOnce(&mut Cell)) -> Verdict {
    let (mut neighbour, mut own) = (
        cell("neighbour", 2, 0x2000_0000),
        cell("cell", 3, 0x3000_0000),
    );
    neighbours(&mut neighbour);
    change(&mut own);
    first(all_faults(
        &system(),
        &[neighbour, own],
        Placement::Complete,
    ))
}

/// What is said of a region that is added.
fn added(region: MemoryRegion) -> Verdict {
    verdict(|cell| cell.memory.push(region))
}

#[test]
fn the_usual_cell_is_accepted() {
    assert_eq!(verdict(|_| ()), Ok(()));
}

#[test]
fn cpus_are_those_of_the_description() {
    let cpu = |cpu| verdict(|cell| cell.cpus = CpuSet::from_iter([cpu]));
    assert_eq!(cpu(7), Ok(()));
    assert_eq!(cpu(8), Err((Reason::CpuUnknown, 8)));
}

#[test]
fn registers_of_the_machine_are_nobodys_memory() {
    let at = |physical, size| added(region("second", physical, 0x80_0000, size, REGISTERS));
    assert_eq!(
        at(0xfec0_0000, 0x1000),
        Err((Reason::MemoryIsInterruptController, 0xfec0_0000))
    );
    assert_eq!(
        at(0xfcff_f000, 0x2000),
        Err((Reason::MemoryIsInterruptController, 0xfd00_0000))
    );
    assert_eq!(at(0xfcff_f000, 0x1000), Ok(()));
    assert_eq!(
        at(0xefff_f000, 0x1000),
        Err((Reason::MemoryIsPciConfiguration, 0xefff_f000))
    );
    assert_eq!(
        at(0xdfff_f000, 0x2000),
        Err((Reason::MemoryIsPciConfiguration, 0xe000_0000))
    );
    assert_eq!(
        at(0xfd10_0000, 0x1000),
        Err((Reason::MemoryIsIommus, 0xfd10_0000))
    );
    assert_eq!(
        at(0x3f00_f000, 0x2000),
        Err((Reason::MemoryIsReservedDma, 0x3f00_f000))
    );
    assert_eq!(
        at(0x39ff_f000, 0x2000),
        Err((Reason::MemoryIsHypervisors, 0x3a00_0000))
    );
}

#[test]
fn registers_of_functions_are_for_cells_that_have_them() {
    let with = |devices: &[u16], region| {
        let devices: Vec<_> = devices.iter().copied().map(device).collect();
        verdict(|cell| {
            cell.devices = devices;
            cell.memory.push(region);
        })
    };
    let bar = region("bar", 0xf000_0000, 0x80_0000, 0x4000, REGISTERS);
    assert_eq!(with(&[], bar), Err((Reason::MemoryIsDevices, 0xf000_0000)));
    assert_eq!(with(&[0x18], bar), Ok(()));
    // Two functions of one page: whole pages reach both.
    let page = region("bar", 0xf001_0000, 0x80_0000, 0x1000, REGISTERS);
    assert_eq!(with(&[0x20, 0x21], page), Ok(()));
    assert_eq!(
        with(&[0x18], page),
        Err((Reason::MemoryIsDevices, 0xf001_0000))
    );
    // Memory on a function can be RAM to its cell, but not to devices.
    let ram = region("bar", 0xf000_0000, 0x80_0000, 0x4000, DATA);
    assert_eq!(with(&[0x18], ram), Ok(()));
    let dma = region("bar", 0xf000_0000, 0x80_0000, 0x4000, DATA | MEMORY_DMA);
    assert_eq!(with(&[0x18], dma), Err((Reason::DmaOutsideMemory, 1)));
    let ports = |devices: &[u16], first| {
        let devices: Vec<_> = devices.iter().copied().map(device).collect();
        verdict(|cell| {
            cell.devices = devices;
            cell.ports.push(PortRange { first, count: 16 });
        })
    };
    assert_eq!(ports(&[], 0xbff1), Err((Reason::PortsOwned, 0xbff1)));
    assert_eq!(ports(&[], 0xc020), Ok(()));
    assert_eq!(ports(&[0x18], 0xc000), Ok(()));
}

#[test]
fn ram_is_where_the_machine_has_memory() {
    let at = |physical, flags| added(region("second", physical, 0x80_0000, 0x10_0000, flags));
    let dma = DATA | MEMORY_DMA;
    for flags in [DATA, dma] {
        assert_eq!(at(0x3ff0_0000, flags), Ok(()));
        assert_eq!(at(0x1_3ff0_0000, flags), Ok(()));
    }
    for physical in [
        0x3ff0_1000,
        0x4000_0000,
        0xd000_0000,
        0x1_3ff0_1000,
        0x8_0000_0000,
        0x9_0000,
    ] {
        assert_eq!(
            at(physical, dma),
            Err((Reason::DmaOutsideMemory, 1)),
            "{physical:#x}"
        );
        assert_eq!(
            at(physical, DATA),
            Err((Reason::MemoryUnknown, 1)),
            "{physical:#x}"
        );
        assert_eq!(at(physical, REGISTERS), Ok(()), "{physical:#x}");
    }
}

/// The file of a machine may leave out its RAM, which is of any amount; where the hypervisor is says nothing of it.
#[test]
fn a_description_without_ram_says_nothing_of_memory() {
    let mut system = system();
    system.ranges.retain(|range| range.kind != RANGE_RAM);
    for physical in [0x10_0000, 0x3ff0_0000, 0x8_0000_0000] {
        let mut cell = cell("cell", 3, physical);
        cell.memory.push(region(
            "second",
            physical + 0x100_0000,
            0x80_0000,
            0x10_0000,
            DATA,
        ));
        let faults = all_faults(&system, &[cell], Placement::Complete);
        assert_eq!(first(faults), Ok(()), "{physical:#x}");
    }
}

#[test]
fn memory_types_fit_the_kind() {
    let ram = |flags| {
        added(region(
            "second",
            0x3800_0000,
            0x80_0000,
            0x1000,
            DATA | flags,
        ))
    };
    let registers = |flags| {
        added(region(
            "second",
            0xd000_0000,
            0x80_0000,
            0x1000,
            REGISTERS | flags,
        ))
    };
    let cached = [
        MEMORY_TYPE_WRITE_THROUGH,
        MEMORY_TYPE_WRITE_PROTECTED,
        MEMORY_TYPE_WRITE_BACK,
    ];
    let invalid = Err((Reason::RegionInvalid, 1));
    for kind in [MEMORY_TYPE_UNCACHEABLE, MEMORY_TYPE_WRITE_COMBINING] {
        assert_eq!((ram(kind), registers(kind)), (Ok(()), Ok(())));
    }
    for kind in cached {
        assert_eq!((ram(kind), registers(kind)), (Ok(()), invalid));
    }
    for kind in [6 << 12, 7 << 12] {
        assert_eq!((ram(kind), registers(kind)), (invalid, invalid));
    }
    assert_eq!(
        registers(MEMORY_WIDTH_8 | MEMORY_TYPE_WRITE_COMBINING),
        invalid
    );
    let communication = DATA | MEMORY_COMMUNICATION | MEMORY_TYPE_WRITE_BACK;
    assert_eq!(
        added(region("comm", 0, 0x80_0000, 0x1000, communication)),
        invalid
    );
}

#[test]
fn access_widths_are_for_parts_of_pages_of_registers() {
    let flags = REGISTERS | MEMORY_WIDTH_32;
    let at = |physical, guest, size| added(region("part", physical, guest, size, flags));
    let invalid = Err((Reason::RegionInvalid, 1));
    assert_eq!(at(0xd000_0010, 0x80_0010, 0x20), Ok(()));
    assert_eq!(at(0xd000_0000, 0x80_0000, 0x3000), Ok(()));
    assert_eq!(at(0xd000_0012, 0x80_0012, 0x20), invalid);
    assert_eq!(at(0xd000_0010, 0x80_0010, 0x22), invalid);
    assert_eq!(at(0xd000_0010, 0x80_0020, 0x20), invalid);
    assert_eq!(at(0xd000_0ff0, 0x80_0ff0, 0x20), invalid);
    assert_eq!(at(0xd000_0010, 0x80_0010, 0), invalid);
    let ram = region("part", 0x3800_0010, 0x80_0010, 0x20, DATA | MEMORY_WIDTH_32);
    assert_eq!(added(ram), invalid);
}

#[test]
fn parts_of_a_page_have_different_owners_and_whole_pages_one() {
    let part = |at: u64| {
        region(
            "part",
            0xd000_0000 + at,
            0x80_0000 + at,
            0x10,
            REGISTERS | MEMORY_WIDTH_8,
        )
    };
    let page = region("page", 0xd000_0000, 0x80_0000, 0x1000, REGISTERS);
    let two = |first: MemoryRegion, second: MemoryRegion| {
        beside(
            |cell| cell.memory.push(first),
            |cell| cell.memory.push(second),
        )
    };
    let owned = |at: u64| Err((Reason::MemoryOwned, 0xd000_0000 + at));
    assert_eq!(two(part(0), part(0x10)), Ok(()));
    assert_eq!(two(part(0), part(0xf)), owned(0xf));
    assert_eq!(two(part(0), page), owned(0));
    assert_eq!(two(page, part(0x20)), owned(0x20));
    let own = |first: MemoryRegion, second: MemoryRegion| {
        verdict(|cell| {
            cell.memory.extend([
                first,
                MemoryRegion {
                    name: encode::name("b").unwrap(),
                    ..second
                },
            ])
        })
    };
    assert_eq!(own(part(0), part(0x10)), Ok(()));
    assert_eq!(own(part(0), part(8)), Err((Reason::RegionOverlap, 2)));
    assert_eq!(own(part(0), page), Err((Reason::RegionOverlap, 2)));
}

#[test]
fn memory_shared_by_name_is_one_for_all() {
    const SHARED: u64 = DATA | MEMORY_SHARED;
    let two = |first: &[MemoryRegion], second: &[MemoryRegion]| {
        beside(
            |cell| cell.memory.extend_from_slice(first),
            |cell| cell.memory.extend_from_slice(second),
        )
    };
    let shared = |name, physical, size, flags| region(name, physical, 0x80_0000, size, flags);
    let usual = shared("s", 0x2800_0000, 0x2000, SHARED);
    let against = |other: MemoryRegion| two(&[usual], &[other]);
    let differs = Err((Reason::SharedRegionDiffers, 1));
    let owned = Err((Reason::MemoryOwned, 0x2800_0000));
    assert_eq!(against(usual), Ok(()));
    assert_eq!(
        against(MemoryRegion {
            guest: 0x90_0000,
            ..usual
        }),
        Ok(())
    );
    assert_eq!(
        against(shared(
            "s",
            0x2800_0000,
            0x2000,
            MEMORY_READ | MEMORY_SHARED
        )),
        Ok(())
    );
    assert_eq!(against(shared("s", 0x2800_0000, 0x1000, SHARED)), differs);
    assert_eq!(against(shared("s", 0x2900_0000, 0x2000, SHARED)), differs);
    assert_eq!(
        against(shared(
            "s",
            0x2800_0000,
            0x2000,
            SHARED | MEMORY_ROOT_SHARED
        )),
        differs
    );
    assert_eq!(
        against(shared(
            "s",
            0x2800_0000,
            0x2000,
            SHARED | MEMORY_TYPE_UNCACHEABLE
        )),
        differs
    );
    assert_eq!(against(shared("other", 0x2800_0000, 0x2000, SHARED)), owned);
    assert_eq!(against(shared("s", 0x2800_0000, 0x2000, DATA)), owned);
    assert_eq!(against(shared("s", 0x2900_0000, 0x2000, DATA)), Ok(()));
    let loadable = shared("s", 0x2800_0000, 0x2000, SHARED | MEMORY_LOADABLE);
    assert_eq!(added(loadable), Err((Reason::RegionInvalid, 1)));
    // In pieces, they are the same pieces.
    let piece =
        |physical, at: u64, flags| region("s", physical, 0x80_0000 + at, 0x1000, SHARED | flags);
    let pieces = [
        piece(0x2800_0000, 0, 0),
        piece(0x2810_0000, 0x1000, MEMORY_CONTINUED),
    ];
    let turned = [
        piece(0x2810_0000, 0, 0),
        piece(0x2800_0000, 0x1000, MEMORY_CONTINUED),
    ];
    assert_eq!(two(&pieces, &pieces), Ok(()));
    assert_eq!(two(&pieces, &turned), differs);
    assert_eq!(two(&pieces, &pieces[..1]), differs);
}

#[test]
fn shared_memory_without_a_place_agrees_as_well() {
    let shared = |name, cpu, physical, size| {
        let mut cell = cell(name, cpu, 0);
        cell.memory
            .push(region("s", physical, 0x80_0000, size, DATA | MEMORY_SHARED));
        cell
    };
    let two = |first, second| first_open(&[first, second]);
    fn first_open(cells: &[Cell]) -> Verdict {
        first(all_faults(&system(), cells, Placement::Open))
    }
    let differs = Err((Reason::SharedRegionDiffers, 1));
    assert_eq!(
        two(shared("a", 1, 0, 0x2000), shared("b", 2, 0, 0x2000)),
        Ok(())
    );
    assert_eq!(
        two(
            shared("a", 1, 0, 0x2000),
            shared("b", 2, 0x2800_0000, 0x2000)
        ),
        Ok(())
    );
    assert_eq!(
        two(shared("a", 1, 0, 0x2000), shared("b", 2, 0, 0x1000)),
        differs
    );
    assert_eq!(
        two(
            shared("a", 1, 0x2800_0000, 0x2000),
            shared("b", 2, 0, 0x1000)
        ),
        differs
    );
}

#[test]
fn pieces_go_on_where_the_last_one_ended() {
    let pieces = |change: fn(&mut [MemoryRegion; 2])| {
        let mut pieces = [
            region("big", 0x3800_0000, 0x80_0000, 0x2000, DATA),
            region(
                "big",
                0x3900_0000,
                0x80_2000,
                0x1000,
                DATA | MEMORY_CONTINUED,
            ),
        ];
        change(&mut pieces);
        verdict(|cell| cell.memory.extend(pieces))
    };
    let invalid = Err((Reason::RegionInvalid, 2));
    assert_eq!(pieces(|_| ()), Ok(()));
    assert_eq!(pieces(|pieces| pieces[1].guest += 0x1000), invalid);
    assert_eq!(pieces(|pieces| pieces[1].flags |= MEMORY_EXECUTE), invalid);
    assert_eq!(
        pieces(|pieces| pieces[1].name = encode::name("b").unwrap()),
        invalid
    );
    assert_eq!(
        pieces(|pieces| pieces[1].physical = 0x3800_1000),
        Err((Reason::RegionOverlap, 2))
    );
    let alone = region(
        "ram",
        0x3900_0000,
        0x80_2000,
        0x1000,
        DATA | MEMORY_CONTINUED,
    );
    let verdict = verdict(|cell| cell.memory = vec![alone]);
    assert_eq!(verdict, Err((Reason::RegionInvalid, 0)));
    let device = region(
        "big",
        0xd000_0000,
        0x80_0000,
        0x2000,
        REGISTERS | MEMORY_CONTINUED,
    );
    assert_eq!(added(device), Err((Reason::RegionInvalid, 1)));
}

#[test]
fn functions_have_one_owner_and_stay_in_their_group() {
    let devices = |functions: &[u16]| {
        let devices = functions.iter().copied().map(device).collect();
        beside(
            |cell| cell.devices.push(device(0x100)),
            |cell| cell.devices = devices,
        )
    };
    assert_eq!(devices(&[0x18]), Ok(()));
    assert_eq!(devices(&[0x20, 0x21]), Ok(()));
    assert_eq!(devices(&[0x20]), Err((Reason::DeviceGroupSplit, 0x21)));
    assert_eq!(devices(&[0x21]), Err((Reason::DeviceGroupSplit, 0x20)));
    assert_eq!(devices(&[0x31]), Err((Reason::DeviceGroupSplit, 0x30)));
    assert_eq!(devices(&[0x19]), Err((Reason::DeviceUnknown, 0x19)));
    assert_eq!(devices(&[0x00]), Err((Reason::DeviceIsBridge, 0x00)));
    assert_eq!(devices(&[0x18, 0x18]), Err((Reason::DeviceOwned, 0x18)));
    assert_eq!(devices(&[0x100]), Err((Reason::DeviceOwned, 0x100)));
    let other_segment = AssignedDevice {
        segment: 1,
        ..device(0x18)
    };
    let verdict = verdict(|cell| cell.devices.push(other_segment));
    assert_eq!(verdict, Err((Reason::DeviceUnknown, 0x1_0018)));
}

#[test]
fn a_function_that_a_bridge_speaks_for_goes_to_no_cell_where_an_iommu_is() {
    let pair = |flags| {
        [0x200, 0x208].map(|function| AssignedDevice {
            flags,
            ..device(function)
        })
    };
    let refused = Err((Reason::DeviceSharesRequester, 0x200));
    // Neither alone nor with all that the bridge speaks for, and trusting the cell does not help: the IOMMU is in use.
    for unprotected in [0, CELL_UNPROTECTED_DMA] {
        for count in 1..=2 {
            let verdict = verdict(|cell| {
                cell.flags |= unprotected;
                cell.devices = pair(0)[..count].to_vec();
            });
            assert_eq!(verdict, refused);
        }
    }
    // What never is bus master does not speak at all.
    let verdict = verdict(|cell| cell.devices = pair(DEVICE_NO_MASTER).to_vec());
    assert_eq!(verdict, Ok(()));
    // Without an IOMMU nobody asks who speaks: the cell is trusted with all memory, or does not get the function.
    let without = |unprotected| {
        let mut system = system();
        system.ranges.retain(|range| range.kind != RANGE_IOMMU);
        let mut cell = cell("cell", 3, 0x3000_0000);
        cell.flags |= unprotected;
        cell.devices = pair(0).to_vec();
        first(all_faults(&system, &[cell], Placement::Complete))
    };
    assert_eq!(without(0), Err((Reason::UnprotectedDma, 0x200)));
    assert_eq!(without(CELL_UNPROTECTED_DMA), Ok(()));
}

#[test]
fn a_function_at_the_address_of_an_interrupt_controller_goes_to_no_cell_where_an_iommu_is() {
    let verdict = |kind, segment, flags| {
        let mut system = system();
        system.iommus = [0, 1]
            .map(|segment| IommuUnit {
                registers: 0xfd10_0000 + 0x1000 * u64::from(segment),
                size: 0x1000,
                segment,
                flags: IOMMU_INCLUDES_ALL,
            })
            .to_vec();
        system
            .ranges
            .push(range(RANGE_IOMMU, 0xfd10_1000, 0x1000, 0, 0));
        let is_io_apic = kind == IOMMU_SOURCE_IO_APIC;
        system.iommu_sources = vec![IommuSource {
            address: if is_io_apic { 0xfec0_0000 } else { 0 },
            unit: segment,
            kind,
            segment,
            source: 0x18,
        }];
        let mut cell = cell("cell", 3, 0x3000_0000);
        cell.devices = vec![AssignedDevice {
            flags,
            ..device(0x18)
        }];
        first(all_faults(&system, &[cell], Placement::Complete))
    };
    let refused = Err((Reason::DeviceSharesRequester, 0x18));
    assert_eq!(verdict(IOMMU_SOURCE_IO_APIC, 0, 0), refused);
    assert_eq!(verdict(IOMMU_SOURCE_HPET, 0, 0), refused);
    assert_eq!(verdict(IOMMU_SOURCE_FUNCTION, 0, 0), Ok(()));
    assert_eq!(verdict(IOMMU_SOURCE_IO_APIC, 1, 0), Ok(()));
    assert_eq!(verdict(IOMMU_SOURCE_IO_APIC, 0, DEVICE_NO_MASTER), Ok(()));
}

#[test]
fn vectors_are_limited_by_function_and_by_cpus() {
    let vectors = |function, vectors, lines: u32, cpus: &[u32]| {
        verdict(|cell| {
            cell.cpus = cpus.iter().copied().collect();
            cell.devices.push(AssignedDevice {
                vectors,
                ..device(function)
            });
            cell.interrupts = (0..lines).map(|number| Interrupt { number }).collect();
        })
    };
    let over = |function| Err((Reason::VectorBudget, function));
    assert_eq!(vectors(0x18, 4, 0, &[3]), Ok(()));
    assert_eq!(vectors(0x18, 5, 0, &[3]), over(0x18));
    assert_eq!(vectors(0x100, 192, 0, &[3]), Ok(()));
    assert_eq!(vectors(0x100, 193, 0, &[3]), over(0x100));
    assert_eq!(vectors(0x100, 193, 0, &[3, 4]), Ok(()));
    assert_eq!(vectors(0x100, 190, 3, &[3]), over(0x100));
    assert_eq!(vectors(0x100, 0, 32, &[3]), Ok(()));
}

#[test]
fn interrupt_lines_have_one_owner() {
    let lines = |lines: &[u32]| {
        let lines = lines
            .iter()
            .map(|number| Interrupt { number: *number })
            .collect();
        beside(
            |cell| cell.interrupts.push(Interrupt { number: 10 }),
            |cell| cell.interrupts = lines,
        )
    };
    assert_eq!(lines(&[0, 23, 24, 31]), Ok(()));
    assert_eq!(lines(&[32]), Err((Reason::InterruptUnknown, 32)));
    assert_eq!(lines(&[11, 10]), Err((Reason::InterruptOwned, 10)));
    assert_eq!(lines(&[11, 11]), Err((Reason::InterruptOwned, 11)));
}

#[test]
fn cache_ways_are_adjacent_and_of_one_cell_in_each_cache() {
    let l3 = |theirs, ours, cpu: u32| {
        beside(
            |cell| cell.l3_ways = theirs,
            |cell| {
                cell.l3_ways = ours;
                cell.cpus = CpuSet::from_iter([cpu]);
            },
        )
    };
    let invalid = |ways: u64| Err((Reason::CacheWaysInvalid, 3 << 32 | ways));
    let owned = |ways: u64| Err((Reason::CacheWaysOwned, 3 << 32 | ways));
    assert_eq!(l3(0, 0b110, 3), Ok(()));
    assert_eq!(l3(0, 0b101, 3), invalid(0b101));
    assert_eq!(l3(0, 0x180, 3), invalid(0x180));
    assert_eq!(l3(0, 0xff, 3), owned(0xff));
    assert_eq!(l3(0b11, 0b110, 3), owned(0b110));
    assert_eq!(l3(0b11, 0b1100, 3), Ok(()));
    // The neighbour is on the other socket.
    assert_eq!(l3(0b11, 0b110, 4), Ok(()));
    assert_eq!(l3(0x0f, 0xf0, 3), owned(0xf0));
    let l2 = verdict(|cell| cell.l2_ways = 1);
    assert_eq!(l2, Err((Reason::CacheWaysInvalid, 2 << 32 | 1)));
    assert_eq!(
        verdict(|cell| cell.l3_ways = u32::MAX),
        invalid(u64::from(u32::MAX))
    );
}

fn access(msr: u32, flags: u32) -> MsrAccess {
    let write_mask = if flags & MSR_WRITE != 0 { 0xff } else { 0 };
    MsrAccess {
        msr,
        flags,
        write_mask,
    }
}

#[test]
fn registers_that_others_rely_on_are_not_given() {
    let give = |access: MsrAccess| verdict(|cell| cell.msrs.push(access));
    let invalid = |msr| Err((Reason::MsrInvalid, msr));
    assert_eq!(give(access(0x198, MSR_READ)), Ok(()));
    assert_eq!(give(access(0x199, MSR_READ | MSR_WRITE)), Ok(()));
    assert_eq!(give(access(0xc000_1fff, MSR_READ)), Ok(()));
    assert_eq!(give(access(0x1fff, MSR_READ)), Ok(()));
    for msr in [
        0x2000,
        0x4000_0000,
        0x8000_0198,
        0xc000_2000,
        0xc001_0114,
        u32::MAX,
    ] {
        assert_eq!(give(access(msr, MSR_READ)), invalid(msr.into()));
    }
    for msr in [
        0x1b,
        0x3a,
        0x9b,
        0x1d9,
        0x200,
        0x277,
        0x480,
        0x492,
        0x560,
        0x800,
        0x8ff,
        0xc90,
        0x17d0,
        0xc000_0080,
    ] {
        assert_eq!(give(access(msr, MSR_READ)), invalid(msr.into()));
    }
    for msr in [0x10, 0x3b, 0x79, 0x8b, 0x1a0, 0x400, 0x47f] {
        assert_eq!(give(access(msr, MSR_READ)), Ok(()));
        assert_eq!(give(access(msr, MSR_READ | MSR_WRITE)), invalid(msr.into()));
    }
    let mask = |flags, write_mask| {
        give(MsrAccess {
            msr: 0x199,
            flags,
            write_mask,
        })
    };
    assert_eq!(mask(MSR_READ, 1), invalid(0x199));
    assert_eq!(mask(MSR_WRITE, 0), invalid(0x199));
    assert_eq!(mask(MSR_PER_CPU, 0), invalid(0x199));
}

#[test]
fn registers_have_one_owner_unless_each_cpu_has_its_own() {
    let two = |theirs, ours| {
        beside(
            |cell| cell.msrs.push(access(0x199, theirs)),
            |cell| cell.msrs.push(access(0x199, ours)),
        )
    };
    const BOTH: u32 = MSR_READ | MSR_WRITE;
    let owned = Err((Reason::MsrOwned, 0x199));
    assert_eq!(two(MSR_READ, MSR_READ), Ok(()));
    assert_eq!(two(BOTH, MSR_READ), owned);
    assert_eq!(two(MSR_READ, BOTH), owned);
    assert_eq!(two(BOTH | MSR_PER_CPU, BOTH), owned);
    assert_eq!(two(BOTH | MSR_PER_CPU, BOTH | MSR_PER_CPU), Ok(()));
    let twice = verdict(|cell| cell.msrs = vec![access(0x199, MSR_READ), access(0x199, MSR_READ)]);
    assert_eq!(twice, owned);
}

#[test]
fn all_faults_are_visited() {
    let mut cell = cell("cell", 9, 0x8_0000_0000);
    cell.cpus = CpuSet::from_iter([0, 9]);
    cell.ports = vec![PortRange {
        first: 0xcf8,
        count: 1,
    }];
    cell.devices = vec![device(0x20), device(0x19)];
    cell.interrupts = vec![Interrupt { number: 99 }];
    cell.l3_ways = 5;
    cell.msrs = vec![access(0x1b, MSR_READ)];
    cell.reset_address = 0x10_0000;
    let reasons: Vec<Reason> = all_faults(&system(), &[cell], Placement::Complete)
        .into_iter()
        .map(|(reason, _)| reason)
        .collect();
    let expected = [
        Reason::CpuZero,
        Reason::CpuUnknown,
        Reason::MemoryUnknown,
        Reason::PortsOwned,
        Reason::DeviceGroupSplit,
        Reason::DeviceUnknown,
        Reason::InterruptUnknown,
        Reason::CacheWaysInvalid,
        Reason::MsrInvalid,
        Reason::ResetAddress,
    ];
    assert_eq!(reasons, expected);
}

#[test]
fn what_the_build_cannot_keep_is_told_apart() {
    let of = |change: fn(&mut Cell)| {
        let mut cell = cell("cell", 3, 0x3000_0000);
        change(&mut cell);
        let binary = cell.encode();
        unsupported(&CellView::parse(binary.bytes()).unwrap()).map(|refusal| refusal.detail)
    };
    assert_eq!(of(|_| ()), None);
    assert_eq!(of(|cell| cell.devices.push(device(0x18))), None);
    assert_eq!(
        of(|cell| cell.interrupts.push(Interrupt { number: 1 })),
        None
    );
    assert_eq!(of(|cell| cell.l2_ways = 1), Some(3));
    assert_eq!(of(|cell| cell.memory[0].flags |= MEMORY_WIDTH_8), None);
    assert_eq!(of(|cell| cell.msrs.push(access(0x198, MSR_READ))), None);
}

/// What is said of the usual system with one change.
fn system_verdict(change: impl FnOnce(&mut System)) -> Verdict {
    let mut system = system();
    change(&mut system);
    let binary = system.encode();
    let view = SystemView::parse(binary.bytes()).unwrap();
    let first = check_system(&machine(view));
    first.map_err(|refusal| (refusal.reason, refusal.detail))
}

fn is_invalid(change: impl FnOnce(&mut System), fault: MachineFault, index: u64) {
    let expected = Err((Reason::MachineInvalid, u64::from(fault.0) << 32 | index));
    assert_eq!(system_verdict(change), expected);
}

#[test]
fn a_description_makes_sense() {
    assert_eq!(system_verdict(|_| ()), Ok(()));
    is_invalid(
        |system| system.ranges[0].size = 0,
        MachineFault::RangePlace,
        0,
    );
    is_invalid(
        |system| system.ranges[2].size = u64::MAX,
        MachineFault::RangePlace,
        2,
    );
    is_invalid(
        |system| system.ranges[2].physical = 1 << 40,
        MachineFault::RangePlace,
        2,
    );
    is_invalid(
        |system| system.ranges[1].kind = 0,
        MachineFault::RangeKind,
        1,
    );
    is_invalid(
        |system| system.ranges[1].kind = 6,
        MachineFault::RangeKind,
        1,
    );
    is_invalid(
        |system| system.ranges[5].size /= 2,
        MachineFault::PciConfigurationSize,
        5,
    );
    is_invalid(
        |system| system.ranges[5].extent = 0x01ff,
        MachineFault::PciConfigurationSize,
        5,
    );
    is_invalid(
        |system| system.ranges[3].extent = 0,
        MachineFault::IoApicPins,
        3,
    );
    is_invalid(
        |system| system.ranges[4].extent = 241,
        MachineFault::IoApicPins,
        4,
    );
    is_invalid(
        |system| system.ranges[4].number = 23,
        MachineFault::IoApicPins,
        4,
    );
    is_invalid(
        |system| system.ranges[4].number = u32::MAX,
        MachineFault::IoApicPins,
        4,
    );
    is_invalid(
        |system| system.ranges[7].physical = 0x3a3f_f000,
        MachineFault::HypervisorOnRange,
        7,
    );
    is_invalid(|system| system.cpus[5].apic_id = 2, MachineFault::Cpu, 5);
    is_invalid(|system| system.cpus[5].flags = 2, MachineFault::Cpu, 5);
    is_invalid(
        |system| system.devices.swap(1, 2),
        MachineFault::DeviceOrder,
        2,
    );
    is_invalid(
        |system| system.devices[2].function = 0x18,
        MachineFault::DeviceOrder,
        2,
    );
    is_invalid(
        |system| system.devices[2].flags = 4,
        MachineFault::DeviceOrder,
        2,
    );
    is_invalid(
        |system| system.bars[3].device = system.devices.len() as u16,
        MachineFault::BarDevice,
        3,
    );
    is_invalid(
        |system| system.bars[3].number = 6,
        MachineFault::BarPlace,
        3,
    );
    is_invalid(|system| system.bars[3].size = 0, MachineFault::BarPlace, 3);
    is_invalid(
        |system| system.bars[1].address = 0xfff0,
        MachineFault::BarPlace,
        1,
    );
    is_invalid(
        |system| system.bars[0].address = u64::MAX,
        MachineFault::BarPlace,
        0,
    );
    is_invalid(
        |system| system.bars[0].address = 0x39ff_f000,
        MachineFault::HypervisorOnBar,
        0,
    );
}

#[test]
fn the_hypervisor_is_not_on_an_interrupt_controller() {
    let binary = system().encode();
    let view = SystemView::parse(binary.bytes()).unwrap();
    for start in [0xfec0_0000, 0xfee0_0000, (1 << 40) - (2 << 20)] {
        let machine = Machine {
            hypervisor: Range::new(HostPhysical(start), 4 << 20),
            ..machine(view)
        };
        let detail = u64::from(MachineFault::HypervisorPlace.0) << 32;
        let expected = Err(Refusal::new(Reason::MachineInvalid, detail));
        assert_eq!(check_system(&machine), expected);
    }
}

#[test]
fn a_strict_root_has_possible_lists() {
    let memory = |physical, guest, flags| {
        system_verdict(|system| {
            system.root_memory = vec![
                region("low", 0, 0, 0xa_0000, RAM),
                region("second", physical, guest, 0x1000, flags),
            ]
        })
    };
    let invalid = Err((Reason::RegionInvalid, 1));
    assert_eq!(memory(0x10_0000, 0x10_0000, RAM), Ok(()));
    assert_eq!(memory(0xe000_0000, 0xe000_0000, REGISTERS), Ok(()));
    assert_eq!(memory(0x3f00_0000, 0x3f00_0000, RAM), Ok(()));
    assert_eq!(memory(0x10_0000, 0x20_0000, RAM), invalid);
    assert_eq!(memory(1 << 40, 1 << 40, RAM), invalid);
    for flags in [
        MEMORY_LOADABLE,
        MEMORY_SHARED,
        MEMORY_ROOT_SHARED,
        MEMORY_CONTINUED,
    ] {
        assert_eq!(memory(0x10_0000, 0x10_0000, RAM | flags), invalid);
    }
    assert_eq!(
        memory(0x9_f000, 0x9_f000, RAM),
        Err((Reason::RegionOverlap, 1))
    );
    for (at, reason) in [
        (0x3a00_0000, Reason::MemoryIsHypervisors),
        (0xfee0_0000, Reason::MemoryIsInterruptController),
        (0xfd00_0000, Reason::MemoryIsInterruptController),
        (0xfd10_0000, Reason::MemoryIsIommus),
    ] {
        assert_eq!(memory(at, at, REGISTERS), Err((reason, at)));
    }
    // Linux gave the hypervisor its memory from the midst of its own.
    let around = |start, size| {
        let all = region("ram", start, start, size, RAM);
        system_verdict(|system| system.root_memory = vec![all])
    };
    assert_eq!(around(0x3900_0000, 0x200_0000), Ok(()));
    assert_eq!(
        around(0x3900_0000, 0x100_1000),
        Err((Reason::MemoryIsHypervisors, 0x3a00_0000))
    );
    let ports = |first, count| {
        system_verdict(|system| {
            system.root_ports = vec![
                PortRange {
                    first: 0x60,
                    count: 5,
                },
                PortRange { first, count },
            ]
        })
    };
    assert_eq!(ports(0xcf8, 8), Ok(()));
    assert_eq!(ports(0x64, 1), Err((Reason::PortsInvalid, 0x64)));
    assert_eq!(ports(0x70, 0), Err((Reason::PortsInvalid, 0x70)));
    assert_eq!(ports(0x2ff, 1), Err((Reason::PortsOwned, 0x2ff)));
    let msrs = |msrs: &[MsrAccess]| system_verdict(|system| system.root_msrs = msrs.to_vec());
    assert_eq!(
        msrs(&[access(0x200, MSR_READ | MSR_WRITE), access(0x277, MSR_READ)]),
        Ok(())
    );
    assert_eq!(
        msrs(&[access(0x3a, MSR_READ)]),
        Err((Reason::MsrInvalid, 0x3a))
    );
    assert_eq!(
        msrs(&[access(0x200, MSR_READ), access(0x200, MSR_READ)]),
        Err((Reason::MsrOwned, 0x200))
    );
}

#[test]
fn functions_are_behind_the_units_that_the_firmware_names() {
    let unit = |segment, flags| IommuUnit {
        registers: 0xfd10_0000,
        size: 0x1000,
        segment,
        flags,
    };
    let source = |kind, unit, source| IommuSource {
        address: 0,
        unit,
        kind,
        segment: 0,
        source,
    };
    let refused = |system: &System, function: u16| {
        let binary = system.encode();
        let view = SystemView::parse(binary.bytes()).unwrap();
        let wanted = AssignedDevice {
            flags: 0,
            ..device(function)
        };
        is_unprotected(&machine(view), &wanted)
    };
    let mut system = system();
    // Which functions are behind it is not known yet.
    assert!(!refused(&system, 0x18));
    system.iommus = vec![unit(0, 0)];
    system.iommu_sources = vec![
        source(IOMMU_SOURCE_FUNCTION, 0, 0x18),
        source(IOMMU_SOURCE_IO_APIC, 0, 0x20),
    ];
    assert!(!refused(&system, 0x18));
    assert!(refused(&system, 0x20), "the IOAPIC's address");
    assert!(refused(&system, 0x28));
    system.iommus[0].segment = 1;
    assert!(refused(&system, 0x18), "another segment");
    system.iommus = vec![unit(0, IOMMU_INCLUDES_ALL)];
    assert!(!refused(&system, 0x28));
    system.iommus.clear();
    system.iommu_sources.clear();
    system.ranges.retain(|range| range.kind != RANGE_IOMMU);
    assert!(refused(&system, 0x18), "there is none");
}
