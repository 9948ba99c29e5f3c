//! `cargo xtask test`: everything that tells whether a change may go in.
//!
//! Each test counts once, and the last line is `N passed, N failed`. A step that cannot run counts as failed.

use std::process::{Command, ExitCode};
use std::sync::Mutex;

use anyhow::{Result, ensure};
use gaol_tests::artefacts;
use gaol_tests::runner::{self, Event, Skipped};
use gaol_tests::system::GROUPS;

use crate::build;
use crate::process::{self, Ended};
use crate::progress::Progress;
use crate::setup;
use crate::toolchain::{Toolchain, cargo, cargo_target};

/// Which tests.
#[derive(clap::Args)]
pub struct Arguments {
    /// Run only what has this in its name: parts of names between commas, each of one machine only with `@machine`
    #[arg(long, value_name = "NAME", default_value = "")]
    only: String,
    /// Print the names and run nothing
    #[arg(long)]
    list: bool,
    /// Run the system tests with what is in target/gaol already
    #[arg(long)]
    no_build: bool,
}

/// A test that runs on the host.
struct HostStep {
    name: &'static str,
    /// It needs one processor and takes long: it runs beside the others.
    beside: bool,
    /// Counts of what passed and failed, and what is wrong.
    run: fn(&Toolchain) -> Result<Count>,
}

/// What a step found.
#[derive(Debug, Default, PartialEq, Eq)]
struct Count {
    passed: u32,
    failed: u32,
    complaints: Vec<String>,
}

const HOST_STEPS: &[HostStep] = &[
    HostStep {
        name: "host/format",
        beside: false,
        run: |_| single("format", cargo().args(["fmt", "--all", "--check"])),
    },
    HostStep {
        name: "host/clippy",
        beside: false,
        run: |_| {
            single(
                "clippy",
                cargo().args([
                    "clippy",
                    "--workspace",
                    "--all-targets",
                    "--",
                    "-D",
                    "warnings",
                ]),
            )
        },
    },
    HostStep {
        name: "host/clippy-hypervisor-images",
        beside: false,
        run: clippy_images,
    },
    HostStep {
        name: "host/clippy-cell-images",
        beside: false,
        run: clippy_cells,
    },
    HostStep {
        name: "host/documentation",
        beside: false,
        run: |_| {
            single(
                "documentation",
                cargo().env("RUSTDOCFLAGS", "-D warnings").args([
                    "doc",
                    "--workspace",
                    "--no-deps",
                    "--document-private-items",
                ]),
            )
        },
    },
    HostStep {
        name: "host/module-without-warnings",
        beside: false,
        run: |_| Ok(count_of(build::module())),
    },
    HostStep {
        name: "host/image",
        beside: false,
        run: |toolchain| Ok(count_of(build::inspect(toolchain))),
    },
    // On QEMU: the world switch, what the module refuses, and the life of cells with a stand-in for the hypervisor.
    HostStep {
        name: "host/module-without-a-hypervisor",
        beside: true,
        run: |_| {
            let script = artefacts::workspace_root().join("loader-driver/test/run");
            let mut run = Command::new(script);
            run.env("CARGO_TARGET_DIR", cargo_target());
            single("world-switch", &mut run)
        },
    },
    HostStep {
        name: "host/tests",
        beside: false,
        run: |_| {
            let ended = process::run_to_end(
                "host-tests",
                cargo().args(["test", "--workspace", "--no-fail-fast"]),
            )?;
            Ok(count_tests(&ended))
        },
    },
    // Too slow without optimization, and worth nothing without the checks of a debug build.
    HostStep {
        name: "host/decoder-on-ten-million-instructions",
        beside: true,
        run: |_| {
            let ended = process::run_to_end(
                "host-decoder",
                cargo().args([
                    "test",
                    "--package=gaol-hypervisor",
                    "--lib",
                    "--profile=fuzz",
                    "ten_million",
                    "--",
                    "--ignored",
                ]),
            )?;
            Ok(count_tests(&ended))
        },
    },
];

