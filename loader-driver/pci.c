// SPDX-License-Identifier: GPL-2.0
/*
 * PCI functions of cells, as far as Linux has a part in it.
 *
 * Invariant: from before a cell gets a function until after it has given it back,
 * a driver of this module has it in Linux, so that no other driver does. What it
 * had before gets it back. A function that does not come back stays with this
 * driver, and is nobody's, until it is removed.
 *
 * All that takes or returns is done under gaol.lock. Linux removes devices at any
 * time, with the device's lock held, which is an outer lock to nothing here: what
 * that changes is under functions_lock.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/device.h>
#include <linux/pci.h>
#include <linux/slab.h>
#include <linux/spinlock.h>

#include "gaol.h"

struct function {
	struct list_head list;
	struct pci_dev *device;
	/* NULL: it did not come back from its cell, and is nobody's. */
	const struct gaol_cell *cell;
	/* The driver that it came from; empty: it had none. */
	char driver[40];
	/* Linux has lost it meanwhile. */
	bool gone;
	/* It goes back, and is removed from this driver for that. */
	bool leaves;
};

/* Ids that the driver was made to know; there is no way to make it forget one. */
struct known_id {
	struct list_head list;
	u16 vendor;
	u16 device;
};

static LIST_HEAD(functions);
static DEFINE_SPINLOCK(functions_lock);
static LIST_HEAD(known_ids);
/* The one that the driver takes next. */
static struct pci_dev *wanted;

static struct function *find(const struct pci_dev *device)
{
	struct function *function;

	list_for_each_entry(function, &functions, list)
		if (function->device == device)
			return function;
	return NULL;
}

static void drop(struct function *function)
{
	pci_dev_put(function->device);
	kfree(function);
}

/* Others of the same kind are offered as well, and are not for us. */
static int probe(struct pci_dev *device, const struct pci_device_id *id)
{
	if (READ_ONCE(wanted) != device)
		return -ENODEV;
	pci_set_power_state(device, PCI_D0);
	pci_clear_master(device);
	return pci_save_state(device);
}

static void forget(struct pci_dev *device)
{
	struct function *function;
	const char *owner = NULL;

	spin_lock(&functions_lock);
	function = find(device);
	if (function && !function->leaves) {
		if (function->cell) {
			owner = function->cell->name;
			function->gone = true;
			function = NULL;
		} else {
			list_del(&function->list);
		}
	} else {
		function = NULL;
	}
	if (owner)
		pci_err(device, "removed while cell \"%s\" has it: destroy the cell\n",
			owner);
	spin_unlock(&functions_lock);
	if (function)
		drop(function);
}

static struct pci_driver function_driver = {
	.name = "gaol",
	.probe = probe,
	.remove = forget,
	/* It has nothing mapped, and never will. */
	.driver_managed_dma = true,
	.driver = {
		/* Nobody unbinds what a cell has. */
		.suppress_bind_attrs = true,
		.probe_type = PROBE_FORCE_SYNCHRONOUS,
	},
};

static bool is_ours(const struct pci_dev *device)
{
	return READ_ONCE(device->dev.driver) == &function_driver.driver;
}

static int know(const struct pci_dev *device)
{
	struct known_id *id;
	int error;

	list_for_each_entry(id, &known_ids, list)
		if (id->vendor == device->vendor &&
		    id->device == device->device)
			return 0;
	id = kzalloc(sizeof(*id), GFP_KERNEL);
	if (!id)
		return -ENOMEM;
	id->vendor = device->vendor;
	id->device = device->device;
	/* This offers all that have no driver, so the wanted one may be ours then. */
	error = pci_add_dynid(&function_driver, id->vendor, id->device,
			      PCI_ANY_ID, PCI_ANY_ID, 0, 0, 0);
	if (error) {
		kfree(id);
		return error;
	}
	list_add(&id->list, &known_ids);
	return 0;
}

