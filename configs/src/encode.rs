//! The writer of the binary configuration.
//!
//! Invariant: signature, revision, length, counts and checksum of what is written are right; whether the values make
//! sense is for the [`crate::compile`]r and the [`crate::ledger`] to see to.

use gaol_abi::config::{
    CELL_SIGNATURE, CHECKSUM_OFFSET, CPU_WORDS, CellHeader, MemoryRegion, PortRange, Preamble,
    SYSTEM_SIGNATURE, SystemHeader,
};
use gaol_abi::{ABI_REVISION, NAME_LENGTH, checksum::crc32_with_hole};
use zerocopy::{FromZeros, IntoBytes};

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

/// A system configuration; the preamble of `header` is made here.
#[must_use]
pub fn system(mut header: SystemHeader) -> Binary {
    header.preamble = preamble(SYSTEM_SIGNATURE, 0);
    seal(header.as_bytes().to_vec())
}

/// What a cell configuration says.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// Memory regions.
    pub memory: Vec<MemoryRegion>,
    /// Port ranges.
    pub ports: Vec<PortRange>,
}

impl Cell {
    /// The binary configuration of the cell.
    #[must_use]
    pub fn encode(&self) -> Binary {
        let count = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
        let words: [u64; CPU_WORDS] = self.cpus.words();
        let header = CellHeader {
            preamble: preamble(CELL_SIGNATURE, self.flags),
            name: self.name,
            cpus: words,
            reset_address: self.reset_address,
            shutdown_milliseconds: self.shutdown_milliseconds,
            memory_region_count: count(self.memory.len()),
            port_range_count: count(self.ports.len()),
            reserved: 0,
        };
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend_from_slice(self.memory.as_bytes());
        bytes.extend_from_slice(self.ports.as_bytes());
        seal(bytes)
    }
}

/// A header with all fields zero, to be filled in.
#[must_use]
pub fn empty_system() -> SystemHeader {
    SystemHeader::new_zeroed()
}
