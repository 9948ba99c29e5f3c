//! `cargo xtask fuzz`: libFuzzer on everything that reads bytes from outside.
//!
//! The programs are built by the toolchain in use: coverage is a pass of its compiler, and all that is fuzzed is safe Rust,
//! so that no sanitizer is needed. What libFuzzer learns is kept in `target/fuzz/corpus`; the seeds in `fuzz/corpus` are
//! never changed.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, ensure};
use gaol_tests::artefacts;

use crate::process;
use crate::progress::Progress;
use crate::setup;
use crate::toolchain::{STATIC_HOST, cargo};

/// What is fuzzed, and for how long.
#[derive(clap::Args)]
pub struct Arguments {
    /// Only this target; all by default
    target: Option<String>,
    /// Seconds for each target
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
}

/// What libFuzzer needs of the compiler: counters, the table of program counters, and the operands of comparisons.
const COVERAGE: &str = "--cfg fuzzing -Cpasses=sancov-module \
     -Cllvm-args=-sanitizer-coverage-level=4 \
     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
     -Cllvm-args=-sanitizer-coverage-pc-table \
     -Cllvm-args=-sanitizer-coverage-trace-compares";
/// Longest time for one input, in seconds.
const INPUT_SECONDS: u32 = 20;
/// The most memory of a target, in MiB.
const MEMORY: u32 = 2048;
/// Longest input in bytes: the largest cell configuration.
const INPUT_SIZE: u32 = 16 << 10;
/// How much of a program's words is kept.
const LINES: usize = 4000;

/// What a target came to.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    executions: u64,
    /// Places of the program that were reached.
    coverage: u64,
    /// The input that broke a promise.
    finding: Option<String>,
    /// What the program said of it.
    words: Vec<String>,
}

impl Outcome {
    /// Takes a line of libFuzzer's.
    fn read(&mut self, line: &str) {
        let number_behind = |word: &str| -> Option<u64> {
            let rest = line.split_once(word)?.1;
            rest.split_whitespace().next()?.parse().ok()
        };
        if let Some(path) = line.split_once("Test unit written to ") {
            self.finding = Some(path.1.trim().to_owned());
        } else if line.starts_with("stat::number_of_executed_units:") {
            self.executions = number_behind("units:").unwrap_or(0);
        } else if let Some(progress) = line.strip_prefix('#') {
            let executed = progress.split_whitespace().next();
            let executed = executed.and_then(|number| number.parse().ok());
            self.executions = executed.unwrap_or(self.executions);
            self.coverage = number_behind(" cov: ").unwrap_or(self.coverage);
        }
        if self.words.len() < LINES {
            self.words.push(line.to_owned());
        }
    }

    /// What it says of a panic: all from there to the stack of libFuzzer itself.
    fn complaint(&self) -> String {
        let panics = |line: &&String| line.contains("panicked at") || line.contains("ERROR:");
        let start = self.words.iter().position(|line| panics(&line));
        let words = start.map_or(&[][..], |start| &self.words[start..]);
        let words: Vec<&str> = words
            .iter()
            .map(String::as_str)
            .take_while(|line| !line.starts_with("MS: "))
            .take(12)
            .collect();
        words.join("\n")
    }
}

