//! The C header of the module, generated.
//!
//! Invariant: whatever another module of this crate makes public stands in the header, and nothing is written down here
//! but names: types, sizes, offsets and values are the compiler's. Structures with a gap, or with a field left out, fail
//! the tests; so does a header that the C compiler reads differently (each structure asserts its size and offsets).
//!
//! Names: `struct gaol_launch_parameters`, `GAOL_<MODULE>_<CONSTANT>`, `GAOL_<ENUM>_<VARIANT>`, and, for assembly,
//! `GAOL_OFFSET_<STRUCTURE>_<FIELD>`. Assembly sees the definitions only.

use alloc::format;
use alloc::string::{String, ToString};
use core::mem::{offset_of, size_of};

use crate::exit::{COUNTERS, counter_name};
use crate::image::Vendor;
use crate::{
    communication, config, driver, exit, handover, hypercall, image, latency, outcome, public,
};

/// A type that a field may have.
trait CType {
    /// What stands before the field's name.
    fn base() -> String;
    /// What stands behind the field's name.
    fn dimensions() -> String {
        String::new()
    }
}

macro_rules! numbers {
    ($($rust:ty => $c:literal),+ $(,)?) => { $(
        impl CType for $rust {
            fn base() -> String {
                $c.to_string()
            }
        }
    )+ };
}

numbers!(
    u8 => "__u8",
    u16 => "__u16",
    u32 => "__u32",
    u64 => "__u64",
    i32 => "__s32",
    image::Vendor => "__u32",
    outcome::Reason => "__u32",
    public::CpuState => "__u32",
    public::RootFailureKind => "__u32",
    public::HypervisorFaultKind => "__u32",
    public::TraceKind => "__u32",
);

impl<T: CType, const N: usize> CType for [T; N] {
    fn base() -> String {
        T::base()
    }

    fn dimensions() -> String {
        format!("[{N}]{}", T::dimensions())
    }
}

/// A constant's value as C has it.
trait CValue {
    /// The expression.
    fn expression(&self) -> String;
}

macro_rules! plain_values {
    ($($rust:ty),+) => { $(
        impl CValue for $rust {
            fn expression(&self) -> String {
                format!("{self:#x}")
            }
        }
    )+ };
}

plain_values!(u8, u16, u32, u64, usize, i32, i64);

impl<const N: usize> CValue for [u8; N] {
    fn expression(&self) -> String {
        format!(
            "\"{}\"",
            self.escape_ascii().to_string().replace("\\x00", "\\0")
        )
    }
}

/// `LaunchWord` → `launch_word`.
fn snake(name: &str) -> String {
    let mut out = String::new();
    for (index, letter) in name.char_indices() {
        if letter.is_ascii_uppercase() && index > 0 {
            out.push('_');
        }
        out.push(letter.to_ascii_lowercase());
    }
    out
}

/// The text so far: definitions for everyone, and the part that assembly does not see.
#[derive(Default)]
struct Header {
    definitions: String,
    structures: String,
}

impl Header {
    fn define(&mut self, name: &str, value: &str) {
        self.definitions
            .push_str(&format!("#define {name} {value}\n"));
    }

    fn constant(&mut self, module: &str, name: &str, value: &impl CValue) {
        let prefix = if module.is_empty() { "" } else { "_" };
        let name = format!("GAOL{prefix}{}_{name}", module.to_uppercase());
        self.define(&name, &value.expression());
    }

    fn variant(&mut self, enumeration: &str, variant: &str, value: &impl CValue) {
        let name = format!("GAOL_{}_{}", snake(enumeration), snake(variant)).to_uppercase();
        self.define(&name, &value.expression());
    }
}

/// A structure while its fields are written.
struct Structure<'a> {
    header: &'a mut Header,
    name: String,
    body: String,
    assertions: String,
    end: usize,
}

impl<'a> Structure<'a> {
    fn new(header: &'a mut Header, name: &str) -> Self {
        Self {
            header,
            name: snake(name),
            body: String::new(),
            assertions: String::new(),
            end: 0,
        }
    }

