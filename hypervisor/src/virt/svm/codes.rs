//! Exit codes and what belongs to them, in the words and numbers that both vendors share.
//!
//! AMD64 Architecture Programmer's Manual, volume 2, "SVM Intercept Exit Codes". Counters of exits have the numbers of
//! [`gaol_abi::exit`]; each code has one, also those that the manual does not know.
#![forbid(unsafe_code)]

use gaol_abi::exit;
use open_enum::open_enum;

use super::control_block::event;
use crate::guest::vectoring::{Event, Kind};
use crate::virt::contract::{ControlAccess, NestedAccess, NestedFault, PortAccess};

/// Exit code. Only the low half counts: an invalid block reads as -1 in 32 or 64 bits.
#[open_enum]
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the manual's")]
pub enum ExitCode {
    ReadCr0 = 0x00,
    WriteCr0 = 0x10,
    WriteCr4 = 0x14,
    WriteCr8 = 0x18,
    ExceptionDebug = 0x41,
    ExceptionAlignment = 0x51,
    Nmi = 0x61,
    Init = 0x63,
    Cr0SelectiveWrite = 0x65,
    Rdpmc = 0x6f,
    Cpuid = 0x72,
    Iret = 0x74,
    Invd = 0x76,
    Invlpga = 0x7a,
    Port = 0x7b,
    Msr = 0x7c,
    TaskSwitch = 0x7d,
    Shutdown = 0x7f,
    Vmrun = 0x80,
    Vmmcall = 0x81,
    Vmload = 0x82,
    Vmsave = 0x83,
    Stgi = 0x84,
    Clgi = 0x85,
    Skinit = 0x86,
    Wbinvd = 0x89,
    Xsetbv = 0x8d,
    NestedPageFault = 0x400,
    Invalid = 0xffff_ffff,
}

/// Codes below have a place in the table of counters.
const SMALL_CODES: usize = 0x90;

/// Counter of each small code, but for RDMSR and WRMSR, which share one.
static COUNTERS: [u8; SMALL_CODES] = {
    let mut table = [exit::COUNTER_OTHER as u8; SMALL_CODES];
    let mut rest: &[(usize, usize, u8)] = &[
        (0x00, 0x1f, 28),
        (0x20, 0x3f, 29),
        (0x40, 0x5f, 0),
        (0x60, 0x60, 1),
        (0x61, 0x61, 0),
        (0x63, 0x63, 3),
        (0x64, 0x64, 7),
        (0x65, 0x65, 28),
        (0x66, 0x67, 46),
        (0x68, 0x69, 47),
        (0x6a, 0x6b, 46),
        (0x6c, 0x6d, 47),
        (0x6e, 0x6e, 16),
        (0x6f, 0x6f, 15),
        (0x72, 0x72, 10),
        (0x73, 0x73, 17),
        (0x74, 0x74, 8),
        (0x76, 0x76, 13),
        (0x77, 0x77, 40),
        (0x78, 0x78, 12),
        (0x79, 0x79, 14),
        (0x7a, 0x7a, 53),
        (0x7b, 0x7b, 30),
        (0x7c, 0x7c, 31),
        (0x7d, 0x7d, 9),
        (0x7f, 0x7f, 2),
        (0x80, 0x80, 20),
        (0x81, 0x81, 18),
        (0x82, 0x82, 21),
        (0x83, 0x83, 22),
        (0x84, 0x84, 19),
        (0x85, 0x85, 26),
        (0x86, 0x86, 11),
        (0x87, 0x87, 51),
        (0x89, 0x89, 54),
        (0x8a, 0x8a, 39),
        (0x8b, 0x8c, 36),
        (0x8d, 0x8d, 55),
    ];
    while let [(first, last, counter), others @ ..] = rest {
        let mut code = *first;
        while code <= *last {
            // Evaluated by the compiler, which would refuse an index beyond the array.
            #[allow(
                clippy::indexing_slicing,
                clippy::arithmetic_side_effects,
                reason = "const: checked at compile time"
            )]
            {
                table[code] = *counter;
                code += 1;
            }
        }
        rest = others;
    }
    table
};

