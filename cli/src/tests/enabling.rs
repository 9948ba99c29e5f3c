//! `enable`, `disable`, `console`, and what all commands have in common.

use std::io;

use gaol_abi::image::Vendor;
use gaol_abi::outcome::Reason;
use gaol_config::SystemView;
use gaol_config::encode::Binary;

use super::fake::Piece::{self, Text};
use super::fake::{Machine, Request, shipped};
use crate::arguments::Fault;

const EINVAL: i32 = 22;
const EBUSY: i32 = 16;
const ENODEV: i32 = 19;

#[test]
fn enable_describes_the_machine_without_a_file() {
    let machine = Machine::new();
    assert_eq!(
        machine.run(&["enable"]).text(),
        "Gaol is enabled in 4 MiB at 0x3a000000, after 1,876,543 cycles.\n\
         Its configuration was made for this machine.\n\
         Of 700 page frames in its pool, 83 are in use.\n"
    );
    let Request::Enable {
        image,
        config,
        fault,
    } = machine.request()
    else {
        panic!("it was not asked to enable");
    };
    assert_eq!((image.as_slice(), fault), (&b"the image for VMX"[..], None));
    let config = Binary::new(&config);
    let view = SystemView::parse(config.bytes()).unwrap();
    assert_eq!(view.header().hypervisor_size, 4 << 20);
    assert_eq!(
        (view.console_port(), view.hypervisor_memory()),
        (Some(0x2f8), None)
    );
    assert_eq!((view.machine_cpus().len(), view.devices().len()), (4, 15));
    // It is what `config create` writes, and kept for those who create cells.
    let created = machine.run(&["config", "create"]);
    assert_eq!(machine.read("run/gaol/system.toml"), created.output);
}

#[test]
fn enable_takes_toml_and_binary_files_alike() {
    let machine = Machine::new();
    let toml = machine.write("bochs.toml", &shipped("bochs.toml"));
    let binary = machine.path("bochs.bin").display().to_string();
    machine
        .run(&["config", "build", &toml, "-o", &binary])
        .text();
    machine.run(&["enable", &toml]).text();
    machine.run(&["enable", &binary]).text();
    let record = machine.record.borrow();
    assert_eq!(record.requests.len(), 2);
    assert_eq!(record.requests[0], record.requests[1]);
}

#[test]
fn enable_tells_programs_the_same() {
    let json = Machine::new().run(&["enable", "--json"]).json();
    assert_eq!(json["cycles"], 1_876_543);
    assert_eq!(json["region_physical"], 0x3a00_0000);
    assert_eq!(json["region_size"], 4 << 20);
    assert_eq!(
        (&json["pool_total"], &json["pool_used"]),
        (&700.into(), &83.into())
    );
    assert!(json["image"].as_str().unwrap().ends_with("gaol-vmx.bin"));
}

#[test]
fn enable_chooses_the_image() {
    let mut machine = Machine::new();
    machine.vendor = Some(Vendor::Svm);
    machine.run(&["enable"]).text();
    let other = machine.write("other.bin", "another image");
    machine.run(&["enable", "--image", &other]).text();
    let images: Vec<Vec<u8>> = machine
        .record
        .borrow()
        .requests
        .iter()
        .map(|request| match request {
            Request::Enable { image, .. } => image.clone(),
            _ => panic!("it was not asked to enable"),
        })
        .collect();
    assert_eq!(images, [&b"the image for SVM"[..], b"another image"]);
}

#[test]
fn enable_needs_an_image() {
    let mut machine = Machine::new();
    assert_eq!(
        machine
            .run(&["enable", "--image", "/no/such/image"])
            .failure(),
        "gaol: cannot read the image /no/such/image: No such file or directory\n  \
         Give the hypervisor's image with --image FILE.\n"
    );
    std::fs::remove_file(machine.path("images/gaol-vmx.bin")).unwrap();
    assert_eq!(
        machine.run(&["enable"]).failure(),
        "gaol: there is no gaol-vmx.bin in nowhere, images\n  \
         Install it there, set GAOL_IMAGE_DIR, or give it with --image FILE.\n"
    );
    machine.vendor = None;
    let json = machine.run(&["enable", "--json"]).json();
    assert_eq!(json["error"]["reason"], "unknown_vendor");
    machine.assert_untouched();
}

