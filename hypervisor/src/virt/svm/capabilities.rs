//! What the processor's SVM offers, and what follows for the control block: logic over readers of CPUID and MSRs.
//!
//! Invariant: [`Features`] only says that something is there when the processor says so; what is needed and missing is an
//! error that names the leaf or the MSR, and the bits.
#![forbid(unsafe_code)]

use bitflags::bitflags;
use gaol_abi::outcome::Reason;

use super::control_block::{FLUSH_ALL, FLUSH_GUEST, VM_CR_DISABLED, msr};
use crate::error::Failure;
use crate::processor::cr4;
use crate::virt::contract::Capabilities;

/// Leaf of CPUID: processor features of AMD.
const EXTENDED_FEATURES: u32 = 0x8000_0001;
/// Leaf of CPUID: more features.
const NEWER_FEATURES: u32 = 0x8000_0021;
/// Leaf of CPUID: address sizes, and INVLPGB.
const ADDRESS_SIZES: u32 = 0x8000_0008;
/// Leaf of CPUID: SVM.
const SVM_LEAF: u32 = 0x8000_000a;

const SVM: u32 = 1 << 2;
const PAGE_1G: u32 = 1 << 26;
const INVLPGB: u32 = 1 << 3;

bitflags! {
    /// SVM features, EDX of their leaf ("Function 8000_000Ah").
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct SvmFeatures: u32 {
        /// Nested paging.
        const NESTED_PAGING = 1;
        /// The processor tells where the next instruction is.
        const NEXT_RIP = 1 << 3;
        /// Clean bits.
        const CLEAN_BITS = 1 << 5;
        /// One address space can be flushed.
        const FLUSH_BY_ASID = 1 << 6;
        /// Accesses to control registers are decoded.
        const DECODE_ASSISTS = 1 << 7;
    }
}

/// Numbers of address spaces that are used: 0 is the host, 1 the root's, 2 a cell's.
const ADDRESS_SPACES: u32 = 3;

/// What a processor offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// Of SVM.
    pub svm: SvmFeatures,
    /// TLB_CONTROL that drops a guest's translations.
    pub flush: u32,
    /// Nested page tables can map 1 GiB pages.
    pub pages_1g: bool,
    /// The processor broadcasts invalidations (INVLPGB): Linux may be using it.
    pub broadcasts: bool,
    /// Bits of CR4 that the processor has and that can be carried.
    pub allowed_cr4: u64,
    /// Bits of EFER that the processor has, but for SVME.
    pub allowed_efer: u64,
    /// The processor has bits of CR4 that can't: writes exit.
    pub watches_cr4: bool,
}

fn missing(place: u32, bits: u32) -> Failure {
    Failure::hardware(
        Reason::VmxCapability,
        u64::from(place) << 32 | u64::from(bits),
    )
}

/// Register of a feature's bit in CPUID.
#[derive(Clone, Copy)]
enum Leaf {
    OneC,
    OneD,
    SevenB,
    SevenC,
}

/// Bits of CR4 and where CPUID tells of them ("CR4 Register"); PCE is always there.
const CR4_FEATURES: [(u64, Leaf, u32); 18] = [
    // VME and PVI.
    (0b11, Leaf::OneD, 1),
    // TSD.
    (1 << 2, Leaf::OneD, 4),
    // DE.
    (1 << 3, Leaf::OneD, 2),
    (cr4::PSE, Leaf::OneD, 3),
    (cr4::PAE, Leaf::OneD, 6),
    (cr4::MCE, Leaf::OneD, 7),
    (cr4::PGE, Leaf::OneD, 13),
    (cr4::OSFXSR, Leaf::OneD, 24),
    // OSXMMEXCPT.
    (1 << 10, Leaf::OneD, 25),
    (cr4::UMIP, Leaf::SevenC, 2),
    (cr4::LA57, Leaf::SevenC, 16),
    // FSGSBASE.
    (1 << 16, Leaf::SevenB, 0),
    (cr4::PCIDE, Leaf::OneC, 17),
    (cr4::OSXSAVE, Leaf::OneC, 26),
    (cr4::SMEP, Leaf::SevenB, 7),
    (cr4::SMAP, Leaf::SevenB, 20),
    (cr4::PKE, Leaf::SevenC, 3),
    // PCE.
    (1 << 8, Leaf::OneD, 4),
];

