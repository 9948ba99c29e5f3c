//! What the root and cells may do without an exit: MSRs and ports.
//!
//! Everything exits but what is let through here: MSRs as the table in [`gaol_config::msr_policy`] says, ports as they are
//! given.
#![forbid(unsafe_code)]

use gaol_abi::config::{MSR_READ, MSR_WRITE, MsrAccess, PortRange};
use gaol_config::msr_policy::{Grant, ROWS, Read, policy};

use super::root::RootShare;
use crate::guest::bitmaps::{MsrLayout, MsrMap, PortLayout, PortMap};
use crate::processor::msr;

/// The ports that are moderated for everyone: PCI configuration mechanism 1.
const CONFIG_PORTS: PortRange = PortRange {
    first: 0xcf8,
    count: 8,
};

/// Fills the root's MSR bitmap. A strict root may read what another may, and write what all cells may and what is listed.
pub fn fill_root_msrs<L: MsrLayout>(bitmap: &mut MsrMap<L>, share: &RootShare<'_>) {
    bitmap.allow_all();
    if share.is_strict() {
        for register in MsrMap::<L>::covered() {
            let is_common =
                policy(register).cell.write.passes() || msr::X2APIC_ALL.contains(&register);
            if !is_common && share.write_mask(register) != u64::MAX {
                bitmap.intercept_write(register);
            }
        }
    }
    for row in &ROWS {
        for register in row.first..=row.last {
            if row.root.read != Read::Pass {
                bitmap.intercept_read(register);
            }
            if !row.root.write.passes() {
                bitmap.intercept_write(register);
            }
        }
    }
    intercept_kept(bitmap);
}

/// What the processor does not switch is the hypervisor's to answer.
fn intercept_kept<L: MsrLayout>(bitmap: &mut MsrMap<L>) {
    for register in L::KEPT {
        bitmap.intercept_read(*register);
        bitmap.intercept_write(*register);
    }
}

/// Fills a cell's MSR bitmap; `more` is what it gets besides what all cells have. Writes to parts of a register exit, and all
/// of the x2APIC's where the processor has none.
pub fn fill_cell_msrs<L: MsrLayout>(bitmap: &mut MsrMap<L>, more: &[MsrAccess], has_x2apic: bool) {
    bitmap.intercept_all();
    // Numbers beyond what the bitmap covers exit anyway.
    for row in &ROWS {
        for register in row.first..=row.last {
            if row.cell.read == Read::Pass {
                let _ = bitmap.allow_read(register);
            }
            if row.cell.write.passes() {
                let _ = bitmap.allow_write(register);
            }
        }
    }
    more.iter().for_each(|access| grant(bitmap, access));
    if !has_x2apic {
        bitmap.intercept_read(msr::APIC_BASE);
        for register in msr::X2APIC_ALL {
            bitmap.intercept_read(register);
            bitmap.intercept_write(register);
        }
    }
    intercept_kept(bitmap);
}

/// Opens what the configuration gives of one register, as far as the table lets it go.
fn grant<L: MsrLayout>(bitmap: &mut MsrMap<L>, access: &MsrAccess) {
    let grant = policy(access.msr).grant;
    if access.flags & MSR_READ != 0 && grant >= Grant::Reads {
        let _ = bitmap.allow_read(access.msr);
    }
    if access.flags & MSR_WRITE != 0 && access.write_mask == u64::MAX && grant == Grant::All {
        let _ = bitmap.allow_write(access.msr);
    }
}

/// Fills the root's port bitmaps: all ports that it may have but the moderated ones, those that
/// reset the machine, and the console's.
pub fn fill_root_ports<L: PortLayout>(
    bitmaps: &mut PortMap<L>,
    share: &RootShare<'_>,
    console: Option<PortRange>,
    guarded: impl Iterator<Item = u16>,
) {
    bitmaps.allow_all();
    if share.is_strict() {
        let foreign = (0..=u16::MAX).filter(|port| !share.has_port(*port));
        foreign.for_each(|port| bitmaps.intercept(port, 1));
    }
    bitmaps.intercept(CONFIG_PORTS.first, CONFIG_PORTS.count);
    for port in guarded {
        bitmaps.intercept(port, 1);
    }
    if let Some(range) = console {
        bitmaps.intercept(range.first, range.count);
    }
}

/// Fills a cell's port bitmaps: its own ports.
pub fn fill_cell_ports<'a, L: PortLayout>(
    bitmaps: &mut PortMap<L>,
    ports: impl Iterator<Item = &'a PortRange>,
) {
    bitmaps.intercept_all();
    for range in ports {
        bitmaps.allow(range.first, range.count);
    }
}

#[cfg(test)]
#[path = "confinement_tests.rs"]
mod tests;
