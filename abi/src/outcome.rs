//! Why something was refused, in numbers: the hypervisor and the module report, the command line tool explains.

use open_enum::open_enum;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The reason of a failure. The meaning of [`Outcome::detail`] is given in brackets.
#[open_enum]
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub enum Reason {
    /// No failure, or one that its error number tells all about.
    None = 0,
    // Launch
    /// The image is not one of Gaol's, damaged or truncated.
    ImageInvalid = 1,
    /// The image is of another ABI revision \[the image's\].
    ImageRevision = 2,
    /// The image is for another vendor \[the image's\].
    ImageVendor = 3,
    /// The configuration is not one of Gaol's or truncated \[bytes given\].
    ConfigurationInvalid = 4,
    /// The configuration is of another revision \[its\].
    ConfigurationRevision = 5,
    /// The configuration's checksum is wrong.
    ConfigurationChecksum = 6,
    /// The configuration is larger than allowed \[bytes\].
    ConfigurationTooBig = 7,
    /// A present CPU is offline \[the CPU\].
    CpuOffline = 8,
    /// The CPU has no VMX.
    NoVmx = 9,
    /// The firmware has VMX disabled and locked.
    VmxLockedOff = 10,
    /// VMX is in use, by KVM or another hypervisor \[the CPU\].
    VmxInUse = 11,
    /// Linux could not give the hypervisor's memory \[bytes of the largest piece that was found\].
    HypervisorMemory = 12,
    /// The reserved memory at that address is used or not reserved \[address\].
    MemoryNotReserved = 13,
    /// The hypervisor is enabled already.
    AlreadyEnabled = 14,
    /// The hypervisor is not enabled.
    NotEnabled = 15,
    /// The hypervisor's memory is too small \[bytes needed\].
    HypervisorMemoryTooSmall = 16,
    /// A VMX capability is missing \[number of the capability MSR << 32 | missing bits\].
    VmxCapability = 17,
    /// Linux has set a bit of CR4 that the hypervisor does not know \[the bits\].
    UnknownCr4 = 18,
    /// A CPU did not come in time \[the CPU\].
    CpuTimedOut = 19,
    /// A fault was injected \[the step\].
    FaultInjected = 20,
    /// VM entry failed \[VM-instruction error or exit reason\].
    EntryFailed = 21,
    /// The APIC is disabled or in a state that the hypervisor can't take over \[APIC_BASE\].
    ApicState = 22,
    /// The MTRRs describe memory in a way that can't be followed \[address\].
    Mtrr = 23,
    /// Saved state of Linux has a form that the hypervisor can't restore \[what\].
    LinuxState = 24,
    /// The region or the launch parameters are not as agreed \[offset\]: a fault of the module.
    LaunchParameters = 25,
    /// Gaol supports fewer CPUs \[present CPUs\].
    TooManyCpus = 26,
    // Cells
    /// A cell of that name exists \[its id\].
    CellExists = 40,
    /// There is no such cell.
    NoSuchCell = 41,
    /// The root cell can't be loaded, started or destroyed.
    RootCell = 42,
    /// Too many cells.
    TooManyCells = 43,
    /// The configuration names no CPU.
    NoCpu = 44,
    /// The CPU does not exist \[CPU\].
    CpuUnknown = 45,
    /// CPU 0 stays with Linux.
    CpuZero = 46,
    /// The CPU belongs to another cell \[CPU\].
    CpuOwned = 47,
    /// Linux could not take the CPU offline \[CPU\].
    CpuBusy = 48,
    /// Linux could not bring the CPU back \[CPU\].
    CpuNotBack = 49,
    /// The region's address, size or flags are wrong \[index of the region\].
    RegionInvalid = 50,
    /// The region overlaps another of the same cell, in guest-physical or host-physical memory \[index\].
    RegionOverlap = 51,
    /// The memory belongs to another cell \[address\].
    MemoryOwned = 52,
    /// The memory belongs to the hypervisor \[address\].
    MemoryIsHypervisors = 53,
    /// The region covers registers that the hypervisor owns: APIC or IOAPIC \[address\].
    MemoryIsInterruptController = 54,
    /// Linux could not give memory for a region of the cell \[bytes that were found\].
    CellMemory = 55,
    /// The ports belong to another cell or to the hypervisor \[first port\].
    PortsOwned = 56,
    /// The reset address is not in executable memory of the cell \[address\].
    ResetAddress = 57,
    /// The pool has too few frames \[frames needed, or 0\].
    OutOfFrames = 58,
    /// The cell denied the request.
    ShutdownDenied = 59,
    /// The cell did not answer in time \[milliseconds\].
    ShutdownTimedOut = 60,
    /// A cell is locked (RUNNING_LOCKED) \[its id\].
    CellLocked = 61,
    /// The cell runs.
    CellRunning = 62,
    /// The image does not fit into loadable memory \[target address\].
    LoadOutside = 63,
    /// A CPU did not stop in time \[CPU\].
    CpuDidNotStop = 64,
    /// The memory is not yet scrubbed.
    NotScrubbed = 65,
    /// Other cells exist \[how many\].
    CellsExist = 66,
    /// The cell's CPUs could not be taken into x2APIC mode or back \[CPU\].
    ApicMode = 67,
    /// The name is empty or not terminated.
    NameInvalid = 68,
    /// Another operation is under way.
    InProgress = 69,
    /// Nothing was loaded since the cell stopped.
    NotLoaded = 70,
    /// The memory is not RAM that Linux gave \[address\].
    MemoryNotRam = 71,
    /// The port range is empty, ends beyond port 0xffff or overlaps another of the same cell \[first port\].
    PortsInvalid = 72,
    /// There is no such PCI function \[segment << 16 | function\].
    DeviceUnknown = 73,
    /// The PCI function belongs to another cell, or is named twice \[segment << 16 | function\].
    DeviceOwned = 74,
    /// The PCI function is a bridge: it stays with the root cell \[segment << 16 | function\].
    DeviceIsBridge = 75,
    /// A function of the same group is not the cell's \[segment << 16 | the other function\].
    DeviceGroupSplit = 76,
    /// More interrupt vectors than the PCI function, or the cell's CPUs, have \[segment << 16 | function\].
    VectorBudget = 77,
    /// There is no such interrupt line \[global system interrupt\].
    InterruptUnknown = 78,
    /// The interrupt line belongs to another cell, or is named twice \[global system interrupt\].
    InterruptOwned = 79,
    /// The ways are none that the cache has, or not adjacent \[level << 32 | ways\].
    CacheWaysInvalid = 80,
    /// Cache ways belong to another cell, or none would be left for the root cell \[level << 32 | ways\].
    CacheWaysOwned = 81,
    /// The MSR can't be given to a cell \[MSR\].
    MsrInvalid = 82,
    /// The MSR belongs to another cell, or is named twice \[MSR\].
    MsrOwned = 83,
    /// The region covers PCI configuration space \[address\].
    MemoryIsPciConfiguration = 84,
    /// The region covers registers of an IOMMU \[address\].
    MemoryIsIommus = 85,
    /// The region covers memory that firmware or a device of the root reaches by DMA \[address\].
    MemoryIsReservedDma = 86,
    /// The region shall be reached by DMA, and is no memory \[index\].
    DmaOutsideMemory = 87,
    /// The region covers registers of a PCI function that is not the cell's \[address\].
    MemoryIsDevices = 88,
    /// The shared region differs from the one of the same name in another cell \[index\].
    SharedRegionDiffers = 89,
    /// This build can't keep what the configuration asks for ([`Unsupported`]) \[what\].
    Unsupported = 90,
    /// The configuration describes another machine \[CPU\].
    OtherMachine = 91,
    /// The description of the machine makes no sense \[[`MachineFault`] << 32 | index in the list that it is about\].
    MachineInvalid = 92,
    /// The region is RAM at an address where the machine has no memory \[index\].
    MemoryUnknown = 93,
    /// What the cell is loaded with is too large to be kept for restarts \[bytes\].
    RestartTooLarge = 94,
    /// The root uses the interrupt line \[global system interrupt\].
    InterruptInUse = 100,
    /// The hypervisor itself has failed on a CPU \[the CPU\]: in the midst of a management operation, so there can be no
    /// other one, or in this one.
    HypervisorFault = 120,
    /// More PCI functions than cells can have at one time \[segment << 16 | function\].
    TooManyDevices = 130,
    /// The PCI function has other addresses than the description says \[segment << 16 | function\].
    DeviceDiffers = 131,
    /// The PCI function does not end what it does, or does not come back from its reset \[segment << 16 | function\].
    DeviceStuck = 132,
    /// No IOMMU keeps the PCI function in the cell's memory \[segment << 16 | function\].
    UnprotectedDma = 133,
    /// Linux could not give the PCI function away \[segment << 16 | function\].
    DeviceNotTaken = 134,
    /// The PCI function has gone \[segment << 16 | function\].
    DeviceGone = 135,
    // IOMMUs
    /// Linux has an IOMMU translate DMA \[address of its registers\].
    IommuInUse = 140,
    /// An IOMMU lacks what Gaol needs of it \[address of its registers\].
    IommuCapability = 141,
    /// An IOMMU did not do in time what it was told \[address of its registers\].
    IommuStuck = 142,
    /// Linux has an IOMMU remap interrupts without a look at who sends them \[address of its registers\].
    IommuSources = 143,
    /// Firmware or the function itself reaches memory by DMA, whoever has the function \[segment << 16 | function\].
    DeviceHasReservedDma = 144,
    /// No IOMMU has as many interrupt entries, or knows of as many functions of cells \[segment << 16 | function\].
    IommuFull = 145,
    /// A bridge to conventional PCI may speak in the place of the PCI function, or an IOAPIC or HPET has its address, so that
    /// no IOMMU can tell it from others \[segment << 16 | function\].
    DeviceSharesRequester = 146,
    /// The IOMMU of an IOAPIC has no interrupt entry left for a line \[address of the IOAPIC's registers\].
    IommuLines = 147,
}

