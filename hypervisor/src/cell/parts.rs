//! Registers with access widths: of a cell, and what is left of their pages to the root.
//!
//! Such a region is mapped to nobody: it is a moderated range of its owner. Where it is a part of a page, the root keeps
//! the rest of the page ([`What::Remainder`]), and so do other cells their parts. Invariant: the page is the root's again
//! when the last part of it is given back; as long as an exit of the root can come from it, it is in the root's table.

use gaol_abi::config::{MEMORY_WIDTHS, MEMORY_WRITE, MemoryRegion};
use gaol_abi::outcome::Reason;

use super::lifecycle::ROOT;
use super::moderated::{self, Moderated, TableFull, What};
use super::root::RootShare;
use super::{Cell, carve};
use crate::error::Failure;
use crate::launch::parameters;
use crate::memory::address::{GuestPhysical, HostPhysical, Range};
use crate::memory::page_table::{Flush, PageTable, Tables};
use crate::region::LinearTables;
use crate::system::{self, Machinery, PoolTables, map_failure};
use crate::virt::NestedFormat;

const PAGE: u64 = 4096;

impl From<TableFull> for Failure {
    fn from(_: TableFull) -> Self {
        Self::configuration(Reason::TooManyCells, 0)
    }
}

/// Whether a cell reaches the region through the hypervisor only.
pub const fn has_widths(region: &MemoryRegion) -> bool {
    region.flags & MEMORY_WIDTHS != 0
}

/// Whether the region shares its page with others.
pub const fn is_part(region: &MemoryRegion) -> bool {
    has_widths(region) && (region.physical | region.size) & (PAGE - 1) != 0
}

const fn page_of(region: &MemoryRegion) -> u64 {
    region.physical & !(PAGE - 1)
}

/// Whether both are parts of one page that the root does not map because of them.
pub fn are_in_one_page(first: &MemoryRegion, second: &MemoryRegion) -> bool {
    is_part(first)
        && is_part(second)
        && carve::taken_from_root(first)
        && carve::taken_from_root(second)
        && page_of(first) == page_of(second)
}

/// The moderated range that a region with access widths is to its owner.
const fn moderated_range(region: &MemoryRegion) -> Moderated {
    Moderated {
        start: region.guest,
        size: region.size,
        what: What::Registers {
            physical: HostPhysical::new(region.physical),
            // The flags are in the order of the widths: 1, 2, 4, 8 bytes.
            widths: ((region.flags & MEMORY_WIDTHS) >> MEMORY_WIDTHS.trailing_zeros()) as u8,
            writable: region.flags & MEMORY_WRITE != 0,
        },
    }
}

fn range(start: u64, size: u64) -> Result<Range<GuestPhysical>, Failure> {
    Range::new(GuestPhysical::new(start), size)
        .ok_or(Failure::configuration(Reason::RegionInvalid, 0))
}

/// Makes the cell's regions with access widths its moderated ranges, before its CPUs run.
pub fn publish(id: u32, cell: &Cell) -> Result<(), Failure> {
    let table = moderated::table(id).ok_or(Failure::configuration(Reason::TooManyCells, 0))?;
    table.remove(|range| matches!(range.what, What::Registers { .. }));
    for region in cell.regions().filter(|region| has_widths(region)) {
        table.add(&moderated_range(region))?;
    }
    Ok(())
}

/// A page of which a cell gets a part, as a region, if all of it is the root's otherwise.
fn whole_page(region: &MemoryRegion) -> Option<MemoryRegion> {
    let page = page_of(region);
    let is_roots = system::root_share().is_none_or(|share| share.run(page, PAGE) == (true, PAGE));
    is_roots.then_some(MemoryRegion {
        physical: page,
        guest: page,
        size: PAGE,
        ..*region
    })
}

/// Takes the page of a part from the root's EPT; its accesses are moderated from now on.
pub fn take(machinery: &mut Machinery, region: &MemoryRegion) -> Result<Flush, Failure> {
    let Some(page) = whole_page(region) else {
        return Ok(Flush::Nothing);
    };
    let pages = range(page.physical, PAGE)?;
    let tables = &mut PoolTables(&mut machinery.pool);
    let root = &mut machinery.root_ept;
    // Beyond what Linux knows of there may be no mapping to come back to, and nothing that Linux would miss.
    if page.physical >= parameters::physical_end() {
        return root.map_hole(tables, pages).map_err(map_failure);
    }
    let remainder = Moderated {
        start: page.physical,
        size: PAGE,
        what: What::Remainder,
    };
    if let Some(table) = moderated::table(ROOT)
        && !table.contains(&remainder)
    {
        table.add(&remainder)?;
    }
    root.unmap_keeping_tables(tables, pages)
        .map_err(map_failure)
}

