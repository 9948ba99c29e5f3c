use gaol_abi::config::{MEMORY_EXECUTE, MEMORY_LOADABLE, MEMORY_READ, MEMORY_WRITE};
use proptest::prelude::*;
use zerocopy::IntoBytes;

use super::*;
use crate::encode::{self, Binary, Cell, seal};

fn system() -> encode::System {
    let mut system = encode::System::default();
    system.header.name = encode::name("root").unwrap();
    system.header.hypervisor_size = 4 << 20;
    system.header.console_kind = CONSOLE_UART_PORT;
    system.header.console_address = 0x2f8;
    system.header.console_divisor = 1;
    system
}

fn cell() -> Cell {
    let region = |name: &str, guest| MemoryRegion {
        name: encode::name(name).unwrap(),
        physical: 0,
        guest,
        size: 1 << 20,
        flags: MEMORY_READ | MEMORY_WRITE | MEMORY_EXECUTE | MEMORY_LOADABLE,
    };
    Cell {
        flags: CELL_CONSOLE,
        name: encode::name("latency").unwrap(),
        cpus: CpuSet::from_iter([3]),
        reset_address: 0,
        shutdown_milliseconds: 0,
        memory: vec![region("ram", 0), region("more", 1 << 20)],
        ports: vec![PortRange {
            first: 0x3f8,
            count: 8,
        }],
        ..Cell::default()
    }
}

fn cell_refusal(change: impl FnOnce(&mut Cell)) -> Refusal {
    let mut cell = cell();
    change(&mut cell);
    CellView::parse(cell.encode().bytes()).unwrap_err()
}

fn system_refusal(change: impl FnOnce(&mut SystemHeader)) -> Refusal {
    let mut system = system();
    change(&mut system.header);
    SystemView::parse(system.encode().bytes()).unwrap_err()
}

/// The configuration with one byte changed, and the checksum made right again.
fn cell_with_byte(offset: usize, value: u8) -> Binary {
    let mut bytes = cell().encode().bytes().to_vec();
    bytes[offset] = value;
    seal(bytes)
}

#[test]
fn what_was_written_is_read() {
    let cell = cell();
    let binary = cell.encode();
    let view = CellView::parse(binary.bytes()).unwrap();
    assert_eq!(view.name(), "latency");
    assert_eq!(view.cpus().iter().collect::<Vec<_>>(), [3]);
    assert_eq!(view.memory(), cell.memory);
    assert_eq!(view.ports(), cell.ports);
    assert!(view.has_console() && !view.is_passive() && !view.ignores_unassigned_ports());

    let binary = system().encode();
    let view = SystemView::parse(binary.bytes()).unwrap();
    assert_eq!(view.name(), "root");
    assert_eq!(view.console_port(), Some(0x2f8));
    assert_eq!(view.hypervisor_memory(), None);
}

#[test]
fn kinds_are_not_mixed_up() {
    let binary = cell().encode();
    let length = binary.bytes().len() as u64;
    assert_eq!(
        SystemView::parse(binary.bytes()).unwrap_err(),
        Refusal::new(Reason::ConfigurationInvalid, length)
    );
    assert!(CellView::parse(system().encode().bytes()).is_err());
}

#[test]
fn every_truncation_is_refused() {
    let binary = cell().encode();
    for length in 0..binary.bytes().len() {
        let cut = Binary::new(&binary.bytes()[..length]);
        assert_eq!(
            CellView::parse(cut.bytes()).unwrap_err(),
            Refusal::new(Reason::ConfigurationInvalid, length as u64)
        );
    }
    let system = system().encode();
    for length in 0..system.bytes().len() {
        assert!(SystemView::parse(Binary::new(&system.bytes()[..length]).bytes()).is_err());
    }
}

#[test]
fn a_tail_is_refused() {
    let mut bytes = cell().encode().bytes().to_vec();
    bytes.push(0);
    assert!(CellView::parse(Binary::new(&bytes).bytes()).is_err());
    assert!(CellView::parse(seal(bytes).bytes()).is_err());
}

#[test]
fn a_wrong_revision_is_named() {
    let offset = core::mem::offset_of!(Preamble, revision);
    assert_eq!(
        CellView::parse(cell_with_byte(offset, 77).bytes()).unwrap_err(),
        Refusal::new(Reason::ConfigurationRevision, 77)
    );
}

#[test]
fn more_than_the_largest_size_is_refused_first() {
    let bytes = vec![0; MAX_CELL_SIZE as usize + 8];
    assert_eq!(
        CellView::parse(Binary::new(&bytes).bytes()).unwrap_err(),
        Refusal::new(Reason::ConfigurationTooBig, MAX_CELL_SIZE + 8)
    );
}

#[test]
fn each_flipped_bit_is_noticed() {
    let binary = cell().encode();
    for bit in 0..binary.bytes().len() * 8 {
        let mut bytes = binary.bytes().to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(CellView::parse(Binary::new(&bytes).bytes()).is_err());
    }
}

#[test]
fn unaligned_bytes_are_refused() {
    let binary = cell().encode();
    let mut words = vec![0u64; binary.bytes().len() / 8 + 2];
    let shifted = &mut words.as_mut_bytes()[1..=binary.bytes().len()];
    shifted.copy_from_slice(binary.bytes());
    assert_eq!(
        CellView::parse(shifted).unwrap_err().reason,
        Reason::ConfigurationInvalid
    );
}

