//! Random whole systems: those that are right are accepted, and no single change that makes two owners is, neither by the
//! check of the command line tool nor by that of the hypervisor.
#![allow(missing_docs)]

#[path = "ownership/model.rs"]
mod model;
#[path = "ownership/mutation.rs"]
mod mutation;

use gaol_abi::config::MEMORY_COMMUNICATION;
use gaol_abi::outcome::Reason;
use gaol_config::check::{any_machine, check};
use gaol_config::encode::{self, Binary};
use gaol_config::ledger::check_system;
use gaol_config::{Cell, CellView, CpuSet, Ledger, Machine, Problem, System};
use model::{FREE_RAM, MIB, Whole, shapes};
use mutation::{Choice, Mutation};
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestCaseError, TestRunner};

/// Cases for each kind of change.
const CASES: u32 = 48;

/// Both kinds of files, compiled.
struct Compiled {
    system: System,
    cells: Vec<Cell>,
}

fn compile(whole: &Whole) -> Compiled {
    let text = whole.machine.toml();
    let system = System::compile("system.toml", &text)
        .unwrap_or_else(|problems| panic!("{problems:?}\n{text}"));
    let cells = whole.cells.iter().enumerate().map(|(number, cell)| {
        let text = cell.toml();
        Cell::compile(&format!("cell{number}.toml"), &text, Some(&system))
            .unwrap_or_else(|problems| panic!("{problems:?}\n{text}"))
    });
    Compiled {
        cells: cells.collect(),
        system,
    }
}

/// The cell with memory from Linux, as the module writes it into the configuration.
fn placed(view: &CellView<'_>, number: u64) -> Binary {
    let header = view.header();
    let mut memory = view.memory().to_vec();
    for region in &mut memory {
        if region.physical == 0 && region.flags & MEMORY_COMMUNICATION == 0 {
            region.physical = FREE_RAM + MIB + number * 8 * MIB;
        }
    }
    let cell = encode::Cell {
        flags: header.preamble.flags,
        name: header.name,
        cpus: view.cpus(),
        reset_address: header.reset_address,
        shutdown_milliseconds: header.shutdown_milliseconds,
        violation: header.violation,
        watchdog_milliseconds: header.watchdog_milliseconds,
        watchdog_policy: header.watchdog_policy,
        l3_ways: header.l3_ways,
        l2_ways: header.l2_ways,
        memory,
        msrs: view.msrs().to_vec(),
        interrupts: view.interrupts().to_vec(),
        devices: view.devices().to_vec(),
        ports: view.ports().to_vec(),
    };
    cell.encode()
}

/// The machine as the hypervisor knows it.
fn machine(system: &System, cpus: u32) -> Machine<'_> {
    let view = system.view();
    Machine {
        cpus: CpuSet::first(cpus),
        physical_limit: 1 << 46,
        hypervisor: view.hypervisor_memory(),
        hypervisor_ports: view.hypervisor_ports(),
        system: Some(view),
    }
}

/// Why the hypervisor refuses the system or the first cell that it refuses.
fn hypervisors_reason(whole: &Whole, compiled: &Compiled) -> Option<Reason> {
    let machine = machine(&compiled.system, whole.machine.cpu_count());
    if let Err(refusal) = check_system(&machine) {
        return Some(refusal.reason);
    }
    let mut ledger = Ledger::new();
    ledger.name_root(&compiled.system.view().header().name);
    for (number, cell) in (0..).zip(&compiled.cells) {
        let binary = placed(&cell.view(), number);
        let view = CellView::parse(binary.bytes()).unwrap();
        if let Err(refusal) = ledger.check(&machine, &view) {
            return Some(refusal.reason);
        }
        let id = ledger.free_id().unwrap();
        ledger.claim(id, &view).unwrap();
    }
    None
}

