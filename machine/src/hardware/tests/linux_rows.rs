//! The same for what Linux does, for clocks and for what delays a cell.

use super::machines::Machine;
use super::turns;
use crate::hardware::facts::msr;
use crate::hardware::{Status, Verdict, verdict};

use Status::{Missing, Unknown, Warning};

#[test]
fn clocks() {
    let machine = Machine::intel();
    turns(
        &machine,
        "tsc_invariant",
        Warning,
        "not on CPU 2",
        |machine| {
            machine.leaf_of_one(2, 0x8000_0007, |entry| entry.edx = 0);
        },
    );
    turns(
        &machine,
        "tsc_equal",
        Warning,
        "of CPUs 1-2 is another than of CPU 0",
        |machine| {
            machine.msr_of(1, msr::TSC_ADJUST, 8);
            machine.msr_of(2, msr::TSC_ADJUST, 9);
        },
    );
    turns(
        &machine,
        "tsc_equal",
        Unknown,
        "no IA32_TSC_ADJUST",
        |machine| {
            machine.leaf_of(7, 0, |entry| entry.ebx &= !2);
        },
    );
    assert_eq!(machine.row("tsc_frequency").finding, "2112.000 MHz");
    turns(&machine, "tsc_frequency", Warning, "none", |machine| {
        machine.leaf(0x15, 0, [0; 4])
    });
    turns(
        &machine,
        "tsc_frequency",
        Warning,
        "only the ratio",
        |machine| {
            machine.leaf(0x15, 0, [2, 176, 0, 0]);
        },
    );
    turns(&machine, "tsc_deadline", Warning, "on no CPU", |machine| {
        machine.leaf_of(1, 0, |entry| entry.ecx &= !(1 << 24));
    });
    turns(
        &machine,
        "apic_timer_always_runs",
        Warning,
        "on no CPU",
        |machine| {
            machine.leaf_of(6, 0, |entry| entry.eax &= !4);
        },
    );
    for (name, status, finding) in [("hpet", Warning, "hpet"), ("tsc-early", Unknown, "not yet")] {
        turns(&machine, "clock_source", status, finding, |machine| {
            machine.file(
                "/sys/devices/system/clocksource/clocksource0/current_clocksource",
                format!("{name}\n"),
            );
        });
    }
}

#[test]
fn other_hypervisors() {
    let machine = Machine::intel();
    let key = "other_hypervisors";
    turns(
        &machine,
        key,
        Missing,
        "kvm_intel is in use: 3 users",
        |machine| {
            machine.file("/sys/module/kvm_intel/refcnt", "3\n");
        },
    );
    turns(&machine, key, Warning, "loaded and not in use", |machine| {
        machine.file("/sys/module/kvm_intel/refcnt", "0\n");
    });
    turns(&machine, key, Missing, "when it is loaded", |machine| {
        machine.file("/sys/module/kvm_intel/refcnt", "0\n");
        machine.file("/sys/module/kvm/parameters/enable_virt_at_load", "Y\n");
    });
    turns(
        &machine,
        key,
        Missing,
        "part of the kernel, and takes",
        |machine| {
            machine.tree.insert_directory("/sys/module/kvm_amd");
            machine.file("/sys/module/kvm/parameters/enable_virt_at_load", "Y\n");
        },
    );
    turns(&machine, key, Warning, "whether it is in use", |machine| {
        machine.tree.insert_directory("/sys/module/kvm_amd");
    });
    turns(&machine, key, Missing, "vboxdrv is in use", |machine| {
        machine.file("/sys/module/kvm_intel/refcnt", "0\n");
        machine.file("/sys/module/vboxdrv/refcnt", "2\n");
    });
    turns(&machine, key, Unknown, "refcnt", |machine| {
        machine.file("/sys/module/kvm_intel/refcnt", "none\n");
    });
}

#[test]
fn modules_without_a_signature() {
    let machine = Machine::intel();
    turns(
        &machine,
        "lockdown",
        Missing,
        "confidentiality",
        |machine| {
            machine.file(
                "/sys/kernel/security/lockdown",
                "none integrity [confidentiality]\n",
            );
        },
    );
    turns(
        &machine,
        "lockdown",
        Unknown,
        "/sys/kernel/security",
        |machine| {
            machine.tree.remove("/sys/kernel/security");
        },
    );
    turns(&machine, "lockdown", Unknown, "brackets", |machine| {
        machine.file("/sys/kernel/security/lockdown", "none");
    });
    let row = turns(
        &machine,
        "module_signatures",
        Missing,
        "module.sig_enforce",
        |machine| {
            machine.file("/sys/module/module/parameters/sig_enforce", "Y\n");
        },
    );
    assert!(row.remedy.contains("Sign gaol.ko"));
    let mut loaded = machine.clone();
    loaded.file("/sys/module/module/parameters/sig_enforce", "Y\n");
    loaded.file(
        "/sys/kernel/security/lockdown",
        "none [integrity] confidentiality\n",
    );
    loaded.file("/sys/devices/gaol/enabled", "0\n");
    assert_eq!(verdict(&loaded.rows()), Verdict::Runs);
}

