//! IOMMUs: what the firmware says of them in DMAR or IVRS, and what Linux shows of their registers.

use crate::acpi::{Dmar, Table};
use crate::problem::{Problem, optional};
use crate::source::Source;

use super::Facts;
use super::facts::{Reading, text};
use super::parse::hexadecimal;
use super::row::{Group, Question, Row};

/// An IOMMU that Linux uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// Linux' name of it.
    pub name: String,
    /// VT-d: its extended capability register.
    pub extended_capability: Reading<u64>,
}

/// What the firmware's table says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remapping {
    /// Intel's.
    Dmar {
        /// Units that the table describes.
        units: usize,
        /// Interrupt remapping is supported.
        interrupts: bool,
        /// The firmware does not want x2APIC mode.
        no_x2apic: bool,
    },
    /// AMD's.
    Ivrs {
        /// Units that the table describes.
        units: usize,
    },
}

/// IOMMUs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Iommu {
    /// The firmware's table; none without IOMMU.
    pub table: Reading<Option<Remapping>>,
    /// Those that Linux uses.
    pub units: Reading<Vec<Unit>>,
}

const TABLES: &str = "/sys/firmware/acpi/tables";
const CLASS: &str = "/sys/class/iommu";

impl Iommu {
    pub(super) fn read(source: &Source) -> Self {
        Self {
            table: read_table(source),
            units: read_units(source),
        }
    }
}

fn read_table(source: &Source) -> Reading<Option<Remapping>> {
    let path = format!("{TABLES}/DMAR");
    if let Some(bytes) = optional(source.read(&path))? {
        return dmar(&bytes).map(Some);
    }
    let path = format!("{TABLES}/IVRS");
    match optional(source.read(&path))? {
        Some(bytes) => ivrs(&bytes).map(Some),
        // Without the directory nothing is known of tables that are not there.
        None if !source.exists(TABLES) => Err(Problem::new(
            crate::Kind::Missing,
            TABLES,
            "No such file or directory",
            "Mount /sys, on a machine with ACPI; in a collection, collect it anew.",
        )),
        None => Ok(None),
    }
}

fn read_units(source: &Source) -> Reading<Vec<Unit>> {
    let names = optional(source.list(CLASS))?.unwrap_or_default();
    let unit = |name: String| {
        let path = format!("{CLASS}/{name}/intel-iommu/ecap");
        Unit {
            extended_capability: text(source, &path, hexadecimal),
            name,
        }
    };
    Ok(names.into_iter().map(unit).collect())
}

fn dmar(bytes: &[u8]) -> Reading<Remapping> {
    let table = Dmar::parse(bytes)?;
    Ok(Remapping::Dmar {
        units: table.units.len(),
        interrupts: table.interrupt_remapping,
        no_x2apic: table.x2apic_opt_out,
    })
}

/// AMD I/O virtualization specification, "I/O Virtualization Reporting Structure": behind a header of 48 bytes there are
/// blocks with their type and, from the third byte on, their length. A unit has up to three of them, one of each type.
fn ivrs(bytes: &[u8]) -> Reading<Remapping> {
    const SIGNATURE: &str = "IVRS";
    Table::new(SIGNATURE, bytes)?;
    let wrong = || Problem::garbage("ACPI table IVRS", "a block in it has a wrong length");
    let mut rest = bytes.get(48..).ok_or_else(wrong)?;
    let mut units = [0; 3];
    while let Some(kind) = rest.first() {
        let length = rest.get(2..4).and_then(|field| field.first_chunk());
        let length = length.map_or(0, |field| u16::from_le_bytes(*field));
        if length < 4 {
            return Err(wrong());
        }
        match kind {
            0x10 => units[0] += 1,
            0x11 => units[1] += 1,
            0x40 => units[2] += 1,
            _ => {}
        }
        rest = rest.get(usize::from(length)..).ok_or_else(wrong)?;
    }
    Ok(Remapping::Ivrs {
        units: units.into_iter().max().unwrap_or(0),
    })
}

const IOMMU: Question = Question {
    key: "iommu",
    name: "IOMMU",
    group: Group::Devices,
    is_needed: false,
    reason: "It keeps the devices of one cell out of the memory of others.",
};
const INTERRUPTS: Question = Question {
    key: "interrupt_remapping",
    name: "interrupt remapping",
    group: Group::Devices,
    is_needed: false,
    reason: "It keeps the devices of one cell from interrupting the CPUs of others.",
};

