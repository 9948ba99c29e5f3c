//! One unit: how it is taken over from Linux, told to forget, and given back.
//!
//! Invariant: every wait has a deadline. What a unit was told to forget it has forgotten when [`Unit::forget`] returns
//! without an error; a unit that has failed once is not asked again, and each call says so.
#![forbid(unsafe_code)]

use core::sync::atomic::Ordering;

use super::definitions::{
    Capability, EVENT_MASKED, ExtendedCapability, InvalidationDescriptor, WIDE_DESCRIPTORS,
    command, fault_status, register,
};
use super::hardware::Hardware;
use crate::memory::address::HostPhysical;
use crate::memory::page_table::TableMemory;

/// Descriptors that the hypervisor's queue holds: one page.
const QUEUE_LENGTH: u32 = 256;
/// Bytes of a descriptor.
const DESCRIPTOR: u32 = 16;
/// Most descriptors of one call.
const MOST_DESCRIPTORS: u32 = 128;
/// Bits of the queue's head and tail that count.
const QUEUE_OFFSET: u64 = 0x7_fff0;

/// Why a unit does not do what it has to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum UnitError {
    /// It did not answer in time, or not at all any more.
    TimedOut,
    /// It says that a descriptor makes no sense.
    Descriptor,
    /// Linux has it translate DMA.
    TranslatesForLinux,
    /// It has no invalidation queue.
    NoQueue,
    /// Linux has its interrupt entries used by any device.
    SourcesNotVerified,
    /// Linux' queue or table is where nothing can be.
    StrangeState,
}

/// The registers as Linux had them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Before {
    /// Global status.
    pub status: u32,
    /// Root table address.
    pub root_table: u64,
    /// Interrupt remapping table address.
    pub interrupt_table: u64,
    /// Queue address.
    pub queue_address: u64,
    /// Queue tail, which is the head as well.
    pub queue_tail: u64,
    /// Fault event: control, data, address, upper address.
    pub fault_event: [u32; 4],
}

impl Before {
    /// Whether Linux has the unit remap interrupts.
    #[must_use]
    pub const fn remaps(&self) -> bool {
        self.status & command::INTERRUPTS != 0
    }

    /// Whether Linux uses the queue.
    #[must_use]
    pub const fn has_queue(&self) -> bool {
        self.status & command::QUEUE != 0
    }

    /// Bytes of Linux' descriptors.
    #[must_use]
    pub const fn descriptor_size(&self) -> u64 {
        if self.queue_address & WIDE_DESCRIPTORS != 0 {
            32
        } else {
            16
        }
    }
}

/// Registers of the fault event.
pub const FAULT_EVENT: [u64; 4] = [
    register::FAULT_CONTROL,
    register::FAULT_DATA,
    register::FAULT_ADDRESS,
    register::FAULT_UPPER_ADDRESS,
];

/// A unit that the hypervisor has or is about to take.
#[derive(Debug)]
pub struct Unit {
    base: u64,
    /// Its capabilities.
    pub capability: Capability,
    /// The others.
    pub extended: ExtendedCapability,
    /// The registers as Linux had them.
    pub before: Before,
    queue: HostPhysical,
    /// A word that the unit writes to when it has waited.
    status: HostPhysical,
    status_word: usize,
    tail: u32,
    sequence: u32,
    deadline: u64,
    failed: Option<UnitError>,
}

impl Unit {
    /// The unit whose registers are at `base`, as they are. `queue` is a frame of its own, `status_word` a word of the
    /// frame `status`; it has `deadline` cycles for whatever it is told to do.
    #[must_use]
    pub fn look(
        hardware: &impl Hardware,
        base: u64,
        queue: HostPhysical,
        (status, status_word): (HostPhysical, usize),
        deadline: u64,
    ) -> Self {
        let read_32 = |offset: u64| hardware.read_32(base.wrapping_add(offset));
        let read_64 = |offset: u64| hardware.read_64(base.wrapping_add(offset));
        Self {
            base,
            capability: Capability::from_bits(read_64(register::CAPABILITY)),
            extended: ExtendedCapability::from_bits(read_64(register::EXTENDED_CAPABILITY)),
            before: Before {
                status: read_32(register::STATUS),
                root_table: read_64(register::ROOT_TABLE),
                interrupt_table: read_64(register::INTERRUPT_TABLE),
                queue_address: read_64(register::QUEUE_ADDRESS),
                queue_tail: read_64(register::QUEUE_TAIL) & QUEUE_OFFSET,
                fault_event: FAULT_EVENT.map(read_32),
            },
            queue,
            status,
            status_word,
            tail: 0,
            sequence: 0,
            deadline,
            failed: None,
        }
    }