#[test]
fn what_linux_was_told() {
    let machine = Machine::intel();
    turns(&machine, "nmi_watchdog", Warning, "on", |machine| {
        machine.file("/proc/sys/kernel/nmi_watchdog", "1\n");
    });
    for word in [
        "idle=poll",
        "disableapic",
        "maxcpus=1",
        "tsc=unstable",
        "intremap=off",
        "acpi=off",
        "nox2apic",
    ] {
        turns(&machine, "command_line", Warning, word, |machine| {
            machine.file("/proc/cmdline", format!("quiet {word} ro\n"));
        });
    }
    turns(
        &machine,
        "command_line",
        Unknown,
        "/proc/cmdline",
        |machine| {
            machine.tree.remove("/proc/cmdline");
        },
    );
}

#[test]
fn memory_at_run_time() {
    let machine = Machine::intel();
    turns(
        &machine,
        "contiguous_memory",
        Warning,
        "no compaction",
        |machine| {
            machine.tree.remove("/proc/sys/vm/compact_memory");
        },
    );
    for key in ["contiguous_memory", "memory_blocks"] {
        turns(&machine, key, Warning, "the kernel", |machine| {
            machine.tree.remove("/sys/devices/system/memory");
        });
    }
    turns(
        &machine,
        "memory_blocks",
        Unknown,
        "block_size_bytes",
        |machine| {
            machine.file("/sys/devices/system/memory/block_size_bytes", "large\n");
        },
    );
}

#[test]
fn what_delays_a_cell() {
    let machine = Machine::intel();
    let cpus = "/sys/devices/system/cpu";
    turns(
        &machine,
        "hyper_threading",
        Warning,
        "siblings 0,2; 1,3",
        |machine| {
            for cpu in 0..4 {
                let path = format!("{cpus}/cpu{cpu}/topology/thread_siblings_list");
                machine.file(&path, format!("{},{}\n", cpu % 2, cpu % 2 + 2));
            }
        },
    );
    turns(
        &machine,
        "idle_states",
        Warning,
        "deepest C6: 133 µs",
        |machine| {
            machine.file(&format!("{cpus}/cpu0/cpuidle/state2/disable"), "0\n");
        },
    );
    let mut none = machine.clone();
    none.tree.remove(&format!("{cpus}/cpuidle"));
    none.tree.remove(&format!("{cpus}/cpu0/cpuidle"));
    assert_eq!(none.row("idle_states").finding, "no driver: CPUs only halt");
    turns(
        &machine,
        "frequency_governor",
        Warning,
        "schedutil on CPU 1",
        |machine| {
            machine.file(
                &format!("{cpus}/cpu1/cpufreq/scaling_governor"),
                "schedutil\n",
            );
        },
    );
    turns(&machine, "turbo", Warning, "on", |machine| {
        machine.file(&format!("{cpus}/intel_pstate/no_turbo"), "0\n");
    });
    turns(&machine, "turbo", Warning, "on", |machine| {
        machine.tree.remove(&format!("{cpus}/intel_pstate"));
        machine.file(&format!("{cpus}/cpufreq/boost"), "1\n");
    });
    turns(
        &machine,
        "turbo",
        Warning,
        "no driver of Linux",
        |machine| {
            machine.tree.remove(&format!("{cpus}/intel_pstate"));
            machine.leaf_of(6, 0, |entry| entry.eax |= 2);
        },
    );
}

#[test]
fn system_management_interrupts() {
    let machine = Machine::intel();
    assert_eq!(machine.row("smi").finding, "none in 10 s; 10 since reset");
    turns(&machine, "smi", Warning, "3 on CPU 2 in 10 s", |machine| {
        machine.smis = Some(vec![
            (Ok(7), Ok(7)),
            (Ok(7), Ok(8)),
            (Ok(7), Ok(10)),
            (Ok(7), Ok(7)),
        ]);
    });
    turns(&machine, "smi", Unknown, "may not count", |machine| {
        machine.smis = Some(vec![(Ok(0), Ok(0)); 4]);
    });
    turns(
        &machine,
        "smi",
        Unknown,
        "not measured: this is a collection; 7 since reset",
        |machine| {
            machine.smis = None;
        },
    );
    let mut amd = Machine::amd();
    amd.smis = None;
    assert_eq!(amd.row("smi").finding, "the processor does not count them");
    let problem = crate::Problem::garbage("MSR 0x34", "no");
    turns(&machine, "smi", Unknown, "MSR 0x34", |machine| {
        machine.smis = Some(vec![(Ok(0), Err(problem.clone()))]);
    });
}
