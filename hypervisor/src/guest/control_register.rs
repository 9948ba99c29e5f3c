//! MOV to CR0 and CR4, LMSW and CLTS, where the guest changes a bit that the hypervisor owns.
//!
//! The processor does all others, with its own checks. Invariant: what is written here is a value that the instruction takes
//! on bare hardware and that VM entry accepts (SDM, "MOV—Move to/from Control Registers", "Checks on Guest Control
//! Registers, Debug Registers, and MSRs"); anything else raises #GP.

use super::Verdict;
use super::decode::control::Control;
use super::memory::{Fetched, read_word, segment_base};
use super::vectoring::Exception;
use crate::cpu::PerCpu;
use crate::processor::descriptor::SegmentRegister;
use crate::processor::{cr0, cr4, efer, physical_bits};
use crate::virt::contract::{Capabilities, ControlAccess, GuestState, Virtualization};
use crate::virt::entry::Frame;
use crate::virt::exit::step_over;

const GENERAL_PROTECTION: Verdict = Verdict::Inject(Exception::GENERAL_PROTECTION);

/// Serves a control-register access.
pub fn serve(cpu: &mut PerCpu, frame: &Frame) -> Verdict {
    match cpu.guest.control_access() {
        Some(access) => carry_out(cpu, frame, access),
        None => decode_and_carry_out(cpu, frame),
    }
}

fn carry_out(cpu: &mut PerCpu, frame: &Frame, access: ControlAccess) -> Verdict {
    let guest = cpu.guest;
    match access {
        ControlAccess::Write { control, register } => {
            let value = narrowed(guest, frame.register(guest, register));
            match control {
                0 => write_cr0(cpu, value),
                4 => write_cr4(cpu, value),
                // CR3 and CR8 do not exit.
                _ => Verdict::Violation { address: 0 },
            }
        }
        ControlAccess::ClearTaskSwitched => write_cr0(cpu, guest.visible_cr0() & !cr0::TS),
        ControlAccess::LoadStatus(operand) => {
            write_cr0(cpu, with_status(guest.visible_cr0(), operand))
        }
        ControlAccess::Read => Verdict::Violation { address: 0 },
    }
}

/// As [`carry_out`], where the processor does not tell what the instruction is.
fn decode_and_carry_out(cpu: &mut PerCpu, frame: &Frame) -> Verdict {
    let Some(fetched) = Fetched::new(cpu) else {
        // The instruction's memory is changing hands at this moment: Linux tries again.
        return if cpu.is_root {
            Verdict::Resume
        } else {
            Verdict::Violation { address: 0 }
        };
    };
    let Ok((control, length)) = fetched.control() else {
        return Verdict::Violation { address: 0 };
    };
    let guest = cpu.guest;
    let access = match control {
        Control::Access(access) => access,
        Control::LoadStatusFromRegister(register) => {
            ControlAccess::LoadStatus(frame.register(guest, register) as u16)
        }
        Control::LoadStatusFromMemory(address) => {
            let next = guest.rip().wrapping_add(u64::from(length));
            let offset = address.offset(|number| frame.register(guest, number), next);
            let linear = segment_base(guest, address.segment).wrapping_add(offset);
            match read_word(cpu, linear) {
                Some(operand) => ControlAccess::LoadStatus(operand),
                None => return Verdict::Violation { address: 0 },
            }
        }
    };
    // The length belongs to the mode that the guest is in before the register changes.
    match carry_out(cpu, frame, access) {
        Verdict::Advance => {
            step_over(guest, length.into());
            Verdict::Resume
        }
        other => other,
    }
}

/// Outside 64-bit mode general registers have 32 bits.
fn narrowed(guest: impl GuestState, value: u64) -> u64 {
    if guest.is_64_bit() {
        value
    } else {
        value & 0xffff_ffff
    }
}

/// LMSW changes PE, MP, EM and TS, but cannot clear PE.
const fn with_status(before: u64, operand: u16) -> u64 {
    let status = cr0::PE | cr0::MP | cr0::EM | cr0::TS;
    (before & !(status & !cr0::PE)) | (operand as u64 & status)
}

/// Bits of CR0 that there are; the others below bit 32 are ignored.
const CR0_DEFINED: u64 = cr0::PE
    | cr0::MP
    | cr0::EM
    | cr0::TS
    | cr0::ET
    | cr0::NE
    | cr0::WP
    | cr0::AM
    | cr0::NW
    | cr0::CD
    | cr0::PG;

/// What of the guest's state decides whether a value is legal.
#[derive(Clone, Copy, Debug, Default)]
struct Context {
    cr0: u64,
    cr3: u64,
    cr4: u64,
    efer: u64,
    /// CS.L.
    long_code: bool,
    /// TR holds a busy 32-bit or 64-bit TSS.
    wide_task: bool,
}

