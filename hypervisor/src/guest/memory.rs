//! Accesses that the nested page table does not allow, and reading the instruction that a guest is at.

use super::decode::control::{Control, control};
use super::decode::{DecodeError, Instruction, MAX_LENGTH, Mode, decode, length, segment};
use super::mmio::{Refused, Registers};
use super::store::{Source, plain_store};
use super::vectoring::Exception;
use super::walk::{GuestMemory, Paging, Rights};
use super::{Verdict, interrupt, mmio};
use crate::cell::moderated::{self, Lookup};
use crate::cell::root::RootShare;
use crate::cpu::PerCpu;
use crate::device::apic;
use crate::launch::parameters;
use crate::launch::private_table::APIC_PHYSICAL;
use crate::memory::address::{GuestPhysical, GuestVirtual, HostPhysical};
use crate::memory::page_table::{Access, Format, LARGE, LeafSize, TableMemory};
use crate::processor::cr4;
use crate::processor::descriptor::SegmentRegister;
use crate::region::LinearTables;
use crate::system;
use crate::virt::contract::{GuestState, NestedFault, Virtualization};
use crate::virt::entry::Frame;
use crate::virt::exit::{SLOW, finish, step_over};
use crate::virt::{self, NestedFormat};

/// RFLAGS.AC.
const ALIGNMENT_CHECK: u64 = 1 << 18;

struct Reader<'a>(&'a PerCpu);

impl GuestMemory for Reader<'_> {
    #[inline]
    fn read_entry(&mut self, address: GuestPhysical) -> Option<u64> {
        to_physical(self.0, address.as_u64()).map(|at| self.0.windows.read_u64(at))
    }

    fn read_entry32(&mut self, address: GuestPhysical) -> Option<u32> {
        to_physical(self.0, address.as_u64()).map(|at| self.0.windows.read_u32(at))
    }
}

/// Where the guest's memory at `address` is. `None`: it has none there. For the root that is the same address, unless it
/// belongs to somebody else; a cell's nested page table is looked at.
#[must_use]
pub fn to_physical(cpu: &PerCpu, address: u64) -> Option<HostPhysical> {
    to_physical_inline(cpu, address)
}

/// [`to_physical`] where instructions are counted.
#[inline(always)]
fn to_physical_inline(cpu: &PerCpu, address: u64) -> Option<HostPhysical> {
    if cpu.is_root {
        let own = address < parameters::physical_end() && system::is_roots(address);
        return own.then_some(HostPhysical::new(address));
    }
    through_tables(cpu, address, Right::Read)
}

/// What a guest wants of memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Right {
    Read,
    Write,
}

impl Right {
    const fn access(self) -> Access {
        match self {
            Self::Read => Access::READ,
            Self::Write => Access::READ.union(Access::WRITE),
        }
    }
}

/// Where the guest's memory at `address` is, if it has it mapped with that right.
pub(super) fn to_own_memory(cpu: &PerCpu, address: u64, right: Right) -> Option<HostPhysical> {
    through_tables(cpu, address, right)
}

const ADDRESS_MASK: u64 = 0x000f_ffff_ffff_f000;

/// Walks the nested page table in use.
#[inline(never)]
fn through_tables(cpu: &PerCpu, address: u64, right: Right) -> Option<HostPhysical> {
    let mut table = cpu.guest.nested_root();
    let levels = (1..=virt::Current::nested_levels()).rev();
    for shift in levels.map(|level| level.wrapping_mul(9).wrapping_add(3)) {
        let index = (address.wrapping_shr(shift) & 0x1ff) as usize;
        let entry = LinearTables
            .entries(table)
            .get(index)?
            .load(core::sync::atomic::Ordering::Relaxed);
        let allows = entry & NestedFormat::PRESENT != 0
            && NestedFormat::attributes(entry)
                .access
                .contains(right.access());
        if !allows {
            return None;
        }
        if shift == 12 || entry & LARGE != 0 {
            let offset = 1u64.wrapping_shl(shift).wrapping_sub(1);
            return Some(HostPhysical::new(
                (entry & ADDRESS_MASK & !offset) | (address & offset),
            ));
        }
        table = HostPhysical::new(entry & ADDRESS_MASK);
    }
    None
}

