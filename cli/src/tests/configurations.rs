//! `config build` and `config check`.

use gaol_config::CellView;
use gaol_config::encode::Binary;

use super::fake::{Machine, shipped};

#[test]
fn build_writes_the_binary_form() {
    let machine = Machine::new();
    let file = machine.write("latency.toml", &shipped("latency.toml"));
    let output = machine.path("latency.bin");
    let name = output.display().to_string();
    let text = machine.run(&["config", "build", &file, "-o", &name]).text();
    let bytes = Binary::new(&std::fs::read(&output).unwrap());
    let view = CellView::parse(bytes.bytes()).unwrap();
    assert_eq!((view.name(), view.memory().len()), ("latency", 3));
    let size = bytes.bytes().len();
    assert_eq!(
        text,
        format!("latency.bin: a cell configuration of {size} bytes.\n")
    );
    let json = machine
        .run(&["config", "build", &file, "-o", &name, "--json"])
        .json();
    assert_eq!(
        (&json["kind"], &json["size"]),
        (&"cell".into(), &size.into())
    );
}

#[test]
fn build_says_what_can_not_be_read_or_written() {
    let machine = Machine::new();
    let file = machine.write("latency.toml", &shipped("latency.toml"));
    assert_eq!(
        machine
            .run(&["config", "build", &file, "-o", "/no/such/place"])
            .failure(),
        "gaol: cannot write /no/such/place: No such file or directory\n  Give another file with -o FILE.\n"
    );
    let json = machine
        .run(&["config", "build", "/no/such/file", "-o", "x", "--json"])
        .json();
    assert_eq!(
        (&json["error"]["reason"], &json["error"]["file"]),
        (&"file".into(), &"/no/such/file".into())
    );
}

#[test]
fn check_looks_at_everything_together() {
    let machine = Machine::new();
    let file = |name: &str| machine.write(name, &shipped(name));
    let (system, hello, latency) = (file("bochs.toml"), file("hello.toml"), file("latency.toml"));
    let text = machine
        .run(&["config", "check", &system, &hello, &latency, "--cpus", "4"])
        .text();
    let (advice, table) = text.split_once("\n\n").unwrap();
    assert!(
        advice.contains("bochs.toml: the machine is not described"),
        "{advice}"
    );
    assert_eq!(
        table,
        "CELL     CPUS  FILE\n\
         hello    2     hello.toml\n\
         latency  3     latency.toml\n\
         Nothing is wrong: all of them can exist at the same time.\n"
    );
    assert_eq!(
        machine.run(&["config", "check", &system]).text(),
        "bochs.toml: nothing is wrong.\n"
    );
    let json = machine
        .run(&["--json", "config", "check", &system, &hello])
        .json();
    assert_eq!(json["cells"][0]["name"], "hello");
    assert_eq!(json["problems"], serde_json::json!([]));
    assert_eq!(json["warnings"][0]["reason"], "unknown_machine");
}

#[test]
fn check_tells_all_problems_between_cells() {
    let machine = Machine::new();
    let file = |name: &str| machine.write(name, &shipped(name));
    let (system, hello, violator) = (
        file("bochs.toml"),
        file("hello.toml"),
        file("violator.toml"),
    );
    let latency = file("latency.toml");
    let arguments = [
        "config", "check", &system, &hello, &violator, &latency, "--cpus", "3",
    ];
    let text = machine.run(&arguments).failure();
    assert!(text.contains("CPU 2 belongs to cell \"hello\""), "{text}");
    assert!(text.contains("there is no CPU 3"), "{text}");
    let json = machine.run(&[&arguments[..], &["--json"]].concat()).json();
    assert_eq!(json["error"]["reason"], "cpu_owned");
    assert_eq!(json["problems"].as_array().unwrap().len(), 2);
    assert_eq!(json["problems"][1]["reason"], "cpu_unknown");
    assert_eq!(json["warnings"][0]["reason"], "unknown_machine");
}

#[test]
fn check_goes_on_behind_files_that_are_wrong() {
    let machine = Machine::new();
    let system = machine.write("wrong.toml", "[hypervisor]\nmemory = \"3 MiB\"\n");
    let cell = shipped("hello.toml");
    let first = machine.write("first.toml", &cell.replace("[2]", "[2, 2, 700]"));
    let device = "\n[[devices]]\nid = \"8086:100e\"\n";
    let second = machine.write("second.toml", &(cell.clone() + device));
    let third = machine.write("third.toml", &cell.replace("[2]", "[0]"));
    let json = machine
        .run(&[
            "config", "check", &system, &first, &second, &third, "--json",
        ])
        .json();
    let problems = json["problems"].as_array().unwrap();
    let found: Vec<(&str, &str, u64)> = problems
        .iter()
        .map(|problem| {
            (
                problem["file"].as_str().unwrap(),
                problem["reason"].as_str().unwrap(),
                problem["line"].as_u64().unwrap(),
            )
        })
        .collect();
    // That nobody can look the function up is not the cell's fault.
    assert_eq!(
        found,
        [
            ("wrong.toml", "configuration_invalid", 2),
            ("first.toml", "configuration_invalid", 5),
            ("first.toml", "cpu_unknown", 5),
            ("third.toml", "cpu_zero", 5),
        ]
    );
    assert_eq!(json["warnings"], serde_json::json!([]));
}

