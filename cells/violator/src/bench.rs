//! Counts the cycles of what causes VM exits, and of some things that must not.
//!
//! Each operation is executed in loops of [`ROUNDS`]; the same loop without it is subtracted. What is left includes the
//! cycles that the instruction takes natively.

use core::arch::asm;

use gaol_abi::hypercall::{Hypercall, InfoType};
use gaol_cell::instructions::{cpuid, read_msr, read_tsc};
use gaol_cell::interrupts::Interrupt;
use gaol_cell::registers::{Msr, Vector};
use gaol_cell::{apic, hypercall, interrupts, println};
use violator_cell::Cycles;

const ROUNDS: u64 = 1_000;
const LOOPS: usize = 10;

const OWN: Vector = Vector::new(0x52);

/// Cycles of a loop: `$setup` and `$instruction`, [`ROUNDS`] times. R9 counts; RBX and RCX may be overwritten.
macro_rules! time {
    ($setup:literal, $instruction:literal, $($operands:tt)*) => {{
        let start = read_tsc();
        asm!(
            "push rbx",
            "2:",
            $setup,
            $instruction,
            "dec r9",
            "jnz 2b",
            "pop rbx",
            inout("r9") ROUNDS => _,
            $($operands)*
        );
        read_tsc().wrapping_sub(start)
    }};
}

/// Prints `bench NAME …` for an instruction, with what has to be set up before each execution.
macro_rules! bench {
    ($name:literal, $setup:literal, $instruction:literal, $($operands:tt)*) => {{
        let mut cycles = Cycles::NONE;
        for _ in 0..LOOPS {
            let empty = time!($setup, "", $($operands)*);
            cycles.add(ROUNDS, time!($setup, $instruction, $($operands)*), empty);
        }
        println!("bench {} {cycles}", $name);
    }};
}

pub fn run() {
    interrupts::set_handler(OWN, |_: Interrupt| println!("bench: own interrupt came"));
    interrupts::disable();
    call_hypervisor();
    // SAFETY: None of these changes memory; the registers that are written get what they hold or what does no harm, and
    // interrupts are off.
    unsafe {
        bench!("nothing", "", "nop", out("eax") _);
        bench!("cpuid", "xor eax, eax", "cpuid", out("eax") _, out("ecx") _, out("edx") _);
        bench!("rdmsr-pat", "", "rdmsr", in("ecx") Msr::Pat.0, out("eax") _, out("edx") _);
        let (low, high) = halves(read_msr(Msr::Pat));
        bench!("wrmsr-pat", "", "wrmsr", in("ecx") Msr::Pat.0, in("eax") low, in("edx") high);
        let (low, high) = halves(u64::from(apic::id()) << 32 | 1 << 14 | u64::from(OWN.number()));
        bench!("x2apic-icr", "", "wrmsr", in("ecx") Msr::InterruptCommand.0, in("eax") low, in("edx") high);
        bench!("x2apic-eoi", "", "wrmsr", in("ecx") Msr::EndOfInterrupt.0, in("eax") 0, in("edx") 0);
        bench!("x2apic-tpr-read", "", "rdmsr", in("ecx") Msr::TaskPriority.0, out("eax") _, out("edx") _);
        bench!("x2apic-tpr-write", "", "wrmsr", in("ecx") Msr::TaskPriority.0, in("eax") 0, in("edx") 0);
        bench!("tsc-deadline", "", "wrmsr", in("ecx") Msr::TscDeadline.0, in("eax") 0, in("edx") 0);
        bench!("wbinvd", "", "wbinvd", out("eax") _);
    }
    set_extended_control();
    // The ports come last: a cell whose configuration does not let it use them stops here.
    // SAFETY: These are the registers of PCI's configuration mechanism 1; no device is enabled.
    unsafe {
        bench!("in-cf8", "", "in eax, dx", in("dx") 0xcf8_u16, out("eax") _);
        bench!("out-cf8", "", "out dx, eax", in("dx") 0xcf8_u16, in("eax") 0x8000_0000_u32);
        bench!("in-cfc", "", "in eax, dx", in("dx") 0xcfc_u16, out("eax") _);
    }
    interrupts::enable();
}

fn call_hypervisor() {
    if !hypercall::available() {
        println!("bench: no hypervisor");
        return;
    }
    let (number, info) = (Hypercall::GetInfo.0, InfoType::PoolSize.0);
    let amd = matches!(&cpuid(0).ebx.to_le_bytes(), b"Auth" | b"Hygo");
    // SAFETY: The call returns a number in EAX and changes no memory.
    unsafe {
        if amd {
            bench!("hypercall-5", "mov eax, r8d", "vmmcall", in("r8d") number, in("rdi") info, in("rsi") 0_u64, out("eax") _);
        } else {
            bench!("hypercall-5", "mov eax, r8d", "vmcall", in("r8d") number, in("rdi") info, in("rsi") 0_u64, out("eax") _);
        }
    }
}

fn set_extended_control() {
    const OSXSAVE: u64 = 1 << 18;
    if cpuid(1).ecx & 1 << 26 == 0 {
        return;
    }
    // SAFETY: OSXSAVE permits XSETBV, and XCR0 gets the value that it has after a reset: x87 only.
    unsafe {
        asm!("mov {0}, cr4", "or {0}, {1}", "mov cr4, {0}", out(reg) _, in(reg) OSXSAVE);
        bench!("xsetbv", "", "xsetbv", in("ecx") 0, in("eax") 1, in("edx") 0);
    }
}

fn halves(value: u64) -> (u32, u32) {
    (value as u32, (value >> 32) as u32)
}
