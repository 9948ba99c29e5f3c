//! Cells that attempt whatever is forbidden, while a real-time cell and the root keep their promises.
//!
//! During each check the cell `latency` takes its ticks on a CPU of its own, and the root computes a checksum over and over
//! again; afterwards Linux is well, the pool has its frames, and the hypervisor has nothing to say. See [`watchers`].

mod table;
mod watchers;

use std::fs;

use anyhow::{Context as _, Result, bail, ensure};
use hostile_cell::attempt::Attempt;
use hostile_cell::outcome::{Line, PREFIX};
use hostile_cell::random::Generator;
use hostile_cell::violations::{Expected, Vendor};
use serde_json::Value;

use super::{Context, SYSTEM, load_modules, usual};
use crate::artefacts;
use crate::gaol::Gaol;
use crate::machine::{Platform, Spec};
use crate::runner::{Check, Group};

/// CPUs of a machine in which the hostile cell has three.
const MANY_CPUS: u32 = 5;
/// Its configuration.
const SMP: &str = include_str!("../../../../configs/hostile-smp.toml");
/// A cell that comes and goes.
const OTHER: &str = include_str!("../../../../configs/deny.toml");
/// The cell whose CPUs stop at ports, too.
const ENDS: &str = "hostile-ends";
/// Random operations, and the seed that decides on them.
const OPERATIONS: u64 = 1_000_000;
const SEED: u64 = 0x6a01;
/// Random operations of each CPU, where there are several.
const OPERATIONS_OF_EACH: u64 = 100_000;

pub(super) const LIST: Group = Group {
    name: "hostile-list",
    machine: usual,
    prepare,
    except: &[],
    checks: &[Check {
        name: "every-violation-that-is-survived-has-its-outcome",
        run: survived,
    }],
};

pub(super) const ENDINGS: Group = Group {
    name: "hostile-endings",
    machine: |spec| {
        let text = SMP
            .replace("\"hostile-smp\"", &format!("\"{ENDS}\""))
            .replace("\"ignore\"", "\"stop\"");
        Ok(with_many_cpus(spec)?.content(&format!("root/{ENDS}.toml"), text))
    },
    prepare,
    except: &[],
    checks: &[
        Check {
            name: "every-violation-that-stops-the-cpu-stops-it",
            run: stopped,
        },
        Check {
            name: "a-cpu-that-goes-on-for-ever-is-ended-by-force",
            run: endless,
        },
    ],
};

pub(super) const RANDOM: Group = Group {
    name: "hostile-random",
    machine: usual,
    prepare,
    except: &[],
    checks: &[Check {
        name: "a-million-random-operations",
        run: random,
    }],
};

pub(super) const REGION: Group = Group {
    name: "hostile-region",
    machine: |spec| {
        let text = OTHER.replace("\"deny\"", "\"other\"").replace("[2]", "[1]");
        Ok(spec.content("root/other.toml", text))
    },
    prepare,
    except: &[],
    checks: &[Check {
        name: "garbage-in-the-communication-region-and-shared-memory",
        run: region,
    }],
};

pub(super) const THREE_CPUS: Group = Group {
    name: "hostile-smp",
    machine: with_many_cpus,
    prepare,
    except: &[],
    checks: &[Check {
        name: "everything-at-once-on-three-cpus",
        run: all,
    }],
};

/// The machine with a CPU more; a file that describes the usual one does not fit it.
fn with_many_cpus(spec: Spec) -> Result<Spec> {
    let system = fs::read_to_string(artefacts::gaol().join(spec.platform.system()))?;
    let fifth =
        "    { apic-id = 4, package = 0, core = 4, l2 = 4, l3 = 0, node = 0 },\n]\nio-apics";
    let spec = Spec {
        cpus: MANY_CPUS,
        ..spec
    };
    Ok(spec.content(
        &format!("root/{SYSTEM}"),
        system.replacen("]\nio-apics", fifth, 1),
    ))
}

fn prepare(context: &mut Context) -> Result<()> {
    load_modules(context)?;
    context.enable()
}

/// Whose processors the machine has.
fn vendor(context: &Context) -> Vendor {
    match context.platform.vendor() {
        gaol_abi::image::Vendor::Svm => Vendor::Amd,
        _ => Vendor::Intel,
    }
}

