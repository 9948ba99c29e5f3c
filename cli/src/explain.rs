//! What the module and the hypervisor report in numbers, in words: the one table of all reasons with their remedies.
//!
//! Invariant: every [`Reason`] that `gaol-abi` names has its own sentence and remedy here (tested).

use gaol_abi::driver::MAX_KEPT_BYTES;
use gaol_abi::handover::LaunchStep;
use gaol_abi::image::Vendor;
use gaol_abi::outcome::{Outcome, Reason, Unsupported};
use gaol_config::pci::FunctionAddress;
use gaol_config::quantity::Size;

use crate::arguments::CellName;

/// What the sentences need to know beside the numbers.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The cell that was named, for instance `"latency"`.
    pub cell: Option<CellName>,
    /// Vendor of the CPU.
    pub vendor: Option<Vendor>,
    /// Size of the memory that was asked for.
    pub memory_size: u64,
    /// Name of the region that it was for.
    pub memory_name: Option<String>,
    /// An address at which that memory could be reserved.
    pub reservation: Option<u64>,
}

/// A sentence without its full stop, and what to do.
pub type Words = (String, String);

fn words(sentence: impl Into<String>, remedy: impl Into<String>) -> Words {
    (sentence.into(), remedy.into())
}

/// Names of MSRs with capabilities of VMX (SDM, "VMX Capability Reporting Facility").
const CAPABILITY_MSRS: [&str; 18] = [
    "BASIC",
    "PINBASED_CTLS",
    "PROCBASED_CTLS",
    "EXIT_CTLS",
    "ENTRY_CTLS",
    "MISC",
    "CR0_FIXED0",
    "CR0_FIXED1",
    "CR4_FIXED0",
    "CR4_FIXED1",
    "VMCS_ENUM",
    "PROCBASED_CTLS2",
    "EPT_VPID_CAP",
    "TRUE_PINBASED_CTLS",
    "TRUE_PROCBASED_CTLS",
    "TRUE_EXIT_CTLS",
    "TRUE_ENTRY_CTLS",
    "VMFUNC",
];
/// Number of the first of [`CAPABILITY_MSRS`].
const FIRST_CAPABILITY_MSR: u64 = 0x480;

fn capability(detail: u64) -> String {
    let (msr, bits) = (detail >> 32, detail & 0xffff_ffff);
    let index = msr.checked_sub(FIRST_CAPABILITY_MSR);
    let name = index.and_then(|index| CAPABILITY_MSRS.get(usize::try_from(index).ok()?));
    match name {
        Some(name) => format!("bits {bits:#x} of IA32_VMX_{name}"),
        None => format!("bits {bits:#x} of MSR {msr:#x}"),
    }
}

/// Name of a launch step for people.
#[must_use]
pub fn step_name(step: u32) -> Option<&'static str> {
    Some(match LaunchStep(step) {
        LaunchStep::Arrive => "arriving in the hypervisor",
        LaunchStep::Prepare => "preparing the hypervisor",
        LaunchStep::PrivateTables => "building private tables",
        LaunchStep::CheckProcessor => "checking the processor",
        LaunchStep::EnableVirtualization => "turning virtualization on",
        LaunchStep::FillControlBlock => "filling the control block",
        LaunchStep::Ready => "waiting for the other CPUs",
        LaunchStep::FirstExit => "the first exit of Linux",
        _ => return None,
    })
}

/// Where in the launch it happened, in brackets behind the sentence.
#[must_use]
pub fn place_of(outcome: &Outcome) -> String {
    match step_name(outcome.step) {
        Some(name) => format!(" (CPU {}, step {}: {name})", outcome.cpu, outcome.step),
        None => String::new(),
    }
}

fn vendor_names(vendor: u64) -> &'static str {
    match u32::try_from(vendor).map(Vendor) {
        Ok(Vendor::Vmx) => "Intel (VMX)",
        Ok(Vendor::Svm) => "AMD (SVM)",
        _ => "an unknown vendor",
    }
}

