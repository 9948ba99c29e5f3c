//! The driver: start, frames in and out, interrupts.
//!
//! What it does for a frame is a few accesses to memory and one to a register of the device that the cell has mapped: no VM
//! exit. Configuration space is not touched after the start.

use gaol_cell::device::{Registers, wait};
use gaol_cell::dma::Memory;
use gaol_cell::pci::Id;

use super::registers::{
    ALL_TO_ENTRY_0, AddressHigh, Cause, Control, DESCRIPTORS_BY_COUNT, ExtendedControl, GAPS,
    ReceiveControl, Status, TransmitControl, offset,
};
use super::ring::{Arrival, BUFFER_SIZE, MEMORY_SIZE, RING_SIZE, ReceiveRing, TransmitRing};

/// Looks at a register until the device is reset, or has read its EEPROM.
const PATIENCE: u32 = 100_000;
/// The longest frame that is sent, without its checksum.
pub const LONGEST: usize = 1514;

/// What the controllers differ in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Model {
    /// 82540EM: a PCI function, interrupts by its line.
    I82540,
    /// 82574L: PCI Express, MSI and MSI-X.
    I82574,
}

impl Model {
    /// The model with this id. `None`: it is none of them.
    pub const fn of(id: Id) -> Option<Self> {
        match (id.vendor, id.device) {
            (0x8086, 0x100e) => Some(Self::I82540),
            (0x8086, 0x10d3) => Some(Self::I82574),
            _ => None,
        }
    }

    /// Where EEPROM read has the number of the word, and its mark that it is done.
    const fn eeprom(self) -> (u32, u32) {
        match self {
            Self::I82540 => (8, 1 << 4),
            Self::I82574 => (2, 1 << 1),
        }
    }
}

/// How the controller tells of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupts {
    /// Not at all: it is asked.
    None,
    /// By its line or one message, which [`acknowledge`] answers.
    LineOrMessage,
    /// By entry 0 of its MSI-X table.
    Table,
}

/// Why the controller does not start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// It does not come back from its reset.
    Reset,
    /// It has no address.
    NoAddress,
    /// Its registers read as ones: it is not there, or switched off.
    Absent,
}

impl core::fmt::Display for Problem {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Reset => "the controller does not come back from its reset",
            Self::NoAddress => "the controller has no address, and its EEPROM none either",
            Self::Absent => "the controller's registers read as ones",
        })
    }
}

/// What has happened since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Frames received.
    pub received: u64,
    /// What was no frame: too short, too long, in pieces, or damaged.
    pub bad: u64,
    /// Frames given to the device.
    pub sent: u64,
    /// Frames that found the ring full.
    pub refused: u64,
}

/// A controller in use.
#[derive(Debug)]
pub struct Controller<R, M> {
    registers: R,
    memory: M,
    receive: ReceiveRing,
    transmit: TransmitRing,
    address: [u8; 6],
    interrupts: Interrupts,
    statistics: Statistics,
}

impl<R: Registers, M: Memory> Controller<R, M> {
    /// Resets and starts the controller. Its function must be bus master by then, and have its interrupts set up.
    ///
    /// # Errors
    /// When the device does not do what it should.
    ///
    /// # Panics
    /// When the memory is smaller than [`MEMORY_SIZE`].
    pub fn start(
        mut registers: R,
        mut memory: M,
        model: Model,
        interrupts: Interrupts,
    ) -> Result<Self, Problem> {
        assert!(
            memory.size() >= MEMORY_SIZE,
            "the driver takes {MEMORY_SIZE:#x} bytes"
        );
        if registers.read(offset::STATUS) == u32::MAX {
            return Err(Problem::Absent);
        }
        reset(&mut registers)?;
        let address = own_address(&mut registers, model).ok_or(Problem::NoAddress)?;
        let mut controller = Self {
            receive: ReceiveRing::new(&mut memory),
            transmit: TransmitRing::new(&mut memory),
            registers,
            memory,
            address,
            interrupts,
            statistics: Statistics::default(),
        };
        controller.link_up();
        controller.start_receiving();
        controller.start_sending(model);
        controller.start_interrupting();
        Ok(controller)
    }

