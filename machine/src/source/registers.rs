//! What is in a processor's registers: CPUID and model-specific registers, live or as a collection's text.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use raw_cpuid::{CpuId, CpuIdResult};
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::problem::{Kind, Problem, SourceError};

/// The most leaves of a range, and the most subleaves of a leaf, that are asked for: no processor has so many.
const MAX_LEAVES: u32 = 0x80;
const MAX_SUBLEAVES: u32 = 64;

pub(super) fn cpuid_path(cpu: u32) -> String {
    format!("/gaol/cpu/{cpu}/cpuid")
}

pub(super) fn msr_path(cpu: u32) -> String {
    format!("/gaol/cpu/{cpu}/msr")
}

/// One answer of CPUID.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuidEntry {
    /// EAX before.
    pub leaf: u32,
    /// ECX before.
    pub subleaf: u32,
    /// EAX after.
    pub eax: u32,
    /// EBX after.
    pub ebx: u32,
    /// ECX after.
    pub ecx: u32,
    /// EDX after.
    pub edx: u32,
}

/// All that CPUID says on one CPU, the processor's serial number left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuidDump {
    /// By leaf and subleaf.
    entries: BTreeMap<(u32, u32), CpuidEntry>,
}

impl CpuidDump {
    /// Adds an answer, or replaces it.
    pub fn insert(&mut self, entry: CpuidEntry) {
        self.entries.insert((entry.leaf, entry.subleaf), entry);
    }

    /// The answer for a leaf and subleaf: zeros for what is not there, as the processor gives for reserved ones.
    #[must_use]
    pub fn get(&self, leaf: u32, subleaf: u32) -> CpuidEntry {
        let entry = self.entries.get(&(leaf, subleaf)).copied();
        entry.unwrap_or(CpuidEntry {
            leaf,
            subleaf,
            ..CpuidEntry::default()
        })
    }

    /// All answers, by leaf and subleaf.
    pub fn iter(&self) -> impl Iterator<Item = &CpuidEntry> {
        self.entries.values()
    }

    /// The same for those who read with `raw_cpuid`: pass it to [`CpuId::with_cpuid_reader`].
    pub fn reader(&self) -> impl Fn(u32, u32) -> CpuIdResult + Clone + '_ {
        move |leaf, subleaf| {
            let found = self.entries.get(&(leaf, subleaf)).copied();
            // Leaves without subleaves ignore ECX.
            let found = found.unwrap_or_else(|| match has_subleaves(leaf) {
                true => CpuidEntry::default(),
                false => self.get(leaf, 0),
            });
            CpuIdResult {
                eax: found.eax,
                ebx: found.ebx,
                ecx: found.ecx,
                edx: found.edx,
            }
        }
    }

    /// A view with names for most of what is in it.
    #[must_use]
    pub fn decoded(&self) -> CpuId<impl Fn(u32, u32) -> CpuIdResult + Clone + '_> {
        CpuId::with_cpuid_reader(self.reader())
    }

    /// Asks everything of `ask`.
    fn take(ask: impl Fn(u32, u32) -> CpuIdResult) -> Self {
        let mut dump = Self::default();
        for base in [0, 0x4000_0000, 0x8000_0000] {
            let first = ask(base, 0);
            let last = match first.eax.checked_sub(base) {
                Some(count) if count < MAX_LEAVES => first.eax,
                // The range of hypervisors holds anything when there is none.
                _ => continue,
            };
            for leaf in base..=last {
                // SDM, "CPUID—CPU Identification": leaf 3 is the processor's serial number, which is nobody's business.
                if leaf != 3 {
                    dump.take_leaf(leaf, &ask);
                }
            }
        }
        dump
    }

    fn take_leaf(&mut self, leaf: u32, ask: &impl Fn(u32, u32) -> CpuIdResult) {
        let subleaves = if has_subleaves(leaf) {
            MAX_SUBLEAVES
        } else {
            1
        };
        for subleaf in 0..subleaves {
            let CpuIdResult { eax, ebx, ecx, edx } = ask(leaf, subleaf);
            let has_more = match is_topology(leaf) {
                // Behind the last level, each still gives the number of the subleaf and the APIC id.
                true => ecx >> 8 & 0xff != 0,
                false => [eax, ebx, ecx, edx].iter().any(|&value| value != 0),
            };
            if subleaf == 0 || has_more {
                self.insert(CpuidEntry {
                    leaf,
                    subleaf,
                    eax,
                    ebx,
                    ecx,
                    edx,
                });
            }
        }
    }

    /// Reads a collection's text: lines of "leaf subleaf eax ebx ecx edx", all in hexadecimal digits.
    ///
    /// # Errors
    /// When a line is something else, or there is none.
    pub fn parse(path: &str, text: &str) -> Result<Self, SourceError> {
        let mut dump = Self::default();
        for (number, line) in text.lines().enumerate() {
            let words: Option<Vec<u32>> = line
                .split_whitespace()
                .map(|word| u32::from_str_radix(word, 16).ok())
                .collect();
            let Some(&[leaf, subleaf, eax, ebx, ecx, edx]) = words.as_deref() else {
                let what = format!("line {} is not six hexadecimal numbers", number + 1);
                return Err(Problem::garbage(path, what));
            };
            dump.insert(CpuidEntry {
                leaf,
                subleaf,
                eax,
                ebx,
                ecx,
                edx,
            });
        }
        match dump.entries.is_empty() {
            true => Err(Problem::garbage(path, "it is empty")),
            false => Ok(dump),
        }
    }
}

