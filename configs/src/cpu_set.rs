//! A set of CPUs by Linux' numbers.

use gaol_abi::MAX_CPUS;
use gaol_abi::config::CPU_WORDS;

/// Up to [`MAX_CPUS`] CPUs, in the form that the binary configuration has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuSet {
    words: [u64; CPU_WORDS],
}

impl CpuSet {
    /// No CPU.
    pub const EMPTY: Self = Self {
        words: [0; CPU_WORDS],
    };

    /// The set with bit n of word n / 64 for CPU n.
    #[must_use]
    pub const fn from_words(words: [u64; CPU_WORDS]) -> Self {
        Self { words }
    }

    /// CPUs 0 to `count - 1`.
    #[must_use]
    pub fn first(count: u32) -> Self {
        let mut set = Self::EMPTY;
        for cpu in 0..count {
            set.insert(cpu);
        }
        set
    }

    /// The bitmap.
    #[must_use]
    pub const fn words(self) -> [u64; CPU_WORDS] {
        self.words
    }

    fn place(cpu: u32) -> (usize, u64) {
        ((cpu >> 6) as usize, 1u64.wrapping_shl(cpu))
    }

    /// Adds a CPU; one beyond [`MAX_CPUS`] is left out, and the result is `false`.
    pub fn insert(&mut self, cpu: u32) -> bool {
        let (word, bit) = Self::place(cpu);
        match self.words.get_mut(word) {
            Some(word) => {
                *word |= bit;
                true
            }
            None => false,
        }
    }

    /// Takes a CPU out.
    pub fn remove(&mut self, cpu: u32) {
        let (word, bit) = Self::place(cpu);
        if let Some(word) = self.words.get_mut(word) {
            *word &= !bit;
        }
    }

    /// Whether the CPU is in the set.
    #[must_use]
    pub fn contains(self, cpu: u32) -> bool {
        let (word, bit) = Self::place(cpu);
        self.words.get(word).is_some_and(|word| word & bit != 0)
    }

    /// Whether the set has no CPU.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// Number of CPUs.
    #[must_use]
    pub fn len(self) -> u32 {
        self.words
            .iter()
            .fold(0, |sum: u32, word| sum.saturating_add(word.count_ones()))
    }

    /// The CPUs in ascending order.
    pub fn iter(self) -> impl Iterator<Item = u32> + Clone {
        self.words
            .into_iter()
            .zip((0..MAX_CPUS as u32).step_by(64))
            .flat_map(|(mut word, base)| {
                core::iter::from_fn(move || {
                    let bit = word.checked_ilog2().map(|_| word.trailing_zeros())?;
                    word &= word.wrapping_sub(1);
                    Some(base | bit)
                })
            })
    }
}

impl FromIterator<u32> for CpuSet {
    fn from_iter<I: IntoIterator<Item = u32>>(cpus: I) -> Self {
        let mut set = Self::EMPTY;
        for cpu in cpus {
            set.insert(cpu);
        }
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn behaves_like_a_set(inserted: Vec<u8>, removed: Vec<u8>) {
            let mut model: BTreeSet<u32> = inserted.iter().map(|cpu| u32::from(*cpu)).collect();
            let mut set: CpuSet = model.iter().copied().collect();
            for cpu in removed {
                model.remove(&u32::from(cpu));
                set.remove(u32::from(cpu));
            }
            prop_assert_eq!(set.iter().collect::<Vec<_>>(), model.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(set.len() as usize, model.len());
            prop_assert_eq!(set.is_empty(), model.is_empty());
            for cpu in 0..300 {
                prop_assert_eq!(set.contains(cpu), model.contains(&cpu));
            }
        }
    }

    #[test]
    fn cpus_beyond_the_last_are_left_out() {
        let mut set = CpuSet::EMPTY;
        assert!(!set.insert(MAX_CPUS as u32));
        assert!(set.is_empty());
        assert_eq!(CpuSet::first(1000).len(), MAX_CPUS as u32);
    }
}
