//! What Linux' module and the hypervisor hand each other at launch and on the way back.
//!
//! The memory that the module takes for the hypervisor (the *region*: physically contiguous, 2 MiB aligned) appears as a
//! whole at [`crate::image::LINK_BASE`]. In this order, page-aligned, it holds:
//!
//! | part | bytes | filled by |
//! |---|---|---|
//! | image with its zeroed data | `ImageHeader::memory_size` | module |
//! | [`LaunchParameters`] | 4096 | module |
//! | public pages: [`crate::public::SystemPublic`], console ring, trace, one [`crate::public::CpuPublic`] a CPU | `public_size` | zeroed by the module |
//! | one handover page a CPU ([`HandoverPage`]) | 4096 each | module, then both |
//! | boot page table | `boot_tables_size` | module |
//! | system configuration | `config_size`, rounded up | module |
//! | one private area a CPU | `ImageHeader::cpu_area_size` each | zeroed by the module |
//! | frame pool: the rest | | hypervisor |
//!
//! ## The world switch
//! The module's *stub page* is one page of text that is mapped at the same virtual address in Linux' tables, in the boot
//! page table and in every private table of the hypervisor; so is the CPU's handover page. The stub contains no RET.
//!
//! *In*: interrupts are off. The stub saves the registers of [`HandoverPage::state`] that it changes, loads the handover
//! page's GDT (a copy of Linux' with the TSS descriptor replaced), IDT (vectors 2 and 18) and TSS, in this order
//! (so that an NMI finds a whole set at each instruction), turns CR4.PGE, PCIDE and CET off, loads the boot page table,
//! loads RSP from [`HandoverPage::entry_stack`] and jumps to [`HandoverPage::entry`] with RDI = the virtual address of
//! the handover page (as Linux has it).
//!
//! *Back*: the hypervisor, outside VMX operation and on any of its tables, fills [`HandoverPage::state`] whole and jumps
//! to [`LaunchParameters::stub_leave`] with RDI = the handover page. MSRs other than the segment bases are already those
//! of the guest. The stub loads the emergency tables, then Linux' CR4 (PGE last), CR3, GDT, TR, LDT, IDT, segments and
//! their bases, DR7, then all general registers, and returns with IRETQ from a frame on the handover page.
//!
//! NMIs and machine checks that hit the emergency handlers are counted in [`HandoverPage::nmi_count`] and
//! [`HandoverPage::machine_check_count`]; the handlers find the page through SIDT (the IDT lies in it). One NMI is
//! injected at the first VM entry when the count is not 0, and the count then set to 0; on a native way back the module
//! sends one to its own CPU (not by INT 2, which masks no NMIs: the next one would overwrite the stack of Linux'
//! handler).

use open_enum::open_enum;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// [`LaunchParameters::signature`].
pub const SIGNATURE: [u8; 8] = *b"GAOLLAUN";

/// Value of [`LaunchParameters::launch_word`].
#[open_enum]
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LaunchWord {
    /// CPUs are on their way.
    Prepare = 0,
    /// Every CPU goes on as a guest.
    Committed = 1,
    /// Every CPU goes back to where it came from.
    Aborted = 2,
}

/// Steps of the launch, as they are numbered in error reports and for fault injection
/// ([`LaunchParameters::fault_step`]). Each CPU takes each step, the primary CPU's work of a step is part of it.
#[open_enum]
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LaunchStep {
    /// No step: no fault is injected.
    None = 0,
    /// Entered the hypervisor's image, before the first barrier.
    Arrive = 1,
    /// Primary CPU: parameters, configuration, frame pool, root cell. Others: wait for it.
    Prepare = 2,
    /// Private page table, descriptor tables and stack.
    PrivateTables = 3,
    /// The CPU's abilities and the saved state fit.
    CheckProcessor = 4,
    /// VMXON or EFER.SVME.
    EnableVirtualization = 5,
    /// VMCS or VMCB filled.
    FillControlBlock = 6,
    /// Second barrier: everyone is ready for the first VM entry.
    Ready = 7,
    /// After the first VM entry: the exit by [`crate::hypercall::Hypercall::Commit`], before the commit.
    FirstExit = 8,
}

/// Last step that a fault can be injected at.
pub const LAST_LAUNCH_STEP: u32 = 8;

/// Value of [`LaunchParameters::fault_step`] with which the launch succeeds, and guests may let the hypervisor fail by
/// [`crate::hypercall::Hypercall::InjectFault`]: for tests.
pub const FAULT_BY_HYPERCALL: u32 = 100;

