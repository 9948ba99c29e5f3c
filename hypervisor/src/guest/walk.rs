//! A walk of a guest's page tables in software, to fetch the instruction that has caused an exit.
//!
//! The guest may change its tables meanwhile, and they may lead anywhere: the walk reads at most one entry for each
//! level, through [`GuestMemory`], and takes what it finds for an allegation. To fetch an instruction that the guest has just
//! executed rights are not looked at; for data they are. SDM volume 3, "Paging".
#![forbid(unsafe_code)]

use crate::memory::address::{GuestPhysical, GuestVirtual};

/// Access to a guest's memory.
pub trait GuestMemory {
    /// Reads eight bytes at an address that is a multiple of eight; `None` where the guest has no memory.
    fn read_entry(&mut self, address: GuestPhysical) -> Option<u64>;
    /// Reads four bytes at an address that is a multiple of four; `None` where the guest has no memory.
    fn read_entry32(&mut self, address: GuestPhysical) -> Option<u32>;
}

/// Why an address leads nowhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WalkError {
    /// An entry is not present.
    NotPresent,
    /// An entry has a bit set that makes it invalid at its level.
    Reserved,
    /// The address is not canonical.
    NotCanonical,
    /// A table is not in the guest's memory.
    Unreadable,
    /// The guest may not do that there.
    Denied,
}

/// The registers that say how a guest's addresses are translated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Paging {
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// IA32_EFER.
    pub efer: u64,
}

/// What is asked of a guest's memory, and by whom.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rights {
    /// It shall be written.
    pub write: bool,
    /// By the guest's user mode.
    pub user: bool,
    /// RFLAGS.AC, by which the supervisor is let into the user's pages.
    pub alignment_check: bool,
}

const CR0_WRITE_PROTECT: u64 = 1 << 16;
const CR4_SMAP: u64 = 1 << 21;
const CR0_PAGING: u64 = 1 << 31;
const CR4_PAGE_SIZE_EXTENSIONS: u64 = 1 << 4;
const CR4_PHYSICAL_ADDRESS_EXTENSION: u64 = 1 << 5;
const CR4_FIVE_LEVELS: u64 = 1 << 12;
const EFER_LONG_MODE_ACTIVE: u64 = 1 << 10;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const LARGE: u64 = 1 << 7;
/// Bits 51 to 12.
const ADDRESS_MASK: u64 = 0x000f_ffff_ffff_f000;
/// Bits of an index into a table of eight-byte entries, times eight.
const INDEX_MASK: u64 = 0xff8;

impl Paging {
    /// Where `address` leads to.
    ///
    /// # Errors
    /// See [`WalkError`].
    #[inline]
    pub fn translate<M: GuestMemory>(
        &self,
        memory: &mut M,
        address: GuestVirtual,
    ) -> Result<GuestPhysical, WalkError> {
        let number = address.as_u64();
        if self.efer & EFER_LONG_MODE_ACTIVE != 0 && self.cr0 & CR0_PAGING != 0 {
            if self.cr4 & CR4_FIVE_LEVELS == 0 {
                check_canonical(number, 48)?;
                return long_mode(memory, self.cr3, 39, number);
            }
            check_canonical(number, 57)?;
            return long_mode(memory, self.cr3, 48, number);
        }
        let number = number & 0xffff_ffff;
        if self.cr0 & CR0_PAGING == 0 {
            Ok(GuestPhysical::new(number))
        } else if self.cr4 & CR4_PHYSICAL_ADDRESS_EXTENSION != 0 {
            physical_address_extension(memory, self.cr3, number)
        } else {
            let large = self.cr4 & CR4_PAGE_SIZE_EXTENSIONS != 0;
            two_levels(memory, self.cr3, large, number)
        }
    }

