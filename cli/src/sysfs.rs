//! What the module tells in sysfs.
//!
//! Invariant: nothing here changes anything, and nothing stops a CPU: the module reads shared memory.

use std::fs;
use std::io;
use std::path::PathBuf;

use gaol_abi::PAGE_SIZE;
use gaol_abi::public::{CPU_OFFSET, CpuPublic, SystemPublic, TRACE_OFFSET, TraceRing};
use gaol_config::CpuSet;
use gaol_config::encode::Binary;
use zerocopy::FromBytes;

use crate::arguments::CellName;
use crate::disks::Uses;
use crate::failure::{Failure, Result, plain};

/// The tree.
pub struct Sysfs {
    root: PathBuf,
}

/// A cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CellEntry {
    /// Its number.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// Its state in words.
    pub state: String,
    /// Its CPUs.
    pub cpus: CpuSet,
    /// Those that were stopped.
    pub failed: CpuSet,
    /// Its watchdog, if it has one.
    pub watchdog: Option<WatchdogEntry>,
}

/// The watchdog of a cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchdogEntry {
    /// "record", "restart" or "halt".
    pub policy: String,
    /// Timeout in milliseconds.
    pub timeout: u64,
    /// How often the heartbeat has not changed in time.
    pub expired: u64,
    /// How often the cell was started again.
    pub restarts: u64,
    /// The cell is not started again any more.
    pub given_up: bool,
}

/// Memory of a cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryEntry {
    /// Its name.
    pub name: String,
    /// Host-physical address.
    pub physical: u64,
    /// Guest-physical address.
    pub guest: u64,
    /// Bytes.
    pub size: u64,
    /// `MEMORY_…` flags of the configuration.
    pub flags: u64,
}

/// A PCI function that Linux has given away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FunctionEntry {
    /// Its address, "0000:00:03.0".
    pub function: String,
    /// The driver that it came from, if it had one.
    pub driver: Option<String>,
    /// "held": a cell has it; "gone": it was removed meanwhile; "lost": it did not come back from a cell.
    pub state: String,
    /// The cell's name, as long as a cell has it.
    pub cell: Option<String>,
}

/// What a memory block that is offline is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockUse {
    /// A cell's or the hypervisor's.
    Used,
    /// Taken for a request that is under way.
    Held,
    /// Nobody's: to be brought online.
    Idle,
}

/// A memory block of Linux that is offline for Gaol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockEntry {
    /// Address.
    pub physical: u64,
    /// Bytes.
    pub size: u64,
    /// What it is for.
    pub usage: BlockUse,
}

/// A copy of the pages that the hypervisor publishes.
pub struct PublicPages(Binary);

impl PublicPages {
    /// What concerns the machine.
    #[must_use]
    pub fn system(&self) -> Option<&SystemPublic> {
        let (system, _) = SystemPublic::ref_from_prefix(self.0.bytes()).ok()?;
        Some(system)
    }

    /// The last events.
    #[must_use]
    pub fn trace(&self) -> Option<&TraceRing> {
        let bytes = self.0.bytes().get(usize::try_from(TRACE_OFFSET).ok()?..)?;
        let (ring, _) = TraceRing::ref_from_prefix(bytes).ok()?;
        Some(ring)
    }

    /// What concerns a CPU.
    #[must_use]
    pub fn cpu(&self, cpu: u32) -> Option<&CpuPublic> {
        let offset = CPU_OFFSET + u64::from(cpu) * PAGE_SIZE;
        let bytes = self.0.bytes().get(usize::try_from(offset).ok()?..)?;
        let (cpu, _) = CpuPublic::ref_from_prefix(bytes).ok()?;
        Some(cpu)
    }
}

/// Reads a list of CPUs as Linux writes it: "0-2,5".
#[must_use]
pub fn parse_cpu_list(text: &str) -> Option<CpuSet> {
    let mut cpus = CpuSet::EMPTY;
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        for cpu in first..=last.min(gaol_abi::MAX_CPUS as u32) {
            cpus.insert(cpu);
        }
    }
    Some(cpus)
}

