//! `config create`, `plan`, and what `enable` does with the machine that it finds.

use std::fs;

use serde_json::Value;

use super::fake::{Machine, Ran, Request, collection};

/// The answer of a command that has something to say besides.
#[track_caller]
fn answer(ran: &Ran) -> &str {
    assert_eq!(ran.status, 0, "{}", ran.errors);
    &ran.output
}

#[test]
fn create_writes_a_file_that_check_accepts_and_never_overwrites_one() {
    let machine = Machine::new();
    let file = machine.path("own.toml").display().to_string();
    let ran = machine.run(&["config", "create", "-o", &file]);
    assert_eq!(answer(&ran), "own.toml: 4 CPUs, 15 PCI functions.\n");
    assert!(
        ran.errors.contains("note: How many pins the I/O APIC"),
        "{}",
        ran.errors
    );
    let first = machine.read("own.toml");
    assert_eq!(
        machine.run(&["config", "check", &file]).status,
        0,
        "{}",
        machine.run(&["config", "check", &file]).errors
    );
    let failure = machine.run(&["config", "create", "-o", &file]);
    assert_eq!(failure.status, 1);
    assert!(failure.errors.contains("--force"), "{}", failure.errors);
    answer(&machine.run(&["config", "create", "-o", &file, "--force"]));
    assert_eq!(machine.read("own.toml"), first);
    assert_eq!(answer(&machine.run(&["config", "create"])), first);
}

#[test]
fn create_follows_its_options() {
    let machine = Machine::new();
    let with = |arguments: &[&str]| {
        let ran = machine.run(&[&["config", "create"], arguments].concat());
        answer(&ran).to_owned()
    };
    assert!(with(&["--console", "none"]).contains("No device, as it was asked for"));
    assert!(with(&["--console", "0x3e8"]).contains("port = 0x3e8"));
    assert!(with(&["--memory", "16 MiB"]).contains("memory = \"16 MiB\""));
    assert!(with(&["--policy", "strict"]).contains("policy = \"strict\""));
    let root = collection("two-sockets").display().to_string();
    assert!(with(&["--root", &root]).contains("8 CPUs of GenuineIntel"));
    let refused = machine.run(&["config", "create", "--memory", "3 MiB"]);
    assert!(
        refused
            .errors
            .contains("the hypervisor's memory can't have 3 MiB"),
        "{}",
        refused.errors
    );
    for wrong in [
        ["--console", "com2"],
        ["--memory", "16 MB"],
        ["--policy", "mild"],
    ] {
        let ran = machine.run(&[&["config", "create"], &wrong[..]].concat());
        assert_eq!(ran.status, 2, "{wrong:?}");
    }
}

#[test]
fn create_writes_nothing_of_a_machine_that_makes_no_sense() {
    let machine = Machine::new();
    machine.write("root/proc/iomem", "garbage\n");
    let root = machine.path("root").display().to_string();
    let file = machine.path("own.toml");
    let name = file.display().to_string();
    let arguments = ["config", "create", "--root", &root, "-o", &name];
    let failure = machine.run(&arguments);
    assert_eq!((failure.status, file.exists()), (1, false));
    assert!(
        failure
            .errors
            .contains("/proc/iomem: line 1: it is not \"first-last : name\""),
        "{}",
        failure.errors
    );
    let json = machine.run(&[&arguments[..], &["--json"]].concat()).json();
    assert!(json["error"]["machine"].as_array().unwrap().len() > 1);
    let missing = machine.run(&["config", "create", "--root", "/no/such/root"]);
    assert!(
        missing.errors.contains("gaol config collect"),
        "{}",
        missing.errors
    );
}

