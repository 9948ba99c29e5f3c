//! The rows as a table for people, and below it what is to be done.

use super::row::{Row, Status};

/// What ends a colour.
const PLAIN: &str = "\u{1b}[0m";

fn colour(status: Status) -> &'static str {
    match status {
        Status::Ok => "\u{1b}[32m",
        Status::Warning => "\u{1b}[33m",
        Status::Missing => "\u{1b}[1;31m",
        Status::Unknown => "\u{1b}[35m",
    }
}

/// How many rows have this status.
#[must_use]
pub fn count(rows: &[Row], status: Status) -> usize {
    rows.iter().filter(|row| row.status == status).count()
}

/// The table, then each row that is not well, the worst first, with its reason and its remedy.
#[must_use]
pub fn table(rows: &[Row], has_colours: bool) -> String {
    let paint = |status: Status, text: String| match has_colours {
        true => format!("{}{text}{PLAIN}", colour(status)),
        false => text,
    };
    let names = rows.iter().map(|row| row.name.chars().count());
    let width = names.max().unwrap_or(0);
    let mut text = format!("{:<7}  {:<width$}  FINDING\n", "STATUS", "WHAT");
    for row in rows {
        let status = paint(row.status, format!("{:<7}", row.status));
        text.push_str(&format!(
            "{status}  {:<width$}  {}\n",
            row.name, row.finding
        ));
    }
    for status in [Status::Missing, Status::Unknown, Status::Warning] {
        let mut told: Vec<(&str, &str)> = Vec::new();
        for row in rows.iter().filter(|row| row.status == status) {
            let alike = (row.finding.as_str(), row.remedy.as_str());
            if told.contains(&alike) {
                continue;
            }
            let word = paint(status, status.to_string());
            let all = rows.iter().filter(|other| {
                other.status == status && (other.finding.as_str(), other.remedy.as_str()) == alike
            });
            // What one file is to blame for is told once.
            let names: Vec<&str> = match status {
                Status::Unknown => all.map(|row| row.name).collect(),
                _ => vec![row.name],
            };
            text.push_str(&format!(
                "\n{word}: {}: {}.\n",
                names.join(", "),
                row.finding
            ));
            match names.as_slice() {
                [_] => text.push_str(&format!("  {}\n", row.reason)),
                _ => told.push(alike),
            }
            text.push_str(&format!("  {}\n", row.remedy));
        }
    }
    text
}
