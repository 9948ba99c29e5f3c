// SPDX-License-Identifier: GPL-2.0
/*
 * Memory from a running Linux: memory-test IMAGE, with the image that reports
 * success, fake-hypervisor.ko and gaol-test.ko loaded, on a machine of 1 GiB.
 *
 * Ends with "memory-test: passed", or says what failed.
 */
#define PROGRAM "memory-test"
#include "cells.h"

#include <stdbool.h>
#include <sys/wait.h>

#define HOARD "/proc/gaol-test/hoard"
#define BLOCKS "/sys/devices/system/memory/"
#define RAM_FLAGS                                            \
	(GAOL_CONFIG_MEMORY_READ | GAOL_CONFIG_MEMORY_WRITE | \
	 GAOL_CONFIG_MEMORY_LOADABLE)

static uint64_t block_size;
/* Two blocks that Linux can do without, this and the next. */
static unsigned int spare;

/* A cell with one region, at guest-physical 0. */
struct cell {
	struct gaol_cell_header header;
	struct gaol_memory_region region;
	struct gaol_port_range port;
} __attribute__((packed));

struct piece {
	char name[GAOL_NAME_LENGTH];
	unsigned long physical, guest, size, flags;
};

static int create_through(int file, const char *name, int cpu, uint64_t size,
			  uint64_t memory_flags, uint32_t flags,
			  struct gaol_cell_create_request *request)
{
	struct cell cell = {
		.header = { .preamble = { .signature = GAOL_CONFIG_CELL_SIGNATURE,
					  .revision = GAOL_ABI_REVISION,
					  .total_size = sizeof(cell) },
			    .cpus = { 1UL << cpu },
			    .memory_region_count = 1,
			    .port_range_count = 1 },
		.region = { .name = "ram", .size = size, .flags = memory_flags },
		.port = { 0x3f8, 8 },
	};

	strncpy((char *)cell.header.name, name, GAOL_NAME_LENGTH - 1);
	cell.header.preamble.checksum =
		crc(&cell, sizeof(cell), GAOL_CONFIG_CHECKSUM_OFFSET);
	*request = (struct gaol_cell_create_request){
		.revision = GAOL_ABI_REVISION,
		.flags = flags,
		.config = (uintptr_t)&cell,
		.config_size = sizeof(cell),
	};
	return ioctl(file, GAOL_IOCTL_CELL_CREATE, request) ? -errno : 0;
}

static void create(const char *name, int cpu, uint64_t size, uint32_t flags)
{
	struct gaol_cell_create_request request;

	CHECK(!create_through(device, name, cpu, size, RAM_FLAGS, flags, &request),
	      "create %s: %m, reason %u, found %llu MiB", name,
	      request.outcome.reason, request.outcome.detail / MIB);
}

/* There is not as much, but `least` and more MiB. */
static void expect_shortage(uint64_t size, uint32_t flags, uint64_t least)
{
	struct gaol_cell_create_request request;
	long before = available_kib(), after;
	int result = create_through(device, "short", 1, size, RAM_FLAGS, flags,
				    &request);

	CHECK(result == -ENOMEM &&
		      request.outcome.reason == GAOL_REASON_CELL_MEMORY,
	      "%lu MiB: result %d, reason %u", size / MIB, result,
	      request.outcome.reason);
	CHECK(request.region == 0 && request.outcome.detail < size &&
		      request.outcome.detail >= least * MIB,
	      "%lu MiB: found %llu", size / MIB, request.outcome.detail);
	after = available_kib();
	CHECK(after > before - (16 << 10), "%ld KiB before, %ld after", before,
	      after);
	printf("%lu MiB refused, %llu MiB found\n", size / MIB,
	       request.outcome.detail / MIB);
}

static void destroy(const char *name)
{
	uint32_t reason;

	CHECK(!command(GAOL_IOCTL_CELL_DESTROY, -1, name, 0, &reason),
	      "destroy %s: %u", name, reason);
}

