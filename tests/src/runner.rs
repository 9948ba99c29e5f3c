//! Runs groups of system tests: one machine a group, several groups at a time.
//!
//! Every check of a group is counted exactly once, whatever happens: a check that fails leaves a machine that nobody
//! trusts, so that the next one gets a fresh boot; when that has happened too often, the rest of the group fails.

use std::collections::VecDeque;
use std::fs;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};

use crate::artefacts;
use crate::machine::{Machine, Platform, Spec};
use crate::system::Context;

/// One thing to be shown.
pub struct Check {
    /// Its name, unique in its group.
    pub name: &'static str,
    /// Shows it, or says what is wrong.
    pub run: fn(&mut Context) -> Result<()>,
}

/// Checks that share a boot.
pub struct Group {
    /// Its name, which the machine's directory bears too.
    pub name: &'static str,
    /// Changes the usual machine into the one that the group needs.
    pub machine: fn(Spec) -> Result<Spec>,
    /// What is done after each boot.
    pub prepare: fn(&mut Context) -> Result<()>,
    /// The checks, in the order in which they run.
    pub checks: &'static [Check],
}

/// What the runner tells while it works.
pub enum Event<'a> {
    /// A group's machine boots.
    Boot(&'a str),
    /// A check starts: group and name.
    Start(&'a str, &'a str),
    /// A check has ended: group, name, time it took, and what is wrong.
    End(&'a str, &'a str, Duration, Option<&'a anyhow::Error>),
    /// A group has ended.
    Finished(&'a str),
}

/// How often a group may have its machine booted.
const MOST_BOOTS: u32 = 3;
/// What an emulator takes on its host besides the machine's memory.
const EMULATOR_MIB: u64 = 300;

/// How the checks ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Checks that passed.
    pub passed: u32,
    /// Checks that failed.
    pub failed: u32,
}

/// A group and the checks of it that were selected.
pub struct Selected<'a> {
    group: &'a Group,
    checks: Vec<&'a Check>,
}

impl Selected<'_> {
    /// The names of the checks, with their group's.
    pub fn names(&self) -> impl Iterator<Item = String> {
        self.checks
            .iter()
            .map(|check| format!("{}/{}", self.group.name, check.name))
    }
}

/// The checks whose name, `group/check`, contains `part`.
pub fn select<'a>(groups: &'a [Group], part: &str) -> Vec<Selected<'a>> {
    groups
        .iter()
        .map(|group| Selected {
            group,
            checks: group
                .checks
                .iter()
                .filter(|check| format!("{}/{}", group.name, check.name).contains(part))
                .collect(),
        })
        .filter(|selected| !selected.checks.is_empty())
        .collect()
}

/// Runs the selected checks and tells `report`, possibly from several threads, what happens.
pub fn run(selected: Vec<Selected<'_>>, report: &(dyn Fn(Event<'_>) + Sync)) -> Totals {
    let machines = machines_at_once().min(selected.len());
    let queue = Mutex::new(VecDeque::from(selected));
    let totals = Mutex::new(Totals::default());
    thread::scope(|scope| {
        for _ in 0..machines {
            scope.spawn(|| {
                while let Some(next) = pop(&queue) {
                    let of_group = run_group(&next, report);
                    let mut totals = totals.lock().unwrap_or_else(PoisonError::into_inner);
                    totals.passed += of_group.passed;
                    totals.failed += of_group.failed;
                }
            });
        }
    });
    totals.into_inner().unwrap_or_else(PoisonError::into_inner)
}

fn pop<'a>(queue: &Mutex<VecDeque<Selected<'a>>>) -> Option<Selected<'a>> {
    queue
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .pop_front()
}

