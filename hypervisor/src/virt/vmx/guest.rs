//! What the current VMCS says of the guest.
//!
//! Invariant: a [`Current`] is in the hands of code of a CPU in VMX operation with a current VMCS only, so its fields can
//! be read and written.

use super::fields::{
    BLOCKING_BY_MOV_SS, BLOCKING_BY_NMI, BLOCKING_BY_STI, EXIT_ENTRY_FAILURE, Entry, EptViolation,
    ExitReason, Field, INTERRUPTION_NMI, INTERRUPTION_TYPE, Primary, SEGMENTS, SegmentFields,
    UNBLOCKED_BY_IRET,
};
use super::instructions::{invalidate_all, invalidate_ept, read, write};
use crate::guest::vectoring::{self, Event, INTERRUPTION_ERROR_CODE, INTERRUPTION_VALID, Kind};
use crate::memory::address::HostPhysical;
use crate::processor::descriptor::{Segment, SegmentRegister};
use crate::processor::{self, cr0, efer};
use crate::virt::contract::{
    ControlAccess, Exit, GuestState, NestedAccess, NestedFault, PortAccess, Trapped,
};
use crate::virt::state::Table;

/// Stands for the current VMCS.
#[derive(Clone, Copy, Debug)]
pub struct Current(());

impl Current {
    /// The current VMCS of this CPU.
    #[must_use]
    pub(super) const fn new() -> Self {
        Self(())
    }
}

/// Access rights of CS: 64-bit code.
const CS_LONG: u64 = 1 << 13;
/// Access rights of CS: 32-bit default size.
const CS_DEFAULT_32: u64 = 1 << 14;
/// Bits 51 to 12 of an EPT pointer.
const ADDRESS_MASK: u64 = 0x000f_ffff_ffff_f000;

/// The fields of a segment register.
#[inline(always)]
const fn fields(register: SegmentRegister) -> SegmentFields {
    let [es, cs, ss, ds, fs, gs, ldtr, tr] = SEGMENTS;
    match register {
        SegmentRegister::Es => es,
        SegmentRegister::Cs => cs,
        SegmentRegister::Ss => ss,
        SegmentRegister::Ds => ds,
        SegmentRegister::Fs => fs,
        SegmentRegister::Gs => gs,
        SegmentRegister::Ldtr => ldtr,
        SegmentRegister::Tr => tr,
    }
}

/// Bits that the hypervisor owns come from the shadow.
fn visible(value: Field, mask: Field, shadow: Field) -> u64 {
    let mask = read(mask);
    (read(value) & !mask) | (read(shadow) & mask)
}

/// Writes a segment register.
pub(super) fn write_segment(register: SegmentRegister, segment: &Segment) {
    let fields = fields(register);
    write(fields.selector, u64::from(segment.selector));
    write(fields.base, segment.base);
    write(fields.limit, u64::from(segment.limit));
    write(fields.access_rights, u64::from(segment.access_rights));
}

/// Exit qualification of an I/O instruction.
#[derive(Clone, Copy, Debug)]
pub struct PortQualification(u64);

impl PortAccess for PortQualification {
    #[inline(always)]
    fn port(self) -> u16 {
        (self.0 >> 16) as u16
    }

    #[inline(always)]
    fn size(self) -> u32 {
        ((self.0 & 7) as u32).wrapping_add(1)
    }

    #[inline(always)]
    fn is_input(self) -> bool {
        self.0 & (1 << 3) != 0
    }

    #[inline(always)]
    fn is_string(self) -> bool {
        self.0 & (1 << 4) != 0
    }

    #[inline(always)]
    fn is_plain_double_word(self, port: u16) -> bool {
        // Size, string, repeated; and the port.
        self.0 & 0xffff_0037 == (u64::from(port) << 16) | 3
    }
}

