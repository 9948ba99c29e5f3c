// SPDX-License-Identifier: GPL-2.0
/*
 * Counts what instructions that a hypervisor may intercept cost in the root cell.
 *
 * Each read of /proc/gaol-bench measures anew, on the CPU that reads, with interrupts off. The same code runs with and
 * without a hypervisor, so that the difference of two readings is what the hypervisor adds. A line for each operation:
 *
 *     name rounds min median max bulk
 *
 * min, median and max are time stamp counter cycles between two RDTSC around one operation; bulk is the cycles that
 * all rounds take in one loop, which is exact where the counter moves in steps.
 */
#include <linux/kernel.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/proc_fs.h>
#include <linux/seq_file.h>
#include <linux/smp.h>
#include <linux/sort.h>
#include <linux/vmalloc.h>
#include <asm/apic.h>
#include <asm/fixmap.h>
#include <asm/fpu/xcr.h>
#include <asm/io.h>
#include <asm/irq_vectors.h>
#include <asm/msr.h>
#include <asm/processor.h>

#define ROUNDS 1000

#define HYPERCALL_GET_INFO 5
#define CPUID_HYPERVISOR 0x40000000
#define PCI_ADDRESS_PORT 0xcf8
#define PCI_DATA_PORT 0xcfc
/* The host bridge's vendor and device, which no access changes. */
#define PCI_HOST_BRIDGE 0x80000000u
/* Linux takes this interrupt at any time and does next to nothing. */
#define HARMLESS_VECTOR RESCHEDULE_VECTOR

/* What the operations need, found before they are measured. */
struct bench_context {
	void __iomem *apic;
	u32 other;
	int other_cpu;
	u32 task_priority;
	u64 xcr0;
};

struct bench_result {
	u64 samples[ROUNDS];
	u64 bulk;
};

typedef void (*bench_function)(const struct bench_context *context, struct bench_result *result);

static __always_inline u64 cycles(void)
{
	u32 low, high;

	asm volatile("rdtsc" : "=a" (low), "=d" (high) : : "memory");
	return ((u64)high << 32) | low;
}

#define BENCH(name, operation)								\
static noinline void bench_##name(const struct bench_context *context,			\
				  struct bench_result *result)				\
{											\
	unsigned int round;								\
	u64 start;									\
											\
	for (round = 0; round < ROUNDS; round++) {					\
		start = cycles();							\
		operation;								\
		result->samples[round] = cycles() - start;				\
	}										\
	start = cycles();								\
	for (round = 0; round < ROUNDS; round++)					\
		operation;								\
	result->bulk = cycles() - start;						\
}

static __always_inline void do_cpuid(void)
{
	u32 a = 0, b, c = 0, d;

	asm volatile("cpuid" : "+a" (a), "=b" (b), "+c" (c), "=d" (d) : : "memory");
}

static __always_inline void do_rdmsr(u32 number)
{
	u32 low, high;

	asm volatile("rdmsr" : "=a" (low), "=d" (high) : "c" (number) : "memory");
}

static __always_inline void do_vmcall(void)
{
	u64 result = HYPERCALL_GET_INFO;

	asm volatile("vmcall" : "+a" (result) : "D" (0ul), "S" (0ul) : "memory");
}

static __always_inline void do_vmmcall(void)
{
	u64 result = HYPERCALL_GET_INFO;

	asm volatile("vmmcall" : "+a" (result) : "D" (0ul), "S" (0ul) : "memory");
}

/* The same but for one byte of the instruction, which needs no hypervisor. */
static __always_inline void do_no_vmcall(void)
{
	u64 result = HYPERCALL_GET_INFO;

	asm volatile("nop" : "+a" (result) : "D" (0ul), "S" (0ul) : "memory");
}

static __always_inline void do_xsetbv(u64 value)
{
	asm volatile("xsetbv" : : "a" ((u32)value), "d" ((u32)(value >> 32)), "c" (0) : "memory");
}

static __always_inline void apic_out(const struct bench_context *context, u32 offset, u32 value)
{
	asm volatile("movl %0, %1"
		     : : "r" (value), "m" (*(volatile u32 __force *)(context->apic + offset)) : "memory");
}

static __always_inline void apic_in(const struct bench_context *context, u32 offset)
{
	u32 value;

	asm volatile("movl %1, %0"
		     : "=r" (value) : "m" (*(volatile u32 __force *)(context->apic + offset)) : "memory");
}

static __always_inline void ipi_to_other(const struct bench_context *context)
{
	apic_out(context, APIC_ICR2, context->other << 24);
	apic_out(context, APIC_ICR, HARMLESS_VECTOR);
}

