//! A function of a cell: what the cell finds in its configuration space, and what becomes of what it writes there.
//!
//! PCI Local Bus specification, "Configuration Space Header". Base address registers, the expansion ROM and what has no
//! effect on the function are shadows; the rest is read from the function, and written through masks.
#![forbid(unsafe_code)]

use super::capabilities::{Extended, Found};
use super::express;
use super::handover::{Fault, Saved, Stage};
use super::message::IsOwn;
use super::msi::Msi;
use super::msix::{self, MsiX, Store};
use super::space::{Config, EXTENDED_SIZE, FunctionId, Hardware, STANDARD_SIZE, Written, pieces};
use crate::memory::address::HostPhysical;

/// Base address registers of a function.
pub const BARS: usize = 6;

const ID: u16 = 0x00;
pub(super) const COMMAND: u16 = 0x04;
/// Cache line size, latency timer, header type, self-test.
pub(super) const CACHE_LINE: u16 = 0x0c;
const HEADER_TYPE: u16 = 0x0e;
pub(super) const FIRST_BAR: u16 = 0x10;
const LAST_BAR: u16 = 0x24;
pub(super) const ROM: u16 = 0x30;
/// Interrupt line, interrupt pin, and what is not used any more.
pub(super) const INTERRUPT_LINE: u16 = 0x3c;

/// Command: answers to its ports.
const PORTS: u16 = 1;
/// Command: answers to its memory.
pub(super) const MEMORY: u16 = 1 << 1;
/// Command: may start accesses.
pub(super) const MASTER: u16 = 1 << 2;
/// Command: does not use its interrupt line.
pub(super) const LINE_OFF: u16 = 1 << 10;
/// Status: errors that were seen; ones are written to clear them.
const STATUS_ERRORS: u32 = 0xf900_0000;

/// What a base address register decodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BarKind {
    /// Nothing.
    None,
    /// I/O ports.
    Ports,
    /// Memory, with a 32-bit address.
    Memory,
    /// Memory, with a 64-bit address, of which this is the low half.
    Wide,
    /// The high half of the register before it.
    High,
}

/// A base address register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bar {
    /// What it decodes.
    pub kind: BarKind,
    /// Bytes or ports; a power of two, or 0. Of a high half: those of the whole.
    pub size: u64,
    /// What it holds, as long as the cell has the function.
    pub real: u32,
    /// What the cell reads.
    pub seen: u32,
}

impl Bar {
    const NONE: Self = Self {
        kind: BarKind::None,
        size: 0,
        real: 0,
        seen: 0,
    };

    const fn new(kind: BarKind, real: u32) -> Self {
        Self {
            kind,
            size: 0,
            real,
            seen: real,
        }
    }

    /// Bits of the register that are no address.
    const fn flags(&self) -> u32 {
        match self.kind {
            BarKind::None | BarKind::High => 0,
            BarKind::Ports => 3,
            BarKind::Memory | BarKind::Wide => 0xf,
        }
    }

    /// The cell moves it, or asks for its size: in the shadow only.
    fn write(&mut self, written: Written) {
        let address_bits = self.size.wrapping_neg();
        let changes = match self.kind {
            BarKind::None => 0,
            BarKind::High => (address_bits >> 32) as u32,
            BarKind::Ports => address_bits as u32 & !3,
            BarKind::Memory | BarKind::Wide => address_bits as u32 & !0xf,
        };
        let moves = if self.size == 0 { 0 } else { changes };
        self.seen = written.over(self.seen) & moves | self.real & self.flags();
    }
}

/// A range that a base address register decodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Decoded {
    /// Ports, not memory.
    pub is_ports: bool,
    /// Number of the register.
    pub number: u8,
    /// First address.
    pub address: u64,
    /// Bytes or ports; 0 as long as it is not known.
    pub size: u64,
}

/// A function that a cell has, or is about to get, or has had.
#[derive(Debug)]
pub struct Function<'s> {
    id: FunctionId,
    pub(super) bars: [Bar; BARS],
    pub(super) found: Found,
    extended: Extended,
    pub(super) msi: Option<Msi>,
    pub(super) msix: Option<MsiX>,
    mastering: Mastering,
    /// The cell has interrupt lines, so the function may use its own.
    may_use_line: bool,
    /// What the cell has switched on in the command register.
    command: u16,
    cache_line: u16,
    interrupt_line: u8,
    pub(super) store: &'s Store,
    pub(super) stage: Stage,
    pub(super) saved: Saved,
}

/// What a cell's configuration says of a function.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Terms {
    /// Interrupt vectors that the cell may use.
    pub vectors: u16,
    /// The cell has interrupt lines.
    pub has_lines: bool,
    /// Whether the cell may make it bus master.
    pub mastering: Mastering,
}

