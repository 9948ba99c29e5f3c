// SPDX-License-Identifier: GPL-2.0
/*
 * The hypervisor's console as a stream of ring entries: characters, each with
 * who printed it. Whoever reads the stream puts lines together.
 *
 * Invariant: the ring is read under console_lock while the hypervisor is there,
 * and from a copy when it has gone. Each reader has a position of its own; it
 * begins anew with each launch, and is told how many characters it has missed.
 */
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>
#include <linux/wait.h>
#include <linux/workqueue.h>

#include "gaol.h"

#define RING_BYTES	(GAOL_PUBLIC_RING_PAGES * GAOL_PAGE_SIZE)
#define POLL_INTERVAL	(HZ / 10)
#define CHUNK		512
#define NOTE		64

struct reader {
	struct mutex lock;
	u64 launch;
	u64 position;
	/*
	 * Entries that were taken from the ring, and the bytes of them that were
	 * not yet handed to user space.
	 */
	size_t start;
	size_t end;
	struct gaol_ring_entry entries[CHUNK + NOTE];
};

static DEFINE_MUTEX(console_lock);
static const void *ring;
static void *copy;
/* Number of launches so far. */
static u64 launches;
static DECLARE_WAIT_QUEUE_HEAD(readers);

static void tick(struct work_struct *work)
{
	wake_up_interruptible_all(&readers);
}

static DECLARE_DELAYED_WORK(ticker, tick);

static u64 written(void)
{
	const struct gaol_ring_header *header = ring;

	return ring ? smp_load_acquire(&header->written) : 0;
}

static u64 oldest_of(u64 end)
{
	return end > GAOL_PUBLIC_RING_ENTRIES ? end - GAOL_PUBLIC_RING_ENTRIES : 0;
}

/* Called with console_lock held, where `position` has been written. */
static struct gaol_ring_entry entry_at(u64 position)
{
	const struct gaol_ring_entry *entries =
		ring + GAOL_PUBLIC_RING_ENTRIES_OFFSET;

	return READ_ONCE(entries[position % GAOL_PUBLIC_RING_ENTRIES]);
}

/* Tells the reader what it has missed. Returns the entries that this takes. */
static size_t put_note(struct reader *reader, u64 missed)
{
	char note[NOTE];
	int index, length;

	length = scnprintf(note, sizeof(note),
			   "<missed %llu characters of the console>\n", missed);
	for (index = 0; index < length; index++)
		reader->entries[index] = (struct gaol_ring_entry){
			.character = note[index],
			.source = GAOL_PUBLIC_RING_BY_HYPERVISOR,
		};
	return length;
}

/* Takes the next piece from the ring, with a note when the ring ran over. */
static void refill(struct reader *reader)
{
	size_t count, index, size = 0;
	u64 end, oldest;

	reader->start = 0;
	reader->end = 0;
	mutex_lock(&console_lock);
	if (reader->launch != launches) {
		reader->launch = launches;
		reader->position = 0;
	}
	end = written();
	oldest = oldest_of(end);
	if (reader->position < oldest) {
		size = put_note(reader, oldest - reader->position);
		reader->position = oldest;
	}
	count = min_t(u64, end - reader->position, CHUNK);
	for (index = 0; index < count; index++)
		reader->entries[size + index] =
			entry_at(reader->position + index);
	/* What was overwritten while it was read is missed, not told wrongly. */
	smp_rmb();
	if (reader->position >= oldest_of(written())) {
		reader->position += count;
		size += count;
	}
	reader->end = size * sizeof(*reader->entries);
	mutex_unlock(&console_lock);
}

static bool has_text(struct reader *reader)
{
	bool has;

	if (reader->start < reader->end)
		return true;
	mutex_lock(&console_lock);
	has = written() > (reader->launch == launches ? reader->position : 0);
	mutex_unlock(&console_lock);
	return has;
}

ssize_t gaol_console_read(struct file *file, char __user *buffer, size_t size,
			  loff_t *offset)
{
	struct reader *reader = file->private_data;
	ssize_t done = 0;

	if (!size)
		return 0;
	if (mutex_lock_interruptible(&reader->lock))
		return -ERESTARTSYS;
	while (!has_text(reader)) {
		if (file->f_flags & O_NONBLOCK) {
			done = -EAGAIN;
			goto out;
		}
		schedule_timeout_interruptible(POLL_INTERVAL);
		if (signal_pending(current)) {
			done = -ERESTARTSYS;
			goto out;
		}
	}
	while (done < size) {
		size_t piece;

		if (reader->start == reader->end)
			refill(reader);
		if (reader->start == reader->end)
			break;
		piece = min_t(size_t, size - done, reader->end - reader->start);
		if (copy_to_user(buffer + done, (char *)reader->entries + reader->start,
				 piece)) {
			done = done ? done : -EFAULT;
			break;
		}
		reader->start += piece;
		done += piece;
		cond_resched();
	}
	/* Overtaken by the writer at once: nothing to tell this time. */
	if (!done)
		done = -EAGAIN;
out:
	mutex_unlock(&reader->lock);
	return done;
}

__poll_t gaol_console_poll(struct file *file, poll_table *wait)
{
	struct reader *reader = file->private_data;

	poll_wait(file, &readers, wait);
	if (has_text(reader))
		return EPOLLIN | EPOLLRDNORM;
	/* The hypervisor wakes nobody, so look again in a while. */
	schedule_delayed_work(&ticker, POLL_INTERVAL);
	return 0;
}

int gaol_console_open(struct file *file)
{
	struct reader *reader = kzalloc(sizeof(*reader), GFP_KERNEL);

	if (!reader)
		return -ENOMEM;
	mutex_init(&reader->lock);
	file->private_data = reader;
	return 0;
}

void gaol_console_release(struct file *file)
{
	struct reader *reader = file->private_data;

	mutex_destroy(&reader->lock);
	kfree(reader);
}

/* The last text that fits, as it came. Returns its length. */
size_t gaol_console_tail(char *buffer, size_t size)
{
	size_t index;
	u64 end;

	mutex_lock(&console_lock);
	end = written();
	size = min3((u64)size, end, (u64)GAOL_PUBLIC_RING_ENTRIES);
	for (index = 0; index < size; index++)
		buffer[index] = entry_at(end - size + index).character;
	mutex_unlock(&console_lock);
	return size;
}

/* From now on the ring is in the public pages. */
void gaol_console_attach(const void *public)
{
	mutex_lock(&console_lock);
	ring = public + GAOL_PUBLIC_RING_OFFSET;
	launches++;
	mutex_unlock(&console_lock);
}

/* The public pages are about to go: keep the last text. */
void gaol_console_detach(void)
{
	mutex_lock(&console_lock);
	if (ring && ring != copy) {
		memcpy(copy, ring, RING_BYTES);
		ring = copy;
	}
	mutex_unlock(&console_lock);
}

int gaol_console_init(void)
{
	copy = vzalloc(RING_BYTES);
	return copy ? 0 : -ENOMEM;
}

void gaol_console_exit(void)
{
	cancel_delayed_work_sync(&ticker);
	vfree(copy);
}
