//! What a CPU and memory hold when the cell gets them, and something to leave behind.
//!
//! The pattern that is looked for is never in a register or in memory of the cell's own as it is, only inverted.

use core::arch::asm;
use core::hint::black_box;

use gaol_cell::arguments::Arguments;
use gaol_cell::instructions::{cpuid, read_msr};
use gaol_cell::println;
use gaol_cell::registers::Msr;

use crate::access::try_write_msr;

/// `pattern=` inverted, as the command line has it.
fn inverted(arguments: Arguments<'_>) -> u64 {
    black_box(arguments.number("inverted", 0))
}

const OSFXSR: u64 = 1 << 9;
const OSXSAVE: u64 = 1 << 18;
const SSE_AND_AVX: u32 = 0b111;

/// STAR, LSTAR, CSTAR, FMASK, KERNEL_GS_BASE, TSC_AUX, IA32_SPEC_CTRL, IA32_UMWAIT_CONTROL, TSC deadline.
const OWN: [u32; 9] = [
    0xc000_0081,
    0xc000_0082,
    0xc000_0083,
    0xc000_0084,
    0xc000_0102,
    0xc000_0103,
    0x48,
    0xe1,
    0x6e0,
];

/// Makes vector registers accessible. `false`: the processor has no AVX. The result also tells whether XCR0 was as after a
/// reset.
fn enable_vectors() -> (bool, bool) {
    if cpuid(1).ecx & (1 << 26 | 1 << 28) != 1 << 26 | 1 << 28 {
        return (false, true);
    }
    let (low, high): (u32, u32);
    // SAFETY: The code of the cell uses none of the registers that this is about.
    unsafe {
        asm!("mov {value}, cr4", "or {value}, {bits}", "mov cr4, {value}", value = out(reg) _,
             bits = in(reg) OSFXSR | OSXSAVE, options(nomem, nostack));
        asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack));
        asm!("xsetbv", in("ecx") 0, in("eax") SSE_AND_AVX, in("edx") 0, options(nomem, nostack));
    }
    (true, low == 1 && high == 0)
}

macro_rules! vectors {
    ($($number:literal),*) => {
        /// All of them, as they are.
        fn read_vectors(to: &mut [[u64; 4]; 16]) {
            // SAFETY: 512 bytes that belong to the caller; AVX is on.
            unsafe { asm!($(concat!("vmovdqu ymmword ptr [{to} + 32*", $number, "], ymm", $number)),*,
                          to = in(reg) to, options(nostack)) };
        }

        /// All of them get the same value.
        fn fill_vectors(inverted: u64) {
            let value = [!inverted; 4];
            // SAFETY: The code of the cell does not use these registers.
            unsafe { asm!($(concat!("vmovdqu ymm", $number, ", ymmword ptr [{from}]")),*,
                          from = in(reg) &value, options(nostack, readonly)) };
        }
    };
}

vectors!(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);

macro_rules! debug_registers {
    ($($name:literal),*) => {
        fn read_debug_registers() -> [u64; 4] {
            // SAFETY: Reading them changes nothing.
            [$({ let value: u64; unsafe { asm!(concat!("mov {}, ", $name), out(reg) value, options(nomem, nostack)) }; value }),*]
        }

        fn fill_debug_registers(value: u64) {
            // SAFETY: None of them is enabled.
            $(unsafe { asm!(concat!("mov ", $name, ", {}"), in(reg) value, options(nomem, nostack)) };)*
        }
    };
}

debug_registers!("dr0", "dr1", "dr2", "dr3");

fn read_cr2() -> u64 {
    let value;
    // SAFETY: Reading it changes nothing.
    unsafe { asm!("mov {}, cr2", out(reg) value, options(nomem, nostack)) };
    value
}

/// Says what the CPU and the memory from `from=` to `to=` hold that is not the cell's.
pub fn inspect(arguments: Arguments<'_>) {
    let inverted = inverted(arguments);
    let debug = read_debug_registers();
    let cr2 = read_cr2();
    let own = OWN.map(|register| read_msr(Msr(register)));
    let (has_vectors, is_reset) = enable_vectors();
    let mut vectors = [[0; 4]; 16];
    if has_vectors {
        read_vectors(&mut vectors);
    }
    let all = || {
        let vectors = vectors.iter().flatten().copied();
        vectors.chain(debug).chain(own).chain([cr2])
    };
    let count = all().count();
    let set = all().filter(|value| *value != 0).count();
    let foreign = all().filter(|value| !*value == inverted).count();
    println!(
        "violator: {count} registers, {set} not clear, {foreign} of another, XCR0 reset: {is_reset}"
    );
    let (words, set, foreign) = scan(arguments, inverted);
    println!("violator: {words} words, {set} not clear, {foreign} of another");
}

fn range(arguments: Arguments<'_>) -> impl Iterator<Item = *mut u64> {
    let (from, to) = (arguments.number("from", 0), arguments.number("to", 0));
    (from..to).step_by(8).map(|address| address as *mut u64)
}

/// Words in the range, those that are not 0, those that hold the pattern.
fn scan(arguments: Arguments<'_>, inverted: u64) -> (u64, u64, u64) {
    let (mut words, mut set, mut foreign) = (0, 0, 0);
    for word in range(arguments) {
        // SAFETY: The configuration gives the cell memory there, in which Rust has nothing.
        let value = unsafe { word.read_volatile() };
        words += 1;
        set += u64::from(value != 0);
        foreign += u64::from(!value == inverted);
    }
    (words, set, foreign)
}

/// Leaves the pattern in every register and in the memory from `from=` to `to=`.
pub fn leave(arguments: Arguments<'_>) {
    let inverted = inverted(arguments);
    for register in &OWN[..5] {
        // FMASK has 32 bits; the others take any address.
        let value = if *register == 0xc000_0084 {
            !inverted & 0xffff_ffff
        } else {
            !inverted
        };
        if try_write_msr(Msr(*register), value).is_err() {
            println!("violator: register {register:#x} does not take {value:#x}");
        }
    }
    fill_debug_registers(!inverted);
    // SAFETY: No page fault is being handled.
    unsafe { asm!("mov cr2, {}", in(reg) !inverted, options(nomem, nostack)) };
    for word in range(arguments) {
        // SAFETY: The configuration gives the cell memory there, in which Rust has nothing.
        unsafe { word.write_volatile(!inverted) };
    }
    if enable_vectors().0 {
        fill_vectors(inverted);
    }
    let (words, _, own) = scan(arguments, inverted);
    println!("violator: {own} of {words} words are left behind");
}