    /// `get` only tells the type of the field.
    fn field<S, T: CType>(&mut self, field: &str, offset: usize, _get: fn(&S) -> &T) {
        assert_eq!(
            self.end, offset,
            "a gap before field {field} of {}",
            self.name
        );
        self.end = offset + size_of::<T>();
        self.body
            .push_str(&format!("\t{} {field}{};\n", T::base(), T::dimensions()));
        self.assertions.push_str(&format!(
            "_Static_assert(__builtin_offsetof(struct gaol_{0}, {field}) == {offset:#x}, \"{field}\");\n",
            self.name
        ));
        let define = format!("GAOL_OFFSET_{}_{field}", self.name).to_uppercase();
        self.header.define(&define, &offset.expression());
    }

    fn finish(self, size: usize) {
        assert_eq!(self.end, size, "fields of {} are missing", self.name);
        self.header.structures.push_str(&format!(
            "struct gaol_{0} {{\n{1}}};\n_Static_assert(sizeof(struct gaol_{0}) == {size:#x}, \"size\");\n{2}\n",
            self.name, self.body, self.assertions
        ));
    }
}

macro_rules! structures {
    ($($module:ident::$type:ident { $($field:ident),+ $(,)? })+) => {
        $(
            impl CType for $module::$type {
                fn base() -> String {
                    format!("struct gaol_{}", snake(stringify!($type)))
                }
            }
        )+

        fn structures(header: &mut Header) {
            $(
                let mut structure = Structure::new(header, stringify!($type));
                $(
                    structure.field(
                        stringify!($field),
                        offset_of!($module::$type, $field),
                        |value: &$module::$type| &value.$field,
                    );
                )+
                structure.finish(size_of::<$module::$type>());
            )+
        }
    };
}