/// One page for all CPUs, written by the module before the launch. Virtual addresses are Linux'.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct LaunchParameters {
    /// [`SIGNATURE`].
    pub signature: [u8; 8],
    /// [`crate::ABI_REVISION`].
    pub abi_revision: u32,
    /// CPUs that take part, numbered from 0 as Linux numbers them.
    pub cpu_count: u32,
    /// Host-physical address of the region.
    pub region_physical: u64,
    /// Bytes of the region.
    pub region_size: u64,
    /// Offset of the public pages from the start of the region.
    pub public: u64,
    /// Bytes of the public pages.
    pub public_size: u64,
    /// Offset of the first handover page.
    pub handover: u64,
    /// Virtual address, in Linux, of the first handover page; the others follow.
    pub handover_virtual: u64,
    /// Offset of the boot page table's pages.
    pub boot_tables: u64,
    /// Bytes of the boot page table's pages.
    pub boot_tables_size: u64,
    /// Host-physical address of the boot page table's root.
    pub boot_table_root: u64,
    /// Offset of the system configuration ([`crate::config::SystemHeader`]).
    pub config: u64,
    /// Bytes of the system configuration.
    pub config_size: u64,
    /// Offset of the first CPU's private area.
    pub cpu_areas: u64,
    /// Offset of the frame pool; it ends with the region.
    pub pool: u64,
    /// Virtual address of the stub page.
    pub stub_virtual: u64,
    /// Host-physical address of the stub page.
    pub stub_physical: u64,
    /// Virtual address, in the stub page, of the way back.
    pub stub_leave: u64,
    /// Virtual address, in the stub page, of Linux' first instruction as a guest: a VMCALL with EAX =
    /// [`crate::hypercall::Hypercall::Commit`], with interrupts off.
    pub stub_first_instruction: u64,
    /// First address beyond everything that Linux knows of in the physical address space (RAM, devices); 1 GiB aligned.
    pub physical_end: u64,
    /// Longest time that a CPU waits for the others, in cycles of the time stamp counter.
    pub deadline_cycles: u64,
    /// Frequency of the time stamp counter in kHz.
    pub tsc_khz: u32,
    /// Fault injection: the CPU that shall fail; see [`LaunchParameters::fault_step`].
    pub fault_cpu: u32,
    /// Fault injection: a [`LaunchStep`] that fails on [`LaunchParameters::fault_cpu`]; 0 for none.
    pub fault_step: u32,
    /// A [`LaunchWord`], changed by compare-and-swap only.
    pub launch_word: u32,
    /// Host-physical address of a page below 1 MiB that is RAM and not in use by Linux' real-mode code; the hypervisor
    /// borrows it (saves and restores it) to restart a CPU. 0: none.
    pub low_page: u64,
    /// CPUs that have entered the hypervisor so far (atomic).
    pub arrived: u32,
    /// I/O port of the ACPI power management timer, 0 for none.
    pub pm_timer_port: u32,
    /// Cycles from the first CPU's arrival to the commit; written by the hypervisor.
    pub enable_cycles: u64,
    /// Address of the reset register that the FADT names, 0 for none: a port, or host-physical.
    pub reset_register: u64,
    /// Kind of [`LaunchParameters::reset_register`]: `RESET_REGISTER_…`.
    pub reset_register_kind: u32,
    /// What resets the machine when it is written there.
    pub reset_value: u32,
    /// I/O ports of the PM1a and PM1b control registers, 0 for none: they put the machine to sleep.
    pub power_control_ports: [u32; 2],
}

/// [`LaunchParameters::reset_register_kind`]: there is none.
pub const RESET_REGISTER_NONE: u32 = 0;
/// [`LaunchParameters::reset_register_kind`]: an I/O port.
pub const RESET_REGISTER_PORT: u32 = 1;
/// [`LaunchParameters::reset_register_kind`]: memory.
pub const RESET_REGISTER_MEMORY: u32 = 2;

/// General registers in the order that the stub knows.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct GeneralRegisters {
    /// RAX.
    pub rax: u64,
    /// RCX.
    pub rcx: u64,
    /// RDX.
    pub rdx: u64,
    /// RBX.
    pub rbx: u64,
    /// RSI.
    pub rsi: u64,
    /// RDI.
    pub rdi: u64,
    /// RBP.
    pub rbp: u64,
    /// R8.
    pub r8: u64,
    /// R9.
    pub r9: u64,
    /// R10.
    pub r10: u64,
    /// R11.
    pub r11: u64,
    /// R12.
    pub r12: u64,
    /// R13.
    pub r13: u64,
    /// R14.
    pub r14: u64,
    /// R15.
    pub r15: u64,
    /// RSP.
    pub rsp: u64,
}

/// What LGDT and LIDT take, at offset 6 of this structure (so that the base is aligned).
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct TableRegister {
    /// Keeps the base aligned.
    pub reserved: [u16; 3],
    /// Limit in bytes.
    pub limit: u16,
    /// Virtual address.
    pub base: u64,
}

