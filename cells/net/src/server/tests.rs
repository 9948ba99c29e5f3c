//! The server on the model of a controller, at one end of a cable; at the other, the host that asks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant as HostInstant};
use std::vec::Vec;

use gaol_abi::network::SIGNATURE;
use gaol_devices::e1000::model::{Device, ModelMemory, ModelRegisters};
use gaol_devices::e1000::{Controller, Interrupts, Model};
use gaol_wire::peer::{Kind, LONGEST, Questions};
use gaol_wire::{Link, Peer};
use proptest::prelude::*;

use super::*;

const HARDWARE: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);

type Driver = Controller<ModelRegisters, ModelMemory>;

fn figures(card: &mut Driver) -> NetworkStatistics {
    let card = card.statistics();
    NetworkStatistics {
        signature: SIGNATURE,
        received: card.received,
        bad: card.bad,
        sent: card.sent,
        refused: card.refused,
        ..NetworkStatistics::default()
    }
}

fn server() -> (Device, Server<'static, Driver>) {
    let device = Device::new(HARDWARE);
    let (registers, memory) = (device.registers(), device.memory());
    let card = Controller::start(registers, memory, Model::I82540, Interrupts::None).unwrap();
    let place = Place {
        hardware: HARDWARE,
        address: ADDRESS,
        prefix: 24,
        seed: 1,
    };
    let storage = Box::leak(Box::new(Storage::new()));
    (device, Server::new(card, place, storage))
}

/// Runs the server on a cable until it is dropped.
struct Machine {
    link: Link,
    end: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Machine {
    fn new() -> Self {
        let link = Link::open().unwrap();
        let far = Link::at(link.far_port(), link.port()).unwrap();
        let end = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&end);
        let thread = thread::spawn(move || {
            let (device, mut server) = server();
            let start = HostInstant::now();
            while !ended.load(Ordering::Relaxed) {
                let soon = HostInstant::now() + Duration::from_millis(5);
                if let Some(frame) = far.receive(soon).unwrap() {
                    device.deliver(&frame);
                }
                let now = Instant::from_millis(start.elapsed().as_millis() as i64);
                server.poll(now, &mut figures);
                for frame in device.sent() {
                    far.send(&frame).unwrap();
                }
                assert_eq!(device.strays(), 0);
            }
        });
        Self {
            link,
            end,
            thread: Some(thread),
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(thread::JoinHandle::join);
        assert!(thread::panicking() || ended.is_some_and(|ended| ended.is_ok()));
    }
}

#[test]
fn pings_and_datagrams_of_all_sizes_are_answered() {
    let machine = Machine::new();
    let mut peer = Peer::find(&machine.link, ADDRESS).unwrap();
    assert_eq!(peer.far().hardware, HARDWARE);
    let before = peer.statistics().unwrap();
    for kind in [Kind::Ping, Kind::Datagram] {
        for size in [8, 9, 17, 18, 19, 56, 999, LONGEST - 1, LONGEST] {
            let trips = peer.ask(Questions::new(kind, 20).size(size)).unwrap();
            assert!(trips.is_perfect(), "{kind:?} {size}: {trips}");
        }
        let trips = peer.ask(Questions::new(kind, 300).window(8)).unwrap();
        assert!(trips.is_perfect(), "{kind:?}: {trips}");
    }
    let after = peer.statistics().unwrap();
    assert_eq!(after.received - before.received, 2 * (9 * 20 + 300) + 1);
    assert_eq!(after.sent - before.sent, 2 * (9 * 20 + 300) + 1);
    assert_eq!(peer.strays, 0);
}

#[test]
fn malformed_frames_are_not_answered_and_do_no_harm() {
    let machine = Machine::new();
    let mut peer = Peer::find(&machine.link, ADDRESS).unwrap();
    for _ in 0..3 {
        let (_, answers) = peer.malformed(Duration::from_millis(200)).unwrap();
        assert_eq!(answers, []);
        let trips = peer.ask(Questions::new(Kind::Ping, 5)).unwrap();
        assert!(trips.is_perfect(), "{trips}");
    }
}

/// A question in a frame, to be delivered without a cable.
fn question(number: u16, size: usize) -> Vec<u8> {
    use gaol_wire::frame::{Content, Datagram, Frame, Host};
    Frame {
        from: gaol_wire::peer::NEAR,
        to: Host {
            hardware: HARDWARE,
            address: ADDRESS,
        },
        content: Content::Udp(Datagram {
            from: number,
            to: ECHO_PORT,
            data: vec![number as u8; size],
        }),
    }
    .bytes()
}

/// Tells the server who the other one is.
fn introduce(device: &Device, server: &mut Server<'_, Driver>) {
    use gaol_wire::frame::{Content, Frame, Host};
    let request = Frame {
        from: gaol_wire::peer::NEAR,
        to: Host {
            hardware: [0; 6],
            address: ADDRESS,
        },
        content: Content::ArpRequest(ADDRESS),
    };
    device.deliver(&request.bytes());
    server.poll(Instant::ZERO, &mut figures);
    assert_eq!(device.sent().len(), 1);
}

#[test]
fn answers_wait_for_room_in_the_ring_and_none_is_lost() {
    let (device, mut server) = server();
    introduce(&device, &mut server);
    device.stall(true);
    let mut asked = 0;
    for number in 1..200 {
        asked += u32::from(device.deliver(&question(number, 100)));
        server.poll(Instant::ZERO, &mut figures);
    }
    assert!(device.sent().is_empty());
    // Both rings are full by now.
    assert!((100..199).contains(&asked), "{asked}");
    device.stall(false);
    let mut answered = device.sent().len();
    for _ in 0..20 {
        server.poll(Instant::ZERO, &mut figures);
        answered += device.sent().len();
    }
    assert_eq!(answered, asked as usize);
    assert_eq!(server.card().statistics().refused, 0);
}

#[test]
fn a_flood_ends_a_call() {
    let (device, mut server) = server();
    introduce(&device, &mut server);
    for number in 1..60 {
        assert!(device.deliver(&question(number, 10)));
    }
    assert!(server.poll(Instant::ZERO, &mut figures));
    assert!(device.sent().len() <= BATCH);
    assert!(server.poll(Instant::ZERO, &mut figures));
    assert!(!server.poll(Instant::ZERO, &mut figures));
}

proptest! {
    /// Whatever is on the wire, the server goes on and answers the next question.
    #[test]
    fn any_frame_is_survived(frames in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..40)) {
        let (device, mut server) = server();
        introduce(&device, &mut server);
        for frame in frames {
            device.deliver(&frame);
            server.poll(Instant::ZERO, &mut figures);
        }
        let _ = device.sent();
        device.deliver(&question(7, 10));
        server.poll(Instant::ZERO, &mut figures);
        prop_assert_eq!(device.sent().len(), 1);
    }

    /// The same with frames that are nearly right.
    #[test]
    fn any_damage_is_survived(damages in proptest::collection::vec((any::<usize>(), any::<u8>()), 0..200)) {
        let (device, mut server) = server();
        introduce(&device, &mut server);
        for (at, value) in damages {
            let mut frame = question(3, 60);
            let length = frame.len();
            // Not its own address: the server would believe it.
            frame[14 + at % (length - 14)] = value;
            device.deliver(&frame);
            server.poll(Instant::ZERO, &mut figures);
        }
        let _ = device.sent();
        device.deliver(&question(7, 10));
        server.poll(Instant::ZERO, &mut figures);
        prop_assert_eq!(device.sent().len(), 1);
    }
}
