//! Where facts come from: the running machine, a directory that mirrors one, or a collection in a tar file.
//!
//! Invariants: paths are as on the machine and never lead out of the root; nothing is read without a bound; a source that
//! records notes all that is read through it, so that what is collected can't differ from what is read; secrets and
//! serial numbers are not read at all.

mod directory;
mod private;
mod registers;
mod tree;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Mutex;

use crate::problem::{Kind, Problem, SourceError};

use directory::Directory;
pub use registers::{CpuidDump, CpuidEntry};
pub use tree::Tree;

/// The longest file that is read, in bytes: tables and listings are far smaller.
pub const MAX_FILE_SIZE: u64 = 16 << 20;

/// Where facts are read from.
#[derive(Debug)]
pub struct Source {
    place: Place,
    records: Option<Mutex<Records>>,
}

#[derive(Debug)]
enum Place {
    Live(Directory),
    Directory(Directory),
    Tree(Tree),
}

/// What was read so far.
#[derive(Debug, Default)]
struct Records {
    tree: Tree,
    cpuid: BTreeMap<u32, CpuidDump>,
    /// By CPU and index; none where the CPU has no such register.
    msrs: BTreeMap<u32, BTreeMap<u32, Option<u64>>>,
}

impl Source {
    /// The machine that this runs on.
    ///
    /// # Errors
    /// When there is no root directory to open.
    pub fn live() -> Result<Self, SourceError> {
        Ok(Self::new(Place::Live(Directory::open(Path::new("/"))?)))
    }

    /// A directory that mirrors a machine's root, or a collection: a tar file, compressed by gzip or not.
    ///
    /// # Errors
    /// When it can't be read, or is neither.
    pub fn open(root: &Path) -> Result<Self, SourceError> {
        let name = root.display().to_string();
        let remedy = "Give the file that `gaol config collect` wrote, or a directory.";
        let fail = |error| Problem::from_io(name.clone(), &error).with_remedy(remedy);
        if std::fs::metadata(root).map_err(fail)?.is_dir() {
            return Ok(Self::new(Place::Directory(Directory::open(root)?)));
        }
        let file = File::open(root).map_err(fail)?;
        Ok(Self::tree(Tree::read_tar(&name, file)?))
    }

    /// Files in memory.
    #[must_use]
    pub fn tree(tree: Tree) -> Self {
        Self::new(Place::Tree(tree))
    }

    fn new(place: Place) -> Self {
        Self {
            place,
            records: None,
        }
    }

    /// The same source, noting all that is read from now on.
    #[must_use]
    pub fn recording(self) -> Self {
        Self {
            records: Some(Mutex::default()),
            ..self
        }
    }

    /// All that was read since it records: a collection. Empty when it does not record.
    #[must_use]
    pub fn recorded(&self) -> Tree {
        let Some(records) = self.lock() else {
            return Tree::default();
        };
        let mut tree = records.tree.clone();
        for (cpu, dump) in &records.cpuid {
            tree.insert_file(&registers::cpuid_path(*cpu), dump.to_string());
        }
        for (cpu, msrs) in &records.msrs {
            tree.insert_file(&registers::msr_path(*cpu), registers::write_msrs(msrs));
        }
        tree
    }

    /// Whether it is the machine that this runs on, as opposed to a copy of one.
    #[must_use]
    pub fn is_live(&self) -> bool {
        matches!(self.place, Place::Live(_))
    }

    /// The content of a file.
    ///
    /// # Errors
    /// When it is missing, unreadable, no file, or larger than [`MAX_FILE_SIZE`].
    pub fn read(&self, path: &str) -> Result<Vec<u8>, SourceError> {
        self.read_filtered(path, |_| ())
    }

    /// The content of a file after `filter` took away what changes from one reading to the next: that is not recorded
    /// either. Filtering twice has to be as good as once.
    ///
    /// # Errors
    /// As [`Source::read`].
    pub fn read_filtered(
        &self,
        path: &str,
        filter: impl FnOnce(&mut Vec<u8>),
    ) -> Result<Vec<u8>, SourceError> {
        let mut content = self.read_unrecorded(path)?;
        private::filter(path, &mut content);
        filter(&mut content);
        if let Some(mut records) = self.lock() {
            records.tree.insert_file(path, content.clone());
        }
        Ok(content)
    }

    /// The content of a text file, as it is: with its last line feed.
    ///
    /// # Errors
    /// As [`Source::read`], and when it is no text.
    pub fn read_text(&self, path: &str) -> Result<String, SourceError> {
        text(path, self.read(path)?)
    }

