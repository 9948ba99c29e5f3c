//! Clearing the floating-point and vector state when a CPU changes hands.

use core::arch::asm;

use super::{cpuid, cr0, cr4, msr, read_cr0, read_cr4, write_cr0, write_cr4, write_msr};

/// An XSAVE image of nothing: XSTATE_BV = 0 puts every component that is asked for into its initial state; MXCSR is
/// loaded from here all the same (SDM, "Operation of XRSTOR").
#[repr(C, align(64))]
struct InitialImage([u32; 144]);

const MXCSR_WORD: usize = 6;
const MXCSR_INITIAL: u32 = 0x1f80;
const FCW_INITIAL: u32 = 0x37f;

static INITIAL: InitialImage = {
    let mut words = [0; 144];
    words[0] = FCW_INITIAL;
    words[MXCSR_WORD] = MXCSR_INITIAL;
    InitialImage(words)
};

/// The same in the compacted form, which is the only one that XRSTORS takes: bit 63 of XCOMP_BV, behind XSTATE_BV.
static COMPACTED: InitialImage = {
    let mut words = [0; 144];
    words[FIRST_HEADER_WORD + 3] = 1 << 31;
    InitialImage(words)
};

/// Where the header begins, behind the legacy region of 512 bytes.
const FIRST_HEADER_WORD: usize = 128;

/// Supervisor state that is a guest's: PASID, CET, user interrupts, last branch records. The others are settings of trace
/// and power management.
const SUPERVISOR_STATE: u64 = 1 << 10 | 1 << 11 | 1 << 12 | 1 << 14 | 1 << 15;

/// Puts supervisor state into its initial configuration, and IA32_XSS to 0.
fn clear_supervisor_state() {
    let xsaves = 1 << 3;
    let [features, _, low, high] = cpuid(0xd, 1);
    if features & xsaves == 0 {
        return;
    }
    let mask = (u64::from(high) << 32 | u64::from(low)) & SUPERVISOR_STATE;
    // SAFETY: the processor has these components, and the hypervisor uses none of them; the image is static, aligned and in
    // the form that the instruction takes.
    unsafe {
        write_msr(msr::XSS, mask);
        if mask != 0 {
            asm!("xrstors64 [{}]", in(reg) &raw const COMPACTED, in("eax") mask as u32, in("edx") 0,
                 options(nostack, readonly));
        }
        write_msr(msr::XSS, 0);
    }
}

/// Puts all extended state that the processor has into its initial configuration, and XCR0 to 1.
pub fn clear() {
    let has_xsave = cpuid(1, 0)[2] & (1 << 26) != 0;
    // SAFETY: clearing TS and setting OSFXSR only enables the instructions below; the hypervisor keeps nothing in these
    // registers (soft-float), so overwriting them loses only what shall be lost. The image is static and aligned.
    unsafe {
        write_cr0(read_cr0() & !cr0::TS);
        write_cr4(read_cr4() | cr4::OSFXSR);
        if has_xsave {
            write_cr4(read_cr4() | cr4::OSXSAVE);
            let [low, _, _, high] = cpuid(0xd, 0);
            asm!("xsetbv", in("ecx") 0, in("eax") low, in("edx") high, options(nomem, nostack));
            asm!("xrstor64 [{}]", in(reg) &raw const INITIAL, in("eax") u32::MAX, in("edx") u32::MAX,
                 options(nostack, readonly));
            asm!("xsetbv", in("ecx") 0, in("eax") 1, in("edx") 0, options(nomem, nostack));
            clear_supervisor_state();
        } else {
            asm!("fxrstor64 [{}]", in(reg) &raw const INITIAL, options(nostack, readonly));
        }
    }
}
