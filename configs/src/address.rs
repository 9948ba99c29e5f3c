//! Addresses and ranges of them, kept apart by the space that they belong to.
//!
//! Invariant: a [`Range`] is not empty and does not wrap around.

use core::fmt;

/// An address of one kind.
pub trait Address: Copy + Ord {
    /// The address with this number.
    fn new(value: u64) -> Self;
    /// The number.
    fn value(self) -> u64;
}

/// A host-physical address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPhysical(pub u64);

/// A guest-physical address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuestPhysical(pub u64);

impl Address for HostPhysical {
    fn new(value: u64) -> Self {
        Self(value)
    }
    fn value(self) -> u64 {
        self.0
    }
}

impl Address for GuestPhysical {
    fn new(value: u64) -> Self {
        Self(value)
    }
    fn value(self) -> u64 {
        self.0
    }
}

impl fmt::Display for HostPhysical {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:#x}", self.0)
    }
}

impl fmt::Display for GuestPhysical {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:#x}", self.0)
    }
}

/// Addresses from `start` on, `size` bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range<A> {
    start: A,
    size: u64,
}

impl<A: Address> Range<A> {
    /// The range, unless it is empty or its end does not fit into 64 bits.
    #[must_use]
    pub fn new(start: A, size: u64) -> Option<Self> {
        start.value().checked_add(size)?;
        (size != 0).then_some(Self { start, size })
    }

    /// First address.
    #[must_use]
    pub fn start(self) -> A {
        self.start
    }

    /// Bytes.
    #[must_use]
    pub fn size(self) -> u64 {
        self.size
    }

    /// First address behind the range.
    #[must_use]
    pub fn end(self) -> A {
        A::new(self.start.value().saturating_add(self.size))
    }

    /// Whether the two have an address in common.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        self.start < other.end() && other.start < self.end()
    }

    /// Whether `address` is in the range.
    #[must_use]
    pub fn contains(self, address: A) -> bool {
        self.start <= address && address < self.end()
    }

    /// Whether all of `other` is in the range.
    #[must_use]
    pub fn contains_range(self, other: Self) -> bool {
        self.start <= other.start && other.end() <= self.end()
    }

    /// First address that the two have in common.
    #[must_use]
    pub fn first_common(self, other: Self) -> Option<A> {
        self.overlaps(other).then(|| self.start.max(other.start))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn neither_empty_nor_wrapping_ranges_exist() {
        assert!(Range::new(HostPhysical(0x1000), 0).is_none());
        assert!(Range::new(HostPhysical(u64::MAX), 2).is_none());
        assert!(Range::new(HostPhysical(u64::MAX), 1).is_none());
        assert!(Range::new(HostPhysical(u64::MAX - 1), 1).is_some());
    }

    proptest! {
        #[test]
        fn overlap_is_a_common_address(a in 0u64..20, m in 1u64..8, b in 0u64..20, n in 1u64..8) {
            let first = Range::new(GuestPhysical(a), m).unwrap();
            let second = Range::new(GuestPhysical(b), n).unwrap();
            let common: Vec<u64> = (a..a + m).filter(|address| (b..b + n).contains(address)).collect();
            prop_assert_eq!(first.overlaps(second), !common.is_empty());
            prop_assert_eq!(first.first_common(second).map(|address| address.0), common.first().copied());
            prop_assert_eq!(first.contains_range(second), common.len() as u64 == n);
        }
    }
}
