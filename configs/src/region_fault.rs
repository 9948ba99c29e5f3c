//! Why a memory region is impossible in itself.
//!
//! Invariant: a region has a fault here exactly when the ledger refuses it as invalid (the tests go through all
//! combinations); the ledger decides, this tells why.

use gaol_abi::PAGE_SIZE;
use gaol_abi::config::{
    MEMORY_COMMUNICATION, MEMORY_CONTINUED, MEMORY_DEVICE, MEMORY_DMA, MEMORY_EXECUTE,
    MEMORY_LOADABLE, MEMORY_READ, MEMORY_ROOT_SHARED, MEMORY_SHARED, MEMORY_TYPE_MASK,
    MEMORY_TYPE_UNCACHEABLE, MEMORY_TYPE_WRITE_BACK, MEMORY_TYPE_WRITE_COMBINING, MEMORY_WIDTHS,
    MEMORY_WRITE, MemoryRegion,
};

use crate::binary::guest_range;
use crate::compile::RegionPlaces;
use crate::explain::{Words, region_name, words};
use crate::problem::Place;
use crate::quantity::Size;

/// Why the ledger finds a region impossible, taken alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RegionFault {
    NotReadable,
    CommunicationFlags,
    DeviceFlags,
    LoadableAndShared,
    WidthsOfRam,
    UnknownType,
    CachedDevice,
    CachedWidths,
    WidthUnaligned,
    OtherOffset,
    CrossesPage,
    PieceApart,
    GuestUnaligned,
    PhysicalUnaligned,
    SizeUnaligned,
    Empty,
    GuestTooHigh,
    PhysicalTooHigh,
    CommunicationSize,
    CommunicationPhysical,
    SecondCommunication,
    SameName,
    DeviceWithoutPhysical,
    NotPlaced,
}

/// The first fault in the order in which one would mend them.
pub(crate) fn region_fault(
    region: &MemoryRegion,
    earlier: &[MemoryRegion],
    limit: u64,
) -> RegionFault {
    let has = |flags: u64| region.flags & flags != 0;
    let widths = region.flags & MEMORY_WIDTHS;
    let unaligned = |value: u64| widths == 0 && !value.is_multiple_of(PAGE_SIZE);
    let offset = |address: u64| address % PAGE_SIZE;
    let all = region.guest | region.physical | region.size;
    let kind = region.flags & MEMORY_TYPE_MASK;
    let too_high = |start: u64| start.checked_add(region.size).is_none_or(|end| end > limit);
    let is_communication = has(MEMORY_COMMUNICATION);
    let communication = MEMORY_COMMUNICATION | MEMORY_READ | MEMORY_WRITE;
    let has_communication = |other: &MemoryRegion| other.flags & MEMORY_COMMUNICATION != 0;
    let cases = [
        (!has(MEMORY_READ), RegionFault::NotReadable),
        (
            is_communication && region.flags != communication,
            RegionFault::CommunicationFlags,
        ),
        (
            has(MEMORY_DEVICE)
                && has(MEMORY_EXECUTE | MEMORY_LOADABLE | MEMORY_DMA | MEMORY_CONTINUED),
            RegionFault::DeviceFlags,
        ),
        (
            has(MEMORY_LOADABLE) && has(MEMORY_ROOT_SHARED | MEMORY_SHARED),
            RegionFault::LoadableAndShared,
        ),
        (widths != 0 && !has(MEMORY_DEVICE), RegionFault::WidthsOfRam),
        (kind > MEMORY_TYPE_WRITE_BACK, RegionFault::UnknownType),
        (
            has(MEMORY_DEVICE) && kind > MEMORY_TYPE_WRITE_COMBINING,
            RegionFault::CachedDevice,
        ),
        (
            widths != 0 && kind > MEMORY_TYPE_UNCACHEABLE,
            RegionFault::CachedWidths,
        ),
        (region.size == 0, RegionFault::Empty),
        (unaligned(region.size), RegionFault::SizeUnaligned),
        (unaligned(region.guest), RegionFault::GuestUnaligned),
        (unaligned(region.physical), RegionFault::PhysicalUnaligned),
        (
            widths != 0 && !all.is_multiple_of(smallest_width(region)),
            RegionFault::WidthUnaligned,
        ),
        (
            widths != 0 && offset(region.guest) != offset(region.physical),
            RegionFault::OtherOffset,
        ),
        (
            widths != 0
                && offset(all) != 0
                && offset(region.physical).saturating_add(region.size) > PAGE_SIZE,
            RegionFault::CrossesPage,
        ),
        (too_high(region.guest), RegionFault::GuestTooHigh),
        (
            is_communication && region.size != PAGE_SIZE,
            RegionFault::CommunicationSize,
        ),
        (
            is_communication && region.physical != 0,
            RegionFault::CommunicationPhysical,
        ),
        (too_high(region.physical), RegionFault::PhysicalTooHigh),
        (
            is_communication && earlier.iter().any(has_communication),
            RegionFault::SecondCommunication,
        ),
        (
            !has(MEMORY_CONTINUED) && earlier.iter().any(|other| other.name == region.name),
            RegionFault::SameName,
        ),
        (
            has(MEMORY_CONTINUED) && !goes_on(region, earlier.last()),
            RegionFault::PieceApart,
        ),
        (
            has(MEMORY_DEVICE) && region.physical == 0,
            RegionFault::DeviceWithoutPhysical,
        ),
    ];
    let mut faults = cases.iter().filter(|(is_so, _)| *is_so);
    faults
        .next()
        .map_or(RegionFault::NotPlaced, |(_, fault)| *fault)
}

