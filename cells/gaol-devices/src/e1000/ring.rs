//! The two rings of descriptors, and their buffers.
//!
//! Where a descriptor and its buffer are follows from its number alone; addresses are written anew for each use, and never
//! read back. Invariant: `next` and `oldest` are below [`RING_LENGTH`], whatever the device writes.

use gaol_cell::dma::{DeviceAddress, Memory};

use super::registers::{
    DESCRIPTOR_SIZE, ReceiveStatus, Received, TRANSMIT_DONE, TransmitCommand, Transmitted,
};

/// Descriptors of each ring.
pub const RING_LENGTH: usize = 64;
/// Bytes of the buffer of each descriptor.
pub const BUFFER_SIZE: usize = 2048;
/// Bytes of a ring.
pub(super) const RING_SIZE: usize = RING_LENGTH * DESCRIPTOR_SIZE;
/// Bytes of memory that the driver takes: two rings, a page for each, and their buffers.
pub const MEMORY_SIZE: usize = BUFFERS + 2 * RING_LENGTH * BUFFER_SIZE;

const RECEIVE_RING: usize = 0;
const TRANSMIT_RING: usize = 0x1000;
const BUFFERS: usize = 0x2000;
const _: () = assert!(RING_SIZE <= TRANSMIT_RING && RING_SIZE.is_multiple_of(128));

/// The shortest frame: two addresses and a type.
const SHORTEST: usize = 14;

fn receive_buffer(index: usize) -> usize {
    BUFFERS + index * BUFFER_SIZE
}

fn transmit_buffer(index: usize) -> usize {
    receive_buffer(RING_LENGTH + index)
}

fn after(index: usize) -> usize {
    (index + 1) % RING_LENGTH
}

/// What was in a receive descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// A whole frame with so many bytes.
    Frame(usize),
    /// Something that is no whole frame, or is said to be damaged.
    Bad,
    /// Nothing yet.
    Nothing,
}

/// Frames that the device receives.
#[derive(Debug, Default)]
pub(super) struct ReceiveRing {
    next: usize,
    /// The frame that is being received does not fit a buffer: the rest of it is left out.
    skipping: bool,
}

impl ReceiveRing {
    /// Where the device finds the ring.
    pub(super) fn base(memory: &impl Memory) -> DeviceAddress {
        memory.device_address(RECEIVE_RING)
    }

    /// The first tail: the device may fill all descriptors but one.
    pub(super) const FIRST_TAIL: u32 = RING_LENGTH as u32 - 1;

    /// A ring of empty buffers.
    pub(super) fn new(memory: &mut impl Memory) -> Self {
        for index in 0..RING_LENGTH {
            Self::arm(memory, index);
        }
        Self::default()
    }

    fn arm(memory: &mut impl Memory, index: usize) {
        let descriptor = RECEIVE_RING + index * DESCRIPTOR_SIZE;
        let buffer = memory.device_address(receive_buffer(index)).number();
        memory.write(descriptor + 8, Received::new().into_bits());
        memory.write(descriptor, buffer);
    }

    /// Takes what is in the next descriptor, and gives its buffer back to the device. The second is the tail to be told, if
    /// something was taken.
    pub(super) fn take(
        &mut self,
        memory: &mut impl Memory,
        frame: &mut [u8; BUFFER_SIZE],
    ) -> (Arrival, Option<u32>) {
        let index = self.next;
        let word = memory.read(RECEIVE_RING + index * DESCRIPTOR_SIZE + 8);
        let received = Received::from_bits(word);
        let status = ReceiveStatus::from_bits_retain(received.status());
        if !status.contains(ReceiveStatus::DONE) {
            return (Arrival::Nothing, None);
        }
        let length = usize::from(received.length());
        let is_whole = status.contains(ReceiveStatus::END) && !self.skipping;
        let is_good = received.errors() == 0 && (SHORTEST..=BUFFER_SIZE).contains(&length);
        self.skipping = !status.contains(ReceiveStatus::END);
        let arrival = match frame.get_mut(..length) {
            Some(frame) if is_whole && is_good => {
                memory.copy_out(receive_buffer(index), frame);
                Arrival::Frame(length)
            }
            _ => Arrival::Bad,
        };
        Self::arm(memory, index);
        self.next = after(index);
        (arrival, Some(index as u32))
    }
}

/// Frames that the device sends.
#[derive(Debug, Default)]
pub(super) struct TransmitRing {
    next: usize,
    oldest: usize,
}

impl TransmitRing {
    /// Where the device finds the ring.
    pub(super) fn base(memory: &impl Memory) -> DeviceAddress {
        memory.device_address(TRANSMIT_RING)
    }

    /// An empty ring.
    pub(super) fn new(memory: &mut impl Memory) -> Self {
        for index in 0..RING_LENGTH {
            let descriptor = TRANSMIT_RING + index * DESCRIPTOR_SIZE;
            memory.write(descriptor, 0);
            memory.write(descriptor + 8, 0);
        }
        Self::default()
    }

    /// Takes back what the device has sent, in order. Returns how many frames that were.
    pub(super) fn reclaim(&mut self, memory: &impl Memory) -> usize {
        let mut count = 0;
        while self.oldest != self.next {
            let word = memory.read(TRANSMIT_RING + self.oldest * DESCRIPTOR_SIZE + 8);
            if Transmitted::from_bits(word).status() & TRANSMIT_DONE == 0 {
                break;
            }
            self.oldest = after(self.oldest);
            count += 1;
        }
        count
    }

    /// Frames that the device has not sent yet, as far as is known.
    pub(super) fn pending(&self) -> usize {
        (self.next + RING_LENGTH - self.oldest) % RING_LENGTH
    }

    /// Whether there is room for one more frame. One descriptor is always free: a full ring would look like an empty one.
    pub(super) fn has_room(&self) -> bool {
        after(self.next) != self.oldest
    }

    /// Puts a frame into the ring, which must have room, and the frame must fit. Returns the tail to be told.
    pub(super) fn put(&mut self, memory: &mut impl Memory, frame: &[u8]) -> Option<u32> {
        if !self.has_room() || frame.len() > BUFFER_SIZE {
            return None;
        }
        let (index, buffer) = (self.next, transmit_buffer(self.next));
        memory.copy_in(buffer, frame);
        let command =
            TransmitCommand::END | TransmitCommand::ADD_CHECKSUM | TransmitCommand::REPORT;
        let word = Transmitted::new()
            .with_length(frame.len() as u16)
            .with_command(command.bits());
        let descriptor = TRANSMIT_RING + index * DESCRIPTOR_SIZE;
        let address = memory.device_address(buffer).number();
        memory.write(descriptor, address);
        memory.write(descriptor + 8, word.into_bits());
        self.next = after(index);
        Some(self.next as u32)
    }
}
