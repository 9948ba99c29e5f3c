extern crate std;

use std::vec::Vec;

use proptest::prelude::*;

use super::*;

/// What the manual says, word by word, of a processor and a command in bits. `None`: it is not addressed.
fn is_addressed(low: u32, high: u32, x2apic: bool, member: &Member, is_sender: bool) -> bool {
    match low >> 18 & 3 {
        1 => return is_sender,
        2 => return true,
        3 => return !is_sender,
        _ => {}
    }
    let processor = &member.processor;
    let destination = if x2apic { high } else { high >> 24 };
    if destination == if x2apic { 0xffff_ffff } else { 0xff } {
        return true;
    }
    let is_logical = low & 0x800 != 0;
    if !is_logical {
        return processor.apic_id == destination;
    }
    // Of an APIC in x2APIC mode: bits 31 to 16 are the cluster, bits 15 to 0 one bit each. Messages of 8 bits are
    // extended by zeroes.
    if processor.x2apic {
        let cluster = processor.apic_id / 16;
        let bit = processor.apic_id % 16;
        return destination >> 16 == cluster && destination >> bit & 1 == 1;
    }
    // An xAPIC does not know 32-bit logical destinations.
    if x2apic {
        return false;
    }
    if processor.cluster_model {
        let cluster = u32::from(processor.logical_id / 16);
        let members = u32::from(processor.logical_id % 16);
        return (destination / 16 == 15 || destination / 16 == cluster)
            && (destination % 16) & members != 0;
    }
    destination & u32::from(processor.logical_id) != 0
}

/// The table of valid combinations, by shorthand and delivery mode, for modes that guests may use.
fn is_valid(low: u32) -> bool {
    let (shorthand, mode) = (low >> 18 & 3, low >> 8 & 7);
    match shorthand {
        0 | 3 => [0, 1, 4, 5, 6].contains(&mode),
        _ => mode == 0,
    }
}

fn member() -> impl Strategy<Value = Member> {
    let id = prop_oneof![0u32..40, 250u32..260, any::<u32>()];
    let logical = prop_oneof![(0u8..8).prop_map(|bit| 1 << bit), any::<u8>()];
    (
        id,
        logical,
        any::<bool>(),
        any::<bool>(),
        0u32..3,
        any::<bool>(),
    )
        .prop_map(
            |(apic_id, logical_id, cluster_model, x2apic, cell, waits)| Member {
                processor: Processor {
                    number: 0,
                    apic_id,
                    logical_id,
                    cluster_model,
                    x2apic,
                },
                cell,
                waits,
            },
        )
}

fn members() -> impl Strategy<Value = Vec<Member>> {
    prop::collection::vec(member(), 1..12).prop_map(|mut members| {
        for (number, member) in members.iter_mut().enumerate() {
            member.processor.number = number as u32;
        }
        members
    })
}

