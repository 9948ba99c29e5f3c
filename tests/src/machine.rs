//! A machine: a stock kernel with a minimal user space on an emulator, driven through its console.
//!
//! Each machine has a directory below `target/machines` with its logs, and a lock on it as long as it lives. The
//! emulator is ended through its own handle when the `Machine` is dropped.

use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use gaol_abi::image::Vendor;
use gaol_wire::Link;
use rustix::process::{Pid, Signal};

use crate::artefacts;
use crate::bochs;
use crate::console::{Console, Output};
use crate::disk::BootImage;
use crate::initrd::Initrd;
use crate::kernel::Kernel;
use crate::qemu;

/// How long a command may take unless told otherwise. An emulator shares its host, so there is much room.
pub const COMMAND_TIMEOUT: Duration = Duration::from_secs(300);
/// How long a boot may take: half a minute on a quiet host.
pub const BOOT_TIMEOUT: Duration = Duration::from_secs(600);

/// How long an emulator may take to connect its console.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(60);

/// What the stock kernel needs to be told on an emulator: a fast console, no MWAIT (wake-ups get lost), and no
/// work that only costs time there (half of the boot is self-tests of ciphers). An IOMMU that translates DMA for Linux is
/// none that Gaol can have.
const COMMAND_LINE: &str = "console=ttyS0,115200 quiet nokaslr idle=nomwait mitigations=off random.trust_cpu=on \
                            tsc=reliable no_timer_check cryptomgr.notests intel_iommu=off";

/// The second serial port, where the hypervisor's own console writes.
pub(crate) const SECOND_SERIAL: &str = "hypervisor.log";

/// Where the emulators say what they think.
const EMULATOR_LOGS: [&str; 3] = ["bochs.out", "qemu.out", qemu::LOG];

/// What a machine runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Platform {
    /// Bochs, which emulates VMX and counts time in instructions.
    Bochs,
    /// QEMU with the host's own VMX.
    Kvm,
    /// QEMU without, which emulates SVM and VT-d with interrupt remapping.
    Qemu,
}

impl Platform {
    /// As people name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bochs => "bochs",
            Self::Kvm => "kvm",
            Self::Qemu => "qemu",
        }
    }

    /// What the hypervisor takes.
    pub fn vendor(self) -> Vendor {
        match self {
            Self::Bochs | Self::Kvm => Vendor::Vmx,
            Self::Qemu => Vendor::Svm,
        }
    }

    /// The file with the hypervisor's image.
    pub fn image(self) -> &'static str {
        match self.vendor() {
            Vendor::Svm => "gaol-svm.bin",
            _ => "gaol-vmx.bin",
        }
    }

    /// The name under which exits for memory that a guest does not have are counted.
    pub fn memory_exit(self) -> &'static str {
        match self.vendor() {
            Vendor::Svm => "nested_page_fault",
            _ => "ept_violation",
        }
    }

    /// Exits that each tick of a cell's timer takes: none with an x2APIC. QEMU's CPUs have none, nor a deadline timer:
    /// there the end of the interrupt exits, and reading how far the timer has counted.
    pub fn exits_a_tick(self) -> u64 {
        match self {
            Self::Bochs | Self::Kvm => 0,
            Self::Qemu => 2,
        }
    }

    /// Whether its CPUs have an x2APIC.
    pub fn has_x2apic(self) -> bool {
        self != Self::Qemu
    }

    /// Whether its time is the number of instructions; else it is the host's, and nothing may be asserted about it.
    pub fn counts_instructions(self) -> bool {
        self == Self::Bochs
    }

    /// The file with its configuration.
    pub fn system(self) -> &'static str {
        match self {
            Self::Bochs | Self::Kvm => "bochs.toml",
            Self::Qemu => "qemu.toml",
        }
    }
}

/// A network card that has a cable to this host: [`Machine::wire`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wired {
    /// The `e1000`, see [`Spec::network_card`].
    E1000,
    /// The `e1000e`, on QEMU.
    E1000e,
}

