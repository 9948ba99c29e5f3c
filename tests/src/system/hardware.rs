//! What `gaol hardware check` says of machines that are known.

use anyhow::{Context as _, Result, ensure};
use gaol_abi::image::Vendor;
use serde_json::Value;

use super::{CPUS, Context, SYSTEM};
use crate::gaol::Gaol;
use crate::machine::{Platform, Spec};
use crate::runner::{Check, Except, Group};

pub(super) const GROUP: Group = Group {
    name: "hardware",
    machine: |spec| Ok(spec.module("msr")),
    prepare: mount_security,
    except: &[],
    checks: &[
        Check {
            name: "the-emulated-machine-is-judged-as-it-is",
            run: emulated,
        },
        Check {
            name: "a-collection-is-judged-as-its-machine",
            run: collection,
        },
        Check {
            name: "what-stands-in-the-way-is-told-and-its-remedy-works",
            run: remedies,
        },
        Check {
            name: "what-it-says-is-so",
            run: enables,
        },
    ],
};

pub(super) const WITHOUT_VMX: Group = Group {
    name: "hardware-without-vmx",
    machine: |spec| {
        let mut other = Spec::new(&spec.name, Platform::Qemu).module("msr");
        other.model = "Haswell-noTSX".to_owned();
        other.files = spec.files;
        Ok(other)
    },
    prepare: mount_security,
    except: &[Except::group(
        Platform::Bochs,
        "CPUs that Linux starts on have VMX; QEMU has one without",
    )],
    checks: &[Check {
        name: "status-1-and-the-reason",
        run: without_vmx,
    }],
};

/// What is to be said of the usual machine on Bochs.
const BOCHS: &[(&str, &str, &str)] = &[
    ("bare_machine", "ok", ""),
    ("vmx", "ok", "on all 4 CPUs"),
    ("vmx_firmware", "ok", "enabled and locked"),
    ("vmx_preemption_timer", "ok", "on all 4 CPUs"),
    ("vmx_unrestricted_guest", "ok", "on all 4 CPUs"),
    ("ept_four_levels", "ok", "on all 4 CPUs"),
    ("invvpid_all", "ok", "on all 4 CPUs"),
    ("x2apic", "ok", "Linux does not use it"),
    ("iommu", "warning", "none"),
    ("interrupt_remapping", "warning", "none"),
    // The emulator has no such counter, and reads as 0.
    ("smi", "unknown", "stands at 0 since reset, also after 1 s"),
];

/// And on QEMU.
const QEMU: &[(&str, &str, &str)] = &[
    ("bare_machine", "warning", "QEMU (TCG) is beneath Linux"),
    ("svm", "ok", "on all 4 CPUs"),
    ("svm_firmware", "ok", "on all 4 CPUs"),
    ("npt", "ok", "on all 4 CPUs"),
    ("svm_asids", "ok", "16 of them"),
    ("svm_nrip_save", "warning", "on no CPU"),
    ("svm_decode_assists", "warning", "on no CPU"),
    ("x2apic", "warning", "on no CPU"),
    ("iommu", "ok", "VT-d, 1 unit"),
    ("interrupt_remapping", "ok", "offered"),
    ("smi", "unknown", "the processor does not count them"),
];

/// Rows at the least, and those of them that Gaol needs: fewer on a CPU with SVM.
const fn least_rows(platform: Platform) -> (usize, usize) {
    match platform {
        Platform::Bochs | Platform::Kvm => (60, 45),
        Platform::Qemu => (45, 18),
    }
}

/// Without it nobody can see whether the kernel is locked down.
fn mount_security(context: &mut Context) -> Result<()> {
    context
        .machine
        .check("mount -t securityfs securityfs /sys/kernel/security")?;
    Ok(())
}

/// The row of the virtualization extension.
fn extension(context: &Context) -> &'static str {
    match context.platform.vendor() {
        Vendor::Svm => "svm",
        _ => "vmx",
    }
}