/* The pieces of the cell, which must be as they were promised. */
static unsigned int pieces_of(int cell, uint64_t size, struct piece *pieces)
{
	char path[64];
	const char *line;
	unsigned int count = 0;
	uint64_t guest = 0;

	snprintf(path, sizeof(path), SYSFS "cells/%d/memory", cell);
	line = text_of(path);
	for (; *line; line = strchr(line, '\n') + 1, count++) {
		struct piece *piece = &pieces[count];

		CHECK(count < GAOL_CONFIG_MAX_MEMORY_REGIONS &&
			      sscanf(line, "%31s %li %li %li %li", piece->name,
				     &piece->physical, &piece->guest,
				     &piece->size, &piece->flags) == 5,
		      "line %s", line);
		CHECK(!strcmp(piece->name, "ram") && piece->guest == guest &&
			      piece->physical % (2 * MIB) == 0 &&
			      !(piece->flags & GAOL_CONFIG_MEMORY_CONTINUED) ==
				      !count,
		      "piece %u: %s", count, line);
		for (unsigned int other = 0; other < count; other++)
			CHECK(piece->physical >= pieces[other].physical +
							 pieces[other].size ||
				      pieces[other].physical >=
					      piece->physical + piece->size,
			      "pieces %u and %u overlap", other, count);
		guest += piece->size;
	}
	CHECK(guest == size, "%lu bytes of %lu", guest, size);
	return count;
}

static void hoard(const char *what)
{
	CHECK(!try_to_write(HOARD, what), "hoard: %m");
}

/* Bytes of RAM as Linux counts them. */
static long total_kib(void)
{
	return atol(strstr(text_of("/proc/meminfo"), "MemTotal:") +
		    strlen("MemTotal:"));
}

/*
 * Free pages that a CPU keeps for itself do not count as free in any file. With
 * lists as long as Linux makes them they are more than the margins here.
 */
static void keep_lists_short(void)
{
	CHECK(!try_to_write("/proc/sys/vm/percpu_pagelist_high_fraction",
			    "100000"),
	      "percpu_pagelist_high_fraction: %m");
}

/*
 * Linux counts free pages for each CPU, and adds these up now and then only.
 */
static void expect_available(long least)
{
	unsigned int tries;

	for (tries = 0; tries < 100 && available_kib() <= least; tries++)
		usleep(100000);
	CHECK(available_kib() > least, "not all is back: %ld KiB of %ld",
	      available_kib(), least);
}

/* Blocks */

static int set_block(unsigned int number, const char *state)
{
	char path[64];

	snprintf(path, sizeof(path), BLOCKS "memory%u/state", number);
	return try_to_write(path, state);
}

static int offer_through(int file, const uint64_t *blocks, unsigned int count,
			 uint64_t size)
{
	struct gaol_memory_offer_request request = {
		.revision = GAOL_ABI_REVISION,
		.block_count = count,
		.blocks = (uintptr_t)blocks,
		.block_size = size,
	};

	return ioctl(file, GAOL_IOCTL_MEMORY_OFFER, &request) ? -errno : 0;
}

static void take_blocks(int file, unsigned int first, unsigned int count)
{
	uint64_t blocks[8];

	for (unsigned int index = 0; index < count; index++)
		blocks[index] = (first + index) * block_size;
	CHECK(!offer_through(file, blocks, count, block_size), "offer: %m");
	for (unsigned int index = 0; index < count; index++)
		CHECK(!set_block(first + index, "offline"), "offline %u: %m",
		      first + index);
}

static void expect_blocks(const char *expected)
{
	const char *text = text_of(SYSFS "memory_blocks");

	CHECK(!strcmp(text, expected), "blocks are \"%s\", not \"%s\"", text,
	      expected);
}

static const char *block_line(unsigned int number, const char *state)
{
	static char lines[4][64];
	static unsigned int next;
	char *line = lines[next++ % 4];

	snprintf(line, sizeof(lines[0]), "%#lx %#lx %s\n", number * block_size,
		 block_size, state);
	return line;
}

