//! CR4 as the hypervisor runs with it: every protection that the processor has.
#![forbid(unsafe_code)]

use crate::processor::cr4;

/// What CPUID tells of the protections: ECX of leaf 1, EBX and ECX of leaf 7.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// Leaf 1, ECX.
    pub one_c: u32,
    /// Leaf 7, EBX.
    pub seven_b: u32,
    /// Leaf 7, ECX.
    pub seven_c: u32,
}

/// CR4 on a processor with these features. The number of levels of its tables stays as it is, since it can't be changed.
#[must_use]
pub const fn own_cr4(features: Features, present: u64) -> u64 {
    let mut value = cr4::PAE | cr4::MCE | cr4::OSFXSR | (present & cr4::LA57);
    if features.one_c & (1 << 26) != 0 {
        value |= cr4::OSXSAVE;
    }
    if features.seven_b & (1 << 7) != 0 {
        value |= cr4::SMEP;
    }
    if features.seven_b & (1 << 20) != 0 {
        value |= cr4::SMAP;
    }
    if features.seven_c & (1 << 2) != 0 {
        value |= cr4::UMIP;
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SDM, "CPUID" and "Control Registers": by their numbers, not by the names that the code has for them.
    #[test]
    fn each_protection_is_on_where_the_processor_has_it() {
        let none = Features {
            one_c: 0,
            seven_b: 0,
            seven_c: 0,
        };
        let least = 1 << 5 | 1 << 6 | 1 << 9;
        assert_eq!(own_cr4(none, 0), least);
        let (xsave, smep, smap, umip) = (1 << 18, 1 << 20, 1 << 21, 1 << 11);
        for (features, bit) in [
            (
                Features {
                    one_c: 1 << 26,
                    ..none
                },
                xsave,
            ),
            (
                Features {
                    seven_b: 1 << 7,
                    ..none
                },
                smep,
            ),
            (
                Features {
                    seven_b: 1 << 20,
                    ..none
                },
                smap,
            ),
            (
                Features {
                    seven_c: 1 << 2,
                    ..none
                },
                umip,
            ),
        ] {
            assert_eq!(own_cr4(features, 0), least | bit);
        }
        let all = Features {
            one_c: u32::MAX,
            seven_b: u32::MAX,
            seven_c: u32::MAX,
        };
        let five_levels = 1 << 12;
        assert_eq!(
            own_cr4(all, u64::MAX),
            least | xsave | smep | smap | umip | five_levels
        );
        assert_eq!(own_cr4(all, !five_levels) & five_levels, 0);
    }
}