structures! {
    outcome::Outcome { reason, cpu, step, reserved, detail }
    image::ImageHeader {
        signature, abi_revision, vendor, checksum, reserved, file_size, memory_size, entry, text, text_size, rodata,
        rodata_size, data, data_size, cpu_area_size,
    }
    handover::LaunchParameters {
        signature, abi_revision, cpu_count, region_physical, region_size, public, public_size, handover,
        handover_virtual, boot_tables, boot_tables_size, boot_table_root, config, config_size, cpu_areas, pool,
        stub_virtual, stub_physical, stub_leave, stub_first_instruction, physical_end, deadline_cycles, tsc_khz,
        fault_cpu, fault_step, launch_word, low_page, arrived, pm_timer_port, enable_cycles, reset_register, reset_register_kind, reset_value, power_control_ports,
    }
    handover::GeneralRegisters {
        rax, rcx, rdx, rbx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rsp,
    }
    handover::TableRegister { reserved, limit, base }
    handover::LinuxState {
        registers, rip, rflags, cr0, cr3, cr4, dr7, gdtr, idtr, fs_base, gs_base, selectors, task_descriptor,
    }
    handover::HandoverPage {
        state, cpu, apic_id, entry, entry_stack, boot_cr3, nmi_count, machine_check_count, result, failed_step,
        left, reserved_behind_left,
        emergency_gdtr, emergency_idtr, reserved, gdt, task_state, reserved_behind_task_state, idt, stacks,
    }
    config::Preamble { signature, revision, total_size, checksum, flags }
    config::SystemHeader {
        preamble, name, hypervisor_physical, hypervisor_size, console_kind, console_divisor, console_address,
        deadline_milliseconds, l3_ways, l2_ways, range_count, bar_count, root_memory_count, root_msr_count, cpu_count,
        root_port_count, device_count, root_failure, iommu_count, iommu_source_count,
    }
    config::MachineRange { physical, size, kind, extent, number }
    config::IommuUnit { registers, size, segment, flags }
    config::IommuSource { address, unit, kind, segment, source }
    config::MachineCpu { apic_id, package, core, l2, l3, node, flags }
    config::MachineDevice { segment, function, group, flags, vendor, device, msi_vectors, msix_vectors }
    config::MachineBar { address, size, device, number, flags, reserved }
    config::CellHeader {
        preamble, name, cpus, reset_address, shutdown_milliseconds, violation, memory_region_count, msr_count,
        interrupt_count, device_count, port_range_count, l3_ways, l2_ways, watchdog_milliseconds, watchdog_policy, reserved,
    }
    config::MemoryRegion { name, physical, guest, size, flags }
    config::PortRange { first, count }
    config::MsrAccess { msr, flags, write_mask }
    config::Interrupt { number }
    config::AssignedDevice { segment, function, vectors, flags }
    driver::EnableRequest {
        revision, fault_cpu, fault_step, flags, image, image_size, config, config_size, region_physical, region_size,
        cycles, outcome,
    }
    driver::CellReference { id, reserved, name }
    driver::CellCreateRequest {
        revision, id, flags, region, config, config_size, cycles, scrub_cycles, outcome,
    }
    driver::LoadImage { source, size, target }
    driver::CellLoadRequest { revision, image_count, cell, images, cycles, outcome }
    driver::CellCommand { revision, flags, cell, cycles, scrub_cycles, outcome }
    driver::MemoryOfferRequest { revision, block_count, blocks, block_size, outcome }
    public::WatchdogRecord { expired, heartbeat, time }
    public::RootFailure { count, kind, cpu, parked, address, time }
    public::IommuState {
        units, remapping, failed, functions, entries, entries_most, overruled, domains, faults, lost,
    }
    public::DeviceFaults { source, cell, count, address, time, reason, flags }
    public::SystemPublic {
        abi_revision, cpu_count, frames_total, frames_used, last_outcome, tsc_khz, apic_khz, image_bytes, cells,
        restart_cycles, longest_pauses, watchdogs, root_failure, unprotected_cells,
        iommus, device_faults,
    }
    public::RingHeader { written }
    public::RingEntry { character, source }
    public::TraceEvent { begin, time, kind, cell, source, reason, address, place, qualification, end }
    public::TraceRing { written, left_out, reserved, events }
    public::FaultRecord {
        count, cell, exit_reason, instruction_length, qualification, address, rip, rflags, cr0, cr3, cr4, cs_base,
        time, registers, instruction,
    }
    public::HypervisorFault {
        count, kind, cell, vector, error_code, rip, address, stack, time, line, trace_length, trace, file,
    }
    public::CpuPublic { exits, state, cell, fault, hypervisor_fault, host_registers }
    communication::Console {
        address, size, kind, flags, divider, gate_number, clock_register,
    }
    communication::CommunicationRegion {
        signature, revision, cell_state, msg_to_cell, reply_from_cell, flags, console, pci_mmconfig_base,
        pm_timer_address, num_cpus, tsc_khz, apic_khz, reserved,
    }
    communication::DmaHeader { count, flags }
    communication::DmaRange { guest, device, size }
    latency::Results {
        signature, ticks, ticks_done, period_cycles, tsc_khz, min_cycles, max_cycles, sum_cycles, class_cycles,
        overflow, finished, missed, histogram,
    }
}

macro_rules! constants {
    ($($module:ident { $($name:ident),+ $(,)? })+) => {
        fn constants(header: &mut Header) {
            $( $( header.constant(stringify!($module), stringify!($name), &$module::$name); )+ )+
        }
    };
}

