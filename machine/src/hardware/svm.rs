//! AMD's extension: whether the processor has it, the firmware lets it be used, and it has what a hypervisor needs.

use super::Facts;
use super::facts::{Cpu, Feature, Reading, Register, msr};
use super::requirements::HAS_SVM;
use super::row::{Census, Group, Question, Row};

pub(super) const SVM: Feature = Feature(0x8000_0001, 0, Register::Ecx, 2);
const LEAF: u32 = 0x8000_000a;

/// VM_CR (APM volume 2, "VM_CR MSR").
const DISABLED: u64 = 1 << 4;
const LOCKED: u64 = 1 << 3;
/// EFER.SVME.
const IN_USE: u64 = 1 << 12;

const EXTENSION: Question = Group::Virtualization.needed(
    "svm",
    "SVM",
    "It confines Linux and cells to what is theirs.",
);
const FIRMWARE: Question = Group::Virtualization.needed(
    "svm_firmware",
    "SVM in the firmware",
    "The firmware can disable SVM, and lock that until the next reset.",
);
const FREE: Question = Group::Virtualization.needed(
    "svm_free",
    "SVM not in use",
    "There can be one hypervisor at a time.",
);
const NESTED_PAGING: Question =
    Group::Virtualization.needed("npt", "nested paging", "Nested page tables confine memory.");
const IDENTIFIERS: Question = Group::Virtualization.needed(
    "svm_asids",
    "address-space identifiers",
    "Linux and each cell have one of their own.",
);
const IMAGE: Question = Group::Virtualization.needed(
    "svm_image",
    "hypervisor for SVM",
    "Each extension has a hypervisor image of its own.",
);

/// Features that make exits shorter, by their bit in EDX.
const OPTIONAL: [(Question, u32); 5] = [
    (
        Group::Virtualization.wanted(
            "svm_nrip_save",
            "next RIP saved",
            "Without, the hypervisor decodes each instruction that exits.",
        ),
        3,
    ),
    (
        Group::Virtualization.wanted(
            "svm_clean_bits",
            "VMCB clean bits",
            "They shorten each entry of a guest.",
        ),
        5,
    ),
    (
        Group::Virtualization.wanted(
            "svm_flush_by_asid",
            "flush by ASID",
            "Without, a change to one cell empties the TLB of all.",
        ),
        6,
    ),
    (
        Group::Virtualization.wanted(
            "svm_decode_assists",
            "decode assists",
            "Without, the hypervisor fetches the instruction bytes itself.",
        ),
        7,
    ),
    (
        Group::Virtualization.wanted(
            "svm_virtual_gif",
            "virtual GIF",
            "A Linux in a cell could use it.",
        ),
        16,
    ),
];

pub(super) fn rows(facts: &Facts, rows: &mut Vec<Row>) {
    let census = facts.census_of(SVM);
    rows.push(match &census {
        Census::Not { lacking, all } if lacking.len() == *all => match super::processor::is_nested(
            facts,
        ) {
            true => EXTENSION.bad(
                "the host does not offer it to this virtual machine",
                "Let the host offer nested virtualization (KVM: kvm_amd nested=1 and `-cpu host`).",
            ),
            false => EXTENSION.bad(
                "the CPU itself has none",
                "Use another machine: no setting brings it.",
            ),
        },
        _ => EXTENSION.on_all(
            &census,
            "Look for a setting of the firmware that turns it off on some cores.",
        ),
    });
    if let Census::All(_) = census {
        rows.push(firmware(facts));
        rows.push(free(facts));
        rows.push(NESTED_PAGING.on_all(
            &facts.census_of(Feature(LEAF, 0, Register::Edx, 0)),
            "Use another CPU; in a virtual machine, let the host offer it.",
        ));
        rows.push(identifiers(facts));
        for (question, bit) in &OPTIONAL {
            let census = facts.census_of(Feature(LEAF, 0, Register::Edx, *bit));
            rows.push(question.on_all(&census, "Nothing: exits take a little longer."));
        }
    }
    rows.push(match HAS_SVM {
        true => IMAGE.ok("this version of Gaol has one"),
        false => IMAGE.bad(
            "this version of Gaol has none",
            "Use an Intel machine, or a later Gaol.",
        ),
    });
}

fn firmware(facts: &Facts) -> Row {
    let is_locked = |cpu: &Cpu| matches!(cpu.msr(msr::VM_CR), Ok(value) if value & LOCKED != 0);
    match facts.census(|cpu| Ok(cpu.msr(msr::VM_CR)? & DISABLED == 0)) {
        Census::Not { lacking, all } => {
            let how = match facts.cpus.iter().any(is_locked) {
                true => "disabled and locked",
                false => "disabled",
            };
            let finding = match lacking.len() == all {
                true => format!("the CPU has SVM, but the firmware has it {how}"),
                false => format!(
                    "the firmware has it {how} on {}",
                    super::row::cpus(&lacking)
                ),
            };
            FIRMWARE.bad(
                finding,
                "Turn \"SVM Mode\" on in the firmware setup, and boot again.",
            )
        }
        census => FIRMWARE.on_all(&census, ""),
    }
}

fn free(facts: &Facts) -> Row {
    match facts.census(|cpu| Ok(cpu.msr(msr::EFER)? & IN_USE == 0)) {
        Census::Not { lacking, .. } => FREE.bad(
            format!("EFER.SVME is set on {}", super::row::cpus(&lacking)),
            "Stop virtual machines and unload kvm_amd.",
        ),
        Census::All(_) => FREE.ok("EFER.SVME is clear"),
        Census::Unknown(problem) => FREE.unknown(&problem),
    }
}

fn identifiers(facts: &Facts) -> Row {
    let number = |cpu: &Cpu| -> Reading<u32> {
        Ok(cpu.cpuid.as_ref().map_err(Clone::clone)?.get(LEAF, 0).ebx)
    };
    // Number 0 is the host's.
    match facts.census(|cpu| Ok(number(cpu)? > 2)) {
        Census::All(_) => {
            let fewest = facts.cpus.iter().filter_map(|cpu| number(cpu).ok()).min();
            IDENTIFIERS.ok(format!("{} of them", fewest.unwrap_or(0)))
        }
        census => IDENTIFIERS.on_all(&census, "Use another CPU."),
    }
}
