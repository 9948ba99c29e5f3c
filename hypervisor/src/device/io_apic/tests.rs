extern crate std;

use std::collections::BTreeMap;
use std::vec::Vec;

use proptest::prelude::*;

use super::judge::{CELL_LEVEL_VECTORS, Receiver};
use super::*;
use crate::device::interrupt_command::Processor;

const BASE: u64 = 0xfec0_0000;
const PINS: u8 = 24;

/// IOAPICs that remember, and tell of each state that an entry goes through.
#[derive(Default)]
struct Model {
    entries: BTreeMap<(u64, u8), u64>,
    ended: Vec<(u64, u8)>,
    version: u8,
    /// Entries as they were after each write, and what the IOMMU sent for them.
    seen: Vec<(u8, Entry, Option<Sent>)>,
    is_absent: bool,
    remapping: Option<Remapping>,
    /// Entries of the IOMMU that were taken.
    taken: BTreeMap<u16, Option<Sent>>,
    is_deaf: bool,
}

/// What an entry of the IOMMU sends, and for whom.
type Sent = (Entry, u32);

/// The IOMMU's entries before this one are the root's.
const ROOT_ENTRIES: u16 = 300;

impl Model {
    fn new() -> Self {
        let mut model = Self {
            version: 0x20,
            ..Self::default()
        };
        for pin in 0..PINS {
            model.entries.insert((BASE, pin), Entry::RESET.into_bits());
        }
        model
    }

    /// Behind an IOMMU that remaps interrupts.
    fn remapped() -> Self {
        Self {
            remapping: Some(Remapping::Own {
                root_entries: ROOT_ENTRIES.into(),
            }),
            ..Self::new()
        }
    }

    fn entry(&self, pin: u8) -> Entry {
        Entry::from_bits(self.entries[&(BASE, pin)])
    }

    /// What the IOMMU sends for an entry.
    fn sent(&self, entry: Entry) -> Option<Sent> {
        self.taken.get(&entry.handle()).copied().flatten()
    }

    /// An entry of a cell's pin, as if there were no IOMMU.
    fn effect(&self, pin: u8) -> Entry {
        let entry = self.entry(pin);
        assert!(entry.remapped());
        let (sent, _) = self.sent(entry).expect("an entry that sends something");
        assert_eq!(
            (sent.vector(), sent.level(), sent.active_low()),
            (entry.vector(), entry.level(), entry.active_low())
        );
        sent.with_masked(entry.masked())
    }

    fn set(&mut self, pin: u8, entry: Entry) {
        self.entries.insert((BASE, pin), entry.into_bits());
    }
}

impl Chip for Model {
    fn read(&mut self, base: u64, register: u8) -> u32 {
        if self.is_absent {
            return u32::MAX;
        }
        match register {
            0 | 2 | 3 => 0,
            1 => u32::from(self.version) | u32::from(PINS - 1) << 16,
            _ => {
                let entry = self.entries[&(base, (register - 0x10) / 2)];
                (entry >> (32 * u32::from(register & 1))) as u32
            }
        }
    }

    fn write(&mut self, base: u64, register: u8, value: u32) {
        assert!(!self.is_absent);
        if register < 0x10 {
            return;
        }
        let pin = (register - 0x10) / 2;
        let entry = self.entries.get_mut(&(base, pin)).unwrap();
        if register & 1 == 0 {
            let kept = *entry & STATUS;
            *entry = *entry >> 32 << 32 | (u64::from(value) & !STATUS) | kept;
            // An edge-triggered pin has nothing in service.
            if value & 1 << 15 == 0 {
                *entry &= !(1 << 14);
            }
        } else {
            *entry = *entry & 0xffff_ffff | u64::from(value) << 32;
        }
        let entry = Entry::from_bits(*entry);
        self.seen.push((pin, entry, self.sent(entry)));
    }

    fn end_of_interrupt(&mut self, base: u64, vector: u8) {
        assert!(self.version >= 0x20);
        self.ended.push((base, vector));
        for ((_, _), entry) in self.entries.iter_mut().filter(|((at, _), _)| *at == base) {
            if *entry as u8 == vector {
                *entry &= !(1 << 14);
            }
        }
    }

    fn remapping(&mut self, _: u64) -> Remapping {
        self.remapping.unwrap_or(Remapping::None)
    }

    fn take_entry(&mut self, _: u64) -> Result<u16, Failure> {
        let free = (ROOT_ENTRIES..ROOT_ENTRIES + 3).find(|handle| !self.taken.contains_key(handle));
        let handle = free.ok_or(Failure::out_of_frames())?;
        self.taken.insert(handle, None);
        Ok(handle)
    }

