//! Redirected holes: for the engine they stay holes, for the guest they are writable.

use super::*;

/// Frames of a [`Scratch`].
const SCRATCH_FRAMES: usize = 3;

#[derive(Clone, Copy, Debug)]
enum Step {
    Change(Change),
    /// A write to the address.
    Redirect(u64),
}

/// What an address leads to; the holes that a write has redirected are told from the others.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Shown {
    Nothing,
    Hole,
    Scratch,
    Memory(u64, Attributes),
}

/// What the model did: a change, or the extent of a hole that was redirected.
#[derive(Clone, Copy, Debug)]
enum Event {
    Change(Change),
    Redirected { start: u64, size: u64 },
}

fn model(events: &[Event], address: u64) -> Shown {
    let mut shown = Shown::Nothing;
    for event in events {
        match *event {
            Event::Change(change) if address.wrapping_sub(change.start) < change.size => {
                shown = match (change.held, shown) {
                    (Held::Nothing, _) => Shown::Nothing,
                    (Held::Memory(physical, attributes), _) => {
                        Shown::Memory(physical + (address - change.start), attributes)
                    }
                    // A hole stays the hole that it is.
                    (Held::Hole, Shown::Hole | Shown::Scratch) => shown,
                    (Held::Hole, _) => Shown::Hole,
                };
            }
            Event::Redirected { start, size } if address.wrapping_sub(start) < size => {
                shown = Shown::Scratch;
            }
            _ => {}
        }
    }
    shown
}

fn shown(table: &PageTable<Ept>, arena: &Arena, scratch: HostPhysical, address: u64) -> Shown {
    let Some(translation) = table.lookup(arena, GuestPhysical::new(address)) else {
        return Shown::Nothing;
    };
    if !translation.is_hole {
        return Shown::Memory(translation.physical.as_u64(), translation.attributes);
    }
    assert_eq!(translation.physical.as_u64() % K4, address % K4);
    assert_eq!(translation.attributes.memory_type, MemoryType::WriteBack);
    if translation.physical.as_u64() & !(K4 - 1) == scratch.as_u64() {
        assert_eq!(
            translation.attributes.access,
            Access::READ | Access::WRITE,
            "a guest must never execute what it wrote there"
        );
        Shown::Scratch
    } else {
        assert_eq!(translation.physical.as_u64() & !(K4 - 1), HOLE_PAGE);
        assert_eq!(translation.attributes.access, Access::READ);
        Shown::Hole
    }
}

