//! Carries attacks out.
//!
//! Invariant: what an attack leaves changed in a device or in its configuration is put back before the next one. A good
//! transfer before and behind each attack by DMA shows that the device still works, so that "nothing" means blocked.

use edu_dma_cell::attack::{
    Address, Attack, Cpu, Function as Which, LENGTH, Message, Place, Width,
};
use edu_dma_cell::outcome::Outcome;
use gaol_cell::configuration::Ports;
use gaol_cell::device::Registers;
use gaol_cell::dma::{DeviceAddress, DmaMemory, Memory};
use gaol_cell::mmio::Mmio;
use gaol_cell::pci::{self, Bar, Command, Configuration, Function, Id, MsiX};
use gaol_cell::registers::Vector;
use gaol_cell::shared::GuestAddress;
use gaol_cell::{Cell, apic};
use gaol_devices::e1000::registers::{ALL_TO_ENTRY_0, Cause, offset};
use gaol_devices::edu::{self, Direction, Edu, Problem, Transfer};

use crate::interrupts;

/// Bytes of the memory for devices that the attacks are about: all of the first region that the cell has.
const MEMORY: usize = 0x1_0000;
/// Where in there the cell puts what the device fetches, and where the device brings what it has.
const FETCHED: usize = 0x0;
const BROUGHT: usize = 0x1000;
/// Looks at a device that is busy.
const ATTEMPTS: u32 = 20_000_000;
/// Buses on which devices are looked for.
const BUSES: u16 = 2;
const CARD: Id = Id {
    vendor: 0x8086,
    device: 0x10d3,
};
const BAR_0: u16 = 0x10;
/// What the card's status register says when it may be bus master.
const MASTER: u32 = 0x0008_0000;

type Bytes = [u8; LENGTH as usize];

/// The network card.
pub struct Card {
    function: Function,
    /// Its registers.
    pub registers: Mmio,
    table: MsiX,
    entries: Mmio,
}

/// Where others are.
struct Targets {
    root: u32,
    hypervisor: u32,
    victim: u32,
    victim_cpu: u32,
}

/// The cell's devices.
pub struct Attacker {
    ports: Ports,
    /// The device that does DMA on command.
    pub edu: Edu<Mmio>,
    edu_function: Function,
    edu_base: GuestAddress,
    /// The card, if the cell has one.
    pub card: Option<Card>,
    /// Memory for devices.
    pub dma: DmaMemory,
    targets: Targets,
    /// Which functions were bus master when the cell began: `edu`, the card.
    masters: [bool; 2],
    round: u8,
}

fn memory(ports: &mut Ports, function: Function, bar: u16) -> Mmio {
    match pci::bar(ports, function, bar) {
        Some(Bar::Memory { address, size, .. }) => {
            Mmio::at(GuestAddress::new(address), size as u32)
        }
        other => panic!("register {bar} of {function} is {other:?}, not memory"),
    }
}

fn switch_on(ports: &mut Ports, function: Function) {
    let on = Command::MEMORY | Command::BUS_MASTER | Command::NO_INTERRUPT_LINE;
    pci::set_command(ports, function, on, Command::empty());
}

impl Attacker {
    /// Takes the cell's devices into use.
    pub fn new(cell: &mut Cell) -> Self {
        let mut ports = Ports::take();
        let find = |ports: &Ports, wanted| {
            pci::functions(ports, 0..BUSES)
                .find(|(_, id)| *id == wanted)
                .map(|(function, _)| function)
        };
        let Some(edu_function) = find(&ports, edu::ID) else {
            panic!("the cell has no function {:04x}:{:04x}", 0x1234, 0x11e8);
        };
        let is_master =
            |ports: &Ports, function| pci::command(ports, function).contains(Command::BUS_MASTER);
        let mut masters = [is_master(&ports, edu_function), false];
        let registers = memory(&mut ports, edu_function, 0);
        let edu_base = registers.base();
        switch_on(&mut ports, edu_function);
        let Some(edu) = Edu::new(registers) else {
            panic!("{edu_function} does not answer as it should");
        };
        let card = find(&ports, CARD).map(|function| {
            masters[1] = is_master(&ports, function);
            let registers = memory(&mut ports, function, 0);
            let Ok(table) = MsiX::find(&ports, function) else {
                panic!("{function} has no MSI-X")
            };
            let entries = memory(&mut ports, function, table.bar);
            switch_on(&mut ports, function);
            Card {
                function,
                registers,
                table,
                entries,
            }
        });
        let arguments = cell.arguments();
        let number = |key| arguments.number(key, 0) as u32;
        let targets = Targets {
            root: number("root"),
            hypervisor: number("hypervisor"),
            victim: number("victim"),
            victim_cpu: number("victim-cpu"),
        };
        interrupts::count_all();
        Self {
            ports,
            edu,
            edu_function,
            edu_base,
            card,
            dma: cell.take_dma(MEMORY),
            targets,
            masters,
            round: 0,
        }
    }

