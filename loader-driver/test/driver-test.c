// SPDX-License-Identifier: GPL-2.0
/*
 * Drives /dev/gaol without a hypervisor: driver-test ROUNDS IMAGE [PHYSICAL]
 *
 * With PHYSICAL the memory is what memmap= has reserved there. The world switch ROUNDS times with the image that turns back; then whatever
 * the module must refuse. Ends with "driver-test: passed", or says what failed.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "gaol_abi.h"

#define REGION_SIZE (4UL << 20)

static int device;
static unsigned char image[1 << 20];
static size_t image_size;
static struct gaol_system_header config;
static unsigned long reserved;

static void fail(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	printf("driver-test: FAILED: ");
	vprintf(format, arguments);
	printf("\n");
	exit(1);
}

#define CHECK(condition, ...)                \
	do {                                 \
		if (!(condition))            \
			fail(__VA_ARGS__);   \
	} while (0)

static uint32_t crc(const void *bytes, size_t size, size_t hole)
{
	uint32_t value = ~0U;

	for (size_t index = 0; index < size; index++) {
		value ^= index - hole < 4 ? 0 :
					    ((const unsigned char *)bytes)[index];
		for (int bit = 0; bit < 8; bit++)
			value = value >> 1 ^ (value & 1 ? 0xedb88320 : 0);
	}
	return ~value;
}

static void seal_image(void)
{
	struct gaol_image_header *header = (void *)image;

	header->checksum = crc(image, image_size, GAOL_IMAGE_CHECKSUM_OFFSET);
}

static void seal_config(void)
{
	config.preamble.checksum =
		crc(&config, sizeof(config), GAOL_CONFIG_CHECKSUM_OFFSET);
}

static void fill_config(void)
{
	memset(&config, 0, sizeof(config));
	memcpy(config.preamble.signature, GAOL_CONFIG_SYSTEM_SIGNATURE, 8);
	config.preamble.revision = GAOL_ABI_REVISION;
	config.preamble.total_size = sizeof(config);
	memcpy(config.name, "root", 5);
	config.hypervisor_size = REGION_SIZE;
	config.hypervisor_physical = reserved;
	seal_config();
}

static struct gaol_enable_request enable_request(void)
{
	struct gaol_enable_request request = {
		.revision = GAOL_ABI_REVISION,
		.image = (uintptr_t)image,
		.image_size = image_size,
		.config = (uintptr_t)&config,
		.config_size = sizeof(config),
	};

	return request;
}

/* MemFree would tell less: caches come and go. */
static long available_kib(void)
{
	char line[128];
	long value = 0;
	FILE *file = fopen("/proc/meminfo", "r");

	while (fgets(line, sizeof(line), file))
		if (sscanf(line, "MemAvailable: %ld", &value) == 1)
			break;
	fclose(file);
	return value;
}

static void expect_refusal(const char *what, uint32_t reason, int error)
{
	struct gaol_enable_request request = enable_request();
	int result = ioctl(device, GAOL_IOCTL_ENABLE, &request);

	CHECK(result == -1 && errno == error && request.outcome.reason == reason,
	      "%s: result %d, error %d, reason %u (wanted %d, %u)", what, result,
	      errno, request.outcome.reason, error, reason);
	printf("%s: refused\n", what);
}

/* Runs on each CPU in turn: all of them must still take orders. */
static void visit_all_cpus(void)
{
	int cpus = sysconf(_SC_NPROCESSORS_ONLN);

	CHECK(cpus == sysconf(_SC_NPROCESSORS_CONF), "%d CPUs are online", cpus);
	for (int cpu = 0; cpu < cpus; cpu++) {
		cpu_set_t set;

		CPU_ZERO(&set);
		CPU_SET(cpu, &set);
		CHECK(!sched_setaffinity(0, sizeof(set), &set) &&
			      sched_getcpu() == cpu,
		      "CPU %d is out of reach", cpu);
	}
}

