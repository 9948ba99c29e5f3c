//! Definitions of VMX: fields of the VMCS, control bits, exit reasons, interruption information.
//!
//! SDM, "Field Encoding in VMCS", "VM-Execution Control Fields", "VMX Basic Exit Reasons". No code, no hardware: unknown
//! values of what hardware reports stay representable.
#![forbid(unsafe_code)]

use bitflags::bitflags;
use open_enum::open_enum;

/// Encoding of a VMCS field.
#[open_enum]
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the SDM's")]
pub enum Field {
    VirtualProcessorId = 0x0000,
    GuestEsSelector = 0x0800,
    GuestCsSelector = 0x0802,
    GuestSsSelector = 0x0804,
    GuestDsSelector = 0x0806,
    GuestFsSelector = 0x0808,
    GuestGsSelector = 0x080a,
    GuestLdtrSelector = 0x080c,
    GuestTrSelector = 0x080e,
    HostEsSelector = 0x0c00,
    HostCsSelector = 0x0c02,
    HostSsSelector = 0x0c04,
    HostDsSelector = 0x0c06,
    HostFsSelector = 0x0c08,
    HostGsSelector = 0x0c0a,
    HostTrSelector = 0x0c0c,
    IoBitmapA = 0x2000,
    IoBitmapB = 0x2002,
    MsrBitmap = 0x2004,
    ExitMsrStoreAddress = 0x2006,
    ExitMsrLoadAddress = 0x2008,
    EntryMsrLoadAddress = 0x200a,
    TscOffset = 0x2010,
    EptPointer = 0x201a,
    XssExitingBitmap = 0x202c,
    GuestPhysicalAddress = 0x2400,
    VmcsLinkPointer = 0x2800,
    GuestDebugctl = 0x2802,
    GuestPat = 0x2804,
    GuestEfer = 0x2806,
    GuestPdpte0 = 0x280a,
    GuestPdpte1 = 0x280c,
    GuestPdpte2 = 0x280e,
    GuestPdpte3 = 0x2810,
    HostPat = 0x2c00,
    HostEfer = 0x2c02,
    PinBasedControls = 0x4000,
    PrimaryControls = 0x4002,
    ExceptionBitmap = 0x4004,
    PageFaultErrorCodeMask = 0x4006,
    PageFaultErrorCodeMatch = 0x4008,
    Cr3TargetCount = 0x400a,
    ExitControls = 0x400c,
    ExitMsrStoreCount = 0x400e,
    ExitMsrLoadCount = 0x4010,
    EntryControls = 0x4012,
    EntryMsrLoadCount = 0x4014,
    EntryInterruptionInformation = 0x4016,
    EntryExceptionErrorCode = 0x4018,
    EntryInstructionLength = 0x401a,
    TprThreshold = 0x401c,
    SecondaryControls = 0x401e,
    InstructionError = 0x4400,
    ExitReason = 0x4402,
    ExitInterruptionInformation = 0x4404,
    ExitInterruptionErrorCode = 0x4406,
    IdtVectoringInformation = 0x4408,
    IdtVectoringErrorCode = 0x440a,
    ExitInstructionLength = 0x440c,
    ExitInstructionInformation = 0x440e,
    GuestEsLimit = 0x4800,
    GuestCsLimit = 0x4802,
    GuestSsLimit = 0x4804,
    GuestDsLimit = 0x4806,
    GuestFsLimit = 0x4808,
    GuestGsLimit = 0x480a,
    GuestLdtrLimit = 0x480c,
    GuestTrLimit = 0x480e,
    GuestGdtrLimit = 0x4810,
    GuestIdtrLimit = 0x4812,
    GuestEsAccessRights = 0x4814,
    GuestCsAccessRights = 0x4816,
    GuestSsAccessRights = 0x4818,
    GuestDsAccessRights = 0x481a,
    GuestFsAccessRights = 0x481c,
    GuestGsAccessRights = 0x481e,
    GuestLdtrAccessRights = 0x4820,
    GuestTrAccessRights = 0x4822,
    GuestInterruptibility = 0x4824,
    GuestActivity = 0x4826,
    GuestSysenterCs = 0x482a,
    PreemptionTimer = 0x482e,
    HostSysenterCs = 0x4c00,
    Cr0Mask = 0x6000,
    Cr4Mask = 0x6002,
    Cr0ReadShadow = 0x6004,
    Cr4ReadShadow = 0x6006,
    ExitQualification = 0x6400,
    GuestLinearAddress = 0x640a,
    GuestCr0 = 0x6800,
    GuestCr3 = 0x6802,
    GuestCr4 = 0x6804,
    GuestEsBase = 0x6806,
    GuestCsBase = 0x6808,
    GuestSsBase = 0x680a,
    GuestDsBase = 0x680c,
    GuestFsBase = 0x680e,
    GuestGsBase = 0x6810,
    GuestLdtrBase = 0x6812,
    GuestTrBase = 0x6814,
    GuestGdtrBase = 0x6816,
    GuestIdtrBase = 0x6818,
    GuestDr7 = 0x681a,
    GuestRsp = 0x681c,
    GuestRip = 0x681e,
    GuestRflags = 0x6820,
    GuestPendingDebugExceptions = 0x6822,
    GuestSysenterEsp = 0x6824,
    GuestSysenterEip = 0x6826,
    HostCr0 = 0x6c00,
    HostCr3 = 0x6c02,
    HostCr4 = 0x6c04,
    HostFsBase = 0x6c06,
    HostGsBase = 0x6c08,
    HostTrBase = 0x6c0a,
    HostGdtrBase = 0x6c0c,
    HostIdtrBase = 0x6c0e,
    HostSysenterEsp = 0x6c10,
    HostSysenterEip = 0x6c12,
    HostRsp = 0x6c14,
    HostRip = 0x6c16,
}