/// The counter of exits with this code.
#[inline(always)]
#[must_use]
pub fn counter(code: u32, info1: u64) -> usize {
    match ExitCode(code) {
        ExitCode::NestedPageFault => exit::COUNTER_NESTED_FAULT,
        ExitCode::Msr => 31usize.wrapping_add((info1 & 1) as usize),
        ExitCode::Invalid => 33,
        _ => COUNTERS
            .get(code as usize)
            .copied()
            .map_or(exit::COUNTER_OTHER, usize::from),
    }
}

/// EXITINFO1 of an I/O instruction ("IN and OUT instructions").
#[derive(Clone, Copy, Debug)]
pub struct Port(pub u64);

impl PortAccess for Port {
    #[inline(always)]
    fn port(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// Bits 4, 5 and 6 stand for 1, 2 and 4 bytes.
    #[inline(always)]
    fn size(self) -> u32 {
        match self.0 >> 4 & 7 {
            1 => 1,
            2 => 2,
            _ => 4,
        }
    }

    #[inline(always)]
    fn is_input(self) -> bool {
        self.0 & 1 != 0
    }

    #[inline(always)]
    fn is_string(self) -> bool {
        self.0 & (1 << 2) != 0
    }

    #[inline(always)]
    fn is_plain_double_word(self, port: u16) -> bool {
        self.0 & 0xffff_0074 == u64::from(port) << 16 | 1 << 6
    }
}

/// The common form of a nested page fault: EXITINFO1 is the error code, EXITINFO2 the guest-physical address.
///
/// Bit 0 (present) is not looked at: processor models differ on it where reserved bits are set.
#[inline(always)]
#[must_use]
pub fn nested_fault(info1: u64, info2: u64) -> NestedFault {
    let mut access = NestedAccess::empty();
    access.set(NestedAccess::WRITE, info1 & (1 << 1) != 0);
    access.set(NestedAccess::FETCH, info1 & (1 << 4) != 0);
    // "Nested versus Guest Page Faults, Fault Ordering": bit 32 is the final address, bit 33 a guest's paging structure.
    access.set(NestedAccess::DATA, info1 & (1 << 32) != 0);
    NestedFault {
        address: info2,
        access,
    }
}

/// What a guest wants of a control register, where the processor decodes it ("MOV CRx Decode", EXITINFO1): bit 63 says that it
/// is a MOV, bits 3:0 which register. `None`: the instruction has to be decoded.
#[must_use]
pub fn control_access(code: u32, info1: u64, decodes: bool) -> Option<ControlAccess> {
    if !decodes || info1 & (1 << 63) == 0 {
        return None;
    }
    let register = (info1 & 0xf) as u8;
    Some(match code {
        0x00..=0x0f => ControlAccess::Read,
        0x10..=0x1f => ControlAccess::Write {
            control: (code & 0xf) as u8,
            register,
        },
        _ => ControlAccess::Write {
            control: 0,
            register,
        },
    })
}

/// The event in EXITINTINFO. INT n, INT3 and INTO have not been carried out when their delivery fails: RIP is at them, and
/// they are done again, so they are no event here.
#[must_use]
pub fn interrupted(info: u64) -> Option<Event> {
    if info & event::VALID == 0 {
        return None;
    }
    let vector = info as u8;
    let kind = match info >> event::TYPE_SHIFT & 7 {
        event::EXTERNAL => Kind::External,
        event::NMI => Kind::Nmi,
        event::EXCEPTION if !matches!(vector, BREAKPOINT | OVERFLOW) => Kind::Hardware,
        _ => return None,
    };
    let has_code = kind == Kind::Hardware && info & event::ERROR_CODE != 0;
    Some(Event {
        kind,
        vector,
        error_code: has_code.then_some((info >> 32) as u32),
        length: 0,
    })
}

const BREAKPOINT: u8 = 3;
const OVERFLOW: u8 = 4;
const NMI_VECTOR: u8 = 2;
const EXCEPTIONS: u8 = 32;

/// EVENTINJ for an event. In real mode (`protected` is not set) no error code is pushed. `None`: VMRUN would refuse it.
#[must_use]
pub fn injection(event: &Event, protected: bool) -> Option<u64> {
    let kind = match event.kind {
        Kind::External => event::EXTERNAL,
        Kind::Nmi => event::NMI,
        Kind::Software => event::SOFTWARE,
        Kind::Hardware | Kind::PrivilegedSoftware | Kind::SoftwareException => event::EXCEPTION,
        _ => return None,
    };
    if kind == event::EXCEPTION && (event.vector == NMI_VECTOR || event.vector >= EXCEPTIONS) {
        return None;
    }
    let code = match event.error_code {
        Some(code) if protected && kind == event::EXCEPTION => {
            event::ERROR_CODE | u64::from(code) << 32
        }
        _ => 0,
    };
    Some(event::VALID | code | kind << event::TYPE_SHIFT | u64::from(event.vector))
}

#[cfg(test)]
mod tests {
    use gaol_abi::exit::{COUNTERS, FIRST_DERIVED_COUNTER, counter_name};
    use gaol_abi::image::Vendor;
    use proptest::prelude::*;

