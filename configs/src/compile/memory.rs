//! Memory regions, of cells and of a strict root cell.

use gaol_abi::PAGE_SIZE;
use gaol_abi::config::{
    MAX_MEMORY_REGIONS, MEMORY_COMMUNICATION, MEMORY_DEVICE, MEMORY_DMA, MEMORY_EXECUTE,
    MEMORY_LOADABLE, MEMORY_READ, MEMORY_ROOT_SHARED, MEMORY_SHARED, MEMORY_TYPE_UNCACHEABLE,
    MEMORY_TYPE_WRITE_BACK, MEMORY_TYPE_WRITE_COMBINING, MEMORY_TYPE_WRITE_PROTECTED,
    MEMORY_TYPE_WRITE_THROUGH, MEMORY_WIDTH_8, MEMORY_WIDTH_16, MEMORY_WIDTH_32, MEMORY_WIDTH_64,
    MEMORY_WRITE, MemoryRegion,
};
use gaol_abi::outcome::Reason;
use toml::Spanned;

use super::judge::Judge;
use super::places::place;
use crate::problem::Place;
use crate::quantity::Number;
use crate::schema::{Cache, Kind, MemoryTable};

/// What to do with too many regions, ranges or the like.
pub(super) const JOIN: &str = "Join neighbouring ones.";

/// The memory of a cell.
pub(super) fn of_cell(judge: &Judge<'_>, tables: &[Spanned<MemoryTable>]) -> Vec<MemoryRegion> {
    judge
        .bounded(
            tables,
            MAX_MEMORY_REGIONS,
            "memory regions in the cell",
            JOIN,
        )
        .iter()
        .map(|table| region(judge, table.get_ref()))
        .collect()
}

/// The memory of a strict root cell, which it has where the machine has it.
pub(super) fn of_root(judge: &Judge<'_>, tables: &[Spanned<MemoryTable>]) -> Vec<MemoryRegion> {
    judge
        .bounded(
            tables,
            MAX_MEMORY_REGIONS,
            "memory regions of the root cell",
            JOIN,
        )
        .iter()
        .map(|table| root_region(judge, table.get_ref()))
        .collect()
}

fn root_region(judge: &Judge<'_>, table: &MemoryTable) -> MemoryRegion {
    let name = table.name.get_ref();
    let meaningless = [
        ("physical", place(&table.physical)),
        ("loadable", place(&table.loadable)),
        ("shared", place(&table.shared)),
        ("shared-with-root", place(&table.shared_with_root)),
    ];
    for (key, given) in meaningless {
        if let Some(given) = given {
            judge.problem(
                Reason::RegionInvalid,
                given,
                "not for the root cell",
                format!("`{key}` has no meaning for memory region {name:?} of the root cell"),
                "Take it out: `at` is the address in the machine, and cells say what they share.",
            );
        }
    }
    if let Some(kind) = &table.kind
        && *kind.get_ref() == Kind::Communication
    {
        judge.problem(
            Reason::RegionInvalid,
            kind.span(),
            "not for the root cell",
            "the root cell has no communication region",
            "Take the region out.",
        );
    }
    let region = region(judge, table);
    MemoryRegion {
        physical: region.guest,
        ..region
    }
}

fn region(judge: &Judge<'_>, table: &MemoryTable) -> MemoryRegion {
    let kind = table
        .kind
        .as_ref()
        .map_or(Kind::Ram, |kind| *kind.get_ref());
    let is_set = |value: &Option<Spanned<bool>>| value.as_ref().is_some_and(|is| *is.get_ref());
    let flag = |is_set: bool, flag: u64| if is_set { flag } else { 0 };
    let flags = access(judge, table.access.as_ref())
        | flag(kind == Kind::Device, MEMORY_DEVICE)
        | flag(kind == Kind::Communication, MEMORY_COMMUNICATION)
        | table
            .cache
            .as_ref()
            .map_or(0, |cache| memory_type(*cache.get_ref()))
        | table
            .widths
            .as_ref()
            .map_or(0, |widths| access_widths(judge, widths))
        | flag(is_set(&table.loadable), MEMORY_LOADABLE)
        | flag(is_set(&table.shared), MEMORY_SHARED)
        | flag(is_set(&table.shared_with_root), MEMORY_ROOT_SHARED)
        | flag(is_set(&table.dma), MEMORY_DMA);
    MemoryRegion {
        name: judge.name("memory region", &table.name),
        physical: physical(judge, table),
        guest: table.at.get_ref().0,
        size: size(judge, table, kind),
        flags,
    }
}

