//! What the cell `net` and whoever is at the other end of its wire agree upon.
//!
//! The cell answers ARP, ICMP echo requests, UDP datagrams at [`ECHO_PORT`] with the same, and any datagram at
//! [`STATISTICS_PORT`] with a [`NetworkStatistics`].

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// UDP port that sends back what it gets (RFC 862).
pub const ECHO_PORT: u16 = 7;
/// UDP port that answers with the cell's figures.
pub const STATISTICS_PORT: u16 = 7007;
/// [`NetworkStatistics::signature`].
pub const SIGNATURE: [u8; 8] = *b"GAOLNET\0";
/// [`NetworkStatistics::exits`] where nobody counts.
pub const NOT_COUNTED: u64 = u64::MAX;

/// The figures of the cell since its start, all taken at one moment. Numbers are in little endian, as in memory.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct NetworkStatistics {
    /// [`SIGNATURE`].
    pub signature: [u8; 8],
    /// Frames received, the one with the request included.
    pub received: u64,
    /// What came in and was no frame.
    pub bad: u64,
    /// Frames sent.
    pub sent: u64,
    /// Frames that found no room in the ring.
    pub refused: u64,
    /// Interrupts of the network card.
    pub interrupts: u64,
    /// VM exits of the cell's CPU, but for those that counting takes itself; or [`NOT_COUNTED`].
    pub exits: u64,
    /// VM exits that the end of an interrupt takes, as the cell has found: 1 where the CPU has no x2APIC, else 0.
    pub end_of_interrupt_exits: u64,
}