/// Bytes of the smallest access that is let through; 1 without access widths.
fn smallest_width(region: &MemoryRegion) -> u64 {
    let widths = (region.flags & MEMORY_WIDTHS) >> MEMORY_WIDTHS.trailing_zeros();
    1 << widths.trailing_zeros().min(3)
}

/// Whether a piece goes on where the record before it ends.
fn goes_on(region: &MemoryRegion, last: Option<&MemoryRegion>) -> bool {
    last.is_some_and(|last| {
        last.name == region.name
            && guest_range(last).is_some_and(|range| range.end().0 == region.guest)
            && (last.flags | MEMORY_CONTINUED) == region.flags
    })
}

impl RegionFault {
    pub(crate) fn place(self, places: &RegionPlaces) -> Place {
        let or_name = |place: &Option<Place>| place.clone().unwrap_or_else(|| places.name.clone());
        let first_of = |candidates: &[&Option<Place>]| {
            let mut given = candidates.iter().filter_map(|place| place.as_ref());
            given.next().unwrap_or(&places.name).clone()
        };
        match self {
            Self::NotReadable => or_name(&places.access),
            Self::CommunicationFlags => first_of(&[
                &places.loadable,
                &places.shared,
                &places.shared_with_root,
                &places.dma,
                &places.cache,
                &places.widths,
                &places.access,
            ]),
            Self::DeviceFlags => first_of(&[&places.loadable, &places.dma, &places.access]),
            Self::LoadableAndShared => or_name(&places.loadable),
            Self::WidthsOfRam => or_name(&places.widths),
            Self::UnknownType | Self::CachedDevice | Self::CachedWidths => or_name(&places.cache),
            Self::WidthUnaligned | Self::CrossesPage => or_name(&places.size),
            Self::OtherOffset => places.at.clone(),
            Self::GuestUnaligned | Self::GuestTooHigh => places.at.clone(),
            Self::PhysicalUnaligned | Self::PhysicalTooHigh | Self::CommunicationPhysical => {
                or_name(&places.physical)
            }
            Self::SizeUnaligned | Self::Empty | Self::CommunicationSize => or_name(&places.size),
            Self::SecondCommunication | Self::DeviceWithoutPhysical => or_name(&places.kind),
            Self::SameName | Self::PieceApart | Self::NotPlaced => places.name.clone(),
        }
    }