static int attach(struct pci_dev *device)
{
	int error;

	WRITE_ONCE(wanted, device);
	error = know(device);
	if (!error && !is_ours(device))
		error = device_driver_attach(&function_driver.driver,
					     &device->dev);
	WRITE_ONCE(wanted, NULL);
	if (!error && !is_ours(device))
		error = -EBUSY;
	return error;
}

/* Lets Linux choose a driver again, which is the one that it had. */
static void let_linux_have(struct pci_dev *device, const char *driver)
{
	int found;

	if (!driver[0])
		return;
	found = device_attach(&device->dev);
	if (found <= 0)
		pci_warn(device, "%s does not take it back: error %d\n", driver,
			 found);
}

/*
 * Resets the function by whatever way Linux knows, that of the bus above it and
 * those of single devices included. The hypervisor does the same when it takes it
 * and gives it back, by the ways that every function tells of itself.
 */
static void reset(struct pci_dev *device)
{
	int error = pci_try_reset_function(device);

	if (error)
		pci_info(device, "it can't be reset: what its registers hold stays there (error %d)\n",
			 error);
}

/* Why a cell can't have the function; NULL: it can. */
static const char *what_speaks_against(struct pci_dev *device)
{
	if (device->is_virtfn)
		return "it is a virtual function";
	if (pci_num_vf(device))
		return "it has virtual functions";
	if (device->class >> 8 == PCI_CLASS_DISPLAY_VGA)
		return "it is a VGA adapter, which answers at addresses beyond its own";
	if (is_ours(device))
		return "it did not come back from its last cell";
	return NULL;
}

static bool is_bridge(const struct pci_dev *device)
{
	return device->hdr_type != PCI_HEADER_TYPE_NORMAL ||
	       device->class >> 16 == PCI_BASE_CLASS_BRIDGE;
}

static int take(struct gaol_cell *cell, struct pci_dev *device, u64 number,
		struct gaol_outcome *outcome)
{
	const char *obstacle = what_speaks_against(device);
	struct function *function;
	int error;

	if (is_bridge(device))
		return gaol_refuse(outcome, GAOL_REASON_DEVICE_IS_BRIDGE,
				   number, -EINVAL);
	if (obstacle) {
		pci_err(device, "no cell can have it: %s\n", obstacle);
		return gaol_refuse(outcome, GAOL_REASON_DEVICE_NOT_TAKEN,
				   number, -EBUSY);
	}
	function = kzalloc(sizeof(*function), GFP_KERNEL);
	if (!function)
		return -ENOMEM;
	function->device = pci_dev_get(device);
	function->cell = cell;
	device_lock(&device->dev);
	if (device->dev.driver)
		strscpy(function->driver, device->dev.driver->name,
			sizeof(function->driver));
	device_unlock(&device->dev);
	spin_lock(&functions_lock);
	list_add_tail(&function->list, &functions);
	spin_unlock(&functions_lock);
	device_release_driver(&device->dev);
	error = attach(device);
	if (!error) {
		reset(device);
		return pci_save_state(device);
	}
	pci_err(device, "Linux does not let go of it: error %d\n", error);
	spin_lock(&functions_lock);
	list_del(&function->list);
	spin_unlock(&functions_lock);
	let_linux_have(device, function->driver);
	drop(function);
	return gaol_refuse(outcome, GAOL_REASON_DEVICE_NOT_TAKEN, number,
			   error);
}

static const struct gaol_assigned_device *
devices_of(const struct gaol_cell_header *header)
{
	const void *at = header + 1;

	at += header->memory_region_count * sizeof(struct gaol_memory_region);
	at += header->msr_count * sizeof(struct gaol_msr_access);
	at += header->interrupt_count * sizeof(struct gaol_interrupt);
	return at;
}

/* As they are in the outcome of a request. */
static u64 number_of(const struct pci_dev *device)
{
	return (u64)pci_domain_nr(device->bus) << 16 |
	       PCI_DEVID(device->bus->number, device->devfn);
}

/*
 * Takes the functions of a new cell from their drivers. What was taken is the
 * caller's to return, also when this fails.
 */
