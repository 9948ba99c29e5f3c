//! The functions that cells have, and whose they are.
//!
//! Changed under the management lock; looked at by exit paths without one. A function's own lock is taken by the CPUs of
//! its cell, and by the management when these have stopped. Invariant: a function that a cell has is in the table from
//! before it is taken from the root until after it is as the root had it, and [`may_be_assigned`] says so.
#![forbid(unsafe_code)]

use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicU64, Ordering};

use spin::mutex::{TicketMutex, TicketMutexGuard};

use super::function::Function;
use super::space::FunctionId;
use crate::memory::address::HostPhysical;
use crate::processor::own_table;

/// Most functions that cells can have at one time.
pub const MOST: usize = 64;

/// [`Slot::owner`]: somebody has it.
const TAKEN: u64 = 1 << 63;

/// A function that a cell has.
pub struct Slot {
    /// 0, or [`TAKEN`] | cell << 32 | number of the function.
    owner: AtomicU64,
    /// Frame of its store, 0 without one.
    store: AtomicU64,
    /// Page of its configuration space in the machine's memory, 0 without one.
    page: AtomicU64,
    /// CR3 of the CPU that has the lock, 0 for none: each CPU has a page table of its own.
    holder: AtomicU64,
    function: TicketMutex<Option<Function<'static>>>,
}

/// A function, locked.
pub struct Locked<'a> {
    holder: &'a AtomicU64,
    function: TicketMutexGuard<'a, Option<Function<'static>>>,
}

impl Deref for Locked<'_> {
    type Target = Option<Function<'static>>;

    fn deref(&self) -> &Self::Target {
        &self.function
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.function
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        self.holder.store(0, Ordering::Release);
    }
}

/// The locks that the code which ran with the page table `cr3` has left behind, taken: it was abandoned.
pub fn left_behind(
    cr3: u64,
) -> impl Iterator<Item = &'static TicketMutex<Option<Function<'static>>>> {
    left_behind_of(&SLOTS, cr3)
}

fn left_behind_of(
    slots: &'static [Slot],
    cr3: u64,
) -> impl Iterator<Item = &'static TicketMutex<Option<Function<'static>>>> {
    slots.iter().filter_map(move |slot| {
        let held = slot
            .holder
            .compare_exchange(cr3, 0, Ordering::AcqRel, Ordering::Acquire);
        held.is_ok().then_some(&slot.function)
    })
}

impl Slot {
    const fn new() -> Self {
        Self {
            owner: AtomicU64::new(0),
            store: AtomicU64::new(0),
            page: AtomicU64::new(0),
            holder: AtomicU64::new(0),
            function: TicketMutex::new(None),
        }
    }

    fn is_of(&self, cell: u32) -> bool {
        self.owner.load(Ordering::Acquire) >> 32 == (TAKEN >> 32 | u64::from(cell))
    }

    /// The function, for as long as the guard is kept.
    pub fn lock(&self) -> Locked<'_> {
        let function = self.function.lock();
        self.holder.store(own_table(), Ordering::Release);
        Locked {
            holder: &self.holder,
            function,
        }
    }

    /// The frame of its store.
    #[must_use]
    pub fn store(&self) -> Option<HostPhysical> {
        some_address(&self.store)
    }

    /// The page of its configuration space.
    #[must_use]
    pub fn page(&self) -> Option<HostPhysical> {
        some_address(&self.page)
    }

    /// Sets what the management keeps of it. Only by the holder of the management lock.
    pub fn set_places(&self, store: HostPhysical, page: Option<HostPhysical>) {
        self.store.store(store.as_u64(), Ordering::Release);
        let page = page.map_or(0, |page| page.as_u64());
        self.page.store(page, Ordering::Release);
    }

    /// Nobody's any more: the root has it. Only by the holder of the management lock.
    pub fn release(&self) {
        *self.lock() = None;
        self.owner.store(0, Ordering::Release);
        self.store.store(0, Ordering::Release);
        self.page.store(0, Ordering::Release);
        count();
    }
}

fn some_address(word: &AtomicU64) -> Option<HostPhysical> {
    let address = word.load(Ordering::Acquire);
    (address != 0).then_some(HostPhysical::new(address))
}

static SLOTS: [Slot; MOST] = [const { Slot::new() }; MOST];

/// A bit for each value of [`near`]: set when a function with that value may be a cell's.
static NEAR: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];

#[inline(always)]
const fn near(function: u16) -> (usize, u64) {
    let hash = (function ^ function >> 8) & 0xff;
    ((hash >> 6) as usize, 1 << (hash & 63))
}

/// Whether a function with this bus, device and function number may be a cell's. `false`: it is the root's for sure.
#[inline(always)]
#[must_use]
pub fn may_be_assigned(function: u16) -> bool {
    let (word, bit) = near(function);
    NEAR.get(word)
        .is_some_and(|word| word.load(Ordering::Acquire) & bit != 0)
}

