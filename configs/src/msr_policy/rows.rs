//! The rows, in the order of the registers' numbers.

use super::{Grant, Read, Row, Rule, Write, rule};

/// Rows without their texts for the hypervisor, and the texts.
macro_rules! table {
    ($($first:literal $(..= $last:literal)?, $name:literal, $cell:expr, $root:expr, $grant:ident, $why:literal;)*) => {
        /// The table, in ascending order.
        pub static ROWS: [Row; [$($name),*].len()] = [$(Row {
            first: $first,
            last: { let _last: u32 = $first; $(let _last: u32 = $last;)? _last },
            cell: $cell,
            root: $root,
            grant: Grant::$grant,
        }),*];

        /// Name and reason of each row. (The hypervisor's image goes without.)
        pub static TEXTS: [(&str, &str); [$($name),*].len()] = [$(($name, $why)),*];
    };
}

/// RDMSR of a command register raises #GP on its own.
const COMMAND: Rule = rule(Read::Refuse, Write::Pass);
/// The root writes all but bits that the hypervisor itself depends on.
const fn root_but(bits: u64) -> Rule {
    rule(Read::Pass, Write::Masked(!bits))
}

/// IA32_MISC_ENABLE: "limit CPUID maxval" and "XD bit disable".
const MISC_ENABLE_KEPT: u64 = 1 << 22 | 1 << 34;
/// IA32_PQR_ASSOC: the class of service, bits 63:32.
const CLASS_OF_SERVICE: u64 = 0xffff_ffff << 32;

