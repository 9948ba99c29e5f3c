/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A hypervisor that turns back at once: the test of the world switch.
 *
 * Every CPU takes descriptor tables of its own, sends NMIs to all others, and
 * leaves with an error. The first come and the last go while the others are in
 * each part of the stub, or in Linux. The NMIs that reached the image and the
 * emergency handlers are told in the outcome's detail.
 *
 * VENDOR is that of ImageHeader; with RESULT 0 the launch seems to succeed. The
 * test fills in the checksum.
 */
#include "gaol_abi.h"

#define PAGE(field)	GAOL_OFFSET_HANDOVER_PAGE_##field
#define STATE(field)	GAOL_OFFSET_LINUX_STATE_##field
#define REGISTER(name)	GAOL_OFFSET_GENERAL_REGISTERS_##name
#define LAUNCH(field)	GAOL_OFFSET_LAUNCH_PARAMETERS_##field

#ifndef RESULT
#define RESULT		-GAOL_ERRNO_INPUT_OUTPUT
#endif
#define NMIS		150
/* The last 2 MiB that the page directory of the image can map. */
#define APIC		0xffffffffbfe00000
#define APIC_LEAF	0xfee0009b	/* 2 MiB, present, writable, uncached */
#define NMI_TO_OTHERS	0x000c4400

	.text
	.globl start
start:
	.ascii	GAOL_IMAGE_SIGNATURE
	.long	GAOL_ABI_REVISION
	.long	VENDOR
	.long	0, 0				/* checksum, reserved */
	.quad	file_end - start
	.quad	memory_end - start
	.quad	entry - start
	.quad	text - start, text_end - text
	.quad	text_end - start, 0		/* no read-only data */
	.quad	data - start, memory_end - data
	.quad	4096				/* a CPU's private area */

	.balign	4096
text:
entry:
	movq	%rdi, %r12

	/* Own tables: the IDT first, for a gate finds the same code selector in both GDTs. */
	lidt	idt_register(%rip)
	lgdt	gdt_register(%rip)

	/* What the stub leaves to the hypervisor. */
	movq	%cr0, %rax
	movq	%rax, STATE(CR0)(%r12)
	movq	%dr7, %rax
	movq	%rax, STATE(DR7)(%r12)
	movl	$0xc0000100, %ecx
	rdmsr
	movl	%eax, STATE(FS_BASE)(%r12)
	movl	%edx, (STATE(FS_BASE) + 4)(%r12)
	movl	$0xc0000101, %ecx
	rdmsr
	movl	%eax, STATE(GS_BASE)(%r12)
	movl	%edx, (STATE(GS_BASE) + 4)(%r12)
	movq	$RESULT, REGISTER(RAX)(%r12)
	movl	$RESULT, PAGE(RESULT)(%r12)
	movl	$GAOL_LAUNCH_STEP_ARRIVE, PAGE(FAILED_STEP)(%r12)

	/* Root of the tables to the page directory of the image; all CPUs write the same. */
	movq	%cr3, %rax
	movl	$2, %ecx
	movq	%cr4, %rdx
	btq	$12, %rdx
	jnc	1f
	incl	%ecx
1:	movq	$GAOL_IMAGE_LINK_BASE, %rbx
	subq	(memory_end + LAUNCH(REGION_PHYSICAL))(%rip), %rbx
	movl	$(511 * 8), %edx
2:	addq	%rbx, %rax
	cmpl	$1, %ecx
	jne	3f
	movl	$(510 * 8), %edx
3:	movq	(%rax, %rdx), %rax
	andq	$~0xfff, %rax
	decl	%ecx
	jnz	2b
	addq	%rbx, %rax
	movl	$APIC_LEAF, %ecx
	movq	%rcx, (511 * 8)(%rax)

	/*
	 * The storm begins at once and lasts until all are here; then it takes the
	 * longer the higher the CPU's number, so that they leave one by one.
	 */
	lock incl (memory_end + LAUNCH(ARRIVED))(%rip)
	movl	PAGE(CPU)(%r12), %r13d
	incl	%r13d
	imull	$NMIS, %r13d
	movq	$APIC, %r14
4:	movl	$NMI_TO_OTHERS, 0x300(%r14)
	/* Seldom enough for Linux to handle them, or the last CPU would never come. */
	movl	$20000, %ecx
	movl	(memory_end + LAUNCH(ARRIVED))(%rip), %eax
	cmpl	(memory_end + LAUNCH(CPU_COUNT))(%rip), %eax
	jb	5f
	/* The time to the next one goes through all lengths. */
	movl	%r13d, %ecx
	andl	$0x3f, %ecx
	incl	%ecx
	decl	%r13d
5:	pause
	decl	%ecx
	jnz	5b
	testl	%r13d, %r13d
	jnz	4b

	movl	PAGE(NMI_COUNT)(%r12), %eax
	addl	own_nmis(%rip), %eax
	movq	$start, %rbx
	addq	(memory_end + LAUNCH(PUBLIC))(%rip), %rbx
	lock addq %rax, (GAOL_OFFSET_SYSTEM_PUBLIC_LAST_OUTCOME + GAOL_OFFSET_OUTCOME_DETAIL)(%rbx)
	movl	$GAOL_REASON_FAULT_INJECTED, (GAOL_OFFSET_SYSTEM_PUBLIC_LAST_OUTCOME + GAOL_OFFSET_OUTCOME_REASON)(%rbx)
	movl	$GAOL_LAUNCH_STEP_ARRIVE, (GAOL_OFFSET_SYSTEM_PUBLIC_LAST_OUTCOME + GAOL_OFFSET_OUTCOME_STEP)(%rbx)

	/* CPU 0 says a word on the console. */
	cmpl	$0, PAGE(CPU)(%r12)
	jne	6f
	leaq	greeting(%rip), %rsi
	leaq	(GAOL_PUBLIC_RING_OFFSET + GAOL_PUBLIC_RING_ENTRIES_OFFSET)(%rbx), %rdi
	movl	$(greeting_end - greeting), %ecx
	movb	$GAOL_PUBLIC_RING_BY_HYPERVISOR, %ah
	cld
7:	lodsb
	stosw
	loop	7b
	movq	$(greeting_end - greeting), (GAOL_PUBLIC_RING_OFFSET + GAOL_OFFSET_RING_HEADER_WRITTEN)(%rbx)
6:
	movq	%r12, %rdi
	jmp	*(memory_end + LAUNCH(STUB_LEAVE))(%rip)

nmi:
	lock incl own_nmis(%rip)
	iretq

	.balign	4096
text_end:
data:
gdt:
	.quad	0, 0
	.quad	0x00af9b000000ffff		/* 0x10: 64-bit code */
	.quad	0x00cf93000000ffff		/* 0x18: data */
gdt_end:
	.balign	16
idt:
	.fill	2 * 2, 8, 0
	/* The handler lies in the first 64 KiB of the top 2 GiB. Interrupt stack 2. */
	.word	nmi - start, 0x10, 0x8e02, 0x8000
	.long	0xffffffff, 0
idt_end:
	.balign	8
	.word	0, 0, 0
gdt_register:
	.word	gdt_end - gdt - 1
	.quad	gdt
	.balign	8
	.word	0, 0, 0
idt_register:
	.word	idt_end - idt - 1
	.quad	idt
own_nmis:
	.long	0
greeting:
	.ascii	"turned back\n"
greeting_end:
	.balign	4096
file_end:
memory_end:
