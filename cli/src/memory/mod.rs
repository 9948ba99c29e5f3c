//! Memory for the hypervisor and for cells out of a running Linux.
//!
//! The module takes contiguous memory from the page allocator by itself. Where that does not reach, whole memory blocks
//! are taken offline here, for the module to use.
//!
//! Invariant: when a command ends, however it does, blocks that nobody uses are online again, or the next command finds
//! them: the module knows each block before it goes offline.

mod choose;
mod inventory;
mod ram;
mod switch;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use gaol_abi::outcome::Reason;
use gaol_config::quantity::Size;

use crate::device::{self, DeviceError};
use crate::failure::plain;
use crate::host::Host;
use crate::sysfs::BlockUse;
pub use choose::Wanted;
pub use inventory::Inventory;
pub use ram::place_for_reservation;
pub use switch::{LinuxSwitch, Switch, run_helper};

/// Where Linux tells what memory there is, and lets it be taken offline.
pub struct Memory {
    /// `devices/system/memory` of sysfs.
    pub directory: PathBuf,
    /// /proc/meminfo.
    pub meminfo: PathBuf,
    /// /proc/iomem.
    pub iomem: PathBuf,
    /// Takes blocks offline and online.
    pub switch: Box<dyn Switch>,
}

impl Memory {
    /// The memory of the machine with this sysfs.
    #[must_use]
    pub fn real(sysfs: &Path) -> Self {
        let directory = sysfs.join("devices/system/memory");
        Self {
            switch: Box::new(LinuxSwitch::new(directory.clone())),
            directory,
            meminfo: "/proc/meminfo".into(),
            iomem: "/proc/iomem".into(),
        }
    }

    /// What there is now; `None` where Linux has no memory blocks.
    fn inventory(&self) -> Option<Inventory> {
        Inventory::read(&self.directory, &self.meminfo, &self.iomem)
    }

    /// An address at which `size` bytes could be reserved when Linux boots.
    #[must_use]
    pub fn place_for_reservation(&self, size: u64) -> Option<u64> {
        let iomem = std::fs::read_to_string(&self.iomem).unwrap_or_default();
        place_for_reservation(&iomem, size)
    }
}

/// What a request had no memory for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortage {
    /// Bytes that it takes.
    pub size: u64,
    /// Bytes that the module has found.
    pub found: u64,
    /// Index of the region; 0 for the hypervisor.
    pub region: u32,
    /// Whether it has to be one piece.
    pub contiguous: bool,
}

impl Shortage {
    /// The shortage that an error is about. `size_of` tells the size of a region of the cell.
    #[must_use]
    pub fn of(
        error: &DeviceError,
        hypervisor_size: u64,
        size_of: impl Fn(u32) -> Option<u64>,
    ) -> Option<Self> {
        let DeviceError::Refused {
            outcome, region, ..
        } = error
        else {
            return None;
        };
        let contiguous = outcome.reason == Reason::HypervisorMemory;
        let size = match outcome.reason {
            Reason::HypervisorMemory => hypervisor_size,
            Reason::CellMemory => size_of(*region)?,
            _ => return None,
        };
        Some(Self {
            size,
            found: outcome.detail,
            region: *region,
            contiguous,
        })
    }
}

/// The blocks of one request.
#[derive(Default)]
struct Blocks {
    /// Offline for it, by number.
    taken: BTreeSet<u64>,
    /// Those that Linux can't do without.
    refused: BTreeSet<u64>,
    /// Regions that whole blocks were sought for.
    regions: BTreeSet<u32>,
    /// Most that may be taken.
    limit: u64,
}

