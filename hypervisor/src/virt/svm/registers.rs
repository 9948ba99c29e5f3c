//! Registers that are in the control block and that a guest writes by exits: what the processor would take.
#![forbid(unsafe_code)]

use crate::processor::efer;

/// What decides whether a value for EFER is taken.
#[derive(Clone, Copy, Debug)]
pub struct Extended {
    /// EFER as the guest sees it.
    pub efer: u64,
    /// CR0.PG.
    pub paging: bool,
    /// Bits that the processor has.
    pub allowed: u64,
}

impl Extended {
    /// What EFER holds after a write of `value`. `None`: the processor would raise #GP ("Extended Feature Enable Register").
    #[must_use]
    pub const fn written(&self, value: u64) -> Option<u64> {
        let reserved = value & !(self.allowed | efer::LMA);
        let changes_mode = self.paging && (value ^ self.efer) & efer::LME != 0;
        if reserved != 0 || changes_mode {
            return None;
        }
        // LMA is read-only.
        Some((value & !efer::LMA) | (self.efer & efer::LMA))
    }
}

/// Whether each of the eight memory types is one that there is ("PAT Register").
#[must_use]
pub fn is_legal_pat(value: u64) -> bool {
    value
        .to_le_bytes()
        .into_iter()
        .all(|kind| matches!(kind, 0 | 1 | 4..=7))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn neither_svm_nor_the_mode_is_the_guests_to_change(value: u64, before: u64, paging: bool) {
            let allowed = 0xc901;
            let before = before & (allowed | efer::LMA);
            let now = Extended { efer: before, paging, allowed };
            for value in [value, value & (allowed | efer::LMA), before] {
                match now.written(value) {
                    Some(after) => {
                        prop_assert_eq!(after & 1 << 12, 0);
                        prop_assert_eq!(after & efer::LMA, before & efer::LMA);
                        prop_assert_eq!((after ^ value) & !efer::LMA, 0);
                        prop_assert!(!paging || (after ^ before) & efer::LME == 0);
                    }
                    None => prop_assert!(
                        value & !(allowed | efer::LMA) != 0 || paging && (value ^ before) & efer::LME != 0
                    ),
                }
            }
            prop_assert_eq!(now.written(before | 1 << 12), None);
        }
    }

    #[test]
    fn types_of_the_pat_are_judged_one_by_one() {
        for kind in 0..=u8::MAX {
            for place in 0..8 {
                let value =
                    0x0007_0406_0007_0406 & !(0xff << (place * 8)) | u64::from(kind) << (place * 8);
                assert_eq!(is_legal_pat(value), [0, 1, 4, 5, 6, 7].contains(&kind));
            }
        }
    }
}
