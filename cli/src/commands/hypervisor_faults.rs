//! What `gaol cell list` tells of faults of the hypervisor itself.

use gaol_abi::public::{FAULT_TRACE, HypervisorFault, HypervisorFaultKind as Kind};
use serde_json::{Value, json};

use crate::symbols::Symbols;
use crate::sysfs::PublicPages;

/// The CPUs on which the hypervisor has failed since the launch.
pub fn faults(public: &PublicPages) -> Vec<(u32, &HypervisorFault)> {
    let count = public.system().map_or(0, |system| system.cpu_count);
    (0..count)
        .filter_map(|cpu| Some((cpu, &public.cpu(cpu)?.hypervisor_fault)))
        .filter(|(_, fault)| fault.count != 0)
        .collect()
}

fn exception_name(vector: u32) -> &'static str {
    match vector {
        0 => "division by zero",
        6 => "invalid opcode",
        8 => "double fault",
        13 => "general protection fault",
        14 => "page fault",
        _ => "unexpected here",
    }
}

fn file_of(fault: &HypervisorFault) -> String {
    let bytes: Vec<u8> = fault
        .file
        .iter()
        .copied()
        .take_while(|byte| *byte != 0)
        .collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn place(fault: &HypervisorFault, symbols: &Symbols) -> String {
    match fault.kind {
        Kind::Panic => format!("a panic at {}:{}", file_of(fault), fault.line),
        _ => {
            let name = exception_name(fault.vector);
            let mut text = format!(
                "exception {} ({name}, error code {:#x}) at {}",
                fault.vector,
                fault.error_code,
                symbols.name(fault.rip)
            );
            if matches!(fault.vector, 8 | 14) {
                text.push_str(&format!(", address {:#x}", fault.address));
            }
            text
        }
    }
}

fn trace<'a>(
    fault: &'a HypervisorFault,
    symbols: &'a Symbols,
) -> impl Iterator<Item = String> + 'a {
    let count = usize::try_from(fault.trace_length).unwrap_or(FAULT_TRACE);
    fault
        .trace
        .iter()
        .take(count)
        .map(|address| symbols.name(*address))
}

/// Each fault in words, with what was on the stack.
#[must_use]
pub fn describe(faults: &[(u32, &HypervisorFault)], symbols: &Symbols) -> String {
    let mut text = String::new();
    for (cpu, fault) in faults {
        text.push_str(&format!(
            "The hypervisor failed on CPU {cpu}, in cell {}: {}.\n",
            fault.cell,
            place(fault, symbols)
        ));
        for name in trace(fault, symbols) {
            text.push_str(&format!("    {name}\n"));
        }
        if fault.count > 1 {
            text.push_str(&format!("It has failed there {} times.\n", fault.count));
        }
    }
    if !faults.is_empty() {
        text.push_str("This is a fault of Gaol; please report it.\n");
    }
    text
}

/// The same for programs.
#[must_use]
pub fn describe_json(faults: &[(u32, &HypervisorFault)], symbols: &Symbols) -> Vec<Value> {
    faults
        .iter()
        .map(|(cpu, fault)| {
            json!({
                "cpu": cpu,
                "count": fault.count,
                "cell": fault.cell,
                "kind": if fault.kind == Kind::Panic { "panic" } else { "exception" },
                "vector": fault.vector,
                "error_code": fault.error_code,
                "rip": fault.rip,
                "address": fault.address,
                "stack": fault.stack,
                "time": fault.time,
                "file": file_of(fault),
                "line": fault.line,
                "trace": trace(fault, symbols).collect::<Vec<_>>(),
                "text": place(fault, symbols),
            })
        })
        .collect()
}
