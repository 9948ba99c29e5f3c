//! How entries of the different page tables are laid out, and the attributes that all of them express.
#![forbid(unsafe_code)]

use bitflags::bitflags;

use crate::memory::address::{Address, GuestPhysical, HostVirtual};
use crate::memory::memory_types::MemoryType;

bitflags! {
    /// What may be done with mapped memory. Whatever is mapped can be read: processors know no EPT entry that allows
    /// writing alone, and the host's tables none without reading.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Access: u8 {
        /// Data may be read.
        const READ = 1;
        /// Data may be written.
        const WRITE = 2;
        /// Instructions may be fetched.
        const EXECUTE = 4;
    }
}

/// Rights and memory type of a mapping.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attributes {
    /// What may be done.
    pub access: Access,
    /// How it is cached.
    pub memory_type: MemoryType,
}

impl Attributes {
    /// Attributes of these rights and this type.
    #[inline]
    #[must_use]
    pub const fn new(access: Access, memory_type: MemoryType) -> Self {
        Self {
            access,
            memory_type,
        }
    }

    /// Whether the mapping is writable or executable or neither, but not both.
    #[inline]
    #[must_use]
    pub const fn is_write_xor_execute(self) -> bool {
        !self.access.contains(Access::WRITE.union(Access::EXECUTE))
    }
}

/// Bits 51 to 12, the physical address in an entry of any format.
pub(super) const ADDRESS_MASK: u64 = 0x000f_ffff_ffff_f000;
/// The entry is a leaf although it is not in a table of the lowest level, in any format.
pub const LARGE: u64 = 1 << 7;
/// Marks the hole page and entries that lead to shared tables; a bit that processors ignore in any format.
pub(super) const HOLE: u64 = 1 << 52;

/// A layout of entries. The formats have in common where the address is, that bit 7 makes a large leaf, and that bit 52
/// is software's.
pub trait Format {
    /// What the tables translate.
    type Input: Address;
    /// An entry with none of these bits set leads nowhere.
    const PRESENT: u64;
    /// Bits that an entry to another table has set.
    const TABLE: u64;
    /// Bits that the processor sets by itself: accessed and dirty.
    const HARDWARE_BITS: u64;

    /// Bits of a leaf, without its address and `LARGE`.
    fn leaf(attributes: Attributes) -> u64;
    /// The attributes that a leaf expresses.
    fn attributes(entry: u64) -> Attributes;
    /// Whether tables that translate the low `bits` bits of an address reach `input`.
    fn reaches(input: Self::Input, bits: u32) -> bool;
}

/// Extended page tables of VMX: SDM, "Format of an EPT Paging-Structure Entry".
#[derive(Clone, Copy, Debug)]
pub struct Ept;

const EPT_READ: u64 = 1;
const EPT_WRITE: u64 = 1 << 1;
const EPT_EXECUTE: u64 = 1 << 2;
const EPT_TYPE_SHIFT: u32 = 3;

impl Format for Ept {
    type Input = GuestPhysical;
    const PRESENT: u64 = EPT_READ | EPT_WRITE | EPT_EXECUTE;
    const TABLE: u64 = EPT_READ | EPT_WRITE | EPT_EXECUTE;
    const HARDWARE_BITS: u64 = 1 << 8 | 1 << 9;

    // "Ignore PAT" stays clear: the guest's PAT may weaken the type as on bare hardware.
    #[inline]
    fn leaf(attributes: Attributes) -> u64 {
        let mut entry = EPT_READ | u64::from(attributes.memory_type.0 & 7) << EPT_TYPE_SHIFT;
        if attributes.access.contains(Access::WRITE) {
            entry |= EPT_WRITE;
        }
        if attributes.access.contains(Access::EXECUTE) {
            entry |= EPT_EXECUTE;
        }
        entry
    }

    #[inline]
    fn attributes(entry: u64) -> Attributes {
        let mut access = Access::READ;
        access.set(Access::WRITE, entry & EPT_WRITE != 0);
        access.set(Access::EXECUTE, entry & EPT_EXECUTE != 0);
        Attributes::new(
            access,
            MemoryType((entry >> EPT_TYPE_SHIFT).to_le_bytes()[0] & 7),
        )
    }

    #[inline]
    fn reaches(input: GuestPhysical, bits: u32) -> bool {
        input
            .as_u64()
            .checked_shr(bits)
            .is_none_or(|rest| rest == 0)
    }
}

