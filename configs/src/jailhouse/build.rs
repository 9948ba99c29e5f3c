//! A builder of Jailhouse's binary configurations, for tests: byte by byte from the documented layout.
//!
//! Invariant: it shares no definition with the reader, so that a mistake in one of them shows.

use proptest::prelude::*;

/// x86-64 by revision 14.
pub const X86: u8 = 0;

/// A memory region: `phys_start`, `virt_start`, `size`, `flags`.
pub type MemoryModel = [u64; 4];
/// A port range: `base`, `length`.
pub type PioModel = [u16; 2];
/// A PCI capability: `id`, `start`, `len`, `flags`.
pub type CapabilityModel = [u16; 4];

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CacheModel {
    pub start: u32,
    pub size: u32,
    pub kind: u8,
    pub flags: u16,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IrqchipModel {
    pub address: u64,
    pub id: u32,
    pub pin_base: u32,
    pub pin_bitmap: [u32; 4],
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceModel {
    pub kind: u8,
    pub iommu: u8,
    pub domain: u16,
    pub bdf: u16,
    pub bar_mask: [u32; 6],
    pub caps_start: u16,
    pub num_caps: u16,
    pub num_msi_vectors: u8,
    pub msi_flags: u8,
    pub num_msix_vectors: u16,
    pub msix_region_size: u16,
    pub msix_address: u64,
    pub shmem_regions_start: u32,
    pub shmem_dev_id: u8,
    pub shmem_peers: u8,
    pub shmem_protocol: u16,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConsoleModel {
    pub address: u64,
    pub size: u32,
    pub kind: u16,
    pub flags: u16,
    pub divider: u32,
    pub gate_nr: u32,
    pub clock_reg: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IommuModel {
    pub kind: u32,
    pub base: u64,
    pub size: u32,
    pub details: [u8; 12],
}

/// What the description of a cell says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CellModel {
    pub revision: u16,
    pub architecture: u8,
    pub name: [u8; 32],
    pub id: u32,
    pub flags: u32,
    pub stream_ids: u32,
    pub vpci_irq_base: u32,
    pub cpu_reset_address: u64,
    pub msg_reply_timeout: u64,
    pub console: ConsoleModel,
    pub cpu_set: Vec<u8>,
    pub memory: Vec<MemoryModel>,
    pub caches: Vec<CacheModel>,
    pub irqchips: Vec<IrqchipModel>,
    pub ports: Vec<PioModel>,
    pub devices: Vec<DeviceModel>,
    pub capabilities: Vec<CapabilityModel>,
}

/// What a system configuration says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SystemModel {
    pub flags: u32,
    pub hypervisor_memory: MemoryModel,
    pub debug_console: ConsoleModel,
    pub pci_mmconfig_base: u64,
    pub pci_mmconfig_end_bus: u8,
    pub pci_is_virtual: u8,
    pub pci_domain: u16,
    pub iommu_units: [IommuModel; 8],
    pub pm_timer_address: u16,
    pub apic_mode: u8,
    pub vtd_interrupt_limit: u32,
    pub tsc_khz: u32,
    pub apic_khz: u32,
    pub beyond_x86: [u8; 28],
    /// The root cell; its revision and architecture are those of the file.
    pub root: CellModel,
}

/// A name as the layout has it.
pub fn name(text: &str) -> [u8; 32] {
    let mut name = [0; 32];
    name[..text.len()].copy_from_slice(text.as_bytes());
    name
}

/// A file, and where its parts are.
#[derive(Clone, Debug, Default)]
pub struct Built {
    pub bytes: Vec<u8>,
    /// Name and beginning of each part.
    pub parts: Vec<(&'static str, usize)>,
}

impl Built {
    fn part(&mut self, name: &'static str) {
        self.parts.push((name, self.bytes.len()));
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    fn u8(&mut self, value: u8) {
        self.bytes.push(value);
    }

    fn u16(&mut self, value: u16) {
        self.bytes(&value.to_le_bytes());
    }

    fn u32(&mut self, value: u32) {
        self.bytes(&value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.bytes(&value.to_le_bytes());
    }

    fn memory(&mut self, memory: &MemoryModel) {
        for word in memory {
            self.u64(*word);
        }
    }

    fn console(&mut self, console: &ConsoleModel) {
        self.u64(console.address);
        self.u32(console.size);
        self.u16(console.kind);
        self.u16(console.flags);
        self.u32(console.divider);
        self.u32(console.gate_nr);
        self.u64(console.clock_reg);
    }

    fn preamble(&mut self, letters_of_13: &[u8; 6], letters_of_14: &[u8; 5], cell: &CellModel) {
        match cell.revision {
            13 => self.bytes(letters_of_13),
            _ => {
                self.bytes(letters_of_14);
                self.u8(cell.architecture);
            }
        }
        self.u16(cell.revision);
    }

    fn cell_behind_preamble(&mut self, cell: &CellModel) {
        self.bytes(&cell.name);
        self.u32(cell.id);
        self.u32(cell.flags);
        for count in [
            cell.cpu_set.len(),
            cell.memory.len(),
            cell.caches.len(),
            cell.irqchips.len(),
            cell.ports.len(),
            cell.devices.len(),
            cell.capabilities.len(),
        ] {
            self.u32(count as u32);
        }
        self.u32(cell.stream_ids);
        self.u32(cell.vpci_irq_base);
        self.u64(cell.cpu_reset_address);
        self.u64(cell.msg_reply_timeout);
        self.console(&cell.console);
        self.arrays(cell);
    }

    fn arrays(&mut self, cell: &CellModel) {
        self.part("cpus");
        self.bytes(&cell.cpu_set);
        self.part("mem_regions");
        for memory in &cell.memory {
            self.memory(memory);
        }
        self.part("cache_regions");
        for cache in &cell.caches {
            self.u32(cache.start);
            self.u32(cache.size);
            self.u8(cache.kind);
            self.u8(0);
            self.u16(cache.flags);
        }
        self.part("irqchips");
        for chip in &cell.irqchips {
            self.u64(chip.address);
            self.u32(chip.id);
            self.u32(chip.pin_base);
            for word in chip.pin_bitmap {
                self.u32(word);
            }
        }
        self.part("pio_regions");
        for [base, length] in &cell.ports {
            self.u16(*base);
            self.u16(*length);
        }
        self.part("pci_devices");
        for device in &cell.devices {
            self.device(device);
        }
        self.part("pci_caps");
        for capability in &cell.capabilities {
            for field in capability {
                self.u16(*field);
            }
        }
    }

    fn device(&mut self, device: &DeviceModel) {
        self.u8(device.kind);
        self.u8(device.iommu);
        self.u16(device.domain);
        self.u16(device.bdf);
        for mask in device.bar_mask {
            self.u32(mask);
        }
        self.u16(device.caps_start);
        self.u16(device.num_caps);
        self.u8(device.num_msi_vectors);
        self.u8(device.msi_flags);
        self.u16(device.num_msix_vectors);
        self.u16(device.msix_region_size);
        self.u64(device.msix_address);
        self.u32(device.shmem_regions_start);
        self.u8(device.shmem_dev_id);
        self.u8(device.shmem_peers);
        self.u16(device.shmem_protocol);
    }
}

impl CellModel {
    /// The cell configuration.
    pub fn build(&self) -> Built {
        let mut built = Built::default();
        built.part("cell");
        built.preamble(b"JHCELL", b"JHCLL", self);
        built.cell_behind_preamble(self);
        built
    }
}

impl SystemModel {
    /// The system configuration.
    pub fn build(&self) -> Built {
        let mut built = Built::default();
        built.part("header");
        built.preamble(b"JHSYST", b"JHSYS", &self.root);
        built.u32(self.flags);
        built.memory(&self.hypervisor_memory);
        built.console(&self.debug_console);
        built.u64(self.pci_mmconfig_base);
        built.u8(self.pci_mmconfig_end_bus);
        built.u8(self.pci_is_virtual);
        built.u16(self.pci_domain);
        for unit in &self.iommu_units {
            built.u32(unit.kind);
            built.u64(unit.base);
            built.u32(unit.size);
            built.bytes(&unit.details);
        }
        built.u16(self.pm_timer_address);
        built.u8(self.apic_mode);
        built.u8(0);
        built.u32(self.vtd_interrupt_limit);
        built.u32(self.tsc_khz);
        built.u32(self.apic_khz);
        built.bytes(&self.beyond_x86);
        built.part("root_cell");
        built.bytes(&[0; 8]);
        built.cell_behind_preamble(&self.root);
        built
    }
}

fn any_console() -> impl Strategy<Value = ConsoleModel> {
    (any::<(u64, u32, u16, u32, u32, u64)>(), 0..3u16).prop_map(|(numbers, kind)| {
        let (address, size, flags, divider, gate_nr, clock_reg) = numbers;
        ConsoleModel {
            address,
            size,
            kind,
            flags,
            divider,
            gate_nr,
            clock_reg,
        }
    })
}

fn any_device(regions: usize, capabilities: usize) -> impl Strategy<Value = DeviceModel> {
    let kinds = 1..=if regions < 2 { 2u8 } else { 3 };
    let numbers = any::<(u8, u16, u16, [u32; 6], u8, u8, u16, u16, u64)>();
    let indexes = (
        0..=capabilities,
        0..=capabilities,
        0..=regions,
        any::<(u8, u16)>(),
    );
    (kinds, numbers, indexes).prop_map(move |(kind, numbers, indexes)| {
        let (
            iommu,
            domain,
            bdf,
            bar_mask,
            num_msi_vectors,
            msi_flags,
            num_msix_vectors,
            msix_region_size,
            msix_address,
        ) = numbers;
        let (caps_start, caps_end, regions_start, (shmem_dev_id, shmem_protocol)) = indexes;
        let is_shared_memory = kind == 3;
        let regions_start = regions_start.min(regions.saturating_sub(2));
        DeviceModel {
            kind,
            iommu,
            domain,
            bdf,
            bar_mask,
            caps_start: caps_start.min(caps_end) as u16,
            num_caps: caps_start.abs_diff(caps_end) as u16,
            num_msi_vectors,
            msi_flags,
            num_msix_vectors,
            msix_region_size,
            msix_address,
            shmem_regions_start: if is_shared_memory {
                regions_start as u32
            } else {
                0
            },
            shmem_dev_id,
            shmem_peers: if is_shared_memory {
                (regions - 2 - regions_start) as u8
            } else {
                0
            },
            shmem_protocol,
        }
    })
}

/// Any cell that can be read, whatever it may be good for.
pub fn any_cell() -> impl Strategy<Value = CellModel> {
    let cache = any::<(u32, u32, u8, u16)>().prop_map(|(start, size, kind, flags)| CacheModel {
        start,
        size,
        kind,
        flags,
    });
    let chip = any::<(u64, u32, [u32; 4])>().prop_map(|(address, id, pin_bitmap)| IrqchipModel {
        address,
        id,
        pin_base: 0,
        pin_bitmap,
    });
    let sizes = (0..8usize, 0..8usize);
    let header = (
        any::<([u8; 32], u32, u32, u32, u64, u64)>(),
        any_console(),
        13..=14u16,
    );
    (sizes, header).prop_flat_map(move |((regions, capabilities), header)| {
        let arrays = (
            proptest::collection::vec(any::<u8>(), 0..40),
            proptest::collection::vec(any::<MemoryModel>(), regions),
            proptest::collection::vec(cache.clone(), 0..3),
            proptest::collection::vec(chip.clone(), 0..3),
            proptest::collection::vec(any::<PioModel>(), 0..8),
            proptest::collection::vec(any_device(regions, capabilities), 0..5),
            proptest::collection::vec(any::<CapabilityModel>(), capabilities),
        );
        (Just(header), arrays).prop_map(|((numbers, console, revision), arrays)| {
            let (name, id, flags, vpci_irq_base, cpu_reset_address, msg_reply_timeout) = numbers;
            let (cpu_set, memory, caches, irqchips, ports, devices, capabilities) = arrays;
            CellModel {
                revision,
                architecture: X86,
                name,
                id,
                flags: flags & !4,
                stream_ids: 0,
                vpci_irq_base,
                cpu_reset_address,
                msg_reply_timeout,
                console,
                cpu_set,
                memory,
                caches,
                irqchips,
                ports,
                devices,
                capabilities,
            }
        })
    })
}

/// Any system that can be read.
pub fn any_system() -> impl Strategy<Value = SystemModel> {
    let unit =
        (0..3u32, any::<(u64, u32, [u8; 12])>()).prop_map(|(kind, (base, size, details))| {
            IommuModel {
                kind,
                base,
                size,
                details,
            }
        });
    let platform = any::<(u64, u8, u8, u16, u16, u8, u32, u32, u32)>();
    let header = (any::<(u32, MemoryModel)>(), any_console(), platform);
    let units = proptest::array::uniform8(unit);
    (header, units, any_cell()).prop_map(|(header, iommu_units, root)| {
        let ((flags, hypervisor_memory), debug_console, platform) = header;
        SystemModel {
            flags,
            hypervisor_memory,
            debug_console,
            pci_mmconfig_base: platform.0,
            pci_mmconfig_end_bus: platform.1,
            pci_is_virtual: platform.2,
            pci_domain: platform.3,
            iommu_units,
            pm_timer_address: platform.4,
            apic_mode: platform.5,
            vtd_interrupt_limit: platform.6,
            tsc_khz: platform.7,
            apic_khz: platform.8,
            beyond_x86: [0; 28],
            root,
        }
    })
}
