//! Layouts of VT-d: "Intel Virtualization Technology for Directed I/O, Architecture Specification", chapters "Translation
//! Structure Formats", "Interrupt Remapping", "Caching Translation Information" and "Register Descriptions". Legacy mode only.
#![forbid(unsafe_code)]

use bitfield_struct::bitfield;

/// Bus, device and function of a device.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SourceId(pub u16);

impl SourceId {
    /// The bus.
    #[must_use]
    pub const fn bus(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// Device and function.
    #[must_use]
    pub const fn device_function(self) -> u8 {
        (self.0 & 0xff) as u8
    }
}

/// Number of a domain, by which the IOMMU tags what it remembers. Never 0, which caching mode reserves.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DomainId(u16);

impl DomainId {
    /// The domain of this number, of `count` that the IOMMU knows.
    #[must_use]
    pub const fn new(number: u16, count: u32) -> Option<Self> {
        if number != 0 && (number as u32) < count {
            Some(Self(number))
        } else {
            None
        }
    }

    /// Its number.
    #[must_use]
    pub const fn number(self) -> u16 {
        self.0
    }
}

/// Low half of a root entry; the high one is 0.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct RootEntry {
    /// The entry leads to a context table.
    pub present: bool,
    #[bits(11)]
    __: u16,
    /// The context table's address, in pages.
    #[bits(52)]
    pub table: u64,
}

/// Low half of a context entry.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct ContextLow {
    /// The device may do DMA.
    pub present: bool,
    /// Faults of the device are not recorded.
    pub faults_not_recorded: bool,
    /// How requests are translated: 0 by second-level tables, 2 not at all.
    #[bits(2)]
    pub translation_type: u8,
    #[bits(8)]
    __: u8,
    /// Address of the second-level root, in pages.
    #[bits(52)]
    pub table: u64,
}

/// High half of a context entry.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct ContextHigh {
    /// Levels of the second-level tables, less 2.
    #[bits(3)]
    pub width: u8,
    /// Software's.
    #[bits(4)]
    pub available: u8,
    #[bits(1)]
    __: u8,
    /// The domain.
    pub domain: u16,
    #[bits(40)]
    __: u64,
}

/// How an interrupt is delivered; the other values are reserved or not for devices.
pub mod delivery {
    /// To the CPU that is named.
    pub const FIXED: u8 = 0;
    /// To the one of several that is least busy.
    pub const LOWEST_PRIORITY: u8 = 1;
    /// As an NMI.
    pub const NMI: u8 = 4;
}

/// Low half of an entry of the interrupt remapping table, not posted.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct InterruptLow {
    /// The entry may be used.
    pub present: bool,
    /// Faults are not recorded.
    pub faults_not_recorded: bool,
    /// The destination is a logical one.
    pub logical: bool,
    /// Only to one of the destinations.
    pub redirection_hint: bool,
    /// Level-triggered.
    pub level_triggered: bool,
    /// See [`delivery`].
    #[bits(3)]
    pub delivery_mode: u8,
    /// Software's.
    #[bits(4)]
    pub available: u8,
    #[bits(3)]
    __: u8,
    /// The entry has the format of posted interrupts.
    pub posted: bool,
    /// The vector.
    pub vector: u8,
    #[bits(8)]
    __: u8,
    /// The destination: in x2APIC mode 32 bits, else an 8-bit id in bits 15 to 8.
    pub destination: u32,
}

/// High half of an entry of the interrupt remapping table.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct InterruptHigh {
    /// The device that may use the entry.
    pub source: u16,
    /// Which bits of the function's number count: 0 all.
    #[bits(2)]
    pub qualifier: u8,
    /// What of the source is verified: 0 nothing, 1 as `source` and `qualifier` say, 2 the bus.
    #[bits(2)]
    pub validation: u8,
    #[bits(44)]
    __: u64,
}

/// The second-level tables' entry permits reads.
pub const SECOND_LEVEL_READ: u64 = 1;
/// The second-level tables' entry permits writes.
pub const SECOND_LEVEL_WRITE: u64 = 1 << 1;
/// The IOMMU has read through the entry.
pub const SECOND_LEVEL_ACCESSED: u64 = 1 << 8;
/// The IOMMU has written through the entry.
pub const SECOND_LEVEL_DIRTY: u64 = 1 << 9;

