//! Addresses as types: which of the four address spaces a number belongs to is part of its type.
//!
//! Invariant: a physical address, the host's or a guest's, is below 2^52 (SDM, "Physical Address Space": the widest that
//! any processor has), so the sum of two of them never overflows; a host-virtual one is canonical for five levels of
//! tables. There is no conversion between the kinds: only page tables translate.
#![forbid(unsafe_code)]

use core::fmt;

/// Bits of a byte's offset in a page.
pub const PAGE_SHIFT: u32 = 12;
/// Bytes of a page.
pub const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;
/// Bits of the widest physical address.
pub const PHYSICAL_BITS: u32 = 52;
/// Bits of the widest virtual address, with five levels of tables.
pub const VIRTUAL_BITS: u32 = 57;

const PHYSICAL_MASK: u64 = (1 << PHYSICAL_BITS) - 1;
const VIRTUAL_UNUSED_BITS: u32 = u64::BITS - VIRTUAL_BITS;

/// What all kinds of addresses have in common.
pub trait Address: Copy + Ord + fmt::Debug {
    /// The address of that number, or `None` where no such address exists.
    fn from_number(number: u64) -> Option<Self>;
    /// The number of the address.
    fn number(self) -> u64;
}

macro_rules! address {
    ($(#[$documentation:meta])* $name:ident, $letters:literal, |$number:ident| $nearest:expr) => {
        $(#[$documentation])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(u64);

        impl $name {
            /// Address 0.
            pub const ZERO: Self = Self(0);

            /// The address of a number that is known to be one, such as that of a register or a table entry: bits that
            /// all addresses of this kind have alike are not taken from the number.
            #[inline]
            #[must_use]
            pub const fn new($number: u64) -> Self {
                Self($nearest)
            }

            /// The address of a number that came from outside, or `None` where no such address exists.
            #[inline]
            #[must_use]
            pub const fn try_new(number: u64) -> Option<Self> {
                let address = Self::new(number);
                if address.0 == number { Some(address) } else { None }
            }

            /// The number of the address.
            #[inline]
            #[must_use]
            pub const fn as_u64(self) -> u64 {
                self.0
            }

            /// The address `bytes` further up, or `None` beyond the end of the address space.
            #[inline]
            #[must_use]
            pub const fn checked_add(self, bytes: u64) -> Option<Self> {
                match self.0.checked_add(bytes) {
                    Some(sum) => Self::try_new(sum),
                    None => None,
                }
            }

            /// The address `bytes` further down, or `None` below the start of the address space.
            #[inline]
            #[must_use]
            pub const fn checked_sub(self, bytes: u64) -> Option<Self> {
                match self.0.checked_sub(bytes) {
                    Some(difference) => Self::try_new(difference),
                    None => None,
                }
            }

            /// Bytes from `start` to this address, or `None` when it lies below.
            #[inline]
            #[must_use]
            pub const fn offset_from(self, start: Self) -> Option<u64> {
                self.0.checked_sub(start.0)
            }

            /// Whether the address is a multiple of `alignment`, a power of two.
            #[inline]
            #[must_use]
            pub const fn is_aligned(self, alignment: u64) -> bool {
                self.0 & alignment.wrapping_sub(1) == 0
            }

            /// The last multiple of `alignment`, a power of two, that is not above the address.
            #[inline]
            #[must_use]
            pub const fn align_down(self, alignment: u64) -> Self {
                Self(self.0 & !alignment.wrapping_sub(1))
            }

            /// The first multiple of `alignment`, a power of two, that is not below the address; `None` beyond the end
            /// of the address space.
            #[inline]
            #[must_use]
            pub const fn align_up(self, alignment: u64) -> Option<Self> {
                match self.checked_add(alignment.wrapping_sub(1)) {
                    Some(address) => Some(address.align_down(alignment)),
                    None => None,
                }
            }

            /// Bytes from the start of the page.
            #[inline]
            #[must_use]
            pub const fn page_offset(self) -> u64 {
                self.0 & PAGE_SIZE.wrapping_sub(1)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(formatter, concat!($letters, ":{:#x}"), self.0)
            }
        }

        impl fmt::LowerHex for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::LowerHex::fmt(&self.0, formatter)
            }
        }

        impl Address for $name {
            #[inline]
            fn from_number(number: u64) -> Option<Self> {
                Self::try_new(number)
            }

            #[inline]
            fn number(self) -> u64 {
                self.0
            }
        }
    };
}

