//! Single changes that give one thing two owners, or an owner that it can't have.

use gaol_abi::outcome::Reason;
use proptest::sample::Index;

use crate::model::{CONSOLE, FREE_RAM, MIB, PAGE, PARTS, ROOT, Whole};

/// What is chosen by chance in a mutation.
pub struct Choice {
    /// The cell that takes.
    pub taker: usize,
    /// Another cell, from which it takes.
    pub giver: usize,
    /// A place in whatever there are several of.
    pub index: Index,
}

impl Choice {
    /// A page of a range.
    fn page(&self, (start, size): (u64, u64)) -> u64 {
        start + self.index.index((size / PAGE) as usize) as u64 * PAGE
    }

    fn of<T: Clone>(&self, things: &[T]) -> T {
        things[self.index.index(things.len())].clone()
    }
}

/// A change of a system, and why it must be refused then; none when the change is legal after all.
pub type Mutation = fn(&mut Whole, &Choice) -> Option<Reason>;

macro_rules! mutations {
    ($($(#[$doc:meta])* $name:ident = |$whole:ident, $choice:ident| $body:expr;)+) => {
        /// The names of all of them.
        pub const NAMES: &[&str] = &[$(stringify!($name)),+];
        $($(#[$doc])* pub fn $name($whole: &mut Whole, $choice: &Choice) -> Option<Reason> { $body })+
    };
}

mutations! {
    /// A CPU of another cell.
    cpu_of_another_cell = |whole, choice| {
        let cpu = choice.of(&whole.cells[choice.giver].cpus);
        whole.cells[choice.taker].cpus.push(cpu);
        Some(Reason::CpuOwned)
    };
    /// The CPU that stays with Linux.
    cpu_of_linux = |whole, choice| {
        whole.cells[choice.taker].cpus.push(0);
        Some(Reason::CpuZero)
    };
    /// A CPU that the machine does not have.
    cpu_that_is_none = |whole, choice| {
        let cpu = whole.machine.cpu_count() + choice.index.index(100) as u32;
        whole.cells[choice.taker].cpus.push(cpu);
        Some(Reason::CpuUnknown)
    };
    /// A page of another cell's RAM.
    page_of_another_cell = |whole, choice| {
        let ram = whole.cells[choice.giver].region("ram").clone();
        let page = choice.page((ram.physical?, ram.size));
        whole.cells[choice.taker].add("ram", page, PAGE);
        Some(Reason::MemoryOwned)
    };
    /// Memory that ends with the first page of another cell's.
    memory_into_another_cell = |whole, choice| {
        let ram = whole.cells[choice.giver].region("ram").clone();
        let size = PAGE * (2 + choice.index.index(8) as u64);
        whole.cells[choice.taker].add("ram", ram.physical? + PAGE - size, size);
        Some(Reason::MemoryOwned)
    };
    /// Another cell's RAM, shared by the taker alone.
    memory_shared_by_one_side = |whole, choice| {
        let ram = whole.cells[choice.giver].region("ram").clone();
        let extra = whole.cells[choice.taker].add("ram", ram.physical?, ram.size);
        extra.keys.push("shared-with-root = true");
        Some(Reason::MemoryOwned)
    };
    /// Registers that another cell has of a page of which both have parts.
    part_of_another_cell = |whole, choice| {
        let place = PARTS + choice.giver as u64 * 64 + 8;
        let part = whole.cells[choice.taker].region("part");
        (part.at, part.physical) = (place, Some(place));
        Some(Reason::MemoryOwned)
    };
    /// The whole page of which another cell has a part.
    page_with_a_part_of_another_cell = |whole, choice| {
        whole.cells[choice.taker].regions.retain(|region| region.name != "part");
        whole.cells[choice.taker].add("device", PARTS, PAGE);
        Some(Reason::MemoryOwned)
    };
    /// The hypervisor's memory.
    memory_of_the_hypervisor = |whole, choice| {
        let page = choice.page(whole.machine.hypervisor);
        whole.cells[choice.taker].add("ram", page, PAGE);
        Some(Reason::MemoryIsHypervisors)
    };
    /// The APICs.
    registers_of_the_apics = |whole, choice| {
        whole.cells[choice.taker].add("device", 0xfee0_0000, PAGE);
        Some(Reason::MemoryIsInterruptController)
    };
    /// The place at which the cell has its own APIC.
    guest_address_of_the_apic = |whole, choice| {
        whole.cells[choice.taker].add("ram", FREE_RAM, PAGE).at = 0xfee0_0000;
        Some(Reason::MemoryIsInterruptController)
    };
    /// An IOAPIC, in the window where chipsets have them and outside.
    registers_of_an_io_apic = |whole, choice| {
        let (at, _, _) = choice.of(&whole.machine.io_apics);
        whole.cells[choice.taker].add("device", at, PAGE);
        Some(Reason::MemoryIsInterruptController)
    };
    /// PCI configuration space.
    pci_configuration_space = |whole, choice| {
        let page = choice.page((whole.machine.ecam, 256 * MIB));
        whole.cells[choice.taker].add("device", page, PAGE);
        Some(Reason::MemoryIsPciConfiguration)
    };
    /// An IOMMU.
    registers_of_an_iommu = |whole, choice| {
        let at = choice.of(&whole.machine.iommus);
        whole.cells[choice.taker].add("device", at, PAGE);
        Some(Reason::MemoryIsIommus)
    };
    /// Memory that a device of the root cell reaches at any time.
    memory_of_reserved_dma = |whole, choice| {
        let page = choice.page(whole.machine.reserved_dma);
        whole.cells[choice.taker].add("ram", page, PAGE);
        Some(Reason::MemoryIsReservedDma)
    };
    /// Registers of a function of another cell or of the root cell.
    registers_of_another_function = |whole, choice| {
        let own = choice.taker as u16 + 1;
        let functions = whole.machine.functions.iter();
        let bars: Vec<_> = functions
            .filter(|function| function.group != own)
            .filter_map(|function| function.memory)
            .collect();
        let page = choice.page(choice.of(&bars));
        whole.cells[choice.taker].add("device", page, PAGE);
        Some(Reason::MemoryIsDevices)
    };
    /// Where there is no RAM, as memory.
    memory_that_is_none = |whole, choice| {
        let place = 0x90_0000_0000 + choice.index.index(1000) as u64 * PAGE;
        whole.cells[choice.taker].add("ram", place, PAGE);
        Some(Reason::MemoryUnknown)
    };
    /// Where there is no RAM, as a target of DMA.
    dma_outside_memory = |whole, choice| {
        let extra = whole.cells[choice.taker].add("ram", 0x90_0000_0000, MIB);
        extra.keys.push("dma = true");
        Some(Reason::DmaOutsideMemory)
    };
    /// A region of the name of another cell's shared one, and of another size.
    shared_region_of_another_size = |whole, choice| {
        whole.cells[choice.taker].region("ring").size += PAGE;
        Some(Reason::SharedRegionDiffers)
    };
    /// A region of the name of another cell's shared one, at another place.
    shared_region_at_another_place = |whole, choice| {
        whole.cells[choice.taker].region("ring").physical = Some(FREE_RAM);
        Some(Reason::SharedRegionDiffers)
    };
    /// A region of the name of another cell's shared one, which the root cell has as well.
    shared_region_with_the_root_cell = |whole, choice| {
        whole.cells[choice.taker].region("ring").keys.push("shared-with-root = true");
        Some(Reason::SharedRegionDiffers)
    };
    /// Another cell's shared memory under another name.
    shared_region_of_another_name = |whole, choice| {
        whole.cells[choice.taker].region("ring").name = "circle".to_owned();
        Some(Reason::MemoryOwned)
    };
    /// A port of another cell: of its own or of its function.
    port_of_another_cell = |whole, choice| {
        let (first, count) = choice.of(&whole.cells[choice.giver].ports);
        let port = first + choice.index.index(count.into()) as u16;
        whole.cells[choice.taker].ports.push((port, 1));
        Some(Reason::PortsOwned)
    };
    /// A port of the root cell's function.
    port_of_another_function = |whole, choice| {
        let (first, count) = whole.machine.functions.last()?.ports?;
        let port = first + choice.index.index(count.into()) as u16;
        whole.cells[choice.taker].ports.push((port, 1));
        Some(Reason::PortsOwned)
    };
    /// The ports of PCI configuration space.
    ports_of_pci_configuration = |whole, choice| {
        let port = 0xcf8 + choice.index.index(8) as u16;
        whole.cells[choice.taker].ports.push((port, 1));
        Some(Reason::PortsOwned)
    };
    /// A port of the hypervisor's console.
    port_of_the_console = |whole, choice| {
        let port = CONSOLE + choice.index.index(8) as u16;
        whole.cells[choice.taker].ports.push((port, 1));
        whole.machine.shape.has_console.then_some(Reason::PortsOwned)
    };
    /// An interrupt line of another cell.
    line_of_another_cell = |whole, choice| {
        let line = choice.of(&whole.cells[choice.giver].interrupts);
        whole.cells[choice.taker].interrupts.push(line);
        Some(Reason::InterruptOwned)
    };
    /// An interrupt line behind the last pin.
    line_that_is_none = |whole, choice| {
        let line = 24 + whole.machine.shape.pins + choice.index.index(1000) as u32;
        whole.cells[choice.taker].interrupts.push(line);
        Some(Reason::InterruptUnknown)
    };
    /// The functions of another cell.
    functions_of_another_cell = |whole, choice| {
        let functions = whole.cells[choice.giver].devices.clone();
        whole.cells[choice.taker].devices.extend(functions);
        Some(Reason::DeviceOwned)
    };
    /// A function that is not one of the machine's.
    function_that_is_none = |whole, choice| {
        let function = 0x100 + choice.index.index(0xfe00) as u16;
        whole.cells[choice.taker].devices.push((function, 1));
        Some(Reason::DeviceUnknown)
    };
    /// A bridge.
    bridge = |whole, choice| {
        whole.cells[choice.taker].devices.push((0, 1));
        Some(Reason::DeviceIsBridge)
    };
    /// Functions that no IOMMU holds, and a cell that does not say that it accepts that.
    functions_that_reach_all = |whole, choice| {
        whole.machine.iommus.clear();
        whole.cells[choice.taker].unprotected_dma = false;
        (!whole.cells[choice.taker].devices.is_empty()).then_some(Reason::UnprotectedDma)
    };
    /// The root cell's function in a group with the cell's.
    group_with_the_root_cell = |whole, choice| {
        whole.machine.functions.last_mut()?.group = choice.taker as u16 + 1;
        Some(Reason::DeviceGroupSplit)
    };
    /// Two cells with functions of one group.
    group_of_two_cells = |whole, choice| {
        let (taker, giver) = (choice.taker as u16 + 1, choice.giver as u16 + 1);
        for function in &mut whole.machine.functions {
            if function.group == giver {
                function.group = taker;
            }
        }
        Some(Reason::DeviceGroupSplit)
    };
    /// More vectors than the function has.
    vectors_that_are_none = |whole, choice| {
        whole.cells[choice.taker].devices[0].1 += 1 + choice.index.index(100) as u16;
        Some(Reason::VectorBudget)
    };
    /// The cache ways of another cell, where they are of the same cache.
    ways_of_another_cell = |whole, choice| {
        let machine = &whole.machine;
        let caches = |cell: usize| whole.cells[cell].cpus.iter().map(|cpu| machine.package(*cpu));
        let is_same = caches(choice.taker).any(|cache| caches(choice.giver).any(|it| it == cache));
        whole.cells[choice.taker].l3_ways = whole.cells[choice.giver].l3_ways.clone();
        is_same.then_some(Reason::CacheWaysOwned)
    };
    /// Ways that the cache does not have.
    ways_that_are_none = |whole, choice| {
        let ways = whole.machine.shape.l3_ways;
        whole.cells[choice.taker].l3_ways = vec![ways - 1, ways];
        Some(Reason::CacheWaysInvalid)
    };
    /// A register that another cell writes.
    register_of_another_cell = |whole, choice| {
        let (register, _) = whole.cells[choice.giver].msrs[0];
        let access = choice.of(&["access = \"r\"", "access = \"rw\"", "access = \"rw\"\nper-cpu = true"]);
        whole.cells[choice.taker].msrs.push((register, access));
        Some(Reason::MsrOwned)
    };
    /// Writing to a register that others read.
    register_that_others_read = |whole, choice| {
        whole.cells[choice.taker].msrs.last_mut()?.1 = "access = \"rw\"";
        Some(Reason::MsrOwned)
    };
    /// A register that the hypervisor relies on.
    register_of_the_hypervisor = |whole, choice| {
        let register = choice.of(&[0x1b, 0x277, 0x2ff, 0x480, 0x830, 0xc90, 0xc000_0080]);
        whole.cells[choice.taker].msrs.push((register, "access = \"r\""));
        Some(Reason::MsrInvalid)
    };
    /// The name of another cell, or of the root cell.
    name_of_another_cell = |whole, choice| {
        let names = [whole.cells[choice.giver].name.clone(), ROOT.to_owned()];
        whole.cells[choice.taker].name = choice.of(&names);
        Some(Reason::CellExists)
    };
}
