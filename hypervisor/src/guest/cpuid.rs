//! CPUID.
//!
//! The processor's own answer, but for: virtualization (nobody has it below Gaol), bits that mirror CR4 (the hypervisor's
//! would show), the hypervisor bit (cells see it, Linux does not), the leaves by which a cell finds out where it is, and, in
//! a cell, whatever its registers would refuse it.

use gaol_abi::hypercall::{CPUID_FEATURES_LEAF, CPUID_SIGNATURE, CPUID_SIGNATURE_LEAF};

use super::Verdict;
use crate::cpu::PerCpu;
use crate::processor::{self, cr4};
use crate::virt::contract::{GuestState, Trapped};
use crate::virt::entry::Frame;
use crate::virt::exit::{SLOW, done};

const FEATURES: u32 = 1;
const EXTENDED_FEATURES: u32 = 7;
/// Leaves below have a bit in [`PerCpu::moderated_leaves`].
const FEW: u32 = 32;

/// Leaves of which the root's answer is not the processor's: bit n for leaf n.
pub const ROOT_LEAVES: u32 = 1 << FEATURES | 1 << EXTENDED_FEATURES;
/// Leaves of which a cell's answer is not the processor's.
pub const CELL_LEAVES: u32 = ROOT_LEAVES
    | 1 << leaf::POWER
    | 1 << leaf::COUNTERS
    | 1 << leaf::EXTENDED_STATE
    | 1 << leaf::MONITORING
    | 1 << leaf::ALLOCATION
    | 1 << leaf::ENCLAVES
    | 1 << leaf::TRACE
    | 1 << leaf::KEY_LOCKER
    | 1 << leaf::MEMORY_KEYS
    | 1 << leaf::BRANCH_RECORDS;

/// Leaves that a cell sees in part or not at all.
mod leaf {
    /// Thermal and power management.
    pub const POWER: u32 = 6;
    /// Performance counters.
    pub const COUNTERS: u32 = 0xa;
    /// Extended state.
    pub const EXTENDED_STATE: u32 = 0xd;
    /// Monitoring of cache and bandwidth.
    pub const MONITORING: u32 = 0xf;
    /// Allocation of cache and bandwidth.
    pub const ALLOCATION: u32 = 0x10;
    /// SGX.
    pub const ENCLAVES: u32 = 0x12;
    /// Processor trace.
    pub const TRACE: u32 = 0x14;
    /// Key Locker.
    pub const KEY_LOCKER: u32 = 0x19;
    /// PCONFIG.
    pub const MEMORY_KEYS: u32 = 0x1b;
    /// Last branch records.
    pub const BRANCH_RECORDS: u32 = 0x1c;
    /// AMD: features.
    pub const AMD_FEATURES: u32 = 0x8000_0001;
    /// AMD: address sizes, and more features.
    pub const AMD_SIZES: u32 = 0x8000_0008;
    /// AMD: SVM.
    pub const SVM: u32 = 0x8000_000a;
    /// AMD: instruction-based sampling.
    pub const AMD_SAMPLING: u32 = 0x8000_001b;
    /// AMD: lightweight profiling.
    pub const AMD_PROFILING: u32 = 0x8000_001c;
    /// AMD: encrypted memory.
    pub const AMD_ENCRYPTION: u32 = 0x8000_001f;
    /// AMD: monitoring and allocation of cache and bandwidth.
    pub const AMD_ALLOCATION: u32 = 0x8000_0020;
    /// AMD: performance counters and branch records.
    pub const AMD_COUNTERS: u32 = 0x8000_0022;
    /// Behind the extended leaves that are looked at.
    pub const AMD_LAST: u32 = AMD_COUNTERS;
}

/// The bits of these numbers.
const fn bits(numbers: &[u32]) -> u32 {
    let mut all = 0;
    let mut rest = numbers;
    while let [first, others @ ..] = rest {
        all |= 1u32.wrapping_shl(*first);
        rest = others;
    }
    all
}

