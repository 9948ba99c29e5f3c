//! Events on their way to a guest: what becomes of one whose delivery a VM exit interrupted.
//!
//! Invariant: an event that was being delivered when an exit came is delivered again, unless the exit ends in an exception;
//! then both combine as the processor would have combined them (SDM, "Interrupt 8—Double Fault Exception (#DF)").
#![forbid(unsafe_code)]

use open_enum::open_enum;

/// Description of an event, in either vendor's format: valid.
pub const INTERRUPTION_VALID: u32 = 1 << 31;
/// Description of an event, in either vendor's format: an error code is delivered.
pub const INTERRUPTION_ERROR_CODE: u32 = 1 << 11;

/// An exception for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// Vector.
    pub vector: u8,
    /// Error code, where the exception has one.
    pub error_code: Option<u32>,
}

impl Exception {
    /// #GP(0).
    pub const GENERAL_PROTECTION: Self = Self {
        vector: 13,
        error_code: Some(0),
    };
    /// #UD.
    pub const INVALID_OPCODE: Self = Self {
        vector: 6,
        error_code: None,
    };
    /// #MC.
    pub const MACHINE_CHECK: Self = Self {
        vector: 18,
        error_code: None,
    };
}

/// How an event comes about: the type in interruption information (SDM, "VM-Entry Controls for Event Injection").
#[open_enum]
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An interrupt of the APIC.
    External = 0,
    /// NMI.
    Nmi = 2,
    /// An exception that the processor raised.
    Hardware = 3,
    /// INT n.
    Software = 4,
    /// INT1.
    PrivilegedSoftware = 5,
    /// INT3 and INTO.
    SoftwareException = 6,
}

/// An event with what its delivery needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// How it came about.
    pub kind: Kind,
    /// Vector.
    pub vector: u8,
    /// Error code, where there is one.
    pub error_code: Option<u32>,
    /// Bytes of the instruction that asked for it; of no meaning for the other kinds.
    pub length: u32,
}

/// What two events make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Combined {
    /// This one is delivered.
    Deliver(Event),
    /// The processor shuts down.
    TripleFault,
}

const DOUBLE_FAULT: u8 = 8;
const DEBUG: u8 = 1;

/// The classes of events in the table of double faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Benign,
    Contributory,
    PageFault,
    DoubleFault,
}

impl From<Exception> for Event {
    fn from(exception: Exception) -> Self {
        Self {
            kind: Kind::Hardware,
            vector: exception.vector,
            error_code: exception.error_code,
            length: 0,
        }
    }
}

impl Event {
    /// NMI.
    pub const NMI: Self = Self {
        kind: Kind::Nmi,
        vector: 2,
        error_code: None,
        length: 0,
    };

    /// From the fields that describe an event at an exit. `None`: there was none.
    #[must_use]
    pub fn read(information: u32, error_code: u32, length: u32) -> Option<Self> {
        (information & INTERRUPTION_VALID != 0).then_some(Self {
            kind: Kind((information >> 8) as u8 & 7),
            vector: information as u8,
            error_code: (information & INTERRUPTION_ERROR_CODE != 0).then_some(error_code),
            length,
        })
    }

    /// The field that delivers it at VM entry.
    #[must_use]
    pub fn information(&self) -> u32 {
        let with_code = if self.error_code.is_some() {
            INTERRUPTION_ERROR_CODE
        } else {
            0
        };
        INTERRUPTION_VALID | with_code | u32::from(self.kind.0) << 8 | u32::from(self.vector)
    }

    /// Is it a debug exception, however it came about?
    #[must_use]
    pub fn is_debug(&self) -> bool {
        self.vector == DEBUG && matches!(self.kind, Kind::Hardware | Kind::PrivilegedSoftware)
    }

    const fn class(&self) -> Class {
        match (self.kind, self.vector) {
            // #DE, #TS, #NP, #SS, #GP, #CP.
            (Kind::Hardware, 0 | 10..=13 | 21) => Class::Contributory,
            // #PF, #VE.
            (Kind::Hardware, 14 | 20) => Class::PageFault,
            (Kind::Hardware, DOUBLE_FAULT) => Class::DoubleFault,
            _ => Class::Benign,
        }
    }

    /// Was it asked for by an instruction? Then exceptions in its delivery do not count as external (SDM, "Error Code").
    const fn is_by_instruction(&self) -> bool {
        matches!(self.kind, Kind::Software | Kind::SoftwareException)
    }

