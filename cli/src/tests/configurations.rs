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
    assert_eq!(
        machine
            .run(&["config", "check", &system, &hello, &latency, "--cpus", "4"])
            .text(),
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
