//! Who owns what on the running machine, as far as it can be known before anything is touched.
//!
//! The module tells names, CPUs and memory of cells. What else a cell owns is in its configuration, which `gaol cell
//! create` keeps beside that of the system. Of a cell that was made by other means it is not known: the hypervisor then
//! finds what this does not.

use std::fs;
use std::path::PathBuf;

use gaol_abi::NAME_LENGTH;
use gaol_abi::config::{MAX_MEMORY_REGIONS, MemoryRegion};
use gaol_config::ledger::{CellId, Ledger, Machine};
use gaol_config::{CellView, HostPhysical, Range, check, encode};

use crate::host::Host;
use crate::sysfs::CellEntry;

/// What module, sysfs and kept configurations tell of the machine and of the cells that exist.
#[must_use]
pub fn known(host: &Host) -> (Ledger, Machine<'static>) {
    let hypervisor = host.sysfs.region();
    let machine = Machine {
        cpus: host
            .sysfs
            .present_cpus()
            .unwrap_or(check::any_machine().cpus),
        hypervisor: hypervisor.and_then(|(start, size)| Range::new(HostPhysical(start), size)),
        ..check::any_machine()
    };
    let mut ledger = Ledger::new();
    for entry in host.sysfs.cells().unwrap_or_default() {
        let Some(name) = encode::name(&entry.name) else {
            continue;
        };
        if entry.id == 0 {
            ledger.name_root(&name);
        } else if let Some(binary) = as_configuration(host, &entry, name)
            && let Ok(view) = CellView::parse(binary.bytes())
        {
            // Two cells of one number don't exist, and one too many of them is not known here: the hypervisor decides.
            let _ = ledger.claim(CellId(entry.id), &view);
        }
    }
    (ledger, machine)
}

/// Keeps the configuration of a cell that was just created. Without it less is known later, and nothing is wrong.
pub fn keep(host: &Host, id: u32, bytes: &[u8]) {
    let path = kept(host, id);
    if let Some(directory) = path.parent() {
        let _ = fs::create_dir_all(directory);
    }
    if fs::write(&path, bytes).is_err() {
        let _ = fs::remove_file(&path);
    }
}

/// Forgets what was kept of all cells.
pub fn forget(host: &Host) {
    let _ = fs::remove_dir_all(directory(host));
}

fn directory(host: &Host) -> PathBuf {
    host.saved_system.with_file_name("cells")
}

/// Where the configuration of a cell is kept.
fn kept(host: &Host, id: u32) -> PathBuf {
    directory(host).join(format!("{id}.bin"))
}

/// The configuration of a cell: names, CPUs and memory as sysfs has them, the rest as it was kept.
fn as_configuration(
    host: &Host,
    entry: &CellEntry,
    name: [u8; NAME_LENGTH],
) -> Option<encode::Binary> {
    let regions = host.sysfs.memory(entry.id).ok()?;
    let memory = regions.iter().take(MAX_MEMORY_REGIONS).map(|region| {
        Some(MemoryRegion {
            name: encode::name(&region.name)?,
            physical: region.physical,
            guest: region.guest,
            size: region.size,
            flags: region.flags,
        })
    });
    let mut cell = encode::Cell {
        name,
        cpus: entry.cpus,
        memory: memory.collect::<Option<Vec<_>>>()?,
        ..encode::Cell::default()
    };
    add_kept(host, entry, &mut cell);
    Some(cell.encode())
}

/// Adds what the kept configuration says, if it is of this cell and not of an earlier one with its number.
fn add_kept(host: &Host, entry: &CellEntry, cell: &mut encode::Cell) {
    let bytes = fs::read(kept(host, entry.id)).unwrap_or_default();
    let binary = encode::Binary::new(&bytes);
    let Ok(view) = CellView::parse(binary.bytes()) else {
        return;
    };
    if view.name() != entry.name || view.cpus() != entry.cpus {
        return;
    }
    cell.ports = view.ports().to_vec();
    cell.msrs = view.msrs().to_vec();
    cell.interrupts = view.interrupts().to_vec();
    cell.devices = view.devices().to_vec();
    cell.l3_ways = view.header().l3_ways;
    cell.l2_ways = view.header().l2_ways;
}