address!(
    /// An address on the machine's bus.
    HostPhysical, "hpa", |number| number & PHYSICAL_MASK
);
address!(
    /// An address in the hypervisor's own page tables.
    HostVirtual, "hva",
    |number| (number.wrapping_shl(VIRTUAL_UNUSED_BITS) as i64).wrapping_shr(VIRTUAL_UNUSED_BITS) as u64
);
address!(
    /// What a guest takes for a physical address.
    GuestPhysical, "gpa", |number| number & PHYSICAL_MASK
);
address!(
    /// An address in a guest's page tables (SDM: linear address). Every number is one: what is canonical depends on the
    /// guest's mode.
    GuestVirtual, "gva", |number| number
);

/// `size` bytes from `start` on.
///
/// Invariant: it ends within the address space, so nothing about it overflows. It may be empty.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Range<A> {
    start: A,
    size: u64,
}

/// A range of host-physical addresses.
pub type PhysicalRange = Range<HostPhysical>;
/// A range of guest-physical addresses.
pub type GuestRange = Range<GuestPhysical>;
/// A range of host-virtual addresses.
pub type VirtualRange = Range<HostVirtual>;

impl<A: Address> Range<A> {
    /// The range of `size` bytes from `start` on, or `None` when it exceeds the address space.
    #[inline]
    #[must_use]
    pub fn new(start: A, size: u64) -> Option<Self> {
        let range = Self { start, size };
        match size.checked_sub(1) {
            None => Some(range),
            Some(rest) => A::from_number(start.number().checked_add(rest)?).map(|_| range),
        }
    }

    /// First address.
    #[inline]
    #[must_use]
    pub const fn start(&self) -> A {
        self.start
    }

