//! A machine with PCI functions, as hardware is: what is written to configuration space and to registers has the effect
//! that the specifications give it, and nothing is checked.

use std::cell::RefCell;
use std::collections::BTreeMap;

use gaol_hypervisor::device::pci::message::Message;
use gaol_hypervisor::device::pci::{FunctionId, Hardware};
use gaol_hypervisor::memory::address::HostPhysical;

/// Capabilities of the modelled function.
pub const POWER: usize = 0x40;
pub const MSI: usize = 0x50;
pub const EXPRESS: usize = 0x70;
pub const MSI_X: usize = 0xb0;
pub const VENDOR: usize = 0xc0;
pub const FEATURES: usize = 0xd0;
/// Where the registers of its first BAR are, with the MSI-X table in their midst.
pub const REGISTERS: u64 = 0xfe80_0000;
pub const REGISTERS_SIZE: u64 = 0x4000;
pub const TABLE: u64 = REGISTERS + 0x1020;
pub const ENTRIES: u64 = 8;
/// Its third BAR, of 64 bits, and its port BAR.
pub const WIDE: u64 = 0x20_c000_0000;
pub const PORTS: u32 = 0xc040;

/// What a function can do, and what it lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub express: bool,
    pub features: bool,
    pub power: bool,
    pub msi_is_wide: bool,
    pub msi_is_maskable: bool,
}

impl Shape {
    pub const FULL: Self = Self {
        express: true,
        features: true,
        power: true,
        msi_is_wide: true,
        msi_is_maskable: true,
    };

    /// One of all 32.
    pub fn numbered(number: u8) -> Self {
        let bit = |bit: u8| number >> bit & 1 == 0;
        Self {
            express: bit(0),
            features: bit(1),
            power: bit(2),
            msi_is_wide: bit(3),
            msi_is_maskable: bit(4),
        }
    }
}

/// One function: what its registers hold, and which bits a write changes, or clears where it is one.
#[derive(Clone)]
pub struct Device {
    pub config: Vec<u8>,
    pub writable: Vec<u8>,
    pub clears: Vec<u8>,
    reset_values: Vec<u8>,
    pub registers: BTreeMap<u64, u8>,
    shape: Option<Shape>,
    /// Resets it has seen.
    pub resets: u32,
    /// Reads of the vendor that it does not answer yet.
    pub silence: u32,
    /// Reads of its status for which it says that answers are pending.
    pub pending: u32,
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

impl Device {
    /// A function of which nothing can be written: to see that nobody does.
    pub fn other() -> Self {
        Self {
            config: vec![0x5a; 4096],
            writable: vec![0xff; 4096],
            clears: vec![0; 4096],
            reset_values: vec![0; 4096],
            registers: BTreeMap::new(),
            shape: None,
            resets: 0,
            silence: 0,
            pending: 0,
        }
    }

    /// Configuration space that was read from a machine: all of it can be written, so that whatever is written shows.
    pub fn collected(bytes: &[u8]) -> Self {
        let mut device = Self::other();
        device.config = bytes.to_vec();
        device.config.resize(4096, 0);
        device
    }