/// Loads and starts a cell that was created.
fn start(context: &mut Context, cell: &str, command_line: &str) -> Result<()> {
    let more = match context.platform {
        Platform::Qemu => " qemu=1",
        Platform::Bochs | Platform::Kvm => "",
    };
    context.machine.gaol(&format!(
        "cell load {cell} hostile.bin -s \"{command_line}{more}\""
    ))?;
    context.machine.gaol(&format!("cell start {cell}"))?;
    Ok(())
}

/// Where the memory of others is, for the command line.
fn targets(context: &mut Context) -> Result<String> {
    let (hypervisor, _) = context.region()?;
    let victim = super::root::cell_region(context, "latency", "ram")?;
    Ok(format!("hypervisor={hypervisor:#x} victim={victim:#x}"))
}

/// What the cell has said since it was started last.
fn said(context: &mut Context) -> Result<String> {
    let console = context.machine.check("gaol console")?;
    let marker = format!("{PREFIX}do ");
    Ok(console
        .rsplit_once(&marker)
        .map_or(String::new(), |(_, after)| after.to_owned()))
}

/// Waits until the last lines of the console have `text`; the whole console is long. Returns all that was said.
fn wait_said(context: &mut Context, text: &str, polls: u32) -> Result<String> {
    for _ in 0..polls {
        let found = context.machine.run(&format!(
            "gaol console | tail -n 8 | grep -c -e '{text}' -e 'cell failed'"
        ))?;
        if found.status == 0 {
            let said = said(context)?;
            ensure!(!said.contains("cell failed"), "the cell failed: {said}");
            return Ok(said);
        }
        context.machine.check("sleep 0.5")?;
    }
    let list = context.machine.gaol("cell list")?;
    let said = said(context)?;
    let last: Vec<&str> = said.lines().rev().take(6).collect();
    bail!("`{text}` was not said; the last lines, backwards: {last:?}; the cells: {list}")
}

/// What `gaol cell list` says of a cell.
fn listed(context: &mut Context, name: &str) -> Result<Value> {
    let list = context.machine.gaol("cell list")?;
    list.get("cells")
        .and_then(Value::as_array)
        .and_then(|cells| {
            cells
                .iter()
                .find(|cell| cell.get("name").and_then(Value::as_str) == Some(name))
        })
        .cloned()
        .with_context(|| format!("there is no cell `{name}`: {list}"))
}

fn survived(context: &mut Context) -> Result<()> {
    watchers::watch(context, |context| {
        context.machine.gaol("cell create hostile.toml")?;
        let targets = targets(context)?;
        start(context, "hostile", &format!("do=list {targets}"))?;
        let said = wait_said(context, "list done", 400)?;
        context.machine.gaol("cell destroy hostile")?;
        table::compare(
            vendor(context),
            &said,
            match context.platform {
                Platform::Qemu => |attempt| !attempt.is_beyond_qemu(),
                Platform::Bochs | Platform::Kvm => |_| true,
            },
        )
    })
}

/// Lets the CPUs of the cell attempt the rows that end so, three at a time; calls `look` when they have tried.
fn batches(
    context: &mut Context,
    expected: Expected,
    word: &str,
    look: fn(&mut Context) -> Result<()>,
) -> Result<()> {
    watchers::watch(context, |context| {
        context.machine.gaol(&format!("cell create {ENDS}.toml"))?;
        let targets = targets(context)?;
        let rows: Vec<usize> = table::ending(vendor(context), expected);
        let mut wrong = Vec::new();
        for (batch, numbers) in rows.chunks(3).enumerate() {
            let from = 3 * batch;
            start(
                context,
                ENDS,
                &format!("do=end expect={word} from={from} {targets}"),
            )?;
            for number in numbers {
                wait_said(context, &Line::Try(*number).to_string(), 100)?;
            }
            if let Err(error) = look(context) {
                wrong.push(format!("{error:#}"));
            }
            wrong.extend(table::survivors(vendor(context), &said(context)?));
            context
                .machine
                .gaol(&format!("cell shutdown {ENDS} --force"))?;
        }
        context
            .machine
            .gaol(&format!("cell destroy {ENDS} --force"))?;
        ensure!(wrong.is_empty(), "{}", wrong.join("; "));
        Ok(())
    })
}

