//! The communication region: the page through which the hypervisor and one cell talk, as Jailhouse defines it.
//!
//! The cell may write to it at any time, so the hypervisor treats what it reads there as an allegation.
//!
//! The rest of the page is zero when the cell starts. Jailhouse gives it no meaning; Gaol has one word there, at
//! [`HEARTBEAT_OFFSET`], and the addresses that the cell's PCI functions find its memory at, from [`DMA_OFFSET`] on. Cells
//! that do not know of these leave them alone.

use open_enum::open_enum;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Revision of the region's layout.
pub const REVISION: u16 = 2;
/// [`CommunicationRegion::signature`].
pub const SIGNATURE: [u8; 6] = *b"JHCOMM";

/// Offset of the heartbeat from the start of the page: a word of 8 bytes, 0 when the cell starts. A cell with a watchdog
/// ([`crate::config::CellHeader::watchdog_milliseconds`]) changes it at least once in each timeout, to any other value.
pub const HEARTBEAT_OFFSET: usize = 0x800;

/// Offset of the [`DmaHeader`] from the start of the page; its [`DmaRange`]s follow.
pub const DMA_OFFSET: usize = 0x900;

/// The functions of the cell are in front of no IOMMU: they use the machine's physical addresses.
pub const DMA_UNPROTECTED: u32 = 1;

/// What PCI functions of the cell may do by DMA.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct DmaHeader {
    /// [`DmaRange`]s that follow, one for each piece of a region with [`crate::config::MEMORY_DMA`]; 0 when no function of the
    /// cell may be bus master.
    pub count: u32,
    /// `DMA_…`.
    pub flags: u32,
}

/// A piece of the cell's memory as its PCI functions find it.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct DmaRange {
    /// Guest-physical address.
    pub guest: u64,
    /// The address that a function uses.
    pub device: u64,
    /// Bytes.
    pub size: u64,
}

/// State of a cell, in [`CommunicationRegion::cell_state`] and from hypercall 6.
#[open_enum]
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub enum CellState {
    /// Runs and may be shut down.
    Running = 0,
    /// Runs and wants the set of cells to stay as it is.
    RunningLocked = 1,
    /// Does not run.
    ShutDown = 2,
    /// Every CPU of it is parked after a violation, or it did not answer in time.
    Failed = 3,
    /// It found a revision of the communication region that it does not know.
    FailedRevision = 4,
}

/// Message to a cell, in [`CommunicationRegion::msg_to_cell`].
#[open_enum]
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub enum Message {
    /// None.
    None = 0,
    /// The cell shall end; it approves or denies.
    ShutdownRequest = 1,
    /// The set of cells has changed.
    ReconfigCompleted = 2,
}

/// Answer of a cell, in [`CommunicationRegion::reply_from_cell`].
#[open_enum]
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub enum Reply {
    /// None so far.
    None = 0,
    /// The message is not known to the cell.
    Unknown = 1,
    /// Denied.
    RequestDenied = 2,
    /// Approved.
    RequestApproved = 3,
    /// Received.
    Received = 4,
}

/// [`CommunicationRegion::flags`]: hypercall 8 is permitted to this cell.
pub const FLAG_DEBUG_PUTC_PERMITTED: u32 = 1;
/// [`CommunicationRegion::flags`]: the cell shall print by hypercall 8.
pub const FLAG_DEBUG_PUTC_ACTIVE: u32 = 2;

/// The cell's own console, as Jailhouse describes it. Gaol gives cells hypercall 8 instead: all zero.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Console {
    /// Address of the registers.
    pub address: u64,
    /// Bytes of the registers.
    pub size: u32,
    /// Kind of device.
    pub kind: u16,
    /// How to access it.
    pub flags: u16,
    /// Baud rate divisor.
    pub divider: u32,
    /// Clock gate.
    pub gate_number: u32,
    /// Clock register.
    pub clock_register: u64,
}

/// The region on x86.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CommunicationRegion {
    /// [`SIGNATURE`].
    pub signature: [u8; 6],
    /// [`REVISION`].
    pub revision: u16,
    /// Written by the cell ([`CellState`]).
    pub cell_state: u32,
    /// Written by the hypervisor ([`Message`]).
    pub msg_to_cell: u32,
    /// Written by the cell ([`Reply`]).
    pub reply_from_cell: u32,
    /// `FLAG_…`.
    pub flags: u32,
    /// The cell's console device.
    pub console: Console,
    /// Physical base of the memory-mapped PCI configuration space, 0 where there is none.
    pub pci_mmconfig_base: u64,
    /// I/O port of the ACPI power management timer.
    pub pm_timer_address: u16,
    /// CPUs of the cell.
    pub num_cpus: u16,
    /// Frequency of the time stamp counter in kHz.
    pub tsc_khz: u32,
    /// Frequency of the APIC timer before its divider in kHz.
    pub apic_khz: u32,
    /// Keeps the layout free of padding.
    pub reserved: u32,
}

// All parts fit the page and do not touch.
const _: () = {
    let ranges = crate::config::MAX_MEMORY_REGIONS * size_of::<DmaRange>();
    assert!(size_of::<CommunicationRegion>() <= HEARTBEAT_OFFSET);
    assert!(HEARTBEAT_OFFSET + 8 <= DMA_OFFSET);
    assert!(DMA_OFFSET + size_of::<DmaHeader>() + ranges <= crate::PAGE_SIZE as usize);
};
