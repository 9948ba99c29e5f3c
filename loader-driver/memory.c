// SPDX-License-Identifier: GPL-2.0
/*
 * Memory for the hypervisor and the cells.
 *
 * Invariant: memory is given out only after Linux has let go of it (taken from
 * its page allocator, in a memory block that it has offline, or reserved at boot
 * and claimed in the resource tree), and it goes back when the last reference is
 * dropped: a mapping in user space holds one.
 */
#include <linux/ioport.h>
#include <linux/mm.h>
#include <linux/pfn.h>
#include <linux/sizes.h>
#include <linux/slab.h>

#include "memory.h"

static struct gaol_memory *describe(phys_addr_t physical, size_t size,
				    enum gaol_memory_source source)
{
	struct gaol_memory *memory = kzalloc(sizeof(*memory), GFP_KERNEL);

	if (!memory)
		return NULL;
	kref_init(&memory->references);
	INIT_LIST_HEAD(&memory->list);
	memory->physical = physical;
	memory->size = size;
	memory->source = source;
	return memory;
}

/* A piece of the offline blocks: all of the size, or the largest there is. */
static struct gaol_memory *carve(size_t size, u64 end, bool or_less,
				 const struct file *holder)
{
	struct gaol_memory *memory = describe(0, 0, GAOL_MEMORY_BLOCKS);

	if (memory && gaol_blocks_carve(memory, size, end, or_less, holder))
		return memory;
	kfree(memory);
	return NULL;
}

/* What may be taken from Linux without making it short of memory itself. */
static u64 spare(void)
{
	u64 available = (u64)max(si_mem_available(), 0L) << PAGE_SHIFT;
	u64 left = max_t(u64, SZ_16M, PFN_PHYS(totalram_pages()) / 32);

	return available > left ? available - left : 0;
}

/* Takes from the page allocator; false: not all of it, and so much could be. */
static bool allocate(struct gaol_pieces *pieces, size_t size, u64 end,
		     unsigned int limit)
{
	struct gaol_search search = {
		.want = PFN_UP(size),
		.end = end,
		.limit = limit,
	};
	bool is_complete;
	unsigned int index;

	search.runs = kcalloc(limit, sizeof(*search.runs), GFP_KERNEL);
	if (!search.runs)
		return false;
	is_complete = gaol_allocator_take(&search);
	pieces->found += PFN_PHYS(search.found);
	for (index = 0; index < search.count; index++) {
		struct gaol_run *run = &search.runs[index];
		struct gaol_memory *memory =
			describe(PFN_PHYS(run->first), PFN_PHYS(run->count),
				 GAOL_MEMORY_ALLOCATOR);

		if (memory) {
			pieces->memory[pieces->count++] = memory;
		} else {
			gaol_allocator_give(run->first, run->count);
			is_complete = false;
		}
	}
	kfree(search.runs);
	return is_complete;
}

static void put_all(struct gaol_pieces *pieces)
{
	while (pieces->count)
		gaol_memory_put(pieces->memory[--pieces->count]);
}

/* One piece: first of what Linux has lost already, then from its allocator. */
static bool take_one(struct gaol_pieces *pieces, size_t size, u64 end,
		     const struct file *holder)
{
	pieces->memory[0] = carve(size, end, false, holder);
	if (pieces->memory[0]) {
		pieces->count = 1;
		return true;
	}
	pieces->found = 0;
	if (size > spare()) {
		pieces->found = ALIGN_DOWN(spare(), SZ_2M);
		return false;
	}
	return allocate(pieces, size, end, 1);
}

/* The largest pieces of the offline blocks, and the allocator's for the rest. */
static bool take_many(struct gaol_pieces *pieces, size_t size,
		      const struct file *holder)
{
	u64 found = 0;

	while (found < size && pieces->count < pieces->limit) {
		struct gaol_memory *piece =
			carve(size - found, U64_MAX, true, holder);

		if (!piece)
			break;
		pieces->memory[pieces->count++] = piece;
		found += piece->size;
	}
	pieces->found = found;
	if (found == size)
		return true;
	if (size - found > spare())
		pieces->found += ALIGN_DOWN(spare(), SZ_2M);
	else if (pieces->count < pieces->limit &&
		 allocate(pieces, size - found, U64_MAX,
			  pieces->limit - pieces->count))
		return true;
	put_all(pieces);
	return false;
}

