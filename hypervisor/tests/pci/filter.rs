//! The tests.

use gaol_hypervisor::device::pci::function::Mastering;
use gaol_hypervisor::device::pci::handover::Fault;
use gaol_hypervisor::device::pci::message::Message;
use gaol_machine::source::Source;
use proptest::prelude::*;

use super::harness::{Harness, store};
use super::model::{
    Device, ENTRIES, EXPRESS, FEATURES, MSI, MSI_X, POWER, REGISTERS, REGISTERS_SIZE, Shape, TABLE,
    VENDOR, WIDE,
};

const WIDTHS: [u8; 4] = [1, 2, 4, 8];
const VALUES: [u64; 6] = [
    0,
    u64::MAX,
    0xfee0_0000_fee0_300c,
    0x0041_0041_0041_0041,
    0x8000_8000_8000_8000,
    0x5555_aaaa_3333_cccc,
];

fn all_shapes() -> impl Iterator<Item = Shape> {
    (0..32).map(Shape::numbered)
}

#[test]
fn every_write_to_every_byte_in_every_width_keeps_to_the_masks() {
    for shape in all_shapes() {
        let store = store();
        let mut harness =
            Harness::of_cell(Device::new(shape).set_up(), Some(shape), &store).unwrap();
        for value in VALUES {
            for width in WIDTHS {
                for offset in (0..0x400).chain(0xff0..0x1010) {
                    harness.write(offset, width, value);
                    harness.read(offset, width);
                }
            }
        }
        harness.check_others();
    }
}

#[test]
fn every_write_to_every_byte_of_the_table_in_every_width_is_checked() {
    let store = store();
    let shape = Shape::FULL;
    let mut harness = Harness::of_cell(Device::new(shape).set_up(), Some(shape), &store).unwrap();
    harness.write(4, 2, 3);
    harness.write(MSI_X as u16 + 2, 2, 0x8000);
    for value in VALUES {
        for width in WIDTHS {
            for at in REGISTERS + 0x1000..REGISTERS + 0x2000 {
                let end = at + u64::from(width);
                let table = TABLE..TABLE + ENTRIES * 16;
                let is_inside = at >= table.start && end <= table.end;
                let is_beside = end <= table.start || at >= table.end;
                let is_allowed = is_inside || is_beside && at.is_multiple_of(width.into());
                harness.machine.accesses.borrow_mut().clear();
                assert_eq!(harness.write_table(at, width, value).is_ok(), is_allowed);
                assert_eq!(harness.read_table(at, width).is_ok(), is_allowed);
                let accesses = harness.machine.accesses.borrow().clone();
                if is_beside && is_allowed {
                    assert_eq!(accesses, [(at, width, true), (at, width, false)]);
                }
                if !is_allowed {
                    assert_eq!(accesses, []);
                }
            }
        }
    }
    harness.check_others();
}

#[test]
fn sizes_are_found_and_addresses_stay() {
    let store = store();
    let shape = Shape::FULL;
    let mut harness = Harness::of_cell(Device::new(shape).set_up(), Some(shape), &store).unwrap();
    let size_of = |harness: &mut Harness<'_>, offset: u16| {
        let before = harness.read(offset, 4);
        harness.write(offset, 4, u64::MAX);
        let mask = harness.read(offset, 4) as u32;
        harness.write(offset, 4, before);
        assert_eq!(harness.read(offset, 4), before);
        (before as u32, mask)
    };
    assert_eq!(
        size_of(&mut harness, 0x10),
        (REGISTERS as u32, !(REGISTERS_SIZE as u32 - 1))
    );
    assert_eq!(size_of(&mut harness, 0x14), (0, 0));
    assert_eq!(
        size_of(&mut harness, 0x18),
        (WIDE as u32 | 0xc, 0xf000_000c)
    );
    assert_eq!(size_of(&mut harness, 0x1c), ((WIDE >> 32) as u32, u32::MAX));
    assert_eq!(size_of(&mut harness, 0x20), (0xc041, 0xffff_ffe1));
    assert_eq!(size_of(&mut harness, 0x24), (0, 0));
    // The expansion ROM is not there.
    assert_eq!(size_of(&mut harness, 0x30), (0, 0));
    // Moved by a byte at a time, in the shadow only.
    harness.write(0x13, 1, 0x12);
    assert_eq!(harness.read(0x10, 4), 0x1280_0000);
    assert_eq!(harness.device().read(0x10, 4), REGISTERS);
}

