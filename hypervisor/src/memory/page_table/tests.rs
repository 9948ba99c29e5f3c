//! The engine against a model: the last change that named an address says what it leads to.

mod redirect;

extern crate std;
use std::boxed::Box;
use std::cell::Cell;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::vec::Vec;

use proptest::prelude::*;

use super::format::{ADDRESS_MASK, HOLE, LARGE};
use super::update::{is_own_table, is_present, target};
use super::*;
use crate::memory::address::{GuestPhysical, GuestRange, HostVirtual, VirtualRange};

const BASE: u64 = 0x10_0000;
const HOLE_PAGE: u64 = 0xfff_f000;
const K4: u64 = 4096;
const M2: u64 = 2 << 20;
const G1: u64 = 1 << 30;

/// Frames in an arena, of which each is free, in use, or retired.
struct Arena {
    /// A frame exists from its first use on.
    entries: Vec<Option<Box<Entries>>>,
    free: BTreeSet<u64>,
    retired: BTreeSet<u64>,
}

impl Arena {
    fn new(frames: u64) -> Self {
        Self {
            entries: (0..frames).map(|_| None).collect(),
            free: (0..frames).map(|index| BASE + index * K4).collect(),
            retired: BTreeSet::new(),
        }
    }

    /// Takes a frame with garbage in it: an engine that forgets to fill one is found out.
    fn take(&mut self, frame: u64) -> HostPhysical {
        assert!(self.free.remove(&frame));
        self.entries[((frame - BASE) / K4) as usize]
            .get_or_insert_with(|| Box::new([const { AtomicU64::new(u64::MAX) }; ENTRIES]));
        HostPhysical::new(frame)
    }

    fn in_use(&self) -> usize {
        self.entries.len() - self.free.len() - self.retired.len()
    }

    fn reclaim(&mut self) {
        for frame in core::mem::take(&mut self.retired) {
            fill(self, HostPhysical::new(frame), u64::MAX, 0);
            self.free.insert(frame);
        }
    }

    fn known(&self, frame: HostPhysical) -> u64 {
        let frame = frame.as_u64();
        assert!(!self.free.contains(&frame) && !self.retired.contains(&frame));
        frame
    }
}

impl TableMemory for Arena {
    fn entries(&self, table: HostPhysical) -> &Entries {
        self.entries[((table.as_u64() - BASE) / K4) as usize]
            .as_ref()
            .unwrap()
    }
}

impl Tables for Arena {
    fn allocate(&mut self) -> Result<HostPhysical, OutOfFrames> {
        let first = self.free.first().copied().ok_or(OutOfFrames)?;
        Ok(self.take(first))
    }

    fn free(&mut self, frame: HostPhysical) {
        let frame = self.known(frame);
        self.free.insert(frame);
    }

