//! The report of the demonstration, as JSON and as a table.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::table::{Table, thousands};

/// `target/demo/report.json`.
#[derive(Debug, Serialize)]
pub struct Report {
    /// What the machine ran on.
    pub machine: String,
    /// The kernel's release.
    pub kernel: String,
    /// The virtualization extension.
    pub vendor: String,
    /// CPUs that Linux had before.
    pub cpus_before: u64,
    /// CPUs that Linux had in the end.
    pub cpus_after: u64,
    /// Cycles from the first CPU's entry to the return of the last.
    pub enable_cycles: u64,
    /// The same of the way back.
    pub disable_cycles: u64,
    /// What the cell did.
    pub cell: CellReport,
    /// What the cell with the network card did, where the machine has one.
    pub network: Option<NetworkReport>,
    /// Exits of Linux' CPUs by reason.
    pub root_exits: BTreeMap<String, u64>,
    /// The longest times in cycles that a CPU of Linux was away, by reason.
    pub longest_pauses: BTreeMap<String, u64>,
    /// Whether every promise was kept.
    pub ok: bool,
}

/// What the cell did.
#[derive(Debug, Serialize)]
pub struct CellReport {
    /// Its name.
    pub name: String,
    /// Timer ticks that it measured.
    pub ticks: u64,
    /// Shortest time from expiry to handler, in cycles.
    pub min_cycles: u64,
    /// Average of it.
    pub avg_cycles: f64,
    /// Longest.
    pub max_cycles: u64,
    /// VM exits from the first tick to the last.
    pub exits_during_run: u64,
    /// Those that a tick takes on this machine.
    pub exits_a_tick: u64,
}

/// What the cell with the network card did.
#[derive(Debug, Serialize)]
pub struct NetworkReport {
    /// Its name.
    pub name: String,
    /// Pings and datagrams that it was sent.
    pub questions: u64,
    /// Right answers.
    pub answers: u64,
    /// Answers that were wrong, or came again.
    pub wrong: u64,
    /// Shortest time from question to answer, in microseconds of the host.
    pub min_microseconds: u64,
    /// Average of it.
    pub avg_microseconds: u64,
    /// Longest.
    pub max_microseconds: u64,
    /// Interrupts of the card meanwhile.
    pub interrupts: u64,
    /// VM exits of the cell meanwhile.
    pub exits_during_run: u64,
    /// Those that the ends of the interrupts take on this machine.
    pub exits_promised: u64,
}

impl NetworkReport {
    /// What was promised and is not so.
    pub fn broken(&self) -> Option<String> {
        if self.answers != self.questions || self.wrong != 0 || self.questions == 0 {
            return Some(format!(
                "of {} questions to the cell `{}` {} were answered, and {} answers were wrong",
                self.questions, self.name, self.answers, self.wrong
            ));
        }
        (self.exits_during_run != self.exits_promised).then(|| {
            format!(
                "the cell `{}` left {} times for the hypervisor, and {} interrupts ended",
                self.name, self.exits_during_run, self.interrupts
            )
        })
    }
}

/// The report for people.
pub fn table(report: &Report) -> Table {
    let mut table = Table::new(&["what", "value"]);
    let cell = &report.cell;
    table.row(["machine", &report.machine]);
    table.row(["kernel", &report.kernel]);
    table.row([
        "CPUs of Linux before and after".to_owned(),
        format!("{} and {}", report.cpus_before, report.cpus_after),
    ]);
    table.row([
        "cycles to enable".to_owned(),
        thousands(report.enable_cycles),
    ]);
    table.row([
        "cycles to disable".to_owned(),
        thousands(report.disable_cycles),
    ]);
    table.row(["ticks measured".to_owned(), thousands(cell.ticks)]);
    table.row([
        "latency min / avg / max, cycles".to_owned(),
        format!(
            "{} / {:.1} / {}",
            cell.min_cycles, cell.avg_cycles, cell.max_cycles
        ),
    ]);
    table.row([
        "VM exits of the cell during the run".to_owned(),
        thousands(cell.exits_during_run),
    ]);
    if let Some(network) = &report.network {
        table.row([
            "answers of the network cell".to_owned(),
            format!("{} of {}", network.answers, network.questions),
        ]);
        table.row([
            "round trip min / avg / max, µs of the host".to_owned(),
            format!(
                "{} / {} / {}",
                network.min_microseconds, network.avg_microseconds, network.max_microseconds
            ),
        ]);
        table.row([
            "its interrupts, and its VM exits meanwhile".to_owned(),
            format!("{} and {}", network.interrupts, network.exits_during_run),
        ]);
    }
    table.row([
        "VM exits of Linux".to_owned(),
        thousands(report.root_exits.values().sum()),
    ]);
    let longest = report.longest_pauses.values().max();
    table.row([
        "longest pause of a CPU of Linux, in cycles".to_owned(),
        thousands(longest.copied().unwrap_or(0)),
    ]);
    table
}
