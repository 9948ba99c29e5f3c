use std::collections::HashMap;

use proptest::prelude::*;

use gaol_abi::config::{
    DEVICE_NO_MASTER, MEMORY_COMMUNICATION, MEMORY_DEVICE, MEMORY_DMA, MEMORY_EXECUTE,
    MEMORY_LOADABLE, MEMORY_READ, MEMORY_ROOT_SHARED, MEMORY_WRITE, MSR_PER_CPU, MSR_READ,
    MSR_WRITE, MemoryRegion,
};

use super::*;
use crate::encode::{self, Cell};

const RAM: u64 = MEMORY_READ | MEMORY_WRITE | MEMORY_EXECUTE | MEMORY_LOADABLE;
const SHARED: u64 = MEMORY_READ | MEMORY_WRITE | MEMORY_ROOT_SHARED;

fn machine() -> Machine<'static> {
    Machine {
        cpus: CpuSet::first(4),
        physical_limit: 1 << 40,
        hypervisor: Range::new(HostPhysical(0x3a00_0000), 4 << 20),
        hypervisor_ports: Some(PortRange {
            first: 0x2f8,
            count: 8,
        }),
        system: None,
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

fn cell(name: &str, cpus: &[u32], physical: u64) -> Cell {
    Cell {
        flags: 0,
        name: encode::name(name).unwrap(),
        cpus: cpus.iter().copied().collect(),
        reset_address: 0,
        shutdown_milliseconds: 0,
        memory: vec![region("ram", physical, 0, 0x10_0000, RAM)],
        ports: vec![],
        ..Cell::default()
    }
}

fn check(ledger: &Ledger, cell: &Cell) -> Result<(), Refusal> {
    let binary = cell.encode();
    ledger.check(&machine(), &CellView::parse(binary.bytes()).unwrap())
}

fn claim(ledger: &mut Ledger, cell: &Cell) -> CellId {
    check(ledger, cell).unwrap();
    let id = ledger.free_id().unwrap();
    let binary = cell.encode();
    ledger
        .claim(id, &CellView::parse(binary.bytes()).unwrap())
        .unwrap();
    id
}

/// What the check says of the usual cell with one change, beside the usual neighbour.
fn verdict(change: impl FnOnce(&mut Cell)) -> Result<(), (Reason, u64)> {
    let mut ledger = Ledger::new();
    ledger.name_root(&encode::name("root").unwrap());
    let mut neighbour = cell("neighbour", &[2], 0x2000_0000);
    neighbour
        .memory
        .push(region("shared", 0x2800_0000, 0x20_0000, 0x2000, SHARED));
    neighbour.ports.push(PortRange {
        first: 0x3f8,
        count: 8,
    });
    claim(&mut ledger, &neighbour);
    let mut cell = cell("cell", &[3], 0x3000_0000);
    change(&mut cell);
    check(&ledger, &cell).map_err(|refusal| (refusal.reason, refusal.detail))
}

#[test]
fn the_ledger_is_small() {
    assert!(size_of::<Ledger>() < 64 << 10, "{}", size_of::<Ledger>());
}

#[test]
fn a_sound_cell_is_accepted() {
    assert_eq!(verdict(|_| ()), Ok(()));
}

#[test]
fn names_are_unique() {
    let rename =
        |name: &'static str| move |cell: &mut Cell| cell.name = encode::name(name).unwrap();
    assert_eq!(verdict(rename("neighbour")), Err((Reason::CellExists, 1)));
    assert_eq!(verdict(rename("root")), Err((Reason::CellExists, 0)));
    let twice = region("ram", 0x3800_0000, 0x80_0000, 0x1000, RAM);
    let verdict = verdict(|cell| cell.memory.push(twice));
    assert_eq!(verdict, Err((Reason::RegionInvalid, 1)));
}

#[test]
fn cpus_must_exist_and_be_the_roots_and_not_its_first() {
    let cpus = |cpus: &'static [u32]| {
        verdict(|cell: &mut Cell| cell.cpus = cpus.iter().copied().collect())
    };
    assert_eq!(cpus(&[1, 3]), Ok(()));
    assert_eq!(cpus(&[]), Err((Reason::NoCpu, 0)));
    assert_eq!(cpus(&[3, 4]), Err((Reason::CpuUnknown, 4)));
    assert_eq!(cpus(&[255]), Err((Reason::CpuUnknown, 255)));
    assert_eq!(cpus(&[0, 3]), Err((Reason::CpuZero, 0)));
    assert_eq!(cpus(&[2, 3]), Err((Reason::CpuOwned, 2)));
}

