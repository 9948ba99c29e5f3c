//! Sequences after which a CPU goes on no more.

use core::arch::asm;

use gaol_cell::attempt;
use gaol_cell::instructions::halt_forever;
use gaol_cell::registers::{Msr, interrupt_gate};
use hostile_cell::attempt::{Ending, SCRATCH};
use hostile_cell::outcome::Outcome;
use hostile_cell::random::Random;

use super::descent::descend;
use super::memory::TablePointer;
use super::{plain, write_msr};
use crate::user;

/// Bytes of scratch memory that each CPU has here.
const SLICE: u64 = 0x4000;

/// Scratch memory of CPU `number`, in words of 8 bytes that come from `word`.
fn scratch(number: u32, mut word: impl FnMut(u64) -> u64) -> u64 {
    let base = SCRATCH + u64::from(number) * SLICE;
    for offset in (0..SLICE).step_by(8) {
        // SAFETY: The scratch memory is not Rust's.
        unsafe { ((base + offset) as *mut u64).write_volatile(word(offset / 8)) };
    }
    base
}

fn load_interrupts(base: u64, limit: u16) {
    let pointer = TablePointer { limit, base };
    // SAFETY: This is meant to go wrong.
    unsafe { asm!("lidt [{}]", in(reg) &raw const pointer, options(readonly, nostack)) };
}

/// An interrupt through a gate of the kind that 64-bit mode does not have; the table is put back.
pub fn through_task_gate() -> Outcome {
    const TASK_GATE: u64 = 0x85 << 40 | 8 << 16;
    const VECTOR: usize = 0x50;
    let mut before = TablePointer { limit: 0, base: 0 };
    // SAFETY: SIDT writes the variable only.
    unsafe { asm!("sidt [{}]", in(reg) &raw mut before, options(nostack)) };
    let mut table = [0_u64; 512];
    for (index, entry) in table.iter_mut().enumerate() {
        // SAFETY: The table of the runtime has 512 words.
        *entry = unsafe { (before.base as *const u64).add(index).read_volatile() };
    }
    table[2 * VECTOR] = TASK_GATE;
    load_interrupts(&raw const table as u64, 0xfff);
    // SAFETY: The exception that the gate raises is caught.
    let result = unsafe { attempt!("int 0x50") };
    load_interrupts(before.base, before.limit);
    plain(result)
}

/// Ends this CPU. Where it goes on all the same, the outcome is that.
pub fn end(number: u32, ending: Ending) -> Outcome {
    match ending {
        Ending::TripleFault => load_interrupts(0, 0),
        Ending::EmptyPageTables | Ending::RandomPageTables => {
            let mut random = Random::new(u64::from(number) + 1);
            let is_random = ending == Ending::RandomPageTables;
            let table = scratch(number, |_| if is_random { random.bits() } else { 0 });
            // SAFETY: This is the end.
            unsafe { asm!("mov cr3, {}", in(reg) table) };
        }
        Ending::RandomInterrupts => {
            let mut random = Random::new(u64::from(number) + 2);
            load_interrupts(scratch(number, |_| random.bits()), 0xfff);
        }
        Ending::FaultInHandler => {
            let [low, high] = interrupt_gate(0xfff8, SCRATCH);
            let table = scratch(number, |word| if word % 2 == 0 { low } else { high });
            load_interrupts(table, 0xfff);
        }
        // SAFETY: This is the end.
        Ending::NoStack => unsafe {
            asm!("mov rsp, {}", "ud2", in(reg) 0x8000_0000_0000_0000_u64, options(noreturn))
        },
        Ending::HaltForEver => halt_forever(),
        // SAFETY: This is the end.
        Ending::SpinForEver => unsafe { asm!("cli", "2: jmp 2b", options(noreturn)) },
        Ending::StringForEver => {
            let base = scratch(number, |_| 0);
            // SAFETY: The scratch memory is not Rust's.
            unsafe {
                asm!(
                    "2:",
                    "mov rdi, {base}",
                    "mov rcx, {size}",
                    "rep stosb",
                    "jmp 2b",
                    base = in(reg) base,
                    size = in(reg) SLICE,
                    options(noreturn)
                )
            }
        }
        Ending::DebugForEver => user::debug_for_ever(number, scratch(number, |_| 0) + SLICE),
        Ending::InitOwn => {
            const INIT: u64 = 0x4500;
            let own = u64::from(gaol_cell::apic::id());
            let _ = write_msr(Msr::InterruptCommand.0, own << 32 | INIT);
            return Outcome::Done;
        }
        Ending::TaskSwitch
        | Ending::GarbagePae
        | Ending::RealModeWithoutTable
        | Ending::RealModeBeyond
        | Ending::RealModeSegmentEnd => {
            descend(ending);
        }
    }
    // SAFETY: Whatever is left of the cell is not meant to survive this exception.
    unsafe { asm!("ud2", options(noreturn)) }
}
