//! The system tests: what each group of them shows, and what they share.
//!
//! A check leaves the machine as it found it when it passes: the modules loaded, the hypervisor not enabled, no cell.

use anyhow::{Result, ensure};

use crate::gaol::Gaol;
use crate::machine::{Machine, Platform, Spec};
use crate::runner::{Group, SYSTEM};

mod assignment;
mod cells;
mod configuration;
mod console;
mod dma;
mod faults;
mod force;
mod handover;
mod hardware;
mod hostile;
mod hypervisor_fault;
mod images;
mod instructions;
mod interrupts;
mod keys;
mod latency;
mod life_cycle;
mod machine;
mod memory;
mod mmio;
mod net;
mod nmi;
mod pci;
mod power;
mod processors;
mod protections;
mod refusals;
mod reservation;
mod root;
mod root_failure;
mod state;
mod variants;
mod violations;
mod vtd;
mod watchdog;

/// All groups, the longest first, so that two machines at a time end at about the same time.
pub const GROUPS: &[Group] = &[
    hostile::RANDOM,
    hostile::THREE_CPUS,
    hostile::LIST,
    hostile::ENDINGS,
    hostile::REGION,
    life_cycle::GROUP,
    vtd::GROUP,
    faults::GROUP,
    dma::GROUP,
    violations::GROUP,
    nmi::GROUP,
    net::GROUP,
    hypervisor_fault::GROUP,
    protections::GROUP,
    interrupts::GROUP,
    interrupts::NOT_REMAPPED,
    memory::GROUP,
    mmio::GROUP,
    refusals::GROUP,
    processors::GROUP,
    latency::GROUP,
    configuration::GROUP,
    cells::GROUP,
    keys::GROUP,
    pci::GROUP,
    assignment::GROUP,
    assignment::WITHOUT_IOMMU,
    assignment::BEHIND_A_BRIDGE,
    root::GROUP,
    images::GROUP,
    handover::GROUP,
    instructions::GROUP,
    state::GROUP,
    power::REBOOT,
    power::POWER_OFF,
    watchdog::GROUP,
    force::GROUP,
    root_failure::PANIC,
    root_failure::TRIPLE_FAULT,
    root_failure::RESET_PORT,
    root_failure::RESET,
    root_failure::NO_CELL,
    console::GROUP,
    reservation::GROUP,
    variants::THREADS,
    variants::FIVE_LEVELS,
    variants::VIRTUAL_GIF,
    variants::NO_IOMMU,
    variants::NO_REMAPPED_INTERRUPTS,
    hardware::GROUP,
    hardware::WITHOUT_VMX,
    machine::GROUP,
];

/// What a check works with.
pub struct Context {
    /// The machine, with everything that was built in /root.
    pub machine: Machine,
    /// What it runs on.
    pub platform: Platform,
}

/// CPUs of every machine.
const CPUS: u32 = 4;

/// The machine as it is.
fn usual(spec: Spec) -> Result<Spec> {
    Ok(spec)
}

/// Loads the module, and the one that pokes at the machine.
fn load_modules(context: &mut Context) -> Result<()> {
    context
        .machine
        .check("insmod /root/gaol.ko && insmod /root/gaol-test.ko")?;
    Ok(())
}

impl Context {
    /// Enables Gaol.
    fn enable(&mut self) -> Result<()> {
        self.machine.gaol(&format!("enable {SYSTEM}"))?;
        Ok(())
    }

    /// Disables Gaol, and asserts that Linux is well.
    fn disable(&mut self) -> Result<()> {
        self.machine.gaol("disable")?;
        self.machine.linux_is_well(CPUS)
    }

    /// Creates, loads and starts a cell whose files bear its name.
    fn start_cell(&mut self, name: &str, command_line: &str) -> Result<()> {
        self.start_cell_with(name, name, command_line)
    }

    /// Creates, loads and starts a cell from the configuration and the image of these names.
    fn start_cell_with(&mut self, cell: &str, image: &str, command_line: &str) -> Result<()> {
        self.start_cell_of(&format!("{cell}.toml"), cell, image, command_line)
    }

    /// Creates, loads and starts the cell that a file describes.
    fn start_cell_of(
        &mut self,
        file: &str,
        cell: &str,
        image: &str,
        command_line: &str,
    ) -> Result<()> {
        self.machine.gaol(&format!("cell create {file}"))?;
        self.machine.gaol(&format!(
            "cell load {cell} {image}.bin -s \"{command_line}\""
        ))?;
        self.machine.gaol(&format!("cell start {cell}"))?;
        Ok(())
    }

    /// Waits until the console has printed `text` since the last enable; returns all of it.
    fn wait_console(&mut self, text: &str) -> Result<String> {
        let mut console = String::new();
        for _ in 0..60 {
            console = self.machine.check("gaol console")?;
            if console.contains(text) {
                return Ok(console);
            }
            self.machine.check("sleep 0.3")?;
        }
        anyhow::bail!("`{text}` was not printed, but: {console}")
    }

    /// Waits until the console has printed `text` so many times since the last enable.
    fn wait_console_count(&mut self, text: &str, count: usize) -> Result<()> {
        for _ in 0..60 {
            if self.machine.check("gaol console")?.matches(text).count() >= count {
                return Ok(());
            }
            self.machine.check("sleep 0.3")?;
        }
        anyhow::bail!("`{text}` was not printed {count} times")
    }

    /// The state of a cell in words, from sysfs.
    fn cell_state(&mut self, name: &str) -> Result<String> {
        let text = self.machine.check(&format!(
            "for cell in /sys/devices/gaol/cells/*; do [ \"$(cat $cell/name)\" = {name} ] && cat $cell/state; done; :"
        ))?;
        ensure!(
            !text.trim().is_empty(),
            "there is no cell `{name}` in sysfs"
        );
        Ok(text.trim().to_owned())
    }

    /// Waits until a cell is in a state.
    fn wait_state(&mut self, name: &str, wanted: &str) -> Result<()> {
        let mut state = String::new();
        for _ in 0..60 {
            state = self.cell_state(name)?;
            if state.contains(wanted) {
                return Ok(());
            }
            self.machine.check("sleep 0.3")?;
        }
        anyhow::bail!("the cell `{name}` is in the state `{state}`, not `{wanted}`")
    }

    /// Makes one access through the test module: `None` when it faulted.
    fn poke(&mut self, access: &str) -> Result<Option<u64>> {
        let text = self.machine.check(&format!(
            "echo {access} >/proc/gaol-test/poke && cat /proc/gaol-test/poke"
        ))?;
        match text.trim().split_once(' ') {
            Some(("ok", value)) => Ok(Some(u64::from_str_radix(value, 16)?)),
            _ => Ok(None),
        }
    }

    /// A file of sysfs that holds a number.
    fn sysfs_number(&mut self, name: &str) -> Result<u64> {
        Ok(self
            .machine
            .check(&format!("cat /sys/devices/gaol/{name}"))?
            .trim()
            .parse()?)
    }

    /// Where the hypervisor's memory is, and its size.
    fn region(&mut self) -> Result<(u64, u64)> {
        let text = self.machine.check("cat /sys/devices/gaol/region")?;
        let numbers: Vec<u64> = text
            .split_whitespace()
            .filter_map(|number| u64::from_str_radix(number.trim_start_matches("0x"), 16).ok())
            .collect();
        match numbers[..] {
            [physical, size] => Ok((physical, size)),
            _ => anyhow::bail!("sysfs says {text:?} in region"),
        }
    }
}