/// SDM, "Exit Qualification for Control-Register Accesses".
const fn control_access(qualification: u64) -> ControlAccess {
    match (qualification >> 4) & 3 {
        0 => ControlAccess::Write {
            control: (qualification & 0xf) as u8,
            register: (qualification >> 8 & 0xf) as u8,
        },
        1 => ControlAccess::Read,
        2 => ControlAccess::ClearTaskSwitched,
        _ => ControlAccess::LoadStatus((qualification >> 16) as u16),
    }
}

/// SDM, "Exit Qualification for EPT Violations".
#[inline(always)]
fn nested_access(qualification: u64) -> NestedAccess {
    let qualification = EptViolation::from_bits_retain(qualification);
    let mut access = NestedAccess::empty();
    access.set(
        NestedAccess::WRITE,
        qualification.contains(EptViolation::WRITE),
    );
    access.set(
        NestedAccess::FETCH,
        qualification.contains(EptViolation::FETCH),
    );
    let data = EptViolation::LINEAR_VALID.union(EptViolation::TRANSLATED);
    access.set(NestedAccess::DATA, qualification.contains(data));
    access
}

/// What an exit reason means; `is_nmi`: whether the exception or NMI is an NMI.
fn exit(reason: u32, is_nmi: impl FnOnce() -> bool) -> Exit {
    let basic = ExitReason(reason as u16);
    if reason & EXIT_ENTRY_FAILURE != 0 {
        return match basic {
            ExitReason::MachineCheckOnEntry => Exit::MachineCheck,
            _ => Exit::NotEntered(reason),
        };
    }
    match basic {
        ExitReason::ExceptionOrNmi if is_nmi() => Exit::Nmi,
        ExitReason::ExceptionOrNmi => Exit::Exception,
        ExitReason::PreemptionTimer => Exit::Asked,
        ExitReason::NmiWindow => Exit::NmiWindow,
        ExitReason::Cpuid => Exit::Cpuid,
        ExitReason::Vmcall => Exit::Hypercall,
        ExitReason::Port => Exit::Port,
        ExitReason::Rdmsr => Exit::ReadMsr,
        ExitReason::Wrmsr => Exit::WriteMsr,
        ExitReason::EptViolation => Exit::NestedFault,
        ExitReason::ControlRegister => Exit::ControlRegister,
        ExitReason::Wbinvd | ExitReason::Invd => Exit::CacheFlush,
        ExitReason::Xsetbv => Exit::Xsetbv,
        ExitReason::Rdpmc => Exit::ReadCounter,
        ExitReason::Getsec
        | ExitReason::Vmclear
        | ExitReason::Vmlaunch
        | ExitReason::Vmptrld
        | ExitReason::Vmptrst
        | ExitReason::Vmread
        | ExitReason::Vmresume
        | ExitReason::Vmwrite
        | ExitReason::Vmxoff
        | ExitReason::Vmxon
        | ExitReason::Invept
        | ExitReason::Invvpid
        | ExitReason::Vmfunc
        | ExitReason::Seamcall
        | ExitReason::Tdcall => Exit::NoSuchInstruction,
        ExitReason::Init | ExitReason::StartupIpi => Exit::Init,
        ExitReason::TripleFault => Exit::TripleFault,
        _ => Exit::Unknown,
    }
}

impl GuestState for Current {
    type PortAccess = PortQualification;

    #[inline(always)]
    fn rip(self) -> u64 {
        read(Field::GuestRip)
    }

    #[inline(always)]
    fn set_rip(self, value: u64) {
        write(Field::GuestRip, value);
    }

    #[inline(always)]
    fn rsp(self) -> u64 {
        read(Field::GuestRsp)
    }

    #[inline(always)]
    fn set_rsp(self, value: u64) {
        write(Field::GuestRsp, value);
    }

    #[inline(always)]
    fn rflags(self) -> u64 {
        read(Field::GuestRflags)
    }

    #[inline(always)]
    fn set_rflags(self, value: u64) {
        write(Field::GuestRflags, value);
    }