/// Maps the page of a part to the root as it was. [`settle`] does the rest when no CPU knows the old state any more.
pub fn give(machinery: &mut Machinery, region: &MemoryRegion) -> Result<Flush, Failure> {
    match whole_page(region) {
        Some(page) => carve::map_to_root(machinery, &page, false),
        None => Ok(Flush::Nothing),
    }
}

/// Forgets the pages that the root has again. Every CPU has flushed since the last change.
pub fn settle(machinery: &Machinery) {
    let is_mapped = |page: u64| {
        let root = &machinery.root_ept;
        root.lookup(&LinearTables, GuestPhysical::new(page))
            .is_some_and(|there| !there.is_hole)
    };
    if let Some(table) = moderated::table(ROOT) {
        table.remove(|range| range.what == What::Remainder && is_mapped(range.start));
    }
}

/// Makes the regions with access widths of a strict root its moderated ranges, at launch.
pub fn prepare_root<T: Tables>(
    share: &RootShare<'_>,
    ept: &mut PageTable<NestedFormat>,
    tables: &mut T,
) -> Result<(), Failure> {
    for region in share.moderated() {
        if let Some(table) = moderated::table(ROOT) {
            table.add(&moderated_range(region))?;
        }
        // No CPU uses the table yet.
        unmap_pages(region, ept, tables)?.ignore();
    }
    Ok(())
}

fn unmap_pages<T: Tables>(
    region: &MemoryRegion,
    ept: &mut PageTable<NestedFormat>,
    tables: &mut T,
) -> Result<Flush, Failure> {
    let end = region.physical.saturating_add(region.size);
    let size = end.saturating_sub(page_of(region)).next_multiple_of(PAGE);
    ept.unmap_keeping_tables(tables, range(page_of(region), size)?)
        .map_err(map_failure)
}

/// Makes what a strict root reaches through the hypervisor in these pages, which were a cell's, lead nowhere again.
pub fn return_moderated(machinery: &mut Machinery, start: u64, end: u64) -> Result<Flush, Failure> {
    let mut flush = Flush::Nothing;
    let Some(share) = system::root_share() else {
        return Ok(flush);
    };
    for region in share.moderated() {
        if page_of(region) < end && region.physical.saturating_add(region.size) > start {
            let tables = &mut PoolTables(&mut machinery.pool);
            flush = flush.and(unmap_pages(region, &mut machinery.root_ept, tables)?);
        }
    }
    Ok(flush)
}

#[cfg(test)]
mod tests {
    use super::*;
    use gaol_abi::config::{
        MEMORY_DEVICE, MEMORY_READ, MEMORY_ROOT_SHARED, MEMORY_WIDTH_8, MEMORY_WIDTH_16,
        MEMORY_WIDTH_32, MEMORY_WIDTH_64,
    };

    fn region(physical: u64, size: u64, flags: u64) -> MemoryRegion {
        MemoryRegion {
            name: [0; gaol_abi::NAME_LENGTH],
            physical,
            guest: 0x10_0000_0000 + physical,
            size,
            flags: flags | MEMORY_DEVICE | MEMORY_READ,
        }
    }

    #[test]
    fn widths_are_sums_of_bytes() {
        let bits = [
            (MEMORY_WIDTH_8, 1u8),
            (MEMORY_WIDTH_16, 2),
            (MEMORY_WIDTH_32, 4),
            (MEMORY_WIDTH_64, 8),
        ];
        for chosen in 1..16u32 {
            let picked = || {
                let numbered = bits.iter().enumerate();
                numbered
                    .filter(|(index, _)| chosen >> index & 1 != 0)
                    .map(|(_, pair)| *pair)
            };
            for write in [0, MEMORY_WRITE] {
                let flags = picked().map(|(flag, _)| flag).sum::<u64>() | write;
                let found = moderated_range(&region(0x8010, 16, flags));
                assert_eq!((found.start, found.size), (0x10_0000_8010, 16));
                let expected = What::Registers {
                    physical: HostPhysical::new(0x8010),
                    widths: picked().map(|(_, bytes)| bytes).sum(),
                    writable: write != 0,
                };
                assert_eq!(found.what, expected);
            }
        }
    }

    #[test]
    fn parts_of_one_page_belong_together() {
        let widths = MEMORY_WIDTH_32;
        let part = region(0x8010, 16, widths);
        assert!(is_part(&part) && has_widths(&part));
        assert!(is_part(&region(0x8000, 0x800, widths)));
        for other in [region(0x8000, 0x1000, widths), region(0x8000, 0x1000, 0)] {
            assert!(!is_part(&other));
            assert!(!are_in_one_page(&part, &other));
        }
        assert!(are_in_one_page(&part, &region(0x8ff0, 16, widths)));
        assert!(!are_in_one_page(&part, &region(0x9010, 16, widths)));
        let shared = region(0x8ff0, 16, widths | MEMORY_ROOT_SHARED);
        assert!(!are_in_one_page(&part, &shared) && !are_in_one_page(&shared, &part));
    }
}