fn parse_hexadecimal(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        // C's "%#x" writes zero without a prefix.
        None => text.parse().ok(),
    }
}

fn parse_watchdog(line: &str) -> Option<WatchdogEntry> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [policy, timeout, expired, restarts, given_up] = fields[..] else {
        return None;
    };
    Some(WatchdogEntry {
        policy: policy.to_owned(),
        timeout: timeout.parse().ok()?,
        expired: expired.parse().ok()?,
        restarts: restarts.parse().ok()?,
        given_up: given_up == "1",
    })
}

fn parse_memory(line: &str) -> Option<MemoryEntry> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [name, physical, guest, size, flags] = fields[..] else {
        return None;
    };
    Some(MemoryEntry {
        name: name.to_owned(),
        physical: parse_hexadecimal(physical)?,
        guest: parse_hexadecimal(guest)?,
        size: parse_hexadecimal(size)?,
        flags: parse_hexadecimal(flags)?,
    })
}

fn parse_function(line: &str) -> Option<FunctionEntry> {
    let mut fields = line.split_whitespace().map(str::to_owned);
    Some(FunctionEntry {
        function: fields.next()?,
        driver: fields.next().filter(|driver| driver != "-"),
        state: fields.next()?,
        cell: fields.next(),
    })
}

fn parse_block(line: &str) -> Option<BlockEntry> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [physical, size, usage] = fields[..] else {
        return None;
    };
    Some(BlockEntry {
        physical: parse_hexadecimal(physical)?,
        size: parse_hexadecimal(size)?,
        usage: match usage {
            "used" => BlockUse::Used,
            "held" => BlockUse::Held,
            "idle" => BlockUse::Idle,
            _ => return None,
        },
    })
}

impl Sysfs {
    /// The interrupt that a PCI function ("0000:00:03.0") has by its line, as Linux counts them.
    #[must_use]
    pub fn line_of(&self, function: &str) -> Option<u32> {
        let file = self.root.join("bus/pci/devices").join(function).join("irq");
        fs::read_to_string(file).ok()?.trim().parse().ok()
    }

    /// Whether the hypervisor says that functions of the cell reach all memory.
    #[must_use]
    pub fn is_unprotected(&self, cell: u32) -> bool {
        let bit = 1u64.checked_shl(cell).unwrap_or(0);
        let public = self.public().ok();
        let system = public.as_ref().and_then(PublicPages::system);
        system.is_some_and(|system| system.unprotected_cells & bit != 0)
    }

    /// The PCI functions that cells have, and those that did not come back.
    #[must_use]
    pub fn functions(&self) -> Vec<FunctionEntry> {
        let text = fs::read_to_string(self.module().join("pci_functions")).unwrap_or_default();
        text.lines().filter_map(parse_function).collect()
    }

    /// What a disk behind a PCI function is in use for.
    #[must_use]
    pub fn disk_in_use(&self, uses: &Uses, function: &str) -> Option<String> {
        uses.of_function(&self.root, function)
    }

    /// The tree below `root`, which is /sys.
    #[must_use]
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    fn module(&self) -> PathBuf {
        self.root.join("devices/gaol")
    }

    fn read(&self, file: &str) -> io::Result<String> {
        fs::read_to_string(self.module().join(file)).map(|text| text.trim().to_owned())
    }

    fn failure(&self, file: &str, error: &io::Error) -> Failure {
        let path = self.module().join(file);
        match error.kind() {
            io::ErrorKind::NotFound if !self.module().exists() => Failure::new(
                "no_module",
                format!(
                    "there is no {}: the module is not loaded",
                    self.module().display()
                ),
                "Load it: insmod gaol.ko",
            ),
            io::ErrorKind::PermissionDenied => Failure::new(
                "no_permission",
                format!("no permission to read {}", path.display()),
                "Run gaol as root.",
            ),
            _ => Failure::new(
                "system_error",
                format!("cannot read {}: {}", path.display(), plain(error)),
                "Is Gaol being disabled at this moment? See `dmesg`.",
            ),
        }
    }