    /// Carries an attack out.
    pub fn perform(&mut self, attack: Attack) -> Outcome {
        match attack {
            Attack::Read(place) => self.read(place).unwrap_or(Outcome::Stuck),
            Attack::Write(place) => self.write(place).unwrap_or(Outcome::Stuck),
            Attack::Message(message) => self.message(message),
            Attack::WriteMessage(message) => self.write_message(message).unwrap_or(Outcome::Stuck),
            Attack::Table(offset, width, value) => self.table(offset, width, value),
            Attack::Entry(width, message) => self.entry(width, message),
            Attack::Configure(which, offset, value, mask) => {
                self.configure(which, offset, value, mask)
            }
            Attack::Move(which, address) => self.move_registers(which, address),
            Attack::MasterAtStart(which) => match self.function(which) {
                Some(_) => Outcome::Value(self.masters[usize::from(which == Which::Card)].into()),
                None => Outcome::Missing,
            },
            Attack::Leave(_) => Outcome::Missing,
        }
    }

    /// The address of a place, and where it is in the cell's own memory for devices, if it is there.
    fn place(&self, place: Place) -> (DeviceAddress, Option<usize>) {
        let begin = self.dma.device_address(0).number() as u32;
        let end = begin + MEMORY as u32;
        let length = LENGTH as usize;
        let address = match place {
            Place::Own(offset) => begin + offset,
            Place::BeforeEnd(before) => end - before,
            Place::BeforeBegin(before) => begin - before,
            Place::At(address) => address,
            Place::Root(offset) => self.targets.root + offset,
            Place::Hypervisor(offset) => self.targets.hypervisor + offset,
            Place::Victim(offset) => self.targets.victim + offset,
        };
        let own = (address.checked_sub(begin).map(|offset| offset as usize))
            .filter(|offset| offset + length <= MEMORY);
        (DeviceAddress::new(address.into()), own)
    }

    /// Bytes that nobody else has.
    fn pattern(&mut self) -> Bytes {
        self.round = self.round.wrapping_add(1);
        let round = self.round;
        core::array::from_fn(|at| (at as u8).wrapping_mul(29) ^ round.wrapping_mul(71) ^ 0x5a)
    }

    fn transfer(
        &mut self,
        direction: Direction,
        address: DeviceAddress,
        length: u32,
    ) -> Result<(), Problem> {
        let transfer = Transfer {
            direction,
            address,
            at: 0,
            length,
            interrupts: false,
        };
        self.edu.transfer(transfer, ATTEMPTS)
    }

    /// Puts bytes into the device.
    pub fn fetch(&mut self, bytes: &[u8]) -> Result<(), Problem> {
        self.dma.copy_in(FETCHED, bytes);
        let from = self.dma.device_address(FETCHED);
        self.transfer(Direction::Read, from, bytes.len() as u32)
    }

    /// What the device has.
    fn bring(&mut self) -> Result<Bytes, Problem> {
        let mut bytes = [0; LENGTH as usize];
        self.dma.copy_in(BROUGHT, &bytes);
        let to = self.dma.device_address(BROUGHT);
        self.transfer(Direction::Write, to, LENGTH)?;
        self.dma.copy_out(BROUGHT, &mut bytes);
        Ok(bytes)
    }

