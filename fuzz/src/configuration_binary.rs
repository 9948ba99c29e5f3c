//! Binary configurations, as the hypervisor reads them: one after the other, each from its signature to the next.
//!
//! They are read as they are, and once more with head, counts, length and checksum made right. Those that are read then
//! are judged by the ledger, claimed and released; among the cells that it accepts, nothing may have two owners.

use core::mem::{offset_of, size_of};

use gaol_abi::ABI_REVISION;
use gaol_abi::config::{
    AssignedDevice, CELL_SIGNATURE, CellHeader, Interrupt, IommuSource, IommuUnit, MAX_CELL_SIZE,
    MAX_DEVICES, MAX_INTERRUPTS, MAX_IOMMU_SOURCES, MAX_IOMMUS, MAX_MACHINE_BARS,
    MAX_MACHINE_DEVICES, MAX_MACHINE_RANGES, MAX_MEMORY_REGIONS, MAX_MSRS, MAX_PORT_RANGES,
    MAX_ROOT_MSRS, MAX_SIZE, MEMORY_ROOT_SHARED, MEMORY_SHARED, MSR_PER_CPU, MSR_WRITE, MachineBar,
    MachineCpu, MachineDevice, MachineRange, MemoryRegion, MsrAccess, PortRange, Preamble,
    SYSTEM_SIGNATURE, SystemHeader,
};
use gaol_config::binary::physical_range;
use gaol_config::check::any_machine;
use gaol_config::encode::{Binary, seal};
use gaol_config::ledger::{Ledger, Machine, Placement, check_system, ports_overlap};
use gaol_config::{CellView, SystemView};

use crate::{position, put, u32_at};

/// An array of a configuration: where its count is, the most elements, and the bytes of each.
type Array = (usize, usize, usize);

const SYSTEM_ARRAYS: [Array; 9] = [
    (
        offset_of!(SystemHeader, range_count),
        MAX_MACHINE_RANGES,
        size_of::<MachineRange>(),
    ),
    (
        offset_of!(SystemHeader, bar_count),
        MAX_MACHINE_BARS,
        size_of::<MachineBar>(),
    ),
    (
        offset_of!(SystemHeader, iommu_count),
        MAX_IOMMUS,
        size_of::<IommuUnit>(),
    ),
    (
        offset_of!(SystemHeader, iommu_source_count),
        MAX_IOMMU_SOURCES,
        size_of::<IommuSource>(),
    ),
    (
        offset_of!(SystemHeader, root_memory_count),
        MAX_MEMORY_REGIONS,
        size_of::<MemoryRegion>(),
    ),
    (
        offset_of!(SystemHeader, root_msr_count),
        MAX_ROOT_MSRS,
        size_of::<MsrAccess>(),
    ),
    (
        offset_of!(SystemHeader, cpu_count),
        gaol_abi::MAX_CPUS,
        size_of::<MachineCpu>(),
    ),
    (
        offset_of!(SystemHeader, root_port_count),
        MAX_PORT_RANGES,
        size_of::<PortRange>(),
    ),
    (
        offset_of!(SystemHeader, device_count),
        MAX_MACHINE_DEVICES,
        size_of::<MachineDevice>(),
    ),
];

const CELL_ARRAYS: [Array; 5] = [
    (
        offset_of!(CellHeader, memory_region_count),
        MAX_MEMORY_REGIONS,
        size_of::<MemoryRegion>(),
    ),
    (
        offset_of!(CellHeader, msr_count),
        MAX_MSRS,
        size_of::<MsrAccess>(),
    ),
    (
        offset_of!(CellHeader, interrupt_count),
        MAX_INTERRUPTS,
        size_of::<Interrupt>(),
    ),
    (
        offset_of!(CellHeader, device_count),
        MAX_DEVICES,
        size_of::<AssignedDevice>(),
    ),
    (
        offset_of!(CellHeader, port_range_count),
        MAX_PORT_RANGES,
        size_of::<PortRange>(),
    ),
];