table! {
    0x10, "TIME_STAMP_COUNTER", Rule::READ, Rule::PASS, Reads,
        "Time is for everyone to read. Deadlines of the hypervisor, and the sibling on the core, count on it.";
    0x1b, "APIC_BASE", Rule::CHECKED, Rule::CHECKED, Never,
        "The hypervisor keeps mode, place and enable bit of the APIC: a write that changes one of them is refused.";
    0x33, "TEST_CTRL", Rule::REFUSED, Rule::PASS, Reads,
        "Makes split locks fault on the whole core.";
    0x34, "SMI_COUNT", Rule::READ, Rule::PASS, Reads,
        "A real-time cell must be able to tell the firmware's delays from others.";
    0x3a, "FEATURE_CONTROL", Rule::LOCKED, Rule::LOCKED, Never,
        "Reads as locked without VMX, which nobody has below Gaol; to write it would lock VMX off for the next enable.";
    0x3b, "TSC_ADJUST", Rule::REFUSED, Rule::PASS, Reads,
        "As the counter itself.";
    0x48, "SPEC_CTRL", Rule::OWN, Rule::PASS, All,
        "A CPU's own mitigations; they cost nobody else.";
    0x49, "PRED_CMD", COMMAND, Rule::PASS, All,
        "A barrier for predictions, without state: CPUID offers it to the cell.";
    0x79, "BIOS_UPDT_TRIG", Rule::REFUSED, rule(Read::Pass, Write::Ignore), Reads,
        "Microcode is the whole core's; a new one would change the processor below the hypervisor.";
    0x8b, "BIOS_SIGN_ID", Rule::IGNORED, Rule::PASS, Reads,
        "The revision of the microcode. Linux writes 0 before it reads it, which has no effect in a cell.";
    0x8c..=0x8f, "SGXLEPUBKEYHASH", Rule::REFUSED, Rule::PASS, Reads,
        "Launch keys of the machine.";
    0x9b..=0x9e, "SMM_MONITOR_CTL, SMBASE", Rule::REFUSED, Rule::READ, Nothing,
        "System management mode stands above the hypervisor.";
    0xc1..=0xc8, "PMC0..7", Rule::REFUSED, Rule::PASS, All,
        "Counters may freeze the core's others and raise NMIs; CPUID shows none to a cell. They are cleared when a CPU changes hands.";
    0xce, "PLATFORM_INFO", Rule::READ, Rule::PASS, Reads,
        "Tells the base frequency.";
    0xe1, "UMWAIT_CONTROL", Rule::OWN, Rule::PASS, All,
        "How long TPAUSE and UMWAIT of this CPU may last.";
    0xfe, "MTRRCAP", Rule::READ, Rule::PASS, Reads,
        "How many MTRRs there are; the same for the virtual ones.";
    0x10a, "ARCH_CAPABILITIES", Rule::READ, Rule::PASS, Reads,
        "Which mitigations the processor needs.";
    0x10b, "FLUSH_CMD", Rule::REFUSED, Rule::PASS, Nothing,
        "Empties the first-level cache, which is the sibling's too. CPUID does not offer it to a cell.";
    0x122..=0x123, "TSX_CTRL, MCU_OPT_CTRL", Rule::REFUSED, Rule::PASS, Reads,
        "Mitigations of the whole core.";
    0x150, "Voltage mailbox", Rule::REFUSED, Rule::READ, Nothing,
        "Too low a voltage makes every core compute wrongly.";
    0x174..=0x176, "SYSENTER_CS, ESP, EIP", Rule::SWITCHED, Rule::PASS, All,
        "In the VMCS: each guest has its own.";
    0x179, "MCG_CAP", Rule::LOCKED, Rule::PASS, Nothing,
        "Reads as 0 in a cell: it has no machine check banks.";
    0x17a..=0x17b, "MCG_STATUS, MCG_CTL", Rule::REFUSED, Rule::PASS, Reads,
        "Machine checks are reported to the root.";
    0x186..=0x18d, "PERFEVTSEL0..7", Rule::REFUSED, Rule::PASS, All,
        "As the counters.";
    0x199, "PERF_CTL", Rule::REFUSED, Rule::PASS, All,
        "A core's frequency: for a cell that has the whole core and asks for it.";
    0x19b..=0x19c, "THERM_INTERRUPT, THERM_STATUS", Rule::REFUSED, Rule::PASS, Reads,
        "A core's thermal events are handled by the root.";
    0x1a0, "MISC_ENABLE", Rule::REFUSED, root_but(MISC_ENABLE_KEPT), Reads,
        "Features of the package. Without XD the hypervisor could not come back from a VM exit, with CPUID limited it would not see what there is: these two bits stay.";
    0x1b0, "ENERGY_PERF_BIAS", Rule::REFUSED, Rule::PASS, All,
        "A hint for power management; for a cell that asks for it.";
    0x1b1..=0x1b2, "PACKAGE_THERM_STATUS, INTERRUPT", Rule::REFUSED, Rule::PASS, Reads,
        "Interrupts all CPUs of the package.";
    0x1c4..=0x1c5, "XFD, XFD_ERR", Rule::OWN, Rule::PASS, All,
        "Which extended state faults on first use: a CPU's own.";
    0x1d9, "DEBUGCTL", Rule::CHECKED, Rule::PASS, Nothing,
        "In the VMCS, and 0 in the hypervisor. A cell may single-step branches (BTF); records of branches go to a linear address, and freezing stops counters of the core.";
    0x1f2..=0x1f5, "SMRR_PHYSBASE, MASK, PRMRR", Rule::REFUSED, Rule::READ, Nothing,
        "Cover memory of the firmware.";
    0x200..=0x23f, "MTRR_PHYSBASE, PHYSMASK", Rule::VIRTUAL, Rule::VIRTUAL, Nothing,
        "Memory types stay as they were at the launch: the EPT was built from them. Who writes finds what was written.";
    0x250, "MTRR_FIX64K", Rule::VIRTUAL, Rule::VIRTUAL, Nothing,
        "As the variable MTRRs.";
    0x258..=0x259, "MTRR_FIX16K", Rule::VIRTUAL, Rule::VIRTUAL, Nothing,
        "As the variable MTRRs.";
    0x268..=0x26f, "MTRR_FIX4K", Rule::VIRTUAL, Rule::VIRTUAL, Nothing,
        "As the variable MTRRs.";
    0x277, "PAT", Rule::SWITCHED, Rule::PASS, Nothing,
        "In the VMCS: each guest has its own. It decides within what EPT allows.";
    0x280..=0x29f, "MC0..31_CTL2", Rule::REFUSED, Rule::PASS, Reads,
        "Machine check banks are shared between cores.";
    0x2a0, "PRMRR_PHYSBASE", Rule::REFUSED, Rule::READ, Nothing,
        "As SMRR.";
    0x2ff, "MTRR_DEF_TYPE", Rule::VIRTUAL, Rule::VIRTUAL, Nothing,
        "As the variable MTRRs. Linux switches them off and on whenever a CPU comes up.";
    0x309..=0x30c, "FIXED_CTR0..3", Rule::REFUSED, Rule::PASS, All,
        "As the counters.";
    0x345, "PERF_CAPABILITIES", Rule::REFUSED, Rule::PASS, Reads,
        "As the counters.";
    0x38d..=0x392, "FIXED_CTR_CTRL, PERF_GLOBAL_*", Rule::REFUSED, Rule::PASS, All,
        "As the counters.";
    0x3f1, "PEBS_ENABLE", Rule::REFUSED, rule(Read::Pass, Write::Ignore), Nothing,
        "Records are written to linear addresses, also when the hypervisor runs, where they mean other memory.";
    0x400..=0x47f, "MC0..31_CTL, STATUS, ADDR, MISC", Rule::REFUSED, Rule::PASS, Reads,
        "Writing would raise or hide errors of others.";
    0x480..=0x493, "VMX_*", Rule::REFUSED, Rule::REFUSED, Never,
        "The processor that a guest sees has no VMX.";
    0x4c1..=0x4c8, "A_PMC0..7", Rule::REFUSED, Rule::PASS, All,
        "As the counters.";
    0x560..=0x561, "RTIT_OUTPUT_BASE, MASK_PTRS", Rule::REFUSED, rule(Read::Pass, Write::Ignore), Nothing,
        "Processor trace writes to host-physical memory, past EPT.";
    0x570, "RTIT_CTL", Rule::REFUSED, rule(Read::Pass, Write::Ignore), Nothing,
        "Switches processor trace on.";
    0x571..=0x58f, "RTIT_*", Rule::REFUSED, Rule::PASS, Nothing,
        "Of no use without RTIT_CTL.";
    0x600, "DS_AREA", Rule::REFUSED, Rule::PASS, Nothing,
        "A linear address at which the CPU records branches and events, of which only the root's branches are left.";
    0x601..=0x665, "Power limits and counters (RAPL)", Rule::REFUSED, Rule::PASS, Reads,
        "Limit the power of the package.";
    0x6a0..=0x6a8, "U_CET, S_CET, PL0..3_SSP", Rule::REFUSED, Rule::PASS, Nothing,
        "Of no use without CR4.CET, which is off below Gaol.";
    0x6e0, "TSC_DEADLINE", Rule::OWN, Rule::PASS, All,
        "The timer of a CPU's own APIC.";
    0x6e1, "PKRS", Rule::REFUSED, Rule::PASS, Nothing,
        "Of no use without CR4.PKS, which is off below Gaol.";
    0x770, "PM_ENABLE", Rule::REFUSED, Rule::PASS, Reads,
        "Switches hardware power states on for the package, until the next reset.";
    0x771, "HWP_CAPABILITIES", Rule::REFUSED, Rule::PASS, Reads,
        "What HWP_REQUEST can ask for.";
    0x772, "HWP_REQUEST_PKG", Rule::REFUSED, Rule::PASS, Reads,
        "Frequencies of the package.";
    0x773..=0x777, "HWP_INTERRUPT, REQUEST, STATUS", Rule::REFUSED, Rule::PASS, All,
        "A CPU's own frequency; for a cell that asks for it.";
    0x800..=0x807, "x2APIC: ID, version", Rule::READ, Rule::PASS, Never,
        "A CPU's own APIC. The processor refuses what is not there.";
    0x808, "x2APIC: TPR", Rule::SWITCHED, Rule::PASS, Never,
        "Which interrupts the CPU takes.";
    0x809..=0x80a, "x2APIC: PPR", Rule::READ, Rule::PASS, Never,
        "As the ID.";
    0x80b, "x2APIC: EOI", rule(Read::Pass, Write::Pass), Rule::PASS, Never,
        "Ends an interrupt of the CPU's own; a tick of a real-time cell needs it without an exit.";
    0x80c..=0x80e, "x2APIC: LDR", Rule::READ, Rule::PASS, Never,
        "As the ID.";
    0x80f, "x2APIC: SVR", Rule::CHECKED, Rule::PASS, Never,
        "Enables the APIC.";
    0x810..=0x827, "x2APIC: ISR, TMR, IRR", Rule::READ, Rule::PASS, Never,
        "As the ID.";
    0x828, "x2APIC: ESR", Rule::CHECKED, Rule::PASS, Never,
        "Errors of the CPU's own APIC.";
    0x829..=0x82e, "x2APIC: reserved", Rule::READ, Rule::PASS, Never,
        "As the ID.";
    0x82f..=0x830, "x2APIC: CMCI, ICR", Rule::CHECKED, Rule::CHECKED, Never,
        "Interrupts to others: sent to the guest's own CPUs only. A local vector can also raise SMIs.";
    0x831, "x2APIC: reserved", Rule::READ, Rule::PASS, Never,
        "As the ID.";
    0x832, "x2APIC: timer", Rule::SWITCHED, Rule::PASS, Never,
        "The timer can raise nothing but interrupts of the CPU's own.";
    0x833..=0x837, "x2APIC: thermal, performance, LINT, error", Rule::CHECKED, Rule::CHECKED, Never,
        "A local vector can also raise SMIs and INITs.";
    0x838, "x2APIC: initial count", Rule::SWITCHED, Rule::PASS, Never,
        "As the timer.";
    0x839..=0x83d, "x2APIC: current count", Rule::READ, Rule::PASS, Never,
        "As the ID.";
    0x83e, "x2APIC: divide configuration", Rule::SWITCHED, Rule::PASS, Never,
        "As the timer.";
    0x83f, "x2APIC: self IPI", rule(Read::Pass, Write::Pass), Rule::PASS, Never,
        "An interrupt to the CPU itself.";
    0x840..=0x8ff, "x2APIC: reserved", Rule::REFUSED, Rule::PASS, Never,
        "Nothing is there.";
    0x981..=0x984, "TME_*", Rule::REFUSED, Rule::READ, Reads,
        "Encryption of the machine's memory.";
    0x985..=0x98a, "UINTR_*", Rule::REFUSED, Rule::PASS, Nothing,
        "Of no use without CR4.UINTR, which is off below Gaol.";
    0xc80, "DEBUG_INTERFACE", Rule::REFUSED, Rule::READ, Nothing,
        "Opens the package to a debugger.";
    0xc81..=0xc82, "L3_QOS_CFG, L2_QOS_CFG", Rule::REFUSED, rule(Read::Pass, Write::Ignore), Nothing,
        "How the masks of cache ways are read.";
    0xc8d..=0xc8e, "QM_EVTSEL, QM_CTR", Rule::REFUSED, Rule::PASS, Reads,
        "Counts the cache and bandwidth of others.";
    0xc8f, "PQR_ASSOC", Rule::REFUSED, root_but(CLASS_OF_SERVICE), Nothing,
        "The class of service is the hypervisor's to choose; Linux keeps its monitoring.";
    0xc90..=0xd8f, "Masks of cache ways and memory bandwidth", Rule::REFUSED, rule(Read::Pass, Write::Ignore), Nothing,
        "Cache and bandwidth are parted by the configuration; Linux' resctrl may try, without effect.";
    0xd93, "PASID", Rule::REFUSED, Rule::PASS, Nothing,
        "For commands to devices, of which a cell has none.";
    0xda0, "XSS", Rule::CHECKED, Rule::PASS, Nothing,
        "A cell has no supervisor state: 0 is accepted, so that XSAVES works. CPUID shows it none.";
    0x1200..=0x121f, "LBR_INFO", Rule::REFUSED, Rule::PASS, Nothing,
        "Branches of who had the CPU before.";
    0x14ce..=0x14cf, "LBR_CTL, LBR_DEPTH", Rule::REFUSED, Rule::PASS, Nothing,
        "As LBR_INFO.";
    0x1500..=0x161f, "LBR_FROM, LBR_TO", Rule::REFUSED, Rule::PASS, Nothing,
        "As LBR_INFO.";
    0x17d0, "HW_FEEDBACK_PTR", Rule::REFUSED, rule(Read::Pass, Write::Ignore), Nothing,
        "The CPU writes to this host-physical address, past EPT.";
    0x17d1..=0x17d4, "HW_FEEDBACK_CONFIG, THREAD_*", Rule::REFUSED, Rule::PASS, Nothing,
        "Belong to HW_FEEDBACK_PTR.";
    0xc000_0080, "EFER", Rule::SWITCHED, Rule::PASS, Nothing,
        "In the VMCS: each guest has its own. The processor refuses reserved bits, SVM's among them.";
    0xc000_0081..=0xc000_0084, "STAR, LSTAR, CSTAR, FMASK", Rule::OWN, Rule::PASS, All,
        "Where SYSCALL leads; the hypervisor has no use for them.";
    0xc000_0100..=0xc000_0101, "FS_BASE, GS_BASE", Rule::SWITCHED, Rule::PASS, All,
        "In the VMCS: each guest has its own.";
    0xc000_0102..=0xc000_0103, "KERNEL_GS_BASE, TSC_AUX", Rule::OWN, Rule::PASS, All,
        "A CPU's own; the hypervisor has no use for them.";
    0xc001_0010, "SYSCFG", Rule::REFUSED, Rule::READ, Nothing,
        "Encryption of memory, and what the fixed MTRRs mean.";
    0xc001_0016..=0xc001_001d, "IORR, TOP_MEM, TOP_MEM2", Rule::REFUSED, Rule::READ, Nothing,
        "What is memory and what is devices, for the whole machine.";
    0xc001_0020, "PATCH_LOADER", Rule::REFUSED, rule(Read::Pass, Write::Ignore), Reads,
        "As BIOS_UPDT_TRIG.";
    0xc001_0058, "MMIO_CFG_BASE_ADDR", Rule::REFUSED, Rule::READ, Nothing,
        "Where configuration space is: the hypervisor looks after it where it was at the launch.";
    0xc001_0061..=0xc001_006b, "P-states", Rule::REFUSED, Rule::PASS, Reads,
        "Frequencies and voltages that cores share.";
    0xc001_0111..=0xc001_0113, "SMM_BASE, SMM_ADDR, SMM_MASK", Rule::REFUSED, Rule::READ, Nothing,
        "As SMM_MONITOR_CTL.";
    0xc001_0114, "VM_CR", Rule::LOCKED, Rule::LOCKED, Never,
        "Reads as locked with SVM off, which nobody has below Gaol.";
    0xc001_0115, "IGNNE", Rule::REFUSED, Rule::PASS, Nothing,
        "The line of a coprocessor of old.";
    0xc001_0116, "SMM_CTL", Rule::REFUSED, Rule::REFUSED, Never,
        "Enters and leaves system management mode by hand.";
    0xc001_0117..=0xc001_0118, "VM_HSAVE_PA, SVM_KEY", Rule::REFUSED, Rule::REFUSED, Never,
        "Where the processor saves the hypervisor's state.";
    0xc001_011b, "AVIC doorbell", Rule::REFUSED, Rule::REFUSED, Never,
        "Interrupts other CPUs.";
    0xc001_0130..=0xc001_0136, "SEV: GHCB, status, RMP", Rule::REFUSED, Rule::READ, Nothing,
        "Encrypted guests, which there are none of below Gaol.";
}
