//! Who uses which addresses and ports, as the kernel tells: /proc/iomem and /proc/ioports.
//!
//! Invariant: what is inside something lies inside it, and children are in the order of the file.

use crate::problem::{Kind, Problem};
use crate::source::Source;
use crate::span::Span;

/// Deeper nesting than this is no listing of a kernel.
const MAX_DEPTH: usize = 32;

/// A range with a name, and what is inside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// Addresses or ports.
    pub span: Span,
    /// What the kernel calls it: "System RAM", "PCI Bus 0000:00".
    pub name: String,
    /// What is inside.
    pub inside: Vec<Resource>,
}

impl Resource {
    /// It and all that is inside, whole first.
    pub fn walk(&self) -> Box<dyn Iterator<Item = &Self> + '_> {
        Box::new(std::iter::once(self).chain(self.inside.iter().flat_map(Self::walk)))
    }
}

/// Reads /proc/iomem.
///
/// # Errors
/// When it can't be read, when its addresses are hidden, or when it makes no sense.
pub fn memory(source: &Source) -> Result<Vec<Resource>, Problem> {
    read(source, "/proc/iomem")
}

/// Reads /proc/ioports.
///
/// # Errors
/// When it can't be read, when its ports are hidden, or when it makes no sense.
pub fn ports(source: &Source) -> Result<Vec<Resource>, Problem> {
    read(source, "/proc/ioports")
}

fn read(source: &Source, path: &str) -> Result<Vec<Resource>, Problem> {
    parse(path, &source.read_text(path)?)
}

/// Parses such a listing.
///
/// # Errors
/// When all addresses are hidden, or when a line makes no sense.
pub fn parse(path: &str, text: &str) -> Result<Vec<Resource>, Problem> {
    // The resources that are open: one for each level, each in the one before.
    let mut open: Vec<Resource> = Vec::new();
    let mut top: Vec<Resource> = Vec::new();
    let mut seen = false;
    for (index, line) in text.lines().enumerate() {
        let garbage = |what: &str| Problem::garbage(path, format!("line {}: {what}", index + 1));
        let (depth, span, name) =
            parse_line(line).ok_or_else(|| garbage("it is not \"first-last : name\""))?;
        if depth > open.len() || depth >= MAX_DEPTH {
            return Err(garbage("it is inside of nothing"));
        }
        close(&mut open, &mut top, depth);
        if let Some(parent) = open.last()
            && !parent.span.contains(&span)
        {
            return Err(garbage("it is not inside of what it stands under"));
        }
        seen |= span.last() != 0;
        open.push(Resource {
            span,
            name: name.to_owned(),
            inside: Vec::new(),
        });
    }
    close(&mut open, &mut top, 0);
    match (seen, top.is_empty()) {
        (true, _) => Ok(top),
        (false, true) => Err(Problem::garbage(path, "it is empty")),
        (false, false) => Err(Problem::new(
            Kind::Permission,
            path,
            "all addresses in it are 0: the kernel hides them from everyone but root",
            "Run gaol as root; a collection has to be taken as root as well.",
        )),
    }
}

fn parse_line(line: &str) -> Option<(usize, Span, &str)> {
    let content = line.trim_start_matches(' ');
    let indentation = line.len() - content.len();
    let (range, name) = content.split_once(" : ")?;
    let (first, last) = range.split_once('-')?;
    let first = u64::from_str_radix(first, 16).ok()?;
    let last = u64::from_str_radix(last, 16).ok()?;
    let span = Span::inclusive(first, last)?;
    indentation
        .is_multiple_of(2)
        .then_some((indentation / 2, span, name))
}

/// Puts what is deeper than `depth` into what it is in.
fn close(open: &mut Vec<Resource>, top: &mut Vec<Resource>, depth: usize) {
    while open.len() > depth
        && let Some(done) = open.pop()
    {
        match open.last_mut() {
            Some(parent) => parent.inside.push(done),
            None => top.push(done),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LISTING: &str = "\
00000000-00000fff : Reserved
00001000-0009fbff : System RAM
  00002000-00002fff : Kernel code
    00002800-000028ff : part
  00003000-00003fff : Kernel data
e0000000-efffffff : PCI MMCONFIG 0000 [bus 00-ff]
";

    #[test]
    fn listings_nest() {
        let listing = parse("/proc/iomem", LISTING).unwrap();
        let names: Vec<&str> = listing.iter().map(|it| &*it.name).collect();
        assert_eq!(
            names,
            ["Reserved", "System RAM", "PCI MMCONFIG 0000 [bus 00-ff]"]
        );
        let inside: Vec<&str> = listing[1].walk().map(|it| &*it.name).collect();
        assert_eq!(inside, ["System RAM", "Kernel code", "part", "Kernel data"]);
        assert_eq!(
            listing[1].inside[0].inside[0].span,
            Span::sized(0x2800, 0x100).unwrap()
        );
    }

    #[test]
    fn hidden_addresses_are_told() {
        let hidden = "00000000-00000000 : System RAM\n  00000000-00000000 : Kernel code\n";
        let problem = parse("/proc/iomem", hidden).unwrap_err();
        assert_eq!(problem.kind(), Kind::Permission);
        assert_eq!(
            problem.to_string(),
            "/proc/iomem: all addresses in it are 0: the kernel hides them from everyone but root"
        );
    }

    #[test]
    fn garbage_is_told_by_its_line() {
        for (text, what) in [
            ("", "it is empty"),
            ("x\n", "line 1: it is not \"first-last : name\""),
            (
                "00-0f : a\n10-05 : b\n",
                "line 2: it is not \"first-last : name\"",
            ),
            (
                "00-0f : a\n 01-05 : b\n",
                "line 2: it is not \"first-last : name\"",
            ),
            (
                "00-0f : a\n    01-05 : b\n",
                "line 2: it is inside of nothing",
            ),
            (
                "00-0f : a\n  01-15 : b\n",
                "line 2: it is not inside of what it stands under",
            ),
        ] {
            let problem = parse("/proc/iomem", text).unwrap_err();
            assert_eq!((problem.kind(), problem.what()), (Kind::Garbage, what));
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "([ ]{0,4}[0-9a-f]{1,4}-[0-9a-f]{1,4} : [a-z]\n|.{0,9}\n){0,12}") {
            let _ = parse("/proc/iomem", &text);
        }
    }
}
