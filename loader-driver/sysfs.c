// SPDX-License-Identifier: GPL-2.0
/*
 * /sys/devices/gaol.
 *
 * Invariant: what is shown comes from the module and the public pages (and the
 * state of a cell from a hypercall), under the read side of gaol.presence and
 * never under gaol.lock: removing a file waits for those who read it.
 */
#include <linux/device.h>
#include <linux/kobject.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/sysfs.h>
#include <linux/version.h>

#include "gaol.h"

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 16, 0)
#define CONST_BIN_ATTRIBUTE const
#else
#define CONST_BIN_ATTRIBUTE
#endif

/* More than a line of a cell's "memory" has. */
#define MEMORY_LINE	128
/* More than a line of "memory_blocks" has. */
#define BLOCK_LINE	48

static const char *const counter_names[2][GAOL_EXIT_COUNTERS] = {
	GAOL_COUNTER_NAMES_VMX,
	GAOL_COUNTER_NAMES_SVM,
};

/* A file of the statistics; those of both vendors are made at once. */
struct counter {
	struct kobj_attribute attribute;
	/* Number of the counter, or -1 for the sum of all exits. */
	int number;
	char name[48];
};

static struct counter counters[2][GAOL_EXIT_COUNTERS + 1];
static struct attribute *counter_attributes[2][GAOL_EXIT_COUNTERS + 2];
static const struct attribute_group counter_groups[2] = {
	{ .attrs = counter_attributes[0] },
	{ .attrs = counter_attributes[1] },
};

static struct device *root;
static struct kobject *cells_directory;

/* The public pages */

/* Takes gaol.presence; false, and not taken, while there is nobody to ask. */
static bool enter(void)
{
	down_read(&gaol.presence);
	if (gaol.enabled && !gaol.broken)
		return true;
	up_read(&gaol.presence);
	return false;
}

static void leave(void)
{
	up_read(&gaol.presence);
}

static const struct gaol_cpu_public *cpu_public(unsigned int cpu)
{
	return gaol.public + GAOL_PUBLIC_CPU_OFFSET + cpu * GAOL_PAGE_SIZE;
}

static bool belongs(const struct gaol_cell *cell, unsigned int cpu)
{
	return cell->id ? cpumask_test_cpu(cpu, &cell->cpus) :
			  !cpumask_test_cpu(cpu, &gaol.owned);
}

/* The cell's CPUs; of them only the parked ones when `failed`. */
static void collect_cpus(const struct gaol_cell *cell, bool failed,
			 struct cpumask *cpus)
{
	unsigned int cpu;

	cpumask_clear(cpus);
	for (cpu = 0; cpu < gaol.cpu_count; cpu++) {
		if (!belongs(cell, cpu))
			continue;
		if (failed && READ_ONCE(cpu_public(cpu)->state) !=
				      GAOL_CPU_STATE_FAILED)
			continue;
		cpumask_set_cpu(cpu, cpus);
	}
}

/* Statistics */

static u64 count(unsigned int cpu, int number)
{
	const struct gaol_cpu_public *public = cpu_public(cpu);
	u64 sum = 0;
	int index;

	if (number >= 0)
		return READ_ONCE(public->exits[number]);
	for (index = 0; index < GAOL_EXIT_FIRST_DERIVED_COUNTER; index++)
		sum += READ_ONCE(public->exits[index]);
	return sum;
}

static ssize_t counter_show(struct kobject *kobj,
			    struct kobj_attribute *attribute, char *buffer)
{
	const struct counter *counter =
		container_of(attribute, struct counter, attribute);
	const struct gaol_statistics *statistics =
		container_of(kobj, struct gaol_statistics, kobj);
	unsigned int cpu;
	u64 sum = 0;

	if (!enter())
		return -ENODEV;
	for (cpu = 0; cpu < gaol.cpu_count; cpu++)
		if (statistics->cpu == cpu ||
		    (statistics->cpu < 0 && belongs(statistics->cell, cpu)))
			sum += count(cpu, counter->number);
	leave();
	return sysfs_emit(buffer, "%llu\n", sum);
}

