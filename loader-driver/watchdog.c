// SPDX-License-Identifier: GPL-2.0
/*
 * Watchdogs: looking at the heartbeat of cells, and starting them again.
 *
 * The hypervisor compares the heartbeats and keeps the time; this only asks it a
 * few times in each timeout, and does what the policy "restart" wants.
 *
 * Invariant: the work never waits for gaol.lock, which whoever cancels it holds.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/io.h>
#include <linux/mm.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "gaol.h"

/* Looks in each timeout. */
#define LOOKS		4
/* Restarts in a row after which the cell is left alone. */
#define MOST_RESTARTS	5
/* Good looks after which a restart is none in a row with the next any more. */
#define GOOD_LOOKS	(4 * LOOKS)

static void look(struct work_struct *work);

static bool is_watched(const struct gaol_cell *cell)
{
	return cell->watchdog.timeout != 0;
}

static bool restarts(const struct gaol_cell *cell)
{
	return is_watched(cell) &&
	       cell->watchdog.policy == GAOL_CONFIG_WATCHDOG_RESTART;
}

void gaol_watchdog_init(struct gaol_cell *cell,
			const struct gaol_cell_header *header)
{
	struct gaol_watchdog *watchdog = &cell->watchdog;

	watchdog->timeout = header->watchdog_milliseconds;
	watchdog->policy = header->watchdog_policy;
	INIT_LIST_HEAD(&watchdog->images);
	INIT_DELAYED_WORK(&watchdog->work, look);
}

/* What is loaded */

static void forget(struct gaol_watchdog *watchdog)
{
	struct gaol_kept_image *image, *next;

	list_for_each_entry_safe(image, next, &watchdog->images, list) {
		list_del(&image->list);
		kvfree(image);
	}
	watchdog->kept = 0;
	watchdog->was_started = false;
}

static int keep_one(struct gaol_watchdog *watchdog,
		    const struct gaol_load_image *from)
{
	struct gaol_kept_image *image =
		kvmalloc(struct_size(image, bytes, from->size), GFP_KERNEL);

	if (!image)
		return -ENOMEM;
	image->target = from->target;
	image->size = from->size;
	if (copy_from_user(image->bytes, u64_to_user_ptr(from->source),
			   from->size)) {
		kvfree(image);
		return -EFAULT;
	}
	list_add_tail(&image->list, &watchdog->images);
	watchdog->kept += from->size;
	return 0;
}

/* Would what is loaded be too large to be kept? The images lie in the cell. */
int gaol_watchdog_check_images(const struct gaol_cell *cell,
			       const struct gaol_load_image *images,
			       unsigned int count, struct gaol_outcome *outcome)
{
	u64 size = cell->watchdog.was_started ? 0 : cell->watchdog.kept;
	unsigned int index;

	if (!restarts(cell))
		return 0;
	for (index = 0; index < count; index++)
		size += images[index].size;
	if (size > GAOL_DRIVER_MAX_KEPT_BYTES)
		return gaol_refuse(outcome, GAOL_REASON_RESTART_TOO_LARGE,
				   size, -EFBIG);
	return 0;
}

/* Keeps what a cell is loaded with: for a restart. The first load after a start begins anew. */
int gaol_watchdog_keep(struct gaol_cell *cell,
		       const struct gaol_load_image *images, unsigned int count)
{
	struct gaol_watchdog *watchdog = &cell->watchdog;
	unsigned int index;
	int error = 0;

	if (!restarts(cell))
		return 0;
	if (watchdog->was_started)
		forget(watchdog);
	for (index = 0; !error && index < count; index++)
		error = keep_one(watchdog, &images[index]);
	return error;
}

static int load_again(struct gaol_cell *cell)
{
	struct gaol_kept_image *image;
	int error;

	list_for_each_entry(image, &cell->watchdog.images, list) {
		error = gaol_regions_write(cell, image->target, image->bytes,
					   image->size);
		if (error)
			return error;
	}
	return 0;
}

/* Looking */

static void look_later(struct gaol_cell *cell)
{
	unsigned int interval = cell->watchdog.timeout / LOOKS;

	queue_delayed_work(system_long_wq, &cell->watchdog.work,
			   max(msecs_to_jiffies(interval), 1ul));
}

/* The cell was started: by a user (`anew`), or again. gaol.lock is held. */
static void begin(struct gaol_cell *cell, bool anew)
{
	struct gaol_watchdog *watchdog = &cell->watchdog;

	watchdog->was_started = true;
	watchdog->good_looks = 0;
	watchdog->is_due = false;
	if (anew) {
		watchdog->in_a_row = 0;
		watchdog->given_up = false;
	}
	look_later(cell);
}

