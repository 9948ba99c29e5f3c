//! `cell create`, `load`, `start`, `shutdown`, `destroy`.

use gaol_abi::outcome::Reason;
use gaol_config::CellView;
use gaol_config::encode::Binary;

use super::fake::{Machine, Request, shipped};
use crate::arguments::CellName;
use crate::device::{Load, Operation};

const EBUSY: i32 = 16;
const ENOENT: i32 = 2;
const EPERM: i32 = 1;

fn named(name: &str) -> CellName {
    CellName::Name(name.to_owned())
}

#[test]
fn create_by_force_is_told_to_the_module() {
    let machine = Machine::enabled();
    let toml = machine.write("hello.toml", &shipped("hello.toml"));
    machine.run(&["cell", "create", &toml, "--force"]).text();
    let Request::CreateByForce(config) = machine.request() else {
        panic!("it was not asked to create by force");
    };
    let config = Binary::new(&config);
    assert_eq!(CellView::parse(config.bytes()).unwrap().name(), "hello");
}

#[test]
fn create_passes_the_compiled_file_on() {
    let machine = Machine::enabled();
    let toml = machine.write("hello.toml", &shipped("hello.toml"));
    assert_eq!(
        machine.run(&["cell", "create", &toml]).text(),
        "Cell \"hello\" has number 2 and CPU 2, after 234,567 cycles.\n"
    );
    let Request::Create(config) = machine.request() else {
        panic!("it was not asked to create");
    };
    let config = Binary::new(&config);
    assert_eq!(CellView::parse(config.bytes()).unwrap().name(), "hello");
    let binary = machine.path("hello.bin").display().to_string();
    machine
        .run(&["config", "build", &toml, "-o", &binary])
        .text();
    let json = machine.run(&["cell", "create", &binary, "--json"]).json();
    assert_eq!((&json["id"], &json["name"]), (&2.into(), &"hello".into()));
    assert_eq!(json["cpus"], serde_json::json!([2]));
    assert_eq!(
        (&json["cycles"], &json["scrub_cycles"]),
        (&234_567.into(), &0.into())
    );
}

#[test]
fn create_knows_the_ports_of_cells_that_it_made() {
    let machine = Machine::enabled();
    let with_ports = |name: &str, cpu: u32| {
        let text = shipped("hello.toml").replace("\"hello\"", &format!("\"{name}\""));
        let cpus = format!("cpus = [{cpu}]\nports = [{{ first = 0x3e8, count = 8 }}]");
        machine.write(&format!("{name}.toml"), &text.replace("cpus = [2]", &cpus))
    };
    let first = with_ports("first", 2);
    let second = with_ports("second", 1);
    let created = machine.run(&["cell", "create", &first, "--json"]).json();
    let id = u32::try_from(created["id"].as_u64().unwrap()).unwrap();
    machine.add_cell(
        id,
        "first",
        "shut down",
        "2",
        "",
        "ram 0x30000000 0 0x100000 0x47\n",
    );
    let text = machine.run(&["cell", "create", &second]).failure();
    assert!(
        text.contains("ports 0x3e8 to 0x3ef reach into those of cell \"first\""),
        "{text}"
    );
    // A number is given again: what was kept is then of another cell.
    machine.add_cell(
        id,
        "other",
        "shut down",
        "2",
        "",
        "ram 0x30000000 0 0x100000 0x47\n",
    );
    machine.run(&["cell", "create", &second]).text();
    assert!(machine.path("run/gaol/cells").exists());
    machine.run(&["disable", "--force"]).text();
    assert!(!machine.path("run/gaol/cells").exists());
}

