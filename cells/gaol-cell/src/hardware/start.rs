//! From real mode to Rust.
//!
//! Each CPU of the cell comes in at guest-physical 0, in real mode, with paging and caches off and no stack. Page 0
//! holds the code for that; page 1 is the command line, which is why the rest of the image starts at page 2.
//!
//! Invariant: the first CPU to arrive (ticket 0) clears .bss before anybody reads it, and the others wait for that. What
//! the code itself counts with therefore lies in .data. A cell that shuts down resets it ([`prepare_restart`]), so that
//! it can be started again without being loaded again.

use core::arch::global_asm;
use core::sync::atomic::{AtomicU32, Ordering};

use super::cpus::MAX_CPUS;

/// Bytes of the stack of each CPU; it is aligned to as many.
pub(super) const STACK_SIZE: usize = 16 << 10;
/// Selector of the 64-bit code segment.
pub const CODE_SELECTOR: u16 = 0x08;
/// Selector of the data segment.
const DATA_SELECTOR: u16 = 0x10;
/// Selector of the 32-bit code segment, in use for the way up only.
const CODE32_SELECTOR: u16 = 0x18;

const CR0_PROTECTED: u32 = 1;
/// CR0: PE, MP, ET, NE; the caches on (CD and NW clear).
const CR0_START: u32 = 0x33;
const CR0_PAGING_WRITE_PROTECT: u32 = 0x8001_0000;
const CR4_PAE: u32 = 1 << 5;
const EFER: u32 = 0xc000_0080;
const EFER_LONG_MODE_ENABLE: u32 = 1 << 8;

/// Number of CPUs that have arrived.
#[unsafe(link_section = ".data")]
static CPU_TICKETS: AtomicU32 = AtomicU32::new(0);
/// 1 as soon as .bss is clear.
#[unsafe(link_section = ".data")]
static BSS_CLEAR: AtomicU32 = AtomicU32::new(0);

/// Makes the image startable again as it is in memory.
pub fn prepare_restart() {
    CPU_TICKETS.store(0, Ordering::Relaxed);
    BSS_CLEAR.store(0, Ordering::Release);
}

global_asm!(
    r#"
    .section .start, "awx"
    .code16
    .global cell_start
cell_start:
    cli
    lgdtl gdt_pointer
    movl ${cr0_start}, %eax
    movl %eax, %cr0
    ljmpl ${code32}, $protected

    .code32
protected:
    movl ${data}, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl ${pae}, %eax
    movl %eax, %cr4
    movl $page_map, %eax
    movl %eax, %cr3
    movl ${efer}, %ecx
    rdmsr
    orl ${long_mode}, %eax
    wrmsr
    movl %cr0, %eax
    orl ${paging}, %eax
    movl %eax, %cr0
    ljmpl ${code}, $long_mode

    .code64
long_mode:
    xorl %eax, %eax
    movl %eax, %fs
    movl %eax, %gs
    cld
    movl $1, %eax
    lock xaddl %eax, {tickets}(%rip)
    cmpl ${max_cpus}, %eax
    jae too_many
    movl %eax, %ebx
    incl %eax
    imull ${stack_size}, %eax, %eax
    leaq stacks(%rax), %rsp
    movq $0, -{stack_size}(%rsp)
    movq $0, 8-{stack_size}(%rsp)
    testl %ebx, %ebx
    jnz secondary
    movl $cell_bss_start, %edi
    movl $cell_bss_end, %ecx
    subl %edi, %ecx
    shrl $3, %ecx
    xorl %eax, %eax
    rep stosq
    movl $1, {bss_clear}(%rip)
    xorl %ebp, %ebp
    call {first}
    ud2
secondary:
    pause
    cmpl $0, {bss_clear}(%rip)
    je secondary
    xorl %ebp, %ebp
    movl %ebx, %edi
    call {other}
    ud2
too_many:
    hlt
    jmp too_many

    .balign 8
gdt:
    .quad 0
    .quad 0x00af9b000000ffff    # 64-bit code
    .quad 0x00cf93000000ffff    # data
    .quad 0x00cf9b000000ffff    # 32-bit code
gdt_pointer:
    .word gdt_pointer - gdt - 1
    .long gdt

    # One to one up to 4 GiB in 2 MiB pages: present, writable, accessed, dirty, so that the walk writes nothing.
    .section .page_tables, "aw"
    .balign 4096
page_directories:
    .set address, 0
    .rept 2048
    .quad address + 0xe3
    .set address, address + 0x200000
    .endr
page_directory_pointers:
    .quad page_directories + 0x0023
    .quad page_directories + 0x1023
    .quad page_directories + 0x2023
    .quad page_directories + 0x3023
    .balign 4096
page_map:
    .quad page_directory_pointers + 0x23
    .balign 4096

    .section .stacks, "aw", @nobits
    .balign {stack_size}
stacks:
    .skip {stack_size} * {max_cpus}
    .text
    "#,
    cr0_start = const CR0_START | CR0_PROTECTED,
    paging = const CR0_PAGING_WRITE_PROTECT,
    pae = const CR4_PAE,
    efer = const EFER,
    long_mode = const EFER_LONG_MODE_ENABLE,
    code = const CODE_SELECTOR,
    data = const DATA_SELECTOR,
    code32 = const CODE32_SELECTOR,
    stack_size = const STACK_SIZE,
    max_cpus = const MAX_CPUS,
    tickets = sym CPU_TICKETS,
    bss_clear = sym BSS_CLEAR,
    first = sym super::cell::first_cpu,
    other = sym super::cpus::other_cpu,
    options(att_syntax)
);