/// What the command line tool finds. Each problem stands somewhere in the file of the cell that has it.
fn tools_problems(compiled: &Compiled) -> Vec<Problem> {
    let problems = check(any_machine(), &compiled.system, &compiled.cells);
    for problem in &problems {
        let mut files = compiled.cells.iter().map(|cell| &cell.source);
        let source = files.find(|source| source.name == problem.file());
        let lines = source.map_or(0, |source| source.text.lines().count());
        let (line, _) = problem.line_and_column().unwrap_or((0, 0));
        assert!((1..=lines).contains(&line), "{problem:?}");
    }
    problems
}

#[test]
fn whole_systems_are_accepted_by_both() {
    let config = Config::with_cases(256);
    let result = TestRunner::new(config).run(&shapes(), |shape| {
        let whole = Whole::new(&shape);
        let compiled = compile(&whole);
        let problems = tools_problems(&compiled);
        prop_assert!(problems.is_empty(), "{problems:?}");
        prop_assert_eq!(hypervisors_reason(&whole, &compiled), None);
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
}

/// Both checks refuse the change, for the reason that it gives; or neither, when it is legal.
fn is_refused(mutate: Mutation) {
    let choices = (shapes(), any::<(Index, Index, Index)>());
    let test = |(shape, (taker, giver, index)): (model::Shape, (Index, Index, Index))| {
        let mut whole = Whole::new(&shape);
        let count = whole.cells.len();
        let taker = taker.index(count);
        let choice = Choice {
            taker,
            giver: (taker + 1 + giver.index(count - 1)) % count,
            index,
        };
        let expected = mutate(&mut whole, &choice);
        let compiled = compile(&whole);
        let problems = tools_problems(&compiled);
        let reasons = || problems.iter().map(Problem::reason);
        match expected {
            Some(reason) => {
                prop_assert!(!problems.is_empty(), "not refused: {reason:?}");
                prop_assert!(reasons().all(|it| it == reason), "{reason:?}: {problems:?}");
            }
            None => prop_assert!(problems.is_empty(), "{problems:?}"),
        }
        prop_assert_eq!(hypervisors_reason(&whole, &compiled), expected);
        Ok::<_, TestCaseError>(expected.is_some())
    };
    let refused = std::cell::Cell::new(0);
    let result = TestRunner::new(Config::with_cases(CASES)).run(&choices, |case| {
        if test(case)? {
            refused.set(refused.get() + 1);
        }
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
    assert!(
        refused.get() > CASES / 8,
        "the change is nearly always legal"
    );
}

macro_rules! refused {
    ($($name:ident)+) => {
        /// Changes that a test tries.
        const TRIED: &[&str] = &[$(stringify!($name)),+];
        $(
            #[test]
            fn $name() {
                is_refused(mutation::$name);
            }
        )+
    };
}

refused! {
    cpu_of_another_cell cpu_of_linux cpu_that_is_none
    page_of_another_cell memory_into_another_cell memory_shared_by_one_side
    part_of_another_cell page_with_a_part_of_another_cell
    memory_of_the_hypervisor registers_of_the_apics guest_address_of_the_apic registers_of_an_io_apic
    pci_configuration_space registers_of_an_iommu memory_of_reserved_dma registers_of_another_function
    memory_that_is_none dma_outside_memory
    shared_region_of_another_size shared_region_at_another_place shared_region_with_the_root_cell
    shared_region_of_another_name
    port_of_another_cell port_of_another_function ports_of_pci_configuration port_of_the_console
    line_of_another_cell line_that_is_none
    functions_of_another_cell function_that_is_none bridge functions_that_reach_all group_with_the_root_cell group_of_two_cells
    vectors_that_are_none
    ways_of_another_cell ways_that_are_none
    register_of_another_cell register_that_others_read register_of_the_hypervisor
    name_of_another_cell
}

#[test]
fn every_change_that_makes_two_owners_is_tried() {
    assert_eq!(TRIED, mutation::NAMES);
}
