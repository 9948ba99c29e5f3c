/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the parts of the module share.
 *
 * Invariant: gaol.lock serialises all operations that change something. The
 * other locks are inner ones, and none of the three is held while user memory is
 * accessed: mmap runs with the mm's lock held and takes cells_lock.
 */
#ifndef GAOL_H
#define GAOL_H

#include <linux/cpumask.h>
#include <linux/fs.h>
#include <linux/kobject.h>
#include <linux/kref.h>
#include <linux/list.h>
#include <linux/mm_types.h>
#include <linux/mutex.h>
#include <linux/poll.h>
#include <linux/rwsem.h>
#include <linux/types.h>
#include <linux/workqueue.h>

#include "gaol_abi.h"

enum gaol_memory_source {
	/* At boot. */
	GAOL_MEMORY_RESERVED,
	GAOL_MEMORY_ALLOCATOR,
	/* Out of memory blocks that are offline. */
	GAOL_MEMORY_BLOCKS,
};

/* A physically contiguous piece of memory that Linux does not use meanwhile. */
struct gaol_memory {
	struct kref references;
	/* Of those out of memory blocks. */
	struct list_head list;
	phys_addr_t physical;
	size_t size;
	enum gaol_memory_source source;
};

/* Memory of one region, in pieces. */
struct gaol_pieces {
	/* Most pieces that it may be. */
	unsigned int limit;
	unsigned int count;
	/* When there is not enough: bytes that there are. */
	u64 found;
	struct gaol_memory *memory[GAOL_CONFIG_MAX_MEMORY_REGIONS];
};

/*
 * The holder is the open file that a request comes from: memory blocks that were
 * offered through it are for its requests.
 */
struct gaol_memory *gaol_memory_take(size_t size, u64 end,
				     const struct file *holder, u64 *found);
bool gaol_memory_gather(struct gaol_pieces *pieces, size_t size,
			const struct file *holder);
struct gaol_memory *gaol_memory_claim(phys_addr_t physical, size_t size);
void gaol_memory_get(struct gaol_memory *memory);
void gaol_memory_put(struct gaol_memory *memory);
bool gaol_memory_is_linux(phys_addr_t physical, size_t size);
phys_addr_t gaol_physical_end(void);
phys_addr_t gaol_low_page(void);

/* blocks.c */
int gaol_blocks_offer(const u64 *addresses, unsigned int count, u64 size,
		      const struct file *holder);
void gaol_blocks_let_go(const struct file *holder, bool for_good);
size_t gaol_blocks_tell(char *buffer, size_t size);
int gaol_blocks_init(void);
void gaol_blocks_exit(void);

/* A piece of a region: a region in several has as many of these. */
struct gaol_region {
	struct gaol_memory_region config;
	/* NULL where the configuration gives the address. */
	struct gaol_memory *memory;
};

struct gaol_statistics {
	struct kobject kobj;
	struct gaol_cell *cell;
	/* The CPU, or -1 for the sum. */
	int cpu;
};

/* What a cell was loaded with. */
struct gaol_kept_image {
	struct list_head list;
	u64 target;
	u64 size;
	u8 bytes[];
};

struct gaol_watchdog {
	/* In milliseconds; 0: there is none. */
	u32 timeout;
	u32 policy;
	struct delayed_work work;
	/* The policy is "restart", and the cell has stood still. */
	bool is_due;
	bool given_up;
	unsigned int restarts;
	unsigned int in_a_row;
	unsigned int good_looks;
	/* For a restart, in the order of loading. */
	struct list_head images;
	u64 kept;
	/* They are whole: the cell was started with them. */
	bool was_started;
};

struct gaol_cell {
	struct kobject kobj;
	struct list_head list;
	unsigned int id;
	char name[GAOL_NAME_LENGTH];
	/* Not of the root cell, which has what is left over. */
	struct cpumask cpus;
	unsigned int region_count;
	struct gaol_region *regions;
	/* [0] is the sum, the others follow in the order of the CPUs. */
	struct gaol_statistics **statistics;
	unsigned int statistics_count;
	struct gaol_watchdog watchdog;
	/* Destroyed, for those who have waited meanwhile. */
	bool gone;
};

struct gaol_module {
	/* Held over each operation. */
	struct mutex lock;
	/*
	 * Read: the hypervisor and its public pages stay. Written around the
	 * moment when they come or go.
	 */
	struct rw_semaphore presence;
	/* Protects the list of cells and their regions against mmap. */
	struct mutex cells_lock;

	bool enabled;
	/* CPUs went different ways: nothing can be trusted, nothing is reused. */
	bool broken;
	u32 vendor;
	unsigned int cpu_count;
	struct gaol_memory *region;
	void *mapping;
	/* One a CPU; the hypervisor's while enabled. */
	struct gaol_handover_page *pages;
	/* Console and counters, readable after the launch; NULL while disabled. */
	const void *public;
	size_t public_size;