static void make_counter(struct counter *counter, const char *name, int number)
{
	scnprintf(counter->name, sizeof(counter->name), "vmexits_%s", name);
	counter->number = number;
	sysfs_attr_init(&counter->attribute.attr);
	counter->attribute.attr.name = counter->name;
	counter->attribute.attr.mode = 0444;
	counter->attribute.show = counter_show;
}

static void make_counters(void)
{
	unsigned int set, number;

	for (set = 0; set < 2; set++) {
		struct counter *counter = counters[set];
		struct attribute **attribute = counter_attributes[set];

		make_counter(counter, "total", -1);
		*attribute++ = &counter++->attribute.attr;
		for (number = 0; number < GAOL_EXIT_COUNTERS; number++) {
			if (!counter_names[set][number])
				continue;
			make_counter(counter, counter_names[set][number],
				     number);
			*attribute++ = &counter++->attribute.attr;
		}
	}
}

static void release_statistics(struct kobject *kobj)
{
	kfree(container_of(kobj, struct gaol_statistics, kobj));
}

static struct kobj_type statistics_type = {
	.release = release_statistics,
	.sysfs_ops = &kobj_sysfs_ops,
};

static int add_statistics(struct gaol_cell *cell, int cpu,
			  struct kobject *parent, const char *name)
{
	struct gaol_statistics *statistics =
		kzalloc(sizeof(*statistics), GFP_KERNEL);
	int error;

	if (!statistics)
		return -ENOMEM;
	statistics->cell = cell;
	statistics->cpu = cpu;
	error = kobject_init_and_add(&statistics->kobj, &statistics_type,
				     parent, "%s", name);
	if (!error)
		error = sysfs_create_group(
			&statistics->kobj,
			&counter_groups[gaol.vendor == GAOL_VENDOR_SVM]);
	if (error) {
		kobject_put(&statistics->kobj);
		return error;
	}
	cell->statistics[cell->statistics_count++] = statistics;
	return 0;
}

/* The root cell lists every CPU: which of them it has changes. */
static int add_all_statistics(struct gaol_cell *cell)
{
	unsigned int cpu;
	char name[16];
	int error;

	cell->statistics = kcalloc(gaol.cpu_count + 1,
				   sizeof(*cell->statistics), GFP_KERNEL);
	if (!cell->statistics)
		return -ENOMEM;
	error = add_statistics(cell, -1, &cell->kobj, "statistics");
	for (cpu = 0; !error && cpu < gaol.cpu_count; cpu++) {
		if (cell->id && !belongs(cell, cpu))
			continue;
		scnprintf(name, sizeof(name), "cpu%u", cpu);
		error = add_statistics(cell, cpu, &cell->statistics[0]->kobj,
				       name);
	}
	return error;
}

/* A cell */

static struct gaol_cell *to_cell(struct kobject *kobj)
{
	return container_of(kobj, struct gaol_cell, kobj);
}

static const char *state_name(long state)
{
	switch (state) {
	case GAOL_CELL_STATE_RUNNING:
		return "running";
	case GAOL_CELL_STATE_RUNNING_LOCKED:
		return "running/locked";
	case GAOL_CELL_STATE_SHUT_DOWN:
		return "shut down";
	case GAOL_CELL_STATE_FAILED:
		return "failed";
	case GAOL_CELL_STATE_FAILED_REVISION:
		return "Comm ABI mismatch";
	default:
		return "invalid";
	}
}

static ssize_t name_show(struct kobject *kobj, struct kobj_attribute *attribute,
			 char *buffer)
{
	return sysfs_emit(buffer, "%s\n", to_cell(kobj)->name);
}

static ssize_t state_show(struct kobject *kobj,
			  struct kobj_attribute *attribute, char *buffer)
{
	long state;

	if (!enter())
		return -ENODEV;
	state = gaol_hypercall_in_turn(GAOL_HYPERCALL_CELL_GET_STATE,
				       to_cell(kobj)->id, 0, NULL);
	leave();
	return sysfs_emit(buffer, "%s\n", state_name(state));
}