/// The capability register.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Capability {
    /// Domains: 2 to the power of 4 + twice this.
    #[bits(3)]
    pub domains: u8,
    /// Advanced fault logging.
    pub advanced_fault_logging: bool,
    /// Write buffers must be flushed by software.
    pub write_buffer_flush: bool,
    /// Protected low memory.
    pub protected_low_memory: bool,
    /// Protected high memory.
    pub protected_high_memory: bool,
    /// Entries that are not present are remembered, too.
    pub caching_mode: bool,
    /// Bit n: second-level tables of n + 2 levels.
    #[bits(5)]
    pub widths: u8,
    #[bits(3)]
    __: u8,
    /// Bits of an address that a device can form, less 1.
    #[bits(6)]
    pub address_bits: u8,
    /// Reads of no bytes pass in memory that can only be written.
    pub zero_length_reads: bool,
    #[bits(1)]
    __: u8,
    /// Where the fault registers are, in 16 bytes.
    #[bits(10)]
    pub fault_registers_at: u16,
    /// Bit 0: leaves of 2 MiB; bit 1: of 1 GiB.
    #[bits(4)]
    pub large_pages: u8,
    #[bits(1)]
    __: u8,
    /// Single pages can be invalidated.
    pub page_selective: bool,
    /// Fault registers, less 1.
    pub fault_registers: u8,
    /// The largest mask of an invalidation by pages.
    #[bits(6)]
    pub largest_mask: u8,
    /// Writes are drained.
    pub drains_writes: bool,
    /// Reads are drained.
    pub drains_reads: bool,
    #[bits(8)]
    __: u8,
}

impl Capability {
    /// Domains that the IOMMU can tell apart.
    #[must_use]
    pub const fn domain_count(&self) -> u32 {
        16u32.wrapping_shl((self.domains() as u32).wrapping_mul(2))
    }
}

/// The extended capability register.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct ExtendedCapability {
    /// The IOMMU sees what is in the processors' caches.
    pub is_coherent: bool,
    /// There is an invalidation queue.
    pub queued_invalidation: bool,
    /// Device TLBs.
    pub device_tlb: bool,
    /// Interrupts can be remapped.
    pub interrupt_remapping: bool,
    /// To 32-bit destinations.
    pub extended_interrupts: bool,
    #[bits(1)]
    __: u8,
    /// Context entries may pass requests through.
    pub pass_through: bool,
    /// Snooping can be forced.
    pub snoop_control: bool,
    /// Where the registers of the IOTLB are, in 16 bytes.
    #[bits(10)]
    pub iotlb_registers_at: u16,
    #[bits(2)]
    __: u8,
    /// The largest mask of an invalidation of interrupt entries.
    #[bits(4)]
    pub largest_handle_mask: u8,
    #[bits(40)]
    __: u64,
}

/// A descriptor of the invalidation queue: two words.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InvalidationDescriptor(pub [u64; 2]);

const CONTEXT: u64 = 1;
const TRANSLATIONS: u64 = 2;
const INTERRUPTS: u64 = 4;
const WAIT: u64 = 5;
/// Granularity of an invalidation: the domain.
const OF_DOMAIN: u64 = 2 << 4;
/// Granularity of an invalidation of context entries: the function.
const OF_FUNCTION: u64 = 3 << 4;
/// An invalidation of interrupt entries by their index.
const BY_INDEX: u64 = 1 << 4;
const DRAIN_WRITES: u64 = 1 << 6;
const DRAIN_READS: u64 = 1 << 7;
/// A wait that writes its data, when all before it are done.
const WRITES_STATUS: u64 = 1 << 5;

impl InvalidationDescriptor {
    /// The context entry of one function, which was in this domain.
    #[must_use]
    pub const fn context_of_function(source: SourceId, domain: DomainId) -> Self {
        let (domain, source) = (domain.0 as u64, source.0 as u64);
        Self([CONTEXT | OF_FUNCTION | domain << 16 | source << 32, 0])
    }

    /// All translations of a domain; what is under way is waited for.
    #[must_use]
    pub const fn translations_of_domain(domain: DomainId) -> Self {
        let domain = domain.0 as u64;
        Self([
            TRANSLATIONS | OF_DOMAIN | DRAIN_WRITES | DRAIN_READS | domain << 16,
            0,
        ])
    }

    /// One entry of the interrupt remapping table.
    #[must_use]
    pub const fn interrupt_entry(index: u16) -> Self {
        Self([INTERRUPTS | BY_INDEX | (index as u64) << 32, 0])
    }

    /// Waits for all before it, and writes `data` to the 4 bytes at `address`.
    #[must_use]
    pub const fn wait(data: u32, address: u64) -> Self {
        Self([WAIT | WRITES_STATUS | (data as u64) << 32, address & !3])
    }
}