/// Nested page tables of SVM: AMD64 Architecture Programmer's Manual, volume 2, "Nested Paging". All accesses of a guest
/// count as a user's.
///
/// Memory is write-back as far as the tables go: the processor combines that with its MTRRs, which stay as they were at the
/// launch, and with the guest's PAT, as on bare hardware. The type is kept in bits that processors ignore, so that no leaf
/// covers memory of two.
#[derive(Clone, Copy, Debug)]
pub struct Npt;

const NPT_PRESENT: u64 = 1;
const NPT_WRITE: u64 = 1 << 1;
const NPT_USER: u64 = 1 << 2;
const NPT_TYPE_SHIFT: u32 = 9;
const NPT_NO_EXECUTE: u64 = 1 << 63;

impl Format for Npt {
    type Input = GuestPhysical;
    const PRESENT: u64 = NPT_PRESENT;
    const TABLE: u64 = NPT_PRESENT | NPT_WRITE | NPT_USER;
    const HARDWARE_BITS: u64 = 1 << 5 | 1 << 6;

    #[inline]
    fn leaf(attributes: Attributes) -> u64 {
        let kind = u64::from(attributes.memory_type.0 & 7) << NPT_TYPE_SHIFT;
        let mut entry = NPT_PRESENT | NPT_USER | kind;
        if attributes.access.contains(Access::WRITE) {
            entry |= NPT_WRITE;
        }
        if !attributes.access.contains(Access::EXECUTE) {
            entry |= NPT_NO_EXECUTE;
        }
        entry
    }

    #[inline]
    fn attributes(entry: u64) -> Attributes {
        let mut access = Access::READ;
        access.set(Access::WRITE, entry & NPT_WRITE != 0);
        access.set(Access::EXECUTE, entry & NPT_NO_EXECUTE == 0);
        let kind = (entry >> NPT_TYPE_SHIFT) as u8 & 7;
        Attributes::new(access, MemoryType(kind))
    }

    #[inline]
    fn reaches(input: GuestPhysical, bits: u32) -> bool {
        Ept::reaches(input, bits)
    }
}

/// The processor's own page tables in long mode, as the hypervisor uses them for itself: SDM, "4-Level Paging and
/// 5-Level Paging". All pages are the supervisor's and none is global.
///
/// Memory types follow the PAT of the reset state; types that it lacks become uncacheable.
#[derive(Clone, Copy, Debug)]
pub struct Host;

const HOST_PRESENT: u64 = 1;
const HOST_WRITE: u64 = 1 << 1;
const HOST_WRITE_THROUGH: u64 = 1 << 3;
const HOST_CACHE_DISABLE: u64 = 1 << 4;
const HOST_NO_EXECUTE: u64 = 1 << 63;

impl Format for Host {
    type Input = HostVirtual;
    const PRESENT: u64 = HOST_PRESENT;
    const TABLE: u64 = HOST_PRESENT | HOST_WRITE;
    const HARDWARE_BITS: u64 = 1 << 5 | 1 << 6;

    #[inline]
    fn leaf(attributes: Attributes) -> u64 {
        let mut entry = HOST_PRESENT;
        if attributes.access.contains(Access::WRITE) {
            entry |= HOST_WRITE;
        }
        if !attributes.access.contains(Access::EXECUTE) {
            entry |= HOST_NO_EXECUTE;
        }
        entry
            | match attributes.memory_type {
                MemoryType::WriteBack => 0,
                MemoryType::WriteThrough => HOST_WRITE_THROUGH,
                _ => HOST_CACHE_DISABLE | HOST_WRITE_THROUGH,
            }
    }

    #[inline]
    fn attributes(entry: u64) -> Attributes {
        let mut access = Access::READ;
        access.set(Access::WRITE, entry & HOST_WRITE != 0);
        access.set(Access::EXECUTE, entry & HOST_NO_EXECUTE == 0);
        let memory_type = if entry & HOST_CACHE_DISABLE != 0 {
            MemoryType::Uncacheable
        } else if entry & HOST_WRITE_THROUGH != 0 {
            MemoryType::WriteThrough
        } else {
            MemoryType::WriteBack
        };
        Attributes::new(access, memory_type)
    }

