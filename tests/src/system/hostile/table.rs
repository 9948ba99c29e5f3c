//! Compares what the cell says with the table of violations.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use hostile_cell::attempt::Attempt;
use hostile_cell::outcome::{Line, Outcome};
use hostile_cell::violations::{self, Expected, Vendor, Violation};

/// Numbers of the rows that end their CPU so.
pub(super) fn ending(vendor: Vendor, expected: Expected) -> Vec<usize> {
    violations::ending(vendor, expected)
        .map(|(number, _)| number)
        .collect()
}

fn described(number: usize, row: &Violation, outcome: &str) -> String {
    format!(
        "row {number}, \"{}\" ({:?}): expected {:?}, but it was {outcome}",
        row.name, row.attempt, row.expected
    )
}

/// The outcomes that were told.
fn outcomes(said: &str) -> BTreeMap<usize, Outcome> {
    said.lines()
        .filter_map(|line| match Line::parse(line)? {
            Line::Row(number, outcome) => Some((number, outcome)),
            Line::Try(_) => None,
        })
        .collect()
}

/// Asserts that each row that is survived has its outcome.
pub(super) fn compare(
    vendor: Vendor,
    said: &str,
    is_attempted: fn(&Attempt) -> bool,
) -> Result<()> {
    let told = outcomes(said);
    let wrong: Vec<String> = violations::survived(vendor)
        .filter(|(_, row)| is_attempted(&row.attempt))
        .filter_map(|(number, row)| match told.get(&number) {
            None => Some(described(number, &row, "not told")),
            Some(outcome) if !row.is_right(*outcome) => {
                Some(described(number, &row, &outcome.to_string()))
            }
            Some(_) => None,
        })
        .collect();
    ensure!(
        wrong.is_empty(),
        "{} rows are wrong:\n  {}",
        wrong.len(),
        wrong.join("\n  ")
    );
    Ok(())
}

/// The rows that have an outcome although their CPU should not have gone on.
pub(super) fn survivors(vendor: Vendor, said: &str) -> Vec<String> {
    let told = outcomes(said);
    violations::all(vendor)
        .filter_map(|(number, row)| {
            let outcome = told.get(&number)?;
            Some(described(number, &row, &outcome.to_string()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use gaol_config::msr_policy::{Read, Write, policy};

    use super::*;

    #[test]
    fn missing_and_wrong_rows_are_told() {
        let mut said = String::new();
        for (number, row) in violations::survived(Vendor::Intel) {
            let outcome = match row.expected {
                Expected::Exception(vector) => Outcome::Exception(vector),
                Expected::Value(value) => Outcome::Value(value),
                Expected::Any => Outcome::Value(1),
                Expected::Refused(errno) => Outcome::Refused(errno),
                Expected::Ones => [0xff, 0xffff, 0xffff_ffff]
                    .map(Outcome::Value)
                    .into_iter()
                    .find(|outcome| row.is_right(*outcome))
                    .unwrap(),
                _ => Outcome::Done,
            };
            said.push_str(&format!("{}\n", Line::Row(number, outcome)));
        }
        compare(Vendor::Intel, &said, |_| true).unwrap();
        let (first, rest) = said.split_once('\n').unwrap();
        let error = compare(Vendor::Intel, rest, |_| true)
            .unwrap_err()
            .to_string();
        assert!(error.contains("not told"), "{error}");
        let (row, _) = first.rsplit_once(' ').unwrap();
        let error = compare(Vendor::Intel, &format!("{row} 0x77\n{rest}"), |_| true).unwrap_err();
        assert!(error.to_string().starts_with("1 rows are wrong"), "{error}");
    }

    /// The table here and the table by which the hypervisor decides were written by different people.
    #[test]
    fn registers_agree_with_the_policy() {
        let mut compared = 0;
        for (number, row) in violations::survived(Vendor::Intel) {
            let (register, expected) = match row.attempt {
                Attempt::ReadMsr(register) => {
                    let is_refused = policy(register).cell.read == Read::Refuse;
                    (register, is_refused)
                }
                Attempt::WriteMsr(register, _) => {
                    let write = policy(register).cell.write;
                    if write == Write::Checked {
                        continue;
                    }
                    (register, write == Write::Refuse)
                }
                _ => continue,
            };
            let is_refused = row.expected == Expected::Exception(13);
            assert_eq!(is_refused, expected, "row {number}, register {register:#x}");
            compared += 1;
        }
        assert!(compared > 60, "only {compared} rows compared");
    }

    #[test]
    fn who_goes_on_is_told() {
        let number = ending(Vendor::Intel, Expected::Stopped)[0];
        let said = format!("{}\n", Line::Try(number));
        assert!(survivors(Vendor::Intel, &said).is_empty());
        let said = format!("{said}{}\n", Line::Row(number, Outcome::Done));
        assert_eq!(survivors(Vendor::Intel, &said).len(), 1);
    }
}
