//! PCI functions as Linux found them: configuration space, BARs, capabilities, drivers, and who must stay together.
//!
//! Invariants: functions are sorted by address; lists of capabilities end, whatever they hold; every function is in
//! exactly one group.

pub(crate) mod capabilities;
mod groups;
mod read;

#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;

use crate::span::Span;

pub use capabilities::{Acs, Capabilities, Capability, Msi, MsiX, PortKind};
pub use groups::GroupsFrom;

/// The address of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// Segment, which Linux calls domain.
    pub segment: u16,
    /// Bus.
    pub bus: u8,
    /// Device, below 32.
    pub device: u8,
    /// Function, below 8.
    pub function: u8,
}

impl Address {
    /// Bus, device and function as one number.
    #[must_use]
    pub fn requester_id(&self) -> u16 {
        u16::from_be_bytes([self.bus, self.device << 3 | self.function])
    }
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            segment,
            bus,
            device,
            function,
        } = self;
        write!(formatter, "{segment:04x}:{bus:02x}:{device:02x}.{function}")
    }
}

impl FromStr for Address {
    type Err = String;

    /// Parses "0000:00:1f.3", or without the segment "00:1f.3".
    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (front, function) = text.split_once('.')?;
            let mut parts = front.rsplit(':');
            let hexadecimal = |part: &str, digits: usize| {
                let is_good = (1..=digits).contains(&part.len())
                    && part.bytes().all(|byte| byte.is_ascii_hexdigit());
                is_good
                    .then(|| u16::from_str_radix(part, 16).ok())
                    .flatten()
            };
            let device = hexadecimal(parts.next()?, 2)?;
            let bus = hexadecimal(parts.next()?, 2)?;
            let segment = parts.next().map_or(Some(0), |part| hexadecimal(part, 4))?;
            let function = hexadecimal(function, 1)?;
            let is_good = device < 32 && function < 8 && parts.next().is_none();
            is_good.then_some(Self {
                segment,
                bus: u8::try_from(bus).ok()?,
                device: u8::try_from(device).ok()?,
                function: u8::try_from(function).ok()?,
            })
        };
        parse().ok_or_else(|| format!("{text:?} is no PCI address such as 0000:00:1f.3"))
    }
}

/// What a BAR decodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarKind {
    /// I/O ports.
    Io,
    /// Memory, with a 32-bit address.
    Memory32,
    /// Memory, with a 64-bit address: it takes the place of two BARs.
    Memory64,
}

/// A base address register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// Its number, from 0 to 5.
    pub index: u8,
    /// What it decodes.
    pub kind: BarKind,
    /// Whether reads have no side effects.
    pub prefetchable: bool,
    /// Addresses or ports, as the processors see them. Starts at 0 when Linux gave it none.
    pub span: Span,
}

/// What a bridge has behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bridge {
    /// The bus that it is on.
    pub primary: u8,
    /// The bus right behind it; 0 when it was not set up.
    pub secondary: u8,
    /// The last bus behind it.
    pub subordinate: u8,
}

/// A function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Where it is.
    pub address: Address,
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Base class, subclass and programming interface: 0x020000 for Ethernet.
    pub class: u32,
    /// Revision.
    pub revision: u8,
    /// Vendor and device id of the subsystem; none for bridges.
    pub subsystem: Option<(u16, u16)>,
    /// Layout of the header: 0 for devices, 1 for bridges, 2 for CardBus bridges.
    pub header_type: u8,
    /// Whether the device says that it has several functions.
    pub is_multifunction: bool,
    /// What is behind it, for bridges.
    pub bridge: Option<Bridge>,
    /// The BARs that are there.
    pub bars: Vec<Bar>,
    /// Expansion ROM; none when there is none, or Linux gave it no address.
    pub rom: Option<Span>,
    /// Bytes of configuration space that can be read: 256 or 4096.
    pub config_size: u16,
    /// What it can do.
    pub capabilities: Capabilities,
    /// Linux' driver that is bound to it.
    pub driver: Option<String>,
    /// NUMA node it is near to; none when it is not told.
    pub node: Option<u32>,
    /// The isolation group, see [`Pci::groups_from`]: functions of one group can't be kept apart.
    pub group: u32,
}

