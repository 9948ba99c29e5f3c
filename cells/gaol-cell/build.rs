//! Tells the build scripts of the cells where the linker script is (`DEP_GAOL_CELL_LINKER_SCRIPT`).

use std::env;

fn main() {
    let directory = env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    println!("cargo:rerun-if-changed=cell.ld");
    println!("cargo:linker-script={directory}/cell.ld");
}
