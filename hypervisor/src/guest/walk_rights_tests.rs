//! What page tables grant.

extern crate std;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;

/// Tables one behind the other from address 0 on, each leading to the next; every entry of one grants the same.
struct Chain {
    grants: Vec<u64>,
    entry_bytes: u64,
}

impl Chain {
    fn entry(&self, address: GuestPhysical) -> Option<u64> {
        let level = address.as_u64() >> 12;
        let grants = self.grants.get(level as usize)?;
        Some((level + 1) << 12 | grants | PRESENT)
    }
}

impl GuestMemory for Chain {
    fn read_entry(&mut self, address: GuestPhysical) -> Option<u64> {
        assert_eq!(self.entry_bytes, 8);
        self.entry(address)
    }

    fn read_entry32(&mut self, address: GuestPhysical) -> Option<u32> {
        assert_eq!(self.entry_bytes, 4);
        self.entry(address).map(|entry| entry as u32)
    }
}

proptest! {
    #[test]
    fn every_level_must_grant_it(
        kind in 0usize..4,
        grants in prop::collection::vec(0u64..4, 5),
        // Most levels grant everything, or hardly anything would be granted.
        generous in prop::collection::vec(any::<bool>(), 5),
        write: bool,
        user: bool,
        alignment_check: bool,
        protect: bool,
        smap: bool,
        address in 0u64..0x7fff_ffff,
    ) {
        let (levels, cr4, efer) = [
            (2, 0, 0),
            (3, CR4_PHYSICAL_ADDRESS_EXTENSION, 0),
            (4, CR4_PHYSICAL_ADDRESS_EXTENSION, EFER_LONG_MODE_ACTIVE),
            (5, CR4_PHYSICAL_ADDRESS_EXTENSION | CR4_FIVE_LEVELS, EFER_LONG_MODE_ACTIVE),
        ][kind];
        let grants: Vec<u64> = grants
            .iter()
            .zip(generous)
            .take(levels)
            .map(|(grant, all)| if all { WRITABLE | USER } else { grant << 1 })
            .collect();
        let mut chain = Chain {
            grants: grants.clone(),
            entry_bytes: if levels == 2 { 4 } else { 8 },
        };
        let set = |bit: u64, is_set: bool| if is_set { bit } else { 0 };
        let paging = Paging {
            cr0: CR0_PAGING | set(CR0_WRITE_PROTECT, protect),
            cr3: 0,
            cr4: cr4 | set(CR4_SMAP, smap),
            efer,
        };
        let rights = Rights { write, user, alignment_check };
        // PAE paging's pointers say nothing of rights.
        let counted = if levels == 3 { &grants[1..] } else { &grants[..] };
        let all = |bit: u64| counted.iter().all(|grant| grant & bit != 0);
        let expected = match (user, write) {
            (true, false) => all(USER),
            (true, true) => all(USER) && all(WRITABLE),
            (false, _) if all(USER) && smap && !alignment_check => false,
            (false, true) => all(WRITABLE) || !protect,
            (false, false) => true,
        };
        let address = GuestVirtual::new(address);
        let plain = paging.translate(&mut chain, address).unwrap();
        let found = paging.translate_for(&mut chain, address, rights);
        prop_assert_eq!(found, if expected { Ok(plain) } else { Err(WalkError::Denied) });
    }
}

#[test]
fn without_paging_everything_is_granted() {
    let mut chain = Chain {
        grants: Vec::new(),
        entry_bytes: 8,
    };
    let paging = Paging {
        cr0: CR0_WRITE_PROTECT,
        cr3: 0,
        cr4: CR4_SMAP | CR4_PHYSICAL_ADDRESS_EXTENSION,
        efer: 0,
    };
    let rights = Rights {
        write: true,
        user: true,
        alignment_check: false,
    };
    let found = paging.translate_for(&mut chain, GuestVirtual::new(0x1234), rights);
    assert_eq!(found, Ok(GuestPhysical::new(0x1234)));
}
