//! `cargo xtask build`: everything that goes onto a machine, into `target/gaol`.
//!
//! Nothing is written into the source tree: the module is built from a copy.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use gaol_tests::artefacts;
use gaol_tests::kernel::Kernel;

use crate::flatten;
use crate::image::Image;
use crate::image::check::{STACK, check};
use crate::image::symbols::symbol_file;
use crate::process;
use crate::progress::Progress;
use crate::toolchain::{STATIC_HOST, Toolchain, cargo, cargo_target};

/// A part that can be built alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// The hypervisor's image
    Hypervisor,
    /// The cells' images
    Cells,
    /// The Linux module
    Module,
    /// The modules of the tests and the benchmark
    TestModules,
    /// The command line tool and the configurations
    Command,
}

/// All parts, in the order in which they are built.
pub const PARTS: &[Part] = &[
    Part::Hypervisor,
    Part::Cells,
    Part::Module,
    Part::TestModules,
    Part::Command,
];

/// What the directories of libraries for cells begin with, which are no cells.
const LIBRARY: &str = "gaol-";

/// Builds these parts.
///
/// # Errors
/// When a part does not build.
pub fn run(progress: &Progress, toolchain: &Toolchain, parts: &[Part]) -> Result<()> {
    fs::create_dir_all(artefacts::gaol()).context("cannot create target/gaol")?;
    for part in parts {
        match part {
            Part::Hypervisor => {
                progress.stage("building the hypervisor", || hypervisor(toolchain))?;
            }
            Part::Cells => progress.stage("building the cells", || cells(toolchain))?,
            Part::Module => progress.stage("building the module", module)?,
            Part::TestModules => {
                progress.stage("building the tests' modules", test_modules)?;
            }
            Part::Command => {
                progress.stage("building the command", command)?;
                configurations()?;
            }
        }
    }
    Ok(())
}

/// The hypervisor's image for one vendor.
#[derive(Clone, Copy, Debug)]
pub struct VendorImage {
    /// Name of its program and, with `.bin` and `.sym`, of what is made of it.
    pub name: &'static str,
    /// The Cargo features that it is built with.
    pub features: &'static str,
}

/// One image for each vendor.
pub const IMAGES: [VendorImage; 2] = [
    VendorImage {
        name: "gaol-vmx",
        features: "image,vmx",
    },
    VendorImage {
        name: "gaol-svm",
        features: "image,svm",
    },
];

impl VendorImage {
    /// What Cargo is told to build it.
    #[must_use]
    pub const fn arguments(&self) -> [&'static str; 6] {
        [
            "--package",
            "gaol-hypervisor",
            "--bin",
            self.name,
            "--features",
            self.features,
        ]
    }
}

/// The hypervisor's images.
///
/// # Errors
/// When one does not build or is not as agreed.
pub fn hypervisor(toolchain: &Toolchain) -> Result<()> {
    for image in IMAGES {
        let name = image.name;
        let mut build = toolchain.bare_metal("build");
        build.args(image.arguments()).args(["--profile", "image"]);
        process::run(&format!("build-{name}"), &mut build)?;
        let elf = read(&toolchain.image(name))?;
        let flat =
            flatten::hypervisor(&elf).with_context(|| format!("{name}.bin is not as agreed"))?;
        store(&format!("{name}.bin"), &flat)?;
        let symbols = Image::read(&elf).with_context(|| format!("{name} has no symbols"))?;
        store(&format!("{name}.sym"), symbol_file(&symbols).as_bytes())?;
    }
    Ok(())
}

/// Builds the hypervisor's images and looks for what they must not have: see [`crate::image::check`].
///
/// # Errors
/// When one does not build, can panic, calls by pointers that nobody has explained, or needs too much stack.
pub fn inspect(toolchain: &Toolchain) -> Result<()> {
    hypervisor(toolchain)?;
    let mut text = String::new();
    for VendorImage { name, .. } in IMAGES {
        let elf = read(&toolchain.image(name))?;
        let report = check(&elf).with_context(|| format!("in {name}"))?;
        text += &format!(
            "{name}:\nfunctions behind an exit: {}\nstack of the exit path: {} bytes of {STACK}: {}\n\
             stack of an exception: {} bytes\nstack of the launch: {} bytes\n",
            report.exit_functions,
            report.exit_stack.0,
            report.exit_stack.1.join(" → "),
            report.exception_stack,
            report.launch_stack,
        );
    }
    let directory = artefacts::target().join("logs");
    fs::create_dir_all(&directory).context("cannot create target/logs")?;
    fs::write(directory.join("image.log"), text).context("cannot write the report")
}

/// The cells' images.
///
/// # Errors
/// When one does not build.
pub fn cells(toolchain: &Toolchain) -> Result<()> {
    for name in cell_names()? {
        let package = format!("{name}-cell");
        let mut build = toolchain.bare_metal("build");
        build.args(["--package", &package, "--features", "image"]);
        build.args(["--profile", "image"]);
        process::run(&format!("build-{package}"), &mut build)?;
        let image = flatten::cell(&read(&toolchain.image(&package))?)
            .with_context(|| format!("the image of {package} is not as agreed"))?;
        store(&format!("{name}.bin"), &image)?;
    }
    Ok(())
}