// Leaf 1, ECX and EDX.
const VMX: u32 = 1 << 5;
const SAFER_MODE: u32 = 1 << 6;
const X2APIC: u32 = 1 << 21;
const OSXSAVE: u32 = 1 << 27;
const HYPERVISOR: u32 = 1 << 31;
/// DTES64, DS-CPL, EIST, TM2, PDCM: debug store, frequency, thermal monitor and what describes counters.
const CELL_FEATURES_ECX: u32 = bits(&[2, 4, 7, 8, 15]);
/// DS, ACPI, TM: debug store, thermal interrupts, thermal monitor. (MCE and MCA stay: machine checks do reach a cell.)
const CELL_FEATURES_EDX: u32 = bits(&[21, 22, 29]);

// Leaf 0x8000_0001, ECX.
const SVM: u32 = 1 << 2;
const SKINIT: u32 = 1 << 12;
/// IBS, the watchdog, LWP, counters of cores, north bridge and cache, data breakpoints and time stamps of counters.
const CELL_AMD_FEATURES: u32 = bits(&[10, 13, 15, 23, 24, 26, 27, 28]);
/// Leaf 0x8000_0008, EBX: INVLPGB, which reaches other CPUs.
const CELL_AMD_SIZES: u32 = bits(&[3]);

// Leaf 7, subleaf 0.
const OSPKE: u32 = 1 << 4;
/// TSC_ADJUST, SGX, monitoring and allocation of the cache, processor trace.
const CELL_EXTENDED_EBX: u32 = bits(&[1, 2, 12, 15, 25]);
/// CET, TME, Key Locker, bus lock detection, ENQCMD, SGX launch configuration, PKS.
const CELL_EXTENDED_ECX: u32 = bits(&[7, 13, 23, 24, 29, 30, 31]);
/// User interrupts, PCONFIG, last branch records, CET, FLUSH_CMD, CORE_CAPABILITIES.
const CELL_EXTENDED_EDX: u32 = bits(&[5, 18, 19, 20, 28, 30]);
/// Subleaf 1, EAX: LASS, FRED, LKGS, HRESET, LAM: control bits and registers that are not to be had.
const CELL_MORE_EAX: u32 = bits(&[6, 17, 18, 22, 26]);

/// Leaf 6, EAX: the APIC timer runs in all power states.
const ALWAYS_RUNNING_TIMER: u32 = 1 << 2;
/// Leaf 0xd, ECX of a component: it is supervisor state.
const SUPERVISOR_STATE: u32 = 1;

/// Leaves that need nothing but the processor's answer.
#[inline(never)]
pub extern "sysv64" fn fast(cpu: &mut PerCpu, frame: &mut Frame) -> u32 {
    let leaf = frame.rax as u32;
    if leaf < FEW {
        if cpu.moderated_leaves.wrapping_shr(leaf) & 1 != 0 {
            return SLOW;
        }
    } else if leaf & 0xf000_0000 == CPUID_SIGNATURE_LEAF || is_moderated_extended(leaf) {
        return SLOW;
    }
    put(frame, processor::cpuid(leaf, frame.rcx as u32));
    done(cpu, Trapped::Cpuid)
}

#[inline(always)]
fn put(frame: &mut Frame, [eax, ebx, ecx, edx]: [u32; 4]) {
    frame.rax = u64::from(eax);
    frame.rbx = u64::from(ebx);
    frame.rcx = u64::from(ecx);
    frame.rdx = u64::from(edx);
}

/// Extended leaves of which a guest's answer is not the processor's.
#[inline(always)]
const fn is_moderated_extended(leaf: u32) -> bool {
    leaf >= leaf::AMD_FEATURES && leaf <= leaf::AMD_LAST
}

const fn set(value: u32, bit: u32, on: bool) -> u32 {
    if on { value | bit } else { value & !bit }
}

/// The other leaves.
pub fn slow(cpu: &PerCpu, frame: &mut Frame) -> Verdict {
    let (leaf, subleaf) = (frame.rax as u32, frame.rcx as u32);
    let answer = processor::cpuid(leaf, subleaf);
    let answer = moderated(leaf, subleaf, answer, cpu.guest.cr4(), cpu.is_root);
    put(frame, answer);
    Verdict::Advance
}

