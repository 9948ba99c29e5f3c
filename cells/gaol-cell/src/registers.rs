//! Registers of the local APIC in both of its modes, and the descriptors of the interrupt table: numbers and layouts.
//!
//! SDM volume 3, chapter "Advanced Programmable Interrupt Controller (APIC)", and "Interrupt and Exception Handling".
//! Invariant: nothing here touches hardware.
#![forbid(unsafe_code)]

use core::time::Duration;

use open_enum::open_enum;

use crate::frequency::Frequency;

/// A model-specific register.
#[open_enum]
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Msr {
    /// Base and mode of the local APIC.
    ApicBase = 0x1b,
    /// Page attribute table.
    Pat = 0x277,
    /// Default memory type, and whether MTRRs are in use.
    MtrrDefaultType = 0x2ff,
    /// The next expiry in TSC-deadline mode; 0 disarms.
    TscDeadline = 0x6e0,
    /// Local APIC: id.
    ApicId = 0x802,
    /// Local APIC: task priority.
    TaskPriority = 0x808,
    /// Local APIC: end of interrupt.
    EndOfInterrupt = 0x80b,
    /// Local APIC: spurious interrupt vector and software enable.
    SpuriousInterrupt = 0x80f,
    /// Local APIC: interrupt command.
    InterruptCommand = 0x830,
    /// Local APIC: local vector table entry of the timer.
    TimerEntry = 0x832,
    /// Local APIC: initial count of the timer.
    TimerInitialCount = 0x838,
    /// Local APIC: current count of the timer.
    TimerCurrentCount = 0x839,
    /// Local APIC: divide configuration of the timer.
    TimerDivide = 0x83e,
    /// Local APIC: self IPI.
    SelfIpi = 0x83f,
    /// Extended features.
    Efer = 0xc000_0080,
}

/// The local APIC is in x2APIC mode, in [`Msr::ApicBase`].
pub const APIC_BASE_X2APIC: u64 = 1 << 10;
/// Where the registers of a local APIC in xAPIC mode are.
pub const XAPIC_PAGE: u64 = 0xfee0_0000;
/// Offset in that page of the upper half of the interrupt command register.
pub const XAPIC_COMMAND_HIGH: u32 = 0x310;

impl Msr {
    /// Offset of a register of the local APIC in the page of an APIC in xAPIC mode. `None`: it does not exist there.
    pub const fn xapic_offset(self) -> Option<u32> {
        match self {
            Self::SelfIpi => None,
            Self(0x800..=0x83f) => Some((self.0 & 0x3f) << 4),
            _ => None,
        }
    }
}

/// Writes to the page of a local APIC in xAPIC mode, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XapicWrites {
    /// Offset and value of what is written first, if anything is.
    pub first: Option<(u32, u32)>,
    /// Offset and value.
    pub last: (u32, u32),
}

/// What the write of an x2APIC's register is in xAPIC mode. `None`: nothing there has this meaning.
pub const fn xapic_writes(register: Msr, value: u64) -> Option<XapicWrites> {
    /// To itself, edge, fixed.
    const TO_SELF: u32 = 1 << 18;
    const COMMAND: u32 = 0x300;
    let low = value as u32;
    match register {
        Msr::SelfIpi => Some(XapicWrites {
            first: None,
            last: (COMMAND, TO_SELF | low),
        }),
        Msr::InterruptCommand => {
            let destination = (value >> 32) as u32;
            let is_narrow = destination <= 0xff || destination == u32::MAX;
            if !is_narrow {
                return None;
            }
            Some(XapicWrites {
                first: Some((XAPIC_COMMAND_HIGH, destination << 24)),
                last: (COMMAND, low),
            })
        }
        _ => match register.xapic_offset() {
            Some(offset) => Some(XapicWrites {
                first: None,
                last: (offset, low),
            }),
            None => None,
        },
    }
}

/// Software enable, in the spurious interrupt vector register.
pub const APIC_ENABLE: u64 = 1 << 8;
/// "MTRRs are in use, and what none of them covers is write-back", in the default type register.
pub const MTRR_ENABLED_WRITE_BACK: u64 = 1 << 11 | 6;

/// The vector of an interrupt that a handler can be registered for: not an exception's, nor the spurious one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vector(u8);

