//! Memory that others read and write as well: the communication region and shared memory.
//!
//! A [`Window`] is a structure at a fixed address, of which single fields are read and written with volatile accesses:
//!
//! ```
//! # use gaol_cell::shared::Window;
//! # use gaol_cell::field;
//! # use gaol_abi::latency::Results;
//! fn publish(results: &mut Window<Results>, ticks_done: u64) {
//!     results.write(field!(Results, ticks_done), ticks_done);
//! }
//! ```
//!
//! Invariant: a window never overlaps memory that Rust knows of, and a field never leaves its window. x86 keeps the
//! order of volatile accesses, so a value that is written last is seen last.

use core::fmt;
use core::marker::PhantomData;
use core::mem::{align_of, size_of};

use zerocopy::{FromBytes, Immutable, IntoBytes};

/// A guest-physical address; the runtime maps it one to one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GuestAddress(u64);

impl GuestAddress {
    /// The address `address`.
    pub const fn new(address: u64) -> Self {
        Self(address)
    }

    /// The number.
    pub const fn number(self) -> u64 {
        self.0
    }
}

impl fmt::Display for GuestAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// A field of type `V` in the structure `S`; made by [`field!`](crate::field).
pub struct Field<S, V> {
    offset: usize,
    types: PhantomData<fn(S) -> V>,
}

impl<S, V> Clone for Field<S, V> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S, V> Copy for Field<S, V> {}

impl<S, V> Field<S, V> {
    /// The field at `offset`. The function is not called; it ties the type to the name.
    ///
    /// # Panics
    /// When such a field would leave the structure or be unaligned.
    pub const fn of(offset: usize, _: fn(&S) -> &V) -> Self {
        assert!(
            offset.is_multiple_of(align_of::<V>()) && offset + size_of::<V>() <= size_of::<S>()
        );
        Self {
            offset,
            types: PhantomData,
        }
    }
}

impl<S, V, const N: usize> Field<S, [V; N]> {
    /// Element `index`.
    ///
    /// # Panics
    /// When there is no such element.
    pub const fn element(self, index: usize) -> Field<S, V> {
        assert!(index < N, "the index is beyond the end of the array");
        Field {
            offset: self.offset + index * size_of::<V>(),
            types: PhantomData,
        }
    }
}

impl Window<u64> {
    /// Adds one to a number that nobody else writes to.
    pub fn count(&mut self) {
        // SAFETY: The number is aligned, readable and writable (from_pointer).
        unsafe {
            self.base
                .write_volatile(self.base.read_volatile().wrapping_add(1))
        };
    }
}

/// The [`Field`] of a structure by its name: `field!(Results, ticks_done)`.
#[macro_export]
macro_rules! field {
    ($structure:ty, $name:ident) => {
        $crate::shared::Field::of(
            ::core::mem::offset_of!($structure, $name),
            |structure: &$structure| &structure.$name,
        )
    };
}

/// A structure in memory that others access, too.
#[derive(Debug)]
pub struct Window<S> {
    base: *mut S,
}

impl<S> Window<S> {
    /// The structure at `base`.
    ///
    /// # Safety
    /// As long as the window is used, `base` must be aligned and valid for volatile reads and writes of an `S`, and
    /// no reference may point there.
    pub const unsafe fn from_pointer(base: *mut S) -> Self {
        Self { base }
    }

    /// A structure that is given away for ever; for tests.
    pub fn over(structure: &'static mut S) -> Self {
        Self { base: structure }
    }

    /// Reads the whole structure; what others write meanwhile may be in it by halves.
    pub fn snapshot(&self) -> S
    where
        S: FromBytes + Copy,
    {
        // SAFETY: The structure is aligned and readable (from_pointer), and each pattern of bits is an S.
        unsafe { self.base.read_volatile() }
    }

    /// Reads a field.
    pub fn read<V: FromBytes + Copy>(&self, field: Field<S, V>) -> V {
        // SAFETY: The field lies in the structure and is aligned (Field::of), the structure is readable (from_pointer),
        // and each pattern of bits is a V.
        unsafe { self.base.byte_add(field.offset).cast::<V>().read_volatile() }
    }

    /// Writes a field.
    pub fn write<V: IntoBytes + Immutable>(&mut self, field: Field<S, V>, value: V) {
        // SAFETY: The field lies in the structure and is aligned (Field::of), and the structure is writable
        // (from_pointer).
        unsafe {
            self.base
                .byte_add(field.offset)
                .cast::<V>()
                .write_volatile(value);
        }
    }
}

#[cfg(target_os = "none")]
impl<S: FromBytes> Window<S> {
    /// The structure at `address` in the cell's memory. Whether the configuration maps anything there shows when the
    /// window is used: if not, the hypervisor stops the cell.
    ///
    /// # Panics
    /// When `address` is unaligned, below [`WINDOWS`](crate::WINDOWS), or so high that it is not mapped.
    pub fn at(address: GuestAddress) -> Self {
        let end = address.0.saturating_add(size_of::<S>() as u64);
        assert!(
            address >= crate::WINDOWS && end <= crate::MAPPED_END.0,
            "shared memory at {address} is not between {} and {}",
            crate::WINDOWS,
            crate::MAPPED_END
        );
        let base = address.0 as *mut S;
        assert!(base.is_aligned(), "shared memory at {address} is unaligned");
        Self { base }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[repr(C)]
    #[derive(Clone, Copy, FromBytes)]
    struct Example {
        small: u8,
        word: u32,
        list: [u64; 3],
    }

    #[test]
    fn fields_are_where_the_structure_has_them() {
        let mut window = Window::over(Box::leak(Box::new(Example {
            small: 1,
            word: 2,
            list: [3, 4, 5],
        })));
        assert_eq!(window.read(field!(Example, word)), 2);
        window.write(field!(Example, small), 7_u8);
        window.write(field!(Example, word), 0xffff_ffff_u32);
        window.write(field!(Example, list).element(2), 9);
        assert_eq!(window.read(field!(Example, list)), [3, 4, 9]);
        let example = window.snapshot();
        assert_eq!((example.small, example.word), (7, 0xffff_ffff));
        assert_eq!(example.list, [3, 4, 9]);
    }

    #[test]
    #[should_panic(expected = "beyond the end")]
    fn an_element_beyond_the_array_is_refused() {
        field!(Example, list).element(3);
    }

    #[test]
    fn numbers_are_counted() {
        let number = Box::leak(Box::new(u64::MAX - 1));
        let mut window = Window::over(number);
        window.count();
        assert_eq!(window.snapshot(), u64::MAX);
        window.count();
        assert_eq!(window.snapshot(), 0);
    }

    #[test]
    #[should_panic]
    fn a_field_outside_of_the_structure_is_refused() {
        Field::<Example, u32>::of(size_of::<Example>(), |example| &example.word);
    }
}
