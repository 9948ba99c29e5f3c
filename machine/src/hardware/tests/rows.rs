//! Each row where it is well and where it is not.

use super::machines::{FLAGS, Machine, capability, cpuinfo, dmar};
use super::turns;
use crate::hardware::facts::msr;
use crate::hardware::requirements::{
    BASIC, EPT_VPID, REQUIREMENTS, SECONDARY, TRUE_EXIT, TRUE_PIN,
};
use crate::hardware::{Status, Verdict, verdict};

use Status::{Missing, Ok as Well, Unknown, Warning};

#[test]
fn each_needed_control_is_missed_by_its_name() {
    let machine = Machine::intel();
    for requirement in &REQUIREMENTS {
        let value = capability(requirement.register) ^ (1 << requirement.bit);
        let row = turns(&machine, requirement.key, Missing, "on no CPU", |machine| {
            machine.msr(requirement.register, value);
        });
        assert_eq!(row.name, requirement.name);
        turns(
            &machine,
            requirement.key,
            Missing,
            "not on CPU 2",
            |machine| {
                machine.msr_of(2, requirement.register, value);
            },
        );
    }
}

#[test]
fn a_single_control_spoils_its_own_row_only() {
    for requirement in REQUIREMENTS.iter().filter(|it| it.register != BASIC) {
        let mut machine = Machine::intel();
        let value = capability(requirement.register) ^ (1 << requirement.bit);
        machine.msr(requirement.register, value);
        let rows = machine.rows();
        let bad = rows.iter().filter(|row| row.status != Well);
        let mut keys: Vec<&str> = bad.map(|row| row.key).collect();
        if requirement.key == "vmx_secondary" {
            // What depends on it is missing as well.
            assert!(
                keys.contains(&"vmx_ept") && keys.contains(&"invept"),
                "{keys:?}"
            );
            keys.retain(|key| *key == "vmx_secondary");
        }
        assert_eq!(keys, [requirement.key]);
    }
}

#[test]
fn vmcs_of_another_form() {
    let machine = Machine::intel();
    turns(&machine, "vmx_vmcs_size", Missing, "on no CPU", |machine| {
        machine.msr(BASIC, capability(BASIC) + (1 << 32));
    });
    turns(
        &machine,
        "vmx_vmcs_memory",
        Missing,
        "on no CPU",
        |machine| {
            machine.msr(BASIC, capability(BASIC) & !(0xf << 50));
        },
    );
}

#[test]
fn vmx_on_some_cpus_only() {
    let machine = Machine::intel();
    turns(&machine, "vmx", Missing, "not on CPU 3", |machine| {
        machine.leaf_of_one(3, 1, |entry| entry.ecx &= !(1 << 5));
    });
    turns(
        &machine,
        "vmx_firmware",
        Missing,
        "disabled and locked on CPU 1",
        |machine| {
            machine.msr_of(1, msr::FEATURE_CONTROL, 1);
        },
    );
    let mut open = machine.clone();
    open.msr(msr::FEATURE_CONTROL, 0);
    let row = open.row("vmx_firmware");
    assert_eq!(
        (row.status, row.finding.as_str()),
        (Well, "left open: gaol.ko enables and locks it")
    );
}

#[test]
fn registers_that_cannot_be_read() {
    let machine = Machine::intel();
    let row = turns(
        &machine,
        "vmx_firmware",
        Unknown,
        "MSR 0x3a was not collected",
        |machine| {
            machine.msrs[0].remove(&msr::FEATURE_CONTROL);
        },
    );
    assert!(row.finding.contains("/gaol/cpu/0/msr"), "{row:?}");
    turns(
        &machine,
        "vmx_nmi_exiting",
        Unknown,
        "/gaol/cpu/3/msr",
        |machine| {
            machine.msrs[3].remove(&TRUE_PIN);
        },
    );
    // A register that the processor does not have promises nothing.
    turns(&machine, "vmx_save_pat", Missing, "on no CPU", |machine| {
        machine.msrs.iter_mut().for_each(|msrs| {
            msrs.insert(TRUE_EXIT, None);
        });
    });
}