#[test]
fn enable_falls_back_to_the_built_in_configuration() {
    let mut machine = Machine::new();
    machine.machine_root = machine.path("sys");
    let ran = machine.run(&["enable"]);
    assert!(answer(&ran).contains("Its configuration is the built-in one.\n"));
    assert!(
        ran.errors
            .starts_with("warning: this machine can't be described"),
        "{}",
        ran.errors
    );
    let ran = machine.run(&["enable", "--json"]);
    let json: Value = serde_json::from_str(answer(&ran)).unwrap();
    assert_eq!(json["configuration"], "built-in");
    let machine = Machine::new();
    let json = machine.run(&["enable", "--json"]).json();
    assert_eq!(
        (&json["configuration"], &json["saved"]),
        (&"machine".into(), &"run/gaol/system.toml".into())
    );
}

#[test]
fn enable_says_when_it_can_not_keep_the_configuration() {
    let machine = Machine::new();
    machine.write("run", "a file where a directory should be");
    let json = machine.run(&["enable", "--json"]).json();
    assert!(json["saved"].is_null());
    let text = machine.run(&["enable"]).text();
    assert!(
        text.contains("The configuration can't be kept in run/gaol/system.toml"),
        "{text}"
    );
}

#[test]
fn enable_refuses_the_file_of_another_machine() {
    let machine = Machine::new();
    let root = collection("two-sockets").display().to_string();
    let file = machine.path("other.toml").display().to_string();
    answer(&machine.run(&["config", "create", "--root", &root, "-o", &file]));
    let failure = machine.run(&["enable", &file]).failure();
    assert!(
        failure.contains("the file describes a machine with 8 CPUs, and this one has 4"),
        "{failure}"
    );
    let json = machine.run(&["enable", &file, "--json"]).json();
    assert_eq!(json["error"]["reason"], "other_machine");
    machine.assert_untouched();
}

#[test]
fn cells_are_checked_on_the_machine_that_was_enabled() {
    let machine = Machine::enabled();
    machine.run(&["enable"]).text();
    let cell = "name = \"far\"\ncpus = [2]\n[[memory]]\nname = \"ram\"\nat = 0x0\nsize = \"1 MiB\"\naccess = \"rwx\"\n[[devices]]\nid = \"ffff:0001\"\n";
    let file = machine.write("far.toml", cell);
    let failure = machine.run(&["cell", "create", &file]).failure();
    assert!(
        failure.contains("the machine has no PCI function ffff:0001"),
        "{failure}"
    );
    machine.run(&["disable"]).text();
    assert!(!machine.path("run/gaol/system.toml").exists());
}

#[test]
fn plan_writes_a_pair_that_fits() {
    let machine = Machine::new();
    let directory = machine.path("plans");
    let output = directory.display().to_string();
    let arguments = [
        "plan",
        "--name",
        "rt",
        "--cpus",
        "2",
        "--memory",
        "64 MiB",
        "--shared-with-root",
        "64 KiB",
        "-o",
        &output,
    ];
    let ran = machine.run(&arguments);
    let text = answer(&ran);
    assert!(text.contains("gaol cell create plans/rt.toml"), "{text}");
    assert!(text.contains("CPU 0 stays with Linux."), "{text}");
    let file = |name: &str| directory.join(name).display().to_string();
    let check = machine.run(&["config", "check", &file("system.toml"), &file("rt.toml")]);
    assert_eq!(check.status, 0, "{}", check.errors);
    // The system file stays, the cell's is not overwritten.
    let failure = machine.run(&arguments);
    assert_eq!(failure.status, 1);
    assert!(
        failure.errors.contains("cannot write plans/rt.toml: "),
        "{}",
        failure.errors
    );
    let mut second = arguments;
    second[2] = "other";
    answer(&machine.run(&second));
    let ran = machine.run(&[&arguments[..], &["--force", "--json"]].concat());
    let json: Value = serde_json::from_str(answer(&ran)).unwrap();
    let choices = json["choices"].as_array().unwrap();
    assert_eq!(choices[0]["what"], "CPUs");
    assert!(
        choices
            .iter()
            .all(|choice| choice["why"].as_str().unwrap().len() > 20)
    );
    assert_eq!(json["commands"][3], "gaol cell start rt");
    let refused = machine.run(&["plan", "--name", "rt", "--cpus", "4", "-o", &output]);
    assert!(
        refused.errors.contains("a cell can't have 4"),
        "{}",
        refused.errors
    );
    machine.assert_untouched();
}