constants! {
    image { LINK_BASE, SIGNATURE, CHECKSUM_OFFSET }
    handover {
        SIGNATURE, LAST_LAUNCH_STEP, FAULT_BY_HYPERCALL, SELECTOR_ES, SELECTOR_CS, SELECTOR_SS, SELECTOR_DS, SELECTOR_FS, SELECTOR_GS,
        SELECTOR_LDTR, SELECTOR_TR, GDT_BYTES, TASK_STATE_BYTES, IDT_GATES, STUB_STACK_END, NMI_STACK_END,
        MACHINE_CHECK_STACK_END, RESET_REGISTER_NONE, RESET_REGISTER_PORT, RESET_REGISTER_MEMORY,
    }
    config {
        SYSTEM_SIGNATURE, CELL_SIGNATURE, MAX_SIZE, MAX_CELL_SIZE, MAX_MEMORY_REGIONS, MAX_PORT_RANGES, MAX_MSRS, MAX_ROOT_MSRS,
        MAX_INTERRUPTS, MAX_DEVICES, DEFAULT_DEVICE_VECTORS, MAX_MACHINE_RANGES, MAX_MACHINE_DEVICES, MAX_MACHINE_BARS, CPU_WORDS,
        MAX_IOMMUS, MAX_IOMMU_SOURCES, IOMMU_INCLUDES_ALL, IOMMU_SOURCE_FUNCTION, IOMMU_SOURCE_IO_APIC, IOMMU_SOURCE_HPET,
        IOMMU_SOURCE_RESERVED,
        CHECKSUM_OFFSET, SYSTEM_STRICT_ROOT, SYSTEM_DESCRIBES_MACHINE, RANGE_RAM, RANGE_IO_APIC,
        RANGE_PCI_CONFIGURATION, RANGE_IOMMU, RANGE_RESERVED_DMA, MACHINE_CPU_SMIS, MACHINE_DEVICE_BRIDGE,
        MACHINE_DEVICE_SHARES_REQUESTER, MACHINE_DEVICE_ALL_FLAGS,
        MACHINE_BAR_PORTS, MACHINE_BAR_64, MACHINE_BAR_PREFETCHABLE, VIOLATION_PARK_CPU, VIOLATION_PARK_CELL,
        WATCHDOG_RECORD, WATCHDOG_RESTART, WATCHDOG_HALT, ROOT_FAILURE_CONTINUE, ROOT_FAILURE_RESET, CONSOLE_NONE, CONSOLE_UART_PORT, CELL_CONSOLE, CELL_PASSIVE, CELL_IGNORE_UNASSIGNED_PORTS, CELL_UNPROTECTED_DMA, DEVICE_NO_MASTER, DEVICE_ALL_FLAGS, MEMORY_READ,
        MEMORY_WRITE, MEMORY_EXECUTE, MEMORY_DMA, MEMORY_DEVICE, MEMORY_COMMUNICATION, MEMORY_LOADABLE,
        MEMORY_ROOT_SHARED, MEMORY_SHARED, MEMORY_CONTINUED, MEMORY_TYPE_MASK, MEMORY_TYPE_UNCACHEABLE,
        MEMORY_TYPE_WRITE_COMBINING, MEMORY_TYPE_WRITE_THROUGH, MEMORY_TYPE_WRITE_PROTECTED, MEMORY_TYPE_WRITE_BACK,
        MEMORY_WIDTH_8, MEMORY_WIDTH_16, MEMORY_WIDTH_32, MEMORY_WIDTH_64, MEMORY_WIDTHS, MEMORY_ALL_FLAGS, MSR_READ,
        MSR_WRITE, MSR_PER_CPU, MSR_ALL_FLAGS,
    }
    driver {
        IOCTL_TYPE, IOCTL_ENABLE, IOCTL_DISABLE, IOCTL_CELL_CREATE, IOCTL_CELL_LOAD, IOCTL_CELL_START,
        IOCTL_CELL_SHUTDOWN, IOCTL_CELL_DESTROY, IOCTL_MEMORY_OFFER, FLAG_FORCE, FLAG_PIECES, FLAG_CREATE_FORCE, MAX_KEPT_BYTES, MAX_LOAD_IMAGES,
        MAX_MEMORY_BLOCKS,
    }
    hypercall {
        CPUID_SIGNATURE_LEAF, CPUID_FEATURES_LEAF, CPUID_SIGNATURE, SCRUB_CHUNK, DESTROY_FORCE, CPU_RUNNING,
        CPU_FAILED, JAILHOUSE_COUNTERS,
    }
    public {
        MAX_FAULTY_DEVICES, DEVICE_QUARANTINED, DEVICE_FAULT_READ,
        FAULT_TRACE, FAULT_FILE, PAUSES, RING_PAGES, RING_OFFSET, RING_ENTRIES, TRACE_OFFSET, TRACE_EVENTS, TRACE_WORDS, CPU_OFFSET, RING_ENTRIES_OFFSET, RING_BY_HYPERVISOR,
    }
    exit {
        COUNTERS, COUNTER_NESTED_FAULT, COUNTER_OTHER, COUNTER_KICKS, COUNTER_ROOT_VIOLATIONS,
        COUNTER_XAPIC_WRITES, COUNTER_X2APIC_ICR, COUNTER_GUEST_NMIS, COUNTER_DROPPED_IPIS, COUNTER_DROPPED_NMIS, FIRST_DERIVED_COUNTER,
    }
    communication { REVISION, SIGNATURE, HEARTBEAT_OFFSET, DMA_OFFSET, DMA_UNPROTECTED, FLAG_DEBUG_PUTC_PERMITTED, FLAG_DEBUG_PUTC_ACTIVE }
    latency { SIGNATURE, CLASSES }
}

