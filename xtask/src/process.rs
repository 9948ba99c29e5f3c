//! Other programs: run quietly, with all they say kept in a log that is shown when they fail.

use std::fs::{self, File};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use gaol_tests::artefacts;

/// How much of a failed program's words is shown.
const TAIL: usize = 40;

/// Runs a program to its end; returns what it said on both outputs, which is also in `target/logs/<log>.log`.
///
/// # Errors
/// When it cannot be started or fails; the end of its output is part of the message.
pub fn run(log: &str, command: &mut Command) -> Result<String> {
    let outcome = run_to_end(log, command)?;
    if !outcome.success {
        bail!("{}", outcome.complaint());
    }
    Ok(outcome.text)
}

/// How a program ended.
pub struct Ended {
    /// Its program and arguments.
    pub command: String,
    /// Whether its status was 0.
    pub success: bool,
    /// What it said on both outputs.
    pub text: String,
    /// Where that is kept.
    pub log: String,
}

impl Ended {
    /// The end of what it said, and where the rest is.
    pub fn complaint(&self) -> String {
        let lines: Vec<&str> = self.text.lines().collect();
        let tail = lines[lines.len().saturating_sub(TAIL)..].join("\n");
        format!("`{}` failed ({}):\n{tail}", self.command, self.log)
    }
}

/// Runs a program to its end, whatever its status.
///
/// # Errors
/// When it cannot be started or its log cannot be written.
pub fn run_to_end(log: &str, command: &mut Command) -> Result<Ended> {
    let directory = artefacts::target().join("logs");
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot create {}", directory.display()))?;
    let path = directory.join(format!("{log}.log"));
    let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    let program = command.get_program().to_string_lossy().into_owned();
    let status = command
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .status()
        .with_context(|| format!("cannot run `{program}`: is its Debian package installed?"))?;
    let arguments: Vec<_> = command
        .get_args()
        .map(|argument| argument.to_string_lossy())
        .collect();
    Ok(Ended {
        command: format!("{program} {}", arguments.join(" ")),
        success: status.success(),
        text: String::from_utf8_lossy(&fs::read(&path)?).into_owned(),
        log: artefacts::display(&path),
    })
}
