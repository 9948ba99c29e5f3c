//! A host on the cable that asks.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gaol_abi::network::{ECHO_PORT, NetworkStatistics, SIGNATURE, STATISTICS_PORT};
use zerocopy::FromBytes;

use crate::frame::{Content, Datagram, Echo, Frame, Host};
use crate::link::Link;
use crate::malformed;
use crate::report::RoundTrips;

/// The asking host.
pub const NEAR: Host = Host {
    hardware: [0x02, 0x67, 0x61, 0x6f, 0x6c, 0x02],
    address: Ipv4Addr::new(10, 0, 2, 2),
};
/// Bytes of the longest echo or datagram in one frame.
pub const LONGEST: usize = 1472;
/// The port that datagrams come from.
const PORT: u16 = 40_000;
/// The identifier of pings.
const IDENTIFIER: u16 = 0x6761;
/// Questions of whom one does not know the address yet, and the time between them.
const ATTEMPTS: u32 = 60;
const BETWEEN: Duration = Duration::from_secs(1);
/// When so much time has passed without a frame, none is on its way.
const QUIET: Duration = Duration::from_millis(500);

/// What to ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// ICMP echo.
    Ping,
    /// UDP echo.
    Datagram,
}

/// How to ask.
#[derive(Clone, Copy, Debug)]
pub struct Questions {
    /// What to ask for.
    pub kind: Kind,
    /// How many.
    pub count: u16,
    /// Bytes of content of each.
    pub size: usize,
    /// How many are under way at the same time.
    pub window: usize,
    /// How long an answer is waited for before a question counts as lost.
    pub patience: Duration,
}

impl Questions {
    /// One after the other, with a short content.
    pub const fn new(kind: Kind, count: u16) -> Self {
        Self {
            kind,
            count,
            size: 56,
            window: 1,
            patience: Duration::from_secs(20),
        }
    }

    /// With so many bytes of content.
    #[must_use]
    pub const fn size(self, size: usize) -> Self {
        Self { size, ..self }
    }

    /// With so many at the same time.
    #[must_use]
    pub const fn window(self, window: usize) -> Self {
        Self { window, ..self }
    }
}

/// A host on the cable, and the one that it asks.
#[derive(Debug)]
pub struct Peer<'a> {
    link: &'a Link,
    far: Host,
    /// Frames that came and were no answer to anything, nor a question that was answered.
    pub strays: u64,
    round: u32,
}

impl<'a> Peer<'a> {
    /// Finds the host with this address, asking until it answers: it may be starting yet.
    ///
    /// # Errors
    /// When it does not answer within a minute.
    pub fn find(link: &'a Link, address: Ipv4Addr) -> Result<Self> {
        let nobody = Host {
            hardware: [0; 6],
            address,
        };
        let mut peer = Self::to(link, nobody);
        for _ in 0..ATTEMPTS {
            if let Some(host) = peer.resolve(BETWEEN)? {
                peer.far = host;
                peer.strays = 0;
                return Ok(peer);
            }
        }
        anyhow::bail!("nobody has the address {address}")
    }

    /// Takes the host as it is known, whether it is there or not.
    pub fn to(link: &'a Link, far: Host) -> Self {
        Self {
            link,
            far,
            strays: 0,
            round: 0,
        }
    }

    /// Asks once who has the other's address.
    ///
    /// # Errors
    /// When the cable fails.
    pub fn resolve(&mut self, patience: Duration) -> Result<Option<Host>> {
        let wanted = self.far.address;
        self.send(Content::ArpRequest(wanted))?;
        let deadline = Instant::now() + patience;
        while let Some(frame) = self.receive(deadline)? {
            let is_answer = frame.content == Content::ArpReply
                && frame.from.address == wanted
                && frame.to == NEAR;
            if is_answer {
                return Ok(Some(frame.from));
            }
            self.strays += 1;
        }
        Ok(None)
    }

    /// The host that is asked.
    pub fn far(&self) -> Host {
        self.far
    }

    fn send(&self, content: Content) -> Result<()> {
        let frame = Frame {
            from: NEAR,
            to: self.far,
            content,
        };
        self.link.send(&frame.bytes())
    }

    /// The next good frame for this host. Who asks for this host's address is answered, and what is no good frame counts as
    /// stray.
    fn receive(&mut self, deadline: Instant) -> Result<Option<Frame>> {
        while let Some(bytes) = self.link.receive(deadline)? {
            match Frame::parse(&bytes) {
                Some(Frame {
                    content: Content::ArpRequest(wanted),
                    from,
                    ..
                }) if wanted == NEAR.address => {
                    let reply = Frame {
                        from: NEAR,
                        to: from,
                        content: Content::ArpReply,
                    };
                    self.link.send(&reply.bytes())?;
                }
                Some(frame) => return Ok(Some(frame)),
                None => self.strays += 1,
            }
        }
        Ok(None)
    }

