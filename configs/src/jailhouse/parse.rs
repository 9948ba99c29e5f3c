//! The reader of Jailhouse's binary configurations.
//!
//! Invariant: no input makes it panic; nothing is copied; what it returns has every array that its header counts, and
//! every index in it points at something.

use core::mem::offset_of;

use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::damage::{Damage, Fault};
use super::layout::{
    ARCHITECTURE_X86, CELL_AARCH32, CELL_SIGNATURE_13, CELL_SIGNATURE_14, CONSOLE_8250, Cache,
    CellHeader, Console, FIRST_ARM_CONSOLE, FIRST_ARM_IOMMU, IOMMU_INTEL, IVSHMEM_COMMON_REGIONS,
    Iommu, Irqchip, LAST_ARM_CONSOLE, LAST_ARM_IOMMU, Memory, NAME_BYTES, PCI_TYPE_BRIDGE,
    PCI_TYPE_DEVICE, PCI_TYPE_IVSHMEM, PciCapability, PciDevice, Pio, Platform, Preamble,
    SYSTEM_SIGNATURE_13, SYSTEM_SIGNATURE_14, SystemHeader,
};

/// Most bytes of a file; those of the largest machines have some ten thousands.
pub const MAX_FILE_SIZE: usize = 1 << 20;
/// Most bytes of a CPU bitmap: 8192 CPUs.
pub const MAX_CPU_SET_SIZE: u64 = 1024;
/// Most memory regions.
pub const MAX_MEMORY_REGIONS: u64 = 1024;
/// Most cache regions.
pub const MAX_CACHE_REGIONS: u64 = 256;
/// Most IOAPICs.
pub const MAX_IRQCHIPS: u64 = 256;
/// Most port ranges.
pub const MAX_PIO_REGIONS: u64 = 1024;
/// Most PCI devices.
pub const MAX_PCI_DEVICES: u64 = 4096;
/// Most PCI capabilities: more can not be numbered.
pub const MAX_PCI_CAPS: u64 = 65535;

/// The revisions that can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Revision {
    /// 13: the file does not say what architecture it is for.
    Thirteen,
    /// 14.
    Fourteen,
}

/// A file of either kind.
#[derive(Clone, Copy, Debug)]
pub enum Blob<'a> {
    /// The hypervisor, the machine and the root cell.
    System(SystemBlob<'a>),
    /// Another cell.
    Cell(CellBlob<'a>),
}

/// A system configuration.
#[derive(Clone, Copy, Debug)]
pub struct SystemBlob<'a> {
    /// Everything but the root cell.
    pub header: &'a SystemHeader,
    /// The root cell.
    pub root: CellBlob<'a>,
}

/// The configuration of a cell, or the part of the system configuration that is about the root cell.
#[derive(Clone, Copy, Debug)]
pub struct CellBlob<'a> {
    /// Revision of the file.
    pub revision: Revision,
    /// What stands before the arrays.
    pub header: &'a CellHeader,
    /// Bit n of byte n / 8: CPU n.
    pub cpu_set: &'a [u8],
    /// Memory regions.
    pub memory: &'a [Memory],
    /// Parts of the cache.
    pub caches: &'a [Cache],
    /// IOAPICs.
    pub irqchips: &'a [Irqchip],
    /// Port ranges.
    pub ports: &'a [Pio],
    /// PCI devices.
    pub devices: &'a [PciDevice],
    /// PCI capabilities of all devices.
    pub capabilities: &'a [PciCapability],
    /// Bytes of the file behind the last array.
    pub surplus: usize,
}

impl CellBlob<'_> {
    /// The bytes of the name before the first zero.
    #[must_use]
    pub fn name(&self) -> &[u8] {
        let name = &self.header.name;
        name.split(|byte| *byte == 0).next().unwrap_or(name)
    }

    /// The CPUs in ascending order.
    pub fn cpus(&self) -> impl Iterator<Item = u32> {
        let bytes = self.cpu_set.iter().zip((0..).step_by(8));
        bytes.flat_map(|(byte, first)| {
            (0..8)
                .filter(move |bit| byte >> bit & 1 != 0)
                .map(move |bit| first + bit)
        })
    }
}

