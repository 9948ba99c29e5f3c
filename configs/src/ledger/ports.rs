//! I/O ports.

use gaol_abi::config::{MACHINE_BAR_PORTS, PortRange};
use gaol_abi::outcome::Reason;

use super::memory::{Span, bars_of_others};
use super::{CellId, Ledger, Machine, PCI_CONFIGURATION_PORTS, RESET_PORTS};
use crate::binary::{CellView, Refusal};

fn span(ports: PortRange) -> Span {
    Span::new(ports.first.into(), ports.count.into())
}

/// Whether two port ranges have a port in common.
#[must_use]
pub fn ports_overlap(first: PortRange, second: PortRange) -> bool {
    span(first).first_common(span(second)).is_some()
}

/// Checks the range at `index` for itself and against those before it in the list.
pub(super) fn check_list(ranges: &[PortRange], index: usize) -> Result<PortRange, Refusal> {
    let range = ranges.get(index).copied();
    let range = range.ok_or(Refusal::new(Reason::PortsInvalid, 0))?;
    let end = u32::from(range.first).saturating_add(u32::from(range.count));
    let mut before = ranges.iter().take(index);
    if range.count == 0 || end > 0x1_0000 || before.any(|other| ports_overlap(range, *other)) {
        return Err(Refusal::new(Reason::PortsInvalid, range.first.into()));
    }
    Ok(range)
}

impl Ledger {
    /// The cell that a port belongs to.
    #[must_use]
    pub fn owner_of_port(&self, port: u16) -> CellId {
        let wanted = PortRange {
            first: port,
            count: 1,
        };
        self.owner_of_ports(wanted)
    }

    fn owner_of_ports(&self, wanted: PortRange) -> CellId {
        self.owner(|holding| {
            let mut ranges = holding.ports.get().iter();
            ranges.any(|range| ports_overlap(*range, wanted))
        })
    }

    pub(super) fn check_ports(
        &self,
        machine: &Machine<'_>,
        cell: &CellView<'_>,
        index: usize,
    ) -> Result<(), Refusal> {
        let range = check_list(cell.ports(), index)?;
        let own = |ports| ports_overlap(range, ports);
        let is_taken = own(PCI_CONFIGURATION_PORTS)
            || RESET_PORTS.into_iter().any(own)
            || machine.hypervisor_ports.is_some_and(own)
            || self.owner_of_ports(range) != CellId::ROOT
            || bars_of_others(machine, cell, MACHINE_BAR_PORTS)
                .any(|bar| bar.first_common(span(range)).is_some());
        if is_taken {
            return Err(Refusal::new(Reason::PortsOwned, range.first.into()));
        }
        Ok(())
    }
}
