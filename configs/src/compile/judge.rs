//! The judge of one file: collects what is wrong with its values.
//!
//! Invariant: each value that is not as it must be is reported once, where it stands; what is returned for it then is a
//! stand-in, which is never compiled.

use core::cell::RefCell;
use core::ops::RangeInclusive;

use gaol_abi::NAME_LENGTH;
use gaol_abi::outcome::Reason;
use toml::Spanned;

use crate::binary::{MAX_MILLISECONDS, name_text};
use crate::encode;
use crate::problem::{Place, Problem, Source};
use crate::quantity::{Milliseconds, Number};

/// Makes problems of one file.
pub(super) struct Judge<'a> {
    source: &'a Source,
    problems: RefCell<Vec<Problem>>,
}

impl<'a> Judge<'a> {
    pub(super) fn new(source: &'a Source) -> Self {
        Self {
            source,
            problems: RefCell::default(),
        }
    }

    /// What was found, in the order of the file.
    pub(super) fn verdict(self) -> Result<(), Vec<Problem>> {
        let mut problems = self.problems.into_inner();
        problems.sort_by_key(|problem| problem.place().map_or(0, |place| place.start));
        match problems.is_empty() {
            true => Ok(()),
            false => Err(problems),
        }
    }

    pub(super) fn problem(
        &self,
        reason: Reason,
        place: Place,
        label: &str,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        let problem = Problem::new(self.source, reason, message.into(), remedy.into());
        self.problems
            .borrow_mut()
            .push(problem.at(Some(place), label));
    }

    pub(super) fn invalid(
        &self,
        place: Place,
        label: &str,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.problem(Reason::ConfigurationInvalid, place, label, message, remedy);
    }

    pub(super) fn name(&self, what: &str, name: &Spanned<String>) -> [u8; NAME_LENGTH] {
        let text = name.get_ref();
        let bytes = encode::name(text).filter(|bytes| name_text(bytes).is_ok());
        let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
        if let Some(bytes) = bytes
            && !is_number
        {
            return bytes;
        }
        self.problem(
            Reason::NameInvalid,
            name.span(),
            "not a name",
            format!("{text:?} can't be the name of a {what}"),
            format!(
                "A name has 1 to {} letters, digits and signs of ASCII, no spaces, and is not a number.",
                NAME_LENGTH - 1
            ),
        );
        [0; NAME_LENGTH]
    }

    pub(super) fn time(&self, time: Option<&Spanned<Milliseconds>>) -> u32 {
        let Some(time) = time else { return 0 };
        let milliseconds = time.get_ref().0;
        if milliseconds == 0 || milliseconds > MAX_MILLISECONDS {
            self.invalid(
                time.span(),
                "out of range",
                "this time is not possible",
                "Write a time from \"1 ms\" to \"10 min\".",
            );
        }
        milliseconds
    }

    /// A number that must be in `range`, which the type can hold.
    pub(super) fn number<T: TryFrom<u64> + Default>(
        &self,
        what: &str,
        number: &Spanned<Number>,
        range: RangeInclusive<u64>,
    ) -> T {
        self.number_if(what, number, range).unwrap_or_default()
    }

    /// The same; `None` when it was reported.
    pub(super) fn number_if<T: TryFrom<u64>>(
        &self,
        what: &str,
        number: &Spanned<Number>,
        range: RangeInclusive<u64>,
    ) -> Option<T> {
        let value = number.get_ref().0;
        let converted = T::try_from(value).ok().filter(|_| range.contains(&value));
        if converted.is_none() {
            self.invalid(
                number.span(),
                "out of range",
                format!("{what} can't be {value}"),
                format!("Write a number from {} to {}.", range.start(), range.end()),
            );
        }
        converted
    }

    /// The same of a number that may be missing.
    pub(super) fn number_or<T: TryFrom<u64> + Default>(
        &self,
        what: &str,
        number: &Option<Spanned<Number>>,
        range: RangeInclusive<u64>,
        default: T,
    ) -> T {
        match number {
            Some(number) => self.number(what, number, range),
            None => default,
        }
    }

    /// The first elements of a list, as many as the binary form permits; the first one too many is reported.
    pub(super) fn bounded<'t, T>(
        &self,
        list: &'t [Spanned<T>],
        most: usize,
        what: &str,
        remedy: &str,
    ) -> &'t [Spanned<T>] {
        match list.split_at_checked(most) {
            Some((first, [surplus, ..])) => {
                let message = format!("there are more than {most} {what}");
                self.invalid(surplus.span(), "one too many", message, remedy);
                first
            }
            _ => list,
        }
    }
}
