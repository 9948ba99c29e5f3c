//! A network card as `smoltcp` sees it.

use gaol_cell::device::Registers;
use gaol_cell::dma::Memory;
use gaol_devices::e1000::{BUFFER_SIZE, Controller};
use smoltcp::phy::{self, DeviceCapabilities, Medium};
use smoltcp::time::Instant;

/// The longest frame, without its checksum.
const LONGEST: usize = 1514;

/// A network card.
pub trait Card {
    /// Takes a frame that was received. Returns its length.
    fn receive(&mut self, frame: &mut [u8; BUFFER_SIZE]) -> Option<usize>;

    /// Whether a frame can be sent now.
    fn can_send(&mut self) -> bool;

    /// Sends a frame. `false`: it was not.
    fn send(&mut self, frame: &[u8]) -> bool;
}

impl<R: Registers, M: Memory> Card for Controller<R, M> {
    fn receive(&mut self, frame: &mut [u8; BUFFER_SIZE]) -> Option<usize> {
        Controller::receive(self, frame)
    }

    fn can_send(&mut self) -> bool {
        Controller::can_send(self)
    }

    fn send(&mut self, frame: &[u8]) -> bool {
        Controller::send(self, frame)
    }
}

/// Room for one frame each way.
#[derive(Debug)]
pub struct Buffers {
    received: [u8; BUFFER_SIZE],
    sent: [u8; LONGEST],
}

impl Buffers {
    /// Empty ones.
    pub const fn new() -> Self {
        Self {
            received: [0; BUFFER_SIZE],
            sent: [0; LONGEST],
        }
    }
}

impl Default for Buffers {
    fn default() -> Self {
        Self::new()
    }
}

/// A card with room for frames.
#[derive(Debug)]
pub struct Adapter<'a, C> {
    /// The card.
    pub card: C,
    buffers: &'a mut Buffers,
}

impl<'a, C: Card> Adapter<'a, C> {
    /// A card with room for frames.
    pub fn new(card: C, buffers: &'a mut Buffers) -> Self {
        Self { card, buffers }
    }
}

/// A frame that was received.
pub struct Received<'a>(&'a [u8]);

/// Permission to send a frame.
pub struct Permission<'a, C> {
    card: &'a mut C,
    buffer: &'a mut [u8; LONGEST],
}

impl phy::RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, with: F) -> R {
        with(self.0)
    }
}

impl<C: Card> phy::TxToken for Permission<'_, C> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, with: F) -> R {
        // `smoltcp` keeps to the capabilities, so it is never longer.
        let frame = &mut self.buffer[..length];
        frame.fill(0);
        let result = with(frame);
        self.card.send(frame);
        result
    }
}

impl<C: Card> phy::Device for Adapter<'_, C> {
    type RxToken<'b>
        = Received<'b>
    where
        Self: 'b;
    type TxToken<'b>
        = Permission<'b, C>
    where
        Self: 'b;

    /// No frame is taken as long as there is no room for an answer: it waits in its ring.
    fn receive(&mut self, _now: Instant) -> Option<(Received<'_>, Permission<'_, C>)> {
        let Self { card, buffers } = self;
        let Buffers { received, sent } = buffers;
        if !card.can_send() {
            return None;
        }
        let length = card.receive(received)?;
        let frame = received.get(..length)?;
        Some((Received(frame), Permission { card, buffer: sent }))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Permission<'_, C>> {
        let Self { card, buffers } = self;
        card.can_send().then_some(Permission {
            card,
            buffer: &mut buffers.sent,
        })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = LONGEST;
        capabilities
    }
}
