//! Reading functions from what Linux shows below /sys/bus/pci.

use super::{Address, Bar, BarKind, Bridge, Capabilities, Function, Pci};
use crate::problem::{Kind, Problem, optional};
use crate::source::Source;
use crate::span::{Span, number};

const DEVICES: &str = "/sys/bus/pci/devices";
/// What everyone may read of configuration space.
const UNPRIVILEGED_SIZE: usize = 64;
const CONFIG_SIZE: usize = 256;
const EXTENDED_CONFIG_SIZE: usize = 4096;

/// Linux' flags of a resource, as the file `resource` has them.
const FLAG_IO: u64 = 0x100;
const FLAG_MEMORY: u64 = 0x200;
const FLAG_PREFETCHABLE: u64 = 0x2000;
const FLAG_64_BITS: u64 = 0x10_0000;
/// Which line of the file the expansion ROM is.
const ROM_LINE: usize = 6;

impl Pci {
    /// Reads all functions; what is wrong with one is added to `problems`, and does not keep others from being read.
    pub fn read(source: &Source, problems: &mut Vec<Problem>) -> Self {
        let mut pci = Self::default();
        let names = match optional(source.list(DEVICES)) {
            Ok(names) => names.unwrap_or_default(),
            Err(problem) => {
                problems.push(problem);
                return pci;
            }
        };
        let mut found = Vec::new();
        for name in names {
            match name.parse() {
                Ok(address) => match read_function(source, &name, address) {
                    Ok(function) => found.push(function),
                    Err(problem) => problems.push(problem),
                },
                Err(_) if is_made_up(&name) => pci.left_out.push(name),
                Err(_) => problems.push(Problem::garbage(
                    DEVICES,
                    format!("{name:?} in it is no PCI address"),
                )),
            }
        }
        found.sort_by_key(|(function, _)| function.address);
        let (functions, groups): (Vec<_>, Vec<_>) = found.into_iter().unzip();
        pci.functions = functions;
        pci.assign_groups(&groups);
        pci
    }
}

/// Whether it is a name of Linux' for a function in a domain beyond all segments: 10000:00:02.0.
fn is_made_up(name: &str) -> bool {
    let Some((domain, rest)) = name.split_once(':') else {
        return false;
    };
    let number = u32::from_str_radix(domain, 16);
    number.is_ok_and(|number| number > 0xffff) && rest.parse::<Address>().is_ok()
}

/// A function, and the group that Linux has it in.
fn read_function(
    source: &Source,
    name: &str,
    address: Address,
) -> Result<(Function, Option<u32>), Problem> {
    let directory = format!("{DEVICES}/{name}");
    let path = format!("{directory}/config");
    let config = source.read(&path)?;
    let mut function = parse_config(&path, address, &config)?;
    // Virtual functions have no ids of their own in configuration space.
    for (id, file) in [
        (&mut function.vendor, "vendor"),
        (&mut function.device, "device"),
    ] {
        if *id == u16::MAX {
            *id = read_id(source, &format!("{directory}/{file}"))?;
        }
    }
    let path = format!("{directory}/resource");
    (function.bars, function.rom) = parse_resources(&path, &source.read_text(&path)?)?;
    function.driver = link_name(source, &format!("{directory}/driver"))?;
    let path = format!("{directory}/numa_node");
    if let Some(text) = optional(source.read_text(&path))? {
        // -1 when it is not told.
        function.node = u32::try_from(number::<i64>(&path, &text)?).ok();
    }
    let path = format!("{directory}/iommu_group");
    let group = link_name(source, &path)?.map(|name| number(&path, &name));
    Ok((function, group.transpose()?))
}

/// The last name of where a link points; none without a link.
fn link_name(source: &Source, path: &str) -> Result<Option<String>, Problem> {
    let target = optional(source.read_link(path))?;
    Ok(target.and_then(|target| target.rsplit('/').next().map(str::to_owned)))
}