/// A machine to be started.
#[derive(Clone, Debug)]
pub struct Spec {
    /// The name of its directory.
    pub name: String,
    /// What it runs on.
    pub platform: Platform,
    /// Number of CPUs.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// The emulator's name of the CPU model; of no meaning with KVM.
    pub model: String,
    /// How many emulated instructions make a second of the machine's time.
    pub instructions_per_second: u64,
    /// Added to the kernel's command line.
    pub command_line: String,
    /// Files of the host to be put in the machine: path there, path here.
    pub files: Vec<(String, PathBuf)>,
    /// Files made up by the caller: path there, content.
    pub contents: Vec<(String, Vec<u8>)>,
    /// Modules of the stock kernel to be loaded at boot.
    pub modules: Vec<String>,
    /// Whether it has a network card (`e1000`) besides, in a PCI slot of its own.
    pub network_card: bool,
    /// Which card has a cable; nothing is connected to others.
    pub wired: Option<Wired>,
    /// Lines added to the description of the emulated hardware; Bochs only.
    pub hardware: Vec<String>,
    /// What is particular to QEMU.
    pub qemu: qemu::Hardware,
    /// Whether the emulator logs what it thinks of the hardware's use; slow.
    pub report: bool,
    /// How long it may take to boot.
    pub boot_timeout: Duration,
}

impl Spec {
    /// The usual machine: 4 CPUs of a model with all of VMX or SVM that the emulator has, 512 MiB.
    pub fn new(name: &str, platform: Platform) -> Self {
        let model = match platform {
            Platform::Bochs => bochs::MODEL,
            Platform::Qemu => qemu::MODEL,
            Platform::Kvm => "host",
        };
        Self {
            name: name.to_owned(),
            platform,
            cpus: 4,
            memory_mib: 512,
            model: model.to_owned(),
            instructions_per_second: 50_000_000,
            command_line: String::new(),
            files: Vec::new(),
            contents: Vec::new(),
            modules: Vec::new(),
            network_card: false,
            wired: None,
            hardware: Vec::new(),
            qemu: qemu::Hardware {
                iommu: match platform {
                    Platform::Qemu => qemu::Iommu::Interrupts,
                    Platform::Bochs | Platform::Kvm => qemu::Iommu::None,
                },
                ..qemu::Hardware::default()
            },
            report: std::env::var_os("GAOL_BOCHS_REPORT").is_some(),
            boot_timeout: BOOT_TIMEOUT,
        }
    }

    /// Adds a file of the host.
    #[must_use]
    pub fn file(mut self, there: &str, here: &Path) -> Self {
        self.files.push((there.to_owned(), here.to_path_buf()));
        self
    }

    /// Adds a file with this content.
    #[must_use]
    pub fn content(mut self, there: &str, content: impl Into<Vec<u8>>) -> Self {
        self.contents.push((there.to_owned(), content.into()));
        self
    }

    /// Adds a line to the description of the emulated hardware.
    #[must_use]
    pub fn hardware(mut self, line: &str) -> Self {
        self.hardware.push(line.to_owned());
        self
    }

    /// Adds a module of the stock kernel.
    #[must_use]
    pub fn module(mut self, name: &str) -> Self {
        self.modules.push(name.to_owned());
        self
    }

    /// The command that runs the machine, with its first serial port connected to `port` of this host, and its network card
    /// to the far end of `wire`.
    fn emulator(&self, directory: &Path, port: u16, wire: Option<&Link>) -> Result<Command> {
        let kernel = Kernel::find()?;
        let initrd = self.initrd(&kernel)?;
        let command_line = format!("{COMMAND_LINE} {}", self.command_line);
        let command_line = command_line.trim();
        match self.platform {
            Platform::Kvm | Platform::Qemu => {
                let linux = qemu::Linux {
                    kernel: &kernel.image,
                    initrd: &initrd,
                    command_line,
                };
                qemu::command(self, directory, &linux, port, wire)
            }
            Platform::Bochs => {
                let image = BootImage {
                    kernel: &kernel.unpack()?,
                    initrd: &initrd,
                    command_line,
                    memory_mib: self.memory_mib,
                };
                let geometry = image.write(&directory.join(bochs::DISK), directory)?;
                bochs::command(self, directory, geometry, port, wire)
            }
        }
    }

