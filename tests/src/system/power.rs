//! Reboot and power-off while enabled.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{CPUS, Context, load_modules, usual};
use crate::gaol::Gaol;
use crate::machine::BOOT_TIMEOUT;
use crate::runner::{Check, Group};

pub(super) const REBOOT: Group = Group {
    name: "reboot",
    machine: usual,
    prepare: load_modules,
    checks: &[Check {
        name: "while-enabled-with-a-running-cell",
        run: reboot,
    }],
};

pub(super) const POWER_OFF: Group = Group {
    name: "power-off",
    machine: usual,
    prepare: load_modules,
    checks: &[Check {
        name: "while-enabled-with-a-running-cell",
        run: power_off,
    }],
};

fn reboot(context: &mut Context) -> Result<()> {
    context.enable()?;
    context.start_cell("hello", "every=100ms")?;
    context.wait_console("hello: ")?;
    context
        .machine
        .run("(sleep 1; reboot -f) >/dev/null 2>&1 &")?;
    context.machine.console().wait_ready(BOOT_TIMEOUT)?;
    let uptime = context.machine.check("cut -d. -f1 /proc/uptime")?;
    ensure!(
        uptime.trim().parse::<u64>()? < 60,
        "it did not boot again: up for {uptime}"
    );
    context.machine.linux_is_well(CPUS)?;
    load_modules(context)?;
    context.enable()?;
    context.disable()
}

fn power_off(context: &mut Context) -> Result<()> {
    context.enable()?;
    context.start_cell("hello", "every=100ms")?;
    context.wait_console("hello: ")?;
    context
        .machine
        .run("(sleep 1; poweroff -f) >/dev/null 2>&1 &")?;
    context.machine.wait_off(Duration::from_secs(300))?;
    Ok(())
}