    pub fn new(shape: Shape) -> Self {
        let mut device = Self::other();
        device.shape = Some(shape);
        let c = &mut vec![0u8; 4096];
        let w = &mut vec![0u8; 4096];
        let k = &mut vec![0u8; 4096];
        put(c, 0, &[0x86, 0x80, 0x0e, 0x10]);
        put(c, 4, &[0x00, 0x00, 0x10, 0x00]);
        put(w, 4, &[0x47, 0x05]);
        put(k, 6, &[0x00, 0xf9]);
        put(c, 8, &[3, 0, 0, 2]);
        put(w, 0xc, &[0xff, 0xff]);
        put(w, 0xf, &[0x40]);
        // BARs: memory, none, 64 bits in two, ports, memory below 1 MiB without an address.
        put(w, 0x10, &(!(REGISTERS_SIZE as u32 - 1)).to_le_bytes());
        put(c, 0x18, &[0xc, 0, 0, 0]);
        put(w, 0x18, &[0, 0, 0, 0xf0, 0xff, 0xff, 0xff, 0xff]);
        put(c, 0x20, &[1, 0, 0, 0]);
        put(w, 0x20, &[0xe0, 0xff, 0, 0]);
        put(w, 0x30, &[1, 0, 0xfe, 0xff]);
        put(c, 0x34, &[POWER as u8]);
        put(w, 0x3c, &[0xff]);
        put(c, 0x3d, &[1]);
        let chain = [
            (shape.power, POWER, 1u8),
            (true, MSI, 5),
            (shape.express, EXPRESS, 0x10),
            (true, MSI_X, 0x11),
            (true, VENDOR, 9),
            (shape.features, FEATURES, 0x13),
        ];
        let there: Vec<_> = chain.iter().filter(|(there, ..)| *there).collect();
        c[0x34] = there[0].1 as u8;
        for (index, (_, at, id)) in there.iter().enumerate() {
            c[*at] = *id;
            c[*at + 1] = there.get(index + 1).map_or(0, |next| next.1 as u8);
        }
        if shape.power {
            put(w, POWER + 4, &[3, 1]);
            put(k, POWER + 5, &[0x80]);
        }
        let msi_control =
            3 << 1 | u16::from(shape.msi_is_wide) << 7 | u16::from(shape.msi_is_maskable) << 8;
        put(c, MSI + 2, &msi_control.to_le_bytes());
        put(w, MSI + 2, &[0x71, 0]);
        put(w, MSI + 4, &[0xfc, 0xff, 0xff, 0xff]);
        let mut data = MSI + 8;
        if shape.msi_is_wide {
            put(w, MSI + 8, &[0xff; 4]);
            data += 4;
        }
        put(w, data, &[0xff; 2]);
        if shape.msi_is_maskable {
            put(w, data + 4, &[0xff; 4]);
        }
        if shape.express {
            put(c, EXPRESS + 2, &[2, 0]);
            put(c, EXPRESS + 4, &[0, 0, 0, 0x10]);
            put(c, EXPRESS + 8, &[0x10, 0x28]);
            put(w, EXPRESS + 8, &[0xff, 0x7f]);
            put(k, EXPRESS + 0xa, &[0xf]);
            put(w, EXPRESS + 0x10, &[0xff, 0xff]);
            put(w, EXPRESS + 0x28, &[0xff, 0xff]);
        }
        put(c, MSI_X + 2, &(ENTRIES as u16 - 1).to_le_bytes());
        put(w, MSI_X + 3, &[0xc0]);
        put(c, MSI_X + 4, &((TABLE - REGISTERS) as u32).to_le_bytes());
        put(c, MSI_X + 8, &0x2000u32.to_le_bytes());
        // A vendor's own: a door to the registers, all of it can be written.
        put(c, VENDOR + 2, &[0x10]);
        put(w, VENDOR + 3, &[0xff; 13]);
        if shape.features {
            put(c, FEATURES + 2, &[6, 3]);
        }
        // Extended: errors, SR-IOV, address translation, a vendor's own.
        put(c, 0x100, &0x1401_0001u32.to_le_bytes());
        put(w, 0x108, &[0xff; 4]);
        put(c, 0x140, &0x1801_0010u32.to_le_bytes());
        put(w, 0x148, &[0xff; 2]);
        put(c, 0x180, &0x1a01_000fu32.to_le_bytes());
        put(w, 0x186, &[0xff; 2]);
        put(c, 0x1a0, &0x0001_000bu32.to_le_bytes());
        put(w, 0x1a8, &[0xff; 8]);
        device.config.clone_from(c);
        device.reset_values.clone_from(c);
        device.writable.clone_from(w);
        device.clears.clone_from(k);
        device
    }

    /// As firmware and Linux have set it up.
    pub fn set_up(mut self) -> Self {
        let c = &mut self.config;
        put(c, 4, &[0x07, 0x01]);
        put(c, 0x10, &(REGISTERS as u32).to_le_bytes());
        put(c, 0x18, &(WIDE as u32 | 0xc).to_le_bytes());
        put(c, 0x1c, &((WIDE >> 32) as u32).to_le_bytes());
        put(c, 0x20, &(PORTS | 1).to_le_bytes());
        put(c, 0x30, &0xfe90_0001u32.to_le_bytes());
        put(c, 0xc, &[0x10, 0x40]);
        put(c, 0x3c, &[11]);
        put(c, MSI + 4, &0xfee0_1000u32.to_le_bytes());
        put(c, 0x108, &0x0010_0000u32.to_le_bytes());
        self
    }