/// A machine with two network interfaces of one kind and one of another.
const NETWORK: &str = r#"
[machine]
cpus = [
    { apic-id = 0, core = 0 },
    { apic-id = 1, core = 0 },
    { apic-id = 2, core = 1, smis = true },
]
devices = [
    { address = "0000:00:03.0", id = "8086:100e", group = 3, msi = 1 },
    { address = "0000:00:04.0", id = "8086:10d3", group = 4, msi-x = 5 },
    { address = "0000:00:05.0", id = "8086:10d3", group = 5, msi-x = 5 },
]
"#;

#[test]
fn build_finds_functions_by_their_ids() {
    let machine = Machine::new();
    let system = machine.write("machine.toml", NETWORK);
    let cell = |id: &str| {
        let device = format!("\n[[devices]]\nid = \"{id}\"\nbus-master = false\n");
        machine.write("network.toml", &(shipped("hello.toml") + &device))
    };
    let output = machine.path("network.bin").display().to_string();
    let build = ["config", "build", &cell("8086:100e"), "-o", &output];
    let alone = machine.run(&build).failure();
    assert!(
        alone.contains("can't be told from this file alone"),
        "{alone}"
    );
    let with_system = [&build[..], &["--system", &system]].concat();
    machine.run(&with_system).text();
    let bytes = Binary::new(&std::fs::read(&output).unwrap());
    let device = CellView::parse(bytes.bytes()).unwrap().devices()[0];
    assert_eq!((device.function, device.vectors), (0x18, 1));
    cell("8086:10d3");
    let several = machine.run(&with_system).failure();
    assert!(several.contains("\"0000:00:05.0\""), "{several}");
}

#[test]
fn check_warns_and_succeeds() {
    let machine = Machine::new();
    let system = machine.write("machine.toml", NETWORK);
    let hello = machine.write("hello.toml", &shipped("hello.toml"));
    let arguments = ["config", "check", &system, &hello];
    let text = machine.run(&arguments).text();
    assert!(text.contains("interrupt CPU 2 (SMIs)"), "{text}");
    assert!(text.ends_with("can exist at the same time.\n"), "{text}");
    let json = machine.run(&[&arguments[..], &["--json"]].concat()).json();
    let warning = &json["warnings"][0];
    assert_eq!(
        (&warning["file"], &warning["line"], &warning["reason"]),
        (&"hello.toml".into(), &5.into(), &"smis".into())
    );
    for key in ["column", "message", "remedy"] {
        assert!(!warning[key].is_null(), "{key}");
    }
}

#[test]
fn dma_that_nothing_holds_is_refused_unless_it_is_accepted() {
    let machine = Machine::new();
    let system = machine.write("machine.toml", NETWORK);
    let cell = |key: &str, device: &str| {
        let hello = shipped("hello.toml").replace("cpus = [2]", &format!("cpus = [2]\n{key}"));
        let text = hello + "\n[[devices]]\nid = \"8086:100e\"\n" + device;
        machine.write("hello.toml", &text)
    };
    let check = |file: &str| machine.run(&["config", "check", &system, file, "--json"]);
    let json = check(&cell("", "")).json();
    assert_eq!(json["problems"][0]["reason"], "unprotected_dma");
    let remedy = json["problems"][0]["remedy"].as_str().unwrap();
    assert!(remedy.contains("`unprotected-dma = true`"), "{remedy}");
    let json = check(&cell("unprotected-dma = false", "")).json();
    assert_eq!(json["problems"][0]["reason"], "unprotected_dma");
    let reasons = |json: &serde_json::Value| -> Vec<String> {
        let warnings = json["warnings"].as_array().unwrap().iter();
        warnings
            .map(|warning| warning["reason"].as_str().unwrap().to_owned())
            .collect()
    };
    let json = check(&cell("unprotected-dma = true", "")).json();
    assert!(
        reasons(&json).contains(&"unprotected_dma".to_owned()),
        "{json}"
    );
    // What never becomes bus master needs no leave.
    let json = check(&cell("", "bus-master = false\n")).json();
    assert!(
        !reasons(&json).contains(&"unprotected_dma".to_owned()),
        "{json}"
    );
}

#[test]
fn schemas_are_printed() {
    let machine = Machine::new();
    for (kind, title) in [("system", "Gaol system"), ("cell", "Gaol cell")] {
        let text = machine.run(&["config", "schema", kind]).text();
        let schema: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(schema["title"], title);
    }
}

#[test]
fn check_wants_the_system_first() {
    let machine = Machine::new();
    let file = |name: &str| machine.write(name, &shipped(name));
    let (system, hello) = (file("bochs.toml"), file("hello.toml"));
    assert_eq!(
        machine.run(&["config", "check", &hello, &system]).failure(),
        "gaol: hello.toml is a cell configuration, and a system configuration stands here\n  \
         Give the system file first, and the files of cells behind it.\n"
    );
    assert_eq!(
        machine
            .run(&["config", "check", &system, &system])
            .failure(),
        "gaol: bochs.toml is a system configuration, and a cell configuration stands here\n  \
         Give the system file first, and the files of cells behind it.\n"
    );
}