/// Makes [`NEAR`] say what the table says.
fn count() {
    let mut words = [0u64; 4];
    for slot in &SLOTS {
        let owner = slot.owner.load(Ordering::Acquire);
        let (index, bit) = near(owner as u16);
        if owner != 0
            && let Some(word) = words.get_mut(index)
        {
            *word |= bit;
        }
    }
    for (word, new) in NEAR.iter().zip(words) {
        word.store(new, Ordering::Release);
    }
}

/// The cell that has the function, if one has it.
#[must_use]
pub fn owner(id: FunctionId) -> Option<u32> {
    find(id).map(|(_, cell)| cell)
}

fn find(id: FunctionId) -> Option<(&'static Slot, u32)> {
    if !may_be_assigned(id.function) {
        return None;
    }
    SLOTS.iter().find_map(|slot| {
        let owner = slot.owner.load(Ordering::Acquire);
        let is_it = owner != 0 && owner as u32 == id.number();
        is_it.then_some((slot, (owner >> 32) as u32 & 0x7fff_ffff))
    })
}

/// The function, if it is the cell's.
#[must_use]
pub fn of(cell: u32, id: FunctionId) -> Option<&'static Slot> {
    find(id)
        .filter(|(_, owner)| *owner == cell)
        .map(|(slot, _)| slot)
}

/// All functions of a cell.
pub fn of_cell(cell: u32) -> impl Iterator<Item = &'static Slot> {
    SLOTS.iter().filter(move |slot| slot.is_of(cell))
}

/// Makes the function the cell's: the root finds it absent from now on. Only by the holder of the management lock.
/// `None`: there is no room, or it is somebody's.
pub fn claim(cell: u32, id: FunctionId) -> Option<&'static Slot> {
    if find(id).is_some() {
        return None;
    }
    let free = |slot: &&Slot| slot.owner.load(Ordering::Acquire) == 0;
    let slot = SLOTS.iter().find(free)?;
    let owner = TAKEN | u64::from(cell) << 32 | u64::from(id.number());
    slot.owner.store(owner, Ordering::Release);
    count();
    Some(slot)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One test, since the table is there once only.
    #[test]
    fn a_lock_that_was_left_behind_is_told_once_and_others_are_not() {
        let ours = crate::processor::own_table();
        static OWN: [Slot; 2] = [const { Slot::new() }; 2];
        let left = |cr3| left_behind_of(&OWN, cr3).count();
        drop(OWN[1].lock());
        assert_eq!(left(ours), 0);
        // As after a fault: the guard is gone, and the lock is taken.
        core::mem::forget(OWN[1].lock());
        assert_eq!(left(ours + 4096), 0);
        assert_eq!(left(ours), 1);
        assert_eq!(left(ours), 0);
    }

    #[test]
    fn functions_are_found_by_their_owners_only() {
        let id = |number: u32| FunctionId {
            segment: (number >> 16) as u16,
            function: number as u16,
        };
        // Two that look near to each other, two segments, and enough to fill the table.
        let numbers: Vec<u32> = [0x0010, 0x1110 ^ 0x0011, 0x1_0010, 0xffff, 0]
            .into_iter()
            .chain((1..).map(|number| number * 0x0307))
            .take(MOST)
            .collect();
        for (index, number) in numbers.iter().enumerate() {
            assert_eq!(owner(id(*number)), None);
            assert!(claim(index as u32 % 3 + 1, id(*number)).is_some());
            assert!(claim(7, id(*number)).is_none(), "it is somebody's");
        }
        assert!(claim(1, id(0x7777)).is_none(), "there is no room");
        for (index, number) in numbers.iter().enumerate() {
            let cell = index as u32 % 3 + 1;
            assert_eq!(owner(id(*number)), Some(cell));
            assert!(may_be_assigned(*number as u16));
            for other in 0..5 {
                assert_eq!(of(other, id(*number)).is_some(), other == cell);
            }
        }
        let all: Vec<u32> = (0..=u16::MAX.into())
            .filter(|number| owner(id(*number)).is_some())
            .collect();
        let mut expected: Vec<u32> = numbers
            .iter()
            .copied()
            .filter(|number| *number <= 0xffff)
            .collect();
        expected.sort_unstable();
        assert_eq!(all, expected);
        for cell in 1..=3 {
            assert_eq!(
                of_cell(cell).count(),
                numbers.len().div_ceil(3) - usize::from(cell > 1)
            );
            of_cell(cell).for_each(Slot::release);
            assert_eq!(of_cell(cell).count(), 0);
        }
        assert!(numbers.iter().all(|number| owner(id(*number)).is_none()));
        assert!((0..=u16::MAX).all(|function| !may_be_assigned(function)));
    }
}
