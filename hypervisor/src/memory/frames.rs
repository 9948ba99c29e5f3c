//! The frame pool: which of the hypervisor's own pages are free.
//!
//! Invariant: a frame is free, in use, or *retired*: given back, but perhaps still known to a processor that walks the
//! table that it was part of. A retired frame is not handed out before [`FramePool::reclaim`], which the owner calls
//! after all processors have dropped their translations. Nothing here panics: a frame that is freed twice is an error
//! value.
#![forbid(unsafe_code)]

use super::address::{HostPhysical, PAGE_SHIFT, PAGE_SIZE};

/// All frames are in use, or none of those that are free fits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OutOfFrames;

/// The frame is not one of the pool's, or not in use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotInUse;

/// A page of physical memory, page-aligned.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Frame(HostPhysical);

impl Frame {
    /// The frame at `address`, or `None` when the address is not page-aligned.
    #[inline]
    #[must_use]
    pub const fn new(address: HostPhysical) -> Option<Self> {
        if address.is_aligned(PAGE_SIZE) {
            Some(Self(address))
        } else {
            None
        }
    }

    /// Address of the frame's first byte.
    #[inline]
    #[must_use]
    pub const fn address(self) -> HostPhysical {
        self.0
    }
}

/// The frames of a contiguous piece of memory.
#[derive(Debug)]
pub struct FramePool<'a> {
    /// A set bit: the frame is in use or retired, or the pool has no such frame.
    taken: &'a mut [u64],
    /// A set bit: the frame is retired.
    retired: &'a mut [u64],
    base: HostPhysical,
    total: usize,
    used: usize,
    /// Word at which the search for a free frame begins.
    hint: usize,
    any_retired: bool,
}

const WORD_BITS: usize = u64::BITS as usize;

impl<'a> FramePool<'a> {
    /// Words of bitmap that a pool of `total` frames needs.
    #[must_use]
    pub const fn bitmap_words(total: usize) -> usize {
        total.div_ceil(WORD_BITS).saturating_mul(2)
    }

    /// A pool of `total` free frames from `base` (page-aligned) on, or `None` when the bitmap is shorter than
    /// [`Self::bitmap_words`] or the memory exceeds the address space.
    #[must_use]
    pub fn new(bitmap: &'a mut [u64], base: HostPhysical, total: usize) -> Option<Self> {
        let words = total.div_ceil(WORD_BITS);
        let bytes = u64::try_from(total).ok()?.checked_mul(PAGE_SIZE)?;
        base.checked_add(bytes.saturating_sub(1))?;
        if !base.is_aligned(PAGE_SIZE) {
            return None;
        }
        let (taken, rest) = bitmap.split_at_mut_checked(words)?;
        let (retired, _) = rest.split_at_mut_checked(words)?;
        taken.fill(0);
        retired.fill(0);
        let beyond = words.wrapping_mul(WORD_BITS).wrapping_sub(total);
        if let (Some(last), 1..) = (taken.last_mut(), beyond) {
            *last = u64::MAX.wrapping_shl((WORD_BITS.wrapping_sub(beyond)) as u32);
        }
        Some(Self {
            taken,
            retired,
            base,
            total,
            used: 0,
            hint: 0,
            any_retired: false,
        })
    }

    /// Number of frames.
    #[inline]
    #[must_use]
    pub const fn total(&self) -> usize {
        self.total
    }

    /// Number of frames that are in use or retired.
    #[inline]
    #[must_use]
    pub const fn used(&self) -> usize {
        self.used
    }

    /// Number of free frames.
    #[inline]
    #[must_use]
    pub const fn available(&self) -> usize {
        self.total.saturating_sub(self.used)
    }

    /// Takes a frame; what it holds is left from its last use.
    ///
    /// # Errors
    /// When no frame is free.
    #[inline]
    pub fn allocate(&mut self) -> Result<Frame, OutOfFrames> {
        if self.available() == 0 {
            return Err(OutOfFrames);
        }
        let words = self.taken.len();
        let mut word = self.hint;
        for _ in 0..words {
            if let Some(bits) = self.taken.get_mut(word)
                && *bits != u64::MAX
            {
                let bit = bits.trailing_ones();
                *bits |= 1u64.wrapping_shl(bit);
                self.hint = word;
                self.used = self.used.saturating_add(1);
                return Ok(self.frame(word.wrapping_mul(WORD_BITS).wrapping_add(bit as usize)));
            }
            word = word.wrapping_add(1);
            if word >= words {
                word = 0;
            }
        }
        Err(OutOfFrames)
    }

