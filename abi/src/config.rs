//! The binary configuration: what the compiler writes, the module passes on and the hypervisor checks again.
//!
//! A file is one header ([`SystemHeader`] or [`CellHeader`]) followed by its arrays, without gaps, in the order that the
//! header's documentation gives, with as many elements as its counts say. `total_size` is the length of the file,
//! `checksum` covers all of it. Addresses and sizes are multiples of 4096 bytes, but for those of a region with access
//! widths ([`MEMORY_WIDTHS`]).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::NAME_LENGTH;

/// The signature at the start of a system configuration ([`Preamble::signature`]).
pub const SYSTEM_SIGNATURE: [u8; 8] = *b"GAOLSYS\0";
/// The signature at the start of a cell configuration ([`Preamble::signature`]).
pub const CELL_SIGNATURE: [u8; 8] = *b"GAOLCEL\0";
/// Largest size of a system configuration in bytes.
pub const MAX_SIZE: u64 = 64 << 10;
/// Largest size of a cell configuration in bytes.
pub const MAX_CELL_SIZE: u64 = 16 << 10;
/// Most memory regions of a cell, and of a strict root cell.
pub const MAX_MEMORY_REGIONS: usize = 64;
/// Most port ranges of a cell, and of a strict root cell.
pub const MAX_PORT_RANGES: usize = 64;
/// Most MSRs that a cell gets besides those that all cells have.
pub const MAX_MSRS: usize = 32;
/// Most MSRs that a strict root cell may write to besides those that all cells have.
pub const MAX_ROOT_MSRS: usize = 128;
/// Most interrupts of a cell.
pub const MAX_INTERRUPTS: usize = 64;
/// Most PCI functions of a cell.
pub const MAX_DEVICES: usize = 32;
/// Interrupt vectors that a PCI function gets at the most when the configuration does not say how many.
pub const DEFAULT_DEVICE_VECTORS: u16 = 32;
/// Most ranges of addresses in the description of a machine.
pub const MAX_MACHINE_RANGES: usize = 256;
/// Most PCI functions in the description of a machine.
pub const MAX_MACHINE_DEVICES: usize = 768;
/// Most base address registers in the description of a machine.
pub const MAX_MACHINE_BARS: usize = 1024;
/// Most IOMMUs.
pub const MAX_IOMMUS: usize = 32;
/// Most devices that IOMMUs and reserved memory are told of.
pub const MAX_IOMMU_SOURCES: usize = 1024;
/// Words of the CPU bitmap.
pub const CPU_WORDS: usize = crate::MAX_CPUS / 64;

/// The part that all configurations begin with.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Preamble {
    /// Kind of the file.
    pub signature: [u8; 8],
    /// [`crate::ABI_REVISION`].
    pub revision: u32,
    /// Length of the file in bytes.
    pub total_size: u32,
    /// [`crate::checksum::crc32_with_hole`] of the file, with the hole here.
    pub checksum: u32,
    /// `SYSTEM_…` or `CELL_…` flags.
    pub flags: u32,
}

/// Offset of [`Preamble::checksum`] in the file.
pub const CHECKSUM_OFFSET: usize = core::mem::offset_of!(Preamble, checksum);

/// [`SystemHeader::console_kind`]: no device, the ring only.
pub const CONSOLE_NONE: u32 = 0;
/// [`SystemHeader::console_kind`]: a 16550 at I/O ports.
pub const CONSOLE_UART_PORT: u32 = 1;

/// [`SystemHeader::root_failure`]: as long as a cell runs, a CPU of the root cell that tries to reset the machine is
/// parked, and the cells run on.
pub const ROOT_FAILURE_CONTINUE: u32 = 0;
/// [`SystemHeader::root_failure`]: the machine resets, as without a hypervisor.
pub const ROOT_FAILURE_RESET: u32 = 1;

/// The root cell gets only what the file names for it, instead of what is left over.
pub const SYSTEM_STRICT_ROOT: u32 = 1;
/// The file describes the machine: CPUs, memory and PCI functions that it does not name don't exist.
pub const SYSTEM_DESCRIBES_MACHINE: u32 = 2;