/// Bits of EFER ("Extended Feature Enable Register") by what CPUID tells of them: SCE, LME, NXE, FFXSR, TCE, UAIE, AIBRSE.
fn allowed_efer(extended_c: u32, extended_d: u32, newer: u32) -> u64 {
    [
        (0, extended_d, 11),
        (8, extended_d, 29),
        (11, extended_d, 20),
        (14, extended_d, 25),
        (15, extended_c, 17),
        (20, newer, 7),
        (21, newer, 8),
    ]
    .into_iter()
    .filter(|(_, register, bit)| register.wrapping_shr(*bit) & 1 != 0)
    .fold(0, |all, (bit, ..)| all | 1u64.wrapping_shl(bit))
}

/// Leaf 7: features with bits of CR4 that the hypervisor does not carry. Shadow stacks and supervisor keys in ECX, user
/// interrupts and branch tracking in EDX; of subleaf 1 LASS, FRED and LAM in EAX.
const FOREIGN_SEVEN_C: u32 = 1 << 7 | 1 << 31;
const FOREIGN_SEVEN_D: u32 = 1 << 5 | 1 << 20;
const FOREIGN_SEVEN_ONE_A: u32 = 1 << 6 | 1 << 17 | 1 << 26;

impl Capabilities for Features {
    fn detect(
        mut cpuid: impl FnMut(u32, u32) -> [u32; 4],
        mut msr: impl FnMut(u32) -> u64,
    ) -> Result<Self, Failure> {
        let [highest, ..] = cpuid(0x8000_0000, 0);
        let [_, _, features, more] = cpuid(EXTENDED_FEATURES, 0);
        if highest < SVM_LEAF || features & SVM == 0 {
            return Err(missing(EXTENDED_FEATURES, SVM));
        }
        if msr(msr::VM_CR) & VM_CR_DISABLED != 0 {
            return Err(missing(msr::VM_CR, VM_CR_DISABLED as u32));
        }
        let [_, spaces, _, svm] = cpuid(SVM_LEAF, 0);
        let svm = SvmFeatures::from_bits_truncate(svm);
        if !svm.contains(SvmFeatures::NESTED_PAGING) {
            return Err(missing(SVM_LEAF, SvmFeatures::NESTED_PAGING.bits()));
        }
        if spaces < ADDRESS_SPACES {
            return Err(missing(SVM_LEAF, 0));
        }
        let [_, _, one_c, one_d] = cpuid(1, 0);
        let (seven, seven_one) = match cpuid(0, 0) {
            [highest, ..] if highest >= 7 => (cpuid(7, 0), cpuid(7, 1)),
            _ => ([0; 4], [0; 4]),
        };
        let [subleaves, seven_b, seven_c, seven_d] = seven;
        let seven_one_a = if subleaves == 0 { 0 } else { seven_one[0] };
        let allowed_cr4 = CR4_FEATURES.into_iter().fold(0, |all, (bits, leaf, bit)| {
            let register = match leaf {
                Leaf::OneC => one_c,
                Leaf::OneD => one_d,
                Leaf::SevenB => seven_b,
                Leaf::SevenC => seven_c,
            };
            if register.wrapping_shr(bit) & 1 == 0 {
                all
            } else {
                all | bits
            }
        });
        let [_, addresses, ..] = cpuid(ADDRESS_SIZES, 0);
        let newer = if highest >= NEWER_FEATURES {
            cpuid(NEWER_FEATURES, 0)[0]
        } else {
            0
        };
        Ok(Self {
            svm,
            flush: if svm.contains(SvmFeatures::FLUSH_BY_ASID) {
                FLUSH_GUEST
            } else {
                FLUSH_ALL
            },
            pages_1g: more & PAGE_1G != 0,
            broadcasts: addresses & INVLPGB != 0,
            allowed_cr4,
            allowed_efer: allowed_efer(features, more, newer),
            watches_cr4: seven_c & FOREIGN_SEVEN_C != 0
                || seven_d & FOREIGN_SEVEN_D != 0
                || seven_one_a & FOREIGN_SEVEN_ONE_A != 0,
        })
    }

    fn maps_1g(&self) -> bool {
        self.pages_1g
    }