static void switch_worlds(int rounds)
{
	unsigned long long nmis = 0;
	long before = available_kib(), after;
	struct gaol_ring_entry entries[32];
	static const char said[] = "turned back\n";
	const int length = sizeof(said) - 1;
	int reader = open("/dev/gaol", O_RDWR | O_NONBLOCK);

	for (int round = 0; round < rounds; round++) {
		struct gaol_enable_request request = enable_request();
		int result = ioctl(device, GAOL_IOCTL_ENABLE, &request);

		CHECK(result == -1 && errno == EIO, "round %d: result %d, %m",
		      round, result);
		CHECK(request.outcome.reason == GAOL_REASON_FAULT_INJECTED &&
			      request.outcome.step == GAOL_LAUNCH_STEP_ARRIVE,
		      "round %d: reason %u, step %u, detail %#llx", round,
		      request.outcome.reason, request.outcome.step,
		      (unsigned long long)request.outcome.detail);
		CHECK(request.cycles, "no time has passed");
		nmis += request.outcome.detail;
		visit_all_cpus();
		CHECK(read(reader, entries, sizeof(entries)) ==
			      length * (int)sizeof(*entries),
		      "the console has another length");
		for (int index = 0; index < length; index++)
			CHECK(entries[index].character == said[index] &&
				      entries[index].source ==
					      GAOL_PUBLIC_RING_BY_HYPERVISOR,
			      "character %d: %#x of %u", index,
			      entries[index].character, entries[index].source);
		CHECK(read(reader, entries, sizeof(entries)) == -1 &&
			      errno == EAGAIN,
		      "text from nowhere");
	}
	CHECK(nmis > (unsigned long long)rounds, "only %llu NMIs came in", nmis);
	close(reader);
	after = available_kib();
	/* Freed pages in lists by CPU do not count; regions lost each time would. */
	CHECK(after > before - rounds * (long)(REGION_SIZE >> 10) / 2,
	      "%ld KiB of memory before, %ld after", before, after);
	printf("%d times there and back, %llu NMIs on the way, %ld KiB before, %ld after\n",
	       rounds, nmis, before, after);
}

static void refuse_images(void)
{
	struct gaol_image_header *header = (void *)image, saved = *header;

	header->signature[0] ^= 1;
	expect_refusal("signature of the image", GAOL_REASON_IMAGE_INVALID, EINVAL);
	*header = saved;
	header->abi_revision++;
	seal_image();
	expect_refusal("revision of the image", GAOL_REASON_IMAGE_REVISION, EINVAL);
	*header = saved;
	header->vendor ^= 3;
	seal_image();
	expect_refusal("vendor of the image", GAOL_REASON_IMAGE_VENDOR, ENODEV);
	*header = saved;
	image[image_size - 1] ^= 1;
	expect_refusal("damaged image", GAOL_REASON_IMAGE_INVALID, EINVAL);
	image[image_size - 1] ^= 1;
	image_size -= 1;
	expect_refusal("truncated image", GAOL_REASON_IMAGE_INVALID, EINVAL);
	image_size += 1;
	header->entry = header->memory_size;
	seal_image();
	expect_refusal("entry outside the text", GAOL_REASON_IMAGE_INVALID, EINVAL);
	*header = saved;
	header->memory_size = -4096ULL;
	seal_image();
	expect_refusal("endless image", GAOL_REASON_IMAGE_INVALID, EINVAL);
	*header = saved;
	header->cpu_area_size = 1 << 20;
	header->data_size = 0;
	seal_image();
	config.hypervisor_size = 2 << 20;
	seal_config();
	expect_refusal("small region", GAOL_REASON_HYPERVISOR_MEMORY_TOO_SMALL, ENOMEM);
	fill_config();
	*header = saved;
}

static void refuse_configs(void)
{
	struct gaol_enable_request request;

	config.preamble.signature[0] ^= 1;
	expect_refusal("signature of the configuration",
		       GAOL_REASON_CONFIGURATION_INVALID, EINVAL);
	fill_config();
	config.preamble.revision++;
	expect_refusal("revision of the configuration",
		       GAOL_REASON_CONFIGURATION_REVISION, EINVAL);
	fill_config();
	config.console_kind ^= 1;
	expect_refusal("checksum of the configuration",
		       GAOL_REASON_CONFIGURATION_CHECKSUM, EINVAL);
	fill_config();
	config.name[0] = 0;
	seal_config();
	expect_refusal("no name", GAOL_REASON_NAME_INVALID, EINVAL);
	fill_config();
	config.hypervisor_physical = 32 << 20;
	seal_config();
	expect_refusal("memory of Linux", GAOL_REASON_MEMORY_NOT_RESERVED, EBUSY);
	fill_config();
	config.hypervisor_physical = -(2UL << 20);
	seal_config();
	expect_refusal("wrapping memory", GAOL_REASON_MEMORY_NOT_RESERVED, EBUSY);
	fill_config();
	config.hypervisor_physical += 4096;
	seal_config();
	expect_refusal("unaligned memory", GAOL_REASON_CONFIGURATION_INVALID, EINVAL);
	fill_config();
	config.hypervisor_size = 1UL << 30;
	config.hypervisor_physical = 0;
	seal_config();
	expect_refusal("all memory", GAOL_REASON_HYPERVISOR_MEMORY, ENOMEM);
	fill_config();

	request = enable_request();
	request.config_size = 10;
	CHECK(ioctl(device, GAOL_IOCTL_ENABLE, &request) == -1 &&
		      request.outcome.reason == GAOL_REASON_CONFIGURATION_INVALID,
	      "truncated configuration: %m");
	request = enable_request();
	request.config_size = 1 << 20;
	CHECK(ioctl(device, GAOL_IOCTL_ENABLE, &request) == -1 &&
		      request.outcome.reason == GAOL_REASON_CONFIGURATION_TOO_BIG,
	      "long configuration: %m");
	request = enable_request();
	request.image = 0xffff800000000000;
	CHECK(ioctl(device, GAOL_IOCTL_ENABLE, &request) == -1 && errno == EFAULT,
	      "image of the kernel: %m");
	request = enable_request();
	request.image = 8;
	CHECK(ioctl(device, GAOL_IOCTL_ENABLE, &request) == -1 && errno == EFAULT,
	      "image nowhere: %m");
	request = enable_request();
	request.image_size = -1;
	CHECK(ioctl(device, GAOL_IOCTL_ENABLE, &request) == -1 && errno == EINVAL,
	      "endless image: %m");
	request = enable_request();
	request.revision++;
	CHECK(ioctl(device, GAOL_IOCTL_ENABLE, &request) == -1 && errno == EINVAL,
	      "revision of the request: %m");
}

