//! Machines that are made up: good ones, to be spoilt one thing at a time.

use std::collections::BTreeMap;

use crate::Source;
use crate::hardware::facts::msr;
use crate::hardware::requirements::{
    BASIC, EPT_VPID, MISC, SECONDARY, TRUE_ENTRY, TRUE_EXIT, TRUE_PIN, TRUE_PRIMARY,
};
use crate::hardware::{Facts, Reading, Row, Smi, SmiCount, check};
use crate::source::{CpuidDump, CpuidEntry, Tree};

pub(crate) const CPUS: u32 = 4;

/// A machine with four CPUs.
#[derive(Clone)]
pub(crate) struct Machine {
    pub cpuid: Vec<CpuidDump>,
    pub msrs: Vec<BTreeMap<u32, Option<u64>>>,
    pub tree: Tree,
    /// Of each CPU, before and after.
    pub smis: Option<Vec<(Reading<u64>, Reading<u64>)>>,
}

/// What the capability MSRs of a Haswell say, secondary controls of newer ones added.
pub(crate) fn capability(register: u32) -> u64 {
    match register {
        BASIC => 0x00d8_1000_0000_002b,
        MISC => 0x2004_01e0,
        0x486 => 0x8000_0021,
        0x488 => 0x2000,
        msr::VMX_CR4_FIXED1 => 0x0077_3fff,
        SECONDARY => 0x0417_ffff_0000_0000,
        EPT_VPID => 0x0f01_0633_4141,
        TRUE_PIN => 0x0000_007f_0000_0016,
        TRUE_PRIMARY => 0xf7f9_fffe_0400_6172,
        TRUE_EXIT => 0x007f_ffff_0003_6dfb,
        TRUE_ENTRY => 0x0000_ffff_0000_11fb,
        _ => 0,
    }
}

pub(crate) const FLAGS: &str = "fpu vme de pse tsc msr pae mce cx8 apic sep mtrr pge pat fxsr sse2 vmx x2apic tsc_deadline_timer xsave avx fsgsbase smep smap pcid umip pku ospke";

fn words(text: &str) -> [u32; 3] {
    let word = |at: usize| u32::from_le_bytes(text.as_bytes()[at..at + 4].try_into().unwrap());
    [word(0), word(4), word(8)]
}

impl Machine {
    fn new(vendor: &str, model: &str) -> Self {
        let mut machine = Self {
            cpuid: vec![CpuidDump::default(); CPUS as usize],
            msrs: vec![BTreeMap::new(); CPUS as usize],
            tree: Tree::default(),
            smis: None,
        };
        let [one, two, three] = words(vendor);
        machine.leaf(0, 0, [0x20, one, three, two]);
        let mut model = model.as_bytes().to_vec();
        model.resize(48, 0);
        for (leaf, part) in (0x8000_0002..).zip(model.as_chunks::<16>().0) {
            let word = |at: usize| u32::from_le_bytes(part[at..at + 4].try_into().unwrap());
            machine.leaf(leaf, 0, [word(0), word(4), word(8), word(12)]);
        }
        for cpu in 0..CPUS {
            for (leaf, subleaf, entry) in [
                (
                    1,
                    0,
                    [
                        0x306c3,
                        cpu << 24 | 0x0010_0800,
                        0x7fba_fbff & !0x24,
                        0xbfeb_fbff,
                    ],
                ),
                (6, 0, [0x75, 2, 9, 0]),
                (7, 0, [0, 0x0000_87ab, 0x0000_001c, 0x2000_0000]),
                (0xb, 0, [1, 1, 0x100, cpu]),
                (0xb, 1, [4, 4, 0x201, cpu]),
                (0xd, 0, [7, 0x340 + cpu, 0x340, 0]),
                (0xd, 1, [1, 0, 0, 0]),
                (0x10, 0, [0, 0b1010, 0, 0]),
                (0x10, 1, [10, 0, 4, 15]),
                (0x10, 3, [89, 0, 4, 7]),
                (0x15, 0, [2, 176, 24_000_000, 0]),
                (0x8000_0001, 0, [0, 0, 0x21, 0x2c10_0800]),
                (0x8000_0007, 0, [0, 0, 0, 0x100]),
            ] {
                machine.one(cpu, leaf, subleaf, entry);
            }
        }
        // As dumps are taken: reserved subleaves that are not all zeros are in them.
        for cpu in 1..CPUS {
            machine.one(cpu, 0xb, 2, [0, 0, 2, cpu]);
        }
        machine.msr(msr::APIC_BASE, 0xfee0_0d00);
        machine.msr(msr::TSC_ADJUST, 0);
        machine.msr(msr::ARCH_CAPABILITIES, 0x40);
        machine.linux();
        machine
    }