BENCH(empty, (void)0)
BENCH(cpuid, do_cpuid())
BENCH(no_vmcall, do_no_vmcall())
BENCH(vmcall, do_vmcall())
BENCH(vmmcall, do_vmmcall())
BENCH(rdmsr_pat, do_rdmsr(MSR_IA32_CR_PAT))
BENCH(rdmsr_mtrr_def_type, do_rdmsr(MSR_MTRRdefType))
BENCH(xsetbv, do_xsetbv(context->xcr0))
BENCH(in_cf8, (void)inl(PCI_ADDRESS_PORT))
BENCH(out_cf8, outl(PCI_HOST_BRIDGE, PCI_ADDRESS_PORT))
BENCH(in_cfc, (void)inl(PCI_DATA_PORT))
BENCH(apic_read, apic_in(context, APIC_TASKPRI))
BENCH(apic_write_tpr, apic_out(context, APIC_TASKPRI, context->task_priority))
BENCH(apic_write_eoi, apic_out(context, APIC_EOI, 0))
BENCH(apic_write_icr_self, apic_out(context, APIC_ICR, APIC_DEST_SELF | HARMLESS_VECTOR))
BENCH(apic_ipi_to_other, ipi_to_other(context))

static void nothing(void *unused)
{
}

/* From the call to the answer: with interrupts on, since it waits for the other CPU. */
BENCH(ipi_round_trip, smp_call_function_single(context->other_cpu, nothing, NULL, 1))

static int compare(const void *a, const void *b)
{
	u64 first = *(const u64 *)a, second = *(const u64 *)b;

	return first < second ? -1 : first > second;
}

static void measure(struct seq_file *file, const char *name, bench_function function,
		    const struct bench_context *context, struct bench_result *result, bool interrupts_off)
{
	unsigned long flags = 0;

	memset(result, 0, sizeof(*result));
	if (interrupts_off)
		local_irq_save(flags);
	function(context, result);
	if (interrupts_off)
		local_irq_restore(flags);
	sort(result->samples, ROUNDS, sizeof(u64), compare, NULL);
	seq_printf(file, "%s %u %llu %llu %llu %llu\n", name, ROUNDS, result->samples[0],
		   result->samples[ROUNDS / 2], result->samples[ROUNDS - 1], result->bulk);
}

/* Whether a hypervisor with the guest interface of Jailhouse is under us. */
static bool has_hypercalls(void)
{
	u32 a, b, c, d;

	cpuid(CPUID_HYPERVISOR, &a, &b, &c, &d);
	return b == 0x6c69614a && c == 0x73756f68 && d == 0x65;
}

static int bench_show(struct seq_file *file, void *unused)
{
	struct bench_context context = {};
	struct bench_result *result;
	u64 apic_base;
	int cpu;

	result = vmalloc(sizeof(*result));
	if (!result)
		return -ENOMEM;

	cpu = get_cpu();
	context.other_cpu = cpumask_any_but(cpu_online_mask, cpu);
	context.apic = (void __iomem *)fix_to_virt(FIX_APIC_BASE);
	rdmsrl(MSR_IA32_APICBASE, apic_base);

	seq_printf(file, "# cpu %d hypervisor %d\n", cpu, has_hypercalls());
#define MEASURE(name) measure(file, #name, bench_##name, &context, result, true)
	MEASURE(empty);
	MEASURE(cpuid);
	MEASURE(no_vmcall);
	if (has_hypercalls()) {
		if (boot_cpu_data.x86_vendor == X86_VENDOR_AMD)
			MEASURE(vmmcall);
		else
			MEASURE(vmcall);
	}
	MEASURE(rdmsr_pat);
	MEASURE(rdmsr_mtrr_def_type);
	if (boot_cpu_has(X86_FEATURE_OSXSAVE)) {
		context.xcr0 = xgetbv(XCR_XFEATURE_ENABLED_MASK);
		MEASURE(xsetbv);
	}
	MEASURE(out_cf8);
	MEASURE(in_cf8);
	MEASURE(in_cfc);
	if (!(apic_base & X2APIC_ENABLE)) {
		context.task_priority = readl(context.apic + APIC_TASKPRI);
		MEASURE(apic_read);
		MEASURE(apic_write_tpr);
		MEASURE(apic_write_eoi);
		MEASURE(apic_write_icr_self);
		if (context.other_cpu < nr_cpu_ids) {
			context.other = per_cpu(x86_cpu_to_apicid, context.other_cpu);
			MEASURE(apic_ipi_to_other);
		}
	}
	if (context.other_cpu < nr_cpu_ids)
		measure(file, "ipi_round_trip", bench_ipi_round_trip, &context, result, false);
	put_cpu();
	vfree(result);
	return 0;
}

static int __init bench_init(void)
{
	if (!proc_create_single("gaol-bench", 0400, NULL, bench_show))
		return -ENOMEM;
	return 0;
}

static void __exit bench_exit(void)
{
	remove_proc_entry("gaol-bench", NULL);
}

module_init(bench_init);
module_exit(bench_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Counts what intercepted instructions cost");
