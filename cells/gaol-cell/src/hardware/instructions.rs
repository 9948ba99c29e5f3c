//! Single instructions.
//!
//! Invariant: what cannot break memory safety is safe to call; where the hypervisor forbids an instruction, it stops the
//! cell or injects an exception, which ends the cell with a line on the console ([`super::exceptions`]).

use core::arch::asm;
use core::arch::x86_64::CpuidResult;

use crate::registers::Msr;

/// The time stamp counter.
pub fn read_tsc() -> u64 {
    // SAFETY: RDTSC changes nothing but its result.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// CPUID of a leaf, subleaf 0. Always causes a VM exit.
pub fn cpuid(leaf: u32) -> CpuidResult {
    core::arch::x86_64::__cpuid(leaf)
}

/// Reads a model-specific register.
pub fn read_msr(msr: Msr) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: Reading a register changes no memory; one that is not there raises #GP, which ends the cell.
    unsafe {
        asm!("rdmsr", in("ecx") msr.0, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Writes a model-specific register.
///
/// # Safety
/// The value must not take away what Rust relies on: memory mapping, segment bases, long mode.
pub unsafe fn write_msr(msr: Msr, value: u64) {
    let (low, high) = (value as u32, (value >> 32) as u32);
    // SAFETY: As the caller promises. No `nomem`: an interrupt that this causes may change memory.
    unsafe {
        asm!("wrmsr", in("ecx") msr.0, in("eax") low, in("edx") high, options(nostack, preserves_flags));
    }
}

/// Reads a byte from an I/O port.
///
/// # Safety
/// The device must not change memory that Rust knows of.
pub unsafe fn read_port(port: u16) -> u8 {
    let value;
    // SAFETY: As the caller promises.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nostack, preserves_flags)) };
    value
}

/// Writes a byte to an I/O port.
///
/// # Safety
/// See [`read_port`].
pub unsafe fn write_port(port: u16, value: u8) {
    // SAFETY: As the caller promises.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nostack, preserves_flags)) };
}

/// Reads 4 bytes from an I/O port.
///
/// # Safety
/// See [`read_port`].
pub unsafe fn read_port32(port: u16) -> u32 {
    let value;
    // SAFETY: As the caller promises.
    unsafe {
        asm!("in eax, dx", in("dx") port, out("eax") value, options(nostack, preserves_flags));
    }
    value
}

/// Writes 4 bytes to an I/O port.
///
/// # Safety
/// See [`read_port`].
pub unsafe fn write_port32(port: u16, value: u32) {
    // SAFETY: As the caller promises.
    unsafe {
        asm!("out dx, eax", in("dx") port, in("eax") value, options(nostack, preserves_flags));
    }
}

/// Lets the writes before this to x2APIC registers take effect before what follows, which WRMSR to them does not do
/// itself (SDM volume 3, "MSR Access in x2APIC Mode").
pub fn fence_apic_writes() {
    // SAFETY: Fences change nothing.
    unsafe { asm!("mfence", "lfence", options(nostack, preserves_flags)) };
}

/// Stops this CPU for good.
pub fn halt_forever() -> ! {
    loop {
        // SAFETY: With interrupts off only an NMI ends HLT, and then it is repeated.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
    }
}
