//! I/O ports and model-specific registers, of cells and of a strict root cell.

use gaol_abi::config::{MAX_PORT_RANGES, MSR_PER_CPU, MSR_READ, MSR_WRITE, MsrAccess, PortRange};
use gaol_abi::outcome::Reason;
use toml::Spanned;

use super::judge::Judge;
use super::memory::{JOIN, letters};
use crate::schema::{MsrTable, PortsTable};

/// Port ranges of `owner`, "the cell" or "the root cell".
pub(super) fn ports(
    judge: &Judge<'_>,
    tables: &[Spanned<PortsTable>],
    owner: &str,
) -> Vec<PortRange> {
    judge
        .bounded(
            tables,
            MAX_PORT_RANGES,
            &format!("port ranges in {owner}"),
            JOIN,
        )
        .iter()
        .map(|entry| port_range(judge, entry))
        .collect()
}

fn port_range(judge: &Judge<'_>, entry: &Spanned<PortsTable>) -> PortRange {
    let table = entry.get_ref();
    let (first, count) = (table.first.get_ref().0, table.count.get_ref().0);
    let is_possible = count != 0 && first.checked_add(count).is_some_and(|end| end <= 0x1_0000);
    match (u16::try_from(first), u16::try_from(count)) {
        (Ok(first), Ok(count)) if is_possible => PortRange { first, count },
        _ => {
            judge.problem(
                Reason::PortsInvalid,
                entry.span(),
                "not possible",
                format!("there are no {count} ports from {first:#x} on"),
                "Ports are numbered from 0 to 0xffff, and a range has at least one and at most 65535.",
            );
            PortRange { first: 0, count: 1 }
        }
    }
}

/// Registers of `owner`, "the cell" or "the root cell", which has at most so many.
pub(super) fn msrs(
    judge: &Judge<'_>,
    tables: &[Spanned<MsrTable>],
    owner: &str,
    most: usize,
) -> Vec<MsrAccess> {
    judge
        .bounded(
            tables,
            most,
            &format!("registers in {owner}"),
            "Take out those that it can do without.",
        )
        .iter()
        .map(|table| msr(judge, table.get_ref()))
        .collect()
}

fn msr(judge: &Judge<'_>, table: &MsrTable) -> MsrAccess {
    let number = table.index.get_ref().0;
    let msr = u32::try_from(number).unwrap_or_else(|_| {
        judge.problem(
            Reason::MsrInvalid,
            table.index.span(),
            "no such register",
            format!("there is no model-specific register {number:#x}"),
            "They are numbered from 0 to 0xffffffff.",
        );
        0
    });
    let access = msr_access(judge, table);
    let can_write = access & MSR_WRITE != 0;
    let per_cpu = if table.per_cpu { MSR_PER_CPU } else { 0 };
    MsrAccess {
        msr,
        flags: access | per_cpu,
        write_mask: write_mask(judge, table, can_write),
    }
}

fn msr_access(judge: &Judge<'_>, table: &MsrTable) -> u32 {
    let Some(access) = &table.access else {
        return MSR_READ;
    };
    let flags = letters(access.get_ref(), |letter| match letter {
        'r' => Some(MSR_READ),
        'w' => Some(MSR_WRITE),
        _ => None,
    });
    match flags {
        Some(flags) if flags != 0 => flags,
        _ => {
            judge.invalid(
                access.span(),
                "not an access",
                format!("{:?} is not a way to access a register", access.get_ref()),
                "Write \"r\", \"w\" or \"rw\".",
            );
            MSR_READ | MSR_WRITE
        }
    }
}

fn write_mask(judge: &Judge<'_>, table: &MsrTable, can_write: bool) -> u64 {
    let Some(mask) = &table.write_mask else {
        return if can_write { u64::MAX } else { 0 };
    };
    if !can_write {
        judge.problem(
            Reason::MsrInvalid,
            mask.span(),
            "nothing is written",
            format!(
                "register {:#x} has a write mask, and can't be written",
                table.index.get_ref().0
            ),
            "Write `access = \"rw\"`, or take the mask out.",
        );
    } else if mask.get_ref().0 == 0 {
        judge.problem(
            Reason::MsrInvalid,
            mask.span(),
            "no bit",
            format!(
                "no bit of register {:#x} could be written",
                table.index.get_ref().0
            ),
            "Write `access = \"r\"`, or set the bits that may change in the mask.",
        );
    }
    mask.get_ref().0
}
