use super::*;

extern crate std;
use std::collections::BTreeSet;
use std::mem::discriminant;
use std::vec::Vec;

#[test]
fn there_are_rows_enough_of_every_class() {
    assert!(all().count() >= 150, "{} rows", all().count());
    assert!(survived().count() >= 150);
    let classes: Vec<_> = all().fold(Vec::new(), |mut classes, (_, row)| {
        let class = discriminant(&row.attempt);
        if !classes.contains(&class) {
            classes.push(class);
        }
        classes
    });
    assert_eq!(classes.len(), 18, "a class of attempts has no row");
    let outcomes =
        survived().count() + ending(Expected::Stopped).count() + ending(Expected::Endless).count();
    assert_eq!(outcomes, all().count());
}

#[test]
fn each_row_has_a_name_of_its_own_and_a_reason() {
    let mut names = BTreeSet::new();
    let mut attempts: Vec<(Attempt, bool)> = Vec::new();
    for (number, row) in all() {
        assert!(names.insert(row.name), "row {number}: {} again", row.name);
        assert!(!row.why.is_empty());
        let attempt = (row.attempt, row.is_survived());
        assert!(!attempts.contains(&attempt), "{} again", row.name);
        attempts.push(attempt);
    }
}

#[test]
fn numbers_are_places() {
    for (place, (number, _)) in all().enumerate() {
        assert_eq!(place, number);
    }
}

#[test]
fn an_outcome_is_right_or_wrong() {
    let row = |attempt, expected| Violation {
        name: "",
        attempt,
        expected,
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
