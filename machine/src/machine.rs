//! All facts about a machine in one place.

use crate::acpi::Tables;
use crate::acpi::fadt::Fadt;
use crate::acpi::madt::{Madt, Nmi, Override};
use crate::acpi::mcfg::Ecam;
use crate::iommu::Iommu;
use crate::linux::{self, SerialPort};
use crate::memory::{self, Node, Ram};
use crate::pci::Pci;
use crate::problem::{Kind, Problem};
use crate::processors::Processors;
use crate::resources::{self, Resource};
use crate::source::Source;

/// Pins of an I/O APIC when nothing tells: the number that most of them have.
const USUAL_PINS: u32 = 24;
/// The most pins that an I/O APIC can have: its version register counts them in 8 bits, up to 240.
const MAX_PINS: u32 = 240;

/// An I/O APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoApic {
    /// The firmware's number of it.
    pub id: u8,
    /// Physical address of its registers.
    pub address: u64,
    /// Global system interrupt of its first pin.
    pub gsi_base: u32,
    /// How many pins it has, as far as is known from outside.
    pub pins: u32,
    /// Whether `pins` is only what is usual. Otherwise the next I/O APIC begins behind them.
    pub pins_are_assumed: bool,
}

/// The interrupt controllers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interrupts {
    /// Physical address of the local APICs' registers.
    pub local_apic: u64,
    /// Whether there are two 8259 interrupt controllers as well.
    pub has_8259: bool,
    /// The I/O APICs, by their first global system interrupt.
    pub io_apics: Vec<IoApic>,
    /// Interrupts of ISA that are not where they usually are.
    pub overrides: Vec<Override>,
    /// Sources of NMIs.
    pub nmis: Vec<Nmi>,
}

impl Interrupts {
    /// The I/O APIC and its pin that a global system interrupt arrives at; none when no I/O APIC has it.
    #[must_use]
    pub fn pin(&self, gsi: u32) -> Option<(&IoApic, u32)> {
        self.io_apics.iter().find_map(|io_apic| {
            let pin = gsi.checked_sub(io_apic.gsi_base)?;
            (pin < io_apic.pins).then_some((io_apic, pin))
        })
    }

    /// The global system interrupt that an interrupt of ISA arrives at.
    #[must_use]
    pub fn gsi_of_isa(&self, interrupt: u8) -> u32 {
        let found = self.overrides.iter().find(|it| it.source == interrupt);
        found.map_or(interrupt.into(), |it| it.gsi)
    }
}

/// What a machine has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// Processors.
    pub processors: Processors,
    /// RAM that Linux uses, by address, in pieces of one node each.
    pub ram: Vec<Ram>,
    /// NUMA nodes; empty when Linux knows none.
    pub nodes: Vec<Node>,
    /// Who uses which physical addresses, as Linux tells.
    pub iomem: Vec<Resource>,
    /// Who uses which ports, as Linux tells.
    pub ioports: Vec<Resource>,
    /// Interrupt controllers.
    pub interrupts: Interrupts,
    /// Where configuration space of PCI is in memory; empty when it is reached by ports only.
    pub ecam: Vec<Ecam>,
    /// Intel's IOMMUs; none without the table DMAR.
    pub iommu: Option<Iommu>,
    /// Whether the firmware tells of AMD's IOMMU, which is all that is read of it.
    pub has_amd_iommu: bool,
    /// PCI functions.
    pub pci: Pci,
    /// Serial ports.
    pub serial_ports: Vec<SerialPort>,
    /// Registers of power management; none without the table FACP.
    pub power: Option<Fadt>,
    /// Linux' parameters that mean something to Gaol.
    pub linux_parameters: Vec<String>,
    /// What was assumed or left out, in sentences.
    pub notes: Vec<String>,
}

