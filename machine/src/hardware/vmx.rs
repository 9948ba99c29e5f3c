//! Intel's extension: whether the processor has it, the firmware lets it be used, and it has all that Gaol needs.

use super::Facts;
use super::facts::{Cpu, Feature, Reading, Register, has, is_absent_register, msr};
use super::requirements::{
    self, EPT_VPID, REQUIREMENTS, Requirement, SECONDARY, fits_page, is_write_back,
};
use super::row::{Census, Group, Question, Row};

pub(super) const VMX: Feature = Feature(1, 0, Register::Ecx, 5);
pub(super) const HAS_ARCH_CAPABILITIES: Feature = Feature(7, 0, Register::Edx, 29);

/// IA32_FEATURE_CONTROL (SDM, "IA32_FEATURE_CONTROL MSR").
const LOCKED: u64 = 1 << 0;
const OUTSIDE_SMX: u64 = 1 << 2;

const OTHER_CPU: &str = "Use another CPU; in a virtual machine, let the host offer it.";

const EXTENSION: Question = Group::Virtualization.needed(
    "vmx",
    "VMX",
    "It confines Linux and cells to what is theirs.",
);
const FIRMWARE: Question = Group::Virtualization.needed(
    "vmx_firmware",
    "VMX in the firmware",
    "The firmware can disable VMX, and lock that until the next reset.",
);
const SIZE: Question = Group::Virtualization.needed(
    "vmx_vmcs_size",
    "VMCS of one page",
    "The hypervisor has a page for it.",
);
const MEMORY_TYPE: Question = Group::Virtualization.needed(
    "vmx_vmcs_memory",
    "VMCS in write-back memory",
    "The hypervisor's memory is mapped write-back.",
);
const GIGABYTE: Question = Group::Virtualization.wanted(
    "ept_1g",
    "EPT: pages of 1 GiB",
    "Larger pages save tables and TLB entries.",
);
const MULTIHIT: Question = Group::Virtualization.wanted(
    "itlb_multihit",
    "no iTLB multihit erratum",
    "With it, a guest could bring the CPU down by large executable pages, so cells get small ones.",
);

/// Controls that the hypervisor turns on for features that Linux may use, and where those features are told.
const FOLLOWERS: [(Question, u32, Feature); 4] = [
    (
        Group::Virtualization.needed(
            "vmx_rdtscp",
            "enable RDTSCP (secondary)",
            "Linux uses RDTSCP, and would get an exception.",
        ),
        3,
        Feature(0x8000_0001, 0, Register::Edx, 27),
    ),
    (
        Group::Virtualization.needed(
            "vmx_invpcid",
            "enable INVPCID (secondary)",
            "Linux uses INVPCID, and would get an exception.",
        ),
        12,
        Feature(7, 0, Register::Ebx, 10),
    ),
    (
        Group::Virtualization.needed(
            "vmx_xsaves",
            "enable XSAVES (secondary)",
            "Linux uses XSAVES, and would get an exception.",
        ),
        20,
        Feature(0xd, 1, Register::Eax, 3),
    ),
    (
        Group::Virtualization.needed(
            "vmx_user_wait",
            "enable user wait (secondary)",
            "Linux uses TPAUSE and UMWAIT, and would get an exception.",
        ),
        26,
        Feature(7, 0, Register::Ecx, 5),
    ),
];