#[test]
fn create_takes_functions_from_drivers_but_not_disks_in_use() {
    let machine = Machine::enabled();
    let text = shipped("hello.toml") + "\n[[devices]]\naddress = \"0000:00:03.0\"\n";
    let file = machine.write("hello.toml", &text);
    let disk = machine.path("sys/devices/pci0000:00/0000:00:03.0/nvme/nvme0n1");
    std::fs::create_dir_all(&disk).unwrap();
    std::fs::write(disk.join("dev"), "259:0\n").unwrap();
    let class = machine.path("sys/class/block");
    std::fs::create_dir_all(&class).unwrap();
    std::os::unix::fs::symlink(&disk, class.join("nvme0n1")).unwrap();
    let mount = "22 1 259:0 / / rw shared:1 - ext4 /dev/nvme0n1 rw\n";
    machine.write("proc/self/mountinfo", mount);
    let text = machine.run(&["cell", "create", &file]).failure();
    let words = "Linux can't do without PCI function 0000:00:03.0: /dev/nvme0n1 is mounted on /";
    assert!(text.contains(words), "{text}");
    let json = machine.run(&["cell", "create", &file, "--json"]).json();
    assert_eq!(json["error"]["reason"], "device_in_use");
    machine.write("proc/self/mountinfo", "");
    let driver = machine.path("sys/bus/pci/devices/0000:00:03.0");
    std::fs::create_dir_all(&driver).unwrap();
    std::os::unix::fs::symlink("../../drivers/nvme", driver.join("driver")).unwrap();
    machine.run(&["cell", "create", &file]).text();
}

#[test]
fn create_says_what_this_build_can_not_do() {
    let machine = Machine::enabled();
    let text =
        shipped("hello.toml").replace("cpus = [2]", "cpus = [2]\ncache-ways = { l3 = [0, 1] }");
    let file = machine.write("hello.toml", &text);
    let json = machine.run(&["cell", "create", &file, "--json"]).json();
    assert_eq!(json["error"]["reason"], "unsupported");
    assert_eq!(json["error"]["line"], 6);
}

#[test]
fn create_refuses_interrupt_lines_that_linux_uses() {
    let machine = Machine::enabled();
    let text = shipped("hello.toml").replace("cpus = [2]", "cpus = [2]\ninterrupts = [3, 4]");
    let file = machine.write("hello.toml", &text);
    machine.write(
        "interrupts",
        "  4:   0   412   IO-APIC   4-edge      ttyS0\n  3:   0   0   PCI-MSI   3-edge   other\n",
    );
    let said = machine.run(&["cell", "create", &file]).failure();
    assert!(
        said.contains("Linux uses interrupt line 4 (ttyS0)"),
        "{said}"
    );
    assert!(said.contains("let go of it"), "{said}");
    let json = machine.run(&["cell", "create", &file, "--json"]).json();
    assert_eq!(json["error"]["reason"], "interrupt_in_use");
    assert_eq!(json["error"]["line"], 6);
    machine.assert_untouched();
    // Nobody has the others.
    machine.write("interrupts", "  4:   0   412   IO-APIC   4-edge\n");
    machine.run(&["cell", "create", &file]).text();
    assert!(matches!(machine.request(), Request::Create(_)));
}

#[test]
fn create_sees_what_others_own_before_anything_is_touched() {
    let machine = Machine::enabled();
    let hello = shipped("hello.toml");
    let refuse = |old: &str, new: &str, parts: &[&str], reason: &str| {
        let file = machine.write("hello.toml", &hello.replacen(old, new, 1));
        let text = machine.run(&["cell", "create", &file]).failure();
        for part in parts {
            assert!(text.contains(part), "{part}: {text}");
        }
        let json = machine.run(&["cell", "create", &file, "--json"]).json();
        assert_eq!(json["error"]["reason"], reason);
        assert!(json["error"]["line"].is_number());
    };
    refuse(
        "cpus = [2]",
        "cpus = [3]",
        &[
            "CPU 3 belongs to cell \"latency\"",
            "CPUs that can be taken: 1-2.",
        ],
        "cpu_owned",
    );
    refuse(
        "cpus = [2]",
        "cpus = [4]",
        &["there is no CPU 4", "CPUs 0-3"],
        "cpu_unknown",
    );
    refuse(
        "cpus = [2]",
        "cpus = [0]",
        &["CPU 0 can't be taken"],
        "cpu_zero",
    );
    refuse(
        "\"hello\"",
        "\"latency\"",
        &["a cell named \"latency\" exists already"],
        "cell_exists",
    );
    refuse(
        "\"hello\"",
        "\"root\"",
        &["the root cell is named \"root\""],
        "cell_exists",
    );
    refuse(
        "at = 0x0\n",
        "at = 0x0\nphysical = 0x300ff000\n",
        &["covers memory of cell \"latency\" from 0x300ff000 on"],
        "memory_owned",
    );
    refuse(
        "at = 0x0\n",
        "at = 0x0\nphysical = 0x3a000000\n",
        &["covers the hypervisor's memory from 0x3a000000 on"],
        "memory_is_hypervisors",
    );
    machine.assert_untouched();
}