    #[inline(always)]
    fn cr0(self) -> u64 {
        read(Field::GuestCr0)
    }

    fn visible_cr0(self) -> u64 {
        visible(Field::GuestCr0, Field::Cr0Mask, Field::Cr0ReadShadow)
    }

    #[inline(always)]
    fn cr3(self) -> u64 {
        read(Field::GuestCr3)
    }

    #[inline(always)]
    fn cr4(self) -> u64 {
        read(Field::GuestCr4)
    }

    fn visible_cr4(self) -> u64 {
        visible(Field::GuestCr4, Field::Cr4Mask, Field::Cr4ReadShadow)
    }

    #[inline(always)]
    fn efer(self) -> u64 {
        read(Field::GuestEfer)
    }

    fn set_efer(self, value: u64) {
        write(Field::GuestEfer, value);
        let bit = u64::from(Entry::IA32E_MODE_GUEST.bits());
        let others = read(Field::EntryControls) & !bit;
        let active = if value & efer::LMA != 0 { bit } else { 0 };
        write(Field::EntryControls, others | active);
    }

    #[inline(always)]
    fn debugctl(self) -> u64 {
        read(Field::GuestDebugctl)
    }

    #[inline(always)]
    fn set_debugctl(self, value: u64) {
        write(Field::GuestDebugctl, value);
    }

    fn segment(self, register: SegmentRegister) -> Segment {
        let fields = fields(register);
        Segment {
            selector: read(fields.selector) as u16,
            base: read(fields.base),
            limit: read(fields.limit) as u32,
            access_rights: read(fields.access_rights) as u32,
        }
    }

    #[inline(always)]
    fn segment_base(self, register: SegmentRegister) -> u64 {
        read(fields(register).base)
    }

    fn gdtr(self) -> Table {
        Table {
            base: read(Field::GuestGdtrBase),
            limit: read(Field::GuestGdtrLimit) as u32,
        }
    }

    fn idtr(self) -> Table {
        Table {
            base: read(Field::GuestIdtrBase),
            limit: read(Field::GuestIdtrLimit) as u32,
        }
    }

    #[inline(always)]
    fn is_code_long(self) -> bool {
        read(Field::GuestCsAccessRights) & CS_LONG != 0
    }

    #[inline(always)]
    fn is_code_32_bit(self) -> bool {
        read(Field::GuestCsAccessRights) & CS_DEFAULT_32 != 0
    }

    #[inline(always)]
    fn privilege_level(self) -> u8 {
        (read(Field::GuestSsAccessRights) >> 5 & 3) as u8
    }

    fn exit(self) -> Exit {
        exit(read(Field::ExitReason) as u32, || {
            let information = read(Field::ExitInterruptionInformation) as u32;
            information & INTERRUPTION_TYPE == INTERRUPTION_NMI
        })
    }

    fn exit_number(self) -> u32 {
        read(Field::ExitReason) as u32
    }

    fn exit_detail(self) -> u64 {
        read(Field::ExitQualification)
    }

    #[inline(always)]
    fn nested_fault(self) -> NestedFault {
        NestedFault {
            address: read(Field::GuestPhysicalAddress),
            access: nested_access(read(Field::ExitQualification)),
        }
    }

    #[inline(always)]
    fn port_access(self) -> PortQualification {
        PortQualification(read(Field::ExitQualification))
    }

    fn control_access(self) -> Option<ControlAccess> {
        Some(control_access(read(Field::ExitQualification)))
    }

