// SPDX-License-Identifier: GPL-2.0
/*
 * The launch and the way back: all CPUs through the world switch, and hypercalls
 * between the two.
 *
 * Invariant: nothing is given back to Linux, or used again, before every CPU has
 * reported. Once a CPU has come back as a guest, of the hypervisor's memory only
 * the public pages are touched.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/cpu.h>
#include <linux/delay.h>
#include <linux/module.h>
#include <linux/sizes.h>
#include <linux/slab.h>
#include <linux/smp.h>
#include <linux/version.h>
#include <asm/apic.h>
#include <asm/desc.h>
#include <asm/msr.h>

#include "launch.h"

/* Type of a gate and of a TSS descriptor, present, privilege level 0. */
#define INTERRUPT_GATE		0x8e
#define TASK_AVAILABLE		0x89
/* Where Linux and the emergency TSS have the stacks of the two. */
#define NMI_STACK		2
#define MACHINE_CHECK_STACK	4
#define MACHINE_CHECK_VECTOR	18

/* The world switch */

static void set_gate(struct gaol_handover_page *page, unsigned int vector,
		     const char *handler, unsigned int stack)
{
	u64 *gate = (u64 *)&page->idt[vector * 16];
	u64 address = (unsigned long)handler;

	gate[0] = (address & 0xffff) | (u64)__KERNEL_CS << 16 |
		  (u64)stack << 32 | (u64)INTERRUPT_GATE << 40 |
		  (address >> 16 & 0xffff) << 48;
	gate[1] = address >> 32;
}

static void set_stack(struct gaol_handover_page *page, unsigned int offset,
		      u64 end)
{
	u64 address = (unsigned long)page + end;

	/* The fields of a TSS are not aligned. */
	memcpy(&page->task_state[offset], &address, sizeof(address));
}

static void set_task_descriptor(struct gaol_handover_page *page,
				unsigned long selector)
{
	u64 *descriptor = (u64 *)&page->gdt[selector & ~7];
	u64 base = (unsigned long)page->task_state;

	descriptor[0] = (GAOL_HANDOVER_TASK_STATE_BYTES - 1) |
			(base & 0xffffff) << 16 | (u64)TASK_AVAILABLE << 40 |
			(base >> 24 & 0xff) << 56;
	descriptor[1] = base >> 32;
}

/* Copies this CPU's GDT and builds the emergency tables around it. */
static void build_emergency_tables(struct gaol_handover_page *page)
{
	struct desc_ptr gdt;
	unsigned long task;
	unsigned int stack;

	native_store_gdt(&gdt);
	store_tr(task);
	memcpy(page->gdt, (void *)gdt.address, gdt.size + 1);
	set_task_descriptor(page, task);
	page->emergency_gdtr.limit = gdt.size;
	page->emergency_gdtr.base = (unsigned long)page->gdt;

	/* RSP0 to RSP2 at 4, the interrupt stacks 1 to 7 at 36. */
	for (stack = 0; stack < 3; stack++)
		set_stack(page, 4 + 8 * stack, GAOL_HANDOVER_STUB_STACK_END);
	for (stack = 1; stack < 8; stack++)
		set_stack(page, 28 + 8 * stack,
			  stack == NMI_STACK ? GAOL_HANDOVER_NMI_STACK_END :
			  stack == MACHINE_CHECK_STACK ?
				GAOL_HANDOVER_MACHINE_CHECK_STACK_END :
				GAOL_HANDOVER_STUB_STACK_END);

	set_gate(page, NMI_VECTOR, gaol_stub_nmi, NMI_STACK);
	set_gate(page, MACHINE_CHECK_VECTOR, gaol_stub_machine_check,
		 MACHINE_CHECK_STACK);
	page->emergency_idtr.limit = sizeof(page->idt) - 1;
	page->emergency_idtr.base = (unsigned long)page->idt;
}

/*
 * Not INT 2: it masks no NMIs, and one that came in the first instructions of
 * Linux' handler would overwrite its stack.
 */
static void send_nmi_to_self(void)
{
	const struct cpumask *self = cpumask_of(smp_processor_id());

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 6, 0)
	__apic_send_IPI_mask(self, NMI_VECTOR);
#else
	apic->send_IPI_mask(self, NMI_VECTOR);
#endif
}

/* Tells Linux what the emergency handlers have counted on this CPU. */
static void raise_what_was_counted(struct gaol_handover_page *page)
{
	if (xchg(&page->nmi_count, 0))
		send_nmi_to_self();
	if (xchg(&page->machine_check_count, 0)) {
		/* Else the next one would reset the machine. */
		wrmsrl_safe(MSR_IA32_MCG_STATUS, 0);
		pr_emerg("CPU %u: machine check during the world switch\n",
			 smp_processor_id());
	}
}

static void enter_cpu(void *argument)
{
	struct launch *launch = argument;
	unsigned int cpu = smp_processor_id();
	struct gaol_handover_page *page = launch->pages + cpu;
	long result;

	build_emergency_tables(page);
	result = gaol_enter(page);
	launch->results[cpu] = result;
	if (result)
		raise_what_was_counted(page);
}