#[test]
fn what_others_could_feel_is_not_there_for_the_cell() {
    let store = store();
    let shape = Shape::FULL;
    let mut harness = Harness::of_cell(Device::new(shape).set_up(), Some(shape), &store).unwrap();
    // Memory and ports are switched on and off, bus mastering, parity and system errors are not.
    harness.write(4, 2, 0xffff);
    assert_eq!(harness.read(4, 2), 0x0403);
    harness.write(4, 2, 0);
    assert_eq!(harness.read(4, 2), 0);
    // Resets are neither offered nor done; power stays on.
    let resets = harness.device().resets;
    assert_eq!(harness.read(EXPRESS as u16 + 4, 4), 0);
    assert_eq!(harness.read(FEATURES as u16 + 3, 1), 0);
    harness.write(EXPRESS as u16 + 8, 2, 0xffff);
    harness.write(FEATURES as u16 + 4, 1, 1);
    harness.write(POWER as u16 + 4, 2, 3);
    harness.write(POWER as u16 + 4, 2, 0);
    assert_eq!(harness.device().resets, resets);
    // Sizes of payloads are agreed upon by all: they stay as they were.
    assert_eq!(harness.read(EXPRESS as u16 + 8, 2), 0x7810);
    // A vendor's own registers can be read.
    harness.write(VENDOR as u16 + 4, 4, u64::MAX);
    assert_eq!(harness.read(VENDOR as u16 + 4, 4), 0);
    // Shadows: nobody but the cell sees them.
    harness.write(0x3c, 1, 0x42);
    harness.write(0xc, 2, 0x1234);
    assert_eq!(harness.read(0x3c, 2), 0x0142);
    assert_eq!(harness.read(0xc, 4), 0x1234);
    // Extended: what makes functions and translates addresses is a null capability, and the list goes on.
    assert_eq!(harness.read(0x100, 4), 0x1401_0001);
    assert_eq!(harness.read(0x140, 4), 0x1800_0000);
    assert_eq!(harness.read(0x180, 4), 0x1a00_0000);
    assert_eq!(harness.read(0x1a0, 4), 0x0001_000b);
    // Beyond the end there is nothing.
    assert_eq!(harness.read(0xfff, 4), 0xffff_ff00);
    assert_eq!(harness.read(0x1000, 8), u64::MAX);
}

#[test]
fn a_function_becomes_bus_master_where_it_may_and_only_while_its_cell_runs() {
    for mastering in [Mastering::Confined, Mastering::Unprotected] {
        let store = store();
        let shape = Shape::FULL;
        let device = Device::new(shape).set_up();
        let before = device.clone();
        let mut harness = Harness::of_cell_with(device, Some(shape), &store, mastering).unwrap();
        assert_eq!(harness.device().config[4] & 4, 0);
        harness.write(4, 2, 7);
        assert_eq!(harness.read(4, 2), 7);
        assert_eq!(harness.device().config[4], 7);
        // The cell stops: so does the function, and the next start finds it off.
        harness.rest();
        assert_eq!(harness.read(4, 2) & 7, 0);
        harness.write(4, 2, 6);
        assert_eq!(harness.device().config[4], 6);
        harness.give_back(&before);
    }
}

#[test]
fn an_iommu_decides_what_a_function_sends() {
    let store = store();
    let shape = Shape::FULL;
    let mut harness = Harness::of_cell(Device::new(shape).set_up(), Some(shape), &store).unwrap();
    harness.machine.watch = None;
    harness.machine.remaps = true;
    let msi = MSI as u16;
    // Two messages to the cell's CPU 9, vector 0x42 and the next: entries of the IOMMU's instead.
    harness.write(msi + 4, 4, 0xfee0_9000);
    harness.write(msi + 8, 4, 0);
    harness.write(msi + 12, 2, 0x42);
    harness.write(msi + 2, 2, 0x11);
    let plain = Message {
        address: 0xfee0_9000,
        data: 0x42,
    };
    assert_eq!(harness.machine.remapped.last(), Some(&(0, 1, Some(plain))));
    assert_eq!(
        harness.device().messages(),
        [(0xfee0_0018, 0), (0xfee0_0018, 1)]
    );
    // The cell reads what it wrote.
    assert_eq!(harness.read(msi + 4, 4), 0xfee0_9000);
    // To somebody else's CPU: the IOMMU is told that nothing is to arrive, and the function that nothing is to be sent.
    harness.write(msi + 4, 4, 0xfee0_1000);
    assert_eq!(harness.machine.remapped.last(), Some(&(0, 1, None)));
    assert_eq!(harness.device().messages(), []);
    // Of a table, each entry is an interrupt of its own.
    harness.write(4, 2, 2);
    harness.write(MSI_X as u16 + 2, 2, 0x8000);
    for (entry, address, expected) in [(2u64, 0xfee0_3000u64, true), (3, 0xfee0_1000, false)] {
        let at = TABLE + 16 * entry;
        harness.write_table(at, 4, address).unwrap();
        harness.write_table(at + 8, 4, 0x51).unwrap();
        harness.write_table(at + 12, 4, 0).unwrap();
        let message = expected.then_some(Message {
            address: address as u32,
            data: 0x51,
        });
        let asked = harness.machine.remapped.last();
        assert_eq!(asked, Some(&(entry as u16, 0, message)));
        assert_eq!(harness.read_table(at, 4), Ok(address));
    }
    assert_eq!(harness.device().unmasked(), [(0xfee0_0018 | 2 << 5, 0)]);
}

