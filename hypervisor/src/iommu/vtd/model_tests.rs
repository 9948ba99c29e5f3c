//! All of it against a model of a unit that remembers what it has read until it is told to forget, and sees tables only as
//! far as their cache lines were flushed: what emulators hide.

extern crate std;
use std::boxed::Box;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::vec;
use std::vec::Vec;

use gaol_abi::config::{IOMMU_INCLUDES_ALL, IOMMU_SOURCE_IO_APIC, IommuSource, IommuUnit};

use super::definitions::{Kind, command, fault_status, register};
use super::faults::STORM;
use super::fleet::{Fleet, Place, Refused};
use super::hardware::Hardware;
use super::unit::UnitError;
use crate::device::interrupt_command::Processor;
use crate::device::io_apic::entry::Entry;
use crate::device::io_apic::judge::{Receiver, Receivers, Remapping};
use crate::device::pci::FunctionId;
use crate::memory::address::HostPhysical;
use crate::memory::frames::OutOfFrames;
use crate::memory::page_table::{Entries, TableMemory, Tables};

const PAGE: u64 = 4096;
const BASE: u64 = 0xfed9_0000;
/// The hypervisor's frames.
const POOL: u64 = 0x3000_0000;
/// Linux' queue, its interrupt table, and a word that it waits at.
const QUEUE: u64 = 0x10_0000;
const TABLE: u64 = 0x20_0000;
const WORD: u64 = 0x30_0000;
/// A cell's memory.
const CELL: u64 = 0x2000_0000;
const CELL_SIZE: u64 = 0x20_0000;
const DISK: u16 = 0x00fa;
const CARD: FunctionId = FunctionId {
    segment: 0,
    function: 0x0018,
};

/// As QEMU has it: 39 bits, 2 MiB and 1 GiB leaves, one fault register at 0x220; not coherent.
const CAPABILITY: u64 = 0x00d2_008c_2226_0206;
const EXTENDED: u64 = 0x00f0_0f4a;

struct Model {
    frames: Vec<(Cell<bool>, Box<Entries>)>,
    /// The frames as memory has them, behind the caches.
    flushed: RefCell<Vec<[u64; 512]>>,
    root_memory: RefCell<BTreeMap<u64, u64>>,
    registers: RefCell<BTreeMap<u64, u64>>,
    root_table: Cell<u64>,
    interrupt_table: Cell<u64>,
    contexts: RefCell<BTreeMap<u16, [u64; 2]>>,
    translations: RefCell<BTreeMap<(u16, u64), u64>>,
    interrupts: RefCell<BTreeMap<u16, [u64; 2]>>,
    time: Cell<u64>,
    is_deaf: Cell<bool>,
}

impl Model {
    fn new(frames: usize) -> Self {
        let frame = || {
            let words = Box::new([const { AtomicU64::new(u64::MAX) }; 512]);
            (Cell::new(false), words)
        };
        let model = Self {
            frames: (0..frames).map(|_| frame()).collect(),
            flushed: RefCell::new(vec![[u64::MAX; 512]; frames]),
            root_memory: RefCell::default(),
            registers: RefCell::default(),
            root_table: Cell::new(0),
            interrupt_table: Cell::new(TABLE | 0xf),
            contexts: RefCell::default(),
            translations: RefCell::default(),
            interrupts: RefCell::default(),
            time: Cell::new(0),
            is_deaf: Cell::new(false),
        };
        // As Linux leaves it: its queue in the middle, interrupts remapped, none of the format of old.
        for (at, value) in [
            (register::CAPABILITY, CAPABILITY),
            (register::EXTENDED_CAPABILITY, EXTENDED),
            (
                register::STATUS,
                (command::QUEUE | command::INTERRUPTS | command::SET_INTERRUPT_TABLE).into(),
            ),
            (register::QUEUE_ADDRESS, QUEUE),
            (register::QUEUE_TAIL, 0x60),
            (register::QUEUE_HEAD, 0x60),
            (register::INTERRUPT_TABLE, TABLE | 0xf),
            (register::FAULT_DATA, 0x41),
            (register::FAULT_ADDRESS, 0xfee0_0000),
        ] {
            model.registers.borrow_mut().insert(at, value);
        }
        for word in 0..12 {
            model
                .root_memory
                .borrow_mut()
                .insert(QUEUE + word * 8, 0x1234_5678 + word);
        }
        model.set_entry(3, [0x0000_0000_0041_0001, 0x0004_0000 | u64::from(DISK)]);
        model
    }

