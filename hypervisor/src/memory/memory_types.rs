//! Memory types of physical addresses, as the machine's MTRRs give them.
#![forbid(unsafe_code)]

use open_enum::open_enum;

/// How memory is cached, in the numbers that MTRRs, PAT and EPT share: SDM, "Memory Types That Can Be Encoded in MTRRs".
#[open_enum]
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryType {
    /// UC: no caching, no speculation.
    Uncacheable = 0,
    /// WC: writes are collected.
    WriteCombining = 1,
    /// WT: reads are cached, writes go through.
    WriteThrough = 4,
    /// WP: reads are cached, writes go to memory and invalidate.
    WriteProtected = 5,
    /// WB: ordinary memory.
    WriteBack = 6,
}
