//! QEMU's device for teaching: it does DMA on command, and interrupts.
//!
//! QEMU's documentation, "EDU device". Its transfers go between memory and an own buffer of 4096 bytes, a tenth of a second
//! after the command. A transfer of all 4096 bytes ends QEMU 7.2, so a transfer has [`LONGEST`] bytes at the most here.

use gaol_cell::device::{Registers, wait};
use gaol_cell::dma::DeviceAddress;
use gaol_cell::pci::Id;

/// Its vendor and device id.
pub const ID: Id = Id {
    vendor: 0x1234,
    device: 0x11e8,
};
/// Bytes of its registers.
pub const SIZE: u32 = 0x10_0000;
/// The most bytes of a transfer.
pub const LONGEST: u32 = 2048;
/// The interrupt status of a transfer that is over.
pub const DMA_DONE: u32 = 0x100;

mod offset {
    pub const IDENTIFICATION: u32 = 0x00;
    pub const LIVENESS: u32 = 0x04;
    pub const STATUS: u32 = 0x24;
    pub const RAISE: u32 = 0x60;
    pub const ACKNOWLEDGE: u32 = 0x64;
    pub const DMA_SOURCE: u32 = 0x80;
    pub const DMA_DESTINATION: u32 = 0x88;
    pub const DMA_COUNT: u32 = 0x90;
    pub const DMA_COMMAND: u32 = 0x98;
}

/// Where the device has its buffer, for itself.
const BUFFER: u32 = 0x4_0000;
const RUN: u32 = 1;
const TO_MEMORY: u32 = 2;
const INTERRUPT: u32 = 4;

/// Where a transfer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From memory into the device.
    Read,
    /// From the device into memory.
    Write,
}

/// A transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// Where it goes.
    pub direction: Direction,
    /// The address in memory.
    pub address: DeviceAddress,
    /// Offset in the device's buffer.
    pub at: u32,
    /// Bytes.
    pub length: u32,
    /// Whether the device interrupts when it is over.
    pub interrupts: bool,
}

/// Why there is no transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// It is longer than [`LONGEST`], or leaves the device's buffer.
    Length,
    /// The device is still busy with another one.
    Busy,
    /// It did not come to an end.
    Late,
}

/// The device.
#[derive(Debug)]
pub struct Edu<R> {
    registers: R,
}

impl<R: Registers> Edu<R> {
    /// Takes the device into use. `None`: these are not its registers.
    pub fn new(mut registers: R) -> Option<Self> {
        let is_edu = registers.read(offset::IDENTIFICATION) & 0xff == 0xed;
        registers.write(offset::LIVENESS, 0x1234_5678);
        let lives = registers.read(offset::LIVENESS) == !0x1234_5678;
        (is_edu && lives).then_some(Self { registers })
    }

    /// Commands a transfer, which begins some time later.
    ///
    /// # Errors
    /// See [`Problem`].
    pub fn begin(&mut self, transfer: Transfer) -> Result<(), Problem> {
        let end = transfer.at.checked_add(transfer.length);
        if transfer.length > LONGEST || end.is_none_or(|end| end > 2 * LONGEST) {
            return Err(Problem::Length);
        }
        if self.is_busy() {
            return Err(Problem::Busy);
        }
        let own = u64::from(BUFFER + transfer.at);
        let memory = transfer.address.number();
        let (source, destination, direction) = match transfer.direction {
            Direction::Read => (memory, own, 0),
            Direction::Write => (own, memory, TO_MEMORY),
        };
        // A register of it is 64 bits wide; 32 of them are written at once, and the others become zero.
        self.registers.write(offset::DMA_SOURCE, source as u32);
        let destination = destination as u32;
        self.registers.write(offset::DMA_DESTINATION, destination);
        self.registers.write(offset::DMA_COUNT, transfer.length);
        let interrupt = if transfer.interrupts { INTERRUPT } else { 0 };
        let command = RUN | direction | interrupt;
        self.registers.write(offset::DMA_COMMAND, command);
        Ok(())
    }

    /// Whether a transfer is under way.
    pub fn is_busy(&self) -> bool {
        self.registers.read(offset::DMA_COMMAND) & RUN != 0
    }

    /// Makes a transfer and waits for its end, looking so many times.
    ///
    /// # Errors
    /// See [`Problem`].
    pub fn transfer(&mut self, transfer: Transfer, attempts: u32) -> Result<(), Problem> {
        self.begin(transfer)?;
        match wait(attempts, || !self.is_busy()) {
            true => Ok(()),
            false => Err(Problem::Late),
        }
    }