/// The configuration of the hypervisor and the root cell. The arrays, in this order: [`MachineRange`]s, [`MachineBar`]s,
/// [`IommuUnit`]s, [`IommuSource`]s, the root's [`MemoryRegion`]s and [`MsrAccess`]es, [`MachineCpu`]s, the root's [`PortRange`]s, [`MachineDevice`]s.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SystemHeader {
    /// Signature [`SYSTEM_SIGNATURE`].
    pub preamble: Preamble,
    /// Name of the root cell.
    pub name: [u8; NAME_LENGTH],
    /// Host-physical address of the hypervisor's memory (reserved with `memmap=`), 0: the module takes it from Linux.
    /// 2 MiB aligned. The module writes the place here before the hypervisor sees it.
    pub hypervisor_physical: u64,
    /// Bytes of the hypervisor's memory; a multiple of 2 MiB.
    pub hypervisor_size: u64,
    /// `CONSOLE_…`.
    pub console_kind: u32,
    /// Baud rate divisor of the console's UART.
    pub console_divisor: u32,
    /// First I/O port of the console's UART.
    pub console_address: u64,
    /// Longest time that CPUs wait for each other at enable and disable, in milliseconds; 0: the default of 10 s.
    pub deadline_milliseconds: u32,
    /// Ways of the level-3 cache that can be allocated (CPUID leaf 0x10); 0 where there is no such allocation.
    pub l3_ways: u16,
    /// The same of the level-2 cache.
    pub l2_ways: u16,
    /// [`MachineRange`]s.
    pub range_count: u32,
    /// [`MachineBar`]s.
    pub bar_count: u32,
    /// [`MemoryRegion`]s of the root cell; its guest-physical addresses are host-physical ones.
    pub root_memory_count: u32,
    /// [`MsrAccess`]es of the root cell.
    pub root_msr_count: u32,
    /// [`MachineCpu`]s, by Linux' number of the CPU.
    pub cpu_count: u32,
    /// [`PortRange`]s of the root cell.
    pub root_port_count: u32,
    /// [`MachineDevice`]s, in ascending order of segment and function.
    pub device_count: u32,
    /// `ROOT_FAILURE_…`: what becomes of the machine when Linux fails.
    pub root_failure: u32,
    /// [`IommuUnit`]s.
    pub iommu_count: u32,
    /// [`IommuSource`]s.
    pub iommu_source_count: u32,
}

/// [`MachineRange::kind`]: RAM; `number` is the NUMA node.
pub const RANGE_RAM: u16 = 1;
/// [`MachineRange::kind`]: registers of an IOAPIC; `number` is its first global system interrupt, `extent` the number of
/// its pins.
pub const RANGE_IO_APIC: u16 = 2;
/// [`MachineRange::kind`]: PCI configuration space (ECAM); `number` is the segment, `extent` the last bus << 8 | the first.
pub const RANGE_PCI_CONFIGURATION: u16 = 3;
/// [`MachineRange::kind`]: registers of an IOMMU; `number` counts them.
pub const RANGE_IOMMU: u16 = 4;
/// [`MachineRange::kind`]: memory that firmware or a device reaches by DMA at any time (RMRR); `number` counts them.
pub const RANGE_RESERVED_DMA: u16 = 5;

/// A range of host-physical addresses that has a meaning in this machine.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MachineRange {
    /// First address.
    pub physical: u64,
    /// Bytes.
    pub size: u64,
    /// `RANGE_…`.
    pub kind: u16,
    /// By kind.
    pub extent: u16,
    /// By kind.
    pub number: u32,
}

/// System management interrupts were seen on the CPU when it was described.
pub const MACHINE_CPU_SMIS: u16 = 1;

