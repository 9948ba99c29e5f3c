//! `gaol config collect`: what is read of a machine, as a file that can be read elsewhere in its place.
//!
//! Invariant: a file that exists is only overwritten when that was asked for.

use std::fs;
use std::io::Write;
use std::path::Path;

use gaol_machine::collect::collect;
use gaol_machine::hardware::Facts;
use gaol_machine::{Kind, Problem, Source};
use serde_json::{Value, json};

use crate::failure::{Failure, Result};
use crate::output::{Report, not_written, open_new};

/// `gaol config collect`. What is wrong with the machine's tables is told on `asides`; it is collected all the same.
///
/// # Errors
/// Why there is no file.
pub fn run(source: Source, output: &Path, force: bool, asides: &mut dyn Write) -> Result<Report> {
    let read_more = |source: &Source| drop(Facts::read(source));
    let collection = collect(source, read_more).map_err(|problems| failure(&problems))?;
    let is_compressed = output
        .extension()
        .is_some_and(|extension| extension == "gz" || extension == "tgz");
    let mut bytes = Vec::new();
    collection
        .write(&mut bytes, is_compressed)
        .and_then(|()| write_whole(output, force, &bytes))
        .map_err(|error| not_written(output, &error, "file with -o FILE"))?;
    for problem in &collection.problems {
        let _ = writeln!(asides, "warning: {problem}\n  {}", problem.remedy());
    }
    if !collection.has_registers() {
        let _ = writeln!(
            asides,
            "warning: no model-specific registers are in it, so that `gaol hardware check` can't judge it\n  \
             Load the module that offers them, and collect again: modprobe msr"
        );
    }
    let files = collection.tree.paths().count();
    Ok(Report {
        text: format!(
            "{}: {files} files. Serial numbers and unknown kernel parameters were left out.\n",
            output.display()
        ),
        json: json!({
            "ok": true,
            "output": output.display().to_string(),
            "files": files,
            "size": bytes.len(),
            "registers": collection.has_registers(),
            "problems": collection.problems.iter().map(problem_json).collect::<Vec<Value>>(),
        }),
    })
}

/// The machine that this runs on.
///
/// # Errors
/// When it has no root directory to read.
pub fn live() -> Result<Source> {
    Source::live().map_err(|problem| failure(&[problem]))
}

fn problem_json(problem: &Problem) -> Value {
    json!({
        "subject": problem.subject(),
        "message": problem.what(),
        "remedy": problem.remedy(),
    })
}

/// What keeps the machine from being read: the first of it, which is the same for all.
fn failure(problems: &[Problem]) -> Failure {
    let Some(first) = problems.first() else {
        return Failure::new("machine", "the machine can't be read", "Run gaol as root.");
    };
    let reason = match first.kind() {
        Kind::Permission => "no_permission",
        _ => "machine",
    };
    let mut failure = Failure::new(reason, first.to_string(), first.remedy());
    failure.set("file", first.subject());
    failure
}

fn write_whole(path: &Path, force: bool, bytes: &[u8]) -> std::io::Result<()> {
    open_new(path, force)?.write_all(bytes).inspect_err(|_| {
        // Half a collection is none.
        let _ = fs::remove_file(path);
    })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use gaol_machine::source::Tree;

    use super::*;

    /// The smallest machine that can be read: what is wrong with it is told.
    fn machine(iomem: &str) -> Source {
        let mut tree = Tree::default();
        tree.insert_file("/proc/iomem", iomem);
        tree.insert_file("/proc/cmdline", "console=ttyS0 secret=1\n");
        Source::tree(tree)
    }

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let name = format!("gaol-collect-{}-{name}", std::process::id());
            Self(std::env::temp_dir().join(name))
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.0);
        }
    }

    #[test]
    fn what_is_collected_reads_the_same() {
        for name in ["plain.tar", "compressed.tar.gz"] {
            let file = Scratch::new(name);
            let mut asides = Vec::new();
            let source = || machine("00001000-0009efff : System RAM\n");
            let report = run(source(), &file.0, false, &mut asides).unwrap();
            assert_eq!(report.json["ok"], true);
            let asides = String::from_utf8(asides).unwrap();
            assert!(asides.contains("warning: ACPI table APIC: "), "{asides}");
            assert!(asides.contains("modprobe msr"), "{asides}");
            let collected = Source::open(&file.0).unwrap();
            assert_eq!(
                collected.read_text("/proc/cmdline").unwrap(),
                "console=ttyS0\n"
            );

            let refused = run(source(), &file.0, false, &mut Vec::new()).unwrap_err();
            assert_eq!(
                refused.json()["error"]["remedy"],
                "Give another file with -o FILE, or --force to overwrite this one."
            );
            run(source(), &file.0, true, &mut Vec::new()).unwrap();
        }
    }

    #[test]
    fn what_only_root_may_read_is_refused() {
        let file = Scratch::new("refused.tar");
        let source = machine("00000000-00000000 : System RAM\n");
        let refused = run(source, &file.0, false, &mut Vec::new()).unwrap_err();
        assert_eq!(refused.json()["error"]["reason"], "no_permission");
        assert_eq!(refused.json()["error"]["file"], "/proc/iomem");
        assert!(!file.0.exists());
    }
}