    fn send(
        &mut self,
        _: u64,
        handle: u16,
        entry: Entry,
        owner: u32,
        receivers: &impl Receivers,
    ) -> bool {
        assert!(!entry.masked() && receivers.count() != 0);
        // Who names the entry is masked meanwhile.
        let mut pins = (0..PINS).map(|pin| self.entry(pin));
        assert!(pins.all(|entry| {
            let is_it = entry.remapped() && entry.handle() == handle;
            !is_it || entry.masked()
        }));
        let slot = self
            .taken
            .get_mut(&handle)
            .expect("an entry that was taken");
        *slot = (!self.is_deaf).then_some((entry, owner));
        slot.is_some()
    }

    fn block(&mut self, _: u64, handle: u16) {
        *self
            .taken
            .get_mut(&handle)
            .expect("an entry that was taken") = None;
    }

    fn give_entry(&mut self, _: u64, handle: u16) {
        assert_eq!(self.taken.remove(&handle), Some(None));
    }
}

/// CPUs 0 to 3 are the root's with xAPICs, flat; 4 and 5 are of cell 1 and 6 of cell 2, with x2APICs; 7 is on its way.
/// APIC ids are the numbers.
#[derive(Clone)]
struct Machine(Vec<Receiver>);

impl Machine {
    fn new() -> Self {
        Self::of(|number| match number {
            0..4 => Some(0),
            4 | 5 => Some(1),
            6 => Some(2),
            _ => None,
        })
    }

    fn of(owner: impl Fn(u32) -> Option<u32>) -> Self {
        Self(
            (0..8)
                .map(|number| Receiver {
                    processor: Processor {
                        number,
                        apic_id: number,
                        logical_id: 1 << number,
                        cluster_model: false,
                        x2apic: owner(number).is_some_and(|owner| owner != 0),
                    },
                    owner: owner(number),
                })
                .collect(),
        )
    }
}

impl Receivers for Machine {
    fn count(&self) -> u32 {
        self.0.len() as u32
    }

    fn get(&self, number: u32) -> Option<Receiver> {
        self.0.get(number as usize).copied()
    }
}

/// Whom a message of this entry may reach, by the rules of hardware: each mode in which an APIC could be.
fn reached(entry: Entry, machine: &Machine) -> Vec<u32> {
    let destination = u32::from(entry.destination());
    let is_reached = |receiver: &&Receiver| {
        let id = receiver.processor.apic_id;
        let flat = destination & u32::from(receiver.processor.logical_id) != 0;
        let cluster_0 = id < 8 && destination >> id & 1 == 1;
        let logical = match receiver.owner {
            None => flat || cluster_0,
            Some(_) if receiver.processor.x2apic => cluster_0,
            Some(_) => flat,
        };
        destination == 0xff
            || if entry.logical() {
                logical
            } else {
                id == destination
            }
    };
    let mut all = machine.0.iter();
    all.by_ref()
        .filter(is_reached)
        .map(|receiver| receiver.processor.number)
        .collect()
}

/// Panics when an entry that hardware has does what it may not.
fn assert_is_permitted(entry: Entry, owner: u32, machine: &Machine) {
    if entry.masked() {
        return;
    }
    let modes: &[u8] = if owner == 0 {
        &[0, 1, 4, 7]
    } else {
        &[0, 1, 4]
    };
    assert!(modes.contains(&entry.delivery_mode()), "{entry:?}");
    if entry.delivery_mode() < 2 {
        assert!(entry.vector() >= 16, "{entry:?}");
    }
    let is_of_cells = CELL_LEVEL_VECTORS.contains(&entry.vector());
    assert!(!entry.level() || is_of_cells == (owner != 0), "{entry:?}");
    for number in reached(entry, machine) {
        assert_eq!(machine.0[number as usize].owner, Some(owner), "{entry:?}");
    }
}

/// An IOAPIC whose pins 4 and 5 are of cell 1 and whose pin 6 is of cell 2.
fn shared_out(model: &mut Model) -> IoApics {
    let mut apics = IoApics::new();
    assert_eq!(apics.add(BASE, 0, PINS), Some(0));
    apics.look(model);
    for (line, cell) in [(4, 1), (5, 1), (6, 2)] {
        assert_eq!(apics.assign(model, line, cell), Ok(()));
    }
    apics
}

fn fixed(vector: u8, destination: u8) -> Entry {
    Entry::new()
        .with_vector(vector)
        .with_destination(destination)
}

/// Writes an entry as Linux does: its upper half first.
fn set(apics: &mut IoApics, model: &mut Model, pin: u8, entry: Entry, guest: u32) {
    let machine = Machine::new();
    apics.write(model, 0, high_register(pin), entry.high(), guest, &machine);
    apics.write(model, 0, low_register(pin), entry.low(), guest, &machine);
}

