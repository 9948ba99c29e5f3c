//! `config import`.

use gaol_config::Cell;

use super::fake::Machine;

/// A cell configuration of Jailhouse: revision 14, CPU 2, 1 MiB of RAM, a communication region, eight ports.
fn blob() -> Vec<u8> {
    let mut bytes = vec![0; 132];
    bytes[..8].copy_from_slice(b"JHCLL\0\x0e\0");
    bytes[8..17].copy_from_slice(b"tiny demo");
    // Size of the CPU bitmap, numbers of memory regions and port ranges.
    for (place, count) in [(48, 1), (52, 2), (64, 1)] {
        bytes[place] = count;
    }
    bytes.push(0b100);
    let regions: [[u64; 4]; 2] = [
        [0x3ef0_0000, 0, 0x10_0000, 0x47],
        [0, 0x10_0000, 0x1000, 0x23],
    ];
    for word in regions.as_flattened() {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes.extend_from_slice(&[0xf8, 0x02, 8, 0]);
    bytes
}

fn machine_with_blob() -> (Machine, String) {
    let machine = Machine::new();
    let file = machine.write("tiny.cell", "");
    std::fs::write(&file, blob()).unwrap();
    (machine, file)
}

/// The notes that the blob leads to, by what they are about.
const NOTES: [&str; 5] = [
    "name",
    "msg_reply_timeout",
    "pio_regions",
    "pio_regions",
    "mem_regions",
];

#[test]
fn the_file_goes_to_standard_output() {
    let (machine, file) = machine_with_blob();
    let ran = machine.run(&["config", "import", &file]);
    assert_eq!(ran.status, 0);
    let cell = Cell::from_toml("tiny.toml", &ran.output).unwrap();
    assert_eq!(cell.view().name(), "tiny-demo");
    assert_eq!(cell.view().cpus().iter().collect::<Vec<_>>(), [2]);
    assert_eq!(cell.view().memory().len(), 2);
    let notes: Vec<&str> = ran.errors.lines().collect();
    assert_eq!(notes.len(), NOTES.len(), "{notes:?}");
    for (note, about) in notes.iter().zip(NOTES) {
        assert!(note.starts_with(&format!("note: {about}: ")), "{note}");
    }
    assert_eq!(
        notes[0],
        "note: name: \"tiny demo\" is not a name in Gaol, so it became \"tiny-demo\"."
    );
}

#[test]
fn a_file_is_written_once() {
    let (machine, file) = machine_with_blob();
    let output = machine.path("tiny.toml").display().to_string();
    let arguments = ["config", "import", &file, "-o", &output];
    let ran = machine.run(&arguments);
    assert_eq!(
        (ran.status, ran.output.as_str()),
        (
            0,
            "tiny.toml: a cell configuration; its comments say what was dropped or changed.\n"
        )
    );
    assert_eq!(ran.errors.lines().count(), NOTES.len());
    let text = std::fs::read_to_string(&output).unwrap();
    assert!(Cell::from_toml("tiny.toml", &text).is_ok());

    std::fs::write(&output, "mine").unwrap();
    assert_eq!(
        machine.run(&arguments).failure(),
        "gaol: cannot write tiny.toml: File exists\n  Give another file with -o FILE, or --force to overwrite this one.\n"
    );
    assert_eq!(std::fs::read_to_string(&output).unwrap(), "mine");
    let ran = machine.run(&[&arguments[..], &["--force"]].concat());
    assert_eq!(ran.status, 0);
    assert_eq!(std::fs::read_to_string(&output).unwrap(), text);
}

#[test]
fn programs_get_one_object() {
    let (machine, file) = machine_with_blob();
    let json = machine.run(&["config", "import", &file, "--json"]).json();
    assert_eq!(
        (&json["kind"], &json["accepted"], &json["output"]),
        (&"cell".into(), &true.into(), &serde_json::Value::Null)
    );
    assert!(Cell::from_toml("x", json["toml"].as_str().unwrap()).is_ok());
    let notes = json["notes"].as_array().unwrap();
    let about: Vec<&str> = notes
        .iter()
        .map(|note| note["about"].as_str().unwrap())
        .collect();
    assert_eq!(about, NOTES);
    assert!(notes.iter().all(|note| {
        note["text"]
            .as_str()
            .is_some_and(|text| text.ends_with('.'))
    }));
}

#[test]
fn a_file_that_gaol_does_not_accept_says_so() {
    let (machine, file) = machine_with_blob();
    let mut bytes = blob();
    // No CPU.
    bytes[132] = 0;
    std::fs::write(&file, bytes).unwrap();
    let output = machine.path("tiny.toml").display().to_string();
    let ran = machine.run(&["config", "import", &file, "-o", &output]);
    assert_eq!(
        (ran.status, ran.output.as_str()),
        (
            0,
            "tiny.toml: a cell configuration; its comments say what was dropped or changed.\n\
             It has to be mended before Gaol accepts it: the first note says why.\n"
        )
    );
    assert_eq!(
        ran.errors.lines().next(),
        Some(
            "note: file: Gaol does not accept this file as it is: the cell has no CPU. Name at least one, for instance \
             `cpus = [3]`. CPU 0 stays with Linux."
        )
    );
}

#[test]
fn what_can_not_be_read_is_explained() {
    let (machine, file) = machine_with_blob();
    std::fs::write(&file, &blob()[..150]).unwrap();
    let text = machine.run(&["config", "import", &file]).failure();
    assert!(
        text.contains("tiny.cell: the file is truncated: `mem_regions` at offset 0x85"),
        "{text}"
    );
    let json = machine.run(&["config", "import", &file, "--json"]).json();
    assert_eq!(json["error"]["reason"], "configuration_invalid");
    assert_eq!(
        machine
            .run(&["config", "import", "/no/such/file"])
            .failure(),
        "gaol: cannot read /no/such/file: No such file or directory\n  Give a .cell file that Jailhouse's build has made.\n"
    );
    let ran = machine.run(&["config", "import", &file, "--force"]);
    assert_eq!(ran.status, 2);
    // Endless, and no more of it is read than a configuration can have.
    let text = machine.run(&["config", "import", "/dev/zero"]).failure();
    assert!(
        text.contains("which no configuration of Jailhouse has"),
        "{text}"
    );
}
