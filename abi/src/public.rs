//! The pages of the hypervisor that the root cell may read: counters, states, fault records and the console ring.
//!
//! The root has them mapped read-only, so reading them costs no exit and stops no CPU. Every field is written by one CPU
//! at a time with plain aligned stores; a reader may see a counter a moment old but never torn.
//!
//! Layout: one [`SystemPublic`] page, [`RING_PAGES`] pages of console ring ([`RingHeader`] and entries), a page with the trace
//! ([`TraceRing`]), then one [`CpuPublic`] page for each CPU.

use open_enum::open_enum;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::exit::COUNTERS;
use crate::handover::GeneralRegisters;
use crate::outcome::Outcome;

/// Pages of the console ring.
pub const RING_PAGES: u64 = 8;
/// Offset of the ring from the start of the public pages.
pub const RING_OFFSET: u64 = 4096;
/// Characters that the ring keeps, each in a [`RingEntry`].
pub const RING_ENTRIES: usize = ((RING_PAGES as usize) * 4096 - 64) / 2;
/// Offset of the [`TraceRing`] from the start of the public pages.
pub const TRACE_OFFSET: u64 = RING_OFFSET + RING_PAGES * 4096;
/// Events that the trace keeps.
pub const TRACE_EVENTS: usize = 63;
/// Offset of the first CPU's page from the start of the public pages.
pub const CPU_OFFSET: u64 = TRACE_OFFSET + 4096;

/// The first page.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SystemPublic {
    /// [`crate::ABI_REVISION`] once the hypervisor runs.
    pub abi_revision: u32,
    /// CPUs under the hypervisor.
    pub cpu_count: u32,
    /// Frames in the pool.
    pub frames_total: u64,
    /// Frames in use.
    pub frames_used: u64,
    /// Why the last management operation failed; all zero when it did not.
    pub last_outcome: Outcome,
    /// Frequency of the time stamp counter in kHz.
    pub tsc_khz: u32,
    /// Frequency of the APIC timer before its divider in kHz, as measured; 0 until a cell was created.
    pub apic_khz: u32,
    /// Bytes of the image that are text, read-only data, and data with what is zero at the start.
    pub image_bytes: [u64; 3],
    /// Cells that exist, the root cell included.
    pub cells: u64,
    /// Cycles that the last cell creation spent on restarting CPUs whose APIC could not change its mode otherwise.
    pub restart_cycles: u64,
    /// The longest time in cycles that a CPU of the root cell was away, by [`Pause`].
    pub longest_pauses: [u64; PAUSES],
    /// What the watchdogs of the cells have found, by the cell's id.
    pub watchdogs: [WatchdogRecord; crate::MAX_CELLS],
    /// How Linux failed.
    pub root_failure: RootFailure,
    /// Cells of which a PCI function may be bus master with no IOMMU in front of it: bit n for the cell n.
    pub unprotected_cells: u64,
    /// The IOMMUs.
    pub iommus: IommuState,
    /// What devices tried that their IOMMU stopped, each device once, in the order in which they began.
    pub device_faults: [DeviceFaults; MAX_FAULTY_DEVICES],
}

/// Length of [`SystemPublic::device_faults`]. Faults of further devices are counted in [`IommuState::faults`] only.
pub const MAX_FAULTY_DEVICES: usize = 16;

/// The IOMMUs that the hypervisor has, and what cells have of them.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct IommuState {
    /// Units that translate DMA.
    pub units: u32,
    /// Of these, units that remap interrupts as well.
    pub remapping: u32,
    /// Units that did not do what they were told.
    pub failed: u32,
    /// Functions that are a cell's.
    pub functions: u32,
    /// Interrupt entries that cells have.
    pub entries: u32,
    /// Interrupt entries that cells could have.
    pub entries_most: u32,
    /// Interrupt entries of the root that don't count as they were written, since they reach others or can be used by
    /// others.
    pub overruled: u32,
    /// Cells that have tables of their own for what their functions reach.
    pub domains: u32,
    /// Faults of devices.
    pub faults: u64,
    /// How often a unit had more faults than it could record.
    pub lost: u64,
}

/// The device is kept from all memory since it had too many faults in too short a time.
pub const DEVICE_QUARANTINED: u32 = 1;
/// The last fault was a read; without it a write, or an interrupt.
pub const DEVICE_FAULT_READ: u32 = 2;

/// What a device tried.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct DeviceFaults {
    /// Segment << 16 | bus << 8 | device << 3 | function.
    pub source: u32,
    /// Id of the cell that had it at its last fault.
    pub cell: u32,
    /// Faults that were recorded; 0: the rest means nothing.
    pub count: u64,
    /// Address of the last one; of an interrupt, the index of its entry.
    pub address: u64,
    /// Time stamp counter at the look that found it.
    pub time: u64,
    /// Why, as VT-d counts the reasons; from 0x20 on of interrupts.
    pub reason: u32,
    /// `DEVICE_…`.
    pub flags: u32,
}