fn get(apics: &IoApics, model: &mut Model, pin: u8, guest: u32) -> Entry {
    let low = apics.read(model, 0, low_register(pin), guest);
    let high = apics.read(model, 0, high_register(pin), guest);
    Entry::from_bits(u64::from(high) << 32 | u64::from(low))
}

/// Each low half with each destination, from the root and from cells: hardware gets what may be, and what reaches own
/// processors only it gets unchanged.
#[test]
fn every_entry_is_judged() {
    let machine = Machine::new();
    for bits in (0..1u64 << 17).filter(|bits| bits & 0xe8 == 0 || bits & 0xf8 == 0xf0) {
        for destination in [
            0u8, 1, 3, 4, 5, 6, 7, 8, 0x0c, 0x30, 0x3f, 0x40, 0x80, 0xf0, 0xff,
        ] {
            for owner in 0..3 {
                let entry = Entry::from_bits(bits).with_destination(destination);
                let Some(judged) = judge::judge(entry, owner, Remapping::None, &machine) else {
                    continue;
                };
                assert_is_permitted(judged, owner, &machine);
                let is_plain = |number: &u32| machine.0[*number as usize].owner == Some(owner);
                let to = reached(entry, &machine);
                let is_edge = [mode::NMI, mode::EXTERNAL].contains(&entry.delivery_mode());
                if to.iter().all(is_plain) && !entry.masked() {
                    assert_eq!(judged, entry.with_level(entry.level() && !is_edge));
                } else if !entry.masked() {
                    // Nothing but the destination is changed, and it is one that was meant.
                    let kept = |entry: Entry| entry.low() & !(1 << 11 | 1 << 15);
                    assert_eq!(kept(judged), kept(entry));
                    assert!(
                        reached(judged, &machine)
                            .iter()
                            .all(|number| to.contains(number))
                    );
                }
            }
        }
    }
}

/// What is refused is what has to be: by vector, mode, trigger or because no own processor is meant.
#[test]
fn nothing_is_refused_without_a_reason() {
    let machine = Machine::new();
    for vector in 0..=255u8 {
        for level in [false, true] {
            let entry = fixed(vector, 4).with_level(level);
            let is_right = vector >= 16 && (!level || vector >= 0xf0);
            assert_eq!(
                judge::judge(entry, 1, Remapping::None, &machine).is_some(),
                is_right
            );
            let entry = fixed(vector, 2).with_level(level);
            let is_right = vector >= 16 && !(level && vector >= 0xf0);
            assert_eq!(
                judge::judge(entry, 0, Remapping::None, &machine).is_some(),
                is_right
            );
        }
    }
    for delivery_mode in 0..8 {
        let entry = fixed(0x40, 4).with_delivery_mode(delivery_mode);
        let is_right = [0, 1, 4].contains(&delivery_mode);
        assert_eq!(
            judge::judge(entry, 1, Remapping::None, &machine).is_some(),
            is_right
        );
        let entry = entry.with_destination(0);
        let is_right = [0, 1, 4, 7].contains(&delivery_mode);
        assert_eq!(
            judge::judge(entry, 0, Remapping::None, &machine).is_some(),
            is_right
        );
    }
    for destination in 0..=255u8 {
        let of = |owner, logical| {
            let entry = fixed(0x40, destination).with_logical(logical);
            judge::judge(entry, owner, Remapping::None, &machine).is_some()
        };
        assert_eq!(of(1, false), [4, 5, 255].contains(&destination));
        assert_eq!(of(1, true), destination & 0x30 != 0);
        assert_eq!(of(0, false), destination < 4 || destination == 255);
        assert_eq!(of(0, true), destination & 0x0f != 0);
    }
}

/// Flat logical ids of Linux' xAPICs and ids of cluster 0 of a cell's x2APICs are the same bits.
#[test]
fn a_logical_destination_that_a_cell_shares_becomes_a_physical_one() {
    let mut machine = Machine::new();
    // Linux numbers its ids otherwise: bit 4 is CPU 1.
    machine.0[1].processor.logical_id = 0x10;
    let entry = fixed(0x40, 0x10).with_logical(true);
    let judged = judge::judge(entry, 0, Remapping::None, &machine).unwrap();
    assert_eq!(judged, fixed(0x40, 1));
    let judged = judge::judge(entry, 1, Remapping::None, &machine).unwrap();
    assert_eq!(judged, fixed(0x40, 4));
}