/// A CPU of the machine. What two CPUs share bears the same number in both.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MachineCpu {
    /// APIC id.
    pub apic_id: u32,
    /// Package.
    pub package: u16,
    /// Core, numbered across all packages.
    pub core: u16,
    /// Level-2 cache.
    pub l2: u16,
    /// Level-3 cache.
    pub l3: u16,
    /// NUMA node.
    pub node: u16,
    /// `MACHINE_CPU_…`.
    pub flags: u16,
}

/// The function is a bridge: the root's alone.
pub const MACHINE_DEVICE_BRIDGE: u16 = 1;
/// The function is behind a bridge to conventional PCI, which may speak in its place: an IOMMU can't tell it from others.
pub const MACHINE_DEVICE_SHARES_REQUESTER: u16 = 2;
/// Flags of functions that exist.
pub const MACHINE_DEVICE_ALL_FLAGS: u16 = MACHINE_DEVICE_BRIDGE | MACHINE_DEVICE_SHARES_REQUESTER;

/// A PCI function of the machine.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MachineDevice {
    /// PCI segment group.
    pub segment: u16,
    /// Bus << 8 | device << 3 | function.
    pub function: u16,
    /// Functions with the same group can't be kept from reaching each other: they belong to one cell.
    pub group: u16,
    /// `MACHINE_DEVICE_…`.
    pub flags: u16,
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Interrupt vectors that its MSI capability can have; 0 without one.
    pub msi_vectors: u16,
    /// Entries of its MSI-X table; 0 without one.
    pub msix_vectors: u16,
}

/// The base address register is one of I/O ports.
pub const MACHINE_BAR_PORTS: u8 = 1;
/// The base address register is 64 bits wide, and takes two places.
pub const MACHINE_BAR_64: u8 = 2;
/// The memory is prefetchable.
pub const MACHINE_BAR_PREFETCHABLE: u8 = 4;

/// A base address register of a PCI function.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MachineBar {
    /// Address that it was found with; 0 when it had none.
    pub address: u64,
    /// Bytes, or ports.
    pub size: u64,
    /// Index of the [`MachineDevice`].
    pub device: u16,
    /// Number of the register, 0 to 5.
    pub number: u8,
    /// `MACHINE_BAR_…`.
    pub flags: u8,
    /// Zero.
    pub reserved: u32,
}

/// [`IommuUnit::flags`]: the unit has all functions of its segment that no other one has.
pub const IOMMU_INCLUDES_ALL: u16 = 1;

/// An IOMMU of Intel's (VT-d), as the firmware's table tells of it. Its registers are a [`RANGE_IOMMU`] as well.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct IommuUnit {
    /// Address of its registers, page-aligned.
    pub registers: u64,
    /// Their bytes, whole pages.
    pub size: u32,
    /// PCI segment group of the functions behind it.
    pub segment: u16,
    /// `IOMMU_…`.
    pub flags: u16,
}

/// [`IommuSource::kind`]: a PCI function behind the unit.
pub const IOMMU_SOURCE_FUNCTION: u16 = 1;
/// [`IommuSource::kind`]: an IOAPIC whose interrupts the unit remaps; `address` is that of its registers.
pub const IOMMU_SOURCE_IO_APIC: u16 = 2;
/// [`IommuSource::kind`]: an HPET whose interrupts the unit remaps.
pub const IOMMU_SOURCE_HPET: u16 = 3;
/// [`IommuSource::kind`]: a PCI function that uses reserved memory, whoever has it; `address` is where that begins, and
/// `unit` 0.
pub const IOMMU_SOURCE_RESERVED: u16 = 4;

/// Who sends requests through an IOMMU.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct IommuSource {
    /// By kind, else 0.
    pub address: u64,
    /// Index of the [`IommuUnit`].
    pub unit: u16,
    /// `IOMMU_SOURCE_…`.
    pub kind: u16,
    /// PCI segment group.
    pub segment: u16,
    /// What it calls itself: bus << 8 | device << 3 | function.
    pub source: u16,
}