    fn set_entry(&self, index: u64, words: [u64; 2]) {
        let mut memory = self.root_memory.borrow_mut();
        memory.insert(TABLE + index * 16, words[0]);
        memory.insert(TABLE + index * 16 + 8, words[1]);
    }

    fn register(&self, at: u64) -> u64 {
        self.registers.borrow().get(&at).copied().unwrap_or(0)
    }

    fn set(&self, at: u64, value: u64) {
        self.registers.borrow_mut().insert(at, value);
    }

    fn status(&self) -> u32 {
        self.register(register::STATUS) as u32
    }

    fn frame(at: u64) -> Option<(usize, usize)> {
        let offset = at.checked_sub(POOL)?;
        Some(((offset / PAGE) as usize, (offset % PAGE / 8) as usize))
    }

    /// What the unit reads of tables.
    fn table_word(&self, at: u64) -> u64 {
        match Self::frame(at) {
            Some((frame, word)) => {
                assert!(
                    self.frames[frame].0.get(),
                    "a table in a frame that is free"
                );
                self.flushed.borrow()[frame][word]
            }
            None => self.root_memory.borrow().get(&at).copied().unwrap_or(0),
        }
    }

    /// What the unit reads of its queue: through the caches.
    fn queue_word(&self, at: u64) -> u64 {
        match Self::frame(at) {
            Some((frame, word)) => self.frames[frame].1[word].load(Ordering::Relaxed),
            None => self.root_memory.borrow().get(&at).copied().unwrap_or(0),
        }
    }

    fn write_status(&self, at: u64, value: u32) {
        match Self::frame(at) {
            Some((frame, word)) => {
                self.frames[frame].1[word].store(value.into(), Ordering::Relaxed)
            }
            None => drop(self.root_memory.borrow_mut().insert(at, value.into())),
        }
    }

    fn run_queue(&self) {
        let start = self.register(register::QUEUE_ADDRESS) & !0xfff;
        while self.register(register::QUEUE_HEAD) != self.register(register::QUEUE_TAIL) {
            let head = self.register(register::QUEUE_HEAD);
            let words = [
                self.queue_word(start + head),
                self.queue_word(start + head + 8),
            ];
            let descriptor = super::definitions::InvalidationDescriptor(words);
            let of_domain = words[0] >> 16 & 0xffff;
            match (words[0] & 0xf, descriptor.kind()) {
                (1, _) if words[0] >> 4 & 3 == 1 => self.contexts.borrow_mut().clear(),
                (1, _) => drop(
                    self.contexts
                        .borrow_mut()
                        .remove(&((words[0] >> 32) as u16)),
                ),
                (2, _) if words[0] >> 4 & 3 == 1 => self.translations.borrow_mut().clear(),
                (2, _) => {
                    let mut known = self.translations.borrow_mut();
                    known.retain(|(domain, _), _| u64::from(*domain) != of_domain);
                }
                (_, Kind::AllInterrupts) => self.interrupts.borrow_mut().clear(),
                (_, Kind::Interrupts { index, .. }) => {
                    self.interrupts.borrow_mut().remove(&index);
                }
                (
                    _,
                    Kind::Wait {
                        status: Some((value, at)),
                    },
                ) => self.write_status(at, value),
                _ => {
                    let state = self.register(register::FAULT_STATUS);
                    let error = u64::from(fault_status::QUEUE_ERROR);
                    return self.set(register::FAULT_STATUS, state | error);
                }
            }
            self.set(register::QUEUE_HEAD, (head + 16) % PAGE);
        }
    }