/// What a guest is told where the processor says `answer`.
fn moderated(leaf: u32, subleaf: u32, answer: [u32; 4], guest_cr4: u64, is_root: bool) -> [u32; 4] {
    let answer = match leaf {
        CPUID_SIGNATURE_LEAF => return signature(),
        CPUID_FEATURES_LEAF => return [0; 4],
        FEATURES => {
            let [eax, ebx, ecx, edx] = answer;
            let ecx = set(
                ecx & !(VMX | SAFER_MODE),
                OSXSAVE,
                guest_cr4 & cr4::OSXSAVE != 0,
            );
            [eax, ebx, set(ecx, HYPERVISOR, !is_root), edx]
        }
        leaf::AMD_FEATURES => {
            let [eax, ebx, ecx, edx] = answer;
            [eax, ebx, ecx & !(SVM | SKINIT), edx]
        }
        leaf::SVM => return [0; 4],
        EXTENDED_FEATURES if subleaf == 0 => {
            let [eax, ebx, ecx, edx] = answer;
            [eax, ebx, set(ecx, OSPKE, guest_cr4 & cr4::PKE != 0), edx]
        }
        _ => answer,
    };
    if is_root {
        answer
    } else {
        of_a_cell(leaf, subleaf, answer)
    }
}

fn signature() -> [u32; 4] {
    let word = |n: usize| {
        CPUID_SIGNATURE
            .get(n..)
            .and_then(|rest| rest.first_chunk())
            .map_or(0, |bytes| u32::from_le_bytes(*bytes))
    };
    [CPUID_FEATURES_LEAF, word(0), word(4), word(8)]
}