#[test]
fn regions_are_pages_in_range() {
    let change = |change: fn(&mut MemoryRegion)| verdict(|cell| change(&mut cell.memory[0]));
    let invalid = Err((Reason::RegionInvalid, 0));
    assert_eq!(change(|region| region.guest = 0x800), invalid);
    assert_eq!(change(|region| region.physical += 0x10), invalid);
    assert_eq!(change(|region| region.size = 0), invalid);
    assert_eq!(change(|region| region.size = 0x1234), invalid);
    assert_eq!(
        change(|region| region.size = 0u64.wrapping_sub(0x1000)),
        invalid
    );
    assert_eq!(
        change(|region| region.guest = 0u64.wrapping_sub(0x1000)),
        invalid
    );
    assert_eq!(change(|region| region.guest = 1 << 40), invalid);
    assert_eq!(change(|region| region.physical = 1 << 40), invalid);
    assert_eq!(change(|region| region.physical = 0), invalid);
}

#[test]
fn memory_to_be_placed_later_is_accepted_before() {
    let mut cell = cell("cell", &[3], 0);
    let check = |cell: &Cell| {
        let binary = cell.encode();
        let view = CellView::parse(binary.bytes()).unwrap();
        Ledger::new().check_with(&machine(), &view, Placement::Open)
    };
    assert_eq!(check(&cell), Ok(()));
    cell.memory.push(region(
        "device",
        0,
        0x80_0000,
        0x1000,
        MEMORY_READ | MEMORY_DEVICE,
    ));
    assert_eq!(check(&cell), Err(Refusal::new(Reason::RegionInvalid, 1)));
}

#[test]
fn flags_make_sense() {
    let flags = |flags| {
        verdict(move |cell| {
            cell.memory
                .push(region("second", 0x3800_0000, 0x80_0000, 0x1000, flags))
        })
    };
    let invalid = Err((Reason::RegionInvalid, 1));
    assert_eq!(flags(MEMORY_READ), Ok(()));
    assert_eq!(flags(MEMORY_READ | MEMORY_WRITE | MEMORY_DMA), Ok(()));
    assert_eq!(flags(MEMORY_READ | MEMORY_WRITE | MEMORY_DEVICE), Ok(()));
    assert_eq!(flags(0), invalid);
    assert_eq!(flags(MEMORY_WRITE), invalid);
    assert_eq!(flags(MEMORY_EXECUTE), invalid);
    assert_eq!(flags(MEMORY_READ | MEMORY_DEVICE | MEMORY_EXECUTE), invalid);
    assert_eq!(
        flags(MEMORY_READ | MEMORY_DEVICE | MEMORY_LOADABLE),
        invalid
    );
    assert_eq!(flags(SHARED | MEMORY_LOADABLE), invalid);
}

#[test]
fn there_is_one_communication_page_without_memory_of_its_own() {
    const COMMUNICATION: u64 = MEMORY_COMMUNICATION | MEMORY_READ | MEMORY_WRITE;
    let add = |physical, size, flags| {
        verdict(move |cell| {
            cell.memory
                .push(region("comm", physical, 0x10_0000, size, flags))
        })
    };
    let invalid = Err((Reason::RegionInvalid, 1));
    assert_eq!(add(0, 0x1000, COMMUNICATION), Ok(()));
    assert_eq!(add(0, 0x2000, COMMUNICATION), invalid);
    assert_eq!(add(0x3800_0000, 0x1000, COMMUNICATION), invalid);
    assert_eq!(add(0, 0x1000, COMMUNICATION | MEMORY_LOADABLE), invalid);
    assert_eq!(add(0, 0x1000, COMMUNICATION | MEMORY_DEVICE), invalid);
    assert_eq!(add(0, 0x1000, COMMUNICATION | MEMORY_ROOT_SHARED), invalid);
    assert_eq!(add(0, 0x1000, COMMUNICATION | MEMORY_EXECUTE), invalid);
    assert_eq!(add(0, 0x1000, MEMORY_COMMUNICATION | MEMORY_READ), invalid);
    let two = verdict(|cell| {
        cell.memory
            .push(region("first", 0, 0x10_0000, 0x1000, COMMUNICATION));
        cell.memory
            .push(region("second", 0, 0x10_1000, 0x1000, COMMUNICATION));
    });
    assert_eq!(two, Err((Reason::RegionInvalid, 2)));
}

