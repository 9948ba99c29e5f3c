//! A controller on the host: its registers, its DMA, and a wire that tests hold the other end of.
//!
//! It does what the manuals say of the registers that the driver uses; what tests want besides – a device that lies, stalls or
//! never comes back – they ask it for.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use gaol_cell::device::Registers;
use gaol_cell::dma::{DeviceAddress, Memory};

use super::registers::{
    AddressHigh, Cause, Control, DESCRIPTOR_SIZE, ReceiveControl, ReceiveStatus, Received, Status,
    TRANSMIT_DONE, TransmitCommand, TransmitControl, Transmitted, offset,
};
use super::ring::{BUFFER_SIZE, MEMORY_SIZE};

/// Where the device finds the memory.
pub const DEVICE_BASE: u64 = 0x7654_0000;

/// The controller, as those see it who hold the wire.
#[derive(Clone, Default)]
pub struct Device(Rc<State>);

#[derive(Default)]
struct State {
    registers: RefCell<BTreeMap<u32, u32>>,
    memory: RefCell<Vec<u8>>,
    sent: RefCell<Vec<Vec<u8>>>,
    collected: RefCell<Vec<u8>>,
    eeprom: Cell<Option<[u8; 6]>>,
    is_stuck: Cell<bool>,
    is_stalled: Cell<bool>,
    is_narrow: Cell<bool>,
    strays: Cell<u32>,
    accesses: Cell<u32>,
}

impl Device {
    /// A controller after power on, with this address.
    #[must_use]
    pub fn new(address: [u8; 6]) -> Self {
        let device = Self::default();
        *device.0.memory.borrow_mut() = vec![0xa5; MEMORY_SIZE];
        let [a, b, c, d, e, f] = address;
        let high = u32::from(u16::from_le_bytes([e, f])) | AddressHigh::VALID.bits();
        device.set(offset::ADDRESS_LOW, u32::from_le_bytes([a, b, c, d]));
        device.set(offset::ADDRESS_HIGH, high);
        device
    }

    /// Takes the address away, and puts one into the EEPROM; `None`: the EEPROM never answers.
    pub fn set_eeprom(&self, address: Option<[u8; 6]>) {
        self.set(offset::ADDRESS_LOW, 0);
        self.set(offset::ADDRESS_HIGH, 0);
        self.0.eeprom.set(address);
    }

    /// A reset never ends.
    pub fn be_stuck(&self) {
        self.0.is_stuck.set(true);
    }

    /// Nothing is sent, until it is told otherwise.
    pub fn stall(&self, on: bool) {
        self.0.is_stalled.set(on);
        if !on {
            self.transmit();
        }
    }

    /// The EEPROM's register has the layout of the 82540EM.
    pub fn be_narrow(&self) {
        self.0.is_narrow.set(true);
    }

    /// The registers, for the driver.
    #[must_use]
    pub fn registers(&self) -> ModelRegisters {
        ModelRegisters(self.clone())
    }

    /// The memory, for the driver.
    #[must_use]
    pub fn memory(&self) -> ModelMemory {
        ModelMemory(self.clone())
    }

    /// What was sent since the last call.
    #[must_use]
    pub fn sent(&self) -> Vec<Vec<u8>> {
        self.0.sent.take()
    }

    /// How often the driver has used a register since the last call.
    #[must_use]
    pub fn accesses(&self) -> u32 {
        self.0.accesses.take()
    }

    /// How often the device was sent to memory that is not its own.
    #[must_use]
    pub fn strays(&self) -> u32 {
        self.0.strays.get()
    }

    /// The value of a register, as the device has it.
    #[must_use]
    pub fn get(&self, register: u32) -> u32 {
        let registers = self.0.registers.borrow();
        registers.get(&register).copied().unwrap_or(0)
    }

    /// Sets a register, whatever a driver could.
    pub fn set(&self, register: u32, value: u32) {
        self.0.registers.borrow_mut().insert(register, value);
    }

    /// Whether it interrupts.
    #[must_use]
    pub fn interrupts(&self) -> bool {
        self.get(offset::INTERRUPT_CAUSE) & self.get(offset::INTERRUPT_MASK_SET) != 0
    }