#[test]
fn enable_passes_faults_on() {
    let machine = Machine::new();
    machine.refuse_at(5, Reason::FaultInjected, 4, 2, 4);
    assert_eq!(
        machine.run(&["enable", "--fail-at", "4:2"]).failure(),
        "gaol: cannot enable Gaol: step 4 (checking the processor) failed as it was told to \
         (CPU 2, step 4: checking the processor)\n  Leave --fail-at out.\n"
    );
    let Request::Enable { fault, .. } = machine.request() else {
        panic!("it was not asked to enable");
    };
    assert_eq!(fault, Some(Fault { step: 4, cpu: 2 }));
}

#[test]
fn enable_says_what_is_missing_and_how_to_get_it() {
    let machine = Machine::new();
    let say = |reason, detail| {
        machine.refuse(ENODEV, reason, detail);
        machine.run(&["enable"]).failure()
    };
    assert_eq!(
        say(Reason::NoVmx, 0),
        "gaol: cannot enable Gaol: the CPU itself has no VMX\n  In a virtual machine, let the host offer it \
         (nested virtualization). On bare metal, use another machine.\n"
    );
    assert_eq!(
        say(Reason::VmxLockedOff, 0),
        "gaol: cannot enable Gaol: the CPU has VMX, but the firmware has it disabled and locked\n  \
         Turn \"Intel Virtualization Technology\" on in the firmware setup, and boot again.\n"
    );
    assert_eq!(
        say(Reason::HypervisorMemory, 2 << 20),
        "gaol: cannot enable Gaol: Linux could not give 4 MiB in one piece for the hypervisor: 2 MiB is the largest \
         piece that was found\n  End programs that use much memory, or boot Linux with `memmap=4M$0x3fa00000` (in a GRUB file: \\$) and set \
         `address = 0x3fa00000` under [hypervisor].\n"
    );
    assert_eq!(
        say(Reason::CpuOffline, 2),
        "gaol: cannot enable Gaol: CPU 2 is offline, and has to be online\n  \
         Bring it online: echo 1 > /sys/devices/system/cpu/cpu2/online\n"
    );
    assert_eq!(
        say(Reason::AlreadyEnabled, 0),
        "gaol: cannot enable Gaol: Gaol is enabled already\n  \
         Disable it first, with `gaol disable`, if it shall have another configuration.\n"
    );
    assert_eq!(
        say(Reason::ImageVendor, 2),
        "gaol: cannot enable Gaol: the image is for CPUs of AMD (SVM), and this is another\n  \
         Give gaol-vmx.bin, or leave --image out.\n"
    );
}

#[test]
fn the_place_to_reserve_has_the_configured_size() {
    let machine = Machine::new();
    let file = machine.write(
        "large.toml",
        "[hypervisor]\nmemory = \"16 MiB\"\naddress = 0x3a000000\n",
    );
    machine.refuse(EBUSY, Reason::MemoryNotReserved, 0x3a00_0000);
    let text = machine.run(&["enable", &file]).failure();
    assert!(
        text.contains("Boot Linux with `memmap=16M$0x3a000000`"),
        "{text}"
    );
}

#[test]
fn enable_refuses_the_file_of_a_cell() {
    let machine = Machine::new();
    let file = machine.write("hello.toml", &shipped("hello.toml"));
    assert_eq!(
        machine.run(&["enable", &file]).failure(),
        "gaol: hello.toml is the configuration of a cell\n  \
         Give a system configuration here, and this one to `gaol cell create`.\n"
    );
    machine.assert_untouched();
}

