//! What the root's entries of the interrupt remapping table may be: the table that units use holds a copy of them, each as
//! far as it may be.
//!
//! Invariant: an entry of the root's that is present reaches processors of the root only, can be used by devices of the
//! root only, raises no SMI and no INIT, and has no vector that the cells' level-triggered pins may have when it is
//! level-triggered itself.
#![forbid(unsafe_code)]

use super::definitions::{InterruptHigh, InterruptLow, SourceId, delivery};
use crate::device::interrupt_command::Target;
use crate::device::io_apic::judge::{self, CELL_LEVEL_VECTORS, Confined, ROOT, Receivers};

/// The first vector that an APIC takes.
const FIRST_VECTOR: u8 = 16;
/// The interrupt whose vector the 8259 tells.
const EXTERNAL: u8 = 7;
/// An entry that lets nothing through.
pub const BLOCKED: [u64; 2] = [0; 2];
/// The source is verified as the entry says.
const BY_SOURCE: u8 = 1;
/// The bus of the source is verified.
const BY_BUS: u8 = 2;
/// All processors, in 8 bits.
const BROADCAST: u32 = 0xff;

/// Whether a device can use an entry with this high half.
#[must_use]
pub fn can_use(high: InterruptHigh, source: SourceId) -> bool {
    match high.validation() {
        BY_SOURCE => {
            // Bits of the function's number that don't count.
            let ignored = match high.qualifier() {
                0 => 0,
                1 => 1 << 2,
                2 => 3 << 1,
                _ => 7,
            };
            (high.source() ^ source.0) & !ignored == 0
        }
        BY_BUS => {
            let (first, last) = ((high.source() >> 8) as u8, high.source() as u8);
            (first..=last).contains(&source.bus())
        }
        _ => true,
    }
}

/// What the units get of an entry that the root wrote; `is_claimed` tells whether a device of a cell can use it.
#[must_use]
pub fn permitted(
    [low, high]: [u64; 2],
    x2apic: bool,
    is_claimed: impl Fn(InterruptHigh) -> bool,
    receivers: &impl Receivers,
) -> [u64; 2] {
    let entry = InterruptLow::from_bits(low);
    let source = InterruptHigh::from_bits(high);
    let is_verified = matches!(source.validation(), BY_SOURCE | BY_BUS);
    if !entry.present() || entry.posted() || !is_verified || is_claimed(source) {
        return BLOCKED;
    }
    let is_vector_free = !entry.level_triggered() || !CELL_LEVEL_VECTORS.contains(&entry.vector());
    let may_be = match entry.delivery_mode() {
        delivery::FIXED | delivery::LOWEST_PRIORITY => {
            entry.vector() >= FIRST_VECTOR && is_vector_free
        }
        delivery::NMI | EXTERNAL => true,
        _ => false,
    };
    if !may_be {
        return BLOCKED;
    }
    let target = target(entry, x2apic);
    let Some(confined) = judge::confine(target, ROOT, receivers) else {
        return BLOCKED;
    };
    // Nothing but what is known: the bits that software may use and those that are reserved stay clear.
    let known = InterruptLow::new()
        .with_present(true)
        .with_faults_not_recorded(entry.faults_not_recorded())
        .with_logical(entry.logical())
        .with_redirection_hint(entry.redirection_hint())
        .with_level_triggered(
            entry.level_triggered() && entry.delivery_mode() <= delivery::LOWEST_PRIORITY,
        )
        .with_delivery_mode(entry.delivery_mode())
        .with_vector(entry.vector())
        .with_destination(entry.destination());
    let low = match confined {
        Confined::AsItIs => known,
        Confined::To(id) if x2apic => known.with_logical(false).with_destination(id),
        Confined::To(id) if id < BROADCAST => known.with_logical(false).with_destination(id << 8),
        Confined::To(_) => return BLOCKED,
    };
    let high = InterruptHigh::new()
        .with_source(source.source())
        .with_qualifier(source.qualifier())
        .with_validation(source.validation());
    [low.into_bits(), high.into_bits()]
}

fn target(entry: InterruptLow, x2apic: bool) -> Target {
    let destination = entry.destination();
    if x2apic {
        return match destination {
            u32::MAX => Target::All,
            _ if !entry.logical() => Target::Physical(destination),
            _ => Target::Cluster {
                cluster: (destination >> 16) as u16,
                members: destination as u16,
            },
        };
    }
    match destination >> 8 & 0xff {
        BROADCAST => Target::All,
        id if entry.logical() => Target::Logical(id as u8),
        id => Target::Physical(id),
    }
}

