//! For tests: what people read, message for message, compared with a snapshot in `snapshots/`.

use std::fmt::Write;

use miette::{GraphicalReportHandler, GraphicalTheme};

use crate::problem::Problem;

/// As a terminal without colours shows it.
pub(crate) fn render(problem: &Problem) -> String {
    let mut text = String::new();
    GraphicalReportHandler::new_themed(GraphicalTheme::unicode_nocolor())
        .with_width(100)
        .with_links(false)
        .render_report(&mut text, problem)
        .unwrap();
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    lines.join("\n").trim_start_matches('\n').to_owned()
}

/// The problems of cases with names; a case without any is a mistake of the test.
pub(crate) fn transcript(cases: impl IntoIterator<Item = (&'static str, Vec<Problem>)>) -> String {
    let mut text = String::new();
    for (name, problems) in cases {
        assert!(!problems.is_empty(), "nothing is wrong with: {name}");
        for problem in problems {
            let kind = match problem.doubt() {
                Some(doubt) => doubt.name().to_owned(),
                None => format!("{:?}", problem.reason()),
            };
            writeln!(text, "# {name} [{kind}]\n{}\n", render(&problem)).unwrap();
        }
    }
    text
}

/// Compares with the snapshot of this name.
#[track_caller]
pub(crate) fn compare(name: &str, text: &str) {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("../snapshots");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!(name, text));
}