#[test]
fn a_function_without_an_address_does_not_answer() {
    let store = store();
    let mut device = Device::new(Shape::FULL).set_up();
    device.config[0x10..0x14].fill(0);
    let mut harness = Harness::of_cell(device, Some(Shape::FULL), &store).unwrap();
    harness.write(4, 2, 3);
    assert_eq!(harness.read(4, 2), 1);
    let store = self::store();
    let mut device = Device::new(Shape::FULL).set_up();
    device.config[0x18..0x20].copy_from_slice(&[0xc, 0, 0, 0, 0, 0, 0, 0]);
    device.config[0x20..0x24].copy_from_slice(&[1, 0, 0, 0]);
    let mut harness = Harness::of_cell(device, Some(Shape::FULL), &store).unwrap();
    harness.write(4, 2, 3);
    assert_eq!(harness.read(4, 2), 0);
}

#[test]
fn messages_are_sent_when_they_are_right() {
    for shape in all_shapes() {
        let store = store();
        let mut harness =
            Harness::of_cell(Device::new(shape).set_up(), Some(shape), &store).unwrap();
        let msi = MSI as u16;
        let data = if shape.msi_is_wide { 0xc } else { 8 };
        harness.write(msi + 2, 2, 1);
        // On, as the cell sees it, and off as long as there is no message.
        assert_eq!(harness.read(msi + 2, 2) & 1, 1);
        assert_eq!(harness.device().messages(), []);
        harness.write(msi + 4, 4, 0xfee0_9000);
        harness.write(msi + data, 2, 0x41);
        assert_eq!(harness.device().messages(), [(0xfee0_9000, 0x41)]);
        // To somebody else: off again, though it reads as it was written.
        harness.write(msi + 5, 1, 0x10);
        assert_eq!(harness.read(msi + 4, 4), 0xfee0_1000);
        assert_eq!(harness.device().messages(), []);
        // A logical destination becomes a plain one; eight vectors are offered, and sixteen are asked for.
        harness.write(msi + 4, 4, 0xfee0_f00c);
        harness.write(msi + 2, 2, 0x41);
        let sent: Vec<_> = (0x40..0x48).map(|data| (0xfee0_3000, data)).collect();
        assert_eq!(harness.device().messages(), sent);
        assert_eq!(harness.read(msi + 2, 2) & 0x7f, 0x37);
        // The cell's function rests with the cell.
        harness.rest();
        assert_eq!(harness.device().messages(), []);
        assert_eq!(harness.read(msi + 4, 4), 0);
    }
}

#[test]
fn entries_of_the_table_are_on_when_they_are_right() {
    let store = store();
    let shape = Shape::FULL;
    let mut harness = Harness::of_cell(Device::new(shape).set_up(), Some(shape), &store).unwrap();
    let entry = TABLE + 3 * 16;
    // Without memory there is no table.
    harness.write_table(entry, 8, 0xfee0_3000).unwrap();
    assert_eq!(harness.read_table(entry, 8), Ok(u64::MAX));
    harness.write(4, 2, 2);
    assert_eq!(harness.read_table(entry, 8), Ok(0));
    assert_eq!(harness.read_table(entry + 12, 4), Ok(1));
    harness.write(MSI_X as u16 + 2, 2, 0x8000);
    harness.write_table(entry, 8, 0xfee0_3000).unwrap();
    harness.write_table(entry + 8, 8, 0x51).unwrap();
    assert_eq!(harness.device().messages(), [(0xfee0_3000, 0x51)]);
    assert_eq!(harness.read_table(entry + 4, 8), Ok(0x51 << 32));
    harness.write_table(entry + 9, 1, 2).unwrap();
    assert_eq!(
        harness.device().messages(),
        [],
        "a system management interrupt"
    );
    harness.write_table(entry + 8, 2, 0x61).unwrap();
    assert_eq!(harness.device().messages(), [(0xfee0_3000, 0x61)]);
    harness.write_table(entry + 12, 1, 1).unwrap();
    assert_eq!(harness.device().messages(), []);
}