static void find_spare(void)
{
	for (spare = 1; spare < 7; spare++) {
		if (set_block(spare, "offline"))
			continue;
		CHECK(!set_block(spare, "online"), "online: %m");
		if (set_block(spare + 1, "offline"))
			continue;
		CHECK(!set_block(spare + 1, "online"), "online: %m");
		return;
	}
	CHECK(false, "there are no two blocks to spare");
}

static void refuse_offers(void)
{
	uint64_t block = spare * block_size, many[2] = { block, 1UL << 40 };

	CHECK(offer_through(device, &block, 1, block_size / 2) == -EINVAL,
	      "another size");
	block += 4096;
	CHECK(offer_through(device, &block, 1, block_size) == -EINVAL,
	      "not aligned");
	CHECK(offer_through(device, many, 2, block_size) == -EINVAL, "no RAM");
	block = -block_size;
	CHECK(offer_through(device, &block, 1, block_size) == -EINVAL,
	      "wrapping");
	block = 0xfee00000 / block_size * block_size;
	CHECK(offer_through(device, &block, 1, block_size) == -EINVAL,
	      "device registers");
	CHECK(offer_through(device, (void *)8, 1, block_size) == -EFAULT,
	      "from nowhere");
	CHECK(offer_through(device, NULL, GAOL_DRIVER_MAX_MEMORY_BLOCKS + 1,
			    block_size) == -E2BIG,
	      "too many");
	expect_blocks("");
	/* A block of which nobody was told is not for us. */
	CHECK(!set_block(spare, "offline"), "offline: %m");
	expect_blocks("");
	block = spare * block_size;
	CHECK(offer_through(device, &block, 1, block_size) == -EINVAL,
	      "offline already");
	CHECK(!set_block(spare, "online"), "online: %m");
	printf("offers are refused\n");
}

/* Steps */

static void contiguous(void)
{
	struct piece pieces[GAOL_CONFIG_MAX_MEMORY_REGIONS];
	long before = available_kib(), total = total_kib();

	create("big", 1, 300 * MIB, 0);
	CHECK(pieces_of(1, 300 * MIB, pieces) == 1, "in pieces");
	CHECK(available_kib() < before - (290 << 10), "nothing was taken");
	destroy("big");
	expect_available(before - (16 << 10));
	CHECK(total_kib() == total, "MemTotal has changed");
	create("odd", 1, 5 * MIB + 4096, GAOL_DRIVER_FLAG_PIECES);
	CHECK(pieces_of(1, 5 * MIB + 4096, pieces) == 1, "in pieces");
	destroy("odd");
	printf("contiguous: done\n");
}

static void fragmented(void)
{
	struct piece pieces[GAOL_CONFIG_MAX_MEMORY_REGIONS];
	long before = available_kib();
	unsigned int count;

	/* No 300 MiB in one piece, but plenty in a few. */
	hoard("0 40000000 4000000");
	expect_shortage(300 * MIB, 0, 32);
	create("pieces", 1, 300 * MIB + 4096, GAOL_DRIVER_FLAG_PIECES);
	count = pieces_of(1, 300 * MIB + 4096, pieces);
	CHECK(count > 4 && count < 20, "%u pieces", count);
	destroy("pieces");
	expect_available(before - (16 << 10));
	/* The pieces must not be more than there are places for. */
	hoard("0 40000000 600000");
	expect_shortage(400 * MIB, GAOL_DRIVER_FLAG_PIECES, 64);
	hoard("0");
	/* Hardly anything. */
	hoard("0 40000000 200000");
	expect_shortage(64 * MIB, GAOL_DRIVER_FLAG_PIECES, 0);
	hoard("0");
	create("whole", 1, 300 * MIB, 0);
	destroy("whole");
	expect_shortage(1UL << 40, GAOL_DRIVER_FLAG_PIECES, 256);
	printf("fragmented: done\n");
}

