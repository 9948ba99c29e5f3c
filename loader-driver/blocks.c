// SPDX-License-Identifier: GPL-2.0
/*
 * Memory blocks of Linux that are taken offline for Gaol.
 *
 * User space announces a block before it takes it offline, so that this side
 * knows of each block that Linux has lost to Gaol, whatever becomes of the
 * process. Pieces are carved out of them; a block of which nothing is in use any
 * more may be brought online again, by anyone, and is then forgotten.
 *
 * Invariant: a block with a piece in use is offline, and stays so. The module
 * stays loaded while any block of its own is offline.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/ioport.h>
#include <linux/memory.h>
#include <linux/memory_hotplug.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/notifier.h>
#include <linux/pfn.h>
#include <linux/sched.h>
#include <linux/sizes.h>
#include <linux/slab.h>

#include "memory.h"

enum state {
	BLOCK_ONLINE,
	/* Linux is taking it offline; the module is held from here on. */
	BLOCK_LEAVING,
	BLOCK_OFFLINE,
	/* Linux is bringing it online. */
	BLOCK_RETURNING,
};

struct block {
	struct list_head list;
	u64 physical;
	enum state state;
	/* The open file that it was offered through; NULL: it is anyone's. */
	const struct file *holder;
};

/* Not held when Linux' hot-plug locks may be taken: the notifier takes it. */
static DEFINE_MUTEX(blocks_lock);
/* Blocks by address. */
static LIST_HEAD(blocks);
static unsigned int block_count;
/* Pieces in use. */
static LIST_HEAD(carved);
/* All blocks of a machine have one size. */
static u64 block_size;

static u64 end_of(const struct block *block)
{
	return block->physical + block_size;
}

static bool is_in_use(const struct block *block)
{
	const struct gaol_memory *piece;

	list_for_each_entry(piece, &carved, list)
		if (piece->physical < end_of(block) &&
		    piece->physical + piece->size > block->physical)
			return true;
	return false;
}

static struct block *find_block(u64 physical)
{
	struct block *block;

	list_for_each_entry(block, &blocks, list)
		if (block->physical == physical)
			return block;
	return NULL;
}

static void forget(struct block *block)
{
	list_del(&block->list);
	block_count--;
	kfree(block);
}

/* Carving */

static bool may_use(const struct block *block, const struct file *holder)
{
	return block->state == BLOCK_OFFLINE &&
	       (!block->holder || block->holder == holder);
}

/* The first address from `start` on that is in no piece. */
static u64 skip_pieces(u64 start)
{
	const struct gaol_memory *piece;
	bool moved;

	do {
		moved = false;
		list_for_each_entry(piece, &carved, list)
			if (start >= piece->physical &&
			    start < piece->physical + piece->size) {
				start = piece->physical + piece->size;
				moved = true;
			}
	} while (moved);
	return start;
}

/* The address where the first piece behind `start` begins. */
static u64 next_piece(u64 start)
{
	const struct gaol_memory *piece;
	u64 next = U64_MAX;

	list_for_each_entry(piece, &carved, list)
		if (piece->physical > start)
			next = min(next, piece->physical);
	return next;
}

struct gap {
	u64 start;
	u64 end;
};

/* The next free range from `start` on, across blocks that adjoin. */
static bool next_gap(u64 start, const struct file *holder, struct gap *gap)
{
	struct block *block;

	list_for_each_entry(block, &blocks, list) {
		if (!may_use(block, holder))
			continue;
		gap->start = skip_pieces(max(start, block->physical));
		if (gap->start >= end_of(block))
			continue;
		gap->end = end_of(block);
		list_for_each_entry_continue(block, &blocks, list) {
			if (block->physical != gap->end ||
			    !may_use(block, holder))
				break;
			gap->end = end_of(block);
		}
		gap->end = min(gap->end, next_piece(gap->start));
		return true;
	}
	return false;
}

/*
 * Carves a piece of `size` bytes, or else the largest when there may be less,
 * out of the smallest range that will do, below `end`. False: there is none.
 */
bool gaol_blocks_carve(struct gaol_memory *memory, size_t size, u64 end,
		       bool or_less, const struct file *holder)
{
	u64 alignment = size >= SZ_2M ? SZ_2M : PAGE_SIZE;
	struct gap gap, best = {};
	u64 most = 0;

	mutex_lock(&blocks_lock);
	for (gap.end = 0; next_gap(gap.end, holder, &gap);) {
		struct gap aligned = { ALIGN(gap.start, alignment),
				       min(gap.end, end) };
		u64 length;

		if (aligned.start >= aligned.end)
			continue;
		length = aligned.end - aligned.start;
		if (most >= size ? length >= size && length < most :
				   length > most) {
			best = aligned;
			most = length;
		}
	}
	if (or_less && most < size)
		size = ALIGN_DOWN(most, alignment);
	if (size && most >= size) {
		memory->physical = best.start;
		memory->size = size;
		list_add(&memory->list, &carved);
	}
	mutex_unlock(&blocks_lock);
	return size && most >= size;
}

void gaol_blocks_uncarve(struct gaol_memory *memory)
{
	mutex_lock(&blocks_lock);
	list_del(&memory->list);
	mutex_unlock(&blocks_lock);
}

/* Offers */

static bool is_sound(u64 physical)
{
	unsigned long pfn, first = PHYS_PFN(physical);

	if (region_intersects(physical, block_size, IORESOURCE_SYSTEM_RAM,
			      IORES_DESC_NONE) != REGION_INTERSECTS)
		return false;
	for (pfn = first; pfn < first + PFN_DOWN(block_size); pfn++) {
		struct page *page = pfn_to_online_page(pfn);

		/* Linux would let a page with a memory error go offline, too. */
		if (!page || PageHWPoison(page))
			return false;
		if (!(pfn & 0xfff))
			cond_resched();
	}
	return true;
}