#[test]
fn the_root_gets_back_what_it_had() {
    for shape in all_shapes() {
        let before = Device::new(shape).set_up();
        let store = store();
        let mut harness = Harness::of_cell(before.clone(), Some(shape), &store).unwrap();
        assert_eq!(
            harness.device().resets,
            u32::from(shape.express || shape.features || shape.power)
        );
        for value in VALUES {
            (0..0x100).for_each(|offset| harness.write(offset, 4, value));
        }
        harness.write(4, 2, 3);
        harness.write_table(TABLE, 8, 0xfee0_3000).unwrap();
        harness.write_table(TABLE + 8, 8, 0x51).unwrap();
        harness.give_back(&before);
        assert!(harness.device().unmasked().is_empty());
        // Nothing of the cell is left in the table.
        let registers = &harness.device().registers;
        for (at, byte) in registers.range(TABLE..TABLE + ENTRIES * 16) {
            assert_eq!(*byte, u8::from(at & 15 == (TABLE + 12) & 15), "{at:#x}");
        }
    }
}

#[test]
fn hand_overs_end_whatever_the_function_does() {
    let store = store();
    let shape = Shape::FULL;
    let inspected = |store| Harness::inspected(Device::new(shape).set_up(), store).unwrap();
    // Answers are waited for, and the reset all the same when none come.
    for (pending, least) in [(0, 100), (100, 150), (u32::MAX, 600)] {
        let mut harness = inspected(&store);
        harness.device_mut().pending = pending;
        harness.function.take(&mut harness.machine).unwrap();
        let took = harness.run().unwrap();
        assert!((least..least + 60).contains(&took), "{took} ms");
        assert_eq!(harness.device().resets, 1);
    }
    // It never comes back.
    let mut harness = inspected(&store);
    harness.function.take(&mut harness.machine).unwrap();
    while harness.device().resets == 0 {
        let _ = step(&mut harness);
    }
    harness.device_mut().silence = u32::MAX;
    assert_eq!(harness.run(), Err(Fault::Stuck));
    assert!(harness.now < 12345 + 1400 * super::harness::MILLISECOND);
    // The root gets it all the same.
    harness.function.begin_return(&mut harness.machine);
    assert!(harness.run().is_ok());
    assert!(harness.function.is_roots());
    // Without a way to be reset, what is pending for ever is not given to a cell.
    let store = self::store();
    let shape = Shape {
        features: true,
        ..Shape::numbered(31)
    };
    let mut device = Device::new(shape).set_up();
    device.config[FEATURES + 3] = 1;
    let mut harness = Harness::inspected(device, &store).unwrap();
    harness.device_mut().pending = u32::MAX;
    harness.function.take(&mut harness.machine).unwrap();
    assert_eq!(harness.run(), Err(Fault::Stuck));
}

fn step(harness: &mut Harness<'_>) -> Result<(), Fault> {
    use gaol_hypervisor::device::pci::handover::Clock;
    harness.now += super::harness::MILLISECOND;
    let clock = Clock {
        now: harness.now,
        millisecond: super::harness::MILLISECOND,
    };
    harness
        .function
        .advance(&mut harness.machine, clock)
        .map(|_| ())
}

#[test]
fn a_creation_that_is_given_up_leaves_no_trace() {
    let shape = Shape::FULL;
    let before = Device::new(shape).set_up();
    let store = store();
    let mut harness = Harness::inspected(before.clone(), &store).unwrap();
    harness.function.take(&mut harness.machine).unwrap();
    assert!(harness.device().config != before.config);
    harness.function.abandon(&mut harness.machine);
    assert!(harness.device().config == before.config);
    assert!(harness.function.is_roots());
}

#[test]
fn what_is_no_function_of_a_cell_is_refused() {
    let store = store();
    let refused = |device| Harness::inspected(device, &store).map(|_| ());
    let mut absent = Device::new(Shape::FULL);
    absent.config.fill(0xff);
    assert_eq!(refused(absent), Err(Fault::Absent));
    for kind in [1, 2, 0x81] {
        let mut bridge = Device::new(Shape::FULL);
        bridge.config[0xe] = kind;
        assert_eq!(refused(bridge), Err(Fault::Bridge));
    }
    // Its registers were moved after they had been looked at.
    let mut harness = Harness::inspected(Device::new(Shape::FULL).set_up(), &store).unwrap();
    harness.device_mut().config[0x11] = 0x40;
    let before = harness.device().config.clone();
    assert_eq!(
        harness.function.take(&mut harness.machine),
        Err(Fault::Changed)
    );
    assert!(harness.device().config == before);
    // Nothing is written as long as it is not the cell's, nothing is seen.
    harness.write(4, 2, 3);
    assert!(harness.device().config == before);
    assert_eq!(harness.read(0, 4), 0xffff_ffff);
}