/// Without what a cell has no registers for, and what belongs to more than its own CPUs.
const fn of_a_cell(leaf: u32, subleaf: u32, answer: [u32; 4]) -> [u32; 4] {
    let [eax, ebx, ecx, edx] = answer;
    match (leaf, subleaf) {
        (FEATURES, _) => [
            eax,
            ebx,
            (ecx & !CELL_FEATURES_ECX) | X2APIC,
            edx & !CELL_FEATURES_EDX,
        ],
        (EXTENDED_FEATURES, 0) => [
            eax,
            ebx & !CELL_EXTENDED_EBX,
            ecx & !CELL_EXTENDED_ECX,
            edx & !CELL_EXTENDED_EDX,
        ],
        (EXTENDED_FEATURES, 1) => [eax & !CELL_MORE_EAX, ebx, ecx, edx],
        (leaf::AMD_FEATURES, _) => [eax, ebx, ecx & !CELL_AMD_FEATURES, edx],
        (leaf::AMD_SIZES, _) => [eax, ebx & !CELL_AMD_SIZES, ecx, edx],
        (leaf::POWER, _) => [eax & ALWAYS_RUNNING_TIMER, 0, 0, 0],
        // Subleaf 1, ECX and EDX: supervisor state that XSAVES saves.
        (leaf::EXTENDED_STATE, 1) => [eax, ebx, 0, 0],
        (leaf::EXTENDED_STATE, 2..) if ecx & SUPERVISOR_STATE != 0 => [0; 4],
        (
            leaf::COUNTERS
            | leaf::MONITORING
            | leaf::ALLOCATION
            | leaf::ENCLAVES
            | leaf::TRACE
            | leaf::KEY_LOCKER
            | leaf::MEMORY_KEYS
            | leaf::BRANCH_RECORDS
            | leaf::AMD_SAMPLING
            | leaf::AMD_PROFILING
            | leaf::AMD_ENCRYPTION
            | leaf::AMD_ALLOCATION
            | leaf::AMD_COUNTERS,
            _,
        ) => [0; 4],
        _ => answer,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::virt;
    use crate::virt::contract::Virtualization;

    /// Every bit that a cell is not shown, by the name that the manual has for it: leaf, subleaf, register, bit.
    const HIDDEN: [(&str, u32, u32, usize, u32); 31] = [
        ("DTES64", 1, 0, 2, 2),
        ("DS-CPL", 1, 0, 2, 4),
        ("VMX", 1, 0, 2, 5),
        ("SMX", 1, 0, 2, 6),
        ("EIST", 1, 0, 2, 7),
        ("TM2", 1, 0, 2, 8),
        ("PDCM", 1, 0, 2, 15),
        ("DS", 1, 0, 3, 21),
        ("ACPI", 1, 0, 3, 22),
        ("TM", 1, 0, 3, 29),
        ("IA32_TSC_ADJUST", 7, 0, 1, 1),
        ("SGX", 7, 0, 1, 2),
        ("RDT-M", 7, 0, 1, 12),
        ("RDT-A", 7, 0, 1, 15),
        ("Intel Processor Trace", 7, 0, 1, 25),
        ("CET_SS", 7, 0, 2, 7),
        ("TME_EN", 7, 0, 2, 13),
        ("KL", 7, 0, 2, 23),
        ("BUS_LOCK_DETECT", 7, 0, 2, 24),
        ("ENQCMD", 7, 0, 2, 29),
        ("SGX_LC", 7, 0, 2, 30),
        ("PKS", 7, 0, 2, 31),
        ("UINTR", 7, 0, 3, 5),
        ("PCONFIG", 7, 0, 3, 18),
        ("Architectural LBRs", 7, 0, 3, 19),
        ("CET_IBT", 7, 0, 3, 20),
        ("L1D_FLUSH", 7, 0, 3, 28),
        ("IA32_CORE_CAPABILITIES", 7, 0, 3, 30),
        ("LASS", 7, 1, 0, 6),
        ("FRED", 7, 1, 0, 17),
        ("LAM", 7, 1, 0, 26),
    ];

    const ONES: [u32; 4] = [u32::MAX; 4];

    #[test]
    fn a_cell_is_not_shown_what_it_can_not_use() {
        let mut seen = std::collections::BTreeMap::new();
        for (name, leaf, subleaf, register, bit) in HIDDEN {
            let answer = moderated(leaf, subleaf, ONES, u64::MAX, false);
            assert_eq!(answer[register] >> bit & 1, 0, "{name}");
            *seen.entry((leaf, subleaf, register)).or_insert(0u32) |= 1 << bit;
        }
        // And no other bit is missing: LKGS goes with FRED, HRESET needs a register.
        *seen.get_mut(&(7, 1, 0)).unwrap() |= 1 << 18 | 1 << 22;
        for ((leaf, subleaf, register), hidden) in seen {
            let answer = moderated(leaf, subleaf, ONES, u64::MAX, false);
            assert_eq!(
                answer[register], !hidden,
                "leaf {leaf:#x}.{subleaf}, register {register}"
            );
        }
        for leaf in [0xa, 0xf, 0x10, 0x12, 0x14, 0x19, 0x1b, 0x1c] {
            assert_eq!(moderated(leaf, 0, ONES, 0, false), [0; 4], "leaf {leaf:#x}");
        }
        assert_eq!(moderated(6, 0, ONES, 0, false), [4, 0, 0, 0]);
        assert_eq!(
            moderated(0xd, 1, ONES, 0, false),
            [u32::MAX, u32::MAX, 0, 0]
        );
        // A component of supervisor state, and one that is not.
        assert_eq!(moderated(0xd, 8, [128, 0, 1, 0], 0, false), [0; 4]);
        assert_eq!(
            moderated(0xd, 2, [256, 576, 0, 0], 0, false),
            [256, 576, 0, 0]
        );
    }

    #[test]
    fn what_a_cell_needs_stays() {
        let [_, _, ecx, edx] = moderated(1, 0, ONES, u64::MAX, false);
        // MONITOR, PCID, x2APIC, TSC deadline, XSAVE, OSXSAVE, hypervisor.
        for bit in [3, 17, 21, 24, 26, 27, 31] {
            assert_ne!(ecx >> bit & 1, 0, "bit {bit}");
        }
        // TSC, MSRs, machine checks, APIC, MTRRs, PAT.
        for bit in [4, 5, 7, 9, 12, 14, 16] {
            assert_ne!(edx >> bit & 1, 0, "bit {bit}");
        }
        // x2APIC is there whatever the processor model says: a cell's CPU is in that mode.
        assert_ne!(moderated(1, 0, [0; 4], 0, false)[2] & X2APIC, 0);
        for leaf in [0, 2, 3, 4, 5, 8, 9, 0xb, 0x15, 0x16, 0x1f, 0x8000_0007] {
            assert_eq!(moderated(leaf, 0, ONES, 0, false), ONES, "leaf {leaf:#x}");
        }
    }

    /// AMD64 Architecture Programmer's Manual, volume 3, "Obtaining Processor Information Via the CPUID Instruction".
    #[test]
    fn nobody_is_shown_svm_and_a_cell_no_counters_of_amds() {
        let (svm, skinit) = (1 << 2, 1 << 12);
        for is_root in [true, false] {
            let [eax, ebx, ecx, edx] = moderated(0x8000_0001, 0, ONES, 0, is_root);
            assert_eq!([eax, ebx, edx], [u32::MAX; 3]);
            assert_eq!(ecx & (svm | skinit), 0);
            assert_eq!(moderated(0x8000_000a, 0, ONES, 0, is_root), [0; 4]);
            assert_eq!(is_root, ecx == !(svm | skinit));
        }
        let [_, _, ecx, _] = moderated(0x8000_0001, 0, ONES, 0, false);
        // IBS, LWP, counters of core, north bridge and cache.
        for bit in [10, 15, 23, 24, 28] {
            assert_eq!(ecx >> bit & 1, 0, "bit {bit}");
        }
        // LAHF, MONITORX, topology.
        for bit in [0, 22, 29] {
            assert_ne!(ecx >> bit & 1, 0, "bit {bit}");
        }
        let [_, ebx, _, _] = moderated(0x8000_0008, 0, ONES, 0, false);
        assert_eq!(ebx, !(1 << 3));
        for leaf in [
            0x8000_001b,
            0x8000_001c,
            0x8000_001f,
            0x8000_0020,
            0x8000_0022,
        ] {
            assert_eq!(moderated(leaf, 0, ONES, 0, false), [0; 4], "{leaf:#x}");
            assert_eq!(moderated(leaf, 0, ONES, 0, true), ONES, "{leaf:#x}");
        }
        // Each of these is looked at.
        let looked_at = (0x8000_0000..0x8000_0100).filter(|leaf| is_moderated_extended(*leaf));
        assert_eq!(
            looked_at.collect::<Vec<_>>(),
            (0x8000_0001..=0x8000_0022).collect::<Vec<_>>()
        );
    }

    proptest! {
        #[test]
        fn the_root_is_told_what_the_processor_says(
            leaf in prop_oneof![0u32..0x30, any::<u32>()], subleaf in 0u32..4, answer: [u32; 4], guest_cr4: u64,
        ) {
            prop_assume!(leaf != CPUID_SIGNATURE_LEAF && leaf != CPUID_FEATURES_LEAF);
            prop_assume!(!is_moderated_extended(leaf));
            let told = moderated(leaf, subleaf, answer, guest_cr4, true);
            let mut expected = answer;
            if leaf == 1 {
                expected[2] &= !(1 << 5 | 1 << 6 | 1 << 27 | 1 << 31);
                expected[2] |= u32::from(guest_cr4 >> 18 & 1 != 0) << 27;
            }
            if leaf == 7 && subleaf == 0 {
                expected[2] &= !(1 << 4);
                expected[2] |= u32::from(guest_cr4 >> 22 & 1 != 0) << 4;
            }
            prop_assert_eq!(told, expected);
            // Leaves that are not marked are answered without a look.
            if leaf < FEW && ROOT_LEAVES >> leaf & 1 == 0 {
                prop_assert_eq!(told, answer);
            }
            if leaf < FEW && CELL_LEAVES >> leaf & 1 == 0 {
                prop_assert_eq!(moderated(leaf, subleaf, answer, guest_cr4, false), answer);
            }
        }

        #[test]
        fn one_bit_is_set_and_the_others_stay(value: u32, number in 0u32..32, on: bool) {
            let bit = 1 << number;
            let result = set(value, bit, on);
            prop_assert_eq!(result & bit != 0, on);
            prop_assert_eq!(result & !bit, value & !bit);
        }

        #[test]
        fn the_answer_replaces_whole_registers(registers: [u64; 15], answer: [u32; 4]) {
            // RSP, the only register that it is asked for, is not touched.
            let guest = virt::Current::guest();
            let mut frame = Frame::default();
            let numbers = (0u8..16).filter(|number| *number != 4);
            for (number, value) in numbers.clone().zip(registers) {
                frame.set_register(guest, number, value);
            }
            put(&mut frame, answer);
            for (number, value) in numbers.zip(registers) {
                // EAX, EBX, ECX and EDX are registers 0, 3, 1 and 2.
                let expected = match number {
                    0 => u64::from(answer[0]),
                    3 => u64::from(answer[1]),
                    1 => u64::from(answer[2]),
                    2 => u64::from(answer[3]),
                    _ => value,
                };
                prop_assert_eq!(frame.register(guest, number), expected, "register {}", number);
            }
        }
    }
}
