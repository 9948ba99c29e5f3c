//! I/O ports: from Jailhouse's list to `ports`.
//!
//! Invariant: each port that the cell can have is in the file once.

use core::ops::Range;

use super::draft::{Draft, Entry, Group, Note};
use super::parse::CellBlob;
use crate::ledger::PCI_CONFIGURATION_PORTS;

/// One more than the last port.
const END: u32 = 0x1_0000;

/// Ports that cells can't own: the hypervisor moderates them for all cells.
const MODERATED: Range<u32> = {
    let first = PCI_CONFIGURATION_PORTS.first as u32;
    first..first + PCI_CONFIGURATION_PORTS.count as u32
};

/// Enters the ports of the cell, without those that it can't have and those that it names twice.
pub(super) fn enter(cell: &CellBlob<'_>, draft: &mut Draft) {
    draft.say_of(
        Group::Ports,
        "pio_regions",
        "Jailhouse lets every cell write to port 0x80, as some software does to wait. Gaol stops a cell that does, unless \
         it has `unassigned-io = \"ignore\"`.",
    );
    if !cell.ports.is_empty() {
        draft.say_of(
            Group::Ports,
            "pio_regions",
            "a port is of one cell in Gaol, and those of the hypervisor's console are of none: take out what the cell \
             does not need.",
        );
    }
    let mut named = vec![false; END as usize];
    for (index, ports) in cell.ports.iter().enumerate() {
        let first = u32::from(ports.base.get());
        let end = first + u32::from(ports.length.get());
        enter_range(
            format!("pio_regions[{index}]"),
            first..end,
            &mut named,
            draft,
        );
    }
}

fn enter_range(about: String, range: Range<u32>, named: &mut [bool], draft: &mut Draft) {
    let mut notes = Vec::new();
    let mut say = |text: &str| notes.push(Note::new(&about, text));
    if range.end > END {
        say("there are no ports behind 0xffff.");
    }
    if range.start < MODERATED.end && MODERATED.start < range.end {
        say(
            "ports 0xcf8 to 0xcff are left out: every cell has them, with the hypervisor behind them.",
        );
    }
    let possible = range.start..range.end.min(END);
    let possible: Vec<u32> = possible.filter(|port| !MODERATED.contains(port)).collect();
    let mut is_new = |port: u32| {
        let seen = named.get_mut(port as usize);
        seen.is_some_and(|seen| !core::mem::replace(seen, true))
    };
    let fresh: Vec<u32> = possible
        .iter()
        .copied()
        .filter(|port| is_new(*port))
        .collect();
    if fresh.len() != possible.len() {
        say("without the ports that were named before.");
    }
    let runs = runs(&fresh);
    if runs.is_empty() {
        draft
            .lists
            .extend(notes.drain(..).map(|note| (Group::Ports, note)));
    }
    for (first, count) in runs {
        draft.entries.push(Entry {
            group: Group::Ports,
            about: about.clone(),
            text: format!("{{ first = {first:#x}, count = {count} }}"),
            notes: core::mem::take(&mut notes),
            refused: None,
        });
    }
}

/// First port and number of each run of adjacent ports.
fn runs(ports: &[u32]) -> Vec<(u32, u32)> {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for port in ports {
        match runs.last_mut() {
            Some((first, count)) if *first + *count == *port => *count += 1,
            _ => runs.push((*port, 1)),
        }
    }
    runs
}
