//! The launch parameters in the region, and what follows from them.
//!
//! Copied once by the first look; the fields that change (launch word, arrivals) are accessed atomically in place.

use core::mem::offset_of;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use gaol_abi::ABI_REVISION;
use gaol_abi::handover::{LaunchParameters, LaunchWord, SIGNATURE};
use gaol_abi::image::{ImageHeader, LINK_BASE};
use gaol_abi::outcome::Reason;

use crate::error::Failure;

/// The image's header, at its start.
#[must_use]
pub fn image() -> &'static ImageHeader {
    // SAFETY: the image is linked and mapped at LINK_BASE and begins with the header, which nothing writes to.
    unsafe { &*(LINK_BASE as *const ImageHeader) }
}

fn base() -> u64 {
    LINK_BASE.wrapping_add(image().memory_size)
}

/// Address of the field at `offset`.
#[inline]
fn field(offset: usize) -> u64 {
    base().wrapping_add(offset as u64)
}

/// A copy of the parameters. Only the fields that do not change after the module wrote them are of use.
#[must_use]
pub fn get() -> LaunchParameters {
    // SAFETY: the page behind the image holds the parameters, mapped as long as the hypervisor runs; any bytes are valid.
    unsafe { (base() as *const LaunchParameters).read_volatile() }
}

/// Checks that module and image agree.
pub fn check(parameters: &LaunchParameters) -> Result<(), Failure> {
    let wrong = |offset: usize| Failure::gaol(Reason::LaunchParameters, offset as u64);
    if parameters.signature != SIGNATURE {
        return Err(wrong(offset_of!(LaunchParameters, signature)));
    }
    if parameters.abi_revision != ABI_REVISION {
        return Err(wrong(offset_of!(LaunchParameters, abi_revision)));
    }
    if parameters.cpu_count == 0 || parameters.cpu_count as usize > gaol_abi::MAX_CPUS {
        return Err(wrong(offset_of!(LaunchParameters, cpu_count)));
    }
    if parameters.region_physical & 0x1f_ffff != 0 || parameters.region_size & 0x1f_ffff != 0 {
        return Err(wrong(offset_of!(LaunchParameters, region_physical)));
    }
    if parameters.pool >= parameters.region_size || parameters.pool & 0xfff != 0 {
        return Err(wrong(offset_of!(LaunchParameters, pool)));
    }
    Ok(())
}

macro_rules! constant {
    ($name:ident, $field:ident, $kind:ty, $doc:literal) => {
        #[doc = $doc]
        #[must_use]
        #[inline]
        pub fn $name() -> $kind {
            // SAFETY: an aligned field of the mapped parameters.
            unsafe { (field(offset_of!(LaunchParameters, $field)) as *const $kind).read_volatile() }
        }
    };
}

constant!(cpu_count, cpu_count, u32, "CPUs that take part.");
constant!(
    deadline_cycles,
    deadline_cycles,
    u64,
    "Longest time that a CPU waits for the others."
);
constant!(
    tsc_khz,
    tsc_khz,
    u32,
    "Frequency of the time stamp counter in kHz."
);
constant!(
    low_page,
    low_page,
    u64,
    "A page below 1 MiB to borrow, 0 for none."
);
constant!(
    pm_timer_port,
    pm_timer_port,
    u32,
    "Port of the power management timer, 0 for none."
);
constant!(
    stub_leave,
    stub_leave,
    u64,
    "Virtual address of the way back."
);
constant!(
    stub_first_instruction,
    stub_first_instruction,
    u64,
    "Linux' first instruction as a guest."
);
constant!(
    fault_step,
    fault_step,
    u32,
    "Step at which a fault is injected."
);
constant!(
    fault_cpu,
    fault_cpu,
    u32,
    "CPU on which a fault is injected."
);
constant!(
    physical_end,
    physical_end,
    u64,
    "First address beyond what Linux knows of."
);
constant!(public_offset, public, u64, "Offset of the public pages.");
constant!(public_size, public_size, u64, "Bytes of the public pages.");

/// Virtual address of the public pages.
#[must_use]
#[inline]
pub fn public_base() -> u64 {
    LINK_BASE.wrapping_add(public_offset())
}

fn word(offset: usize) -> &'static AtomicU32 {
    // SAFETY: an aligned u32 of the mapped parameters that is only accessed atomically.
    unsafe { AtomicU32::from_ptr(field(offset) as *mut u32) }
}

/// The launch word.
#[must_use]
pub fn launch_word() -> LaunchWord {
    LaunchWord(word(offset_of!(LaunchParameters, launch_word)).load(Ordering::Acquire))
}

/// Decides the launch, unless it is decided. `true`: this call did.
#[must_use]
pub fn decide(decision: LaunchWord) -> bool {
    word(offset_of!(LaunchParameters, launch_word))
        .compare_exchange(
            LaunchWord::Prepare.0,
            decision.0,
            Ordering::AcqRel,
            Ordering::Acquire,
        )
        .is_ok()
}

/// CPUs that have entered.
#[must_use]
pub fn arrived() -> &'static AtomicU32 {
    word(offset_of!(LaunchParameters, arrived))
}

/// Publishes how long the launch took.
pub fn set_enable_cycles(cycles: u64) {
    let at = field(offset_of!(LaunchParameters, enable_cycles)) as *mut u64;
    // SAFETY: an aligned field that is only accessed atomically.
    unsafe { AtomicU64::from_ptr(at) }.store(cycles, Ordering::Relaxed);
}
