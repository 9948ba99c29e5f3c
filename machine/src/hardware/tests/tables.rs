//! Whole tables.

use super::machines::{FLAGS, Machine, cpuinfo};
use crate::hardware::facts::msr;
use crate::hardware::{Status, Verdict, count, table, verdict};

/// The table of a machine and what it comes to.
fn shown(machine: &Machine) -> String {
    let rows = machine.rows();
    format!("{}\n{:?}\n", table(&rows, false), verdict(&rows))
}

#[test]
fn a_good_machine() {
    let rows = Machine::intel().rows();
    assert_eq!(
        count(&rows, Status::Ok),
        rows.len(),
        "{}",
        table(&rows, false)
    );
    assert_eq!(verdict(&rows), Verdict::Runs);
    insta::assert_snapshot!(shown(&Machine::intel()));
}

#[test]
fn colours_are_put_around_the_status_only() {
    let rows = Machine::intel().rows();
    let coloured = table(&rows, true);
    assert!(
        coloured.contains("\n\u{1b}[32mok     \u{1b}[0m  VMX"),
        "{coloured}"
    );
    let plain = coloured.replace("\u{1b}[32m", "").replace("\u{1b}[0m", "");
    assert_eq!(plain, table(&rows, false));
}

#[test]
fn no_vmx_in_the_cpu() {
    let mut machine = Machine::intel();
    machine.leaf_of(1, 0, |entry| entry.ecx &= !(1 << 5));
    insta::assert_snapshot!(shown(&machine));
}

#[test]
fn no_vmx_in_a_virtual_machine() {
    let mut machine = Machine::intel();
    machine.leaf_of(1, 0, |entry| entry.ecx = entry.ecx & !(1 << 5) | 1 << 31);
    machine.leaf(
        0x4000_0000,
        0,
        [0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d],
    );
    insta::assert_snapshot!(shown(&machine));
}

#[test]
fn vmx_disabled_and_locked_by_the_firmware() {
    let mut machine = Machine::intel();
    machine.msr(msr::FEATURE_CONTROL, 1);
    insta::assert_snapshot!(shown(&machine));
}

#[test]
fn no_extended_page_tables() {
    let mut machine = Machine::intel();
    use crate::hardware::requirements::{EPT_VPID, SECONDARY};
    machine.msr(
        SECONDARY,
        super::machines::capability(SECONDARY) & !(0xa2 << 32),
    );
    machine.msrs.iter_mut().for_each(|msrs| {
        msrs.insert(EPT_VPID, None);
    });
    insta::assert_snapshot!(shown(&machine));
}

#[test]
fn an_amd_without_nested_paging() {
    let mut machine = Machine::amd();
    machine.leaf_of(0x8000_000a, 0, |entry| entry.edx &= !1);
    insta::assert_snapshot!(shown(&machine));
}

#[test]
fn cpus_of_unequal_features() {
    let mut machine = Machine::intel();
    machine.leaf_of_one(2, 7, |entry| entry.ebx &= !(1 << 5));
    machine.file(
        "/proc/cpuinfo",
        format!(
            "{}processor\t: 3\nflags\t\t: {}\n",
            cpuinfo(FLAGS),
            FLAGS.replace(" avx", "")
        ),
    );
    insta::assert_snapshot!(shown(&machine));
}

#[test]
fn lockdown_kvm_and_control_flow_enforcement() {
    let mut machine = Machine::intel();
    machine.file(
        "/sys/kernel/security/lockdown",
        "none [integrity] confidentiality\n",
    );
    machine.file(
        "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c",
        [6, 0, 0, 0, 1],
    );
    machine.file("/sys/module/kvm_intel/refcnt", "2\n");
    machine.file("/proc/cpuinfo", cpuinfo(&format!("{FLAGS} user_shstk")));
    insta::assert_snapshot!(shown(&machine));
}

#[test]
fn a_desktop_that_nobody_has_tuned() {
    let mut machine = Machine::intel();
    machine.tree.remove("/sys/firmware/acpi/tables/DMAR");
    machine.tree.remove("/sys/class/iommu");
    machine.leaf(0x10, 0, [0; 4]);
    machine.leaf_of(7, 0, |entry| entry.ebx &= !(1 << 15));
    machine.msr_of(3, msr::TSC_ADJUST, (-5i64).cast_unsigned());
    machine.file("/proc/cmdline", "quiet idle=poll intel_iommu=off\n");
    machine.file("/proc/sys/kernel/nmi_watchdog", "1\n");
    machine.file("/sys/devices/system/cpu/cpu0/cpuidle/state2/disable", "0\n");
    machine.file("/sys/devices/system/cpu/intel_pstate/no_turbo", "0\n");
    for cpu in 0..4 {
        let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
        machine.file(&path, format!("{},{}\n", cpu % 2, cpu % 2 + 2));
        let path = format!("/sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor");
        machine.file(&path, "powersave\n");
    }
    machine.smis = Some((0..4).map(|cpu| (Ok(7), Ok(7 + cpu))).collect());
    let rows = machine.rows();
    assert_eq!(verdict(&rows), Verdict::Runs);
    insta::assert_snapshot!(shown(&machine));
}

#[test]
fn an_empty_collection() {
    let machine = Machine {
        cpuid: Vec::new(),
        msrs: Vec::new(),
        tree: Default::default(),
        smis: None,
    };
    assert_eq!(verdict(&machine.rows()), Verdict::Undecided);
    insta::assert_snapshot!(shown(&machine));
}

#[test]
fn keys_are_unique() {
    for machine in [
        super::machines::Machine::intel(),
        super::machines::Machine::amd(),
    ] {
        let mut keys: Vec<&str> = machine.rows().iter().map(|row| row.key).collect();
        let all = keys.len();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), all);
    }
}