#[test]
fn errors_in_files_are_shown_at_their_place() {
    let machine = Machine::new();
    let file = machine.write("bad.toml", "[hypervisor]\nmemory = \"3 MiB\"\n");
    let text = machine.run(&["enable", &file]).failure();
    for part in [
        "the hypervisor's memory is not a multiple of 2 MiB",
        "bad.toml:2:10",
        "memory = \"3 MiB\"",
        "Write \"4 MiB\", or leave the key out.",
    ] {
        assert!(text.contains(part), "{text}");
    }
    let json = machine.run(&["enable", &file, "--json"]).json();
    assert_eq!(json["error"]["reason"], "configuration_invalid");
    assert_eq!(
        (&json["error"]["line"], &json["error"]["column"]),
        (&2.into(), &10.into())
    );
    machine.assert_untouched();
}

#[test]
fn damaged_binary_files_are_named() {
    let machine = Machine::new();
    let toml = machine.write("s.toml", "");
    let binary = machine.path("s.bin");
    let name = binary.display().to_string();
    machine.run(&["config", "build", &toml, "-o", &name]).text();
    let good = std::fs::read(&binary).unwrap();
    let with = |offset: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[offset] = value;
        bytes
    };
    for (bytes, reason) in [
        (good[..40].to_vec(), "configuration_invalid"),
        (with(8, 77), "configuration_revision"),
        (with(60, 77), "configuration_checksum"),
        (vec![0xff; 100], "configuration_invalid"),
    ] {
        std::fs::write(&binary, bytes).unwrap();
        let json = machine.run(&["--json", "enable", &name]).json();
        assert_eq!(json["error"]["reason"], reason);
        assert_eq!(json["error"]["file"], "s.bin");
    }
    machine.assert_untouched();
}

#[test]
fn disable_gives_the_machine_back() {
    let machine = Machine::enabled();
    assert_eq!(
        machine.run(&["disable"]).text(),
        "Gaol is disabled, after 234,567 cycles. Linux has the machine back.\n"
    );
    assert_eq!(machine.request(), Request::Disable(false));
    let json = machine.run(&["disable", "--force", "--json"]).json();
    assert_eq!(json["cycles"], 234_567);
    assert_eq!(machine.record.borrow().requests[1], Request::Disable(true));
}

#[test]
fn disable_is_refused_while_cells_exist() {
    let machine = Machine::enabled();
    machine.refuse(EBUSY, Reason::CellsExist, 2);
    assert_eq!(
        machine.run(&["disable"]).failure(),
        "gaol: cannot disable Gaol: 2 cells still exist\n  \
         Destroy them first, with `gaol cell destroy`, or all at once: gaol disable --force\n"
    );
    machine.refuse(EBUSY, Reason::CellsExist, 2);
    let json = machine.run(&["disable", "--json"]).json();
    assert_eq!(json["error"]["reason"], "cells_exist");
    assert_eq!(
        (&json["error"]["errno"], &json["error"]["detail"]),
        (&16.into(), &2.into())
    );
}

#[test]
fn a_missing_device_is_named_with_its_remedy() {
    let machine = Machine::new();
    let with = |kind| {
        machine.record.borrow_mut().open_error = Some(kind);
        machine.run(&["disable"]).failure()
    };
    assert_eq!(
        with(io::ErrorKind::NotFound),
        "gaol: there is no /dev/gaol: the module is not loaded\n  Load it: insmod gaol.ko\n"
    );
    assert_eq!(
        with(io::ErrorKind::PermissionDenied),
        "gaol: no permission to open /dev/gaol\n  Run gaol as root.\n"
    );
    let json = machine.run(&["cell", "start", "x", "--json"]).json();
    assert_eq!(json["error"]["reason"], "no_permission");
}

