//! Hypercalls: Jailhouse's numbers 0 to 8, so that its guests run unchanged, and Gaol's own management calls.
//!
//! `VMCALL` with the number in EAX and the arguments in RDI and RSI (EDI and ESI outside 64-bit mode); the result comes
//! back in EAX (RAX in 64-bit mode, sign-extended). Only CPL 0 may call.

use open_enum::open_enum;

/// CPUID leaf at which a guest finds out that it runs in a cell.
pub const CPUID_SIGNATURE_LEAF: u32 = 0x4000_0000;
/// CPUID leaf of the features (all zero).
pub const CPUID_FEATURES_LEAF: u32 = 0x4000_0001;
/// What [`CPUID_SIGNATURE_LEAF`] says in EBX, ECX, EDX: the guest interface is Jailhouse's.
pub const CPUID_SIGNATURE: [u8; 12] = *b"Jailhouse\0\0\0";

/// Number of a hypercall.
#[open_enum]
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hypercall {
    /// Gives the machine back to Linux; on all CPUs of the root cell that are online, at the same time. RDI: how many
    /// these are. The other CPUs of the root cell go on natively in the loop that Linux left them in.
    Disable = 0,
    /// Creates a cell from the configuration at the guest-physical address RDI. Returns the cell's id. RSI:
    /// [`DESTROY_FORCE`], to create it although another cell runs locked.
    CellCreate = 1,
    /// Starts the cell RDI.
    CellStart = 2,
    /// Stops the cell RDI if it runs and maps its loadable memory into the root cell. RSI: [`DESTROY_FORCE`].
    /// `-EAGAIN`: the cell was asked to end and has not answered; wait a moment and call again. The hypervisor keeps
    /// the deadline and refuses when it has passed.
    CellSetLoadable = 3,
    /// Destroys the cell RDI. RSI: [`DESTROY_FORCE`]. `-EAGAIN`: call [`Hypercall::Scrub`] until it returns 0, wait a
    /// moment when it returned 0 at once (the cell was asked to end and has not answered), then call this again.
    CellDestroy = 4,
    /// Tells a number about the hypervisor: RDI is an [`InfoType`].
    GetInfo = 5,
    /// State of the cell RDI: a [`crate::communication::CellState`].
    CellGetState = 6,
    /// Tells a number about CPU RDI: RSI is a [`CpuInfoType`].
    CpuGetInfo = 7,
    /// Prints the character RDI on the hypervisor's console.
    DebugConsolePutc = 8,
    /// The first instruction of Linux as a guest, on every CPU: the commit of the launch.
    Commit = 0x100,
    /// Clears the next piece of the memory of cell RDI, at most [`SCRUB_CHUNK`] bytes. Returns the number of pieces
    /// that are left.
    Scrub = 0x101,
    /// Looks whether the cell RDI has changed its heartbeat in time. Returns a [`WatchdogAnswer`].
    Watchdog = 0x102,
    /// Linux panics: keeps it on record ([`crate::public::RootFailure`]). Returns 0.
    RootFailed = 0x103,
    /// Lets the hypervisor fail on this CPU as RDI says, an [`InjectedFault`]: a test of what becomes of that. Refused
    /// unless the launch has permitted it ([`crate::handover::FAULT_BY_HYPERCALL`]).
    InjectFault = 0x1f0,
}

/// Result of [`Hypercall::Watchdog`].
#[open_enum]
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchdogAnswer {
    /// The heartbeat has changed in time, or there is still time.
    Alive = 0,
    /// The heartbeat has not changed in time. It was counted, and the cell has the whole timeout again.
    Expired = 1,
    /// There is nothing to watch: the cell has no watchdog, does not run, or all its CPUs are parked.
    Off = 2,
}

/// Argument of [`Hypercall::InjectFault`].
#[open_enum]
#[repr(u64)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InjectedFault {
    /// A page fault.
    PageFault = 1,
    /// A general protection fault.
    GeneralProtection = 2,
    /// An invalid opcode.
    InvalidOpcode = 3,
    /// The stack overflows.
    StackOverflow = 4,
    /// A panic.
    Panic = 5,
    /// A panic in the midst of a management operation.
    PanicInManagement = 6,
    /// A division by zero.
    DivideError = 7,
}

/// Bytes that one [`Hypercall::Scrub`] clears at the most: it bounds how long Linux' CPU is away.
pub const SCRUB_CHUNK: u64 = 1 << 20;

/// Second argument of [`Hypercall::CellDestroy`] and [`Hypercall::CellSetLoadable`]: do not ask the cell; of
/// [`Hypercall::CellCreate`] and [`Hypercall::CellDestroy`], do not mind other cells that run locked.
pub const DESTROY_FORCE: u64 = 1;

/// First argument of [`Hypercall::GetInfo`].
#[open_enum]
#[repr(u64)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InfoType {
    /// Frames in the pool.
    PoolSize = 0,
    /// Frames of the pool that are in use.
    PoolUsed = 1,
    /// Pages of Jailhouse's remapping pool; Gaol has none: 0.
    RemapPoolSize = 2,
    /// See [`InfoType::RemapPoolSize`].
    RemapPoolUsed = 3,
    /// Cells that exist, the root cell included.
    Cells = 4,
}

/// Second argument of [`Hypercall::CpuGetInfo`].
#[open_enum]
#[repr(u64)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpuInfoType {
    /// [`CPU_RUNNING`] or [`CPU_FAILED`].
    State = 0,
    /// 1000 + n is Jailhouse's counter number n.
    StatisticsBase = 1000,
}

/// Result of [`CpuInfoType::State`]: the CPU runs its cell, or waits to.
pub const CPU_RUNNING: i64 = 0;
/// Result of [`CpuInfoType::State`]: the CPU was parked after a violation.
pub const CPU_FAILED: i64 = 2;
/// Number of Jailhouse's counters on x86 (total, mmio, management, hypercall, pio, xapic, cr, cpuid, xsetbv, exception,
/// msr_other, msr_x2apic_icr).
pub const JAILHOUSE_COUNTERS: usize = 12;

/// Negative results of hypercalls: Linux' error numbers.
#[open_enum]
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Errno {
    /// Operation not permitted.
    NotPermitted = 1,
    /// No such cell.
    NoEntry = 2,
    /// The hardware did not do what it should.
    InputOutput = 5,
    /// The configuration is larger than any may be.
    TooBig = 7,
    /// Call again.
    TryAgain = 11,
    /// No frame left in the pool.
    NoMemory = 12,
    /// The resource is in use.
    Busy = 16,
    /// A cell of that name exists.
    Exists = 17,
    /// The machine lacks it.
    NoDevice = 19,
    /// An argument or the configuration is wrong.
    Invalid = 22,
    /// A number is out of its range.
    Range = 34,
    /// There is no such hypercall.
    NoSystemCall = 38,
    /// A deadline passed.
    TimedOut = 110,
    /// Another CPU is in such a call.
    InProgress = 115,
}
