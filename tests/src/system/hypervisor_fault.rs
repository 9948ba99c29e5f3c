//! The hypervisor itself fails, as it is told to by a launch for tests: the cell is stopped with a record of where that was,
//! Linux goes on, and the other cell never notices.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use gaol_abi::hypercall::{Errno, Hypercall, InjectedFault};
use serde_json::Value;

use super::{CPUS, Context, SYSTEM, load_modules, usual};
use crate::gaol::Gaol;
use crate::latency;
use crate::runner::{Check, Group};

pub(super) const GROUP: Group = Group {
    name: "hypervisor-fault",
    machine: usual,
    prepare: load_modules,
    except: &[],
    checks: &[
        Check {
            name: "refused-unless-the-launch-permits-it",
            run: refused,
        },
        Check {
            name: "in-a-cell",
            run: in_a_cell,
        },
        Check {
            name: "in-the-root",
            run: in_the_root,
        },
        Check {
            name: "in-the-midst-of-management",
            run: in_management,
        },
    ],
};

/// What is injected, and what is told of it: the vector (`None`: a panic).
const FAULTS: [(InjectedFault, Option<u64>); 6] = [
    (InjectedFault::PageFault, Some(14)),
    (InjectedFault::GeneralProtection, Some(13)),
    (InjectedFault::InvalidOpcode, Some(6)),
    (InjectedFault::DivideError, Some(0)),
    (InjectedFault::StackOverflow, Some(8)),
    (InjectedFault::Panic, None),
];

/// The CPU of the violator.
const VIOLATORS_CPU: u64 = 2;

/// What a hypercall returns that is refused with this error.
const fn refusal(errno: Errno) -> u64 {
    (errno.0 as i64).wrapping_neg() as u64
}

/// Enables Gaol so that guests may let it fail.
fn enable(context: &mut Context) -> Result<()> {
    let step = gaol_abi::handover::FAULT_BY_HYPERCALL;
    context
        .machine
        .gaol(&format!("enable {SYSTEM} --fail-at {step}:0"))?;
    Ok(())
}

/// Linux asks for this fault; returns the hypercall's result.
fn inject(context: &mut Context, fault: InjectedFault) -> Result<u64> {
    let (number, kind) = (Hypercall::InjectFault.0, fault.0);
    context
        .poke(&format!("vmcall {number:x} {kind:x}"))?
        .context("the hypercall itself has faulted")
}

/// The record of the CPU's last fault of the hypervisor.
fn record(context: &mut Context, cpu: Option<u64>) -> Result<Value> {
    let list = context.machine.gaol("cell list")?;
    let faults = list.get("hypervisor_faults").and_then(Value::as_array);
    faults
        .into_iter()
        .flatten()
        .filter(|fault| cpu.is_none_or(|cpu| fault["cpu"] == cpu))
        .max_by_key(|fault| fault["time"].as_u64())
        .cloned()
        .with_context(|| format!("`gaol cell list` tells of no fault of the hypervisor: {list}"))
}

/// The record says what was injected, and where that is in the hypervisor.
fn tells(record: &Value, vector: Option<u64>) -> Result<()> {
    let text = record["text"].as_str().unwrap_or_default();
    match vector {
        Some(vector) => ensure!(
            record["kind"] == "exception"
                && record["vector"] == vector
                && text.contains("injection::raise+0x"),
            "not exception {vector} where it was raised, but: {record}"
        ),
        None => ensure!(
            record["kind"] == "panic" && text.contains("injection.rs:"),
            "not a panic where it was, but: {record}"
        ),
    }
    // What calls a panic last may be left by a jump, without a trace on the stack; the exit path is not.
    let trace = record["trace"].to_string();
    let caller = if vector.is_some() {
        "hypercall"
    } else {
        "exit_slow"
    };
    ensure!(
        trace.contains(caller),
        "the stack does not show `{caller}`: {record}"
    );
    Ok(())
}

/// Starts a latency cell that ticks until it is destroyed, and waits until it does.
fn start_latency(context: &mut Context) -> Result<()> {
    context.start_cell("latency", "period=100us ticks=100000000")?;
    for _ in 0..100 {
        if let Some(histogram) = context.machine.histogram("latency")?
            && histogram.ticks_done > 10
        {
            return Ok(());
        }
        context.machine.check("sleep 0.2")?;
    }
    anyhow::bail!("the latency cell does not tick")
}

