//! What guests write to interrupt commands, local vectors and IOAPICs, on models of the hardware.
//!
//! The bytes are a sequence of deeds of three guests, the root and two cells. Promises: no message reaches a processor
//! outside the sender's cell; no SMI at all, and no INIT or ExtINT of a pin or a local vector of a cell; pins change by
//! their owner's deeds only; no two owners have level-triggered pins of one vector; whoever comes and goes. The same where
//! an IOMMU remaps the pins' messages, whose table has entries of all three.

use gaol_hypervisor::device::interrupt_command::{Command, Processor};
use gaol_hypervisor::device::interrupt_route::{Action, Member, route};
use gaol_hypervisor::device::io_apic::entry::Entry;
use gaol_hypervisor::device::io_apic::judge::{CELL_LEVEL_VECTORS, Receiver, Receivers, Remapping};
use gaol_hypervisor::device::io_apic::{Chip, IoApics};
use gaol_hypervisor::error::Failure;
use gaol_hypervisor::guest::interrupt::lvt_is_harmless;

const PINS: usize = 24;
const BASE: u64 = 0xfec0_0000;
const ROOT: u32 = 0;
const CELLS: [u32; 2] = [1, 2];
const CPUS: u32 = 8;
/// The IOMMU's entries before this one are the root's; there are so many for cells.
const ROOT_ENTRIES: u16 = 1536;
const CELL_ENTRIES: usize = 8;
const IN_SERVICE: u64 = 1 << 14;
const STATUS: u64 = 1 << 12 | IN_SERVICE;

/// An IOAPIC with the promises about its entries, which hold after each single write.
struct Model {
    entries: [u64; PINS],
    owners: [u32; PINS],
    machine: Machine,
    version: u8,
    /// Who may change entries at the moment.
    guest: Option<u32>,
    remapping: Remapping,
    /// The IOMMU's entries for cells: taken, and what they send, for whom.
    table: [Option<Option<(Entry, u32)>>; CELL_ENTRIES],
}

impl Model {
    fn check(&self, pin: usize) {
        let (entry, owner) = (Entry::from_bits(self.entries[pin]), self.owners[pin]);
        if let Some(guest) = self.guest {
            assert_eq!(owner, guest, "pin {pin}");
        }
        if entry.masked() {
            return;
        }
        let Some(message) = self.message(entry, owner) else {
            return;
        };
        let mode = message.delivery_mode();
        assert!(matches!(mode, 0 | 1 | 4) || (owner == ROOT && mode == 7));
        if mode < 2 {
            assert!(entry.vector() >= 16);
        }
        let is_of_cells = CELL_LEVEL_VECTORS.contains(&entry.vector());
        assert!(!entry.level() || is_of_cells == (owner != ROOT));
        for receiver in &self.machine.0 {
            let may_be = receiver.owner == Some(owner);
            assert!(may_be || !is_reached(message, receiver), "{message:?}");
        }
        for (other, bits) in self.entries.iter().enumerate() {
            let other_entry = Entry::from_bits(*bits);
            let is_same = other_entry.vector() == entry.vector();
            let both_level = entry.level() && other_entry.level() && !other_entry.masked();
            assert!(!both_level || !is_same || self.owners[other] == owner);
        }
    }

    /// The message that arrives for an entry; `None`: what the root's own table says.
    fn message(&self, entry: Entry, owner: u32) -> Option<Entry> {
        if self.remapping == Remapping::None {
            return Some(entry);
        }
        if owner == ROOT {
            assert!(!entry.remapped() || entry.handle() < ROOT_ENTRIES);
            return (!entry.remapped()).then_some(entry);
        }
        assert!(entry.remapped());
        let sent = self.table[self.slot(entry.handle())].expect("an entry that was taken");
        let (sent, of) = sent.expect("an entry that sends something");
        assert_eq!(of, owner);
        assert_eq!(
            (sent.vector(), sent.level()),
            (entry.vector(), entry.level())
        );
        Some(sent)
    }

    fn slot(&self, handle: u16) -> usize {
        usize::from(
            handle
                .checked_sub(ROOT_ENTRIES)
                .expect("an entry for cells"),
        )
    }
}

