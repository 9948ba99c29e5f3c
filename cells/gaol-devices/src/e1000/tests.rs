use proptest::prelude::*;

use super::driver::{LONGEST, acknowledge};
use super::model::{Device, ModelMemory, ModelRegisters};
use super::registers::{Cause, ReceiveStatus, Received, offset};
use super::*;

const ADDRESS: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];

type Driver = Controller<ModelRegisters, ModelMemory>;

fn started_with(device: &Device, interrupts: Interrupts) -> Driver {
    let started = Controller::start(
        device.registers(),
        device.memory(),
        Model::I82574,
        interrupts,
    );
    started.unwrap()
}

fn started() -> (Device, Driver) {
    let device = Device::new(ADDRESS);
    let driver = started_with(&device, Interrupts::None);
    (device, driver)
}

fn received(driver: &mut Driver) -> Option<Vec<u8>> {
    let mut frame = [0; BUFFER_SIZE];
    let length = driver.receive(&mut frame)?;
    Some(frame[..length].to_vec())
}

fn frame(number: usize, length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 7 + number * 13) as u8).collect()
}

#[test]
fn it_starts_with_its_address_and_the_link_up() {
    let (device, mut driver) = started();
    assert_eq!(driver.address(), ADDRESS);
    assert!(driver.link_is_up());
    assert_eq!(received(&mut driver), None);
    assert_eq!(device.get(offset::RECEIVE_LENGTH), 1024);
    assert!(!device.interrupts());
    assert_eq!(device.strays(), 0);
}

#[test]
fn without_an_address_the_eeprom_is_read() {
    for (model, narrow) in [(Model::I82540, true), (Model::I82574, false)] {
        let device = Device::new(ADDRESS);
        let other = [0x02, 3, 4, 5, 6, 7];
        device.set_eeprom(Some(other));
        if narrow {
            device.be_narrow();
        }
        let driver =
            Controller::start(device.registers(), device.memory(), model, Interrupts::None);
        assert_eq!(driver.unwrap().address(), other);
    }
}

#[test]
fn a_device_that_does_not_work_is_told() {
    let start = |device: &Device| {
        Controller::start(
            device.registers(),
            device.memory(),
            Model::I82574,
            Interrupts::None,
        )
        .err()
    };
    let device = Device::new(ADDRESS);
    device.set_eeprom(None);
    assert_eq!(start(&device), Some(Problem::NoAddress));
    device.set_eeprom(Some([1, 0, 0, 0, 0, 0]));
    assert_eq!(start(&device), Some(Problem::NoAddress));
    device.be_stuck();
    assert_eq!(start(&device), Some(Problem::Reset));
    device.set(offset::STATUS, u32::MAX);
    assert_eq!(start(&device), Some(Problem::Absent));
}

#[test]
fn only_the_two_models_are_known() {
    use gaol_cell::pci::Id;
    let of = |vendor, device| Model::of(Id { vendor, device });
    assert_eq!(of(0x8086, 0x100e), Some(Model::I82540));
    assert_eq!(of(0x8086, 0x10d3), Some(Model::I82574));
    assert_eq!(of(0x8086, 0x10d4), None);
    assert_eq!(of(0x1234, 0x100e), None);
}

#[test]
fn frames_come_in_round_the_ring_many_times() {
    let (device, mut driver) = started();
    for number in 0..5 * RING_LENGTH {
        let sent = frame(number, 60 + number % 1400);
        assert!(device.deliver(&sent));
        assert_eq!(received(&mut driver), Some(sent));
    }
    assert_eq!(received(&mut driver), None);
    assert_eq!(driver.statistics().received, 5 * RING_LENGTH as u64);
    assert_eq!(driver.statistics().bad, 0);
    assert_eq!(device.strays(), 0);
}

#[test]
fn a_full_ring_loses_frames_and_goes_on() {
    let (device, mut driver) = started();
    let taken = (0..2 * RING_LENGTH)
        .filter(|number| device.deliver(&frame(*number, 64)))
        .count();
    assert_eq!(taken, RING_LENGTH - 1);
    for number in 0..taken {
        assert_eq!(received(&mut driver), Some(frame(number, 64)));
    }
    assert_eq!(received(&mut driver), None);
    assert_eq!(driver.missed(), (2 * RING_LENGTH - taken) as u32);
    assert!(device.deliver(&frame(99, 64)));
    assert_eq!(received(&mut driver), Some(frame(99, 64)));
}

