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

use gaol_abi::MAX_CPUS;
use gaol_abi::checksum::crc32_with_hole;
use gaol_abi::config::{
    AssignedDevice, CELL_CONSOLE, CELL_IGNORE_UNASSIGNED_PORTS, CELL_PASSIVE, CELL_SIGNATURE,
    CELL_UNPROTECTED_DMA, CHECKSUM_OFFSET, CONSOLE_NONE, CONSOLE_UART_PORT, CellHeader,
    DEVICE_ALL_FLAGS, Interrupt, IommuSource, IommuUnit, MAX_CELL_SIZE, MAX_DEVICES,
    MAX_INTERRUPTS, MAX_IOMMU_SOURCES, MAX_IOMMUS, MAX_MACHINE_BARS, MAX_MACHINE_DEVICES,
    MAX_MACHINE_RANGES, MAX_MEMORY_REGIONS, MAX_MSRS, MAX_PORT_RANGES, MAX_ROOT_MSRS, MAX_SIZE,
    MEMORY_ALL_FLAGS, MEMORY_COMMUNICATION, MSR_ALL_FLAGS, MachineBar, MachineCpu, MachineDevice,
    MachineRange, MemoryRegion, MsrAccess, PortRange, Preamble, ROOT_FAILURE_RESET,
    SYSTEM_DESCRIBES_MACHINE, SYSTEM_SIGNATURE, SYSTEM_STRICT_ROOT, SystemHeader,
    VIOLATION_PARK_CELL, WATCHDOG_HALT, WATCHDOG_RECORD,
};
use gaol_abi::outcome::Reason;
use gaol_abi::{ABI_REVISION, NAME_LENGTH};
use zerocopy::{FromBytes, Immutable, KnownLayout};

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
const CELL_ALL_FLAGS: u32 =
    CELL_CONSOLE | CELL_PASSIVE | CELL_IGNORE_UNASSIGNED_PORTS | CELL_UNPROTECTED_DMA;
/// Flags of a system that have a meaning.
const SYSTEM_ALL_FLAGS: u32 = SYSTEM_STRICT_ROOT | SYSTEM_DESCRIBES_MACHINE;

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
fn check_preamble(bytes: &[u8], signature: [u8; 8], most: u64) -> Result<u32, Refusal> {
    let length = bytes.len() as u64;
    let invalid = Refusal::new(Reason::ConfigurationInvalid, length);
    if length > most {
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

/// Checks a name: not empty, only graphic ASCII characters (no spaces: names stand in tables), then zeros. Returns the
/// text's bytes.
fn check_name(name: &[u8; NAME_LENGTH]) -> Result<&[u8], Refusal> {
    let invalid = Refusal::new(Reason::NameInvalid, 0);
    let end = name.iter().position(|byte| *byte == 0).ok_or(invalid)?;
    let (text, padding) = name.split_at_checked(end).ok_or(invalid)?;
    let good = !text.is_empty()
        && text.iter().all(u8::is_ascii_graphic)
        && padding.iter().all(|byte| *byte == 0);
    good.then_some(text).ok_or(invalid)
}

/// Whether two names are the same.
#[must_use]
pub fn is_same_name(first: &[u8; NAME_LENGTH], second: &[u8; NAME_LENGTH]) -> bool {
    // Comparing the arrays would bring half a KiB of `memcmp` into the hypervisor for nothing else.
    first
        .iter()
        .zip(second)
        .all(|(first, second)| first == second)
}

/// The text of a name: not empty, only graphic ASCII characters (no spaces: names stand in tables), then zeros.
///
/// # Errors
/// [`Reason::NameInvalid`].
pub fn name_text(name: &[u8; NAME_LENGTH]) -> Result<&str, Refusal> {
    core::str::from_utf8(check_name(name)?).map_err(|_| Refusal::new(Reason::NameInvalid, 0))
}

/// The arrays behind a header, taken off one after the other.
struct Arrays<'a> {
    rest: &'a [u8],
    invalid: Refusal,
}

impl<'a> Arrays<'a> {
    /// The next array, of `count` elements, which are not more than `most`.
    fn take<T: FromBytes + KnownLayout + Immutable>(
        &mut self,
        count: u32,
        most: usize,
    ) -> Result<&'a [T], Refusal> {
        let count = usize::try_from(count)
            .ok()
            .filter(|count| *count <= most)
            .ok_or(self.invalid)?;
        let (elements, rest) =
            <[T]>::ref_from_prefix_with_elems(self.rest, count).map_err(|_| self.invalid)?;
        self.rest = rest;
        Ok(elements)
    }

    /// Refuses a tail.
    fn end(self) -> Result<(), Refusal> {
        self.rest.is_empty().then_some(()).ok_or(self.invalid)
    }
}

