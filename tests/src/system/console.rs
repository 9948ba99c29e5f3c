//! The hypervisor's console: in memory, on the serial line, and after the end.

use anyhow::{Result, ensure};

use super::{Context, load_modules, usual};
use crate::gaol::Gaol;
use crate::runner::{Check, Group};

pub(super) const GROUP: Group = Group {
    name: "console",
    machine: usual,
    prepare: load_modules,
    except: &[],
    checks: &[
        Check {
            name: "cells-print-in-memory-and-on-the-serial-line",
            run: cells_print,
        },
        Check {
            name: "the-last-words-stay-after-disable",
            run: last_words,
        },
        Check {
            name: "following-ends-when-it-is-interrupted",
            run: follow,
        },
    ],
};

const GREETING: &str = "hello: a cell with 1 CPU(s)";

fn cells_print(context: &mut Context) -> Result<()> {
    context.enable()?;
    context.start_cell("hello", "every=200ms")?;
    context.wait_console(GREETING)?;
    context.machine.gaol("cell destroy hello")?;
    context.disable()?;
    let serial = context.machine.hypervisor_log();
    ensure!(
        serial.contains(GREETING),
        "the serial line says only: {serial:?}"
    );
    Ok(())
}

fn last_words(context: &mut Context) -> Result<()> {
    context.enable()?;
    context.start_cell("hello", "lines=1 every=10ms")?;
    context.wait_console("hello: done")?;
    context.machine.gaol("cell destroy hello")?;
    context.disable()?;
    let console = context.machine.check("gaol console")?;
    ensure!(
        console.contains("hello: done"),
        "after disable the console says: {console}"
    );
    Ok(())
}

fn follow(context: &mut Context) -> Result<()> {
    context.enable()?;
    context.start_cell("hello", "every=200ms")?;
    let output = context
        .machine
        .run("timeout -s INT 3 gaol console -f >/tmp/console; tail -n 3 /tmp/console")?;
    ensure!(
        output.stdout.contains("hello: "),
        "following showed: {}",
        output.stdout
    );
    context.machine.gaol("cell destroy hello")?;
    context.disable()
}
