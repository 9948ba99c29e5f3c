//! Accesses to moderated ranges: the hypervisor decodes the instruction, asks whoever keeps the registers, and does to
//! the guest's registers what the instruction says.
//!
//! Invariant: an access is let through only inside its range, and as the keeper of the range permits. What is refused
//! stops a cell's CPU with the address on record; the root's reads ones or writes nothing, and is counted.

use super::decode::{Instruction, Operation};
use super::execute::execute;
use super::memory::{Fetched, advance_by, segment_base};
use super::vectoring::Exception;
use super::{Verdict, fault, io_apic, pci, strings};
use crate::cell::moderated::{Moderated, What};
use crate::cpu::PerCpu;
use crate::cpu::window::Windows;
use crate::device::pci::hardware::ConfigRange;
use crate::iommu::service;
use crate::memory::address::HostPhysical;
use crate::system;
use crate::virt::contract::{GuestState, NestedFault};
use crate::virt::entry::Frame;

/// Registers that guests reach through the hypervisor only, at offsets from their start.
///
/// Whoever implements this checks what it is asked for: any offset inside the range and any width can come, also an
/// access that begins inside the range and ends behind it.
pub trait Registers {
    /// Reads `width` (1, 2, 4 or 8) bytes at `offset`.
    ///
    /// # Errors
    /// When the guest may not do that.
    fn read(&mut self, offset: u64, width: u8) -> Result<u64, Refused>;

    /// Writes the low `width` bytes of `value` at `offset`.
    ///
    /// # Errors
    /// When the guest may not do that.
    fn write(&mut self, offset: u64, width: u8, value: u64) -> Result<(), Refused>;
}

/// The guest may not do that: a cell's CPU is stopped, the root's access has no effect and is counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refused;

/// Lets `run` use the registers of a moderated range.
pub(super) fn with_registers<R>(
    cpu: &mut PerCpu,
    range: &Moderated,
    run: impl FnOnce(&mut dyn Registers) -> R,
) -> R {
    match range.what {
        What::Registers {
            physical,
            widths,
            writable,
        } => run(&mut Part {
            windows: cpu.windows,
            physical,
            size: range.size,
            widths,
            writable,
            is_root: cpu.is_root,
        }),
        What::IoApic(unit) => run(&mut io_apic::View::new(cpu, unit)),
        What::Iommu(unit) => run(&mut Unit {
            windows: cpu.windows,
            unit,
        }),
        What::Remainder => run(&mut Remainder {
            windows: cpu.windows,
            start: range.start,
        }),
        What::PciConfiguration { segment, first } => {
            let space = ConfigRange::moderated(range.start, segment, first);
            run(&mut pci::Configuration::new(cpu, space))
        }
        What::MsixTable {
            function,
            physical,
            writable,
        } => {
            let place = (physical.as_u64(), range.size);
            run(&mut pci::TablePage::new(cpu, function, place, writable))
        }
    }
}

/// An IOMMU as the root sees it. What the registers do not define has no effect and reads as zero.
struct Unit {
    windows: Windows,
    unit: u8,
}

impl Registers for Unit {
    fn read(&mut self, offset: u64, width: u8) -> Result<u64, Refused> {
        Ok(service::read(self.windows, self.unit, offset, width))
    }

    fn write(&mut self, offset: u64, width: u8, value: u64) -> Result<(), Refused> {
        service::write(self.windows, self.unit, (offset, width), value);
        Ok(())
    }
}

/// Registers of a device, or a part of them.
struct Part {
    windows: Windows,
    physical: HostPhysical,
    size: u64,
    widths: u8,
    writable: bool,
    is_root: bool,
}

impl Part {
    fn check(&self, offset: u64, width: u8) -> Result<HostPhysical, Refused> {
        check_part(offset, width, self.size, self.widths)?;
        let at = self.physical.as_u64().wrapping_add(offset);
        // What is listed for a strict root can still be given to a cell.
        if self.is_root {
            check_roots(at, width)?;
        }
        Ok(HostPhysical::new(at))
    }
}