    fn link_up(&mut self) {
        let on = Control::SET_LINK_UP | Control::DETECT_SPEED;
        self.registers.modify(offset::CONTROL, 0, on.bits());
    }

    fn start_receiving(&mut self) {
        let registers = &mut self.registers;
        let [a, b, c, d, e, f] = self.address;
        let high = u32::from(u16::from_le_bytes([e, f])) | AddressHigh::VALID.bits();
        registers.write(offset::ADDRESS_LOW, u32::from_le_bytes([a, b, c, d]));
        registers.write(offset::ADDRESS_HIGH, high);
        for index in 0..offset::MULTICAST_COUNT {
            registers.write(offset::MULTICAST + 4 * index, 0);
        }
        let base = ReceiveRing::base(&self.memory).number();
        registers.write(offset::RECEIVE_BASE_LOW, base as u32);
        registers.write(offset::RECEIVE_BASE_HIGH, (base >> 32) as u32);
        registers.write(offset::RECEIVE_LENGTH, RING_SIZE as u32);
        registers.write(offset::RECEIVE_HEAD, 0);
        registers.write(offset::RECEIVE_DELAY, 0);
        let control =
            ReceiveControl::ENABLE | ReceiveControl::BROADCAST | ReceiveControl::STRIP_CHECKSUM;
        registers.write(offset::RECEIVE_CONTROL, control.bits());
        registers.write(offset::RECEIVE_TAIL, ReceiveRing::FIRST_TAIL);
    }

    fn start_sending(&mut self, model: Model) {
        let registers = &mut self.registers;
        let base = TransmitRing::base(&self.memory).number();
        registers.write(offset::TRANSMIT_BASE_LOW, base as u32);
        registers.write(offset::TRANSMIT_BASE_HIGH, (base >> 32) as u32);
        registers.write(offset::TRANSMIT_LENGTH, RING_SIZE as u32);
        registers.write(offset::TRANSMIT_HEAD, 0);
        registers.write(offset::TRANSMIT_TAIL, 0);
        registers.write(offset::TRANSMIT_GAP, GAPS);
        if model == Model::I82574 {
            registers.modify(offset::TRANSMIT_DESCRIPTORS, 0, DESCRIPTORS_BY_COUNT);
        }
        registers.write(offset::TRANSMIT_CONTROL, TransmitControl::all().bits());
    }

    fn start_interrupting(&mut self) {
        if self.interrupts == Interrupts::Table {
            let on = ExtendedControl::CLEAR_PENDING.bits();
            self.registers.modify(offset::EXTENDED_CONTROL, 0, on);
            let entries = ALL_TO_ENTRY_0;
            self.registers.write(offset::INTERRUPT_VECTORS, entries);
            let causes = self.causes().bits();
            self.registers.write(offset::INTERRUPT_AUTO_CLEAR, causes);
        }
        // What is pending from before.
        self.registers.read(offset::INTERRUPT_CAUSE);
        self.permit();
    }

    /// The causes that interrupt.
    fn causes(&self) -> Cause {
        match self.interrupts {
            Interrupts::None => Cause::empty(),
            Interrupts::LineOrMessage => {
                Cause::RECEIVED | Cause::RECEIVE_LOW | Cause::RECEIVE_OVERRUN | Cause::LINK
            }
            Interrupts::Table => Cause::RECEIVE_QUEUE | Cause::OTHER,
        }
    }

    /// Permits interrupts. With [`Interrupts::Table`] each one forbids the next, until this is called.
    pub fn permit(&mut self) {
        let causes = self.causes();
        if !causes.is_empty() {
            let permit = offset::INTERRUPT_MASK_SET;
            self.registers.write(permit, causes.bits());
        }
    }

    /// The address of the controller.
    pub fn address(&self) -> [u8; 6] {
        self.address
    }

    /// Whether the link is up.
    pub fn link_is_up(&self) -> bool {
        let status = Status::from_bits_retain(self.registers.read(offset::STATUS));
        status.contains(Status::LINK_UP)
    }