    fn retire(&mut self, frame: HostPhysical) {
        let frame = self.known(frame);
        self.retired.insert(frame);
    }
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Held {
    Nothing,
    Hole,
    Memory(u64, Attributes),
}

#[derive(Clone, Copy, Debug)]
struct Change {
    start: u64,
    size: u64,
    held: Held,
    keep: bool,
}

fn guest_range(start: u64, size: u64) -> GuestRange {
    GuestRange::new(GuestPhysical::new(start), size).unwrap()
}

fn make(table: &mut PageTable<Ept>, arena: &mut Arena, change: Change) -> Result<Flush, MapError> {
    let range = guest_range(change.start, change.size);
    match change.held {
        Held::Nothing if change.keep => table.unmap_keeping_tables(arena, range),
        Held::Nothing => table.unmap(arena, range),
        Held::Hole => table.map_hole(arena, range),
        Held::Memory(physical, attributes) if change.keep => {
            table.map_keeping_tables(arena, range, HostPhysical::new(physical), attributes)
        }
        Held::Memory(physical, attributes) => {
            table.map(arena, range, HostPhysical::new(physical), attributes)
        }
    }
}

/// What the last of `changes` that names `address` says.
fn model(changes: &[Change], address: u64) -> Held {
    changes
        .iter()
        .rev()
        .find(|change| address.wrapping_sub(change.start) < change.size)
        .map_or(Held::Nothing, |change| match change.held {
            Held::Memory(physical, attributes) => {
                Held::Memory(physical + (address - change.start), attributes)
            }
            held => held,
        })
}

fn held<F: Format>(table: &PageTable<F>, arena: &Arena, address: F::Input) -> Held {
    match table.lookup(arena, address) {
        None => Held::Nothing,
        Some(translation) if translation.is_hole => {
            assert_eq!(
                translation.physical.as_u64(),
                HOLE_PAGE + address.number() % K4
            );
            assert_eq!(translation.attributes.access, Access::READ);
            Held::Hole
        }
        Some(translation) => Held::Memory(translation.physical.as_u64(), translation.attributes),
    }
}

/// The changes' ends and what is next to them, where mistakes show.
fn samples(changes: &[Change]) -> Vec<u64> {
    let mut samples: Vec<u64> = changes
        .iter()
        .flat_map(|change| {
            let end = change.start + change.size;
            [
                change.start.wrapping_sub(1),
                change.start,
                change.start + change.size / 2,
                end - 1,
                end,
                end + M2,
                change.start.wrapping_sub(M2),
            ]
        })
        .filter(|address| *address < 1 << 40)
        .collect();
    samples.sort_unstable();
    samples.dedup();
    samples
}

fn agree(table: &PageTable<Ept>, arena: &Arena, changes: &[Change]) -> Result<(), TestCaseError> {
    for address in samples(changes) {
        prop_assert_eq!(
            held(table, arena, GuestPhysical::new(address)),
            model(changes, address),
            "at {:#x}",
            address
        );
    }
    Ok(())
}

/// Every frame in use is reached exactly once from the root or is one of the two shared tables, and no leaf is larger than
/// the limits allow. `merged`: no table could be one leaf.
fn check_structure<F: Format>(table: &PageTable<F>, arena: &Arena, merged: bool) {
    check_structure_beside(table, arena, merged, 0);
}

/// As [`check_structure`], where `others` frames are in use beside those of the page table.
fn check_structure_beside<F: Format>(
    table: &PageTable<F>,
    arena: &Arena,
    merged: bool,
    others: usize,
) {
    fn visit<F: Format>(
        table: &PageTable<F>,
        arena: &Arena,
        frame: HostPhysical,
        level: u32,
        merged: bool,
        seen: &mut BTreeSet<u64>,
    ) {
        assert!(seen.insert(arena.known(frame)), "linked twice");
        let entries: Vec<u64> = (0..ENTRIES)
            .map(|index| read(arena, frame, index))
            .collect();
        for &entry in &entries {
            if is_own_table::<F>(entry, level) {
                visit(table, arena, target(entry), level - 1, merged, seen);
            } else if is_present::<F>(entry) && entry & HOLE == 0 {
                assert!(level <= table.limits.of::<F>(entry));
                assert_eq!(entry & LARGE != 0, level > 1);
                assert_eq!(entry & ADDRESS_MASK & (span(level) - 1), 0);
            } else if entry & HOLE == 0 {
                assert_eq!(entry, 0);
            }
        }
        if merged && level < table.levels {
            let first = entries[0];
            let uniform = |step: u64| {
                (0..)
                    .zip(&entries)
                    .all(|(index, entry)| *entry == first.wrapping_add(index * step))
            };
            assert!(first != 0 || !uniform(0), "an empty table is left");
            let leaf = is_present::<F>(first)
                && first & HOLE == 0
                && !is_own_table::<F>(first, level)
                && level < table.limits.of::<F>(first)
                && first & ADDRESS_MASK & (span(level + 1) - 1) == 0;
            assert!(!leaf || !uniform(span(level)), "a table could be a leaf");
        }
    }
    let mut seen = BTreeSet::new();
    visit(table, arena, table.root, table.levels, merged, &mut seen);
    let shared = if table.holes.is_some() { 2 } else { 0 };
    assert_eq!(seen.len() + shared + others, arena.in_use());
}

fn new_table(arena: &mut Arena, limits: Limits) -> PageTable<Ept> {
    let mut table = PageTable::new(arena, 4, limits).unwrap();
    table
        .set_hole_page(arena, HostPhysical::new(HOLE_PAGE))
        .unwrap();
    table
}

fn attributes() -> impl Strategy<Value = Attributes> {
    prop_oneof![
        3 => Just(Attributes::new(Access::all(), MemoryType::WriteBack)),
        1 => Just(Attributes::new(Access::READ | Access::WRITE, MemoryType::WriteBack)),
        1 => Just(Attributes::new(Access::READ, MemoryType::Uncacheable)),
    ]
}

/// Ranges whose ends lie on boundaries of all sizes, mostly near each other so that they meet.
fn extent() -> impl Strategy<Value = (u64, u64)> {
    let point = prop_oneof![
        (0u64..4, 0u64..4).prop_map(|(big, small)| big * M2 + small * K4),
        (0u64..3, 508u64..516).prop_map(|(giant, big)| giant * G1 + (big % 512) * M2),
        (0u64..3).prop_map(|giant| giant * G1),
        (0u64..3, 510u64..515, 510u64..515)
            .prop_map(|(giant, big, small)| giant * G1 + (big % 512) * M2 + (small % 512) * K4),
        Just(1u64 << 39),
        Just((1u64 << 39) - K4),
    ];
    let near = prop_oneof![
        Just(K4),
        Just(2 * K4),
        Just(M2),
        Just(M2 - K4),
        Just(M2 + K4),
        Just(3 * M2),
        Just(G1),
        Just(2 * G1),
        Just(G1 + M2),
    ];
    (point, near)
}

fn change() -> impl Strategy<Value = Change> {
    let held = prop_oneof![
        2 => Just(None),
        3 => Just(Some(None)),
        // Identity, shifted by a large page, and shifted by a small one.
        6 => (prop_oneof![4 => Just(0u64), 1 => Just(M2), 1 => Just(K4), 1 => Just(G1)], attributes())
            .prop_map(|shifted| Some(Some(shifted))),
    ];
    (extent(), held, any::<bool>()).prop_map(|((start, size), held, keep)| Change {
        start,
        size,
        keep,
        held: match held {
            None => Held::Nothing,
            Some(None) => Held::Hole,
            Some(Some((shift, attributes))) => Held::Memory(start + shift, attributes),
        },
    })
}

fn limits() -> impl Strategy<Value = Limits> {
    let size = prop_oneof![
        Just(LeafSize::Page2M),
        Just(LeafSize::Page1G),
        Just(LeafSize::Page1G)
    ];
    (size, any::<bool>()).prop_map(|(largest, small_code)| Limits {
        largest,
        largest_executable: if small_code {
            LeafSize::Page2M
        } else {
            largest
        },
    })
}

/// More frames than any sequence here needs.
const PLENTY: u64 = 3000;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn says_what_the_last_change_said(
        limits in limits(),
        changes in prop::collection::vec(change(), 1..16),
    ) {
        let mut arena = Arena::new(PLENTY);
        let mut table = new_table(&mut arena, limits);
        let first_figure = arena.in_use();
        for (index, change) in changes.iter().enumerate() {
            let before = changes.get(..index).unwrap();
            let known = samples(&changes);
            let same = known.iter().all(|address| {
                model(before, *address) == Held::Nothing
                    || model(before, *address) == model(changes.get(..=index).unwrap(), *address)
            });
            let flush = make(&mut table, &mut arena, *change).unwrap();
            prop_assert!(flush.is_needed() || same, "a flush was forgotten");
            arena.reclaim();
            agree(&table, &arena, changes.get(..=index).unwrap())?;
            check_structure(&table, &arena, false);
        }
        table.unmap(&mut arena, guest_range(0, 1 << 40)).unwrap().ignore();
        arena.reclaim();
        prop_assert_eq!(arena.in_use(), first_figure);
        table.destroy(&mut arena);
        arena.reclaim();
        prop_assert_eq!(arena.in_use(), 0);
    }

