//! The stock kernel of the host: where it is, its modules, and its unpacked form.
//!
//! A kernel counts only when the headers of exactly its version are installed too, since a module built against others
//! does not load.

use std::cmp::Ordering;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

/// Where Debian keeps kernel images.
const BOOT: &str = "/boot";
/// Where kernels keep their modules and the link to their headers.
const MODULES: &str = "/lib/modules";

/// An installed kernel whose headers are installed as well.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// The release as `uname -r` prints it.
    pub release: String,
    /// The bzImage.
    pub image: PathBuf,
}

impl Kernel {
    /// The newest installed kernel that has its headers.
    ///
    /// # Errors
    /// When there is none; the message names the packages to install.
    pub fn find() -> Result<Self> {
        let mut found: Vec<Kernel> = Vec::new();
        for entry in fs::read_dir(BOOT).with_context(|| format!("cannot list {BOOT}"))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if let Some(release) = name.strip_prefix("vmlinuz-") {
                let kernel = Kernel {
                    release: release.to_owned(),
                    image: entry.path(),
                };
                if kernel.headers().join("Makefile").exists() {
                    found.push(kernel);
                }
            }
        }
        found.sort_by(|a, b| compare_releases(&a.release, &b.release));
        found.pop().context(
            "no stock kernel with matching headers is installed: run `apt-get install linux-image-amd64 linux-headers-amd64`",
        )
    }

    /// The directory that `make -C` takes to build a module for this kernel.
    pub fn headers(&self) -> PathBuf {
        self.module_directory().join("build")
    }

    fn module_directory(&self) -> PathBuf {
        Path::new(MODULES).join(&self.release)
    }

    /// The modules that loading `name` takes, dependencies first, as file name (`msr.ko`) and content.
    ///
    /// # Errors
    /// When the kernel has no such module or its file cannot be read.
    pub fn module(&self, name: &str) -> Result<Vec<(String, Vec<u8>)>> {
        let directory = self.module_directory();
        let list = directory.join("modules.dep");
        let text =
            fs::read_to_string(&list).with_context(|| format!("cannot read {}", list.display()))?;
        let wanted = name.replace('-', "_");
        let line = text.lines().find(|line| {
            line.split_once(':')
                .is_some_and(|(path, _)| module_name(path) == wanted)
        });
        let (path, dependencies) = line
            .and_then(|line| line.split_once(':'))
            .with_context(|| format!("kernel {} has no module `{name}`", self.release))?;
        // modules.dep lists the dependencies in the order in which they are to be unloaded.
        dependencies
            .split_whitespace()
            .rev()
            .chain([path])
            .map(|path| {
                let file = directory.join(path);
                let bytes =
                    fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
                let bytes = match path.rsplit('.').next() {
                    Some("xz") => filter("xz", &["-dc"], &bytes)?,
                    Some("zst") => filter("zstd", &["-dc"], &bytes)?,
                    Some("gz") => filter("gzip", &["-dc"], &bytes)?,
                    _ => bytes,
                };
                Ok((format!("{}.ko", module_name(path)), bytes))
            })
            .collect()
    }

    /// The bzImage's setup header and the ELF file packed inside.
    ///
    /// # Errors
    /// When the file is no bzImage, or packed in a way that is not known here.
    pub fn unpack(&self) -> Result<Unpacked> {
        let image = fs::read(&self.image)
            .with_context(|| format!("cannot read {}", self.image.display()))?;
        unpack(&image).with_context(|| format!("cannot unpack {}", self.image.display()))
    }
}

/// What a boot loader takes from a bzImage.
pub struct Unpacked {
    /// The setup header, from offset 0x1f1 of the boot parameters on.
    pub setup_header: Vec<u8>,
    /// The kernel proper, an ELF file.
    pub elf: Vec<u8>,
}

/// Offset of the setup header in the image and in the boot parameters ("The Linux/x86 Boot Protocol").
pub const SETUP_HEADER: usize = 0x1f1;

