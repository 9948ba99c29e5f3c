// SPDX-License-Identifier: GPL-2.0
/*
 * PCI functions of cells as the module handles them: pci-test IMAGE, with the
 * image that reports success, fake-hypervisor.ko and Linux' driver e1000e loaded,
 * and one network card of that kind behind a root port.
 *
 * Ends with "pci-test: passed", or says what failed.
 */
#define PROGRAM "pci-test"
#include "cells.h"

#include <dirent.h>
#include <limits.h>

#define BUS "/sys/bus/pci/"
#define CARD_ID "0x10d3"
#define ROUNDS 100

static struct {
	struct gaol_cell_header header;
	struct gaol_memory_region regions[1];
	struct gaol_msr_access msrs[1];
	struct gaol_interrupt interrupts[2];
	struct gaol_assigned_device devices[2];
} __attribute__((packed)) config;

/* "0000:01:00.0", and of the port above it. */
static char card[16], port[16];

static const char *path(const char *format, const char *of)
{
	static char paths[4][PATH_MAX];
	static unsigned int next;
	char *at = paths[next++ % 4];

	snprintf(at, PATH_MAX, format, of);
	return at;
}

/* The last part of what a link leads to; "-": there is none. */
static const char *target(const char *link)
{
	static char text[PATH_MAX];
	ssize_t size = readlink(link, text, sizeof(text) - 1);

	if (size < 0)
		return "-";
	text[size] = 0;
	return strrchr(text, '/') ? strrchr(text, '/') + 1 : text;
}

static const char *driver_of(const char *function)
{
	return target(path(BUS "devices/%s/driver", function));
}

static void expect_driver(const char *wanted, const char *when)
{
	const char *driver = driver_of(card);

	CHECK(!strcmp(driver, wanted), "%s: the driver is %s, not %s", when,
	      driver, wanted);
}

static void expect_told(const char *wanted, const char *when)
{
	const char *told = text_of(SYSFS "pci_functions");

	CHECK(!strcmp(told, wanted), "%s: told is \"%s\", not \"%s\"", when,
	      told, wanted);
}

static void find_card(void)
{
	DIR *devices = opendir(BUS "devices");
	struct dirent *entry;
	char link[PATH_MAX];

	CHECK(devices, BUS "devices: %m");
	while ((entry = readdir(devices))) {
		if (entry->d_name[0] == '.' ||
		    strncmp(text_of(path(BUS "devices/%s/device", entry->d_name)),
			    CARD_ID, 6))
			continue;
		snprintf(card, sizeof(card), "%.12s", entry->d_name);
	}
	closedir(devices);
	CHECK(card[0], "there is no card");
	CHECK(realpath(path(BUS "devices/%s/..", card), link), "%s: %m", card);
	snprintf(port, sizeof(port), "%.12s", strrchr(link, '/') + 1);
}

static struct gaol_assigned_device device_at(const char *address)
{
	unsigned int segment, bus, slot, function;

	CHECK(sscanf(address, "%x:%x:%x.%x", &segment, &bus, &slot,
		     &function) == 4, "%s is no address", address);
	return (struct gaol_assigned_device){
		.segment = segment,
		.function = bus << 8 | slot << 3 | function,
	};
}

/* A cell with these functions; the second may be NULL. */
static void fill(const char *first, const char *second)
{
	memset(&config, 0, sizeof(config));
	memcpy(config.header.preamble.signature, GAOL_CONFIG_CELL_SIGNATURE, 8);
	config.header.preamble.revision = GAOL_ABI_REVISION;
	memcpy(config.header.name, "test", 5);
	config.header.cpus[0] = 2;
	config.header.memory_region_count = 1;
	config.header.msr_count = 1;
	config.header.interrupt_count = 2;
	config.header.device_count = second ? 2 : 1;
	config.regions[0] = (struct gaol_memory_region){
		.name = "ram", .size = MIB,
		.flags = GAOL_CONFIG_MEMORY_READ | GAOL_CONFIG_MEMORY_WRITE |
			 GAOL_CONFIG_MEMORY_EXECUTE };
	config.devices[0] = device_at(first);
	if (second)
		config.devices[1] = device_at(second);
}

