//! The command line, as it is declared to clap.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{ArgMatches, Args, FromArgMatches, Parser, Subcommand, ValueEnum};
use gaol_abi::handover::{FAULT_BY_HYPERCALL, LAST_LAUNCH_STEP};

/// What `--help` adds for the command as a whole.
const EXAMPLES: &str = "\
Examples:
  gaol enable machine.toml          put the hypervisor under the running Linux
  gaol cell create latency.toml     take CPUs and memory for a cell
  gaol cell load latency latency.bin -s \"period=1ms ticks=10000\"
  gaol cell start latency
  gaol cell list
  gaol cell destroy latency
  gaol disable                      give the machine back to Linux

Exit status: 0 done, 1 refused or failed, 2 wrong usage.";

/// Static partitioning for a running Linux: cells with CPUs and memory of their own.
#[derive(Debug, Parser)]
#[command(name = "gaol", version = version(), after_help = EXAMPLES)]
pub struct Arguments {
    /// Print one JSON object on standard output, errors too
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Version of the command, and of what it agrees on with module and hypervisor.
fn version() -> &'static str {
    static VERSION: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    VERSION.get_or_init(|| {
        format!(
            "{} (ABI revision {})",
            env!("CARGO_PKG_VERSION"),
            gaol_abi::ABI_REVISION
        )
    })
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Put the hypervisor under the running Linux
    #[command(after_help = "\
Examples:
  gaol enable                       as `gaol config create` describes this machine
  gaol enable machine.toml
  gaol enable machine.bin --image ./gaol-vmx.bin")]
    Enable(EnableArguments),
    /// Give the machine back to Linux
    #[command(after_help = "\
Examples:
  gaol disable
  gaol disable --force              destroy the cells first, without asking them")]
    Disable {
        /// Destroy all cells first, without asking them
        #[arg(long)]
        force: bool,
    },
    /// Show what the hypervisor and the cells print
    #[command(after_help = "\
Examples:
  gaol console                      what was printed so far
  gaol console -f                   and what comes, until interrupted")]
    Console {
        /// Wait for more, until interrupted
        #[arg(short, long, conflicts_with = "json")]
        follow: bool,
    },
    /// Show what happened: what IOMMUs stopped of devices, what CPUs were stopped for, and who stood still
    #[command(after_help = "\
Examples:
  gaol trace                        the last events
  gaol trace -f                     and what comes, until interrupted")]
    Trace {
        /// Wait for more, until interrupted
        #[arg(short, long, conflicts_with = "json")]
        follow: bool,
    },
    /// Create, load, start, stop and watch cells
    #[command(subcommand)]
    Cell(CellCommand),
    /// Check and compile configurations
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Lay out a cell: chooses its CPUs and memory, and writes its file and that of the system
    #[command(after_help = "\
Asks for what is missing when it is started on a terminal.

Examples:
  gaol plan
  gaol plan --name rt --cpus 1 --memory \"64 MiB\" --device 00:03.0 -o plans
  gaol plan --name rt --cpus 2 --memory \"1 MiB\" --image rt.bin --root machine.tar")]
    Plan(PlanArguments),
    /// Look at the machine
    #[command(subcommand)]
    Hardware(HardwareCommand),
}

/// `gaol hardware`.
#[derive(Debug, Subcommand)]
pub enum HardwareCommand {
    /// Show what the machine has and lacks for Gaol, why it matters, and what to do
    #[command(after_help = "\
Run it as root, with the module msr loaded. Each row is `ok`; `warning`, when Gaol runs but something is worse than it could
be; `missing`, when Gaol cannot run; or `unknown`. Exit status: 1 when something that Gaol needs is missing, or cannot be
found out.

Examples:
  gaol hardware check
  gaol hardware check --smi-seconds 60          count the firmware's interruptions for longer
  gaol hardware check --root machine.tar.gz     of another machine: see `gaol config collect`")]
    Check {
        /// Look at a collection or a directory instead of this machine
        #[arg(long, value_name = "DIR|TAR")]
        root: Option<PathBuf>,
        /// How long to count system management interrupts; 0: not at all
        #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(0..=86_400))]
        smi_seconds: u64,
    },
}

