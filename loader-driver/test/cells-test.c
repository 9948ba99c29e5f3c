// SPDX-License-Identifier: GPL-2.0
/*
 * The life of cells as the module leads it: cells-test IMAGE, with the image that
 * reports success and fake-hypervisor.ko loaded.
 *
 * Ends with "cells-test: passed", or says what failed. With a second argument it
 * ends with the hypervisor enabled and a cell alive: for a reboot.
 */
#define PROGRAM "cells-test"
#include "cells.h"

#define CELL_PATH SYSFS "cells/1/"

static struct {
	struct gaol_cell_header header;
	struct gaol_memory_region regions[4];
	struct gaol_port_range ports[1];
} __attribute__((packed)) config;

static void seal(void)
{
	config.header.preamble.total_size = sizeof(config);
	config.header.preamble.checksum =
		crc(&config, sizeof(config), GAOL_CONFIG_CHECKSUM_OFFSET);
}

/* RAM in two adjoining regions, shared memory, communication region; CPU 1. */
static void fill(void)
{
	memset(&config, 0, sizeof(config));
	memcpy(config.header.preamble.signature, GAOL_CONFIG_CELL_SIGNATURE, 8);
	config.header.preamble.revision = GAOL_ABI_REVISION;
	memcpy(config.header.name, "test", 5);
	config.header.cpus[0] = 2;
	config.header.memory_region_count = 4;
	config.header.port_range_count = 1;
	config.regions[0] = (struct gaol_memory_region){
		.name = "low", .guest = 0, .size = MIB,
		.flags = GAOL_CONFIG_MEMORY_READ | GAOL_CONFIG_MEMORY_WRITE |
			 GAOL_CONFIG_MEMORY_EXECUTE | GAOL_CONFIG_MEMORY_LOADABLE };
	config.regions[1] = config.regions[0];
	config.regions[1].guest = MIB;
	config.regions[1].size = 16 * MIB;
	memcpy(config.regions[1].name, "high", 5);
	config.regions[2] = (struct gaol_memory_region){
		.name = "shared", .guest = 1024 * MIB, .size = 16384,
		.flags = GAOL_CONFIG_MEMORY_READ | GAOL_CONFIG_MEMORY_WRITE |
			 GAOL_CONFIG_MEMORY_ROOT_SHARED };
	config.regions[3] = (struct gaol_memory_region){
		.name = "comm", .guest = 2048 * MIB, .size = 4096,
		.flags = GAOL_CONFIG_MEMORY_READ | GAOL_CONFIG_MEMORY_WRITE |
			 GAOL_CONFIG_MEMORY_COMMUNICATION };
	config.ports[0] = (struct gaol_port_range){ 0x3f8, 8 };
	seal();
}

static int create(struct gaol_cell_create_request *request)
{
	*request = (struct gaol_cell_create_request){
		.revision = GAOL_ABI_REVISION,
		.config = (uintptr_t)&config,
		.config_size = sizeof(config),
	};
	return ioctl(device, GAOL_IOCTL_CELL_CREATE, request) ? -errno : 0;
}

/* Linux keeps freed pages in lists by CPU that do not count, so ask several times. */
static void expect_failure(const char *what, uint32_t reason, const char *call)
{
	struct gaol_cell_create_request request;
	long before = available_kib(), after;
	int result, attempt;

	seal();
	for (attempt = 0; attempt < 8; attempt++) {
		try_to_write(FAKE "fail", call);
		result = create(&request);
		CHECK(result < 0 && request.outcome.reason == reason,
		      "%s: result %d, reason %u (wanted %u)", what, result,
		      request.outcome.reason, reason);
		seal();
	}
	CHECK(!strcmp(text_of("/sys/devices/system/cpu/online"), "0-3\n"),
	      "%s: CPUs %s", what, text_of("/sys/devices/system/cpu/online"));
	after = available_kib();
	CHECK(after > before - (32 << 10), "%s: %ld KiB before, %ld after", what,
	      before, after);
	printf("%s: refused\n", what);
	fill();
}

static void expect_refusal(const char *what, uint32_t reason)
{
	expect_failure(what, reason, "-1");
}

static int load(uint64_t target, const void *source, size_t size,
		uint32_t *reason)
{
	struct gaol_load_image piece = { (uintptr_t)source, size, target };
	struct gaol_cell_load_request request = {
		.revision = GAOL_ABI_REVISION,
		.image_count = 1,
		.cell = { .id = -1, .name = "test" },
		.images = (uintptr_t)&piece,
	};
	int result = ioctl(device, GAOL_IOCTL_CELL_LOAD, &request) ? -errno : 0;

	*reason = request.outcome.reason;
	return result;
}

