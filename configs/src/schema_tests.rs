//! The schemas say what the reader reads, and the documentation has all of it.
//!
//! `UPDATE=1 cargo test -p gaol-config schema` writes the files that are made of the schemas.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use regex_lite::Regex;
use toml::Table;

use super::*;
use crate::check;
use crate::compile::{Cell, System};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned()
}

fn text(path: &str) -> String {
    fs::read_to_string(repository().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

const SYSTEM: &str = "docs/examples/system.toml";
const CELL: &str = "docs/examples/cell.toml";

/// A kind of file: its schema, its reader, and an example with every key.
struct Kind {
    schema: Value,
    read: fn(&str) -> Result<(), toml::de::Error>,
    example: String,
}

fn kinds() -> [Kind; 2] {
    [
        Kind {
            schema: system(),
            read: |text| toml::from_str::<SystemFile>(text).map(drop),
            example: text(SYSTEM),
        },
        Kind {
            schema: cell(),
            read: |text| toml::from_str::<CellFile>(text).map(drop),
            example: text(CELL),
        },
    ]
}

/// The schema that `$ref` refers to, or the schema itself.
fn resolve<'a>(root: &'a Value, schema: &'a Value) -> &'a Value {
    match schema["$ref"].as_str() {
        Some(reference) => {
            let name = reference.strip_prefix("#/$defs/").unwrap();
            resolve(root, root["$defs"].get(name).unwrap())
        }
        None => schema,
    }
}

/// Whether `value` is as `schema` says, by all keywords that our schemas use; any other keyword is a mistake here.
fn accepts(root: &Value, schema: &Value, value: &Value) -> bool {
    let object = schema.as_object().unwrap();
    object
        .iter()
        .all(|(keyword, argument)| match keyword.as_str() {
            "$schema" | "$defs" | "title" | "description" | "default" => true,
            "$ref" => accepts(root, resolve(root, schema), value),
            "type" => match argument.as_str().unwrap() {
                "object" => value.is_object(),
                "array" => value.is_array(),
                "string" => value.is_string(),
                "boolean" => value.is_boolean(),
                "integer" => value.is_i64() || value.is_u64(),
                other => panic!("type {other}"),
            },
            "properties" => value.as_object().is_none_or(|table| {
                let known = argument.as_object().unwrap();
                let mut keys = table
                    .iter()
                    .filter_map(|(key, value)| Some((known.get(key)?, value)));
                keys.all(|(schema, value)| accepts(root, schema, value))
            }),
            "additionalProperties" => {
                assert_eq!(argument, false);
                let known = object["properties"].as_object().unwrap();
                value
                    .as_object()
                    .is_none_or(|table| table.keys().all(|key| known.contains_key(key)))
            }
            "required" => value.as_object().is_none_or(|table| {
                let mut keys = argument.as_array().unwrap().iter();
                keys.all(|key| table.contains_key(key.as_str().unwrap()))
            }),
            "items" => value
                .as_array()
                .is_none_or(|elements| elements.iter().all(|value| accepts(root, argument, value))),
            "anyOf" => argument
                .as_array()
                .unwrap()
                .iter()
                .any(|one| accepts(root, one, value)),
            "oneOf" => {
                let mut all = argument.as_array().unwrap().iter();
                all.by_ref().filter(|one| accepts(root, one, value)).count() == 1
            }
            "const" => argument == value,
            "enum" => argument.as_array().unwrap().contains(value),
            "minimum" => value
                .as_i64()
                .is_none_or(|value| value >= argument.as_i64().unwrap()),
            "pattern" => value.as_str().is_none_or(|value| {
                Regex::new(argument.as_str().unwrap())
                    .unwrap()
                    .is_match(value)
            }),
            other => panic!("the test does not know the keyword {other}"),
        })
}

fn json(text: &str) -> Value {
    serde_json::to_value(toml::from_str::<Table>(text).unwrap()).unwrap()
}

#[test]
fn the_schemas_accept_all_files_that_come_with_gaol() {
    let configurations = repository().join("configs");
    let mut count = 0;
    for entry in fs::read_dir(configurations).unwrap() {
        let path = entry.unwrap().path();
        let is_configuration = path
            .extension()
            .is_some_and(|extension| extension == "toml")
            && !path.ends_with("Cargo.toml");
        if is_configuration {
            let text = fs::read_to_string(&path).unwrap();
            let [system, cell] =
                kinds().map(|kind| accepts(&kind.schema, &kind.schema, &json(&text)));
            let is_system = path.ends_with("bochs.toml") || path.ends_with("qemu.toml");
            assert_eq!(
                (system, cell),
                (is_system, !is_system),
                "{}",
                path.display()
            );
            count += 1;
        }
    }
    assert!(count >= 5);
}

#[test]
fn the_examples_are_right_and_have_every_key() {
    let (system, cell) = (text(SYSTEM), text(CELL));
    let system = System::from_toml(SYSTEM, &system).unwrap_or_else(|problem| panic!("{problem}"));
    let cell = Cell::compile(CELL, &cell, Some(&system))
        .unwrap_or_else(|problems| panic!("{problems:#?}"));
    let problems = check::check(check::any_machine(), &system, &[cell]);
    assert!(problems.is_empty(), "{problems:#?}");
    // Tables that both kinds have are exhausted by both examples together.
    let mut missing = BTreeSet::new();
    let mut shown = BTreeSet::new();
    for kind in kinds() {
        let example = json(&kind.example);
        let root = &kind.schema;
        assert!(accepts(root, root, &example));
        missing.extend(keys_of(root));
        let mut note = |schema: &Value, value: &Value, _: &[Step]| {
            for key in value.as_object().into_iter().flat_map(|table| table.keys()) {
                shown.insert((name_of(root, schema), key.clone()));
            }
        };
        visit(root, root, &example, &mut Vec::new(), &mut note);
    }
    missing.retain(|key| !shown.contains(key));
    assert!(missing.is_empty(), "no example of {missing:?}");
}

/// The title of a table, by which its keys are told from those of the same name in others.
fn name_of(root: &Value, table: &Value) -> String {
    let definitions = root["$defs"].as_object().unwrap();
    let mut all = definitions
        .iter()
        .filter(|(_, definition)| *definition == table);
    all.next()
        .map_or_else(|| root["title"].to_string(), |(name, _)| name.clone())
}

/// All keys of all tables.
fn keys_of(root: &Value) -> BTreeSet<(String, String)> {
    let definitions = root["$defs"].as_object().unwrap();
    let tables = definitions.values().chain([root]);
    let keys = tables.filter_map(|table| Some((table, table["properties"].as_object()?)));
    keys.flat_map(|(table, keys)| keys.keys().map(|key| (name_of(root, table), key.clone())))
        .collect()
}

/// A step into a value.
#[derive(Clone, Debug)]
enum Step {
    Key(String),
    Index(usize),
}

/// Visits every table, list and plain value of a file together with its schema.
fn visit(
    root: &Value,
    schema: &Value,
    value: &Value,
    path: &mut Vec<Step>,
    visitor: &mut dyn FnMut(&Value, &Value, &[Step]),
) {
    let schema = resolve(root, schema);
    visitor(schema, value, path);
    match value {
        Value::Object(table) => {
            for (key, value) in table {
                path.push(Step::Key(key.clone()));
                visit(root, &schema["properties"][key], value, path, visitor);
                path.pop();
            }
        }
        Value::Array(elements) => {
            for (index, value) in elements.iter().enumerate() {
                path.push(Step::Index(index));
                visit(root, &schema["items"], value, path, visitor);
                path.pop();
            }
        }
        _ => {}
    }
}

/// The file with the value at `path` replaced.
fn replaced(file: &Value, path: &[Step], new: Value) -> Value {
    let mut file = file.clone();
    let target = path.iter().fold(&mut file, |value, step| match step {
        Step::Key(key) => &mut value[key],
        Step::Index(index) => &mut value[*index],
    });
    *target = new;
    file
}

fn to_toml(file: &Value) -> String {
    toml::to_string(file).unwrap()
}

/// Each table is asked for a key that there is not: the reader's complaint lists all that there are.
#[test]
fn the_schema_has_the_keys_of_the_reader_and_no_others() {
    for kind in kinds() {
        let example = json(&kind.example);
        let mut tables = 0;
        visit(
            &kind.schema,
            &kind.schema,
            &example,
            &mut Vec::new(),
            &mut |schema, value, path| {
                let Some(keys) = schema["properties"].as_object() else {
                    return;
                };
                let mut table = value.clone();
                table["no-such-key"] = 1.into();
                let file = replaced(&example, path, table);
                assert!(!accepts(&kind.schema, &kind.schema, &file), "{path:?}");
                let error = (kind.read)(&to_toml(&file)).unwrap_err();
                let named: BTreeSet<&str> = error.message().split('`').skip(3).step_by(2).collect();
                let keys: BTreeSet<&str> = keys.keys().map(String::as_str).collect();
                assert_eq!(named, keys, "{path:?}");
                tables += 1;
            },
        );
        assert!(tables >= 10);
    }
}

/// What a value may be is the same for both: each value of the examples is replaced by values of all kinds.
#[test]
fn the_schema_accepts_what_the_reader_accepts() {
    let values = [
        serde_json::json!(0),
        serde_json::json!(-1),
        serde_json::json!(0x1000),
        serde_json::json!(true),
        serde_json::json!(1.5),
        serde_json::json!("text"),
        serde_json::json!("64 MiB"),
        serde_json::json!("64 MB"),
        serde_json::json!("10 s"),
        serde_json::json!("0xff"),
        serde_json::json!("0xfg"),
        serde_json::json!("strict"),
        serde_json::json!("memory64"),
        serde_json::json!([]),
        serde_json::json!([1]),
        serde_json::json!({}),
    ];
    let (mut accepted, mut refused) = (0, 0);
    for kind in kinds() {
        let example = json(&kind.example);
        visit(
            &kind.schema,
            &kind.schema,
            &example,
            &mut Vec::new(),
            &mut |_, _, path| {
                for value in values.iter().filter(|_| !path.is_empty()) {
                    let file = replaced(&example, path, value.clone());
                    let by_schema = accepts(&kind.schema, &kind.schema, &file);
                    let by_reader = (kind.read)(&to_toml(&file));
                    assert_eq!(
                        by_schema,
                        by_reader.is_ok(),
                        "{path:?} = {value}: {by_reader:?}"
                    );
                    match by_schema {
                        true => accepted += 1,
                        false => refused += 1,
                    }
                }
            },
        );
    }
    assert!(accepted > 200 && refused > 1000, "{accepted} {refused}");
}

/// Keys that must be there are the same for both.
#[test]
fn the_schema_requires_what_the_reader_requires() {
    let mut required = 0;
    for kind in kinds() {
        let example = json(&kind.example);
        visit(
            &kind.schema,
            &kind.schema,
            &example,
            &mut Vec::new(),
            &mut |_, value, path| {
                for key in value.as_object().into_iter().flat_map(|table| table.keys()) {
                    let mut table = value.clone();
                    table.as_object_mut().unwrap().remove(key);
                    let file = match path {
                        [] => table,
                        _ => replaced(&example, path, table),
                    };
                    let by_schema = accepts(&kind.schema, &kind.schema, &file);
                    let by_reader = (kind.read)(&to_toml(&file));
                    assert_eq!(by_schema, by_reader.is_ok(), "{path:?} without {key}");
                    required += usize::from(!by_schema);
                }
            },
        );
    }
    assert!(required > 30, "{required}");
}

#[test]
fn every_key_says_what_it_means() {
    for kind in kinds() {
        let definitions = kind.schema["$defs"].as_object().unwrap();
        for (name, table) in definitions
            .iter()
            .chain([(&"file".to_owned(), &kind.schema)])
        {
            let keys = table["properties"].as_object();
            for (key, schema) in keys.into_iter().flatten() {
                let description = schema["description"].as_str().unwrap_or_default();
                assert!(description.ends_with('.'), "{name}.{key}: {description:?}");
            }
        }
    }
}

/// Compares a file with what it should be, or writes it.
fn current(path: &str, expected: &str) {
    let file = repository().join(path);
    if std::env::var_os("UPDATE").is_some() {
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, expected).unwrap();
    }
    let is_current = fs::read_to_string(&file).is_ok_and(|text| text == expected);
    assert!(
        is_current,
        "{path} is not current: UPDATE=1 cargo test -p gaol-config schema"
    );
}

#[test]
fn the_schemas_for_editors_are_current() {
    for (name, schema) in [("system", system()), ("cell", cell())] {
        current(
            &format!("docs/schema/{name}.schema.json"),
            &format!("{schema:#}\n"),
        );
    }
}

#[test]
fn the_documentation_is_current() {
    const PATH: &str = "docs/configuration.md";
    let mut page = text(PATH);
    let parts = [
        ("keys of a cell file", tables(&cell(), "The file")),
        ("keys of a system file", tables(&system(), "The file")),
        ("cell example", format!("```toml\n{}```\n", text(CELL))),
        ("system example", format!("```toml\n{}```\n", text(SYSTEM))),
    ];
    for (name, part) in parts {
        let (begin, end) = (
            format!("<!-- begin: {name} -->\n"),
            format!("<!-- end: {name} -->"),
        );
        let (before, rest) = page
            .split_once(&begin)
            .unwrap_or_else(|| panic!("no {begin}"));
        let (_, after) = rest.split_once(&end).unwrap_or_else(|| panic!("no {end}"));
        page = format!("{before}{begin}\n{part}\n{end}{after}");
    }
    current(PATH, &page);
}

/// The keys of all tables of a file.
fn tables(root: &Value, title: &str) -> String {
    let mut text = String::new();
    let mut done = BTreeSet::new();
    table_of(root, root, title, &mut done, &mut text);
    text.trim_end().to_owned() + "\n"
}

fn table_of(
    root: &Value,
    table: &Value,
    title: &str,
    done: &mut BTreeSet<String>,
    text: &mut String,
) {
    let keys = table["properties"].as_object().unwrap();
    let required = table["required"].as_array();
    text.push_str(&format!(
        "#### {title}\n\n| key | value | meaning |\n| --- | --- | --- |\n"
    ));
    let mut inner = Vec::new();
    for (key, schema) in keys {
        let is_required = required.is_some_and(|required| required.iter().any(|name| name == key));
        let needed = if is_required { " (needed)" } else { "" };
        let description = schema["description"].as_str().unwrap();
        let value = value_of(root, schema).replace('|', "\\|");
        text.push_str(&format!("| `{key}`{needed} | {value} | {description} |\n"));
        let element = match schema.get("items") {
            Some(items) => resolve(root, items),
            None => resolve(root, schema),
        };
        if element["properties"].is_object() {
            inner.push((key, schema.get("items").is_some(), element));
        }
    }
    text.push('\n');
    for (key, is_list, element) in inner {
        let path = match title {
            "The file" => key.clone(),
            title => format!("{}.{key}", title.trim_matches(['`', '[', ']'])),
        };
        let title = if is_list {
            format!("`[[{path}]]`")
        } else {
            format!("`[{path}]`")
        };
        if done.insert(name_of(root, element)) {
            table_of(root, element, &title, done, text);
        } else {
            let known = name_of(root, element);
            text.push_str(&format!("#### {title}\n\nAs {}.\n\n", first_use(&known)));
        }
    }
}

/// Where the table is described, of those that are used twice.
fn first_use(table: &str) -> &'static str {
    match table {
        "RangeTable" => "`[[machine.iommus]]`",
        other => panic!("{other} is used twice"),
    }
}