impl Irqchip {
    /// The pins that belong to the cell, in ascending order.
    pub fn pins(&self) -> impl Iterator<Item = u32> {
        let words = self.pin_bitmap.iter().zip((0..).step_by(32));
        words.flat_map(|(word, first)| {
            let word = word.get();
            (0..32)
                .filter(move |bit| word >> bit & 1 != 0)
                .map(move |bit| first + bit)
        })
    }
}

/// Reads a file.
///
/// # Errors
/// The first thing that is wrong with it.
pub fn parse(bytes: &[u8]) -> Result<Blob<'_>, Damage> {
    if bytes.len() > MAX_FILE_SIZE {
        let most = MAX_FILE_SIZE;
        return Err(damage("file", 0, Fault::TooLarge { most }));
    }
    let mut cursor = Cursor {
        rest: bytes,
        offset: 0,
    };
    let preamble: &Preamble = cursor.peek("signature")?;
    match kind(preamble)? {
        (Kind::System, revision) => {
            let header: &SystemHeader = cursor.take("header")?;
            check_system(header)?;
            let root = cell(&mut cursor, revision, "root_cell")?;
            Ok(Blob::System(SystemBlob { header, root }))
        }
        (Kind::Cell, revision) => cell(&mut cursor, revision, "cell").map(Blob::Cell),
    }
}

fn damage(field: impl Into<String>, offset: usize, fault: Fault) -> Damage {
    Damage {
        field: field.into(),
        offset,
        fault,
    }
}

enum Kind {
    System,
    Cell,
}

fn kind(preamble: &Preamble) -> Result<(Kind, Revision), Damage> {
    let sixth = preamble.architecture_or_letter;
    let revision = preamble.revision.get();
    let kind = match preamble.signature {
        // The letters that the system configurations of both revisions begin with.
        SYSTEM_SIGNATURE_14 => Kind::System,
        CELL_SIGNATURE_14 => Kind::Cell,
        signature if CELL_SIGNATURE_13.starts_with(&signature) => Kind::Cell,
        [a, b, c, d, e] => {
            let [low, high] = preamble.revision.to_bytes();
            let found = [a, b, c, d, e, sixth, low, high];
            return Err(damage("signature", 0, Fault::WrongSignature { found }));
        }
    };
    let signature_of_13 = match kind {
        Kind::System => SYSTEM_SIGNATURE_13,
        Kind::Cell => CELL_SIGNATURE_13,
    };
    let signature_of_14 = match kind {
        Kind::System => SYSTEM_SIGNATURE_14,
        Kind::Cell => CELL_SIGNATURE_14,
    };
    match revision {
        13 if signature_of_13.starts_with(&preamble.signature)
            && signature_of_13.ends_with(&[sixth]) =>
        {
            Ok((kind, Revision::Thirteen))
        }
        14 if preamble.signature == signature_of_14 && sixth == ARCHITECTURE_X86 => {
            Ok((kind, Revision::Fourteen))
        }
        14 if preamble.signature == signature_of_14 => {
            let offset = offset_of!(Preamble, architecture_or_letter);
            let architecture = sixth;
            Err(damage(
                "architecture",
                offset,
                Fault::UnsupportedArchitecture { architecture },
            ))
        }
        13 | 14 => Err(damage(
            "signature",
            0,
            Fault::SignatureOfOtherRevision { revision },
        )),
        _ => {
            let offset = offset_of!(Preamble, revision);
            Err(damage(
                "revision",
                offset,
                Fault::UnsupportedRevision { revision },
            ))
        }
    }
}

/// What was not read yet.
struct Cursor<'a> {
    rest: &'a [u8],
    offset: usize,
}

impl<'a> Cursor<'a> {
    fn truncated(&self, field: &str, needed: usize) -> Damage {
        let available = self.rest.len();
        damage(field, self.offset, Fault::Truncated { needed, available })
    }