    fn read(&mut self, place: Place) -> Result<Outcome, Problem> {
        let before = self.pattern();
        self.fetch(&before)?;
        let (address, own) = self.place(place);
        let expected = own.map(|offset| {
            let bytes = self.pattern();
            self.dma.copy_in(offset, &bytes);
            bytes
        });
        self.transfer(Direction::Read, address, LENGTH)?;
        let got = self.bring()?;
        let all = |value| got.iter().all(|byte| *byte == value);
        Ok(match expected {
            Some(expected) if got == expected => Outcome::Same,
            _ if got == before || all(0) || all(0xff) => Outcome::Nothing,
            _ => Outcome::Leaked(first_word(&got)),
        })
    }

    fn write(&mut self, place: Place) -> Result<Outcome, Problem> {
        let bytes = self.pattern();
        self.fetch(&bytes)?;
        let (address, own) = self.place(place);
        if let Some(offset) = own {
            self.dma.copy_in(offset, &[0; LENGTH as usize]);
        }
        self.transfer(Direction::Write, address, LENGTH)?;
        // The device works on.
        if self.bring()? != bytes {
            return Ok(Outcome::Stuck);
        }
        let Some(offset) = own else {
            return Ok(Outcome::Done);
        };
        let mut written = [0; LENGTH as usize];
        self.dma.copy_out(offset, &mut written);
        Ok(match written == bytes {
            true => Outcome::Same,
            false => Outcome::Leaked(first_word(&written)),
        })
    }

    fn id(&self, cpu: Cpu) -> u32 {
        match cpu {
            Cpu::Own => apic::id(),
            Cpu::Root => 0,
            Cpu::Victim => self.targets.victim_cpu,
            Cpu::All => 0xff,
        }
    }

    /// What is written where, in the formats of the SDM, "Message Signalled Interrupts", and of VT-d, "Interrupt Requests in
    /// Remappable Format".
    fn encoded(&self, message: Message) -> pci::Message {
        const BASE: u64 = 0xfee0_0000;
        const LOGICAL: u64 = 1 << 2;
        const REMAPPED: u64 = 1 << 4;
        let address = match message.address {
            Address::Physical(cpu) => BASE | u64::from(self.id(cpu)) << 12,
            Address::Logical(Cpu::All) => BASE | 0xff << 12 | LOGICAL,
            Address::Logical(cpu) => BASE | 1 << (12 + self.id(cpu) % 8) | LOGICAL,
            Address::Entry(entry) => {
                let entry = u64::from(entry);
                BASE | (entry & 0x7fff) << 5 | REMAPPED | (entry >> 15) << 2
            }
            Address::At(address) => address,
        };
        pci::Message {
            address,
            data: message.data,
        }
    }

    /// Gives the function a message that is right.
    pub fn give_own_message(&mut self) {
        let Some(message) = pci::Message::to(apic::id(), Vector::new(0x70)) else {
            panic!("no message leads to this CPU");
        };
        if pci::enable_msi(&mut self.ports, self.edu_function, message).is_err() {
            panic!("{} has no MSI", self.edu_function);
        }
    }

    fn message(&mut self, message: Message) -> Outcome {
        let message = self.encoded(message);
        if pci::enable_msi(&mut self.ports, self.edu_function, message).is_err() {
            return Outcome::Missing;
        }
        let count = interrupts::behind(|| self.edu.raise(1));
        self.edu.acknowledge();
        pci::disable_msi(&mut self.ports, self.edu_function);
        Outcome::Interrupts(count)
    }

    fn write_message(&mut self, message: Message) -> Result<Outcome, Problem> {
        let message = self.encoded(message);
        self.fetch(&message.data.to_le_bytes())?;
        let mut result = Ok(());
        let count = interrupts::behind(|| {
            let address = DeviceAddress::new(message.address);
            result = self.transfer(Direction::Write, address, 4);
        });
        result.map(|()| Outcome::Interrupts(count))
    }

    fn table(&mut self, offset: u32, width: Width, value: u64) -> Outcome {
        let Some(message) = pci::Message::to(apic::id(), Vector::new(0x72)) else {
            return Outcome::Missing;
        };
        self.with_table(|card| {
            card.table.set(&mut card.entries, 0, message);
            let at = card.table.offset + offset;
            write_width(&mut card.entries, at, width, value);
        })
    }

