//! Each row on a machine where it is well and on one where it is not; whole tables; garbage everywhere.

mod collections;
mod garbage;
mod linux_rows;
mod machines;
mod rows;
mod tables;

use super::{Row, Status, Verdict, verdict};
use machines::Machine;

/// The row as it is on the good machine and when it is spoilt: well first, then as expected with these words.
#[track_caller]
fn turns(
    machine: &Machine,
    key: &str,
    status: Status,
    words: &str,
    spoil: impl Fn(&mut Machine),
) -> Row {
    let good = machine.row(key);
    assert_eq!(good.status, Status::Ok, "{good:?}");
    let mut bad = machine.clone();
    spoil(&mut bad);
    let row = bad.row(key);
    assert_eq!(row.status, status, "{row:?}");
    assert!(row.finding.contains(words), "{row:?}");
    assert!(!row.reason.is_empty() && !row.remedy.is_empty(), "{row:?}");
    let expected = match (status, row.is_needed) {
        (Status::Missing, _) => Verdict::Lacks,
        (Status::Unknown, true) => Verdict::Undecided,
        _ => Verdict::Runs,
    };
    if machine.rows().iter().all(|row| row.status == Status::Ok) {
        assert_eq!(verdict(&bad.rows()), expected, "{row:?}");
    }
    row
}