/// Whether an access is inside the range, of a permitted size, and aligned. Offsets count from where both address spaces
/// are aligned alike.
fn check_part(offset: u64, width: u8, size: u64, widths: u8) -> Result<(), Refused> {
    let bytes = u64::from(width);
    let ends_inside = offset.checked_add(bytes).is_some_and(|end| end <= size);
    (ends_inside && widths & width != 0)
        .then_some(())
        .ok_or(Refused)
}

impl Registers for Part {
    fn read(&mut self, offset: u64, width: u8) -> Result<u64, Refused> {
        let at = aligned(self.check(offset, width)?, width)?;
        Ok(self.windows.read_device(at, width))
    }

    fn write(&mut self, offset: u64, width: u8, value: u64) -> Result<(), Refused> {
        let at = aligned(self.check(offset, width)?, width)?;
        if !self.writable {
            return Err(Refused);
        }
        self.windows.write_device(at, width, value);
        Ok(())
    }
}

/// Devices take aligned accesses only; an access that is not would be two.
fn aligned(at: HostPhysical, width: u8) -> Result<HostPhysical, Refused> {
    let is_aligned = at.as_u64() & u64::from(width).wrapping_sub(1) == 0;
    is_aligned.then_some(at).ok_or(Refused)
}

/// A page of the root's of which cells own parts.
struct Remainder {
    windows: Windows,
    start: u64,
}

impl Remainder {
    fn check(&self, offset: u64, width: u8) -> Result<HostPhysical, Refused> {
        let at = self.start.wrapping_add(offset);
        if offset.wrapping_add(u64::from(width)) > 4096 {
            return Err(Refused);
        }
        check_roots(at, width)?;
        Ok(HostPhysical::new(at))
    }
}

/// Whether no byte at `at` is a cell's.
fn check_roots(at: u64, width: u8) -> Result<(), Refused> {
    let mut bytes = 0..u64::from(width);
    let is_roots = bytes.all(|byte| system::is_roots(at.wrapping_add(byte)));
    is_roots.then_some(()).ok_or(Refused)
}

impl Registers for Remainder {
    fn read(&mut self, offset: u64, width: u8) -> Result<u64, Refused> {
        let at = self.check(offset, width)?;
        Ok(self.windows.read_device(at, width))
    }

    fn write(&mut self, offset: u64, width: u8, value: u64) -> Result<(), Refused> {
        let at = self.check(offset, width)?;
        self.windows.write_device(at, width, value);
        Ok(())
    }
}

/// An access to a moderated range.
pub fn serve(
    cpu: &mut PerCpu,
    frame: &mut Frame,
    range: &Moderated,
    fault: NestedFault,
) -> Verdict {
    let address = fault.address;
    if fault.is_fetch() {
        return if cpu.is_root {
            Verdict::InjectRecorded {
                exception: Exception::INVALID_OPCODE,
                address,
            }
        } else {
            Verdict::Violation { address }
        };
    }
    // The processor's own accesses, to page tables or while it delivers an event, are no instruction's.
    if !fault.is_data() || cpu.guest.is_delivering() {
        return Verdict::Violation { address };
    }
    let Some(fetched) = Fetched::new(cpu) else {
        // The memory of the root's instruction is changing hands at this moment: Linux tries again.
        return if cpu.is_root {
            Verdict::Resume
        } else {
            Verdict::Violation { address }
        };
    };
    let done = match fetched.decode() {
        Ok(instruction) => whole(cpu, frame, range, address, &instruction),
        Err(_) => Err(Refused),
    };
    match done {
        Ok(()) => Verdict::Resume,
        Err(Refused) => refuse(cpu, frame, &fetched, address),
    }
}

