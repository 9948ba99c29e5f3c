//! Whole systems that are right: a machine and cells on it, as TOML.
//!
//! Invariant: whatever the shape, nothing has two owners, and each cell has at least one of each kind of thing.

use std::fmt::Write;

use proptest::prelude::*;

pub const MIB: u64 = 1 << 20;
pub const PAGE: u64 = 4096;

/// What is random of a system; everything has its place by its number.
#[derive(Clone, Debug)]
pub struct Shape {
    pub packages: u32,
    pub cores: u32,
    pub threads: u32,
    pub pins: u32,
    pub iommus: u64,
    pub l3_ways: u32,
    pub has_console: bool,
    pub cells: Vec<CellShape>,
}

#[derive(Clone, Debug)]
pub struct CellShape {
    pub ram_mib: u64,
    pub is_high: bool,
    pub has_open: bool,
    pub functions: u16,
    pub vectors: u16,
    pub ports: u16,
    pub interrupts: u32,
    pub msrs: u32,
}

pub fn shapes() -> impl Strategy<Value = Shape> {
    let cell = (
        1..8u64,
        any::<bool>(),
        any::<bool>(),
        1..3u16,
        1..5u16,
        1..32u16,
        1..4u32,
        1..3u32,
    );
    let cell = cell.prop_map(|all| CellShape {
        ram_mib: all.0,
        is_high: all.1,
        has_open: all.2,
        functions: all.3,
        vectors: all.4,
        ports: all.5,
        interrupts: all.6,
        msrs: all.7,
    });
    let machine = (
        1..3u32,
        3..6u32,
        1..3u32,
        1..64u32,
        1..4u64,
        8..21u32,
        any::<bool>(),
    );
    (machine, proptest::collection::vec(cell, 2..4)).prop_map(|(all, cells)| Shape {
        packages: all.0,
        cores: all.1.max(cells.len() as u32 + 1),
        threads: all.2,
        pins: all.3,
        iommus: all.4,
        l3_ways: all.5,
        has_console: all.6,
        cells,
    })
}

/// A PCI function of the machine.
#[derive(Clone, Debug)]
pub struct Function {
    pub function: u16,
    pub group: u16,
    pub is_bridge: bool,
    pub msi_x: u16,
    pub memory: Option<(u64, u64)>,
    pub ports: Option<(u16, u16)>,
}

#[derive(Clone, Debug)]
pub struct Machine {
    pub shape: Shape,
    pub hypervisor: (u64, u64),
    pub io_apics: [(u64, u32, u32); 2],
    pub ecam: u64,
    pub iommus: Vec<u64>,
    pub reserved_dma: (u64, u64),
    pub functions: Vec<Function>,
}

#[derive(Clone, Debug)]
pub struct Region {
    pub name: String,
    pub kind: &'static str,
    pub at: u64,
    pub size: u64,
    pub physical: Option<u64>,
    /// Further keys, each with its value.
    pub keys: Vec<&'static str>,
}

impl Region {
    pub fn new(name: &str, kind: &'static str, at: u64, size: u64, physical: Option<u64>) -> Self {
        Self {
            name: name.to_owned(),
            kind,
            at,
            size,
            physical,
            keys: Vec::new(),
        }
    }

    fn with(mut self, keys: &[&'static str]) -> Self {
        self.keys.extend(keys);
        self
    }
}

#[derive(Clone, Debug)]
pub struct Cell {
    pub name: String,
    pub cpus: Vec<u32>,
    pub reset_address: u64,
    pub regions: Vec<Region>,
    pub ports: Vec<(u16, u16)>,
    pub interrupts: Vec<u32>,
    /// Function and number of vectors.
    pub devices: Vec<(u16, u16)>,
    pub unprotected_dma: bool,
    pub l3_ways: Vec<u32>,
    /// Register and the keys behind it.
    pub msrs: Vec<(u32, &'static str)>,
}

#[derive(Clone, Debug)]
pub struct Whole {
    pub machine: Machine,
    pub cells: Vec<Cell>,
}

/// The name of the root cell.
pub const ROOT: &str = "linux";
/// Where a region is, in cells, that no cell has.
pub const FREE_GUEST: u64 = 0x3000_0000;
/// Where RAM is that nobody has.
pub const FREE_RAM: u64 = 0x6800_0000;
/// The page of registers that cells have parts of.
pub const PARTS: u64 = 0xfed4_0000;
/// A register that all cells write, each its own.
const PER_CPU_MSR: u32 = 0x38d;
/// A register that all cells read.
const READ_MSR: u32 = 0x1a7;
/// A register of the first cell, and so on.
const OWN_MSR: u32 = 0xc1;
/// First port of the console.
pub const CONSOLE: u16 = 0x2f8;

fn bdf(number: u16) -> u16 {
    // Device 1 and on, so that the bridge has device 0.
    (number + 1) << 3
}

impl Machine {
    fn new(shape: &Shape) -> Self {
        let mut functions = vec![Function {
            function: 0,
            group: 0,
            is_bridge: true,
            msi_x: 0,
            memory: None,
            ports: None,
        }];
        let counts = shape
            .cells
            .iter()
            .map(|cell| (cell.functions, cell.vectors));
        // The last one is the root cell's.
        for (group, (count, vectors)) in (1..).zip(counts.chain([(1, 1)])) {
            for _ in 0..count {
                let number = functions.len() as u16 - 1;
                let place = u64::from(number);
                functions.push(Function {
                    function: bdf(number),
                    group,
                    is_bridge: false,
                    msi_x: vectors,
                    memory: Some((0xd000_0000 + place * MIB, 0x1_0000)),
                    ports: Some((0xc000 + number * 0x40, 0x20)),
                });
            }
        }
        Self {
            shape: shape.clone(),
            hypervisor: (0x4000_0000, 8 * MIB),
            io_apics: [(0xfec0_0000, 0, 24), (0xfd00_0000, 24, shape.pins)],
            ecam: 0xe000_0000,
            iommus: (0..shape.iommus)
                .map(|unit| 0xfed9_0000 + unit * PAGE)
                .collect(),
            reserved_dma: (0x7f00_0000, MIB),
            functions,
        }
    }

