//! What comes out of an import is what went in, or says why not.

use std::collections::BTreeSet;

use gaol_abi::config::{
    MEMORY_COMMUNICATION, MEMORY_DEVICE, MEMORY_DMA, MEMORY_LOADABLE, MEMORY_ROOT_SHARED,
    MEMORY_WIDTH_8, MEMORY_WIDTH_32, MEMORY_WIDTHS,
};
use proptest::prelude::*;

use super::build::{CellModel, any_cell, any_system};
use super::models::{
    self, COMMUNICATION, DMA, EXECUTE, IO, IO_32, LOADABLE, READ, ROOTSHARED, WRITE,
};
use super::parse_tests::compare;
use super::*;

/// An import that is accepted; what the file says and what is told besides are the same.
#[track_caller]
fn accepted(bytes: &[u8]) -> Import {
    let import = import("test.cell", bytes).unwrap();
    assert!(import.is_accepted, "{}", import.toml);
    let words = |text: &str| {
        text.replace('#', " ")
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
    };
    let file = words(&import.toml);
    for note in &import.notes {
        let line = words(&format!("{}: {}", note.about, note.text));
        assert!(file.contains(&line), "{line}");
    }
    import
}

fn cell(model: &CellModel) -> Cell {
    let import = accepted(&model.build().bytes);
    assert_eq!(import.kind, Kind::Cell);
    Cell::from_toml("test.toml", &import.toml).unwrap()
}

#[test]
fn a_system_becomes_a_file() {
    let import = accepted(&models::system().build().bytes);
    assert_eq!(import.kind, Kind::System);
    compare("jailhouse-system", &import.toml);
    let system = System::from_toml("test.toml", &import.toml).unwrap();
    assert_eq!(system.view().name(), "QEMU-VM");
    assert_eq!(system.view().console_port(), Some(0x3f8));
    let memory = system.view().hypervisor_memory().unwrap();
    assert_eq!((memory.start().0, memory.size()), (0x3a00_0000, 6 << 20));
}

#[test]
fn a_demonstration_becomes_a_file() {
    compare(
        "jailhouse-demo",
        &accepted(&models::demo().build().bytes).toml,
    );
}

#[test]
fn a_linux_guest_becomes_a_file() {
    compare(
        "jailhouse-linux",
        &accepted(&models::linux().build().bytes).toml,
    );
}

#[test]
fn a_cell_with_devices_becomes_a_file() {
    compare(
        "jailhouse-devices",
        &accepted(&models::devices().build().bytes).toml,
    );
}

#[test]
fn what_is_not_possible_is_left_out() {
    compare(
        "jailhouse-faulty",
        &accepted(&models::faulty().build().bytes).toml,
    );
}

#[test]
fn a_cell_that_can_not_be_says_so() {
    let mut model = models::demo();
    model.cpu_set.clear();
    let import = import("test.cell", &model.build().bytes).unwrap();
    assert!(!import.is_accepted);
    assert!(Cell::from_toml("test.toml", &import.toml).is_err());
    assert_eq!(import.notes[0].about, "file");
    assert!(
        import.notes[0]
            .text
            .starts_with("Gaol does not accept this file as it is: ")
    );
    compare("jailhouse-impossible", &import.toml);
}

#[test]
fn damage_is_a_problem_of_the_file() {
    let problem = import("test.cell", b"JHCLL\0\x0e\0").unwrap_err();
    assert_eq!(
        problem.to_string(),
        "test.cell: the file is truncated: `cell` at offset 0x0 has 132 bytes, and the file ends after 8 of them"
    );
}

/// The memory of the hypervisor and the note on it.
fn hypervisor(start: u64, size: u64) -> (Option<(u64, u64)>, usize) {
    let mut model = models::system();
    model.hypervisor_memory = [start, 0, size, 0];
    let import = accepted(&model.build().bytes);
    let system = System::from_toml("test.toml", &import.toml).unwrap();
    let memory = system.view().hypervisor_memory();
    let notes = import
        .notes
        .iter()
        .filter(|note| note.about == "hypervisor_memory");
    (
        memory.map(|memory| (memory.start().0, memory.size())),
        notes.count(),
    )
}