impl Context {
    fn of_the_guest(guest: impl GuestState) -> Self {
        let busy_task = 0xb;
        Self {
            cr0: guest.cr0(),
            cr3: guest.cr3(),
            cr4: guest.cr4(),
            efer: guest.efer(),
            long_code: guest.is_code_long(),
            wide_task: guest.segment(SegmentRegister::Tr).access_rights & 0xf == busy_task,
        }
    }

    const fn is_long(&self) -> bool {
        self.efer & efer::LMA != 0
    }

    /// What of a value for CR0 raises #GP.
    const fn takes_cr0(&self, value: u64) -> bool {
        let (pg, was_pg) = (value & cr0::PG != 0, self.cr0 & cr0::PG != 0);
        let enters_long_mode = pg && !was_pg && self.efer & efer::LME != 0;
        value >> 32 == 0
            && !(pg && value & cr0::PE == 0)
            && !(value & cr0::NW != 0 && value & cr0::CD == 0)
            && !(enters_long_mode
                && (self.cr4 & cr4::PAE == 0 || self.long_code || !self.wide_task))
            && (pg || self.cr4 & cr4::PCIDE == 0)
            && (pg || !(self.is_long() && self.long_code))
    }

    /// What of a value for CR4 raises #GP, given the bits that the processor has and that can be carried.
    const fn takes_cr4(&self, value: u64, allowed: u64) -> bool {
        let long_mode = self.is_long();
        let sets_pcide = value & cr4::PCIDE != 0 && self.cr4 & cr4::PCIDE == 0;
        value & !allowed == 0
            && !(long_mode && (value & cr4::PAE == 0 || (value ^ self.cr4) & cr4::LA57 != 0))
            && (value & cr4::PCIDE == 0 || long_mode)
            && !(sets_pcide && self.cr3 & 0xfff != 0)
    }
}

fn write_cr0(cpu: &mut PerCpu, value: u64) -> Verdict {
    let guest = cpu.guest;
    let now = Context::of_the_guest(guest);
    if !now.takes_cr0(value) {
        return GENERAL_PROTECTION;
    }
    let value = value & CR0_DEFINED;
    let pg = value & cr0::PG != 0;
    let long_mode = pg && now.efer & efer::LME != 0;
    let visible_change = value ^ guest.visible_cr0();
    // SDM, "PDPTE Registers": what makes the processor load them.
    if pg
        && !long_mode
        && now.cr4 & cr4::PAE != 0
        && visible_change & (cr0::PG | cr0::CD | cr0::NW) != 0
        && !load_pdptes(cpu)
    {
        return GENERAL_PROTECTION;
    }
    if (value ^ now.cr0) & cr0::PG != 0 {
        let lma = if long_mode { efer::LMA } else { 0 };
        guest.set_efer((now.efer & !efer::LMA) | lma);
    }
    cpu.virtualization.set_cr0(value);
    guest.flush();
    Verdict::Advance
}

/// Whether PAE paging takes a page-directory-pointer-table entry: bits 2:1, 8:5 and those beyond addresses are reserved in
/// one that is present.
const fn is_legal_pdpte(entry: u64, physical_bits: u32) -> bool {
    let present = 1;
    let beyond = !1u64.wrapping_shl(physical_bits).wrapping_sub(1);
    entry & present == 0 || entry & (beyond | 0x1e6) == 0
}

/// PAE paging outside IA-32e mode: the four top entries are read when the register is written.
fn load_pdptes(cpu: &mut PerCpu) -> bool {
    let table = cpu.guest.cr3() & 0xffff_ffe0;
    let mut entries = [0; 4];
    let bits = physical_bits();
    for (entry, at) in entries.iter_mut().zip((table..).step_by(8)) {
        let Some(physical) = super::memory::to_physical(cpu, at) else {
            return false;
        };
        *entry = cpu.windows.read_u64(physical);
        if !is_legal_pdpte(*entry, bits) {
            return false;
        }
    }
    cpu.virtualization.set_pdptes(entries);
    true
}