/// Runs the tests; the exit code tells whether all passed.
///
/// # Errors
/// When something that every test needs is missing, or no test has that name.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let steps: Vec<&HostStep> = HOST_STEPS
        .iter()
        .filter(|step| runner::is_asked_for(step.name, &arguments.only))
        .collect();
    let (selected, skipped) = runner::select(GROUPS, &arguments.only);
    ensure!(
        !steps.is_empty() || !selected.is_empty(),
        "no test has `{}` in its name: `cargo xtask test --list` prints them all",
        arguments.only
    );
    if arguments.list {
        for step in steps {
            println!("{}", step.name);
        }
        for name in selected.iter().flat_map(runner::Selected::names) {
            println!("{name}");
        }
        present_skipped(&skipped);
        return Ok(ExitCode::SUCCESS);
    }

    let system: usize = selected.iter().map(|group| group.names().count()).sum();
    let progress = Progress::new((steps.len() + build::PARTS.len() + system) as u64);
    let toolchain = setup::run(&progress)?;
    setup::lints(&progress)?;
    setup::qemu()?;
    let mut total = host_steps(&progress, &steps, &toolchain);
    if system > 0 {
        let parts = match arguments.no_build {
            true => &[],
            false => build::PARTS,
        };
        total.add(system_tests(&progress, &toolchain, parts, selected, system));
    }
    progress.finish();
    for complaint in &total.complaints {
        println!("FAILED {complaint}\n");
    }
    present_skipped(&skipped);
    println!("in {:.0} s", progress.elapsed().as_secs_f64());
    println!("{} passed, {} failed", total.passed, total.failed);
    Ok(if total.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// What no machine could be asked for, with the reasons.
fn present_skipped(skipped: &[Skipped]) {
    for Skipped {
        machine,
        checks,
        reason,
    } in skipped
    {
        println!("not on {}: {reason}", machine.name());
        for check in checks {
            println!("    {check}");
        }
    }
}

/// All these steps, one after the other, and at the same time those that run beside them.
fn host_steps(progress: &Progress, steps: &[&HostStep], toolchain: &Toolchain) -> Count {
    let run = |beside| {
        let mut count = Count::default();
        for step in steps.iter().filter(|step| step.beside == beside) {
            count.add(host_step(progress, step, toolchain));
        }
        count
    };
    std::thread::scope(|scope| {
        let beside = scope.spawn(|| run(true));
        let mut total = run(false);
        total.add(beside.join().unwrap_or_else(|_| {
            Count::failure("the steps that run beside the others have failed".to_owned())
        }));
        total
    })
}

fn host_step(progress: &Progress, step: &HostStep, toolchain: &Toolchain) -> Count {
    progress.begin(step.name);
    let started = std::time::Instant::now();
    let mut count =
        (step.run)(toolchain).unwrap_or_else(|error| Count::failure(format!("{error:#}")));
    progress.end(step.name);
    for complaint in &mut count.complaints {
        *complaint = format!("{}: {complaint}", step.name);
    }
    let sign = if count.failed == 0 { "✓" } else { "✗" };
    let number = match count.passed + count.failed {
        0 | 1 => String::new(),
        _ => format!(" ({} passed, {} failed)", count.passed, count.failed),
    };
    progress.line(&format!(
        "{sign} {}{number}  {:.1} s",
        step.name,
        started.elapsed().as_secs_f64()
    ));
    count
}

fn system_tests(
    progress: &Progress,
    toolchain: &Toolchain,
    parts: &[build::Part],
    selected: Vec<runner::Selected<'_>>,
    number: usize,
) -> Count {
    if let Err(error) = build::run(progress, toolchain, parts) {
        return Count {
            passed: 0,
            failed: u32::try_from(number).unwrap_or(u32::MAX),
            complaints: vec![format!(
                "all system tests, since there is nothing to test: {error:#}"
            )],
        };
    }
    let complaints = Mutex::new(Vec::new());
    let totals = runner::run(selected, &|event| match event {
        Event::Boot(group) => progress.line(&format!("  {group}: booting")),
        Event::Start(name) => progress.begin(name),
        Event::End(name, time, error) => {
            progress.end(name);
            let sign = if error.is_none() { "✓" } else { "✗" };
            progress.line(&format!("{sign} {name}  {:.1} s", time.as_secs_f64()));
            if let Some(error) = error {
                progress.line(&format!("  {error:#}"));
                complaints
                    .lock()
                    .unwrap_or_else(std::sync::PoisonError::into_inner)
                    .push(format!("{name}: {error:#}"));
            }
        }
    });
    Count {
        passed: totals.passed,
        failed: totals.failed,
        complaints: complaints
            .into_inner()
            .unwrap_or_else(std::sync::PoisonError::into_inner),
    }
}

impl Count {
    fn success() -> Self {
        Self {
            passed: 1,
            ..Self::default()
        }
    }

    fn failure(complaint: String) -> Self {
        Self {
            passed: 0,
            failed: 1,
            complaints: vec![complaint],
        }
    }

    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.complaints.extend(other.complaints);
    }
}