/// Whether a function of a cell may start accesses: read and write memory, and send interrupt messages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mastering {
    /// Never.
    Never,
    /// An IOMMU keeps it in the memory of the cell.
    Confined,
    /// It may reach all of the machine, and the configuration accepts that.
    Unprotected,
}

impl<'s> Function<'s> {
    /// Looks at a function and changes nothing. The store is the function's alone, and forgotten by whoever had it.
    ///
    /// # Errors
    /// When there is no function, or a bridge.
    pub fn inspect<H: Hardware + ?Sized>(
        hardware: &mut H,
        id: FunctionId,
        terms: Terms,
        store: &'s Store,
    ) -> Result<Self, Fault> {
        let is_extended = hardware.has_extended(id);
        let config = &mut Config { hardware, id };
        if config.read16(ID) == u16::MAX {
            return Err(Fault::Absent);
        }
        if config.read8(HEADER_TYPE) & 0x7f != 0 {
            return Err(Fault::Bridge);
        }
        let found = Found::new(config);
        let bars = read_bars(config);
        let msi = (found.msi != 0).then(|| Msi::new(config, found.msi, terms.vectors));
        let msix = (found.msi_x != 0).then(|| table(config, found.msi_x, &bars, terms.vectors));
        if let Some(table) = &msix {
            table.clear(store);
        }
        Ok(Self {
            id,
            bars,
            found,
            extended: if is_extended {
                Extended::new(config)
            } else {
                Extended::NOTHING
            },
            msi,
            msix,
            mastering: terms.mastering,
            may_use_line: terms.has_lines,
            command: 0,
            cache_line: 0,
            interrupt_line: 0,
            store,
            stage: Stage::Inspected,
            saved: Saved::default(),
        })
    }

    /// Its address.
    #[must_use]
    pub const fn id(&self) -> FunctionId {
        self.id
    }

    /// Interrupts that it can have at the most, by MSI or MSI-X.
    #[must_use]
    pub fn vectors(&self) -> u16 {
        let of_msi = self.msi.as_ref().map_or(0, Msi::most);
        let of_table = self.msix.as_ref().map_or(0, |table| table.usable);
        of_msi.max(of_table)
    }

    /// Whether the cell may make it bus master.
    #[must_use]
    pub const fn mastering(&self) -> Mastering {
        self.mastering
    }

    /// What its base address registers decode, as long as the cell has it. Of those without an address, nothing.
    pub fn decoded(&self) -> impl Iterator<Item = Decoded> {
        let highs = self.bars.iter().skip(1).map(|bar| bar.real).chain([0]);
        let bars = (0u8..).zip(self.bars.iter().zip(highs));
        bars.filter_map(|(number, (bar, high))| {
            let address = match bar.kind {
                BarKind::None | BarKind::High => return None,
                BarKind::Wide => u64::from(high) << 32 | u64::from(bar.real & !0xf),
                _ => u64::from(bar.real & !bar.flags()),
            };
            (address != 0).then_some(Decoded {
                is_ports: bar.kind == BarKind::Ports,
                number,
                address,
                size: bar.size,
            })
        })
    }

    /// The whole pages of its MSI-X table, if it has one: first address, and bytes.
    #[must_use]
    pub fn table_pages(&self) -> Option<(u64, u64)> {
        self.msix.as_ref()?.pages()
    }

    /// Its MSI-X table, if it has one with an address: first address, and bytes.
    #[must_use]
    pub fn table(&self) -> Option<(u64, u64)> {
        let table = self.msix.as_ref()?;
        Some((table.table?.as_u64(), table.bytes()))
    }

    /// Whether it is as the root has it, or had it.
    #[must_use]
    pub fn is_roots(&self) -> bool {
        matches!(self.stage, Stage::Inspected | Stage::Roots)
    }

