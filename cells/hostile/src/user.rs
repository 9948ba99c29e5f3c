//! The lowest privilege, and the tables that are needed to come back from there.
//!
//! Each CPU has its own descriptor table, task state and interrupt table here. The first three segments are those of the
//! runtime.

use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicU64, Ordering};

use gaol_cell::registers::interrupt_gate;
use hostile_cell::attempt::{SCRATCH, UserInstruction};
use hostile_cell::outcome::Outcome;
use hostile_cell::violations::Vendor;

use crate::perform::memory::{TablePointer, window};

const CPUS: usize = 8;
const NMI: u64 = 2;
const CODE: u16 = 0x08;
const USER_DATA: u64 = 0x23;
const USER_CODE: u64 = 0x2b;
const TASK: u16 = 0x30;

const DESCRIPTORS: [u64; 6] = [
    0,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x00cf_9b00_0000_ffff,
    0x00cf_f300_0000_ffff,
    0x00af_fb00_0000_ffff,
];

/// Bytes of scratch memory that each CPU has for its program.
const SLICE: u64 = 0x1000;
/// Where the first of them is.
const PROGRAMS: u64 = SCRATCH + 0x4_0000;

/// The tables of a CPU.
#[repr(C, align(4096))]
struct Tables {
    interrupts: [AtomicU64; 64],
    descriptors: [AtomicU64; 8],
    /// The fields of the task state segment are at odd multiples of 4 bytes: RSP0 at 4, IST1 at 36.
    task: [AtomicU64; 14],
    /// RAX, vector and RIP of the exception that ended a program at CPL 3.
    result: [AtomicU64; 3],
}

static TABLES: [Tables; CPUS] = [const {
    Tables {
        interrupts: [const { AtomicU64::new(0) }; 64],
        descriptors: [const { AtomicU64::new(0) }; 8],
        task: [const { AtomicU64::new(0) }; 14],
        result: [const { AtomicU64::new(0) }; 3],
    }
}; CPUS];

global_asm!(
    r#"
    .text
    # RDI: program, RSI: stack, RDX: RAX, RCX: RDI, R8: task state, R9: result
    .balign 16
hostile_user_run:
    pushq %rbx
    pushq %rbp
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, %r15
    movq %r9, %r14
    leaq -64(%rsp), %rax
    andq $-16, %rax
    movq %rax, 4(%r8)
    pushq ${user_data}
    pushq %rsi
    pushq $2
    pushq ${user_code}
    pushq %rdi
    movq %rdx, %rax
    movq %rcx, %rdi
    xorl %esi, %esi
    iretq

hostile_user_ended:
    movq %rax, (%r14)
    popq 8(%r14)
    movq 8(%rsp), %rax
    movq %rax, 16(%r14)
    movq %r15, %rsp
    movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbp
    popq %rbx
    ret

    .balign 16
hostile_user_exceptions:
    .set vector, 0
    .rept 32
    .balign 16
    .if (0x60227d00 >> vector) & 1
    .else
    pushq $0
    .endif
    pushq $vector
    jmp hostile_user_ended
    .set vector, vector + 1
    .endr

    # Another CPU of the cell may send one at any time.
    .balign 16
hostile_user_nmi:
    iretq

    .balign 16
hostile_spin:
    jmp hostile_spin
    "#,
    user_data = const USER_DATA,
    user_code = const USER_CODE,
    options(att_syntax)
);

unsafe extern "C" {
    fn hostile_user_run(program: u64, stack: u64, rax: u64, rdi: u64, task: u64, result: u64);
    static hostile_user_exceptions: u8;
    static hostile_user_nmi: u8;
    static hostile_spin: u8;
}

fn load_interrupts(pointer: &TablePointer) {
    // SAFETY: The table has an entry for each exception, and interrupts are off.
    unsafe { asm!("lidt [{}]", in(reg) &raw const *pointer, options(readonly, nostack)) };
}

/// Fills the tables of CPU `number` and loads descriptors and task state.
fn load_tables(number: u32) -> &'static Tables {
    let tables = &TABLES[number as usize];
    for (slot, value) in tables.descriptors.iter().zip(DESCRIPTORS) {
        slot.store(value, Ordering::Relaxed);
    }
    let base = &raw const tables.task as u64;
    let limit = size_of_val(&tables.task) as u64 - 1;
    // A 64-bit task state that is not busy.
    let low = limit | (base & 0xff_ffff) << 16 | 0x89 << 40 | (base >> 24 & 0xff) << 56;
    tables.descriptors[6].store(low, Ordering::Relaxed);
    tables.descriptors[7].store(base >> 32, Ordering::Relaxed);
    // The permissions of ports, whose place the last word tells, lie beyond the limit: there are none.
    tables.task[12].store(0xffff << 48, Ordering::Relaxed);
    let pointer = TablePointer {
        limit: size_of_val(&tables.descriptors) as u16 - 1,
        base: &raw const tables.descriptors as u64,
    };
    // SAFETY: The first descriptors are those that are loaded already, and the task state is zero but for what is set
    // when it is used.
    unsafe {
        asm!("lgdt [{}]", "ltr {:x}", in(reg) &raw const pointer, in(reg) TASK, options(nostack));
    }
    tables
}