    fn text(&self, file: &str) -> Result<String> {
        self.read(file).map_err(|error| self.failure(file, &error))
    }

    fn malformed(&self, file: &str, text: &str) -> Failure {
        Failure::new(
            "module_mismatch",
            format!("{} says {text:?}", self.module().join(file).display()),
            "Install module and command of one version.",
        )
    }

    /// Whether the hypervisor is enabled.
    ///
    /// # Errors
    /// When the module is not loaded.
    pub fn is_enabled(&self) -> Result<bool> {
        Ok(self.text("enabled")? == "1")
    }

    /// The module's ABI revision, if it is there.
    #[must_use]
    pub fn abi_revision(&self) -> Option<u32> {
        self.read("abi_revision").ok()?.parse().ok()
    }

    /// Frames of the hypervisor's pool, and those in use.
    ///
    /// # Errors
    /// When the module does not tell.
    pub fn pool(&self) -> Result<(u64, u64)> {
        let number = |file: &str| {
            let text = self.text(file)?;
            text.parse().map_err(|_| self.malformed(file, &text))
        };
        Ok((number("mem_pool_size")?, number("mem_pool_used")?))
    }

    /// Address and size of the hypervisor's memory, if it is enabled.
    #[must_use]
    pub fn region(&self) -> Option<(u64, u64)> {
        let text = self.read("region").ok()?;
        let (start, size) = text.split_once(' ')?;
        Some((parse_hexadecimal(start)?, parse_hexadecimal(size)?))
    }

    /// CPUs that the machine has.
    #[must_use]
    pub fn present_cpus(&self) -> Option<CpuSet> {
        let text = fs::read_to_string(self.root.join("devices/system/cpu/present")).ok()?;
        parse_cpu_list(&text)
    }

    /// All cells in the order of their numbers. Those that go away meanwhile are left out.
    ///
    /// # Errors
    /// When the module is not loaded, or tells what can't be understood.
    pub fn cells(&self) -> Result<Vec<CellEntry>> {
        let directory = self.module().join("cells");
        let entries = fs::read_dir(&directory).map_err(|error| self.failure("cells", &error))?;
        let mut ids: Vec<u32> = entries
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .collect();
        ids.sort_unstable();
        let mut cells = Vec::new();
        for id in ids {
            match self.cell(id) {
                Err(_) if !directory.join(id.to_string()).exists() => {}
                cell => cells.push(cell?),
            }
        }
        Ok(cells)
    }

    fn cell(&self, id: u32) -> Result<CellEntry> {
        let text = |file: &str| self.text(&format!("cells/{id}/{file}"));
        let cpus = |file: &str| {
            let list = text(file)?;
            parse_cpu_list(&list)
                .ok_or_else(|| self.malformed(&format!("cells/{id}/{file}"), &list))
        };
        Ok(CellEntry {
            id,
            name: text("name")?,
            state: text("state")?,
            cpus: cpus("cpus_assigned_list")?,
            failed: cpus("cpus_failed_list")?,
            watchdog: text("watchdog").ok().and_then(|line| parse_watchdog(&line)),
        })
    }

    /// The cell of this number or name.
    ///
    /// # Errors
    /// When there is none.
    pub fn find(&self, name: &CellName) -> Result<CellEntry> {
        let is_wanted = |cell: &CellEntry| match name {
            CellName::Id(id) => cell.id == *id,
            CellName::Name(name) => cell.name == *name,
        };
        if !self.is_enabled()? {
            return Err(Failure::new(
                "not_enabled",
                "Gaol is not enabled, so there are no cells",
                "Enable it first: gaol enable SYSTEM.toml",
            ));
        }
        let cells = self.cells()?;
        cells.into_iter().find(is_wanted).ok_or_else(|| {
            Failure::new(
                "no_such_cell",
                format!("there is no cell {name}"),
                "See `gaol cell list`.",
            )
        })
    }