static void refuse_offline_cpu(void)
{
	int file = open("/sys/devices/system/cpu/cpu1/online", O_WRONLY);

	CHECK(file >= 0 && write(file, "0", 1) == 1, "CPU 1 stays online: %m");
	expect_refusal("CPU 1 offline", GAOL_REASON_CPU_OFFLINE, EBUSY);
	CHECK(write(file, "1", 1) == 1, "CPU 1 stays offline: %m");
	close(file);
}

static void refuse_while_disabled(void)
{
	static const unsigned long commands[] = {
		GAOL_IOCTL_DISABLE, GAOL_IOCTL_CELL_START,
		GAOL_IOCTL_CELL_SHUTDOWN, GAOL_IOCTL_CELL_DESTROY,
	};
	struct gaol_cell_command command;
	struct gaol_cell_create_request create = {
		.revision = GAOL_ABI_REVISION,
		.config = (uintptr_t)&config,
		.config_size = sizeof(config),
	};
	struct gaol_cell_load_request load = { .revision = GAOL_ABI_REVISION };
	struct pollfd waiter = { .fd = device, .events = POLLIN };

	for (size_t index = 0; index < sizeof(commands) / sizeof(*commands);
	     index++) {
		memset(&command, 0, sizeof(command));
		command.revision = GAOL_ABI_REVISION;
		CHECK(ioctl(device, commands[index], &command) == -1 &&
			      command.outcome.reason == GAOL_REASON_NOT_ENABLED,
		      "command %zu while disabled: %m", index);
		command.flags = 2;
		CHECK(ioctl(device, commands[index], &command) == -1 &&
			      errno == EINVAL,
		      "flags of command %zu: %m", index);
	}
	CHECK(ioctl(device, GAOL_IOCTL_CELL_CREATE, &create) == -1 &&
		      create.outcome.reason == GAOL_REASON_NOT_ENABLED,
	      "create while disabled: %m");
	CHECK(ioctl(device, GAOL_IOCTL_CELL_LOAD, &load) == -1 &&
		      load.outcome.reason == GAOL_REASON_NOT_ENABLED,
	      "load while disabled: %m");
	load.image_count = 1 << 30;
	CHECK(ioctl(device, GAOL_IOCTL_CELL_LOAD, &load) == -1 && errno == E2BIG,
	      "many images: %m");
	CHECK(mmap(NULL, 4096, PROT_READ, MAP_SHARED, device, 0) == MAP_FAILED,
	      "the first page can be mapped");
	CHECK(mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, device, 1 << 20) ==
		      MAP_FAILED,
	      "the second MiB can be mapped");
	for (unsigned int number = 0; number < 0x4000; number++) {
		unsigned long random = (unsigned long)rand() << 16 ^ rand();

		/* Wrong sizes and directions, and no request at all. */
		if ((number & 0xff) <= 6)
			continue;
		CHECK(ioctl(device, 'G' << 8 | (number & 0xff) |
					    (random & 0xffff0000),
			    random) == -1,
		      "ioctl %#x is taken", number);
	}
	CHECK(ioctl(device, GAOL_IOCTL_ENABLE, 0) == -1 && errno == EFAULT,
	      "request nowhere: %m");
	CHECK(poll(&waiter, 1, 0) == 0 || waiter.revents == POLLIN, "poll: %m");
}

int main(int count, char **arguments)
{
	FILE *file;

	setvbuf(stdout, NULL, _IOLBF, 0);
	CHECK(count >= 3 && atoi(arguments[1]) >= 10,
	      "usage: driver-test ROUNDS IMAGE [PHYSICAL], 10 rounds or more");
	if (count > 3)
		reserved = strtoul(arguments[3], NULL, 0);
	file = fopen(arguments[2], "rb");
	CHECK(file, "%s: %m", arguments[2]);
	image_size = fread(image, 1, sizeof(image), file);
	fclose(file);
	seal_image();
	fill_config();
	device = open("/dev/gaol", O_RDWR);
	CHECK(device >= 0, "/dev/gaol: %m");

	refuse_while_disabled();
	refuse_configs();
	refuse_images();
	refuse_offline_cpu();
	switch_worlds(atoi(arguments[1]));
	printf("driver-test: passed\n");
	return 0;
}