#[test]
fn counts_are_bounded() {
    let region = cell().memory[0];
    let refusal = cell_refusal(|cell| cell.memory = vec![region; MAX_MEMORY_REGIONS + 1]);
    assert_eq!(refusal.reason, Reason::ConfigurationInvalid);
    let range = cell().ports[0];
    let refusal = cell_refusal(|cell| cell.ports = vec![range; MAX_PORT_RANGES + 1]);
    assert_eq!(refusal.reason, Reason::ConfigurationInvalid);
    let offset = core::mem::offset_of!(CellHeader, memory_region_count);
    for count in [0, 1, 3, 32, 255] {
        assert!(CellView::parse(cell_with_byte(offset, count).bytes()).is_err());
        assert!(CellView::parse(cell_with_byte(offset + 3, count.max(1)).bytes()).is_err());
    }
}

#[test]
fn names_are_checked() {
    let bad = |text: &[u8]| {
        let mut name = [0; NAME_LENGTH];
        name[..text.len()].copy_from_slice(text);
        name
    };
    let names = [
        bad(b""),
        bad(b"two words"),
        bad(b"tab\t"),
        bad(&[0xff]),
        bad(b"a\0b"),
        [b'a'; NAME_LENGTH],
    ];
    for name in names {
        let invalid = Refusal::new(Reason::NameInvalid, 0);
        assert_eq!(cell_refusal(|cell| cell.name = name), invalid);
        assert_eq!(cell_refusal(|cell| cell.memory[1].name = name), invalid);
        assert_eq!(system_refusal(|system| system.name = name), invalid);
    }
}

#[test]
fn reserved_and_unknown_bits_are_refused() {
    let reserved = core::mem::offset_of!(CellHeader, reserved);
    assert!(CellView::parse(cell_with_byte(reserved, 1).bytes()).is_err());
    assert!(cell_refusal(|cell| cell.flags = 16).reason == Reason::ConfigurationInvalid);
    assert_eq!(
        cell_refusal(|cell| cell.memory[1].flags |= 1 << 40),
        Refusal::new(Reason::RegionInvalid, 1)
    );
    cell_refusal(|cell| cell.shutdown_milliseconds = MAX_MILLISECONDS + 1);
    system_refusal(|system| system.root_failure = ROOT_FAILURE_RESET + 1);
    system_refusal(|system| system.deadline_milliseconds = MAX_MILLISECONDS + 1);
}

#[test]
fn a_watchdog_needs_a_heartbeat_a_time_and_a_policy() {
    let watched = |milliseconds, policy, has_heartbeat: bool| {
        let mut cell = cell();
        cell.watchdog_milliseconds = milliseconds;
        cell.watchdog_policy = policy;
        if has_heartbeat {
            cell.memory[1].flags = MEMORY_READ | MEMORY_WRITE | MEMORY_COMMUNICATION;
        }
        CellView::parse(cell.encode().bytes()).is_ok()
    };
    for milliseconds in [0, 1, MAX_MILLISECONDS, MAX_MILLISECONDS + 1] {
        for policy in 0..5 {
            let possible = match milliseconds {
                0 => policy == WATCHDOG_RECORD,
                _ => milliseconds <= MAX_MILLISECONDS && policy <= WATCHDOG_HALT,
            };
            assert_eq!(watched(milliseconds, policy, true), possible);
            assert_eq!(
                watched(milliseconds, policy, false),
                possible && milliseconds == 0
            );
        }
    }
}

#[test]
fn the_hypervisors_memory_must_be_whole_large_pages() {
    system_refusal(|system| system.hypervisor_size = 0);
    system_refusal(|system| system.hypervisor_size = 3 << 20);
    system_refusal(|system| system.hypervisor_size = 514 << 20);
    system_refusal(|system| system.hypervisor_physical = 1 << 20);
    system_refusal(|system| system.hypervisor_physical = 0u64.wrapping_sub(2 << 20));
}

#[test]
fn the_console_must_be_possible() {
    system_refusal(|system| system.console_kind = 2);
    system_refusal(|system| system.console_kind = CONSOLE_NONE);
    system_refusal(|system| system.console_address = 0);
    system_refusal(|system| system.console_address = 0xfff9);
    system_refusal(|system| system.console_divisor = 0);
    system_refusal(|system| system.console_divisor = 0x1_0000);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let binary = Binary::new(&bytes);
        prop_assert!(CellView::parse(binary.bytes()).is_err());
        prop_assert!(SystemView::parse(binary.bytes()).is_err());
    }

    /// Mutations behind a right checksum reach every check; what passes them holds what views promise.
    #[test]
    fn no_mutation_makes_the_reader_panic(
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..6)
    ) {
        let mut bytes = cell().encode().bytes().to_vec();
        for (index, value) in &changes {
            let offset = index.index(bytes.len());
            bytes[offset] = *value;
        }
        let binary = seal(bytes);
        if let Ok(view) = CellView::parse(binary.bytes()) {
            prop_assert!(!view.name().is_empty());
            prop_assert!(view.memory().len() == 2 && view.ports().len() == 1);
            prop_assert!(view.memory().iter().all(|region| name_text(&region.name).is_ok()));
        }
        let mut bytes = system().encode().bytes().to_vec();
        for (index, value) in changes {
            let offset = index.index(bytes.len());
            bytes[offset] = value;
        }
        if let Ok(view) = SystemView::parse(seal(bytes).bytes()) {
            prop_assert!(view.header().hypervisor_size % HYPERVISOR_ALIGNMENT == 0);
        }
    }
}