/* Physical address of a region, as sysfs tells it. */
static unsigned long physical_of(const char *name)
{
	const char *line = strstr(text_of(CELL_PATH "memory"), name);

	CHECK(line, "no region %s", name);
	return strtoul(line + strlen(name), NULL, 0);
}

static void refuse_configurations(void)
{
	config.header.preamble.signature[0] = 'X';
	expect_refusal("signature", GAOL_REASON_CONFIGURATION_INVALID);
	config.header.preamble.revision++;
	expect_refusal("revision", GAOL_REASON_CONFIGURATION_REVISION);
	config.header.memory_region_count =
		GAOL_CONFIG_MAX_MEMORY_REGIONS + 1;
	expect_refusal("many regions", GAOL_REASON_CONFIGURATION_INVALID);
	config.header.memory_region_count = -1;
	expect_refusal("endless regions", GAOL_REASON_CONFIGURATION_INVALID);
	config.header.port_range_count = 2;
	expect_refusal("more ports than given", GAOL_REASON_CONFIGURATION_INVALID);
	memset(config.header.name, 'x', sizeof(config.header.name));
	expect_refusal("endless name", GAOL_REASON_NAME_INVALID);
	memcpy(config.header.name, "root", 5);
	expect_refusal("name of the root cell", GAOL_REASON_CELL_EXISTS);
	config.header.cpus[0] = 0;
	expect_refusal("no CPU", GAOL_REASON_NO_CPU);
	config.header.cpus[0] = 3;
	expect_refusal("CPU 0", GAOL_REASON_CPU_ZERO);
	config.header.cpus[3] = 1;
	expect_refusal("CPU 192", GAOL_REASON_CPU_UNKNOWN);
	config.regions[1].size++;
	expect_refusal("unaligned size", GAOL_REASON_REGION_INVALID);
	config.regions[1].guest = -4096UL;
	expect_refusal("wrapping region", GAOL_REASON_REGION_INVALID);
	config.regions[1].flags = 1 << 20;
	expect_refusal("unknown flag", GAOL_REASON_REGION_INVALID);
	config.regions[1].size = 1UL << 40;
	expect_refusal("a TiB of memory", GAOL_REASON_CELL_MEMORY);
	config.regions[1].physical = 64 * MIB;
	expect_refusal("memory of Linux", GAOL_REASON_MEMORY_NOT_RESERVED);
	config.regions[2].physical = 64 * MIB;
	expect_refusal("shared memory of Linux", GAOL_REASON_MEMORY_NOT_RESERVED);
	config.regions[2].flags |= GAOL_CONFIG_MEMORY_DEVICE;
	config.regions[2].physical = 64 * MIB;
	expect_refusal("device in memory", GAOL_REASON_MEMORY_NOT_RESERVED);
}

static void fail_in_the_hypervisor(void)
{
	/* The reason is what the image has left in the public pages. */
	expect_failure("creation fails", GAOL_REASON_FAULT_INJECTED, "1");
	/* CPU and memory come back also when the first step has succeeded. */
	expect_failure("scrubbing fails", GAOL_REASON_FAULT_INJECTED, "257");
}

static void look_around(void)
{
	CHECK(!strcmp(text_of(CELL_PATH "name"), "test\n"), "name");
	CHECK(!strcmp(text_of(CELL_PATH "state"), "shut down\n"), "state");
	CHECK(!strcmp(text_of(CELL_PATH "cpus_assigned_list"), "1\n"), "CPUs");
	CHECK(!strcmp(text_of(CELL_PATH "cpus_failed_list"), "\n"), "failed");
	CHECK(!strcmp(text_of(SYSFS "cells/0/cpus_assigned_list"), "0,2-3\n"),
	      "CPUs of the root cell");
	CHECK(!strcmp(text_of(SYSFS "cells/0/state"), "running\n"), "root");
	CHECK(!strcmp(text_of(CELL_PATH "statistics/vmexits_total"), "0\n"),
	      "exits");
	text_of(CELL_PATH "statistics/cpu1/vmexits_kicks");
	CHECK(access(CELL_PATH "statistics/cpu2", F_OK), "CPU 2 is here, too");
	CHECK(!strcmp(text_of(SYSFS "enabled"), "1\n"), "enabled");
	CHECK(!strcmp(text_of("/sys/devices/system/cpu/online"), "0,2-3\n"),
	      "CPU 1 is online");
	CHECK(try_to_write("/sys/devices/system/cpu/cpu1/online", "1") == -EBUSY,
	      "Linux takes the CPU back");
	CHECK(try_to_write("/sys/power/state", "mem") < 0, "sleep");
}

