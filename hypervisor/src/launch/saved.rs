//! The state of a processor in Linux that the stub leaves to the hypervisor to save, and putting it back.

use gaol_abi::handover::LinuxState;

use crate::processor::{self, msr, read_msr, write_msr};

/// Registers as they are when a CPU enters the hypervisor.
#[derive(Clone, Copy, Debug, Default)]
pub struct Saved {
    /// CR0.
    pub cr0: u64,
    /// DR7.
    pub dr7: u64,
    /// IA32_EFER.
    pub efer: u64,
    /// IA32_PAT.
    pub pat: u64,
    /// IA32_DEBUGCTL.
    pub debugctl: u64,
    /// IA32_SYSENTER_CS, ESP, EIP.
    pub sysenter: [u64; 3],
    /// IA32_FS_BASE.
    pub fs_base: u64,
    /// IA32_GS_BASE.
    pub gs_base: u64,
}

impl Saved {
    /// Reads the registers, before anything is changed.
    #[must_use]
    pub fn read() -> Self {
        Self {
            cr0: processor::read_cr0(),
            dr7: processor::read_dr7(),
            efer: read_msr(msr::EFER),
            pat: read_msr(msr::PAT),
            debugctl: read_msr(msr::DEBUGCTL),
            sysenter: [
                read_msr(msr::SYSENTER_CS),
                read_msr(msr::SYSENTER_ESP),
                read_msr(msr::SYSENTER_EIP),
            ],
            fs_base: read_msr(msr::FS_BASE),
            gs_base: read_msr(msr::GS_BASE),
        }
    }

    /// Writes the MSRs back that the stub does not restore, and the rest into the state that the stub does.
    ///
    /// # Safety
    /// The CPU is about to go back to Linux through the stub, outside of operation.
    pub unsafe fn restore(&self, state: &mut LinuxState) {
        let [cs, esp, eip] = self.sysenter;
        // SAFETY: the values were read from these registers while Linux ran; PAT and EFER agree with the mappings in use,
        // which are write-back and, where not executable, marked so under EFER.NXE, which Linux has set as well.
        unsafe {
            write_msr(msr::SYSENTER_CS, cs);
            write_msr(msr::SYSENTER_ESP, esp);
            write_msr(msr::SYSENTER_EIP, eip);
            write_msr(msr::PAT, self.pat);
            write_msr(msr::EFER, self.efer);
            write_msr(msr::DEBUGCTL, self.debugctl);
        }
        state.cr0 = self.cr0;
        state.dr7 = self.dr7;
        state.fs_base = self.fs_base;
        state.gs_base = self.gs_base;
    }
}