/// The parameter of the kernel command line that reserves `size` bytes at `address`, and how to use it.
#[must_use]
pub fn reservation(size: u64, address: u64) -> String {
    let size = match size {
        size if size.is_multiple_of(1 << 20) => format!("{}M", size >> 20),
        size => format!("{}K", size >> 10),
    };
    format!("memmap={size}${address:#x}")
}

/// How to get memory that Linux could not give; `key` stands `place` in the configuration.
fn reserve(facts: &Facts, key: &str, place: &str) -> String {
    let Some(address) = facts.reservation else {
        return format!(
            "End programs that use much memory. This machine has no place where {} could be reserved at boot, or Gaol may not see it.",
            Size(facts.memory_size)
        );
    };
    format!(
        "End programs that use much memory, or boot Linux with `{}` (in a GRUB file: \\$) and set `{key} = {address:#x}` {place}.",
        reservation(facts.memory_size, address)
    )
}

fn found(bytes: u64, what: &str) -> String {
    match bytes {
        0 => "nothing of it was found".to_owned(),
        bytes => format!("{} {what}", Size(bytes)),
    }
}

impl Facts {
    fn cell(&self) -> String {
        match &self.cell {
            Some(CellName::Id(id)) => format!("cell {id}"),
            Some(CellName::Name(name)) => format!("cell \"{name}\""),
            None => "a cell".to_owned(),
        }
    }

    fn cell_argument(&self) -> String {
        match &self.cell {
            Some(CellName::Id(id)) => id.to_string(),
            Some(CellName::Name(name)) => name.clone(),
            None => "CELL".to_owned(),
        }
    }
}

const BUILD_IMAGE: &str = "Install the hypervisor's image of this version of Gaol.";
const BUILD_CONFIG: &str = "Compile the configuration again with `gaol config build`.";
const REPORT: &str =
    "This is a fault of Gaol: report it with the output of `dmesg` and `gaol console`.";
const CHECK: &str = "Run `gaol config check SYSTEM CELL`: it shows the line.";
const RETRY: &str = "Linux runs on as before. Try again when the machine is less busy.";

/// The sentence and the remedy for what was reported; `None` for a reason that this version does not know, and for
/// [`Reason::None`].
#[must_use]
pub fn explain(outcome: &Outcome, facts: &Facts) -> Option<Words> {
    let reason = outcome.reason;
    of_launch(reason, outcome.detail, facts)
        .or_else(|| of_processor(reason, outcome, facts))
        .or_else(|| of_configuration(reason, outcome.detail))
        .or_else(|| of_hardware(reason, outcome.detail))
        .or_else(|| of_cell(reason, outcome.detail, facts))
}

