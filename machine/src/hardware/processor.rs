//! The CPUs: how many, whether they are alike, and the features that the hypervisor takes for granted.

use crate::problem::Problem;
use crate::source::{CpuidDump, CpuidEntry};

use super::Facts;
use super::facts::{Feature, Register, has, vendor};
use super::row::{Group, Question, Row, cpus};

/// CPUID tells that a hypervisor is beneath (SDM and APM reserve the bit for that).
const HYPERVISOR: Feature = Feature(1, 0, Register::Ecx, 31);

const COUNT: Question = Group::Processor.needed(
    "cpus",
    "CPUs",
    "CPU 0 stays with Linux, and a cell has at least one of its own.",
);
const ONLINE: Question = Group::Processor.needed(
    "cpus_online",
    "all CPUs online",
    "The hypervisor takes over all CPUs at once; one that is left out could undo it.",
);
const NESTING: Question = Question {
    key: "bare_machine",
    name: "Linux on the bare machine",
    group: Group::Virtualization,
    is_needed: false,
    reason: "Another hypervisor beneath decides what Gaol may use, and when a cell runs.",
};
const EXTENSION: Question = Question {
    key: "extension",
    name: "VMX or SVM",
    group: Group::Virtualization,
    is_needed: true,
    reason: "One of them confines Linux and cells to what is theirs.",
};
const EQUAL: Question = Question {
    is_needed: false,
    ..Group::Processor.needed(
        "cpu_features_equal",
        "CPU features equal",
        "A cell sees the features of the CPUs that it is given.",
    )
};

/// Features that the hypervisor uses without asking.
const GRANTED: [(Question, Feature); 4] = [
    (
        Group::Processor.needed(
            "no_execute",
            "no-execute pages",
            "No memory of the hypervisor is both writable and executable.",
        ),
        Feature(0x8000_0001, 0, Register::Edx, 20),
    ),
    (
        Group::Processor.needed(
            "mtrr",
            "MTRRs",
            "They say which memory may be cached, and the hypervisor's tables follow them.",
        ),
        Feature(1, 0, Register::Edx, 12),
    ),
    (
        Group::Processor.needed(
            "pat",
            "page attribute table",
            "Linux and cells each have their own.",
        ),
        Feature(1, 0, Register::Edx, 16),
    ),
    (
        Group::Processor.needed(
            "fxsr",
            "FXSAVE and FXRSTOR",
            "What a CPU held is cleared when it changes hands.",
        ),
        Feature(1, 0, Register::Edx, 24),
    ),
];

/// How many there are, and which Linux does not use.
pub(super) fn count(facts: &Facts, rows: &mut Vec<Row>) {
    let most = gaol_abi::MAX_CPUS;
    rows.push(match &facts.present {
        Err(problem) => COUNT.unknown(problem),
        Ok(present) if present.len() > most => COUNT.bad(
            format!("{}, and Gaol supports {most}", present.len()),
            "Boot Linux with `possible_cpus=` to leave some out.",
        ),
        Ok(present) if present.len() < 2 => COUNT.bad(
            format!("{}: none is left for a cell", present.len()),
            "Use a machine with more CPUs; look for `nosmp` and `maxcpus=` on the kernel command line.",
        ),
        Ok(present) => COUNT.ok(match facts.first_cpuid() {
            Ok(cpuid) => format!("{}, {}", present.len(), model(cpuid)),
            Err(_) => present.len().to_string(),
        }),
    });
    rows.push(match (&facts.present, &facts.online) {
        (Err(problem), _) | (_, Err(problem)) => ONLINE.unknown(problem),
        (Ok(present), Ok(online)) => {
            let missing = present.iter().filter(|cpu| !online.contains(cpu));
            let missing: Vec<u32> = missing.copied().collect();
            match (facts.linux.gaol_is_enabled(), missing.first()) {
                (_, None) => ONLINE.ok(format!("{} of {}", online.len(), present.len())),
                (true, Some(_)) => ONLINE.ok(format!(
                    "{} of {}: Gaol is enabled, and cells may have the others",
                    online.len(),
                    present.len()
                )),
                (false, Some(first)) => ONLINE.bad(
                    format!("{} not online", cpus(&missing)),
                    format!("Bring it online: echo 1 > /sys/devices/system/cpu/cpu{first}/online"),
                ),
            }
        }
    });
}

/// The vendor and the name of the model.
fn model(cpuid: &CpuidDump) -> String {
    let leaves = [0x8000_0002, 0x8000_0003, 0x8000_0004].map(|leaf| cpuid.get(leaf, 0));
    let bytes: Vec<u8> = leaves
        .iter()
        .flat_map(|entry| [entry.eax, entry.ebx, entry.ecx, entry.edx])
        .flat_map(u32::to_le_bytes)
        .take_while(|&byte| byte != 0)
        .collect();
    let name = String::from_utf8_lossy(&bytes);
    let name: Vec<&str> = name.split_whitespace().collect();
    let name = name.join(" ");
    match name.is_empty() || name.chars().any(|letter| !(' '..='~').contains(&letter)) {
        true => vendor(cpuid),
        false => name,
    }
}

/// Whether Linux runs in a virtual machine.
pub(super) fn is_nested(facts: &Facts) -> bool {
    facts
        .first_cpuid()
        .is_ok_and(|cpuid| has(cpuid, HYPERVISOR))
}

