//! Cache ways: the parts of a cache that a cell has for itself.

use gaol_abi::outcome::Reason;

use super::{CellId, Holding, Ledger, Machine};
use crate::binary::{CellView, Refusal};
use crate::cpu_set::CpuSet;

/// A level of caches whose ways can be given away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Level 2.
    L2,
    /// Level 3.
    L3,
}

impl Level {
    /// Both.
    pub const ALL: [Self; 2] = [Self::L3, Self::L2];

    /// The detail of a refusal of `ways`.
    #[must_use]
    pub fn detail(self, ways: u32) -> u64 {
        (if self == Self::L2 { 2 << 32 } else { 3 << 32 }) | u64::from(ways)
    }

    /// What a cell asks for.
    #[must_use]
    pub fn wanted(self, cell: &CellView<'_>) -> u32 {
        let header = cell.header();
        if self == Self::L2 {
            header.l2_ways
        } else {
            header.l3_ways
        }
    }

    fn held(self, holding: &Holding) -> u32 {
        if self == Self::L2 {
            holding.l2_ways
        } else {
            holding.l3_ways
        }
    }

    /// All ways of the cache as bits; `None` when they are not known.
    #[must_use]
    pub fn all_ways(self, machine: &Machine<'_>) -> Option<u32> {
        let header = machine.description()?.header();
        let count = if self == Self::L2 {
            header.l2_ways
        } else {
            header.l3_ways
        };
        let mask = 1u32.checked_shl(count.into()).unwrap_or(0);
        Some(mask.wrapping_sub(1))
    }

    /// Which of the caches is the CPU's; all have the same when it is not known.
    fn cache_of(self, machine: &Machine<'_>, cpu: u32) -> Option<u16> {
        let cpu = machine
            .system?
            .machine_cpus()
            .get(usize::try_from(cpu).ok()?)?;
        Some(if self == Self::L2 { cpu.l2 } else { cpu.l3 })
    }

    fn shares(self, machine: &Machine<'_>, cpu: u32, others: CpuSet) -> bool {
        let cache = self.cache_of(machine, cpu);
        others
            .iter()
            .any(|other| self.cache_of(machine, other) == cache)
    }
}

impl Ledger {
    /// A cell other than the root that shares the cache of one of `cpus` and has one of `ways`.
    #[must_use]
    pub fn owner_of_ways(
        &self,
        machine: &Machine<'_>,
        level: Level,
        cpus: CpuSet,
        ways: u32,
    ) -> CellId {
        self.owner(|holding| {
            level.held(holding) & ways != 0
                && cpus
                    .iter()
                    .any(|cpu| level.shares(machine, cpu, holding.cpus))
        })
    }

    /// The ways of the CPU's cache that cells other than the root have.
    #[must_use]
    pub fn taken_ways(&self, machine: &Machine<'_>, level: Level, cpu: u32) -> u32 {
        self.cells()
            .filter(|(_, holding)| level.held(holding) != 0)
            .filter(|(_, holding)| level.shares(machine, cpu, holding.cpus))
            .fold(0, |all, (_, holding)| all | level.held(holding))
    }

    pub(super) fn check_ways(
        &self,
        machine: &Machine<'_>,
        cell: &CellView<'_>,
        level: Level,
    ) -> Result<(), Refusal> {
        let ways = level.wanted(cell);
        if ways == 0 {
            return Ok(());
        }
        let refuse = |reason| Err(Refusal::new(reason, level.detail(ways)));
        let all = level.all_ways(machine);
        // The mask registers of cache allocation take one run of ones: SDM volume 3, "Cache Allocation Technology".
        let lowest = ways & ways.wrapping_neg();
        let is_run = ways.wrapping_add(lowest) & ways == 0;
        if !is_run || all.is_some_and(|all| ways & !all != 0) {
            return refuse(Reason::CacheWaysInvalid);
        }
        for cpu in cell.cpus().iter() {
            let taken = self.taken_ways(machine, level, cpu);
            if taken & ways != 0 || taken | ways == all.unwrap_or(u32::MAX) {
                return refuse(Reason::CacheWaysOwned);
            }
        }
        Ok(())
    }
}