/// Runs the check, which has to end with this status; returns its answer.
fn check(context: &mut Context, arguments: &str, status: i32) -> Result<Value> {
    let command = format!("gaol hardware check --json {arguments}");
    let output = context.machine.run(&command)?;
    ensure!(
        output.status == status,
        "`{command}` ended with status {}: {}",
        output.status,
        output.stdout.trim()
    );
    serde_json::from_str(output.stdout.trim())
        .with_context(|| format!("`{command}` says {:?}", output.stdout))
}

/// Status and finding of a row.
fn row<'a>(answer: &'a Value, key: &str) -> Result<(&'a str, &'a str)> {
    let rows = answer["rows"].as_array().context("there are no rows")?;
    let row = rows.iter().find(|row| row["key"] == key);
    let row = row.with_context(|| format!("there is no row {key}"))?;
    let text = |name: &str| row[name].as_str().context("a row is not of text");
    Ok((text("status")?, text("finding")?))
}

/// Asserts what rows say: key, status, and words of the finding.
fn says(answer: &Value, expected: &[(&str, &str, &str)]) -> Result<()> {
    for (key, status, words) in expected {
        let (found, finding) = row(answer, key)?;
        ensure!(
            found == *status && finding.contains(words),
            "{key} is {found} ({finding}), not {status} ({words})"
        );
    }
    Ok(())
}

fn emulated(context: &mut Context) -> Result<()> {
    let answer = check(context, "--smi-seconds 1", 0)?;
    ensure!(
        answer["verdict"] == "runs",
        "the verdict is {}",
        answer["verdict"]
    );
    says(
        &answer,
        &[
            ("cpus", "ok", "4, "),
            ("cpus_online", "ok", "4 of 4"),
            ("gaol", "ok", "module not loaded"),
            ("cpu_features_equal", "ok", "on all 4 CPUs"),
            ("cr4_known", "ok", "PAE"),
            ("cr4_cet", "ok", "not used"),
            ("apic", "ok", "0xfee00000"),
            ("cache_allocation", "warning", "none"),
            ("memory_bandwidth", "warning", "none"),
            ("other_hypervisors", "ok", ""),
            ("lockdown", "ok", "none"),
            ("module_signatures", "ok", "accepted"),
            ("contiguous_memory", "ok", ""),
            ("memory_blocks", "ok", "128 MiB"),
            ("hyper_threading", "ok", ""),
        ],
    )?;
    says(
        &answer,
        match context.platform {
            Platform::Bochs | Platform::Kvm => BOCHS,
            Platform::Qemu => QEMU,
        },
    )?;
    let rows = answer["rows"].as_array().context("there are no rows")?;
    let needed = rows.iter().filter(|row| row["needed"] == true);
    ensure!(
        needed.clone().count() > least_rows(context.platform).1
            && needed.clone().all(|row| row["status"] == "ok"),
        "something that is needed is not well: {answer}"
    );
    let text = context
        .machine
        .check("gaol hardware check --smi-seconds 0")?;
    ensure!(
        text.starts_with("STATUS ") && text.ends_with("\nGaol can run on this machine.\n"),
        "the table is {text}"
    );
    context.machine.linux_is_well(CPUS)
}