/// Makes a request of the module, with as many memory blocks as it takes. `attempt` is told whether regions may be made
/// of pieces, and may be made again as long as there is a shortage of memory.
///
/// # Errors
/// The last attempt's.
pub fn with_blocks<T>(
    host: &mut Host,
    shortage_of: impl Fn(&DeviceError) -> Option<Shortage>,
    mut attempt: impl FnMut(&mut Host, bool) -> device::Result<T>,
) -> device::Result<T> {
    let mut blocks = Blocks::default();
    let mut pieces = false;
    loop {
        let error = match attempt(host, pieces) {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        let Some(shortage) = shortage_of(&error) else {
            return Err(error);
        };
        let more = match host.memory.inventory() {
            Some(inventory) => {
                let count = blocks.wanted(&inventory, &shortage, pieces);
                take(host, &mut blocks, count, shortage.contiguous)
            }
            None => false,
        };
        // Something must be different the next time.
        let may_be_split = !pieces && !shortage.contiguous;
        if !more && !may_be_split {
            return Err(error);
        }
        pieces = !shortage.contiguous;
    }
}

impl Blocks {
    /// How many more blocks to take: for a large region first as many as fit in it, so that it has few pieces, then as
    /// many as are missing.
    fn wanted(&mut self, inventory: &Inventory, shortage: &Shortage, pieces: bool) -> u64 {
        let size = inventory.block_size;
        let is_new = self.regions.insert(shortage.region);
        if shortage.size > inventory.available {
            // Blocks would be taken in vain.
            return 0;
        }
        if is_new {
            self.limit += shortage.size.div_ceil(size) + u64::from(!shortage.contiguous);
        }
        let missing = shortage.size.saturating_sub(shortage.found);
        let count = match (shortage.contiguous, is_new, pieces) {
            (true, _, _) => shortage.size.div_ceil(size),
            (false, true, _) if shortage.size >= size => shortage.size / size,
            (false, _, true) => missing.div_ceil(size).max(1),
            (false, _, false) => 0,
        };
        match shortage.contiguous {
            true => count,
            false => count.min(self.limit.saturating_sub(self.taken.len() as u64)),
        }
    }
}

/// Takes blocks offline: `count` more, or adjacent ones that are `count` together. Whether there are new ones.
fn take(host: &mut Host, blocks: &mut Blocks, count: u64, contiguous: bool) -> bool {
    let before = blocks.taken.clone();
    let mut left = count;
    while left > 0 {
        let Some(inventory) = host.memory.inventory() else {
            break;
        };
        let wanted = Wanted {
            count: left,
            contiguous,
            taken: &blocks.taken,
            refused: &blocks.refused,
        };
        let Some(choice) = inventory.choose(&wanted) else {
            break;
        };
        give_up(host, blocks, &choice.keep);
        let taken = take_chosen(host, blocks, &choice.new, inventory.block_size);
        if contiguous && taken == choice.new.len() as u64 {
            break;
        }
        left -= if contiguous { 0 } else { taken };
    }
    blocks.taken.difference(&before).next().is_some()
}

/// Takes these blocks offline, one after the other, until one does not go. Returns how many went.
fn take_chosen(host: &mut Host, blocks: &mut Blocks, chosen: &[u64], block_size: u64) -> u64 {
    let addresses: Vec<u64> = chosen.iter().map(|number| number * block_size).collect();
    if host.device.offer_memory(&addresses, block_size).is_err() {
        // One of them has changed meanwhile, or is damaged: offered one by one, the others may do.
        return match chosen {
            [only] => {
                blocks.refused.insert(*only);
                0
            }
            several => several
                .iter()
                .map(|number| take_chosen(host, blocks, &[*number], block_size))
                .sum(),
        };
    }
    let mut count = 0;
    for number in chosen {
        if host.memory.switch.offline(*number).is_err() {
            blocks.refused.insert(*number);
            break;
        }
        blocks.taken.insert(*number);
        count += 1;
    }
    count
}

/// Gives back what was taken and is of no use any more. What fails here is tried again at the end of the command.
fn give_up(host: &mut Host, blocks: &mut Blocks, keep: &[u64]) {
    let useless: Vec<u64> = blocks
        .taken
        .iter()
        .copied()
        .filter(|number| !keep.contains(number))
        .collect();
    for number in useless {
        if host.memory.switch.online(number).is_ok() {
            blocks.taken.remove(&number);
        }
    }
}

/// Brings blocks online that nobody uses: those of this command, and those that another one has left when it was
/// killed. Returns what could not be done, in words.
pub fn give_back(host: &mut Host) -> Vec<String> {
    // What this process has offered is in nobody's use any more.
    host.device.close();
    let idle = host.sysfs.memory_blocks().into_iter();
    let idle = idle.filter(|block| block.usage == BlockUse::Idle && block.size > 0);
    let mut notes = Vec::new();
    for block in idle {
        let Err(error) = host.memory.switch.online(block.physical / block.size) else {
            continue;
        };
        // Another command may have been faster.
        let still_there = host
            .sysfs
            .memory_blocks()
            .iter()
            .any(|other| other.physical == block.physical && other.usage == BlockUse::Idle);
        if still_there {
            notes.push(format!(
                "{} of memory at {:#x} could not be given back to Linux: {}; the next command of gaol tries again",
                Size(block.size),
                block.physical,
                plain(&error)
            ));
        }
    }
    notes
}
