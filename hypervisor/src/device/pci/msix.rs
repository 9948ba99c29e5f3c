//! Message signalled interrupts with a table in the function's memory.
//!
//! PCI Local Bus specification, "MSI-X Capability and Table Structures". Invariant: an entry of the function's table is
//! masked, or has a message that [`Wanted::checked`] has made; what the cell wrote is what it reads.
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU64, Ordering};

use super::message::{IsOwn, Wanted};
use super::space::{FunctionId, Hardware, Written, pieces};
use crate::memory::address::HostPhysical;
use crate::memory::page_table::Entries;

/// Offset of message control in the capability.
pub const CONTROL: u16 = 0x02;
/// Message control: on.
pub const ENABLE: u16 = 1 << 15;
/// Message control: all vectors are masked.
pub const MASK_ALL: u16 = 1 << 14;
/// Offset of the place of the table in the capability.
pub const TABLE: u16 = 0x04;
/// Message control: entries of the table, less one.
pub const SIZE: u16 = 0x7ff;

/// Bytes of an entry.
const ENTRY: u64 = 16;
/// In vector control: the vector is masked.
const MASKED: u32 = 1;

/// Most vectors of one function that a cell can use: as many as [`Store`] has room for.
pub const MOST_VECTORS: u16 = 224;
/// The first word of a [`Store`] that is an entry's.
const FIRST_WORD: usize = 64;

/// A frame in which the hypervisor keeps what it must know of a function: see [`super::handover`] for the first words.
pub type Store = Entries;

/// The table of a function.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MsiX {
    /// Whose it is.
    pub id: FunctionId,
    /// Where the capability is.
    pub at: u16,
    /// Entries of the table.
    pub entries: u16,
    /// Entries that the cell may use.
    pub usable: u16,
    /// Where the table is; `None`: its base address register has no address.
    pub table: Option<HostPhysical>,
}

/// The guest may not do that.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refused;

impl MsiX {
    /// The whole pages that the table lies in: first address, and bytes.
    #[must_use]
    pub fn pages(&self) -> Option<(u64, u64)> {
        let start = self.table?.as_u64();
        let end = start.saturating_add(self.bytes());
        let first = start & !0xfff;
        let last = end.saturating_add(0xfff) & !0xfff;
        Some((first, last.wrapping_sub(first)))
    }