/// Runs the dialogue with these answers; returns what was asked, and the request's outcome.
fn dialogue(
    machine: &Machine,
    answers: &str,
    arguments: &[&str],
) -> (String, Result<String, String>) {
    use crate::arguments::{Arguments, Command};
    use clap::Parser;
    let output = machine.path("asked").display().to_string();
    let all = [&["gaol", "plan", "-o", &output], arguments].concat();
    let Command::Plan(arguments) = Arguments::parse_from(all).command else {
        panic!("not a plan");
    };
    let (mut questions, mut asides) = (Vec::new(), Vec::new());
    let mut answers = answers.as_bytes();
    let result = crate::commands::plan::run(
        &machine.host(),
        &arguments,
        Some(&mut answers),
        &mut questions,
        &mut asides,
    );
    let result = result
        .map(|report| report.text)
        .map_err(|failure| failure.text());
    (String::from_utf8(questions).unwrap(), result)
}

#[test]
fn plan_asks_for_what_is_missing() {
    let machine = Machine::new();
    let (questions, result) = dialogue(
        &machine,
        "12\nrt\n9\n2\n64 MB\n16 MiB\neth0\nnone\n\n/no/such/image\n\n",
        &[],
    );
    assert_eq!(
        questions,
        "An empty answer takes what is in brackets; Ctrl-D ends without a plan.\n\
         Name of the cell [cell]:   \"12\" can't be the name of a planned cell\n  \
         A name has 1 to 31 letters, digits, - and _, and is not a number.\n\
         Name of the cell [cell]: CPUs, 1 to 3 [1]:   \"9\" is not a number from 1 to 3\n\
         CPUs, 1 to 3 [1]: Memory [64 MiB]:   \"64 MB\" is not a size\n  Write it as \"64 MiB\".\n\
         Memory [64 MiB]: PCI functions, by address or id, with commas between [none]:   \
         \"eth0\" is neither the address nor the id of a PCI function\n  \
         Write an address such as \"00:03.0\", or vendor and device such as \"8086:100e\".\n\
         PCI functions, by address or id, with commas between [none]: \
         Memory shared with Linux [none]: Image file [none]:   \
         gaol: cannot read the image /no/such/image: No such file or directory\n  \
         Give the file that the cell is to run.\n\
         Image file [none]: "
    );
    assert!(result.unwrap().contains("gaol cell start rt"));
    assert!(machine.read("asked/rt.toml").contains("name = \"rt\""));
    let (questions, result) = dialogue(&machine, "x\n", &["--cpus", "1"]);
    assert!(!questions.contains("CPUs, 1"), "{questions}");
    assert_eq!(
        result.unwrap_err(),
        "gaol: the dialogue was ended, and nothing was written\n  \
         Give what is known on the command line: see `gaol plan --help`.\n"
    );
    assert!(!machine.path("asked/x.toml").exists());
    // Nobody is asked who said everything.
    let (questions, result) = dialogue(
        &machine,
        "",
        &["--name", "all", "--cpus", "1", "--memory", "1 MiB"],
    );
    assert_eq!(questions, "");
    result.unwrap();
    assert!(fs::read_dir(machine.path("asked")).unwrap().count() == 3);
}

#[test]
fn what_enable_was_given_is_what_the_device_gets() {
    let machine = Machine::new();
    let file = machine.path("own.toml").display().to_string();
    answer(&machine.run(&["config", "create", "-o", &file]));
    machine.run(&["enable", &file]).text();
    machine.run(&["enable"]).text();
    let record = machine.record.borrow();
    let configs: Vec<&Vec<u8>> = record
        .requests
        .iter()
        .map(|request| match request {
            Request::Enable { config, .. } => config,
            _ => panic!("it was not asked to enable"),
        })
        .collect();
    assert_eq!(configs.len(), 2);
    assert_eq!(configs[0], configs[1]);
}
