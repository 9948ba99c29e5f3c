//! Clearing what VM entries and exits leave alone, so that no owner of a CPU sees another's.
//!
//! Done when a CPU changes hands, in either direction, and whenever a cell is started. Linux sets all of it anew when a CPU
//! comes up. Invariant: whatever a guest can write without its being switched with the control block is cleared here or by
//! the reset of the APIC, or given back as it was ([`super::events`]).

use gaol_config::msr_policy;

use crate::processor::{self, cpuid, fixup, fpu};

/// CPUID leaf 1, EDX: a debug store.
pub const DEBUG_STORE: u32 = 1 << 21;
/// IA32_PMC0, IA32_PERFEVTSEL0, IA32_FIXED_CTR0.
const COUNTERS: u32 = 0xc1;
const COUNTER_EVENTS: u32 = 0x186;
const FIXED_COUNTERS: u32 = 0x309;
const FIXED_COUNTER_CONTROL: u32 = 0x38d;
const GLOBAL_CONTROL: u32 = 0x38f;
/// IA32_PEBS_ENABLE.
pub const PEBS_ENABLE: u32 = 0x3f1;
const DS_AREA: u32 = 0x600;

/// DR6 as a reset leaves it.
const DR6_RESET: u64 = 0xffff_0ff0;

/// Clears the processor's registers.
pub fn registers() {
    msr_policy::own_registers().for_each(zero);
    counters(zero);
    // Behind the registers: what XFD disables can't be cleared.
    fpu::clear();
    // SAFETY: the hypervisor uses neither breakpoints nor page faults.
    unsafe {
        processor::write_cr2(0);
        processor::write_dr0(0);
        processor::write_dr1(0);
        processor::write_dr2(0);
        processor::write_dr3(0);
        processor::write_dr6(DR6_RESET);
    }
}

fn zero(register: u32) {
    // SAFETY: none of these registers has a meaning for the hypervisor, which uses neither SYSCALL, SWAPGS, deadlines of the
    // timer nor counters; one that is absent is fixed up.
    let _ = unsafe { fixup::write_msr(register, 0) };
}

/// Stops the counters and sets them to 0, as many as there are: RDPMC reads them in any guest.
fn counters(zero: impl FnMut(u32)) {
    let [highest, ..] = cpuid(0, 0);
    let [_, _, _, features] = cpuid(1, 0);
    let counters = if highest >= 0xa {
        cpuid(0xa, 0)
    } else {
        [0; 4]
    };
    counter_registers(features & DEBUG_STORE != 0, counters).for_each(zero);
}

/// The registers of the counters that CPUID leaf 0xa tells of, those that switch them off first (SDM, "Architectural
/// Performance Monitoring").
fn counter_registers(
    has_debug_store: bool,
    [eax, _, _, edx]: [u32; 4],
) -> impl Iterator<Item = u32> {
    let version = eax & 0xff;
    let general = if version == 0 {
        0
    } else {
        (eax >> 8 & 0xff).min(8)
    };
    let fixed = if version < 2 { 0 } else { (edx & 0x1f).min(4) };
    let global = [GLOBAL_CONTROL, FIXED_COUNTER_CONTROL]
        .into_iter()
        .filter(move |_| version >= 2);
    let store = [PEBS_ENABLE, DS_AREA]
        .into_iter()
        .filter(move |_| has_debug_store);
    let first = |start: u32, count: u32| (start..).take(count as usize);
    global
        .chain(store)
        .chain(first(COUNTER_EVENTS, general))
        .chain(first(COUNTERS, general))
        .chain(first(FIXED_COUNTERS, fixed))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use gaol_config::msr_policy::{ROWS, Write, policy};

    use super::*;
    use crate::processor::msr;

    #[test]
    fn counters_are_switched_off_before_they_are_cleared() {
        // Version 4, 8 general and 3 fixed counters.
        let all: Vec<u32> = counter_registers(true, [0x0730_0804, 0, 0, 0x603]).collect();
        assert_eq!(all[..4], [0x38f, 0x38d, 0x3f1, 0x600]);
        let rest: BTreeSet<u32> = all[4..].iter().copied().collect();
        let expected = (0x186..0x18e).chain(0xc1..0xc9).chain(0x309..0x30c);
        assert_eq!(rest, expected.collect());
        assert_eq!(counter_registers(false, [0; 4]).count(), 0);
        // Version 1 has general counters only.
        assert_eq!(counter_registers(false, [0x201, 0, 0, 3]).count(), 4);
        // No answer leads beyond the registers that there are.
        for register in counter_registers(true, [u32::MAX; 4]) {
            let row = policy(register);
            assert!(row.first != 0, "{register:#x} is in no row");
        }
    }

    /// What a cell writes without an exit is cleared here, switched with the control block, reset with the APIC, or no state.
    #[test]
    fn everything_that_a_cell_writes_is_put_back() {
        let cleared: BTreeSet<u32> = msr_policy::own_registers().collect();
        for row in &ROWS {
            for register in row.first..=row.last {
                match row.cell.write {
                    Write::Own => assert!(cleared.contains(&register)),
                    // IA32_SYSENTER_*, PAT, EFER and segment bases; TPR, timer.
                    Write::Switched => assert!(matches!(
                        register,
                        0x174
                            ..=0x176
                                | 0x277
                                | 0xc000_0080
                                | 0xc000_0100
                                | 0xc000_0101
                                | 0x808
                                | 0x832
                                | 0x838
                                | 0x83e
                    )),
                    // Commands: IA32_PRED_CMD, EOI, self IPI.
                    Write::Pass => assert!(matches!(register, 0x49 | 0x80b | 0x83f)),
                    _ => {}
                }
            }
        }
        for register in [
            msr::STAR,
            msr::LSTAR,
            msr::CSTAR,
            msr::FMASK,
            msr::KERNEL_GS_BASE,
            msr::TSC_AUX,
            msr::TSC_DEADLINE,
            0x48,
            0x1c4,
        ] {
            assert!(cleared.contains(&register), "{register:#x}");
        }
    }
}