    /// Where its registers are.
    #[must_use]
    pub const fn base(&self) -> u64 {
        self.base
    }

    /// Whether it does what it is told.
    #[must_use]
    pub const fn works(&self) -> bool {
        self.failed.is_none()
    }

    /// Whether the unit is one that can be taken over.
    ///
    /// # Errors
    /// Why it is not.
    pub fn check(&self) -> Result<(), UnitError> {
        if !self.extended.queued_invalidation() {
            Err(UnitError::NoQueue)
        } else if self.before.status & command::TRANSLATION != 0 {
            Err(UnitError::TranslatesForLinux)
        } else {
            Ok(())
        }
    }

    const fn at(&self, offset: u64) -> u64 {
        self.base.wrapping_add(offset)
    }

    fn status(&self, hardware: &impl Hardware) -> u32 {
        hardware.read_32(self.at(register::STATUS))
    }

    /// Waits until the condition holds.
    fn wait<H: Hardware>(
        &mut self,
        hardware: &H,
        mut holds: impl FnMut(&Self, &H) -> bool,
    ) -> Result<(), UnitError> {
        let start = hardware.now();
        while !holds(self, hardware) {
            if hardware.now().wrapping_sub(start) > self.deadline {
                self.failed = Some(UnitError::TimedOut);
                return Err(UnitError::TimedOut);
            }
            hardware.pause();
        }
        Ok(())
    }

    /// Turns a bit of the global status on or off, and waits until it is.
    fn switch(&mut self, hardware: &impl Hardware, bit: u32, on: bool) -> Result<(), UnitError> {
        let kept = self.status(hardware) & command::KEPT & !bit;
        let value = if on { kept | bit } else { kept };
        hardware.write_32(self.at(register::COMMAND), value);
        self.wait(hardware, |unit, hardware| {
            (unit.status(hardware) & bit != 0) == on
        })
    }

    /// Has the unit do something once.
    fn order(&mut self, hardware: &impl Hardware, bit: u32, done: bool) -> Result<(), UnitError> {
        let kept = self.status(hardware) & command::KEPT;
        hardware.write_32(self.at(register::COMMAND), kept | bit);
        self.wait(hardware, |unit, hardware| {
            (unit.status(hardware) & bit != 0) == done
        })
    }

    /// Linux' last invalidation is done, and its queue is off.
    fn stop_queue(&mut self, hardware: &impl Hardware) -> Result<(), UnitError> {
        if self.status(hardware) & command::QUEUE == 0 {
            return Ok(());
        }
        self.wait(hardware, |unit, hardware| {
            let head = hardware.read_64(unit.at(register::QUEUE_HEAD));
            let tail = hardware.read_64(unit.at(register::QUEUE_TAIL));
            (head ^ tail) & QUEUE_OFFSET == 0
        })?;
        self.switch(hardware, command::QUEUE, false)
    }

    fn start_queue(&mut self, hardware: &impl Hardware, address: u64) -> Result<(), UnitError> {
        hardware.write_64(self.at(register::QUEUE_TAIL), 0);
        hardware.write_64(self.at(register::QUEUE_ADDRESS), address);
        self.tail = 0;
        self.switch(hardware, command::QUEUE, true)
    }

    fn clear_errors(&self, hardware: &impl Hardware) {
        let errors =
            fault_status::QUEUE_ERROR | fault_status::COMPLETION_ERROR | fault_status::TIME_OUT;
        hardware.write_32(self.at(register::FAULT_STATUS), errors);
    }