/// Whether hardware gives the message of an entry to a processor.
fn is_reached(entry: Entry, receiver: &Receiver) -> bool {
    let destination = u32::from(entry.destination());
    let processor = &receiver.processor;
    if destination == 0xff {
        return true;
    }
    if !entry.logical() {
        return processor.apic_id == destination;
    }
    let x2apic = processor.apic_id < 16 && destination >> processor.apic_id & 1 == 1;
    let logical = u32::from(processor.logical_id);
    let xapic = if processor.cluster_model {
        (destination >> 4 == 15 || destination >> 4 == logical >> 4)
            && destination & logical & 15 != 0
    } else {
        destination & logical != 0
    };
    match receiver.owner {
        None => x2apic || xapic,
        Some(_) if processor.x2apic => x2apic,
        Some(_) => xapic,
    }
}

impl Chip for Model {
    fn read(&mut self, base: u64, register: u8) -> u32 {
        assert_eq!(base, BASE);
        match register {
            0 | 2 | 3 => 0,
            1 => u32::from(self.version) | (PINS as u32 - 1) << 16,
            _ => {
                let entry = self.entries[usize::from(register - 0x10) / 2];
                (entry >> (32 * u32::from(register & 1))) as u32
            }
        }
    }

    fn write(&mut self, base: u64, register: u8, value: u32) {
        assert_eq!(base, BASE);
        if register < 0x10 {
            // There is one of these: they are the root's.
            assert_eq!(self.guest, Some(ROOT));
            return;
        }
        let pin = usize::from(register - 0x10) / 2;
        let entry = &mut self.entries[pin];
        if register & 1 == 0 {
            *entry = *entry >> 32 << 32 | (u64::from(value) & !STATUS) | *entry & STATUS;
            if value & 1 << 15 == 0 {
                *entry &= !IN_SERVICE;
            }
        } else {
            *entry = *entry & 0xffff_ffff | u64::from(value) << 32;
        }
        self.check(pin);
    }

    fn end_of_interrupt(&mut self, base: u64, vector: u8) {
        assert_eq!(base, BASE);
        assert!(self.version >= 0x20, "there is no such register");
        for (pin, entry) in self.entries.iter_mut().enumerate() {
            let is_ended = *entry as u8 == vector && *entry & 1 << 15 != 0;
            if is_ended {
                assert!(self.guest.is_none_or(|guest| guest == self.owners[pin]));
                *entry &= !IN_SERVICE;
            }
        }
    }

    fn remapping(&mut self, _: u64) -> Remapping {
        self.remapping
    }

    fn take_entry(&mut self, _: u64) -> Result<u16, Failure> {
        let mut slots = self.table.iter();
        let slot = slots.position(Option::is_none);
        let slot = slot.ok_or(Failure::out_of_frames())?;
        self.table[slot] = Some(None);
        Ok(ROOT_ENTRIES + slot as u16)
    }

    fn send(&mut self, _: u64, handle: u16, entry: Entry, owner: u32, _: &impl Receivers) -> bool {
        let slot = self.slot(handle);
        assert!(self.table[slot].is_some());
        // Some vectors are taken badly.
        let is_taken = entry.vector() % 16 != 5;
        self.table[slot] = Some(is_taken.then_some((entry, owner)));
        is_taken
    }

    fn block(&mut self, _: u64, handle: u16) {
        let slot = self.slot(handle);
        assert!(self.table[slot].is_some());
        self.table[slot] = Some(None);
    }

    fn give_entry(&mut self, _: u64, handle: u16) {
        let slot = self.slot(handle);
        assert_eq!(self.table[slot], Some(None));
        self.table[slot] = None;
    }
}

#[derive(Clone)]
struct Machine(Vec<Receiver>);

impl Receivers for Machine {
    fn count(&self) -> u32 {
        self.0.len() as u32
    }

    fn get(&self, number: u32) -> Option<Receiver> {
        self.0.get(number as usize).copied()
    }
}

