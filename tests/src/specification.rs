//! The tests that SPECIFICATION.md names exist, and the system tests that exist are named there.

use std::collections::BTreeSet;
use std::fs;

use crate::artefacts::workspace_root;
use crate::runner::{Selected, select};
use crate::system::GROUPS;

/// A test or place that the specification names in backticks.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Named {
    /// `group/check`, or a path.
    SystemTest(String),
    /// `path: function`, or a further function of the path that was named last in the row.
    Function { path: String, function: String },
    /// `bench: figure`.
    Figure(String),
    /// A program of the module's tests.
    Program(String),
}

fn is_word(text: &str, others: &str) -> bool {
    !text.is_empty()
        && text
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || others.contains(c))
}

/// What the text names as tests; the explanations in front of the first numbered heading give no names.
fn named(text: &str) -> BTreeSet<Named> {
    let promises = text.find("\n## 1. ").map_or("", |start| &text[start..]);
    let mut found = BTreeSet::new();
    for line in promises.lines() {
        let mut path = None;
        for token in line.split('`').skip(1).step_by(2) {
            let name = match token.split_once(": ") {
                Some(("bench", figure)) => Named::Figure(figure.to_owned()),
                Some((file, function)) if file.ends_with(".rs") => {
                    path = Some(file);
                    Named::Function {
                        path: file.to_owned(),
                        function: function.to_owned(),
                    }
                }
                _ if token.contains('/') => Named::SystemTest(token.to_owned()),
                _ if token.ends_with("-test") => Named::Program(token.to_owned()),
                _ => match path {
                    Some(file) if token.contains('_') && is_word(token, "_") => Named::Function {
                        path: file.to_owned(),
                        function: token.to_owned(),
                    },
                    _ => continue,
                },
            };
            found.insert(name);
        }
    }
    found
}

fn source(path: &str) -> String {
    fs::read_to_string(workspace_root().join(path)).unwrap_or_default()
}

/// Whether the function stands in the text behind the attribute of a test.
fn has_test(text: &str, function: &str) -> bool {
    let head = format!("fn {function}(");
    text.split("#[test]").skip(1).any(|part| {
        let first = part
            .lines()
            .find(|line| line.trim_start().starts_with("fn "));
        first.is_some_and(|line| line.trim_start().starts_with(&head))
    })
}

fn system_tests() -> BTreeSet<String> {
    GROUPS
        .iter()
        .flat_map(|group| {
            let checks = group.checks.iter();
            checks.map(|check| format!("{}/{}", group.name, check.name))
        })
        .collect()
}

fn exists(name: &Named) -> bool {
    match name {
        Named::SystemTest(name) => match name.split_once('/') {
            Some(("host", _)) => source("xtask/src/test.rs").contains(&format!("name: \"{name}\"")),
            _ => system_tests().contains(name) || workspace_root().join(name).exists(),
        },
        Named::Function { path, function } => has_test(&source(path), function),
        Named::Figure(name) => {
            source("xtask/src/bench/figures.rs").contains(&format!("limit(\"{name}\","))
        }
        Named::Program(name) => workspace_root()
            .join(format!("loader-driver/test/{name}.c"))
            .exists(),
    }
}

#[test]
fn every_test_that_is_named_exists() {
    let named = named(&source("SPECIFICATION.md"));
    assert!(named.len() > 100, "the specification is read wrongly");
    let missing: Vec<&Named> = named.iter().filter(|name| !exists(name)).collect();
    assert!(missing.is_empty(), "there are no such tests: {missing:#?}");
}

#[test]
fn every_system_test_and_figure_is_named() {
    let named = named(&source("SPECIFICATION.md"));
    // What the emulated machine does by itself is no promise of Gaol's.
    let of_gaol = |name: &String| !name.starts_with("machine/");
    let unnamed: Vec<String> = system_tests()
        .into_iter()
        .filter(of_gaol)
        .filter(|name| !named.contains(&Named::SystemTest(name.clone())))
        .collect();
    assert!(unnamed.is_empty(), "keep no promise: {unnamed:#?}");
    let figures = source("xtask/src/bench/figures.rs");
    let mut limits = figures.split("limit(\"").skip(1).peekable();
    assert!(limits.peek().is_some(), "the figures are read wrongly");
    for limit in limits {
        let name = limit.split('"').next().unwrap_or_default();
        assert!(
            named.contains(&Named::Figure(name.to_owned())),
            "no promise names the figure {name}"
        );
    }
}

#[test]
fn names_are_read_as_they_stand() {
    let text = "`group/check` explains\n\n## 1. Heading\n\
        | 1.1 | `disable` works | `a-group/a-check`, `a/b.rs: one_test`, `another_test` |\n\
        | 1.2 | `no_test_without_a_file` | `bench: cpuid`, `driver-test` |\n";
    let function = |function: &str| Named::Function {
        path: "a/b.rs".to_owned(),
        function: function.to_owned(),
    };
    let expected = BTreeSet::from([
        Named::SystemTest("a-group/a-check".to_owned()),
        function("one_test"),
        function("another_test"),
        Named::Figure("cpuid".to_owned()),
        Named::Program("driver-test".to_owned()),
    ]);
    assert_eq!(named(text), expected);
    assert!(has_test("#[test]\n    fn a() {}\n fn b() {}", "a"));
    assert!(!has_test("#[test]\n    fn a() {}\n fn b() {}", "b"));
    for name in &expected {
        let there = matches!(name, Named::Figure(_) | Named::Program(_));
        assert_eq!(exists(name), there, "{name:?}");
    }
}

#[test]
fn every_system_test_runs_somewhere() {
    let (selected, skipped) = select(GROUPS, "");
    let run: BTreeSet<String> = selected
        .iter()
        .flat_map(Selected::names)
        .filter_map(|name| Some(name.split_once('@')?.0.to_owned()))
        .collect();
    assert_eq!(run, system_tests());
    assert!(skipped.iter().all(|one| one.reason.len() > 10));
    for group in GROUPS {
        for except in group.except {
            assert!(except.exists(group), "{}: {except:?}", group.name);
        }
    }
}
