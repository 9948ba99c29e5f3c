//! The facts that the check judges, and how they are read: from a running machine or a collection alike.
//!
//! Invariant: every reading is either a value or the problem with what should have held it.

use std::collections::{BTreeMap, BTreeSet};

use crate::problem::{Problem, optional};
use crate::source::{CpuidDump, Source};

use super::linux_facts::Linux;
use super::parse::{cpu_list, word};
use super::requirements::{self, CAPABILITIES, SECONDARY_CAPABILITIES};
use super::row::Census;

/// What was read, or why it was not.
pub type Reading<T> = Result<T, Problem>;

/// MSRs (SDM, volume 4; APM volume 2, "MSR Cross-Reference").
pub(super) mod msr {
    pub const APIC_BASE: u32 = 0x1b;
    pub const SMI_COUNT: u32 = 0x34;
    pub const FEATURE_CONTROL: u32 = 0x3a;
    pub const TSC_ADJUST: u32 = 0x3b;
    pub const ARCH_CAPABILITIES: u32 = 0x10a;
    pub const VMX_CR4_FIXED1: u32 = 0x489;
    pub const EFER: u32 = 0xc000_0080;
    pub const VM_CR: u32 = 0xc001_0114;
}

/// The two extensions that confine a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extension {
    Vmx,
    Svm,
}

/// A register of CPUID's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// A feature bit of CPUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Feature(pub u32, pub u32, pub Register, pub u32);

/// A CPU that is online.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// Linux' number.
    pub number: u32,
    /// What CPUID says on it.
    pub cpuid: Reading<CpuidDump>,
    /// Its MSRs, those that were asked for.
    pub msrs: BTreeMap<u32, Reading<u64>>,
    /// CPUs of the same core, itself included.
    pub siblings: Reading<Vec<u32>>,
    /// The frequency governor; none without frequency scaling.
    pub governor: Reading<Option<String>>,
}

/// System management interrupts of a CPU: before and after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SmiCount {
    /// The CPU.
    pub cpu: u32,
    /// The counter before, since reset.
    pub before: Reading<u64>,
    /// The counter after.
    pub after: Reading<u64>,
}

/// Whether system management interrupts were counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Smi {
    /// Not, for this reason.
    NotMeasured(&'static str),
    /// For so many seconds.
    Measured {
        /// How long.
        seconds: u64,
        /// By CPU.
        counts: Vec<SmiCount>,
    },
}

/// All that is judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// CPUs that are there.
    pub present: Reading<Vec<u32>>,
    /// CPUs that Linux uses.
    pub online: Reading<Vec<u32>>,
    /// The CPUs that are online.
    pub cpus: Vec<Cpu>,
    /// What Linux says of itself.
    pub linux: Linux,
    /// What the firmware and Linux say of IOMMUs.
    pub iommu: super::iommu::Iommu,
    /// System management interrupts.
    pub smi: Smi,
}

pub(super) const CPUS: &str = "/sys/devices/system/cpu";

/// Reads a text and makes something of it.
pub(super) fn text<T>(
    source: &Source,
    path: &str,
    parse: impl Fn(&str, &str) -> Reading<T>,
) -> Reading<T> {
    parse(path, &source.read_text(path)?)
}

pub(super) fn optional_text<T>(
    source: &Source,
    path: &str,
    parse: impl Fn(&str, &str) -> Reading<T>,
) -> Reading<Option<T>> {
    optional(text(source, path, parse))
}

/// Whether a processor has no such register, as opposed to: it can't be asked.
pub(super) fn is_absent_register(problem: &Problem) -> bool {
    problem.is_missing() && problem.subject().starts_with("MSR ")
}

impl Cpu {
    fn read(source: &Source, number: u32) -> Self {
        let mut cpu = Self {
            number,
            cpuid: source.cpuid(number),
            msrs: BTreeMap::new(),
            siblings: text(
                source,
                &format!("{CPUS}/cpu{number}/topology/thread_siblings_list"),
                cpu_list,
            ),
            governor: optional_text(
                source,
                &format!("{CPUS}/cpu{number}/cpufreq/scaling_governor"),
                word,
            ),
        };
        for index in cpu.wanted_registers() {
            cpu.msrs.insert(index, source.msr(number, index));
        }
        // These exist only where another says so.
        let has_secondary = match cpu.msrs.get(&requirements::TRUE_PRIMARY) {
            Some(Ok(value)) => value >> 63 != 0,
            Some(Err(_)) => true,
            None => false,
        };
        if has_secondary {
            for index in SECONDARY_CAPABILITIES {
                cpu.msrs.insert(index, source.msr(number, index));
            }
        }
        cpu
    }

    /// The registers to ask for: those that a processor of this kind has.
    fn wanted_registers(&self) -> Vec<u32> {
        let mut wanted = vec![msr::APIC_BASE];
        let Ok(cpuid) = &self.cpuid else {
            return wanted;
        };
        if vendor(cpuid) == "GenuineIntel" {
            wanted.push(msr::SMI_COUNT);
        }
        if has(cpuid, super::time::HAS_ADJUST) {
            wanted.push(msr::TSC_ADJUST);
        }
        if has(cpuid, super::vmx::HAS_ARCH_CAPABILITIES) {
            wanted.push(msr::ARCH_CAPABILITIES);
        }
        if has(cpuid, super::vmx::VMX) {
            wanted.push(msr::FEATURE_CONTROL);
            wanted.extend(CAPABILITIES);
        }
        if has(cpuid, super::svm::SVM) {
            wanted.extend([msr::EFER, msr::VM_CR]);
        }
        wanted
    }