/// The fault event (control, data, address, upper address) as the unit may have it: masked unless it is an interrupt for
/// processors of the root's.
#[must_use]
pub fn permitted_event(event: [u32; 4], wide: bool, receivers: &impl Receivers) -> [u32; 4] {
    const APICS: u32 = 0xfee0_0000;
    const MODE: u32 = 7 << 8;
    let [control, data, address, upper] = event;
    let low = address >> 12 & 0xff;
    let is_logical = address & 1 << 2 != 0;
    let destination = if wide { low | upper & !0xff } else { low << 8 };
    let entry = InterruptLow::new()
        .with_logical(is_logical)
        .with_destination(destination);
    let confined = judge::confine(target(entry, wide), ROOT, receivers);
    let is_right = address & 0xfff0_0000 == APICS
        && matches!(data & MODE, 0 | 0x100)
        && data & 0xff >= u32::from(FIRST_VECTOR)
        && confined == Some(Confined::AsItIs);
    if is_right {
        return event;
    }
    [control | super::definitions::EVENT_MASKED, 0, APICS, 0]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::device::interrupt_command::Processor;
    use crate::device::io_apic::judge::Receiver;

    /// CPUs with the APIC ids 0 to 3, of which the root has 0 and 2, and a cell's are in x2APIC mode.
    struct Four(bool);

    impl Receivers for Four {
        fn count(&self) -> u32 {
            4
        }

        fn get(&self, number: u32) -> Option<Receiver> {
            let owner = number % 2;
            Some(Receiver {
                processor: Processor {
                    number,
                    apic_id: number,
                    logical_id: 1 << number,
                    cluster_model: false,
                    x2apic: self.0 || owner != 0,
                },
                owner: Some(owner),
            })
        }
    }

    fn source(high: InterruptHigh) -> bool {
        can_use(high, SourceId(0x0310))
    }

    #[test]
    fn what_linux_writes_passes_as_it_is() {
        // Fixed, flat logical destination of CPU 0, vector 0x41; the function 00:1f.2, verified.
        let entry = [0x0000_0100_0041_0005, 0x0004_00fa];
        assert_eq!(permitted(entry, false, source, &Four(false)), entry);
        // Its bits for posting, and those that are software's, are dropped.
        let noisy = [entry[0] | 0xf00, entry[1]];
        assert_eq!(permitted(noisy, false, source, &Four(false)), entry);
    }

    #[test]
    fn sources_are_those_that_the_entry_lets_through() {
        let high = |source, qualifier, validation| {
            InterruptHigh::new()
                .with_source(source)
                .with_qualifier(qualifier)
                .with_validation(validation)
        };
        assert!(can_use(high(0x0310, 0, 1), SourceId(0x0310)));
        assert!(!can_use(high(0x0311, 0, 1), SourceId(0x0310)));
        assert!(can_use(high(0x0314, 1, 1), SourceId(0x0310)));
        assert!(can_use(high(0x0316, 2, 1), SourceId(0x0310)));
        assert!(can_use(high(0x0317, 3, 1), SourceId(0x0310)));
        assert!(!can_use(high(0x0318, 3, 1), SourceId(0x0310)));
        assert!(can_use(high(0x0204, 0, 2), SourceId(0x0310)));
        assert!(!can_use(high(0x0408, 0, 2), SourceId(0x0310)));
        assert!(can_use(high(0, 0, 0), SourceId(0x0310)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn nothing_of_the_roots_reaches_a_cell(
            noise: u64,
            mode in 0u64..8,
            destination in prop_oneof![0u32..256, any::<u32>(), (0u32..16).prop_map(|id| id << 8), Just(u32::MAX), Just(0xff00)],
            vector in prop_oneof![any::<u8>(), 0xe8u8..=0xff],
            high: u64,
            validation in 0u64..4,
            x2apic: bool,
        ) {
            let low = noise & 0xffff_ffff & !0xe0 & !(0xff << 16)
                | mode << 5 | u64::from(vector) << 16 | u64::from(destination) << 32;
            let high = high & 0xffff | validation << 18 | (high >> 20 & 3) << 16;
            let found = permitted([low, high], x2apic, source, &Four(x2apic));
            if found != BLOCKED {
                let entry = InterruptLow::from_bits(found[0]);
                prop_assert!(entry.present() && !entry.posted() && low & 1 != 0);
                prop_assert!(matches!(mode, 0 | 1 | 4 | 7));
                prop_assert!(mode > 1 || entry.vector() >= 16);
                prop_assert!(!entry.level_triggered() || entry.vector() < 0xf0);
                prop_assert_eq!(found[1], high);
                prop_assert!(!can_use(InterruptHigh::from_bits(high), SourceId(0x0310)));
                // Whom the message reaches, by the manual's rules again.
                let target = target(entry, x2apic);
                let receivers = Four(x2apic);
                let mut reached = 0;
                for number in 0..4 {
                    let receiver = receivers.get(number).unwrap();
                    let is_reached = target.addresses(&receiver.processor, false);
                    prop_assert!(!is_reached || receiver.owner == Some(ROOT));
                    reached += u32::from(is_reached);
                }
                prop_assert!(reached != 0);
            }
        }
    }
}