/// The four fields of a segment register in the VMCS.
#[derive(Clone, Copy, Debug)]
pub struct SegmentFields {
    /// Selector.
    pub selector: Field,
    /// Base.
    pub base: Field,
    /// Limit.
    pub limit: Field,
    /// Access rights.
    pub access_rights: Field,
}

const fn segment(index: u32) -> SegmentFields {
    // The encodings of the four fields run in step: SDM, "Field Encoding in VMCS".
    let step = index.wrapping_mul(2);
    SegmentFields {
        selector: Field(Field::GuestEsSelector.0.wrapping_add(step)),
        base: Field(Field::GuestEsBase.0.wrapping_add(step)),
        limit: Field(Field::GuestEsLimit.0.wrapping_add(step)),
        access_rights: Field(Field::GuestEsAccessRights.0.wrapping_add(step)),
    }
}

/// ES, CS, SS, DS, FS, GS, LDTR, TR: the order of [`gaol_abi::handover::LinuxState::selectors`].
pub const SEGMENTS: [SegmentFields; 8] = [
    segment(0),
    segment(1),
    segment(2),
    segment(3),
    segment(4),
    segment(5),
    segment(6),
    segment(7),
];

bitflags! {
    /// Pin-based VM-execution controls.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct PinBased: u32 {
        /// NMIs cause VM exits.
        const NMI_EXITING = 1 << 3;
        /// NMI blocking is virtual.
        const VIRTUAL_NMIS = 1 << 5;
        /// The preemption timer counts down in the guest.
        const PREEMPTION_TIMER = 1 << 6;
    }

    /// Primary processor-based VM-execution controls.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Primary: u32 {
        /// RDPMC exits.
        const RDPMC_EXITING = 1 << 11;
        /// MOV to CR3 exits; must be off.
        const CR3_LOAD_EXITING = 1 << 15;
        /// MOV from CR3 exits; must be off.
        const CR3_STORE_EXITING = 1 << 16;
        /// The NMI window exits.
        const NMI_WINDOW_EXITING = 1 << 22;
        /// I/O bitmaps are in use.
        const IO_BITMAPS = 1 << 25;
        /// MSR bitmaps are in use.
        const MSR_BITMAPS = 1 << 28;
        /// Secondary controls are in use.
        const SECONDARY = 1 << 31;
    }

    /// Secondary processor-based VM-execution controls.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Secondary: u32 {
        /// Extended page tables.
        const EPT = 1 << 1;
        /// RDTSCP works.
        const RDTSCP = 1 << 3;
        /// Virtual processor identifiers.
        const VPID = 1 << 5;
        /// WBINVD exits.
        const WBINVD_EXITING = 1 << 6;
        /// The guest may run unpaged and in real mode.
        const UNRESTRICTED_GUEST = 1 << 7;
        /// INVPCID works.
        const INVPCID = 1 << 12;
        /// XSAVES and XRSTORS work.
        const XSAVES = 1 << 20;
        /// TPAUSE, UMONITOR and UMWAIT work.
        const USER_WAIT = 1 << 26;
    }

    /// VM-exit controls.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Exit: u32 {
        /// DR7 and DEBUGCTL are saved.
        const SAVE_DEBUG_CONTROLS = 1 << 2;
        /// The host is in 64-bit mode.
        const HOST_64_BIT = 1 << 9;
        /// PAT is saved.
        const SAVE_PAT = 1 << 18;
        /// PAT is loaded.
        const LOAD_PAT = 1 << 19;
        /// EFER is saved.
        const SAVE_EFER = 1 << 20;
        /// EFER is loaded.
        const LOAD_EFER = 1 << 21;
    }

    /// VM-entry controls.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Entry: u32 {
        /// DR7 and DEBUGCTL are loaded.
        const LOAD_DEBUG_CONTROLS = 1 << 2;
        /// The guest is in IA-32e mode.
        const IA32E_MODE_GUEST = 1 << 9;
        /// PAT is loaded.
        const LOAD_PAT = 1 << 14;
        /// EFER is loaded.
        const LOAD_EFER = 1 << 15;
    }

    /// Exit qualification of an EPT violation.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct EptViolation: u64 {
        /// A data read.
        const READ = 1 << 0;
        /// A data write.
        const WRITE = 1 << 1;
        /// An instruction fetch.
        const FETCH = 1 << 2;
        /// The page is readable.
        const READABLE = 1 << 3;
        /// The page is writable.
        const WRITABLE = 1 << 4;
        /// The page is executable.
        const EXECUTABLE = 1 << 5;
        /// The guest-linear address is valid.
        const LINEAR_VALID = 1 << 7;
        /// The access was to the translation of a linear address, not to a paging structure.
        const TRANSLATED = 1 << 8;
    }
}

