//! What the hypervisor demands of VMX, by name.
//!
//! Invariant: a processor meets all of these exactly when the hypervisor accepts it (the hypervisor's test `hardware_check` compares).

/// IA32_VMX_BASIC.
pub const BASIC: u32 = 0x480;
/// IA32_VMX_MISC.
pub const MISC: u32 = 0x485;
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

/// Capability MSRs that every processor with VMX has, or should have for Gaol.
pub const CAPABILITIES: [u32; 7] = [
    BASIC,
    MISC,
    super::facts::msr::VMX_CR4_FIXED1,
    TRUE_PIN,
    TRUE_PRIMARY,
    TRUE_EXIT,
    TRUE_ENTRY,
];

/// Capability MSRs of processors with secondary controls.
pub const SECONDARY_CAPABILITIES: [u32; 2] = [SECONDARY, EPT_VPID];

/// A bit of a capability MSR (SDM, "VMX Capability Reporting Facility").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// Its name for programs.
    pub key: &'static str,
    /// Its name for people: the SDM's.
    pub name: &'static str,
    /// The MSR.
    pub register: u32,
    /// Number of the bit, of 64.
    pub bit: u32,
    /// What the bit has to be.
    pub value: bool,
    /// What Gaol does with it.
    pub reason: &'static str,
}

impl Requirement {
    /// Whether a value of the MSR meets it.
    #[must_use]
    pub fn is_met(&self, value: u64) -> bool {
        (value.checked_shr(self.bit).unwrap_or(0) & 1 != 0) == self.value
    }
}

/// Whether IA32_VMX_BASIC promises a VMCS of at most a page.
#[must_use]
pub fn fits_page(basic: u64) -> bool {
    basic >> 32 & 0x1fff <= 4096
}

/// Whether IA32_VMX_BASIC wants the VMCS in write-back memory.
#[must_use]
pub fn is_write_back(basic: u64) -> bool {
    basic >> 50 & 0xf == 6
}

const fn bit(
    register: u32,
    bit: u32,
    key: &'static str,
    name: &'static str,
    reason: &'static str,
) -> Requirement {
    Requirement {
        key,
        name,
        register,
        bit,
        value: true,
        reason,
    }
}

/// A control that may be 1: bits 32 to 63 of its MSR.
const fn control(
    register: u32,
    number: u32,
    key: &'static str,
    name: &'static str,
    reason: &'static str,
) -> Requirement {
    bit(register, 32 + number, key, name, reason)
}

/// A control that may be 0: bits 0 to 31 of its MSR.
const fn can_be_off(
    register: u32,
    number: u32,
    key: &'static str,
    name: &'static str,
    reason: &'static str,
) -> Requirement {
    Requirement {
        value: false,
        ..bit(register, number, key, name, reason)
    }
}

const BOTH_WAYS: &str = "Linux, cells and the hypervisor each have their own value.";

