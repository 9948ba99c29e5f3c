//! Entering and leaving operation on one CPU, filling the control block, and changing what it says.

use core::sync::atomic::AtomicU32;

use gaol_abi::image::Vendor;
use gaol_abi::outcome::Reason;

use super::Svm;
use super::capabilities::{Features, SvmFeatures};
use super::control_block::{
    BROADCAST_INVALIDATION, Clean, EFER_SVME, Intercepts3, Intercepts4, NESTED_PAGING, Notes,
    VM_CR_REDIRECT_INIT, msr as svm_msr, writes_control_register,
};
use super::entry::{enter, nmi};
use super::guest::{Current, take};
use super::instructions::{block, interrupts_for_a_moment, stgi, vmsave};
use super::maps::{MsrPermissions, PortPermissions};
use crate::cpu::CpuShared;
use crate::cpu::window::Windows;
use crate::device::apic;
use crate::error::Failure;
use crate::memory::address::HostPhysical;
use crate::memory::page_table::Npt;
use crate::processor::descriptor::SegmentRegister;
use crate::processor::{self, cr0, cr4, fixup, msr, read_cr0, read_cr4, read_msr, write_msr};
use crate::virt::contract::{Confinement, EXITING_EXCEPTIONS, GuestState, Regions, Virtualization};
use crate::virt::entry::Frame;
use crate::virt::state::{PAT_RESET, State};

/// What exits of every guest. A shutdown is caught, so a machine check that finds CR4.MCE clear costs the guest its CPU and
/// nobody else the machine.
const ALWAYS3: Intercepts3 = Intercepts3::NMI
    .union(Intercepts3::INIT)
    .union(Intercepts3::CR0_SELECTIVE_WRITE)
    .union(Intercepts3::CPUID)
    .union(Intercepts3::INVD)
    .union(Intercepts3::INVLPGA)
    .union(Intercepts3::PORTS)
    .union(Intercepts3::MSRS)
    .union(Intercepts3::TASK_SWITCH)
    .union(Intercepts3::SHUTDOWN);

/// The same of the fourth vector: all of it that is known.
const ALWAYS4: Intercepts4 = Intercepts4::all();

/// The root's number of an address space; all cells have the next one, since a CPU has one cell at a time.
const ROOTS_ADDRESS_SPACE: u16 = 1;

/// CR0 as the processor has it: CD would make the guest's memory uncached.
const fn real_cr0(visible: u64) -> u64 {
    (visible & !(cr0::CD | cr0::NW)) | cr0::ET
}

/// Bytes of a control block.
const BLOCK_BYTES: u64 = 4096;

impl Virtualization for Svm {
    const VENDOR: Vendor = Vendor::Svm;
    const CONTROL_BLOCK_IS_MEMORY: bool = true;
    const WINDOW_BEHIND_EVENTS: bool = false;
    type Capabilities = Features;
    type Guest = Current;
    type NestedFormat = Npt;
    type MsrLayout = MsrPermissions;
    type PortLayout = PortPermissions;

    fn new(capabilities: Features, regions: Regions) -> Self {
        Self {
            control_block: regions.control_block,
            host: regions.host,
            vm_cr: 0,
            is_in_operation: false,
            features: capabilities,
        }
    }

    fn guest() -> Current {
        Current::new()
    }

    fn capabilities(&self) -> &Features {
        &self.features
    }

    fn check_unused(&self, _linux_cr4: u64, cpu: u32) -> Result<(), Failure> {
        if read_msr(msr::EFER) & EFER_SVME != 0 {
            return Err(Failure::hardware(Reason::VmxInUse, u64::from(cpu)));
        }
        Ok(())
    }

    fn enter_operation(&mut self, windows: &Windows, keep: bool, cpu: u32) -> Result<(), Failure> {
        self.check_unused(0, cpu)?;
        // SAFETY: the processor has SVM, and it is not switched off (both were looked at by `detect`); the frame is this CPU's
        // own, for the processor alone.
        unsafe {
            // The nested page tables take their memory types from the host's.
            write_msr(msr::PAT, PAT_RESET);
            write_msr(msr::EFER, read_msr(msr::EFER) | EFER_SVME);
            write_msr(svm_msr::HOST_SAVE, self.host.as_u64());
        }
        self.vm_cr = read_msr(svm_msr::VM_CR);
        // SAFETY: an INIT becomes an exception that the own handler drops; a processor that refuses goes without.
        let _ = unsafe { fixup::write_msr(svm_msr::VM_CR, self.vm_cr | VM_CR_REDIRECT_INIT) };
        if !keep {
            for offset in (0..BLOCK_BYTES).step_by(8) {
                let at = self.control_block.as_u64().wrapping_add(offset);
                windows.write_u64(HostPhysical::new(at), 0);
            }
            // Written back when operation is left, whether or not a guest was loaded.
            block().cr2.set(processor::read_cr2());
            block().dr6.set(processor::read_dr6());
        }
        self.is_in_operation = true;
        Ok(())
    }

    fn leave_operation(&mut self) {
        let efer = read_msr(msr::EFER) & !EFER_SVME;
        // SAFETY: the CPU is in operation with its own tables loaded; CR2 and DR6 are the guest's, who goes on without us.
        unsafe {
            stgi();
            processor::write_cr2(block().cr2.get());
            processor::write_dr6(block().dr6.get());
            let _ = fixup::write_msr(svm_msr::VM_CR, self.vm_cr);
            write_msr(svm_msr::HOST_SAVE, 0);
            write_msr(msr::EFER, efer);
        }
        self.is_in_operation = false;
    }

    fn is_in_operation(&self) -> bool {
        self.is_in_operation
    }

