//! The binary configuration: what the compiler writes, the module passes on and the hypervisor checks again.
//!
//! A file is one header ([`SystemHeader`] or [`CellHeader`]) followed by its arrays, without gaps, in the order of the
//! header's counts. `total_size` is the length of the file, `checksum` covers all of it. Addresses and sizes are
//! multiples of 4096 bytes.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::NAME_LENGTH;

/// The signature at the start of a system configuration ([`Preamble::signature`]).
pub const SYSTEM_SIGNATURE: [u8; 8] = *b"GAOLSYS\0";
/// The signature at the start of a cell configuration ([`Preamble::signature`]).
pub const CELL_SIGNATURE: [u8; 8] = *b"GAOLCEL\0";
/// Largest size of a configuration file in bytes.
pub const MAX_SIZE: u64 = 16 << 10;
/// Most memory regions of a cell.
pub const MAX_MEMORY_REGIONS: usize = 32;
/// Most port ranges of a cell.
pub const MAX_PORT_RANGES: usize = 64;
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

/// The configuration of the hypervisor and the root cell. No arrays follow.
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
    /// Zero.
    pub reserved: u32,
}

/// The cell may print with hypercall 8, and its communication region tells it to.
pub const CELL_CONSOLE: u32 = 1;
/// The cell does not read its communication region: it is never asked before it is stopped.
pub const CELL_PASSIVE: u32 = 2;
/// Accesses to ports that are not the cell's read as ones and write nothing, instead of stopping the cell.
pub const CELL_IGNORE_UNASSIGNED_PORTS: u32 = 4;

/// The configuration of a cell, followed by [`CellHeader::memory_region_count`] [`MemoryRegion`]s and
/// [`CellHeader::port_range_count`] [`PortRange`]s.
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
    /// Entries of the first array.
    pub memory_region_count: u32,
    /// Entries of the second array.
    pub port_range_count: u32,
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
/// All flags of [`MemoryRegion::flags`].
pub const MEMORY_ALL_FLAGS: u64 = 255;

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