/// VMCALL, or VMMCALL where that is how the hypervisor is called.
const fn hypercall(vendor: Vendor) -> &'static [u8] {
    match vendor {
        Vendor::Intel => &[0x0f, 0x01, 0xc1],
        Vendor::Amd => &[0x0f, 0x01, 0xd9],
    }
}

/// The bytes of an instruction, and the RAX that it is executed with.
const fn program(instruction: UserInstruction, vendor: Vendor) -> (&'static [u8], u64) {
    match instruction {
        UserInstruction::Vmcall => (hypercall(vendor), 5),
        UserInstruction::VmcallPrint => (hypercall(vendor), 8),
        UserInstruction::Vmxoff => (&[0x0f, 0x01, 0xc4], 0),
        UserInstruction::Halt => (&[0xf4], 0),
        UserInstruction::Rdmsr => (&[0x0f, 0x32], 0),
        UserInstruction::In => (&[0xe4, 0x64], 0),
        UserInstruction::Invd => (&[0x0f, 0x08], 0),
        UserInstruction::Xsetbv => (&[0x0f, 0x01, 0xd1], 1),
    }
}

/// What ends each program: UD2.
const END: [u8; 2] = [0x0f, 0x0b];

/// Executes an instruction at CPL 3, on CPU `number`.
pub fn execute(number: u32, instruction: UserInstruction, vendor: Vendor) -> Outcome {
    let (bytes, rax) = program(instruction, vendor);
    let physical = PROGRAMS + u64::from(number) * SLICE;
    for (address, byte) in (physical..).zip(bytes.iter().chain(&END)) {
        // SAFETY: The scratch memory is not Rust's.
        unsafe { (address as *mut u8).write_volatile(*byte) };
    }
    let start = window(number, physical);
    let tables = load_tables(number);
    let stubs = &raw const hostile_user_exceptions as u64;
    for vector in 0..32 {
        let handler = match vector {
            NMI => &raw const hostile_user_nmi as u64,
            _ => stubs + 16 * vector,
        };
        let [low, high] = interrupt_gate(CODE, handler);
        tables.interrupts[2 * vector as usize].store(low, Ordering::Relaxed);
        tables.interrupts[2 * vector as usize + 1].store(high, Ordering::Relaxed);
    }
    let mut before = TablePointer { limit: 0, base: 0 };
    // SAFETY: SIDT writes the variable only.
    unsafe { asm!("sidt [{}]", in(reg) &raw mut before, options(nostack)) };
    load_interrupts(&TablePointer {
        limit: size_of_val(&tables.interrupts) as u16 - 1,
        base: &raw const tables.interrupts as u64,
    });
    // SAFETY: The program is mapped for CPL 3 and ends in an exception, which comes back here; what it leaves changed are
    // registers that a function may change.
    unsafe {
        hostile_user_run(
            start,
            start + SLICE - 16,
            rax,
            0,
            &raw const tables.task as u64,
            &raw const tables.result as u64,
        );
    }
    load_interrupts(&before);
    let [rax, vector, rip] =
        [0, 1, 2].map(|index: usize| tables.result[index].load(Ordering::Relaxed));
    if vector == 6 && rip == start + bytes.len() as u64 {
        match rax as i32 {
            errno @ -4095..0 => Outcome::Refused(-errno),
            _ => Outcome::Value(rax),
        }
    } else {
        Outcome::Exception(vector as u8)
    }
}

/// Each #DB hits a breakpoint on its own stack, whose top is `stack`.
pub fn debug_for_ever(number: u32, stack: u64) -> ! {
    /// IST1 in the gate.
    const FIRST_STACK: u64 = 1 << 32;
    /// Breakpoint 0: writes of 8 bytes.
    const WRITES: u64 = 1 | 1 << 16 | 2 << 18;
    let tables = load_tables(number);
    let task = &raw const tables.task as u64;
    let [low, high] = interrupt_gate(CODE, &raw const hostile_spin as u64);
    tables.interrupts[2].store(low | FIRST_STACK, Ordering::Relaxed);
    tables.interrupts[3].store(high, Ordering::Relaxed);
    load_interrupts(&TablePointer {
        limit: size_of_val(&tables.interrupts) as u16 - 1,
        base: &raw const tables.interrupts as u64,
    });
    // SAFETY: IST1 is in the task state, and this is the end.
    unsafe {
        ((task + 36) as *mut u64).write_unaligned(stack);
        asm!(
            "mov dr0, {at}",
            "mov dr7, {control}",
            "mov [{at}], {at}",
            "2: jmp 2b",
            at = in(reg) stack - 8,
            control = in(reg) WRITES,
            options(noreturn)
        )
    }
}
