use super::*;

extern crate std;
use std::collections::BTreeSet;
use std::mem::discriminant;
use std::vec::Vec;

const VENDORS: [Vendor; 2] = [Vendor::Intel, Vendor::Amd];

#[test]
fn there_are_rows_enough_of_every_class() {
    for vendor in VENDORS {
        assert!(all(vendor).count() >= 150, "{} rows", all(vendor).count());
        assert!(survived(vendor).count() >= 150);
        let classes: Vec<_> = all(vendor).fold(Vec::new(), |mut classes, (_, row)| {
            let class = discriminant(&row.attempt);
            if !classes.contains(&class) {
                classes.push(class);
            }
            classes
        });
        assert_eq!(classes.len(), 18, "a class of attempts has no row");
        let ends = [Expected::Stopped, Expected::Endless];
        let ending: usize = ends.map(|end| ending(vendor, end).count()).iter().sum();
        assert_eq!(survived(vendor).count() + ending, all(vendor).count());
    }
}

#[test]
fn each_row_has_a_name_of_its_own_and_a_reason() {
    for vendor in VENDORS {
        let mut names = BTreeSet::new();
        let mut attempts: Vec<(Attempt, bool)> = Vec::new();
        for (number, row) in all(vendor) {
            assert!(names.insert(row.name), "row {number}: {} again", row.name);
            assert!(!row.why.is_empty());
            let attempt = (row.attempt, row.is_survived());
            assert!(!attempts.contains(&attempt), "{} again", row.name);
            attempts.push(attempt);
        }
    }
}

#[test]
fn numbers_are_places_whatever_the_vendor() {
    for ((one, intel), (other, amd)) in all(Vendor::Intel).zip(all(Vendor::Amd)) {
        assert_eq!((one, intel.name), (other, amd.name));
    }
    assert!(
        all(Vendor::Intel)
            .enumerate()
            .all(|(place, (number, _))| place == number)
    );
    let differ = all(Vendor::Intel)
        .zip(all(Vendor::Amd))
        .filter(|(intel, amd)| intel.1.expected != amd.1.expected);
    assert!(differ.count() > 0);
}

#[test]
fn vendors_are_known_by_their_names() {
    let of = |name: &[u8; 4]| Vendor::of_cpuid(u32::from_le_bytes(*name));
    assert_eq!(of(b"Auth"), Vendor::Amd);
    assert_eq!(of(b"Genu"), Vendor::Intel);
}

#[test]
fn an_outcome_is_right_or_wrong() {
    let row = |attempt, expected| Violation {
        name: "",
        attempt,
        expected,
        on_amd: None,
        why: "",
    };
    let port = Attempt::In(0x64, crate::attempt::Width::Byte);
    let ones = row(port, Expected::Ones);
    assert!(ones.is_right(Outcome::Value(0xff)));
    assert!(!ones.is_right(Outcome::Value(0xffff)));
    assert!(!ones.is_right(Outcome::Done));
    let fault = row(port, GENERAL_PROTECTION);
    assert!(fault.is_right(Outcome::Exception(13)));
    assert!(!fault.is_right(Outcome::Exception(6)));
    assert!(!fault.is_right(Outcome::Value(13)));
    assert!(row(port, Expected::Any).is_right(Outcome::Value(7)));
    assert!(!row(port, Expected::Value(8)).is_right(Outcome::Value(7)));
    assert!(!row(port, Expected::NoEffect).is_right(Outcome::Exception(6)));
    assert!(row(port, Expected::Refused(1)).is_right(Outcome::Refused(1)));
    for outcome in [Outcome::Done, Outcome::Value(0), Outcome::Exception(13)] {
        assert!(!row(port, Expected::Stopped).is_right(outcome));
    }
}
