//! Prints the C header of the module: `cargo run -p gaol-abi --example c-header > gaol_abi.h`.

fn main() {
    print!("{}", gaol_abi::c_header::generate());
}
