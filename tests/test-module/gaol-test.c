// SPDX-License-Identifier: GPL-2.0
/*
 * What a system test can only do from inside the kernel.
 *
 * /proc/gaol-test/state   each read tells the state of every online CPU that Linux leaves alone while it runs:
 *                         control registers, MSRs, descriptor tables, segments, the APIC; one
 *                         "cpu<N> <name> <value>" a line, so that two readings can be compared.
 * /proc/gaol-test/nmi     "<microseconds>" written starts sending an NMI to every other online CPU at that interval,
 *                         from one CPU after the other; "0" stops. A read tells how many have come to each CPU.
 * /proc/gaol-test/poke    "<kind> <address> [<value>]" written makes one access; kinds: r8 r16 r32 r64 w8 w16 w32 w64
 *                         (physical memory), rdmsr wrmsr (with fix-up), inb inw inl outb outw outl, vmcall (number and
 *                         argument, VMMCALL on AMD's), icr (APIC id and interrupt command); numbers are hexadecimal. A read tells the
 *                         result: "ok <value>" or "fault". "triple 0" makes a triple fault.
 * /proc/gaol-test/hoard   "<start> <end> <stride>" written takes one page of Linux' memory in each stride between the
 *                         two addresses, which then can't be moved: memory as fragmented as one likes. "0" gives all
 *                         back. Numbers are hexadecimal. A read tells how many pages are held.
 * /proc/gaol-test/paint   "fill <start> <end> <pattern>" written fills what is free of Linux' memory between the two
 *                         addresses; "look" in its place only says where to look. A read tells how many words there hold
 *                         the pattern now, whoever has them.
 * /proc/gaol-test/remains "fill <cpu> <pattern>" written: when that CPU goes offline next, the pattern is left in its
 *                         registers. A read tells in how many vector registers it was found when the CPU came online
 *                         since then (or since "look <cpu> <pattern>"), and how many were looked at.
 *
 * Linux does not start the CPU whose number is in the parameter held_cpu.
 */
#include <linux/cpu.h>
#include <linux/cpuhotplug.h>
#include <linux/delay.h>
#include <linux/io.h>
#include <linux/kernel.h>
#include <linux/kthread.h>
#include <linux/memory_hotplug.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/nmi.h>
#include <linux/pci.h>
#include <linux/percpu.h>
#include <linux/proc_fs.h>
#include <linux/seq_file.h>
#include <linux/sizes.h>
#include <linux/slab.h>
#include <linux/smp.h>
#include <linux/uaccess.h>
#include <asm/apic.h>
#include <asm/debugreg.h>
#include <asm/desc.h>
#include <asm/fixmap.h>
#include <asm/fpu/xcr.h>
#include <asm/msr.h>
#include <asm/nmi.h>
#include <asm/tlbflush.h>

#define MAX_ENTRIES 128

struct state_entry {
	char name[28];
	u64 value;
};

struct state {
	unsigned int count;
	struct state_entry entries[MAX_ENTRIES];
};

static __printf(3, 4) void add(struct state *state, u64 value, const char *format, ...)
{
	va_list arguments;

	if (state->count == MAX_ENTRIES)
		return;
	va_start(arguments, format);
	vsnprintf(state->entries[state->count].name, sizeof(state->entries[0].name), format, arguments);
	va_end(arguments);
	state->entries[state->count++].value = value;
}

static void add_msr(struct state *state, const char *name, u32 number)
{
	u64 value;

	if (!rdmsrl_safe(number, &value))
		add(state, value, "msr_%s", name);
}

static void add_mtrrs(struct state *state)
{
	static const u32 fixed[] = { 0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f };
	u64 capabilities = 0, value;
	u32 index;

	if (!boot_cpu_has(X86_FEATURE_MTRR) || rdmsrl_safe(MSR_MTRRcap, &capabilities))
		return;
	add_msr(state, "mtrr_def_type", MSR_MTRRdefType);
	for (index = 0; index < ARRAY_SIZE(fixed); index++)
		if (!rdmsrl_safe(fixed[index], &value))
			add(state, value, "mtrr_fixed_%x", fixed[index]);
	for (index = 0; index < 2 * (capabilities & 0xff); index++)
		if (!rdmsrl_safe(0x200 + index, &value))
			add(state, value, "mtrr_variable_%u", index);
}

