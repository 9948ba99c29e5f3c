//! The interrupt command register (ICR): what a command says, and which processors it addresses.
//!
//! Definitions and rules: SDM, "Interrupt Command Register (ICR)", "Determining IPI Destination" and "x2APIC Extended
//! Features". Nothing here touches an APIC.
#![forbid(unsafe_code)]

use bitfield_struct::bitfield;
use open_enum::open_enum;

/// What an interprocessor interrupt does at its destination.
#[open_enum]
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryMode {
    /// The interrupt of the vector.
    Fixed = 0,
    /// The interrupt of the vector at the one of the destinations that runs at the lowest priority.
    LowestPriority = 1,
    /// A system management interrupt.
    Smi = 2,
    /// A non-maskable interrupt.
    Nmi = 4,
    /// INIT.
    Init = 5,
    /// Start-up: the vector is the page number of the first instruction.
    StartUp = 6,
}

impl DeliveryMode {
    #[inline]
    const fn from_bits(bits: u8) -> Self {
        Self(bits)
    }

    #[inline]
    const fn into_bits(self) -> u8 {
        self.0
    }
}

/// Destinations that need no destination field.
#[open_enum]
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shorthand {
    /// The destination field counts.
    None = 0,
    /// The sender.
    Own = 1,
    /// All processors.
    All = 2,
    /// All processors but the sender.
    AllButOwn = 3,
}

impl Shorthand {
    #[inline]
    const fn from_bits(bits: u8) -> Self {
        Self(bits)
    }

    #[inline]
    const fn into_bits(self) -> u8 {
        self.0
    }
}

/// The low half of the register, the same in xAPIC and x2APIC mode.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct CommandBits {
    /// The interrupt vector.
    pub vector: u8,
    /// What happens at the destination.
    #[bits(3)]
    pub delivery_mode: DeliveryMode,
    /// The destination field holds a logical destination, not an APIC id.
    pub logical: bool,
    /// The last command is not sent yet; read-only, and always clear in x2APIC mode.
    pub delivery_pending: bool,
    #[bits(1)]
    __: u8,
    /// Assert; only INIT knows its opposite, which processors since the Pentium 4 ignore.
    pub assert: bool,
    /// Level-triggered, of an INIT de-assert.
    pub level_triggered: bool,
    #[bits(2)]
    __: u8,
    /// Destinations that need no destination field.
    #[bits(2)]
    pub shorthand: Shorthand,
    #[bits(12)]
    __: u16,
}

/// Bits of the low half whose setting is a general protection fault in x2APIC mode: 13, 16, 17 and 20 to 31.
const RESERVED: u32 = 0xfff3_2000;

/// A command with its destination.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Command {
    /// The low half.
    pub bits: CommandBits,
    /// The destination field: 8 bits in xAPIC mode, 32 in x2APIC mode.
    pub destination: u32,
    /// Whether the command was written in x2APIC mode.
    pub x2apic: bool,
}

impl Command {
    /// The command of the two registers of xAPIC mode; the write of the low one sends it.
    #[inline]
    #[must_use]
    pub const fn from_xapic(low: u32, high: u32) -> Self {
        Self {
            bits: CommandBits::from_bits(low),
            destination: high >> 24,
            x2apic: false,
        }
    }

    /// The command of MSR 0x830.
    #[inline]
    #[must_use]
    pub const fn from_x2apic(value: u64) -> Self {
        Self {
            bits: CommandBits::from_bits((value & 0xffff_ffff) as u32),
            destination: (value >> 32) as u32,
            x2apic: true,
        }
    }

    /// Whether a write of MSR 0x830 with this value is a general protection fault.
    #[inline]
    #[must_use]
    pub const fn has_reserved_bits(&self) -> bool {
        self.bits.into_bits() & RESERVED != 0
    }

    /// Whether this is an INIT de-assert, which does nothing.
    #[inline]
    #[must_use]
    pub const fn is_init_deassert(&self) -> bool {
        matches!(self.bits.delivery_mode(), DeliveryMode::Init)
            && !self.bits.assert()
            && self.bits.level_triggered()
    }