/// The most configurations in one run.
const MOST: usize = 8;

/// The pieces that begin with a signature; what comes before the first is one, too.
fn configurations(bytes: &[u8]) -> Vec<&[u8]> {
    let mut pieces = Vec::new();
    let mut rest = bytes;
    while pieces.len() < MOST {
        let behind = rest.get(1..).unwrap_or_default();
        let next = [SYSTEM_SIGNATURE, CELL_SIGNATURE]
            .iter()
            .filter_map(|signature| position(behind, signature))
            .min();
        match next {
            Some(at) => {
                let (piece, following) = rest.split_at(at + 1);
                pieces.push(piece);
                rest = following;
            }
            None => {
                pieces.push(rest);
                break;
            }
        }
    }
    pieces
}

/// The bytes with what must be right for them to be read: head, counts within bounds, the length that these demand.
fn repaired(
    bytes: &[u8],
    signature: [u8; 8],
    header: usize,
    most: u64,
    arrays: &[Array],
) -> Binary {
    let mut bytes = bytes.to_vec();
    bytes.resize(bytes.len().max(header), 0);
    put(&mut bytes, 0, &signature);
    let revision = offset_of!(Preamble, revision);
    put(&mut bytes, revision, &ABI_REVISION.to_le_bytes());
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    let mut length = header;
    for (offset, limit, size) in arrays {
        let room = (most - length) / size;
        let count = u32_at(&bytes, *offset) as usize % (room.min(*limit) + 1);
        put(&mut bytes, *offset, &(count as u32).to_le_bytes());
        length += count * size;
    }
    bytes.resize(length, 0);
    seal(bytes)
}

fn repaired_system(bytes: &[u8]) -> Binary {
    let header = size_of::<SystemHeader>();
    repaired(bytes, SYSTEM_SIGNATURE, header, MAX_SIZE, &SYSTEM_ARRAYS)
}

fn repaired_cell(bytes: &[u8]) -> Binary {
    let header = size_of::<CellHeader>();
    repaired(bytes, CELL_SIGNATURE, header, MAX_CELL_SIZE, &CELL_ARRAYS)
}

/// Reads bytes as both kinds.
fn read(bytes: &[u8]) {
    let binary = Binary::new(bytes);
    if let Ok(view) = SystemView::parse(binary.bytes()) {
        assert!(!view.name().is_empty() && bytes.len() as u64 <= MAX_SIZE);
    }
    if let Ok(view) = CellView::parse(binary.bytes()) {
        assert!(!view.name().is_empty() && bytes.len() as u64 <= MAX_CELL_SIZE);
    }
}

/// Whether a cell has the memory for itself.
fn is_own(region: &MemoryRegion) -> bool {
    region.flags & (MEMORY_ROOT_SHARED | MEMORY_SHARED) == 0
}

/// Panics when two cells own the same thing.
fn have_nothing_in_common(
    system: Option<&SystemView<'_>>,
    first: &CellView<'_>,
    second: &CellView<'_>,
) {
    // Where the caches are not known, all CPUs may have the same.
    let cache = |cpu: u32| system.and_then(|system| system.machine_cpus().get(cpu as usize));
    let cache = |cpu: u32| cache(cpu).map(|cpu| cpu.l3);
    let has_cache_of =
        |cpu: u32, cell: &CellView<'_>| cell.cpus().iter().any(|other| cache(other) == cache(cpu));
    assert_ne!(first.name(), second.name());
    assert!(first.cpus().iter().all(|cpu| !second.cpus().contains(cpu)));
    let ports = |port: &PortRange| second.ports().iter().any(|it| ports_overlap(*port, *it));
    assert!(!first.ports().iter().any(ports));
    for one in first.memory() {
        for other in second.memory() {
            if let (Some(range), Some(its)) = (physical_range(one), physical_range(other))
                && (is_own(one) || is_own(other))
            {
                assert!(!range.overlaps(its), "{one:?} {other:?}");
            }
        }
    }
    let interrupts = second.interrupts();
    assert!(!first.interrupts().iter().any(|it| interrupts.contains(it)));
    let place = |device: &AssignedDevice| (device.segment, device.function);
    for one in first.devices() {
        assert!(
            second
                .devices()
                .iter()
                .all(|other| place(one) != place(other))
        );
    }
    let writes = |msr: &&MsrAccess| msr.flags & (MSR_WRITE | MSR_PER_CPU) == MSR_WRITE;
    for one in first.msrs().iter().filter(writes) {
        assert!(second.msrs().iter().all(|other| one.msr != other.msr));
    }
    if first.cpus().iter().any(|cpu| has_cache_of(cpu, second)) {
        let (first, second) = (first.header(), second.header());
        assert_eq!(first.l3_ways & second.l3_ways, 0);
    }
}