    /// Lets the device interrupt with this status.
    pub fn raise(&mut self, status: u32) {
        self.registers.write(offset::RAISE, status);
    }

    /// Why the device interrupts.
    pub fn status(&self) -> u32 {
        self.registers.read(offset::STATUS)
    }

    /// Answers the interrupt.
    pub fn acknowledge(&mut self) {
        let status = self.status();
        self.registers.write(offset::ACKNOWLEDGE, status);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::collections::BTreeMap;

    use super::*;

    /// The registers, and a transfer that ends after some looks.
    #[derive(Default)]
    struct Model {
        registers: BTreeMap<u32, u32>,
        looks: Cell<u32>,
        liveness: u32,
        identification: u32,
    }

    impl Registers for Model {
        fn read(&self, offset: u32) -> u32 {
            match offset {
                offset::IDENTIFICATION => self.identification,
                offset::LIVENESS => self.liveness,
                offset::DMA_COMMAND if self.looks.get() > 0 => {
                    self.looks.set(self.looks.get() - 1);
                    self.registers.get(&offset).copied().unwrap_or(0)
                }
                offset::DMA_COMMAND => 0,
                _ => self.registers.get(&offset).copied().unwrap_or(0),
            }
        }

        fn write(&mut self, offset: u32, value: u32) {
            match offset {
                offset::LIVENESS => self.liveness = !value,
                offset::DMA_COMMAND => self.looks.set(3),
                offset::RAISE => {
                    *self.registers.entry(offset::STATUS).or_default() |= value;
                }
                offset::ACKNOWLEDGE => {
                    *self.registers.entry(offset::STATUS).or_default() &= !value;
                }
                _ => {}
            }
            self.registers.insert(offset, value);
        }
    }

    fn edu() -> Edu<Model> {
        Edu::new(Model {
            identification: 0x0100_00ed,
            ..Model::default()
        })
        .unwrap()
    }

    fn transfer(direction: Direction) -> Transfer {
        Transfer {
            direction,
            address: DeviceAddress::new(0x1234_5000),
            at: 0x100,
            length: 64,
            interrupts: false,
        }
    }

    #[test]
    fn another_device_is_not_taken() {
        assert!(Edu::new(Model::default()).is_none());
    }

    #[test]
    fn a_transfer_goes_where_it_should() {
        let mut edu = edu();
        edu.transfer(transfer(Direction::Write), 10).unwrap();
        let register = |edu: &Edu<Model>, at| edu.registers.registers[&at];
        assert_eq!(register(&edu, offset::DMA_SOURCE), 0x4_0100);
        assert_eq!(register(&edu, offset::DMA_DESTINATION), 0x1234_5000);
        assert_eq!(register(&edu, offset::DMA_COUNT), 64);
        assert_eq!(register(&edu, offset::DMA_COMMAND), 3);
        let with_interrupt = Transfer {
            interrupts: true,
            ..transfer(Direction::Read)
        };
        edu.transfer(with_interrupt, 10).unwrap();
        assert_eq!(register(&edu, offset::DMA_SOURCE), 0x1234_5000);
        assert_eq!(register(&edu, offset::DMA_COMMAND), 5);
    }

    #[test]
    fn what_would_end_the_emulator_is_not_commanded() {
        let mut edu = edu();
        for (at, length) in [(0, 4096), (0, LONGEST + 1), (0xfff, 2), (u32::MAX, 2)] {
            let wrong = Transfer {
                at,
                length,
                ..transfer(Direction::Read)
            };
            assert_eq!(edu.begin(wrong), Err(Problem::Length));
        }
        assert!(!edu.registers.registers.contains_key(&offset::DMA_COMMAND));
    }

    #[test]
    fn one_transfer_at_a_time() {
        let mut edu = edu();
        edu.begin(transfer(Direction::Read)).unwrap();
        assert_eq!(edu.begin(transfer(Direction::Read)), Err(Problem::Busy));
        let late = edu.transfer(transfer(Direction::Read), 2);
        assert!(
            matches!(late, Err(Problem::Busy | Problem::Late)),
            "{late:?}"
        );
    }

    #[test]
    fn an_interrupt_is_answered() {
        let mut edu = edu();
        edu.raise(0x42);
        assert_eq!(edu.status(), 0x42);
        edu.acknowledge();
        assert_eq!(edu.status(), 0);
    }
}
