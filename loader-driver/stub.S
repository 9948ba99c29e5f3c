/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The world switch between Linux and the hypervisor.
 *
 * gaol_enter is ordinary text. The stub page behind it is mapped at the same
 * address in Linux' page tables, the boot page table and the hypervisor's own,
 * and so is the CPU's handover page; nothing else is sure to be there. The stub
 * page holds no RET (the kernel turns it into a jump out of the page), and all
 * of it runs with interrupts off.
 *
 * Invariant: before and behind each instruction an NMI or a machine check finds
 * an IDT, a GDT with its code selector, and a TSS with its stack, all of them
 * mapped. The handlers below need IDTR and that stack only, so they work with
 * Linux' GDT and TSS as well as with the emergency ones or the hypervisor's.
 */

#include <linux/linkage.h>
#include <asm/msr-index.h>
#include <asm/nospec-branch.h>
#include <asm/processor-flags.h>
#include "gaol_abi.h"

/* The state is the first part of the handover page. */
#if GAOL_OFFSET_HANDOVER_PAGE_STATE || GAOL_OFFSET_LINUX_STATE_REGISTERS
#error "the handover page does not begin with the general registers"
#endif

#define PAGE(field)		GAOL_OFFSET_HANDOVER_PAGE_##field
#define STATE(field)		GAOL_OFFSET_LINUX_STATE_##field
#define REGISTER(name)		GAOL_OFFSET_GENERAL_REGISTERS_##name
#define SELECTOR(name)		(STATE(SELECTORS) + 2 * GAOL_HANDOVER_SELECTOR_##name)
/* What LGDT and its kin take lies behind the padding. */
#define TABLE			GAOL_OFFSET_TABLE_REGISTER_LIMIT
#define TABLE_BASE		GAOL_OFFSET_TABLE_REGISTER_BASE

#define CR4_PGE_BIT		7
#define CR4_PCIDE_BIT		17
#define CR4_CET_BIT		23
/* Bit of the "busy" flag in the first half of a TSS descriptor. */
#define DESCRIPTOR_BUSY_BIT	41

	.text

/*
 * long gaol_enter(struct gaol_handover_page *page)
 *
 * Takes this CPU into the hypervisor. Returns 0 in the guest that Linux then is,
 * or natively with a negative error number. Interrupts are off.
 */
SYM_FUNC_START(gaol_enter)
	movq	%rbx, REGISTER(RBX)(%rdi)
	movq	%rbp, REGISTER(RBP)(%rdi)
	movq	%r12, REGISTER(R12)(%rdi)
	movq	%r13, REGISTER(R13)(%rdi)
	movq	%r14, REGISTER(R14)(%rdi)
	movq	%r15, REGISTER(R15)(%rdi)
	pushfq
	popq	STATE(RFLAGS)(%rdi)
	movq	%rsp, REGISTER(RSP)(%rdi)
	leaq	.Lresume(%rip), %rax
	movq	%rax, STATE(RIP)(%rdi)
	jmp	stub_in
.Lresume:
	RET
SYM_FUNC_END(gaol_enter)

	.section .gaol_stub, "ax", @progbits
	.balign	4096
SYM_DATA_START(gaol_stub_page)