    fn peek<T: FromBytes + Immutable + KnownLayout + Unaligned>(
        &self,
        field: &str,
    ) -> Result<&'a T, Damage> {
        match T::ref_from_prefix(self.rest) {
            Ok((value, _)) => Ok(value),
            Err(_) => Err(self.truncated(field, size_of::<T>())),
        }
    }

    fn take<T: FromBytes + Immutable + KnownLayout + Unaligned>(
        &mut self,
        field: &str,
    ) -> Result<&'a T, Damage> {
        match T::ref_from_prefix(self.rest) {
            Ok((value, rest)) => {
                self.advance(rest);
                Ok(value)
            }
            Err(_) => Err(self.truncated(field, size_of::<T>())),
        }
    }

    fn array<T: FromBytes + Immutable + Unaligned>(
        &mut self,
        field: &str,
        count: Count,
    ) -> Result<&'a [T], Damage> {
        let entries = count.checked()?;
        match <[T]>::ref_from_prefix_with_elems(self.rest, entries) {
            Ok((values, rest)) => {
                self.advance(rest);
                Ok(values)
            }
            Err(_) => Err(self.truncated(field, entries.saturating_mul(size_of::<T>()))),
        }
    }

    fn advance(&mut self, rest: &'a [u8]) {
        let taken = self.rest.len().saturating_sub(rest.len());
        self.offset = self.offset.saturating_add(taken);
        self.rest = rest;
    }
}

/// A number of entries as the header has it.
struct Count {
    field: &'static str,
    offset: usize,
    value: U32,
    most: u64,
}

impl Count {
    fn checked(&self) -> Result<usize, Damage> {
        let count = u64::from(self.value.get());
        let too_many = Fault::TooMany {
            count,
            most: self.most,
        };
        match usize::try_from(count) {
            Ok(entries) if count <= self.most => Ok(entries),
            _ => Err(damage(self.field, self.offset, too_many)),
        }
    }
}

/// A count of the header at `base`.
macro_rules! count {
    ($header:expr, $base:expr, $field:ident, $most:expr) => {
        Count {
            field: stringify!($field),
            offset: $base + offset_of!(CellHeader, $field),
            value: $header.$field,
            most: $most,
        }
    };
}

fn cell<'a>(
    cursor: &mut Cursor<'a>,
    revision: Revision,
    field: &str,
) -> Result<CellBlob<'a>, Damage> {
    let base = cursor.offset;
    let header: &CellHeader = cursor.take(field)?;
    check_cell(header, base)?;
    let cpu_set = cursor.array("cpus", count!(header, base, cpu_set_size, MAX_CPU_SET_SIZE))?;
    let memory = cursor.array(
        "mem_regions",
        count!(header, base, num_memory_regions, MAX_MEMORY_REGIONS),
    )?;
    let caches = cursor.array(
        "cache_regions",
        count!(header, base, num_cache_regions, MAX_CACHE_REGIONS),
    )?;
    let irqchips_offset = cursor.offset;
    let irqchips = cursor.array("irqchips", count!(header, base, num_irqchips, MAX_IRQCHIPS))?;
    let ports = cursor.array(
        "pio_regions",
        count!(header, base, num_pio_regions, MAX_PIO_REGIONS),
    )?;
    let devices_offset = cursor.offset;
    let devices = cursor.array(
        "pci_devices",
        count!(header, base, num_pci_devices, MAX_PCI_DEVICES),
    )?;
    let capabilities =
        cursor.array("pci_caps", count!(header, base, num_pci_caps, MAX_PCI_CAPS))?;
    let cell = CellBlob {
        revision,
        header,
        cpu_set,
        memory,
        caches,
        irqchips,
        ports,
        devices,
        capabilities,
        surplus: cursor.rest.len(),
    };
    check_irqchips(&cell, irqchips_offset)?;
    check_devices(&cell, devices_offset)?;
    Ok(cell)
}

fn check_system(header: &SystemHeader) -> Result<(), Damage> {
    let platform = &header.platform_info;
    let base = offset_of!(SystemHeader, platform_info);
    check_console(
        &header.debug_console,
        "debug_console",
        offset_of!(SystemHeader, debug_console),
    )?;
    let units = base + offset_of!(Platform, iommu_units);
    for (index, unit) in platform.iommu_units.iter().enumerate() {
        let kind = unit.kind.get();
        let value = u64::from(kind);
        let fault = match kind {
            ..=IOMMU_INTEL => continue,
            FIRST_ARM_IOMMU..=LAST_ARM_IOMMU => Fault::OnlyOnArm { value },
            _ => Fault::UnknownValue { value },
        };
        let offset = units + index * size_of::<Iommu>();
        return Err(damage(format!("iommu_units[{index}].type"), offset, fault));
    }
    match platform.beyond_x86.iter().find(|byte| **byte != 0) {
        None => Ok(()),
        Some(byte) => Err(damage(
            "platform_info.arm",
            base + offset_of!(Platform, beyond_x86),
            Fault::OnlyOnArm {
                value: u64::from(*byte),
            },
        )),
    }
}