/*
 * Takes memory from Linux in at most `pieces->limit` pieces, each aligned to
 * 2 MiB where it is that large; the fewest come first. Not cleared. False: there
 * is none, and `pieces->found` tells how much could have been.
 */
bool gaol_memory_gather(struct gaol_pieces *pieces, size_t size,
			const struct file *holder)
{
	u64 largest;

	pieces->count = 0;
	pieces->found = 0;
	if (take_one(pieces, size, U64_MAX, holder))
		return true;
	put_all(pieces);
	if (pieces->limit <= 1 || size <= SZ_2M)
		return false;
	largest = pieces->found;
	if (take_many(pieces, size, holder))
		return true;
	pieces->found = max(pieces->found, largest);
	return false;
}

/* Takes one piece below `end`. NULL: there is none; the largest has `found`. */
struct gaol_memory *gaol_memory_take(size_t size, u64 end,
				     const struct file *holder, u64 *found)
{
	struct gaol_pieces *pieces = kzalloc(sizeof(*pieces), GFP_KERNEL);
	struct gaol_memory *memory = NULL;

	if (!pieces)
		return NULL;
	if (take_one(pieces, size, end, holder))
		memory = pieces->memory[0];
	else
		put_all(pieces);
	*found = max(*found, pieces->found);
	kfree(pieces);
	return memory;
}

/* Is any of it RAM that Linux manages, or would manage if it were online? */
bool gaol_memory_is_linux(phys_addr_t physical, size_t size)
{
	return region_intersects(physical, size, IORESOURCE_SYSTEM_RAM,
				 IORES_DESC_NONE) != REGION_DISJOINT;
}

/* Claims memory that was reserved at boot. NULL: it was not, or is in use. */
struct gaol_memory *gaol_memory_claim(phys_addr_t physical, size_t size)
{
	struct gaol_memory *memory;

	if (physical + size < physical || gaol_memory_is_linux(physical, size))
		return NULL;
	memory = describe(physical, size, GAOL_MEMORY_RESERVED);
	if (!memory)
		return NULL;
	if (!request_mem_region(physical, size, "Gaol")) {
		kfree(memory);
		return NULL;
	}
	return memory;
}

void gaol_memory_get(struct gaol_memory *memory)
{
	kref_get(&memory->references);
}

static void release(struct kref *references)
{
	struct gaol_memory *memory =
		container_of(references, struct gaol_memory, references);

	switch (memory->source) {
	case GAOL_MEMORY_RESERVED:
		release_mem_region(memory->physical, memory->size);
		break;
	case GAOL_MEMORY_ALLOCATOR:
		gaol_allocator_give(PHYS_PFN(memory->physical),
				    PFN_UP(memory->size));
		break;
	case GAOL_MEMORY_BLOCKS:
		gaol_blocks_uncarve(memory);
		break;
	}
	kfree(memory);
}

void gaol_memory_put(struct gaol_memory *memory)
{
	if (memory)
		kref_put(&memory->references, release);
}

static int note_end(struct resource *resource, void *argument)
{
	u64 *end = argument;

	if (!(resource->flags & IORESOURCE_UNSET) && resource->end + 1 > *end)
		*end = resource->end + 1;
	return 0;
}

/* Where the physical address space that Linux knows of ends; 1 GiB aligned. */
phys_addr_t gaol_physical_end(void)
{
	u64 limit = 1ULL << boot_cpu_data.x86_phys_bits;
	u64 end = SZ_4G;

	walk_iomem_res_desc(IORES_DESC_NONE, IORESOURCE_MEM, 0, limit - 1, &end,
			    note_end);
	return min(ALIGN(end, SZ_1G), limit);
}

static int note_first_page(struct resource *resource, void *argument)
{
	u64 page = max_t(u64, PAGE_ALIGN(resource->start), PAGE_SIZE);

	if (page + PAGE_SIZE - 1 > resource->end)
		return 0;
	*(u64 *)argument = page;
	return 1;
}

/*
 * The lowest page of RAM behind the interrupt table. Linux has all of the first
 * MiB reserved, and puts its real-mode code at the upper end of it. 0: none.
 */
phys_addr_t gaol_low_page(void)
{
	u64 page = 0;

	gaol_ram_walk(0, 640 * SZ_1K - 1, &page, note_first_page);
	return page;
}