    fn command(&self, value: u32) {
        let mut status = self.status();
        let switched =
            command::TRANSLATION | command::QUEUE | command::INTERRUPTS | command::COMPATIBILITY;
        if status & !value & command::QUEUE != 0 {
            assert_eq!(
                self.register(register::QUEUE_HEAD),
                self.register(register::QUEUE_TAIL)
            );
            self.set(register::QUEUE_HEAD, 0);
        }
        if value & !status & command::QUEUE != 0 {
            assert_eq!(
                self.register(register::QUEUE_TAIL),
                0,
                "a queue begins at its front"
            );
        }
        status = status & !switched | value & switched;
        if value & command::SET_ROOT_TABLE != 0 {
            self.root_table.set(self.register(register::ROOT_TABLE));
            status |= command::SET_ROOT_TABLE;
        }
        if value & command::SET_INTERRUPT_TABLE != 0 {
            self.interrupt_table
                .set(self.register(register::INTERRUPT_TABLE));
            status |= command::SET_INTERRUPT_TABLE;
        }
        self.set(register::STATUS, status.into());
    }

    /// Where DMA of a function goes.
    fn dma(&self, source: u16, address: u64) -> Option<u64> {
        if self.status() & command::TRANSLATION == 0 {
            return Some(address);
        }
        let known = self.contexts.borrow().get(&source).copied();
        let [low, high] = known.unwrap_or_else(|| {
            let root = self.root_table.get() + u64::from(source >> 8) * 16;
            let table = self.table_word(root);
            assert_eq!(table & 1, 1);
            let at = (table & !0xfff) + u64::from(source & 0xff) * 16;
            [self.table_word(at), self.table_word(at + 8)]
        });
        if low & 1 == 0 {
            return None;
        }
        self.contexts.borrow_mut().insert(source, [low, high]);
        assert_eq!(
            (low & 0xffe, high & 7),
            (0, 1),
            "three levels, no other bits"
        );
        let (domain, page) = ((high >> 8) as u16, address / PAGE);
        let known = self.translations.borrow().get(&(domain, page)).copied();
        if let Some(to) = known {
            return Some(to * PAGE + address % PAGE);
        }
        let mut table = low & !0xfff;
        for level in (1..=3u32).rev() {
            let shift = 12 + 9 * (level - 1);
            let entry = self.table_word(table + (address >> shift) % 512 * 8);
            if entry & 3 == 0 {
                return None;
            }
            let pointer = entry & 0x000f_ffff_ffff_f000;
            if level == 1 || entry & 0x80 != 0 {
                let to = pointer | address & ((1 << shift) - 1);
                self.translations
                    .borrow_mut()
                    .insert((domain, page), to / PAGE);
                return Some(to);
            }
            table = pointer;
        }
        None
    }

    /// The entry by which an interrupt of a function arrives.
    fn interrupt(&self, source: u16, index: u16) -> Option<u64> {
        let known = self.interrupts.borrow().get(&index).copied();
        let [low, high] = known.unwrap_or_else(|| {
            let at = (self.interrupt_table.get() & !0xfff) + u64::from(index) * 16;
            [self.table_word(at), self.table_word(at + 8)]
        });
        if low & 1 == 0 {
            return None;
        }
        self.interrupts.borrow_mut().insert(index, [low, high]);
        (high == 0x0004_0000 | u64::from(source)).then_some(low)
    }

    fn fault(&self, source: u16) {
        self.set(0x220, 0x5000);
        self.set(0x228, 1 << 63 | 5 << 32 | u64::from(source));
        self.set(register::FAULT_STATUS, fault_status::PENDING.into());
    }

    fn in_use(&self) -> usize {
        self.frames.iter().filter(|(used, _)| used.get()).count()
    }
}

impl Hardware for Model {
    fn read_32(&self, at: u64) -> u32 {
        let at = at - BASE;
        (self.register(
            at & !7
                | if at & 4 != 0 && self.registers.borrow().contains_key(&at) {
                    at & 7
                } else {
                    0
                },
        ) >> if at & 4 != 0 && !self.registers.borrow().contains_key(&at) {
            32
        } else {
            0
        }) as u32
    }