/// Why a CPU of the root cell is away for longer than an ordinary exit.
#[open_enum]
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pause {
    /// It creates a cell.
    Create = 0,
    /// It starts a cell.
    Start = 1,
    /// It stops a cell, or makes it loadable.
    SetLoadable = 2,
    /// It destroys a cell.
    Destroy = 3,
    /// It clears a piece of memory.
    Scrub = 4,
    /// It looks after a cell: its state or its heartbeat.
    Look = 5,
    /// It was kicked by another CPU.
    Kick = 6,
}

/// Length of [`SystemPublic::longest_pauses`].
pub const PAUSES: usize = 7;

/// What a cell's watchdog has found since the cell was created.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct WatchdogRecord {
    /// How often the heartbeat did not change in time.
    pub expired: u64,
    /// Value of the heartbeat the last time that it did not.
    pub heartbeat: u64,
    /// Time stamp counter at that time.
    pub time: u64,
}

/// What Linux did that is no orderly end.
#[open_enum]
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub enum RootFailureKind {
    /// Nothing so far.
    None = 0,
    /// Its kernel panicked; it may try to reset the machine later.
    Panic = 1,
    /// A CPU had a triple fault.
    TripleFault = 2,
    /// It wrote to a register that resets the machine.
    Reset = 3,
    /// It wrote to a register that puts the machine to sleep or turns it off.
    Sleep = 4,
}

/// The last failure of Linux.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct RootFailure {
    /// Failures so far.
    pub count: u32,
    /// What it was.
    pub kind: RootFailureKind,
    /// The CPU.
    pub cpu: u32,
    /// 1: the CPU was parked for it.
    pub parked: u32,
    /// The port or address that was written to.
    pub address: u64,
    /// Time stamp counter.
    pub time: u64,
}

/// The start of the console ring; [`RING_ENTRIES`] entries follow at [`RING_ENTRIES_OFFSET`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct RingHeader {
    /// Characters written since the launch (atomic); number n is in the entry `n % RING_ENTRIES`.
    pub written: u64,
}

/// Offset of the entries from the start of the ring.
pub const RING_ENTRIES_OFFSET: u64 = 64;
/// The [`RingEntry::source`] of what the hypervisor prints itself, and of the module's notes.
pub const RING_BY_HYPERVISOR: u8 = u8::MAX;

/// A character in the console ring, and who printed it: what several print at the same time stands mixed there, and whoever
/// reads it puts lines together again.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct RingEntry {
    /// The character.
    pub character: u8,
    /// The cell's number, or [`RING_BY_HYPERVISOR`].
    pub source: u8,
}

/// What a [`TraceEvent`] is about.
#[open_enum]
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub enum TraceKind {
    /// An IOMMU stopped what a device tried. `source` is the function as in [`DeviceFaults::source`], `reason` and `address`
    /// are as there, `qualification` its flags; `time` is that of the look that found it.
    DeviceFault = 1,
    /// A CPU of a cell was stopped for what its guest did. `source` is the CPU, `reason` the exit reason; `place` is RIP, and
    /// address and qualification are as in a [`FaultRecord`].
    Violation = 2,
    /// The heartbeat of a cell did not change in time: `qualification` is its value.
    Watchdog = 3,
    /// Linux failed on the CPU `source`: `reason` is the [`RootFailureKind`].
    RootFailure = 4,
    /// The hypervisor itself failed on the CPU `source`: `reason` is the vector, `qualification` the error code, `place` RIP.
    HypervisorFault = 5,
}

/// Something that happened.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct TraceEvent {
    /// Number of the event, the first being 1. It is written last, and [`Self::end`] first: who reads them in ascending order
    /// and finds them alike has read one event whole.
    pub begin: u64,
    /// Time stamp counter.
    pub time: u64,
    /// What it is.
    pub kind: TraceKind,
    /// Id of the cell that it is about.
    pub cell: u32,
    /// By kind: who did it.
    pub source: u32,
    /// By kind: why.
    pub reason: u32,
    /// By kind: the address that it was about.
    pub address: u64,
    /// By kind: where the code is that did it.
    pub place: u64,
    /// By kind: what else is known of it.
    pub qualification: u64,
    /// The number again.
    pub end: u64,
}

/// Words of 8 bytes that a [`TraceEvent`] has.
pub const TRACE_WORDS: usize = size_of::<TraceEvent>() / 8;