macro_rules! enumerations {
    ($($module:ident::$type:ident { $($variant:ident),+ $(,)? })+) => {
        fn enumerations(header: &mut Header) {
            $( $(
                header.variant(stringify!($type), stringify!($variant), &$module::$type::$variant.0);
            )+ )+
        }
    };
}

enumerations! {
    image::Vendor { Vmx, Svm }
    handover::LaunchWord { Prepare, Committed, Aborted }
    handover::LaunchStep {
        None, Arrive, Prepare, PrivateTables, CheckProcessor, EnableVirtualization, FillControlBlock, Ready, FirstExit,
    }
    hypercall::Hypercall {
        Disable, CellCreate, CellStart, CellSetLoadable, CellDestroy, GetInfo, CellGetState, CpuGetInfo,
        DebugConsolePutc, Commit, Scrub, Watchdog, RootFailed, InjectFault,
    }
    hypercall::InjectedFault {
        PageFault, GeneralProtection, InvalidOpcode, StackOverflow, Panic, PanicInManagement, DivideError,
    }
    hypercall::WatchdogAnswer { Alive, Expired, Off }
    hypercall::InfoType { PoolSize, PoolUsed, RemapPoolSize, RemapPoolUsed, Cells }
    hypercall::CpuInfoType { State, StatisticsBase }
    hypercall::Errno {
        NotPermitted, NoEntry, InputOutput, TooBig, TryAgain, NoMemory, Busy, Exists, NoDevice, Invalid, Range,
        NoSystemCall, TimedOut, InProgress,
    }
    outcome::MachineFault {
        RangePlace, RangeKind, PciConfigurationSize, IoApicPins, HypervisorOnRange, Cpu, DeviceOrder, BarDevice, BarPlace,
        HypervisorOnBar, HypervisorPlace, Iommu, IommuSource,
    }
    outcome::Unsupported { RemappedInterrupts, CacheWays }
    outcome::Reason {
        None, ImageInvalid, ImageRevision, ImageVendor, ConfigurationInvalid, ConfigurationRevision,
        ConfigurationChecksum, ConfigurationTooBig, CpuOffline, NoVmx, VmxLockedOff, VmxInUse, HypervisorMemory,
        MemoryNotReserved, AlreadyEnabled, NotEnabled, HypervisorMemoryTooSmall, VmxCapability, UnknownCr4,
        CpuTimedOut, FaultInjected, EntryFailed, ApicState, Mtrr, LinuxState, LaunchParameters, TooManyCpus,
        CellExists, NoSuchCell, RootCell, TooManyCells, NoCpu, CpuUnknown, CpuZero, CpuOwned, CpuBusy, CpuNotBack,
        RegionInvalid, RegionOverlap, MemoryOwned, MemoryIsHypervisors, MemoryIsInterruptController, CellMemory,
        PortsOwned, ResetAddress, OutOfFrames, ShutdownDenied, ShutdownTimedOut, CellLocked, CellRunning, LoadOutside,
        CpuDidNotStop, NotScrubbed, CellsExist, ApicMode, NameInvalid, InProgress, NotLoaded, MemoryNotRam, PortsInvalid, DeviceUnknown, DeviceOwned, DeviceIsBridge, DeviceGroupSplit, VectorBudget, InterruptUnknown,
        InterruptOwned, InterruptInUse, CacheWaysInvalid, CacheWaysOwned, MsrInvalid, MsrOwned, MemoryIsPciConfiguration,
        MemoryIsIommus, MemoryIsReservedDma, DmaOutsideMemory, MemoryIsDevices, SharedRegionDiffers, Unsupported,
        OtherMachine, MachineInvalid, MemoryUnknown, RestartTooLarge, HypervisorFault,
        TooManyDevices, DeviceDiffers, DeviceStuck, UnprotectedDma, DeviceNotTaken, DeviceGone,
        IommuInUse, IommuCapability, IommuStuck, IommuSources, DeviceHasReservedDma, IommuFull, DeviceSharesRequester,
        IommuLines,
    }
    communication::CellState { Running, RunningLocked, ShutDown, Failed, FailedRevision }
    communication::Message { None, ShutdownRequest, ReconfigCompleted }
    communication::Reply { None, Unknown, RequestDenied, RequestApproved, Received }
    public::HypervisorFaultKind { None, Exception, Panic }
    public::TraceKind { DeviceFault, Violation, Watchdog, RootFailure, HypervisorFault }
    public::CpuState { Outside, Running, Waiting, Failed }
    public::Pause { Create, Start, SetLoadable, Destroy, Scrub, Look, Kick }
    public::RootFailureKind { None, Panic, TripleFault, Reset, Sleep }
}