    fn initrd(&self, kernel: &Kernel) -> Result<Vec<u8>> {
        let mut initrd = Initrd::new()?;
        let mut list = String::new();
        for module in &self.modules {
            for (name, content) in kernel.module(module)? {
                if !list.lines().any(|line| line == name) {
                    list.push_str(&name);
                    list.push('\n');
                }
                initrd.file(&format!("lib/modules/{name}"), content);
            }
        }
        initrd.file("etc/modules.list", list.into_bytes());
        for (there, here) in &self.files {
            initrd.host_file(there, here)?;
        }
        for (there, content) in &self.contents {
            initrd.file(there, content.clone());
        }
        Ok(initrd.archive())
    }
}

/// A running machine.
pub struct Machine {
    platform: Platform,
    emulator: Emulator,
    console: Console,
    directory: PathBuf,
    release: String,
    boot_time: Duration,
    wire: Option<Link>,
    /// Held as long as the machine lives, so that no other run takes its directory.
    _lock: File,
}

impl Machine {
    /// Boots the newest stock kernel with matching headers to its shell.
    ///
    /// # Errors
    /// When something that it takes is missing, when another run uses the same name, or when it does not come up.
    pub fn boot(spec: &Spec) -> Result<Self> {
        let started = Instant::now();
        let directory = artefacts::machines().join(&spec.name);
        fs::create_dir_all(&directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
        let lock = lock(&directory)?;
        // What an earlier machine of this name has said.
        for name in EMULATOR_LOGS.iter().chain(&[SECOND_SERIAL]) {
            let _ = fs::remove_file(directory.join(name));
        }

        let wire = spec.wired.map(|_| Link::open()).transpose()?;
        let command = |port| spec.emulator(&directory, port, wire.as_ref());
        let (emulator, stream) = start(command, &directory)?;
        let console = Console::new(stream, &directory.join("console.log"));
        let mut machine = Self {
            platform: spec.platform,
            emulator,
            console: console?,
            directory,
            release: String::new(),
            boot_time: Duration::ZERO,
            wire,
            _lock: lock,
        };
        machine.release = machine.console.wait_ready(spec.boot_timeout)?;
        machine.boot_time = started.elapsed();
        Ok(machine)
    }

    /// Runs a shell command, with the usual time allowed; a status other than 0 is for the caller to judge.
    ///
    /// # Errors
    /// When the machine dies or the command does not end.
    pub fn run(&mut self, command: &str) -> Result<Output> {
        self.console.run(command, COMMAND_TIMEOUT)
    }

    /// Runs a shell command that may take `timeout`.
    ///
    /// # Errors
    /// When the machine dies or the command does not end.
    pub fn run_for(&mut self, command: &str, timeout: Duration) -> Result<Output> {
        self.console.run(command, timeout)
    }

    /// Runs a shell command that must succeed; returns its output.
    ///
    /// # Errors
    /// When it fails, does not end, or the machine dies.
    pub fn check(&mut self, command: &str) -> Result<String> {
        self.check_for(command, COMMAND_TIMEOUT)
    }

    /// Runs a shell command that must succeed within `timeout`; returns its output.
    ///
    /// # Errors
    /// When it fails, does not end, or the machine dies.
    pub fn check_for(&mut self, command: &str, timeout: Duration) -> Result<String> {
        let output = self.run_for(command, timeout)?;
        ensure!(
            output.status == 0,
            "`{command}` failed with status {}: {}",
            output.status,
            output.stdout.trim()
        );
        Ok(output.stdout)
    }

    /// Writes a small file in the machine.
    ///
    /// # Errors
    /// When a command fails or the machine dies.
    pub fn write_file(&mut self, path: &str, content: &[u8]) -> Result<()> {
        self.check(&format!(": >{path}"))?;
        for chunk in content.chunks(800) {
            let octal: String = chunk.iter().map(|byte| format!("\\{byte:03o}")).collect();
            self.check(&format!("printf '{octal}' >>{path}"))?;
        }
        Ok(())
    }

    /// The release of the kernel that it runs.
    pub fn release(&self) -> &str {
        &self.release
    }

    /// How long it took from nothing to its shell.
    pub fn boot_time(&self) -> Duration {
        self.boot_time
    }

    /// The other end of the cable of its network card.
    ///
    /// # Errors
    /// When none has one.
    pub fn wire(&self) -> Result<&Link> {
        self.wire
            .as_ref()
            .context("no network card of the machine has a cable")
    }

    /// The directory that keeps its logs.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// What its second serial port has said: the hypervisor's own console.
    pub fn hypervisor_log(&self) -> String {
        fs::read(self.directory.join(SECOND_SERIAL))
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// What the emulator itself has said.
    pub fn emulator_log(&self) -> String {
        EMULATOR_LOGS
            .iter()
            .filter_map(|name| fs::read(self.directory.join(name)).ok())
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .collect()
    }

    /// Whether a CPU had a triple fault that the emulator tells of; some end then without another word.
    pub fn had_triple_fault(&self) -> bool {
        self.emulator_log().contains(qemu::TRIPLE_FAULT)
    }

    /// Ends a machine that failed a test; Bochs first writes to its log where each CPU was. Returns whether it has.
    pub fn end_with_state(&mut self) -> bool {
        const PATIENCE: Duration = Duration::from_secs(20);
        if self.platform != Platform::Bochs || !matches!(self.emulator.0.try_wait(), Ok(None)) {
            return false;
        }
        let process = Pid::from_child(&self.emulator.0);
        if rustix::process::kill_process(process, Signal::INT).is_err() {
            return false;
        }
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Ok(Some(_)) = self.emulator.0.try_wait() {
                return true;
            }
            thread::sleep(Duration::from_millis(50));
        }
        false
    }

    /// Its console, for waits that [`Machine::run`] does not cover.
    pub fn console(&mut self) -> &mut Console {
        &mut self.console
    }

    /// Whether it can still answer.
    pub fn is_alive(&mut self) -> bool {
        !self.console.is_lost() && matches!(self.emulator.0.try_wait(), Ok(None))
    }

    /// Waits until it has switched itself off.
    ///
    /// # Errors
    /// When it is still on after `timeout`.
    pub fn wait_off(&mut self, timeout: Duration) -> Result<ExitStatus> {
        self.console.wait_end(timeout)?;
        Ok(self.emulator.0.wait()?)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Large, and made anew each time.
        let _ = fs::remove_file(self.directory.join(bochs::DISK));
        let _ = fs::remove_file(self.directory.join(format!("{}.lock", bochs::DISK)));
    }
}

fn lock(directory: &Path) -> Result<File> {
    let path = directory.join("in-use");
    let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => bail!(
            "another run uses the machine {}: wait for it to end",
            artefacts::display(directory)
        ),
        Err(TryLockError::Error(error)) => Err(error).context("cannot lock the machine"),
    }
}

/// An emulator that is ended when it is dropped.
struct Emulator(Child);

impl Drop for Emulator {
    fn drop(&mut self) {
        // Either fails only when the emulator has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts the emulator and takes the connection of its console.
fn start(
    command: impl FnOnce(u16) -> Result<Command>,
    directory: &Path,
) -> Result<(Emulator, TcpStream)> {
    // The emulator connects to this side, so that nobody else can get hold of the port in between.
    let listener = TcpListener::bind("127.0.0.1:0").context("cannot open a local port")?;
    let port = listener.local_addr()?.port();
    listener.set_nonblocking(true)?;
    let child = command(port)?
        .spawn()
        .context("cannot run the emulator: run `cargo xtask setup`")?;
    let mut emulator = Emulator(child);
    let deadline = Instant::now() + CONNECT_TIMEOUT;
    while Instant::now() < deadline && emulator.0.try_wait()?.is_none() {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                return Ok((emulator, stream));
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                thread::sleep(Duration::from_millis(20));
            }
            Err(error) => return Err(error.into()),
        }
    }
    bail!(
        "the emulator does not start; its logs in {} say why",
        artefacts::display(directory)
    )
}