#[test]
fn what_linux_uses_has_to_work_in_a_guest() {
    let machine = Machine::intel();
    for (key, control) in [("vmx_rdtscp", 3), ("vmx_invpcid", 12), ("vmx_xsaves", 20)] {
        let (key, control): (&str, u32) = (key, control);
        let mut has = machine.clone();
        has.leaf_of(0x8000_0001, 0, |entry| entry.edx |= 1 << 27);
        has.leaf_of(7, 0, |entry| entry.ebx |= 1 << 10);
        has.leaf_of(0xd, 1, |entry| entry.eax |= 1 << 3);
        turns(&has, key, Missing, "on no CPU", |machine| {
            machine.msr(SECONDARY, capability(SECONDARY) & !(1 << (32 + control)));
        });
        let mut without = machine.clone();
        without.leaf_of(0x8000_0001, 0, |entry| entry.edx &= !(1 << 27));
        without.leaf_of(7, 0, |entry| entry.ebx &= !(1 << 10));
        without.leaf_of(0xd, 1, |entry| entry.eax &= !(1 << 3));
        without.msr(SECONDARY, capability(SECONDARY) & !(1 << (32 + control)));
        assert_eq!(without.row(key).status, Well);
    }
    let mut waits = machine.clone();
    waits.leaf_of(7, 0, |entry| entry.ecx |= 1 << 5);
    turns(&waits, "vmx_user_wait", Missing, "on no CPU", |machine| {
        machine.msr(SECONDARY, capability(SECONDARY) & !(1 << 58));
    });
}

#[test]
fn what_is_only_better_is_a_warning() {
    let machine = Machine::intel();
    turns(&machine, "ept_1g", Warning, "on no CPU", |machine| {
        machine.msr(EPT_VPID, capability(EPT_VPID) & !(1 << 17));
    });
    turns(
        &machine,
        "itlb_multihit",
        Warning,
        "does not say",
        |machine| {
            machine.msr(msr::ARCH_CAPABILITIES, 0);
        },
    );
    turns(&machine, "x2apic", Warning, "not on CPU 1", |machine| {
        machine.leaf_of_one(1, 1, |entry| entry.ecx &= !(1 << 21));
    });
    turns(
        &machine,
        "bare_machine",
        Warning,
        "KVM is beneath",
        |machine| {
            machine.leaf_of(1, 0, |entry| entry.ecx |= 1 << 31);
            machine.leaf(
                0x4000_0000,
                0,
                [0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d],
            );
        },
    );
}

#[test]
fn cpus_are_counted_and_online() {
    let machine = Machine::intel();
    let cpus = "/sys/devices/system/cpu";
    turns(&machine, "cpus", Missing, "1: none is left", |machine| {
        machine.file(&format!("{cpus}/present"), "0\n");
    });
    turns(&machine, "cpus", Missing, "supports 256", |machine| {
        machine.file(&format!("{cpus}/present"), "0-256\n");
        machine.file(&format!("{cpus}/online"), "0-3\n");
    });
    turns(&machine, "cpus", Unknown, "not a list of CPUs", |machine| {
        machine.file(&format!("{cpus}/present"), "many\n");
    });
    let row = turns(
        &machine,
        "cpus_online",
        Missing,
        "CPUs 1,3 not online",
        |machine| {
            machine.file(&format!("{cpus}/online"), "0,2\n");
        },
    );
    assert!(row.remedy.contains("cpu1/online"));
    let mut enabled = machine.clone();
    enabled.file(&format!("{cpus}/online"), "0-2\n");
    enabled.file("/sys/devices/gaol/enabled", "1\n");
    assert_eq!(enabled.row("cpus_online").status, Well);
}

#[test]
fn while_gaol_is_enabled_vmx_is_not_looked_for() {
    let mut machine = Machine::intel();
    machine.file("/sys/devices/gaol/enabled", "1\n");
    machine.leaf_of(1, 0, |entry| entry.ecx &= !(1 << 5));
    let rows = machine.rows();
    assert_eq!(verdict(&rows), Verdict::Runs);
    assert!(rows.iter().all(|row| row.key != "vmx"));
    assert!(machine.row("gaol").finding.starts_with("enabled"));
}

#[test]
fn features_that_are_taken_for_granted() {
    let machine = Machine::intel();
    let features: [(&str, u32, u32); 4] = [
        ("no_execute", 0x8000_0001, 20),
        ("mtrr", 1, 12),
        ("pat", 1, 16),
        ("fxsr", 1, 24),
    ];
    for (key, leaf, bit) in features {
        turns(&machine, key, Missing, "on no CPU", |machine| {
            machine.leaf_of(leaf, 0, |entry| entry.edx &= !(1 << bit));
        });
    }
    turns(&machine, "apic", Missing, "moved on CPU 2", |machine| {
        machine.msr_of(2, msr::APIC_BASE, 0xfec0_0800);
    });
    turns(&machine, "apic", Missing, "CPUs 0-3", |machine| {
        machine.msr(msr::APIC_BASE, 0xfee0_0000)
    });
}

