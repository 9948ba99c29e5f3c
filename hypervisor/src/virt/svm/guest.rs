//! What this CPU's control block says of the guest.
//!
//! Invariants: what the processor may have cached of the block is marked when it changes ([`Clean`]); a guest never sees
//! EFER.SVME, and has it set; CR0.CD and CR0.NW are clear, since set they would make a guest's memory uncached.
//!
//! NMIs are held back by the hypervisor, as the processor knows no such blocking for one that is injected: from the delivery
//! on until the handler's IRET, which exits, was carried out. Where a guest must do one instruction before it can take an NMI,
//! the trap flag is set for it.

use super::codes::{self, ExitCode, Port};
use super::control_block::{
    BlockSegment, Clean, ControlBlock, EFER_SVME, INTERRUPT_SHADOW, Intercepts3, Notes, event,
};
use super::instructions::{block, take_pending};
use super::registers;
use crate::guest::vectoring::{self, Event, Exception, Kind};
use crate::memory::address::HostPhysical;
use crate::processor::descriptor::{Segment, SegmentRegister};
use crate::processor::{cr0, fixup, msr};
use crate::virt::contract::{
    ControlAccess, Exit, GuestState, NestedAccess, NestedFault, PortAccess, Trapped,
};
use crate::virt::state::Table;

/// Stands for this CPU's control block.
#[derive(Clone, Copy, Debug)]
pub struct Current(());

impl Current {
    /// The control block of this CPU.
    #[must_use]
    pub(super) const fn new() -> Self {
        Self(())
    }
}

/// Attributes of CS: 64-bit code.
const CODE_LONG: u16 = 1 << 9;
/// Attributes of CS: 32-bit default size.
const CODE_32_BIT: u16 = 1 << 10;
/// DR6: single step.
const STEP_STATUS: u64 = 1 << 14;
/// DR6: breakpoints that were met.
const BREAKPOINTS: u64 = 0xf;
/// DR7: general detect.
const GENERAL_DETECT: u64 = 1 << 13;
/// #DB.
const DEBUG: Exception = Exception {
    vector: 1,
    error_code: None,
};

impl ControlBlock {
    /// The part has changed: the processor reads it at the next VMRUN.
    #[inline]
    pub(super) fn changed(&self, part: Clean) {
        self.clean.set(self.clean.get() & !part.bits());
    }

    fn notes(&self) -> Notes {
        Notes::from_bits_retain(self.own.notes.get())
    }

    #[inline]
    pub(super) fn has(&self, notes: Notes) -> bool {
        self.own.notes.get() & notes.bits() != 0
    }

    pub(super) fn note(&self, notes: Notes, on: bool) {
        let mut all = self.notes();
        all.set(notes, on);
        self.own.notes.set(all.bits());
    }

    /// The exit code. Only its low half counts.
    #[inline(always)]
    pub(super) fn code(&self) -> ExitCode {
        ExitCode(self.exit_code.get() as u32)
    }

    pub(super) fn intercept(&self, what: Intercepts3, on: bool) {
        let mut all = Intercepts3::from_bits_retain(self.intercepts3.get());
        all.set(what, on);
        self.intercepts3.set(all.bits());
        self.changed(Clean::INTERCEPTS);
    }

    pub(super) fn segment(&self, register: SegmentRegister) -> &BlockSegment {
        let [es, cs, ss, ds, fs, gs] = &self.segments;
        match register {
            SegmentRegister::Es => es,
            SegmentRegister::Cs => cs,
            SegmentRegister::Ss => ss,
            SegmentRegister::Ds => ds,
            SegmentRegister::Fs => fs,
            SegmentRegister::Gs => gs,
            SegmentRegister::Ldtr => &self.ldtr,
            SegmentRegister::Tr => &self.tr,
        }
    }

    fn is_at_iret(&self) -> bool {
        self.has(Notes::AT_IRET) && self.rip.get() == self.own.iret.get()
    }

    /// Has the guest do one instruction and exit.
    fn step(&self) {
        let flags = self.rflags.get();
        self.note(Notes::OWN_TRAP_FLAG, flags & vectoring::TRAP_FLAG != 0);
        self.note(Notes::OWN_STEP_STATUS, self.dr6.get() & STEP_STATUS != 0);
        self.note(Notes::STEPPING, true);
        self.rflags.set(flags | vectoring::TRAP_FLAG);
    }