fn run_group(selected: &Selected<'_>, report: &(dyn Fn(Event<'_>) + Sync)) -> Totals {
    let group = selected.group;
    let mut totals = Totals::default();
    let mut context: Option<Context> = None;
    let mut boots = 0;
    // Why the group cannot go on.
    let mut lost: Option<String> = None;
    for check in &selected.checks {
        let started = Instant::now();
        if context.is_none() && lost.is_none() {
            report(Event::Boot(group.name));
            boots += 1;
            match boot(group, boots) {
                Ok(booted) => context = Some(booted),
                Err(error) => lost = Some(format!("{error:#}")),
            }
        }
        report(Event::Start(group.name, check.name));
        let result = match (&mut context, &lost) {
            (_, Some(reason)) => Err(anyhow!("not run: {reason}")),
            (Some(context), None) => (check.run)(context),
            (None, None) => Err(anyhow!("not run")),
        };
        let result = result.map_err(|error| match &mut context {
            Some(context) => describe(error, &mut context.machine),
            None => error,
        });
        if result.is_err() {
            context = None;
            if boots >= MOST_BOOTS && lost.is_none() {
                lost = Some(format!("its machine was booted {boots} times already"));
            }
            totals.failed += 1;
        } else {
            totals.passed += 1;
        }
        report(Event::End(
            group.name,
            check.name,
            started.elapsed(),
            result.as_ref().err(),
        ));
    }
    report(Event::Finished(group.name));
    totals
}

/// Boots a group's machine with everything that was built in /root; each boot keeps its own logs.
fn boot(group: &Group, boots: u32) -> Result<Context> {
    let name = match boots {
        1 => format!("test-{}", group.name),
        _ => format!("test-{}-{boots}", group.name),
    };
    let spec = (group.machine)(with_artefacts(Spec::new(&name, Platform::Bochs))?)?;
    let mut context = Context {
        machine: Machine::boot(&spec)?,
    };
    (group.prepare)(&mut context)
        .map_err(|error| describe(error, &mut context.machine))
        .context("the machine could not be prepared")?;
    Ok(context)
}

/// Adds all files of `target/gaol` to the machine's /root.
///
/// # Errors
/// When nothing was built.
pub fn with_artefacts(mut spec: Spec) -> Result<Spec> {
    let directory = artefacts::gaol();
    let entries = fs::read_dir(&directory).with_context(|| {
        format!(
            "nothing was built: {} is missing",
            artefacts::display(&directory)
        )
    })?;
    for entry in entries {
        let path = entry?.path();
        if path.is_file() {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            spec = spec.file(&format!("root/{name}"), &path);
        }
    }
    Ok(spec)
}

/// Adds to an error where the logs are and how the hypervisor's own ends.
fn describe(error: anyhow::Error, machine: &mut Machine) -> anyhow::Error {
    let alive = if machine.is_alive() {
        "the machine still answers"
    } else if machine.had_triple_fault() {
        "the machine is lost: a CPU had a triple fault"
    } else {
        "the machine is lost"
    };
    let log = machine.hypervisor_log();
    let lines: Vec<&str> = log.lines().collect();
    let mut tail = lines[lines.len().saturating_sub(8)..].join("\n    ");
    if tail.is_empty() {
        tail = "(nothing)".to_owned();
    }
    anyhow!(
        "{error:#}\n  {alive}; logs in {}; the hypervisor's last words:\n    {tail}",
        artefacts::display(machine.directory())
    )
}

/// As many machines as the host has cores (two at the most, they are noisy neighbours) and memory for.
fn machines_at_once() -> usize {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let available = fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| {
            text.lines()
                .find_map(|line| line.strip_prefix("MemAvailable:"))
                .and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok())
        })
        .unwrap_or(0)
        / 1024;
    let each = u64::from(Spec::new("", Platform::Bochs).memory_mib) + EMULATOR_MIB;
    let fitting = usize::try_from(available / each).unwrap_or(usize::MAX);
    cores.min(fitting).clamp(1, 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUPS: &[Group] = &[Group {
        name: "first",
        machine: Ok,
        prepare: |_| Ok(()),
        checks: &[
            Check {
                name: "one",
                run: |_| Ok(()),
            },
            Check {
                name: "two",
                run: |_| Ok(()),
            },
        ],
    }];

    #[test]
    fn checks_are_selected_by_part_of_their_name() {
        assert_eq!(select(GROUPS, "").len(), 1);
        assert_eq!(select(GROUPS, "first/t")[0].checks.len(), 1);
        assert_eq!(select(GROUPS, "first")[0].checks.len(), 2);
        assert!(select(GROUPS, "third").is_empty());
    }

    #[test]
    fn one_or_two_machines_run_at_once() {
        assert!((1..=2).contains(&machines_at_once()));
    }
}