/// Reasons that lie in the image, the memory, or the state of the module.
fn of_launch(reason: Reason, detail: u64, facts: &Facts) -> Option<Words> {
    let ours = gaol_abi::ABI_REVISION;
    Some(match reason {
        Reason::ImageInvalid => words("the image is not Gaol's, damaged or truncated", BUILD_IMAGE),
        Reason::ImageRevision => words(
            format!("the image is of ABI revision {detail}, the module of {ours}"),
            BUILD_IMAGE,
        ),
        Reason::ImageVendor => words(
            format!(
                "the image is for CPUs of {}, and this is another",
                vendor_names(detail)
            ),
            match facts.vendor {
                Some(Vendor::Svm) => "Give gaol-svm.bin, or leave --image out.",
                _ => "Give gaol-vmx.bin, or leave --image out.",
            },
        ),
        Reason::HypervisorMemory => words(
            format!(
                "Linux could not give {} in one piece for the hypervisor: {}",
                Size(facts.memory_size),
                found(detail, "is the largest piece that was found")
            ),
            reserve(facts, "address", "under [hypervisor]"),
        ),
        Reason::MemoryNotReserved => words(
            format!("the memory at {detail:#x} is not reserved, or used by something else"),
            format!(
                "Boot Linux with `{}` (in a GRUB file: \\$), or leave `physical` and `address` out of the configuration: Linux then gives the memory.",
                reservation(facts.memory_size, detail)
            ),
        ),
        Reason::HypervisorMemoryTooSmall => words(
            format!(
                "the hypervisor needs {} of memory on this machine",
                Size(detail)
            ),
            format!(
                "Set `memory = \"{}\"` under [hypervisor].",
                Size(detail.checked_next_multiple_of(2 << 20).unwrap_or(detail))
            ),
        ),
        Reason::AlreadyEnabled => words(
            "Gaol is enabled already",
            "Disable it first, with `gaol disable`, if it shall have another configuration.",
        ),
        Reason::NotEnabled => words(
            "Gaol is not enabled",
            "Enable it first: gaol enable SYSTEM.toml",
        ),
        Reason::CpuTimedOut => words(
            format!("CPU {detail} did not come in time"),
            "Linux runs on as before. Try again, or raise `deadline` in the system file.",
        ),
        Reason::FaultInjected => words(
            format!(
                "step {detail} ({}) failed as it was told to",
                u32::try_from(detail)
                    .ok()
                    .and_then(step_name)
                    .unwrap_or("unknown")
            ),
            "Leave --fail-at out.",
        ),
        Reason::HypervisorFault => words(
            "the hypervisor itself has failed, so that the state of the cells is not known"
                .to_owned(),
            "This is a fault of Gaol: see `gaol cell list`, please report it, and restart the machine.",
        ),
        Reason::InProgress => words(
            "another operation is under way",
            "Wait until the other `gaol` command ends.",
        ),
        Reason::LaunchParameters => words(
            format!("module and hypervisor do not agree on the launch (offset {detail:#x})"),
            REPORT,
        ),
        Reason::TooManyCpus => words(
            format!(
                "the machine has {detail} CPUs, and Gaol supports {}",
                gaol_abi::MAX_CPUS
            ),
            "Boot Linux with `possible_cpus=` to leave some out.",
        ),
        Reason::OutOfFrames => words(
            match detail {
                0 => "the hypervisor has no memory left for page tables".to_owned(),
                frames => format!("the hypervisor lacks memory: {frames} pages are needed"),
            },
            "Set a larger `memory` under [hypervisor], and enable Gaol anew.",
        ),
        _ => return None,
    })
}

/// Reasons that lie in the processor, the firmware, or what Linux made of them.
fn of_processor(reason: Reason, outcome: &Outcome, facts: &Facts) -> Option<Words> {
    let detail = outcome.detail;
    let is_svm = facts.vendor == Some(Vendor::Svm);
    let extension = if is_svm { "SVM" } else { "VMX" };
    Some(match reason {
        Reason::NoVmx => words(
            format!("the CPU itself has no {extension}"),
            "In a virtual machine, let the host offer it (nested virtualization). On bare metal, use another machine.",
        ),
        Reason::VmxLockedOff => words(
            format!("the CPU has {extension}, but the firmware has it disabled and locked"),
            match is_svm {
                true => "Turn \"SVM Mode\" on in the firmware setup, and boot again.",
                false => {
                    "Turn \"Intel Virtualization Technology\" on in the firmware setup, and boot again."
                }
            },
        ),
        Reason::VmxInUse => words(
            format!("{extension} is in use on CPU {detail}, by KVM or another hypervisor"),
            "Stop virtual machines and unload kvm_intel or kvm_amd.",
        ),
        Reason::VmxCapability => words(
            format!("the CPU lacks what Gaol needs: {}", capability(detail)),
            "Use a CPU with EPT, VPID and unrestricted guests; in a virtual machine, let the host offer them.",
        ),
        Reason::CpuOffline => words(
            format!("CPU {detail} is offline, and has to be online"),
            format!("Bring it online: echo 1 > /sys/devices/system/cpu/cpu{detail}/online"),
        ),
        Reason::UnknownCr4 => words(
            format!("Linux uses processor features that Gaol does not know (CR4 bits {detail:#x})"),
            "Turn the feature off on the kernel command line, or use a newer Gaol.",
        ),
        Reason::EntryFailed => words(
            format!("the processor refused to enter Linux as a guest (number {detail:#x})"),
            REPORT,
        ),
        Reason::ApicState => words(
            format!("the APIC is in a state that can't be taken over (APIC_BASE {detail:#x})"),
            "Boot Linux without `nolapic` and `disableapic`.",
        ),
        Reason::Mtrr => words(
            format!("the firmware's memory types (MTRRs) contradict each other at {detail:#x}"),
            "Update the firmware.",
        ),
        Reason::LinuxState => words(
            format!("Linux is in a state that could not be restored later (number {detail:#x})"),
            REPORT,
        ),
        Reason::CpuNotBack => words(
            format!("Linux could not bring CPU {detail} back"),
            format!("See `dmesg`, then try: echo 1 > /sys/devices/system/cpu/cpu{detail}/online"),
        ),
        Reason::CpuDidNotStop => words(format!("CPU {detail} did not stop in time"), RETRY),
        Reason::ApicMode => words(
            format!("the APIC of CPU {detail} could not change its mode"),
            REPORT,
        ),
        _ => return None,
    })
}

