//! What is compiled says what was meant: random configurations are written as TOML, compiled, and compared.

use std::collections::BTreeMap;
use std::fmt::Write;

use gaol_abi::config::{
    AssignedDevice, CELL_CONSOLE, CELL_IGNORE_UNASSIGNED_PORTS, CELL_PASSIVE, CELL_UNPROTECTED_DMA,
    CONSOLE_UART_PORT, DEVICE_ALL_FLAGS, DEVICE_NO_MASTER, Interrupt, MACHINE_BAR_64,
    MACHINE_BAR_PORTS, MACHINE_BAR_PREFETCHABLE, MACHINE_CPU_SMIS, MACHINE_DEVICE_ALL_FLAGS,
    MACHINE_DEVICE_BRIDGE, MACHINE_DEVICE_SHARES_REQUESTER, MEMORY_COMMUNICATION, MEMORY_DEVICE,
    MEMORY_DMA, MEMORY_EXECUTE, MEMORY_LOADABLE, MEMORY_READ, MEMORY_ROOT_SHARED, MEMORY_SHARED,
    MEMORY_TYPE_MASK, MEMORY_WIDTH_8, MEMORY_WIDTHS, MEMORY_WRITE, MSR_PER_CPU, MSR_READ,
    MSR_WRITE, MachineBar, MachineCpu, MachineDevice, MachineRange, MemoryRegion, MsrAccess,
    PortRange, RANGE_IO_APIC, RANGE_IOMMU, RANGE_PCI_CONFIGURATION, RANGE_RAM, RANGE_RESERVED_DMA,
    SYSTEM_DESCRIBES_MACHINE, SYSTEM_STRICT_ROOT, SystemHeader, VIOLATION_PARK_CELL,
};
use proptest::prelude::*;
use zerocopy::FromZeros;

use super::*;
use crate::cpu_set::CpuSet;
use crate::encode;
use crate::pci::{FunctionAddress, FunctionId};

const PAGE: u64 = 4096;

fn name() -> impl Strategy<Value = [u8; 32]> {
    "[a-z][a-z0-9.-]{0,30}".prop_map(|name| encode::name(&name).unwrap())
}

/// What TOML can hold.
fn address() -> impl Strategy<Value = u64> {
    0..=i64::MAX as u64
}

/// Address or size of whole pages that ends below 2^48 when added to another.
fn pages() -> impl Strategy<Value = u64> {
    (1..1u64 << 34).prop_map(|page| page * PAGE)
}

prop_compose! {
    fn region(is_roots: bool)(
        (name, physical, guest, size) in (name(), address(), address(), address()),
        access in 0..4u64,
        kind in if is_roots { 0..2usize } else { 0..3usize },
        cache in 0..6u64,
        widths in 0..16u64,
        others in 0..16u64,
    ) -> MemoryRegion {
        let kind = [0, MEMORY_DEVICE, MEMORY_COMMUNICATION][kind];
        let bit = |bit: u64, flag| (others >> bit & 1) * flag;
        let shares = bit(0, MEMORY_LOADABLE) | bit(1, MEMORY_SHARED) | bit(2, MEMORY_ROOT_SHARED);
        MemoryRegion {
            name,
            physical: if is_roots { guest } else { physical },
            guest,
            size,
            flags: MEMORY_READ
                | access << 1
                | kind
                | cache << 12
                | widths << 16
                | bit(3, MEMORY_DMA)
                | if is_roots { 0 } else { shares },
        }
    }
}

prop_compose! {
    fn msr()(msr: u32, access in 1..4u32, mask in 1..=u64::MAX, per_cpu: bool) -> MsrAccess {
        let is_written = access & MSR_WRITE != 0;
        MsrAccess {
            msr,
            flags: access | (u32::from(per_cpu) * MSR_PER_CPU),
            write_mask: if is_written { mask } else { 0 },
        }
    }
}

