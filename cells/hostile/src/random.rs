//! Random attempts, the same ones for the same seed.
//!
//! Invariant: whatever is generated is survived by a cell whose `unassigned-io` is "ignore", with interrupts off: it
//! steps on nothing that the cell's own program stands on, reads and writes no memory but the cell's, and sends no INIT
//! to the cell's own CPUs. What others think of it is not considered.

use crate::attempt::{
    Attempt, Control, Destination, Instruction, Place, Register, SCRATCH_SIZE, SHARED_SIZE,
    SMALL_SIZE, Use, Width,
};

/// Random numbers (Marsaglia's xorshift with a multiplication, "xorshift64*").
#[derive(Clone, Debug)]
pub struct Random {
    state: u64,
}

impl Random {
    /// A sequence that depends on the seed alone.
    pub const fn new(seed: u64) -> Self {
        // The state may not be 0; seeds that differ little are spread.
        let state = (seed ^ 0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        Self {
            state: if state == 0 { 1 } else { state },
        }
    }

    /// The next 64 random bits.
    pub const fn bits(&mut self) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `end`, which is between 1 and 2^32.
    pub const fn below(&mut self, end: u64) -> u64 {
        ((self.bits() >> 32) * end) >> 32
    }

    /// One of these, of which there is at least one.
    pub fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    /// A value: of any size, with few bits set, or at an edge.
    pub const fn value(&mut self) -> u64 {
        match self.below(5) {
            0 => self.bits(),
            1 => 1 << self.below(64),
            2 => !(1 << self.below(64)),
            3 => self.bits() >> self.below(64),
            _ => [0, 1, u64::MAX, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff][self.below(6) as usize],
        }
    }
}

/// Kinds of operations, with how many of a thousand are of them.
const WEIGHTS: [(Kind, u64); 11] = [
    (Kind::ReadMsr, 140),
    (Kind::WriteMsr, 160),
    (Kind::Cpuid, 120),
    (Kind::Port, 120),
    (Kind::Pci, 80),
    (Kind::Hypercall, 80),
    (Kind::Interrupt, 80),
    (Kind::Memory, 130),
    (Kind::Control, 40),
    (Kind::ExtendedControl, 10),
    (Kind::Instruction, 40),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    ReadMsr,
    WriteMsr,
    Cpuid,
    Port,
    Pci,
    Hypercall,
    Interrupt,
    Memory,
    Control,
    ExtendedControl,
    Instruction,
}

/// Registers that are worth a try more often than others.
const REGISTERS: [u32; 36] = [
    0x10,
    0x1b,
    0x34,
    0x3a,
    0x3b,
    0x48,
    0x49,
    0x79,
    0x8b,
    0xc1,
    0xce,
    0xe2,
    0xfe,
    0x122,
    0x150,
    0x174,
    0x17a,
    0x186,
    0x199,
    0x1a0,
    0x1d9,
    0x200,
    0x277,
    0x2ff,
    0x38f,
    0x400,
    0x480,
    0x560,
    0x610,
    0x6e0,
    0x770,
    0xc90,
    0xda0,
    0xc000_0081,
    0xc000_0101,
    0xc000_0103,
];
/// IA32_PAT: the cell's memory would become uncached.
const PAT: u32 = 0x277;
/// IA32_EFER: the cell's program runs in long mode.
const EFER: u32 = 0xc000_0080;
/// The interrupt command register in x2APIC mode; [`Kind::Interrupt`] writes it.
const COMMAND: u32 = 0x830;
const PORTS: [u16; 16] = [
    0x20, 0x21, 0x40, 0x43, 0x60, 0x64, 0x70, 0x71, 0x92, 0xb2, 0xcf8, 0xcf9, 0xcfc, 0x2f8, 0x3f8,
    0xb004,
];
/// The hypercall that prints is left out: the console is slow.
const PRINT: u32 = 8;
const CHANGES_OF_CR0: [u32; 13] = [1, 2, 3, 5, 6, 15, 16, 18, 28, 29, 30, 32, 63];
const CHANGES_OF_CR4: [u32; 20] = [
    0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 15, 16, 19, 23, 24, 32, 63,
];
const INSTRUCTIONS: [Instruction; 24] = [
    Instruction::Vmxon,
    Instruction::Vmxoff,
    Instruction::Vmclear,
    Instruction::Vmptrld,
    Instruction::Vmptrst,
    Instruction::Vmlaunch,
    Instruction::Vmresume,
    Instruction::Vmread,
    Instruction::Vmwrite,
    Instruction::Vmfunc,
    Instruction::Invept,
    Instruction::Invvpid,
    Instruction::Vmrun,
    Instruction::Getsec,
    Instruction::Rsm,
    Instruction::Invd,
    Instruction::Wbinvd,
    Instruction::Ud2,
    Instruction::Int1,
    Instruction::Int3,
    Instruction::MovCr1,
    Instruction::LtrGarbage,
    Instruction::IretToGarbage,
    Instruction::FarJumpToGarbage,
];

const SHORTHANDS: u64 = 3 << 18;
const LOGICAL: u64 = 1 << 11;
const DELIVERY_MODE: u64 = 7 << 8;
const INIT: u64 = 5 << 8;
const STARTUP: u64 = 6 << 8;
/// APIC ids that are never the cell's: the first CPU of the root, the real-time cell's, and those of nobody.
const FOREIGN_IDS: [u32; 4] = [0, 3, 0x80, 0xfff0_0000];

/// Makes attempts.
#[derive(Clone, Debug)]
pub struct Generator {
    random: Random,
    checksum: u64,
}

impl Generator {
    /// Attempts that depend on the seed alone.
    pub const fn new(seed: u64) -> Self {
        Self {
            random: Random::new(seed),
            checksum: 0,
        }
    }