fn read_id(source: &Source, path: &str) -> Result<u16, Problem> {
    let text = source.read_text(path)?;
    let digits = text.trim().strip_prefix("0x");
    digits
        .and_then(|digits| u16::from_str_radix(digits, 16).ok())
        .ok_or_else(|| Problem::garbage(path, format!("{:?} is no id", text.trim())))
}

/// What configuration space says: everything but BARs, driver, node and group.
pub(super) fn parse_config(
    path: &str,
    address: Address,
    config: &[u8],
) -> Result<Function, Problem> {
    match config.len() {
        CONFIG_SIZE | EXTENDED_CONFIG_SIZE => (),
        UNPRIVILEGED_SIZE => {
            return Err(Problem::new(
                Kind::Permission,
                path,
                "only 64 bytes of it are shown: the kernel hides the others from everyone but root",
                "Run gaol as root; a collection has to be taken as root as well.",
            ));
        }
        size => {
            let what = format!("it has {size} bytes instead of 256 or 4096");
            return Err(Problem::garbage(path, what));
        }
    }
    let header: &[u8; UNPRIVILEGED_SIZE] = config
        .first_chunk()
        .ok_or_else(|| Problem::garbage(path, "it is too short"))?;
    if header.iter().all(|byte| *byte == 0xff) {
        return Err(Problem::garbage(
            path,
            "the function does not answer: all bytes of its header are 0xff",
        )
        .with_remedy("Wake the device up or remove it: echo 1 > remove, in the same directory."));
    }
    let word = |low: u8, high: u8| u16::from_le_bytes([low, high]);
    let header_type = header[0x0e] & 0x7f;
    let is_bridge = matches!(header_type, 1 | 2);
    Ok(Function {
        address,
        vendor: word(header[0x00], header[0x01]),
        device: word(header[0x02], header[0x03]),
        class: u32::from_be_bytes([0, header[0x0b], header[0x0a], header[0x09]]),
        revision: header[0x08],
        subsystem: (header_type == 0).then_some((
            word(header[0x2c], header[0x2d]),
            word(header[0x2e], header[0x2f]),
        )),
        header_type,
        is_multifunction: header[0x0e] & 0x80 != 0,
        bridge: is_bridge.then_some(Bridge {
            primary: header[0x18],
            secondary: header[0x19],
            subordinate: header[0x1a],
        }),
        bars: Vec::new(),
        rom: None,
        config_size: u16::try_from(config.len()).unwrap_or(0),
        capabilities: Capabilities::parse(path, config)?,
        driver: None,
        node: None,
        group: 0,
    })
}

/// The BARs and the expansion ROM: a line each of first address, last address and flags.
pub(super) fn parse_resources(path: &str, text: &str) -> Result<(Vec<Bar>, Option<Span>), Problem> {
    let mut bars = Vec::new();
    let mut rom = None;
    // What follows are virtual functions' BARs and bridges' windows.
    for (index, line) in (0..=ROM_LINE).zip(text.lines()) {
        let garbage = |what| Problem::garbage(path, format!("line {}: {what}", index + 1));
        let numbers: Option<Vec<u64>> = line
            .split_whitespace()
            .map(|word| u64::from_str_radix(word.strip_prefix("0x")?, 16).ok())
            .collect();
        let Some(&[first, last, flags]) = numbers.as_deref() else {
            return Err(garbage("it is not three hexadecimal numbers"));
        };
        if flags & (FLAG_IO | FLAG_MEMORY) == 0 {
            continue;
        }
        let span =
            Span::inclusive(first, last).ok_or_else(|| garbage("it ends before it begins"))?;
        if index == ROM_LINE {
            rom = (first != 0).then_some(span);
            continue;
        }
        bars.push(Bar {
            index: u8::try_from(index).unwrap_or(u8::MAX),
            kind: match (flags & FLAG_IO != 0, flags & FLAG_64_BITS != 0) {
                (true, _) => BarKind::Io,
                (false, false) => BarKind::Memory32,
                (false, true) => BarKind::Memory64,
            },
            prefetchable: flags & FLAG_PREFETCHABLE != 0,
            span,
        });
    }
    Ok((bars, rom))
}