/// Commands with each combination of shorthand, mode and destination about as often as any other.
fn command() -> impl Strategy<Value = (u32, u32)> {
    let destination = prop_oneof![
        0u32..40,
        (0u32..256).prop_map(|destination| destination << 24),
        Just(u32::MAX),
        any::<u32>(),
    ];
    let vector = prop_oneof![0u32..32, 0u32..256];
    (any::<u32>(), vector, destination)
        .prop_map(|(bits, vector, destination)| (bits & 0x000c_df00 | vector, destination))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn a_command_reaches_whom_it_addresses_in_its_own_cell(
        members in members(),
        (low, high) in command(),
        x2apic: bool,
        sender in any::<prop::sample::Index>(),
    ) {
        let sender = sender.index(members.len());
        let cell = members[sender].cell;
        let command = if x2apic {
            Command::from_x2apic(u64::from(high) << 32 | u64::from(low))
        } else {
            Command::from_xapic(low, high)
        };
        let mut done: Vec<(u32, Action)> = Vec::new();
        let dropped = route(command, sender as u32, cell, members.iter().copied(), |member, action| {
            done.push((member.processor.number, action));
        });
        for (number, _) in &done {
            prop_assert_eq!(members[*number as usize].cell, cell);
        }
        let (mode, vector) = (low >> 8 & 7, low as u8);
        let is_deassert = mode == 5 && low & 0xc000 == 0x8000;
        if !is_valid(low) || is_deassert {
            prop_assert!(done.is_empty());
            prop_assert_eq!(dropped, u32::from(!is_deassert));
            return Ok(());
        }
        if mode < 2 && vector < 16 {
            prop_assert_eq!(done, [(sender as u32, Action::IllegalVector(vector))]);
            return Ok(());
        }
        let expected = match mode {
            0 | 1 => Action::Interrupt(vector),
            4 => Action::Nmi,
            5 => Action::Init,
            _ => Action::StartUp(vector),
        };
        let addressed = |member: &&Member| {
            let is_sender = member.processor.number == sender as u32;
            is_addressed(low, high, x2apic, member, is_sender)
        };
        let own: Vec<&Member> = members
            .iter()
            .filter(addressed)
            .filter(|member| member.cell == cell)
            .collect();
        if mode == 1 {
            let awake: Vec<u32> = own
                .iter()
                .filter(|member| !member.waits)
                .map(|member| member.processor.number)
                .collect();
            prop_assert!(done.len() <= 1);
            prop_assert_eq!(done.is_empty(), awake.is_empty());
            prop_assert!(done.iter().all(|(number, _)| awake.contains(number)));
        } else {
            let numbers: Vec<u32> = own.iter().map(|member| member.processor.number).collect();
            let reached: Vec<u32> = done.iter().map(|(number, _)| *number).collect();
            prop_assert_eq!(reached, numbers);
        }
        prop_assert!(done.iter().all(|(_, action)| *action == expected));
    }
}

/// Every low half that is no reserved bit, from each of two processors of one cell among four.
#[test]
fn no_command_leaves_its_cell() {
    let of = |number: u32| Member {
        processor: Processor {
            number,
            apic_id: number,
            logical_id: 1 << number,
            cluster_model: false,
            x2apic: number >= 2,
        },
        cell: number / 2,
        waits: false,
    };
    for low in (0..1u32 << 20).filter(|low| low & 0x0003_3000 == 0) {
        for destination in [0u32, 1, 2, 3, 4, 12, 15, 0xff] {
            for (sender, x2apic) in [(1, false), (2, true)] {
                let command = if x2apic {
                    Command::from_x2apic(u64::from(destination) << 32 | u64::from(low))
                } else {
                    Command::from_xapic(low, destination << 24)
                };
                let check = |member: &Member, action: Action| {
                    assert_eq!(member.cell, sender / 2, "{command:?}");
                    if let Action::Interrupt(vector) = action {
                        assert!(vector >= 16);
                    }
                };
                route(command, sender, sender / 2, (0..4).map(of), check);
            }
        }
    }
}

#[test]
fn what_is_dropped_is_counted() {
    let of = |number: u32| Member {
        processor: Processor {
            number,
            apic_id: number,
            logical_id: 0,
            cluster_model: false,
            x2apic: true,
        },
        cell: number / 2,
        waits: false,
    };
    let dropped = |value: u64| route(Command::from_x2apic(value), 2, 1, (0..4).map(of), |_, _| ());
    let to = |destination: u64| destination << 32;
    assert_eq!(dropped(to(0) | 0x40), 1, "a CPU of another cell");
    assert_eq!(dropped(to(9) | 0x40), 1, "a CPU that does not exist");
    assert_eq!(dropped(to(3) | 0x40), 0);
    assert_eq!(
        dropped(to(0x7) | 0x840),
        2,
        "a set with two of another cell"
    );
    assert_eq!(dropped(0xc_0040), 0, "all but itself");
    assert_eq!(dropped(to(0xffff_ffff) | 0x40), 0);
    assert_eq!(dropped(to(3) | 0x200), 1, "an SMI");
    assert_eq!(dropped(to(3) | 0x8500), 0, "de-assert");
}
