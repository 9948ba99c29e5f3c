//! Which PCI functions a planned cell gets: those that were named, and who can't be kept apart from them.

use gaol_machine::Machine;
use gaol_machine::pci::{Address, Function};

use super::{Choice, refused};
use crate::create::{Refused, class_name};
use crate::pci::FunctionId;

/// What was chosen.
#[derive(Debug)]
pub(super) struct Chosen<'a> {
    /// By address.
    pub(super) functions: Vec<&'a Function>,
    pub(super) choices: Vec<Choice>,
}

/// Base class 6: what holds the machine together.
fn is_bridge(function: &Function) -> bool {
    function.is_bridge() || function.class >> 16 == 0x06
}

/// A function in words: address, kind and Linux' driver.
pub(super) fn describe(function: &Function) -> String {
    let class = class_name(function.class);
    match &function.driver {
        Some(driver) => format!("{class} {}; Linux' driver is {driver}", function.id()),
        None => format!("{class} {}; no driver of Linux has it", function.id()),
    }
}

/// The functions that a cell could have, for people.
fn offers(machine: &Machine) -> String {
    const MOST: usize = 12;
    let mut names: Vec<String> = machine
        .pci
        .functions
        .iter()
        .filter(|function| !is_bridge(function))
        .map(|function| format!("{} ({})", function.address, class_name(function.class)))
        .collect();
    if names.is_empty() {
        return "The machine has no PCI function that a cell could have.".to_owned();
    }
    if names.len() > MOST {
        let more = names.len() - MOST;
        names.truncate(MOST);
        names.push(format!("{more} more"));
    }
    format!("Possible are {}.", names.join(", "))
}

/// The function with an address ("00:03.0") or id ("8086:100e").
///
/// # Errors
/// When there is none, several, or when it is a bridge.
pub fn find<'a>(machine: &'a Machine, name: &str) -> Result<&'a Function, Refused> {
    let found: Vec<&Function> = match (name.parse::<Address>(), FunctionId::parse(name)) {
        (Ok(address), _) => machine.pci.get(address).into_iter().collect(),
        (_, Some(id)) => {
            let id = id.to_string();
            machine
                .pci
                .functions
                .iter()
                .filter(|it| it.id() == id)
                .collect()
        }
        _ => {
            return Err(refused(
                format!("{name:?} is neither the address nor the id of a PCI function"),
                "Write an address such as \"00:03.0\", or vendor and device such as \"8086:100e\".",
            ));
        }
    };
    match found[..] {
        [function] if is_bridge(function) => Err(refused(
            format!(
                "{} is a bridge ({}), which stays with Linux",
                function.address,
                class_name(function.class)
            ),
            offers(machine),
        )),
        [function] => Ok(function),
        [] => Err(refused(
            format!("the machine has no PCI function {name}"),
            offers(machine),
        )),
        _ => {
            let addresses: Vec<String> = found.iter().map(|it| it.address.to_string()).collect();
            Err(refused(
                format!("the machine has {} PCI functions {name}", found.len()),
                format!("Name one by its address: {}.", addresses.join(", ")),
            ))
        }
    }
}

/// Finds the functions, and takes along or refuses who belongs to them.
pub(super) fn choose<'a>(machine: &'a Machine, names: &[String]) -> Result<Chosen<'a>, Refused> {
    let mut named: Vec<&Function> = Vec::new();
    for name in names {
        let function = find(machine, name)?;
        if !named.iter().any(|it| it.address == function.address) {
            named.push(function);
        }
    }
    named.sort_by_key(|function| function.address);
    let mut chosen = Chosen {
        functions: named.clone(),
        choices: Vec::new(),
    };
    for function in &named {
        let others: Vec<&Function> = machine
            .pci
            .group(function.group)
            // A bridge that leads to a function only passes on what it does; it stays where it is.
            .filter(|it| !it.is_bridge() && named.iter().all(|named| named.address != it.address))
            .collect();
        refuse_spoken_for(machine, function)?;
        refuse_used(function, &others)?;
        let mut why = format!("It was asked for: {}.", describe(function));
        let along: Vec<String> = others.iter().map(|it| it.address.to_string()).collect();
        let companions: Vec<String> = machine
            .pci
            .group(function.group)
            .filter(|it| it.address != function.address && !it.is_bridge())
            .map(|it| it.address.to_string())
            .collect();
        why.push_str(&match (companions.is_empty(), along.is_empty()) {
            (true, _) => " It is alone in its group.".to_owned(),
            (false, true) => format!(" Its group has {} as well.", companions.join(", ")),
            (false, false) => format!(
                " It can't be kept apart from {}, which Linux does not use and the cell gets as well.",
                along.join(", ")
            ),
        });
        if machine.iommu.is_none() {
            why.push_str(" No IOMMU is known: by DMA it reaches all memory of the machine.");
        }
        if let Some(iommu) = &machine.iommu
            && let Some(reserved) = iommu.reserved.iter().find(|reserved| {
                let mut devices = reserved.devices.iter();
                devices.any(|device| device.address == Some(function.address))
            })
        {
            why.push_str(&format!(
                " The firmware keeps memory for its DMA at {} (RMRR).",
                reserved.span
            ));
        }
        chosen.choices.push(Choice {
            what: "device",
            value: function.address.to_string(),
            why,
        });
        for other in others {
            if chosen
                .functions
                .iter()
                .all(|it| it.address != other.address)
            {
                chosen.functions.push(other);
            }
        }
    }
    chosen.functions.sort_by_key(|function| function.address);
    Ok(chosen)
}

/// Refuses a function that an IOMMU can't tell from the bridge that it is behind, which stays with Linux.
fn refuse_spoken_for(machine: &Machine, function: &Function) -> Result<(), Refused> {
    let iommu = machine.iommu.as_ref();
    if iommu.is_none_or(|iommu| iommu.unit_of(function.address).is_none()) {
        return Ok(());
    }
    match machine.pci.speaker(function.address) {
        None => Ok(()),
        Some(bridge) => Err(refused(
            format!(
                "the IOMMU can't tell {} from {}, a bridge to conventional PCI, which stays with Linux",
                function.address, bridge.address
            ),
            "Choose a function of PCI Express, or put the card into such a slot.",
        )),
    }
}

/// Refuses a function of whose group Linux needs others.
fn refuse_used(function: &Function, others: &[&Function]) -> Result<(), Refused> {
    let names = |functions: &[&Function]| -> String {
        let names: Vec<String> = functions
            .iter()
            .map(|it| match &it.driver {
                Some(driver) => format!("{} ({}, {driver})", it.address, class_name(it.class)),
                None => format!("{} ({})", it.address, class_name(it.class)),
            })
            .collect();
        names.join(", ")
    };
    let bridges: Vec<&Function> = others.iter().copied().filter(|it| is_bridge(it)).collect();
    if !bridges.is_empty() {
        return Err(refused(
            format!(
                "{} can't be kept apart from {}, which Linux needs: they are in one group",
                function.address,
                names(&bridges)
            ),
            "Choose a function of another group: `gaol config create` lists them.",
        ));
    }
    let used: Vec<&Function> = others
        .iter()
        .copied()
        .filter(|it| it.driver.is_some())
        .collect();
    if used.is_empty() {
        return Ok(());
    }
    let arguments: Vec<String> = used
        .iter()
        .map(|it| format!("--device {}", it.address))
        .collect();
    Err(refused(
        format!(
            "{} can't be kept apart from what Linux uses: {}",
            function.address,
            names(&used)
        ),
        format!(
            "Give the cell the whole group, which takes them from Linux: {}",
            arguments.join(" ")
        ),
    ))
}
