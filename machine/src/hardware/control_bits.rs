//! Bits of CR4 that Linux has set. The hypervisor refuses those that it does not know, since it could not give them back.
//!
//! User space cannot read CR4. Linux sets each of these bits exactly when it shows the flag in /proc/cpuinfo; where that is
//! not so, the kernel's build configuration decides.

use super::Facts;
use super::facts::msr;
use super::requirements::CR4_KNOWN;
use super::row::{Census, Group, Question, Row};

const REASON: &str = "The hypervisor refuses control bits that it does not know: it could not give them back to Linux.";
const KNOWN: Question = Group::Processor.needed(
    "cr4_known",
    "control bits that Linux sets",
    "The hypervisor and VMX have to allow what Linux has set in CR4.",
);

/// Bits that Linux sets when it shows the flag.
const FLAGS: [(u32, &str); 10] = [
    (5, "pae"),
    (7, "pge"),
    (11, "umip"),
    (12, "la57"),
    (16, "fsgsbase"),
    (17, "pcid"),
    (18, "xsave"),
    (20, "smep"),
    (21, "smap"),
    (22, "ospke"),
];

/// How Linux comes to set a bit.
enum Sign {
    /// By this flag alone.
    Flag(&'static str),
    /// By this flag, when the kernel was built with this option.
    Built(&'static str, &'static str),
}

/// Bits that newer kernels set: question, bit, signs, and what turns it off.
const NEWER: [(Question, u32, &[Sign], &str); 5] = [
    (
        Group::Processor.needed("cr4_cet", "CR4.CET not set", REASON),
        23,
        &[
            Sign::Flag("user_shstk"),
            Sign::Built("ibt", "CONFIG_X86_KERNEL_IBT"),
        ],
        "Boot Linux with `nousershstk ibt=off`.",
    ),
    (
        Group::Processor.needed("cr4_pks", "CR4.PKS not set", REASON),
        24,
        &[Sign::Flag("pks")],
        "Boot Linux with `clearcpuid=pks`.",
    ),
    (
        Group::Processor.needed("cr4_uintr", "CR4.UINTR not set", REASON),
        25,
        &[Sign::Flag("uintr")],
        "Boot Linux with `clearcpuid=uintr`.",
    ),
    (
        Group::Processor.needed("cr4_lass", "CR4.LASS not set", REASON),
        27,
        &[Sign::Flag("lass")],
        "Boot Linux with `clearcpuid=lass`.",
    ),
    (
        Group::Processor.needed("cr4_fred", "CR4.FRED not set", REASON),
        32,
        &[Sign::Flag("fred")],
        "Boot Linux with `fred=off`.",
    ),
];

/// Whether the hypervisor knows a bit of CR4.
fn is_known(bit: u32) -> bool {
    CR4_KNOWN.iter().any(|(known, _)| *known == bit)
}

pub(super) fn rows(facts: &Facts, rows: &mut Vec<Row>) {
    rows.push(known(facts));
    for (question, bit, signs, remedy) in &NEWER {
        // Once the hypervisor knows a bit there is nothing to ask.
        if !is_known(*bit) {
            rows.push(newer(facts, question, *bit, signs, remedy));
        }
    }
}

fn known(facts: &Facts) -> Row {
    let flags = match facts.flags() {
        Ok(flags) => flags,
        Err(problem) => return KNOWN.unknown(&problem),
    };
    let set = FLAGS.iter().filter(|(_, flag)| flags.contains(flag));
    let set: Vec<u32> = set.map(|(bit, _)| *bit).collect();
    let names = set.iter().filter_map(|bit| {
        let mut known = CR4_KNOWN.iter().filter(|(known, _)| known == bit);
        known.next().map(|(_, name)| *name)
    });
    let names: Vec<&str> = names.collect();
    let all = |what: &str| format!("{what}: {}", names.join(", "));
    if let Some(bit) = set.iter().find(|bit| !is_known(**bit)) {
        return KNOWN.bad(
            format!("bit {bit} is set, and the hypervisor does not know it"),
            "Turn the feature off on the kernel command line, or use a newer Gaol.",
        );
    }
    let is_vmx = facts
        .cpus
        .iter()
        .any(|cpu| cpu.msr(msr::VMX_CR4_FIXED1).is_ok());
    if !is_vmx {
        return KNOWN.ok(all("all known"));
    }
    let wanted = set
        .iter()
        .fold(0u64, |mask, bit| mask | 1u64.checked_shl(*bit).unwrap_or(0));
    match facts.census(|cpu| Ok(wanted & !cpu.msr(msr::VMX_CR4_FIXED1)? == 0)) {
        Census::All(_) => KNOWN.ok(all("all known, and allowed in VMX")),
        Census::Not { .. } => KNOWN.bad(
            "VMX does not allow all of them in a guest (IA32_VMX_CR4_FIXED1)",
            "In a virtual machine, let the host hide the features that it can't offer to guests of its guests.",
        ),
        Census::Unknown(problem) => KNOWN.unknown(&problem),
    }
}

fn newer(facts: &Facts, question: &Question, bit: u32, signs: &[Sign], remedy: &str) -> Row {
    let flags = match facts.flags() {
        Ok(flags) => flags,
        Err(problem) => return question.unknown(&problem),
    };
    for sign in signs {
        match sign {
            Sign::Flag(flag) if flags.contains(flag) => {
                return question.bad(
                    format!("Linux uses \"{flag}\" and has set bit {bit}"),
                    remedy,
                );
            }
            Sign::Built(flag, option) if flags.contains(flag) => match &facts.linux.build {
                Ok(Some(build)) if !is_built(build, option) => {}
                Ok(Some(_)) => {
                    return question.bad(
                        format!("Linux uses \"{flag}\" ({option}) and has set bit {bit}"),
                        remedy,
                    );
                }
                Ok(None) | Err(_) => {
                    return question.undecided(
                        format!("the CPU has \"{flag}\"; whether Linux uses it can't be read: /boot has no configuration of this kernel"),
                        remedy,
                    );
                }
            },
            Sign::Flag(_) | Sign::Built(..) => {}
        }
    }
    question.ok("not used by Linux")
}

fn is_built(build: &str, option: &str) -> bool {
    build
        .lines()
        .any(|line| line.strip_prefix(option) == Some("=y"))
}