/// Changes, and writes mostly near their ends.
fn steps() -> impl Strategy<Value = Vec<Step>> {
    let write = (
        any::<prop::sample::Index>(),
        prop_oneof![
            Just(0u64),
            Just(K4),
            Just(M2),
            Just(M2 + K4 + 5),
            Just(G1 - 1)
        ],
    );
    prop::collection::vec((change(), prop::collection::vec(write, 0..4)), 1..10).prop_map(
        |rounds| {
            let changes: Vec<Change> = rounds.iter().map(|(change, _)| *change).collect();
            rounds
                .into_iter()
                .flat_map(|(change, writes)| {
                    let writes: Vec<Step> = writes
                        .into_iter()
                        .map(|(near, offset)| Step::Redirect(near.get(&changes).start + offset))
                        .collect();
                    core::iter::once(Step::Change(change)).chain(writes)
                })
                .collect()
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn redirected_holes_stay_holes(limits in limits(), steps in steps()) {
        let mut arena = Arena::new(PLENTY);
        let mut table = new_table(&mut arena, limits);
        let scratch = Scratch::new::<Ept, _>(&mut arena).unwrap();
        let page = scratch.page;
        let first_figure = arena.in_use();
        let changes: Vec<Change> = steps.iter().filter_map(|step| match step {
            Step::Change(change) => Some(*change),
            Step::Redirect(_) => None,
        }).collect();
        let known = samples(&changes);
        let mut events = Vec::new();
        for step in steps {
            match step {
                Step::Change(change) => {
                    let before: Vec<Shown> =
                        known.iter().map(|address| model(&events, *address)).collect();
                    events.push(Event::Change(change));
                    let flush = make(&mut table, &mut arena, change).unwrap();
                    let same = known.iter().zip(before).all(|(address, before)| {
                        before == Shown::Nothing || before == model(&events, *address)
                    });
                    prop_assert!(flush.is_needed() || same, "a flush was forgotten");
                    arena.reclaim();
                }
                Step::Redirect(address) => {
                    let in_use = arena.in_use();
                    let found = table.lookup(&arena, GuestPhysical::new(address));
                    let hole = found.filter(|translation| translation.is_hole);
                    let done =
                        table.alias().redirect_hole(&arena, GuestPhysical::new(address), scratch);
                    prop_assert_eq!(done, hole.is_some());
                    if let Some(hole) = hole {
                        let size = hole.size.bytes();
                        events.push(Event::Redirected { start: address & !(size - 1), size });
                        prop_assert_eq!(shown(&table, &arena, page, address), Shown::Scratch);
                    }
                    prop_assert_eq!(arena.in_use(), in_use);
                }
            }
            for address in &known {
                prop_assert_eq!(
                    shown(&table, &arena, page, *address),
                    model(&events, *address),
                    "at {:#x}",
                    address
                );
            }
            check_structure_beside(&table, &arena, false, SCRATCH_FRAMES);
        }
        table.unmap(&mut arena, guest_range(0, 1 << 40)).unwrap().ignore();
        arena.reclaim();
        prop_assert_eq!(arena.in_use(), first_figure);
        table.destroy(&mut arena);
        arena.reclaim();
        prop_assert_eq!(arena.in_use(), SCRATCH_FRAMES);
    }

    /// A cell's memory goes back to the root although the root has written to the hole, and nobody has a frame to give.
    #[test]
    fn the_way_back_from_redirected_holes_needs_no_frames(
        limits in limits(),
        (start, size) in extent().prop_filter("below the end", |extent| extent.0 + extent.1 <= 4 * G1),
        writes in prop::collection::vec(any::<prop::sample::Index>(), 1..6),
    ) {
        let mut arena = Arena::new(PLENTY);
        let mut table = new_table(&mut arena, limits);
        let scratch = Scratch::new::<Ept, _>(&mut arena).unwrap();
        let attributes = Attributes::new(Access::all(), MemoryType::WriteBack);
        table
            .map(&mut arena, guest_range(0, 4 * G1), HostPhysical::ZERO, attributes)
            .unwrap()
            .ignore();
        let first_figure = arena.in_use();
        table.map_hole(&mut arena, guest_range(start, size)).unwrap().ignore();
        for write in writes {
            let address = start + write.index((size / K4) as usize) as u64 * K4;
            prop_assert!(table.redirect_hole(&arena, GuestPhysical::new(address), scratch));
        }
        let aside = core::mem::take(&mut arena.free);
        table
            .map(&mut arena, guest_range(start, size), HostPhysical::new(start), attributes)
            .unwrap()
            .ignore();
        arena.free.extend(aside);
        arena.reclaim();
        prop_assert_eq!(arena.in_use(), first_figure);
        for address in [start, start + size / 2, start + size - 1] {
            prop_assert_eq!(
                shown(&table, &arena, scratch.page, address),
                Shown::Memory(address, attributes)
            );
        }
    }
}

#[test]
fn scratch_takes_three_frames_or_none() {
    for frames in 0..SCRATCH_FRAMES {
        let mut arena = Arena::new(frames as u64);
        assert!(Scratch::new::<Ept, _>(&mut arena).is_err());
        assert_eq!(arena.in_use(), 0, "of {frames} frames");
    }
    let mut arena = Arena::new(SCRATCH_FRAMES as u64);
    let scratch = Scratch::new::<Ept, _>(&mut arena).unwrap();
    assert_eq!(arena.in_use(), SCRATCH_FRAMES);
    let clean = arena.entries(scratch.page).iter();
    assert!(
        clean
            .into_iter()
            .all(|word| word.load(Ordering::Relaxed) == 0)
    );
}

#[test]
fn what_the_table_does_not_reach_is_no_hole() {
    let mut arena = Arena::new(PLENTY);
    let mut table = new_table(&mut arena, Limits::all(LeafSize::Page1G));
    let scratch = Scratch::new::<Ept, _>(&mut arena).unwrap();
    table
        .map_hole(&mut arena, guest_range(0, G1))
        .unwrap()
        .ignore();
    // Bit 48 picks no entry of four levels.
    let beyond = GuestPhysical::new(1 << 48);
    assert!(!table.redirect_hole(&arena, beyond, scratch));
    assert_eq!(
        shown(&table, &arena, scratch.page, 0),
        Shown::Hole,
        "another address was redirected"
    );
}