#[test]
fn refusals_of_the_hypervisor_are_shown_in_the_file() {
    let machine = Machine::enabled();
    let text =
        shipped("hello.toml").replace("console = true", "ports = [{ first = 0x3f8, count = 8 }]");
    let file = machine.write("hello.toml", &text);
    machine.refuse(EBUSY, Reason::PortsOwned, 0x3f8);
    let text = machine.run(&["cell", "create", &file]).failure();
    assert!(
        text.contains("ports 0x3f8 to 0x3ff reach into those of another cell"),
        "{text}"
    );
    assert!(text.contains("hello.toml:"), "{text}");

    let binary = machine.path("hello.bin").display().to_string();
    machine
        .run(&["config", "build", &file, "-o", &binary])
        .text();
    machine.refuse(EBUSY, Reason::PortsOwned, 0x3f8);
    assert_eq!(
        machine.run(&["cell", "create", &binary]).failure(),
        "gaol: cannot create cell \"hello\": the ports from 0x3f8 on belong to another cell or the hypervisor\n  \
         Take them out of one of the two configurations.\n"
    );
    machine.refuse(EBUSY, Reason::CpuBusy, 2);
    assert_eq!(
        machine.run(&["cell", "create", &file]).failure(),
        "gaol: cannot create cell \"hello\": Linux could not take CPU 2 offline\n  \
         See `dmesg`; move interrupts and pinned tasks off it, or name another CPU.\n"
    );
}

#[test]
fn memory_that_is_not_reserved_is_told_with_the_parameter() {
    let machine = Machine::enabled();
    let text = shipped("hello.toml").replacen("at = 0x0\n", "at = 0x0\nphysical = 0x20000000\n", 1);
    let file = machine.write("hello.toml", &text);
    machine.refuse(EBUSY, Reason::MemoryNotReserved, 0x2000_0000);
    let text = machine.run(&["cell", "create", &file]).failure();
    assert!(
        text.contains("Boot Linux with `memmap=1M$0x20000000`"),
        "{text}"
    );
}

#[test]
fn create_before_enable_is_refused_by_the_module() {
    let machine = Machine::new();
    let file = machine.write("hello.toml", &shipped("hello.toml"));
    machine.refuse(19, Reason::NotEnabled, 0);
    assert_eq!(
        machine.run(&["cell", "create", &file]).failure(),
        "gaol: cannot create cell \"hello\": Gaol is not enabled\n  Enable it first: gaol enable SYSTEM.toml\n"
    );
}

#[test]
fn create_wants_the_file_of_a_cell() {
    let machine = Machine::enabled();
    let file = machine.write("bochs.toml", &shipped("bochs.toml"));
    assert_eq!(
        machine.run(&["cell", "create", &file]).failure(),
        "gaol: bochs.toml is a system configuration\n  \
         Give the configuration of a cell here, and this one to `gaol enable`.\n"
    );
    assert_eq!(
        machine.run(&["cell", "create", "/no/such/file"]).failure(),
        "gaol: cannot read /no/such/file: No such file or directory\n  \
         Give the path of a .toml file, or of a compiled one.\n"
    );
    machine.assert_untouched();
}