#[test]
fn a_frame_costs_one_access_to_the_device() {
    let (device, mut driver) = started();
    device.deliver(&frame(0, 64));
    let _ = device.accesses();
    assert!(received(&mut driver).is_some());
    assert_eq!(device.accesses(), 1);
    assert!(driver.send(&frame(0, 64)));
    assert_eq!(device.accesses(), 1);
    assert_eq!(received(&mut driver), None);
    assert_eq!(device.accesses(), 0);
}

#[test]
fn frames_go_out_round_the_ring_many_times() {
    let (device, mut driver) = started();
    for number in 0..5 * RING_LENGTH {
        let out = frame(number, 14 + number % 1500);
        assert!(driver.send(&out));
        assert_eq!(device.sent(), [out]);
    }
    assert_eq!(driver.pending(), 0);
    assert_eq!(driver.statistics().sent, 5 * RING_LENGTH as u64);
    assert_eq!(device.strays(), 0);
}

#[test]
fn a_ring_that_is_full_is_told_and_works_again() {
    let (device, mut driver) = started();
    device.stall(true);
    for number in 0..RING_LENGTH - 1 {
        assert!(driver.send(&frame(number, 60)), "{number}");
    }
    assert!(!driver.can_send());
    assert!(!driver.send(&frame(0, 60)));
    assert_eq!(driver.statistics().refused, 1);
    assert_eq!(driver.pending(), RING_LENGTH - 1);
    device.stall(false);
    assert_eq!(device.sent().len(), RING_LENGTH - 1);
    assert!(driver.send(&frame(7, 60)));
    assert_eq!(device.sent(), [frame(7, 60)]);
}

#[test]
fn a_frame_that_is_too_long_is_not_sent() {
    let (device, mut driver) = started();
    assert!(driver.send(&frame(0, LONGEST)));
    assert!(!driver.send(&frame(0, LONGEST + 1)));
    assert_eq!(device.sent().len(), 1);
}

fn word(length: u16, status: ReceiveStatus, errors: u8) -> Received {
    Received::new()
        .with_length(length)
        .with_status(status.bits())
        .with_errors(errors)
}

#[test]
fn lengths_that_cannot_be_are_left_out() {
    let (device, mut driver) = started();
    let whole = ReceiveStatus::all();
    let wrong = [
        word(0, whole, 0),
        word(13, whole, 0),
        word(BUFFER_SIZE as u16 + 1, whole, 0),
        word(u16::MAX, whole, 0),
        word(64, whole, 1),
        word(64, whole, 0x80),
    ];
    for word in wrong {
        device.fill(&frame(1, 64), word);
    }
    device.fill(&frame(2, 64), word(64, whole, 0));
    assert_eq!(received(&mut driver), Some(frame(2, 64)));
    assert_eq!(driver.statistics().bad, wrong.len() as u64);
    device.fill(&frame(3, BUFFER_SIZE), word(BUFFER_SIZE as u16, whole, 0));
    assert_eq!(received(&mut driver), Some(frame(3, BUFFER_SIZE)));
}

#[test]
fn a_frame_in_pieces_is_left_out_as_a_whole() {
    let (device, mut driver) = started();
    assert!(device.deliver(&frame(1, 3 * BUFFER_SIZE)));
    assert!(device.deliver(&frame(2, 100)));
    assert_eq!(received(&mut driver), Some(frame(2, 100)));
    assert_eq!(driver.statistics().bad, 3);
}

#[test]
fn a_device_that_fills_all_the_ring_with_garbage_does_not_keep_the_driver() {
    let (device, mut driver) = started();
    for _ in 0..3 * RING_LENGTH {
        device.fill(&[], word(1, ReceiveStatus::DONE, 0xff));
    }
    assert_eq!(received(&mut driver), None);
    assert_eq!(driver.statistics().bad, RING_LENGTH as u64);
}

#[test]
fn a_line_is_answered_and_comes_again() {
    let device = Device::new(ADDRESS);
    let mut driver = started_with(&device, Interrupts::LineOrMessage);
    assert!(!device.interrupts());
    assert!(!acknowledge(&device.registers()));
    for number in 0..3 {
        device.deliver(&frame(number, 64));
        assert!(device.interrupts());
        assert!(acknowledge(&device.registers()));
        assert!(!device.interrupts());
        assert!(received(&mut driver).is_some());
    }
}

