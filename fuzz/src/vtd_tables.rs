//! The hypervisor's builder of VT-d tables, against a walker that knows nothing but the specification.
//!
//! The bytes are a sequence of changes: memory of domains, devices of domains, interrupts of devices. After each, what an
//! IOMMU would find is what a simple model says, no less and no more; in the end all frames are back.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use gaol_hypervisor::iommu::vtd::definitions::{DomainId, SourceId};
use gaol_hypervisor::iommu::vtd::devices::{AttachError, Devices};
use gaol_hypervisor::iommu::vtd::domain::{Abilities, Domain, Width};
use gaol_hypervisor::iommu::vtd::interrupts::{ENTRIES_PER_PAGE, Interrupt, Interrupts};
use gaol_hypervisor::memory::address::{GuestPhysical, GuestRange, HostPhysical};
use gaol_hypervisor::memory::frames::OutOfFrames;
use gaol_hypervisor::memory::page_table::{Entries, LeafSize, MapError, TableMemory, Tables};

const PAGE: u64 = 4096;
/// Changes that are made of one input at the most.
const MOST_CHANGES: usize = 64;
const DOMAINS: usize = 3;

/// Frames from the second page of memory on, each in use or not.
struct Arena(Vec<(bool, Box<Entries>)>);

impl Arena {
    fn new(frames: usize) -> Self {
        let frame = || (false, Box::new([const { AtomicU64::new(u64::MAX) }; 512]));
        Self((0..frames).map(|_| frame()).collect())
    }

    fn index(frame: HostPhysical) -> usize {
        usize::try_from(frame.as_u64() / PAGE - 1).expect("an index")
    }

    fn word(&self, address: u64) -> u64 {
        let frame = HostPhysical::new(address & !(PAGE - 1));
        let word = usize::try_from(address % PAGE / 8).expect("an index");
        self.entries(frame)[word].load(Ordering::Relaxed)
    }

    fn in_use(&self) -> usize {
        self.0.iter().filter(|(used, _)| *used).count()
    }
}

impl TableMemory for Arena {
    fn entries(&self, table: HostPhysical) -> &Entries {
        let (used, entries) = &self.0[Self::index(table)];
        assert!(*used, "an entry leads to a frame that is free");
        entries
    }
}

impl Tables for Arena {
    fn allocate(&mut self) -> Result<HostPhysical, OutOfFrames> {
        let index = self
            .0
            .iter()
            .position(|(used, _)| !used)
            .ok_or(OutOfFrames)?;
        self.0[index].0 = true;
        Ok(HostPhysical::new((index as u64 + 1) * PAGE))
    }

    fn free(&mut self, frame: HostPhysical) {
        let entry = &mut self.0[Self::index(frame)];
        assert!(entry.0, "a frame is given back twice");
        entry.0 = false;
        // Whoever still reads it reads garbage.
        for word in entry.1.iter() {
            word.store(u64::MAX, Ordering::Relaxed);
        }
    }

    fn retire(&mut self, frame: HostPhysical) {
        self.free(frame);
    }
}

/// Pages that lead to as many others, one behind the other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Extent {
    page: u64,
    pages: u64,
    to: u64,
    writable: bool,
}

/// What a domain's devices reach, in the order of their addresses, neighbours joined.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
struct Reach(Vec<Extent>);

impl Reach {
    /// Adds what lies behind all the others.
    fn push(&mut self, extent: Extent) {
        if let Some(last) = self.0.last_mut()
            && last.page + last.pages == extent.page
            && last.to + last.pages == extent.to
            && last.writable == extent.writable
        {
            last.pages += extent.pages;
        } else {
            self.0.push(extent);
        }
    }

    /// Whether a page of the range leads elsewhere with this content.
    fn loses(&self, page: u64, pages: u64, content: Option<(u64, bool)>) -> bool {
        let overlap = |held: &&Extent| {
            pages != 0 && held.page < page + pages && page < held.page + held.pages
        };
        self.0.iter().filter(overlap).any(|held| {
            let same = |(to, writable): (u64, bool)| {
                held.writable == writable && held.to + page == to + held.page
            };
            !content.is_some_and(same)
        })
    }

    /// The same with other content, or none, in a range.
    fn with(&self, page: u64, pages: u64, content: Option<(u64, bool)>) -> Self {
        let end = page + pages;
        let mut parts = Vec::new();
        for held in &self.0 {
            let held_end = held.page + held.pages;
            if held.page < page {
                let pages = held.pages.min(page - held.page);
                parts.push(Extent { pages, ..*held });
            }
            if held_end > end {
                let skipped = end.saturating_sub(held.page);
                parts.push(Extent {
                    page: held.page + skipped,
                    pages: held.pages - skipped,
                    to: held.to + skipped,
                    ..*held
                });
            }
        }
        parts.extend(content.map(|(to, writable)| Extent {
            page,
            pages,
            to,
            writable,
        }));
        parts.sort_by_key(|extent| extent.page);
        let mut reach = Self::default();
        parts.into_iter().for_each(|extent| reach.push(extent));
        reach
    }
}

