//! A TOML file in the making: keys and entries with what is to be said of them.
//!
//! Invariant: each note stands in the file as a comment, beside what it is about, and in the list of notes; an entry that
//! is left out stays in the file as a comment, with the reason.

use core::fmt::Write;
use core::ops::Range;

/// Columns of a comment.
const WIDTH: usize = 100;

/// Something that was dropped or changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// The field of Jailhouse's configuration that it is about.
    pub about: String,
    /// What became of it: sentences.
    pub text: String,
}

impl Note {
    /// A note.
    pub(super) fn new(about: impl Into<String>, text: impl Into<String>) -> Self {
        Self {
            about: about.into(),
            text: text.into(),
        }
    }
}

/// A key with its value, or only what is to be said where it would stand.
#[derive(Clone, Debug, Default)]
pub(super) struct Setting {
    /// Lines of TOML; may be empty.
    pub text: String,
    /// What is said above it.
    pub notes: Vec<Note>,
}

/// What an entry is an element of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Group {
    /// `cpus`.
    Cpus,
    /// `ports`.
    Ports,
    /// `interrupts`.
    Interrupts,
    /// `cache-ways.l3`.
    Ways,
    /// `[[memory]]`.
    Memory,
    /// `[[devices]]`.
    Devices,
}

/// An element of a list or an array of tables.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// Where it belongs.
    pub group: Group,
    /// The field of Jailhouse's configuration that it comes from.
    pub about: String,
    /// An element, or the lines of a table.
    pub text: String,
    /// What is said above it.
    pub notes: Vec<Note>,
    /// Why it is left out, if it is.
    pub refused: Option<String>,
}

impl Entry {
    fn is_in(&self) -> bool {
        self.refused.is_none()
    }

    /// The reason and the text as comments.
    fn left_out(&self, indent: &str, output: &mut String) {
        let Some(reason) = &self.refused else { return };
        comment(indent, &left_out_note(&self.about, reason), output);
        for line in self.text.lines() {
            let _ = writeln!(output, "{indent}#   {line}");
        }
    }

    fn all_notes(&self) -> impl Iterator<Item = Note> {
        let reason = self.refused.as_ref();
        let left_out = reason.map(|reason| left_out_note(&self.about, reason));
        self.notes.iter().cloned().chain(left_out)
    }
}

fn left_out_note(about: &str, reason: &str) -> Note {
    Note::new(about, format!("left out: {reason}"))
}

/// A note as comment lines.
fn comment(indent: &str, note: &Note, output: &mut String) {
    wrapped(indent, &format!("{}: {}", note.about, note.text), output);
}

/// A text as comment lines.
pub(super) fn wrapped(indent: &str, text: &str, output: &mut String) {
    let mut line = format!("{indent}#");
    for word in text.split_whitespace() {
        if line.len() + 1 + word.len() > WIDTH && line.len() > indent.len() + 1 {
            let _ = writeln!(output, "{line}");
            line = format!("{indent}#");
        }
        line.push(' ');
        line.push_str(word);
    }
    let _ = writeln!(output, "{line}");
}

/// A file.
#[derive(Clone, Debug, Default)]
pub(super) struct Draft {
    /// Whether it is a system file, which has none of the lists.
    pub is_system: bool,
    /// What stands at its head.
    pub title: String,
    /// Keys of the file as a whole.
    pub settings: Vec<Setting>,
    /// What is to be said of lists as a whole.
    pub lists: Vec<(Group, Note)>,
    /// The elements of its lists, in the order of the list.
    pub entries: Vec<Entry>,
    /// Why the file as a whole is not accepted.
    pub refused: Option<Note>,
}

/// A file, and where in it the entries are.
pub(super) struct Rendered {
    /// The text.
    pub text: String,
    /// Place and index of each entry that is not left out.
    pub places: Vec<(Range<usize>, usize)>,
}

impl Rendered {
    /// The entry at this line and column, both counted from 1.
    pub(super) fn entry_at(&self, line: usize, column: usize) -> Option<usize> {
        let before = self.text.split_inclusive('\n').take(line.checked_sub(1)?);
        let start: usize = before.map(str::len).sum();
        let offset = start.checked_add(column.checked_sub(1)?)?;
        let found = self
            .places
            .iter()
            .find(|(place, _)| place.contains(&offset))?;
        Some(found.1)
    }
}

impl Draft {
    /// A key, with what is to be said of it.
    pub(super) fn set(&mut self, text: impl Into<String>, notes: Vec<Note>) {
        let text = text.into();
        self.settings.push(Setting { text, notes });
    }

    /// Only what is to be said.
    pub(super) fn say(&mut self, about: &str, text: impl Into<String>) {
        self.set("", vec![Note::new(about, text)]);
    }

    /// What is to be said above a list.
    pub(super) fn say_of(&mut self, group: Group, about: &str, text: impl Into<String>) {
        self.lists.push((group, Note::new(about, text)));
    }

    /// The notes in the order of the file.
    pub(super) fn notes(&self) -> Vec<Note> {
        let settings = self
            .settings
            .iter()
            .flat_map(|setting| setting.notes.clone());
        let lists = GROUPS.iter().flat_map(|(group, _)| {
            let entries = self.of(*group).flat_map(|(_, entry)| entry.all_notes());
            self.notes_of(*group).cloned().chain(entries)
        });
        let whole = self.refused.iter().cloned();
        whole.chain(settings).chain(lists).collect()
    }

    fn notes_of(&self, group: Group) -> impl Iterator<Item = &Note> {
        let lists = self.lists.iter().filter(move |(of, _)| *of == group);
        lists.map(|(_, note)| note)
    }