/* Why the CPUs came back; called when all of them have. */
static int explain_failure(struct launch *launch)
{
	struct gaol_outcome *outcome = &launch->request->outcome;
	int error = 0;
	unsigned int cpu;

	*outcome = launch->public->last_outcome;
	for (cpu = 0; cpu < launch->cpu_count; cpu++) {
		struct gaol_handover_page *page = launch->pages + cpu;

		if (!page->failed_step && !page->result)
			continue;
		/* The CPU that failed first, not those that it made return. */
		if (outcome->reason && outcome->cpu == cpu)
			error = page->result;
		else if (!error)
			error = page->result;
		if (!outcome->reason && !outcome->step) {
			outcome->cpu = cpu;
			outcome->step = page->failed_step;
		}
	}
	return error < 0 && error >= -MAX_ERRNO ? error : -EIO;
}

/* Takes all CPUs into the hypervisor. */
static int switch_worlds(struct launch *launch)
{
	unsigned int cpu, guests = 0;
	u64 start;

	launch->results = kcalloc(launch->cpu_count, sizeof(*launch->results),
				  GFP_KERNEL);
	if (!launch->results)
		return -ENOMEM;
	gaol_console_attach(launch->public);
	start = rdtsc_ordered();
	on_each_cpu(enter_cpu, launch, 1);
	launch->request->cycles = rdtsc_ordered() - start;

	for (cpu = 0; cpu < launch->cpu_count; cpu++)
		guests += !launch->results[cpu];
	kfree(launch->results);
	if (guests == launch->cpu_count)
		return 0;
	if (!guests) {
		gaol_console_detach();
		return explain_failure(launch);
	}
	pr_emerg("%u of %u CPUs are guests: save your data and reboot\n",
		 guests, launch->cpu_count);
	gaol.broken = true;
	return -EIO;
}

static int launch_all(struct launch *launch)
{
	int error;

	cpus_read_lock();
	error = gaol_check_cpus(launch);
	if (!error)
		error = gaol_take_region(launch);
	if (!error)
		error = gaol_fill_region(launch);
	if (!error) {
		down_write(&gaol.presence);
		error = switch_worlds(launch);
		if (!error) {
			gaol.vendor = launch->image->vendor;
			gaol.cpu_count = launch->cpu_count;
			gaol.region = launch->memory;
			gaol.mapping = launch->mapping;
			gaol.pages = launch->pages;
			gaol.public = launch->public;
			gaol.public_size = launch->public_size;
			WRITE_ONCE(gaol.enabled, true);
		}
		up_write(&gaol.presence);
	}
	cpus_read_unlock();
	return error;
}

/* Is there a hypervisor that can be asked for anything? */
int gaol_check_enabled(struct gaol_outcome *outcome)
{
	if (gaol.broken)
		return -EIO;
	if (!gaol.enabled)
		return gaol_refuse(outcome, GAOL_REASON_NOT_ENABLED, 0,
				   -ENODEV);
	return 0;
}

int gaol_enable(struct gaol_enable_request *request, const void *image,
		void *config, const struct file *holder)
{
	struct launch launch = {
		.image = image,
		.request = request,
		.config = config,
		.holder = holder,
	};
	struct gaol_outcome *outcome = &request->outcome;
	int error;

	if (gaol.broken)
		return -EIO;
	if (gaol.enabled)
		return gaol_refuse(outcome, GAOL_REASON_ALREADY_ENABLED, 0,
				   -EBUSY);
	if (request->flags)
		return -EINVAL;
	error = gaol_check_image(image, request->image_size, outcome);
	if (!error)
		error = gaol_check_config(config, request->config_size, outcome);
	if (error)
		return error;
	if (!try_module_get(THIS_MODULE))
		return -ENODEV;

	error = launch_all(&launch);
	if (error) {
		if (!gaol.broken) {
			gaol_give_region_back(launch.mapping, launch.memory);
			module_put(THIS_MODULE);
		}
		return error;
	}
	request->region_physical = gaol.region->physical;
	request->region_size = gaol.region->size;

	error = gaol_cell_create_root(launch.config->name);
	if (error) {
		gaol_give_back();
		return error;
	}
	pr_info("enabled on %u CPUs with %zu KiB at %pa\n", gaol.cpu_count,
		gaol.region->size / SZ_1K, &gaol.region->physical);
	return 0;
}

/* Hypercalls */

static long call(u32 number, u64 first, u64 second)
{
	long result = number;

	if (gaol.vendor == GAOL_VENDOR_SVM)
		asm volatile("vmmcall" : "+a"(result) : "D"(first), "S"(second)
			     : "memory");
	else
		asm volatile("vmcall" : "+a"(result) : "D"(first), "S"(second)
			     : "memory");
	return result;
}

/*
 * One call, on this CPU; the caller knows that the hypervisor is enabled. Adds
 * to `cycles`, when given, what it took.
 */
