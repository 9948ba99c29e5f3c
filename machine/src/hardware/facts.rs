//! The facts that the check judges, and how they are read: from a running machine or a collection alike.
//!
//! Invariant: every reading is either a value or the problem with what should have held it.

use std::collections::{BTreeMap, BTreeSet};

use crate::problem::{Problem, optional};
use crate::source::{CpuidDump, Source};

use super::parse::{cpu_flags, cpu_list, number, switch, word};
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

/// A sleep state that Linux uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdleState {
    /// Its name, such as C6.
    pub name: String,
    /// Microseconds that waking up takes at most.
    pub latency: u64,
    /// Whether it is turned off.
    pub is_disabled: bool,
}

/// The module of a hypervisor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// Its name.
    pub name: &'static str,
    /// The number of its users; none when it is part of the kernel.
    pub users: Reading<Option<u64>>,
}

/// What Linux says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Linux {
    /// Whether Gaol is enabled; none when its module is not loaded.
    pub gaol: Reading<Option<bool>>,
    /// Modules of other hypervisors.
    pub hypervisors: Reading<Vec<Loaded>>,
    /// Whether KVM takes VMX or SVM as soon as it is loaded; none in kernels that never do.
    pub kvm_takes_at_load: Reading<Option<bool>>,
    /// Lockdown; none when the kernel has no such thing, or securityfs is not mounted.
    pub lockdown: Reading<Option<String>>,
    /// Whether only signed modules are loaded; none in kernels without signatures.
    pub wants_signatures: Reading<Option<bool>>,
    /// Secure Boot; none without EFI.
    pub secure_boot: Reading<Option<bool>>,
    /// Parameters of the kernel command line that mean something to Gaol.
    pub parameters: Reading<Vec<String>>,
    /// The NMI watchdog; none in kernels without.
    pub nmi_watchdog: Reading<Option<bool>>,
    /// The clock that Linux uses.
    pub clock_source: Reading<Option<String>>,
    /// Whether memory blocks can be taken offline: size in bytes; none when not.
    pub memory_block: Reading<Option<u64>>,
    /// Whether the kernel was built to take memory back: isolation of pages.
    pub has_isolation: bool,
    /// Whether the kernel was built to move pages together.
    pub has_compaction: bool,
    /// The driver of sleep states; none without.
    pub idle_driver: Reading<Option<String>>,
    /// The sleep states of the first CPU.
    pub idle_states: Reading<Vec<IdleState>>,
    /// Turbo; none when no driver tells.
    pub turbo: Reading<Option<bool>>,
    /// Flags of each CPU in /proc/cpuinfo.
    pub flags: Reading<BTreeMap<u32, BTreeSet<String>>>,
    /// The kernel's build configuration; none when it is not installed, or does not matter on this processor.
    pub build: Reading<Option<String>>,
}

