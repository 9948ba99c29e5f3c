//! Registers of devices in memory.
//!
//! Invariant: registers lie above everything that is Rust's, so that an access changes no memory of the program, unless it
//! makes the device do so; what devices may write to is [`crate::dma`].

use crate::device::Registers;
use crate::shared::GuestAddress;
use crate::{MAPPED_END, WINDOWS};

/// The registers of a device, which the cell's configuration maps here.
#[derive(Debug)]
pub struct Mmio {
    base: u64,
    size: u32,
}

impl Mmio {
    /// The registers at `base`. Whether the configuration maps anything there shows when they are used: if not, the
    /// hypervisor stops the cell.
    ///
    /// # Panics
    /// When they are unaligned, below [`WINDOWS`], or so high that they are not mapped.
    pub fn at(base: GuestAddress, size: u32) -> Self {
        let end = base.number().saturating_add(size.into());
        assert!(
            base >= WINDOWS && end <= MAPPED_END.number() && base.number().is_multiple_of(8),
            "registers at {base} are not between {WINDOWS} and {MAPPED_END}"
        );
        Self {
            base: base.number(),
            size,
        }
    }

    /// Where they are.
    pub fn base(&self) -> GuestAddress {
        GuestAddress::new(self.base)
    }

    #[track_caller]
    fn address(&self, offset: u32, width: u32) -> u64 {
        assert!(
            self.size >= width && offset <= self.size - width,
            "the register {offset:#x} is beyond the end"
        );
        self.base + u64::from(offset)
    }

    /// Reads a byte.
    pub fn read8(&self, offset: u32) -> u8 {
        // SAFETY: A register (`at`), and inside (`address`).
        unsafe { (self.address(offset, 1) as *const u8).read_volatile() }
    }

    /// Writes a byte.
    pub fn write8(&mut self, offset: u32, value: u8) {
        // SAFETY: As in `read8`.
        unsafe { (self.address(offset, 1) as *mut u8).write_volatile(value) };
    }

    /// Writes 2 bytes; the offset is a multiple of 2.
    pub fn write16(&mut self, offset: u32, value: u16) {
        assert!(offset.is_multiple_of(2));
        // SAFETY: As in `read8`, and aligned.
        unsafe { (self.address(offset, 2) as *mut u16).write_volatile(value) };
    }

    /// Reads 8 bytes; the offset is a multiple of 8.
    pub fn read64(&self, offset: u32) -> u64 {
        assert!(offset.is_multiple_of(8));
        // SAFETY: As in `read8`, and aligned.
        unsafe { (self.address(offset, 8) as *const u64).read_volatile() }
    }

    /// Writes 8 bytes; the offset is a multiple of 8.
    pub fn write64(&mut self, offset: u32, value: u64) {
        assert!(offset.is_multiple_of(8));
        // SAFETY: As in `read8`, and aligned.
        unsafe { (self.address(offset, 8) as *mut u64).write_volatile(value) };
    }
}

impl Registers for Mmio {
    fn read(&self, offset: u32) -> u32 {
        assert!(offset.is_multiple_of(4));
        // SAFETY: As in `read8`, and aligned.
        unsafe { (self.address(offset, 4) as *const u32).read_volatile() }
    }

    fn write(&mut self, offset: u32, value: u32) {
        assert!(offset.is_multiple_of(4));
        // SAFETY: As in `read8`, and aligned.
        unsafe { (self.address(offset, 4) as *mut u32).write_volatile(value) };
    }
}
