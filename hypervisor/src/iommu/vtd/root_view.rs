//! A unit's registers as the root sees them: as if it had the unit for itself, with nothing translated but interrupts.
//!
//! Invariant: nothing that the root writes here reaches the unit as it is. What it asks for is told by [`Effect`], and
//! done by those who check it. Each call of [`RootView::next`] takes one descriptor, and none twice, so that the work of
//! one access has a bound whatever the queue says.
#![forbid(unsafe_code)]

use super::definitions::{InvalidationDescriptor, Kind, command, fault_status, register};
use super::hardware::Hardware;
use super::unit::Before;

/// Bits of head and tail that count.
const QUEUE_OFFSET: u64 = 0x7_fff0;

/// What a write of the root's asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Nothing.
    None,
    /// There may be descriptors in its queue.
    Queue,
    /// It has another interrupt remapping table.
    InterruptTable,
    /// It has another fault event.
    FaultEvent,
    /// It wants DMA translated, which is not done.
    Translation,
}

/// The shadow of a unit's registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RootView {
    /// What is as Linux has it by now.
    pub now: Before,
    /// The interrupt remapping table's address as it was written; it counts when the unit is told so.
    pending_table: u64,
    head: u64,
    fault_status: u32,
    completion_event: [u32; 4],
}

const fn low(value: u64) -> u32 {
    value as u32
}

const fn high(value: u64) -> u32 {
    (value >> 32) as u32
}

const fn with_half(value: u64, is_high: bool, half: u32) -> u64 {
    if is_high {
        value & 0xffff_ffff | (half as u64) << 32
    } else {
        value & !0xffff_ffff | half as u64
    }
}

impl RootView {
    /// A unit as Linux left it.
    #[must_use]
    pub const fn new(before: Before) -> Self {
        Self {
            now: before,
            pending_table: before.interrupt_table,
            head: before.queue_tail,
            fault_status: 0,
            completion_event: [super::definitions::EVENT_MASKED, 0, 0, 0],
        }
    }

    /// Reads 32 bits. `None`: of a register that tells nothing about who has the unit.
    #[must_use]
    pub fn read(&self, offset: u64) -> Option<u32> {
        let half = |value: u64| {
            if offset & 4 == 0 {
                low(value)
            } else {
                high(value)
            }
        };
        let [control, data, address, upper] = self.now.fault_event;
        let event = |index: u64| {
            let register = self.completion_event.get(index as usize);
            register.copied().unwrap_or(0)
        };
        Some(match offset {
            0x00..0x18 => return None,
            register::STATUS => self.now.status,
            register::ROOT_TABLE | 0x24 => half(self.now.root_table),
            register::FAULT_STATUS => self.fault_status,
            register::FAULT_CONTROL => control,
            register::FAULT_DATA => data,
            register::FAULT_ADDRESS => address,
            register::FAULT_UPPER_ADDRESS => upper,
            register::QUEUE_HEAD => low(self.head),
            register::QUEUE_TAIL => low(self.now.queue_tail),
            register::QUEUE_ADDRESS | 0x94 => half(self.now.queue_address),
            register::COMPLETION_CONTROL..=register::COMPLETION_UPPER_ADDRESS => {
                event(offset.wrapping_sub(register::COMPLETION_CONTROL) / 4)
            }
            register::INTERRUPT_TABLE | 0xbc => half(self.pending_table),
            // Commands are done at once, no fault is the root's to see, and there is nothing else.
            _ => 0,
        })
    }