    #[test]
    fn what_was_unmapped_page_by_page_can_be_mapped_without_frames(
        limits in limits(),
        first in 0u64..2,
        pages in prop::collection::vec(0u64..1024, 1..40),
        all in any::<bool>(),
    ) {
        let mut arena = Arena::new(PLENTY);
        let mut table = new_table(&mut arena, limits);
        let attributes = Attributes::new(Access::READ | Access::WRITE, MemoryType::Uncacheable);
        let base = first << 30;
        let memory = guest_range(base, 4 << 20);
        table.map(&mut arena, memory, HostPhysical::new(base), attributes).unwrap().ignore();
        let pages: Vec<u64> = if all { (0..1024).collect() } else { pages };
        for page in &pages {
            let at = base + (page << 12);
            table.unmap_keeping_tables(&mut arena, guest_range(at, 4096)).unwrap().ignore();
            prop_assert_eq!(table.lookup(&arena, GuestPhysical::new(at)), None);
        }
        for page in pages {
            let at = base + (page << 12);
            let (range, physical) = (guest_range(at, 4096), HostPhysical::new(at));
            prop_assert_eq!(table.frames_for_map(&mut arena, range, physical, attributes), Ok(0));
            table.map(&mut arena, range, physical, attributes).unwrap().ignore();
        }
    }

