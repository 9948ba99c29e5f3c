//! VT-d under the hypervisor, with Linux' interrupts remapped: Linux lives on, and has the unit back each time.

use anyhow::{Result, ensure};

use super::{CPUS, Context, load_modules, usual};
use crate::gaol::Gaol;
use crate::machine::Platform;
use crate::runner::{Check, Except, Group};

pub(super) const GROUP: Group = Group {
    name: "vtd",
    machine: usual,
    prepare: load_modules,
    except: &[Except::group(Platform::Bochs, "Bochs has no IOMMU")],
    checks: &[
        Check {
            name: "linux-lives-on-with-its-interrupts-remapped",
            run: lives_on,
        },
        Check {
            name: "the-unit-comes-and-goes-20-times",
            run: comes_and_goes,
        },
    ],
};

/// How many interrupts the serial line has raised, through the IOMMU.
fn interrupts(context: &mut Context) -> Result<u64> {
    let line = context.machine.check("grep ttyS0 /proc/interrupts")?;
    ensure!(line.contains("IR-IO-APIC"), "not remapped: {line}");
    // One column for each CPU that Linux has at the moment.
    let words = line.split_whitespace().skip(1);
    let counts: Vec<u64> = words.map_while(|word| word.parse().ok()).collect();
    ensure!(!counts.is_empty(), "no counts: {line}");
    Ok(counts.iter().sum())
}

/// Each command is typed and answered by interrupts of the serial line.
fn still_come(context: &mut Context) -> Result<()> {
    let before = interrupts(context)?;
    let after = interrupts(context)?;
    ensure!(after > before, "{before} and {after} interrupts");
    Ok(())
}

fn lives_on(context: &mut Context) -> Result<()> {
    still_come(context)?;
    context.enable()?;
    still_come(context)?;
    context.start_cell("hello", "every=1s")?;
    still_come(context)?;
    let list = context.machine.gaol("cell list")?;
    let iommus = &list["iommus"];
    for (key, wanted) in [
        ("units", 1),
        ("remapping", 1),
        ("failed", 0),
        ("overruled", 0),
    ] {
        ensure!(iommus[key] == wanted, "{key}: {iommus}");
    }
    context.machine.gaol("cell destroy hello")?;
    context.disable()?;
    still_come(context)?;
    context.machine.linux_is_well(CPUS)
}

fn comes_and_goes(context: &mut Context) -> Result<()> {
    for _ in 0..20 {
        context.enable()?;
        context.disable()?;
    }
    still_come(context)?;
    context.machine.linux_is_well(CPUS)
}