	/* All cells, the root cell first; empty while disabled. */
	struct list_head cells;
	/* CPUs of cells, which Linux may not take online. */
	struct cpumask owned;
	/* CPUs that a destroyed cell left behind and Linux could not start. */
	struct cpumask not_back;
};

extern struct gaol_module gaol;

/* main.c */
int gaol_refuse(struct gaol_outcome *outcome, u32 reason, u64 detail, int error);
int gaol_check_preamble(const void *config, size_t size, const char *signature,
			size_t header_size, struct gaol_outcome *outcome);
u32 gaol_checksum(const void *bytes, size_t size, size_t hole);
void *gaol_copy_in(u64 user, u64 size);
bool gaol_name_is_valid(const char *name);

/* launch.c */
int gaol_enable(struct gaol_enable_request *request, const void *image,
		void *config, const struct file *holder);
int gaol_disable(struct gaol_cell_command *command);
int gaol_give_back(void);
int gaol_check_enabled(struct gaol_outcome *outcome);
long gaol_hypercall(u32 number, u64 first, u64 second, u64 *cycles);
long gaol_hypercall_in_turn(u32 number, u64 first, u64 second, u64 *cycles);
int gaol_hypercall_error(long result, struct gaol_outcome *outcome);

/* stub.S */
long gaol_enter(struct gaol_handover_page *page);
extern char gaol_stub_page[];
extern char gaol_stub_nmi[];
extern char gaol_stub_machine_check[];
extern char gaol_stub_first_vmx[];
extern char gaol_stub_first_svm[];
extern char gaol_stub_leave[];

/* cell.c */
int gaol_cell_create_root(const char *name);
void gaol_cell_remove_root(void);
int gaol_cell_create(struct gaol_cell_create_request *request,
		     const struct gaol_cell_header *config,
		     const struct file *holder);
int gaol_cell_load(struct gaol_cell_load_request *request,
		   const struct gaol_load_image *images);
int gaol_cell_start(struct gaol_cell_command *command);
int gaol_cell_shutdown(struct gaol_cell_command *command);
int gaol_cell_destroy(struct gaol_cell_command *command);
unsigned int gaol_cells_count(void);
int gaol_cells_destroy_all(struct gaol_outcome *outcome);
int gaol_cells_bring_cpus_back(struct gaol_outcome *outcome);

/* region.c */
int gaol_regions_provide(struct gaol_cell *cell,
			 const struct gaol_cell_header *header,
			 struct gaol_cell_create_request *request,
			 const struct file *holder);
void gaol_regions_drop(struct gaol_cell *cell);
int gaol_regions_load(struct gaol_cell *cell, struct gaol_load_image image,
		      bool copy, struct gaol_outcome *outcome);
size_t gaol_regions_tell(const struct gaol_cell *cell, char *buffer,
			 size_t size);
int gaol_mmap(struct file *file, struct vm_area_struct *vma);

int gaol_regions_write(struct gaol_cell *cell, u64 target, const void *bytes,
		       u64 size);

/* pci.c */
int gaol_functions_take(struct gaol_cell *cell,
			const struct gaol_cell_header *header,
			struct gaol_outcome *outcome);
int gaol_functions_return(struct gaol_cell *cell, struct gaol_outcome *outcome);
size_t gaol_functions_tell(char *buffer, size_t size);
int gaol_functions_init(void);
void gaol_functions_exit(void);

/* watchdog.c */
void gaol_watchdog_init(struct gaol_cell *cell,
			const struct gaol_cell_header *header);
int gaol_watchdog_check_images(const struct gaol_cell *cell,
			       const struct gaol_load_image *images,
			       unsigned int count,
			       struct gaol_outcome *outcome);
int gaol_watchdog_keep(struct gaol_cell *cell,
		       const struct gaol_load_image *images,
		       unsigned int count);
void gaol_watchdog_start(struct gaol_cell *cell);
void gaol_watchdog_stop(struct gaol_cell *cell);
void gaol_watchdog_free(struct gaol_cell *cell);
size_t gaol_watchdog_tell(const struct gaol_cell *cell, u64 expired,
			  char *buffer);

/* sysfs.c */
int gaol_sysfs_init(void);
void gaol_sysfs_exit(void);
struct gaol_cell *gaol_sysfs_allocate_cell(void);
int gaol_sysfs_add_cell(struct gaol_cell *cell);
void gaol_sysfs_remove_cell(struct gaol_cell *cell);

/* console.c */
int gaol_console_init(void);
void gaol_console_exit(void);
void gaol_console_attach(const void *public);
void gaol_console_detach(void);
ssize_t gaol_console_read(struct file *file, char __user *buffer, size_t size,
			  loff_t *offset);
__poll_t gaol_console_poll(struct file *file, poll_table *wait);
int gaol_console_open(struct file *file);
void gaol_console_release(struct file *file);
size_t gaol_console_tail(char *buffer, size_t size);

#endif /* GAOL_H */
