// SPDX-License-Identifier: GPL-2.0
/*
 * The module: /dev/gaol, its ioctls, and what Linux tells us.
 *
 * Invariant: an operation runs to its end or undoes what it did, whether its
 * caller lives or not; all that user space points to is copied before the
 * operation starts (but for what a cell is loaded with), and bounded.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/capability.h>
#include <linux/cpuhotplug.h>
#include <linux/crc32.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/panic_notifier.h>
#include <linux/reboot.h>
#include <linux/slab.h>
#include <linux/suspend.h>
#include <linux/uaccess.h>

#include "gaol.h"

/* An image is far smaller. */
#define MAX_IMAGE_SIZE	(16 << 20)

struct gaol_module gaol = {
	.lock = __MUTEX_INITIALIZER(gaol.lock),
	.presence = __RWSEM_INITIALIZER(gaol.presence),
	.cells_lock = __MUTEX_INITIALIZER(gaol.cells_lock),
	.cells = LIST_HEAD_INIT(gaol.cells),
};

/* Notes why something is refused; returns `error`. */
int gaol_refuse(struct gaol_outcome *outcome, u32 reason, u64 detail, int error)
{
	outcome->reason = reason;
	outcome->detail = detail;
	return error;
}

/* CRC-32 of IEEE 802.3, in which the four bytes at `hole` count as zero. */
u32 gaol_checksum(const void *bytes, size_t size, size_t hole)
{
	static const u8 zero[4];
	u32 crc = crc32_le(~0, bytes, hole);

	crc = crc32_le(crc, zero, sizeof(zero));
	hole += sizeof(zero);
	return ~crc32_le(crc, bytes + hole, size - hole);
}

/* Is the file whole, of this revision, and of the kind that is asked for? */
int gaol_check_preamble(const void *config, size_t size, const char *signature,
			size_t header_size, struct gaol_outcome *outcome)
{
	const struct gaol_preamble *preamble = config;

	if (size < header_size ||
	    memcmp(preamble->signature, signature, sizeof(preamble->signature)))
		return gaol_refuse(outcome, GAOL_REASON_CONFIGURATION_INVALID,
				   size, -EINVAL);
	if (preamble->revision != GAOL_ABI_REVISION)
		return gaol_refuse(outcome, GAOL_REASON_CONFIGURATION_REVISION,
				   preamble->revision, -EINVAL);
	if (preamble->total_size != size)
		return gaol_refuse(outcome, GAOL_REASON_CONFIGURATION_INVALID,
				   size, -EINVAL);
	if (preamble->checksum !=
	    gaol_checksum(config, size, GAOL_CONFIG_CHECKSUM_OFFSET))
		return gaol_refuse(outcome, GAOL_REASON_CONFIGURATION_CHECKSUM,
				   0, -EINVAL);
	return 0;
}

/* A name has at least one character and a zero byte at its end. */
bool gaol_name_is_valid(const char *name)
{
	return name[0] && strnlen(name, GAOL_NAME_LENGTH) < GAOL_NAME_LENGTH;
}

/* A copy of what user space points to; the caller has bounded the size. */
void *gaol_copy_in(u64 user, u64 size)
{
	void *copy = kvmalloc(max_t(u64, size, 1), GFP_KERNEL);

	if (!copy)
		return ERR_PTR(-ENOMEM);
	if (copy_from_user(copy, u64_to_user_ptr(user), size)) {
		kvfree(copy);
		return ERR_PTR(-EFAULT);
	}
	return copy;
}

static void *copy_config(u64 user, u64 size, u64 limit,
			 struct gaol_outcome *outcome)
{
	if (size > limit)
		return ERR_PTR(gaol_refuse(outcome,
					   GAOL_REASON_CONFIGURATION_TOO_BIG,
					   size, -E2BIG));
	return gaol_copy_in(user, size);
}

static int enable(struct gaol_enable_request *request,
		  const struct file *holder)
{
	unsigned int sleep_flags;
	void *image, *config;
	int error;

	if (request->image_size > MAX_IMAGE_SIZE)
		return gaol_refuse(&request->outcome,
				   GAOL_REASON_IMAGE_INVALID, 0, -EINVAL);
	image = gaol_copy_in(request->image, request->image_size);
	if (IS_ERR(image))
		return PTR_ERR(image);
	config = copy_config(request->config, request->config_size,
			     GAOL_CONFIG_MAX_SIZE, &request->outcome);
	if (IS_ERR(config)) {
		kvfree(image);
		return PTR_ERR(config);
	}
	/* The machine does not fall asleep between our last look and the end. */
	sleep_flags = lock_system_sleep();
	mutex_lock(&gaol.lock);
	error = gaol_enable(request, image, config, holder);
	mutex_unlock(&gaol.lock);
	unlock_system_sleep(sleep_flags);
	kvfree(config);
	kvfree(image);
	return error;
}