static void from_blocks(void)
{
	struct gaol_cell_create_request request;
	struct piece pieces[GAOL_CONFIG_MAX_MEMORY_REGIONS];
	long total = total_kib();
	int other = open("/dev/gaol", O_RDWR);
	uint64_t block = spare * block_size;
	char expected[256];

	CHECK(other >= 0, "/dev/gaol: %m");
	take_blocks(device, spare, 2);
	CHECK(total_kib() == total - (long)(2 * block_size >> 10), "MemTotal");
	snprintf(expected, sizeof(expected), "%s%s", block_line(spare, "held"),
		 block_line(spare + 1, "held"));
	expect_blocks(expected);
	CHECK(offer_through(other, &block, 1, block_size) == -EINVAL,
	      "taken from the holder");
	/* What one has taken is not for another. */
	CHECK(!create_through(other, "foreign", 2, 16 * MIB, RAM_FLAGS, 0,
			      &request),
	      "foreign: %m");
	pieces_of(1, 16 * MIB, pieces);
	CHECK(pieces[0].physical >= (spare + 2) * block_size ||
		      pieces[0].physical + 16 * MIB <= spare * block_size,
	      "foreign is at %#lx", pieces[0].physical);
	expect_blocks(expected);
	destroy("foreign");

	/* Across both, and a second one behind it. */
	create("first", 1, 200 * MIB, 0);
	CHECK(pieces_of(1, 200 * MIB, pieces) == 1 &&
		      pieces[0].physical == spare * block_size,
	      "first is at %#lx", pieces[0].physical);
	CHECK(!create_through(other, "second", 2, 16 * MIB, RAM_FLAGS, 0,
			      &request),
	      "second: %m");
	pieces_of(2, 16 * MIB, pieces);
	CHECK(pieces[0].physical < spare * block_size ||
		      pieces[0].physical >= (spare + 2) * block_size,
	      "second is in a block that is held");
	destroy("second");
	snprintf(expected, sizeof(expected), "%s%s", block_line(spare, "used"),
		 block_line(spare + 1, "used"));
	expect_blocks(expected);
	CHECK(set_block(spare, "online") < 0 && set_block(spare + 1, "online") < 0,
	      "Linux takes the memory back");
	expect_blocks(expected);

	/* More than is left in the blocks: the rest comes from elsewhere. */
	create("third", 2, 90 * MIB, GAOL_DRIVER_FLAG_PIECES);
	CHECK(pieces_of(2, 90 * MIB, pieces) == 1, "third is in pieces");
	destroy("third");
	destroy("first");
	snprintf(expected, sizeof(expected), "%s%s", block_line(spare, "held"),
		 block_line(spare + 1, "held"));
	expect_blocks(expected);
	CHECK(!set_block(spare + 1, "online"), "online: %m");
	expect_blocks(block_line(spare, "held"));
	CHECK(!set_block(spare, "online"), "online: %m");
	expect_blocks("");
	CHECK(total_kib() == total, "MemTotal is %ld, not %ld", total_kib(),
	      total);
	close(other);
	printf("from blocks: done\n");
}

/* Pieces of a block and of the allocator in one region. */
static void mixed(void)
{
	struct piece pieces[GAOL_CONFIG_MAX_MEMORY_REGIONS];
	unsigned int count;
	char around[64];

	snprintf(around, sizeof(around), "0 %lx 4000000", spare * block_size);
	hoard(around);
	snprintf(around, sizeof(around), "%lx 40000000 4000000",
		 (spare + 1) * block_size);
	hoard(around);
	take_blocks(device, spare, 1);
	create("mixed", 1, 300 * MIB, GAOL_DRIVER_FLAG_PIECES);
	count = pieces_of(1, 300 * MIB, pieces);
	CHECK(count > 2 && pieces[0].physical == spare * block_size &&
		      pieces[0].size == block_size,
	      "%u pieces, the first at %#lx", count, pieces[0].physical);
	destroy("mixed");
	hoard("0");
	CHECK(!set_block(spare, "online"), "online: %m");
	expect_blocks("");
	printf("mixed: done\n");
}

static void wait_for_child(int child)
{
	int status;

	CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status),
	      "the child has ended with %#x", status);
}

