//! Things of which there is one, too large for a stack.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, Ordering};

/// A static value that one place takes for ever.
///
/// ```
/// # use gaol_cell::once::Once;
/// static BUFFER: Once<[u8; 4096]> = Once::new([0; 4096]);
/// let buffer: &'static mut [u8; 4096] = BUFFER.take();
/// # buffer[0] = 1;
/// ```
#[derive(Debug)]
pub struct Once<T> {
    value: UnsafeCell<T>,
    taken: AtomicBool,
}

// SAFETY: The value is reached through `take` only, which gives it to one place.
unsafe impl<T: Send> Sync for Once<T> {}

impl<T> Once<T> {
    /// The value, not taken yet.
    pub const fn new(value: T) -> Self {
        Self {
            value: UnsafeCell::new(value),
            taken: AtomicBool::new(false),
        }
    }

    /// Takes the value.
    ///
    /// # Panics
    /// When it was taken before.
    #[expect(clippy::mut_from_ref, reason = "it is given away once")]
    pub fn take(&'static self) -> &'static mut T {
        assert!(
            !self.taken.swap(true, Ordering::Relaxed),
            "it is taken already"
        );
        // SAFETY: The flag lets one place come here, so there is no other reference.
        unsafe { &mut *self.value.get() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_given_away_with_its_value() {
        static NUMBER: Once<u32> = Once::new(7);
        let number = NUMBER.take();
        *number += 1;
        assert_eq!(*number, 8);
    }

    #[test]
    #[should_panic(expected = "taken already")]
    fn it_is_given_away_once() {
        static NUMBER: Once<u32> = Once::new(7);
        NUMBER.take();
        NUMBER.take();
    }
}
