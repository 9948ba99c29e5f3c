//! Against the processor that runs the test: random instructions with random registers, flags and memory are done by both.

extern crate std;
use std::vec::Vec;

use super::super::decode::{Mode, decode};
use super::super::native::{Page, State};
use super::super::random::Random;
use super::*;

impl Random {
    /// A number of those that come near to carries and signs.
    fn value(&mut self) -> u64 {
        let shifted = self.next() >> self.below(64);
        match self.below(8) {
            0 => 0,
            1 => u64::MAX,
            2 => 1 << self.below(64),
            3 => (1u64 << self.below(64)).wrapping_sub(1),
            4 => shifted,
            5 => shifted.wrapping_neg(),
            _ => self.next(),
        }
    }
}

const LOCK: u8 = 0xf0;

/// Whether the processor that runs the test can do it, and it must not be left out.
fn is_possible(instruction: &Instruction) -> bool {
    let uses_stack_pointer = instruction.operand == Operand::Register(4);
    let is_known = instruction.operation != Operation::MOVE_SWAPPED
        || std::arch::is_x86_feature_detected!("movbe");
    // String instructions do not take their address from the ModRM byte.
    !uses_stack_pointer && is_known && !instruction.is_string()
}

/// Flags that the SDM leaves undefined.
fn undefined(operation: Operation) -> u64 {
    match operation {
        Operation::OR | Operation::AND | Operation::XOR | Operation::TEST => flag::AUXILIARY,
        Operation::BT | Operation::BTS | Operation::BTR | Operation::BTC => {
            flag::STATUS & !flag::CARRY & !flag::ZERO
        }
        _ => 0,
    }
}

/// A random instruction with the operand at the absolute address `at`.
fn random_instruction(random: &mut Random, at: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    match random.below(6) {
        0 => bytes.push(LOCK),
        1 => bytes.push(0x66),
        2 => bytes.extend([0x66, LOCK]),
        _ => {}
    }
    match random.below(4) {
        // W and R only: there is no base and no index.
        0 => bytes.push(0x40 | random.next() as u8 & 12),
        1 => bytes.push(0x48),
        _ => {}
    }
    match random.below(8) {
        0..=3 => {}
        4..=6 => bytes.push(0x0f),
        _ => bytes.extend([0x0f, 0x38, 0xf0 | random.next() as u8 & 1]),
    }
    if bytes
        .last()
        .is_none_or(|last| *last & 0xfe != 0xf0 || *last == LOCK)
    {
        bytes.push(random.next() as u8);
    }
    // An absolute address: no base, no index.
    bytes.extend([(random.next() as u8 & 7) << 3 | 4, 0x25]);
    bytes.extend((at as u32).to_le_bytes());
    bytes.extend(random.next().to_le_bytes());
    bytes
}

#[test]
fn does_what_the_processor_does() {
    let page = Page::new();
    let mut random = Random(0x1357_9bdf_0246_8ace);
    let mut done = std::collections::BTreeMap::new();
    for _ in 0..1_500_000 {
        let bytes = random_instruction(&mut random, page.data());
        let Ok(instruction) = decode(&bytes, Mode::Bits64) else {
            continue;
        };
        if !is_possible(&instruction) || instruction.address.displacement != page.data() {
            continue;
        }
        let mut before = State {
            registers: core::array::from_fn(|_| random.value()),
            // Bit 1 is always set, and so are interrupts while a program runs.
            flags: random.next() & flag::STATUS | 0x202,
        };
        let data = random.value();
        if random.below(2) == 0 {
            // The accumulator as CMPXCHG likes it.
            before.registers[0] = data;
        }
        let outcome = execute(
            &instruction,
            data,
            |number| before.registers[usize::from(number)],
            before.flags,
        );
        let mut ours = before;
        ours.flags = outcome.flags;
        if let Some((number, value)) = outcome.register {
            ours.registers[usize::from(number)] = value;
        }
        let width = mask(instruction.width);
        let our_data = outcome.memory.map_or(data, |value| data & !width | value);
        assert!(instruction.writes() == outcome.memory.is_some());
        let mut theirs = before;
        let end = usize::from(instruction.length);
        let their_data = page.run(&bytes[..end], &mut theirs, data);
        let unknown = undefined(instruction.operation);
        theirs.flags = theirs.flags & !unknown | ours.flags & unknown;
        assert_eq!(
            (ours, our_data),
            (theirs, their_data),
            "{:02x?} {instruction:x?}\nbefore: {before:x?}, {data:#x}",
            &bytes[..end]
        );
        *done
            .entry((instruction.operation.0, instruction.width))
            .or_insert(0u32) += 1;
    }
    for operation in Operation::ADD.0..=Operation::MOVE_IF.0 {
        let widths: Vec<u32> = [1, 2, 4, 8]
            .iter()
            .filter_map(|width| done.get(&(operation, *width)).copied())
            .collect();
        let least = match Operation(operation) {
            Operation::SET => 1,
            Operation::MOVE_SWAPPED | Operation::MOVE_IF => 3,
            Operation::BT | Operation::BTS | Operation::BTR | Operation::BTC => 3,
            Operation::MOVE_SIGNED => 3,
            _ => 4,
        };
        assert!(widths.len() >= least, "{operation}: {widths:?}");
    }
}

/// The parts of string instructions that are not counting and stepping.
#[test]
fn elements_are_moved() {
    let registers = |number: u8| 0x1111_2222_3333_4444 + u64::from(number);
    let all = 0x8899_aabb_ccdd_eeff;
    let outcome = |bytes: &[u8]| {
        let instruction = decode(bytes, Mode::Bits64).unwrap();
        let outcome = execute(&instruction, all, registers, 2);
        assert_eq!(outcome.flags, 2);
        (outcome.memory, outcome.register)
    };
    assert_eq!(outcome(&[0xaa]), (Some(0x44), None));
    assert_eq!(
        outcome(&[0xf3, 0x48, 0xab]),
        (Some(0x1111_2222_3333_4444), None)
    );
    assert_eq!(outcome(&[0xac]), (None, Some((0, 0x1111_2222_3333_44ff))));
    assert_eq!(outcome(&[0xad]), (None, Some((0, 0xccdd_eeff))));
    assert_eq!(outcome(&[0xa5]), (Some(0xccdd_eeff), None));
}

#[test]
fn flags_that_are_no_status_stay() {
    for flags in [0u64, 0x202, 0x24_7f02 & !flag::STATUS] {
        // ADD [RAX], EBX and NOT [RAX].
        for bytes in [[0x01, 0x18], [0xf7, 0x10]] {
            let instruction = decode(&bytes, Mode::Bits64).unwrap();
            let outcome = execute(&instruction, 5, |_| 7, flags);
            assert_eq!(outcome.flags & !flag::STATUS, flags);
        }
    }
}
