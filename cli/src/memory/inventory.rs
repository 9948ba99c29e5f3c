//! Memory blocks as Linux shows them in sysfs.

use std::fs;
use std::path::Path;

use super::ram::Ram;

/// The zone of a block, in the order in which Linux can do without it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Zone {
    /// Movable.
    Movable,
    /// Normal.
    Normal,
    /// Memory below 4 GiB.
    Dma32,
    /// Another one, or several.
    Other,
}

/// A memory block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// Its number: its address in units of the block size.
    pub number: u64,
    /// Whether Linux uses it.
    pub online: bool,
    /// Whether Linux says that it can't be taken offline.
    pub fixed: bool,
    /// Whether all of it is RAM, without the kernel and what was set aside at boot.
    pub plain: bool,
    /// Its zone.
    pub zone: Zone,
    /// Its NUMA node.
    pub node: u32,
}

impl Block {
    /// Whether it is worth a try to take it offline. The first block never is.
    #[must_use]
    pub fn may_leave(&self) -> bool {
        self.online && !self.fixed && self.plain && self.zone != Zone::Other && self.number > 0
    }
}

/// The memory of the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    /// Bytes of a block.
    pub block_size: u64,
    /// All blocks in the order of their numbers.
    pub blocks: Vec<Block>,
    /// Bytes that Linux could give without swapping.
    pub available: u64,
    /// Bytes that Linux has.
    pub total: u64,
}

/// A number of /proc/meminfo, in bytes.
fn meminfo(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let number = line.trim_start_matches(':').trim().strip_suffix("kB")?;
    number.trim().parse::<u64>().ok()?.checked_mul(1 << 10)
}

fn zone(valid_zones: &str) -> Zone {
    match valid_zones.trim() {
        "Movable" => Zone::Movable,
        "Normal" => Zone::Normal,
        "DMA32" => Zone::Dma32,
        _ => Zone::Other,
    }
}

fn node(directory: &Path) -> u32 {
    let names = fs::read_dir(directory).into_iter().flatten();
    names
        .filter_map(|entry| {
            let name = entry.ok()?.file_name();
            name.to_str()?.strip_prefix("node")?.parse().ok()
        })
        .min()
        .unwrap_or(0)
}

fn block(directory: &Path, number: u64, block_size: u64, ram: &Ram) -> Option<Block> {
    let read =
        |file: &str| fs::read_to_string(directory.join(file)).map(|text| text.trim().to_owned());
    let start = number.checked_mul(block_size)?;
    Some(Block {
        number,
        online: read("state").ok()? == "online",
        fixed: read("removable").is_ok_and(|text| text == "0"),
        plain: ram.is_plain(start, block_size),
        zone: zone(&read("valid_zones").unwrap_or_default()),
        node: node(directory),
    })
}

impl Inventory {
    /// Reads it; `None` where Linux has no memory blocks, or does not say how much memory is free. Blocks that can't be
    /// read are left out.
    #[must_use]
    pub fn read(directory: &Path, meminfo_file: &Path, iomem: &Path) -> Option<Self> {
        let size = fs::read_to_string(directory.join("block_size_bytes")).ok()?;
        let block_size = u64::from_str_radix(size.trim(), 16).ok()?;
        let text = fs::read_to_string(meminfo_file).ok()?;
        let ram = Ram::parse(&fs::read_to_string(iomem).unwrap_or_default());
        let mut numbers: Vec<u64> = fs::read_dir(directory)
            .ok()?
            .filter_map(|entry| {
                let name = entry.ok()?.file_name();
                name.to_str()?.strip_prefix("memory")?.parse().ok()
            })
            .collect();
        numbers.sort_unstable();
        Some(Self {
            block_size: Some(block_size).filter(|size| *size > 0)?,
            blocks: numbers
                .into_iter()
                .filter_map(|number| {
                    let directory = directory.join(format!("memory{number}"));
                    block(&directory, number, block_size, &ram)
                })
                .collect(),
            available: meminfo(&text, "MemAvailable")?,
            total: meminfo(&text, "MemTotal")?,
        })
    }
}
