//! What a fresh machine lacks: Debian packages and the bare-metal Rust target.
//!
//! Everything is looked for first, so that a second run touches nothing and needs no network. What is missing is
//! installed when that is possible without a question, else the one line that does it is printed.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use gaol_tests::kernel::Kernel;

use crate::process;
use crate::progress::Progress;
use crate::toolchain::{BARE_METAL, Toolchain, cargo};

/// A thing that must be there, and the packages that bring it.
struct Requirement {
    present: fn() -> bool,
    packages: &'static [&'static str],
}

/// Everything that build, tests and demonstration take from Debian.
const REQUIREMENTS: &[Requirement] = &[
    Requirement {
        present: || program("bochs"),
        packages: &["bochs"],
    },
    Requirement {
        present: || Path::new("/usr/share/bochs/BIOS-bochs-latest").exists(),
        packages: &["bochsbios"],
    },
    Requirement {
        present: || Path::new("/usr/share/vgabios/vgabios.bin").exists(),
        packages: &["vgabios"],
    },
    Requirement {
        present: gaol_tests::initrd::has_static_busybox,
        packages: &["busybox-static"],
    },
    Requirement {
        present: || Kernel::find().is_ok(),
        // Named together, so that both come in the same version.
        packages: &["linux-image-amd64", "linux-headers-amd64"],
    },
    Requirement {
        present: || program("cc") && Path::new("/usr/include/stdlib.h").exists(),
        packages: &["gcc", "libc6-dev"],
    },
    Requirement {
        present: || program("gcc-12"),
        packages: &["gcc-12"],
    },
    Requirement {
        present: || program("make"),
        packages: &["make"],
    },
    Requirement {
        present: || program("as") && program("ld") && program("strip"),
        packages: &["binutils"],
    },
    Requirement {
        present: || program("xz"),
        packages: &["xz-utils"],
    },
    Requirement {
        present: || program("modinfo"),
        packages: &["kmod"],
    },
];

/// When set, Debian's Rust builds the images even where rustup has the target: to try it out.
const FORCE_DEBIAN: &str = "GAOL_DEBIAN_RUST";

/// Whether a program can be found: in PATH, or where Debian keeps those of the administrator.
pub fn program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|directory| directory.join(name).is_file())
}

/// Makes sure that everything is there; returns how to build for bare metal.
///
/// # Errors
/// When something is missing and cannot be installed; the message says what to run.
pub fn run(progress: &Progress) -> Result<Toolchain> {
    let missing: Vec<&str> = REQUIREMENTS
        .iter()
        .filter(|requirement| !(requirement.present)())
        .flat_map(|requirement| requirement.packages)
        .copied()
        .collect();
    if !missing.is_empty() {
        progress.stage(&format!("installing {}", missing.join(" ")), || {
            install(&missing)
        })?;
        if let Some(requirement) = REQUIREMENTS
            .iter()
            .find(|requirement| !(requirement.present)())
        {
            bail!(
                "{} was installed but is not usable: run `apt-get install --reinstall {0}` and look at what it says",
                requirement.packages.join(" ")
            );
        }
    }
    toolchain(progress)
}

/// Makes sure that QEMU is there, which some of the tests need, and machines on KVM.
///
/// # Errors
/// When it cannot be installed.
pub fn qemu() -> Result<()> {
    if program("qemu-system-x86_64") {
        return Ok(());
    }
    install(&["qemu-system-x86"])
}

/// Makes sure that there is a compiler of C++, which only libFuzzer needs.
///
/// # Errors
/// When it cannot be installed.
pub fn cxx() -> Result<()> {
    if program("c++") {
        return Ok(());
    }
    install(&["g++"])
}

/// Makes sure that the formatter and the linter are there.
///
/// # Errors
/// When they cannot be installed.
pub fn lints(progress: &Progress) -> Result<()> {
    if has_component("fmt") && has_component("clippy") {
        return Ok(());
    }
    progress
        .stage("adding rustfmt and clippy", || {
            process::run(
                "rustup",
                Command::new("rustup").args(["component", "add", "rustfmt", "clippy"]),
            )
        })
        .context("the tests need them: run `rustup component add rustfmt clippy`")?;
    Ok(())
}

/// Whether a subcommand of Cargo works; with rustup its program is there in any case.
fn has_component(subcommand: &str) -> bool {
    cargo()
        .args([subcommand, "--version"])
        .output()
        .is_ok_and(|output| output.status.success())
}

/// Installs Debian packages, without a question.
fn install(packages: &[&str]) -> Result<()> {
    let list = packages.join(" ");
    ensure!(
        program("apt-get"),
        "missing on this machine: {list} (Debian's names). Install them and run this again"
    );
    ensure!(
        is_root()?,
        "Debian packages are missing. Run this, then try again:\n  sudo apt-get update && sudo apt-get install --yes --no-install-recommends {list}"
    );
    let apt = |log: &str, arguments: &[&str]| {
        process::run(
            log,
            Command::new("apt-get")
                .env("DEBIAN_FRONTEND", "noninteractive")
                .args(["-o", "DPkg::Lock::Timeout=300"])
                .args(arguments),
        )
    };
    apt("apt-update", &["update"])?;
    let mut arguments = vec!["install", "--yes", "--no-install-recommends"];
    arguments.extend(packages);
    apt("apt-install", &arguments)
        .with_context(|| format!("apt could not install {list}: install them by hand"))?;
    Ok(())
}

fn is_root() -> Result<bool> {
    let output = Command::new("id")
        .arg("-u")
        .output()
        .context("cannot run `id`")?;
    Ok(output.stdout.trim_ascii() == b"0")
}

/// Finds or installs a toolchain for the bare-metal target.
fn toolchain(progress: &Progress) -> Result<Toolchain> {
    if std::env::var_os(FORCE_DEBIAN).is_some() {
        return debian_toolchain(progress);
    }
    if let Some(toolchain) = Toolchain::from_rustup()? {
        return Ok(toolchain);
    }
    if program("rustup") {
        let added = progress.stage(&format!("adding the Rust target {BARE_METAL}"), || {
            process::run(
                "rustup",
                Command::new("rustup").args(["target", "add", BARE_METAL]),
            )
        });
        match added {
            Ok(_) => {
                return Toolchain::from_rustup()?.with_context(|| {
                    format!("rustup added {BARE_METAL}, but to another toolchain than the one in use: run `rustup target add {BARE_METAL}` for it")
                });
            }
            Err(_) => {
                progress.line("  rustup cannot; taking Debian's Rust with its sources instead")
            }
        }
    }
    debian_toolchain(progress)
}

/// Debian's Rust builds the core library from its sources, where rustup cannot download it.
fn debian_toolchain(progress: &Progress) -> Result<Toolchain> {
    if let Some(toolchain) = Toolchain::from_debian() {
        return Ok(toolchain);
    }
    let packages = ["rustc-web", "cargo-web", "rust-web-src"];
    progress
        .stage(&format!("installing {}", packages.join(" ")), || {
            install(&packages)
        })
        .with_context(|| {
            format!("the Rust target {BARE_METAL} is missing: run `rustup target add {BARE_METAL}`")
        })?;
    Toolchain::from_debian().context("Debian's Rust is installed, but its sources are not where they should be: look at `dpkg -L rust-web-src`")
}
