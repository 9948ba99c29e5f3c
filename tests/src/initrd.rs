//! The initial RAM disk: a static busybox, an init that serves the console, and whatever a test adds.
//!
//! The archive is written here, byte for byte reproducible, so that two runs of one test boot the same image.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use object::LittleEndian;
use object::elf::{FileHeader64, PT_INTERP};
use object::read::elf::{FileHeader, ProgramHeader};

const INIT: &str = include_str!("init.sh");
const BUSYBOX: &str = "/bin/busybox";

const DIRECTORY: u32 = 0o040_755;
const EXECUTABLE: u32 = 0o100_755;
const LINK: u32 = 0o120_777;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// What a name in the archive stands for.
struct Node {
    mode: u32,
    content: Vec<u8>,
    /// Major and minor number of a device.
    device: (u32, u32),
}

/// An initial RAM disk under construction.
pub struct Initrd {
    nodes: BTreeMap<String, Node>,
}

impl Initrd {
    /// One with busybox, its applets in /bin, and the init that serves the console.
    ///
    /// # Errors
    /// When the host has no static busybox.
    pub fn new() -> Result<Self> {
        let busybox = fs::read(BUSYBOX).with_context(|| {
            format!("cannot read {BUSYBOX}: install the Debian package `busybox-static`")
        })?;
        ensure!(
            is_static(&busybox)?,
            "{BUSYBOX} is linked dynamically and would not start in the machine: install the Debian package `busybox-static`"
        );
        let mut initrd = Self {
            nodes: BTreeMap::new(),
        };
        for directory in ["dev", "proc", "sys", "tmp", "root", "run", "etc"] {
            initrd.directories(&format!("{directory}/x"));
        }
        initrd.insert("dev/console", CHARACTER_DEVICE, vec![], (5, 1));
        initrd.insert("bin/busybox", EXECUTABLE, busybox, (0, 0));
        let output = Command::new(BUSYBOX)
            .arg("--list")
            .output()
            .context("cannot run busybox")?;
        for applet in String::from_utf8_lossy(&output.stdout).lines() {
            if applet != "busybox" {
                initrd.insert(&format!("bin/{applet}"), LINK, b"busybox".to_vec(), (0, 0));
            }
        }
        initrd.file("init", INIT.into());
        Ok(initrd)
    }

    /// Adds a file, executable, at an absolute or relative path of the machine; a later one replaces an earlier one.
    pub fn file(&mut self, path: &str, content: Vec<u8>) {
        self.insert(path, EXECUTABLE, content, (0, 0));
    }

    /// Adds a file of the host.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn host_file(&mut self, path: &str, host: &Path) -> Result<()> {
        let content = fs::read(host).with_context(|| format!("cannot read {}", host.display()))?;
        self.file(path, content);
        Ok(())
    }

    fn insert(&mut self, path: &str, mode: u32, content: Vec<u8>, device: (u32, u32)) {
        let path = path.trim_start_matches('/');
        self.directories(path);
        self.nodes.insert(
            path.to_owned(),
            Node {
                mode,
                content,
                device,
            },
        );
    }

    /// Adds the directories that lead to `path`.
    fn directories(&mut self, path: &str) {
        for (index, _) in path.match_indices('/') {
            self.nodes.entry(path[..index].to_owned()).or_insert(Node {
                mode: DIRECTORY,
                content: vec![],
                device: (0, 0),
            });
        }
    }

    /// The archive in the "newc" format of cpio.
    pub fn archive(&self) -> Vec<u8> {
        let mut archive = Vec::new();
        for (index, (path, node)) in self.nodes.iter().enumerate() {
            append(&mut archive, index + 1, path, node);
        }
        let end = Node {
            mode: 0,
            content: vec![],
            device: (0, 0),
        };
        append(&mut archive, 0, "TRAILER!!!", &end);
        archive.resize(archive.len().next_multiple_of(512), 0);
        archive
    }
}

fn append(archive: &mut Vec<u8>, inode: usize, path: &str, node: &Node) {
    let fields = [
        inode as u32,
        node.mode,
        0, // owner
        0, // group
        1, // links
        0, // time of change
        node.content.len() as u32,
        0, // the device that the file was on
        0,
        node.device.0,
        node.device.1,
        path.len() as u32 + 1,
        0, // checksum, unused in this format
    ];
    archive.extend_from_slice(b"070701");
    for field in fields {
        archive.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    archive.extend_from_slice(path.as_bytes());
    archive.push(0);
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend_from_slice(&node.content);
    archive.resize(archive.len().next_multiple_of(4), 0);
}

/// Whether this host has the busybox that every machine needs.
pub fn has_static_busybox() -> bool {
    fs::read(BUSYBOX).is_ok_and(|program| is_static(&program).is_ok_and(|is_static| is_static))
}

/// Whether an ELF program runs without an interpreter.
fn is_static(program: &[u8]) -> Result<bool> {
    let header = FileHeader64::<LittleEndian>::parse(program).context("it is no ELF file")?;
    let segments = header
        .program_headers(LittleEndian, program)
        .context("it has no program headers")?;
    Ok(!segments
        .iter()
        .any(|segment| segment.p_type(LittleEndian) == PT_INTERP))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_laid_out_as_newc() {
        let mut initrd = Initrd {
            nodes: BTreeMap::new(),
        };
        initrd.file("/a/b", b"hello".to_vec());
        let archive = initrd.archive();
        assert_eq!(archive.len() % 512, 0);
        assert_eq!(&archive[..6], b"070701");
        // "a" (a directory) takes a header of 110 bytes and a name of 2; the file follows.
        let file = &archive[112..];
        assert_eq!(&file[..6], b"070701");
        assert_eq!(&file[6 + 6 * 8..6 + 7 * 8], b"00000005");
        assert_eq!(&file[110..116], b"a/b\0\0\0");
    }

    #[test]
    fn the_same_files_give_the_same_bytes() {
        let build = |names: [&str; 2]| {
            let mut initrd = Initrd {
                nodes: BTreeMap::new(),
            };
            for name in names {
                initrd.file(name, name.as_bytes().to_vec());
            }
            initrd.archive()
        };
        assert_eq!(build(["x/a", "b"]), build(["b", "x/a"]));
    }
}
