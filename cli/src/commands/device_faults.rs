//! What devices tried that an IOMMU stopped, and what of the IOMMUs is in use.

use gaol_abi::public::{
    DEVICE_FAULT_READ, DEVICE_QUARANTINED, DeviceFaults, IommuState, SystemPublic,
};
use gaol_config::pci::FunctionAddress;
use serde_json::{Value, json};

/// The first reason of faults of interrupts (VT-d, "Fault Reason Encodings").
const FIRST_INTERRUPT: u32 = 0x20;

fn faulty(system: &SystemPublic) -> impl Iterator<Item = &DeviceFaults> {
    system.device_faults.iter().filter(|one| one.count != 0)
}

/// What it was that an IOMMU stopped, by address and reason.
pub(super) fn attempt(address: u64, reason: u32, is_read: bool) -> String {
    match is_read {
        _ if reason >= FIRST_INTERRUPT => format!("an interrupt by entry {address}"),
        false => format!("a write at {address:#x}"),
        true => format!("a read at {address:#x}"),
    }
}

/// The sentences, if there is anything to say; `name` knows the cells by their ids.
pub fn describe(system: &SystemPublic, name: impl Fn(u32) -> String) -> String {
    let mut text = String::new();
    for one in faulty(system) {
        text.push_str(&format!(
            "PCI function {} of cell \"{}\" was stopped {} by its IOMMU, at last in {} (reason {:#x}){}.\n",
            FunctionAddress::from_detail(one.source.into()),
            name(one.cell),
            match one.count {
                1 => "once".to_owned(),
                count => format!("{count} times"),
            },
            attempt(one.address, one.reason, one.flags & DEVICE_FAULT_READ != 0),
            one.reason,
            match one.flags & DEVICE_QUARANTINED {
                0 => "",
                _ => "; it reaches no memory until the cell is started again",
            },
        ));
    }
    if system.iommus.failed != 0 {
        text.push_str(&format!(
            "{} IOMMUs did not do what they were told; functions behind them are not isolated.\n",
            system.iommus.failed
        ));
    }
    text
}

/// The same for programs.
#[must_use]
pub fn describe_json(system: &SystemPublic) -> Value {
    let IommuState {
        units,
        remapping,
        failed,
        functions,
        entries,
        entries_most,
        overruled,
        domains,
        faults,
        lost,
        ..
    } = system.iommus;
    let devices: Vec<Value> = faulty(system)
        .map(|one| {
            json!({
                "function": FunctionAddress::from_detail(one.source.into()).to_string(),
                "cell": one.cell,
                "count": one.count,
                "address": one.address,
                "reason": one.reason,
                "read": one.flags & DEVICE_FAULT_READ != 0,
                "quarantined": one.flags & DEVICE_QUARANTINED != 0,
                "time": one.time,
            })
        })
        .collect();
    json!({
        "units": units,
        "remapping": remapping,
        "failed": failed,
        "functions": functions,
        "entries": entries,
        "entries_most": entries_most,
        "overruled": overruled,
        "domains": domains,
        "faults": faults,
        "lost": lost,
        "devices": devices,
    })
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros;

    use super::*;

    #[test]
    fn each_device_has_its_sentence() {
        let mut system = SystemPublic::new_zeroed();
        let name = |cell| format!("cell{cell}");
        assert_eq!(describe(&system, name), "");
        system.device_faults[0] = DeviceFaults {
            source: 0x18,
            cell: 1,
            count: 3,
            address: 0x5000,
            reason: 6,
            flags: DEVICE_FAULT_READ,
            time: 0,
        };
        system.device_faults[1] = DeviceFaults {
            source: 0x1_00fa,
            cell: 2,
            count: 100,
            address: 0x1000,
            reason: 5,
            flags: DEVICE_QUARANTINED,
            time: 0,
        };
        system.iommus.faults = 103;
        assert_eq!(
            describe(&system, name),
            "PCI function 0000:00:03.0 of cell \"cell1\" was stopped 3 times by its IOMMU, at last in a read at 0x5000 (reason 0x6).\n\
             PCI function 0001:00:1f.2 of cell \"cell2\" was stopped 100 times by its IOMMU, at last in a write at 0x1000 (reason 0x5); it reaches no memory until the cell is started again.\n"
        );
        let json = describe_json(&system);
        assert_eq!(json["faults"], 103);
        assert_eq!(json["devices"][1]["quarantined"], true);
        assert_eq!(json["devices"][0]["read"], true);
    }
}