    /// Memory of a cell.
    ///
    /// # Errors
    /// When the module does not tell, or what it tells can't be understood.
    pub fn memory(&self, id: u32) -> Result<Vec<MemoryEntry>> {
        let file = format!("cells/{id}/memory");
        let text = self.text(&file)?;
        text.lines()
            .map(|line| parse_memory(line).ok_or_else(|| self.malformed(&file, line)))
            .collect()
    }

    /// The memory blocks that are offline for Gaol; none where the module is not loaded, or this user may not know.
    #[must_use]
    pub fn memory_blocks(&self) -> Vec<BlockEntry> {
        let text = self.read("memory_blocks").unwrap_or_default();
        text.lines().filter_map(parse_block).collect()
    }

    /// The pages that the hypervisor publishes.
    ///
    /// # Errors
    /// When the module does not show them.
    pub fn public(&self) -> Result<PublicPages> {
        let bytes = fs::read(self.module().join("public"))
            .map_err(|error| self.failure("public", &error))?;
        let pages = PublicPages(Binary::new(&bytes));
        match pages.system() {
            Some(system) if system.abi_revision == gaol_abi::ABI_REVISION => Ok(pages),
            system => {
                let revision = system.map_or(0, |system| system.abi_revision);
                Err(self.malformed("public", &format!("ABI revision {revision}")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_lists_are_read() {
        let cpus = |text: &str| parse_cpu_list(text).map(|cpus| cpus.iter().collect::<Vec<_>>());
        assert_eq!(cpus(""), Some(vec![]));
        assert_eq!(cpus("\n"), Some(vec![]));
        assert_eq!(cpus("3\n"), Some(vec![3]));
        assert_eq!(cpus("0-2,5"), Some(vec![0, 1, 2, 5]));
        assert_eq!(
            cpus("0-4294967295").map(|cpus| cpus.len()),
            Some(gaol_abi::MAX_CPUS)
        );
        assert_eq!(cpus("x"), None);
        assert_eq!(cpus("1-"), None);
    }

    #[test]
    fn watchdog_lines_are_read() {
        let entry = parse_watchdog("restart 100 3 2 1\n").unwrap();
        assert_eq!((entry.policy.as_str(), entry.timeout), ("restart", 100));
        assert_eq!(
            (entry.expired, entry.restarts, entry.given_up),
            (3, 2, true)
        );
        for line in ["", "none", "halt 100 3 2", "halt x 3 2 0", "halt 1 3 2 0 0"] {
            assert_eq!(parse_watchdog(line), None, "{line}");
        }
    }

    #[test]
    fn block_lines_are_read() {
        let entry = parse_block("0x18000000 0x8000000 idle").unwrap();
        assert_eq!((entry.physical, entry.size), (0x1800_0000, 128 << 20));
        assert_eq!(entry.usage, BlockUse::Idle);
        for line in [
            "",
            "0x1 0x2",
            "0x1 0x2 lost",
            "x 0x2 idle",
            "0x1 0x2 idle 3",
        ] {
            assert_eq!(parse_block(line), None, "{line}");
        }
    }

    #[test]
    fn memory_lines_are_read() {
        let entry = parse_memory("ram 0x3a000000 0 0x100000 0x47").unwrap();
        assert_eq!(
            (entry.physical, entry.guest, entry.size, entry.flags),
            (0x3a00_0000, 0, 0x10_0000, 0x47)
        );
        for line in ["", "ram", "ram 1 2 3", "ram 1 2 3 4 5", "ram x 2 3 4"] {
            assert_eq!(parse_memory(line), None, "{line}");
        }
    }
}