static void load_and_compare(void)
{
	static unsigned char pattern[3 * MIB];
	uint32_t reason;

	for (size_t index = 0; index < sizeof(pattern); index++)
		pattern[index] = index * 2654435761U >> 24;
	CHECK(load(17 * MIB - 1, pattern, 2, &reason) < 0 &&
		      reason == GAOL_REASON_LOAD_OUTSIDE,
	      "load beyond the end: reason %u", reason);
	CHECK(load(1024 * MIB, pattern, 1, &reason) < 0 &&
		      reason == GAOL_REASON_LOAD_OUTSIDE,
	      "load where nothing is loadable: reason %u", reason);
	CHECK(load(0, pattern, -1UL, &reason) < 0 &&
		      reason == GAOL_REASON_LOAD_OUTSIDE,
	      "endless load: reason %u", reason);
	CHECK(load(0, (void *)8, 4096, &reason) == -EFAULT, "load from nowhere");
	CHECK(!load(MIB / 2, pattern, sizeof(pattern), &reason),
	      "load across two regions: %u", reason);
}

/* A mapping outlives its cell and keeps its memory. */
static unsigned char *map_shared(void)
{
	unsigned long shared = physical_of("shared"), high = physical_of("high");
	unsigned char *memory;

	CHECK(high % (2 * MIB) == 0, "high is at %#lx", high);
	CHECK(mmap(NULL, 4096, PROT_READ, MAP_SHARED, device, high) == MAP_FAILED,
	      "memory of the cell can be mapped");
	CHECK(mmap(NULL, 32768, PROT_READ, MAP_SHARED, device, shared) ==
		      MAP_FAILED,
	      "more than the region can be mapped");
	CHECK(mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, device, shared) ==
		      MAP_FAILED,
	      "a private mapping");
	memory = mmap(NULL, 16384, PROT_READ | PROT_WRITE, MAP_SHARED, device,
		      shared);
	CHECK(memory != MAP_FAILED, "mmap: %m");
	memset(memory, 0x5a, 16384);
	return memory;
}

static void check_mapping(unsigned char *memory)
{
	/* Someone else would write to it if it had been given back. */
	char *others = malloc(64 * MIB);

	memset(others, 0xa5, 64 * MIB);
	for (int index = 0; index < 16384; index++)
		CHECK(memory[index] == 0x5a, "mapped memory was given away");
	free(others);
	munmap(memory, 8192);
	munmap(memory + 8192, 8192);
}

static void live_once(void)
{
	struct gaol_cell_create_request request, second;
	struct gaol_outcome outcome;
	unsigned char *memory;
	uint32_t reason;

	CHECK(!create(&request), "create: %m, reason %u", request.outcome.reason);
	CHECK(request.id == 1 && request.cycles && request.scrub_cycles,
	      "id %d", request.id);
	look_around();
	CHECK(create(&second) == -EEXIST &&
		      second.outcome.reason == GAOL_REASON_CELL_EXISTS &&
		      second.outcome.detail == 1,
	      "created twice");
	memcpy(config.header.name, "other", 6);
	seal();
	CHECK(create(&second) == -EBUSY &&
		      second.outcome.reason == GAOL_REASON_CPU_OWNED,
	      "CPU taken twice: %u", second.outcome.reason);
	/* Another cell that names the shared memory by its address. */
	config.header.cpus[0] = 4;
	config.regions[2].physical = physical_of("shared");
	seal();
	CHECK(!create(&second), "second cell: %m, reason %u",
	      second.outcome.reason);
	CHECK(!command(GAOL_IOCTL_CELL_DESTROY, -1, "other", 0, &reason),
	      "destroy the second: %u", reason);
	fill();

	memory = map_shared();
	load_and_compare();
	CHECK(!command(GAOL_IOCTL_CELL_START, 1, "", 0, &reason), "start");
	CHECK(!command(GAOL_IOCTL_CELL_SHUTDOWN, -1, "test", 1, &reason), "stop");
	CHECK(command(GAOL_IOCTL_CELL_START, -1, "none", 0, &reason) == -ENOENT &&
		      reason == GAOL_REASON_NO_SUCH_CELL,
	      "no such name");
	CHECK(command(GAOL_IOCTL_CELL_START, 7, "", 0, &reason) == -ENOENT,
	      "no such id");
	CHECK(command(GAOL_IOCTL_CELL_DESTROY, 0, "", 1, &reason) < 0 &&
		      reason == GAOL_REASON_ROOT_CELL,
	      "the root cell");
	CHECK(disable(0, &outcome) == -EBUSY &&
		      outcome.reason == GAOL_REASON_CELLS_EXIST &&
		      outcome.detail == 1,
	      "disabled with a cell");
	try_to_write(FAKE "fail", "4");
	CHECK(command(GAOL_IOCTL_CELL_DESTROY, -1, "test", 0, &reason) == -EIO,
	      "destroy fails");
	look_around();
	CHECK(!command(GAOL_IOCTL_CELL_DESTROY, -1, "test", 0, &reason),
	      "destroy: %u", reason);
	CHECK(access(CELL_PATH, F_OK), "the cell is still in sysfs");
	CHECK(!strcmp(text_of("/sys/devices/system/cpu/online"), "0-3\n"),
	      "CPU 1 did not come back");
	check_mapping(memory);
}

