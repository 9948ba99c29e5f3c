//! Partitioning of caches and of memory bandwidth.

use super::Facts;
use super::facts::{Feature, Register, has};
use super::row::{Group, Question, Row};

const ALLOCATION: Feature = Feature(7, 0, Register::Ebx, 15);
const LEAF: u32 = 0x10;
/// AMD's leaf of bandwidth enforcement, and the feature that announces it.
const AMD_LEAF: u32 = 0x8000_0020;
const AMD_BANDWIDTH: Feature = Feature(0x8000_0008, 0, Register::Ebx, 6);

const CACHE: Question = Group::Processor.wanted(
    "cache_allocation",
    "cache allocation (CAT)",
    "It keeps what Linux does from emptying the shared cache under a real-time cell.",
);
const BANDWIDTH: Question = Group::Processor.wanted(
    "memory_bandwidth",
    "memory bandwidth allocation (MBA)",
    "It keeps Linux from taking all of the memory's bandwidth.",
);

/// SDM, "Enumeration and Detection Support of Cache Allocation Technology"; APM volume 3, leaf 0x8000_0020.
pub(super) fn rows(facts: &Facts, rows: &mut Vec<Row>) {
    let cpuid = match facts.first_cpuid() {
        Ok(cpuid) => cpuid,
        Err(problem) => {
            rows.extend([CACHE.unknown(&problem), BANDWIDTH.unknown(&problem)]);
            return;
        }
    };
    let resources = match has(cpuid, ALLOCATION) {
        true => cpuid.get(LEAF, 0).ebx,
        false => 0,
    };
    let level = |subleaf: u32, name: &str| {
        let entry = cpuid.get(LEAF, subleaf);
        let ways = (entry.eax & 0x1f) + 1;
        let classes = (entry.edx & 0xffff) + 1;
        (resources >> subleaf & 1 != 0).then(|| format!("{name}: {ways} ways, {classes} classes"))
    };
    let levels: Vec<String> = [level(1, "L3"), level(2, "L2")]
        .into_iter()
        .flatten()
        .collect();
    rows.push(match levels.is_empty() {
        false => CACHE.ok(levels.join("; ")),
        true => CACHE.bad(
            "none",
            "Nothing: caches are shared. Measure the cell's latency while Linux is under load.",
        ),
    });
    let entry = cpuid.get(LEAF, 3);
    rows.push(if resources >> 3 & 1 != 0 {
        BANDWIDTH.ok(format!(
            "throttling up to {} %, {} classes",
            (entry.eax & 0xfff) + 1,
            (entry.edx & 0xffff) + 1
        ))
    } else if has(cpuid, AMD_BANDWIDTH) && cpuid.get(AMD_LEAF, 0).ebx >> 1 & 1 != 0 {
        let classes = cpuid.get(AMD_LEAF, 1).edx;
        BANDWIDTH.ok(format!("{} classes", u64::from(classes) + 1))
    } else {
        BANDWIDTH.bad(
            "none",
            "Nothing: bandwidth is shared. Measure the cell's latency while Linux is under load.",
        )
    });
}
