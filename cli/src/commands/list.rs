//! `gaol cell list`: the cells, and why CPUs of them were stopped.

use gaol_abi::exit::counter_name;
use gaol_abi::image::Vendor;
use gaol_abi::public::{FaultRecord, RootFailure, RootFailureKind};
use gaol_config::explain::cpu_list;
use serde_json::{Value, json};

use super::{device_faults, hypervisor_faults};
use crate::failure::Result;
use crate::host::Host;
use crate::output::{Report, Side, table};
use crate::sysfs::{CellEntry, FunctionEntry, PublicPages, WatchdogEntry};

/// `gaol cell list`.
///
/// # Errors
/// When the module does not tell.
pub fn list(host: &Host) -> Result<Report> {
    if !host.sysfs.is_enabled()? {
        return Ok(Report {
            text: "Gaol is not enabled: there are no cells.\n".to_owned(),
            json: json!({ "ok": true, "enabled": false, "cells": [] }),
        });
    }
    let cells = host.sysfs.cells()?;
    let functions = host.sysfs.functions();
    let has_failed = cells.iter().any(|cell| !cell.failed.is_empty());
    let public = match has_failed {
        true => Some(host.sysfs.public()?),
        false => host.sysfs.public().ok(),
    };
    let symbols = host.symbols();
    let own_faults = public
        .as_ref()
        .map_or_else(Vec::new, hypervisor_faults::faults);
    let (total, used) = host.sysfs.pool()?;
    let mut rows = vec![
        ["ID", "NAME", "STATE", "CPUS", "FAILED"]
            .map(str::to_owned)
            .to_vec(),
    ];
    let mut faults_text = String::new();
    let mut cells_json: Vec<Value> = Vec::new();
    for cell in &cells {
        rows.push(vec![
            cell.id.to_string(),
            cell.name.clone(),
            cell.state.clone(),
            cpu_list(cell.cpus),
            cpu_list(cell.failed),
        ]);
        let faults = faults_of(cell, public.as_ref());
        for (cpu, fault) in &faults {
            faults_text.push_str(&format!(
                "CPU {cpu} of \"{}\" was stopped: {}.\n",
                cell.name,
                describe(fault, host.vendor)
            ));
        }
        if let Some(watchdog) = &cell.watchdog
            && let Some(words) = watchdog_words(watchdog)
        {
            faults_text.push_str(&format!("Cell \"{}\" {words}.\n", cell.name));
        }
        let unprotected = public
            .as_ref()
            .and_then(PublicPages::system)
            .is_some_and(|system| {
                let bit = 1u64.checked_shl(cell.id).unwrap_or(0);
                system.unprotected_cells & bit != 0
            });
        if unprotected {
            faults_text.push_str(&format!(
                "Cell \"{}\" can reach all memory of the machine by DMA: no IOMMU is in front of its PCI functions (unprotected-dma).\n",
                cell.name
            ));
        }
        let own: Vec<&FunctionEntry> = functions
            .iter()
            .filter(|entry| entry.cell.as_ref() == Some(&cell.name))
            .collect();
        for entry in &own {
            faults_text.push_str(&function_words(entry, &cell.name));
        }
        let mut cell_json = json!({
            "id": cell.id,
            "name": cell.name,
            "state": cell.state,
            "cpus": cell.cpus.iter().collect::<Vec<u32>>(),
            "cpus_failed": cell.failed.iter().collect::<Vec<u32>>(),
            "unprotected_dma": unprotected,
            "functions": own.iter().map(|entry| function_json(entry)).collect::<Vec<_>>(),
            "faults": faults.iter().map(|(cpu, fault)| fault_json(*cpu, fault, host.vendor)).collect::<Vec<_>>(),
        });
        if let Some(watchdog) = &cell.watchdog {
            cell_json["watchdog"] = json!({
                "policy": watchdog.policy,
                "timeout_ms": watchdog.timeout,
                "expired": watchdog.expired,
                "restarts": watchdog.restarts,
                "given_up": watchdog.given_up,
            });
        }
        cells_json.push(cell_json);
    }
    let lost: Vec<&FunctionEntry> = functions
        .iter()
        .filter(|entry| entry.cell.is_none())
        .collect();
    for entry in &lost {
        let function = &entry.function;
        faults_text.push_str(&format!(
            "PCI function {function} did not come back from its cell, and no driver gets it. Let Linux find it again: echo 1 > /sys/bus/pci/devices/{function}/remove; echo 1 > /sys/bus/pci/rescan\n"
        ));
    }
    if let Some(public) = &public
        && let Some(system) = public.system()
        && let Some(words) = root_failure_words(&system.root_failure)
    {
        faults_text.push_str(&words);
    }
    let mut iommus = json!(null);
    if let Some(system) = public.as_ref().and_then(PublicPages::system) {
        let name = |id: u32| {
            let mut all = cells.iter();
            let cell = all.find(|cell| cell.id == id);
            cell.map_or_else(|| id.to_string(), |cell| cell.name.clone())
        };
        faults_text.push_str(&device_faults::describe(system, name));
        iommus = device_faults::describe_json(system);
    }
    let sides = [Side::Right, Side::Left, Side::Left, Side::Left, Side::Left];
    let mut text = table(&sides, &rows);
    if !faults_text.is_empty() {
        text.push('\n');
        text.push_str(&faults_text);
    }
    if !own_faults.is_empty() {
        text.push('\n');
        text.push_str(&hypervisor_faults::describe(&own_faults, &symbols));
    }
    Ok(Report {
        text,
        json: json!({
            "ok": true,
            "enabled": true,
            "cells": cells_json,
            "lost_functions": lost.iter().map(|entry| function_json(entry)).collect::<Vec<_>>(),
            "iommus": iommus,
            "hypervisor_faults": hypervisor_faults::describe_json(&own_faults, &symbols),
            "pool_total": total,
            "pool_used": used,
        }),
    })
}