impl Vector {
    /// The vector that the local APIC reports interrupts with that went away.
    pub const SPURIOUS: u8 = 0xff;

    /// # Panics
    /// For the exceptions' vectors 0 to 31 and for [`Vector::SPURIOUS`]; when used in a constant, at compile time.
    pub const fn new(vector: u8) -> Self {
        assert!(vector >= 32, "vectors 0 to 31 are exceptions");
        assert!(
            vector != Self::SPURIOUS,
            "vector 255 is the spurious interrupt"
        );
        Self(vector)
    }

    /// The number.
    pub const fn number(self) -> u8 {
        self.0
    }
}

/// How the timer of the local APIC counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimerMode {
    /// To zero, once.
    OneShot,
    /// To zero and over again.
    Periodic,
    /// Not at all: it expires when the time stamp counter reaches [`Msr::TscDeadline`].
    TscDeadline,
}

/// The timer's entry of the local vector table. `None` masks it.
pub const fn timer_entry(mode: TimerMode, vector: Option<Vector>) -> u64 {
    let mode = match mode {
        TimerMode::OneShot => 0,
        TimerMode::Periodic => 1 << 17,
        TimerMode::TscDeadline => 2 << 17,
    };
    match vector {
        Some(vector) => mode | vector.0 as u64,
        None => mode | 1 << 16,
    }
}

/// How the timer has to be set to expire after a certain time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimerCount {
    /// The count is of every 2^n-th cycle; 0 to 7.
    divide_shift: u32,
    /// Initial count.
    count: u32,
}

impl TimerCount {
    /// The finest setting for `duration` at the timer's frequency before its divider. `None` when the duration is too
    /// long for the widest divider, or rounds to no cycle at all (a count of 0 stops the timer).
    pub fn new(frequency: Frequency, duration: Duration) -> Option<Self> {
        let cycles = frequency.cycles(duration);
        let divide_shift = (0..8).find(|shift| cycles >> shift <= u32::MAX.into())?;
        let count = u32::try_from(cycles >> divide_shift).ok()?;
        (count > 0).then_some(Self {
            divide_shift,
            count,
        })
    }

    /// The longest that can be counted without a divider.
    pub const LONGEST: Self = Self {
        divide_shift: 0,
        count: u32::MAX,
    };

    /// Initial count.
    pub fn count(self) -> u32 {
        self.count
    }

    /// Cycles of the timer's clock that have passed since the count started, when it has come down to `current`.
    pub fn elapsed(self, current: u32) -> u64 {
        u64::from(self.count.saturating_sub(current)) << self.divide_shift
    }

    /// What the divide configuration register takes. Its bits 0, 1 and 3 hold log2(divider) − 1, modulo 8.
    pub fn divide_configuration(self) -> u64 {
        let code = u64::from((self.divide_shift + 7) % 8);
        code & 0b11 | (code & 0b100) << 1
    }
}

/// An interrupt gate for the handler at `address`: present, CPL 0, interrupts off, no stack switch.
pub const fn interrupt_gate(code_selector: u16, address: u64) -> [u64; 2] {
    const PRESENT_INTERRUPT_GATE: u64 = 0x8e << 40;
    let low = address & 0xffff
        | (code_selector as u64) << 16
        | PRESENT_INTERRUPT_GATE
        | (address >> 16 & 0xffff) << 48;
    [low, address >> 32]
}

