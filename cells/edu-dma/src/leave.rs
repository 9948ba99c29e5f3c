//! Devices that are at work, over and over again, until somebody ends the cell.

use edu_dma_cell::attack::{LEFT, LEFT_AT, LENGTH, Leave};
use edu_dma_cell::outcome::Line;
use gaol_cell::device::Registers;
use gaol_cell::dma::Memory;

use gaol_cell::mmio::Mmio;
use gaol_cell::{Cell, println};
use gaol_devices::e1000::registers::offset;
use gaol_devices::e1000::{Controller, Interrupts, MEMORY_SIZE, Model};
use gaol_devices::edu::{Direction, Transfer};

use crate::perform::Attacker;

/// An address that is not for the cell's devices, and descriptors that a ring of the card has at least.
const NOBODYS: u32 = 0x100_0000;
const DESCRIPTORS: u32 = 8;

/// Starts the device, says so, and keeps it at work.
pub fn leave(cell: &mut Cell, mut attacker: Attacker, number: usize, what: Leave) -> ! {
    let said = || println!("{}", Line::Left(number));
    match what {
        Leave::Write | Leave::Read => {
            let mark: [u8; LENGTH as usize] = core::array::from_fn(|at| LEFT[at % LEFT.len()]);
            if attacker.fetch(&mark).is_err() {
                panic!("the device does not fetch what it shall write");
            }
            let transfer = Transfer {
                direction: match what {
                    Leave::Write => Direction::Write,
                    _ => Direction::Read,
                },
                address: attacker.dma.device_address(LEFT_AT as usize),
                at: 0,
                length: LENGTH,
                interrupts: false,
            };
            said();
            loop {
                if !attacker.edu.is_busy() {
                    let _ = attacker.edu.begin(transfer);
                }
                cell.poll();
            }
        }
        Leave::Interrupt => {
            attacker.give_own_message();
            said();
            loop {
                attacker.edu.raise(1);
                attacker.edu.acknowledge();
                cell.poll();
            }
        }
        Leave::Receive => {
            let Some(card) = attacker.card else {
                panic!("the cell has no network card");
            };
            let memory = cell.take_dma(MEMORY_SIZE);
            let registers = Mmio::at(card.registers.base(), offset::END);
            let started = Controller::start(registers, memory, Model::I82574, Interrupts::None);
            let mut controller = started.unwrap_or_else(|problem| panic!("{problem}"));
            said();
            let mut frame = [0; 2048];
            loop {
                controller.receive(&mut frame);
                cell.poll();
            }
        }
        Leave::Storm => {
            let Some(card) = attacker.card else {
                panic!("the cell has no network card");
            };
            let memory = cell.take_dma(MEMORY_SIZE);
            let registers = Mmio::at(card.registers.base(), offset::END);
            let started = Controller::start(registers, memory, Model::I82574, Interrupts::None);
            started.unwrap_or_else(|problem| panic!("{problem}"));
            let mut registers = card.registers;
            registers.write(offset::TRANSMIT_BASE_LOW, NOBODYS);
            said();
            // Each makes the card fetch a descriptor.
            let mut tail = 0;
            loop {
                tail = (tail + 1) % DESCRIPTORS;
                registers.write(offset::TRANSMIT_TAIL, tail);
                cell.poll();
            }
        }
    }
}