    #[test]
    fn merges_whatever_can_be_merged(
        limits in limits(),
        changes in prop::collection::vec(change(), 1..16),
    ) {
        let mut arena = Arena::new(PLENTY);
        let mut table = new_table(&mut arena, limits);
        for change in changes {
            // Holes and kept tables don't merge by intention.
            if change.held != Held::Hole && !change.keep {
                make(&mut table, &mut arena, change).unwrap().ignore();
                arena.reclaim();
                check_structure(&table, &arena, true);
            }
        }
    }

    #[test]
    fn changes_nothing_without_frames(
        limits in limits(),
        changes in prop::collection::vec(change(), 1..12),
        left in 0usize..6,
    ) {
        let mut arena = Arena::new(PLENTY);
        let mut table = new_table(&mut arena, limits);
        let mut made = Vec::new();
        for change in changes {
            // Leave only a few frames for this change.
            let aside: BTreeSet<u64> = arena.free.iter().skip(left).copied().collect();
            arena.free.retain(|frame| !aside.contains(frame));
            let in_use = arena.in_use();
            let needed = match change.held {
                Held::Memory(physical, attributes) if !change.keep => Some(table.frames_for_map(
                    &mut arena,
                    guest_range(change.start, change.size),
                    HostPhysical::new(physical),
                    attributes,
                ).unwrap()),
                Held::Hole => Some(
                    table.frames_for_hole(&mut arena, guest_range(change.start, change.size)).unwrap(),
                ),
                _ => None,
            };
            match make(&mut table, &mut arena, change) {
                Ok(_) => {
                    made.push(change);
                    prop_assert!(needed.is_none_or(|needed| needed <= left));
                }
                Err(error) => {
                    prop_assert_eq!(error, MapError::OutOfFrames);
                    prop_assert!(needed.is_none_or(|needed| needed > left));
                    prop_assert_eq!(arena.in_use(), in_use);
                    prop_assert!(arena.retired.is_empty());
                }
            }
            arena.reclaim();
            arena.free.extend(aside);
            agree(&table, &arena, &made)?;
            check_structure(&table, &arena, false);
        }
    }

