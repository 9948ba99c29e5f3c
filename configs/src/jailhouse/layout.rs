//! The layout of Jailhouse's binary configurations, revisions 13 and 14: packed, little endian.
//!
//! The two revisions differ in the first eight bytes alone: 13 has a signature of six letters, 14 one of five and the
//! architecture behind it. Fields are named as in Jailhouse's C sources, so that who wrote those finds them again.
//!
//! Invariant: no field here is aligned to more than a byte, so any place of a file can be read as any of the structures.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// Signature of a system configuration of revision 13.
pub const SYSTEM_SIGNATURE_13: [u8; 6] = *b"JHSYST";
/// Signature of a cell configuration of revision 13.
pub const CELL_SIGNATURE_13: [u8; 6] = *b"JHCELL";
/// Signature of a system configuration of revision 14.
pub const SYSTEM_SIGNATURE_14: [u8; 5] = *b"JHSYS";
/// Signature of a cell configuration of revision 14.
pub const CELL_SIGNATURE_14: [u8; 5] = *b"JHCLL";

/// [`Preamble::architecture_or_letter`] of revision 14: x86-64.
pub const ARCHITECTURE_X86: u8 = 0;
/// [`Preamble::architecture_or_letter`] of revision 14: 32-bit Arm.
pub const ARCHITECTURE_ARM: u8 = 1;
/// [`Preamble::architecture_or_letter`] of revision 14: 64-bit Arm.
pub const ARCHITECTURE_ARM64: u8 = 2;

/// Bytes of a cell's name, at least one zero included.
pub const NAME_BYTES: usize = 32;
/// Entries of [`Platform::iommu_units`], used or not.
pub const IOMMU_UNITS: usize = 8;

/// What both kinds begin with.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, KnownLayout, Unaligned)]
pub struct Preamble {
    /// The letters that the signatures of both revisions have.
    pub signature: [u8; 5],
    /// Revision 13: the signature's sixth letter. Revision 14: `ARCHITECTURE_…`.
    pub architecture_or_letter: u8,
    /// Revision of the layout.
    pub revision: U16,
}

/// `struct jailhouse_memory`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, KnownLayout, Unaligned)]
pub struct Memory {
    /// Host-physical address.
    pub phys_start: U64,
    /// Guest-physical address.
    pub virt_start: U64,
    /// Bytes; 0 for an entry that is not used.
    pub size: U64,
    /// `MEMORY_…`.
    pub flags: U64,
}

/// The cell may read.
pub const MEMORY_READ: u64 = 1;
/// The cell may write.
pub const MEMORY_WRITE: u64 = 1 << 1;
/// The cell may execute.
pub const MEMORY_EXECUTE: u64 = 1 << 2;
/// Devices of the cell have access.
pub const MEMORY_DMA: u64 = 1 << 3;
/// Registers of devices; x86 does not need it, so it is often left out there.
pub const MEMORY_IO: u64 = 1 << 4;
/// The communication region; `phys_start` does not count.
pub const MEMORY_COMM_REGION: u64 = 1 << 5;
/// The root cell has access before the cell is started.
pub const MEMORY_LOADABLE: u64 = 1 << 6;
/// The root cell keeps its access.
pub const MEMORY_ROOTSHARED: u64 = 1 << 7;
/// Mapped with 4 KiB pages.
pub const MEMORY_NO_HUGEPAGES: u64 = 1 << 8;
/// A sub-page region permits accesses that are not aligned.
pub const MEMORY_IO_UNALIGNED: u64 = 1 << 15;
/// A sub-page region permits accesses of 1, 2, 4 and 8 bytes: bits 16 to 19.
pub const MEMORY_IO_WIDTH_SHIFT: u32 = 16;
/// The four bits at [`MEMORY_IO_WIDTH_SHIFT`].
pub const MEMORY_IO_WIDTHS: u64 = 0xf << MEMORY_IO_WIDTH_SHIFT;
/// All flags of [`Memory::flags`].
pub const MEMORY_ALL_FLAGS: u64 = 0x1ff | MEMORY_IO_UNALIGNED | MEMORY_IO_WIDTHS;

/// `struct jailhouse_cache`: a part of the cache.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, KnownLayout, Unaligned)]
pub struct Cache {
    /// First way.
    pub start: U32,
    /// Number of ways.
    pub size: U32,
    /// [`CACHE_L3_CODE`] and [`CACHE_L3_DATA`].
    pub kind: u8,
    /// Padding.
    pub padding: u8,
    /// [`CACHE_ROOTSHARED`].
    pub flags: U16,
}

/// The part is for code in the third-level cache.
pub const CACHE_L3_CODE: u8 = 1;
/// The part is for data in the third-level cache.
pub const CACHE_L3_DATA: u8 = 2;
/// The root cell uses the ways, too.
pub const CACHE_ROOTSHARED: u16 = 1;