    /// Whom the command addresses.
    #[inline]
    #[must_use]
    pub const fn target(&self) -> Target {
        let broadcast = if self.x2apic { u32::MAX } else { 0xff };
        match self.bits.shorthand() {
            Shorthand::Own => Target::Own,
            Shorthand::All => Target::All,
            Shorthand::AllButOwn => Target::AllButOwn,
            _ if self.destination == broadcast => Target::All,
            _ if !self.bits.logical() => Target::Physical(self.destination),
            _ if self.x2apic => Target::Cluster {
                cluster: (self.destination >> 16) as u16,
                members: (self.destination & 0xffff) as u16,
            },
            _ => Target::Logical(self.destination as u8),
        }
    }

    /// Numbers of those of `processors` that the command addresses. `sender` is the number of the one that sends it.
    pub fn addressed<'a>(
        &self,
        sender: u32,
        processors: impl IntoIterator<Item = &'a Processor>,
    ) -> impl Iterator<Item = u32> {
        let target = self.target();
        processors
            .into_iter()
            .filter(move |processor| target.addresses(processor, processor.number == sender))
            .map(|processor| processor.number)
    }
}

/// The destination of a command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// The sender.
    Own,
    /// All processors.
    All,
    /// All processors but the sender.
    AllButOwn,
    /// The processor with that APIC id.
    Physical(u32),
    /// A logical destination of xAPIC mode; what it means depends on the receiver's destination format.
    Logical(u8),
    /// A logical destination of x2APIC mode.
    Cluster {
        /// The cluster: bits 31 to 4 of the APIC id.
        cluster: u16,
        /// A bit for each APIC id of the cluster.
        members: u16,
    },
}

/// How a processor's APIC can be addressed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Processor {
    /// Number of the processor.
    pub number: u32,
    /// APIC id.
    pub apic_id: u32,
    /// The logical id of xAPIC mode: bits 31 to 24 of the logical destination register.
    pub logical_id: u8,
    /// Bits 31 to 28 of the destination format register are 0 (cluster model), not ones (flat model).
    pub cluster_model: bool,
    /// Whether the APIC is in x2APIC mode, where the logical id follows from the APIC id.
    pub x2apic: bool,
}

impl Processor {
    /// Logical id of x2APIC mode: SDM, "Deriving Logical x2APIC ID from the Local x2APIC ID".
    #[inline]
    #[must_use]
    pub const fn x2apic_logical_id(&self) -> u32 {
        (self.apic_id >> 4) << 16 | 1u32.wrapping_shl(self.apic_id & 15)
    }
}

/// Logical id of xAPIC mode's flat model under which a message with eight bits of destination reaches this APIC as it
/// would in x2APIC mode; 0: none does.
#[must_use]
pub const fn flat_logical_id(apic_id: u32) -> u32 {
    if apic_id < 8 { 1 << apic_id } else { 0 }
}

impl Target {
    /// Whether `processor` is addressed; `is_sender` says that it sends the command itself.
    #[inline]
    #[must_use]
    pub const fn addresses(self, processor: &Processor, is_sender: bool) -> bool {
        match self {
            Self::Own => is_sender,
            Self::All => true,
            Self::AllButOwn => !is_sender,
            Self::Physical(id) => processor.apic_id == id,
            Self::Cluster { cluster, members } => {
                processor.x2apic && is_in_cluster(processor, cluster, members)
            }
            // A receiver in x2APIC mode takes the eight bits for members of its cluster 0.
            Self::Logical(destination) if processor.x2apic => {
                is_in_cluster(processor, 0, destination as u16)
            }
            Self::Logical(destination) if processor.cluster_model => {
                let cluster = destination >> 4;
                (cluster == 15 || cluster == processor.logical_id >> 4)
                    && destination & processor.logical_id & 15 != 0
            }
            Self::Logical(destination) => destination & processor.logical_id != 0,
        }
    }
}

