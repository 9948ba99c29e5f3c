//! Processors: who they are, what they share, and what they offer for Gaol.
//!
//! Invariant: processors are sorted by Linux' number, and domains are named by the lowest number in them.

use std::collections::{BTreeMap, BTreeSet};

use crate::problem::{Kind, Problem, optional};
use crate::source::{CpuidDump, Source};
use crate::span::{number, number_list};

const DIRECTORY: &str = "/sys/devices/system/cpu";
const NODES: &str = "/sys/devices/system/node";
/// SDM, "Model-Specific Registers": SMIs since reset. AMD has no such count.
const MSR_SMI_COUNT: u32 = 0x34;

/// What virtualizes the processors' guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Virtualization {
    /// Intel VT-x.
    Vmx,
    /// AMD-V.
    Svm,
}

/// A logical processor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Processor {
    /// Linux' number, which configurations use.
    pub id: u32,
    /// APIC id, all 32 bits where there is x2APIC; none while the CPU is offline.
    pub apic_id: Option<u32>,
    /// Whether Linux runs on it. What follows is not known, and zero or none, while it does not.
    pub online: bool,
    /// Number of the package (socket).
    pub package: u32,
    /// Number of the core in the package.
    pub core: u32,
    /// The other logical processors of the same core, by Linux' numbers.
    pub siblings: Vec<u32>,
    /// The lowest number of those that share the second-level cache; none when no such cache is told.
    pub l2: Option<u32>,
    /// The lowest number of those that share the third-level cache; none when no such cache is told.
    pub l3: Option<u32>,
    /// NUMA node, 0 on machines without.
    pub node: u32,
    /// System management interrupts since reset; none when it can't be read: the `msr` module, or the processor.
    pub smi_count: Option<u64>,
}

/// Allocation of the ways of a cache (SDM, "Cache Allocation Technology"; CPUID leaf 0x10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheAllocation {
    /// How many ways a mask has: the length of the capacity bit mask.
    pub ways: u8,
    /// How many classes of service there are, class 0 included.
    pub classes: u32,
    /// Ways that others, such as graphics and devices, may use as well.
    pub shared: u32,
    /// Code and data can be told apart.
    pub code_and_data: bool,
}

/// All processors, and what all of them have. Of properties that differ, those of the first one that is online.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Processors {
    /// By Linux' number.
    pub all: Vec<Processor>,
    /// Vendor, as CPUID spells it: "GenuineIntel".
    pub vendor: String,
    /// What virtualizes; none when the firmware or the processor does not offer it.
    pub virtualization: Option<Virtualization>,
    /// Width of physical addresses in bits.
    pub physical_address_bits: u8,
    /// Whether there is x2APIC mode.
    pub has_x2apic: bool,
    /// Allocation of the third-level cache.
    pub l3_allocation: Option<CacheAllocation>,
    /// Allocation of the second-level cache.
    pub l2_allocation: Option<CacheAllocation>,
}

impl Processors {
    /// The processor with Linux' number `id`.
    #[must_use]
    pub fn get(&self, id: u32) -> Option<&Processor> {
        self.all.iter().find(|processor| processor.id == id)
    }

    /// Linux' numbers of those that are online.
    pub fn online(&self) -> impl Iterator<Item = u32> {
        self.all.iter().filter(|it| it.online).map(|it| it.id)
    }

    /// Reads all of them.
    ///
    /// # Errors
    /// When a file or CPUID can't be read or makes no sense.
    pub fn read(source: &Source) -> Result<Self, Problem> {
        let list = |name: &str| {
            let path = format!("{DIRECTORY}/{name}");
            number_list(&path, &source.read_text(&path)?)
        };
        let present = list("present")?;
        let online = list("online")?;
        if online.is_empty() || !online.is_subset(&present) {
            let what = "it is empty, or has CPUs that are not present";
            return Err(Problem::garbage(format!("{DIRECTORY}/online"), what));
        }
        let nodes = nodes_of_cpus(source)?;
        let mut processors = Self::default();
        for &id in &present {
            let node = nodes.get(&id).copied().unwrap_or(0);
            if !online.contains(&id) {
                processors.all.push(Processor::offline(id, node));
                continue;
            }
            let cpuid = source.cpuid(id)?;
            if processors.online().next().is_none() {
                processors.take_common(&cpuid);
            }
            let processor = Processor::read(source, id, node, &cpuid)?;
            processors.all.push(processor);
        }
        Ok(processors)
    }

    fn take_common(&mut self, cpuid: &CpuidDump) {
        let vendor = cpuid.get(0, 0);
        let letters = [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes);
        self.vendor = String::from_utf8_lossy(letters.as_flattened()).into_owned();
        let features = cpuid.get(1, 0);
        let extended = cpuid.get(0x8000_0001, 0);
        // CPUID.1:ECX.VMX[5], CPUID.80000001:ECX.SVM[2].
        self.virtualization = match (features.ecx & 1 << 5 != 0, extended.ecx & 1 << 2 != 0) {
            (true, _) => Some(Virtualization::Vmx),
            (_, true) => Some(Virtualization::Svm),
            _ => None,
        };
        self.has_x2apic = features.ecx & 1 << 21 != 0;
        self.physical_address_bits = match cpuid.get(0x8000_0008, 0).eax & 0xff {
            // SDM, "Physical Address Width": what holds without this leaf.
            0 => 36,
            bits => u8::try_from(bits).unwrap_or(u8::MAX),
        };
        self.l3_allocation = allocation(cpuid, 1);
        self.l2_allocation = allocation(cpuid, 2);
    }
}