fn ports() -> impl Strategy<Value = PortRange> {
    (any::<u16>(), 1..=u16::MAX).prop_map(|(first, count)| PortRange {
        first,
        count: count.min((0x1_0000 - u32::from(first)).min(0xffff) as u16),
    })
}

fn list<S: Strategy>(element: S) -> impl Strategy<Value = Vec<S::Value>> {
    proptest::collection::vec(element, 0..5)
}

prop_compose! {
    fn cell()(
        (name, cpus, reset_address) in (name(), proptest::collection::btree_set(0..256u32, 0..9), address()),
        flags in 0..16u32,
        (shutdown_milliseconds, violation) in (0..=600_000u32, 0..=1u32),
        (timeout, policy) in (0..=600_000u32, 0..=2u32),
        (l3_ways, l2_ways) in (any::<u32>(), any::<u32>()),
        memory in list(region(false)),
        msrs in list(msr()),
        interrupts in list(any::<u32>()),
        devices in list((any::<u16>(), any::<u16>(), 0..=2048u16, 0..=DEVICE_ALL_FLAGS)),
        ports in list(ports()),
    ) -> encode::Cell {
        let device = |(segment, function, vectors, flags)| AssignedDevice { segment, function, vectors, flags };
        let has_heartbeat = memory.iter().any(|region| region.flags & MEMORY_COMMUNICATION != 0);
        let watchdog_milliseconds = if has_heartbeat { timeout } else { 0 };
        encode::Cell {
            flags,
            name,
            cpus: CpuSet::from_iter(cpus),
            reset_address,
            shutdown_milliseconds,
            violation,
            watchdog_milliseconds,
            watchdog_policy: if watchdog_milliseconds == 0 { 0 } else { policy },
            l3_ways,
            l2_ways,
            memory,
            msrs,
            interrupts: interrupts.into_iter().map(|number| Interrupt { number }).collect(),
            devices: devices.into_iter().map(device).collect(),
            ports,
        }
    }
}

fn text(name: &[u8; 32]) -> &str {
    crate::binary::name_text(name).unwrap()
}

/// A line of the file, if there is something to say.
fn line(to: &mut String, is_said: bool, key: &str, value: impl core::fmt::Display) {
    if is_said {
        writeln!(to, "{key} = {value}").unwrap();
    }
}

fn ways(ways: u32) -> String {
    let ways: Vec<String> = (0..32)
        .filter(|way| ways >> way & 1 != 0)
        .map(|way: u32| way.to_string())
        .collect();
    format!("[{}]", ways.join(", "))
}

fn write_region(to: &mut String, region: &MemoryRegion, is_roots: bool) {
    let has = |flag: u64| region.flags & flag != 0;
    line(to, true, "name", format!("{:?}", text(&region.name)));
    line(to, true, "at", format!("{:#x}", region.guest));
    line(to, true, "size", region.size);
    line(
        to,
        !is_roots && region.physical != 0,
        "physical",
        region.physical,
    );
    let letter = |flag: u64, letter: &'static str| if has(flag) { letter } else { "" };
    let access = format!(
        "\"r{}{}\"",
        letter(MEMORY_WRITE, "w"),
        letter(MEMORY_EXECUTE, "x")
    );
    line(to, access != "\"rw\"", "access", access);
    line(to, has(MEMORY_DEVICE), "kind", "\"device\"");
    line(to, has(MEMORY_COMMUNICATION), "kind", "\"communication\"");
    let types = [
        "",
        "uncacheable",
        "write-combining",
        "write-through",
        "write-protected",
        "write-back",
    ];
    let kind = types[usize::try_from((region.flags & MEMORY_TYPE_MASK) >> 12).unwrap()];
    line(to, !kind.is_empty(), "cache", format!("\"{kind}\""));
    let widths: Vec<u64> = (0..4)
        .filter(|bit| has(MEMORY_WIDTH_8 << bit))
        .map(|bit| 8 << bit)
        .collect();
    line(to, has(MEMORY_WIDTHS), "widths", format!("{widths:?}"));
    line(to, has(MEMORY_LOADABLE), "loadable", true);
    line(to, has(MEMORY_SHARED), "shared", true);
    line(to, has(MEMORY_ROOT_SHARED), "shared-with-root", true);
    line(to, has(MEMORY_DMA), "dma", true);
}