static int cell_create(struct gaol_cell_create_request *request,
		       const struct file *holder)
{
	void *config;
	int error;

	config = copy_config(request->config, request->config_size,
			     GAOL_CONFIG_MAX_CELL_SIZE, &request->outcome);
	if (IS_ERR(config))
		return PTR_ERR(config);
	mutex_lock(&gaol.lock);
	error = gaol_cell_create(request, config, holder);
	mutex_unlock(&gaol.lock);
	kvfree(config);
	return error;
}

static int cell_load(struct gaol_cell_load_request *request)
{
	struct gaol_load_image *images;
	int error;

	if (request->image_count > GAOL_DRIVER_MAX_LOAD_IMAGES)
		return -E2BIG;
	images = gaol_copy_in(request->images,
			      request->image_count * sizeof(*images));
	if (IS_ERR(images))
		return PTR_ERR(images);
	mutex_lock(&gaol.lock);
	error = gaol_cell_load(request, images);
	mutex_unlock(&gaol.lock);
	kvfree(images);
	return error;
}

static int memory_offer(struct gaol_memory_offer_request *request,
			const struct file *holder)
{
	u64 *blocks;
	int error;

	if (request->block_count > GAOL_DRIVER_MAX_MEMORY_BLOCKS)
		return -E2BIG;
	blocks = gaol_copy_in(request->blocks,
			      request->block_count * sizeof(*blocks));
	if (IS_ERR(blocks))
		return PTR_ERR(blocks);
	mutex_lock(&gaol.lock);
	error = gaol_blocks_offer(blocks, request->block_count,
				  request->block_size, holder);
	mutex_unlock(&gaol.lock);
	kvfree(blocks);
	return error;
}

static int command(struct gaol_cell_command *command,
		   int (*operation)(struct gaol_cell_command *))
{
	int error;

	if (command->flags & ~GAOL_DRIVER_FLAG_FORCE)
		return -EINVAL;
	mutex_lock(&gaol.lock);
	error = operation(command);
	mutex_unlock(&gaol.lock);
	return error;
}

static int dispatch(unsigned int number, void *request,
		    const struct file *holder)
{
	switch (number) {
	case GAOL_IOCTL_ENABLE:
		return enable(request, holder);
	case GAOL_IOCTL_DISABLE:
		return command(request, gaol_disable);
	case GAOL_IOCTL_CELL_CREATE:
		return cell_create(request, holder);
	case GAOL_IOCTL_CELL_LOAD:
		return cell_load(request);
	case GAOL_IOCTL_CELL_START:
		return command(request, gaol_cell_start);
	case GAOL_IOCTL_CELL_SHUTDOWN:
		return command(request, gaol_cell_shutdown);
	case GAOL_IOCTL_CELL_DESTROY:
		return command(request, gaol_cell_destroy);
	case GAOL_IOCTL_MEMORY_OFFER:
		return memory_offer(request, holder);
	default:
		return -ENOTTY;
	}
}

/* Where the outcome of a request is; NULL: there is no such request. */
static struct gaol_outcome *outcome_of(unsigned int number, void *request)
{
	switch (number) {
	case GAOL_IOCTL_ENABLE:
		return &((struct gaol_enable_request *)request)->outcome;
	case GAOL_IOCTL_DISABLE:
	case GAOL_IOCTL_CELL_START:
	case GAOL_IOCTL_CELL_SHUTDOWN:
	case GAOL_IOCTL_CELL_DESTROY:
		return &((struct gaol_cell_command *)request)->outcome;
	case GAOL_IOCTL_CELL_CREATE:
		return &((struct gaol_cell_create_request *)request)->outcome;
	case GAOL_IOCTL_CELL_LOAD:
		return &((struct gaol_cell_load_request *)request)->outcome;
	case GAOL_IOCTL_MEMORY_OFFER:
		return &((struct gaol_memory_offer_request *)request)->outcome;
	default:
		return NULL;
	}
}

static long gaol_ioctl(struct file *file, unsigned int number,
		       unsigned long argument)
{
	void __user *user = (void __user *)argument;
	union {
		/* All requests begin with it. */
		u32 revision;
		struct gaol_enable_request enable;
		struct gaol_cell_create_request create;
		struct gaol_cell_load_request load;
		struct gaol_cell_command command;
		struct gaol_memory_offer_request offer;
	} request;
	struct gaol_outcome *outcome = outcome_of(number, &request);
	size_t size = _IOC_SIZE(number);
	int error;

	if (!outcome)
		return -ENOTTY;
	if (copy_from_user(&request, user, size))
		return -EFAULT;
	if (request.revision != GAOL_ABI_REVISION)
		return -EINVAL;
	memset(outcome, 0, sizeof(*outcome));
	/* Nothing is done that could not be reported. */
	if (copy_to_user(user, &request, size))
		return -EFAULT;
	error = dispatch(number, &request, file);
	if (copy_to_user(user, &request, size))
		return -EFAULT;
	return error;
}

