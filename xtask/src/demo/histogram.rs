//! A distribution of times, for the terminal and as a drawing.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

/// How often a time from `from` to `to` (both included) was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Class {
    /// The shortest time of the class, in cycles.
    pub from: u64,
    /// The longest.
    pub to: u64,
    /// How often.
    pub count: u64,
}

/// The most classes that are shown.
const MOST_CLASSES: usize = 16;
/// The narrowest column of times in the terminal.
const NARROWEST: usize = 11;
/// The widest bar in the terminal.
const WIDEST: u64 = 46;

/// The classes from the first to the last that has a count, joined until they are few enough to read.
pub fn classes(counts: &[u64], class_cycles: u64) -> Vec<Class> {
    let (Some(first), Some(last)) = (
        counts.iter().position(|count| *count > 0),
        counts.iter().rposition(|count| *count > 0),
    ) else {
        return Vec::new();
    };
    join(&counts[first..=last], first, class_cycles)
}

/// The classes from 0 on, and at least as many as make a drawing of one peak readable.
pub fn classes_from_zero(counts: &[u64], class_cycles: u64) -> Vec<Class> {
    let last = counts.iter().rposition(|count| *count > 0).unwrap_or(0);
    let shown = (last + 1).max(MOST_CLASSES).min(counts.len());
    join(&counts[..shown], 0, class_cycles)
}

/// Joins counts, the first of them that of class `first`, until they are few enough to read.
fn join(counts: &[u64], first: usize, class_cycles: u64) -> Vec<Class> {
    let joined = counts.len().div_ceil(MOST_CLASSES).max(1);
    counts
        .chunks(joined)
        .enumerate()
        .map(|(index, chunk)| {
            let from = (first + index * joined) as u64 * class_cycles;
            Class {
                from,
                to: from + chunk.len() as u64 * class_cycles - 1,
                count: chunk.iter().sum(),
            }
        })
        .collect()
}

/// The times of a class.
fn span(class: &Class) -> String {
    if class.from == class.to {
        class.from.to_string()
    } else {
        format!("{}–{}", class.from, class.to)
    }
}

/// Bars of blocks, one line a class.
pub fn bars(classes: &[Class]) -> String {
    let most = classes.iter().map(|class| class.count).max().unwrap_or(0);
    let spans: Vec<String> = classes.iter().map(span).collect();
    let longest = spans.iter().map(|span| span.chars().count()).max();
    let width = longest.unwrap_or(0).max(NARROWEST);
    let mut text = String::new();
    for (class, span) in classes.iter().zip(&spans) {
        // Halves of a character cell; whatever was seen at all shows at least one.
        let halves = (class.count * WIDEST * 2).checked_div(most).unwrap_or(0);
        let halves = if class.count > 0 { halves.max(1) } else { 0 };
        let bar = "█".repeat((halves / 2) as usize) + if halves % 2 == 1 { "▌" } else { "" };
        text.push_str(&format!("  {span:>width$} │{bar} {}\n", class.count));
    }
    text
}

/// Draws the classes into an SVG file.
///
/// # Errors
/// When the file cannot be written.
pub fn draw(path: &Path, title: &str, note: &str, classes: &[Class]) -> Result<()> {
    draw_with(path, title, note, classes)
        .map_err(|error| anyhow!("cannot draw {}: {error}", path.display()))
}

fn draw_with(
    path: &Path,
    title: &str,
    note: &str,
    classes: &[Class],
) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::new(path, (900, 520)).into_drawing_area();
    root.fill(&WHITE)?;
    let (head, body) = root.margin(12, 0, 0, 0).split_vertically(70);
    head.titled(title, ("sans-serif", 24))?.draw(&Text::new(
        note.to_owned(),
        (24, 10),
        ("sans-serif", 15).into_font().color(&RGBColor(90, 90, 90)),
    ))?;
    let most = classes.iter().map(|class| class.count).max().unwrap_or(1);
    let number = classes.len().max(1) as i32;
    let mut chart = ChartBuilder::on(&body)
        .margin(24)
        .x_label_area_size(48)
        .y_label_area_size(80)
        .build_cartesian_2d(0..number, 0..most + most / 10 + 1)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(WHITE)
        .x_desc("cycles from the timer's expiry to the handler")
        .y_desc("ticks")
        .x_labels(classes.len() + 1)
        .x_label_formatter(&|index| {
            classes
                .get(usize::try_from(*index).unwrap_or(usize::MAX))
                .map(|class| class.from.to_string())
                .unwrap_or_default()
        })
        .draw()?;
    let color = RGBColor(38, 98, 160);
    chart.draw_series(classes.iter().enumerate().map(|(index, class)| {
        let left = index as i32;
        let mut bar = Rectangle::new([(left, 0), (left + 1, class.count)], color.filled());
        bar.set_margin(0, 0, 3, 3);
        bar
    }))?;
    root.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_ends_are_left_out() {
        let found = classes(&[0, 0, 3, 0, 5, 0], 2);
        assert_eq!(
            found,
            [
                Class {
                    from: 4,
                    to: 5,
                    count: 3
                },
                Class {
                    from: 6,
                    to: 7,
                    count: 0
                },
                Class {
                    from: 8,
                    to: 9,
                    count: 5
                },
            ]
        );
        assert!(classes(&[0, 0], 1).is_empty());
    }

    #[test]
    fn many_classes_are_joined_and_nothing_is_lost() {
        let counts: Vec<u64> = (1..=100).collect();
        let found = classes(&counts, 1);
        assert!(found.len() <= MOST_CLASSES);
        assert_eq!(found.iter().map(|class| class.count).sum::<u64>(), 5050);
        assert_eq!(found.last().map(|class| class.to), Some(99));
    }

    #[test]
    fn a_drawing_starts_at_zero_and_has_room() {
        let found = classes_from_zero(&[0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 5);
        assert_eq!(found.len(), MOST_CLASSES);
        assert_eq!((found[2].from, found[2].count), (10, 7));
        assert_eq!(classes_from_zero(&[1], 1).len(), 1);
        assert!(classes_from_zero(&[], 1).is_empty());
    }

    #[test]
    fn whatever_was_seen_shows() {
        let text = bars(&classes(&[10_000, 1, 0, 1], 1));
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].contains(&"█".repeat(46)));
        assert!(lines[1].contains('▌'));
        assert!(!lines[2].contains('▌'));
    }

    #[test]
    fn a_drawing_is_written() {
        let path = std::env::temp_dir().join(format!("gaol-{}.svg", std::process::id()));
        draw(&path, "title", "note", &classes(&[0, 5, 3], 1)).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        assert!(text.contains("<svg") && text.contains("title"));
    }
}