#[test]
fn lists_without_an_end_are_survived() {
    for (at, next) in [
        (POWER, POWER),
        (VENDOR, MSI),
        (FEATURES, 0x3c),
        (FEATURES, 0xfc),
    ] {
        let store = store();
        let mut device = Device::new(Shape::FULL).set_up();
        device.config[at + 1] = next as u8;
        let mut harness = Harness::of_cell(device, Some(Shape::FULL), &store).unwrap();
        harness.write(4, 2, 3);
        assert_eq!(harness.read(4, 2), 3);
    }
    for header in [0x1001_0001u32, 0x1010_0001, 0xffff_ffff, 0x0101_0001] {
        let store = store();
        let mut device = Device::new(Shape::FULL).set_up();
        device.config[0x100..0x104].copy_from_slice(&header.to_le_bytes());
        let mut harness = Harness::of_cell(device, Some(Shape::FULL), &store).unwrap();
        harness.read(0x100, 4);
    }
}

/// Configuration spaces of real and emulated machines: whatever a cell writes there, nothing but what is permitted is
/// written at all, since in this model all of it can be.
#[test]
fn collected_functions_are_kept_to_the_masks() {
    let mut seen = 0;
    for name in [
        "bochs-i440fx",
        "qemu-q35",
        "two-sockets",
        "old-board",
        "many-cpus",
    ] {
        let path = format!(
            "{}/../machine/collections/{name}.tar.gz",
            env!("CARGO_MANIFEST_DIR")
        );
        let source = Source::open(path.as_ref()).unwrap();
        let directory = "/sys/bus/pci/devices";
        for function in source.list(directory).unwrap() {
            let config = source
                .read(&format!("{directory}/{function}/config"))
                .unwrap();
            let is_device = config[0xe] & 0x7f == 0;
            let store = store();
            // Sizes can't be found where nothing is fixed; what matters is what is written.
            let mut harness = match Harness::inspected(Device::collected(&config), &store) {
                Ok(harness) if is_device => harness,
                found => {
                    assert!(!is_device && found.is_err(), "{name} {function}");
                    continue;
                }
            };
            seen += 1;
            harness.function.take(&mut harness.machine).unwrap();
            harness.run().unwrap();
            let bars = harness.device().config[0x10..0x28].to_vec();
            harness.machine.watch = Some((
                super::harness::ID,
                Box::new(move |device| {
                    assert_eq!(device.config[0x10..0x28], bars);
                    assert_eq!(device.config[4] & 0x44, 0);
                    assert_eq!(device.config[0x30..0x34], [0; 4]);
                }),
            ));
            for value in VALUES {
                for width in WIDTHS {
                    (0..0x1000)
                        .step_by(3)
                        .for_each(|offset| harness.write(offset, width, value));
                }
            }
            harness.check_others();
        }
    }
    assert!(seen >= 10, "only {seen} functions");
}

proptest! {
    #[test]
    fn no_sequence_of_writes_gets_beyond(
        number in 0u8..32,
        operations in prop::collection::vec(
            (0u8..4, any::<u16>(), 0usize..4, prop_oneof![
                any::<u64>(),
                (0u64..16, 0u64..16).prop_map(|(id, low)| 0xfee0_0000 | id << 12 | low),
                0u64..0x500,
            ]),
            0..80,
        ),
    ) {
        let shape = Shape::numbered(number);
        let before = Device::new(shape).set_up();
        let store = store();
        let mut harness = Harness::of_cell(before.clone(), Some(shape), &store).unwrap();
        for (kind, place, width, value) in operations {
            let width = WIDTHS[width];
            match kind {
                0 => harness.write(place & 0xfff, width, value),
                1 => harness.write(place & 0xff, width, value),
                2 => harness.write([4, MSI as u16 + place % 24, MSI_X as u16 + 2][usize::from(place) % 3], width, value),
                _ => {
                    let at = TABLE - 16 + u64::from(place) % (16 * ENTRIES + 32);
                    let _ = harness.write_table(at, width, value);
                }
            }
        }
        harness.check_others();
        harness.give_back(&before);
    }
}