void gaol_watchdog_start(struct gaol_cell *cell)
{
	if (is_watched(cell))
		begin(cell, true);
}

/* Nobody looks any more when this returns. gaol.lock is held. */
void gaol_watchdog_stop(struct gaol_cell *cell)
{
	if (is_watched(cell))
		cancel_delayed_work_sync(&cell->watchdog.work);
}

void gaol_watchdog_free(struct gaol_cell *cell)
{
	if (is_watched(cell))
		forget(&cell->watchdog);
}

static long stop_by_force(const struct gaol_cell *cell)
{
	return gaol_hypercall_in_turn(GAOL_HYPERCALL_CELL_SET_LOADABLE,
				      cell->id, GAOL_HYPERCALL_DESTROY_FORCE,
				      NULL);
}

static void give_up(struct gaol_cell *cell, const char *why)
{
	cell->watchdog.given_up = true;
	pr_warn("cell %u \"%s\" is not started again: %s\n", cell->id,
	       cell->name, why);
}

/* gaol.lock is held. */
static void restart(struct gaol_cell *cell)
{
	struct gaol_watchdog *watchdog = &cell->watchdog;
	long result = stop_by_force(cell);

	if (result == -EBUSY || result == -EINPROGRESS) {
		look_later(cell);
		return;
	}
	watchdog->is_due = false;
	if (!result && watchdog->in_a_row >= MOST_RESTARTS) {
		give_up(cell, "it stood still after each of the last starts");
		return;
	}
	if (!result)
		result = load_again(cell);
	if (!result)
		result = gaol_hypercall_in_turn(GAOL_HYPERCALL_CELL_START,
						cell->id, 0, NULL);
	if (result) {
		give_up(cell, "it could not be stopped, loaded or started");
		return;
	}
	watchdog->restarts++;
	watchdog->in_a_row++;
	pr_warn("cell %u \"%s\" was started again\n", cell->id, cell->name);
	begin(cell, false);
}

static void look(struct work_struct *work)
{
	struct gaol_cell *cell = container_of(to_delayed_work(work),
					      struct gaol_cell, watchdog.work);
	struct gaol_watchdog *watchdog = &cell->watchdog;
	long answer = GAOL_WATCHDOG_ANSWER_EXPIRED;

	if (!watchdog->is_due)
		answer = gaol_hypercall(GAOL_HYPERCALL_WATCHDOG, cell->id, 0,
					NULL);
	switch (answer) {
	case GAOL_WATCHDOG_ANSWER_ALIVE:
		if (++watchdog->good_looks == GOOD_LOOKS)
			watchdog->in_a_row = 0;
		break;
	case GAOL_WATCHDOG_ANSWER_EXPIRED:
		if (!watchdog->is_due)
			pr_warn_ratelimited("cell %u \"%s\" has not changed its heartbeat in %u ms\n",
					    cell->id, cell->name,
					    watchdog->timeout);
		watchdog->good_looks = 0;
		if (!restarts(cell))
			break;
		watchdog->is_due = true;
		if (!mutex_trylock(&gaol.lock))
			break;
		restart(cell);
		mutex_unlock(&gaol.lock);
		return;
	case -EINPROGRESS:
		/* Another CPU is in a management call. */
		break;
	default:
		return;
	}
	look_later(cell);
}

/* Policy, timeout in milliseconds, expiries, restarts, and whether it was given up. */
size_t gaol_watchdog_tell(const struct gaol_cell *cell, u64 expired,
			  char *buffer)
{
	static const char *const names[] = {
		[GAOL_CONFIG_WATCHDOG_RECORD] = "record",
		[GAOL_CONFIG_WATCHDOG_RESTART] = "restart",
		[GAOL_CONFIG_WATCHDOG_HALT] = "halt",
	};
	const struct gaol_watchdog *watchdog = &cell->watchdog;

	if (!is_watched(cell))
		return sysfs_emit(buffer, "none\n");
	return sysfs_emit(buffer, "%s %u %llu %u %d\n",
			  watchdog->policy < ARRAY_SIZE(names) ?
				  names[watchdog->policy] : "unknown",
			  watchdog->timeout, expired,
			  READ_ONCE(watchdog->restarts),
			  READ_ONCE(watchdog->given_up));
}