/// All leaves below a second-level table, which translates pages from `page` on.
fn leaves(arena: &Arena, table: u64, level: u64, page: u64, largest: u64, found: &mut Reach) {
    let entries = arena.entries(HostPhysical::new(table));
    for (number, entry) in (0..).zip(entries) {
        let entry = entry.load(Ordering::Relaxed);
        if entry & 3 == 0 {
            continue;
        }
        assert_eq!(entry & 1, 1, "write without read: {entry:#x}");
        assert_eq!(
            entry & !0x001f_ffff_ffff_f083,
            0,
            "reserved bits: {entry:#x}"
        );
        let pages = 1 << (9 * (level - 1));
        let start = page + number * pages;
        let to = (entry & 0x000f_ffff_ffff_f000) / PAGE;
        let writable = entry & 2 != 0;
        if level == 1 || entry & 0x80 != 0 {
            assert!(
                level == 1 || level <= largest,
                "a leaf that the IOMMU does not know"
            );
            assert_eq!(to % pages, 0, "reserved bits of a large leaf: {entry:#x}");
            found.push(Extent {
                page: start,
                pages,
                to,
                writable,
            });
        } else {
            assert!(writable, "a table forbids what its leaves may permit");
            leaves(arena, to * PAGE, level - 1, start, largest, found);
        }
    }
}

/// All devices that may do DMA: domain, root of its tables, levels.
fn contexts(arena: &Arena, root: u64) -> BTreeMap<u16, (u16, u64, u64)> {
    let mut found = BTreeMap::new();
    for bus in 0..256 {
        let entry = arena.word(root + bus * 16);
        assert_eq!(
            arena.word(root + bus * 16 + 8),
            0,
            "reserved half of a root entry"
        );
        if entry & 1 == 0 {
            assert_eq!(entry, 0, "a root entry that is not present");
            continue;
        }
        assert_eq!(entry & 0xffe, 0, "reserved bits: {entry:#x}");
        let mut any = false;
        let table = arena.entries(HostPhysical::new(entry & !0xfff));
        for (function, pair) in (0..).zip(table.as_chunks::<2>().0) {
            let [low, high] = pair.each_ref().map(|word| word.load(Ordering::Relaxed));
            if low & 1 == 0 {
                assert_eq!((low, high), (0, 0), "a context entry that is not present");
                continue;
            }
            any = true;
            assert_eq!(low & 0xffe, 0, "another kind of translation: {low:#x}");
            assert_eq!(high & !0x00ff_ff07, 0, "reserved bits: {high:#x}");
            let source = u16::try_from(bus << 8 | function).expect("a source id");
            found.insert(source, ((high >> 8) as u16, low & !0xfff, (high & 7) + 2));
        }
        assert!(any, "an empty context table is kept");
    }
    found
}

/// Takes numbers from the input, 0 behind its end.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    fn word(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    /// A page number: small, or around a multiple of what a large leaf maps.
    fn page(&mut self) -> u64 {
        let (byte, near) = (self.byte(), u64::from(self.byte()));
        let unit = [1, 512, 512 * 512, 1 << 27][usize::from(byte & 3)];
        (u64::from(byte >> 2) * unit)
            .saturating_add(near % 16)
            .saturating_sub(near / 16)
    }
}

struct State {
    arena: Arena,
    abilities: Abilities,
    devices: Devices,
    domains: Vec<(Domain, Reach)>,
    attached: BTreeMap<u16, usize>,
    interrupts: Interrupts,
    x2apic: bool,
    entries: BTreeMap<u16, Interrupt>,
}