fn paging(guest: impl GuestState) -> Paging {
    Paging {
        cr0: guest.cr0(),
        cr3: guest.cr3(),
        cr4: guest.cr4(),
        efer: guest.efer(),
    }
}

fn mode(guest: impl GuestState) -> Mode {
    if guest.is_64_bit() {
        Mode::Bits64
    } else if guest.is_code_32_bit() {
        Mode::Bits32
    } else {
        Mode::Bits16
    }
}

/// Where the segment with this number (of an instruction) begins.
pub(super) fn segment_base(guest: impl GuestState, number: u8) -> u64 {
    guest.segment_base(match number {
        segment::FS => SegmentRegister::Fs,
        segment::GS => SegmentRegister::Gs,
        _ if guest.is_64_bit() => return 0,
        segment::ES => SegmentRegister::Es,
        segment::CS => SegmentRegister::Cs,
        segment::SS => SegmentRegister::Ss,
        _ => SegmentRegister::Ds,
    })
}

/// The guest-physical address of `linear`, if the guest may read or write there.
pub(super) fn translate(cpu: &PerCpu, linear: u64, right: Right) -> Option<u64> {
    let rights = Rights {
        write: right == Right::Write,
        user: cpu.guest.privilege_level() == 3,
        alignment_check: cpu.guest.rflags() & ALIGNMENT_CHECK != 0,
    };
    let found =
        paging(cpu.guest).translate_for(&mut Reader(cpu), GuestVirtual::new(linear), rights);
    found.ok().map(GuestPhysical::as_u64)
}

/// Two bytes of the guest's memory at `linear`, which may lie in two pages. `None`: it may not read there.
pub(super) fn read_word(cpu: &PerCpu, linear: u64) -> Option<u16> {
    let read = |linear| {
        let physical = to_physical(cpu, translate(cpu, linear, Right::Read)?)?;
        Some(cpu.windows.read_memory(physical, 1) as u8)
    };
    Some(u16::from_le_bytes([
        read(linear)?,
        read(linear.wrapping_add(1))?,
    ]))
}

/// Copies the bytes at the guest's RIP. Returns how many could be read, at most 16; `None`: not one.
pub fn fetch(cpu: &PerCpu, bytes: &mut [u8; 16]) -> Option<usize> {
    let guest = cpu.guest;
    let at = segment_base(guest, segment::CS).wrapping_add(guest.rip());
    let paging = paging(guest);
    let mut copied = 0usize;
    // An instruction lies in at most two pages.
    for _ in 0..2 {
        let Some(rest) = bytes.get_mut(copied..).filter(|rest| !rest.is_empty()) else {
            break;
        };
        let address = GuestVirtual::new(at.wrapping_add(copied as u64));
        let Ok(translated) = paging.translate(&mut Reader(cpu), address) else {
            break;
        };
        let Some(physical) = to_physical(cpu, translated.as_u64()) else {
            break;
        };
        copied = copied.saturating_add(cpu.windows.read(physical, rest));
    }
    (copied != 0).then_some(copied)
}

/// The bytes at the guest's RIP, copied once: the guest may change them at any time, and all that is asked of one
/// instruction must be answered from the same bytes.
pub(super) struct Fetched {
    bytes: [u8; 16],
    count: usize,
    mode: Mode,
}

impl Fetched {
    /// `None`: not one byte could be read.
    pub(super) fn new(cpu: &PerCpu) -> Option<Self> {
        let mut bytes = [0; 16];
        let count = fetch(cpu, &mut bytes)?.min(MAX_LENGTH);
        Some(Self {
            bytes,
            count,
            mode: mode(cpu.guest),
        })
    }

    fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.count).unwrap_or(&[])
    }

    /// See [`decode`].
    pub(super) fn decode(&self) -> Result<Instruction, DecodeError> {
        decode(self.bytes(), self.mode)
    }

    /// Steps over the instruction, if its length is known.
    pub(super) fn skip(&self, guest: impl GuestState) -> bool {
        let known = self.length();
        if let Ok(length) = known {
            advance_by(guest, length);
        }
        known.is_ok()
    }

    /// See [`control`].
    pub(super) fn control(&self) -> Result<(Control, u8), DecodeError> {
        control(self.bytes(), self.mode)
    }

    /// See [`length`].
    fn length(&self) -> Result<u8, DecodeError> {
        length(self.bytes(), self.mode)
    }
}

/// Bytes of the instruction that the guest is at. `None`: they can't be read, or are none that has a length.
pub fn instruction_length(cpu: &PerCpu) -> Option<u64> {
    let fetched = Fetched::new(cpu);
    cpu.windows.close();
    let fetched = fetched?;
    let of_control = || fetched.control().map(|(_, length)| length);
    fetched
        .length()
        .or_else(|_| of_control())
        .ok()
        .map(u64::from)
}

const fn is_apic_page(address: u64) -> bool {
    address & !0xfff == APIC_PHYSICAL
}

/// Where Linux' instruction at `rip` is, by a walk of its page table. `None`: not simply so.
#[inline(always)]
fn locate(cpu: &PerCpu, rip: u64) -> Option<HostPhysical> {
    let (present, large) = (1, 1 << 7);
    let mut table = cpu.guest.cr3();
    let mut shift = if cpu.guest.cr4() & cr4::LA57 == 0 {
        39u32
    } else {
        48
    };
    // At most five rounds: the shift goes down by 9 to 12.
    loop {
        let slot = (table & ADDRESS_MASK) | ((rip.wrapping_shr(shift) & 0x1ff) << 3);
        let entry = cpu.windows.read_u64(to_physical_inline(cpu, slot)?);
        if entry & present == 0 {
            return None;
        }
        if shift == 12 || entry & large != 0 {
            let offset = 1u64.wrapping_shl(shift).wrapping_sub(1);
            return to_physical_inline(cpu, (entry & ADDRESS_MASK & !offset) | (rip & offset));
        }
        table = entry;
        shift = shift.wrapping_sub(9);
    }
}

/// A write of Linux to its xAPIC page, by a plain move in 64-bit mode.
#[inline(never)]
pub extern "sysv64" fn fast(cpu: &mut PerCpu, frame: &mut Frame) -> u32 {
    let fault = cpu.guest.nested_fault();
    let address = fault.address;
    if !is_apic_page(address) || !fault.is_write() || !cpu.is_root || !cpu.guest.is_code_long() {
        return SLOW;
    }
    let rip = cpu.guest.rip();
    if rip & 0xfff > 0xff0 || address & 0xf != 0 {
        return SLOW;
    }
    let Some(physical) = locate(cpu, rip) else {
        return SLOW;
    };
    let Some(store) = plain_store(cpu.windows.read_16(physical)) else {
        return SLOW;
    };
    let value = match store.source {
        Source::Immediate(value) => value,
        // RBP and R12 to R15 are not in the frame yet.
        Source::Register(number) => match frame.low_register(number) {
            Some(value) => value as u32,
            None => return SLOW,
        },
    };
    interrupt::xapic_write(cpu, (address & 0xff0) as u16, value);
    cpu.guest.set_rip(rip.wrapping_add(u64::from(store.length)));
    finish(cpu)
}