/// `struct jailhouse_irqchip`: an IOAPIC.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, KnownLayout, Unaligned)]
pub struct Irqchip {
    /// Host-physical address.
    pub address: U64,
    /// IOMMU (bits 16 and up) and source id towards it.
    pub id: U32,
    /// 0 on x86.
    pub pin_base: U32,
    /// Bit n of word n / 32: pin n belongs to the cell.
    pub pin_bitmap: [U32; 4],
}

/// `struct jailhouse_pio`: I/O ports that the cell may use.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, KnownLayout, Unaligned)]
pub struct Pio {
    /// First port.
    pub base: U16,
    /// Number of ports.
    pub length: U16,
}

/// `struct jailhouse_pci_device`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, KnownLayout, Unaligned)]
pub struct PciDevice {
    /// `PCI_TYPE_…`.
    pub kind: u8,
    /// Index of the IOMMU.
    pub iommu: u8,
    /// Segment.
    pub domain: U16,
    /// Bus (8 bits), device (5), function (3).
    pub bdf: U16,
    /// Which bits of each BAR can be written.
    pub bar_mask: [U32; 6],
    /// First of its capabilities.
    pub caps_start: U16,
    /// Number of its capabilities.
    pub num_caps: U16,
    /// MSI vectors.
    pub num_msi_vectors: u8,
    /// Bit 0: 64-bit MSI addresses; bit 1: MSI vectors can be masked.
    pub msi_flags: u8,
    /// MSI-X vectors.
    pub num_msix_vectors: U16,
    /// Bytes of the MSI-X tables.
    pub msix_region_size: U16,
    /// Host-physical address of the MSI-X table.
    pub msix_address: U64,
    /// Of shared memory: first of its memory regions.
    pub shmem_regions_start: U32,
    /// Of shared memory: which of the peers this cell is.
    pub shmem_dev_id: u8,
    /// Of shared memory: number of peers.
    pub shmem_peers: u8,
    /// Of shared memory: what is spoken over it.
    pub shmem_protocol: U16,
}

/// [`PciDevice::kind`]: a function.
pub const PCI_TYPE_DEVICE: u8 = 1;
/// [`PciDevice::kind`]: a bridge.
pub const PCI_TYPE_BRIDGE: u8 = 2;
/// [`PciDevice::kind`]: shared memory that Jailhouse shows as a PCI function.
pub const PCI_TYPE_IVSHMEM: u8 = 3;

/// Memory regions of a shared memory besides those of the peers: state table and common section.
pub const IVSHMEM_COMMON_REGIONS: u64 = 2;

/// `struct jailhouse_pci_capability`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, KnownLayout, Unaligned)]
pub struct PciCapability {
    /// Number of the capability; bit 15: an extended one.
    pub id: U16,
    /// Offset in configuration space.
    pub start: U16,
    /// Bytes.
    pub len: U16,
    /// Bit 0: the cell may write to it.
    pub flags: U16,
}

/// `struct jailhouse_console`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, KnownLayout, Unaligned)]
pub struct Console {
    /// First port, or host-physical address.
    pub address: U64,
    /// Bytes of the registers or the frame buffer.
    pub size: U32,
    /// `CONSOLE_…`.
    pub kind: U16,
    /// `CONSOLE_FLAG_…`.
    pub flags: U16,
    /// Divisor of the baud rate; 0: leave the rate as it is.
    pub divider: U32,
    /// Arm: clock gate.
    pub gate_nr: U32,
    /// Arm: clock register.
    pub clock_reg: U64,
}

/// [`Console::kind`]: none.
pub const CONSOLE_NONE: u16 = 0;
/// [`Console::kind`]: the firmware's frame buffer.
pub const CONSOLE_EFIFB: u16 = 1;
/// [`Console::kind`]: a UART of the 8250 family.
pub const CONSOLE_8250: u16 = 2;
/// The first [`Console::kind`] that only Arm has.
pub const FIRST_ARM_CONSOLE: u16 = 3;
/// The last [`Console::kind`] there is.
pub const LAST_ARM_CONSOLE: u16 = 10;
/// [`Console::flags`]: registers in memory, not at ports.
pub const CONSOLE_FLAG_MMIO: u16 = 1;
/// [`Console::flags`]: four bytes from register to register.
pub const CONSOLE_FLAG_REGDIST_4: u16 = 2;

/// `struct jailhouse_iommu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, KnownLayout, Unaligned)]
pub struct Iommu {
    /// `IOMMU_…`.
    pub kind: U32,
    /// Host-physical address of its registers.
    pub base: U64,
    /// Bytes of its registers.
    pub size: U32,
    /// What else the kind needs.
    pub details: [u8; 12],
}

/// [`Iommu::kind`]: the entry is not used.
pub const IOMMU_UNUSED: u32 = 0;
/// [`Iommu::kind`]: AMD-Vi.
pub const IOMMU_AMD: u32 = 1;
/// [`Iommu::kind`]: VT-d.
pub const IOMMU_INTEL: u32 = 2;
/// The first [`Iommu::kind`] that only Arm has.
pub const FIRST_ARM_IOMMU: u32 = 3;
/// The last [`Iommu::kind`] there is.
pub const LAST_ARM_IOMMU: u32 = 5;

