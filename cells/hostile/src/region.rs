//! Garbage in the memory that the root and the hypervisor read: the communication region and the shared region.

use gaol_abi::communication::{CellState, CommunicationRegion};
use gaol_cell::COMMUNICATION_REGION;
use hostile_cell::attempt::{SHARED, SHARED_SIZE, SMALL_SIZE};
use hostile_cell::random::Random;

use crate::say::say;

/// Words of 4 bytes of the communication region that have a meaning.
const WORDS: u64 = size_of::<CommunicationRegion>() as u64 / 4;
/// Where the cell tells its state.
const STATE: u64 = core::mem::offset_of!(CommunicationRegion, cell_state) as u64;

fn write(address: u64, value: u32) {
    // SAFETY: Both regions are no memory of Rust's, and the addresses are aligned.
    unsafe { (address as *mut u32).write_volatile(value) };
}

/// Writes garbage `count` times, most of it where it has a meaning.
pub fn attack(random: &mut Random, count: u64) {
    for _ in 0..count {
        let value = match random.below(3) {
            0 => random.below(8) as u32,
            _ => random.value() as u32,
        };
        let address = match random.below(8) {
            0 => COMMUNICATION_REGION.number() + 4 * random.below(SMALL_SIZE / 4),
            1 => SHARED + 4 * random.below(SHARED_SIZE / 4),
            _ => COMMUNICATION_REGION.number() + 4 * random.below(WORDS),
        };
        write(address, value);
    }
}

/// The cell says that it runs, whatever it has said before.
pub fn end() {
    write(COMMUNICATION_REGION.number() + STATE, CellState::Running.0);
}

/// Writes garbage and never answers.
pub fn attack_for_ever(seed: u64) -> ! {
    let mut random = Random::new(seed);
    say!("region attack");
    loop {
        attack(&mut random, 1_000_000);
    }
}
