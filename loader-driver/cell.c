// SPDX-License-Identifier: GPL-2.0
/*
 * The life of a cell, as far as Linux has a part in it. Its memory is in region.c.
 *
 * Invariant: a CPU is Linux' or a cell's, never both. What a step of the creation
 * took is given back, in reverse, when a later one fails.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/cpu.h>
#include <linux/delay.h>
#include <linux/io.h>
#include <linux/sched.h>
#include <linux/slab.h>

#include "gaol.h"

/* A scrub that takes less has found nothing to do. */
#define SCRUB_IDLE_CYCLES	4096

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

/* Create */

/* Bytes that the counts of a header ask for; 0: one of them is too large. */
static size_t config_size(const struct gaol_cell_header *header)
{
	if (header->memory_region_count > GAOL_CONFIG_MAX_MEMORY_REGIONS ||
	    header->msr_count > GAOL_CONFIG_MAX_MSRS ||
	    header->interrupt_count > GAOL_CONFIG_MAX_INTERRUPTS ||
	    header->device_count > GAOL_CONFIG_MAX_DEVICES ||
	    header->port_range_count > GAOL_CONFIG_MAX_PORT_RANGES)
		return 0;
	return sizeof(*header) +
	       header->memory_region_count * sizeof(struct gaol_memory_region) +
	       header->msr_count * sizeof(struct gaol_msr_access) +
	       header->interrupt_count * sizeof(struct gaol_interrupt) +
	       header->device_count * sizeof(struct gaol_assigned_device) +
	       header->port_range_count * sizeof(struct gaol_port_range);
}

static int check_config(const struct gaol_cell_header *header, size_t size,
			struct gaol_outcome *outcome)
{
	const struct gaol_cell *other;
	int error = gaol_check_preamble(header, size,
					GAOL_CONFIG_CELL_SIGNATURE,
					sizeof(*header), outcome);
	if (error)
		return error;
	if (size != config_size(header))
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

/*
 * Clears the cell's memory piece by piece, and resets its PCI functions. What
 * finds nothing to do waits for one of these. Says in `had_more` whether the
 * first piece was followed by another.
 */
static long scrub(unsigned int id, u64 *cycles, bool *had_more)
{
	long left;

	*had_more = false;
	do {
		u64 before = *cycles;

		left = gaol_hypercall_in_turn(GAOL_HYPERCALL_SCRUB, id, 0,
					      cycles);
		*had_more |= left > 0;
		if (left > 0 && *cycles - before < SCRUB_IDLE_CYCLES)
			usleep_range(500, 1000);
		else
			cond_resched();
	} while (left > 0);
	return left;
}

/*
 * Lets others do something while the cell has time to answer: a cell that does
 * not delays nobody. False: it was destroyed meanwhile.
 */
static bool let_others_in(struct gaol_cell *cell)
{
	bool is_there;

	kobject_get(&cell->kobj);
	mutex_unlock(&gaol.lock);
	usleep_range(1000, 2000);
	mutex_lock(&gaol.lock);
	is_there = !cell->gone;
	kobject_put(&cell->kobj);
	return is_there;
}

/*
 * Repeats a hypercall for as long as the hypervisor wants to be called again:
 * there is memory to clear, a CPU to move, or the cell has not answered yet. The
 * hypervisor keeps the cell's deadline, so this ends. By force nobody is asked,
 * and gaol.lock is held all the time.
 */
static long call_until_done(unsigned long number, struct gaol_cell *cell,
			    u64 flags, u64 *cycles, u64 *scrub_cycles)
{
	for (;;) {
		long result = gaol_hypercall_in_turn(number, cell->id, flags,
						     cycles);
		bool had_more;

		if (result != -EAGAIN)
			return result;
		result = scrub(cell->id, scrub_cycles, &had_more);
		if (result < 0)
			return result;
		if (had_more)
			continue;
		if (flags & GAOL_HYPERCALL_DESTROY_FORCE)
			cond_resched();
		else if (!let_others_in(cell))
			return -ENOENT;
	}
}

/* What a failed call means for the caller; the cell may be gone. */
static int call_error(const struct gaol_cell *cell, long result,
		      struct gaol_outcome *outcome)
{
	if (cell->gone)
		return gaol_refuse(outcome, GAOL_REASON_NO_SUCH_CELL, 0,
				   -ENOENT);
	return gaol_hypercall_error(result, outcome);
}

static long destroy_in_hypervisor(struct gaol_cell *cell, u64 flags,
				  u64 *cycles, u64 *scrub_cycles)
{
	return call_until_done(GAOL_HYPERCALL_CELL_DESTROY, cell, flags,
			       cycles, scrub_cycles);
}

/*
 * The configuration with the memory that was found: pieces in place of regions.
 * It is read from one piece of memory by the hypervisor.
 */
static struct gaol_cell_header *
complete_config(const struct gaol_cell *cell,
		const struct gaol_cell_header *given)
{
	const struct gaol_memory_region *regions = (const void *)(given + 1);
	const void *rest = regions + given->memory_region_count;
	size_t rest_size =
		given->preamble.total_size - (rest - (const void *)given);
	size_t size = sizeof(*given) +
		      cell->region_count * sizeof(*regions) + rest_size;
	struct gaol_cell_header *header;
	struct gaol_memory_region *piece;
	unsigned int index;

	if (size > GAOL_CONFIG_MAX_CELL_SIZE)
		return NULL;
	header = kzalloc(size, GFP_KERNEL);
	if (!header)
		return NULL;
	*header = *given;
	header->preamble.total_size = size;
	header->memory_region_count = cell->region_count;
	piece = (void *)(header + 1);
	for (index = 0; index < cell->region_count; index++)
		*piece++ = cell->regions[index].config;
	memcpy(piece, rest, rest_size);
	header->preamble.checksum =
		gaol_checksum(header, size, GAOL_CONFIG_CHECKSUM_OFFSET);
	return header;
}

static long create_in_hypervisor(const struct gaol_cell *cell,
				 const struct gaol_cell_header *given,
				 struct gaol_cell_create_request *request)
{
	struct gaol_cell_header *header = complete_config(cell, given);
	long id;