fn write_cr4(cpu: &mut PerCpu, value: u64) -> Verdict {
    let guest = cpu.guest;
    let now = Context::of_the_guest(guest);
    // The processor that a cell sees has no VMX; the root's shadow keeps what Linux writes.
    let hidden = if cpu.is_root { 0 } else { cr4::VMXE };
    let allowed = cpu.virtualization.capabilities().allowed_cr4();
    if !now.takes_cr4(value, allowed & cr4::KNOWN & !hidden) {
        return GENERAL_PROTECTION;
    }
    let is_pae = now.cr0 & cr0::PG != 0 && !now.is_long() && value & cr4::PAE != 0;
    let loads = cr4::PAE | cr4::PGE | cr4::PSE | cr4::SMEP;
    if is_pae && (value ^ now.cr4) & loads != 0 && !load_pdptes(cpu) {
        return GENERAL_PROTECTION;
    }
    cpu.virtualization.set_cr4(value);
    guest.flush();
    Verdict::Advance
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PROTECTED: Context = Context {
        cr0: 0x11,
        cr3: 0,
        cr4: 0,
        efer: 0,
        long_code: false,
        wide_task: true,
    };

    #[test]
    fn illegal_values_of_cr0_are_refused() {
        let legal = |value| PROTECTED.takes_cr0(value);
        assert!(legal(0x6000_0010));
        assert!(legal(0x8000_0011));
        assert!(!legal(0x8000_0010)); // paging without protection
        assert!(!legal(0x2000_0011)); // NW without CD
        for bit in 32..64 {
            assert!(!legal(1 << bit | 0x11));
        }
        let entering = |cr4, long_code, wide_task| Context {
            efer: efer::LME,
            cr4,
            long_code,
            wide_task,
            ..PROTECTED
        };
        assert!(entering(cr4::PAE, false, true).takes_cr0(0x8000_0011));
        assert!(!entering(0, false, true).takes_cr0(0x8000_0011)); // long mode without PAE
        assert!(!entering(cr4::PAE, true, true).takes_cr0(0x8000_0011)); // in 64-bit code
        assert!(!entering(cr4::PAE, false, false).takes_cr0(0x8000_0011)); // with a 16-bit TSS
        let leaving = |cr4, long_code| Context {
            cr0: 0x8000_0011,
            cr4,
            efer: efer::LME | efer::LMA,
            long_code,
            ..PROTECTED
        };
        assert!(leaving(cr4::PAE, false).takes_cr0(0x11));
        assert!(!leaving(cr4::PAE, true).takes_cr0(0x11)); // from 64-bit code
        assert!(!leaving(cr4::PAE | cr4::PCIDE, false).takes_cr0(0x11)); // PCIDE keeps paging on
        assert!(leaving(cr4::PAE | cr4::PCIDE, true).takes_cr0(0x8000_0011));
    }

    #[test]
    fn illegal_values_of_cr4_are_refused() {
        let long = Context {
            cr0: 0x8000_0011,
            cr4: cr4::PAE,
            efer: efer::LME | efer::LMA,
            ..PROTECTED
        };
        let allowed = 0x37_27ff & !cr4::VMXE;
        assert!(long.takes_cr4(cr4::PAE | cr4::PCIDE, allowed));
        for bit in (0..64).map(|bit| 1 << bit) {
            assert_eq!(
                PROTECTED.takes_cr4(bit, allowed),
                allowed & !cr4::PCIDE & bit != 0
            );
        }
        assert!(!long.takes_cr4(0, allowed)); // without PAE
        assert!(!long.takes_cr4(cr4::PAE | cr4::LA57, u64::MAX));
        assert!(PROTECTED.takes_cr4(cr4::LA57, u64::MAX));
        assert!(!PROTECTED.takes_cr4(cr4::PCIDE, u64::MAX)); // outside long mode
        let with_identifier = Context { cr3: 1, ..long };
        assert!(!with_identifier.takes_cr4(cr4::PAE | cr4::PCIDE, allowed));
        let already = Context {
            cr4: cr4::PAE | cr4::PCIDE,
            ..with_identifier
        };
        assert!(already.takes_cr4(cr4::PAE | cr4::PCIDE, allowed));
    }

    /// SDM, "LMSW—Load Machine Status Word" and "CLTS—Clear Task-Switched Flag in CR0".
    #[test]
    fn the_status_word_changes_four_bits_and_never_clears_protection() {
        for before in [0x10u64, 0x11, 0x8005_003b, 0xe005_003f] {
            for operand in 0..=u16::MAX {
                let after = with_status(before, operand);
                assert_eq!(after & !0xf, before & !0xf);
                assert_eq!(after & 0xe, u64::from(operand) & 0xe);
                assert_eq!(after & 1, before & 1 | u64::from(operand) & 1);
            }
        }
    }

    proptest! {
        #[test]
        fn reserved_bits_of_the_four_top_entries_are_refused(entry: u64, bits in 36u32..52) {
            let reserved = entry & 0x1e6 != 0 || entry >> bits != 0;
            prop_assert_eq!(is_legal_pdpte(entry | 1, bits), !reserved);
            prop_assert!(is_legal_pdpte(entry & !1, bits));
        }
    }
}
