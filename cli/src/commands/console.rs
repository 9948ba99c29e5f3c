//! `gaol console`.
//!
//! What cells print at the same time comes mixed, each character with its source. Invariant: what is shown consists of whole
//! lines, each of one source; a line that has not ended is shown when nothing comes any more, and again from its start when
//! another's line had to be shown in between.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Write};
use std::time::Duration;

use gaol_abi::public::RingEntry;
use serde_json::json;

use crate::device::Console;
use crate::failure::{Failure, Result, plain};
use crate::host::Host;
use crate::output::Report;

/// For how long nothing comes when a line that has not ended is shown as it is: it may be a prompt.
const QUIET: Duration = Duration::from_millis(200);
/// Longest line in characters; what is longer is shown as several.
const LONGEST: usize = 4096;

/// What comes from the console's device, put together to lines.
#[derive(Debug, Default)]
struct Lines {
    /// The line that each source has begun.
    begun: BTreeMap<u8, Vec<u8>>,
    /// Who has printed last.
    last: u8,
    /// Whose begun line the last one shown is, and how many characters of it there are.
    shown: Option<(u8, usize)>,
    /// The first half of an entry whose other half has not come yet.
    half: Option<u8>,
}

impl Lines {
    /// Takes what has come, and returns what is to be shown now.
    fn take(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut text = Vec::new();
        for byte in bytes {
            match self.half.take() {
                None => self.half = Some(*byte),
                Some(character) => {
                    let source = *byte;
                    self.put(RingEntry { character, source }, &mut text);
                }
            }
        }
        text
    }

    fn put(&mut self, entry: RingEntry, text: &mut Vec<u8>) {
        self.last = entry.source;
        let line = self.begun.entry(entry.source).or_default();
        if entry.character != b'\n' {
            line.push(entry.character);
        }
        if entry.character == b'\n' || line.len() == LONGEST {
            self.end_line(entry.source, text);
        }
    }

    fn end_line(&mut self, source: u8, text: &mut Vec<u8>) {
        self.show(source, text);
        text.push(b'\n');
        self.begun.remove(&source);
        self.shown = None;
    }

    /// Shows the begun line of a source, or what has been added to it.
    fn show(&mut self, source: u8, text: &mut Vec<u8>) {
        let line = self.begun.get(&source).map_or(&[][..], Vec::as_slice);
        let before = match self.shown {
            Some((shown, count)) if shown == source => count,
            Some(_) => {
                text.push(b'\n');
                0
            }
            None => 0,
        };
        text.extend_from_slice(&line[before..]);
        self.shown = Some((source, line.len()));
    }

    /// Whether there is something of the last line that is not shown.
    fn has_more(&self) -> bool {
        self.begun
            .get(&self.last)
            .is_some_and(|line| self.shown != Some((self.last, line.len())))
    }

    /// What is to be shown when nothing comes any more for the moment.
    fn pause(&mut self) -> Vec<u8> {
        let mut text = Vec::new();
        if self.has_more() {
            self.show(self.last, &mut text);
        }
        text
    }

    /// What is to be shown when nothing comes any more at all.
    fn end(mut self) -> Vec<u8> {
        let mut text = Vec::new();
        let sources: Vec<_> = self.begun.keys().copied().collect();
        let shown = self.shown.map(|(source, _)| source);
        for source in shown.into_iter().chain(sources) {
            if self.begun.contains_key(&source) {
                self.end_line(source, &mut text);
            }
        }
        text
    }
}

fn open(host: &mut Host, follow: bool) -> Result<Box<dyn Console>> {
    let opened = host.device.console(follow);
    opened.map_err(|error| host.failure("cannot open the console", error, &host.facts(None)))
}

fn read_failure(error: &std::io::Error) -> Failure {
    Failure::new(
        "system_error",
        format!("cannot read the console: {}", plain(error)),
        "See `dmesg` for what the module says.",
    )
}

/// `gaol console`: what was printed so far.
///
/// # Errors
/// When the device can't be read.
pub fn show(host: &mut Host) -> Result<Report> {
    let mut console = open(host, false)?;
    let mut lines = Lines::default();
    let mut text = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match console.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => text.extend(lines.take(&buffer[..count])),
            Err(error) => return Err(read_failure(&error)),
        }
    }
    text.extend(lines.end());
    let text = String::from_utf8_lossy(&text).into_owned();
    Ok(Report {
        json: json!({ "ok": true, "text": text }),
        text,
    })
}

