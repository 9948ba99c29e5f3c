//! The services: ARP, ICMP echo, UDP echo, and figures on demand.

use core::net::Ipv4Addr;

use gaol_abi::network::{ECHO_PORT, NetworkStatistics, STATISTICS_PORT};
use smoltcp::iface::{
    Config, Interface, PollIngressSingleResult, SocketHandle, SocketSet, SocketStorage,
};
use smoltcp::socket::udp::{self, PacketBuffer, PacketMetadata, Socket};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr};
use zerocopy::IntoBytes;

use crate::adapter::{Adapter, Buffers, Card};

/// Bytes of the answers that wait for room in the ring, and of what waits for an answer.
const QUEUE: usize = 4096;
const QUEUED: usize = 8;
/// The longest datagram in one frame.
const LONGEST: usize = 1472;
/// Frames that a call looks at, before the cell attends to other things.
const BATCH: usize = 32;

/// All memory that the server takes.
#[derive(Debug)]
pub struct Storage<'a> {
    buffers: Buffers,
    sockets: [SocketStorage<'a>; 2],
    echo: [Queue; 2],
    statistics: [Queue; 2],
    datagram: [u8; LONGEST],
}

#[derive(Debug)]
struct Queue {
    metadata: [PacketMetadata; QUEUED],
    data: [u8; QUEUE],
}

impl Queue {
    const fn new() -> Self {
        Self {
            metadata: [PacketMetadata::EMPTY; QUEUED],
            data: [0; QUEUE],
        }
    }

    fn buffer(&mut self) -> PacketBuffer<'_> {
        PacketBuffer::new(&mut self.metadata[..], &mut self.data[..])
    }
}

impl Storage<'_> {
    /// Empty memory.
    pub const fn new() -> Self {
        Self {
            buffers: Buffers::new(),
            sockets: [SocketStorage::EMPTY; 2],
            echo: [const { Queue::new() }; 2],
            statistics: [const { Queue::new() }; 2],
            datagram: [0; LONGEST],
        }
    }
}

impl Default for Storage<'_> {
    fn default() -> Self {
        Self::new()
    }
}

/// Where the server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The card's address.
    pub hardware: [u8; 6],
    /// The server's address.
    pub address: Ipv4Addr,
    /// Bits of it that name the network.
    pub prefix: u8,
    /// Any number, another one each time.
    pub seed: u64,
}

/// The server on a card.
pub struct Server<'a, C> {
    adapter: Adapter<'a, C>,
    interface: Interface,
    sockets: SocketSet<'a>,
    echo: SocketHandle,
    statistics: SocketHandle,
    datagram: &'a mut [u8; LONGEST],
}

impl<'a, C: Card> Server<'a, C> {
    /// A server that has answered nothing yet.
    ///
    /// # Panics
    /// When the address is not one host's.
    pub fn new(card: C, place: Place, storage: &'a mut Storage<'a>) -> Self {
        let Storage {
            buffers,
            sockets,
            echo: [echo_in, echo_out],
            statistics: [statistics_in, statistics_out],
            datagram,
        } = storage;
        let mut adapter = Adapter::new(card, buffers);
        let mut config = Config::new(HardwareAddress::Ethernet(EthernetAddress(place.hardware)));
        config.random_seed = place.seed;
        let mut interface = Interface::new(config, &mut adapter, Instant::ZERO);
        interface.update_ip_addrs(|addresses| {
            let address = IpCidr::new(IpAddress::Ipv4(place.address), place.prefix);
            // There is room for one at least.
            let _ = addresses.push(address);
        });
        let mut sockets = SocketSet::new(&mut sockets[..]);
        let mut socket = |port, received: &'a mut Queue, sent: &'a mut Queue| {
            let mut socket = Socket::new(received.buffer(), sent.buffer());
            if socket.bind(port).is_err() {
                unreachable!("the ports are not zero and the sockets are new");
            }
            sockets.add(socket)
        };
        let echo = socket(ECHO_PORT, echo_in, echo_out);
        let statistics = socket(STATISTICS_PORT, statistics_in, statistics_out);
        Self {
            adapter,
            interface,
            sockets,
            echo,
            statistics,
            datagram,
        }
    }

    /// The card.
    pub fn card(&mut self) -> &mut C {
        &mut self.adapter.card
    }

    /// Answers what has come, some frames at the most. `statistics` is asked when somebody wants to know. Returns whether
    /// anything was to be done.
    pub fn poll(
        &mut self,
        now: Instant,
        statistics: &mut impl FnMut(&mut C) -> NetworkStatistics,
    ) -> bool {
        let mut is_busy = false;
        for _ in 0..BATCH {
            let (adapter, sockets) = (&mut self.adapter, &mut self.sockets);
            match self.interface.poll_ingress_single(now, adapter, sockets) {
                PollIngressSingleResult::None => break,
                PollIngressSingleResult::PacketProcessed => is_busy = true,
                PollIngressSingleResult::SocketStateChanged => {
                    is_busy = true;
                    self.answer(now, statistics);
                }
            }
        }
        if !is_busy && self.has_answers() {
            self.answer(now, statistics);
        }
        is_busy
    }

    /// Answers that had no room in the ring so far.
    fn has_answers(&self) -> bool {
        [self.echo, self.statistics].into_iter().any(|handle| {
            let socket = self.sockets.get::<Socket<'_>>(handle);
            socket.send_queue() > 0 || socket.recv_queue() > 0
        })
    }

    fn answer(&mut self, now: Instant, statistics: &mut impl FnMut(&mut C) -> NetworkStatistics) {
        let socket = self.sockets.get_mut::<Socket<'_>>(self.echo);
        while socket.can_recv() && socket.can_send() {
            let Ok((length, from)) = socket.recv_slice(&mut self.datagram[..]) else {
                continue;
            };
            reply(socket, &self.datagram[..length], from);
        }
        let socket = self.sockets.get_mut::<Socket<'_>>(self.statistics);
        while socket.can_recv() && socket.can_send() {
            let Ok((_, from)) = socket.recv_slice(&mut self.datagram[..]) else {
                continue;
            };
            let figures = statistics(&mut self.adapter.card);
            reply(socket, figures.as_bytes(), from);
        }
        self.interface
            .poll_egress(now, &mut self.adapter, &mut self.sockets);
    }
}

/// Sends an answer where the question came from. When its queue is full, it is lost, as datagrams may be.
fn reply(socket: &mut Socket<'_>, data: &[u8], from: udp::UdpMetadata) {
    let _ = socket.send_slice(data, from.endpoint);
}

#[cfg(test)]
mod tests;
