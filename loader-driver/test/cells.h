/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the programs share that lead a life of cells: PROGRAM is the name of the
 * one that includes this.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "gaol_abi.h"

#define MIB (1UL << 20)
#define SYSFS "/sys/devices/gaol/"
#define FAKE "/sys/module/fake_hypervisor/parameters/"

#define CHECK(condition, ...)                                        \
	do {                                                         \
		if (!(condition)) {                                  \
			printf(PROGRAM ": FAILED, line %d: ", __LINE__); \
			printf(__VA_ARGS__);                         \
			printf("\n");                                \
			exit(1);                                     \
		}                                                    \
	} while (0)

static int device;
static unsigned char image[1 << 20];
static size_t image_size;

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

static const char *text_of(const char *path)
{
	static char text[1 << 16];
	int file = open(path, O_RDONLY);
	ssize_t size, done = 0;

	CHECK(file >= 0, "%s: %m", path);
	while ((size = read(file, text + done, sizeof(text) - 1 - done)) > 0)
		done += size;
	CHECK(size >= 0, "%s: %m", path);
	text[done] = 0;
	close(file);
	return text;
}

static int try_to_write(const char *path, const char *text)
{
	int file = open(path, O_WRONLY);
	int result;

	CHECK(file >= 0, "%s: %m", path);
	result = write(file, text, strlen(text)) < 0 ? -errno : 0;
	close(file);
	return result;
}

static long available_kib(void)
{
	const char *line = strstr(text_of("/proc/meminfo"), "MemAvailable:");

	return atol(line + strlen("MemAvailable:"));
}

static void enable(void)
{
	struct gaol_image_header *header = (void *)image;
	struct gaol_system_header system = {
		.preamble = { .signature = GAOL_CONFIG_SYSTEM_SIGNATURE,
			      .revision = GAOL_ABI_REVISION,
			      .total_size = sizeof(system) },
		.name = "root",
		.hypervisor_size = 4 * MIB,
	};
	struct gaol_enable_request request = {
		.revision = GAOL_ABI_REVISION,
		.image = (uintptr_t)image,
		.image_size = image_size,
		.config = (uintptr_t)&system,
		.config_size = sizeof(system),
	};

	header->checksum = crc(image, image_size, GAOL_IMAGE_CHECKSUM_OFFSET);
	system.preamble.checksum =
		crc(&system, sizeof(system), GAOL_CONFIG_CHECKSUM_OFFSET);
	CHECK(!ioctl(device, GAOL_IOCTL_ENABLE, &request), "enable: %m, reason %u",
	      request.outcome.reason);
	CHECK(request.region_physical && request.region_size == 4 * MIB,
	      "region %#llx", (unsigned long long)request.region_physical);
	CHECK(ioctl(device, GAOL_IOCTL_ENABLE, &request) == -1 &&
		      request.outcome.reason == GAOL_REASON_ALREADY_ENABLED,
	      "enabled twice");
}

static int disable(uint32_t flags, struct gaol_outcome *outcome)
{
	struct gaol_cell_command command = { .revision = GAOL_ABI_REVISION,
					     .flags = flags };
	int result = ioctl(device, GAOL_IOCTL_DISABLE, &command);

	*outcome = command.outcome;
	return result ? -errno : 0;
}

static int command(unsigned long number, int id, const char *name,
		   uint32_t flags, uint32_t *reason)
{
	struct gaol_cell_command command = { .revision = GAOL_ABI_REVISION,
					     .flags = flags,
					     .cell.id = id };
	int result;

	strncpy((char *)command.cell.name, name, sizeof(command.cell.name) - 1);
	result = ioctl(device, number, &command) ? -errno : 0;
	*reason = command.outcome.reason;
	return result;
}

static void load_image_file(const char *path)
{
	FILE *file = fopen(path, "rb");

	CHECK(file, "%s: %m", path);
	image_size = fread(image, 1, sizeof(image), file);
	fclose(file);
}