    fn of(&self, group: Group) -> impl Iterator<Item = (usize, &Entry)> {
        let entries = self.entries.iter().enumerate();
        entries.filter(move |(_, entry)| entry.group == group)
    }

    /// The entries that are not left out.
    pub(super) fn entered(&self) -> Vec<usize> {
        let entries = self.entries.iter().enumerate();
        entries
            .filter(|(_, entry)| entry.is_in())
            .map(|(index, _)| index)
            .collect()
    }

    /// The file with these entries and without comments.
    pub(super) fn bare(&self, entries: &[usize]) -> Rendered {
        let settings = self.settings.iter().map(|setting| Setting {
            text: setting.text.clone(),
            notes: Vec::new(),
        });
        let entries = entries.iter().filter_map(|index| self.entries.get(*index));
        let entries = entries.map(|entry| Entry {
            notes: Vec::new(),
            ..entry.clone()
        });
        let bare = Self {
            is_system: self.is_system,
            settings: settings.collect(),
            entries: entries.collect(),
            ..Self::default()
        };
        bare.render()
    }

    /// The file.
    pub(super) fn render(&self) -> Rendered {
        let mut rendered = Rendered {
            text: String::new(),
            places: Vec::new(),
        };
        wrapped("", &self.title, &mut rendered.text);
        if let Some(note) = &self.refused {
            comment("", note, &mut rendered.text);
        }
        let mut was_commented = true;
        for setting in &self.settings {
            // What is explained stands apart.
            if was_commented || !setting.notes.is_empty() {
                rendered.text.push('\n');
            }
            was_commented = !setting.notes.is_empty();
            for note in &setting.notes {
                comment("", note, &mut rendered.text);
            }
            rendered.text.push_str(&setting.text);
            if !setting.text.is_empty() && !setting.text.ends_with('\n') {
                rendered.text.push('\n');
            }
        }
        if self.is_system {
            return rendered;
        }
        for (group, form) in GROUPS {
            match form {
                Form::List(key) => self.render_list(*group, key, &mut rendered),
                Form::Lines(key) => self.render_lines(*group, key, &mut rendered),
                Form::Tables => self.render_tables(*group, &mut rendered),
            }
        }
        rendered
    }

    /// What is said of a list; returns whether there is something to list.
    fn begin(&self, group: Group, rendered: &mut Rendered) -> bool {
        // A cell without CPUs is wrong, but says so best itself.
        let has_any = group == Group::Cpus || self.of(group).next().is_some();
        if has_any || self.notes_of(group).next().is_some() {
            rendered.text.push('\n');
        }
        for note in self.notes_of(group) {
            comment("", note, &mut rendered.text);
        }
        has_any
    }

    /// `key = [1, 2]`, with everything that is to be said above it.
    fn render_list(&self, group: Group, key: &str, rendered: &mut Rendered) {
        if !self.begin(group, rendered) {
            return;
        }
        for (_, entry) in self.of(group) {
            for note in &entry.notes {
                comment("", note, &mut rendered.text);
            }
            entry.left_out("", &mut rendered.text);
        }
        if group != Group::Cpus && !self.of(group).any(|(_, entry)| entry.is_in()) {
            return;
        }
        let _ = write!(rendered.text, "{key} = [");
        let mut separator = "";
        for (index, entry) in self.of(group).filter(|(_, entry)| entry.is_in()) {
            rendered.text.push_str(separator);
            separator = ", ";
            rendered.put(index, &entry.text);
        }
        rendered.text.push_str("]\n");
    }

    /// `key = [`, a line for each element.
    fn render_lines(&self, group: Group, key: &str, rendered: &mut Rendered) {
        if !self.begin(group, rendered) {
            return;
        }
        let _ = writeln!(rendered.text, "{key} = [");
        for (index, entry) in self.of(group) {
            for note in &entry.notes {
                comment("    ", note, &mut rendered.text);
            }
            entry.left_out("    ", &mut rendered.text);
            if entry.is_in() {
                rendered.text.push_str("    ");
                rendered.put(index, &entry.text);
                rendered.text.push_str(",\n");
            }
        }
        rendered.text.push_str("]\n");
    }

    fn render_tables(&self, group: Group, rendered: &mut Rendered) {
        if self.notes_of(group).next().is_some() {
            rendered.text.push('\n');
        }
        for note in self.notes_of(group) {
            comment("", note, &mut rendered.text);
        }
        for (index, entry) in self.of(group) {
            rendered.text.push('\n');
            for note in &entry.notes {
                comment("", note, &mut rendered.text);
            }
            entry.left_out("", &mut rendered.text);
            if entry.is_in() {
                rendered.put(index, &entry.text);
            }
        }
    }
}

impl Rendered {
    fn put(&mut self, index: usize, text: &str) {
        let start = self.text.len();
        self.text.push_str(text);
        self.places.push((start..self.text.len(), index));
    }
}

/// How the elements of a group are written.
enum Form {
    List(&'static str),
    Lines(&'static str),
    Tables,
}

/// The groups in the order of the file: keys of the file as a whole stand before the first table.
const GROUPS: &[(Group, Form)] = &[
    (Group::Cpus, Form::List("cpus")),
    (Group::Ports, Form::Lines("ports")),
    (Group::Interrupts, Form::List("interrupts")),
    (Group::Ways, Form::List("cache-ways.l3")),
    (Group::Memory, Form::Tables),
    (Group::Devices, Form::Tables),
];
