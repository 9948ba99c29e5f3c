//! What an entry may do: to whom its messages may go, and which vectors it may have.
//!
//! Invariant: an entry that is not masked reaches processors of its owner only, raises no SMI and no INIT, and a
//! level-triggered one has a vector that no pin of another owner has at that time.
//!
//! The last is needed because a local APIC tells *all* IOAPICs of the end of a level-triggered interrupt, by its vector,
//! and each pin with this vector takes it for the end of its own. If a cell's and the root's pins had one vector, each end
//! would let the other's line interrupt once more than its handler expects. So the vectors of level-triggered pins are
//! parted: those of [`CELL_LEVEL_VECTORS`] are the cells', of which the first to use one has it, and all others the root's.
//! Linux has its own messages between CPUs there and gives them to no pin.
//!
//! Where an IOMMU remaps interrupts, an entry of the root's names one of the IOMMU's that is the root's, and a cell's pin has
//! one of its own there, which is all that this pin's entry in hardware ever names.
#![forbid(unsafe_code)]

use core::ops::RangeInclusive;

use super::entry::{Entry, mode};
use crate::device::interrupt_command::{Processor, Target};

/// Vectors that level-triggered pins of cells have, and no others.
pub const CELL_LEVEL_VECTORS: RangeInclusive<u8> = 0xf0..=0xff;
/// The first vector that an APIC takes.
const FIRST_VECTOR: u8 = 16;
/// The destination that is everyone.
const BROADCAST: u8 = 0xff;

/// The root cell.
pub const ROOT: u32 = 0;

/// A processor that messages may reach.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Receiver {
    /// How it can be addressed.
    pub processor: Processor,
    /// The cell that has it. `None`: it is on its way from one to another, and whether its APIC is in x2APIC mode is not
    /// certain.
    pub owner: Option<u32>,
}

impl Receiver {
    /// Whether its APIC takes what is meant for `target`; with `in_any_mode`, whether it would in one of its modes.
    fn is_addressed(&self, target: Target, in_any_mode: bool) -> bool {
        let is_addressed = |x2apic| {
            let processor = Processor {
                x2apic,
                ..self.processor
            };
            target.addresses(&processor, false)
        };
        is_addressed(self.processor.x2apic) || (in_any_mode && is_addressed(!self.processor.x2apic))
    }
}

/// All processors of the machine.
pub trait Receivers {
    /// How many there are.
    fn count(&self) -> u32;
    /// One of them.
    fn get(&self, number: u32) -> Option<Receiver>;
}

/// By whose table an IOAPIC's messages are remapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Remapping {
    /// By none: they arrive as the pins' entries say.
    None,
    /// By the hypervisor's.
    Own {
        /// So many entries at its front are copies of the root's.
        root_entries: u32,
    },
    /// By one that the hypervisor knows nothing of, and Linux programs.
    Foreign,
}

/// What may be of an entry that `owner` wrote. `None`: it has to stay masked. Where [`Remapping::Own`] holds, a cell's is
/// what the IOMMU has to send for its pin.
#[must_use]
pub fn judge(
    entry: Entry,
    owner: u32,
    remapping: Remapping,
    receivers: &impl Receivers,
) -> Option<Entry> {
    let is_root = owner == ROOT;
    match remapping {
        // What the message is stands in the IOMMU's table.
        Remapping::Foreign if is_root => return Some(entry),
        Remapping::Foreign if !entry.masked() => return None,
        Remapping::Own { root_entries } if is_root && entry.remapped() => {
            return names_own(entry, root_entries).then_some(entry);
        }
        _ => {}
    }
    let entry = entry.with_remapped(false).with_index(0);
    if entry.masked() {
        return Some(entry);
    }
    let entry = match entry.delivery_mode() {
        mode::FIXED | mode::LOWEST_PRIORITY => {
            let is_of_cells = CELL_LEVEL_VECTORS.contains(&entry.vector());
            let may_be_level = is_of_cells != is_root;
            if entry.vector() < FIRST_VECTOR || entry.level() && !may_be_level {
                return None;
            }
            entry
        }
        // An edge whatever the trigger mode is.
        mode::NMI => entry.with_level(false),
        // Likewise; and its vector says nothing, so that it may be one that the cells' level-triggered pins have.
        mode::EXTERNAL if is_root => entry.with_level(false),
        _ => return None,
    };
    direct(entry, owner, receivers)
}

/// Whether an entry in the remapped format is masked, or names an entry of the root's. Those of cells' pins can be used by
/// all pins of the IOAPIC: the IOMMU knows no more than which IOAPIC it was.
fn names_own(entry: Entry, root_entries: u32) -> bool {
    // What ends a level-triggered interrupt is this vector, whatever the IOMMU sends.
    let is_of_cells = entry.level() && CELL_LEVEL_VECTORS.contains(&entry.vector());
    entry.masked() || u32::from(entry.handle()) < root_entries && !is_of_cells
}

/// The entry with a destination that reaches processors of the owner only: its own, or, if that reached others as well,
/// the first processor of those of the owner's that it means.
fn direct(entry: Entry, owner: u32, receivers: &impl Receivers) -> Option<Entry> {
    let destination = entry.destination();
    let target = if destination == BROADCAST {
        Target::All
    } else if entry.logical() {
        Target::Logical(destination)
    } else {
        Target::Physical(destination.into())
    };
    match confine(target, owner, receivers)? {
        Confined::AsItIs => Some(entry),
        Confined::To(id) => {
            let destination = u8::try_from(id).ok().filter(|id| *id != BROADCAST)?;
            Some(entry.with_logical(false).with_destination(destination))
        }
    }
}

/// Where a message may go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Confined {
    /// Where it was meant to: all of these are its owner's.
    AsItIs,
    /// To the processor with this APIC id only, the first of those of the owner's that are meant.
    To(u32),
}

/// Where a message of `owner` that is meant for `target` may go; `None`: none of the owner's processors is meant.
#[must_use]
pub fn confine(target: Target, owner: u32, receivers: &impl Receivers) -> Option<Confined> {
    let mut first = None;
    let mut reaches_others = false;
    for receiver in (0..receivers.count()).filter_map(|number| receivers.get(number)) {
        let is_own = receiver.owner == Some(owner);
        // The mode of a processor on its way is not certain; and what a cell sends is not judged again when those of others
        // change hands, and with them their mode.
        let in_any_mode = !is_own && (owner != ROOT || receiver.owner.is_none());
        if !receiver.is_addressed(target, in_any_mode) {
            continue;
        }
        if is_own {
            first = first.or(Some(receiver.processor.apic_id));
        } else {
            reaches_others = true;
        }
    }
    first.map(|first| match reaches_others {
        false => Confined::AsItIs,
        true => Confined::To(first),
    })
}