#[test]
fn guests_see_their_own_pins() {
    let mut model = Model::new();
    model.set(1, fixed(0x31, 1));
    let mut apics = shared_out(&mut model);
    assert_eq!(get(&apics, &mut model, 1, 0), fixed(0x31, 1));
    for guest in [1, 2] {
        assert_eq!(get(&apics, &mut model, 1, guest), Entry::RESET);
    }
    let entry = fixed(0x44, 5);
    set(&mut apics, &mut model, 4, entry, 1);
    assert_eq!(model.entry(4), entry);
    assert_eq!(get(&apics, &mut model, 4, 1), entry);
    for guest in [0, 2] {
        assert_eq!(get(&apics, &mut model, 4, guest), Entry::RESET);
        set(&mut apics, &mut model, 4, fixed(0x55, 0), guest);
        assert_eq!(model.entry(4), entry);
        assert_eq!(get(&apics, &mut model, 4, guest), Entry::RESET);
    }
    // The registers that there are one of.
    for guest in [0, 1] {
        assert_eq!(apics.read(&mut model, 0, 1, guest), 0x0017_0020);
        for register in (4..0x10).chain(0x10 + 2 * PINS..=0xff) {
            assert_eq!(apics.read(&mut model, 0, register, guest), 0);
        }
        assert_eq!(apics.read(&mut model, 1, 1, guest), u32::MAX);
    }
}

#[test]
fn what_is_refused_stays_masked_and_reads_so() {
    let mut model = Model::new();
    let mut apics = shared_out(&mut model);
    let good = fixed(0x44, 5);
    for bad in [
        fixed(0x44, 0),
        fixed(0x44, 6),
        fixed(0x0f, 5),
        fixed(0x44, 5).with_level(true),
        fixed(0x44, 5).with_delivery_mode(mode::SMI),
        fixed(0x44, 5).with_delivery_mode(mode::INIT),
        fixed(0x44, 5).with_delivery_mode(mode::EXTERNAL),
    ] {
        set(&mut apics, &mut model, 4, good, 1);
        assert!(!get(&apics, &mut model, 4, 1).masked());
        set(&mut apics, &mut model, 4, bad, 1);
        assert!(model.entry(4).masked());
        assert_eq!(get(&apics, &mut model, 4, 1), bad.with_masked(true));
    }
    // Two halves in the other order: the first write is refused for its destination, the second one mends it.
    let machine = Machine::new();
    set(&mut apics, &mut model, 4, Entry::RESET, 1);
    apics.write(&mut model, 0, low_register(4), good.low(), 1, &machine);
    assert!(model.entry(4).masked());
    apics.write(&mut model, 0, high_register(4), good.high(), 1, &machine);
    assert_eq!(model.entry(4), good);
}

#[test]
fn a_vector_of_a_level_triggered_pin_has_one_owner() {
    let mut model = Model::new();
    let mut apics = shared_out(&mut model);
    let level = |vector, destination| fixed(vector, destination).with_level(true);
    set(&mut apics, &mut model, 4, level(0xf1, 4), 1);
    set(&mut apics, &mut model, 5, level(0xf1, 5), 1);
    assert!(!model.entry(5).masked());
    // The cell's, as long as it has it.
    set(&mut apics, &mut model, 6, level(0xf1, 6), 2);
    assert!(get(&apics, &mut model, 6, 2).masked());
    set(&mut apics, &mut model, 6, level(0xf2, 6), 2);
    assert!(!get(&apics, &mut model, 6, 2).masked());
    // An edge ends at its APIC.
    set(&mut apics, &mut model, 6, fixed(0xf1, 6), 2);
    assert!(!get(&apics, &mut model, 6, 2).masked());
    set(&mut apics, &mut model, 9, level(0xf1, 0), 0);
    assert!(model.entry(9).masked());
    set(&mut apics, &mut model, 9, level(0x49, 0), 0);
    assert_eq!(model.entry(9), level(0x49, 0));
    // What has no end has no such vector, either, though the entry has it.
    let external = level(0xf1, 0).with_delivery_mode(mode::EXTERNAL);
    set(&mut apics, &mut model, 10, external, 0);
    assert_eq!(model.entry(10), external.with_level(false));
    // The end of interrupt is the owner's, too.
    for (guest, vector, ends) in [
        (1, 0xf1, true),
        (2, 0xf1, false),
        (0, 0xf1, false),
        (0, 0x49, true),
        (1, 0x49, false),
        (0, 0x50, false),
    ] {
        model.ended.clear();
        apics.end_of_interrupt(&mut model, 0, vector, guest);
        assert_eq!(!model.ended.is_empty(), ends, "{guest} {vector:#x}");
    }
}

#[test]
fn old_ioapics_have_no_end_of_interrupt_register() {
    let mut model = Model::new();
    model.version = 0x11;
    let mut apics = shared_out(&mut model);
    set(
        &mut apics,
        &mut model,
        4,
        fixed(0xf1, 4).with_level(true),
        1,
    );
    // The model would panic.
    apics.end_of_interrupt(&mut model, 0, 0xf1, 1);
    apics.reset(&mut model, 1);
    assert_eq!(model.entry(4), Entry::RESET);
}

