// SPDX-License-Identifier: GPL-2.0
/*
 * The launch and the way back: checks, the layout of the hypervisor's memory,
 * the boot page table, and all CPUs through the world switch.
 *
 * Invariant: nothing is given back to Linux, or used again, before every CPU has
 * reported. Once a CPU has come back as a guest, of the hypervisor's memory only
 * the public pages are touched.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/acpi.h>
#include <linux/cpu.h>
#include <linux/io.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/sizes.h>
#include <linux/slab.h>
#include <linux/smp.h>
#include <linux/version.h>
#include <linux/vmalloc.h>
#include <asm/apic.h>
#include <asm/cpuid.h>
#include <asm/desc.h>
#include <asm/msr.h>
#include <asm/smp.h>
#include <asm/special_insns.h>
#include <asm/tsc.h>

#include "gaol.h"

#define DEFAULT_DEADLINE_MS	10000
#define MAX_CPU_AREA		SZ_1M
/* The root, and for each of image, stub and handover pages those below it. */
#define BOOT_TABLE_PAGES	20

#define TABLE_FLAGS	(_PAGE_PRESENT | _PAGE_RW | _PAGE_ACCESSED)
#define LEAF_FLAGS	(TABLE_FLAGS | _PAGE_DIRTY)

#define FEATURE_CONTROL_LOCKED	BIT(0)
#define FEATURE_CONTROL_VMX	BIT(2)
#define VM_CR_SVM_DISABLED	BIT(4)

/* Type of a gate and of a TSS descriptor, present, privilege level 0. */
#define INTERRUPT_GATE		0x8e
#define TASK_AVAILABLE		0x89
/* Where Linux and the emergency TSS have the stacks of the two. */
#define NMI_STACK		2
#define MACHINE_CHECK_STACK	4
#define MACHINE_CHECK_VECTOR	18

struct launch {
	const struct gaol_image_header *image;
	struct gaol_enable_request *request;
	struct gaol_system_header *config;
	unsigned int cpu_count;

	struct gaol_memory *memory;
	void *mapping;
	struct gaol_launch_parameters *parameters;
	struct gaol_handover_page *pages;
	const struct gaol_system_public *public;
	size_t public_size;
	/* Pages of the boot page table in use. */
	unsigned int tables;
	/* By CPU: what gaol_enter returned. */
	long *results;
};

/* The image */

static bool piece_fits(u64 offset, u64 size, u64 limit)
{
	return PAGE_ALIGNED(offset) && PAGE_ALIGNED(size) && offset <= limit &&
	       size <= limit - offset;
}

static bool header_is_consistent(const struct gaol_image_header *header,
				 u64 size)
{
	u64 limit = header->memory_size;

	return header->file_size == size && size <= limit &&
	       PAGE_ALIGNED(limit) && limit <= SZ_1G &&
	       piece_fits(header->text, header->text_size, limit) &&
	       piece_fits(header->rodata, header->rodata_size, limit) &&
	       piece_fits(header->data, header->data_size, limit) &&
	       header->entry >= header->text &&
	       header->entry - header->text < header->text_size &&
	       header->cpu_area_size && PAGE_ALIGNED(header->cpu_area_size) &&
	       header->cpu_area_size <= MAX_CPU_AREA;
}

static u32 cpu_vendor(void)
{
	switch (boot_cpu_data.x86_vendor) {
	case X86_VENDOR_AMD:
	case X86_VENDOR_HYGON:
		return GAOL_VENDOR_SVM;
	default:
		return GAOL_VENDOR_VMX;
	}
}