    /// A good one of Intel's.
    pub fn intel() -> Self {
        let mut machine = Self::new("GenuineIntel", "Intel(R) Example(R) CPU @ 2.11GHz");
        machine.leaf_of(1, 0, |entry| entry.ecx |= 1 << 5);
        machine.msr(msr::SMI_COUNT, 7);
        machine.msr(msr::FEATURE_CONTROL, 5);
        for register in 0x480..=0x490 {
            machine.msr(register, capability(register));
        }
        machine.file("/sys/firmware/acpi/tables/DMAR", dmar(1, 2));
        for unit in ["dmar0", "dmar1"] {
            machine.file(
                &format!("/sys/class/iommu/{unit}/intel-iommu/ecap"),
                "f050da\n",
            );
        }
        machine
    }

    /// A good one of AMD's.
    pub fn amd() -> Self {
        let mut machine = Self::new("AuthenticAMD", "AMD Example 16-Core Processor");
        machine.leaf_of(0x8000_0001, 0, |entry| entry.ecx |= 1 << 2);
        machine.leaf(0x8000_000a, 0, [1, 0x8000, 0, 0x0001_1cff]);
        machine.msr(msr::EFER, 0xd01);
        machine.msr(msr::VM_CR, 0);
        machine.file("/proc/cpuinfo", cpuinfo(&FLAGS.replace("vmx", "svm")));
        machine.file("/sys/firmware/acpi/tables/IVRS", ivrs());
        machine.file("/sys/class/iommu/ivhd0/amd-iommu/cap", "40f\n");
        machine
    }

    fn linux(&mut self) {
        let cpus = "/sys/devices/system/cpu";
        for (path, text) in [
            (
                "/proc/cmdline",
                "BOOT_IMAGE=/vmlinuz root=/dev/sda1 quiet\n",
            ),
            ("/proc/sys/kernel/nmi_watchdog", "0\n"),
            ("/proc/sys/kernel/osrelease", "6.0.0\n"),
            ("/proc/sys/vm/compact_memory", ""),
            (
                "/sys/kernel/security/lockdown",
                "[none] integrity confidentiality\n",
            ),
            ("/sys/module/module/parameters/sig_enforce", "N\n"),
            (
                "/sys/devices/system/clocksource/clocksource0/current_clocksource",
                "tsc\n",
            ),
            ("/sys/devices/system/memory/block_size_bytes", "8000000\n"),
            ("/sys/devices/system/memory/memory0/valid_zones", "none\n"),
            ("/sys/devices/system/cpu/present", "0-3\n"),
            ("/sys/devices/system/cpu/online", "0-3\n"),
            (
                "/sys/devices/system/cpu/cpuidle/current_driver",
                "intel_idle\n",
            ),
            ("/sys/devices/system/cpu/cpu0/cpuidle/state0/name", "POLL\n"),
            ("/sys/devices/system/cpu/cpu0/cpuidle/state0/latency", "0\n"),
            ("/sys/devices/system/cpu/cpu0/cpuidle/state0/disable", "0\n"),
            ("/sys/devices/system/cpu/cpu0/cpuidle/state1/name", "C1\n"),
            ("/sys/devices/system/cpu/cpu0/cpuidle/state1/latency", "2\n"),
            ("/sys/devices/system/cpu/cpu0/cpuidle/state1/disable", "0\n"),
            ("/sys/devices/system/cpu/cpu0/cpuidle/state2/name", "C6\n"),
            (
                "/sys/devices/system/cpu/cpu0/cpuidle/state2/latency",
                "133\n",
            ),
            ("/sys/devices/system/cpu/cpu0/cpuidle/state2/disable", "1\n"),
            ("/sys/devices/system/cpu/intel_pstate/no_turbo", "1\n"),
        ] {
            self.file(path, text);
        }
        self.file("/proc/cpuinfo", cpuinfo(FLAGS));
        for cpu in 0..CPUS {
            let siblings = format!("{cpus}/cpu{cpu}/topology/thread_siblings_list");
            self.file(&siblings, format!("{cpu}\n"));
            let governor = format!("{cpus}/cpu{cpu}/cpufreq/scaling_governor");
            self.file(&governor, "performance\n");
        }
        let counted = |cpu: u64| (Ok(7 + cpu), Ok(7 + cpu));
        self.smis = Some((0..u64::from(CPUS)).map(counted).collect());
    }

    /// Sets an MSR on all CPUs.
    pub fn msr(&mut self, register: u32, value: u64) {
        for msrs in &mut self.msrs {
            msrs.insert(register, Some(value));
        }
    }