    fn write_32(&self, at: u64, value: u32) {
        match at - BASE {
            register::COMMAND if !self.is_deaf.get() => self.command(value),
            register::COMMAND => {}
            register::FAULT_STATUS => {
                let state = self.register(register::FAULT_STATUS);
                self.set(register::FAULT_STATUS, state & !u64::from(value));
            }
            0x22c => {
                self.set(0x228, 0);
                self.set(register::FAULT_STATUS, 0);
            }
            at => self.set(at, value.into()),
        }
    }

    fn read_64(&self, at: u64) -> u64 {
        self.register(at - BASE)
    }

    fn write_64(&self, at: u64, value: u64) {
        self.set(at - BASE, value);
        let is_on = self.status() & command::QUEUE != 0 && !self.is_deaf.get();
        if at - BASE == register::QUEUE_TAIL && is_on {
            self.run_queue();
        }
    }

    fn flush_line(&self, at: HostPhysical) {
        let (frame, word) = Self::frame(at.as_u64()).expect("a frame of the pool");
        let line = word & !7;
        for word in line..line + 8 {
            let value = self.frames[frame].1[word].load(Ordering::Relaxed);
            self.flushed.borrow_mut()[frame][word] = value;
        }
    }

    fn now(&self) -> u64 {
        self.time.set(self.time.get() + 1);
        self.time.get()
    }

    fn pause(&self) {}

    fn read_root(&self, at: u64) -> Option<u64> {
        Some(self.root_memory.borrow().get(&at).copied().unwrap_or(0))
    }

    fn write_root(&self, at: u64, value: u64) {
        self.root_memory.borrow_mut().insert(at, value);
    }

    fn write_root_32(&self, at: u64, value: u32) {
        self.root_memory.borrow_mut().insert(at, value.into());
    }
}

/// The model's frames.
struct Pool<'a>(&'a Model);

impl TableMemory for Pool<'_> {
    fn entries(&self, table: HostPhysical) -> &Entries {
        let (frame, _) = Model::frame(table.as_u64()).expect("a frame of the pool");
        &self.0.frames[frame].1
    }
}

impl Tables for Pool<'_> {
    fn allocate(&mut self) -> Result<HostPhysical, OutOfFrames> {
        let mut frames = self.0.frames.iter();
        let index = frames
            .position(|(used, _)| !used.get())
            .ok_or(OutOfFrames)?;
        self.0.frames[index].0.set(true);
        Ok(HostPhysical::new(POOL + index as u64 * PAGE))
    }

    fn free(&mut self, frame: HostPhysical) {
        let (frame, _) = Model::frame(frame.as_u64()).unwrap();
        assert!(self.0.frames[frame].0.replace(false));
    }

    fn retire(&mut self, frame: HostPhysical) {
        self.free(frame);
    }
}

/// CPU 0 is the root's, CPU 1 a cell's.
struct Two;

impl Receivers for Two {
    fn count(&self) -> u32 {
        2
    }

    fn get(&self, number: u32) -> Option<Receiver> {
        Some(Receiver {
            processor: Processor {
                number,
                apic_id: number,
                logical_id: 1 << number,
                cluster_model: false,
                x2apic: number == 1,
            },
            owner: Some(number),
        })
    }
}

const UNITS: [IommuUnit; 1] = [IommuUnit {
    registers: BASE,
    size: 4096,
    segment: 0,
    flags: IOMMU_INCLUDES_ALL,
}];

/// The IOAPIC behind the unit, as the firmware tells, and how it names itself.
const IO_APIC: u64 = 0xfec0_0000;
const IO_APIC_SOURCE: u16 = 0xf0f8;
const SOURCES: [IommuSource; 1] = [IommuSource {
    address: IO_APIC,
    unit: 0,
    kind: IOMMU_SOURCE_IO_APIC,
    segment: 0,
    source: IO_APIC_SOURCE,
}];

fn start(model: &Model) -> Result<Box<Fleet>, Refused> {
    let mut fleet = Box::new(Fleet::new());
    let place = Place {
        units: &UNITS,
        sources: &SOURCES,
        end: 1 << 30,
        memory_end: 1 << 30,
        deadline: 1000,
    };
    fleet.faults.set_second(1_000_000);
    let foreign = [(POOL, 0x40_0000)].into_iter();
    let contiguous = |tables: &mut Pool<'_>, count: usize| {
        let first = tables.allocate()?;
        for number in 1..count {
            assert_eq!(
                tables.allocate()?.as_u64(),
                first.as_u64() + number as u64 * PAGE
            );
        }
        Ok(first)
    };
    fleet.start(model, &mut Pool(model), &place, foreign, contiguous, &Two)?;
    Ok(fleet)
}