static int create(struct gaol_cell_create_request *request)
{
	size_t size = sizeof(config) -
		      (2 - config.header.device_count) * sizeof(config.devices[0]);

	config.header.preamble.total_size = size;
	config.header.preamble.checksum =
		crc(&config, size, GAOL_CONFIG_CHECKSUM_OFFSET);
	*request = (struct gaol_cell_create_request){
		.revision = GAOL_ABI_REVISION,
		.config = (uintptr_t)&config,
		.config_size = size,
	};
	return ioctl(device, GAOL_IOCTL_CELL_CREATE, request) ? -errno : 0;
}

static void must_create(void)
{
	struct gaol_cell_create_request request;

	CHECK(!create(&request), "create: %m, reason %u", request.outcome.reason);
}

static void must_destroy(void)
{
	uint32_t reason;

	CHECK(!command(GAOL_IOCTL_CELL_DESTROY, -1, "test", 1, &reason),
	      "destroy: %u", reason);
}

static void expect_refusal(const char *what, uint32_t reason)
{
	struct gaol_cell_create_request request;

	CHECK(create(&request) < 0 && request.outcome.reason == reason,
	      "%s: reason %u (wanted %u)", what, request.outcome.reason, reason);
	expect_driver("e1000e", what);
	expect_told("", what);
	printf("%s: refused\n", what);
}

/* The name of the network interface, once it is there. */
static const char *interface(void)
{
	static char name[64];
	int attempt;

	for (attempt = 0; attempt < 100; attempt++) {
		DIR *net = opendir(path(BUS "devices/%s/net", card));
		struct dirent *entry;

		name[0] = 0;
		while (net && (entry = readdir(net)))
			if (entry->d_name[0] != '.')
				snprintf(name, sizeof(name), "%.60s",
					 entry->d_name);
		if (net)
			closedir(net);
		if (name[0])
			return name;
		usleep(100000);
	}
	CHECK(0, "there is no network interface");
	return name;
}

static void run(const char *line, const char *of)
{
	const char *text = path(line, of);

	CHECK(!system(text), "\"%s\" failed", text);
}

/* What Linux has of the card: address, link, interrupts, and packets that come. */
static void use_card(char *address, size_t size)
{
	const char *name = interface();
	int attempt;

	snprintf(address, size, "%s", text_of(path("/sys/class/net/%s/address", name)));
	run("ifconfig %s 10.0.2.15 up", name);
	for (attempt = 0; attempt < 100; attempt++) {
		if (text_of(path("/sys/class/net/%s/carrier", name))[0] == '1')
			break;
		usleep(100000);
	}
	CHECK(attempt < 100, "there is no carrier");
	CHECK(strstr(text_of("/proc/interrupts"), name), "it has no interrupt");
	/* QEMU's user network answers. */
	run("ping -c 3 -W 5 10.0.2.2 >/dev/null # %s", name);
}

