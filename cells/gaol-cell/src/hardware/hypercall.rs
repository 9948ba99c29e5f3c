//! Calls to the hypervisor, and how to find out that there is one.
//!
//! Invariant: a call is made only where CPUID names the hypervisor, so a cell also runs on a bare machine.

use core::arch::asm;
use core::sync::atomic::{AtomicU32, Ordering};

use gaol_abi::hypercall::{CPUID_SIGNATURE, CPUID_SIGNATURE_LEAF, CpuInfoType, Errno, Hypercall};

use super::instructions::cpuid;

/// How calls are made; found out by [`detect`].
static INTERFACE: AtomicU32 = AtomicU32::new(NONE);
const NONE: u32 = 0;
const VMCALL: u32 = 1;
const VMMCALL: u32 = 2;

/// Finds out whether there is a hypervisor and which instruction calls it.
pub(super) fn detect() {
    let signature = cpuid(CPUID_SIGNATURE_LEAF);
    let mut name = [0; 12];
    name[..4].copy_from_slice(&signature.ebx.to_le_bytes());
    name[4..8].copy_from_slice(&signature.ecx.to_le_bytes());
    name[8..].copy_from_slice(&signature.edx.to_le_bytes());
    let vendor = cpuid(0).ebx.to_le_bytes();
    let interface = match (name == CPUID_SIGNATURE, &vendor) {
        (false, _) => NONE,
        (true, b"Auth" | b"Hygo") => VMMCALL,
        (true, _) => VMCALL,
    };
    INTERFACE.store(interface, Ordering::Relaxed);
}

/// Whether the cell runs under a hypervisor of Jailhouse's interface.
pub fn available() -> bool {
    INTERFACE.load(Ordering::Relaxed) != NONE
}

/// Makes a call.
///
/// # Errors
/// What the hypervisor answered; [`Errno::NoSystemCall`] also when there is none.
pub fn call(number: Hypercall, first: u64, second: u64) -> Result<u32, Errno> {
    let mut result = number.0;
    match INTERFACE.load(Ordering::Relaxed) {
        // SAFETY: A hypercall of a cell changes EAX, and no memory that Rust knows of.
        VMCALL => unsafe {
            asm!("vmcall", inlateout("eax") result, in("rdi") first, in("rsi") second, options(nostack));
        },
        // SAFETY: As before.
        VMMCALL => unsafe {
            asm!("vmmcall", inlateout("eax") result, in("rdi") first, in("rsi") second, options(nostack));
        },
        _ => return Err(Errno::NoSystemCall),
    }
    match result as i32 {
        errno @ -4095..0 => Err(Errno(-errno)),
        _ => Ok(result),
    }
}

/// Counts the VM exits of this CPU, in a cell that has no other.
#[derive(Debug)]
pub struct ExitCounter {
    cpu: u64,
    last: u32,
    /// Exits that asking for the number takes itself.
    own: u32,
}

impl ExitCounter {
    /// Bits of a counter that a hypercall returns.
    const MASK: u32 = 0x7fff_ffff;

    /// Finds out which CPU this is, by asking about one after the other: a cell is told about its own only. `None` where
    /// nobody counts.
    pub fn new() -> Option<Self> {
        let mut cpus = 0..gaol_abi::MAX_CPUS as u64;
        let (cpu, last) = cpus.find_map(|cpu| Some((cpu, read(cpu)?)))?;
        let mut counter = Self { cpu, last, own: 0 };
        counter.own = counter.passed()?;
        Some(counter)
    }

    /// VM exits since the last call of this, or since the counter was made.
    pub fn passed(&mut self) -> Option<u32> {
        let now = read(self.cpu)?;
        let passed = now.wrapping_sub(self.last) & Self::MASK;
        self.last = now;
        Some(passed.saturating_sub(self.own))
    }
}

fn read(cpu: u64) -> Option<u32> {
    call(Hypercall::CpuGetInfo, cpu, CpuInfoType::StatisticsBase.0).ok()
}