/// Any bytes as a sequence of changes.
pub fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    let setup = input.byte();
    let frames = if setup & 0x20 == 0 {
        96
    } else {
        6 + usize::from(setup & 7)
    };
    let mut arena = Arena::new(frames);
    let interrupt_page = arena.allocate().expect("the first frame");
    for word in arena.entries(interrupt_page) {
        word.store(0, Ordering::Relaxed);
    }
    let width = if setup & 1 == 0 {
        Width::FourLevels
    } else {
        Width::ThreeLevels
    };
    let largest = [
        LeafSize::Page4K,
        LeafSize::Page2M,
        LeafSize::Page1G,
        LeafSize::Page1G,
    ][usize::from(setup >> 1 & 3)];
    let abilities = Abilities {
        width,
        largest,
        caching_mode: setup & 0x40 != 0,
    };
    let x2apic = setup & 0x10 != 0;
    let devices = Devices::new(&mut arena).expect("the second frame");
    let mut domains = Vec::new();
    for number in 0..DOMAINS {
        let id = DomainId::new(number as u16 + 1, 16).expect("a domain");
        let domain = Domain::new(&mut arena, id, abilities).expect("one of the first frames");
        domains.push((domain, Reach::default()));
    }
    let interrupts = Interrupts::new(interrupt_page, ENTRIES_PER_PAGE, x2apic).expect("a table");
    let mut state = State {
        arena,
        abilities,
        devices,
        domains,
        attached: BTreeMap::new(),
        interrupts,
        x2apic,
        entries: BTreeMap::new(),
    };
    for _ in 0..MOST_CHANGES {
        if input.0.is_empty() {
            break;
        }
        state.change(&mut input);
        state.check();
    }
    state.end();
}

impl State {
    fn change(&mut self, input: &mut Input<'_>) {
        let kind = input.byte();
        let domain = usize::from(kind >> 3) % DOMAINS;
        match kind & 7 {
            0..=2 => self.map(domain, kind & 7, input),
            3 => self.attach(domain, SourceId(input.word())),
            4 => self.detach(domain, SourceId(input.word())),
            5 => {
                // A device that is attached, so that detaching is no matter of luck.
                let nth = usize::from(input.byte());
                if let Some(source) = self.attached.keys().nth(nth % self.attached.len().max(1)) {
                    self.detach(domain, SourceId(*source));
                }
            }
            6 => self.set_interrupt(input),
            _ => self.clear_interrupt(input),
        }
    }

    fn map(&mut self, number: usize, kind: u8, input: &mut Input<'_>) {
        let (page, pages, to) = (input.page(), input.page(), input.page());
        let (domain, reach) = &mut self.domains[number];
        let Some(range) = GuestRange::new(GuestPhysical::new(page * PAGE), pages * PAGE) else {
            return;
        };
        let (result, content) = if kind == 2 {
            (domain.unmap(&mut self.arena, range), None)
        } else {
            let (physical, writable) = (HostPhysical::new(to * PAGE), kind == 1);
            let result = domain.map(&mut self.arena, range, physical, writable);
            (result, Some((to, writable)))
        };
        let end = 1u64 << (9 * self.abilities.width as u32);
        match result {
            Ok(invalidation) => {
                assert!(
                    pages == 0 || page + pages <= end,
                    "beyond what the tables translate"
                );
                let changed = reach.with(page, pages, content.filter(|_| pages != 0));
                // What was there before, and is not the same now, may be known.
                let known = reach.loses(page, pages, content);
                let must = known || self.abilities.caching_mode && changed != *reach;
                assert!(
                    invalidation.is_needed() || !must,
                    "a change that nobody is told of"
                );
                *reach = changed;
            }
            Err(MapError::OutOfReach) => assert!(page + pages > end || to + pages > 1 << 40),
            Err(MapError::OutOfFrames) => {}
            Err(error) => panic!("{error:?} for whole pages"),
        }
    }

    fn attach(&mut self, number: usize, source: SourceId) {
        let known = self.attached.get(&source.0).copied();
        let domain = &self.domains[number].0;
        match self.devices.attach(&mut self.arena, source, domain) {
            Ok(invalidation) => {
                assert!(invalidation.is_needed() && known.is_none());
                self.attached.insert(source.0, number);
            }
            Err(AttachError::Attached) => assert!(known.is_some()),
            Err(error) => assert_eq!(error, AttachError::OutOfFrames),
        }
    }

    fn detach(&mut self, number: usize, source: SourceId) {
        let id = self.domains[number].0.id();
        let result = self.devices.detach(&mut self.arena, source, id);
        assert_eq!(
            result.is_ok(),
            self.attached.get(&source.0) == Some(&number)
        );
        if result.is_ok_and(|invalidation| invalidation.is_needed()) {
            self.attached.remove(&source.0);
        }
    }

    fn set_interrupt(&mut self, input: &mut Input<'_>) {
        let index = input.word() & 0x1ff;
        let flags = input.byte();
        let interrupt = Interrupt {
            source: SourceId(u16::from(flags >> 4)),
            vector: input.byte(),
            destination: u32::from(input.word()) << if flags & 2 == 0 { 0 } else { 16 },
            level_triggered: flags & 1 != 0,
            nmi: false,
        };
        let is_own = |apic: u32| apic.is_multiple_of(2);
        let result = self.interrupts.set(&self.arena, index, interrupt, is_own);
        let may = u32::from(index) < ENTRIES_PER_PAGE
            && !self.entries.contains_key(&index)
            && interrupt.vector >= 16
            && is_own(interrupt.destination)
            && (self.x2apic || interrupt.destination < 0xff);
        assert_eq!(result.is_ok(), may, "{interrupt:?} at {index}: {result:?}");
        if may {
            self.entries.insert(index, interrupt);
        }
    }

