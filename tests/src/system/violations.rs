//! A cell that steps out of line: it is stopped and what it did is recorded, or it is told off; Linux never notices.

use anyhow::{Result, ensure};
use serde_json::Value;

use super::{CPUS, Context, load_modules, usual};
use crate::gaol::Gaol;
use crate::machine::Platform;
use crate::runner::{Check, Group};

pub(super) const GROUP: Group = Group {
    name: "violations",
    machine: usual,
    prepare: |context| {
        load_modules(context)?;
        context.enable()
    },
    except: &[],
    checks: &[
        Check {
            name: "memory-read",
            run: |context| parked(context, "memory-read address=0x40000000", &[0x4000_0000]),
        },
        Check {
            name: "memory-write",
            run: |context| parked(context, "memory-write address=0x40000000", &[0x4000_0000]),
        },
        Check {
            name: "memory-execute",
            run: |context| parked(context, "memory-execute address=0x40000000", &[0x4000_0000]),
        },
        Check {
            name: "port-in",
            run: |context| parked(context, "port-in port=0x64", &[0x64]),
        },
        Check {
            name: "port-out",
            run: |context| parked(context, "port-out port=0x64 value=0xfe", &[0x64]),
        },
        Check {
            name: "msr-read",
            run: |context| told_off_or_parked(context, "msr-read msr=0x480"),
        },
        Check {
            name: "msr-write",
            run: |context| told_off_or_parked(context, "msr-write msr=0x1a0 value=0"),
        },
        Check {
            name: "msr-sweep",
            run: |context| survives(context, "msr-sweep").map(|_| ()),
        },
        Check {
            name: "triple-fault",
            run: |context| parked(context, "triple-fault", &[]),
        },
        Check {
            name: "control-registers",
            run: control_registers,
        },
        Check {
            name: "hypercalls-of-the-management",
            run: management,
        },
        Check {
            name: "interrupts-to-others",
            run: interrupts,
        },
        Check {
            name: "caches",
            run: |context| survives(context, "wbinvd").map(|_| ()),
        },
        Check {
            name: "vmx-instructions",
            run: vmx_instructions,
        },
        Check {
            name: "cpuid-storm",
            run: |context| survives(context, "cpuid-storm count=20000").map(|_| ()),
        },
        Check {
            name: "scribbling-over-the-communication-region",
            run: scribble,
        },
        Check {
            name: "a-panic-and-an-exception-are-the-cells-own",
            run: own_failures,
        },
    ],
};

/// Starts the violator and lets it do this.
pub(super) fn start(context: &mut Context, what: &str) -> Result<()> {
    context.start_cell("violator", &format!("do={what}"))
}

/// Destroys it and asserts that Linux has all back.
pub(super) fn end(context: &mut Context) -> Result<()> {
    context.machine.gaol("cell destroy violator --force")?;
    context.machine.linux_is_well(CPUS)
}

/// What the last cell has printed.
fn console_of_the_last(context: &mut Context, what: &str) -> Result<String> {
    let name = what.split_whitespace().next().unwrap_or(what);
    let marker = format!("violator: do {name}");
    let console = context.wait_console(&marker)?;
    Ok(console
        .rsplit_once(&marker)
        .map_or(String::new(), |(_, after)| after.to_owned()))
}

/// It is stopped, and the record has one of these addresses.
pub(super) fn parked(context: &mut Context, what: &str, addresses: &[u64]) -> Result<()> {
    start(context, what)?;
    context.wait_state("violator", "failed")?;
    let said = console_of_the_last(context, what)?;
    ensure!(!said.contains("survived"), "it got through: {said}");
    context.machine.linux_is_well(CPUS - 1)?;
    let list = context.machine.gaol("cell list")?;
    let fault = fault_of(&list, "violator")
        .ok_or_else(|| anyhow::anyhow!("`gaol cell list` shows no fault record: {list}"))?;
    for address in addresses {
        ensure!(
            fault.to_string().contains(&address.to_string())
                || fault.to_string().contains(&format!("{address:#x}")),
            "the record does not have the address {address:#x}: {fault}"
        );
    }
    let fault = fault.clone();
    traced(context, &fault)?;
    end(context)
}

