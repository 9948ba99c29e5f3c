//! `cargo xtask boot`: a machine for developers, with files of their choice, that runs commands and ends.

use std::io::BufRead;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use gaol_tests::artefacts;
use gaol_tests::machine::{Machine, Platform, Spec};
use gaol_tests::qemu::Iommu;
use gaol_tests::runner;

use crate::place::Where;

/// What the machine is like, and what it is to do.
#[derive(clap::Args)]
pub struct Arguments {
    /// A file to put in the machine, as HERE:THERE
    #[arg(long = "file", value_name = "HERE:THERE")]
    files: Vec<String>,
    /// Put everything that `cargo xtask build` made into /root
    #[arg(long)]
    gaol: bool,
    /// A module of the stock kernel to load at boot
    #[arg(long = "module", value_name = "NAME")]
    modules: Vec<String>,
    /// A shell command to run; without any, commands are read from standard input, one a line
    #[arg(long = "run", value_name = "COMMAND")]
    commands: Vec<String>,
    /// Go on when a command fails
    #[arg(long)]
    keep_going: bool,
    /// What the machine runs on: Bochs emulates VMX, QEMU emulates SVM and VT-d, KVM passes the host's own VMX on
    #[arg(long, value_enum, default_value_t = Where::Bochs)]
    machine: Where,
    /// Number of CPUs
    #[arg(long, default_value_t = 4)]
    cpus: u32,
    /// Memory in MiB
    #[arg(long, default_value_t = 512)]
    memory: u32,
    /// The emulator's CPU model
    #[arg(long)]
    model: Option<String>,
    /// Added to the kernel's command line
    #[arg(long, default_value = "", allow_hyphen_values = true)]
    append: String,
    /// Name of the machine's directory below target/machines
    #[arg(long)]
    name: Option<String>,
    /// Let the emulator log what it thinks of the hardware's use (slow)
    #[arg(long)]
    bochs_report: bool,
    #[command(flatten)]
    qemu: Qemu,
    /// Seconds that a command may take
    #[arg(long, default_value_t = 300)]
    timeout: u64,
}

/// What is particular to QEMU.
#[derive(clap::Args)]
#[command(next_help_heading = "On QEMU")]
struct Qemu {
    /// The IOMMU: `none`, VT-d that remaps DMA, or interrupts as well
    #[arg(long, value_enum, default_value_t = Remapping::Interrupts)]
    iommu: Remapping,
    /// Leave the device `edu` out, which does DMA on command
    #[arg(long)]
    no_edu: bool,
    /// Leave the network card `e1000e` out
    #[arg(long, conflicts_with = "network")]
    no_network: bool,
    /// What the network card is connected to, as QEMU's `-netdev` says it, without an id
    #[arg(long, value_name = "WIRE", default_value = "")]
    network: String,
    /// A thread of the host for each CPU
    #[arg(long)]
    threads: bool,
    /// Count instructions instead of time; takes `--append maxcpus=1` where there are several CPUs
    #[arg(long)]
    icount: bool,
    /// Start again after a reset
    #[arg(long)]
    reboots: bool,
    /// A further argument of QEMU
    #[arg(long = "qemu", value_name = "ARGUMENT", allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// The IOMMU.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Remapping {
    None,
    Dma,
    Interrupts,
}

/// Boots the machine and runs the commands; fails with the first that fails.
///
/// # Errors
/// When the machine does not come up or dies.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let spec = spec(arguments)?;
    eprintln!(
        "booting; logs in {}",
        artefacts::display(&artefacts::machines().join(&spec.name))
    );
    let mut machine = Machine::boot(&spec)?;
    eprintln!(
        "Linux {} is up after {:.1} s",
        machine.release(),
        machine.boot_time().as_secs_f64()
    );
    let timeout = Duration::from_secs(arguments.timeout);
    let mut code = ExitCode::SUCCESS;
    let typed = std::io::stdin().lock().lines();
    let given: Box<dyn Iterator<Item = std::io::Result<String>>> = if arguments.commands.is_empty()
    {
        Box::new(typed)
    } else {
        Box::new(arguments.commands.iter().cloned().map(Ok))
    };
    for command in given {
        let command = command?;
        eprintln!("# {command}");
        let output = machine.run_for(&command, timeout);
        let log = machine.hypervisor_log();
        if output.is_err() && machine.had_triple_fault() {
            eprintln!("a CPU had a triple fault; qemu.log has its state");
        }
        let output = output.with_context(|| {
            let tail: Vec<&str> = log.lines().rev().take(20).collect();
            let tail: Vec<&str> = tail.into_iter().rev().collect();
            format!("the hypervisor's last words: {}", tail.join("\n"))
        })?;
        for line in &output.kernel {
            println!("{line}");
        }
        print!("{}", output.stdout);
        if output.status != 0 {
            eprintln!("status {}", output.status);
            code = ExitCode::FAILURE;
            if !arguments.keep_going {
                break;
            }
        }
    }
    Ok(code)
}

fn spec(arguments: &Arguments) -> Result<Spec> {
    let name = match &arguments.name {
        Some(name) => name.clone(),
        None => format!("boot-{}", std::process::id()),
    };
    let mut spec = Spec::new(&name, arguments.machine.platform());
    let qemu = &arguments.qemu;
    if spec.platform == Platform::Qemu {
        spec.qemu.iommu = match qemu.iommu {
            Remapping::None => Iommu::None,
            Remapping::Dma => Iommu::Dma,
            Remapping::Interrupts => Iommu::Interrupts,
        };
    }
    spec.qemu.edu = !qemu.no_edu;
    spec.qemu.network = (!qemu.no_network).then(|| qemu.network.clone());
    spec.qemu.threads = qemu.threads;
    spec.qemu.counts_instructions = qemu.icount;
    spec.qemu.reboots = qemu.reboots;
    spec.qemu.arguments.clone_from(&qemu.arguments);
    spec.cpus = arguments.cpus;
    spec.memory_mib = arguments.memory;
    spec.report |= arguments.bochs_report;
    spec.command_line.clone_from(&arguments.append);
    spec.modules.clone_from(&arguments.modules);
    if let Some(model) = &arguments.model {
        spec.model.clone_from(model);
    }
    for pair in &arguments.files {
        let (here, there) = pair
            .split_once(':')
            .with_context(|| format!("`{pair}` is not of the form HERE:THERE"))?;
        spec.files.push((there.to_owned(), PathBuf::from(here)));
    }
    if arguments.gaol {
        spec = runner::with_artefacts(spec)?;
    }
    Ok(spec)
}