#[test]
fn lines_in_use_stay_with_the_root() {
    let mut model = Model::new();
    model.set(3, fixed(0x33, 0));
    let mut apics = shared_out(&mut model);
    assert_eq!(apics.check(3), Err(LineRefused::InUse));
    assert_eq!(apics.assign(&mut model, 3, 1), Err(LineRefused::InUse));
    assert_eq!(apics.check(4), Err(LineRefused::InUse));
    assert_eq!(apics.check(u32::from(PINS)), Err(LineRefused::Unknown));
    assert_eq!(apics.check(7), Ok(()));
    assert_eq!(model.entry(3), fixed(0x33, 0));
}

#[test]
fn nothing_is_left_in_service_when_a_line_changes_hands() {
    let mut model = Model::new();
    let of_linux = fixed(0x47, 1)
        .with_level(true)
        .with_active_low(true)
        .with_in_service(true)
        .with_masked(true);
    model.set(7, of_linux);
    let mut apics = IoApics::new();
    apics.add(BASE, 0, PINS);
    apics.look(&mut model);
    apics.assign(&mut model, 7, 1).unwrap();
    assert_eq!(model.entry(7), Entry::RESET);
    assert_eq!(get(&apics, &mut model, 7, 1), Entry::RESET);
    set(
        &mut apics,
        &mut model,
        7,
        fixed(0xf7, 4).with_level(true),
        1,
    );
    model.set(7, model.entry(7).with_in_service(true));
    assert!(get(&apics, &mut model, 7, 1).in_service());
    apics.release(&mut model, 1);
    let given_back = of_linux.with_in_service(false);
    assert_eq!(model.entry(7), given_back);
    assert_eq!(get(&apics, &mut model, 7, 0), given_back);
    assert_eq!(apics.owner(7), Some(0));
    assert_eq!(apics.units_of(1).count(), 0);
}

#[test]
fn machines_without_an_ioapic_have_no_lines() {
    let mut model = Model::new();
    model.is_absent = true;
    let mut apics = IoApics::new();
    apics.add(BASE, 0, PINS);
    apics.look(&mut model);
    assert_eq!(apics.pin_count(), 0);
    assert_eq!(apics.check(4), Err(LineRefused::Unknown));
    assert_eq!(apics.read(&mut model, 0, 1, 0), u32::MAX);
    apics.write(&mut model, 0, 0x10, 0, 0, &Machine::new());
}

/// An entry in the format that names an IOMMU's, edge-triggered, as Linux writes it: with the pin for a vector.
fn naming(handle: u16, pin: u8) -> Entry {
    Entry::new().with_vector(pin).through(handle)
}

#[test]
fn remapped_interrupts_are_left_to_an_iommu_that_is_not_known() {
    let mut model = Model::new();
    let of_linux = Entry::from_bits(0x0005_0000_0000_8031);
    assert!(of_linux.remapped());
    model.set(1, of_linux);
    let mut apics = IoApics::new();
    apics.add(BASE, 0, PINS);
    apics.look(&mut model);
    assert_eq!(apics.check(4), Err(LineRefused::Remapped));
    let moved = Entry::from_bits(0x0007_0000_0000_8031);
    set(&mut apics, &mut model, 1, moved, 0);
    assert_eq!(model.entry(1), moved);
    // Where nothing is remapped, the bit means nothing.
    let mut model = Model::new();
    let mut apics = shared_out(&mut model);
    set(
        &mut apics,
        &mut model,
        1,
        Entry::from_bits(0x0501_0000_0000_0031),
        0,
    );
    assert!(model.entry(1).masked());
}

#[test]
fn handles_are_found_where_they_were_put() {
    for handle in 0..=u16::MAX {
        let entry = fixed(0x31, 7).with_level(true).through(handle);
        assert!(entry.remapped() && entry.delivery_mode() == 0);
        assert_eq!(entry.handle(), handle);
        // VT-d, "I/OxAPIC Remappable Interrupt Request Format".
        let bits = entry.into_bits();
        assert_eq!(bits >> 49, u64::from(handle) & 0x7fff);
        assert_eq!(bits >> 11 & 1, u64::from(handle) >> 15);
    }
}