static ssize_t show_cpus(struct kobject *kobj, bool failed, const char *format,
			 char *buffer)
{
	cpumask_var_t cpus;
	ssize_t size;

	if (!zalloc_cpumask_var(&cpus, GFP_KERNEL))
		return -ENOMEM;
	if (!enter()) {
		free_cpumask_var(cpus);
		return -ENODEV;
	}
	collect_cpus(to_cell(kobj), failed, cpus);
	leave();
	size = sysfs_emit(buffer, format, cpumask_pr_args(cpus));
	free_cpumask_var(cpus);
	return size;
}

static ssize_t cpus_assigned_show(struct kobject *kobj,
				  struct kobj_attribute *attribute,
				  char *buffer)
{
	return show_cpus(kobj, false, "%*pb\n", buffer);
}

static ssize_t cpus_assigned_list_show(struct kobject *kobj,
				       struct kobj_attribute *attribute,
				       char *buffer)
{
	return show_cpus(kobj, false, "%*pbl\n", buffer);
}

static ssize_t cpus_failed_show(struct kobject *kobj,
				struct kobj_attribute *attribute, char *buffer)
{
	return show_cpus(kobj, true, "%*pb\n", buffer);
}

static ssize_t cpus_failed_list_show(struct kobject *kobj,
				     struct kobj_attribute *attribute,
				     char *buffer)
{
	return show_cpus(kobj, true, "%*pbl\n", buffer);
}

static ssize_t watchdog_show(struct kobject *kobj,
			     struct kobj_attribute *attribute, char *buffer)
{
	const struct gaol_system_public *public;
	struct gaol_cell *cell = to_cell(kobj);
	u64 expired;

	if (!enter())
		return -ENODEV;
	public = gaol.public;
	expired = READ_ONCE(public->watchdogs[cell->id % GAOL_MAX_CELLS].expired);
	leave();
	return gaol_watchdog_tell(cell, expired, buffer);
}

/* Text that may be longer than a page, from `offset` on. */
static ssize_t read_text(char *buffer, loff_t offset, size_t size,
			 const char *text, size_t length)
{
	if (offset >= length)
		return 0;
	size = min_t(u64, size, length - offset);
	memcpy(buffer, text + offset, size);
	return size;
}

static ssize_t memory_read(struct file *file, struct kobject *kobj,
			   CONST_BIN_ATTRIBUTE struct bin_attribute *attribute,
			   char *buffer, loff_t offset, size_t size)
{
	const size_t limit = GAOL_CONFIG_MAX_MEMORY_REGIONS * MEMORY_LINE;
	char *text = kvmalloc(limit, GFP_KERNEL);
	ssize_t done;

	if (!text)
		return -ENOMEM;
	done = read_text(buffer, offset, size, text,
			 gaol_regions_tell(to_cell(kobj), text, limit));
	kvfree(text);
	return done;
}

static struct kobj_attribute name_attribute = __ATTR_RO(name);
static struct kobj_attribute state_attribute = __ATTR_RO(state);
static struct kobj_attribute cpus_assigned_attribute = __ATTR_RO(cpus_assigned);
static struct kobj_attribute cpus_assigned_list_attribute =
	__ATTR_RO(cpus_assigned_list);
static struct kobj_attribute cpus_failed_attribute = __ATTR_RO(cpus_failed);
static struct kobj_attribute cpus_failed_list_attribute =
	__ATTR_RO(cpus_failed_list);
static struct kobj_attribute watchdog_attribute = __ATTR_RO(watchdog);
/* Physical addresses are root's. */
static CONST_BIN_ATTRIBUTE struct bin_attribute memory_attribute = {
	.attr = { .name = "memory", .mode = 0400 },
	.read = memory_read,
};

static struct attribute *cell_attrs[] = {
	&name_attribute.attr,
	&state_attribute.attr,
	&cpus_assigned_attribute.attr,
	&cpus_assigned_list_attribute.attr,
	&cpus_failed_attribute.attr,
	&cpus_failed_list_attribute.attr,
	&watchdog_attribute.attr,
	NULL,
};