static int check_image(const struct gaol_image_header *header, u64 size,
		       struct gaol_outcome *outcome)
{
	if (size < sizeof(*header) ||
	    memcmp(header->signature, GAOL_IMAGE_SIGNATURE,
		   sizeof(header->signature)))
		return gaol_refuse(outcome, GAOL_REASON_IMAGE_INVALID, 0,
				   -EINVAL);
	if (header->abi_revision != GAOL_ABI_REVISION)
		return gaol_refuse(outcome, GAOL_REASON_IMAGE_REVISION,
				   header->abi_revision, -EINVAL);
	if (header->vendor != cpu_vendor())
		return gaol_refuse(outcome, GAOL_REASON_IMAGE_VENDOR,
				   header->vendor, -ENODEV);
	if (header->checksum !=
	    gaol_checksum(header, size, GAOL_IMAGE_CHECKSUM_OFFSET))
		return gaol_refuse(outcome, GAOL_REASON_IMAGE_INVALID, 0,
				   -EINVAL);
	if (!header_is_consistent(header, size))
		return gaol_refuse(outcome, GAOL_REASON_IMAGE_INVALID, 0,
				   -EINVAL);
	return 0;
}

/* The configuration */

static int check_config(const struct gaol_system_header *config, u64 size,
			struct gaol_outcome *outcome)
{
	int error = gaol_check_preamble(config, size,
					GAOL_CONFIG_SYSTEM_SIGNATURE,
					sizeof(*config), outcome);
	if (error)
		return error;
	if (!gaol_name_is_valid(config->name))
		return gaol_refuse(outcome, GAOL_REASON_NAME_INVALID, 0,
				   -EINVAL);
	if (!config->hypervisor_size ||
	    !IS_ALIGNED(config->hypervisor_size, SZ_2M) ||
	    !IS_ALIGNED(config->hypervisor_physical, SZ_2M))
		return gaol_refuse(outcome, GAOL_REASON_CONFIGURATION_INVALID,
				   size, -EINVAL);
	/* In the hypervisor's tables it lies in the slot of Linux' image. */
	if (config->hypervisor_size > KERNEL_IMAGE_SIZE)
		return gaol_refuse(outcome, GAOL_REASON_HYPERVISOR_MEMORY,
				   config->hypervisor_size, -EINVAL);
	return 0;
}

/* The CPUs */

struct cpu_check {
	u32 vendor;
	/* The first objection, with the CPU that has it. */
	atomic_t reason;
	u32 cpu;
	u64 detail;
	atomic_t enabled_vmx;
};

static void object(struct cpu_check *check, u32 reason, u64 detail)
{
	if (atomic_cmpxchg(&check->reason, 0, reason))
		return;
	check->cpu = smp_processor_id();
	check->detail = detail;
}

static void check_vmx(struct cpu_check *check)
{
	u64 control;

	/* Linux hides the feature when the firmware has turned it off. */
	if (!(cpuid_ecx(1) & BIT(5)))
		return object(check, GAOL_REASON_NO_VMX, 0);
	if (rdmsrl_safe(MSR_IA32_FEAT_CTL, &control))
		return object(check, GAOL_REASON_NO_VMX, 0);
	if (!(control & FEATURE_CONTROL_LOCKED)) {
		control |= FEATURE_CONTROL_LOCKED | FEATURE_CONTROL_VMX;
		if (wrmsrl_safe(MSR_IA32_FEAT_CTL, control))
			return object(check, GAOL_REASON_VMX_LOCKED_OFF, 0);
		atomic_inc(&check->enabled_vmx);
	}
	if (!(control & FEATURE_CONTROL_VMX))
		return object(check, GAOL_REASON_VMX_LOCKED_OFF, 0);
	if (__read_cr4() & X86_CR4_VMXE)
		object(check, GAOL_REASON_VMX_IN_USE, smp_processor_id());
}

static void check_svm(struct cpu_check *check)
{
	u64 value;

	if (cpuid_eax(0x80000000) < 0x8000000a ||
	    !(cpuid_ecx(0x80000001) & BIT(2)))
		return object(check, GAOL_REASON_NO_VMX, 0);
	if (!rdmsrl_safe(MSR_VM_CR, &value) && (value & VM_CR_SVM_DISABLED))
		return object(check, GAOL_REASON_VMX_LOCKED_OFF, 0);
	if (rdmsrl_safe(MSR_EFER, &value) || (value & EFER_SVME))
		object(check, GAOL_REASON_VMX_IN_USE, smp_processor_id());
}

