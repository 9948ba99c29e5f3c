//! What the hypervisor asks of a virtualization extension.
//!
//! [`Virtualization`] is one CPU's use of it: entering and leaving operation, confining a guest, loading and saving its
//! state. [`GuestState`] is what the current control block says of the guest; it is handed around by value, since it only
//! stands for the block that this CPU has loaded. [`Capabilities`] is what a processor offers.
//!
//! A vendor's code decodes and does; what is to be done is decided in code that both share: the frequent exits go from the
//! vendor's first look straight to the handlers in [`crate::guest`] and [`crate::hypercall`], all others through
//! [`GuestState::exit`] to [`super::exit`].
//!
//! Nothing here can fail at run time but entering operation. What a guest has made illegal is told at the next entry, as
//! [`Exit::NotEntered`].

use core::fmt::Debug;
use core::sync::atomic::AtomicU32;

use bitflags::bitflags;
use gaol_abi::image::Vendor;

use super::entry::Frame;
use super::state::{State, Table};
use crate::cpu::CpuShared;
use crate::cpu::window::Windows;
use crate::error::Failure;
use crate::guest::bitmaps::{MsrLayout, PortLayout};
use crate::guest::vectoring::Event;
use crate::memory::address::{GuestPhysical, HostPhysical};
use crate::memory::page_table::Format;
use crate::processor::descriptor::{Segment, SegmentRegister};
use crate::processor::efer;

/// Why a guest left, in the words of both vendors. What belongs to a reason is asked for separately.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// An NMI hit the guest: [`Virtualization::take_nmi`].
    Nmi,
    /// #DB or #AC, which the guest shall have: [`GuestState::take_exception`].
    Exception,
    /// The exit that [`Virtualization::exit_soon`] has asked for: [`Virtualization::exited_soon`].
    Asked,
    /// The guest can take an NMI: [`GuestState::set_nmi_window`].
    NmiWindow,
    /// CPUID.
    Cpuid,
    /// VMCALL or VMMCALL.
    Hypercall,
    /// IN, OUT, INS or OUTS: [`GuestState::port_access`].
    Port,
    /// RDMSR.
    ReadMsr,
    /// WRMSR.
    WriteMsr,
    /// The nested page table does not allow an access: [`GuestState::nested_fault`].
    NestedFault,
    /// A write to CR0 or CR4, CLTS or LMSW: [`GuestState::control_access`].
    ControlRegister,
    /// WBINVD or INVD.
    CacheFlush,
    /// XSETBV.
    Xsetbv,
    /// RDPMC.
    ReadCounter,
    /// An instruction of a virtualization extension, or another that a guest's processor does not have.
    NoSuchInstruction,
    /// INIT or a startup IPI of the hardware.
    Init,
    /// The guest's processor shuts down.
    TripleFault,
    /// A machine check came as the guest was being entered.
    MachineCheck,
    /// The processor does not enter the guest's state; a number of the vendor's that says more.
    NotEntered(u32),
    /// Nothing that any guest should be able to bring about.
    Unknown,
}

/// Exceptions that exit as [`Exit::Exception`], bit n for vector n. #DB and #AC: a guest whose handler of one raises the same
/// again would never reach an instruction boundary, so that no NMI could stop it (CVE-2015-5307, CVE-2015-8104).
pub const EXITING_EXCEPTIONS: u32 = (1 << 1) | (1 << 17);

/// Instructions whose exits are served at the first look. Their length is known without a look at the bytes, but for
/// prefixes that do nothing, which a processor without NRIP save does not report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trapped {
    /// CPUID.
    Cpuid,
    /// VMCALL or VMMCALL.
    Hypercall,
    /// IN or OUT.
    Port,
    /// RDMSR or WRMSR.
    Msr,
    /// XSETBV.
    Xsetbv,
}

/// An access that the nested page table does not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NestedFault {
    /// The guest-physical address.
    pub address: u64,
    /// What kind of access it was.
    pub access: NestedAccess,
}

bitflags! {
    /// What a guest did where the nested page table did not allow it.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct NestedAccess: u8 {
        /// It wrote, or both read and wrote.
        const WRITE = 1;
        /// It fetched an instruction.
        const FETCH = 2;
        /// The access was an instruction's own, to the translation of a linear address, and not the processor's to a
        /// paging structure.
        const DATA = 4;
    }
}

