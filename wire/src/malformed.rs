//! Frames that are wrong in some part. Whoever gets them must neither answer nor suffer.

use crate::frame::{
    BROADCAST, Content, Datagram, Echo, Frame, Host, ICMP, UDP, checksum, ethernet, icmp, ipv4, udp,
};
use gaol_abi::network::ECHO_PORT;

/// Where things are in a frame of IPv4.
const IP: usize = 14;
const MESSAGE: usize = IP + 20;

/// All of them, each with what is wrong, as `from` sends them to `to`.
pub fn frames(from: Host, to: Host) -> Vec<(&'static str, Vec<u8>)> {
    let echo = Echo {
        identifier: 0xbad,
        sequence: 1,
        data: b"malformed".to_vec(),
    };
    let datagram = Datagram {
        from: 0xbad,
        to: ECHO_PORT,
        data: b"malformed".to_vec(),
    };
    let ping = Frame {
        from,
        to,
        content: Content::EchoRequest(echo.clone()),
    }
    .bytes();
    let echoed = Frame {
        from,
        to,
        content: Content::Udp(datagram.clone()),
    }
    .bytes();
    let changed = |frame: &[u8], at: usize, value: u8| {
        let mut frame = frame.to_vec();
        frame[at] = value;
        frame
    };
    // With the header's checksum made right again.
    let header = |at: usize, value: u8| {
        let mut frame = changed(&ping, at, value);
        frame[IP + 10..IP + 12].fill(0);
        let sum = checksum(&[&frame[IP..MESSAGE]]);
        frame[IP + 10..IP + 12].copy_from_slice(&sum.to_be_bytes());
        frame
    };
    let arp = Frame {
        from,
        to,
        content: Content::ArpRequest(to.address),
    }
    .bytes();
    let mut long_datagram = udp(from, to, &datagram);
    long_datagram[4..6].copy_from_slice(&0xffff_u16.to_be_bytes());
    let mut short_datagram = udp(from, to, &datagram);
    short_datagram[4..6].copy_from_slice(&7_u16.to_be_bytes());
    let mut bad_message = icmp(8, &echo);
    bad_message[2] ^= 0xff;
    let nobody = Host {
        hardware: [0x02, 0xee, 0xee, 0xee, 0xee, 0xee],
        ..to
    };
    vec![
        ("half an address", ping[..5].to_vec()),
        ("no type", ping[..13].to_vec()),
        ("no body", ping[..IP].to_vec()),
        ("an unknown type", changed(&ping, 12, 0x88)),
        ("a length of IEEE 802.3", {
            let mut frame = ping.clone();
            frame[12..14].copy_from_slice(&46_u16.to_be_bytes());
            frame
        }),
        ("half a header", ping[..IP + 9].to_vec()),
        ("another station's address", {
            let mut frame = ping.clone();
            frame[..6].copy_from_slice(&nobody.hardware);
            frame
        }),
        ("a version of IP that does not exist", header(IP, 0xf5)),
        ("a header that is too short", header(IP, 0x44)),
        ("a header longer than the packet", header(IP, 0x4f)),
        ("a packet longer than the frame", header(IP + 2, 0x40)),
        ("a packet shorter than its header", {
            let mut frame = header(IP + 2, 0);
            frame[IP + 3] = 19;
            frame
        }),
        (
            "a wrong checksum of the header",
            changed(&ping, IP + 10, !ping[IP + 10]),
        ),
        ("a fragment that is not the first", header(IP + 7, 9)),
        ("an unknown protocol", header(IP + 9, 0xfd)),
        ("from everybody", {
            let everybody = Host {
                address: [255, 255, 255, 255].into(),
                ..from
            };
            ipv4(everybody, to, ICMP, &icmp(8, &echo))
        }),
        (
            "a wrong checksum of the message",
            ipv4(from, to, ICMP, &bad_message),
        ),
        ("half a message", ipv4(from, to, ICMP, &icmp(8, &echo)[..5])),
        ("no message", ipv4(from, to, ICMP, &[])),
        (
            "an answer that nobody asked for",
            ipv4(from, to, ICMP, &icmp(0, &echo)),
        ),
        (
            "a wrong checksum of the datagram",
            changed(&echoed, MESSAGE + 6, !echoed[MESSAGE + 6]),
        ),
        (
            "a datagram longer than its packet",
            ipv4(from, to, UDP, &long_datagram),
        ),
        (
            "a datagram shorter than its header",
            ipv4(from, to, UDP, &short_datagram),
        ),
        (
            "half a datagram's header",
            ipv4(from, to, UDP, &udp(from, to, &datagram)[..6]),
        ),
        ("ARP for another network", changed(&arp, IP + 1, 0x77)),
        (
            "ARP with addresses that are too long",
            changed(&arp, IP + 4, 0xff),
        ),
        ("half of ARP", arp[..IP + 20].to_vec()),
        ("an unknown operation of ARP", changed(&arp, IP + 7, 0x55)),
        ("nothing but ones", vec![0xff; 1514]),
        (
            "a broadcast without a body",
            ethernet(BROADCAST, from.hardware, [8, 0], &[]),
        ),
        ("longer than a frame may be", {
            let mut frame = ping.clone();
            frame.resize(9000, 0x5a);
            frame[..6].copy_from_slice(&nobody.hardware);
            frame
        }),
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn none_of_them_is_a_question_to_the_cell() {
        let from = Host {
            hardware: [2, 0, 0, 0, 0, 1],
            address: Ipv4Addr::new(10, 0, 2, 2),
        };
        let to = Host {
            hardware: [2, 0, 0, 0, 0, 2],
            address: Ipv4Addr::new(10, 0, 2, 15),
        };
        let all = frames(from, to);
        assert!(all.len() >= 30);
        let mut names = BTreeSet::new();
        for (name, frame) in all {
            assert!(names.insert(name), "{name} again");
            let Some(parsed) = Frame::parse(&frame) else {
                continue;
            };
            let is_question = matches!(
                parsed.content,
                Content::EchoRequest(_) | Content::Udp(_) | Content::ArpRequest(_)
            );
            let is_for_it = parsed.to.hardware == to.hardware && parsed.from == from;
            assert!(!(is_question && is_for_it), "{name}: {parsed:?}");
        }
    }
}