/// The state of a CPU in Linux. On the way in the stub writes the fields marked *in*; on the way back the hypervisor
/// writes them all.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct LinuxState {
    /// General registers; *in*: RBX, RBP, RSP, R12 to R15.
    pub registers: GeneralRegisters,
    /// Where to go on; *in*.
    pub rip: u64,
    /// RFLAGS; *in*.
    pub rflags: u64,
    /// CR0.
    pub cr0: u64,
    /// CR3; *in*.
    pub cr3: u64,
    /// CR4; *in*.
    pub cr4: u64,
    /// DR7.
    pub dr7: u64,
    /// GDTR; *in*.
    pub gdtr: TableRegister,
    /// IDTR; *in*.
    pub idtr: TableRegister,
    /// Base of FS.
    pub fs_base: u64,
    /// Base of GS.
    pub gs_base: u64,
    /// Selectors ES, CS, SS, DS, FS, GS, LDTR, TR; *in*.
    pub selectors: [u16; 8],
    /// The descriptor of TR in Linux' GDT, 16 bytes; *in*.
    pub task_descriptor: [u64; 2],
}

/// Index of ES in [`LinuxState::selectors`].
pub const SELECTOR_ES: usize = 0;
/// Index of CS in [`LinuxState::selectors`].
pub const SELECTOR_CS: usize = 1;
/// Index of SS in [`LinuxState::selectors`].
pub const SELECTOR_SS: usize = 2;
/// Index of DS in [`LinuxState::selectors`].
pub const SELECTOR_DS: usize = 3;
/// Index of FS in [`LinuxState::selectors`].
pub const SELECTOR_FS: usize = 4;
/// Index of GS in [`LinuxState::selectors`].
pub const SELECTOR_GS: usize = 5;
/// Index of LDTR in [`LinuxState::selectors`].
pub const SELECTOR_LDTR: usize = 6;
/// Index of TR in [`LinuxState::selectors`].
pub const SELECTOR_TR: usize = 7;

/// Bytes that the copy of Linux' GDT may take.
pub const GDT_BYTES: usize = 256;
/// Bytes of a task state segment without I/O bitmap.
pub const TASK_STATE_BYTES: usize = 104;
/// Gates of the emergency IDT: vectors 0 to 31.
pub const IDT_GATES: usize = 32;

/// The page that a CPU takes through the world switch.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct HandoverPage {
    /// The CPU's state in Linux.
    pub state: LinuxState,
    /// Number of the CPU.
    pub cpu: u32,
    /// APIC id of the CPU.
    pub apic_id: u32,
    /// Virtual address of the entry point in the image.
    pub entry: u64,
    /// First stack in the hypervisor: the end of the CPU's private area, at its link address.
    pub entry_stack: u64,
    /// CR3 of the boot page table.
    pub boot_cr3: u64,
    /// NMIs that the emergency handler has counted.
    pub nmi_count: u32,
    /// Machine checks that the emergency handler has counted.
    pub machine_check_count: u32,
    /// Negative error number with which this CPU came back, 0 for none; written by the hypervisor.
    pub result: i32,
    /// The [`LaunchStep`] that failed on this CPU, 0 for none; written by the hypervisor.
    pub failed_step: u32,
    /// 1: the CPU has gone back natively and does not touch this page, or anything else of the region, any more; written
    /// by the stub.
    pub left: u32,
    /// Zero.
    pub reserved_behind_left: u32,
    /// The emergency GDTR's value.
    pub emergency_gdtr: TableRegister,
    /// The emergency IDTR's value.
    pub emergency_idtr: TableRegister,
    /// Fills up to the GDT.
    pub reserved: [u8; 0x200 - 0x158],
    /// The emergency GDT: Linux', but for the TSS descriptor.
    pub gdt: [u8; GDT_BYTES],
    /// The emergency TSS: IST 2 (NMI) and 4 (machine check), as in Linux' own IDT.
    pub task_state: [u8; TASK_STATE_BYTES],
    /// Keeps the IDT aligned.
    pub reserved_behind_task_state: [u8; 24],
    /// The emergency IDT.
    pub idt: [u8; IDT_GATES * 16],
    /// Stack of the stub, of NMIs and of machine checks: [`STUB_STACK_END`], [`NMI_STACK_END`],
    /// [`MACHINE_CHECK_STACK_END`].
    pub stacks: [u8; 4096 - 0x580],
}

/// Offset in the page of the end of the stub's stack.
pub const STUB_STACK_END: u64 = 0xa00;
/// Offset in the page of the end of the NMI stack.
pub const NMI_STACK_END: u64 = 0xd00;
/// Offset in the page of the end of the machine check stack.
pub const MACHINE_CHECK_STACK_END: u64 = 0x1000;

#[cfg(test)]
mod tests {
    use core::mem::{offset_of, size_of};

    use super::*;

    #[test]
    fn the_handover_page_is_one_page_and_its_tables_are_aligned() {
        assert_eq!(size_of::<HandoverPage>(), 4096);
        assert_eq!(offset_of!(HandoverPage, gdt), 0x200);
        assert_eq!(offset_of!(HandoverPage, task_state), 0x300);
        assert_eq!(offset_of!(HandoverPage, idt), 0x380);
        assert_eq!(offset_of!(HandoverPage, stacks), 0x580);
        assert!(size_of::<LaunchParameters>() <= 4096);
    }
}