/// Checks names and flags of memory regions.
fn check_regions(regions: &[MemoryRegion]) -> Result<(), Refusal> {
    for (index, region) in (0u64..).zip(regions) {
        check_name(&region.name)?;
        if region.flags & !MEMORY_ALL_FLAGS != 0 {
            return Err(Refusal::new(Reason::RegionInvalid, index));
        }
    }
    Ok(())
}

/// Checks the flags of registers.
fn check_msrs(msrs: &[MsrAccess]) -> Result<(), Refusal> {
    match msrs
        .iter()
        .find(|access| access.flags & !MSR_ALL_FLAGS != 0)
    {
        Some(access) => Err(Refusal::new(Reason::MsrInvalid, u64::from(access.msr))),
        None => Ok(()),
    }
}

/// A system configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SystemView<'a> {
    header: &'a SystemHeader,
    ranges: &'a [MachineRange],
    bars: &'a [MachineBar],
    iommus: &'a [IommuUnit],
    iommu_sources: &'a [IommuSource],
    root_memory: &'a [MemoryRegion],
    root_msrs: &'a [MsrAccess],
    cpus: &'a [MachineCpu],
    root_ports: &'a [PortRange],
    devices: &'a [MachineDevice],
}

impl<'a> SystemView<'a> {
    /// Reads a system configuration.
    ///
    /// # Errors
    /// Why these bytes are not one.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Refusal> {
        let invalid = Refusal::new(Reason::ConfigurationInvalid, bytes.len() as u64);
        let flags = check_preamble(bytes, SYSTEM_SIGNATURE, MAX_SIZE)?;
        let (header, rest) = SystemHeader::ref_from_prefix(bytes).map_err(|_| invalid)?;
        if flags & !SYSTEM_ALL_FLAGS != 0
            || header.root_failure > ROOT_FAILURE_RESET
            || header.deadline_milliseconds > MAX_MILLISECONDS
        {
            return Err(invalid);
        }
        let mut arrays = Arrays { rest, invalid };
        check_name(&header.name)?;
        let view = Self {
            header,
            ranges: arrays.take(header.range_count, MAX_MACHINE_RANGES)?,
            bars: arrays.take(header.bar_count, MAX_MACHINE_BARS)?,
            iommus: arrays.take(header.iommu_count, MAX_IOMMUS)?,
            iommu_sources: arrays.take(header.iommu_source_count, MAX_IOMMU_SOURCES)?,
            root_memory: arrays.take(header.root_memory_count, MAX_MEMORY_REGIONS)?,
            root_msrs: arrays.take(header.root_msr_count, MAX_ROOT_MSRS)?,
            cpus: arrays.take(header.cpu_count, MAX_CPUS)?,
            root_ports: arrays.take(header.root_port_count, MAX_PORT_RANGES)?,
            devices: arrays.take(header.device_count, MAX_MACHINE_DEVICES)?,
        };
        arrays.end()?;
        check_regions(view.root_memory)?;
        check_msrs(view.root_msrs)?;
        if !view.memory_is_sound() || !view.console_is_sound() {
            return Err(invalid);
        }
        Ok(view)
    }

    /// Whether the root cell gets only what is listed for it.
    #[must_use]
    pub fn is_strict(&self) -> bool {
        self.header.preamble.flags & SYSTEM_STRICT_ROOT != 0
    }

    /// Whether the file describes the machine.
    #[must_use]
    pub fn describes_machine(&self) -> bool {
        self.header.preamble.flags & SYSTEM_DESCRIBES_MACHINE != 0
    }

    /// Ranges of addresses with a meaning in this machine.
    #[must_use]
    pub fn ranges(&self) -> &'a [MachineRange] {
        self.ranges
    }

    /// Base address registers of the PCI functions.
    #[must_use]
    pub fn bars(&self) -> &'a [MachineBar] {
        self.bars
    }

    /// IOMMUs.
    #[must_use]
    pub fn iommus(&self) -> &'a [IommuUnit] {
        self.iommus
    }

    /// Who sends requests through the IOMMUs.
    #[must_use]
    pub fn iommu_sources(&self) -> &'a [IommuSource] {
        self.iommu_sources
    }

    /// Memory of a strict root cell.
    #[must_use]
    pub fn root_memory(&self) -> &'a [MemoryRegion] {
        self.root_memory
    }

    /// Registers of a strict root cell.
    #[must_use]
    pub fn root_msrs(&self) -> &'a [MsrAccess] {
        self.root_msrs
    }

    /// CPUs of the machine, by Linux' numbers.
    #[must_use]
    pub fn machine_cpus(&self) -> &'a [MachineCpu] {
        self.cpus
    }

    /// Ports of a strict root cell.
    #[must_use]
    pub fn root_ports(&self) -> &'a [PortRange] {
        self.root_ports
    }

    /// PCI functions of the machine.
    #[must_use]
    pub fn devices(&self) -> &'a [MachineDevice] {
        self.devices
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
        // Checked when the view was made.
        name_text(&self.header.name).unwrap_or_default()
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
    memory: &'a [MemoryRegion],
    msrs: &'a [MsrAccess],
    interrupts: &'a [Interrupt],
    devices: &'a [AssignedDevice],
    ports: &'a [PortRange],
}

