//! What people see while a command works: the stage, the time it takes, and what came of it.
//!
//! On a terminal a bar moves; elsewhere each stage is one line when it starts and one when it ends, so that logs read
//! well. Everything goes to standard error: standard output is for results.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::Result;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Prints the stages of a command.
pub struct Progress {
    bar: ProgressBar,
    terminal: bool,
    started: Instant,
    stages: Mutex<Vec<String>>,
}

impl Progress {
    /// For a command of about `stages` stages; the bar grows when there are more.
    pub fn new(stages: u64) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let target = if terminal {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let bar = ProgressBar::with_draw_target(Some(stages), target);
        if let Ok(style) = ProgressStyle::with_template(
            "{spinner:.cyan} [{elapsed_precise}] {bar:24.cyan/dim} {pos}/{len} {wide_msg}",
        ) {
            bar.set_style(style.progress_chars("━╸─"));
        }
        if terminal {
            bar.enable_steady_tick(Duration::from_millis(120));
        }
        Self {
            bar,
            terminal,
            started: Instant::now(),
            stages: Mutex::new(Vec::new()),
        }
    }

    /// Does `work` as a stage of that name.
    ///
    /// # Errors
    /// Those of `work`.
    pub fn stage<T>(&self, name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let started = Instant::now();
        self.begin(name);
        let result = work();
        self.end(name);
        let (sign, result) = match result {
            Ok(value) => ("✓", Ok(value)),
            Err(error) => ("✗", Err(error)),
        };
        self.line(&format!(
            "{sign} {name}  {:.1} s",
            started.elapsed().as_secs_f64()
        ));
        result
    }

    /// Shows that `name` has started, until [`Progress::end`].
    pub fn begin(&self, name: &str) {
        self.change(|stages| stages.push(name.to_owned()));
        if !self.terminal {
            self.line(&format!("  {name} ..."));
        }
    }

    /// Shows that `name` has ended.
    pub fn end(&self, name: &str) {
        self.change(|stages| {
            if let Some(at) = stages.iter().rposition(|stage| stage == name) {
                stages.remove(at);
            }
        });
        self.bar.inc(1);
        if self
            .bar
            .length()
            .is_some_and(|length| self.bar.position() > length)
        {
            self.bar.inc_length(1);
        }
    }

    fn change(&self, change: impl FnOnce(&mut Vec<String>)) {
        let mut stages = self
            .stages
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        change(&mut stages);
        self.bar.set_message(stages.join(" · "));
    }

    /// Shows how far the present stage is, on a terminal only.
    pub fn note(&self, text: &str) {
        let stages = self
            .stages
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        self.bar
            .set_message(format!("{}: {text}", stages.join(" · ")));
    }

    /// Prints a line that stays.
    pub fn line(&self, text: &str) {
        if self.terminal {
            self.bar.println(text);
        } else {
            eprintln!("[{:6.1} s] {text}", self.started.elapsed().as_secs_f64());
        }
    }

    /// Time since the command started.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}
