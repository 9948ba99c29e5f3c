//! A directory that is taken for a machine's root. No link in it leads out: the kernel resolves paths inside it.

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fd::OwnedFd;
use rustix::fs::{Dir, FileType, Mode, OFlags, ResolveFlags, fstat, open, openat2, readlinkat};
use rustix::io::Errno;

use super::{components, read_bounded};
use crate::problem::{Problem, SourceError};

/// A root.
#[derive(Debug)]
pub(super) struct Directory(OwnedFd);

fn problem(path: &str, error: Errno) -> Problem {
    Problem::from_io(path, &io::Error::from(error))
}

impl Directory {
    /// Opens a root.
    pub(super) fn open(root: &Path) -> Result<Self, SourceError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match open(root, flags, Mode::empty()) {
            Ok(directory) => Ok(Self(directory)),
            Err(error) => Err(problem(&root.display().to_string(), error)),
        }
    }

    fn descriptor(&self, path: &str, flags: OFlags) -> Result<OwnedFd, SourceError> {
        let names = components(path)?;
        let inside = match names.is_empty() {
            true => ".".to_owned(),
            false => names.join("/"),
        };
        let flags = flags | OFlags::CLOEXEC;
        openat2(&self.0, inside, flags, Mode::empty(), ResolveFlags::IN_ROOT)
            .map_err(|error| problem(path, error))
    }

    /// The content of a regular file.
    pub(super) fn read(&self, path: &str) -> Result<Vec<u8>, SourceError> {
        // A pipe or a device would block or have effects.
        let handle = self.descriptor(path, OFlags::PATH)?;
        let kind = fstat(&handle).map_err(|error| problem(path, error))?;
        if FileType::from_raw_mode(kind.st_mode) != FileType::RegularFile {
            return Err(Problem::garbage(path, "it is not a file"));
        }
        let file = self.descriptor(path, OFlags::RDONLY | OFlags::NONBLOCK)?;
        read_bounded(path, File::from(file))
    }

    /// The names in a directory.
    pub(super) fn list(&self, path: &str) -> Result<Vec<String>, SourceError> {
        let handle = self.descriptor(path, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let mut names = Vec::new();
        for entry in Dir::read_from(handle).map_err(|error| problem(path, error))? {
            let entry = entry.map_err(|error| problem(path, error))?;
            match entry.file_name().to_str() {
                Ok("." | "..") => (),
                Ok(name) => names.push(name.to_owned()),
                Err(_) => return Err(Problem::garbage(path, "a name in it is not UTF-8")),
            }
        }
        Ok(names)
    }

    /// Where a symbolic link points.
    pub(super) fn read_link(&self, path: &str) -> Result<String, SourceError> {
        let handle = self.descriptor(path, OFlags::PATH | OFlags::NOFOLLOW)?;
        let kind = fstat(&handle).map_err(|error| problem(path, error))?;
        if FileType::from_raw_mode(kind.st_mode) != FileType::Symlink {
            return Err(Problem::garbage(path, "it is not a symbolic link"));
        }
        let target = readlinkat(&handle, "", Vec::new()).map_err(|error| problem(path, error))?;
        target
            .into_string()
            .map_err(|_| Problem::garbage(path, "it points to a name that is not UTF-8"))
    }

    /// Whether there is something.
    pub(super) fn exists(&self, path: &str) -> bool {
        self.descriptor(path, OFlags::PATH | OFlags::NOFOLLOW)
            .is_ok()
    }
}