    /// Takes the unit over: its queue becomes the hypervisor's.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn take_queue(&mut self, hardware: &impl Hardware) -> Result<(), UnitError> {
        self.stop_queue(hardware)?;
        self.clear_errors(hardware);
        self.start_queue(hardware, self.queue.as_u64())
    }

    /// Makes the unit use an interrupt remapping table. Entries of the old one are forgotten.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn set_interrupt_table<M: TableMemory>(
        &mut self,
        hardware: &impl Hardware,
        memory: &M,
        address: u64,
    ) -> Result<(), UnitError> {
        hardware.write_64(self.at(register::INTERRUPT_TABLE), address);
        self.order(hardware, command::SET_INTERRUPT_TABLE, true)?;
        self.forget(hardware, memory, [InvalidationDescriptor::ALL_INTERRUPTS])
    }

    /// Lets no interrupt of the format of old pass.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn block_compatibility(&mut self, hardware: &impl Hardware) -> Result<(), UnitError> {
        self.switch(hardware, command::COMPATIBILITY, false)
    }

    /// Translates DMA by a root table from now on.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn start_translation<M: TableMemory>(
        &mut self,
        hardware: &impl Hardware,
        memory: &M,
        root_table: HostPhysical,
    ) -> Result<(), UnitError> {
        hardware.write_64(self.at(register::ROOT_TABLE), root_table.as_u64());
        self.order(hardware, command::SET_ROOT_TABLE, true)?;
        let all = [
            InvalidationDescriptor::ALL_CONTEXTS,
            InvalidationDescriptor::ALL_TRANSLATIONS,
        ];
        self.forget(hardware, memory, all)?;
        self.switch(hardware, command::TRANSLATION, true)
    }

    /// Gives the unit back as Linux had it, with its queue where Linux has it by now: `queue_tail` bytes from its start,
    /// at `queue_address`, with the interrupt remapping table `interrupt_table` and the fault event.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn give_back<M: TableMemory>(
        &mut self,
        hardware: &impl Hardware,
        memory: &M,
        now: &Before,
    ) -> Result<(), UnitError> {
        self.switch(hardware, command::TRANSLATION, false)?;
        hardware.write_64(self.at(register::ROOT_TABLE), now.root_table);
        let all = [
            InvalidationDescriptor::ALL_CONTEXTS,
            InvalidationDescriptor::ALL_TRANSLATIONS,
        ];
        self.forget(hardware, memory, all)?;
        if now.status & command::SET_INTERRUPT_TABLE != 0 {
            self.set_interrupt_table(hardware, memory, now.interrupt_table)?;
        }
        self.switch(hardware, command::INTERRUPTS, now.remaps())?;
        let passes = now.status & command::COMPATIBILITY != 0;
        self.switch(hardware, command::COMPATIBILITY, passes)?;
        self.set_fault_event(hardware, now.fault_event);
        self.stop_queue(hardware)?;
        if now.has_queue() {
            self.return_queue(hardware, memory, now)?;
        } else {
            hardware.write_64(self.at(register::QUEUE_ADDRESS), now.queue_address);
        }
        Ok(())
    }

    /// Linux goes on in the middle of its queue, and a unit begins at the front: it is led to the place by descriptors that
    /// wait for nothing. What stood there is put back.
    fn return_queue<M: TableMemory>(
        &mut self,
        hardware: &impl Hardware,
        memory: &M,
        now: &Before,
    ) -> Result<(), UnitError> {
        let start = now.queue_address & !0xfff;
        let size = now.descriptor_size();
        let kept = memory.entries(self.queue);
        let most = (kept.len() as u64).wrapping_mul(8);
        let tail = now.queue_tail & QUEUE_OFFSET;
        if tail > most {
            // A queue longer than what can be kept: Linux' has one page.
            return self.start_queue(hardware, now.queue_address);
        }
        let mut sequence = self.sequence;
        for (offset, slot) in (0..tail).step_by(8).zip(kept) {
            let at = start.wrapping_add(offset);
            let Some(before) = hardware.read_root(at) else {
                return Err(UnitError::StrangeState);
            };
            slot.store(before, Ordering::Relaxed);
            if offset.is_multiple_of(size) {
                sequence = sequence.wrapping_add(1);
            }
            let wait = InvalidationDescriptor::wait(sequence, self.status_address());
            let [low, high] = wait.0;
            // Descriptors have 16 or 32 bytes.
            let value = match offset & size.wrapping_sub(1) {
                0 => low,
                8 => high,
                _ => 0,
            };
            hardware.write_root(at, value);
        }
        self.sequence = sequence;
        self.start_queue(hardware, now.queue_address)?;
        hardware.write_64(self.at(register::QUEUE_TAIL), tail);
        let arrived = self.wait(hardware, |unit, hardware| {
            hardware.read_64(unit.at(register::QUEUE_HEAD)) & QUEUE_OFFSET == tail
                && (tail == 0 || unit.has_waited(memory, sequence))
        });
        for (offset, slot) in (0..tail).step_by(8).zip(kept) {
            hardware.write_root(start.wrapping_add(offset), slot.load(Ordering::Relaxed));
        }
        arrived
    }

    /// Writes the registers of the fault event, with the message masked as long as it is not whole.
    pub fn set_fault_event(&self, hardware: &impl Hardware, event: [u32; 4]) {
        let [control, ..] = event;
        hardware.write_32(self.at(register::FAULT_CONTROL), EVENT_MASKED);
        for (offset, value) in FAULT_EVENT.into_iter().zip(event).skip(1) {
            hardware.write_32(self.at(offset), value);
        }
        hardware.write_32(self.at(register::FAULT_CONTROL), control & EVENT_MASKED);
    }

    fn status_address(&self) -> u64 {
        let offset = (self.status_word as u64).wrapping_mul(8);
        self.status.as_u64().wrapping_add(offset)
    }

    fn has_waited<M: TableMemory>(&self, memory: &M, sequence: u32) -> bool {
        let word = memory.entries(self.status).get(self.status_word);
        word.is_some_and(|word| word.load(Ordering::Acquire) as u32 == sequence)
    }

    fn put<M: TableMemory>(&mut self, memory: &M, descriptor: InvalidationDescriptor) {
        let InvalidationDescriptor(words) = descriptor;
        let first = (self.tail as usize).wrapping_mul(2);
        let slots = memory.entries(self.queue).iter().skip(first);
        for (slot, word) in slots.zip(words) {
            // The unit fetches descriptors through the processor's caches.
            slot.store(word, Ordering::Release);
        }
        self.tail = self.tail.wrapping_add(1) % QUEUE_LENGTH;
    }

    /// Has the unit forget, and waits until it has.
    ///
    /// # Errors
    /// When it does not answer, or did not before.
    pub fn forget<M: TableMemory>(
        &mut self,
        hardware: &impl Hardware,
        memory: &M,
        descriptors: impl IntoIterator<Item = InvalidationDescriptor>,
    ) -> Result<(), UnitError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        if self.capability.write_buffer_flush() {
            self.order(hardware, command::FLUSH_WRITE_BUFFER, false)?;
        }
        let mut count = 0u32;
        for descriptor in descriptors {
            if count == MOST_DESCRIPTORS {
                self.drain(hardware, memory)?;
                count = 0;
            }
            self.put(memory, descriptor);
            count = count.wrapping_add(1);
        }
        self.drain(hardware, memory)
    }

    /// Hands over what was put, and waits for it.
    fn drain<M: TableMemory>(
        &mut self,
        hardware: &impl Hardware,
        memory: &M,
    ) -> Result<(), UnitError> {
        let sequence = self.sequence.wrapping_add(1);
        self.sequence = sequence;
        self.put(
            memory,
            InvalidationDescriptor::wait(sequence, self.status_address()),
        );
        let tail = self.tail.wrapping_mul(DESCRIPTOR);
        hardware.write_64(self.at(register::QUEUE_TAIL), tail.into());
        let mut refused = false;
        let errors =
            fault_status::QUEUE_ERROR | fault_status::COMPLETION_ERROR | fault_status::TIME_OUT;
        self.wait(hardware, |unit, hardware| {
            // No device has a TLB, so that each of these is a fault of the unit or of ours.
            let state = hardware.read_32(unit.at(register::FAULT_STATUS));
            refused = state & errors != 0;
            refused || unit.has_waited(memory, sequence)
        })?;
        if refused {
            self.failed = Some(UnitError::Descriptor);
            return Err(UnitError::Descriptor);
        }
        Ok(())
    }

    /// Takes the recorded faults out, at most `most`: the low and the high half of each. Returns how many, and whether
    /// others were lost.
    pub fn take_faults(
        &self,
        hardware: &impl Hardware,
        most: usize,
        mut visit: impl FnMut(u64, u64),
    ) -> (usize, bool) {
        let state = hardware.read_32(self.at(register::FAULT_STATUS));
        let lost = state & fault_status::OVERFLOW != 0;
        if state & (fault_status::PENDING | fault_status::OVERFLOW) == 0 {
            return (0, false);
        }
        let first = u64::from(self.capability.fault_registers_at()).wrapping_mul(16);
        let registers = usize::from(self.capability.fault_registers()).wrapping_add(1);
        let mut index = (state >> 8 & 0xff) as usize;
        let mut count = 0usize;
        for _ in 0..registers.min(most) {
            let at = first.wrapping_add((index as u64).wrapping_mul(16));
            let at = self.at(at);
            let high = hardware.read_64(at.wrapping_add(8));
            if high >> 63 == 0 {
                break;
            }
            visit(hardware.read_64(at), high);
            // The bit that says that the register is full is in its last 32.
            hardware.write_32(at.wrapping_add(12), 1 << 31);
            count = count.wrapping_add(1);
            index = index.wrapping_add(1);
            if index >= registers {
                index = 0;
            }
        }
        if lost {
            hardware.write_32(self.at(register::FAULT_STATUS), fault_status::OVERFLOW);
        }
        (count, lost)
    }
}
