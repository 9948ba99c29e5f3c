//! Names that Gaol takes.
//!
//! Invariant: what comes out of here is a name, whatever went in.

use gaol_abi::NAME_LENGTH;

/// Most bytes of a name.
const MAX_NAME: usize = NAME_LENGTH - 1;

/// The nearest name: what Gaol doesn't take becomes a hyphen, and a name that is empty or a number gets `prefix`.
pub(super) fn mended(name: &[u8], prefix: &str) -> String {
    let text = String::from_utf8_lossy(name);
    let letters: String = text
        .trim()
        .chars()
        .map(|letter| {
            if letter.is_ascii_graphic() {
                letter
            } else {
                '-'
            }
        })
        .collect();
    let is_number = letters.bytes().all(|byte| byte.is_ascii_digit());
    let mut name = match (letters.is_empty(), is_number) {
        (true, _) => prefix.to_owned(),
        (false, true) => format!("{prefix}-{letters}"),
        (false, false) => letters,
    };
    // Graphic letters have one byte each.
    name.truncate(MAX_NAME);
    name
}

/// `name`, with a number behind it if it is among `taken`, to which it is added.
pub(super) fn unique(name: String, taken: &mut Vec<String>) -> String {
    let mut candidate = name.clone();
    let mut number = 2u32;
    while taken.contains(&candidate) {
        candidate = format!("{name}-{number}");
        number = number.saturating_add(1);
    }
    taken.push(candidate.clone());
    candidate
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::binary::name_text;
    use crate::encode;

    #[test]
    fn names_are_mended() {
        for (name, expected) in [
            ("RootCell", "RootCell"),
            ("linux-x86-demo", "linux-x86-demo"),
            ("two words", "two-words"),
            (" Zelle für A\t", "Zelle-f-r-A"),
            ("", "cell"),
            ("17", "cell-17"),
            (
                "1234567890123456789012345678901",
                "cell-12345678901234567890123456",
            ),
        ] {
            assert_eq!(mended(name.as_bytes(), "cell"), expected);
        }
        assert_eq!(mended(&[b'a', 0xff, b'b'], "cell"), "a-b");
    }

    #[test]
    fn names_that_are_taken_get_numbers() {
        let mut taken = Vec::new();
        let names = ["ram", "ram", "ram-2", "ram"].map(|name| unique(name.to_owned(), &mut taken));
        assert_eq!(names, ["ram", "ram-2", "ram-2-2", "ram-3"]);
    }

    proptest! {
        #[test]
        fn everything_becomes_a_name(name: [u8; 32], length in 0..=32usize) {
            let name = mended(&name[..length], "cell");
            let bytes = encode::name(&name).unwrap();
            prop_assert_eq!(name_text(&bytes).unwrap(), &name);
            prop_assert!(name.bytes().any(|byte| !byte.is_ascii_digit()));
        }
    }
}