/// The platform part of the system configuration.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, KnownLayout, Unaligned)]
pub struct Platform {
    /// Host-physical address of PCI configuration space; 0: none.
    pub pci_mmconfig_base: U64,
    /// Last bus that has configuration space there.
    pub pci_mmconfig_end_bus: u8,
    /// Arm: there is no PCI hardware.
    pub pci_is_virtual: u8,
    /// Segment of the configuration space.
    pub pci_domain: U16,
    /// The IOMMUs.
    pub iommu_units: [Iommu; IOMMU_UNITS],
    /// Port of the ACPI PM timer.
    pub pm_timer_address: U16,
    /// 0: as Linux has it; 1: xAPIC; 2: x2APIC.
    pub apic_mode: u8,
    /// Padding.
    pub padding: u8,
    /// Entries of the interrupt remapping table.
    pub vtd_interrupt_limit: U32,
    /// Rate of the time stamp counter; 0: the module fills it in.
    pub tsc_khz: U32,
    /// Rate of the APIC timer; 0: the module fills it in.
    pub apic_khz: U32,
    /// Zero on x86; of the GIC on Arm.
    pub beyond_x86: [u8; 28],
}

/// `struct jailhouse_cell_desc`. In a system configuration, where it describes the root cell, the preamble is zero.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, KnownLayout, Unaligned)]
pub struct CellHeader {
    /// Kind and revision.
    pub preamble: Preamble,
    /// Name of the cell, filled with zeros.
    pub name: [u8; NAME_BYTES],
    /// Jailhouse's module fills it in.
    pub id: U32,
    /// `CELL_…`.
    pub flags: U32,
    /// Bytes of the CPU bitmap.
    pub cpu_set_size: U32,
    /// Entries of the memory regions.
    pub num_memory_regions: U32,
    /// Entries of the cache regions.
    pub num_cache_regions: U32,
    /// Entries of the IOAPICs.
    pub num_irqchips: U32,
    /// Entries of the port ranges.
    pub num_pio_regions: U32,
    /// Entries of the PCI devices.
    pub num_pci_devices: U32,
    /// Entries of the PCI capabilities.
    pub num_pci_caps: U32,
    /// Entries of the stream ids, which only Arm has.
    pub num_stream_ids: U32,
    /// Arm: first interrupt of virtual PCI functions.
    pub vpci_irq_base: U32,
    /// Guest-physical address at which the CPUs start.
    pub cpu_reset_address: U64,
    /// How often the answer to a message is looked for; 0: for ever.
    pub msg_reply_timeout: U64,
    /// The cell's own console.
    pub console: Console,
}

/// The cell is never asked before it is stopped.
pub const CELL_PASSIVE_COMMREG: u32 = 1;
/// The cell gets the test device.
pub const CELL_TEST_DEVICE: u32 = 2;
/// A 32-bit cell on 64-bit Arm.
pub const CELL_AARCH32: u32 = 4;
/// The cell may print by hypercall.
pub const CELL_VIRTUAL_CONSOLE_PERMITTED: u32 = 1 << 30;
/// The cell prints by hypercall.
pub const CELL_VIRTUAL_CONSOLE_ACTIVE: u32 = 1 << 31;
/// All flags of [`CellHeader::flags`].
pub const CELL_ALL_FLAGS: u32 = CELL_PASSIVE_COMMREG
    | CELL_TEST_DEVICE
    | CELL_AARCH32
    | CELL_VIRTUAL_CONSOLE_PERMITTED
    | CELL_VIRTUAL_CONSOLE_ACTIVE;

/// `struct jailhouse_system` up to the root cell, which follows.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, KnownLayout, Unaligned)]
pub struct SystemHeader {
    /// Kind and revision.
    pub preamble: Preamble,
    /// [`SYSTEM_VIRTUAL_DEBUG_CONSOLE`].
    pub flags: U32,
    /// Where the hypervisor is.
    pub hypervisor_memory: Memory,
    /// What the hypervisor prints to.
    pub debug_console: Console,
    /// The machine.
    pub platform_info: Platform,
}

/// The root cell can read what is printed.
pub const SYSTEM_VIRTUAL_DEBUG_CONSOLE: u32 = 1;

const _: () = {
    assert!(size_of::<Preamble>() == 8);
    assert!(size_of::<Memory>() == 32);
    assert!(size_of::<Cache>() == 12);
    assert!(size_of::<Irqchip>() == 32);
    assert!(size_of::<Pio>() == 4);
    assert!(size_of::<PciDevice>() == 56);
    assert!(size_of::<PciCapability>() == 8);
    assert!(size_of::<Console>() == 32);
    assert!(size_of::<Iommu>() == 28);
    assert!(size_of::<CellHeader>() == 132);
    assert!(size_of::<SystemHeader>() == 356);
};
