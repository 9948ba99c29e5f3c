//! How much of the hypervisor the compiler can't check: few places, each with its reason (which clippy looks for).

use std::fs;
use std::path::Path;

use crate::artefacts::workspace_root;

/// The most `unsafe` blocks and implementations in `hypervisor/`.
const BUDGET: usize = 150;

/// `unsafe` blocks and implementations in a source file; comments and declarations don't count.
fn count(text: &str) -> usize {
    text.lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .map(|code| code.matches("unsafe {").count() + code.matches("unsafe impl").count())
        .sum()
}

/// The same of all files below a directory, with the number of files.
fn count_below(directory: &Path) -> (usize, usize) {
    let mut total = (0, 0);
    for entry in fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        let (blocks, files) = if path.is_dir() {
            count_below(&path)
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            (count(&fs::read_to_string(&path).expect("a source file")), 1)
        } else {
            (0, 0)
        };
        total = (total.0 + blocks, total.1 + files);
    }
    total
}

#[test]
fn the_hypervisor_keeps_to_its_unsafe_budget() {
    let (blocks, files) = count_below(&workspace_root().join("hypervisor/src"));
    assert!(
        files > 50 && blocks > 50,
        "the sources are read wrongly: {blocks} in {files}"
    );
    assert!(
        blocks <= BUDGET,
        "{blocks} unsafe blocks, and {BUDGET} are allowed"
    );
}

#[test]
fn blocks_and_implementations_count_and_nothing_else() {
    assert_eq!(
        count("let a = unsafe { f() }; unsafe { g() }\n// unsafe { }\n"),
        2
    );
    assert_eq!(count("unsafe impl Sync for A {}\nunsafe fn f() {}\n"), 1);
    assert_eq!(count("#![forbid(unsafe_code)]\n#[unsafe(naked)]\n"), 0);
}