/// `gaol enable`.
#[derive(Debug, Args)]
pub struct EnableArguments {
    /// System configuration, TOML or compiled; without one, it is made for this machine
    pub system: Option<PathBuf>,
    /// Image of the hypervisor [default: by the CPU's vendor, from $GAOL_IMAGE_DIR, /lib/firmware/gaol or next to gaol]
    #[arg(long, value_name = "FILE")]
    pub image: Option<PathBuf>,
    /// Fault injection: let this step fail on this CPU
    #[arg(long, value_name = "STEP:CPU", hide = true)]
    pub fail_at: Option<Fault>,
    /// Leave the checks to module and hypervisor, to see them refuse the file
    #[arg(long, hide = true, requires = "system")]
    pub unchecked: bool,
}

/// `gaol config create`.
#[derive(Debug, Args)]
pub struct CreateArguments {
    /// Where to write the system file [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Directory or collection to read in place of this machine
    #[arg(long, value_name = "DIR|TAR")]
    pub root: Option<PathBuf>,
    /// What the root cell gets: what is left over, or what the file lists
    #[arg(long, value_enum, default_value_t = PolicyArgument::Leftover)]
    pub policy: PolicyArgument,
    /// First port of the hypervisor's serial console, or "none" [default: one that Linux has no console on]
    #[arg(long, value_name = "PORT|none")]
    pub console: Option<ConsoleArgument>,
    /// The hypervisor's memory [default: what suits the machine]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub memory: Option<u64>,
    /// Overwrite the file if it exists
    #[arg(long, requires = "output")]
    pub force: bool,
}

/// `--policy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum PolicyArgument {
    /// The root cell owns what nobody else does.
    Leftover,
    /// The root cell owns what the file lists.
    Strict,
}

/// `--console`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConsoleArgument {
    /// No serial port.
    None,
    /// The serial port at this I/O port.
    Port(u16),
}

impl FromStr for ConsoleArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self::None);
        }
        let port = parse_address(text).ok();
        port.and_then(|port| u16::try_from(port).ok())
            .filter(|port| *port != 0)
            .map(Self::Port)
            .ok_or_else(|| "write an I/O port such as 0x2f8, or none".to_owned())
    }
}

/// `gaol plan`.
#[derive(Debug, Args)]
pub struct PlanArguments {
    /// Name of the cell, and of its file [default: cell]
    #[arg(long)]
    pub name: Option<String>,
    /// How many CPUs it gets [default: 1]
    #[arg(long, value_name = "NUMBER")]
    pub cpus: Option<u32>,
    /// Its memory [default: 64 MiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub memory: Option<u64>,
    /// PCI function that it gets, by address or by vendor and device; may be repeated
    #[arg(long = "device", value_name = "ADDRESS|ID")]
    pub devices: Vec<String>,
    /// Let its functions do DMA although no IOMMU keeps them in its memory
    #[arg(long)]
    pub unprotected_dma: bool,
    /// File that it is to run
    #[arg(long, value_name = "FILE")]
    pub image: Option<PathBuf>,
    /// Memory that it shares with Linux [default: none]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub shared_with_root: Option<u64>,
    /// Directory or collection to read in place of this machine
    #[arg(long, value_name = "DIR|TAR")]
    pub root: Option<PathBuf>,
    /// Directory for the files [default: this one]
    #[arg(
        short,
        long,
        value_name = "DIR",
        default_value = ".",
        hide_default_value = true
    )]
    pub output: PathBuf,
    /// Overwrite files that exist
    #[arg(long)]
    pub force: bool,
    /// Ask for what is missing also when this is no terminal
    #[arg(long, conflicts_with = "json")]
    pub ask: bool,
}

/// A size such as "64 MiB".
fn parse_size(text: &str) -> Result<u64, String> {
    gaol_config::quantity::Size::parse(text)
        .map(|size| size.0)
        .ok_or_else(|| "write a size such as \"64 MiB\"".to_owned())
}

/// A fault to inject: a launch step on a CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// [`gaol_abi::handover::LaunchStep`].
    pub step: u32,
    /// Linux' number of the CPU.
    pub cpu: u32,
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let last = LAST_LAUNCH_STEP;
        let (step, cpu) = text
            .split_once(':')
            .ok_or("write STEP:CPU, for instance 3:1")?;
        let step = step
            .parse()
            .ok()
            .filter(|step| (1..=last).contains(step) || *step == FAULT_BY_HYPERCALL)
            .ok_or_else(|| format!("steps are numbered from 1 to {last}"))?;
        let cpu = cpu.parse().map_err(|_| "the CPU is a number".to_owned())?;
        Ok(Self { step, cpu })
    }
}

