//! The C header of the module, generated.

use alloc::string::String;

/// Text of the header.
#[must_use]
pub fn generate() -> String {
    String::new()
}
