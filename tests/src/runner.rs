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
    /// What cannot be shown on some machine; everything else is shown on each.
    pub except: &'static [Except],
    /// The checks, in the order in which they run.
    pub checks: &'static [Check],
}

/// What is not run on a machine, since only another has what it takes.
#[derive(Clone, Copy, Debug)]
pub struct Except {
    machine: Platform,
    /// The check; none: the whole group.
    check: Option<&'static str>,
    reason: &'static str,
}

impl Except {
    /// The whole group is not run on the machine.
    pub const fn group(machine: Platform, reason: &'static str) -> Self {
        Self {
            machine,
            check: None,
            reason,
        }
    }

    /// One check is not run on the machine.
    pub const fn check(machine: Platform, check: &'static str, reason: &'static str) -> Self {
        Self {
            machine,
            check: Some(check),
            reason,
        }
    }

    /// Whether the group has what is excepted.
    #[cfg(test)]
    pub(crate) fn exists(&self, group: &Group) -> bool {
        self.check
            .is_none_or(|name| group.checks.iter().any(|check| check.name == name))
    }

    fn is_of(&self, machine: Platform, check: &str) -> bool {
        self.machine == machine && self.check.is_none_or(|one| one == check)
    }
}

/// The machines that system tests run on.
pub const MACHINES: [Platform; 2] = [Platform::Bochs, Platform::Qemu];

/// What the runner tells while it works. Groups and checks bear the names of their machines.
pub enum Event<'a> {
    /// A group's machine boots.
    Boot(&'a str),
    /// A check starts.
    Start(&'a str),
    /// A check has ended: name, time it took, and what is wrong.
    End(&'a str, Duration, Option<&'a anyhow::Error>),
}

/// The configuration of the machine, whichever it is.
pub const SYSTEM: &str = "system.toml";
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

/// A group on a machine, and the checks of it that were selected.
pub struct Selected<'a> {
    machine: Platform,
    group: &'a Group,
    checks: Vec<&'a Check>,
}

impl Selected<'_> {
    /// The names of the checks, with their group's and their machine's.
    pub fn names(&self) -> impl Iterator<Item = String> {
        self.checks
            .iter()
            .map(|check| name(self.machine, self.group, check))
    }
}

/// What was selected and is not run, with the reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// Where.
    pub machine: Platform,
    /// The names of the checks, without the machine's.
    pub checks: Vec<String>,
    /// Why.
    pub reason: &'static str,
}

fn name(machine: Platform, group: &Group, check: &Check) -> String {
    format!("{}/{}@{}", group.name, check.name, machine.name())
}

/// Whether a name is asked for: by one of the parts that `only` has between commas. A part `this@machine` has to be in
/// the name up to the machine, which must be that one.
#[must_use]
pub fn is_asked_for(name: &str, only: &str) -> bool {
    only.split(',').any(|part| match part.split_once('@') {
        Some((part, machine)) => name
            .split_once('@')
            .is_some_and(|(before, of)| before.contains(part) && of.starts_with(machine)),
        None => name.contains(part),
    })
}

