//! The writer of the binary configuration.
//!
//! Invariant: signature, revision, length, counts and checksum of what is written are right; whether the values make
//! sense is for the [`crate::compile`]r and the [`crate::ledger`] to see to.

use gaol_abi::config::{
    AssignedDevice, CELL_SIGNATURE, CHECKSUM_OFFSET, CPU_WORDS, CellHeader, Interrupt, IommuSource,
    IommuUnit, MachineBar, MachineCpu, MachineDevice, MachineRange, MemoryRegion, MsrAccess,
    PortRange, Preamble, SYSTEM_SIGNATURE, SystemHeader,
};
use gaol_abi::{ABI_REVISION, NAME_LENGTH, checksum::crc32_with_hole};
use zerocopy::{FromZeros, IntoBytes};

use crate::binary::SystemView;
use crate::cpu_set::CpuSet;

/// A configuration file in memory, aligned so that it can be read in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binary {
    words: Vec<u64>,
    length: usize,
}

impl Binary {
    /// A copy of `bytes` at an aligned address.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Self {
        let mut words = vec![0u64; bytes.len().div_ceil(8)];
        words.as_mut_bytes()[..bytes.len()].copy_from_slice(bytes);
        Self {
            words,
            length: bytes.len(),
        }
    }

    /// The bytes of the file.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.words.as_bytes()[..self.length]
    }
}

/// Sets length and checksum in the preamble that `bytes` begin with.
///
/// # Panics
/// When `bytes` are shorter than a preamble.
#[must_use]
pub fn seal(mut bytes: Vec<u8>) -> Binary {
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    let offset = core::mem::offset_of!(Preamble, total_size);
    bytes[offset..offset + 4].copy_from_slice(&length.to_le_bytes());
    let checksum = crc32_with_hole(&bytes, CHECKSUM_OFFSET);
    bytes[CHECKSUM_OFFSET..CHECKSUM_OFFSET + 4].copy_from_slice(&checksum.to_le_bytes());
    Binary::new(&bytes)
}

/// A name in the form of the binary; `None` when it is too long to be terminated.
#[must_use]
pub fn name(text: &str) -> Option<[u8; NAME_LENGTH]> {
    let mut name = [0; NAME_LENGTH];
    let slot = name[..NAME_LENGTH - 1].get_mut(..text.len())?;
    slot.copy_from_slice(text.as_bytes());
    Some(name)
}

fn preamble(signature: [u8; 8], flags: u32) -> Preamble {
    Preamble {
        signature,
        revision: ABI_REVISION,
        total_size: 0,
        checksum: 0,
        flags,
    }
}

fn count(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

/// What a system configuration says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct System {
    /// All but the arrays; preamble and counts are made when it is written.
    pub header: SystemHeader,
    /// `SYSTEM_…` flags.
    pub flags: u32,
    /// Ranges of addresses.
    pub ranges: Vec<MachineRange>,
    /// Base address registers.
    pub bars: Vec<MachineBar>,
    /// IOMMUs.
    pub iommus: Vec<IommuUnit>,
    /// Who sends requests through them.
    pub iommu_sources: Vec<IommuSource>,
    /// Memory of a strict root cell.
    pub root_memory: Vec<MemoryRegion>,
    /// Registers of a strict root cell.
    pub root_msrs: Vec<MsrAccess>,
    /// CPUs.
    pub cpus: Vec<MachineCpu>,
    /// Ports of a strict root cell.
    pub root_ports: Vec<PortRange>,
    /// PCI functions.
    pub devices: Vec<MachineDevice>,
}

impl Default for System {
    fn default() -> Self {
        Self {
            header: SystemHeader::new_zeroed(),
            flags: 0,
            ranges: Vec::new(),
            bars: Vec::new(),
            iommus: Vec::new(),
            iommu_sources: Vec::new(),
            root_memory: Vec::new(),
            root_msrs: Vec::new(),
            cpus: Vec::new(),
            root_ports: Vec::new(),
            devices: Vec::new(),
        }
    }
}

