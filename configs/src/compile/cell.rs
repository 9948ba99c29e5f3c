//! The file of a cell.

use gaol_abi::MAX_CPUS;
use gaol_abi::config::{
    CELL_CONSOLE, CELL_IGNORE_UNASSIGNED_PORTS, CELL_PASSIVE, CELL_UNPROTECTED_DMA, Interrupt,
    MAX_INTERRUPTS, MAX_MSRS, VIOLATION_PARK_CELL, VIOLATION_PARK_CPU, WATCHDOG_HALT,
    WATCHDOG_RECORD, WATCHDOG_RESTART,
};
use gaol_abi::outcome::Reason;
use toml::Spanned;

use super::System;
use super::judge::Judge;
use super::{devices, memory, registers};
use crate::cpu_set::CpuSet;
use crate::encode;
use crate::quantity::Number;
use crate::schema::{CellFile, Kind, OnViolation, UnassignedIo, WatchdogPolicy};

/// Most ways of a cache: the bits of a capacity bitmask (SDM, "Enumeration and Detection Support of Cache Allocation
/// Technology").
pub(super) const MAX_WAYS: u64 = 32;

/// What the file says.
pub(super) fn cell(judge: &Judge<'_>, file: &CellFile, system: Option<&System>) -> encode::Cell {
    let flag = |is_set: bool, flag: u32| if is_set { flag } else { 0 };
    let ways = file.cache_ways.as_ref();
    let (watchdog_milliseconds, watchdog_policy) = watchdog(judge, file);
    encode::Cell {
        flags: flag(file.console, CELL_CONSOLE)
            | flag(file.passive, CELL_PASSIVE)
            | flag(
                file.unassigned_io == UnassignedIo::Ignore,
                CELL_IGNORE_UNASSIGNED_PORTS,
            )
            | flag(
                file.unprotected_dma
                    .as_ref()
                    .is_some_and(|set| *set.get_ref()),
                CELL_UNPROTECTED_DMA,
            ),
        name: judge.name("cell", &file.name),
        cpus: cpus(judge, &file.cpus),
        reset_address: file
            .reset_address
            .as_ref()
            .map_or(0, |address| address.get_ref().0),
        shutdown_milliseconds: judge.time(file.shutdown_timeout.as_ref()),
        violation: match file.on_violation {
            OnViolation::ParkCpu => VIOLATION_PARK_CPU,
            OnViolation::ParkCell => VIOLATION_PARK_CELL,
        },
        watchdog_milliseconds,
        watchdog_policy,
        l3_ways: cache_ways(judge, ways.and_then(|ways| ways.l3.as_ref())),
        l2_ways: cache_ways(judge, ways.and_then(|ways| ways.l2.as_ref())),
        memory: memory::of_cell(judge, &file.memory),
        msrs: registers::msrs(judge, &file.msrs, "the cell", MAX_MSRS),
        interrupts: interrupts(judge, &file.interrupts),
        devices: devices::devices(judge, &file.devices, system),
        ports: registers::ports(judge, &file.ports, "the cell"),
    }
}

/// Timeout and policy of the watchdog.
fn watchdog(judge: &Judge<'_>, file: &CellFile) -> (u32, u32) {
    let Some(table) = &file.watchdog else {
        return (0, WATCHDOG_RECORD);
    };
    let is_communication = |kind: &Spanned<Kind>| *kind.get_ref() == Kind::Communication;
    let has_region = file.memory.iter().any(|region| {
        let kind = region.get_ref().kind.as_ref();
        kind.is_some_and(is_communication)
    });
    if !has_region {
        judge.invalid(
            table.span(),
            "nothing to watch",
            "the cell has a watchdog, and no communication region for its heartbeat",
            "Add a [[memory]] table with `kind = \"communication\"`, or take [watchdog] out.",
        );
    }
    let table = table.get_ref();
    let policy = match table.policy {
        WatchdogPolicy::Record => WATCHDOG_RECORD,
        WatchdogPolicy::Restart => WATCHDOG_RESTART,
        WatchdogPolicy::Halt => WATCHDOG_HALT,
    };
    (judge.time(Some(&table.timeout)), policy)
}

fn cpus(judge: &Judge<'_>, list: &Spanned<Vec<Spanned<Number>>>) -> CpuSet {
    let mut cpus = CpuSet::EMPTY;
    for number in list.get_ref() {
        let cpu = u32::try_from(number.get_ref().0).unwrap_or(u32::MAX);
        if cpus.contains(cpu) {
            judge.invalid(
                number.span(),
                "named before",
                format!("CPU {cpu} is named twice"),
                "Take one of the two out.",
            );
        }
        if !cpus.insert(cpu) {
            judge.problem(
                Reason::CpuUnknown,
                number.span(),
                "no such CPU",
                format!("there can't be a CPU {}", number.get_ref().0),
                format!("Gaol supports CPUs 0 to {}.", MAX_CPUS - 1),
            );
        }
    }
    cpus
}

fn interrupts(judge: &Judge<'_>, list: &[Spanned<Number>]) -> Vec<Interrupt> {
    judge
        .bounded(
            list,
            MAX_INTERRUPTS,
            "interrupt lines in the cell",
            "PCI functions with MSI need none: take theirs out.",
        )
        .iter()
        .map(|number| Interrupt {
            number: judge.number("an interrupt line", number, 0..=u64::from(u32::MAX)),
        })
        .collect()
}

fn cache_ways(judge: &Judge<'_>, ways: Option<&Spanned<Vec<Spanned<Number>>>>) -> u32 {
    let Some(list) = ways else { return 0 };
    if list.get_ref().is_empty() {
        judge.problem(
            Reason::CacheWaysInvalid,
            list.span(),
            "empty",
            "the cell has no way of the cache that would be its own",
            "Name some, for instance `l3 = [0, 1]`, or take the key out: the cell shares the root's.",
        );
    }
    let mut ways = 0;
    for number in list.get_ref() {
        let way = number.get_ref().0;
        let bit = match way {
            way if way < MAX_WAYS => 1 << way,
            _ => 0,
        };
        if bit == 0 {
            judge.problem(
                Reason::CacheWaysInvalid,
                number.span(),
                "no such way",
                format!("a cache has no way {way}"),
                format!("Ways are numbered from 0 to {} at the most.", MAX_WAYS - 1),
            );
        } else if ways & bit != 0 {
            judge.invalid(
                number.span(),
                "named before",
                format!("way {way} is named twice"),
                "Take one of the two out.",
            );
        }
        ways |= bit;
    }
    ways
}
