//! Capabilities: where they are, and which of them matter to the hypervisor.
//!
//! PCI Local Bus specification, "Capabilities List"; PCI Express Base specification, "PCI Express Extended Capabilities".
//! Lists come from hardware: they are followed for so many steps only, and never twice through the same place.
#![forbid(unsafe_code)]

use super::space::{Config, EXTENDED_SIZE, Hardware, STANDARD_SIZE};

/// Most capabilities of the standard list: there is no room for more.
pub const MOST: usize = 48;
/// Most capabilities of the extended list that are looked at.
const MOST_EXTENDED: usize = 128;
/// Most extended capabilities that can be hidden in one function.
pub const MOST_HIDDEN: usize = 16;

const STATUS: u16 = 0x06;
const STATUS_HAS_LIST: u16 = 1 << 4;
const POINTER: u16 = 0x34;
const FIRST: u16 = 0x40;
const FIRST_EXTENDED: u16 = 0x100;

/// Ids of the standard capabilities that the hypervisor moderates. Every other one can be read and not written: it
/// describes, or it is a door to something else (a vendor's own, a pair of index and data, product data in a memory).
mod id {
    pub const POWER_MANAGEMENT: u8 = 0x01;
    pub const MSI: u8 = 0x05;
    pub const EXPRESS: u8 = 0x10;
    pub const MSI_X: u8 = 0x11;
    pub const ADVANCED_FEATURES: u8 = 0x13;
}

/// Extended capabilities that a cell does not find: they make functions, translate addresses, or decide on who reaches
/// whom.
const HIDDEN: [u16; 11] = [
    // Access control services
    0x000d, // Address translation services
    0x000f, // Single root I/O virtualization
    0x0010, // Multi root I/O virtualization
    0x0011, // Page requests
    0x0013, // Resizable BARs
    0x0015, // Process address space ids
    0x001b, // Downstream port containment
    0x001d, // Precision time measurement
    0x001f, // Resizable BARs of virtual functions
    0x0024, // Data object exchange
    0x002e,
];

/// Registers in extended capabilities that a reset clears and the root has set: id, offset, bits.
const KEPT: [(u16, u16, u32); 9] = [
    // Masks and severities of errors
    (0x0001, 0x08, u32::MAX),
    (0x0001, 0x0c, u32::MAX),
    (0x0001, 0x14, u32::MAX),
    // Access control, routing ids, address translation, latency tolerance, process ids: their control registers
    (0x000d, 0x04, 0xffff_0000),
    (0x000e, 0x04, 0xffff_0000),
    (0x000f, 0x04, 0xffff_0000),
    (0x0018, 0x04, u32::MAX),
    (0x001b, 0x04, 0xffff_0000),
    (0x001f, 0x08, u32::MAX),
];

/// Where the capabilities are that matter. 0: there is none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Found {
    /// Power management.
    pub power: u16,
    /// Message signalled interrupts.
    pub msi: u16,
    /// The same with a table.
    pub msi_x: u16,
    /// PCI Express.
    pub express: u16,
    /// Advanced features of conventional PCI.
    pub advanced: u16,
}

impl Found {
    /// Follows the standard list. Of capabilities that lie on each other or outside of their place only the first counts.
    pub(super) fn new<H: Hardware + ?Sized>(config: &mut Config<'_, H>) -> Self {
        let mut found = Self::default();
        if config.read16(STATUS) & STATUS_HAS_LIST == 0 {
            return found;
        }
        // A bit for each doubleword.
        let (mut seen, mut taken) = (0u64, 0u64);
        let mut at = u16::from(config.read8(POINTER) & !3);
        for _ in 0..MOST {
            let bit = 1u64.wrapping_shl(u32::from(at >> 2));
            if at < FIRST || seen & bit != 0 {
                break;
            }
            seen |= bit;
            let header = config.read32(at);
            let (place, length) = match header as u8 {
                id::POWER_MANAGEMENT => (&mut found.power, 8),
                id::MSI => (&mut found.msi, msi_length(header)),
                id::EXPRESS => (&mut found.express, 20),
                id::MSI_X => (&mut found.msi_x, 12),
                id::ADVANCED_FEATURES => (&mut found.advanced, 8),
                _ => (&mut 0, 0),
            };
            let bits = 1u64
                .wrapping_shl(u32::from(length >> 2))
                .wrapping_sub(1)
                .wrapping_shl(u32::from(at >> 2));
            let ends_inside = at.saturating_add(length) <= STANDARD_SIZE;
            if *place == 0 && ends_inside && taken & bits == 0 {
                *place = at;
                taken |= bits;
            }
            at = (header >> 8) as u16 & 0xfc;
        }
        found
    }
}

/// Bytes of an MSI capability, whole doublewords.
const fn msi_length(header: u32) -> u16 {
    let (is_wide, is_maskable) = (header & 1 << 23 != 0, header & 1 << 24 != 0);
    match (is_wide, is_maskable) {
        (false, false) => 12,
        (true, false) => 16,
        (false, true) => 20,
        (true, true) => 24,
    }
}

/// Visits the extended list: id and offset. `false`: it has no end that makes sense.
pub(super) fn extended<H: Hardware + ?Sized>(
    config: &mut Config<'_, H>,
    mut visit: impl FnMut(&mut Config<'_, H>, u16, u16),
) -> bool {
    let mut at = FIRST_EXTENDED;
    for _ in 0..MOST_EXTENDED {
        let header = config.read32(at);
        if header == 0 || header == u32::MAX {
            return true;
        }
        visit(config, header as u16, at);
        at = (header >> 20) as u16 & 0xffc;
        if at == 0 {
            return true;
        }
        if at < FIRST_EXTENDED {
            break;
        }
    }
    false
}

/// What a cell sees of extended configuration space. It writes nothing there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extended {
    /// There is something to see.
    is_visible: bool,
    hidden: [u16; MOST_HIDDEN],
}

impl Extended {
    /// Nothing.
    pub const NOTHING: Self = Self {
        is_visible: false,
        hidden: [0; MOST_HIDDEN],
    };

    /// What is to be seen of a function.
    pub(super) fn new<H: Hardware + ?Sized>(config: &mut Config<'_, H>) -> Self {
        let mut hidden = [0; MOST_HIDDEN];
        let mut count = 0usize;
        let ends = extended(config, |_, id, at| {
            if !HIDDEN.contains(&id) {
                return;
            }
            if let Some(slot) = hidden.get_mut(count) {
                *slot = at;
            }
            count = count.saturating_add(1);
        });
        if !ends || count > MOST_HIDDEN {
            return Self::NOTHING;
        }
        Self {
            is_visible: true,
            hidden,
        }
    }

    /// What a cell reads at `offset`, where the function has `value`. Of what is hidden, the header of a null capability
    /// remains: it leads on in the list.
    #[must_use]
    pub fn seen(&self, offset: u16, value: u32) -> u32 {
        if !self.is_visible {
            0
        } else if offset >= FIRST_EXTENDED && self.hidden.contains(&offset) {
            value & 0xfff0_0000
        } else {
            value
        }
    }
}

/// Visits the registers of extended capabilities that a reset clears: offset and bits.
pub(super) fn kept<H: Hardware + ?Sized>(
    config: &mut Config<'_, H>,
    mut visit: impl FnMut(&mut Config<'_, H>, u16, u32),
) {
    extended(config, |config, id, at| {
        for (_, offset, bits) in KEPT.iter().filter(|(kept, ..)| *kept == id) {
            let at = at.saturating_add(*offset);
            if at < EXTENDED_SIZE {
                visit(config, at, *bits);
            }
        }
    });
}