impl<'a> CellView<'a> {
    /// Reads the configuration of a cell.
    ///
    /// # Errors
    /// Why these bytes are not one.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Refusal> {
        let invalid = Refusal::new(Reason::ConfigurationInvalid, bytes.len() as u64);
        let flags = check_preamble(bytes, CELL_SIGNATURE, MAX_CELL_SIZE)?;
        let (header, rest) = CellHeader::ref_from_prefix(bytes).map_err(|_| invalid)?;
        let mut arrays = Arrays { rest, invalid };
        check_name(&header.name)?;
        let view = Self {
            header,
            memory: arrays.take(header.memory_region_count, MAX_MEMORY_REGIONS)?,
            msrs: arrays.take(header.msr_count, MAX_MSRS)?,
            interrupts: arrays.take(header.interrupt_count, MAX_INTERRUPTS)?,
            devices: arrays.take(header.device_count, MAX_DEVICES)?,
            ports: arrays.take(header.port_range_count, MAX_PORT_RANGES)?,
        };
        arrays.end()?;
        if flags & !CELL_ALL_FLAGS != 0
            || header.reserved != 0
            || header.shutdown_milliseconds > MAX_MILLISECONDS
            || header.violation > VIOLATION_PARK_CELL
            || view
                .devices
                .iter()
                .any(|device| device.flags & !DEVICE_ALL_FLAGS != 0)
            || !view.watchdog_is_sound()
        {
            return Err(invalid);
        }
        check_regions(view.memory)?;
        check_msrs(view.msrs)?;
        Ok(view)
    }

    /// The heartbeat is in the communication region.
    fn watchdog_is_sound(&self) -> bool {
        let policy = self.header.watchdog_policy;
        match self.header.watchdog_milliseconds {
            0 => policy == WATCHDOG_RECORD,
            milliseconds => {
                let mut regions = self.memory.iter();
                milliseconds <= MAX_MILLISECONDS
                    && policy <= WATCHDOG_HALT
                    && regions.any(|region| region.flags & MEMORY_COMMUNICATION != 0)
            }
        }
    }

    /// All fields but the arrays.
    #[must_use]
    pub fn header(&self) -> &'a CellHeader {
        self.header
    }

    /// Name of the cell.
    #[must_use]
    pub fn name(&self) -> &'a str {
        // Checked when the view was made.
        name_text(&self.header.name).unwrap_or_default()
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

    /// The registers that it gets besides those that all cells have.
    #[must_use]
    pub fn msrs(&self) -> &'a [MsrAccess] {
        self.msrs
    }

    /// The interrupt lines.
    #[must_use]
    pub fn interrupts(&self) -> &'a [Interrupt] {
        self.interrupts
    }

    /// The PCI functions.
    #[must_use]
    pub fn devices(&self) -> &'a [AssignedDevice] {
        self.devices
    }

    /// Whether one CPU's violation parks all of the cell's CPUs.
    #[must_use]
    pub fn parks_whole(&self) -> bool {
        self.header.violation == VIOLATION_PARK_CELL
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

    /// Whether its PCI functions may be bus masters with no IOMMU in front of them.
    #[must_use]
    pub fn accepts_unprotected_dma(&self) -> bool {
        self.header.preamble.flags & CELL_UNPROTECTED_DMA != 0
    }

    /// Whether ports that are not the cell's read as ones instead of stopping it.
    #[must_use]
    pub fn ignores_unassigned_ports(&self) -> bool {
        self.header.preamble.flags & CELL_IGNORE_UNASSIGNED_PORTS != 0
    }
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