    use super::*;
    use crate::virt::contract::tests::{Port as Told, Processor};
    use crate::virt::svm::Svm;

    fn name(code: u32, info1: u64) -> &'static str {
        counter_name(Vendor::Svm, counter(code, info1)).unwrap()
    }

    #[test]
    fn every_code_has_a_counter_with_a_name() {
        for code in (0..0x1000).chain([0xffff_fffe, u32::MAX, 0x8000_0000]) {
            for info1 in [0, 1, u64::MAX] {
                let index = counter(code, info1);
                assert!(index < FIRST_DERIVED_COUNTER.min(COUNTERS));
                assert!(counter_name(Vendor::Svm, index).is_some(), "{code:#x}");
            }
        }
        for (code, info1, expected) in [
            (0x10, 0, "control_register"),
            (0x41, 0, "exception_or_nmi"),
            (0x61, 0, "exception_or_nmi"),
            (0x63, 0, "init"),
            (0x65, 0, "control_register"),
            (0x6f, 0, "rdpmc"),
            (0x72, 0, "cpuid"),
            (0x74, 0, "iret"),
            (0x76, 0, "invd"),
            (0x7b, 0, "port"),
            (0x7c, 0, "rdmsr"),
            (0x7c, 1, "wrmsr"),
            (0x7d, 0, "task_switch"),
            (0x7f, 0, "triple_fault"),
            (0x80, 0, "vmrun"),
            (0x81, 0, "hypercall"),
            (0x82, 0, "vmload"),
            (0x83, 0, "vmsave"),
            (0x84, 0, "stgi"),
            (0x85, 0, "clgi"),
            (0x86, 0, "skinit"),
            (0x89, 0, "wbinvd"),
            (0x8d, 0, "xsetbv"),
            (0x400, 0, "nested_page_fault"),
            (0xffff_ffff, 0, "invalid_guest_state"),
            (0x401, 0, "other"),
            (0x90, 0, "other"),
            (0x7e, 0, "other"),
        ] {
            assert_eq!(name(code, info1), expected, "{code:#x}");
        }
    }

    /// "IN and OUT instructions", EXITINFO1: bit 0 IN, 2 string, 3 repeated, 4 to 6 the size, 7 to 9 the size of addresses,
    /// 10 to 12 the segment, 16 to 31 the port.
    impl Processor for Svm {
        const LEVELS: core::ops::RangeInclusive<u32> = 4..=5;

        fn port_access(access: Told) -> Port {
            let (addresses, segment) = (4 << 7, 3 << 10);
            let flags = [
                (access.is_input, 1),
                (access.is_string, 1 << 2),
                (access.is_repeated, 1 << 3),
                // Some models tell these, others do not.
                (!access.port.is_multiple_of(2), addresses | segment),
            ];
            let set = flags.iter().filter(|(is_set, _)| *is_set);
            let bits: u64 = set.map(|(_, bits)| bits).sum();
            Port(bits | u64::from(access.size) << 4 | u64::from(access.port) << 16)
        }
    }