#[test]
fn pins_of_cells_have_entries_of_their_own_in_the_iommu() {
    let mut model = Model::remapped();
    model.set(1, naming(7, 1));
    model.set(5, naming(8, 5).with_masked(true));
    let mut apics = shared_out(&mut model);
    assert_eq!(model.taken.len(), 3);
    assert!(model.taken.values().all(Option::is_none));
    let refused = apics.assign(&mut model, 8, 2);
    assert_eq!(refused, Err(LineRefused::Iommu(Failure::out_of_frames())));
    assert_eq!(apics.owner(8), Some(0));
    for entry in [
        fixed(0x44, 5),
        fixed(0x45, 4).with_active_low(true),
        fixed(0xf4, 4).with_level(true).with_active_low(true),
        fixed(0x46, 0x30).with_logical(true),
        fixed(0x47, 0x30)
            .with_logical(true)
            .with_delivery_mode(mode::LOWEST_PRIORITY),
        fixed(0, 4).with_delivery_mode(mode::NMI),
    ] {
        set(&mut apics, &mut model, 4, entry, 1);
        assert_eq!(model.effect(4), entry);
        assert_eq!(get(&apics, &mut model, 4, 1), entry);
        assert_eq!(model.sent(model.entry(4)), Some((entry, 1)));
        // Masked and unmasked: the IOMMU is not asked, and the end of the interrupt finds its vector.
        model.is_deaf = true;
        for masked in [true, false] {
            set(&mut apics, &mut model, 4, entry.with_masked(masked), 1);
            assert_eq!(model.effect(4), entry.with_masked(masked));
        }
        model.is_deaf = false;
    }
    // One entry each, and everyone's means the own ones.
    set(&mut apics, &mut model, 5, fixed(0x55, 0xff), 1);
    set(&mut apics, &mut model, 6, fixed(0x66, 6), 2);
    assert_eq!(model.effect(5), fixed(0x55, 4));
    assert_eq!(model.effect(6), fixed(0x66, 6));
    let handles: Vec<u16> = (4..7).map(|pin| model.entry(pin).handle()).collect();
    assert!(handles.iter().all(|handle| *handle >= ROOT_ENTRIES));
    assert!(handles[0] != handles[1] && handles[1] != handles[2] && handles[0] != handles[2]);
    // What is not to be leaves the pin masked.
    for bad in [
        fixed(0x44, 0),
        fixed(0x0f, 4),
        fixed(0x44, 4).with_level(true),
        fixed(0x44, 4).with_delivery_mode(mode::SMI),
        fixed(0x44, 4).with_delivery_mode(mode::INIT),
        fixed(0x44, 4).with_delivery_mode(mode::EXTERNAL),
    ] {
        set(&mut apics, &mut model, 4, bad, 1);
        assert!(model.entry(4).masked() && model.entry(4).remapped());
        assert_eq!(get(&apics, &mut model, 4, 1), bad.with_masked(true));
    }
    set(&mut apics, &mut model, 4, fixed(0x44, 4), 1);
    apics.reset(&mut model, 1);
    for pin in [4, 5] {
        assert_eq!(model.entry(pin), Entry::RESET);
    }
    let sending = model.taken.values().flatten().count();
    assert_eq!((model.taken.len(), sending), (3, 1));
    assert_eq!(model.effect(6), fixed(0x66, 6));
    // The same entry again behind a reset.
    set(&mut apics, &mut model, 4, fixed(0x44, 4), 1);
    assert_eq!(model.effect(4), fixed(0x44, 4));
    apics.release(&mut model, 1);
    apics.release(&mut model, 2);
    assert!(model.taken.is_empty());
    assert_eq!(model.entry(4), Entry::RESET);
    assert_eq!(model.entry(5), naming(8, 5).with_masked(true));
    assert_eq!(model.entry(1), naming(7, 1));
    // Linux has its line again.
    set(&mut apics, &mut model, 5, naming(8, 5), 0);
    assert_eq!(model.entry(5), naming(8, 5));
}

