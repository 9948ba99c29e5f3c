//! The command line: words `key=value` or just `key`, separated by spaces.
//!
//! Invariant: a word that is there but cannot be understood is never taken for its default. The functions that look a
//! key up panic then, with a sentence that names the word: in a cell that means a line on the console and the state
//! FAILED, before the cell has done anything.
#![forbid(unsafe_code)]

use core::time::Duration;

use crate::shared::GuestAddress;

/// The words of a command line. Where a key is given twice, the last one counts.
#[derive(Clone, Copy, Debug)]
pub struct Arguments<'a> {
    text: &'a str,
}

impl<'a> Arguments<'a> {
    /// Takes the bytes up to the first zero byte, or up to the first one that is not UTF-8.
    pub fn from_bytes(bytes: &'a [u8]) -> Self {
        let length = bytes.iter().position(|byte| *byte == 0);
        let bytes = &bytes[..length.unwrap_or(bytes.len())];
        let text = match core::str::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => core::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default(),
        };
        Self { text }
    }

    /// The whole command line.
    pub fn text(&self) -> &'a str {
        self.text
    }

    /// The value of `key`; empty for the word `key` alone.
    pub fn get(&self, key: &str) -> Option<&'a str> {
        self.text
            .split_ascii_whitespace()
            .rev()
            .map(|word| word.split_once('=').unwrap_or((word, "")))
            .find_map(|(name, value)| (name == key).then_some(value))
    }

    /// Whether `key` is set: the word alone, or with the value `1`, `yes` or `on`; `0`, `no` and `off` unset it.
    ///
    /// # Panics
    /// When the value is none of these.
    #[track_caller]
    pub fn flag(&self, key: &str) -> bool {
        match self.get(key) {
            None | Some("0" | "no" | "off") => false,
            Some("" | "1" | "yes" | "on") => true,
            Some(value) => refuse(key, value, "a switch: write 1 or 0"),
        }
    }

    /// The number of `key`, or `default` when there is no such word.
    ///
    /// # Panics
    /// When the value is no number.
    #[track_caller]
    pub fn number(&self, key: &str, default: u64) -> u64 {
        self.look_up(key, parse_number, "a number such as 1000, 0x3e8 or 64K")
            .unwrap_or(default)
    }

    /// The duration of `key`, or `default` when there is no such word.
    ///
    /// # Panics
    /// When the value is no duration.
    #[track_caller]
    pub fn duration(&self, key: &str, default: Duration) -> Duration {
        self.look_up(key, parse_duration, "a duration such as 500us, 1ms or 2s")
            .unwrap_or(default)
    }

    /// The address of `key`, or `default` when there is no such word.
    ///
    /// # Panics
    /// When the value is no number.
    #[track_caller]
    pub fn address(&self, key: &str, default: GuestAddress) -> GuestAddress {
        self.look_up(key, parse_number, "an address such as 0x200000 or 2M")
            .map_or(default, GuestAddress::new)
    }

    #[track_caller]
    fn look_up<T>(&self, key: &str, parse: fn(&str) -> Option<T>, expected: &str) -> Option<T> {
        self.get(key)
            .map(|value| parse(value).unwrap_or_else(|| refuse(key, value, expected)))
    }
}

#[track_caller]
fn refuse(key: &str, value: &str, expected: &str) -> ! {
    panic!("the command line says \"{key}={value}\", but {key} takes {expected}")
}

/// A number: decimal or, with `0x`, hexadecimal; `_` separates digits; `K`, `M` and `G` multiply by powers of 1024.
pub fn parse_number(text: &str) -> Option<u64> {
    let (digits, radix) = match text.strip_prefix("0x") {
        Some(digits) => (digits, 16),
        None => (text, 10),
    };
    let (digits, shift) = match digits.as_bytes().last()? {
        b'K' => (&digits[..digits.len() - 1], 10),
        b'M' => (&digits[..digits.len() - 1], 20),
        b'G' => (&digits[..digits.len() - 1], 30),
        _ => (digits, 0),
    };
    let mut value: Option<u64> = None;
    for digit in digits.chars().filter(|digit| *digit != '_') {
        let digit = u64::from(digit.to_digit(radix)?);
        value = Some(
            value
                .unwrap_or(0)
                .checked_mul(radix.into())?
                .checked_add(digit)?,
        );
    }
    value?.checked_mul(1 << shift)
}

