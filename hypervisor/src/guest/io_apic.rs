//! IOAPICs as guests reach them: through the hypervisor only, the root from the launch on and a cell as long as it has a
//! line.
//!
//! That the root's accesses are moderated at all times keeps what it writes and what hardware has in step, whoever comes
//! and goes; Linux writes to IOAPICs when it sets up or moves an interrupt, hardly ever when one comes. The index register
//! is shadowed for each CPU. The lock is held for the accesses to one pin's registers and, where an IOMMU remaps interrupts, for
//! the change of the pin's entry there, which has a deadline; nothing exits meanwhile.

use core::sync::atomic::Ordering;

use gaol_abi::config::{Interrupt, RANGE_IO_APIC};
use gaol_abi::outcome::{Reason, Unsupported};
use gaol_config::CpuSet;
use gaol_config::binary::SystemView;
use gaol_config::ledger::IO_APIC_WINDOW;
use spin::mutex::TicketMutex;

use super::interrupt::member;
use super::mmio::{Refused, Registers};
use crate::cell::moderated::{self, Moderated, What};
use crate::cpu::window::Windows;
use crate::cpu::{self, PerCpu};
use crate::device::io_apic::entry::Entry;
use crate::device::io_apic::judge::{ROOT, Receiver, Receivers, Remapping};
use crate::device::io_apic::{Chip, IoApics, LineRefused, offset};
use crate::error::Failure;
use crate::iommu::service::{self, lines};
use crate::launch::parameters;
use crate::memory::address::{GuestPhysical, HostPhysical, Range};
use crate::memory::page_table::{PageTable, Tables};
use crate::system::map_failure;
use crate::virt::NestedFormat;

static IO_APICS: TicketMutex<IoApics> = TicketMutex::new(IoApics::new());

/// Runs `action` with the IOAPICs and their registers.
fn with<R>(cpu: &PerCpu, action: impl FnOnce(&mut IoApics, &mut Hardware) -> R) -> R {
    let mut hardware = Hardware(cpu.windows);
    let mut io_apics = IO_APICS.lock();
    io_apics.look(&mut hardware);
    action(&mut io_apics, &mut hardware)
}

/// The registers, through a window of this CPU. Only for the holder of the lock.
struct Hardware(Windows);

impl Hardware {
    fn at(base: u64, offset: u64) -> HostPhysical {
        HostPhysical::new(base.wrapping_add(offset))
    }
}

impl Chip for Hardware {
    fn read(&mut self, base: u64, register: u8) -> u32 {
        let index = Self::at(base, offset::INDEX);
        self.0.write_device(index, 4, register.into());
        self.0.read_device(Self::at(base, offset::DATA), 4) as u32
    }

    fn write(&mut self, base: u64, register: u8, value: u32) {
        let index = Self::at(base, offset::INDEX);
        self.0.write_device(index, 4, register.into());
        let data = Self::at(base, offset::DATA);
        self.0.write_device(data, 4, value.into());
    }

    fn end_of_interrupt(&mut self, base: u64, vector: u8) {
        let end = Self::at(base, offset::END_OF_INTERRUPT);
        self.0.write_device(end, 4, vector.into());
    }

    fn remapping(&mut self, base: u64) -> Remapping {
        lines::remapping(base)
    }

    fn take_entry(&mut self, base: u64) -> Result<u16, Failure> {
        lines::take(base)
    }

    fn send(
        &mut self,
        base: u64,
        handle: u16,
        entry: Entry,
        owner: u32,
        receivers: &impl Receivers,
    ) -> bool {
        lines::set(self.0, (base, handle), Some((entry, owner)), receivers).is_ok()
    }

    fn block(&mut self, base: u64, handle: u16) {
        // The pin is masked: an IOMMU that does not answer sends nothing for it either.
        let none = Processors(CpuSet::EMPTY);
        let _ = lines::set(self.0, (base, handle), None, &none);
    }

    fn give_entry(&mut self, base: u64, handle: u16) {
        // As above; the entry stays taken then.
        let _ = lines::release(self.0, base, handle);
    }
}

/// The machine's processors; those in the set are about to leave their cell.
pub struct Processors(pub CpuSet);

impl Receivers for Processors {
    fn count(&self) -> u32 {
        parameters::cpu_count()
    }

    fn get(&self, number: u32) -> Option<Receiver> {
        let shared = cpu::shared(number)?;
        let member = member(number, shared);
        let stays = shared.next_cell.load(Ordering::Acquire) == member.cell;
        Some(Receiver {
            processor: member.processor,
            owner: (stays && !self.0.contains(number)).then_some(member.cell),
        })
    }
}

/// An IOAPIC, as the guest of a CPU has it.
pub struct View<'a> {
    cpu: &'a mut PerCpu,
    unit: u8,
}

impl<'a> View<'a> {
    /// The IOAPIC of this number.
    pub fn new(cpu: &'a mut PerCpu, unit: u8) -> Self {
        Self { cpu, unit }
    }

    fn index(&self) -> u8 {
        let indices = &self.cpu.io_apic_index;
        indices.get(usize::from(self.unit)).copied().unwrap_or(0)
    }
}