    /// Takes back what [`Self::step`] has set.
    fn end_step(&self) {
        if !self.has(Notes::OWN_TRAP_FLAG) {
            self.rflags.set(self.rflags.get() & !vectoring::TRAP_FLAG);
        }
        self.note(Notes::STEPPING, false);
    }

    /// What an exit that is not served at the first look has ended: a step, a handler of an NMI.
    pub(super) fn settle(&self) {
        if self.has(Notes::STEPPING) {
            self.end_step();
            let status = self.dr6.get();
            if self.code() == ExitCode::ExceptionDebug && status & STEP_STATUS != 0 {
                if !self.has(Notes::OWN_STEP_STATUS) {
                    self.dr6.set(status & !STEP_STATUS);
                    self.changed(Clean::DEBUG_REGISTERS);
                }
                // What the guest's own trap flag and breakpoints mean it shall have.
                let is_own = self.has(Notes::OWN_TRAP_FLAG) || status & BREAKPOINTS != 0;
                self.note(Notes::STEPPED, !is_own);
            }
        }
        if self.code() == ExitCode::Iret {
            self.intercept(Intercepts3::IRET, false);
            self.note(Notes::NMI_MASKED, false);
            self.own.iret.set(self.rip.get());
            self.note(Notes::AT_IRET, true);
        } else if !self.is_at_iret() {
            self.note(Notes::AT_IRET, false);
        }
    }

    fn exit(&self) -> Exit {
        match self.code() {
            ExitCode::Nmi => Exit::Nmi,
            ExitCode::ExceptionDebug if self.has(Notes::STEPPED) => Exit::NmiWindow,
            ExitCode::ExceptionDebug | ExitCode::ExceptionAlignment => Exit::Exception,
            ExitCode::Iret => Exit::NmiWindow,
            ExitCode::Cpuid => Exit::Cpuid,
            ExitCode::Vmmcall => Exit::Hypercall,
            ExitCode::Port => Exit::Port,
            ExitCode::Msr if self.exit_info1.get() & 1 != 0 => Exit::WriteMsr,
            ExitCode::Msr => Exit::ReadMsr,
            ExitCode::NestedPageFault => Exit::NestedFault,
            ExitCode(0x00..=0x1f) | ExitCode::Cr0SelectiveWrite => Exit::ControlRegister,
            ExitCode::Wbinvd | ExitCode::Invd => Exit::CacheFlush,
            ExitCode::Xsetbv => Exit::Xsetbv,
            ExitCode::Rdpmc => Exit::ReadCounter,
            ExitCode::Vmrun
            | ExitCode::Vmload
            | ExitCode::Vmsave
            | ExitCode::Stgi
            | ExitCode::Clgi
            | ExitCode::Skinit
            | ExitCode::Invlpga => Exit::NoSuchInstruction,
            ExitCode::Init => Exit::Init,
            ExitCode::Shutdown => Exit::TripleFault,
            ExitCode::Invalid => Exit::NotEntered(ExitCode::Invalid.0),
            _ => Exit::Unknown,
        }
    }

    /// What is told of an exit besides its reason, in the form of VMX' exit qualification, which records have.
    fn exit_detail(&self) -> u64 {
        let (info1, info2) = (self.exit_info1.get(), self.exit_info2.get());
        match self.exit() {
            Exit::NestedFault => {
                let access = codes::nested_fault(info1, info2).access;
                let write = access.contains(NestedAccess::WRITE);
                let fetch = access.contains(NestedAccess::FETCH);
                u64::from(!write && !fetch) | u64::from(write) << 1 | u64::from(fetch) << 2
            }
            Exit::Port => {
                let access = Port(info1);
                u64::from(access.size().saturating_sub(1))
                    | u64::from(access.is_input()) << 3
                    | u64::from(access.is_string()) << 4
                    | u64::from(access.port()) << 16
            }
            Exit::ControlRegister => match self.code() {
                ExitCode::Cr0SelectiveWrite => 0,
                ExitCode(code) => u64::from(code & 0xf),
            },
            Exit::Unknown => u64::from(self.code().0),
            _ => info1,
        }
    }

    /// Where the instruction behind one of those with a known length is.
    #[inline(always)]
    fn behind(&self, past: Trapped) -> u64 {
        match past {
            Trapped::Port => self.exit_info2.get(),
            _ if self.has(Notes::NEXT_RIP) => self.next_rip.get(),
            Trapped::Cpuid | Trapped::Msr => self.rip.get().wrapping_add(2),
            Trapped::Hypercall | Trapped::Xsetbv => self.rip.get().wrapping_add(3),
        }
    }

