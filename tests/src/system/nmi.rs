//! NMIs come at any time; none is lost that matters, and none does harm.

use anyhow::{Context as _, Result, ensure};

use super::{CPUS, Context, load_modules, usual};
use crate::gaol::Gaol;
use crate::machine::Platform;
use crate::runner::{Check, Group};

pub(super) const GROUP: Group = Group {
    name: "nmi",
    machine: usual,
    prepare: load_modules,
    except: &[],
    checks: &[
        Check {
            name: "all-through-enable-and-disable",
            run: enable_and_disable,
        },
        Check {
            name: "all-through-the-life-of-a-cell",
            run: cell,
        },
        Check {
            name: "all-through-a-launch-that-fails",
            run: failing_launch,
        },
    ],
};

/// Microseconds between two NMIs. The CPUs of QEMU share a thread of the host, and shall get somewhere besides.
fn interval(context: &Context) -> u32 {
    match context.platform {
        Platform::Qemu => 2000,
        Platform::Bochs | Platform::Kvm => 300,
    }
}

fn received(context: &mut Context) -> Result<Vec<u64>> {
    let text = context.machine.check("cat /proc/gaol-test/nmi")?;
    text.lines()
        .filter_map(|line| line.strip_prefix("cpu"))
        .map(|line| {
            let (_, count) = line.split_once(' ').context("a line without a count")?;
            Ok(count.parse()?)
        })
        .collect()
}

/// Does `work` while NMIs are sent, and asserts that these CPUs received some.
fn under_nmis(
    context: &mut Context,
    cpus: &[usize],
    work: impl FnOnce(&mut Context) -> Result<()>,
) -> Result<()> {
    let before = received(context)?;
    let interval = interval(context);
    context
        .machine
        .check(&format!("echo {interval} >/proc/gaol-test/nmi"))?;
    work(context)?;
    context.machine.check("echo 0 >/proc/gaol-test/nmi")?;
    let after = received(context)?;
    for &cpu in cpus {
        ensure!(
            after[cpu] > before[cpu] + 10,
            "CPU {cpu} received {} NMIs only",
            after[cpu] - before[cpu]
        );
    }
    context.machine.linux_is_well(CPUS)
}

fn enable_and_disable(context: &mut Context) -> Result<()> {
    under_nmis(context, &[0, 1, 2, 3], |context| {
        for _ in 0..10 {
            context.enable()?;
            context.disable()?;
        }
        Ok(())
    })
}

fn cell(context: &mut Context) -> Result<()> {
    // CPU 2 is the cell's.
    under_nmis(context, &[0, 1, 3], |context| {
        context.enable()?;
        for _ in 0..3 {
            context.start_cell("hello", "every=100ms")?;
            context.wait_console("hello: ")?;
            context.machine.gaol("cell destroy hello")?;
        }
        context.disable()
    })
}

fn failing_launch(context: &mut Context) -> Result<()> {
    under_nmis(context, &[0, 1, 2, 3], |context| {
        for step in 1..=gaol_abi::handover::LAST_LAUNCH_STEP {
            context.machine.refused(
                &format!("enable {} --fail-at {step}:1", super::SYSTEM),
                "failed as it was told to",
            )?;
        }
        Ok(())
    })
}
