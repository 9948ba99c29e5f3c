//! Again and again: nothing is left behind.

use anyhow::{Result, ensure};

use super::{CPUS, Context, load_modules, usual};
use crate::gaol::Gaol;
use crate::runner::{Check, Group};

pub(super) const GROUP: Group = Group {
    name: "life-cycle",
    machine: usual,
    prepare: load_modules,
    except: &[],
    checks: &[
        Check {
            name: "enable-and-disable-20-times",
            run: enable_and_disable,
        },
        Check {
            name: "create-and-destroy-50-times-and-no-frame-is-lost",
            run: create_and_destroy,
        },
        Check {
            name: "module-loads-and-unloads",
            run: load_and_unload,
        },
    ],
};

fn enable_and_disable(context: &mut Context) -> Result<()> {
    for round in 0..20 {
        context.enable()?;
        let enabled = context.sysfs_number("enabled")?;
        ensure!(enabled == 1, "round {round}: sysfs says enabled {enabled}");
        context.disable()?;
        let enabled = context.sysfs_number("enabled")?;
        ensure!(enabled == 0, "round {round}: sysfs says enabled {enabled}");
    }
    Ok(())
}

fn create_and_destroy(context: &mut Context) -> Result<()> {
    context.enable()?;
    // What is set up once and stays is set up by the first cell.
    context.start_cell("hello", "every=1s")?;
    context.machine.gaol("cell destroy hello")?;
    let first = context.sysfs_number("mem_pool_used")?;
    for round in 0..50 {
        context.start_cell("hello", "every=1s")?;
        let with_cell = context.sysfs_number("mem_pool_used")?;
        ensure!(
            with_cell > first,
            "round {round}: a cell takes no frame ({with_cell} used)"
        );
        context.machine.gaol("cell destroy hello")?;
        let used = context.sysfs_number("mem_pool_used")?;
        ensure!(
            used == first,
            "round {round}: {used} frames are used, {first} at first"
        );
    }
    context.machine.linux_is_well(CPUS)?;
    context.disable()
}

fn load_and_unload(context: &mut Context) -> Result<()> {
    for _ in 0..5 {
        context
            .machine
            .check("rmmod gaol && insmod /root/gaol.ko")?;
    }
    context.enable()?;
    let output = context.machine.run("rmmod gaol")?;
    ensure!(output.status != 0, "the module was unloaded while enabled");
    context.disable()
}