    /// As it is when it came about while `first` was being delivered: the error codes that name a selector say so.
    const fn during(self, first: &Self) -> Self {
        match self.error_code {
            Some(code) if !first.is_by_instruction() && matches!(self.vector, 10..=13) => Self {
                error_code: Some(code | 1),
                ..self
            },
            _ => self,
        }
    }
}

/// What is delivered when `second` comes about while `first` is being delivered.
#[must_use]
pub fn combine(first: Option<Event>, second: Event) -> Combined {
    let Some(first) = first else {
        return Combined::Deliver(second);
    };
    match (first.class(), second.class()) {
        (Class::DoubleFault, Class::Contributory | Class::PageFault | Class::DoubleFault) => {
            Combined::TripleFault
        }
        (Class::Contributory | Class::PageFault, Class::Contributory)
        | (Class::PageFault, Class::PageFault) => Combined::Deliver(Event {
            kind: Kind::Hardware,
            vector: DOUBLE_FAULT,
            error_code: Some(0),
            length: 0,
        }),
        _ => Combined::Deliver(second.during(&first)),
    }
}

/// RFLAGS: single-step.
pub const TRAP_FLAG: u64 = 1 << 8;
/// RFLAGS: the next instruction is not held up by a breakpoint on it.
pub const RESUME_FLAG: u64 = 1 << 16;
/// IA32_DEBUGCTL: single-step branches only.
pub const BRANCH_TRAP_FLAG: u64 = 1 << 1;
/// IA32_DEBUGCTL: last branches are recorded.
pub const LAST_BRANCH_RECORD: u64 = 1;
/// Pending debug exceptions: a single step.
pub const PENDING_SINGLE_STEP: u64 = 1 << 14;
const DR6_CAUSES: u64 = 0x600f;
const DR6_BREAKPOINTS: u64 = 0xf;
/// Bits that are 0 in DR6 when the cause is there, and 1 in the exit qualification: bus lock, transactional region.
const DR6_INVERTED: u64 = 1 << 11 | 1 << 16;

/// DR6 as a debug exception leaves it (SDM, "Exit Qualification for Debug Exceptions"): the breakpoints that were met
/// replace those of before, other causes stay until software clears them.
#[must_use]
pub const fn debug_status(before: u64, qualification: u64) -> u64 {
    ((before & !DR6_BREAKPOINTS) | (qualification & DR6_CAUSES)) & !(qualification & DR6_INVERTED)
}

/// Debug exceptions that are pending behind an instruction that was done on the guest's behalf.
#[must_use]
pub const fn pending_behind_instruction(pending: u64, rflags: u64, debugctl: u64) -> u64 {
    if rflags & TRAP_FLAG != 0 && debugctl & BRANCH_TRAP_FLAG == 0 {
        pending | PENDING_SINGLE_STEP
    } else {
        pending
    }
}

