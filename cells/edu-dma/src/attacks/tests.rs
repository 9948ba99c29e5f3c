use super::*;
use crate::attack::{Address, Cpu, Leave, Message, Place};

extern crate std;
use std::collections::BTreeSet;
use std::mem::discriminant;
use std::vec::Vec;

#[test]
fn there_are_attacks_enough_of_every_kind() {
    let attacks = all().filter(|(_, row)| row.is_attack()).count();
    assert!(attacks >= 100, "{attacks} attacks");
    let without_compatibility = plain(false).filter(|(_, row)| row.is_attack()).count();
    assert!(without_compatibility >= 90, "{without_compatibility}");
    let kinds: Vec<_> = all().fold(Vec::new(), |mut kinds, (_, row)| {
        let kind = discriminant(&row.attack);
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
        kinds
    });
    assert_eq!(kinds.len(), 10, "a kind of attack has no row");
}

#[test]
fn each_row_has_a_name_of_its_own_and_a_reason() {
    let mut names = BTreeSet::new();
    let mut attacks: Vec<Attack> = Vec::new();
    for (number, row) in all() {
        assert!(names.insert(row.name), "row {number}: {} again", row.name);
        assert!(!row.why.is_empty());
        assert!(!attacks.contains(&row.attack), "{} again", row.name);
        attacks.push(row.attack);
    }
}

#[test]
fn numbers_are_places() {
    for (place, (number, _)) in all().enumerate() {
        assert_eq!(place, number);
    }
}

#[test]
fn each_kind_has_what_can_be_expected_of_it() {
    for (_, row) in all() {
        let fits = match row.attack {
            Attack::Read(_) | Attack::Write(_) => {
                matches!(row.expected, Expected::Works | Expected::Blocked)
            }
            Attack::Message(_) | Attack::Table(..) | Attack::Entry(..) => {
                matches!(row.expected, Expected::Interrupts(_))
            }
            Attack::WriteMessage(message) => match message.address {
                Address::Entry(_) => row.expected == Expected::Interrupts(0),
                _ => row.expected == Expected::SilentWhereBlocked,
            },
            Attack::Configure(..) | Attack::Move(..) | Attack::MasterAtStart(_) => {
                matches!(row.expected, Expected::Reads(_))
            }
            Attack::Leave(Leave::Storm) => row.expected == Expected::Quarantined,
            Attack::Leave(_) => row.expected == Expected::Ended,
        };
        assert!(fits, "{}: {:?}", row.name, row.expected);
    }
}

/// Only what is for devices, and only the own CPU: whatever works is the cell's own, and what is the cell's own is not blocked.
#[test]
fn only_the_cells_own_works() {
    for (_, row) in all() {
        let works = !row.is_attack();
        let is_own = match row.attack {
            Attack::Read(Place::Own(_)) | Attack::Write(Place::Own(_)) => true,
            Attack::Read(Place::BeforeEnd(before)) | Attack::Write(Place::BeforeEnd(before)) => {
                before >= crate::attack::LENGTH
            }
            Attack::Message(Message { address, data })
            | Attack::Entry(_, Message { address, data }) => {
                let is_vector = (0x20..0x100).contains(&(data & 0xff));
                let is_own = address == Address::Physical(Cpu::Own) && data < 0x100;
                let is_set = address == Address::Logical(Cpu::All) && data >> 8 == 1;
                is_vector && (is_own || is_set)
            }
            _ => false,
        };
        assert_eq!(works, is_own, "{}", row.name);
    }
}

#[test]
fn accesses_to_the_table_are_aligned_and_in_the_first_entry() {
    for (_, row) in all() {
        if let Attack::Table(offset, width, _) = row.attack {
            assert!(offset.is_multiple_of(width.bytes()), "{}", row.name);
            assert!(offset + width.bytes() <= 16, "{}", row.name);
        }
    }
}

#[test]
fn an_outcome_is_right_or_wrong() {
    let row = |attack, expected| Row {
        name: "",
        attack,
        expected,
        why: "",
    };
    let read = row(Attack::Read(Place::At(0)), Expected::Blocked);
    assert!(read.is_right(Outcome::Nothing));
    for wrong in [
        Outcome::Leaked(0),
        Outcome::Same,
        Outcome::Done,
        Outcome::Stuck,
        Outcome::Missing,
    ] {
        assert!(!read.is_right(wrong), "{wrong}");
    }
    let write = row(Attack::Write(Place::At(0)), Expected::Blocked);
    assert!(write.is_right(Outcome::Done) && !write.is_right(Outcome::Stuck));
    let own = row(Attack::Write(Place::Own(0)), Expected::Works);
    assert!(own.is_right(Outcome::Same) && !own.is_right(Outcome::Done));
    let message = Message {
        address: Address::Entry(0),
        data: 0,
    };
    let silent = row(Attack::Message(message), Expected::Interrupts(0));
    assert!(silent.is_right(Outcome::Interrupts(0)));
    assert!(!silent.is_right(Outcome::Interrupts(1)) && !silent.is_right(Outcome::Done));
}