/// Any other access that the nested page table does not allow.
pub fn slow(cpu: &mut PerCpu, frame: &mut Frame) -> Verdict {
    let fault = cpu.guest.nested_fault();
    let address = fault.address;
    let moderated = match moderated::find(cpu.cell, address) {
        // The guest does again what it was doing: its instruction, or the delivery of an event.
        Lookup::Changing => return Verdict::Resume,
        Lookup::Found(range) => Some(range),
        Lookup::Nothing => None,
    };
    if !cpu.is_root {
        return moderated.map_or(Verdict::Violation { address }, |range| {
            mmio::serve(cpu, frame, &range, fault)
        });
    }
    // Then there is no instruction to be emulated; the event itself is seen to behind the verdict.
    let delivering = cpu.guest.is_delivering();
    if is_apic_page(address) {
        if delivering {
            return Verdict::Violation { address };
        }
        return apic_access(cpu, frame, fault);
    }
    if !delivering && let Some(range) = moderated {
        return mmio::serve(cpu, frame, &range, fault);
    }
    let is_strict = system::root_share().is_some_and(RootShare::is_strict);
    if !is_strict
        && address >= parameters::physical_end()
        && system::is_roots(address)
        && install_far(address)
    {
        return Verdict::Resume;
    }
    if fault.is_fetch() {
        return Verdict::InjectRecorded {
            exception: Exception::INVALID_OPCODE,
            address,
        };
    }
    super::fault::record(cpu, frame, address);
    if !delivering && let Some(fetched) = Fetched::new(cpu) {
        mmio::read_ones(cpu.guest, frame, &fetched);
        if fetched.skip(cpu.guest) {
            return Verdict::Resume;
        }
    }
    if redirect(cpu, address) {
        return Verdict::Resume;
    }
    Verdict::Inject(Exception::GENERAL_PROTECTION)
}

/// A page of Linux' own, beyond what it had told of.
fn install_far(address: u64) -> bool {
    let Some(far) = system::far() else {
        return false;
    };
    let at = HostPhysical::new(address);
    let (kind, _) = far.memory_types.uniform_run(at);
    let size = LeafSize::Page2M;
    let installed = far.table.install_far(
        &LinearTables,
        &far.reserve,
        GuestPhysical::new(address).align_down(size.bytes()),
        at.align_down(size.bytes()),
        size,
        system::everything(kind),
    );
    // What was there already, from another CPU or as a hole, must let the guest go on, or it would come back for ever.
    installed.is_ok()
        && far
            .table
            .lookup(&LinearTables, GuestPhysical::new(address))
            .is_some_and(|there| !there.is_hole)
}

/// Lets a write that can't be stepped over go to a scratch page.
fn redirect(cpu: &PerCpu, address: u64) -> bool {
    let Some(far) = system::far() else {
        return false;
    };
    let done = far
        .table
        .redirect_hole(&LinearTables, GuestPhysical::new(address), far.scratch);
    cpu.guest.flush_nested();
    done
}

/// An access to the xAPIC page that is not the frequent one.
fn apic_access(cpu: &PerCpu, frame: &mut Frame, fault: NestedFault) -> Verdict {
    let address = fault.address;
    if fault.is_fetch() {
        return Verdict::InjectRecorded {
            exception: Exception::INVALID_OPCODE,
            address,
        };
    }
    let Some(fetched) = Fetched::new(cpu) else {
        // The instruction's memory is changing hands at this moment: Linux tries again.
        return Verdict::Resume;
    };
    // What has no effect does nothing to the guest's registers either.
    if let Ok(instruction) = fetched.decode() {
        let mut page = ApicPage { cpu };
        let _ = mmio::carry_out(cpu.guest, frame, &mut page, address & 0xfff, &instruction);
    }
    if fetched.skip(cpu.guest) {
        Verdict::Resume
    } else {
        Verdict::Violation { address }
    }
}

/// The registers of the xAPIC. Only aligned 4-byte accesses are defined (SDM, "Local APIC Registers").
struct ApicPage<'a> {
    cpu: &'a PerCpu,
}

impl ApicPage<'_> {
    fn check(&self, offset: u64, width: u8) -> Result<u16, Refused> {
        let is_defined = width == 4 && offset & 0xf == 0 && !self.cpu.x2apic;
        is_defined.then_some(offset as u16).ok_or(Refused)
    }
}

impl Registers for ApicPage<'_> {
    fn read(&mut self, offset: u64, width: u8) -> Result<u64, Refused> {
        let register = self.check(offset, width)?;
        Ok(u64::from(apic::read_page(register)))
    }

    fn write(&mut self, offset: u64, width: u8, value: u64) -> Result<(), Refused> {
        let register = self.check(offset, width)?;
        interrupt::xapic_write(self.cpu, register, value as u32);
        Ok(())
    }
}

/// Moves the guest behind its instruction.
pub(super) fn advance_by(guest: impl GuestState, length: u8) {
    step_over(guest, u64::from(length));
}
