//! Cells and how they end: asked, refusing, silent, forced.

use anyhow::{Result, ensure};

use super::{CPUS, Context, load_modules, usual};
use crate::gaol::Gaol;
use crate::runner::{Check, Group};

pub(super) const GROUP: Group = Group {
    name: "cells",
    machine: usual,
    prepare: load_modules,
    except: &[],
    checks: &[
        Check {
            name: "shutdown-and-start-again",
            run: shutdown_and_start_again,
        },
        Check {
            name: "a-cell-that-denies-is-destroyed-by-force-only",
            run: deny,
        },
        Check {
            name: "a-cell-that-is-silent-is-destroyed-by-force-only",
            run: silent,
        },
        Check {
            name: "a-cell-with-every-interrupt-pending-is-destroyed",
            run: pending,
        },
        Check {
            name: "two-cells-at-once",
            run: two_cells,
        },
        Check {
            name: "a-locked-cell-keeps-the-others-out",
            run: locked,
        },
    ],
};

fn shutdown_and_start_again(context: &mut Context) -> Result<()> {
    context.enable()?;
    context.start_cell("hello", "lines=1 every=10ms")?;
    context.wait_console("hello: done")?;
    context.machine.gaol("cell shutdown hello")?;
    context.wait_state("hello", "shut down")?;
    context.machine.gaol("cell load hello hello.bin")?;
    context.machine.gaol("cell start hello")?;
    context.wait_state("hello", "running")?;
    context.machine.gaol("cell destroy hello")?;
    context.disable()
}

fn deny(context: &mut Context) -> Result<()> {
    context.enable()?;
    context.start_cell_with("deny", "violator", "do=deny lock=0")?;
    context.wait_console("violator: do deny")?;
    context.machine.refused("cell shutdown deny", "den")?;
    context.machine.refused("cell destroy deny", "den")?;
    let console = context.wait_console("violator: denied")?;
    ensure!(!console.contains("survived"), "the cell gave up: {console}");
    context.wait_state("deny", "running")?;
    context.machine.gaol("cell destroy deny --force")?;
    context.disable()
}

fn silent(context: &mut Context) -> Result<()> {
    context.enable()?;
    context.start_cell_with("deny", "violator", "do=silent")?;
    context.wait_console("violator: do silent")?;
    context.machine.refused("cell destroy deny", "time")?;
    // Meanwhile Linux was not held up for long, and is well.
    context.machine.linux_is_well(CPUS - 1)?;
    context.machine.gaol("cell destroy deny --force")?;
    context.disable()
}

/// An APIC takes the numbers of exceptions as interrupts, too; the hypervisor drains them all.
fn pending(context: &mut Context) -> Result<()> {
    context.enable()?;
    context.start_cell_with("deny", "violator", "do=silent pend=1")?;
    context.wait_console("violator: interrupts are pending")?;
    context.machine.gaol("cell shutdown deny --force")?;
    context.machine.gaol("cell destroy deny --force")?;
    context.machine.linux_is_well(CPUS)?;
    context.disable()
}

fn two_cells(context: &mut Context) -> Result<()> {
    context.enable()?;
    // It says no more than that it is there: the console takes characters as they come, and two cells that print at once
    // make one line of two.
    context.start_cell("hello", "every=3600s")?;
    context.wait_console("hello: a cell with")?;
    context.start_cell("latency", "period=1ms ticks=100")?;
    context.machine.linux_is_well(CPUS - 2)?;
    context.wait_console("latency: 100 ticks done")?;
    context.machine.gaol("cell destroy hello")?;
    context.wait_state("latency", "running")?;
    context.machine.gaol("cell destroy latency")?;
    context.disable()
}

fn locked(context: &mut Context) -> Result<()> {
    context.enable()?;
    context.start_cell_with("deny", "violator", "do=deny lock=1")?;
    context.wait_console("violator: locked")?;
    context
        .machine
        .refused("cell create latency.toml", "lock")?;
    context.machine.gaol("cell destroy deny --force")?;
    context.machine.gaol("cell create latency.toml")?;
    context.machine.gaol("cell destroy latency")?;
    context.disable()
}
