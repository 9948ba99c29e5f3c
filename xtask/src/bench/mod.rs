//! `cargo xtask bench`: exact counts, on emulated machines whose time is their instructions.
//!
//! Native and hypervisor readings come from the same code in the same boot, so that their difference is what the
//! hypervisor adds and nothing else.

mod counts;
mod figures;

use std::collections::BTreeMap;
use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use gaol_abi::image::{ImageHeader, LINK_BASE};
use gaol_tests::artefacts;
use gaol_tests::gaol::{self, Gaol};
use gaol_tests::machine::{Machine, Platform, Spec};
use gaol_tests::runner;
use object::read::elf::ElfFile64;
use object::{LittleEndian, Object, ObjectSymbol};
use serde::Serialize;
use zerocopy::FromBytes;

use crate::build;
use crate::place::Where;
use crate::progress::Progress;
use crate::setup;
use crate::table::{Table, thousands};
use crate::toolchain::Toolchain;
use counts::Comparison;
use figures::Figures;

/// What to do with the figures.
#[derive(clap::Args)]
pub struct Arguments {
    /// Measure on this machine only; else on Bochs (VMX) and QEMU (SVM), one after the other
    #[arg(long, value_enum)]
    machine: Option<Where>,
    /// Fail when a figure is more than 5 % above the baseline, or breaks a promise
    #[arg(long)]
    check: bool,
    /// Make these figures the baseline
    #[arg(long, conflicts_with = "check")]
    accept: bool,
}

/// How often the life cycle is measured.
const LIFE_CYCLES: usize = 5;
const CPUS: u32 = 4;
/// How often a cell that measures is looked after.
const CELL_WAITS: u32 = 100;
/// The machine's configuration without a serial console.
const QUIET: &str = "quiet.toml";
/// The cell whose life is measured.
const CELL: &str = "hello";

/// A machine's part of `target/bench/report.json`.
#[derive(Serialize)]
struct Report {
    machine: &'static str,
    kernel: String,
    cpus: u32,
    /// Operations in the root cell.
    operations: BTreeMap<String, Comparison>,
    /// What the hypervisor adds to operations inside a cell, in cycles.
    cell_operations: BTreeMap<String, f64>,
    /// Cycles of the hypervisor's part of each step: smallest, median, largest.
    life_cycle: BTreeMap<String, [u64; 3]>,
    /// Sizes in bytes.
    sizes: BTreeMap<String, u64>,
    /// Everything that is compared with the baseline.
    figures: BTreeMap<String, f64>,
}

