//! Where an interprocessor interrupt goes: to which processors of the sender's cell, and what it does there.
//!
//! Invariant: nothing reaches a processor of another cell, and nothing raises an SMI. Inside the cell exactly the
//! processors are reached that the command addresses (SDM, "Determining IPI Destination"), with combinations that the
//! manual calls invalid ("Valid Combinations for the Pentium 4 and Intel Xeon Processors") having no effect. Messages are
//! always edge-triggered: the end of a level-triggered interrupt is broadcast to all IOAPICs with its vector, and that
//! must come from pins only.
#![forbid(unsafe_code)]

use super::interrupt_command::{Command, DeliveryMode, Processor, Shorthand, Target};

/// A processor as a command meets it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Member {
    /// How it can be addressed.
    pub processor: Processor,
    /// The cell that it belongs to.
    pub cell: u32,
    /// It waits for a startup IPI and takes no interrupts.
    pub waits: bool,
}

/// What a command does at a processor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// The interrupt of this vector, edge-triggered.
    Interrupt(u8),
    /// At the sender itself: the APIC notes an error, as for any message with one of the vectors 0 to 15.
    IllegalVector(u8),
    /// A non-maskable interrupt.
    Nmi,
    /// INIT.
    Init,
    /// Start-up at this page.
    StartUp(u8),
}

/// The first vector that an APIC sends; those below are exceptions' own.
const FIRST_VECTOR: u8 = 16;

/// What the command does where it arrives. `None`: nothing, anywhere.
fn action(command: Command) -> Option<Action> {
    let vector = command.bits.vector();
    let shorthand = command.bits.shorthand();
    let is_self_or_all = matches!(shorthand, Shorthand::Own | Shorthand::All);
    match command.bits.delivery_mode() {
        DeliveryMode::LowestPriority if is_self_or_all => None,
        DeliveryMode::Fixed | DeliveryMode::LowestPriority if vector < FIRST_VECTOR => {
            Some(Action::IllegalVector(vector))
        }
        DeliveryMode::Fixed | DeliveryMode::LowestPriority => Some(Action::Interrupt(vector)),
        DeliveryMode::Nmi if !is_self_or_all => Some(Action::Nmi),
        DeliveryMode::Init if !is_self_or_all => Some(Action::Init),
        DeliveryMode::StartUp if !is_self_or_all => Some(Action::StartUp(vector)),
        // SMIs are not for guests to send, and the rest is reserved.
        _ => None,
    }
}

/// Tells `act` where the command of the processor `sender`, which is of `cell`, goes, and what it does there. Returns how
/// much of it was dropped because others are meant.
#[inline]
pub fn route(
    command: Command,
    sender: u32,
    cell: u32,
    members: impl Iterator<Item = Member>,
    mut act: impl FnMut(&Member, Action),
) -> u32 {
    if command.is_init_deassert() {
        return 0;
    }
    let Some(action) = action(command) else {
        return 1;
    };
    let target = command.target();
    let one_is_enough = command.bits.delivery_mode() == DeliveryMode::LowestPriority;
    let (mut dropped, mut reached) = (0u32, false);
    for member in members {
        let is_sender = member.processor.number == sender;
        if matches!(action, Action::IllegalVector(_)) {
            if is_sender {
                act(&member, action);
                return 0;
            }
            continue;
        }
        if !target.addresses(&member.processor, is_sender) {
            continue;
        }
        if member.cell != cell {
            // All and all-but-self mean the cell's own: others are none of the sender's business.
            if !matches!(target, Target::All | Target::AllButOwn) {
                dropped = dropped.saturating_add(1);
            }
            continue;
        }
        // Of several, a processor that takes no interrupts is not the one of lowest priority.
        if one_is_enough && (reached || member.waits) {
            continue;
        }
        reached = true;
        act(&member, action);
    }
    if !reached && dropped == 0 && matches!(target, Target::Physical(_)) {
        dropped = 1;
    }
    dropped
}

#[cfg(test)]
#[path = "interrupt_route_tests.rs"]
mod tests;