    /// Where `address` leads to, if the tables grant the rights. The bits that tell of accesses and writes are left as
    /// they are.
    ///
    /// # Errors
    /// See [`WalkError`].
    pub fn translate_for<M: GuestMemory>(
        &self,
        memory: &mut M,
        address: GuestVirtual,
        rights: Rights,
    ) -> Result<GuestPhysical, WalkError> {
        let has_long_mode = self.efer & EFER_LONG_MODE_ACTIVE != 0;
        let has_pointers = self.cr4 & CR4_PHYSICAL_ADDRESS_EXTENSION != 0 && !has_long_mode;
        let mut recorder = Recorder {
            memory,
            skip: has_pointers,
            granted: u64::MAX,
        };
        let found = self.translate(&mut recorder, address)?;
        let granted = recorder.granted;
        if self.cr0 & CR0_PAGING == 0 {
            return Ok(found);
        }
        let (is_writable, is_users) = (granted & WRITABLE != 0, granted & USER != 0);
        let is_granted = if rights.user {
            is_users && (is_writable || !rights.write)
        } else {
            let is_protected = self.cr0 & CR0_WRITE_PROTECT != 0;
            let is_barred = self.cr4 & CR4_SMAP != 0 && is_users && !rights.alignment_check;
            !is_barred && (is_writable || !is_protected || !rights.write)
        };
        is_granted.then_some(found).ok_or(WalkError::Denied)
    }
}

/// Reads entries, and notes what all of them grant.
struct Recorder<'a, M> {
    memory: &'a mut M,
    /// The next entry is one of PAE paging's pointers, which grant everything.
    skip: bool,
    granted: u64,
}

impl<M> Recorder<'_, M> {
    fn note(&mut self, entry: u64) {
        if !core::mem::take(&mut self.skip) {
            self.granted &= entry;
        }
    }
}

impl<M: GuestMemory> GuestMemory for Recorder<'_, M> {
    fn read_entry(&mut self, address: GuestPhysical) -> Option<u64> {
        let entry = self.memory.read_entry(address)?;
        self.note(entry);
        Some(entry)
    }

    fn read_entry32(&mut self, address: GuestPhysical) -> Option<u32> {
        let entry = self.memory.read_entry32(address)?;
        self.note(entry.into());
        Some(entry)
    }
}

#[inline]
fn check_canonical(address: u64, bits: u32) -> Result<(), WalkError> {
    let top = (address as i64).wrapping_shr(bits.wrapping_sub(1));
    if top == 0 || top == -1 {
        Ok(())
    } else {
        Err(WalkError::NotCanonical)
    }
}

/// The entry for `address` in the table at `table`, whose entries span 2^`shift` bytes.
#[inline]
fn entry<M: GuestMemory>(
    memory: &mut M,
    table: u64,
    shift: u32,
    address: u64,
) -> Result<u64, WalkError> {
    let offset = address.wrapping_shr(shift.wrapping_sub(3)) & INDEX_MASK;
    let entry = memory
        .read_entry(GuestPhysical::new(table & ADDRESS_MASK | offset))
        .ok_or(WalkError::Unreadable)?;
    if entry & PRESENT == 0 {
        return Err(WalkError::NotPresent);
    }
    Ok(entry)
}

/// The byte of `address` in the page of 2^`shift` bytes that `entry` maps.
#[inline]
const fn in_page(entry: u64, shift: u32, address: u64) -> GuestPhysical {
    let offset = 1u64.wrapping_shl(shift).wrapping_sub(1);
    GuestPhysical::new(entry & ADDRESS_MASK & !offset | address & offset)
}

/// 4-level and 5-level paging; `top` is the shift of the topmost table.
#[inline]
fn long_mode<M: GuestMemory>(
    memory: &mut M,
    cr3: u64,
    top: u32,
    address: u64,
) -> Result<GuestPhysical, WalkError> {
    let mut table = cr3;
    let mut shift = top;
    loop {
        let found = entry(memory, table, shift, address)?;
        if shift == 12 {
            return Ok(in_page(found, shift, address));
        }
        if found & LARGE != 0 {
            return if shift > 30 {
                Err(WalkError::Reserved)
            } else {
                Ok(in_page(found, shift, address))
            };
        }
        table = found;
        shift = shift.wrapping_sub(9);
    }
}

/// PAE paging. The processor keeps the four topmost entries in registers; those in memory are the same unless the guest
/// has changed them without loading CR3.
fn physical_address_extension<M: GuestMemory>(
    memory: &mut M,
    cr3: u64,
    address: u64,
) -> Result<GuestPhysical, WalkError> {
    let pointers = cr3 & 0xffff_ffe0;
    let offset = address.wrapping_shr(27) & 0x18;
    let pointer = memory
        .read_entry(GuestPhysical::new(pointers | offset))
        .ok_or(WalkError::Unreadable)?;
    if pointer & PRESENT == 0 {
        return Err(WalkError::NotPresent);
    }
    let found = entry(memory, pointer, 21, address)?;
    if found & LARGE != 0 {
        return Ok(in_page(found, 21, address));
    }
    let found = entry(memory, found, 12, address)?;
    Ok(in_page(found, 12, address))
}