/* A process that dies on the way leaves nothing that is lost. */
static void killed(void)
{
	struct piece pieces[GAOL_CONFIG_MAX_MEMORY_REGIONS];
	uint64_t block = (spare + 1) * block_size;
	int child;

	CHECK(!offer_through(device, NULL, 0, block_size), "let go: %m");
	child = fork();
	if (!child) {
		int file = open("/dev/gaol", O_RDWR);

		take_blocks(file, spare, 1);
		CHECK(!offer_through(file, &block, 1, block_size), "offer: %m");
		raise(SIGKILL);
	}
	wait_for_child(child);
	expect_blocks(block_line(spare, "idle"));
	/* The one that stayed online is forgotten: this is not ours. */
	CHECK(!set_block(spare + 1, "offline"), "offline: %m");
	expect_blocks(block_line(spare, "idle"));
	CHECK(!set_block(spare + 1, "online"), "online: %m");
	/* What is idle is used first. */
	create("heir", 1, 64 * MIB, 0);
	pieces_of(1, 64 * MIB, pieces);
	CHECK(pieces[0].physical == spare * block_size, "heir is at %#lx",
	      pieces[0].physical);
	destroy("heir");
	CHECK(!set_block(spare, "online"), "online: %m");
	expect_blocks("");
	printf("killed: done\n");
}

/* Cells with a region of one name and size have the same memory there. */
static void shared(void)
{
	struct piece first[GAOL_CONFIG_MAX_MEMORY_REGIONS];
	struct piece second[GAOL_CONFIG_MAX_MEMORY_REGIONS];
	struct gaol_cell_create_request request;
	uint64_t flags = RAM_FLAGS | GAOL_CONFIG_MEMORY_SHARED;
	unsigned int count;

	hoard("0 40000000 4000000");
	CHECK(!create_through(device, "one", 1, 100 * MIB, flags,
			      GAOL_DRIVER_FLAG_PIECES, &request),
	      "one: %m");
	CHECK(create_through(device, "two", 2, 90 * MIB, flags, 0, &request) ==
			      -EINVAL &&
		      request.outcome.reason ==
			      GAOL_REASON_SHARED_REGION_DIFFERS,
	      "another size: %u", request.outcome.reason);
	CHECK(!create_through(device, "two", 2, 100 * MIB, flags, 0, &request),
	      "two: %m");
	count = pieces_of(1, 100 * MIB, first);
	CHECK(count > 1 && pieces_of(2, 100 * MIB, second) == count,
	      "%u pieces", count);
	for (unsigned int index = 0; index < count; index++)
		CHECK(first[index].physical == second[index].physical,
		      "piece %u", index);
	/* The memory stays with the one that is left. */
	destroy("one");
	CHECK(!create_through(device, "one", 1, 100 * MIB, flags, 0, &request),
	      "one again: %m");
	CHECK(pieces_of(1, 100 * MIB, first) == count &&
		      first[0].physical == second[0].physical,
	      "it was given away");
	destroy("two");
	destroy("one");
	hoard("0");
	printf("shared: done\n");
}

int main(int count, char **arguments)
{
	struct gaol_outcome outcome;
	long before;

	setvbuf(stdout, NULL, _IOLBF, 0);
	CHECK(count == 2, "usage: memory-test IMAGE");
	load_image_file(arguments[1]);
	device = open("/dev/gaol", O_RDWR);
	CHECK(device >= 0, "/dev/gaol: %m");
	block_size = strtoul(text_of(BLOCKS "block_size_bytes"), NULL, 16);
	CHECK(block_size == 128 * MIB, "blocks of %lu bytes", block_size);
	find_spare();
	keep_lists_short();
	before = available_kib();
	refuse_offers();
	enable();
	contiguous();
	fragmented();
	from_blocks();
	mixed();
	killed();
	shared();
	CHECK(!disable(0, &outcome), "disable: %m");
	CHECK(available_kib() > before - (32 << 10), "%ld KiB before, %ld after",
	      before, available_kib());
	CHECK(!strcmp(text_of(FAKE "bad"), "0\n"), "bad calls: %s",
	      text_of(FAKE "bad"));
	printf("memory-test: passed\n");
	return 0;
}