    /// A frame comes in. `false`: nobody took it.
    pub fn deliver(&self, frame: &[u8]) -> bool {
        let control = ReceiveControl::from_bits_retain(self.get(offset::RECEIVE_CONTROL));
        if !control.contains(ReceiveControl::ENABLE) {
            return false;
        }
        let pieces = frame.chunks(BUFFER_SIZE).count();
        if self.room() < pieces {
            self.set(
                offset::MISSED_PACKETS,
                self.get(offset::MISSED_PACKETS).saturating_add(1),
            );
            self.raise(Cause::RECEIVE_OVERRUN);
            return false;
        }
        for (number, piece) in frame.chunks(BUFFER_SIZE).enumerate() {
            let mut status = ReceiveStatus::DONE;
            status.set(ReceiveStatus::END, number + 1 == pieces);
            let word = Received::new()
                .with_length(piece.len() as u16)
                .with_status(status.bits());
            self.fill(piece, word);
        }
        self.raise(Cause::RECEIVED | Cause::RECEIVE_QUEUE);
        true
    }

    /// Fills the next descriptor with this, true or not.
    pub fn fill(&self, data: &[u8], word: Received) {
        let (head, descriptor) = self.descriptor(offset::RECEIVE_BASE_LOW, offset::RECEIVE_HEAD);
        let buffer = u64::from_le_bytes(self.load(descriptor));
        self.store(buffer, data);
        self.store(descriptor + 8, &word.into_bits().to_le_bytes());
        let length = self.get(offset::RECEIVE_LENGTH) / DESCRIPTOR_SIZE as u32;
        self.set(offset::RECEIVE_HEAD, (head + 1) % length.max(1));
    }

    /// Writes garbage anywhere into the memory.
    pub fn scribble(&self, at: usize, value: u64) {
        let mut memory = self.0.memory.borrow_mut();
        if let Some(place) = memory.get_mut(at..at + 8) {
            place.copy_from_slice(&value.to_le_bytes());
        }
    }

    /// Descriptors that the device may fill.
    fn room(&self) -> usize {
        let length = self.get(offset::RECEIVE_LENGTH) / DESCRIPTOR_SIZE as u32;
        let head = self.get(offset::RECEIVE_HEAD);
        let tail = self.get(offset::RECEIVE_TAIL);
        ((tail + length - head) % length.max(1)) as usize
    }

    fn raise(&self, causes: Cause) {
        let pending = self.get(offset::INTERRUPT_CAUSE) | causes.bits();
        self.set(offset::INTERRUPT_CAUSE, pending);
    }

    fn descriptor(&self, base: u32, head: u32) -> (u32, u64) {
        let index = self.get(head);
        let base = u64::from(self.get(base + 4)) << 32 | u64::from(self.get(base));
        (index, base + u64::from(index) * DESCRIPTOR_SIZE as u64)
    }

    fn transmit(&self) {
        let control = TransmitControl::from_bits_retain(self.get(offset::TRANSMIT_CONTROL));
        if self.0.is_stalled.get() || !control.contains(TransmitControl::ENABLE) {
            return;
        }
        let length = self.get(offset::TRANSMIT_LENGTH) / DESCRIPTOR_SIZE as u32;
        while self.get(offset::TRANSMIT_HEAD) != self.get(offset::TRANSMIT_TAIL) {
            let (head, descriptor) =
                self.descriptor(offset::TRANSMIT_BASE_LOW, offset::TRANSMIT_HEAD);
            let buffer = u64::from_le_bytes(self.load(descriptor));
            let word = Transmitted::from_bits(u64::from_le_bytes(self.load(descriptor + 8)));
            let command = TransmitCommand::from_bits_retain(word.command());
            for at in 0..u64::from(word.length()) {
                let [byte] = self.load(buffer + at);
                self.0.collected.borrow_mut().push(byte);
            }
            if command.contains(TransmitCommand::END) {
                let frame = self.0.collected.take();
                self.0.sent.borrow_mut().push(frame);
            }
            if command.contains(TransmitCommand::REPORT) {
                let word = word.with_status(TRANSMIT_DONE).into_bits();
                self.store(descriptor + 8, &word.to_le_bytes());
            }
            self.set(offset::TRANSMIT_HEAD, (head + 1) % length.max(1));
        }
    }

    fn place(&self, address: u64, length: usize) -> Option<usize> {
        let at = usize::try_from(address.checked_sub(DEVICE_BASE)?).ok()?;
        (at + length <= MEMORY_SIZE).then_some(at)
    }