/// A cell by number or name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CellName {
    /// By number.
    Id(u32),
    /// By name.
    Name(String),
}

impl FromStr for CellName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            let id: u32 = text.parse().map_err(|_| "no cell has such a number")?;
            return match i32::try_from(id) {
                Ok(_) => Ok(Self::Id(id)),
                Err(_) => Err("no cell has such a number".to_owned()),
            };
        }
        match gaol_config::encode::name(text) {
            Some(_) if !text.is_empty() => Ok(Self::Name(text.to_owned())),
            _ => Err("no cell can have such a name".to_owned()),
        }
    }
}

impl std::fmt::Display for CellName {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Id(id) => write!(formatter, "{id}"),
            Self::Name(name) => write!(formatter, "{name:?}"),
        }
    }
}

/// `gaol cell`.
#[derive(Debug, Subcommand)]
pub enum CellCommand {
    /// Take CPUs and memory from Linux for a new cell
    #[command(after_help = "\
Examples:
  gaol cell create latency.toml
  gaol cell create latency.bin
  gaol cell create latency.toml --force   although another cell is locked")]
    Create {
        /// Cell configuration, TOML or compiled
        file: PathBuf,
        /// Do not mind other cells that are locked
        #[arg(long)]
        force: bool,
        /// Leave the checks to module and hypervisor, to see them refuse the file
        #[arg(long, hide = true)]
        unchecked: bool,
    },
    /// Stop a cell if it runs, and load files or text into its memory
    #[command(
        override_usage = "gaol cell load [OPTIONS] CELL { IMAGE | -s STRING } [-a ADDRESS] ...",
        after_help = "\
Files go to address 0 and strings, with a zero behind them, to 0x1000, unless -a follows.

Examples:
  gaol cell load latency latency.bin
  gaol cell load latency latency.bin -s \"period=1ms\"
  gaol cell load 1 kernel.bin -a 0x100000 -s \"quiet\" -a 0x2000"
    )]
    Load {
        /// Number or name of the cell
        #[arg(value_name = "CELL")]
        cell: CellName,
        /// What to load where.
        #[command(flatten)]
        pieces: Pieces,
    },
    /// Start a loaded cell
    #[command(after_help = "Example:\n  gaol cell start latency")]
    Start {
        /// Number or name of the cell
        cell: CellName,
    },
    /// Ask a cell to end, and stop its CPUs
    #[command(after_help = "\
Examples:
  gaol cell shutdown latency
  gaol cell shutdown latency --force    without asking it")]
    Shutdown {
        /// Number or name of the cell
        cell: CellName,
        /// Do not ask the cell
        #[arg(long)]
        force: bool,
    },
    /// Stop a cell, and give its CPUs and memory back to Linux
    #[command(after_help = "\
Examples:
  gaol cell destroy latency
  gaol cell destroy latency --force     without asking it")]
    Destroy {
        /// Number or name of the cell
        cell: CellName,
        /// Do not ask the cell
        #[arg(long)]
        force: bool,
    },
    /// Show all cells, and why CPUs of them were stopped
    #[command(after_help = "Example:\n  gaol cell list")]
    List,
    /// Show how often the CPUs of a cell were in the hypervisor, and why
    #[command(after_help = "\
Examples:
  gaol cell stats latency
  gaol cell stats 0                     Linux itself")]
    Stats {
        /// Number or name of the cell
        cell: CellName,
    },
    /// Show what a latency cell has measured
    #[command(after_help = "Example:\n  gaol cell histogram latency")]
    Histogram {
        /// Number or name of the cell
        cell: CellName,
        /// Memory region that holds the results [default: the first that is shared with Linux]
        #[arg(long, value_name = "NAME")]
        region: Option<String>,
    },
}

/// What to load where, in the order of the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pieces(pub Vec<Piece>);

/// Something to load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// What.
    pub content: Content,
    /// Guest-physical address.
    pub address: u64,
}

/// What can be loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// A file as it is.
    File(PathBuf),
    /// A text; a zero byte is put behind it.
    Text(String),
}

/// Where files go without `-a`.
pub const DEFAULT_IMAGE_ADDRESS: u64 = 0;
/// Where strings go without `-a`: where cells look for their command line.
pub const DEFAULT_STRING_ADDRESS: u64 = 0x1000;

