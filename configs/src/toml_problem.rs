//! What the TOML reader says, in our words.

use gaol_abi::outcome::Reason;

use crate::problem::{Problem, Source};

/// The problem that made the reader give up.
pub(crate) fn explain(source: &Source, error: &toml::de::Error) -> Problem {
    let (message, remedy, label) = describe(error.message());
    Problem::new(source, Reason::ConfigurationInvalid, message, remedy).at(error.span(), label)
}

/// Message, remedy and label for the words of the reader.
fn describe(words: &str) -> (String, String, &'static str) {
    let words = words.trim_end();
    let quoted: Vec<&str> = words.split('`').skip(1).step_by(2).collect();
    let (first, others) = match quoted.split_first() {
        Some((first, others)) => (*first, others),
        None => ("", &[][..]),
    };
    if words.starts_with("unknown field") {
        return (
            format!("there is no key `{first}` here"),
            match nearest(first, others) {
                Some(key) => format!("Did you mean `{key}`?"),
                None => format!("The keys here are {}.", others.join(", ")),
            },
            "unknown key",
        );
    }
    if words.starts_with("missing field") {
        return (
            format!("the key `{first}` is missing"),
            format!("Add a line `{first} = ...` here."),
            "in this table",
        );
    }
    if words.starts_with("unknown variant") {
        let values: Vec<String> = others.iter().map(|value| format!("{value:?}")).collect();
        return (
            format!("{first:?} is not a value of this key"),
            format!("Write {}.", one_of(&values)),
            "unknown value",
        );
    }
    if let Some((found, expected)) = words.split_once(", expected ") {
        let is_value = found.starts_with("invalid");
        let found = found.split_once(": ").map_or(found, |(_, found)| found);
        if is_value {
            let expected = match expected {
                "a sequence" => "a list such as [1, 2]",
                "a boolean" => "true or false",
                "a string" => "a string in quotes",
                other => other,
            };
            return (
                format!("this key does not take the {found}"),
                format!("Write {expected}."),
                "wrong value",
            );
        }
    }
    (
        format!(
            "this is not TOML: {}",
            words.lines().collect::<Vec<_>>().join(", ")
        ),
        "Strings stand in quotes, tables in brackets, and each key stands once in its table."
            .to_owned(),
        "here",
    )
}

/// Alternatives in words: "a, b or c".
fn one_of(values: &[String]) -> String {
    match values.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, others)) => format!("{} or {last}", others.join(", ")),
        None => String::new(),
    }
}

/// The candidate that differs from `word` in the fewest letters, if they are few.
fn nearest<'a>(word: &str, candidates: &[&'a str]) -> Option<&'a str> {
    let (distance, candidate) = candidates
        .iter()
        .map(|candidate| (distance(word, candidate), *candidate))
        .min()?;
    (distance * 3 <= word.len().max(3)).then_some(candidate)
}

/// Levenshtein's distance.
fn distance(first: &str, second: &str) -> usize {
    let second: Vec<char> = second.chars().collect();
    let mut row: Vec<usize> = (0..=second.len()).collect();
    for (index, letter) in first.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = index + 1;
        for (column, other) in second.iter().enumerate() {
            let replaced = diagonal + usize::from(letter != *other);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(row[column] + 1).min(diagonal + 1);
        }
    }
    row[second.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_levenshteins() {
        for (first, second, expected) in [
            ("", "", 0),
            ("kitten", "sitting", 3),
            ("cpu", "cpus", 1),
            ("", "abc", 3),
            ("flaw", "lawn", 2),
        ] {
            assert_eq!(distance(first, second), expected);
            assert_eq!(distance(second, first), expected);
        }
    }

    #[test]
    fn only_near_keys_are_suggested() {
        let keys = ["name", "cpus", "reset-address"];
        assert_eq!(nearest("cpu", &keys), Some("cpus"));
        assert_eq!(nearest("reset-adress", &keys), Some("reset-address"));
        assert_eq!(nearest("vendor", &keys), None);
    }
}