    pub fn read(&self, at: usize, width: usize) -> u64 {
        let mut bytes = [0; 8];
        bytes[..width].copy_from_slice(&self.config[at..at + width]);
        u64::from_le_bytes(bytes)
    }

    /// Whether it answers to its memory.
    pub fn is_on(&self) -> bool {
        self.config[4] & 2 != 0
    }

    fn reset(&mut self) {
        self.resets += 1;
        self.silence = 3;
        self.config.clone_from(&self.reset_values);
        for entry in 0..ENTRIES {
            for byte in 0..16 {
                let masked = u8::from(byte == 12);
                self.registers.insert(TABLE + entry * 16 + byte, masked);
            }
        }
    }

    fn write_byte(&mut self, at: usize, value: u8) {
        let (w, k) = (self.writable[at], self.clears[at]);
        let old = self.config[at];
        self.config[at] = (old & !w | value & w) & !(value & k);
        let Some(shape) = self.shape else { return };
        if shape.express && at == EXPRESS + 9 && value & 0x80 != 0
            || shape.features && at == FEATURES + 4 && value & 1 != 0
        {
            self.reset();
        }
        if shape.power && at == POWER + 4 && old & 3 == 3 && value & 3 == 0 {
            self.reset();
        }
    }

    fn register(&self, at: u64) -> u8 {
        self.registers.get(&at).copied().unwrap_or(0)
    }

    /// What it can send at this moment: addresses and data of all messages that are on.
    pub fn messages(&self) -> Vec<(u64, u32)> {
        let mut messages = Vec::new();
        let control = self.read(MSI + 2, 2);
        if control & 1 != 0 {
            let mut address = self.read(MSI + 4, 4);
            let mut data = MSI + 8;
            if control & 1 << 7 != 0 {
                address |= self.read(MSI + 8, 4) << 32;
                data += 4;
            }
            let data = self.read(data, 2) as u32;
            let vectors = 1u32 << (control >> 4 & 7);
            for vector in 0..vectors {
                messages.push((address, data & !(vectors - 1) | vector));
            }
        }
        if self.config[MSI_X + 3] & 0x80 != 0 && self.config[MSI_X + 3] & 0x40 == 0 {
            messages.extend(self.unmasked());
        }
        messages
    }

    /// Messages of entries of the table that are not masked.
    pub fn unmasked(&self) -> Vec<(u64, u32)> {
        let number = |at: u64, bytes: u64| {
            (0..bytes).rev().fold(0u64, |value, byte| {
                value << 8 | u64::from(self.register(at + byte))
            })
        };
        (0..ENTRIES)
            .map(|entry| TABLE + entry * 16)
            .filter(|at| self.register(at + 12) & 1 == 0)
            .map(|at| (number(at, 8), number(at + 8, 4) as u32))
            .collect()
    }
}

/// What is asked of a function.
pub type Look = Box<dyn Fn(&Device)>;

/// All functions.
pub struct Machine {
    pub devices: BTreeMap<u32, Device>,
    pub has_extended: bool,
    /// Looks at the function after each single write.
    pub watch: Option<(FunctionId, Look)>,
    /// Widths and addresses of accesses to registers.
    pub accesses: RefCell<Vec<(u64, u8, bool)>>,
    /// An IOMMU is in front of the functions.
    pub remaps: bool,
    /// What it was asked for.
    pub remapped: Vec<(u16, u8, Option<Message>)>,
}

impl Machine {
    pub fn new(id: FunctionId, device: Device) -> Self {
        let others = [
            id.number() ^ 1,
            id.number() ^ 8,
            id.number() ^ 0x100,
            id.number() ^ 1 << 16,
        ];
        let mut devices: BTreeMap<u32, Device> = others
            .into_iter()
            .map(|number| (number, Device::other()))
            .collect();
        devices.insert(id.number(), device);
        Self {
            devices,
            has_extended: true,
            watch: None,
            accesses: RefCell::new(Vec::new()),
            remaps: false,
            remapped: Vec::new(),
        }
    }