#[test]
fn a_module_of_another_version_is_named() {
    let machine = Machine::new();
    machine.write("sys/devices/gaol/abi_revision", "9\n");
    machine.refuse(EINVAL, Reason::None, 0);
    assert_eq!(
        machine.run(&["disable"]).failure(),
        format!(
            "gaol: cannot disable Gaol: the module is of ABI revision 9, this command of {}\n  \
             Install module and command of one version.\n",
            gaol_abi::ABI_REVISION
        )
    );
    machine.refuse(1, Reason(4711), 0x12);
    assert_eq!(
        machine.run(&["disable"]).failure(),
        "gaol: cannot disable Gaol: reason 4711 (detail 0x12)\n  \
         The module is newer than this command: install both of one version.\n"
    );
    machine.refuse(4, Reason::None, 0);
    assert_eq!(
        machine.run(&["disable"]).failure(),
        "gaol: cannot disable Gaol: Interrupted system call\n  See `dmesg` for what the module says.\n"
    );
}

#[test]
fn console_shows_what_was_printed() {
    let machine = Machine::enabled();
    let print = |pieces: &[Piece]| {
        machine.record.borrow_mut().console = pieces.iter().copied().collect();
    };
    print(&[
        Text(1, b"hello: "),
        Text(2, b"ready\n"),
        Text(1, b"1 s up\n"),
    ]);
    assert_eq!(machine.run(&["console"]).text(), "ready\nhello: 1 s up\n");
    print(&[Text(1, b"hello: ")]);
    assert_eq!(machine.run(&["console"]).text(), "hello: \n");
    print(&[Text(1, b"a\xff\n")]);
    let json = machine.run(&["console", "--json"]).json();
    assert_eq!(json["text"], "a\u{fffd}\n");
    print(&[
        Text(1, b"first\nname: "),
        Piece::Quiet,
        Text(1, b"x\n"),
        Text(1, b"last"),
    ]);
    assert_eq!(
        machine.run(&["console", "-f"]).text(),
        "first\nname: x\nlast\n"
    );
    let requests = machine.record.borrow().requests.clone();
    assert_eq!(
        requests,
        [
            Request::Console(false),
            Request::Console(false),
            Request::Console(false),
            Request::Console(true)
        ]
    );
    print(&[Text(1, b"text"), Piece::Error]);
    assert_eq!(
        machine.run(&["console"]).failure(),
        "gaol: cannot read the console: Input/output error\n  See `dmesg` for what the module says.\n"
    );
}

#[test]
fn wrong_usage_has_its_own_status() {
    let machine = Machine::new();
    for arguments in [
        &[][..],
        &["frobnicate"],
        &["cell"],
        &["cell", "start"],
        &["cell", "load", "latency"],
        &["enable", "--fail-at", "x"],
        &["console", "-f", "--json"],
        &["config", "check", "x", "--cpus", "0"],
    ] {
        let ran = machine.run(arguments);
        assert_eq!(ran.status, 2, "{arguments:?}");
        match arguments.contains(&"--json") {
            true => assert_eq!(ran.json()["error"]["reason"], "usage"),
            false => assert!(
                ran.errors.contains("Usage") || ran.errors.contains("error"),
                "{}",
                ran.errors
            ),
        }
    }
    machine.assert_untouched();
}

#[test]
fn help_has_examples_for_every_command() {
    let machine = Machine::new();
    for command in [
        "",
        "enable",
        "disable",
        "console",
        "cell create",
        "cell load",
        "cell start",
        "cell shutdown",
        "cell destroy",
        "cell list",
        "cell stats",
        "cell histogram",
        "config build",
        "config check",
        "config create",
        "plan",
        "config import",
    ] {
        let arguments: Vec<&str> = command.split_whitespace().chain(["--help"]).collect();
        let text = machine.run(&arguments).text();
        assert!(text.contains("Example"), "{command}: {text}");
        assert!(text.contains("--json"), "{command}: {text}");
        assert!(
            !text.contains("fail-at") && !text.contains("unchecked"),
            "{command}: {text}"
        );
        assert!(
            text.contains(&format!("gaol {command}")),
            "{command}: {text}"
        );
    }
    let version = machine.run(&["--version"]).text();
    let revision = format!("(ABI revision {})\n", gaol_abi::ABI_REVISION);
    assert!(
        version.starts_with("gaol 0.") && version.ends_with(&revision),
        "{version}"
    );
}