#[test]
fn the_hypervisors_memory_is_whole_large_pages() {
    const MIB: u64 = 1 << 20;
    assert_eq!(
        hypervisor(16 * MIB, 6 * MIB),
        (Some((16 * MIB, 6 * MIB)), 1)
    );
    assert_eq!(
        hypervisor(15 * MIB, 6 * MIB),
        (Some((16 * MIB, 4 * MIB)), 2)
    );
    assert_eq!(
        hypervisor(16 * MIB, 7 * MIB + 1),
        (Some((16 * MIB, 6 * MIB)), 2)
    );
    assert_eq!(hypervisor(16 * MIB, 3 * MIB), (None, 1));
    assert_eq!(hypervisor(0, 6 * MIB), (None, 1));
    assert_eq!(hypervisor(u64::MAX - 1, 6 * MIB), (None, 1));
    let (largest, notes) = hypervisor(16 * MIB, 1 << 40);
    assert_eq!(
        (largest, notes),
        (Some((16 * MIB, crate::binary::MAX_HYPERVISOR_SIZE)), 2)
    );
}

#[test]
fn consoles_are_kept_or_explained() {
    let texts = [
        (0, 0x3f8, 0, 0),
        (1, 0xe000_0000, 4, 0),
        (2, 0x3f8, 0, 1),
        (2, 0x2f8, 0, 12),
        (2, 0x2f8, 0, 7),
        (2, 0xfed0_0000, 3, 0),
        (2, 0x2f8, 2, 0),
    ]
    .map(|(kind, address, flags, divider)| {
        let mut model = models::system();
        let console = &mut model.debug_console;
        (console.kind, console.address, console.flags, console.divider) = (kind, address, flags, divider);
        let import = accepted(&model.build().bytes);
        let system = System::from_toml("test.toml", &import.toml).unwrap();
        let notes = import.notes.iter().filter(|note| note.about == "debug_console");
        let notes: Vec<&str> = notes.map(|note| note.text.as_str()).collect();
        format!(
            "type {kind}, address {address:#x}, flags {flags}, divisor {divider}: {:?}, divisor {}: {notes:?}",
            system.view().console_port(),
            system.view().header().console_divisor
        )
    });
    compare("jailhouse-consoles", &texts.join("\n"));
}

/// What matters of a region: physical and guest address, size, accesses and other properties.
type Piece = (u64, u64, u64, [bool; 7]);

/// The regions that a cell for Jailhouse has.
fn expected_memory(model: &CellModel) -> BTreeSet<Piece> {
    let mut used = model.memory.clone();
    used.retain(|[_, _, size, flags]| *size != 0 && flags & IO_32 == 0);
    let used = used.iter();
    used.map(|[physical, guest, size, flags]| {
        let has = |flag: u64| flags & flag != 0;
        let is_plain = !has(EXECUTE | LOADABLE | ROOTSHARED | DMA | COMMUNICATION);
        let is_device = has(IO) || is_plain && physical == guest;
        let properties = [
            has(WRITE),
            has(EXECUTE),
            is_device,
            has(COMMUNICATION),
            has(LOADABLE),
            has(ROOTSHARED),
            // Without a function there is none.
            has(DMA) && !model.devices.is_empty(),
        ];
        assert!(has(READ));
        (*physical, *guest, *size, properties)
    })
    .collect()
}

fn compiled_memory(cell: &Cell) -> BTreeSet<Piece> {
    let regions = cell.view().memory().iter();
    regions
        .filter(|region| region.flags & MEMORY_WIDTHS == 0)
        .map(|region| {
            let has = |flag: u64| region.flags & flag != 0;
            let properties = [
                has(gaol_abi::config::MEMORY_WRITE),
                has(gaol_abi::config::MEMORY_EXECUTE),
                has(MEMORY_DEVICE),
                has(MEMORY_COMMUNICATION),
                has(MEMORY_LOADABLE),
                has(MEMORY_ROOT_SHARED),
                has(MEMORY_DMA),
            ];
            assert!(has(gaol_abi::config::MEMORY_READ));
            (region.physical, region.guest, region.size, properties)
        })
        .collect()
}

