//! The symbol file beside the image, with which the command names places in the hypervisor.

use std::fmt::Write as _;

use super::Image;

/// One line a function, by address: where it begins, its bytes, its name.
#[must_use]
pub fn symbol_file(image: &Image) -> String {
    let mut text = String::new();
    for function in &image.functions {
        let size = function.range.end - function.range.start;
        // Writing to a string can't fail.
        let _ = writeln!(
            text,
            "{:x} {size:x} {}",
            function.range.start, function.name
        );
    }
    text
}