/// What a value is, in words.
fn value_of(root: &Value, schema: &Value) -> String {
    let name = schema["$ref"]
        .as_str()
        .and_then(|path| path.rsplit('/').next());
    match name {
        Some("Number") => return "number".to_owned(),
        Some("Address") => return "address: `0x100000`".to_owned(),
        Some("Size") => return "size: `\"64 MiB\"`".to_owned(),
        Some("Milliseconds") => return "time: `\"500 ms\"`, `\"10 s\"`, `\"2 min\"`".to_owned(),
        Some("Mask") => return "bits: `0xff`, `\"0x8000000000000000\"`".to_owned(),
        _ => {}
    }
    let resolved = resolve(root, schema);
    if let Some(choices) = resolved["oneOf"].as_array() {
        let choices: Vec<String> = choices
            .iter()
            .map(|choice| {
                let meaning = choice["description"].as_str().unwrap();
                let is_default = choice["const"] == schema["default"];
                let default = if is_default { " (default)" } else { "" };
                let name = choice["const"].as_str().unwrap();
                format!("`\"{name}\"`{default}: {meaning}")
            })
            .collect();
        return choices.join("<br>");
    }
    match resolved["type"].as_str() {
        Some("array") => match value_of(root, &resolved["items"]).as_str() {
            "table" => "tables".to_owned(),
            element => format!("list of: {element}"),
        },
        Some("object") => "table".to_owned(),
        Some("boolean") if schema["default"] == true => "`true` (default), `false`".to_owned(),
        Some("boolean") => "`false` (default), `true`".to_owned(),
        Some("string") => "text".to_owned(),
        other => panic!("{other:?}"),
    }
}
