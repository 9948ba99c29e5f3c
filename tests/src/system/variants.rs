//! Gaol on machines unlike the usual one: other CPUs, another IOMMU or none, CPUs that run at the same time.

use anyhow::{Result, ensure};

use super::{CPUS, Context, SYSTEM, load_modules};
use crate::artefacts;
use crate::gaol::Gaol;
use crate::latency;
use crate::machine::{Platform, Spec};
use crate::qemu::Iommu;
use crate::runner::{Check, Except, Group};

/// Ticks that the latency cell measures, and how long that may take.
const TICKS: u64 = 300;
const TIMEOUT: std::time::Duration = std::time::Duration::from_secs(600);
/// How often cells come and go where CPUs run at the same time.
const ROUNDS: usize = 5;

macro_rules! group {
    ($group:ident, $name:literal, $machine:expr, $check:literal, $run:ident, $reason:literal) => {
        pub(super) const $group: Group = Group {
            name: $name,
            machine: $machine,
            prepare: load_modules,
            except: &[Except::group(Platform::Bochs, $reason)],
            checks: &[Check {
                name: $check,
                run: $run,
            }],
        };
    };
}

group!(
    FIVE_LEVELS,
    "five-level-tables",
    |spec| Ok(with_model(spec, "max,+svm,+npt,+la57")),
    "cells-come-and-go",
    five_levels,
    "its CPUs have four-level page tables"
);
group!(
    VIRTUAL_GIF,
    "virtual-gif",
    |spec| Ok(with_model(spec, "EPYC,+svm,+npt,+vgif")),
    "cells-come-and-go",
    life,
    "it has VMX, which knows no such flag"
);
group!(
    NO_IOMMU,
    "without-iommu",
    |spec| with_iommu(spec, Iommu::None),
    "cells-come-and-go",
    life,
    "no machine of it has an IOMMU, so that all groups show this"
);
group!(
    NO_REMAPPED_INTERRUPTS,
    "without-interrupt-remapping",
    |spec| with_iommu(spec, Iommu::Dma),
    "cells-come-and-go",
    life,
    "no machine of it has an IOMMU"
);
group!(
    THREADS,
    "cpus-at-the-same-time",
    |mut spec| {
        spec.qemu.threads = true;
        Ok(spec)
    },
    "cells-come-and-go-under-nmis",
    under_nmis,
    "it emulates one CPU after the other"
);

fn with_model(spec: Spec, model: &str) -> Spec {
    Spec {
        model: model.to_owned(),
        ..spec
    }
}

fn with_iommu(mut spec: Spec, iommu: Iommu) -> Result<Spec> {
    spec.qemu.iommu = iommu;
    let system = std::fs::read_to_string(artefacts::gaol().join(spec.platform.system()))?;
    let lines = system.lines();
    let text: String = lines
        .filter(|line| iommu != Iommu::None || !line.starts_with("iommus ="))
        .flat_map(|line| [line, "\n"])
        .collect();
    Ok(spec.content(&format!("root/{SYSTEM}"), text))
}

/// A whole life, twice.
fn life(context: &mut Context) -> Result<()> {
    for _ in 0..2 {
        context.enable()?;
        context.start_cell("hello", "every=100ms")?;
        context.wait_console("hello: ")?;
        context.start_cell("latency", &format!("period=1ms ticks={TICKS}"))?;
        let run = latency::wait(&mut context.machine, "latency", TIMEOUT, &|_| {})?;
        latency::is_as_promised(context.platform, &run, TICKS)?;
        context.machine.linux_is_well(CPUS - 2)?;
        context.machine.gaol("cell destroy latency")?;
        context.machine.gaol("cell destroy hello")?;
        context.disable()?;
    }
    Ok(())
}

fn five_levels(context: &mut Context) -> Result<()> {
    const LA57: u64 = 1 << 12;
    let line = context
        .machine
        .check("grep -m 1 ' cr4 ' /proc/gaol-test/state")?;
    let cr4 = u64::from_str_radix(line.trim().rsplit(' ').next().unwrap_or_default(), 16)?;
    ensure!(cr4 & LA57 != 0, "Linux has four levels here: {line}");
    life(context)
}

/// All the while NMIs come, and find the CPUs at any place.
fn under_nmis(context: &mut Context) -> Result<()> {
    context.machine.check("echo 5000 >/proc/gaol-test/nmi")?;
    for _ in 0..ROUNDS {
        context.enable()?;
        for _ in 0..2 {
            context.start_cell("hello", "every=100ms")?;
            context.wait_console("hello: ")?;
            context.machine.gaol("cell destroy hello")?;
        }
        context.disable()?;
    }
    context.machine.check("echo 0 >/proc/gaol-test/nmi")?;
    context.machine.linux_is_well(CPUS)
}