/// A number in decimal or, with 0x, in hexadecimal digits.
fn parse_address(text: &str) -> Result<u64, String> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    }
    .map_err(|_| "write an address such as 0x100000".to_owned())
}

impl Args for Pieces {
    fn augment_args(command: clap::Command) -> clap::Command {
        command
            .arg(
                clap::Arg::new("image")
                    .value_name("IMAGE")
                    .help("File to load; may be repeated")
                    .value_parser(clap::value_parser!(PathBuf))
                    .num_args(0..)
                    .required_unless_present("string"),
            )
            .arg(
                clap::Arg::new("string")
                    .short('s')
                    .long("string")
                    .value_name("STRING")
                    .help("Text to load; may be repeated")
                    .allow_hyphen_values(true)
                    .action(clap::ArgAction::Append),
            )
            .arg(
                clap::Arg::new("address")
                    .short('a')
                    .long("address")
                    .value_name("ADDRESS")
                    .help("Guest-physical address of the file or string before it")
                    .value_parser(parse_address)
                    .action(clap::ArgAction::Append),
            )
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

/// The values of an argument with their places on the command line.
fn placed<T: Clone + Send + Sync + 'static>(matches: &ArgMatches, name: &str) -> Vec<(usize, T)> {
    let values = matches.get_many::<T>(name).into_iter().flatten().cloned();
    let places = matches.indices_of(name).into_iter().flatten();
    places.zip(values).collect()
}

impl FromArgMatches for Pieces {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut pieces: Vec<(usize, Content)> = Vec::new();
        for (place, file) in placed::<PathBuf>(matches, "image") {
            pieces.push((place, Content::File(file)));
        }
        for (place, text) in placed::<String>(matches, "string") {
            pieces.push((place, Content::Text(text)));
        }
        pieces.sort_by_key(|(place, _)| *place);
        let mut addresses: Vec<Option<u64>> = vec![None; pieces.len()];
        for (place, address) in placed::<u64>(matches, "address") {
            let target = pieces.iter().rposition(|(other, _)| *other < place);
            match target.map(|target| &mut addresses[target]) {
                Some(slot @ None) => *slot = Some(address),
                _ => {
                    let text = format!("-a {address:#x} does not follow a file or a string\n");
                    return Err(clap::Error::raw(
                        clap::error::ErrorKind::ArgumentConflict,
                        text,
                    ));
                }
            }
        }
        let pieces = pieces.into_iter().zip(addresses);
        let pieces = pieces.map(|((_, content), address)| Piece {
            address: address.unwrap_or(match content {
                Content::File(_) => DEFAULT_IMAGE_ADDRESS,
                Content::Text(_) => DEFAULT_STRING_ADDRESS,
            }),
            content,
        });
        Ok(Self(pieces.collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// `gaol config`.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Compile a system or cell file
    #[command(after_help = "\
Examples:
  gaol config build latency.toml -o latency.bin
  gaol config build network.toml --system machine.toml -o network.bin")]
    Build {
        /// System or cell file
        file: PathBuf,
        /// Where to write the binary form
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
        /// System file of the machine that a cell is for: finds its PCI functions, and checks the cell there
        #[arg(long, value_name = "FILE")]
        system: Option<PathBuf>,
    },
    /// Check a system file and cell files together
    #[command(after_help = "\
Examples:
  gaol config check machine.toml
  gaol config check machine.toml hello.toml latency.toml --cpus 4")]
    Check {
        /// System configuration
        system: PathBuf,
        /// Cell configurations, as if they were created in this order
        cells: Vec<PathBuf>,
        /// CPUs of the machine [default: any number]
        #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=gaol_abi::MAX_CPUS as i64))]
        cpus: Option<u32>,
    },
    /// Print the JSON Schema of the TOML files, with which editors complete and check them
    #[command(after_help = "\
Example:
  gaol config schema cell > cell.schema.json

An editor finds it by the first line of a file: #:schema ./cell.schema.json")]
    Schema {
        /// Kind of the files
        #[arg(value_enum)]
        kind: FileKind,
    },
    /// Keep all that is read of this machine in a file, for `--root` on another one
    #[command(after_help = "\
Run it as root, with the module msr loaded: modprobe msr. The file holds firmware tables, what Linux shows of processors,
memory and PCI, CPUID and model-specific registers; no serial numbers, and of the kernel's parameters known ones only.

Examples:
  gaol config collect
  gaol config collect -o board.tar.gz       compressed")]
    Collect {
        /// Where to write the tar file; compressed when its name ends with .gz or .tgz
        #[arg(short, long, value_name = "FILE", default_value = "machine.tar")]
        output: PathBuf,
        /// Overwrite that file if it exists
        #[arg(long)]
        force: bool,
    },
    /// Write the system file of this machine, or of one that was collected
    #[command(after_help = "\
What is missing, assumed or left out is told on standard error, and in comments of the file.

Examples:
  gaol config create -o machine.toml
  gaol config create --policy strict -o strict.toml
  gaol config create --root machine.tar -o other.toml")]
    Create(CreateArguments),
    /// Turn a binary configuration of Jailhouse into a TOML file
    #[command(after_help = "\
Reads system and cell configurations of revisions 13 and 14. What Gaol does otherwise is told on standard error, and in
comments of the file.

Examples:
  gaol config import qemu-x86.cell -o machine.toml
  gaol config import apic-demo.cell")]
    Import {
        /// What Jailhouse's build has made of a configuration
        file: PathBuf,
        /// Where to write the TOML file [default: standard output]
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
        /// Overwrite that file if it exists
        #[arg(long, requires = "output")]
        force: bool,
    },
}

/// Kinds of configuration files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FileKind {
    /// Hypervisor, root cell and machine
    System,
    /// Another cell
    Cell,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn load(arguments: &[&str]) -> Result<(CellName, Vec<Piece>), clap::Error> {
        let all = ["gaol", "cell", "load"].iter().chain(arguments);
        let arguments = Arguments::try_parse_from(all)?;
        let Command::Cell(CellCommand::Load { cell, pieces }) = arguments.command else {
            panic!("{arguments:?}");
        };
        Ok((cell, pieces.0))
    }

    fn file(name: &str, address: u64) -> Piece {
        Piece {
            content: Content::File(name.into()),
            address,
        }
    }

    fn text(text: &str, address: u64) -> Piece {
        Piece {
            content: Content::Text(text.to_owned()),
            address,
        }
    }

    #[test]
    fn the_declaration_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn loads_go_where_they_are_told() {
        let name = CellName::Name("latency".to_owned());
        assert_eq!(
            load(&["latency", "a.bin"]).unwrap(),
            (name.clone(), vec![file("a.bin", 0)])
        );
        assert_eq!(
            load(&["latency", "a.bin", "-s", "ticks=1", "--json"]).unwrap(),
            (
                name.clone(),
                vec![file("a.bin", 0), text("ticks=1", 0x1000)]
            )
        );
        assert_eq!(
            load(&[
                "latency", "-s", "x", "-a", "8192", "a.bin", "-a", "0xff000", "b.bin", "--string",
                "y"
            ])
            .unwrap(),
            (
                name,
                vec![
                    text("x", 8192),
                    file("a.bin", 0xff000),
                    file("b.bin", 0),
                    text("y", 0x1000)
                ]
            )
        );
        let (cell, pieces) = load(&["1", "-s", "-v"]).unwrap();
        assert_eq!((cell, pieces), (CellName::Id(1), vec![text("-v", 0x1000)]));
    }

    #[test]
    fn misplaced_addresses_are_refused() {
        for arguments in [
            &["latency"][..],
            &["latency", "-a", "0", "a.bin"],
            &["latency", "a.bin", "-a", "0", "-a", "1"],
            &["latency", "a.bin", "-a", "here"],
            &["latency", "a.bin", "-a", "-1"],
        ] {
            let error = load(arguments).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{arguments:?}: {error}");
        }
    }

    #[test]
    fn faults_are_a_step_and_a_cpu() {
        assert_eq!("3:1".parse(), Ok(Fault { step: 3, cpu: 1 }));
        for text in ["", "3", "0:1", "99:0", "x:1", "3:x"] {
            assert!(text.parse::<Fault>().is_err(), "{text}");
        }
    }

    #[test]
    fn cells_have_a_number_or_a_name() {
        assert_eq!("12".parse(), Ok(CellName::Id(12)));
        assert_eq!("a12".parse(), Ok(CellName::Name("a12".to_owned())));
        for text in ["", "4294967295", "99999999999", &"x".repeat(32)] {
            assert!(text.parse::<CellName>().is_err(), "{text}");
        }
    }
}