/// What a cell's creation and start do.
fn give(fleet: &mut Fleet, model: &Model) {
    let pool = &mut Pool(model);
    fleet
        .set_root_memory(model, pool, (CELL, CELL_SIZE), false)
        .unwrap();
    fleet.forget_root(model, pool).unwrap();
    assert_eq!(model.dma(DISK, CELL), None, "what the root has lost");
    fleet.claim(model, pool, 1, CARD, 2, &Two).unwrap();
    let memory = [(0, CELL, CELL_SIZE, true)].into_iter();
    fleet.prepare_domain(model, pool, 1, memory).unwrap();
}

fn take(fleet: &mut Fleet, model: &Model) {
    let pool = &mut Pool(model);
    fleet.release(model, pool, 1, &Two).unwrap();
    fleet
        .set_root_memory(model, pool, (CELL, CELL_SIZE), true)
        .unwrap();
    fleet.forget_root(model, pool).unwrap();
}

#[test]
fn the_root_goes_on_as_before_and_reaches_its_memory_only() {
    let model = Model::new(64);
    let fleet = start(&model).unwrap();
    assert_eq!(fleet.isolation(CARD), (true, true));
    assert_eq!(model.dma(DISK, 0x1234_5678), Some(0x1234_5678));
    assert_eq!(model.dma(0xffff, CELL), Some(CELL));
    for at in [POOL, POOL + 0x3f_ffff, 1 << 30] {
        assert_eq!(model.dma(DISK, at), None);
    }
    assert_eq!(model.interrupt(DISK, 3), Some(0x0041_0001));
    assert_eq!(model.interrupt(CARD.function, 3), None);
    assert_eq!(model.status() & command::COMPATIBILITY, 0);
}

#[test]
fn a_function_follows_its_cell_and_nothing_is_lost() {
    let model = Model::new(64);
    let mut fleet = start(&model).unwrap();
    let (before, figures) = (model.in_use(), fleet.figures());
    for _ in 0..1000 {
        // What the unit knows from before.
        assert_eq!(model.dma(CARD.function, CELL), Some(CELL));
        assert_eq!(model.dma(DISK, CELL), Some(CELL));
        give(&mut fleet, &model);
        assert_eq!(model.dma(CARD.function, 0), None, "before the start");
        assert_eq!(model.dma(DISK, CELL), None, "the root's");
        fleet.attach(&model, &Pool(&model), 1).unwrap();
        assert_eq!(model.dma(CARD.function, 0x1f_fff8), Some(CELL + 0x1f_fff8));
        for at in [CELL_SIZE, CELL, POOL, 0x1234_5000] {
            assert_eq!(model.dma(CARD.function, at), None);
        }
        let message = fleet.remap(&model, &Pool(&model), CARD, (1, 0), Some((0x55, 1, false)));
        let address = message.unwrap().unwrap().address;
        assert_eq!(address & 0xfff0_0018, 0xfee0_0010);
        let index = (address >> 5 & 0x7fff) as u16;
        assert_eq!(
            model.interrupt(CARD.function, index),
            Some(1 << 40 | 0x55_0001)
        );
        assert_eq!(model.interrupt(DISK, index), None);
        let beyond = fleet.remap(&model, &Pool(&model), CARD, (2, 0), Some((0x55, 1, false)));
        assert_eq!(beyond, Ok(None));
        fleet.detach(&model, &Pool(&model), 1).unwrap();
        assert_eq!(model.dma(CARD.function, 0), None, "after the stop");
        assert_eq!(model.interrupt(CARD.function, index), None);
        take(&mut fleet, &model);
        assert_eq!((model.in_use(), fleet.figures()), (before, figures));
    }
}