    /// Takes a frame that was received. Returns its length. What was no frame is counted and left out; as many of these as the
    /// ring has are looked at in a call.
    pub fn receive(&mut self, frame: &mut [u8; BUFFER_SIZE]) -> Option<usize> {
        for _ in 0..super::RING_LENGTH {
            let (arrival, tail) = self.receive.take(&mut self.memory, frame);
            if let Some(tail) = tail {
                self.registers.write(offset::RECEIVE_TAIL, tail);
            }
            match arrival {
                Arrival::Frame(length) => {
                    self.statistics.received += 1;
                    return Some(length);
                }
                Arrival::Bad => self.statistics.bad += 1,
                Arrival::Nothing => return None,
            }
        }
        None
    }

    /// Whether a frame can be sent now.
    pub fn can_send(&mut self) -> bool {
        self.transmit.reclaim(&self.memory);
        self.transmit.has_room()
    }

    /// Sends a frame. `false`: there is no room, or it is longer than [`LONGEST`]; it is counted.
    pub fn send(&mut self, frame: &[u8]) -> bool {
        let tail = match self.can_send() && frame.len() <= LONGEST {
            true => self.transmit.put(&mut self.memory, frame),
            false => None,
        };
        match tail {
            Some(tail) => {
                self.registers.write(offset::TRANSMIT_TAIL, tail);
                self.statistics.sent += 1;
                true
            }
            None => {
                self.statistics.refused += 1;
                false
            }
        }
    }

    /// Frames that were given to the device and that it has not sent yet.
    pub fn pending(&mut self) -> usize {
        self.transmit.reclaim(&self.memory);
        self.transmit.pending()
    }

    /// What has happened since the start.
    pub fn statistics(&self) -> Statistics {
        self.statistics
    }

    /// Frames that found no descriptor, since the last call.
    pub fn missed(&mut self) -> u32 {
        self.registers.read(offset::MISSED_PACKETS)
    }

    /// Stops the controller: it neither interrupts nor touches memory any more.
    pub fn stop(&mut self) {
        quiet(&mut self.registers);
    }
}

/// Answers an interrupt that came by line or by message, from its handler: the device takes the line away, and may send the
/// next message. Returns whether it was this device's.
pub fn acknowledge(registers: &impl Registers) -> bool {
    registers.read(offset::INTERRUPT_CAUSE) != 0
}

fn quiet(registers: &mut impl Registers) {
    registers.write(offset::INTERRUPT_MASK_CLEAR, u32::MAX);
    registers.write(offset::RECEIVE_CONTROL, 0);
    registers.write(offset::TRANSMIT_CONTROL, 0);
}

/// Not all of them do something on a reset, so what matters is written afterwards, too.
fn reset(registers: &mut impl Registers) -> Result<(), Problem> {
    quiet(registers);
    registers.modify(offset::CONTROL, 0, Control::RESET.bits());
    let is_done = wait(PATIENCE, || {
        registers.read(offset::CONTROL) & Control::RESET.bits() == 0
    });
    if !is_done {
        return Err(Problem::Reset);
    }
    quiet(registers);
    Ok(())
}

/// The address that the controller was given, or the one in its EEPROM.
fn own_address(registers: &mut impl Registers, model: Model) -> Option<[u8; 6]> {
    let low = registers.read(offset::ADDRESS_LOW).to_le_bytes();
    let high = registers.read(offset::ADDRESS_HIGH);
    let [a, b, c, d] = low;
    let [e, f, ..] = high.to_le_bytes();
    let given = [a, b, c, d, e, f];
    if high & AddressHigh::VALID.bits() != 0 && is_address(given) {
        return Some(given);
    }
    let mut address = [0; 6];
    for (word, bytes) in address.chunks_exact_mut(2).enumerate() {
        bytes.copy_from_slice(&read_eeprom(registers, model, word as u32)?.to_le_bytes());
    }
    is_address(address).then_some(address)
}

/// Whether this can be the address of one controller: it is not for several, and not zero.
fn is_address(address: [u8; 6]) -> bool {
    address[0] & 1 == 0 && address != [0; 6]
}

fn read_eeprom(registers: &mut impl Registers, model: Model, word: u32) -> Option<u16> {
    const START: u32 = 1;
    let (shift, done) = model.eeprom();
    registers.write(offset::EEPROM_READ, START | word << shift);
    let mut value = 0;
    wait(PATIENCE, || {
        value = registers.read(offset::EEPROM_READ);
        value & done != 0
    })
    .then_some((value >> 16) as u16)
}