    /// A number that depends on everything that was made so far.
    pub const fn checksum(&self) -> u64 {
        self.checksum
    }

    /// The next attempt.
    pub fn attempt(&mut self) -> Attempt {
        let mut point = self.random.below(1000);
        let mut kind = Kind::Instruction;
        for (candidate, weight) in WEIGHTS {
            if point < weight {
                kind = candidate;
                break;
            }
            point -= weight;
        }
        let attempt = self.of(kind);
        self.checksum = self.checksum.rotate_left(1).wrapping_add(self.random.state);
        attempt
    }

    fn of(&mut self, kind: Kind) -> Attempt {
        let random = &mut self.random;
        match kind {
            Kind::ReadMsr => Attempt::ReadMsr(register(random)),
            Kind::WriteMsr => loop {
                let register = register(random);
                if ![PAT, EFER, COMMAND].contains(&register) {
                    break Attempt::WriteMsr(register, random.value());
                }
            },
            Kind::Cpuid => Attempt::Cpuid(leaf(random), random.below(8) as u32, Register::Eax, 0),
            Kind::Port => port(random),
            Kind::Pci => {
                let address = (random.bits() as u32 & 0xff_ffff) | 1 << 31;
                let width = random.one_of(&[Width::Byte, Width::Word, Width::Long]);
                match random.below(2) {
                    0 => Attempt::ReadPci(address, width),
                    _ => Attempt::WritePci(address, width, random.value() as u32),
                }
            }
            Kind::Hypercall => loop {
                let number = match random.below(4) {
                    0 => random.value() as u32,
                    1 => 0x100 + random.below(4) as u32,
                    _ => random.below(10) as u32,
                };
                if number != PRINT {
                    break Attempt::Hypercall(number, random.value(), random.value());
                }
            },
            Kind::Interrupt => interrupt(random),
            Kind::Memory => memory(random),
            Kind::Control => control(random),
            Kind::ExtendedControl => {
                let register = random.one_of(&[0, 0, 0, 1, 2, u32::MAX]);
                Attempt::ExtendedControl(register, random.value())
            }
            Kind::Instruction => Attempt::Execute(random.one_of(&INSTRUCTIONS)),
        }
    }
}

fn register(random: &mut Random) -> u32 {
    match random.below(6) {
        0 => random.bits() as u32,
        1 => random.below(0x2000) as u32,
        2 => 0xc000_0000 + random.below(0x2000) as u32,
        3 => 0x800 + random.below(0x40) as u32,
        4 => 0xc000_0080 + random.below(8) as u32,
        _ => random.one_of(&REGISTERS),
    }
}

fn leaf(random: &mut Random) -> u32 {
    match random.below(4) {
        0 => random.bits() as u32,
        1 => 0x8000_0000 + random.below(0x20) as u32,
        2 => 0x4000_0000 + random.below(4) as u32,
        _ => random.below(0x20) as u32,
    }
}

fn port(random: &mut Random) -> Attempt {
    let port = match random.below(2) {
        0 => random.one_of(&PORTS),
        _ => random.bits() as u16,
    };
    let width = random.one_of(&[Width::Byte, Width::Word, Width::Long]);
    match random.below(8) {
        0 => Attempt::InString(port, width, 1 + random.below(64)),
        1 => Attempt::OutString(port, width, 1 + random.below(64)),
        2..=4 => Attempt::In(port, width),
        _ => Attempt::Out(port, width, random.value() as u32),
    }
}

/// Any command, but none that could park a CPU of the cell, or interrupt one of it with a number of the exceptions.
fn interrupt(random: &mut Random) -> Attempt {
    let mut command = random.value() & 0xffff_ffff;
    let destination = if random.below(2) == 0 {
        command &= !(SHORTHANDS | LOGICAL);
        Destination::Id(random.one_of(&FOREIGN_IDS))
    } else {
        if matches!(command & DELIVERY_MODE, INIT | STARTUP) {
            command &= !DELIVERY_MODE;
        }
        command |= 0x20;
        match random.below(2) {
            0 => Destination::Own,
            _ => Destination::Id(random.value() as u32),
        }
    };
    Attempt::Interrupt(destination, command as u32)
}

/// The words of the communication region that tell the cell's state are left to those who attack them.
const COMMUNICATION_START: u64 = 0x80;

fn memory(random: &mut Random) -> Attempt {
    let width = random.one_of(&[Width::Byte, Width::Word, Width::Long, Width::Quad]);
    let (place, start, size): (fn(u64) -> Place, u64, u64) = match random.below(5) {
        0 => (Place::Scratch, 0, SCRATCH_SIZE),
        1 => (Place::Shared, 0, SHARED_SIZE),
        2 => (Place::Constant, 0, SMALL_SIZE),
        3 => (Place::Data, 0, SMALL_SIZE),
        _ => (Place::Communication, COMMUNICATION_START, SMALL_SIZE),
    };
    let offset = start + random.below(size - start - width.bytes() + 1);
    let place = place(offset);
    let work = match random.below(4) {
        _ if matches!(place, Place::Constant(_)) => Use::Read(width),
        0 => Use::Read(width),
        1 => Use::Write(width, random.value()),
        2 => Use::Add(width, random.value()),
        _ => Use::Fill(random.below(64).min(size - offset)),
    };
    Attempt::Memory(place, work)
}

fn control(random: &mut Random) -> Attempt {
    let (register, bit) = match random.below(2) {
        0 => (Control::Cr0, random.one_of(&CHANGES_OF_CR0)),
        _ => (Control::Cr4, random.one_of(&CHANGES_OF_CR4)),
    };
    match random.below(2) {
        0 => Attempt::ChangeControl(register, 1 << bit, 0),
        _ => Attempt::ChangeControl(register, 0, 1 << bit),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    extern crate std;
    use std::collections::BTreeMap;
    use std::mem::discriminant;

    const MANY: usize = 300_000;

    #[test]
    fn the_same_seed_makes_the_same_attempts() {
        let mut first = Generator::new(1);
        let mut second = Generator::new(1);
        let mut third = Generator::new(2);
        let mut differ = 0;
        for _ in 0..10_000 {
            let attempt = first.attempt();
            assert_eq!(attempt, second.attempt());
            differ += u32::from(attempt != third.attempt());
        }
        assert_eq!(first.checksum(), second.checksum());
        assert_ne!(first.checksum(), third.checksum());
        assert!(differ > 9_000);
    }

    #[test]
    fn the_weights_are_kept() {
        assert_eq!(WEIGHTS.iter().map(|(_, weight)| weight).sum::<u64>(), 1000);
        let mut generator = Generator::new(7);
        let mut counts = BTreeMap::new();
        for _ in 0..MANY {
            let class = std::format!("{:?}", discriminant(&generator.attempt()));
            *counts.entry(class).or_insert(0_usize) += 1;
        }
        // Both ways of MSRs, ports, strings and PCI; CPUID, hypercalls, interrupts, memory, both kinds of controls,
        // instructions.
        assert_eq!(counts.len(), 15);
        assert!(
            counts.values().all(|count| *count > MANY / 250),
            "{counts:?}"
        );
    }

    fn is_inside(place: Place, work: Use) -> bool {
        let bytes = match work {
            Use::Read(width) | Use::Write(width, _) | Use::Add(width, _) => width.bytes(),
            Use::Fill(bytes) => bytes,
            _ => return false,
        };
        match place {
            Place::Scratch(offset) => offset + bytes <= SCRATCH_SIZE,
            Place::Shared(offset) => offset + bytes <= SHARED_SIZE,
            Place::Communication(offset) => {
                offset >= COMMUNICATION_START && offset + bytes <= SMALL_SIZE
            }
            Place::Constant(offset) => matches!(work, Use::Read(_)) && offset + bytes <= SMALL_SIZE,
            Place::Data(offset) => offset + bytes <= SMALL_SIZE,
            _ => false,
        }
    }

    #[test]
    fn nothing_ruins_the_cells_own_program() {
        for seed in 0..4 {
            let mut generator = Generator::new(seed);
            for _ in 0..MANY {
                match generator.attempt() {
                    Attempt::WriteMsr(register, _) => {
                        assert!(![PAT, EFER, COMMAND].contains(&register));
                    }
                    Attempt::Hypercall(number, ..) => assert_ne!(number, PRINT),
                    Attempt::Interrupt(destination, command) => {
                        let command = u64::from(command);
                        let is_foreign = matches!(destination, Destination::Id(id) if FOREIGN_IDS.contains(&id))
                            && command & (SHORTHANDS | LOGICAL) == 0;
                        let parks = matches!(command & DELIVERY_MODE, INIT | STARTUP);
                        assert!(is_foreign || !parks && command & 0xff >= 0x20);
                    }
                    Attempt::Memory(place, work) => assert!(is_inside(place, work)),
                    // Each is put back, and none of them stops the next instruction from being fetched.
                    Attempt::ChangeControl(Control::Cr0, set, clear) => {
                        assert_eq!((set | clear).count_ones(), 1);
                        assert!(clear != 1 && clear != 1 << 31);
                    }
                    Attempt::ChangeControl(Control::Cr4, set, clear) => {
                        assert_eq!((set | clear).count_ones(), 1);
                        assert!(clear != 1 << 5);
                    }
                    other @ (Attempt::ChangeControl(..)
                    | Attempt::ExecuteAsUser(_)
                    | Attempt::End(_)
                    | Attempt::ChangeMsr(..)) => panic!("{other:?}"),
                    _ => {}
                }
            }
        }
    }
}