fn write_msr(to: &mut String, msr: &MsrAccess) {
    line(to, true, "index", format!("{:#x}", msr.msr));
    let access = ["", "r", "w", "rw"][(msr.flags & (MSR_READ | MSR_WRITE)) as usize];
    line(to, access != "r", "access", format!("\"{access}\""));
    let is_partial = msr.flags & MSR_WRITE != 0 && msr.write_mask != u64::MAX;
    line(
        to,
        is_partial,
        "write-mask",
        format!("\"{:#x}\"", msr.write_mask),
    );
    line(to, msr.flags & MSR_PER_CPU != 0, "per-cpu", true);
}

fn port_list(ports: &[PortRange]) -> String {
    let ranges: Vec<String> = ports
        .iter()
        .map(|range| format!("{{ first = {:#x}, count = {} }}", range.first, range.count))
        .collect();
    format!("[{}]", ranges.join(", "))
}

fn cell_toml(cell: &encode::Cell) -> String {
    let mut file = String::new();
    let to = &mut file;
    let has = |flag: u32| cell.flags & flag != 0;
    line(to, true, "name", format!("{:?}", text(&cell.name)));
    line(
        to,
        true,
        "cpus",
        format!("{:?}", cell.cpus.iter().collect::<Vec<_>>()),
    );
    line(
        to,
        cell.reset_address != 0,
        "reset-address",
        cell.reset_address,
    );
    line(to, has(CELL_CONSOLE), "console", true);
    line(to, has(CELL_PASSIVE), "passive", true);
    line(
        to,
        has(CELL_IGNORE_UNASSIGNED_PORTS),
        "unassigned-io",
        "\"ignore\"",
    );
    line(to, has(CELL_UNPROTECTED_DMA), "unprotected-dma", true);
    let parks_whole = cell.violation == VIOLATION_PARK_CELL;
    line(to, parks_whole, "on-violation", "\"park-cell\"");
    let time = cell.shutdown_milliseconds;
    line(to, time != 0, "shutdown-timeout", format!("\"{time} ms\""));
    line(to, !cell.ports.is_empty(), "ports", port_list(&cell.ports));
    let lines: Vec<u32> = cell
        .interrupts
        .iter()
        .map(|interrupt| interrupt.number)
        .collect();
    line(to, !lines.is_empty(), "interrupts", format!("{lines:?}"));
    to.push_str("[cache-ways]\n");
    line(to, cell.l3_ways != 0, "l3", ways(cell.l3_ways));
    line(to, cell.l2_ways != 0, "l2", ways(cell.l2_ways));
    let (timeout, policy) = (cell.watchdog_milliseconds, cell.watchdog_policy);
    if timeout != 0 {
        to.push_str("[watchdog]\n");
        line(to, true, "timeout", format!("\"{timeout} ms\""));
        let name = ["record", "restart", "halt"][policy as usize];
        line(to, policy != 0, "policy", format!("{name:?}"));
    }
    for region in &cell.memory {
        to.push_str("[[memory]]\n");
        write_region(to, region, false);
    }
    for device in &cell.devices {
        to.push_str("[[devices]]\n");
        line(
            to,
            true,
            "address",
            format!("\"{}\"", FunctionAddress::from(device)),
        );
        line(to, device.vectors != 0, "vectors", device.vectors);
        let stays = device.flags & DEVICE_NO_MASTER != 0;
        line(to, stays, "bus-master", false);
    }
    for msr in &cell.msrs {
        to.push_str("[[msrs]]\n");
        write_msr(to, msr);
    }
    file
}

