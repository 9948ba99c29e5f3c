//! The promise to real-time cells: once it runs, nobody is in the way.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{CPUS, Context, load_modules, usual};
use crate::gaol::Gaol;
use crate::latency;
use crate::runner::{Check, Group};

const TICKS: u64 = 10_000;
const TIMEOUT: Duration = Duration::from_secs(900);
/// From the expiry to the handler, in instructions.
const LONGEST: u64 = 10;

pub(super) const GROUP: Group = Group {
    name: "latency",
    machine: usual,
    prepare: load_modules,
    except: &[],
    checks: &[
        Check {
            name: "ten-thousand-ticks-without-an-exit",
            run: ticks_without_an_exit,
        },
        Check {
            name: "a-halted-cell-takes-its-ticks-too",
            run: ticks_with_halt,
        },
    ],
};

fn measure(context: &mut Context, command_line: &str, ticks: u64) -> Result<latency::Run> {
    context.enable()?;
    latency::start_load(&mut context.machine)?;
    context.start_cell("latency", &format!("{command_line} ticks={ticks}"))?;
    let run = latency::wait(&mut context.machine, "latency", TIMEOUT, &|_| {})?;
    latency::stop_load(&mut context.machine)?;
    context.machine.gaol("cell destroy latency")?;
    context.machine.linux_is_well(CPUS)?;
    context.disable()?;

    latency::is_as_promised(context.platform, &run, ticks)?;
    Ok(run)
}

fn ticks_without_an_exit(context: &mut Context) -> Result<()> {
    let run = measure(context, "period=100us", TICKS)?;
    ensure!(
        !context.platform.counts_instructions() || run.histogram.max_cycles <= LONGEST,
        "the longest time from expiry to handler is {} cycles",
        run.histogram.max_cycles
    );
    Ok(())
}

fn ticks_with_halt(context: &mut Context) -> Result<()> {
    measure(context, "period=200us wait=halt", 1_000).map(|_| ())
}