impl Function {
    /// "8086:10d3", as configurations name it.
    #[must_use]
    pub fn id(&self) -> String {
        format!("{:04x}:{:04x}", self.vendor, self.device)
    }

    /// Whether it is a bridge between PCI buses, of any kind.
    #[must_use]
    pub fn is_bridge(&self) -> bool {
        self.bridge.is_some()
    }
}

/// All functions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pci {
    /// By address.
    pub functions: Vec<Function>,
    /// Where the groups come from.
    pub groups_from: GroupsFrom,
    /// Functions in domains that Linux made up (behind a volume management device): they belong to that device, and have
    /// no segment. By Linux' name.
    pub left_out: Vec<String>,
}

impl Pci {
    /// The function at an address.
    #[must_use]
    pub fn get(&self, address: Address) -> Option<&Function> {
        let found = self
            .functions
            .binary_search_by_key(&address, |function| function.address);
        self.functions.get(found.ok()?)
    }

    /// The bridge that a function is behind; none on a root bus.
    #[must_use]
    pub fn parent(&self, address: Address) -> Option<&Function> {
        self.bridge_to(address.segment, address.bus)
            .filter(|bridge| bridge.address.bus != address.bus)
    }

    /// The bridge whose secondary bus this is.
    fn bridge_to(&self, segment: u16, bus: u8) -> Option<&Function> {
        self.functions.iter().find(|function| {
            function.address.segment == segment
                && function
                    .bridge
                    .is_some_and(|bridge| bridge.secondary == bus && bus != 0)
        })
    }

    /// The bridge that may speak for a function, since conventional PCI is somewhere on the way from it to the root complex;
    /// of several the one nearest to the root complex, whose name is what arrives there. None where all on the way are
    /// ports of PCI Express: these pass on who speaks.
    ///
    /// VT-d specification, "Source Identifier"; PCI Express to PCI/PCI-X Bridge specification, "Transaction Ownership".
    #[must_use]
    pub fn speaker(&self, address: Address) -> Option<&Function> {
        let mut speaker = None;
        let mut at = address;
        while let Some(bridge) = self.parent(at) {
            let is_port = matches!(
                bridge.capabilities.express,
                Some(PortKind::RootPort | PortKind::UpstreamPort | PortKind::DownstreamPort)
            );
            if !is_port {
                speaker = Some(bridge);
            }
            // Each step goes to a bus that is numbered lower, else the numbers make no sense.
            if bridge.address.bus >= at.bus {
                break;
            }
            at = bridge.address;
        }
        speaker
    }

    /// The members of a group, by address.
    pub fn group(&self, group: u32) -> impl Iterator<Item = &Function> {
        self.functions.iter().filter(move |it| it.group == group)
    }

    /// Where a path of devices and functions leads that begins on a bus: each but the last is a bridge.
    ///
    /// None when one of the bridges is not there.
    #[must_use]
    pub fn resolve(&self, segment: u16, start_bus: u8, path: &[(u8, u8)]) -> Option<Address> {
        let (&(device, function), bridges) = path.split_last()?;
        let mut bus = start_bus;
        for &(device, function) in bridges {
            let address = Address {
                segment,
                bus,
                device,
                function,
            };
            bus = self.get(address)?.bridge?.secondary;
        }
        Some(Address {
            segment,
            bus,
            device,
            function,
        })
    }

    /// Whether `address` is the bridge at `ancestor`, or anywhere behind it.
    #[must_use]
    pub fn is_at_or_behind(&self, address: Address, ancestor: Address) -> bool {
        if address == ancestor {
            return true;
        }
        let bridge = self.get(ancestor).and_then(|function| function.bridge);
        address.segment == ancestor.segment
            && bridge.is_some_and(|bridge| {
                bridge.secondary != 0
                    && (bridge.secondary..=bridge.subordinate).contains(&address.bus)
            })
    }
}