    pub(super) fn config<'h, H: Hardware + ?Sized>(&self, hardware: &'h mut H) -> Config<'h, H> {
        Config {
            hardware,
            id: self.id,
        }
    }

    /// Forgets what the cell has written.
    pub(super) fn clear(&mut self) {
        self.bars.iter_mut().for_each(|bar| bar.seen = bar.real);
        self.command = 0;
        self.cache_line = 0;
        self.interrupt_line = 0;
        if let Some(msi) = &mut self.msi {
            msi.clear();
        }
        if let Some(msix) = &self.msix {
            msix.clear(self.store);
        }
    }

    /// A cell reads `width` (1, 2, 4 or 8) bytes of configuration space at `offset`.
    pub fn read<H: Hardware + ?Sized>(&self, hardware: &mut H, offset: u16, width: u8) -> u64 {
        pieces(offset.into(), width).fold(0, |value, piece| {
            let dword = piece.dword as u16;
            value | piece.read(self.read_dword(hardware, dword))
        })
    }

    fn read_dword<H: Hardware + ?Sized>(&self, hardware: &mut H, offset: u16) -> u32 {
        if self.stage != Stage::Cells || offset >= EXTENDED_SIZE {
            return u32::MAX;
        }
        if let Some(bar) = bar_number(offset).and_then(|number| self.bars.get(number)) {
            return bar.seen;
        }
        if offset == ROM {
            return 0;
        }
        if offset >= STANDARD_SIZE && self.extended == Extended::NOTHING {
            return self.extended.seen(offset, 0);
        }
        let real = self.config(hardware).read32(offset);
        match offset {
            CACHE_LINE => real & !0xffff | u32::from(self.cache_line),
            INTERRUPT_LINE => real & !0xff | u32::from(self.interrupt_line),
            STANDARD_SIZE.. => self.extended.seen(offset, real),
            _ => self.read_capability(offset, real),
        }
    }

    fn read_capability(&self, offset: u16, real: u32) -> u32 {
        if let Some(msi) = &self.msi
            && let Some(own) = msi.offset(offset)
        {
            return msi.seen(own, real);
        }
        let is_at = |base: u16, register: u16| base != 0 && offset == base.wrapping_add(register);
        if is_at(self.found.express, express::DEVICE) {
            real & !express::DEVICE_HAS_RESET
        } else if is_at(self.found.advanced, express::FEATURES) {
            real & !express::FEATURES_RESET
        } else {
            real
        }
    }

    /// A cell writes the low `width` (1, 2, 4 or 8) bytes of `value` at `offset`.
    pub fn write<H: Hardware + ?Sized>(
        &mut self,
        hardware: &mut H,
        offset: u16,
        width: u8,
        value: u64,
        is_own: IsOwn<'_>,
    ) {
        if self.stage != Stage::Cells {
            return;
        }
        for piece in pieces(offset.into(), width) {
            let written = piece.written(value);
            if piece.dword < u64::from(STANDARD_SIZE) {
                self.write_dword(hardware, piece.dword as u16, written, is_own);
            }
        }
    }

    fn write_dword<H: Hardware + ?Sized>(
        &mut self,
        hardware: &mut H,
        offset: u16,
        written: Written,
        is_own: IsOwn<'_>,
    ) {
        if let Some(bar) = bar_number(offset).and_then(|number| self.bars.get_mut(number)) {
            return bar.write(written);
        }
        match offset {
            COMMAND => self.write_command(hardware, written),
            CACHE_LINE => self.cache_line = written.over(self.cache_line.into()) as u16,
            INTERRUPT_LINE => {
                self.interrupt_line = written.over(self.interrupt_line.into()) as u8;
            }
            _ => self.write_capability(hardware, offset, written, is_own),
        }
    }

    /// Bits of the command register that the cell may change. Errors are not reported, which would be an NMI of the
    /// machine; nothing else in the register is of use to a function of today.
    fn command_mask(&self) -> u16 {
        let mut mask = PORTS | MEMORY;
        // A register without an address would decode from address 0 on.
        for bar in &self.bars {
            match bar.kind {
                BarKind::Ports if bar.real & !3 == 0 => mask &= !PORTS,
                BarKind::Memory if bar.real & !0xf == 0 => mask &= !MEMORY,
                _ => {}
            }
        }
        let wide = self.bars.windows(2);
        let is_open = |pair: &[Bar]| {
            matches!(pair, [low, high]
                if low.kind == BarKind::Wide && low.real & !0xf == 0 && high.real == 0)
        };
        if wide.into_iter().any(is_open) {
            mask &= !MEMORY;
        }
        if self.mastering != Mastering::Never {
            mask |= MASTER;
        }
        if self.may_use_line {
            mask |= LINE_OFF;
        }
        mask
    }

    fn write_command<H: Hardware + ?Sized>(&mut self, hardware: &mut H, written: Written) {
        let mask = self.command_mask();
        if written.touches(0xffff) {
            let off = if mask & LINE_OFF == 0 { LINE_OFF } else { 0 };
            self.command = written.over(self.command.into()) as u16 & mask | off;
            self.config(hardware).write16(COMMAND, self.command);
        }
        let errors = written.value & STATUS_ERRORS;
        if errors != 0 {
            self.config(hardware)
                .write16(COMMAND.wrapping_add(2), (errors >> 16) as u16);
        }
    }

    fn write_capability<H: Hardware + ?Sized>(
        &mut self,
        hardware: &mut H,
        offset: u16,
        written: Written,
        is_own: IsOwn<'_>,
    ) {
        let id = self.id;
        if let Some(msi) = &mut self.msi
            && let Some(own) = msi.offset(offset)
        {
            return msi.write(&mut Config { hardware, id }, own, written, is_own);
        }
        let config = &mut Config { hardware, id };
        if let Some(msix) = &self.msix
            && offset == msix.at
        {
            let at = offset.wrapping_add(msix::CONTROL);
            let bits = if msix.table.is_some() {
                msix::ENABLE | msix::MASK_ALL
            } else {
                0
            };
            let old = config.read16(at);
            let new = (written.over(u32::from(old) << 16) >> 16) as u16;
            config.write16(at, old & !bits | new & bits);
        }
        let base = self.found.express;
        if base != 0 && offset == base.wrapping_add(express::CONTROL) {
            write_device_control(config, offset, written);
        }
    }

    /// Whether the function answers to its memory.
    const fn is_on(&self) -> bool {
        self.command & MEMORY != 0
    }

    /// A cell reads from a page of the function's MSI-X table.
    ///
    /// # Errors
    /// When the access is partly in the table, not aligned besides it, or the function is not the cell's.
    pub fn read_table<H: Hardware + ?Sized>(
        &self,
        hardware: &mut H,
        at: u64,
        width: u8,
    ) -> Result<u64, msix::Refused> {
        let table = self.table_of_cell()?;
        table.read(hardware, self.store, self.is_on(), at, width)
    }

    /// A cell writes to a page of the function's MSI-X table.
    ///
    /// # Errors
    /// As for [`Function::read_table`].
    pub fn write_table<H: Hardware + ?Sized>(
        &self,
        hardware: &mut H,
        at: u64,
        width: u8,
        value: u64,
        is_own: IsOwn<'_>,
    ) -> Result<(), msix::Refused> {
        let table = self.table_of_cell()?;
        table.write(
            (hardware, self.store, self.is_on()),
            at,
            width,
            value,
            is_own,
        )
    }

    fn table_of_cell(&self) -> Result<&MsiX, msix::Refused> {
        let table = self.msix.as_ref().filter(|_| self.stage == Stage::Cells);
        table.ok_or(msix::Refused)
    }
}

