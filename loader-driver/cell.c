// SPDX-License-Identifier: GPL-2.0
/*
 * The life of a cell, as far as Linux has a part in it: CPUs, memory, images.
 *
 * Invariant: a CPU or a piece of memory is Linux' or a cell's, never both. What
 * a step of the creation took is given back, in reverse, when a later one fails;
 * memory that user space has mapped stays until the last mapping is gone.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/delay.h>
#include <linux/cpu.h>
#include <linux/io.h>
#include <linux/mm.h>
#include <linux/sched.h>
#include <linux/sizes.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "gaol.h"

/* Images are copied in pieces, with a chance for others between them. */
#define COPY_CHUNK		SZ_1M
/* Destroying takes two calls; more would be a fault of the hypervisor. */
/* A scrub that takes less has found nothing to do. */
#define SCRUB_IDLE_CYCLES	4096

#define LINUX_GIVES(flags) \
	(!((flags) & (GAOL_CONFIG_MEMORY_DEVICE | \
		      GAOL_CONFIG_MEMORY_COMMUNICATION)))

static struct gaol_cell *find_by_name(const char *name)
{
	struct gaol_cell *cell;

	list_for_each_entry(cell, &gaol.cells, list)
		if (!strncmp(cell->name, name, GAOL_NAME_LENGTH))
			return cell;
	return NULL;
}

static struct gaol_cell *find_by_id(s32 id)
{
	struct gaol_cell *cell;

	list_for_each_entry(cell, &gaol.cells, list)
		if (cell->id == id)
			return cell;
	return NULL;
}

/* The cell that a request means, which must not be the root cell. */
static int look_up(const struct gaol_cell_reference *reference,
		   struct gaol_outcome *outcome, struct gaol_cell **cell)
{
	int error = gaol_check_enabled(outcome);

	if (error)
		return error;
	*cell = reference->id == -1 ? find_by_name(reference->name) :
				      find_by_id(reference->id);
	if (!*cell)
		return gaol_refuse(outcome, GAOL_REASON_NO_SUCH_CELL, 0,
				   -ENOENT);
	if (!(*cell)->id)
		return gaol_refuse(outcome, GAOL_REASON_ROOT_CELL, 0, -EINVAL);
	return 0;
}

static void enlist(struct gaol_cell *cell)
{
	mutex_lock(&gaol.cells_lock);
	list_add_tail(&cell->list, &gaol.cells);
	mutex_unlock(&gaol.cells_lock);
}

static void strike_out(struct gaol_cell *cell)
{
	mutex_lock(&gaol.cells_lock);
	list_del(&cell->list);
	mutex_unlock(&gaol.cells_lock);
}

unsigned int gaol_cells_count(void)
{
	unsigned int count = 0;
	struct gaol_cell *cell;

	list_for_each_entry(cell, &gaol.cells, list)
		count += cell->id != 0;
	return count;
}

/* The root cell: in sysfs only, for it has all that is left over. */

int gaol_cell_create_root(const char *name)
{
	struct gaol_cell *cell = gaol_sysfs_allocate_cell();
	int error;

	if (!cell)
		return -ENOMEM;
	strscpy(cell->name, name, sizeof(cell->name));
	enlist(cell);
	error = gaol_sysfs_add_cell(cell);
	if (error) {
		strike_out(cell);
		kobject_put(&cell->kobj);
	}
	return error;
}

void gaol_cell_remove_root(void)
{
	struct gaol_cell *cell = find_by_id(0);

	if (!cell)
		return;
	strike_out(cell);
	gaol_sysfs_remove_cell(cell);
	kobject_put(&cell->kobj);
}

/* CPUs */

static int check_cpus(const struct gaol_cell_header *header,
		      struct cpumask *cpus, struct gaol_outcome *outcome)
{
	unsigned int cpu;

	for (cpu = 0; cpu < GAOL_MAX_CPUS; cpu++) {
		if (!(header->cpus[cpu / 64] >> (cpu % 64) & 1))
			continue;
		if (cpu >= nr_cpu_ids || !cpu_present(cpu))
			return gaol_refuse(outcome, GAOL_REASON_CPU_UNKNOWN,
					   cpu, -ENODEV);
		if (!cpu)
			return gaol_refuse(outcome, GAOL_REASON_CPU_ZERO, cpu,
					   -EINVAL);
		if (cpumask_test_cpu(cpu, &gaol.owned))
			return gaol_refuse(outcome, GAOL_REASON_CPU_OWNED, cpu,
					   -EBUSY);
		if (!cpu_online(cpu))
			return gaol_refuse(outcome, GAOL_REASON_CPU_OFFLINE,
					   cpu, -EBUSY);
		cpumask_set_cpu(cpu, cpus);
	}
	if (cpumask_empty(cpus))
		return gaol_refuse(outcome, GAOL_REASON_NO_CPU, 0, -EINVAL);
	return 0;
}