/// The ioctls and the structures that they carry.
const IOCTLS: [(&str, &str); 8] = [
    ("ENABLE", "enable_request"),
    ("DISABLE", "cell_command"),
    ("CELL_CREATE", "cell_create_request"),
    ("CELL_LOAD", "cell_load_request"),
    ("CELL_START", "cell_command"),
    ("CELL_SHUTDOWN", "cell_command"),
    ("CELL_DESTROY", "cell_command"),
    ("MEMORY_OFFER", "memory_offer_request"),
];

fn ioctls(header: &mut Header) {
    for (name, structure) in IOCTLS {
        header.define(
            &format!("GAOL_IOCTL_{name}"),
            &format!(
                "_IOWR(GAOL_DRIVER_IOCTL_TYPE, GAOL_DRIVER_IOCTL_{name}, struct gaol_{structure})"
            ),
        );
    }
}

/// The names of the counters as an initialiser of an array, indexed by the counter's number.
fn counter_names(header: &mut Header, vendor: Vendor, suffix: &str) {
    let mut value = String::from("{ \\\n");
    for (index, name) in
        (0..COUNTERS).filter_map(|index| Some((index, counter_name(vendor, index)?)))
    {
        value.push_str(&format!("\t[{index}] = \"{name}\", \\\n"));
    }
    value.push('}');
    header.define(&format!("GAOL_COUNTER_NAMES_{suffix}"), &value);
}

