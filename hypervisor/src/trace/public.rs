//! Writing the public pages ([`gaol_abi::public`]).
//!
//! Each counter has one writer, the CPU whose page it is in; the root reads at any time.

use core::mem::offset_of;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use gaol_abi::exit::COUNTERS;
use gaol_abi::outcome::Outcome;
use gaol_abi::public::{
    CPU_OFFSET, CpuPublic, CpuState, DeviceFaults, FaultRecord, HypervisorFault, IommuState,
    MAX_FAULTY_DEVICES, PAUSES, Pause, RootFailure, SystemPublic, WatchdogRecord,
};

use super::events;
use crate::launch::parameters;

/// The counters of a CPU, in its public page.
#[repr(transparent)]
#[derive(Debug)]
pub struct CpuCounters([AtomicU64; COUNTERS]);

impl CpuCounters {
    /// Counts. `false`: there is no such counter.
    #[inline(always)]
    pub fn count(&self, index: usize) -> bool {
        let Some(counter) = self.0.get(index) else {
            return false;
        };
        // One writer: no atomic read-modify-write is needed.
        counter.store(
            counter.load(Ordering::Relaxed).wrapping_add(1),
            Ordering::Relaxed,
        );
        true
    }

    /// Value of a counter, 0 where there is none.
    #[must_use]
    pub fn get(&self, index: usize) -> u64 {
        self.0
            .get(index)
            .map_or(0, |counter| counter.load(Ordering::Relaxed))
    }

    /// All counters to 0.
    pub fn clear(&self) {
        for counter in &self.0 {
            counter.store(0, Ordering::Relaxed);
        }
    }
}

fn page(offset: u64) -> u64 {
    parameters::public_base().wrapping_add(offset)
}

fn cpu_page(cpu: u32) -> u64 {
    page(CPU_OFFSET.wrapping_add(u64::from(cpu) << 12))
}

/// Address of the field at `offset` in the page of CPU `cpu`.
fn cpu_field(cpu: u32, offset: usize) -> u64 {
    cpu_page(cpu).wrapping_add(offset as u64)
}

/// Counters of CPU `cpu`, which exists.
#[must_use]
pub fn counters(cpu: u32) -> &'static CpuCounters {
    // SAFETY: the counters are at the start of the CPU's public page, which is mapped, zeroed at first, never freed while
    // the hypervisor runs, and only accessed with atomics.
    unsafe { &*(cpu_page(cpu.min(parameters::cpu_count())) as *const CpuCounters) }
}

/// Sets what CPU `cpu` does and for which cell.
pub fn set_state(cpu: u32, state: CpuState, cell: u32) {
    // SAFETY: aligned fields of the CPU's public page; the root only reads.
    unsafe {
        ((cpu_field(cpu, offset_of!(CpuPublic, state))) as *mut u32).write_volatile(state.0);
        ((cpu_field(cpu, offset_of!(CpuPublic, cell))) as *mut u32).write_volatile(cell);
    }
}

/// What CPU `cpu` does.
#[must_use]
pub fn state(cpu: u32) -> CpuState {
    // SAFETY: as in `set_state`.
    CpuState(unsafe {
        (cpu_field(cpu, offset_of!(CpuPublic, state)) as *const u32).read_volatile()
    })
}

/// Keeps a fault of CPU `cpu`; its count goes up. What the root was overruled in is no event: there can be any number of
/// these.
pub fn record_fault(cpu: u32, fault: &FaultRecord) {
    if fault.cell != 0 {
        events::violation(cpu, fault);
    }
    let at = cpu_field(cpu, offset_of!(CpuPublic, fault)) as *mut FaultRecord;
    // SAFETY: as in `set_state`; one writer.
    unsafe {
        let count = (&raw const (*at).count).read_volatile();
        at.write_volatile(FaultRecord {
            count: count.wrapping_add(1),
            ..*fault
        });
    }
}

/// Tells the control registers with which the hypervisor runs on CPU `cpu`.
pub fn set_host_registers(cpu: u32, registers: [u64; 3]) {
    let at = cpu_field(cpu, offset_of!(CpuPublic, host_registers)) as *mut [u64; 3];
    // SAFETY: as in `set_state`; one writer.
    unsafe { at.write_volatile(registers) };
}

/// Keeps a fault of the hypervisor on CPU `cpu`; its count goes up.
pub fn record_hypervisor_fault(cpu: u32, fault: &HypervisorFault) {
    events::hypervisor_fault(cpu, fault);
    let at = cpu_field(cpu, offset_of!(CpuPublic, hypervisor_fault)) as *mut HypervisorFault;
    // SAFETY: as in `set_state`; one writer.
    unsafe {
        let count = (&raw const (*at).count).read_volatile();
        at.write_volatile(HypervisorFault {
            count: count.wrapping_add(1),
            ..*fault
        });
    }
}

/// Forgets the faults of CPU `cpu`.
pub fn clear_fault(cpu: u32) {
    let at = cpu_field(cpu, offset_of!(CpuPublic, fault));
    // SAFETY: as in `set_state`.
    unsafe { (at as *mut u32).write_volatile(0) };
}

macro_rules! system_field {
    ($name:ident, $field:ident, $kind:ty, $atomic:ty) => {
        #[doc = concat!("Sets [`SystemPublic::", stringify!($field), "`].")]
        pub fn $name(value: $kind) {
            let at = page(offset_of!(SystemPublic, $field) as u64);
            // SAFETY: an aligned field of the first public page.
            unsafe { <$atomic>::from_ptr(at as *mut $kind) }.store(value, Ordering::Relaxed);
        }
    };
}

