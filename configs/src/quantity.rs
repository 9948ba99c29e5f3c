//! Sizes, times and addresses as people write them.
//!
//! Invariant: a quantity has one meaning; units are binary and named so (`MiB`), and what is ambiguous is refused with
//! the form that is not.

use core::fmt;
use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserialize, Deserializer, Visitor};

/// A number of bytes: `"64 MiB"`, or an integer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

/// A time in milliseconds: `"10 s"` or `"500 ms"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Milliseconds(pub u32);

/// A physical address: an integer, most often hexadecimal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address(pub u64);

/// Bits of a 64-bit register: an integer, or a string with a hexadecimal number, since the integers of TOML end at 63
/// bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mask(pub u64);

/// The number of a CPU, a port or a count: an integer that is not negative.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Number(pub u64);

const SIZE_UNITS: [(&str, u64); 5] = [
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

const TIME_UNITS: [(&str, u64); 3] = [("ms", 1), ("s", 1000), ("min", 60_000)];

/// A whole number, an optional space, a unit of the list.
fn with_unit(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let end = text.find(|character: char| !character.is_ascii_digit())?;
    let (number, unit) = text.split_at(end);
    let unit = unit.strip_prefix(' ').unwrap_or(unit);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit)?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

impl Size {
    /// Reads `"64 MiB"`, `"4KiB"`, `"512 B"`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        with_unit(text, &SIZE_UNITS).map(Self)
    }
}

impl fmt::Display for Size {
    /// With the largest unit that leaves a whole number.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut units = SIZE_UNITS.iter().rev();
        let (name, factor) = units
            .find(|(_, factor)| self.0 != 0 && self.0.is_multiple_of(*factor))
            .unwrap_or(&SIZE_UNITS[0]);
        write!(formatter, "{} {name}", self.0 / factor)
    }
}

impl Milliseconds {
    /// Reads `"10 s"`, `"500 ms"`, `"2 min"`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let milliseconds = with_unit(text, &TIME_UNITS)?;
        u32::try_from(milliseconds).ok().map(Self)
    }
}

impl Mask {
    /// Reads `"0x8000000000000000"`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix("0x")?;
        let is_number = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_number.then(|| u64::from_str_radix(digits, 16).ok().map(Self))?
    }
}

/// Reads an integer, or a string if that has a meaning.
struct Reader<T> {
    expected: &'static str,
    integer: fn(u64) -> Option<T>,
    text: fn(&str) -> Option<T>,
}

impl<T> Visitor<'_> for Reader<T> {
    type Value = T;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.expected)
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<T, E> {
        u64::try_from(value)
            .ok()
            .and_then(self.integer)
            .ok_or_else(|| E::invalid_value(de::Unexpected::Signed(value), &self))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<T, E> {
        (self.integer)(value)
            .ok_or_else(|| E::invalid_value(de::Unexpected::Unsigned(value), &self))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<T, E> {
        (self.text)(value).ok_or_else(|| E::invalid_value(de::Unexpected::Str(value), &self))
    }
}

macro_rules! deserialize {
    ($($type:ident: $expected:literal, $integer:expr, $text:expr;)+) => { $(
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_any(Reader {
                    expected: $expected,
                    integer: $integer,
                    text: $text,
                })
            }
        }
    )+ };
}

deserialize! {
    Size: "a size such as \"64 MiB\", \"4 KiB\" or a number of bytes", |value| Some(Size(value)), Size::parse;
    Milliseconds: "a time such as \"10 s\" or \"500 ms\"", |_| None, Milliseconds::parse;
    Address: "an address such as 0x100000", |value| Some(Address(value)), |_| None;
    Mask: "bits such as 0xff or \"0x8000000000000000\"", |value| Some(Mask(value)), Mask::parse;
    Number: "a number that is not negative", |value| Some(Number(value)), |_| None;
}

/// What an editor may let through for a quantity: the reader has the last word.
macro_rules! json_schemas {
    ($($type:ident: $schema:tt;)+) => { $(
        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        }
    )+ };
}

json_schemas! {
    Size: {
        "description": "A number of bytes, for instance \"64 MiB\"",
        "anyOf": [
            { "type": "string", "pattern": "^[0-9]+ ?(B|KiB|MiB|GiB|TiB)$" },
            { "type": "integer", "minimum": 0 },
        ],
    };
    Milliseconds: {
        "description": "A time, for instance \"10 s\" or \"500 ms\"",
        "type": "string",
        "pattern": "^[0-9]+ ?(ms|s|min)$",
    };
    Address: { "description": "An address, for instance 0x100000", "type": "integer", "minimum": 0 };
    Mask: {
        "description": "Bits of a 64-bit register, for instance 0xff or \"0x8000000000000000\"",
        "anyOf": [
            { "type": "string", "pattern": "^0x[0-9a-fA-F]{1,16}$" },
            { "type": "integer", "minimum": 0 },
        ],
    };
    Number: { "description": "A number that is not negative", "type": "integer", "minimum": 0 };
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_have_binary_units() {
        for (text, size) in [
            ("0 B", 0),
            ("512 B", 512),
            ("4 KiB", 4 << 10),
            ("4KiB", 4 << 10),
            ("64 MiB", 64 << 20),
            ("3 GiB", 3 << 30),
            ("1 TiB", 1 << 40),
        ] {
            assert_eq!(Size::parse(text), Some(Size(size)), "{text}");
        }
        for text in [
            "",
            "64",
            "64 MB",
            "64 M",
            "MiB",
            "64  MiB",
            "-1 MiB",
            "1.5 MiB",
            "64 MiB ",
            "64 mib",
            "99999999999 TiB",
            "99999999999999999999 B",
        ] {
            assert_eq!(Size::parse(text), None, "{text}");
        }
    }

    #[test]
    fn times_have_units() {
        assert_eq!(Milliseconds::parse("10 s"), Some(Milliseconds(10_000)));
        assert_eq!(Milliseconds::parse("500 ms"), Some(Milliseconds(500)));
        assert_eq!(Milliseconds::parse("2 min"), Some(Milliseconds(120_000)));
        for text in ["10", "10 sec", "1.5 s", "4294967296 ms"] {
            assert_eq!(Milliseconds::parse(text), None, "{text}");
        }
    }

    #[test]
    fn masks_reach_to_bit_63() {
        assert_eq!(Mask::parse("0x8000000000000000"), Some(Mask(1 << 63)));
        assert_eq!(Mask::parse("0xfF"), Some(Mask(255)));
        for text in ["", "0x", "ff", "0x+1", "0x10000000000000000", "0xg"] {
            assert_eq!(Mask::parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn sizes_are_shown_as_they_are_read(size: u64) {
            prop_assert_eq!(Size::parse(&Size(size).to_string()), Some(Size(size)));
        }

        #[test]
        fn no_text_makes_the_readers_panic(text in "\\PC{0,12}") {
            let _ = (Size::parse(&text), Milliseconds::parse(&text));
        }
    }
}