fn collection(context: &mut Context) -> Result<()> {
    // Until then Linux still measures its clock, and the answer changes when it has done so.
    context.machine.check(
        "for round in $(seq 300); do \
         grep -q early /sys/devices/system/clocksource/clocksource0/current_clocksource || break; \
         sleep 0.2; done",
    )?;
    context
        .machine
        .gaol("config collect -o /tmp/machine.tar --force")?;
    let live = check(context, "--smi-seconds 0", 0)?;
    let collected = check(context, "--root /tmp/machine.tar", 0)?;
    let rows = |answer: &Value| -> Result<Vec<Value>> {
        let rows = answer["rows"].as_array().context("there are no rows")?;
        Ok(rows
            .iter()
            .filter(|row| row["key"] != "smi")
            .cloned()
            .collect())
    };
    let (live, collected_rows) = (rows(&live)?, rows(&collected)?);
    for (one, other) in live.iter().zip(&collected_rows) {
        ensure!(one == other, "the machine: {one}; its collection: {other}");
    }
    ensure!(
        live.len() == collected_rows.len() && live.len() > least_rows(context.platform).0,
        "{} rows and {}",
        live.len(),
        collected_rows.len()
    );
    let of_smi = match context.platform {
        Platform::Bochs | Platform::Kvm => "this is a collection",
        Platform::Qemu => "the processor does not count them",
    };
    says(&collected, &[("smi", "unknown", of_smi)])
}

fn remedies(context: &mut Context) -> Result<()> {
    context.machine.check("rmmod msr")?;
    let answer = check(context, "--smi-seconds 0", 1)?;
    ensure!(answer["error"]["reason"] == "hardware_unknown", "{answer}");
    let firmware = format!("{}_firmware", extension(context));
    says(&answer, &[(&firmware, "unknown", "/dev/cpu/0/msr")])?;
    let remedy = answer["error"]["remedy"].as_str().unwrap_or_default();
    ensure!(remedy.contains("modprobe msr"), "the remedy is {remedy}");
    context.machine.check("insmod /lib/modules/msr.ko")?;
    let online = "/sys/devices/system/cpu/cpu3/online";
    context.machine.check(&format!("echo 0 >{online}"))?;
    let answer = check(context, "--smi-seconds 0", 1)?;
    ensure!(answer["error"]["reason"] == "hardware_missing", "{answer}");
    says(&answer, &[("cpus_online", "missing", "CPU 3 not online")])?;
    let remedy = answer["error"]["remedy"].as_str().unwrap_or_default();
    let command = remedy.split_once(": ").map(|(_, command)| command);
    context
        .machine
        .check(command.context("the remedy names no command")?)?;
    check(context, "--smi-seconds 0", 0)?;
    context.machine.linux_is_well(CPUS)
}

fn enables(context: &mut Context) -> Result<()> {
    check(context, "--smi-seconds 0", 0)?;
    context.machine.check("insmod /root/gaol.ko")?;
    context.machine.gaol(&format!("enable {SYSTEM}"))?;
    let answer = check(context, "--smi-seconds 0", 0)?;
    says(&answer, &[("gaol", "ok", "enabled")])?;
    ensure!(
        row(&answer, extension(context)).is_err(),
        "what is hidden was looked for"
    );
    context.disable()?;
    let answer = check(context, "--smi-seconds 0", 0)?;
    says(
        &answer,
        &[
            ("gaol", "ok", "not enabled"),
            (extension(context), "ok", "on all 4 CPUs"),
        ],
    )?;
    context.machine.check("rmmod gaol")?;
    context.machine.linux_is_well(CPUS)
}

fn without_vmx(context: &mut Context) -> Result<()> {
    let answer = check(context, "--smi-seconds 1", 1)?;
    ensure!(answer["error"]["reason"] == "hardware_missing", "{answer}");
    says(
        &answer,
        &[
            ("cpus", "ok", "4, "),
            ("bare_machine", "warning", "QEMU (TCG) is beneath Linux"),
            ("vmx", "missing", "the host does not offer it"),
            ("iommu", "ok", "VT-d, 1 unit"),
            ("interrupt_remapping", "ok", "offered"),
        ],
    )?;
    // No controls are looked for where there is no VMX.
    ensure!(row(&answer, "vmx_ept").is_err(), "{answer}");
    let output = context
        .machine
        .refused("hardware check --smi-seconds 0", "VMX")?;
    ensure!(
        output.stdout.contains("STATUS ")
            && output
                .stdout
                .contains("Gaol cannot run on this machine as it is: missing: VMX"),
        "it says {}",
        output.stdout
    );
    Ok(())
}