    /// Takes `count` frames that follow each other, of which the first is a multiple of `alignment` bytes (a power of
    /// two, at least a page).
    ///
    /// # Errors
    /// When there is no such piece, or `count` is 0.
    pub fn allocate_contiguous(
        &mut self,
        count: usize,
        alignment: u64,
    ) -> Result<Frame, OutOfFrames> {
        if count == 0 || count > self.available() {
            return Err(OutOfFrames);
        }
        let step = usize::try_from(alignment >> PAGE_SHIFT)
            .map_err(|_| OutOfFrames)?
            .max(1);
        let first = self.base.align_up(alignment).ok_or(OutOfFrames)?;
        let skip = first.offset_from(self.base).ok_or(OutOfFrames)? >> PAGE_SHIFT;
        let mut index = usize::try_from(skip).map_err(|_| OutOfFrames)?;
        while let Some(end) = index.checked_add(count)
            && end <= self.total
        {
            match (index..end).rev().find(|&frame| self.is_taken(frame)) {
                None => {
                    for frame in index..end {
                        self.mark(frame, true);
                    }
                    self.used = self.used.saturating_add(count);
                    return Ok(self.frame(index));
                }
                Some(taken) => {
                    let beyond = taken.wrapping_sub(index).wrapping_add(1).div_ceil(step);
                    index = index
                        .checked_add(beyond.saturating_mul(step))
                        .ok_or(OutOfFrames)?;
                }
            }
        }
        Err(OutOfFrames)
    }

    /// Gives a frame back that no processor knows any more.
    ///
    /// # Errors
    /// When the frame is not in use; nothing has changed then.
    pub fn free(&mut self, frame: Frame) -> Result<(), NotInUse> {
        let index = self.index_in_use(frame)?;
        self.mark(index, false);
        self.used = self.used.saturating_sub(1);
        Ok(())
    }

    /// Gives a frame back that processors may still walk: it becomes free with [`Self::reclaim`].
    ///
    /// # Errors
    /// When the frame is not in use; nothing has changed then.
    pub fn retire(&mut self, frame: Frame) -> Result<(), NotInUse> {
        let index = self.index_in_use(frame)?;
        if let Some(word) = self.retired.get_mut(index / WORD_BITS) {
            *word |= bit(index);
        }
        self.any_retired = true;
        Ok(())
    }

    /// Makes the retired frames free. Every processor that may have walked one of them must have flushed its
    /// translations since.
    #[inline]
    pub fn reclaim(&mut self) {
        if !self.any_retired {
            return;
        }
        for (taken, retired) in self.taken.iter_mut().zip(self.retired.iter_mut()) {
            *taken &= !*retired;
            self.used = self.used.saturating_sub(retired.count_ones() as usize);
            *retired = 0;
        }
        self.any_retired = false;
    }

    fn frame(&self, index: usize) -> Frame {
        // `new` has checked that all frames are within the address space.
        let offset = (index as u64).wrapping_shl(PAGE_SHIFT);
        Frame(HostPhysical::new(self.base.as_u64().wrapping_add(offset)))
    }

    fn index_in_use(&self, frame: Frame) -> Result<usize, NotInUse> {
        let offset = frame.0.offset_from(self.base).ok_or(NotInUse)?;
        let index = usize::try_from(offset >> PAGE_SHIFT).map_err(|_| NotInUse)?;
        let retired = self
            .retired
            .get(index / WORD_BITS)
            .is_some_and(|word| word & bit(index) != 0);
        if index < self.total && self.is_taken(index) && !retired {
            Ok(index)
        } else {
            Err(NotInUse)
        }
    }

    fn is_taken(&self, index: usize) -> bool {
        self.taken
            .get(index / WORD_BITS)
            .is_none_or(|word| word & bit(index) != 0)
    }

    fn mark(&mut self, index: usize, taken: bool) {
        if let Some(word) = self.taken.get_mut(index / WORD_BITS) {
            if taken {
                *word |= bit(index);
            } else {
                *word &= !bit(index);
            }
        }
    }
}