    pub(crate) fn words(self, region: &MemoryRegion) -> Words {
        let name = region_name(region);
        let subject = format!("memory region {name:?}");
        let size = Size(region.size);
        match self {
            Self::NotReadable => words(
                format!("{subject} can't be read"),
                "not readable",
                "Write \"r\", \"rw\", \"rx\" or \"rwx\": a CPU can't write or execute what it can't read.",
            ),
            Self::CommunicationFlags => words(
                format!("{subject} is a communication region, and can only have access \"rw\""),
                "not for a communication region",
                "Take the underlined key out.",
            ),
            Self::DeviceFlags => words(
                format!(
                    "{subject} is a device, which is neither executed, loaded nor a target of DMA"
                ),
                "not for a device",
                "Take the underlined key out, or make it `kind = \"ram\"`.",
            ),
            Self::LoadableAndShared => words(
                match region.flags & MEMORY_ROOT_SHARED {
                    0 => format!("{subject} is both loadable and shared with other cells"),
                    _ => format!("{subject} is both loadable and shared with the root cell"),
                },
                match region.flags & MEMORY_ROOT_SHARED {
                    0 => "not together with `shared`",
                    _ => "not together with `shared-with-root`",
                },
                match region.flags & MEMORY_ROOT_SHARED {
                    0 => "Take `loadable` out, or add `shared-with-root = true` instead of it.",
                    _ => "Take `loadable` out: the root cell sees shared memory all the time.",
                },
            ),
            Self::WidthsOfRam => words(
                format!("{subject} is RAM, and has access widths"),
                "for registers of devices",
                "Take `widths` out, or make it `kind = \"device\"`.",
            ),
            Self::UnknownType => words(
                format!("{subject} has a memory type that does not exist"),
                "unknown",
                "Compile the configuration again from its TOML file.",
            ),
            Self::CachedDevice => words(
                format!("{subject} is a device, and would be cached"),
                "not for registers",
                "Write \"uncacheable\" or \"write-combining\"; memory on a device is `kind = \"ram\"`.",
            ),
            Self::CachedWidths => words(
                format!("{subject} has access widths, and is not uncacheable"),
                "not with access widths",
                "Take `cache` out: the hypervisor makes each of these accesses for itself.",
            ),
            Self::WidthUnaligned => words(
                format!(
                    "{subject} is not made of whole accesses of {} bytes",
                    smallest_width(region)
                ),
                "not whole accesses",
                "Address and size are multiples of the smallest width.",
            ),
            Self::OtherOffset => words(
                format!(
                    "{subject} is at another place in its page for the cell than in the machine"
                ),
                "another offset",
                format!(
                    "The last three digits are {:03x}, as in `physical`.",
                    region.physical & (PAGE_SIZE - 1)
                ),
            ),
            Self::CrossesPage => words(
                format!("{subject} is neither a part of one page nor made of whole pages"),
                "crosses a page",
                "Make it two regions: one for each page.",
            ),
            Self::PieceApart => words(
                format!("a piece of {subject} does not go on where the one before it ends"),
                "in pieces",
                "Compile the configuration again from its TOML file.",
            ),
            Self::Empty => words(
                format!("{subject} is empty"),
                "no bytes",
                "Write a size of at least \"4 KiB\".",
            ),
            Self::SizeUnaligned => words(
                format!("the size of {subject}, {size}, is not a multiple of 4 KiB"),
                "not whole pages",
                format!(
                    "The next size is \"{}\".",
                    Size(
                        region
                            .size
                            .checked_next_multiple_of(PAGE_SIZE)
                            .unwrap_or(PAGE_SIZE)
                    )
                ),
            ),
            Self::GuestUnaligned | Self::PhysicalUnaligned => {
                let is_guest = self == Self::GuestUnaligned;
                let address = if is_guest {
                    region.guest
                } else {
                    region.physical
                };
                words(
                    format!("{subject} does not begin at a page"),
                    "not a multiple of 0x1000",
                    format!("The page is at {:#x}.", address & !(PAGE_SIZE - 1)),
                )
            }
            Self::GuestTooHigh | Self::PhysicalTooHigh => words(
                format!("{subject} ends beyond the addresses that a CPU can form"),
                "too high",
                "Move it down, or make it smaller.",
            ),
            Self::CommunicationSize => words(
                format!("{subject} is a communication region, and has {size} instead of one page"),
                "not 4 KiB",
                "Leave `size` out.",
            ),
            Self::CommunicationPhysical => words(
                format!("{subject} is a communication region: the hypervisor provides its memory"),
                "not for a communication region",
                "Take `physical` out.",
            ),
            Self::SecondCommunication => words(
                format!("{subject} is the second communication region of the cell"),
                "one too many",
                "A cell has one at the most.",
            ),
            Self::SameName => words(
                format!("two memory regions have the name {name:?}"),
                "taken",
                "Choose another name.",
            ),
            Self::DeviceWithoutPhysical => words(
                format!("{subject} is a device without an address"),
                "where is it?",
                "Add a line such as `physical = 0xfed00000`.",
            ),
            Self::NotPlaced => words(
                format!("{subject} has no physical address"),
                "not placed",
                "Reserve the memory, and set `physical`.",
            ),
        }
    }
}