static int gaol_open(struct inode *inode, struct file *file)
{
	if (!capable(CAP_SYS_ADMIN))
		return -EPERM;
	return gaol_console_open(file);
}

static int gaol_release(struct inode *inode, struct file *file)
{
	gaol_blocks_let_go(file, true);
	gaol_console_release(file);
	return 0;
}

static const struct file_operations file_operations = {
	.owner = THIS_MODULE,
	.open = gaol_open,
	.release = gaol_release,
	.unlocked_ioctl = gaol_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.read = gaol_console_read,
	.poll = gaol_console_poll,
	.mmap = gaol_mmap,
	.llseek = noop_llseek,
};

static struct miscdevice device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "gaol",
	.mode = 0600,
	.fops = &file_operations,
};

/*
 * Asked on a CPU of Linux before it starts another one: neither a cell's CPU nor
 * one that the hypervisor does not know, for that would never arrive.
 */
static int cpu_may_start(unsigned int cpu)
{
	if (cpumask_test_cpu(cpu, &gaol.owned))
		return -EBUSY;
	return READ_ONCE(gaol.enabled) && cpu >= gaol.cpu_count ? -EBUSY : 0;
}

static int before_sleep(struct notifier_block *block, unsigned long event,
			void *data)
{
	switch (event) {
	case PM_HIBERNATION_PREPARE:
	case PM_SUSPEND_PREPARE:
	case PM_RESTORE_PREPARE:
		if (READ_ONCE(gaol.enabled)) {
			pr_warn("the machine cannot sleep while the hypervisor is enabled: run \"gaol disable\" first\n");
			return NOTIFY_BAD;
		}
		break;
	}
	return NOTIFY_DONE;
}

static int before_reboot(struct notifier_block *block, unsigned long event,
			 void *data)
{
	mutex_lock(&gaol.lock);
	if (gaol.enabled && !gaol.broken && gaol_give_back())
		pr_err("the machine goes down with the hypervisor enabled\n");
	mutex_unlock(&gaol.lock);
	return NOTIFY_DONE;
}

/* The hypervisor keeps it on record; it takes no lock, nor does this. */
static int at_panic(struct notifier_block *block, unsigned long event,
		    void *data)
{
	if (READ_ONCE(gaol.enabled) && !gaol.broken)
		gaol_hypercall(GAOL_HYPERCALL_ROOT_FAILED, 0, 0, NULL);
	return NOTIFY_DONE;
}

static struct notifier_block panic_notifier = {
	.notifier_call = at_panic,
};

static struct notifier_block sleep_notifier = {
	.notifier_call = before_sleep,
};

static struct notifier_block reboot_notifier = {
	.notifier_call = before_reboot,
};

static int hotplug_state;

/* No unload while enabled: the hypervisor holds a reference to the module. */
static void __exit gaol_exit(void)
{
	misc_deregister(&device);
	atomic_notifier_chain_unregister(&panic_notifier_list, &panic_notifier);
	unregister_reboot_notifier(&reboot_notifier);
	unregister_pm_notifier(&sleep_notifier);
	cpuhp_remove_state_nocalls(hotplug_state);
	gaol_functions_exit();
	gaol_blocks_exit();
	gaol_sysfs_exit();
	gaol_console_exit();
}

static int __init gaol_init(void)
{
	int error;

	error = gaol_console_init();
	if (error)
		return error;
	error = gaol_sysfs_init();
	if (error)
		goto console;
	hotplug_state = cpuhp_setup_state_nocalls(CPUHP_BP_PREPARE_DYN,
						  "gaol:prepare", cpu_may_start,
						  NULL);
	if (hotplug_state < 0) {
		error = hotplug_state;
		goto sysfs;
	}
	error = register_pm_notifier(&sleep_notifier);
	if (error)
		goto hotplug;
	error = register_reboot_notifier(&reboot_notifier);
	if (error)
		goto sleep;
	error = atomic_notifier_chain_register(&panic_notifier_list,
					       &panic_notifier);
	if (error)
		goto reboot;
	error = gaol_blocks_init();
	if (error)
		goto panic;
	error = gaol_functions_init();
	if (error)
		goto blocks;
	error = misc_register(&device);
	if (error)
		goto functions;
	return 0;

functions:
	gaol_functions_exit();
blocks:
	gaol_blocks_exit();
panic:
	atomic_notifier_chain_unregister(&panic_notifier_list, &panic_notifier);
reboot:
	unregister_reboot_notifier(&reboot_notifier);
sleep:
	unregister_pm_notifier(&sleep_notifier);
hotplug:
	cpuhp_remove_state_nocalls(hotplug_state);
sysfs:
	gaol_sysfs_exit();
console:
	gaol_console_exit();
	return error;
}

module_init(gaol_init);
module_exit(gaol_exit);

MODULE_DESCRIPTION("Gaol, a static partitioning hypervisor: launch and management");
MODULE_AUTHOR("The Gaol authors");
MODULE_LICENSE("GPL");