/// Reasons that lie in a configuration.
fn of_configuration(reason: Reason, detail: u64) -> Option<Words> {
    let ours = gaol_abi::ABI_REVISION;
    Some(match reason {
        Reason::ConfigurationInvalid => words(
            format!("the configuration ({detail} bytes) is not Gaol's, or is truncated"),
            BUILD_CONFIG,
        ),
        Reason::ConfigurationRevision => words(
            format!("the configuration is of revision {detail}, the module of {ours}"),
            BUILD_CONFIG,
        ),
        Reason::ConfigurationChecksum => words(
            "the configuration's checksum is wrong: it was damaged or changed",
            BUILD_CONFIG,
        ),
        Reason::ConfigurationTooBig => words(
            format!(
                "the configuration has {detail} bytes, more than {}",
                gaol_abi::config::MAX_SIZE
            ),
            BUILD_CONFIG,
        ),
        Reason::NameInvalid => words(
            "the name is empty, too long or not printable",
            "A name has 1 to 31 ASCII characters and no spaces.",
        ),
        Reason::NoCpu => words("the cell has no CPU", "Name at least one: `cpus = [3]`."),
        Reason::CpuUnknown => words(
            format!("there is no CPU {detail}"),
            "See /sys/devices/system/cpu/present for those that are there.",
        ),
        Reason::CpuZero => words("CPU 0 stays with Linux", "Name other CPUs."),
        Reason::CpuOwned => words(
            format!("CPU {detail} belongs to another cell"),
            "See `gaol cell list`, and name another CPU.",
        ),
        Reason::RegionInvalid => words(
            format!("address, size or flags of memory region {detail} (counted from 0) are wrong"),
            CHECK,
        ),
        Reason::RegionOverlap => words(
            format!("memory region {detail} (counted from 0) overlaps another of the cell"),
            CHECK,
        ),
        Reason::MemoryOwned => words(
            format!("the memory at {detail:#x} belongs to another cell"),
            "Choose another address, or leave `physical` out: Linux then gives the memory.",
        ),
        Reason::MemoryIsHypervisors => words(
            format!("the memory at {detail:#x} is the hypervisor's"),
            "Choose another address, or leave `physical` out: Linux then gives the memory.",
        ),
        Reason::MemoryIsInterruptController => words(
            format!("an interrupt controller is at {detail:#x}, and stays the hypervisor's"),
            "Leave that page out of the cell's memory.",
        ),
        Reason::MemoryNotRam => words(
            format!("the memory at {detail:#x} can't be the cell's: Linux uses it"),
            "Reserve it with `memmap=`, or leave `physical` out: Linux then gives the memory.",
        ),
        Reason::PortsOwned => words(
            format!("the ports from {detail:#x} on belong to another cell or the hypervisor"),
            "Take them out of one of the two configurations.",
        ),
        Reason::PortsInvalid => words(
            format!("the ports from {detail:#x} on don't exist, or are named twice"),
            CHECK,
        ),
        Reason::ResetAddress => words(
            format!("the cell's CPUs would start at {detail:#x}, where it has no code"),
            "Set `reset-address` to an address in executable memory of the cell.",
        ),
        _ => return None,
    })
}