/// The cells: each directory of `cells/` that holds a package, but for libraries.
///
/// # Errors
/// When the directory cannot be read.
pub fn cell_names() -> Result<Vec<String>> {
    let directory = artefacts::workspace_root().join("cells");
    let mut names = Vec::new();
    for entry in fs::read_dir(&directory).context("cannot list cells/")? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.join("Cargo.toml").exists() && !name.starts_with(LIBRARY) {
            names.push(name.into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// The module, against the headers of the newest stock kernel; a warning is an error.
///
/// # Errors
/// When it does not build, or with warnings.
pub fn module() -> Result<()> {
    let header = gaol_abi::c_header::generate();
    let sources = artefacts::workspace_root().join("loader-driver");
    kernel_module("gaol", &sources, &[("gaol_abi.h", header.as_bytes())])
}

/// What tests need inside a machine: one module counts instructions, the other looks at CPUs and pokes at them.
///
/// # Errors
/// When one does not build, or with warnings.
pub fn test_modules() -> Result<()> {
    let tests = artefacts::workspace_root().join("tests");
    kernel_module("gaol-bench", &tests.join("bench-module"), &[])?;
    kernel_module("gaol-test", &tests.join("test-module"), &[])
}

/// Builds the module `name` from a copy of `sources` and the `generated` files.
fn kernel_module(name: &str, sources: &Path, generated: &[(&str, &[u8])]) -> Result<()> {
    let kernel = Kernel::find()?;
    let copy = artefacts::target().join("modules").join(name);
    fs::create_dir_all(&copy).with_context(|| format!("cannot create {}", copy.display()))?;
    for entry in
        fs::read_dir(sources).with_context(|| format!("cannot list {}", sources.display()))?
    {
        let path = entry?.path();
        if path.is_file() {
            let file = path.file_name().context("a file without a name")?;
            write_if_changed(&copy.join(file), &read(&path)?)?;
        }
    }
    for (file, content) in generated {
        write_if_changed(&copy.join(file), content)?;
    }
    let text = process::run(
        &format!("build-module-{name}"),
        Command::new("make")
            .arg("-C")
            .arg(kernel.headers())
            .arg(format!("M={}", copy.display()))
            .arg("modules"),
    )?;
    let warnings: Vec<&str> = text
        .lines()
        .filter(|line| line.to_lowercase().contains("warning"))
        .collect();
    if !warnings.is_empty() {
        // Made again next time, so that the warning is seen again.
        fs::remove_dir_all(&copy)?;
    }
    ensure!(
        warnings.is_empty(),
        "the module {name} builds with warnings:\n{}",
        warnings.join("\n")
    );
    // Stripped beside its source, and stored like everything else: `strip -o` wants a directory that is there, which
    // nothing has made yet where this is the first step of a fresh clone (and says "Bad file descriptor" to that).
    let file = format!("{name}.ko");
    let stripped = copy.join(format!("{name}.stripped"));
    process::run(
        "strip-module",
        Command::new("strip")
            .arg("--strip-debug")
            .arg("-o")
            .arg(&stripped)
            .arg(copy.join(&file)),
    )?;
    store(&file, &read(&stripped)?)
}

/// The command, linked statically, so that it runs in a bare initrd.
///
/// # Errors
/// When it does not build.
pub fn command() -> Result<()> {
    let mut build = cargo();
    build
        .env(
            "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS",
            "-C target-feature=+crt-static -C relocation-model=static -C strip=symbols",
        )
        .args(["build", "--release", "--package", "gaol", "--bin", "gaol"])
        .args(["--target", STATIC_HOST]);
    process::run("build-command", &mut build)?;
    let program = cargo_target().join(STATIC_HOST).join("release/gaol");
    store("gaol", &read(&program)?)?;
    make_executable(&artefacts::gaol().join("gaol"))
}

/// The configurations as they are in the source tree.
fn configurations() -> Result<()> {
    let directory = artefacts::workspace_root().join("configs");
    for entry in fs::read_dir(&directory).context("cannot list configs/")? {
        let path = entry?.path();
        let is_configuration = path
            .extension()
            .is_some_and(|extension| extension == "toml");
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if is_configuration && name != "Cargo.toml" {
            store(&name, &read(&path)?)?;
        }
    }
    Ok(())
}

fn make_executable(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("cannot make {} executable", path.display()))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Puts a file into `target/gaol`.
fn store(name: &str, content: &[u8]) -> Result<()> {
    write_if_changed(&artefacts::gaol().join(name), content)
}

/// Leaves the time of an unchanged file alone, so that `make` does not build it again.
fn write_if_changed(path: &Path, content: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|old| old == content) {
        return Ok(());
    }
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
    }
    fs::write(path, content).with_context(|| format!("cannot write {}", path.display()))
}