/// The cell may print with hypercall 8, and its communication region tells it to.
pub const CELL_CONSOLE: u32 = 1;
/// The cell does not read its communication region: it is never asked before it is stopped.
pub const CELL_PASSIVE: u32 = 2;
/// Accesses to ports that are not the cell's read as ones and write nothing, instead of stopping the cell.
pub const CELL_IGNORE_UNASSIGNED_PORTS: u32 = 4;
/// PCI functions of the cell may start accesses although no IOMMU keeps them in the cell's memory.
pub const CELL_UNPROTECTED_DMA: u32 = 8;

/// [`CellHeader::violation`]: the CPU that stepped out of line is parked, the cell's other CPUs run on.
pub const VIOLATION_PARK_CPU: u32 = 0;
/// [`CellHeader::violation`]: all CPUs of the cell are parked.
pub const VIOLATION_PARK_CELL: u32 = 1;

/// [`CellHeader::watchdog_policy`]: it is kept on record, and the cell runs on.
pub const WATCHDOG_RECORD: u32 = 0;
/// [`CellHeader::watchdog_policy`]: the cell is stopped, loaded again with what it was loaded with, and started.
pub const WATCHDOG_RESTART: u32 = 1;
/// [`CellHeader::watchdog_policy`]: all CPUs of the cell are parked.
pub const WATCHDOG_HALT: u32 = 2;

/// The configuration of a cell. The arrays, in this order: [`MemoryRegion`]s, [`MsrAccess`]es, [`Interrupt`]s,
/// [`AssignedDevice`]s, [`PortRange`]s.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CellHeader {
    /// Signature [`CELL_SIGNATURE`].
    pub preamble: Preamble,
    /// Name of the cell.
    pub name: [u8; NAME_LENGTH],
    /// The cell's CPUs by Linux' numbers: bit n of word n / 64.
    pub cpus: [u64; CPU_WORDS],
    /// Guest-physical address at which every CPU of the cell starts, in real mode; below 4 GiB.
    pub reset_address: u64,
    /// Time that the cell has to answer a shutdown request, in milliseconds; 0: the default of 1 s.
    pub shutdown_milliseconds: u32,
    /// `VIOLATION_…`.
    pub violation: u32,
    /// [`MemoryRegion`]s.
    pub memory_region_count: u32,
    /// [`MsrAccess`]es.
    pub msr_count: u32,
    /// [`Interrupt`]s.
    pub interrupt_count: u32,
    /// [`AssignedDevice`]s.
    pub device_count: u32,
    /// [`PortRange`]s.
    pub port_range_count: u32,
    /// Ways of the level-3 cache that are the cell's alone, bit n for way n; 0: the cell shares the root's.
    pub l3_ways: u32,
    /// The same of the level-2 cache.
    pub l2_ways: u32,
    /// Time in which the cell changes its heartbeat ([`crate::communication::HEARTBEAT_OFFSET`]) at least once, in
    /// milliseconds; 0: the cell has no watchdog.
    pub watchdog_milliseconds: u32,
    /// `WATCHDOG_…`: what happens when it does not; 0 without a watchdog.
    pub watchdog_policy: u32,
    /// Zero.
    pub reserved: u32,
}