	if (!header)
		return -ENOMEM;
	id = gaol_hypercall_in_turn(GAOL_HYPERCALL_CELL_CREATE,
				    virt_to_phys(header),
				    request->flags & GAOL_DRIVER_FLAG_CREATE_FORCE ?
					    GAOL_HYPERCALL_DESTROY_FORCE : 0,
				    &request->cycles);
	kfree(header);
	if (id < 0)
		return gaol_hypercall_error(id, &request->outcome);
	return id;
}

/* Takes back what the cell had, when the hypervisor has forgotten it. */
static int bury(struct gaol_cell *cell, struct gaol_outcome *outcome)
{
	int error, result;

	gaol_watchdog_stop(cell);
	cell->gone = true;
	strike_out(cell);
	gaol_sysfs_remove_cell(cell);
	error = gaol_functions_return(cell, outcome);
	result = return_cpus(cell, outcome);
	if (result)
		error = result;
	gaol_regions_drop(cell);
	kobject_put(&cell->kobj);
	return error;
}

/* What comes behind the hypervisor's first yes. */
static int finish_creation(struct gaol_cell *cell,
			   struct gaol_cell_create_request *request)
{
	long result = gaol_sysfs_add_cell(cell);
	struct gaol_outcome ignored;
	bool had_more;
	u64 cycles = 0;

	if (!result) {
		result = scrub(cell->id, &request->scrub_cycles, &had_more);
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

int gaol_cell_create(struct gaol_cell_create_request *request,
		     const struct gaol_cell_header *header,
		     const struct file *holder)
{
	struct gaol_outcome *outcome = &request->outcome;
	struct gaol_outcome ignored;
	struct gaol_cell *cell;
	long id;
	int error = gaol_check_enabled(outcome);

	request->cycles = 0;
	request->scrub_cycles = 0;
	request->region = 0;
	if (!error && request->flags & ~(GAOL_DRIVER_FLAG_PIECES |
					 GAOL_DRIVER_FLAG_CREATE_FORCE))
		error = -EINVAL;
	if (!error)
		error = check_config(header, request->config_size, outcome);
	if (error)
		return error;
	cell = gaol_sysfs_allocate_cell();
	if (!cell)
		return -ENOMEM;
	strscpy(cell->name, header->name, sizeof(cell->name));
	gaol_watchdog_init(cell, header);
	error = check_cpus(header, &cell->cpus, outcome);
	if (!error)
		error = gaol_regions_provide(cell, header, request, holder);
	if (error)
		goto memory;
	error = gaol_functions_take(cell, header, outcome);
	if (error)
		goto functions;
	error = take_cpus(cell, outcome);
	if (error)
		goto cpus;
	id = create_in_hypervisor(cell, header, request);
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
functions:
	gaol_functions_return(cell, &ignored);
memory:
	gaol_regions_drop(cell);
	kobject_put(&cell->kobj);
	return error;
}

/* Load */

int gaol_cell_load(struct gaol_cell_load_request *request,
		   const struct gaol_load_image *images)
{
	struct gaol_outcome *outcome = &request->outcome;
	unsigned int count = request->image_count;
	struct gaol_cell *cell;
	unsigned int index;
	u64 scrub_cycles = 0;
	long result;
	int error = look_up(&request->cell, outcome, &cell);

	request->cycles = 0;
	for (index = 0; !error && index < count; index++)
		error = gaol_regions_load(cell, images[index], false,
					  outcome);
	if (!error)
		error = gaol_watchdog_check_images(cell, images, count,
						   outcome);
	if (error)
		return error;
	kobject_get(&cell->kobj);
	result = call_until_done(GAOL_HYPERCALL_CELL_SET_LOADABLE, cell, 0,
				 &request->cycles, &scrub_cycles);
	if (result) {
		error = call_error(cell, result, outcome);
	} else {
		gaol_watchdog_stop(cell);
		error = gaol_watchdog_keep(cell, images, count);
	}
	for (index = 0; !error && index < count; index++)
		error = gaol_regions_load(cell, images[index], true, outcome);
	kobject_put(&cell->kobj);
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
	result = gaol_hypercall_in_turn(GAOL_HYPERCALL_CELL_START, cell->id, 0,
					&command->cycles);
	if (result)
		return gaol_hypercall_error(result, &command->outcome);
	gaol_watchdog_start(cell);
	return 0;
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
	kobject_get(&cell->kobj);
	result = call_until_done(GAOL_HYPERCALL_CELL_SET_LOADABLE, cell,
				 force(command), &command->cycles,
				 &command->scrub_cycles);
	if (result)
		error = call_error(cell, result, &command->outcome);
	else
		gaol_watchdog_stop(cell);
	kobject_put(&cell->kobj);
	return error;
}

static int destroy(struct gaol_cell *cell, u64 flags,
		   struct gaol_outcome *outcome, u64 *cycles, u64 *scrub_cycles)
{
	long result;
	int error;

	kobject_get(&cell->kobj);
	result = destroy_in_hypervisor(cell, flags, cycles, scrub_cycles);
	error = result ? call_error(cell, result, outcome) :
			 bury(cell, outcome);
	kobject_put(&cell->kobj);
	return error;
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