    /// Cells take memory out of the root cell's table and give it back, in any order, while someone else takes every
    /// frame that becomes free.
    #[test]
    fn the_way_back_needs_no_frames(
        limits in limits(),
        registers in extent().prop_filter("below the end", |extent| extent.0 + extent.1 <= 4 * G1),
        cells in prop::collection::vec((extent(), any::<bool>()), 1..8),
        order in prop::collection::vec(any::<prop::sample::Index>(), 8),
    ) {
        let mut arena = Arena::new(PLENTY);
        let mut table = new_table(&mut arena, limits);
        // The root cell: RAM with device registers somewhere in it, up to 4 GiB; nothing beyond.
        let ram = Attributes::new(Access::all(), MemoryType::WriteBack);
        let device = Attributes::new(Access::READ | Access::WRITE, MemoryType::Uncacheable);
        let end = 4 * G1;
        let held_at_first = |address: u64| {
            if address >= end {
                Held::Nothing
            } else if address.wrapping_sub(registers.0) < registers.1 {
                Held::Memory(address, device)
            } else {
                Held::Memory(address, ram)
            }
        };
        let mut made = std::vec![
            Change { start: 0, size: end, held: Held::Memory(0, ram), keep: false },
            Change {
                start: registers.0,
                size: registers.1,
                held: Held::Memory(registers.0, device),
                keep: false,
            },
        ];
        for change in &made {
            make(&mut table, &mut arena, *change).unwrap().ignore();
        }
        arena.reclaim();
        let first_figure = arena.in_use();

        let mut alive: Vec<((u64, u64), bool)> = Vec::new();
        for (extent, loadable) in cells {
            let overlaps = |other: &((u64, u64), bool)| {
                extent.0 < other.0.0 + other.0.1 && other.0.0 < extent.0 + extent.1
            };
            if !alive.iter().any(overlaps) {
                alive.push((extent, loadable));
            }
        }
        // The parts of an extent that held one thing each, and are given back one by one.
        let parts = |extent: (u64, u64)| {
            let mut cuts: Vec<u64> = [extent.0, extent.0 + extent.1, registers.0, registers.0 + registers.1, end]
                .into_iter()
                .filter(|cut| (extent.0..=extent.0 + extent.1).contains(cut))
                .collect();
            cuts.sort_unstable();
            cuts.dedup();
            cuts.windows(2).map(|ends| (ends[0], ends[1] - ends[0])).collect::<Vec<_>>()
        };
        for (extent, loadable) in &alive {
            let hole = Change { start: extent.0, size: extent.1, held: Held::Hole, keep: false };
            make(&mut table, &mut arena, hole).unwrap().ignore();
            arena.reclaim();
            made.push(hole);
            if *loadable {
                // Loadable memory goes to the root cell and is taken again at the start.
                let starved = core::mem::take(&mut arena.free);
                for (start, size) in parts(*extent) {
                    let held = held_at_first(start);
                    if held != Held::Nothing {
                        let change = Change { start, size, held, keep: true };
                        make(&mut table, &mut arena, change).unwrap().ignore();
                        made.push(change);
                    }
                }
                prop_assert!(arena.retired.is_empty());
                agree(&table, &arena, &made)?;
                make(&mut table, &mut arena, hole).unwrap().ignore();
                made.push(hole);
                arena.free = starved;
            }
            agree(&table, &arena, &made)?;
        }

        // Someone else takes all frames from now on, those that become free as well.
        let mut taken = core::mem::take(&mut arena.free);
        for pick in order {
            if alive.is_empty() {
                break;
            }
            let (extent, _) = alive.swap_remove(pick.index(alive.len()));
            for (start, size) in parts(extent) {
                let change = Change { start, size, held: held_at_first(start), keep: false };
                make(&mut table, &mut arena, change).unwrap().ignore();
                made.push(change);
            }
            agree(&table, &arena, &made)?;
            arena.reclaim();
            taken.append(&mut arena.free);
        }
        arena.free = taken;
        if alive.is_empty() {
            prop_assert_eq!(arena.in_use(), first_figure);
            check_structure(&table, &arena, true);
        }
    }
}

#[test]
fn refuses_what_it_cannot_translate() {
    let mut arena = Arena::new(16);
    let mut table = PageTable::<Ept>::new(&mut arena, 4, Limits::all(LeafSize::Page1G)).unwrap();
    let ram = Attributes::new(Access::all(), MemoryType::WriteBack);
    let zero = HostPhysical::ZERO;
    let one = guest_range(0, 1);
    assert_eq!(
        table.map(&mut arena, one, zero, ram),
        Err(MapError::Misaligned)
    );
    let page = guest_range(0, K4);
    assert_eq!(
        table.map(&mut arena, page, HostPhysical::new(8), ram),
        Err(MapError::Misaligned)
    );
    let last = HostPhysical::new((1 << 52) - K4);
    assert_eq!(
        table.map(&mut arena, guest_range(0, 2 * K4), last, ram),
        Err(MapError::OutOfReach)
    );
    let far = guest_range((1 << 48) - K4, 2 * K4);
    assert_eq!(
        table.map(&mut arena, far, zero, ram),
        Err(MapError::OutOfReach)
    );
    assert_eq!(table.map_hole(&mut arena, page), Err(MapError::NoHolePage));
    assert_eq!(
        table.map(&mut arena, guest_range(0, 0), zero, ram),
        Ok(Flush::Nothing)
    );
    assert_eq!(arena.in_use(), 1);
    assert_eq!(table.lookup(&arena, GuestPhysical::new(1 << 50)), None);
}