/// The checks whose name, `group/check@machine`, is asked for, and those that their machine cannot run.
pub fn select<'a>(groups: &'a [Group], only: &str) -> (Vec<Selected<'a>>, Vec<Skipped>) {
    let mut selected = Vec::new();
    let mut skipped: Vec<Skipped> = Vec::new();
    for machine in MACHINES {
        for group in groups {
            let mut checks = Vec::new();
            for check in group.checks {
                if !is_asked_for(&name(machine, group, check), only) {
                    continue;
                }
                let except = group.except.iter();
                match except.clone().find(|one| one.is_of(machine, check.name)) {
                    None => checks.push(check),
                    Some(Except { reason, .. }) => {
                        let name = format!("{}/{}", group.name, check.name);
                        let same =
                            |one: &&mut Skipped| one.machine == machine && one.reason == *reason;
                        match skipped.iter_mut().find(same) {
                            Some(one) => one.checks.push(name),
                            None => skipped.push(Skipped {
                                machine,
                                checks: vec![name],
                                reason,
                            }),
                        }
                    }
                }
            }
            if !checks.is_empty() {
                selected.push(Selected {
                    machine,
                    group,
                    checks,
                });
            }
        }
    }
    (selected, skipped)
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
    let Selected { machine, group, .. } = *selected;
    let name_of_group = format!("{}@{}", group.name, machine.name());
    let mut totals = Totals::default();
    let mut context: Option<Context> = None;
    let mut boots = 0;
    // Why the group cannot go on.
    let mut lost: Option<String> = None;
    for check in &selected.checks {
        let name = name(machine, group, check);
        let started = Instant::now();
        if context.is_none() && lost.is_none() {
            report(Event::Boot(&name_of_group));
            boots += 1;
            match boot(machine, group, boots) {
                Ok(booted) => context = Some(booted),
                Err(error) => lost = Some(format!("{error:#}")),
            }
        }
        report(Event::Start(&name));
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
        report(Event::End(&name, started.elapsed(), result.as_ref().err()));
    }
    totals
}

/// Boots a group's machine with everything that was built in /root; each boot keeps its own logs.
fn boot(platform: Platform, group: &Group, boots: u32) -> Result<Context> {
    let name = format!("test-{}-{}", platform.name(), group.name);
    let name = match boots {
        1 => name,
        _ => format!("{name}-{boots}"),
    };
    let spec = (group.machine)(with_artefacts(Spec::new(&name, platform))?)?;
    let mut context = Context {
        machine: Machine::boot(&spec)?,
        platform,
    };
    (group.prepare)(&mut context)
        .map_err(|error| describe(error, &mut context.machine))
        .context("the machine could not be prepared")?;
    Ok(context)
}

/// Adds all files of `target/gaol` to the machine's /root, and its own configuration as `system.toml` once more.
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
            if name == spec.platform.system() {
                spec = spec.file(&format!("root/{SYSTEM}"), &path);
            }
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
    let alive = if machine.end_with_state() {
        format!("{alive}, its CPUs' state is at the end of bochs.out")
    } else {
        alive.to_owned()
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
        except: &[Except::check(Platform::Qemu, "two", "for a reason")],
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
        let names = |part: &str| -> Vec<String> {
            let (selected, _) = select(GROUPS, part);
            selected.iter().flat_map(Selected::names).collect()
        };
        let all = ["first/one@bochs", "first/two@bochs", "first/one@qemu"];
        assert_eq!(names(""), all);
        assert_eq!(names("first/t"), all[1..2]);
        assert_eq!(names("@qemu"), all[2..]);
        assert!(names("third").is_empty());
    }

    #[test]
    fn what_a_machine_cannot_run_is_told() {
        let (_, skipped) = select(GROUPS, "");
        assert_eq!(
            skipped,
            [Skipped {
                machine: Platform::Qemu,
                checks: vec!["first/two".to_owned()],
                reason: "for a reason",
            }]
        );
        assert!(select(GROUPS, "one").1.is_empty());
        assert!(select(GROUPS, "@bochs").1.is_empty());
    }

    #[test]
    fn one_or_two_machines_run_at_once() {
        assert!((1..=2).contains(&machines_at_once()));
    }

    #[test]
    fn names_are_asked_for_in_parts_and_of_machines() {
        let name = "cells/two-at-once@qemu";
        for only in [
            "",
            "cells",
            "two-at",
            "@qemu",
            "cells@qemu",
            "none,two@qemu",
        ] {
            assert!(is_asked_for(name, only), "{only}");
        }
        for only in ["cells@bochs", "none", "one,two@bochs", "qemu@qemu"] {
            assert!(!is_asked_for(name, only), "{only}");
        }
        // What runs on no machine is asked for without one.
        assert!(is_asked_for("host/image", "host/") && !is_asked_for("host/image", "host@qemu"));
    }
}
