//! Access to PCI configuration space: by the ports of mechanism 1, or in memory (ECAM).
//!
//! Invariant: one value of a cell has the ports, whose address and data belong together.

use core::sync::atomic::{AtomicBool, Ordering};

use super::instructions::{read_port32, write_port32};
use crate::device::Registers;
use crate::mmio::Mmio;
use crate::pci::{Configuration, Function};
use crate::shared::GuestAddress;

const ADDRESS: u16 = 0xcf8;
const DATA: u16 = 0xcfc;
const ENABLE: u32 = 1 << 31;

/// Configuration space by mechanism 1: the first 256 bytes of each function.
#[derive(Debug)]
pub struct Ports(());

impl Ports {
    /// Takes the ports into use.
    ///
    /// # Panics
    /// When they are in use already.
    pub fn take() -> Self {
        static TAKEN: AtomicBool = AtomicBool::new(false);
        assert!(
            !TAKEN.swap(true, Ordering::Relaxed),
            "PCI configuration space is in use already"
        );
        Self(())
    }

    fn select(function: Function, offset: u16) {
        let address = ENABLE | u32::from(function.number()) << 8 | u32::from(offset & 0xfc);
        // SAFETY: The address register reaches no memory.
        unsafe { write_port32(ADDRESS, address) };
    }
}

impl Configuration for Ports {
    fn read(&self, function: Function, offset: u16) -> u32 {
        Self::select(function, offset);
        // SAFETY: Reading configuration space changes no memory.
        unsafe { read_port32(DATA) }
    }

    fn write(&mut self, function: Function, offset: u16, value: u32) {
        Self::select(function, offset);
        // SAFETY: A function that this makes bus master knows no addresses yet but those that a driver gives it, which are
        // of `crate::dma`.
        unsafe { write_port32(DATA, value) };
    }
}

/// Configuration space in memory: all 4096 bytes of each function.
#[derive(Debug)]
pub struct InMemory {
    base: GuestAddress,
}

impl InMemory {
    /// Configuration space at `base`, from bus 0 on.
    pub const fn at(base: GuestAddress) -> Self {
        Self { base }
    }

    fn page(&self, function: Function) -> Mmio {
        let at = self.base.number() + (u64::from(function.number()) << 12);
        Mmio::at(GuestAddress::new(at), 0x1000)
    }
}

impl Configuration for InMemory {
    fn read(&self, function: Function, offset: u16) -> u32 {
        self.page(function).read(offset.into())
    }

    fn write(&mut self, function: Function, offset: u16, value: u32) {
        self.page(function).write(offset.into(), value);
    }
}
