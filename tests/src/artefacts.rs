//! Where built files, machine directories and reports are kept.
//!
//! All of it lies below `target/` of the workspace, whatever `CARGO_TARGET_DIR` says: people and tests look for it
//! there. Nothing outside `target/` is ever written.

use std::path::{Path, PathBuf};

/// The root directory of the workspace: where Cargo found this crate when it is still there, as with `cargo xtask`.
pub fn workspace_root() -> PathBuf {
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR")
        .map(PathBuf::from)
        .unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")));
    match manifest.parent() {
        Some(parent) => parent.to_path_buf(),
        None => manifest,
    }
}

/// The directory of generated files.
pub fn target() -> PathBuf {
    workspace_root().join("target")
}

/// The directory of the images, the module and the command, as `cargo xtask build` leaves them.
pub fn gaol() -> PathBuf {
    target().join("gaol")
}

/// The directory in which each machine keeps its disk, its configuration and its logs.
pub fn machines() -> PathBuf {
    target().join("machines")
}

/// `path` as people like to read it: relative to the workspace where it lies inside.
pub fn display(path: &Path) -> String {
    path.strip_prefix(workspace_root())
        .unwrap_or(path)
        .display()
        .to_string()
}