const fn bit(index: usize) -> u64 {
    1u64.wrapping_shl((index % WORD_BITS) as u32)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::collections::{BTreeMap, BTreeSet};
    use std::vec;

    use proptest::prelude::*;

    use super::*;

    const BASE: u64 = 0x4_7000;

    fn frame(index: usize) -> Frame {
        Frame::new(HostPhysical::new(BASE + index as u64 * PAGE_SIZE)).unwrap()
    }

    #[test]
    fn refuses_what_it_cannot_hold() {
        let mut words = vec![0; 2];
        assert!(FramePool::new(&mut words, HostPhysical::new(BASE), 65).is_none());
        assert!(FramePool::new(&mut words, HostPhysical::new(1), 1).is_none());
        assert!(FramePool::new(&mut words, HostPhysical::new((1 << 52) - 4096), 2).is_none());
        let mut pool = FramePool::new(&mut words, HostPhysical::new((1 << 52) - 4096), 1).unwrap();
        assert!(pool.allocate().is_ok());
        assert_eq!(pool.allocate(), Err(OutOfFrames));
    }

    #[test]
    fn knows_no_frames_of_others() {
        let mut words = vec![0; 2];
        let mut pool = FramePool::new(&mut words, HostPhysical::new(BASE), 10).unwrap();
        let outside = [
            BASE - PAGE_SIZE,
            BASE + 10 * PAGE_SIZE,
            BASE + 1000 * PAGE_SIZE,
        ];
        for address in outside {
            let outside = Frame::new(HostPhysical::new(address)).unwrap();
            assert_eq!(pool.free(outside), Err(NotInUse));
            assert_eq!(pool.retire(outside), Err(NotInUse));
        }
        assert_eq!(pool.used(), 0);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Allocate,
        Contiguous(usize, u32),
        Free(usize),
        Retire(usize),
        Reclaim,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => Just(Step::Allocate),
            2 => (0usize..12, 0u32..4).prop_map(|(count, order)| Step::Contiguous(count, order)),
            4 => (0usize..210).prop_map(Step::Free),
            2 => (0usize..210).prop_map(Step::Retire),
            1 => Just(Step::Reclaim),
        ]
    }

    proptest! {
        #[test]
        fn behaves_like_a_set(total in 1usize..200, steps in prop::collection::vec(step(), 1..300)) {
            let mut words = vec![u64::MAX; FramePool::bitmap_words(total)];
            let mut pool = FramePool::new(&mut words, HostPhysical::new(BASE), total).unwrap();
            // Frames in use or retired, with whether they are retired.
            let mut model = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Allocate => match pool.allocate() {
                        Ok(new) => {
                            prop_assert!(new >= frame(0) && new < frame(total));
                            prop_assert!(model.insert(new, false).is_none());
                        }
                        Err(OutOfFrames) => prop_assert_eq!(model.len(), total),
                    },
                    Step::Contiguous(count, order) => {
                        let alignment = PAGE_SIZE << order;
                        let fits = |index: usize| {
                            frame(index).address().is_aligned(alignment)
                                && (index..index + count).all(|index| !model.contains_key(&frame(index)))
                        };
                        let possible = count > 0 && count <= total && (0..=total - count).any(fits);
                        match pool.allocate_contiguous(count, alignment) {
                            Ok(first) => {
                                prop_assert!(possible && first.address().is_aligned(alignment));
                                let index = (first.address().as_u64() - BASE) / PAGE_SIZE;
                                for index in index as usize..index as usize + count {
                                    prop_assert!(index < total);
                                    prop_assert!(model.insert(frame(index), false).is_none());
                                }
                            }
                            Err(OutOfFrames) => prop_assert!(!possible),
                        }
                    }
                    Step::Free(index) => {
                        let expected = if model.get(&frame(index)) == Some(&false) {
                            model.remove(&frame(index));
                            Ok(())
                        } else {
                            Err(NotInUse)
                        };
                        prop_assert_eq!(pool.free(frame(index)), expected);
                    }
                    Step::Retire(index) => {
                        let expected = match model.get_mut(&frame(index)) {
                            Some(retired @ false) => {
                                *retired = true;
                                Ok(())
                            }
                            _ => Err(NotInUse),
                        };
                        prop_assert_eq!(pool.retire(frame(index)), expected);
                    }
                    Step::Reclaim => {
                        pool.reclaim();
                        model.retain(|_, retired| !*retired);
                    }
                }
                prop_assert_eq!(pool.used(), model.len());
                prop_assert_eq!(pool.available(), total - model.len());
            }
            pool.reclaim();
            model.retain(|_, retired| !*retired);
            let rest: BTreeSet<_> = (0..total - model.len()).map(|_| pool.allocate().unwrap()).collect();
            prop_assert_eq!(rest.len(), total - model.len());
            prop_assert_eq!(pool.allocate(), Err(OutOfFrames));
        }
    }
}
