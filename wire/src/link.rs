//! The cable: Ethernet frames in datagrams of UDP on this host's loopback.
//!
//! QEMU (`-netdev socket,udp=…`) and Bochs (`ethmod=socket`) both send and take one frame in each datagram, without any header.
//! Bochs takes frames at the port that it is told, and sends to the one above; so this end has that one, on both.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Bytes that a datagram can have.
const LARGEST: usize = 65_536;
/// How many ports are tried before it is given up.
const ATTEMPTS: u32 = 1000;

/// This end of a cable.
#[derive(Debug)]
pub struct Link {
    socket: UdpSocket,
    far: SocketAddr,
}

impl Link {
    /// A cable whose far end is for an emulator, which is started later.
    ///
    /// # Errors
    /// When this host has no two adjacent ports.
    pub fn open() -> Result<Self> {
        for _ in 0..ATTEMPTS {
            let own = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot open a port")?;
            let port = own.local_addr()?.port();
            let Some(below) = port.checked_sub(1).filter(|port| *port >= 1024) else {
                continue;
            };
            // It is the emulator's; whether it is free shows when somebody takes it.
            if UdpSocket::bind((Ipv4Addr::LOCALHOST, below)).is_ok() {
                return Ok(Self {
                    socket: own,
                    far: (Ipv4Addr::LOCALHOST, below).into(),
                });
            }
        }
        bail!("this host has no two adjacent UDP ports that are free")
    }

    /// The other end of a cable that is in use as `far` already.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn at(port: u16, far: u16) -> Result<Self> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, port))
            .with_context(|| format!("cannot open port {port}"))?;
        Ok(Self {
            socket,
            far: (Ipv4Addr::LOCALHOST, far).into(),
        })
    }

    /// The port where the emulator takes frames.
    pub fn far_port(&self) -> u16 {
        self.far.port()
    }

    /// The port where this end takes frames: the one above.
    pub fn port(&self) -> u16 {
        self.far.port() + 1
    }

    /// What QEMU's `-netdev` takes for this cable, but for the `id`.
    pub fn qemu(&self) -> String {
        format!(
            "socket,udp=127.0.0.1:{},localaddr=127.0.0.1:{}",
            self.port(),
            self.far_port()
        )
    }

    /// What a network card in Bochs' configuration takes for this cable.
    pub fn bochs(&self) -> String {
        format!("ethmod=socket, ethdev={}", self.far_port())
    }

    /// Sends a frame. As long as nobody is at the far end, it is lost.
    ///
    /// # Errors
    /// When this host does not take it.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        match self.socket.send_to(frame, self.far) {
            Ok(_) => Ok(()),
            // Nobody was there for an earlier one.
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
            Err(error) => Err(error).context("cannot send a frame"),
        }
    }

    /// The next frame; `None`: none has come until `deadline`. What comes from elsewhere is left out.
    ///
    /// # Errors
    /// When this host does not say.
    pub fn receive(&self, deadline: Instant) -> Result<Option<Vec<u8>>> {
        let mut frame = vec![0; LARGEST];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            // What is there already is taken even when it is late.
            let wait = left.max(Duration::from_micros(1));
            self.socket.set_read_timeout(Some(wait))?;
            match self.socket.recv_from(&mut frame) {
                Ok((length, from)) if from == self.far => {
                    frame.truncate(length);
                    return Ok(Some(frame));
                }
                Ok(_) => {}
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock | ErrorKind::TimedOut if left.is_zero() => {
                        return Ok(None);
                    }
                    ErrorKind::WouldBlock
                    | ErrorKind::TimedOut
                    | ErrorKind::Interrupted
                    | ErrorKind::ConnectionRefused => {}
                    _ => return Err(error).context("cannot receive frames"),
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_go_both_ways_and_strangers_are_not_heard() {
        let near = Link::open().unwrap();
        let far = Link::at(near.far_port(), near.port()).unwrap();
        let soon = || Instant::now() + Duration::from_secs(20);
        near.send(b"there").unwrap();
        assert_eq!(far.receive(soon()).unwrap().unwrap(), b"there");
        let stranger = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = (Ipv4Addr::LOCALHOST, near.port());
        stranger.send_to(b"strange", port).unwrap();
        far.send(b"back").unwrap();
        assert_eq!(near.receive(soon()).unwrap().unwrap(), b"back");
        assert_eq!(near.receive(Instant::now()).unwrap(), None);
    }

    #[test]
    fn emulators_are_told_both_ports() {
        let link = Link::open().unwrap();
        let (far, own) = (link.far_port(), link.port());
        assert_eq!(
            link.qemu(),
            format!("socket,udp=127.0.0.1:{own},localaddr=127.0.0.1:{far}")
        );
        assert_eq!(link.bochs(), format!("ethmod=socket, ethdev={far}"));
    }

    #[test]
    fn without_a_far_end_frames_are_lost() {
        let link = Link::open().unwrap();
        for _ in 0..3 {
            link.send(b"nobody").unwrap();
            assert_eq!(link.receive(Instant::now()).unwrap(), None);
        }
    }
}
