//! Message signalled interrupts of a function.
//!
//! PCI Local Bus specification, "MSI Capability Structure". Invariant: the function has MSI on only with a message that
//! [`Wanted::checked`] has made; what the cell wrote is what it reads.
#![forbid(unsafe_code)]

use super::message::{IsOwn, Wanted};
use super::space::{Config, Hardware, Written};

const CONTROL: u16 = 0x02;
/// Message control: on.
pub const ENABLE: u16 = 1;
/// Message control: how many vectors are in use, as a power of two.
const ORDER: u16 = 7 << 4;
/// Message control: how many vectors there are, as a power of two.
const CAPABLE: u16 = 7 << 1;
const WIDE: u16 = 1 << 7;
const MASKABLE: u16 = 1 << 8;
/// The largest power of two that is not reserved.
const MOST_ORDER: u16 = 5;

/// The MSI capability of a function that a cell has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Msi {
    at: u16,
    is_wide: bool,
    is_maskable: bool,
    /// Vectors that the cell may use, as a power of two.
    most: u16,
    /// What the cell has written: control, and the message.
    control: u16,
    wanted: Wanted,
}

impl Msi {
    /// The capability at `at`, of which a cell may use `vectors`.
    pub(super) fn new<H: Hardware + ?Sized>(
        config: &mut Config<'_, H>,
        at: u16,
        vectors: u16,
    ) -> Self {
        let control = config.read16(at.wrapping_add(CONTROL));
        let capable = ((control & CAPABLE) >> 1).min(MOST_ORDER);
        let allowed = vectors.checked_ilog2().unwrap_or(0) as u16;
        Self {
            at,
            is_wide: control & WIDE != 0,
            is_maskable: control & MASKABLE != 0,
            most: capable.min(allowed),
            control: 0,
            wanted: Wanted::default(),
        }
    }

    /// Where it is.
    #[must_use]
    pub const fn at(&self) -> u16 {
        self.at
    }

    /// Vectors that the cell may use.
    #[must_use]
    pub fn most(&self) -> u16 {
        1u16.checked_shl(self.most.into()).unwrap_or(u16::MAX)
    }

    /// Forgets what the cell has written.
    pub fn clear(&mut self) {
        self.control = 0;
        self.wanted = Wanted::default();
    }

    /// Offsets of the data and of the mask.
    const fn places(&self) -> (u16, u16) {
        if self.is_wide { (0xc, 0x10) } else { (8, 0xc) }
    }

    /// Bytes of it, whole doublewords.
    #[must_use]
    pub const fn length(&self) -> u16 {
        let (data, mask) = self.places();
        if self.is_maskable {
            mask.wrapping_add(8)
        } else {
            data.wrapping_add(4)
        }
    }

    /// Offset in the capability, if the doubleword is part of it.
    #[must_use]
    pub fn offset(&self, dword: u16) -> Option<u16> {
        (self.at..self.at.wrapping_add(self.length()))
            .contains(&dword)
            .then(|| dword.wrapping_sub(self.at))
    }

    /// What the cell reads, where the function has `real`.
    #[must_use]
    pub fn seen(&self, offset: u16, real: u32) -> u32 {
        let (data, _) = self.places();
        match offset {
            0 => {
                let kept = u32::from(ENABLE | ORDER | CAPABLE) << 16;
                let own = u32::from(self.control | self.most << 1) << 16;
                real & !kept | own
            }
            4 => self.wanted.low,
            8 if self.is_wide => self.wanted.high,
            offset if offset == data => self.wanted.data,
            _ => real,
        }
    }

    /// Takes what the cell writes, and passes on what may be.
    pub(super) fn write<H: Hardware + ?Sized>(
        &mut self,
        config: &mut Config<'_, H>,
        offset: u16,
        written: Written,
        is_own: IsOwn<'_>,
    ) {
        let (data, mask) = self.places();
        match offset {
            0 => {
                let control = (written.over(u32::from(self.control) << 16) >> 16) as u16;
                let order = ((control & ORDER) >> 4).min(self.most);
                self.control = control & ENABLE | order << 4;
            }
            4 => self.wanted.low = written.over(self.wanted.low) & !3,
            8 if self.is_wide => self.wanted.high = written.over(self.wanted.high),
            offset if offset == data => {
                self.wanted.data = written.over(self.wanted.data) & 0xffff;
            }
            offset if offset == mask && self.is_maskable => {
                let at = self.at.wrapping_add(mask);
                let real = config.read32(at);
                config.write32(at, written.over(real));
                return;
            }
            _ => return,
        }
        self.program(config, is_own);
    }

    /// Gives the function the message that the cell wants, if it may have it; else switches MSI off.
    fn program<H: Hardware + ?Sized>(&self, config: &mut Config<'_, H>, is_own: IsOwn<'_>) {
        let at = |offset: u16| self.at.wrapping_add(offset);
        let control = config.read16(at(CONTROL)) & !(ENABLE | ORDER);
        // Off while it changes: a message is read by the function in parts.
        config.write16(at(CONTROL), control);
        let order = (self.control & ORDER) >> 4;
        if self.control & ENABLE == 0 {
            return;
        }
        let checked = self.wanted.checked(order as u8, is_own);
        let id = config.id;
        let Some(message) = config.hardware.remap(id, 0, order as u8, checked) else {
            return;
        };
        let (data, _) = self.places();
        config.write32(at(4), message.address);
        if self.is_wide {
            config.write32(at(8), 0);
        }
        config.write16(at(data), message.data);
        config.write16(at(CONTROL), control | ENABLE | order << 4);
    }
}