/// A duration: a whole decimal number with the unit `ns`, `us`, `ms` or `s`.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let unit = text.find(|c: char| !c.is_ascii_digit() && c != '_')?;
    let (digits, unit) = text.split_at(unit);
    let nanoseconds: u64 = match unit {
        "ns" => 1,
        "us" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        _ => return None,
    };
    Some(Duration::from_nanos(
        parse_number(digits)?.checked_mul(nanoseconds)?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_text_ends_at_the_zero_byte() {
        assert_eq!(Arguments::from_bytes(b"a=1 b\0junk").text(), "a=1 b");
        assert_eq!(Arguments::from_bytes(b"\0a=1").text(), "");
        assert_eq!(Arguments::from_bytes(b"no end").text(), "no end");
        assert_eq!(Arguments::from_bytes(b"ok \xff\xfe").text(), "ok ");
    }

    #[test]
    fn the_last_word_counts() {
        let arguments = Arguments::from_bytes(b"period=1ms ticks=5 period=2ms\0");
        assert_eq!(arguments.get("period"), Some("2ms"));
        assert_eq!(arguments.get("perio"), None);
        assert_eq!(
            arguments.duration("period", Duration::ZERO),
            Duration::from_millis(2)
        );
        assert_eq!(arguments.number("ticks", 7), 5);
        assert_eq!(arguments.number("other", 7), 7);
    }

    #[test]
    fn flags_are_set_alone_or_with_a_value() {
        let arguments = Arguments::from_bytes(b"a b=1 c=0 d=no e=on f=");
        let set = ["a", "b", "c", "d", "e", "f", "g"].map(|key| arguments.flag(key));
        assert_eq!(set, [true, true, false, false, true, true, false]);
    }

    #[test]
    fn numbers_have_bases_and_suffixes() {
        for (text, number) in [
            ("0", Some(0)),
            ("1000", Some(1000)),
            ("1_000", Some(1000)),
            ("0x1a0", Some(0x1a0)),
            ("4K", Some(4096)),
            ("0x10K", Some(16384)),
            ("1M", Some(1 << 20)),
            ("2G", Some(2 << 30)),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551616", None),
            ("17179869184G", None),
            ("", None),
            ("K", None),
            ("_", None),
            ("0x", None),
            ("-1", None),
            ("1a", None),
            ("1k", None),
        ] {
            assert_eq!(parse_number(text), number, "{text:?}");
        }
    }

    #[test]
    fn durations_have_units() {
        for (text, nanoseconds) in [
            ("1ns", Some(1)),
            ("500us", Some(500_000)),
            ("1ms", Some(1_000_000)),
            ("10_000ms", Some(10_000_000_000)),
            ("2s", Some(2_000_000_000)),
            ("18446744073709551615s", None),
            ("1", None),
            ("ms", None),
            ("1m", None),
            ("1.5ms", None),
            ("", None),
        ] {
            assert_eq!(
                parse_duration(text),
                nanoseconds.map(Duration::from_nanos),
                "{text:?}"
            );
        }
    }

    #[test]
    #[should_panic(expected = "\"ticks=many\", but ticks takes a number")]
    fn a_word_that_is_no_number_is_refused() {
        Arguments::from_bytes(b"ticks=many").number("ticks", 1);
    }

    #[test]
    #[should_panic(expected = "period takes a duration")]
    fn a_duration_without_unit_is_refused() {
        Arguments::from_bytes(b"period=100").duration("period", Duration::ZERO);
    }

    #[test]
    #[should_panic(expected = "a switch")]
    fn a_flag_with_another_value_is_refused() {
        Arguments::from_bytes(b"lock=maybe").flag("lock");
    }

    proptest! {
        #[test]
        fn nothing_on_the_command_line_breaks_the_parser(bytes: Vec<u8>, key: String) {
            let arguments = Arguments::from_bytes(&bytes);
            if let Some(value) = arguments.get(&key) {
                let _ = parse_number(value);
                let _ = parse_duration(value);
            }
        }

        #[test]
        fn numbers_are_read_as_they_are_written(number: u64) {
            prop_assert_eq!(parse_number(&format!("{number}")), Some(number));
            prop_assert_eq!(parse_number(&format!("{number:#x}")), Some(number));
        }

        #[test]
        fn any_text_is_a_number_or_not(text: String) {
            let _ = parse_number(&text);
            let _ = parse_duration(&text);
        }
    }
}