static CONST_BIN_ATTRIBUTE struct bin_attribute *CONST_BIN_ATTRIBUTE
	cell_bin_attrs[] = {
	&memory_attribute,
	NULL,
};

static const struct attribute_group cell_group = {
	.attrs = cell_attrs,
	.bin_attrs = cell_bin_attrs,
};
__ATTRIBUTE_GROUPS(cell);

static void release_cell(struct kobject *kobj)
{
	struct gaol_cell *cell = to_cell(kobj);

	gaol_watchdog_free(cell);
	kfree(cell->statistics);
	kfree(cell->regions);
	kfree(cell);
}

static struct kobj_type cell_type = {
	.release = release_cell,
	.sysfs_ops = &kobj_sysfs_ops,
	.default_groups = cell_groups,
};

/* An empty cell, which kobject_put frees. */
struct gaol_cell *gaol_sysfs_allocate_cell(void)
{
	struct gaol_cell *cell = kzalloc(sizeof(*cell), GFP_KERNEL);

	if (cell)
		kobject_init(&cell->kobj, &cell_type);
	return cell;
}

/* Waits for all readers. The caller keeps its reference. */
void gaol_sysfs_remove_cell(struct gaol_cell *cell)
{
	while (cell->statistics_count) {
		struct gaol_statistics *statistics =
			cell->statistics[--cell->statistics_count];

		kobject_del(&statistics->kobj);
		kobject_put(&statistics->kobj);
	}
	if (cell->kobj.state_in_sysfs)
		kobject_del(&cell->kobj);
}

int gaol_sysfs_add_cell(struct gaol_cell *cell)
{
	int error = kobject_add(&cell->kobj, cells_directory, "%u", cell->id);

	if (error)
		return error;
	error = add_all_statistics(cell);
	if (error)
		gaol_sysfs_remove_cell(cell);
	return error;
}

/* The module */

static ssize_t enabled_show(struct device *device,
			    struct device_attribute *attribute, char *buffer)
{
	return sysfs_emit(buffer, "%d\n", READ_ONCE(gaol.enabled));
}

static ssize_t abi_revision_show(struct device *device,
				 struct device_attribute *attribute,
				 char *buffer)
{
	return sysfs_emit(buffer, "%u\n", GAOL_ABI_REVISION);
}

static ssize_t show_pool(char *buffer, size_t offset)
{
	u64 value = 0;

	if (enter()) {
		value = READ_ONCE(*(const u64 *)(gaol.public + offset));
		leave();
	}
	return sysfs_emit(buffer, "%llu\n", value);
}

static ssize_t mem_pool_size_show(struct device *device,
				  struct device_attribute *attribute,
				  char *buffer)
{
	return show_pool(buffer,
			 offsetof(struct gaol_system_public, frames_total));
}

static ssize_t mem_pool_used_show(struct device *device,
				  struct device_attribute *attribute,
				  char *buffer)
{
	return show_pool(buffer,
			 offsetof(struct gaol_system_public, frames_used));
}

/* There is no remapping pool; the files are there for Jailhouse's tools. */
static ssize_t remap_pool_size_show(struct device *device,
				    struct device_attribute *attribute,
				    char *buffer)
{
	return sysfs_emit(buffer, "0\n");
}

static ssize_t remap_pool_used_show(struct device *device,
				    struct device_attribute *attribute,
				    char *buffer)
{
	return sysfs_emit(buffer, "0\n");
}

static ssize_t region_show(struct device *device,
			   struct device_attribute *attribute, char *buffer)
{
	u64 physical, size;

	if (!enter())
		return -ENODEV;
	physical = gaol.region->physical;
	size = gaol.region->size;
	leave();
	return sysfs_emit(buffer, "%#llx %#llx\n", physical, size);
}