fn size(judge: &Judge<'_>, table: &MemoryTable, kind: Kind) -> u64 {
    match (&table.size, kind) {
        (Some(size), _) => size.get_ref().0,
        (None, Kind::Communication) => PAGE_SIZE,
        (None, _) => {
            judge.invalid(
                table.name.span(),
                "how large?",
                format!("memory region {:?} has no size", table.name.get_ref()),
                "Add a line such as `size = \"1 MiB\"` to its table.",
            );
            0
        }
    }
}

fn physical(judge: &Judge<'_>, table: &MemoryTable) -> u64 {
    let Some(physical) = &table.physical else {
        return 0;
    };
    if physical.get_ref().0 == 0 {
        judge.problem(
            Reason::RegionInvalid,
            physical.span(),
            "not possible",
            format!(
                "memory region {:?} can't be at physical address 0",
                table.name.get_ref()
            ),
            "Leave the key out: Linux then gives the memory.",
        );
    }
    physical.get_ref().0
}

fn memory_type(cache: Cache) -> u64 {
    match cache {
        Cache::Uncacheable => MEMORY_TYPE_UNCACHEABLE,
        Cache::WriteCombining => MEMORY_TYPE_WRITE_COMBINING,
        Cache::WriteThrough => MEMORY_TYPE_WRITE_THROUGH,
        Cache::WriteProtected => MEMORY_TYPE_WRITE_PROTECTED,
        Cache::WriteBack => MEMORY_TYPE_WRITE_BACK,
    }
}

fn access_widths(judge: &Judge<'_>, widths: &Spanned<Vec<Spanned<Number>>>) -> u64 {
    const REMEDY: &str = "Write a list of 8, 16, 32 and 64, each once, or leave the key out of a region of whole pages.";
    if widths.get_ref().is_empty() {
        let message = "no access would get through to this region";
        judge.invalid(widths.span(), "empty", message, REMEDY);
    }
    let mut flags = 0;
    for width in widths.get_ref() {
        let bits = width.get_ref().0;
        let flag = match bits {
            8 => MEMORY_WIDTH_8,
            16 => MEMORY_WIDTH_16,
            32 => MEMORY_WIDTH_32,
            64 => MEMORY_WIDTH_64,
            _ => 0,
        };
        if flag == 0 {
            let message = format!("there are no accesses of {bits} bits");
            judge.invalid(width.span(), "not a width", message, REMEDY);
        } else if flags & flag != 0 {
            let message = format!("the width {bits} is named twice");
            judge.invalid(width.span(), "named before", message, REMEDY);
        }
        flags |= flag;
    }
    flags
}

/// The flags of a list of letters, each once; `None` when it is none.
pub(super) fn letters<T>(text: &str, of: impl Fn(char) -> Option<T>) -> Option<T>
where
    T: Copy + Default + PartialEq + core::ops::BitOr<Output = T> + core::ops::BitAnd<Output = T>,
{
    text.chars().try_fold(T::default(), |flags, letter| {
        let flag = of(letter)?;
        (flags & flag == T::default()).then_some(flags | flag)
    })
}

fn access(judge: &Judge<'_>, access: Option<&Spanned<String>>) -> u64 {
    let Some(access) = access else {
        return MEMORY_READ | MEMORY_WRITE;
    };
    let flags = letters(access.get_ref(), |letter| match letter {
        'r' => Some(MEMORY_READ),
        'w' => Some(MEMORY_WRITE),
        'x' => Some(MEMORY_EXECUTE),
        _ => None,
    });
    match flags {
        Some(flags) if flags & MEMORY_READ != 0 => flags,
        _ => {
            not_an_access(judge, access.span(), access.get_ref());
            0
        }
    }
}

fn not_an_access(judge: &Judge<'_>, place: Place, text: &str) {
    judge.invalid(
        place,
        "not an access",
        format!("{text:?} is not a way to access memory"),
        "Write \"r\", \"rw\", \"rx\" or \"rwx\": a CPU can't write or execute what it can't read.",
    );
}