/// The instruction pointer behind an instruction. Outside 64-bit mode it wraps around at 4 GiB.
#[must_use]
pub const fn behind(rip: u64, length: u64, is_64_bit: bool) -> u64 {
    let next = rip.wrapping_add(length);
    if is_64_bit { next } else { next & 0xffff_ffff }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn event(kind: Kind, vector: u8) -> Event {
        let has_code = kind == Kind::Hardware && matches!(vector, 8 | 10..=14 | 17 | 21);
        Event {
            kind,
            vector,
            error_code: has_code.then_some(0x18),
            length: 2,
        }
    }

    fn all() -> impl Iterator<Item = Event> {
        let hardware = (0..32).map(|vector| event(Kind::Hardware, vector));
        let rest = [Kind::External, Kind::Software].into_iter();
        let rest = rest.flat_map(|kind| (0..=255).map(move |vector| event(kind, vector)));
        hardware.chain(rest).chain([
            event(Kind::Nmi, 2),
            event(Kind::PrivilegedSoftware, 1),
            event(Kind::SoftwareException, 3),
            event(Kind::SoftwareException, 4),
        ])
    }

    /// The manual's table, by the words in it.
    fn in_the_table(first: &Event, second: &Event) -> &'static str {
        let class = |event: &Event| match (event.kind, event.vector) {
            (Kind::Hardware, 8) => "double fault",
            (Kind::Hardware, 14 | 20) => "page fault",
            (Kind::Hardware, 0 | 10 | 11 | 12 | 13 | 21) => "contributory",
            _ => "benign",
        };
        match (class(first), class(second)) {
            ("benign", _) | (_, "benign") => "serially",
            ("contributory", "contributory") => "double fault",
            ("contributory", "page fault") => "serially",
            ("page fault", "contributory" | "page fault") => "double fault",
            ("double fault", _) => "shutdown",
            // A double fault is raised by the processor while it delivers, never by what is delivered.
            (_, "double fault") => "serially",
            _ => unreachable!(),
        }
    }

    #[test]
    fn every_pair_combines_as_the_manual_says() {
        for second in all() {
            assert_eq!(combine(None, second), Combined::Deliver(second));
            for first in all() {
                let combined = combine(Some(first), second);
                match (in_the_table(&first, &second), combined) {
                    ("serially", Combined::Deliver(what)) => {
                        assert_eq!((what.kind, what.vector), (second.kind, second.vector));
                        let is_external = second.kind == Kind::Hardware
                            && (10..=13).contains(&second.vector)
                            && first.kind != Kind::Software
                            && first.kind != Kind::SoftwareException;
                        let code = second.error_code;
                        assert_eq!(
                            what.error_code,
                            code.map(|code| code | u32::from(is_external))
                        );
                    }
                    ("double fault", Combined::Deliver(what)) => {
                        assert_eq!((what.kind, what.vector), (Kind::Hardware, 8));
                        assert_eq!(what.error_code, Some(0));
                    }
                    ("shutdown", Combined::TripleFault) => {}
                    (expected, _) => panic!("{first:?}, {second:?}: {expected}, not {combined:?}"),
                }
            }
        }
    }

    #[test]
    fn what_is_read_is_what_is_delivered() {
        for event in all() {
            let information = event.information();
            let code = event.error_code.unwrap_or(0);
            assert_eq!(Event::read(information, code, 2), Some(event));
            // "NMI unblocking due to IRET" and undefined bits are not for delivery.
            let more = information | 1 << 12 | 0x7fff_e000;
            let again = Event::read(more, code, 2).unwrap();
            assert_eq!(again.information(), information);
            assert_eq!(
                Event::read(information & !INTERRUPTION_VALID, code, 2),
                None
            );
        }
        // By the manual's layout: vector, type, error code valid, valid.
        assert_eq!(event(Kind::Hardware, 13).information(), 0x8000_0b0d);
        assert_eq!(event(Kind::SoftwareException, 3).information(), 0x8000_0603);
        assert_eq!(Event::NMI.information(), 0x8000_0202);
    }

    proptest! {
        #[test]
        fn any_fields_are_survived(information: u32, code: u32, length: u32, other: u32) {
            let first = Event::read(information, code, length);
            if let Some(second) = Event::read(other | INTERRUPTION_VALID, code, length) {
                match combine(first, second) {
                    Combined::Deliver(event) => prop_assert_eq!(event.information() & 0x7fff_f000, 0),
                    Combined::TripleFault => prop_assert_eq!(first.map(|event| event.vector), Some(8)),
                }
            }
        }

        #[test]
        fn the_debug_status_keeps_what_software_has_to_clear(before: u64, qualification: u64) {
            let after = debug_status(before, qualification);
            prop_assert_eq!(after & 0xf, qualification & 0xf);
            for bit in [13, 14] {
                prop_assert_eq!(after >> bit & 1, (before | qualification) >> bit & 1);
            }
            for bit in [11, 16] {
                prop_assert_eq!(after >> bit & 1, (before & !qualification) >> bit & 1);
            }
            let others = !(0xf | 0x6000 | 0x1_0800u64);
            prop_assert_eq!(after & others, before & others);
        }

        #[test]
        fn the_instruction_pointer_wraps_where_it_is_narrow(rip: u32, wide: u64, length in 1u64..16) {
            prop_assert_eq!(behind(rip.into(), length, false), u64::from(rip.wrapping_add(length as u32)));
            prop_assert_eq!(behind(wide, length, true), wide.wrapping_add(length));
        }
    }

    #[test]
    fn a_single_step_ends_behind_an_instruction_that_was_emulated() {
        assert_eq!(pending_behind_instruction(0, 0x102, 0), 1 << 14);
        assert_eq!(pending_behind_instruction(3, 0x102, 0), 1 << 14 | 3);
        // Of branches only.
        assert_eq!(pending_behind_instruction(0, 0x102, 2), 0);
        assert_eq!(pending_behind_instruction(1, 0x002, 0), 1);
    }
}
