//! Functions change hands: what they were doing ends, what the last owner left in them goes, and Linux finds its own
//! settings when it has them back.
//!
//! PCI Express Base specification, "Function Level Reset (FLR)". Nothing waits here: each step says whether there is more
//! to do, and whoever calls comes again.
#![forbid(unsafe_code)]

use core::sync::atomic::Ordering;

use super::capabilities;
use super::express;
use super::function::{
    BARS, BarKind, CACHE_LINE, COMMAND, FIRST_BAR, Function, INTERRUPT_LINE, LINE_OFF, MEMORY, ROM,
};
use super::msix;
use super::space::{Config, Hardware};

/// How long a function may wait for answers to what it has asked.
const PENDING_MILLISECONDS: u64 = 500;
/// How long a function is left alone after the start of a reset.
const RESET_MILLISECONDS: u64 = 100;
/// How long a function may take after that until it answers.
const READY_MILLISECONDS: u64 = 1000;
/// How long a function is left alone after a change of its power state.
const POWER_MILLISECONDS: u64 = 10;
/// Entries of an MSI-X table that are cleaned in one step.
const ENTRIES_A_STEP: u16 = 64;
/// A function that is not ready for configuration yet gives this as its vendor.
const NOT_READY: u16 = 1;

/// Registers of the first 64 that are written back: cache line and latency, base address registers, interrupt line.
const HEADER: [u16; 8] = [
    CACHE_LINE,
    FIRST_BAR,
    FIRST_BAR + 4,
    FIRST_BAR + 8,
    FIRST_BAR + 12,
    FIRST_BAR + 16,
    FIRST_BAR + 20,
    INTERRUPT_LINE,
];
/// Words of the store that hold configuration space as the root had it: two doublewords each.
const SAVED_WORDS: usize = 32;
/// Words of the store behind them: registers of extended capabilities, offset << 32 | value.
const SAVED_EXTENDED: usize = 32;

/// Why a function can't be had.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// There is none.
    Absent,
    /// It is a bridge.
    Bridge,
    /// Its registers are not where they were a moment ago.
    Changed,
    /// It does not come back from its reset, or does not stop what it does.
    Stuck,
}

/// Where a function is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// It is still as the root has it.
    Inspected,
    /// It goes to the cell.
    ToCell(Step),
    /// It is the cell's.
    Cells,
    /// It goes back to the root.
    ToRoot(Step),
    /// It is as the root had it.
    Roots,
}

/// What is next in a hand-over. Times are those of the time stamp counter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Leave it alone until then, since its power state has changed; then look whether answers are pending.
    PoweredUp(Option<u64>),
    /// Wait for answers, at most until then.
    Pending(Option<u64>),
    /// It was told to reset: leave it alone until then.
    Resetting(u64),
    /// It sleeps, to be woken then, and is reset by that.
    Sleeping(u64),
    /// Look whether it answers, at most until then.
    Ready(u64),
    /// Put its settings back.
    Restore,
    /// Clean its MSI-X table from this entry on.
    Table(u16),
}

/// Whether a hand-over goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// There is more to do, or to wait for.
    More,
    /// It is done.
    Done,
}

/// What is known of the function as the root had it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Saved {
    /// There is something in the store.
    is_there: bool,
    /// How many words hold registers of extended capabilities.
    extended: usize,
}

/// Times, as the time stamp counter has them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Clock {
    /// Now.
    pub now: u64,
    /// Cycles in a millisecond.
    pub millisecond: u64,
}

impl Clock {
    const fn after(self, milliseconds: u64) -> u64 {
        let cycles = self.millisecond.saturating_mul(milliseconds);
        self.now.wrapping_add(cycles)
    }

    const fn is_past(self, time: u64) -> bool {
        self.now.wrapping_sub(time) as i64 >= 0
    }
}

/// How a function can be reset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Reset {
    Express,
    Advanced,
    Power,
    None,
}

