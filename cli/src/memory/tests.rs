//! Random machines: what is chosen is always something that Linux can do without.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::choose::{Choice, Wanted};
use super::inventory::{Block, Inventory, Zone};

const BLOCK_SIZE: u64 = 128 << 20;

fn zone() -> impl Strategy<Value = Zone> {
    prop_oneof![
        1 => Just(Zone::Movable),
        4 => Just(Zone::Normal),
        4 => Just(Zone::Dma32),
        1 => Just(Zone::Other),
    ]
}

prop_compose! {
    fn block()(
        online in prop::bool::weighted(0.9),
        fixed in prop::bool::weighted(0.1),
        plain in prop::bool::weighted(0.9),
        zone in zone(),
        node in 0_u32..2,
        exists in prop::bool::weighted(0.9),
        mark in 0_u8..10,
    ) -> (Block, bool, u8) {
        (Block { number: 0, online, fixed, plain, zone, node }, exists, mark)
    }
}

#[derive(Debug)]
struct Case {
    inventory: Inventory,
    count: u64,
    contiguous: bool,
    taken: BTreeSet<u64>,
    refused: BTreeSet<u64>,
}

impl Case {
    fn choose(&self) -> Option<Choice> {
        self.inventory.choose(&Wanted {
            count: self.count,
            contiguous: self.contiguous,
            taken: &self.taken,
            refused: &self.refused,
        })
    }

    fn block(&self, number: u64) -> Option<&Block> {
        self.inventory
            .blocks
            .iter()
            .find(|block| block.number == number)
    }

    fn may_go(&self, number: u64) -> bool {
        self.block(number).is_some_and(|block| {
            number > 0
                && block.online
                && !block.fixed
                && block.plain
                && block.zone != Zone::Other
                && !self.taken.contains(&number)
                && !self.refused.contains(&number)
        })
    }

    fn spare(&self) -> u64 {
        let keep = (self.inventory.total / 32).max(32 << 20);
        self.inventory.available.saturating_sub(keep) / BLOCK_SIZE
    }

    /// Whether some window of adjacent blocks would do that has at least, or of 0: exactly, so many new ones.
    fn has_window(&self, least: u64) -> bool {
        (0..80).any(|first| {
            let window: Vec<u64> = (first..first + self.count).collect();
            let new = window
                .iter()
                .filter(|number| !self.taken.contains(number))
                .count() as u64;
            let node = self.block(first).map(|block| block.node);
            (if least == 0 { new == 0 } else { new >= least })
                && new <= self.spare()
                && window.iter().all(|number| {
                    (self.taken.contains(number) || self.may_go(*number))
                        && self.block(*number).map(|block| block.node) == node
                })
        })
    }
}

prop_compose! {
    fn case()(
        blocks in prop::collection::vec(block(), 0..40),
        count in 1_u64..9,
        contiguous in any::<bool>(),
        available in 0_u64..(40 * BLOCK_SIZE),
    ) -> Case {
        let mut case = Case {
            inventory: Inventory {
                block_size: BLOCK_SIZE,
                blocks: Vec::new(),
                available,
                total: blocks.len() as u64 * BLOCK_SIZE,
            },
            count,
            contiguous,
            taken: BTreeSet::new(),
            refused: BTreeSet::new(),
        };
        for (number, (block, exists, mark)) in (0..).zip(blocks) {
            if !exists {
                continue;
            }
            let mut block = Block { number, ..block };
            match mark {
                0 => {
                    case.refused.insert(number);
                }
                1 => {
                    block.online = false;
                    case.taken.insert(number);
                }
                _ => {}
            }
            case.inventory.blocks.push(block);
        }
        case
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn only_what_linux_can_do_without_is_chosen(case in case()) {
        let Some(choice) = case.choose() else {
            return Ok(());
        };
        let distinct: BTreeSet<u64> = choice.new.iter().copied().collect();
        prop_assert_eq!(distinct.len(), choice.new.len());
        prop_assert!(!choice.new.is_empty());
        prop_assert!(choice.new.iter().all(|number| case.may_go(*number)));
        prop_assert!(choice.keep.iter().all(|number| case.taken.contains(number)));
        prop_assert!(choice.new.len() as u64 <= case.count);
        prop_assert!(choice.new.len() as u64 <= case.spare());
    }

    #[test]
    fn adjacent_blocks_are_found_where_there_are_any(mut case in case()) {
        case.contiguous = true;
        let Some(choice) = case.choose() else {
            // A window that is taken already is all that can be done.
            prop_assert!(!case.has_window(1) || case.has_window(0));
            return Ok(());
        };
        let mut all: Vec<u64> = choice.new.iter().chain(&choice.keep).copied().collect();
        all.sort_unstable();
        prop_assert_eq!(all.len() as u64, case.count);
        prop_assert!(all.windows(2).all(|pair| pair[0] + 1 == pair[1]));
        let nodes: BTreeSet<u32> = all.iter().filter_map(|number| case.block(*number)).map(|block| block.node).collect();
        prop_assert_eq!(nodes.len(), 1);
    }

    #[test]
    fn as_many_as_wanted_are_found_where_there_are_as_many(mut case in case()) {
        case.contiguous = false;
        let possible = (0..40).filter(|number| case.may_go(*number)).count() as u64;
        let expected = case.count.min(case.spare()).min(possible);
        let chosen = case.choose().map_or(0, |choice| choice.new.len() as u64);
        prop_assert_eq!(chosen, expected);
    }
}

/// Blocks 0 to 7, all of one zone.
fn plain_machine() -> Case {
    let blocks = (0..8).map(|number| Block {
        number,
        online: true,
        fixed: false,
        plain: true,
        zone: Zone::Dma32,
        node: 0,
    });
    Case {
        inventory: Inventory {
            block_size: BLOCK_SIZE,
            blocks: blocks.collect(),
            available: 6 * BLOCK_SIZE,
            total: 8 * BLOCK_SIZE,
        },
        count: 2,
        contiguous: false,
        taken: BTreeSet::new(),
        refused: BTreeSet::new(),
    }
}

#[test]
fn blocks_high_up_are_taken_but_not_the_last_of_their_zone() {
    let case = plain_machine();
    assert_eq!(case.choose().unwrap().new, [6, 5]);
}

#[test]
fn the_zone_that_linux_needs_least_goes_first() {
    let mut case = plain_machine();
    for number in 1..=3 {
        case.inventory.blocks[number].zone = Zone::Movable;
    }
    assert_eq!(case.choose().unwrap().new, [2, 6]);
}

#[test]
fn the_node_of_what_is_taken_goes_first() {
    let mut case = plain_machine();
    for number in 1..=4 {
        case.inventory.blocks[number].node = 1;
    }
    case.inventory.blocks[4].online = false;
    case.taken = BTreeSet::from([4]);
    assert_eq!(case.choose().unwrap().new, [3, 2]);
}

#[test]
fn what_is_taken_is_completed() {
    let mut case = plain_machine();
    case.contiguous = true;
    case.count = 3;
    case.inventory.blocks[3].online = false;
    case.taken = BTreeSet::from([3]);
    let choice = case.choose().unwrap();
    assert_eq!((choice.new, choice.keep), (vec![4, 5], vec![3]));
}

#[test]
fn linux_keeps_enough() {
    let mut case = plain_machine();
    case.inventory.available = BLOCK_SIZE + (32 << 20);
    assert_eq!(case.choose().unwrap().new.len(), 1);
    case.inventory.available -= 1;
    assert_eq!(case.choose(), None);
}