#[test]
fn regions_of_one_cell_are_apart() {
    let add = |physical, guest| {
        verdict(move |cell| {
            cell.memory
                .push(region("second", physical, guest, 0x2000, RAM))
        })
    };
    let overlap = Err((Reason::RegionOverlap, 1));
    assert_eq!(add(0x3800_0000, 0x10_0000), Ok(()));
    assert_eq!(add(0x3800_0000, 0xf_f000), overlap);
    assert_eq!(add(0x300f_f000, 0x10_0000), overlap);
}

#[test]
fn memory_of_others_is_refused_with_its_first_address() {
    let at = |physical| verdict(move |cell| cell.memory[0].physical = physical);
    assert_eq!(at(0x2010_0000), Ok(()));
    assert_eq!(at(0x200f_f000), Err((Reason::MemoryOwned, 0x200f_f000)));
    assert_eq!(at(0x1ff0_1000), Err((Reason::MemoryOwned, 0x2000_0000)));
    assert_eq!(
        at(0x39ff_f000),
        Err((Reason::MemoryIsHypervisors, 0x3a00_0000))
    );
    let apic = Err((Reason::MemoryIsInterruptController, APIC_PAGE));
    assert_eq!(at(APIC_PAGE), apic);
    for page in [0xfec0_0000, 0xfec0_1000, 0xfecf_f000] {
        assert_eq!(at(page), Err((Reason::MemoryIsInterruptController, page)));
    }
    assert_eq!(at(0xfed0_0000), Ok(()));
    let guest = verdict(|cell| cell.memory[0].guest = 0xfed0_0000);
    assert_eq!(guest, Err((Reason::ResetAddress, 0)));
    assert_eq!(verdict(|cell| cell.memory[0].guest = 0xfedf_f000), apic);
}

#[test]
fn shared_memory_is_the_same_for_all_who_name_it() {
    let add = |physical, size, flags| {
        verdict(move |cell| {
            cell.memory
                .push(region("shared", physical, 0x20_0000, size, flags))
        })
    };
    assert_eq!(add(0x2800_0000, 0x2000, SHARED), Ok(()));
    assert_eq!(
        add(0x2800_0000, 0x2000, MEMORY_READ | MEMORY_ROOT_SHARED),
        Ok(())
    );
    let owned = |address| Err((Reason::MemoryOwned, address));
    assert_eq!(add(0x2800_0000, 0x2000, RAM), owned(0x2800_0000));
    assert_eq!(add(0x2800_0000, 0x1000, SHARED), owned(0x2800_0000));
    assert_eq!(add(0x2800_1000, 0x2000, SHARED), owned(0x2800_1000));
    assert_eq!(
        add(0x2800_0000, 0x2000, SHARED | MEMORY_DEVICE),
        owned(0x2800_0000)
    );
    assert_eq!(add(0x2000_0000, 0x10_0000, SHARED), owned(0x2000_0000));
}

#[test]
fn ports_have_one_owner() {
    let ports = |first, count| verdict(move |cell| cell.ports.push(PortRange { first, count }));
    assert_eq!(ports(0x400, 8), Ok(()));
    assert_eq!(ports(0xfff8, 8), Ok(()));
    assert_eq!(ports(0x400, 0), Err((Reason::PortsInvalid, 0x400)));
    assert_eq!(ports(0xfff9, 8), Err((Reason::PortsInvalid, 0xfff9)));
    assert_eq!(ports(0x3f1, 8), Err((Reason::PortsOwned, 0x3f1)));
    assert_eq!(ports(0x2ff, 1), Err((Reason::PortsOwned, 0x2ff)));
    assert_eq!(ports(0xcff, 1), Err((Reason::PortsOwned, 0xcff)));
    assert_eq!(ports(0xcf0, 9), Err((Reason::PortsOwned, 0xcf0)));
    assert_eq!(ports(0xd00, 9), Ok(()));
    for port in [0x60, 0x64, 0x92] {
        assert_eq!(ports(port, 1), Err((Reason::PortsOwned, port.into())));
        assert_eq!(ports(port + 1, 1), Ok(()));
    }
    let twice = verdict(|cell| {
        for first in [0x400, 0x407] {
            cell.ports.push(PortRange { first, count: 8 });
        }
    });
    assert_eq!(twice, Err((Reason::PortsInvalid, 0x407)));
}