fn unpack(image: &[u8]) -> Result<Unpacked> {
    ensure!(
        image.get(0x202..0x206) == Some(&b"HdrS"[..]),
        "it is not a bzImage"
    );
    let header_end = 0x202 + usize::from(image[0x201]);
    let sectors = match image[SETUP_HEADER] {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let start = (sectors + 1) * 512;
    let field = |offset: usize| -> Result<usize> {
        let bytes = image
            .get(offset..offset + 4)
            .context("its header is truncated")?;
        Ok(u32::from_le_bytes(bytes.try_into()?) as usize)
    };
    let (offset, length) = (start + field(0x248)?, field(0x24c)?);
    let payload = image
        .get(offset..offset + length)
        .context("its payload is truncated")?;
    // Linux appends the unpacked size to most formats; --single-stream and the cut end leave it out.
    let elf = match payload {
        [0xfd, b'7', b'z', b'X', b'Z', ..] => filter("xz", &["-dc", "--single-stream"], payload)?,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => filter("zstd", &["-dc"], &payload[..length - 4])?,
        [0x02, 0x21, 0x4c, 0x18, ..] => filter("lz4", &["-dc"], &payload[..length - 4])?,
        [0x1f, 0x8b, ..] => filter("gzip", &["-dc"], payload)?,
        [0x7f, b'E', b'L', b'F', ..] => payload.to_vec(),
        _ => bail!("it is compressed in an unknown format"),
    };
    Ok(Unpacked {
        setup_header: image
            .get(SETUP_HEADER..header_end)
            .context("its header is truncated")?
            .to_vec(),
        elf,
    })
}

/// Sends `input` through a program of the host and returns what comes out.
fn filter(program: &str, arguments: &[&str], input: &[u8]) -> Result<Vec<u8>> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot run `{program}`: install its Debian package"))?;
    let mut stdin = child.stdin.take().context("no pipe to the child")?;
    let output = std::thread::scope(|scope| {
        // The program may stop reading before the end (trailing bytes); its output decides.
        scope.spawn(move || {
            let _ = stdin.write_all(input);
        });
        child.wait_with_output()
    })?;
    ensure!(
        !output.stdout.is_empty(),
        "`{program}` could not decompress it"
    );
    Ok(output.stdout)
}

/// The name of a module as `lsmod` prints it, from the path of its file.
fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    let stem = file.split(".ko").next().unwrap_or(file);
    stem.replace('-', "_")
}

/// Orders kernel releases by their numbers, then by the rest.
fn compare_releases(a: &str, b: &str) -> Ordering {
    let numbers = |text: &str| -> Vec<u64> {
        text.split(|c: char| !c.is_ascii_digit())
            .filter_map(|part| part.parse().ok())
            .collect()
    };
    // A longer name is a variant (cloud, rt); the plain one is preferred among equals.
    numbers(a)
        .cmp(&numbers(b))
        .then(b.len().cmp(&a.len()))
        .then(a.cmp(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_ordered_by_number() {
        let mut list = ["6.1.0-9-amd64", "6.1.0-10-amd64", "5.10.0-30-amd64"];
        list.sort_by(|a, b| compare_releases(a, b));
        assert_eq!(list, ["5.10.0-30-amd64", "6.1.0-9-amd64", "6.1.0-10-amd64"]);
    }

    #[test]
    fn the_plain_kernel_is_preferred_among_equals() {
        assert_eq!(
            compare_releases("6.1.0-10-amd64", "6.1.0-10-cloud-amd64"),
            Ordering::Greater
        );
    }

    #[test]
    fn module_names_follow_lsmod() {
        assert_eq!(
            module_name("kernel/drivers/a/foo-bar.ko.xz"),
            "foo_bar".to_owned()
        );
        assert_eq!(module_name("msr.ko"), "msr".to_owned());
    }

    #[test]
    fn what_is_no_kernel_is_refused() {
        assert!(unpack(&[0; 4096]).is_err());
        assert!(unpack(b"short").is_err());
    }
}