/// What the latency cell has done.
struct Done {
    ticks: u64,
    missed: u64,
    exits: u64,
}

impl Done {
    /// The ticks are read last, so that those of all exits are among them.
    fn by_now(context: &mut Context) -> Result<Self> {
        let exits = context.machine.exits("latency")?.values().sum();
        let histogram = context.machine.histogram("latency")?;
        let histogram = histogram.context("the latency cell has no results")?;
        Ok(Self {
            ticks: histogram.ticks_done,
            missed: histogram.missed,
            exits,
        })
    }
}

/// It has ticked on, without an exit that is not its ticks', since it had these.
fn latency_ticks(context: &mut Context, since: &Done) -> Result<()> {
    let before = Done::by_now(context)?;
    context.machine.check("sleep 0.3")?;
    let now = Done::by_now(context)?;
    ensure!(now.ticks > before.ticks, "the latency cell has stopped");
    let (exits, ticks) = (now.exits - since.exits, now.ticks - since.ticks);
    let most = latency::most_exits(context.platform, ticks, now.missed - since.missed);
    ensure!(
        exits <= most,
        "the latency cell left {exits} times in {ticks} ticks"
    );
    Ok(())
}

fn refused(context: &mut Context) -> Result<()> {
    context.enable()?;
    super::protections::are_on(context)?;
    let result = inject(context, InjectedFault::PageFault)?;
    ensure!(
        result == refusal(Errno::NoSystemCall),
        "Linux may let the hypervisor fail: {result:#x}"
    );
    context.start_cell("violator", "do=hypervisor-fault kind=1")?;
    context.wait_console("the hypervisor goes on: error 38")?;
    context.machine.gaol("cell destroy violator --force")?;
    context.disable()
}

fn in_a_cell(context: &mut Context) -> Result<()> {
    enable(context)?;
    start_latency(context)?;
    let since = Done::by_now(context)?;
    for (fault, vector) in FAULTS {
        let kind = fault.0;
        context.start_cell("violator", &format!("do=hypervisor-fault kind={kind}"))?;
        context.wait_state("violator", "failed")?;
        tells(&record(context, Some(VIOLATORS_CPU))?, vector)?;
        context.machine.linux_is_well(CPUS - 2)?;
        latency_ticks(context, &since)?;
        context.machine.gaol("cell destroy violator")?;
        context.machine.linux_is_well(CPUS - 1)?;
    }
    let console = context.machine.check("gaol console")?;
    ensure!(
        !console.contains("the hypervisor goes on"),
        "a cell ran on behind a fault of the hypervisor: {console}"
    );
    let faults = record(context, Some(VIOLATORS_CPU))?;
    ensure!(
        faults["count"] == FAULTS.len(),
        "not every fault was counted: {faults}"
    );
    context.machine.gaol("cell destroy latency")?;
    context.disable()
}

fn in_the_root(context: &mut Context) -> Result<()> {
    enable(context)?;
    start_latency(context)?;
    let since = Done::by_now(context)?;
    for (fault, vector) in FAULTS {
        let result = inject(context, fault)?;
        ensure!(
            result == refusal(Errno::InputOutput),
            "the hypercall was not refused: {result:#x}"
        );
        tells(&record(context, None)?, vector)?;
        context.machine.linux_is_well(CPUS - 1)?;
    }
    latency_ticks(context, &since)?;
    // Everything is as before: cells come and go.
    context.start_cell("hello", "")?;
    context.machine.gaol("cell destroy hello")?;
    context.machine.gaol("cell destroy latency")?;
    context.disable()?;
    context
        .machine
        .run_for(&format!("gaol enable {SYSTEM}"), Duration::from_secs(300))?;
    context.disable()
}

fn in_management(context: &mut Context) -> Result<()> {
    enable(context)?;
    let result = inject(context, InjectedFault::PanicInManagement)?;
    ensure!(
        result == refusal(Errno::InputOutput),
        "the hypercall was not refused: {result:#x}"
    );
    tells(&record(context, None)?, None)?;
    // Nobody waits for the lock that was left behind.
    context
        .machine
        .refused("cell create hello.toml", "the hypervisor itself has failed")?;
    context.machine.linux_is_well(CPUS)?;
    context.disable()?;
    context.enable()?;
    context.start_cell("hello", "")?;
    context.machine.gaol("cell destroy hello")?;
    context.disable()
}
