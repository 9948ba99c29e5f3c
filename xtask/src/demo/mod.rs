//! `cargo xtask demo`: what Gaol does, shown on an emulated machine from boot to a machine given back.
//!
//! The result counts as good only when every promise that it shows was kept: no exits of the cell during the run, all
//! ticks measured, all CPUs and all memory back with Linux. `target/demo/report.json` is written in either case.

mod histogram;
mod network;
mod report;

use std::fs;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use gaol_abi::image::Vendor;
use gaol_tests::artefacts;
use gaol_tests::gaol::{self, Gaol, Histogram};
use gaol_tests::machine::{Machine, Platform, Spec, Wired};
use gaol_tests::{latency, qemu, runner};

use crate::build::{self, Part};
use crate::place::Where;
use crate::progress::Progress;
use crate::setup;

use report::{CellReport, NetworkReport, Report};

/// How the demonstration is run.
#[derive(clap::Args)]
pub struct Arguments {
    /// What the machine runs on; else the fastest that this host can run
    #[arg(long, value_enum)]
    machine: Option<Where>,
    /// Number of timer ticks to measure
    #[arg(long)]
    ticks: Option<u64>,
    /// Microseconds between two ticks
    #[arg(long)]
    period: Option<u64>,
}

/// Name of the cell, its configuration and its image.
const CELL: &str = "latency";
const CPUS: u32 = 4;
/// What a cell that measures may take: 10,000 ticks are a second of the machine's time.
const RUN_TIMEOUT: Duration = Duration::from_secs(900);
/// What is to be known of figures from Bochs.
const BOCHS_NOTE: &str =
    "  Bochs counts emulated instructions, in steps of 5 with several CPUs, and knows no caches:
  these figures show how little is in the way, not what hardware takes.";
/// And of those from QEMU.
const QEMU_NOTE: &str =
    "  Time on QEMU is the host's, which runs all CPUs of the machine one after the other: these latencies
  are the emulator's. Its CPUs have no x2APIC, hence two exits a tick: the end of the interrupt, and
  reading the timer's count. With an x2APIC there is none, as `--machine bochs` shows.";

/// The ticks that are measured unless told otherwise, and the microseconds between two.
fn usual_run(platform: Platform) -> (u64, u64) {
    match platform {
        Platform::Bochs | Platform::Kvm => (10_000, 100),
        Platform::Qemu => (2_000, 2_000),
    }
}

/// Cycles that a class of the histogram spans.
fn class_cycles(platform: Platform) -> u64 {
    match platform {
        Platform::Bochs => 1,
        Platform::Kvm => 100,
        Platform::Qemu => 200_000,
    }
}

/// How the cell waits for its ticks: where CPUs share a thread of the host, one that spins keeps the others waiting.
fn wait(platform: Platform) -> &'static str {
    match platform {
        Platform::Bochs | Platform::Kvm => "spin",
        Platform::Qemu => "halt",
    }
}