impl NestedFault {
    /// Whether it was a write.
    #[inline(always)]
    #[must_use]
    pub const fn is_write(&self) -> bool {
        self.access.contains(NestedAccess::WRITE)
    }

    /// Whether it was a fetch.
    #[must_use]
    pub const fn is_fetch(&self) -> bool {
        self.access.contains(NestedAccess::FETCH)
    }

    /// Whether it was an instruction's access to data.
    #[must_use]
    pub const fn is_data(&self) -> bool {
        self.access.contains(NestedAccess::DATA) && !self.is_fetch()
    }
}

/// What the processor tells of an IN or OUT that left the guest.
pub trait PortAccess: Copy + Debug {
    /// The first port.
    fn port(self) -> u16;
    /// Number of ports: 1, 2 or 4.
    fn size(self) -> u32;
    /// IN or INS.
    fn is_input(self) -> bool;
    /// INS or OUTS.
    fn is_string(self) -> bool;
    /// Whether it is a plain access to the four ports from `port` on: one comparison.
    fn is_plain_double_word(self, port: u16) -> bool;
}

/// What a guest wants of a control register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlAccess {
    /// MOV to this control register from this general register.
    Write {
        /// The control register.
        control: u8,
        /// The general register.
        register: u8,
    },
    /// CLTS.
    ClearTaskSwitched,
    /// LMSW with this operand, from a register or from memory.
    LoadStatus(u16),
    /// MOV from a control register.
    Read,
}

/// What this CPU's current control block says of its guest.
///
/// All of it is only called between an exit and the next entry, or while the block is being filled.
pub trait GuestState: Copy + Debug {
    /// What is told of an IN or OUT.
    type PortAccess: PortAccess;

    /// RIP.
    fn rip(self) -> u64;
    /// Sets RIP.
    fn set_rip(self, value: u64);
    /// RSP.
    fn rsp(self) -> u64;
    /// Sets RSP.
    fn set_rsp(self, value: u64);
    /// RFLAGS.
    fn rflags(self) -> u64;
    /// Sets RFLAGS.
    fn set_rflags(self, value: u64);
    /// CR0 as the processor has it.
    fn cr0(self) -> u64;
    /// CR0 as the guest reads it.
    fn visible_cr0(self) -> u64;
    /// CR3.
    fn cr3(self) -> u64;
    /// CR4 as the processor has it.
    fn cr4(self) -> u64;
    /// CR4 as the guest reads it.
    fn visible_cr4(self) -> u64;
    /// IA32_EFER as the guest reads it.
    fn efer(self) -> u64;
    /// Sets IA32_EFER, and whether the guest is in IA-32e mode, which is its LMA.
    fn set_efer(self, value: u64);
    /// IA32_DEBUGCTL.
    fn debugctl(self) -> u64;
    /// Sets IA32_DEBUGCTL.
    fn set_debugctl(self, value: u64);
    /// A segment register in full.
    fn segment(self, register: SegmentRegister) -> Segment;
    /// Where a segment begins.
    fn segment_base(self, register: SegmentRegister) -> u64;
    /// GDTR.
    fn gdtr(self) -> Table;
    /// IDTR.
    fn idtr(self) -> Table;
    /// CS.L.
    fn is_code_long(self) -> bool;
    /// CS.D.
    fn is_code_32_bit(self) -> bool;
    /// The current privilege level.
    fn privilege_level(self) -> u8;

    /// Whether the guest is in IA-32e mode.
    #[inline(always)]
    fn is_long_mode(self) -> bool {
        self.efer() & efer::LMA != 0
    }

    /// Whether the guest runs 64-bit code.
    #[inline(always)]
    fn is_64_bit(self) -> bool {
        self.is_code_long() && self.is_long_mode()
    }