#[test]
fn holes_cost_no_tables_of_their_own() {
    let mut arena = Arena::new(16);
    let mut table = new_table(&mut arena, Limits::all(LeafSize::Page1G));
    let ram = Attributes::new(Access::all(), MemoryType::WriteBack);
    table
        .map(&mut arena, guest_range(0, 4 * G1), HostPhysical::ZERO, ram)
        .unwrap()
        .ignore();
    let before = arena.in_use();
    let flush = table
        .map_hole(&mut arena, guest_range(64 * M2, 64 * M2))
        .unwrap();
    assert!(flush.is_needed());
    assert_eq!(arena.in_use(), before + 1);
    let flush = table.map_hole(&mut arena, guest_range(2 * G1, G1)).unwrap();
    assert!(flush.is_needed());
    assert_eq!(arena.in_use(), before + 1);
    let size = |address| {
        table
            .lookup(&arena, GuestPhysical::new(address))
            .map(|translation| (translation.is_hole, translation.size))
    };
    assert_eq!(size(64 * M2), Some((true, LeafSize::Page2M)));
    assert_eq!(size(128 * M2), Some((false, LeafSize::Page2M)));
    assert_eq!(size(2 * G1 + 5), Some((true, LeafSize::Page1G)));
    assert_eq!(size(3 * G1), Some((false, LeafSize::Page1G)));
}

#[test]
fn small_code_pages_stay_small() {
    let mut arena = Arena::new(16);
    let limits = Limits {
        largest: LeafSize::Page1G,
        largest_executable: LeafSize::Page4K,
    };
    let mut table = new_table(&mut arena, limits);
    let code = Attributes::new(Access::all(), MemoryType::WriteBack);
    let data = Attributes::new(Access::READ | Access::WRITE, MemoryType::WriteBack);
    for attributes in [code, data] {
        table
            .map(
                &mut arena,
                guest_range(0, M2),
                HostPhysical::ZERO,
                attributes,
            )
            .unwrap()
            .ignore();
        let size = table
            .lookup(&arena, GuestPhysical::ZERO)
            .map(|translation| translation.size);
        let expected = if attributes == code {
            LeafSize::Page4K
        } else {
            LeafSize::Page2M
        };
        assert_eq!(size, Some(expected));
        check_structure(&table, &arena, true);
    }
}

/// The hypervisor's own tables: both halves of the address space, four and five levels.
#[test]
fn maps_the_host_too() {
    for levels in [4, 5] {
        let mut arena = Arena::new(32);
        let mut table =
            PageTable::<Host>::new(&mut arena, levels, Limits::all(LeafSize::Page2M)).unwrap();
        let top = HostVirtual::new(0xffff_ffff_8000_0000);
        let image = VirtualRange::new(top, 4 * M2 + K4).unwrap();
        let code = Attributes::new(Access::READ | Access::EXECUTE, MemoryType::WriteBack);
        let flush = table
            .map(&mut arena, image, HostPhysical::new(6 * M2), code)
            .unwrap();
        assert_eq!(flush, Flush::Nothing);
        let last = VirtualRange::new(HostVirtual::new(u64::MAX - 4095), K4).unwrap();
        let registers = Attributes::new(Access::READ | Access::WRITE, MemoryType::Uncacheable);
        table
            .map(&mut arena, last, HostPhysical::new(0xfee0_0000), registers)
            .unwrap()
            .ignore();
        let expect = |address: u64, physical: u64, size, attributes| {
            assert_eq!(
                table.lookup(&arena, HostVirtual::new(address)),
                Some(Translation {
                    physical: HostPhysical::new(physical),
                    attributes,
                    size,
                    is_hole: false
                })
            );
        };
        expect(top.as_u64() + 5, 6 * M2 + 5, LeafSize::Page2M, code);
        expect(top.as_u64() + 4 * M2, 10 * M2, LeafSize::Page4K, code);
        expect(u64::MAX, 0xfee0_0fff, LeafSize::Page4K, registers);
        assert_eq!(table.lookup(&arena, HostVirtual::ZERO), None);
        let across = VirtualRange::new(HostVirtual::new(0x7fff_ffff_f000), 2 * K4);
        if levels == 4 {
            let across = across.unwrap();
            assert_eq!(
                table.map(&mut arena, across, HostPhysical::ZERO, code),
                Err(MapError::OutOfReach)
            );
        }
        check_structure(&table, &arena, true);
        table.unmap(&mut arena, image).unwrap().ignore();
        table.unmap(&mut arena, last).unwrap().ignore();
        arena.reclaim();
        assert_eq!(arena.in_use(), 1);
    }
}

