//! Frames: Ethernet with ARP, or with IPv4 and ICMP echo or UDP.
//!
//! RFC 826, 791, 792, 768, 1071. Made and read here by hand, so that the cell's own stack is held against another one.

use std::net::Ipv4Addr;

/// An Ethernet address.
pub type Hardware = [u8; 6];
/// Everybody.
pub const BROADCAST: Hardware = [0xff; 6];

const IPV4: [u8; 2] = [0x08, 0x00];
const ARP: [u8; 2] = [0x08, 0x06];
/// Hardware type Ethernet, protocol IPv4, lengths 6 and 4.
const ARP_KIND: [u8; 6] = [0, 1, 8, 0, 6, 4];
/// Protocol numbers of IPv4.
pub(crate) const ICMP: u8 = 1;
pub(crate) const UDP: u8 = 17;
/// The shortest frame without its checksum.
const SHORTEST: usize = 60;

/// One of two hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host {
    /// Its Ethernet address.
    pub hardware: Hardware,
    /// Its IPv4 address.
    pub address: Ipv4Addr,
}

/// What a frame says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Who has this address?
    ArpRequest(Ipv4Addr),
    /// The sender has the sender's address.
    ArpReply,
    /// "Ping".
    EchoRequest(Echo),
    /// Its answer.
    EchoReply(Echo),
    /// A datagram.
    Udp(Datagram),
    /// ICMP of another type and code.
    Icmp(u8, u8),
}

/// A message of ICMP echo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Echo {
    /// Whose.
    pub identifier: u16,
    /// Which.
    pub sequence: u16,
    /// The content.
    pub data: Vec<u8>,
}

/// A datagram of UDP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// Port of the sender.
    pub from: u16,
    /// Port of the receiver.
    pub to: u16,
    /// The content.
    pub data: Vec<u8>,
}

/// A frame that is right in all of its parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Who sends it.
    pub from: Host,
    /// Whom it is for.
    pub to: Host,
    /// What it says.
    pub content: Content,
}