/// A base address register at a place that its kind reaches, but for its device and number.
fn bar() -> impl Strategy<Value = MachineBar> {
    (0..3usize, 4..12u32, 0..16u64, any::<bool>()).prop_map(|(kind, shift, place, prefetchable)| {
        let flags = [MACHINE_BAR_PORTS, 0, MACHINE_BAR_64][kind];
        let is_prefetchable = prefetchable && kind != 0;
        MachineBar {
            address: place << shift,
            size: 1 << shift,
            device: 0,
            number: 0,
            flags: flags | (u8::from(is_prefetchable) * MACHINE_BAR_PREFETCHABLE),
            reserved: 0,
        }
    })
}

type Function = (MachineDevice, Vec<MachineBar>);

prop_compose! {
    fn function()(
        (group, flags, vendor, device) in any::<(u16, u16, u16, u16)>(),
        msi in 0..7u32,
        msix_vectors in 0..=2048u16,
        bars in proptest::collection::vec(bar(), 0..4),
    ) -> Function {
        let function = MachineDevice {
            segment: 0,
            function: 0,
            group,
            flags: flags & MACHINE_DEVICE_ALL_FLAGS,
            vendor,
            device,
            msi_vectors: if msi == 6 { 0 } else { 1 << msi },
            msix_vectors,
        };
        let mut number = 0;
        let numbered = bars.into_iter().filter_map(|bar| {
            let own = number;
            number += if bar.flags & MACHINE_BAR_64 != 0 { 2 } else { 1 };
            (number <= 6).then_some(MachineBar { number: own, ..bar })
        });
        (function, numbered.collect())
    }
}

/// Ranges of all kinds in the order of the binary form.
fn ranges() -> impl Strategy<Value = Vec<MachineRange>> {
    let range = |kind| {
        (pages(), pages(), any::<u16>(), 0..=0xffu16, 0..=0xffu16).prop_map(
            move |(physical, size, number, first, more)| {
                let last = (first + more).min(0xff);
                let (physical, size, extent) = match kind {
                    RANGE_IO_APIC => (physical, PAGE, 1 + first % 240),
                    RANGE_PCI_CONFIGURATION => {
                        let buses = u64::from(last - first) + 1;
                        (physical & !0xf_ffff, buses << 20, last << 8 | first)
                    }
                    _ => (physical, size, 0),
                };
                MachineRange {
                    physical,
                    size,
                    kind,
                    extent,
                    number: number.into(),
                }
            },
        )
    };
    let kinds = (
        list(range(RANGE_RAM)),
        list(range(RANGE_IO_APIC)),
        list(range(RANGE_PCI_CONFIGURATION)),
        list(range(RANGE_IOMMU)),
        list(range(RANGE_RESERVED_DMA)),
    );
    kinds.prop_map(|(ram, io_apics, spaces, mut iommus, mut reserved)| {
        for numbered in [&mut iommus, &mut reserved] {
            for (number, range) in (0..).zip(numbered) {
                range.number = number;
            }
        }
        [ram, io_apics, spaces, iommus, reserved].concat()
    })
}

prop_compose! {
    fn cpus()(cpus in proptest::collection::vec(any::<(u32, u16, u16, u16, u16, u16, bool)>(), 1..6)) -> Vec<MachineCpu> {
        cpus.into_iter()
            .map(|(apic_id, package, core, l2, l3, node, smis)| MachineCpu {
                apic_id, package, core, l2, l3, node,
                flags: u16::from(smis) * MACHINE_CPU_SMIS,
            })
            .collect()
    }
}