    #[test]
    fn only_what_an_instruction_does_to_its_operand_is_data() {
        let (present, write, user, reserved, fetch) = (1u64, 2, 4, 8, 16);
        let (last, table) = (1u64 << 32, 1 << 33);
        for low in 0..32 {
            for high in [last, table] {
                let fault = nested_fault(low | high, 0xfee0_0300);
                assert_eq!(fault.address, 0xfee0_0300);
                assert_eq!(fault.is_write(), low & write != 0);
                assert_eq!(fault.is_fetch(), low & fetch != 0);
                let is_data = high == last && low & fetch == 0;
                assert_eq!(fault.is_data(), is_data);
                // The same with and without the bits that models differ on.
                for other in [present, user, reserved, present | reserved] {
                    assert_eq!(nested_fault((low | high) ^ other, 0xfee0_0300), fault);
                }
            }
        }
    }

    #[test]
    fn decoded_accesses_to_control_registers_are_told_apart() {
        let by_move = 1 << 63;
        for register in 0..16u8 {
            let info = by_move | u64::from(register);
            for (code, control) in [(0x10, 0), (0x14, 4), (0x65, 0)] {
                let expected = ControlAccess::Write { control, register };
                assert_eq!(control_access(code, info, true), Some(expected));
            }
            assert_eq!(control_access(0x00, info, true), Some(ControlAccess::Read));
            // CLTS, LMSW, and processors that decode nothing.
            assert_eq!(control_access(0x65, u64::from(register), true), None);
            assert_eq!(control_access(0x10, info, false), None);
        }
    }

    fn events() -> impl Iterator<Item = Event> {
        let kinds = [
            Kind::External,
            Kind::Nmi,
            Kind::Hardware,
            Kind::Software,
            Kind::PrivilegedSoftware,
            Kind::SoftwareException,
            Kind(1),
            Kind(7),
        ];
        let codes = [None, Some(0), Some(0x18), Some(u32::MAX)];
        kinds.into_iter().flat_map(move |kind| {
            (0..=255).flat_map(move |vector| {
                codes.into_iter().map(move |error_code| Event {
                    kind,
                    vector,
                    error_code,
                    length: 2,
                })
            })
        })
    }

    /// "Event Injection": VMRUN refuses reserved types, an exception with the vector of NMI, and exceptions beyond the 32.
    #[test]
    fn nothing_is_injected_that_vmrun_refuses() {
        for event in events() {
            for protected in [false, true] {
                let Some(value) = injection(&event, protected) else {
                    let is_exception = matches!(event.kind.0, 3 | 5 | 6);
                    let is_reserved = matches!(event.kind.0, 1 | 7);
                    assert!(
                        is_reserved || is_exception && (event.vector == 2 || event.vector >= 32)
                    );
                    continue;
                };
                let (kind, vector) = (value >> 8 & 7, value as u8);
                assert!(matches!(kind, 0 | 2 | 3 | 4) && value & 1 << 31 != 0);
                assert!(kind != 3 || vector < 32 && vector != 2);
                assert_eq!(vector, event.vector);
                let has_code = value & 1 << 11 != 0;
                assert_eq!(
                    has_code,
                    protected && kind == 3 && event.error_code.is_some()
                );
                let code = (value >> 32) as u32;
                assert_eq!(
                    code,
                    if has_code {
                        event.error_code.unwrap()
                    } else {
                        0
                    }
                );
                assert_eq!(value & 0x7fff_f000, 0);
            }
        }
        assert_eq!(injection(&Event::NMI, true), Some(0x8000_0202));
    }

    proptest! {
        /// Whatever was being delivered is delivered again, but for instructions, which are done again.
        #[test]
        fn what_was_interrupted_comes_again(info: u64) {
            let valid = info | 1 << 31;
            prop_assert_eq!(interrupted(info & !(1 << 31)), None);
            let (kind, vector) = (valid >> 8 & 7, valid as u8);
            match interrupted(valid) {
                Some(event) => {
                    prop_assert_eq!(event.vector, vector);
                    prop_assert!(kind != 4 && !(kind == 3 && matches!(vector, 3 | 4)));
                    if let Some(again) = injection(&event, true) {
                        let mask = if kind == 3 { 0xffff_ffff_8000_0fff } else { 0x8000_07ff };
                        let mask = if valid & 1 << 11 == 0 { mask & 0xffff_ffff } else { mask };
                        prop_assert_eq!(again & mask, valid & mask);
                    }
                }
                None => prop_assert!(!matches!(kind, 0 | 2) && (kind != 3 || matches!(vector, 3 | 4))),
            }
        }
    }
}
