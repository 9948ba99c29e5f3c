//! A run of the latency cell, with Linux under load on its own CPUs, as the demonstration and the tests do it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::gaol::{Gaol, Histogram};
use crate::machine::{Machine, Platform};

/// Keeps Linux busy: a CPU in a loop, memory copied, system calls and processes.
const LOAD: &str = "\
for load in 'while :; do :; done' \
    'while :; do dd if=/dev/zero of=/tmp/load bs=64k count=64 2>/dev/null; done' \
    'while :; do cat /proc/self/stat /proc/interrupts >/dev/null; done'; do
    sh -c \"$load\" &
    echo $! >>/tmp/load.pids
done
";

/// A run that has ended.
#[derive(Clone, Debug)]
pub struct Run {
    /// What the cell measured.
    pub histogram: Histogram,
    /// VM exits of the cell from its first tick to its last.
    pub exits: u64,
}

/// How often the timer may expire while a tick is missed. The host may keep a CPU waiting for long.
const EXPIRIES_MISSED: u64 = 10;

/// The most exits that so many ticks take on a machine, of which some came too late for the next one.
///
/// Where a tick takes exits, each expiry of the timer does, and the first one's or the last one's may lie outside of what
/// was counted.
pub fn most_exits(platform: Platform, ticks: u64, missed: u64) -> u64 {
    match platform.exits_a_tick() {
        0 => 0,
        each => each * (ticks + EXPIRIES_MISSED * missed + 2),
    }
}

/// Asserts that a run is as promised: all ticks measured and counted, and no exits but those of the ticks. Where the
/// machine's time is not the host's, none is missed, either.
///
/// # Errors
/// With what is not.
pub fn is_as_promised(platform: Platform, run: &Run, ticks: u64) -> Result<()> {
    let histogram = &run.histogram;
    ensure!(
        histogram.ticks_done == ticks,
        "{} of {ticks} ticks were measured",
        histogram.ticks_done
    );
    ensure!(
        histogram.missed == 0 || !platform.counts_instructions(),
        "{} ticks were missed",
        histogram.missed
    );
    let counted = histogram.counts.iter().sum::<u64>() + histogram.overflow;
    ensure!(counted == ticks, "the histogram has {counted} ticks");
    ensure!(
        histogram.overflow == 0 || !platform.counts_instructions(),
        "{} ticks came later than the histogram reaches",
        histogram.overflow
    );
    ensure!(
        run.exits <= most_exits(platform, ticks, histogram.missed)
            && run.exits + 2 * platform.exits_a_tick() >= platform.exits_a_tick() * ticks,
        "the cell left {} times for the hypervisor in {ticks} ticks, {} of them missed",
        run.exits,
        histogram.missed
    );
    Ok(())
}

/// Puts Linux under load, until [`stop_load`].
///
/// # Errors
/// When a command fails.
pub fn start_load(machine: &mut Machine) -> Result<()> {
    machine.write_file("/tmp/load.sh", LOAD.as_bytes())?;
    machine.check("sh /tmp/load.sh >/dev/null 2>&1")?;
    Ok(())
}

/// Ends the load and gives its memory back.
///
/// # Errors
/// When a command fails.
pub fn stop_load(machine: &mut Machine) -> Result<()> {
    machine.check("kill $(cat /tmp/load.pids); rm -f /tmp/load /tmp/load.pids /tmp/load.sh")?;
    Ok(())
}

/// Waits for the end of a run that was started; tells `note` how many ticks are done.
///
/// The cell counts its exits itself, exactly, and prints them at the end; what the root sees of the cell's counters in
/// the meantime must not say more.
///
/// # Errors
/// When the run does not end within `timeout`, or the cell has not told its exits.
pub fn wait(
    machine: &mut Machine,
    cell: &str,
    timeout: Duration,
    note: &dyn Fn(&Histogram),
) -> Result<Run> {
    let started = Instant::now();
    let mut has_begun = false;
    let mut first_seen = None;
    let mut last_seen = 0;
    loop {
        let exits: u64 = machine.exits(cell)?.values().sum();
        let mut done = 0;
        if let Some(histogram) = machine.histogram(cell)? {
            note(&histogram);
            done = histogram.ticks_done;
            if histogram.finished {
                let told = exits_told(machine, cell)?;
                let seen = last_seen - first_seen.unwrap_or(last_seen);
                return Ok(Run {
                    histogram,
                    exits: told.max(seen),
                });
            }
        }
        // `exits` was read when the run had begun, if it had at the time of the round before, and had not ended.
        if has_begun {
            first_seen.get_or_insert(exits);
            last_seen = exits;
        }
        has_begun = done > 0;
        ensure!(
            started.elapsed() < timeout,
            "the cell `{cell}` has done only {done} ticks"
        );
        machine.check("sleep 0.2")?;
    }
}

/// The number of exits that the cell has printed; it prints after it has reported the end, so this may take a moment.
fn exits_told(machine: &mut Machine, cell: &str) -> Result<u64> {
    const WORDS: &str = " VM exits from the first tick to the last";
    for _ in 0..20 {
        let console = machine.check("gaol console")?;
        let told = console.lines().rev().find_map(|line| {
            let (before, _) = line.split_once(WORDS)?;
            before.split_whitespace().last()?.parse().ok()
        });
        if let Some(told) = told {
            return Ok(told);
        }
        machine.check("sleep 0.1")?;
    }
    None.with_context(|| format!("the cell `{cell}` has not printed how often it left"))
}
