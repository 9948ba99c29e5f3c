//! What the processor's VMX offers, and the control values that follow: logic over a reader of MSRs.
//!
//! Invariant: [`Controls`] only ever holds values that VM entry accepts on the processor whose MSRs were read (SDM,
//! "VMX Capability Reporting Facility"); a missing requirement is an error that names the MSR and the bits.
#![forbid(unsafe_code)]

use gaol_abi::outcome::Reason;

use super::fields::{Entry, Exit, PinBased, Primary, Secondary, msr};
use crate::error::Failure;
use crate::virt::contract::Capabilities;

/// The controls, the same for all guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Controls {
    /// Pin-based, without the preemption timer.
    pub pin: u32,
    /// Primary processor-based.
    pub primary: u32,
    /// What cells have besides [`Self::primary`]: RDPMC exits, where the processor can.
    pub primary_of_cells: u32,
    /// Secondary processor-based.
    pub secondary: u32,
    /// Exit.
    pub exit: u32,
    /// Entry, without "IA-32e mode guest".
    pub entry: u32,
    /// Revision identifier for VMXON region and VMCS.
    pub revision: u32,
    /// Bits of CR0 that must be 1 in VMX operation, but for PE and PG, which an unrestricted guest may clear.
    pub cr0_fixed_ones: u64,
    /// Bits of CR4 that must be 1 in VMX operation.
    pub cr4_fixed_ones: u64,
    /// Bits of CR4 that may be 1 in VMX operation.
    pub cr4_allowed: u64,
    /// EPT can map 1 GiB pages.
    pub ept_1g: bool,
}

/// EPT and VPID capabilities that Gaol needs: 4-level walk, WB, 2 MiB pages, INVEPT with both types, INVVPID with
/// single-context and all-context types (SDM, "VPID and EPT Capabilities").
const EPT_VPID_REQUIRED: u64 = (1 << 6)
    | (1 << 14)
    | (1 << 16)
    | (1 << 20)
    | (1 << 25)
    | (1 << 26)
    | (1 << 32)
    | (1 << 41)
    | (1 << 42);

fn missing(register: u32, bits: u64) -> Failure {
    Failure::hardware(
        Reason::VmxCapability,
        (u64::from(register) << 32) | (bits & 0xffff_ffff),
    )
}

/// Combines what must and what may be set with the capability MSR (low half: bits that must be 1, high half: bits that
/// may be 1). `off` must be clear.
fn controls(
    value: u64,
    register: u32,
    required: u32,
    optional: u32,
    off: u32,
) -> Result<u32, Failure> {
    let (must, may) = (value as u32, (value >> 32) as u32);
    if required & !may != 0 {
        return Err(missing(register, u64::from(required & !may)));
    }
    if off & must != 0 {
        return Err(missing(register, u64::from(off & must)));
    }
    Ok(must | required | (optional & may))
}

impl Capabilities for Controls {
    fn maps_1g(&self) -> bool {
        self.ept_1g
    }

    fn allowed_cr4(&self) -> u64 {
        self.cr4_allowed
    }