fn check_console(console: &Console, field: &str, base: usize) -> Result<(), Damage> {
    let kind = console.kind.get();
    let value = u64::from(kind);
    let fault = match kind {
        ..=CONSOLE_8250 => return Ok(()),
        FIRST_ARM_CONSOLE..=LAST_ARM_CONSOLE => Fault::OnlyOnArm { value },
        _ => Fault::UnknownValue { value },
    };
    Err(damage(
        format!("{field}.type"),
        base + offset_of!(Console, kind),
        fault,
    ))
}

fn check_cell(header: &CellHeader, base: usize) -> Result<(), Damage> {
    let only_on_arm = |field: &str, offset: usize, value: u32| {
        let value = u64::from(value);
        Err(damage(field, base + offset, Fault::OnlyOnArm { value }))
    };
    if header.flags.get() & CELL_AARCH32 != 0 {
        return only_on_arm("flags", offset_of!(CellHeader, flags), header.flags.get());
    }
    if header.num_stream_ids.get() != 0 {
        let offset = offset_of!(CellHeader, num_stream_ids);
        return only_on_arm("num_stream_ids", offset, header.num_stream_ids.get());
    }
    check_console(
        &header.console,
        "console",
        base + offset_of!(CellHeader, console),
    )
}

fn check_irqchips(cell: &CellBlob<'_>, base: usize) -> Result<(), Damage> {
    for (index, chip) in cell.irqchips.iter().enumerate() {
        if chip.pin_base.get() != 0 {
            let offset = base + index * size_of::<Irqchip>() + offset_of!(Irqchip, pin_base);
            let value = u64::from(chip.pin_base.get());
            let field = format!("irqchips[{index}].pin_base");
            return Err(damage(field, offset, Fault::OnlyOnArm { value }));
        }
    }
    Ok(())
}

fn check_devices(cell: &CellBlob<'_>, base: usize) -> Result<(), Damage> {
    let beyond = |first: u64, count: u64, entries: usize| {
        let entries = entries as u64;
        (count != 0 && first + count > entries).then_some(Fault::BeyondEnd {
            first,
            count,
            entries,
        })
    };
    for (index, device) in cell.devices.iter().enumerate() {
        let offset = base + index * size_of::<PciDevice>();
        let fault = |field: &str, place: usize, fault: Fault| {
            let field = format!("pci_devices[{index}].{field}");
            Err(damage(field, offset + place, fault))
        };
        if !(PCI_TYPE_DEVICE..=PCI_TYPE_IVSHMEM).contains(&device.kind) {
            let value = u64::from(device.kind);
            return fault(
                "type",
                offset_of!(PciDevice, kind),
                Fault::UnknownValue { value },
            );
        }
        let (first, count) = (device.caps_start.get(), device.num_caps.get());
        if let Some(found) = beyond(first.into(), count.into(), cell.capabilities.len()) {
            return fault("caps_start", offset_of!(PciDevice, caps_start), found);
        }
        if device.kind != PCI_TYPE_IVSHMEM {
            continue;
        }
        let count = IVSHMEM_COMMON_REGIONS + u64::from(device.shmem_peers);
        let first = u64::from(device.shmem_regions_start.get());
        if let Some(found) = beyond(first, count, cell.memory.len()) {
            let place = offset_of!(PciDevice, shmem_regions_start);
            return fault("shmem_regions_start", place, found);
        }
    }
    Ok(())
}

const _: () = assert!(PCI_TYPE_DEVICE < PCI_TYPE_BRIDGE && PCI_TYPE_BRIDGE < PCI_TYPE_IVSHMEM);
const _: () = assert!(NAME_BYTES == gaol_abi::NAME_LENGTH);
