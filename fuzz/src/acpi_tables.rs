//! The firmware's tables: as they are given, and with signature, length and checksum made right.

use gaol_machine::acpi::Tables;
use gaol_machine::acpi::dmar::Dmar;
use gaol_machine::acpi::fadt::Fadt;
use gaol_machine::acpi::madt::Madt;
use gaol_machine::acpi::mcfg::Mcfg;
use gaol_machine::problem::Problem;
use gaol_machine::source::{Source, Tree};

use crate::machine_collection::is_well_told;
use crate::put;

/// Where a table has its length.
const LENGTH: usize = 4;
/// Where a table has its checksum.
const CHECKSUM: usize = 9;
/// Bytes of a table's header.
const HEADER: usize = 36;

/// The table that makes the bytes right for a signature.
fn sealed(signature: &[u8; 4], bytes: &[u8]) -> Vec<u8> {
    let mut table = bytes.to_vec();
    table.resize(table.len().max(HEADER), 0);
    let length = u32::try_from(table.len()).unwrap_or(u32::MAX);
    put(&mut table, 0, signature);
    put(&mut table, LENGTH, &length.to_le_bytes());
    put(&mut table, CHECKSUM, &[0]);
    let sum = table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    put(&mut table, CHECKSUM, &[sum.wrapping_neg()]);
    table
}

fn parse_each(bytes: &[u8]) {
    fn told<T>(result: Result<T, Problem>) {
        if let Err(problem) = result {
            is_well_told(&problem);
        }
    }
    told(Madt::parse(bytes));
    told(Mcfg::parse(bytes));
    told(Dmar::parse(bytes));
    told(Fadt::parse(bytes));
}

/// The bytes as each of the tables.
pub fn run(bytes: &[u8]) {
    parse_each(bytes);
    let mut tree = Tree::default();
    for signature in [b"APIC", b"MCFG", b"DMAR", b"FACP"] {
        let table = sealed(signature, bytes);
        parse_each(&table);
        let name = String::from_utf8_lossy(signature);
        tree.insert_file(&format!("/sys/firmware/acpi/tables/{name}"), table);
    }
    let mut problems = Vec::new();
    let _ = Tables::read(&Source::tree(tree), &mut problems);
    problems.iter().for_each(is_well_told);
}
