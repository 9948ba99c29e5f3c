//! The way down: from 64-bit mode to protected mode without paging, and to real mode.
//!
//! Nobody comes back. The descriptors and the two task states lie at fixed places in the scratch memory, since their
//! addresses stand in descriptors bit by bit; so does the program of real mode, whose segment is where it lies.

use core::arch::{asm, global_asm};

use hostile_cell::attempt::{Ending, SCRATCH};
use hostile_cell::random::Random;

use super::memory::TablePointer;

/// Where the page tables of PAE paging are: random numbers.
const GARBAGE: u64 = SCRATCH + 0x4_c000;
/// Where the program of real mode is.
const REAL: u64 = SCRATCH + 0x4_d000;
/// Where the task states are, 0x100 bytes each.
const TASKS: u64 = SCRATCH + 0x4_e000;

/// Null, 64-bit code, data, 32-bit code, 16-bit code and data of the program of real mode, the task states.
static DESCRIPTORS: [u64; 8] = [
    0,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x00cf_9b00_0000_ffff,
    0x0000_9b0f_d000_ffff,
    0x0000_930f_d000_ffff,
    0x0000_890f_e000_0067,
    0x0000_890f_e100_0067,
];
const _: () = assert!(REAL == 0xf_d000 && TASKS == 0xf_e000);

global_asm!(
    r#"
    .text
    .balign 16
    # RDI: what to do below; see `kind`.
hostile_descend:
    pushq ${code32}
    leaq 2f(%rip), %rax
    pushq %rax
    lretq
    .code32
2:
    movl ${data}, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl %cr0, %eax
    andl $0x7fffffff, %eax
    movl %eax, %cr0
    movl $0xc0000080, %ecx
    rdmsr
    andl $~0x100, %eax
    wrmsr
    cmpl ${task_switch}, %edi
    je 3f
    cmpl ${garbage_pae}, %edi
    je 4f
    ljmpl $0x20, $0
3:
    movl $0x30, %eax
    ltr %ax
    ljmpl $0x38, $0
    ud2
4:
    movl ${garbage}, %eax
    movl %eax, %cr3
    movl %cr0, %eax
    orl $0x80000000, %eax
    movl %eax, %cr0
    ud2
    .code64

    .balign 16
hostile_real_start:
    .code16
    movw $0x28, %ax
    movw %ax, %ds
    movw %ax, %ss
    movl %cr0, %eax
    andb $0xfe, %al
    movl %eax, %cr0
    ljmpw ${real_segment}, $(hostile_real - hostile_real_start)
hostile_real:
    movw %cs, %ax
    movw %ax, %ds
    movw %ax, %ss
    movw $0xfff0, %sp
    cmpw ${no_table}, %di
    je 5f
    cmpw ${beyond}, %di
    je 6f
    # The end of the last segment is beyond the first MiB.
    movw $0xffff, %ax
    movw %ax, %es
    movl %es:0xfffc, %eax
    ud2
5:
    lidtw hostile_nothing - hostile_real_start
    int3
6:
    ljmpw $0xffff, $0xfff0
hostile_nothing:
    .long 0
    .long 0
hostile_real_end:
    .code64
    "#,
    code32 = const 0x18,
    data = const 0x10,
    task_switch = const TASK_SWITCH,
    garbage_pae = const GARBAGE_PAE,
    garbage = const GARBAGE,
    real_segment = const REAL >> 4,
    no_table = const NO_TABLE,
    beyond = const BEYOND,
    options(att_syntax)
);

const TASK_SWITCH: u32 = 0;
const GARBAGE_PAE: u32 = 1;
const NO_TABLE: u32 = 2;
const BEYOND: u32 = 3;
const SEGMENT_END: u32 = 4;

unsafe extern "C" {
    static hostile_real_start: u8;
    static hostile_real_end: u8;
    fn hostile_descend(kind: u32) -> !;
}

/// Goes down and ends there. `None`: that is not an ending of here.
pub fn descend(ending: Ending) -> Option<core::convert::Infallible> {
    let kind = match ending {
        Ending::TaskSwitch => TASK_SWITCH,
        Ending::GarbagePae => GARBAGE_PAE,
        Ending::RealModeWithoutTable => NO_TABLE,
        Ending::RealModeBeyond => BEYOND,
        Ending::RealModeSegmentEnd => SEGMENT_END,
        _ => return None,
    };
    let mut random = Random::new(3);
    let start = &raw const hostile_real_start as u64;
    let size = &raw const hostile_real_end as u64 - start;
    let pointer = TablePointer {
        limit: size_of_val(&DESCRIPTORS) as u16 - 1,
        base: &raw const DESCRIPTORS as u64,
    };
    // SAFETY: All that is written is scratch memory; the descriptors begin as those of the runtime do; and this is the
    // end of the CPU.
    unsafe {
        for offset in 0..size {
            let byte = ((start + offset) as *const u8).read_volatile();
            ((REAL + offset) as *mut u8).write_volatile(byte);
        }
        for offset in (0..0x1000).step_by(8) {
            ((GARBAGE + offset) as *mut u64).write_volatile(random.bits());
            ((TASKS + offset) as *mut u64).write_volatile(0);
        }
        asm!("lgdt [{}]", in(reg) &raw const pointer, options(readonly, nostack));
        hostile_descend(kind)
    }
}