    /// An MSR: a problem when it was not asked for.
    pub(super) fn msr(&self, index: u32) -> Reading<u64> {
        let not_asked = || {
            Err(Problem::new(
                crate::Kind::Missing,
                format!("MSR {index:#x} of CPU {}", self.number),
                "the processor does not have it",
                "Nothing: it is a property of the processor.",
            ))
        };
        self.msrs.get(&index).cloned().unwrap_or_else(not_asked)
    }
}

/// Whether CPUID has the bit.
pub(super) fn has(cpuid: &CpuidDump, feature: Feature) -> bool {
    let Feature(leaf, subleaf, register, bit) = feature;
    let entry = cpuid.get(leaf, subleaf);
    let value = match register {
        Register::Eax => entry.eax,
        Register::Ebx => entry.ebx,
        Register::Ecx => entry.ecx,
        Register::Edx => entry.edx,
    };
    value.checked_shr(bit).unwrap_or(0) & 1 != 0
}

/// The vendor's name, as CPUID spells it.
pub(super) fn vendor(cpuid: &CpuidDump) -> String {
    let entry = cpuid.get(0, 0);
    let bytes = [entry.ebx, entry.edx, entry.ecx].map(u32::to_le_bytes);
    let name = String::from_utf8_lossy(bytes.as_flattened()).into_owned();
    match name.chars().all(|letter| (' '..='~').contains(&letter)) {
        true => name,
        false => "?".to_owned(),
    }
}

impl Facts {
    /// Reads everything through `source`.
    #[must_use]
    pub fn read(source: &Source) -> Self {
        let present = text(source, &format!("{CPUS}/present"), cpu_list);
        let online = text(source, &format!("{CPUS}/online"), cpu_list);
        let numbers = match (&online, &present) {
            (Ok(numbers), _) | (Err(_), Ok(numbers)) => numbers.clone(),
            (Err(_), Err(_)) => vec![0],
        };
        let linux = Linux::read(source, numbers.first().copied());
        Self {
            present,
            online,
            cpus: numbers
                .into_iter()
                .map(|number| Cpu::read(source, number))
                .collect(),
            linux,
            iommu: super::iommu::Iommu::read(source),
            smi: Smi::NotMeasured(match source.is_live() {
                true => "not measured",
                false => "not measured: this is a collection",
            }),
        }
    }

    /// Counts system management interrupts for so many seconds; `wait` lets one pass. Of a collection nothing is counted.
    pub fn count_smis(&mut self, source: &Source, seconds: u64, mut wait: impl FnMut(u64)) {
        let read = |cpu: u32| source.msr(cpu, msr::SMI_COUNT);
        let counts = |facts: &Self| facts.cpus.iter().any(|cpu| cpu.msr(msr::SMI_COUNT).is_ok());
        if !source.is_live() || seconds == 0 || !counts(self) {
            return;
        }
        let numbers: Vec<u32> = self.cpus.iter().map(|cpu| cpu.number).collect();
        let before: Vec<Reading<u64>> = numbers.iter().map(|&cpu| read(cpu)).collect();
        (0..seconds).for_each(&mut wait);
        let counts = numbers.iter().zip(before);
        self.smi = Smi::Measured {
            seconds,
            counts: counts
                .map(|(&cpu, before)| SmiCount {
                    cpu,
                    before,
                    after: read(cpu),
                })
                .collect(),
        };
    }

    /// Which extension a processor of this vendor has; none of a vendor that builds neither.
    pub(super) fn extension(&self) -> Reading<Option<Extension>> {
        Ok(match self.first_cpuid()? {
            cpuid if has(cpuid, super::vmx::VMX) => Some(Extension::Vmx),
            cpuid if has(cpuid, super::svm::SVM) => Some(Extension::Svm),
            cpuid => match vendor(cpuid).as_str() {
                "GenuineIntel" | "CentaurHauls" | "  Shanghai  " => Some(Extension::Vmx),
                "AuthenticAMD" | "HygonGenuine" => Some(Extension::Svm),
                _ => None,
            },
        })
    }

    /// CPUID of the first CPU.
    pub(super) fn first_cpuid(&self) -> Reading<&CpuidDump> {
        match self.cpus.first().map(|cpu| &cpu.cpuid) {
            Some(Ok(cpuid)) => Ok(cpuid),
            Some(Err(problem)) => Err(problem.clone()),
            None => Err(Problem::garbage(
                format!("{CPUS}/online"),
                "it names no CPU",
            )),
        }
    }

    /// Which CPUs have something.
    pub(super) fn census(&self, has: impl Fn(&Cpu) -> Reading<bool>) -> Census {
        let mut lacking = Vec::new();
        let mut problem = None;
        for cpu in &self.cpus {
            match has(cpu) {
                Ok(true) => {}
                Ok(false) => lacking.push(cpu.number),
                Err(why) => problem = problem.or(Some(why)),
            }
        }
        let all = self.cpus.len();
        match problem {
            _ if !lacking.is_empty() => Census::Not { lacking, all },
            Some(problem) => Census::Unknown(problem),
            None => match self.first_cpuid() {
                Err(problem) if all == 0 => Census::Unknown(problem),
                _ => Census::All(all),
            },
        }
    }

    /// Which CPUs have a feature bit.
    pub(super) fn census_of(&self, feature: Feature) -> Census {
        self.census(|cpu| Ok(has(cpu.cpuid.as_ref().map_err(Clone::clone)?, feature)))
    }

    /// The flags that Linux found on any CPU.
    pub(super) fn flags(&self) -> Reading<BTreeSet<&str>> {
        let flags = self.linux.flags.as_ref().map_err(Clone::clone)?;
        Ok(flags.values().flatten().map(String::as_str).collect())
    }
}