impl Machine {
    /// CPUs 0 to 3 are the root's; 4, 5 and 6 of one cell, 7 of the other. The byte says how Linux uses its APICs.
    fn new(how: u8) -> Self {
        let of = |number: u32| {
            let owner = match number {
                0..4 => ROOT,
                7 => 2,
                _ => 1,
            };
            let cluster_model = how & 2 != 0;
            Receiver {
                processor: Processor {
                    number,
                    apic_id: if how & 4 != 0 { number * 2 } else { number },
                    logical_id: if cluster_model {
                        ((number / 4) << 4) as u8 | 1 << (number % 4)
                    } else {
                        1 << number
                    },
                    cluster_model,
                    x2apic: owner != ROOT || how & 1 != 0,
                },
                owner: Some(owner),
            }
        };
        Self((0..CPUS).map(of).collect())
    }

    fn members(&self, waiting: u8) -> impl Iterator<Item = Member> {
        self.0.iter().map(move |receiver| Member {
            processor: receiver.processor,
            // Who is on its way belongs to nobody that sends.
            cell: receiver.owner.unwrap_or(u32::MAX),
            waits: waiting >> receiver.processor.number & 1 == 1,
        })
    }
}

fn command(machine: &Machine, sender: u32, low: u32, high: u32, waiting: u8) {
    let from = &machine.0[sender as usize];
    let Some(cell) = from.owner else {
        return;
    };
    let command = if from.processor.x2apic {
        Command::from_x2apic(u64::from(high) << 32 | u64::from(low))
    } else {
        Command::from_xapic(low, high)
    };
    if from.processor.x2apic && command.has_reserved_bits() {
        return;
    }
    let mut targets = 0u8;
    route(
        command,
        sender,
        cell,
        machine.members(waiting),
        |member, action| {
            assert_eq!(member.cell, cell);
            let bit = 1 << member.processor.number;
            assert_eq!(targets & bit, 0, "twice");
            targets |= bit;
            match action {
                Action::Interrupt(vector) => assert!(vector >= 16),
                Action::IllegalVector(vector) => {
                    assert!(vector < 16 && member.processor.number == sender);
                }
                Action::Nmi | Action::Init | Action::StartUp(_) => {}
            }
        },
    );
}

fn local_vector(guest: u32, value: u32) {
    if lvt_is_harmless(guest == ROOT, value) && value & 1 << 16 == 0 {
        let mode = value >> 8 & 7;
        assert!(matches!(mode, 0 | 4) || (guest == ROOT && mode == 7));
        assert!(guest == ROOT || value & 1 << 15 == 0);
    }
}

/// All that `guest` sees of the IOAPIC's pins.
fn look(io_apics: &IoApics, model: &mut Model, guest: u32) {
    for pin in 0..PINS {
        let register = 0x10 + 2 * pin as u8;
        let low = io_apics.read(model, 0, register, guest);
        let high = io_apics.read(model, 0, register + 1, guest);
        if model.owners[pin] == guest {
            let is_masked = model.entries[pin] & 1 << 16 != 0;
            assert_eq!(low & 1 << 16 != 0, is_masked);
        } else {
            assert_eq!((low, high), (1 << 16, 0), "pin {pin} of another shows");
        }
    }
}

/// The first byte is the machine; then eight bytes for each deed: what, who, a register or the like, another byte, a
/// number of 32 bits.
pub fn run(bytes: &[u8]) {
    let Some((how, deeds)) = bytes.split_first() else {
        return;
    };
    let mut model = Model {
        entries: [1 << 16; PINS],
        owners: [ROOT; PINS],
        machine: Machine::new(*how),
        version: if how & 8 != 0 { 0x20 } else { 0x11 },
        guest: None,
        remapping: if how & 16 != 0 {
            Remapping::Own {
                root_entries: ROOT_ENTRIES.into(),
            }
        } else {
            Remapping::None
        },
        table: [None; CELL_ENTRIES],
    };
    let mut io_apics = IoApics::new();
    io_apics.add(BASE, 0, PINS as u8);
    io_apics.look(&mut model);
    for deed in deeds.chunks_exact(8).take(256) {
        let [what, who, register, more, ..] = *deed else {
            return;
        };
        let value = crate::u32_at(deed, 4);
        let guest = u32::from(who % 3);
        let machine = model.machine.clone();
        match what % 8 {
            0 | 1 => {
                model.guest = Some(guest);
                io_apics.write(&mut model, 0, register, value, guest, &machine);
            }
            2 => {
                model.guest = Some(guest);
                io_apics.end_of_interrupt(&mut model, 0, register, guest);
            }
            3 => command(
                &machine,
                u32::from(who) % CPUS,
                value,
                u32::from(register) << 24 | u32::from(register & 15) << 16 | u32::from(register),
                more,
            ),
            4 => {
                let high = if more & 1 == 0 {
                    u32::from(register)
                } else {
                    u32::MAX
                };
                command(&machine, u32::from(who) % CPUS, value, high, more);
            }
            5 => local_vector(guest, value),
            6 => {
                // A message was taken, of a level-triggered pin.
                let entry = &mut model.entries[usize::from(register) % PINS];
                if *entry & 1 << 15 != 0 && *entry & 1 << 16 == 0 {
                    *entry |= IN_SERVICE;
                }
            }
            _ => change_hands(&mut io_apics, &mut model, register, who, more),
        }
        model.guest = None;
        look(&io_apics, &mut model, guest);
    }
}