#[inline]
const fn is_in_cluster(processor: &Processor, cluster: u16, members: u16) -> bool {
    let id = processor.x2apic_logical_id();
    id >> 16 == cluster as u32 && id & members as u32 != 0
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec::Vec;

    use super::*;

    const LOGICAL: u32 = 1 << 11;

    /// Processors in xAPIC mode with ids that are no numbers.
    fn xapic() -> Vec<Processor> {
        (0..8u32)
            .map(|number| Processor {
                number,
                apic_id: number * 3,
                logical_id: 1 << number,
                cluster_model: false,
                x2apic: false,
            })
            .collect()
    }

    fn x2apic() -> Vec<Processor> {
        (0..40)
            .map(|number| Processor {
                number,
                apic_id: number,
                logical_id: 0,
                cluster_model: false,
                x2apic: true,
            })
            .collect()
    }

    fn addressed(command: Command, processors: &[Processor]) -> Vec<u32> {
        command.addressed(2, processors).collect()
    }

    /// Eight bits of a logical destination mean the same CPUs, whether a cell's APICs are in x2APIC mode or not.
    #[test]
    fn flat_logical_ids_stand_for_those_of_the_x2apic() {
        for apic_id in 0..300 {
            let mut processor = Processor {
                number: 0,
                apic_id,
                logical_id: flat_logical_id(apic_id) as u8,
                cluster_model: false,
                x2apic: false,
            };
            for destination in 0..=u8::MAX {
                let target = Target::Logical(destination);
                processor.x2apic = false;
                let flat = target.addresses(&processor, false);
                processor.x2apic = true;
                assert_eq!(flat, target.addresses(&processor, false), "{processor:?}");
            }
        }
    }

    #[test]
    fn fields_are_where_the_manual_has_them() {
        let command = Command::from_xapic(0x000c_4500, 0x0300_0000);
        assert_eq!(command.destination, 3);
        assert_eq!(command.bits.shorthand(), Shorthand::AllButOwn);
        assert_eq!(command.bits.delivery_mode(), DeliveryMode::Init);
        assert!(command.bits.assert() && !command.bits.level_triggered());
        let command = Command::from_x2apic(0x1234_5678_0000_0cf3);
        assert_eq!(command.destination, 0x1234_5678);
        assert_eq!(command.bits.vector(), 0xf3);
        assert_eq!(command.bits.delivery_mode(), DeliveryMode::Nmi);
        assert!(command.bits.logical());
        let bits = CommandBits::new()
            .with_vector(0x9a)
            .with_delivery_mode(DeliveryMode::StartUp)
            .with_assert(true);
        assert_eq!(bits.into_bits(), 0x469a);
        assert_eq!(
            Command::from_x2apic(0x300).bits.delivery_mode(),
            DeliveryMode(3)
        );
    }

    #[test]
    fn reserved_bits_are_known_one_by_one() {
        for bit in 0..32 {
            let defined = matches!(bit, 0..=12 | 14 | 15 | 18 | 19);
            let command = Command::from_x2apic(1 << bit);
            assert_eq!(command.has_reserved_bits(), !defined, "bit {bit}");
        }
        assert!(!Command::from_x2apic(u64::from(u32::MAX) << 32).has_reserved_bits());
    }

    #[test]
    fn only_a_level_triggered_deassert_does_nothing() {
        for low in 0..1u32 << 16 {
            let expected = low >> 8 & 7 == 5 && low >> 14 & 1 == 0 && low >> 15 & 1 == 1;
            assert_eq!(Command::from_xapic(low, 0).is_init_deassert(), expected);
        }
    }

    #[test]
    fn every_physical_id_names_one_processor_or_none() {
        for destination in 0..=0xffu32 {
            let command = Command::from_xapic(0x30, destination << 24);
            let expected: Vec<u32> = match destination {
                0xff => (0..8).collect(),
                0..24 if destination.is_multiple_of(3) => std::vec![destination / 3],
                _ => Vec::new(),
            };
            assert_eq!(addressed(command, &xapic()), expected);
            let command = Command::from_x2apic(u64::from(destination) << 32 | 0x30);
            let expected: Vec<u32> = (destination..40).take(1).collect();
            assert_eq!(addressed(command, &x2apic()), expected);
        }
        let command = Command::from_x2apic(0xffff_ffff_0000_0030);
        assert_eq!(addressed(command, &x2apic()).len(), 40);
    }

    #[test]
    fn every_flat_mask_names_its_bits() {
        for mask in 0..=0xffu32 {
            let command = Command::from_xapic(LOGICAL | 0x30, mask << 24);
            let expected: Vec<u32> = (0..8).filter(|number| mask >> number & 1 != 0).collect();
            assert_eq!(addressed(command, &xapic()), expected);
            // Processors in x2APIC mode hear commands of xAPIC mode as members of cluster 0.
            let command = Command::from_xapic(LOGICAL | 0x30, mask << 24);
            let expected: Vec<u32> = if mask == 0xff {
                (0..40).collect()
            } else {
                expected
            };
            assert_eq!(addressed(command, &x2apic()), expected);
        }
        // Without a logical id only a broadcast arrives.
        let mut processors = xapic();
        processors[0].logical_id = 0;
        let all = Command::from_xapic(LOGICAL, 0xff00_0000);
        assert_eq!(addressed(all, &processors).len(), 8);
        let many = Command::from_xapic(LOGICAL, 0x7f00_0000);
        assert_eq!(addressed(many, &processors), [1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn every_cluster_destination_names_members_of_one_cluster() {
        let processors: Vec<Processor> = (0..60)
            .map(|number| Processor {
                number,
                apic_id: number,
                logical_id: ((number / 4) << 4) as u8 | (1 << (number % 4)),
                cluster_model: true,
                x2apic: false,
            })
            .collect();
        for destination in 0..=0xffu32 {
            let command = Command::from_xapic(LOGICAL, destination << 24);
            let expected: Vec<u32> = (0..60)
                .filter(|number| {
                    (destination >> 4 == 15 || destination >> 4 == number / 4)
                        && destination >> (number % 4) & 1 != 0
                })
                .collect();
            assert_eq!(addressed(command, &processors), expected);
        }
    }

    #[test]
    fn x2apic_clusters_have_sixteen_members() {
        for cluster in 0..4u32 {
            for members in 0..=0xffffu32 {
                let destination = cluster << 16 | members;
                let command =
                    Command::from_x2apic(u64::from(destination) << 32 | u64::from(LOGICAL));
                let Target::Cluster { .. } = command.target() else {
                    panic!("not a cluster");
                };
                // Counting is enough for most; names are compared for single members.
                let found = addressed(command, &x2apic());
                let present = 40u32.saturating_sub(cluster * 16).min(16);
                let mask = ((1u64 << present) - 1) as u32;
                assert_eq!(found.len() as u32, (members & mask).count_ones());
                if members.is_power_of_two() && members & mask != 0 {
                    assert_eq!(found, [cluster * 16 + members.trailing_zeros()]);
                }
            }
        }
        let everyone = Command::from_x2apic(0xffff_ffff_0000_0800);
        assert_eq!(addressed(everyone, &x2apic()).len(), 40);
    }

    #[test]
    fn shorthands_need_no_destination() {
        for destination in 0..=0xffu32 {
            for logical in [0, LOGICAL] {
                let of = |shorthand: u32| {
                    let low = shorthand << 18 | logical;
                    let xapic = addressed(Command::from_xapic(low, destination << 24), &xapic());
                    let value = u64::from(destination) << 32 | u64::from(low);
                    let x2apic = addressed(Command::from_x2apic(value), &x2apic());
                    assert_eq!(x2apic.len() == 1, xapic.len() == 1);
                    assert_eq!(x2apic.contains(&2), xapic.contains(&2));
                    xapic
                };
                assert_eq!(of(1), [2]);
                assert_eq!(of(2), [0, 1, 2, 3, 4, 5, 6, 7]);
                assert_eq!(of(3), [0, 1, 3, 4, 5, 6, 7]);
            }
        }
    }
}