/// An IOMMU tells IOAPICs from each other, not their pins.
#[test]
fn nobody_names_an_entry_of_anothers_pin() {
    let mut model = Model::remapped();
    let mut apics = shared_out(&mut model);
    set(&mut apics, &mut model, 4, fixed(0x44, 5), 1);
    set(&mut apics, &mut model, 6, fixed(0x66, 6), 2);
    let [own, others] = [4, 6].map(|pin| model.entry(pin).handle());
    // What a cell writes is never the format that names entries, whatever it looks like.
    for handle in [own, others, 0, 7] {
        let wanted = fixed(0x45, 4).with_remapped(true).with_index(handle as u8);
        set(&mut apics, &mut model, 4, wanted, 1);
        assert_eq!(model.effect(4), fixed(0x45, 4));
        assert_eq!(model.entry(4).handle(), own);
        // Reads what it wrote.
        assert_eq!(get(&apics, &mut model, 4, 1), wanted);
        set(&mut apics, &mut model, 4, naming(handle, 0x45), 1);
        let entry = model.entry(4);
        assert!(entry.masked() || entry.handle() == own);
        if !entry.masked() {
            assert_is_permitted(model.effect(4), 1, &Machine::new());
        }
    }
    // The root names its own.
    for handle in 0..=u16::MAX {
        set(&mut apics, &mut model, 9, naming(handle, 9), 0);
        assert_eq!(model.entry(9).masked(), handle >= ROOT_ENTRIES);
        assert_eq!(
            get(&apics, &mut model, 9, 0).masked(),
            handle >= ROOT_ENTRIES
        );
    }
    // Its level-triggered pins have no vectors of the cells', in whichever format, for the sake of their ends.
    set(
        &mut apics,
        &mut model,
        9,
        fixed(0xf3, 0).with_level(true).through(7),
        0,
    );
    assert!(model.entry(9).masked());
    set(
        &mut apics,
        &mut model,
        9,
        fixed(9, 0).with_level(true).through(7),
        0,
    );
    assert!(!model.entry(9).masked());
    // Nor does it reach a cell's processors in the format of old, which an IOMMU should block, too.
    set(&mut apics, &mut model, 9, fixed(0x49, 4), 0);
    assert!(model.entry(9).masked());
    set(&mut apics, &mut model, 9, fixed(0x49, 1), 0);
    assert_eq!(model.entry(9), fixed(0x49, 1));
}

#[test]
fn a_pin_whose_entry_the_iommu_does_not_take_stays_masked() {
    let mut model = Model::remapped();
    let mut apics = shared_out(&mut model);
    set(&mut apics, &mut model, 4, fixed(0x44, 5), 1);
    model.is_deaf = true;
    let other = fixed(0x45, 5);
    set(&mut apics, &mut model, 4, other, 1);
    assert!(model.entry(4).masked());
    assert_eq!(get(&apics, &mut model, 4, 1), other.with_masked(true));
    // What it sent before is not taken for granted any more.
    set(&mut apics, &mut model, 4, fixed(0x44, 5), 1);
    assert!(model.entry(4).masked());
    model.is_deaf = false;
    set(&mut apics, &mut model, 4, other, 1);
    assert_eq!(model.effect(4), other);
}

/// CPUs 2 and 3 join a cell: what Linux has aimed at all CPUs, or at these, is aimed at others or masked, and is as before
/// when they are back.
#[test]
fn entries_of_the_root_follow_its_processors() {
    let all = Machine::of(|_| Some(0));
    let entries = [
        (1, fixed(0x31, 0xff)),
        (2, fixed(0x32, 0x0f).with_logical(true)),
        (3, fixed(0x33, 2)),
        (8, fixed(0x38, 1)),
        (9, fixed(0x39, 0xff).with_delivery_mode(mode::SMI)),
    ];
    let mut model = Model::new();
    for (pin, entry) in entries {
        model.set(pin, entry);
    }
    let mut apics = IoApics::new();
    apics.add(BASE, 0, PINS);
    apics.look(&mut model);
    let revise = |apics: &mut IoApics, model: &mut Model, machine: &Machine| {
        for index in 0..apics.pin_count() {
            apics.revise(model, index, machine);
        }
    };
    revise(&mut apics, &mut model, &all);
    assert!(model.seen.is_empty());
    let on_their_way = Machine::of(|number| (!matches!(number, 2 | 3)).then_some(0));
    let joined = Machine::of(|number| Some(u32::from(matches!(number, 2 | 3))));
    for machine in [&on_their_way, &joined] {
        revise(&mut apics, &mut model, machine);
        assert_eq!(model.entry(1), fixed(0x31, 0));
        assert_eq!(model.entry(2), fixed(0x32, 0));
        assert_eq!(model.entry(3), fixed(0x33, 2).with_masked(true));
        assert_eq!(model.entry(8), fixed(0x38, 1));
        // Firmware's own.
        assert_eq!(model.entry(9), entries[4].1);
    }
    revise(&mut apics, &mut model, &all);
    for (pin, entry) in entries {
        assert_eq!(model.entry(pin), entry);
    }
}

#[test]
fn several_ioapics_have_their_own_lines() {
    let mut model = Model::new();
    let second = BASE + 0x1000;
    for pin in 0..PINS {
        model
            .entries
            .insert((second, pin), Entry::RESET.into_bits());
    }
    let mut apics = IoApics::new();
    assert_eq!(apics.add(BASE, 0, PINS), Some(0));
    assert_eq!(apics.add(second, 24, 8), Some(1));
    apics.look(&mut model);
    assert_eq!(apics.pin_count(), 32);
    assert_eq!(apics.check(31), Ok(()));
    assert_eq!(apics.check(32), Err(LineRefused::Unknown));
    apics.assign(&mut model, 25, 1).unwrap();
    assert_eq!(apics.units_of(1).collect::<Vec<_>>(), [1]);
    assert_eq!(apics.base(1), Some(second));
    apics.write(
        &mut model,
        1,
        low_register(1),
        0x44,
        1,
        &Machine::of(|number| Some(u32::from(number == 0))),
    );
    assert_eq!(model.entries[&(second, 1)], 0x44);
    assert_eq!(model.entry(1), Entry::RESET);
}

