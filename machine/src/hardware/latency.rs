//! What delays a real-time cell behind everyone's back: firmware, sleep, frequency, siblings.

use super::Facts;
use super::facts::{Cpu, Smi, SmiCount};
use super::linux_facts::IdleState;
use super::parse::ranges;
use super::row::{Group, Question, Row, cpus};

const SMI: Question = Group::RealTime.wanted(
    "smi",
    "system management interrupts",
    "The firmware takes all CPUs at will, for tens of microseconds and more, and no hypervisor can prevent it.",
);
const SLEEP: Question = Group::RealTime.wanted(
    "idle_states",
    "sleep states of Linux",
    "A package in deep sleep slows down the caches and the memory that cells use.",
);
const GOVERNOR: Question = Group::RealTime.wanted(
    "frequency_governor",
    "frequency governor",
    "A CPU keeps the frequency that it had when it left Linux, and the caches follow the others'.",
);
const TURBO: Question = Group::RealTime.wanted(
    "turbo",
    "turbo off",
    "With turbo a cell's speed depends on what the other CPUs do.",
);
const THREADS: Question = Group::RealTime.wanted(
    "hyper_threading",
    "hyper-threading off",
    "Threads of one core share its caches and units: what one does delays the other, and can be seen by it.",
);

/// Microseconds of waking up above which a sleep state counts as deep.
const DEEP: u64 = 10;

pub(super) fn rows(facts: &Facts, rows: &mut Vec<Row>) {
    rows.push(threads(facts));
    rows.push(smi(facts));
    rows.push(sleep(facts));
    rows.push(governor(facts));
    rows.push(turbo(facts));
}

fn threads(facts: &Facts) -> Row {
    let mut shared: Vec<&Vec<u32>> = Vec::new();
    for cpu in &facts.cpus {
        match &cpu.siblings {
            Err(problem) => return THREADS.unknown(problem),
            Ok(siblings) if siblings.len() > 1 && !shared.contains(&siblings) => {
                shared.push(siblings);
            }
            Ok(_) => {}
        }
    }
    match shared.as_slice() {
        [] => THREADS.ok("each CPU is a core of its own"),
        shared => {
            let shown: Vec<String> = shared.iter().take(8).map(|list| ranges(list)).collect();
            let more = if shared.len() > shown.len() {
                "; …"
            } else {
                ""
            };
            THREADS.bad(
                format!("on: siblings {}{more}", shown.join("; ")),
                "Turn it off (echo off > /sys/devices/system/cpu/smt/control, or in the firmware), or give a cell all threads of its cores.",
            )
        }
    }
}

fn smi(facts: &Facts) -> Row {
    let measure = "Watch the cell's longest latency instead: gaol cell histogram";
    let (seconds, counts) = match &facts.smi {
        Smi::Measured { seconds, counts } => (*seconds, counts),
        Smi::NotMeasured(why) => {
            let counter = |cpu: &Cpu| cpu.msr(super::facts::msr::SMI_COUNT);
            let readings: Vec<_> = facts.cpus.iter().map(counter).collect();
            let total = readings.iter().flatten().max();
            return match (total, readings.first()) {
                (Some(total), _) => SMI.undecided(
                    format!("{why}; {total} since reset"),
                    "Run `gaol hardware check` on the machine itself.",
                ),
                (None, Some(Err(problem))) if super::facts::is_absent_register(problem) => {
                    SMI.undecided("the processor does not count them", measure)
                }
                (None, Some(Err(problem))) => SMI.unknown(problem),
                (None, _) => SMI.undecided(*why, measure),
            };
        }
    };
    let mut most: Option<(u64, &SmiCount)> = None;
    let mut since_reset = 0;
    for count in counts {
        match (&count.before, &count.after) {
            (Err(problem), _) | (_, Err(problem)) => return SMI.unknown(problem),
            (Ok(before), Ok(after)) => {
                let number = after.wrapping_sub(*before);
                since_reset = since_reset.max(*after);
                if most.is_none_or(|(largest, _)| number > largest) {
                    most = Some((number, count));
                }
            }
        }
    }
    match most {
        Some((number @ 1.., count)) => SMI.bad(
            format!("{number} on CPU {} in {seconds} s", count.cpu),
            "Turn off in the firmware setup what causes them: emulation of USB keyboards, power and thermal management, ECC logging.",
        ),
        _ if since_reset == 0 => SMI.undecided(
            format!("the counter stands at 0 since reset, also after {seconds} s: the processor may not count"),
            measure,
        ),
        _ => SMI.ok(format!("none in {seconds} s; {since_reset} since reset")),
    }
}

fn sleep(facts: &Facts) -> Row {
    let driver = match &facts.linux.idle_driver {
        Err(problem) => return SLEEP.unknown(problem),
        Ok(driver) => driver.as_deref().unwrap_or("none"),
    };
    let states = match &facts.linux.idle_states {
        Err(problem) => return SLEEP.unknown(problem),
        Ok(states) => states,
    };
    let used = states.iter().filter(|state| !state.is_disabled);
    let deepest: Option<&IdleState> = used.max_by_key(|state| state.latency);
    match deepest {
        None if driver == "none" => SLEEP.ok("no driver: CPUs only halt"),
        None => SLEEP.ok(format!("driver {driver}, all states are off")),
        Some(state) if state.latency <= DEEP => SLEEP.ok(format!(
            "driver {driver}, deepest {}: {} µs to wake up",
            state.name, state.latency
        )),
        Some(state) => SLEEP.bad(
            format!("driver {driver}, deepest {}: {} µs to wake up", state.name, state.latency),
            "Keep Linux awake while cells run: a program that holds /dev/cpu_dma_latency open with 0 in it (PM QoS), or `intel_idle.max_cstate=1 processor.max_cstate=1`.",
        ),
    }
}

fn governor(facts: &Facts) -> Row {
    let mut others: Vec<u32> = Vec::new();
    let mut name = None;
    let mut is_scaled = false;
    for cpu in &facts.cpus {
        match &cpu.governor {
            Err(problem) => return GOVERNOR.unknown(problem),
            Ok(None) => {}
            Ok(Some(governor)) => {
                is_scaled = true;
                if governor != "performance" {
                    name = name.or(Some(governor));
                    others.push(cpu.number);
                }
            }
        }
    }
    match name {
        None if is_scaled => GOVERNOR.ok("performance"),
        None => GOVERNOR.ok("none: Linux does not scale the frequency"),
        Some(name) => GOVERNOR.bad(
            format!("{name} on {}", cpus(&others)),
            "Choose the fixed one: echo performance | tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor",
        ),
    }
}

fn turbo(facts: &Facts) -> Row {
    match &facts.linux.turbo {
        Err(problem) => TURBO.unknown(problem),
        Ok(Some(false)) => TURBO.ok("off"),
        Ok(Some(true)) => TURBO.bad(
            "on",
            "Turn it off: echo 1 > /sys/devices/system/cpu/intel_pstate/no_turbo, or echo 0 > /sys/devices/system/cpu/cpufreq/boost",
        ),
        Ok(None) => {
            // SDM, "Intel Turbo Boost Technology": the bit is clear where it is turned off.
            use super::facts::{Feature, Register};
            match facts.census_of(Feature(6, 0, Register::Eax, 1)) {
                super::row::Census::Unknown(problem) => TURBO.unknown(&problem),
                super::row::Census::All(_) => TURBO.bad(
                    "on, and no driver of Linux controls it",
                    "Turn it off in the firmware setup.",
                ),
                super::row::Census::Not { .. } => TURBO.ok("none"),
            }
        }
    }
}
