//! Each step of the launch fails on each CPU in turn: Linux runs on, and a later launch works.

use anyhow::{Result, ensure};

use super::{CPUS, Context, SYSTEM, load_modules, usual};
use crate::gaol::Gaol;
use crate::runner::{Check, Group};

pub(super) const GROUP: Group = Group {
    name: "launch-faults",
    machine: usual,
    prepare: load_modules,
    except: &[],
    checks: &[
        check::<1>("step-1-arrive"),
        check::<2>("step-2-prepare"),
        check::<3>("step-3-private-tables"),
        check::<4>("step-4-check-processor"),
        check::<5>("step-5-enable-virtualization"),
        check::<6>("step-6-fill-control-block"),
        check::<7>("step-7-ready"),
        check::<8>("step-8-first-exit"),
        Check {
            name: "every-step-is-tested",
            run: every_step,
        },
    ],
};

const fn check<const STEP: u32>(name: &'static str) -> Check {
    Check {
        name,
        run: fail_at::<STEP>,
    }
}

fn fail_at<const STEP: u32>(context: &mut Context) -> Result<()> {
    for cpu in 0..CPUS {
        context.machine.refused(
            &format!("enable {SYSTEM} --fail-at {STEP}:{cpu}"),
            "failed as it was told to",
        )?;
        let enabled = context.sysfs_number("enabled")?;
        ensure!(
            enabled == 0,
            "enabled although CPU {cpu} failed at step {STEP}"
        );
        // Each CPU still runs what it is given.
        for other in 0..CPUS {
            context
                .machine
                .check(&format!("taskset {:x} true", 1 << other))?;
        }
        context.machine.linux_is_well(CPUS)?;
    }
    context.enable()?;
    context.disable()
}

fn every_step(_: &mut Context) -> Result<()> {
    let tested = GROUP.checks.len() as u32 - 1;
    ensure!(
        tested == gaol_abi::handover::LAST_LAUNCH_STEP,
        "{tested} steps are tested, and there are {}",
        gaol_abi::handover::LAST_LAUNCH_STEP
    );
    Ok(())
}