    /// The names in a directory, sorted.
    ///
    /// # Errors
    /// When it is missing, unreadable, or no directory.
    pub fn list(&self, path: &str) -> Result<Vec<String>, SourceError> {
        let mut names = match &self.place {
            Place::Live(directory) | Place::Directory(directory) => directory.list(path)?,
            Place::Tree(tree) => tree.list(path)?,
        };
        names.sort_unstable();
        if let Some(mut records) = self.lock() {
            records.tree.insert_directory(path);
            for name in &names {
                records.tree.insert_directory(&format!("{path}/{name}"));
            }
        }
        Ok(names)
    }

    /// What a symbolic link points to, as it is written there. Nothing that lies below the link may be read through the
    /// same path: in a collection it is a link into nowhere.
    ///
    /// # Errors
    /// When it is missing, unreadable, or no link.
    pub fn read_link(&self, path: &str) -> Result<String, SourceError> {
        let target = match &self.place {
            Place::Live(directory) | Place::Directory(directory) => directory.read_link(path)?,
            Place::Tree(tree) => tree.read_link(path)?.to_owned(),
        };
        if let Some(mut records) = self.lock() {
            records.tree.insert_link(path, &target);
        }
        Ok(target)
    }

    /// Whether there is something at this path, be it a link into nowhere.
    pub fn exists(&self, path: &str) -> bool {
        let exists = match &self.place {
            Place::Live(directory) | Place::Directory(directory) => directory.exists(path),
            Place::Tree(tree) => tree.exists(path),
        };
        if exists && let Some(mut records) = self.lock() {
            records.tree.insert_directory(path);
        }
        exists
    }

    /// All that CPUID says on a CPU, by Linux' number.
    ///
    /// # Errors
    /// When the CPU is offline or does not exist; when a collection has nothing or garbage for it.
    pub fn cpuid(&self, cpu: u32) -> Result<CpuidDump, SourceError> {
        let dump = match &self.place {
            Place::Live(_) => registers::live_cpuid(cpu)?,
            Place::Directory(_) | Place::Tree(_) => {
                let path = registers::cpuid_path(cpu);
                CpuidDump::parse(&path, &text(&path, self.read_unrecorded(&path)?)?)?
            }
        };
        if let Some(mut records) = self.lock() {
            records.cpuid.insert(cpu, dump.clone());
        }
        Ok(dump)
    }

    /// A model-specific register of a CPU, by Linux' number.
    ///
    /// # Errors
    /// `Missing` when the CPU has no such register, or when there are no registers to read: no module msr, no root.
    pub fn msr(&self, cpu: u32, index: u32) -> Result<u64, SourceError> {
        let value = match &self.place {
            Place::Live(_) => registers::live_msr(cpu, index)?,
            Place::Directory(_) | Place::Tree(_) => {
                let path = registers::msr_path(cpu);
                registers::find_msr(&path, &text(&path, self.read_unrecorded(&path)?)?, index)?
            }
        };
        if let Some(mut records) = self.lock() {
            records.msrs.entry(cpu).or_default().insert(index, value);
        }
        value.ok_or_else(|| {
            Problem::new(
                Kind::Missing,
                format!("MSR {index:#x} of CPU {cpu}"),
                "the processor does not have it",
                "Nothing: it is a property of the processor.",
            )
        })
    }

    fn read_unrecorded(&self, path: &str) -> Result<Vec<u8>, SourceError> {
        match &self.place {
            Place::Live(directory) | Place::Directory(directory) => directory.read(path),
            Place::Tree(tree) => tree.read(path).map(<[u8]>::to_vec),
        }
    }

    fn lock(&self) -> Option<std::sync::MutexGuard<'_, Records>> {
        let records = self.records.as_ref()?;
        // A reader that panicked leaves complete records behind.
        Some(
            records
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner),
        )
    }
}

/// Reads to the end, at most [`MAX_FILE_SIZE`] bytes.
fn read_bounded(path: &str, reader: impl Read) -> Result<Vec<u8>, SourceError> {
    let mut content = Vec::new();
    reader
        .take(MAX_FILE_SIZE + 1)
        .read_to_end(&mut content)
        .map_err(|error| Problem::from_io(path, &error))?;
    match content.len() as u64 > MAX_FILE_SIZE {
        true => Err(Problem::new(
            Kind::TooLarge,
            path,
            format!("it is larger than {} MiB", MAX_FILE_SIZE >> 20),
            "Nothing that Gaol reads is so large: collect it anew.",
        )),
        false => Ok(content),
    }
}

fn text(path: &str, content: Vec<u8>) -> Result<String, SourceError> {
    String::from_utf8(content).map_err(|_| Problem::garbage(path, "it is not text in UTF-8"))
}

/// The names that a path consists of.
fn components(path: &str) -> Result<Vec<&str>, SourceError> {
    let names = path
        .split('/')
        .filter(|name| !name.is_empty() && *name != ".");
    let names: Vec<&str> = names.collect();
    match names.contains(&"..") {
        true => Err(Problem::garbage(path, "the path leads upwards")),
        false => Ok(names),
    }
}

#[cfg(test)]
mod tests;
