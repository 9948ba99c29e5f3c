//! What Linux was told and does that stands in Gaol's way.

use super::Facts;
use super::facts::Reading;
use super::linux_facts::Loaded;
use super::row::{Group, Question, Row};

const GAOL: Question = Group::Linux.wanted(
    "gaol",
    "Gaol",
    "While it is enabled it hides from Linux what it uses.",
);
const HYPERVISORS: Question = Question {
    is_needed: true,
    ..Group::Linux.wanted(
        "other_hypervisors",
        "no other hypervisor in Linux",
        "There can be one hypervisor at a time.",
    )
};
const LOCKDOWN: Question = Group::Linux.wanted(
    "lockdown",
    "kernel lockdown",
    "With it, Linux loads signed modules only, and gaol.ko as it is built has no signature.",
);
const SIGNATURES: Question = Group::Linux.wanted(
    "module_signatures",
    "unsigned modules",
    "gaol.ko as it is built has no signature.",
);
const WATCHDOG: Question = Group::Linux.wanted(
    "nmi_watchdog",
    "NMI watchdog off",
    "Each of its NMIs is an exit, and may be merged with one of the hypervisor's.",
);
const COMMAND_LINE: Question = Group::Linux.wanted(
    "command_line",
    "kernel command line",
    "Some parameters work against Gaol.",
);

const SIGN: &str =
    "Sign gaol.ko with a key that is enrolled, or turn Secure Boot off in the firmware setup.";

/// Whether Gaol is enabled.
pub(super) fn gaol(facts: &Facts, rows: &mut Vec<Row>) {
    rows.push(match &facts.linux.gaol {
        Err(problem) => GAOL.unknown(problem),
        Ok(None) => GAOL.ok("module not loaded"),
        Ok(Some(false)) => GAOL.ok("module loaded, not enabled"),
        Ok(Some(true)) => GAOL
            .ok("enabled: this machine has what it needs of VMX or SVM, and Linux cannot see it"),
    });
}

pub(super) fn rows(facts: &Facts, rows: &mut Vec<Row>) {
    rows.push(hypervisors(facts));
    rows.push(lockdown(facts));
    rows.push(signatures(facts));
    rows.push(match &facts.linux.nmi_watchdog {
        Err(problem) => WATCHDOG.unknown(problem),
        Ok(None) => WATCHDOG.ok("the kernel has none"),
        Ok(Some(false)) => WATCHDOG.ok("off"),
        Ok(Some(true)) => WATCHDOG.bad(
            "on",
            "Turn it off: echo 0 > /proc/sys/kernel/nmi_watchdog, or boot Linux with `nmi_watchdog=0`.",
        ),
    });
    rows.push(command_line(facts));
}

/// How a module of a hypervisor stands.
fn one_hypervisor(loaded: &Loaded, takes_at_load: &Reading<Option<bool>>) -> Row {
    let Loaded { name, users } = loaded;
    let unload = format!("Stop virtual machines and unload it: modprobe -r {name}");
    let is_kvm = name.starts_with("kvm");
    let users = match users {
        Ok(users) => users,
        Err(problem) => return HYPERVISORS.unknown(problem),
    };
    match (users, takes_at_load) {
        (Some(1..), _) => HYPERVISORS.bad(
            format!("{name} is in use: {} users", users.unwrap_or(0)),
            unload,
        ),
        (_, Err(problem)) if is_kvm => HYPERVISORS.unknown(problem),
        (None, Ok(Some(true))) if is_kvm => HYPERVISORS.bad(
            format!("{name} is part of the kernel, and takes VMX or SVM at boot"),
            "Boot Linux with `kvm.enable_virt_at_load=0`.",
        ),
        (Some(_), Ok(Some(true))) if is_kvm => HYPERVISORS.bad(
            format!("{name} is loaded, and takes VMX or SVM when it is loaded"),
            unload,
        ),
        (None, _) => HYPERVISORS.warning(
            format!("{name} is part of the kernel: whether it is in use can't be seen"),
            "Stop virtual machines.",
        ),
        (Some(_), _) => HYPERVISORS.warning(
            format!("{name} is loaded and not in use"),
            format!(
                "Start no virtual machine while Gaol is enabled, or unload it: modprobe -r {name}"
            ),
        ),
    }
}