    /// Writes 32 bits.
    pub fn write(&mut self, offset: u64, value: u32) -> Effect {
        let is_high = offset & 4 != 0;
        match offset {
            register::COMMAND => return self.command(value),
            register::ROOT_TABLE | 0x24 => {
                self.now.root_table = with_half(self.now.root_table, is_high, value);
            }
            register::FAULT_STATUS => self.fault_status &= !value,
            register::FAULT_CONTROL..=register::FAULT_UPPER_ADDRESS => {
                let index = offset.wrapping_sub(register::FAULT_CONTROL) / 4;
                if let Some(slot) = self.now.fault_event.get_mut(index as usize) {
                    *slot = value;
                }
                return Effect::FaultEvent;
            }
            register::QUEUE_TAIL => {
                self.now.queue_tail = u64::from(value) & QUEUE_OFFSET;
                return Effect::Queue;
            }
            register::QUEUE_ADDRESS | 0x94 => {
                self.now.queue_address = with_half(self.now.queue_address, is_high, value);
            }
            register::COMPLETION_CONTROL..=register::COMPLETION_UPPER_ADDRESS => {
                let index = offset.wrapping_sub(register::COMPLETION_CONTROL) / 4;
                if let Some(slot) = self.completion_event.get_mut(index as usize) {
                    *slot = value;
                }
            }
            register::INTERRUPT_TABLE | 0xbc => {
                self.pending_table = with_half(self.pending_table, is_high, value);
            }
            _ => {}
        }
        Effect::None
    }

    /// Writes 64 bits.
    pub fn write_wide(&mut self, offset: u64, value: u64) -> Effect {
        let first = self.write(offset, low(value));
        let second = self.write(offset.wrapping_add(4), high(value));
        match first {
            Effect::None => second,
            _ => first,
        }
    }

    fn command(&mut self, value: u32) -> Effect {
        let before = self.now.status;
        let switched = command::QUEUE | command::INTERRUPTS | command::COMPATIBILITY;
        let mut effect = Effect::None;
        self.now.status = before & !switched | value & switched;
        if before & !self.now.status & command::QUEUE != 0 {
            self.head = 0;
            self.now.queue_tail = 0;
        }
        if value & command::SET_ROOT_TABLE != 0 {
            self.now.status |= command::SET_ROOT_TABLE;
        }
        if value & command::SET_INTERRUPT_TABLE != 0 {
            self.now.status |= command::SET_INTERRUPT_TABLE;
            self.now.interrupt_table = self.pending_table;
            effect = Effect::InterruptTable;
        }
        if value & command::TRANSLATION != 0 {
            effect = Effect::Translation;
        }
        effect
    }

    /// The root's queue has a descriptor that was not looked at.
    #[must_use]
    pub const fn is_busy(&self) -> bool {
        self.now.has_queue()
            && self.head != self.now.queue_tail
            && self.fault_status & fault_status::QUEUE_ERROR == 0
    }

    /// Takes the next descriptor from the root's queue, if there is one. One that makes no sense stops the queue. What a
    /// wait has to write is the caller's to write, when all before it is done.
    pub fn next(&mut self, hardware: &impl Hardware) -> Option<Kind> {
        if !self.is_busy() {
            return None;
        }
        let size = self.now.descriptor_size();
        // Two to the power of `pages` pages.
        let length = 4096u64.wrapping_shl((self.now.queue_address & 7) as u32);
        let start = self.now.queue_address & !0xfff;
        let at = start.wrapping_add(self.head);
        let low = hardware.read_root(at);
        let high = hardware.read_root(at.wrapping_add(8));
        let kind = match (low, high) {
            (Some(low), Some(high)) if self.head.is_multiple_of(size) && self.head < length => {
                InvalidationDescriptor([low, high]).kind()
            }
            _ => Kind::Invalid,
        };
        if kind == Kind::Invalid {
            self.fault_status |= fault_status::QUEUE_ERROR;
            return None;
        }
        self.head = match self.head.wrapping_add(size) {
            next if next >= length => 0,
            next => next,
        };
        Some(kind)
    }

    /// Address of an entry of the root's interrupt remapping table, if it has that many.
    #[must_use]
    pub const fn entry_address(&self, index: u32) -> Option<u64> {
        let entries = 2u32.wrapping_shl((self.now.interrupt_table & 0xf) as u32);
        if index >= entries {
            return None;
        }
        let start = self.now.interrupt_table & !0xfff;
        Some(start.wrapping_add((index as u64).wrapping_mul(16)))
    }

    /// The root has its interrupts remapped.
    #[must_use]
    pub const fn remaps(&self) -> bool {
        self.now.remaps()
    }
}