#[test]
fn what_linux_changes_counts_when_it_says_so_and_as_far_as_it_may() {
    let model = Model::new(64);
    let mut fleet = start(&model).unwrap();
    assert_eq!(model.interrupt(DISK, 3), Some(0x0041_0001));
    let mut tail = 0x60u64;
    let mut tell = |fleet: &mut Fleet, index: u64, entry: [u64; 2]| {
        model.set_entry(index, entry);
        let wait = 5 | 1 << 5 | (tail << 32);
        for word in [4 | 1 << 4 | index << 32, 0, wait, WORD] {
            model.root_memory.borrow_mut().insert(QUEUE + tail, word);
            tail += 8;
        }
        let at = (register::QUEUE_TAIL, 8);
        fleet.write(&model, &Pool(&model), 0, at, tail, &Two);
        let waited = model.root_memory.borrow().get(&WORD).copied();
        assert_eq!(waited, Some(tail - 32), "the wait was answered");
        assert_eq!(
            fleet.read(&model, &Pool(&model), 0, register::QUEUE_HEAD, 8),
            tail
        );
    };
    let of_disk = 0x0004_0000 | u64::from(DISK);
    tell(&mut fleet, 3, [0x0000_0000_0042_0001, of_disk]);
    assert_eq!(model.interrupt(DISK, 3), Some(0x0042_0001));
    // To a cell's CPU; without a device; as an SMI.
    for entry in [
        [1 << 40 | 0x0043_0001, of_disk],
        [0x0043_0001, 0],
        [0x0043_0041, of_disk],
    ] {
        tell(&mut fleet, 3, entry);
        assert_eq!(model.interrupt(DISK, 3), None);
    }
    // Once more, and then remapping is turned off: not for the unit.
    tell(&mut fleet, 3, [0x0044_0001, of_disk]);
    fleet.write(&model, &Pool(&model), 0, (register::COMMAND, 4), 0, &Two);
    assert_eq!(
        fleet.read(&model, &Pool(&model), 0, register::STATUS, 4) as u32 & command::INTERRUPTS,
        0
    );
    assert_eq!(model.interrupt(DISK, 3), Some(0x0044_0001));
    // A function that a cell has raises no interrupt of the root's.
    model.set_entry(9, [0x0045_0001, 0x0004_0000 | u64::from(CARD.function)]);
    fleet.revise(&model, &Pool(&model), &Two).unwrap();
    give(&mut fleet, &model);
    assert_eq!(model.interrupt(CARD.function, 9), None);
}

/// An entry of a cell's pin.
fn pin(vector: u8, destination: u8) -> Entry {
    Entry::new()
        .with_vector(vector)
        .with_destination(destination)
}