#[test]
fn accessed_and_dirty_bits_hinder_no_merge() {
    let mut arena = Arena::new(16);
    let mut table = PageTable::<Host>::new(&mut arena, 4, Limits::all(LeafSize::Page2M)).unwrap();
    let data = Attributes::new(Access::READ | Access::WRITE, MemoryType::WriteBack);
    let range = |start, size| VirtualRange::new(HostVirtual::new(start), size).unwrap();
    let mut map = |arena: &mut Arena, start, size| {
        table
            .map(arena, range(start, size), HostPhysical::new(start), data)
            .unwrap()
            .ignore();
    };
    map(&mut arena, 0, M2 - K4);
    // A processor has used some of the pages.
    let pages = arena
        .entries
        .iter()
        .flatten()
        .find(|table| table[5].load(Ordering::Relaxed) & ADDRESS_MASK == 5 * K4)
        .unwrap();
    pages[3].fetch_or(Host::HARDWARE_BITS, Ordering::Relaxed);
    pages[4].fetch_or(1 << 5, Ordering::Relaxed);
    map(&mut arena, M2 - K4, K4);
    arena.reclaim();
    check_structure(&table, &arena, true);
    let found = table.lookup(&arena, HostVirtual::ZERO).unwrap();
    assert_eq!(found.size, LeafSize::Page2M);
}

