//! Where the values of a configuration stand in its file.
//!
//! Invariant: each list here has one element for each element of the array of the same name in the binary form, in the
//! same order; all of them are empty, and all single places missing, for a binary file.

use toml::Spanned;

use crate::problem::Place;
use crate::schema::{CellFile, DeviceTable, MemoryTable, MsrTable};

/// Where the values of a cell file stand; all are missing for a binary file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CellPlaces {
    /// `name`.
    pub name: Option<Place>,
    /// `cpus`, as a whole.
    pub cpus: Option<Place>,
    /// Each CPU and its place.
    pub each_cpu: Vec<(u64, Place)>,
    /// `reset-address`; else that of the name.
    pub reset_address: Option<Place>,
    /// Each memory region.
    pub memory: Vec<RegionPlaces>,
    /// Each port range.
    pub ports: Vec<Place>,
    /// Each PCI function.
    pub devices: Vec<DevicePlaces>,
    /// `unprotected-dma`.
    pub unprotected_dma: Option<Place>,
    /// Each interrupt line.
    pub interrupts: Vec<Place>,
    /// `l3` of `[cache-ways]`.
    pub l3_ways: Option<Place>,
    /// `l2` of `[cache-ways]`.
    pub l2_ways: Option<Place>,
    /// Each MSR.
    pub msrs: Vec<MsrPlaces>,
}

/// Where the values of a memory region stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionPlaces {
    /// `name`.
    pub name: Place,
    /// `at`.
    pub at: Place,
    /// `size`.
    pub size: Option<Place>,
    /// `physical`.
    pub physical: Option<Place>,
    /// `access`.
    pub access: Option<Place>,
    /// `kind`.
    pub kind: Option<Place>,
    /// `cache`.
    pub cache: Option<Place>,
    /// `widths`.
    pub widths: Option<Place>,
    /// `loadable`.
    pub loadable: Option<Place>,
    /// `shared`.
    pub shared: Option<Place>,
    /// `shared-with-root`.
    pub shared_with_root: Option<Place>,
    /// `dma`.
    pub dma: Option<Place>,
}

/// Where the values of a PCI function of a cell stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DevicePlaces {
    /// `address` or `id`, whichever is there.
    pub function: Place,
    /// `vectors`.
    pub vectors: Option<Place>,
}

/// Where the values of an MSR stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MsrPlaces {
    /// `index`.
    pub index: Place,
    /// `access`.
    pub access: Option<Place>,
    /// `write-mask`.
    pub write_mask: Option<Place>,
}

/// Where the values of a system file stand; all are missing for a binary file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SystemPlaces {
    /// `name`.
    pub name: Option<Place>,
    /// `memory` of `[hypervisor]`.
    pub hypervisor_memory: Option<Place>,
    /// `address` of `[hypervisor]`.
    pub hypervisor_address: Option<Place>,
    /// `port` of the console's UART.
    pub console_port: Option<Place>,
    /// `policy` of `[root]`.
    pub policy: Option<Place>,
    /// Each memory region of the root cell.
    pub root_memory: Vec<RegionPlaces>,
    /// Each MSR of the root cell.
    pub root_msrs: Vec<MsrPlaces>,
    /// Each port range of the root cell.
    pub root_ports: Vec<Place>,
    /// `[machine]`.
    pub machine: Option<Place>,
    /// `l3-ways` of the machine.
    pub l3_ways: Option<Place>,
    /// `l2-ways` of the machine.
    pub l2_ways: Option<Place>,
    /// Each CPU of the machine.
    pub cpus: Vec<Place>,
    /// Each range of addresses of the machine.
    pub ranges: Vec<Place>,
    /// Each PCI function of the machine, in the order of the binary form.
    pub devices: Vec<Place>,
    /// Each base address register of the machine, in the order of the binary form.
    pub bars: Vec<Place>,
}

/// The place of a value that may be missing.
pub(super) fn place<T>(value: &Option<Spanned<T>>) -> Option<Place> {
    value.as_ref().map(Spanned::span)
}

impl RegionPlaces {
    pub(super) fn of(table: &MemoryTable) -> Self {
        Self {
            name: table.name.span(),
            at: table.at.span(),
            size: place(&table.size),
            physical: place(&table.physical),
            access: place(&table.access),
            kind: place(&table.kind),
            cache: place(&table.cache),
            widths: place(&table.widths),
            loadable: place(&table.loadable),
            shared: place(&table.shared),
            shared_with_root: place(&table.shared_with_root),
            dma: place(&table.dma),
        }
    }
}

impl DevicePlaces {
    fn of(entry: &Spanned<DeviceTable>) -> Self {
        let table = entry.get_ref();
        Self {
            function: place(&table.address)
                .or_else(|| place(&table.id))
                .unwrap_or_else(|| entry.span()),
            vectors: place(&table.vectors),
        }
    }
}

impl MsrPlaces {
    pub(super) fn of(table: &MsrTable) -> Self {
        Self {
            index: table.index.span(),
            access: place(&table.access),
            write_mask: place(&table.write_mask),
        }
    }
}

impl CellPlaces {
    pub(super) fn of(file: &CellFile) -> Self {
        let ways = file.cache_ways.as_ref();
        Self {
            name: Some(file.name.span()),
            cpus: Some(file.cpus.span()),
            each_cpu: file
                .cpus
                .get_ref()
                .iter()
                .map(|cpu| (cpu.get_ref().0, cpu.span()))
                .collect(),
            reset_address: Some(place(&file.reset_address).unwrap_or_else(|| file.name.span())),
            memory: file
                .memory
                .iter()
                .map(|table| RegionPlaces::of(table.get_ref()))
                .collect(),
            ports: file.ports.iter().map(Spanned::span).collect(),
            devices: file.devices.iter().map(DevicePlaces::of).collect(),
            unprotected_dma: place(&file.unprotected_dma),
            interrupts: file.interrupts.iter().map(Spanned::span).collect(),
            l3_ways: ways.and_then(|ways| place(&ways.l3)),
            l2_ways: ways.and_then(|ways| place(&ways.l2)),
            msrs: file
                .msrs
                .iter()
                .map(|table| MsrPlaces::of(table.get_ref()))
                .collect(),
        }
    }
}
