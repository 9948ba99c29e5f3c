//! Entering and leaving VMX operation on one CPU.

use gaol_abi::outcome::Reason;

use super::Vmx;
use super::instructions::{invalidate_all, vmclear, vmptrld, vmxoff, vmxon};
use crate::cpu::window::Windows;
use crate::error::Failure;
use crate::processor::{cr0, cr4, read_cr0, read_cr4, write_cr0, write_cr4};

impl Vmx {
    /// VMXON, and a fresh (or `keep`: the old, cleared) VMCS made current.
    pub(super) fn on(&mut self, windows: &Windows, keep: bool, cpu: u32) -> Result<(), Failure> {
        let refuse = |what| Failure::hardware(Reason::VmxInUse, what);
        if read_cr4() & cr4::VMXE != 0 {
            return Err(refuse(u64::from(cpu)));
        }
        let revision = u64::from(self.controls.revision);
        // SAFETY: the fixed bits are those that VMX demands, read from the capability MSRs; PG and PE are on already.
        unsafe {
            write_cr0(read_cr0() | self.controls.cr0_fixed_ones | cr0::NE);
            write_cr4(read_cr4() | self.controls.cr4_fixed_ones | cr4::VMXE);
        }
        windows.write_u64(self.vmxon, revision);
        // SAFETY: the frame is this CPU's VMXON region, zeroed but for the revision identifier.
        if !unsafe { vmxon(self.vmxon) } {
            // SAFETY: VMXON failed, so VMXE may be cleared again.
            unsafe { write_cr4(read_cr4() & !cr4::VMXE) };
            return Err(refuse(1 << 32));
        }
        if !keep {
            windows.write_u64(self.control_block, revision);
            // SAFETY: the frame is this CPU's VMCS.
            if !unsafe { vmclear(self.control_block) } {
                self.off();
                return Err(refuse(2 << 32));
            }
        }
        // SAFETY: as above.
        if !unsafe { vmptrld(self.control_block) } {
            self.off();
            return Err(refuse(3 << 32));
        }
        self.needs_launch = true;
        self.loaded = 1;
        invalidate_all();
        Ok(())
    }

    /// VMCLEAR, VMXOFF and CR4.VMXE off. Every guest field that is needed was read before.
    pub(super) fn off(&mut self) {
        self.loaded = 0;
        // SAFETY: this CPU is in VMX operation and its VMCS is written back first; after VMXOFF nothing of VMX is used.
        unsafe {
            let _ = vmclear(self.control_block);
            vmxoff();
            write_cr4(read_cr4() & !cr4::VMXE);
        }
    }
}
