// SPDX-License-Identifier: GPL-2.0
/*
 * The memory of cells: taken, loaded, shared with programs, given back.
 *
 * Invariant: a piece of memory is Linux' or a cell's, never both, unless it is
 * shared; what programs have mapped stays until the last mapping is gone. The
 * pieces of a region stand one behind the other, and all but the first say so.
 */
#include <linux/io.h>
#include <linux/mm.h>
#include <linux/sched.h>
#include <linux/sizes.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "gaol.h"

/* Images are copied in pieces, with a chance for others between them. */
#define COPY_CHUNK	SZ_1M

#define LINUX_GIVES(flags) \
	(!((flags) & (GAOL_CONFIG_MEMORY_DEVICE | \
		      GAOL_CONFIG_MEMORY_COMMUNICATION)))

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

static bool is_page_aligned(const struct gaol_memory_region *region)
{
	return PAGE_ALIGNED(region->size) && PAGE_ALIGNED(region->physical) &&
	       PAGE_ALIGNED(region->guest);
}

static bool region_is_valid(const struct gaol_memory_region *region)
{
	/* Only registers can be a part of a page. */
	bool may_be_small = region->flags & GAOL_CONFIG_MEMORY_WIDTHS &&
			    region->flags & GAOL_CONFIG_MEMORY_DEVICE;

	return region->size && (is_page_aligned(region) || may_be_small) &&
	       region->physical + region->size >= region->physical &&
	       region->guest + region->size >= region->guest &&
	       !(region->flags & ~(u64)GAOL_CONFIG_MEMORY_ALL_FLAGS);
}

/* Taking */

/* Adds the next piece of a region; takes over the reference to the memory. */
static void add_piece(struct gaol_cell *cell,
		      const struct gaol_memory_region *config, u64 offset,
		      u64 physical, u64 size, struct gaol_memory *memory)
{
	struct gaol_region *piece = &cell->regions[cell->region_count++];

	piece->config = *config;
	piece->config.guest += offset;
	piece->config.physical = physical;
	piece->config.size = size;
	if (offset)
		piece->config.flags |= GAOL_CONFIG_MEMORY_CONTINUED;
	piece->memory = memory;
}

static bool has_name(const struct gaol_region *region, const char *name)
{
	return !strncmp(region->config.name, name, GAOL_NAME_LENGTH);
}

/* The first piece of the region that cells share by this name. */
static struct gaol_region *find_named(const char *name, struct gaol_cell **owner)
{
	struct gaol_cell *cell;
	unsigned int index;

	list_for_each_entry(cell, &gaol.cells, list) {
		for (index = 0; index < cell->region_count; index++) {
			struct gaol_region *region = &cell->regions[index];

			if (region->config.flags & GAOL_CONFIG_MEMORY_SHARED &&
			    has_name(region, name)) {
				*owner = cell;
				return region;
			}
		}
	}
	return NULL;
}

/* The same memory for another cell. */
static int share(struct gaol_cell *cell, const struct gaol_memory_region *config,
		 struct gaol_region *first, const struct gaol_cell *owner,
		 unsigned int room)
{
	const struct gaol_region *end = owner->regions + owner->region_count;
	struct gaol_region *piece = first;
	u64 size = 0;

	do {
		size += piece->config.size;
		room -= !!room;
		piece++;
	} while (piece < end && room &&
		 piece->config.flags & GAOL_CONFIG_MEMORY_CONTINUED);
	if (size != config->size)
		return -EINVAL;
	for (size = 0; size < config->size; first++) {
		if (first->memory)
			gaol_memory_get(first->memory);
		add_piece(cell, config, size, first->config.physical,
			  first->config.size, first->memory);
		size += first->config.size;
	}
	return 0;
}

static int gather(struct gaol_cell *cell,
		  const struct gaol_memory_region *config, unsigned int limit,
		  const struct file *holder, struct gaol_outcome *outcome)
{
	struct gaol_pieces *pieces = kzalloc(sizeof(*pieces), GFP_KERNEL);
	unsigned int index;
	u64 offset = 0;
	int error = 0;

	if (!pieces)
		return -ENOMEM;
	pieces->limit = limit;
	if (!gaol_memory_gather(pieces, config->size, holder))
		error = gaol_refuse(outcome, GAOL_REASON_CELL_MEMORY,
				    pieces->found, -ENOMEM);
	for (index = 0; !error && index < pieces->count; index++) {
		struct gaol_memory *memory = pieces->memory[index];

		add_piece(cell, config, offset, memory->physical, memory->size,
			  memory);
		offset += memory->size;
	}
	kfree(pieces);
	return error;
}

/* Memory at a given address: it must not be one that Linux uses. */
static int use_given(struct gaol_cell *cell,
		     const struct gaol_memory_region *config,
		     struct gaol_outcome *outcome)
{
	struct gaol_region *shared = NULL;

	if (!gaol_memory_is_linux(config->physical, config->size)) {
		add_piece(cell, config, 0, config->physical, config->size,
			  NULL);
		return 0;
	}
	/* Linux' RAM by address: only what another cell shares already. */
	if (config->flags & GAOL_CONFIG_MEMORY_ROOT_SHARED)
		shared = find_shared(config->physical, config->size);
	if (!shared || !shared->memory)
		return gaol_refuse(outcome, GAOL_REASON_MEMORY_NOT_RESERVED,
				   config->physical, -EBUSY);
	gaol_memory_get(shared->memory);
	add_piece(cell, config, 0, config->physical, config->size,
		  shared->memory);
	return 0;
}