/* Other CPUs are in a call of their own each time that the module comes. */
static void live_among_others(void)
{
	struct gaol_cell_create_request request;
	uint32_t reason;

	try_to_write(FAKE "busy", "3");
	CHECK(!create(&request), "create among others: %u",
	      request.outcome.reason);
	try_to_write(FAKE "busy", "3");
	CHECK(!strcmp(text_of(CELL_PATH "state"), "shut down\n"),
	      "state among others: %s", text_of(CELL_PATH "state"));
	try_to_write(FAKE "busy", "3");
	CHECK(!command(GAOL_IOCTL_CELL_START, -1, "test", 0, &reason),
	      "start among others: %u", reason);
	try_to_write(FAKE "busy", "3");
	CHECK(!command(GAOL_IOCTL_CELL_SHUTDOWN, -1, "test", 1, &reason),
	      "shutdown among others: %u", reason);
	/* One that never ends is told of. */
	try_to_write(FAKE "busy", "100000");
	CHECK(command(GAOL_IOCTL_CELL_START, -1, "test", 0, &reason) ==
		      -EINPROGRESS,
	      "start beside an endless call");
	try_to_write(FAKE "busy", "3");
	CHECK(!command(GAOL_IOCTL_CELL_DESTROY, -1, "test", 1, &reason),
	      "destroy among others: %u", reason);
	CHECK(!strcmp(text_of(FAKE "busy"), "0\n"), "%s are left",
	      text_of(FAKE "busy"));
}

int main(int count, char **arguments)
{
	struct gaol_cell_create_request request;
	struct gaol_outcome outcome;
	long before, after;
	int round;

	setvbuf(stdout, NULL, _IOLBF, 0);
	CHECK(count >= 2, "usage: cells-test IMAGE [stay]");
	load_image_file(arguments[1]);
	device = open("/dev/gaol", O_RDWR);
	CHECK(device >= 0, "/dev/gaol: %m");
	fill();

	before = available_kib();
	for (round = 0; round < 3; round++) {
		enable();
		if (!round) {
			refuse_configurations();
			fail_in_the_hypervisor();
			live_among_others();
		}
		live_once();
		try_to_write(FAKE "fail", "0");
		CHECK(disable(0, &outcome) == -EIO, "disable fails");
		CHECK(!create(&request), "create: %u", request.outcome.reason);
		CHECK(!disable(GAOL_DRIVER_FLAG_FORCE, &outcome),
		      "disable by force: %m, %u", outcome.reason);
		CHECK(!strcmp(text_of(SYSFS "enabled"), "0\n"), "enabled");
		CHECK(access(SYSFS "cells/0", F_OK), "the root cell is left");
	}
	after = available_kib();
	CHECK(after > before - (32 << 10), "%ld KiB before, %ld after", before, after);
	CHECK(!strcmp(text_of(FAKE "bad"), "0\n"), "bad calls: %s",
	      text_of(FAKE "bad"));
	printf("%ld KiB before, %ld after\n", before, after);
	if (count > 2) {
		enable();
		CHECK(!create(&request), "create: %u", request.outcome.reason);
	}
	printf("cells-test: passed\n");
	return 0;
}