    /// The capability MSRs tell all.
    fn detect(
        _cpuid: impl FnMut(u32, u32) -> [u32; 4],
        mut read: impl FnMut(u32) -> u64,
    ) -> Result<Self, Failure> {
        let basic = read(msr::BASIC);
        // Size at most a page, write-back memory type (6), TRUE capability MSRs.
        let size = (basic >> 32) & 0x1fff;
        if size > 4096 || (basic >> 50) & 0xf != 6 || basic & (1 << 55) == 0 {
            return Err(missing(msr::BASIC, basic >> 32));
        }
        let ept_vpid = read(msr::EPT_VPID);
        if ept_vpid & EPT_VPID_REQUIRED != EPT_VPID_REQUIRED {
            let absent = EPT_VPID_REQUIRED & !ept_vpid;
            return Err(missing(msr::EPT_VPID, (absent >> 32) | absent));
        }
        let activity_hlt = 1 << 6;
        if read(msr::MISC) & activity_hlt == 0 {
            return Err(missing(msr::MISC, activity_hlt));
        }
        let pin = controls(
            read(msr::TRUE_PIN),
            msr::TRUE_PIN,
            (PinBased::NMI_EXITING | PinBased::VIRTUAL_NMIS | PinBased::PREEMPTION_TIMER).bits(),
            0,
            0,
        )?;
        let primary = controls(
            read(msr::TRUE_PRIMARY),
            msr::TRUE_PRIMARY,
            (Primary::IO_BITMAPS
                | Primary::MSR_BITMAPS
                | Primary::SECONDARY
                | Primary::NMI_WINDOW_EXITING)
                .bits(),
            Primary::RDPMC_EXITING.bits(),
            (Primary::CR3_LOAD_EXITING | Primary::CR3_STORE_EXITING).bits(),
        )?;
        let secondary = controls(
            read(msr::SECONDARY),
            msr::SECONDARY,
            (Secondary::EPT
                | Secondary::VPID
                | Secondary::UNRESTRICTED_GUEST
                | Secondary::WBINVD_EXITING)
                .bits(),
            (Secondary::RDTSCP | Secondary::INVPCID | Secondary::XSAVES | Secondary::USER_WAIT)
                .bits(),
            0,
        )?;
        let exit = controls(
            read(msr::TRUE_EXIT),
            msr::TRUE_EXIT,
            (Exit::SAVE_DEBUG_CONTROLS
                | Exit::HOST_64_BIT
                | Exit::SAVE_PAT
                | Exit::LOAD_PAT
                | Exit::SAVE_EFER
                | Exit::LOAD_EFER)
                .bits(),
            0,
            0,
        )?;
        let entry = controls(
            read(msr::TRUE_ENTRY),
            msr::TRUE_ENTRY,
            (Entry::LOAD_DEBUG_CONTROLS
                | Entry::LOAD_PAT
                | Entry::LOAD_EFER
                | Entry::IA32E_MODE_GUEST)
                .bits(),
            0,
            0,
        )?;
        let protection_and_paging = 0x8000_0001;
        Ok(Self {
            pin: pin & !PinBased::PREEMPTION_TIMER.bits(),
            primary: primary & !(Primary::NMI_WINDOW_EXITING | Primary::RDPMC_EXITING).bits(),
            primary_of_cells: primary & Primary::RDPMC_EXITING.bits(),
            secondary,
            exit,
            entry: entry & !Entry::IA32E_MODE_GUEST.bits(),
            revision: (basic & 0x7fff_ffff) as u32,
            cr0_fixed_ones: read(msr::CR0_FIXED0) & !protection_and_paging,
            cr4_fixed_ones: read(msr::CR4_FIXED0),
            cr4_allowed: read(msr::CR4_FIXED1),
            ept_1g: ept_vpid & (1 << 17) != 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn detect(read: impl FnMut(u32) -> u64) -> Result<Controls, Failure> {
        Controls::detect(|_, _| [0; 4], read)
    }

    fn haswell(register: u32) -> u64 {
        match register {
            msr::BASIC => 0x00d8_1000_0000_002b,
            msr::MISC => 0x2004_01e0,
            msr::CR0_FIXED0 => 0x8000_0021,
            msr::CR4_FIXED0 => 0x2000,
            msr::CR4_FIXED1 => 0x1727ff,
            msr::SECONDARY => 0x0004_7fff_0000_0000,
            msr::EPT_VPID => 0x0f01_0633_4141,
            msr::TRUE_PIN => 0x0000_007f_0000_0016,
            msr::TRUE_PRIMARY => 0xf7f9_fffe_0400_6172,
            msr::TRUE_EXIT => 0x007f_ffff_0003_6dfb,
            msr::TRUE_ENTRY => 0x0000_ffff_0000_11fb,
            _ => 0,
        }
    }

    #[test]
    fn a_haswell_has_all_that_is_needed() {
        let controls = detect(haswell).unwrap();
        assert_eq!(controls.primary & Primary::CR3_LOAD_EXITING.bits(), 0);
        assert_eq!(controls.pin & PinBased::PREEMPTION_TIMER.bits(), 0);
        assert_eq!(controls.primary & Primary::RDPMC_EXITING.bits(), 0);
        assert_eq!(controls.primary_of_cells, Primary::RDPMC_EXITING.bits());
        assert_eq!(controls.cr0_fixed_ones, 0x20);
        assert!(!controls.ept_1g || haswell(msr::EPT_VPID) & (1 << 17) != 0);
    }

    #[test]
    fn counters_are_left_to_a_cell_where_their_reads_can_not_exit() {
        let controls = detect(|register| match register {
            msr::TRUE_PRIMARY => haswell(register) & !(1 << (32 + 11)),
            _ => haswell(register),
        });
        assert_eq!(controls.unwrap().primary_of_cells, 0);
    }

    #[test]
    fn each_missing_requirement_is_named() {
        for (register, bit) in [
            (msr::TRUE_PIN, 32 + 3),
            (msr::TRUE_PIN, 32 + 5),
            (msr::TRUE_PIN, 32 + 6),
            (msr::SECONDARY, 32 + 1),
            (msr::SECONDARY, 32 + 5),
            (msr::SECONDARY, 32 + 7),
            (msr::TRUE_PRIMARY, 32 + 28),
            (msr::TRUE_EXIT, 32 + 9),
            (msr::TRUE_ENTRY, 32 + 15),
            (msr::EPT_VPID, 20),
        ] {
            let failure = detect(|r| {
                if r == register {
                    haswell(r) & !(1 << bit)
                } else {
                    haswell(r)
                }
            })
            .unwrap_err();
            assert_eq!(failure.reason(), Reason::VmxCapability);
            assert_eq!(failure.detail() >> 32, u64::from(register));
        }
        // CR3 exits that can't be turned off.
        let failure = detect(|r| {
            if r == msr::TRUE_PRIMARY {
                haswell(r) | (1 << 15)
            } else {
                haswell(r)
            }
        });
        assert_eq!(
            failure.unwrap_err().detail(),
            (u64::from(msr::TRUE_PRIMARY) << 32) | (1 << 15)
        );
    }
}
