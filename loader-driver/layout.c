// SPDX-License-Identifier: GPL-2.0
/*
 * The hypervisor's memory: where it comes from, what it holds when the CPUs
 * arrive, and the boot page table.
 *
 * Invariant: the layout is that of the crate gaol-abi, module handover; all but
 * the frame pool is cleared.
 */
#include <linux/acpi.h>
#include <linux/io.h>
#include <linux/mm.h>
#include <linux/sizes.h>
#include <linux/vmalloc.h>
#include <asm/smp.h>
#include <asm/special_insns.h>
#include <asm/tsc.h>

#include "launch.h"

#define DEFAULT_DEADLINE_MS	10000
/* The root, and for each of image, stub and handover pages those below it. */
#define BOOT_TABLE_PAGES	20

#define TABLE_FLAGS	(_PAGE_PRESENT | _PAGE_RW | _PAGE_ACCESSED)
#define LEAF_FLAGS	(TABLE_FLAGS | _PAGE_DIRTY)

int gaol_take_region(struct launch *launch)
{
	struct gaol_outcome *outcome = &launch->request->outcome;
	struct gaol_system_header *config = launch->config;
	size_t size = config->hypervisor_size;
	u64 found = 0;

	if (config->hypervisor_physical) {
		launch->memory = gaol_memory_claim(config->hypervisor_physical,
						   size);
		if (!launch->memory)
			return gaol_refuse(outcome,
					   GAOL_REASON_MEMORY_NOT_RESERVED,
					   config->hypervisor_physical, -EBUSY);
	} else {
		launch->memory = gaol_memory_take(size, SZ_4G, launch->holder,
						  &found);
		if (!launch->memory)
			launch->memory = gaol_memory_take(
				size, PHYS_ADDR_MAX, launch->holder, &found);
		if (!launch->memory)
			return gaol_refuse(outcome,
					   GAOL_REASON_HYPERVISOR_MEMORY,
					   found, -ENOMEM);
	}
	launch->mapping = memremap(launch->memory->physical, size, MEMREMAP_WB);
	return launch->mapping ? 0 : -ENOMEM;
}

/* Nobody uses the memory any more; Linux gets it without what was in it. */
void gaol_give_region_back(void *mapping, struct gaol_memory *memory)
{
	if (mapping) {
		memset(mapping, 0, memory->size);
		memunmap(mapping);
	}
	gaol_memory_put(memory);
}

/* First port of a register of the FADT, by its new and its old description. */
static u32 acpi_port(const struct acpi_generic_address *extended, u32 port)
{
	if (acpi_disabled)
		return 0;
	if (extended->address)
		return extended->space_id == ACPI_ADR_SPACE_SYSTEM_IO ?
			       extended->address : 0;
	return port;
}

/* How Linux could end the machine by ACPI. */
static void describe_reset(struct gaol_launch_parameters *parameters)
{
	const struct acpi_table_fadt *fadt = &acpi_gbl_FADT;
	const struct acpi_generic_address *reset = &fadt->reset_register;

	parameters->power_control_ports[0] =
		acpi_port(&fadt->xpm1a_control_block, fadt->pm1a_control_block);
	parameters->power_control_ports[1] =
		acpi_port(&fadt->xpm1b_control_block, fadt->pm1b_control_block);
	if (acpi_disabled || !(fadt->flags & ACPI_FADT_RESET_REGISTER))
		return;
	parameters->reset_register = reset->address;
	parameters->reset_value = fadt->reset_value;
	if (reset->space_id == ACPI_ADR_SPACE_SYSTEM_IO)
		parameters->reset_register_kind =
			GAOL_HANDOVER_RESET_REGISTER_PORT;
	else if (reset->space_id == ACPI_ADR_SPACE_SYSTEM_MEMORY)
		parameters->reset_register_kind =
			GAOL_HANDOVER_RESET_REGISTER_MEMORY;
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
	parameters->pm_timer_port = acpi_port(&acpi_gbl_FADT.xpm_timer_block,
					      acpi_gbl_FADT.pm_timer_block);
	describe_reset(parameters);
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
int gaol_fill_region(struct launch *launch)
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