    pub fn cpu_count(&self) -> u32 {
        self.shape.packages * self.shape.cores * self.shape.threads
    }

    /// The package, and so the level-3 cache, of a CPU.
    pub fn package(&self, cpu: u32) -> u32 {
        cpu / (self.shape.cores * self.shape.threads)
    }

    pub fn toml(&self) -> String {
        let mut text = format!("name = \"{ROOT}\"\n");
        let (at, size) = self.hypervisor;
        let _ = writeln!(text, "[hypervisor]\naddress = {at:#x}\nmemory = {size}");
        if self.shape.has_console {
            let _ = writeln!(text, "[console]\nuart = {{ port = {CONSOLE:#x} }}");
        }
        let ways = self.shape.l3_ways;
        let _ = writeln!(text, "[machine]\nl3-ways = {ways}\nl2-ways = 8\ncpus = [");
        for cpu in 0..self.cpu_count() {
            let (core, package) = (cpu / self.shape.threads, self.package(cpu));
            let _ = writeln!(
                text,
                "  {{ apic-id = {}, core = {core}, package = {package}, node = {package} }},",
                2 * cpu
            );
        }
        text.push_str("]\nram = [\n  { at = 0x100000, size = \"2047 MiB\" },\n");
        text.push_str("  { at = 0x100000000, size = \"4 GiB\", node = 1 },\n]\nio-apics = [\n");
        for (at, first, pins) in self.io_apics {
            let _ = writeln!(
                text,
                "  {{ at = {at:#x}, first = {first}, pins = {pins} }},"
            );
        }
        let _ = writeln!(
            text,
            "]\npci-configuration = [{{ at = {:#x}, last-bus = 255 }}]",
            self.ecam
        );
        text.push_str("iommus = [\n");
        for at in &self.iommus {
            let _ = writeln!(text, "  {{ at = {at:#x}, size = \"4 KiB\" }},");
        }
        let (at, size) = self.reserved_dma;
        let _ = writeln!(
            text,
            "]\nreserved-dma = [{{ at = {at:#x}, size = {size} }}]"
        );
        for function in &self.functions {
            function.write(&mut text);
        }
        text
    }
}

/// The address of a function on segment 0.
pub fn address(function: u16) -> String {
    let (bus, device) = (function >> 8, function >> 3 & 31);
    format!("0000:{bus:02x}:{device:02x}.{}", function & 7)
}

impl Function {
    fn write(&self, text: &mut String) {
        let (address, group) = (address(self.function), self.group);
        let _ = writeln!(
            text,
            "[[machine.devices]]\naddress = \"{address}\"\nid = \"1af4:1000\""
        );
        let (is_bridge, msi_x) = (self.is_bridge, self.msi_x);
        let _ = writeln!(
            text,
            "group = {group}\nbridge = {is_bridge}\nmsi-x = {msi_x}\nbars = ["
        );
        if let Some((at, size)) = self.memory {
            let _ = writeln!(
                text,
                "  {{ number = 0, kind = \"memory\", at = {at:#x}, size = {size} }},"
            );
        }
        if let Some((at, size)) = self.ports {
            let _ = writeln!(
                text,
                "  {{ number = 1, kind = \"ports\", at = {at:#x}, size = {size} }},"
            );
        }
        text.push_str("]\n");
    }
}

/// The regions of cell `number`.
fn regions(shape: &CellShape, number: u64, functions: &[&Function]) -> Vec<Region> {
    let ram = if shape.is_high { 1 << 32 } else { 0x5000_0000 } + number * 16 * MIB;
    let mut regions = vec![
        Region::new("ram", "ram", 0, shape.ram_mib * MIB, Some(ram)).with(&[
            "access = \"rwx\"",
            "loadable = true",
            "dma = true",
        ]),
        Region::new("communication", "communication", 0x1000_0000, PAGE, None),
        Region::new("ring", "ram", 0x2000_0000, MIB, Some(0x6000_0000)).with(&["shared = true"]),
        Region::new(
            "window",
            "ram",
            0x2100_0000 + number * MIB,
            2 * PAGE,
            Some(0x6100_0000),
        )
        .with(&["shared = true", "shared-with-root = true", "access = \"r\""]),
        Region::new(
            "part",
            "device",
            PARTS + number * 64,
            16,
            Some(PARTS + number * 64),
        )
        .with(&["widths = [32]"]),
    ];
    if shape.has_open {
        regions.push(Region::new("heap", "ram", 0x1800_0000, 4 * MIB, None));
    }
    for (index, function) in functions.iter().enumerate() {
        if let Some((at, size)) = function.memory {
            let name = format!("bar{index}");
            regions.push(Region::new(&name, "device", at, size, Some(at)));
        }
    }
    regions
}

impl Whole {
    pub fn new(shape: &Shape) -> Self {
        let machine = Machine::new(shape);
        let count = shape.cells.len() as u32;
        let mut interrupts = 0..24 + shape.pins;
        let cells = (0u32..).zip(&shape.cells).map(|(number, cell)| {
            let group = number as u16 + 1;
            let functions: Vec<&Function> = machine
                .functions
                .iter()
                .filter(|function| function.group == group)
                .collect();
            let own = functions.iter().filter_map(|function| function.ports);
            let legacy = (0x300 + number as u16 * 0x20, cell.ports);
            let own_msrs =
                (0..cell.msrs).map(|msr| (OWN_MSR + 2 * number + msr, "access = \"rw\""));
            let shared_msrs = [
                (PER_CPU_MSR, "access = \"rw\"\nper-cpu = true"),
                (READ_MSR, "access = \"r\""),
            ];
            Cell {
                name: format!("cell{number}"),
                // CPU 0 is the root cell's; the others are dealt out like cards.
                cpus: (1..machine.cpu_count())
                    .filter(|cpu| (cpu - 1) % (count + 1) == number)
                    .collect(),
                reset_address: cell.ram_mib * MIB - 16,
                regions: regions(cell, number.into(), &functions),
                ports: own.chain([legacy]).collect(),
                interrupts: interrupts.by_ref().take(cell.interrupts as usize).collect(),
                devices: functions
                    .iter()
                    .map(|function| (function.function, cell.vectors))
                    .collect(),
                unprotected_dma: true,
                l3_ways: vec![2 * number, 2 * number + 1],
                msrs: own_msrs.chain(shared_msrs).collect(),
            }
        });
        Self {
            cells: cells.collect(),
            machine,
        }
    }
}

impl Cell {
    pub fn toml(&self) -> String {
        let mut text = format!("name = \"{}\"\ncpus = {:?}\n", self.name, self.cpus);
        let _ = writeln!(text, "reset-address = {:#x}", self.reset_address);
        let _ = writeln!(text, "unprotected-dma = {}", self.unprotected_dma);
        let _ = writeln!(text, "interrupts = {:?}\nports = [", self.interrupts);
        for (first, count) in &self.ports {
            let _ = writeln!(text, "  {{ first = {first:#x}, count = {count} }},");
        }
        let _ = writeln!(text, "]\n[cache-ways]\nl3 = {:?}", self.l3_ways);
        for region in &self.regions {
            let _ = writeln!(
                text,
                "[[memory]]\nname = \"{}\"\nkind = \"{}\"",
                region.name, region.kind
            );
            let _ = writeln!(text, "at = {:#x}\nsize = {}", region.at, region.size);
            if let Some(physical) = region.physical {
                let _ = writeln!(text, "physical = {physical:#x}");
            }
            for key in &region.keys {
                let _ = writeln!(text, "{key}");
            }
        }
        for (function, vectors) in &self.devices {
            let address = address(*function);
            let _ = writeln!(
                text,
                "[[devices]]\naddress = \"{address}\"\nvectors = {vectors}"
            );
        }
        for (msr, keys) in &self.msrs {
            let _ = writeln!(text, "[[msrs]]\nindex = {msr:#x}\n{keys}");
        }
        text
    }

    /// The region of a name.
    pub fn region(&mut self, name: &str) -> &mut Region {
        let mut regions = self.regions.iter_mut();
        regions.find(|region| region.name == name).unwrap()
    }

    /// Adds a region where the cell has none.
    pub fn add(&mut self, kind: &'static str, physical: u64, size: u64) -> &mut Region {
        let region = Region::new("extra", kind, FREE_GUEST, size, Some(physical));
        self.regions.push(region);
        self.regions.last_mut().unwrap()
    }
}