static void life(void)
{
	char before[64], after[64], told[128], told_lost[128];
	uint32_t reason;

	use_card(before, sizeof(before));
	fill(card, NULL);
	must_create();
	expect_driver("gaol", "created");
	snprintf(told, sizeof(told), "%s e1000e held test\n", card);
	expect_told(told, "created");
	/* Nobody takes it from there. */
	CHECK(access(path(BUS "drivers/gaol/%s", card), F_OK) == 0, "not there");
	CHECK(access(BUS "drivers/gaol/unbind", F_OK), "it can be unbound");
	CHECK(try_to_write(BUS "drivers/e1000e/bind", card) < 0, "taken back");
	try_to_write(BUS "drivers_probe", card);
	expect_driver("gaol", "probed");
	must_destroy();
	expect_driver("e1000e", "destroyed");
	expect_told("", "destroyed");
	use_card(after, sizeof(after));
	CHECK(!strcmp(before, after), "its address was %s and is %s", before,
	      after);
	printf("given back\n");

	/* A creation that fails gives it back as well. */
	try_to_write(FAKE "fail", "1");
	CHECK(({ struct gaol_cell_create_request request; create(&request); }) < 0,
	      "create does not fail");
	expect_driver("e1000e", "failed");
	expect_told("", "failed");

	/* Without a driver it goes back to none. */
	run("echo %s >" BUS "drivers/e1000e/unbind", card);
	must_create();
	expect_driver("gaol", "without a driver");
	must_destroy();
	expect_driver("-", "without a driver");
	try_to_write(BUS "drivers_probe", card);
	expect_driver("e1000e", "probed again");

	/* Pulled out while a cell has it, and put in again. */
	must_create();
	run("echo 1 >" BUS "devices/%s/remove", card);
	snprintf(told, sizeof(told), "%s e1000e gone test\n", card);
	expect_told(told, "removed");
	CHECK(command(GAOL_IOCTL_CELL_DESTROY, -1, "test", 1, &reason) < 0 &&
		      reason == GAOL_REASON_DEVICE_GONE,
	      "destroy without the card: %u", reason);
	expect_told("", "destroyed without the card");
	run("echo 1 >" BUS "rescan # %s", card);
	expect_driver("e1000e", "found again");

	/*
	 * It does not answer any more, since the port above leads nowhere. Nobody
	 * gets it until it was removed and found again.
	 */
	must_create();
	run("printf '\\0\\0\\0' | dd of=" BUS "devices/%s/config bs=1 seek=24 conv=notrunc 2>/dev/null",
	    port);
	CHECK(command(GAOL_IOCTL_CELL_DESTROY, -1, "test", 1, &reason) < 0 &&
		      reason == GAOL_REASON_DEVICE_GONE,
	      "destroy of a lost card: %u", reason);
	snprintf(told_lost, sizeof(told_lost), "%s e1000e lost \n", card);
	expect_told(told_lost, "lost");
	expect_driver("gaol", "lost");
	{
		struct gaol_cell_create_request request;

		CHECK(create(&request) < 0 && request.outcome.reason ==
						      GAOL_REASON_DEVICE_NOT_TAKEN,
		      "given away although lost: %u", request.outcome.reason);
	}
	run("echo 1 >" BUS "devices/%s/remove", card);
	expect_told("", "lost and removed");
	run("printf '\\0\\1\\1' | dd of=" BUS "devices/%s/config bs=1 seek=24 conv=notrunc 2>/dev/null",
	    port);
	run("echo 1 >" BUS "rescan # %s", card);
	expect_driver("e1000e", "lost and found");
	use_card(after, sizeof(after));
	CHECK(!strcmp(before, after), "its address was %s and is %s", before,
	      after);
	printf("lost and found\n");
}

int main(int count, char **arguments)
{
	struct gaol_outcome outcome;
	char address[64];
	long before, after;
	int round;

	setvbuf(stdout, NULL, _IOLBF, 0);
	CHECK(count >= 2, "usage: pci-test IMAGE");
	load_image_file(arguments[1]);
	device = open("/dev/gaol", O_RDWR);
	CHECK(device >= 0, "/dev/gaol: %m");
	find_card();
	printf("%s behind %s\n", card, port);
	enable();

	fill(port, NULL);
	expect_refusal("a bridge", GAOL_REASON_DEVICE_IS_BRIDGE);
	fill("0000:00:00.0", NULL);
	expect_refusal("the host bridge", GAOL_REASON_DEVICE_IS_BRIDGE);
	fill("0000:7f:00.0", NULL);
	expect_refusal("no function", GAOL_REASON_DEVICE_UNKNOWN);
	fill("0000:00:01.0", NULL);
	expect_refusal("a VGA adapter", GAOL_REASON_DEVICE_NOT_TAKEN);
	/* The first was taken by then. */
	fill(card, "0000:7f:00.0");
	expect_refusal("no second function", GAOL_REASON_DEVICE_UNKNOWN);
	life();

	fill(card, NULL);
	before = available_kib();
	for (round = 0; round < ROUNDS; round++) {
		must_create();
		must_destroy();
		expect_driver("e1000e", "cycle");
	}
	after = available_kib();
	CHECK(after > before - (16 << 10), "%ld KiB before, %ld after", before, after);
	use_card(address, sizeof(address));
	printf("%d cycles: %ld KiB before, %ld after\n", ROUNDS, before, after);

	/* Disabling by force returns it, too. */
	must_create();
	CHECK(!disable(GAOL_DRIVER_FLAG_FORCE, &outcome), "disable: %u",
	      outcome.reason);
	expect_driver("e1000e", "disabled");
	CHECK(!strcmp(text_of(FAKE "bad"), "0\n"), "bad calls: %s",
	      text_of(FAKE "bad"));
	printf("pci-test: passed\n");
	return 0;
}
