//! The x2APIC of a cell on a processor that has no such mode: MSRs, with the registers of the xAPIC behind them.
//!
//! Cells find an x2APIC everywhere. Where the processor lacks it, their CPUs stay in xAPIC mode, the page of its registers is not
//! mapped for them, and each access to an MSR of the x2APIC exits. Invariant: what the manual reserves raises #GP (SDM,
//! "x2APIC Register Address Space"), and nothing is written that a cell in x2APIC mode may not write.

use super::vectoring::Exception;
use super::{Verdict, interrupt};
use crate::cpu::PerCpu;
use crate::device::apic::{self, register};
use crate::device::interrupt_command::Processor;
use crate::processor::msr;

/// Self IPI: no register of the xAPIC.
const SELF_IPI: u16 = 0x3f0;

/// Is this MSR of the guest's one that is answered here?
#[inline(always)]
pub fn is_virtual(cpu: &PerCpu, number: u32) -> bool {
    !cpu.x2apic && !cpu.is_root && msr::X2APIC_ALL.contains(&number)
}

/// The end of an interrupt, which is the one frequent write. `false`: it is another.
#[inline(always)]
pub fn write_fast(cpu: &PerCpu, number: u32, value: u64) -> bool {
    const END: u32 = msr::X2APIC + (register::END_OF_INTERRUPT as u32 >> 4);
    if number != END || value != 0 || !is_virtual(cpu, number) {
        return false;
    }
    apic::write_page(register::END_OF_INTERRUPT, 0);
    true
}

/// Place of the register in the page.
const fn offset(number: u32) -> u16 {
    (number.wrapping_sub(msr::X2APIC) << 4) as u16
}

/// Registers that can be read.
const fn is_readable(offset: u16) -> bool {
    offset & 0xf == 0
        && matches!(
            offset,
            register::ID
                | register::VERSION
                | register::TASK_PRIORITY
                | 0xa0
                | register::LOGICAL_DESTINATION
                | register::SPURIOUS
                | 0x100..=0x270
                | register::ERROR_STATUS
                | register::COMMAND_LOW
                | register::LVT_TIMER..=register::LVT_ERROR
                | register::TIMER_INITIAL
                | register::TIMER_CURRENT
                | register::TIMER_DIVIDE
        )
}

/// Bits that can be written to a register without a further look. `None`: it takes one, or can't be written.
const fn plain_bits(offset: u16) -> Option<u32> {
    Some(match offset {
        register::TASK_PRIORITY => 0xff,
        register::END_OF_INTERRUPT | register::ERROR_STATUS => 0,
        register::SPURIOUS => 0x3ff,
        // Vector, mask, periodic. Delivery status is read-only.
        register::LVT_TIMER => 0x3_10ff,
        register::TIMER_INITIAL => u32::MAX,
        register::TIMER_DIVIDE => 0b1011,
        _ => return None,
    })
}

/// Reads a register. `None`: #GP.
pub fn read(cpu: &PerCpu, number: u32) -> Option<u64> {
    let offset = offset(number);
    if !is_readable(offset) {
        return None;
    }
    Some(match offset {
        register::ID => cpu.apic_id.into(),
        register::LOGICAL_DESTINATION => {
            let processor = Processor {
                number: cpu.index,
                apic_id: cpu.apic_id,
                logical_id: 0,
                cluster_model: false,
                x2apic: true,
            };
            processor.x2apic_logical_id().into()
        }
        register::COMMAND_LOW => {
            let high = apic::read_page(register::COMMAND_HIGH) >> 24;
            u64::from(apic::read_page(offset)) | u64::from(high) << 32
        }
        _ => apic::read_page(offset).into(),
    })
}

/// Writes a register.
pub fn write(cpu: &PerCpu, number: u32, value: u64) -> Option<Verdict> {
    let (offset, narrow) = (offset(number), u32::try_from(value));
    if offset == register::COMMAND_LOW {
        return Some(interrupt::x2apic_slow(cpu, value));
    }
    let refused = Some(Verdict::Inject(Exception::GENERAL_PROTECTION));
    let Ok(value) = narrow else {
        return refused;
    };
    if let Some(bits) = plain_bits(offset) {
        if value & !bits != 0 {
            return refused;
        }
        apic::write_page(offset, value);
    } else if offset == SELF_IPI {
        if value & !0xff != 0 {
            return refused;
        }
        apic::send_self(false, value);
    } else if (register::LVT_THERMAL..=register::LVT_ERROR).contains(&offset) {
        if !interrupt::lvt_is_harmless(false, value) {
            return None;
        }
        apic::write_page(offset, value);
    } else {
        return None;
    }
    Some(Verdict::Advance)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SDM, "Local APIC Register Address Map Supported by x2APIC", without what the processors that need this lack.
    #[test]
    fn what_can_be_read_and_written_is_in_the_manual() {
        let readable: Vec<u32> = (0x800..=0x8ff)
            .filter(|number| is_readable(offset(*number)))
            .collect();
        let expected = [0x802, 0x803, 0x808, 0x80a, 0x80d, 0x80f]
            .into_iter()
            .chain(0x810..=0x828)
            .chain([0x830])
            .chain(0x832..=0x839)
            .chain([0x83e]);
        assert_eq!(readable, expected.collect::<Vec<_>>());
        let plain: Vec<u32> = (0x800..=0x8ff)
            .filter(|number| plain_bits(offset(*number)).is_some())
            .collect();
        assert_eq!(plain, [0x808, 0x80b, 0x80f, 0x828, 0x832, 0x838, 0x83e]);
        assert_eq!(offset(0x83f), SELF_IPI);
    }

    /// A timer's entry has neither a delivery mode, which could be an SMI, nor a trigger mode.
    #[test]
    fn a_timer_raises_interrupts_only() {
        let bits = plain_bits(register::LVT_TIMER).unwrap();
        assert_eq!(bits & (0x7 << 8 | 1 << 15 | 1 << 13), 0);
    }
}
