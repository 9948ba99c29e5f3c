//! Registers and descriptors of Intel's gigabit controllers 82540EM (`e1000`) and 82574L (`e1000e`).
//!
//! "PCI/PCI-X Family of Gigabit Ethernet Controllers Software Developer's Manual" and "Intel 82574 GbE Controller Family
//! Datasheet", chapters "Register Descriptions" and "Programming Interface". Of both, what they have in common is used:
//! descriptors in the legacy format and one queue each way.

use bitfield_struct::bitfield;
use bitflags::bitflags;

/// Offsets of registers.
pub mod offset {
    /// Device control ([`super::Control`]).
    pub const CONTROL: u32 = 0x0000;
    /// Device status ([`super::Status`]).
    pub const STATUS: u32 = 0x0008;
    /// EEPROM read.
    pub const EEPROM_READ: u32 = 0x0014;
    /// Extended device control.
    pub const EXTENDED_CONTROL: u32 = 0x0018;
    /// Interrupt cause; reading it clears it, with MSI-X writing ones does.
    pub const INTERRUPT_CAUSE: u32 = 0x00c0;
    /// Sets interrupt causes.
    pub const INTERRUPT_CAUSE_SET: u32 = 0x00c8;
    /// Permits interrupt causes.
    pub const INTERRUPT_MASK_SET: u32 = 0x00d0;
    /// Forbids interrupt causes.
    pub const INTERRUPT_MASK_CLEAR: u32 = 0x00d8;
    /// Causes that a message of MSI-X clears (82574).
    pub const INTERRUPT_AUTO_CLEAR: u32 = 0x00dc;
    /// Entries of the MSI-X table by cause (82574).
    pub const INTERRUPT_VECTORS: u32 = 0x00e4;
    /// Receive control ([`super::ReceiveControl`]).
    pub const RECEIVE_CONTROL: u32 = 0x0100;
    /// Transmit control ([`super::TransmitControl`]).
    pub const TRANSMIT_CONTROL: u32 = 0x0400;
    /// Gaps between packets.
    pub const TRANSMIT_GAP: u32 = 0x0410;
    /// Receive ring: base.
    pub const RECEIVE_BASE_LOW: u32 = 0x2800;
    /// Receive ring: upper half of the base.
    pub const RECEIVE_BASE_HIGH: u32 = 0x2804;
    /// Receive ring: bytes, a multiple of 128.
    pub const RECEIVE_LENGTH: u32 = 0x2808;
    /// Receive ring: the descriptor that the device fills next.
    pub const RECEIVE_HEAD: u32 = 0x2810;
    /// Receive ring: the first descriptor that the device may not fill.
    pub const RECEIVE_TAIL: u32 = 0x2818;
    /// Delay of receive interrupts.
    pub const RECEIVE_DELAY: u32 = 0x2820;
    /// Transmit ring: base.
    pub const TRANSMIT_BASE_LOW: u32 = 0x3800;
    /// Transmit ring: upper half of the base.
    pub const TRANSMIT_BASE_HIGH: u32 = 0x3804;
    /// Transmit ring: bytes, a multiple of 128.
    pub const TRANSMIT_LENGTH: u32 = 0x3808;
    /// Transmit ring: the descriptor that the device sends next.
    pub const TRANSMIT_HEAD: u32 = 0x3810;
    /// Transmit ring: the first descriptor that the device may not send.
    pub const TRANSMIT_TAIL: u32 = 0x3818;
    /// Transmit descriptors' control.
    pub const TRANSMIT_DESCRIPTORS: u32 = 0x3828;
    /// Packets that found no descriptor; reading it clears it.
    pub const MISSED_PACKETS: u32 = 0x4010;
    /// Filter of multicast addresses, 128 registers.
    pub const MULTICAST: u32 = 0x5200;
    /// Number of [`MULTICAST`]'s registers.
    pub const MULTICAST_COUNT: u32 = 128;
    /// The controller's own address, lower half.
    pub const ADDRESS_LOW: u32 = 0x5400;
    /// The controller's own address, upper half ([`super::AddressHigh`]).
    pub const ADDRESS_HIGH: u32 = 0x5404;
    /// Bytes of the registers.
    pub const END: u32 = 0x2_0000;
}

