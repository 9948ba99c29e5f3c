/* SPDX-License-Identifier: GPL-2.0 */
/* Where memory comes from, between the files that get it. */
#ifndef GAOL_MEMORY_H
#define GAOL_MEMORY_H

#include "gaol.h"

/* Adjacent pages that the page allocator has given. */
struct gaol_run {
	unsigned long first;
	unsigned long count;
};

/* What is to be taken from the page allocator. */
struct gaol_search {
	/* Pages. */
	unsigned long want;
	/* Below this address. */
	phys_addr_t end;
	/* Most runs to make it of; 1 for contiguous memory. */
	unsigned int limit;
	/* Room for `limit` runs; the largest comes first. */
	struct gaol_run *runs;
	/* Out: the runs. */
	unsigned int count;
	/* Out, on failure: pages that were found in `limit` runs. */
	unsigned long found;
};

/* allocator.c */
bool gaol_allocator_take(struct gaol_search *search);
void gaol_allocator_give(unsigned long first, unsigned long count);
bool gaol_ram_walk(u64 start, u64 end, void *argument,
		   int (*visit)(struct resource *, void *));

/* blocks.c */
bool gaol_blocks_carve(struct gaol_memory *memory, size_t size, u64 end,
		       bool or_less, const struct file *holder);
void gaol_blocks_uncarve(struct gaol_memory *memory);
u64 gaol_blocks_free(const struct file *holder);

#endif /* GAOL_MEMORY_H */
