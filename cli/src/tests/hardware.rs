//! `hardware check`, on collections that are made up.

use super::fake::Machine;

/// CPUID of the CPUs: Intel, with VMX and what the hypervisor takes for granted.
const CPUID: &str = "\
00000000 00 00000016 756e6547 6c65746e 49656e69
00000001 00 000306c3 00000800 01200020 01011000
80000001 00 00000000 00000000 00000000 00100000
";

/// The registers that are needed, with values of a Haswell.
const MSRS: &str = "\
0000001b 00000000fee00900
00000034 0000000000000003
0000003a 0000000000000005
00000480 00d810000000002b
00000485 00000000200401e0
00000489 0000000000172fff
0000048b 00047fff00000000
0000048c 00000f0106334141
0000048d 0000007f00000016
0000048e f7f9fffe04006172
0000048f 007fffff00036dfb
00000490 0000ffff000011fb
";

/// Two CPUs that can run Gaol, as a directory.
fn good() -> Machine {
    let machine = Machine::new();
    let flags = "fpu pae pge vmx";
    for (path, text) in [
        ("root/sys/devices/system/cpu/present", "0-1\n"),
        ("root/sys/devices/system/cpu/online", "0-1\n"),
        (
            "root/sys/devices/system/cpu/cpu0/topology/thread_siblings_list",
            "0\n",
        ),
        (
            "root/sys/devices/system/cpu/cpu1/topology/thread_siblings_list",
            "1\n",
        ),
        ("root/sys/module/module/parameters/sig_enforce", "N\n"),
        ("root/sys/kernel/security/lockdown", "[none] integrity\n"),
        ("root/sys/firmware/acpi/tables/FACP", ""),
        ("root/proc/cmdline", "console=ttyS0\n"),
        ("root/gaol/cpu/0/cpuid", CPUID),
        ("root/gaol/cpu/1/cpuid", CPUID),
        ("root/gaol/cpu/0/msr", MSRS),
        ("root/gaol/cpu/1/msr", MSRS),
    ] {
        machine.write(path, text);
    }
    let cpuinfo = format!("processor : 0\nflags : {flags}\n\nprocessor : 1\nflags : {flags}\n");
    machine.write("root/proc/cpuinfo", &cpuinfo);
    machine
}

fn check(machine: &Machine, more: &[&str]) -> super::fake::Ran {
    let root = machine.path("root").display().to_string();
    machine.run(&[&["hardware", "check", "--root", &root], more].concat())
}

#[test]
fn a_machine_that_can_run_gaol_ends_with_status_0() {
    let text = check(&good(), &[]).text();
    assert!(
        text.ends_with("\nGaol can run on this machine.\n"),
        "{text}"
    );
    assert!(!text.contains('\u{1b}'), "{text}");
    insta::assert_snapshot!(text);
}

#[test]
fn programs_get_all_of_each_row() {
    let json = check(&good(), &["--json"]).json();
    assert_eq!(json["verdict"], "runs");
    assert_eq!(json["summary"]["missing"], 0);
    insta::assert_snapshot!(serde_json::to_string_pretty(&json).unwrap());
}

#[test]
fn what_is_missing_ends_with_status_1_below_the_table() {
    let machine = good();
    let locked = MSRS.replace("3a 0000000000000005", "3a 0000000000000001");
    machine.write("root/gaol/cpu/1/msr", &locked);
    let ran = check(&machine, &[]);
    assert_eq!(ran.status, 1);
    assert!(ran.output.starts_with("STATUS   WHAT "), "{}", ran.output);
    assert_eq!(
        ran.errors,
        "gaol: Gaol cannot run on this machine as it is: missing: VMX in the firmware\n  \
         Turn \"Intel Virtualization Technology\" on in the firmware setup, and boot again.\n"
    );
    let json = check(&machine, &["--json"]).json();
    assert_eq!(json["verdict"], "lacks");
    assert_eq!(json["error"]["reason"], "hardware_missing");
    let rows = json["rows"].as_array().unwrap();
    let row = rows
        .iter()
        .find(|row| row["key"] == "vmx_firmware")
        .unwrap();
    assert_eq!(row["status"], "missing");
    assert_eq!(
        row["finding"],
        "the firmware has it disabled and locked on CPU 1"
    );
}

#[test]
fn what_is_needed_and_unknown_ends_with_status_1() {
    let machine = good();
    std::fs::remove_file(machine.path("root/gaol/cpu/1/msr")).unwrap();
    let ran = check(&machine, &[]);
    assert_eq!(ran.status, 1);
    assert!(
        ran.errors.starts_with(
            "gaol: whether Gaol can run on this machine is not known: unknown: VMX in the firmware; "
        ),
        "{}",
        ran.errors
    );
    let json = check(&machine, &["--json"]).json();
    assert_eq!(json["error"]["reason"], "hardware_unknown");
}

#[test]
fn a_collection_that_is_not_there_is_named() {
    let machine = Machine::new();
    let json = check(&machine, &["--json"]).json();
    assert_eq!(json["error"]["reason"], "machine");
    assert!(
        check(&machine, &[])
            .failure()
            .contains("root: No such file")
    );
}

#[test]
fn seconds_are_a_number() {
    for seconds in ["-1", "x", "100000"] {
        let ran = check(&good(), &["--smi-seconds", seconds]);
        assert_eq!(ran.status, 2, "{}", ran.errors);
    }
}