#[test]
fn the_table_gets_all_causes() {
    let device = Device::new(ADDRESS);
    let mut driver = started_with(&device, Interrupts::Table);
    let causes = (Cause::RECEIVE_QUEUE | Cause::OTHER).bits();
    assert_eq!(device.get(offset::INTERRUPT_VECTORS), 0x0008_0808);
    assert_eq!(device.get(offset::INTERRUPT_AUTO_CLEAR), causes);
    assert_eq!(device.get(offset::INTERRUPT_MASK_SET), causes);
    // The message forbids the next one.
    device.set(offset::INTERRUPT_MASK_SET, 0);
    driver.permit();
    assert_eq!(device.get(offset::INTERRUPT_MASK_SET), causes);
}

#[test]
fn a_controller_that_was_stopped_is_quiet() {
    let device = Device::new(ADDRESS);
    let mut driver = started_with(&device, Interrupts::LineOrMessage);
    driver.stop();
    assert!(!device.deliver(&frame(0, 64)));
    assert!(!device.interrupts());
    driver.send(&frame(0, 64));
    assert_eq!(device.sent().len(), 0);
    // And starts again.
    let mut driver = started_with(&device, Interrupts::None);
    assert!(device.deliver(&frame(1, 64)));
    assert_eq!(received(&mut driver), Some(frame(1, 64)));
}

/// What a test does to a driver and its device.
#[derive(Clone, Debug)]
enum Step {
    Deliver(usize),
    Receive,
    Send(usize),
    Stall(bool),
    Fill(u64),
    Scribble(usize, u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (14usize..6000).prop_map(Step::Deliver),
        Just(Step::Receive),
        (0usize..1600).prop_map(Step::Send),
        any::<bool>().prop_map(Step::Stall),
        any::<u64>().prop_map(Step::Fill),
        (0usize..0x2000, any::<u64>()).prop_map(|(at, value)| Step::Scribble(at & !7, value)),
    ]
}

proptest! {
    /// With a device that keeps to the rules, everything arrives, whole and in order.
    #[test]
    fn nothing_is_lost_or_changed(steps in proptest::collection::vec(step(), 0..300)) {
        let (device, mut driver) = started();
        let mut expected = std::collections::VecDeque::new();
        let mut out = Vec::new();
        for (number, step) in steps.into_iter().enumerate() {
            match step {
                Step::Deliver(length) => {
                    let sent = frame(number, length.min(BUFFER_SIZE));
                    if device.deliver(&sent) {
                        expected.push_back(sent);
                    }
                }
                Step::Receive => prop_assert_eq!(received(&mut driver), expected.pop_front()),
                Step::Send(length) => {
                    let sent = frame(number, length);
                    if driver.send(&sent) {
                        out.push(sent);
                    }
                }
                Step::Stall(on) => device.stall(on),
                Step::Fill(_) | Step::Scribble(..) => {}
            }
        }
        while let Some(frame) = expected.pop_front() {
            prop_assert_eq!(received(&mut driver), Some(frame));
        }
        prop_assert_eq!(received(&mut driver), None);
        device.stall(false);
        prop_assert_eq!(device.sent(), out);
        prop_assert_eq!(device.strays(), 0);
    }

    /// Whatever the device writes to the memory that it shares, each call ends, and nothing longer than a buffer comes out.
    #[test]
    fn a_device_that_writes_anything_is_survived(steps in proptest::collection::vec(step(), 0..300)) {
        let (device, mut driver) = started();
        for (number, step) in steps.into_iter().enumerate() {
            match step {
                Step::Deliver(length) => {
                    device.deliver(&frame(number, length));
                }
                Step::Receive => {
                    if let Some(frame) = received(&mut driver) {
                        prop_assert!((14..=BUFFER_SIZE).contains(&frame.len()));
                    }
                }
                Step::Send(length) => {
                    driver.send(&frame(number, length));
                    prop_assert!(driver.pending() < RING_LENGTH);
                }
                Step::Stall(on) => device.stall(on),
                Step::Fill(word) => device.fill(&[0xee; 64], Received::from_bits(word)),
                Step::Scribble(at, value) => device.scribble(at, value),
            }
        }
    }
}