    /// Bytes.
    #[inline]
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Whether the range has no bytes.
    #[inline]
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.size == 0
    }

    /// The last address, or `None` of an empty range. (The first address behind a range need not exist.)
    #[inline]
    #[must_use]
    pub fn last(&self) -> Option<A> {
        let rest = self.size.checked_sub(1)?;
        A::from_number(self.start.number().wrapping_add(rest))
    }

    /// Whether start and size are multiples of `alignment`, a power of two.
    #[inline]
    #[must_use]
    pub fn is_aligned(&self, alignment: u64) -> bool {
        (self.start.number() | self.size) & alignment.wrapping_sub(1) == 0
    }

    /// Whether `address` lies in the range.
    #[inline]
    #[must_use]
    pub fn contains(&self, address: A) -> bool {
        address.number().wrapping_sub(self.start.number()) < self.size
    }

    /// Whether all of `other` lies in the range; an empty range lies in every range.
    #[inline]
    #[must_use]
    pub fn contains_range(&self, other: &Self) -> bool {
        other
            .last()
            .is_none_or(|last| self.contains(other.start) && self.contains(last))
    }

    /// Whether there is an address that lies in both ranges.
    #[inline]
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        !self.is_empty()
            && !other.is_empty()
            && (self.contains(other.start) || other.contains(self.start))
    }

    /// The addresses that lie in both ranges; `None` when there are none.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Option<Self> {
        let start = self.start.max(other.start);
        let last = self.last()?.min(other.last()?);
        let rest = last.number().checked_sub(start.number())?;
        Some(Self {
            start,
            size: rest.wrapping_add(1),
        })
    }

    /// What of the range lies below and what above the addresses of `hole`; either may be empty.
    #[must_use]
    pub fn without(&self, hole: &Self) -> (Self, Self) {
        let Some(shared) = self.intersection(hole) else {
            return (
                *self,
                Self {
                    start: self.start,
                    size: 0,
                },
            );
        };
        let below = shared.start.number().wrapping_sub(self.start.number());
        let used = below.wrapping_add(shared.size);
        let above = self.size.wrapping_sub(used);
        // Where nothing is left above, the first address above need not exist.
        let start = A::from_number(self.start.number().wrapping_add(used)).unwrap_or(self.start);
        (
            Self {
                start: self.start,
                size: below,
            },
            Self { start, size: above },
        )
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::format;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn addresses_keep_what_their_space_allows() {
        assert_eq!(HostPhysical::new(u64::MAX).as_u64(), 0x000f_ffff_ffff_ffff);
        assert_eq!(HostPhysical::try_new(1 << 52), None);
        assert_eq!(
            GuestPhysical::try_new((1 << 52) - 1).map(GuestPhysical::as_u64),
            Some((1 << 52) - 1)
        );
        assert_eq!(
            HostVirtual::new(0x0100_0000_0000_0000).as_u64(),
            0xff00_0000_0000_0000
        );
        assert_eq!(HostVirtual::try_new(0x0100_0000_0000_0000), None);
        assert!(HostVirtual::try_new(0xffff_ffff_8000_0000).is_some());
        assert!(GuestVirtual::try_new(0x1234_5678_9abc_def0).is_some());
    }

    #[test]
    fn arithmetic_ends_where_the_space_ends() {
        let last = HostPhysical::new((1 << 52) - 1);
        assert_eq!(last.checked_add(1), None);
        assert_eq!(last.checked_add(u64::MAX), None);
        assert_eq!(HostPhysical::ZERO.checked_sub(1), None);
        assert_eq!(last.align_up(4096), None);
        assert_eq!(
            HostPhysical::new(0x1fff).align_up(4096),
            Some(HostPhysical::new(0x2000))
        );
        assert_eq!(last.align_down(4096).as_u64(), (1 << 52) - 4096);
        assert_eq!(last.page_offset(), 4095);
        assert!(HostPhysical::new(0x20_0000).is_aligned(0x20_0000));
        assert!(!HostPhysical::new(0x20_1000).is_aligned(0x20_0000));
        assert_eq!(HostPhysical::new(7).offset_from(HostPhysical::new(9)), None);
    }

    #[test]
    fn addresses_show_their_kind() {
        assert_eq!(format!("{:?}", HostPhysical::new(0x1000)), "hpa:0x1000");
        assert_eq!(format!("{:?}", GuestVirtual::new(0x10)), "gva:0x10");
        assert_eq!(format!("{:#x}", GuestPhysical::new(0x10)), "0x10");
    }

    #[test]
    fn ranges_end_within_their_space() {
        let last = HostPhysical::new((1 << 52) - 1);
        assert!(PhysicalRange::new(last, 1).is_some());
        assert!(PhysicalRange::new(last, 2).is_none());
        assert!(PhysicalRange::new(last, u64::MAX).is_none());
        let top = VirtualRange::new(HostVirtual::new(u64::MAX - 4095), 4096).unwrap();
        assert_eq!(top.last(), Some(HostVirtual::new(u64::MAX)));
        assert!(top.contains(HostVirtual::new(u64::MAX)));
        assert!(!top.contains(HostVirtual::ZERO));
    }

    fn range() -> impl Strategy<Value = PhysicalRange> {
        (0u64..24, 0u64..24, any::<bool>()).prop_map(|(start, size, high)| {
            let base = if high { (1 << 52) - 48 } else { 0 };
            PhysicalRange::new(HostPhysical::new(base + start), size).unwrap()
        })
    }

    fn members(range: &PhysicalRange) -> std::collections::BTreeSet<u64> {
        (range.start().as_u64()..range.start().as_u64() + range.size()).collect()
    }

    proptest! {
        #[test]
        fn ranges_are_sets(left in range(), right in range()) {
            let (a, b) = (members(&left), members(&right));
            prop_assert_eq!(left.overlaps(&right), !a.is_disjoint(&b));
            prop_assert_eq!(left.contains_range(&right), b.is_subset(&a));
            let both = left.intersection(&right).map(|both| members(&both)).unwrap_or_default();
            prop_assert_eq!(both, a.intersection(&b).copied().collect());
            let (below, above) = left.without(&right);
            let mut rest = members(&below);
            rest.extend(members(&above));
            prop_assert_eq!(rest, a.difference(&b).copied().collect());
            for address in a.union(&b) {
                prop_assert_eq!(left.contains(HostPhysical::new(*address)), a.contains(address));
            }
        }
    }
}