/// Everything but the two rules of IA32_VMX_BASIC above.
pub const REQUIREMENTS: [Requirement; 34] = [
    bit(
        BASIC,
        55,
        "vmx_true_controls",
        "TRUE capability MSRs",
        "They say that CR3 exits can be turned off.",
    ),
    bit(
        MISC,
        6,
        "vmx_activity_hlt",
        "activity state HLT",
        "A CPU of a cell that waits to be started halts as a guest.",
    ),
    control(
        TRUE_PIN,
        3,
        "vmx_nmi_exiting",
        "NMI exiting (pin-based)",
        "The hypervisor kicks a CPU with an NMI.",
    ),
    control(
        TRUE_PIN,
        5,
        "vmx_virtual_nmis",
        "virtual NMIs (pin-based)",
        "NMIs that are not the hypervisor's are passed on.",
    ),
    control(
        TRUE_PIN,
        6,
        "vmx_preemption_timer",
        "VMX-preemption timer (pin-based)",
        "It closes the gap between the last look for a kick and the entry of the guest.",
    ),
    can_be_off(
        TRUE_PRIMARY,
        15,
        "vmx_cr3_load_free",
        "CR3-load exiting off (primary)",
        "Each switch of a process would exit.",
    ),
    can_be_off(
        TRUE_PRIMARY,
        16,
        "vmx_cr3_store_free",
        "CR3-store exiting off (primary)",
        "Each reading of CR3 would exit.",
    ),
    control(
        TRUE_PRIMARY,
        22,
        "vmx_nmi_window",
        "NMI-window exiting (primary)",
        "An NMI that comes at a bad moment waits for a better one.",
    ),
    control(
        TRUE_PRIMARY,
        25,
        "vmx_io_bitmaps",
        "I/O bitmaps (primary)",
        "They keep a cell from ports that are not its own.",
    ),
    control(
        TRUE_PRIMARY,
        28,
        "vmx_msr_bitmaps",
        "MSR bitmaps (primary)",
        "They keep a cell from MSRs that are not its own, and let it have its timer.",
    ),
    control(
        TRUE_PRIMARY,
        31,
        "vmx_secondary",
        "secondary controls (primary)",
        "All that follows depends on them.",
    ),
    control(
        SECONDARY,
        1,
        "vmx_ept",
        "EPT (secondary)",
        "Extended page tables confine memory.",
    ),
    control(
        SECONDARY,
        5,
        "vmx_vpid",
        "VPID (secondary)",
        "Cells keep their TLB entries when the hypervisor runs.",
    ),
    control(
        SECONDARY,
        6,
        "vmx_wbinvd_exiting",
        "WBINVD exiting (secondary)",
        "One cell must not empty the caches of another.",
    ),
    control(
        SECONDARY,
        7,
        "vmx_unrestricted_guest",
        "unrestricted guest (secondary)",
        "Cells start in real mode, without paging.",
    ),
    control(
        TRUE_EXIT,
        2,
        "vmx_save_debug",
        "save debug controls (exit)",
        BOTH_WAYS,
    ),
    control(
        TRUE_EXIT,
        9,
        "vmx_host_64_bit",
        "host address-space size (exit)",
        "The hypervisor runs in 64-bit mode.",
    ),
    control(
        TRUE_EXIT,
        18,
        "vmx_save_pat",
        "save IA32_PAT (exit)",
        BOTH_WAYS,
    ),
    control(
        TRUE_EXIT,
        19,
        "vmx_exit_load_pat",
        "load IA32_PAT (exit)",
        BOTH_WAYS,
    ),
    control(
        TRUE_EXIT,
        20,
        "vmx_save_efer",
        "save IA32_EFER (exit)",
        BOTH_WAYS,
    ),
    control(
        TRUE_EXIT,
        21,
        "vmx_exit_load_efer",
        "load IA32_EFER (exit)",
        BOTH_WAYS,
    ),
    control(
        TRUE_ENTRY,
        2,
        "vmx_load_debug",
        "load debug controls (entry)",
        BOTH_WAYS,
    ),
    control(
        TRUE_ENTRY,
        9,
        "vmx_ia32e_guest",
        "IA-32e mode guest (entry)",
        "Linux runs in 64-bit mode.",
    ),
    control(
        TRUE_ENTRY,
        14,
        "vmx_entry_load_pat",
        "load IA32_PAT (entry)",
        BOTH_WAYS,
    ),
    control(
        TRUE_ENTRY,
        15,
        "vmx_entry_load_efer",
        "load IA32_EFER (entry)",
        BOTH_WAYS,
    ),
    bit(
        EPT_VPID,
        6,
        "ept_four_levels",
        "EPT: page walk of length 4",
        "The hypervisor's tables have four levels.",
    ),
    bit(
        EPT_VPID,
        14,
        "ept_write_back",
        "EPT: write-back tables",
        "Tables that are not cached would make every miss slow.",
    ),
    bit(
        EPT_VPID,
        16,
        "ept_2m",
        "EPT: pages of 2 MiB",
        "Large pages save tables and TLB entries.",
    ),
    bit(
        EPT_VPID,
        20,
        "invept",
        "INVEPT",
        "The hypervisor takes memory away from a running guest.",
    ),
    bit(
        EPT_VPID,
        25,
        "invept_single",
        "INVEPT: single context",
        "A change to one cell must not cost another its TLB.",
    ),
    bit(
        EPT_VPID,
        26,
        "invept_all",
        "INVEPT: all contexts",
        "Nothing of an earlier enable may stay in the TLB.",
    ),
    bit(
        EPT_VPID,
        32,
        "invvpid",
        "INVVPID",
        "VPIDs are used again for other guests.",
    ),
    bit(
        EPT_VPID,
        41,
        "invvpid_single",
        "INVVPID: single context",
        "A change to one cell must not cost another its TLB.",
    ),
    bit(
        EPT_VPID,
        42,
        "invvpid_all",
        "INVVPID: all contexts",
        "Nothing of an earlier enable may stay in the TLB.",
    ),
];

/// Whether this version of Gaol has a hypervisor for SVM (the same test looks).
pub const HAS_SVM: bool = true;

/// Bits of CR4 that the hypervisor knows, by their names. Linux may have set any of them.
pub const CR4_KNOWN: [(u32, &str); 21] = [
    (0, "VME"),
    (1, "PVI"),
    (2, "TSD"),
    (3, "DE"),
    (4, "PSE"),
    (5, "PAE"),
    (6, "MCE"),
    (7, "PGE"),
    (8, "PCE"),
    (9, "OSFXSR"),
    (10, "OSXMMEXCPT"),
    (11, "UMIP"),
    (12, "LA57"),
    (13, "VMXE"),
    (14, "SMXE"),
    (16, "FSGSBASE"),
    (17, "PCIDE"),
    (18, "OSXSAVE"),
    (20, "SMEP"),
    (21, "SMAP"),
    (22, "PKE"),
];