long gaol_hypercall(u32 number, u64 first, u64 second, u64 *cycles)
{
	unsigned long flags;
	long result;
	u64 start;

	local_irq_save(flags);
	start = rdtsc_ordered();
	result = call(number, first, second);
	if (cycles)
		*cycles += rdtsc_ordered() - start;
	local_irq_restore(flags);
	return result;
}

/* How often a call that was refused for another is tried again. */
#define TURN_ROUNDS	1000

/*
 * The same, for those that the hypervisor does one at a time. Whoever comes
 * second is refused at once, even while somebody only looks at the state of a
 * cell, which takes microseconds: a refusal of this kind concerns nobody else,
 * unless it lasts.
 */
long gaol_hypercall_in_turn(u32 number, u64 first, u64 second, u64 *cycles)
{
	unsigned int round;
	long result;

	for (round = 0;; round++) {
		result = gaol_hypercall(number, first, second, cycles);
		if (result != -EINPROGRESS || round == TURN_ROUNDS)
			return result;
		usleep_range(50, 200);
	}
}

/* Turns a failed call into an error number and says why it failed. */
int gaol_hypercall_error(long result, struct gaol_outcome *outcome)
{
	const struct gaol_system_public *public = gaol.public;

	*outcome = public->last_outcome;
	return result >= -MAX_ERRNO ? result : -EIO;
}

/* The way back */

/* Rounds of a millisecond and more. */
#define LEAVING_ROUNDS	10000

struct way_back {
	u64 cpus;
	atomic_t failed;
	atomic_t returned;
	int error;
};

static void return_cpu(void *argument)
{
	struct way_back *way = argument;
	long result = call(GAOL_HYPERCALL_DISABLE, way->cpus, 0);

	if (result) {
		if (!atomic_fetch_inc(&way->failed))
			way->error = result;
		return;
	}
	atomic_inc(&way->returned);
	raise_what_was_counted(gaol.pages + smp_processor_id());
}

/*
 * Whether every CPU is out of the region: those that Linux has offline come
 * back by themselves, a moment later than the others.
 */
static bool all_have_left(void)
{
	unsigned int cpu, round;

	for_each_present_cpu(cpu) {
		for (round = 0; !READ_ONCE(gaol.pages[cpu].left); round++) {
			if (round == LEAVING_ROUNDS) {
				pr_emerg("CPU %u has not come back: its memory stays taken\n",
					 cpu);
				return false;
			}
			usleep_range(1000, 2000);
		}
	}
	return true;
}

static int take_machine_back(struct gaol_outcome *outcome, u64 *cycles)
{
	struct way_back way = {};
	u64 start;

	cpus_read_lock();
	down_write(&gaol.presence);
	way.cpus = num_online_cpus();
	start = rdtsc_ordered();
	on_each_cpu(return_cpu, &way, 1);
	*cycles = rdtsc_ordered() - start;
	if (!atomic_read(&way.failed)) {
		gaol_console_detach();
		gaol.public = NULL;
		WRITE_ONCE(gaol.enabled, false);
	} else if (atomic_read(&way.returned)) {
		pr_emerg("%d CPUs came back, %d did not: save your data and reboot\n",
			 atomic_read(&way.returned), atomic_read(&way.failed));
		gaol.broken = true;
	} else {
		gaol_hypercall_error(way.error, outcome);
	}
	up_write(&gaol.presence);
	cpus_read_unlock();
	return atomic_read(&way.failed) ? way.error : 0;
}

/* Disables; there are no cells but the root cell. */
static int disable(struct gaol_outcome *outcome, u64 *cycles)
{
	int error = gaol_cells_bring_cpus_back(outcome);

	if (!error)
		error = take_machine_back(outcome, cycles);
	if (error)
		return error;
	gaol_cell_remove_root();
	if (all_have_left())
		gaol_give_region_back(gaol.mapping, gaol.region);
	gaol.mapping = NULL;
	gaol.region = NULL;
	module_put(THIS_MODULE);
	pr_info("disabled\n");
	return 0;
}

/* Gives the machine back whatever cells there are; on the way to a reboot. */
int gaol_give_back(void)
{
	struct gaol_outcome outcome;
	u64 cycles;
	int error = gaol_cells_destroy_all(&outcome);

	return error ? error : disable(&outcome, &cycles);
}

int gaol_disable(struct gaol_cell_command *command)
{
	struct gaol_outcome *outcome = &command->outcome;
	int error = gaol_check_enabled(outcome);

	command->cycles = 0;
	command->scrub_cycles = 0;
	if (error)
		return error;
	if (command->flags & GAOL_DRIVER_FLAG_FORCE) {
		error = gaol_cells_destroy_all(outcome);
		if (error)
			return error;
	}
	if (gaol_cells_count())
		return gaol_refuse(outcome, GAOL_REASON_CELLS_EXIST,
				   gaol_cells_count(), -EBUSY);
	return disable(outcome, &command->cycles);
}
