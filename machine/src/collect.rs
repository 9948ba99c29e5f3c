//! Collections: what was read of a machine, as a tar file that can be read in its place.
//!
//! Invariant: a collection holds what was read through the source and nothing else, as the filters of the readers left it.

use std::io::{self, Write};

use crate::machine::Machine;
use crate::problem::{Kind, Problem};
use crate::source::{Source, Tree};

/// What was collected.
#[derive(Clone, Debug)]
pub struct Collection {
    /// The files.
    pub tree: Tree,
    /// What the machine has that can't be read or makes no sense: reading the collection will tell the same.
    pub problems: Vec<Problem>,
}

/// Reads everything about the machine, and with `more` whatever else readers want, and keeps what was read.
///
/// # Errors
/// What the user may not read: such a collection would be of no use.
pub fn collect(source: Source, more: impl FnOnce(&Source)) -> Result<Collection, Vec<Problem>> {
    let source = source.recording();
    let mut problems = Vec::new();
    Machine::read_what_can_be(&source, &mut problems);
    more(&source);
    let is_forbidden = |problem: &Problem| problem.kind() == Kind::Permission;
    if problems.iter().any(is_forbidden) {
        problems.retain(is_forbidden);
        return Err(problems);
    }
    Ok(Collection {
        tree: source.recorded(),
        problems,
    })
}

impl Collection {
    /// Whether model-specific registers of any CPU are in it.
    #[must_use]
    pub fn has_registers(&self) -> bool {
        self.tree.paths().any(|path| path.ends_with("/msr"))
    }

    /// Writes it as a tar file, compressed by gzip when asked for.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn write(&self, writer: impl Write, compressed: bool) -> io::Result<()> {
        match compressed {
            true => self.tree.write_compressed_tar(writer),
            false => self.tree.write_tar(writer),
        }
    }
}