#[test]
fn a_cells_pin_has_an_entry_that_its_ioapic_alone_can_use() {
    let model = Model::new(64);
    let mut fleet = start(&model).unwrap();
    let figures = fleet.figures();
    let Remapping::Own { root_entries } = fleet.remapping(IO_APIC) else {
        panic!("{:?}", fleet.remapping(IO_APIC));
    };
    // Where it is behind no unit, nobody knows where its messages go.
    assert_eq!(fleet.remapping(IO_APIC + 0x1000), Remapping::Foreign);
    assert!(fleet.take_line(IO_APIC + 0x1000).is_err());
    let pool = &Pool(&model);
    for _ in 0..3 {
        let handle = fleet.take_line(IO_APIC).unwrap();
        assert!(u32::from(handle) >= root_entries);
        assert_eq!(fleet.figures().entries, figures.entries + 1);
        assert_eq!(model.interrupt(IO_APIC_SOURCE, handle), None);
        let mut set = |entry: Option<Entry>| {
            let entry = entry.map(|entry| (entry, 1));
            fleet.set_line(&model, pool, (IO_APIC, handle), entry, &Two)
        };
        for (entry, low) in [
            (pin(0x51, 1), 1 << 40 | 0x0051_0001),
            (pin(0xf3, 1).with_level(true), 1 << 40 | 0x00f3_0011),
            (pin(0x52, 2).with_logical(true), 2 << 40 | 0x0052_0005),
            (pin(2, 1).with_delivery_mode(4), 1 << 40 | 0x0002_0081),
            (pin(0x53, 0xff), 1 << 40 | 0x0053_0001),
        ] {
            // The unit knows the one before, and forgets it.
            set(Some(entry)).unwrap();
            assert_eq!(model.interrupt(IO_APIC_SOURCE, handle), Some(low));
            for source in [DISK, CARD.function, IO_APIC_SOURCE + 1] {
                assert_eq!(model.interrupt(source, handle), None);
            }
            set(Some(entry)).unwrap();
            assert_eq!(model.interrupt(IO_APIC_SOURCE, handle), Some(low));
        }
        // The root's processor, and nobody's.
        for destination in [0, 7] {
            set(Some(pin(0x51, destination))).unwrap_err();
            assert_eq!(model.interrupt(IO_APIC_SOURCE, handle), None);
        }
        set(Some(pin(0x51, 1))).unwrap();
        set(None).unwrap();
        assert_eq!(model.interrupt(IO_APIC_SOURCE, handle), None);
        set(Some(pin(0x51, 1))).unwrap();
        assert!(model.interrupt(IO_APIC_SOURCE, handle).is_some());
        let line = (IO_APIC, handle);
        fleet.release_line(&model, pool, line, &Two).unwrap();
        assert_eq!(model.interrupt(IO_APIC_SOURCE, handle), None);
        assert_eq!(fleet.figures(), figures);
        // What was not taken is nobody's to set.
        let entry = Some((pin(0x51, 1), 1));
        for handle in [handle, 3, 0, u16::MAX] {
            let line = (IO_APIC, handle);
            assert!(fleet.set_line(&model, pool, line, entry, &Two).is_err());
        }
        assert_eq!(model.interrupt(DISK, 3), Some(0x0041_0001));
    }
}

#[test]
fn lines_and_functions_share_what_entries_there_are() {
    let model = Model::new(64);
    let mut fleet = start(&model).unwrap();
    let figures = fleet.figures();
    give(&mut fleet, &model);
    let mut handles = Vec::new();
    while let Ok(handle) = fleet.take_line(IO_APIC) {
        assert!(!handles.contains(&handle) && handles.len() < 1000);
        handles.push(handle);
    }
    assert_eq!(fleet.figures().entries, fleet.figures().entries_most);
    assert_eq!(fleet.take_line(IO_APIC), Err(Refused::Full));
    let message = fleet.remap(&model, &Pool(&model), CARD, (1, 0), Some((0x55, 1, false)));
    let index = (message.unwrap().unwrap().address >> 5 & 0x7fff) as u16;
    assert!(!handles.contains(&index));
    for handle in handles {
        let line = (IO_APIC, handle);
        fleet
            .release_line(&model, &Pool(&model), line, &Two)
            .unwrap();
    }
    take(&mut fleet, &model);
    assert_eq!(fleet.figures(), figures);
}

#[test]
fn an_entry_that_the_unit_may_still_know_stays_taken() {
    let model = Model::new(64);
    let mut fleet = start(&model).unwrap();
    let line = (IO_APIC, fleet.take_line(IO_APIC).unwrap());
    let (pool, entry) = (&Pool(&model), Some((pin(0x51, 1), 1)));
    fleet.set_line(&model, pool, line, entry, &Two).unwrap();
    model.is_deaf.set(true);
    let stuck = Err(Refused::Unit(BASE, UnitError::TimedOut));
    assert_eq!(fleet.release_line(&model, pool, line, &Two), stuck);
    assert_eq!(fleet.figures().entries, 1);
    assert_eq!(fleet.take_line(IO_APIC), stuck.map(|()| 0));
}

#[test]
fn where_interrupts_are_not_remapped_lines_need_no_entries() {
    let model = Model::new(64);
    model.set(register::STATUS, command::QUEUE.into());
    let mut fleet = start(&model).unwrap();
    assert_eq!(fleet.remapping(IO_APIC), Remapping::None);
    assert_eq!(fleet.remapping(IO_APIC + 0x1000), Remapping::None);
    assert!(fleet.take_line(IO_APIC).is_err());
}