/* Lets Linux have the CPU again. */
static int return_cpu(unsigned int cpu)
{
	int error;

	cpumask_clear_cpu(cpu, &gaol.owned);
	error = add_cpu(cpu);
	if (error < 0) {
		cpumask_set_cpu(cpu, &gaol.not_back);
		pr_err("CPU %u does not start again: error %d\n", cpu, error);
		return error;
	}
	cpumask_clear_cpu(cpu, &gaol.not_back);
	return 0;
}

/* Returns those of the cell's CPUs that Linux has given up. */
static int return_cpus(struct gaol_cell *cell, struct gaol_outcome *outcome)
{
	int error = 0;
	int cpu;

	for_each_cpu(cpu, &cell->cpus) {
		int one;

		if (!cpumask_test_cpu(cpu, &gaol.owned))
			continue;
		one = return_cpu(cpu);
		if (one && !error)
			error = gaol_refuse(outcome, GAOL_REASON_CPU_NOT_BACK,
					    cpu, one);
	}
	return error;
}

static int take_cpus(struct gaol_cell *cell, struct gaol_outcome *outcome)
{
	int cpu;

	for_each_cpu(cpu, &cell->cpus) {
		int error;

		cpumask_set_cpu(cpu, &gaol.owned);
		error = remove_cpu(cpu);
		if (error < 0) {
			cpumask_clear_cpu(cpu, &gaol.owned);
			return gaol_refuse(outcome, GAOL_REASON_CPU_BUSY, cpu,
					   error);
		}
	}
	return 0;
}

/* Tries again to start what a destroyed cell has left behind. */
int gaol_cells_bring_cpus_back(struct gaol_outcome *outcome)
{
	int cpu;

	for_each_cpu(cpu, &gaol.not_back) {
		int error = return_cpu(cpu);

		if (error)
			return gaol_refuse(outcome, GAOL_REASON_CPU_NOT_BACK,
					   cpu, error);
	}
	return 0;
}

/* Memory */

static bool contains(const struct gaol_memory_region *region, u64 physical,
		     u64 size)
{
	return physical >= region->physical && size <= region->size &&
	       physical - region->physical <= region->size - size;
}

/* The region of a cell that shares this memory with the root. */
static struct gaol_region *find_shared(u64 physical, u64 size)
{
	struct gaol_cell *cell;
	unsigned int index;

	list_for_each_entry(cell, &gaol.cells, list) {
		for (index = 0; index < cell->region_count; index++) {
			struct gaol_region *region = &cell->regions[index];

			if (region->config.flags &
				    GAOL_CONFIG_MEMORY_ROOT_SHARED &&
			    contains(&region->config, physical, size))
				return region;
		}
	}
	return NULL;
}

static bool region_is_valid(const struct gaol_memory_region *region)
{
	return region->size && PAGE_ALIGNED(region->size) &&
	       PAGE_ALIGNED(region->physical) && PAGE_ALIGNED(region->guest) &&
	       region->physical + region->size >= region->physical &&
	       region->guest + region->size >= region->guest &&
	       !(region->flags & ~(u64)GAOL_CONFIG_MEMORY_ALL_FLAGS);
}

/* Gets the memory of one region, or makes sure that Linux has no use for it. */
static int provide(struct gaol_region *region, struct gaol_outcome *outcome)
{
	struct gaol_memory_region *config = &region->config;
	struct gaol_region *shared;

	if (config->flags & GAOL_CONFIG_MEMORY_COMMUNICATION)
		return 0;
	if (!config->physical && LINUX_GIVES(config->flags)) {
		region->memory = gaol_memory_take(config->size, PHYS_ADDR_MAX);
		if (!region->memory)
			return gaol_refuse(outcome, GAOL_REASON_CELL_MEMORY,
					   config->size, -ENOMEM);
		config->physical = region->memory->physical;
		return 0;
	}
	if (!gaol_memory_is_linux(config->physical, config->size))
		return 0;
	/* Linux' RAM by address: only what another cell shares already. */
	shared = config->flags & GAOL_CONFIG_MEMORY_ROOT_SHARED ?
			 find_shared(config->physical, config->size) : NULL;
	if (!shared || !shared->memory)
		return gaol_refuse(outcome, GAOL_REASON_MEMORY_NOT_RESERVED,
				   config->physical, -EBUSY);
	region->memory = shared->memory;
	gaol_memory_get(region->memory);
	return 0;
}

