//! Files in memory: what a collection holds. Reading one from a tar file is bounded in files, in bytes and in depth.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};

use flate2::Compression;
use flate2::GzBuilder;
use flate2::read::GzDecoder;
use tar::{Archive, Builder, EntryType, Header};

use super::{components, read_bounded};
use crate::problem::{Kind, Problem, SourceError};

/// The most bytes that an archive may hold, unpacked.
const MAX_ARCHIVE_SIZE: u64 = 64 << 20;
/// The most files that an archive may hold.
const MAX_ENTRIES: usize = 200_000;
/// The most symbolic links that are followed for one path.
const MAX_LINKS: usize = 40;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Node {
    Directory,
    File(Vec<u8>),
    Link(String),
}

/// Files, directories and links by their paths.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    /// By absolute path without a final slash. All parents are there, as directories.
    nodes: BTreeMap<String, Node>,
}

fn absolute(names: &[&str]) -> String {
    names.iter().flat_map(|name| ["/", name]).collect()
}

fn missing(path: &str) -> Problem {
    let error = io::Error::from_raw_os_error(rustix::io::Errno::NOENT.raw_os_error());
    Problem::from_io(path, &error)
}

impl Tree {
    /// Adds a file. A path that leads upwards is ignored, as by the other functions that add.
    pub fn insert_file(&mut self, path: &str, content: impl Into<Vec<u8>>) {
        self.insert(path, Node::File(content.into()));
    }

    /// Adds a directory, unless something is there already.
    pub fn insert_directory(&mut self, path: &str) {
        self.insert(path, Node::Directory);
    }

    /// Adds a symbolic link.
    pub fn insert_link(&mut self, path: &str, target: &str) {
        self.insert(path, Node::Link(target.to_owned()));
    }

    /// Takes something away, with all that lies below.
    pub fn remove(&mut self, path: &str) {
        let Ok(names) = components(path) else { return };
        let path = absolute(&names);
        let below = format!("{path}/");
        self.nodes
            .retain(|name, _| *name != path && !name.starts_with(&below));
    }

    fn insert(&mut self, path: &str, node: Node) {
        let Ok(names) = components(path) else { return };
        let Some((_, parents)) = names.split_last() else {
            return;
        };
        let mut parent = String::new();
        for name in parents {
            parent.push('/');
            parent.push_str(name);
            // What has something below it is a directory, whatever else it was taken for.
            self.nodes.insert(parent.clone(), Node::Directory);
        }
        let path = absolute(&names);
        let is_directory = node == Node::Directory;
        let known = self.nodes.get(&path);
        let has_children = || {
            let below = format!("{path}/");
            let mut after = self.nodes.range(below.clone()..);
            after
                .next()
                .is_some_and(|(name, _)| name.starts_with(&below))
        };
        if known.is_none() || !is_directory && !has_children() {
            self.nodes.insert(path, node);
        }
    }

