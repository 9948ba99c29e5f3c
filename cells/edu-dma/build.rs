//! Links the image as a flat cell: at guest-physical 0, without relocations.

use std::env;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        let script = env::var("DEP_GAOL_CELL_LINKER_SCRIPT").expect("gaol-cell names its script");
        println!("cargo:rerun-if-changed={script}");
        println!("cargo:rustc-link-arg-bins=-T{script}");
        println!("cargo:rustc-link-arg-bins=--no-pie");
    }
}