    fn instruction_length(&self) -> Option<u64> {
        let next = match self.code() {
            ExitCode::Port => self.exit_info2.get(),
            // Not told of a page fault, whose instruction may not have been fetched yet.
            ExitCode::NestedPageFault => return None,
            _ if self.has(Notes::NEXT_RIP) => self.next_rip.get(),
            _ => return None,
        };
        let length = next.wrapping_sub(self.rip.get()) & 0xffff_ffff;
        (1..=15).contains(&length).then_some(length)
    }

    fn take_exception(&self) -> Option<Event> {
        let error_code = match self.code() {
            ExitCode::ExceptionAlignment => Some(self.exit_info1.get() as u32),
            _ => {
                // The delivery would have cleared it.
                self.dr7.set(self.dr7.get() & !GENERAL_DETECT);
                self.changed(Clean::DEBUG_REGISTERS);
                None
            }
        };
        let vector = (self.code().0 & 0x1f) as u8;
        Some(Exception { vector, error_code }.into())
    }

    fn inject(&self, event: &Event) {
        let Some(value) = codes::injection(event, self.cr0.get() & cr0::PE != 0) else {
            return;
        };
        self.event.set(value);
        self.interrupt_shadow.set(0);
        if event.kind == Kind::Nmi {
            self.note(Notes::NMI_MASKED, true);
            self.note(Notes::AT_IRET, false);
            self.intercept(Intercepts3::IRET, true);
        }
    }

    /// Drops translations of the guest at the next VMRUN.
    pub(super) fn flush(&self) {
        self.tlb_control.set(self.own.flush.get());
    }
}

/// Takes what waits. Called behind exits, where the CPU's own tables are loaded.
pub(super) fn take() {
    // SAFETY: a guest has exited, so the CPU is in operation; what is not served at the first look finds the own tables.
    unsafe { take_pending() };
}

impl GuestState for Current {
    type PortAccess = Port;

    #[inline(always)]
    fn rip(self) -> u64 {
        block().rip.get()
    }

    #[inline(always)]
    fn set_rip(self, value: u64) {
        block().rip.set(value);
    }

    #[inline(always)]
    fn rsp(self) -> u64 {
        block().rsp.get()
    }

    #[inline(always)]
    fn set_rsp(self, value: u64) {
        block().rsp.set(value);
    }

    #[inline(always)]
    fn rflags(self) -> u64 {
        block().rflags.get()
    }

    #[inline(always)]
    fn set_rflags(self, value: u64) {
        block().rflags.set(value);
    }

    #[inline(always)]
    fn cr0(self) -> u64 {
        block().cr0.get()
    }

    fn visible_cr0(self) -> u64 {
        self.cr0()
    }

    #[inline(always)]
    fn cr3(self) -> u64 {
        block().cr3.get()
    }

    #[inline(always)]
    fn cr4(self) -> u64 {
        block().cr4.get()
    }

    fn visible_cr4(self) -> u64 {
        self.cr4()
    }

    #[inline(always)]
    fn efer(self) -> u64 {
        block().efer.get() & !EFER_SVME
    }

    fn set_efer(self, value: u64) {
        block().efer.set(value | EFER_SVME);
        block().changed(Clean::CONTROL_REGISTERS);
    }

    /// Neither VMRUN nor exits change it.
    fn debugctl(self) -> u64 {
        fixup::read_msr(msr::DEBUGCTL).unwrap_or(0)
    }

    fn set_debugctl(self, value: u64) {
        // SAFETY: the guest's own; the hypervisor has no trap flag set and makes no use of records of branches.
        let _ = unsafe { fixup::write_msr(msr::DEBUGCTL, value) };
    }

    fn segment(self, register: SegmentRegister) -> Segment {
        block().segment(register).get()
    }

    fn segment_base(self, register: SegmentRegister) -> u64 {
        block().segment(register).base()
    }

    fn gdtr(self) -> Table {
        Table {
            base: block().gdtr.base(),
            limit: block().gdtr.limit(),
        }
    }

    fn idtr(self) -> Table {
        Table {
            base: block().idtr.base(),
            limit: block().idtr.limit(),
        }
    }