/// Name of an exception; the SDM's.
pub const fn exception_name(vector: u8) -> &'static str {
    match vector {
        0 => "divide error",
        1 => "debug exception",
        2 => "NMI",
        3 => "breakpoint",
        4 => "overflow",
        5 => "BOUND range exceeded",
        6 => "invalid opcode",
        7 => "device not available",
        8 => "double fault",
        10 => "invalid TSS",
        11 => "segment not present",
        12 => "stack-segment fault",
        13 => "general protection",
        14 => "page fault",
        16 => "x87 floating-point error",
        17 => "alignment check",
        18 => "machine check",
        19 => "SIMD floating-point exception",
        20 => "virtualization exception",
        21 => "control protection exception",
        _ => "reserved exception",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn registers_are_in_the_page_where_the_manual_has_them() {
        for (register, value, first, last) in [
            (Msr::EndOfInterrupt, 0, None, (0xb0, 0)),
            (Msr::TaskPriority, 0x20, None, (0x80, 0x20)),
            (Msr::SpuriousInterrupt, 0x1ff, None, (0xf0, 0x1ff)),
            (Msr::TimerEntry, 0x2_0040, None, (0x320, 0x2_0040)),
            (Msr::TimerInitialCount, 7, None, (0x380, 7)),
            (Msr::TimerDivide, 0xb, None, (0x3e0, 0xb)),
            (Msr::SelfIpi, 0x41, None, (0x300, 0x4_0041)),
            (
                Msr::InterruptCommand,
                3 << 32 | 0x4041,
                Some((0x310, 3 << 24)),
                (0x300, 0x4041),
            ),
            (
                Msr::InterruptCommand,
                0xffff_ffff << 32 | 0x41,
                Some((0x310, 0xff00_0000)),
                (0x300, 0x41),
            ),
        ] {
            assert_eq!(
                xapic_writes(register, value),
                Some(XapicWrites { first, last })
            );
        }
        assert_eq!(xapic_writes(Msr::InterruptCommand, 0x100 << 32), None);
        assert_eq!(xapic_writes(Msr::TscDeadline, 1), None);
        assert_eq!(Msr::ApicId.xapic_offset(), Some(0x20));
        assert_eq!(Msr::TimerCurrentCount.xapic_offset(), Some(0x390));
        assert_eq!(Msr::ApicBase.xapic_offset(), None);
    }

    #[test]
    fn the_timer_entry_has_the_manuals_bits() {
        let vector = Some(Vector::new(0x40));
        assert_eq!(timer_entry(TimerMode::OneShot, vector), 0x40);
        assert_eq!(timer_entry(TimerMode::Periodic, vector), 0x2_0040);
        assert_eq!(timer_entry(TimerMode::TscDeadline, vector), 0x4_0040);
        assert_eq!(timer_entry(TimerMode::TscDeadline, None), 0x5_0000);
    }

    #[test]
    fn the_divider_has_the_manuals_codes() {
        let codes = [
            0b1011, 0b0000, 0b0001, 0b0010, 0b0011, 0b1000, 0b1001, 0b1010,
        ];
        for (divide_shift, code) in (0..).zip(codes) {
            let count = TimerCount {
                divide_shift,
                count: 1,
            };
            assert_eq!(count.divide_configuration(), code, "1 << {divide_shift}");
        }
    }

    #[test]
    #[should_panic(expected = "exceptions")]
    fn exceptions_are_no_interrupts() {
        Vector::new(31);
    }

    #[test]
    #[should_panic(expected = "spurious")]
    fn the_spurious_vector_is_taken() {
        Vector::new(255);
    }

    #[test]
    fn long_times_are_divided() {
        let frequency = Frequency::from_khz(1_000_000).unwrap();
        let short = TimerCount::new(frequency, Duration::from_millis(1)).unwrap();
        assert_eq!((short.divide_shift, short.count), (0, 1_000_000));
        let long = TimerCount::new(frequency, Duration::from_secs(5)).unwrap();
        assert_eq!((long.divide_shift, long.count), (1, 2_500_000_000));
        assert_eq!(TimerCount::new(frequency, Duration::from_secs(600)), None);
        assert_eq!(TimerCount::new(frequency, Duration::ZERO), None);
    }

    #[test]
    fn a_gate_spreads_the_address() {
        let [low, high] = interrupt_gate(8, 0x1122_3344_5566_7788);
        assert_eq!(low, 0x5566_8e00_0008_7788);
        assert_eq!(high, 0x1122_3344);
    }

    proptest! {
        #[test]
        fn the_count_is_the_duration(rate in 1u32.., nanoseconds in 0u64..1 << 36) {
            let frequency = Frequency::from_khz(rate).unwrap();
            let duration = Duration::from_nanos(nanoseconds);
            let cycles = frequency.cycles(duration);
            match TimerCount::new(frequency, duration) {
                Some(count) => prop_assert_eq!(count.elapsed(0), cycles >> count.divide_shift << count.divide_shift),
                None => prop_assert!(cycles == 0 || cycles >> 7 > u32::MAX.into()),
            }
        }
    }
}
