//! Reboot and power-off while enabled.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Context, load_modules, usual};
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
    context
        .machine
        .console()
        .wait_text("reboot: Restarting system", Duration::from_secs(300))?;
    was_reset(context)
}

/// Waits until the machine has been reset.
pub(super) fn was_reset(context: &mut Context) -> Result<()> {
    // Bochs' BIOS cannot start a machine twice, Gaol or not: it sets IA32_FEATURE_CONTROL, which outlives the reset
    // and is locked. That it gets there shows that the machine was reset.
    context.machine.wait_off(Duration::from_secs(300))?;
    let log = context.machine.emulator_log();
    let last = log
        .lines()
        .rfind(|line| line.starts_with("(0)"))
        .unwrap_or_default();
    ensure!(
        last.contains("[0x0000000e") && last.contains("wrmsr"),
        "the machine was not reset; CPU 0 is at: {last}"
    );
    Ok(())
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