/// Fuzzes; the exit code tells whether nothing was found.
///
/// # Errors
/// When a target is unknown, or does not build or start.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let targets = targets()?;
    let selected: Vec<&String> = targets
        .iter()
        .filter(|name| arguments.target.as_ref().is_none_or(|only| only == *name))
        .collect();
    ensure!(
        !selected.is_empty(),
        "there is no such target: they are {}",
        targets.join(", ")
    );
    setup::cxx()?;
    let progress = Progress::new(selected.len() as u64 + 1);
    let programs = progress.stage("building the targets", build)?;
    let (mut executions, mut findings) = (0, 0);
    for name in &selected {
        let outcome = progress.stage(name, || {
            fuzz(&programs.join(name), name, arguments.seconds, &progress)
        })?;
        progress.line(&format!(
            "  {} executions, {} places reached",
            outcome.executions, outcome.coverage
        ));
        executions += outcome.executions;
        if let Some(input) = &outcome.finding {
            findings += 1;
            let input = artefacts::display(Path::new(input));
            let program = artefacts::display(&programs.join(name));
            println!("FOUND by {name}: {input}\n{}", outcome.complaint());
            println!("repeat it with: {program} {input}\n");
        }
    }
    progress.finish();
    println!(
        "{} targets, {executions} executions, {findings} findings",
        selected.len()
    );
    Ok(if findings == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Names of all targets.
fn targets() -> Result<Vec<String>> {
    let directory = artefacts::workspace_root().join("fuzz/fuzz_targets");
    let entries =
        fs::read_dir(&directory).with_context(|| format!("cannot read {}", directory.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if let Some(name) = path.file_stem().and_then(|name| name.to_str()) {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

fn directory() -> PathBuf {
    artefacts::target().join("fuzz")
}

/// Builds all targets; returns where the programs are.
fn build() -> Result<PathBuf> {
    process::run(
        "fuzz-build",
        cargo()
            .env("RUSTFLAGS", COVERAGE)
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .env("CARGO_TARGET_DIR", directory())
            // With a target the flags are not those of build scripts, too.
            .args(["build", "--package", "gaol-fuzz", "--bins"])
            .args(["--features", "libfuzzer", "--profile", "fuzz"])
            .args(["--target", STATIC_HOST]),
    )?;
    Ok(directory().join(STATIC_HOST).join("fuzz"))
}

/// Runs a target for a time, or to its first finding.
fn fuzz(program: &Path, name: &str, seconds: u32, progress: &Progress) -> Result<Outcome> {
    let learnt = directory().join("corpus").join(name);
    let findings = directory().join("findings");
    for directory in [&learnt, &findings] {
        fs::create_dir_all(directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
    }
    let seeds = artefacts::workspace_root().join("fuzz/corpus").join(name);
    let mut child = Command::new(program)
        .args([&learnt, &seeds])
        .arg(format!("-artifact_prefix={}/{name}-", findings.display()))
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-timeout={INPUT_SECONDS}"))
        .arg(format!("-rss_limit_mb={MEMORY}"))
        .arg(format!("-max_len={INPUT_SIZE}"))
        .arg("-print_final_stats=1")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", program.display()))?;
    let mut outcome = Outcome::default();
    let errors = child.stderr.take().context("the target has no output")?;
    for line in BufReader::new(errors).split(b'\n') {
        outcome.read(&String::from_utf8_lossy(&line?));
        progress.note(&format!("{} executions", outcome.executions));
    }
    let status = child.wait()?;
    ensure!(
        status.success() != outcome.finding.is_some(),
        "{name} ended with {status}:\n{}",
        outcome.words.join("\n")
    );
    ensure!(
        outcome.executions > 0 && outcome.coverage > 0,
        "{name} ran nothing, or was built without coverage:\n{}",
        outcome.words.join("\n")
    );
    Ok(outcome)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(text: &str) -> Outcome {
        let mut outcome = Outcome::default();
        text.lines().for_each(|line| outcome.read(line));
        outcome
    }

    #[test]
    fn executions_and_coverage_are_counted() {
        let outcome = outcome(
            "INFO: Seed: 7\n#2\tINITED cov: 12 ft: 13 corp: 1/1b exec/s: 0 rss: 28Mb\n\
             #4096\tNEW    cov: 345 ft: 13 corp: 1/1b exec/s: 0 rss: 28Mb\nDone 5000 runs\n\
             stat::number_of_executed_units: 5000\n",
        );
        assert_eq!((outcome.executions, outcome.coverage), (5000, 345));
        assert_eq!(outcome.finding, None);
    }

    #[test]
    fn a_finding_comes_with_its_input_and_the_panic() {
        let outcome = outcome(
            "#9\tNEW    cov: 5 ft: 1\nthread '<unnamed>' panicked at src/lib.rs:1:1:\nno\n\
             ==1== ERROR: libFuzzer: deadly signal\nMS: 1 ChangeBit-;\n\
             artifact_prefix='f/'; Test unit written to f/crash-0\n",
        );
        assert_eq!(outcome.finding.as_deref(), Some("f/crash-0"));
        assert_eq!(outcome.executions, 9);
        assert!(outcome.complaint().starts_with("thread"));
        assert!(outcome.complaint().ends_with("deadly signal"));
    }

    #[test]
    fn the_targets_are_found() {
        let targets = targets().unwrap();
        assert!(targets.iter().any(|name| name == "configuration_binary"));
        assert!(targets.len() >= 7);
    }
}
