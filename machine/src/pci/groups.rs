//! Isolation groups: functions that no remapping of DMA can keep apart, since they can reach each other without it.
//!
//! Invariant: whoever shares a group by one of the rules shares it in the end; groups only ever grow.

use std::collections::BTreeMap;

use super::{Address, Function, Pci, PortKind};

/// Where groups come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GroupsFrom {
    /// Linux' IOMMU groups, with Linux' numbers.
    Linux,
    /// The topology of the buses, numbered in the order of addresses: Linux drives no IOMMU, or not for all functions.
    #[default]
    Topology,
}

/// Sets that merge.
struct Sets(Vec<usize>);

impl Sets {
    fn find(&self, mut member: usize) -> usize {
        while let Some(&parent) = self.0.get(member)
            && parent != member
        {
            member = parent;
        }
        member
    }

    fn merge(&mut self, one: usize, other: usize) {
        let (one, other) = (self.find(one), self.find(other));
        // The lower one stays, so that sets are in the order of their first members.
        if let Some(parent) = self.0.get_mut(one.max(other)) {
            *parent = one.min(other);
        }
    }
}

impl Pci {
    /// Puts every function into its group. `linux` has the groups that Linux made, in the order of the functions.
    pub(super) fn assign_groups(&mut self, linux: &[Option<u32>]) {
        let all: Option<Vec<u32>> = linux.iter().copied().collect();
        if let Some(groups) = all.filter(|groups| groups.len() == self.functions.len()) {
            for (function, group) in self.functions.iter_mut().zip(groups) {
                function.group = group;
            }
            self.groups_from = GroupsFrom::Linux;
            return;
        }
        let sets = self.sets_of_topology(linux);
        let mut numbers = BTreeMap::new();
        for (index, function) in self.functions.iter_mut().enumerate() {
            let next = u32::try_from(numbers.len()).unwrap_or(u32::MAX);
            function.group = *numbers.entry(sets.find(index)).or_insert(next);
        }
        self.groups_from = GroupsFrom::Topology;
    }

    fn sets_of_topology(&self, linux: &[Option<u32>]) -> Sets {
        let indices = self.functions.iter().enumerate();
        let indices: BTreeMap<Address, usize> = indices
            .map(|(index, function)| (function.address, index))
            .collect();
        let mut sets = Sets((0..self.functions.len()).collect());
        let mut of_linux: BTreeMap<u32, usize> = BTreeMap::new();
        // Functions of a multi-function device that can reach each other, by the device.
        let mut of_devices: BTreeMap<(u16, u8, u8), usize> = BTreeMap::new();
        for (index, function) in self.functions.iter().enumerate() {
            // What is behind a bridge that does not keep it from its neighbours, or that speaks in its name.
            if let Some(parent) = self.parent(function.address)
                && !self.is_isolated_up_to_root(parent)
                && let Some(&parent) = indices.get(&parent.address)
            {
                sets.merge(index, parent);
            }
            let Address {
                segment,
                bus,
                device,
                ..
            } = function.address;
            if !isolates(function, self.is_multifunction(function)) {
                let first = *of_devices.entry((segment, bus, device)).or_insert(index);
                sets.merge(first, index);
            }
            if let Some(group) = linux.get(index).copied().flatten() {
                let first = *of_linux.entry(group).or_insert(index);
                sets.merge(first, index);
            }
        }
        sets
    }

    /// Whether all ports from this one up to the root complex send what comes from below upwards only.
    fn is_isolated_up_to_root(&self, bridge: &Function) -> bool {
        let mut bridge = bridge;
        // Each step goes to a bus that is numbered lower, else the numbers make no sense.
        loop {
            if !isolates(bridge, self.is_multifunction(bridge)) {
                return false;
            }
            match self.parent(bridge.address) {
                None => return true,
                Some(parent) if parent.address.bus < bridge.address.bus => bridge = parent,
                Some(_) => return false,
            }
        }
    }

    /// Whether there are other functions of the same device.
    fn is_multifunction(&self, function: &Function) -> bool {
        let Address {
            segment,
            bus,
            device,
            ..
        } = function.address;
        self.functions.iter().any(|other| {
            let it = other.address;
            (it.segment, it.bus, it.device) == (segment, bus, device) && it != function.address
        })
    }
}

/// Whether a function sends everything towards the root complex, where remapping is, once its access control services
/// are on (PCI Express Base specification, "Access Control Services"). What is not among a function's services it does
/// not do at all: the specification demands those that can be controlled.
fn isolates(function: &Function, is_multifunction: bool) -> bool {
    let has_services = function.capabilities.acs.is_some();
    match function.capabilities.express {
        // Ports route between what is below them.
        Some(PortKind::RootPort | PortKind::DownstreamPort) => has_services,
        // These may not have access control services: they have one requester id for all behind them, or none.
        Some(PortKind::PciBridge | PortKind::ReverseBridge) => false,
        // A function alone in its device has nobody to talk to but the port above; so has a switch.
        Some(PortKind::UpstreamPort) if !is_multifunction => true,
        _ if !is_multifunction && !function.is_bridge() => true,
        Some(_) => has_services,
        // Conventional PCI is a bus: functions of a device, and what is behind a bridge, hear each other.
        None => false,
    }
}