    fn entry(&mut self, width: Width, message: Message) -> Outcome {
        let message = self.encoded(message);
        let (low, high) = (message.address as u32, (message.address >> 32) as u32);
        let mut bytes = [0; 16];
        for (word, place) in [low, high, message.data, 0]
            .into_iter()
            .zip(bytes.chunks_exact_mut(4))
        {
            place.copy_from_slice(&word.to_le_bytes());
        }
        self.with_table(|card| {
            card.entries.write(card.table.offset + 12, 1);
            let step = width.bytes();
            for (number, piece) in bytes.chunks_exact(step as usize).enumerate() {
                let mut value = [0; 8];
                value[..piece.len()].copy_from_slice(piece);
                let at = card.table.offset + step * number as u32;
                write_width(&mut card.entries, at, width, u64::from_le_bytes(value));
            }
        })
    }

    /// Lets the card interrupt by entry 0 of its table, behind what `change` does to that.
    fn with_table(&mut self, change: impl FnOnce(&mut Card)) -> Outcome {
        let Some(card) = &mut self.card else {
            return Outcome::Missing;
        };
        let causes = Cause::RECEIVE_QUEUE.bits();
        card.registers.write(offset::INTERRUPT_MASK_CLEAR, u32::MAX);
        card.registers.write(offset::INTERRUPT_CAUSE, u32::MAX);
        card.registers
            .write(offset::INTERRUPT_VECTORS, ALL_TO_ENTRY_0);
        card.registers.write(offset::INTERRUPT_AUTO_CLEAR, causes);
        card.table.enable(&mut self.ports, card.function);
        change(card);
        let count = interrupts::behind(|| {
            card.registers.write(offset::INTERRUPT_MASK_SET, causes);
            card.registers.write(offset::INTERRUPT_CAUSE_SET, causes);
        });
        card.registers.write(offset::INTERRUPT_MASK_CLEAR, u32::MAX);
        card.registers.write(offset::INTERRUPT_CAUSE, u32::MAX);
        // The table stays on: QEMU 7.2 ends when that goes off while the card is still to look at the rate of its interrupts.
        card.entries.write(card.table.offset + 12, 1);
        Outcome::Interrupts(count)
    }

    fn function(&self, which: Which) -> Option<Function> {
        match which {
            Which::Edu => Some(self.edu_function),
            Which::Card => self.card.as_ref().map(|card| card.function),
        }
    }

    fn configure(&mut self, which: Which, offset: u16, value: u32, mask: u32) -> Outcome {
        let Some(function) = self.function(which) else {
            return Outcome::Missing;
        };
        let before = self.ports.read(function, offset);
        self.ports.write(function, offset, value);
        let after = self.ports.read(function, offset);
        self.ports.write(function, offset, before);
        switch_on(&mut self.ports, function);
        Outcome::Value(after & mask)
    }

    fn move_registers(&mut self, which: Which, address: u32) -> Outcome {
        let Some(function) = self.function(which) else {
            return Outcome::Missing;
        };
        let before = self.ports.read(function, BAR_0);
        self.ports.write(function, BAR_0, address);
        let value = match (which, &self.card) {
            (Which::Edu, _) => Mmio::at(self.edu_base, edu::SIZE).read(0),
            (Which::Card, Some(card)) => card.registers.read(offset::STATUS) & MASTER,
            (Which::Card, None) => 0,
        };
        self.ports.write(function, BAR_0, before);
        Outcome::Value(value)
    }
}

fn write_width(registers: &mut Mmio, at: u32, width: Width, value: u64) {
    match width {
        Width::Byte => registers.write8(at, value as u8),
        Width::Word => registers.write16(at, value as u16),
        Width::Long => registers.write(at, value as u32),
        Width::Quad => registers.write64(at, value),
    }
}

fn first_word(bytes: &Bytes) -> u64 {
    bytes
        .first_chunk()
        .map_or(0, |word| u64::from_le_bytes(*word))
}