    fn clear_interrupt(&mut self, input: &mut Input<'_>) {
        let (index, source) = (input.word() & 0x1ff, SourceId(u16::from(input.byte() >> 4)));
        let result = self.interrupts.clear(&self.arena, index, source);
        let may = self
            .entries
            .get(&index)
            .is_some_and(|held| held.source == source);
        assert_eq!(result.is_ok(), may);
        if may {
            self.entries.remove(&index);
        }
    }

    /// What an IOMMU finds is what the model says.
    fn check(&self) {
        let levels = self.abilities.width as u64;
        for (domain, reach) in &self.domains {
            let mut found = Reach::default();
            let root = domain.root().as_u64();
            leaves(
                &self.arena,
                root,
                levels,
                0,
                self.abilities.largest as u64,
                &mut found,
            );
            assert_eq!(found, *reach);
        }
        let expected: BTreeMap<u16, (u16, u64, u64)> = self
            .attached
            .iter()
            .map(|(source, number)| {
                let domain = &self.domains[*number].0;
                (
                    *source,
                    (domain.id().number(), domain.root().as_u64(), levels),
                )
            })
            .collect();
        assert_eq!(
            contexts(&self.arena, self.devices.root().as_u64()),
            expected
        );
        let table = self.interrupts.address_register() & !0xfff;
        for index in 0..ENTRIES_PER_PAGE as u16 {
            let at = table + u64::from(index) * 16;
            let expected = self.entries.get(&index).map_or([0; 2], |held| {
                let shift = if self.x2apic { 32 } else { 40 };
                [
                    1 | u64::from(held.level_triggered) << 4
                        | u64::from(held.vector) << 16
                        | u64::from(held.destination) << shift,
                    u64::from(held.source.0) | 1 << 18,
                ]
            });
            assert_eq!([self.arena.word(at), self.arena.word(at + 8)], expected);
        }
    }

    /// All frames come back.
    fn end(mut self) {
        self.devices.destroy(&mut self.arena);
        for (domain, _) in self.domains {
            domain.destroy(&mut self.arena).ignore();
        }
        // The page of the interrupts is its owner's.
        assert_eq!(self.arena.in_use(), 1);
    }
}

/// Inputs to begin with: memory in large and small leaves; devices of several buses and interrupts; too few frames.
#[must_use]
pub fn seeds() -> [(&'static str, Vec<u8>); 3] {
    let memory = vec![
        0x04,
        1,
        4 << 2 | 2,
        0,
        1 << 2 | 2,
        0,
        8 << 2 | 2,
        0, // 1 GiB in one leaf
        2,
        4 << 2 | 2,
        3,
        1 << 2,
        0,
        0,
        0, // one page of it goes
        1,
        4 << 2 | 2,
        3,
        1 << 2,
        0,
        8 << 2 | 2,
        3, // and comes back
        8,
        3 << 2 | 1,
        0x20,
        5 << 2 | 1,
        9,
        7 << 2,
        1, // another domain, not aligned
        3,
        0x10,
        0,
        2,
        0,
        0,
        63 << 2 | 2,
        0,
    ];
    let devices = vec![
        0x11, 3, 0x10, 0, 11, 0x11, 0, 19, 0x00, 3, 3, 0x10, 0, 4, 0x10, 0, 5, 0, 13,
        1, // come and go
        6, 3, 0, 0x31, 0x40, 4, 0, 6, 3, 0, 0x31, 0x41, 2, 0, 7, 3, 0, 0x20, 7, 3, 0,
        0x30, // interrupts
        6, 0, 1, 0, 0x40, 4, 0, 6, 9, 0, 0x12, 0x50, 2, 0, 6, 10, 0, 0, 5, 4, 0,
    ];
    let few_frames = vec![
        0x22,
        1,
        0,
        1,
        5 << 2,
        0,
        1 << 2,
        0,
        1,
        1 << 2 | 3,
        0,
        1 << 2,
        0,
        9 << 2,
        0,
        3,
        0,
        1,
        3,
        0,
        2,
        3,
        0,
        3,
        2,
        0,
        1,
        5 << 2,
        0,
        0,
        0,
        3,
        0,
        4,
        5,
        0,
        5,
        1,
    ];
    [
        ("memory", memory),
        ("devices-and-interrupts", devices),
        ("too-few-frames", few_frames),
    ]
}
