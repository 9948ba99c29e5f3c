//! The instructions of VMX.
//!
//! Reading and writing fields is unchecked on purpose: with a current VMCS and the encodings of [`super::fields`], each
//! of which every processor with the controls of [`super::capabilities`] has, VMREAD and VMWRITE cannot fail (SDM,
//! "VMREAD", "VMWRITE"), and testing their flags would cost three instructions each on the exit path.

use core::arch::asm;

use super::fields::Field;
use crate::memory::address::HostPhysical;

/// Reads a field of the current VMCS. Without a current VMCS the result is 0.
#[inline(always)]
#[must_use]
pub fn read(field: Field) -> u64 {
    let value: u64;
    // SAFETY: VMREAD in VMX operation touches no memory but the VMCS. It is never reached outside VMX operation: every
    // caller holds the `&mut PerCpu` of a CPU whose VMXON was done.
    unsafe {
        asm!("vmread {value}, {field}", value = lateout(reg) value, field = in(reg) u64::from(field.0),
             options(nostack, nomem));
    }
    value
}

/// Writes a field of the current VMCS.
#[inline(always)]
pub fn write(field: Field, value: u64) {
    // SAFETY: as in `read`. Host-state fields are written with constants and addresses of the hypervisor's own only.
    unsafe {
        asm!("vmwrite {field}, {value}", value = in(reg) value, field = in(reg) u64::from(field.0),
             options(nostack));
    }
}

macro_rules! with_region {
    ($name:ident, $instruction:literal, $doc:literal) => {
        #[doc = $doc]
        /// `false`: the instruction failed (CF or ZF).
        ///
        /// # Safety
        /// The frame is a VMXON region or VMCS of this CPU with its revision identifier, and nothing else uses it.
        #[must_use]
        pub unsafe fn $name(frame: HostPhysical) -> bool {
            let (address, failed) = (frame.as_u64(), &mut 0u8);
            // SAFETY: the caller's promise; the operand is a variable that lives across the instruction.
            unsafe {
                asm!(concat!($instruction, " [{}]"), "setbe {}", in(reg) &raw const address, out(reg_byte) *failed,
                     options(nostack));
            }
            *failed == 0
        }
    };
}

with_region!(vmxon, "vmxon", "Enters VMX operation.");
with_region!(
    vmclear,
    "vmclear",
    "Makes a VMCS inactive and writes it back."
);
with_region!(vmptrld, "vmptrld", "Makes a VMCS current.");

/// Leaves VMX operation.
///
/// # Safety
/// The CPU is in VMX operation, and its VMCS was cleared or is not needed any more.
pub unsafe fn vmxoff() {
    // SAFETY: the caller's promise.
    unsafe { asm!("vmxoff", options(nostack)) };
}

const INVEPT_ALL: u64 = 2;
const INVVPID_ALL: u64 = 2;

/// Drops every translation of every EPT and VPID on this CPU.
pub fn invalidate_all() {
    let descriptor = [0u64; 2];
    // SAFETY: only drops cached translations; the types are checked for at the launch.
    unsafe {
        asm!("invept {}, [{}]", in(reg) INVEPT_ALL, in(reg) &raw const descriptor, options(nostack));
        asm!("invvpid {}, [{}]", in(reg) INVVPID_ALL, in(reg) &raw const descriptor, options(nostack));
    }
}

/// Drops every translation of every EPT on this CPU.
pub fn invalidate_ept() {
    let descriptor = [0u64; 2];
    // SAFETY: as in `invalidate_all`.
    unsafe {
        asm!("invept {}, [{}]", in(reg) INVEPT_ALL, in(reg) &raw const descriptor, options(nostack))
    };
}

/// Takes external interrupts.
///
/// # Safety
/// The interrupt descriptor table has a handler for each vector.
pub unsafe fn interrupts_for_a_moment() {
    // SAFETY: the caller's promise.
    unsafe { asm!("sti", "nop", "nop", "nop", "cli", options(nostack)) };
}