/// The checksum of the Internet: the complement of the sum in ones' complement.
pub fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum: u64 = 0;
    for part in parts {
        for pair in part.chunks(2) {
            let low = pair.get(1).copied().unwrap_or(0);
            sum += u64::from(u16::from_be_bytes([pair[0], low]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

impl Frame {
    /// The bytes of the frame.
    pub fn bytes(&self) -> Vec<u8> {
        let Self { from, to, content } = self;
        let mut bytes = match content {
            Content::ArpRequest(wanted) => {
                let body = arp(1, *from, [0; 6], *wanted);
                ethernet(BROADCAST, from.hardware, ARP, &body)
            }
            Content::ArpReply => {
                let body = arp(2, *from, to.hardware, to.address);
                ethernet(to.hardware, from.hardware, ARP, &body)
            }
            Content::EchoRequest(echo) => ipv4(*from, *to, ICMP, &icmp(8, echo)),
            Content::EchoReply(echo) => ipv4(*from, *to, ICMP, &icmp(0, echo)),
            Content::Udp(datagram) => ipv4(*from, *to, UDP, &udp(*from, *to, datagram)),
            Content::Icmp(kind, code) => ipv4(*from, *to, ICMP, &[*kind, *code, 0, 0]),
        };
        if bytes.len() < SHORTEST {
            bytes.resize(SHORTEST, 0);
        }
        bytes
    }

    /// Reads a frame. `None`: some part of it is wrong, or of a kind that is not known here.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (to, rest) = bytes.split_first_chunk::<6>()?;
        let (from, rest) = rest.split_first_chunk::<6>()?;
        let (kind, body) = rest.split_first_chunk::<2>()?;
        match *kind {
            ARP => parse_arp(*from, body),
            IPV4 => parse_ipv4(*from, *to, body),
            _ => None,
        }
    }
}

/// A frame around a body.
pub fn ethernet(to: Hardware, from: Hardware, kind: [u8; 2], body: &[u8]) -> Vec<u8> {
    [&to[..], &from, &kind, body].concat()
}

fn arp(operation: u16, from: Host, hardware: Hardware, address: Ipv4Addr) -> Vec<u8> {
    [
        &ARP_KIND[..],
        &operation.to_be_bytes(),
        &from.hardware,
        &from.address.octets(),
        &hardware,
        &address.octets(),
    ]
    .concat()
}

/// The header of IPv4, with its checksum, around a body, in a frame.
pub fn ipv4(from: Host, to: Host, protocol: u8, body: &[u8]) -> Vec<u8> {
    let length = (20 + body.len()) as u16;
    let mut header = vec![0x45, 0];
    header.extend(length.to_be_bytes());
    // No fragments.
    header.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
    header.extend(from.address.octets());
    header.extend(to.address.octets());
    let sum = checksum(&[&header]);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    header.extend(body);
    ethernet(to.hardware, from.hardware, IPV4, &header)
}

pub(crate) fn icmp(kind: u8, echo: &Echo) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0];
    message.extend(echo.identifier.to_be_bytes());
    message.extend(echo.sequence.to_be_bytes());
    message.extend(&echo.data);
    let sum = checksum(&[&message]);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    message
}

fn pseudo_header(from: Ipv4Addr, to: Ipv4Addr, length: u16) -> Vec<u8> {
    let mut header = [from.octets(), to.octets()].concat();
    header.extend([0, UDP]);
    header.extend(length.to_be_bytes());
    header
}

pub(crate) fn udp(from: Host, to: Host, datagram: &Datagram) -> Vec<u8> {
    let length = (8 + datagram.data.len()) as u16;
    let mut message = Vec::new();
    message.extend(datagram.from.to_be_bytes());
    message.extend(datagram.to.to_be_bytes());
    message.extend(length.to_be_bytes());
    message.extend([0, 0]);
    message.extend(&datagram.data);
    let pseudo = pseudo_header(from.address, to.address, length);
    let sum = match checksum(&[&pseudo, &message]) {
        0 => 0xffff,
        sum => sum,
    };
    message[6..8].copy_from_slice(&sum.to_be_bytes());
    message
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    let pair = bytes.get(at..at + 2)?;
    Some(u16::from_be_bytes(pair.try_into().ok()?))
}

fn address(bytes: &[u8], at: usize) -> Option<Ipv4Addr> {
    let octets: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
    Some(octets.into())
}

fn parse_arp(sender: Hardware, body: &[u8]) -> Option<Frame> {
    let body = body.strip_prefix(&ARP_KIND)?;
    let from = Host {
        hardware: body.get(2..8)?.try_into().ok()?,
        address: address(body, 8)?,
    };
    let to = Host {
        hardware: body.get(12..18)?.try_into().ok()?,
        address: address(body, 18)?,
    };
    let content = match word(body, 0)? {
        1 => Content::ArpRequest(to.address),
        2 => Content::ArpReply,
        _ => return None,
    };
    (from.hardware == sender).then_some(Frame { from, to, content })
}

fn parse_ipv4(from: Hardware, to: Hardware, body: &[u8]) -> Option<Frame> {
    let length = usize::from(word(body, 2)?);
    // What is behind it makes the frame long enough.
    let packet = body.get(..length)?;
    let (header, message) = packet.split_at_checked(20)?;
    let is_fragment = word(header, 6)? & 0x3fff != 0;
    if header[0] != 0x45 || is_fragment || checksum(&[header]) != 0 {
        return None;
    }
    let from = Host {
        hardware: from,
        address: address(header, 12)?,
    };
    let to = Host {
        hardware: to,
        address: address(header, 16)?,
    };
    let content = match header[9] {
        ICMP => parse_icmp(message)?,
        UDP => parse_udp(from, to, message)?,
        _ => return None,
    };
    Some(Frame { from, to, content })
}

fn parse_icmp(message: &[u8]) -> Option<Content> {
    let (kind, code) = (*message.first()?, *message.get(1)?);
    if message.len() < 8 || checksum(&[message]) != 0 {
        return None;
    }
    let echo = || {
        Some(Echo {
            identifier: word(message, 4)?,
            sequence: word(message, 6)?,
            data: message.get(8..)?.to_vec(),
        })
    };
    match (kind, code) {
        (0, 0) => Some(Content::EchoReply(echo()?)),
        (8, 0) => Some(Content::EchoRequest(echo()?)),
        _ => Some(Content::Icmp(kind, code)),
    }
}

fn parse_udp(from: Host, to: Host, message: &[u8]) -> Option<Content> {
    let length = word(message, 4)?;
    if usize::from(length) != message.len() || length < 8 {
        return None;
    }
    let pseudo = pseudo_header(from.address, to.address, length);
    // 0: the sender has made none.
    if word(message, 6)? != 0 && checksum(&[&pseudo, message]) != 0 {
        return None;
    }
    Some(Content::Udp(Datagram {
        from: word(message, 0)?,
        to: word(message, 2)?,
        data: message.get(8..)?.to_vec(),
    }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NEAR: Host = Host {
        hardware: [2, 0, 0, 0, 0, 1],
        address: Ipv4Addr::new(10, 0, 2, 2),
    };
    const FAR: Host = Host {
        hardware: [2, 0, 0, 0, 0, 2],
        address: Ipv4Addr::new(10, 0, 2, 15),
    };

    fn frame(content: Content) -> Frame {
        Frame {
            from: NEAR,
            to: FAR,
            content,
        }
    }

    #[test]
    fn the_checksum_is_the_one_of_the_rfc() {
        // RFC 1071, section 3.
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(checksum(&[&bytes]), !0xddf2);
        assert_eq!(checksum(&[&bytes[..3]]), !0xf201);
    }

    #[test]
    fn a_ping_is_what_it_is_everywhere() {
        let echo = Echo {
            identifier: 0x1234,
            sequence: 1,
            data: b"abcd".to_vec(),
        };
        let bytes = frame(Content::EchoRequest(echo)).bytes();
        let expected = [
            0x02, 0, 0, 0, 0, 2, 0x02, 0, 0, 0, 0, 1, 0x08, 0, 0x45, 0, 0, 0x20, 0, 0, 0x40, 0,
            0x40, 0x01, 0x22, 0xcd, 10, 0, 2, 2, 10, 0, 2, 15, 8, 0, 0x21, 0x04, 0x12, 0x34, 0, 1,
        ];
        assert_eq!(bytes[..expected.len()], expected);
        assert_eq!(bytes.len(), 60);
    }

    #[test]
    fn requests_and_answers_of_arp_are_read() {
        let request = Frame {
            to: Host {
                hardware: [0; 6],
                address: FAR.address,
            },
            ..frame(Content::ArpRequest(FAR.address))
        };
        assert_eq!(Frame::parse(&request.bytes()), Some(request));
        let reply = frame(Content::ArpReply);
        assert_eq!(Frame::parse(&reply.bytes()), Some(reply));
    }

    fn content() -> impl Strategy<Value = Content> {
        let data = proptest::collection::vec(any::<u8>(), 0..1472);
        prop_oneof![
            (any::<u16>(), any::<u16>(), data.clone(), any::<bool>()).prop_map(
                |(identifier, sequence, data, reply)| {
                    let echo = Echo {
                        identifier,
                        sequence,
                        data,
                    };
                    match reply {
                        true => Content::EchoReply(echo),
                        false => Content::EchoRequest(echo),
                    }
                }
            ),
            (any::<u16>(), any::<u16>(), data)
                .prop_map(|(from, to, data)| Content::Udp(Datagram { from, to, data })),
        ]
    }

    proptest! {
        #[test]
        fn frames_are_read_as_they_are_written(content in content()) {
            let frame = frame(content);
            let bytes = frame.bytes();
            prop_assert!((60..=1514).contains(&bytes.len()));
            prop_assert_eq!(Frame::parse(&bytes), Some(frame));
        }

        /// A bit that falls over is seen wherever a checksum or an address is over it.
        #[test]
        fn damage_is_seen(content in content(), at: usize, bit in 0u32..8) {
            let frame = frame(content);
            let mut bytes = frame.bytes();
            let length = 14 + usize::from(u16::from_be_bytes([bytes[16], bytes[17]]));
            bytes[at % length] ^= 1 << bit;
            prop_assert_ne!(Frame::parse(&bytes), Some(frame));
        }

        #[test]
        fn any_bytes_are_a_frame_or_not(bytes: Vec<u8>) {
            let _ = Frame::parse(&bytes);
        }
    }
}
