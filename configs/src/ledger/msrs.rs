//! Which model-specific registers can be given away, and to whom.
//!
//! Invariant: nobody is given what the table in [`crate::msr_policy`] does not let go.

use gaol_abi::config::{MSR_PER_CPU, MSR_READ, MSR_WRITE, MsrAccess};
use gaol_abi::outcome::Reason;

use super::Ledger;
use crate::binary::Refusal;
use crate::msr_policy::{Grant, policy};

/// Neither read nor written.
const ALL: u32 = MSR_READ | MSR_WRITE;

/// Whether the register, given like this, is one of those that are denied ([`crate::msr_policy`]).
#[must_use]
pub fn is_denied(access: &MsrAccess, is_root: bool) -> bool {
    let grant = policy(access.msr).grant;
    if is_root {
        return grant == Grant::Never;
    }
    (access.flags & MSR_READ != 0 && grant < Grant::Reads)
        || (access.flags & MSR_WRITE != 0 && grant < Grant::All)
}

/// Whether a register can be given away like this: it is in one of the two ranges whose accesses can pass, something is
/// given, the mask fits, and it is not denied.
#[must_use]
pub fn msr_is_sound(access: &MsrAccess, is_root: bool) -> bool {
    let is_in_bitmap =
        access.msr & !0xc000_0000 <= 0x1fff && (access.msr >> 30 == 0 || access.msr >> 30 == 3);
    let is_written = access.flags & MSR_WRITE != 0;
    is_in_bitmap
        && access.flags & ALL != 0
        && is_written == (access.write_mask != 0)
        && !is_denied(access, is_root)
}

/// Whether two cells can't have the register in these two ways: one of them writes, and it is one register for both.
fn conflicts(first: &MsrAccess, second: &MsrAccess) -> bool {
    first.msr == second.msr
        && (first.flags | second.flags) & MSR_WRITE != 0
        && first.flags & second.flags & MSR_PER_CPU == 0
}

/// Checks the register at `index`, those before it in the list included.
pub(super) fn check_list(
    msrs: &[MsrAccess],
    index: usize,
    is_root: bool,
) -> Result<MsrAccess, Refusal> {
    let mut before = msrs.iter().take(index);
    match msrs.get(index) {
        Some(access) if !msr_is_sound(access, is_root) => {
            Err(Refusal::new(Reason::MsrInvalid, access.msr.into()))
        }
        Some(access) if before.any(|other| other.msr == access.msr) => {
            Err(Refusal::new(Reason::MsrOwned, access.msr.into()))
        }
        Some(access) => Ok(*access),
        None => Err(Refusal::new(Reason::MsrInvalid, 0)),
    }
}

impl Ledger {
    /// Checks the register at `index` of a cell's list.
    pub(super) fn check_msr(&self, msrs: &[MsrAccess], index: usize) -> Result<(), Refusal> {
        let access = check_list(msrs, index, false)?;
        let mut held = self.cells().flat_map(|(_, holding)| holding.msrs.get());
        if held.any(|other| conflicts(&access, other)) {
            return Err(Refusal::new(Reason::MsrOwned, access.msr.into()));
        }
        Ok(())
    }

    /// The cell that has a register in a way that speaks against `access`.
    #[must_use]
    pub fn owner_of_msr(&self, access: &MsrAccess) -> super::CellId {
        self.owner(|holding| {
            holding
                .msrs
                .get()
                .iter()
                .any(|other| conflicts(access, other))
        })
    }
}
