//! What the units have recorded of faults, and what comes of it.
//!
//! Invariant: a look takes a bounded number of records from each unit, and silences one function of a cell at the most.
#![forbid(unsafe_code)]

use super::super::definitions::SourceId;
use super::super::hardware::Hardware;
use super::functions::Claimed;
use super::{Fleet, ROOT_DOMAIN};
use crate::memory::page_table::TableMemory;

impl Fleet {
    /// Takes what the units have recorded of faults, and keeps functions of cells that have too many from all memory.
    pub fn poll<M: TableMemory, H: Hardware>(&mut self, hardware: &H, memory: &M) {
        let seen = self.seen(hardware, memory);
        for index in 0..self.driven.len() {
            let Some(Some(driven)) = self.driven.get(index) else {
                continue;
            };
            let (claimed, faults, segment) = (&self.claimed, &mut self.faults, driven.segment);
            let mut stormy = None;
            let (_, lost) = driven.unit.take_faults(hardware, 16, |low, high| {
                let source = SourceId(high as u16);
                let mut all = claimed.iter().flatten();
                let is_it = |one: &&Claimed| {
                    (one.function.segment, one.function.function) == (segment, source.0)
                };
                let cell = all.find(is_it).map_or(0, |one| one.cell);
                if faults.note((segment, source), cell, (low, high), hardware.now()) && cell != 0 {
                    stormy = Some(source);
                }
            });
            if lost {
                self.faults.lost = self.faults.lost.saturating_add(1);
            }
            if let Some(source) = stormy {
                self.quarantine(hardware, &seen, segment, source);
            }
        }
    }

    fn quarantine<M: TableMemory>(
        &mut self,
        hardware: &impl Hardware,
        memory: &M,
        segment: u16,
        source: SourceId,
    ) {
        let mut all = self.claimed.iter_mut().flatten();
        let one =
            all.find(|one| one.function.segment == segment && one.function.function == source.0);
        let Some(one) = one.filter(|one| !one.quarantined) else {
            return;
        };
        // Still attached, as far as the cell's next start goes: it is detached by then.
        one.quarantined = true;
        let (unit, domain) = (one.unit, one.cell.saturating_add(ROOT_DOMAIN.into()) as u16);
        if let Some(devices) = self.devices(segment) {
            devices.silence(memory, source);
        }
        // A unit that fails is counted.
        let _ = self.forget_function(hardware, memory, unit, source, domain);
        self.faults.mark_quarantined(segment, source);
    }
}