/// Does all of an instruction, or one element of a string instruction.
fn whole(
    cpu: &mut PerCpu,
    frame: &mut Frame,
    range: &Moderated,
    address: u64,
    instruction: &Instruction,
) -> Result<(), Refused> {
    let is_string = instruction.is_string();
    if is_string && strings::is_empty(cpu.guest, frame, instruction) {
        advance_by(cpu.guest, instruction.length);
        return Ok(());
    }
    if instruction.operation == Operation::MOVS {
        strings::copy(cpu, frame, instruction)?;
    } else {
        check_place(cpu.guest, frame, address, instruction)?;
        let offset = address.wrapping_sub(range.start);
        let guest = cpu.guest;
        with_registers(cpu, range, |registers| {
            carry_out(guest, frame, registers, offset, instruction)
        })?;
    }
    if !is_string || strings::step(cpu.guest, frame, instruction) {
        advance_by(cpu.guest, instruction.length);
    }
    Ok(())
}

/// An operand that begins in the page before has its second half at `address`: that is two accesses.
fn check_place(
    guest: impl GuestState,
    frame: &Frame,
    address: u64,
    instruction: &Instruction,
) -> Result<(), Refused> {
    let place = &instruction.address;
    let next = guest.rip().wrapping_add(u64::from(instruction.length));
    let offset = place.offset(|number| frame.register(guest, number), next);
    let linear = segment_base(guest, place.segment).wrapping_add(offset);
    ((linear ^ address) & 0xfff == 0)
        .then_some(())
        .ok_or(Refused)
}

/// Does what the instruction says to memory, registers and flags. What is refused changes no register.
pub(super) fn carry_out(
    guest: impl GuestState,
    frame: &mut Frame,
    registers: &mut dyn Registers,
    offset: u64,
    instruction: &Instruction,
) -> Result<(), Refused> {
    let data = if instruction.reads() {
        registers.read(offset, instruction.width)?
    } else {
        0
    };
    let flags = guest.rflags();
    let outcome = execute(
        instruction,
        data,
        |number| frame.register(guest, number),
        flags,
    );
    if let Some(value) = outcome.memory {
        registers.write(offset, instruction.width, value)?;
    }
    if let Some((number, value)) = outcome.register {
        frame.set_register(guest, number, value);
    }
    if outcome.flags != flags {
        guest.set_rflags(outcome.flags);
    }
    Ok(())
}

/// What an instruction reads where there is nothing are ones. Of a string instruction nothing is done.
pub(super) fn read_ones(guest: impl GuestState, frame: &mut Frame, fetched: &Fetched) {
    if let Ok(instruction) = fetched.decode()
        && !instruction.is_string()
    {
        // Nobody is asked, so nothing is refused.
        let _ = carry_out(guest, frame, &mut Nothing, 0, &instruction);
    }
}

/// What is refused, or not understood, stops a cell's CPU. The root's instruction is stepped over if its end is known;
/// what it reads are ones.
fn refuse(cpu: &mut PerCpu, frame: &mut Frame, fetched: &Fetched, address: u64) -> Verdict {
    if !cpu.is_root {
        return Verdict::Violation { address };
    }
    fault::record(cpu, frame, address);
    read_ones(cpu.guest, frame, fetched);
    if fetched.skip(cpu.guest) {
        Verdict::Resume
    } else {
        Verdict::Inject(Exception::GENERAL_PROTECTION)
    }
}

/// Where there is nothing: reads find ones, writes have no effect.
struct Nothing;

impl Registers for Nothing {
    fn read(&mut self, _offset: u64, _width: u8) -> Result<u64, Refused> {
        Ok(u64::MAX)
    }

    fn write(&mut self, _offset: u64, _width: u8, _value: u64) -> Result<(), Refused> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_kept_to() {
        let size = 24u64;
        for widths in 0..16u8 {
            for width in [1u8, 2, 4, 8] {
                for offset in (0..40).chain(u64::MAX - 8..=u64::MAX) {
                    let fits = offset < 100 && offset + u64::from(width) <= size;
                    let expected = fits && widths & width != 0;
                    let checked = check_part(offset, width, size, widths);
                    assert_eq!(checked.is_ok(), expected, "{widths} {width} {offset}");
                }
            }
        }
    }

    #[test]
    fn only_aligned_accesses_reach_devices() {
        for width in [1u8, 2, 4, 8] {
            for at in 0..64u64 {
                let found = aligned(HostPhysical::new(at), width).is_ok();
                assert_eq!(found, at.is_multiple_of(u64::from(width)));
            }
        }
    }
}
