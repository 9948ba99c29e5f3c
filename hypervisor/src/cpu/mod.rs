//! What belongs to one CPU: its private data, what others may see of it, and how they reach it.
//!
//! [`PerCpu`] is mapped by its own CPU only, at the same address on each ([`PRIVATE_BASE`]); it is handed down from the
//! exit entry as `&mut` and never fetched from anywhere else. What crosses CPUs is in [`CpuShared`]: atomics only.
//!
//! Invariant: an NMI is sent to a CPU only by the one who sets [`Events::KICK`] in its mailbox, so each kick NMI is told
//! apart from an NMI that is the guest's own.

pub mod clear;
pub mod events;
pub mod injection;
pub mod mailbox;
pub mod recovery;
pub mod window;

use core::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicU64, Ordering};

use gaol_abi::MAX_CPUS;
use gaol_abi::image::LINK_BASE;

pub use mailbox::Events;

use self::window::Windows;
use crate::guest::mtrr::Mtrrs;
use crate::launch::saved::Saved;
use crate::processor::tables::DescriptorTables;
use crate::trace::public::CpuCounters;
use crate::virt;

/// Where each CPU finds its private data: in the same page directory as the image.
pub const PRIVATE_BASE: u64 = LINK_BASE + 0x3000_0000;

/// Places in a CPU's private mapping. Between the stacks are pages that nothing maps.
pub mod private {
    use super::PRIVATE_BASE;

    /// End of the NMI stack (one page).
    pub const NMI_STACK_END: u64 = PRIVATE_BASE + 0x3000;
    /// End of the double fault stack (one page).
    pub const DOUBLE_FAULT_STACK_END: u64 = PRIVATE_BASE + 0x5000;
    /// End of the machine check stack (one page).
    pub const MACHINE_CHECK_STACK_END: u64 = PRIVATE_BASE + 0x7000;
    /// End of the stack.
    pub const STACK_END: u64 = PRIVATE_BASE + 0x1_0000;
    /// The control block, where the processor has it as memory.
    pub const CONTROL_BLOCK: u64 = PRIVATE_BASE + 0x1_a000;
    /// The local APIC's registers.
    pub const APIC: u64 = PRIVATE_BASE + 0x1_1000;
    /// First of the 4 KiB windows.
    pub const WINDOWS: u64 = PRIVATE_BASE + 0x1_4000;
    /// The 2 MiB window.
    pub const LARGE_WINDOW: u64 = PRIVATE_BASE + 0x20_0000;
}

/// Pages of a CPU's area in the region, in order.
pub mod area {
    /// [`super::PerCpu`].
    pub const PER_CPU: u64 = 0;
    /// VMXON region, or where the processor saves the host.
    pub const HOST_STATE: u64 = 1;
    /// VMCS or VMCB.
    pub const CONTROL_BLOCK: u64 = 2;
    /// NMI stack.
    pub const NMI_STACK: u64 = 3;
    /// Double fault stack.
    pub const DOUBLE_FAULT_STACK: u64 = 4;
    /// Machine check stack.
    pub const MACHINE_CHECK_STACK: u64 = 5;
    /// The stack's pages, the last of the area: the stub enters on them.
    pub const STACK: u64 = 6;
    /// Pages of the stack: twice what the deepest calls take, which the search of the image adds up.
    pub const STACK_PAGES: u64 = 5;
    /// Bytes of an area.
    pub const SIZE: u64 = (STACK + STACK_PAGES) * 4096;
}

/// What a CPU is doing, from the hypervisor's view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// Runs its guest.
    Running,
    /// Waits for a startup IPI.
    Waiting,
    /// Its cell does not run: nothing but the management starts it.
    Stopped,
    /// Parked after a violation.
    Failed,
}

/// A CPU's private data. The first fields are known to assembly.
#[repr(C, align(4096))]
pub struct PerCpu {
    /// NMIs that hit the hypervisor and were not looked at yet.
    pub nmi_count: AtomicU32,
    /// Machine checks that hit the hypervisor and were not handed on yet.
    pub machine_checks: AtomicU32,
    /// This CPU's counters, in its public page.
    pub counters: &'static CpuCounters,
    /// What others see of this CPU.
    pub shared: &'static CpuShared,
    /// The CPU belongs to the root cell.
    pub is_root: bool,
    /// The local APIC is in x2APIC mode.
    pub x2apic: bool,
    /// The guest has passed the commit (or was started later).
    pub committed: bool,
    /// Ports outside the bitmap read as ones and do not stop the guest.
    pub ignore_ports: bool,
    /// An NMI waits to be delivered to the guest.
    pub pending_nmi: bool,
    /// The hypervisor has failed on this CPU, and it has not entered its guest since.
    pub recovering: bool,
    /// Leaves of CPUID below 32 that are not answered as the processor does: bit n for leaf n.
    pub moderated_leaves: u32,
    /// What the CPU does.
    pub activity: Activity,
    /// What the exit path is about.
    pub stage: recovery::Stage,
    /// Number of the CPU, as Linux numbers it.
    pub index: u32,
    /// Id of the cell.
    pub cell: u32,
    /// APIC id.
    pub apic_id: u32,
    /// What the guest wrote to port 0xcf8.
    pub pci_address: u32,
    /// What the guest wrote to the index register of each IOAPIC.
    pub io_apic_index: [u8; crate::device::io_apic::MAX_UNITS],
    /// The memory type range registers that the guest sees.
    pub mtrrs: Mtrrs,
    /// What registers held that the present cell may write to besides those that all cells have.
    pub msrs_before: [u64; gaol_abi::config::MAX_MSRS],
    /// Windows into guest memory.
    pub windows: Windows,
    /// Processor state of Linux before the launch.
    pub saved: Saved,
    /// Virtual address of the handover page.
    pub handover: u64,
    /// CR3 of the private table.
    pub private_cr3: u64,
    /// What the control block says of the guest.
    pub guest: virt::Guest,
    /// This CPU's use of the virtualization extension.
    pub virtualization: virt::Current,
    /// GDT, TSS, IDT.
    pub tables: DescriptorTables,
}