pub(super) fn rows(facts: &Facts, rows: &mut Vec<Row>) {
    let census = facts.census_of(VMX);
    rows.push(match &census {
        Census::Not { lacking, all } if lacking.len() == *all => EXTENSION.bad(
            match super::processor::is_nested(facts) {
                true => "the host does not offer it to this virtual machine",
                false => "the CPU itself has none",
            },
            match super::processor::is_nested(facts) {
                true => "Let the host offer nested virtualization (KVM: kvm_intel nested=1 and `-cpu host`).",
                false => "Use another machine: no setting brings it.",
            },
        ),
        _ => EXTENSION.on_all(&census, "Look for a setting of the firmware that turns it off on some cores."),
    });
    if matches!(census, Census::Not { .. } | Census::Unknown(_)) {
        return;
    }
    rows.push(firmware(facts));
    rows.push(SIZE.on_all(
        &facts.census(|cpu| Ok(fits_page(cpu.msr(requirements::BASIC)?))),
        OTHER_CPU,
    ));
    rows.push(MEMORY_TYPE.on_all(
        &facts.census(|cpu| Ok(is_write_back(cpu.msr(requirements::BASIC)?))),
        OTHER_CPU,
    ));
    for requirement in &REQUIREMENTS {
        let question =
            Group::Virtualization.needed(requirement.key, requirement.name, requirement.reason);
        let census = facts.census(|cpu| meets(cpu, requirement));
        rows.push(question.on_all(&census, OTHER_CPU));
    }
    for (question, control, feature) in &FOLLOWERS {
        rows.push(follower(facts, question, *control, *feature));
    }
    let has_gigabyte = facts.census(|cpu| Ok(capability(cpu, EPT_VPID)? >> 17 & 1 != 0));
    rows.push(GIGABYTE.on_all(&has_gigabyte, "Nothing: pages of 2 MiB are used."));
    let is_free = facts.census(|cpu| {
        let has_register = has(
            cpu.cpuid.as_ref().map_err(Clone::clone)?,
            HAS_ARCH_CAPABILITIES,
        );
        Ok(has_register && cpu.msr(msr::ARCH_CAPABILITIES)? >> 6 & 1 != 0)
    });
    rows.push(match is_free {
        Census::Not { .. } => MULTIHIT.warning(
            "the processor does not say that it is free of it",
            "Nothing: executable memory of cells is mapped in pages of 4 KiB.",
        ),
        census => MULTIHIT.on_all(&census, ""),
    });
}

fn firmware(facts: &Facts) -> Row {
    let is_usable = facts.census(|cpu| {
        let control = cpu.msr(msr::FEATURE_CONTROL)?;
        Ok(control & LOCKED == 0 || control & OUTSIDE_SMX != 0)
    });
    match is_usable {
        Census::All(number) => {
            let is_open = |cpu: &Cpu| matches!(cpu.msr(msr::FEATURE_CONTROL), Ok(value) if value & LOCKED == 0);
            FIRMWARE.ok(match facts.cpus.iter().any(is_open) {
                true => "left open: gaol.ko enables and locks it".to_owned(),
                false => format!("enabled and locked {}", super::row::on_all(number)),
            })
        }
        Census::Not { lacking, all } => FIRMWARE.bad(
            match lacking.len() == all {
                true => "the CPU has VMX, but the firmware has it disabled and locked".to_owned(),
                false => format!(
                    "the firmware has it disabled and locked on {}",
                    super::row::cpus(&lacking)
                ),
            },
            "Turn \"Intel Virtualization Technology\" on in the firmware setup, and boot again.",
        ),
        Census::Unknown(problem) => FIRMWARE.unknown(&problem),
    }
}

/// A capability MSR: one that the processor does not have promises nothing.
fn capability(cpu: &Cpu, register: u32) -> Reading<u64> {
    match cpu.msr(register) {
        Err(problem) if is_absent_register(&problem) => Ok(0),
        reading => reading,
    }
}

fn meets(cpu: &Cpu, requirement: &Requirement) -> Reading<bool> {
    Ok(requirement.is_met(capability(cpu, requirement.register)?))
}

fn follower(facts: &Facts, question: &Question, control: u32, feature: Feature) -> Row {
    match facts.census_of(feature) {
        Census::Not { lacking, all } if lacking.len() == all => {
            question.ok("not needed: the CPU has no such instruction")
        }
        Census::Unknown(problem) => question.unknown(&problem),
        _ => {
            let allowed =
                facts.census(|cpu| Ok(capability(cpu, SECONDARY)? >> (32 + control) & 1 != 0));
            question.on_all(&allowed, OTHER_CPU)
        }
    }
}