    /// Why the guest left.
    fn exit(self) -> Exit;
    /// The counter that counts such exits: [`gaol_abi::exit`]. For records.
    fn exit_number(self) -> u32;
    /// What the processor tells besides, in the vendor's format. For records.
    fn exit_detail(self) -> u64;
    /// Of [`Exit::NestedFault`].
    fn nested_fault(self) -> NestedFault;
    /// Of [`Exit::Port`].
    fn port_access(self) -> Self::PortAccess;
    /// Of [`Exit::ControlRegister`]. `None`: the processor does not tell, the instruction has to be decoded.
    fn control_access(self) -> Option<ControlAccess>;
    /// Of [`Exit::Exception`]: the exception, with DR6, DR7 and IA32_DEBUGCTL as its delivery leaves them. `None`: it
    /// needs none.
    fn take_exception(self) -> Option<Event>;
    /// Bytes of the instruction that left. `None`: the processor does not tell, the instruction has to be decoded.
    fn instruction_length(self) -> Option<u64>;
    /// Moves the guest behind an instruction whose exit is served at the first look.
    ///
    /// Where the pointer would wrap around outside 64-bit mode it need not: entry refuses it, and the pointer is mended
    /// then, which costs the frequent exits nothing.
    fn advance(self, past: Trapped);

    /// Ends what ends with an instruction that was done for the guest: the blocking by the one before, the flag that
    /// resumes behind a breakpoint, and a single step.
    fn end_instruction(self);
    /// The event whose delivery the exit interrupted. Also puts back what an IRET has undone that will be done again.
    /// Called once for each exit that was not served at the first look.
    fn interrupted_event(self) -> Option<Event>;
    /// Whether the exit interrupted the delivery of an event: then no instruction has led to it.
    fn is_delivering(self) -> bool;
    /// Delivers an event at the next entry. In real mode no error code is pushed.
    fn inject(self, event: &Event);
    /// Whether an event will be delivered at the next entry.
    fn is_occupied(self) -> bool;
    /// Whether an NMI can't be taken at the next entry.
    fn blocks_nmis(self) -> bool;
    /// Whether the guest exits with [`Exit::NmiWindow`] as soon as it can take an NMI. Behind an event that is delivered
    /// first where [`Virtualization::WINDOW_BEHIND_EVENTS`] says so.
    fn set_nmi_window(self, on: bool);

    /// What a register holds that is kept in the control block and that the guest reaches by exits only
    /// ([`MsrLayout::KEPT`]). `None`: not such a register.
    fn kept_msr(self, register: u32) -> Option<u64>;
    /// Writes such a register. `Some(false)`: the processor would raise #GP.
    fn set_kept_msr(self, register: u32, value: u64) -> Option<bool>;

    /// Root of the nested page table.
    fn nested_root(self) -> HostPhysical;
    /// Drops all translations of this CPU's guest, its own and the nested ones.
    fn flush(self);
    /// Drops the nested translations of this CPU's guest.
    fn flush_nested(self);
}

/// What a guest is confined to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Confinement {
    /// Root of the nested page table.
    pub nested_root: HostPhysical,
    /// The MSR map.
    pub msrs: HostPhysical,
    /// The port map.
    pub ports: HostPhysical,
    /// Number of the guest's address space for the processor's caches of translations, not 0.
    pub address_space: u16,
}

/// What a processor offers.
pub trait Capabilities: Copy + Debug {
    /// Reads CPUID (by leaf and subleaf) and capability MSRs.
    ///
    /// # Errors
    /// The hardware is at fault, and the detail says where: something that is needed is missing.
    fn detect(
        cpuid: impl FnMut(u32, u32) -> [u32; 4],
        msr: impl FnMut(u32) -> u64,
    ) -> Result<Self, Failure>;
    /// Nested page tables can map 1 GiB pages.
    fn maps_1g(&self) -> bool;
    /// Bits of CR4 that may be 1 in a guest.
    fn allowed_cr4(&self) -> u64;
}

/// Frames that belong to one CPU's use of the extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Regions {
    /// The processor's own: VMXON region, or the area where it saves the host.
    pub host: HostPhysical,
    /// The control block: VMCS or VMCB.
    pub control_block: HostPhysical,
}

/// One CPU's use of the extension.
pub trait Virtualization: Debug + Sized {
    /// Whose it is.
    const VENDOR: Vendor;
    /// The control block is read and written as memory: it is mapped at [`crate::cpu::private::CONTROL_BLOCK`].
    const CONTROL_BLOCK_IS_MEMORY: bool;
    /// [`GuestState::set_nmi_window`] counts behind an event, too, that is delivered first. Where it does not, an exit is asked
    /// for ([`Self::exit_soon`]).
    const WINDOW_BEHIND_EVENTS: bool;