#[test]
fn cells_start_at_code_below_4_gib() {
    let at = |address| verdict(move |cell| cell.reset_address = address);
    assert_eq!(at(0xf_fff0), Ok(()));
    assert_eq!(at(0x10_0000), Err((Reason::ResetAddress, 0x10_0000)));
    let data = verdict(|cell| cell.memory[0].flags &= !MEMORY_EXECUTE);
    assert_eq!(data, Err((Reason::ResetAddress, 0)));
    let high = verdict(|cell| {
        cell.memory[0].guest = 1 << 32;
        cell.reset_address = 1 << 32;
    });
    assert_eq!(high, Err((Reason::ResetAddress, 1 << 32)));
}

#[test]
fn the_last_cell_is_refused_when_all_numbers_are_taken() {
    let mut ledger = Ledger::new();
    let machine = Machine {
        cpus: CpuSet::first(64),
        ..machine()
    };
    for number in 1..=MAX_CELLS as u32 {
        let cell = cell(&format!("cell{number}"), &[number], u64::from(number) << 24);
        let binary = cell.encode();
        let view = CellView::parse(binary.bytes()).unwrap();
        let verdict = ledger.check(&machine, &view);
        match ledger.free_id() {
            Some(id) => {
                assert_eq!((verdict, id), (Ok(()), CellId(number)));
                ledger.claim(id, &view).unwrap();
            }
            None => {
                assert_eq!(verdict, Err(Refusal::new(Reason::TooManyCells, 0)));
                assert_eq!(number, MAX_CELLS as u32);
            }
        }
    }
    assert_eq!(ledger.cell_count(), MAX_CELLS);
}

#[test]
fn numbers_that_are_no_cells_are_refused() {
    let mut ledger = Ledger::new();
    let id = claim(&mut ledger, &cell("cell", &[3], 0x3000_0000));
    let before = ledger.clone();
    let binary = cell("other", &[2], 0x3400_0000).encode();
    let view = CellView::parse(binary.bytes()).unwrap();
    let refused = |reason| Err(Refusal::new(reason, 0));
    assert_eq!(ledger.claim(CellId::ROOT, &view), refused(Reason::RootCell));
    assert_eq!(
        ledger.claim(id, &view),
        Err(Refusal::new(Reason::CellExists, 1))
    );
    assert_eq!(
        ledger.claim(CellId(16), &view),
        Err(Refusal::new(Reason::NoSuchCell, 16))
    );
    assert_eq!(ledger.release(CellId::ROOT), refused(Reason::RootCell));
    assert_eq!(
        ledger.release(CellId(2)),
        Err(Refusal::new(Reason::NoSuchCell, 2))
    );
    assert_eq!(ledger, before);
    assert_eq!(ledger.find(&encode::name("cell").unwrap()), Some(id));
    assert_eq!(ledger.name_of(id), Some("cell"));
}

/// Cells of a small machine, so that collisions are frequent: 4 CPUs, 32 pages, 16 ports.
fn any_cell() -> impl Strategy<Value = Cell> {
    let any_region = (0u64..32, 1u64..5, any::<bool>()).prop_map(|(page, pages, shared)| {
        let flags = if shared { SHARED } else { RAM };
        (0x1000_0000 + (page << 12), pages << 12, flags)
    });
    let any_ports = (0u16..16, 1u16..4).prop_map(|(first, count)| PortRange {
        first: 0x500 + first,
        count,
    });
    (
        0u32..6,
        proptest::collection::btree_set(0u32..6, 0..3),
        proptest::collection::vec(any_region, 1..4),
        proptest::collection::vec(any_ports, 0..3),
        any_hardware(),
    )
        .prop_map(|(name, cpus, regions, ports, hardware)| Cell {
            flags: 0,
            name: encode::name(&format!("cell{name}")).unwrap(),
            cpus: cpus.into_iter().collect(),
            reset_address: 0x1000_0000,
            shutdown_milliseconds: 0,
            memory: core::iter::once((0x1200_0000 + (u64::from(name) << 12), 0x1000, RAM))
                .chain(regions)
                .enumerate()
                .map(|(index, (physical, size, flags))| MemoryRegion {
                    guest: 0x1000_0000 + ((index as u64) << 16),
                    ..region(&format!("region{index}"), physical, 0, size, flags)
                })
                .collect(),
            ports,
            ..hardware
        })
}

