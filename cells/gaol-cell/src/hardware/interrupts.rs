//! Interrupts: one handler a vector, entered with the time at which the CPU arrived.
//!
//! The entry code of each vector reads the time stamp counter before anything else but the two registers that RDTSC
//! overwrites, so a handler knows when the interrupt came without the cost of saving registers.
//!
//! Invariant: the table names an entry for each of the 256 vectors before interrupts are enabled; the end of interrupt
//! is signalled once for each, after its handler, and never for the spurious one.

use core::arch::{asm, global_asm};
use core::ptr::null_mut;
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use super::start::CODE_SELECTOR;
use super::{apic, exceptions};
use crate::registers::{Vector, interrupt_gate};

/// What a handler is told.
#[derive(Clone, Copy, Debug)]
pub struct Interrupt {
    /// The vector.
    pub vector: u8,
    /// Time stamp counter in the first instructions of the entry.
    pub entered: u64,
}

/// Called with interrupts off, on the stack of whatever was interrupted.
pub type Handler = fn(Interrupt);

static HANDLERS: [AtomicPtr<()>; 256] = [const { AtomicPtr::new(null_mut()) }; 256];

#[repr(align(16))]
struct Table([AtomicU64; 512]);
static TABLE: Table = Table([const { AtomicU64::new(0) }; 512]);

/// Bytes between the entries of two vectors.
const ENTRY_SIZE: u64 = 16;

global_asm!(
    r#"
    .text
    .balign 16
exception_entries:
    .set vector, 0
    .rept 32
    .balign 16
    # An error code comes with 8, 10 to 14, 17, 21, 29 and 30; the others get a 0 in its place.
    .if (0x60227d00 >> vector) & 1
    .else
    pushq $0
    .endif
    pushq $vector
    jmp exception_common
    .set vector, vector + 1
    .endr
    .balign 16
interrupt_entries:
    .rept 224
    .balign 16
    pushq %rax
    pushq %rdx
    rdtsc
    pushq $vector
    jmp interrupt_common
    .set vector, vector + 1
    .endr

exception_common:
    pushq %rax
    pushq %rcx
    pushq %rdx
    pushq %rsi
    pushq %rdi
    pushq %r8
    pushq %r9
    pushq %r10
    pushq %r11
    movq %rsp, %rdi
    cld
    call {exception}
    popq %r11
    popq %r10
    popq %r9
    popq %r8
    popq %rdi
    popq %rsi
    popq %rdx
    popq %rcx
    popq %rax
    addq $16, %rsp
    iretq

interrupt_common:
    pushq %rcx
    pushq %rsi
    pushq %rdi
    pushq %r8
    pushq %r9
    pushq %r10
    pushq %r11
    shlq $32, %rdx
    leaq (%rdx, %rax), %rsi
    movq 56(%rsp), %rdi
    subq $8, %rsp
    cld
    call {interrupt}
    addq $8, %rsp
    popq %r11
    popq %r10
    popq %r9
    popq %r8
    popq %rdi
    popq %rsi
    popq %rcx
    addq $8, %rsp
    popq %rdx
    popq %rax
    iretq
    "#,
    exception = sym exceptions::exception_entered,
    interrupt = sym interrupt_entered,
    options(att_syntax)
);

unsafe extern "C" {
    static exception_entries: u8;
    static interrupt_entries: u8;
}

extern "C" fn interrupt_entered(vector: u64, entered: u64) {
    let vector = vector as u8;
    if vector == Vector::SPURIOUS {
        return;
    }
    let handler = HANDLERS[usize::from(vector)].load(Ordering::Acquire);
    assert!(
        !handler.is_null(),
        "interrupt {vector} came, but the cell has no handler for it"
    );
    // SAFETY: Only set_handler writes there, and it writes a Handler.
    let handler: Handler = unsafe { core::mem::transmute::<*mut (), Handler>(handler) };
    handler(Interrupt { vector, entered });
    apic::end_of_interrupt();
}

/// Registers what is to be called at interrupts of `vector`, on all CPUs.
pub fn set_handler(vector: Vector, handler: Handler) {
    HANDLERS[usize::from(vector.number())].store(handler as *mut (), Ordering::Release);
}

/// Fills the table; on the first CPU, before anything else.
pub(super) fn fill_table() {
    let exceptions = &raw const exception_entries as u64;
    let interrupts = &raw const interrupt_entries as u64;
    for vector in 0..256_u64 {
        let entry = match vector {
            0..32 => exceptions + vector * ENTRY_SIZE,
            _ => interrupts + (vector - 32) * ENTRY_SIZE,
        };
        let gate = interrupt_gate(CODE_SELECTOR, entry);
        let index = 2 * vector as usize;
        TABLE.0[index].store(gate[0], Ordering::Relaxed);
        TABLE.0[index + 1].store(gate[1], Ordering::Relaxed);
    }
}

#[repr(C, packed)]
struct TablePointer {
    limit: u16,
    base: u64,
}

/// Makes this CPU use the table.
pub(super) fn load_table() {
    let pointer = TablePointer {
        limit: (size_of::<Table>() - 1) as u16,
        base: &raw const TABLE as u64,
    };
    // SAFETY: fill_table has put an entry for each vector into the table, which is never freed.
    unsafe {
        asm!("lidt [{}]", in(reg) &raw const pointer, options(readonly, nostack, preserves_flags))
    };
}

/// Enables interrupts.
pub fn enable() {
    // SAFETY: Every vector has an entry. No `nomem`: handlers change memory.
    unsafe { asm!("sti", options(nostack)) };
}

/// Disables interrupts.
pub fn disable() {
    // SAFETY: Interrupts are only put off.
    unsafe { asm!("cli", options(nostack)) };
}

/// Sleeps until `done`, which the handlers of interrupts make true. Interrupts are enabled afterwards.
pub fn halt_until(mut done: impl FnMut() -> bool) {
    loop {
        disable();
        if done() {
            enable();
            return;
        }
        // SAFETY: STI takes effect after the next instruction, so an interrupt that came since `done` ends the HLT.
        unsafe { asm!("sti", "hlt", options(nostack)) };
    }
}
