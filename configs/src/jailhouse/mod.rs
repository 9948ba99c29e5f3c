//! Jailhouse's binary configurations, read and turned into files of Gaol.
//!
//! [`parse()`] reads system and cell configurations of revisions 13 and 14 in place; [`import`] makes TOML of them, which
//! says in comments what it drops or changes.
//!
//! Invariant: no file makes anything here panic, and what Gaol's own compiler refuses does not come out as an entry, but
//! as a comment with the reason.

mod cell;
pub mod damage;
mod draft;
pub mod layout;
mod names;
pub mod parse;
mod ports;
mod regions;
mod system;

#[cfg(test)]
mod build;
#[cfg(test)]
mod import_tests;
#[cfg(test)]
mod models;
#[cfg(test)]
mod parse_tests;

pub use damage::{Damage, Fault};
pub use draft::Note;
pub use parse::{Blob, CellBlob, Revision, SystemBlob, parse};

use crate::compile::{Cell, System};
use crate::problem::Problem;
use draft::Draft;

/// What a file is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The hypervisor and the root cell.
    System,
    /// Another cell.
    Cell,
}

/// A configuration of Jailhouse as a file of Gaol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Import {
    /// What it is about.
    pub kind: Kind,
    /// The TOML file.
    pub toml: String,
    /// What was dropped or changed; the file says the same.
    pub notes: Vec<Note>,
    /// Whether Gaol's compiler accepts the file. If not, the first note says why.
    pub is_accepted: bool,
}

/// Turns a binary configuration of Jailhouse into a file of Gaol.
///
/// # Errors
/// What is wrong with `bytes`; `file` is the name that is given to them there.
pub fn import(file: &str, bytes: &[u8]) -> Result<Import, Problem> {
    let blob = parse(bytes).map_err(|damage| damage.problem(file))?;
    let (kind, mut draft) = match &blob {
        Blob::System(system) => (Kind::System, system::draft(system)),
        Blob::Cell(cell) => (Kind::Cell, cell::draft(cell)),
    };
    settle(kind, &mut draft);
    Ok(Import {
        kind,
        toml: draft.render().text,
        notes: draft.notes(),
        is_accepted: draft.refused.is_none(),
    })
}

/// Leaves out the entries that the compiler refuses, one after the other. What it refuses otherwise is said at the head.
fn settle(kind: Kind, draft: &mut Draft) {
    let mut entered = draft.entered();
    // Each round leaves an entry out, or is the last.
    for _ in 0..=draft.entries.len() {
        let bare = draft.bare(&entered);
        let compiled = match kind {
            Kind::System => System::from_toml("system.toml", &bare.text).map(drop),
            Kind::Cell => Cell::from_toml("cell.toml", &bare.text).map(drop),
        };
        let Err(problem) = compiled else { return };
        let place = problem.line_and_column();
        let blamed = place.and_then(|(line, column)| bare.entry_at(line, column));
        let blamed = blamed.filter(|blamed| *blamed < entered.len());
        let entry = blamed.map(|blamed| entered.remove(blamed));
        match entry.and_then(|index| draft.entries.get_mut(index)) {
            Some(entry) => entry.refused = Some(sentence(&problem)),
            None => {
                let text = format!(
                    "Gaol does not accept this file as it is: {}",
                    sentence(&problem)
                );
                draft.refused = Some(Note::new("file", text));
                return;
            }
        }
    }
}

/// A problem in a comment.
fn sentence(problem: &Problem) -> String {
    format!("{}. {}", problem.message(), problem.remedy())
}