/// Functions, lines, registers and ways: few of each, so that they meet.
fn any_hardware() -> impl Strategy<Value = Cell> {
    let devices = proptest::collection::vec(0u16..12, 0..3);
    let lines = proptest::collection::vec(0u32..16, 0..3);
    let msrs = proptest::collection::vec((0x1a4u32..0x1a8, 1u32..8), 0..3);
    (devices, lines, msrs, (0u32..12, 0u32..4)).prop_map(|(devices, lines, msrs, ways)| Cell {
        devices: devices
            .into_iter()
            .map(|function| AssignedDevice {
                segment: 0,
                function,
                vectors: 1,
                flags: DEVICE_NO_MASTER,
            })
            .collect(),
        interrupts: lines
            .into_iter()
            .map(|number| Interrupt { number })
            .collect(),
        msrs: msrs
            .into_iter()
            .map(|(msr, flags)| MsrAccess {
                msr,
                flags,
                write_mask: u64::from(flags & MSR_WRITE != 0),
            })
            .collect(),
        l3_ways: ((1 << ways.1) - 1) << ways.0,
        ..Cell::default()
    })
}

fn ways(cell: &Cell) -> Vec<u32> {
    (0..32).filter(|way| cell.l3_ways & 1 << way != 0).collect()
}

fn lines(cell: &Cell) -> Vec<u32> {
    cell.interrupts.iter().map(|line| line.number).collect()
}

fn functions(cell: &Cell) -> Vec<u16> {
    let devices = cell.devices.iter();
    devices.map(|device| device.function).collect()
}

/// Whether no function, line, way or register of `cell` has another owner or stands twice in it.
fn hardware_is_free(model: &Model, cell: &Cell) -> bool {
    fn is_apart<T: Copy + Eq + std::hash::Hash>(
        model: &Model,
        cell: &Cell,
        of: fn(&Cell) -> Vec<T>,
    ) -> bool {
        let own = of(cell);
        let distinct: std::collections::HashSet<T> = own.iter().copied().collect();
        distinct.len() == own.len() && own.iter().all(|thing| model.owners(of, thing).is_empty())
    }
    let registers = |cell: &Cell| cell.msrs.iter().map(|one| one.msr).collect::<Vec<_>>();
    let mut distinct = registers(cell);
    distinct.sort_unstable();
    distinct.dedup();
    let writers_meet = cell.msrs.iter().any(|own| {
        let others = model.cells.values().flat_map(|other| &other.msrs);
        let mut same = others.filter(|other| other.msr == own.msr);
        same.any(|other| {
            let writes = (own.flags | other.flags) & MSR_WRITE != 0;
            writes && !(own.flags & MSR_PER_CPU != 0 && other.flags & MSR_PER_CPU != 0)
        })
    });
    let gives_something = |one: &MsrAccess| one.flags & (MSR_READ | MSR_WRITE) != 0;
    is_apart(model, cell, ways)
        && is_apart(model, cell, lines)
        && is_apart(model, cell, functions)
        && distinct.len() == cell.msrs.len()
        && cell.msrs.iter().all(gives_something)
        && !writers_meet
}

/// Owners by brute force: one entry a page, CPU and port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Model {
    cells: HashMap<u32, Cell>,
}

impl Model {
    fn owners<T: PartialEq>(&self, of: impl Fn(&Cell) -> Vec<T>, thing: &T) -> Vec<u32> {
        let mut owners: Vec<u32> = self
            .cells
            .iter()
            .filter(|(_, cell)| of(cell).contains(thing))
            .map(|(id, _)| *id)
            .collect();
        owners.sort_unstable();
        owners
    }
}

fn pages(cell: &Cell, with_shared: bool) -> Vec<u64> {
    let regions = cell
        .memory
        .iter()
        .filter(|region| with_shared || region.flags & MEMORY_ROOT_SHARED == 0);
    regions
        .flat_map(|region| (region.physical..region.physical + region.size).step_by(0x1000))
        .collect()
}

fn ports(cell: &Cell) -> Vec<u16> {
    let ranges = cell.ports.iter();
    ranges
        .flat_map(|range| range.first..range.first + range.count)
        .collect()
}

fn cpus(cell: &Cell) -> Vec<u32> {
    cell.cpus.iter().collect()
}