fn count_of(result: Result<()>) -> Count {
    match result {
        Ok(()) => Count::success(),
        Err(error) => Count::failure(format!("{error:#}")),
    }
}

/// A program whose status is the whole result.
fn single(log: &str, command: &mut Command) -> Result<Count> {
    let ended = process::run_to_end(log, command)?;
    Ok(if ended.success {
        Count::success()
    } else {
        Count::failure(ended.complaint())
    })
}

/// The code of each image, with its own features.
fn clippy_images(toolchain: &Toolchain) -> Result<Count> {
    let mut all = Count::default();
    for image in build::IMAGES {
        let log = format!("clippy-{}", image.name);
        let one = single(&log, &mut toolchain.lint(&image.arguments()))?;
        all.passed += one.passed;
        all.failed += one.failed;
        all.complaints.extend(one.complaints);
    }
    Ok(all)
}

fn clippy_cells(toolchain: &Toolchain) -> Result<Count> {
    let packages: Vec<String> = build::cell_names()?
        .iter()
        .map(|name| format!("{name}-cell"))
        .collect();
    let mut selection = vec!["--features", "image", "--bins"];
    for package in &packages {
        selection.extend(["--package", package]);
    }
    single("clippy-cells", &mut toolchain.lint(&selection))
}

/// Adds up the summaries of the test programs; a build that fails is one failure.
fn count_tests(ended: &Ended) -> Count {
    let mut count = Count::default();
    for line in ended.text.lines() {
        if let Some(summary) = line.strip_prefix("test result: ") {
            let number_before = |word: &str| -> u32 {
                summary
                    .split_once(word)
                    .and_then(|(before, _)| before.split_whitespace().last()?.parse().ok())
                    .unwrap_or(0)
            };
            count.passed += number_before(" passed");
            count.failed += number_before(" failed");
        } else if let Some(name) = line
            .strip_prefix("test ")
            .and_then(|rest| rest.strip_suffix(" ... FAILED"))
        {
            count.complaints.push(format!("{name} (see {})", ended.log));
        }
    }
    if !ended.success && count.failed == 0 {
        count.failed = 1;
        count.complaints.push(ended.complaint());
    }
    if ended.success && count.passed == 0 {
        count.failed = 1;
        count
            .complaints
            .push(format!("no test has run; see {}", ended.log));
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(success: bool, text: &str) -> Ended {
        Ended {
            command: "cargo test".to_owned(),
            success,
            text: text.to_owned(),
            log: "log".to_owned(),
        }
    }

    #[test]
    fn summaries_are_added_up() {
        let text = "test a ... ok\ntest result: ok. 3 passed; 0 failed; 0 ignored\n\
                    test b ... FAILED\ntest result: FAILED. 1 passed; 1 failed; 2 ignored\n";
        let count = count_tests(&ended(false, text));
        assert_eq!((count.passed, count.failed), (4, 1));
        assert_eq!(count.complaints, ["b (see log)"]);
    }

    #[test]
    fn a_build_that_fails_is_a_failure() {
        let count = count_tests(&ended(false, "error: could not compile"));
        assert_eq!((count.passed, count.failed), (0, 1));
    }

    #[test]
    fn no_test_at_all_is_a_failure() {
        assert_eq!(count_tests(&ended(true, "")).failed, 1);
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<String> = HOST_STEPS.iter().map(|step| step.name.to_owned()).collect();
        names.extend(
            runner::select(GROUPS, "")
                .0
                .iter()
                .flat_map(runner::Selected::names),
        );
        let number = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), number);
    }
}
