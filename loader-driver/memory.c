// SPDX-License-Identifier: GPL-2.0
/*
 * Memory for the hypervisor and the cells.
 *
 * Invariant: memory is given out only after Linux has let go of it (taken from
 * its page allocator, or reserved at boot and claimed in the resource tree), and
 * it goes back when the last reference is dropped: a mapping in user space holds
 * one.
 */
#include <linux/gfp.h>
#include <linux/ioport.h>
#include <linux/memory_hotplug.h>
#include <linux/mm.h>
#include <linux/pfn.h>
#include <linux/sched.h>
#include <linux/sizes.h>
#include <linux/slab.h>

#include "gaol.h"

#define MAX_RANGES	64
/* An attempt may have to move every page of the range elsewhere. */
#define MAX_ATTEMPTS	2048

/* Later kernels tell the allocator flags in place of the migrate type. */
#ifdef ACR_FLAGS_NONE
#define CONTIGUOUS_RANGE_KIND	ACR_FLAGS_NONE
#else
#define CONTIGUOUS_RANGE_KIND	MIGRATE_MOVABLE
#endif

struct ranges {
	unsigned int count;
	struct {
		u64 start;
		u64 end;
	} range[MAX_RANGES];
};

static int collect_range(struct resource *resource, void *argument)
{
	struct ranges *ranges = argument;

	/* They come in ascending order, and the upper ones are tried first. */
	if (ranges->count == MAX_RANGES)
		memmove(&ranges->range[0], &ranges->range[1],
			sizeof(ranges->range[0]) * --ranges->count);
	ranges->range[ranges->count].start = resource->start;
	ranges->range[ranges->count].end = resource->end + 1;
	ranges->count++;
	return 0;
}

static int walk_system_ram(u64 start, u64 end, void *argument,
			   int (*visit)(struct resource *, void *))
{
	return walk_iomem_res_desc(IORES_DESC_NONE,
				   IORESOURCE_SYSTEM_RAM | IORESOURCE_BUSY,
				   start, end, argument, visit);
}

/* The highest page in the range that can never be moved away; 0 for none. */
static unsigned long last_fixed_page(unsigned long first, unsigned long end)
{
	const struct zone *zone = NULL;
	unsigned long pfn;

	for (pfn = end; pfn-- > first;) {
		struct page *page = pfn_to_online_page(pfn);

		if (!page || PageReserved(page))
			return pfn;
		/* Only within one zone can a range be taken at once. */
		if (!zone)
			zone = page_zone(page);
		else if (page_zone(page) != zone)
			return pfn;
		if (!(pfn & 0xfff))
			cond_resched();
	}
	return 0;
}

/* The first page of `count` taken in the range; 0 for none. */
static unsigned long take_in_range(unsigned long start, unsigned long end,
				   unsigned long count, unsigned long alignment,
				   unsigned int *attempts)
{
	unsigned long step = max_t(unsigned long, alignment, PFN_DOWN(SZ_2M));

	while (end > start && end - start >= count) {
		unsigned long first = ALIGN_DOWN(end - count, alignment);
		unsigned long fixed;
		int error;

		if (first < start || !*attempts)
			break;
		fixed = last_fixed_page(first, first + count);
		if (fixed) {
			end = fixed;
			continue;
		}
		--*attempts;
		error = alloc_contig_range(first, first + count,
					   CONTIGUOUS_RANGE_KIND,
					   GFP_KERNEL | __GFP_NOWARN);
		if (!error)
			return first;
		if (error == -EINTR) {
			*attempts = 0;
			break;
		}
		cond_resched();
		if (first < step)
			break;
		end = first + count - step;
	}
	return 0;
}

static struct gaol_memory *describe(phys_addr_t physical, size_t size,
				    bool from_allocator)
{
	struct gaol_memory *memory = kzalloc(sizeof(*memory), GFP_KERNEL);

	if (!memory)
		return NULL;
	kref_init(&memory->references);
	memory->physical = physical;
	memory->size = size;
	memory->from_allocator = from_allocator;
	return memory;
}

/*
 * Takes memory from Linux, from the top downwards, below `limit`. It is 2 MiB
 * aligned where it is that large. Not cleared. NULL: there is none.
 */
struct gaol_memory *gaol_memory_take(size_t size, phys_addr_t limit)
{
	unsigned long count = PFN_UP(size);
	unsigned long alignment = size >= SZ_2M ? PFN_DOWN(SZ_2M) : 1;
	unsigned int attempts = MAX_ATTEMPTS;
	struct gaol_memory *memory;
	struct ranges *ranges;
	unsigned long first = 0;
	unsigned int index;

	ranges = kzalloc(sizeof(*ranges), GFP_KERNEL);
	memory = describe(0, size, true);
	if (!ranges || !memory)
		goto out;
	/* The first MiB is for those who can use nothing else. */
	walk_system_ram(SZ_1M, limit - 1, ranges, collect_range);
	for (index = ranges->count; index-- > 0 && !first;)
		first = take_in_range(PFN_UP(ranges->range[index].start),
				      PFN_DOWN(ranges->range[index].end),
				      count, alignment, &attempts);
out:
	kfree(ranges);
	if (!first) {
		kfree(memory);
		return NULL;
	}
	memory->physical = PFN_PHYS(first);
	return memory;
}

/* Is any of it RAM that Linux manages? */
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
	memory = describe(physical, size, false);
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

	if (memory->from_allocator)
		free_contig_range(PHYS_PFN(memory->physical),
				  PFN_UP(memory->size));
	else
		release_mem_region(memory->physical, memory->size);
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

	walk_system_ram(0, 640 * SZ_1K - 1, &page, note_first_page);
	return page;
}
