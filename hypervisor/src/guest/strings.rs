//! String instructions at moderated ranges: one element for each exit.
//!
//! As the processor does it: after each element the index registers step and the count goes down, and the instruction is
//! begun again as long as the count is not 0. So no exit takes long, whatever the count.

use super::decode::{DESTINATION_INDEX, Instruction, Operation, SOURCE_INDEX, mask, segment};
use super::execute::put;
use super::memory::{Right, segment_base, to_own_memory, translate};
use super::mmio::{Refused, with_registers};
use crate::cell::moderated::{self, Lookup, Moderated};
use crate::cpu::PerCpu;
use crate::memory::address::HostPhysical;
use crate::virt::contract::GuestState;
use crate::virt::entry::Frame;

/// RCX.
const COUNT: u8 = 1;
/// The direction flag: towards lower addresses.
const DIRECTION: u64 = 1 << 10;

/// Where an element of MOVS is.
enum Place {
    Memory(HostPhysical),
    Moderated(Moderated, u64),
}

/// Where the byte at `linear` is, if the guest has the right to it.
fn locate(cpu: &PerCpu, linear: u64, right: Right) -> Result<Place, Refused> {
    let address = translate(cpu, linear, right).ok_or(Refused)?;
    match moderated::find(cpu.cell, address) {
        Lookup::Found(range) => Ok(Place::Moderated(range, address.wrapping_sub(range.start))),
        Lookup::Nothing => to_own_memory(cpu, address, right)
            .map(Place::Memory)
            .ok_or(Refused),
        Lookup::Changing => Err(Refused),
    }
}

/// Does `access` to each part of the element that is in one page: to all of it at once, or byte by byte.
fn in_parts(
    linear: u64,
    width: u8,
    mut access: impl FnMut(u64, u8, u32) -> Result<(), Refused>,
) -> Result<(), Refused> {
    if (linear & 0xfff).wrapping_add(u64::from(width)) <= 4096 {
        return access(linear, width, 0);
    }
    for byte in 0..width {
        let at = linear.wrapping_add(u64::from(byte));
        access(at, 1, u32::from(byte).wrapping_mul(8))?;
    }
    Ok(())
}

/// Copies one element.
pub(super) fn copy(
    cpu: &mut PerCpu,
    frame: &Frame,
    instruction: &Instruction,
) -> Result<(), Refused> {
    let address = &instruction.address;
    let register = |number| frame.register(cpu.guest, number);
    let source = segment_base(cpu.guest, address.segment).wrapping_add(address.offset(register, 0));
    let index = frame.register(cpu.guest, DESTINATION_INDEX) & mask(address.size);
    let destination = segment_base(cpu.guest, segment::ES).wrapping_add(index);
    // Nothing is read from registers, which may have an effect, when it can't be written anywhere.
    in_parts(destination, instruction.width, |at, _, _| {
        locate(cpu, at, Right::Write).map(|_| ())
    })?;
    let mut value = 0u64;
    in_parts(source, instruction.width, |at, width, shift| {
        let part = match locate(cpu, at, Right::Read)? {
            Place::Memory(at) => cpu.windows.read_memory(at, width),
            Place::Moderated(range, offset) => {
                with_registers(cpu, &range, |registers| registers.read(offset, width))?
            }
        };
        value |= (part & mask(width)).wrapping_shl(shift);
        Ok(())
    })?;
    in_parts(destination, instruction.width, |at, width, shift| {
        let part = value.wrapping_shr(shift) & mask(width);
        match locate(cpu, at, Right::Write)? {
            Place::Memory(at) => {
                cpu.windows.write_memory(at, width, part);
                Ok(())
            }
            Place::Moderated(range, offset) => with_registers(cpu, &range, |registers| {
                registers.write(offset, width, part)
            }),
        }
    })
}

/// Whether a repeated instruction has nothing to do at all.
pub(super) fn is_empty(guest: impl GuestState, frame: &Frame, instruction: &Instruction) -> bool {
    instruction.is_repeated && frame.register(guest, COUNT) & mask(instruction.address.size) == 0
}

/// Steps and counts after one element. Returns whether that was the last one.
pub(super) fn step(guest: impl GuestState, frame: &mut Frame, instruction: &Instruction) -> bool {
    let size = instruction.address.size;
    let mut add = |number: u8, distance: u64| {
        let before = frame.register(guest, number);
        let after = before.wrapping_add(distance) & mask(size);
        frame.set_register(guest, number, put(before, after, size, false));
        after
    };
    let width = u64::from(instruction.width);
    let distance = if guest.rflags() & DIRECTION == 0 {
        width
    } else {
        width.wrapping_neg()
    };
    if instruction.operation != Operation::STOS {
        add(SOURCE_INDEX, distance);
    }
    if instruction.operation != Operation::LODS {
        add(DESTINATION_INDEX, distance);
    }
    !instruction.is_repeated || add(COUNT, u64::MAX) == 0
}
