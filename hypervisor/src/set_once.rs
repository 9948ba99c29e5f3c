//! A value that is set once, at the launch, and read from then on without a lock.
//!
//! Like `spin::Once`, but without its panics: the image holds no panic function at all.

use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicU32, Ordering};

const EMPTY: u32 = 0;
const BEING_SET: u32 = 1;
const SET: u32 = 2;

/// See the module. The value is never dropped.
#[derive(Debug)]
pub struct SetOnce<T> {
    state: AtomicU32,
    value: UnsafeCell<MaybeUninit<T>>,
}

// SAFETY: the value is written by the one who takes `state` from EMPTY to BEING_SET and read by others only after SET;
// the writer may be another CPU (`Send`), and all share it from then on (`Sync`).
unsafe impl<T: Send + Sync> Sync for SetOnce<T> {}

impl<T> SetOnce<T> {
    /// Nothing yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            state: AtomicU32::new(EMPTY),
            value: UnsafeCell::new(MaybeUninit::uninit()),
        }
    }

    /// Sets the value, unless it was set before.
    pub fn set(&self, value: T) {
        if self
            .state
            .compare_exchange(EMPTY, BEING_SET, Ordering::Acquire, Ordering::Relaxed)
            .is_ok()
        {
            // SAFETY: nobody else has got here, and nobody reads before SET.
            unsafe { (*self.value.get()).write(value) };
            self.state.store(SET, Ordering::Release);
        }
    }

    /// The value, if it was set.
    #[inline]
    #[must_use]
    pub fn get(&self) -> Option<&T> {
        if self.state.load(Ordering::Acquire) != SET {
            return None;
        }
        // SAFETY: written before SET, and never again.
        Some(unsafe { (*self.value.get()).assume_init_ref() })
    }
}

impl<T> Default for SetOnce<T> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_value_stays() {
        let value = SetOnce::new();
        assert_eq!(value.get(), None);
        value.set(1);
        value.set(2);
        assert_eq!(value.get(), Some(&1));
    }

    #[test]
    fn one_of_many_sets_it_and_all_see_it_whole() {
        for _ in 0..100 {
            let value = SetOnce::new();
            std::thread::scope(|scope| {
                for number in 0..4u64 {
                    let value = &value;
                    scope.spawn(move || {
                        value.set([number; 8]);
                        let seen = value.get();
                        assert!(
                            seen.is_none_or(|words| words.iter().all(|word| *word == words[0]))
                        );
                    });
                }
            });
            assert!(value.get().is_some());
        }
    }
}