    fn take_exception(self) -> Option<Event> {
        let event = Event::read(
            read(Field::ExitInterruptionInformation) as u32 | INTERRUPTION_VALID,
            read(Field::ExitInterruptionErrorCode) as u32,
            read(Field::ExitInstructionLength) as u32,
        )?;
        // What the processor does besides was left to us (SDM, "Debug Exceptions" under "Architectural State Before a VM
        // Exit").
        if event.is_debug() {
            let causes = read(Field::ExitQualification);
            let status = vectoring::debug_status(processor::read_dr6(), causes);
            // SAFETY: DR6 is the guest's; it has no effect on the hypervisor.
            unsafe { processor::write_dr6(status) };
            write(Field::GuestDr7, read(Field::GuestDr7) & !(1 << 13));
            let tracing = vectoring::BRANCH_TRAP_FLAG | vectoring::LAST_BRANCH_RECORD;
            write(Field::GuestDebugctl, read(Field::GuestDebugctl) & !tracing);
        }
        Some(event)
    }

    #[inline(always)]
    fn instruction_length(self) -> Option<u64> {
        Some(read(Field::ExitInstructionLength))
    }

    #[inline(always)]
    fn advance(self, _past: Trapped) {
        let length = read(Field::ExitInstructionLength);
        write(Field::GuestRip, read(Field::GuestRip).wrapping_add(length));
    }

    #[inline(never)]
    fn end_instruction(self) {
        write(
            Field::GuestInterruptibility,
            read(Field::GuestInterruptibility) & !(BLOCKING_BY_STI | BLOCKING_BY_MOV_SS),
        );
        let flags = read(Field::GuestRflags);
        write(Field::GuestRflags, flags & !vectoring::RESUME_FLAG);
        let pending = vectoring::pending_behind_instruction(
            read(Field::GuestPendingDebugExceptions),
            flags,
            read(Field::GuestDebugctl),
        );
        write(Field::GuestPendingDebugExceptions, pending);
    }

    fn interrupted_event(self) -> Option<Event> {
        let reason = read(Field::ExitReason) as u32;
        if reason & EXIT_ENTRY_FAILURE != 0 {
            return None;
        }
        let event = Event::read(
            read(Field::IdtVectoringInformation) as u32,
            read(Field::IdtVectoringErrorCode) as u32,
            read(Field::ExitInstructionLength) as u32,
        );
        // SDM, "NMI Unblocking Due to Event Delivery" and "Exit Qualification for EPT Violations": bit 12 of either.
        let unblocking = match ExitReason(reason as u16) {
            ExitReason::ExceptionOrNmi => read(Field::ExitInterruptionInformation),
            ExitReason::EptViolation => read(Field::ExitQualification),
            _ => 0,
        };
        if event.is_none() && unblocking & UNBLOCKED_BY_IRET != 0 {
            write(
                Field::GuestInterruptibility,
                read(Field::GuestInterruptibility) | BLOCKING_BY_NMI,
            );
        }
        event
    }

    fn is_delivering(self) -> bool {
        read(Field::IdtVectoringInformation) as u32 & INTERRUPTION_VALID != 0
    }

    #[inline(never)]
    fn inject(self, event: &Event) {
        let mut information = event.information();
        match event.error_code {
            Some(code) if read(Field::GuestCr0) & cr0::PE != 0 => {
                write(Field::EntryExceptionErrorCode, u64::from(code));
            }
            _ => information &= !INTERRUPTION_ERROR_CODE,
        }
        // Its delivery ends what held interrupts and debug exceptions back: VM entry would refuse some events otherwise,
        // and single steps that are held back without being pending.
        let mut blocking =
            read(Field::GuestInterruptibility) & !(BLOCKING_BY_STI | BLOCKING_BY_MOV_SS);
        if event.kind == Kind::Nmi {
            blocking &= !BLOCKING_BY_NMI;
        }
        write(Field::GuestInterruptibility, blocking);
        write(Field::GuestPendingDebugExceptions, 0);
        write(Field::EntryInstructionLength, u64::from(event.length));
        write(Field::EntryInterruptionInformation, u64::from(information));
    }

    fn is_occupied(self) -> bool {
        read(Field::EntryInterruptionInformation) as u32 & INTERRUPTION_VALID != 0
    }

