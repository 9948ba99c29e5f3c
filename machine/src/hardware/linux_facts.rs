//! What Linux says of itself in /proc and /sys, and how it is read.
//!
//! Invariant: as of [`super::facts`].

use std::collections::{BTreeMap, BTreeSet};

use crate::problem::{Problem, optional};
use crate::source::Source;

use super::facts::{CPUS, Reading, optional_text, text};
use super::parse::{cpu_flags, number, switch, word};

/// Indirect branch tracking: the flag that Linux shows whether it was built to use it or not.
const BUILD_DECIDES: &str = "ibt";

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

impl Linux {
    pub(super) fn read(source: &Source, first: Option<u32>) -> Self {
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

/// The word in brackets: of three words, `none [integrity] confidentiality`.
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