static void check_cpu(void *argument)
{
	struct cpu_check *check = argument;
	struct desc_ptr gdt;
	unsigned long task;

	if (check->vendor == GAOL_VENDOR_VMX)
		check_vmx(check);
	else
		check_svm(check);
	native_store_gdt(&gdt);
	store_tr(task);
	/* The descriptor of the TSS takes 16 bytes. */
	if (gdt.size >= GAOL_HANDOVER_GDT_BYTES || task + 15 > gdt.size)
		object(check, GAOL_REASON_LINUX_STATE, gdt.size);
}

/* Called with cpus_read_lock held, so that the answer stays true. */
static int check_cpus(struct launch *launch)
{
	struct gaol_outcome *outcome = &launch->request->outcome;
	struct cpu_check check = { .vendor = launch->image->vendor };
	unsigned int cpu;

	if (num_present_cpus() > GAOL_MAX_CPUS)
		return gaol_refuse(outcome, GAOL_REASON_TOO_MANY_CPUS,
				   num_present_cpus(), -E2BIG);
	for (cpu = 0; cpu < num_present_cpus(); cpu++) {
		if (cpu_online(cpu))
			continue;
		outcome->cpu = cpu;
		return gaol_refuse(outcome, GAOL_REASON_CPU_OFFLINE, cpu,
				   -EBUSY);
	}
	launch->cpu_count = num_present_cpus();
	on_each_cpu(check_cpu, &check, 1);
	if (atomic_read(&check.enabled_vmx))
		pr_notice("the firmware had left VMX open: enabled and locked it on %d CPUs\n",
			  atomic_read(&check.enabled_vmx));
	if (atomic_read(&check.reason)) {
		outcome->cpu = check.cpu;
		return gaol_refuse(outcome, atomic_read(&check.reason),
				   check.detail, -ENODEV);
	}
	return 0;
}

/* The memory and its layout */

static int take_memory(struct launch *launch)
{
	struct gaol_outcome *outcome = &launch->request->outcome;
	struct gaol_system_header *config = launch->config;
	size_t size = config->hypervisor_size;

	if (config->hypervisor_physical) {
		launch->memory = gaol_memory_claim(config->hypervisor_physical,
						   size);
		if (!launch->memory)
			return gaol_refuse(outcome,
					   GAOL_REASON_MEMORY_NOT_RESERVED,
					   config->hypervisor_physical, -EBUSY);
	} else {
		launch->memory = gaol_memory_take(size, SZ_4G);
		if (!launch->memory)
			launch->memory = gaol_memory_take(size, PHYS_ADDR_MAX);
		if (!launch->memory)
			return gaol_refuse(outcome,
					   GAOL_REASON_HYPERVISOR_MEMORY, size,
					   -ENOMEM);
	}
	launch->mapping = memremap(launch->memory->physical, size, MEMREMAP_WB);
	if (!launch->mapping)
		return gaol_refuse(outcome, GAOL_REASON_HYPERVISOR_MEMORY, size,
				   -ENOMEM);
	return 0;
}

static void give_memory_back(void *mapping, struct gaol_memory *memory)
{
	if (mapping)
		memunmap(mapping);
	gaol_memory_put(memory);
}

static u32 pm_timer_port(void)
{
	const struct acpi_generic_address *timer =
		&acpi_gbl_FADT.xpm_timer_block;

	if (acpi_disabled)
		return 0;
	if (timer->address)
		return timer->space_id == ACPI_ADR_SPACE_SYSTEM_IO ?
			       timer->address : 0;
	return acpi_gbl_FADT.pm_timer_block;
}

/* The offset of the next part, which then begins behind this one. */
static u64 place(u64 *end, u64 size)
{
	u64 offset = *end;

	*end += PAGE_ALIGN(size);
	return offset;
}