#[test]
fn far_windows_are_installed_once_by_any_number_of_processors() {
    let mut arena = Arena::new(40);
    let mut table = PageTable::<Ept>::new(&mut arena, 4, Limits::all(LeafSize::Page1G)).unwrap();
    let ram = Attributes::new(Access::all(), MemoryType::WriteBack);
    table
        .map(&mut arena, guest_range(0, G1), HostPhysical::ZERO, ram)
        .unwrap()
        .ignore();
    let first = BASE + 20 * K4;
    for frame in 0..6 {
        arena.take(first + frame * K4);
    }
    let reserve = FarReserve::new(&arena, HostPhysical::new(first), 6);
    assert_eq!(reserve.available(), 6);
    let far = Attributes::new(Access::READ | Access::WRITE, MemoryType::Uncacheable);
    let install = |address: u64, size| {
        let guest = GuestPhysical::new(address);
        table.install_far(
            &arena,
            &reserve,
            guest,
            HostPhysical::new(address),
            size,
            far,
        )
    };
    // What is mapped stays.
    assert_eq!(install(0x1234, LeafSize::Page2M), Ok(Far::Present));
    assert_eq!(install(G1 / 2, LeafSize::Page1G), Ok(Far::Present));
    assert_eq!(reserve.available(), 6);
    let windows = [
        (1u64 << 45, LeafSize::Page1G),
        ((1 << 45) + G1, LeafSize::Page2M),
        ((1 << 45) + G1 + M2 + 0x123, LeafSize::Page2M),
        ((1 << 45) + 2 * G1, LeafSize::Page4K),
    ];
    let installed = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for (address, size) in windows {
                    if install(address, size) == Ok(Far::Installed) {
                        installed.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    assert_eq!(installed.load(Ordering::Relaxed), 4);
    // One directory of pointers, two directories, one table of pages.
    assert_eq!(reserve.available(), 2);
    for (address, size) in windows {
        assert_eq!(
            table.lookup(&arena, GuestPhysical::new(address)),
            Some(Translation {
                physical: HostPhysical::new(address),
                attributes: far,
                size,
                is_hole: false
            })
        );
    }
    assert_eq!(install(1 << 46, LeafSize::Page2M), Ok(Far::Installed));
    assert_eq!(reserve.available(), 0);
    assert_eq!(install(1 << 47, LeafSize::Page2M), Err(OutOfFrames));
    assert_eq!(install(1 << 50, LeafSize::Page1G), Ok(Far::Present));
    table.destroy(&mut arena);
    arena.reclaim();
    assert_eq!(arena.in_use(), 0);
}

/// Looks at a page table before each access that the engine makes: what another processor could see then.
struct Watched {
    arena: Arena,
    /// The page table, once it is in use, with addresses that must lead to themselves all the while.
    watch: Option<(PageTable<Ept>, Vec<u64>)>,
    looks: Cell<u64>,
}

impl TableMemory for Watched {
    fn entries(&self, table: HostPhysical) -> &Entries {
        if let Some((watched, addresses)) = &self.watch {
            for address in addresses {
                let found = watched
                    .lookup(&self.arena, GuestPhysical::new(*address))
                    .unwrap();
                assert_eq!(found.physical.as_u64(), *address);
                assert!(!found.is_hole);
                self.looks.set(self.looks.get() + 1);
            }
        }
        self.arena.entries(table)
    }
}

impl Tables for Watched {
    fn allocate(&mut self) -> Result<HostPhysical, OutOfFrames> {
        self.arena.allocate()
    }

    fn free(&mut self, frame: HostPhysical) {
        self.arena.free(frame);
    }

    fn retire(&mut self, frame: HostPhysical) {
        self.arena.retire(frame);
    }
}

#[test]
fn processors_never_see_a_change_half_done() {
    let ram = Attributes::new(Access::all(), MemoryType::WriteBack);
    for (first, size) in [
        (M2, M2),
        (M2 + 3 * K4, M2),
        (G1 - M2, 2 * M2),
        (3 * K4, K4),
        (5 * M2, 2 * M2 - K4),
        (G1, G1),
    ] {
        let mut memory = Watched {
            arena: Arena::new(40),
            watch: None,
            looks: Cell::new(0),
        };
        let mut table = new_table(&mut memory.arena, Limits::all(LeafSize::Page1G));
        let all = guest_range(0, 3 * G1);
        table
            .map(&mut memory, all, HostPhysical::ZERO, ram)
            .unwrap()
            .ignore();
        // Everything around the range, near and far.
        let mut addresses = std::vec![first - 1, first + size, 0, 3 * G1 - 1];
        addresses.extend([first.wrapping_sub(M2), first + size + M2, G1 / 2]);
        addresses.retain(|address| address.wrapping_sub(first) >= size && *address < 3 * G1);
        let watched = PageTable {
            root: table.root,
            levels: table.levels,
            limits: table.limits,
            holes: None,
            format: PhantomData,
        };
        memory.watch = Some((watched, addresses));
        let range = guest_range(first, size);
        let read_only = Attributes::new(Access::READ, MemoryType::Uncacheable);
        for _ in 0..2 {
            table.map_hole(&mut memory, range).unwrap().ignore();
            table
                .map(&mut memory, range, HostPhysical::new(first), read_only)
                .unwrap()
                .ignore();
            table.unmap(&mut memory, range).unwrap().ignore();
            table
                .map(&mut memory, range, HostPhysical::new(first), ram)
                .unwrap()
                .ignore();
        }
        // With the whole mapped as at first, the range itself may be watched, too, while a change says nothing new.
        if let Some((_, addresses)) = &mut memory.watch {
            addresses.push(first);
        }
        table
            .map(&mut memory, range, HostPhysical::new(first), ram)
            .unwrap()
            .ignore();
        assert!(memory.looks.get() > 0);
    }
}