static int provide_all(struct gaol_cell *cell, struct gaol_memory_region *config,
		       unsigned int count, struct gaol_outcome *outcome)
{
	unsigned int index;
	int error;

	for (index = 0; index < count; index++)
		if (!region_is_valid(&config[index]))
			return gaol_refuse(outcome, GAOL_REASON_REGION_INVALID,
					   index, -EINVAL);
	cell->regions = kcalloc(max(count, 1U), sizeof(*cell->regions),
				GFP_KERNEL);
	if (!cell->regions)
		return -ENOMEM;
	for (index = 0; index < count; index++) {
		struct gaol_region *region = &cell->regions[index];

		region->config = config[index];
		error = provide(region, outcome);
		if (error)
			return error;
		cell->region_count++;
		config[index].physical = region->config.physical;
	}
	return 0;
}

static void drop_memory(struct gaol_cell *cell)
{
	while (cell->region_count)
		gaol_memory_put(cell->regions[--cell->region_count].memory);
}

/* Create */

static int check_config(const struct gaol_cell_header *header, size_t size,
			struct gaol_outcome *outcome)
{
	const struct gaol_cell *other;
	int error = gaol_check_preamble(header, size,
					GAOL_CONFIG_CELL_SIGNATURE,
					sizeof(*header), outcome);
	if (error)
		return error;
	/* The other arrays are read by the hypervisor alone. */
	if (header->memory_region_count > GAOL_CONFIG_MAX_MEMORY_REGIONS ||
	    size < sizeof(*header) + header->memory_region_count *
					     sizeof(struct gaol_memory_region))
		return gaol_refuse(outcome, GAOL_REASON_CONFIGURATION_INVALID,
				   size, -EINVAL);
	if (!gaol_name_is_valid(header->name))
		return gaol_refuse(outcome, GAOL_REASON_NAME_INVALID, 0,
				   -EINVAL);
	other = find_by_name(header->name);
	if (other)
		return gaol_refuse(outcome, GAOL_REASON_CELL_EXISTS, other->id,
				   -EEXIST);
	return 0;
}

/* Clears the cell's memory piece by piece. */
static long scrub(unsigned int id, u64 *cycles)
{
	long left;

	do {
		left = gaol_hypercall(GAOL_HYPERCALL_SCRUB, id, 0, cycles);
		cond_resched();
	} while (left > 0);
	return left;
}

/*
 * Repeats a hypercall for as long as the hypervisor wants to be called again:
 * there is memory to clear, or the cell has not answered yet. The hypervisor
 * keeps the cell's deadline, so this ends.
 */
static long call_until_done(unsigned long number, unsigned int id, u64 flags,
			    u64 *cycles, u64 *scrub_cycles)
{
	for (;;) {
		u64 before = *scrub_cycles;
		long result = gaol_hypercall(number, id, flags, cycles);

		if (result != -EAGAIN)
			return result;
		result = scrub(id, scrub_cycles);
		if (result < 0)
			return result;
		if (*scrub_cycles - before < SCRUB_IDLE_CYCLES)
			usleep_range(1000, 2000);
	}
}

static long destroy_in_hypervisor(struct gaol_cell *cell, u64 flags,
				  u64 *cycles, u64 *scrub_cycles)
{
	return call_until_done(GAOL_HYPERCALL_CELL_DESTROY, cell->id, flags,
			       cycles, scrub_cycles);
}

/* The hypervisor has the configuration read from one piece of memory. */
static long create_in_hypervisor(struct gaol_cell_header *header,
				 struct gaol_cell_create_request *request)
{
	void *copy;
	long id;

	header->preamble.checksum =
		gaol_checksum(header, request->config_size,
			      GAOL_CONFIG_CHECKSUM_OFFSET);
	copy = kmemdup(header, request->config_size, GFP_KERNEL);
	if (!copy)
		return -ENOMEM;
	id = gaol_hypercall(GAOL_HYPERCALL_CELL_CREATE, virt_to_phys(copy), 0,
			    &request->cycles);
	kfree(copy);
	if (id < 0)
		return gaol_hypercall_error(id, &request->outcome);
	return id;
}

/* Takes back what the cell had, when the hypervisor has forgotten it. */
static int bury(struct gaol_cell *cell, struct gaol_outcome *outcome)
{
	int error;

	strike_out(cell);
	gaol_sysfs_remove_cell(cell);
	error = return_cpus(cell, outcome);
	drop_memory(cell);
	kobject_put(&cell->kobj);
	return error;
}