    #[inline]
    fn reaches(input: HostVirtual, bits: u32) -> bool {
        // Canonical: the bits from the topmost translated one on are alike.
        let top = (input.as_u64() as i64)
            .checked_shr(bits.saturating_sub(1))
            .unwrap_or(0);
        top == 0 || top == -1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_attributes() -> impl Iterator<Item = Attributes> {
        (0..8u8).flat_map(|access| {
            [0u8, 1, 4, 5, 6].into_iter().map(move |memory_type| {
                Attributes::new(Access::from_bits_retain(access), MemoryType(memory_type))
            })
        })
    }

    #[test]
    fn ept_entries_have_the_bits_of_the_manual() {
        let rwx = Attributes::new(Access::all(), MemoryType::WriteBack);
        assert_eq!(Ept::leaf(rwx), 0b11_0111);
        let r = Attributes::new(Access::READ, MemoryType::Uncacheable);
        assert_eq!(Ept::leaf(r), 0b00_0001);
        // Writing without reading would be a misconfiguration.
        let w = Attributes::new(Access::WRITE, MemoryType::WriteCombining);
        assert_eq!(Ept::leaf(w), 0b00_1011);
    }

    #[test]
    fn npt_entries_have_the_bits_of_the_manual() {
        let rwx = Attributes::new(Access::all(), MemoryType::WriteBack);
        let kinds = 7 << 9;
        assert_eq!(Npt::leaf(rwx) & !kinds, 0b111);
        let r = Attributes::new(Access::READ, MemoryType::Uncacheable);
        assert_eq!(Npt::leaf(r), 0x8000_0000_0000_0005);
        let rw = Attributes::new(Access::READ | Access::WRITE, MemoryType::WriteCombining);
        assert_eq!(Npt::leaf(rw) & !kinds, 0x8000_0000_0000_0007);
        // Neither PWT nor PCD, nor what is PAT in a leaf of 4 KiB and of larger ones; the user bit always.
        for attributes in all_attributes() {
            let entry = Npt::leaf(attributes);
            assert_eq!(entry & (1 << 3 | 1 << 4 | 1 << 7 | 1 << 12), 0);
            assert_eq!(entry & 0b101, 0b101);
        }
        assert_eq!(Npt::TABLE, 0b111);
    }

    #[test]
    fn host_entries_have_the_bits_of_the_manual() {
        let code = Attributes::new(Access::READ | Access::EXECUTE, MemoryType::WriteBack);
        assert_eq!(Host::leaf(code), 0x1);
        let data = Attributes::new(Access::READ | Access::WRITE, MemoryType::WriteBack);
        assert_eq!(Host::leaf(data), 0x8000_0000_0000_0003);
        let registers = Attributes::new(Access::READ | Access::WRITE, MemoryType::Uncacheable);
        assert_eq!(Host::leaf(registers), 0x8000_0000_0000_001b);
    }

    #[test]
    fn attributes_survive_the_entry() {
        for attributes in all_attributes() {
            let expected = Attributes {
                access: attributes.access | Access::READ,
                ..attributes
            };
            assert_eq!(Ept::attributes(Ept::leaf(attributes)), expected);
            assert_eq!(Npt::attributes(Npt::leaf(attributes)), expected);
            let host = Host::attributes(Host::leaf(attributes));
            assert_eq!(host.access, expected.access);
            assert_eq!(Host::leaf(host), Host::leaf(attributes));
            let leaves = [
                Ept::leaf(attributes),
                Npt::leaf(attributes),
                Host::leaf(attributes),
            ];
            for bits in leaves {
                assert_eq!(bits & (ADDRESS_MASK | LARGE | HOLE), 0);
            }
        }
    }

    #[test]
    fn only_writable_and_executable_breaks_the_rule() {
        for attributes in all_attributes() {
            let both = attributes.access.contains(Access::WRITE)
                && attributes.access.contains(Access::EXECUTE);
            assert_eq!(attributes.is_write_xor_execute(), !both);
        }
    }

    #[test]
    fn reach_ends_with_the_levels() {
        assert!(Ept::reaches(GuestPhysical::new((1 << 48) - 1), 48));
        assert!(!Ept::reaches(GuestPhysical::new(1 << 48), 48));
        assert!(Host::reaches(HostVirtual::new(0x7fff_ffff_ffff), 48));
        assert!(!Host::reaches(HostVirtual::new(0x8000_0000_0000), 48));
        assert!(Host::reaches(HostVirtual::new(0xffff_8000_0000_0000), 48));
        assert!(Host::reaches(HostVirtual::new(0x8000_0000_0000), 57));
    }
}