    /// Bytes of the table.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        u64::from(self.entries).wrapping_mul(ENTRY)
    }

    /// Which doubleword of which entry is `offset` bytes into the table.
    fn place(offset: u64) -> (u16, u64) {
        ((offset >> 4) as u16, offset >> 2 & 3)
    }

    fn words(store: &Store, entry: u16) -> Option<[&AtomicU64; 2]> {
        let first = FIRST_WORD.wrapping_add(usize::from(entry).wrapping_mul(2));
        Some([store.get(first)?, store.get(first.wrapping_add(1))?])
    }

    /// What the cell wants of an entry: the message, and vector control.
    fn wanted(&self, store: &Store, entry: u16) -> (Wanted, u32) {
        let words = Self::words(store, entry).filter(|_| entry < self.usable);
        let Some([address, rest]) = words else {
            return (Wanted::default(), MASKED);
        };
        let (address, rest) = (
            address.load(Ordering::Relaxed),
            rest.load(Ordering::Relaxed),
        );
        let wanted = Wanted {
            low: address as u32,
            high: (address >> 32) as u32,
            data: rest as u32,
        };
        (wanted, (rest >> 32) as u32)
    }

    fn set_wanted(&self, store: &Store, entry: u16, wanted: Wanted, control: u32) {
        if let Some([address, rest]) = Self::words(store, entry).filter(|_| entry < self.usable) {
            address.store(
                u64::from(wanted.low) | u64::from(wanted.high) << 32,
                Ordering::Relaxed,
            );
            rest.store(
                u64::from(wanted.data) | u64::from(control) << 32,
                Ordering::Relaxed,
            );
        }
    }

    /// Forgets what the cell has written: all entries are masked, and empty.
    pub fn clear(&self, store: &Store) {
        for entry in 0..self.usable {
            self.set_wanted(store, entry, Wanted::default(), MASKED);
        }
    }

    /// Masks and empties entries of the function's table, from `first` on, at most `count`. Returns the next one to do.
    /// The function must answer to its memory.
    pub fn clean<H: Hardware + ?Sized>(&self, hardware: &mut H, first: u16, count: u16) -> u16 {
        let end = first.saturating_add(count).min(self.entries);
        if let Some(table) = self.table {
            for entry in first..end {
                let at = |dword| Self::address(table, entry, dword);
                hardware.write_registers(at(3), 4, u64::from(MASKED));
                (0..3).for_each(|dword| hardware.write_registers(at(dword), 4, 0));
            }
        }
        end
    }

    fn address(table: HostPhysical, entry: u16, dword: u64) -> HostPhysical {
        let offset = u64::from(entry)
            .wrapping_mul(ENTRY)
            .wrapping_add(dword.wrapping_mul(4));
        HostPhysical::new(table.as_u64().wrapping_add(offset))
    }

    /// Where in the table an access to the pages of the table is. `Ok(None)`: besides it.
    fn locate(&self, at: u64, width: u8) -> Result<Option<u64>, Refused> {
        let table = self.table.ok_or(Refused)?.as_u64();
        let end = at.checked_add(u64::from(width)).ok_or(Refused)?;
        if at >= table && end <= table.saturating_add(self.bytes()) {
            return Ok(Some(at.wrapping_sub(table)));
        }
        if end > table && at < table.saturating_add(self.bytes()) {
            return Err(Refused);
        }
        // Other registers take aligned accesses only.
        if at & u64::from(width).wrapping_sub(1) != 0 {
            return Err(Refused);
        }
        Ok(None)
    }

    /// A read from a page of the table. `is_on`: the function answers to its memory.
    ///
    /// # Errors
    /// When the access is partly in the table, or not aligned besides it.
    pub fn read<H: Hardware + ?Sized>(
        &self,
        hardware: &mut H,
        store: &Store,
        is_on: bool,
        at: u64,
        width: u8,
    ) -> Result<u64, Refused> {
        let Some(offset) = self.locate(at, width)? else {
            return Ok(hardware.read_registers(HostPhysical::new(at), width));
        };
        if !is_on {
            return Ok(u64::MAX);
        }
        Ok(pieces(offset, width).fold(0, |value, piece| {
            let (entry, dword) = Self::place(piece.dword);
            let (wanted, control) = self.wanted(store, entry);
            let own = match dword {
                0 => wanted.low,
                1 => wanted.high,
                2 => wanted.data,
                _ => control,
            };
            value | piece.read(own)
        }))
    }

    /// A write to a page of the table.
    ///
    /// # Errors
    /// As for [`MsiX::read`].
    pub fn write<H: Hardware + ?Sized>(
        &self,
        (hardware, store, is_on): (&mut H, &Store, bool),
        at: u64,
        width: u8,
        value: u64,
        is_own: IsOwn<'_>,
    ) -> Result<(), Refused> {
        let Some(offset) = self.locate(at, width)? else {
            hardware.write_registers(HostPhysical::new(at), width, value);
            return Ok(());
        };
        if !is_on {
            return Ok(());
        }
        for piece in pieces(offset, width) {
            let (entry, dword) = Self::place(piece.dword);
            if entry < self.usable {
                self.update(store, entry, dword, piece.written(value));
                self.program(hardware, store, entry, is_own);
            }
        }
        Ok(())
    }

    fn update(&self, store: &Store, entry: u16, dword: u64, written: Written) {
        let (mut wanted, mut control) = self.wanted(store, entry);
        match dword {
            0 => wanted.low = written.over(wanted.low) & !3,
            1 => wanted.high = written.over(wanted.high),
            2 => wanted.data = written.over(wanted.data),
            _ => control = written.over(control) & MASKED,
        }
        self.set_wanted(store, entry, wanted, control);
    }

    /// Gives the function the message that the cell wants, if it may have it; else the entry is masked.
    fn program<H: Hardware + ?Sized>(
        &self,
        hardware: &mut H,
        store: &Store,
        entry: u16,
        is_own: IsOwn<'_>,
    ) {
        let Some(table) = self.table else {
            return;
        };
        let at = |dword| Self::address(table, entry, dword);
        // Masked while it changes.
        hardware.write_registers(at(3), 4, u64::from(MASKED));
        let (wanted, control) = self.wanted(store, entry);
        if control & MASKED != 0 {
            return;
        }
        let checked = wanted.checked(0, is_own);
        if let Some(message) = hardware.remap(self.id, entry, 0, checked) {
            hardware.write_registers(at(0), 4, message.address.into());
            hardware.write_registers(at(1), 4, 0);
            hardware.write_registers(at(2), 4, message.data.into());
            hardware.write_registers(at(3), 4, 0);
        }
    }
}
