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

/// Offsets of a unit's registers.
pub mod register {
    /// Version.
    pub const VERSION: u64 = 0x00;
    /// Capability, 64 bits.
    pub const CAPABILITY: u64 = 0x08;
    /// Extended capability, 64 bits.
    pub const EXTENDED_CAPABILITY: u64 = 0x10;
    /// Global command.
    pub const COMMAND: u64 = 0x18;
    /// Global status.
    pub const STATUS: u64 = 0x1c;
    /// Root table address, 64 bits.
    pub const ROOT_TABLE: u64 = 0x20;
    /// Context command, 64 bits.
    pub const CONTEXT_COMMAND: u64 = 0x28;
    /// Fault status.
    pub const FAULT_STATUS: u64 = 0x34;
    /// Fault event control, and behind it data, address and upper address of its message.
    pub const FAULT_CONTROL: u64 = 0x38;
    /// Data of the fault event's message.
    pub const FAULT_DATA: u64 = 0x3c;
    /// Address of the fault event's message.
    pub const FAULT_ADDRESS: u64 = 0x40;
    /// The high half of that address.
    pub const FAULT_UPPER_ADDRESS: u64 = 0x44;
    /// Invalidation queue head, 64 bits.
    pub const QUEUE_HEAD: u64 = 0x80;
    /// Invalidation queue tail, 64 bits.
    pub const QUEUE_TAIL: u64 = 0x88;
    /// Invalidation queue address, 64 bits.
    pub const QUEUE_ADDRESS: u64 = 0x90;
    /// Invalidation completion status.
    pub const COMPLETION_STATUS: u64 = 0x9c;
    /// Invalidation event control.
    pub const COMPLETION_CONTROL: u64 = 0xa0;
    /// The last register of the invalidation event.
    pub const COMPLETION_UPPER_ADDRESS: u64 = 0xac;
    /// Interrupt remapping table address, 64 bits.
    pub const INTERRUPT_TABLE: u64 = 0xb8;
}

/// Bits of the global command and status registers.
pub mod command {
    /// DMA is translated.
    pub const TRANSLATION: u32 = 1 << 31;
    /// The root table's address counts from now on.
    pub const SET_ROOT_TABLE: u32 = 1 << 30;
    /// Write buffers are flushed.
    pub const FLUSH_WRITE_BUFFER: u32 = 1 << 27;
    /// The invalidation queue is on.
    pub const QUEUE: u32 = 1 << 26;
    /// Interrupts are remapped.
    pub const INTERRUPTS: u32 = 1 << 25;
    /// The interrupt remapping table's address counts from now on.
    pub const SET_INTERRUPT_TABLE: u32 = 1 << 24;
    /// Interrupts of the format of old pass.
    pub const COMPATIBILITY: u32 = 1 << 23;
    /// Bits that stay as they are written; the others are done once.
    pub const KEPT: u32 = 0x96ff_ffff;
}

/// Bits of the fault status register.
pub mod fault_status {
    /// More faults than registers.
    pub const OVERFLOW: u32 = 1;
    /// A fault register is full.
    pub const PENDING: u32 = 1 << 1;
    /// A descriptor makes no sense.
    pub const QUEUE_ERROR: u32 = 1 << 4;
    /// A device TLB answered wrongly.
    pub const COMPLETION_ERROR: u32 = 1 << 5;
    /// A device TLB did not answer.
    pub const TIME_OUT: u32 = 1 << 6;
}

/// The fault event control register: no message is sent.
pub const EVENT_MASKED: u32 = 1 << 31;
/// Bit of the queue address register: descriptors have 32 bytes.
pub const WIDE_DESCRIPTORS: u64 = 1 << 11;
/// Bit of the interrupt remapping table address register: destinations have 32 bits.
pub const EXTENDED_INTERRUPT_MODE: u64 = 1 << 11;

/// High half of a fault recording register.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct FaultHigh {
    /// The device.
    pub source: u16,
    #[bits(16)]
    __: u16,
    /// Why.
    pub reason: u8,
    #[bits(20)]
    __: u32,
    /// The low bit of the request's type.
    pub type_low: bool,
    #[bits(1)]
    __: u8,
    /// A read, else a write; of DMA.
    pub is_read: bool,
    /// The register is full; writing 1 empties it.
    pub fault: bool,
}

/// The first reason of the faults of interrupts; those below are DMA's.
pub const FIRST_INTERRUPT_REASON: u8 = 0x20;
/// One behind the last reason of the faults of interrupts.
pub const END_OF_INTERRUPT_REASONS: u8 = 0x27;

/// A descriptor of the invalidation queue: two words.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InvalidationDescriptor(pub [u64; 2]);

const CONTEXT: u64 = 1;
const TRANSLATIONS: u64 = 2;
const DEVICE_TLB: u64 = 3;
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

/// What a descriptor of the queue is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Context entries, translations, or a device's TLB.
    Translations,
    /// All entries of the interrupt remapping table.
    AllInterrupts,
    /// Two to the power of `order` entries of the interrupt remapping table, aligned.
    Interrupts {
        /// One of them.
        index: u16,
        /// How many.
        order: u8,
    },
    /// Waits for those before it.
    Wait {
        /// What is written, and where; if anything.
        status: Option<(u32, u64)>,
    },
    /// No descriptor.
    Invalid,
}

impl InvalidationDescriptor {
    /// All context entries.
    pub const ALL_CONTEXTS: Self = Self([CONTEXT | 1 << 4, 0]);
    /// All translations.
    pub const ALL_TRANSLATIONS: Self =
        Self([TRANSLATIONS | 1 << 4 | DRAIN_WRITES | DRAIN_READS, 0]);
    /// All entries of the interrupt remapping table.
    pub const ALL_INTERRUPTS: Self = Self([INTERRUPTS, 0]);

    /// What the descriptor is for.
    #[must_use]
    pub const fn kind(self) -> Kind {
        let Self([low, high]) = self;
        match low & 0xf {
            CONTEXT | TRANSLATIONS | DEVICE_TLB => Kind::Translations,
            INTERRUPTS if low & BY_INDEX == 0 => Kind::AllInterrupts,
            INTERRUPTS => Kind::Interrupts {
                index: (low >> 32) as u16,
                order: (low >> 27 & 0x1f) as u8,
            },
            WAIT if low & WRITES_STATUS != 0 => Kind::Wait {
                status: Some(((low >> 32) as u32, high & !3)),
            },
            WAIT => Kind::Wait { status: None },
            _ => Kind::Invalid,
        }
    }

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
