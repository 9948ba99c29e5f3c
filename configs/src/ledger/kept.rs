//! A list of a few things in place, filled once.

/// Up to `N` things.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kept<T, const N: usize> {
    items: [T; N],
    count: usize,
}

impl<T: Copy, const N: usize> Kept<T, N> {
    /// No things; `filler` stands in the places that are free.
    pub(super) const fn none(filler: T) -> Self {
        Self {
            items: [filler; N],
            count: 0,
        }
    }

    /// Appends things; those beyond the last place are left out.
    pub(super) fn fill(&mut self, things: impl Iterator<Item = T>) {
        let free = self.items.iter_mut().skip(self.count);
        for (slot, thing) in free.zip(things) {
            *slot = thing;
            self.count = self.count.saturating_add(1);
        }
    }

    /// The things.
    pub(super) fn get(&self) -> &[T] {
        self.items.get(..self.count).unwrap_or(&[])
    }
}