static ssize_t console_show(struct device *device,
			    struct device_attribute *attribute, char *buffer)
{
	return gaol_console_tail(buffer, PAGE_SIZE - 1);
}

static ssize_t pci_functions_show(struct device *device,
				  struct device_attribute *attribute,
				  char *buffer)
{
	return gaol_functions_tell(buffer, PAGE_SIZE);
}

static DEVICE_ATTR_RO(enabled);
static DEVICE_ATTR_RO(abi_revision);
static DEVICE_ATTR_RO(mem_pool_size);
static DEVICE_ATTR_RO(mem_pool_used);
static DEVICE_ATTR_RO(remap_pool_size);
static DEVICE_ATTR_RO(remap_pool_used);
static DEVICE_ATTR_RO(pci_functions);
/* So is what the hypervisor says. */
static DEVICE_ATTR(region, 0400, region_show, NULL);
static DEVICE_ATTR(console, 0400, console_show, NULL);

static struct attribute *module_attributes[] = {
	&dev_attr_enabled.attr,
	&dev_attr_abi_revision.attr,
	&dev_attr_mem_pool_size.attr,
	&dev_attr_mem_pool_used.attr,
	&dev_attr_remap_pool_size.attr,
	&dev_attr_remap_pool_used.attr,
	&dev_attr_pci_functions.attr,
	&dev_attr_region.attr,
	&dev_attr_console.attr,
	NULL,
};

static const struct attribute_group module_group = {
	.attrs = module_attributes,
};

static ssize_t public_read(struct file *file, struct kobject *kobj,
			   CONST_BIN_ATTRIBUTE struct bin_attribute *attribute,
			   char *buffer, loff_t offset, size_t size)
{
	ssize_t done = 0;

	if (!enter())
		return -ENODEV;
	if (offset < gaol.public_size) {
		done = min_t(u64, size, gaol.public_size - offset);
		memcpy(buffer, gaol.public + offset, done);
	}
	leave();
	return done;
}

static struct bin_attribute public_attribute = {
	.attr = { .name = "public", .mode = 0400 },
	.read = public_read,
};

static ssize_t
memory_blocks_read(struct file *file, struct kobject *kobj,
		   CONST_BIN_ATTRIBUTE struct bin_attribute *attribute,
		   char *buffer, loff_t offset, size_t size)
{
	const size_t limit = GAOL_DRIVER_MAX_MEMORY_BLOCKS * BLOCK_LINE;
	char *text = kvmalloc(limit, GFP_KERNEL);
	ssize_t done;

	if (!text)
		return -ENOMEM;
	done = read_text(buffer, offset, size, text,
			 gaol_blocks_tell(text, limit));
	kvfree(text);
	return done;
}

static struct bin_attribute memory_blocks_attribute = {
	.attr = { .name = "memory_blocks", .mode = 0400 },
	.read = memory_blocks_read,
};

int gaol_sysfs_init(void)
{
	int error = -ENOMEM;

	make_counters();
	root = root_device_register("gaol");
	if (IS_ERR(root))
		return PTR_ERR(root);
	cells_directory = kobject_create_and_add("cells", &root->kobj);
	if (!cells_directory)
		goto device;
	error = sysfs_create_group(&root->kobj, &module_group);
	if (error)
		goto cells;
	error = sysfs_create_bin_file(&root->kobj, &public_attribute);
	if (error)
		goto group;
	error = sysfs_create_bin_file(&root->kobj, &memory_blocks_attribute);
	if (error)
		goto public;
	return 0;

public:
	sysfs_remove_bin_file(&root->kobj, &public_attribute);
group:
	sysfs_remove_group(&root->kobj, &module_group);
cells:
	kobject_put(cells_directory);
device:
	root_device_unregister(root);
	return error;
}

void gaol_sysfs_exit(void)
{
	sysfs_remove_bin_file(&root->kobj, &memory_blocks_attribute);
	sysfs_remove_bin_file(&root->kobj, &public_attribute);
	sysfs_remove_group(&root->kobj, &module_group);
	kobject_put(cells_directory);
	root_device_unregister(root);
}
