//! The other end of an emulated machine's network cable: a host that asks and measures.
//!
//! A [`Link`] is the cable: each datagram of UDP between two ports of this host is one Ethernet frame. A [`Peer`] is a host on it,
//! with addresses of its own, that resolves, pings, sends datagrams to be echoed, bursts, and frames that are no good; what it
//! returns are [`RoundTrips`] and counts. Nothing here knows what answers at the far end.
//!
//! Invariant: an answer counts only when all of it is right: addresses, checksums, numbers and content. Times are measured, and
//! never decide whether an answer is right; only how long one is waited for is limited.
#![forbid(unsafe_code)]

pub mod frame;
pub mod link;
pub mod malformed;
pub mod peer;
pub mod report;

pub use link::Link;
pub use peer::Peer;
pub use report::RoundTrips;
