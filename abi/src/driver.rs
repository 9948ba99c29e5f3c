//! The ioctls of `/dev/gaol` and its `mmap`.
//!
//! Every request carries [`crate::ABI_REVISION`] in `revision`; the module refuses another with `-EINVAL`. When an ioctl
//! fails, `outcome` says why; the structure is copied back in every case. Names are zero-padded.
//!
//! `mmap` of `/dev/gaol` maps memory of cells that is shared with the root ([`crate::config::MEMORY_ROOT_SHARED`]):
//! the offset is its host-physical address, as sysfs tells it.
//!
//! Memory that a request takes from Linux may be in memory blocks that were taken offline for it: [`MemoryOfferRequest`].
//! What was offered through an open file is for requests through the same file, as long as it is open.
//!
//! `read` returns the hypervisor's console from the start of the ring; it waits for more unless O_NONBLOCK is set, and
//! after `disable` (or a failed `enable`) still tells the last text.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::NAME_LENGTH;
use crate::outcome::Outcome;

/// Type of all ioctls: `_IOWR(IOCTL_TYPE, number, structure)`.
pub const IOCTL_TYPE: u8 = b'G';
/// [`EnableRequest`].
pub const IOCTL_ENABLE: u8 = 0;
/// [`CellCommand`] without a cell.
pub const IOCTL_DISABLE: u8 = 1;
/// [`CellCreateRequest`].
pub const IOCTL_CELL_CREATE: u8 = 2;
/// [`CellLoadRequest`].
pub const IOCTL_CELL_LOAD: u8 = 3;
/// [`CellCommand`].
pub const IOCTL_CELL_START: u8 = 4;
/// [`CellCommand`].
pub const IOCTL_CELL_SHUTDOWN: u8 = 5;
/// [`CellCommand`].
pub const IOCTL_CELL_DESTROY: u8 = 6;
/// [`MemoryOfferRequest`].
pub const IOCTL_MEMORY_OFFER: u8 = 7;

/// [`CellCommand::flags`]: do not ask the cell.
pub const FLAG_FORCE: u32 = 1;
/// [`CellCreateRequest::flags`]: a region that Linux has no contiguous memory for may be made of several pieces.
pub const FLAG_PIECES: u32 = 1;
/// [`CellCreateRequest::flags`]: do not mind other cells that run locked.
pub const FLAG_CREATE_FORCE: u32 = 2;

/// Enables the hypervisor.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct EnableRequest {
    /// [`crate::ABI_REVISION`].
    pub revision: u32,
    /// Fault injection: CPU, see [`crate::handover::LaunchParameters::fault_cpu`].
    pub fault_cpu: u32,
    /// Fault injection: step; 0 for none.
    pub fault_step: u32,
    /// Zero.
    pub flags: u32,
    /// User address of the image.
    pub image: u64,
    /// Bytes of the image.
    pub image_size: u64,
    /// User address of the system configuration.
    pub config: u64,
    /// Bytes of the system configuration.
    pub config_size: u64,
    /// Out: where the hypervisor's memory is.
    pub region_physical: u64,
    /// Out: its size in bytes.
    pub region_size: u64,
    /// Out: cycles from the first CPU's entry into the hypervisor to the return of the last.
    pub cycles: u64,
    /// Out: why not.
    pub outcome: Outcome,
}

/// Names a cell.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CellReference {
    /// Id of the cell, or -1: by name.
    pub id: i32,
    /// Zero.
    pub reserved: u32,
    /// Name of the cell.
    pub name: [u8; NAME_LENGTH],
}

/// Creates a cell.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CellCreateRequest {
    /// [`crate::ABI_REVISION`].
    pub revision: u32,
    /// Out: id of the cell.
    pub id: i32,
    /// [`FLAG_PIECES`], [`FLAG_CREATE_FORCE`].
    pub flags: u32,
    /// Out, when there was no memory for a region: its index.
    pub region: u32,
    /// User address of the cell configuration.
    pub config: u64,
    /// Bytes of the cell configuration.
    pub config_size: u64,
    /// Out: cycles spent in the hypervisor, scrubbing apart.
    pub cycles: u64,
    /// Out: cycles spent on scrubbing.
    pub scrub_cycles: u64,
    /// Out: why not.
    pub outcome: Outcome,
}

/// A piece of memory to load.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct LoadImage {
    /// User address.
    pub source: u64,
    /// Bytes.
    pub size: u64,
    /// Guest-physical address.
    pub target: u64,
}

/// Most bytes that a cell with the watchdog policy [`crate::config::WATCHDOG_RESTART`] is loaded with: the module keeps them.
pub const MAX_KEPT_BYTES: u64 = 64 << 20;

/// Most images of one [`CellLoadRequest`].
pub const MAX_LOAD_IMAGES: u32 = 16;

/// Stops a cell and loads images into it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CellLoadRequest {
    /// [`crate::ABI_REVISION`].
    pub revision: u32,
    /// Number of images.
    pub image_count: u32,
    /// The cell.
    pub cell: CellReference,
    /// User address of [`LoadImage`]s.
    pub images: u64,
    /// Out: cycles spent in the hypervisor.
    pub cycles: u64,
    /// Out: why not.
    pub outcome: Outcome,
}

/// Most blocks that are offered at a time, and that the module knows of.
pub const MAX_MEMORY_BLOCKS: u32 = 4096;

/// Announces memory blocks of Linux which the caller is about to take offline for the next request through the same
/// file. From then on the module knows whose they are, whatever becomes of the caller; those that are still online are
/// forgotten when the file is closed. `memory_blocks` in sysfs tells which of them are to be brought online again.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MemoryOfferRequest {
    /// [`crate::ABI_REVISION`].
    pub revision: u32,
    /// Number of blocks.
    pub block_count: u32,
    /// User address of the blocks' physical addresses, 8 bytes each.
    pub blocks: u64,
    /// Bytes of each block: Linux' `block_size_bytes`.
    pub block_size: u64,
    /// Out: why not.
    pub outcome: Outcome,
}

/// Starts, shuts down or destroys a cell; or disables the hypervisor.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CellCommand {
    /// [`crate::ABI_REVISION`].
    pub revision: u32,
    /// [`FLAG_FORCE`].
    pub flags: u32,
    /// The cell.
    pub cell: CellReference,
    /// Out: cycles spent in the hypervisor, scrubbing apart.
    pub cycles: u64,
    /// Out: cycles spent on scrubbing.
    pub scrub_cycles: u64,
    /// Out: why not.
    pub outcome: Outcome,
}