#[test]
fn cpus_differ_in_a_leaf_that_has_no_flag() {
    let machine = Machine::intel();
    turns(
        &machine,
        "cpu_features_equal",
        Warning,
        "CPU 0 and CPU 1 differ in CPUID leaf 0x15",
        |machine| {
            machine.leaf_of_one(1, 0x15, |entry| entry.ebx = 100);
        },
    );
    turns(
        &machine,
        "cpu_features_equal",
        Warning,
        "CPU 0 and CPU 3 differ in CPUID leaf 0x1a",
        |machine| {
            machine.leaf_of_one(3, 0x1a, |entry| entry.eax = 0x2000_0001);
        },
    );
    let mut garbage = machine.clone();
    garbage.file("/proc/cpuinfo", "processor : x\nflags : vmx\n");
    let row = garbage.row("cpu_features_equal");
    assert_eq!(row.status, Unknown);
    assert!(row.finding.contains("/proc/cpuinfo"), "{row:?}");
    // Other rows need these flags.
    assert_eq!(verdict(&garbage.rows()), Verdict::Undecided);
    let mut same = machine.clone();
    same.leaf_of_one(3, 0x16, |entry| entry.eax = 2000);
    same.leaf_of_one(3, 0x4000_0001, |entry| entry.eax = 3);
    assert_eq!(same.row("cpu_features_equal").status, Well);
}

#[test]
fn control_bits_that_the_hypervisor_does_not_know() {
    let machine = Machine::intel();
    for (key, flag, words) in [
        ("cr4_cet", "user_shstk", "bit 23"),
        ("cr4_pks", "pks", "bit 24"),
        ("cr4_uintr", "uintr", "bit 25"),
        ("cr4_lass", "lass", "bit 27"),
        ("cr4_fred", "fred", "bit 32"),
    ] {
        turns(&machine, key, Missing, words, |machine| {
            machine.file("/proc/cpuinfo", cpuinfo(&format!("{FLAGS} {flag}")));
        });
    }
    turns(
        &machine,
        "cr4_known",
        Missing,
        "VMX does not allow",
        |machine| {
            machine.msr(msr::VMX_CR4_FIXED1, 0x1727ff);
        },
    );
    assert_eq!(
        Machine::amd().row("cr4_known").finding,
        "all known: PAE, PGE, UMIP, FSGSBASE, PCIDE, OSXSAVE, SMEP, SMAP, PKE"
    );
}

#[test]
fn indirect_branch_tracking_counts_when_the_kernel_was_built_with_it() {
    let mut machine = Machine::intel();
    machine.file("/boot/config-6.0.0", "# CONFIG_X86_KERNEL_IBT is not set\n");
    let with_flag = |machine: &mut Machine| {
        machine.file("/proc/cpuinfo", cpuinfo(&format!("{FLAGS} ibt")));
    };
    turns(
        &machine,
        "cr4_cet",
        Missing,
        "CONFIG_X86_KERNEL_IBT",
        |machine| {
            with_flag(machine);
            machine.file("/boot/config-6.0.0", "CONFIG_X86_KERNEL_IBT=y\n");
        },
    );
    turns(&machine, "cr4_cet", Unknown, "can't be read", |machine| {
        with_flag(machine);
        machine.tree.remove("/boot");
    });
    with_flag(&mut machine);
    assert_eq!(machine.row("cr4_cet").status, Well);
}

#[test]
fn iommus_and_interrupt_remapping() {
    let machine = Machine::intel();
    let table = "/sys/firmware/acpi/tables/DMAR";
    assert_eq!(machine.row("iommu").finding, "VT-d, 2 units; Linux uses 2");
    turns(
        &machine,
        "iommu",
        Warning,
        "neither DMAR nor IVRS",
        |machine| machine.tree.remove(table),
    );
    turns(&machine, "iommu", Warning, "no unit of VT-d", |machine| {
        machine.file(table, dmar(1, 0))
    });
    turns(
        &machine,
        "interrupt_remapping",
        Warning,
        "for lack of an IOMMU",
        |machine| {
            machine.tree.remove(table);
            machine.file("/sys/firmware/acpi/tables/FACP", "x");
        },
    );
    turns(
        &machine,
        "interrupt_remapping",
        Warning,
        "does not offer it",
        |machine| {
            machine.file(table, dmar(0, 2));
        },
    );
    turns(
        &machine,
        "interrupt_remapping",
        Warning,
        "dmar1 cannot do it",
        |machine| {
            machine.file("/sys/class/iommu/dmar1/intel-iommu/ecap", "f050d2\n");
        },
    );
    for key in ["iommu", "interrupt_remapping"] {
        turns(&machine, key, Unknown, "add up", |machine| {
            let mut bytes = dmar(1, 2);
            bytes[37] = 0;
            machine.file(table, bytes);
        });
    }
    let mut unused = machine.clone();
    unused.tree.remove("/sys/class/iommu");
    unused.file("/proc/cmdline", "intel_iommu=off");
    assert_eq!(
        unused.row("iommu").finding,
        "VT-d, 2 units; Linux leaves it unused (intel_iommu=off)"
    );
    assert!(
        unused
            .row("interrupt_remapping")
            .finding
            .contains("can't be read")
    );
    let mut narrow = machine.clone();
    narrow.file(table, dmar(3, 2));
    narrow.file("/sys/class/iommu/dmar1/intel-iommu/ecap", "f050ca\n");
    let finding = narrow.row("interrupt_remapping").finding;
    assert!(
        finding.ends_with("xAPIC ids only; the firmware asks not to use x2APIC"),
        "{finding}"
    );
    assert_eq!(
        Machine::amd().row("iommu").finding,
        "AMD-Vi, 1 unit; Linux uses 1"
    );
}

