//! The reader of the binary configuration.
//!
//! Invariant: a view exists only of bytes whose signature, revision, length, checksum, counts, names, flags and reserved
//! fields are all as [`gaol_abi::config`] says. What the values mean together is for the [`crate::ledger`] to judge.
//!
//! Nothing is copied: views borrow the bytes, which must be aligned to 8 bytes.
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::arithmetic_side_effects
    )
)]

use gaol_abi::checksum::crc32_with_hole;
use gaol_abi::config::{
    CELL_CONSOLE, CELL_IGNORE_UNASSIGNED_PORTS, CELL_PASSIVE, CELL_SIGNATURE, CHECKSUM_OFFSET,
    CONSOLE_NONE, CONSOLE_UART_PORT, CellHeader, MAX_MEMORY_REGIONS, MAX_PORT_RANGES, MAX_SIZE,
    MEMORY_ALL_FLAGS, MemoryRegion, PortRange, Preamble, SYSTEM_SIGNATURE, SystemHeader,
};
use gaol_abi::outcome::Reason;
use gaol_abi::{ABI_REVISION, NAME_LENGTH};
use zerocopy::FromBytes;

use crate::address::{GuestPhysical, HostPhysical, Range};
use crate::cpu_set::CpuSet;

/// Unit of the address and the size of the hypervisor's memory.
pub const HYPERVISOR_ALIGNMENT: u64 = 2 << 20;
/// Largest size of the hypervisor's memory: it has to fit, with its tables, where Linux has its own image.
pub const MAX_HYPERVISOR_SIZE: u64 = 512 << 20;
/// Longest deadline and shutdown timeout, in milliseconds: nobody waits longer than ten minutes.
pub const MAX_MILLISECONDS: u32 = 600_000;
/// I/O ports of a 16550.
pub const UART_PORTS: u16 = 8;
/// Flags of a cell that have a meaning.
const CELL_ALL_FLAGS: u32 = CELL_CONSOLE | CELL_PASSIVE | CELL_IGNORE_UNASSIGNED_PORTS;

/// Why something is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The reason.
    pub reason: Reason,
    /// The value that belongs to it; see [`Reason`].
    pub detail: u64,
}

impl Refusal {
    /// A refusal.
    #[must_use]
    pub const fn new(reason: Reason, detail: u64) -> Self {
        Self { reason, detail }
    }
}

/// Checks what all configurations have in common: length, signature, revision, checksum. Returns the flags.
fn check_preamble(bytes: &[u8], signature: [u8; 8]) -> Result<u32, Refusal> {
    let length = bytes.len() as u64;
    let invalid = Refusal::new(Reason::ConfigurationInvalid, length);
    if length > MAX_SIZE {
        return Err(Refusal::new(Reason::ConfigurationTooBig, length));
    }
    let (preamble, _) = Preamble::ref_from_prefix(bytes).map_err(|_| invalid)?;
    if preamble.signature != signature {
        return Err(invalid);
    }
    if preamble.revision != ABI_REVISION {
        let revision = u64::from(preamble.revision);
        return Err(Refusal::new(Reason::ConfigurationRevision, revision));
    }
    if u64::from(preamble.total_size) != length {
        return Err(invalid);
    }
    if crc32_with_hole(bytes, CHECKSUM_OFFSET) != preamble.checksum {
        return Err(Refusal::new(Reason::ConfigurationChecksum, 0));
    }
    Ok(preamble.flags)
}

/// The text of a name: not empty, only graphic ASCII characters (no spaces: names stand in tables), then zeros.
///
/// # Errors
/// [`Reason::NameInvalid`].
pub fn name_text(name: &[u8; NAME_LENGTH]) -> Result<&str, Refusal> {
    let invalid = Refusal::new(Reason::NameInvalid, 0);
    let end = name.iter().position(|byte| *byte == 0).ok_or(invalid)?;
    let (text, padding) = name.split_at_checked(end).ok_or(invalid)?;
    let good = !text.is_empty()
        && text.iter().all(u8::is_ascii_graphic)
        && padding.iter().all(|byte| *byte == 0);
    if !good {
        return Err(invalid);
    }
    core::str::from_utf8(text).map_err(|_| invalid)
}

/// A system configuration.
#[derive(Clone, Copy, Debug)]
pub struct SystemView<'a> {
    header: &'a SystemHeader,
    name: &'a str,
}