impl Function<'_> {
    /// Takes the function from the root, which has no way to it any more: keeps its settings, and stops it.
    ///
    /// # Errors
    /// When it is not as it was when it was inspected. It is as the root had it then.
    pub fn take<H: Hardware + ?Sized>(&mut self, hardware: &mut H) -> Result<(), Fault> {
        let mut config = self.config(hardware);
        for (bar, offset) in self.bars.iter().zip((FIRST_BAR..).step_by(4)) {
            if config.read32(offset) != bar.real {
                return Err(Fault::Changed);
            }
        }
        self.save(hardware);
        self.stop(hardware);
        self.find_sizes(hardware);
        let power = self.power_up(hardware);
        self.stage = Stage::ToCell(power);
        self.clear();
        Ok(())
    }

    /// Begins to give the function back: stops it.
    pub fn begin_return<H: Hardware + ?Sized>(&mut self, hardware: &mut H) {
        if matches!(self.stage, Stage::ToCell(_) | Stage::Cells) {
            self.stop(hardware);
            self.clear();
            let power = self.power_up(hardware);
            self.stage = Stage::ToRoot(power);
        }
    }

    /// The cell has stopped: so does the function, and is reset as for a new cell. Nothing that was going on in it reaches
    /// what is loaded next.
    pub fn rest<H: Hardware + ?Sized>(&mut self, hardware: &mut H) {
        if self.stage == Stage::Cells {
            self.stop(hardware);
            self.clear();
            let power = self.power_up(hardware);
            self.stage = Stage::ToCell(power);
        }
    }

    /// Whether nothing that was going on in the function can reach memory any more, as long as its cell does not run: it was
    /// stopped, and has had its answers and its reset.
    #[must_use]
    pub const fn is_quiet(&self) -> bool {
        match self.stage {
            Stage::Inspected | Stage::Cells | Stage::Roots => true,
            Stage::ToCell(step) | Stage::ToRoot(step) => {
                matches!(step, Step::Restore | Step::Table(_))
            }
        }
    }

    /// Whether a hand-over is under way.
    #[must_use]
    pub const fn is_busy(&self) -> bool {
        matches!(self.stage, Stage::ToCell(_) | Stage::ToRoot(_))
    }

    /// Puts the root's settings back at once, whatever the function does.
    pub fn abandon<H: Hardware + ?Sized>(&mut self, hardware: &mut H) {
        if !matches!(self.stage, Stage::Inspected | Stage::Roots) {
            self.restore_for_root(hardware);
            self.stage = Stage::Roots;
        }
    }

    /// The next step of a hand-over.
    ///
    /// # Errors
    /// When the function does not end what it does in time, or does not come back. On its way to the root it goes on all
    /// the same.
    pub fn advance<H: Hardware + ?Sized>(
        &mut self,
        hardware: &mut H,
        clock: Clock,
    ) -> Result<Progress, Fault> {
        let (step, to_root) = match self.stage {
            Stage::ToCell(step) => (step, false),
            Stage::ToRoot(step) => (step, true),
            Stage::Inspected | Stage::Cells | Stage::Roots => return Ok(Progress::Done),
        };
        let next = match step {
            Step::PoweredUp(None) => Step::PoweredUp(Some(clock.after(POWER_MILLISECONDS))),
            Step::PoweredUp(Some(time)) if !clock.is_past(time) => step,
            Step::PoweredUp(_) => Step::Pending(None),
            Step::Pending(since) => self.wait_for_answers(hardware, clock, since, to_root)?,
            Step::Resetting(time) | Step::Sleeping(time) if !clock.is_past(time) => step,
            Step::Resetting(_) => Step::Ready(clock.after(READY_MILLISECONDS)),
            Step::Sleeping(_) => {
                self.set_power_state(hardware, 0);
                Step::Resetting(clock.after(POWER_MILLISECONDS))
            }
            Step::Ready(time) => {
                if self.is_ready(hardware) || clock.is_past(time) && to_root {
                    Step::Restore
                } else if clock.is_past(time) {
                    return Err(Fault::Stuck);
                } else {
                    step
                }
            }
            Step::Restore => {
                if !self.restore_for_cell(hardware) && !to_root {
                    return Err(Fault::Stuck);
                }
                Step::Table(0)
            }
            Step::Table(first) => match self.clean_table(hardware, first) {
                Some(next) => Step::Table(next),
                None => return Ok(self.finish(hardware, to_root)),
            },
        };
        self.stage = if to_root {
            Stage::ToRoot(next)
        } else {
            Stage::ToCell(next)
        };
        Ok(Progress::More)
    }

    fn finish<H: Hardware + ?Sized>(&mut self, hardware: &mut H, to_root: bool) -> Progress {
        if to_root {
            self.restore_for_root(hardware);
            self.stage = Stage::Roots;
        } else {
            self.clear();
            self.stage = Stage::Cells;
        }
        Progress::Done
    }

    fn save<H: Hardware + ?Sized>(&mut self, hardware: &mut H) {
        let store = self.store;
        let has_extended = hardware.has_extended(self.id());
        let mut config = self.config(hardware);
        for (word, offset) in store.iter().take(SAVED_WORDS).zip((0u16..).step_by(8)) {
            let low = config.read32(offset);
            let high = config.read32(offset.wrapping_add(4));
            word.store(u64::from(low) | u64::from(high) << 32, Ordering::Relaxed);
        }
        let mut words = store.iter().skip(SAVED_WORDS).take(SAVED_EXTENDED);
        let mut count = 0usize;
        if has_extended {
            capabilities::kept(&mut config, |config, offset, bits| {
                if let Some(word) = words.next() {
                    let value = config.read32(offset) & bits;
                    word.store(
                        u64::from(offset) << 32 | u64::from(value),
                        Ordering::Relaxed,
                    );
                    count = count.saturating_add(1);
                }
            });
        }
        self.saved = Saved {
            is_there: true,
            extended: count,
        };
    }

    /// What the root had in a doubleword.
    fn saved(&self, offset: u16) -> u32 {
        let word = self.store.get(usize::from(offset >> 3));
        let value = word.map_or(0, |word| word.load(Ordering::Relaxed));
        (value >> (u32::from(offset & 4) << 3)) as u32
    }

    /// The function answers nobody, asks for nothing and interrupts no one.
    fn stop<H: Hardware + ?Sized>(&self, hardware: &mut H) {
        let mut config = self.config(hardware);
        config.write16(COMMAND, LINE_OFF);
        if self.found.msi != 0 {
            let at = self.found.msi.wrapping_add(2);
            let control = config.read16(at);
            config.write16(at, control & !super::msi::ENABLE);
        }
        if self.found.msi_x != 0 {
            let at = self.found.msi_x.wrapping_add(msix::CONTROL);
            let control = config.read16(at);
            config.write16(at, control & !msix::ENABLE | msix::MASK_ALL);
        }
        if self.found.express != 0 {
            let at = self.found.express.wrapping_add(express::CONTROL);
            let control = config.read16(at);
            let off = express::CONTROL_REPORTS | express::CONTROL_RESET;
            config.write16(at, control & !off);
        }
    }

    /// Which bits of the base address registers are there. The function does not answer meanwhile.
    fn find_sizes<H: Hardware + ?Sized>(&mut self, hardware: &mut H) {
        let mut config = self.config(hardware);
        let mut masks = [0u32; BARS];
        for ((mask, bar), offset) in masks
            .iter_mut()
            .zip(&self.bars)
            .zip((FIRST_BAR..).step_by(4))
        {
            config.write32(offset, u32::MAX);
            *mask = config.read32(offset);
            config.write32(offset, bar.real);
        }
        let highs = masks.iter().skip(1).chain([&0]);
        let mut before = 0;
        for (bar, (mask, high)) in self.bars.iter_mut().zip(masks.iter().zip(highs)) {
            let bits = match bar.kind {
                BarKind::None => 0,
                BarKind::Ports => u64::from(mask & 0xfffc),
                BarKind::Memory => u64::from(mask & !0xf),
                BarKind::Wide => u64::from(*high) << 32 | u64::from(mask & !0xf),
                BarKind::High => before,
            };
            bar.size = bits & bits.wrapping_neg();
            before = bar.size;
            if bar.size == 0 && bar.real == 0 {
                bar.kind = BarKind::None;
            }
        }
    }

    /// Leaves the states of low power, which some functions do by a reset.
    fn power_up<H: Hardware + ?Sized>(&self, hardware: &mut H) -> Step {
        let is_asleep = self.found.power != 0
            && self
                .config(hardware)
                .read16(self.found.power.wrapping_add(express::POWER))
                & express::POWER_STATE
                != 0;
        if is_asleep {
            self.set_power_state(hardware, 0);
            Step::PoweredUp(None)
        } else {
            Step::Pending(None)
        }
    }

    fn set_power_state<H: Hardware + ?Sized>(&self, hardware: &mut H, state: u16) {
        let at = self.found.power.wrapping_add(express::POWER);
        let mut config = self.config(hardware);
        let off = express::POWER_STATE | express::POWER_WAKE | express::POWER_WOKEN;
        let control = config.read16(at);
        config.write16(at, control & !off | state);
    }

    fn has_pending<H: Hardware + ?Sized>(&self, hardware: &mut H) -> bool {
        let mut config = self.config(hardware);
        let express = self.found.express;
        let advanced = self.found.advanced;
        if express != 0 {
            let status = config.read16(express.wrapping_add(express::STATUS));
            status != u16::MAX && status & express::STATUS_PENDING != 0
        } else if advanced != 0 {
            let status = config.read8(advanced.wrapping_add(express::FEATURES_STATUS));
            status != u8::MAX && status & 1 != 0
        } else {
            false
        }
    }

    fn wait_for_answers<H: Hardware + ?Sized>(
        &self,
        hardware: &mut H,
        clock: Clock,
        deadline: Option<u64>,
        to_root: bool,
    ) -> Result<Step, Fault> {
        let deadline = deadline.unwrap_or(clock.after(PENDING_MILLISECONDS));
        let is_pending = self.has_pending(hardware);
        if is_pending && !clock.is_past(deadline) {
            return Ok(Step::Pending(Some(deadline)));
        }
        let reset = self.way_to_reset(hardware);
        if is_pending && reset == Reset::None && !to_root {
            return Err(Fault::Stuck);
        }
        let mut config = self.config(hardware);
        Ok(match reset {
            Reset::Express => {
                let at = self.found.express.wrapping_add(express::CONTROL);
                let control = config.read16(at);
                config.write16(at, control | express::CONTROL_RESET);
                Step::Resetting(clock.after(RESET_MILLISECONDS))
            }
            Reset::Advanced => {
                config.write8(
                    self.found.advanced.wrapping_add(express::FEATURES_CONTROL),
                    1,
                );
                Step::Resetting(clock.after(RESET_MILLISECONDS))
            }
            Reset::Power => {
                self.set_power_state(hardware, express::POWER_STATE);
                Step::Sleeping(clock.after(POWER_MILLISECONDS))
            }
            Reset::None => Step::Restore,
        })
    }

    fn way_to_reset<H: Hardware + ?Sized>(&self, hardware: &mut H) -> Reset {
        let mut config = self.config(hardware);
        let found = &self.found;
        if found.express != 0
            && config.read32(found.express.wrapping_add(express::DEVICE))
                & express::DEVICE_HAS_RESET
                != 0
        {
            return Reset::Express;
        }
        if found.advanced != 0
            && config.read32(found.advanced) & express::FEATURES_RESET == express::FEATURES_RESET
        {
            return Reset::Advanced;
        }
        if found.power != 0
            && config.read16(found.power.wrapping_add(express::POWER)) & express::POWER_NO_RESET
                == 0
        {
            return Reset::Power;
        }
        Reset::None
    }

    fn is_ready<H: Hardware + ?Sized>(&self, hardware: &mut H) -> bool {
        let vendor = self.config(hardware).read16(0);
        vendor != u16::MAX && vendor != NOT_READY
    }

    /// What every owner needs: addresses, and what the link and the hierarchy have agreed upon. `false`: an address did
    /// not stay.
    fn restore_for_cell<H: Hardware + ?Sized>(&self, hardware: &mut H) -> bool {
        let command = LINE_OFF;
        let mut config = self.config(hardware);
        config.write16(COMMAND, command);
        let mut stays = true;
        for (bar, offset) in self.bars.iter().zip((FIRST_BAR..).step_by(4)) {
            config.write32(offset, bar.real);
            stays &= config.read32(offset) == bar.real;
        }
        config.write32(ROM, 0);
        config.write16(CACHE_LINE, self.saved(CACHE_LINE) as u16);
        self.restore_express(&mut config, express::CONTROL_REPORTS);
        self.stop(hardware);
        stays
    }

    /// Writes PCI Express' registers back as the root had them, but for these bits of device control.
    fn restore_express<H: Hardware + ?Sized>(&self, config: &mut Config<'_, H>, but: u16) {
        let base = self.found.express;
        if base == 0 {
            return;
        }
        let at = |register: u16| base.wrapping_add(register);
        let saved = |register| self.saved(at(register) & !3) as u16;
        let control = saved(express::CONTROL) & !express::CONTROL_RESET & !but;
        config.write16(at(express::CONTROL), control);
        let link = saved(express::LINK_CONTROL) & !express::LINK_CONTROL_RETRAIN;
        config.write16(at(express::LINK_CONTROL), link);
        let version = self.saved(base) >> 16 & 0xf;
        if version >= 2 && base.saturating_add(express::LENGTH_2) <= 256 {
            config.write16(at(express::CONTROL_2), saved(express::CONTROL_2));
        }
    }

    /// Cleans a part of the MSI-X table. `None`: it is clean.
    fn clean_table<H: Hardware + ?Sized>(&self, hardware: &mut H, first: u16) -> Option<u16> {
        let table = self.msix.as_ref().filter(|table| table.table.is_some())?;
        if first >= table.entries {
            return None;
        }
        self.config(hardware).write16(COMMAND, LINE_OFF | MEMORY);
        let next = table.clean(hardware, first, ENTRIES_A_STEP);
        self.config(hardware).write16(COMMAND, LINE_OFF);
        (next < table.entries).then_some(next)
    }

    /// Everything is as it was when the root had the function; what it switches on comes last.
    fn restore_for_root<H: Hardware + ?Sized>(&self, hardware: &mut H) {
        if !self.saved.is_there {
            return;
        }
        let found = self.found;
        let mut config = self.config(hardware);
        config.write16(COMMAND, LINE_OFF);
        for offset in HEADER.into_iter().chain([ROM]) {
            let value = self.saved(offset);
            match offset {
                CACHE_LINE => config.write16(offset, value as u16),
                INTERRUPT_LINE => config.write8(offset, value as u8),
                _ => config.write32(offset, value),
            }
        }
        self.restore_express(&mut config, 0);
        let extended = self.store.iter().skip(SAVED_WORDS);
        for word in extended.take(self.saved.extended) {
            let word = word.load(Ordering::Relaxed);
            config.write32((word >> 32) as u16, word as u32);
        }
        if found.msi != 0 {
            self.restore_msi(&mut config, found.msi);
        }
        if found.msi_x != 0 {
            let control = (self.saved(found.msi_x) >> 16) as u16;
            config.write16(found.msi_x.wrapping_add(msix::CONTROL), control);
        }
        if found.power != 0 {
            let at = found.power.wrapping_add(express::POWER);
            let control = self.saved(at) as u16 & !express::POWER_WOKEN;
            config.write16(at, control);
        }
        config.write16(COMMAND, self.saved(COMMAND) as u16);
    }

    /// The message first, then what switches it on.
    fn restore_msi<H: Hardware + ?Sized>(&self, config: &mut Config<'_, H>, at: u16) {
        let length = self.msi.as_ref().map_or(0, super::msi::Msi::length);
        for offset in (4..length).step_by(4) {
            let at = at.wrapping_add(offset);
            config.write32(at, self.saved(at));
        }
        config.write16(at.wrapping_add(2), (self.saved(at) >> 16) as u16);
    }
}