prop_compose! {
    fn system()(
        (name, deadline, root_failure) in (name(), 0..=600_000u32, 0..=1u32),
        (place, size) in (0..1u64 << 20, 1..=256u64),
        console in proptest::option::of((1..=0xfff8u64, 1..=6u32)),
        (l3_ways, l2_ways) in (0..=32u16, 0..=32u16),
        root in proptest::option::of((
            proptest::collection::vec(region(true), 1..4),
            list(msr()),
            list(ports()),
        )),
        ranges in ranges(),
        cpus in cpus(),
        functions in proptest::collection::btree_map(any::<(u16, u16)>(), function(), 0..5),
    ) -> encode::System {
        let (root_memory, root_msrs, root_ports) = root.unwrap_or_default();
        let strict = if root_memory.is_empty() { 0 } else { SYSTEM_STRICT_ROOT };
        let functions: BTreeMap<(u16, u16), Function> = functions;
        let (mut devices, mut bars) = (Vec::new(), Vec::new());
        for (index, ((segment, function), (device, own))) in (0..).zip(functions) {
            devices.push(MachineDevice { segment, function, ..device });
            bars.extend(own.into_iter().map(|bar| MachineBar { device: index, ..bar }));
        }
        encode::System {
            iommus: Vec::new(),
            iommu_sources: Vec::new(),
            header: SystemHeader {
                name,
                hypervisor_physical: place << 21,
                hypervisor_size: size << 21,
                console_kind: console.map_or(0, |_| CONSOLE_UART_PORT),
                console_address: console.map_or(0, |(port, _)| port),
                console_divisor: console.map_or(0, |(_, divisor)| divisor),
                deadline_milliseconds: deadline,
                root_failure,
                l3_ways,
                l2_ways,
                ..SystemHeader::new_zeroed()
            },
            flags: strict | SYSTEM_DESCRIBES_MACHINE,
            ranges,
            bars,
            root_memory,
            root_msrs,
            cpus,
            root_ports,
            devices,
        }
    }
}

fn range_lists(to: &mut String, ranges: &[MachineRange]) {
    type Entry = fn(&MachineRange) -> String;
    let plain: Entry = |_| String::new();
    let kinds: [(u16, &str, Entry); 5] = [
        (RANGE_RAM, "ram", |range| {
            format!(", size = {}, node = {}", range.size, range.number)
        }),
        (RANGE_IO_APIC, "io-apics", |range| {
            format!(", first = {}, pins = {}", range.number, range.extent)
        }),
        (RANGE_PCI_CONFIGURATION, "pci-configuration", |range| {
            let (last, first) = (range.extent >> 8, range.extent & 0xff);
            format!(
                ", segment = {}, first-bus = {first}, last-bus = {last}",
                range.number
            )
        }),
        (RANGE_IOMMU, "iommus", plain),
        (RANGE_RESERVED_DMA, "reserved-dma", plain),
    ];
    for (kind, key, entry) in kinds {
        let entries: Vec<String> = ranges
            .iter()
            .filter(|range| range.kind == kind)
            .map(|range| match kind >= RANGE_IOMMU {
                true => format!("{{ at = {:#x}, size = {} }}", range.physical, range.size),
                false => format!("{{ at = {:#x}{} }}", range.physical, entry(range)),
            })
            .collect();
        line(
            to,
            !entries.is_empty(),
            key,
            format!("[{}]", entries.join(", ")),
        );
    }
}

fn write_function(to: &mut String, device: &MachineDevice, bars: &[MachineBar]) {
    to.push_str("[[machine.devices]]\n");
    line(
        to,
        true,
        "address",
        format!("\"{}\"", FunctionAddress::from(device)),
    );
    line(to, true, "id", format!("\"{}\"", FunctionId::from(device)));
    line(to, true, "group", device.group);
    line(
        to,
        device.flags & MACHINE_DEVICE_BRIDGE != 0,
        "bridge",
        true,
    );
    line(
        to,
        device.flags & MACHINE_DEVICE_SHARES_REQUESTER != 0,
        "shares-requester-id",
        true,
    );
    line(to, device.msi_vectors != 0, "msi", device.msi_vectors);
    line(to, device.msix_vectors != 0, "msi-x", device.msix_vectors);
    let bars: Vec<String> = bars
        .iter()
        // The order of the file is not that of the numbers.
        .rev()
        .map(|bar| {
            let kind = match bar.flags & (MACHINE_BAR_PORTS | MACHINE_BAR_64) {
                MACHINE_BAR_PORTS => "ports",
                MACHINE_BAR_64 => "memory64",
                _ => "memory",
            };
            let prefetchable = bar.flags & MACHINE_BAR_PREFETCHABLE != 0;
            format!(
                "{{ number = {}, kind = \"{kind}\", at = {}, size = {}, prefetchable = {prefetchable} }}",
                bar.number, bar.address, bar.size
            )
        })
        .collect();
    line(
        to,
        !bars.is_empty(),
        "bars",
        format!("[{}]", bars.join(", ")),
    );
}

