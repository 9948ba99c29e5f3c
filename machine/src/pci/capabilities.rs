//! Capabilities in configuration space.
//!
//! PCI Local Bus specification, "Capabilities List"; PCI Express Base specification, "PCI Express Extended Capabilities".

use std::collections::BTreeSet;

use crate::problem::Problem;

/// Where the pointer to the first capability is; CardBus bridges have it elsewhere.
const POINTER: usize = 0x34;
const CARDBUS_POINTER: usize = 0x14;
const STATUS: usize = 0x06;
/// Where capabilities may lie.
const FIRST: usize = 0x40;
const FIRST_EXTENDED: usize = 0x100;

/// Ids of capabilities.
const POWER_MANAGEMENT: u16 = 0x01;
const VITAL_PRODUCT_DATA: u16 = 0x03;
const MSI: u16 = 0x05;
const VENDOR: u16 = 0x09;
const SUBSYSTEM: u16 = 0x0d;
const PCI_EXPRESS: u16 = 0x10;
const MSI_X: u16 = 0x11;
const ADVANCED_FEATURES: u16 = 0x13;
/// Ids of extended capabilities.
const ERROR_REPORTING: u16 = 0x0001;
const VENDOR_EXTENDED: u16 = 0x000b;
const ALTERNATIVE_ROUTING: u16 = 0x000e;
const ADDRESS_TRANSLATION: u16 = 0x000f;
const PAGE_REQUEST: u16 = 0x0013;
const LATENCY_TOLERANCE: u16 = 0x0018;
const PROCESS_ADDRESS_SPACE: u16 = 0x001b;
const POWER_SUBSTATES: u16 = 0x001e;
const SERIAL_NUMBER: u16 = 0x0003;
const ACCESS_CONTROL: u16 = 0x000d;
const SR_IOV: u16 = 0x0010;

/// A capability: what it is and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability {
    /// Its id; those of extended capabilities are numbers of their own.
    pub id: u16,
    /// Whether it is an extended one.
    pub extended: bool,
    /// Its version; 0 for standard ones.
    pub version: u8,
    /// Where it is in configuration space.
    pub offset: u16,
    /// How many bytes it has: what the layout says for known ones, else all up to the next one, or to the end of the space.
    pub length: u16,
}

/// Message signalled interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Msi {
    /// How many vectors the function can have: a power of two, at most 32.
    pub vectors: u8,
    /// Whether addresses have 64 bits.
    pub has_64_bits: bool,
    /// Whether vectors can be masked.
    pub maskable: bool,
}

/// Message signalled interrupts with a table in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsiX {
    /// How many vectors the function has: at most 2048.
    pub vectors: u16,
    /// The BAR that the table is in.
    pub table_bar: u8,
    /// Where the table is in it: 16 bytes a vector.
    pub table_offset: u32,
    /// The BAR that the pending bits are in.
    pub pending_bar: u8,
    /// Where they are in it.
    pub pending_offset: u32,
}

/// What a function of PCI Express is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortKind {
    /// A device.
    Endpoint,
    /// A device within the root complex.
    IntegratedEndpoint,
    /// A root port.
    RootPort,
    /// The port of a switch towards the root.
    UpstreamPort,
    /// A port of a switch away from the root.
    DownstreamPort,
    /// A bridge to conventional PCI.
    PciBridge,
    /// A bridge from conventional PCI.
    ReverseBridge,
    /// A collector of events in the root complex.
    EventCollector,
    /// What the specification does not have.
    Unknown(u8),
}

/// Access control services: whether a port or function can be kept from talking to its neighbours directly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acs {
    /// What it can do: source validation in bit 0, translation blocking, request redirect, completion redirect, upstream
    /// forwarding, egress control, direct translated peer-to-peer in bit 6.
    pub capability: u16,
    /// What of this is on.
    pub control: u16,
}

/// What a function can do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// All of them: standard ones first, in the order of the lists.
    pub all: Vec<Capability>,
    /// MSI.
    pub msi: Option<Msi>,
    /// MSI-X.
    pub msi_x: Option<MsiX>,
    /// What it is in PCI Express; none for conventional PCI.
    pub express: Option<PortKind>,
    /// Whether it can be reset alone.
    pub function_level_reset: bool,
    /// Access control services.
    pub acs: Option<Acs>,
    /// Whether it can make virtual functions.
    pub sr_iov: bool,
}