/// Text of the header: `gaol_abi.h`.
#[must_use]
pub fn generate() -> String {
    let mut header = Header::default();
    header.constant("", "ABI_REVISION", &crate::ABI_REVISION);
    header.constant("", "PAGE_SIZE", &crate::PAGE_SIZE);
    header.constant("", "NAME_LENGTH", &crate::NAME_LENGTH);
    header.constant("", "MAX_CELLS", &crate::MAX_CELLS);
    header.constant("", "MAX_CPUS", &crate::MAX_CPUS);
    constants(&mut header);
    enumerations(&mut header);
    structures(&mut header);
    ioctls(&mut header);
    counter_names(&mut header, Vendor::Vmx, "VMX");
    counter_names(&mut header, Vendor::Svm, "SVM");
    format!(
        "/* SPDX-License-Identifier: Apache-2.0 OR MIT */\n\
         /* Generated from the crate gaol-abi: change it there. */\n\
         #ifndef GAOL_ABI_H\n#define GAOL_ABI_H\n\n{}\n#ifndef __ASSEMBLER__\n\n\
         #include <linux/ioctl.h>\n#include <linux/types.h>\n\n{}#endif /* __ASSEMBLER__ */\n#endif /* GAOL_ABI_H */\n",
        header.definitions, header.structures
    )
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;

    const SOURCES: [(&str, &str); 11] = [
        ("", include_str!("lib.rs")),
        ("communication", include_str!("communication.rs")),
        ("config", include_str!("config.rs")),
        ("driver", include_str!("driver.rs")),
        ("exit", include_str!("exit.rs")),
        ("handover", include_str!("handover.rs")),
        ("hypercall", include_str!("hypercall.rs")),
        ("image", include_str!("image.rs")),
        ("latency", include_str!("latency.rs")),
        ("outcome", include_str!("outcome.rs")),
        ("public", include_str!("public.rs")),
    ];

    /// The word behind `prefix`, when the line begins with it.
    fn word_behind<'a>(line: &'a str, prefix: &str) -> Option<&'a str> {
        let rest = line.strip_prefix(prefix)?;
        rest.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_')
            .next()
    }

    #[test]
    fn everything_public_stands_in_the_header() {
        let header = generate();
        let mut found = 0;
        let mut expect = |text: String| {
            found += 1;
            assert!(header.contains(&text), "missing in the header: {text}");
        };
        for (module, source) in SOURCES {
            let mut enumeration = None;
            for line in source.lines() {
                if let Some(name) = word_behind(line, "pub const ").filter(|name| *name != "fn") {
                    let prefix = if module.is_empty() { "" } else { "_" };
                    expect(format!(
                        "#define GAOL{prefix}{}_{name} ",
                        module.to_uppercase()
                    ));
                }
                if let Some(name) = word_behind(line, "pub struct ") {
                    expect(format!("struct gaol_{} {{", snake(name)));
                }
                if let Some(name) = word_behind(line, "pub enum ") {
                    enumeration = Some(name);
                } else if line == "}" {
                    enumeration = None;
                } else if let Some(name) = enumeration
                    && let Some((variant, value)) = line.trim().split_once(" = ")
                    && !variant.starts_with("//")
                {
                    let value: u64 = match value.trim_end_matches(',').strip_prefix("0x") {
                        Some(digits) => u64::from_str_radix(digits, 16).unwrap(),
                        None => value.trim_end_matches(',').parse().unwrap(),
                    };
                    let name = format!("GAOL_{}_{}", snake(name), snake(variant)).to_uppercase();
                    expect(format!("#define {name} {value:#x}\n"));
                }
            }
        }
        assert!(found > 200, "only {found} definitions recognized");
    }

    #[test]
    fn no_name_is_defined_twice() {
        let header = generate();
        let mut names: std::vec::Vec<&str> = header
            .lines()
            .filter_map(|line| word_behind(line, "#define "))
            .collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn signatures_become_strings() {
        let header = generate();
        assert!(header.contains("#define GAOL_IMAGE_SIGNATURE \"GAOLIMG\\0\"\n"));
        assert!(header.contains("#define GAOL_HANDOVER_SIGNATURE \"GAOLLAUN\"\n"));
    }

    #[test]
    fn the_c_compiler_agrees_on_sizes_and_offsets() {
        let program = generate()
            + "static const char *const names[GAOL_EXIT_COUNTERS] = GAOL_COUNTER_NAMES_VMX;\n\
               static const unsigned long numbers[] = { GAOL_IOCTL_ENABLE, GAOL_IOCTL_CELL_DESTROY };\n\
               int main(void) { return !names[0] || !numbers[0]; }\n";
        let mut compiler = Command::new("cc")
            .args("-std=gnu11 -Wall -Wextra -Werror -fsyntax-only -x c -".split(' '))
            .stdin(Stdio::piped())
            .spawn()
            .expect("a C compiler is installed: cargo links with it, too");
        compiler
            .stdin
            .take()
            .unwrap()
            .write_all(program.as_bytes())
            .unwrap();
        assert!(compiler.wait().unwrap().success());
    }
}
