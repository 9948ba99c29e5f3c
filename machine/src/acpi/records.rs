//! Structures of different kinds one after the other, each with its kind and length: what MADT and DMAR consist of.
//!
//! Invariant: a record lies within the table and is at least as long as its own head, so that walking ends.

use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::Table;
use crate::problem::Problem;

/// How kind and length are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Head {
    /// One byte each.
    Bytes,
    /// Two bytes each.
    Words,
}

/// A structure.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record<'a> {
    table: Table<'a>,
    /// From the table's start.
    offset: usize,
    /// What kind it is; what that means is the table's.
    pub(super) kind: u16,
    /// All of it, the head included.
    pub(super) bytes: &'a [u8],
}

impl<'a> Record<'a> {
    /// The record as a structure, which begins with the head.
    pub(super) fn layout<T: FromBytes + Immutable + KnownLayout + Unaligned>(
        &self,
    ) -> Result<&'a T, Problem> {
        match T::ref_from_prefix(self.bytes) {
            Ok((value, _)) => Ok(value),
            Err(_) => Err(self.garbage(format!("{} bytes are too short", self.bytes.len()))),
        }
    }

    /// What is wrong with it.
    pub(super) fn garbage(&self, what: impl std::fmt::Display) -> Problem {
        self.table.garbage(format!(
            "structure of type {} at offset {}: {what}",
            self.kind, self.offset
        ))
    }

    /// The records within this one, from `offset` on.
    pub(super) fn inner(&self, offset: usize) -> impl Iterator<Item = Result<Record<'a>, Problem>> {
        let rest = self.bytes.get(offset..).unwrap_or_default();
        walk(self.table, self.offset + offset, rest, Head::Bytes)
    }
}

/// The records of a table from `offset` on. After an error there is nothing more.
pub(super) fn records(
    table: Table<'_>,
    offset: usize,
    head: Head,
) -> impl Iterator<Item = Result<Record<'_>, Problem>> {
    let rest = table.bytes.get(offset..).unwrap_or_default();
    walk(table, offset, rest, head)
}

fn walk<'a>(
    table: Table<'a>,
    mut offset: usize,
    mut rest: &'a [u8],
    head: Head,
) -> impl Iterator<Item = Result<Record<'a>, Problem>> {
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let head = match head {
            Head::Bytes => <[u8; 2]>::ref_from_prefix(rest)
                .ok()
                .map(|([kind, length], _)| (u16::from(*kind), usize::from(*length), 2)),
            Head::Words => <[U16; 2]>::ref_from_prefix(rest)
                .ok()
                .map(|([kind, length], _)| (kind.get(), usize::from(length.get()), 4)),
        };
        let record = head.and_then(|(kind, length, least)| {
            let (bytes, behind) = rest.split_at_checked(length)?;
            (length >= least).then_some((kind, bytes, behind))
        });
        let Some((kind, bytes, behind)) = record else {
            rest = &[];
            let what = format!("the structure at offset {offset} has an impossible length");
            return Some(Err(table.garbage(what)));
        };
        let record = Record {
            table,
            offset,
            kind,
            bytes,
        };
        offset += bytes.len();
        rest = behind;
        Some(Ok(record))
    })
}