impl fmt::Display for CpuidDump {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for entry in self.entries.values() {
            writeln!(
                formatter,
                "{:08x} {:02x} {:08x} {:08x} {:08x} {:08x}",
                entry.leaf, entry.subleaf, entry.eax, entry.ebx, entry.ecx, entry.edx
            )?;
        }
        Ok(())
    }
}

/// Leaves whose answer depends on ECX (SDM, "CPUID—CPU Identification"; APM volume 3, "CPUID Feature Identification").
fn has_subleaves(leaf: u32) -> bool {
    matches!(
        leaf,
        4 | 7 | 0xb | 0xd | 0xf | 0x10 | 0x12 | 0x14 | 0x17 | 0x18 | 0x1a
            ..=0x1f | 0x20 | 0x23 | 0x24 | 0x8000_001d | 0x8000_0020 | 0x8000_0026
    )
}

/// Leaves with a level of the topology in each subleaf, and the level's type in bits 15:8 of ECX, 0 behind the last.
fn is_topology(leaf: u32) -> bool {
    matches!(leaf, 0xb | 0x1f | 0x8000_0026)
}

/// Asks a CPU of this machine, on a thread of its own that is bound to it.
pub(super) fn live_cpuid(cpu: u32) -> Result<CpuidDump, SourceError> {
    let subject = format!("CPUID of CPU {cpu}");
    let fail = |error: io::Error| {
        let remedy = "Take the CPU online, and let gaol run on all CPUs (cpusets, taskset).";
        Problem::from_io(subject.clone(), &error).with_remedy(remedy)
    };
    let number = usize::try_from(cpu).unwrap_or(usize::MAX);
    if number >= CpuSet::MAX_CPU {
        return Err(fail(io::ErrorKind::InvalidInput.into()));
    }
    let thread = std::thread::Builder::new().spawn(move || {
        let mut only = CpuSet::new();
        only.set(number);
        sched_setaffinity(None, &only)?;
        Ok::<_, rustix::io::Errno>(CpuidDump::take(raw_cpuid::native_cpuid::cpuid_count))
    });
    match thread.map_err(fail)?.join() {
        Ok(Ok(dump)) => Ok(dump),
        Ok(Err(error)) => Err(fail(error.into())),
        Err(_) => Err(fail(io::ErrorKind::Other.into())),
    }
}

