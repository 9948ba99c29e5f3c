//! `gaol cell stats`: how often CPUs were in the hypervisor, by reason.

use gaol_abi::exit::{COUNTERS, FIRST_DERIVED_COUNTER, counter_name};
use gaol_abi::public::Pause;
use gaol_config::explain::cpu_list;
use serde_json::{Map, Value, json};

use crate::arguments::CellName;
use crate::failure::Result;
use crate::host::Host;
use crate::output::{Report, Side, grouped, table};

/// A counter: its name, its value for each CPU, its sum.
struct Row {
    name: String,
    is_derived: bool,
    values: Vec<u64>,
    total: u64,
}

fn sum(values: &[u64]) -> u64 {
    values
        .iter()
        .fold(0, |sum, value| sum.saturating_add(*value))
}

/// `gaol cell stats`.
///
/// # Errors
/// When there is no such cell, or the module does not tell.
pub fn stats(host: &Host, cell: &CellName) -> Result<Report> {
    let cell = host.sysfs.find(cell)?;
    let public = host.sysfs.public()?;
    let cpus: Vec<(u32, &[u64; COUNTERS])> = cell
        .cpus
        .iter()
        .filter_map(|cpu| Some((cpu, &public.cpu(cpu)?.exits)))
        .collect();
    let numbers: Vec<u32> = cpus.iter().map(|(cpu, _)| *cpu).collect();
    let mut rows: Vec<Row> = (0..COUNTERS)
        .map(|index| {
            let values: Vec<u64> = cpus.iter().map(|(_, exits)| exits[index]).collect();
            let name = host.vendor.and_then(|vendor| counter_name(vendor, index));
            Row {
                name: name.map_or_else(|| format!("exit_{index:#x}"), str::to_owned),
                is_derived: index >= FIRST_DERIVED_COUNTER,
                total: sum(&values),
                values,
            }
        })
        .filter(|row| row.total != 0)
        .collect();
    rows.sort_by_key(|row| (row.is_derived, core::cmp::Reverse(row.total)));
    let exits = Row {
        name: "exits".to_owned(),
        is_derived: false,
        values: (0..numbers.len())
            .map(|column| {
                let exits = rows.iter().filter(|row| !row.is_derived);
                sum(&exits.map(|row| row.values[column]).collect::<Vec<_>>())
            })
            .collect(),
        total: sum(&rows
            .iter()
            .filter(|row| !row.is_derived)
            .map(|row| row.total)
            .collect::<Vec<_>>()),
    };
    let noun = if numbers.len() == 1 { "CPU" } else { "CPUs" };
    let pauses = match (cell.id, public.system()) {
        (0, Some(system)) => pauses(&system.longest_pauses),
        _ => Vec::new(),
    };
    let text = format!(
        "Cell \"{}\" (number {}, {noun} {}): {} exits.\n{}{}",
        cell.name,
        cell.id,
        cpu_list(cell.cpus),
        grouped(exits.total),
        text_table(&numbers, &rows, &exits),
        pauses_text(&pauses)
    );
    let mut json = counters_json(&rows, exits.total, |row| row.total);
    json["ok"] = true.into();
    json["id"] = cell.id.into();
    json["name"] = cell.name.into();
    json["cpus"] = numbers
        .iter()
        .enumerate()
        .map(|(column, cpu)| {
            let total = exits.values[column];
            let counters = counters_json(&rows, total, |row| row.values[column]);
            (cpu.to_string(), counters)
        })
        .collect::<Map<String, Value>>()
        .into();
    if cell.id == 0 {
        let cycles = pauses
            .iter()
            .map(|(name, cycles)| ((*name).to_owned(), (*cycles).into()));
        json["longest_pauses"] = cycles.collect::<Map<String, Value>>().into();
    }
    Ok(Report { text, json })
}

/// Why a CPU of the root is away, and for how many cycles at the most.
fn pauses(longest: &[u64]) -> Vec<(&'static str, u64)> {
    let names = [
        (Pause::Create, "create"),
        (Pause::Start, "start"),
        (Pause::SetLoadable, "set_loadable"),
        (Pause::Destroy, "destroy"),
        (Pause::Scrub, "scrub"),
        (Pause::Look, "look"),
        (Pause::Kick, "kick"),
    ];
    let cycles = |pause: Pause| longest.get(usize::try_from(pause.0).ok()?).copied();
    names
        .into_iter()
        .filter_map(|(pause, name)| Some((name, cycles(pause)?)))
        .collect()
}

/// The longest times first; what has not happened is left out.
fn pauses_text(pauses: &[(&str, u64)]) -> String {
    let mut pauses: Vec<_> = pauses.iter().filter(|(_, cycles)| *cycles != 0).collect();
    if pauses.is_empty() {
        return String::new();
    }
    pauses.sort_by_key(|(_, cycles)| core::cmp::Reverse(*cycles));
    let mut rows = vec![vec!["LONGEST PAUSE".to_owned(), "CYCLES".to_owned()]];
    rows.extend(
        pauses
            .iter()
            .map(|(name, cycles)| vec![(*name).to_owned(), grouped(*cycles)]),
    );
    format!("\n{}", table(&[Side::Left, Side::Right], &rows))
}

/// Exits by reason, their sum, and the counters that are parts of them.
fn counters_json(rows: &[Row], total: u64, value: impl Fn(&Row) -> u64) -> Value {
    let select = |is_derived: bool| -> Map<String, Value> {
        rows.iter()
            .filter(|row| row.is_derived == is_derived)
            .map(|row| (row.name.clone(), value(row).into()))
            .collect()
    };
    json!({ "exits": select(false), "exits_total": total, "parts": select(true) })
}

/// Exits, their parts by reason, then the counters that are parts of those.
fn text_table(cpus: &[u32], rows: &[Row], exits: &Row) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let line = |row: &Row, indent: &str| {
        let mut cells = vec![format!("{indent}{}", row.name), grouped(row.total)];
        if cpus.len() > 1 {
            cells.extend(row.values.iter().map(|value| grouped(*value)));
        }
        cells
    };
    let mut heading = vec!["COUNTER".to_owned(), "TOTAL".to_owned()];
    if cpus.len() > 1 {
        heading.extend(cpus.iter().map(|cpu| format!("CPU {cpu}")));
    }
    let sides: Vec<Side> = core::iter::once(Side::Left)
        .chain(core::iter::repeat_n(Side::Right, heading.len() - 1))
        .collect();
    let mut lines = vec![heading, line(exits, "")];
    lines.extend(rows.iter().map(|row| match row.is_derived {
        true => line(row, ""),
        false => line(row, "  "),
    }));
    format!("\n{}", table(&sides, &lines))
}