static int offer_one(u64 physical, const struct file *holder)
{
	struct block *block = find_block(physical), *behind;

	if (block) {
		if (block->holder && block->holder != holder)
			return -EBUSY;
		block->holder = holder;
		return 0;
	}
	if (block_count == GAOL_DRIVER_MAX_MEMORY_BLOCKS)
		return -ENOSPC;
	block = kzalloc(sizeof(*block), GFP_KERNEL);
	if (!block)
		return -ENOMEM;
	block->physical = physical;
	block->holder = holder;
	list_for_each_entry(behind, &blocks, list)
		if (behind->physical > physical)
			break;
	list_add_tail(&block->list, &behind->list);
	block_count++;
	return 0;
}

/*
 * The holder is about to take these blocks offline. Those that it has offered
 * before are left out when they are still online.
 */
int gaol_blocks_offer(const u64 *addresses, unsigned int count, u64 size,
		      const struct file *holder)
{
	unsigned int index;
	int error = 0;

	if (!block_size || size != block_size)
		return -EINVAL;
	for (index = 0; index < count; index++)
		if (!IS_ALIGNED(addresses[index], block_size) ||
		    addresses[index] + block_size < addresses[index] ||
		    !is_sound(addresses[index]))
			return -EINVAL;
	gaol_blocks_let_go(holder, false);
	mutex_lock(&blocks_lock);
	for (index = 0; !error && index < count; index++)
		error = offer_one(addresses[index], holder);
	mutex_unlock(&blocks_lock);
	return error;
}

/* Forgets what the holder has offered and is online; all else is anyone's then. */
void gaol_blocks_let_go(const struct file *holder, bool for_good)
{
	struct block *block, *next;

	mutex_lock(&blocks_lock);
	list_for_each_entry_safe(block, next, &blocks, list) {
		if (block->holder != holder)
			continue;
		if (for_good)
			block->holder = NULL;
		if (block->state == BLOCK_ONLINE)
			forget(block);
	}
	mutex_unlock(&blocks_lock);
}

/* What Linux does with the blocks */

static int leave(struct block *block)
{
	if (block->state == BLOCK_ONLINE) {
		if (!try_module_get(THIS_MODULE))
			return NOTIFY_BAD;
		block->state = BLOCK_LEAVING;
	}
	return NOTIFY_OK;
}

static int come_back(struct block *block)
{
	if (is_in_use(block)) {
		pr_warn("the memory block at %#llx is a cell's or the hypervisor's\n",
			block->physical);
		return NOTIFY_BAD;
	}
	if (block->state == BLOCK_OFFLINE)
		block->state = BLOCK_RETURNING;
	return NOTIFY_OK;
}

static void become_online(struct block *block)
{
	bool was_away = block->state != BLOCK_ONLINE;

	block->state = BLOCK_ONLINE;
	if (!block->holder)
		forget(block);
	if (was_away)
		module_put(THIS_MODULE);
}

static int on_event(struct block *block, unsigned long event)
{
	switch (event) {
	case MEM_GOING_OFFLINE:
		return leave(block);
	case MEM_OFFLINE:
		if (block->state == BLOCK_LEAVING)
			block->state = BLOCK_OFFLINE;
		break;
	case MEM_CANCEL_OFFLINE:
		if (block->state == BLOCK_LEAVING)
			become_online(block);
		break;
	case MEM_GOING_ONLINE:
		return come_back(block);
	case MEM_CANCEL_ONLINE:
		if (block->state == BLOCK_RETURNING)
			block->state = BLOCK_OFFLINE;
		break;
	case MEM_ONLINE:
		become_online(block);
		break;
	}
	return NOTIFY_OK;
}

static int on_hotplug(struct notifier_block *notifier, unsigned long event,
		      void *data)
{
	const struct memory_notify *range = data;
	u64 start = PFN_PHYS(range->start_pfn);
	u64 end = start + PFN_PHYS(range->nr_pages);
	struct block *block, *next;
	int answer = NOTIFY_OK;

	mutex_lock(&blocks_lock);
	list_for_each_entry_safe(block, next, &blocks, list)
		if (answer == NOTIFY_OK && block->physical < end &&
		    end_of(block) > start)
			answer = on_event(block, event);
	mutex_unlock(&blocks_lock);
	return answer;
}

static struct notifier_block hotplug_notifier = {
	.notifier_call = on_hotplug,
};

/*
 * The blocks that are offline, one a line: address, size, and "used", "held" for a
 * request that is under way, or "idle": to be brought online.
 */
size_t gaol_blocks_tell(char *buffer, size_t size)
{
	struct block *block;
	size_t length = 0;

	mutex_lock(&blocks_lock);
	list_for_each_entry(block, &blocks, list)
		if (block->state != BLOCK_ONLINE)
			length += scnprintf(buffer + length, size - length,
					    "%#llx %#llx %s\n",
					    block->physical, block_size,
					    is_in_use(block) ? "used" :
					    block->holder ? "held" : "idle");
	mutex_unlock(&blocks_lock);
	return length;
}

int gaol_blocks_init(void)
{
	block_size = memory_block_size_bytes();
	return register_memory_notifier(&hotplug_notifier);
}

/* No block is offline: the module could not be unloaded. */
void gaol_blocks_exit(void)
{
	struct block *block, *next;

	unregister_memory_notifier(&hotplug_notifier);
	list_for_each_entry_safe(block, next, &blocks, list)
		forget(block);
}