/// Reasons that lie in what a configuration says of devices, interrupts, caches, registers and the machine.
fn of_hardware(reason: Reason, detail: u64) -> Option<Words> {
    let function = FunctionAddress::from_detail(detail);
    let (level, ways) = (detail >> 32, detail & 0xffff_ffff);
    Some(match reason {
        Reason::DeviceUnknown => words(format!("there is no PCI function {function}"), CHECK),
        Reason::DeviceOwned => words(
            format!("PCI function {function} belongs to another cell, or is named twice"),
            "Take it out of one of the two.",
        ),
        Reason::DeviceIsBridge => words(
            format!("PCI function {function} is a bridge, which stays with the root cell"),
            "Name the functions behind it.",
        ),
        Reason::TooManyDevices => words(
            format!("PCI function {function} is one more than cells can have at one time"),
            "Give cells fewer PCI functions.",
        ),
        Reason::DeviceDiffers => words(
            format!("PCI function {function} has other addresses than the description says"),
            "Describe the machine as it is now: gaol config create",
        ),
        Reason::DeviceStuck => words(
            format!(
                "PCI function {function} does not end what it does, or did not come back from its reset"
            ),
            "Unbind its driver in Linux first, or leave the function to the root cell.",
        ),
        Reason::UnprotectedDma => words(
            format!(
                "no IOMMU keeps PCI function {function} in the memory of the cell: its DMA can reach all of the machine"
            ),
            "Write `bus-master = false` below it if the cell uses its registers only, or `unprotected-dma = true` for the cell if you trust it with the whole machine.",
        ),
        Reason::DeviceSharesRequester => words(
            format!(
                "PCI function {function} is behind a bridge to conventional PCI, or has the address of an IOAPIC or HPET: no IOMMU can tell it from others"
            ),
            "Put a card into a slot of PCI Express, or write `bus-master = false` below it if the cell uses its registers only.",
        ),
        Reason::DeviceNotTaken => words(
            format!("Linux does not let go of PCI function {function}"),
            "The kernel's log says why (dmesg): it may be in use, for the root file system for instance.",
        ),
        Reason::DeviceGone => words(
            format!(
                "PCI function {function} did not come back from the cell, so no driver of Linux' gets it"
            ),
            format!(
                "Look at the hardware, and let Linux find it again: echo 1 > /sys/bus/pci/devices/{function}/remove; echo 1 > /sys/bus/pci/rescan"
            ),
        ),
        Reason::DeviceHasReservedDma => words(
            format!(
                "PCI function {function} uses memory that the firmware keeps for it, whoever has the function"
            ),
            "Leave it to the root cell.",
        ),
        Reason::IommuFull => words(
            format!(
                "the IOMMU of PCI function {function} has no interrupt entries left for it, or cells have too many functions"
            ),
            "Write fewer `vectors`, or give cells fewer PCI functions.",
        ),
        Reason::IommuLines => words(
            format!(
                "the IOMMU of the IOAPIC at {detail:#x} has no interrupt entry left for a line"
            ),
            "Give cells fewer interrupt lines, or PCI functions with fewer `vectors`.",
        ),
        Reason::IommuInUse => words(
            format!("Linux has the IOMMU at {detail:#x} translate DMA"),
            "Boot Linux with `intel_iommu=off`: Gaol then has the IOMMU, and Linux goes on to remap its interrupts.",
        ),
        Reason::IommuSources => words(
            format!(
                "Linux has the IOMMU at {detail:#x} remap interrupts without a look at who sends them"
            ),
            "Boot Linux without `intremap=nosid`.",
        ),
        Reason::IommuCapability => words(
            format!(
                "the IOMMU at {detail:#x} has no invalidation queue, or no tables that reach all memory"
            ),
            "Turn VT-d off in the firmware: cells can then have devices only where they are trusted.",
        ),
        Reason::IommuStuck => words(
            format!("the IOMMU at {detail:#x} did not do in time what it was told"),
            "Reboot. If that does not help, turn VT-d off in the firmware.",
        ),
        Reason::DeviceGroupSplit => words(
            format!(
                "a PCI function can't be kept apart from {function}, which the cell does not have"
            ),
            "Give both of them to one cell.",
        ),
        Reason::VectorBudget => words(
            format!(
                "PCI function {function} asks for more interrupt vectors than it or the cell has"
            ),
            "Write fewer `vectors`, or give the cell another CPU.",
        ),
        Reason::InterruptUnknown => words(format!("there is no interrupt line {detail}"), CHECK),
        Reason::InterruptOwned => words(
            format!("interrupt line {detail} belongs to another cell, or is named twice"),
            "Take it out of one of the two.",
        ),
        Reason::InterruptInUse => words(
            format!("Linux uses interrupt line {detail}"),
            "Make its driver let go of it (`cat /proc/interrupts` names it), or take another line.",
        ),
        Reason::CacheWaysInvalid => words(
            format!(
                "the ways {ways:#x} of the level-{level} cache don't exist, or are not adjacent"
            ),
            CHECK,
        ),
        Reason::CacheWaysOwned => words(
            format!(
                "the ways {ways:#x} of the level-{level} cache belong to another cell, or are the last"
            ),
            "Name other ways, and leave some for the root cell.",
        ),
        Reason::MsrInvalid => words(
            format!("register {detail:#x} can't be given to a cell like this"),
            CHECK,
        ),
        Reason::MsrOwned => words(
            format!("register {detail:#x} belongs to another cell, or is named twice"),
            "Take it out of one of the two, or write `per-cpu = true` in both if each CPU has its own.",
        ),
        Reason::MemoryIsPciConfiguration => words(
            format!("PCI configuration space is at {detail:#x}, and stays the hypervisor's"),
            "Name PCI functions in [[devices]], and leave their configuration space out.",
        ),
        Reason::MemoryIsIommus => words(
            format!("an IOMMU is at {detail:#x}, and stays the hypervisor's"),
            "Leave that page out.",
        ),
        Reason::MemoryIsReservedDma => words(
            format!("firmware or a device of the root cell reaches the memory at {detail:#x}"),
            "Choose other memory.",
        ),
        Reason::MemoryIsDevices => words(
            format!("a PCI function that is not the cell's has its registers at {detail:#x}"),
            "Name the function in [[devices]]: its registers come with it.",
        ),
        Reason::MemoryUnknown => words(
            format!("the machine has no memory where region {detail} (counted from 0) is"),
            "Choose another address, or leave `physical` out: Linux then gives the memory.",
        ),
        Reason::RestartTooLarge => words(
            format!(
                "{detail} bytes are too many to be kept for restarts, at most {MAX_KEPT_BYTES} are"
            ),
            "Load less, or take the policy \"restart\" out of [watchdog].",
        ),
        Reason::DmaOutsideMemory => words(
            format!("devices shall reach region {detail} (counted from 0), where no memory is"),
            "Choose memory, or take `dma` out.",
        ),
        Reason::SharedRegionDiffers => words(
            format!("shared region {detail} (counted from 0) differs from that of another cell"),
            "Give both of them one size, one kind and one cache.",
        ),
        Reason::Unsupported => words(
            match Unsupported(detail) {
                Unsupported::RemappedInterrupts => {
                    "Linux has an IOMMU remap interrupts, and the firmware's table does not say that the IOAPIC of these \
                     interrupt lines is behind one (boot it with intremap=off)"
                }
                Unsupported::CacheWays => "this build gives no cache ways to cells yet",
                _ => "this build can't do what the configuration asks for yet",
            },
            "Take that key out, or use a newer hypervisor.",
        ),
        Reason::OtherMachine => words(
            format!("the configuration describes another machine: CPU {detail} differs"),
            "Describe this one: gaol config create",
        ),
        Reason::MachineInvalid => words(
            format!("what the configuration says of the machine makes no sense ({detail:#x})"),
            "Run `gaol config check SYSTEM`, or describe the machine anew: gaol config create",
        ),
        _ => return None,
    })
}

