//! MOV to CR0 and CR4, where the guest changes a bit that the hypervisor owns.

use super::Verdict;
use crate::cpu::PerCpu;
use crate::processor::{cr0, cr4, efer};
use crate::virt::vmx::control::{Exception, set_ia32e};
use crate::virt::vmx::entry::Frame;
use crate::virt::vmx::fields::Field;
use crate::virt::vmx::instructions::{invalidate_all, read, write};

/// Exit qualification for control-register accesses: access type.
const MOV_TO: u64 = 0;

const GENERAL_PROTECTION: Verdict = Verdict::Inject(Exception::GENERAL_PROTECTION);

/// Serves a control-register access.
pub fn serve(cpu: &PerCpu, frame: &Frame) -> Verdict {
    let qualification = read(Field::ExitQualification);
    if (qualification >> 4) & 3 != MOV_TO {
        return Verdict::Violation { address: 0 };
    }
    let value = frame.register(((qualification >> 8) & 0xf) as u8);
    match qualification & 0xf {
        0 => write_cr0(cpu, value),
        4 => write_cr4(cpu, value),
        _ => Verdict::Violation { address: 0 },
    }
}

/// SDM, "MOV—Move to/from Control Registers": what of a value for CR0 raises #GP.
fn cr0_is_legal(value: u64, efer_now: u64, cr4_now: u64, old: u64) -> bool {
    let pg = value & cr0::PG != 0;
    value >> 32 == 0
        && !(pg && value & cr0::PE == 0)
        && !(value & cr0::NW != 0 && value & cr0::CD == 0)
        && !(pg && old & cr0::PG == 0 && efer_now & efer::LME != 0 && cr4_now & cr4::PAE == 0)
        && (pg || cr4_now & (1 << 17) == 0)
}

fn write_cr0(cpu: &PerCpu, value: u64) -> Verdict {
    let old = read(Field::GuestCr0);
    let efer_now = read(Field::GuestEfer);
    let cr4_now = read(Field::GuestCr4);
    if !cr0_is_legal(value, efer_now, cr4_now, old) {
        return GENERAL_PROTECTION;
    }
    let real = (value & !(cr0::CD | cr0::NW)) | cr0::NE | cr0::ET | cpu.controls.cr0_fixed_ones;
    if (real ^ old) & cr0::PG != 0 {
        let long_mode = real & cr0::PG != 0 && efer_now & efer::LME != 0;
        if real & cr0::PG != 0 && !long_mode && cr4_now & cr4::PAE != 0 && !load_pdptes(cpu) {
            return GENERAL_PROTECTION;
        }
        let lma = if long_mode { efer::LMA } else { 0 };
        write(Field::GuestEfer, (efer_now & !efer::LMA) | lma);
        set_ia32e(long_mode);
    }
    write(Field::GuestCr0, real);
    write(Field::Cr0ReadShadow, value | cr0::ET);
    invalidate_all();
    Verdict::Advance
}

/// PAE paging outside IA-32e mode: the processor takes the four top entries from the VMCS at VM entry.
fn load_pdptes(cpu: &PerCpu) -> bool {
    let table = read(Field::GuestCr3) & 0xffff_ffe0;
    let fields = [
        Field::GuestPdpte0,
        Field::GuestPdpte1,
        Field::GuestPdpte2,
        Field::GuestPdpte3,
    ];
    for (index, field) in fields.into_iter().enumerate() {
        let at = table.wrapping_add((index as u64) << 3);
        let Some(physical) = super::memory::to_physical(cpu, at) else {
            return false;
        };
        write(field, cpu.windows.read_u64(physical));
    }
    true
}

fn write_cr4(cpu: &PerCpu, value: u64) -> Verdict {
    let old = read(Field::GuestCr4);
    let long_mode = read(Field::GuestEfer) & efer::LMA != 0;
    let forbidden = value & !(cpu.controls.cr4_allowed & cr4::KNOWN) != 0
        || (long_mode && (value & cr4::PAE == 0 || (value ^ old) & cr4::LA57 != 0))
        || (value & (1 << 17) != 0 && !long_mode);
    if forbidden {
        return GENERAL_PROTECTION;
    }
    write(
        Field::GuestCr4,
        value | cpu.controls.cr4_fixed_ones | cr4::VMXE,
    );
    write(Field::Cr4ReadShadow, value);
    invalidate_all();
    Verdict::Advance
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn illegal_values_of_cr0_are_refused() {
        let legal = |value| cr0_is_legal(value, 0, 0, 0);
        assert!(legal(0x6000_0010));
        assert!(legal(0x8000_0011));
        assert!(!legal(0x8000_0010)); // paging without protection
        assert!(!legal(0x2000_0011)); // NW without CD
        assert!(!legal(1 << 32));
        assert!(!cr0_is_legal(0x8000_0011, efer::LME, 0, 0)); // long mode without PAE
        assert!(cr0_is_legal(0x8000_0011, efer::LME, cr4::PAE, 0));
        assert!(!cr0_is_legal(0x11, 0, 1 << 17, 0x8000_0011)); // PCIDE keeps paging on
    }
}