    fn load<const N: usize>(&self, address: u64) -> [u8; N] {
        let memory = self.0.memory.borrow();
        let bytes = self.place(address, N).and_then(|at| memory.get(at..at + N));
        match bytes {
            Some(bytes) => bytes.try_into().unwrap_or([0; N]),
            None => {
                self.0.strays.set(self.0.strays.get() + 1);
                [0; N]
            }
        }
    }

    fn store(&self, address: u64, data: &[u8]) {
        let mut memory = self.0.memory.borrow_mut();
        let place = self.place(address, data.len());
        match place.and_then(|at| memory.get_mut(at..at + data.len())) {
            Some(place) => place.copy_from_slice(data),
            None => self.0.strays.set(self.0.strays.get() + 1),
        }
    }

    fn read_eeprom(&self, request: u32) -> u32 {
        let (shift, done) = match self.0.is_narrow.get() {
            true => (8, 1 << 4),
            false => (2, 1 << 1),
        };
        let word = (request >> shift & 0xff) as usize;
        match self.0.eeprom.get() {
            Some(address) if request & 1 != 0 => {
                let value = u16::from_le_bytes([address[2 * word], address[2 * word + 1]]);
                u32::from(value) << 16 | done
            }
            _ => request,
        }
    }
}

/// The registers of a [`Device`].
pub struct ModelRegisters(Device);

impl Registers for ModelRegisters {
    fn read(&self, register: u32) -> u32 {
        assert!(register < offset::END && register.is_multiple_of(4));
        let Self(device) = self;
        device.0.accesses.set(device.0.accesses.get() + 1);
        let value = device.get(register);
        match register {
            offset::INTERRUPT_CAUSE | offset::MISSED_PACKETS => device.set(register, 0),
            offset::EEPROM_READ => return device.read_eeprom(value),
            _ => {}
        }
        value
    }

    fn write(&mut self, register: u32, value: u32) {
        assert!(register < offset::END && register.is_multiple_of(4));
        let Self(device) = self;
        device.0.accesses.set(device.0.accesses.get() + 1);
        match register {
            offset::CONTROL => {
                let is_reset = value & Control::RESET.bits() != 0;
                if is_reset && device.0.is_stuck.get() {
                    device.set(register, value);
                    return;
                }
                let link = value & Control::SET_LINK_UP.bits() != 0;
                device.set(
                    offset::STATUS,
                    if link { Status::LINK_UP.bits() } else { 0 },
                );
                device.set(register, value & !Control::RESET.bits());
            }
            offset::INTERRUPT_CAUSE => {
                let pending = device.get(register);
                device.set(register, pending & !value);
            }
            offset::INTERRUPT_CAUSE_SET => device.raise(Cause::from_bits_retain(value)),
            offset::INTERRUPT_MASK_SET => {
                device.set(register, device.get(register) | value);
            }
            offset::INTERRUPT_MASK_CLEAR => {
                let mask = device.get(offset::INTERRUPT_MASK_SET);
                device.set(offset::INTERRUPT_MASK_SET, mask & !value);
            }
            offset::TRANSMIT_TAIL => {
                device.set(register, value);
                device.transmit();
            }
            _ => device.set(register, value),
        }
    }
}

/// The memory of a [`Device`].
pub struct ModelMemory(Device);

impl Memory for ModelMemory {
    fn size(&self) -> usize {
        self.0.0.memory.borrow().len()
    }

    fn device_address(&self, offset: usize) -> DeviceAddress {
        assert!(offset <= MEMORY_SIZE);
        DeviceAddress::new(DEVICE_BASE + offset as u64)
    }

    fn read(&self, offset: usize) -> u64 {
        let mut word = [0; 8];
        self.copy_out(offset, &mut word);
        u64::from_le_bytes(word)
    }

    fn write(&mut self, offset: usize, value: u64) {
        self.copy_in(offset, &value.to_le_bytes());
    }

    fn copy_out(&self, offset: usize, to: &mut [u8]) {
        to.copy_from_slice(&self.0.0.memory.borrow()[offset..offset + to.len()]);
    }

    fn copy_in(&mut self, offset: usize, from: &[u8]) {
        self.0.0.memory.borrow_mut()[offset..offset + from.len()].copy_from_slice(from);
    }
}