/// 32-bit paging; `large` says whether there are 4 MiB pages.
fn two_levels<M: GuestMemory>(
    memory: &mut M,
    cr3: u64,
    large: bool,
    address: u64,
) -> Result<GuestPhysical, WalkError> {
    let mut read = |table: u64, index: u64| {
        let place = table & 0xffff_f000 | (index & 0x3ff).wrapping_shl(2);
        let entry = memory
            .read_entry32(GuestPhysical::new(place))
            .ok_or(WalkError::Unreadable)?;
        let entry = u64::from(entry);
        if entry & PRESENT == 0 {
            return Err(WalkError::NotPresent);
        }
        Ok(entry)
    };
    let directory = read(cr3, address.wrapping_shr(22))?;
    if large && directory & LARGE != 0 {
        // PSE-36: bits 20 to 13 are bits 39 to 32 of the address.
        let high = (directory >> 13 & 0xff) << 32;
        let low = directory & 0xffc0_0000;
        return Ok(GuestPhysical::new(high | low | address & 0x3f_ffff));
    }
    let table = read(directory, address.wrapping_shr(12))?;
    Ok(GuestPhysical::new(table & 0xffff_f000 | address & 0xfff))
}

#[cfg(test)]
#[path = "walk_rights_tests.rs"]
mod rights_tests;

#[cfg(test)]
mod tests {
    extern crate std;
    use std::collections::BTreeMap;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    /// Memory of a guest in words of four bytes, with an allocator for tables.
    struct Memory {
        words: BTreeMap<u64, u32>,
        next_table: u64,
        reads: usize,
    }

    const TABLES: u64 = 0x10_0000;
    /// No memory from here on.
    const END: u64 = 0x100_0000;

    impl Memory {
        fn new() -> Self {
            Self {
                words: BTreeMap::new(),
                next_table: TABLES,
                reads: 0,
            }
        }

        fn table(&mut self) -> u64 {
            self.next_table += 0x1000;
            self.next_table
        }

        fn word(&self, address: u64) -> u32 {
            self.words.get(&address).copied().unwrap_or(0)
        }

        fn get(&self, address: u64, bytes: u64) -> u64 {
            let high = if bytes == 8 {
                self.word(address + 4)
            } else {
                0
            };
            u64::from(self.word(address)) | u64::from(high) << 32
        }

        fn put(&mut self, address: u64, bytes: u64, value: u64) {
            self.words.insert(address, value as u32);
            if bytes == 8 {
                self.words.insert(address + 4, (value >> 32) as u32);
            }
        }
    }

    impl GuestMemory for Memory {
        fn read_entry(&mut self, address: GuestPhysical) -> Option<u64> {
            assert!(address.is_aligned(8));
            self.reads += 1;
            (address.as_u64() < END).then(|| self.get(address.as_u64(), 8))
        }

        fn read_entry32(&mut self, address: GuestPhysical) -> Option<u32> {
            assert!(address.is_aligned(4));
            self.reads += 1;
            (address.as_u64() < END).then(|| self.word(address.as_u64()))
        }
    }

    /// A way of paging: the bits of the address that each level's index has, from the top, and the bytes of an entry.
    #[derive(Clone, Copy, Debug)]
    struct Layout {
        index_bits: &'static [u32],
        entry_bytes: u64,
        cr4: u64,
        efer: u64,
        /// Sizes of pages, as shifts.
        pages: &'static [u32],
        address_bits: u32,
    }

    const LAYOUTS: [Layout; 4] = [
        Layout {
            index_bits: &[10, 10],
            entry_bytes: 4,
            cr4: 1 << 4,
            efer: 0,
            pages: &[12, 22],
            address_bits: 32,
        },
        Layout {
            index_bits: &[2, 9, 9],
            entry_bytes: 8,
            cr4: 1 << 5,
            efer: 1 << 11,
            pages: &[12, 21],
            address_bits: 32,
        },
        Layout {
            index_bits: &[9, 9, 9, 9],
            entry_bytes: 8,
            cr4: 1 << 5,
            efer: 0xd01,
            pages: &[12, 21, 30],
            address_bits: 48,
        },
        Layout {
            index_bits: &[9, 9, 9, 9, 9],
            entry_bytes: 8,
            cr4: 1 << 5 | 1 << 12,
            efer: 0xd01,
            pages: &[12, 21, 30],
            address_bits: 57,
        },
    ];