    #[inline(always)]
    fn is_code_long(self) -> bool {
        block().segment(SegmentRegister::Cs).attributes() & CODE_LONG != 0
    }

    #[inline(always)]
    fn is_code_32_bit(self) -> bool {
        block().segment(SegmentRegister::Cs).attributes() & CODE_32_BIT != 0
    }

    #[inline(always)]
    fn privilege_level(self) -> u8 {
        block().privilege_level.get()
    }

    fn exit(self) -> Exit {
        block().exit()
    }

    fn exit_number(self) -> u32 {
        codes::counter(block().code().0, block().exit_info1.get()) as u32
    }

    fn exit_detail(self) -> u64 {
        block().exit_detail()
    }

    #[inline(always)]
    fn nested_fault(self) -> NestedFault {
        codes::nested_fault(block().exit_info1.get(), block().exit_info2.get())
    }

    #[inline(always)]
    fn port_access(self) -> Port {
        Port(block().exit_info1.get())
    }

    fn control_access(self) -> Option<ControlAccess> {
        let decodes = block().has(Notes::DECODES);
        codes::control_access(block().code().0, block().exit_info1.get(), decodes)
    }

    fn take_exception(self) -> Option<Event> {
        block().take_exception()
    }

    fn instruction_length(self) -> Option<u64> {
        block().instruction_length()
    }

    #[inline(always)]
    fn advance(self, past: Trapped) {
        block().rip.set(block().behind(past));
    }

    #[inline(never)]
    fn end_instruction(self) {
        let block = block();
        block.interrupt_shadow.set(0);
        if block.has(Notes::STEPPING) {
            block.end_step();
        }
        let flags = block.rflags.get() & !vectoring::RESUME_FLAG;
        block.rflags.set(flags);
        // The processor keeps no exception pending behind an exit: it is injected.
        if flags & vectoring::TRAP_FLAG != 0
            && vectoring::pending_behind_instruction(0, flags, self.debugctl()) != 0
        {
            block.dr6.set(block.dr6.get() | STEP_STATUS);
            block.changed(Clean::DEBUG_REGISTERS);
            block.inject(&DEBUG.into());
        }
    }

    fn interrupted_event(self) -> Option<Event> {
        match block().code() {
            ExitCode::Invalid => None,
            _ => codes::interrupted(block().exit_event.get()),
        }
    }

    fn is_delivering(self) -> bool {
        block().exit_event.get() & event::VALID != 0
    }

    #[inline(never)]
    fn inject(self, event: &Event) {
        block().inject(event);
    }

    fn is_occupied(self) -> bool {
        block().event.get() & event::VALID != 0
    }

    fn blocks_nmis(self) -> bool {
        let block = block();
        block.has(Notes::NMI_MASKED)
            || block.is_at_iret()
            || block.interrupt_shadow.get() & INTERRUPT_SHADOW != 0
    }

    fn set_nmi_window(self, on: bool) {
        let block = block();
        block.note(Notes::STEPPED, false);
        if block.has(Notes::STEPPING) {
            block.end_step();
        }
        if !on {
            return;
        }
        if !block.has(Notes::NMI_MASKED) {
            // The handler's IRET, or the instruction behind STI or MOV SS. Where a handler runs its IRET exits.
            block.step();
        }
    }

    fn kept_msr(self, register: u32) -> Option<u64> {
        match register {
            msr::EFER => Some(self.efer()),
            msr::PAT => Some(block().pat.get()),
            _ => None,
        }
    }

    fn set_kept_msr(self, register: u32, value: u64) -> Option<bool> {
        let block = block();
        match register {
            msr::EFER => {
                let now = registers::Extended {
                    efer: self.efer(),
                    paging: self.cr0() & cr0::PG != 0,
                    allowed: block.own.allowed_efer.get(),
                };
                let taken = now.written(value);
                if let Some(value) = taken {
                    self.set_efer(value);
                    block.flush();
                }
                Some(taken.is_some())
            }
            msr::PAT => {
                let is_legal = registers::is_legal_pat(value);
                if is_legal {
                    block.pat.set(value);
                    block.changed(Clean::NESTED_PAGING);
                    block.flush();
                }
                Some(is_legal)
            }
            _ => None,
        }
    }

    fn nested_root(self) -> HostPhysical {
        HostPhysical::new(block().nested_root.get())
    }

    fn flush(self) {
        block().flush();
    }

    fn flush_nested(self) {
        block().flush();
    }
}