/// Runs the demonstration.
///
/// # Errors
/// When it cannot be run to its end.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let progress = Progress::new(14);
    let toolchain = setup::run(&progress)?;
    let parts = [Part::Hypervisor, Part::Cells, Part::Module, Part::Command];
    build::run(&progress, &toolchain, &parts)?;
    let (place, why) = choose(arguments.machine)?;
    progress.line(&format!("  on {}: {why}", place.platform().name()));
    let shown = match (demonstrate(&progress, place, arguments), arguments.machine) {
        (Err(error), None) if place == Where::Kvm => {
            progress.line(&format!("  KVM did not work ({error:#}); on qemu instead"));
            demonstrate(&progress, Where::Qemu, arguments)?
        }
        (shown, _) => shown?,
    };
    progress.finish();
    present(&shown)?;
    println!("\n  took {:.0} s", progress.elapsed().as_secs_f64());
    Ok(if shown.report.ok {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The machine that was asked for, or the fastest that this host can run; and why.
fn choose(wanted: Option<Where>) -> Result<(Where, String)> {
    const ASKED: &str = "as `--machine` says";
    match wanted {
        Some(Where::Kvm) => {
            if let Err(reason) = qemu::nested_vmx() {
                bail!("{reason}: run without `--machine kvm`, which takes an emulator");
            }
            setup::qemu()?;
            Ok((Where::Kvm, format!("{ASKED}; Gaol was never tried there")))
        }
        Some(Where::Qemu) => {
            setup::qemu()?;
            Ok((Where::Qemu, ASKED.to_owned()))
        }
        Some(Where::Bochs) => Ok((Where::Bochs, ASKED.to_owned())),
        None => match (setup::qemu(), qemu::nested_vmx()) {
            (Ok(()), Ok(())) => {
                let why = "this host has VMX for virtual machines; Gaol was never tried there";
                Ok((Where::Kvm, why.to_owned()))
            }
            (Ok(()), Err(reason)) => Ok((Where::Qemu, format!("no KVM, since {reason}"))),
            (Err(error), _) => Ok((Where::Bochs, format!("no QEMU: {error:#}"))),
        },
    }
}

/// Shows all of it on a machine of its own.
fn demonstrate(progress: &Progress, place: Where, arguments: &Arguments) -> Result<Shown> {
    let platform = place.platform();
    let name = format!("demo-{}", platform.name());
    let mut spec = runner::with_artefacts(Spec::new(&name, platform))?;
    spec.cpus = CPUS;
    if platform == Platform::Qemu {
        spec.wired = Some(Wired::E1000e);
    }
    let mut machine = progress.stage("booting the stock kernel with 4 CPUs", || {
        Machine::boot(&spec)
    })?;
    show(progress, platform, &mut machine, arguments).with_context(|| {
        format!(
            "the demonstration failed; the machine's logs are in {}",
            artefacts::display(machine.directory())
        )
    })
}

/// Everything that was seen.
struct Shown {
    report: Report,
    histogram: Histogram,
    list: String,
    stats: String,
    problems: Vec<String>,
    period: u64,
    platform: Platform,
}

fn show(
    progress: &Progress,
    platform: Platform,
    machine: &mut Machine,
    arguments: &Arguments,
) -> Result<Shown> {
    let usual = usual_run(platform);
    let ticks = arguments.ticks.unwrap_or(usual.0);
    let period = arguments.period.unwrap_or(usual.1);
    let before = Resources::of(machine)?;
    machine.check("insmod /root/gaol.ko")?;
    let enabled = progress.stage("enabling Gaol under the running Linux", || {
        machine.gaol(&format!("enable {}", platform.system()))
    })?;
    progress.stage("creating, loading and starting the cell `latency`", || {
        machine.gaol(&format!("cell create {CELL}.toml"))?;
        machine.gaol(&format!(
            "cell load {CELL} {CELL}.bin -s \"period={period}us ticks={ticks} class={} wait={}\"",
            class_cycles(platform),
            wait(platform)
        ))?;
        latency::start_load(machine)?;
        machine.gaol(&format!("cell start {CELL}"))
    })?;
    let network = match platform {
        Platform::Qemu => {
            progress.stage("starting the cell `net` with the network card", || {
                network::start(machine)
            })?;
            let what = format!("asking it from outside, {} times", network::QUESTIONS);
            Some(progress.stage(&what, || network::ask(machine))?)
        }
        Platform::Bochs | Platform::Kvm => None,
    };
    let run = progress.stage(&format!("measuring {ticks} ticks under load"), || {
        latency::wait(machine, CELL, RUN_TIMEOUT, &|histogram| {
            progress.note(&format!(
                "{} of {} ticks",
                histogram.ticks_done, histogram.ticks
            ));
        })
    })?;
    let list = machine.check("gaol cell list")?;
    let stats = machine.check(&format!("gaol cell stats {CELL}"))?;
    let root_exits = machine.exits("0")?;
    latency::stop_load(machine)?;
    progress.stage("destroying the cells", || {
        if network.is_some() {
            machine.gaol(&format!("cell destroy {}", network::CELL))?;
        }
        machine.gaol(&format!("cell destroy {CELL}"))
    })?;
    let longest_pauses = machine.longest_pauses()?;
    let disabled = progress.stage("disabling Gaol", || machine.gaol("disable"))?;
    machine.check("rmmod gaol")?;
    let after = Resources::of(machine)?;

    let mut problems = after.missing_from(&before);
    if let Err(broken) = latency::is_as_promised(platform, &run, ticks) {
        problems.push(format!("{broken:#}"));
    }
    if let Some(broken) = network.as_ref().and_then(NetworkReport::broken) {
        problems.push(broken);
    }
    if let Err(complaint) = machine.linux_is_well(CPUS) {
        problems.push(format!("{complaint:#}"));
    }
    let latency::Run { histogram, exits } = run;
    let report = Report {
        machine: platform.name().to_owned(),
        kernel: machine.release().to_owned(),
        vendor: match platform.vendor() {
            Vendor::Svm => "svm",
            _ => "vmx",
        }
        .to_owned(),
        cpus_before: before.cpus,
        cpus_after: after.cpus,
        enable_cycles: gaol::number(&enabled, "cycles")?,
        disable_cycles: gaol::number(&disabled, "cycles")?,
        cell: CellReport {
            name: CELL.to_owned(),
            ticks: histogram.ticks_done,
            min_cycles: histogram.min_cycles,
            avg_cycles: histogram.average_cycles,
            max_cycles: histogram.max_cycles,
            exits_during_run: exits,
            exits_a_tick: platform.exits_a_tick(),
        },
        network,
        root_exits,
        longest_pauses,
        ok: problems.is_empty(),
    };
    Ok(Shown {
        report,
        histogram,
        list,
        stats,
        problems,
        period,
        platform,
    })
}

/// What Linux has.
struct Resources {
    cpus: u64,
    /// Free memory in KiB.
    free: u64,
}

/// What may be in Linux' caches in the end that was free at the start.
const CACHES_KIB: u64 = 2048;

impl Resources {
    fn of(machine: &mut Machine) -> Result<Self> {
        let cpus = machine.check("nproc")?.trim().parse()?;
        let free = machine
            .check("sync; echo 3 >/proc/sys/vm/drop_caches; awk '/^MemAvailable/ {print $2}' /proc/meminfo")?
            .trim()
            .parse()?;
        Ok(Self { cpus, free })
    }

    /// What is less than it was.
    fn missing_from(&self, before: &Self) -> Vec<String> {
        let mut missing = Vec::new();
        if self.cpus != before.cpus {
            missing.push(format!(
                "Linux has {} CPUs back of {}",
                self.cpus, before.cpus
            ));
        }
        if self.free + CACHES_KIB < before.free {
            missing.push(format!(
                "Linux has {} KiB available, {} before",
                self.free, before.free
            ));
        }
        missing
    }
}

fn present(shown: &Shown) -> Result<()> {
    let directory = artefacts::target().join("demo");
    fs::create_dir_all(&directory)?;
    let classes = histogram::classes(&shown.histogram.counts, shown.histogram.class_cycles);
    let drawing = directory.join("latency.svg");
    histogram::draw(
        &drawing,
        "Timer latency of a Gaol cell",
        &format!(
            "{} ticks, one every {} µs, Linux under load on the other CPUs; {} VM exits of the cell",
            shown.report.cell.ticks, shown.period, shown.report.cell.exits_during_run
        ),
        &histogram::classes_from_zero(&shown.histogram.counts, shown.histogram.class_cycles),
    )?;
    let json = directory.join("report.json");
    fs::write(&json, serde_json::to_string_pretty(&shown.report)? + "\n")?;

    println!("\n{}", report::table(&shown.report));
    println!("From the timer's expiry to the cell's handler, in cycles:\n");
    println!("{}", histogram::bars(&classes));
    match shown.platform {
        Platform::Bochs => println!("{BOCHS_NOTE}\n"),
        Platform::Qemu => println!("{QEMU_NOTE}\n"),
        Platform::Kvm => {}
    }
    println!("$ gaol cell list\n{}", shown.list);
    println!("$ gaol cell stats {CELL}\n{}", shown.stats);
    println!(
        "  Exits between the first tick and the last: {}. The others are the cell's start and what it prints.\n",
        shown.report.cell.exits_during_run
    );
    println!(
        "  {}, {}",
        artefacts::display(&drawing),
        artefacts::display(&json)
    );
    for problem in &shown.problems {
        println!("  ✗ {problem}");
    }
    if shown.report.ok {
        println!("  ✓ Linux has all its CPUs and its memory back");
    }
    Ok(())
}
