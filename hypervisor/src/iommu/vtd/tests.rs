//! The tables against a walker that reads words as the specification has them, and against models.

extern crate std;
use std::boxed::Box;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::vec::Vec;

use proptest::prelude::*;

use super::definitions::{
    Capability, DomainId, ExtendedCapability, InvalidationDescriptor, SourceId,
};
use super::devices::{AttachError, Devices};
use super::domain::{Abilities, Domain, Width};
use super::interrupts::{Interrupt, InterruptError, Interrupts};
use super::*;
use crate::memory::address::{GuestPhysical, GuestRange, HostPhysical};
use crate::memory::frames::OutOfFrames;
use crate::memory::page_table::{Entries, LeafSize, MapError, TableMemory, Tables};

const PAGE: u64 = 4096;

/// Frames of memory, each in use or not; what is given out is full of ones.
struct Arena {
    frames: Vec<(bool, Box<Entries>)>,
}

impl Arena {
    fn new(frames: usize) -> Self {
        let frame = || (false, Box::new([const { AtomicU64::new(u64::MAX) }; 512]));
        Self {
            frames: (0..frames).map(|_| frame()).collect(),
        }
    }

    fn index(frame: HostPhysical) -> usize {
        (frame.as_u64() / PAGE - 1) as usize
    }

    fn in_use(&self) -> usize {
        self.frames.iter().filter(|(used, _)| *used).count()
    }

    /// The 8 bytes at a physical address.
    fn word(&self, address: u64) -> u64 {
        let frame = HostPhysical::new(address & !(PAGE - 1));
        self.entries(frame)[(address % PAGE / 8) as usize].load(Ordering::Relaxed)
    }
}

impl TableMemory for Arena {
    fn entries(&self, table: HostPhysical) -> &Entries {
        let (used, entries) = &self.frames[Self::index(table)];
        assert!(*used, "a table in a frame that is free");
        entries
    }
}

impl Tables for Arena {
    fn allocate(&mut self) -> Result<HostPhysical, OutOfFrames> {
        let free = self.frames.iter().position(|(used, _)| !used);
        let index = free.ok_or(OutOfFrames)?;
        self.frames[index].0 = true;
        Ok(HostPhysical::new((index as u64 + 1) * PAGE))
    }

    fn free(&mut self, frame: HostPhysical) {
        let used = core::mem::replace(&mut self.frames[Self::index(frame)].0, false);
        assert!(used);
    }

    fn retire(&mut self, frame: HostPhysical) {
        self.free(frame);
    }
}

/// What a DMA of `source` to `address` reaches, and whether it may write there. By the specification's figures, bit by bit.
fn walk(arena: &Arena, root_table: u64, source: u16, address: u64) -> Option<(u16, u64, bool)> {
    let (bus, function) = (u64::from(source >> 8), u64::from(source & 0xff));
    let root_entry = arena.word(root_table + bus * 16);
    assert_eq!(arena.word(root_table + bus * 16 + 8), 0, "reserved");
    if root_entry & 1 == 0 {
        return None;
    }
    assert_eq!(root_entry & 0xffe, 0, "reserved");
    let context = (root_entry & !0xfff) + function * 16;
    let (low, high) = (arena.word(context), arena.word(context + 8));
    if low & 1 == 0 {
        return None;
    }
    assert_eq!(low & 0xffe, 0, "reserved, or another kind of translation");
    assert_eq!(high & !0x00ff_ff07, 0, "reserved");
    let levels = (high & 7) + 2;
    let domain = (high >> 8) as u16;
    if address >> (12 + 9 * levels) != 0 {
        return None;
    }
    let mut table = low & !0xfff;
    let mut writable = true;
    for level in (1..=levels).rev() {
        let shift = 12 + 9 * (level - 1);
        let entry = arena.word(table + (address >> shift) % 512 * 8);
        if entry & 3 == 0 {
            return None;
        }
        assert_eq!(entry & 1, 1, "write without read");
        writable &= entry & 2 != 0;
        let pointer = entry & 0x000f_ffff_ffff_f000;
        if level == 1 || entry & (1 << 7) != 0 {
            assert!(level <= 3, "no such leaf");
            let offset = (1 << shift) - 1;
            assert_eq!(pointer & offset, 0, "reserved bits of a large leaf");
            return Some((domain, pointer | address & offset, writable));
        }
        table = pointer;
    }
    unreachable!()
}