fn byte(config: &[u8], offset: usize) -> Option<u8> {
    config.get(offset).copied()
}

fn word(config: &[u8], offset: usize) -> Option<u16> {
    let bytes = config.get(offset..)?.first_chunk()?;
    Some(u16::from_le_bytes(*bytes))
}

fn long(config: &[u8], offset: usize) -> Option<u32> {
    let bytes = config.get(offset..)?.first_chunk()?;
    Some(u32::from_le_bytes(*bytes))
}

/// Takes away what identifies one single device: its serial number.
pub(crate) fn scrub(config: &mut [u8]) {
    for (id, _, offset) in extended(config).unwrap_or_default() {
        if id == SERIAL_NUMBER
            && let Some(number) = config.get_mut(offset + 4..offset + 12)
        {
            number.fill(0);
        }
    }
}

impl Capabilities {
    /// Finds them in configuration space.
    ///
    /// # Errors
    /// When a list leads out of where it may be or runs in a circle, or when a capability is cut off.
    pub(super) fn parse(subject: &str, config: &[u8]) -> Result<Self, Problem> {
        let garbage = |what: String| Problem::garbage(subject, what);
        let standard = standard(config).map_err(garbage)?;
        let extended = extended(config).map_err(garbage)?;
        let mut starts: Vec<usize> = standard.iter().map(|(_, offset)| *offset).collect();
        starts.extend(extended.iter().map(|(_, _, offset)| *offset));
        starts.sort_unstable();
        let mut found = Self::default();
        let standard = standard
            .into_iter()
            .map(|(id, offset)| (id, 0, offset, false));
        let extended = extended.into_iter();
        let extended = extended.map(|(id, version, offset)| (id, version, offset, true));
        for (id, version, offset, is_extended) in standard.chain(extended) {
            let region_end = if is_extended {
                config.len()
            } else {
                FIRST_EXTENDED.min(config.len())
            };
            let next = starts.iter().find(|start| **start > offset);
            let room = next.map_or(region_end, |&next| next.min(region_end)) - offset;
            let known = match is_extended {
                false => found.take_standard(id, config, offset),
                true => found.take_extended(id, config, offset),
            };
            let known = known
                .ok_or_else(|| garbage(format!("the capability at {offset:#x} is cut off")))?;
            found.all.push(Capability {
                id,
                extended: is_extended,
                version,
                offset: u16::try_from(offset).unwrap_or(u16::MAX),
                length: u16::try_from(known.unwrap_or(room).min(room)).unwrap_or(u16::MAX),
            });
        }
        Ok(found)
    }

    /// Reads a capability; gives its length where the layout is known. None when it is cut off.
    #[allow(clippy::option_option)]
    fn take_standard(&mut self, id: u16, config: &[u8], at: usize) -> Option<Option<usize>> {
        let length = match id {
            MSI => {
                let control = word(config, at + 2)?;
                let (has_64_bits, maskable) = (control & 1 << 7 != 0, control & 1 << 8 != 0);
                self.msi = Some(Msi {
                    // 6 and 7 are reserved.
                    vectors: 1 << (control >> 1 & 7).min(5),
                    has_64_bits,
                    maskable,
                });
                match (has_64_bits, maskable) {
                    (false, false) => 10,
                    (true, false) => 14,
                    (false, true) => 20,
                    (true, true) => 24,
                }
            }
            MSI_X => {
                let (table, pending) = (long(config, at + 4)?, long(config, at + 8)?);
                self.msi_x = Some(MsiX {
                    vectors: (word(config, at + 2)? & 0x7ff) + 1,
                    table_bar: u8::try_from(table & 7).ok()?,
                    table_offset: table & !7,
                    pending_bar: u8::try_from(pending & 7).ok()?,
                    pending_offset: pending & !7,
                });
                12
            }
            PCI_EXPRESS => {
                let flags = word(config, at + 2)?;
                let device = long(config, at + 4)?;
                self.function_level_reset |= device & 1 << 28 != 0;
                let kind = port_kind(u8::try_from(flags >> 4 & 0xf).ok()?);
                self.express = Some(kind);
                // From the second version on, all have all registers.
                match (flags & 0xf, kind) {
                    (0 | 1, PortKind::RootPort | PortKind::EventCollector) => 0x24,
                    (0 | 1, _) => 0x1c,
                    _ => 0x3c,
                }
            }
            // It tells its own length.
            VENDOR => byte(config, at + 2)?.max(3).into(),
            ADVANCED_FEATURES => {
                self.function_level_reset |= byte(config, at + 3)? & 2 != 0;
                6
            }
            POWER_MANAGEMENT | VITAL_PRODUCT_DATA | SUBSYSTEM => 8,
            _ => return Some(None),
        };
        // It must be there as a whole.
        config.get(at..at + length).map(|_| Some(length))
    }

