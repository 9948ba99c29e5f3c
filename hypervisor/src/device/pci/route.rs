//! Who speaks for a function: what is on the way from it to the root complex.
//!
//! Ports of PCI Express pass on who speaks. A bridge to conventional PCI, or between conventional buses, may speak in its own
//! name, or in that of device 0 on the bus behind it: an IOMMU can't tell what is behind it apart (VT-d specification,
//! "Source Identifier"; PCI Express to PCI/PCI-X Bridge specification, "Transaction Ownership").
//!
//! Invariant: what is said here is read from the bridges themselves, whatever a configuration says, and each bus is looked
//! at once for each step of the way at the most.
#![forbid(unsafe_code)]

use super::capabilities::Found;
use super::express;
use super::space::{Config, FunctionId, Hardware};

const VENDOR: u16 = 0x00;
const HEADER_TYPE: u16 = 0x0e;
/// Header type: the device has several functions.
const HAS_SEVERAL: u8 = 1 << 7;
/// Header types of bridges to PCI and to CardBus. Both have the number of the bus behind them at the same place.
const BRIDGES: [u8; 2] = [1, 2];
const SECONDARY_BUS: u16 = 0x19;

const DEVICES: u16 = 32;
const FUNCTIONS: u16 = 8;

/// The bridge nearest to the function that may speak in its place; `None`: the function speaks for itself.
pub fn speaker<H: Hardware + ?Sized>(hardware: &mut H, function: FunctionId) -> Option<FunctionId> {
    let mut at = function;
    loop {
        // On a lower bus than `at`, so that there is an end.
        let bridge = bridge_to(hardware, at)?;
        if !is_port(hardware, bridge) {
            return Some(bridge);
        }
        at = bridge;
    }
}

/// The bridge that has the function's bus right behind it; `None`: nothing leads there but the root complex. The nearest
/// buses come first: that is where it is as a rule.
fn bridge_to<H: Hardware + ?Sized>(hardware: &mut H, function: FunctionId) -> Option<FunctionId> {
    let bus = function.function >> 8;
    (0..bus).rev().find_map(|above| {
        let mut devices = 0..DEVICES;
        devices.find_map(|device| {
            let first = FunctionId {
                segment: function.segment,
                function: above << 8 | device << 3,
            };
            bridge_of_device(hardware, first, bus)
        })
    })
}

fn bridge_of_device<H: Hardware + ?Sized>(
    hardware: &mut H,
    first: FunctionId,
    bus: u16,
) -> Option<FunctionId> {
    let mut count = 1;
    let mut number = 0;
    while number < count {
        let id = FunctionId {
            segment: first.segment,
            function: first.function | number,
        };
        let config = &mut Config { hardware, id };
        if config.read16(VENDOR) != u16::MAX {
            let header = config.read8(HEADER_TYPE);
            if header & HAS_SEVERAL != 0 {
                count = FUNCTIONS;
            }
            let is_bridge = BRIDGES.contains(&(header & !HAS_SEVERAL));
            if is_bridge && u16::from(config.read8(SECONDARY_BUS)) == bus {
                return Some(id);
            }
        }
        number = number.wrapping_add(1);
    }
    None
}