    /// Asks, and waits for the answers.
    ///
    /// # Errors
    /// When the cable fails, or the content would not fit a frame.
    pub fn ask(&mut self, questions: Questions) -> Result<RoundTrips> {
        let Questions {
            kind,
            count,
            size,
            window,
            patience,
        } = questions;
        ensure!(
            (8..=LONGEST).contains(&size) && window > 0,
            "{size} bytes do not fit a frame, or there is no window"
        );
        self.round += 1;
        let round = self.round;
        let mut trips = RoundTrips::default();
        let mut waiting: BTreeMap<u16, Instant> = BTreeMap::new();
        let mut next = 0;
        while next < count || !waiting.is_empty() {
            while next < count && waiting.len() < window {
                waiting.insert(next, Instant::now());
                self.send(question(kind, round, next, size))?;
                trips.sent += 1;
                next += 1;
            }
            let oldest = waiting.values().min().copied();
            let deadline = oldest.unwrap_or_else(Instant::now) + patience;
            let Some(frame) = self.receive(deadline)? else {
                // Too late: they are lost, and no longer keep others waiting.
                waiting.retain(|_, asked| asked.elapsed() < patience);
                continue;
            };
            match self.judge(&frame, kind, round, size) {
                Verdict::Answer(number) if number < next => match waiting.remove(&number) {
                    Some(asked) => trips.arrived(asked.elapsed()),
                    None => trips.repeated += 1,
                },
                Verdict::Answer(_) | Verdict::Wrong => trips.wrong += 1,
                Verdict::Stray => self.strays += 1,
                Verdict::Late => {}
            }
        }
        Ok(trips)
    }

    fn judge(&self, frame: &Frame, kind: Kind, round: u32, size: usize) -> Verdict {
        let (number, data) = match (&frame.content, kind) {
            (Content::EchoReply(echo), Kind::Ping) if echo.identifier == IDENTIFIER => {
                (echo.sequence, &echo.data)
            }
            (Content::Udp(datagram), Kind::Datagram)
                if datagram.from == ECHO_PORT && datagram.to == PORT =>
            {
                let Some(bytes) = datagram.data.first_chunk() else {
                    return Verdict::Wrong;
                };
                (u16::from_be_bytes(*bytes), &datagram.data)
            }
            // It was asked several times who it is.
            (Content::ArpReply, _) if frame.from == self.far => return Verdict::Late,
            _ => return Verdict::Stray,
        };
        let is_right =
            frame.from == self.far && frame.to == NEAR && *data == content(round, number, size);
        match is_right {
            true => Verdict::Answer(number),
            false if is_earlier(data, round) => Verdict::Late,
            false => Verdict::Wrong,
        }
    }

    /// The cell's figures.
    ///
    /// # Errors
    /// When it does not tell them.
    pub fn statistics(&mut self) -> Result<NetworkStatistics> {
        for _ in 0..ATTEMPTS {
            self.send(Content::Udp(Datagram {
                from: PORT,
                to: STATISTICS_PORT,
                data: b"figures?".to_vec(),
            }))?;
            let deadline = Instant::now() + BETWEEN;
            while let Some(frame) = self.receive(deadline)? {
                match frame.content {
                    Content::Udp(datagram) if datagram.from == STATISTICS_PORT => {
                        let statistics = NetworkStatistics::read_from_bytes(&datagram.data)
                            .ok()
                            .filter(|statistics| statistics.signature == SIGNATURE);
                        return statistics.context("what the cell says are no figures");
                    }
                    _ => self.strays += 1,
                }
            }
        }
        anyhow::bail!("the cell does not tell its figures")
    }

    /// Sends all frames of [`malformed`], and counts what is answered to them: nothing should be. Returns how many were sent,
    /// and the answers.
    ///
    /// # Errors
    /// When the cable fails.
    pub fn malformed(&mut self, patience: Duration) -> Result<(usize, Vec<Frame>)> {
        // What is late is no answer to these.
        while self.receive(Instant::now() + QUIET)?.is_some() {}
        let frames = malformed::frames(NEAR, self.far);
        for (_, frame) in &frames {
            self.link.send(frame)?;
        }
        let mut answers = Vec::new();
        let deadline = Instant::now() + patience;
        while let Some(frame) = self.receive(deadline)? {
            // That something is not reached may be said.
            if !matches!(frame.content, Content::Icmp(..)) {
                answers.push(frame);
            }
        }
        Ok((frames.len(), answers))
    }
}

enum Verdict {
    Answer(u16),
    Wrong,
    Stray,
    Late,
}

/// What a question with this number has as content: the number, the round, and bytes that depend on both.
fn content(round: u32, number: u16, size: usize) -> Vec<u8> {
    let mut data = number.to_be_bytes().to_vec();
    data.extend(round.to_be_bytes());
    let mut state = round.wrapping_mul(0x9e37_79b9) ^ u32::from(number) ^ 0x5bd1_e995;
    while data.len() < size {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        data.push((state >> 24) as u8);
    }
    data
}

/// Whether this is an answer to an earlier round, which has come too late.
fn is_earlier(data: &[u8], round: u32) -> bool {
    let bytes = data.get(2..6).and_then(|bytes| bytes.try_into().ok());
    bytes.is_some_and(|bytes| (1..round).contains(&u32::from_be_bytes(bytes)))
}

fn question(kind: Kind, round: u32, number: u16, size: usize) -> Content {
    let data = content(round, number, size);
    match kind {
        Kind::Ping => Content::EchoRequest(Echo {
            identifier: IDENTIFIER,
            sequence: number,
            data,
        }),
        Kind::Datagram => Content::Udp(Datagram {
            from: PORT,
            to: ECHO_PORT,
            data,
        }),
    }
}

#[cfg(test)]
mod tests;