#[test]
fn load_takes_files_and_strings_in_their_order() {
    let machine = Machine::enabled();
    let image = machine.write("latency.bin", &"x".repeat(20_000));
    let text = machine
        .run(&[
            "cell",
            "load",
            "latency",
            &image,
            "-s",
            "period=1ms ticks=10",
        ])
        .text();
    assert_eq!(
        text,
        "0x00000000     20 KiB  latency.bin\n\
         0x00001000       20 B  \"period=1ms ticks=10\"\n\
         Cell \"latency\" is loaded, after 234,567 cycles.\n"
    );
    let loads = vec![
        Load {
            bytes: vec![b'x'; 20_000],
            address: 0,
        },
        Load {
            bytes: b"period=1ms ticks=10\0".to_vec(),
            address: 0x1000,
        },
    ];
    assert_eq!(machine.request(), Request::Load(named("latency"), loads));
    let json = machine
        .run(&["cell", "load", "1", "-s", "", "-a", "0x2000", "--json"])
        .json();
    assert_eq!(
        (&json["cell"], &json["cycles"]),
        (&1.into(), &234_567.into())
    );
    assert_eq!(
        json["images"],
        serde_json::json!([{ "source": "\"\"", "address": 0x2000, "size": 1 }])
    );
}

#[test]
fn load_fails_before_the_device_is_asked_when_a_file_is_missing() {
    let machine = Machine::enabled();
    assert_eq!(
        machine
            .run(&["cell", "load", "latency", "/no/such/file"])
            .failure(),
        "gaol: cannot read /no/such/file: No such file or directory\n  Give the path of an image to load.\n"
    );
    let empty = machine.write("empty.bin", "");
    assert_eq!(
        machine.run(&["cell", "load", "latency", &empty]).failure(),
        "gaol: empty.bin is empty\n  Give an image with something in it.\n"
    );
    let mut arguments = vec!["cell", "load", "latency"];
    arguments.extend(["-s", "x"].repeat(17));
    assert_eq!(
        machine.run(&arguments).failure(),
        "gaol: 17 files and strings are too many for one load\n  Give at most 16.\n"
    );
    machine.assert_untouched();
}

#[test]
fn load_beyond_the_memory_is_refused() {
    let machine = Machine::enabled();
    machine.refuse(22, Reason::LoadOutside, 0xf_f000);
    assert_eq!(
        machine
            .run(&["cell", "load", "1", "-s", "text", "-a", "0xff000"])
            .failure(),
        "gaol: cannot load cell 1: what goes to 0xff000 does not fit into loadable memory of cell 1\n  \
         Make the region larger or loadable in the cell's file, or give another address with -a.\n"
    );
}

#[test]
fn cells_are_started_stopped_and_destroyed() {
    let machine = Machine::enabled();
    assert_eq!(
        machine.run(&["cell", "start", "latency"]).text(),
        "Cell \"latency\" runs, after 234,567 cycles.\n"
    );
    assert_eq!(
        machine.run(&["cell", "shutdown", "1"]).text(),
        "Cell 1 is shut down, after 234,567 cycles.\n"
    );
    assert_eq!(
        machine
            .run(&["cell", "destroy", "latency", "--force"])
            .text(),
        "Cell \"latency\" is destroyed; its CPUs and memory are Linux' again, after 234,567 cycles, \
         and 5,000,000 to clear its memory.\n"
    );
    let json = machine
        .run(&["cell", "destroy", "latency", "--json"])
        .json();
    assert_eq!(
        (&json["cell"], &json["scrub_cycles"]),
        (&"latency".into(), &5_000_000.into())
    );
    let command = Request::Command;
    assert_eq!(
        machine.record.borrow().requests,
        [
            command(Operation::Start, named("latency"), false),
            command(Operation::Shutdown, CellName::Id(1), false),
            command(Operation::Destroy, named("latency"), true),
            command(Operation::Destroy, named("latency"), false),
        ]
    );
}