/// Creates the cells one after the other, as far as the ledger lets them, and destroys them again. Returns their number.
fn judge(machine: &Machine<'_>, root: Option<&SystemView<'_>>, cells: &[CellView<'_>]) -> usize {
    let mut ledger = Ledger::new();
    if let Some(root) = root {
        ledger.name_root(&root.header().name);
    }
    let mut created: Vec<(_, &CellView<'_>, Ledger)> = Vec::new();
    for cell in cells {
        let is_possible = ledger.check_with(machine, cell, Placement::Open).is_ok();
        let is_complete = ledger
            .check_with(machine, cell, Placement::Complete)
            .is_ok();
        assert!(is_possible || !is_complete, "{cell:?}");
        let Some(id) = ledger.free_id().filter(|_| is_possible) else {
            continue;
        };
        let before = ledger.clone();
        assert_eq!(ledger.claim(id, cell), Ok(()));
        assert_eq!(ledger.name_of(id), Some(cell.name()));
        for (_, other, _) in &created {
            have_nothing_in_common(root, cell, other);
        }
        created.push((id, cell, before));
    }
    let count = created.len();
    for (id, _, before) in created.into_iter().rev() {
        assert_eq!(ledger.release(id), Ok(()));
        assert_eq!(ledger, before);
    }
    count
}

/// The bytes as configurations.
pub fn run(bytes: &[u8]) {
    judge_all(bytes);
}

/// The same; returns how many cells the last system takes.
fn judge_all(bytes: &[u8]) -> usize {
    let pieces = configurations(bytes);
    for piece in &pieces {
        read(piece);
    }
    let (systems, cells): (Vec<&[u8]>, Vec<&[u8]>) = pieces
        .iter()
        .partition(|piece| piece.starts_with(&SYSTEM_SIGNATURE));
    let cells: Vec<Binary> = cells.into_iter().map(repaired_cell).collect();
    let views = cells.iter().map(|cell| CellView::parse(cell.bytes()));
    let views: Vec<CellView<'_>> = views.filter_map(Result::ok).collect();
    let mut count = judge(&any_machine(), None, &views);
    for system in systems.into_iter().map(repaired_system) {
        if let Ok(view) = SystemView::parse(system.bytes()) {
            let machine = machine(&view);
            let _ = check_system(&machine);
            count = judge(&machine, Some(&view), &views);
        }
    }
    count
}

/// The machine as the hypervisor has it.
fn machine<'a>(system: &SystemView<'a>) -> Machine<'a> {
    Machine {
        hypervisor: system.hypervisor_memory(),
        hypervisor_ports: system.hypervisor_ports(),
        system: Some(*system),
        ..any_machine()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seeds_have_cells_that_live_together() {
        let system = include_bytes!("../corpus/configuration_binary/system.bin");
        assert_eq!(judge_all(system), 2);
        let shipped = include_bytes!("../corpus/configuration_binary/shipped.bin");
        assert_eq!(judge_all(shipped), 2);
        let conflict = include_bytes!("../corpus/configuration_binary/conflict.bin");
        assert_eq!(judge_all(conflict), 1);
    }
}
