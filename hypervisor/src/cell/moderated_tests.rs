//! The tables against lists, and readers beside a writer.

extern crate std;

use std::sync::atomic::AtomicBool;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;

fn registers(start: u64, size: u64, number: u64) -> Moderated {
    Moderated {
        start,
        size,
        what: What::Registers {
            physical: HostPhysical::new(number),
            widths: (number & 15) as u8,
            writable: number & 16 != 0,
        },
    }
}

#[derive(Clone, Debug)]
enum Step {
    Add(u64, u64, u64),
    Remove(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0u64..100, 1u64..9, 0u64..64).prop_map(|(start, size, what)| Step::Add(start, size, what)),
        (0u64..100).prop_map(Step::Remove),
    ]
}

proptest! {
    #[test]
    fn a_table_is_a_list_of_ranges(steps in prop::collection::vec(step(), 0..200)) {
        let table = Table::new();
        let mut list: Vec<Moderated> = Vec::new();
        for step in steps {
            match step {
                Step::Add(start, size, what) => {
                    let range = registers(start, size, what);
                    let expected = if list.len() < MAX_RANGES { Ok(()) } else { Err(TableFull) };
                    prop_assert_eq!(table.add(&range), expected);
                    if expected.is_ok() {
                        list.push(range);
                    }
                }
                Step::Remove(start) => {
                    table.remove(|range| range.start == start);
                    list.retain(|range| range.start != start);
                }
            }
            for address in 0..110 {
                let covers = |range: &&Moderated| (range.start..range.start + range.size).contains(&address);
                match table.find(address) {
                    Lookup::Found(found) => {
                        prop_assert!(covers(&&found) && list.contains(&found));
                        prop_assert!(table.contains(&found));
                    }
                    other => {
                        prop_assert_eq!(other, Lookup::Nothing);
                        prop_assert!(!list.iter().any(|range| covers(&range)));
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_there_survives_its_words(physical: u64, widths: u8, writable: bool) {
        let physical = HostPhysical::new(physical);
        let what = What::Registers { physical, widths, writable };
        let words = what.encode();
        prop_assert!(words[0] & 0xff != 0);
        prop_assert_eq!(What::decode(words), Some(what));
        prop_assert_eq!(What::decode(What::Remainder.encode()), Some(What::Remainder));
        prop_assert_eq!(What::decode([words[0] & !0xff, words[1]]), None);
    }
}

#[test]
fn readers_beside_a_writer_see_whole_entries() {
    let table = Table::new();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    if let Lookup::Found(found) = table.find(50) {
                        // The writer makes all parts out of one number.
                        let number = found.size;
                        assert_eq!(found, registers(50 - number % 50, number, number));
                    }
                }
            });
        }
        for round in 0..200_000u64 {
            let number = 51 + round % 1000;
            table
                .add(&registers(50 - number % 50, number, number))
                .unwrap();
            table.remove(|_| true);
        }
        done.store(true, Ordering::Relaxed);
    });
}