/// The one region of the model with access widths is there, cut or not.
fn assert_registers_in_pages(cell: &Cell, model: &CellModel) {
    let [physical, guest, size, _] = *model
        .memory
        .iter()
        .find(|[.., flags]| flags & IO_32 != 0)
        .unwrap();
    let mut next = 0;
    let regions = cell.view().memory().iter();
    for piece in regions.filter(|region| region.flags & MEMORY_WIDTHS != 0) {
        assert_eq!(
            (piece.physical, piece.guest),
            (physical + next, guest + next)
        );
        assert_eq!(
            piece.flags,
            MEMORY_DEVICE | MEMORY_WIDTH_8 | MEMORY_WIDTH_32 | READ | WRITE
        );
        next += piece.size;
    }
    assert_eq!(next, size);
}

fn ports(ranges: impl Iterator<Item = (u16, u16)>) -> BTreeSet<u32> {
    ranges
        .flat_map(|(first, count)| u32::from(first)..u32::from(first) + u32::from(count))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_good_cell_comes_through_unchanged(model in models::any_good_cell()) {
        let cell = cell(&model);
        let view = cell.view();
        prop_assert_eq!(view.name().as_bytes(), model.name.split(|byte| *byte == 0).next().unwrap());
        prop_assert_eq!(view.is_passive(), model.flags & models::PASSIVE != 0);
        prop_assert_eq!(view.has_console(), model.flags & models::ACTIVE != 0);

        let has_cpu = |cpu: u32| model.cpu_set[cpu as usize / 8] >> (cpu % 8) & 1 != 0;
        let cpus: Vec<u32> = (0..256).filter(|cpu| has_cpu(*cpu)).collect();
        prop_assert_eq!(view.cpus().iter().collect::<Vec<_>>(), cpus);

        prop_assert_eq!(compiled_memory(&cell), expected_memory(&model));
        assert_registers_in_pages(&cell, &model);

        let compiled = ports(view.ports().iter().map(|range| (range.first, range.count)));
        prop_assert_eq!(compiled, ports(model.ports.iter().map(|[first, count]| (*first, *count))));

        let functions: Vec<(u16, u16)> = view.devices().iter().map(|device| (device.segment, device.function)).collect();
        let expected: Vec<(u16, u16)> = model.devices.iter().map(|device| (0, device.bdf)).collect();
        prop_assert_eq!(functions, expected);

        let has_pin = |pin: &u32| model.irqchips[0].pin_bitmap[*pin as usize / 32] >> (pin % 32) & 1 != 0;
        let interrupts: Vec<u32> = view.interrupts().iter().map(|interrupt| interrupt.number).collect();
        prop_assert_eq!(interrupts, (0..128).filter(has_pin).collect::<Vec<_>>());

        let ways = model.caches[0].start..model.caches[0].start + model.caches[0].size;
        prop_assert_eq!(view.header().l3_ways, ways.fold(0, |mask, way| mask | 1 << way));
    }

    #[test]
    fn whatever_can_be_read_becomes_a_file(model in any_cell(), surplus in 0..3usize) {
        let mut bytes = model.build().bytes;
        bytes.resize(bytes.len() + surplus, 0);
        let import = import("test.cell", &bytes).unwrap();
        let compiled = Cell::from_toml("test.toml", &import.toml);
        prop_assert_eq!(compiled.is_ok(), import.is_accepted, "{}", import.toml);
    }

    #[test]
    fn whatever_system_can_be_read_becomes_a_file(model in any_system()) {
        let import = import("test.cell", &model.build().bytes).unwrap();
        let compiled = System::from_toml("test.toml", &import.toml);
        prop_assert_eq!(compiled.is_ok(), import.is_accepted, "{}", import.toml);
    }
}