#[test]
fn refused_operations_say_how_to_go_on() {
    let machine = Machine::enabled();
    let say = |errno, reason, detail, arguments: &[&str]| {
        machine.refuse(errno, reason, detail);
        machine.run(arguments).failure()
    };
    assert_eq!(
        say(
            EPERM,
            Reason::ShutdownDenied,
            0,
            &["cell", "shutdown", "latency"]
        ),
        "gaol: cannot shut down cell \"latency\": cell \"latency\" denied the request to end\n  \
         Ask it later, or do not ask: gaol cell shutdown latency --force\n"
    );
    assert_eq!(
        say(
            110,
            Reason::ShutdownTimedOut,
            1000,
            &["cell", "destroy", "1"]
        ),
        "gaol: cannot destroy cell 1: cell 1 did not answer in time (1000 ms)\n  \
         Do not ask it: gaol cell shutdown 1 --force\n"
    );
    assert_eq!(
        say(ENOENT, Reason::NoSuchCell, 0, &["cell", "start", "nobody"]),
        "gaol: cannot start cell \"nobody\": there is no cell \"nobody\"\n  See `gaol cell list`.\n"
    );
    assert_eq!(
        say(22, Reason::RootCell, 0, &["cell", "destroy", "0"]),
        "gaol: cannot destroy cell 0: cell 0 is Linux itself\n  \
         The root cell is neither loaded, started nor destroyed: `gaol disable` ends Gaol.\n"
    );
    assert_eq!(
        say(22, Reason::NotLoaded, 0, &["cell", "start", "latency"]),
        "gaol: cannot start cell \"latency\": nothing was loaded into cell \"latency\" since it stopped\n  \
         Load it first: gaol cell load latency IMAGE\n"
    );
    assert_eq!(
        say(EBUSY, Reason::InProgress, 0, &["cell", "start", "latency"]),
        "gaol: cannot start cell \"latency\": another operation is under way\n  \
         Wait until the other `gaol` command ends.\n"
    );
}

#[test]
fn unchecked_files_reach_the_module_as_they_are() {
    let machine = Machine::enabled();
    let file = machine.write("damaged.bin", "GAOLCEL");
    machine.refuse(22, Reason::ConfigurationInvalid, 7);
    assert_eq!(
        machine
            .run(&["cell", "create", &file, "--unchecked"])
            .failure(),
        "gaol: cannot create a cell from damaged.bin: the configuration (7 bytes) is not Gaol's, or is truncated\n  \
         Compile the configuration again with `gaol config build`.\n"
    );
    assert_eq!(machine.request(), Request::Create(b"GAOLCEL".to_vec()));
    machine.refuse(22, Reason::ConfigurationInvalid, 7);
    let json = machine
        .run(&["enable", &file, "--unchecked", "--json"])
        .json();
    assert_eq!(json["error"]["reason"], "configuration_invalid");
    assert!(
        matches!(&machine.record.borrow().requests[1], Request::Enable { config, .. } if config == b"GAOLCEL")
    );
}

#[test]
fn unchecked_toml_is_compiled_and_no_more() {
    let machine = Machine::enabled();
    let file = machine.write(
        "hello.toml",
        &shipped("hello.toml").replace("cpus = [2]", "cpus = [3]"),
    );
    machine.refuse(EBUSY, Reason::CpuOwned, 3);
    assert_eq!(
        machine
            .run(&["cell", "create", &file, "--unchecked"])
            .failure(),
        "gaol: cannot create a cell from hello.toml: CPU 3 belongs to another cell\n  \
         See `gaol cell list`, and name another CPU.\n"
    );
    let Request::Create(config) = machine.request() else {
        panic!("it was not asked to create");
    };
    assert!(CellView::parse(Binary::new(&config).bytes()).is_ok());
}