int gaol_functions_take(struct gaol_cell *cell,
			const struct gaol_cell_header *header,
			struct gaol_outcome *outcome)
{
	const struct gaol_assigned_device *wanted = devices_of(header);
	unsigned int index;

	for (index = 0; index < header->device_count; index++, wanted++) {
		struct pci_dev *device = pci_get_domain_bus_and_slot(
			wanted->segment, wanted->function >> 8,
			wanted->function & 0xff);
		u64 number = (u64)wanted->segment << 16 | wanted->function;
		int error;

		if (!device)
			return gaol_refuse(outcome, GAOL_REASON_DEVICE_UNKNOWN,
					   number, -ENODEV);
		error = take(cell, device, number, outcome);
		pci_dev_put(device);
		if (error)
			return error;
	}
	return 0;
}

/* Is it there, and has it ended what it did? Waits for that, with a deadline. */
static bool has_come_back(struct pci_dev *device)
{
	u32 id = 0;

	if (pci_read_config_dword(device, PCI_VENDOR_ID, &id) ||
	    id != ((u32)device->device << 16 | device->vendor))
		return false;
	return pci_wait_for_pending_transaction(device);
}

/* The next function of the cell; NULL: there is none. */
static struct function *next_of(const struct gaol_cell *cell, bool *gone)
{
	struct function *function, *found = NULL;

	spin_lock(&functions_lock);
	list_for_each_entry(function, &functions, list)
		if (function->cell == cell) {
			found = function;
			*gone = function->gone;
			break;
		}
	spin_unlock(&functions_lock);
	return found;
}

/* False: it does not come back. */
static bool give_back(struct function *function)
{
	struct pci_dev *device = function->device;

	if (!has_come_back(device))
		return false;
	pci_restore_state(device);
	reset(device);
	if (!has_come_back(device))
		return false;
	spin_lock(&functions_lock);
	function->leaves = true;
	spin_unlock(&functions_lock);
	device_release_driver(&device->dev);
	let_linux_have(device, function->driver);
	return true;
}

/*
 * Returns the cell's functions to the drivers that they came from. One that is
 * not there, or does not end what it does, stays with this module's driver.
 */
int gaol_functions_return(struct gaol_cell *cell, struct gaol_outcome *outcome)
{
	struct function *function;
	int error = 0;
	bool gone;

	while ((function = next_of(cell, &gone))) {
		struct pci_dev *device = function->device;

		if (!gone && give_back(function)) {
			gone = true;
		} else {
			error = gaol_refuse(outcome, GAOL_REASON_DEVICE_GONE,
					    number_of(device), -EIO);
		}
		spin_lock(&functions_lock);
		/* It may have been removed since. */
		gone |= function->gone;
		function->cell = NULL;
		if (gone)
			list_del(&function->list);
		spin_unlock(&functions_lock);
		if (gone)
			drop(function);
		else
			pci_err(device, "it did not come back from cell \"%s\": no driver gets it until it is removed and found again\n",
				cell->name);
	}
	return error;
}

static size_t tell_one(const struct function *function, char *buffer,
		       size_t size)
{
	const char *state = !function->cell ? "lost" :
			    function->gone  ? "gone" :
					      "held";

	return scnprintf(buffer, size, "%s %s %s %s\n",
			 pci_name(function->device),
			 function->driver[0] ? function->driver : "-", state,
			 function->cell ? function->cell->name : "");
}

/* A line for each that cells have, or that did not come back. */
size_t gaol_functions_tell(char *buffer, size_t size)
{
	struct function *function;
	size_t length = 0;

	spin_lock(&functions_lock);
	list_for_each_entry(function, &functions, list)
		length += tell_one(function, buffer + length, size - length);
	spin_unlock(&functions_lock);
	return length;
}

int gaol_functions_init(void)
{
	return pci_register_driver(&function_driver);
}

/* There are no cells; what did not come back from one is forgotten. */
void gaol_functions_exit(void)
{
	struct known_id *id, *next;

	pci_unregister_driver(&function_driver);
	list_for_each_entry_safe(id, next, &known_ids, list) {
		list_del(&id->list);
		kfree(id);
	}
}