    #[allow(clippy::option_option)]
    fn take_extended(&mut self, id: u16, config: &[u8], at: usize) -> Option<Option<usize>> {
        let length = match id {
            ACCESS_CONTROL => {
                self.acs = Some(Acs {
                    capability: word(config, at + 4)?,
                    control: word(config, at + 6)?,
                });
                8
            }
            SR_IOV => {
                self.sr_iov = true;
                0x40
            }
            SERIAL_NUMBER => 12,
            ERROR_REPORTING => 0x48,
            ALTERNATIVE_ROUTING
            | ADDRESS_TRANSLATION
            | LATENCY_TOLERANCE
            | PROCESS_ADDRESS_SPACE => 8,
            PAGE_REQUEST | POWER_SUBSTATES => 16,
            // It tells its own length.
            VENDOR_EXTENDED => {
                let length = long(config, at + 4)? >> 20;
                usize::try_from(length).ok()?.max(8)
            }
            _ => return Some(None),
        };
        config.get(at..at + length).map(|_| Some(length))
    }
}

fn port_kind(kind: u8) -> PortKind {
    match kind {
        0 | 1 => PortKind::Endpoint,
        4 => PortKind::RootPort,
        5 => PortKind::UpstreamPort,
        6 => PortKind::DownstreamPort,
        7 => PortKind::PciBridge,
        8 => PortKind::ReverseBridge,
        9 => PortKind::IntegratedEndpoint,
        10 => PortKind::EventCollector,
        kind => PortKind::Unknown(kind),
    }
}

/// The standard list: ids and offsets.
fn standard(config: &[u8]) -> Result<Vec<(u16, usize)>, String> {
    let mut list = Vec::new();
    if word(config, STATUS).is_none_or(|status| status & 1 << 4 == 0) {
        return Ok(list);
    }
    let is_cardbus = byte(config, 0x0e).is_some_and(|kind| kind & 0x7f == 2);
    let pointer = if is_cardbus { CARDBUS_POINTER } else { POINTER };
    let mut seen = BTreeSet::new();
    let mut next = byte(config, pointer).unwrap_or(0);
    loop {
        // The two lowest bits are reserved.
        let offset = usize::from(next & !3);
        if offset == 0 {
            return Ok(list);
        }
        if offset < FIRST {
            return Err(format!("its list of capabilities leads to {offset:#x}"));
        }
        if !seen.insert(offset) {
            return Err(format!(
                "its list of capabilities is a circle at {offset:#x}"
            ));
        }
        let (Some(id), Some(following)) = (byte(config, offset), byte(config, offset + 1)) else {
            return Err(format!("its list of capabilities leads to {offset:#x}"));
        };
        list.push((id.into(), offset));
        next = following;
    }
}

/// The extended list: ids, versions and offsets. Empty without extended configuration space.
fn extended(config: &[u8]) -> Result<Vec<(u16, u8, usize)>, String> {
    let mut list = Vec::new();
    let mut seen = BTreeSet::new();
    let mut offset = FIRST_EXTENDED;
    while let Some(header) = long(config, offset) {
        // Nothing there, or nobody answers.
        if header == 0 || header == u32::MAX {
            return Ok(list);
        }
        if !seen.insert(offset) {
            return Err(format!(
                "its list of extended capabilities is a circle at {offset:#x}"
            ));
        }
        let [low, middle, _, _] = header.to_le_bytes();
        let version = u8::try_from(header >> 16 & 0xf).unwrap_or(0);
        list.push((u16::from_le_bytes([low, middle]), version, offset));
        offset = usize::try_from(header >> 20 & !3).unwrap_or(0);
        match offset {
            0 => return Ok(list),
            1..FIRST_EXTENDED => {
                return Err(format!(
                    "its list of extended capabilities leads to {offset:#x}"
                ));
            }
            _ => (),
        }
    }
    Ok(list)
}
