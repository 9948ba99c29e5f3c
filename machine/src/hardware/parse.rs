//! Small texts of Linux, read with bounds: lists of CPUs, numbers, switches, /proc/cpuinfo.

use std::collections::{BTreeMap, BTreeSet};

use crate::problem::Problem;

/// More CPUs than Linux can be built for.
const MAX_CPU: u32 = 8192;

/// A list such as "0-3,8".
pub(super) fn cpu_list(path: &str, text: &str) -> Result<Vec<u32>, Problem> {
    let wrong = || Problem::garbage(path, "it is not a list of CPUs such as 0-3,8");
    let mut numbers = BTreeSet::new();
    let text = text.trim();
    if text.is_empty() {
        return Ok(Vec::new());
    }
    for piece in text.split(',') {
        let (first, last) = piece.split_once('-').unwrap_or((piece, piece));
        let parse = |text: &str| text.parse::<u32>().map_err(|_| wrong());
        let (first, last) = (parse(first)?, parse(last)?);
        if first > last || last >= MAX_CPU {
            return Err(wrong());
        }
        numbers.extend(first..=last);
    }
    Ok(numbers.into_iter().collect())
}

/// Ascending numbers as a list: "0-3,8".
pub(super) fn ranges(numbers: &[u32]) -> String {
    let mut pieces: Vec<(u32, u32)> = Vec::new();
    for &number in numbers {
        match pieces.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(number) => *last = number,
            _ => pieces.push((number, number)),
        }
    }
    let text = pieces.iter().map(|(first, last)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    });
    text.collect::<Vec<_>>().join(",")
}

/// A number in decimal digits.
pub(super) fn number(path: &str, text: &str) -> Result<u64, Problem> {
    text.trim()
        .parse()
        .map_err(|_| Problem::garbage(path, "it is not a number"))
}

/// A number in hexadecimal digits.
pub(super) fn hexadecimal(path: &str, text: &str) -> Result<u64, Problem> {
    u64::from_str_radix(text.trim().trim_start_matches("0x"), 16)
        .map_err(|_| Problem::garbage(path, "it is not a hexadecimal number"))
}

/// A switch: 0, 1, N or Y.
pub(super) fn switch(path: &str, text: &str) -> Result<bool, Problem> {
    match text.trim() {
        "0" | "N" => Ok(false),
        "1" | "Y" => Ok(true),
        _ => Err(Problem::garbage(path, "it is neither 0 nor 1")),
    }
}

/// A word or a few: one line of printable letters.
pub(super) fn word(path: &str, text: &str) -> Result<String, Problem> {
    let text = text.trim();
    match text.chars().any(char::is_control) || text.len() > 200 {
        true => Err(Problem::garbage(path, "it is not one line of text")),
        false => Ok(text.to_owned()),
    }
}

/// The flags of each CPU, from /proc/cpuinfo.
pub(super) fn cpu_flags(
    path: &str,
    text: &str,
) -> Result<BTreeMap<u32, BTreeSet<String>>, Problem> {
    let mut found = BTreeMap::new();
    let mut cpu = None;
    for line in text.lines() {
        let Some((key, value)) = line.split_once(':') else {
            continue;
        };
        match key.trim() {
            "processor" => {
                let value = value.trim().parse::<u32>();
                cpu = Some(value.map_err(|_| Problem::garbage(path, "a CPU has no number"))?);
            }
            "flags" => {
                let cpu = cpu.ok_or_else(|| Problem::garbage(path, "flags come before any CPU"))?;
                let flags = value.split_whitespace().map(str::to_owned);
                found.insert(cpu, flags.collect());
            }
            _ => {}
        }
    }
    match found.is_empty() {
        true => Err(Problem::garbage(path, "it names no flags of any CPU")),
        false => Ok(found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus_are_read_and_written() {
        assert_eq!(cpu_list("x", "0-3,8\n").unwrap(), [0, 1, 2, 3, 8]);
        assert_eq!(cpu_list("x", "\n").unwrap(), [0u32; 0]);
        assert_eq!(ranges(&[0, 1, 2, 3, 8, 10, 11]), "0-3,8,10-11");
        assert_eq!(ranges(&[]), "");
        for text in ["a", "3-1", "0-4294967295", "1,,2", "-", "99999999999"] {
            assert!(cpu_list("x", text).is_err(), "{text}");
        }
    }

    #[test]
    fn switches_and_numbers_are_read_strictly() {
        assert_eq!(switch("x", "Y\n"), Ok(true));
        assert_eq!(switch("x", "0\n"), Ok(false));
        assert!(switch("x", "maybe").is_err());
        assert_eq!(hexadecimal("x", "0xd2\n"), Ok(0xd2));
        assert_eq!(hexadecimal("x", "f020df\n"), Ok(0xf0_20df));
        assert!(number("x", "").is_err());
        assert!(word("x", "a\nb").is_err());
    }
}