fn write_device_control<H: Hardware + ?Sized>(
    config: &mut Config<'_, H>,
    offset: u16,
    written: Written,
) {
    if written.touches(express::CONTROL_OF_CELLS.into()) {
        let old = config.read16(offset);
        let new = written.over(old.into()) as u16;
        let bits = express::CONTROL_OF_CELLS;
        config.write16(offset, old & !bits & !express::CONTROL_RESET | new & bits);
    }
    let errors = (written.value >> 16) as u16 & express::STATUS_ERRORS;
    if errors != 0 {
        config.write16(offset.wrapping_add(2), errors);
    }
}

/// The base address register at `offset`.
fn bar_number(offset: u16) -> Option<usize> {
    (FIRST_BAR..=LAST_BAR)
        .contains(&offset)
        .then(|| usize::from(offset.wrapping_sub(FIRST_BAR) >> 2))
}

fn read_bars<H: Hardware + ?Sized>(config: &mut Config<'_, H>) -> [Bar; BARS] {
    let mut bars = [Bar::NONE; BARS];
    let mut is_high = false;
    let last = BARS.wrapping_sub(1);
    for ((index, bar), offset) in bars
        .iter_mut()
        .enumerate()
        .zip((FIRST_BAR..=LAST_BAR).step_by(4))
    {
        let real = config.read32(offset);
        let kind = match real & 7 {
            _ if is_high => BarKind::High,
            bits if bits & 1 != 0 => BarKind::Ports,
            4 if index < last => BarKind::Wide,
            _ => BarKind::Memory,
        };
        is_high = kind == BarKind::Wide;
        *bar = Bar::new(kind, real);
    }
    bars
}

fn table<H: Hardware + ?Sized>(
    config: &mut Config<'_, H>,
    at: u16,
    bars: &[Bar; BARS],
    vectors: u16,
) -> MsiX {
    let entries = (config.read16(at.wrapping_add(msix::CONTROL)) & msix::SIZE).wrapping_add(1);
    let place = config.read32(at.wrapping_add(msix::TABLE));
    let number = (place & 7) as usize;
    let bar = bars.get(number).and_then(|bar| match bar.kind {
        BarKind::Memory => Some(u64::from(bar.real & !0xf)),
        BarKind::Wide => {
            let high = bars.get(number.wrapping_add(1))?.real;
            Some(u64::from(high) << 32 | u64::from(bar.real & !0xf))
        }
        _ => None,
    });
    let base = bar.filter(|address| *address != 0);
    let table = base.and_then(|address| address.checked_add(u64::from(place & !7)));
    MsiX {
        id: config.id,
        at,
        entries,
        usable: entries.min(vectors).min(msix::MOST_VECTORS),
        table: table.map(HostPhysical::new),
    }
}