/// A line, or a CPU, gets another owner, as the management does it.
fn change_hands(io_apics: &mut IoApics, model: &mut Model, register: u8, who: u8, more: u8) {
    let pin = usize::from(register) % PINS;
    let cell = CELLS[usize::from(who) % 2];
    match more % 4 {
        0 => {
            let before = (model.owners[pin], model.entries[pin]);
            // Masked first, whoever has it then.
            let given = io_apics.check(pin as u32).is_ok();
            assert_eq!(given, before.0 == ROOT && before.1 & 1 << 16 != 0);
            if given {
                let is_room = model.table.iter().any(Option::is_none);
                if model.remapping != Remapping::None && !is_room {
                    assert!(io_apics.assign(model, pin as u32, cell).is_err());
                    return;
                }
                model.owners[pin] = cell;
                assert!(io_apics.assign(model, pin as u32, cell).is_ok());
                assert_eq!(model.entries[pin], 1 << 16);
            }
        }
        1 => {
            let owners = model.owners;
            for owner in model.owners.iter_mut().filter(|owner| **owner == cell) {
                *owner = ROOT;
            }
            io_apics.release(model, cell);
            for (pin, owner) in owners
                .iter()
                .enumerate()
                .filter(|(_, owner)| **owner == cell)
            {
                assert_eq!(io_apics.owner(pin as u32), Some(ROOT), "{owner}");
                assert_eq!(model.entries[pin] & (1 << 16 | IN_SERVICE), 1 << 16);
            }
            let held = model.table.iter().flatten().count();
            let of_cells = model.owners.iter().filter(|owner| **owner != ROOT).count();
            assert!(model.remapping == Remapping::None || held == of_cells);
        }
        2 => io_apics.reset(model, cell),
        _ => move_cpu(io_apics, model, usize::from(register) % 4, cell),
    }
}

/// CPU 1, 2 or 3 goes from the root to a cell, or back.
fn move_cpu(io_apics: &mut IoApics, model: &mut Model, cpu: usize, cell: u32) {
    if cpu == 0 {
        return;
    }
    let next = match model.machine.0[cpu].owner {
        Some(ROOT) => cell,
        _ => ROOT,
    };
    // Judged while the CPU still counts as the owner's in the model, so that entries of others are what is looked at.
    let mut on_its_way = model.machine.clone();
    on_its_way.0[cpu].owner = None;
    for pin in 0..io_apics.pin_count() {
        io_apics.revise(model, pin, &on_its_way);
    }
    if next == ROOT {
        // Its cell has been stopped.
        if let Some(owner) = model.machine.0[cpu].owner {
            io_apics.reset(model, owner);
        }
    }
    let linux_is_x2apic = model.machine.0[0].processor.x2apic;
    model.machine.0[cpu].owner = Some(next);
    model.machine.0[cpu].processor.x2apic = next != ROOT || linux_is_x2apic;
    let machine = model.machine.clone();
    for pin in 0..io_apics.pin_count() {
        io_apics.revise(model, pin, &machine);
    }
    for pin in 0..PINS {
        model.check(pin);
    }
}