/// Whether the bridge is a port of PCI Express on both sides: a root port, or one of a switch (PCI Express Base
/// specification, "PCI Express Capabilities Register").
fn is_port<H: Hardware + ?Sized>(hardware: &mut H, id: FunctionId) -> bool {
    let config = &mut Config { hardware, id };
    let found = Found::new(config);
    let at = found.express.wrapping_add(express::VERSION);
    found.express != 0
        && matches!(
            config.read16(at) >> 4 & 0xf,
            express::KIND_ROOT_PORT..=express::KIND_DOWNSTREAM_PORT
        )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::message::Message;
    use super::*;
    use crate::memory::address::HostPhysical;

    /// Bridges: secondary bus, and the kind of port of PCI Express, if it is one.
    #[derive(Default)]
    struct Machine {
        functions: BTreeMap<u32, Vec<u8>>,
        reads: usize,
    }

    fn id(bus: u16, device: u16, function: u16) -> FunctionId {
        FunctionId {
            segment: 0,
            function: bus << 8 | device << 3 | function,
        }
    }

    impl Machine {
        fn with(mut self, id: FunctionId, header: u8, secondary: u8, kind: Option<u8>) -> Self {
            let mut config = vec![0; 256];
            config[0..2].copy_from_slice(&[0x86, 0x80]);
            config[0x0e] = header;
            config[0x19] = secondary;
            if let Some(kind) = kind {
                config[0x06] = 0x10;
                config[0x34] = 0x40;
                config[0x40..0x44].copy_from_slice(&[0x10, 0, kind << 4 | 2, 0]);
            }
            self.functions.insert(id.number(), config);
            self
        }
    }

    impl Hardware for Machine {
        fn read_config(&mut self, function: FunctionId, offset: u16, width: u8) -> u32 {
            self.reads += 1;
            let mut value = [0xff; 4];
            if let Some(config) = self.functions.get(&function.number()) {
                let (at, width) = (usize::from(offset), usize::from(width));
                value = [0; 4];
                value[..width].copy_from_slice(&config[at..at + width]);
            }
            u32::from_le_bytes(value)
        }
        fn write_config(&mut self, _: FunctionId, _: u16, _: u8, _: u32) {
            panic!("something was written");
        }
        fn has_extended(&mut self, _: FunctionId) -> bool {
            false
        }
        fn read_registers(&mut self, _: HostPhysical, _: u8) -> u64 {
            panic!("registers were read");
        }
        fn write_registers(&mut self, _: HostPhysical, _: u8, _: u64) {
            panic!("registers were written");
        }
        fn remap(&mut self, _: FunctionId, _: u16, _: u8, _: Option<Message>) -> Option<Message> {
            None
        }
    }

    #[test]
    fn ports_pass_on_who_speaks_and_bridges_do_not() {
        let mut machine = Machine::default()
            .with(id(0, 3, 0), 0, 0, None)
            // A root port of a device with several functions, with a switch behind it, and a card.
            .with(id(0, 0x1c, 0), 0x80, 0, None)
            .with(id(0, 0x1c, 4), 0x81, 1, Some(4))
            .with(id(1, 0, 0), 1, 2, Some(5))
            .with(id(2, 1, 0), 1, 3, Some(6))
            .with(id(3, 0, 0), 0, 0, Some(0))
            // Behind another of the switch's ports a bridge to conventional PCI, and one more behind that.
            .with(id(2, 2, 0), 1, 4, Some(6))
            .with(id(4, 0, 0), 1, 5, Some(7))
            .with(id(5, 1, 0), 1, 6, None)
            // A conventional bridge on the root bus, with a card of PCI Express behind a bridge back, and CardBus.
            .with(id(0, 0x1e, 0), 1, 7, None)
            .with(id(7, 0, 0), 1, 8, Some(8))
            .with(id(7, 1, 0), 2, 9, None);
        for (function, speaker_of_it) in [
            (id(0, 3, 0), None),
            (id(1, 0, 0), None),
            (id(3, 0, 0), None),
            (id(5, 3, 0), Some(id(4, 0, 0))),
            (id(6, 0, 0), Some(id(5, 1, 0))),
            (id(7, 2, 0), Some(id(0, 0x1e, 0))),
            (id(8, 0, 0), Some(id(7, 0, 0))),
            (id(9, 0, 0), Some(id(7, 1, 0))),
            // Another root bus, that no bridge leads to.
            (id(0x40, 2, 1), None),
        ] {
            assert_eq!(
                speaker(&mut machine, function),
                speaker_of_it,
                "{function:x?}"
            );
        }
    }

    #[test]
    fn whatever_bridges_say_the_search_ends() {
        // Every function of every bus says that it leads to the bus behind its own, as a port.
        let mut machine = Machine::default();
        for bus in 0..=255u8 {
            for device in 0..32 {
                let id = id(bus.into(), device, 0);
                machine = machine.with(id, 0x81, bus.wrapping_add(1), Some(6));
            }
        }
        assert_eq!(speaker(&mut machine, id(255, 31, 7)), None);
        assert!(machine.reads < 255 * 32 * 8 * 4);
        // No bridge leads there: all buses are looked at once.
        machine.reads = 0;
        for config in machine.functions.values_mut() {
            config[0x19] = 0;
        }
        assert_eq!(speaker(&mut machine, id(255, 31, 7)), None);
        assert!(machine.reads <= 255 * 32 * (8 + 2));
    }
}