/* Gets the memory of one region, or makes sure that Linux has no use for it. */
static int provide(struct gaol_cell *cell,
		   const struct gaol_memory_region *config, unsigned int room,
		   struct gaol_cell_create_request *request,
		   const struct file *holder)
{
	struct gaol_outcome *outcome = &request->outcome;
	struct gaol_cell *owner;
	struct gaol_region *named = NULL;

	if (config->flags & GAOL_CONFIG_MEMORY_COMMUNICATION) {
		add_piece(cell, config, 0, config->physical, config->size,
			  NULL);
		return 0;
	}
	if (config->physical || !LINUX_GIVES(config->flags))
		return use_given(cell, config, outcome);
	if (config->flags & GAOL_CONFIG_MEMORY_SHARED)
		named = find_named(config->name, &owner);
	if (!named)
		return gather(cell, config,
			      request->flags & GAOL_DRIVER_FLAG_PIECES ? room :
									 1,
			      holder, outcome);
	if (share(cell, config, named, owner, room))
		return gaol_refuse(outcome, GAOL_REASON_SHARED_REGION_DIFFERS,
				   request->region, -EINVAL);
	return 0;
}

/* Gets all memory of a new cell; what was got before a failure is the caller's to drop. */
int gaol_regions_provide(struct gaol_cell *cell,
			 const struct gaol_cell_header *header,
			 struct gaol_cell_create_request *request,
			 const struct file *holder)
{
	const struct gaol_memory_region *config = (const void *)(header + 1);
	unsigned int count = header->memory_region_count;
	unsigned int index;
	int error = 0;

	for (index = 0; index < count; index++)
		if (!region_is_valid(&config[index]))
			return gaol_refuse(&request->outcome,
					   GAOL_REASON_REGION_INVALID, index,
					   -EINVAL);
	cell->regions = kcalloc(GAOL_CONFIG_MAX_MEMORY_REGIONS,
				sizeof(*cell->regions), GFP_KERNEL);
	if (!cell->regions)
		return -ENOMEM;
	for (index = 0; !error && index < count; index++) {
		/* Each region that is still to come needs a place. */
		unsigned int room = GAOL_CONFIG_MAX_MEMORY_REGIONS -
				    cell->region_count - (count - index - 1);

		request->region = index;
		error = provide(cell, &config[index], room, request, holder);
	}
	return error;
}

void gaol_regions_drop(struct gaol_cell *cell)
{
	while (cell->region_count)
		gaol_memory_put(cell->regions[--cell->region_count].memory);
}

/* One piece a line: name, host-physical and guest-physical address, size, flags. */
size_t gaol_regions_tell(const struct gaol_cell *cell, char *buffer,
			 size_t size)
{
	unsigned int index;
	size_t length = 0;

	for (index = 0; index < cell->region_count; index++) {
		const struct gaol_memory_region *region =
			&cell->regions[index].config;

		length += scnprintf(buffer + length, size - length,
				    "%.*s %#llx %#llx %#llx %#llx\n",
				    GAOL_NAME_LENGTH, region->name,
				    region->physical, region->guest,
				    region->size, region->flags);
	}
	return length;
}

/* Loading */

/* The loadable piece that a guest-physical address lies in. */
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

/* From user space, or, where `bytes` are given, from there. */
static int copy_piece(struct gaol_region *region, u64 offset, u64 source,
		      const void *bytes, u64 size)
{
	void *mapping = memremap(region->config.physical, region->config.size,
				 MEMREMAP_WB);
	int error = 0;

	if (!mapping)
		return -ENOMEM;
	while (size && !error) {
		u64 chunk = min_t(u64, size, COPY_CHUNK);

		if (bytes)
			memcpy(mapping + offset, bytes + source, chunk);
		else if (copy_from_user(mapping + offset,
					u64_to_user_ptr(source), chunk))
			error = -EFAULT;
		offset += chunk;
		source += chunk;
		size -= chunk;
		cond_resched();
	}
	memunmap(mapping);
	return error;
}

/* Walks the pieces that an image spans; copies, or only checks that they are there. */
static int load(struct gaol_cell *cell, struct gaol_load_image image, bool copy,
		const void *bytes, struct gaol_outcome *outcome)
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
		error = copy ? copy_piece(region, offset, image.source, bytes,
					  piece) : 0;
		if (error)
			return error;
		image.target += piece;
		image.source += piece;
		image.size -= piece;
	}
	return 0;
}

int gaol_regions_load(struct gaol_cell *cell, struct gaol_load_image image,
		      bool copy, struct gaol_outcome *outcome)
{
	return load(cell, image, copy, NULL, outcome);
}

/* The same with what the module has kept. */
int gaol_regions_write(struct gaol_cell *cell, u64 target, const void *bytes,
		       u64 size)
{
	const struct gaol_load_image image = { .size = size, .target = target };
	struct gaol_outcome ignored;

	return load(cell, image, true, bytes, &ignored);
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
