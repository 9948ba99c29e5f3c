//! Links the image at its own address when the target has no operating system.

fn main() {
    println!("cargo:rerun-if-changed=image.ld");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        let folder = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
        for argument in [
            format!("-T{folder}/image.ld"),
            "--no-pie".into(),
            "-static".into(),
            "--build-id=none".into(),
        ] {
            println!("cargo:rustc-link-arg-bins={argument}");
        }
    }
}
