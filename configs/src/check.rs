//! The check of whole systems, with the ledger that the hypervisor uses.
//!
//! Invariant: what this accepts, the hypervisor accepts, as far as the machine is known here; nothing is judged here that
//! the ledger does not judge.

use crate::compile::{Cell, System};
use crate::cpu_set::CpuSet;
use crate::explain::explain;
use crate::ledger::{Ledger, Machine, Placement};
use crate::problem::Problem;

/// Any machine: all CPUs that Gaol supports, 48 bits of physical address, nothing else known.
#[must_use]
pub fn any_machine() -> Machine<'static> {
    Machine {
        cpus: CpuSet::first(gaol_abi::MAX_CPUS as u32),
        physical_limit: 1 << 48,
        hypervisor: None,
        hypervisor_ports: None,
        system: None,
    }
}

/// `machine` with what the system configuration says of the hypervisor.
#[must_use]
pub fn with_system<'a>(machine: Machine<'a>, system: &'a System) -> Machine<'a> {
    let view = system.view();
    Machine {
        hypervisor: view.hypervisor_memory(),
        hypervisor_ports: view.hypervisor_ports(),
        system: Some(view),
        ..machine
    }
}

/// Checks the cells together, in their order, as if they were created one after the other. Returns one problem for each
/// cell that could not be; the ones after it are judged without it.
#[must_use]
pub fn check(machine: Machine<'_>, system: &System, cells: &[Cell]) -> Vec<Problem> {
    let machine = with_system(machine, system);
    let mut ledger = Ledger::new();
    ledger.name_root(&system.view().header().name);
    let judge = |cell: &Cell| add(&mut ledger, &machine, cell).err();
    cells.iter().filter_map(judge).collect()
}

/// Adds a cell to the ledger if nothing speaks against it.
///
/// # Errors
/// What speaks against it; the ledger has not changed then.
pub fn add(ledger: &mut Ledger, machine: &Machine<'_>, cell: &Cell) -> Result<(), Problem> {
    let view = cell.view();
    ledger
        .check_with(machine, &view, Placement::Open)
        .and_then(|()| match ledger.free_id() {
            Some(id) => ledger.claim(id, &view),
            None => Ok(()),
        })
        .map_err(|refusal| explain(refusal, cell, ledger, machine))
}

/// Checks what can be checked of a cell without knowing the machine.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn check_alone(cell: &Cell) -> Result<(), Problem> {
    add(&mut Ledger::new(), &any_machine(), cell)
}
