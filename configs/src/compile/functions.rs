//! PCI functions of `[machine]` and their base address registers.
//!
//! Invariant: the functions come out in ascending order of segment and function, whatever order the file has, each of
//! them once; the registers follow them, in ascending order of function and number.

use gaol_abi::config::{
    MACHINE_BAR_64, MACHINE_BAR_PORTS, MACHINE_BAR_PREFETCHABLE, MACHINE_DEVICE_BRIDGE,
    MACHINE_DEVICE_SHARES_REQUESTER, MAX_MACHINE_BARS, MAX_MACHINE_DEVICES, MachineBar,
    MachineDevice,
};
use gaol_abi::outcome::Reason;
use toml::Spanned;

use super::devices::{MAX_VECTORS, parse_address, parse_id};
use super::judge::Judge;
use super::machine::below_end;
use super::places::SystemPlaces;
use crate::encode;
use crate::pci::FunctionAddress;
use crate::problem::Place;
use crate::quantity::Number;
use crate::schema::{BarKind, BarTable, FunctionTable};

/// Adds the functions to `system`.
pub(super) fn functions(
    judge: &Judge<'_>,
    tables: &[Spanned<FunctionTable>],
    system: &mut encode::System,
    places: &mut SystemPlaces,
) {
    let tables = judge.bounded(
        tables,
        MAX_MACHINE_DEVICES,
        "PCI functions",
        "Take out those that stay with Linux, and have no registers and no group in common with others.",
    );
    let mut sorted: Vec<(MachineDevice, &Spanned<FunctionTable>)> = tables
        .iter()
        .map(|entry| (function(judge, entry.get_ref()), entry))
        .collect();
    // A stable sort: of two that are the same the later one in the file is the second here as well.
    sorted.sort_by_key(|(device, _)| (device.segment, device.function));
    for pair in sorted.windows(2) {
        if let [(first, _), (second, entry)] = pair
            && FunctionAddress::from(first) == FunctionAddress::from(second)
            && FunctionAddress::parse(entry.get_ref().address.get_ref()).is_some()
        {
            judge.problem(
                Reason::MachineInvalid,
                entry.get_ref().address.span(),
                "named before",
                format!(
                    "PCI function {} is described twice",
                    FunctionAddress::from(second)
                ),
                "Take one of the two out.",
            );
        }
    }
    for (index, (device, entry)) in (0u16..).zip(sorted) {
        system.devices.push(device);
        places.devices.push(entry.get_ref().address.span());
        let mut bars = bars(judge, index, &entry.get_ref().bars);
        bars.sort_by_key(|(bar, _)| bar.number);
        for (bar, place) in bars {
            if system.bars.len() == MAX_MACHINE_BARS {
                judge.invalid(
                    place.clone(),
                    "one too many",
                    format!("there are more than {MAX_MACHINE_BARS} base address registers"),
                    "Take out PCI functions that stay with Linux.",
                );
            }
            system.bars.push(bar);
            places.bars.push(place);
        }
    }
}

fn function(judge: &Judge<'_>, table: &FunctionTable) -> MachineDevice {
    let address = parse_address(judge, &table.address);
    let id = parse_id(judge, &table.id);
    MachineDevice {
        segment: address.map_or(0, |address| address.segment),
        function: address.map_or(0, |address| address.function),
        group: judge.number(
            "the number of a group",
            &table.group,
            0..=u64::from(u16::MAX),
        ),
        flags: flag(table.bridge, MACHINE_DEVICE_BRIDGE)
            | flag(table.shares_requester_id, MACHINE_DEVICE_SHARES_REQUESTER),
        vendor: id.map_or(0, |id| id.vendor),
        device: id.map_or(0, |id| id.device),
        msi_vectors: msi(judge, &table.msi),
        msix_vectors: judge.number_or("the number of vectors", &table.msi_x, 0..=MAX_VECTORS, 0),
    }
}

const fn flag(is_set: bool, flag: u16) -> u16 {
    if is_set { flag } else { 0 }
}

/// MSI has a power of two of vectors (PCI specification, "Message Control for MSI").
fn msi(judge: &Judge<'_>, vectors: &Option<Spanned<Number>>) -> u16 {
    let Some(number) = vectors else { return 0 };
    let count = number.get_ref().0;
    if count != 0 && (!count.is_power_of_two() || count > 32) {
        judge.invalid(
            number.span(),
            "not possible",
            format!("MSI can't have {count} vectors"),
            "Write 1, 2, 4, 8, 16 or 32, or leave the key out.",
        );
    }
    u16::try_from(count).unwrap_or(0)
}

fn bars(judge: &Judge<'_>, device: u16, tables: &[Spanned<BarTable>]) -> Vec<(MachineBar, Place)> {
    let mut taken = 0u8;
    let mut bars = Vec::new();
    for entry in tables {
        let table = entry.get_ref();
        let is_64 = table.kind == BarKind::Memory64;
        let last = if is_64 { 4 } else { 5 };
        let what = "the number of a base address register";
        let Some(number) = judge.number_if::<u8>(what, &table.number, 0..=last) else {
            continue;
        };
        let places = if is_64 { 3 << number } else { 1 << number };
        if taken & places != 0 {
            judge.problem(
                Reason::MachineInvalid,
                table.number.span(),
                "taken",
                format!("base address register {number} is described twice"),
                "A 64-bit one takes the number behind it as well. Take one of the two out.",
            );
        }
        taken |= places;
        bars.push((bar(judge, device, number, table), entry.span()));
    }
    bars
}

fn bar(judge: &Judge<'_>, device: u16, number: u8, table: &BarTable) -> MachineBar {
    let (address, size) = (table.at.get_ref().0, table.size.get_ref().0);
    // The least that a register can decode (PCI specification, "Base Address Registers"), and what it can't reach.
    let (least, end) = match table.kind {
        BarKind::Ports => (4, 1 << 16),
        BarKind::Memory => (16, 1 << 32),
        BarKind::Memory64 => (16, super::machine::PHYSICAL_END),
    };
    if size < least || !size.is_power_of_two() {
        judge.invalid(
            table.size.span(),
            "not possible",
            format!("a base address register of this kind can't have {size} bytes"),
            format!("The size is a power of two, and at least {least}."),
        );
    } else if !address.is_multiple_of(size) {
        judge.invalid(
            table.at.span(),
            "not aligned",
            format!("a base address register of {size:#x} bytes can't be at {address:#x}"),
            "Its address is a multiple of its size.",
        );
    } else if table.kind == BarKind::Memory64 {
        below_end(
            judge,
            "the memory of a base address register",
            &table.at,
            size,
        );
    } else if address.checked_add(size).is_none_or(|beyond| beyond > end) {
        judge.invalid(
            table.at.span(),
            "too high",
            format!("a base address register of this kind ends at {end:#x}"),
            "Look at its kind: \"ports\", \"memory\" and \"memory64\" reach differently far.",
        );
    }
    if table.prefetchable && table.kind == BarKind::Ports {
        judge.invalid(
            table.number.span(),
            "ports",
            "ports can't be prefetchable",
            "Take `prefetchable` out.",
        );
    }
    let kind = match table.kind {
        BarKind::Ports => MACHINE_BAR_PORTS,
        BarKind::Memory => 0,
        BarKind::Memory64 => MACHINE_BAR_64,
    };
    let prefetchable = if table.prefetchable {
        MACHINE_BAR_PREFETCHABLE
    } else {
        0
    };
    MachineBar {
        address,
        size,
        device,
        number,
        flags: kind | prefetchable,
        reserved: 0,
    }
}