/// Measures, reports and compares.
///
/// # Errors
/// When something cannot be measured.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let progress = Progress::new(10);
    let toolchain = setup::run(&progress)?;
    build::run(&progress, &toolchain, build::PARTS)?;
    let machines = match arguments.machine {
        Some(Where::Kvm) => bail!("time on KVM is the host's: nothing can be counted there"),
        Some(one) => vec![one.platform()],
        None => runner::MACHINES.to_vec(),
    };
    let baseline = figures::baseline()?;
    let mut reports = BTreeMap::new();
    for platform in machines {
        let mut machine = boot(&progress, platform)?;
        let report = measure(&progress, &toolchain, platform, &mut machine).with_context(|| {
            format!(
                "could not measure; the machine's logs are in {}",
                artefacts::display(machine.directory())
            )
        })?;
        reports.insert(platform.name(), (platform, report));
    }
    progress.finish();

    let directory = artefacts::target().join("bench");
    fs::create_dir_all(&directory)?;
    let path = directory.join("report.json");
    let written: BTreeMap<_, _> = reports
        .iter()
        .map(|(name, (_, report))| (name, report))
        .collect();
    fs::write(&path, serde_json::to_string_pretty(&written)? + "\n")?;
    let mut problems = Vec::new();
    for (name, (platform, report)) in &reports {
        let before = baseline.get(*name).cloned().unwrap_or_default();
        present(*platform, report, &before);
        let mut of_machine = figures::broken_promises(*platform, &report.figures);
        if arguments.accept {
            figures::accept(*platform, &report.figures)?;
            println!("  these figures are the baseline now");
        } else {
            of_machine.extend(figures::regressions(&report.figures, &before));
        }
        problems.extend(
            of_machine
                .iter()
                .map(|problem| format!("{name}: {problem}")),
        );
    }
    println!("  {}", artefacts::display(&path));
    for problem in &problems {
        println!("  ✗ {problem}");
    }
    Ok(if arguments.check && !problems.is_empty() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// Boots the machine, with all CPUs online.
fn boot(progress: &Progress, platform: Platform) -> Result<Machine> {
    let system = artefacts::gaol().join(platform.system());
    let system = fs::read_to_string(&system)
        .with_context(|| format!("cannot read {}", artefacts::display(&system)))?;
    // A serial console would be measured as well.
    let quiet: String = system
        .lines()
        .filter(|line| !line.starts_with("uart"))
        .flat_map(|line| [line, "\n"])
        .collect();
    let mut spec =
        runner::with_artefacts(Spec::new(&format!("bench-{}", platform.name()), platform))?
            .content(&format!("root/{QUIET}"), quiet);
    spec.cpus = CPUS;
    if platform == Platform::Qemu {
        // Linux does not get its CPUs started by itself when instructions are counted.
        spec.qemu.counts_instructions = true;
        spec.command_line = "maxcpus=1".to_owned();
    }
    let what = format!("booting the stock kernel on {}", platform.name());
    let mut machine = progress.stage(&what, || Machine::boot(&spec))?;
    machine.check(
        "for cpu in /sys/devices/system/cpu/cpu[1-9]; do \
         [ $(cat $cpu/online) = 1 ] || echo 1 >$cpu/online || exit 1; done",
    )?;
    machine.linux_is_well(CPUS)?;
    Ok(machine)
}

fn measure(
    progress: &Progress,
    toolchain: &Toolchain,
    platform: Platform,
    machine: &mut Machine,
) -> Result<Report> {
    machine.check("insmod /root/gaol-bench.ko && insmod /root/gaol.ko")?;
    let native = progress.stage("counting without Gaol", || count(machine))?;
    machine.gaol(&format!("enable {QUIET}"))?;
    let hypervisor = progress.stage("counting under Gaol", || count(machine))?;
    let mut sizes = image_sizes(toolchain, platform)?;
    let memory = memory_used(machine, &mut sizes)?;
    let cell_operations = progress.stage("counting inside a cell", || count_in_cell(machine))?;
    machine.gaol("disable")?;
    let life_cycle = progress.stage("measuring the life of a cell", || life_cycle(machine))?;
    machine.linux_is_well(CPUS)?;

    let operations = counts::compare(&native, &hypervisor);
    let mut figures: BTreeMap<String, f64> = operations
        .iter()
        .filter(|(name, _)| *name != "ipi_round_trip")
        .map(|(name, comparison)| (name.clone(), comparison.cost))
        .collect();
    figures.extend(cell_operations.clone());
    for (name, [_, median, _]) in &life_cycle {
        figures.insert(name.clone(), *median as f64);
    }
    // Without what fills their last pages.
    let text_and_rodata = sizes["text"] + sizes["rodata"];
    figures.insert("text_and_rodata_bytes".to_owned(), text_and_rodata as f64);
    figures.insert("memory_bytes".to_owned(), memory as f64);
    Ok(Report {
        machine: platform.name(),
        kernel: machine.release().to_owned(),
        cpus: CPUS,
        operations,
        cell_operations,
        life_cycle,
        sizes,
        figures,
    })
}

/// Measures every operation on CPU 0.
fn count(machine: &mut Machine) -> Result<BTreeMap<String, counts::Reading>> {
    counts::parse(&machine.check("taskset 1 cat /proc/gaol-bench")?)
}

/// Lets a cell measure; the last of its operations may be one that it is stopped for.
fn count_in_cell(machine: &mut Machine) -> Result<BTreeMap<String, f64>> {
    const COUNTER: &str = "violator";
    machine.gaol(&format!("cell create {COUNTER}.toml"))?;
    machine.gaol(&format!("cell load {COUNTER} {COUNTER}.bin -s do=bench"))?;
    machine.gaol(&format!("cell start {COUNTER}"))?;
    for _ in 0..CELL_WAITS {
        machine.check("sleep 0.5")?;
        let console = machine.check("gaol console")?;
        let list = machine.check("gaol cell list")?;
        if console.contains("violator: survived") || list.contains("failed") {
            machine.gaol(&format!("cell destroy {COUNTER} --force"))?;
            return Ok(counts::of_cell(&console));
        }
    }
    bail!("the cell has not measured all; see `gaol console`")
}

/// Measures the steps of a cell's life, several times.
fn life_cycle(machine: &mut Machine) -> Result<BTreeMap<String, [u64; 3]>> {
    let steps = [
        ("enable", format!("enable {QUIET}")),
        ("create", format!("cell create {CELL}.toml")),
        ("load", format!("cell load {CELL} {CELL}.bin")),
        ("start", format!("cell start {CELL}")),
        ("destroy", format!("cell destroy {CELL}")),
        ("disable", "disable".to_owned()),
    ];
    let mut samples: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for _ in 0..LIFE_CYCLES {
        for (name, command) in &steps {
            if *name == "disable" {
                let pauses = machine.longest_pauses()?;
                let pause = pauses.into_values().max();
                samples
                    .entry("longest_pause".to_owned())
                    .or_default()
                    .push(pause.unwrap_or(0));
            }
            let said = machine.gaol(command)?;
            samples
                .entry((*name).to_owned())
                .or_default()
                .push(gaol::number(&said, "cycles")?);
        }
    }
    Ok(samples
        .into_iter()
        .map(|(name, mut samples)| {
            samples.sort_unstable();
            let last = samples.len() - 1;
            (name, [samples[0], samples[last / 2], samples[last]])
        })
        .collect())
}

/// Sizes from the image's header.
fn image_sizes(toolchain: &Toolchain, platform: Platform) -> Result<BTreeMap<String, u64>> {
    let name = platform.image();
    let elf = toolchain.image(name.trim_end_matches(".bin"));
    let elf = fs::read(&elf).with_context(|| format!("cannot read {}", elf.display()))?;
    let elf = ElfFile64::<LittleEndian>::parse(&*elf).context("the image is no ELF file")?;
    let content = |end: &str, start: u64| -> Result<u64> {
        let symbol = elf
            .symbol_by_name(end)
            .with_context(|| format!("the linker script does not define `{end}`"))?;
        Ok(symbol.address() - LINK_BASE - start)
    };
    let path = artefacts::gaol().join(name);
    let image = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let (header, _) = ImageHeader::read_from_prefix(&image)
        .ok()
        .context("the image has no header")?;
    Ok(BTreeMap::from([
        ("file".to_owned(), header.file_size),
        ("image_in_memory".to_owned(), header.memory_size),
        (
            "text".to_owned(),
            content("__text_content_end", header.text)?,
        ),
        (
            "rodata".to_owned(),
            content("__rodata_content_end", header.rodata)?,
        ),
        ("data_and_bss".to_owned(), header.data_size),
        (
            // Its private area, the page of the world switch and the page that Linux may read.
            "each_cpu".to_owned(),
            header.cpu_area_size + 2 * gaol_abi::PAGE_SIZE,
        ),
    ]))
}

/// All memory in use: the image, what each CPU has, the pages that Linux may read, the tables and frames.
fn memory_used(machine: &mut Machine, sizes: &mut BTreeMap<String, u64>) -> Result<u64> {
    let mut read = |name: &str| -> Result<u64> {
        let text = machine.check(&format!("cat /sys/devices/gaol/{name}"))?;
        text.trim()
            .parse()
            .with_context(|| format!("sysfs says {text:?} in {name}"))
    };
    let (total, used) = (read("mem_pool_size")?, read("mem_pool_used")?);
    ensure!(used <= total, "{used} of {total} frames are used");
    let region = machine.check("cat /sys/devices/gaol/region")?;
    let region_size = region
        .split_whitespace()
        .nth(1)
        .and_then(|size| u64::from_str_radix(size.trim_start_matches("0x"), 16).ok())
        .with_context(|| format!("sysfs says {region:?} in region"))?;
    // What is not in the pool is in use; of the pool, what it says.
    let memory = region_size - (total - used) * gaol_abi::PAGE_SIZE;
    sizes.insert("frames_used".to_owned(), used * gaol_abi::PAGE_SIZE);
    sizes.insert("memory".to_owned(), memory);
    Ok(memory)
}

fn present(platform: Platform, report: &Report, baseline: &Figures) {
    let mut table = Table::new(&[
        "in the root cell",
        "native",
        "min",
        "median",
        "max",
        "average",
        "cost",
        "limit",
        "baseline",
        "Jailhouse",
    ]);
    for (name, comparison) in &report.operations {
        let reading = &comparison.hypervisor;
        let mut row = vec![
            name.clone(),
            format!("{:.1}", comparison.native.bulk),
            reading.min.to_string(),
            reading.median.to_string(),
            reading.max.to_string(),
            format!("{:.1}", reading.bulk),
            format!("{:.1}", comparison.cost),
        ];
        row.extend(references(platform, name, baseline));
        table.row(row);
    }
    println!(
        "\nCycles (instructions) on {}, {} CPUs, Linux {}:\n",
        report.machine, report.cpus, report.kernel
    );
    println!("{table}");

    let mut table = Table::new(&["in a cell", "cost", "limit", "baseline", "Jailhouse"]);
    for (name, cost) in &report.cell_operations {
        let mut row = vec![name.clone(), format!("{cost:.1}")];
        row.extend(references(platform, name, baseline));
        table.row(row);
    }
    println!("{table}");

    let mut table = Table::new(&[
        "hypervisor's part",
        "min",
        "median",
        "max",
        "limit",
        "baseline",
        "Jailhouse",
    ]);
    for (name, [min, median, max]) in &report.life_cycle {
        let mut row = vec![
            name.clone(),
            thousands(*min),
            thousands(*median),
            thousands(*max),
        ];
        row.extend(references(platform, name, baseline));
        table.row(row);
    }
    println!("{table}");

    let mut table = Table::new(&["bytes", "value"]);
    for (name, value) in &report.sizes {
        table.row([name.replace('_', " "), thousands(*value)]);
    }
    println!("{table}");
}

/// Limit, baseline and Jailhouse's value of a figure, as text.
fn references(platform: Platform, name: &str, baseline: &Figures) -> [String; 3] {
    let show = |value: Option<f64>| {
        value.map_or_else(|| "-".to_owned(), |value| thousands(value.round() as u64))
    };
    let limit = figures::find_limit(platform, name);
    [
        show(limit.map(|limit| limit.limit)),
        show(baseline.get(name).copied()),
        show(limit.map(|limit| limit.jailhouse)),
    ]
}
