//! PCI functions, configuration space byte by byte (PCI Local Bus and PCI Express Base specifications).

use crate::source::Tree;

/// Kinds in the capability of PCI Express.
pub(crate) const ENDPOINT: u8 = 0;
pub(crate) const ROOT_PORT: u8 = 4;
pub(crate) const UPSTREAM_PORT: u8 = 5;
pub(crate) const DOWNSTREAM_PORT: u8 = 6;
pub(crate) const PCI_BRIDGE: u8 = 7;
pub(crate) const INTEGRATED_ENDPOINT: u8 = 9;

/// A function to be.
#[derive(Clone, Debug)]
pub(crate) struct TestFunction {
    address: String,
    pub(crate) config: Vec<u8>,
    /// First and last address and flags.
    resources: [(u64, u64, u64); 7],
    driver: Option<&'static str>,
    group: Option<u32>,
    node: i32,
    /// Where the next capability goes, and where the pointer to it is.
    next: usize,
    pointer: usize,
    next_extended: usize,
    last_extended: Option<usize>,
}

impl TestFunction {
    pub(crate) fn new(address: &str, vendor: u16, device: u16, class: u32) -> Self {
        let mut config = vec![0; 256];
        config[0..2].copy_from_slice(&vendor.to_le_bytes());
        config[2..4].copy_from_slice(&device.to_le_bytes());
        config[4] = 0x06;
        config[8] = 1;
        config[9..12].copy_from_slice(&class.to_le_bytes()[..3]);
        config[0x2c..0x30].copy_from_slice(&[0xf4, 0x1a, 0x00, 0x11]);
        Self {
            address: address.to_owned(),
            config,
            resources: [(0, 0, 0); 7],
            driver: None,
            group: None,
            node: -1,
            next: 0x40,
            pointer: 0x34,
            next_extended: 0x100,
            last_extended: None,
        }
    }

    pub(crate) fn multifunction(mut self) -> Self {
        self.config[0x0e] |= 0x80;
        self
    }

    pub(crate) fn bridge(mut self, secondary: u8, subordinate: u8) -> Self {
        self.config[0x0e] |= 1;
        let bus = self.address.split(':').nth(1).unwrap();
        self.config[0x18] = u8::from_str_radix(bus, 16).unwrap();
        self.config[0x19] = secondary;
        self.config[0x1a] = subordinate;
        self.config[0x2c..0x30].fill(0);
        self
    }

    pub(crate) fn driver(mut self, driver: &'static str) -> Self {
        self.driver = Some(driver);
        self
    }

    pub(crate) fn group(mut self, group: u32) -> Self {
        self.group = Some(group);
        self
    }

    pub(crate) fn node(mut self, node: i32) -> Self {
        self.node = node;
        self
    }

    fn bar(mut self, index: usize, first: u64, size: u64, flags: u64) -> Self {
        self.resources[index] = (first, first + size - 1, flags);
        self
    }

    pub(crate) fn ports(self, index: usize, first: u64, size: u64) -> Self {
        self.bar(index, first, size, 0x4_0101)
    }

    pub(crate) fn memory32(self, index: usize, first: u64, size: u64) -> Self {
        self.bar(index, first, size, 0x4_0200)
    }

    pub(crate) fn memory64(self, index: usize, first: u64, size: u64) -> Self {
        self.bar(index, first, size, 0x14_220c)
    }

    pub(crate) fn rom(self, first: u64, size: u64) -> Self {
        self.bar(6, first, size, 0x4_6200)
    }

    /// A standard capability: its id and what comes behind the pointer to the next one.
    pub(crate) fn capability(mut self, id: u8, content: &[u8]) -> Self {
        let at = self.next;
        self.config[6] |= 0x10;
        self.config[self.pointer] = u8::try_from(at).unwrap();
        self.config[at] = id;
        self.config[at + 2..at + 2 + content.len()].copy_from_slice(content);
        self.pointer = at + 1;
        self.next = (at + 2 + content.len()).next_multiple_of(4);
        self
    }

    pub(crate) fn power_management(self) -> Self {
        self.capability(0x01, &[3, 0, 0, 0, 0, 0])
    }

    /// MSI with 2^`log` vectors, 64-bit addresses and masks.
    pub(crate) fn msi(self, log: u8) -> Self {
        let mut content = vec![log << 1 | 0x80, 1];
        content.extend([0; 20]);
        self.capability(0x05, &content)
    }

    pub(crate) fn msi_x(self, vectors: u16, bar: u8, offset: u32) -> Self {
        let mut content = (vectors - 1).to_le_bytes().to_vec();
        content.extend((offset | u32::from(bar)).to_le_bytes());
        content.extend(((offset + 0x1000) | u32::from(bar)).to_le_bytes());
        self.capability(0x11, &content)
    }

    /// PCI Express, of version 2.
    pub(crate) fn express(self, kind: u8, function_level_reset: bool) -> Self {
        let mut content = vec![kind << 4 | 2, 0];
        content.extend((u32::from(function_level_reset) << 28).to_le_bytes());
        content.extend([0; 52]);
        let mut it = self.capability(0x10, &content);
        it.config.resize(4096, 0);
        it
    }

    /// An extended capability: its id and what comes behind its head.
    pub(crate) fn extended(mut self, id: u16, content: &[u8]) -> Self {
        self.config.resize(4096, 0);
        let at = self.next_extended;
        let [low, high] = id.to_le_bytes();
        self.config[at..at + 4].copy_from_slice(&[low, high, 1, 0]);
        self.config[at + 4..at + 4 + content.len()].copy_from_slice(content);
        if let Some(last) = self.last_extended {
            let [low, high] = u16::try_from(at << 4).unwrap().to_le_bytes();
            self.config[last + 2] |= low;
            self.config[last + 3] = high;
        }
        self.last_extended = Some(at);
        self.next_extended = (at + 4 + content.len()).next_multiple_of(4);
        self
    }

    /// Access control services as ports have them, on or off.
    pub(crate) fn acs(self, is_on: bool) -> Self {
        self.extended(0x000d, &[0x5f, 0, if is_on { 0x1d } else { 0 }, 0])
    }

    /// A serial number, which nobody may find in a collection.
    pub(crate) fn serial_number(self) -> Self {
        self.extended(0x0003, &[0x42; 8])
    }

    pub(super) fn insert(self, tree: &mut Tree) {
        let directory = format!("/sys/bus/pci/devices/{}", self.address);
        tree.insert_file(&format!("{directory}/config"), self.config);
        let lines = self
            .resources
            .iter()
            .map(|(first, last, flags)| format!("0x{first:016x} 0x{last:016x} 0x{flags:016x}\n"));
        tree.insert_file(&format!("{directory}/resource"), lines.collect::<String>());
        tree.insert_file(
            &format!("{directory}/numa_node"),
            format!("{}\n", self.node),
        );
        if let Some(driver) = self.driver {
            let target = format!("../../../bus/pci/drivers/{driver}");
            tree.insert_link(&format!("{directory}/driver"), &target);
        }
        if let Some(group) = self.group {
            let target = format!("../../../kernel/iommu_groups/{group}");
            tree.insert_link(&format!("{directory}/iommu_group"), &target);
        }
    }
}