/* In: RDI is the handover page. */
stub_in:
	movq	%cr3, %rax
	movq	%rax, STATE(CR3)(%rdi)
	movq	%cr4, %rax
	movq	%rax, STATE(CR4)(%rdi)
	sgdt	(STATE(GDTR) + TABLE)(%rdi)
	sidt	(STATE(IDTR) + TABLE)(%rdi)
	movw	%es, SELECTOR(ES)(%rdi)
	movw	%cs, SELECTOR(CS)(%rdi)
	movw	%ss, SELECTOR(SS)(%rdi)
	movw	%ds, SELECTOR(DS)(%rdi)
	movw	%fs, SELECTOR(FS)(%rdi)
	movw	%gs, SELECTOR(GS)(%rdi)
	sldt	SELECTOR(LDTR)(%rdi)
	str	SELECTOR(TR)(%rdi)
	movzwl	SELECTOR(TR)(%rdi), %eax
	andl	$~7, %eax
	addq	(STATE(GDTR) + TABLE_BASE)(%rdi), %rax
	movq	(%rax), %rcx
	movq	%rcx, STATE(TASK_DESCRIPTOR)(%rdi)
	movq	8(%rax), %rcx
	movq	%rcx, (STATE(TASK_DESCRIPTOR) + 8)(%rdi)

	/*
	 * The GDT first: it is Linux' but for the TSS descriptor, which only LTR
	 * reads. Until LTR the emergency handlers run on Linux' own stacks.
	 */
	lgdt	(PAGE(EMERGENCY_GDTR) + TABLE)(%rdi)
	lidt	(PAGE(EMERGENCY_IDTR) + TABLE)(%rdi)
	ltr	SELECTOR(TR)(%rdi)

	/* Without PGE no global entry of Linux survives the change of CR3. */
	movq	%cr4, %rax
	btrq	$CR4_PGE_BIT, %rax
	btrq	$CR4_PCIDE_BIT, %rax
	btrq	$CR4_CET_BIT, %rax
	movq	%rax, %cr4
	movq	PAGE(BOOT_CR3)(%rdi), %rax
	movq	%rax, %cr3
	movq	PAGE(ENTRY_STACK)(%rdi), %rsp
	ANNOTATE_RETPOLINE_SAFE
	jmp	*PAGE(ENTRY)(%rdi)

/*
 * The emergency handlers. They leave the word below the first push alone: on
 * Linux' NMI stack it says whether an NMI is being handled. IRETQ unmasks NMIs.
 */
.macro COUNTING_HANDLER name, counter
SYM_INNER_LABEL(\name, SYM_L_GLOBAL)
	endbr64
	pushq	%rax
	subq	$32, %rsp
	sidt	TABLE(%rsp)
	movq	TABLE_BASE(%rsp), %rax
	andq	$~0xfff, %rax
	incl	\counter(%rax)
	addq	$32, %rsp
	popq	%rax
	iretq
.endm

COUNTING_HANDLER gaol_stub_nmi, PAGE(NMI_COUNT)
COUNTING_HANDLER gaol_stub_machine_check, PAGE(MACHINE_CHECK_COUNT)

/* Linux' first instruction as a guest of VMX, and of SVM. */
SYM_INNER_LABEL(gaol_stub_first_vmx, SYM_L_GLOBAL)
	movl	$GAOL_HYPERCALL_COMMIT, %eax
	vmcall
	ud2
SYM_INNER_LABEL(gaol_stub_first_svm, SYM_L_GLOBAL)
	movl	$GAOL_HYPERCALL_COMMIT, %eax
	vmmcall
	ud2

/*
 * Back: RDI is the handover page, CR3[11:0] is 0, CS is Linux' selector.
 *
 * SS becomes NULL, which IRETQ takes at privilege level 0 whatever the GDT.
 */