#[derive(Clone, Debug)]
enum Step {
    Write {
        guest: u32,
        register: u8,
        value: u32,
    },
    End {
        guest: u32,
        vector: u8,
    },
    Reset {
        guest: u32,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let register = prop_oneof![4 => 0x10u8..0x40, 1 => any::<u8>()];
    let value = prop_oneof![
        (0u32..8).prop_map(|id| id << 24),
        any::<u32>().prop_map(|bits| bits & 0xff00_0000),
        any::<u32>().prop_map(|bits| bits & 0x0000_e8ff),
        any::<u32>(),
    ];
    prop_oneof![
        30 => (0u32..3, register, value)
            .prop_map(|(guest, register, value)| Step::Write { guest, register, value }),
        2 => (0u32..3, any::<u8>()).prop_map(|(guest, vector)| Step::End { guest, vector }),
        1 => (1u32..3).prop_map(|guest| Step::Reset { guest }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3_000))]

    /// At no time, between two halves either, does hardware have what may not be; pins change by their owners' deeds only.
    #[test]
    fn whatever_guests_write_hardware_gets_what_may_be(
        steps in prop::collection::vec(step(), 1..60),
        is_remapped: bool,
    ) {
        let machine = Machine::new();
        let mut model = if is_remapped { Model::remapped() } else { Model::new() };
        let mut apics = shared_out(&mut model);
        let owner = |pin: u8| match pin { 4 | 5 => 1, 6 => 2, _ => 0 };
        for step in steps {
            model.seen.clear();
            let guest = match step {
                Step::Write { guest, register, value } => {
                    apics.write(&mut model, 0, register, value, guest, &machine);
                    guest
                }
                Step::End { guest, vector } => {
                    apics.end_of_interrupt(&mut model, 0, vector, guest);
                    guest
                }
                Step::Reset { guest } => {
                    apics.reset(&mut model, guest);
                    guest
                }
            };
            for (pin, entry, sent) in &model.seen {
                prop_assert_eq!(owner(*pin), guest);
                if !is_remapped || entry.masked() {
                    assert_is_permitted(*entry, guest, &machine);
                } else if guest != 0 {
                    prop_assert!(entry.remapped());
                    let (sent, of) = sent.expect("an entry that sends something");
                    prop_assert_eq!((sent.vector(), sent.level()), (entry.vector(), entry.level()));
                    prop_assert_eq!(of, guest);
                    assert_is_permitted(sent, guest, &machine);
                } else if entry.remapped() {
                    prop_assert!(entry.handle() < ROOT_ENTRIES);
                } else {
                    assert_is_permitted(*entry, 0, &machine);
                }
            }
            for (pin, guest) in (0..PINS).map(|pin| (pin, owner(pin))) {
                let there = model.entry(pin);
                prop_assert_eq!(get(&apics, &mut model, pin, guest).masked(), there.masked());
                for other in (0..PINS).filter(|other| owner(*other) != guest) {
                    let is_level = |entry: Entry| entry.level() && !entry.masked();
                    let other = model.entry(other);
                    prop_assert!(
                        !is_level(there) || !is_level(other) || there.vector() != other.vector()
                    );
                }
            }
        }
    }
}

/// A cell's entry is not judged again when processors of others change hands, and with them the mode of their APICs.
#[test]
fn a_cells_message_is_confined_whatever_mode_others_change_to() {
    let receiver = |number: u32, owner, logical_id| Receiver {
        processor: Processor {
            number,
            apic_id: number,
            logical_id,
            cluster_model: true,
            x2apic: owner != ROOT,
        },
        owner: Some(owner),
    };
    // CPU 3 is the root's in xAPIC mode, where the destination does not mean it; in x2APIC mode bit 3 does.
    let machine = Machine(vec![receiver(3, ROOT, 0x08), receiver(4, 1, 0x11)]);
    let entry = Entry::RESET
        .with_masked(false)
        .with_vector(0x50)
        .with_logical(true)
        .with_destination(0x18);
    let judged = judge::judge(entry, 1, Remapping::None, &machine).unwrap();
    assert!(!judged.logical() && judged.destination() == 4, "{judged:?}");
    let own = entry.with_destination(0x10);
    assert_eq!(judge::judge(own, 1, Remapping::None, &machine), Some(own));
}
