//! Entries of an IOAPIC's redirection table.
//!
//! I/O Controller Hub's and 82093AA's manuals, "I/O Redirection Table Registers".
#![forbid(unsafe_code)]

use bitfield_struct::bitfield;

/// What a pin's interrupt is, and where it goes.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Entry {
    /// The interrupt vector.
    pub vector: u8,
    /// What happens at the destination, see [`mode`].
    #[bits(3)]
    pub delivery_mode: u8,
    /// The destination is a logical one, not an APIC id.
    pub logical: bool,
    /// A message waits to be sent; read-only.
    pub delivery_pending: bool,
    /// The pin is active when it is low.
    pub active_low: bool,
    /// Remote IRR: a level-triggered message was taken and has not ended; read-only.
    pub in_service: bool,
    /// Level-triggered.
    pub level: bool,
    /// Nothing is sent.
    pub masked: bool,
    #[bits(31)]
    __: u64,
    /// The entry is an index into the interrupt remapping table of an IOMMU.
    pub remapped: bool,
    /// The rest of such an index.
    #[bits(7)]
    pub index: u8,
    /// The destination.
    pub destination: u8,
}

/// Delivery modes of pins.
pub mod mode {
    /// The interrupt of the vector.
    pub const FIXED: u8 = 0;
    /// The interrupt of the vector at the one of the destinations that runs at the lowest priority.
    pub const LOWEST_PRIORITY: u8 = 1;
    /// A system management interrupt.
    pub const SMI: u8 = 2;
    /// A non-maskable interrupt.
    pub const NMI: u8 = 4;
    /// INIT.
    pub const INIT: u8 = 5;
    /// The interrupt whose vector the 8259 tells.
    pub const EXTERNAL: u8 = 7;
}

/// Bits of an entry that the IOAPIC sets itself.
pub const STATUS: u64 = 1 << 12 | 1 << 14;

impl Entry {
    /// An entry as it is after a reset, and as pins of others look: masked.
    pub const RESET: Self = Self::from_bits(1 << 16);

    /// The half that registers with even numbers hold.
    #[must_use]
    pub const fn low(self) -> u32 {
        self.into_bits() as u32
    }

    /// The half that registers with odd numbers hold.
    #[must_use]
    pub const fn high(self) -> u32 {
        (self.into_bits() >> 32) as u32
    }

    /// The IOMMU's entry that an entry in the remapped format names.
    #[must_use]
    pub const fn handle(self) -> u16 {
        let high = if self.logical() { 1 << 15 } else { 0 };
        high | (self.destination() as u16) << 7 | self.index() as u16
    }

    /// The entry of a pin for which an IOMMU sends what this entry says, by its own entry `handle`. Vector and trigger mode
    /// stand in both (VT-d, "Programming in I/OxAPIC"): by the vector the IOAPIC knows the end of an interrupt.
    #[must_use]
    pub const fn through(self, handle: u16) -> Self {
        Self::new()
            .with_vector(self.vector())
            .with_active_low(self.active_low())
            .with_level(self.level())
            .with_masked(self.masked())
            .with_remapped(true)
            .with_logical(handle >> 15 != 0)
            .with_destination((handle >> 7) as u8)
            .with_index(handle as u8 & 0x7f)
    }

    /// With another low half, without its status.
    #[must_use]
    pub const fn with_low(self, value: u32) -> Self {
        let high = self.into_bits() & !0xffff_ffff;
        Self::from_bits(high | (value as u64 & !STATUS))
    }

    /// With another high half.
    #[must_use]
    pub const fn with_high(self, value: u32) -> Self {
        Self::from_bits((value as u64) << 32 | self.into_bits() & 0xffff_ffff)
    }
}
