//! Entries of IOMMUs for the pins of IOAPICs that cells have. Called by whoever holds the lock of the IOAPICs.
#![forbid(unsafe_code)]

use gaol_abi::hypercall::Errno;
use gaol_abi::outcome::Reason;

use super::{ALL, FLEET, Hands, Refused, failure, is_on, look, with};
use crate::cpu::window::Windows;
use crate::device::io_apic::entry::Entry;
use crate::device::io_apic::judge::{Receivers, Remapping};
use crate::error::{Blame, Failure};
use crate::region::LinearTables;

/// By whose table the messages of the IOAPIC with registers at `io_apic` are remapped, as far as the IOMMUs know.
#[must_use]
pub fn remapping(io_apic: u64) -> Remapping {
    if is_on() {
        FLEET.lock().remapping(io_apic)
    } else {
        Remapping::None
    }
}

/// Takes an entry for a pin of the IOAPIC. It sends nothing.
///
/// # Errors
/// When there is none, or the IOMMU does not answer.
pub fn take(io_apic: u64) -> Result<u16, Failure> {
    with(|fleet| fleet.take_line(io_apic)).map_err(|refused| match refused {
        Refused::Full => Failure::new(
            Blame::Configuration,
            Errno::NoMemory,
            Reason::IommuLines,
            io_apic,
        ),
        other => failure(other, 0),
    })
}

/// Has an entry of a pin of the IOAPIC send what `entry` of the cell `owner`'s says, which was judged; `None`: nothing.
///
/// # Errors
/// When the IOMMU does not answer, or the entry leads to no processor of the owner's.
pub fn set(
    windows: Windows,
    (io_apic, handle): (u64, u16),
    entry: Option<(Entry, u32)>,
    receivers: &impl Receivers,
) -> Result<(), Failure> {
    let hands = Hands(Some(windows));
    look(|fleet| fleet.set_line(&hands, &LinearTables, (io_apic, handle), entry, receivers))
        .map_err(|refused| failure(refused, 0))
}

/// Gives an entry of a pin of the IOAPIC back.
///
/// # Errors
/// When the IOMMU does not answer: the entry stays taken then.
pub fn release(windows: Windows, io_apic: u64, handle: u16) -> Result<(), Failure> {
    let hands = Hands(Some(windows));
    with(|fleet| fleet.release_line(&hands, &LinearTables, (io_apic, handle), &ALL))
        .map_err(|refused| failure(refused, 0))
}