    /// The paths of all files and links, sorted.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.nodes
            .iter()
            .filter(|(_, node)| **node != Node::Directory)
            .map(|(path, _)| path.as_str())
    }

    /// The content of a file.
    ///
    /// # Errors
    /// When there is none.
    pub fn read(&self, path: &str) -> Result<&[u8], SourceError> {
        match self.node(path, true)?.1 {
            Node::File(content) => Ok(content),
            _ => Err(Problem::garbage(path, "it is not a file")),
        }
    }

    pub(super) fn list(&self, path: &str) -> Result<Vec<String>, SourceError> {
        let (resolved, node) = self.node(path, true)?;
        if *node != Node::Directory {
            let error = io::Error::from_raw_os_error(rustix::io::Errno::NOTDIR.raw_os_error());
            return Err(Problem::from_io(path, &error));
        }
        let below = format!("{resolved}/");
        let inside = self.nodes.range(below.clone()..);
        let inside = inside.map_while(|(name, _)| name.strip_prefix(&below));
        let names = inside.filter(|name| !name.contains('/'));
        Ok(names.map(str::to_owned).collect())
    }

    pub(super) fn read_link(&self, path: &str) -> Result<&str, SourceError> {
        match self.node(path, false)?.1 {
            Node::Link(target) => Ok(target),
            _ => Err(Problem::garbage(path, "it is not a symbolic link")),
        }
    }

    pub(super) fn exists(&self, path: &str) -> bool {
        self.node(path, false).is_ok()
    }

    /// Where a path ends, with links on the way followed, and what is there.
    fn node(&self, path: &str, follow_last: bool) -> Result<(String, &Node), SourceError> {
        let mut left: Vec<String> = components(path)?
            .iter()
            .rev()
            .map(|&it| it.into())
            .collect();
        let mut done: Vec<String> = Vec::new();
        let mut links = 0;
        while let Some(name) = left.pop() {
            match &*name {
                "" | "." => continue,
                ".." => {
                    done.pop();
                    continue;
                }
                _ => done.push(name),
            }
            let here = absolute(&done.iter().map(String::as_str).collect::<Vec<_>>());
            match self.nodes.get(&here) {
                None => return Err(missing(path)),
                Some(Node::Link(target)) if follow_last || !left.is_empty() => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Problem::garbage(path, "its symbolic links go in a circle"));
                    }
                    done.pop();
                    if target.starts_with('/') {
                        done.clear();
                    }
                    left.extend(target.split('/').rev().map(str::to_owned));
                }
                Some(_) => (),
            }
        }
        let here = absolute(&done.iter().map(String::as_str).collect::<Vec<_>>());
        match self.nodes.get(&here) {
            Some(node) => Ok((here, node)),
            None if here.is_empty() => Ok((here, &Node::Directory)),
            None => Err(missing(path)),
        }
    }

    /// Reads a tar file called `name`, compressed by gzip or not.
    ///
    /// # Errors
    /// When it can't be read, is no archive, leads out of its root, or holds more than any collection does.
    pub fn read_tar(name: &str, mut reader: impl Read) -> Result<Self, SourceError> {
        let mut start = [0; 2];
        let mut length = 0;
        while let Some(rest) = start.get_mut(length..)
            && !rest.is_empty()
        {
            match reader.read(rest) {
                Ok(0) => break,
                Ok(count) => length += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                Err(error) => return Err(Problem::from_io(name, &error)),
            }
        }
        let whole = start.get(..length).unwrap_or_default().chain(reader);
        match start == [0x1f, 0x8b] {
            true => Self::read_plain_tar(name, GzDecoder::new(whole)),
            false => Self::read_plain_tar(name, whole),
        }
    }

    fn read_plain_tar(name: &str, reader: impl Read) -> Result<Self, SourceError> {
        let no_archive = |error: &io::Error| {
            Problem::new(
                Kind::Garbage,
                name,
                format!("it is not a whole tar file: {error}"),
                "Give the file that `gaol config collect` wrote.",
            )
        };
        let too_large = |what: &str| {
            Problem::new(
                Kind::TooLarge,
                name,
                format!("it holds more than {what}, which no machine's collection does"),
                "Give the file that `gaol config collect` wrote.",
            )
        };
        let mut tree = Self::default();
        let mut size = 0;
        // Twice the size: headers and padding count as well.
        let mut archive = Archive::new(reader.take(2 * MAX_ARCHIVE_SIZE));
        for entry in archive.entries().map_err(|error| no_archive(&error))? {
            let entry = entry.map_err(|error| no_archive(&error))?;
            let path = String::from_utf8(entry.path_bytes().into_owned())
                .map_err(|_| Problem::garbage(name, "the name of a file in it is not UTF-8"))?;
            if components(&path).is_err() {
                return Err(Problem::garbage(
                    name,
                    format!("the file {path} in it would lie outside"),
                ));
            }
            match entry.header().entry_type() {
                EntryType::Directory => tree.insert_directory(&path),
                EntryType::Symlink => {
                    let target = entry.link_name_bytes().unwrap_or_default().into_owned();
                    let target = String::from_utf8(target)
                        .map_err(|_| Problem::garbage(name, "a link in it is not UTF-8"))?;
                    tree.insert_link(&path, &target);
                }
                EntryType::Regular | EntryType::Continuous => {
                    let declared = entry.size();
                    let content = read_bounded(&format!("{name}: {path}"), entry)?;
                    if content.len() as u64 != declared {
                        return Err(no_archive(&io::ErrorKind::UnexpectedEof.into()));
                    }
                    size += declared;
                    if size > MAX_ARCHIVE_SIZE {
                        return Err(too_large(&format!("{} MiB", MAX_ARCHIVE_SIZE >> 20)));
                    }
                    tree.insert_file(&path, content);
                }
                // Devices, pipes and hard links are nothing that a collection has.
                _ => (),
            }
            if tree.nodes.len() > MAX_ENTRIES {
                return Err(too_large(&format!("{MAX_ENTRIES} files")));
            }
        }
        match tree.nodes.is_empty() {
            true => Err(no_archive(&io::ErrorKind::UnexpectedEof.into())),
            false => Ok(tree),
        }
    }

    /// Writes it as a tar file. Equal trees give equal bytes.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn write_tar(&self, writer: impl Write) -> io::Result<()> {
        let mut builder = Builder::new(writer);
        for (path, node) in &self.nodes {
            let path = path.trim_start_matches('/');
            let mut header = Header::new_gnu();
            header.set_mtime(0);
            header.set_uid(0);
            header.set_gid(0);
            header.set_size(0);
            match node {
                Node::Directory => {
                    header.set_entry_type(EntryType::Directory);
                    header.set_mode(0o755);
                    builder.append_data(&mut header, format!("{path}/"), io::empty())?;
                }
                Node::File(content) => {
                    header.set_entry_type(EntryType::Regular);
                    header.set_mode(0o644);
                    header.set_size(content.len() as u64);
                    builder.append_data(&mut header, path, content.as_slice())?;
                }
                Node::Link(target) => {
                    header.set_entry_type(EntryType::Symlink);
                    header.set_mode(0o777);
                    builder.append_link(&mut header, path, target)?;
                }
            }
        }
        builder.into_inner()?.flush()
    }

    /// Writes it as a tar file compressed by gzip. Equal trees give equal bytes.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn write_compressed_tar(&self, writer: impl Write) -> io::Result<()> {
        let mut encoder = GzBuilder::new().write(writer, Compression::best());
        self.write_tar(&mut encoder)?;
        encoder.finish()?.flush()
    }
}