#[test]
fn linux_has_the_unit_back_as_it_was() {
    let model = Model::new(64);
    let before = model.registers.borrow().clone();
    let memory = model.root_memory.borrow().clone();
    let mut fleet = start(&model).unwrap();
    assert_ne!(model.register(register::QUEUE_ADDRESS), QUEUE);
    fleet.give_back(&model, &Pool(&model)).unwrap();
    for (at, value) in before {
        let now = model.register(at);
        let once = u64::from(command::SET_ROOT_TABLE);
        assert_eq!(
            if at == register::STATUS {
                now & !once
            } else {
                now
            },
            value,
            "{at:#x}"
        );
    }
    assert_eq!(*model.root_memory.borrow(), memory);
    assert_eq!(model.interrupt_table.get(), TABLE | 0xf);
    assert_eq!(model.interrupt(DISK, 3), Some(0x0041_0001));
    assert_eq!(model.dma(DISK, POOL), Some(POOL));
}

#[test]
fn a_unit_that_cannot_be_had_is_refused() {
    let model = Model::new(64);
    model.set(register::STATUS, command::TRANSLATION.into());
    assert_eq!(
        start(&model).unwrap_err(),
        Refused::Unit(BASE, UnitError::TranslatesForLinux)
    );
    let model = Model::new(64);
    model.set(register::EXTENDED_CAPABILITY, EXTENDED & !2);
    assert_eq!(
        start(&model).unwrap_err(),
        Refused::Unit(BASE, UnitError::NoQueue)
    );
    let model = Model::new(64);
    model.set_entry(3, [0x0041_0001, 0]);
    assert_eq!(
        start(&model).unwrap_err(),
        Refused::Unit(BASE, UnitError::SourcesNotVerified)
    );
    assert_eq!(
        model.register(register::QUEUE_ADDRESS),
        QUEUE,
        "it is Linux' again"
    );
    let model = Model::new(3);
    assert_eq!(start(&model).unwrap_err(), Refused::OutOfFrames);
}

#[test]
fn a_unit_that_does_not_answer_ends_the_wait_and_is_not_asked_again() {
    let model = Model::new(64);
    let mut fleet = start(&model).unwrap();
    model.is_deaf.set(true);
    let pool = &mut Pool(&model);
    fleet
        .set_root_memory(&model, pool, (CELL, CELL_SIZE), false)
        .unwrap();
    let stuck = Err(Refused::Unit(BASE, UnitError::TimedOut));
    assert_eq!(fleet.forget_root(&model, pool), stuck);
    let time = model.time.get();
    assert_eq!(fleet.forget_root(&model, pool), stuck);
    assert!(model.time.get() < time + 10);
    assert_eq!(fleet.figures().failed, 1);
    assert_eq!(fleet.isolation(CARD), (false, false));
}

#[test]
fn faults_are_the_functions_and_a_storm_ends_in_quarantine() {
    let model = Model::new(64);
    let mut fleet = start(&model).unwrap();
    give(&mut fleet, &model);
    fleet.attach(&model, &Pool(&model), 1).unwrap();
    for number in 1..=u64::from(STORM) {
        assert!(model.dma(CARD.function, 0).is_some());
        model.fault(CARD.function);
        // What Linux' handler reads first.
        fleet.read(&model, &Pool(&model), 0, register::FAULT_STATUS, 4);
        let told = fleet.faults.devices[0];
        assert_eq!((told.source, told.cell, told.count), (0x18, 1, number));
        assert_eq!((told.address, told.reason), (0x5000, 5));
    }
    assert_eq!(
        fleet.faults.devices[0].flags & gaol_abi::public::DEVICE_QUARANTINED,
        1
    );
    assert_eq!(model.dma(CARD.function, 0), None);
    // The next start begins anew.
    fleet.detach(&model, &Pool(&model), 1).unwrap();
    fleet.attach(&model, &Pool(&model), 1).unwrap();
    assert_eq!(model.dma(CARD.function, 0), Some(CELL));
    // The root's functions are counted only.
    for _ in 0..2 * STORM {
        model.fault(DISK);
        fleet.poll(&model, &Pool(&model));
    }
    assert_eq!(fleet.faults.devices[1].count, u64::from(2 * STORM));
    assert!(model.dma(DISK, 0x1000).is_some());
}