/// Basic exit reasons.
#[open_enum]
#[repr(u16)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the SDM's")]
pub enum ExitReason {
    ExceptionOrNmi = 0,
    ExternalInterrupt = 1,
    TripleFault = 2,
    Init = 3,
    StartupIpi = 4,
    NmiWindow = 8,
    TaskSwitch = 9,
    Cpuid = 10,
    Getsec = 11,
    Hlt = 12,
    Invd = 13,
    Rdpmc = 15,
    Vmcall = 18,
    Vmclear = 19,
    Vmlaunch = 20,
    Vmptrld = 21,
    Vmptrst = 22,
    Vmread = 23,
    Vmresume = 24,
    Vmwrite = 25,
    Vmxoff = 26,
    Vmxon = 27,
    ControlRegister = 28,
    Port = 30,
    Rdmsr = 31,
    Wrmsr = 32,
    InvalidGuestState = 33,
    MachineCheckOnEntry = 41,
    EptViolation = 48,
    EptMisconfiguration = 49,
    Invept = 50,
    PreemptionTimer = 52,
    Invvpid = 53,
    Wbinvd = 54,
    Xsetbv = 55,
    Vmfunc = 59,
    Seamcall = 76,
    Tdcall = 77,
}

/// Bit 31 of the exit reason: the VM entry failed.
pub const EXIT_ENTRY_FAILURE: u32 = 1 << 31;

/// Guest activity state: active.
pub const ACTIVITY_ACTIVE: u64 = 0;
/// Guest activity state: HLT.
pub const ACTIVITY_HLT: u64 = 1;

/// Guest interruptibility: blocking by STI.
pub const BLOCKING_BY_STI: u64 = 1 << 0;
/// Guest interruptibility: blocking by MOV SS.
pub const BLOCKING_BY_MOV_SS: u64 = 1 << 1;
/// Guest interruptibility: blocking by NMI (virtual NMIs: of the guest's own).
pub const BLOCKING_BY_NMI: u64 = 1 << 3;

/// Interruption information: the type's bits.
pub const INTERRUPTION_TYPE: u32 = 7 << 8;
/// Interruption type: NMI.
pub const INTERRUPTION_NMI: u32 = 2 << 8;
/// Exit interruption information, and exit qualification of an EPT violation: the exit came in an IRET that had ended the
/// blocking of NMIs.
pub const UNBLOCKED_BY_IRET: u64 = 1 << 12;

/// Capability MSRs and others that VMX needs.
pub mod msr {
    /// IA32_VMX_BASIC.
    pub const BASIC: u32 = 0x480;
    /// IA32_VMX_MISC.
    pub const MISC: u32 = 0x485;
    /// IA32_VMX_CR0_FIXED0.
    pub const CR0_FIXED0: u32 = 0x486;
    /// IA32_VMX_CR0_FIXED1.
    pub const CR0_FIXED1: u32 = 0x487;
    /// IA32_VMX_CR4_FIXED0.
    pub const CR4_FIXED0: u32 = 0x488;
    /// IA32_VMX_CR4_FIXED1.
    pub const CR4_FIXED1: u32 = 0x489;
    /// IA32_VMX_PROCBASED_CTLS2.
    pub const SECONDARY: u32 = 0x48b;
    /// IA32_VMX_EPT_VPID_CAP.
    pub const EPT_VPID: u32 = 0x48c;
    /// IA32_VMX_TRUE_PINBASED_CTLS.
    pub const TRUE_PIN: u32 = 0x48d;
    /// IA32_VMX_TRUE_PROCBASED_CTLS.
    pub const TRUE_PRIMARY: u32 = 0x48e;
    /// IA32_VMX_TRUE_EXIT_CTLS.
    pub const TRUE_EXIT: u32 = 0x48f;
    /// IA32_VMX_TRUE_ENTRY_CTLS.
    pub const TRUE_ENTRY: u32 = 0x490;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segment_fields_run_in_step() {
        assert_eq!(SEGMENTS[7].selector, Field::GuestTrSelector);
        assert_eq!(SEGMENTS[7].base, Field::GuestTrBase);
        assert_eq!(SEGMENTS[7].limit, Field::GuestTrLimit);
        assert_eq!(SEGMENTS[7].access_rights, Field::GuestTrAccessRights);
        assert_eq!(SEGMENTS[1].access_rights, Field::GuestCsAccessRights);
    }
}
