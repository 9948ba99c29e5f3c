// SPDX-License-Identifier: GPL-2.0
/*
 * Takes memory from the page allocator of the running Linux, which moves what is
 * in the way.
 *
 * Invariant: what is not handed to the caller has gone back. Never more is held
 * than was asked for, and the effort has a bound: no page is tried more often
 * than a few times, and after a while the search ends.
 */
#include <linux/gfp.h>
#include <linux/ioport.h>
#include <linux/jiffies.h>
#include <linux/memory_hotplug.h>
#include <linux/mm.h>
#include <linux/pfn.h>
#include <linux/sched.h>
#include <linux/sizes.h>
#include <linux/slab.h>
#include <linux/sort.h>

#include "memory.h"

#define MAX_RANGES	64
#define LARGE_PAGE	PFN_DOWN(SZ_2M)
/* What is in the way may be found late, when much was moved in vain. */
#define MAX_STEP	PFN_DOWN(SZ_256M)
/* No machine needs as long unless its memory is hopeless. */
#define MAX_TIME	(30 * HZ)

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

/* A search on its way. */
struct state {
	struct gaol_search *search;
	/* Pages that are taken at least at a time, and aligned to. */
	unsigned long granule;
	/* Pages that are tried next at once. */
	unsigned long step;
	/* Pages in all runs. */
	unsigned long sum;
	unsigned long deadline;
	bool over;
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

/* Visits the RAM that Linux knows of until `visit` returns something else than 0. */
bool gaol_ram_walk(u64 start, u64 end, void *argument,
		   int (*visit)(struct resource *, void *))
{
	return walk_iomem_res_desc(IORES_DESC_NONE,
				   IORESOURCE_SYSTEM_RAM | IORESOURCE_BUSY,
				   start, end, argument, visit) > 0;
}

/* Only pages that are online, in one zone, and not fixed, can be asked for. */
static bool can_be_asked_for(unsigned long first, unsigned long count)
{
	const struct zone *zone = NULL;
	unsigned long pfn;

	for (pfn = first; pfn < first + count; pfn++) {
		struct page *page = pfn_to_online_page(pfn);

		if (!page || PageReserved(page))
			return false;
		if (!zone)
			zone = page_zone(page);
		else if (page_zone(page) != zone)
			return false;
		if (!(pfn & 0xfff))
			cond_resched();
	}
	return true;
}

static bool take_pages(struct state *state, unsigned long first,
		       unsigned long count)
{
	int error;

	if (time_after(jiffies, state->deadline))
		state->over = true;
	if (state->over || !can_be_asked_for(first, count))
		return false;
	error = alloc_contig_range(first, first + count, CONTIGUOUS_RANGE_KIND,
				   GFP_KERNEL | __GFP_NOWARN);
	if (error == -EINTR || fatal_signal_pending(current))
		state->over = true;
	cond_resched();
	return !error;
}

/* Gives pages back that were taken here, with a chance for others in between. */
void gaol_allocator_give(unsigned long first, unsigned long count)
{
	while (count) {
		unsigned long piece = min(count, MAX_STEP);

		free_contig_range(first, piece);
		first += piece;
		count -= piece;
		cond_resched();
	}
}

static void give_back(struct gaol_run run)
{
	gaol_allocator_give(run.first, run.count);
}

/*
 * Takes adjacent pages from `end` downwards, as many as are wanted or will come:
 * all at once when it can be, else in steps that become smaller where something
 * is in the way, and larger again. Returns where to go on.
 */
static unsigned long take_run(struct state *state, unsigned long start,
			      unsigned long end, struct gaol_run *run)
{
	unsigned long want = ALIGN(state->search->want, state->granule);

	if (state->search->limit > 1)
		want -= state->sum;
	run->first = end;
	run->count = 0;
	while (run->count < want && !state->over) {
		unsigned long room = run->first - start;
		unsigned long step = min3(state->step, want - run->count,
					  rounddown(room, state->granule));

		if (!step)
			return start;
		if (take_pages(state, run->first - step, step)) {
			run->first -= step;
			run->count += step;
			state->step = min(step * 2, MAX_STEP);
			continue;
		}
		if (step == state->granule) {
			unsigned long next = ALIGN_DOWN(run->first - 1,
							LARGE_PAGE);

			return max(next, start);
		}
		state->step = max(rounddown(step / 2, state->granule),
				  state->granule);
	}
	return run->first;
}

/* The largest runs are kept, as many as may be; contiguous memory is one or none. */
static void keep(struct state *state, struct gaol_run run)
{
	struct gaol_search *search = state->search;
	struct gaol_run *smallest = search->runs;
	unsigned int index;

	if (search->limit == 1 && run.count < search->want) {
		search->found = max(search->found, run.count);
		give_back(run);
		return;
	}
	if (search->count < search->limit) {
		search->runs[search->count++] = run;
		state->sum += run.count;
		return;
	}
	for (index = 1; index < search->count; index++)
		if (search->runs[index].count < smallest->count)
			smallest = &search->runs[index];
	if (smallest->count < run.count) {
		state->sum += run.count - smallest->count;
		swap(*smallest, run);
	}
	give_back(run);
}

static void search_range(struct state *state, unsigned long start,
			 unsigned long end)
{
	if (state->granule == LARGE_PAGE) {
		start = ALIGN(start, LARGE_PAGE);
		end = ALIGN_DOWN(end, LARGE_PAGE);
	}
	while (end > start && state->sum < state->search->want && !state->over) {
		struct gaol_run run;

		end = take_run(state, start, end, &run);
		if (run.count)
			keep(state, run);
	}
}

static int by_size(const void *left, const void *right)
{
	const struct gaol_run *first = left, *second = right;

	return first->count < second->count ? 1 :
	       first->count > second->count ? -1 : 0;
}

/* Gives back what was taken beyond the size, at the end of the smallest run. */
static void trim(struct gaol_search *search, unsigned long excess)
{
	struct gaol_run *last = &search->runs[search->count - 1];

	sort(search->runs, search->count, sizeof(*search->runs), by_size, NULL);
	last->count -= excess;
	give_back((struct gaol_run){ last->first + last->count, excess });
}

/*
 * Takes memory, from the top downwards, aligned to 2 MiB where it is that large.
 * It is not cleared. False: nothing was taken.
 */
bool gaol_allocator_take(struct gaol_search *search)
{
	struct state state = {
		.search = search,
		.granule = min(search->want, LARGE_PAGE),
		.deadline = jiffies + MAX_TIME,
	};
	struct ranges *ranges = kzalloc(sizeof(*ranges), GFP_KERNEL);
	unsigned int index;

	search->count = 0;
	search->found = 0;
	if (!ranges || !search->want || !search->limit) {
		kfree(ranges);
		return false;
	}
	state.step = min(ALIGN(search->want, state.granule), MAX_STEP);
	/* The first MiB is for those who can use nothing else. */
	gaol_ram_walk(SZ_1M, search->end - 1, ranges, collect_range);
	for (index = ranges->count; index-- > 0;)
		search_range(&state, PFN_UP(ranges->range[index].start),
			     PFN_DOWN(ranges->range[index].end));
	kfree(ranges);
	if (state.sum >= search->want) {
		trim(search, state.sum - search->want);
		return true;
	}
	search->found = max(search->found, state.sum);
	while (search->count)
		give_back(search->runs[--search->count]);
	return false;
}