static int lay_out(struct launch *launch,
		   struct gaol_launch_parameters *parameters)
{
	u64 cpus = launch->cpu_count;
	u64 end = 0;

	memset(parameters, 0, sizeof(*parameters));
	memcpy(parameters->signature, GAOL_HANDOVER_SIGNATURE,
	       sizeof(parameters->signature));
	parameters->abi_revision = GAOL_ABI_REVISION;
	parameters->cpu_count = cpus;
	parameters->region_physical = launch->memory->physical;
	parameters->region_size = launch->memory->size;

	place(&end, launch->image->memory_size);
	place(&end, sizeof(*parameters));
	parameters->public_size = GAOL_PUBLIC_CPU_OFFSET + cpus * PAGE_SIZE;
	parameters->public = place(&end, parameters->public_size);
	parameters->handover = place(&end, cpus * PAGE_SIZE);
	parameters->boot_tables_size = BOOT_TABLE_PAGES * PAGE_SIZE;
	parameters->boot_tables = place(&end, parameters->boot_tables_size);
	parameters->boot_table_root =
		launch->memory->physical + parameters->boot_tables;
	parameters->config_size = launch->config->preamble.total_size;
	parameters->config = place(&end, parameters->config_size);
	parameters->cpu_areas = place(&end, cpus * launch->image->cpu_area_size);
	parameters->pool = end;
	if (end > launch->memory->size)
		return gaol_refuse(&launch->request->outcome,
				   GAOL_REASON_HYPERVISOR_MEMORY_TOO_SMALL, end,
				   -ENOMEM);
	return 0;
}

static void describe_machine(struct launch *launch,
			     struct gaol_launch_parameters *parameters)
{
	u32 milliseconds = launch->config->deadline_milliseconds;
	char *first = launch->image->vendor == GAOL_VENDOR_VMX ?
			      gaol_stub_first_vmx : gaol_stub_first_svm;

	parameters->handover_virtual =
		(unsigned long)launch->mapping + parameters->handover;
	parameters->stub_virtual = (unsigned long)gaol_stub_page;
	parameters->stub_physical =
		PFN_PHYS(vmalloc_to_pfn(gaol_stub_page));
	parameters->stub_leave = (unsigned long)gaol_stub_leave;
	parameters->stub_first_instruction = (unsigned long)first;
	parameters->physical_end = gaol_physical_end();
	parameters->tsc_khz = tsc_khz;
	parameters->deadline_cycles =
		(u64)(milliseconds ? milliseconds : DEFAULT_DEADLINE_MS) *
		tsc_khz;
	parameters->fault_cpu = launch->request->fault_cpu;
	parameters->fault_step = launch->request->fault_step;
	parameters->launch_word = GAOL_LAUNCH_WORD_PREPARE;
	parameters->low_page = gaol_low_page();
	parameters->pm_timer_port = pm_timer_port();
}

/* The boot page table */

static u64 table_physical(struct launch *launch, unsigned int index)
{
	return launch->parameters->boot_table_root + index * PAGE_SIZE;
}

static u64 *table_virtual(struct launch *launch, u64 entry)
{
	return launch->mapping +
	       ((entry & PTE_PFN_MASK) - launch->memory->physical);
}

static unsigned int table_levels(void)
{
	return __read_cr4() & X86_CR4_LA57 ? 5 : 4;
}

/* Maps one page; `leaf_level` 1 is a page of 4 KiB, 2 one of 2 MiB. */
static int map_page(struct launch *launch, u64 virtual, u64 physical,
		    unsigned int leaf_level)
{
	u64 *table = table_virtual(launch, table_physical(launch, 0));
	unsigned int level;

	for (level = table_levels();; level--) {
		u64 *entry = &table[(virtual >> (PAGE_SHIFT + 9 * (level - 1))) &
				    (PTRS_PER_PTE - 1)];

		if (level == leaf_level) {
			*entry = physical | LEAF_FLAGS |
				 (level == 2 ? _PAGE_PSE : 0);
			return 0;
		}
		if (!*entry) {
			if (launch->tables == BOOT_TABLE_PAGES)
				return -ENOSPC;
			*entry = table_physical(launch, launch->tables++) |
				 TABLE_FLAGS;
		}
		table = table_virtual(launch, *entry);
	}
}

