//! Which memory blocks Linux shall do without: pure logic.
//!
//! Invariant: what is chosen may leave, is as many as wanted or fewer, and Linux keeps enough.

use std::collections::BTreeSet;

use super::inventory::{Block, Inventory, Zone};

/// What is wanted.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// Blocks; of adjacent ones, all of them together with those that are taken already.
    pub count: u64,
    /// Whether they have to adjoin.
    pub contiguous: bool,
    /// Numbers of blocks that are offline for the same request.
    pub taken: &'a BTreeSet<u64>,
    /// Numbers of blocks that are not to be tried (again).
    pub refused: &'a BTreeSet<u64>,
}

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// Blocks to take offline now.
    pub new: Vec<u64>,
    /// Of those that are taken already, the ones that stay of use.
    pub keep: Vec<u64>,
}

impl Inventory {
    /// What to take offline now; `None` when no choice is left.
    #[must_use]
    pub fn choose(&self, wanted: &Wanted) -> Option<Choice> {
        let choice = match wanted.contiguous {
            true => self.adjacent(wanted)?,
            false => Choice {
                new: self.any(wanted),
                keep: wanted.taken.iter().copied().collect(),
            },
        };
        (!choice.new.is_empty()).then_some(choice)
    }

    /// Blocks that Linux can lose without being short of memory itself.
    fn spare(&self) -> u64 {
        let keep = (self.total / 32).max(32 << 20);
        self.available
            .saturating_sub(keep)
            .checked_div(self.block_size)
            .unwrap_or(0)
    }

    fn may_leave<'a>(&'a self, wanted: &'a Wanted) -> impl Iterator<Item = &'a Block> {
        self.blocks.iter().filter(|block| {
            block.may_leave()
                && !wanted.refused.contains(&block.number)
                && !wanted.taken.contains(&block.number)
        })
    }

    /// The best first: not at the edge of its zone, since it would come back in another one; of the zone that Linux
    /// needs least; high up.
    fn rank(&self, block: &Block) -> (bool, Zone, u64) {
        let is_inside = [block.number.checked_sub(1), block.number.checked_add(1)]
            .into_iter()
            .all(|number| {
                self.blocks
                    .iter()
                    .any(|other| Some(other.number) == number && other.zone == block.zone)
            });
        (!is_inside, block.zone, u64::MAX - block.number)
    }

    /// Of one NUMA node if there is one with enough.
    fn any(&self, wanted: &Wanted) -> Vec<u64> {
        let count = usize::try_from(wanted.count.min(self.spare())).unwrap_or(usize::MAX);
        let mut blocks: Vec<&Block> = self.may_leave(wanted).collect();
        blocks.sort_by_key(|block| self.rank(block));
        let on_node = |node: u32| blocks.iter().filter(|block| block.node == node).count();
        let near = self
            .blocks
            .iter()
            .find(|block| wanted.taken.contains(&block.number))
            .map(|block| block.node);
        let node = near
            .into_iter()
            .chain(blocks.iter().map(|block| block.node))
            .find(|node| on_node(*node) >= count);
        blocks
            .iter()
            .filter(|block| node.is_none_or(|node| block.node == node))
            .map(|block| block.number)
            .take(count)
            .collect()
    }

    /// The best window of adjacent blocks of one node; what is taken already counts in.
    fn adjacent(&self, wanted: &Wanted) -> Option<Choice> {
        let taken = |block: &&Block| wanted.taken.contains(&block.number);
        let mut candidates: Vec<&Block> = self
            .may_leave(wanted)
            .chain(self.blocks.iter().filter(taken))
            .collect();
        candidates.sort_by_key(|block| block.number);
        let count = usize::try_from(wanted.count).ok()?;
        if count == 0 {
            return None;
        }
        let windows = candidates.windows(count).filter_map(|window| {
            let (first, last) = (window.first()?, window.last()?);
            let adjoins = last.number - first.number == wanted.count - 1
                && window.iter().all(|block| block.node == first.node);
            let worst = window.iter().map(|block| self.rank(block)).max()?;
            let (keep, new): (Vec<u64>, Vec<u64>) = window
                .iter()
                .map(|block| block.number)
                .partition(|number| wanted.taken.contains(number));
            let new_count = new.len();
            (adjoins && new_count as u64 <= self.spare())
                .then_some(((new_count, worst), Choice { new, keep }))
        });
        let best = windows.min_by_key(|(rank, _)| *rank);
        best.map(|(_, choice)| choice)
    }
}