fn id(number: u16) -> DomainId {
    DomainId::new(number, 1 << 16).unwrap()
}

fn range(page: u64, pages: u64) -> GuestRange {
    GuestRange::new(GuestPhysical::new(page * PAGE), pages * PAGE).unwrap()
}

#[derive(Clone, Debug)]
enum Operation {
    Map(usize, u64, u64, u64, bool),
    Unmap(usize, u64, u64),
    Attach(usize, u16),
    Detach(usize, u16),
}

fn operation() -> impl Strategy<Value = Operation> {
    let page = prop_oneof![0u64..8, 500u64..520, Just(512u64), Just(512 * 512)];
    let pages = prop_oneof![1u64..6, Just(512u64), Just(1024u64)];
    let source = prop_oneof![
        Just(0u16),
        Just(0x10),
        Just(0x11),
        Just(0x300),
        Just(0xffff)
    ];
    prop_oneof![
        (
            0..2usize,
            page.clone(),
            pages.clone(),
            0u64..4,
            any::<bool>()
        )
            .prop_map(|(domain, page, pages, to, writable)| Operation::Map(
                domain,
                page,
                pages,
                to * 512 + page % 3,
                writable
            )),
        (0..2usize, page, pages)
            .prop_map(|(domain, page, pages)| Operation::Unmap(domain, page, pages)),
        (0..2usize, source.clone()).prop_map(|(domain, source)| Operation::Attach(domain, source)),
        (0..2usize, source).prop_map(|(domain, source)| Operation::Detach(domain, source)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn the_walker_finds_what_the_model_says(
        operations in prop::collection::vec(operation(), 1..40),
        four_levels: bool,
        caching_mode: bool,
        largest in prop::sample::select(vec![LeafSize::Page4K, LeafSize::Page2M, LeafSize::Page1G]),
        frames in prop_oneof![Just(200usize), 6usize..20],
    ) {
        let mut arena = Arena::new(frames);
        let width = if four_levels { Width::FourLevels } else { Width::ThreeLevels };
        let abilities = Abilities { width, largest, caching_mode };
        let mut devices = Devices::new(&mut arena).unwrap();
        let mut domains = [1, 7].map(|number| {
            Domain::new(&mut arena, id(number), abilities).unwrap()
        });
        let mut memory: [BTreeMap<u64, (u64, bool)>; 2] = [BTreeMap::new(), BTreeMap::new()];
        let mut attached: BTreeMap<u16, usize> = BTreeMap::new();
        for operation in operations {
            match operation {
                Operation::Map(domain, page, pages, to, writable) => {
                    let physical = HostPhysical::new(to * PAGE);
                    match domains[domain].map(&mut arena, range(page, pages), physical, writable) {
                        Ok(invalidation) => {
                            let known = |offset: &u64| {
                                let held = memory[domain].get(&(page + offset));
                                held.is_some_and(|held| *held != (to + offset, writable))
                            };
                            prop_assert!(
                                invalidation.is_needed() || !caching_mode && !(0..pages).any(|offset| known(&offset))
                            );
                            for offset in 0..pages {
                                memory[domain].insert(page + offset, (to + offset, writable));
                            }
                        }
                        Err(error) => prop_assert_eq!(error, MapError::OutOfFrames),
                    }
                }
                Operation::Unmap(domain, page, pages) => {
                    match domains[domain].unmap(&mut arena, range(page, pages)) {
                        Ok(invalidation) => {
                            invalidation.ignore();
                            for offset in 0..pages {
                                memory[domain].remove(&(page + offset));
                            }
                        }
                        Err(error) => prop_assert_eq!(error, MapError::OutOfFrames),
                    }
                }
                Operation::Attach(domain, source) => {
                    match devices.attach(&mut arena, SourceId(source), &domains[domain]) {
                        Ok(invalidation) => {
                            prop_assert!(invalidation.is_needed());
                            prop_assert_eq!(attached.insert(source, domain), None);
                        }
                        Err(AttachError::Attached) => prop_assert!(attached.contains_key(&source)),
                        Err(error) => prop_assert_eq!(error, AttachError::OutOfFrames),
                    }
                }
                Operation::Detach(domain, source) => {
                    let result = devices.detach(&mut arena, SourceId(source), domains[domain].id());
                    prop_assert_eq!(result.is_ok(), attached.get(&source) == Some(&domain));
                    if result.is_ok() {
                        attached.remove(&source);
                    }
                }
            }
            for source in [0u16, 0x10, 0x11, 0x300, 0x301, 0xffff] {
                for page in [0, 1, 4, 7, 499, 511, 512, 1023, 512 * 512, 512 * 512 + 1023, 1 << 27] {
                    let address = page * PAGE + 8;
                    let expected = attached.get(&source).and_then(|domain| {
                        let (to, writable) = memory[*domain].get(&page)?;
                        Some((domains[*domain].id().number(), to * PAGE + 8, *writable))
                    });
                    prop_assert_eq!(walk(&arena, devices.root().as_u64(), source, address), expected);
                }
                let told = devices.domain_of(&arena, SourceId(source)).map(|attached| attached.domain);
                let expected = attached.get(&source).map(|domain| domains[*domain].id().number());
                prop_assert_eq!(told, expected);
            }
        }
        devices.destroy(&mut arena);
        for domain in domains {
            domain.destroy(&mut arena).ignore();
        }
        prop_assert_eq!(arena.in_use(), 0);
    }

    #[test]
    fn interrupts_go_where_they_may_and_nowhere_else(
        operations in prop::collection::vec((0u16..600, 0u16..3, any::<u8>(), 0u32..300, any::<bool>(), any::<bool>()), 1..60),
        x2apic: bool,
    ) {
        let mut arena = Arena::new(2);
        for _ in 0..2 {
            let page = arena.allocate().unwrap();
            arena.entries(page).iter().for_each(|word| word.store(0, Ordering::Relaxed));
        }
        let mut table = Interrupts::new(HostPhysical::new(PAGE), 512, x2apic).unwrap();
        prop_assert_eq!(table.address_register(), PAGE | u64::from(x2apic) << 11 | 8);
        let mut model: BTreeMap<u16, Interrupt> = BTreeMap::new();
        let is_own = |apic: u32| apic.is_multiple_of(2);
        for (index, source, vector, destination, level_triggered, sets) in operations {
            let interrupt = Interrupt { source: SourceId(source), vector, destination, level_triggered, nmi: false };
            if sets {
                let may = index < 512 && !model.contains_key(&index) && vector >= 16
                    && is_own(destination) && (x2apic || destination < 0xff);
                let result = table.set(&arena, index, interrupt, is_own);
                prop_assert_eq!(result.is_ok(), may);
                if may {
                    model.insert(index, interrupt);
                }
            } else {
                let may = model.get(&index).is_some_and(|held| held.source == SourceId(source));
                let result = table.clear(&arena, index, SourceId(source));
                prop_assert_eq!(result, if may { Ok(Invalidation::Interrupt(index)) } else { Err(InterruptError::NotInUse) });
                if may {
                    model.remove(&index);
                }
            }
            for index in 0u16..512 {
                let at = PAGE + u64::from(index) * 16;
                let expected = model.get(&index).map_or([0, 0], |held| {
                    let destination = u64::from(held.destination) << if x2apic { 32 } else { 40 };
                    [
                        1 | u64::from(held.level_triggered) << 4 | u64::from(held.vector) << 16 | destination,
                        u64::from(held.source.0) | 1 << 18,
                    ]
                });
                prop_assert_eq!([arena.word(at), arena.word(at + 8)], expected);
                prop_assert_eq!(table.interrupt(&arena, index), model.get(&index).copied());
            }
        }
    }

    #[test]
    fn every_value_of_a_register_can_be_held(bits: u64) {
        prop_assert_eq!(Capability::from_bits(bits).into_bits(), bits);
        prop_assert_eq!(ExtendedCapability::from_bits(bits).into_bits(), bits);
        let capability = Capability::from_bits(bits);
        prop_assert_eq!(capability.domain_count(), 1 << (4 + 2 * (bits & 7)));
        let abilities = Abilities::of(capability);
        prop_assert_eq!(abilities.is_some(), bits >> 9 & 3 != 0);
        if let Some(abilities) = abilities {
            // Leaves of 1 GiB alone do not help: the engine goes by size.
            prop_assert_eq!(abilities.largest >= LeafSize::Page2M, bits >> 34 & 1 != 0);
            prop_assert_eq!(abilities.caching_mode, bits >> 7 & 1 != 0);
        }
    }
}

/// Capabilities as QEMU 7.2 shows them: 48 and 39 bits, 2 MiB and 1 GiB leaves, 2^16 domains.
#[test]
fn registers_are_read_as_the_specification_has_them() {
    let capability = Capability::from_bits(0x00d2_008c_222f_0686);
    assert_eq!(capability.domain_count(), 1 << 16);
    let abilities = Abilities {
        width: Width::FourLevels,
        largest: LeafSize::Page1G,
        caching_mode: true,
    };
    assert_eq!(Abilities::of(capability), Some(abilities));
    assert_eq!(capability.address_bits(), 47);
    assert_eq!(capability.fault_registers_at(), 0x22);
    let extended = ExtendedCapability::from_bits(0x0000_0000_00f0_0f4a);
    assert!(extended.queued_invalidation() && extended.interrupt_remapping());
    assert!(!extended.is_coherent() && !extended.extended_interrupts());
    assert_eq!(extended.iotlb_registers_at(), 0xf);
}

#[test]
fn descriptors_are_those_of_the_specification() {
    let words = |descriptor: InvalidationDescriptor| descriptor.0;
    let (source, domain) = (SourceId(0x0310), id(7));
    assert_eq!(
        words(InvalidationDescriptor::context_of_function(source, domain)),
        [0x0000_0310_0007_0031, 0]
    );
    assert_eq!(
        words(InvalidationDescriptor::translations_of_domain(domain)),
        [0x0007_00e2, 0]
    );
    assert_eq!(
        words(InvalidationDescriptor::interrupt_entry(0x1ff)),
        [0x0000_01ff_0000_0014, 0]
    );
    assert_eq!(
        words(InvalidationDescriptor::wait(5, 0x1003)),
        [0x0000_0005_0000_0025, 0x1000]
    );
    let told = Invalidation::Function { source, domain }.descriptors();
    assert_eq!(told.iter().flatten().count(), 2);
    assert_eq!(Invalidation::Nothing.descriptors(), [None, None]);
}

#[test]
fn numbers_of_domains_have_bounds() {
    assert_eq!(DomainId::new(0, 16), None);
    assert_eq!(DomainId::new(16, 16), None);
    assert_eq!(DomainId::new(15, 16).map(DomainId::number), Some(15));
}

#[test]
fn tables_that_there_cannot_be_are_refused() {
    let table = |base, entries| Interrupts::new(HostPhysical::new(base), entries, true);
    assert!(table(PAGE, 256).is_some() && table(PAGE, 1 << 16).is_some());
    assert!(table(PAGE, 128).is_none() && table(PAGE, 1 << 17).is_none());
    assert!(table(PAGE, 300).is_none() && table(8, 256).is_none());
    assert!(table((1 << 52) - PAGE, 1 << 16).is_none());
}
