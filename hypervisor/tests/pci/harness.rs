//! A cell with one function, and what must be true of the function after each write to it.

use std::sync::atomic::AtomicU64;

use gaol_hypervisor::device::pci::function::{Mastering, Terms};
use gaol_hypervisor::device::pci::handover::{Clock, Fault, Progress};
use gaol_hypervisor::device::pci::msix::{Refused, Store};
use gaol_hypervisor::device::pci::{Function, FunctionId};

use super::model::{Device, EXPRESS, MSI, MSI_X, Machine, Shape};

/// The function.
pub const ID: FunctionId = FunctionId {
    segment: 0,
    function: 0x0118,
};
/// APIC ids of the cell's CPUs.
pub const OWN: [u32; 2] = [3, 9];
/// Cycles of a millisecond.
pub const MILLISECOND: u64 = 1000;

pub fn is_own(id: u32) -> bool {
    OWN.contains(&id)
}

/// A store of the function's own.
pub fn store() -> Box<Store> {
    Box::new([const { AtomicU64::new(0) }; 512])
}

pub struct Harness<'s> {
    pub machine: Machine,
    pub function: Function<'s>,
    pub now: u64,
}

/// No message that is on leads to anybody else's CPU, or does there what it must not.
fn check_messages(device: &Device) {
    for (address, data) in device.messages().into_iter().chain(device.unmasked()) {
        let is_plain = OWN
            .iter()
            .any(|id| address == 0xfee0_0000 | u64::from(*id) << 12);
        assert!(is_plain, "a message to {address:#x}");
        let is_fixed = (16..256).contains(&data);
        assert!(
            is_fixed || data & !0xff == 0x400,
            "a message with {data:#x}"
        );
    }
}

/// Bits of configuration space that a cell may change, in the order of the bytes.
fn changeable(shape: Option<Shape>) -> Vec<u8> {
    let mut mask = vec![0; 4096];
    mask[4] = 3;
    mask[5] = 4;
    // Status bits that ones clear.
    mask[7] = 0xf9;
    let Some(shape) = shape else { return mask };
    // The message is looked at as a whole.
    mask[MSI + 2] = 0x71;
    let mut data = MSI + 8 + 4 * usize::from(shape.msi_is_wide);
    mask[MSI + 4..data + 2].fill(0xff);
    data += 4;
    if shape.msi_is_maskable {
        mask[data..data + 4].fill(0xff);
    }
    mask[MSI_X + 3] = 0xc0;
    if shape.express {
        mask[EXPRESS + 8] = 0x10;
        mask[EXPRESS + 9] = 0x78;
        mask[EXPRESS + 10] = 0xf;
    }
    mask
}

impl<'s> Harness<'s> {
    /// The function is about to change hands.
    pub fn inspected(device: Device, store: &'s Store) -> Result<Self, Fault> {
        Self::inspected_with(device, store, Mastering::Never)
    }

    fn inspected_with(
        device: Device,
        store: &'s Store,
        mastering: Mastering,
    ) -> Result<Self, Fault> {
        let mut machine = Machine::new(ID, device);
        let terms = Terms {
            vectors: 32,
            has_lines: true,
            mastering,
        };
        let function = Function::inspect(&mut machine, ID, terms, store)?;
        Ok(Self {
            machine,
            function,
            now: 12345,
        })
    }

    /// The cell has the function; from now on each write is looked at.
    pub fn of_cell(device: Device, shape: Option<Shape>, store: &'s Store) -> Result<Self, Fault> {
        Self::of_cell_with(device, shape, store, Mastering::Never)
    }

    /// The same of a function that the cell may make bus master, or not.
    pub fn of_cell_with(
        device: Device,
        shape: Option<Shape>,
        store: &'s Store,
        mastering: Mastering,
    ) -> Result<Self, Fault> {
        let mut harness = Self::inspected_with(device, store, mastering)?;
        harness.function.take(&mut harness.machine)?;
        harness.run()?;
        let before = harness.device().config.clone();
        let mut mask = changeable(shape);
        let may_master = mastering != Mastering::Never;
        if may_master {
            mask[4] |= 4;
        }
        let look = move |device: &Device| {
            check_messages(device);
            assert!(may_master || device.config[4] & 4 == 0, "bus master");
            let bytes = device.config.iter().zip(&before).zip(&mask);
            for (at, ((now, before), mask)) in bytes.enumerate() {
                assert_eq!((now ^ before) & !mask, 0, "byte {at:#x} has changed");
            }
        };
        look(harness.device());
        harness.machine.watch = Some((ID, Box::new(look)));
        Ok(harness)
    }

    pub fn device(&self) -> &Device {
        &self.machine.devices[&ID.number()]
    }

    pub fn device_mut(&mut self) -> &mut Device {
        self.machine.devices.get_mut(&ID.number()).unwrap()
    }

    /// Goes on until the hand-over is done; returns the time that it took, in milliseconds.
    pub fn run(&mut self) -> Result<u64, Fault> {
        let start = self.now;
        for _ in 0..20_000 {
            let clock = Clock {
                now: self.now,
                millisecond: MILLISECOND,
            };
            match self.function.advance(&mut self.machine, clock)? {
                Progress::Done => return Ok((self.now - start) / MILLISECOND),
                Progress::More => self.now += MILLISECOND / 2,
            }
        }
        panic!("the hand-over has no end: {:?}", self.function);
    }

    /// The cell stops: the function is off at once, and like new at the end.
    pub fn rest(&mut self) {
        let watch = self.machine.watch.take();
        self.function.rest(&mut self.machine);
        assert_eq!(self.device().config[4] & 7, 0);
        assert!(!self.function.is_quiet() && self.function.is_busy());
        self.run().unwrap();
        assert!(self.function.is_quiet() && !self.function.is_busy());
        self.machine.watch = watch;
    }

    pub fn read(&mut self, offset: u16, width: u8) -> u64 {
        self.function.read(&mut self.machine, offset, width)
    }

    pub fn write(&mut self, offset: u16, width: u8, value: u64) {
        self.function
            .write(&mut self.machine, offset, width, value, &is_own);
    }

    pub fn read_table(&mut self, at: u64, width: u8) -> Result<u64, Refused> {
        self.function.read_table(&mut self.machine, at, width)
    }

    pub fn write_table(&mut self, at: u64, width: u8, value: u64) -> Result<(), Refused> {
        self.function
            .write_table(&mut self.machine, at, width, value, &is_own)
    }

    /// Nobody has touched another function.
    pub fn check_others(&self) {
        for (number, device) in &self.machine.devices {
            if *number != ID.number() {
                assert!(
                    device.config.iter().all(|byte| *byte == 0x5a),
                    "{number:#x}"
                );
            }
        }
    }

    /// The root has it back: as it was, but for what ones clear.
    pub fn give_back(&mut self, before: &Device) {
        self.machine.watch = None;
        self.function.begin_return(&mut self.machine);
        self.run().unwrap();
        let clears = before.clears.clone();
        let now = &self.device().config;
        for (at, (now, before)) in now.iter().zip(&before.config).enumerate() {
            assert_eq!(
                (now ^ before) & !clears[at],
                0,
                "byte {at:#x} is not as it was"
            );
        }
        self.check_others();
    }
}