    fn allowed_cr4(&self) -> u64 {
        self.allowed_cr4
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A processor as QEMU has it, or with more.
    #[derive(Clone, Copy)]
    struct Model {
        svm: u32,
        spaces: u32,
        features: u32,
        vm_cr: u64,
        one: [u32; 2],
        seven: [u32; 4],
        seven_one: u32,
        addresses: u32,
    }

    const QEMU: Model = Model {
        svm: 1,
        spaces: 16,
        features: 1 << 2,
        vm_cr: 0,
        one: [1 << 26, 0x178b_fbff],
        seven: [0, 1 | 1 << 7 | 1 << 20, 0, 0],
        seven_one: 0,
        addresses: 0,
    };

    fn detect(model: Model) -> Result<Features, Failure> {
        let cpuid = |leaf, subleaf| match (leaf, subleaf) {
            (0, _) => [0xd, 0, 0, 0],
            (1, _) => [0, 0, model.one[0], model.one[1]],
            (7, 0) => model.seven,
            (7, 1) => [model.seven_one, 0, 0, 0],
            (0x8000_0000, _) => [0x8000_001e, 0, 0, 0],
            (0x8000_0001, _) => [0, 0, model.features, 1 << 26],
            (0x8000_0008, _) => [0, model.addresses, 0, 0],
            (0x8000_000a, _) => [1, model.spaces, 0, model.svm],
            _ => [0; 4],
        };
        Features::detect(cpuid, |register| match register {
            0xc001_0114 => model.vm_cr,
            _ => 0,
        })
    }

    #[test]
    fn nested_paging_is_enough() {
        let found = detect(QEMU).unwrap();
        assert_eq!(found.svm, SvmFeatures::NESTED_PAGING);
        assert_eq!(found.flush, 1);
        assert!(found.maps_1g() && !found.broadcasts && !found.watches_cr4);
        // VME to PGE, PCE, SSE, FSGSBASE, XSAVE, SMEP, SMAP.
        assert_eq!(found.allowed_cr4(), 0x35_07ff);
    }

    #[test]
    fn what_the_processor_has_is_used() {
        let found = detect(Model {
            svm: 0xe9,
            addresses: 1 << 3,
            ..QEMU
        });
        let found = found.unwrap();
        assert_eq!(found.svm, SvmFeatures::all());
        assert_eq!(found.flush, 3);
        assert!(found.broadcasts);
    }

    #[test]
    fn each_missing_requirement_is_named() {
        for (model, place, bits) in [
            (
                Model {
                    features: !4,
                    ..QEMU
                },
                0x8000_0001u64,
                4,
            ),
            (
                Model {
                    vm_cr: 1 << 4,
                    ..QEMU
                },
                0xc001_0114,
                1 << 4,
            ),
            (Model { svm: !1, ..QEMU }, 0x8000_000a, 1),
            (Model { spaces: 2, ..QEMU }, 0x8000_000a, 0),
        ] {
            let failure = detect(model).unwrap_err();
            assert_eq!(failure.reason(), Reason::VmxCapability);
            assert_eq!(failure.detail(), place << 32 | bits);
        }
        // Locked, but on.
        assert!(
            detect(Model {
                vm_cr: 1 << 3,
                ..QEMU
            })
            .is_ok()
        );
    }

    /// No bit of CR4 that the processor lacks or that can't be carried is allowed, and writes are looked at where it has one of
    /// these.
    #[test]
    fn foreign_bits_of_cr4_are_watched() {
        let everything = Model {
            one: [u32::MAX; 2],
            seven: [1, u32::MAX, !(1 << 7 | 1 << 31), !(1 << 5 | 1 << 20)],
            seven_one: !(1 << 6 | 1 << 17 | 1 << 26),
            ..QEMU
        };
        let found = detect(everything).unwrap();
        // VMXE and SMXE are no bits of AMD's.
        let intels = cr4::VMXE | 1 << 14;
        assert_eq!(found.allowed_cr4(), cr4::KNOWN & !intels);
        assert!(!found.watches_cr4);
        let with = |register: usize, bit: u32| {
            let mut model = everything;
            match register {
                4 => model.seven_one |= 1 << bit,
                _ => model.seven[register] |= 1 << bit,
            }
            detect(model).unwrap().watches_cr4
        };
        for (register, bit) in [(2, 7), (2, 31), (3, 5), (3, 20), (4, 6), (4, 17), (4, 26)] {
            assert!(with(register, bit), "{register}.{bit}");
        }
        // Subleaf 1 means nothing where there is none.
        let mut model = everything;
        (model.seven[0], model.seven_one) = (0, u32::MAX);
        assert!(!detect(model).unwrap().watches_cr4);
        let nothing = detect(Model {
            one: [0; 2],
            seven: [0; 4],
            ..QEMU
        })
        .unwrap();
        assert_eq!(nothing.allowed_cr4(), 0);
    }
}
