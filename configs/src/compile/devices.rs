//! PCI functions of a cell, found in the description of the machine.
//!
//! Vectors are 0 in the binary form for "as many as it has": what that comes to is known to whoever knows the machine.

use gaol_abi::config::{
    AssignedDevice, DEFAULT_DEVICE_VECTORS, DEVICE_NO_MASTER, MAX_DEVICES, MachineDevice,
};
use gaol_abi::outcome::Reason;
use toml::Spanned;

use super::System;
use super::judge::Judge;
use crate::pci::{FunctionAddress, FunctionId};
use crate::schema::DeviceTable;

/// Most vectors that a PCI function can have: the entries of the largest MSI-X table.
pub(super) const MAX_VECTORS: u64 = 2048;

/// How to give a machine to a cell that needs one.
const NAME_THE_SYSTEM: &str = "Give the system file as well (gaol config build CELL --system SYSTEM), or write the function's `address`.";

/// The functions of a cell; what is not an address is looked up in `system`.
pub(super) fn devices(
    judge: &Judge<'_>,
    tables: &[Spanned<DeviceTable>],
    system: Option<&System>,
) -> Vec<AssignedDevice> {
    judge
        .bounded(
            tables,
            MAX_DEVICES,
            "PCI functions in the cell",
            "Give some of them to another cell.",
        )
        .iter()
        .map(|entry| device(judge, entry, system))
        .collect()
}

fn device(
    judge: &Judge<'_>,
    entry: &Spanned<DeviceTable>,
    system: Option<&System>,
) -> AssignedDevice {
    let table = entry.get_ref();
    let vectors = judge.number_or("the number of vectors", &table.vectors, 1..=MAX_VECTORS, 0);
    let address = match (&table.address, &table.id) {
        (Some(address), None) => parse_address(judge, address),
        (None, Some(id)) => find(judge, id, system),
        (Some(_), Some(id)) => {
            judge.invalid(
                id.span(),
                "not together with `address`",
                "a PCI function is named by its address and by its id",
                "Take one of the two out.",
            );
            None
        }
        (None, None) => {
            judge.invalid(
                entry.span(),
                "which function?",
                "a PCI function has neither an address nor an id",
                "Add `address = \"00:03.0\"` or `id = \"8086:100e\"`, as lspci -nn shows them.",
            );
            None
        }
    };
    let address = address.unwrap_or(FunctionAddress {
        segment: 0,
        function: 0,
    });
    AssignedDevice {
        segment: address.segment,
        function: address.function,
        vectors: match vectors {
            0 => system.map_or(0, |system| vectors_of(system, address)),
            vectors => vectors,
        },
        flags: match table.bus_master.as_ref().map(Spanned::get_ref) {
            Some(false) => DEVICE_NO_MASTER,
            _ => 0,
        },
    }
}

/// As many vectors as the function has, within reason; 0 when that is not known.
fn vectors_of(system: &System, address: FunctionAddress) -> u16 {
    let view = system.view();
    let mut devices = view.devices().iter();
    devices
        .find(|device| FunctionAddress::from(*device) == address)
        .map_or(0, |device| device.msi_vectors.max(device.msix_vectors))
        .min(DEFAULT_DEVICE_VECTORS)
}

/// The address in a string.
pub(super) fn parse_address(
    judge: &Judge<'_>,
    address: &Spanned<String>,
) -> Option<FunctionAddress> {
    let parsed = FunctionAddress::parse(address.get_ref());
    if parsed.is_none() {
        judge.invalid(
            address.span(),
            "not an address",
            format!(
                "{:?} is not the address of a PCI function",
                address.get_ref()
            ),
            "Write segment, bus, device and function as lspci -D does: \"0000:00:03.0\".",
        );
    }
    parsed
}

/// The id in a string.
pub(super) fn parse_id(judge: &Judge<'_>, id: &Spanned<String>) -> Option<FunctionId> {
    let parsed = FunctionId::parse(id.get_ref());
    if parsed.is_none() {
        judge.invalid(
            id.span(),
            "not an id",
            format!("{:?} is not the id of a PCI function", id.get_ref()),
            "Write vendor and device as lspci -nn does: \"8086:100e\".",
        );
    }
    parsed
}

/// The one function that has the id.
fn find(
    judge: &Judge<'_>,
    id: &Spanned<String>,
    system: Option<&System>,
) -> Option<FunctionAddress> {
    let wanted = parse_id(judge, id)?;
    let unknown = |message: String, remedy: String| {
        judge.problem(
            Reason::DeviceUnknown,
            id.span(),
            "not known",
            message,
            remedy,
        );
        None
    };
    let Some(system) = system else {
        return unknown(
            format!("which function is {wanted} can't be told from this file alone"),
            NAME_THE_SYSTEM.to_owned(),
        );
    };
    let file = &system.source.name;
    let view = system.view();
    if !view.describes_machine() {
        return unknown(
            format!(
                "which function is {wanted} is not known: {file} does not describe the machine"
            ),
            "Let `gaol config create` write the system file, or write the function's `address`."
                .to_owned(),
        );
    }
    let matches: Vec<&MachineDevice> = view
        .devices()
        .iter()
        .filter(|device| FunctionId::from(*device) == wanted)
        .collect();
    match matches[..] {
        [device] => Some(device.into()),
        [] => unknown(
            format!("the machine has no PCI function {wanted}"),
            format!("{file} lists {}.", listed(view.devices())),
        ),
        _ => {
            let addresses: Vec<String> = matches
                .iter()
                .map(|device| format!("\"{}\"", FunctionAddress::from(*device)))
                .collect();
            judge.invalid(
                id.span(),
                "which of them?",
                format!("the machine has {} PCI functions {wanted}", matches.len()),
                format!("Write `address = ` and one of {}.", addresses.join(", ")),
            );
            None
        }
    }
}

/// The functions of a machine in words.
fn listed(devices: &[MachineDevice]) -> String {
    const MOST: usize = 8;
    let mut names: Vec<String> = devices
        .iter()
        .take(MOST)
        .map(|device| {
            let (address, id) = (FunctionAddress::from(device), FunctionId::from(device));
            format!("{address} ({id})")
        })
        .collect();
    if devices.is_empty() {
        return "none at all".to_owned();
    }
    if devices.len() > MOST {
        names.push(format!("and {} more", devices.len() - MOST));
    }
    names.join(", ")
}