fn stopped(context: &mut Context) -> Result<()> {
    batches(context, Expected::Stopped, "stopped", |context| {
        context.wait_state(ENDS, "failed")?;
        let cell = listed(context, ENDS)?;
        let records = cell
            .get("faults")
            .and_then(Value::as_array)
            .map_or(0, Vec::len);
        ensure!(records == 3, "there are {records} fault records: {cell}");
        Ok(())
    })
}

fn endless(context: &mut Context) -> Result<()> {
    batches(context, Expected::Endless, "endless", |context| {
        // It does not answer either.
        context
            .machine
            .refused(&format!("cell shutdown {ENDS}"), "time")?;
        let cell = listed(context, ENDS)?;
        let failed = cell.get("cpus_failed").and_then(Value::as_array);
        ensure!(
            failed.is_some_and(Vec::is_empty),
            "a CPU was stopped: {cell}"
        );
        Ok(())
    })
}

/// The checksum of so many random attempts.
fn checksum(seed: u64, count: u64) -> u64 {
    let mut generator = Generator::new(seed);
    for _ in 0..count {
        let _: Attempt = generator.attempt();
    }
    generator.checksum()
}

fn random(context: &mut Context) -> Result<()> {
    watchers::watch(context, |context| {
        context.machine.gaol("cell create hostile.toml")?;
        let command_line = format!("do=random seed={SEED:#x} count={OPERATIONS}");
        start(context, "hostile", &command_line)?;
        let said = wait_said(context, "random done", 10_000)?;
        let expected = format!("checksum {:#x}", checksum(SEED, OPERATIONS));
        ensure!(
            said.contains(&expected),
            "{expected} is missing, seed {SEED:#x}: {said}"
        );
        context.machine.gaol("cell destroy hostile")?;
        Ok(())
    })
}

fn region(context: &mut Context) -> Result<()> {
    watchers::watch(context, |context| {
        context.machine.gaol("cell create hostile.toml")?;
        start(context, "hostile", &format!("do=region seed={SEED:#x}"))?;
        wait_said(context, "region attack", 100)?;
        for round in 0..5 {
            for command in ["cell list", "cell stats hostile"] {
                context.machine.gaol(command)?;
            }
            // Whatever the answer is, it is one, in words.
            let command = "gaol cell shutdown hostile";
            let output = context.machine.run(command)?;
            ensure!(
                output.status <= 1 && !output.stdout.contains("panicked"),
                "round {round}: `{command}` ended with {}: {}",
                output.status,
                output.stdout
            );
            if output.status == 0 {
                // It was taken for an answer.
                start(context, "hostile", &format!("do=region seed={round}"))?;
            }
            // Cells come and go meanwhile, unless the region says "locked" at this moment.
            let output = context.machine.run("gaol cell create other.toml")?;
            ensure!(
                output.status == 0 || output.stdout.contains("lock"),
                "round {round}: {}",
                output.stdout
            );
            if output.status == 0 {
                context.machine.gaol("cell destroy other --force")?;
            }
        }
        context.machine.gaol("cell destroy hostile --force")?;
        Ok(())
    })
}

fn all(context: &mut Context) -> Result<()> {
    watchers::watch(context, |context| {
        context.machine.gaol("cell create hostile-smp.toml")?;
        let command_line = format!("do=all seed={SEED:#x} count={OPERATIONS_OF_EACH}");
        start(context, "hostile-smp", &command_line)?;
        let said = wait_said(context, "all done", 10_000)?;
        for number in 0..3 {
            let sum = checksum(SEED + number, OPERATIONS_OF_EACH);
            let expected = format!("CPU {number}: checksum {sum:#x}");
            ensure!(
                said.contains(&expected),
                "`{expected}` is missing, seed {SEED:#x}: {said}"
            );
        }
        for expected in ["attacks done, 0 wrong", "all done, 2 came back, true"] {
            ensure!(said.contains(expected), "`{expected}` is missing: {said}");
        }
        context.machine.gaol("cell destroy hostile-smp")?;
        Ok(())
    })
}