macro_rules! system_value {
    ($name:ident, $field:ident) => {
        #[doc = concat!("Reads [`SystemPublic::", stringify!($field), "`].")]
        #[must_use]
        #[inline]
        pub fn $name() -> u64 {
            let at = page(offset_of!(SystemPublic, $field) as u64);
            // SAFETY: an aligned field of the first public page.
            unsafe { (at as *const u64).read_volatile() }
        }
    };
}

system_value!(frames_total, frames_total);
system_value!(frames_used, frames_used);
system_value!(cells, cells);

system_field!(set_revision, abi_revision, u32, AtomicU32);
system_field!(set_cpu_count, cpu_count, u32, AtomicU32);
system_field!(set_frames_total, frames_total, u64, AtomicU64);
system_field!(set_frames_used, frames_used, u64, AtomicU64);
system_field!(set_tsc_khz, tsc_khz, u32, AtomicU32);
system_field!(set_apic_khz, apic_khz, u32, AtomicU32);
system_field!(set_cells, cells, u64, AtomicU64);
system_field!(set_restart_cycles, restart_cycles, u64, AtomicU64);

/// Sets [`SystemPublic::image_bytes`].
pub fn set_image_bytes(bytes: [u64; 3]) {
    let at = page(offset_of!(SystemPublic, image_bytes) as u64) as *mut [u64; 3];
    // SAFETY: as above.
    unsafe { at.write_volatile(bytes) };
}

/// Sets [`SystemPublic::last_outcome`].
pub fn set_outcome(outcome: &Outcome) {
    let at = page(offset_of!(SystemPublic, last_outcome) as u64) as *mut Outcome;
    // SAFETY: as above.
    unsafe { at.write_volatile(*outcome) };
}

/// Keeps how long a CPU of the root was away, if it never was longer.
pub fn note_pause(pause: Pause, cycles: u64) {
    let index = pause.0 as usize;
    if index >= PAUSES {
        return;
    }
    let first = page(offset_of!(SystemPublic, longest_pauses) as u64);
    let at = first.wrapping_add((index as u64) << 3) as *mut u64;
    // SAFETY: an aligned element of the array in the first public page, only accessed atomically.
    unsafe { AtomicU64::from_ptr(at) }.fetch_max(cycles, Ordering::Relaxed);
}

fn watchdog(cell: u32) -> *mut WatchdogRecord {
    let index = u64::from(cell) & (gaol_abi::MAX_CELLS as u64).wrapping_sub(1);
    let first = page(offset_of!(SystemPublic, watchdogs) as u64);
    first.wrapping_add(index.wrapping_mul(size_of::<WatchdogRecord>() as u64)) as *mut _
}

/// Forgets what the watchdog of the cell has found.
pub fn clear_watchdog(cell: u32) {
    let index = (cell as usize) & gaol_abi::MAX_CELLS.wrapping_sub(1);
    let offset = index.wrapping_mul(size_of::<WatchdogRecord>());
    let first = offset_of!(SystemPublic, watchdogs);
    put(first.wrapping_add(offset), WatchdogRecord::default());
}

/// Keeps that the cell's heartbeat has not changed in time.
pub fn record_expiry(cell: u32, heartbeat: u64, time: u64) {
    events::expiry(cell, heartbeat, time);
    let at = watchdog(cell);
    // SAFETY: as in `clear_watchdog`.
    unsafe {
        let expired = (&raw const (*at).expired).read_volatile().wrapping_add(1);
        at.write_volatile(WatchdogRecord {
            expired,
            heartbeat,
            time,
        });
    }
}

/// Keeps whether a PCI function of the cell has no IOMMU in front of it.
pub fn set_unprotected(cell: u32, is_unprotected: bool) {
    static CELLS: AtomicU64 = AtomicU64::new(0);
    let bit = 1u64.checked_shl(cell).unwrap_or(0);
    let cells = if is_unprotected {
        CELLS.fetch_or(bit, Ordering::Relaxed) | bit
    } else {
        CELLS.fetch_and(!bit, Ordering::Relaxed) & !bit
    };
    put(offset_of!(SystemPublic, unprotected_cells), cells);
}

/// Publishes what the IOMMUs have in use, and what devices tried. Only by the holder of the IOMMUs' lock.
pub fn set_iommus(state: &IommuState, faults: &[DeviceFaults; MAX_FAULTY_DEVICES]) {
    put(offset_of!(SystemPublic, iommus), *state);
    put(offset_of!(SystemPublic, device_faults), *faults);
}

/// Writes a field of the first public page, as which `offset` and the type go together. There is one writer at a time.
fn put<T: Copy>(offset: usize, value: T) {
    let at = page(offset as u64) as *mut T;
    // SAFETY: an aligned field of the first public page, which is the hypervisor's to write and the root's to read only;
    // all callers are in this file, with the field's own offset.
    unsafe { at.write_volatile(value) };
}

/// Keeps how the root has failed; its count goes up. Of two CPUs that fail at the same moment one is kept.
pub fn record_root_failure(failure: &RootFailure) {
    events::root_failure(failure);
    let at = page(offset_of!(SystemPublic, root_failure) as u64) as *mut RootFailure;
    // SAFETY: an aligned structure of the first public page, any values of which are valid; the root only reads.
    unsafe {
        let count = (&raw const (*at).count).read_volatile().wrapping_add(1);
        at.write_volatile(RootFailure { count, ..*failure });
    }
}