impl From<&SystemView<'_>> for System {
    /// What a binary configuration says.
    fn from(view: &SystemView<'_>) -> Self {
        Self {
            header: *view.header(),
            flags: view.header().preamble.flags,
            ranges: view.ranges().to_vec(),
            bars: view.bars().to_vec(),
            iommus: view.iommus().to_vec(),
            iommu_sources: view.iommu_sources().to_vec(),
            root_memory: view.root_memory().to_vec(),
            root_msrs: view.root_msrs().to_vec(),
            cpus: view.machine_cpus().to_vec(),
            root_ports: view.root_ports().to_vec(),
            devices: view.devices().to_vec(),
        }
    }
}

impl System {
    /// The binary configuration of the system.
    #[must_use]
    pub fn encode(&self) -> Binary {
        let header = SystemHeader {
            preamble: preamble(SYSTEM_SIGNATURE, self.flags),
            range_count: count(self.ranges.len()),
            bar_count: count(self.bars.len()),
            iommu_count: count(self.iommus.len()),
            iommu_source_count: count(self.iommu_sources.len()),
            root_memory_count: count(self.root_memory.len()),
            root_msr_count: count(self.root_msrs.len()),
            cpu_count: count(self.cpus.len()),
            root_port_count: count(self.root_ports.len()),
            device_count: count(self.devices.len()),
            ..self.header
        };
        let mut bytes = header.as_bytes().to_vec();
        for array in [
            self.ranges.as_bytes(),
            self.bars.as_bytes(),
            self.iommus.as_bytes(),
            self.iommu_sources.as_bytes(),
            self.root_memory.as_bytes(),
            self.root_msrs.as_bytes(),
            self.cpus.as_bytes(),
            self.root_ports.as_bytes(),
            self.devices.as_bytes(),
        ] {
            bytes.extend_from_slice(array);
        }
        seal(bytes)
    }
}

/// What a cell configuration says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cell {
    /// `CELL_…` flags.
    pub flags: u32,
    /// Name of the cell.
    pub name: [u8; NAME_LENGTH],
    /// CPUs of the cell.
    pub cpus: CpuSet,
    /// Guest-physical address at which its CPUs start.
    pub reset_address: u64,
    /// Time to answer a shutdown request, in milliseconds; 0 for the default.
    pub shutdown_milliseconds: u32,
    /// `VIOLATION_…`.
    pub violation: u32,
    /// Timeout of the watchdog in milliseconds; 0 for none.
    pub watchdog_milliseconds: u32,
    /// `WATCHDOG_…`.
    pub watchdog_policy: u32,
    /// Ways of the level-3 cache.
    pub l3_ways: u32,
    /// Ways of the level-2 cache.
    pub l2_ways: u32,
    /// Memory regions.
    pub memory: Vec<MemoryRegion>,
    /// Registers.
    pub msrs: Vec<MsrAccess>,
    /// Interrupt lines.
    pub interrupts: Vec<Interrupt>,
    /// PCI functions.
    pub devices: Vec<AssignedDevice>,
    /// Port ranges.
    pub ports: Vec<PortRange>,
}

impl Cell {
    /// The binary configuration of the cell.
    #[must_use]
    pub fn encode(&self) -> Binary {
        let words: [u64; CPU_WORDS] = self.cpus.words();
        let header = CellHeader {
            preamble: preamble(CELL_SIGNATURE, self.flags),
            name: self.name,
            cpus: words,
            reset_address: self.reset_address,
            shutdown_milliseconds: self.shutdown_milliseconds,
            violation: self.violation,
            memory_region_count: count(self.memory.len()),
            msr_count: count(self.msrs.len()),
            interrupt_count: count(self.interrupts.len()),
            device_count: count(self.devices.len()),
            port_range_count: count(self.ports.len()),
            l3_ways: self.l3_ways,
            l2_ways: self.l2_ways,
            watchdog_milliseconds: self.watchdog_milliseconds,
            watchdog_policy: self.watchdog_policy,
            reserved: 0,
        };
        let mut bytes = header.as_bytes().to_vec();
        for array in [
            self.memory.as_bytes(),
            self.msrs.as_bytes(),
            self.interrupts.as_bytes(),
            self.devices.as_bytes(),
            self.ports.as_bytes(),
        ] {
            bytes.extend_from_slice(array);
        }
        seal(bytes)
    }
}
