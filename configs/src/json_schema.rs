//! The JSON Schemas of the TOML files, for editors that complete and check them.
//!
//! Invariant: they are made of the types that the files are read into, so that they can't name a key that is not read.

use serde_json::Value;

use crate::schema::{CellFile, SystemFile};

/// The schema of system files.
#[must_use]
pub fn system() -> Value {
    schemars::schema_for!(SystemFile).to_value()
}

/// The schema of cell files.
#[must_use]
pub fn cell() -> Value {
    schemars::schema_for!(CellFile).to_value()
}
