//! Which model-specific registers can be given away, and to whom.
//!
//! Invariant: a register that the hypervisor relies on, or through which one cell reaches another, is in the table.

use gaol_abi::config::{MSR_PER_CPU, MSR_READ, MSR_WRITE, MsrAccess};
use gaol_abi::outcome::Reason;

use super::Ledger;
use crate::binary::Refusal;

/// Denied to the root cell, too.
const ROOT_TOO: u32 = 1 << 31;
/// Neither read nor written.
const ALL: u32 = MSR_READ | MSR_WRITE;
/// Read, but not written.
const WRITES: u32 = MSR_WRITE;

/// Registers that are not given to cells: the first, the last, what is denied. AMD's own, from 0xc0010000 on, are outside
/// of what can be given at all. Numbers and names: SDM volume 4, "Model-Specific Registers".
const DENIED: [(u32, u32, u32); 32] = [
    // TIME_STAMP_COUNTER: the hypervisor's deadlines, and the other cell on the core, count on it.
    (0x10, 0x10, WRITES),
    // APIC_BASE: the hypervisor keeps the mode of the APIC.
    (0x1b, 0x1b, ALL | ROOT_TOO),
    // TEST_CTRL: bus locks of the whole core.
    (0x33, 0x33, WRITES),
    // FEATURE_CONTROL: would lock VMX off for the next enable.
    (0x3a, 0x3a, ALL | ROOT_TOO),
    // TSC_ADJUST: as the counter itself.
    (0x3b, 0x3b, WRITES),
    // BIOS_UPDT_TRIG: microcode is the whole core's, and is read from a linear address of the hypervisor's choice.
    (0x79, 0x79, WRITES),
    // BIOS_SIGN_ID: the signature of that microcode.
    (0x8b, 0x8b, WRITES),
    // SGX launch keys: the machine's.
    (0x8c, 0x8f, WRITES),
    // SMM_MONITOR_CTL, SMBASE: system management mode stands above the hypervisor.
    (0x9b, 0x9e, ALL),
    // TSX_CTRL, MCU_OPT_CTRL: mitigations of the whole core.
    (0x122, 0x123, WRITES),
    // MCG_STATUS, MCG_CTL: machine checks are reported to the root cell.
    (0x17a, 0x17b, WRITES),
    // MISC_ENABLE: changes what CPUID says, and features of the package.
    (0x1a0, 0x1a0, WRITES),
    // PACKAGE_THERM_INTERRUPT: interrupts all CPUs of the package.
    (0x1b2, 0x1b2, WRITES),
    // DEBUGCTL: kept in the VMCS; freezes counters of the core, and writes traces.
    (0x1d9, 0x1d9, ALL),
    // SMRR, PRMRR: cover memory of firmware.
    (0x1f2, 0x1f5, ALL),
    // Variable MTRRs: memory types of the machine; cells have EPT's.
    (0x200, 0x21f, ALL),
    // Fixed MTRRs.
    (0x250, 0x250, ALL),
    (0x258, 0x259, ALL),
    (0x268, 0x26f, ALL),
    // PAT: kept in the VMCS, where all cells have their own.
    (0x277, 0x277, ALL),
    // MC_CTL2: machine check banks, shared between cores.
    (0x280, 0x29f, WRITES),
    // MTRR_DEF_TYPE: virtual for all cells.
    (0x2ff, 0x2ff, ALL),
    // Machine check banks: writing to them raises or hides errors of others.
    (0x400, 0x47f, WRITES),
    // VMX capabilities.
    (0x480, 0x492, ALL | ROOT_TOO),
    // Processor trace: writes to host-physical addresses of the cell's choice.
    (0x560, 0x58f, ALL),
    // x2APIC: all cells have theirs, as far as it can be given.
    (0x800, 0x8ff, ALL | ROOT_TOO),
    // TME: keys of the memory.
    (0x981, 0x984, WRITES),
    // DEBUG_INTERFACE: opens the package to a debugger.
    (0xc80, 0xc80, ALL),
    // L3_QOS_CFG, L2_QOS_CFG: how the hypervisor's masks of cache ways are read.
    (0xc81, 0xc82, ALL),
    // PQR_ASSOC, masks of cache ways and of memory bandwidth: the hypervisor sets them.
    (0xc8f, 0xd8f, ALL),
    // HW_FEEDBACK_PTR and what belongs to it: the CPU writes to a host-physical address of the cell's choice.
    (0x17d0, 0x17d4, ALL),
    // EFER: kept in the VMCS, where all cells have their own.
    (0xc000_0080, 0xc000_0080, ALL),
];

/// Whether the register, given like this, is one of those that are denied.
#[must_use]
pub fn is_denied(access: &MsrAccess, is_root: bool) -> bool {
    DENIED.iter().any(|(first, last, denied)| {
        (*first..=*last).contains(&access.msr)
            && denied & ALL & access.flags != 0
            && (!is_root || denied & ROOT_TOO != 0)
    })
}

/// Whether a register can be given away like this: it is in one of the two ranges whose accesses can pass, something is
/// given, the mask fits, and it is not denied.
#[must_use]
pub fn msr_is_sound(access: &MsrAccess, is_root: bool) -> bool {
    let is_in_bitmap =
        access.msr & !0xc000_0000 <= 0x1fff && (access.msr >> 30 == 0 || access.msr >> 30 == 3);
    let is_written = access.flags & MSR_WRITE != 0;
    is_in_bitmap
        && access.flags & ALL != 0
        && is_written == (access.write_mask != 0)
        && !is_denied(access, is_root)
}

/// Whether two cells can't have the register in these two ways: one of them writes, and it is one register for both.
fn conflicts(first: &MsrAccess, second: &MsrAccess) -> bool {
    first.msr == second.msr
        && (first.flags | second.flags) & MSR_WRITE != 0
        && first.flags & second.flags & MSR_PER_CPU == 0
}

/// Checks the register at `index`, those before it in the list included.
pub(super) fn check_list(
    msrs: &[MsrAccess],
    index: usize,
    is_root: bool,
) -> Result<MsrAccess, Refusal> {
    let mut before = msrs.iter().take(index);
    match msrs.get(index) {
        Some(access) if !msr_is_sound(access, is_root) => {
            Err(Refusal::new(Reason::MsrInvalid, access.msr.into()))
        }
        Some(access) if before.any(|other| other.msr == access.msr) => {
            Err(Refusal::new(Reason::MsrOwned, access.msr.into()))
        }
        Some(access) => Ok(*access),
        None => Err(Refusal::new(Reason::MsrInvalid, 0)),
    }
}

impl Ledger {
    /// Checks the register at `index` of a cell's list.
    pub(super) fn check_msr(&self, msrs: &[MsrAccess], index: usize) -> Result<(), Refusal> {
        let access = check_list(msrs, index, false)?;
        let mut held = self.cells().flat_map(|(_, holding)| holding.msrs.get());
        if held.any(|other| conflicts(&access, other)) {
            return Err(Refusal::new(Reason::MsrOwned, access.msr.into()));
        }
        Ok(())
    }

    /// The cell that has a register in a way that speaks against `access`.
    #[must_use]
    pub fn owner_of_msr(&self, access: &MsrAccess) -> super::CellId {
        self.owner(|holding| {
            holding
                .msrs
                .get()
                .iter()
                .any(|other| conflicts(access, other))
        })
    }
}