    fn look(&mut self, number: u32) {
        if let Some((id, look)) = &self.watch
            && id.number() == number
        {
            look(&self.devices[&number]);
        }
    }

    fn at(&mut self, at: u64) -> Option<(u32, &mut Device)> {
        let inside = |start: u64| (start..start + REGISTERS_SIZE).contains(&at);
        let mut devices = self.devices.iter_mut();
        devices
            .find(|(_, device)| {
                let bar = device.read(0x10, 4) & !0xf;
                device.shape.is_some() && device.is_on() && inside(bar)
            })
            .map(|(number, device)| (*number, device))
    }
}

impl Hardware for Machine {
    fn read_config(&mut self, function: FunctionId, offset: u16, width: u8) -> u32 {
        let (at, bytes) = (usize::from(offset), usize::from(width));
        assert!((at & 3) + bytes <= 4 && at < 4096, "{offset:#x} {width}");
        assert!(at < 256 || self.has_extended);
        let Some(device) = self.devices.get_mut(&function.number()) else {
            return u32::MAX;
        };
        if device.silence > 0 {
            device.silence -= u32::from(at == 0);
            return u32::MAX >> (32 - 8 * u32::from(width));
        }
        let mut value = device.read(at, bytes) as u32;
        let shape = device.shape.unwrap_or(Shape::numbered(31));
        if device.pending > 0 && (shape.express && at == EXPRESS + 0xa) {
            device.pending -= 1;
            value |= 1 << 5;
        } else if device.pending > 0 && shape.features && at == FEATURES + 5 {
            device.pending -= 1;
            value |= 1;
        }
        value
    }

    fn write_config(&mut self, function: FunctionId, offset: u16, width: u8, value: u32) {
        let (at, bytes) = (usize::from(offset), usize::from(width));
        assert!((at & 3) + bytes <= 4 && at < 4096, "{offset:#x} {width}");
        assert!(at < 256 || self.has_extended);
        if let Some(device) = self.devices.get_mut(&function.number())
            && device.silence == 0
        {
            for (index, byte) in value.to_le_bytes()[..bytes].iter().enumerate() {
                device.write_byte(at + index, *byte);
            }
        }
        self.look(function.number());
    }

    fn has_extended(&mut self, _function: FunctionId) -> bool {
        self.has_extended
    }

    fn read_registers(&mut self, at: HostPhysical, width: u8) -> u64 {
        let at = at.as_u64();
        assert!(at.is_multiple_of(width.into()));
        self.accesses.borrow_mut().push((at, width, false));
        let mut value = u64::MAX >> (64 - 8 * u32::from(width));
        if let Some((_, device)) = self.at(at) {
            value = (0..u64::from(width)).rev().fold(0, |value, byte| {
                value << 8 | u64::from(device.register(at + byte))
            });
        }
        value
    }

    fn remap(
        &mut self,
        function: FunctionId,
        number: u16,
        order: u8,
        message: Option<Message>,
    ) -> Option<Message> {
        assert!(self.devices.contains_key(&function.number()));
        self.remapped.push((number, order, message));
        if !self.remaps {
            return message;
        }
        // As VT-d: the index of an entry in the address, and of the interrupt in the data.
        message.map(|_| Message {
            address: 0xfee0_0018 | u32::from(number) << 5,
            data: 0,
        })
    }

    fn write_registers(&mut self, at: HostPhysical, width: u8, value: u64) {
        let at = at.as_u64();
        assert!(at.is_multiple_of(width.into()));
        self.accesses.borrow_mut().push((at, width, true));
        let mut number = None;
        if let Some((owner, device)) = self.at(at) {
            number = Some(owner);
            for (byte, value) in (at..).zip(&value.to_le_bytes()[..usize::from(width)]) {
                device.registers.insert(byte, *value);
            }
        }
        if let Some(number) = number {
            self.look(number);
        }
    }
}