/// What is beneath Linux.
pub(super) fn nesting(facts: &Facts, rows: &mut Vec<Row>) {
    rows.push(match facts.first_cpuid() {
        Err(problem) => NESTING.unknown(&problem),
        Ok(cpuid) if has(cpuid, HYPERVISOR) => NESTING.warning(
            format!("no: {} is beneath Linux (nested)", host(cpuid)),
            "Good for a trial; for times that hold, run Linux on the bare machine.",
        ),
        Ok(_) => NESTING.ok("no hypervisor shows itself"),
    });
}

/// Name of the hypervisor that offers leaf 0x40000000.
fn host(cpuid: &CpuidDump) -> String {
    let entry = cpuid.get(0x4000_0000, 0);
    let bytes = [entry.ebx, entry.ecx, entry.edx].map(u32::to_le_bytes);
    let name = String::from_utf8_lossy(bytes.as_flattened()).into_owned();
    let name = name.trim_end_matches('\0').trim();
    match name {
        "KVMKVMKVM" => "KVM".to_owned(),
        "TCGTCGTCGTCG" => "QEMU (TCG)".to_owned(),
        "Microsoft Hv" => "Hyper-V".to_owned(),
        "VMwareVMware" => "VMware".to_owned(),
        "XenVMMXenVMM" => "Xen".to_owned(),
        name if name.is_empty() || name.chars().any(|it| !(' '..='~').contains(&it)) => {
            "a hypervisor".to_owned()
        }
        name => format!("a hypervisor ({name:?})"),
    }
}

/// A processor of a vendor that builds neither extension.
pub(super) fn foreign(facts: &Facts, rows: &mut Vec<Row>) {
    let name = facts.first_cpuid().map_or("?".to_owned(), vendor);
    rows.push(EXTENSION.bad(
        format!("neither, on this CPU of {name:?}"),
        "Use a machine with an Intel CPU.",
    ));
}

/// A processor that does not tell who it is.
pub(super) fn unreadable(problem: &Problem, rows: &mut Vec<Row>) {
    rows.push(EXTENSION.unknown(problem));
}

pub(super) fn rows(facts: &Facts, rows: &mut Vec<Row>) {
    for (question, feature) in &GRANTED {
        rows.push(question.on_all(&facts.census_of(*feature), "Use another CPU."));
    }
    rows.push(equality(facts));
}

/// An answer of CPUID without what has to differ between CPUs: numbers of the CPU itself, and sizes that follow what runs
/// on it at the moment. None for leaves that hold nothing else.
fn comparable(entry: &CpuidEntry) -> Option<CpuidEntry> {
    let mut entry = *entry;
    match (entry.leaf, entry.subleaf) {
        // APIC id.
        (1, _) => entry.ebx &= 0x00ff_ffff,
        // x2APIC id, and the number of the subleaf, which reserved ones repeat.
        (0xb | 0x1f | 0x8000_0026, _) => {
            entry.edx = 0;
            entry.ecx &= !0xff;
        }
        // Bytes for what is enabled in XCR0 and XSS.
        (0xd, 0 | 1) => entry.ebx = 0,
        // Frequencies, APIC and node ids, and what a hypervisor beneath says.
        (0x16 | 0x8000_001e | 0x4000_0000..=0x4fff_ffff, _) => return None,
        _ => {}
    }
    Some(entry)
}

fn comparables(cpuid: &CpuidDump) -> impl Iterator<Item = CpuidEntry> {
    cpuid.iter().filter_map(comparable)
}

/// The first leaf in which two CPUs differ.
fn difference(one: &CpuidDump, other: &CpuidDump) -> Option<u32> {
    let forth = comparables(one)
        .find(|entry| Some(*entry) != comparable(&other.get(entry.leaf, entry.subleaf)));
    let back = || {
        comparables(other)
            .find(|entry| Some(*entry) != comparable(&one.get(entry.leaf, entry.subleaf)))
    };
    forth.or_else(back).map(|entry| entry.leaf)
}

fn equality(facts: &Facts) -> Row {
    let first = match facts.first_cpuid() {
        Ok(cpuid) => cpuid,
        Err(problem) => return EQUAL.unknown(&problem),
    };
    let flags = match &facts.linux.flags {
        Ok(flags) => flags,
        Err(problem) => return EQUAL.unknown(problem),
    };
    let remedy =
        "Give a cell CPUs of one kind; update the firmware (microcode) when they should be alike.";
    let mut all = flags.iter();
    if let Some((one, has)) = all.next()
        && let Some((other, differ)) = all
            .map(|(cpu, other)| (cpu, has.symmetric_difference(other)))
            .map(|(cpu, differ)| (cpu, differ.map(String::as_str).collect::<Vec<_>>()))
            .find(|(_, differ)| !differ.is_empty())
    {
        let shown: Vec<&str> = differ.iter().take(5).copied().collect();
        let more = if differ.len() > shown.len() {
            ", …"
        } else {
            ""
        };
        let finding = format!(
            "CPU {one} and CPU {other} differ in {}{more}",
            shown.join(", ")
        );
        return EQUAL.bad(finding, remedy);
    }
    for cpu in &facts.cpus {
        match &cpu.cpuid {
            Err(problem) => return EQUAL.unknown(problem),
            Ok(cpuid) => {
                if let Some(leaf) = difference(first, cpuid) {
                    let number = facts.cpus.first().map_or(0, |cpu| cpu.number);
                    let finding = format!(
                        "CPU {number} and CPU {} differ in CPUID leaf {leaf:#x}",
                        cpu.number
                    );
                    return EQUAL.bad(finding, remedy);
                }
            }
        }
    }
    EQUAL.ok(super::row::on_all(facts.cpus.len()))
}
