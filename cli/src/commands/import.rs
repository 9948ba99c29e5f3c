//! `gaol config import`: configurations of Jailhouse as files of Gaol.
//!
//! Invariant: a file that exists is only overwritten when that was asked for, and what was dropped or changed is told.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use gaol_config::jailhouse::parse::MAX_FILE_SIZE;
use gaol_config::jailhouse::{Import, Kind, Note, import as import_bytes};
use serde_json::{Value, json};

use crate::failure::{Failure, Result};
use crate::output::{Report, write_new};

/// `gaol config import`. The notes go to `asides`, so that what is printed is the file alone.
///
/// # Errors
/// Why there is no TOML file.
pub fn import(
    file: &Path,
    output: Option<&Path>,
    force: bool,
    asides: &mut dyn Write,
) -> Result<Report> {
    let bytes = read_bounded(file)?;
    let name = file.display().to_string();
    let import =
        import_bytes(&name, &bytes).map_err(|problem| Failure::configuration(vec![problem]))?;
    if let Some(output) = output {
        write_new(output, force, &import.toml, "file with -o FILE")?;
    }
    for note in &import.notes {
        let _ = writeln!(asides, "note: {}: {}", note.about, note.text);
    }
    Ok(Report {
        text: match output {
            Some(output) => summary(output, &import),
            None => import.toml.clone(),
        },
        json: json!({
            "ok": true,
            "kind": kind_name(import.kind),
            "file": name,
            "output": output.map(|output| output.display().to_string()),
            "toml": import.toml,
            "accepted": import.is_accepted,
            "notes": import.notes.iter().map(note_json).collect::<Vec<Value>>(),
        }),
    })
}

/// The file, or the first bytes that are too many.
fn read_bounded(path: &Path) -> Result<Vec<u8>> {
    let failure = |error| {
        Failure::file(
            "read",
            path,
            &error,
            "Give a .cell file that Jailhouse's build has made.",
        )
    };
    let mut bytes = Vec::new();
    let most = MAX_FILE_SIZE as u64 + 1;
    let file = File::open(path).map_err(failure)?;
    file.take(most).read_to_end(&mut bytes).map_err(failure)?;
    Ok(bytes)
}

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::System => "system",
        Kind::Cell => "cell",
    }
}

fn summary(output: &Path, import: &Import) -> String {
    let kind = kind_name(import.kind);
    let output = output.display();
    let mut text = match import.notes.len() {
        0 => format!("{output}: a {kind} configuration; nothing was dropped or changed.\n"),
        _ => format!(
            "{output}: a {kind} configuration; its comments say what was dropped or changed.\n"
        ),
    };
    if !import.is_accepted {
        text.push_str("It has to be mended before Gaol accepts it: the first note says why.\n");
    }
    text
}

fn note_json(note: &Note) -> Value {
    json!({ "about": note.about, "text": note.text })
}
