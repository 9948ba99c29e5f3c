//! Those who must not notice an attack: a real-time cell, and the root at its work.

use anyhow::{Context as _, Result, ensure};

use super::super::Context;
use crate::gaol::{Gaol, Histogram};
use crate::latency;

/// Longest time from the timer's expiry to the handler of the real-time cell, in instructions: as without an attack.
const LONGEST: u64 = 10;
/// Ticks of the real-time cell during an attack at the least.
const TICKS: u64 = 500;
/// Rounds of the root's work during an attack at the least.
const ROUNDS: u64 = 3;

/// The root's work: a file is copied and its checksum compared with the first one, over and over again.
const WORK: &str = "\
dd if=/dev/urandom of=/tmp/work.data bs=64k count=4 2>/dev/null
expected=$(sha256sum </tmp/work.data)
rounds=0
while [ ! -e /tmp/work.end ]; do
    cp /tmp/work.data /tmp/work.copy
    if [ \"$(sha256sum </tmp/work.copy)\" != \"$expected\" ]; then
        echo wrong in round $rounds >>/tmp/work.wrong
    fi
    rounds=$((rounds + 1))
    echo $rounds >/tmp/work.rounds
done
echo end >/tmp/work.done
";

/// What the hypervisor would say if something were wrong with itself.
const COMPLAINTS: [&str; 4] = ["panic", "exception", "VM entry failed", "stops"];

fn ticks(context: &mut Context) -> Result<Histogram> {
    context
        .machine
        .histogram("latency")?
        .context("the real-time cell has no results")
}

fn exits(context: &mut Context) -> Result<u64> {
    Ok(context.machine.exits("latency")?.values().sum())
}

fn rounds(context: &mut Context) -> Result<u64> {
    let text = context
        .machine
        .check("cat /tmp/work.rounds 2>/dev/null || echo 0")?;
    Ok(text.trim().parse().unwrap_or(0))
}

/// Waits until the root has done so many rounds.
fn wait_rounds(context: &mut Context, wanted: u64) -> Result<()> {
    for _ in 0..300 {
        if rounds(context)? >= wanted {
            return Ok(());
        }
        context.machine.check("sleep 0.2")?;
    }
    anyhow::bail!("the root's work does not come to round {wanted}")
}

/// Waits until the real-time cell has had so many ticks: an attack may be over sooner where they are rare.
fn wait_ticks(context: &mut Context, wanted: u64) -> Result<()> {
    for _ in 0..100 {
        if ticks(context)?.ticks_done >= wanted {
            return Ok(());
        }
        context.machine.check("sleep 0.3")?;
    }
    anyhow::bail!("the real-time cell does not come to {wanted} ticks")
}

fn start_work(context: &mut Context) -> Result<()> {
    context.machine.check("rm -f /tmp/work.*")?;
    context
        .machine
        .write_file("/tmp/work.sh", WORK.as_bytes())?;
    context.machine.check("sh /tmp/work.sh >/dev/null 2>&1 &")?;
    wait_rounds(context, 1)
}

fn end_work(context: &mut Context) -> Result<()> {
    context.machine.check(
        "touch /tmp/work.end; while [ ! -e /tmp/work.done ]; do sleep 0.1; done; [ ! -e /tmp/work.wrong ] || { cat /tmp/work.wrong; false; }; rm -f /tmp/work.*",
    )?;
    Ok(())
}

/// Does `attack`, which leaves no cell behind, and asserts that nobody else has noticed.
pub(super) fn watch(
    context: &mut Context,
    attack: impl FnOnce(&mut Context) -> Result<()>,
) -> Result<()> {
    let cpus = context.machine.check("nproc")?.trim().parse()?;
    let frames = context.sysfs_number("mem_pool_used")?;
    // Where a tick takes exits, many of them would leave an emulated machine no time for the attack.
    let period = match context.platform.exits_a_tick() {
        0 => "100us",
        _ => "5ms",
    };
    let arguments = format!("period={period} ticks=1000000000 exits=0 summary=0");
    context.start_cell("latency", &arguments)?;
    context.wait_console("latency: 1000000000 ticks")?;
    start_work(context)?;
    let ticks_before = ticks(context)?;
    let exits_before = exits(context)?;
    let rounds_before = rounds(context)?;
    ensure!(ticks_before.ticks_done > 0, "no tick has come");

    attack(context)?;

    wait_rounds(context, rounds_before + ROUNDS)?;
    end_work(context)?;
    wait_ticks(context, ticks_before.ticks_done + TICKS)?;
    // The ticks are read last, so that those of all exits are among them.
    let exits_after = exits(context)?;
    let ticks_after = ticks(context)?;
    let passed = ticks_after.ticks_done - ticks_before.ticks_done;
    ensure!(
        passed >= TICKS && !ticks_after.finished,
        "the real-time cell has had {passed} ticks"
    );
    let left = exits_after - exits_before;
    let missed = ticks_after.missed - ticks_before.missed;
    ensure!(
        left <= latency::most_exits(context.platform, passed, missed),
        "the real-time cell left {left} times for the hypervisor in {passed} ticks"
    );
    let is_exact = context.platform.counts_instructions();
    ensure!(
        !is_exact || ticks_after.missed == 0,
        "{} ticks were lost",
        ticks_after.missed
    );
    ensure!(
        !is_exact || ticks_after.max_cycles <= LONGEST,
        "the longest time from expiry to handler was {} cycles, and {} before the attack",
        ticks_after.max_cycles,
        ticks_before.max_cycles
    );
    context.wait_state("latency", "running")?;
    context.machine.gaol("cell destroy latency")?;
    let left = context.sysfs_number("mem_pool_used")?;
    ensure!(
        left == frames,
        "{left} frames of the pool are in use, and were {frames} before"
    );
    context.machine.linux_is_well(cpus)?;
    let log = context.machine.hypervisor_log();
    let complaint = log.lines().find(|line| {
        !line.contains("hostile: ") && COMPLAINTS.iter().any(|word| line.contains(word))
    });
    ensure!(
        complaint.is_none(),
        "the hypervisor says: {}",
        complaint.unwrap_or_default()
    );
    Ok(())
}
