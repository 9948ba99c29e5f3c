//! What each vendor owes the rest of the hypervisor, tried on each: the same tests, with the vendor as a parameter.

use super::*;
use crate::guest::bitmaps::{Direction, MsrMap, PORT_BYTES, PortMap};
use crate::memory::memory_types::MemoryType;
use crate::memory::page_table::{Access, Attributes, LARGE};

/// The processor's side: how it tells what the vendor's code decodes.
pub trait Processor: Virtualization {
    /// An IN or OUT.
    fn port_access(access: Port) -> <Self::Guest as GuestState>::PortAccess;
    /// All levels of nested page tables that the vendor can have in use.
    const LEVELS: core::ops::RangeInclusive<u32>;
}

/// An IN or OUT.
#[derive(Clone, Copy, Debug)]
pub struct Port {
    pub port: u16,
    pub size: u32,
    pub is_input: bool,
    pub is_string: bool,
    pub is_repeated: bool,
}

fn every_port_access_is_decoded<V: Processor>() {
    let answers = [false, true];
    for port in 0..=u16::MAX {
        for size in [1, 2, 4] {
            for is_input in answers {
                for (is_string, is_repeated) in [(false, false), (true, false), (true, true)] {
                    let access = V::port_access(Port {
                        port,
                        size,
                        is_input,
                        is_string,
                        is_repeated,
                    });
                    assert_eq!((access.port(), access.size()), (port, size));
                    assert_eq!(access.is_input(), is_input);
                    assert_eq!(access.is_string(), is_string);
                    let is_plain = size == 4 && !is_string;
                    assert_eq!(access.is_plain_double_word(port), is_plain);
                    assert!(!access.is_plain_double_word(port ^ 1));
                }
            }
        }
    }
}

fn every_msr_of_the_table_has_two_bits_of_its_own<V: Processor>() {
    let mut map = Box::new(MsrMap::<V::MsrLayout>::new());
    let all = set_bits(map.as_bytes());
    assert_eq!(all as usize, size_of_val(&*map) * 8);
    for msr in MsrMap::<V::MsrLayout>::covered() {
        for direction in [Direction::Read, Direction::Write] {
            let (index, bit) = V::MsrLayout::position(msr, direction).unwrap();
            assert_eq!(bit.count_ones(), 1);
            if direction == Direction::Read {
                map.allow_read(msr).unwrap();
            } else {
                map.allow_write(msr).unwrap();
            }
            assert_eq!(map.as_bytes()[index] & bit, 0);
            assert_eq!(map.intercepts_read(msr), direction != Direction::Read);
            assert_eq!(map.intercepts_write(msr), direction != Direction::Write);
            map.intercept_read(msr);
            map.intercept_write(msr);
            assert_eq!(set_bits(map.as_bytes()), all);
        }
    }
    // No two share a bit: all of them together leave as many as there are fewer.
    let mut taken = 0;
    for msr in MsrMap::<V::MsrLayout>::covered() {
        map.allow_read(msr).unwrap();
        map.allow_write(msr).unwrap();
        taken += 2;
    }
    assert_eq!(set_bits(map.as_bytes()), all - taken);
    // What a cell can be given is covered, whoever the vendor is.
    for msr in (0..0x2000).chain(0xc000_0000..0xc000_2000) {
        assert!(V::MsrLayout::position(msr, Direction::Read).is_some());
    }
}

fn set_bits(bytes: &[u8]) -> u32 {
    bytes.iter().map(|byte| byte.count_ones()).sum()
}

fn port_maps_have_the_ports_first_and_ones_behind<V: Processor>() {
    let mut map = Box::new(PortMap::<V::PortLayout>::new());
    let behind = (size_of_val(&*map) - PORT_BYTES) * 8;
    map.allow_all();
    assert_eq!(set_bits(map.as_bytes()) as usize, behind);
    assert!((0..=u16::MAX).all(|port| !map.intercepts(port, 1)));
    assert!(map.intercepts(u16::MAX, 2) && map.intercepts(0xfffd, 4));
    for port in 0..=u16::MAX {
        map.intercept(port, 1);
        let byte = map.as_bytes()[usize::from(port) / 8];
        assert_eq!(byte, 1 << (port % 8), "{port:#x}");
        map.allow(port, 1);
    }
}

/// The hypervisor walks such tables by itself: what it takes for allowed the processor allows, on each level.
fn nested_entries_allow_what_they_say<V: Processor>() {
    type Format<V> = <V as Virtualization>::NestedFormat;
    let software = 1 << 52;
    let address = 0x000f_ffff_ffff_f000;
    for access in 0..8u8 {
        let access = Access::from_bits_retain(access);
        for kind in [0u8, 1, 4, 5, 6] {
            let attributes = Attributes::new(access, MemoryType(kind));
            let leaf = Format::<V>::leaf(attributes);
            let found = Format::<V>::attributes(leaf);
            assert_eq!(found.access, access | Access::READ);
            // Two pieces of memory of different types never make one leaf.
            assert_eq!(found.memory_type, attributes.memory_type);
            assert_eq!(leaf & (address | LARGE | software), 0);
            assert_ne!(leaf & Format::<V>::PRESENT, 0);
            assert_eq!(leaf & Format::<V>::HARDWARE_BITS, 0);
        }
    }
    assert_eq!(
        Format::<V>::attributes(Format::<V>::TABLE).access,
        Access::all()
    );
    assert_ne!(Format::<V>::TABLE & Format::<V>::PRESENT, 0);
    assert_eq!(Format::<V>::TABLE & (LARGE | software), 0);
    for levels in V::LEVELS {
        let bits = levels * 9 + 12;
        let reaches = |at| Format::<V>::reaches(GuestPhysical::new(at), bits);
        // No address has more than 52 bits.
        let bits = bits.min(52);
        assert!(reaches((1 << bits) - 1) && (bits == 52 || !reaches(1 << bits)));
    }
}

#[test]
fn what_was_fetched_is_no_data() {
    for access in (0..8).map(NestedAccess::from_bits_retain) {
        let fault = NestedFault { address: 0, access };
        assert_eq!(fault.is_write(), access.contains(NestedAccess::WRITE));
        let is_data = access.contains(NestedAccess::DATA) && !access.contains(NestedAccess::FETCH);
        assert_eq!(fault.is_data(), is_data);
    }
}

macro_rules! keeps_the_contract {
    ($vendor:ident, $type:ty) => {
        mod $vendor {
            type Vendor = $type;

            #[test]
            fn every_port_access_is_decoded() {
                super::every_port_access_is_decoded::<Vendor>();
            }

            #[test]
            fn every_msr_of_the_table_has_two_bits_of_its_own() {
                super::every_msr_of_the_table_has_two_bits_of_its_own::<Vendor>();
            }

            #[test]
            fn port_maps_have_the_ports_first_and_ones_behind() {
                super::port_maps_have_the_ports_first_and_ones_behind::<Vendor>();
            }

            #[test]
            fn nested_entries_allow_what_they_say() {
                super::nested_entries_allow_what_they_say::<Vendor>();
            }
        }
    };
}

keeps_the_contract!(vmx, crate::virt::vmx::Vmx);
keeps_the_contract!(svm, crate::virt::svm::Svm);