const _: () = assert!(size_of::<PerCpu>() <= 4096);

/// Address of this CPU's descriptor tables.
pub const TABLES_AT: u64 = PRIVATE_BASE + core::mem::offset_of!(PerCpu, tables) as u64;

/// What other CPUs may see and change of a CPU.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct CpuShared {
    mailbox: AtomicU32,
    /// Vector of the last startup IPI.
    pub startup_vector: AtomicU32,
    /// APIC id.
    pub apic_id: AtomicU32,
    /// Logical destination of the xAPIC, bits 31:24 of its LDR.
    pub logical_id: AtomicU32,
    /// The xAPIC's logical ids are clusters, not flat.
    pub cluster_model: AtomicBool,
    /// Host-physical address of the root of the private table.
    pub private_root: AtomicU64,
    /// Cell that the CPU belongs to.
    pub cell: AtomicU32,
    /// Cell that the CPU shall join at [`Events::JOIN`].
    pub next_cell: AtomicU32,
    /// Events that were served since the sender cleared their bits here ([`mailbox`]).
    acknowledged: AtomicU32,
    /// The CPU has left operation and asks for an INIT and a startup IPI to its trampoline.
    pub wants_restart: AtomicBool,
    /// The CPU waits for a startup IPI.
    pub waits_for_startup: AtomicBool,
    /// The CPU's APIC is in x2APIC mode.
    pub x2apic: AtomicBool,
    /// The CPU has asked to disable, and goes back to Linux when all have.
    pub leaving: AtomicBool,
    /// Set when joining a cell failed: the APIC did not change its mode.
    pub join_failed: AtomicBool,
}

impl CpuShared {
    const fn new() -> Self {
        Self {
            mailbox: AtomicU32::new(0),
            startup_vector: AtomicU32::new(0),
            apic_id: AtomicU32::new(u32::MAX),
            logical_id: AtomicU32::new(0),
            cluster_model: AtomicBool::new(false),
            private_root: AtomicU64::new(0),
            cell: AtomicU32::new(0),
            next_cell: AtomicU32::new(0),
            acknowledged: AtomicU32::new(0),
            wants_restart: AtomicBool::new(false),
            waits_for_startup: AtomicBool::new(false),
            x2apic: AtomicBool::new(false),
            join_failed: AtomicBool::new(false),
            leaving: AtomicBool::new(false),
        }
    }
}

impl CpuShared {
    /// Notes what the xAPIC's destination format register holds: bits 31 to 28 are ones in the flat model.
    pub fn set_destination_format(&self, value: u32) {
        self.cluster_model
            .store(value >> 28 != 0xf, Ordering::Relaxed);
    }
}

static CPUS: [CpuShared; MAX_CPUS] = [const { CpuShared::new() }; MAX_CPUS];

/// What others may see of CPU `index`.
#[must_use]
pub fn shared(index: u32) -> Option<&'static CpuShared> {
    CPUS.get(index as usize)
}

/// CPU by its APIC id, for ids below 256; `u16::MAX`: none.
static BY_APIC_ID: [AtomicU16; 256] = [const { AtomicU16::new(u16::MAX) }; 256];

/// Makes CPU `index` known under its APIC id.
pub fn register(index: u32, apic_id: u32) {
    if let Some(cpu) = shared(index) {
        cpu.apic_id.store(apic_id, Ordering::Release);
    }
    if let Some(slot) = BY_APIC_ID.get(apic_id as usize) {
        slot.store(index as u16, Ordering::Release);
    }
}

/// The CPU with this APIC id.
#[inline(always)]
#[must_use]
pub fn by_apic_id(apic_id: u32) -> Option<&'static CpuShared> {
    match BY_APIC_ID.get(apic_id as usize) {
        Some(slot) => shared(u32::from(slot.load(Ordering::Relaxed))),
        None => CPUS
            .iter()
            .find(|cpu| cpu.apic_id.load(Ordering::Relaxed) == apic_id),
    }
}
