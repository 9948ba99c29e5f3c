//! Which Cargo builds what: the one in use for the host, and for bare metal either the same or Debian's.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use gaol_tests::artefacts;

/// The target of the hypervisor and the cells.
pub const BARE_METAL: &str = "x86_64-unknown-none";
/// The target of the command line tool, which is linked statically.
pub const STATIC_HOST: &str = "x86_64-unknown-linux-gnu";

const DEBIAN_CARGO: &str = "/usr/bin/cargo";
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";

/// How to build for bare metal.
#[derive(Clone, Debug)]
pub enum Toolchain {
    /// The Cargo in use has the target.
    Rustup,
    /// Debian's Cargo, which builds the core library itself and needs to be shown a linker.
    Debian {
        /// The linker.
        linker: PathBuf,
    },
}

impl Toolchain {
    /// The toolchain in use, if it has the target.
    ///
    /// # Errors
    /// When there is no `rustc`.
    pub fn from_rustup() -> Result<Option<Self>> {
        let library = sysroot()?.join("lib/rustlib").join(BARE_METAL).join("lib");
        Ok(library.is_dir().then_some(Self::Rustup))
    }

    /// Debian's, if it is installed with its sources.
    pub fn from_debian() -> Option<Self> {
        let output = Command::new(DEBIAN_RUSTC)
            .env_remove("RUSTUP_TOOLCHAIN")
            .args(["--print", "sysroot"])
            .output()
            .ok()?;
        let debian = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim());
        let sources = debian.join("lib/rustlib/src/rust/library/core");
        if !Path::new(DEBIAN_CARGO).exists() || !sources.is_dir() {
            return None;
        }
        let lld = sysroot()
            .ok()?
            .join("lib/rustlib")
            .join(STATIC_HOST)
            .join("bin/rust-lld");
        let linker = if lld.exists() {
            lld
        } else {
            PathBuf::from("/usr/bin/ld")
        };
        Some(Self::Debian { linker })
    }

    /// A Cargo command for the bare-metal target; `subcommand` is `build` or another that compiles.
    pub fn bare_metal(&self, subcommand: &str) -> Command {
        let mut command = match self {
            Self::Rustup => cargo(),
            Self::Debian { linker } => {
                let mut command = Command::new(DEBIAN_CARGO);
                command
                    .env_remove("RUSTUP_TOOLCHAIN")
                    .env("RUSTC", DEBIAN_RUSTC)
                    .env("RUSTC_BOOTSTRAP", "1")
                    .env("CARGO_TARGET_X86_64_UNKNOWN_NONE_LINKER", linker)
                    // Its own directory: object files of another compiler are of no use to it.
                    .env("CARGO_TARGET_DIR", cargo_target().join("debian"));
                command
            }
        };
        command.arg(subcommand).args(["--target", BARE_METAL]);
        if let Self::Debian { .. } = self {
            command.args([
                "-Zbuild-std=core,alloc,compiler_builtins",
                "-Zbuild-std-features=compiler-builtins-mem",
            ]);
        }
        command.current_dir(artefacts::workspace_root());
        command
    }

    /// A Cargo command that looks for faults in bare-metal programs, `selection`, and takes every warning for an error.
    /// Debian's Cargo comes without clippy: there the compiler's own warnings must do.
    pub fn lint(&self, selection: &[&str]) -> Command {
        match self {
            Self::Rustup => {
                let mut command = self.bare_metal("clippy");
                command.args(selection).args(["--", "-D", "warnings"]);
                command
            }
            Self::Debian { .. } => {
                let mut command = self.bare_metal("check");
                command.args(selection).env("RUSTFLAGS", "-D warnings");
                command
            }
        }
    }

    /// Where Cargo leaves a bare-metal program of the profile `image`.
    pub fn image(&self, name: &str) -> PathBuf {
        let target = match self {
            Self::Rustup => cargo_target(),
            Self::Debian { .. } => cargo_target().join("debian"),
        };
        target.join(BARE_METAL).join("image").join(name)
    }
}

/// The Cargo in use, in the workspace.
pub fn cargo() -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut command = Command::new(program);
    command
        .current_dir(artefacts::workspace_root())
        .env("CARGO_TERM_COLOR", "never");
    command
}

/// Where Cargo puts what it builds.
pub fn cargo_target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(artefacts::target, |directory| {
        artefacts::workspace_root().join(directory)
    })
}

fn sysroot() -> Result<PathBuf> {
    let output = Command::new("rustc")
        .args(["--print", "sysroot"])
        .output()
        .context("cannot run `rustc`: install Rust from https://rustup.rs")?;
    Ok(PathBuf::from(String::from_utf8(output.stdout)?.trim()))
}