/// `gaol console -f`: until the device ends, or `output` takes no more.
///
/// # Errors
/// When the device can't be read.
pub fn follow(host: &mut Host, output: &mut dyn Write) -> Result<Report> {
    let mut console = open(host, true)?;
    let mut write = |text: &[u8]| {
        let written = output.write_all(text);
        written.and_then(|()| output.flush()).is_ok()
    };
    let mut lines = Lines::default();
    let mut buffer = [0; 4096];
    loop {
        let more = match lines.has_more() {
            true => console.wait(QUIET),
            false => Ok(true),
        };
        let read = more.and_then(|more| match more {
            true => console.read(&mut buffer).map(Some),
            false => Ok(None),
        });
        let text = match read {
            Ok(Some(0)) => break,
            Ok(Some(count)) => lines.take(&buffer[..count]),
            Ok(None) => lines.pause(),
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(read_failure(&error)),
        };
        if !write(&text) {
            break;
        }
    }
    write(&lines.end());
    Ok(Report {
        text: String::new(),
        json: json!({ "ok": true }),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entries(source: u8, text: &str) -> Vec<u8> {
        text.bytes().flat_map(|byte| [byte, source]).collect()
    }

    fn shown(text: &[u8]) -> &str {
        std::str::from_utf8(text).unwrap()
    }

    #[test]
    fn lines_of_several_do_not_mix() {
        let mut lines = Lines::default();
        let mut take = |source, text| {
            let text = lines.take(&entries(source, text));
            String::from_utf8(text).unwrap()
        };
        assert_eq!(take(1, "one ha"), "");
        assert_eq!(take(2, "two\ntwo "), "two\n");
        assert_eq!(take(255, "Gaol\n"), "Gaol\n");
        assert_eq!(take(1, "s this\n"), "one has this\n");
        assert_eq!(take(2, "again\n\n"), "two again\n\n");
    }

    #[test]
    fn a_prompt_is_shown_when_nothing_comes() {
        let mut lines = Lines::default();
        assert_eq!(lines.take(&entries(1, "name: ")), b"");
        assert!(lines.has_more());
        assert_eq!(shown(&lines.pause()), "name: ");
        assert!(!lines.has_more());
        assert_eq!(lines.pause(), b"");
        // What is typed appears as it comes.
        assert_eq!(lines.take(&entries(1, "ro")), b"");
        assert_eq!(shown(&lines.pause()), "ro");
        assert_eq!(shown(&lines.take(&entries(1, "ot\nword: "))), "ot\n");
        assert_eq!(shown(&lines.pause()), "word: ");
        // Another's line comes between.
        assert_eq!(shown(&lines.take(&entries(2, "tick\n"))), "\ntick\n");
        assert_eq!(shown(&lines.take(&entries(1, "x\n"))), "word: x\n");
    }

    #[test]
    fn what_is_begun_is_shown_at_the_end() {
        let mut lines = Lines::default();
        lines.take(&entries(2, "two"));
        lines.take(&entries(1, "one"));
        assert_eq!(shown(&lines.pause()), "one");
        lines.take(&entries(3, "three"));
        assert_eq!(shown(&lines.end()), "\ntwo\nthree\n");
        assert_eq!(Lines::default().end(), b"");
    }

    #[test]
    fn a_line_without_end_is_shown_in_pieces() {
        let mut lines = Lines::default();
        let text = lines.take(&entries(1, &"x".repeat(2 * LONGEST + 1)));
        assert_eq!(text.len(), 2 * (LONGEST + 1));
        assert_eq!(lines.begun[&1].len(), 1);
    }

    proptest! {
        /// Whatever is printed, and however it is read: all lines are shown whole, those of one source in their order.
        #[test]
        fn all_lines_come_whole(
            pieces in prop::collection::vec((0u8..4, "[a-c]{0,3}\n?", any::<bool>()), 0..40),
            size in 1usize..9,
        ) {
            let mut lines = Lines::default();
            let mut text = Vec::new();
            for (source, piece, is_quiet) in &pieces {
                // Each source has letters of its own.
                let own: String = piece
                    .chars()
                    .map(|letter| match letter {
                        '\n' => '\n',
                        _ => char::from(b'a' + (letter as u8 - b'a') + 4 * source),
                    })
                    .collect();
                for part in entries(*source, &own).chunks(size) {
                    text.extend(lines.take(part));
                }
                if *is_quiet {
                    text.extend(lines.pause());
                }
            }
            text.extend(lines.end());
            let text = shown(&text);
            prop_assert!(text.is_empty() || text.ends_with('\n'));
            for source in 0..4u8 {
                let is_own = |letter: char| (letter as u8 - b'a') / 4 == source;
                let printed: String = pieces
                    .iter()
                    .filter(|(by, ..)| *by == source)
                    .map(|(_, piece, _)| piece.as_str())
                    .collect();
                let printed = printed.lines().filter(|line| !line.is_empty());
                let printed: Vec<String> = printed
                    .map(|line| line.bytes().map(|letter| char::from(letter + 4 * source)).collect())
                    .collect();
                let of_source: Vec<&str> = text
                    .lines()
                    .filter(|line| line.chars().next().is_some_and(is_own))
                    .collect();
                prop_assert!(of_source.iter().all(|line| line.chars().all(is_own)));
                // Beside those that were shown before they had ended.
                let mut left = of_source.into_iter();
                for line in printed {
                    prop_assert!(left.any(|shown| shown == line), "{line:?} of {source} in {text:?}");
                }
            }
        }
    }
}
