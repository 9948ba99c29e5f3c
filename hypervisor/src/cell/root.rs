//! What the root cell may have: everything that is left over, or, where the configuration is strict, what it lists.
//!
//! Invariant: a strict root has nothing of the machine's memory, ports and registers but what is listed for it, what all
//! cells have, and what the hypervisor moderates for it: interrupt controllers, PCI configuration space, IOMMUs. It keeps
//! memory that firmware shares with its devices, too.

use gaol_abi::config::{MSR_WRITE, MemoryRegion, RANGE_RAM};
use gaol_config::SystemView;

use super::parts;

/// What the configuration says of the root cell.
#[derive(Clone, Copy, Debug)]
pub struct RootShare<'a> {
    strict: Option<SystemView<'a>>,
}

impl<'a> RootShare<'a> {
    /// As the configuration says.
    #[must_use]
    pub fn new(view: SystemView<'a>) -> Self {
        Self {
            strict: view.is_strict().then_some(view),
        }
    }

    /// Whether only what is listed is the root's.
    #[must_use]
    pub fn is_strict(&self) -> bool {
        self.strict.is_some()
    }

    /// Registers that a strict root reaches through the hypervisor only.
    pub fn moderated(&self) -> impl Iterator<Item = &'a MemoryRegion> + use<'a> {
        let listed = self.strict.map_or(&[][..], |view| view.root_memory());
        listed.iter().filter(|region| parts::has_widths(region))
    }

    /// Whether the root may have the memory at `at` mapped, and for how many bytes, at most `most`, the same is true.
    #[must_use]
    pub fn run(&self, at: u64, most: u64) -> (bool, u64) {
        let Some(view) = self.strict else {
            return (true, most);
        };
        let listed = view
            .root_memory()
            .iter()
            .filter(|region| !parts::has_widths(region))
            .map(|region| (region.physical, region.size));
        let others = view
            .ranges()
            .iter()
            .filter(|range| range.kind != RANGE_RAM)
            .map(|range| (range.physical, range.size));
        let mut to_next = most;
        for (start, size) in listed.chain(others) {
            let into = at.wrapping_sub(start);
            if into < size {
                return (true, size.wrapping_sub(into).min(most));
            }
            if start > at {
                to_next = to_next.min(start.wrapping_sub(at));
            }
        }
        (false, to_next)
    }

    /// Whether the root may have a port.
    #[must_use]
    pub fn has_port(&self, port: u16) -> bool {
        self.strict.is_none_or(|view| {
            let mut ports = view.root_ports().iter();
            ports.any(|range| port.wrapping_sub(range.first) < range.count)
        })
    }

