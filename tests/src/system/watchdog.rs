//! Cells that are watched: one that stands still is recorded, parked or started again, one that goes on is left alone.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{CPUS, Context, load_modules, usual};
use crate::gaol::{Gaol, number};
use crate::runner::{Check, Group};

pub(super) const GROUP: Group = Group {
    name: "watchdog",
    machine: |spec| {
        let spec = usual(spec)?;
        Ok(["record", "restart", "halt"]
            .into_iter()
            .fold(spec, |spec, policy| {
                spec.content(&format!("root/{policy}.toml"), cell(policy))
            }))
    },
    prepare: |context| {
        load_modules(context)?;
        context.enable()
    },
    except: &[],
    checks: &[
        Check {
            name: "a-healthy-cell-is-left-alone",
            run: healthy,
        },
        Check {
            name: "a-cell-that-stands-still-is-recorded",
            run: record,
        },
        Check {
            name: "a-cell-that-stands-still-is-halted",
            run: halt,
        },
        Check {
            name: "a-cell-that-stands-still-is-started-again-a-few-times",
            run: restart,
        },
        Check {
            name: "a-cell-that-crashes-is-started-again",
            run: crash,
        },
    ],
};

/// A cell with a watchdog of this policy, which it is named after.
fn cell(policy: &str) -> String {
    format!(
        "name = \"{policy}\"\ncpus = [2]\nconsole = true\n\
         watchdog = {{ timeout = \"200 ms\", policy = \"{policy}\" }}\n\
         [[memory]]\nname = \"ram\"\nat = 0\nsize = \"1 MiB\"\naccess = \"rwx\"\nloadable = true\n\
         [[memory]]\nname = \"comm\"\nkind = \"communication\"\nat = 0x100000\n"
    )
}

/// What `gaol cell list` tells of a cell's watchdog.
fn watchdog(context: &mut Context, name: &str) -> Result<Value> {
    let list = context.machine.gaol("cell list")?;
    let cells = list.get("cells").and_then(Value::as_array);
    let cell = cells
        .and_then(|cells| {
            cells
                .iter()
                .find(|cell| cell.get("name").and_then(Value::as_str) == Some(name))
        })
        .with_context(|| format!("there is no cell {name}: {list}"))?;
    let watchdog = cell.get("watchdog").cloned();
    watchdog.with_context(|| format!("nothing is told of its watchdog: {cell}"))
}

/// Waits until a number of the watchdog's is so large.
fn wait(context: &mut Context, name: &str, field: &str, least: u64) -> Result<Value> {
    for _ in 0..100 {
        let told = watchdog(context, name)?;
        if number(&told, field)? >= least {
            return Ok(told);
        }
        context.machine.check("sleep 0.2")?;
    }
    anyhow::bail!("`{field}` has not reached {least}")
}

/// It beats with each poll, every 10 ms.
fn healthy(context: &mut Context) -> Result<()> {
    context.start_cell_with("halt", "hello", "every=100ms")?;
    context.wait_console("hello: 2s up")?;
    let told = watchdog(context, "halt")?;
    ensure!(number(&told, "expired")? == 0, "it was found still: {told}");
    context.wait_state("halt", "running")?;
    // A cell that was stopped on purpose is not watched.
    context.machine.gaol("cell shutdown halt")?;
    context.machine.check("sleep 1")?;
    let told = watchdog(context, "halt")?;
    ensure!(number(&told, "expired")? == 0, "it was watched on: {told}");
    context.machine.gaol("cell destroy halt")?;
    context.machine.linux_is_well(CPUS)
}

fn record(context: &mut Context) -> Result<()> {
    context.start_cell_with("record", "violator", "do=silent")?;
    wait(context, "record", "expired", 2)?;
    context.wait_state("record", "running")?;
    context.machine.gaol("cell destroy record --force")?;
    context.machine.linux_is_well(CPUS)
}

fn halt(context: &mut Context) -> Result<()> {
    context.start_cell_with("halt", "violator", "do=silent halt=1")?;
    context.wait_state("halt", "failed")?;
    let told = watchdog(context, "halt")?;
    ensure!(
        number(&told, "expired")? == 1,
        "it was not halted at once: {told}"
    );
    let text = context.machine.check("gaol cell list")?;
    ensure!(
        text.contains("stood still for 200 ms, once; its CPUs were stopped for it"),
        "the list does not say why: {text}"
    );
    // It is asked no more.
    context.machine.gaol("cell destroy halt")?;
    context.machine.linux_is_well(CPUS)
}

fn restart(context: &mut Context) -> Result<()> {
    context.start_cell_with("restart", "violator", "do=silent")?;
    let told = wait(context, "restart", "expired", 6)?;
    ensure!(
        number(&told, "restarts")? == 5,
        "it was not started again five times: {told}"
    );
    context.wait_state("restart", "shut down")?;
    let told = watchdog(context, "restart")?;
    ensure!(
        told.get("given_up").and_then(Value::as_bool) == Some(true),
        "it was not given up: {told}"
    );
    let console = context.machine.check("gaol console")?;
    let starts = console.matches("violator: do silent").count();
    ensure!(starts >= 6, "it has run {starts} times: {console}");
    // A user may start it anew.
    context
        .machine
        .gaol("cell load restart hello.bin -s every=100ms")?;
    context.machine.gaol("cell start restart")?;
    context.wait_console("hello: ")?;
    context.wait_state("restart", "running")?;
    context.machine.gaol("cell destroy restart")?;
    context.machine.linux_is_well(CPUS)
}

/// All its CPUs are parked; the watchdog takes it for what it is, a cell that stands still.
fn crash(context: &mut Context) -> Result<()> {
    context.start_cell_with("restart", "violator", "do=port-in port=0x61")?;
    wait(context, "restart", "restarts", 1)?;
    context.machine.gaol("cell destroy restart --force")?;
    context.machine.linux_is_well(CPUS)
}