/* What comes behind the hypervisor's first yes. */
static int finish_creation(struct gaol_cell *cell,
			   struct gaol_cell_create_request *request)
{
	long result = gaol_sysfs_add_cell(cell);
	struct gaol_outcome ignored;
	u64 cycles = 0;

	if (!result) {
		result = scrub(cell->id, &request->scrub_cycles);
		if (!result)
			return 0;
		result = gaol_hypercall_error(result, &request->outcome);
	}
	/* A cell that cannot be destroyed keeps its CPUs and memory, and is seen. */
	if (destroy_in_hypervisor(cell, GAOL_HYPERCALL_DESTROY_FORCE, &cycles,
				  &cycles))
		pr_err("cell %u can neither be completed nor destroyed\n",
		       cell->id);
	else
		bury(cell, &ignored);
	return result;
}

int gaol_cell_create(struct gaol_cell_create_request *request, void *config)
{
	struct gaol_outcome *outcome = &request->outcome;
	struct gaol_cell_header *header = config;
	struct gaol_outcome ignored;
	struct gaol_cell *cell;
	long id;
	int error = gaol_check_enabled(outcome);

	request->cycles = 0;
	request->scrub_cycles = 0;
	if (!error)
		error = check_config(header, request->config_size, outcome);
	if (error)
		return error;
	cell = gaol_sysfs_allocate_cell();
	if (!cell)
		return -ENOMEM;
	strscpy(cell->name, header->name, sizeof(cell->name));
	error = check_cpus(header, &cell->cpus, outcome);
	if (!error)
		error = provide_all(cell, (void *)(header + 1),
				    header->memory_region_count, outcome);
	if (error)
		goto memory;
	error = take_cpus(cell, outcome);
	if (error)
		goto cpus;
	id = create_in_hypervisor(header, request);
	if (id < 0) {
		error = id;
		goto cpus;
	}
	cell->id = id;
	request->id = id;
	enlist(cell);
	return finish_creation(cell, request);

cpus:
	return_cpus(cell, &ignored);
memory:
	drop_memory(cell);
	kobject_put(&cell->kobj);
	return error;
}

/* Load */

/* The loadable region that a guest-physical address lies in. */
static struct gaol_region *find_loadable(struct gaol_cell *cell, u64 guest)
{
	unsigned int index;

	for (index = 0; index < cell->region_count; index++) {
		struct gaol_region *region = &cell->regions[index];

		if (region->config.flags & GAOL_CONFIG_MEMORY_LOADABLE &&
		    LINUX_GIVES(region->config.flags) &&
		    guest >= region->config.guest &&
		    guest - region->config.guest < region->config.size)
			return region;
	}
	return NULL;
}

static int copy_piece(struct gaol_region *region, u64 offset, u64 source,
		      u64 size)
{
	void *mapping = memremap(region->config.physical, region->config.size,
				 MEMREMAP_WB);
	int error = 0;

	if (!mapping)
		return -ENOMEM;
	while (size && !error) {
		u64 chunk = min_t(u64, size, COPY_CHUNK);

		if (copy_from_user(mapping + offset, u64_to_user_ptr(source),
				   chunk))
			error = -EFAULT;
		offset += chunk;
		source += chunk;
		size -= chunk;
		cond_resched();
	}
	memunmap(mapping);
	return error;
}

/* Walks the regions that an image spans; copies, or only checks that they are there. */
static int load_image(struct gaol_cell *cell, struct gaol_load_image image,
		      bool copy, struct gaol_outcome *outcome)
{
	const u64 target = image.target;

	while (image.size) {
		struct gaol_region *region = find_loadable(cell, image.target);
		u64 offset, piece;
		int error;

		if (!region)
			return gaol_refuse(outcome, GAOL_REASON_LOAD_OUTSIDE,
					   target, -ERANGE);
		offset = image.target - region->config.guest;
		piece = min(image.size, region->config.size - offset);
		error = copy ? copy_piece(region, offset, image.source, piece) :
			       0;
		if (error)
			return error;
		image.target += piece;
		image.source += piece;
		image.size -= piece;
	}
	return 0;
}