    /// What a processor offers.
    type Capabilities: Capabilities;
    /// What the current control block says of the guest.
    type Guest: GuestState;
    /// Entries of nested page tables.
    type NestedFormat: Format<Input = GuestPhysical>;
    /// Where an MSR's bits are.
    type MsrLayout: MsrLayout;
    /// Where a port's bit is.
    type PortLayout: PortLayout;

    /// The use of a CPU that has not entered operation.
    fn new(capabilities: Self::Capabilities, regions: Regions) -> Self;
    /// What the current control block says of the guest. For code of a CPU in operation only.
    fn guest() -> Self::Guest;
    /// What the processor offers.
    fn capabilities(&self) -> &Self::Capabilities;
    /// Whether anybody else uses the extension. Linux' CR4 is `linux_cr4`; `cpu` is for the message.
    ///
    /// # Errors
    /// The hardware is at fault: somebody does.
    fn check_unused(&self, linux_cr4: u64, cpu: u32) -> Result<(), Failure>;
    /// Enters operation, with a fresh control block, or the old one with all that it said when that was left
    /// (`keep`). `cpu` is for the message.
    ///
    /// # Errors
    /// The hardware is at fault: it refuses. The CPU is outside of operation then.
    fn enter_operation(&mut self, windows: &Windows, keep: bool, cpu: u32) -> Result<(), Failure>;
    /// Leaves operation. Whatever of the guest is needed was read before.
    fn leave_operation(&mut self);
    /// Whether the CPU is in operation.
    fn is_in_operation(&self) -> bool;

    /// Writes what stays as it is for as long as the CPU is under the hypervisor: what exits, and the host's state, with
    /// this CR3.
    fn fill_host(&mut self, cr3: u64);
    /// CR0, CR4 and EFER that the hypervisor runs with behind an exit.
    fn host_registers(&self) -> [u64; 3];
    /// Confines the CPU's guest, and drops all translations.
    fn confine(&mut self, confinement: &Confinement);
    /// Lets RDPMC pass, as the root's, or exit. No event of the CPU may wait for a window.
    fn set_counter_reads(&mut self, pass: bool);

    /// Loads the guest's state. Nothing is pending in it: no event, no blocking.
    fn load(&mut self, state: &State);
    /// The guest's state.
    fn save(&self) -> State;
    /// Changes CR0 to what the guest wants to see. The value is legal.
    fn set_cr0(&mut self, visible: u64);
    /// Changes CR4 to what the guest wants to see. The value is legal.
    fn set_cr4(&mut self, visible: u64);
    /// The four top entries of PAE paging, which were found legal.
    fn set_pdptes(&mut self, entries: [u64; 4]);

    /// Of [`Exit::Nmi`]: takes the NMI and counts it in `count`, as the handler of NMIs does.
    fn take_nmi(&mut self, count: &AtomicU32);
    /// Has the guest exit before its first instruction, with [`Exit::Asked`] or [`Exit::Nmi`], or as soon as the kick arrives
    /// that is on its way to this CPU, whose `shared` is. Behind the last look at NMIs that were taken
    /// ([`CpuShared::kick_self`]).
    fn exit_soon(&mut self, shared: &CpuShared);
    /// Of [`Exit::Asked`]: it was once.
    fn exited_soon(&mut self);
    /// Levels of nested page tables.
    fn nested_levels() -> u32;
    /// Takes external interrupts for a moment.
    ///
    /// # Safety
    /// The interrupt descriptor table has a handler for each vector.
    unsafe fn take_interrupts();
    /// How the guest is entered next, for [`Self::enter`]; asked for once for each entry.
    fn next_entry(&mut self) -> u32;
    /// Enters the guest with the registers of the frame.
    ///
    /// # Safety
    /// The frame lies on this CPU's stack and below it nothing is needed any more; the CPU is in operation, and its
    /// control block is filled. `entry` is from [`Self::next_entry`].
    unsafe fn enter(frame: *const Frame, entry: u32) -> !;
    /// The handler of NMIs that hit the hypervisor, for the descriptor table: it counts in
    /// [`crate::cpu::PerCpu::nmi_count`], and sees to it that the guest, if it is about to be entered, exits at once.
    fn nmi_handler() -> u64;
}

#[cfg(test)]
#[path = "contract_tests.rs"]
pub(super) mod tests;