SYM_INNER_LABEL(gaol_stub_leave, SYM_L_GLOBAL)
	xorl	%eax, %eax
	movl	%eax, %ss
	leaq	GAOL_HANDOVER_STUB_STACK_END(%rdi), %rsp
	lgdt	(PAGE(EMERGENCY_GDTR) + TABLE)(%rdi)
	lidt	(PAGE(EMERGENCY_IDTR) + TABLE)(%rdi)
	movzwl	SELECTOR(TR)(%rdi), %ebx
	andl	$~7, %ebx
	leaq	PAGE(GDT)(%rdi, %rbx), %rbx
	btrq	$DESCRIPTOR_BUSY_BIT, (%rbx)
	ltr	SELECTOR(TR)(%rdi)

	/* PCIDE can be set only while CR3[11:0] is 0; PGE comes last and flushes. */
	movq	STATE(CR0)(%rdi), %rax
	movq	%rax, %cr0
	movq	STATE(CR4)(%rdi), %rax
	btrq	$CR4_PGE_BIT, %rax
	btrq	$CR4_CET_BIT, %rax
	movq	%rax, %cr4
	movq	STATE(CR3)(%rdi), %rax
	movq	%rax, %cr3
	movq	STATE(CR4)(%rdi), %rax
	movq	%rax, %cr4

	/*
	 * Linux' GDT is read-only and calls its TSS busy, so that LTR cannot take
	 * it from there: it takes it from the emergency GDT.
	 */
	movq	STATE(TASK_DESCRIPTOR)(%rdi), %rax
	btrq	$DESCRIPTOR_BUSY_BIT, %rax
	movq	%rax, (%rbx)
	movq	(STATE(TASK_DESCRIPTOR) + 8)(%rdi), %rax
	movq	%rax, 8(%rbx)
	ltr	SELECTOR(TR)(%rdi)
	lgdt	(STATE(GDTR) + TABLE)(%rdi)
	lldt	SELECTOR(LDTR)(%rdi)
	movw	SELECTOR(DS)(%rdi), %ds
	movw	SELECTOR(ES)(%rdi), %es
	movw	SELECTOR(FS)(%rdi), %fs
	movw	SELECTOR(GS)(%rdi), %gs
	movl	$MSR_FS_BASE, %ecx
	movl	STATE(FS_BASE)(%rdi), %eax
	movl	(STATE(FS_BASE) + 4)(%rdi), %edx
	wrmsr
	movl	$MSR_GS_BASE, %ecx
	movl	STATE(GS_BASE)(%rdi), %eax
	movl	(STATE(GS_BASE) + 4)(%rdi), %edx
	wrmsr

	/* Linux' NMI handler needs GS; its #DB handler must be there before DR7. */
	lidt	(STATE(IDTR) + TABLE)(%rdi)
	movq	STATE(DR7)(%rdi), %rax
	movq	%rax, %dr7

	/*
	 * The frame goes below Linux' own stack pointer, for a CPU that Linux
	 * has offline tells nobody when it has arrived: behind the store to
	 * LEFT nothing here touches the region, so that it may be given back.
	 */
	movq	REGISTER(RSP)(%rdi), %rsp
	movzwl	SELECTOR(SS)(%rdi), %eax
	pushq	%rax
	pushq	REGISTER(RSP)(%rdi)
	pushq	STATE(RFLAGS)(%rdi)
	movzwl	SELECTOR(CS)(%rdi), %eax
	pushq	%rax
	pushq	STATE(RIP)(%rdi)
	pushq	REGISTER(RDI)(%rdi)
	movq	REGISTER(RAX)(%rdi), %rax
	movq	REGISTER(RCX)(%rdi), %rcx
	movq	REGISTER(RDX)(%rdi), %rdx
	movq	REGISTER(RBX)(%rdi), %rbx
	movq	REGISTER(RSI)(%rdi), %rsi
	movq	REGISTER(RBP)(%rdi), %rbp
	movq	REGISTER(R8)(%rdi), %r8
	movq	REGISTER(R9)(%rdi), %r9
	movq	REGISTER(R10)(%rdi), %r10
	movq	REGISTER(R11)(%rdi), %r11
	movq	REGISTER(R12)(%rdi), %r12
	movq	REGISTER(R13)(%rdi), %r13
	movq	REGISTER(R14)(%rdi), %r14
	movq	REGISTER(R15)(%rdi), %r15
	movl	$1, PAGE(LEFT)(%rdi)
	popq	%rdi
	iretq

	/* Exactly one page, whatever follows. */
	.org	gaol_stub_page + 4096, 0xcc
SYM_DATA_END(gaol_stub_page)