/// A PCI function of a cell.
fn function_words(entry: &FunctionEntry, cell: &str) -> String {
    let function = &entry.function;
    let whence = match &entry.driver {
        Some(driver) => format!(", taken from Linux' driver {driver}"),
        None => String::new(),
    };
    match entry.state.as_str() {
        "gone" => format!(
            "PCI function {function} of \"{cell}\" was removed from the machine: destroy the cell.\n"
        ),
        _ => format!("Cell \"{cell}\" has PCI function {function}{whence}.\n"),
    }
}

fn function_json(entry: &FunctionEntry) -> Value {
    json!({
        "function": entry.function,
        "driver": entry.driver,
        "state": entry.state,
    })
}

fn times(count: u64) -> String {
    match count {
        1 => "once".to_owned(),
        count => format!("{count} times"),
    }
}

/// What a watchdog has found, if anything.
fn watchdog_words(watchdog: &WatchdogEntry) -> Option<String> {
    if watchdog.expired == 0 {
        return None;
    }
    let mut words = format!(
        "stood still for {} ms, {}",
        watchdog.timeout,
        times(watchdog.expired)
    );
    match watchdog.policy.as_str() {
        "halt" => words.push_str("; its CPUs were stopped for it"),
        "restart" if watchdog.restarts != 0 => {
            words.push_str(&format!(
                "; it was started again {}",
                times(watchdog.restarts)
            ));
        }
        _ => {}
    }
    if watchdog.given_up {
        words.push_str(", and is not any more");
    }
    Some(words)
}

/// What Linux did that a CPU of it was parked for.
pub(super) fn root_failure_words(failure: &RootFailure) -> Option<String> {
    let deed = match failure.kind {
        RootFailureKind::None => return None,
        RootFailureKind::Panic => "its kernel panicked".to_owned(),
        RootFailureKind::TripleFault => "it ran into a triple fault".to_owned(),
        RootFailureKind::Sleep => format!(
            "it tried to turn the machine off at port {:#x}",
            failure.address
        ),
        _ => format!(
            "it tried to reset the machine at port {:#x}",
            failure.address
        ),
    };
    Some(format!("Linux failed on CPU {}: {deed}.\n", failure.cpu))
}

/// The fault records of the cell's CPUs that were stopped.
fn faults_of<'a>(cell: &CellEntry, public: Option<&'a PublicPages>) -> Vec<(u32, &'a FaultRecord)> {
    let Some(public) = public else {
        return Vec::new();
    };
    let records = cell
        .failed
        .iter()
        .filter_map(|cpu| Some((cpu, &public.cpu(cpu)?.fault)));
    records.filter(|(_, fault)| fault.count != 0).collect()
}

/// Name of an exit reason, or its number.
pub(super) fn exit_name(reason: u32, vendor: Option<Vendor>) -> String {
    let index = usize::try_from(reason).unwrap_or(usize::MAX);
    let name = vendor.and_then(|vendor| counter_name(vendor, index));
    name.map_or_else(|| format!("exit_{reason:#x}"), str::to_owned)
}

/// Reasons whose qualification and address say more ([`gaol_abi::exit`]).
mod exit {
    pub const TRIPLE_FAULT: u32 = 2;
    pub const HYPERCALL: u32 = 18;
    pub const CONTROL_REGISTER: u32 = 28;
    pub const PORT: u32 = 30;
    pub const RDMSR: u32 = 31;
    pub const WRMSR: u32 = 32;
    pub const NESTED_FAULT: u32 = 48;
    pub const EPT_MISCONFIGURATION: u32 = 49;
    pub const XSETBV: u32 = 55;
}

/// What the guest did, in words. The qualification has the form of VMX' on both vendors (SDM, "Exit Qualification").
fn deed(fault: &FaultRecord) -> String {
    let bits = fault.qualification;
    let address = fault.address;
    match fault.exit_reason {
        exit::TRIPLE_FAULT => "it ran into a triple fault".to_owned(),
        exit::HYPERCALL => "it made a hypercall that it may not".to_owned(),
        exit::CONTROL_REGISTER => format!("it changed CR{} as it may not", bits & 15),
        exit::PORT => {
            let direction = if bits & 8 != 0 { "read" } else { "wrote" };
            let size = (bits & 7) + 1;
            let plural = if size == 1 { "" } else { "s" };
            format!("it {direction} {size} byte{plural} at port {address:#x}")
        }
        exit::RDMSR => format!("it read MSR {address:#x}"),
        exit::WRMSR => format!("it wrote MSR {address:#x}"),
        exit::NESTED_FAULT => {
            let verb = match bits & 7 {
                access if access & 2 != 0 => "wrote",
                access if access & 4 != 0 => "executed",
                _ => "read",
            };
            format!("it {verb} guest-physical {address:#x}")
        }
        exit::EPT_MISCONFIGURATION => format!("it met broken page tables at {address:#x}"),
        exit::XSETBV => "it set XCR0 as it may not".to_owned(),
        _ => "it did what a cell may not".to_owned(),
    }
}

/// The same with the place and the reason.
pub(super) fn describe(fault: &FaultRecord, vendor: Option<Vendor>) -> String {
    format!(
        "{} at RIP {:#x} (exit reason {})",
        deed(fault),
        fault.rip,
        exit_name(fault.exit_reason, vendor)
    )
}

fn fault_json(cpu: u32, fault: &FaultRecord, vendor: Option<Vendor>) -> Value {
    let length = usize::try_from(fault.instruction_length).unwrap_or(usize::MAX);
    let instruction: String = fault
        .instruction
        .iter()
        .take(length)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    json!({
        "cpu": cpu,
        "count": fault.count,
        "exit_reason": exit_name(fault.exit_reason, vendor),
        "exit_reason_number": fault.exit_reason,
        "qualification": fault.qualification,
        "address": fault.address,
        "rip": fault.rip,
        "cs_base": fault.cs_base,
        "rflags": fault.rflags,
        "cr0": fault.cr0,
        "cr3": fault.cr3,
        "cr4": fault.cr4,
        "time": fault.time,
        "instruction": instruction,
        "text": describe(fault, vendor),
    })
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros;

    use super::*;

    #[test]
    fn faults_are_told_in_words() {
        let say = |exit_reason, qualification, address| {
            let fault = FaultRecord {
                count: 1,
                exit_reason,
                qualification,
                address,
                rip: 0x1234,
                ..FaultRecord::new_zeroed()
            };
            describe(&fault, Some(Vendor::Vmx))
        };
        for (fault, text) in [
            (
                say(48, 0b001, 0x20_0000),
                "it read guest-physical 0x200000 at RIP 0x1234 (exit reason ept_violation)",
            ),
            (
                say(48, 0b010, 0x20_0000),
                "it wrote guest-physical 0x200000 at RIP 0x1234 (exit reason ept_violation)",
            ),
            (
                say(48, 0b100, 0x20_0000),
                "it executed guest-physical 0x200000 at RIP 0x1234 (exit reason ept_violation)",
            ),
            (
                say(30, 0x70_0008, 0x70),
                "it read 1 byte at port 0x70 at RIP 0x1234 (exit reason port)",
            ),
            (
                say(30, 0x3f8_0003, 0x3f8),
                "it wrote 4 bytes at port 0x3f8 at RIP 0x1234 (exit reason port)",
            ),
            (
                say(32, 0, 0x1b),
                "it wrote MSR 0x1b at RIP 0x1234 (exit reason wrmsr)",
            ),
            (
                say(2, 0, 0),
                "it ran into a triple fault at RIP 0x1234 (exit reason triple_fault)",
            ),
            (
                say(99, 0, 0),
                "it did what a cell may not at RIP 0x1234 (exit reason exit_0x63)",
            ),
        ] {
            assert_eq!(fault, text);
        }
    }
}