impl<'a> SystemView<'a> {
    /// Reads a system configuration.
    ///
    /// # Errors
    /// Why these bytes are not one.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Refusal> {
        let invalid = Refusal::new(Reason::ConfigurationInvalid, bytes.len() as u64);
        let flags = check_preamble(bytes, SYSTEM_SIGNATURE)?;
        let header = SystemHeader::ref_from_bytes(bytes).map_err(|_| invalid)?;
        if flags != 0 || header.reserved != 0 || header.deadline_milliseconds > MAX_MILLISECONDS {
            return Err(invalid);
        }
        let view = Self {
            header,
            name: name_text(&header.name)?,
        };
        if !view.memory_is_sound() || !view.console_is_sound() {
            return Err(invalid);
        }
        Ok(view)
    }

    fn memory_is_sound(&self) -> bool {
        let (start, size) = (self.header.hypervisor_physical, self.header.hypervisor_size);
        let aligned = (start | size) & (HYPERVISOR_ALIGNMENT - 1) == 0;
        aligned && size <= MAX_HYPERVISOR_SIZE && Range::new(HostPhysical(start), size).is_some()
    }

    fn console_is_sound(&self) -> bool {
        let (address, divisor) = (self.header.console_address, self.header.console_divisor);
        match self.header.console_kind {
            CONSOLE_NONE => address == 0 && divisor == 0,
            CONSOLE_UART_PORT => {
                address != 0
                    && address <= u64::from(u16::MAX - (UART_PORTS - 1))
                    && (1..=u32::from(u16::MAX)).contains(&divisor)
            }
            _ => false,
        }
    }

    /// All fields.
    #[must_use]
    pub fn header(&self) -> &'a SystemHeader {
        self.header
    }

    /// Name of the root cell.
    #[must_use]
    pub fn name(&self) -> &'a str {
        self.name
    }

    /// The hypervisor's memory, once its place is known.
    #[must_use]
    pub fn hypervisor_memory(&self) -> Option<Range<HostPhysical>> {
        let start = self.header.hypervisor_physical;
        (start != 0)
            .then(|| Range::new(HostPhysical(start), self.header.hypervisor_size))
            .flatten()
    }

    /// First port of the console's UART, if there is one.
    #[must_use]
    pub fn console_port(&self) -> Option<u16> {
        let is_uart = self.header.console_kind == CONSOLE_UART_PORT;
        u16::try_from(self.header.console_address)
            .ok()
            .filter(|_| is_uart)
    }

    /// The hypervisor's own ports.
    #[must_use]
    pub fn hypervisor_ports(&self) -> Option<PortRange> {
        self.console_port().map(|first| PortRange {
            first,
            count: UART_PORTS,
        })
    }
}

/// The configuration of a cell.
#[derive(Clone, Copy, Debug)]
pub struct CellView<'a> {
    header: &'a CellHeader,
    name: &'a str,
    memory: &'a [MemoryRegion],
    ports: &'a [PortRange],
}

impl<'a> CellView<'a> {
    /// Reads the configuration of a cell.
    ///
    /// # Errors
    /// Why these bytes are not one.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Refusal> {
        let invalid = Refusal::new(Reason::ConfigurationInvalid, bytes.len() as u64);
        let flags = check_preamble(bytes, CELL_SIGNATURE)?;
        let (header, rest) = CellHeader::ref_from_prefix(bytes).map_err(|_| invalid)?;
        let regions = bounded(header.memory_region_count, MAX_MEMORY_REGIONS).ok_or(invalid)?;
        let ranges = bounded(header.port_range_count, MAX_PORT_RANGES).ok_or(invalid)?;
        let (memory, rest) =
            <[MemoryRegion]>::ref_from_prefix_with_elems(rest, regions).map_err(|_| invalid)?;
        let ports = <[PortRange]>::ref_from_bytes_with_elems(rest, ranges).map_err(|_| invalid)?;
        if flags & !CELL_ALL_FLAGS != 0
            || header.reserved != 0
            || header.shutdown_milliseconds > MAX_MILLISECONDS
        {
            return Err(invalid);
        }
        for (index, region) in (0u64..).zip(memory) {
            name_text(&region.name)?;
            if region.flags & !MEMORY_ALL_FLAGS != 0 {
                return Err(Refusal::new(Reason::RegionInvalid, index));
            }
        }
        Ok(Self {
            header,
            name: name_text(&header.name)?,
            memory,
            ports,
        })
    }

    /// All fields but the arrays.
    #[must_use]
    pub fn header(&self) -> &'a CellHeader {
        self.header
    }

    /// Name of the cell.
    #[must_use]
    pub fn name(&self) -> &'a str {
        self.name
    }

    /// The cell's CPUs.
    #[must_use]
    pub fn cpus(&self) -> CpuSet {
        CpuSet::from_words(self.header.cpus)
    }

    /// Where the cell's CPUs start.
    #[must_use]
    pub fn reset_address(&self) -> GuestPhysical {
        GuestPhysical(self.header.reset_address)
    }

    /// The memory regions, at most [`MAX_MEMORY_REGIONS`].
    #[must_use]
    pub fn memory(&self) -> &'a [MemoryRegion] {
        self.memory
    }

    /// The port ranges, at most [`MAX_PORT_RANGES`].
    #[must_use]
    pub fn ports(&self) -> &'a [PortRange] {
        self.ports
    }

    /// Whether the cell may print with hypercall 8.
    #[must_use]
    pub fn has_console(&self) -> bool {
        self.header.preamble.flags & CELL_CONSOLE != 0
    }

    /// Whether the cell is stopped without being asked.
    #[must_use]
    pub fn is_passive(&self) -> bool {
        self.header.preamble.flags & CELL_PASSIVE != 0
    }

    /// Whether ports that are not the cell's read as ones instead of stopping it.
    #[must_use]
    pub fn ignores_unassigned_ports(&self) -> bool {
        self.header.preamble.flags & CELL_IGNORE_UNASSIGNED_PORTS != 0
    }
}

/// `count`, unless it is above `most`.
fn bounded(count: u32, most: usize) -> Option<usize> {
    usize::try_from(count).ok().filter(|count| *count <= most)
}

/// A region's place in the cell, if it is a range at all.
#[must_use]
pub fn guest_range(region: &MemoryRegion) -> Option<Range<GuestPhysical>> {
    Range::new(GuestPhysical(region.guest), region.size)
}

/// A region's place in the machine, if it is known and a range.
#[must_use]
pub fn physical_range(region: &MemoryRegion) -> Option<Range<HostPhysical>> {
    (region.physical != 0)
        .then(|| Range::new(HostPhysical(region.physical), region.size))
        .flatten()
}

#[cfg(all(test, feature = "std"))]
#[path = "binary_tests.rs"]
mod tests;
