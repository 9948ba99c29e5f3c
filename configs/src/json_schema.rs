//! The JSON Schemas of the TOML files, for editors that complete and check them.
//!
//! Invariant: they are made of the types that the files are read into, so that they can't name a key that is not read.

use serde_json::{Map, Value};

use crate::schema::{CellFile, SystemFile};

/// The schema of system files.
#[must_use]
pub fn system() -> Value {
    tidied(schemars::schema_for!(SystemFile).to_value())
}

/// The schema of cell files.
#[must_use]
pub fn cell() -> Value {
    tidied(schemars::schema_for!(CellFile).to_value())
}

/// The schema without what says nothing of a TOML file: there is no null in it, and what is left out is no value.
fn tidied(value: Value) -> Value {
    match value {
        Value::Object(object) => tidied_object(object),
        Value::Array(elements) => elements.into_iter().map(tidied).collect(),
        other => other,
    }
}

fn tidied_object(object: Map<String, Value>) -> Value {
    let mut tidy: Map<String, Value> = Map::new();
    for (key, value) in object {
        match (key.as_str(), value) {
            ("type", Value::Array(types)) => {
                tidy.extend(
                    types
                        .into_iter()
                        .find(|of| of != "null")
                        .map(|of| (key, of)),
                );
            }
            ("anyOf", Value::Array(mut choices)) => {
                choices.retain(|choice| choice["type"] != "null");
                match (choices.len(), choices.pop()) {
                    // A reference may have a description beside it (JSON Schema, draft 2020-12).
                    (1, Some(Value::Object(only))) => {
                        let Value::Object(only) = tidied_object(only) else {
                            continue;
                        };
                        tidy.extend(only);
                    }
                    (_, last) => {
                        let all = choices.into_iter().chain(last).map(tidied);
                        tidy.insert(key, all.collect());
                    }
                }
            }
            // Lines of the comments that the descriptions are made of.
            ("description", Value::String(text)) => {
                tidy.insert(key, text.replace('\n', " ").into());
            }
            ("default", Value::Null) => {}
            (_, value) => {
                tidy.insert(key, tidied(value));
            }
        }
    }
    Value::Object(tidy)
}

#[cfg(test)]
#[path = "schema_tests.rs"]
mod tests;