static int build_boot_table(struct launch *launch)
{
	struct gaol_launch_parameters *parameters = launch->parameters;
	u64 offset;
	int error;

	launch->tables = 1;
	for (offset = 0; offset < parameters->region_size; offset += SZ_2M) {
		error = map_page(launch, GAOL_IMAGE_LINK_BASE + offset,
				 parameters->region_physical + offset, 2);
		if (error)
			return error;
	}
	error = map_page(launch, parameters->stub_virtual,
			 parameters->stub_physical, 1);
	for (offset = 0; !error && offset < launch->cpu_count * PAGE_SIZE;
	     offset += PAGE_SIZE)
		error = map_page(launch, parameters->handover_virtual + offset,
				 parameters->region_physical +
					 parameters->handover + offset,
				 1);
	return error;
}

/* Fills all that the hypervisor finds in its memory. */
static int fill_memory(struct launch *launch)
{
	struct gaol_launch_parameters parameters;
	struct gaol_system_header *config;
	unsigned int cpu;
	int error;

	error = lay_out(launch, &parameters);
	if (error)
		return error;
	describe_machine(launch, &parameters);

	memset(launch->mapping, 0, parameters.pool);
	memcpy(launch->mapping, launch->image, launch->image->file_size);
	launch->parameters = launch->mapping + launch->image->memory_size;
	*launch->parameters = parameters;
	launch->pages = launch->mapping + parameters.handover;
	launch->public = launch->mapping + parameters.public;
	launch->public_size = parameters.public_size;

	config = launch->mapping + parameters.config;
	memcpy(config, launch->config, parameters.config_size);
	config->hypervisor_physical = parameters.region_physical;
	config->preamble.checksum = gaol_checksum(config, parameters.config_size,
						  GAOL_CONFIG_CHECKSUM_OFFSET);

	for (cpu = 0; cpu < launch->cpu_count; cpu++) {
		struct gaol_handover_page *page = launch->pages + cpu;

		page->cpu = cpu;
		page->apic_id = cpu_physical_id(cpu);
		page->entry = GAOL_IMAGE_LINK_BASE + launch->image->entry;
		page->entry_stack = GAOL_IMAGE_LINK_BASE +
				    parameters.cpu_areas +
				    (cpu + 1) * launch->image->cpu_area_size;
		page->boot_cr3 = parameters.boot_table_root;
	}
	error = build_boot_table(launch);
	if (error)
		return gaol_refuse(&launch->request->outcome,
				   GAOL_REASON_LAUNCH_PARAMETERS,
				   parameters.boot_tables, error);
	return 0;
}

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
	error = check_cpus(launch);
	if (!error)
		error = take_memory(launch);
	if (!error)
		error = fill_memory(launch);
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
		void *config)
{
	struct launch launch = {
		.image = image,
		.request = request,
		.config = config,
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
	error = check_image(image, request->image_size, outcome);
	if (!error)
		error = check_config(config, request->config_size, outcome);
	if (error)
		return error;
	if (!try_module_get(THIS_MODULE))
		return -ENODEV;

	error = launch_all(&launch);
	if (error) {
		if (!gaol.broken) {
			give_memory_back(launch.mapping, launch.memory);
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

/* Turns a failed call into an error number and says why it failed. */
int gaol_hypercall_error(long result, struct gaol_outcome *outcome)
{
	const struct gaol_system_public *public = gaol.public;

	*outcome = public->last_outcome;
	return result >= -MAX_ERRNO ? result : -EIO;
}

/* The way back */

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
	give_memory_back(gaol.mapping, gaol.region);
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