/// The cell may read the region.
pub const MEMORY_READ: u64 = 1;
/// The cell may write to the region.
pub const MEMORY_WRITE: u64 = 2;
/// The cell may execute from the region.
pub const MEMORY_EXECUTE: u64 = 4;
/// Devices of the cell may access the region.
pub const MEMORY_DMA: u64 = 8;
/// The region is device memory (uncacheable), not RAM; it is neither scrubbed nor taken from Linux' allocator.
pub const MEMORY_DEVICE: u64 = 16;
/// The communication region: one page that the hypervisor provides.
pub const MEMORY_COMMUNICATION: u64 = 32;
/// The root cell sees the region while the cell is loaded.
pub const MEMORY_LOADABLE: u64 = 64;
/// The root cell keeps the region, too; other cells may name it as well.
pub const MEMORY_ROOT_SHARED: u64 = 128;
/// All cells that have a region of this name and size with this flag have the same memory there.
pub const MEMORY_SHARED: u64 = 256;
/// The record goes on where the one before it ends, in guest-physical memory: both are pieces of one region, and have the
/// same name and otherwise the same flags.
pub const MEMORY_CONTINUED: u64 = 512;
/// Where the memory type is in the flags; 0: write-back for RAM, uncacheable for devices.
pub const MEMORY_TYPE_MASK: u64 = 7 << 12;
/// Memory type: uncacheable.
pub const MEMORY_TYPE_UNCACHEABLE: u64 = 1 << 12;
/// Memory type: write-combining.
pub const MEMORY_TYPE_WRITE_COMBINING: u64 = 2 << 12;
/// Memory type: write-through.
pub const MEMORY_TYPE_WRITE_THROUGH: u64 = 3 << 12;
/// Memory type: write-protected.
pub const MEMORY_TYPE_WRITE_PROTECTED: u64 = 4 << 12;
/// Memory type: write-back.
pub const MEMORY_TYPE_WRITE_BACK: u64 = 5 << 12;
/// The hypervisor lets accesses of 8 bits through to the region, a part of a page of device registers.
pub const MEMORY_WIDTH_8: u64 = 1 << 16;
/// The same of 16 bits.
pub const MEMORY_WIDTH_16: u64 = 1 << 17;
/// The same of 32 bits.
pub const MEMORY_WIDTH_32: u64 = 1 << 18;
/// The same of 64 bits.
pub const MEMORY_WIDTH_64: u64 = 1 << 19;
/// All access widths. A region with none has whole pages, and the cell accesses it directly.
pub const MEMORY_WIDTHS: u64 = 15 << 16;
/// All flags of [`MemoryRegion::flags`].
pub const MEMORY_ALL_FLAGS: u64 = 1023 | MEMORY_TYPE_MASK | MEMORY_WIDTHS;

/// A piece of a cell's guest-physical address space.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MemoryRegion {
    /// Name of the region.
    pub name: [u8; NAME_LENGTH],
    /// Host-physical address; 0 for RAM that the module takes from Linux at creation, and writes here. Of the
    /// communication region: 0.
    pub physical: u64,
    /// Guest-physical address.
    pub guest: u64,
    /// Bytes.
    pub size: u64,
    /// `MEMORY_…`.
    pub flags: u64,
}

/// I/O ports that the cell owns.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PortRange {
    /// First port.
    pub first: u16,
    /// Number of ports, at least 1.
    pub count: u16,
}

/// The cell may read the register.
pub const MSR_READ: u32 = 1;
/// The cell may write to the register, as far as the write mask goes.
pub const MSR_WRITE: u32 = 2;
/// Each logical processor has a register of its own, so that several cells may write to theirs.
pub const MSR_PER_CPU: u32 = 4;
/// All flags of [`MsrAccess::flags`].
pub const MSR_ALL_FLAGS: u32 = 7;

/// A model-specific register that a cell gets besides those that all cells have.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MsrAccess {
    /// Number of the register.
    pub msr: u32,
    /// `MSR_…`.
    pub flags: u32,
    /// Bits that a write may change; 0 without [`MSR_WRITE`].
    pub write_mask: u64,
}

/// An interrupt line that the cell owns.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Interrupt {
    /// Global system interrupt: the pins of all IOAPICs, counted on.
    pub number: u32,
}

/// The function never starts accesses (it is no bus master): it neither does DMA nor sends interrupt messages.
pub const DEVICE_NO_MASTER: u16 = 1;
/// All flags of [`AssignedDevice::flags`].
pub const DEVICE_ALL_FLAGS: u16 = 1;

/// A PCI function that the cell owns.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct AssignedDevice {
    /// PCI segment group.
    pub segment: u16,
    /// Bus << 8 | device << 3 | function.
    pub function: u16,
    /// Interrupt vectors (MSI or MSI-X) that it may use; 0: as many as it has, up to [`DEFAULT_DEVICE_VECTORS`].
    pub vectors: u16,
    /// `DEVICE_…`.
    pub flags: u16,
}