    /// Sets an MSR on a CPU.
    pub fn msr_of(&mut self, cpu: u32, register: u32, value: u64) {
        self.msrs[cpu as usize].insert(register, Some(value));
    }

    /// Sets what CPUID says on all CPUs.
    pub fn leaf(&mut self, leaf: u32, subleaf: u32, values: [u32; 4]) {
        for cpu in 0..CPUS {
            self.one(cpu, leaf, subleaf, values);
        }
    }

    /// Sets what CPUID says on a CPU.
    pub fn one(&mut self, cpu: u32, leaf: u32, subleaf: u32, [eax, ebx, ecx, edx]: [u32; 4]) {
        self.cpuid[cpu as usize].insert(CpuidEntry {
            leaf,
            subleaf,
            eax,
            ebx,
            ecx,
            edx,
        });
    }

    /// Changes what CPUID says on all CPUs.
    pub fn leaf_of(&mut self, leaf: u32, subleaf: u32, change: impl Fn(&mut CpuidEntry)) {
        for cpuid in &mut self.cpuid {
            let mut entry = cpuid.get(leaf, subleaf);
            change(&mut entry);
            cpuid.insert(entry);
        }
    }

    /// Changes what CPUID says on one CPU.
    pub fn leaf_of_one(&mut self, cpu: u32, leaf: u32, change: impl Fn(&mut CpuidEntry)) {
        let cpuid = &mut self.cpuid[cpu as usize];
        let mut entry = cpuid.get(leaf, 0);
        change(&mut entry);
        cpuid.insert(entry);
    }

    pub fn file(&mut self, path: &str, content: impl Into<Vec<u8>>) {
        self.tree.insert_file(path, content);
    }

    /// As a collection.
    pub fn collection(&self) -> Tree {
        let mut tree = self.tree.clone();
        for (cpu, (cpuid, msrs)) in self.cpuid.iter().zip(&self.msrs).enumerate() {
            tree.insert_file(&format!("/gaol/cpu/{cpu}/cpuid"), cpuid.to_string());
            let line = |(index, value): (&u32, &Option<u64>)| match value {
                Some(value) => format!("{index:08x} {value:016x}\n"),
                None => format!("{index:08x} -\n"),
            };
            let text: String = msrs.iter().map(line).collect();
            tree.insert_file(&format!("/gaol/cpu/{cpu}/msr"), text);
        }
        tree
    }

    pub fn facts(&self) -> Facts {
        let mut facts = Facts::read(&Source::tree(self.collection()));
        if let Some(smis) = &self.smis {
            let counts = smis.iter().zip(0..).map(|((before, after), cpu)| SmiCount {
                cpu,
                before: before.clone(),
                after: after.clone(),
            });
            facts.smi = Smi::Measured {
                seconds: 10,
                counts: counts.collect(),
            };
        }
        facts
    }

    pub fn rows(&self) -> Vec<Row> {
        check(&self.facts())
    }

    /// The row of this key.
    #[track_caller]
    pub fn row(&self, key: &str) -> Row {
        let rows = self.rows();
        let found = rows.iter().find(|row| row.key == key);
        found
            .unwrap_or_else(|| panic!("there is no row {key}"))
            .clone()
    }
}

pub(crate) fn cpuinfo(flags: &str) -> String {
    (0..CPUS)
        .map(|cpu| format!("processor\t: {cpu}\nflags\t\t: {flags}\n\n"))
        .collect()
}

/// A table of ACPI with its header and its checksum.
pub(crate) fn acpi(signature: &str, body: &[u8]) -> Vec<u8> {
    let mut table = signature.as_bytes().to_vec();
    table.extend((36 + body.len() as u32).to_le_bytes());
    table.extend([1, 0]);
    table.extend(b"GAOL  EXAMPLE ");
    table.resize(36, 0);
    table.extend(body);
    let sum = table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    table[9] = 0u8.wrapping_sub(sum);
    table
}

/// DMAR with these flags and so many units.
pub(crate) fn dmar(flags: u8, units: u64) -> Vec<u8> {
    let mut body = vec![38, flags];
    body.resize(12, 0);
    for unit in 0..units {
        body.extend([0, 0, 16, 0, 0, 0, 0, 0]);
        body.extend((0xfed9_0000 + (unit << 12)).to_le_bytes());
    }
    acpi("DMAR", &body)
}

fn ivrs() -> Vec<u8> {
    let mut body = vec![0; 12];
    for kind in [0x10, 0x11] {
        body.extend([kind, 0, 24, 0]);
        body.resize(body.len() + 20, 0);
    }
    acpi("IVRS", &body)
}
