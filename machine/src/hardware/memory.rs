//! Whether Linux can give memory while it runs.

use super::Facts;
use super::row::{Group, Question, Row};

const CONTIGUOUS: Question = Group::Linux.wanted(
    "contiguous_memory",
    "contiguous memory at run time",
    "Linux moves pages away and gives ranges in one piece, without a reboot.",
);
const BLOCKS: Question = Group::Linux.wanted(
    "memory_blocks",
    "memory blocks can go offline",
    "Where ranges do not reach, whole blocks of memory are taken from Linux, without a reboot.",
);

const RESERVE: &str = "Reserve memory on the kernel command line (`memmap=SIZE$ADDRESS`), or use a kernel with CONFIG_MEMORY_HOTREMOVE and CONFIG_COMPACTION.";

/// The kernel exports `alloc_contig_range` when it was built with isolation of pages and with compaction.
pub(super) fn rows(facts: &Facts, rows: &mut Vec<Row>) {
    let linux = &facts.linux;
    rows.push(match (linux.has_isolation, linux.has_compaction) {
        (true, true) => CONTIGUOUS.ok("the kernel isolates and moves pages"),
        (false, _) => CONTIGUOUS.bad(
            "the kernel shows no memory block that it could isolate",
            RESERVE,
        ),
        (true, false) => CONTIGUOUS.bad("the kernel has no compaction", RESERVE),
    });
    rows.push(match &linux.memory_block {
        Err(problem) => BLOCKS.unknown(problem),
        Ok(Some(size)) if linux.has_isolation && *size >= 1 << 20 => {
            BLOCKS.ok(format!("in blocks of {} MiB", size >> 20))
        }
        Ok(_) => BLOCKS.bad("the kernel takes no memory offline", RESERVE),
    });
}
