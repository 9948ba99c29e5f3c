//! The check of whole systems, with the ledger that the hypervisor uses.
//!
//! Invariant: what this accepts, the hypervisor accepts, as far as the machine is known here; nothing is judged here that
//! the ledger does not judge.

use crate::compile::{Cell, System};
use crate::cpu_set::CpuSet;
use crate::explain::{explain, explain_system};
use crate::ledger::{self, Ledger, Machine, Placement};
use crate::problem::Problem;

mod warnings;

pub use warnings::{unprotected, unsupported, warnings};

/// What a check of a whole system found.
#[derive(Debug, Default)]
pub struct Report {
    /// What is wrong: the hypervisor would refuse it.
    pub problems: Vec<Problem>,
    /// What is legal, and slow or doubtful.
    pub warnings: Vec<Problem>,
}

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

/// `machine` with what the system configuration says of the hypervisor and of what there is.
#[must_use]
pub fn with_system<'a>(machine: Machine<'a>, system: &'a System) -> Machine<'a> {
    let view = system.view();
    let described = u32::try_from(view.machine_cpus().len()).unwrap_or(u32::MAX);
    let exists = |cpu: &u32| !view.describes_machine() || *cpu < described;
    Machine {
        cpus: machine.cpus.iter().filter(exists).collect(),
        hypervisor: view.hypervisor_memory(),
        hypervisor_ports: view.hypervisor_ports(),
        system: Some(view),
        ..machine
    }
}

/// Checks the system for itself, and the cells together, in their order, as if they were created one after the other.
/// Returns all problems of each cell that could not be; the ones after it are judged without it.
#[must_use]
pub fn check(machine: Machine<'_>, system: &System, cells: &[Cell]) -> Vec<Problem> {
    let mut problems = system_problems(machine, system);
    let machine = with_system(machine, system);
    let mut ledger = Ledger::new();
    ledger.name_root(&system.view().header().name);
    let judge = |cell: &Cell| add_or_all(&mut ledger, &machine, cell).err();
    problems.extend(cells.iter().filter_map(judge).flatten());
    problems
}

/// Checks what a system file says of the machine and of a strict root cell.
#[must_use]
pub fn system_problems(machine: Machine<'_>, system: &System) -> Vec<Problem> {
    let machine = with_system(machine, system);
    let mut refusals = Vec::new();
    ledger::system_faults(&machine, &mut |refusal| {
        if !refusals.contains(&refusal) {
            refusals.push(refusal);
        }
    });
    let explained = |refusal| explain_system(refusal, system, &machine);
    let mut problems: Vec<Problem> = refusals.into_iter().map(explained).collect();
    problems.sort_by_key(|problem| problem.place().map_or(0, |place| place.start));
    problems
}

/// Checks the cells together, and looks for what is legal and doubtful.
#[must_use]
pub fn report(machine: Machine<'_>, system: &System, cells: &[Cell]) -> Report {
    Report {
        problems: check(machine, system, cells),
        warnings: warnings(system, cells),
    }
}

/// Adds a cell to the ledger if nothing speaks against it.
///
/// # Errors
/// What speaks against it first; the ledger has not changed then.
pub fn add(ledger: &mut Ledger, machine: &Machine<'_>, cell: &Cell) -> Result<(), Problem> {
    add_or_all(ledger, machine, cell).map_err(|problems| {
        let first = problems.into_iter().next();
        first.expect("a cell is refused for a problem")
    })
}

/// Adds a cell to the ledger if nothing speaks against it.
///
/// # Errors
/// All that speaks against it; the ledger has not changed then.
pub fn add_or_all(
    ledger: &mut Ledger,
    machine: &Machine<'_>,
    cell: &Cell,
) -> Result<(), Vec<Problem>> {
    let view = cell.view();
    let mut refusals = Vec::new();
    ledger.faults(machine, &view, Placement::Open, &mut |refusal| {
        // One cause can be met on several ways.
        if !refusals.contains(&refusal) {
            refusals.push(refusal);
        }
    });
    if refusals.is_empty()
        && let Some(id) = ledger.free_id()
        && let Err(refusal) = ledger.claim(id, &view)
    {
        refusals.push(refusal);
    }
    if refusals.is_empty() {
        return Ok(());
    }
    let explained = |refusal| explain(refusal, cell, ledger, machine);
    let mut problems: Vec<Problem> = refusals.into_iter().map(explained).collect();
    problems.sort_by_key(|problem| problem.place().map_or(0, |place| place.start));
    Err(problems)
}

/// Checks what can be checked of a cell that is the only one, on any machine or on that of `system`.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn check_alone(cell: &Cell, system: Option<&System>) -> Result<(), Problem> {
    let machine = match system {
        Some(system) => with_system(any_machine(), system),
        None => any_machine(),
    };
    add(&mut Ledger::new(), &machine, cell)
}

#[cfg(test)]
mod tests;