const TURN_ON: &str = "Turn VT-d or AMD-Vi on in the firmware setup. Without, devices are trusted: give no device with DMA to a cell.";

/// VT-d: interrupt remapping, and extended interrupt mode, in the extended capability register.
const ECAP_REMAPPING: u64 = 1 << 3;
const ECAP_EXTENDED: u64 = 1 << 4;

pub(super) fn rows(facts: &Facts, rows: &mut Vec<Row>) {
    let iommu = &facts.iommu;
    let (table, units) = match (&iommu.table, &iommu.units) {
        (Ok(table), Ok(units)) => (table, units),
        (Err(problem), _) | (_, Err(problem)) => {
            rows.extend([IOMMU.unknown(problem), INTERRUPTS.unknown(problem)]);
            return;
        }
    };
    let Some(table) = table else {
        rows.push(IOMMU.bad("none: the firmware has neither DMAR nor IVRS", TURN_ON));
        rows.push(INTERRUPTS.bad("none, for lack of an IOMMU", TURN_ON));
        return;
    };
    rows.push(unit_row(facts, *table, units));
    rows.push(interrupt_row(*table, units));
}

fn plural(number: usize) -> String {
    match number {
        1 => "1 unit".to_owned(),
        number => format!("{number} units"),
    }
}

fn unit_row(facts: &Facts, table: Remapping, units: &[Unit]) -> Row {
    let (name, number) = match table {
        Remapping::Dmar { units, .. } => ("VT-d", units),
        Remapping::Ivrs { units } => ("AMD-Vi", units),
    };
    if number == 0 {
        return IOMMU.bad(
            format!("the firmware's table names no unit of {name}"),
            TURN_ON,
        );
    }
    let off = facts.linux.parameters.as_ref().ok().and_then(|words| {
        let mut words = words.iter().map(String::as_str);
        words.find(|word| matches!(*word, "intel_iommu=off" | "amd_iommu=off" | "iommu=off"))
    });
    let finding = format!("{name}, {}", plural(number));
    match (units, off) {
        ([], Some(word)) => IOMMU.ok(format!("{finding}; Linux leaves it unused ({word})")),
        ([], None) => IOMMU.ok(format!("{finding}; Linux does not use it")),
        (units, _) => IOMMU.ok(format!("{finding}; Linux uses {}", units.len())),
    }
}

fn interrupt_row(table: Remapping, units: &[Unit]) -> Row {
    let no_x2apic = match table {
        Remapping::Ivrs { .. } => return INTERRUPTS.ok("part of AMD-Vi"),
        Remapping::Dmar {
            interrupts: false, ..
        } => return INTERRUPTS.bad("the firmware's DMAR table does not offer it", TURN_ON),
        Remapping::Dmar { no_x2apic, .. } => no_x2apic,
    };
    let mut is_extended = !units.is_empty();
    for unit in units {
        match &unit.extended_capability {
            Err(problem) => return INTERRUPTS.unknown(problem),
            Ok(value) if value & ECAP_REMAPPING == 0 => {
                return INTERRUPTS.bad(
                    format!(
                        "{} cannot do it, though the firmware's table says so",
                        unit.name
                    ),
                    "Update the firmware.",
                );
            }
            Ok(value) => is_extended &= value & ECAP_EXTENDED != 0,
        }
    }
    let mut finding = match units.len() {
        0 => "offered by the firmware's DMAR table; the units' registers can't be read while Linux does not use them".to_owned(),
        _ => "offered by the firmware's DMAR table and by each unit".to_owned(),
    };
    if !units.is_empty() && !is_extended {
        finding.push_str(", for xAPIC ids only");
    }
    if no_x2apic {
        finding.push_str("; the firmware asks not to use x2APIC");
    }
    INTERRUPTS.ok(finding)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_bytes_make_the_table_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut table = b"IVRS".to_vec();
            table.extend((body.len() as u32 + 8).to_le_bytes());
            table.extend(&body);
            let sum = table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
            if let Some(last) = table.last_mut() {
                *last = last.wrapping_sub(sum);
            }
            let _ = ivrs(&table);
            let _ = ivrs(&body);
        }
    }
}