static void add_segments(struct state *state)
{
	struct desc_ptr table;
	u16 selector;
	u32 value;

#define SEGMENT(name) do {							\
		asm volatile("mov %%" #name ", %0" : "=r" (selector));		\
		add(state, selector, #name);					\
	} while (0)
	SEGMENT(cs);
	SEGMENT(ss);
	SEGMENT(ds);
	SEGMENT(es);
	SEGMENT(fs);
	SEGMENT(gs);
	asm volatile("str %0" : "=r" (selector));
	add(state, selector, "tr");
	asm volatile("lar %1, %0" : "=r" (value) : "r" ((u32)selector));
	add(state, value, "tr_access_rights");
	asm volatile("lsl %1, %0" : "=r" (value) : "r" ((u32)selector));
	add(state, value, "tr_limit");
	asm volatile("sldt %0" : "=r" (selector));
	add(state, selector, "ldtr");
	asm volatile("sgdt %0" : "=m" (table));
	add(state, table.address, "gdtr_base");
	add(state, table.size, "gdtr_limit");
	asm volatile("sidt %0" : "=m" (table));
	add(state, table.address, "idtr_base");
	add(state, table.size, "idtr_limit");
}

static void add_apic(struct state *state)
{
	static const struct { const char *name; u32 offset; } registers[] = {
		{ "id", APIC_ID }, { "version", APIC_LVR }, { "tpr", APIC_TASKPRI }, { "ldr", APIC_LDR },
		{ "dfr", APIC_DFR }, { "svr", APIC_SPIV }, { "lvt_timer", APIC_LVTT },
		{ "lvt_thermal", APIC_LVTTHMR }, { "lvt_performance", APIC_LVTPC }, { "lvt_lint0", APIC_LVT0 },
		{ "lvt_lint1", APIC_LVT1 }, { "lvt_error", APIC_LVTERR }, { "timer_divide", APIC_TDCR },
	};
	/* Whether an interrupt waits for its EOI at the LINT pins changes on its own. */
	const u32 volatile_bits = APIC_LVT_REMOTE_IRR | APIC_SEND_PENDING;
	u32 index;

	for (index = 0; index < ARRAY_SIZE(registers); index++)
		if (registers[index].offset != APIC_DFR || !x2apic_enabled())
			add(state, apic_read(registers[index].offset) & ~volatile_bits, "apic_%s",
			    registers[index].name);
}

/* On the CPU whose state it is, with interrupts off. */
static void collect(void *argument)
{
	struct state *state = argument;
	unsigned long value;

	add(state, read_cr0(), "cr0");
	/* CR3 is the mm's that runs: only its form can be compared. */
	add(state, !(__read_cr3() & ~(CR3_ADDR_MASK | X86_CR3_PCID_MASK)), "cr3_well_formed");
	add(state, native_read_cr4(), "cr4");
	add(state, cr4_read_shadow(), "cr4_as_linux_remembers_it");
	if (boot_cpu_has(X86_FEATURE_OSXSAVE))
		add(state, xgetbv(XCR_XFEATURE_ENABLED_MASK), "xcr0");
	get_debugreg(value, 7);
	add(state, value, "dr7");
	add_msr(state, "apic_base", MSR_IA32_APICBASE);
	add_msr(state, "feature_control", MSR_IA32_FEAT_CTL);
	add_msr(state, "efer", MSR_EFER);
	add_msr(state, "pat", MSR_IA32_CR_PAT);
	add_msr(state, "star", MSR_STAR);
	add_msr(state, "lstar", MSR_LSTAR);
	add_msr(state, "cstar", MSR_CSTAR);
	add_msr(state, "fmask", MSR_SYSCALL_MASK);
	add_msr(state, "gs_base", MSR_GS_BASE);
	add_msr(state, "sysenter_cs", MSR_IA32_SYSENTER_CS);
	add_msr(state, "sysenter_esp", MSR_IA32_SYSENTER_ESP);
	add_msr(state, "sysenter_eip", MSR_IA32_SYSENTER_EIP);
	add_msr(state, "debugctl", MSR_IA32_DEBUGCTLMSR);
	add_msr(state, "misc_enable", MSR_IA32_MISC_ENABLE);
	add_msr(state, "tsc_adjust", MSR_IA32_TSC_ADJUST);
	if (boot_cpu_has(X86_FEATURE_RDTSCP))
		add_msr(state, "tsc_aux", MSR_TSC_AUX);
	if (boot_cpu_has(X86_FEATURE_XSAVES))
		add_msr(state, "xss", MSR_IA32_XSS);
	add_mtrrs(state);
	add_segments(state);
	add_apic(state);
}

static int state_show(struct seq_file *file, void *unused)
{
	struct state *state;
	unsigned int index;
	int cpu;

	state = kmalloc(sizeof(*state), GFP_KERNEL);
	if (!state)
		return -ENOMEM;
	cpus_read_lock();
	for_each_online_cpu(cpu) {
		memset(state, 0, sizeof(*state));
		smp_call_function_single(cpu, collect, state, 1);
		for (index = 0; index < state->count; index++)
			seq_printf(file, "cpu%d %s %llx\n", cpu, state->entries[index].name,
				   state->entries[index].value);
	}
	cpus_read_unlock();
	kfree(state);
	return 0;
}

/* NMIs */

static DEFINE_MUTEX(nmi_lock);
static struct task_struct *nmi_thread;
static unsigned int nmi_interval;
static atomic_t nmi_outstanding[NR_CPUS];
static DEFINE_PER_CPU(unsigned long, nmi_received);
static unsigned long nmi_sent;

/* Two NMIs may come as one, so whatever comes while any was sent counts as ours. */
static int count_nmi(unsigned int type, struct pt_regs *registers)
{
	if (!atomic_xchg(&nmi_outstanding[smp_processor_id()], 0))
		return NMI_DONE;
	this_cpu_inc(nmi_received);
	return NMI_HANDLED;
}

static void send_nmis(void)
{
	int cpu, self = get_cpu();

	for_each_online_cpu(cpu) {
		if (cpu == self)
			continue;
		atomic_set(&nmi_outstanding[cpu], 1);
		apic->send_IPI(cpu, NMI_VECTOR);
		nmi_sent++;
	}
	put_cpu();
}

static int nmi_loop(void *unused)
{
	int target = -1;

	while (!kthread_should_stop()) {
		/* From every CPU in turn, so that every CPU gets them. */
		target = cpumask_next(target, cpu_online_mask);
		if (target >= nr_cpu_ids)
			target = cpumask_first(cpu_online_mask);
		set_cpus_allowed_ptr(current, cpumask_of(target));
		send_nmis();
		usleep_range(nmi_interval, nmi_interval + nmi_interval / 4 + 1);
	}
	return 0;
}

static void stop_nmis(void)
{
	if (nmi_thread)
		kthread_stop(nmi_thread);
	nmi_thread = NULL;
}

static ssize_t nmi_write(struct file *file, const char __user *user, size_t size, loff_t *position)
{
	struct task_struct *thread = NULL;
	unsigned int interval;
	int error;

	error = kstrtouint_from_user(user, size, 10, &interval);
	if (error)
		return error;
	mutex_lock(&nmi_lock);
	stop_nmis();
	if (interval) {
		nmi_interval = interval;
		thread = kthread_run(nmi_loop, NULL, "gaol-nmi");
		if (!IS_ERR(thread))
			nmi_thread = thread;
	}
	mutex_unlock(&nmi_lock);
	return IS_ERR(thread) ? PTR_ERR(thread) : size;
}

static int nmi_show(struct seq_file *file, void *unused)
{
	int cpu;

	seq_printf(file, "sent %lu\n", nmi_sent);
	for_each_possible_cpu(cpu)
		seq_printf(file, "cpu%d %lu\n", cpu, per_cpu(nmi_received, cpu));
	return 0;
}

static int nmi_open(struct inode *inode, struct file *file)
{
	return single_open(file, nmi_show, NULL);
}

static const struct proc_ops nmi_operations = {
	.proc_open = nmi_open,
	.proc_read = seq_read,
	.proc_lseek = seq_lseek,
	.proc_release = single_release,
	.proc_write = nmi_write,
};

/* Single accesses */

static DEFINE_MUTEX(poke_lock);
static char poke_result[32] = "none";

static bool poke_memory(const char *kind, u64 address, u64 *value)
{
	unsigned int bits;
	void *page;
	bool write = kind[0] == 'w', is_ram = true;

	if ((kind[0] != 'r' && !write) || kstrtouint(kind + 1, 10, &bits))
		return false;
	page = memremap(address, bits / 8, MEMREMAP_WB);
	if (!page) {
		is_ram = false;
		page = (void __force *)ioremap(address, bits / 8);
	}
	if (!page)
		return false;
	switch (bits) {
#define ACCESS(width)								\
	case width:								\
		if (write)							\
			*(volatile u##width *)page = *value;			\
		else								\
			*value = *(volatile u##width *)page;			\
		break
	ACCESS(8);
	ACCESS(16);
	ACCESS(32);
	ACCESS(64);
	}
	if (is_ram)
		memunmap(page);
	else
		iounmap((void __iomem *)page);
	return true;
}

/* An exception without a table of handlers. Does not return. */
static void triple_fault(void)
{
	const struct desc_ptr nothing = {};

	local_irq_disable();
	asm volatile("lidt %0\n\tint $0x20" : : "m" (nothing));
}

/*
 * The hypercall of this number, with one argument. Not by the feature: Linux
 * forgets it when it starts a CPU while Gaol hides it.
 */
static void hypercall(u64 number, u64 *value)
{
	u64 argument = *value;

	if (boot_cpu_data.x86_vendor == X86_VENDOR_AMD)
		asm volatile("vmmcall" : "=a"(*value) : "a"(number), "D"(argument), "S"(0UL) : "memory");
	else
		asm volatile("vmcall" : "=a"(*value) : "a"(number), "D"(argument), "S"(0UL) : "memory");
}

static bool poke(const char *kind, u64 address, u64 *value)
{
	if (!strcmp(kind, "triple"))
		triple_fault();
	if (!strcmp(kind, "rdmsr"))
		return !rdmsrl_safe(address, value);
	if (!strcmp(kind, "wrmsr"))
		return !wrmsrl_safe(address, *value);
	if (!strcmp(kind, "inb"))
		*value = inb(address);
	else if (!strcmp(kind, "inw"))
		*value = inw(address);
	else if (!strcmp(kind, "inl"))
		*value = inl(address);
	else if (!strcmp(kind, "outb"))
		outb(*value, address);
	else if (!strcmp(kind, "outw"))
		outw(*value, address);
	else if (!strcmp(kind, "outl"))
		outl(*value, address);
	else if (!strcmp(kind, "icr"))
		apic->icr_write(*value, address);
	else if (!strcmp(kind, "vmcall"))
		hypercall(address, value);
	else
		return poke_memory(kind, address, value);
	return true;
}

static ssize_t poke_write(struct file *file, const char __user *user, size_t size, loff_t *position)
{
	char text[80], kind[8];
	u64 address, value = 0;

	if (size >= sizeof(text) || copy_from_user(text, user, size))
		return -EINVAL;
	text[size] = 0;
	if (sscanf(text, "%7s %llx %llx", kind, &address, &value) < 2)
		return -EINVAL;
	mutex_lock(&poke_lock);
	if (poke(kind, address, &value))
		snprintf(poke_result, sizeof(poke_result), "ok %llx", value);
	else
		snprintf(poke_result, sizeof(poke_result), "fault");
	mutex_unlock(&poke_lock);
	return size;
}

static int poke_show(struct seq_file *file, void *unused)
{
	seq_printf(file, "%s\n", poke_result);
	return 0;
}

static int poke_open(struct inode *inode, struct file *file)
{
	return single_open(file, poke_show, NULL);
}

static const struct proc_ops poke_operations = {
	.proc_open = poke_open,
	.proc_read = seq_read,
	.proc_lseek = seq_lseek,
	.proc_release = single_release,
	.proc_write = poke_write,
};

#define MAX_HOARD 16384

/* Later kernels tell the allocator flags in place of the migrate type. */
#ifdef ACR_FLAGS_NONE
#define RANGE_KIND ACR_FLAGS_NONE
#else
#define RANGE_KIND MIGRATE_MOVABLE
#endif

static DEFINE_MUTEX(hoard_lock);
static unsigned long *hoard;
static unsigned int hoarded;

static void release_hoard(void)
{
	while (hoarded)
		free_contig_range(hoard[--hoarded], 1);
}

static bool hoard_page(unsigned long pfn)
{
	struct page *page = pfn_to_online_page(pfn);

	if (!page || PageReserved(page) || alloc_contig_range(pfn, pfn + 1, RANGE_KIND, GFP_KERNEL | __GFP_NOWARN))
		return false;
	hoard[hoarded++] = pfn;
	return true;
}

/* One of the first pages of a range. */
static bool hoard_one_of(u64 start, u64 end)
{
	u64 page;

	for (page = start; page < end; page += PAGE_SIZE)
		if (hoard_page(PHYS_PFN(page)))
			return true;
	return false;
}

/*
 * Where the first page of a stride can't be had, something else is in the way there, or one of the next is taken; and
 * where a whole pageblock is not for us, one of the next pageblocks.
 */
static void hoard_pages(u64 start, u64 end, u64 stride)
{
	const u64 pages = min_t(u64, stride, 32 * PAGE_SIZE);
	const u64 span = min_t(u64, stride, SZ_32M);
	u64 at, block;

	for (at = start; at < end && hoarded < MAX_HOARD; at += stride)
		for (block = at; block < min(at + span, end); block += SZ_2M)
			if (hoard_one_of(block, min(block + pages, end)))
				break;
}

static ssize_t hoard_write(struct file *file, const char __user *user, size_t size, loff_t *position)
{
	u64 start = 0, end = 0, stride = 0;
	char text[80];

	if (size >= sizeof(text) || copy_from_user(text, user, size))
		return -EINVAL;
	text[size] = 0;
	if (sscanf(text, "%llx %llx %llx", &start, &end, &stride) == 3 ? stride < PAGE_SIZE : start != 0)
		return -EINVAL;
	mutex_lock(&hoard_lock);
	if (stride)
		hoard_pages(start, end, stride);
	else
		release_hoard();
	mutex_unlock(&hoard_lock);
	return size;
}

static int hoard_show(struct seq_file *file, void *unused)
{
	seq_printf(file, "%u\n", hoarded);
	return 0;
}

static int hoard_open(struct inode *inode, struct file *file)
{
	return single_open(file, hoard_show, NULL);
}

static const struct proc_ops hoard_operations = {
	.proc_open = hoard_open,
	.proc_read = seq_read,
	.proc_lseek = seq_lseek,
	.proc_release = single_release,
	.proc_write = hoard_write,
};

/* What one owner of memory leaves to the next */

static DEFINE_MUTEX(paint_lock);
static u64 paint_start, paint_end, paint_pattern;

static ssize_t paint_write(struct file *file, const char __user *user, size_t size, loff_t *position)
{
	unsigned long pfn, word;
	char text[80], verb[8];

	if (size >= sizeof(text) || copy_from_user(text, user, size))
		return -EINVAL;
	text[size] = 0;
	mutex_lock(&paint_lock);
	if (sscanf(text, "%7s %llx %llx %llx", verb, &paint_start, &paint_end, &paint_pattern) != 4) {
		mutex_unlock(&paint_lock);
		return -EINVAL;
	}
	for (pfn = PHYS_PFN(paint_start); !strcmp(verb, "fill") && pfn < PHYS_PFN(paint_end); pfn++) {
		struct page *page = pfn_to_online_page(pfn);
		u64 *words = page ? page_address(page) : NULL;

		if (!page || PageReserved(page) ||
		    alloc_contig_range(pfn, pfn + 1, RANGE_KIND, GFP_KERNEL | __GFP_NOWARN))
			continue;
		for (word = 0; word < PAGE_SIZE / sizeof(*words); word++)
			WRITE_ONCE(words[word], paint_pattern);
		free_contig_range(pfn, 1);
		cond_resched();
	}
	mutex_unlock(&paint_lock);
	return size;
}

static int paint_show(struct seq_file *file, void *unused)
{
	unsigned long found = 0, pfn, word;

	mutex_lock(&paint_lock);
	for (pfn = PHYS_PFN(paint_start); pfn < PHYS_PFN(paint_end); pfn++) {
		struct page *page = pfn_to_online_page(pfn);
		const u64 *words = page ? page_address(page) : NULL;

		for (word = 0; words && word < PAGE_SIZE / sizeof(*words); word++)
			found += READ_ONCE(words[word]) == paint_pattern;
		cond_resched();
	}
	mutex_unlock(&paint_lock);
	seq_printf(file, "%lu\n", found);
	return 0;
}

static int paint_open(struct inode *inode, struct file *file)
{
	return single_open(file, paint_show, NULL);
}

static const struct proc_ops paint_operations = {
	.proc_open = paint_open,
	.proc_read = seq_read,
	.proc_lseek = seq_lseek,
	.proc_release = single_release,
	.proc_write = paint_write,
};

/* What one owner of a CPU leaves to the next */

static int remains_state;
static int remains_cpu = -1;
static bool remains_fill;
static u64 remains_pattern;
static unsigned int remains_found, remains_seen;

#define ALL_VECTORS(each)							\
	each(0) each(1) each(2) each(3) each(4) each(5) each(6) each(7)		\
	each(8) each(9) each(10) each(11) each(12) each(13) each(14) each(15)

/* In the last steps of the way down no user space runs on the CPU any more, so that nobody misses what it had. */
static int fill_registers(unsigned int cpu)
{
	u64 vector[4] = { remains_pattern, remains_pattern, remains_pattern, remains_pattern };

	if (cpu != remains_cpu || !remains_fill)
		return 0;
	remains_fill = false;
	wrmsrl(MSR_STAR, remains_pattern);
	wrmsrl(MSR_LSTAR, remains_pattern);
	wrmsrl(MSR_CSTAR, remains_pattern);
	wrmsrl(MSR_SYSCALL_MASK, remains_pattern & U32_MAX);
	wrmsrl(MSR_KERNEL_GS_BASE, remains_pattern);
	set_debugreg(remains_pattern, 0);
	set_debugreg(remains_pattern, 1);
	set_debugreg(remains_pattern, 2);
	set_debugreg(remains_pattern, 3);
	asm volatile("mov %0, %%cr2" : : "r" (remains_pattern));
	if (!boot_cpu_has(X86_FEATURE_AVX))
		return 0;
#define FILL(number) asm volatile("vmovdqu %0, %%ymm" #number : : "m" (vector));
	ALL_VECTORS(FILL)
	return 0;
}

static int look_at_registers(unsigned int cpu)
{
	u64 vector[4];

	if (cpu != remains_cpu || remains_fill || !boot_cpu_has(X86_FEATURE_AVX))
		return 0;
	remains_found = 0;
	remains_seen = 0;
#define LOOK(number)								\
	asm volatile("vmovdqu %%ymm" #number ", %0" : "=m" (vector));		\
	remains_found += vector[0] == remains_pattern || vector[3] == remains_pattern;	\
	remains_seen++;
	ALL_VECTORS(LOOK)
	return 0;
}

static ssize_t remains_write(struct file *file, const char __user *user, size_t size, loff_t *position)
{
	char text[80], verb[8];
	u64 pattern;
	int cpu;

	if (size >= sizeof(text) || copy_from_user(text, user, size))
		return -EINVAL;
	text[size] = 0;
	if (sscanf(text, "%7s %d %llx", verb, &cpu, &pattern) != 3)
		return -EINVAL;
	remains_cpu = cpu;
	remains_pattern = pattern;
	remains_fill = !strcmp(verb, "fill");
	remains_found = 0;
	remains_seen = 0;
	return size;
}

static int remains_show(struct seq_file *file, void *unused)
{
	seq_printf(file, "%u of %u%s\n", remains_found, remains_seen, remains_fill ? ", to be filled" : "");
	return 0;
}

static int remains_open(struct inode *inode, struct file *file)
{
	return single_open(file, remains_show, NULL);
}

static const struct proc_ops remains_operations = {
	.proc_open = remains_open,
	.proc_read = seq_read,
	.proc_lseek = seq_lseek,
	.proc_release = single_release,
	.proc_write = remains_write,
};

static int held_cpu = -1;
module_param(held_cpu, int, 0600);
MODULE_PARM_DESC(held_cpu, "A CPU that Linux does not start");

static int held_state;

static int refuse_held(unsigned int cpu)
{
	return cpu == READ_ONCE(held_cpu) ? -EAGAIN : 0;
}

static struct proc_dir_entry *directory;

/*
 * A driver that does nothing, for functions that are named in its new_id: what is bound to it is in use.
 */
static int bind_function(struct pci_dev *device, const struct pci_device_id *id)
{
	return 0;
}

/* Without a table of ids: new_id refuses what is not like an entry of a table. */
static struct pci_driver binding_driver = {
	.name = "gaol-test",
	.probe = bind_function,
};

static int __init test_init(void)
{
	int error = register_nmi_handler(NMI_LOCAL, count_nmi, 0, "gaol-test");

	if (error)
		return error;
	error = pci_register_driver(&binding_driver);
	if (error) {
		unregister_nmi_handler(NMI_LOCAL, "gaol-test");
		return error;
	}
	hoard = kvmalloc_array(MAX_HOARD, sizeof(*hoard), GFP_KERNEL);
	directory = hoard ? proc_mkdir("gaol-test", NULL) : NULL;
	if (directory && proc_create_single("state", 0400, directory, state_show) &&
	    proc_create("nmi", 0600, directory, &nmi_operations) &&
	    proc_create("poke", 0600, directory, &poke_operations) &&
	    proc_create("hoard", 0600, directory, &hoard_operations) &&
	    proc_create("paint", 0600, directory, &paint_operations) &&
	    proc_create("remains", 0600, directory, &remains_operations)) {
		remains_state = cpuhp_setup_state_nocalls(CPUHP_AP_ONLINE_DYN, "gaol-test:remains", look_at_registers,
							  fill_registers);
		held_state = cpuhp_setup_state_nocalls(CPUHP_BP_PREPARE_DYN, "gaol-test:held", refuse_held, NULL);
		if (remains_state > 0 && held_state > 0)
			return 0;
		if (remains_state > 0)
			cpuhp_remove_state_nocalls(remains_state);
		if (held_state > 0)
			cpuhp_remove_state_nocalls(held_state);
	}
	proc_remove(directory);
	kvfree(hoard);
	pci_unregister_driver(&binding_driver);
	unregister_nmi_handler(NMI_LOCAL, "gaol-test");
	return -ENOMEM;
}

static void __exit test_exit(void)
{
	proc_remove(directory);
	cpuhp_remove_state_nocalls(remains_state);
	cpuhp_remove_state_nocalls(held_state);
	release_hoard();
	kvfree(hoard);
	stop_nmis();
	pci_unregister_driver(&binding_driver);
	unregister_nmi_handler(NMI_LOCAL, "gaol-test");
}

module_init(test_init);
module_exit(test_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Looks at CPUs, sends NMIs and makes single accesses for the system tests");