/// Whether the ledger may say yes to `cell`, found page by page, port by port.
fn is_free_of_conflict(model: &Model, cell: &Cell) -> bool {
    let own_pages = pages(cell, true);
    let unique = |count: usize, all: usize| count == all;
    let distinct_pages: std::collections::HashSet<_> = own_pages.iter().collect();
    let own_ports = ports(cell);
    let distinct_ports: std::collections::HashSet<_> = own_ports.iter().collect();
    let shared_ranges = |cell: &Cell| -> Vec<(u64, u64)> {
        let shared = cell.memory.iter();
        shared
            .filter(|region| region.flags & MEMORY_ROOT_SHARED != 0)
            .map(|region| (region.physical, region.size))
            .collect()
    };
    let others = || model.cells.values();
    let conflicts = |page: &u64| {
        let region = cell
            .memory
            .iter()
            .find(|region| (region.physical..region.physical + region.size).contains(page));
        let range = region.map(|region| (region.physical, region.size)).unwrap();
        let is_shared = shared_ranges(cell).contains(&range);
        others().any(|other| {
            pages(other, true).contains(page)
                && !(is_shared && shared_ranges(other).contains(&range))
        })
    };
    unique(distinct_pages.len(), own_pages.len())
        && unique(distinct_ports.len(), own_ports.len())
        && !cell.cpus.is_empty()
        && cpus(cell).iter().all(|cpu| (1..4).contains(cpu))
        && others().all(|other| other.name != cell.name)
        && cpus(cell)
            .iter()
            .all(|cpu| model.owners(cpus, cpu).is_empty())
        && own_ports
            .iter()
            .all(|port| model.owners(ports, port).is_empty())
        && !own_pages.iter().any(conflicts)
        && hardware_is_free(model, cell)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Cells come and go; the ledger agrees with the model on each, and nothing ever has two owners.
    #[test]
    fn agrees_with_the_model(steps in proptest::collection::vec((any_cell(), any::<bool>(), 1u32..4), 1..24)) {
        let mut ledger = Ledger::new();
        let mut model = Model::default();
        for (cell, creates, victim) in steps {
            if !creates {
                prop_assert_eq!(ledger.release(CellId(victim)).is_ok(), model.cells.remove(&victim).is_some());
            }
            let verdict = check(&ledger, &cell);
            prop_assert_eq!(verdict.is_ok(), is_free_of_conflict(&model, &cell), "{:?} {:?}", verdict, cell);
            if verdict.is_ok() {
                let id = claim(&mut ledger, &cell);
                prop_assert!(model.cells.insert(id.0, cell).is_none());
            }
            for cpu in 0..6 {
                let owners = model.owners(cpus, &cpu);
                prop_assert!(owners.len() <= 1);
                prop_assert_eq!(ledger.owner_of_cpu(cpu).0, owners.first().copied().unwrap_or(0));
            }
            for port in 0x4f0..0x520 {
                let owners = model.owners(ports, &port);
                prop_assert!(owners.len() <= 1);
                prop_assert_eq!(ledger.owner_of_port(port).0, owners.first().copied().unwrap_or(0));
            }
            for page in (0x1000_0000u64..0x1004_0000).step_by(0x1000) {
                let owners = model.owners(|cell| pages(cell, false), &page);
                prop_assert!(owners.len() <= 1);
                let owner = ledger.owner_of_memory(HostPhysical(page + 0x123)).0;
                prop_assert_eq!(owner, owners.first().copied().unwrap_or(0));
            }
            for number in 0..16u16 {
                let owners = model.owners(functions, &number);
                prop_assert!(owners.len() <= 1);
                let owner = ledger.owner_of_device(number.into()).0;
                prop_assert_eq!(owner, owners.first().copied().unwrap_or(0));
                let owners = model.owners(lines, &number.into());
                prop_assert!(owners.len() <= 1);
                let owner = ledger.owner_of_interrupt(number.into()).0;
                prop_assert_eq!(owner, owners.first().copied().unwrap_or(0));
                prop_assert!(model.owners(ways, &number.into()).len() <= 1);
            }
            prop_assert_eq!(ledger.cell_count(), model.cells.len() + 1);
        }
    }

    #[test]
    fn release_undoes_claim(cells in proptest::collection::vec(any_cell(), 1..8)) {
        let mut ledger = Ledger::new();
        for cell in cells {
            if check(&ledger, &cell).is_ok() {
                let before = ledger.clone();
                let id = claim(&mut ledger, &cell);
                prop_assert_ne!(&ledger, &before);
                ledger.release(id).unwrap();
                prop_assert_eq!(&ledger, &before);
                claim(&mut ledger, &cell);
            }
        }
    }
}
