//! Machines made up for tests: every file of them is written byte by byte from the documented layouts.

mod machines;
pub(crate) mod pci;
pub(crate) mod tables;

use std::collections::BTreeMap;

use crate::source::{CpuidDump, CpuidEntry, Tree};
use crate::summary::ranges;

pub(crate) use machines::{many_cpus, old_board, two_sockets};
use pci::TestFunction;

const CPUS: &str = "/sys/devices/system/cpu";
const NODES: &str = "/sys/devices/system/node";

/// A processor to be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TestCpu {
    pub(crate) apic_id: u32,
    pub(crate) package: u32,
    pub(crate) core: u32,
    pub(crate) node: u32,
    /// Those with the same number share the second-level cache.
    pub(crate) l2: u32,
    /// Those with the same number share the third-level cache.
    pub(crate) l3: u32,
}

/// What all processors of a machine say of themselves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Model {
    pub(crate) vendor: &'static [u8; 12],
    pub(crate) has_vmx: bool,
    pub(crate) has_svm: bool,
    pub(crate) physical_address_bits: u32,
    /// Ways and classes of the third-level cache's allocation.
    pub(crate) l3_allocation: Option<(u32, u32)>,
    pub(crate) smi_count: Option<u64>,
}

/// A machine to be.
#[derive(Debug, Default)]
pub(crate) struct Build {
    pub(crate) tree: Tree,
    msrs: BTreeMap<usize, String>,
}

impl Build {
    pub(crate) fn text(&mut self, path: &str, text: &str) -> &mut Self {
        self.tree.insert_file(path, text);
        self
    }

    pub(crate) fn table(&mut self, signature: &str, bytes: Vec<u8>) -> &mut Self {
        let path = format!("/sys/firmware/acpi/tables/{signature}");
        self.tree.insert_file(&path, bytes);
        self
    }

    pub(crate) fn cpus(&mut self, model: Model, cpus: &[TestCpu]) -> &mut Self {
        let count = u32::try_from(cpus.len()).unwrap();
        self.text(
            &format!("{CPUS}/present"),
            &format!("{}\n", ranges(0..count)),
        );
        self.text(
            &format!("{CPUS}/online"),
            &format!("{}\n", ranges(0..count)),
        );
        let alike = |is_alike: &dyn Fn(&TestCpu) -> bool| {
            let all = (0..count).zip(cpus);
            let alike = all.filter(|(_, other)| is_alike(other));
            format!("{}\n", ranges(alike.map(|(id, _)| id)))
        };
        for (id, cpu) in cpus.iter().enumerate() {
            let directory = format!("{CPUS}/cpu{id}");
            let same_core =
                |other: &TestCpu| (other.package, other.core) == (cpu.package, cpu.core);
            let topology = format!("{directory}/topology");
            self.text(
                &format!("{topology}/physical_package_id"),
                &format!("{}\n", cpu.package),
            );
            self.text(&format!("{topology}/core_id"), &format!("{}\n", cpu.core));
            self.text(
                &format!("{topology}/thread_siblings_list"),
                &alike(&same_core),
            );
            let caches = [
                ("Data", 1, alike(&same_core)),
                ("Instruction", 1, alike(&same_core)),
                ("Unified", 2, alike(&|other| other.l2 == cpu.l2)),
                ("Unified", 3, alike(&|other| other.l3 == cpu.l3)),
            ];
            for (index, (kind, level, shared)) in caches.into_iter().enumerate() {
                let cache = format!("{directory}/cache/index{index}");
                self.text(&format!("{cache}/type"), &format!("{kind}\n"));
                self.text(&format!("{cache}/level"), &format!("{level}\n"));
                self.text(&format!("{cache}/shared_cpu_list"), &shared);
            }
            let threads = cpus.iter().filter(|other| same_core(other)).count();
            let dump = model.cpuid(cpu, u32::try_from(threads).unwrap());
            self.text(&format!("/gaol/cpu/{id}/cpuid"), &dump.to_string());
            if let Some(count) = model.smi_count {
                let line = format!("00000034 {count:016x}\n");
                self.msrs.insert(id, line);
            }
        }
        for (id, text) in std::mem::take(&mut self.msrs) {
            self.text(&format!("/gaol/cpu/{id}/msr"), &text);
        }
        let nodes: std::collections::BTreeSet<u32> = cpus.iter().map(|cpu| cpu.node).collect();
        self.text(
            &format!("{NODES}/online"),
            &format!("{}\n", ranges(nodes.iter().copied())),
        );
        for node in nodes {
            let list = alike(&|cpu| cpu.node == node);
            self.text(&format!("{NODES}/node{node}/cpulist"), &list);
        }
        self
    }