fn system_toml(system: &encode::System) -> String {
    let mut file = String::new();
    let to = &mut file;
    let header = &system.header;
    line(to, true, "name", format!("{:?}", text(&header.name)));
    let time = header.deadline_milliseconds;
    line(to, time != 0, "deadline", format!("\"{time} ms\""));
    let resets = header.root_failure != 0;
    line(to, resets, "on-root-failure", "\"reset\"");
    to.push_str("[hypervisor]\n");
    line(
        to,
        true,
        "memory",
        format!("\"{} MiB\"", header.hypervisor_size >> 20),
    );
    let is_placed = header.hypervisor_physical != 0;
    line(to, is_placed, "address", header.hypervisor_physical);
    if header.console_kind == CONSOLE_UART_PORT {
        let baud = 115_200 / header.console_divisor;
        writeln!(
            to,
            "[console]\nuart = {{ port = {}, baud = {baud} }}",
            header.console_address
        )
        .unwrap();
    }
    if system.flags & SYSTEM_STRICT_ROOT != 0 {
        to.push_str("[root]\npolicy = \"strict\"\n");
        line(to, true, "ports", port_list(&system.root_ports));
        for region in &system.root_memory {
            to.push_str("[[root.memory]]\n");
            write_region(to, region, true);
        }
        for msr in &system.root_msrs {
            to.push_str("[[root.msrs]]\n");
            write_msr(to, msr);
        }
    }
    to.push_str("[machine]\n");
    line(to, true, "l3-ways", header.l3_ways);
    line(to, true, "l2-ways", header.l2_ways);
    let cpus: Vec<String> = system
        .cpus
        .iter()
        .map(|cpu| {
            let smis = cpu.flags & MACHINE_CPU_SMIS != 0;
            format!(
                "{{ apic-id = {}, package = {}, core = {}, l2 = {}, l3 = {}, node = {}, smis = {smis} }}",
                cpu.apic_id, cpu.package, cpu.core, cpu.l2, cpu.l3, cpu.node
            )
        })
        .collect();
    line(to, true, "cpus", format!("[{}]", cpus.join(", ")));
    range_lists(to, &system.ranges);
    // The compiler sorts what is not sorted.
    for (index, device) in system.devices.iter().enumerate().rev() {
        let bars: Vec<MachineBar> = system
            .bars
            .iter()
            .filter(|bar| usize::from(bar.device) == index)
            .copied()
            .collect();
        write_function(to, device, &bars);
    }
    file
}

proptest! {
    #[test]
    fn a_cell_is_compiled_to_what_was_meant(meant in cell()) {
        let file = cell_toml(&meant);
        match Cell::compile("cell.toml", &file, None) {
            Ok(cell) => prop_assert!(cell.bytes() == meant.encode().bytes(), "{file}\n{:#?}", cell.view()),
            Err(problems) => prop_assert!(false, "{problems:#?}\n{file}"),
        }
    }

    #[test]
    fn a_system_is_compiled_to_what_was_meant(meant in system()) {
        let file = system_toml(&meant);
        match System::compile("system.toml", &file) {
            Ok(system) => prop_assert!(system.bytes() == meant.encode().bytes(), "{file}\n{:#?}", system.view()),
            Err(problems) => prop_assert!(false, "{problems:#?}\n{file}"),
        }
    }
}