impl Linux {
    /// Whether Gaol is enabled and therefore hides what it uses.
    #[must_use]
    pub fn gaol_is_enabled(&self) -> bool {
        self.gaol == Ok(Some(true))
    }
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

const CPUS: &str = "/sys/devices/system/cpu";

/// Indirect branch tracking: the flag that Linux shows whether it was built to use it or not.
const BUILD_DECIDES: &str = "ibt";

/// Reads a text and makes something of it.
pub(super) fn text<T>(
    source: &Source,
    path: &str,
    parse: impl Fn(&str, &str) -> Reading<T>,
) -> Reading<T> {
    parse(path, &source.read_text(path)?)
}

fn optional_text<T>(
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

impl Linux {
    fn read(source: &Source, first: Option<u32>) -> Self {
        let flags = text(source, "/proc/cpuinfo", cpu_flags);
        let memory = "/sys/devices/system/memory";
        let kernel = "/proc/sys/kernel";
        Self {
            gaol: optional_text(source, "/sys/devices/gaol/enabled", switch),
            hypervisors: hypervisors(source),
            kvm_takes_at_load: optional_text(
                source,
                "/sys/module/kvm/parameters/enable_virt_at_load",
                switch,
            ),
            lockdown: optional_text(source, "/sys/kernel/security/lockdown", chosen),
            wants_signatures: optional_text(
                source,
                "/sys/module/module/parameters/sig_enforce",
                switch,
            ),
            secure_boot: secure_boot(source),
            parameters: crate::linux::parameters(source),
            nmi_watchdog: optional_text(source, &format!("{kernel}/nmi_watchdog"), switch),
            clock_source: optional_text(
                source,
                "/sys/devices/system/clocksource/clocksource0/current_clocksource",
                word,
            ),
            memory_block: optional_text(
                source,
                &format!("{memory}/block_size_bytes"),
                super::parse::hexadecimal,
            ),
            has_isolation: has_isolation(source, memory),
            has_compaction: source.exists("/proc/sys/vm/compact_memory"),
            idle_driver: optional_text(source, &format!("{CPUS}/cpuidle/current_driver"), word),
            idle_states: idle_states(source, first.unwrap_or(0)),
            turbo: turbo(source),
            build: match &flags {
                Ok(flags) if flags.values().any(|flags| flags.contains(BUILD_DECIDES)) => {
                    build(source)
                }
                _ => Ok(None),
            },
            flags,
        }
    }
}

/// Modules of other hypervisors that are loaded or part of the kernel, with the number of their users.
fn hypervisors(source: &Source) -> Reading<Vec<Loaded>> {
    const MODULES: &str = "/sys/module";
    const HYPERVISORS: [&str; 6] = [
        "kvm_intel",
        "kvm_amd",
        "vboxdrv",
        "vmmon",
        "jailhouse",
        "acrn",
    ];
    if !source.exists(MODULES) {
        return Err(Problem::new(
            crate::Kind::Missing,
            MODULES,
            "it is not there",
            "Mount /sys; in a collection, collect it anew.",
        ));
    }
    let loaded = HYPERVISORS.into_iter().filter_map(|name| {
        let path = format!("{MODULES}/{name}");
        source.exists(&path).then(|| Loaded {
            name,
            users: optional_text(source, &format!("{path}/refcnt"), number),
        })
    });
    Ok(loaded.collect())
}

/// The word in brackets: "none [integrity] confidentiality".
fn chosen(path: &str, text: &str) -> Reading<String> {
    let inside = text
        .split_once('[')
        .and_then(|(_, rest)| rest.split_once(']'))
        .map(|(word, _)| word);
    match inside {
        Some(word) if !word.is_empty() => super::parse::word(path, word),
        _ => Err(Problem::garbage(path, "no word in it is in brackets")),
    }
}

/// UEFI specification, "Globally Defined Variables": a byte behind four of attributes.
fn secure_boot(source: &Source) -> Reading<Option<bool>> {
    let path = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";
    let Some(bytes) = optional(source.read(path))? else {
        return Ok(None);
    };
    match bytes.as_slice() {
        [_, _, _, _, value @ 0..=1] => Ok(Some(*value == 1)),
        _ => Err(Problem::garbage(path, "it is not a variable of one byte")),
    }
}

/// The kernel offers the zones of a block only where it can take memory back.
fn has_isolation(source: &Source, memory: &str) -> bool {
    let first = source.list(memory).ok().and_then(|names| {
        let mut blocks = names.into_iter();
        blocks.find(|name| {
            name.strip_prefix("memory")
                .is_some_and(|rest| rest.bytes().all(|byte| byte.is_ascii_digit()))
        })
    });
    first.is_some_and(|name| source.exists(&format!("{memory}/{name}/valid_zones")))
}

fn turbo(source: &Source) -> Reading<Option<bool>> {
    let off = format!("{CPUS}/intel_pstate/no_turbo");
    match optional_text(source, &off, switch)? {
        Some(off) => Ok(Some(!off)),
        None => optional_text(source, &format!("{CPUS}/cpufreq/boost"), switch),
    }
}

fn idle_states(source: &Source, cpu: u32) -> Reading<Vec<IdleState>> {
    let directory = format!("{CPUS}/cpu{cpu}/cpuidle");
    let Some(names) = optional(source.list(&directory))? else {
        return Ok(Vec::new());
    };
    let states = names.iter().filter(|name| name.starts_with("state"));
    states
        .map(|state| {
            let path = |file: &str| format!("{directory}/{state}/{file}");
            Ok(IdleState {
                name: text(source, &path("name"), word)?,
                latency: text(source, &path("latency"), number)?,
                is_disabled: text(source, &path("disable"), number)? != 0,
            })
        })
        .collect()
}

fn build(source: &Source) -> Reading<Option<String>> {
    let Some(release) = optional_text(source, "/proc/sys/kernel/osrelease", word)? else {
        return Ok(None);
    };
    if release.contains('/') {
        let path = "/proc/sys/kernel/osrelease";
        return Err(Problem::garbage(path, "it is not the name of a release"));
    }
    optional(source.read_text(&format!("/boot/config-{release}")))
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