impl TraceEvent {
    /// The event as it is in the ring, in ascending order.
    #[must_use]
    pub fn words(self) -> [u64; TRACE_WORDS] {
        zerocopy::transmute!(self)
    }
}

/// The last events, whichever CPU they were on. Event n is at `(n - 1) % TRACE_EVENTS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct TraceRing {
    /// Events since the launch (atomic).
    pub written: u64,
    /// Faults of devices that are no events, since there were too many of one device at once (atomic).
    pub left_out: u64,
    /// Zero.
    pub reserved: [u64; 6],
    /// The events.
    pub events: [TraceEvent; TRACE_EVENTS],
}

/// What a CPU does.
#[open_enum]
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub enum CpuState {
    /// Not under the hypervisor.
    Outside = 0,
    /// Runs its cell.
    Running = 1,
    /// Belongs to a cell that does not run, or waits for a startup IPI.
    Waiting = 2,
    /// Parked after a violation; see [`CpuPublic::fault`].
    Failed = 3,
}

/// What a guest did that its CPU was stopped for (or, in the root cell, the last thing that was overruled).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct FaultRecord {
    /// Number of faults of this CPU since it joined its cell; 0: the rest means nothing.
    pub count: u32,
    /// Id of the cell.
    pub cell: u32,
    /// Basic exit reason.
    pub exit_reason: u32,
    /// Bytes of [`FaultRecord::instruction`] that could be read.
    pub instruction_length: u32,
    /// Exit qualification; of a port access as the SDM has it, of MSRs 0.
    pub qualification: u64,
    /// Guest-physical address, port, or MSR number.
    pub address: u64,
    /// RIP of the guest.
    pub rip: u64,
    /// RFLAGS of the guest.
    pub rflags: u64,
    /// CR0 of the guest.
    pub cr0: u64,
    /// CR3 of the guest.
    pub cr3: u64,
    /// CR4 of the guest.
    pub cr4: u64,
    /// Base of CS.
    pub cs_base: u64,
    /// Time stamp counter.
    pub time: u64,
    /// General registers.
    pub registers: GeneralRegisters,
    /// Bytes at RIP.
    pub instruction: [u8; 16],
}

/// Addresses that a [`HypervisorFault`] keeps of the stack.
pub const FAULT_TRACE: usize = 16;
/// Bytes that a [`HypervisorFault`] keeps of a file's name.
pub const FAULT_FILE: usize = 64;

/// How the hypervisor itself has failed.
#[open_enum]
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub enum HypervisorFaultKind {
    /// Not at all.
    None = 0,
    /// An exception of the processor.
    Exception = 1,
    /// A panic.
    Panic = 2,
}

/// A fault of the hypervisor itself on a CPU. It stays until the next launch, whoever has the CPU then.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct HypervisorFault {
    /// Number of such faults on this CPU; 0: the rest means nothing.
    pub count: u32,
    /// How.
    pub kind: HypervisorFaultKind,
    /// Id of the cell that the CPU was in.
    pub cell: u32,
    /// Vector of the exception.
    pub vector: u32,
    /// Error code of the exception, 0 where it has none.
    pub error_code: u64,
    /// Address of the instruction that raised it.
    pub rip: u64,
    /// CR2: of a page fault, the address that was accessed.
    pub address: u64,
    /// Stack pointer.
    pub stack: u64,
    /// Time stamp counter.
    pub time: u64,
    /// Line of a panic.
    pub line: u32,
    /// Entries of [`Self::trace`] that count.
    pub trace_length: u32,
    /// Addresses of the image's text that were found on the stack, the nearest first.
    pub trace: [u64; FAULT_TRACE],
    /// The end of the name of the file in which a panic was, filled up with zeroes.
    pub file: [u8; FAULT_FILE],
}

/// A CPU's page.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CpuPublic {
    /// Exits by reason since the CPU joined its cell: see [`crate::exit`].
    pub exits: [u64; COUNTERS],
    /// What the CPU does.
    pub state: CpuState,
    /// Id of the cell that the CPU belongs to.
    pub cell: u32,
    /// The last fault.
    pub fault: FaultRecord,
    /// The last fault of the hypervisor itself on this CPU.
    pub hypervisor_fault: HypervisorFault,
    /// CR0, CR4 and EFER with which the hypervisor runs on this CPU.
    pub host_registers: [u64; 3],
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_fits_its_pages() {
        assert!(size_of::<SystemPublic>() <= 4096);
        assert!(size_of::<CpuPublic>() <= 4096);
        assert_eq!(size_of::<TraceRing>(), 4096);
        assert!(size_of::<RingHeader>() as u64 <= RING_ENTRIES_OFFSET);
        assert!(crate::MAX_CELLS <= usize::from(RING_BY_HYPERVISOR));
    }
}