/// Reasons that lie in a cell.
fn of_cell(reason: Reason, detail: u64, facts: &Facts) -> Option<Words> {
    let (cell, argument) = (facts.cell(), facts.cell_argument());
    Some(match reason {
        Reason::CellExists => words(
            format!("{cell} exists already, as number {detail}"),
            format!("Destroy it first, with `gaol cell destroy {detail}`, or choose another name."),
        ),
        Reason::NoSuchCell => words(
            format!("there is no {}", cell.trim_start_matches("a ")),
            "See `gaol cell list`.",
        ),
        Reason::RootCell => words(
            format!("{cell} is Linux itself"),
            "The root cell is neither loaded, started nor destroyed: `gaol disable` ends Gaol.",
        ),
        Reason::TooManyCells => words(
            format!("there are {} cells already", gaol_abi::MAX_CELLS),
            "Destroy one first: gaol cell destroy CELL",
        ),
        Reason::CpuBusy => words(
            format!("Linux could not take CPU {detail} offline"),
            "See `dmesg`; move interrupts and pinned tasks off it, or name another CPU.",
        ),
        Reason::CellMemory => words(
            format!(
                "Linux could not give {} for {}: {}",
                Size(facts.memory_size),
                facts
                    .memory_name
                    .as_ref()
                    .map_or("the cell".to_owned(), |name| format!("memory \"{name}\"")),
                found(detail, "is all that was found")
            ),
            reserve(facts, "physical", "for this memory"),
        ),
        Reason::ShutdownDenied => words(
            format!("{cell} denied the request to end"),
            format!("Ask it later, or do not ask: gaol cell shutdown {argument} --force"),
        ),
        Reason::ShutdownTimedOut => words(
            format!("{cell} did not answer in time ({detail} ms)"),
            format!("Do not ask it: gaol cell shutdown {argument} --force"),
        ),
        Reason::CellLocked => words(
            format!("cell {detail} is locked: it wants the set of cells to stay as it is"),
            format!(
                "Let it finish, stop it (gaol cell shutdown {detail} --force), or go on without it: --force"
            ),
        ),
        Reason::CellRunning => words(
            format!("{cell} runs"),
            format!("Stop it first: gaol cell shutdown {argument}"),
        ),
        Reason::LoadOutside => words(
            format!("what goes to {detail:#x} does not fit into loadable memory of {cell}"),
            "Make the region larger or loadable in the cell's file, or give another address with -a.",
        ),
        Reason::NotScrubbed => words(
            format!("the memory of {cell} is not cleared yet"),
            format!("Try again: gaol cell destroy {argument}"),
        ),
        Reason::CellsExist => words(
            match detail {
                1 => "a cell still exists".to_owned(),
                count => format!("{count} cells still exist"),
            },
            "Destroy them first, with `gaol cell destroy`, or all at once: gaol disable --force",
        ),
        Reason::NotLoaded => words(
            format!("nothing was loaded into {cell} since it stopped"),
            format!("Load it first: gaol cell load {argument} IMAGE"),
        ),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn outcome(reason: Reason, detail: u64) -> Outcome {
        Outcome {
            reason,
            cpu: 2,
            step: 0,
            reserved: 0,
            detail,
        }
    }

    /// Open enums show the name of a value that they know, and the number of one that they don't.
    fn is_named(reason: Reason) -> bool {
        !format!("{reason:?}").contains('(')
    }

    #[test]
    fn every_reason_has_a_sentence_and_a_remedy_of_its_own() {
        assert!(is_named(Reason::PortsInvalid) && !is_named(Reason(9999)));
        let mut sentences = HashSet::new();
        let mut count = 0;
        for number in 1..10_000 {
            let reason = Reason(number);
            let explanation = explain(&outcome(reason, 3), &Facts::default());
            assert_eq!(explanation.is_some(), is_named(reason), "{reason:?}");
            if let Some((sentence, remedy)) = explanation {
                assert!(!sentence.ends_with('.') && !remedy.is_empty(), "{reason:?}");
                assert!(sentences.insert(sentence.clone()), "{sentence}");
                count += 1;
            }
        }
        assert!(count >= 58, "{count}");
        assert_eq!(explain(&outcome(Reason::None, 0), &Facts::default()), None);
    }

    #[test]
    fn every_step_has_a_name() {
        let last = gaol_abi::handover::LAST_LAUNCH_STEP;
        assert!((1..=last).all(|step| step_name(step).is_some()));
        assert!(step_name(0).is_none() && step_name(last + 1).is_none());
        let mut failed = outcome(Reason::VmxCapability, 0);
        assert_eq!(place_of(&failed), "");
        failed.step = 4;
        assert_eq!(
            place_of(&failed),
            " (CPU 2, step 4: checking the processor)"
        );
    }

    #[test]
    fn numbers_are_put_into_words() {
        let facts = Facts {
            cell: Some(CellName::Name("latency".to_owned())),
            vendor: Some(Vendor::Vmx),
            memory_size: 4 << 20,
            memory_name: None,
            reservation: Some(0x3a00_0000),
        };
        let sentence = |reason, detail| explain(&outcome(reason, detail), &facts).unwrap();
        let (memory, remedy) = sentence(Reason::HypervisorMemory, 2 << 20);
        assert_eq!(
            memory,
            "Linux could not give 4 MiB in one piece for the hypervisor: 2 MiB is the largest piece that was found"
        );
        assert!(remedy.contains("memmap=4M$0x3a000000") && remedy.contains("address = 0x3a000000"));
        let (_, remedy) = sentence(Reason::MemoryNotReserved, 0x3c00_0000);
        assert!(remedy.contains("memmap=4M$0x3c000000"));
        let (missing, _) = sentence(Reason::VmxCapability, (0x48b << 32) | 0x80);
        assert!(
            missing.ends_with("bits 0x80 of IA32_VMX_PROCBASED_CTLS2"),
            "{missing}"
        );
        let (denied, remedy) = sentence(Reason::ShutdownDenied, 0);
        assert_eq!(denied, "cell \"latency\" denied the request to end");
        assert!(remedy.ends_with("gaol cell shutdown latency --force"));
        let (_, remedy) = sentence(Reason::HypervisorMemoryTooSmall, (4 << 20) + 4096);
        assert_eq!(remedy, "Set `memory = \"6 MiB\"` under [hypervisor].");
        assert_eq!(
            sentence(Reason::NoSuchCell, 0).0,
            "there is no cell \"latency\""
        );
        assert_eq!(sentence(Reason::CellsExist, 1).0, "a cell still exists");
        assert_eq!(sentence(Reason::CellsExist, 2).0, "2 cells still exist");
    }

    #[test]
    fn it_is_said_whether_cpu_or_firmware_lacks_virtualization() {
        let say = |reason, vendor| {
            let facts = Facts {
                vendor: Some(vendor),
                ..Facts::default()
            };
            explain(&outcome(reason, 0), &facts).unwrap().0
        };
        assert_eq!(say(Reason::NoVmx, Vendor::Vmx), "the CPU itself has no VMX");
        assert_eq!(
            say(Reason::VmxLockedOff, Vendor::Vmx),
            "the CPU has VMX, but the firmware has it disabled and locked"
        );
        assert_eq!(say(Reason::NoVmx, Vendor::Svm), "the CPU itself has no SVM");
    }
}