#[test]
fn caches_and_bandwidth() {
    let machine = Machine::intel();
    assert_eq!(
        machine.row("cache_allocation").finding,
        "L3: 11 ways, 16 classes"
    );
    assert_eq!(
        machine.row("memory_bandwidth").finding,
        "throttling up to 90 %, 8 classes"
    );
    for key in ["cache_allocation", "memory_bandwidth"] {
        turns(&machine, key, Warning, "none", |machine| {
            machine.leaf(0x10, 0, [0; 4])
        });
    }
    let mut second = machine.clone();
    second.leaf(0x10, 0, [0, 0b100, 0, 0]);
    second.leaf(0x10, 2, [19, 0, 0, 3]);
    assert_eq!(
        second.row("cache_allocation").finding,
        "L2: 20 ways, 4 classes"
    );
    let mut amd = Machine::amd();
    amd.leaf(0x10, 0, [0, 2, 0, 0]);
    assert_eq!(amd.row("memory_bandwidth").status, Warning);
    amd.leaf(0x8000_0008, 0, [0, 1 << 6, 0, 0]);
    amd.leaf(0x8000_0020, 0, [0, 2, 0, 0]);
    amd.leaf(0x8000_0020, 1, [11, 0, 0, 15]);
    assert_eq!(amd.row("memory_bandwidth").finding, "16 classes");
}

#[test]
fn an_amd_processor() {
    let machine = Machine::amd();
    let bad: Vec<&str> = machine
        .rows()
        .iter()
        .filter(|row| row.status != Well)
        .map(|row| row.key)
        .collect();
    assert!(bad.is_empty(), "{bad:?}");
    turns(&machine, "svm", Missing, "not on CPU 1", |machine| {
        machine.leaf_of_one(1, 0x8000_0001, |entry| entry.ecx &= !4);
    });
    turns(
        &machine,
        "svm",
        Missing,
        "the CPU itself has none",
        |machine| {
            machine.leaf_of(0x8000_0001, 0, |entry| entry.ecx &= !4);
        },
    );
    turns(
        &machine,
        "svm_firmware",
        Missing,
        "disabled and locked",
        |machine| {
            machine.msr(msr::VM_CR, 0x18);
        },
    );
    turns(
        &machine,
        "svm_free",
        Missing,
        "SVME is set on CPU 3",
        |machine| {
            machine.msr_of(3, msr::EFER, 0x1d01);
        },
    );
    turns(&machine, "npt", Missing, "on no CPU", |machine| {
        machine.leaf_of(0x8000_000a, 0, |entry| entry.edx &= !1);
    });
    turns(&machine, "svm_asids", Missing, "on no CPU", |machine| {
        machine.leaf_of(0x8000_000a, 0, |entry| entry.ebx = 2);
    });
    for (key, bit) in [
        ("svm_nrip_save", 3),
        ("svm_clean_bits", 5),
        ("svm_flush_by_asid", 6),
        ("svm_decode_assists", 7),
        ("svm_virtual_gif", 16),
    ] {
        let bit: u32 = bit;
        turns(&machine, key, Warning, "on no CPU", |machine| {
            machine.leaf_of(0x8000_000a, 0, |entry| entry.edx &= !(1 << bit));
        });
    }
}

#[test]
fn a_processor_of_another_vendor() {
    let mut machine = Machine::intel();
    machine.leaf_of(1, 0, |entry| entry.ecx &= !(1 << 5));
    machine.leaf(0, 0, [0x20, 0x7777_7777, 0x7777_7777, 0x7777_7777]);
    let row = machine.row("extension");
    assert_eq!(
        (row.status, verdict(&machine.rows())),
        (Missing, Verdict::Lacks)
    );
    assert!(row.finding.contains("wwwwwwwwwwww"), "{row:?}");
    machine.tree.remove("/gaol");
    machine.cpuid.clear();
    let row = machine.row("extension");
    assert_eq!(row.status, Unknown);
    assert!(row.finding.contains("/gaol/cpu/0/cpuid"), "{row:?}");
}