/// Accesses that the registers do not define have no effect and read as zero.
impl Registers for View<'_> {
    fn read(&mut self, at: u64, width: u8) -> Result<u64, Refused> {
        Ok(match (at, width) {
            (offset::INDEX, 1 | 4) => self.index().into(),
            (offset::DATA, 4) => {
                let (unit, register, guest) = (self.unit, self.index(), self.cpu.cell);
                let read = |io_apics: &mut IoApics, hardware: &mut Hardware| {
                    io_apics.read(hardware, unit, register, guest)
                };
                with(self.cpu, read).into()
            }
            _ => 0,
        })
    }

    fn write(&mut self, at: u64, width: u8, value: u64) -> Result<(), Refused> {
        let (unit, guest) = (self.unit, self.cpu.cell);
        match (at, width) {
            (offset::INDEX, 1 | 4) => {
                if let Some(index) = self.cpu.io_apic_index.get_mut(usize::from(unit)) {
                    *index = value as u8;
                }
            }
            (offset::DATA, 4) => {
                let (register, all) = (self.index(), Processors(CpuSet::EMPTY));
                with(self.cpu, |io_apics, hardware| {
                    io_apics.write(hardware, unit, register, value as u32, guest, &all);
                });
            }
            (offset::END_OF_INTERRUPT, 4) => with(self.cpu, |io_apics, hardware| {
                io_apics.end_of_interrupt(hardware, unit, value as u8, guest);
            }),
            _ => {}
        }
        Ok(())
    }
}

/// At launch: notes the IOAPICs that the system description names, or the one where all machines have their first, and
/// takes them from the root's EPT, which no CPU uses yet.
pub fn prepare<T: Tables>(
    view: &SystemView<'_>,
    ept: &mut PageTable<NestedFormat>,
    tables: &mut T,
) -> Result<(), Failure> {
    let most = u16::from(u8::MAX);
    if !view.describes_machine() {
        return prepare_one(IO_APIC_WINDOW, 0, most, ept, tables);
    }
    for range in view.ranges() {
        if range.kind == RANGE_IO_APIC {
            prepare_one(range.physical, range.number, range.extent, ept, tables)?;
        }
    }
    Ok(())
}

fn prepare_one<T: Tables>(
    base: u64,
    first_line: u32,
    pins: u16,
    ept: &mut PageTable<NestedFormat>,
    tables: &mut T,
) -> Result<(), Failure> {
    let pins = u8::try_from(pins).unwrap_or(u8::MAX);
    let Some(unit) = IO_APICS.lock().add(base, first_line, pins) else {
        return Ok(());
    };
    let page = Range::new(GuestPhysical::new(base & !0xfff), 0x1000)
        .ok_or(Failure::gaol(Reason::LaunchParameters, base))?;
    ept.unmap(tables, page).map_err(map_failure)?.ignore();
    add_range(ROOT, unit, base)
}

fn add_range(cell: u32, unit: u8, base: u64) -> Result<(), Failure> {
    let full = Failure::configuration(Reason::TooManyCells, 0);
    let range = Moderated {
        start: base,
        size: offset::SIZE,
        what: What::IoApic(unit),
    };
    moderated::table(cell)
        .and_then(|table| table.add(&range).ok())
        .ok_or(full)
}

fn refused(line: &Interrupt, why: LineRefused) -> Failure {
    let number = u64::from(line.number);
    match why {
        LineRefused::Unknown => Failure::configuration(Reason::InterruptUnknown, number),
        LineRefused::InUse => Failure::configuration(Reason::InterruptInUse, number),
        LineRefused::Remapped => {
            Failure::configuration(Reason::Unsupported, Unsupported::RemappedInterrupts.0)
        }
        LineRefused::Iommu(failure) => failure,
    }
}

/// Gives lines to a cell whose CPUs do not run yet, and the registers that go with them.
///
/// # Errors
/// When the root uses one, or there is none of that number; nothing has changed then.
pub fn assign(cpu: &PerCpu, cell: u32, lines: &[Interrupt]) -> Result<(), Failure> {
    let taken = with(cpu, |io_apics, hardware| {
        for line in lines {
            let check = io_apics.assign(hardware, line.number, cell);
            if let Err(why) = check {
                io_apics.release(hardware, cell);
                return Err(refused(line, why));
            }
        }
        Ok(())
    });
    let published = taken.and_then(|()| publish(cpu, cell));
    if published.is_err() {
        release(cpu, cell);
    }
    published
}

/// Makes the IOAPICs of which the cell has a line its moderated ranges.
fn publish(cpu: &PerCpu, cell: u32) -> Result<(), Failure> {
    forget(cell);
    with(cpu, |io_apics, _| {
        io_apics
            .units_of(cell)
            .try_for_each(|unit| match io_apics.base(unit) {
                Some(base) => add_range(cell, unit, base),
                None => Ok(()),
            })
    })
}

fn forget(cell: u32) {
    if let Some(table) = moderated::table(cell) {
        table.remove(|range| matches!(range.what, What::IoApic(_)));
    }
}

/// Gives all lines of a cell back to the root, masked. Its CPUs have stopped.
pub fn release(cpu: &PerCpu, cell: u32) {
    forget(cell);
    with(cpu, |io_apics, hardware| io_apics.release(hardware, cell));
}

/// Masks all lines of a cell that has stopped.
pub fn reset(cpu: &PerCpu, cell: u32) {
    with(cpu, |io_apics, hardware| io_apics.reset(hardware, cell));
}

/// Sees to it that what the root has set up reaches no processor that is not the root's, `leaving` not any more. To be
/// called before and after processors change hands.
pub fn revise(cpu: &PerCpu, leaving: CpuSet) {
    service::revise(cpu.windows, leaving);
    let count = with(cpu, |io_apics, _| io_apics.pin_count());
    for pin in 0..count {
        let processors = Processors(leaving);
        with(cpu, |io_apics, hardware| {
            io_apics.revise(hardware, pin, &processors);
        });
    }
}