/// The cache with this resource id (SDM, "Cache Allocation Technology: Enumeration").
fn allocation(cpuid: &CpuidDump, resource: u32) -> Option<CacheAllocation> {
    let resources = cpuid.get(0x10, 0).ebx;
    // The leaf exists where CPUID.7:EBX.RDT_A[15] says so; QEMU answers it with zeros.
    if cpuid.get(7, 0).ebx & 1 << 15 == 0 || resources & 1 << resource == 0 {
        return None;
    }
    let details = cpuid.get(0x10, resource);
    Some(CacheAllocation {
        ways: u8::try_from((details.eax & 0x1f) + 1).ok()?,
        classes: (details.edx & 0xffff) + 1,
        shared: details.ebx,
        code_and_data: details.ecx & 1 << 2 != 0,
    })
}

impl Processor {
    fn offline(id: u32, node: u32) -> Self {
        Self {
            id,
            apic_id: None,
            online: false,
            package: 0,
            core: 0,
            siblings: Vec::new(),
            l2: None,
            l3: None,
            node,
            smi_count: None,
        }
    }

    fn read(source: &Source, id: u32, node: u32, cpuid: &CpuidDump) -> Result<Self, Problem> {
        let topology = |name: &str| {
            let path = format!("{DIRECTORY}/cpu{id}/topology/{name}");
            source.read_text(&path).map(|text| (path, text))
        };
        let topology_number = |name: &str| {
            let (path, text) = topology(name)?;
            // -1 stands for what the kernel does not know.
            number::<i32>(&path, &text).map(|value| u32::try_from(value).unwrap_or(0))
        };
        let (path, text) = topology("thread_siblings_list")?;
        let mut siblings = number_list(&path, &text)?;
        siblings.remove(&id);
        let caches = caches(source, id)?;
        let smi_count = match cpuid.get(0, 0).ecx {
            // "ntel", of GenuineIntel.
            0x6c65_746e => match source.msr(id, MSR_SMI_COUNT) {
                Ok(count) => Some(count),
                // Some kernels keep even root from these registers, and nothing depends on this one.
                Err(problem) if matches!(problem.kind(), Kind::Missing | Kind::Permission) => None,
                Err(problem) => return Err(problem),
            },
            _ => None,
        };
        Ok(Self {
            id,
            apic_id: Some(apic_id(cpuid)),
            online: true,
            package: topology_number("physical_package_id")?,
            core: topology_number("core_id")?,
            siblings: siblings.into_iter().collect(),
            l2: caches.get(&2).copied(),
            l3: caches.get(&3).copied(),
            node,
            smi_count,
        })
    }
}

/// The APIC id that CPUID gives: all bits where the topology leaf exists (SDM, "Hierarchical Mapping of Shared Resources").
fn apic_id(cpuid: &CpuidDump) -> u32 {
    let topology = cpuid.get(0xb, 0);
    match cpuid.get(0, 0).eax >= 0xb && topology.ebx != 0 {
        true => topology.edx,
        false => cpuid.get(1, 0).ebx >> 24,
    }
}

/// By level, the lowest number of those that share the data or unified cache of this level.
fn caches(source: &Source, id: u32) -> Result<BTreeMap<u32, u32>, Problem> {
    let directory = format!("{DIRECTORY}/cpu{id}/cache");
    let mut caches = BTreeMap::new();
    for name in optional(source.list(&directory))?.unwrap_or_default() {
        if !name.starts_with("index") {
            continue;
        }
        let text = |file: &str| {
            let path = format!("{directory}/{name}/{file}");
            source.read_text(&path).map(|text| (path, text))
        };
        if text("type")?.1.trim() == "Instruction" {
            continue;
        }
        let (path, level) = text("level")?;
        let level = number(&path, &level)?;
        let (path, shared) = text("shared_cpu_list")?;
        if let Some(&lowest) = number_list(&path, &shared)?.first() {
            caches.insert(level, lowest);
        }
    }
    Ok(caches)
}

/// NUMA node by CPU; empty when the kernel knows no nodes.
fn nodes_of_cpus(source: &Source) -> Result<BTreeMap<u32, u32>, Problem> {
    let mut nodes = BTreeMap::new();
    for node in node_ids(source)? {
        let path = format!("{NODES}/node{node}/cpulist");
        for cpu in number_list(&path, &source.read_text(&path)?)? {
            nodes.insert(cpu, node);
        }
    }
    Ok(nodes)
}

/// The nodes that are online; none when the kernel knows no nodes.
pub(crate) fn node_ids(source: &Source) -> Result<BTreeSet<u32>, Problem> {
    let path = format!("{NODES}/online");
    match optional(source.read_text(&path))? {
        Some(text) => number_list(&path, &text),
        None => Ok(BTreeSet::new()),
    }
}