int gaol_cell_load(struct gaol_cell_load_request *request,
		   const struct gaol_load_image *images)
{
	struct gaol_outcome *outcome = &request->outcome;
	struct gaol_cell *cell;
	unsigned int index;
	u64 scrub_cycles = 0;
	long result;
	int error = look_up(&request->cell, outcome, &cell);

	request->cycles = 0;
	for (index = 0; !error && index < request->image_count; index++)
		error = load_image(cell, images[index], false, outcome);
	if (error)
		return error;
	result = call_until_done(GAOL_HYPERCALL_CELL_SET_LOADABLE, cell->id, 0,
				 &request->cycles, &scrub_cycles);
	if (result)
		return gaol_hypercall_error(result, outcome);
	for (index = 0; !error && index < request->image_count; index++)
		error = load_image(cell, images[index], true, outcome);
	return error;
}

/* Start, shutdown, destroy */

int gaol_cell_start(struct gaol_cell_command *command)
{
	struct gaol_cell *cell;
	long result;
	int error = look_up(&command->cell, &command->outcome, &cell);

	command->cycles = 0;
	command->scrub_cycles = 0;
	if (error)
		return error;
	result = gaol_hypercall(GAOL_HYPERCALL_CELL_START, cell->id, 0,
				&command->cycles);
	return result ? gaol_hypercall_error(result, &command->outcome) : 0;
}

static u64 force(const struct gaol_cell_command *command)
{
	return command->flags & GAOL_DRIVER_FLAG_FORCE ?
		       GAOL_HYPERCALL_DESTROY_FORCE : 0;
}

int gaol_cell_shutdown(struct gaol_cell_command *command)
{
	struct gaol_cell *cell;
	long result;
	int error = look_up(&command->cell, &command->outcome, &cell);

	command->cycles = 0;
	command->scrub_cycles = 0;
	if (error)
		return error;
	result = call_until_done(GAOL_HYPERCALL_CELL_SET_LOADABLE, cell->id,
				 force(command), &command->cycles,
				 &command->scrub_cycles);
	return result ? gaol_hypercall_error(result, &command->outcome) : 0;
}

static int destroy(struct gaol_cell *cell, u64 flags,
		   struct gaol_outcome *outcome, u64 *cycles, u64 *scrub_cycles)
{
	long result = destroy_in_hypervisor(cell, flags, cycles, scrub_cycles);

	if (result)
		return gaol_hypercall_error(result, outcome);
	return bury(cell, outcome);
}

int gaol_cell_destroy(struct gaol_cell_command *command)
{
	struct gaol_cell *cell;
	int error = look_up(&command->cell, &command->outcome, &cell);

	command->cycles = 0;
	command->scrub_cycles = 0;
	if (error)
		return error;
	return destroy(cell, force(command), &command->outcome,
		       &command->cycles, &command->scrub_cycles);
}

/* Destroys all cells by force. A CPU that does not come back stops nobody here. */
int gaol_cells_destroy_all(struct gaol_outcome *outcome)
{
	struct gaol_cell *cell, *next;
	u64 cycles = 0;

	list_for_each_entry_safe(cell, next, &gaol.cells, list) {
		unsigned int before = gaol_cells_count();
		int error;

		if (!cell->id)
			continue;
		error = destroy(cell, GAOL_HYPERCALL_DESTROY_FORCE, outcome,
				&cycles, &cycles);
		if (error && gaol_cells_count() == before)
			return error;
	}
	return 0;
}

/* mmap */

static void mapping_open(struct vm_area_struct *vma)
{
	if (vma->vm_private_data)
		gaol_memory_get(vma->vm_private_data);
}

static void mapping_close(struct vm_area_struct *vma)
{
	gaol_memory_put(vma->vm_private_data);
}

static const struct vm_operations_struct mapping_operations = {
	.open = mapping_open,
	.close = mapping_close,
};

/* Maps memory that a cell shares with the root; the offset is its address. */
int gaol_mmap(struct file *file, struct vm_area_struct *vma)
{
	u64 physical = (u64)vma->vm_pgoff << PAGE_SHIFT;
	unsigned long size = vma->vm_end - vma->vm_start;
	struct gaol_region *region;
	int error;

	/* A private copy would show a moment of it only. */
	if (!(vma->vm_flags & VM_SHARED) ||
	    physical >> PAGE_SHIFT != vma->vm_pgoff)
		return -EINVAL;
	mutex_lock(&gaol.cells_lock);
	region = find_shared(physical, size);
	error = region ? remap_pfn_range(vma, vma->vm_start, vma->vm_pgoff,
					 size, vma->vm_page_prot) : -EINVAL;
	if (!error) {
		vma->vm_private_data = region->memory;
		vma->vm_ops = &mapping_operations;
		mapping_open(vma);
	}
	mutex_unlock(&gaol.cells_lock);
	return error;
}