    fn blocks_nmis(self) -> bool {
        let blocking = BLOCKING_BY_NMI | BLOCKING_BY_MOV_SS | BLOCKING_BY_STI;
        read(Field::GuestInterruptibility) & blocking != 0
    }

    fn set_nmi_window(self, on: bool) {
        let bit = u64::from(Primary::NMI_WINDOW_EXITING.bits());
        let controls = read(Field::PrimaryControls) & !bit;
        write(
            Field::PrimaryControls,
            if on { controls | bit } else { controls },
        );
    }

    /// VM entries and exits switch all that a guest reaches.
    fn kept_msr(self, _register: u32) -> Option<u64> {
        None
    }

    fn set_kept_msr(self, _register: u32, _value: u64) -> Option<bool> {
        None
    }

    fn nested_root(self) -> HostPhysical {
        HostPhysical::new(read(Field::EptPointer) & ADDRESS_MASK)
    }

    fn flush(self) {
        invalidate_all();
    }

    fn flush_nested(self) {
        invalidate_ept();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virt::contract::tests::{Port, Processor};
    use crate::virt::vmx::Vmx;

    #[test]
    fn every_form_of_access_is_told_apart() {
        for control in [0u8, 3, 4, 8] {
            for register in 0..16u8 {
                let qualification = u64::from(control) | u64::from(register) << 8;
                let expected = ControlAccess::Write { control, register };
                assert_eq!(control_access(qualification), expected);
                assert_eq!(control_access(qualification | 1 << 4), ControlAccess::Read);
            }
        }
        assert_eq!(control_access(2 << 4), ControlAccess::ClearTaskSwitched);
        // From a register, and from memory.
        assert_eq!(
            control_access(3 << 4 | 0xabcd << 16),
            ControlAccess::LoadStatus(0xabcd)
        );
        assert_eq!(
            control_access(3 << 4 | 1 << 6 | 0x1234 << 16),
            ControlAccess::LoadStatus(0x1234)
        );
    }

    /// SDM, "Exit Qualification for I/O Instructions".
    impl Processor for Vmx {
        const LEVELS: core::ops::RangeInclusive<u32> = 4..=4;

        fn port_access(access: Port) -> PortQualification {
            let bits = [access.is_input, access.is_string, access.is_repeated];
            let flags = (3..)
                .zip(bits)
                .map(|(bit, is_set)| u64::from(is_set) << bit);
            let size = u64::from(access.size - 1);
            // The port is an operand, and not in DX: of no meaning.
            let immediate = u64::from(access.port < 256) << 6;
            let port = u64::from(access.port) << 16;
            PortQualification(port | size | immediate | flags.sum::<u64>())
        }
    }

    #[test]
    fn only_what_an_instruction_does_to_its_operand_is_data() {
        for bits in 0..1 << 9 {
            let access = nested_access(bits);
            assert_eq!(access.contains(NestedAccess::WRITE), bits & 2 != 0);
            assert_eq!(access.contains(NestedAccess::FETCH), bits & 4 != 0);
            assert_eq!(access.contains(NestedAccess::DATA), bits & 0x180 == 0x180);
        }
    }

    #[test]
    fn every_reason_has_a_meaning_and_failed_entries_have_no_other() {
        for basic in 0..=u16::MAX {
            let failed = exit(u32::from(basic) | EXIT_ENTRY_FAILURE, || unreachable!());
            match basic {
                41 => assert_eq!(failed, Exit::MachineCheck),
                _ => assert!(matches!(failed, Exit::NotEntered(_))),
            }
            let known = exit(basic.into(), || false) != Exit::Unknown;
            let expected = matches!(
                basic,
                0 | 2..=4 | 8 | 10 | 11 | 13 | 15 | 18..=28 | 30..=32 | 48 | 50 | 52..=55 | 59
                    | 76 | 77
            );
            assert_eq!(known, expected, "{basic}");
        }
        assert_eq!(exit(0, || true), Exit::Nmi);
        assert_eq!(exit(0, || false), Exit::Exception);
    }
}