impl Machine {
    /// Reads everything.
    ///
    /// # Errors
    /// All that can't be read or makes no sense, each named. What a machine may lack – PCI, ECAM, an IOMMU, NUMA, serial
    /// ports – is a fact, and no error.
    pub fn read(source: &Source) -> Result<Self, Vec<Problem>> {
        let mut problems = Vec::new();
        let machine = Self::read_what_can_be(source, &mut problems);
        match problems.is_empty() {
            true => Ok(machine),
            false => Err(problems),
        }
    }

    /// Reads everything; what can't be read is empty, and why is added to `problems`.
    pub fn read_what_can_be(source: &Source, problems: &mut Vec<Problem>) -> Self {
        let tables = Tables::read(source, problems);
        if tables.madt.is_none() && problems.iter().all(|it| it.subject() != "ACPI table APIC") {
            problems.push(Problem::new(
                Kind::Missing,
                "ACPI table APIC",
                "the machine has none, so that its interrupt controllers are unknown",
                "Turn ACPI on in the firmware and in Linux (no acpi=off).",
            ));
        }
        let iomem = taken(resources::memory(source), problems);
        let ioports = taken(resources::ports(source), problems);
        let (ram, nodes) = taken(memory::read(source, &iomem), problems);
        let pci = Pci::read(source, problems);
        let iommu = tables
            .dmar
            .map(|dmar| taken(Iommu::new(source, &dmar, &pci), problems));
        let mut machine = Self {
            processors: taken(Processors::read(source), problems),
            ram,
            nodes,
            interrupts: interrupts(tables.madt.unwrap_or_default()),
            ecam: tables.mcfg.map(|mcfg| mcfg.regions).unwrap_or_default(),
            iommu,
            has_amd_iommu: tables.has_ivrs,
            pci,
            serial_ports: taken(linux::serial_ports(source, &ioports), problems),
            power: tables.fadt,
            linux_parameters: taken(linux::parameters(source), problems),
            iomem,
            ioports,
            notes: Vec::new(),
        };
        machine.notes = machine.what_was_assumed();
        machine
    }

    fn what_was_assumed(&self) -> Vec<String> {
        let mut notes = Vec::new();
        for io_apic in self
            .interrupts
            .io_apics
            .iter()
            .filter(|it| it.pins_are_assumed)
        {
            notes.push(format!(
                "How many pins the I/O APIC at {:#x} has is not told; {} are assumed.",
                io_apic.address, io_apic.pins
            ));
        }
        for processor in self.processors.all.iter().filter(|it| !it.online) {
            notes.push(format!(
                "CPU {} is offline; only its number is known.",
                processor.id
            ));
        }
        for name in &self.pci.left_out {
            notes.push(format!(
                "The PCI function {name} is in a domain that Linux made up; it belongs to the device that hosts it."
            ));
        }
        notes
    }
}

/// The value, or what stands for nothing, with the problem added.
fn taken<T: Default>(result: Result<T, Problem>, problems: &mut Vec<Problem>) -> T {
    result.unwrap_or_else(|problem| {
        // Several readers stumble over the same file.
        if !problems.contains(&problem) {
            problems.push(problem);
        }
        T::default()
    })
}

fn interrupts(madt: Madt) -> Interrupts {
    let mut all = madt.io_apics;
    all.sort_by_key(|io_apic| io_apic.gsi_base);
    let next_bases = all.iter().skip(1).map(|next| Some(next.gsi_base));
    let next_bases: Vec<Option<u32>> = next_bases.chain([None]).collect();
    let io_apics = all.iter().zip(next_bases).map(|(io_apic, next)| {
        let told = next.and_then(|next| next.checked_sub(io_apic.gsi_base));
        let told = told.filter(|pins| (1..=MAX_PINS).contains(pins));
        IoApic {
            id: io_apic.id,
            address: io_apic.address,
            gsi_base: io_apic.gsi_base,
            pins: told.unwrap_or(USUAL_PINS),
            pins_are_assumed: told.is_none(),
        }
    });
    Interrupts {
        local_apic: madt.local_apic_address,
        has_8259: madt.has_8259,
        io_apics: io_apics.collect(),
        overrides: madt.overrides,
        nmis: madt.nmis,
    }
}
