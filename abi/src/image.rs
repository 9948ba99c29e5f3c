//! The header at the start of `gaol-vmx.bin` and `gaol-svm.bin`.
//!
//! An image is flat: file offset = offset from [`LINK_BASE`]. Sections follow each other page-aligned as text,
//! read-only data, data; what is zero at the start (`memory_size - file_size`) is not stored.

use open_enum::open_enum;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The virtual address that images are linked at, and where the whole memory of the hypervisor appears in its own page
/// tables: the top 2 GiB, in the slot of Linux' own image, which module text never overlaps.
pub const LINK_BASE: u64 = 0xffff_ffff_8000_0000;

/// [`ImageHeader::signature`].
pub const SIGNATURE: [u8; 8] = *b"GAOLIMG\0";

/// The virtualization extension that an image was built for.
#[open_enum]
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub enum Vendor {
    /// Intel VMX.
    Vmx = 1,
    /// AMD SVM.
    Svm = 2,
}

/// What the module must know to place and enter an image. All offsets are from the start of the image.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ImageHeader {
    /// [`SIGNATURE`].
    pub signature: [u8; 8],
    /// [`crate::ABI_REVISION`] at the time of the build.
    pub abi_revision: u32,
    /// The extension that the image needs.
    pub vendor: Vendor,
    /// [`crate::checksum::crc32_with_hole`] of the whole file, with the hole at this field. Filled in when the ELF file
    /// is flattened.
    pub checksum: u32,
    /// Not used; zero.
    pub reserved: u32,
    /// Bytes stored in the file.
    pub file_size: u64,
    /// Bytes that the image takes in memory; page-aligned.
    pub memory_size: u64,
    /// Offset of the entry point that the module's stub jumps to.
    pub entry: u64,
    /// Offset of the executable pages.
    pub text: u64,
    /// Bytes of the executable pages; page-aligned.
    pub text_size: u64,
    /// Offset of the read-only pages.
    pub rodata: u64,
    /// Bytes of the read-only pages; page-aligned.
    pub rodata_size: u64,
    /// Offset of the writable pages, the zeroed ones included.
    pub data: u64,
    /// Bytes of the writable pages; page-aligned.
    pub data_size: u64,
    /// Bytes of the private area of each CPU, which the module provides behind the public pages; page-aligned.
    pub cpu_area_size: u64,
}

/// Offset of [`ImageHeader::checksum`] in the file.
pub const CHECKSUM_OFFSET: usize = core::mem::offset_of!(ImageHeader, checksum);