/// The last CPU that the trace says was stopped is one of those that the list of cells tells of.
fn traced(context: &mut Context, faults: &Value) -> Result<()> {
    let trace = context.machine.gaol("trace")?;
    let mut events = trace["events"].as_array().into_iter().flatten().rev();
    let last = events.find(|event| event["kind"] == "violation");
    let last = last.ok_or_else(|| anyhow::anyhow!("no CPU was stopped: {trace}"))?;
    let is_it = |fault: &Value| {
        let keys = [
            "cpu",
            "address",
            "rip",
            "exit_reason",
            "qualification",
            "time",
        ];
        keys.iter()
            .all(|key| !fault[key].is_null() && fault[key] == last[key])
    };
    ensure!(
        faults.as_array().into_iter().flatten().any(is_it) && last["cell_name"] == "violator",
        "{last} is none of {faults}"
    );
    Ok(())
}

/// The fault records of a cell's CPUs, when there are any.
fn fault_of<'a>(list: &'a Value, name: &str) -> Option<&'a Value> {
    let cells = list.get("cells")?.as_array()?;
    let cell = cells
        .iter()
        .find(|cell| cell.get("name").and_then(Value::as_str) == Some(name))?;
    let faults = cell.get("faults")?;
    (!faults.as_array()?.is_empty()).then_some(faults)
}

/// It goes on to its end; returns what it has printed.
pub(super) fn survives(context: &mut Context, what: &str) -> Result<String> {
    start(context, what)?;
    console_of_the_last(context, what)?;
    let mut said = String::new();
    for _ in 0..200 {
        said = console_of_the_last(context, what)?;
        if said.contains("violator: survived") {
            context.machine.linux_is_well(CPUS - 1)?;
            end(context)?;
            return Ok(said);
        }
        context.machine.check("sleep 0.3")?;
    }
    anyhow::bail!("it did not survive `{what}`: {said}")
}

/// It gets a #GP, or is stopped: the access does not go through.
fn told_off_or_parked(context: &mut Context, what: &str) -> Result<()> {
    start(context, what)?;
    for _ in 0..60 {
        let said = console_of_the_last(context, what)?;
        let parked = context.cell_state("violator")?.contains("failed");
        if parked || said.contains("violator: survived") {
            ensure!(
                parked || said.contains("general protection"),
                "it got through: {said}"
            );
            context.machine.linux_is_well(CPUS - 1)?;
            return end(context);
        }
        context.machine.check("sleep 0.3")?;
    }
    anyhow::bail!("`{what}` has not ended")
}

fn control_registers(context: &mut Context) -> Result<()> {
    // What QEMU's processors take they enter no guest with.
    let reserved = u8::from(context.platform != Platform::Qemu);
    let said = survives(context, &format!("cr reserved={reserved}"))?;
    ensure!(
        said.contains("violator: efer, svme")
            && said.contains("violator: cr4, vmxe") == (reserved != 0),
        "it did not try all: {said}"
    );
    ensure!(
        !said.contains("the old value did not come back"),
        "a register has changed: {said}"
    );
    Ok(())
}

fn management(context: &mut Context) -> Result<()> {
    let said = survives(context, "hypercall-management")?;
    let refused = said.matches("error 1").count();
    ensure!(refused >= 4, "only {refused} calls were refused: {said}");
    Ok(())
}

fn interrupts(context: &mut Context) -> Result<()> {
    let said = survives(context, "ipi target=0")?;
    for line in [
        "self ipi register",
        "own id",
        "shorthand self",
        "shorthand all",
    ] {
        ensure!(
            said.contains(&format!("violator: {line}: 1 received")),
            "its own interrupts do not all arrive: {said}"
        );
    }
    Ok(())
}

fn vmx_instructions(context: &mut Context) -> Result<()> {
    let said = survives(context, "vmx")?;
    let refused = said.matches("invalid opcode").count();
    ensure!(
        refused >= 9,
        "only {refused} instructions were refused: {said}"
    );
    Ok(())
}

fn scribble(context: &mut Context) -> Result<()> {
    start(context, "scribble")?;
    console_of_the_last(context, "scribble")?;
    // Whatever it writes there, the root gets a plain answer and the cell can be destroyed.
    for _ in 0..3 {
        context.machine.gaol("cell list")?;
        context.machine.run("gaol cell shutdown violator")?;
    }
    end(context)
}

fn own_failures(context: &mut Context) -> Result<()> {
    for (what, words) in [
        ("panic", "cell failed: as the command line says"),
        ("exception", "cell failed: exception 6"),
    ] {
        start(context, what)?;
        context.wait_console(words)?;
        context.wait_state("violator", "failed")?;
        end(context)?;
    }
    Ok(())
}