    /// Gives a node memory blocks of 2 GiB, by their numbers.
    pub(crate) fn blocks(&mut self, node: u32, blocks: impl IntoIterator<Item = u32>) -> &mut Self {
        let size = "/sys/devices/system/memory/block_size_bytes";
        self.text(size, "80000000\n");
        for block in blocks {
            let path = format!("{NODES}/node{node}/memory{block}");
            self.tree.insert_directory(&path);
        }
        self
    }

    pub(crate) fn linux(&mut self, command_line: &str, consoles: &str, serial: &str) -> &mut Self {
        self.text("/proc/cmdline", &format!("{command_line}\n"));
        self.text("/proc/consoles", consoles);
        let serial = format!("serinfo:1.0 driver revision:\n{serial}");
        self.text("/proc/tty/driver/serial", &serial)
    }

    pub(crate) fn pci(&mut self, functions: Vec<TestFunction>) -> &mut Self {
        for function in functions {
            function.insert(&mut self.tree);
        }
        self
    }

    /// A unit that Linux drives.
    pub(crate) fn linux_iommu(
        &mut self,
        number: u32,
        address: u64,
        cap: u64,
        ecap: u64,
    ) -> &mut Self {
        let directory = format!("/sys/class/iommu/dmar{number}/intel-iommu");
        self.text(&format!("{directory}/address"), &format!("{address:x}\n"));
        self.text(&format!("{directory}/cap"), &format!("{cap:x}\n"));
        self.text(&format!("{directory}/ecap"), &format!("{ecap:x}\n"))
    }
}

impl Model {
    /// SDM, "CPUID—CPU Identification".
    fn cpuid(&self, cpu: &TestCpu, threads: u32) -> CpuidDump {
        let mut dump = CpuidDump::default();
        let mut insert = |leaf, subleaf, [eax, ebx, ecx, edx]: [u32; 4]| {
            dump.insert(CpuidEntry {
                leaf,
                subleaf,
                eax,
                ebx,
                ecx,
                edx,
            });
        };
        let (letters, _) = self.vendor.as_chunks::<4>();
        let [first, second, third] = [0, 1, 2].map(|index| u32::from_le_bytes(letters[index]));
        insert(0, 0, [0x10, first, third, second]);
        let features = 1 << 21 | u32::from(self.has_vmx) << 5;
        insert(
            1,
            0,
            [
                0x50654,
                (cpu.apic_id & 0xff) << 24,
                features,
                1 << 28 | 1 << 9,
            ],
        );
        let has_allocation = u32::from(self.l3_allocation.is_some()) << 15;
        insert(7, 0, [0, has_allocation, 0, 0]);
        // Threads of a core are told apart by the lowest bit, everything else by what is above.
        insert(0xb, 0, [1, threads, 1 << 8, cpu.apic_id]);
        insert(0xb, 1, [16, threads, 2 << 8 | 1, cpu.apic_id]);
        if let Some((ways, classes)) = self.l3_allocation {
            insert(0x10, 0, [0, 1 << 1, 0, 0]);
            insert(0x10, 1, [ways - 1, 0x600, 1 << 2, classes - 1]);
        }
        insert(0x8000_0000, 0, [0x8000_0008, 0, 0, 0]);
        insert(
            0x8000_0001,
            0,
            [0, 0, u32::from(self.has_svm) << 2, 1 << 29 | 1 << 26],
        );
        insert(0x8000_0007, 0, [0, 0, 0, 1 << 8]);
        insert(
            0x8000_0008,
            0,
            [48 << 8 | self.physical_address_bits, 0, 0, 0],
        );
        dump
    }
}