/// What [`Reason::MachineInvalid`] is about.
#[open_enum]
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MachineFault {
    /// A range is empty, wraps around, or ends beyond the addresses that a CPU can form.
    RangePlace = 1,
    /// A range is of a kind that does not exist.
    RangeKind = 2,
    /// PCI configuration space does not have 1 MiB a bus.
    PciConfigurationSize = 3,
    /// An IOAPIC has no pins, more than there can be, or some that another has.
    IoApicPins = 4,
    /// The hypervisor's memory lies on registers or on memory that firmware or devices reach.
    HypervisorOnRange = 5,
    /// Two CPUs have the same APIC id, or a CPU has flags that do not exist.
    Cpu = 6,
    /// A PCI function stands before one with a lower address, twice, or has flags that do not exist.
    DeviceOrder = 7,
    /// A base address register is of a PCI function that is not listed.
    BarDevice = 8,
    /// A base address register is empty, ends beyond the last address or port, or is none of the six.
    BarPlace = 9,
    /// The hypervisor's memory lies on registers of a PCI function.
    HypervisorOnBar = 10,
    /// The hypervisor's memory ends beyond the addresses that a CPU can form, or lies on an interrupt controller.
    HypervisorPlace = 11,
    /// An IOMMU's registers are no whole pages, or another one's, or the hypervisor's memory, or it has flags that do not
    /// exist; or there are two for all functions of a segment.
    Iommu = 12,
    /// A device is behind an IOMMU that is not listed, or of another segment, or behind two, or of no kind.
    IommuSource = 13,
}

/// What [`Reason::Unsupported`] is about.
#[open_enum]
#[repr(u64)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsupported {
    /// Interrupt lines of an IOAPIC whose interrupts Linux has remapped by an IOMMU that the hypervisor does not have.
    RemappedInterrupts = 2,
    /// Cache ways of a cell.
    CacheWays = 3,
}

/// A failure in numbers, or success with all fields 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Outcome {
    /// Why.
    pub reason: Reason,
    /// The CPU that found it, where that matters.
    pub cpu: u32,
    /// Of a launch: the [`crate::handover::LaunchStep`].
    pub step: u32,
    /// Zero.
    pub reserved: u32,
    /// See [`Reason`].
    pub detail: u64,
}