    impl Layout {
        fn canonical(&self, address: u64) -> u64 {
            if self.address_bits == 32 {
                address & 0xffff_ffff
            } else {
                let unused = 64 - self.address_bits;
                ((address << unused) as i64 >> unused) as u64
            }
        }

        /// Maps a page as an operating system would; false where something is in the way.
        fn map(&self, memory: &mut Memory, root: u64, address: u64, to: u64, page: u32) -> bool {
            let mut shift = 12 + self.index_bits.iter().sum::<u32>();
            let mut table = root;
            for (level, bits) in self.index_bits.iter().enumerate() {
                shift -= bits;
                let index = address >> shift & ((1 << bits) - 1);
                let place = table + index * self.entry_bytes;
                let old = memory.get(place, self.entry_bytes);
                if shift == page {
                    // Accessed, dirty, user; large; NX where there is room for it.
                    let mut entry = to | 0x63;
                    if page > 12 {
                        entry |= 1 << 7;
                        if self.entry_bytes == 4 {
                            entry = entry & 0xffff_ffff | (to >> 32 & 0xff) << 13;
                        }
                    }
                    if self.entry_bytes == 8 {
                        entry |= 1 << 63 | 1 << 52;
                    }
                    if old == 0 {
                        memory.put(place, self.entry_bytes, entry);
                    }
                    return old == 0;
                }
                if old & 1 << 7 != 0 {
                    return false;
                }
                if old == 0 {
                    table = memory.table();
                    let pointers = self.index_bits[0] == 2 && level == 0;
                    let bits = if pointers { 1 } else { 0x27 };
                    memory.put(place, self.entry_bytes, table | bits);
                } else {
                    table = old & 0x00ff_ffff_ffff_f000;
                }
            }
            unreachable!()
        }
    }

    fn page() -> impl Strategy<Value = (u64, u64, usize)> {
        // Few different upper bits, so that tables are shared.
        let address = (0u64..4, 0u64..4, 0u64..4, 0u64..4, any::<bool>()).prop_map(
            |(giant, large, small, top, high)| {
                let address = top << 46 | giant << 30 | large << 21 | small << 12;
                if high { !address } else { address }
            },
        );
        (address, any::<u64>(), 0usize..3)
    }

    proptest! {
        #[test]
        fn finds_what_the_guest_has_mapped(
            layout in prop::sample::select(&LAYOUTS[..]),
            pages in prop::collection::vec(page(), 1..20),
            offset in any::<u64>(),
        ) {
            let mut memory = Memory::new();
            let root = memory.table();
            let mut mapped: Vec<(u64, u64, u32)> = Vec::new();
            for (address, to, size) in pages {
                let page = layout.pages[size % layout.pages.len()];
                let aligned = |value: u64| value >> page << page;
                let limit = match (layout.entry_bytes, page) {
                    (8, _) => (1 << 52) - 1,
                    (_, 12) => 0xffff_ffff,
                    _ => (1 << 40) - 1,
                };
                let (address, to) = (aligned(layout.canonical(address)), aligned(to & limit));
                if layout.map(&mut memory, root, address, to, page) {
                    mapped.push((address, to, page));
                }
            }
            let paging = Paging {
                // Flags in CR3 are not part of the address.
                cr3: root | 0x18,
                cr0: 0x8005_0033,
                cr4: layout.cr4,
                efer: layout.efer,
            };
            for (address, to, page) in &mapped {
                let offset = offset & ((1 << page) - 1);
                memory.reads = 0;
                prop_assert_eq!(
                    paging.translate(&mut memory, GuestVirtual::new(address + offset)),
                    Ok(GuestPhysical::new(to + offset))
                );
                prop_assert!(memory.reads <= layout.index_bits.len());
                // The pages around it lead where they are mapped to, or nowhere.
                for probe in [address.wrapping_sub(1), address.wrapping_add(1 << page)] {
                    let probe = layout.canonical(probe);
                    let expected = mapped
                        .iter()
                        .find(|(start, _, page)| probe >> page == start >> page)
                        .map(|(start, to, _)| GuestPhysical::new(to + (probe - start)));
                    prop_assert_eq!(
                        paging.translate(&mut memory, GuestVirtual::new(probe)),
                        expected.ok_or(WalkError::NotPresent)
                    );
                }
            }
        }
    }