    fn fill_host(&mut self, _cr3: u64) {
        // VMRUN saves the host as it is.
        let block = block();
        let features = &self.features;
        let control_registers = if features.watches_cr4 {
            writes_control_register(4)
        } else {
            0
        };
        block.control_registers.set(control_registers);
        block.exceptions.set(EXITING_EXCEPTIONS);
        block.intercepts3.set(ALWAYS3.bits());
        block.intercepts4.set(ALWAYS4.bits());
        block.own.flush.set(features.flush);
        block.own.allowed_efer.set(features.allowed_efer);
        block.note(
            Notes::NEXT_RIP,
            features.svm.contains(SvmFeatures::NEXT_RIP),
        );
        block.note(
            Notes::DECODES,
            features.svm.contains(SvmFeatures::DECODE_ASSISTS),
        );
        block.clean.set(0);
    }

    fn host_registers(&self) -> [u64; 3] {
        [read_cr0(), read_cr4(), read_msr(msr::EFER)]
    }

    fn confine(&mut self, confinement: &Confinement) {
        let block = block();
        let is_root = confinement.address_space == ROOTS_ADDRESS_SPACE;
        let broadcasts = self.features.broadcasts && is_root;
        let more = if broadcasts {
            BROADCAST_INVALIDATION
        } else {
            0
        };
        block.nested_root.set(confinement.nested_root.as_u64());
        block.msr_map.set(confinement.msrs.as_u64());
        block.port_map.set(confinement.ports.as_u64());
        block.nested_control.set(NESTED_PAGING | more);
        block.asid.set(if is_root { 1 } else { 2 });
        block.clean.set(0);
        block.flush();
    }

    fn set_counter_reads(&mut self, pass: bool) {
        block().intercept(Intercepts3::RDPMC, !pass);
    }

    fn load(&mut self, state: &State) {
        let block = block();
        // What SYSCALL and SWAPGS use is in the registers: Linux' at the launch, and after that what was cleared or is the
        // guest's own, which an INIT leaves alone.
        // SAFETY: in operation; the frame is this CPU's control block.
        unsafe { vmsave(self.control_block) };
        for register in SegmentRegister::ALL {
            block.segment(register).set(&state.segment(register));
        }
        let privilege = state.segment(SegmentRegister::Ss).access_rights >> 5 & 3;
        block.privilege_level.set(privilege as u8);
        block.gdtr.set_table(state.gdtr.base, state.gdtr.limit);
        block.idtr.set_table(state.idtr.base, state.idtr.limit);
        for (register, value) in block.sysenter.iter().zip(state.sysenter) {
            register.set(value);
        }
        block.cr2.set(processor::read_cr2());
        block.cr3.set(state.cr3);
        block.dr6.set(processor::read_dr6());
        block.dr7.set(state.dr7);
        block.pat.set(state.pat);
        block.rsp.set(state.rsp);
        block.rip.set(state.rip);
        block.rflags.set(state.rflags);
        block.event.set(0);
        block.interrupt_shadow.set(0);
        block.note(Notes::OF_THE_GUEST, false);
        block.note(Notes::PARKED, state.is_parked);
        block.intercept(Intercepts3::IRET, false);
        self.set_cr0(state.cr0);
        self.set_cr4(state.cr4);
        Self::guest().set_efer(state.efer);
        Self::guest().set_debugctl(state.debugctl);
        block.clean.set(0);
    }

    fn save(&self) -> State {
        let (guest, block) = (Self::guest(), block());
        let [cs, esp, eip] = &block.sysenter;
        State {
            segments: SegmentRegister::ALL.map(|register| guest.segment(register)),
            gdtr: guest.gdtr(),
            idtr: guest.idtr(),
            cr0: guest.visible_cr0(),
            cr3: guest.cr3(),
            cr4: guest.visible_cr4(),
            efer: guest.efer(),
            pat: block.pat.get(),
            debugctl: guest.debugctl(),
            dr7: block.dr7.get(),
            sysenter: [cs.get(), esp.get(), eip.get()],
            rip: guest.rip(),
            rsp: guest.rsp(),
            rflags: guest.rflags(),
            is_parked: block.has(Notes::PARKED),
        }
    }

    fn set_cr0(&mut self, visible: u64) {
        block().cr0.set(real_cr0(visible));
        block().changed(Clean::CONTROL_REGISTERS);
    }

    fn set_cr4(&mut self, visible: u64) {
        block().cr4.set(visible);
        block().changed(Clean::CONTROL_REGISTERS);
    }

    /// The processor reads them from the guest's memory.
    fn set_pdptes(&mut self, _entries: [u64; 4]) {}

    fn take_nmi(&mut self, _count: &AtomicU32) {
        // The handler counts.
        take();
    }

    /// An NMI to this CPU waits, while the global interrupt flag is 0, until the guest is entered and what is to be injected was
    /// delivered.
    fn exit_soon(&mut self, shared: &CpuShared) {
        if shared.kick_self() {
            apic::send_nmi_to_self();
        }
    }

    /// The exit is one by an NMI.
    fn exited_soon(&mut self) {}

    /// Nested page tables have as many levels as the host's.
    fn nested_levels() -> u32 {
        if read_cr4() & cr4::LA57 == 0 { 4 } else { 5 }
    }

    unsafe fn take_interrupts() {
        // SAFETY: the caller's promise.
        unsafe { interrupts_for_a_moment() }
    }

    fn next_entry(&mut self) -> u32 {
        u32::from(block().has(Notes::PARKED))
    }

    unsafe fn enter(frame: *const Frame, entry: u32) -> ! {
        // SAFETY: the caller's promise.
        unsafe { enter(frame, entry) }
    }

    fn nmi_handler() -> u64 {
        nmi as *const () as u64
    }
}
