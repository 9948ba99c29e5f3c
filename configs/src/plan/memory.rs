//! The memory of a planned cell: how much, and where it sees it.
//!
//! Cells find their image at 0 and the communication region at 1 MiB (the place that the runtime and Jailhouse's inmates
//! know); what they share comes at 2 MiB, and more memory behind it, at large pages.

use std::collections::BTreeSet;

use gaol_abi::PAGE_SIZE;
use gaol_machine::Machine;

use super::{Choice, Request, refused};
use crate::create::{Refused, Text};
use crate::quantity::Size;

const MIB: u64 = 1 << 20;
const LARGE_PAGE: u64 = 2 * MIB;
/// Where the communication region is.
const COMMUNICATION: u64 = MIB;
/// Where shared memory begins.
const SHARED: u64 = 2 * MIB;
/// Where memory below 4 GiB ends: above are the registers of interrupt controllers.
const LOW_END: u64 = 3 << 30;
/// Where memory goes on.
const HIGH: u64 = 4 << 30;

/// A region of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Region {
    name: &'static str,
    at: u64,
    size: u64,
    keys: String,
}

/// What was decided.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    pub(super) regions: Vec<Region>,
    pub(super) choices: Vec<Choice>,
}

/// Lays out the memory; `has_devices`: they may use it.
pub(super) fn lay_out(
    machine: &Machine,
    request: &Request,
    cpus: &[u32],
    has_devices: bool,
) -> Result<Layout, Refused> {
    possible(machine, request)?;
    let dma = if has_devices { "\ndma = true" } else { "" };
    let own = format!("access = \"rwx\"\nloadable = true{dma}");
    let low = rounded(request.memory.min(COMMUNICATION), PAGE_SIZE)?;
    let shared = rounded(request.shared_with_root, PAGE_SIZE)?;
    let mut regions = vec![
        region("ram", 0, low, own.clone()),
        region(
            "communication",
            COMMUNICATION,
            0,
            "kind = \"communication\"".to_owned(),
        ),
    ];
    if shared != 0 {
        let keys = format!("shared-with-root = true{dma}");
        regions.push(region("shared", SHARED, shared, keys));
    }
    let rest = rounded(request.memory.saturating_sub(COMMUNICATION), LARGE_PAGE)?;
    let start = rounded(SHARED.saturating_add(shared), LARGE_PAGE)?;
    let below = rest.min(LOW_END.saturating_sub(start));
    if below != 0 {
        regions.push(region("memory", start, below, own.clone()));
    }
    if rest > below {
        regions.push(region("memory-high", HIGH, rest - below, own));
    }
    let total = low.saturating_add(rest);
    let mut choices = vec![memory_choice(machine, request, cpus, total)];
    if shared != 0 {
        choices.push(Choice {
            what: "shared memory",
            value: Size(shared).to_string(),
            why: format!(
                "The cell has it at {SHARED:#x}, and Linux reads and writes it all the time."
            ),
        });
    }
    choices.extend(image_choice(request, low)?);
    Ok(Layout { regions, choices })
}

fn region(name: &'static str, at: u64, size: u64, keys: String) -> Region {
    Region {
        name,
        at,
        size,
        keys,
    }
}

fn rounded(size: u64, unit: u64) -> Result<u64, Refused> {
    size.checked_next_multiple_of(unit).ok_or_else(|| {
        refused(
            format!("{} can't be had", Size(size)),
            "Ask for less: --memory \"64 MiB\"",
        )
    })
}

/// Refuses what the machine does not have.
fn possible(machine: &Machine, request: &Request) -> Result<(), Refused> {
    if request.memory == 0 {
        return Err(refused(
            "a cell without memory can't run",
            "Ask for some: --memory \"1 MiB\"",
        ));
    }
    let ram: u64 = machine
        .ram
        .iter()
        .map(|ram| ram.span.size())
        .fold(0, u64::saturating_add);
    // Linux has to live as well; with hidden addresses nothing is known.
    let most = (ram / 4 * 3) & !(LARGE_PAGE - 1);
    let wanted = request.memory.saturating_add(request.shared_with_root);
    if ram != 0 && wanted > most {
        return Err(refused(
            format!(
                "the machine has {} MiB of RAM, of which a quarter stays with Linux: a cell can't have {}",
                ram >> 20,
                Size(wanted)
            ),
            format!(
                "Ask for at most {}: --memory \"{}\"",
                Size(most),
                Size(most)
            ),
        ));
    }
    Ok(())
}

fn memory_choice(machine: &Machine, request: &Request, cpus: &[u32], total: u64) -> Choice {
    let mut why = match total <= COMMUNICATION {
        true => "It is at 0, where the image goes; the communication region is at 1 MiB.".to_owned(),
        false => "1 MiB is at 0, where the image goes, the communication region is at 1 MiB, and the rest begins behind, at large pages.".to_owned(),
    };
    if total != request.memory {
        why.push_str(&format!(
            " {} were asked for: whole {} pages.",
            Size(request.memory),
            if total <= COMMUNICATION {
                "4 KiB"
            } else {
                "2 MiB"
            }
        ));
    }
    why.push_str(" Linux gives it at run time, without a reservation");
    let nodes: BTreeSet<u32> = cpus
        .iter()
        .filter_map(|cpu| machine.processors.get(*cpu).map(|cpu| cpu.node))
        .collect();
    let is_near = |id: &u32| machine.nodes.iter().find(|node| node.id == *id);
    match (machine.nodes.len(), nodes.first().and_then(is_near)) {
        (0 | 1, _) | (_, None) => why.push('.'),
        (_, Some(node)) => why.push_str(&format!(
            "; near to the CPUs is node {} with {} MiB, and `physical` keys would hold it there.",
            node.id,
            node.memory >> 20
        )),
    }
    Choice {
        what: "memory",
        value: Size(total).to_string(),
        why,
    }
}

fn image_choice(request: &Request, low: u64) -> Result<Option<Choice>, Refused> {
    let Some((name, size)) = &request.image else {
        return Ok(None);
    };
    if *size > low {
        let message = format!(
            "{name} has {size} bytes, and does not fit into the {} at 0",
            Size(low)
        );
        let remedy = match low < COMMUNICATION {
            true => format!("Ask for more memory: --memory \"{}\"", Size(COMMUNICATION)),
            false => {
                "Leave --image out, and load it behind 2 MiB: gaol cell load CELL IMAGE -a 0x200000"
                    .to_owned()
            }
        };
        return Err(refused(message, remedy));
    }
    Ok(Some(Choice {
        what: "image",
        value: name.clone(),
        why: format!("It is loaded at 0, and has {size} bytes."),
    }))
}

/// Writes the regions.
pub(super) fn write(text: &mut Text, regions: &[Region]) {
    for region in regions {
        text.table("[[memory]]");
        text.line(&format!("name = \"{}\"", region.name));
        text.line(&format!("at = {:#x}", region.at));
        if region.size != 0 {
            text.line(&format!("size = \"{}\"", Size(region.size)));
        }
        text.line(&region.keys);
    }
}