/// Reads a register of this machine's; none when the processor does not have it.
pub(super) fn live_msr(cpu: u32, index: u32) -> Result<Option<u64>, SourceError> {
    let path = format!("/dev/cpu/{cpu}/msr");
    let device = File::open(&path).map_err(|error| {
        let problem = Problem::from_io(&path, &error);
        match problem.kind() {
            Kind::Missing => problem.with_remedy("Load the module that offers it: modprobe msr"),
            _ => problem,
        }
    })?;
    let mut value = [0; 8];
    match device.read_exact_at(&mut value, index.into()) {
        Ok(()) => Ok(Some(u64::from_le_bytes(value))),
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => {
            Ok(None)
        }
        Err(error) => Err(Problem::from_io(path, &error)),
    }
}

/// A collection's text: lines of "index value", in hexadecimal digits, "-" for registers that are not there.
pub(super) fn write_msrs(msrs: &BTreeMap<u32, Option<u64>>) -> String {
    let line = |(index, value): (&u32, &Option<u64>)| match value {
        Some(value) => format!("{index:08x} {value:016x}\n"),
        None => format!("{index:08x} -\n"),
    };
    msrs.iter().map(line).collect()
}

/// Finds a register in a collection's text; none when the processor does not have it.
pub(super) fn find_msr(path: &str, text: &str, index: u32) -> Result<Option<u64>, SourceError> {
    let mut found = None;
    for (number, line) in text.lines().enumerate() {
        let mut words = line.split_whitespace();
        let register = words
            .next()
            .and_then(|word| u32::from_str_radix(word, 16).ok());
        let value = match words.next() {
            Some("-") => Some(None),
            Some(word) => u64::from_str_radix(word, 16).ok().map(Some),
            None => None,
        };
        let (Some(register), Some(value), None) = (register, value, words.next()) else {
            let what = format!("line {} is not two hexadecimal numbers", number + 1);
            return Err(Problem::garbage(path, what));
        };
        if register == index {
            found = Some(value);
        }
    }
    found.ok_or_else(|| {
        Problem::new(
            Kind::Missing,
            path,
            format!("MSR {index:#x} was not collected"),
            "Collect it anew with this version of gaol.",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_of_the_topology_end_with_the_last() {
        let ask = |leaf, subleaf| match (leaf, subleaf) {
            (0, _) => [0xd, 0, 0, 0],
            // What a processor with APIC id 3 gives in all subleaves.
            (0xb, 0) => [1, 2, 0x100, 3],
            (0xb, 1) => [4, 8, 0x201, 3],
            (0xb, _) => [0, 0, subleaf, 3],
            (4, 0..3) => [1, 2, 3, 4],
            (0xd, 0 | 2 | 62) => [0x240, 0, 0, 0],
            (3, _) => [0x5e, 0x41, 0x17, 0x99],
            (0x4000_0000, _) => [0xffff_ffff, 0, 0, 0],
            (0x8000_0000, _) => [0x8000_0001, 0, 0, 0],
            _ => [0; 4],
        };
        let dump = CpuidDump::take(|leaf, subleaf| {
            let [eax, ebx, ecx, edx] = ask(leaf, subleaf);
            CpuIdResult { eax, ebx, ecx, edx }
        });
        let subleaves = |leaf| {
            let its = dump.iter().filter(|entry| entry.leaf == leaf);
            its.map(|entry| entry.subleaf).collect::<Vec<u32>>()
        };
        assert_eq!(subleaves(0xb), [0, 1]);
        assert_eq!(subleaves(4), [0, 1, 2]);
        assert_eq!(subleaves(0xd), [0, 2, 62]);
        assert_eq!(subleaves(7), [0]);
        assert_eq!(subleaves(0x8000_0001), [0]);
        // A serial number, and a range that is none.
        assert_eq!(subleaves(3), [0; 0]);
        assert_eq!(subleaves(0x4000_0000), [0; 0]);
    }
}