    /// The bits of a register that the root may write, of registers that not all cells have.
    #[must_use]
    pub fn write_mask(&self, register: u32) -> u64 {
        let Some(view) = self.strict else {
            return u64::MAX;
        };
        let mut msrs = view.root_msrs().iter();
        let listed = |msr: u32, flags: u32| msr == register && flags & MSR_WRITE != 0;
        msrs.find(|access| listed(access.msr, access.flags))
            .map_or(0, |access| access.write_mask)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec::Vec;

    use gaol_abi::config::{
        MEMORY_WIDTH_32, MSR_READ, MachineRange, MsrAccess, PortRange, RANGE_PCI_CONFIGURATION,
        SYSTEM_STRICT_ROOT,
    };
    use gaol_config::encode::{self, Binary};
    use proptest::prelude::*;

    use super::*;

    fn system(strict: bool, memory: &[(u64, u64)], ranges: &[(u64, u64, u16)]) -> Binary {
        system_with(strict, memory, ranges, 3)
    }

    fn system_with(
        strict: bool,
        memory: &[(u64, u64)],
        ranges: &[(u64, u64, u16)],
        flags: u64,
    ) -> Binary {
        let mut system = encode::System::default();
        system.header.name = encode::name("root").unwrap();
        system.header.hypervisor_size = 4 << 20;
        if strict {
            system.flags |= SYSTEM_STRICT_ROOT;
        }
        system.root_memory = memory
            .iter()
            .map(|(physical, size)| MemoryRegion {
                name: encode::name("memory").unwrap(),
                physical: *physical,
                guest: *physical,
                size: *size,
                flags,
            })
            .collect();
        system.ranges = ranges
            .iter()
            .map(|(physical, size, kind)| MachineRange {
                physical: *physical,
                size: *size,
                kind: *kind,
                extent: 0,
                number: 0,
            })
            .collect();
        system.root_ports = Vec::from([PortRange {
            first: 0x60,
            count: 5,
        }]);
        system.root_msrs = Vec::from([
            MsrAccess {
                msr: 0x1a0,
                flags: MSR_READ,
                write_mask: 0,
            },
            MsrAccess {
                msr: 0x1b0,
                flags: MSR_WRITE,
                write_mask: 0xf,
            },
        ]);
        system.encode()
    }

    #[test]
    fn what_is_left_over_is_everything() {
        let binary = system(false, &[], &[]);
        let share = RootShare::new(SystemView::parse(binary.bytes()).unwrap());
        assert!(!share.is_strict());
        assert_eq!(share.run(0x1234_5000, 77), (true, 77));
        assert!((0..=u16::MAX).all(|port| share.has_port(port)));
        assert_eq!(share.write_mask(0x79), u64::MAX);
    }

    #[test]
    fn ports_and_registers_are_listed() {
        let binary = system(true, &[], &[]);
        let share = RootShare::new(SystemView::parse(binary.bytes()).unwrap());
        for port in 0..=u16::MAX {
            assert_eq!(share.has_port(port), (0x60..0x65).contains(&port));
        }
        assert_eq!(share.write_mask(0x1a0), 0);
        assert_eq!(share.write_mask(0x1b0), 0xf);
        assert_eq!(share.write_mask(0x79), 0);
    }

    #[test]
    fn registers_with_access_widths_are_not_mapped() {
        let whole = system(true, &[(0x8000, 0x1000)], &[]);
        let share = RootShare::new(SystemView::parse(whole.bytes()).unwrap());
        assert_eq!(share.run(0x8000, 0x1000), (true, 0x1000));
        assert_eq!(share.moderated().count(), 0);
        for strict in [false, true] {
            let part = system_with(strict, &[(0x8010, 0x10)], &[], 3 | MEMORY_WIDTH_32);
            let share = RootShare::new(SystemView::parse(part.bytes()).unwrap());
            assert_eq!(share.run(0x8000, 0x1000), (!strict, 0x1000));
            let found: Vec<u64> = share.moderated().map(|region| region.physical).collect();
            assert_eq!(
                found,
                if strict {
                    Vec::from([0x8010])
                } else {
                    Vec::new()
                }
            );
        }
    }

    proptest! {
        #[test]
        fn runs_tell_of_each_page(
            memory in prop::collection::vec((1u64..30, 1u64..6), 0..5),
            ranges in prop::collection::vec((1u64..30, 1u64..6, prop_oneof![
                Just(RANGE_RAM),
                Just(RANGE_PCI_CONFIGURATION),
            ]), 0..4),
        ) {
            let pages = |(start, count): (u64, u64)| (start << 12, count << 12);
            let memory: Vec<_> = memory.into_iter().map(pages).collect();
            let ranges: Vec<_> = ranges
                .into_iter()
                .map(|(start, count, kind)| (start << 12, count << 12, kind))
                .collect();
            let binary = system(true, &memory, &ranges);
            let share = RootShare::new(SystemView::parse(binary.bytes()).unwrap());
            let is_listed = |page: u64| {
                let at = page << 12;
                memory.iter().any(|(start, size)| (*start..start + size).contains(&at))
                    || ranges.iter().any(|(start, size, kind)| {
                        *kind != RANGE_RAM && (*start..start + size).contains(&at)
                    })
            };
            let mut at = 0u64;
            while at < 40 << 12 {
                let (own, run) = share.run(at, (40 << 12) - at);
                prop_assert!(run != 0);
                for page in at >> 12..(at + run) >> 12 {
                    prop_assert_eq!(own, is_listed(page), "page {}", page);
                }
                at += run;
            }
        }
    }
}
