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
            name: "lines-of-two-cells-do-not-mix",
            run: two_print,
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

/// Both print all the time. On the serial line, where each character goes at once, their lines are mixed then.
fn two_print(context: &mut Context) -> Result<()> {
    const LINES: usize = 150;
    context.enable()?;
    let words = format!("lines={LINES} every=1ms");
    context.start_cell("hello", &words)?;
    context.start_cell_with("latency", "hello", &words)?;
    context.wait_console_count("hello: done", 2)?;
    let console = context.machine.check("gaol console")?;
    let printed: Vec<_> = console
        .lines()
        .filter(|line| !line.starts_with("Gaol: "))
        .collect();
    let is_whole = |line: &&&str| {
        line.strip_prefix("hello: ").is_some_and(|rest| {
            rest == "done"
                || rest.starts_with("a cell with 1 CPU(s), TSC ") && rest.ends_with(" kHz")
                || rest.ends_with("s up, 1 CPU(s) here") && rest.matches(' ').count() == 4
        })
    };
    let whole = printed.iter().filter(is_whole).count();
    ensure!(
        whole == printed.len() && whole == 2 * (LINES + 2),
        "{whole} of {} lines are whole: {console}",
        printed.len()
    );
    context.machine.gaol("cell destroy latency")?;
    context.machine.gaol("cell destroy hello")?;
    context.disable()
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
