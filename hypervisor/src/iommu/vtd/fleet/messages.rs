//! What functions of cells have to send, so that their interrupts arrive as their cells may have them.
//!
//! Invariant: an entry that a message names was claimed for its function.
#![forbid(unsafe_code)]

use super::super::definitions::{InvalidationDescriptor, SourceId};
use super::super::hardware::Hardware;
use super::super::interrupts::Interrupt;
use super::super::root_entries;
use super::Fleet;
use crate::device::pci::FunctionId;
use crate::memory::page_table::TableMemory;

/// What a function has to be told to send.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Remapped {
    /// The low half of the address.
    pub address: u32,
    /// The data.
    pub data: u16,
}

/// No unit remaps interrupts of the function.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotRemapped;

impl Fleet {
    /// What the function has to send so that its interrupts `number` and on, two to the `order` of them, arrive as
    /// `interrupt` says, with vectors that follow each other. `None`: none arrives. `Err`: no unit remaps them.
    ///
    /// # Errors
    /// When no unit remaps interrupts of this function.
    pub fn remap<M: TableMemory, H: Hardware>(
        &mut self,
        hardware: &H,
        memory: &M,
        function: FunctionId,
        (number, order): (u16, u8),
        interrupt: Option<(u8, u32, bool)>,
    ) -> Result<Option<Remapped>, NotRemapped> {
        let seen = self.seen(hardware, memory);
        let mut claimed = self.claimed.iter().flatten();
        let one = claimed.find(|one| one.function == function);
        let one = one.ok_or(NotRemapped)?;
        let Some(Some(driven)) = self.driven.get_mut(one.unit) else {
            return Err(NotRemapped);
        };
        let table = driven.table.as_mut().ok_or(NotRemapped)?;
        let count = 1u16.checked_shl(order.into()).unwrap_or(u16::MAX);
        let is_inside = number
            .checked_add(count)
            .is_some_and(|end| end <= one.count);
        if !is_inside {
            return Ok(None);
        }
        let first = one.first.wrapping_add(number);
        let mut changed = false;
        for offset in 0..count {
            let index = first.wrapping_add(offset);
            let entry = interrupt.and_then(|(vector, destination, nmi)| {
                let interrupt = Interrupt {
                    source: SourceId(function.function),
                    vector: vector.checked_add(offset as u8)?,
                    destination,
                    level_triggered: false,
                    nmi,
                };
                table.encode(interrupt).ok()
            });
            let entry = entry.unwrap_or(root_entries::BLOCKED);
            changed |= table.replace(&seen, index, entry);
        }
        let all = [InvalidationDescriptor::ALL_INTERRUPTS];
        if changed && driven.forget(hardware, &seen, all).is_err() {
            return Ok(None);
        }
        Ok(interrupt.map(|_| message(first, order != 0)))
    }
}

/// A message that names entries from `first` on; `several`: the function sets the low bits of the data itself.
const fn message(first: u16, several: bool) -> Remapped {
    const APICS: u32 = 0xfee0_0000;
    const REMAPPABLE: u32 = 1 << 4;
    const HAS_SUBHANDLE: u32 = 1 << 3;
    let handle = (first as u32 & 0x7fff) << 5 | (first as u32 >> 15) << 2;
    let several = if several { HAS_SUBHANDLE } else { 0 };
    Remapped {
        address: APICS | REMAPPABLE | handle | several,
        data: 0,
    }
}
