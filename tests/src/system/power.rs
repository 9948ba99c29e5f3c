//! Reboot and power-off while enabled.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Context, load_modules, usual};
use crate::machine::{Platform, Spec};
use crate::runner::{Check, Group};

pub(super) const REBOOT: Group = Group {
    name: "reboot",
    machine: with_restart,
    prepare: load_modules,
    except: &[],
    checks: &[Check {
        name: "while-enabled-with-a-running-cell",
        run: reboot,
    }],
};

pub(super) const POWER_OFF: Group = Group {
    name: "power-off",
    machine: usual,
    prepare: load_modules,
    except: &[],
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
        .wait_text("reboot: Restarting system", PATIENCE)?;
    was_reset(context)
}

/// How long a reset may take, and what follows, on a busy host.
const PATIENCE: Duration = Duration::from_secs(300);

/// The machine as it is, but that it starts again after a reset.
pub(super) fn with_restart(mut spec: Spec) -> Result<Spec> {
    spec.qemu.reboots = true;
    Ok(spec)
}

/// Waits until the machine has been reset.
pub(super) fn was_reset(context: &mut Context) -> Result<()> {
    if context.platform == Platform::Qemu {
        // There is another Linux.
        return context.machine.console().wait_text("ready ", PATIENCE);
    }
    // Bochs' BIOS cannot start a machine twice, Gaol or not: it sets IA32_FEATURE_CONTROL, which outlives the reset
    // and is locked. That it gets there shows that the machine was reset.
    context.machine.wait_off(PATIENCE)?;
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
    // An emulator also ends when the machine fails.
    context
        .machine
        .console()
        .wait_text("reboot: Power down", PATIENCE)?;
    context.machine.wait_off(PATIENCE)?;
    ensure!(
        !context.machine.had_triple_fault(),
        "the machine had a triple fault"
    );
    Ok(())
}