    fn long_mode_registers(cr3: u64) -> Paging {
        Paging {
            cr0: CR0_PAGING,
            cr3,
            cr4: CR4_PHYSICAL_ADDRESS_EXTENSION,
            efer: EFER_LONG_MODE_ACTIVE,
        }
    }

    #[test]
    fn without_paging_addresses_are_physical() {
        let mut memory = Memory::new();
        let paging = Paging {
            cr0: 0x10,
            cr3: 0,
            cr4: 0,
            efer: 0,
        };
        assert_eq!(
            paging.translate(&mut memory, GuestVirtual::new(0xf_fff0)),
            Ok(GuestPhysical::new(0xf_fff0))
        );
        assert_eq!(memory.reads, 0);
    }

    #[test]
    fn large_pages_need_their_bit_in_cr4() {
        let mut memory = Memory::new();
        memory.put(0x1000, 4, 0x0040_2081);
        memory.put(0x40_2000, 4, 0x5001);
        let mut paging = Paging {
            cr0: CR0_PAGING,
            cr3: 0x1000,
            cr4: 0,
            efer: 0,
        };
        let address = GuestVirtual::new(0x123);
        let found = paging.translate(&mut memory, address);
        assert_eq!(found, Ok(GuestPhysical::new(0x5123)));
        paging.cr4 = CR4_PAGE_SIZE_EXTENSIONS;
        let found = paging.translate(&mut memory, address);
        assert_eq!(found, Ok(GuestPhysical::new(0x1_0040_0123)));
    }

    #[test]
    fn says_why_not() {
        let mut memory = Memory::new();
        let root = memory.table();
        let address = GuestVirtual::new(0x1234);
        let paging = long_mode_registers(root);
        let ask = |memory: &mut Memory, paging: Paging, address| {
            paging.translate(memory, address).unwrap_err()
        };
        assert_eq!(ask(&mut memory, paging, address), WalkError::NotPresent);
        memory.put(root, 8, 0x83);
        assert_eq!(ask(&mut memory, paging, address), WalkError::Reserved);
        memory.put(root, 8, END | 3);
        assert_eq!(ask(&mut memory, paging, address), WalkError::Unreadable);
        let outside = long_mode_registers(0x000f_ffff_ffff_f000);
        assert_eq!(ask(&mut memory, outside, address), WalkError::Unreadable);
        let not_canonical = GuestVirtual::new(0x8000_0000_0000);
        assert_eq!(
            ask(&mut memory, paging, not_canonical),
            WalkError::NotCanonical
        );
        // A table that leads to itself ends the walk all the same.
        memory.put(root, 8, root | 3);
        assert_eq!(
            paging.translate(&mut memory, GuestVirtual::new(0x10)),
            Ok(GuestPhysical::new(root | 0x10))
        );
    }

    proptest! {
        /// Whatever the tables hold, the walk ends.
        #[test]
        fn survives_any_tables(
            words in prop::collection::vec(any::<u32>(), 64),
            cr4 in any::<u64>(),
            efer in any::<u64>(),
            cr3 in any::<u64>(),
            address in any::<u64>(),
        ) {
            struct Chaos(Vec<u32>, usize);
            impl GuestMemory for Chaos {
                fn read_entry(&mut self, address: GuestPhysical) -> Option<u64> {
                    let low = self.read_entry32(address)?;
                    Some(u64::from(low) | u64::from(low.rotate_left(9)) << 32)
                }
                fn read_entry32(&mut self, address: GuestPhysical) -> Option<u32> {
                    self.1 += 1;
                    self.0.get(address.as_u64() as usize % 67).map(|word| word | 1)
                }
            }
            let mut memory = Chaos(words, 0);
            let paging = Paging { cr0: CR0_PAGING, cr3, cr4, efer };
            let _ = paging.translate(&mut memory, GuestVirtual::new(address));
            prop_assert!(memory.1 <= 5);
        }
    }
}
