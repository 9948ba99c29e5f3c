//! Linux fails while a cell runs. Each check needs a machine of its own, which is lost afterwards.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use super::power::{was_reset, with_restart};
use super::{Context, SYSTEM, load_modules};
use crate::artefacts;
use crate::gaol::Gaol;
use crate::machine::Spec;
use crate::runner::{Check, Group};

/// Lines of the cell that must come after the failure.
const LINES: usize = 10;
/// How long that, or a reset, may take on a busy host.
const PATIENCE: Duration = Duration::from_secs(300);

const PARKED: &str = ": this CPU is parked, the cells run on";

fn machine(spec: Spec) -> Result<Spec> {
    let system = fs::read_to_string(artefacts::gaol().join(spec.platform.system()))?;
    Ok(with_restart(spec)?.content(
        "root/reset.toml",
        format!("on-root-failure = \"reset\"\n{system}"),
    ))
}

macro_rules! group {
    ($group:ident, $name:literal, $check:literal, $run:ident) => {
        pub(super) const $group: Group = Group {
            name: $name,
            machine,
            prepare: load_modules,
            except: &[],
            checks: &[Check {
                name: $check,
                run: $run,
            }],
        };
    };
}

group!(PANIC, "root-failure-panic", "the-cell-runs-on", panic);
group!(
    TRIPLE_FAULT,
    "root-failure-triple-fault",
    "the-cell-runs-on",
    triple_fault
);
group!(
    RESET_PORT,
    "root-failure-reset-port",
    "the-cell-and-the-other-cpus-run-on",
    reset_port
);
group!(
    RESET,
    "root-failure-reset",
    "the-machine-resets-when-it-shall",
    reset
);
group!(
    NO_CELL,
    "root-failure-no-cell",
    "the-machine-resets-when-no-cell-runs",
    no_cell
);

fn start(context: &mut Context, system: &str) -> Result<()> {
    context.machine.gaol(&format!("enable {system}"))?;
    context.start_cell("hello", "every=50ms")?;
    context.wait_console("hello: 50ms up")?;
    Ok(())
}

/// Does it when the request has been answered.
fn later(context: &mut Context, command: &str) -> Result<()> {
    context
        .machine
        .check(&format!("(sleep 0.5; {command}) >/dev/null 2>&1 &"))?;
    Ok(())
}

/// Waits until the hypervisor's serial line says this; returns what follows.
fn wait_said(context: &mut Context, text: &str) -> Result<String> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        let log = context.machine.hypervisor_log();
        if let Some((_, after)) = log.split_once(text) {
            return Ok(after.to_owned());
        }
        thread::sleep(Duration::from_millis(500));
    }
    bail!("the hypervisor has not said `{text}`")
}

/// The cell prints on after the hypervisor has said this, and nothing is reset.
fn runs_on(context: &mut Context, text: &str) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        let after = wait_said(context, text)?;
        if after.matches("hello: ").count() >= LINES {
            ensure!(
                !context.machine.hypervisor_log().contains("exception"),
                "the hypervisor has failed"
            );
            return Ok(());
        }
        thread::sleep(Duration::from_millis(500));
    }
    bail!("the cell does not run on behind `{text}`")
}

fn panic(context: &mut Context) -> Result<()> {
    start(context, SYSTEM)?;
    context.machine.check("echo 1 >/proc/sys/kernel/panic")?;
    later(context, "echo c >/proc/sysrq-trigger")?;
    wait_said(context, ": Linux panics")?;
    runs_on(context, PARKED)
}

fn triple_fault(context: &mut Context) -> Result<()> {
    start(context, SYSTEM)?;
    later(context, "echo triple 0 >/proc/gaol-test/poke")?;
    runs_on(context, &format!(": Linux has a triple fault{PARKED}"))
}

fn reset_port(context: &mut Context) -> Result<()> {
    start(context, SYSTEM)?;
    // Linux gives the console's interrupts to a CPU of its choice; without them it could not answer.
    context.machine.check(
        "irq=$(sed -n 's/^ *\\([0-9]*\\):.* ttyS0.*/\\1/p' /proc/interrupts) && echo 1 >/proc/irq/$irq/smp_affinity",
    )?;
    later(
        context,
        "exec taskset 8 sh -c 'echo outb cf9 6 >/proc/gaol-test/poke'",
    )?;
    runs_on(context, &format!("CPU 3: Linux resets the machine{PARKED}"))?;
    let list = context.machine.check("taskset 1 gaol cell list")?;
    ensure!(
        list.contains("Linux failed on CPU 3: it tried to reset the machine at port 0xcf9."),
        "the list does not say why: {list}"
    );
    context.wait_state("hello", "running")
}

fn reset(context: &mut Context) -> Result<()> {
    start(context, "reset.toml")?;
    later(context, "echo outb cf9 6 >/proc/gaol-test/poke")?;
    // On QEMU there is another Linux. After this reset Bochs' BIOS starts the machine again, or stumbles: there is another Linux, or CPU 0 is in the BIOS.
    if context
        .machine
        .console()
        .wait_text("ready ", PATIENCE)
        .is_ok()
    {
        return Ok(());
    }
    let log = context.machine.emulator_log();
    let last = log.lines().rfind(|line| line.starts_with("(0)"));
    ensure!(
        last.is_some_and(|line| line.contains(" f000:")),
        "the machine was not reset; CPU 0 is at: {last:?}"
    );
    Ok(())
}

/// The keyboard controller's way, and no cell that would run on.
fn no_cell(context: &mut Context) -> Result<()> {
    start(context, SYSTEM)?;
    context.machine.gaol("cell shutdown hello")?;
    later(context, "echo outb 64 fe >/proc/gaol-test/poke")?;
    was_reset(context)?;
    let log = context.machine.hypervisor_log();
    ensure!(
        log.contains(": Linux resets the machine, which it may, at RIP 0xffffffff"),
        "the hypervisor's last words do not say who reset the machine: {log}"
    );
    Ok(())
}