bitflags! {
    /// Device control.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Control: u32 {
        /// The link's speed is found out.
        const DETECT_SPEED = 1 << 5;
        /// The link is up.
        const SET_LINK_UP = 1 << 6;
        /// Everything is reset; clears itself.
        const RESET = 1 << 26;
    }

    /// Device status.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Status: u32 {
        /// The link is up.
        const LINK_UP = 1 << 1;
    }

    /// Extended device control.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct ExtendedControl: u32 {
        /// The driver is there, not the firmware.
        const DRIVER_LOADED = 1 << 28;
        /// Pending bits of MSI-X are cleared by the acknowledgement of the cause.
        const CLEAR_PENDING = 1 << 31;
    }

    /// Interrupt causes.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Cause: u32 {
        /// The link went up or down.
        const LINK = 1 << 2;
        /// Few receive descriptors are left.
        const RECEIVE_LOW = 1 << 4;
        /// A packet found no receive descriptor.
        const RECEIVE_OVERRUN = 1 << 6;
        /// A packet was received.
        const RECEIVED = 1 << 7;
        /// Receive queue 0, with MSI-X.
        const RECEIVE_QUEUE = 1 << 20;
        /// All causes that are not a queue's, with MSI-X.
        const OTHER = 1 << 24;
    }

    /// Receive control.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct ReceiveControl: u32 {
        /// Receives.
        const ENABLE = 1 << 1;
        /// Accepts broadcasts.
        const BROADCAST = 1 << 15;
        /// Leaves out the checksum at the end of a frame.
        const STRIP_CHECKSUM = 1 << 26;
        // Buffers of 2048 bytes: both bits of the size are 0.
    }

    /// Transmit control.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct TransmitControl: u32 {
        /// Sends.
        const ENABLE = 1 << 1;
        /// Makes short frames long enough.
        const PAD = 1 << 3;
        /// 15 attempts after collisions.
        const COLLISION_THRESHOLD = 15 << 4;
        /// A slot of 64 bytes, as full duplex demands.
        const COLLISION_DISTANCE = 64 << 12;
    }

    /// The upper half of an own address, beside its 16 bits.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct AddressHigh: u32 {
        /// The address is in use.
        const VALID = 1 << 31;
    }

    /// What a received frame is, in its descriptor.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct ReceiveStatus: u8 {
        /// The device has filled the descriptor.
        const DONE = 1 << 0;
        /// The frame ends in this buffer.
        const END = 1 << 1;
    }

    /// What a transmit descriptor asks for.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct TransmitCommand: u8 {
        /// The frame ends in this buffer.
        const END = 1 << 0;
        /// The device adds the checksum at the end of the frame.
        const ADD_CHECKSUM = 1 << 1;
        /// The device says when it is done.
        const REPORT = 1 << 3;
    }
}

/// Bytes of a descriptor: the address of its buffer, and 8 more.
pub const DESCRIPTOR_SIZE: usize = 16;

/// The second half of a receive descriptor, which the device writes.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Received {
    /// Bytes in the buffer.
    #[bits(16)]
    pub length: u16,
    /// Checksum of the packet.
    #[bits(16)]
    checksum: u16,
    /// [`ReceiveStatus`].
    #[bits(8)]
    pub status: u8,
    /// What was wrong.
    #[bits(8)]
    pub errors: u8,
    /// Tag of a virtual network.
    #[bits(16)]
    tag: u16,
}

/// The second half of a transmit descriptor; the device writes the status.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Transmitted {
    /// Bytes in the buffer.
    #[bits(16)]
    pub length: u16,
    #[bits(8)]
    checksum_offset: u8,
    /// [`TransmitCommand`].
    #[bits(8)]
    pub command: u8,
    /// [`TRANSMIT_DONE`].
    #[bits(8)]
    pub status: u8,
    #[bits(8)]
    checksum_start: u8,
    #[bits(16)]
    tag: u16,
}

/// The device has sent the descriptor.
pub const TRANSMIT_DONE: u8 = 1;

/// An entry of [`offset::INTERRUPT_VECTORS`] for receive queue 0, transmit queue 0 and other causes: all to entry 0.
pub const ALL_TO_ENTRY_0: u32 = 0x8 | 0x8 << 8 | 0x8 << 16;
/// The gaps that the manuals advise.
pub const GAPS: u32 = 10 | 8 << 10 | 6 << 20;
/// What the 82574's datasheet demands of [`offset::TRANSMIT_DESCRIPTORS`].
pub const DESCRIPTORS_BY_COUNT: u32 = 1 << 22;
