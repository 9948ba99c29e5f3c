//! `gaol cell histogram`: what a latency cell has measured, from the memory that it shares with Linux.

use gaol_abi::config::MEMORY_ROOT_SHARED;
use gaol_abi::latency::{CLASSES, Results, SIGNATURE};
use serde_json::{Value, json};
use zerocopy::{FromBytes, IntoBytes};

use crate::arguments::CellName;
use crate::failure::{Failure, Result};
use crate::host::Host;
use crate::output::{Report, Side, grouped, table};
use crate::sysfs::MemoryEntry;

/// Columns of the longest bar.
const BAR: u64 = 50;
/// Lines of the histogram at the most.
const LINES: usize = 16;

/// `gaol cell histogram`.
///
/// # Errors
/// When there is no such cell, or it shares no results.
pub fn histogram(host: &mut Host, cell: &CellName, region: Option<&str>) -> Result<Report> {
    let entry = host.sysfs.find(cell)?;
    let memory = host.sysfs.memory(entry.id)?;
    let region = shared_region(&memory, &entry.name, region)?;
    let words = host
        .device
        .shared_memory(region.physical, size_of::<Results>())
        .map_err(|error| {
            let action = format!("cannot map region \"{}\" of cell {cell}", region.name);
            host.failure(&action, error, &host.facts(Some(cell)))
        })?;
    let results = Results::ref_from_prefix(words.as_bytes()).ok();
    let Some((results, _)) = results.filter(|(results, _)| results.signature == SIGNATURE) else {
        return Err(Failure::new(
            "no_results",
            format!(
                "cell \"{}\" has written no results to region \"{}\"",
                entry.name, region.name
            ),
            "Is it a latency cell, and does it run? See `gaol cell list` and `gaol console`.",
        ));
    };
    Ok(Report {
        text: format!("{}\n{}", numbers(&entry.name, results), bars(results)),
        json: json(&entry.name, results),
    })
}

fn shared_region<'a>(
    memory: &'a [MemoryEntry],
    cell: &str,
    name: Option<&str>,
) -> Result<&'a MemoryEntry> {
    let is_wanted = |entry: &&MemoryEntry| name.is_none_or(|name| entry.name == name);
    let is_shared = |entry: &&MemoryEntry| {
        entry.flags & MEMORY_ROOT_SHARED != 0 && entry.size >= size_of::<Results>() as u64
    };
    let mut shared = memory.iter().filter(is_shared);
    shared.find(is_wanted).ok_or_else(|| {
        let what = name.map_or_else(String::new, |name| format!(" \"{name}\""));
        Failure::new(
            "no_shared_memory",
            format!("cell \"{cell}\" has no memory region{what} that it shares with Linux"),
            "Results need a region with `shared-with-root = true` of at least 4 KiB in the cell's file.",
        )
    })
}

fn average(results: &Results) -> f64 {
    match results.ticks_done {
        0 => 0.0,
        ticks => results.sum_cycles as f64 / ticks as f64,
    }
}

/// Cycles as microseconds of the time stamp counter.
fn microseconds(cycles: f64, results: &Results) -> String {
    match results.tsc_khz {
        0 => String::new(),
        khz => format!("{:.3} us", cycles * 1000.0 / khz as f64),
    }
}

fn numbers(cell: &str, results: &Results) -> String {
    let state = match (results.finished, results.ticks) {
        (0, 0) => format!("{} ticks so far", grouped(results.ticks_done)),
        (0, ticks) => format!(
            "{} of {} ticks so far",
            grouped(results.ticks_done),
            grouped(ticks)
        ),
        _ => format!("{} ticks, finished", grouped(results.ticks_done)),
    };
    let row = |name: &str, cycles: String, time: String| vec![name.to_owned(), cycles, time];
    let whole = |cycles: u64| (grouped(cycles), microseconds(cycles as f64, results));
    let mut rows = vec![row("", "CYCLES".to_owned(), "TIME".to_owned())];
    let (cycles, time) = whole(results.period_cycles);
    rows.push(row("period", cycles, time));
    if results.ticks_done != 0 {
        let (cycles, time) = whole(results.min_cycles);
        rows.push(row("minimum", cycles, time));
        let mean = average(results);
        rows.push(row(
            "average",
            format!("{mean:.1}"),
            microseconds(mean, results),
        ));
        let (cycles, time) = whole(results.max_cycles);
        rows.push(row("maximum", cycles, time));
    }
    let mut text = format!("Cell \"{cell}\": {state}. From the timer's expiry to the handler:\n\n");
    text.push_str(&table(&[Side::Left, Side::Right, Side::Right], &rows));
    if results.missed != 0 {
        text.push_str(&format!(
            "\n{} ticks were missed: their time had passed before the timer was set.\n",
            grouped(results.missed)
        ));
    }
    text
}

/// Classes joined so that what was measured fits in a few lines, one bar each.
fn bars(results: &Results) -> String {
    let used = |count: &u64| *count != 0;
    let (Some(first), Some(last)) = (
        results.histogram.iter().position(used),
        results.histogram.iter().rposition(used),
    ) else {
        return match results.overflow {
            0 => "Nothing was measured yet.\n".to_owned(),
            count => format!(
                "All {} ticks took longer than the histogram reaches.\n",
                grouped(count)
            ),
        };
    };
    let width = results.class_cycles.max(1);
    let joined = (last - first + 1).div_ceil(LINES);
    let groups: Vec<(u64, u64, u64)> = (first..=last)
        .step_by(joined)
        .map(|start| {
            let end = (start + joined).min(CLASSES);
            let count = results.histogram[start..end]
                .iter()
                .fold(0u64, |sum, count| sum.saturating_add(*count));
            let bound = |class: usize| (class as u64).saturating_mul(width);
            (bound(start), bound(end).saturating_sub(1), count)
        })
        .collect();
    let most = groups
        .iter()
        .map(|(_, _, count)| *count)
        .max()
        .unwrap_or(1)
        .max(1);
    let mut rows = vec![vec!["CYCLES".to_owned(), "TICKS".to_owned(), String::new()]];
    for (from, to, count) in groups {
        let span = match from == to {
            true => grouped(from),
            false => format!("{}-{}", grouped(from), grouped(to)),
        };
        let length = (u128::from(count) * u128::from(BAR)).div_ceil(u128::from(most));
        let bar = "#".repeat(usize::try_from(length).unwrap_or(0));
        rows.push(vec![span, grouped(count), bar]);
    }
    if results.overflow != 0 {
        let beyond = format!("{}-", grouped((CLASSES as u64).saturating_mul(width)));
        rows.push(vec![
            beyond,
            grouped(results.overflow),
            "beyond the histogram".to_owned(),
        ]);
    }
    table(&[Side::Right, Side::Right, Side::Left], &rows)
}

fn json(cell: &str, results: &Results) -> Value {
    let measured = |value: u64| match results.ticks_done {
        0 => 0,
        _ => value,
    };
    json!({
        "ok": true,
        "name": cell,
        "ticks": results.ticks,
        "ticks_done": results.ticks_done,
        "finished": results.finished != 0,
        "missed": results.missed,
        "period_cycles": results.period_cycles,
        "tsc_khz": results.tsc_khz,
        "min_cycles": measured(results.min_cycles),
        "avg_cycles": average(results),
        "max_cycles": measured(results.max_cycles),
        "class_cycles": results.class_cycles,
        "overflow": results.overflow,
        "histogram": results.histogram.as_slice(),
    })
}
