//! What entries of the interrupt remapping table may be: the root's, of which the table that units use holds copies, each as
//! far as it may be; and those of cells' IOAPIC pins.
//!
//! Invariant: an entry of the root's that is present reaches processors of the root only, can be used by devices of the
//! root only, raises no SMI and no INIT, and has no vector that the cells' level-triggered pins may have when it is
//! level-triggered itself.
#![forbid(unsafe_code)]

use super::definitions::{InterruptHigh, InterruptLow, SourceId, delivery};
use crate::device::interrupt_command::Target;
use crate::device::io_apic::entry::Entry;
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
    let Some(low) = confined(known, x2apic, ROOT, receivers) else {
        return BLOCKED;
    };
    let high = InterruptHigh::new()
        .with_source(source.source())
        .with_qualifier(source.qualifier())
        .with_validation(source.validation());
    [low.into_bits(), high.into_bits()]
}

/// The entry with a destination that reaches processors of `owner`'s only; `None`: there is no such.
fn confined(
    entry: InterruptLow,
    x2apic: bool,
    owner: u32,
    receivers: &impl Receivers,
) -> Option<InterruptLow> {
    match judge::confine(target(entry, x2apic), owner, receivers)? {
        Confined::AsItIs => Some(entry),
        Confined::To(id) if x2apic => Some(entry.with_logical(false).with_destination(id)),
        Confined::To(id) if id < BROADCAST => {
            Some(entry.with_logical(false).with_destination(id << 8))
        }
        Confined::To(_) => None,
    }
}

/// What the units get for a pin of the IOAPIC `source`, of what its entry says, which was judged for `owner`. `None`: it
/// leads to no processor of the owner's.
#[must_use]
pub fn of_pin(
    entry: Entry,
    source: SourceId,
    x2apic: bool,
    owner: u32,
    receivers: &impl Receivers,
) -> Option<[u64; 2]> {
    let destination = u32::from(entry.destination());
    // Of several processors one is meant.
    let is_lowest = entry.delivery_mode() == delivery::LOWEST_PRIORITY;
    let known = InterruptLow::new()
        .with_present(true)
        .with_logical(entry.logical())
        .with_redirection_hint(is_lowest)
        .with_level_triggered(entry.level())
        .with_delivery_mode(entry.delivery_mode())
        .with_vector(entry.vector())
        .with_destination(match destination {
            BROADCAST if x2apic => u32::MAX,
            _ if x2apic => destination,
            _ => destination << 8,
        });
    let low = confined(known, x2apic, owner, receivers)?;
    let high = InterruptHigh::new()
        .with_source(source.0)
        .with_validation(BY_SOURCE);
    Some([low.into_bits(), high.into_bits()])
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

    /// Whom the message of an entry reaches, by the manual's rules again: each has to be `owner`'s. How many these are.
    fn reached(low: u64, owner: u32, x2apic: bool) -> Result<u32, TestCaseError> {
        let target = target(InterruptLow::from_bits(low), x2apic);
        let receivers = Four(x2apic);
        let mut reached = 0;
        for number in 0..4 {
            let receiver = receivers.get(number).unwrap();
            let is_reached = target.addresses(&receiver.processor, false);
            prop_assert!(!is_reached || receiver.owner == Some(owner));
            reached += u32::from(is_reached);
        }
        Ok(reached)
    }

    #[test]
    fn a_cells_pin_sends_what_its_entry_says() {
        let source = SourceId(0xf0f8);
        let verified = 0x0004_f0f8;
        let of = |entry, x2apic| of_pin(entry, source, x2apic, 1, &Four(x2apic));
        let plain = Entry::new().with_vector(0x51).with_destination(3);
        assert_eq!(of(plain, false), Some([0x0000_0300_0051_0001, verified]));
        assert_eq!(of(plain, true), Some([0x0000_0003_0051_0001, verified]));
        let level = plain
            .with_vector(0xf3)
            .with_level(true)
            .with_active_low(true);
        assert_eq!(of(level, false), Some([0x0000_0300_00f3_0011, verified]));
        let nmi = plain.with_delivery_mode(4);
        assert_eq!(of(nmi, false), Some([0x0000_0300_0051_0081, verified]));
        let some = plain.with_destination(0x0a).with_logical(true);
        assert_eq!(of(some, false), Some([0x0000_0a00_0051_0005, verified]));
        assert_eq!(of(some, true), Some([0x0000_000a_0051_0005, verified]));
        let one = some.with_delivery_mode(1);
        assert_eq!(of(one, false), Some([0x0000_0a00_0051_002d, verified]));
        // The root's and nobody's.
        for destination in [0, 2, 9] {
            assert_eq!(of(plain.with_destination(destination), false), None);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn nothing_of_a_cells_pin_reaches_others(
            destination: u8,
            logical: bool,
            mode in prop::sample::select(&[0u8, 1, 4][..]),
            vector in 16u8..=0xff,
            level: bool,
            owner in 0u32..2,
            x2apic: bool,
        ) {
            let entry = Entry::new()
                .with_vector(vector)
                .with_delivery_mode(mode)
                .with_logical(logical)
                .with_level(level)
                .with_destination(destination);
            if let Some([low, high]) = of_pin(entry, SourceId(7), x2apic, owner, &Four(x2apic)) {
                let found = InterruptLow::from_bits(low);
                prop_assert_eq!((found.vector(), found.level_triggered()), (vector, level));
                prop_assert!(reached(low, owner, x2apic)? != 0);
                prop_assert_eq!(high, 0x0004_0007);
            }
        }

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
                prop_assert!(reached(found[0], ROOT, x2apic)? != 0);
            }
        }
    }
}