fn hypervisors(facts: &Facts) -> Row {
    let linux = &facts.linux;
    let loaded = match &linux.hypervisors {
        Ok(loaded) => loaded,
        Err(problem) => return HYPERVISORS.unknown(problem),
    };
    let rows = loaded
        .iter()
        .map(|loaded| one_hypervisor(loaded, &linux.kvm_takes_at_load));
    let rows: Vec<Row> = rows.collect();
    let severity = |row: &Row| {
        use super::Status;
        match row.status {
            Status::Ok => 0,
            Status::Warning => 1,
            Status::Unknown => 2,
            Status::Missing => 3,
        }
    };
    rows.into_iter()
        .max_by_key(severity)
        .unwrap_or_else(|| HYPERVISORS.ok("no module of one is loaded"))
}

fn secure_boot(facts: &Facts) -> &'static str {
    match facts.linux.secure_boot {
        Ok(Some(true)) => " (Secure Boot is on)",
        _ => "",
    }
}

/// Whether the module has been loaded, which settles what Linux thinks of its signature.
fn is_loaded(facts: &Facts) -> bool {
    matches!(facts.linux.gaol, Ok(Some(_)))
}

fn lockdown(facts: &Facts) -> Row {
    match &facts.linux.lockdown {
        Err(problem) => LOCKDOWN.unknown(problem),
        Ok(None) => LOCKDOWN.undecided(
            "not known: there is no /sys/kernel/security/lockdown",
            "Mount it: mount -t securityfs securityfs /sys/kernel/security",
        ),
        Ok(Some(mode)) if mode == "none" => LOCKDOWN.ok("none"),
        Ok(Some(mode)) if is_loaded(facts) => {
            LOCKDOWN.ok(format!("{mode}, and gaol.ko was loaded all the same"))
        }
        Ok(Some(mode)) => LOCKDOWN.missing(format!("{mode}{}", secure_boot(facts)), SIGN),
    }
}

fn signatures(facts: &Facts) -> Row {
    match &facts.linux.wants_signatures {
        Err(problem) => SIGNATURES.unknown(problem),
        Ok(None) => SIGNATURES.ok("accepted: the kernel knows no signatures"),
        Ok(Some(false)) => SIGNATURES.ok("accepted"),
        Ok(Some(true)) if is_loaded(facts) => {
            SIGNATURES.ok("refused, but gaol.ko was loaded all the same")
        }
        Ok(Some(true)) => SIGNATURES.missing(
            format!("refused (module.sig_enforce){}", secure_boot(facts)),
            SIGN,
        ),
    }
}

/// What is wrong with a parameter, if something is.
fn objection(word: &str) -> Option<&'static str> {
    Some(match word {
        "idle=poll" => {
            "Linux' idle CPUs heat the package, and take turbo and power from the cells'"
        }
        "nolapic" | "disableapic" => "the hypervisor needs the local APIC",
        "noapic" => "device interrupts reach CPU 0 only",
        "nosmp" | "maxcpus=0" | "maxcpus=1" => "Linux uses one CPU, and all have to be online",
        "notsc" | "tsc=unstable" => "cells tell the time by the TSC",
        "intel_iommu=off" | "amd_iommu=off" | "iommu=off" | "intremap=off" => {
            "Linux' own devices are not confined"
        }
        "acpi=off" | "acpi=ht" => "what the machine has is read from ACPI's tables",
        "nox2apic" => "Linux' interrupts cost more exits",
        "mem_encrypt=on" => "encrypted memory can't be given to cells",
        _ => return None,
    })
}

fn command_line(facts: &Facts) -> Row {
    let words = match &facts.linux.parameters {
        Ok(words) => words,
        Err(problem) => return COMMAND_LINE.unknown(problem),
    };
    let found = words
        .iter()
        .filter_map(|word| Some((word, objection(word)?)));
    let found: Vec<(&String, &str)> = found.collect();
    if found.is_empty() {
        return COMMAND_LINE.ok("nothing in it works against Gaol");
    }
    let told: Vec<String> = found
        .iter()
        .map(|(word, why)| format!("`{word}`: {why}"))
        .collect();
    let words: Vec<&str> = found.iter().map(|(word, _)| word.as_str()).collect();
    COMMAND_LINE.bad(
        told.join("; "),
        format!("Boot Linux without `{}`.", words.join(" ")),
    )
}
